//! What is changed in a dump on its way into a shadow schema: definers, the schema named in `ALTER DATABASE`, events
//! put to sleep, the live schema's name taken out of triggers' heads and views, the mark of the sandbox mode and what
//! concerns replication removed.
//!
//! Works on lines, at the head of statements, in the forms that the dump programs write. Never: a byte of row data or of
//! a routine's body changed; more than the head of a line, or one view, in memory. It is no guard against hostile dumps: that
//! is the account under which an import runs.

use crate::error::{Error, ErrorKind, Result};

/// As much of a line is looked at; what is to be found there (names of at most 64 characters) is well within.
const HEAD_BYTES: usize = 8 << 10;
/// A view's line is looked at as a whole, for tables are named anywhere in it. One that is longer passes as it is.
const VIEW_BYTES: usize = 1 << 20;
const TAIL_BYTES: usize = 64;

/// An account as it stands in a definer: `` `user`@`host` ``.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Definer {
    pub(super) user: String,
    pub(super) host: String,
}

impl Definer {
    /// `user@host`, as `CURRENT_USER()` gives it.
    pub(super) fn parse(account: &str) -> Option<Self> {
        let (user, host) = account.rsplit_once('@')?;
        Some(Self {
            user: user.to_owned(),
            host: host.to_owned(),
        })
    }

    pub(super) fn quoted(&self) -> String {
        let quote = |text: &str| text.replace('`', "``");
        format!("`{}`@`{}`", quote(&self.user), quote(&self.host))
    }
}

/// What the stream was found to hold and what was changed.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Findings {
    /// `CREATE TABLE` and `CREATE SEQUENCE` statements.
    pub(super) tables: u64,
    /// Definers other than the tenant that became the importing account, each once.
    pub(super) foreign_definers: Vec<String>,
    /// The last line says that the dump is whole.
    pub(super) whole: bool,
}

/// Where a rewritten dump goes.
pub(super) trait Script {
    /// A line begins, and whether a statement does with it. `head` is as much of it as was looked at, before definers are changed; `delimiter` ends statements there.
    fn line(&mut self, head: &[u8], begins_statement: bool, delimiter: &[u8]);

    /// More of the line, or of what is in place of it.
    fn text(&mut self, text: &[u8]);
}

impl Script for Vec<u8> {
    fn line(&mut self, _head: &[u8], _begins_statement: bool, _delimiter: &[u8]) {}

    fn text(&mut self, text: &[u8]) {
        self.extend_from_slice(text);
    }
}

/// Rewrites a dump in pieces of any size.
pub(super) struct Rewriter {
    definer: Definer,
    tenant: Definer,
    live: String,
    shadow: String,
    /// The begin of the line that is being read, until it is decided about.
    head: Vec<u8>,
    /// The line's head was decided about and passed on; the rest passes as it is.
    decided: bool,
    /// The last bytes of the line, and whether there were any but blanks.
    tail: Vec<u8>,
    first_line: bool,
    at_statement: bool,
    /// The line, up to its statement's end, is not passed on.
    dropping: bool,
    /// The line goes on with a view that the lines before began to create.
    in_view: bool,
    delimiter: Vec<u8>,
    findings: Findings,
}

impl Rewriter {
    /// For a dump of the schema `live` that goes into `shadow`; `definer` is who imports, `tenant` who is a definer of right.
    pub(super) fn new(definer: &Definer, tenant: &Definer, live: &str, shadow: &str) -> Self {
        Self {
            definer: definer.clone(),
            tenant: tenant.clone(),
            live: live.to_owned(),
            shadow: shadow.to_owned(),
            head: Vec::new(),
            decided: false,
            tail: Vec::new(),
            first_line: true,
            at_statement: true,
            dropping: false,
            in_view: false,
            delimiter: b";".to_vec(),
            findings: Findings::default(),
        }
    }

    /// The next piece of the dump; what is to be passed on is put after what `out` holds.
    pub(super) fn feed(&mut self, mut piece: &[u8], out: &mut impl Script) -> Result<()> {
        while !piece.is_empty() {
            let end = piece
                .iter()
                .position(|&byte| byte == b'\n')
                .map_or(piece.len(), |at| at + 1);
            let (part, rest) = piece.split_at(end);
            piece = rest;
            self.part_of_line(part, out)?;
        }
        Ok(())
    }

    /// The dump's end.
    pub(super) fn finish(mut self, out: &mut impl Script) -> Result<Findings> {
        if !self.head.is_empty() || self.decided {
            self.end_of_line(out)?;
        }
        Ok(self.findings)
    }

    fn part_of_line(&mut self, part: &[u8], out: &mut impl Script) -> Result<()> {
        let last = part
            .get(part.len().saturating_sub(TAIL_BYTES)..)
            .unwrap_or(part);
        self.tail.extend_from_slice(last);
        let surplus = self.tail.len().saturating_sub(TAIL_BYTES);
        self.tail.drain(..surplus);
        if self.decided {
            self.pass(part, out);
        } else {
            let mut rest = self.fill_head(part, HEAD_BYTES);
            if self.head.len() >= HEAD_BYTES && self.is_view_body() {
                rest = self.fill_head(rest, VIEW_BYTES);
            }
            if self.head.len() >= self.head_bytes() {
                self.decide(out)?;
                self.pass(rest, out);
            }
        }
        if part.ends_with(b"\n") {
            self.end_of_line(out)?;
        }
        Ok(())
    }

