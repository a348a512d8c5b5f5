//! What the tasks of [`Reconciler`](super::Reconciler) share: the queue, both ends, what is told, and the few things
//! that all of them do with these.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::Notify;

use super::{
    Listing, SyncError, atlas_collections,
    in_hand::InHand,
    pause,
    sides::{Sides, ask},
    unmatched,
};
use crate::{
    gate::{reading::Reading, writing::Writing},
    model::{
        checkpoint::ClusterTime,
        document_key::DocumentKey,
        event::{CollectionId, SchemaChange},
        namespace::{Namespace, NamespaceFilter},
        write_op::WriteOp,
    },
    observe::status::Status,
    policy::in_doubt::InDoubtWrites,
    queue::{Incoming, Queue, Work},
    runtime::{
        clock::now_ms,
        shutdown::{Stop, blocking},
    },
    schema::{Description, watch::SchemaWatch},
};

/// How often to look whether a pause is over.
const PAUSE_CHECK: std::time::Duration = std::time::Duration::from_millis(200);

/// What the tasks share.
pub struct Context<K> {
    pub queue: Arc<Queue>,
    pub sides: Sides,
    pub sink: Arc<K>,
    pub status: Arc<Status>,
    pub reading: Arc<Reading>,
    pub writing: Arc<Writing>,
    /// What is copied and compared.
    pub filter: NamespaceFilter,
    /// What is written, of which that may be a part.
    pub written: NamespaceFilter,
    pub in_doubt: Arc<Mutex<InDoubtWrites>>,
    /// What the worker leaves to the task that builds indexes.
    pub watch: Arc<SchemaWatch>,
    /// The full sync that is in hand.
    pub in_hand: Arc<InHand>,
    /// Woken when a sync becomes mandatory, is asked for or cancelled.
    pub sync_wanted: Arc<Notify>,
}

impl<K> Context<K> {
    /// What the local database has of what is replicated, but for what is not ours in Atlas.
    pub(super) async fn source_listing(&self) -> Result<Listing, SyncError> {
        let listing = self.sides.local.list(&self.filter).await?;
        Ok(self.without_foreign(listing))
    }

    /// As [`source_listing`](Self::source_listing), of Atlas.
    pub(super) async fn target_listing(&self) -> Result<Listing, SyncError> {
        let listing = atlas_collections(&*self.sides.atlas, &self.filter).await?;
        Ok(self.without_foreign(listing))
    }

    fn without_foreign(&self, mut listing: Listing) -> Listing {
        let foreign = self.queue.kept_apart();
        let is_ours = |ns: &Namespace| !foreign.has(ns);
        listing.collections.retain(|collection| is_ours(&collection.ns));
        listing.views.retain(|view| is_ours(&view.ns));
        listing
    }

    /// Says what of the local database is not replicated, once each.
    pub(super) fn note_left_out(&self, listing: &Listing) {
        let named = listing.left_out.iter().map(|left| format!("`{}`: {}", left.ns, left.reason));
        let patterns = &self.filter.patterns().include;
        let nothing = unmatched(patterns, &[listing]).into_iter().map(|of| of.as_include());
        // A target of another kind has tables, say, and what a person makes of them.
        let not_carried = (self.sides.atlas.schema().is_none()).then(|| {
            "validators, options, indexes and views: this target keeps none of MongoDB's".to_owned()
        });
        let named: Vec<_> = named.chain(nothing).chain(not_carried).collect();
        let before = std::mem::replace(&mut self.status.state().left_out, named.clone());
        for left in named.iter().filter(|left| !before.contains(left)) {
            tracing::warn!(left, "not replicated");
        }
    }

    /// The collection `id` as it is called `ns` now, without its indexes, if the local database still has it: making
    /// an index would make a collection that is gone.
    pub(super) async fn still(
        &self,
        ns: &Namespace,
        id: Option<CollectionId>,
        stop: &Stop,
    ) -> Result<Option<Description>, SyncError> {
        let source = ask!(self.sides, stop, self.sides.local.describe_options(ns));
        Ok(source.filter(|found| found.id == id))
    }

    /// What time it is in the local database.
    pub(super) async fn local_time(&self, stop: &Stop) -> Result<ClusterTime, SyncError>
    where
        K: Send + Sync,
    {
        self.retrying(stop, "the local time is not known yet", || {
            Box::pin(async move { Ok(self.sides.local.now().await?) })
        })
        .await
    }

    /// Repeats `attempt` while it fails for reasons that pass.
    pub(super) async fn retrying<'a, T>(
        &'a self,
        stop: &Stop,
        message: &'static str,
        mut attempt: impl FnMut() -> BoxFuture<'a, Result<T, SyncError>> + Send,
    ) -> Result<T, SyncError> {
        let mut attempts = self.sides.attempts(stop).without_end(message);
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

    /// Waits while nothing may be written to Atlas: also while the local database is not proven, since all that
    /// a sync writes rests on it.
    pub(super) async fn may_write(&self, stop: &Stop) -> Result<(), SyncError> {
        while self.writing.rests() || !self.sides.local.permit().holds() {
            pause(stop, PAUSE_CHECK).await?;
        }
        Ok(())
    }

    /// Queues changes of the schema, each to come in its turn.
    pub(super) async fn queue_changes(&self, changes: Vec<SchemaChange>) -> Result<(), SyncError> {
        if changes.is_empty() {
            return Ok(());
        }
        let cluster_time = self.reading.position().whole();
        let incoming: Vec<_> = changes
            .into_iter()
            .map(|change| Incoming { work: Work::Schema(change), cluster_time, wall_ms: now_ms() })
            .collect();
        let queue = self.queue.clone();
        Ok(blocking(move || queue.commit(incoming, None).map(drop)).await?)
    }

    /// Queues a `Refresh` of each key, to be read in a state not older than `after`.
    pub(super) async fn commit_refresh(
        &self,
        ns: &Namespace,
        keys: Vec<DocumentKey>,
        id: Option<CollectionId>,
        after: ClusterTime,
    ) -> Result<(), SyncError> {
        if keys.is_empty() {
            return Ok(());
        }
        self.status.repaired.add(ns, &keys);
        // What streaming has brought to Atlas since must not be read in an older state.
        let after = after.max(self.reading.position().whole());
        let incoming: Vec<_> = keys
            .into_iter()
            .map(|key| Incoming {
                work: Work::Document { ns: ns.clone(), key, op: WriteOp::Refresh, collection: id },
                cluster_time: after,
                wall_ms: now_ms(),
            })
            .collect();
        let queue = self.queue.clone();
        blocking(move || queue.commit(incoming, None)).await?;
        Ok(())
    }

    pub(super) fn in_doubt(&self) -> MutexGuard<'_, InDoubtWrites> {
        self.in_doubt.lock()
    }
}

#[cfg(test)]
impl<K> Context<K> {
    /// Of all that is replicated between two sides, with nothing in hand.
    pub(super) fn between(
        sides: Sides,
        sink: Arc<K>,
        queue: Arc<Queue>,
        reading: Arc<Reading>,
        writing: Arc<Writing>,
    ) -> Self {
        let filter = NamespaceFilter::new(&[], &[]).expect("no pattern is malformed");
        Self {
            queue,
            sides,
            sink,
            status: Arc::default(),
            reading,
            writing,
            written: filter.clone(),
            filter,
            in_doubt: Arc::default(),
            watch: Arc::default(),
            in_hand: Arc::default(),
            sync_wanted: Arc::default(),
        }
    }
}
