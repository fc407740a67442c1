//! What the documents say of the tests is so.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// All Rust files below a directory, their text by their name without the ending.
fn sources(directory: &Path, found: &mut BTreeMap<String, String>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|it| it == "rs") {
            let name = path.file_stem().unwrap().to_string_lossy().into_owned();
            let text = fs::read_to_string(&path).unwrap();
            found.entry(name).or_default().push_str(&text);
        }
    }
}

/// What stands between backquotes and looks like `file::test`.
fn named_tests(text: &str) -> Vec<(&str, &str)> {
    let quoted = text.split('`').skip(1).step_by(2);
    let named = quoted.filter_map(|words| words.split_once("::"));
    let is_name = |name: &str| name.bytes().all(|c| c.is_ascii_lowercase() || c == b'_');
    named
        .filter(|(file, test)| is_name(file) && is_name(test))
        .collect()
}

/// Runs each of the functions that it is given on both kinds of database.
const MACRO: &str = "on_both!(";

/// Whether these lines have a test of this name: a function below an attribute that makes it one, or one that is given to the macro.
fn has_test(text: &str, test: &str) -> bool {
    let is_head = |line: &str| {
        let line = line.trim_start();
        let line = line.strip_prefix("async ").unwrap_or(line);
        line.starts_with(&format!("fn {test}("))
    };
    let is_attribute = |line: &str| {
        let line = line.trim();
        line == "#[test]" || line == "#[tokio::test]" || line.starts_with("#[tokio::test(")
    };
    let lines: Vec<_> = text.lines().collect();
    let is_below_attribute = lines
        .windows(2)
        .any(|pair| is_attribute(pair[0]) && is_head(pair[1]));
    let mut given = text
        .split(MACRO)
        .skip(1)
        .filter_map(|rest| rest.split_once(");"))
        .flat_map(|(names, _)| names.split(',').map(str::trim));
    is_below_attribute || (given.any(|name| name == test) && lines.iter().any(|line| is_head(line)))
}

#[test]
fn a_test_is_told_from_what_is_none() {
    let text = "on_both!(first, second,\n    third,\n);\n\
        async fn first(database: &Database) {\n    #[cfg(unix)]\n    fn inner() {}\n}\nasync fn second() {}\n\
        #[test]\nfn plain() {}\n    #[tokio::test]\n    async fn waiting() {}\n\
        #[tokio::test(flavor = \"multi_thread\")]\nasync fn threaded() {}\n#[cfg(test)]\nfn helper() {}\n";
    for test in ["first", "second", "plain", "waiting", "threaded"] {
        assert!(has_test(text, test), "{test}");
    }
    for none in ["third", "inner", "helper", "plai", "fir", "database"] {
        assert!(!has_test(text, none), "{none}");
    }
}

#[test]
fn every_test_that_the_page_on_security_names_exists() {
    let mut files = BTreeMap::new();
    for directory in ["backup-core", "backup-web", "xtask"] {
        for part in ["src", "tests"] {
            sources(&workspace().join(directory).join(part), &mut files);
        }
    }
    let page = fs::read_to_string(workspace().join("docs/security.md")).unwrap();
    let named = named_tests(&page);
    assert!(named.len() > 40, "the page is not understood: {named:?}");
    let missing: Vec<_> = named
        .into_iter()
        .filter(|(file, test)| !files.get(*file).is_some_and(|text| has_test(text, test)))
        .collect();
    assert!(missing.is_empty(), "there are no such tests: {missing:#?}");
}
