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
    event::SchemaChange,
    horizon::Horizon,
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

/// Copies or compares everything when it is demanded.
pub struct Reconciler<K> {
    pub queue: Arc<Queue>,
    pub local: Mongo,
    pub atlas: Mongo,
    pub sink: Arc<K>,
    pub status: Arc<Status>,
    pub filter: NamespaceFilter,
    pub horizon: Arc<Mutex<Horizon>>,
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
            } else {
                self.queue.release_all();
                if !stop.is_draining() && !self.status.state().paused {
                    self.status.enter(Phase::Streaming);
                }
                tokio::select! {
                    () = stop.drain.cancelled() => return Ok(()),
                    () = stop.leave.cancelled() => return Ok(()),
                    () = self.demanded.notified() => {}
                }
            }
        }
    }

    /// Makes sure that the target is ours, and demands a sync where it has nothing of ours yet.
    async fn claim(&self) -> Result<(), SyncError> {
        use ownership::Claim;
        match ownership::claim(&self.atlas, &self.filter, &self.source_id, self.adopt).await? {
            Claim::Owned => {}
            // A checkpoint without a mark: another Atlas than last time.
            Claim::New => SyncState::demand(&self.queue)?,
        }
        Ok(())
    }

    async fn sync(&self, mut state: SyncState, stop: &Stop) -> Result<(), SyncError> {
        let collections = self
            .retrying(stop, "the local collections cannot be listed yet", || Box::pin(self.list()))
            .await?;
        let mut open = Vec::new();
        for collection in &collections {
            if !state.done.contains(&collection.ns) {
                self.queue.hold(&collection.ns);
                open.push(collection);
            }
        }
        // What is not in the list was made after the stream's position was taken: all of its
        // documents are in the stream.
        self.queue.release_all();
        tracing::info!(pending = open.len(), "copying what Atlas lacks, comparing what it has");
        for (n, collection) in open.iter().enumerate() {
            self.status.state().copy = Some(CopyProgress {
                collections_done: (collections.len() - open.len() + n) as u64,
                collections: collections.len() as u64,
                current: Some(collection.ns.to_string()),
            });
            self.retrying(stop, "the copy is interrupted", || {
                Box::pin(self.reconcile(collection, stop))
            })
            .await?;
            self.queue.release(&collection.ns);
            let (queue, ns, mut next) = (self.queue.clone(), collection.ns.clone(), state);
            state = blocking(move || next.finished(&queue, &ns).map(|()| next)).await?;
        }
        let known: Vec<_> = collections.iter().map(|collection| collection.ns.clone()).collect();
        self.retrying(stop, "Atlas cannot be compared yet", || {
            Box::pin(self.compare_rest(&known, stop))
        })
        .await?;
        // What was written whole may be younger than deltas that are still to come.
        let now = self
            .retrying(stop, "the local time is not known yet", || Box::pin(self.local_time()))
            .await?;
        self.horizon.lock().unwrap_or_else(std::sync::PoisonError::into_inner).raise(now);
        self.status.state().copy = None;
        let queue = self.queue.clone();
        if blocking(move || state.complete(&queue)).await? {
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

    async fn reconcile(&self, collection: &Collection, stop: &Stop) -> Result<(), SyncError> {
        let ns = &collection.ns;
        if self.is_empty_in_atlas(ns).await? {
            let options = collection.options.clone();
            match self.sink.change_schema(&SchemaChange::Create { ns: ns.clone(), options }).await {
                // Options that this Atlas does not take must not keep the documents away.
                Err(SinkError::Rejected(error)) => {
                    tracing::warn!(%ns, %error, "created without its options");
                }
                result => result?,
            }
            let documents = self.copy(ns, stop).await?;
            tracing::info!(%ns, documents, "copied");
        } else {
            self.queue.release(ns);
            let found = self.compare(ns, stop).await?;
            tracing::info!(%ns, missing = found.missing, content = found.content, extra = found.extra, "compared");
        }
        Ok(())
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

    /// Collections that only Atlas has: what is in them is extra.
    async fn compare_rest(&self, known: &[Namespace], stop: &Stop) -> Result<(), SyncError> {
        let (in_atlas, _) = match local_collections(&self.atlas, &self.filter).await {
            Ok(collections) => collections,
            Err(SourceError::Denied(error)) => return Err(SyncError::atlas(&error)),
            Err(error) => return Err(error.into()),
        };
        for collection in in_atlas.iter().filter(|collection| !known.contains(&collection.ns)) {
            let extra = self.find_extra(&collection.ns, stop).await?;
            tracing::warn!(ns = %collection.ns, extra, "only Atlas has this collection");
        }
        Ok(())
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
                        self.status.state().atlas_error = Some(error.to_string());
                    }
                    tokio::select! {
                        () = stop.drain.cancelled() => return Err(SyncError::Stopped),
                        () = stop.leave.cancelled() => return Err(SyncError::Stopped),
                        () = tokio::time::sleep(wait.next_wait()) => {}
                    }
                }
                result => {
                    if result.is_ok() {
                        self.status.state().atlas_error = None;
                    }
                    return result;
                }
            }
        }
    }
}
