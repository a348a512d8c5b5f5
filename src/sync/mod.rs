//! The first copy, and the comparison that repairs.
//!
//! For each collection that the local database has, one of two ways:
//!
//! - **Copy**, where Atlas has nothing: documents stream straight across. What is queued for the
//!   collection is held meanwhile, since a delete that overtook the copy's older insert would leave
//!   the document there for ever.
//! - **Compare**, where Atlas has something: both sides are read, and a `Refresh` is queued for each
//!   document that differs. Keys, never contents: so it cannot overwrite a newer write, and nothing
//!   has to be held.
//!
//! Before either, the [ownership] of the target is settled. Until then nothing is written to Atlas.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use bson::rawdoc;
use futures_util::future::BoxFuture;
use tokio::sync::Notify;

use crate::{
    backoff::OutageWait,
    checkpoint::ClusterTime,
    crash::{self, Step},
    event::SchemaChange,
    horizon::Horizon,
    late::LateWrites,
    mongo::{Mongo, MongoError},
    namespace::{Namespace, NamespaceFilter},
    queue::{Queue, QueueError},
    shutdown::{Stop, blocking},
    sink::{Sink, SinkError},
    source::{SourceError, inspect},
    status::{CopyProgress, Phase, Status},
    sync_state::SyncState,
};

mod collections;
mod compare;
mod copy;
pub mod ownership;

pub use collections::{Collection, LeftOut, local_collections};

/// How often to look for a demand that nobody announced.
const LOOK_AGAIN: Duration = Duration::from_secs(2);

/// How often to look whether a barrier is gone.
const BARRIER_CHECK: Duration = Duration::from_millis(100);

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
async fn atlas_collections(
    atlas: &Mongo,
    filter: &NamespaceFilter,
) -> Result<(Vec<Collection>, Vec<LeftOut>), SyncError> {
    local_collections(atlas, filter).await.map_err(|error| match error {
        SourceError::Unavailable(error)
        | SourceError::Denied { source: error, .. }
        | SourceError::HistoryLost(error)
        | SourceError::Failed(error) => SyncError::atlas(&error),
        other => SyncError::Source(other),
    })
}

/// Copies or compares everything when it is demanded.
pub struct Reconciler<K> {
    pub queue: Arc<Queue>,
    pub local: Mongo,
    pub atlas: Mongo,
    pub sink: Arc<K>,
    pub status: Arc<Status>,
    pub filter: NamespaceFilter,
    pub horizon: Arc<Mutex<Horizon>>,
    pub late: Arc<Mutex<LateWrites>>,
    /// Writers of the copy.
    pub parallel: usize,
    pub max_delete_ratio: f64,
    pub source_id: String,
    /// Take the target over, whoever's it is.
    pub adopt: bool,
    /// Woken when a sync is demanded.
    pub demanded: Arc<Notify>,
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
    /// The target holds data and is not marked as this source's replica.
    #[error("{problem}")]
    NotOwned { problem: String },
    /// The agent is leaving.
    #[error("stopped")]
    Stopped,
}

impl SyncError {
    fn is_transient(&self) -> bool {
        match self {
            SyncError::Source(error) => error.is_transient(),
            SyncError::Sink(_) => true,
            SyncError::Queue(_) | SyncError::NotOwned { .. } | SyncError::Stopped => false,
        }
    }

    fn atlas(error: &MongoError) -> Self {
        SyncError::Sink(crate::sink::classify::command_error(error))
    }
}

impl<K: Sink> Reconciler<K> {
    /// Settles ownership, then serves demands until told to stop.
    ///
    /// # Errors
    /// [`SyncError::NotOwned`], or a failure of the queue.
    pub async fn run(&self, stop: &Stop) -> Result<(), SyncError> {
        let result = self.serve(stop).await;
        match result {
            Err(SyncError::Stopped) => Ok(()),
            result => result,
        }
    }

