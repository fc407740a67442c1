//! The whole product as it is deployed, on one machine: server and worker, hosting server and backup server, shops that sell behind nginx.
//!
//! What the demo shows and what a browser is driven against. Everything is real but the money. It is on free ports, in scratch
//! directories, and gone when it is dropped or when this process is, however it ends.

mod control;
mod nginx;
mod shops;

use std::fs::{self, File};
use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use jiff::{ToSpan, Zoned};
use rustix::process::Signal;
use scrypt::Params;
use serde_json::{Value, json};

use crate::nginx::Nginx;
use crate::port;
use crate::private::{Tied, tie};
use crate::proxy::Proxy;
use crate::redis::Redis;
use crate::testbed::{Customer, PLATFORM_SCHEMA, PLATFORM_USER, TestBed};
use control::Control;
use shops::Shops;

/// The longest that server or worker may take to start, or to end in order.
const PATIENCE: Duration = Duration::from_secs(60);

/// Who looks at `/admin`: the name and the password.
const OPERATOR: (&str, &str) = ("ops", "looks after all shops");

/// How often a condition is looked at again.
const PAUSE: Duration = Duration::from_millis(20);

/// What kind of sandbox.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where the dashboard listens; None for a free port.
    pub port: Option<u16>,
    /// The numbers of the customers.
    pub customers: Vec<u32>,
    /// Posts of each shop.
    pub posts: u32,
    /// Painted images of each shop.
    pub images: u32,
    /// Daily backups, one a day, the newest of last night.
    pub daily: i64,
}

/// A running sandbox.
pub struct Sandbox {
    // In the order in which they end: who asks before who answers.
    server: Mutex<Option<Tied>>,
    control: Option<Control>,
    _nginx: Nginx,
    machinery: Arc<Machinery>,
    redis: Redis,
    owners: Vec<Owner>,
    port: u16,
    binary: PathBuf,
    bed: TestBed,
}

/// Somebody who has a shop.
#[derive(Debug, Clone)]
pub struct Owner {
    /// His shop, inside.
    pub customer: Customer,
    /// What he is called in the dashboard.
    pub name: String,
    /// What he logs in with.
    pub email: String,
    /// What he logs in with.
    pub password: String,
    /// His shop, through nginx.
    pub shop: String,
}

/// What hooks of the product and tests from outside turn on and off.
struct Machinery {
    shops: Shops,
    /// To the backup server.
    line: Proxy,
    /// Between the dashboard and its database.
    database: Proxy,
    worker: Mutex<Worker>,
}

/// The program that runs jobs, and how it is started.
struct Worker {
    command: Command,
    log: PathBuf,
    running: Option<Tied>,
}

impl Sandbox {
    /// Start all of it, with the product at `binary`. `tell` hears of every step, and may end it with an error.
    pub fn start(
        binary: &Path,
        options: &Options,
        mut tell: impl FnMut(&str) -> Result<()>,
    ) -> Result<Self> {
        tell("a database server, a backup server, Redis")?;
        let bed = TestBed::start()?;
        let redis = Redis::start()?;
        let line = Proxy::start(bed.sshd().port())?;
        let database = Proxy::start(bed.mariadb().port())?;
        let mut owners = Vec::new();
        let shops = Shops::new(bed.scratch())?;
        for &id in &options.customers {
            tell(&format!("the shop of customer {id}"))?;
            let customer = bed.add_wordpress_customer(id, options.posts, options.images)?;
            owners.push(move_in(&bed, &shops, customer)?);
        }
        let nginx = nginx::start(bed.scratch(), &owners, &shops)?;
        let port = match options.port {
            Some(port) => port,
            None => port::free()?,
        };
        let mut sandbox = Self {
            server: Mutex::new(None),
            control: None,
            _nginx: nginx,
            machinery: Arc::new(Machinery {
                shops,
                line,
                database,
                worker: Mutex::new(Worker {
                    command: Command::new(binary),
                    log: bed.scratch().join("worker.log"),
                    running: None,
                }),
            }),
            redis,
            owners,
            port,
            binary: binary.to_owned(),
            bed,
        };
        sandbox.write_known_hosts()?;
        sandbox.control = Some(Control::start(
            &sandbox.control_socket(),
            Arc::clone(&sandbox.machinery),
        )?);
        for owner in &sandbox.owners {
            sandbox.machinery.shops.start(owner.customer.id)?;
        }
        tell("repositories and daily backups")?;
        sandbox.run("migrate")?;
        sandbox.bed.init(&sandbox.binary)?;
        sandbox.back_up_daily(options.daily, &mut tell)?;
        sandbox.run("sync")?;
        tell("the worker and the dashboard")?;
        let mut command = sandbox.command();
        command.arg("worker");
        sandbox.machinery.worker().command = command;
        sandbox.machinery.worker().start()?;
        sandbox.write_admins()?;
        sandbox.start_server()?;
        Ok(sandbox)
    }

    /// Where the dashboard is.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Who has a shop here.
    pub fn owners(&self) -> &[Owner] {
        &self.owners
    }

