//! A commit, and an ack, in parts.

use super::*;

const LARGE: usize = 5_000;

fn large(id: i32) -> Incoming {
    change(id, WriteOp::Replace(rawdoc! { "_id": id, "v": 0, "x": "x".repeat(LARGE) }))
}

/// A queue whose parts have three such documents.
fn of_small_parts() -> (TempDir, Queue) {
    let (dir, mut queue) = fresh();
    queue.store.part_bytes = 3 * LARGE;
    (dir, queue)
}

/// How many ops each part takes, and whether the checkpoint is there behind it.
fn parts(queue: &Queue, incoming: Vec<Incoming>) -> Vec<(usize, bool)> {
    let mut parts = Vec::new();
    let mut rest = incoming.into_iter();
    while rest.len() > 0 {
        let before = rest.len();
        queue.commit_part(queue.lock(), &mut rest, Some(&checkpoint(7))).unwrap();
        let is_there = queue.checkpoint().unwrap() == Some(checkpoint(7));
        parts.push((before - rest.len(), is_there));
    }
    parts
}

#[test]
fn a_large_reply_is_committed_in_parts_of_which_the_last_has_the_checkpoint() {
    let (_dir, queue) = of_small_parts();
    let reply = (0..8).map(large).collect();

    assert_eq!(parts(&queue, reply), [(3, false), (3, false), (2, true)]);
    assert_eq!(ids(&lease(&queue)), (0..8).collect::<Vec<_>>(), "in their order");
}

/// The changes have some bytes each, and what they are merged with has more than the machine.
#[test]
fn changes_of_large_documents_that_wait_are_committed_in_parts() {
    let (_dir, queue) = of_small_parts();
    queue.commit((0..8).map(large).collect(), None).unwrap();

    let parts = parts(&queue, (0..8).map(|id| set(id, 1)).collect());

    assert_eq!(parts, [(2, false), (2, false), (2, false), (2, true)]);
    let entries = lease(&queue);
    assert_eq!(ids(&entries), (0..8).collect::<Vec<_>>());
    assert!(entries.iter().all(|entry| entry.changes == 2 && op(entry).name() == "replace"));
}

/// Two renames that swap names, and then documents. Cut in two, with a crash in between, the first rename would be
/// read again when its old name had become the other one's, and replace a collection with the wrong one.
#[test]
fn from_a_barrier_on_a_reply_is_one_part() {
    let (_dir, queue) = of_small_parts();
    let rename = |from: &str, to: &str| {
        let (from, to) = (Namespace::new("shop", from), Namespace::new("shop", to));
        barrier(SchemaChange::Rename { from, to, drop_target: false })
    };
    let mut reply: Vec<_> = (0..4).map(large).collect();
    reply.extend([rename("a", "b"), rename("c", "a")]);
    reply.extend((4..12).map(large));

    assert_eq!(parts(&queue, reply), [(3, false), (11, true)]);
}

/// The large documents stay where they are: those that are full are read when it is their turn.
#[test]
fn what_is_too_large_for_one_part_behind_a_barrier_is_read_again_later() {
    let (_dir, queue) = of_small_parts();
    queue.commit((0..8).map(large).collect(), None).unwrap();
    let mut reply = vec![barrier(SchemaChange::Drop { ns: Namespace::new("shop", "other") })];
    reply.extend((0..8).map(|id| set(id, 1)));

    assert_eq!(parts(&queue, reply), [(9, true)]);
    let entries = lease(&queue);
    let names: Vec<_> = entries.iter().map(|entry| op(entry).name()).collect();
    assert_eq!(names[..2], ["replace"; 2]);
    assert_eq!(names[2..], ["refresh"; 6]);
}

