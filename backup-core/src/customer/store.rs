//! The table of customers: the platform's, or a small one of our own where there is no platform.

use std::collections::BTreeMap;
use std::sync::Arc;

use secrecy::{ExposeSecret, SecretString};
use sqlx::{ColumnIndex, Decode, Row, Type};

use super::account::checked;
use super::{Customer, CustomerId, DEFAULT_SERVER, DatabaseName};
use crate::audit::{Action, Actor, Audit, Deed};
use crate::config::{Config, CustomerDatabaseConfig};
use crate::error::{Error, ErrorKind, Result};
use crate::store::{Inserted, Store, values};

/// Where customers are looked up. Cheap to clone.
#[derive(Debug, Clone)]
pub struct CustomerStore {
    store: Store,
    audit: Audit,
    naming: CustomerDatabaseConfig,
}

/// A line of the list of customers.
#[derive(Debug, Clone, serde::Serialize)]
#[non_exhaustive]
pub struct CustomerSummary {
    /// His number.
    pub id: CustomerId,
    /// What the platform calls his state.
    pub status: Option<String>,
    /// His domain or company, where the table has them.
    pub name: Option<String>,
    /// The address that he logs in with.
    pub email: Option<String>,
}

/// A customer and where he is.
#[derive(Debug, Clone)]
pub(crate) struct Placed {
    pub(crate) id: CustomerId,
    pub(crate) status: Option<String>,
    pub(crate) name: Option<String>,
    /// None where the table names a hosting server that there is not.
    pub(crate) server: Option<String>,
    /// Whether the table names a database for him. Where it does not he may have one all the same, of the usual name.
    pub(crate) names_database: bool,
}

/// A customer to be added to the embedded store.
#[derive(Debug, Clone, Default)]
pub struct NewCustomer {
    /// His number; the next free one where there is none.
    pub id: Option<CustomerId>,
    /// The address that he logs in with.
    pub email: Option<String>,
    /// The domain of his shop.
    pub domain: Option<String>,
    /// His database schema, where it is not the one that `customer_database.name` gives.
    pub db_name: Option<DatabaseName>,
    /// His own database account.
    pub db_user: Option<String>,
    /// Its password.
    pub db_password: Option<SecretString>,
    /// The local port that his site answers on.
    pub web_port: Option<u16>,
}

impl CustomerStore {
    /// The customers of a database.
    pub fn new(store: &Store, config: &Config) -> Self {
        Self {
            store: store.clone(),
            audit: Audit::new(store),
            naming: config.customer_database.clone(),
        }
    }

    /// The same customers. What is done to them from here is written down as this one's.
    #[must_use]
    pub fn acting(&self, actor: Actor) -> Self {
        self.acting_as(&Arc::new(actor))
    }

    pub(crate) fn acting_as(&self, actor: &Arc<Actor>) -> Self {
        Self {
            audit: self.audit.acting(actor),
            ..self.clone()
        }
    }

    pub(crate) fn audit(&self) -> &Audit {
        &self.audit
    }

    /// A customer. [`ErrorKind::NotFound`] where there is none of this number; [`ErrorKind::Configuration`] where
    /// what the table says of him cannot be used.
    pub async fn get(&self, id: CustomerId) -> Result<Customer> {
        // All columns, for which of them exist differs between platforms.
        const QUERY: &str = "SELECT * FROM customers WHERE id = ?";
        let raw: Option<RawCustomer> = self.store.row(QUERY, values![id.get()]).await?;
        let raw = raw
            .ok_or_else(|| Error::new(ErrorKind::NotFound, format!("there is no customer {id}")))?;
        let server = match raw.server_id {
            Some(server) => self.server_name(id, server).await?,
            None => DEFAULT_SERVER.to_owned(),
        };
        self.understand(id, raw, server)
    }

    /// All customers by number.
    pub async fn list(&self) -> Result<Vec<CustomerSummary>> {
        const QUERY: &str = "SELECT * FROM customers ORDER BY id";
        let raw: Vec<RawCustomer> = self.store.rows(QUERY, &[]).await?;
        let summary = |raw: RawCustomer| {
            Some(CustomerSummary {
                id: raw.id()?,
                status: raw.status,
                name: raw.domain.or(raw.company_name),
                email: raw.email,
            })
        };
        Ok(raw.into_iter().filter_map(summary).collect())
    }

