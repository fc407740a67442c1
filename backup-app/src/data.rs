//! What pages read: server functions, the only thing that the browser asks for itself besides the routes of the contract.

use leptos::prelude::*;
use leptos::server_fn::codec::{GetUrl, JsonEncoding};
use leptos::server_fn::error::{FromServerFnError, ServerFnErrorErr};
use serde::{Deserialize, Serialize};

use crate::model::{BackupPage, BackupsPage};

/// Why a page cannot be shown.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum PageError {
    /// Nobody is logged in any more.
    LoggedOut,
    /// The database is away: try again.
    Unavailable,
    /// The server cannot be reached, or did not answer what it should.
    Unreachable,
}

impl FromServerFnError for PageError {
    type Encoder = JsonEncoding;

    fn from_server_fn_error(_: ServerFnErrorErr) -> Self {
        Self::Unreachable
    }
}

/// Everything that `/backups` shows.
#[server(prefix = "/api/page", endpoint = "backups", input = GetUrl)]
pub async fn load_backups() -> Result<BackupsPage, PageError> {
    server::load_backups().await
}

/// Everything that `/backups/{id}` shows.
#[server(prefix = "/api/page", endpoint = "backup", input = GetUrl)]
pub async fn load_backup(id: String) -> Result<BackupPage, PageError> {
    server::load_backup(&id).await
}

#[cfg(feature = "hydrate")]
pub use browser::{By, fetch};
#[cfg(feature = "ssr")]
pub use server::{job, part};

/// How the browser reads. The framework's own way would be a second one, and ten kilobytes more to load.
#[cfg(feature = "hydrate")]
mod browser {
    use gloo_net::http::Request;
    use serde::de::DeserializeOwned;

    use super::PageError;

    /// Whether somebody asks, or the page does so by itself: that keeps nobody logged in.
    #[derive(Clone, Copy, PartialEq)]
    pub enum By {
        Somebody,
        Page,
    }

    /// What there is at this address of the server.
    pub async fn fetch<P: DeserializeOwned>(address: &str, by: By) -> Result<P, PageError> {
        let text = read(address, by).await?;
        serde_json::from_str(&text).map_err(|_| PageError::Unreachable)
    }

    async fn read(address: &str, by: By) -> Result<String, PageError> {
        let mut request = Request::get(address).header("Accept", "application/json");
        if by == By::Page {
            request = request.header("x-background", "1");
        }
        let lost = |_| PageError::Unreachable;
        let answer = request.send().await.map_err(lost)?;
        match answer.status() {
            200 => answer.text().await.map_err(lost),
            // 403: the platform suspended the customer whose session this is.
            401 | 403 => Err(PageError::LoggedOut),
            503 => Err(PageError::Unavailable),
            _ => Err(PageError::Unreachable),
        }
    }
}

#[cfg(feature = "ssr")]
mod server {
    use backup_core::catalog::{self, BackupEntry};
    use backup_core::error::Error;
    use backup_core::jobs;
    use backup_core::repository::BackupType;
    use backup_core::service::BackupService;
    use leptos::prelude::use_context;

    use super::PageError;
    use crate::model::{
        Backup, BackupPage, BackupsPage, Job, JobStatus, JobType, Part, Source, Viewer,
    };
    use crate::visit::Visit;

    /// How many of a customer's jobs a page knows of.
    const JOBS: u32 = 20;
    const SECONDS_A_DAY: u64 = 24 * 60 * 60;

    pub async fn load_backups() -> Result<BackupsPage, PageError> {
        let (service, visit) = asked().await?;
        let list = service.list(visit.customer).await.map_err(unavailable)?;
        let entries = |source, entries: Vec<BackupEntry>| {
            entries.into_iter().map(|e| backup(source, e)).collect()
        };
        let retention = &service.config().retention;
        let has_repository = service.config().repositories.daily.is_some();
        Ok(BackupsPage {
            has_daily: has_repository || !list.daily.is_empty(),
            manual: entries(Source::Manual, list.manual),
            pre_restore: entries(Source::PreRestore, list.pre_restore),
            daily: entries(Source::Daily, list.daily),
            daily_days: retention.daily_shown.as_secs() / SECONDS_A_DAY,
            kept: retention.manual,
            replaced_kept: retention.pre_restore,
            jobs: newest_jobs(&service, &visit).await?,
            viewer: viewer(visit),
        })
    }

