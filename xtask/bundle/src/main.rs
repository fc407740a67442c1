//! Builds the browser's part of the dashboard: script, WebAssembly and style, as the server hands them out.
//!
//! By the settings that cargo-leptos reads, and with the same result, but with nothing to install: wasm-bindgen is a library here,
//! in the version of the lock file. A crate of its own, for nothing else needs to compile that. Never: a site root that is half old
//! and half new, or a name with a hash whose content is another.

mod compress;
mod settings;

use std::env;
use std::ffi::OsString;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use serde_json::Value;
use sha2::{Digest, Sha256};
use wasm_bindgen_cli_support::Bindgen;

use settings::Settings;

const TARGET: &str = "wasm32-unknown-unknown";
/// The most that a browser may have to load before the page is alive: script and WebAssembly, as brotli packs them.
const SIZE_LIMIT: usize = 250_000;
/// Where the build script of the dashboard says what it was built of.
const BUILD: &str = "BACKUP_APP_BUILD";
/// As many digits of its SHA-256 as name a file.
const HASH_DIGITS: usize = 16;

fn main() -> Result<()> {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../..")
        .canonicalize()?;
    let settings = Settings::read(&workspace.join("Cargo.toml"))?;
    let compiled = compile(&workspace, &settings)?;
    let bundle = Bundle::of(compiled, &workspace.join(&settings.style_file), &settings)?;
    bundle.check_size()?;
    let site = workspace.join(&settings.site_root);
    bundle.publish(&site, &workspace.join(&settings.assets_dir), &settings)?;
    println!("{}", site.display());
    Ok(())
}

/// The dashboard as it was compiled for the browser.
struct Compiled {
    wasm: PathBuf,
    /// What the build script of the dashboard says of its sources; the server's half says the same.
    build: String,
}

fn compile(workspace: &Path, settings: &Settings) -> Result<Compiled> {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo"));
    let output = Command::new(cargo)
        .args(["build", "--locked", "--lib", "--target", TARGET])
        .args(["--package", &settings.lib_package])
        .args(["--profile", &settings.lib_profile_release])
        .args(["--features", &settings.lib_features.join(",")])
        .args(["--message-format", "json-render-diagnostics"])
        .current_dir(workspace)
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()?;
    ensure!(
        output.status.success(),
        "the dashboard does not compile for the browser (`rustup target add {TARGET}` installs what that needs)"
    );
    let messages: Vec<Value> = String::from_utf8(output.stdout)?
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect();
    let of_kind = |kind| {
        messages
            .iter()
            .filter(move |message| message["reason"] == kind)
    };
    let texts = |list: &Value| list.as_array().cloned().unwrap_or_default();
    let wasm = of_kind("compiler-artifact")
        .flat_map(|artifact| texts(&artifact["filenames"]))
        .filter_map(|name| Some(PathBuf::from(name.as_str()?)))
        .rfind(|name| name.extension().is_some_and(|ending| ending == "wasm"))
        .context("cargo built no .wasm file")?;
    let build = of_kind("build-script-executed")
        .flat_map(|script| texts(&script["env"]))
        .find(|variable| variable[0] == BUILD)
        .and_then(|variable| variable[1].as_str().map(str::to_owned))
        .with_context(|| format!("no build script says {BUILD}"))?;
    Ok(Compiled { wasm, build })
}

/// What the pages load.
struct Bundle {
    build: String,
    files: Vec<Packed>,
}

/// One file, as it is and as it is sent.
struct Packed {
    /// How the name ends: `js`, `wasm`, `css`.
    kind: &'static str,
    plain: Vec<u8>,
    brotli: Vec<u8>,
    gzip: Vec<u8>,
}