    /// All customers by number, and which hosting servers they are on.
    pub(crate) async fn placed(&self) -> Result<Vec<Placed>> {
        const QUERY: &str = "SELECT * FROM customers ORDER BY id";
        let raw: Vec<RawCustomer> = self.store.rows(QUERY, &[]).await?;
        let mut names: BTreeMap<i64, Option<String>> = BTreeMap::new();
        let mut placed = Vec::with_capacity(raw.len());
        for raw in raw {
            let Some(id) = raw.id() else {
                continue;
            };
            let server = match raw.server_id {
                None => Some(DEFAULT_SERVER.to_owned()),
                Some(number) => match names.get(&number) {
                    Some(name) => name.clone(),
                    None => {
                        let name = match self.server_name(id, number).await {
                            Err(e) if e.kind() != ErrorKind::Configuration => return Err(e),
                            name => name.ok(),
                        };
                        names.insert(number, name.clone());
                        name
                    }
                },
            };
            placed.push(Placed {
                id,
                status: raw.status,
                name: raw.domain.or(raw.company_name),
                server,
                names_database: raw.db_name.is_some(),
            });
        }
        Ok(placed)
    }

    /// All customers of a hosting server, by number, whatever their state. Of whom it cannot be told where he is, or what he has, the error is given:
    /// he may be one of them.
    pub async fn of_server(&self, server: &str) -> Result<Vec<(CustomerId, Result<Customer>)>> {
        const QUERY: &str = "SELECT * FROM customers ORDER BY id";
        let raw: Vec<RawCustomer> = self.store.rows(QUERY, &[]).await?;
        let mut names: BTreeMap<i64, String> = BTreeMap::new();
        let mut found = Vec::new();
        for raw in raw {
            let Some(id) = raw.id() else {
                continue;
            };
            let name = match raw.server_id {
                None => Ok(DEFAULT_SERVER.to_owned()),
                Some(number) => match names.get(&number) {
                    Some(name) => Ok(name.clone()),
                    None => self.server_name(id, number).await.inspect(|name| {
                        names.insert(number, name.clone());
                    }),
                },
            };
            match name {
                Ok(name) if name == server => {
                    found.push((id, self.understand(id, raw, name)));
                }
                Ok(_) => {}
                // The database is away, or the row makes no sense.
                Err(error) if error.kind() != ErrorKind::Configuration => return Err(error),
                Err(error) => found.push((id, Err(error))),
            }
        }
        Ok(found)
    }

    /// The database schema of every customer, by number, with what the platform numbers his hosting server by. Whose name cannot be used is left out:
    /// he can have no backup of it.
    pub async fn database_names(&self) -> Result<Vec<(CustomerId, DatabaseName, Option<i64>)>> {
        const QUERY: &str = "SELECT * FROM customers ORDER BY id";
        let raw: Vec<RawCustomer> = self.store.rows(QUERY, &[]).await?;
        let named = |raw: RawCustomer| {
            let (id, server) = (raw.id()?, raw.server_id);
            let customer = self.understand(id, raw, String::new()).ok()?;
            Some((id, customer.db_name, server))
        };
        Ok(raw.into_iter().filter_map(named).collect())
    }

    /// Add a customer to the embedded store. [`ErrorKind::InvalidInput`] where his number is taken, or where the
    /// platform owns the table.
    pub async fn add(&self, new: &NewCustomer) -> Result<CustomerId> {
        self.require_own()?;
        const INSERT: &str =
            "INSERT INTO customers (id, email, domain, status, db_name, db_user, db_password, web_port)
             VALUES (?, ?, ?, 'active', ?, ?, ?, ?)";
        let email = new.email.as_deref().map(checked).transpose()?;
        let password = new.db_password.as_ref().map(ExposeSecret::expose_secret);
        let mut transaction = self.store.begin().await?;
        let inserted = transaction
            .insert(
                INSERT,
                values![
                    new.id.map(CustomerId::get),
                    email,
                    new.domain.clone(),
                    new.db_name.as_ref().map(DatabaseName::as_str),
                    new.db_user.clone(),
                    password,
                    new.web_port.map(u32::from),
                ],
            )
            .await?;
        match inserted {
            Inserted::Done(id) => {
                let id = u32::try_from(id).map_err(|e| {
                    Error::caused(ErrorKind::Failed, "the numbers of customers are used up", e)
                })?;
                let id = CustomerId::new(id)?;
                let deed = Deed::to(id, Action::Added);
                self.audit.note_in(&mut transaction, &deed).await?;
                transaction.commit().await?;
                Ok(id)
            }
            Inserted::Conflict => Err(Error::new(
                ErrorKind::InvalidInput,
                match new.id {
                    Some(id) => {
                        format!("there is a customer {id} already, or one of that email address")
                    }
                    None => "there is a customer of that email address already".to_owned(),
                },
            )),
        }
    }

