//! The way out: the tasks in order, then the queue's disk and the lease, all in bounded time.

use std::time::Duration;

use tokio::{
    task::{JoinError, JoinSet},
    time::{Instant, timeout},
};

use super::{Agent, AgentError, alert_delivery::AlertDelivery, chronicle, standby, vitals};
use crate::{
    model::namespace::NamespaceFilter,
    observe::status::Phase,
    queue::QueueError,
    runtime::shutdown::{Stop, blocking},
};

/// How long an agent that fails waits for its alert to be noticed, and to be taken by the web hook.
const LAST_WORDS_SOON: Duration = Duration::from_millis(1500);
const LAST_WORDS_FOR: Duration = Duration::from_secs(5);

/// What the queue's disk and Atlas have for the end at the least, however long the tasks took.
const END_WITHIN: Duration = Duration::from_secs(2);

/// Why the tasks are to end, and with that how.
#[derive(Debug)]
pub(super) enum Exit {
    /// Somebody wants it so, or a task had nothing more to do: what waits is written first.
    Asked,
    /// The queue is to be opened again at once, to give back disk. That is no failure, and nothing is waited for.
    Reopen(AgentError),
    /// The queue failed, whichever task met it. Nothing can be waited for: after a failed write sled's own threads may
    /// never answer again.
    QueueLost(AgentError),
    /// The local database, or Atlas, is not the one that this agent was started for: what waits is not ours to write
    /// any more.
    NotOurs(AgentError),
    /// Anything else. What waits is written first.
    Failed(AgentError),
}

impl Exit {
    pub(super) fn of(error: AgentError) -> Self {
        match error {
            AgentError::Queue(QueueError::MostlyEmpty) => Exit::Reopen(error),
            _ if error.is_of_the_queue() => Exit::QueueLost(error),
            AgentError::OtherSource { .. } | AgentError::Superseded => Exit::NotOurs(error),
            AgentError::Sync(ref of_sync) if of_sync.is_of_ownership() => Exit::NotOurs(error),
            _ => Exit::Failed(error),
        }
    }

    fn phase(&self) -> Phase {
        match self {
            Exit::Asked | Exit::Reopen(_) => Phase::Stopping,
            Exit::QueueLost(_) | Exit::NotOurs(_) | Exit::Failed(_) => Phase::Failed,
        }
    }
}

/// Stops reading, lets the worker drain, and at `until`, or when `leave` is cancelled from outside, leaves.
async fn stop_tasks(
    stop: &Stop,
    mut tasks: JoinSet<Result<(), AgentError>>,
    until: Instant,
) -> Result<(), AgentError> {
    let mut outcome = Ok(());
    stop.drain.cancel();
    let deadline = tokio::time::sleep_until(until);
    tokio::pin!(deadline);
    loop {
        tokio::select! {
            exit = tasks.join_next() => match exit {
                Some(exit) => outcome = outcome.and(result_of(exit)),
                None => return outcome,
            },
            () = &mut deadline, if !stop.leave.is_cancelled() => stop.leave.cancel(),
            () = stop.leave.cancelled() => {
                // A batch may be in flight to an Atlas that does not answer. It stays in the queue.
                let grace = tokio::time::sleep(Duration::from_millis(300));
                tokio::pin!(grace);
                loop {
                    tokio::select! {
                        () = &mut grace => {
                            tasks.shutdown().await;
                            return outcome;
                        }
                        exit = tasks.join_next() => match exit {
                            Some(exit) => outcome = outcome.and(result_of(exit)),
                            None => return outcome,
                        },
                    }
                }
            }
        }
    }
}

pub(super) fn result_of(exit: Result<Result<(), AgentError>, JoinError>) -> Result<(), AgentError> {
    match exit {
        Ok(result) => result,
        Err(error) => Err(AgentError::Task(error.to_string())),
    }
}

