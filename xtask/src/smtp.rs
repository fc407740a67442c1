//! A private SMTP server: aiosmtpd, which keeps each mail that it takes as a file.
//!
//! Never: a mail that leaves this machine; a process left running.

use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use serde_json::json;
use tempfile::TempDir;

use crate::certificate::make_certificate;
use crate::port;
use crate::private::{Guard, Tied, tie};

const START_LIMIT: Duration = Duration::from_secs(20);

/// The interpreter that Debian's package python3-aiosmtpd is for.
const PYTHON: &str = "/usr/bin/python3";

const PROGRAM: &str = include_str!("smtp.py");

/// How it wants to be spoken to.
#[derive(Debug, Clone, Default)]
pub struct Manners {
    /// `tls`, `starttls` or `none`.
    pub tls: &'static str,
    /// Who may give it mail, and his password; empty for anybody.
    pub user: &'static str,
    /// See above.
    pub password: &'static str,
    /// Addresses that it does not know.
    pub refused: Vec<String>,
}

/// A running server. Dropping it kills the server and removes its directory.
pub struct Smtp {
    server: Option<Tied>,
    port: u16,
    manners: Manners,
    dir: TempDir,
    _guard: Guard,
}

/// A mail that it took, as it came.
#[derive(Debug, Clone)]
pub struct TakenMail(String);

impl Smtp {
    /// A new server, that has taken nothing.
    pub fn start(manners: Manners) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("smtp-").tempdir()?;
        let guard = Guard::over(dir.path())?;
        make_certificate(dir.path(), "DNS:localhost,IP:127.0.0.1")?;
        fs::create_dir(dir.path().join("mails"))?;
        let mut this = Self {
            server: None,
            port: port::free()?,
            manners,
            dir,
            _guard: guard,
        };
        this.restart()?;
        Ok(this)
    }

    /// Start it again after [`Smtp::kill`], on the same port, with what it had taken.
    pub fn restart(&mut self) -> Result<()> {
        ensure!(self.server.is_none(), "the server is running");
        let mails = self.dir.path().join("mails");
        let log = mails.join("log");
        fs::write(&log, "")?;
        let order = json!({
            "port": self.port, "mails": mails, "tls": self.manners.tls, "user": self.manners.user,
            "password": self.manners.password, "refused": self.manners.refused,
            "certificate": self.certificate(), "key": self.dir.path().join("key.pem"),
        });
        let orders = self.dir.path().join("order");
        fs::File::create(&orders)?.write_all(order.to_string().as_bytes())?;
        let program = self.dir.path().join("smtp.py");
        fs::write(&program, PROGRAM)?;
        let mut python = Command::new(PYTHON);
        python.arg("-I").arg(program);
        let mut command = tie(&python);
        let errors = fs::File::create(self.dir.path().join("errors"))?;
        command
            .stdin(fs::File::open(orders)?)
            .stdout(Stdio::null())
            .stderr(errors);
        let mut server = Tied::spawn(command)?;
        let deadline = Instant::now() + START_LIMIT;
        while !fs::read_to_string(&log)?.contains("ready") {
            if server.ended()?.is_some() || Instant::now() > deadline {
                let said = fs::read_to_string(self.dir.path().join("errors")).unwrap_or_default();
                bail!(
                    "the SMTP server did not start; is the package python3-aiosmtpd installed? {said}"
                );
            }
            thread::sleep(Duration::from_millis(5));
        }
        self.server = Some(server);
        Ok(())
    }

    /// `kill -9`. Nothing happens if it does not run.
    pub fn kill(&mut self) {
        self.server = None;
    }

    /// The TCP port on 127.0.0.1, which `localhost` is in its certificate.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Its certificate, of its own authority.
    pub fn certificate(&self) -> PathBuf {
        self.dir.path().join("certificate.pem")
    }

    /// What it took, in that order.
    pub fn mails(&self) -> Result<Vec<TakenMail>> {
        let mut files: Vec<PathBuf> = fs::read_dir(self.dir.path().join("mails"))?
            .map(|entry| Ok(entry?.path()))
            .collect::<Result<_>>()?;
        files.retain(|file| file.extension().is_some_and(|it| it == "eml"));
        files.sort();
        let read = |file| Ok(TakenMail(fs::read_to_string(file)?));
        files.into_iter().map(read).collect()
    }
}

impl TakenMail {
    /// The values of a header, in their order. How it came is in `X-Rcpt`, `X-From`, `X-Tls` and `X-User`.
    pub fn headers(&self, name: &str) -> Vec<&str> {
        let lines = self.head().lines();
        let pairs = lines.filter_map(|line| line.split_once(": "));
        pairs
            .filter(|(is, _)| is.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.trim_end())
            .collect()
    }

    /// The names of all its headers.
    pub fn header_names(&self) -> Vec<&str> {
        let lines = self.head().lines();
        lines
            .filter(|line| !line.starts_with([' ', '\t']))
            .map(|line| line.split(':').next().unwrap_or(line))
            .collect()
    }

    /// Its text as a reader shows it, lines ended as on this machine.
    pub fn text(&self) -> String {
        let whole = self.0.replace("\r\n", "\n");
        let text = whole.split_once("\n\n").map_or("", |(_, text)| text);
        match self.headers("Content-Transfer-Encoding").first() {
            Some(&"quoted-printable") => unquoted(text),
            _ => text.to_owned(),
        }
    }

    fn head(&self) -> &str {
        let end = ["\r\n\r\n", "\n\n"]
            .iter()
            .filter_map(|end| self.0.find(end))
            .min();
        &self.0[..end.unwrap_or(self.0.len())]
    }
}

/// Out of quoted-printable: a `=` at the end of a line joins it with the next, `=C3` is a byte.
fn unquoted(text: &str) -> String {
    let joined = text.replace("=\n", "");
    let mut parts = joined.split('=');
    let mut bytes = Vec::from(parts.next().unwrap_or_default());
    for part in parts {
        let code = part.get(..2);
        match code.and_then(|code| u8::from_str_radix(code, 16).ok()) {
            Some(byte) => {
                bytes.push(byte);
                bytes.extend(&part.as_bytes()[2..]);
            }
            None => bytes.extend([b"=", part.as_bytes()].concat()),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}
