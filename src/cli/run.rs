//! `outrigger run`

use std::{
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Command, ExitCode as Code},
    sync::Arc,
    time::{Duration, Instant},
};

use super::systemd;
use crate::{
    admin,
    agent::{Agent, AgentError},
    config::Config,
    observe::{
        logging,
        report::{ExitCode, Failure, one_line},
        status::Status,
    },
    policy::backoff::OutageWait,
    queue::QueueError,
    runtime::shutdown::Stop,
};

/// How often this process has begun anew because of its queue; see [`restart`].
const RESTARTS: &str = "OUTRIGGER_RESTARTS";

/// How long nothing may move. Far above every timeout of either end.
const STUCK_AFTER: Duration = Duration::from_secs(180);

/// After this long an agent has started well.
const STABLE_AFTER: Duration = Duration::from_secs(60);

/// Replicates until it is `asked` to drain, and then, or when it is asked once more, leaves.
pub async fn run(
    config: Config,
    file: Option<PathBuf>,
    adopt: bool,
    asked: Stop,
) -> Result<Code, Failure> {
    if !config.sync.enabled {
        // Told to systemd as a start that succeeded: else the service would count as failed, and be started again and
        // again.
        systemd::ready();
        super::show::line(
            "replication is switched off (`sync.enabled`, SYNC_ENABLED): nothing to do",
        );
        let is_service = systemd::is_there();
        return Ok(if is_service {
            Code::from(ExitCode::SwitchedOff as u8)
        } else {
            Code::SUCCESS
        });
    }
    let restarts = std::env::var(RESTARTS).ok().and_then(|n| n.parse().ok()).unwrap_or(0);
    let prepared = tokio::select! {
        prepared = prepare(&config, adopt, restarts, &asked) => prepared?,
        () = systemd::feed_while_starting() => unreachable!("it never ends"),
    };
    let Some(agent) = prepared else {
        return Ok(Code::SUCCESS);
    };
    tell_where(&config, file.as_deref());
    let (leave, stop) = (asked.leave.clone(), agent.stop().leave);
    tokio::spawn(async move {
        leave.cancelled().await;
        stop.cancel();
    });
    watch(agent.handles().status, asked.clone(), restarts);
    tokio::spawn(systemd::follow(agent.handles()));
    let started = Instant::now();
    match agent.run(asked.drain.cancelled()).await {
        // sled may also panic where it should return an error.
        Err(error)
            if (error.is_of_the_queue() || matches!(error, AgentError::Task(_)))
                && !asked.drain.is_cancelled() =>
        {
            if matches!(error, AgentError::Queue(QueueError::MostlyEmpty)) {
                tracing::info!("the queue is opened again, to give back disk");
            } else {
                let error = one_line(&error);
                tracing::error!(%error, "the queue failed; it is opened again until that works");
            }
            Err(restart(if started.elapsed() > STABLE_AFTER { 0 } else { restarts }))
        }
        outcome => outcome.map(|()| Code::SUCCESS).map_err(Failure::from),
    }
}

/// Where everything is, for whoever looks for it later.
fn tell_where(config: &Config, file: Option<&Path>) {
    let whole = |path: &Path| std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let (queue, token) = (whole(&config.queue.path), whole(&config.admin.token_file));
    let file = file.map_or_else(|| "none".to_owned(), |file| whole(file).display().to_string());
    tracing::info!(
        dashboard = format!("http://{}/", config.admin.listen),
        config = file,
        queue = %queue.display(),
        token_file = %token.display(),
        "where things are; `outrigger dashboard` prints the address with the token"
    );
}

/// Prepares the agent; `None` when a signal comes first. A process that has begun anew has nobody who
/// reads why it does not start, so it waits for what may mend itself.
async fn prepare(
    config: &Config,
    adopt: bool,
    restarts: u32,
    asked: &Stop,
) -> Result<Option<Agent>, Failure> {
    if restarts == 0 {
        return tokio::select! {
            () = asked.drain.cancelled() => Ok(None),
            agent = built(config, adopt) => Ok(Some(agent?)),
        };
    }
    let mut wait = OutageWait::new(Duration::from_secs(1), Duration::from_secs(60));
    for _ in 1..restarts.min(10) {
        wait.next_wait();
    }
    loop {
        tokio::select! {
            () = asked.drain.cancelled() => return Ok(None),
            () = tokio::time::sleep(wait.next_wait()) => {}
        }
        let prepared = tokio::select! {
            () = asked.drain.cancelled() => return Ok(None),
            prepared = built(config, adopt) => prepared,
        };
        match prepared {
            Err(error @ (AgentError::Queue(_) | AgentError::Local(_))) => {
                let error = one_line(&error);
                tracing::warn!(%error, "the agent cannot go on yet");
            }
            agent => return Ok(Some(agent?)),
        }
    }
}

async fn built(config: &Config, adopt: bool) -> Result<Agent, AgentError> {
    Agent::builder(config.clone()).adopt(adopt).serve(admin::start).prepare().await
}

/// Begins anew when the agent is stuck: on a disk that fails, sled may wait for ever instead of
/// returning an error.
fn watch(status: Arc<Status>, asked: Stop, restarts: u32) {
    std::thread::spawn(move || {
        let mut before = (u64::MAX, u64::MAX);
        loop {
            std::thread::sleep(STUCK_AFTER / 2);
            let ticks = status.ticks.get();
            // Twice, since a process that was stopped for a while wakes up in the middle of a sleep.
            if before == (ticks, ticks) {
                if asked.is_draining() {
                    tracing::error!("the agent is stuck while it stops, and leaves");
                } else {
                    tracing::error!("the agent is stuck and begins anew");
                    let failure = restart(restarts);
                    tracing::error!(error = %failure.error, "it cannot");
                }
                logging::flush();
                std::process::exit(ExitCode::Problem as i32);
            }
            before = (before.1, ticks);
        }
    });
}

/// Replaces this process by a new one of the same id. After a failed write sled may wait for ever for
/// what will not come, in threads that nothing can end but this. Returns only if that fails.
fn restart(restarts: u32) -> Failure {
    logging::flush();
    let restarted = std::env::current_exe().map(|program| {
        Command::new(program)
            // A target is adopted once, by a person who looks on.
            .args(std::env::args_os().skip(1).filter(|arg| arg != "--adopt"))
            .env(RESTARTS, (restarts + 1).to_string())
            .exec()
    });
    let error = match restarted {
        Ok(error) | Err(error) => error,
    };
    Failure::new(
        ExitCode::Problem,
        anyhow::Error::new(error).context("the agent cannot begin anew after its queue failed"),
    )
    .hint("start it again; nothing is lost")
}
