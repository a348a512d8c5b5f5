//! Counting both sides from time to time: a cheap look that sees a whole collection missing.
//!
//! The servers' own estimates are compared (`estimatedDocumentCount`), which reads no document. They differ
//! all the time while changes are on the way, so a difference counts only when
//!
//! - it is larger than what waits in the queue, or lies among the dead letters, can explain,
//! - it outlives [`LOOKS`] looks over more than a minute (both servers expire documents once a minute, each
//!   at a moment of its own), and
//! - an exact count on both sides confirms it. An estimate may be off for good after a server has crashed;
//!   by how much is remembered, so that the exact count is made once.

use std::{collections::HashMap, time::Duration};

use bson::{RawDocumentBuf, rawdoc};

use super::{Reconciler, SyncError, local_collections, pause};
use crate::{
    checkpoint::ClusterTime,
    mongo::{Mongo, MongoError, documents, majority_after},
    namespace::Namespace,
    shutdown::{Stop, blocking},
    sink::Sink,
    source::SourceError,
    status::{Divergence, Figures, Phase},
};

/// How often a difference is looked at before it is believed, and how far apart at the most.
const LOOKS: usize = 6;
const LOOK_APART: Duration = Duration::from_secs(15);

/// How long after its start the agent counts for the first time.
const FIRST: Duration = Duration::from_secs(10);

/// What both sides hold of a collection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Counts {
    /// Before and after Atlas was asked.
    local: [u64; 2],
    atlas: u64,
    /// Documents that wait in the queue or are dead letters: each explains a difference of one.
    pending: u64,
}

impl Counts {
    /// True when what waits explains the difference, given that the estimates of Atlas are off by `drift`.
    fn are_explained(&self, drift: i64) -> bool {
        let [first, second] = self.local;
        let atlas = i128::from(self.atlas) - i128::from(drift);
        let low = i128::from(first.min(second)) - i128::from(self.pending);
        let high = i128::from(first.max(second)) + i128::from(self.pending);
        (low..=high).contains(&atlas)
    }
}

impl<K: Sink> Reconciler<K> {
    /// Counts both sides from time to time, for as long as the agent runs.
    pub(super) async fn keep_counts(&self, stop: &Stop) -> Result<(), SyncError> {
        if self.count_check_every.is_zero() {
            std::future::pending::<()>().await;
        }
        let mut drifts = HashMap::new();
        pause(stop, FIRST.min(self.count_check_every)).await?;
        loop {
            if self.may_count() {
                match self.count_all(&mut drifts, stop).await {
                    Ok(Some(found)) => self.publish(found),
                    // Copying began meanwhile: the next count tells.
                    Ok(None) => {}
                    Err(error @ (SyncError::Stopped | SyncError::Queue(_))) => return Err(error),
                    Err(error) => tracing::debug!(%error, "the documents were not counted"),
                }
            }
            pause(stop, self.count_check_every).await?;
        }
    }

    /// A copy or a comparison finds out by itself, and while one runs nothing is as it will be.
    fn may_count(&self) -> bool {
        let state = self.status.state();
        let runs = state.sync.as_ref().is_some_and(|sync| sync.finished_ms.is_none());
        state.phase == Phase::Streaming && !runs && state.is_marked && state.atlas_fault.is_none()
    }

    fn publish(&self, found: Vec<Divergence>) {
        let mut state = self.status.state();
        if state.divergences != found {
            state.divergences = found;
        }
    }

    async fn count_all(
        &self,
        drifts: &mut HashMap<Namespace, i64>,
        stop: &Stop,
    ) -> Result<Option<Vec<Divergence>>, SyncError> {
        let listing = local_collections(&self.ends.local, &self.filter).await?;
        // Which documents a capped collection has thrown away is each server's own affair.
        let mut open = Vec::new();
        let mut counted = Vec::new();
        for collection in listing.collections {
            let counts = self.count(&collection.ns).await?;
            counted.push((collection.ns.clone(), counts));
            let drift = drifts.get(&collection.ns).copied().unwrap_or(0);
            if !collection.is_capped() && !counts.are_explained(drift) {
                open.push(collection.ns);
            }
        }
        self.note_figures(&counted);
        for _ in 1..LOOKS {
            if open.is_empty() {
                return Ok(Some(Vec::new()));
            }
            pause(stop, LOOK_APART.min(self.count_check_every)).await?;
            if !self.may_count() {
                return Ok(None);
            }
            let mut still = Vec::new();
            for ns in open {
                let drift = drifts.get(&ns).copied().unwrap_or(0);
                if !self.count(&ns).await?.are_explained(drift) {
                    still.push(ns);
                }
            }
            open = still;
        }
        let mut found = Vec::new();
        for ns in open {
            let estimated = self.count(&ns).await?;
            let exact = self.count_exactly(&ns).await?;
            if exact.are_explained(0) {
                let drift = estimated.atlas as i64 - estimated.local[1] as i64;
                tracing::info!(%ns, drift, "a server's estimate of its documents is off; an exact count agrees");
                drifts.insert(ns, drift);
            } else {
                drifts.remove(&ns);
                found.push(Divergence {
                    ns: ns.to_string(),
                    local: exact.local[1],
                    atlas: exact.atlas,
                });
            }
        }
        Ok(Some(found))
    }

