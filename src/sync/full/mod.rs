//! The full sync: mandatory or on demand, one run after the other.
//!
//! A [run] is copied and compared [stage by stage](stages); [`Plan`] says what sets one kind of it apart from
//! another. How far it is stands in its [notes](plans), so that it goes on where it was.

use std::{sync::Arc, time::Duration};

use parking_lot::Mutex;
use uuid::Uuid;

use super::{Context, SyncError, deletes::DeleteLimit, pause};
use crate::{
    observe::{
        progress::{Progress, SyncOutcome},
        report::one_line,
        status::Phase,
    },
    policy::read_watermark::ReadWatermark,
    queue::{QueueError, note},
    runtime::{
        clock::now_ms,
        shutdown::{Stop, blocking},
    },
    sink::SchemaSink,
    sync::state::{Reason, SyncRequest, SyncState},
};

mod apply_schema;
mod behind;
mod finish;
mod first;
mod in_the_way;
mod plan;
mod plans;
mod reconcile;
mod refusals;
mod repair;
mod rest;
mod run;
mod stages;
mod verdict;
mod views;

pub use behind::is_all_held_up;
pub use refusals::refused_deletes;
pub use verdict::refused_of_the_run;

use plan::Plan;
use run::{FAILED_WAIT, Run};

/// How often to look for a mandatory sync that nobody announced.
const UNANNOUNCED_EVERY: Duration = Duration::from_secs(2);

/// Copies or compares when that is mandatory or asked for.
pub(super) struct FullSync<K> {
    cx: Arc<Context<K>>,
    watermark: Arc<Mutex<ReadWatermark>>,
    deletes: DeleteLimit,
    /// Entries that may be ready in the queue before a comparison waits.
    queue_max: u64,
    /// How often it is made without being asked for. Zero: never.
    every: Duration,
}

impl<K: SchemaSink> FullSync<K> {
    pub fn new(
        cx: Arc<Context<K>>,
        watermark: Arc<Mutex<ReadWatermark>>,
        deletes: DeleteLimit,
        queue_max: u64,
        every: Duration,
    ) -> Self {
        Self { cx, watermark, deletes, queue_max, every }
    }

    /// Serves mandatory and on-demand syncs until told to stop. To be called once the target is ours.
    ///
    /// # Errors
    /// What waiting does not help against.
    pub async fn serve(&self, stop: &Stop) -> Result<(), SyncError> {
        let cx = &*self.cx;
        loop {
            let queue = cx.queue.clone();
            if let Some(state) = blocking(move || SyncState::resume(&queue)).await? {
                self.run_until_ended(state, stop).await?;
                continue;
            }
            cx.queue.release_all();
            behind::require_left(cx).await?;
            self.ask_periodically().await?;
            if !stop.is_draining() {
                self.enter_streaming();
            }
            tokio::select! {
                () = stop.drain.cancelled() => return Ok(()),
                () = stop.leave.cancelled() => return Ok(()),
                () = cx.sync_wanted.notified() => {}
                // The worker requires a sync too, when a schema change is given up.
                () = tokio::time::sleep(UNANNOUNCED_EVERY) => {}
            }
        }
    }

    fn enter_streaming(&self) {
        let paused = self.cx.writing.is_paused();
        self.cx.status.enter(if paused { Phase::Paused } else { Phase::Streaming });
    }

    /// One run, from its note in the queue to its end. One on demand ends at once when its note is gone or
    /// another's; what is owed goes on to its end, since a copy that is left half-way could only be
    /// compared.
    async fn run_until_ended(&self, state: SyncState, stop: &Stop) -> Result<(), SyncError> {
        let (id, plan) = (state.id, Plan::of(&state));
        if plan.holds_everything() {
            self.cx.status.enter(Phase::Copying);
        } else {
            // Streaming goes on beside it; after a restart nothing else would let it.
            self.cx.queue.release_all();
            self.enter_streaming();
        }
        self.begin(&state, plan);
        let run = Run::new(&self.cx, state, (self.deletes, self.queue_max), stop);
        let result = if plan.is_owed() {
            stages::execute(&run, &self.watermark).await
        } else {
            tokio::select! {
                result = stages::execute(&run, &self.watermark) => result,
                replaced = self.replaced(&run, id) => replaced,
            }
        };
        let outcome = match result {
            Err(error) => self.give_up(plan, error, stop).await?,
            // It was replaced while it was about to end.
            Ok(SyncOutcome::BeginsAgain) if !plan.is_owed() => {
                self.replaced_by_now(id).await?.unwrap_or(SyncOutcome::BeginsAgain)
            }
            Ok(outcome) => outcome,
        };
        self.end(outcome);
        if self.cx.sides.local.schema().is_none() {
            // What is only declared of indexes is no part of it, and may not have been looked at since the start.
            self.cx.watch.ask_everything();
        }
        Ok(())
    }