    /// Take of `part` what the head of a line of at most `limit` bytes has room for; the rest of it.
    fn fill_head<'a>(&mut self, part: &'a [u8], limit: usize) -> &'a [u8] {
        let room = limit.saturating_sub(self.head.len());
        let (head, rest) = part.split_at(room.min(part.len()));
        self.head.extend_from_slice(head);
        rest
    }

    fn head_bytes(&self) -> usize {
        if self.is_view_body() {
            VIEW_BYTES
        } else {
            HEAD_BYTES
        }
    }

    /// The line that says what a view shows: it stands at the begin of a statement or after the lines of a view's head.
    fn is_view_body(&self) -> bool {
        !self.dropping
            && (self.in_view && is_view(&self.head)
                || self.at_statement && is_create_view(&self.head))
    }

    fn pass(&self, part: &[u8], out: &mut impl Script) {
        if !self.dropping {
            out.text(part);
        }
    }

    fn end_of_line(&mut self, out: &mut impl Script) -> Result<()> {
        if !self.decided {
            self.decide(out)?;
        }
        self.in_view = self.at_statement
            && starts_with_any(
                &self.head,
                &[
                    b"/*!50001 CREATE ALGORITHM",
                    b"/*!50001 CREATE OR REPLACE ALGORITHM",
                ],
            )
            || self.in_view && is_view_definer(&self.head);
        let tail = self.tail.trim_ascii_end();
        // Blank lines and comments between statements change nothing.
        if !(tail.is_empty() || self.at_statement && self.is_comment()) {
            self.at_statement = tail.ends_with(&self.delimiter) || self.is_delimiter_line();
            self.findings.whole = false;
        } else if !tail.is_empty() {
            self.findings.whole = self.head.starts_with(super::dump::TRAILER);
        }
        self.in_view &= !self.at_statement;
        self.first_line = false;
        self.dropping &= !self.at_statement;
        self.head.clear();
        self.tail.clear();
        self.decided = false;
        Ok(())
    }

    fn is_comment(&self) -> bool {
        self.head.starts_with(b"--")
    }

    fn is_delimiter_line(&self) -> bool {
        self.head.starts_with(DELIMITER)
    }

    /// Look at the head of a line and pass on what becomes of it.
    fn decide(&mut self, out: &mut impl Script) -> Result<()> {
        self.decided = true;
        if self.is_view_body() && self.head.len() < VIEW_BYTES {
            // Of a view whose definer is gone, the server tells the columns with their schema.
            if let Some(unqualified) = unqualified_view(&self.head, &[&self.live]) {
                self.head = unqualified;
            }
        }
        let head = &self.head;
        if self.first_line && is_sandbox_mark(head) {
            // As if it had not been there: no statement goes on after it.
            self.tail.clear();
            return Ok(());
        }
        // What a plain mysqldump of a replicating MySQL server says of replication: no customer may, and nobody wants to here.
        self.dropping |= self.at_statement && starts_with_any(head, &REPLICATION);
        if self.dropping {
            return Ok(());
        }
        out.line(head, self.at_statement, &self.delimiter);
        if let Some(delimiter) = head.strip_prefix(DELIMITER) {
            // As the client does it: anywhere at the begin of a line.
            let delimiter = delimiter.trim_ascii();
            if !delimiter.is_empty() && delimiter.len() < TAIL_BYTES {
                self.delimiter = delimiter.to_vec();
            }
        } else if self.in_view && is_view_definer(head) {
            self.rewrite_definer(out);
            return Ok(());
        } else if self.at_statement {
            if let Some(rest) = head.strip_prefix(b"ALTER DATABASE `") {
                // Back at the quote.
                let quoted = head.get(head.len() - rest.len() - 1..).unwrap_or_default();
                if let Some((_, after)) = quoted_identifier(quoted) {
                    out.text(b"ALTER DATABASE ");
                    out.text(super::client::identifier(&self.shadow).as_bytes());
                    out.text(after);
                    return Ok(());
                }
            }
            if starts_with_any(
                head,
                &[
                    b"USE `",
                    b"CREATE DATABASE ",
                    b"DROP DATABASE ",
                    b"/*!40000 DROP DATABASE ",
                ],
            ) {
                return Err(Error::new(
                    ErrorKind::Damaged,
                    "the dump chooses its database itself (it was made with --databases); it can only be restored if it was made of one database by name",
                ));
            }
            if starts_with_any(head, &[b"CREATE TABLE `", b"CREATE SEQUENCE `"]) {
                self.findings.tables += 1;
            }
            if let Some(at) = definer_in_create(head) {
                self.rewrite_create(at, out);
                return Ok(());
            }
        }
        out.text(&self.head);
        Ok(())
    }

    /// `/*!50013 DEFINER=…`: the line that a view's definer has to itself.
    fn rewrite_definer(&mut self, out: &mut impl Script) {
        let at = find(&self.head, DEFINER).map_or(0, |at| at + DEFINER.len());
        let from = self.replace_definer(at, out);
        out.text(self.head.get(from..).unwrap_or_default());
    }

    fn rewrite_create(&mut self, at: usize, out: &mut impl Script) {
        let from = self.replace_definer(at, out);
        let rest = self.head.get(from..).unwrap_or_default();
        match unqualified_trigger(rest, &self.live).or_else(|| sleeping_event(rest)) {
            Some(changed) => out.text(&changed),
            None => out.text(rest),
        }
    }

    /// Pass on the head up to and with its definer, if that has to be made ours; where it goes on.
    fn replace_definer(&mut self, at: usize, out: &mut impl Script) -> usize {
        let (before, from) = self.head.split_at(at.min(self.head.len()));
        out.text(before);
        let Some((found, rest)) = parse_definer(from) else {
            return at;
        };
        if found == self.definer {
            out.text(from.get(..from.len() - rest.len()).unwrap_or_default());
        } else {
            out.text(self.definer.quoted().as_bytes());
        }
        if found != self.definer && found != self.tenant {
            let name = format!("{}@{}", found.user, found.host);
            // A list for a person: a hostile dump could hold any number.
            let foreign = &mut self.findings.foreign_definers;
            if foreign.len() < 20 && !foreign.contains(&name) {
                foreign.push(name);
            }
        }
        self.head.len() - rest.len()
    }
}