    /// [`ErrorKind::InvalidInput`] where the platform owns the table.
    pub(super) fn require_own(&self) -> Result<()> {
        if self.store.is_platforms() {
            return Err(Error::new(
                ErrorKind::InvalidInput,
                format!(
                    "the customers of {} are the platform's: add and change them there",
                    self.store.shown()
                ),
            ));
        }
        Ok(())
    }

    /// Whether the customers are the platform's.
    pub(crate) fn is_platforms(&self) -> bool {
        self.store.is_platforms()
    }

    pub(super) fn store(&self) -> &Store {
        &self.store
    }

    /// What the platform calls the hosting server with this number.
    async fn server_name(&self, customer: CustomerId, server: i64) -> Result<String> {
        // A platform of one server need not have the table.
        const QUERY: &str = "SELECT name FROM servers WHERE id = ?";
        let Some(found) = self
            .store
            .row_if_table::<ServerName>(QUERY, values![server])
            .await?
        else {
            return Ok(DEFAULT_SERVER.to_owned());
        };
        found.map(|server| server.0).ok_or_else(|| {
            Error::new(
                ErrorKind::Configuration,
                format!("customer {customer} is on the server {server}, which the table `servers` does not have"),
            )
        })
    }

    fn understand(&self, id: CustomerId, raw: RawCustomer, server: String) -> Result<Customer> {
        let unusable = |what: &str, e: Error| {
            Error::caused(
                ErrorKind::Configuration,
                format!("{what} of customer {id} cannot be used: {e}"),
                e,
            )
        };
        let db_name = match raw.db_name {
            Some(name) => name.parse().map_err(|e| unusable("the db_name", e))?,
            None => self
                .naming
                .default_name(id)
                .map_err(|e| unusable("the database name", e))?,
        };
        // A container has a server of its own, where the name clashes with nothing.
        let clashes = self
            .store
            .schema()
            .is_some_and(|own| own.eq_ignore_ascii_case(db_name.as_str()));
        if clashes && !self.naming.is_in_container() {
            return Err(Error::new(
                ErrorKind::Configuration,
                format!("the db_name of customer {id} is the platform's own database {db_name}"),
            ));
        }
        let web_port = match raw.web_port {
            None | Some(0) => None,
            Some(port) => Some(u16::try_from(port).map_err(|e| {
                let message = format!("the web_port of customer {id}, {port}, is not a port");
                Error::caused(ErrorKind::Configuration, message, e)
            })?),
        };
        Ok(Customer {
            id,
            status: raw.status,
            db_name,
            db_user: raw.db_user,
            db_password: raw.db_password,
            web_port,
            server,
        })
    }
}

/// The name of a hosting server.
struct ServerName(String);

/// What a row says, whatever the types of its columns; `None` for a column that is absent, NULL or empty.
pub(super) struct RawCustomer {
    id: Option<i64>,
    pub(super) email: Option<String>,
    pub(super) password_hash: Option<SecretString>,
    pub(super) status: Option<String>,
    pub(super) domain: Option<String>,
    pub(super) company_name: Option<String>,
    db_name: Option<String>,
    db_user: Option<String>,
    db_password: Option<SecretString>,
    web_port: Option<i64>,
    server_id: Option<i64>,
}

impl RawCustomer {
    pub(super) fn id(&self) -> Option<CustomerId> {
        let number = u32::try_from(self.id?).ok()?;
        CustomerId::new(number).ok()
    }
}

