//! `serve`: the dashboard and the API over HTTP, and jobs where it is asked to.
//!
//! Never: jobs taken from customers by a server whose own worker is gone.

use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use backup_core::config::{Config, Origin};
use backup_core::error::{Error, ErrorKind, Result};
use backup_core::operations::Engine;
use backup_core::progress::Cancel;
use backup_core::service::BackupService;
use backup_core::worker::Stopping;
use futures_util::future::try_join_all;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tokio::task::{JoinError, JoinHandle};

use super::init;
use super::worker::connect_patiently;
use crate::http::{self, PlatformLogin};

/// How long answers that are on their way hold the end up: whoever says nothing on his connection is not waited for.
const GRACE: Duration = Duration::from_secs(3);

pub fn run(
    config: Config,
    with_worker: bool,
    runtime: &Runtime,
    stopping: watch::Receiver<Stopping>,
    cancel: &Cancel,
) -> Result<ExitCode> {
    let platform = PlatformLogin::read(&config.server)?;
    let is_embedded = config.origin == Origin::Embedded;
    if let Some(advice) = init::on_first_use(&config, cancel)? {
        tracing::warn!("{advice}");
    }
    let runs_jobs = with_worker || is_embedded;
    let engine = Arc::new(Engine::new(config.clone(), cancel));
    runtime.block_on(async {
        let Some(service) = connect_patiently(config, stopping.clone()).await? else {
            return Ok(ExitCode::SUCCESS);
        };
        // Before any job is taken: what cannot serve ends here.
        let servers = servers(&service, platform, stopping.clone()).await?;
        let worker = runs_jobs.then(|| tokio::spawn(service.worker(engine).run(stopping.clone())));
        let answering = answer(servers, stopping);
        match worker {
            Some(worker) => answer_beside(worker, answering).await?,
            None => answering.await?,
        }
        service.close().await;
        Ok(ExitCode::SUCCESS)
    })
}

/// A listener, and what is answered on it.
type Server = (TcpListener, Router);

async fn servers(
    service: &BackupService,
    platform: Option<PlatformLogin>,
    stopping: watch::Receiver<Stopping>,
) -> Result<Vec<Server>> {
    let config = &service.config().server;
    let site = http::site::find()?;
    let routers = http::routers(service.clone(), platform, site, stopping)?;
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

/// Jobs that are queued while nobody is left to run them would wait for ever: without its worker a server ends, to be started again.
async fn answer_beside(
    mut worker: JoinHandle<()>,
    answering: impl Future<Output = Result<()>>,
) -> Result<()> {
    let broke_off = |error: JoinError| {
        Error::caused(
            ErrorKind::Failed,
            "the worker broke off inside the program",
            error,
        )
    };
    tokio::pin!(answering);
    tokio::select! {
        answered = &mut answering => {
            answered?;
            worker.await.map_err(broke_off)
        }
        ended = &mut worker => {
            ended.map_err(broke_off)?;
            // It was asked to end, as we are.
            answering.await
        }
    }
}

async fn end_of(mut stopping: watch::Receiver<Stopping>) {
    // An error means that nobody can ask any more.
    let _ = stopping.wait_for(|asked| *asked != Stopping::No).await;
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};

    use super::*;

    #[tokio::test]
    async fn a_server_whose_worker_breaks_off_ends_with_an_error() {
        let worker = tokio::spawn(async { panic!("a fault of the program") });
        let error = answer_beside(worker, pending()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Failed);
        assert!(error.chain().contains("the worker broke off"), "{error:?}");
    }

    #[tokio::test]
    async fn whichever_of_server_and_worker_ends_first_waits_for_the_other() {
        let (stop, stopping) = watch::channel(Stopping::No);
        let busy_worker = tokio::spawn(end_of(stopping.clone()));
        let mut answered = Box::pin(answer_beside(busy_worker, ready(Ok(()))));
        let busy_server = async {
            end_of(stopping.clone()).await;
            Ok(())
        };
        let idle_worker = tokio::spawn(ready(()));
        let mut idle = Box::pin(answer_beside(idle_worker, busy_server));
        assert!(futures_util::poll!(&mut answered).is_pending());
        assert!(futures_util::poll!(&mut idle).is_pending());
        stop.send_replace(Stopping::Finish);
        answered.await.unwrap();
        idle.await.unwrap();
    }
}
