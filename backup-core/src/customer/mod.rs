//! Who a customer is: his number, the names made of it, and what the platform's table says of him.
//!
//! Never: a comparison of names by prefix (`customer-1` is not `customer-12`); a database name from the table used
//! unchecked, for it becomes part of paths and of SQL; a write to a table that the platform owns.

mod account;
mod store;

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use secrecy::SecretString;

use crate::error::{Error, ErrorKind, Result};

pub use account::Account;
pub(crate) use account::{AccountRow, normal};
pub(crate) use store::Placed;
pub use store::{CustomerStore, CustomerSummary, NewCustomer};

/// The hosting server of customers for whom the platform names none.
pub const DEFAULT_SERVER: &str = "default";

/// The number of a customer, at least 1. Displayed as the bare number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize)]
#[serde(transparent)]
pub struct CustomerId(u32);

impl CustomerId {
    /// The customer with this number; [`ErrorKind::InvalidInput`] for 0.
    pub fn new(number: u32) -> Result<Self> {
        if number == 0 {
            return Err(Error::new(
                ErrorKind::InvalidInput,
                "customer numbers start at 1",
            ));
        }
        Ok(Self(number))
    }

    /// The bare number.
    pub fn get(self) -> u32 {
        self.0
    }

    /// `customer-N`: the snapshot tag that says whose backup it is, and the name of his directory.
    pub fn tag(self) -> String {
        format!("customer-{}", self.0)
    }

    /// The customer that a snapshot tag or directory name stands for, if it is one: the whole of it, spelt exactly
    /// as [`Self::tag`] spells it.
    pub fn from_tag(tag: &str) -> Option<Self> {
        tag.strip_prefix("customer-")?.parse().ok()
    }

    /// The customer's directory below the root of all customers.
    pub fn dir(self, customers_root: &Path) -> PathBuf {
        customers_root.join(self.tag())
    }
}

impl fmt::Display for CustomerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl FromStr for CustomerId {
    type Err = Error;

    /// Digits only: no sign, no leading zero, no space; at least 1. So every customer has one spelling.
    fn from_str(text: &str) -> Result<Self> {
        let plain =
            !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) && !text.starts_with('0');
        match text.parse() {
            Ok(number) if plain => Ok(Self(number)),
            _ => Err(Error::new(
                ErrorKind::InvalidInput,
                format!("`{}` is not a customer number", shorten(text)),
            )),
        }
    }
}

/// The name of a customer's database schema: 1 to 64 ASCII letters, digits, `_`, `$` and `-`, not starting with `-`,
/// and not a schema of the server itself. Safe as one component of a path and inside backticks.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DatabaseName(String);

impl DatabaseName {
    /// The bare name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for DatabaseName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for DatabaseName {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        const SERVERS_OWN: [&str; 4] = ["mysql", "information_schema", "performance_schema", "sys"];
        let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'$' | b'-');
        let reason = if name.is_empty() || name.len() > 64 {
            "it must have 1 to 64 characters"
        } else if !name.bytes().all(plain) || name.starts_with('-') {
            "only letters, digits, `_`, `$` and `-` are allowed"
        } else if SERVERS_OWN.iter().any(|own| own.eq_ignore_ascii_case(name)) {
            "it belongs to the database server"
        } else {
            return Ok(Self(name.to_owned()));
        };
        Err(Error::new(
            ErrorKind::InvalidInput,
            format!(
                "`{}` cannot be the name of a customer's database: {reason}",
                shorten(name)
            ),
        ))
    }
}

/// What is known of a customer.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Customer {
    /// His number.
    pub id: CustomerId,
    /// What the platform calls his state (`active`, `suspended`, …); `None` where its table has no such column.
    pub status: Option<String>,
    /// His database schema: the table's, else the one that `customer_database.name` gives.
    pub db_name: DatabaseName,
    /// His own database account, where the platform has one.
    pub db_user: Option<String>,
    /// The password of that account.
    pub db_password: Option<SecretString>,
    /// The local port that his site answers on.
    pub web_port: Option<u16>,
    /// The name of the hosting server that his files are on; [`DEFAULT_SERVER`] where the platform has but one.
    pub server: String,
}

impl Customer {
    /// Whether the platform serves him; so it does whomever it has no state of.
    pub fn is_active(&self) -> bool {
        self.status.as_deref().is_none_or(|is| is == "active")
    }
}

/// Hostile input made fit for a message.
fn shorten(text: &str) -> String {
    let mut shown: String = text.chars().take(40).flat_map(char::escape_debug).collect();
    if text.chars().nth(40).is_some() {
        shown.push('…');
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_customer_number_has_one_spelling() {
        assert_eq!("12".parse::<CustomerId>().unwrap().get(), 12);
        assert_eq!("4294967295".parse::<CustomerId>().unwrap().get(), u32::MAX);
        for bad in [
            "",
            "0",
            "01",
            "+1",
            "-1",
            " 1",
            "1 ",
            "1\n",
            "0x1",
            "१",
            "4294967296",
            "1/../2",
            "one",
            "1;ls",
        ] {
            let error = bad.parse::<CustomerId>().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput, "{bad:?}");
        }
        assert!(CustomerId::new(0).is_err());
    }

    #[test]
    fn a_tag_is_compared_whole() {
        let one = CustomerId::new(1).unwrap();
        assert_eq!(one.tag(), "customer-1");
        assert_eq!(CustomerId::from_tag("customer-1"), Some(one));
        for other in [
            "customer-12",
            "customer-01",
            "customer-",
            "customer",
            "xcustomer-1",
            "customer-1 ",
            "Customer-1",
            "customer-1,manual",
            "1",
        ] {
            assert_ne!(CustomerId::from_tag(other), Some(one), "{other:?}");
        }
    }

    #[test]
    fn a_database_name_is_one_harmless_word() {
        for good in ["customer_7", "shop-1", "a", "A$b", &"x".repeat(64)] {
            assert_eq!(good.parse::<DatabaseName>().unwrap().as_str(), good);
        }
        for bad in [
            "",
            "../x",
            "a/b",
            "a`b",
            "a b",
            "-x",
            "a\0",
            "mysql",
            "MySQL",
            "sys",
            "é",
            "a.b",
            &"x".repeat(65),
        ] {
            assert!(bad.parse::<DatabaseName>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_message_shows_hostile_input_harmlessly() {
        let error = format!("\x1b[31m{}", "9".repeat(10_000))
            .parse::<CustomerId>()
            .unwrap_err();
        assert!(error.to_string().len() < 150);
        assert!(!error.to_string().contains('\x1b'));
    }
}