impl<'r, R: Row> sqlx::FromRow<'r, R> for RawCustomer
where
    for<'a> &'a str: ColumnIndex<R>,
    Option<String>: Decode<'r, R::Database> + Type<R::Database>,
    Option<Vec<u8>>: Decode<'r, R::Database> + Type<R::Database>,
    Option<i64>: Decode<'r, R::Database> + Type<R::Database>,
    Option<u32>: Decode<'r, R::Database> + Type<R::Database>,
{
    fn from_row(row: &'r R) -> sqlx::Result<Self> {
        let text = |column: &str| -> Option<String> {
            let text = match row.try_get::<Option<String>, _>(column) {
                Ok(text) => text,
                // Text of a binary collation.
                Err(_) => row
                    .try_get::<Option<Vec<u8>>, _>(column)
                    .ok()?
                    .and_then(|bytes| String::from_utf8(bytes).ok()),
            };
            text.filter(|text| !text.is_empty())
        };
        let integer = |column: &str| -> Option<i64> {
            if let Ok(number) = row.try_get::<Option<i64>, _>(column) {
                return number;
            }
            if let Ok(number) = row.try_get::<Option<u32>, _>(column) {
                return number.map(i64::from);
            }
            text(column)?.parse().ok()
        };
        Ok(Self {
            id: integer("id"),
            email: text("email"),
            password_hash: text("password_hash").map(SecretString::from),
            status: text("status"),
            domain: text("domain"),
            company_name: text("company_name"),
            db_name: text("db_name"),
            db_user: text("db_user"),
            db_password: text("db_password").map(SecretString::from),
            web_port: integer("web_port"),
            server_id: integer("server_id"),
        })
    }
}

impl<'r, R: Row> sqlx::FromRow<'r, R> for ServerName
where
    usize: ColumnIndex<R>,
    String: Decode<'r, R::Database> + Type<R::Database>,
{
    fn from_row(row: &'r R) -> sqlx::Result<Self> {
        row.try_get(0).map(Self)
    }
}

#[cfg(test)]
mod tests {
    use sqlx::SqlitePool;
    use sqlx::sqlite::SqliteConnectOptions;

    use super::*;
    use crate::config::{Environment, Origin};

    fn config(url: &str) -> Config {
        let text = format!(
            "[database]\nurl = '{url}'\n[repositories.manual]\nlocation = '/r'\npassword_file = '/p'\n"
        );
        Config::read(Origin::File("test".into()), &text, &Environment::default()).unwrap()
    }

    fn number(id: u32) -> CustomerId {
        CustomerId::new(id).unwrap()
    }

    async fn open(config: &Config) -> (Store, CustomerStore) {
        let store = Store::connect(config).await.unwrap();
        let customers = CustomerStore::new(&store, config);
        (store, customers)
    }

    #[tokio::test]
    async fn a_customer_that_was_added_is_found_again() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("new/backup.db");
        let config = config(&format!("sqlite://{}", file.display()));
        let (connected, store) = open(&config).await;
        let first = store.add(&NewCustomer::default()).await.unwrap();
        assert_eq!(first, number(1));
        let shop = NewCustomer {
            id: Some(number(12)),
            email: Some("Owner@Shop.example".into()),
            domain: Some("shop.example".into()),
            db_name: Some("shop".parse().unwrap()),
            db_user: Some("u".into()),
            db_password: Some("s3cret".into()),
            web_port: Some(8012),
        };
        store.add(&shop).await.unwrap();
        let again = store.add(&shop).await.unwrap_err();
        assert_eq!(again.kind(), ErrorKind::InvalidInput);
        connected.close().await;

