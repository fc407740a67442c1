//! The browser's part of the dashboard: where it lies, by `Leptos.toml`, and how it is handed out. No login.
//!
//! Never: a file handed out that the bundle does not have; a listing; a name that a cache keeps for ever and that may get another
//! content.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use axum::Router;
use axum::extract::Request;
use axum::http::header::CACHE_CONTROL;
use axum::http::{HeaderValue, Response, StatusCode};
use axum::middleware::{Next, from_fn};
use axum::response::IntoResponse;
use backup_app::BUILD;
use backup_core::error::{Error, ErrorKind, Result};
use leptos::config::{LeptosOptions, get_configuration};
use tower::ServiceBuilder;
use tower_http::services::{ServeDir, ServeFile};
use tower_http::set_header::SetResponseHeaderLayer;

const OPTIONS_FILE: &str = "Leptos.toml";
/// Where packages put it.
const INSTALLED: &str = "/usr/share/shophosting-backup";
/// Names the files of the bundle by their content.
const HASHES: &str = "hash.txt";
/// Beside the bundle, under names that browsers and crawlers look for.
const NAMED_FILES: [&str; 2] = ["favicon.svg", "robots.txt"];

/// Longer than any name in a bundle, and what every file system takes.
const LONGEST_NAME: usize = 255;

/// For names that say the content.
const FOR_EVER: HeaderValue = HeaderValue::from_static("public, max-age=31536000, immutable");
/// For the others.
const AN_HOUR: HeaderValue = HeaderValue::from_static("public, max-age=3600");

/// What pages load, and where it is.
#[derive(Debug, Clone)]
pub struct Site {
    pub options: LeptosOptions,
    /// Whether there is a script, and it is of the sources that this program is of: any other would take the page for a page of its own, and break it.
    pub has_script: bool,
}

impl Site {
    fn without_bundle() -> Self {
        Self {
            options: LeptosOptions::builder().output_name("backup").build(),
            has_script: false,
        }
    }
}

/// By the first `Leptos.toml` in the working directory, beside the program, or where packages put it. Where there is no
/// bundle, pages are told to do without script and style.
pub fn find() -> Result<Site> {
    let beside = env::current_exe().ok();
    let beside = beside.as_deref().and_then(Path::parent);
    let places = [Some(Path::new(".")), beside, Some(Path::new(INSTALLED))];
    let found = places
        .into_iter()
        .flatten()
        .find(|place| place.join(OPTIONS_FILE).is_file());
    let Some(place) = found else {
        tracing::warn!(
            "there is no {OPTIONS_FILE} in the working directory, beside the program or in {INSTALLED}: pages have neither script nor style"
        );
        return Ok(Site::without_bundle());
    };
    let mut options = read(&place.join(OPTIONS_FILE))?;
    let site_root = absolute(&if env::var_os("LEPTOS_SITE_ROOT").is_some() {
        PathBuf::from(&*options.site_root)
    } else {
        place.join(&*options.site_root)
    })?;
    options.site_root = text(&site_root)?.into();
    let Some(hash_file) = hash_file(&site_root, beside) else {
        tracing::warn!(
            "there is no bundle in {}: pages have neither script nor style",
            site_root.display()
        );
        options.hash_files = false;
        return Ok(Site {
            options,
            has_script: false,
        });
    };
    options.hash_file = text(&hash_file)?.into();
    let has_script = is_of_this_build(&options);
    Ok(Site {
        options,
        has_script,
    })
}

