//! What the server hands out of the bundle: packed as the browser wants it, for ever where the name says the content, and nothing else.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use backup_app::BUILD;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

const SCRIPT: &str = "export default 1;\n";

/// The server on the embedded default, in a directory of its own.
struct Server {
    dir: TempDir,
    child: Child,
    address: String,
    /// What it said before it listened.
    said: String,
}

impl Server {
    fn start(dir: TempDir) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_shophosting-backup"))
            .arg("serve")
            .current_dir(dir.path())
            .env("BACKUP__SERVER__LISTEN", "127.0.0.1:0")
            .env_remove("LEPTOS_SITE_ROOT")
            .env_remove("RUST_LOG")
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut log = BufReader::new(child.stderr.take().unwrap());
        let mut said = String::new();
        let address = loop {
            let mut line = String::new();
            assert_ne!(log.read_line(&mut line).unwrap(), 0, "it ended: {said}");
            said.push_str(&line);
            if let Some((_, address)) = line.trim_end().split_once("listening on http://") {
                break address.to_owned();
            }
        };
        // Read on, so that it never waits for us.
        std::thread::spawn(move || std::io::copy(&mut log, &mut std::io::sink()));
        Self {
            dir,
            child,
            address,
            said,
        }
    }

    /// Head and body of the answer to one GET.
    fn get(&self, path: &str, encodings: &str) -> (String, Vec<u8>) {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        write!(
            stream,
            "GET {path} HTTP/1.1\r\nHost: localhost\r\nAccept-Encoding: {encodings}\r\nConnection: close\r\n\r\n"
        )
        .unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        let end = answer
            .windows(4)
            .position(|four| four == b"\r\n\r\n")
            .unwrap();
        let head = String::from_utf8(answer[..end].to_vec())
            .unwrap()
            .to_lowercase();
        (head, answer[end + 4..].to_vec())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(pid) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
            let _ = kill_process(pid, Signal::TERM);
        }
        let _ = self.child.wait();
    }
}

/// `Leptos.toml` as it is, and a site root of a few files, built of what the program was built of.
fn bundled() -> TempDir {
    bundled_by(&format!("build: {BUILD}\n"))
}

/// With this in the list of names.
fn bundled_by(build: &str) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let repository = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    fs::copy(
        repository.join("Leptos.toml"),
        dir.path().join("Leptos.toml"),
    )
    .unwrap();
    let site = dir.path().join("target/site");
    fs::create_dir_all(site.join("pkg")).unwrap();
    for (name, content) in [
        ("favicon.svg", "<svg/>"),
        ("pkg/backup.1a.js", SCRIPT),
        ("pkg/backup.1a.js.br", "packed by brotli"),
        ("pkg/backup.1a.js.gz", "packed by gzip"),
        ("pkg/backup.2b.wasm", "\0asm"),
        ("pkg/backup.3c.css", "main {}"),
        ("secret.txt", "not of the bundle"),
    ] {
        fs::write(site.join(name), content).unwrap();
    }
    let hashes = format!("{build}js: 1a\nwasm: 2b\ncss: 3c\n");
    fs::write(site.join("hash.txt"), hashes).unwrap();
    dir
}

#[test]
fn a_page_names_the_files_of_the_bundle_and_they_are_cached_for_ever() {
    let server = Server::start(bundled());
    let page = String::from_utf8(server.get("/login", "identity").1).unwrap();
    for (name, kind) in [
        ("/pkg/backup.1a.js", "text/javascript"),
        ("/pkg/backup.2b.wasm", "application/wasm"),
        ("/pkg/backup.3c.css", "text/css"),
    ] {
        assert!(page.contains(name), "{name} is not in {page}");
        let (head, _) = server.get(name, "identity");
        assert!(head.starts_with("http/1.1 200"), "{head}");
        assert!(head.contains(&format!("content-type: {kind}")), "{head}");
        assert!(
            head.contains("cache-control: public, max-age=31536000, immutable"),
            "{head}"
        );
    }
    let (head, _) = server.get("/favicon.svg", "identity");
    assert!(head.contains("content-type: image/svg+xml"), "{head}");
    assert!(
        !head.contains("immutable"),
        "its name does not say its content: {head}"
    );
}