    /// What cannot be done as asked ends with its reason, and so does what a server will not do at all; the agent goes
    /// on. What is owed is tried again.
    async fn give_up(
        &self,
        plan: Plan,
        error: SyncError,
        stop: &Stop,
    ) -> Result<SyncOutcome, SyncError> {
        let reason = match &error {
            SyncError::NoDigest { .. } if !plan.is_owed() => {
                format!("{error}; ask again without digest")
            }
            error if error.is_rejected() => one_line(error),
            _ => return Err(error),
        };
        if plan.is_owed() {
            tracing::error!(error = reason, "the full sync cannot go on, and is tried again");
            pause(stop, FAILED_WAIT).await?;
            return Ok(SyncOutcome::NotDone(reason));
        }
        let queue = self.cx.queue.clone();
        blocking(move || SyncState::cancel(&queue)).await?;
        Ok(SyncOutcome::Failed(reason))
    }

    fn begin(&self, state: &SyncState, plan: Plan) {
        let request = state.request.as_ref();
        let activity = plan.activity(request.is_some_and(|request| request.dry_run));
        let mut progress =
            Progress::begin(state.id.to_string(), activity, state.reason.to_string(), now_ms());
        progress.digest = request.is_some_and(|request| request.digest);
        tracing::info!(id = progress.id, reason = progress.reason, "a full sync begins");
        // One that goes on after a restart has queued what is not known any more.
        let status = &self.cx.status;
        status.repaired.begin(!state.begun.is_empty() || !state.done.is_empty());
        self.cx.in_hand.begins(&progress.id);
        status.state().sync = Some(progress);
    }

    fn end(&self, outcome: SyncOutcome) {
        self.cx.in_hand.ended();
        let mut state = self.cx.status.state();
        let Some(progress) = &mut state.sync else { return };
        progress.finished_ms = Some(now_ms());
        progress.outcome = Some(outcome.clone());
        let report = progress.report(now_ms());
        tracing::info!(
            outcome = outcome.to_string(),
            collections = report.collections,
            documents = report.documents_done,
            missing = report.missing,
            extra = report.extra,
            content = report.content,
            elapsed_ms = now_ms().saturating_sub(report.started_ms),
            "a full sync has ended"
        );
    }

    /// Completes when the run is not the one that is noted any more, for another reason than that it has come to its end.
    async fn replaced(&self, run: &Run<'_, K>, id: Uuid) -> Result<SyncOutcome, SyncError> {
        loop {
            let replaced = self.replaced_by_now(id).await?;
            // It removes its note itself then, and says how it was.
            if run.is_ending() {
                return std::future::pending().await;
            }
            if let Some(outcome) = replaced {
                return Ok(outcome);
            }
            tokio::select! {
                () = self.cx.sync_wanted.notified() => {}
                () = tokio::time::sleep(UNANNOUNCED_EVERY) => {}
            }
        }
    }

    /// How a run ends whose note is gone, or another's by now.
    async fn replaced_by_now(&self, id: Uuid) -> Result<Option<SyncOutcome>, SyncError> {
        let queue = self.cx.queue.clone();
        Ok(match blocking(move || SyncState::open(&queue)).await? {
            None => Some(SyncOutcome::Cancelled),
            Some(state) if state.id != id => Some(SyncOutcome::GivenWay),
            Some(_) => None,
        })
    }

    async fn ask_periodically(&self) -> Result<(), SyncError> {
        if self.every.is_zero() {
            return Ok(());
        }
        let (queue, every) = (self.cx.queue.clone(), self.every);
        let position = self.cx.reading.position().seen();
        blocking(move || -> Result<(), QueueError> {
            let last = queue
                .meta(note::LAST_SYNC)?
                .and_then(|last| serde_json::from_slice::<u64>(&last).ok());
            let due = last.unwrap_or(0).saturating_add(every.as_millis() as u64);
            if now_ms() >= due {
                let request = SyncRequest::default();
                // Refused while another runs, which is as good.
                let _ = SyncState::request(&queue, position, request, Reason::Periodic)?;
                // From now on, so that one that is cancelled does not come again at once.
                finish::note_last(&queue)?;
            }
            Ok(())
        })
        .await?;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
