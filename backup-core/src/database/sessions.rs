//! The sessions of one import. The rows of a table go to two in turn, for of one, client and server wait for each other: one reads while the other has
//! nothing to do. All else goes to the first, in the order of the dump.
//!
//! Never: rows whose order only the dump tells (those of a table without a primary key) in any other; a statement of the dump in the second session that is neither
//! rows nor a setting; rows there that begin before their table is there, or anything after them before they are in; an import taken for whole of which rows are not
//! known to be in. That is of dumps as the dump programs write them. What else a tenant writes, he may do with his own schema.

use std::io::{Read, Write};
use std::process::{ChildStdin, ChildStdout};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use crate::database::rewrite::{
    DELIMITER, Script, conditional_comment, find, quoted_identifier, starts_with_any,
};
use crate::error::{Error, ErrorKind, Result};
use crate::process::Running;

const BUFFER_BYTES: usize = 256 << 10;
/// Small statements of rows are not given to one session each, but as many as these.
const TURN_BYTES: usize = 64 << 10;
/// Where so much was set before there was any large table, the second session is opened, to be told.
const SETTINGS_BYTES: usize = 64 << 10;
/// Of an answer, so much is kept: more than the longest that is waited for.
const TAIL_BYTES: usize = 256;
/// What is set in a session, as far as it says what becomes of a row, and where it is. It is never the same in two that wait for each other's locks.
const SETTINGS: &str = "SHA2(CONCAT_WS(' ', IF(@@autocommit AND NOT @@unique_checks AND NOT @@foreign_key_checks, '', RAND()), @@time_zone, @@sql_mode, \
    @@character_set_client, @@character_set_connection, @@collation_connection, @@character_set_database, @@hostname, @@port), 256)";

/// The sessions of an import, as a place for the text of its dump.
pub(super) struct Sessions<'a> {
    open: &'a dyn Fn() -> Result<Running>,
    first: Session,
    second: Second,
    navigator: Navigator,
    /// Whom what comes next is for.
    target: Target,
    /// What was not written to it yet.
    out: Vec<u8>,
    /// How much came for it since it was aimed at, in bytes.
    turn: usize,
    /// Rows are with both sessions, and nobody knows of which they are done.
    are_both_at_rows: bool,
    /// One that ended before the dump did, and takes no more.
    ended: Option<Target>,
}

enum Second {
    /// Nobody needed it yet. What it is to be told first.
    NotOpened(Vec<u8>),
    Open(Session),
    None,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Target {
    First,
    Second,
    Both,
}

impl<'a> Sessions<'a> {
    /// `open` starts a client program that reads a script and prints answers at once.
    ///
    /// # Errors
    /// Those of `open`.
    pub(super) fn new(open: &'a dyn Fn() -> Result<Running>, may_be_two: bool) -> Result<Self> {
        Ok(Self {
            first: Session::new(open()?)?,
            open,
            second: match may_be_two {
                true => Second::NotOpened(Vec::new()),
                false => Second::None,
            },
            navigator: Navigator::default(),
            target: Target::First,
            out: Vec::with_capacity(BUFFER_BYTES + 4096),
            turn: 0,
            are_both_at_rows: false,
            ended: None,
        })
    }

    /// Whether a session takes no more: why, [`Sessions::finish`] tells.
    pub(super) fn has_ended(&self) -> bool {
        self.ended.is_some()
    }

    /// The end of the dump. Whether it was taken for that: a statement of ours was answered. The second session has answered one after its last rows.
    ///
    /// # Errors
    /// What a client program ended with.
    pub(super) fn finish(mut self) -> Result<bool> {
        self.await_rows();
        self.write_out();
        match (self.ended, self.second) {
            (Some(Target::Second), Second::Open(second)) => second.end().map(|()| false),
            (Some(_), _) => self.first.end().map(|()| false),
            (None, second) => {
                if let Second::Open(second) = second {
                    // Of a session that has nothing to do any more it does not matter how it ends.
                    let _ = second.end();
                }
                self.first.close().wait()
            }
        }
    }

    fn begin(&mut self, course: Course) {
        match course {
            Course::Rows => {
                self.divide_rows();
                if !self.are_both_at_rows {
                    self.aim(Target::First);
                } else if self.turn >= TURN_BYTES {
                    self.aim(match self.target {
                        Target::First | Target::Both => Target::Second,
                        Target::Second => Target::First,
                    });
                }
            }
            Course::Alone => {
                self.await_rows();
                self.aim(Target::First);
            }
            Course::Setting => {
                self.await_rows();
                self.aim(Target::Both);
            }
            Course::Nothing => self.aim(Target::First),
        }
    }

