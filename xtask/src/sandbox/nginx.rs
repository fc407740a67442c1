//! The web server in front of the shops, with the rules that a hosting server gets.

use std::fs;
use std::net::TcpStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Instant;

use anyhow::{Result, bail};

use super::shops::Shops;
use super::{Owner, PATIENCE, PAUSE, workspace};
use crate::private::{Tied, tie};

/// Where the snippet that is deployed finds the maintenance page.
const INSTALLED: &str = "/usr/share/shophosting-backup";

pub struct Nginx {
    _server: Tied,
}

impl Nginx {
    pub fn start(scratch: &Path, owners: &[Owner], shops: &Shops) -> Result<Self> {
        let dir = scratch.join("nginx");
        fs::create_dir(&dir)?;
        let deployed = workspace().join("deploy/nginx");
        let snippet = fs::read_to_string(deployed.join("shophosting-maintenance.conf"))?;
        let snippet = snippet.replace(INSTALLED, &deployed.display().to_string());
        fs::write(dir.join("maintenance.conf"), snippet)?;
        let mut servers = String::new();
        for owner in owners {
            let shop = shops.address(owner.customer.id)?;
            servers += &format!(
                "server {{\n listen 127.0.0.1:{};\n set $shop_directory {};\n set $shop_port {};\n include {}/maintenance.conf;\n}}\n",
                shop.public_port,
                owner.customer.directory.display(),
                shop.port,
                dir.display(),
            );
        }
        let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .map(|kind| format!("{kind}_temp_path {}/{kind};\n", dir.display()))
            .concat();
        // One process, so that it is gone when that is killed.
        let config = format!(
            "daemon off;\nmaster_process off;\npid {0}/pid;\nerror_log {0}/error.log;\nevents {{}}\n\
             http {{\naccess_log off;\n{temporary}types {{ text/html html; }}\n{servers}}}\n",
            dir.display()
        );
        let file = dir.join("nginx.conf");
        fs::write(&file, config)?;
        let mut command = Command::new("nginx");
        command
            .arg("-p")
            .arg(&dir)
            .arg("-e")
            .arg(dir.join("error.log"))
            .arg("-c")
            .arg(&file);
        let mut command = tie(&command);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let mut server = Tied::spawn(command)?;
        let deadline = Instant::now() + PATIENCE;
        for owner in owners {
            let port = shops.address(owner.customer.id)?.public_port;
            while TcpStream::connect(("127.0.0.1", port)).is_err() {
                if server.ended()?.is_some() || Instant::now() > deadline {
                    let log = fs::read_to_string(dir.join("error.log")).unwrap_or_default();
                    bail!("nginx did not start; is the package nginx-light installed? {log}");
                }
                thread::sleep(PAUSE);
            }
        }
        Ok(Self { _server: server })
    }
}
