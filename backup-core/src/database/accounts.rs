//! The accounts under which SQL that a tenant wrote is run: his own, and one for each import that has rights on the shadow schema alone.
//!
//! Never: an account that is given a right on more than it needs, by a wildcard or for longer; a password in a message; a temporary account
//! that stays behind.

use std::fmt;

use secrecy::{ExposeSecret, SecretString};

use crate::database::client::{QUERY_LIMIT, Rows, SqlError, identifier, literal, name_from_hex};
use crate::database::names::{SHADOW_MARK, schemas_beside, short_hash};
use crate::database::rewrite::Definer;
use crate::database::{Account, Server};
use crate::error::{Error, ErrorKind, Result};
use crate::progress::Cancel;

/// How whoever asks stands in the server's lists of rights.
pub(super) const GRANTEE: &str = "CONCAT('''', REPLACE(SUBSTRING_INDEX(CURRENT_USER(), '@', 1), '''', ''''''), '''@''', SUBSTRING_INDEX(CURRENT_USER(), '@', -1), '''')";

/// Under whose account everything that a tenant wrote is created in the live schema. It imports, too, where the server's account
/// may not create accounts.
#[derive(Clone)]
pub enum ImportAccount {
    /// The customer's own. It has to have all rights on the live schema.
    Customer {
        /// Its name.
        user: String,
        /// Its password.
        password: SecretString,
    },
    /// The platform has none: one is made, with a random password and, from the swap on, rights on the live schema. If that
    /// has triggers, views, routines or events then, it stays as their definer, with rights on that schema alone and locked, so that nobody can log in.
    Temporary,
}

impl fmt::Debug for ImportAccount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Customer { user, .. } => write!(f, "Customer({user})"),
            Self::Temporary => f.write_str("Temporary"),
        }
    }
}

/// An account and how it stands in definers.
#[derive(Clone)]
pub(super) struct Identity {
    pub(super) account: Account,
    pub(super) definer: Definer,
    /// One that we made.
    pub(super) temporary: bool,
}

impl Identity {
    fn temporary(definer: Definer) -> Self {
        // Letters of both cases, digits and a sign, for servers that insist.
        let password = SecretString::from(format!("aA1!{:032x}", rand::random::<u128>()));
        Self {
            account: Account {
                user: definer.user.clone(),
                password,
            },
            definer,
            temporary: true,
        }
    }

    /// Log in: another account, of the same name, may come first for the server.
    pub(super) fn check_login(&self, server: &Server, schema: &str, cancel: &Cancel) -> Result<()> {
        let seen = whoami(server, &self.account, Some(schema), cancel)?;
        if seen != self.definer {
            return Err(Error::new(
                ErrorKind::Refused,
                format!(
                    "the database server takes {} for {}; remove the account that comes before it",
                    self.definer.quoted(),
                    seen.quoted()
                ),
            ));
        }
        Ok(())
    }
}

/// Make the tenant's account usable and find out how the server names it.
pub(super) fn open_tenant(
    server: &Server,
    live: &str,
    account: &ImportAccount,
    cancel: &Cancel,
) -> Result<Identity> {
    match account {
        ImportAccount::Customer { user, password } => {
            let account = Account {
                user: user.clone(),
                password: password.clone(),
            };
            let definer = whoami(server, &account, None, cancel).map_err(|error| {
                error.context(format!(
                    "the customer's account {user} cannot be used to restore the database {live}"
                ))
            })?;
            Ok(Identity {
                account,
                definer,
                temporary: false,
            })
        }
        ImportAccount::Temporary => {
            let tenant = Identity::temporary(temporary_definer(live));
            let password = &tenant.account.password;
            let (account, word) = (tenant.definer.quoted(), password.expose_secret());
            server
                .query_with(
                    password,
                    &format!(
                        "CREATE USER IF NOT EXISTS {account} IDENTIFIED BY '{word}';
                         ALTER USER {account} IDENTIFIED BY '{word}' ACCOUNT UNLOCK;"
                    ),
                    cancel,
                )
                .map_err(|error| {
                    Error::from(error).context(format!(
                        "cannot create an account to restore the database {live} with"
                    ))
                })?;
            Ok(tenant)
        }
    }
}

/// A new account to import into the shadow schema `schema` with, as yet without a right; the tenant's where none may be created.
pub(super) fn open_importer(
    server: &Server,
    schema: &str,
    tenant: &Identity,
    cancel: &Cancel,
) -> Result<Identity> {
    if let Some(importer) = create_importer(server, schema, cancel)? {
        return Ok(importer);
    }
    tracing::warn!(
        "the account {} may not create accounts: a dump is imported as {}; GRANT CREATE USER to it",
        server.account.user,
        tenant.account.user
    );
    Ok(tenant.clone())
}

