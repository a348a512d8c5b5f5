use bson::{RawDocumentBuf, rawdoc};
use tempfile::TempDir;

use super::*;
use crate::model::{
    checkpoint::{Checkpoint, ClusterTime, PositionKind, ResumeToken},
    delta::Delta,
    document_key::DocumentKey,
    event::SchemaChange,
    namespace::Namespace,
    write_op::{Refusal, WriteOp},
};

mod copied;
mod earlier;
mod in_blocks;
mod in_order;
mod ledger;
mod model;
mod names;
mod oldest;
mod parts;

fn ns() -> Namespace {
    Namespace::new("shop", "orders")
}

fn doc(id: i32, v: i32) -> RawDocumentBuf {
    rawdoc! { "_id": id, "v": v }
}

fn change(id: i32, op: WriteOp) -> Incoming {
    let key = DocumentKey::of(&rawdoc! { "_id": id }).unwrap();
    let work = Work::Document { ns: ns(), key, op, collection: None };
    Incoming { work, cluster_time: ClusterTime(1), wall_ms: 1 }
}

fn insert(id: i32, v: i32) -> Incoming {
    change(id, WriteOp::Insert(doc(id, v)))
}

fn set(id: i32, v: i32) -> Incoming {
    change(id, WriteOp::Update(Delta::from_diff(&rawdoc! { "u": { "v": v } }).unwrap()))
}

fn barrier(change: SchemaChange) -> Incoming {
    Incoming { work: Work::Schema(change), cluster_time: ClusterTime(1), wall_ms: 1 }
}

fn checkpoint(n: u64) -> Checkpoint {
    Checkpoint {
        anchor: ClusterTime(n),
        token: ResumeToken(rawdoc! { "_data": format!("{n}") }),
        kind: PositionKind::CLUSTER_TIME,
        cluster_time: ClusterTime(n),
        source_id: "rs".into(),
        pipeline: "p".into(),
    }
}

fn open(dir: &TempDir) -> Queue {
    Queue::open(&QueueOptions::new(dir.path().join("queue"))).unwrap()
}

fn fresh() -> (TempDir, Queue) {
    let dir = TempDir::new().unwrap();
    let queue = open(&dir);
    (dir, queue)
}

fn lease(queue: &Queue) -> Vec<Entry> {
    queue.lease(1000, usize::MAX, 0).unwrap().entries
}

/// All of them end alike.
fn acks(entries: &[Entry], outcome: &Outcome) -> Vec<Ack> {
    let ended = |of: &Entry| Ack { seq: of.seq, version: of.version, outcome: outcome.clone() };
    entries.iter().map(ended).collect()
}

fn ack(queue: &Queue, entries: &[Entry], outcome: &Outcome) {
    queue.ack(&acks(entries, outcome)).unwrap();
}

fn rejected() -> Outcome {
    Outcome::Rejected { reason: "validation".into(), refusal: Refusal::Validation, now_ms: 5 }
}

fn ids(entries: &[Entry]) -> Vec<i64> {
    entries.iter().filter_map(|entry| entry.work.document_id().as_i64()).collect()
}

fn op(entry: &Entry) -> &WriteOp {
    match &entry.work {
        Work::Document { op, .. } => op,
        Work::Schema(change) => panic!("{change:?} is no document"),
    }
}

#[test]
fn i1_a_checkpoint_is_durable_only_together_with_the_ops_before_it() {
    let (dir, queue) = fresh();
    queue.commit(vec![insert(1, 1)], Some(&checkpoint(1))).unwrap();
    queue.flush().unwrap();
    let copy = TempDir::new().unwrap();
    // What a crash leaves: the files as they are, without the process having closed them.
    copy_dir(&dir.path().join("queue"), &copy.path().join("queue"));
    queue.commit(vec![insert(2, 1)], Some(&checkpoint(2))).unwrap();
    drop(queue);

    let (crashed, ended) = (open(&copy), open(&dir));

    assert_eq!((crashed.pending().0, crashed.checkpoint().unwrap()), (1, Some(checkpoint(1))));
    assert_eq!((ended.pending().0, ended.checkpoint().unwrap()), (2, Some(checkpoint(2))));
}

