//! How fast the dashboard answers when it has many customers, and what it costs to keep many browsers up to date.
//!
//! Real MariaDB, the release build of the server, every request on a connection of its own. Requests come when their time has come,
//! whether those before them were answered or not: a server that falls behind is seen to.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use xtask::port;
use xtask::sandbox::werkzeug_hash;
use xtask::testbed::{PLATFORM_SCHEMA, TestBed};

use crate::measure;

const CUSTOMERS: u32 = 10_000;
const MANUAL: u32 = 5;
const DAILY: u32 = 30;
/// Customers who are logged in.
const VISITORS: u32 = 20;
pub const PASSWORD: &str = "a password";

const PER_SECOND: usize = 200;
const LASTS: Duration = Duration::from_secs(20);
/// More than are ever waiting, unless the server falls behind.
const CLIENTS: usize = 64;

const STREAMS: usize = 500;
const STREAMS_OF_ONE: usize = 50;
const WATCHED: Duration = Duration::from_secs(10);

/// Measure the product at `binary` and print what was found.
pub fn run(binary: &Path) -> Result<()> {
    println!(
        "The dashboard: {CUSTOMERS} customers, {} backups in the catalogue.",
        CUSTOMERS * (MANUAL + DAILY)
    );
    let bed = TestBed::start()?;
    measure::run(bed.product(binary).arg("migrate"))?;
    fill(&bed)?;
    let server = Server::start(&bed, binary)?;
    let cookies: Vec<String> = (1..=VISITORS)
        .map(|customer| server.log_in(customer))
        .collect::<Result<_>>()?;
    for path in ["/backups", "/api/backups/status"] {
        measure::check_interrupted()?;
        let mut times = server.load(path, &cookies)?;
        times.sort_unstable();
        let percentile = |percent: usize| times[(times.len() * percent / 100).min(times.len() - 1)];
        println!(
            "GET {path}, {PER_SECOND} a second for {} s: p50 {:.1} ms, p99 {:.1} ms",
            LASTS.as_secs(),
            percentile(50).as_secs_f64() * 1e3,
            percentile(99).as_secs_f64() * 1e3,
        );
    }
    let idle = queries_per_second(&bed, Duration::from_secs(5))?;
    let streams = server.streams(&cookies)?;
    let watching = queries_per_second(&bed, WATCHED)?;
    println!(
        "{} event streams open: {watching:.1} queries a second; without them {idle:.1}",
        streams.len()
    );
    Ok(())
}

fn fill(bed: &TestBed) -> Result<()> {
    bed.mariadb().sql(&format!(
        "USE {PLATFORM_SCHEMA};
         INSERT INTO customers (id, email, password_hash, company_name, domain, platform, status, server_id)
             SELECT seq, CONCAT('owner@shop-', seq, '.example'), '{hash}', CONCAT('Shop ', seq), CONCAT('shop-', seq, '.example'),
                 'woocommerce', 'active', 1 FROM seq_1_to_{CUSTOMERS};
         SET @now = UNIX_TIMESTAMP() * 1000;
         INSERT INTO customer_backups (customer_id, source, snapshot_id, time, backup_type, note, bytes, database_bytes, files)
             SELECT c.seq, 'manual', SHA2(CONCAT(c.seq, '-', b.seq), 256), @now - b.seq * 7200000, 'both', 'Before the update', 81000000, 4000000, 2600
             FROM seq_1_to_{CUSTOMERS} c, seq_1_to_{MANUAL} b;
         INSERT INTO customer_backups (customer_id, source, snapshot_id, time, backup_type, bytes)
             SELECT c.seq, 'daily', SHA2(b.seq, 256), @now - (b.seq - 0.5) * 86400000, 'both', 80000000
             FROM seq_1_to_{CUSTOMERS} c, seq_1_to_{DAILY} b;
         ANALYZE TABLE customers, customer_backups",
        hash = werkzeug_hash(PASSWORD)?,
    ))?;
    Ok(())
}

/// What all clients together asked of MariaDB, a second.
fn queries_per_second(bed: &TestBed, during: Duration) -> Result<f64> {
    let questions = || -> Result<f64> {
        let row = bed.mariadb().sql("SHOW GLOBAL STATUS LIKE 'Questions'")?;
        let number = row.split_whitespace().nth(1).context("no number")?;
        Ok(number.parse()?)
    };
    let before = questions()?;
    let started = Instant::now();
    thread::sleep(during);
    // Less what asking itself took: the question, and what the client sends when it comes and goes.
    let own = {
        let first = questions()?;
        let second = questions()?;
        (second - first, first)
    };
    Ok((own.1 - own.0 - before) / started.elapsed().as_secs_f64())
}

/// A server of the product, which is killed when this is dropped.
pub struct Server {
    child: Child,
    port: u16,
}

