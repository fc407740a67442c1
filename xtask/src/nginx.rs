//! A private nginx with the rules that a machine gets.

use std::fs;
use std::net::TcpStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::private::{Tied, tie};

const PATIENCE: Duration = Duration::from_secs(20);
const PAUSE: Duration = Duration::from_millis(10);

/// A running server. Dropping it kills it.
pub struct Nginx {
    _server: Tied,
}

impl Nginx {
    /// With `rules` in its `http` section, and its own files in `directory`; once it answers on these ports. An error also if it has
    /// the least to say against the rules.
    pub fn start(directory: &Path, rules: &str, ports: &[u16]) -> Result<Self> {
        let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .map(|kind| format!("{kind}_temp_path {}/{kind};\n", directory.display()))
            .concat();
        // One process, so that it is gone when that is killed.
        let config = format!(
            "daemon off;\nmaster_process off;\npid {0}/pid;\nerror_log {0}/error.log;\nevents {{}}\n\
             http {{\naccess_log off;\n{temporary}types {{ text/html html; }}\n{rules}}}\n",
            directory.display()
        );
        let file = directory.join("nginx.conf");
        fs::write(&file, config)?;
        let nginx = || {
            let mut command = Command::new("nginx");
            command
                .arg("-p")
                .arg(directory)
                .arg("-e")
                .arg(directory.join("error.log"))
                .arg("-c")
                .arg(&file);
            command
        };
        let tested = nginx()
            .args(["-t", "-q"])
            .stdin(Stdio::null())
            .output()
            .context("cannot run nginx; is the package nginx-light installed?")?;
        let said = String::from_utf8_lossy(&tested.stderr);
        ensure!(
            tested.status.success() && said.is_empty(),
            "nginx does not like its rules: {said}"
        );
        let mut command = tie(&nginx());
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let mut server = Tied::spawn(command)?;
        let deadline = Instant::now() + PATIENCE;
        for port in ports {
            while TcpStream::connect(("127.0.0.1", *port)).is_err() {
                if server.ended()?.is_some() || Instant::now() > deadline {
                    let log = fs::read_to_string(directory.join("error.log")).unwrap_or_default();
                    bail!("nginx did not start: {log}");
                }
                thread::sleep(PAUSE);
            }
        }
        Ok(Self { _server: server })
    }
}
