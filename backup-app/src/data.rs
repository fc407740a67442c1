//! What pages read: server functions, the only thing that the browser asks for itself besides the routes of the contract.

use leptos::prelude::*;
use leptos::server_fn::codec::{GetUrl, Post};
use leptos::server_fn::error::{FromServerFnError, ServerFnErrorErr};
use leptos::server_fn::{Bytes, ContentType, Decodes, Encodes, Format, FormatType};
use serde::de::{DeserializeOwned, Error as _};
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
    type Encoder = JsonText;

    fn from_server_fn_error(_: ServerFnErrorErr) -> Self {
        Self::Unreachable
    }
}

/// JSON, read as text like the data that comes with a page: the framework's own reads bytes, and browsers would have to load a second reader.
pub struct JsonText;

impl ContentType for JsonText {
    const CONTENT_TYPE: &'static str = "application/json";
}

impl FormatType for JsonText {
    const FORMAT_TYPE: Format = Format::Text;
}

impl<T: Serialize> Encodes<T> for JsonText {
    type Error = serde_json::Error;

    fn encode(value: &T) -> Result<Bytes, Self::Error> {
        serde_json::to_vec(value).map(Bytes::from)
    }
}

impl<T: DeserializeOwned> Decodes<T> for JsonText {
    type Error = serde_json::Error;

    fn decode(bytes: Bytes) -> Result<T, Self::Error> {
        serde_json::from_str(str::from_utf8(&bytes).map_err(serde_json::Error::custom)?)
    }
}

/// Everything that `/backups` shows.
#[server(prefix = "/api/page", endpoint = "backups", input = GetUrl, output = Post<JsonText>)]
pub async fn load_backups() -> Result<BackupsPage, PageError> {
    server::load_backups().await
}

/// Everything that `/backups/{id}` shows.
#[server(prefix = "/api/page", endpoint = "backup", input = GetUrl, output = Post<JsonText>)]
pub async fn load_backup(id: String) -> Result<BackupPage, PageError> {
    server::load_backup(&id).await
}

#[cfg(feature = "ssr")]
pub use server::{job, part};

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
        Ok(jobs.map_err(unavailable)?.into_iter().map(job).collect())
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