impl Server {
    fn start(bed: &TestBed, binary: &Path) -> Result<Self> {
        Self::start_as(bed.product(binary).arg("serve"))
    }

    /// The command may have more arguments than `serve`.
    pub fn start_as(command: &mut Command) -> Result<Self> {
        let port = port::free()?;
        let child = command
            .env("BACKUP__SERVER__LISTEN", format!("127.0.0.1:{port}"))
            .env("RUST_LOG", "warn")
            .stdout(Stdio::null())
            // Warnings and errors alone: there should be none.
            .stderr(Stdio::inherit())
            .spawn()?;
        let mut server = Self { child, port };
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            if let Some(status) = server.child.try_wait()? {
                bail!("the server ended ({status})");
            }
            measure::check_interrupted()?;
            thread::sleep(Duration::from_millis(20));
        }
        Ok(server)
    }

    /// The cookie of a session.
    pub fn log_in(&self, customer: u32) -> Result<String> {
        let body =
            format!("{{\"email\":\"owner@shop-{customer}.example\",\"password\":\"{PASSWORD}\"}}");
        let answer = self.exchange(&format!(
            "POST /login HTTP/1.1\r\nAccept: application/json\r\nContent-Type: application/json\r\nContent-Length: {}\r\n",
            body.len()
        ), &body)?;
        let cookie = answer.lines().find_map(|line| {
            let (name, value) = line.split_once(": ")?;
            name.eq_ignore_ascii_case("set-cookie")
                .then(|| value.split(';').next())
                .flatten()
        });
        cookie
            .map(str::to_owned)
            .with_context(|| format!("customer {customer} is not let in: {answer}"))
    }

    /// One request on a connection of its own; the whole answer.
    pub fn exchange(&self, head: &str, body: &str) -> Result<String> {
        let mut stream = self.send(head, body)?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        Ok(String::from_utf8_lossy(&answer).into_owned())
    }

    fn send(&self, head: &str, body: &str) -> Result<TcpStream> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port))?;
        let request = format!(
            "{head}Host: 127.0.0.1:{}\r\nConnection: close\r\n\r\n{body}",
            self.port
        );
        stream.write_all(request.as_bytes())?;
        Ok(stream)
    }

    /// How long each answer took, from when the request was due.
    fn load(&self, path: &str, cookies: &[String]) -> Result<Vec<Duration>> {
        let requests = PER_SECOND * usize::try_from(LASTS.as_secs())?;
        let pause = Duration::from_secs(1) / u32::try_from(PER_SECOND)?;
        let next = AtomicUsize::new(0);
        let started = Instant::now();
        let client = || -> Result<Vec<Duration>> {
            let mut times = Vec::new();
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= requests {
                    return Ok(times);
                }
                let due = started + pause * u32::try_from(number)?;
                thread::sleep(due.saturating_duration_since(Instant::now()));
                let cookie = &cookies[number % cookies.len()];
                let head =
                    format!("GET {path} HTTP/1.1\r\nAccept: text/html\r\nCookie: {cookie}\r\n");
                let answer = self.exchange(&head, "")?;
                ensure!(
                    answer.starts_with("HTTP/1.1 200"),
                    "{path}: {}",
                    answer.lines().next().unwrap_or_default()
                );
                times.push(due.elapsed());
            }
        };
        thread::scope(|scope| {
            let clients: Vec<_> = (0..CLIENTS).map(|_| scope.spawn(client)).collect();
            let mut times = Vec::with_capacity(requests);
            for client in clients {
                let part = client
                    .join()
                    .map_err(|_| anyhow::anyhow!("a client panicked"))?;
                times.extend(part?);
            }
            Ok(times)
        })
    }

    /// Streams about jobs that wait for a worker, each of which has told its first event.
    fn streams(&self, cookies: &[String]) -> Result<Vec<BufReader<TcpStream>>> {
        let mut streams = Vec::new();
        for cookie in cookies.iter().take(STREAMS / STREAMS_OF_ONE) {
            let body = "{\"backup_type\":\"db\"}";
            let head = format!(
                "POST /backups/create HTTP/1.1\r\nAccept: application/json\r\nCookie: {cookie}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n",
                body.len()
            );
            let answer = self.exchange(&head, body)?;
            ensure!(
                answer.starts_with("HTTP/1.1 200"),
                "no job was made: {answer}"
            );
            for _ in 0..STREAMS_OF_ONE {
                let head = format!("GET /api/backups/events HTTP/1.1\r\nCookie: {cookie}\r\n");
                let mut stream = BufReader::new(self.send(&head, "")?);
                let mut line = String::new();
                while !line.starts_with("data:") {
                    line.clear();
                    ensure!(stream.read_line(&mut line)? > 0, "a stream ended");
                }
                streams.push(stream);
            }
        }
        Ok(streams)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Both fail only when it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
