//! `forebay run`: the gateway as a service, from its configuration to its end.

use super::probe::GatewayProbe;
use super::table::counted;
use crate::admin::ReloadBy;
use crate::config::Config;
use crate::gateway::Gateway;
use crate::service::Service;
use anyhow::bail;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use tokio::signal::unix::{SignalKind, signal};

/// Runs the gateway until a signal ends it.
pub(super) async fn serve(file: &Path) -> anyhow::Result<ExitCode> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let service = Arc::new(Service::from_environment());
    let config = match Config::load(file) {
        Ok(config) => config,
        Err(problems) => {
            problems.iter().for_each(|problem| eprintln!("{problem}"));
            service.notify_status(problems.first().map(ToString::to_string).unwrap_or_default());
            bail!("{} is refused: {}", file.display(), counted(problems.len(), "problem"));
        }
    };
    config.warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
    let gateway = match Gateway::start(config).await {
        Ok(gateway) => gateway,
        Err(error) => {
            service.notify_status(format!("{error:#}"));
            return Err(error);
        }
    };
    let addresses: Vec<_> = gateway.addresses.iter().map(ToString::to_string).collect();
    tracing::info!(version = env!("CARGO_PKG_VERSION"), listening = %addresses.join(", "), "ready");
    let (died, mut death) = tokio::sync::oneshot::channel();
    let watchdog = service.start_watchdog(
        tokio::runtime::Handle::current(),
        GatewayProbe(Arc::clone(gateway.handles())),
        // An error means that the gateway stops already.
        move |part| drop(died.send(part)),
    )?;
    service.ready();
    let outcome = loop {
        tokio::select! {
            _ = terminate.recv() => break Ok(ExitCode::SUCCESS),
            _ = interrupt.recv() => break Ok(ExitCode::SUCCESS),
            Ok(part) = &mut death => break Err(anyhow::anyhow!("{part} has died; the process ends, only a restart brings it back")),
            _ = hangup.recv() => {
                let (reloading, service) = (gateway.handles().reloading.clone(), Arc::clone(&service));
                tokio::spawn(async move {
                    service.reloading();
                    // The result is in log and status.
                    reloading.reload(ReloadBy::Signal).await;
                    service.ready();
                });
            }
        }
    };
    service.stopping();
    drop(watchdog);
    tracing::info!("stopping: no new events; sending acknowledgements in flight");
    gateway.stop().await;
    tracing::info!("stopped; the journal is closed");
    outcome
}
