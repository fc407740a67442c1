//! The dump of what a swap replaced: what a dump of the live schema would have been the moment before.
//!
//! The tables are dumped where they lie now; views, routines, triggers and events, which are only in the record of the swap, are
//! written after them. Never: the name of the replaced schema in the dump, which would make of an unchanged database other bytes
//! each time; a text that a tenant wrote that ends, for a client program, before its end.

use std::io::{self, Read};
use std::process::ChildStdout;
use std::time::Duration;

use sha2::{Digest, Sha256};

use crate::database::Server;
use crate::database::client::identifier;
use crate::database::definitions::{Definition, Kind, delimiter};
use crate::database::dump::{self, Dump, TRAILER, check_family};
use crate::database::swap::{COMPLETED, Record, Replaced, completed_record};
use crate::error::Result;
use crate::progress::Control;

/// Start dumping what a completed swap replaced, for [`import`](crate::database::import) and for the client programs of the servers.
/// The same state gives the same bytes again. Where there was no live schema, it is the dump of an empty one.
///
/// A view that was broken (a table that it shows was gone) is left out, for no server creates such a view; the monitor is warned.
///
/// # Errors
/// [`InvalidInput`](crate::error::ErrorKind::InvalidInput) when the swap did not come to its end,
/// [`NotFound`](crate::error::ErrorKind::NotFound) when what it replaced is no longer there, and as [`dump`](fn@crate::database::dump).
pub fn dump_replaced(
    server: &Server,
    replaced: &Replaced,
    limit: Duration,
    control: &Control,
) -> Result<Dump> {
    let tools = server.tools(&control.cancel)?;
    let mut record = completed_record(server, replaced, &control.cancel)?;
    check_family(server, tools, replaced.schema(), control)?;
    leave_out_broken_views(&mut record, replaced, control);
    let options = [
        "--skip-triggers".to_owned(),
        format!("--ignore-table={}.{COMPLETED}", replaced.schema()),
    ];
    let edit = |stdout: ChildStdout| -> Box<dyn Read + Send> {
        Box::new(Edited {
            dump: stdout,
            header: Some((replaced.schema().to_owned(), header_name(replaced.live()))),
            ending: definitions(&record),
            ready: Vec::new(),
            given: 0,
            held: Vec::new(),
            ended: false,
        })
    };
    dump::start(server, replaced.schema(), options, edit, limit, control)
}

fn leave_out_broken_views(record: &mut Record, replaced: &Replaced, control: &Control) {
    let is_broken = |one: &Definition| one.kind == Kind::View && one.columns.is_empty();
    for view in record.old.iter().filter(|one| is_broken(one)) {
        control.monitor.warning(&format!(
            "the broken view {} of the database {} is left out of its dump",
            view.name,
            replaced.live()
        ));
    }
    record.old.retain(|one| !is_broken(one));
}

/// Everything but tables, in the order and the sessions in which it is created.
fn definitions(record: &Record) -> Vec<u8> {
    let (Some((charset, collation)), false) = (&record.charset, record.old.is_empty()) else {
        return Vec::new();
    };
    let texts: Vec<&[u8]> = record.old.iter().map(|one| one.text.as_slice()).collect();
    let delimiter = delimiter_for(&texts);
    let mut script = Vec::from(&b"\n--\n-- Routines, views, triggers and events\n--\n\n"[..]);
    let mut add = |text: &[u8]| script.extend_from_slice(text);
    add(SAVE_SESSION);
    let mut default = collation;
    for of_a_kind in record.old.chunk_by(|one, next| one.kind == next.kind) {
        if let [
            Definition {
                kind: Kind::View, ..
            },
            ..,
        ] = of_a_kind
        {
            add(stand_ins(of_a_kind).as_bytes());
        }
        for one in of_a_kind {
            // Objects remember the schema's default under which they were created.
            if let Some(needed) = &one.database_collation
                && needed != default
            {
                add(format!("ALTER DATABASE COLLATE {needed};\n").as_bytes());
                default = needed;
            }
            add(one.session().as_bytes());
            if one.kind == Kind::View {
                add(format!("DROP VIEW {};\n", identifier(&one.name)).as_bytes());
            }
            add(&one.delimited(&delimiter));
        }
    }
    if default != collation {
        add(format!("ALTER DATABASE CHARACTER SET {charset} COLLATE {collation};\n").as_bytes());
    }
    add(RESTORE_SESSION);
    script
}