    fn aim(&mut self, target: Target) {
        if target != self.target {
            self.write_out();
            self.target = target;
            self.turn = 0;
        }
    }

    /// Let the second session begin with rows: the first is done with all before them and locks nothing any more, and what is set in both is the same.
    fn divide_rows(&mut self) {
        if self.are_both_at_rows || self.ended.is_some() || matches!(self.second, Second::None) {
            return;
        }
        self.aim(Target::First);
        self.out.extend_from_slice(b"UNLOCK TABLES;\n");
        self.write_out();
        let Some(set) = self.first.settings() else {
            self.ended = Some(Target::First);
            return;
        };
        self.open_second();
        let Second::Open(second) = &mut self.second else {
            return;
        };
        match second.settings() {
            Some(other) if is_told(&set) && other == set => {
                self.are_both_at_rows = true;
                self.turn = TURN_BYTES;
            }
            _ => self
                .go_on_alone("the other one is not let in, or what is set there is not the same"),
        }
    }

    fn open_second(&mut self) {
        let Second::NotOpened(settings) = &mut self.second else {
            return;
        };
        let settings = std::mem::take(settings);
        self.second = Second::None;
        match (self.open)().and_then(Session::new) {
            Ok(mut second) => {
                // Whether it is let in shows when it is asked, which it cannot be at any time: it may have been told of another delimiter.
                second.write(&settings);
                self.second = Second::Open(second);
            }
            Err(error) => tracing::debug!("one session imports alone: {}", error.chain()),
        }
    }

    /// The second session has no rows that are not known to be in: nothing is lost with it.
    fn go_on_alone(&mut self, why: &str) {
        if let Second::Open(second) = std::mem::replace(&mut self.second, Second::None) {
            let end = second.end().err().map(|error| error.chain());
            tracing::debug!(
                "one session imports alone: {why} {}",
                end.unwrap_or_default()
            );
        }
    }

    /// Have the rows all in before anything else. The first session needs no waiting for: what follows is for it.
    fn await_rows(&mut self) {
        if !self.are_both_at_rows {
            return;
        }
        self.write_out();
        self.are_both_at_rows = false;
        self.aim(Target::First);
        if let Second::Open(second) = &mut self.second
            && self.ended.is_none()
            && !second.answers()
        {
            self.ended = Some(Target::Second);
        }
    }

    fn write_out(&mut self) {
        if self.out.is_empty() {
            return;
        }
        if self.ended.is_none() && self.target != Target::Second && !self.first.write(&self.out) {
            self.ended = Some(Target::First);
        }
        if self.ended.is_none() && self.target != Target::First {
            self.write_out_to_second();
        }
        self.out.clear();
    }

    fn write_out_to_second(&mut self) {
        match &mut self.second {
            Second::Open(second) => match second.write(&self.out) {
                true => {}
                false if self.are_both_at_rows => self.ended = Some(Target::Second),
                false => self.go_on_alone("the other one has ended"),
            },
            Second::NotOpened(settings) => {
                settings.extend_from_slice(&self.out);
                if settings.len() > SETTINGS_BYTES {
                    self.open_second();
                }
            }
            Second::None => {}
        }
    }
}

impl Script for Sessions<'_> {
    fn line(&mut self, head: &[u8], begins_statement: bool, delimiter: &[u8]) {
        if let Some(course) = self.navigator.line(head, begins_statement, delimiter) {
            self.begin(course);
        }
    }

    fn text(&mut self, text: &[u8]) {
        self.turn = self.turn.saturating_add(text.len());
        self.out.extend_from_slice(text);
        if self.out.len() >= BUFFER_BYTES {
            self.write_out();
        }
    }
}

/// A client program that reads a script.
struct Session {
    running: Running,
    stdin: Option<ChildStdin>,
    printed: Arc<Printed>,
}

/// One that is given no more, and its answer to the last statement.
struct Closed {
    running: Running,
    printed: Arc<Printed>,
    token: String,
}

impl Session {
    fn new(mut running: Running) -> Result<Self> {
        let stdout = running.take_stdout();
        // Statements have about a megabyte: one is there already when that before it is done.
        running.widen();
        let (Some(stdin), Some(stdout)) = (running.take_stdin(), stdout) else {
            return Err(Error::new(
                ErrorKind::Failed,
                "the client program has no input or output",
            ));
        };
        Ok(Self {
            running,
            stdin: Some(stdin),
            printed: Printed::by(stdout),
        })
    }