    pub async fn load_backup(id: &str) -> Result<BackupPage, PageError> {
        let (service, visit) = asked().await?;
        let found = match id.parse() {
            Ok(id) => service
                .find(visit.customer, &id)
                .await
                .map_err(unavailable)?,
            Err(_) => None,
        };
        Ok(BackupPage {
            backup: found.map(|(source, entry)| backup(source_of(source), entry)),
            replaced_kept: service.config().retention.pre_restore,
            jobs: newest_jobs(&service, &visit).await?,
            viewer: viewer(visit),
        })
    }

    async fn asked() -> Result<(BackupService, Visit), PageError> {
        let service = use_context::<BackupService>().ok_or(PageError::Unreachable)?;
        let visit = leptos_axum::extract::<Option<axum::Extension<Visit>>>()
            .await
            .ok()
            .flatten()
            .ok_or(PageError::LoggedOut)?;
        Ok((service, visit.0))
    }

    async fn newest_jobs(service: &BackupService, visit: &Visit) -> Result<Vec<Job>, PageError> {
        let jobs = service.jobs(Some(visit.customer), JOBS).await;
        let mut jobs = jobs.map_err(unavailable)?;
        let open = service
            .open_job(visit.customer)
            .await
            .map_err(unavailable)?;
        jobs.extend(open.filter(|open| jobs.last().is_some_and(|last| open.id < last.id)));
        Ok(jobs.into_iter().map(job).collect())
    }

    fn unavailable(error: Error) -> PageError {
        tracing::error!("a page cannot be shown: {}", error.chain());
        PageError::Unavailable
    }

    fn viewer(visit: Visit) -> Viewer {
        Viewer {
            name: visit.name,
            zone: visit.zone,
            now: jiff::Timestamp::now().as_millisecond(),
            flash: visit.flash,
            account_page: visit.account_page,
        }
    }

    fn backup(source: Source, entry: BackupEntry) -> Backup {
        Backup {
            id: entry.id.to_string(),
            source,
            time: entry.time.as_millisecond(),
            holds: part(entry.backup_type),
            note: entry.note,
            bytes: entry.bytes,
            bytes_added: entry.bytes_added,
            database_bytes: entry.database_bytes,
            files: entry.files,
            proven: entry.proven_at.map(|at| at.as_millisecond()),
        }
    }

    /// A job as pages and programs see it.
    pub fn job(job: jobs::Job) -> Job {
        let time = |time: Option<jiff::Timestamp>| time.map(|time| time.to_string());
        Job {
            id: job.id.get(),
            job_type: match job.job_type {
                jobs::JobType::Backup => JobType::Backup,
                jobs::JobType::Restore => JobType::Restore,
            },
            backup_type: part(job.backup_type),
            snapshot_id: job.snapshot_id,
            source: job.source.map(source_of),
            status: match job.status {
                jobs::JobStatus::Pending => JobStatus::Pending,
                jobs::JobStatus::Running => JobStatus::Running,
                jobs::JobStatus::Completed => JobStatus::Completed,
                jobs::JobStatus::Failed => JobStatus::Failed,
            },
            online: job.online,
            kept_snapshot: job.kept_snapshot,
            recovered: job.recovered,
            failure: job.failure.map(|failure| failure.as_str().to_owned()),
            error_message: job.error_message,
            created_at: time(job.created_at),
            started_at: time(job.started_at),
            completed_at: time(job.completed_at),
            phase: job.phase.map(|phase| phase.as_str().to_owned()),
            bytes_done: job.bytes_done,
            bytes_total: job.bytes_total,
            files_done: job.files_done,
            bytes_per_second: job.bytes_per_second,
            cancel_requested: job.cancel_requested,
            cancellable: job.cancellable,
            dismissed: job.dismissed,
        }
    }

    /// The same in other words.
    pub fn part(backup_type: BackupType) -> Part {
        match backup_type {
            BackupType::Db => Part::Db,
            BackupType::Files => Part::Files,
            BackupType::Both => Part::Both,
        }
    }

    fn source_of(source: catalog::Source) -> Source {
        match source {
            catalog::Source::Manual => Source::Manual,
            catalog::Source::Daily => Source::Daily,
            catalog::Source::PreRestore => Source::PreRestore,
        }
    }
}