    async fn serve(&self, stop: &Stop) -> Result<(), SyncError> {
        self.retrying(stop, "the mark of ownership cannot be set yet", || Box::pin(self.claim()))
            .await?;
        loop {
            let queue = self.queue.clone();
            if let Some(state) = blocking(move || SyncState::load(&queue)).await? {
                self.status.enter(Phase::Copying);
                self.sync(state, stop).await?;
                continue;
            }
            self.queue.release_all();
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

    /// Makes sure that the target is ours, and demands a sync where it has nothing of ours yet: another
    /// Atlas than last time. The demand is on the disk before the mark is set, since the mark is what
    /// keeps the next start from demanding it.
    async fn claim(&self) -> Result<(), SyncError> {
        let claim = ownership::Claim {
            atlas: &self.atlas,
            filter: &self.filter,
            source_id: &self.source_id,
            adopt: self.adopt,
        };
        if !claim.is_ours().await? {
            let queue = self.queue.clone();
            blocking(move || {
                let position = queue.checkpoint()?.map(|checkpoint| checkpoint.cluster_time);
                SyncState::demand(&queue, position.unwrap_or_default())?;
                queue.flush()
            })
            .await?;
        }
        crash::point(Step::ClaimNoted);
        claim.mark().await
    }

    async fn sync(&self, mut state: SyncState, stop: &Stop) -> Result<(), SyncError> {
        let after = state.after();
        let collections = self
            .retrying(stop, "the local collections cannot be listed yet", || Box::pin(self.list()))
            .await?;
        let open: Vec<_> =
            collections.iter().filter(|collection| !state.done.contains(&collection.ns)).collect();
        let (mut to_copy, mut others) = (Vec::new(), Vec::new());
        for collection in open {
            let ns = &collection.ns;
            let is_empty = self
                .retrying(stop, "Atlas cannot be looked at yet", || {
                    Box::pin(self.is_empty_in_atlas(ns))
                })
                .await?;
            // Only what is to be copied is held, and it is copied first: a comparison waits for the
            // queue to drain, which it never would for what is held.
            if is_empty && !self.queue.has_barrier(ns) {
                self.queue.hold(ns);
                to_copy.push(collection);
            } else {
                others.push(collection);
            }
        }
        // What is not in the list was made after the stream's position was taken: all of its
        // documents are in the stream.
        self.queue.release_all();
        tracing::info!(
            copy = to_copy.len(),
            compare = others.len(),
            "copying what Atlas lacks, comparing what it has"
        );
        let done_before = (collections.len() - to_copy.len() - others.len()) as u64;
        let mut refused = Vec::new();
        for (n, collection) in to_copy.into_iter().chain(others).enumerate() {
            let ns = &collection.ns;
            self.status.state().copy = Some(CopyProgress {
                collections_done: done_before + n as u64,
                collections: collections.len() as u64,
                current: Some(ns.to_string()),
            });
            let is_refused = self
                .retrying(stop, "the copy is interrupted", || {
                    Box::pin(self.reconcile(collection, after, stop))
                })
                .await?;
            crash::point(Step::CollectionCopied);
            self.queue.release(ns);
            refused.extend(is_refused.then(|| ns.to_string()));
            let (queue, ns, mut next) = (self.queue.clone(), ns.clone(), state);
            state = blocking(move || next.finished(&queue, &ns).map(|()| next)).await?;
        }
        let known: Vec<_> = collections.iter().map(|collection| collection.ns.clone()).collect();
        refused.extend(
            self.retrying(stop, "Atlas cannot be compared yet", || {
                Box::pin(self.compare_rest(&known, stop))
            })
            .await?,
        );
        // What was written whole may be younger than deltas that are still to come.
        let now = self
            .retrying(stop, "the local time is not known yet", || Box::pin(self.local_time()))
            .await?;
        self.horizon.lock().unwrap_or_else(std::sync::PoisonError::into_inner).raise(now);
        let queue = self.queue.clone();
        let (is_complete, refused) = blocking(move || -> Result<_, QueueError> {
            note_refused(&queue, &refused)?;
            Ok((state.complete(&queue)?, refused))
        })
        .await?;
        {
            let mut status = self.status.state();
            status.refused_deletes = refused;
            status.copy = None;
        }
        if is_complete {
            tracing::info!("everything is copied or compared");
        }
        Ok(())
    }

    async fn list(&self) -> Result<Vec<Collection>, SyncError> {
        let (replicated, left_out) = local_collections(&self.local, &self.filter).await?;
        for LeftOut { ns, reason } in left_out {
            tracing::warn!(%ns, error = reason, "not replicated");
        }
        Ok(replicated)
    }

    async fn local_time(&self) -> Result<ClusterTime, SyncError> {
        Ok(inspect(&self.local).await?.now)
    }

    /// Copies or compares one collection. True when a mass delete was refused.
    async fn reconcile(
        &self,
        collection: &Collection,
        after: ClusterTime,
        stop: &Stop,
    ) -> Result<bool, SyncError> {
        let ns = &collection.ns;
        // A drop or a rename that was queued before would destroy what is copied or compared now.
        if self.queue.has_barrier(ns) {
            self.queue.release(ns);
            while self.queue.has_barrier(ns) {
                pause(stop, BARRIER_CHECK).await?;
            }
        }
        self.queue.hold(ns);
        if self.is_empty_in_atlas(ns).await? {
            let options = collection.options.clone();
            match self.sink.change_schema(&SchemaChange::Create { ns: ns.clone(), options }).await {
                // Options that this Atlas does not take must not keep the documents away.
                Err(SinkError::Rejected(error)) => {
                    tracing::warn!(%ns, %error, "created without its options");
                }
                result => result?,
            }
            let documents = self.copy(collection, after, stop).await?;
            tracing::info!(%ns, documents, "copied");
            return Ok(false);
        }
        self.queue.release(ns);
        let found = self.compare(collection, after, stop).await?;
        tracing::info!(%ns, missing = found.missing, content = found.content, extra = found.extra, "compared");
        Ok(found.refused)
    }

    async fn is_empty_in_atlas(&self, ns: &Namespace) -> Result<bool, SyncError> {
        let command = rawdoc! { "find": ns.coll(), "limit": 1, "projection": { "_id": 1 } };
        let cursor = self.atlas.cursor(ns.db(), command, None).await;
        let mut cursor = cursor.map_err(|error| SyncError::atlas(&error))?;
        let batch = cursor.next().await.map_err(|error| SyncError::atlas(&error))?;
        Ok(match batch {
            Some(batch) => crate::mongo::documents(&batch)
                .map_err(|error| SyncError::atlas(&error))?
                .is_empty(),
            None => true,
        })
    }

    /// Collections that only Atlas has: what is in them is extra. Returns those in which a mass delete
    /// was refused.
    async fn compare_rest(
        &self,
        known: &[Namespace],
        stop: &Stop,
    ) -> Result<Vec<String>, SyncError> {
        let (in_atlas, _) = atlas_collections(&self.atlas, &self.filter).await?;
        let mut refused = Vec::new();
        for collection in in_atlas.iter().filter(|collection| !known.contains(&collection.ns)) {
            let ns = &collection.ns;
            if self.queue.has_barrier(ns) {
                continue; // Its drop, or its rename from here, is on the way.
            }
            let (extra, is_refused) = self.find_extra(ns, None, stop).await?;
            if extra > 0 {
                tracing::warn!(%ns, extra, "only Atlas has documents in this collection");
            }
            refused.extend(is_refused.then(|| ns.to_string()));
        }
        Ok(refused)
    }

    /// Repeats `attempt` while it fails for reasons that pass.
    async fn retrying<'a, T>(
        &self,
        stop: &Stop,
        message: &'static str,
        mut attempt: impl FnMut() -> BoxFuture<'a, Result<T, SyncError>> + Send,
    ) -> Result<T, SyncError> {
        let mut wait = OutageWait::new(Duration::from_millis(500), Duration::from_secs(15));
        let mut told = false;
        loop {
            let result = tokio::select! {
                () = stop.drain.cancelled() => return Err(SyncError::Stopped),
                () = stop.leave.cancelled() => return Err(SyncError::Stopped),
                result = attempt() => result,
            };
            match result {
                Err(error) if error.is_transient() => {
                    if !std::mem::replace(&mut told, true) {
                        tracing::warn!(%error, "{message}");
                    }
                    if let SyncError::Sink(error) = &error {
                        self.status.state().atlas_fault = Some(error.into());
                    }
                    pause(stop, wait.next_wait()).await?;
                }
                result => {
                    if result.is_ok() {
                        self.status.state().atlas_fault = None;
                    }
                    return result;
                }
            }
        }
    }
}
