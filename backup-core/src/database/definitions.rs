//! What a schema has besides tables: views, triggers, routines and events, taken down as the server tells them and created again.
//!
//! They were written by a tenant and are an attack until proven otherwise. Never: such a text parsed by a client program or run
//! by an account with more rights than its owner has, unless as the one argument of a statement that the server prepares,
//! which cannot be more than the one statement that it is.

use serde::{Deserialize, Serialize};

use crate::database::client::{
    CHANGE_LIMIT, Family, Rows, SqlError, hex_literal, identifier, literal, name_from_hex,
};
use crate::database::rewrite::{Definer, definer_in_create, parse_definer};
use crate::database::shadow::{default_charset, plain_name};
use crate::database::{Account, Server};
use crate::error::{Error, ErrorKind, Result};
use crate::progress::Cancel;

/// In the order in which they are created: a view may use a function, an event anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) enum Kind {
    Function,
    Procedure,
    Package,
    PackageBody,
    View,
    Trigger,
    Event,
}

impl Kind {
    pub(super) fn sql(self) -> &'static str {
        match self {
            Self::Function => "FUNCTION",
            Self::Procedure => "PROCEDURE",
            Self::Package => "PACKAGE",
            Self::PackageBody => "PACKAGE BODY",
            Self::View => "VIEW",
            Self::Trigger => "TRIGGER",
            Self::Event => "EVENT",
        }
    }

    fn parse(name: &[u8]) -> Option<Self> {
        [
            Self::Function,
            Self::Procedure,
            Self::Package,
            Self::PackageBody,
            Self::View,
            Self::Trigger,
            Self::Event,
        ]
        .into_iter()
        .find(|kind| kind.sql().as_bytes() == name)
    }
}

/// One object: the statement that creates it and the session in which it means what it meant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Definition {
    pub(super) kind: Kind,
    pub(super) name: String,
    #[serde(with = "hex_bytes")]
    pub(super) text: Vec<u8>,
    sql_mode: String,
    client_charset: String,
    connection_collation: String,
    /// The schema's default when it was created; none for views.
    pub(super) database_collation: Option<String>,
    /// Events only.
    time_zone: Option<String>,
    /// Of views only; a view that shows what is no longer there has none.
    pub(super) columns: Vec<String>,
}

mod hex_bytes {
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&hex::encode(bytes))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<u8>, D::Error> {
        hex::decode(String::deserialize(from)?).map_err(serde::de::Error::custom)
    }
}

impl Definition {
    pub(super) fn is_called(&self, kind: Kind, name: &str) -> bool {
        self.kind == kind && self.name == name
    }

    fn definer(&self) -> Option<Definer> {
        let at = definer_in_create(&self.text)?;
        parse_definer(self.text.get(at..)?).map(|(definer, _)| definer)
    }

    /// What makes a session one in which the text means what it meant: statements without what a tenant wrote.
    pub(super) fn session(&self) -> String {
        // A view's text comes in the server's own character set: say so where it makes a difference.
        let charset = match self.kind {
            Kind::View if !self.text.is_ascii() && !self.client_charset.starts_with("utf8") => {
                "utf8mb4"
            }
            _ => &self.client_charset,
        };
        let mut session = format!("SET sql_mode = {};\n", literal(&self.sql_mode));
        if let Some(time_zone) = &self.time_zone {
            session.push_str(&format!("SET time_zone = '{time_zone}';\n"));
        }
        session.push_str(&format!(
            "SET character_set_client = {charset}, collation_connection = {};\n",
            self.connection_collation
        ));
        session
    }

    /// The text for a client program that reads a script, up to `delimiter`, which must not be in it.
    pub(super) fn delimited(&self, delimiter: &str) -> Vec<u8> {
        [
            format!("DELIMITER {delimiter}\n").as_bytes(),
            &self.text,
            format!("\n{delimiter}\nDELIMITER ;\n").as_bytes(),
        ]
        .concat()
    }

    /// The same with another definer, if it is another.
    fn defined_by(&self, definer: &Definer) -> Self {
        let mut this = self.clone();
        if let Some(at) = definer_in_create(&self.text)
            && let Some((before, from)) = self.text.split_at_checked(at)
            && let Some((found, after)) = parse_definer(from)
            && found != *definer
        {
            this.text = [before, definer.quoted().as_bytes(), after].concat();
        }
        this
    }
}