    /// Whether it took it. A client that ended takes no more; why, its exit status and its last lines tell.
    fn write(&mut self, text: &[u8]) -> bool {
        self.stdin
            .as_mut()
            .is_some_and(|stdin| stdin.write_all(text).is_ok())
    }

    /// Whether it is done with all that it was given, without an error.
    fn answers(&mut self) -> bool {
        self.ask("'answered'").is_some()
    }

    /// What is set in it, once it is done with all that it was given; none where it ended before.
    fn settings(&mut self) -> Option<Vec<u8>> {
        self.ask(SETTINGS)
    }

    /// Where the dump has left a quote or a comment open, the question would only be more of it, and be waited for: so a line follows that closes any, and is an error
    /// then.
    fn ask(&mut self, what: &str) -> Option<Vec<u8>> {
        let token = token();
        let ask = format!("\nSELECT {what}, '{token}';\n-- '%;\"%;`%;*/%;\nDO 0;\n");
        match self.write(ask.as_bytes()) {
            true => self.printed.wait_for(&token),
            false => None,
        }
    }

    /// What a program that takes no more ended with.
    fn end(self) -> Result<()> {
        drop(self.stdin);
        self.running.wait()
    }

    fn close(mut self) -> Closed {
        let token = token();
        // A dump may have said that it commits by itself, and not have done so. Not before the question: as a name it would close what is not closed.
        self.write(format!("\nSELECT '{token}';\nCOMMIT;\n").as_bytes());
        Closed {
            running: self.running,
            printed: self.printed,
            token,
        }
    }
}

impl Closed {
    /// Whether the last that it did was to answer.
    fn wait(self) -> Result<bool> {
        let answered = self.printed.wait_for(&self.token).is_some();
        self.running.wait().map(|()| answered)
    }
}

/// Whether that is an answer to [`SETTINGS`] and not, say, that there is none.
fn is_told(set: &[u8]) -> bool {
    let set = set.trim_ascii_end();
    set.len() == 64 && set.iter().all(u8::is_ascii_hexdigit)
}

/// What nobody can guess.
fn token() -> String {
    format!("{:032x}", rand::random::<u128>())
}

/// What a client printed last: a dump may have it print any amount.
#[derive(Default)]
struct Printed {
    state: Mutex<PrintedState>,
    more: Condvar,
}

#[derive(Default)]
struct PrintedState {
    tail: Vec<u8>,
    is_all: bool,
}

impl Printed {
    fn by(mut stdout: ChildStdout) -> Arc<Self> {
        let this = Arc::new(Self::default());
        let printed = Arc::clone(&this);
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            loop {
                match stdout.read(&mut buffer) {
                    Ok(n) if n > 0 => printed.add(buffer.get(..n).unwrap_or_default()),
                    Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                    Ok(_) | Err(_) => break,
                }
            }
            printed.lock().is_all = true;
            printed.more.notify_all();
        });
        this
    }

    fn lock(&self) -> MutexGuard<'_, PrintedState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, text: &[u8]) {
        let mut state = self.lock();
        state.tail.extend_from_slice(text);
        let surplus = state.tail.len().saturating_sub(TAIL_BYTES);
        state.tail.drain(..surplus);
        drop(state);
        self.more.notify_all();
    }

    /// What stands before the token in the last line, waited for until there is no more: its limit and its cancellation end the program.
    fn wait_for(&self, token: &str) -> Option<Vec<u8>> {
        let end = format!("{token}\n").into_bytes();
        let state = self
            .more
            .wait_while(self.lock(), |state| {
                !state.is_all && !state.tail.ends_with(&end)
            })
            .unwrap_or_else(PoisonError::into_inner);
        let before = state.tail.strip_suffix(end.as_slice())?;
        before
            .rsplit(|&byte| byte == b'\n')
            .next()
            .map(<[u8]>::to_vec)
    }
}

/// Where a statement goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Course {
    /// To the first session, once all before it is done.
    Alone,
    /// To each session.
    Setting,
    /// To any session that is free: some of many rows.
    Rows,
    /// It is none, but a comment or an empty line.
    Nothing,
}

/// Tells by their heads which statements are rows that need no order. Only what the dump programs write is known, and all else is [`Course::Alone`].
#[derive(Default)]
struct Navigator {
    unique_checks_off: bool,
    foreign_key_checks_off: bool,
    /// The dump commits by itself, or is written as by no dump program.
    is_strange: bool,
    table: Option<Table>,
}

