//! The comparison of one collection: raw bytes against raw bytes, and a `Refresh` for each document
//! that differs.
//!
//! Both directions go by key, a part at a time: what the local side has is looked up in Atlas, and
//! what Atlas has is looked up locally. So no order over `_id`s of mixed types has to be shared by
//! client and servers, and memory is bounded by a part.

use std::{collections::HashMap, time::Duration};

use bson::{RawDocument, RawDocumentBuf, rawdoc};

use super::{Collection, Reconciler, SyncError, pause};
use crate::{
    checkpoint::ClusterTime,
    document_key::DocumentKey,
    event::CollectionId,
    mongo::{Mongo, MongoError, documents, majority_after},
    namespace::Namespace,
    queue::{Incoming, Work},
    shutdown::{Stop, blocking},
    sink::Sink,
    source::SourceError,
    status::now_ms,
    write_op::WriteOp,
};

/// Keys that are looked up at once.
const PART: usize = 1_000;

/// While so many entries wait, the comparison does too: a huge difference must not fill the queue.
const QUEUE_MAX: u64 = 50_000;

/// How often to look whether it has drained.
const DRAIN_CHECK: Duration = Duration::from_millis(100);

/// Fewer deletes than this are never a mass delete.
const MASS_DELETE_MIN: u64 = 100;

/// What a comparison found, in documents.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Found {
    pub missing: u64,
    pub content: u64,
    pub extra: u64,
    /// The extra ones were too many to be deleted.
    pub refused: bool,
}

impl<K: Sink> Reconciler<K> {
    pub(super) async fn compare(
        &self,
        collection: &Collection,
        after: ClusterTime,
        stop: &Stop,
    ) -> Result<Found, SyncError> {
        let ns = &collection.ns;
        let mut found = Found::default();
        // First, since what only Atlas has may hold unique values that other documents need.
        (found.extra, found.refused) = self.find_extra(ns, collection.id, stop).await?;
        if found.refused {
            // Said at once: a conflict with one of them waits for nothing then.
            let mut state = self.status.state();
            if !state.refused_deletes.iter().any(|refused| refused == ns.as_str()) {
                state.refused_deletes.push(ns.to_string());
            }
        }
        let command = rawdoc! { "find": ns.coll(), "readConcern": majority_after(after) };
        let cursor = self.local.cursor(ns.db(), command, None).await;
        let mut cursor = cursor.map_err(SourceError::from)?;
        while let Some(reply) = cursor.next().await.map_err(SourceError::from)? {
            for part in documents(&reply).map_err(SourceError::from)?.chunks(PART) {
                let different = self.compare_part(ns, part, &mut found).await?;
                self.queue_refresh(ns, different, collection.id, after, stop).await?;
            }
        }
        Ok(found)
    }

    async fn compare_part(
        &self,
        ns: &Namespace,
        part: &[&RawDocument],
        found: &mut Found,
    ) -> Result<Vec<DocumentKey>, SyncError> {
        let keys = keys_of(part)?;
        let there = look_up(&self.atlas, ns, &keys, false, ClusterTime::default())
            .await
            .map_err(|error| SyncError::atlas(&error))?;
        let mut different = Vec::new();
        for (key, document) in keys.into_iter().zip(part) {
            match there.get(&key.canonical()) {
                None => found.missing += 1,
                Some(copy) if copy.as_bytes() != document.as_bytes() => found.content += 1,
                Some(_) => continue,
            }
            different.push(key);
        }
        Ok(different)
    }

    /// Queues what only Atlas has, which deletes it. More than `sync.max_delete_ratio` of the
    /// collection is left alone; the second value says so.
    pub(super) async fn find_extra(
        &self,
        ns: &Namespace,
        id: Option<CollectionId>,
        stop: &Stop,
    ) -> Result<(u64, bool), SyncError> {
        let (all, extra) = self.walk_extra(ns, id, None).await?;
        let allowed = ((all as f64 * self.max_delete_ratio) as u64).max(MASS_DELETE_MIN);
        if extra > allowed {
            tracing::error!(
                %ns, extra, documents = all,
                "Atlas holds many documents that the local database does not; none of them is deleted"
            );
            return Ok((extra, true));
        }
        if extra > 0 {
            self.walk_extra(ns, id, Some(stop)).await?;
        }
        Ok((extra, false))
    }

    /// Counts what Atlas has and what of it only Atlas has; queues the latter if `queue_for` is given.
    async fn walk_extra(
        &self,
        ns: &Namespace,
        id: Option<CollectionId>,
        queue_for: Option<&Stop>,
    ) -> Result<(u64, u64), SyncError> {
        let atlas = |error: MongoError| SyncError::atlas(&error);
        let command = rawdoc! {
            "find": ns.coll(), "projection": { "_id": 1 }, "readConcern": { "level": "majority" },
        };
        let mut cursor = self.atlas.cursor(ns.db(), command, None).await.map_err(atlas)?;
        let (mut all, mut extra) = (0, 0);
        while let Some(reply) = cursor.next().await.map_err(atlas)? {
            for part in documents(&reply).map_err(atlas)?.chunks(PART) {
                all += part.len() as u64;
                let keys = keys_of(part)?;
                let here = look_up(&self.local, ns, &keys, true, ClusterTime::default())
                    .await
                    .map_err(SourceError::from)?;
                let only_there: Vec<_> =
                    keys.into_iter().filter(|key| !here.contains_key(&key.canonical())).collect();
                extra += only_there.len() as u64;
                if let Some(stop) = queue_for {
                    self.queue_refresh(ns, only_there, id, ClusterTime::default(), stop).await?;
                }
            }
        }
        Ok((all, extra))
    }

    async fn queue_refresh(
        &self,
        ns: &Namespace,
        keys: Vec<DocumentKey>,
        id: Option<CollectionId>,
        after: ClusterTime,
        stop: &Stop,
    ) -> Result<(), SyncError> {
        while !keys.is_empty() && self.queue.pending().0 > QUEUE_MAX {
            pause(stop, DRAIN_CHECK).await?;
        }
        self.commit_refresh(ns, keys, id, after).await
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
}

fn keys_of(documents: &[&RawDocument]) -> Result<Vec<DocumentKey>, SyncError> {
    let keys: Result<Vec<_>, _> =
        documents.iter().map(|document| DocumentKey::of(document)).collect();
    Ok(keys.map_err(SourceError::from)?)
}

/// The documents of these keys, by canonical key.
async fn look_up(
    mongo: &Mongo,
    ns: &Namespace,
    keys: &[DocumentKey],
    keys_only: bool,
    after: ClusterTime,
) -> Result<HashMap<Vec<u8>, RawDocumentBuf>, MongoError> {
    let malformed = |error: crate::raw::Malformed| {
        MongoError::Driver(mongodb::error::Error::custom(error.to_string()))
    };
    let projection = if keys_only {
        rawdoc! { "_id": 1 }
    } else {
        rawdoc! {}
    };
    let command = rawdoc! {
        "find": ns.coll(), "filter": DocumentKey::filter_of_any(keys), "projection": projection,
        "batchSize": i32::MAX, "readConcern": majority_after(after),
    };
    let mut cursor = mongo.cursor(ns.db(), command, None).await?;
    let mut found = HashMap::new();
    while let Some(reply) = cursor.next().await? {
        for document in documents(&reply)? {
            let key = DocumentKey::of(document).map_err(malformed)?;
            found.insert(key.canonical(), document.to_owned());
        }
    }
    Ok(found)
}
