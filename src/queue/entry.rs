//! The queue's vocabulary: what goes in, what is held, what comes out.

use bson::RawDocumentBuf;
use serde::Serialize;
use uuid::Uuid;

use crate::model::{
    checkpoint::ClusterTime,
    document_key::DocumentKey,
    event::{CollectionId, SchemaChange},
    namespace::Namespace,
    write_op::{Refusal, WriteOp},
};

/// What an entry asks for.
#[derive(Clone, Debug, PartialEq)]
pub enum Work {
    /// Bring one document up to date. `collection` tells for which collection of that name.
    Document { ns: Namespace, key: DocumentKey, op: WriteOp, collection: Option<CollectionId> },
    /// Change a collection: a barrier. All that was queued before it for its namespaces is done
    /// first, and nothing coalesces across it.
    Schema(SchemaChange),
}

impl Work {
    /// Read the document anew when it is its turn, whichever collection of that name it is of.
    pub fn refresh(ns: Namespace, key: DocumentKey) -> Self {
        Work::Document { ns, key, op: WriteOp::Refresh, collection: None }
    }

    /// The collection that the work is about.
    pub fn ns(&self) -> &Namespace {
        match self {
            Work::Document { ns, .. } => ns,
            Work::Schema(change) => change.ns(),
        }
    }

    /// A document is born.
    pub fn is_insert(&self) -> bool {
        matches!(self, Work::Document { op: WriteOp::Insert(_), .. })
    }

    /// The same document's under another name of its collection.
    #[must_use]
    pub fn renamed(self, to: &Namespace) -> Self {
        match self {
            Work::Document { key, op, collection, .. } => {
                Work::Document { ns: to.clone(), key, op, collection }
            }
            Work::Schema(change) => Work::Schema(change),
        }
    }

    /// The name that people see.
    pub fn name(&self) -> &'static str {
        match self {
            Work::Document { op, .. } => op.name(),
            Work::Schema(change) => change.name(),
        }
    }

    /// The document's `_id` as extended JSON; null for a schema change.
    pub fn document_id(&self) -> serde_json::Value {
        match self {
            Work::Document { key, .. } => key.to_json(),
            Work::Schema(_) => serde_json::Value::Null,
        }
    }

    /// The raw document or diff that the work carries.
    pub fn body(&self) -> Option<&bson::RawDocument> {
        match self {
            Work::Document { op, .. } => op.body(),
            Work::Schema(SchemaChange::Create { options, .. }) => Some(options),
            Work::Schema(
                SchemaChange::Drop { .. }
                | SchemaChange::DropIfGone { .. }
                | SchemaChange::Reconcile { .. }
                | SchemaChange::Rename { .. },
            ) => None,
        }
    }
}

/// What a producer hands to [`Queue::commit`](super::Queue::commit).
#[derive(Clone, Debug, PartialEq)]
pub struct Incoming {
    pub work: Work,
    /// When the change was committed locally.
    pub cluster_time: ClusterTime,
    /// The same by the server's wall clock, milliseconds since 1970.
    pub wall_ms: u64,
}

impl Incoming {
    /// The entry that it becomes where nothing waits that it could be merged with.
    pub(super) fn into_entry(self, seq: u64, id: Uuid) -> Entry {
        let Incoming { work, cluster_time, wall_ms } = self;
        Entry {
            seq,
            id,
            work,
            first_time: cluster_time,
            last_time: cluster_time,
            first_ms: wall_ms,
            last_ms: wall_ms,
            changes: 1,
            version: 0,
            again: false,
            attempts: 0,
            due_ms: 0,
            error: None,
        }
    }
}