    async fn count(&self, ns: &Namespace) -> Result<Counts, SyncError> {
        let before = self.pending_of(ns).await?;
        let first = self.ends.local.estimated_count(ns).await.map_err(SourceError::from)?;
        let atlas = self.ends.atlas.estimated_count(ns).await.map_err(|e| SyncError::atlas(&e))?;
        let second = self.ends.local.estimated_count(ns).await.map_err(SourceError::from)?;
        let pending = before.max(self.pending_of(ns).await?);
        Ok(Counts { local: [first, second], atlas, pending })
    }

    async fn count_exactly(&self, ns: &Namespace) -> Result<Counts, SyncError> {
        let before = self.pending_of(ns).await?;
        let first = exact(&self.ends.local, ns).await.map_err(SourceError::from)?;
        let atlas = exact(&self.ends.atlas, ns).await.map_err(|error| SyncError::atlas(&error))?;
        let second = exact(&self.ends.local, ns).await.map_err(SourceError::from)?;
        let pending = before.max(self.pending_of(ns).await?);
        Ok(Counts { local: [first, second], atlas, pending })
    }

    async fn pending_of(&self, ns: &Namespace) -> Result<u64, SyncError> {
        let (queue, ns) = (self.queue.clone(), ns.clone());
        Ok(blocking(move || queue.unwritten_of(&ns)).await?)
    }

    /// What the dashboard shows of each collection. Those that are gone take their figures along.
    fn note_figures(&self, counted: &[(Namespace, Counts)]) {
        let mut state = self.status.state();
        let before = std::mem::take(&mut state.namespaces);
        for (ns, counts) in counted {
            let figures = before.get(ns).copied().unwrap_or_default();
            let (local, atlas) = (Some(counts.local[1]), Some(counts.atlas));
            let figures = Figures { local_documents: local, atlas_documents: atlas, ..figures };
            state.namespaces.insert(ns.clone(), figures);
        }
    }
}

/// Counts the documents one by one, in a snapshot that a majority has.
async fn exact(mongo: &Mongo, ns: &Namespace) -> Result<u64, MongoError> {
    let mut pipeline = bson::RawArrayBuf::new();
    pipeline.push(rawdoc! { "$match": {} });
    pipeline.push(rawdoc! { "$count": "n" });
    let mut command: RawDocumentBuf = rawdoc! {
        "aggregate": ns.coll(), "pipeline": pipeline, "cursor": {},
    };
    command.append(bson::raw::cstr!("readConcern"), majority_after(ClusterTime::default()));
    let mut cursor = mongo.cursor(ns.db(), command, None).await?;
    let mut count = 0;
    while let Some(reply) = cursor.next().await? {
        for document in documents(&reply)? {
            count = match document.get("n") {
                Ok(Some(bson::RawBsonRef::Int32(n))) => u64::try_from(n).unwrap_or(0),
                Ok(Some(bson::RawBsonRef::Int64(n))) => u64::try_from(n).unwrap_or(0),
                _ => count,
            };
        }
    }
    Ok(count)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(local: [u64; 2], atlas: u64, pending: u64) -> Counts {
        Counts { local, atlas, pending }
    }

    #[test]
    fn what_waits_explains_as_many_documents_as_there_are_entries() {
        assert!(counts([100, 100], 100, 0).are_explained(0));
        assert!(counts([100, 100], 90, 10).are_explained(0));
        assert!(counts([100, 100], 110, 10).are_explained(0), "deletes wait");
        assert!(!counts([100, 100], 89, 10).are_explained(0));
        assert!(!counts([100, 100], 0, 0).are_explained(0));
        assert!(counts([100, 120], 110, 0).are_explained(0), "inserted between the two");
    }

    #[test]
    fn an_estimate_that_is_off_for_good_is_taken_into_account() {
        assert!(counts([100, 100], 93, 0).are_explained(-7));
        assert!(!counts([100, 100], 92, 0).are_explained(-7));
        assert!(!counts([100, 100], 100, 0).are_explained(-7), "it was mended");
    }
}
