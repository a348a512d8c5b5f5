//! The first copy, the full sync that repairs, the verification, and the restore.
//!
//! What is owed ([`state`]) goes, for each collection that the local database
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
//! options and indexes are compared, and what differs is applied.
//!
//! Before any of it, the [ownership] of the target is settled. Until then nothing is written to Atlas.
//!
//! [`Reconciler`] is four tasks side by side, each in a folder or file of its own, with what it remembers: the keeper
//! of the lease (`ownership`), the full sync (`full`), the keeper of options and indexes (`keeper`), and the count of
//! both sides (`counts`). They share a [`Context`]. The verification and the restore are runs of their own, without a
//! queue. All of them read and write the two ends by `range`, `copy`, `compare`, `by_key` and `digest`,
//! and see of each no more than a [`Side`].

use std::{sync::Arc, time::Duration};

use parking_lot::Mutex;

use crate::{
    model::namespace::{Namespace, NamespaceFilter},
    policy::read_watermark::ReadWatermark,
    queue::QueueError,
    runtime::shutdown::Stop,
    side::{Collection, LeftOut, Listing, Side, SideError, records::AgentIdentity},
    sink::{SchemaSink, SinkError},
    source::SourceError,
};

mod by_key;
mod compare;
mod context;
mod copy;
mod counts;
mod deletes;
mod digest;
pub mod document;
mod expiring;
mod full;
mod hint;
mod in_hand;
mod keeper;
pub mod ownership;
mod preview;
mod range;
mod restore;
pub mod same;
mod schema;
mod sides;
pub mod state;
#[cfg(test)]
mod tests;
mod unmatched;
pub mod unproven;
mod verify;

pub use context::Context;
pub use full::{is_all_held_up, refused_deletes, refused_of_the_run};
pub use ownership::{Asker, Remark, review};
pub use preview::{Action, Planned, preview};
pub use restore::{Restore, RestoreError};
pub use sides::{SideName, Sides};
pub use unmatched::{Unmatched, nothing_of, unmatched};
pub use verify::{Found, Lag, NamespaceResult, Verification, Verify};

use counts::CountCheck;
use deletes::DeleteLimit;
use full::FullSync;
use keeper::SchemaKeeper;
use ownership::Ownership;

/// Waits, unless the agent is leaving.
async fn pause(stop: &Stop, wait: Duration) -> Result<(), SyncError> {
    tokio::select! {
        () = stop.drain.cancelled() => Err(SyncError::Stopped),
        () = stop.leave.cancelled() => Err(SyncError::Stopped),
        () = tokio::time::sleep(wait) => Ok(()),
    }
}

/// What the target has of what the filter chooses.
async fn atlas_collections(
    atlas: &dyn Side,
    filter: &NamespaceFilter,
) -> Result<Listing, SideError> {
    let mut listing = atlas.list(filter).await?;
    // That the lease is there is no news.
    let is_of_the_leases = |ns: &Namespace| ns.db().eq_ignore_ascii_case(filter.state_database());
    listing
        .left_out
        .retain(|LeftOut { ns, .. }| !is_of_the_leases(ns) || filter.kept_apart(ns).is_none());
    Ok(listing)
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
    /// Another source has a lease on names that ours could choose too.
    #[error("{problem}")]
    Overlap { problem: String },
    /// The local database is a copy of the target, by whatever way.
    #[error("{problem}")]
    Ring { problem: String },
    /// The target holds data that no lease of this source covers.
    #[error("{problem}")]
    NotOwned { problem: String },
    /// Another agent keeps the same copy.
    #[error(
        "another agent replicates this local database to this Atlas: on host `{host}`, process {pid}, \
         last heartbeat {heartbeat} ago"
    )]
    LeaseHeld { host: String, pid: u32, heartbeat: String, is_fresh: bool },
    /// A server that does not know the expression.
    #[error("{} cannot hash documents (`$toHashedIndexKey`)", match .end { SideName::Local => "the local database", SideName::Atlas => "Atlas" })]
    NoDigest { end: SideName },
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
            | SyncError::LeaseHeld { .. }
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
    fn is_rejected(&self) -> bool {
        matches!(
            self,
            SyncError::Source(SourceError::Failed(_))
                | SyncError::Sink(SinkError::Rejected(_) | SinkError::Held(_) | SinkError::Gone(_))
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
                | SyncError::LeaseHeld { .. }
        )
    }
}

