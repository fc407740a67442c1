//! Requests byte by byte, so that those can be sent, too, that no honest client sends.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use serde_json::Value;

/// Longer than any answer takes on a busy machine.
const LIMIT: Duration = Duration::from_secs(60);

/// Somebody who asks: a program, or a browser that accepts pages.
#[derive(Debug, Clone)]
pub struct Client {
    address: String,
    headers: Vec<(String, String)>,
}

#[derive(Debug, Clone)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

/// An answer that goes on.
pub struct Events {
    pub head: Answer,
    lines: BufReader<TcpStream>,
}

impl Client {
    pub fn new(address: &str) -> Self {
        Self {
            address: address.to_owned(),
            headers: Vec::new(),
        }
    }

    /// The same with one more header.
    pub fn with(&self, name: &str, value: &str) -> Self {
        let mut headers = self.headers.clone();
        headers.push((name.to_owned(), value.to_owned()));
        Self {
            address: self.address.clone(),
            headers,
        }
    }

    /// The same as a browser.
    pub fn browser(&self) -> Self {
        self.with("Accept", "text/html,application/xhtml+xml;q=0.9,*/*;q=0.8")
    }

    #[track_caller]
    pub fn get(&self, path: &str) -> Answer {
        self.send("GET", path, "", b"")
    }

    /// Send a form.
    #[track_caller]
    pub fn post(&self, path: &str, form: &str) -> Answer {
        self.send(
            "POST",
            path,
            "application/x-www-form-urlencoded",
            form.as_bytes(),
        )
    }

    #[track_caller]
    pub fn post_json(&self, path: &str, json: &str) -> Answer {
        self.send("POST", path, "application/json", json.as_bytes())
    }

    #[track_caller]
    pub fn send(&self, method: &str, path: &str, content_type: &str, body: &[u8]) -> Answer {
        let mut connection = self.ask(method, path, content_type, body);
        let mut bytes = Vec::new();
        // Who is refused before he has said all may be cut off after the answer.
        let read = connection.read_to_end(&mut bytes);
        assert!(
            read.is_ok() || !bytes.is_empty(),
            "{method} {path}: {read:?}"
        );
        Answer::parse(&bytes)
    }

    /// Ask for events; they come as they come.
    #[track_caller]
    pub fn events(&self, path: &str) -> Events {
        let mut lines = BufReader::new(self.ask("GET", path, "", b""));
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            assert!(lines.read_until(b'\n', &mut head).unwrap() > 0, "no answer");
        }
        Events {
            head: Answer::parse(&head),
            lines,
        }
    }

    fn ask(&self, method: &str, path: &str, content_type: &str, body: &[u8]) -> TcpStream {
        let mut connection = TcpStream::connect(&self.address).unwrap();
        connection.set_read_timeout(Some(LIMIT)).unwrap();
        let mut head = format!("{method} {path} HTTP/1.1\r\nConnection: close\r\n");
        for (name, value) in &self.headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        // What a test says itself is not said twice.
        let says = |said| self.headers.iter().any(|(name, _)| name == said);
        if !says("Host") {
            head.push_str(&format!("Host: {}\r\n", self.address));
        }
        if !says("Content-Length") && !says("Transfer-Encoding") {
            head.push_str(&format!("Content-Length: {}\r\n", body.len()));
        }
        if !content_type.is_empty() {
            head.push_str(&format!("Content-Type: {content_type}\r\n"));
        }
        head.push_str("\r\n");
        connection.write_all(head.as_bytes()).unwrap();
        // The server need not listen to the end.
        let _ = connection.write_all(body);
        connection
    }
}

impl Answer {
    #[track_caller]
    fn parse(bytes: &[u8]) -> Self {
        let end = bytes.windows(4).position(|four| four == b"\r\n\r\n");
        let end = end.unwrap_or_else(|| panic!("no answer: {}", String::from_utf8_lossy(bytes)));
        let head = std::str::from_utf8(&bytes[..end]).unwrap();
        let mut lines = head.lines();
        let status = lines.next().unwrap().split(' ').nth(1).unwrap();
        let headers: Vec<(String, String)> = lines
            .map(|line| {
                let (name, value) = line.split_once(':').unwrap();
                (name.to_ascii_lowercase(), value.trim().to_owned())
            })
            .collect();
        let mut answer = Self {
            status: status.parse().unwrap(),
            headers,
            body: bytes[end + 4..].to_vec(),
        };
        if answer.header("transfer-encoding") == Some("chunked") {
            answer.body = unchunked(&answer.body);
        }
        answer
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(known, _)| known == name);
        found.map(|(_, value)| value.as_str())
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {}", self.text()))
    }

    /// It has this status.
    #[track_caller]
    pub fn is(&self, status: u16) -> &Self {
        assert_eq!(self.status, status, "{:?} {}", self.headers, self.text());
        self
    }

    /// It sends a browser there.
    #[track_caller]
    pub fn leads_to(&self, place: &str) -> &Self {
        self.is(303);
        assert_eq!(self.header("location"), Some(place));
        self
    }

    /// A refusal with a plain sentence; the sentence.
    #[track_caller]
    pub fn refusal(&self, status: u16) -> String {
        self.is(status);
        let document = self.json();
        assert_eq!(document["success"], false, "{document}");
        let sentence = document["message"].as_str().unwrap().to_owned();
        assert_plain(&sentence);
        sentence
    }

    /// The pairs of all cookies that it sets, to be sent back.
    pub fn cookies(&self) -> Vec<String> {
        let set = self.headers.iter().filter(|(name, _)| name == "set-cookie");
        let pair = |(_, value): &(String, String)| value.split(';').next().unwrap().to_owned();
        set.map(pair).collect()
    }

    /// The pair of the first.
    #[track_caller]
    pub fn cookie(&self) -> String {
        let set = self
            .header("set-cookie")
            .unwrap_or_else(|| panic!("{:?}", self.headers));
        set.split(';').next().unwrap().to_owned()
    }
}

impl Events {
    /// The data of the next event; None at the end.
    pub fn next(&mut self) -> Option<Value> {
        loop {
            let mut line = String::new();
            if self.lines.read_line(&mut line).unwrap() == 0 {
                return None;
            }
            // In between are the lengths of chunks, ids and names.
            if let Some(data) = line.strip_prefix("data: ") {
                return Some(serde_json::from_str(data).unwrap());
            }
        }
    }
}

/// A sentence for people who know nothing of the machines.
#[track_caller]
pub fn assert_plain(sentence: &str) {
    let is_plain = sentence
        .chars()
        .all(|c| c.is_ascii_alphanumeric() || " .,:;'".contains(c));
    assert!(is_plain && sentence.ends_with('.'), "{sentence}");
}

fn unchunked(mut bytes: &[u8]) -> Vec<u8> {
    let mut whole = Vec::new();
    while let Some(end) = bytes.windows(2).position(|two| two == b"\r\n") {
        let length =
            usize::from_str_radix(std::str::from_utf8(&bytes[..end]).unwrap(), 16).unwrap();
        if length == 0 {
            break;
        }
        whole.extend(&bytes[end + 2..end + 2 + length]);
        bytes = &bytes[end + 2 + length + 2..];
    }
    whole
}