#[test]
fn a_browser_gets_the_smallest_form_that_it_can_unpack() {
    let server = Server::start(bundled());
    for (encodings, expected) in [
        ("gzip, deflate, br, zstd", "packed by brotli"),
        ("gzip", "packed by gzip"),
        ("identity", SCRIPT),
    ] {
        let (head, body) = server.get("/pkg/backup.1a.js", encodings);
        assert_eq!(body, expected.as_bytes(), "{head}");
        assert!(head.contains("content-type: text/javascript"), "{head}");
        assert!(head.contains("vary: accept-encoding"), "{head}");
    }
}

#[test]
fn nothing_but_the_bundle_is_handed_out() {
    let server = Server::start(bundled());
    fs::write(server.dir.path().join("backup.toml"), "[server]\n").unwrap();
    let long = format!("/pkg/{}", "a".repeat(5000));
    for path in [
        "/pkg",
        "/pkg/",
        "/pkg/none.js",
        "/pkg/../secret.txt",
        "/pkg/..%2fsecret.txt",
        "/pkg/%2e%2e/secret.txt",
        "/pkg/%2e%2e/%2e%2e/%2e%2e/backup.toml",
        "/pkg//etc/passwd",
        "/pkg/%00",
        "/pkg/%ff",
        &long,
    ] {
        let (head, _) = server.get(path, "br");
        // What is no file of the bundle may also be behind the login.
        let is_refused = ["http/1.1 404", "http/1.1 401"]
            .iter()
            .any(|status| head.starts_with(status));
        assert!(is_refused, "{path:.50}: {head}");
        assert!(!head.contains("immutable"), "{path}: {head}");
    }
    for path in [
        "/secret.txt",
        "/hash.txt",
        "/backup.toml",
        "/Leptos.toml",
        "/target/site/secret.txt",
    ] {
        let (head, body) = server.get(path, "identity");
        assert!(!head.starts_with("http/1.1 200"), "{path}: {head}");
        let body = String::from_utf8(body).unwrap();
        assert!(
            !body.contains("not of the bundle") && !body.contains("[server]"),
            "{path}"
        );
    }
}

#[test]
fn a_script_of_other_sources_than_the_program_is_never_loaded() {
    for (build, has_script, said) in [
        (format!("build: {BUILD}\n"), true, None),
        (
            format!("build: {}\n", BUILD.replace(|c| c != '0', "0")),
            false,
            Some("replace them together"),
        ),
        // cargo-leptos does not write it down.
        (String::new(), true, Some("does not say")),
    ] {
        let server = Server::start(bundled_by(&build));
        let of_bundle = |line: &&str| line.contains("the bundle in");
        let line = server.said.lines().find(of_bundle);
        match said {
            Some(said) => assert!(line.unwrap().contains(said), "{}", server.said),
            None => assert_eq!(line, None),
        }
        let page = String::from_utf8(server.get("/login", "identity").1).unwrap();
        for loaded in ["/pkg/backup.1a.js", "/pkg/backup.2b.wasm"] {
            assert_eq!(page.contains(loaded), has_script, "{loaded}: {page}");
        }
        assert!(page.contains("/pkg/backup.3c.css"), "{page}");
        assert!(page.contains("Password"), "{page}");
    }
}

#[test]
fn without_a_bundle_the_server_says_so_and_pages_ask_for_none() {
    let server = Server::start(tempfile::tempdir().unwrap());
    assert!(
        server.said.contains("neither script nor style"),
        "{}",
        server.said
    );
    let (head, body) = server.get("/login", "identity");
    let page = String::from_utf8(body).unwrap();
    assert!(head.starts_with("http/1.1 200"), "{head}");
    assert!(page.contains("Password"), "{page}");
    assert!(
        !page.contains("/pkg/") && !page.contains("stylesheet"),
        "{page}"
    );
}