/// No part takes more than three of them out of the store, which keeps all of them in memory until its end.
#[test]
fn large_documents_that_ops_behind_a_barrier_change_are_made_refreshes_in_parts_before_it() {
    let (_dir, queue) = of_small_parts();
    queue.commit((0..8).map(large).collect(), None).unwrap();
    let drop = |coll| barrier(SchemaChange::Drop { ns: Namespace::new("shop", coll) });
    let reply: Vec<_> = [drop("other")].into_iter().chain((0..8).map(|id| set(id, 1))).collect();

    queue.lighten(&reply).unwrap();
    let waiting: Vec<_> = queue.entries().map(Result::unwrap).collect();
    assert!(waiting.iter().all(|entry| op(entry).name() == "refresh"), "{waiting:?}");
    assert_eq!(queue.checkpoint().unwrap(), None, "what was read is not all there yet");

    queue.commit(reply, Some(&checkpoint(7))).unwrap();
    assert_eq!(ids(&lease(&queue)), (0..8).collect::<Vec<_>>(), "each once");
    assert_eq!(queue.checkpoint().unwrap(), Some(checkpoint(7)));
}

/// They go as they are, in front of the barrier, and what comes behind it is another collection's.
#[test]
fn large_documents_of_the_collection_that_a_barrier_is_of_stay_as_they_are() {
    let (_dir, queue) = of_small_parts();
    queue.commit((0..8).map(large).collect(), None).unwrap();
    let ns = queue.entries().next().unwrap().unwrap().work.ns().clone();
    let mut reply = vec![barrier(SchemaChange::Drop { ns })];
    reply.extend((0..8).map(|id| insert(id, 1)));

    queue.commit(reply, None).unwrap();

    let entries = lease(&queue);
    assert!(entries.iter().all(|entry| op(entry).name() == "replace"), "{entries:?}");
}

#[test]
fn what_is_nacked_together_with_large_documents_is_acked_in_parts() {
    let (_dir, queue) = of_small_parts();
    queue.commit((0..8).map(|id| insert(id, 1)).collect(), None).unwrap();
    let leased = lease(&queue);
    queue.commit((0..8).map(large).collect(), None).unwrap();
    let acks = acks(&leased, &Outcome::Unavailable { due_ms: 0 });
    let mut rest = acks.iter();

    queue.ack_part(&mut rest).unwrap();
    assert_eq!(rest.len(), 6);
    queue.ack(rest.as_slice()).unwrap();

    let entries = lease(&queue);
    assert_eq!(ids(&entries), (0..8).collect::<Vec<_>>());
    assert!(entries.iter().all(|entry| entry.changes == 2 && op(entry).body().is_some()));
}

/// What they are merged to has some bytes each, and what comes out of the store for it has more than the machine.
#[test]
fn large_documents_that_are_merged_to_something_small_are_acked_in_parts() {
    let (_dir, queue) = of_small_parts();
    let refresh = |id| change(id, WriteOp::Refresh);
    queue.commit((0..8).map(refresh).collect(), None).unwrap();
    let leased = lease(&queue);
    queue.commit((0..8).map(large).collect(), None).unwrap();
    let acks = acks(&leased, &Outcome::Unavailable { due_ms: 0 });
    let mut rest = acks.iter();

    queue.ack_part(&mut rest).unwrap();
    assert_eq!(rest.len(), 5);
    queue.ack(rest.as_slice()).unwrap();

    let entries = lease(&queue);
    assert_eq!(ids(&entries), (0..8).collect::<Vec<_>>());
    assert!(entries.iter().all(|entry| entry.changes == 2 && op(entry).name() == "refresh"));
}

/// As a comparison does it for each of its ranges.
#[test]
fn what_is_held_again_and_again_is_read_once() {
    let (_dir, queue) = of_small_parts();
    let ns = large(0).work.ns().clone();
    queue.commit((0..8).map(large).collect(), None).unwrap();
    queue.hold(&ns);
    assert_eq!(lease(&queue), []);
    let read = queue.store.passed();

    for _ in 0..3 {
        queue.release(&ns);
        queue.hold(&ns);
        assert_eq!(lease(&queue), []);
    }
    assert_eq!(queue.store.passed(), read);

    queue.release(&ns);
    assert_eq!(ids(&lease(&queue)), (0..8).collect::<Vec<_>>());
}

