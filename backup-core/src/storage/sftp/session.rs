//! One connection to an SFTP server, from the socket to the SFTP session.
//!
//! Never: a byte of ours sent to a server whose host key we do not know; a wait without an end.

use std::borrow::Cow;
use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use russh::client::{self, Handle};
use russh::keys::PublicKeyOrCertificate;
use russh::{ChannelMsg, Preferred, cipher};
use russh_sftp::client::RawSftpSession;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, watch};
use tokio::time::{Instant, sleep_until, timeout};

use super::fault::Fault;
use super::handles::HandleCache;
use super::keys;
use super::known_hosts::KnownHost;
use crate::error::{Error, ErrorKind};
use crate::storage::location::SftpPlace;

/// How long one SFTP request may take on a connection that is alive otherwise (a server that waits for its disk).
const REQUEST_LIMIT: Duration = Duration::from_secs(300);

/// How much the server may send before it must wait for us.
const WINDOW_BYTES: u32 = 8 << 20;

/// Files and directories open at the server at once. The handles of OpenSSH count up from zero, and the protocol library
/// keeps them as text, which holds up to 127.
const OPEN_HANDLES_MAX: usize = 96;

/// What is needed to connect.
#[derive(Debug)]
pub(super) struct Target {
    pub(super) place: SftpPlace,
    /// The place's, or else the user who runs this program.
    pub(super) user: String,
    pub(super) ssh_key: Option<PathBuf>,
    pub(super) known_hosts: Option<PathBuf>,
    /// A connection on which nothing arrives for so long, though we wait for something, is taken for lost. A new one
    /// must be ready within this time.
    pub(super) stall_limit: Duration,
}

impl Target {
    /// The server, as messages call it.
    pub(super) fn server(&self) -> String {
        format!("{} port {}", self.place.host, self.place.port)
    }
}

/// A connection that is ready for requests.
pub(super) struct Session {
    pub(super) sftp: Arc<RawSftpSession>,
    pub(super) extensions: Extensions,
    pub(super) handles: Arc<Semaphore>,
    pub(super) cache: HandleCache,
    ssh: Handle<HostKeyCheck>,
    activity: Arc<Activity>,
    /// Closed together with the socket.
    socket: watch::Receiver<()>,
    stall_limit: Duration,
    given_up: AtomicBool,
}

/// The extensions of OpenSSH that we use where the server has them.
#[derive(Debug, Clone, Copy)]
pub(super) struct Extensions {
    pub(super) fsync: bool,
    pub(super) posix_rename: bool,
    pub(super) statvfs: bool,
}

impl Session {
    /// Connect, check the host key, log in, start SFTP.
    pub(super) async fn connect(target: &Target) -> Result<Self, Fault> {
        // Read anew each time, so that a mended file counts without a restart.
        let known_host = KnownHost::look_up(
            target.known_hosts.as_deref(),
            &target.place.host,
            target.place.port,
        )
        .map_err(Fault::Permanent)?;
        match timeout(
            target.stall_limit,
            Self::connect_unlimited(target, known_host),
        )
        .await
        {
            Ok(outcome) => outcome,
            Err(_) => Err(Fault::Passing(Error::new(
                ErrorKind::Unreachable,
                format!(
                    "{} did not answer within {} seconds",
                    target.server(),
                    target.stall_limit.as_secs()
                ),
            ))),
        }
    }

