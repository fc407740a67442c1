//! Who receives a webhook: a small HTTP server that writes down what it is told, and answers as it is told to, or not at all.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use anyhow::{Context, Result, ensure};

/// A running receiver. It ends with the process; dropping it makes it forget everybody who waits.
pub struct Receiver {
    port: u16,
    state: Arc<Mutex<State>>,
}

/// What it was told.
#[derive(Debug, Clone)]
pub struct Told {
    /// `POST /hooks HTTP/1.1`.
    pub request: String,
    /// In their order, the names in small letters.
    pub headers: Vec<(String, String)>,
    /// As it came.
    pub body: String,
}

#[derive(Default)]
struct State {
    /// What to answer; None: nothing.
    answer: Option<String>,
    told: Vec<Told>,
    /// Those who have no answer.
    waiting: Vec<TcpStream>,
}

impl Receiver {
    /// A new one, which is content with everything.
    pub fn start() -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let port = listener.local_addr()?.port();
        let state = Arc::new(Mutex::new(State {
            answer: Some(answer(204, "")),
            ..State::default()
        }));
        let this = Self {
            port,
            state: Arc::clone(&state),
        };
        thread::spawn(move || {
            for connection in listener.incoming().flatten() {
                let state = Arc::clone(&state);
                // What makes no sense is no notification.
                thread::spawn(move || serve(connection, &state).ok());
            }
        });
        Ok(this)
    }

    /// Its port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// From now on answer with this status, and these lines of a head besides (`Location: …\r\n`).
    pub fn answer(&self, status: u16, head: &str) {
        lock(&self.state).answer = Some(answer(status, head));
    }

    /// From now on take everything and answer nothing.
    pub fn hang(&self) {
        lock(&self.state).answer = None;
    }

    /// How many were told that have no answer.
    pub fn waiting(&self) -> usize {
        lock(&self.state).waiting.len()
    }

    /// What it was told so far.
    pub fn told(&self) -> Vec<Told> {
        lock(&self.state).told.clone()
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        lock(&self.state).waiting.clear();
    }
}

impl Told {
    /// A header that is there once.
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut values = self.headers.iter().filter(|(is, _)| is == name);
        match (values.next(), values.next()) {
            (Some((_, value)), None) => Some(value),
            _ => None,
        }
    }
}

fn answer(status: u16, head: &str) -> String {
    format!("HTTP/1.1 {status} Answer\r\ncontent-length: 0\r\nconnection: close\r\n{head}\r\n")
}

fn serve(connection: TcpStream, state: &Mutex<State>) -> Result<()> {
    let mut reader = BufReader::new(connection.try_clone()?);
    let request = line(&mut reader)?;
    ensure!(!request.is_empty(), "somebody who only knocked");
    let mut headers = Vec::new();
    loop {
        let line = line(&mut reader)?;
        if line.is_empty() {
            break;
        }
        let (name, value) = line.split_once(':').context("no header")?;
        headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
    }
    let told = Told {
        request,
        headers,
        body: String::new(),
    };
    let length: usize = told.header("content-length").unwrap_or("0").parse()?;
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    let body = String::from_utf8(body)?;
    let mut state = lock(state);
    state.told.push(Told { body, ..told });
    match state.answer.clone() {
        Some(answer) => {
            drop(state);
            let mut connection = connection;
            connection.write_all(answer.as_bytes())?;
        }
        None => state.waiting.push(connection),
    }
    Ok(())
}

fn line(reader: &mut impl BufRead) -> Result<String> {
    let mut line = String::new();
    reader.read_line(&mut line)?;
    Ok(line.trim_end_matches(['\r', '\n']).to_owned())
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}
