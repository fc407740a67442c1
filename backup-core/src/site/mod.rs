//! One customer's site: his directory, the maintenance file, what stops and starts it, and the exchange of its files.
//!
//! Everything below `customer-N` may be changed by the customer at any moment. So every step goes from an open
//! directory to the next by one name, and no link is ever followed. Never: a write, an exchange or a removal outside of the
//! customer's directory and our own staging directory; a half-replaced site directory.

mod claim;
mod dirs;
mod health;
mod maintenance;
mod remove;
mod scratch;
mod staging;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;
use url::Url;

use crate::config::Config;
use crate::customer::{Customer, CustomerId};
use crate::error::{Error, ErrorKind, Result};
use crate::process::Program;
use crate::progress::Cancel;

pub use claim::{Claim, LastExclusive};
pub use health::Health;
pub use maintenance::Maintenance;
pub use scratch::{Scratch, ScratchRoom};
pub use staging::{Ground, Leftover, Staged, Staging, leftovers, remove_leftover, try_exchange};

/// A customer's site, its directory held open.
#[derive(Debug)]
pub struct Site {
    customer: CustomerId,
    path: PathBuf,
    root: OwnedFd,
    dir: OwnedFd,
    maintenance_file: PathBuf,
    stop: Vec<String>,
    start: Vec<String>,
    command_timeout: Duration,
    health_url: Option<Url>,
    health_timeout: Duration,
}

impl Site {
    /// Open a customer's directory. [`ErrorKind::NotFound`] where he has none; [`ErrorKind::Refused`] where
    /// something else, such as a link, has its name.
    pub fn open(config: &Config, customer: &Customer) -> Result<Self> {
        let root = open_root(config)?;
        let path = config.customers.dir(customer.id);
        let dir = dirs::open_dir(&root, customer.id.tag()).map_err(|e| match e {
            Errno::NOENT => Error::new(
                ErrorKind::NotFound,
                format!(
                    "customer {} has no directory {}",
                    customer.id,
                    path.display()
                ),
            ),
            Errno::NOTDIR | Errno::LOOP => Error::new(
                ErrorKind::Refused,
                format!(
                    "{} is not a directory; a link is not followed",
                    path.display()
                ),
            ),
            other => Error::io(format!("cannot open {}", path.display()), other.into()),
        })?;
        Ok(Self {
            customer: customer.id,
            path,
            root,
            dir,
            maintenance_file: config.site.maintenance_file.clone(),
            stop: config.site.stop.clone(),
            start: config.site.start.clone(),
            command_timeout: config.site.command_timeout,
            health_url: config.site.health_url(customer)?,
            health_timeout: config.site.health_timeout,
        })
    }

    /// The customer's directory as it is called in snapshots: `{customers.root}/customer-N`.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Keep others from working on this customer meanwhile: a backup claims him together with other backups, a restore
    /// exclusively; both until they have ended. [`ErrorKind::Busy`] at once, with who is in the way, where somebody is.
    pub fn claim(&self, exclusive: bool) -> Result<Claim> {
        Claim::take(self, exclusive)
    }

    /// Which of these site directories are there now as directories; a link is none, nor is what it leads to.
    pub fn present_dirs(&self, site_dirs: &[PathBuf]) -> Result<Vec<PathBuf>> {
        let mut present = Vec::new();
        for site_dir in site_dirs {
            let is_there = self.has_dir(site_dir).map_err(|e| {
                let path = self.path.join(site_dir);
                Error::io(format!("cannot look at {}", path.display()), e.into())
            })?;
            if is_there {
                present.push(site_dir.clone());
            }
        }
        Ok(present)
    }

    /// The user and the group that own the directory of this path below the customer's, or his own for the empty path; `None` where it is none.
    pub fn owner(&self, site_dir: &Path) -> Result<Option<(u32, u32)>> {
        let owner = || {
            let mut dir = dirs::open_parent(&self.dir, site_dir, false)?;
            if let Some(name) = site_dir.file_name() {
                dir = dirs::open_dir(&dir, name)?;
            }
            rustix::fs::fstat(&dir)
        };
        match owner() {
            Ok(stat) => Ok(Some((stat.st_uid, stat.st_gid))),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
            Err(e) => {
                let path = self.path.join(site_dir);
                Err(Error::io(
                    format!("cannot look at {}", path.display()),
                    e.into(),
                ))
            }
        }
    }

    fn has_dir(&self, site_dir: &Path) -> Result<bool, Errno> {
        let parent = match dirs::open_parent(&self.dir, site_dir, false) {
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(false),
            other => other?,
        };
        let found = dirs::stat(&parent, dirs::last_name(site_dir)?)?;
        Ok(found.is_some_and(|stat| dirs::file_type(&stat) == FileType::Directory))
    }

