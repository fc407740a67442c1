//! A TCP proxy that makes a network worse than it is: delay, little bandwidth, cuts, refusals, silence.
//!
//! Never: a byte changed or in another order.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::Result;

/// How much is read at once.
const PIECE_BYTES: usize = 64 << 10;

/// How many pieces are on their way per direction: room for what a fast sender sends during the delay.
const PIECES_MAX: usize = 1024;

/// How often a paused connection looks whether it may go on.
const PAUSE_POLL: Duration = Duration::from_millis(5);

/// A proxy on a free port of 127.0.0.1. Dropping it cuts everything.
pub struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
    listener: Option<JoinHandle<()>>,
}

struct Shared {
    target: SocketAddr,
    delay_microseconds: AtomicU64,
    /// 0: as fast as it goes.
    bytes_per_second: AtomicU64,
    refuse: AtomicBool,
    pause: AtomicBool,
    /// Connections with lower numbers pass nothing on any more.
    mute_below: AtomicUsize,
    closing: AtomicBool,
    to_target: AtomicU64,
    from_target: AtomicU64,
    accepted: AtomicUsize,
    /// Cut everything once so many bytes have gone to the target; `u64::MAX` for never.
    cut_at: AtomicU64,
    open: Mutex<HashMap<usize, [TcpStream; 2]>>,
    /// When the line is free again: to the target, and from it.
    free_at: [Mutex<Instant>; 2],
}

impl Proxy {
    /// Listen, and pass everything on to `port` of 127.0.0.1.
    pub fn start(port: u16) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            target: (Ipv4Addr::LOCALHOST, port).into(),
            delay_microseconds: AtomicU64::new(0),
            bytes_per_second: AtomicU64::new(0),
            refuse: AtomicBool::new(false),
            pause: AtomicBool::new(false),
            mute_below: AtomicUsize::new(0),
            closing: AtomicBool::new(false),
            to_target: AtomicU64::new(0),
            from_target: AtomicU64::new(0),
            accepted: AtomicUsize::new(0),
            cut_at: AtomicU64::new(u64::MAX),
            open: Mutex::default(),
            free_at: [Instant::now(), Instant::now()].map(Mutex::new),
        });
        let for_thread = shared.clone();
        let listener = thread::spawn(move || accept_all(&listener, &for_thread));
        Ok(Self {
            address,
            shared,
            listener: Some(listener),
        })
    }

    /// The port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// Hold every byte back for so long, in each direction: half of a round trip.
    pub fn set_delay(&self, one_way: Duration) {
        let microseconds = u64::try_from(one_way.as_micros()).unwrap_or(u64::MAX);
        self.shared
            .delay_microseconds
            .store(microseconds, Ordering::Relaxed);
    }

    /// Pass on no more than this per direction, all connections together; None for as fast as it goes.
    pub fn set_bytes_per_second(&self, limit: Option<u64>) {
        self.shared
            .bytes_per_second
            .store(limit.unwrap_or(0), Ordering::Relaxed);
    }

    /// Cut all connections; new ones are welcome.
    pub fn cut(&self) {
        self.shared.cut();
    }

    /// Cut all connections, once, as soon as so many bytes more have gone to the target.
    pub fn cut_after(&self, bytes: u64) {
        let at = self.bytes_to_target().saturating_add(bytes);
        self.shared.cut_at.store(at, Ordering::SeqCst);
    }

    /// Hang up on new connections at once, or no more.
    pub fn refuse(&self, refuse: bool) {
        self.shared.refuse.store(refuse, Ordering::SeqCst);
    }

    /// Keep connections open but pass nothing on, or go on.
    pub fn pause(&self, pause: bool) {
        self.shared.pause.store(pause, Ordering::SeqCst);
    }

    /// Let nothing pass on the connections that were made so far, which stay open for ever, as when a machine loses its power; new ones
    /// are welcome.
    pub fn mute(&self) {
        let made = self.connections_accepted();
        self.shared.mute_below.store(made, Ordering::SeqCst);
    }

    /// Bytes passed on to the target so far.
    pub fn bytes_to_target(&self) -> u64 {
        self.shared.to_target.load(Ordering::SeqCst)
    }

    /// Bytes passed on from the target so far.
    pub fn bytes_from_target(&self) -> u64 {
        self.shared.from_target.load(Ordering::SeqCst)
    }

    /// Connections that were made so far, refused ones too.
    pub fn connections_accepted(&self) -> usize {
        self.shared.accepted.load(Ordering::SeqCst)
    }

    /// Connections that are open now.
    pub fn connections_open(&self) -> usize {
        self.shared.open().len()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.closing.store(true, Ordering::SeqCst);
        // Wakes the listener, which then sees that it is to end.
        let _ = TcpStream::connect(self.address);
        if let Some(listener) = self.listener.take() {
            let _ = listener.join();
        }
        self.shared.cut();
    }
}