const SAVE_SESSION: &[u8] = b"SET @saved_sql_mode = @@sql_mode, @saved_time_zone = @@time_zone,
  @saved_cs_client = @@character_set_client, @saved_col_connection = @@collation_connection;\n";
const RESTORE_SESSION: &[u8] = b"SET sql_mode = @saved_sql_mode, time_zone = @saved_time_zone,
  character_set_client = @saved_cs_client, collation_connection = @saved_col_connection;\n\n";

/// A view may show one that comes after it: until that comes, another with its columns has its name.
fn stand_ins(views: &[Definition]) -> String {
    let mut script = "SET sql_mode = '', character_set_client = utf8mb4;\n".to_owned();
    for view in views {
        let columns: Vec<String> = view
            .columns
            .iter()
            .map(|column| format!("1 AS {}", identifier(column)))
            .collect();
        script.push_str(&format!(
            "CREATE VIEW {} AS SELECT {};\n",
            identifier(&view.name),
            columns.join(", ")
        ));
    }
    script
}

/// Drawn from what it delimits, and in none of it.
fn delimiter_for(texts: &[&[u8]]) -> String {
    let mut digest = Sha256::new();
    for text in texts {
        digest.update(Sha256::digest(text));
    }
    loop {
        let bytes = digest.clone().finalize();
        let bits = bytes
            .iter()
            .take(16)
            .fold(0, |bits: u128, &byte| bits << 8 | u128::from(byte));
        let delimiter = delimiter(bits);
        if !texts
            .iter()
            .any(|text| contains(text, delimiter.as_bytes()))
        {
            return delimiter;
        }
        digest.update(bytes);
    }
}

fn contains(text: &[u8], what: &[u8]) -> bool {
    text.windows(what.len()).any(|window| window == what)
}

/// The live schema's name as it may stand in a comment, which ends with its line.
fn header_name(live: &str) -> String {
    live.replace(char::is_control, "?")
}

/// The comments at the begin of a dump are within so many bytes.
const HEADER_BYTES: usize = 512;
const TAIL_BYTES: usize = 256;

/// A dump of tables on its way: the schema named in its first comments is another, and before its last line comes `ending`.
struct Edited<R> {
    dump: R,
    /// The name to look for in the header and the one to put there, until that is done.
    header: Option<(String, String)>,
    ending: Vec<u8>,
    /// What is to be given to the reader, and how much of it was.
    ready: Vec<u8>,
    given: usize,
    /// The last bytes of the dump so far, in which its last line may be.
    held: Vec<u8>,
    ended: bool,
}

impl<R: Read> Edited<R> {
    fn fill(&mut self) -> io::Result<()> {
        self.ready.clear();
        self.given = 0;
        while self.ready.is_empty() && !self.ended {
            let before = self.held.len();
            self.held.resize(before + (64 << 10), 0);
            let read = self
                .dump
                .read(self.held.get_mut(before..).unwrap_or_default());
            self.held.truncate(before + *read.as_ref().unwrap_or(&0));
            match read {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
                Ok(0) => self.end(),
                Ok(_) if self.header.is_some() && self.held.len() < HEADER_BYTES => {}
                Ok(_) => {
                    self.rename_in_header();
                    let settled = self.held.len().saturating_sub(TAIL_BYTES);
                    self.ready.extend(self.held.drain(..settled));
                }
            }
        }
        Ok(())
    }

