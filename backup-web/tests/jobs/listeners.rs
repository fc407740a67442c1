//! Who is told how jobs end: a receiver of webhooks, and an SMTP server.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use xtask::receiver::{Receiver, Told};
use xtask::smtp::{Manners, Smtp};

use crate::world::{World, eventually};

/// As `secret_file` has it, and the one that was before it.
pub const SECRET: &str = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD";
const OLD_SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

pub const USER: &str = "backups";
const PASSWORD: &str = "the password of the smtp server";

const ALL: &str = r#"["backup.completed", "backup.failed", "backup.cancelled", "restore.completed", "restore.failed", "restore.cancelled", "restore.stuck"]"#;

pub struct Listeners {
    pub receiver: Receiver,
    pub smtp: Smtp,
    dir: tempfile::TempDir,
    keys: Vec<(String, String)>,
}

impl Listeners {
    /// Both are content with all that comes, and are told everything.
    pub fn new() -> Self {
        Self::with_mail("tls", &[])
    }

    pub fn with_mail(tls: &'static str, refused: &[&str]) -> Self {
        let smtp = Smtp::start(Manners {
            tls,
            user: USER,
            password: PASSWORD,
            refused: refused.iter().map(|it| (*it).to_owned()).collect(),
        })
        .unwrap();
        let receiver = Receiver::start().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let secret = |name: &str, text: &str| {
            let path = dir.path().join(name);
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
            path.display().to_string()
        };
        let secrets = secret("webhook-secret", &format!("{SECRET}\n{OLD_SECRET}\n"));
        let password = secret("smtp-password", PASSWORD);
        let keys = [
            ("SERVER__PUBLIC_URL", "https://backups.example".to_owned()),
            (
                "NOTIFY__WEBHOOK__URL",
                format!("http://127.0.0.1:{}/hooks?at=backups", receiver.port()),
            ),
            ("NOTIFY__WEBHOOK__SECRET_FILE", secrets),
            ("NOTIFY__EMAIL__HOST", "localhost".to_owned()),
            ("NOTIFY__EMAIL__PORT", smtp.port().to_string()),
            ("NOTIFY__EMAIL__TLS", tls.to_owned()),
            ("NOTIFY__EMAIL__USER", USER.to_owned()),
            ("NOTIFY__EMAIL__PASSWORD_FILE", password),
            (
                "NOTIFY__EMAIL__FROM",
                "Backups <backups@platform.example>".to_owned(),
            ),
            ("NOTIFY__EMAIL__EVENTS", ALL.to_owned()),
        ];
        let keys = keys.map(|(key, value)| (key.to_owned(), value));
        Self {
            receiver,
            smtp,
            dir,
            keys: keys.to_vec(),
        }
    }

    /// With another value of a key, or without any key that begins so.
    pub fn set(&mut self, key: &str, value: Option<&str>) {
        self.keys.retain(|(is, _)| !is.starts_with(key));
        self.keys
            .extend(value.map(|value| (key.to_owned(), value.to_owned())));
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub fn settings(&self) -> Vec<(&str, &str)> {
        let keys = self.keys.iter();
        keys.map(|(key, value)| (key.as_str(), value.as_str()))
            .collect()
    }

    /// A hosting server whose dashboard and workers tell these.
    pub fn world(&self, customers: impl IntoIterator<Item = u32>) -> World {
        let mut world = World::with(customers, &self.settings());
        for (name, secret) in [
            ("the secret of the webhook", SECRET),
            ("the old secret of the webhook", OLD_SECRET),
            ("the password of the SMTP server", PASSWORD),
        ] {
            let bare = secret.strip_prefix("whsec_").unwrap_or(secret);
            world.product.keep_secret(name, bare);
        }
        world
    }

    /// A command that trusts the certificate of the SMTP server, and no other.
    pub fn command(&self, world: &World, line: &str) -> Command {
        let mut command = world.command(line, &self.settings());
        command.env("SSL_CERT_FILE", self.smtp.certificate());
        command
    }

    /// What the receiver was told, once it is so much.
    #[track_caller]
    pub fn told(&self, number: usize) -> Vec<Told> {
        eventually("it is told", || self.receiver.told().len() >= number);
        self.receiver.told()
    }
}

/// What is still to be told.
#[track_caller]
pub fn waiting(world: &World) -> u32 {
    let count = world.sql("SELECT COUNT(*) FROM shophosting_db.backup_notifications");
    count.trim().parse().unwrap()
}

/// How many were sent or given up.
#[track_caller]
pub fn counted(world: &World, channel: &str, outcome: &str) -> u32 {
    let count = world.sql(&format!(
        "SELECT number FROM shophosting_db.backup_notification_counts WHERE channel = '{channel}' AND outcome = '{outcome}'"
    ));
    count.trim().parse().unwrap()
}

/// As if the pause were over.
#[track_caller]
pub fn make_due(world: &World) {
    world.sql("UPDATE shophosting_db.backup_notifications SET due_at = 0");
}

#[track_caller]
pub fn until_all_is_told(world: &World) {
    eventually("nothing is left to be told", || waiting(world) == 0);
}

/// What the documentation says how to verify a webhook by, run as it stands.
#[track_caller]
pub fn is_genuine(secret: &str, told: &Told, body: &str) -> bool {
    let page = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../docs/operations.md");
    let page = fs::read_to_string(page).unwrap();
    let (_, code) = page.split_once("```python\n").unwrap();
    let (code, _) = code.split_once("```").unwrap();
    let program = format!(
        "{code}\nimport json, sys\nit = json.load(sys.stdin)\nprint(is_genuine(it['secret'], it['headers'], it['body'].encode()))\n"
    );
    let headers: HashMap<&str, &str> = told
        .headers
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_str()))
        .collect();
    let mut python = Command::new("python3")
        .args(["-I", "-c", &program])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let given = json!({ "secret": secret, "headers": headers, "body": body });
    serde_json::to_writer(python.stdin.take().unwrap(), &given).unwrap();
    let output = python.wait_with_output().unwrap();
    assert!(output.status.success());
    match String::from_utf8(output.stdout).unwrap().trim() {
        "True" => true,
        "False" => false,
        other => panic!("{other}"),
    }
}

/// Of the secret before: the receiver may not know the new one yet.
#[track_caller]
pub fn assert_genuine(told: &Told) {
    for secret in [SECRET, OLD_SECRET] {
        assert!(is_genuine(secret, told, &told.body), "{told:?}");
    }
}

pub fn document(told: &Told) -> Value {
    serde_json::from_str(&told.body).unwrap()
}
