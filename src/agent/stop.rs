//! The way out: the tasks in order, then the queue's disk and the mark, all in bounded time.

use std::time::Duration;

use tokio::{
    task::{JoinError, JoinSet},
    time::Instant,
};

use super::{Agent, AgentError, vitals};
use crate::{
    model::namespace::NamespaceFilter,
    runtime::shutdown::{Stop, blocking},
};

/// What the queue's disk and Atlas have for the end at the least, however long the tasks took.
const END_WITHIN: Duration = Duration::from_secs(2);

/// Stops reading, lets the worker drain, and at `until`, or when `leave` is cancelled from outside, leaves.
pub(super) async fn stop_tasks(
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
                Some(exit) => outcome = outcome.and(settle(exit)),
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
                            Some(exit) => outcome = outcome.and(settle(exit)),
                            None => return outcome,
                        },
                    }
                }
            }
        }
    }
}

pub(super) fn settle(exit: Result<Result<(), AgentError>, JoinError>) -> Result<(), AgentError> {
    match exit {
        Ok(result) => result,
        Err(error) => Err(AgentError::Task(error.to_string())),
    }
}

impl Agent {
    /// Once no task is left: until `until` or until it is hurried, and for a moment at the least.
    pub(super) async fn end(
        &self,
        filter: &NamespaceFilter,
        until: Instant,
    ) -> Result<(), AgentError> {
        let queue = self.queue.clone();
        let flushed = async move {
            vitals::keep_consistency(&self.status, &self.queue, &mut None).await;
            blocking(move || queue.flush()).await
        };
        let orderly = async {
            // Neither waits for the other: a slow disk is no reason to keep the mark, nor the reverse.
            let (flushed, ()) = tokio::join!(flushed, self.give_back(filter));
            tokio::join!(self.local.close(), self.atlas.close());
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
        // The storage's own end would wait for that disk.
        std::mem::forget(self.queue.clone());
    }
}
