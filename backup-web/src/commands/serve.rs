//! `serve`: whether the service is there, over HTTP, and jobs where it is asked to.

use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use backup_core::config::{Config, Origin};
use backup_core::error::{Error, Result};
use backup_core::operations::Engine;
use backup_core::progress::Cancel;
use backup_core::service::BackupService;
use backup_core::worker::Stopping;
use leptos::config::LeptosOptions;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::sync::watch;

use super::init;
use super::worker::connect_patiently;
use crate::http;

/// How long answers that are on their way hold the end up: whoever says nothing on his connection is not waited for.
const GRACE: Duration = Duration::from_secs(3);

pub fn run(
    config: Config,
    with_worker: bool,
    runtime: &Runtime,
    stopping: watch::Receiver<Stopping>,
    cancel: &Cancel,
) -> Result<ExitCode> {
    let is_embedded = config.origin == Origin::Embedded;
    if is_embedded {
        init::create_missing(&config, cancel)?;
    }
    let runs_jobs = with_worker || is_embedded;
    let engine = Arc::new(Engine::new(config.clone(), cancel));
    runtime.block_on(async {
        let Some(service) = connect_patiently(config, stopping.clone()).await? else {
            return Ok(ExitCode::SUCCESS);
        };
        // Before any job is taken: what cannot serve ends here.
        let leptos = http::site::options()?;
        let listener = bind(&service).await?;
        let worker = runs_jobs.then(|| tokio::spawn(service.worker(engine).run(stopping.clone())));
        answer(listener, &service, leptos, stopping).await?;
        if let Some(worker) = worker
            && let Err(error) = worker.await
        {
            tracing::error!("the worker broke off inside the program: {error}");
        }
        service.close().await;
        Ok(ExitCode::SUCCESS)
    })
}

async fn bind(service: &BackupService) -> Result<TcpListener> {
    let address = service.config().server.listen;
    let listener = TcpListener::bind(address)
        .await
        .map_err(|e| Error::io(format!("cannot listen on {address} (server.listen)"), e))?;
    if let Ok(address) = listener.local_addr() {
        tracing::info!("listening on http://{address}");
    }
    Ok(listener)
}

async fn answer(
    listener: TcpListener,
    service: &BackupService,
    leptos: LeptosOptions,
    stopping: watch::Receiver<Stopping>,
) -> Result<()> {
    let router = http::router(service.clone(), leptos, stopping.clone())?;
    let serving = axum::serve(
        listener,
        router.into_make_service_with_connect_info::<SocketAddr>(),
    )
    .with_graceful_shutdown(end_of(stopping.clone()))
    .into_future();
    let overdue = async {
        end_of(stopping).await;
        tokio::time::sleep(GRACE).await;
    };
    tokio::select! {
        served = serving => served.map_err(|e| Error::io("the server ended", e)),
        () = overdue => Ok(()),
    }
}

async fn end_of(mut stopping: watch::Receiver<Stopping>) {
    // An error means that nobody can ask any more.
    let _ = stopping.wait_for(|asked| *asked != Stopping::No).await;
}