    /// The world around the product.
    pub fn bed(&self) -> &TestBed {
        &self.bed
    }

    /// The product, ready for a command and its arguments, as the server and the worker here run it.
    pub fn command(&self) -> Command {
        let scratch = self.bed.scratch();
        let mut command = self.bed.product(&self.binary);
        let hook = |what: &str| {
            let client = self.machinery.shops.hook();
            format!("[\"php\", {client:?}, {what:?}]")
        };
        let known_hosts = scratch.join("known_hosts");
        command
            .current_dir(workspace())
            .env_remove("LEPTOS_SITE_ROOT")
            .env("BACKUP__SERVER__LISTEN", format!("127.0.0.1:{}", self.port))
            .env("BACKUP__SERVER__PUBLIC_URL", self.url())
            .env("BACKUP__QUEUE__REDIS_URL", self.redis.url())
            .env("BACKUP__SITE__STOP", hook("stop"))
            .env("BACKUP__SITE__START", hook("start"))
            .env("BACKUP__SITE__HEALTH_URL", "http://127.0.0.1:{web_port}/")
            .env("BACKUP__SITE__HEALTH_TIMEOUT", "15s");
        for (name, directory) in [
            ("MANUAL", self.bed.manual_repository()),
            ("DAILY", self.bed.daily_repository()),
        ] {
            let sshd = self.bed.sshd();
            let location = sshd.location_at(self.machinery.line.port(), &directory);
            command
                .env(format!("BACKUP__REPOSITORIES__{name}__LOCATION"), location)
                .env(
                    format!("BACKUP__REPOSITORIES__{name}__KNOWN_HOSTS"),
                    &known_hosts,
                );
        }
        command
    }