/// Something in a schema that cannot be taken down, and why.
pub(super) struct Unread {
    pub(super) kind: Kind,
    pub(super) name: String,
    pub(super) error: Error,
}

/// Take down everything in `schema` that is not a table, in the order in which it is created again.
pub(super) fn collect(server: &Server, schema: &str, cancel: &Cancel) -> Result<Vec<Definition>> {
    let names = names(server, schema, cancel)?;
    definitions(server, schema, &names, cancel)
}

/// The same with what can be taken down, where something cannot be: one that is no view any more but a circle of views bars all others otherwise.
///
/// # Errors
/// Where the server does not answer, which says nothing of what it has.
pub(super) fn collect_what_can_be(
    server: &Server,
    schema: &str,
    cancel: &Cancel,
) -> Result<(Vec<Definition>, Vec<Unread>)> {
    let names = names(server, schema, cancel)?;
    if let Ok(all) = definitions(server, schema, &names, cancel) {
        return Ok((all, Vec::new()));
    }
    let mut found = Vec::with_capacity(names.len());
    let mut unread = Vec::new();
    for one in names {
        match definitions(server, schema, std::slice::from_ref(&one), cancel) {
            Ok(one) => found.extend(one),
            Err(error)
                if matches!(
                    error.kind(),
                    ErrorKind::Unreachable | ErrorKind::Timeout | ErrorKind::Cancelled
                ) =>
            {
                return Err(error);
            }
            Err(error) => {
                let (kind, name) = one;
                unread.push(Unread { kind, name, error });
            }
        }
    }
    found.sort_by_key(|definition| definition.kind);
    Ok((found, unread))
}

/// What these are, in the order in which it is created.
fn definitions(
    server: &Server,
    schema: &str,
    names: &[(Kind, String)],
    cancel: &Cancel,
) -> Result<Vec<Definition>> {
    if names.is_empty() {
        return Ok(Vec::new());
    }
    let (views, others): (Vec<_>, Vec<_>) = names.iter().partition(|(kind, _)| *kind == Kind::View);
    let show =
        |kind: Kind, name: &str| format!("SHOW CREATE {} {};\n", kind.sql(), identifier(name));
    // The server keeps views in its own character set and everything else in that of whoever wrote it.
    let mut script = "SET sql_mode = '', character_set_results = binary;\n".to_owned();
    script.extend(others.iter().map(|(kind, name)| show(*kind, name)));
    script.push_str("SET character_set_results = utf8mb4;\n");
    script.extend(views.iter().map(|(kind, name)| show(*kind, name)));
    // Their columns, one view after the other: so no table but theirs is opened.
    for (at, (_, view)) in views.iter().enumerate() {
        script.push_str(&format!(
            "SELECT {at}, HEX(COLUMN_NAME) FROM information_schema.COLUMNS
             WHERE TABLE_SCHEMA = {} AND TABLE_NAME = {} ORDER BY ORDINAL_POSITION;\n",
            literal(schema),
            literal(view)
        ));
    }
    let rows = server.ask(
        &server.account,
        Some(schema),
        script.as_bytes(),
        CHANGE_LIMIT,
        cancel,
    )?;
    let Some((created, columns)) = rows.split_at_checked(names.len()) else {
        return Err(untold(schema));
    };
    let mut definitions = others
        .iter()
        .chain(&views)
        .zip(created)
        .map(|((kind, name), row)| definition(*kind, name, row))
        .collect::<Result<Vec<_>>>()?;
    let of_views = definitions.get_mut(others.len()..).unwrap_or_default();
    for row in columns {
        let at = row
            .first()
            .and_then(|at| std::str::from_utf8(at).ok()?.parse().ok());
        let view = at.and_then(|at: usize| of_views.get_mut(at));
        view.ok_or_else(|| untold(schema))?
            .columns
            .push(name_from_hex(row.get(1))?);
    }
    definitions.sort_by_key(|definition| definition.kind);
    Ok(definitions)
}

fn untold(schema: &str) -> Error {
    Error::new(
        ErrorKind::Failed,
        format!(
            "the database server did not tell all definitions in {schema}; is it being changed?"
        ),
    )
}