    /// A site directory, opened; none where there is none, or something else, such as a link.
    pub fn open_site_dir(&self, site_dir: &Path) -> Result<Option<OwnedFd>> {
        let opened = dirs::open_parent(&self.dir, site_dir, false)
            .and_then(|parent| dirs::open_dir(&parent, dirs::last_name(site_dir)?));
        match opened {
            Ok(dir) => Ok(Some(dir)),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
            Err(e) => {
                let path = self.path.join(site_dir);
                Err(Error::io(
                    format!("cannot open {}", path.display()),
                    e.into(),
                ))
            }
        }
    }

    /// The bytes that are free where staged files go.
    pub fn bytes_available(&self) -> Result<u64> {
        dirs::bytes_available(&self.dir).map_err(|e| {
            Error::io(
                format!("cannot tell the free space of {}", self.path.display()),
                e.into(),
            )
        })
    }

    /// Make the web server answer "maintenance", until [`Self::maintenance_off`]. `why` goes into the file, for an
    /// operator who finds it. False where it was on already by somebody else's hand: then it is not ours to turn off,
    /// and [`Self::maintenance_off`] will not. Safe to repeat.
    pub fn maintenance_on(&self, why: &str) -> Result<bool> {
        maintenance::on(self.dir.as_fd(), &self.maintenance_file, why).map_err(|e| {
            e.context(format!(
                "cannot turn maintenance on for customer {}",
                self.customer
            ))
        })
    }

    /// Take back what [`Self::maintenance_on`] did. Safe to repeat.
    pub fn maintenance_off(&self) -> Result<()> {
        maintenance::off(self.dir.as_fd(), &self.maintenance_file).map_err(|e| {
            e.context(format!(
                "cannot turn maintenance off for customer {}",
                self.customer
            ))
        })
    }

    /// Whether maintenance is on.
    pub fn maintenance(&self) -> Result<Maintenance> {
        maintenance::look(self.dir.as_fd(), &self.maintenance_file).map_err(|e| {
            e.context(format!(
                "cannot tell whether maintenance is on for customer {}",
                self.customer
            ))
        })
    }

    /// Stop the site's containers, within `site.command_timeout`. Nothing where no command is configured.
    pub fn stop(&self, cancel: &Cancel) -> Result<()> {
        self.run(&self.stop, cancel).map_err(|e| {
            e.context(format!(
                "the site of customer {} could not be stopped",
                self.customer
            ))
        })
    }

    /// Start them, within the same limit. Cannot be cancelled: what was stopped must come up again. Safe to repeat.
    pub fn start(&self) -> Result<()> {
        self.run(&self.start, &Cancel::new()).map_err(|e| {
            e.context(format!(
                "the site of customer {} could not be started",
                self.customer
            ))
        })
    }

    fn run(&self, command: &[String], cancel: &Cancel) -> Result<()> {
        if command.is_empty() {
            return Ok(());
        }
        Program::new(command)?
            .dir(&self.path)
            .run(self.command_timeout, cancel)
    }

    /// Ask the site once, without waiting for it to get better. For [`Self::wait_until_up`] ask after
    /// [`Self::maintenance_on`] and before [`Self::stop`]: so it shows whether the address leads through the
    /// maintenance page.
    pub fn health(&self) -> Health {
        match &self.health_url {
            None => Health::Unknown,
            Some(url) => health::ask(url, health::ONE_ANSWER),
        }
    }

    /// Wait until the site answers, for `site.health_timeout` at most. Any answer but a server error (5xx) will do.
    ///
    /// Where `before` was a server error too, one is no worse: the maintenance page (503 before and now) will do at once,
    /// since no waiting would get past it; any other once the time is over, for the other half of the site may still be
    /// broken, which is no reason to take this one back.
    ///
    /// [`ErrorKind::Timeout`] when it does not come up.
    pub fn wait_until_up(&self, before: Health, cancel: &Cancel) -> Result<Health> {
        match &self.health_url {
            None => Ok(Health::Unknown),
            Some(url) => health::wait(url, before, self.health_timeout, cancel),
        }
    }

    /// A name for [`Self::stage`] that no other staging directory has.
    pub fn new_staging_name(&self) -> String {
        staging::new_name(self.customer)
    }

    /// A fresh staging directory of this name for this site. [`ErrorKind::Busy`] while another restore of the same customer has one.
    pub fn stage(&self, name: &str) -> Result<Staging> {
        Staging::create(self, name)
    }

    /// A staging directory that an earlier process left, by its name. [`ErrorKind::Busy`] while that process lives.
    pub fn reopen_staging(&self, name: &str) -> Result<Staging> {
        Staging::reopen(self, name)
    }

    fn dir(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }

    fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    fn root_path(&self) -> &Path {
        self.path.parent().unwrap_or(&self.path)
    }
}

fn open_root(config: &Config) -> Result<OwnedFd> {
    const FLAGS: OFlags = OFlags::RDONLY
        .union(OFlags::DIRECTORY)
        .union(OFlags::CLOEXEC);
    let path = &config.customers.root;
    rustix::fs::open(path, FLAGS, Mode::empty()).map_err(|e| {
        let message = format!("cannot open customers.root, {}", path.display());
        Error::caused(ErrorKind::Configuration, message, e)
    })
}