fn copy_dir(from: &std::path::Path, to: &std::path::Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_dir(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

#[test]
fn i2_at_most_one_op_per_document_waits() {
    let (_dir, queue) = fresh();
    queue.commit(vec![insert(1, 1), insert(2, 1), set(1, 2)], None).unwrap();

    let committed = queue.commit(vec![set(1, 3), set(2, 2)], None).unwrap();

    assert_eq!(committed, Committed { queued: 0, coalesced: 2 });
    let entries = lease(&queue);
    assert_eq!(ids(&entries), [1, 2]);
    assert_eq!(op(&entries[0]), &WriteOp::Insert(doc(1, 3)));
    assert_eq!(entries[0].changes, 3);
}

#[test]
fn i2_an_op_for_a_leased_document_waits_and_merges_if_the_first_comes_back() {
    let (_dir, queue) = fresh();
    queue.commit(vec![insert(1, 1)], None).unwrap();
    let first = lease(&queue);

    queue.commit(vec![set(1, 2)], None).unwrap();
    queue.commit(vec![set(1, 3)], None).unwrap();

    assert_eq!(lease(&queue), [], "the document is being written");
    ack(&queue, &first, &Outcome::Unavailable { due_ms: 0 });
    let again = lease(&queue);
    assert_eq!(again.len(), 1);
    assert_eq!(op(&again[0]), &WriteOp::Insert(doc(1, 3)));
    assert_eq!(again[0].seq, first[0].seq, "it keeps its place");
}

#[test]
fn i2_holds_after_a_restart_with_a_leased_document() {
    let (dir, queue) = fresh();
    queue.commit(vec![insert(1, 1)], None).unwrap();
    lease(&queue);
    queue.commit(vec![set(1, 2)], None).unwrap();
    assert_eq!(queue.pending().0, 2);
    drop(queue);

    let queue = open(&dir);

    assert_eq!(queue.pending().0, 1);
    assert_eq!(op(&lease(&queue)[0]), &WriteOp::Insert(doc(1, 2)));
}

#[test]
fn i3_an_ack_removes_exactly_the_version_that_was_leased() {
    let (_dir, queue) = fresh();
    queue.commit(vec![insert(1, 1)], None).unwrap();
    let leased = lease(&queue);
    queue.commit(vec![set(1, 2)], None).unwrap();

    let stale =
        Ack { seq: leased[0].seq, version: leased[0].version + 1, outcome: Outcome::Applied };
    queue.ack(&[stale]).unwrap();
    assert_eq!(queue.pending().0, 2, "a version that was not leased is not settled");

    ack(&queue, &leased, &Outcome::Applied);
    ack(&queue, &leased, &Outcome::Applied);
    assert_eq!(queue.pending().0, 1, "the newer op stays");
    assert!(matches!(op(&lease(&queue)[0]), WriteOp::Update(_)));
}

#[test]
fn i4_an_op_leaves_only_as_applied_or_as_a_dead_letter() {
    let (dir, queue) = fresh();
    queue.commit(vec![insert(1, 1), insert(2, 1), insert(3, 1), insert(4, 1)], None).unwrap();
    let entries = lease(&queue);
    ack(&queue, &entries[0..1], &Outcome::Applied);
    ack(&queue, &entries[1..2], &rejected());
    ack(&queue, &entries[2..3], &Outcome::Retry { due_ms: 10, error: "later".into() });
    drop(queue); // The fourth is leased still.

    let queue = open(&dir);

    let letters: Vec<_> = queue.letters().map(Result::unwrap).collect();
    assert_eq!((letters.len(), letters[0].reason.as_str()), (1, "validation"));
    let left: Vec<_> = queue.entries().map(Result::unwrap).collect();
    assert_eq!(ids(&left), [3, 4]);
    assert_eq!((left[0].attempts, left[0].error.as_deref()), (1, Some("later")));
}

#[test]
fn i6_a_queue_of_an_unknown_format_is_moved_aside_and_not_deleted() {
    let (dir, queue) = fresh();
    queue.commit(vec![insert(1, 1)], None).unwrap();
    drop(queue);
    let options = QueueOptions::new(dir.path().join("queue"));
    earlier::set_format(&options, 99);
    assert!(matches!(
        Queue::open(&options),
        Err(QueueError::Damaged(CodecError::UnknownLayout(99)))
    ));

    let (queue, rebuilt) = Queue::open_or_rebuild(&options).unwrap();

    assert_eq!((queue.pending().0, queue.checkpoint().unwrap()), (0, None));
    let moved_to = rebuilt.unwrap().moved_to;
    drop(queue);
    earlier::has_all_of_it(moved_to);
}

#[test]
fn a_damaged_queue_is_moved_aside_and_never_panics() {
    for damage in [0, 100, 1000, 10_000] {
        let (dir, queue) = fresh();
        queue.commit((0..200).map(|id| insert(id, 1)).collect(), Some(&checkpoint(1))).unwrap();
        drop(queue);
        let db = dir.path().join("queue/db");
        let mut bytes = std::fs::read(&db).unwrap();
        let at = damage.min(bytes.len() - 1);
        for byte in bytes.iter_mut().skip(at).take(500) {
            *byte ^= 0xA5;
        }
        std::fs::write(&db, bytes).unwrap();

        let (queue, _) =
            Queue::open_or_rebuild(&QueueOptions::new(dir.path().join("queue"))).unwrap();

        // Either sled recovered a state that was once committed, or everything is rebuilt.
        match queue.checkpoint().unwrap() {
            Some(_) => assert_eq!(queue.pending().0, 200),
            None => assert_eq!(queue.pending().0, 0),
        }
    }
}

#[test]
fn i1_a_checkpoint_ahead_of_its_entries_is_noticed_when_the_queue_is_opened() {
    let (dir, queue) = fresh();
    queue.commit(vec![insert(1, 1), insert(2, 1)], Some(&checkpoint(1))).unwrap();
    // What sled might come back with after a damaged page: one entry is older than the rest.
    let home = layout::block_key(blocks::BlockId::Home(0));
    let entry = codec::encode_entry(&queue.entries().next().unwrap().unwrap());
    let older = block::Packer::default().pack([(0, entry.as_slice())].into_iter());
    queue.store.db().insert(home, older).unwrap();
    drop(queue);

    let error = Queue::open(&QueueOptions::new(dir.path().join("queue"))).err();

    assert!(error.is_some_and(|error| error.is_damage()));
}

#[test]
fn a_queue_of_which_nothing_can_be_read_is_damaged_and_not_new() {
    let (dir, queue) = fresh();
    queue.commit(vec![insert(1, 1)], Some(&checkpoint(1))).unwrap();
    drop(queue);
    std::fs::write(dir.path().join("queue/db"), [0xA5; 5000]).unwrap();

    let (queue, rebuilt) =
        Queue::open_or_rebuild(&QueueOptions::new(dir.path().join("queue"))).unwrap();

    assert!(rebuilt.is_some());
    assert_eq!((queue.pending().0, queue.checkpoint().unwrap()), (0, None));
}

#[test]
fn a_queue_that_is_in_use_is_left_alone() {
    let (dir, _queue) = fresh();

    let second = Queue::open_or_rebuild(&QueueOptions::new(dir.path().join("queue")));

    assert!(matches!(second, Err(QueueError::InUse { .. })));
}

#[test]
fn a_retry_waits_for_its_time_and_the_others_flow_on() {
    let (_dir, queue) = fresh();
    queue.commit(vec![insert(1, 1), insert(2, 1)], None).unwrap();
    let entries = lease(&queue);
    ack(&queue, &entries[..1], &Outcome::Retry { due_ms: 100, error: "no".into() });
    ack(&queue, &entries[1..], &Outcome::Unavailable { due_ms: 0 });

    assert_eq!(ids(&queue.lease(10, usize::MAX, 99).unwrap().entries), [2]);
    assert_eq!(queue.lease(10, usize::MAX, 99).unwrap().next_due_ms, Some(100));
    assert_eq!(ids(&queue.lease(10, usize::MAX, 100).unwrap().entries), [1]);
}

#[test]
fn nothing_passes_or_merges_across_a_barrier() {
    let (_dir, queue) = fresh();
    queue
        .commit(
            vec![
                insert(1, 1),
                barrier(SchemaChange::Drop { ns: ns() }),
                insert(1, 2),
                insert(2, 2),
            ],
            None,
        )
        .unwrap();
    queue.commit(vec![set(1, 3)], None).unwrap();

    let before = lease(&queue);
    assert_eq!(op(&before[0]), &WriteOp::Insert(doc(1, 1)));
    assert_eq!((before.len(), lease(&queue).len()), (1, 0));

    ack(&queue, &before, &Outcome::Applied);
    let drop = lease(&queue);
    assert_eq!((drop.len(), drop[0].work.name()), (1, "drop"));
    assert_eq!(lease(&queue), [], "what was inserted after the drop waits for it");

    ack(&queue, &drop, &Outcome::Applied);
    let after = lease(&queue);
    assert_eq!(ids(&after), [1, 2]);
    assert_eq!(op(&after[0]), &WriteOp::Insert(doc(1, 3)));
}

#[test]
fn a_barrier_holds_up_its_own_namespaces_only() {
    let (_dir, queue) = fresh();
    let mut other = insert(7, 1);
    if let Work::Document { ns, .. } = &mut other.work {
        *ns = Namespace::new("shop", "other");
    }
    queue
        .commit(
            vec![insert(1, 1), barrier(SchemaChange::Drop { ns: ns() }), insert(2, 2), other],
            None,
        )
        .unwrap();

    let entries = lease(&queue);
    assert_eq!(ids(&entries), [1, 7]);
    assert_eq!(lease(&queue), []);
}

#[test]
fn what_waits_in_front_of_a_rename_knows_what_its_collection_is_called_by_then() {
    let (dir, queue) = fresh();
    let named = |name: &str| Namespace::new("shop", name);
    let rename = |from: &str, to: &str| {
        let (from, to) = (named(from), named(to));
        barrier(SchemaChange::Rename { from, to, drop_target: false })
    };
    queue.commit(vec![set(1, 1), rename("orders", "tmp")], None).unwrap();
    queue.commit(vec![rename("right", "orders"), set(2, 1)], None).unwrap();
    queue.commit(vec![rename("tmp", "right")], None).unwrap();
    drop(queue);

    let queue = open(&dir);

    assert_eq!(queue.pending().0, 5, "nothing is queued a second time");
    let now = queue.called_now(&ns(), [0, 3].into_iter());
    assert_eq!(now, [Some(named("right")), Some(ns())]);
    queue.commit(vec![barrier(SchemaChange::Drop { ns: named("right") })], None).unwrap();
    assert_eq!(queue.called_now(&ns(), [0, 3].into_iter()), [None, Some(ns())]);
}

#[test]
fn a_held_namespace_waits_until_it_is_released() {
    let (_dir, queue) = fresh();
    queue.hold(&ns());
    queue.commit(vec![insert(1, 1)], None).unwrap();
    assert_eq!(lease(&queue), []);

    queue.release(&ns());

    assert_eq!(ids(&lease(&queue)), [1]);
}

#[test]
fn what_waits_for_the_stream_goes_when_it_has_come_so_far_or_can_go_no_further() {
    let (_dir, queue) = fresh();
    queue.wait_for_stream(&ns(), ClusterTime(7));
    queue.wait_for_stream(&ns(), ClusterTime(5));
    queue.commit(vec![insert(1, 1)], None).unwrap();
    queue.release(&ns());
    queue.release_all();
    queue.stream_reached(ClusterTime(6));
    assert_eq!((lease(&queue), queue.ready()), (vec![], 0));
    // What has given way meanwhile is no longer inserted.
    queue.commit(vec![change(1, WriteOp::Delete)], None).unwrap();

    queue.stream_reached(ClusterTime(7));

    assert_eq!(lease(&queue).iter().map(op).collect::<Vec<_>>(), [&WriteOp::Delete]);

    queue.wait_for_stream(&ns(), ClusterTime(9));
    queue.commit(vec![insert(2, 1)], None).unwrap();
    assert_eq!(lease(&queue), []);
    queue.no_longer_behind("full");
    assert_eq!(ids(&lease(&queue)), [2]);
}

#[test]
fn a_later_success_clears_the_dead_letter_and_a_delta_on_top_of_one_is_a_refresh() {
    let (_dir, queue) = fresh();
    queue.commit(vec![insert(1, 1)], None).unwrap();
    ack(&queue, &lease(&queue), &rejected());
    assert_eq!(queue.stats().unwrap().dead_letters, 1);

    queue.commit(vec![set(1, 2)], None).unwrap();
    let entries = lease(&queue);
    assert_eq!(
        op(&entries[0]),
        &WriteOp::Refresh,
        "Atlas does not hold what the delta was made from"
    );
    ack(&queue, &entries, &Outcome::Applied);

    assert_eq!(queue.stats().unwrap().dead_letters, 0);
    assert!(queue.letters().next().is_none());
}

#[test]
fn a_dead_letter_can_be_retried_and_discarded() {
    let (_dir, queue) = fresh();
    queue.commit(vec![insert(1, 1), insert(2, 1)], None).unwrap();
    ack(&queue, &lease(&queue), &rejected());
    let letters: Vec<_> = queue.letters().map(Result::unwrap).collect();

    queue.retry_dead_letter(letters[0].id(), &|_| true).unwrap();
    queue.discard_dead_letter(letters[1].id()).unwrap();

    let entries = lease(&queue);
    assert_eq!((ids(&entries), op(&entries[0])), (vec![1], &WriteOp::Refresh));
    ack(&queue, &entries, &Outcome::Applied);
    assert_eq!(queue.stats().unwrap().dead_letters, 0);
    assert!(matches!(queue.discard_dead_letter(letters[1].id()), Err(QueueError::NotFound(_))));
}

#[test]
fn a_lease_is_bounded_in_bytes_but_always_takes_one() {
    let (_dir, queue) = fresh();
    let large = |id: i32| change(id, WriteOp::Insert(rawdoc! { "_id": id, "x": "x".repeat(1000) }));
    queue.commit(vec![large(1), large(2), large(3)], None).unwrap();

    assert_eq!(queue.lease(10, 10, 0).unwrap().entries.len(), 1);
    assert_eq!(queue.lease(10, 2500, 0).unwrap().entries.len(), 2);
}

#[test]
fn ids_of_equal_value_share_an_entry() {
    let (_dir, queue) = fresh();
    let float = WriteOp::Insert(rawdoc! { "_id": 1.0, "v": 2 });
    let key = DocumentKey::of(&rawdoc! { "_id": 1.0 }).unwrap();
    let work = Work::Document { ns: ns(), key, op: float, collection: None };

    queue.commit(vec![insert(1, 1), change(1, WriteOp::Delete)], None).unwrap();
    queue.commit(vec![Incoming { work, cluster_time: ClusterTime(1), wall_ms: 1 }], None).unwrap();

    let entries = lease(&queue);
    assert_eq!(entries.len(), 1);
    assert_eq!(op(&entries[0]), &WriteOp::Replace(rawdoc! { "_id": 1.0, "v": 2 }));
}

/// What is delayed in a held namespace is one entry and not two that are out of reach: else it hides another's.
#[test]
fn a_held_namespace_does_not_make_the_queue_seem_idle() {
    let (_dir, queue) = fresh();
    queue.commit(vec![insert(1, 1)], None).unwrap();
    let retried = Outcome::Retry { due_ms: 10_000, error: "again".into() };
    ack(&queue, &lease(&queue), &retried);
    assert_eq!(queue.idle_until(0), Some(NextDue(Some(10_000))));
    queue.hold(&ns());

    let key = DocumentKey::of(&rawdoc! { "_id": 2 }).unwrap();
    let other = Namespace::new("shop", "people");
    let work = Work::Document { ns: other, key, op: WriteOp::Insert(doc(2, 1)), collection: None };
    queue.commit(vec![Incoming { work, ..insert(2, 1) }], None).unwrap();

    assert_eq!((queue.idle_until(0), queue.waiting()), (None, 1));
    assert_eq!(ids(&lease(&queue)), [2]);
    assert_eq!(queue.idle_until(0), Some(NextDue(Some(10_000))));
    assert_eq!(queue.idle_until(10_000), None, "the retry is due");
}
