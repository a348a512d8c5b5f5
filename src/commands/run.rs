//! `outrigger run`

use std::process::ExitCode as Code;

use tokio::signal::unix::{SignalKind, signal};

use crate::{
    agent::Agent,
    config::Config,
    report::{ExitCode, Failure},
};

/// Replicates until a signal arrives, then drains. A second signal leaves at once.
pub async fn run(config: Config, adopt: bool) -> Result<Code, Failure> {
    if !config.sync.enabled {
        println!("replication is switched off (`sync.enabled`, SYNC_ENABLED): nothing to do");
        return Ok(Code::SUCCESS);
    }
    for key in config.without_effect() {
        tracing::warn!(key, "this setting has no effect yet");
    }
    let failed = |error| {
        Failure::new(ExitCode::Problem, anyhow::Error::new(error).context("no signal handler"))
    };
    let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
    let agent = Agent::prepare(config.clone(), adopt).await?;
    let stop = agent.stop();
    let shutdown = async move {
        wait_for(&mut terminate, &mut interrupt).await;
        let drain_for = crate::config::units::show_duration(config.shutdown.drain_for);
        tracing::info!(%drain_for, "stopping: writing what waits; a second signal leaves at once");
        tokio::spawn(async move {
            wait_for(&mut terminate, &mut interrupt).await;
            stop.leave.cancel();
        });
    };
    agent.run(shutdown).await?;
    Ok(Code::SUCCESS)
}

async fn wait_for(
    terminate: &mut tokio::signal::unix::Signal,
    interrupt: &mut tokio::signal::unix::Signal,
) {
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}