pub(super) const DELIMITER: &[u8] = b"DELIMITER ";
const REPLICATION: [&[u8]; 2] = [b"SET @@SESSION.SQL_LOG_BIN", b"SET @@GLOBAL.GTID_PURGED"];
const DEFINER: &[u8] = b"DEFINER=";

/// The mark alone: what follows in its line would be a statement.
fn is_sandbox_mark(line: &[u8]) -> bool {
    let line = line.trim_ascii_end();
    starts_with_any(line, &[b"/*M!999999\\-", b"/*!999999\\-"])
        && find(line, b"*/").is_some_and(|end| end + 2 == line.len())
}

fn is_view_definer(line: &[u8]) -> bool {
    conditional_comment(line).is_some_and(|rest| rest.starts_with(DEFINER))
}

fn is_view(line: &[u8]) -> bool {
    conditional_comment(line).is_some_and(|rest| rest.starts_with(b"VIEW `"))
}

/// `CREATE … VIEW`, in one line.
fn is_create_view(line: &[u8]) -> bool {
    let mut scanner = Scanner::new(line);
    scanner.skip_conditional_comment();
    if !scanner.keyword("CREATE") {
        return false;
    }
    if scanner.keyword("OR") && !scanner.keyword("REPLACE") {
        return false;
    }
    if scanner.keyword("ALGORITHM") {
        scanner.skip(b"=");
        let _ = scanner.identifier();
    }
    if scanner.keyword("DEFINER") {
        scanner.skip(b"=");
        match parse_definer(scanner.rest()) {
            Some((_, rest)) => scanner.at = line.len() - rest.len(),
            None => return false,
        }
    }
    if scanner.keyword("SQL") && !(scanner.keyword("SECURITY") && scanner.identifier().is_some()) {
        return false;
    }
    scanner.keyword("VIEW")
}

pub(super) fn starts_with_any(line: &[u8], prefixes: &[&[u8]]) -> bool {
    prefixes.iter().any(|prefix| line.starts_with(prefix))
}

pub(super) fn find(text: &[u8], what: &[u8]) -> Option<usize> {
    text.windows(what.len()).position(|window| window == what)
}

/// What follows `/*!50003 ` or `/*M!100301 `.
pub(super) fn conditional_comment(line: &[u8]) -> Option<&[u8]> {
    let rest = line
        .strip_prefix(b"/*!")
        .or_else(|| line.strip_prefix(b"/*M!"))?;
    let digits = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let rest = rest.get(digits..)?;
    if !(5..=6).contains(&digits) {
        return None;
    }
    rest.strip_prefix(b" ")
}

/// In the statements that create a view, a trigger, a routine or an event: where the account after `DEFINER=` begins.
pub(super) fn definer_in_create(line: &[u8]) -> Option<usize> {
    let rest = conditional_comment(line).unwrap_or(line);
    let rest = rest.strip_prefix(b"CREATE")?;
    let rest = rest.strip_prefix(b" OR REPLACE").unwrap_or(rest);
    let rest = rest.strip_prefix(b"*/").unwrap_or(rest);
    let rest = rest.strip_prefix(b" ")?;
    let rest = conditional_comment(rest).unwrap_or(rest);
    let rest = match rest.strip_prefix(b"ALGORITHM=") {
        Some(algorithm) => algorithm.get(algorithm.iter().position(|&byte| byte == b' ')? + 1..)?,
        None => rest,
    };
    let rest = rest.strip_prefix(DEFINER)?;
    Some(line.len() - rest.len())
}

/// `` `user`@`host` `` (or a role, without a host) and what follows.
pub(super) fn parse_definer(text: &[u8]) -> Option<(Definer, &[u8])> {
    let (user, rest) = quoted_identifier(text)?;
    let (host, rest) = match rest.strip_prefix(b"@") {
        Some(host) => quoted_identifier(host)?,
        None => (Vec::new(), rest),
    };
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    Some((
        Definer {
            user: text(user),
            host: text(host),
        },
        rest,
    ))
}

