//! The platform's real Flask, in an environment of its own that is made once and kept beside what cargo builds.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::LazyLock;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// The platform's `SECRET_KEY`.
pub const KEY: &str = "5f2b9c0e7a4d41d8b3c6e1f09a7d2c54";

const APPLICATION: &str = include_str!("flask/platform.py");
const REQUIREMENTS: &str = include_str!("flask/requirements.txt");

static PYTHON: LazyLock<PathBuf> = LazyLock::new(environment);

/// What a browser does at the platform.
#[derive(Debug, Clone)]
pub struct Order(Value);

/// Somebody who gives his password and the second factor.
pub fn logs_in(user: impl Into<Value>) -> Order {
    let user: Value = user.into();
    Order(json!({ "key": KEY, "user": user, "places": ["/password", "/second-factor"] }))
}

/// Somebody who has given his password alone.
pub fn gives_password(user: &str) -> Order {
    Order(json!({ "key": KEY, "user": user, "places": ["/password"] }))
}

impl Order {
    /// With a part of the order said otherwise.
    pub fn with(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.0[name] = value.into();
        self
    }

    pub fn then(mut self, place: &str) -> Self {
        self.0["places"].as_array_mut().unwrap().push(place.into());
        self
    }

    /// Something is kept in the session afterwards.
    pub fn keeping(self, more: Value) -> Self {
        self.with("more", more).then("/browse")
    }

    #[track_caller]
    pub fn cookie(self) -> String {
        let [cookie] = cookies([self]);
        cookie.expect("a cookie is held in the end")
    }
}

/// What each browser holds in the end.
#[track_caller]
pub fn cookies<const N: usize>(orders: [Order; N]) -> [Option<String>; N] {
    let orders = Value::from_iter(orders.map(|order| order.0));
    let mut python = Command::new(&*PYTHON)
        .args(["-I", "-c", APPLICATION])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = python.stdin.take().unwrap();
    stdin.write_all(orders.to_string().as_bytes()).unwrap();
    drop(stdin);
    let output = python.wait_with_output().unwrap();
    assert!(output.status.success(), "the platform fails at {orders}");
    let cookies: Vec<Option<String>> = serde_json::from_slice(&output.stdout).unwrap();
    cookies.try_into().unwrap()
}

/// The interpreter of an environment that has what is required, and nothing else.
fn environment() -> PathBuf {
    let digest = Sha256::digest(REQUIREMENTS);
    let name = format!(
        "flask-{:02x}{:02x}{:02x}{:02x}",
        digest[0], digest[1], digest[2], digest[3]
    );
    let place = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let complete = place.join("complete");
    fs::create_dir_all(&place).unwrap();
    // Another run of the tests may be at it.
    let lock = File::create(place.with_extension("lock")).unwrap();
    lock.lock().unwrap();
    if !complete.exists() {
        run(Command::new("python3")
            .args(["-m", "venv", "--clear"])
            .arg(&place));
        let requirements = place.join("requirements.txt");
        fs::write(&requirements, REQUIREMENTS).unwrap();
        let wheels_alone = ["--quiet", "--require-hashes", "--only-binary", ":all:"];
        run(Command::new(place.join("bin/python"))
            .args(["-m", "pip", "install"])
            .args(wheels_alone)
            .arg("--requirement")
            .arg(requirements));
        File::create(&complete).unwrap();
    }
    place.join("bin/python")
}

fn run(command: &mut Command) {
    let output = command
        .output()
        .unwrap_or_else(|e| panic!("{command:?}: {e}"));
    assert!(
        output.status.success(),
        "{command:?} fails, so there is no Flask to make cookies: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}
