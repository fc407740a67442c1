//! What the program says: results on standard output, everything else on standard error.

use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;

use backup_core::error::{Error, ErrorKind};
use serde::Serialize;

/// Where results go, and in what form.
#[derive(Debug, Clone, Copy)]
pub struct Output {
    json: bool,
}

impl Output {
    pub fn new(json: bool) -> Self {
        Self { json }
    }

    /// Give the result: the document, or the text for people. Called once.
    pub fn result(self, document: &impl Serialize, text: impl FnOnce() -> String) {
        if self.json {
            print_document(document);
        } else {
            print(&text());
        }
    }

    /// Say what failed; with `--json` there is a document as well. Gives the exit status.
    pub fn failure(self, error: &Error) -> ExitCode {
        message(&format!("error: {}", error.chain()));
        if self.json {
            print_failure(&error.chain());
        }
        match error.kind() {
            ErrorKind::InvalidInput | ErrorKind::Configuration => ExitCode::from(2),
            _ => ExitCode::FAILURE,
        }
    }
}

/// A line for the person at the terminal, or for the log of whoever started us.
pub fn message(text: &str) {
    // There is nobody to tell when even this fails.
    let _ = writeln!(io::stderr(), "{text}");
}

/// Refuse a command line as `clap` says it; gives the exit status.
pub fn usage(error: &clap::Error, json: bool) -> ExitCode {
    let _ = error.print();
    if error.use_stderr() && json {
        let text = error.render().to_string();
        // Up to the first empty line it says what is wrong, after that how it is right.
        let wrong: Vec<&str> = text
            .lines()
            .take_while(|line| !line.is_empty())
            .map(str::trim)
            .collect();
        print_failure(wrong.join(" ").trim_start_matches("error: "));
    }
    ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2))
}

/// Whether somebody watches standard error.
pub fn is_watched() -> bool {
    io::stderr().is_terminal()
}

fn print_failure(error: &str) {
    print_document(&serde_json::json!({ "success": false, "error": error }));
}

fn print_document(document: &impl Serialize) {
    match serde_json::to_string(document) {
        Ok(text) => print(&text),
        Err(e) => message(&format!("error: the result cannot be written as JSON: {e}")),
    }
}

fn print(text: &str) {
    // A reader that went away (`| head`) is no failure of what was done.
    let _ = writeln!(io::stdout(), "{}", text.trim_end());
}
