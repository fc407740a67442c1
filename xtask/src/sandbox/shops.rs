//! What stands for the containers of the customers: for each shop a PHP that answers on his port, stopped and started by the hooks
//! of the product.

use std::collections::HashMap;
use std::fs::{self, File};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};

use super::{PATIENCE, PAUSE};
use crate::port;
use crate::private::{Tied, tie};
use crate::testbed::Customer;

/// The program of `site.stop` and `site.start`, run in the customer's directory.
const HOOK: &str = "<?php
$control = stream_socket_client('unix://' . __DIR__ . '/control.sock');
fwrite($control, $argv[1] . ' ' . basename(getcwd()) . \"\\n\");
$answer = stream_get_contents($control);
if ($answer !== \"done\\n\") {
    fwrite(STDERR, $answer);
    exit(1);
}
";

/// Read before every page: nothing may leave the machine, and links lead back to where the visitor came in.
const PRELUDE: &str = "<?php
define('DISABLE_WP_CRON', true);
define('WP_HTTP_BLOCK_EXTERNAL', true);
define('WP_HOME', getenv('SHOP_URL'));
define('WP_SITEURL', getenv('SHOP_URL'));
";

/// The shops of all customers.
pub struct Shops {
    scratch: PathBuf,
    shops: Mutex<HashMap<u32, Shop>>,
}

/// Where a shop answers.
#[derive(Debug, Clone)]
pub struct Address {
    /// Its own port, of which the platform and nginx know.
    pub port: u16,
    /// The port of nginx.
    pub public_port: u16,
    /// The same, for a browser.
    pub url: String,
}

struct Shop {
    address: Address,
    site: PathBuf,
    running: Option<Tied>,
    /// Whether it cannot be started.
    is_broken: bool,
}

impl Shops {
    pub fn new(scratch: &Path) -> Result<Self> {
        fs::write(scratch.join("hook.php"), HOOK)?;
        fs::write(scratch.join("prelude.php"), PRELUDE)?;
        Ok(Self {
            scratch: scratch.to_owned(),
            shops: Mutex::default(),
        })
    }

    /// The hook's program; it is run by php, with `stop` or `start`.
    pub fn hook(&self) -> PathBuf {
        self.scratch.join("hook.php")
    }

    /// Open a shop, closed so far.
    pub fn add(&self, customer: &Customer) -> Result<Address> {
        let public_port = port::free()?;
        let address = Address {
            port: port::free()?,
            public_port,
            url: format!("http://127.0.0.1:{public_port}"),
        };
        let shop = Shop {
            address: address.clone(),
            site: customer.site(),
            running: None,
            is_broken: false,
        };
        self.shops().insert(customer.id, shop);
        Ok(address)
    }

    pub fn address(&self, id: u32) -> Result<Address> {
        let shops = self.shops();
        let shop = shops.get(&id).context("there is no such shop")?;
        Ok(shop.address.clone())
    }

    /// Start the program of a shop; safe to repeat.
    pub fn start(&self, id: u32) -> Result<()> {
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.scratch.join(format!("shop-{id}.log")))?;
        let mut shops = self.shops();
        let shop = shops.get_mut(&id).context("there is no such shop")?;
        if shop.running.is_some() {
            return Ok(());
        }
        ensure!(!shop.is_broken, "the shop of customer {id} is broken");
        let mut php = Command::new("setpriv");
        php.args(["--reuid=33", "--regid=33", "--clear-groups", "php"])
            // What is written into a shop is what its visitors get at once.
            .args(["-d", "opcache.enable=0", "-d"])
            .arg(format!(
                "auto_prepend_file={}",
                self.scratch.join("prelude.php").display()
            ))
            .args(["-S", &format!("127.0.0.1:{}", shop.address.port)])
            .arg("-t")
            .arg(&shop.site)
            .env("SHOP_URL", &shop.address.url);
        let mut php = tie(&php);
        php.stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        let mut running = Tied::spawn(php)?;
        let deadline = Instant::now() + PATIENCE;
        while TcpStream::connect(("127.0.0.1", shop.address.port)).is_err() {
            if running.ended()?.is_some() || Instant::now() > deadline {
                bail!("the shop of customer {id} does not open");
            }
            thread::sleep(PAUSE);
        }
        shop.running = Some(running);
        Ok(())
    }

    /// Stop it; safe to repeat.
    pub fn stop(&self, id: u32) -> Result<()> {
        let mut shops = self.shops();
        let shop = shops.get_mut(&id).context("there is no such shop")?;
        shop.running = None;
        Ok(())
    }

    /// Keep a shop from being started from now on, or no longer.
    pub fn set_broken(&self, id: u32, is_broken: bool) -> Result<()> {
        let mut shops = self.shops();
        let shop = shops.get_mut(&id).context("there is no such shop")?;
        shop.is_broken = is_broken;
        Ok(())
    }

    fn shops(&self) -> std::sync::MutexGuard<'_, HashMap<u32, Shop>> {
        self.shops.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