impl From<SideError> for SyncError {
    fn from(error: SideError) -> Self {
        match error {
            SideError::Source(error) => error.into(),
            SideError::Target(error) => error.into(),
        }
    }
}

/// What of the configuration, and of what the agent has found out, the tasks go by.
pub struct Options {
    pub source_id: String,
    pub agent: AgentIdentity,
    /// Take the target over, whoever's it is.
    pub adopt: bool,
    pub max_delete_ratio: f64,
    /// Entries that may be ready in the queue before a comparison waits.
    pub queue_max: u64,
    /// How often a full sync is made without being asked for. Zero: never.
    pub verify_every: Duration,
    /// How often both sides are counted. Zero: never.
    pub count_check_every: Duration,
    /// See [`SchemaSource::tells_of_schema`](crate::source::SchemaSource::tells_of_schema).
    pub tells_of_schema: bool,
}

/// Copies or compares when that is mandatory or asked for, and looks after what makes both sides one beside that: four
/// tasks, which share their [`Context`] and nothing else.
pub struct Reconciler<K> {
    ownership: Ownership<K>,
    full: FullSync<K>,
    keeper: SchemaKeeper<K>,
    counts: CountCheck<K>,
}

impl<K: SchemaSink> Reconciler<K> {
    /// `watermark` is raised over what a full sync has written whole.
    pub fn new(
        context: Context<K>,
        options: Options,
        watermark: Arc<Mutex<ReadWatermark>>,
    ) -> Self {
        let Options { source_id, agent, adopt, tells_of_schema, .. } = options;
        let cx = Arc::new(context);
        let deletes = DeleteLimit::new(options.max_delete_ratio);
        Self {
            ownership: Ownership::new(cx.clone(), source_id, agent, adopt),
            full: FullSync::new(
                cx.clone(),
                watermark,
                deletes,
                options.queue_max,
                options.verify_every,
            ),
            keeper: SchemaKeeper::new(cx.clone(), deletes, tells_of_schema),
            counts: CountCheck::new(cx, options.count_check_every),
        }
    }

    /// Takes the lease, then serves mandatory and on-demand syncs until told to stop.
    ///
    /// # Errors
    /// [`SyncError::SameDatabase`], [`SyncError::NotOwned`], [`SyncError::Overlap`], [`SyncError::Ring`],
    /// [`SyncError::LeaseHeld`], or a failure of the queue.
    pub async fn run(&self, stop: &Stop) -> Result<(), SyncError> {
        let result = tokio::select! {
            result = self.serve(stop) => result,
            result = Box::pin(self.ownership.keep(stop)) => result,
            result = self.keeper.keep(stop) => result,
            result = Box::pin(self.counts.keep(stop)) => result,
        };
        match result {
            Err(SyncError::Stopped) => Ok(()),
            result => result,
        }
    }

    async fn serve(&self, stop: &Stop) -> Result<(), SyncError> {
        self.ownership.take(stop).await?;
        self.full.serve(stop).await
    }

    /// Goes on with the heartbeat when the agent stops, for as long as what waits is still written: that may
    /// take longer than a lease stays young.
    ///
    /// # Errors
    /// When the queue fails.
    pub async fn heartbeat_while_draining(&self, stop: &Stop) -> Result<(), SyncError> {
        self.ownership.heartbeat_while_draining(stop).await
    }
}
