//! The switches of the sandbox, for other programs: a socket that takes a line and answers `done`, or what went wrong.
//!
//! `stop customer-1` and `start customer-1` switch a shop, `stop worker` and `start worker` the worker, and `kill worker` kills it; `break customer-1` keeps
//! a shop from being started until `mend customer-1`, and `break database` the dashboard from its database until `mend database`; `line 200000` lets so
//! many bytes a second through to the backup server, and `line 0` as many as there are.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use anyhow::{Context, Result, bail};

use super::Machinery;

/// The socket, answered for as long as this lives.
pub struct Control {
    socket: PathBuf,
    ending: Arc<AtomicBool>,
    listening: Option<JoinHandle<()>>,
}

impl Control {
    pub fn start(socket: &Path, machinery: Arc<Machinery>) -> Result<Self> {
        let listener = UnixListener::bind(socket)?;
        let ending = Arc::new(AtomicBool::new(false));
        let is_ending = Arc::clone(&ending);
        let listening = thread::spawn(move || {
            thread::scope(|scope| {
                for stream in listener.incoming().map_while(Result::ok) {
                    if is_ending.load(Ordering::Acquire) {
                        break;
                    }
                    // Stopping the worker may have to wait for a shop to be stopped.
                    let machinery = &machinery;
                    scope.spawn(move || answer(stream, machinery));
                }
            });
        });
        Ok(Self {
            socket: socket.to_owned(),
            ending,
            listening: Some(listening),
        })
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        self.ending.store(true, Ordering::Release);
        // It is woken by a visitor; without one it has ended already.
        let _ = UnixStream::connect(&self.socket);
        let _ = self.listening.take().map(JoinHandle::join);
    }
}

fn answer(mut stream: UnixStream, machinery: &Machinery) {
    let answer = match obey(&stream, machinery) {
        Ok(()) => "done\n".to_owned(),
        Err(error) => format!("{error:#}\n"),
    };
    // Who asked may be gone.
    let _ = stream.write_all(answer.as_bytes());
}

fn obey(stream: &UnixStream, machinery: &Machinery) -> Result<()> {
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line)?;
    let words: Vec<&str> = line.split_whitespace().collect();
    let [verb, object] = words[..] else {
        bail!("not two words: {line}")
    };
    match (verb, object) {
        ("stop", "worker") => machinery.worker().stop(),
        ("start", "worker") => machinery.worker().start(),
        ("kill", "worker") => machinery.worker().kill(),
        ("break", "database") => {
            machinery.database.refuse(true);
            machinery.database.cut();
            Ok(())
        }
        ("mend", "database") => {
            machinery.database.refuse(false);
            Ok(())
        }
        ("stop", shop) => machinery.shops.stop(number(shop)?),
        ("start", shop) => machinery.shops.start(number(shop)?),
        ("break", shop) => machinery.shops.set_broken(number(shop)?, true),
        ("mend", shop) => machinery.shops.set_broken(number(shop)?, false),
        ("line", speed) => {
            let speed = speed.parse()?;
            machinery
                .line
                .set_bytes_per_second((speed > 0).then_some(speed));
            Ok(())
        }
        _ => bail!("there is no switch for: {line}"),
    }
}

fn number(shop: &str) -> Result<u32> {
    let number = shop.strip_prefix("customer-").context("not a customer")?;
    Ok(number.parse()?)
}
