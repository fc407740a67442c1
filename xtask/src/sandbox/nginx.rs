//! The web server in front of the shops, with the rules that a hosting server gets.

use std::fs;
use std::path::Path;

use anyhow::Result;

use super::shops::Shops;
use super::{Owner, workspace};
use crate::nginx::Nginx;

/// Where the snippet that is deployed finds the maintenance page.
const INSTALLED: &str = "/usr/share/shophosting-backup";

/// In front of the shops of these owners.
pub fn start(scratch: &Path, owners: &[Owner], shops: &Shops) -> Result<Nginx> {
    let dir = scratch.join("nginx");
    fs::create_dir(&dir)?;
    let deployed = workspace().join("deploy/nginx");
    let snippet = fs::read_to_string(deployed.join("shophosting-maintenance.conf"))?;
    let snippet = snippet.replace(INSTALLED, &deployed.display().to_string());
    fs::write(dir.join("maintenance.conf"), snippet)?;
    let mut servers = String::new();
    let mut ports = Vec::new();
    for owner in owners {
        let shop = shops.address(owner.customer.id)?;
        servers += &format!(
            "server {{\n listen 127.0.0.1:{};\n set $shop_directory {};\n set $shop_port {};\n include {}/maintenance.conf;\n}}\n",
            shop.public_port,
            owner.customer.directory.display(),
            shop.port,
            dir.display(),
        );
        ports.push(shop.public_port);
    }
    Nginx::start(&dir, &servers, &ports)
}
