//! What customers or retention deleted goes: first the snapshot from the repository, then its row from the catalogue.
//!
//! The mark in the catalogue was the commit point. This can be broken off anywhere, repeated, and done by several workers at once. Never: a snapshot
//! forgotten that is not wholly that customer's; a row removed while its snapshot is there, or may be again; one that cannot be forgotten in the way
//! of the others.

use std::sync::Arc;

use super::repositories::Away;
use super::upkeep::blocking;
use crate::catalog::{Catalog, Deletion, RepositoryName};
use crate::customer::CustomerId;
use crate::error::{Error, ErrorKind, Result};
use crate::operations::{Engine, Forgetting};

/// Forget what was deleted of customers' own backups, of one customer or of all. The first failure is given, after all were tried; what could not be
/// forgotten stays deleted for its customer, and is left to the next time.
pub(super) async fn carry_out(
    engine: &Arc<Engine>,
    catalog: &Catalog,
    customer: Option<CustomerId>,
) -> Result<()> {
    let whose = match (engine.each_has_own(), customer) {
        (false, _) => vec![None],
        (true, Some(customer)) => vec![Some(customer)],
        (true, None) => {
            let server = &engine.config().worker.server;
            let customers = catalog.with_deletions(server).await?;
            customers.into_iter().map(Some).collect()
        }
    };
    let mut failure = None;
    let mut away = Away::default();
    for owner in whose {
        let done = carry_out_in(engine, catalog, owner, customer.or(owner)).await;
        if let Some(owner) = owner {
            away.note(RepositoryName::ManualOf(owner), &done);
        }
        match done {
            Ok(()) => {}
            Err(error)
                if owner.is_some_and(|owner| away.concerns(RepositoryName::ManualOf(owner))) =>
            {
                return Err(error);
            }
            Err(error) => failure = failure.or(Some(error)),
        }
    }
    failure.map_or(Ok(()), Err)
}

/// In the repository of `owner`, or in the one that all share.
async fn carry_out_in(
    engine: &Arc<Engine>,
    catalog: &Catalog,
    owner: Option<CustomerId>,
    customer: Option<CustomerId>,
) -> Result<()> {
    let opener = Arc::clone(engine);
    let open = move || match owner {
        Some(owner) => Ok(opener.manual_of(owner)?.id()),
        None => Ok(opener.manual()?.id()),
    };
    let repository_id = blocking(open).await?;
    let mut failure = None;
    for deletion in catalog.deletions(&repository_id, customer).await? {
        match forget(engine, catalog, &repository_id, deletion).await {
            Ok(()) => {}
            // It is for the others as well.
            Err(error) if error.kind() == ErrorKind::Unreachable => return Err(error),
            Err(error) => failure = failure.or(Some(error)),
        }
    }
    failure.map_or(Ok(()), Err)
}

async fn forget(
    engine: &Arc<Engine>,
    catalog: &Catalog,
    repository_id: &str,
    deletion: Deletion,
) -> Result<()> {
    let Deletion {
        customer,
        origin,
        snapshot,
    } = deletion;
    let engine = Arc::clone(engine);
    let forget = move || engine.forget(customer, origin, &snapshot);
    match blocking(forget).await? {
        Forgetting::Done => {
            catalog.remove(repository_id, &[snapshot]).await?;
            tracing::info!(customer = %customer, "the deleted snapshot {snapshot} is forgotten");
            Ok(())
        }
        // Another worker has just forgotten it, or died after that; or a listing lacks it for now. The sync removes what is missing for long.
        Forgetting::Missing => Ok(()),
        Forgetting::NotHis => {
            catalog.remove_false(&deletion).await?;
            Err(Error::new(
                ErrorKind::Damaged,
                format!(
                    "the catalogue had the snapshot {snapshot} as a deleted backup ({}) of customer {customer}, and by its tags it is \
                     none: it stays, and the row is removed; find out who wrote it",
                    origin.tag()
                ),
            ))
        }
    }
}