impl Navigator {
    /// Where the statement goes that begins with this line; none where the line goes on with one.
    fn line(&mut self, head: &[u8], begins_statement: bool, delimiter: &[u8]) -> Option<Course> {
        let sets_delimiter = head.starts_with(DELIMITER);
        if !begins_statement {
            self.is_strange |= sets_delimiter;
            if let Some(table) = &mut self.table {
                table.look_at(head);
            }
            return None;
        }
        if sets_delimiter {
            self.table = None;
            return Some(Course::Setting);
        }
        if head.starts_with(b"--") || head.trim_ascii().is_empty() {
            return Some(Course::Nothing);
        }
        if begins_to_set(head) {
            if is_setting(head, delimiter) {
                self.set(head);
                return Some(Course::Setting);
            }
            self.is_strange = true;
        }
        let may_be_divided = self.unique_checks_off
            && self.foreign_key_checks_off
            && delimiter == b";"
            && !self.is_strange;
        let is_filled = self.table.as_ref().is_some_and(Table::is_filled);
        let table = self.table.take();
        self.table = table
            .and_then(|table| table.followed_by(head))
            .or_else(|| Table::created_by(head));
        // Not the first rows: servers have a faster way for those of an empty table, and it takes one session at a time.
        match self.table {
            Some(_) if is_filled && may_be_divided => Some(Course::Rows),
            _ => Some(Course::Alone),
        }
    }

    fn set(&mut self, head: &[u8]) {
        let head = head.to_ascii_uppercase();
        for (off, name) in [
            (&mut self.unique_checks_off, "UNIQUE_CHECKS"),
            (&mut self.foreign_key_checks_off, "FOREIGN_KEY_CHECKS"),
        ] {
            if contains(&head, name) {
                *off = contains(&head, &format!(" {name}=0"));
            }
        }
        self.is_strange |= contains(&head, "AUTOCOMMIT");
    }
}

fn begins_to_set(line: &[u8]) -> bool {
    conditional_comment(line)
        .unwrap_or(line)
        .get(..4)
        .is_some_and(|word| word.eq_ignore_ascii_case(b"SET "))
}

/// A whole line that sets without calling anything, and nothing after it.
fn is_setting(line: &[u8], delimiter: &[u8]) -> bool {
    let Some(inner) = line.trim_ascii_end().strip_suffix(delimiter) else {
        return false;
    };
    let upper = inner.to_ascii_uppercase();
    line.ends_with(b"\n")
        && !inner.iter().any(|byte| b";(`".contains(byte))
        && !contains(&upper, "SET STATEMENT ")
        && !contains(&upper, " FOR ")
}

fn contains(head: &[u8], what: &str) -> bool {
    find(head, what.as_bytes()).is_some()
}

/// The table that a dump is at: nothing has come since its definition but settings, its lock and its rows.
struct Table {
    /// In its quotes.
    name: Vec<u8>,
    has_primary_key: bool,
    is_plain: bool,
    stage: Stage,
}

/// What may be in a table whose rows two sessions can insert without one ever waiting for a row of the other, or minding that it comes first. Some kinds of keys
/// lock more than their row, full texts want their documents in order, and each partition has a first row.
const PLAIN: [&[u8]; 5] = [
    b"  `",
    b"  PRIMARY KEY (",
    b"  KEY `",
    b"  UNIQUE KEY `",
    b"  CONSTRAINT `",
];
const NOT_PLAIN: [&str; 3] = [" USING HASH", "WITHOUT OVERLAPS", "FTS_DOC_ID"];

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    Definition,
    Defined,
    Locked,
    Filled,
}

impl Table {
    fn created_by(head: &[u8]) -> Option<Self> {
        let rest = head.strip_prefix(b"CREATE TABLE ")?;
        let (_, after) = quoted_identifier(rest)?;
        Some(Self {
            name: rest.get(..rest.len() - after.len())?.to_vec(),
            has_primary_key: false,
            is_plain: true,
            stage: Stage::Definition,
        })
    }

    /// A line of the definition, as the servers write it.
    fn look_at(&mut self, line: &[u8]) {
        if self.stage != Stage::Definition {
            return;
        }
        if line.starts_with(b") ENGINE=InnoDB ") && line.trim_ascii_end().ends_with(b";") {
            self.stage = Stage::Defined;
        }
        self.has_primary_key |= line.starts_with(b"  PRIMARY KEY (");
        self.is_plain &= self.stage == Stage::Defined || starts_with_any(line, &PLAIN);
        self.is_plain &= !NOT_PLAIN.iter().any(|what| contains(line, what));
    }

