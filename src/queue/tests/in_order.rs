//! A collection that keeps the order of insertion: whatever happens to its entries, the drained queue has made its
//! documents, and their order, as they are locally.

use std::collections::HashMap;

use proptest::prelude::*;

use super::{model::check_numbers, *};
use crate::policy::anew::ComesAnew;

type Documents = Vec<(i32, RawDocumentBuf)>;

#[derive(Clone, Debug)]
enum Action {
    /// Each changes one of a few documents, in a way that the local database makes valid.
    Commit(Vec<(i32, u8, i32)>),
    /// The collection is dropped and made again.
    Recreate,
    Lease(usize),
    /// All that is leased ends: written, written without an answer, not written at all.
    Ack(Vec<u8>),
    Restart,
    /// All since some earlier point is delivered once more.
    Replay(usize),
}

fn action() -> impl Strategy<Value = Action> {
    prop_oneof![
        6 => prop::collection::vec((0..6_i32, any::<u8>(), any::<i32>()), 1..12).prop_map(Action::Commit),
        1 => prop::collection::vec((0..200_i32, any::<u8>(), any::<i32>()), 1..300).prop_map(Action::Commit),
        1 => Just(Action::Recreate),
        5 => (1..12_usize).prop_map(Action::Lease),
        5 => prop::collection::vec(any::<u8>(), 4).prop_map(Action::Ack),
        1 => Just(Action::Restart),
        1 => (0..30_usize).prop_map(Action::Replay),
    ]
}

struct Run {
    dir: TempDir,
    queue: Option<Queue>,
    local: Documents,
    atlas: Documents,
    leased: Vec<Entry>,
    /// Since the collection was made.
    history: Vec<Incoming>,
    /// As the worker remembers it, and up to where what may stand behind one that came anew reaches.
    anew: ComesAnew,
    followed: u64,
}

fn put(documents: &mut Documents, id: i32, document: RawDocumentBuf) {
    match documents.iter_mut().find(|(known, _)| *known == id) {
        Some((_, held)) => *held = document,
        None => documents.push((id, document)),
    }
}

impl Run {
    fn queue(&self) -> &Queue {
        self.queue.as_ref().expect("open")
    }

    fn step(&mut self, action: Action) {
        match action {
            Action::Commit(changes) => {
                let changed = changes.into_iter().map(|change| self.change_local(change));
                let incoming: Vec<_> = changed.collect();
                self.history.extend(incoming.clone());
                self.queue().commit(incoming, None).unwrap();
            }
            Action::Recreate => {
                self.local.clear();
                self.history.clear();
                // With what comes next, as it may be read.
                let created =
                    SchemaChange::Create { ns: ns(), options: rawdoc! { "capped": true } };
                let mut incoming = vec![barrier(SchemaChange::Drop { ns: ns() }), barrier(created)];
                for change in [(1, 0, 1), (2, 0, 1), (1, 0, 2), (1, 0, 3)] {
                    let change = self.change_local(change);
                    self.history.push(change.clone());
                    incoming.push(change);
                }
                self.queue().commit(incoming, None).unwrap();
            }
            Action::Lease(n) => {
                let batch = self.queue().lease(n, usize::MAX, 0).unwrap();
                self.leased.extend(batch.entries);
            }
            Action::Ack(outcomes) => self.ack(&outcomes),
            Action::Restart => {
                // An end while what came anew, and may have had no answer, is followed: docs/limits.md.
                if self.queue().has_before(self.followed) {
                    self.drain();
                }
                self.leased.clear();
                (self.queue, self.anew, self.followed) = (None, ComesAnew::default(), 0);
                let queue = open(&self.dir);
                queue.keep_capped_in_order(&ns(), true);
                self.queue = Some(queue);
            }
            Action::Replay(n) => {
                let from = self.history.len().saturating_sub(n);
                self.queue().commit(self.history[from..].to_vec(), None).unwrap();
                // Likewise.
                self.drain();
            }
        }
        check_numbers(self.queue());
    }