    async fn connect_unlimited(target: &Target, known_host: KnownHost) -> Result<Self, Fault> {
        let server = target.server();
        let activity = Arc::new(Activity::new());
        let (open, socket) = watch::channel(());
        let stream = WatchedStream {
            stream: connect_tcp(target).await?,
            activity: activity.clone(),
            _open: open,
        };

        let config = Arc::new(ssh_config(&known_host, target.stall_limit));
        let refusal = Arc::new(Mutex::new(None));
        let check = HostKeyCheck {
            known_host,
            refusal: refusal.clone(),
        };
        let mut ssh = client::connect_stream(config, stream, check)
            .await
            .map_err(|error| {
                let refused = refusal
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .take();
                match refused {
                    Some(refused) => Fault::Permanent(refused),
                    None => Fault::ssh(
                        format!("cannot set up an SSH connection to {server}"),
                        error,
                    ),
                }
            })?;

        keys::authenticate(&mut ssh, &server, &target.user, target.ssh_key.as_deref()).await?;

        let sftp = start_sftp(&ssh, &server).await?;
        let version = sftp.init().await.map_err(|error| {
            Fault::sftp(
                format!("{server} does not speak SFTP: is `internal-sftp` set up for this user?"),
                error,
            )
        })?;
        let offers = |name: &str| version.extensions.contains_key(name);
        Ok(Self {
            extensions: Extensions {
                fsync: offers("fsync@openssh.com"),
                posix_rename: offers("posix-rename@openssh.com"),
                statvfs: offers("statvfs@openssh.com"),
            },
            sftp: Arc::new(sftp),
            handles: Arc::new(Semaphore::new(OPEN_HANDLES_MAX)),
            cache: HandleCache::default(),
            ssh,
            activity,
            socket,
            stall_limit: target.stall_limit,
            given_up: AtomicBool::new(false),
        })
    }

    /// Whether new requests make sense.
    pub(super) fn is_usable(&self) -> bool {
        !self.given_up.load(Ordering::Acquire) && !self.ssh.is_closed()
    }

    /// No new requests: something was wrong with it.
    pub(super) fn give_up(&self) {
        self.given_up.store(true, Ordering::Release);
    }

    /// Run requests, but not longer than the connection lasts and the server shows signs of life.
    pub(super) async fn watch<T>(
        &self,
        requests: impl Future<Output = Result<T, Fault>>,
    ) -> Result<T, Fault> {
        let mut socket = self.socket.clone();
        tokio::select! {
            biased;
            outcome = requests => outcome,
            // The protocol library lets requests wait that it could not send any more.
            _ = socket.changed() => Err(Fault::Passing(Error::new(
                ErrorKind::Unreachable,
                "the connection was lost",
            ))),
            () = self.stall() => Err(Fault::Passing(Error::new(
                ErrorKind::Unreachable,
                format!("nothing came from the server for {} seconds", self.stall_limit.as_secs()),
            ))),
        }
    }

    /// Ends when nothing has arrived for the limit. A healthy server answers keepalives in between.
    async fn stall(&self) {
        let begun = Instant::now();
        loop {
            let silent_since = self.activity.last().max(begun);
            let limit = silent_since + self.stall_limit;
            if Instant::now() >= limit {
                return;
            }
            sleep_until(limit).await;
        }
    }
}

async fn connect_tcp(target: &Target) -> Result<TcpStream, Fault> {
    let host = target.place.host.as_str();
    let addresses = tokio::net::lookup_host((host, target.place.port))
        .await
        .map_err(|error| {
            // The resolver's code does not reach us, its text does.
            let passing = !error.to_string().contains("not known");
            let message = format!("cannot find the address of the host `{host}`");
            match passing {
                true => Fault::network(message, error),
                false => Fault::Permanent(Error::caused(
                    ErrorKind::Configuration,
                    format!("{message}: check the name in the repository's location"),
                    error,
                )),
            }
        })?;
    let mut failure = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for address in addresses {
        // One address that swallows everything must leave time for the next.
        match timeout(target.stall_limit / 3, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => {
                // Requests are small and somebody waits for each.
                stream
                    .set_nodelay(true)
                    .map_err(|error| Fault::network(format!("lost {}", target.server()), error))?;
                return Ok(stream);
            }
            Ok(Err(error)) => failure = error,
            Err(_) => failure = io::ErrorKind::TimedOut.into(),
        }
    }
    Err(Fault::network(
        format!("cannot connect to {}", target.server()),
        failure,
    ))
}