/// Kinds and names; triggers in the order in which they fire.
fn names(server: &Server, schema: &str, cancel: &Cancel) -> Result<Vec<(Kind, String)>> {
    let schema = literal(schema);
    let rows: Rows = server.query(
        &format!(
            "SELECT ROUTINE_TYPE, HEX(ROUTINE_NAME) FROM information_schema.ROUTINES WHERE ROUTINE_SCHEMA = {schema} ORDER BY ROUTINE_NAME;
             SELECT 'VIEW', HEX(TABLE_NAME) FROM information_schema.TABLES WHERE TABLE_SCHEMA = {schema} AND TABLE_TYPE = 'VIEW' ORDER BY TABLE_NAME;
             SELECT 'TRIGGER', HEX(TRIGGER_NAME) FROM information_schema.TRIGGERS WHERE TRIGGER_SCHEMA = {schema}
                ORDER BY EVENT_OBJECT_TABLE, ACTION_TIMING, EVENT_MANIPULATION, ACTION_ORDER;
             SELECT 'EVENT', HEX(EVENT_NAME) FROM information_schema.EVENTS WHERE EVENT_SCHEMA = {schema} ORDER BY EVENT_NAME;"
        ),
        cancel,
    )?;
    rows.iter()
        .map(|row| {
            let kind = row.first().and_then(|kind| Kind::parse(kind));
            let kind = kind.ok_or_else(|| {
                Error::new(
                    ErrorKind::Failed,
                    "the database server has a kind of object that is not known here",
                )
            })?;
            Ok((kind, name_from_hex(row.get(1))?))
        })
        .collect()
}

/// Read a row of `SHOW CREATE`.
fn definition(kind: Kind, name: &str, row: &[Vec<u8>]) -> Result<Definition> {
    let column = |at: usize| row.get(at).cloned().unwrap_or_default();
    let (sql_mode, text, time_zone, session) = match kind {
        Kind::View => (None, 1, None, 2),
        Kind::Event => (Some(1), 3, Some(2), 4),
        _ => (Some(1), 2, None, 3),
    };
    let text = column(text);
    if !text.starts_with(b"CREATE") {
        return Err(Error::new(
            ErrorKind::Refused,
            format!(
                "the account may not see the definition of the {} {name}; grant it SELECT ON mysql.proc (MariaDB) or SHOW_ROUTINE (MySQL)",
                kind.sql().to_lowercase()
            ),
        ));
    }
    Ok(Definition {
        kind,
        name: name.to_owned(),
        text,
        sql_mode: sql_mode
            .map_or(Ok(String::new()), |at| String::from_utf8(column(at)))
            .map_err(|error| {
                Error::caused(
                    ErrorKind::Failed,
                    "the database server gave a strange SQL mode",
                    error,
                )
            })?,
        client_charset: plain_name(&column(session))?,
        connection_collation: plain_name(&column(session + 1))?,
        database_collation: (kind != Kind::View)
            .then(|| plain_name(&column(session + 2)))
            .transpose()?,
        time_zone: time_zone.map(|at| plain_name(&column(at))).transpose()?,
        columns: Vec::new(),
    })
}

/// Drop everything in `schema` that is not a table and that `which` wants dropped.
pub(super) fn drop_where(
    server: &Server,
    schema: &str,
    options: &str,
    which: impl Fn(Kind, &str) -> bool,
    cancel: &Cancel,
) -> Result<(), SqlError> {
    let mut script = options.to_owned();
    let mut any = false;
    for (kind, name) in names(server, schema, cancel)? {
        if which(kind, &name) {
            any = true;
            // Only the one mode has packages, and backticks are quotes in it as well.
            let mode = match kind {
                Kind::Package | Kind::PackageBody => "ORACLE",
                _ => "",
            };
            script.push_str(&format!("SET sql_mode = '{mode}';\n"));
            script.push_str(&format!(
                "DROP {} IF EXISTS {}.{};\n",
                kind.sql(),
                identifier(schema),
                identifier(&name)
            ));
        }
    }
    if any {
        server.change(&script, cancel)?;
    }
    Ok(())
}

/// Under which account objects are created.
#[derive(Clone, Copy)]
pub(super) enum As<'a> {
    /// The tenant's, who becomes the definer of everything.
    Tenant(&'a Account, &'a Definer),
    /// Exactly as they were, with their definers; where that is not possible, as the tenant's.
    Found(&'a Account, &'a Definer),
}

