//! What a running agent is told by signals.
//!
//! In a thread of its own: whatever else stands still, a second signal leaves at once, and the end has an end.

use std::time::Duration;

use tokio::{
    runtime::{Builder, Runtime},
    signal::unix::{Signal, SignalKind, signal},
};

use super::systemd;
use crate::{
    config::units::show_duration,
    observe::{
        logging,
        report::{ExitCode, Failure},
    },
    runtime::shutdown::Stop,
};

/// How long an agent that leaves at once may take to do so in order.
const LEAVE_WITHIN: Duration = Duration::from_secs(1);

/// How long after `shutdown.drain_for` an agent that drains must have ended: the bounds of its own end, and some more.
const END_WITHIN: Duration = Duration::from_secs(10);

/// SIGTERM.
pub fn terminate() -> Result<Signal, Failure> {
    of_kind(SignalKind::terminate())
}

fn of_kind(kind: SignalKind) -> Result<Signal, Failure> {
    signal(kind).map_err(failed)
}

fn failed(error: std::io::Error) -> Failure {
    Failure::new(ExitCode::Problem, anyhow::Error::new(error).context("no signal handler"))
}

/// From its making on no signal ends the process by itself.
pub struct Signals {
    runtime: Runtime,
    terminate: Signal,
    interrupt: Signal,
    hang_up: Signal,
}

impl Signals {
    pub fn new() -> Result<Self, Failure> {
        let runtime = Builder::new_current_thread().enable_all().build().map_err(failed)?;
        let _within = runtime.enter();
        Ok(Self {
            terminate: of_kind(SignalKind::terminate())?,
            interrupt: of_kind(SignalKind::interrupt())?,
            hang_up: of_kind(SignalKind::hangup())?,
            runtime,
        })
    }
}

/// Cancels `asked.drain` at the first signal, `asked.leave` at the second, and ends a process that does not.
pub fn follow(signals: Signals, drain_for: Duration, asked: Stop) -> Result<(), Failure> {
    let Signals { runtime, mut terminate, mut interrupt, mut hang_up } = signals;
    let thread = std::thread::Builder::new().name("outrigger-signals".to_owned());
    let follow = move || {
        runtime.block_on(async {
            let ask = async || {
                loop {
                    tokio::select! {
                        _ = terminate.recv() => return,
                        _ = interrupt.recv() => return,
                        // A terminal was closed, or somebody hopes that the configuration is read again: neither is a
                        // reason to stop replicating.
                        _ = hang_up.recv() => tracing::info!(
                            "SIGHUP is ignored; to read the configuration again, restart the agent"
                        ),
                    }
                }
            };
            on_signals(ask, drain_for, asked).await;
        });
        logging::flush();
        std::process::exit(0);
    };
    thread.spawn(follow).map(drop).map_err(failed)
}

/// Returns when the process is to end by force.
async fn on_signals(mut ask: impl AsyncFnMut(), drain_for: Duration, asked: Stop) {
    ask().await;
    {
        let drain_for = show_duration(drain_for);
        tracing::info!(%drain_for, "stopping: writing what waits; a second signal leaves at once");
    }
    systemd::stopping();
    asked.drain.cancel();
    let in_time = tokio::time::timeout(drain_for + END_WITHIN, ask()).await;
    asked.leave.cancel();
    if in_time.is_ok() {
        tokio::time::sleep(LEAVE_WITHIN).await;
    }
    tracing::warn!(
        "left without an end in order; what is pending will be written at the next start"
    );
}
