//! Merging a later change into an entry, with its times and counts.

use super::{Entry, Incoming, Work};
use crate::{
    model::{
        checkpoint::ClusterTime, event::CollectionId, namespace::Namespace, write_op::WriteOp,
    },
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

    /// Takes an insert of the same document, in a collection that keeps the order of insertion: what the document was
    /// before is gone, and its place is the one in which it arrived, with the times of those around it.
    pub fn begin_anew(&mut self, seq: u64, insert: Later) {
        (self.first_time, self.first_ms) = (insert.first_time, insert.first_ms);
        if let Work::Document { op, .. } = &mut self.work {
            *op = WriteOp::Delete;
        }
        self.absorb(insert);
        (self.seq, self.again) = (seq, true);
    }

    /// Its document is inserted where it stands: what it was before is no matter.
    pub fn is_born(&self) -> bool {
        self.again || self.work.is_insert()
    }

    /// An insert in a collection that keeps the order of insertion has its place here, also where it must be read by now.
    pub fn keep_place(&mut self, was_insert: bool, is_capped: impl FnOnce(&Namespace) -> bool) {
        if was_insert
            && let Work::Document { ns, op: WriteOp::Refresh, .. } = &self.work
            && is_capped(ns)
        {
            self.again = true;
        }
    }

    /// This entry as a change that is merged into an older one.
    pub fn into_later(self) -> Later {
        let Work::Document { op, collection, .. } = self.work else {
            unreachable!("barriers are never merged")
        };
        let (first_time, first_ms) = (self.first_time, self.first_ms);
        let (time, wall_ms, changes) = (self.last_time, self.last_ms, self.changes);
        Later { op, collection, first_time, first_ms, time, wall_ms, changes }
    }
}

/// A later change, as it is merged into an entry.
pub struct Later {
    op: WriteOp,
    collection: Option<CollectionId>,
    /// Of the first change of it.
    first_time: ClusterTime,
    first_ms: u64,
    /// Of the last.
    time: ClusterTime,
    wall_ms: u64,
    changes: u32,
}

impl From<Incoming> for Later {
    fn from(incoming: Incoming) -> Self {
        let Incoming { work, cluster_time: time, wall_ms } = incoming;
        let Work::Document { op, collection, .. } = work else {
            unreachable!("barriers are never merged")
        };
        Later { op, collection, first_time: time, first_ms: wall_ms, time, wall_ms, changes: 1 }
    }
}
