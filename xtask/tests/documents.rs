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
    let is_test = |file: &str, test: &str| {
        let text = files.get(file).map_or("", String::as_str);
        let head = |line: &str| line.trim_start().starts_with(&format!("fn {test}("));
        let lines: Vec<_> = text.lines().collect();
        lines
            .windows(2)
            .any(|pair| pair[0].trim() == "#[test]" && head(pair[1]))
    };
    let missing: Vec<_> = named
        .into_iter()
        .filter(|(file, test)| !is_test(file, test))
        .collect();
    assert!(missing.is_empty(), "there are no such tests: {missing:#?}");
}
