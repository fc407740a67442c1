//! The library as others see it: all that it includes is packed with it, and its interface is made of its own types.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Component, Path, PathBuf};

fn library() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../backup-core")
}

fn sources(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|it| it == "rs") {
            found.push(path);
        }
    }
}

/// The files that a source includes, as it names them.
fn included(text: &str) -> impl Iterator<Item = &str> {
    [
        "include_str!(\"",
        "include_bytes!(\"",
        "include!(\"",
        "#[path = \"",
    ]
    .into_iter()
    .flat_map(|begin| text.split(begin).skip(1))
    .filter_map(|rest| rest.split('"').next())
}

/// Whether a path that begins in this directory of the library leads out of the library.
fn leads_out_of(directory: &Path, path: &Path) -> bool {
    let mut depth = directory.components().count();
    for component in path.components() {
        match component {
            Component::ParentDir if depth == 0 => return true,
            Component::ParentDir => depth -= 1,
            Component::Normal(_) => depth += 1,
            Component::CurDir => {}
            Component::RootDir | Component::Prefix(_) => return true,
        }
    }
    false
}

#[test]
fn what_the_library_includes_is_packed_with_it() {
    let library = library();
    let mut files = Vec::new();
    for part in ["src", "examples"] {
        sources(&library.join(part), &mut files);
    }
    // Tests are run in the workspace, never of a package.
    files.retain(|file| !file.ends_with("tests.rs"));
    let mut count = 0;
    for file in &files {
        let text = fs::read_to_string(file).unwrap();
        let directory = file.parent().unwrap();
        for name in included(&text) {
            count += 1;
            let within = directory.strip_prefix(&library).unwrap();
            assert!(
                !leads_out_of(within, Path::new(name)),
                "{} includes {name}, which is not part of the package",
                file.display()
            );
            let found = fs::metadata(directory.join(name));
            assert!(
                found.is_ok_and(|it| it.is_file()),
                "{} includes {name}, which is not there",
                file.display()
            );
        }
    }
    // Eight migrations, and the guide.
    assert!(count >= 9, "only {count} includes were found");
}

#[test]
fn the_rust_version_that_is_stated_is_the_one_that_the_guide_and_the_readme_name() {
    let workspace = library().join("..");
    let read = |name: &str| fs::read_to_string(workspace.join(name)).unwrap();
    let manifest = read("Cargo.toml");
    let version = manifest
        .lines()
        .find_map(|line| line.strip_prefix("rust-version = \""))
        .and_then(|rest| rest.split('"').next())
        .expect("no rust-version");
    for document in ["README.md", "docs/library.md"] {
        let text = read(document);
        assert!(
            text.contains(&format!("Rust {version}"))
                || text.contains(&format!("Rust version is {version}")),
            "{document} does not name Rust {version}"
        );
    }
}

/// The crates whose types are meant to stand in the interface: exported with it, or such as every caller has.
const MEANT: [&str; 7] = [
    "bytes",
    "futures_util",
    "jiff",
    "secrecy",
    "serde",
    "tokio",
    "url",
];

/// All other crates that the library is built on.
fn private_crates() -> Vec<String> {
    let manifest = fs::read_to_string(library().join("Cargo.toml")).unwrap();
    let (_, dependencies) = manifest.split_once("\n[dependencies]\n").unwrap();
    let dependencies = dependencies.split("\n[").next().unwrap();
    let names = dependencies
        .lines()
        .filter_map(|line| line.split('.').next());
    names
        .map(|name| name.trim().replace('-', "_"))
        .filter(|name| !name.is_empty() && !MEANT.contains(&name.as_str()))
        .collect()
}

fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !c.is_alphanumeric() && c != '_')
        .filter(|word| !word.is_empty())
}

/// The names of types that a source takes from these crates by `use`.
fn taken_from<'a>(text: &'a str, crates: &[String]) -> BTreeSet<&'a str> {
    let mut names = BTreeSet::new();
    let uses = text
        .split("\n")
        .scan(0, |at, line| {
            let here = *at;
            *at += line.len() + 1;
            Some((here, line.trim_start()))
        })
        .filter(|(_, line)| line.starts_with("use ") || line.starts_with("pub use "));
    for (at, _) in uses {
        let statement = text[at..].split(';').next().unwrap();
        let mut words = words(statement).skip_while(|word| ["pub", "use"].contains(word));
        if words
            .next()
            .is_some_and(|first| crates.iter().any(|each| each == first))
        {
            names.extend(words.filter(|word| word.starts_with(char::is_uppercase)));
        }
    }
    names
}