    /// The same with one statement more, if it is one of those that the dump programs write of a table and its rows.
    fn followed_by(mut self, head: &[u8]) -> Option<Self> {
        let is = |before: &[u8], after: &[u8]| {
            let rest = head.strip_prefix(before)?;
            rest.strip_prefix(self.name.as_slice())?
                .starts_with(after)
                .then_some(())
        };
        self.stage = match self.stage {
            Stage::Defined => is(b"LOCK TABLES ", b" WRITE;").map(|()| Stage::Locked)?,
            Stage::Locked if is(b"/*!40000 ALTER TABLE ", b" DISABLE KEYS */;").is_some() => {
                Stage::Locked
            }
            Stage::Locked | Stage::Filled => {
                is(b"INSERT INTO ", b" VALUES").map(|()| Stage::Filled)?
            }
            Stage::Definition => return None,
        };
        Some(self)
    }

    fn is_filled(&self) -> bool {
        self.has_primary_key && self.is_plain && self.stage == Stage::Filled
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;
    use std::time::Duration;

    use secrecy::SecretString;
    use xtask::mariadb::MariaDb;

    use super::*;
    use crate::database::rewrite::{Definer, Rewriter};
    use crate::database::{Endpoint, ImportAccount, Server, import, prepare_shadow};
    use crate::progress::Control;

    /// The heads of a dump's statements by where they go.
    #[derive(Default)]
    struct Recorder {
        navigator: Navigator,
        rows: Vec<String>,
        settings: Vec<String>,
    }

    impl Script for Recorder {
        fn line(&mut self, head: &[u8], begins_statement: bool, delimiter: &[u8]) {
            let text = || String::from_utf8_lossy(head).trim_end().to_owned();
            match self.navigator.line(head, begins_statement, delimiter) {
                Some(Course::Rows) => self.rows.push(text()),
                Some(Course::Setting) => self.settings.push(text()),
                Some(Course::Alone | Course::Nothing) | None => {}
            }
        }

        fn text(&mut self, _text: &[u8]) {}
    }

    fn rewriter() -> Rewriter {
        let definer = Definer::parse("customer_7@%").unwrap();
        Rewriter::new(&definer, &definer, "customer_7", "customer_7__restore_0")
    }

    fn recorded(dump: &str) -> Recorder {
        let mut rewriter = rewriter();
        let mut recorder = Recorder::default();
        rewriter.feed(dump.as_bytes(), &mut recorder).unwrap();
        rewriter.finish(&mut recorder).unwrap();
        recorder
    }

    const HEAD: &str = "/*M!999999\\- enable the sandbox mode */ \n-- MariaDB dump\n\n/*!40101 SET NAMES utf8mb4 */;\n/*!40014 SET @OLD_UNIQUE_CHECKS=@@UNIQUE_CHECKS, UNIQUE_CHECKS=0 */;\n\
        /*!40014 SET @OLD_FOREIGN_KEY_CHECKS=@@FOREIGN_KEY_CHECKS, FOREIGN_KEY_CHECKS=0 */;\n\n";
    const TABLE: &str = "--\n-- Table structure for table `t`\n--\n\nDROP TABLE IF EXISTS `t`;\n/*!40101 SET character_set_client = utf8mb4 */;\n\
        CREATE TABLE `t` (\n  `id` int(11) NOT NULL,\n  PRIMARY KEY (`id`),\n  KEY `x` (`id`)\n) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4;\n\
        /*!40101 SET character_set_client = @saved_cs_client */;\n\n";
    const ROWS: &str = "LOCK TABLES `t` WRITE;\n/*!40000 ALTER TABLE `t` DISABLE KEYS */;\nINSERT INTO `t` VALUES\n(1),\n(2);\nINSERT INTO `t` VALUES (3);\n\
        INSERT INTO `t` VALUES\n(4);\n/*!40000 ALTER TABLE `t` ENABLE KEYS */;\nUNLOCK TABLES;\n";

    #[test]
    fn rows_of_a_table_with_a_primary_key_are_divided_from_the_second_statement_on() {
        let recorder = recorded(&format!("{HEAD}{TABLE}{ROWS}{TABLE}{ROWS}"));
        let rows = ["INSERT INTO `t` VALUES (3);", "INSERT INTO `t` VALUES"];
        assert_eq!(recorder.rows, [rows, rows].concat());
        assert_eq!(recorder.settings.len(), 3 + 2 + 2);
        // The words of another version of the programs, and a name that has to be quoted twice.
        let other = format!("{HEAD}{TABLE}{ROWS}")
            .replace("/*!40101 SET", "/*!50503 SET")
            .replace("`t`", "`a``b\n;`");
        assert_eq!(
            recorded(&other).rows.len(),
            0,
            "over two lines: as it stands"
        );
        assert_eq!(recorded(&other.replace("\n;", ";")).rows.len(), 2);
    }

    #[test]
    fn what_needs_an_order_or_is_not_as_the_dump_programs_write_it_stays_in_one_session() {
        let dump = format!("{HEAD}{TABLE}{ROWS}");
        for (what, replaced, by) in [
            (
                "no primary key",
                "  PRIMARY KEY (`id`),\n",
                "  UNIQUE KEY `y` (`id`),\n",
            ),
            ("another engine", "ENGINE=InnoDB", "ENGINE=MyISAM"),
            (
                "foreign keys are checked",
                " FOREIGN_KEY_CHECKS=0",
                " FOREIGN_KEY_CHECKS=1",
            ),
            ("unique keys are checked", ", UNIQUE_CHECKS=0", ""),
            (
                "its own transactions",
                "LOCK TABLES `t` WRITE;\n",
                "LOCK TABLES `t` WRITE;\nset autocommit=0;\nSET autocommit=0;\n",
            ),
            (
                "a trigger before the rows",
                "LOCK TABLES",
                "CREATE TRIGGER x BEFORE INSERT ON `t` FOR EACH ROW SET @a = 1;\nLOCK TABLES",
            ),
            ("no lock", "LOCK TABLES `t` WRITE;\n", ""),
            (
                "another table's lock",
                "LOCK TABLES `t` WRITE;",
                "LOCK TABLES `t2` WRITE;",
            ),
            (
                "named columns",
                "INSERT INTO `t` VALUES",
                "INSERT INTO `t` (`id`) VALUES",
            ),
            ("replaced rows", "INSERT INTO", "REPLACE INTO"),
            ("something between the rows", "(2);\n", "(2);\nDO 1;\n"),
            (
                "another delimiter",
                "\n\nDROP",
                "\nDELIMITER ;;\n\n;;\nDROP",
            ),
            (
                "a delimiter within a statement",
                "(1),\n",
                "(1),\nDELIMITER ;\n",
            ),
        ] {
            assert_eq!(recorded(&dump).rows.len(), 2);
            let changed = dump.replace(replaced, by);
            assert_ne!(changed, dump, "{what}");
            assert_eq!(recorded(&changed).rows, Vec::<String>::new(), "{what}");
        }
    }

    #[test]
    fn what_is_a_setting_is_a_line_that_sets_and_does_nothing_else() {
        for line in [
            "SET @saved_cs_client     = @@character_set_client;\n",
            "/*!50003 SET sql_mode              = 'STRICT_TRANS_TABLES' */ ;\n",
            "/*M!100616 SET @OLD_NOTE_VERBOSITY=@@NOTE_VERBOSITY, NOTE_VERBOSITY=0 */;\n",
        ] {
            assert!(is_setting(line.as_bytes(), b";"), "{line}");
        }
        let in_an_event = b"/*!50003 SET character_set_client  = utf8mb4 */ ;;\n";
        assert!(is_setting(in_an_event, b";;"));
        assert!(!is_setting(in_an_event, b";"));
        assert!(!is_setting(b"SET @a = 1;\n", b";;"));
        for line in [
            "SET @a = f();\n",
            "SET @a = 1; DROP TABLE t;\n",
            "SET @a =\n",
            "SET @a = 1;",
            "SET x`;\n",
            "SET STATEMENT max_statement_time=1 FOR DELETE FROM t;\n",
            "SET @a = NEXT VALUE FOR s;\n",
        ] {
            assert!(!is_setting(line.as_bytes(), b";"), "{line}");
        }
    }

    proptest::proptest! {
        #[test]
        fn in_whatever_pieces_a_dump_comes_its_statements_go_the_same_way(sizes in proptest::collection::vec(1usize..90, 1..8)) {
            let dump = format!("{HEAD}{TABLE}{ROWS}{TABLE}{ROWS}");
            let (mut rewriter, mut recorder) = (rewriter(), Recorder::default());
            let mut rest = dump.as_bytes();
            for size in sizes.into_iter().cycle() {
                let (piece, after) = rest.split_at(size.min(rest.len()));
                rewriter.feed(piece, &mut recorder).unwrap();
                rest = after;
                if rest.is_empty() {
                    break;
                }
            }
            rewriter.finish(&mut recorder).unwrap();
            let whole = recorded(&dump);
            proptest::prop_assert_eq!(recorder.rows, whole.rows);
            proptest::prop_assert_eq!(recorder.settings, whole.settings);
        }
    }

    /// A customer who has two tables with rows for some statements each, and their dump.
    fn server_with_rows(options: &[&str]) -> (MariaDb, Server, Vec<u8>) {
        let mariadb = MariaDb::start_with(options).unwrap();
        mariadb
            .sql(
                "CREATE DATABASE customer_7; USE customer_7; CREATE USER customer_7@'%' IDENTIFIED BY 'x'; GRANT ALL ON customer_7.* TO customer_7@'%';
                 CREATE TABLE customer_7.t (id INT PRIMARY KEY, body TEXT);
                 INSERT INTO customer_7.t SELECT seq, REPEAT(SHA2(seq, 512), 8) FROM seq_1_to_5000;
                 CREATE TABLE customer_7.u LIKE customer_7.t; INSERT INTO customer_7.u SELECT * FROM customer_7.t;",
            )
            .unwrap();
        let server = Server::new(
            Endpoint::Socket(mariadb.socket()),
            Vec::new(),
            "root",
            SecretString::from(mariadb.root_password()),
        );
        let limit = Duration::from_secs(120);
        let mut dump =
            crate::database::dump(&server, "customer_7", limit, &Control::default()).unwrap();
        let mut bytes = Vec::new();
        dump.take_reader().unwrap().read_to_end(&mut bytes).unwrap();
        dump.finish().unwrap();
        (mariadb, server, bytes)
    }

    /// The server that a dump is imported on, while that is under way.
    struct Scene {
        server: Server,
        schema: String,
    }

    impl Scene {
        fn sql(&self, sql: &str) {
            self.server.query(sql, &Control::default().cancel).unwrap();
        }

        /// The sessions of the import, the oldest first, once there are so many.
        fn sessions(&self, count: usize) -> Vec<String> {
            let ask = format!(
                "SELECT ID FROM information_schema.PROCESSLIST WHERE DB = '{}' ORDER BY ID;",
                self.schema
            );
            let deadline = std::time::Instant::now() + Duration::from_secs(30);
            loop {
                let found = self.server.query(&ask, &Control::default().cancel).unwrap();
                let found = found.concat().into_iter().map(String::from_utf8);
                let found: Vec<_> = found.map(std::result::Result::unwrap).collect();
                if found.len() == count {
                    return found;
                }
                assert!(
                    std::time::Instant::now() < deadline,
                    "{} sessions, not {count}",
                    found.len()
                );
                thread::yield_now();
            }
        }
    }

    type Act = Box<dyn FnOnce(&Scene) + Send>;

    /// A dump, and what is done when it was read up to some bytes of it.
    struct WatchedDump {
        dump: Cursor<Vec<u8>>,
        scene: Scene,
        acts: std::collections::VecDeque<(usize, Act)>,
    }

    impl Read for WatchedDump {
        fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
            let at = usize::try_from(self.dump.position()).unwrap();
            if let Some((_, act)) = self.acts.pop_front_if(|(when, _)| *when == at) {
                act(&self.scene);
            }
            let up_to = self.acts.front().map_or(usize::MAX, |(when, _)| when - at);
            (&mut self.dump).take(up_to as u64).read(buffer)
        }
    }