    fn rename_in_header(&mut self) {
        let Some((from, to)) = self.header.take() else {
            return;
        };
        let header = self.held.len().min(HEADER_BYTES);
        let begin = self.held.get(..header).unwrap_or_default();
        let line = begin
            .split_inclusive(|&byte| byte == b'\n')
            .scan(0, |at, line| {
                *at += line.len();
                Some((*at - line.len(), line))
            })
            .find(|(_, line)| line.starts_with(b"-- Host: "));
        if let Some((start, line)) = line
            && let Some(at) = line
                .windows(from.len())
                .rposition(|window| window == from.as_bytes())
        {
            let at = start + at;
            self.held.splice(at..at + from.len(), to.into_bytes());
        }
    }

    /// A dump that is cut off stays so.
    fn end(&mut self) {
        self.rename_in_header();
        self.ended = true;
        self.ready.append(&mut self.held);
        let last_line = self.ready.trim_ascii_end();
        let last_line = last_line
            .iter()
            .rposition(|&byte| byte == b'\n')
            .map_or(0, |at| at + 1);
        if self
            .ready
            .get(last_line..)
            .is_some_and(|line| line.starts_with(TRAILER))
        {
            let ending = std::mem::take(&mut self.ending);
            self.ready.splice(last_line..last_line, ending);
        }
    }
}

impl<R: Read> Read for Edited<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.given == self.ready.len() {
            self.fill()?;
        }
        let mut rest = self.ready.get(self.given..).unwrap_or_default();
        let n = rest.read(buffer)?;
        self.given += n;
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives the bytes in pieces of a size.
    struct Pieces<'a>(&'a [u8], usize);

    impl Read for Pieces<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let size = self.1.min(buffer.len());
            self.0.read(buffer.get_mut(..size).unwrap_or_default())
        }
    }

    fn edited(dump: &[u8], pieces: usize) -> Vec<u8> {
        let mut edited = Edited {
            dump: Pieces(dump, pieces),
            header: Some(("x__replaced_0".to_owned(), header_name("x\n;"))),
            ending: b"CREATE VIEW v;\n".to_vec(),
            ready: Vec::new(),
            given: 0,
            held: Vec::new(),
            ended: false,
        };
        let mut read = Vec::new();
        edited.read_to_end(&mut read).unwrap();
        read
    }

    #[test]
    fn a_whole_dump_gets_its_ending_before_its_last_line_and_one_cut_off_gets_none() {
        let rows = "x__replaced_0\n".repeat(100);
        for pieces in [1, 7, 100, 1 << 20] {
            let whole = format!(
                "-- of x__replaced_0\n-- Host: x__replaced_0  Database: x__replaced_0\n{rows}\n-- Dump completed\n"
            );
            let expected = format!(
                "-- of x__replaced_0\n-- Host: x__replaced_0  Database: x?;\n{rows}\nCREATE VIEW v;\n-- Dump completed\n"
            );
            assert_eq!(edited(whole.as_bytes(), pieces), expected.as_bytes());
            for cut in ["", "-- Dump completed\nx", "-- Dump comp"] {
                let cut = format!("{rows}{cut}");
                assert_eq!(edited(cut.as_bytes(), pieces), cut.as_bytes());
            }
            assert_eq!(edited(b"", pieces), b"");
        }
    }

    #[test]
    fn a_delimiter_is_the_same_for_the_same_definitions_alone() {
        let first = delimiter_for(&[b"CREATE VIEW a", b"CREATE VIEW b"]);
        assert_eq!(first, delimiter_for(&[b"CREATE VIEW a", b"CREATE VIEW b"]));
        assert_ne!(first, delimiter_for(&[b"CREATE VIEW a", b"CREATE VIEW c"]));
        assert_ne!(first, delimiter_for(&[b"CREATE VIEW aCREATE VIEW b"]));
    }
}