/// An identifier in backticks, or in the double quotes of the SQL mode `ANSI_QUOTES`, plain, and what follows.
pub(super) fn quoted_identifier(text: &[u8]) -> Option<(Vec<u8>, &[u8])> {
    let (&quote, mut rest) = text.split_first()?;
    if quote != b'`' && quote != b'"' {
        return None;
    }
    let mut name = Vec::new();
    loop {
        let at = rest.iter().position(|&byte| byte == quote)?;
        name.extend_from_slice(rest.get(..at)?);
        rest = rest.get(at + 1..)?;
        match rest.strip_prefix(&[quote]) {
            Some(after) => {
                name.push(quote);
                rest = after;
            }
            None => return Some((name, rest)),
        }
    }
}

/// A trigger is dumped as it was once typed: `TRIGGER live.name … ON live.table` would land in the live schema. The
/// names without their schema, if it is the live one; `None` when there is nothing to change.
fn unqualified_trigger(rest: &[u8], live: &str) -> Option<Vec<u8>> {
    let mut scanner = Scanner::new(rest);
    scanner.skip(b"*/");
    scanner.skip_conditional_comment();
    if !scanner.keyword("TRIGGER") {
        return None;
    }
    if scanner.keyword("IF") {
        (scanner.keyword("NOT") && scanner.keyword("EXISTS")).then_some(())?;
    }
    let first = scanner.qualifier(live);
    scanner.identifier()?;
    (scanner.keyword("BEFORE") || scanner.keyword("AFTER")).then_some(())?;
    (scanner.keyword("INSERT") || scanner.keyword("UPDATE") || scanner.keyword("DELETE"))
        .then_some(())?;
    scanner.keyword("ON").then_some(())?;
    let second = scanner.qualifier(live);
    without(rest, [first, second].into_iter().flatten())
}

/// The text without what stands at these places; `None` when there are none.
fn without(text: &[u8], places: impl IntoIterator<Item = (usize, usize)>) -> Option<Vec<u8>> {
    let mut rest = Vec::with_capacity(text.len());
    let mut from = 0;
    for (start, end) in places {
        rest.extend_from_slice(text.get(from..start)?);
        from = end;
    }
    rest.extend_from_slice(text.get(from..)?);
    (from > 0).then_some(rest)
}

/// A view in the words of the server, without the names of `schemas` before those of tables, columns and functions;
/// `None` when there is nothing to change.
pub(super) fn unqualified_view(text: &[u8], schemas: &[&str]) -> Option<Vec<u8>> {
    let mut scanner = Scanner::new(text);
    // `schema`.`table`.`column` and `schema`.`function`(…) can be nothing else; of `schema`.`table` that is only known
    // while no table goes by the schema's name.
    let mut found = Vec::new();
    let mut aliased = false;
    while let Some(&byte) = scanner.rest().first() {
        match byte {
            b'\'' | b'"' => scanner.string(),
            b'`' => {
                let before = scanner.at;
                let after_point = text.get(..before).is_some_and(|text| text.ends_with(b"."));
                let place = schemas
                    .iter()
                    .find_map(|schema| scanner.qualifier(schema))
                    .filter(|_| !after_point);
                let name = scanner.identifier();
                if let Some(place) = place {
                    let certain = matches!(scanner.rest().first(), Some(b'.' | b'('));
                    found.push((place, certain));
                } else if let Some(name) = name {
                    // The definer may go by it too.
                    aliased |= !after_point
                        && !starts_with_any(scanner.rest(), &[b".", b"@"])
                        && schemas.iter().any(|schema| schema.as_bytes() == name);
                } else {
                    // A quote that is not closed.
                    return None;
                }
            }
            _ => scanner.at += 1,
        }
    }
    let places = found
        .into_iter()
        .filter(|(_, certain)| *certain || !aliased)
        .map(|(place, _)| place);
    without(text, places)
}

/// An event in a schema that is only being staged must not run: `ENABLE` becomes `DISABLE ON SLAVE`, which is then known for
/// an event to be enabled, and any other state becomes `DISABLE`.
fn sleeping_event(rest: &[u8]) -> Option<Vec<u8>> {
    let mut scanner = Scanner::new(rest);
    scanner.skip(b"*/");
    scanner.skip_conditional_comment();
    if !scanner.keyword("EVENT") {
        return None;
    }
    change_event_status(rest, scanner.at, |status| {
        if status == ENABLE {
            DISABLE_ON_SLAVE
        } else {
            DISABLE
        }
    })
}

const ENABLE: &[u8] = b"ENABLE";
const DISABLE: &[u8] = b"DISABLE";
const DISABLE_ON_SLAVE: &[u8] = b"DISABLE ON SLAVE";

/// The reverse of what the import did to an event: `text` is what the server tells of one that was staged.
pub(super) fn awake_event(text: &[u8]) -> Option<Vec<u8>> {
    let from = find(text, b" EVENT ")? + b" EVENT ".len();
    change_event_status(
        text,
        from,
        |status| if status == DISABLE { DISABLE } else { ENABLE },
    )
}

/// Change the state in `` `name` ON SCHEDULE … ON COMPLETION [NOT] PRESERVE state `` as the servers write it.
fn change_event_status(
    text: &[u8],
    from: usize,
    new: impl Fn(&[u8]) -> &'static [u8],
) -> Option<Vec<u8>> {
    let mut scanner = Scanner::new(text);
    scanner.at = from;
    scanner.identifier()?;
    // Between the name and here are only a period and times.
    let completion = b" ON COMPLETION ";
    let at = scanner.at + find(text.get(scanner.at..)?, completion)? + completion.len();
    let state = text.get(at..)?;
    let state = state
        .strip_prefix(b"NOT ")
        .unwrap_or(state)
        .strip_prefix(b"PRESERVE ")?;
    let at = text.len() - state.len();
    let old = [DISABLE_ON_SLAVE, b"DISABLE ON REPLICA", DISABLE, ENABLE]
        .into_iter()
        .find(|old| state.starts_with(old))?;
    Some([text.get(..at)?, new(old), text.get(at + old.len()..)?].concat())
}