/// Create `wanted`, as [`collect`] orders it, in `schema`, in which nothing of those names may be.
///
/// An event whose only time has passed is not created, as the servers have it.
pub(super) fn create(
    server: &Server,
    schema: &str,
    wanted: &[Definition],
    by: As<'_>,
    warn: &dyn Fn(&str),
    cancel: &Cancel,
) -> Result<()> {
    let Some((charset, collation)) = default_charset(server, schema, cancel)? else {
        return Err(Error::new(
            ErrorKind::NotFound,
            format!("there is no database {schema}"),
        ));
    };
    let mut creator = Creator {
        server,
        schema,
        by,
        prepares: server.prepares_everything(cancel)?,
        collation: collation.clone(),
        warn,
        cancel,
    };
    let created = wanted
        .chunk_by(|one, next| one.kind == next.kind)
        .try_for_each(|of_a_kind| match of_a_kind {
            [view, ..] if view.kind == Kind::View => creator.views(of_a_kind),
            others => others
                .iter()
                .try_for_each(|definition| creator.create(definition)),
        });
    if creator.collation != collation {
        server.query(
            &format!(
                "ALTER DATABASE {} CHARACTER SET {charset} COLLATE {collation};",
                identifier(schema)
            ),
            cancel,
        )?;
    }
    created
}

struct Creator<'a> {
    server: &'a Server,
    schema: &'a str,
    by: As<'a>,
    prepares: bool,
    /// The schema's default as it is at the moment: objects remember the one under which they were created.
    collation: String,
    warn: &'a dyn Fn(&str),
    cancel: &'a Cancel,
}

impl Creator<'_> {
    /// A view may use one that comes later: as long as any could be created, try the others again.
    fn views(&mut self, views: &[Definition]) -> Result<()> {
        let mut waiting: Vec<&Definition> = views.iter().collect();
        while !waiting.is_empty() {
            let mut failed = Vec::new();
            let mut first_error = None;
            for view in &waiting {
                if let Err(error) = self.create(view) {
                    failed.push(*view);
                    first_error.get_or_insert(error);
                }
            }
            if let (Some(error), true) = (first_error, failed.len() == waiting.len()) {
                if matches!(self.by, As::Tenant(..)) {
                    return Err(error);
                }
                // They were broken before (a table that they show is gone), and no server creates such a view.
                tracing::warn!("{}", error.chain());
                for view in failed {
                    (self.warn)(&format!(
                        "the broken view {} of the database {} could not be put back",
                        view.name, self.schema
                    ));
                }
                return Ok(());
            }
            waiting = failed;
        }
        Ok(())
    }

    fn create(&mut self, definition: &Definition) -> Result<()> {
        if let Some(collation) = &definition.database_collation
            && *collation != self.collation
        {
            let schema = identifier(self.schema);
            self.server.query(
                &format!("ALTER DATABASE {schema} COLLATE {collation};"),
                self.cancel,
            )?;
            self.collation.clone_from(collation);
        }
        self.create_as_wanted(definition).map_err(|error| {
            error.context(format!(
                "cannot create the {} {} in the database {}",
                definition.kind.sql().to_lowercase(),
                definition.name,
                self.schema
            ))
        })
    }

    fn create_as_wanted(&self, definition: &Definition) -> Result<()> {
        let (account, tenant, as_found) = match self.by {
            As::Tenant(account, tenant) => (account, tenant, false),
            As::Found(account, tenant) => (account, tenant, true),
        };
        let foreign = definition
            .definer()
            .filter(|definer| as_found && definer != tenant);
        if foreign.is_some() && self.prepares && self.run(definition, &self.server.account).is_ok()
        {
            return Ok(());
        }
        self.run(&definition.defined_by(tenant), account)?;
        if let Some(foreign) = foreign {
            (self.warn)(&format!(
                "the {} {} of the database {} could not be put back with its definer {}: {} became it",
                definition.kind.sql().to_lowercase(),
                definition.name,
                self.schema,
                foreign.quoted(),
                tenant.quoted()
            ));
        }
        Ok(())
    }

    fn run(&self, definition: &Definition, account: &Account) -> Result<()> {
        let script = script(definition, self.prepares);
        self.server.ask(
            account,
            Some(self.schema),
            &script,
            CHANGE_LIMIT,
            self.cancel,
        )?;
        Ok(())
    }
}

fn script(definition: &Definition, prepares: bool) -> Vec<u8> {
    let text = if prepares {
        format!("EXECUTE IMMEDIATE {};\n", hex_literal(&definition.text)).into_bytes()
    } else {
        definition.delimited(&delimiter(rand::random()))
    };
    [definition.session().as_bytes(), &text].concat()
}