/// What callers see of a source: signatures, public fields, and the whole of public enums and traits; each with the number of its line.
fn signatures(text: &str) -> Vec<(usize, String)> {
    let lines: Vec<&str> = text.lines().collect();
    let mut found = Vec::new();
    let mut item = "";
    for (number, line) in lines.iter().enumerate() {
        if !line.starts_with([' ', '#', '/', '}']) && !line.is_empty() {
            item = line;
        }
        let Some(rest) = line.trim_start().strip_prefix("pub ") else {
            continue;
        };
        // A field is no more public than its struct.
        if item.contains("struct ") && !item.starts_with("pub struct ") {
            continue;
        }
        let indent = line.len() - line.trim_start().len();
        let end = format!("{}}}", " ".repeat(indent));
        let following = &lines[number + 1..];
        let is_body = ["enum ", "trait "].iter().any(|it| rest.starts_with(it));
        let mut signature = rest.to_owned();
        if is_body && !rest.ends_with('}') {
            for line in following.iter().take_while(|line| **line != end) {
                signature.push(' ');
                signature.push_str(line.trim_start().split("//").next().unwrap());
            }
        } else if !rest.contains(['{', ';', ',']) {
            // A signature over several lines.
            for line in following {
                signature.push(' ');
                signature.push_str(line.trim_start());
                if line.contains(['{', ';']) {
                    break;
                }
            }
        }
        found.push((number + 1, signature));
    }
    found
}

/// Types that are public without being in anybody's reach have no place here: what is not for callers is `pub(crate)` or `pub(super)`.
fn public_types(files: &[(PathBuf, String)]) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for (_, text) in files {
        for line in text.lines() {
            let mut words = words(line);
            let is_type = line.starts_with("pub struct ") || line.starts_with("pub enum ");
            names.extend(is_type.then(|| words.nth(2)).flatten().map(str::to_owned));
        }
    }
    names
}

#[test]
fn nothing_of_the_crates_beneath_stands_in_the_interface_of_the_library() {
    let crates = private_crates();
    assert!(
        crates.iter().any(|each| each == "rustic_core"),
        "{crates:?}"
    );
    let mut paths = Vec::new();
    sources(&library().join("src"), &mut paths);
    let files: Vec<(PathBuf, String)> = paths
        .into_iter()
        .map(|path| {
            let text = fs::read_to_string(&path).unwrap();
            let own = text.split("\n#[cfg(test)]\nmod tests").next().unwrap();
            (path, own.to_owned())
        })
        .collect();
    let public = public_types(&files);
    let mut leaks = Vec::new();
    let mut count = 0;
    for (path, text) in &files {
        let taken = taken_from(text, &crates);
        let is_foreign =
            |word: &str| taken.contains(word) || crates.iter().any(|each| each == word);
        for (number, signature) in signatures(text) {
            count += 1;
            if words(&signature).any(is_foreign) {
                leaks.push(format!("{}:{number}: {signature}", path.display()));
            }
        }
        // A foreign trait of a type of ours is part of it, too; what a derive names as well.
        for (number, line) in text.lines().enumerate() {
            let is_impl = line.starts_with("impl");
            let Some((left, right)) = line.split_once(" for ").filter(|_| is_impl) else {
                continue;
            };
            let implementor = words(right).next().unwrap_or_default();
            if public.contains(implementor) && words(left).any(is_foreign) {
                leaks.push(format!("{}:{}: {line}", path.display(), number + 1));
            }
        }
    }
    assert!(count > 400, "only {count} signatures were found");
    assert!(leaks.is_empty(), "{leaks:#?}");
}

#[test]
fn a_type_that_leaks_is_found() {
    let source = "use beneath::{Inner, file::Outer};\n\npub fn plain(\n    one: u8,\n) -> Inner {\n    Outer\n}\n\npub enum Both {\n    One(Outer),\n}\n";
    let crates = ["beneath".to_owned()];
    let taken = taken_from(source, &crates);
    assert_eq!(taken, BTreeSet::from(["Inner", "Outer"]));
    let leaks = signatures(source)
        .into_iter()
        .filter(|(_, signature)| words(signature).any(|word| taken.contains(word)));
    assert_eq!(leaks.map(|(line, _)| line).collect::<Vec<_>>(), [3, 9]);
}