/// Reads the tokens at the head of a statement.
struct Scanner<'a> {
    text: &'a [u8],
    at: usize,
}

impl<'a> Scanner<'a> {
    fn new(text: &'a [u8]) -> Self {
        Self { text, at: 0 }
    }

    fn rest(&self) -> &'a [u8] {
        self.text.get(self.at..).unwrap_or_default()
    }

    fn skip_blanks(&mut self) {
        loop {
            let rest = self.rest();
            self.at += rest
                .iter()
                .take_while(|byte| byte.is_ascii_whitespace())
                .count();
            let rest = self.rest();
            let plain_comment =
                rest.starts_with(b"/*") && !starts_with_any(rest, &[b"/*!", b"/*M!"]);
            match find(rest, b"*/") {
                Some(end) if plain_comment => self.at += end + 2,
                _ => return,
            }
        }
    }

    fn skip(&mut self, text: &[u8]) {
        self.skip_blanks();
        if self.rest().starts_with(text) {
            self.at += text.len();
        }
    }

    fn skip_conditional_comment(&mut self) {
        self.skip_blanks();
        if let Some(rest) = conditional_comment(self.rest()) {
            self.at = self.text.len() - rest.len();
        }
    }

    fn keyword(&mut self, word: &str) -> bool {
        self.skip_blanks();
        let rest = self.rest();
        let found = rest
            .get(..word.len())
            .is_some_and(|text| text.eq_ignore_ascii_case(word.as_bytes()))
            && !rest.get(word.len()).is_some_and(|&byte| is_name_byte(byte));
        if found {
            self.at += word.len();
        }
        found
    }

    fn identifier(&mut self) -> Option<Vec<u8>> {
        self.skip_blanks();
        let rest = self.rest();
        if let Some((name, after)) = quoted_identifier(rest) {
            self.at = self.text.len() - after.len();
            return Some(name);
        }
        let length = rest.iter().take_while(|&&byte| is_name_byte(byte)).count();
        self.at += length;
        (length > 0).then(|| rest.get(..length).unwrap_or_default().to_vec())
    }

    /// Over a text in quotes.
    fn string(&mut self) {
        let Some((quote, inner)) = self.rest().split_first() else {
            return;
        };
        // A doubled quote is taken for two texts, one after the other.
        let mut escaped = false;
        let length = inner
            .iter()
            .position(|byte| {
                let end = byte == quote && !escaped;
                escaped = *byte == b'\\' && !escaped;
                end
            })
            .map_or(inner.len(), |at| at + 1);
        self.at += 1 + length;
    }

    /// `live.` before a name: where it begins and ends.
    fn qualifier(&mut self, live: &str) -> Option<(usize, usize)> {
        self.skip_blanks();
        let start = self.at;
        let is_live = self
            .identifier()
            .is_some_and(|name| name == live.as_bytes());
        self.skip_blanks();
        if is_live && self.rest().starts_with(b".") {
            self.at += 1;
            self.skip_blanks();
            return Some((start, self.at));
        }
        self.at = start;
        None
    }
}