    /// Import the dump and do something when it was read up to those bytes; where that succeeds, all rows have to be there.
    fn import_and<const N: usize>(
        mariadb: &MariaDb,
        server: &Server,
        dump: &[u8],
        acts: [(usize, Act); N],
    ) -> Result<()> {
        let control = Control::default();
        let account = ImportAccount::Customer {
            user: "customer_7".to_owned(),
            password: SecretString::from("x"),
        };
        let mut shadow = prepare_shadow(server, "customer_7", &account, &control).unwrap();
        let schema = shadow.schema().to_owned();
        let watched = WatchedDump {
            dump: Cursor::new(dump.to_vec()),
            scene: Scene {
                server: server.clone(),
                schema: schema.clone(),
            },
            acts: acts.into(),
        };
        let limit = Duration::from_secs(120);
        import(server, &mut shadow, Box::new(watched), limit, &control)?;
        for table in ["t", "u"] {
            let sums = mariadb
                .sql(&format!(
                    "CHECKSUM TABLE customer_7.{table}; CHECKSUM TABLE `{schema}`.{table};"
                ))
                .unwrap();
            let sums: Vec<_> = sums.lines().map(|line| line.rsplit('\t').next()).collect();
            assert_eq!(sums[0], sums[1]);
        }
        Ok(())
    }