impl Bundle {
    fn of(compiled: Compiled, style: &Path, settings: &Settings) -> Result<Self> {
        let mut bound = Bindgen::new()
            .input_path(compiled.wasm)
            .out_name(&settings.output_name)
            .web(true)?
            .typescript(false)
            .omit_default_module_path(true)
            .remove_name_section(true)
            .remove_producers_section(true)
            .generate_output()?;
        ensure!(
            bound.snippets().values().all(Vec::is_empty) && bound.local_modules().is_empty(),
            "a dependency brings scripts of its own, which nothing here hands out"
        );
        let style = fs::read(style).with_context(|| format!("cannot read {}", style.display()))?;
        let script = bound.js().as_bytes().to_vec();
        let files = [
            ("js", script),
            ("wasm", bound.wasm_mut().emit_wasm()),
            ("css", style),
        ];
        Ok(Self {
            build: compiled.build,
            files: files
                .into_iter()
                .map(|(kind, plain)| Packed::new(kind, plain))
                .collect::<Result<_>>()?,
        })
    }

    /// Print the sizes; an error if the browser would have to load too much.
    fn check_size(&self) -> Result<()> {
        println!("{:>6}{:>10}{:>10}{:>10}", "", "plain", "gzip", "brotli");
        for file in &self.files {
            let [plain, gzip, brotli] = [&file.plain, &file.gzip, &file.brotli].map(Vec::len);
            println!("{:>6}{plain:>10}{gzip:>10}{brotli:>10}", file.kind);
        }
        let code = self.files.iter().filter(|file| file.kind != "css");
        let size: usize = code.map(|file| file.brotli.len()).sum();
        println!("script and WebAssembly: {size} of at most {SIZE_LIMIT} bytes");
        ensure!(
            size <= SIZE_LIMIT,
            "the bundle is too large: {size} bytes of script and WebAssembly, {SIZE_LIMIT} are allowed"
        );
        Ok(())
    }

    /// Put everything in place at once: a new directory beside the old one, and an exchange.
    fn publish(&self, site: &Path, assets: &Path, settings: &Settings) -> Result<()> {
        let parent = site.parent().context("the site root has no parent")?;
        fs::create_dir_all(parent)?;
        let new = tempfile::Builder::new()
            .prefix(".site-")
            .tempdir_in(parent)?;
        fs::set_permissions(new.path(), fs::Permissions::from_mode(0o755))?;
        let package = new.path().join(&settings.site_pkg_dir);
        fs::create_dir(&package)?;
        // The server compares it with its own.
        let mut hashes = format!("build: {}\n", self.build);
        for file in &self.files {
            let (kind, hash) = (file.kind, file.hash());
            file.write(&package.join(format!("{}.{hash}.{kind}", settings.output_name)))?;
            hashes += &format!("{kind}: {hash}\n");
        }
        fs::write(new.path().join("hash.txt"), hashes)?;
        for entry in fs::read_dir(assets)? {
            let entry = entry?;
            fs::copy(entry.path(), new.path().join(entry.file_name()))?;
        }
        match renameat_with(CWD, new.path(), CWD, site, RenameFlags::EXCHANGE) {
            // What is removed now is the old one.
            Ok(()) => Ok(new.close()?),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(fs::rename(new.keep(), site)?),
            Err(error) => Err(error).context("cannot put the new site in the place of the old one"),
        }
    }
}

impl Packed {
    fn new(kind: &'static str, plain: Vec<u8>) -> Result<Self> {
        Ok(Self {
            kind,
            brotli: compress::brotli(&plain)?,
            gzip: compress::gzip(&plain)?,
            plain,
        })
    }

    fn hash(&self) -> String {
        let digest = Sha256::digest(&self.plain);
        let hex = digest.iter().map(|byte| format!("{byte:02x}"));
        hex.collect::<String>()[..HASH_DIGITS].to_owned()
    }

    fn write(&self, path: &Path) -> Result<()> {
        let neighbour = |ending: &str| {
            let mut name = path.as_os_str().to_owned();
            name.push(ending);
            name
        };
        fs::write(path, &self.plain)?;
        fs::write(neighbour(".br"), &self.brotli)?;
        Ok(fs::write(neighbour(".gz"), &self.gzip)?)
    }
}