/// One entry of the queue.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// Place in the order of arrival. Coalescing keeps it, but in a capped collection with an insert.
    pub seq: u64,
    /// Stable name for people and the API (UUID v7).
    pub id: Uuid,
    pub work: Work,
    /// Cluster time of the first and the last change that were merged into this entry.
    pub first_time: ClusterTime,
    pub last_time: ClusterTime,
    /// Wall clock of the first and the last change, milliseconds since 1970.
    pub first_ms: u64,
    pub last_ms: u64,
    /// How many changes were merged into this entry.
    pub changes: u32,
    /// In a capped collection, the document was inserted where its entry stands, and may have been there before: what Atlas
    /// has of it gives way first, so that it comes last.
    pub again: bool,
    /// Grows with every merge; an ack names the version that was leased.
    pub version: u32,
    /// Attempts that Atlas rejected. An outage costs none.
    pub attempts: u32,
    /// Not to be leased before this time, milliseconds since 1970.
    pub due_ms: u64,
    /// What went wrong last.
    pub error: Option<String>,
}

/// One line of `queue list`. Holds no document.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct EntrySummary {
    pub id: Uuid,
    #[serde(rename = "type")]
    pub kind: String,
    pub collection: String,
    pub document_id: serde_json::Value,
    /// When the document first changed, milliseconds since 1970.
    pub timestamp: u64,
    pub retry_count: u32,
    /// Changes merged into this one write.
    pub changes: u32,
    pub error: Option<String>,
}

impl From<&Entry> for EntrySummary {
    fn from(entry: &Entry) -> Self {
        Self {
            id: entry.id,
            kind: entry.work.name().to_owned(),
            collection: entry.work.ns().to_string(),
            document_id: entry.work.document_id(),
            timestamp: entry.first_ms,
            retry_count: entry.attempts,
            changes: entry.changes,
            error: entry.error.clone(),
        }
    }
}

/// Entries taken from the queue, at most one for any document.
#[derive(Debug, Default)]
pub struct Batch {
    pub entries: Vec<Entry>,
    /// When nothing was ready: the time at which a waiting retry becomes due.
    pub next_due_ms: Option<u64>,
}

/// How one leased entry ended.
#[derive(Clone, Debug, PartialEq)]
pub struct Ack {
    pub seq: u64,
    /// The version that was leased; see I3.
    pub version: u32,
    pub outcome: Outcome,
}

/// How a write ended, as far as the queue is concerned.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// Atlas holds it. The entry goes, and so do the document's dead letters.
    Applied,
    /// Nobody wants it written any more. The entry goes, and the document's dead letters stay.
    PassedOver,
    /// Atlas, or the local database, could not be asked. The entry is ready again at `due_ms` (0: at
    /// once) and has lost no attempt.
    Unavailable { due_ms: u64 },
    /// Atlas rejected it; try again at `due_ms`. Costs an attempt.
    Retry { due_ms: u64, error: String },
    /// Written as well as could be without the local database, or made for a collection that no event
    /// will tell more of: read it again at `due_ms`. Without `keep_collection` whatever collection has
    /// the name then will do.
    Refresh { due_ms: u64, keep_collection: bool },
    /// Atlas will not take it. The entry becomes a dead letter.
    Rejected { reason: String, refusal: Refusal, now_ms: u64 },
}

/// What the queue holds, in numbers.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct QueueStats {
    /// Entries not yet in Atlas, leased ones included.
    pub pending: u64,
    /// Their encoded size.
    pub pending_bytes: u64,
    /// Entries that a worker has taken.
    pub leased: u64,
    /// Entries that wait for their next attempt.
    pub delayed: u64,
    pub dead_letters: u64,
    /// When the oldest pending change was made, milliseconds since 1970.
    pub oldest_ms: Option<u64>,
    /// Bytes of the queue's files.
    pub disk_bytes: u64,
}

/// A full document or diff for `queue show` and `dead show`, as relaxed extended JSON.
pub fn body_json(work: &Work) -> serde_json::Value {
    work.body().map_or(serde_json::Value::Null, |body| to_json(&body.to_owned()))
}

fn to_json(body: &RawDocumentBuf) -> serde_json::Value {
    match bson::Document::try_from(body.as_ref()) {
        Ok(doc) => bson::Bson::Document(doc).into_relaxed_extjson(),
        Err(error) => serde_json::Value::String(format!("<not shown: {error}>")),
    }
}
