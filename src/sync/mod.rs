//! The first copy, the full sync that repairs, the verification, and the restore.
//!
//! What is owed ([`sync_state`](crate::sync::state)) goes, for each collection that the local database
//! has, one of two ways:
//!
//! - **Copy**, where Atlas has nothing: documents stream straight across, range by range. What is
//!   queued for the collection is held meanwhile, since a delete that overtook the copy's older insert
//!   would leave the document there for ever.
//! - **Compare**, where Atlas has something: both sides are read, and a `Refresh` is queued for each
//!   document that differs. Keys, never contents: so it cannot overwrite a newer write, and nothing
//!   has to be held.
//!
//! What is asked for only ever compares, so that it can be cancelled at any moment. After the documents,
//! options and indexes are compared and mended.
//!
//! Before any of it, the [ownership] of the target is settled. Until then nothing is written to Atlas.

use std::{sync::Arc, time::Duration};

use futures_util::future::BoxFuture;
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::Notify;
use uuid::Uuid;

use crate::{
    model::namespace::{Namespace, NamespaceFilter},
    mongo::{Mongo, MongoError},
    observe::{
        metrics::Gauge,
        progress::{Activity, Progress},
        status::{Phase, Status},
    },
    policy::{horizon::Horizon, late::LateWrites},
    queue::{Queue, QueueError},
    runtime::{
        clock::now_ms,
        shutdown::{Stop, blocking},
    },
    schema::watch::SchemaWatch,
    sink::{Sink, SinkError},
    source::SourceError,
    sync::state::{Reason, SyncRequest, SyncState},
};

mod behind;
pub mod claim;
mod collections;
mod compare;
mod copy;
mod counts;
mod digest;
pub mod document;
mod ends;
mod first;
mod keeper;
mod marks;
mod mend;
pub mod ownership;
mod range;
mod refusals;
mod repair;
mod restore;
mod review;
mod run;
pub mod same;
mod schema;
pub mod state;
mod unmatched;
pub mod unproven;
pub mod upstream;
mod verdict;
mod verify;
mod views;

pub use behind::is_all_held_up;
pub use collections::{Collection, LeftOut, Listing, local_collections};
pub use ends::{End, Ends};
pub use restore::{Restore, RestoreError};
pub use review::{Remark, review};
pub use unmatched::{Unmatched, nothing_of, unmatched};
pub use verdict::refused_of_the_run;
pub use verify::{Found, Lag, NamespaceResult, Verification, Verify};

/// How often to look for a demand that nobody announced.
const LOOK_AGAIN: Duration = Duration::from_secs(2);

/// How long an owed run waits before it tries again what a server would not do.
const FAILED_WAIT: Duration = Duration::from_secs(60);

/// Waits, unless the agent is leaving.
async fn pause(stop: &Stop, wait: Duration) -> Result<(), SyncError> {
    tokio::select! {
        () = stop.drain.cancelled() => Err(SyncError::Stopped),
        () = stop.leave.cancelled() => Err(SyncError::Stopped),
        () = tokio::time::sleep(wait) => Ok(()),
    }
}

/// Collections in which the last comparison found more to delete than it may; kept beside the queue.
const REFUSED: &str = "refused";

/// When the last full sync of everything ended, milliseconds since 1970; kept beside the queue.
const LAST: &str = "last-sync";

/// Reads them.
///
/// # Errors
/// When the queue cannot be read.
pub fn refused_deletes(queue: &Queue) -> Result<Vec<String>, QueueError> {
    let stored = queue.meta(REFUSED)?;
    // A list for display alone: one that cannot be read is made again by the next comparison.
    Ok(stored.and_then(|stored| serde_json::from_slice(&stored).ok()).unwrap_or_default())
}

fn note_refused(queue: &Queue, refused: &[String]) -> Result<(), QueueError> {
    let list = serde_json::to_vec(refused).expect("a list of names is JSON");
    queue.set_meta(REFUSED, (!refused.is_empty()).then_some(&list))
}

/// The collections of Atlas that the filter chooses. Its failures are Atlas's.
async fn atlas_collections(atlas: &Mongo, filter: &NamespaceFilter) -> Result<Listing, SyncError> {
    let listing = local_collections(atlas, filter).await.map_err(|error| match error {
        SourceError::Unavailable(error)
        | SourceError::Denied { source: error, .. }
        | SourceError::HistoryLost(error)
        | SourceError::Failed(error) => SyncError::atlas(&error),
        other => SyncError::Source(other),
    });
    let mut listing = listing?;
    // That the mark of ownership is there is no news.
    let is_of_the_mark = |ns: &Namespace| ns.db().eq_ignore_ascii_case(filter.state_database());
    listing
        .left_out
        .retain(|LeftOut { ns, .. }| !is_of_the_mark(ns) || filter.kept_apart(ns).is_none());
    Ok(listing)
}

