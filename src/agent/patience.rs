//! A start is as patient with the local database as an agent that runs, up to a bound.
//!
//! One connection that breaks, or an election, is no reason to end: whoever starts the agent would have to start
//! it once more. A local database that is not there is told soon all the same, since at a start somebody may be
//! looking on, and the address may be wrong.

use std::{
    pin::Pin,
    time::{Duration, Instant},
};

use super::{Agent, AgentError, from_tailer};
use crate::{
    model::namespace::NamespaceFilter,
    observe::report::one_line,
    policy::backoff::OutageWait,
    runtime::shutdown::blocking,
    side::SideError,
    source::{Source, SourceError},
    sync::SyncError,
    tailer::Tailer,
};

/// One attempt. Boxed: of an async closure the compiler cannot say that its future may go to another thread, and
/// then nor could an agent.
pub(super) type Attempt<'a, T> = Pin<Box<dyn Future<Output = Result<T, AgentError>> + Send + 'a>>;

/// Repeats what a start asks of the local database while that is away, for as long as an answer is waited for
/// (`local.timeout`).
///
/// # Errors
/// What does not pass by itself, or has not passed by then.
pub(super) async fn patiently<'a, T>(
    within: Duration,
    attempt: impl Fn() -> Attempt<'a, T>,
) -> Result<T, AgentError> {
    let started = Instant::now();
    let mut wait = OutageWait::new(Duration::from_millis(250), Duration::from_secs(2));
    let mut is_told = false;
    loop {
        match attempt().await {
            Err(error) if passes(&error) && started.elapsed() < within => {
                tell_once(&mut is_told, &error);
                tokio::time::sleep(wait.next_wait()).await;
            }
            result => return result,
        }
    }
}

/// Says that the start waits, and for what: once for each thing that is asked.
pub(super) fn tell_once(is_told: &mut bool, error: &(impl std::error::Error + 'static)) {
    if !std::mem::replace(is_told, true) {
        let error = one_line(error);
        tracing::warn!(%error, "the start waits for the local database");
    }
}

fn passes(error: &AgentError) -> bool {
    matches!(
        error,
        // No stream was opened yet, so no history can be lost: a server that answers so at a start is in a state that
        // passes.
        AgentError::Local(SourceError::Unavailable(_) | SourceError::HistoryLost(_))
            | AgentError::Sync(SyncError::Source(SourceError::Unavailable(_)))
    )
}

impl Agent {
    /// Before the tasks: what they need to know of the local database, and from where it is read.
    pub(super) async fn take_up<S: Source>(
        &self,
        tailer: &Tailer<S>,
        filter: &NamespaceFilter,
    ) -> Result<(), AgentError> {
        let patience = self.config.local.timeout;
        patiently(patience, || Box::pin(self.keep_capped_in_order(filter))).await?;
        let queue = self.queue.clone();
        let checkpoint = blocking(move || queue.checkpoint()).await?;
        let is_of_use = match &checkpoint {
            Some(checkpoint) => {
                let look = || async { Ok(!self.source.is_overtaken(&checkpoint.token).await?) };
                patiently(patience, || Box::pin(look())).await?
            }
            None => false,
        };
        // What waits in a queue that another agent has overtaken may be older than what is in Atlas: before anything of it
        // goes there, it is turned into questions.
        if !is_of_use {
            let take = || async { tailer.take_position().await.map_err(from_tailer) };
            patiently(patience, || Box::pin(take())).await?;
        }
        Ok(())
    }

    /// The queue does not know which collections are capped; from now on the stream tells. An agent that was
    /// killed may have written to Atlas what this one has yet to read again.
    async fn keep_capped_in_order(&self, filter: &NamespaceFilter) -> Result<(), AgentError> {
        let listing = self.local.side.list(filter).await.map_err(|error| match error {
            SideError::Source(error) => AgentError::Local(error),
            SideError::Target(error) => SyncError::from(error).into(),
        })?;
        let now = self.source.position().await?;
        for collection in listing.collections.iter().filter(|found| found.is_capped()) {
            self.queue.keep_capped_in_order(&collection.ns, true);
            self.queue.wait_for_stream(&collection.ns, now);
        }
        Ok(())
    }
}