impl Shared {
    fn open(&self) -> std::sync::MutexGuard<'_, HashMap<usize, [TcpStream; 2]>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn cut(&self) {
        for (_, streams) in self.open().drain() {
            for stream in streams {
                // Gone already is as good.
                let _ = stream.shutdown(Shutdown::Both);
            }
        }
    }

    fn holds_back(&self, number: usize) -> bool {
        self.pause.load(Ordering::SeqCst) || number < self.mute_below.load(Ordering::SeqCst)
    }

    /// Put so many bytes on the line; when it begins to send them.
    fn send(&self, bytes: usize, to_target: bool) -> Instant {
        let now = Instant::now();
        let limit = self.bytes_per_second.load(Ordering::Relaxed);
        let Some(nanoseconds) = (bytes as u64 * 1_000_000_000).checked_div(limit) else {
            return now;
        };
        let free_at = &self.free_at[usize::from(to_target)];
        let mut free_at = free_at.lock().unwrap_or_else(PoisonError::into_inner);
        let begins = now.max(*free_at);
        *free_at = begins + Duration::from_nanos(nanoseconds);
        begins
    }

    fn closing(&self) -> bool {
        self.closing.load(Ordering::SeqCst)
    }
}

fn accept_all(listener: &TcpListener, shared: &Arc<Shared>) {
    for stream in listener.incoming() {
        if shared.closing() {
            return;
        }
        let Ok(client) = stream else { continue };
        let number = shared.accepted.fetch_add(1, Ordering::SeqCst);
        if shared.refuse.load(Ordering::SeqCst) {
            continue;
        }
        // A target that is away looks like a proxy that hangs up.
        let Ok(server) = TcpStream::connect(shared.target) else {
            continue;
        };
        // Without the clones there is no connection to pass on.
        let _ = connect(shared, number, client, server);
    }
}

fn connect(
    shared: &Arc<Shared>,
    number: usize,
    client: TcpStream,
    server: TcpStream,
) -> std::io::Result<()> {
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    shared
        .open()
        .insert(number, [client.try_clone()?, server.try_clone()?]);
    pump(
        shared,
        number,
        client.try_clone()?,
        server.try_clone()?,
        true,
    );
    pump(shared, number, server, client, false);
    Ok(())
}

/// Pass on one direction: one thread reads and notes the time, one writes when it is due.
fn pump(shared: &Arc<Shared>, number: usize, mut from: TcpStream, to: TcpStream, to_target: bool) {
    let (sender, receiver) = sync_channel(PIECES_MAX);
    let for_writer = shared.clone();
    thread::spawn(move || write_when_due(&for_writer, number, &receiver, to, to_target));
    thread::spawn(move || {
        let mut buffer = vec![0; PIECE_BYTES];
        while let Ok(length @ 1..) = from.read(&mut buffer) {
            if send(&sender, &buffer[..length]).is_none() {
                break;
            }
        }
    });
}

fn send(sender: &SyncSender<(Instant, Vec<u8>)>, piece: &[u8]) -> Option<()> {
    sender.send((Instant::now(), piece.to_vec())).ok()
}

