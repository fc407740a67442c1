//! The dashboard behind nginx, by the rules that operators get.

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use xtask::certificate::make_certificate;
use xtask::nginx::Nginx;
use xtask::port;

use crate::client::Client;
use crate::world::{PASSWORD, Server, World, credentials};

/// What the rules call the dashboard.
const NAME: &str = "backups.shophosting.example";
const RULES: &str = include_str!("../../../deploy/nginx/shophosting-dashboard.conf");

/// nginx in front of a server.
struct Front {
    _nginx: Nginx,
    dir: TempDir,
    plain: u16,
    tls: u16,
}

impl Front {
    fn of(server: &Server) -> Self {
        let dir = tempfile::tempdir().unwrap();
        make_certificate(dir.path(), &format!("DNS:{NAME}")).unwrap();
        let (plain, tls) = (port::free().unwrap(), port::free().unwrap());
        let mut rules = RULES.to_owned();
        for (line, changed) in [
            ("listen 80;", format!("listen 127.0.0.1:{plain};")),
            (
                "listen 443 ssl http2;",
                format!("listen 127.0.0.1:{tls} ssl http2;"),
            ),
            // Not every machine has it.
            ("listen [::]:80;", String::new()),
            ("listen [::]:443 ssl http2;", String::new()),
            (
                "server 127.0.0.1:3000;",
                format!("server {};", server.address),
            ),
            (
                "/etc/letsencrypt/live/backups.shophosting.example",
                dir.path().display().to_string(),
            ),
            ("fullchain.pem", "certificate.pem".to_owned()),
            ("privkey.pem", "key.pem".to_owned()),
            // So that nobody waits for it.
            (
                "client_header_timeout 10s;",
                "client_header_timeout 1s;".to_owned(),
            ),
        ] {
            assert!(rules.contains(line), "{line}");
            rules = rules.replace(line, &changed);
        }
        Self {
            _nginx: Nginx::start(dir.path(), &rules, &[plain, tls]).unwrap(),
            dir,
            plain,
            tls,
        }
    }

    /// Where what is sent arrives by TLS.
    fn tunnel(&self) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let certificate = self.dir.path().join("certificate.pem");
        let front = format!("127.0.0.1:{}", self.tls);
        thread::spawn(move || {
            for connection in listener.incoming() {
                carry(connection.unwrap(), &certificate, &front);
            }
        });
        address
    }

    /// A stranger on the web.
    fn client(&self) -> Client {
        Client::new(&self.tunnel()).with("Host", NAME)
    }
}

/// One connection, both ways, until nginx ends it.
fn carry(connection: TcpStream, certificate: &Path, front: &str) {
    let mut client = Command::new("openssl")
        .args([
            "s_client",
            "-quiet",
            "-verify_quiet",
            "-verify_return_error",
        ])
        .args(["-verify_hostname", NAME, "-servername", NAME])
        .args(["-connect", front, "-CAfile"])
        .arg(certificate)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut there = client.stdin.take().unwrap();
    let mut back = client.stdout.take().unwrap();
    // Straight from the connection the kernel would copy, and keep the pipe to itself while it waits for more.
    let mut asked = io::empty().chain(connection.try_clone().unwrap());
    thread::spawn(move || io::copy(&mut asked, &mut there));
    thread::spawn(move || {
        let mut answered = &connection;
        let _ = io::copy(&mut back, &mut answered);
        // Fails only if the other side has gone first.
        let _ = connection.shutdown(std::net::Shutdown::Both);
        let _ = client.kill();
        let _ = client.wait();
    });
}

#[test]
fn nginx_hands_on_who_asks_and_what_comes_as_it_comes() {
    let world = World::new([1]);
    let url = format!("https://{NAME}");
    let server = world.serve_with("serve", &[("SERVER__PUBLIC_URL", &url)]);
    let front = Front::of(&server);

    let moved = Client::new(&format!("127.0.0.1:{}", front.plain))
        .with("Host", NAME)
        .get("/backups?page=2");
    let place = format!("{url}/backups?page=2");
    assert_eq!(moved.is(301).header("location"), Some(place.as_str()));

    // A browser there may act, its cookie is for https alone, and it comes back only by https.
    let stranger = front.client();
    let of_browser = stranger.with("Origin", &url);
    let answer = of_browser.post("/login", &credentials(1, PASSWORD));
    let set = answer.is(200).header("set-cookie").unwrap();
    assert!(set.contains("Secure"), "{set}");
    let client = of_browser.with("Cookie", &answer.cookie());
    for (path, status) in [("/api/backups", 200), ("/metrics", 404)] {
        let answer = client.get(path);
        let said = answer.is(status).headers.iter();
        let said: Vec<_> = said
            .filter(|(name, _)| name == "strict-transport-security")
            .map(|(_, value)| value.as_str())
            .collect();
        assert_eq!(said, ["max-age=31536000"], "{path}");
    }

    // Each event is there while the stream goes on.
    client.post("/backups/create", "backup_type=files").is(200);
    let mut events = client.events("/api/backups/events");
    assert_eq!(
        events.head.is(200).header("content-type"),
        Some("text/event-stream")
    );
    let first = events.next().unwrap();
    assert_eq!(first["status"], "pending");
    let id = &first["id"];
    client
        .post(&format!("/backups/jobs/{id}/cancel"), "")
        .is(200);
    assert_eq!(events.next().unwrap()["status"], "failed");
    assert_eq!(events.next(), None);
    world.stop(server);
    client.get("/api/backups").is(502);
}

#[test]
fn nginx_cuts_off_who_is_slow_sends_too_much_or_says_he_is_somebody_else() {
    let world = World::new([1]);
    let server = world.serve();
    let front = Front::of(&server);

    let begun = Instant::now();
    let mut slow = TcpStream::connect(front.tunnel()).unwrap();
    slow.set_read_timeout(Some(Duration::from_secs(60)))
        .unwrap();
    slow.write_all(format!("GET / HTTP/1.1\r\nHost: {NAME}\r\n").as_bytes())
        .unwrap();
    let mut answer = Vec::new();
    // The end may come as an error.
    let _ = slow.read_to_end(&mut answer);
    assert!(!answer.starts_with(b"HTTP/1.1 200"));
    // Without the rule it would be a minute.
    assert!(begun.elapsed() < Duration::from_secs(30));

    let much = "x".repeat(100_000);
    front.client().post("/login", &much).is(413);

    // Whoever he says he is, his tries are counted.
    let guess = |n: u32| {
        let client = front
            .client()
            .with("X-Forwarded-For", &format!("203.0.113.{n}"));
        client.post(
            "/login",
            &format!("email=nobody-{n}@shop.example&password=x"),
        )
    };
    let stopped = (1..=60).map(guess).find(|answer| answer.status == 429);
    stopped.expect("guessing goes on").refusal(429);
    world.stop(server);
}