    /// Import the dump; at its end so many sessions are at it.
    fn import_with(mariadb: &MariaDb, server: &Server, dump: &[u8], count: usize) {
        let look: Act = Box::new(move |scene| drop(scene.sessions(count)));
        import_and(mariadb, server, dump, [(dump.len(), look)]).unwrap();
    }

    fn end_the_second(scene: &Scene) {
        scene.sql(&format!("KILL {};", scene.sessions(2)[1]));
    }

    /// Where the dump comes to this for the nth time.
    fn place_of(dump: &[u8], what: &str, nth: usize) -> usize {
        let mut found = dump
            .windows(what.len())
            .enumerate()
            .filter(|(_, window)| *window == what.as_bytes());
        found.nth(nth).unwrap().0
    }

    #[test]
    fn a_session_that_ends_while_it_has_nothing_to_do_is_done_without() {
        let (mariadb, server, dump) = server_with_rows(&[]);
        let between = place_of(&dump, "-- Table structure for table `u`", 0);
        let end: Act = Box::new(end_the_second);
        import_and(&mariadb, &server, &dump, [(between, end)]).unwrap();
    }

    #[test]
    fn a_session_that_ends_while_it_is_at_rows_ends_the_import() {
        let (mariadb, server, dump) = server_with_rows(&[]);
        let within = place_of(&dump, "INSERT INTO `u`", 3);
        let end: Act = Box::new(end_the_second);
        let error = import_and(&mariadb, &server, &dump, [(within, end)]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unreachable, "{error:?}");
    }