fn write_when_due(
    shared: &Shared,
    number: usize,
    pieces: &Receiver<(Instant, Vec<u8>)>,
    mut to: TcpStream,
    to_target: bool,
) {
    let counter = if to_target {
        &shared.to_target
    } else {
        &shared.from_target
    };
    for (came, piece) in pieces {
        let delay = Duration::from_micros(shared.delay_microseconds.load(Ordering::Relaxed));
        let due = (came + delay).max(shared.send(piece.len(), to_target));
        thread::sleep(due.saturating_duration_since(Instant::now()));
        while shared.holds_back(number) && !shared.closing() && shared.open().contains_key(&number)
        {
            thread::sleep(PAUSE_POLL);
        }
        if to.write_all(&piece).is_err() {
            break;
        }
        let total = counter.fetch_add(piece.len() as u64, Ordering::SeqCst) + piece.len() as u64;
        if to_target && total >= shared.cut_at.load(Ordering::SeqCst) {
            shared.cut_at.store(u64::MAX, Ordering::SeqCst);
            shared.cut();
        }
    }
    // One direction has ended: SSH has no use for the other.
    if let Some(streams) = shared.open().remove(&number) {
        for stream in streams {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A server that sends back what it gets, and a proxy in front of it.
    fn echo() -> Proxy {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                thread::spawn(move || {
                    let mut back = stream.try_clone().unwrap();
                    std::io::copy(&mut stream, &mut back)
                });
            }
        });
        Proxy::start(port).unwrap()
    }

    fn connect(proxy: &Proxy) -> TcpStream {
        let stream = TcpStream::connect(("127.0.0.1", proxy.port())).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        stream
    }

    fn round_trip(stream: &mut TcpStream, bytes: &[u8]) -> Duration {
        let begun = Instant::now();
        let mut writer = stream.try_clone().unwrap();
        let mut back = vec![0; bytes.len()];
        thread::scope(|scope| {
            scope.spawn(move || writer.write_all(bytes).unwrap());
            stream.read_exact(&mut back).unwrap();
        });
        assert!(back == bytes);
        begun.elapsed()
    }

    #[test]
    fn bytes_pass_unchanged_and_are_counted() {
        let proxy = echo();
        let bytes: Vec<u8> = (0..3_000_000_u32).map(|n| (n % 251) as u8).collect();
        round_trip(&mut connect(&proxy), &bytes);
        // The last piece is counted once it is passed on, which its receiver may know before.
        let deadline = Instant::now() + Duration::from_secs(60);
        let counted = || (proxy.bytes_to_target(), proxy.bytes_from_target());
        while counted() != (3_000_000, 3_000_000) {
            assert!(Instant::now() < deadline, "{:?}", counted());
            thread::yield_now();
        }
        assert_eq!(proxy.connections_accepted(), 1);
    }

    #[test]
    fn a_delay_costs_twice_its_length_once_however_much_is_sent() {
        let proxy = echo();
        proxy.set_delay(Duration::from_millis(100));
        let mut stream = connect(&proxy);
        let time = round_trip(&mut stream, &vec![7; 10_000_000]);
        assert!(
            time >= Duration::from_millis(200) && time < Duration::from_secs(10),
            "{time:?}"
        );
    }

    #[test]
    fn little_bandwidth_takes_its_time() {
        let proxy = echo();
        proxy.set_bytes_per_second(Some(1_000_000));
        let time = round_trip(&mut connect(&proxy), &vec![7; 500_000]);
        assert!(time >= Duration::from_millis(350), "{time:?}");
    }

    #[test]
    fn a_cut_ends_what_is_open_and_a_refusal_what_is_new() {
        let proxy = echo();
        let mut stream = connect(&proxy);
        round_trip(&mut stream, b"hello");
        proxy.cut();
        assert!(!matches!(stream.read(&mut [0]), Ok(1..)));
        proxy.refuse(true);
        assert!(!matches!(connect(&proxy).read(&mut [0]), Ok(1..)));
        proxy.refuse(false);
        round_trip(&mut connect(&proxy), b"hello again");
        // It is counted once it is passed on, which its receiver may know before.
        while proxy.bytes_to_target() != 16 {
            thread::yield_now();
        }
        proxy.cut_after(3);
        let mut stream = connect(&proxy);
        stream.write_all(b"too much").unwrap();
        let mut back = Vec::new();
        // Ends, one way or the other.
        let _ = stream.read_to_end(&mut back);
        assert_eq!(proxy.connections_open(), 0);
    }

    #[test]
    fn what_is_mute_stays_open_and_silent_and_what_is_new_is_not() {
        let proxy = echo();
        let mut old = connect(&proxy);
        round_trip(&mut old, b"hello");
        proxy.mute();
        old.write_all(b"anybody?").unwrap();
        round_trip(&mut connect(&proxy), b"hello again");
        old.set_nonblocking(true).unwrap();
        let silence = old.read(&mut [0]).unwrap_err();
        assert_eq!(silence.kind(), std::io::ErrorKind::WouldBlock);
    }
}
