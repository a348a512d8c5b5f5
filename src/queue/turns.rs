//! Names that change hands: what becomes of the collection that has a name, and which one has it now.
//!
//! An entry is for a collection and not for a name. It stands in front of the barriers that come after it, so its
//! collection is called in Atlas what it was called then, until these are applied; locally it is called what the last
//! of them say. The local database itself may be ahead of both: whether it is, only the stream tells.

use ahash::HashMap;

use crate::model::{
    checkpoint::ClusterTime,
    event::{CollectionId, SchemaChange},
    namespace::Namespace,
};

/// What becomes of the collection that has a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Turn {
    /// It is dropped, or another takes its place.
    Gone,
    /// It goes on under this name.
    Renamed(Namespace),
}

impl Turn {
    /// What the change does to the collection that is called `ns` before it. A `create` is no turn: what was there
    /// was dropped before.
    pub fn of(change: &SchemaChange, ns: &Namespace) -> Option<Self> {
        match change {
            SchemaChange::Drop { .. } => Some(Turn::Gone),
            SchemaChange::Rename { from, to, .. } if from == ns => Some(Turn::Renamed(to.clone())),
            SchemaChange::Rename { .. } => Some(Turn::Gone),
            SchemaChange::Create { .. }
            | SchemaChange::DropIfGone { .. }
            | SchemaChange::Reconcile { .. } => None,
        }
    }
}

/// Whether the collection that has a name locally is the one that entries of that name were queued for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proof {
    Proven,
    /// The stream must be read further.
    Waits,
    /// Nobody has looked yet, or it was another one.
    Unseen,
}

/// Which collections have their names behind all that is queued, where somebody had to find out.
#[derive(Default)]
pub struct Knowledge(HashMap<Namespace, Sighting>);

#[derive(Clone, Copy)]
enum Sighting {
    /// The local database had this one at the time `at`, or none. Whether it is the one that entries were queued for
    /// is told by the stream, when it has come so far without a turn.
    Seen { id: Option<CollectionId>, at: ClusterTime },
    /// This one, or none.
    Proven(Option<CollectionId>),
}

impl Knowledge {
    /// A barrier is queued.
    pub fn pass(&mut self, change: &SchemaChange) {
        match change {
            SchemaChange::Rename { from, to, .. } => {
                let known = self.0.remove(from);
                self.0.remove(to);
                // What was only seen was seen under this name, and may be another's.
                if let Some(Sighting::Proven(id)) = known {
                    self.0.insert(to.clone(), Sighting::Proven(id));
                }
            }
            SchemaChange::Create { ns, .. } | SchemaChange::Drop { ns } => {
                self.0.remove(ns);
            }
            SchemaChange::DropIfGone { .. } | SchemaChange::Reconcile { .. } => {}
        }
    }

    /// `id` had the name at `at` or before.
    pub fn see(&mut self, name: &Namespace, id: Option<CollectionId>, at: ClusterTime) {
        self.0.insert(name.clone(), Sighting::Seen { id, at });
    }

    /// See [`Front::waits_for_proof`](super::Front::waits_for_proof).
    pub fn waits(&self, name: &Namespace, read: ClusterTime) -> bool {
        matches!(self.0.get(name), Some(Sighting::Seen { at, .. }) if *at > read)
    }

    /// See [`Front::proof`](super::Front::proof).
    pub fn proof(
        &mut self,
        name: &Namespace,
        id: Option<CollectionId>,
        read: ClusterTime,
    ) -> Proof {
        match self.0.get(name) {
            Some(Sighting::Proven(of)) if *of == id => Proof::Proven,
            Some(Sighting::Seen { id: of, at }) if *of == id => {
                if *at > read {
                    return Proof::Waits;
                }
                self.0.insert(name.clone(), Sighting::Proven(id));
                Proof::Proven
            }
            Some(_) | None => Proof::Unseen,
        }
    }
}

#[cfg(test)]
mod tests {
    use bson::rawdoc;
    use tempfile::TempDir;

    use super::*;
    use crate::{
        model::{document_key::DocumentKey, write_op::WriteOp},
        queue::{Incoming, Queue, QueueOptions, Work},
    };

    /// Between the look at the local database and its note the stream has told of a rename.
    #[test]
    fn what_was_seen_is_not_noted_of_a_name_that_has_changed_hands_meanwhile() {
        let dir = TempDir::new().unwrap();
        let queue = Queue::open(&QueueOptions::new(dir.path().join("queue"))).unwrap();
        let [left, tmp] = ["left", "tmp"].map(|name| Namespace::new("shop", name));
        let (id, at) = (Some(CollectionId([1; 16])), ClusterTime(10));
        let commit = |work| {
            let incoming = Incoming { work, cluster_time: ClusterTime(1), wall_ms: 1 };
            queue.commit(vec![incoming], None).unwrap();
        };
        let key = DocumentKey::of(&rawdoc! { "_id": 1 }).unwrap();
        let op = WriteOp::Delete;
        commit(Work::Document { ns: left.clone(), key, op, collection: None });
        let seq = queue.lease(1, usize::MAX, 0).unwrap().entries[0].seq;

        queue.seen((&left, seq), &left, id, at);
        assert_eq!(queue.proof(&left, id, ClusterTime(9)), Proof::Waits);
        let rename =
            SchemaChange::Rename { from: left.clone(), to: tmp.clone(), drop_target: false };
        commit(Work::Schema(rename));
        queue.seen((&left, seq), &left, id, at);
        assert_eq!(queue.proof(&left, id, at), Proof::Unseen);

        queue.seen((&left, seq), &tmp, id, at);
        assert_eq!(queue.proof(&tmp, id, at), Proof::Proven);
    }

    #[test]
    fn what_is_proven_follows_a_rename_and_what_was_only_seen_does_not() {
        let [left, tmp] = ["left", "tmp"].map(|name| Namespace::new("shop", name));
        let (id, at) = (Some(CollectionId([1; 16])), ClusterTime(10));
        let rename =
            SchemaChange::Rename { from: left.clone(), to: tmp.clone(), drop_target: false };
        let mut knowledge = Knowledge::default();
        // After the local database had given the name to another, as the stream was still to tell.
        knowledge.see(&left, id, at);
        knowledge.pass(&rename);
        assert_eq!(knowledge.proof(&tmp, id, at), Proof::Unseen);
        assert_eq!(knowledge.proof(&left, id, at), Proof::Unseen);

        knowledge.see(&left, id, at);
        assert_eq!(knowledge.proof(&left, id, ClusterTime(9)), Proof::Waits);
        assert_eq!(knowledge.proof(&left, id, at), Proof::Proven);
        knowledge.pass(&rename);
        assert_eq!(knowledge.proof(&tmp, id, at), Proof::Proven);
        assert_eq!(knowledge.proof(&left, id, at), Proof::Unseen);
    }
}