    fn change_local(&mut self, (id, kind, v): (i32, u8, i32)) -> Incoming {
        let at = self.local.iter().position(|(known, _)| *known == id);
        let op = match (at, kind % 4) {
            (None, _) => {
                self.local.push((id, doc(id, v)));
                WriteOp::Insert(doc(id, v))
            }
            (Some(at), 0) => {
                self.local.remove(at);
                WriteOp::Delete
            }
            (Some(at), 1) => {
                self.local[at].1 = doc(id, v);
                WriteOp::Replace(doc(id, v))
            }
            (Some(at), 2) => {
                self.local[at].1 = doc(id, v);
                WriteOp::Refresh
            }
            (Some(at), _) => {
                self.local[at].1 = doc(id, v);
                return set(id, v);
            }
        };
        change(id, op)
    }

    fn ack(&mut self, outcomes: &[u8]) {
        let outcome = outcomes[0] % 3;
        let leased = std::mem::take(&mut self.leased);
        if outcome > 0 {
            self.write(&leased);
        }
        // Of several commands the first have an answer.
        let told = match outcome {
            0 => 0,
            1 => leased.len(),
            _ => usize::from(outcomes[1]) % (leased.len() + 1),
        };
        let mut acks = Vec::new();
        for (n, entry) in leased.iter().enumerate() {
            let is_told = n < told || matches!(entry.work, Work::Schema(_));
            let outcome =
                if is_told { Outcome::Applied } else { Outcome::Unavailable { due_ms: 0 } };
            acks.push(Ack { seq: entry.seq, version: entry.version, outcome });
        }
        if leased.iter().any(|entry| matches!(entry.work, Work::Schema(_))) && outcome == 0 {
            self.write(&leased);
        }
        self.queue().ack(&acks).unwrap();
    }

    /// What the worker does.
    fn write(&mut self, batch: &[Entry]) {
        let of: HashMap<_, _> = self.local.iter().cloned().collect();
        for entry in batch {
            let Work::Document { key, op, .. } = &entry.work else {
                self.atlas.clear();
                continue;
            };
            let id = key.value().unwrap().as_i32().unwrap();
            if entry.again && !matches!(op, WriteOp::Delete) {
                self.followed = self.queue().position();
                self.anew.begin(entry.seq, self.followed);
            }
            match (op, of.get(&id)) {
                (WriteOp::Replace(document), _) if entry.again => {
                    self.atlas.retain(|(known, _)| *known != id);
                    self.atlas.push((id, document.clone()));
                }
                (WriteOp::Refresh, Some(document)) => {
                    if entry.again {
                        self.atlas.retain(|(known, _)| *known != id);
                    }
                    put(&mut self.atlas, id, document.clone());
                }
                (WriteOp::Insert(document), _) => {
                    if self.anew.has(entry.seq) {
                        self.atlas.retain(|(known, _)| *known != id);
                    }
                    put(&mut self.atlas, id, document.clone());
                }
                (WriteOp::Replace(document), _) => put(&mut self.atlas, id, document.clone()),
                (WriteOp::Delete, _) | (WriteOp::Refresh, None) => {
                    self.atlas.retain(|(known, _)| *known != id);
                }
                // An update is a read of the local document, and makes none.
                (WriteOp::Update(_), Some(document)) => {
                    if self.atlas.iter().any(|(known, _)| *known == id) {
                        put(&mut self.atlas, id, document.clone());
                    }
                }
                (WriteOp::Update(_), None) => {}
                (WriteOp::Merge(_), _) => unreachable!("{op:?}"),
            }
        }
    }

    fn drain(&mut self) {
        self.ack(&[1]);
        for _ in 0..1000 {
            let batch = self.queue().lease(100, usize::MAX, 0).unwrap();
            if batch.entries.is_empty() {
                break;
            }
            self.leased = batch.entries;
            self.ack(&[1]);
        }
        assert_eq!(self.queue().pending(), (0, 0), "everything drains");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { max_shrink_iters: 2000, ..ProptestConfig::default() })]

    #[test]
    fn the_drained_queue_has_made_the_same_documents_in_the_same_order(
        actions in prop::collection::vec(action(), 1..40),
    ) {
        let (dir, queue) = fresh();
        queue.keep_capped_in_order(&ns(), true);
        let (local, atlas, leased, history, anew) = Default::default();
        let queue = Some(queue);
        let mut run = Run { dir, queue, local, atlas, leased, history, anew, followed: 0 };
        for action in actions {
            run.step(action);
        }
        run.drain();
        prop_assert_eq!(run.local, run.atlas);
    }
}

