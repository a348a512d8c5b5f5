//! Merging a later change into an entry, with its times and counts.

use super::{Entry, Incoming, Work};
use crate::{
    model::{checkpoint::ClusterTime, event::CollectionId, write_op::WriteOp},
    policy::coalesce::coalesce,
};

impl Entry {
    /// Merges a later change of the same document into this entry.
    pub fn absorb(&mut self, later: Later) {
        let Work::Document { op, collection, .. } = &mut self.work else {
            unreachable!("barriers are never merged")
        };
        let pending = std::mem::replace(op, WriteOp::Refresh);
        // Another collection of the same name, though no barrier told of it: what waits was made for
        // the old one, so only what needs nothing from it may stand.
        let same =
            collection.is_none() || later.collection.is_none() || *collection == later.collection;
        *op = match (same, later.op) {
            (true, arriving) => coalesce(pending, arriving),
            (false, WriteOp::Insert(doc) | WriteOp::Replace(doc)) => WriteOp::Replace(doc),
            (false, WriteOp::Delete) => WriteOp::Delete,
            (false, WriteOp::Update(_) | WriteOp::Merge(_) | WriteOp::Refresh) => WriteOp::Refresh,
        };
        // What does not know its collection must not make this entry forget it: its document may have
        // to follow a rename.
        *collection = later.collection.or(*collection);
        self.last_time = self.last_time.max(later.time);
        self.last_ms = self.last_ms.max(later.wall_ms);
        self.changes += later.changes;
        self.version += 1;
    }

    /// This entry as a change that is merged into an older one.
    pub fn into_later(self) -> Later {
        let Work::Document { op, collection, .. } = self.work else {
            unreachable!("barriers are never merged")
        };
        Later { op, collection, time: self.last_time, wall_ms: self.last_ms, changes: self.changes }
    }
}

/// A later change, as it is merged into an entry.
pub struct Later {
    op: WriteOp,
    collection: Option<CollectionId>,
    time: ClusterTime,
    wall_ms: u64,
    changes: u32,
}

impl From<Incoming> for Later {
    fn from(incoming: Incoming) -> Self {
        let Work::Document { op, collection, .. } = incoming.work else {
            unreachable!("barriers are never merged")
        };
        Later { op, collection, time: incoming.cluster_time, wall_ms: incoming.wall_ms, changes: 1 }
    }
}