    /// Run one command of the product to its end; what it printed.
    pub fn run(&self, line: &str) -> Result<String> {
        let output = self.command().args(line.split_whitespace()).output()?;
        ensure!(
            output.status.success(),
            "`{line}` failed: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(String::from_utf8(output.stdout)?)
    }

    /// Let a customer make a backup: `db`, `files` or `both`.
    pub fn back_up(&self, customer: u32, backup_type: &str, note: &str) -> Result<()> {
        let customer = customer.to_string();
        let output = self
            .command()
            .args(["backup", &customer, "--type", backup_type, "--note", note])
            .output()?;
        ensure!(
            output.status.success(),
            "the backup failed: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(())
    }

    /// An error if the server or the worker has ended by itself.
    pub fn check_alive(&self) -> Result<()> {
        let mut server = self.server.lock().unwrap_or_else(PoisonError::into_inner);
        for (name, program) in [
            ("server", server.as_mut()),
            ("worker", self.machinery.worker().running.as_mut()),
        ] {
            if let Some(program) = program
                && let Some(status) = program.ended()?
            {
                bail!(
                    "the {name} ended ({status}): {}",
                    self.log(&format!("{name}.log"))
                );
            }
        }
        Ok(())
    }

    /// The worker's process, if it runs.
    pub fn worker_process(&self) -> Option<u32> {
        let worker = self.machinery.worker();
        worker.running.as_ref().map(Tied::id)
    }

    /// Start the worker again if it was killed, as its unit does; whether it was.
    pub fn revive_worker(&self) -> Result<bool> {
        let mut worker = self.machinery.worker();
        let Some(running) = worker.running.as_mut() else {
            return Ok(false);
        };
        let was_killed = running
            .ended()?
            .is_some_and(|status| status.signal() == Some(Signal::KILL.as_raw()));
        if was_killed {
            worker.running = None;
            worker.start()?;
        }
        Ok(was_killed)
    }

    /// All that a program from outside has to know to use and to disturb it. Secrets are in it.
    pub fn facts(&self) -> Value {
        let owners: Vec<Value> = self
            .owners
            .iter()
            .map(|owner| {
                let customer = &owner.customer;
                json!({
                    "id": customer.id,
                    "name": owner.name,
                    "email": owner.email,
                    "password": owner.password,
                    "shop": owner.shop,
                    "site": customer.site(),
                    "database": customer.database,
                })
            })
            .collect();
        json!({
            "url": self.url(),
            "owners": owners,
            "operator": { "name": OPERATOR.0, "password": OPERATOR.1 },
            "control": self.control_socket(),
            "platform": PLATFORM_SCHEMA,
            "database_socket": self.bed.mariadb().socket(),
            "database_password": self.bed.mariadb().root_password(),
        })
    }

    /// What the server or the worker has logged: `server.log`, `worker.log`.
    pub fn log(&self, name: &str) -> String {
        fs::read_to_string(self.bed.scratch().join(name)).unwrap_or_default()
    }

    fn start_server(&self) -> Result<()> {
        // What listens there already would be taken for the dashboard.
        TcpListener::bind(("127.0.0.1", self.port))
            .with_context(|| format!("port {} is taken", self.port))?;
        let log = self.bed.scratch().join("server.log");
        let mut command = self.command();
        command
            .arg("serve")
            .env("BACKUP__SERVER__ADMINS_FILE", self.admins_file());
        command.env(
            "BACKUP__DATABASE__URL",
            format!(
                "mysql://{PLATFORM_USER}@127.0.0.1:{}/{PLATFORM_SCHEMA}",
                self.machinery.database.port()
            ),
        );
        let mut server = spawn(&command, &log)?;
        let deadline = Instant::now() + PATIENCE;
        while TcpStream::connect(("127.0.0.1", self.port)).is_err() {
            if server.ended()?.is_some() || Instant::now() > deadline {
                bail!("the dashboard did not start: {}", self.log("server.log"));
            }
            thread::sleep(PAUSE);
        }
        ensure!(
            server.ended()?.is_none(),
            "the dashboard did not start: {}",
            self.log("server.log")
        );
        *self.server.lock().unwrap_or_else(PoisonError::into_inner) = Some(server);
        Ok(())
    }

    fn back_up_daily(&self, days: i64, tell: &mut impl FnMut(&str) -> Result<()>) -> Result<()> {
        // The night that is over, however early it is.
        let last = Zoned::now().checked_sub(15.minutes())?;
        for ago in (0..days).rev() {
            tell("")?;
            let night = last.checked_sub(ago.days())?;
            self.bed
                .back_up_daily_at(&night.strftime("%Y-%m-%d 00:15:00").to_string())?;
        }
        Ok(())
    }

    fn admins_file(&self) -> PathBuf {
        self.bed.scratch().join("admins")
    }

    /// As an operator makes it.
    fn write_admins(&self) -> Result<()> {
        let (name, password) = OPERATOR;
        let mut command = self.command();
        command
            .args(["operator-line", name])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut program = command.spawn()?;
        let mut input = program.stdin.take().context("no standard input")?;
        input.write_all(format!("{password}\n").as_bytes())?;
        drop(input);
        let output = program.wait_with_output()?;
        ensure!(output.status.success(), "there is no line for an operator");
        let mut options = File::options();
        let mut file = options
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(self.admins_file())?;
        Ok(file.write_all(&output.stdout)?)
    }

    fn control_socket(&self) -> PathBuf {
        self.bed.scratch().join("control.sock")
    }

    fn write_known_hosts(&self) -> Result<()> {
        let key = self.bed.sshd().host_key()?;
        let line = format!("[127.0.0.1]:{} {key}", self.machinery.line.port());
        Ok(fs::write(self.bed.scratch().join("known_hosts"), line)?)
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        let mut server = self.server.lock().unwrap_or_else(PoisonError::into_inner);
        // What does not end in order is killed when it is dropped.
        let _ = server.as_mut().map(end);
        let _ = self.machinery.worker().stop();
    }
}

impl Machinery {
    fn worker(&self) -> MutexGuard<'_, Worker> {
        self.worker.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Worker {
    fn start(&mut self) -> Result<()> {
        ensure!(self.running.is_none(), "the worker runs");
        self.running = Some(spawn(&self.command, &self.log)?);
        Ok(())
    }

    /// It has no moment left for anything.
    fn kill(&mut self) -> Result<()> {
        let worker = self.running.take().context("the worker does not run")?;
        drop(worker);
        Ok(())
    }

    /// It finishes the job that it runs.
    fn stop(&mut self) -> Result<()> {
        let mut worker = self.running.take().context("the worker does not run")?;
        end(&mut worker)
    }
}

/// Start a program that goes on for long and dies with us.
fn spawn(command: &Command, log: &Path) -> Result<Tied> {
    let log = File::options().create(true).append(true).open(log)?;
    let mut command = tie(command);
    command
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log);
    Tied::spawn(command)
}

/// Ask a program to end, and wait until it has.
fn end(program: &mut Tied) -> Result<()> {
    program.signal(Signal::TERM)?;
    let deadline = Instant::now() + PATIENCE;
    while program.ended()?.is_none() {
        ensure!(Instant::now() < deadline, "it does not end");
        thread::sleep(PAUSE);
    }
    Ok(())
}

/// Give a customer a password, ports, and a program that answers on them.
fn move_in(bed: &TestBed, shops: &Shops, customer: Customer) -> Result<Owner> {
    let id = customer.id;
    let password = format!("shop {id} opens at nine");
    let shop = shops.add(&customer)?;
    bed.mariadb().sql(&format!(
        "UPDATE {PLATFORM_SCHEMA}.customers SET password_hash = '{}', web_port = {} WHERE id = {id}",
        werkzeug_hash(&password)?,
        shop.port,
    ))?;
    Ok(Owner {
        name: format!("Shop {id}"),
        email: format!("owner@shop-{id}.example"),
        password,
        shop: shop.url,
        customer,
    })
}

/// A password as the platform keeps it.
pub fn werkzeug_hash(password: &str) -> Result<String> {
    let salt = format!("{:016x}", rand::random::<u64>());
    let mut digest = [0; 64];
    scrypt::scrypt(
        password.as_bytes(),
        salt.as_bytes(),
        &Params::new(15, 8, 1)?,
        &mut digest,
    )?;
    let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(format!("scrypt:32768:8:1${salt}${hex}"))
}

/// Where `Leptos.toml` and the bundle are, and what is deployed beside the programs.
fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}