/// A new account to import into `schema` with, as yet without a right; None where none may be created.
pub(super) fn create_importer(
    server: &Server,
    schema: &str,
    cancel: &Cancel,
) -> Result<Option<Identity>> {
    let importer = Identity::temporary(importer_definer(schema));
    let password = &importer.account.password;
    let (account, word) = (importer.definer.quoted(), password.expose_secret());
    let created = server.query_with(
        password,
        &format!("CREATE USER {account} IDENTIFIED BY '{word}';"),
        cancel,
    );
    match created {
        Ok(()) => Ok(Some(importer)),
        Err(error) if error.code == Some(MAY_NOT) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// The account that imports into `schema` goes; where none may be dropped, none was created.
pub(super) fn drop_importer(server: &Server, schema: &str, cancel: &Cancel) -> Result<()> {
    let account = importer_definer(schema).quoted();
    let dropped = server.query(&format!("DROP USER IF EXISTS {account};"), cancel);
    allow(dropped, MAY_NOT)
}

const MAY_NOT: u16 = 1227;

/// Always the same for one live schema, so that a crash leaves nothing that cannot be found.
fn temporary_definer(live: &str) -> Definer {
    Definer {
        user: format!("shb_{}", short_hash(live)),
        host: "%".to_owned(),
    }
}

/// Of each shadow schema another: nothing that an earlier import was given can be left to it.
pub(super) fn importer_definer(schema: &str) -> Definer {
    temporary_definer(schema)
}

fn whoami(
    server: &Server,
    account: &Account,
    database: Option<&str>,
    cancel: &Cancel,
) -> Result<Definer> {
    let rows = server.ask(
        account,
        database,
        b"SELECT HEX(CURRENT_USER());",
        QUERY_LIMIT,
        cancel,
    )?;
    let name = name_from_hex(rows.first().and_then(|row| row.first()))?;
    Definer::parse(&name).ok_or_else(|| {
        Error::new(
            ErrorKind::Failed,
            "the database server did not tell the account's name",
        )
    })
}

/// Give `to` all rights on `schema` and on no other: `_` and `%` are wildcards in a grant.
pub(super) fn grant(server: &Server, to: &Identity, schema: &str, cancel: &Cancel) -> Result<()> {
    server.query(
        &format!(
            "GRANT ALL PRIVILEGES ON {}.* TO {};",
            identifier(&grant_pattern(server, schema, cancel)?),
            to.definer.quoted()
        ),
        cancel,
    )?;
    Ok(())
}

fn grant_pattern(server: &Server, schema: &str, cancel: &Cancel) -> Result<String> {
    // With partial revokes, MySQL takes the names in grants as they are.
    let partial = server.query("SHOW GLOBAL VARIABLES LIKE 'partial_revokes';", cancel)?;
    if partial
        .iter()
        .any(|row| row.last().is_some_and(|value| value == b"ON"))
    {
        return Ok(schema.to_owned());
    }
    Ok(schema
        .replace('\\', "\\\\")
        .replace('_', "\\_")
        .replace('%', "\\%"))
}

/// Take from `definer` what [`grant`] gave.
pub(super) fn revoke(
    server: &Server,
    definer: &Definer,
    schema: &str,
    cancel: &Cancel,
) -> Result<()> {
    let pattern = identifier(&grant_pattern(server, schema, cancel)?);
    let revoked = server.query(
        &format!(
            "REVOKE ALL PRIVILEGES ON {pattern}.* FROM {};",
            definer.quoted()
        ),
        cancel,
    );
    allow(revoked, NO_SUCH_GRANT)
}

const NO_SUCH_GRANT: u16 = 1141;

fn allow(result: Result<Rows, SqlError>, code: u16) -> Result<()> {
    match result {
        Err(error) if error.code != Some(code) => Err(error.into()),
        _ => Ok(()),
    }
}

/// Who has rights on just this schema.
pub(super) fn grantees(server: &Server, schema: &str, cancel: &Cancel) -> Result<Vec<Definer>> {
    let rows = server.query(
        &format!(
            "SELECT DISTINCT HEX(GRANTEE) FROM information_schema.SCHEMA_PRIVILEGES WHERE TABLE_SCHEMA = {};",
            literal(&grant_pattern(server, schema, cancel)?)
        ),
        cancel,
    )?;
    rows.iter()
        .map(|row| {
            let grantee = name_from_hex(row.first())?;
            // As the server writes it: 'user'@'host', with nothing escaped.
            let inner = grantee
                .strip_prefix('\'')
                .and_then(|text| text.strip_suffix('\''));
            let (user, host) = inner
                .and_then(|inner| inner.rsplit_once("'@'"))
                .ok_or_else(|| {
                    Error::new(
                        ErrorKind::Failed,
                        "the database server named an account in an unknown way",
                    )
                })?;
            Ok(Definer {
                user: user.to_owned(),
                host: host.to_owned(),
            })
        })
        .collect()
}

/// After a restore: the temporary account of `live` goes, or, if the live schema has something that it defines, is locked and keeps
/// its rights there.
pub(super) fn settle_account(server: &Server, live: &str) -> Result<()> {
    let cancel = &Cancel::new();
    let definer = temporary_definer(live);
    let exists = server.query(
        &format!(
            "SELECT 1 FROM information_schema.USER_PRIVILEGES WHERE GRANTEE = {} LIMIT 1;",
            literal(&format!("'{}'@'{}'", definer.user, definer.host))
        ),
        cancel,
    )?;
    if exists.is_empty() {
        return Ok(());
    }
    // An import by it, in another process, may be under way.
    if !schemas_beside(server, live, SHADOW_MARK, cancel)?.is_empty() {
        return Ok(());
    }
    let (schema, name) = (
        literal(live),
        literal(&format!("{}@{}", definer.user, definer.host)),
    );
    let defines = server.query_apart(
        &format!(
            "SELECT 1 FROM information_schema.VIEWS WHERE TABLE_SCHEMA = {schema} AND DEFINER = {name}
             UNION SELECT 1 FROM information_schema.ROUTINES WHERE ROUTINE_SCHEMA = {schema} AND DEFINER = {name}
             UNION SELECT 1 FROM information_schema.TRIGGERS WHERE TRIGGER_SCHEMA = {schema} AND DEFINER = {name}
             UNION SELECT 1 FROM information_schema.EVENTS WHERE EVENT_SCHEMA = {schema} AND DEFINER = {name};"
        ),
        cancel,
    )?;
    let account = definer.quoted();
    let change = if defines.is_empty() {
        format!("DROP USER IF EXISTS {account};")
    } else {
        format!("ALTER USER {account} ACCOUNT LOCK;")
    };
    server.query(&change, cancel)?;
    Ok(())
}