fn ssh_config(known_host: &KnownHost, stall_limit: Duration) -> client::Config {
    client::Config {
        window_size: WINDOW_BYTES,
        // Makes a live server say something, which is what [`Session::watch`] waits for, and ends a connection that
        // died while nobody used it.
        keepalive_interval: Some(stall_limit / 3),
        keepalive_max: 3,
        preferred: Preferred {
            key: Cow::Owned(known_host.algorithms()),
            // The fastest first, by far where the processor has AES instructions.
            cipher: Cow::Borrowed(&[
                cipher::AES_128_GCM,
                cipher::AES_256_GCM,
                cipher::CHACHA20_POLY1305,
                cipher::AES_256_CTR,
                cipher::AES_128_CTR,
            ]),
            // What is stored is compressed and encrypted already.
            compression: Cow::Borrowed(&[russh::compression::NONE]),
            ..Preferred::DEFAULT
        },
        ..client::Config::default()
    }
}

async fn start_sftp(ssh: &Handle<HostKeyCheck>, server: &str) -> Result<RawSftpSession, Fault> {
    let failed = |error| Fault::ssh(format!("cannot start SFTP on {server}"), error);
    let mut channel = ssh.channel_open_session().await.map_err(failed)?;
    channel
        .request_subsystem(true, "sftp")
        .await
        .map_err(failed)?;
    loop {
        match channel.wait().await {
            Some(ChannelMsg::Success) => break,
            Some(ChannelMsg::Failure) => {
                return Err(Fault::Permanent(Error::new(
                    ErrorKind::Refused,
                    format!(
                        "{server} does not offer SFTP to this user: its sshd needs `Subsystem sftp internal-sftp`"
                    ),
                )));
            }
            Some(_) => {}
            None => return Err(failed(russh::Error::Disconnect)),
        }
    }
    let config = russh_sftp::client::Config {
        request_timeout_secs: REQUEST_LIMIT.as_secs(),
        ..Default::default()
    };
    Ok(RawSftpSession::new_with_config(
        channel.into_stream(),
        config,
    ))
}

/// Decides about the server's key, and keeps the reason if it is refused.
struct HostKeyCheck {
    known_host: KnownHost,
    refusal: Arc<Mutex<Option<Error>>>,
}

impl client::Handler for HostKeyCheck {
    type Error = russh::Error;

    async fn check_server_key(
        &mut self,
        shown: &PublicKeyOrCertificate,
    ) -> Result<bool, russh::Error> {
        match self.known_host.check(&shown.public_key()) {
            Ok(()) if shown.certificate().is_none() => Ok(true),
            Ok(()) => Ok(false),
            Err(refused) => {
                *self.refusal.lock().unwrap_or_else(PoisonError::into_inner) = Some(refused);
                Ok(false)
            }
        }
    }
}

/// When something last came in.
struct Activity {
    begun: Instant,
    milliseconds: AtomicU64,
}

impl Activity {
    fn new() -> Self {
        Self {
            begun: Instant::now(),
            milliseconds: AtomicU64::new(0),
        }
    }

    fn record(&self) {
        let milliseconds = u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.milliseconds.store(milliseconds, Ordering::Relaxed);
    }

    fn last(&self) -> Instant {
        self.begun + Duration::from_millis(self.milliseconds.load(Ordering::Relaxed))
    }
}

/// A socket that notes when something came in.
struct WatchedStream {
    stream: TcpStream,
    activity: Arc<Activity>,
    /// Dropped with the socket: that is the message.
    _open: watch::Sender<()>,
}

impl AsyncRead for WatchedStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let outcome = Pin::new(&mut self.stream).poll_read(context, buffer);
        if buffer.filled().len() > before {
            self.activity.record();
        }
        outcome
    }
}

impl AsyncWrite for WatchedStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, buffer)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