#[test]
fn a_lease_that_passes_large_documents_lets_others_have_the_lock() {
    let (_dir, queue) = of_small_parts();
    queue.commit((0..8).map(large).collect(), None).unwrap();
    queue.hold(large(0).work.ns());
    let other = Namespace::new("shop", "other");
    let key = DocumentKey::of(&rawdoc! { "_id": 1 }).unwrap();
    let work = Work::refresh(other, key);
    queue.commit(vec![Incoming { work, cluster_time: ClusterTime(1), wall_ms: 1 }], None).unwrap();

    let mut looks = usize::MAX;
    let mut stretches = 1;
    let batch = loop {
        match queue.look(1_000, usize::MAX, 0, &mut looks).unwrap() {
            Some(batch) => break batch,
            None => stretches += 1,
        }
    };

    assert_eq!((stretches, batch.entries.len()), (3, 1));
}

/// The process ended while small entries were leased, for which large documents had come.
#[test]
fn entries_that_are_joined_when_the_queue_is_opened_are_written_in_parts() {
    let large = |id| change(id, WriteOp::Replace(rawdoc! { "_id": id, "x": "x".repeat(1 << 20) }));
    let (dir, queue) = fresh();
    queue.commit((0..5).map(|id| insert(id, 1)).collect(), None).unwrap();
    assert_eq!(lease(&queue).len(), 5);
    queue.commit((0..5).map(large).collect(), None).unwrap();
    assert_eq!(queue.pending().0, 10);
    drop(queue);

    let queue = open(&dir);

    let bytes: usize =
        queue.entries().map(|entry| codec::encode_entry(&entry.unwrap()).len()).sum();
    assert_eq!(queue.pending(), (5, bytes as u64));
    assert_eq!(ids(&lease(&queue)), (0..5).collect::<Vec<_>>());
    drop(queue);
    assert_eq!(open(&dir).pending(), (5, bytes as u64), "the seal fits");
}

/// As one value of its size it would be in a file of its own, of whose size sled's cache knows nothing.
#[test]
fn a_large_dead_letter_is_kept_in_pieces_and_goes_whole() {
    let (dir, queue) = fresh();
    let doc = rawdoc! { "_id": 1, "x": "x".repeat(100_000) };
    queue.commit(vec![change(1, WriteOp::Replace(doc.clone()))], None).unwrap();
    let reason = "no".to_owned();
    let rejected = Outcome::Rejected { reason, refusal: Refusal::Other, now_ms: 1 };
    ack(&queue, &lease(&queue), &rejected);
    let pieces = |queue: &Queue| queue.store.db().scan_prefix([layout::DEAD]).count();
    assert_eq!(pieces(&queue), 5);
    drop(queue);

    let queue = open(&dir);
    let letters: Vec<_> = queue.letters().map(Result::unwrap).collect();
    assert_eq!(letters.len(), 1);
    assert_eq!(letters[0].entry.work.body(), Some(&*doc));
    queue.discard_dead_letter(letters[0].id()).unwrap();
    assert_eq!((pieces(&queue), queue.dead_letters_len()), (0, 0));
    drop(queue);
    assert_eq!(open(&dir).dead_letters_len(), 0, "the seal fits");
}

/// It says only what their name means behind it.
#[test]
fn a_rename_reads_and_writes_as_much_however_much_waits() {
    let passed = |waiting: i32| {
        let (_dir, queue) = fresh();
        queue.commit((0..waiting).map(|id| insert(id, 1)).collect(), None).unwrap();
        let before = queue.store.passed();
        let to = Namespace::new("shop", "archive");
        let rename = SchemaChange::Rename { from: ns(), to, drop_target: true };
        queue.commit(vec![barrier(rename)], None).unwrap();
        queue.store.passed() - before
    };

    assert_eq!(passed(10), passed(3_000));
}