fn is_name_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'$' || byte >= 0x80
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rewriter() -> Rewriter {
        let definer = Definer::parse("customer_7@%").unwrap();
        Rewriter::new(&definer, &definer, "customer_7", "customer_7__restore_0")
    }

    fn rewrite_in_pieces(dump: &[u8], sizes: &[usize]) -> Result<(Vec<u8>, Findings)> {
        let mut rewriter = rewriter();
        let mut out = Vec::new();
        let mut rest = dump;
        let mut sizes = sizes.iter().copied().cycle();
        while !rest.is_empty() {
            let (piece, after) =
                rest.split_at(sizes.next().unwrap_or(usize::MAX).clamp(1, rest.len()));
            rewriter.feed(piece, &mut out)?;
            rest = after;
        }
        let findings = rewriter.finish(&mut out)?;
        Ok((out, findings))
    }

    #[track_caller]
    fn check(dump: &str, expected: &str) -> Findings {
        let (out, findings) = rewrite_in_pieces(dump.as_bytes(), &[usize::MAX]).unwrap();
        assert_eq!(String::from_utf8_lossy(&out), expected);
        findings
    }

    #[test]
    fn definers_become_the_importing_account_in_every_form_of_the_dump_programs() {
        for (before, after) in [
            (
                "DELIMITER ;;\n/*!50003 CREATE*/ /*!50017 DEFINER=`root`@`localhost`*/ /*!50003 TRIGGER t BEFORE INSERT ON x FOR EACH ROW set @a=1 */;;\nDELIMITER ;\n",
                "DELIMITER ;;\n/*!50003 CREATE*/ /*!50017 DEFINER=`customer_7`@`%`*/ /*!50003 TRIGGER t BEFORE INSERT ON x FOR EACH ROW set @a=1 */;;\nDELIMITER ;\n",
            ),
            (
                "DELIMITER ;;\nCREATE DEFINER=`ro``ot`@`local``host` PROCEDURE `p`()\nbegin end ;;\n",
                "DELIMITER ;;\nCREATE DEFINER=`customer_7`@`%` PROCEDURE `p`()\nbegin end ;;\n",
            ),
            (
                "DELIMITER ;;\nCREATE DEFINER=\"ro\"\"ot\"@\"%\" PROCEDURE \"p\"()\nbegin end ;;\n",
                "DELIMITER ;;\nCREATE DEFINER=`customer_7`@`%` PROCEDURE \"p\"()\nbegin end ;;\n",
            ),
            (
                "/*!50001 CREATE ALGORITHM=UNDEFINED */\n/*!50013 DEFINER=`root`@`localhost` SQL SECURITY DEFINER */\n/*!50001 VIEW `v` AS select 1 */;\n",
                "/*!50001 CREATE ALGORITHM=UNDEFINED */\n/*!50013 DEFINER=`customer_7`@`%` SQL SECURITY DEFINER */\n/*!50001 VIEW `v` AS select 1 */;\n",
            ),
            (
                "DELIMITER ;;\n/*!50003 CREATE*/ /*!50020 DEFINER=`a_role`*/ /*!50003 FUNCTION `f`() RETURNS int(11)\nreturn 1 */;;\n",
                "DELIMITER ;;\n/*!50003 CREATE*/ /*!50020 DEFINER=`customer_7`@`%`*/ /*!50003 FUNCTION `f`() RETURNS int(11)\nreturn 1 */;;\n",
            ),
        ] {
            let findings = check(before, after);
            assert_eq!(findings.foreign_definers.len(), 1, "{before}");
        }
    }

    #[test]
    fn the_customers_own_definer_is_kept_without_a_word() {
        let dump = "DELIMITER ;;\nCREATE DEFINER=`customer_7`@`%` PROCEDURE `p`()\nbegin end ;;\n";
        assert!(check(dump, dump).foreign_definers.is_empty());
    }

    #[test]
    fn rows_and_bodies_are_left_alone() {
        let dump = "INSERT INTO `t` VALUES\n(1,'CREATE DEFINER=`root`@`localhost` PROCEDURE'),\n(2,'USE `x`; ALTER DATABASE `y`');\n\
             INSERT INTO `t` VALUES (1,'/*!50013 DEFINER=`root`@`localhost` */');\n\
             DELIMITER ;;\nCREATE DEFINER=`customer_7`@`%` PROCEDURE `p`()\nbegin\n\
             CREATE DEFINER=`root`@`localhost` PROCEDURE\nUSE `x`;\nALTER DATABASE `x` ;\nend ;;\nDELIMITER ;\n";
        check(dump, dump);
    }

    #[test]
    fn alter_database_goes_to_the_shadow() {
        check(
            "ALTER DATABASE `customer_7` CHARACTER SET utf8mb4 COLLATE utf8mb4_bin ;\nDELIMITER ;;\nALTER DATABASE `other``x` CHARACTER SET latin1 ;;\n",
            "ALTER DATABASE `customer_7__restore_0` CHARACTER SET utf8mb4 COLLATE utf8mb4_bin ;\nDELIMITER ;;\nALTER DATABASE `customer_7__restore_0` CHARACTER SET latin1 ;;\n",
        );
    }

    #[test]
    fn a_dump_that_chooses_its_database_is_refused() {
        for line in [
            "USE `customer_8`;\n",
            "CREATE DATABASE /*!32312 IF NOT EXISTS*/ `x`;\n",
        ] {
            let error = rewrite_in_pieces(line.as_bytes(), &[3]).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Damaged);
        }
    }

    #[test]
    fn the_mark_of_the_sandbox_is_taken_off_the_first_line_only() {
        check(
            "/*M!999999\\- enable the sandbox mode */ \n-- x\n",
            "-- x\n",
        );
        let later = "-- x\n/*M!999999\\- enable the sandbox mode */ \n";
        check(later, later);
    }

    #[test]
    fn a_statement_after_the_mark_of_the_sandbox_is_seen() {
        for dump in [
            "/*M!999999\\- enable the sandbox mode */ \nUSE `customer_8`;\n",
            "USE `customer_8`;\n",
        ] {
            assert!(rewrite_in_pieces(dump.as_bytes(), &[3]).is_err());
        }
        let same_line = "/*M!999999\\- enable the sandbox mode */ DROP TABLE `t`;\n";
        check(same_line, same_line);
    }

    #[test]
    fn what_a_replicating_server_puts_into_its_dumps_is_left_out() {
        check(
            "SET @MYSQLDUMP_TEMP_LOG_BIN = @@SESSION.SQL_LOG_BIN;\nSET @@SESSION.SQL_LOG_BIN= 0;\n\n--\n-- GTID state at the beginning of the backup \n--\n\n\
             SET @@GLOBAL.GTID_PURGED=/*!80000 '+'*/ '0d1ee3a1-0000-11ef-9d15-0242ac120002:1-5,\n1d1ee3a1-0000-11ef-9d15-0242ac120002:1-7';\n\nDROP TABLE IF EXISTS `t`;\n",
            "SET @MYSQLDUMP_TEMP_LOG_BIN = @@SESSION.SQL_LOG_BIN;\n\n--\n-- GTID state at the beginning of the backup \n--\n\n\nDROP TABLE IF EXISTS `t`;\n",
        );
    }

    #[test]
    fn a_trigger_typed_with_its_schema_lands_in_the_shadow() {
        check(
            "DELIMITER ;;\n/*!50003 CREATE*/ /*!50017 DEFINER=`customer_7`@`%`*/ /*!50003 trigger customer_7.tr before insert on `customer_7` . `t` for each row set @a = customer_7.f() */;;\n",
            "DELIMITER ;;\n/*!50003 CREATE*/ /*!50017 DEFINER=`customer_7`@`%`*/ /*!50003 trigger tr before insert on `t` for each row set @a = customer_7.f() */;;\n",
        );
    }

    #[test]
    fn a_view_lands_in_the_shadow_whatever_its_definer() {
        let body = "VIEW `v` AS select `customer_7`.`t`.`id` AS `id`,'x`customer_7`.y\\'`customer_7`.''`customer_7`.' AS `q`,\"`customer_7`.\" AS `r`,\
            `customer_7`.`f`() AS `f`,`x`.`customer_7`.`id` AS `x`,`customer_77`.`t`.`id` AS `y` from `t` join `customer_7`.`u`";
        let stripped = "VIEW `v` AS select `t`.`id` AS `id`,'x`customer_7`.y\\'`customer_7`.''`customer_7`.' AS `q`,\"`customer_7`.\" AS `r`,\
            `f`() AS `f`,`x`.`customer_7`.`id` AS `x`,`customer_77`.`t`.`id` AS `y` from `t` join `u`";
        let definer = "DEFINER=`customer_7`@`%` SQL SECURITY DEFINER";
        for [before, after] in [
            [
                "/*!50001 CREATE ALGORITHM=UNDEFINED */\n/*!50013 ",
                " */\n/*!50001 ",
            ],
            ["/*!50001 CREATE OR REPLACE ALGORITHM=UNDEFINED ", " "],
            ["CREATE ALGORITHM=UNDEFINED ", " "],
            ["/*!50001 CREATE ", " "],
        ] {
            for (tail, long) in [
                (" */;", ""),
                (
                    "\n/*!50002 WITH CASCADED CHECK OPTION */;",
                    &*"x".repeat(2 * HEAD_BYTES),
                ),
            ] {
                check(
                    &format!(
                        "x;\n{before}{definer}{after}{body} where '{long}' < `customer_7`.`t`.`z`{tail}\n"
                    ),
                    &format!(
                        "x;\n{before}{definer}{after}{stripped} where '{long}' < `t`.`z`{tail}\n"
                    ),
                );
            }
        }
        check(
            &format!(
                "/*!50001 CREATE ALGORITHM=MERGE */\n/*!50001 {body} */;\n/*!50001 CREATE {body} */;\n"
            ),
            &format!(
                "/*!50001 CREATE ALGORITHM=MERGE */\n/*!50001 {stripped} */;\n/*!50001 CREATE {stripped} */;\n"
            ),
        );
    }

    #[test]
    fn what_is_not_a_view_or_goes_by_the_schemas_name_in_one_is_left_alone() {
        for dump in [
            "INSERT INTO `t` VALUES\n/*!50001 CREATE ALGORITHM=MERGE */\n/*!50001 VIEW `v` AS select `customer_7`.`t`.`id` */;\n",
            "DELIMITER ;;\nCREATE DEFINER=`customer_7`@`%` PROCEDURE `p`()\nbegin\ncreate view `v` as select `customer_7`.`t`.`id`;\nend ;;\nDELIMITER ;\n",
            "/*!50001 VIEW `v` AS select `customer_7`.`t`.`id` */;\n",
            "/*!50001 CREATE VIEW `v` AS select `customer_7`.`id` AS `id` from (`t` `customer_7` join `u`) */;\n",
            "/*!50001 CREATE VIEW `v` AS select `customer_7`.`id` AS `not closed from */;\n",
        ] {
            check(dump, dump);
        }
        assert_eq!(
            unqualified_view(
                b"select `a`.`t`.`a` AS `a`,`b`.`f`() from `b`.`t`",
                &["a", "b"]
            )
            .unwrap(),
            b"select `t`.`a` AS `a`,`f`() from `b`.`t`"
        );
    }

    #[test]
    fn events_sleep_in_the_shadow_and_wake_as_they_were() {
        let head = "CREATE DEFINER=`customer_7`@`%` EVENT `e ON COMPLETION ` ON SCHEDULE EVERY 1 HOUR STARTS '2026-11-22 14:31:11' ON COMPLETION NOT PRESERVE";
        let rest = "COMMENT 'ENABLE DO' DO begin select ';'; end";
        for (before, asleep, awake) in [
            ("ENABLE", "DISABLE ON SLAVE", "ENABLE"),
            ("DISABLE", "DISABLE", "DISABLE"),
            ("DISABLE ON SLAVE", "DISABLE", "DISABLE"),
        ] {
            let sleeping = format!("{head} {asleep} {rest}");
            check(
                &format!("DELIMITER ;;\n{head} {before} {rest} ;;\n"),
                &format!("DELIMITER ;;\n{sleeping} ;;\n"),
            );
            let woken = awake_event(sleeping.as_bytes()).unwrap();
            assert_eq!(
                String::from_utf8(woken).unwrap(),
                format!("{head} {awake} {rest}")
            );
        }
        check(
            "DELIMITER ;;\n/*!50106 CREATE*/ /*!50117 DEFINER=`r`@`h`*/ /*!50106 EVENT `e` ON SCHEDULE AT '2026-11-22 14:31:11' ON COMPLETION PRESERVE ENABLE DO select 1 */ ;;\n",
            "DELIMITER ;;\n/*!50106 CREATE*/ /*!50117 DEFINER=`customer_7`@`%`*/ /*!50106 EVENT `e` ON SCHEDULE AT '2026-11-22 14:31:11' ON COMPLETION PRESERVE DISABLE ON SLAVE DO select 1 */ ;;\n",
        );
    }

    #[test]
    fn only_the_trailer_makes_a_dump_whole() {
        assert!(check("x;\n\n-- Dump completed\n", "x;\n\n-- Dump completed\n").whole);
        assert!(
            check(
                "x;\n-- Dump completed on 2026-11-22",
                "x;\n-- Dump completed on 2026-11-22"
            )
            .whole
        );
        assert!(!check("x;\n-- Dump completed\ny;\n", "x;\n-- Dump completed\ny;\n").whole);
        assert!(
            !check(
                "x;\n-- Dump completed\n-- y\n",
                "x;\n-- Dump completed\n-- y\n"
            )
            .whole
        );
        assert!(!check("", "").whole);
    }

    #[test]
    fn a_line_of_many_megabytes_passes_in_pieces_and_is_not_held() {
        let mut rewriter = rewriter();
        let mut out = Vec::new();
        rewriter
            .feed(b"INSERT INTO `t` VALUES (1,0x", &mut out)
            .unwrap();
        let piece = vec![b'A'; 1 << 16];
        let mut passed = 0;
        for _ in 0..512 {
            rewriter.feed(&piece, &mut out).unwrap();
            passed += out.len();
            out.clear();
            assert!(rewriter.head.len() + rewriter.tail.len() <= HEAD_BYTES + 2 * TAIL_BYTES);
        }
        assert!(passed > 32 << 20);
        rewriter.feed(b");\nUSE `x`;\n", &mut out).unwrap_err();
    }

    /// Lines that matter, lines that do not, and junk.
    fn dump() -> impl Strategy<Value = Vec<u8>> {
        let line = prop_oneof![
            Just(b"DELIMITER ;;".to_vec()),
            Just(b"DELIMITER ;".to_vec()),
            Just(b"/*M!999999\\- enable the sandbox mode */ ".to_vec()),
            Just(b"CREATE DEFINER=`root`@`localhost` PROCEDURE `p`()".to_vec()),
            Just(b"/*!50003 CREATE*/ /*!50017 DEFINER=`a`@`b`*/ /*!50003 TRIGGER customer_7.t AFTER DELETE ON customer_7.x FOR EACH ROW */;;".to_vec()),
            Just(b"/*!50001 CREATE ALGORITHM=MERGE */".to_vec()),
            Just(b"/*!50013 DEFINER=`root`@`localhost` SQL SECURITY DEFINER */".to_vec()),
            Just(b"/*!50001 VIEW `v` AS select `customer_7`.`t`.`id` AS `id` from `t` */;".to_vec()),
            (1usize..20_000).prop_map(|n| [b"/*!50001 CREATE VIEW `v` AS select '".to_vec(), vec![b'x'; n], b"',`customer_7`.`t`.`id` AS `id` from `t` */;".to_vec()].concat()),
            Just(b"CREATE DEFINER=`r`@`h` EVENT `e` ON SCHEDULE EVERY 1 DAY ON COMPLETION NOT PRESERVE ENABLE DO x ;;".to_vec()),
            Just(b"ALTER DATABASE `customer_7` COLLATE x ;".to_vec()),
            Just(b"-- Dump completed".to_vec()),
            Just(b"end ;;".to_vec()),
            Just(b"SET @@GLOBAL.GTID_PURGED='x,".to_vec()),
            Just(b"SET @@SESSION.SQL_LOG_BIN= 0;".to_vec()),
            Just(b"".to_vec()),
            (1usize..20_000).prop_map(|n| [b"INSERT INTO `t` VALUES (".to_vec(), vec![b'x'; n], b");".to_vec()].concat()),
            proptest::collection::vec(any::<u8>(), 0..40),
        ];
        proptest::collection::vec(line, 0..12).prop_map(|lines| lines.join(&b'\n'))
    }

    proptest! {
        #[test]
        fn the_sizes_of_the_pieces_make_no_difference(dump in dump(), sizes in proptest::collection::vec(1usize..9_000, 1..8)) {
            let whole = rewrite_in_pieces(&dump, &[usize::MAX]);
            let pieces = rewrite_in_pieces(&dump, &sizes);
            match (whole, pieces) {
                (Ok(whole), Ok(pieces)) => prop_assert_eq!(whole, pieces),
                (whole, pieces) => prop_assert_eq!(whole.is_err(), pieces.is_err()),
            }
        }

        #[test]
        fn a_dump_without_heads_comes_out_as_it_went_in(dump in proptest::collection::vec(any::<u8>(), 0..4_000)) {
            let (out, _) = rewrite_in_pieces(&dump, &[7]).unwrap();
            prop_assert_eq!(out, dump);
        }
    }
}
