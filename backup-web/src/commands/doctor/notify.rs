//! Who is told that jobs have ended: the files of secrets, and whether a webhook and an SMTP server can be reached. Nothing is told.

use std::path::Path;

use backup_core::config::Config;
use backup_core::notify::{try_email, try_webhook};

use super::configuration::is_for_root_alone;
use super::report::Report;

pub(super) async fn check(config: &Config, report: &mut Report) {
    if let Some(webhook) = &config.notify.webhook {
        const NAME: &str = "notify.webhook";
        check_secret("notify.webhook.secret_file", &webhook.secret_file, report);
        match try_webhook(webhook).await {
            Ok(()) => report.ok(NAME, "the receiver can be reached"),
            Err(e) => report.error(
                NAME,
                &e,
                "start the receiver, or correct notify.webhook.url and the secret_file; a certificate has to be of an authority that this machine trusts",
            ),
        }
    }
    if let Some(email) = &config.notify.email {
        const NAME: &str = "notify.email";
        if let Some(file) = &email.password_file {
            check_secret("notify.email.password_file", file, report);
        }
        match try_email(email).await {
            Ok(()) => report.ok(
                NAME,
                format!("the SMTP server {} answers", email.host),
            ),
            Err(e) => report.error(
                NAME,
                &e,
                "start the SMTP server, or correct host, port, tls, user and password_file of notify.email; a certificate has to be of an authority that this machine trusts",
            ),
        }
        if config.server.public_url.is_none() {
            report.warning(
                NAME,
                "server.public_url is not set, so mails have no link to the dashboard",
                "set it to the address that customers' browsers use",
            );
        }
    }
}

/// The worker, which is root, alone has to read it. That it cannot be read is told by what is tried with it.
fn check_secret(name: &str, file: &Path, report: &mut Report) {
    let shown = file.display();
    match file.metadata() {
        Ok(found) if !is_for_root_alone(&found) => report.warning(
            name,
            format!("others than root can read {shown}"),
            format!("chown root:root {shown} && chmod 600 {shown}"),
        ),
        Ok(_) => report.ok(name, shown.to_string()),
        Err(e) => report.failed(
            name,
            format!("{shown} cannot be read: {e}"),
            "make it, or correct its name",
        ),
    }
}