/// Nobody can guess it and so end a statement before its end: 15 characters, the most that the clients keep, of 6 of these bits each.
pub(super) fn delimiter(bits: u128) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_$";
    (0..15)
        .filter_map(|at| LETTERS.get((bits >> (6 * at)) as usize % LETTERS.len()))
        .map(|&letter| char::from(letter))
        .collect()
}

/// Those of `wanted` that `schema` does not have.
pub(super) fn missing(
    server: &Server,
    schema: &str,
    wanted: &[Definition],
    cancel: &Cancel,
) -> Result<Vec<Definition>> {
    let there = names(server, schema, cancel)?;
    Ok(wanted
        .iter()
        .filter(|wanted| {
            !there
                .iter()
                .any(|(kind, name)| wanted.is_called(*kind, name))
        })
        .cloned()
        .collect())
}

impl Server {
    /// Whether every statement can be prepared, so that a text needs no client program to find its end: MariaDB from 10.6 on.
    fn prepares_everything(&self, cancel: &Cancel) -> Result<bool> {
        let rows = self.query("SELECT VERSION();", cancel)?;
        let version = String::from_utf8_lossy(&rows.concat().concat()).into_owned();
        let mut numbers = version
            .split(['.', '-'])
            .map_while(|number| number.parse::<u32>().ok());
        let release = (
            numbers.next().unwrap_or_default(),
            numbers.next().unwrap_or_default(),
        );
        Ok(self.server_family(cancel)? == Family::MariaDb && release >= (10, 6))
    }
}

#[cfg(test)]
mod tests {
    use secrecy::SecretString;
    use xtask::mariadb::MariaDb;

    use super::*;
    use crate::database::Endpoint;

    #[test]
    fn objects_are_the_same_again_with_and_without_prepared_statements() {
        let mariadb = MariaDb::start().unwrap();
        mariadb
            .sql(
                "CREATE DATABASE one CHARACTER SET utf8mb4; USE one; CREATE TABLE t (i INT); CREATE VIEW b AS SELECT 'ä' AS x; CREATE VIEW a AS SELECT * FROM b;
                 CREATE PROCEDURE commented() SELECT ';' /* -- ; \\' */;
                 CREATE TRIGGER tr BEFORE INSERT ON t FOR EACH ROW SET @a = '*/ /* ' /* note */;
                 CREATE EVENT e ON SCHEDULE EVERY 1 DAY STARTS '2035-01-01 00:00:00' DISABLE COMMENT 'it''s' DO SET @a = 1;
                 SET sql_mode = 'ANSI_QUOTES,NO_BACKSLASH_ESCAPES'; CREATE FUNCTION odd() RETURNS CHAR RETURN '\\';
                 SET time_zone = '+03:00', NAMES latin1; CREATE EVENT zoned ON SCHEDULE AT '2035-01-01 00:00:00' DO SET @a = 'ä';
                 ALTER DATABASE one COLLATE utf8mb4_bin; CREATE PROCEDURE collated() SELECT 1; ALTER DATABASE one COLLATE utf8mb4_general_ci;",
            )
            .unwrap();
        let password = SecretString::from(mariadb.root_password());
        let server = Server::new(
            Endpoint::Socket(mariadb.socket()),
            Vec::new(),
            "root",
            password,
        );
        let cancel = Cancel::new();
        let definer = Definer::parse("root@localhost").unwrap();
        let wanted = collect(&server, "one", &cancel).unwrap();
        assert_eq!(wanted.len(), 8);
        for (schema, prepares) in [("prepared", true), ("delimited", false)] {
            mariadb
                .sql(&format!("CREATE DATABASE {schema} CHARACTER SET utf8mb4; CREATE TABLE {schema}.t (i INT);"))
                .unwrap();
            let mut creator = Creator {
                server: &server,
                schema,
                by: As::Tenant(&server.account, &definer),
                prepares,
                collation: "utf8mb4_general_ci".to_owned(),
                warn: &|text| panic!("{text}"),
                cancel: &cancel,
            };
            for definition in wanted
                .iter()
                .filter(|definition| definition.kind != Kind::View)
            {
                creator.create(definition).unwrap();
            }
            let views: Vec<_> = wanted
                .iter()
                .filter(|definition| definition.kind == Kind::View)
                .cloned()
                .collect();
            creator.views(&views).unwrap();
            assert_eq!(collect(&server, schema, &cancel).unwrap(), wanted);
        }
        assert!(server.prepares_everything(&cancel).unwrap());
    }
}
