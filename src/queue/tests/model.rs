//! The queue against a model: a map of what the local database holds, and one of what Atlas holds.
//!
//! Whatever the order of commits, leases, outcomes and restarts: drained, the two are equal (I5).

use std::collections::{BTreeMap, HashSet};

use bson::RawDocument;
use proptest::prelude::*;

use super::*;

type Documents = BTreeMap<i32, RawDocumentBuf>;

#[derive(Clone, Debug)]
enum Action {
    /// Each changes one of a few documents, in a way that the model makes valid.
    Commit(Vec<(i32, u8, i32)>),
    /// A commit that ends with its first part, in a crash or not, and is then delivered once more. At some places in it the
    /// collection is dropped.
    Cut(Vec<(i32, u8, i32)>, bool),
    Drop,
    Leased(usize),
    /// Acks everything that is leased, each with an outcome of its own.
    Ack(Vec<u8>),
    Restart,
    /// Delivers all that was committed since some earlier point once more, as after a crash.
    Replay(usize),
}

fn action() -> impl Strategy<Value = Action> {
    prop_oneof![
        6 => prop::collection::vec((0..6_i32, any::<u8>(), any::<i32>()), 1..12).prop_map(Action::Commit),
        // Enough for several blocks.
        3 => prop::collection::vec((0..300_i32, any::<u8>(), any::<i32>()), 1..300).prop_map(Action::Commit),
        2 => (prop::collection::vec((0..20_i32, any::<u8>(), any::<i32>()), 1..60), any::<bool>())
            .prop_map(|(changes, crash)| Action::Cut(changes, crash)),
        1 => Just(Action::Drop),
        5 => prop_oneof![1..8_usize, 1..200_usize].prop_map(Action::Leased),
        5 => prop::collection::vec(any::<u8>(), 8).prop_map(Action::Ack),
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
    history: Vec<Incoming>,
    now_ms: u64,
    part_bytes: usize,
}

/// What the queue says of how much waits is what it has, which is returned.
pub fn check_numbers(queue: &Queue) -> Vec<Entry> {
    let entries: Vec<_> = queue.entries().map(Result::unwrap).collect();
    let bytes: usize = entries.iter().map(|entry| codec::encode_entry(entry).len()).sum();
    assert_eq!(queue.pending(), (entries.len() as u64, bytes as u64));
    entries
}

impl Run {
    fn queue(&self) -> &Queue {
        self.queue.as_ref().expect("open")
    }

    fn step(&mut self, action: Action) {
        match action {
            Action::Commit(changes) => {
                let incoming: Vec<_> = changes
                    .into_iter()
                    .map(|(id, kind, v)| self.change_local(id, kind, v))
                    .collect();
                self.history.extend(incoming.clone());
                self.queue().commit(incoming, None).unwrap();
            }
            Action::Cut(changes, is_crash) => {
                let mut incoming = Vec::new();
                for (id, kind, v) in changes {
                    incoming.push(if kind == 0 {
                        self.drop_local()
                    } else {
                        self.change_local(id, kind, v)
                    });
                }
                self.history.extend(incoming.clone());
                let mut first = incoming.clone().into_iter();
                let last = Some(checkpoint(self.history.len() as u64));
                self.queue().commit_part(self.queue().lock(), &mut first, last.as_ref()).unwrap();
                assert_eq!(self.queue().checkpoint().unwrap() == last, first.len() == 0, "I1");
                if is_crash {
                    self.leased.clear();
                    self.reopen();
                }
                self.queue().commit(incoming, last.as_ref()).unwrap();
                assert_eq!(self.queue().checkpoint().unwrap(), last);
            }
            Action::Drop => {
                let drop = self.drop_local();
                self.history.push(drop.clone());
                self.queue().commit(vec![drop], None).unwrap();
            }
            Action::Leased(n) => {
                let batch = self.queue().lease(n, usize::MAX, self.now_ms).unwrap();
                self.leased.extend(batch.entries);
            }
            Action::Ack(outcomes) => self.ack(&outcomes),
            Action::Restart => {
                let before: Vec<_> = self.queue().entries().map(Result::unwrap).collect();
                self.reopen();
                if std::mem::take(&mut self.leased).is_empty() {
                    let after: Vec<_> = self.queue().entries().map(Result::unwrap).collect();
                    assert_eq!(before, after, "a restart changes nothing");
                }
            }
            Action::Replay(n) => {
                let from = self.history.len().saturating_sub(n);
                self.queue().commit(self.history[from..].to_vec(), None).unwrap();
            }
        }
        self.check_invariants();
    }

    fn reopen(&mut self) {
        self.queue = None;
        let mut queue = open(&self.dir);
        queue.store.part_bytes = self.part_bytes;
        self.queue = Some(queue);
    }

    fn drop_local(&mut self) -> Incoming {
        self.local.clear();
        barrier(SchemaChange::Drop { ns: ns() })
    }

    fn change_local(&mut self, id: i32, kind: u8, v: i32) -> Incoming {
        let op = match (self.local.get_mut(&id), kind % 4) {
            (None, _) => {
                self.local.insert(id, doc(id, v));
                WriteOp::Insert(doc(id, v))
            }
            (Some(_), 0) => {
                self.local.remove(&id);
                WriteOp::Delete
            }
            (Some(held), 1) => {
                *held = doc(id, v);
                WriteOp::Replace(doc(id, v))
            }
            (Some(held), _) => {
                let delta = Delta::from_diff(&diff(held, kind / 4, v)).unwrap();
                *held = delta.apply(held).unwrap();
                WriteOp::Update(delta)
            }
        };
        change(id, op)
    }

    fn ack(&mut self, outcomes: &[u8]) {
        let mut acks = Vec::new();
        for (n, entry) in std::mem::take(&mut self.leased).into_iter().enumerate() {
            let outcome = match outcomes[n % outcomes.len()] % 6 {
                0 => Outcome::Unavailable { due_ms: 0 },
                1 => Outcome::Retry { due_ms: self.now_ms + 5, error: "again".into() },
                // A write that reached Atlas and whose answer was lost.
                2 => {
                    self.write(&entry);
                    Outcome::Unavailable { due_ms: 0 }
                }
                3 => Outcome::Refresh { due_ms: self.now_ms + 1, keep_collection: true },
                _ => {
                    self.write(&entry);
                    Outcome::Applied
                }
            };
            acks.push(Ack { seq: entry.seq, version: entry.version, outcome });
        }
        self.now_ms += 1;
        self.queue().ack(&acks).unwrap();
    }

    /// What the worker does in `document` mode: an update is a read of the local document.
    fn write(&mut self, entry: &Entry) {
        let Work::Document { key, op, .. } = &entry.work else {
            self.atlas.clear();
            return;
        };
        let id = key.value().unwrap().as_i32().unwrap();
        let local = self.local.get(&id).cloned();
        match (op, local) {
            (WriteOp::Insert(doc) | WriteOp::Replace(doc), _) => {
                self.atlas.insert(id, doc.clone());
            }
            (WriteOp::Delete, _) | (WriteOp::Refresh, None) => {
                self.atlas.remove(&id);
            }
            (WriteOp::Update(_) | WriteOp::Refresh, Some(doc)) => {
                self.atlas.insert(id, doc);
            }
            (WriteOp::Update(_), None) => {}
            (WriteOp::Merge(_), _) => unreachable!("no such source"),
        }
    }

    fn check_invariants(&self) {
        let entries = check_numbers(self.queue());
        let leased: HashSet<u64> = self.leased.iter().map(|entry| entry.seq).collect();
        let mut waiting = HashSet::new();
        for entry in &entries {
            match &entry.work {
                Work::Schema(_) => waiting.clear(),
                Work::Document { key, .. } if !leased.contains(&entry.seq) => {
                    assert!(waiting.insert(key.canonical()), "I2: two ops wait for {key}");
                }
                Work::Document { .. } => {}
            }
        }
        let mut documents = HashSet::new();
        for entry in &self.leased {
            assert!(documents.insert(entry.work.document_id().to_string()), "leased twice");
        }
    }

    fn drain(&mut self) {
        for _ in 0..1000 {
            self.now_ms += 10;
            let batch = self.queue().lease(100, usize::MAX, self.now_ms).unwrap();
            self.leased.extend(batch.entries);
            if self.leased.is_empty() {
                break;
            }
            self.ack(&[5]);
        }
        assert_eq!(self.queue().pending(), (0, 0), "everything drains");
        // What is on the disk says so too, and its seal fits.
        self.reopen();
        assert_eq!(self.queue().pending(), (0, 0));
    }
}

/// A change of each section that a server's diffs have, which fits the document.
fn diff(held: &RawDocument, kind: u8, v: i32) -> RawDocumentBuf {
    let names = ["a", "b", "c"];
    let name = names[(v.unsigned_abs() % 3) as usize];
    let one = |name: &str, value: bson::RawBson| {
        let mut section = RawDocumentBuf::new();
        section.append(<&bson::raw::CStr>::try_from(name).unwrap(), value);
        section
    };
    let items = held.get_array("arr").map_or(0, |items| items.into_iter().count());
    let has = |name: &str| held.get(name).is_ok_and(|value| value.is_some());
    match kind % 9 {
        0 if has(name) => rawdoc! { "d": one(name, false.into()) },
        1 if has("v") => rawdoc! { "u": { "v": v } },
        2 if has("o") => rawdoc! { "so": { "u": { "x": v } } },
        3 if has("o") => rawdoc! { "so": { "i": one(name, v.into()) } },
        4 if items > 0 => rawdoc! { "sarr": { "a": true, "u0": v } },
        5 if has("arr") => {
            let mut grown = rawdoc! { "a": true };
            let next = format!("u{items}");
            grown.append(<&bson::raw::CStr>::try_from(&*next).unwrap(), v);
            rawdoc! { "sarr": grown }
        }
        6 if items > 1 => rawdoc! { "sarr": { "a": true, "l": items as i32 - 1 } },
        7 if has("o") && has("v") => {
            rawdoc! { "u": { "v": v }, "i": { "arr": [v, { "deep": v }], "d": v }, "so": { "u": { "x": [v] } } }
        }
        8 => rawdoc! { "i": { "o": { "x": v, "y": 1 }, "arr": [v] } },
        // Appends a field or moves it to the end, so that the order of fields counts.
        _ => rawdoc! { "i": one(name, v.into()) },
    }
}

proptest! {
    #![proptest_config(ProptestConfig { max_shrink_iters: 2000, ..ProptestConfig::default() })]

    #[test]
    fn i5_whatever_happens_the_drained_queue_has_made_both_sides_equal(
        actions in prop::collection::vec(action(), 1..40),
        part_bytes in prop_oneof![Just(edit::PART_BYTES), 1..20_000_usize],
    ) {
        let (dir, mut queue) = fresh();
        queue.store.part_bytes = part_bytes;
        let mut run = Run {
            dir,
            queue: Some(queue),
            local: Documents::new(),
            atlas: Documents::new(),
            leased: Vec::new(),
            history: Vec::new(),
            now_ms: 0,
            part_bytes,
        };
        for action in actions {
            run.step(action);
        }
        run.drain();
        prop_assert_eq!(run.local, run.atlas);
    }
}
