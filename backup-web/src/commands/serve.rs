//! `serve`: the dashboard and the API over HTTP, and jobs where it is asked to.

use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use backup_core::config::{Config, Origin};
use backup_core::error::{Error, Result};
use backup_core::operations::Engine;
use backup_core::progress::Cancel;
use backup_core::service::BackupService;
use backup_core::worker::Stopping;
use futures_util::future::try_join_all;
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
        let servers = servers(&service, stopping.clone()).await?;
        let worker = runs_jobs.then(|| tokio::spawn(service.worker(engine).run(stopping.clone())));
        answer(servers, stopping).await?;
        if let Some(worker) = worker
            && let Err(error) = worker.await
        {
            tracing::error!("the worker broke off inside the program: {error}");
        }
        service.close().await;
        Ok(ExitCode::SUCCESS)
    })
}

/// A listener, and what is answered on it.
type Server = (TcpListener, Router);

async fn servers(
    service: &BackupService,
    stopping: watch::Receiver<Stopping>,
) -> Result<Vec<Server>> {
    let config = &service.config().server;
    let leptos = http::site::options()?;
    let routers = http::routers(service.clone(), leptos, stopping)?;
    let dashboard = bind(config.listen, "server.listen").await?;
    if let Ok(address) = dashboard.local_addr() {
        tracing::info!("listening on http://{address}");
    }
    let mut servers = vec![(dashboard, routers.dashboard)];
    if let (Some(address), Some(metrics)) = (config.metrics_listen, routers.metrics) {
        let listener = bind(address, "server.metrics_listen").await?;
        if let Ok(address) = listener.local_addr() {
            tracing::info!("metrics are at http://{address}/metrics");
        }
        servers.push((listener, metrics));
    }
    Ok(servers)
}

async fn bind(address: SocketAddr, key: &str) -> Result<TcpListener> {
    TcpListener::bind(address)
        .await
        .map_err(|e| Error::io(format!("cannot listen on {address} ({key})"), e))
}

/// Until all answers are given that were asked for before the end.
async fn answer(servers: Vec<Server>, stopping: watch::Receiver<Stopping>) -> Result<()> {
    let serving = servers.into_iter().map(|(listener, router)| {
        let router = router.into_make_service_with_connect_info::<SocketAddr>();
        axum::serve(listener, router)
            .with_graceful_shutdown(end_of(stopping.clone()))
            .into_future()
    });
    let overdue = async {
        end_of(stopping.clone()).await;
        tokio::time::sleep(GRACE).await;
    };
    tokio::select! {
        served = try_join_all(serving) => {
            served.map(drop).map_err(|e| Error::io("the server ended", e))
        }
        () = overdue => Ok(()),
    }
}

async fn end_of(mut stopping: watch::Receiver<Stopping>) {
    // An error means that nobody can ask any more.
    let _ = stopping.wait_for(|asked| *asked != Stopping::No).await;
}
