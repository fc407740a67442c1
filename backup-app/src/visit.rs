//! Who looks at a page: what the server has to find out before it renders one.

use backup_core::customer::CustomerId;

use crate::model::Flash;

/// One request of somebody who is logged in. The server puts it into the request's extensions; without it no page but the login is rendered.
#[derive(Debug, Clone)]
pub struct Visit {
    /// Whose backups are shown. From the session alone, never from the request.
    pub customer: CustomerId,
    /// How he is addressed: his company, else his shop's domain, else his email address.
    pub name: String,
    /// What became of the form that he sent just before, told once.
    pub flash: Option<Flash>,
    /// The name of his time zone (IANA), as his browser said it and the server checked it; else `UTC`.
    pub zone: String,
    /// Where he logs out, if that is not here.
    pub account_page: Option<String>,
}

/// The email address with which somebody was not let in just before: he need not type it again. The server puts it into the request's extensions.
#[derive(Debug, Clone)]
pub struct TypedEmail(pub String);