/// Copies or compares when it is demanded or asked for.
pub struct Reconciler<K> {
    pub queue: Arc<Queue>,
    pub ends: Ends,
    pub sink: Arc<K>,
    pub status: Arc<Status>,
    pub filter: NamespaceFilter,
    pub horizon: Arc<Mutex<Horizon>>,
    pub late: Arc<Mutex<LateWrites>>,
    pub max_delete_ratio: f64,
    /// Entries that may be ready in the queue before a comparison waits.
    pub queue_max: u64,
    /// How often a full sync is made without being asked for. Zero: never.
    pub verify_every: Duration,
    /// How often both sides are counted. Zero: never.
    pub count_check_every: Duration,
    pub source_id: String,
    pub agent: ownership::AgentMark,
    /// Take the target over, whoever's it is.
    pub adopt: bool,
    /// See [`ownership::Taking`].
    pub seen_beat: Mutex<Option<i64>>,
    pub ring: Mutex<claim::Ring>,
    /// Woken when something is demanded, asked for or cancelled.
    pub demanded: Arc<Notify>,
    /// What a server would not do, of the run in hand, a sentence each.
    pub failed: Mutex<Vec<String>>,
    /// Bytes that Atlas had sent when the run in hand began.
    pub received_before: Gauge,
    /// What the worker leaves to the task that builds indexes.
    pub watch: Arc<SchemaWatch>,
    /// See [`Source::tells_of_schema`](crate::source::Source::tells_of_schema).
    pub tells_of_schema: bool,
}

/// Why a sync stopped.
#[derive(Debug, thiserror::Error)]
pub enum SyncError {
    #[error(transparent)]
    Queue(#[from] QueueError),
    #[error(transparent)]
    Source(#[from] SourceError),
    #[error(transparent)]
    Sink(#[from] SinkError),
    /// There is no other end.
    #[error(transparent)]
    SameDatabase(#[from] same::Same),
    /// Another source has a mark for names that ours could choose too.
    #[error("{problem}")]
    Overlap { problem: String },
    /// The local database is a copy of the target, by whatever way.
    #[error("{problem}")]
    Ring { problem: String },
    /// The target holds data and is not marked as this source's replica.
    #[error("{problem}")]
    NotOwned { problem: String },
    /// Another agent keeps the same copy.
    #[error(
        "another agent replicates this local database to this Atlas: on host `{host}`, process {pid}, \
         last heartbeat {heartbeat} ago"
    )]
    Rival { host: String, pid: u32, heartbeat: String, is_fresh: bool },
    /// A server that does not know the expression.
    #[error("{} cannot hash documents (`$toHashedIndexKey`)", match .end { End::Local => "the local database", End::Atlas => "Atlas" })]
    NoDigest { end: End },
    /// The local database, which is restored into, takes no documents.
    #[error("the local database does not take documents: {problem}")]
    LocalTarget { problem: String, is_away: bool },
    /// A pattern that chooses nothing on either side.
    #[error("{0}")]
    NothingMatches(Unmatched),
    /// What was read of the local database was read under a permit that holds no longer. It is read again.
    #[error(
        "the local database had to be proven again, and what was read of it before does not count"
    )]
    Outdated,
    /// The queue was put back to an older state.
    #[error("the queue is older than what Atlas was written from")]
    OlderQueue,
    /// The agent is leaving.
    #[error("stopped")]
    Stopped,
}

impl SyncError {
    /// True when trying again may help.
    pub fn is_transient(&self) -> bool {
        match self {
            // Of a read that is not the stream's it says nothing about the history.
            SyncError::Source(SourceError::HistoryLost(_)) => true,
            SyncError::Source(error) => error.is_transient(),
            SyncError::Sink(_)
            | SyncError::LocalTarget { is_away: true, .. }
            | SyncError::Outdated => true,
            SyncError::Queue(_)
            | SyncError::OlderQueue
            | SyncError::SameDatabase(_)
            | SyncError::NotOwned { .. }
            | SyncError::Overlap { .. }
            | SyncError::Ring { .. }
            | SyncError::Rival { .. }
            | SyncError::NoDigest { .. }
            | SyncError::NothingMatches(_)
            | SyncError::LocalTarget { .. }
            | SyncError::Stopped => false,
        }
    }