/// The files of the bundle.
pub fn router<S: Clone + Send + Sync + 'static>(options: &LeptosOptions) -> Router<S> {
    if !options.hash_files {
        return Router::new();
    }
    let root = Path::new(&*options.site_root);
    let package = ServeDir::new(root.join(&*options.site_pkg_dir))
        .append_index_html_on_directories(false)
        .precompressed_br()
        .precompressed_gzip();
    let package = Router::new()
        .fallback_service(package)
        .layer(SetResponseHeaderLayer::overriding(
            CACHE_CONTROL,
            where_found(FOR_EVER),
        ))
        .layer(from_fn(refuse_long_names));
    let router = Router::new().nest(&format!("/{}", options.site_pkg_dir), package);
    NAMED_FILES.into_iter().fold(router, |router, name| {
        let file = ServiceBuilder::new()
            .layer(SetResponseHeaderLayer::overriding(
                CACHE_CONTROL,
                where_found(AN_HOUR),
            ))
            .service(ServeFile::new(root.join(name)));
        router.route_service(&format!("/{name}"), file)
    })
}

/// Where browsers find the style of pages; None where there is none.
pub fn stylesheet(options: &LeptosOptions) -> Option<String> {
    if !options.hash_files {
        return None;
    }
    let hash = named(options, "css")?;
    let (directory, name) = (&options.site_pkg_dir, &options.output_name);
    Some(format!("/{directory}/{name}.{hash}.css"))
}

fn is_of_this_build(options: &LeptosOptions) -> bool {
    let root = &options.site_root;
    match named(options, "build") {
        Some(build) if build == BUILD => true,
        Some(_) => {
            tracing::error!(
                "the bundle in {root} was built of other sources than this program: pages have no script until both are of the same build; replace them together"
            );
            false
        }
        // cargo-leptos does not write it down.
        None => {
            tracing::warn!(
                "the bundle in {root} does not say what it was built of: unless that is what this program was built of, its script breaks the pages"
            );
            true
        }
    }
}

/// What the list of names says of this.
fn named(options: &LeptosOptions, kind: &str) -> Option<String> {
    let hashes = fs::read_to_string(&*options.hash_file).ok()?;
    let (_, name) = hashes
        .lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(found, _)| found.trim() == kind)?;
    Some(name.trim().to_owned())
}

fn read(file: &Path) -> Result<LeptosOptions> {
    let configuration = get_configuration(Some(text(file)?));
    configuration
        .map(|configuration| configuration.leptos_options)
        .map_err(|error| {
            Error::new(
                ErrorKind::Configuration,
                format!("{} cannot be used: {error}", file.display()),
            )
        })
}

/// The list of names: in the site root, or beside the program, where cargo-leptos leaves it.
fn hash_file(site_root: &Path, beside: Option<&Path>) -> Option<PathBuf> {
    [Some(site_root), beside]
        .into_iter()
        .flatten()
        .map(|place| place.join(HASHES))
        .find(|file| site_root.is_dir() && fs::read_to_string(file).is_ok())
}

/// The system would call such a name an error, and that would be ours.
async fn refuse_long_names(request: Request, next: Next) -> axum::response::Response {
    if request.uri().path().len() > LONGEST_NAME {
        return StatusCode::NOT_FOUND.into_response();
    }
    next.run(request).await
}

fn where_found<B>(value: HeaderValue) -> impl FnMut(&Response<B>) -> Option<HeaderValue> + Clone {
    move |response: &Response<B>| {
        let status = response.status();
        (status.is_success() || status == StatusCode::NOT_MODIFIED).then(|| value.clone())
    }
}

fn absolute(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).map_err(|e| Error::io("cannot find the working directory", e))
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().ok_or_else(|| {
        Error::new(
            ErrorKind::Configuration,
            format!("{} is not UTF-8", path.display()),
        )
    })
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_server_and_the_build_have_the_same_settings() {
        let settings = |text: &str| -> toml::Table {
            let start = text.find("[[workspace.metadata.leptos]]").unwrap();
            let table: toml::Table = toml::from_str(&text[start..]).unwrap();
            table["workspace"]["metadata"]["leptos"][0]
                .as_table()
                .unwrap()
                .clone()
        };
        let served = settings(include_str!("../../../Leptos.toml"));
        let built = settings(include_str!("../../../Cargo.toml"));
        assert!(!served.is_empty());
        for (key, value) in &served {
            assert_eq!(built.get(key), Some(value), "{key}");
        }
    }
}