impl Agent {
    /// Ends the tasks, says what is to be said, and leaves the queue and the lease as the next agent wants them.
    ///
    /// # Errors
    /// Why it ended, or what failed at the end.
    pub(super) async fn close(
        &self,
        exit: Exit,
        tasks: JoinSet<Result<(), AgentError>>,
        mut beside: JoinSet<()>,
        alert_delivery: &AlertDelivery,
    ) -> Result<(), AgentError> {
        let phase = exit.phase();
        self.status.enter(phase);
        if matches!(exit, Exit::NotOurs(_)) {
            self.queue.hold_all();
            self.stop.leave.cancel();
        }
        let until = Instant::now() + self.config.shutdown.drain_for;
        let (outcome, is_queue_lost) = match exit {
            Exit::Asked => (stop_tasks(&self.stop, tasks, until).await, false),
            Exit::NotOurs(error) | Exit::Failed(error) => {
                // Their errors follow from the first one, which is the one to be told.
                let _ = stop_tasks(&self.stop, tasks, until).await;
                (Err(error), false)
            }
            Exit::Reopen(error) | Exit::QueueLost(error) => (Err(error), true),
        };
        if phase == Phase::Failed && self.config.alerts.webhook.is_some() {
            // The alert of this failure is the last chance that a person hears of it: the process ends next.
            let _ = timeout(LAST_WORDS_FOR, alert_delivery.is_empty_after(LAST_WORDS_SOON)).await;
        }
        beside.abort_all();
        if is_queue_lost {
            return outcome;
        }
        self.end(&self.config.filter()?, until).await?;
        outcome
    }

    /// Once no task is left: until `until` or until it is hurried, and for a moment at the least.
    pub(super) async fn end(
        &self,
        filter: &NamespaceFilter,
        until: Instant,
    ) -> Result<(), AgentError> {
        let queue = self.queue.clone();
        let flushed = async move {
            vitals::keep_consistency(&self.status, &self.queue, &mut None).await;
            let (monitor, config) = (self.monitor.clone(), self.config.clone());
            let flushed = blocking(move || queue.flush()).await;
            blocking(move || chronicle::keep(&monitor, &config)).await;
            flushed
        };
        let orderly = async {
            // Neither waits for the other: a slow disk is no reason to keep the lease, nor the reverse.
            let (flushed, ()) = tokio::join!(flushed, self.release(filter));
            // Behind the mark: whoever has the turn may take that.
            standby::give_back(self).await;
            tokio::join!(self.local.peer.close(), self.atlas.peer.close());
            flushed
        };
        let until = until.max(Instant::now() + END_WITHIN);
        let hurried = async {
            self.stop.leave.cancelled().await;
            tokio::time::sleep(END_WITHIN).await;
        };
        tokio::select! {
            flushed = orderly => flushed?,
            () = tokio::time::sleep_until(until) => self.leave_the_disk(),
            () = hurried => self.leave_the_disk(),
        }
        let (pending, _) = self.queue.pending();
        tracing::info!(pending, "stopped; what is pending will be written at the next start");
        Ok(())
    }

    fn leave_the_disk(&self) {
        tracing::warn!(
            "the queue's disk is not done with the last writes, and is not waited for; what it loses is read from the oplog again"
        );
        // Leaked on purpose: dropping the storage would wait for the disk that has failed, and the process would never
        // end.
        std::mem::forget(self.queue.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{mongo::MongoError, source::SourceError, sync::SyncError};

    #[test]
    fn what_ends_an_agent_decides_whether_what_waits_is_written_and_what_is_said() {
        let of = |error| Exit::of(error);
        let other = || AgentError::OtherSource { problem: "another past".to_owned() };
        let away = || SourceError::Unavailable(MongoError::Unproven.into());

        assert!(matches!(of(QueueError::MostlyEmpty.into()), Exit::Reopen(_)));
        assert!(matches!(of(QueueError::Outdated.into()), Exit::QueueLost(_)));
        assert!(matches!(of(SyncError::Queue(QueueError::Outdated).into()), Exit::QueueLost(_)));
        assert!(matches!(of(other()), Exit::NotOurs(_)));
        assert!(matches!(of(away().into()), Exit::Failed(_)));
        assert_eq!(of(QueueError::MostlyEmpty.into()).phase(), Phase::Stopping);
        assert_eq!(of(other()).phase(), Phase::Failed);
    }
}
