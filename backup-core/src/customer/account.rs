//! What a customer logs in with, and whether he may.

use secrecy::SecretString;

use super::store::RawCustomer;
use super::{CustomerId, CustomerStore};
use crate::audit::{Action, Deed};
use crate::error::{Error, ErrorKind, Result};
use crate::store::values;

/// A customer as whoever lets him in sees him.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Account {
    /// His number.
    pub id: CustomerId,
    /// How he is addressed: his company, else his shop's domain, else his email address.
    pub name: String,
    /// Whether the platform lets him use what he has.
    pub is_active: bool,
    email: Option<String>,
    pub(crate) password_hash: Option<SecretString>,
}

/// Where a customer can be told something.
#[derive(Debug, Clone)]
pub(crate) struct Contact {
    /// His email address; nothing says that it is one.
    pub(crate) email: Option<String>,
    /// The domain of his shop; nothing says that it is one.
    pub(crate) domain: Option<String>,
}

impl CustomerStore {
    /// Where a customer can be told something; None where there is no such customer any more.
    pub(crate) async fn contact(&self, id: CustomerId) -> Result<Option<Contact>> {
        const QUERY: &str = "SELECT * FROM customers WHERE id = ?";
        let found: Option<RawCustomer> = self.store().row(QUERY, values![id.get()]).await?;
        Ok(found.map(|row| Contact {
            email: row.email.filter(|email| !email.trim().is_empty()),
            domain: row.domain,
        }))
    }

    /// The account of a customer whom the platform has let in.
    pub async fn account_of(&self, id: CustomerId) -> Result<Option<Account>> {
        const QUERY: &str = "SELECT * FROM customers WHERE id = ?";
        let found: Option<AccountRow> = self.store().row(QUERY, values![id.get()]).await?;
        Ok(found.map(|row| row.0))
    }

    /// The account of an email address, spelt with whatever capitals; its owner has proven nothing yet.
    pub async fn account(&self, email: &str) -> Result<Option<Account>> {
        // How the table compares is the platform's choice. What it may find beyond the address (accents are often all the same
        // to it) is not who was asked for.
        const QUERY: &str = "SELECT * FROM customers WHERE email IN (?, ?)";
        let found: Vec<AccountRow> = self
            .store()
            .rows(QUERY, values![email, normal(email)])
            .await?;
        let is_exact = |account: &Account| account.email.as_deref() == Some(email);
        let mut same: Vec<Account> = found
            .into_iter()
            .map(|row| row.0)
            .filter(|account| account.email.as_deref().map(normal) == Some(normal(email)))
            .collect();
        same.sort_by_key(|account| !is_exact(account));
        Ok(same.into_iter().next())
    }

    /// Those of all customers who have one, in their order.
    pub(crate) async fn password_hashes(&self) -> Result<Vec<SecretString>> {
        const QUERY: &str = "SELECT * FROM customers ORDER BY id";
        let rows: Vec<RawCustomer> = self.store().rows(QUERY, &[]).await?;
        Ok(rows
            .into_iter()
            .filter_map(|row| row.password_hash)
            .collect())
    }

    /// Give a customer of the embedded store a new password, as a hash that [`crate::login::hash_password`] made, and an email address where one
    /// is said. Ends his sessions.
    pub async fn set_password(
        &self,
        id: CustomerId,
        email: Option<&str>,
        password_hash: &str,
    ) -> Result<()> {
        self.require_own()?;
        let email = email.map(checked).transpose()?;
        let has_email = "SELECT COUNT(*) FROM customers WHERE id = ? AND email IS NOT NULL";
        let is_known: Option<(i64,)> = self.store().row(has_email, values![id.get()]).await?;
        if email.is_none() && is_known != Some((1,)) {
            self.get(id).await?;
            return Err(Error::new(
                ErrorKind::InvalidInput,
                format!("customer {id} has no email address to log in with: give one with --email"),
            ));
        }
        let update =
            "UPDATE customers SET password_hash = ?, email = COALESCE(?, email) WHERE id = ?";
        let values = values![password_hash, email.clone(), id.get()];
        let taken = |address: &str| {
            Error::new(
                ErrorKind::InvalidInput,
                format!("another customer has the email address {address}"),
            )
        };
        if let Some(address) = &email
            && let Some(other) = self.account(address).await?
            && other.id != id
        {
            return Err(taken(address));
        }
        let mut transaction = self.store().begin().await?;
        if transaction.execute(update, values).await? == 0 {
            drop(transaction);
            // Says that there is no such customer.
            return self.get(id).await.map(drop);
        }
        let deed = Deed::to(id, Action::Password);
        self.audit().note_in(&mut transaction, &deed).await?;
        transaction.commit().await
    }
}

/// One spelling of an email address that is one, as far as it can be seen.
pub(super) fn checked(email: &str) -> Result<String> {
    // The platform's column has no more, and no mail server either.
    const LONGEST: usize = 254;
    let email = normal(email);
    let is_address = email
        .split_once('@')
        .is_some_and(|(who, place)| !who.is_empty() && !place.is_empty() && !place.contains('@'));
    let is_foreign = |c: char| c.is_whitespace() || c.is_control();
    if !is_address || email.len() > LONGEST || email.contains(is_foreign) {
        return Err(Error::new(
            ErrorKind::InvalidInput,
            "that is no email address: one has an @ in the middle, no spaces, and at most 254 characters",
        ));
    }
    Ok(email)
}

/// One spelling of an email address, to compare by.
pub(crate) fn normal(email: &str) -> String {
    email.trim().to_lowercase()
}

/// An account as it is read: how that is done is no part of the account.
pub(crate) struct AccountRow(pub(crate) Account);

impl<'r, R: sqlx::Row> sqlx::FromRow<'r, R> for AccountRow
where
    RawCustomer: sqlx::FromRow<'r, R>,
{
    fn from_row(row: &'r R) -> sqlx::Result<Self> {
        let raw = RawCustomer::from_row(row)?;
        let id = raw
            .id()
            .ok_or_else(|| sqlx::Error::ColumnNotFound("customers.id".into()))?;
        let name = raw.company_name.or(raw.domain).or(raw.email.clone());
        Ok(Self(Account {
            id,
            name: name.unwrap_or_else(|| format!("Customer {id}")),
            is_active: raw.status.as_deref() == Some("active"),
            email: raw.email,
            password_hash: raw.password_hash,
        }))
    }
}