    /// True when an end is away, and nobody has to do anything but wait.
    pub fn is_unavailable(&self) -> bool {
        matches!(
            self,
            SyncError::Source(SourceError::Unavailable(_) | SourceError::HistoryLost(_))
                | SyncError::Sink(
                    SinkError::Unavailable(_)
                        | SinkError::Unanswered(_)
                        | SinkError::DropUnanswered { .. }
                )
                | SyncError::LocalTarget { is_away: true, .. }
                | SyncError::Outdated
        ) || self.is_overtaken()
    }

    /// True when the collection that was read is not what it was when the read began.
    fn is_overtaken(&self) -> bool {
        matches!(self, SyncError::Source(SourceError::Overtaken { .. }))
    }

    /// True when a server has understood, and will not.
    fn is_refusal(&self) -> bool {
        matches!(
            self,
            SyncError::Source(SourceError::Failed(_))
                | SyncError::Sink(SinkError::Rejected(_) | SinkError::Held(_))
        )
    }

    /// True when what is in the queue is not ours to write to this target.
    pub fn is_of_ownership(&self) -> bool {
        matches!(
            self,
            SyncError::NotOwned { .. }
                | SyncError::SameDatabase(_)
                | SyncError::Overlap { .. }
                | SyncError::Ring { .. }
                | SyncError::Rival { .. }
        )
    }

    fn atlas(error: &MongoError) -> Self {
        SyncError::Sink(crate::sink::classify::command_error(error))
    }
}

impl<K: Sink> Reconciler<K> {
    /// Settles ownership, then serves demands and requests until told to stop.
    ///
    /// # Errors
    /// [`SyncError::SameDatabase`], [`SyncError::NotOwned`], [`SyncError::Overlap`], [`SyncError::Ring`],
    /// [`SyncError::Rival`], or a failure of the queue.
    pub async fn run(&self, stop: &Stop) -> Result<(), SyncError> {
        let result = tokio::select! {
            result = self.serve(stop) => result,
            result = Box::pin(self.keep_mark(stop)) => result,
            result = self.keep_schema(stop) => result,
            result = Box::pin(self.keep_counts(stop)) => result,
        };
        match result {
            Err(SyncError::Stopped) => Ok(()),
            result => result,
        }
    }

    async fn serve(&self, stop: &Stop) -> Result<(), SyncError> {
        self.claim_patiently(true, stop).await?;
        loop {
            let queue = self.queue.clone();
            if let Some(state) = blocking(move || SyncState::resume(&queue)).await? {
                self.run_until_ended(state, stop).await?;
                continue;
            }
            self.queue.release_all();
            self.demand_left().await?;
            self.ask_periodically().await?;
            let paused = self.status.state().paused;
            if !stop.is_draining() {
                self.status.enter(if paused { Phase::Paused } else { Phase::Streaming });
            }
            tokio::select! {
                () = stop.drain.cancelled() => return Ok(()),
                () = stop.leave.cancelled() => return Ok(()),
                () = self.demanded.notified() => {}
                // The worker demands a sync too, when a schema change is given up.
                () = tokio::time::sleep(LOOK_AGAIN) => {}
            }
        }
    }

    /// One run, from its note in the queue to its end. A request ends at once when its note is gone or
    /// another's; what is owed goes on to its end, since a copy that is left half-way could only be
    /// compared.
    async fn run_until_ended(&self, state: SyncState, stop: &Stop) -> Result<(), SyncError> {
        let request = state.request.clone();
        if request.is_none() && !state.is_of_some {
            self.status.enter(Phase::Copying);
        } else {
            // Streaming goes on beside it; after a restart nothing else would let it.
            self.queue.release_all();
            let paused = self.status.state().paused;
            self.status.enter(if paused { Phase::Paused } else { Phase::Streaming });
        }
        self.begin(&state);
        let id = state.id;
        let result = if request.is_none() {
            self.execute(state, stop).await
        } else {
            tokio::select! {
                result = self.execute(state, stop) => result,
                replaced = self.replaced(id) => match replaced {
                    Ok(outcome) => Ok(outcome.to_owned()),
                    Err(error) => Err(error),
                },
            }
        };
        let result = match result {
            // What cannot be done as asked ends with its reason; the agent goes on.
            Err(error @ SyncError::NoDigest { .. }) if request.is_some() => {
                let queue = self.queue.clone();
                blocking(move || SyncState::cancel(&queue)).await?;
                Ok(format!("failed: {error}; ask again without digest"))
            }
            // Nor does what a server will not do at all, while it is not owed.
            Err(error) if error.is_refusal() => {
                let reason = crate::observe::report::one_line(&error);
                if request.is_some() {
                    let queue = self.queue.clone();
                    blocking(move || SyncState::cancel(&queue)).await?;
                    Ok(format!("failed: {reason}"))
                } else {
                    tracing::error!(
                        error = reason,
                        "the full sync cannot go on, and is tried again"
                    );
                    pause(stop, FAILED_WAIT).await?;
                    Ok(format!("not done, and tried again: {reason}"))
                }
            }
            result => result,
        };
        let outcome = result?;
        self.end(&outcome);
        Ok(())
    }