/// A ring of fixed ids that turns while nothing is sent.
#[test]
fn a_document_that_goes_and_comes_again_while_it_waits_takes_its_new_place() {
    let (dir, queue) = fresh();
    queue.keep_capped_in_order(&ns(), true);
    let delete = |id| change(id, WriteOp::Delete);
    queue.commit(vec![insert(1, 1), insert(2, 1)], None).unwrap();
    queue.commit(vec![insert(3, 1), delete(1)], None).unwrap();
    queue.commit(vec![insert(1, 2), delete(2), insert(2, 2), delete(3)], None).unwrap();
    queue.commit(vec![insert(3, 3)], None).unwrap();

    drop(queue);
    let queue = open(&dir);
    let entries = lease(&queue);
    assert_eq!(ids(&entries), [1, 2, 3]);
    let ops: Vec<_> = entries.iter().map(op).cloned().collect();
    assert_eq!(ops, [doc(1, 2), doc(2, 2), doc(3, 3)].map(WriteOp::Replace));
    assert!(entries.iter().all(|entry| entry.again));
    assert_eq!(queue.pending().0, 3, "each is there once");
}

/// The entry that a document's two become, at the opening, may have the highest number of all, and stand in no block of its
/// own: the next one has another.
#[test]
fn no_number_is_given_twice_after_a_restart() {
    let (dir, queue) = fresh();
    queue.commit(vec![insert(1, 1)], None).unwrap();
    let first = lease(&queue);
    ack(&queue, &first, &Outcome::Applied);
    queue.commit(vec![change(1, WriteOp::Delete)], None).unwrap();
    assert_eq!(lease(&queue).len(), 1);
    queue.commit(vec![insert(1, 2)], None).unwrap();
    queue.commit(vec![set(1, 3)], None).unwrap();
    drop(queue);

    let queue = open(&dir);
    queue.commit(vec![insert(2, 1)], None).unwrap();
    let entries = lease(&queue);
    assert_eq!(ids(&entries), [1, 2]);
    ack(&queue, &entries, &Outcome::Applied);
    assert_eq!(queue.pending(), (0, 0));
}

/// What is on its way meanwhile, and comes back, is no matter to what comes anew.
#[test]
fn a_document_that_comes_anew_while_it_is_written_has_its_place_though_that_has_no_answer() {
    let (_dir, queue) = fresh();
    queue.keep_capped_in_order(&ns(), true);
    queue.commit(vec![insert(3, 1)], None).unwrap();
    let leased = lease(&queue);
    queue.commit(vec![insert(1, 1), change(3, WriteOp::Delete), insert(3, 2)], None).unwrap();

    ack(&queue, &leased, &Outcome::Unavailable { due_ms: 0 });

    let entries = lease(&queue);
    assert_eq!(ids(&entries), [1, 3]);
    assert!(entries[1].again);
    ack(&queue, &entries, &Outcome::Applied);
    assert_eq!(queue.pending(), (0, 0));
}

/// What is read, and on its way, may bring what is inserted meanwhile, into the place that the document had before.
#[test]
fn an_insert_behind_what_is_on_its_way_comes_anew_though_that_is_answered() {
    let (_dir, queue) = fresh();
    queue.keep_capped_in_order(&ns(), true);
    queue.commit(vec![change(3, WriteOp::Refresh), change(3, WriteOp::Delete)], None).unwrap();
    let leased = lease(&queue);
    queue.commit(vec![insert(1, 1), insert(3, 2)], None).unwrap();

    ack(&queue, &leased, &Outcome::Applied);

    let entries = lease(&queue);
    assert_eq!(ids(&entries), [1, 3]);
    assert_eq!(entries.iter().map(|entry| entry.again).collect::<Vec<_>>(), [false, true]);
}

#[test]
fn what_was_inserted_and_must_be_read_after_a_restart_still_has_its_place() {
    let (dir, queue) = fresh();
    queue.keep_capped_in_order(&ns(), true);
    queue.commit(vec![insert(1, 1)], None).unwrap();
    assert_eq!(lease(&queue).len(), 1);
    queue.commit(vec![change(1, WriteOp::Refresh)], None).unwrap();
    drop(queue);

    let entries = lease(&open(&dir));
    assert_eq!((op(&entries[0]), entries[0].again), (&WriteOp::Refresh, true));
}
