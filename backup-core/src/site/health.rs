//! Whether a site answers: one HTTP GET, without following where it leads.

use std::io::{Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use url::Url;

use crate::error::{Error, ErrorKind, Result};
use crate::progress::Cancel;

/// The longest that one answer may take.
pub(super) const ONE_ANSWER: Duration = Duration::from_secs(10);

/// The pause between two tries.
const PAUSE: Duration = Duration::from_millis(250);

/// How a site answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Health {
    /// Nobody knows: no `site.health_url` is configured.
    Unknown,
    /// With this HTTP status, which is no server error.
    Up(u16),
    /// With this HTTP status, a server error (5xx).
    Broken(u16),
    /// Not at all, or not in HTTP.
    Silent,
}

/// Ask once.
pub(super) fn ask(url: &Url, limit: Duration) -> Health {
    match status(url, limit) {
        Ok(status @ 500..) => Health::Broken(status),
        Ok(status) => Health::Up(status),
        Err(e) => {
            tracing::debug!("{url} does not answer: {e}");
            Health::Silent
        }
    }
}

/// Ask until it is up.
pub(super) fn wait(url: &Url, before: Health, limit: Duration, cancel: &Cancel) -> Result<Health> {
    let deadline = Instant::now() + limit;
    loop {
        cancel.check()?;
        let left = deadline.saturating_duration_since(Instant::now());
        let health = ask(url, left.clamp(PAUSE, ONE_ANSWER));
        let masked = health == Health::Broken(503) && before == health;
        if matches!(health, Health::Up(_)) || masked {
            return Ok(health);
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return match (before, health) {
                (Health::Broken(_), Health::Broken(_)) => Ok(health),
                (_, Health::Broken(status)) => Err(too_late(
                    url,
                    limit,
                    &format!("answers with the error {status}"),
                )),
                _ => Err(too_late(url, limit, "does not answer")),
            };
        }
        std::thread::sleep(PAUSE.min(left));
    }
}

fn too_late(url: &Url, limit: Duration, how: &str) -> Error {
    let message = format!("the site {how} after {} s at {url}", limit.as_secs());
    Error::new(ErrorKind::Timeout, message)
}

fn status(url: &Url, limit: Duration) -> std::io::Result<u16> {
    let deadline = Instant::now() + limit;
    let left = || match deadline.saturating_duration_since(Instant::now()) {
        Duration::ZERO => Err(std::io::ErrorKind::TimedOut),
        left => Ok(left),
    };
    let host = url.host_str().unwrap_or_default();
    let port = url.port_or_known_default().unwrap_or(80);
    let mut failure = std::io::Error::from(std::io::ErrorKind::NotFound);
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    for address in (bare, port).to_socket_addrs()? {
        let mut stream = match TcpStream::connect_timeout(&address, left()?) {
            Ok(stream) => stream,
            Err(e) => {
                failure = e;
                continue;
            }
        };
        let request = format!(
            "GET {} HTTP/1.1\r\nHost: {host}:{port}\r\nUser-Agent: shophosting-backup\r\nAccept: */*\r\nConnection: close\r\n\r\n",
            &url[url::Position::BeforePath..url::Position::AfterQuery]
        );
        stream.set_write_timeout(Some(left()?))?;
        stream.write_all(request.as_bytes())?;
        let mut line = Vec::new();
        while !line.contains(&b'\n') && line.len() < 1024 {
            stream.set_read_timeout(Some(left()?))?;
            let mut piece = [0; 256];
            match stream.read(&mut piece)? {
                0 => break,
                n => line.extend_from_slice(&piece[..n]),
            }
        }
        return read_status(&line).ok_or_else(|| std::io::Error::other("the answer is not HTTP"));
    }
    Err(failure)
}

fn read_status(line: &[u8]) -> Option<u16> {
    let line = line.strip_prefix(b"HTTP/1.")?;
    let digits = line.get(2..5)?;
    let status = std::str::from_utf8(digits).ok()?.parse().ok()?;
    (100..1000).contains(&status).then_some(status)
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    /// A server that gives these answers one after the other, the last for ever.
    fn server(answers: &'static [&'static str]) -> Url {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/shop?x=1", listener.local_addr().unwrap())
            .parse()
            .unwrap();
        std::thread::spawn(move || {
            let mut answers = answers.iter().peekable();
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let mut request = [0; 1024];
                let n = stream.read(&mut request).unwrap();
                assert!(request[..n].starts_with(b"GET /shop?x=1 HTTP/1.1\r\n"));
                let answer = answers.peek().unwrap();
                stream.write_all(answer.as_bytes()).unwrap();
                if answers.len() > 1 {
                    answers.next();
                }
            }
        });
        url
    }

    const OK: &str = "HTTP/1.1 200 OK\r\n\r\nhello";
    const MOVED: &str = "HTTP/1.0 301 Moved\r\nLocation: https://shop.example/\r\n\r\n";
    const ERROR: &str = "HTTP/1.1 500 Internal Server Error\r\n\r\n";
    const MAINTENANCE: &str = "HTTP/1.1 503 Service Unavailable\r\nRetry-After: 120\r\n\r\n";

    fn wait_for(answers: &'static [&'static str], before: Health) -> Result<Health> {
        wait(
            &server(answers),
            before,
            Duration::from_millis(600),
            &Cancel::new(),
        )
    }

    #[test]
    fn a_site_that_answers_or_leads_elsewhere_is_up() {
        assert_eq!(wait_for(&[OK], Health::Silent).unwrap(), Health::Up(200));
        assert_eq!(wait_for(&[MOVED], Health::Silent).unwrap(), Health::Up(301));
    }

    #[test]
    fn a_site_may_take_its_time() {
        assert_eq!(
            wait_for(&[ERROR, "", OK], Health::Up(200)).unwrap(),
            Health::Up(200)
        );
    }

    #[test]
    fn a_site_that_a_restore_broke_is_not_up() {
        for answers in [&[ERROR][..], &[MAINTENANCE], &[""], &["SSH-2.0-x\r\n"]] {
            for before in [Health::Up(200), Health::Silent] {
                assert_eq!(
                    wait_for(answers, before).unwrap_err().kind(),
                    ErrorKind::Timeout
                );
            }
        }
    }

    #[test]
    fn a_maintenance_page_in_front_of_the_site_does_not_fail_a_restore() {
        assert_eq!(
            wait_for(&[MAINTENANCE], Health::Broken(503)).unwrap(),
            Health::Broken(503)
        );
    }

    #[test]
    fn a_site_that_was_broken_before_may_be_so_after() {
        assert_eq!(
            wait_for(&[ERROR], Health::Broken(500)).unwrap(),
            Health::Broken(500)
        );
        assert!(wait_for(&[""], Health::Broken(500)).is_err());
    }

    #[test]
    fn nobody_there_is_silence_and_waiting_can_be_cancelled() {
        let port = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let url: Url = format!("http://127.0.0.1:{port}/").parse().unwrap();
        assert_eq!(ask(&url, ONE_ANSWER), Health::Silent);
        let cancel = Cancel::new();
        cancel.cancel();
        let error = wait(&url, Health::Silent, Duration::from_secs(600), &cancel).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Cancelled);
    }
}