    fn begin(&self, state: &SyncState) {
        let activity = match &state.request {
            None if !state.is_of_some => Activity::Copy,
            None => Activity::Sync,
            Some(request) if request.dry_run => Activity::DryRun,
            Some(_) => Activity::Sync,
        };
        let mut progress =
            Progress::begin(state.id.to_string(), activity, state.reason.to_string(), now_ms());
        progress.digest = state.request.as_ref().is_some_and(|request| request.digest);
        tracing::info!(id = progress.id, reason = progress.reason, "a full sync begins");
        self.received_before.set(self.ends.atlas.received());
        self.failed.lock().clear();
        // One that goes on after a restart has queued what is not known any more.
        self.status.repaired.begin(!state.begun.is_empty() || !state.done.is_empty());
        self.status.state().sync = Some(progress);
    }

    fn end(&self, outcome: &str) {
        let mut state = self.status.state();
        let Some(progress) = &mut state.sync else { return };
        progress.finished_ms = Some(now_ms());
        progress.outcome = Some(outcome.to_owned());
        let report = progress.report(now_ms());
        tracing::info!(
            outcome,
            collections = report.collections,
            documents = report.documents_done,
            missing = report.missing,
            extra = report.extra,
            content = report.content,
            elapsed_ms = now_ms().saturating_sub(report.started_ms),
            "a full sync has ended"
        );
    }

    /// Completes when the run is not the one that is noted any more.
    async fn replaced(&self, id: Uuid) -> Result<&'static str, SyncError> {
        loop {
            let queue = self.queue.clone();
            match blocking(move || SyncState::open(&queue)).await? {
                None => return Ok("cancelled"),
                Some(state) if state.id != id => {
                    return Ok("ended for one of everything, which is owed");
                }
                Some(_) => {}
            }
            tokio::select! {
                () = self.demanded.notified() => {}
                () = tokio::time::sleep(LOOK_AGAIN) => {}
            }
        }
    }

    async fn ask_periodically(&self) -> Result<(), SyncError> {
        if self.verify_every.is_zero() {
            return Ok(());
        }
        let (queue, every) = (self.queue.clone(), self.verify_every);
        let position = self.status.state().position.seen();
        blocking(move || -> Result<(), QueueError> {
            let last = queue.meta(LAST)?.and_then(|last| serde_json::from_slice::<u64>(&last).ok());
            let due = last.unwrap_or(0).saturating_add(every.as_millis() as u64);
            if now_ms() >= due {
                let request = SyncRequest::default();
                // Refused while another runs, which is as good.
                let _ = SyncState::ask(&queue, position, request, Reason::Periodic)?;
                // From now on, so that one that is cancelled does not come again at once.
                let now = serde_json::to_vec(&now_ms()).expect("a number is JSON");
                queue.set_meta(LAST, Some(&now))?;
            }
            Ok(())
        })
        .await?;
        Ok(())
    }

    /// Repeats `attempt` while it fails for reasons that pass.
    async fn retrying<'a, T>(
        &'a self,
        stop: &Stop,
        message: &'static str,
        mut attempt: impl FnMut() -> BoxFuture<'a, Result<T, SyncError>> + Send,
    ) -> Result<T, SyncError> {
        let mut attempts = self.ends.attempts(stop).without_end(message);
        loop {
            let result = tokio::select! {
                () = stop.drain.cancelled() => return Err(SyncError::Stopped),
                () = stop.leave.cancelled() => return Err(SyncError::Stopped),
                result = attempt() => result,
            };
            match result {
                Ok(value) => {
                    attempts.succeeded();
                    return Ok(value);
                }
                Err(error) => attempts.failed(error).await?,
            }
        }
    }

    fn late(&self) -> MutexGuard<'_, LateWrites> {
        self.late.lock()
    }
}