    #[test]
    fn many_settings_before_the_first_large_table_and_one_among_its_rows_are_in_both() {
        let (mariadb, server, dump) = server_with_rows(&[]);
        let many = "DELIMITER ;;\nSET @a = 1 ;;\nDELIMITER ;\n".repeat(SETTINGS_BYTES / 30);
        let dump = with(&dump, "SQL_MODE='NO_AUTO_VALUE_ON_ZERO' */;\n", &many);
        let among = place_of(&dump, "INSERT INTO `t`", 3);
        let (before, after) = dump.split_at(among);
        let dump = [before, b"SET time_zone = '+05:00';\n", after].concat();
        import_with(&mariadb, &server, &dump, 2);
    }

    #[test]
    fn rows_are_imported_by_two_sessions_and_all_are_there() {
        let (mariadb, server, dump) = server_with_rows(&[]);
        import_with(&mariadb, &server, &dump, 2);
    }

    fn with(dump: &[u8], at: &str, more: &str) -> Vec<u8> {
        let dump = String::from_utf8(dump.to_vec()).unwrap();
        assert_eq!(dump.matches(at).count(), 1);
        dump.replace(at, &format!("{at}{more}")).into_bytes()
    }

    #[test]
    fn a_session_that_waits_for_the_other_is_kept_by_a_server_that_ends_idle_ones() {
        let (mariadb, server, dump) = server_with_rows(&["--wait-timeout=1"]);
        let dump = with(
            &dump,
            "DROP TABLE IF EXISTS `u`;\n",
            "DO SLEEP(3);\nSET @a = 1;\n",
        );
        import_with(&mariadb, &server, &dump, 2);
    }

    #[test]
    fn where_a_dump_sets_what_only_one_session_was_told_that_imports_alone() {
        let (mariadb, server, dump) = server_with_rows(&[]);
        let head = "SQL_MODE='NO_AUTO_VALUE_ON_ZERO' */;\n";
        let seen = with(&dump, head, "SET time_zone = '+05:00';\n");
        import_with(&mariadb, &server, &seen, 2);
        for unseen in [
            "SET time_zone = CONCAT('+05', ':00');\n",
            "SET\ntime_zone = '+05:00';\n",
        ] {
            let unseen = with(&dump, head, unseen);
            import_with(&mariadb, &server, &unseen, 1);
        }
    }

    #[test]
    fn an_account_that_may_have_one_session_imports_alone() {
        let (mariadb, server, dump) = server_with_rows(&["--max-user-connections=100"]);
        let limit: Act = Box::new(|scene| {
            scene.sessions(1);
            scene.sql("SET GLOBAL max_user_connections = 1;");
        });
        let look: Act = Box::new(|scene| {
            scene.sessions(1);
            scene.sql("SET GLOBAL max_user_connections = 100;");
        });
        let acts = [
            (place_of(&dump, "INSERT INTO `t`", 0), limit),
            (dump.len(), look),
        ];
        import_and(&mariadb, &server, &dump, acts).unwrap();
    }

    #[test]
    fn what_is_not_closed_ends_the_import_and_is_not_waited_for() {
        let (mariadb, server, dump) = server_with_rows(&[]);
        let head = "SQL_MODE='NO_AUTO_VALUE_ON_ZERO' */;\n";
        for open in ["/* x", "DO 'x", "DO `x", "DO \"x"] {
            let dump = with(&dump, head, &format!("{open}\n;\n"));
            let error = import_and(&mariadb, &server, &dump, []).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Failed, "{open}: {error:?}");
        }
    }
}
