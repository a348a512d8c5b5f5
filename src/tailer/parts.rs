//! A reply of the change stream as commits.

use crate::{
    checkpoint::Checkpoint,
    event::SchemaChange,
    queue::{Committed, Incoming, Queue, QueueError, Work},
};

/// Bytes of one commit, when a reply has more. Committed as one, 16 MiB keep the worker waiting for the queue's lock,
/// and take memory that sled (0.34.7) frees only at the end of a batch.
const PART_BYTES: usize = 2 << 20;

/// Commits the ops of a reply, the last part with the checkpoint behind them all (I1). After a crash in between, the
/// parts that are in the queue are read and committed once more, which ends with the same documents (I5).
pub(super) fn commit_in_parts(
    queue: &Queue,
    incoming: Vec<Incoming>,
    checkpoint: &Checkpoint,
) -> Result<Committed, QueueError> {
    let mut all = Committed::default();
    let mut parts = in_parts(incoming);
    let last = parts.pop().unwrap_or_default();
    for part in parts {
        all += queue.commit(part, None)?;
    }
    all += queue.commit(last, Some(checkpoint))?;
    Ok(all)
}

/// Cuts ops into parts of [`PART_BYTES`] at the most. With a barrier among them they are one part: a rename or a drop
/// that is read once more, after a crash, would take what has the name by then.
fn in_parts(incoming: Vec<Incoming>) -> Vec<Vec<Incoming>> {
    let bytes_of = |op: &Incoming| op.work.body().map_or(0, |body| body.as_bytes().len());
    let is_small = incoming.iter().map(bytes_of).sum::<usize>() <= PART_BYTES;
    if is_small || incoming.iter().any(|op| matches!(op.work, Work::Schema(_))) {
        return vec![incoming];
    }
    let mut parts = vec![Vec::new()];
    let mut bytes = 0;
    for op in incoming {
        let len = bytes_of(&op);
        let part = parts.last_mut().expect("there is one from the start");
        if bytes + len > PART_BYTES && !part.is_empty() {
            parts.push(vec![op]);
            bytes = len;
        } else {
            part.push(op);
            bytes += len;
        }
    }
    parts
}

/// Several changes of one collection's options or indexes that follow one another are one.
pub(super) fn without_repetition(mut incoming: Vec<Incoming>) -> Vec<Incoming> {
    incoming.dedup_by(|next, last| {
        matches!(next.work, Work::Schema(SchemaChange::Reconcile { .. })) && next.work == last.work
    });
    incoming
}

#[cfg(test)]
mod tests {
    use bson::rawdoc;

    use super::*;
    use crate::{
        checkpoint::ClusterTime, document_key::DocumentKey, namespace::Namespace, write_op::WriteOp,
    };

    fn insert(id: i32, bytes: usize) -> Incoming {
        let document = rawdoc! { "_id": id, "x": "x".repeat(bytes) };
        let key = DocumentKey::of(&document).unwrap();
        let (ns, op) = (Namespace::new("shop", "orders"), WriteOp::Insert(document));
        let work = Work::Document { ns, key, op, collection: None };
        Incoming { work, cluster_time: ClusterTime(1), wall_ms: 1 }
    }

    #[test]
    fn a_large_reply_is_cut_into_parts_and_keeps_its_order() {
        let reply: Vec<_> =
            (0..50).map(|id| insert(id, if id == 7 { 3 << 20 } else { 100_000 })).collect();

        let parts = in_parts(reply.clone());

        assert_eq!(parts.iter().map(Vec::len).collect::<Vec<_>>(), [7, 1, 20, 20, 2]);
        assert_eq!(parts.concat(), reply);
        assert_eq!(in_parts(Vec::new()), [vec![]], "the checkpoint goes with something");
    }

    /// Two renames that swap names, and then documents. Cut in two, with a crash in between, the first rename would be
    /// read again when its old name had become the other one's, and replace a collection with the wrong one.
    #[test]
    fn a_reply_with_a_barrier_is_one_commit() {
        let rename = |from: &str, to: &str| {
            let (from, to) = (Namespace::new("shop", from), Namespace::new("shop", to));
            let work = Work::Schema(SchemaChange::Rename { from, to, drop_target: false });
            Incoming { work, cluster_time: ClusterTime(1), wall_ms: 1 }
        };
        let mut reply = vec![rename("a", "b"), rename("c", "a")];
        reply.extend((0..50).map(|id| insert(id, 100_000)));

        assert_eq!(in_parts(reply.clone()), [reply]);
    }
}