        let (connected, store) = open(&config).await;
        let one = store.get(first).await.unwrap();
        assert_eq!(
            (one.db_name.as_str(), one.db_user, one.web_port),
            ("customer_1", None, None)
        );
        let twelve = store.get(number(12)).await.unwrap();
        assert_eq!(twelve.db_name.as_str(), "shop");
        assert_eq!(twelve.web_port, Some(8012));
        assert_eq!(
            twelve.db_password.as_ref().unwrap().expose_secret(),
            "s3cret"
        );
        assert!(!format!("{twelve:?}").contains("s3cret"));
        let missing = store.get(number(2)).await.unwrap_err();
        assert_eq!(missing.kind(), ErrorKind::NotFound);
        assert_eq!(missing.to_string(), "there is no customer 2");
        let listed: Vec<_> = store
            .list()
            .await
            .unwrap()
            .iter()
            .map(|line| line.id.get())
            .collect();
        assert_eq!(listed, [1, 12]);
        connected.close().await;
    }

    #[tokio::test]
    async fn the_customers_of_a_server_are_all_of_them_also_those_that_make_no_sense() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("backup.db");
        let (connected, store) = open(&config(&format!("sqlite://{}", file.display()))).await;
        for _ in 0..3 {
            store.add(&NewCustomer::default()).await.unwrap();
        }
        let spoil = "UPDATE customers SET db_name = '../x', status = 'suspended' WHERE id = 2";
        connected.execute(spoil, &[]).await.unwrap();
        let found = store.of_server(DEFAULT_SERVER).await.unwrap();
        let usable: Vec<_> = found
            .iter()
            .map(|(id, one)| (id.get(), one.is_ok()))
            .collect();
        assert_eq!(usable, [(1, true), (2, false), (3, true)]);
        assert!(store.of_server("elsewhere").await.unwrap().is_empty());
        connected.close().await;
    }

    #[tokio::test]
    async fn what_is_no_email_address_is_nobodys() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("backup.db");
        let (connected, store) = open(&config(&format!("sqlite://{}", file.display()))).await;
        let long = format!("{}@b", "a".repeat(253));
        for bad in [
            "",
            "@",
            "a",
            "a@",
            "@b",
            "a@b@c",
            "a b@c",
            "a@b\nc",
            "a@b\u{0}c",
            "a\u{a0}b@c",
            &long,
        ] {
            let new = NewCustomer {
                email: Some(bad.to_owned()),
                ..NewCustomer::default()
            };
            let error = store.add(&new).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput, "{bad:?}");
        }
        assert!(store.list().await.unwrap().is_empty());
        let new = NewCustomer {
            email: Some(" Owner@Shop.example ".to_owned()),
            ..NewCustomer::default()
        };
        store.add(&new).await.unwrap();
        let listed = store.list().await.unwrap();
        assert_eq!(listed[0].email.as_deref(), Some("owner@shop.example"));
        let long = format!("{}@b", "a".repeat(252));
        store
            .set_password(number(1), Some(&long), "hash")
            .await
            .unwrap();
        let error = store.set_password(number(1), Some("a@b@c"), "hash").await;
        assert_eq!(error.unwrap_err().kind(), ErrorKind::InvalidInput);
        connected.close().await;
    }

    #[tokio::test]
    async fn the_embedded_store_is_private() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("data/backup.db");
        let (connected, _) = open(&config(&format!("sqlite://{}", file.display()))).await;
        connected.close().await;
        for path in [file.as_path(), file.parent().unwrap()] {
            assert_eq!(path.metadata().unwrap().permissions().mode() & 0o077, 0);
        }
    }

    #[tokio::test]
    async fn what_the_table_says_is_not_believed_blindly() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("backup.db");
        let (connected, store) = open(&config(&format!("sqlite://{}", file.display()))).await;
        for (id, column, value) in [
            (1_u32, "db_name", "../../etc"),
            (2, "db_name", "mysql"),
            (3, "web_port", "70000"),
        ] {
            let insert = format!("INSERT INTO customers (id, {column}) VALUES (?, ?)");
            connected
                .execute(&insert, values![id, value])
                .await
                .unwrap();
            let error = store.get(number(id)).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Configuration);
            assert!(
                error.to_string().contains(&format!("customer {id}")),
                "{error}"
            );
        }
        connected.close().await;
    }

    #[tokio::test]
    async fn a_table_with_few_columns_is_enough() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("backup.db");
        let pool = SqlitePool::connect_with(
            SqliteConnectOptions::new()
                .filename(&file)
                .create_if_missing(true),
        )
        .await
        .unwrap();
        sqlx::query("CREATE TABLE customers (id INTEGER PRIMARY KEY, email TEXT)")
            .execute(&pool)
            .await
            .unwrap();
        sqlx::query("INSERT INTO customers VALUES (7, 'a@b')")
            .execute(&pool)
            .await
            .unwrap();
        pool.close().await;
        let (connected, store) = open(&config(&format!("sqlite://{}", file.display()))).await;
        let seven = store.get(number(7)).await.unwrap();
        assert_eq!(seven.db_name.as_str(), "customer_7");
        assert_eq!((seven.status, seven.server.as_str()), (None, "default"));
        connected.close().await;
    }

    #[tokio::test]
    async fn an_unreachable_database_is_named_without_its_password() {
        // A port that was free a moment ago.
        let port = std::net::TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let config = config(&format!("mysql://u:s3cret@127.0.0.1:{port}/platform"));
        let error = Store::connect(&config).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unreachable);
        assert!(error.to_string().contains("127.0.0.1"), "{error}");
        assert!(!error.chain().contains("s3cret"));
    }
}
