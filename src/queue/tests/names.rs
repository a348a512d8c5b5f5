//! The queue against a model of collections that change their names: rename, with and without a target that gives
//! way, drop and make again, over a few names, while the stream lags behind, ops come back or die, names are held, and the
//! process is killed.
//!
//! The local side knows names and UUIDs, Atlas names alone. Drained, and its dead letters retried, the two are equal.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use proptest::prelude::*;

use super::*;
use crate::model::event::CollectionId;

const NAMES: [&str; 4] = ["left", "right", "tmp", "other"];

type Documents = BTreeMap<i32, RawDocumentBuf>;

#[derive(Clone, Debug)]
enum Action {
    Change {
        name: usize,
        id: i32,
        kind: u8,
        v: i32,
    },
    Rename {
        from: usize,
        to: usize,
        drop_target: bool,
    },
    /// `left → tmp, right → left, tmp → right`, with a change before it.
    Swap(i32),
    Drop(usize),
    /// The stream goes on by so many events, as one commit.
    Commit(usize),
    /// A write that had no answer is refreshed.
    Late {
        name: usize,
        id: i32,
    },
    Leased(usize),
    /// Acks everything that is leased, each with an outcome of its own.
    Ack(Vec<u8>),
    RetryLetters,
    /// Nothing of the name goes to Atlas, and goes again; of every name where there is none.
    Hold(Option<usize>),
    Release(Option<usize>),
    Restart,
    /// What a kill leaves: the files as they are, without the process having closed them. The stream goes on from the
    /// checkpoint that they have.
    Kill,
}

fn action() -> impl Strategy<Value = Action> {
    let name = || 0..NAMES.len();
    prop_oneof![
        12 => (name(), 0..4_i32, any::<u8>(), any::<i32>())
            .prop_map(|(name, id, kind, v)| Action::Change { name, id, kind, v }),
        3 => (name(), name(), any::<bool>())
            .prop_map(|(from, to, drop_target)| Action::Rename { from, to, drop_target }),
        2 => (0..4_i32).prop_map(Action::Swap),
        1 => name().prop_map(Action::Drop),
        6 => (1..12_usize).prop_map(Action::Commit),
        1 => (name(), 0..4_i32).prop_map(|(name, id)| Action::Late { name, id }),
        6 => (1..8_usize).prop_map(Action::Leased),
        6 => prop::collection::vec(any::<u8>(), 8).prop_map(Action::Ack),
        1 => Just(Action::RetryLetters),
        1 => prop::option::of(name()).prop_map(Action::Hold),
        1 => prop::option::of(name()).prop_map(Action::Release),
        1 => Just(Action::Restart),
        1 => Just(Action::Kill),
    ]
}

struct Collection {
    id: CollectionId,
    documents: Documents,
}

struct Run {
    dir: TempDir,
    queue: Option<Queue>,
    /// Events tell of the collection (6.0+).
    tells_ids: bool,
    local: BTreeMap<&'static str, Collection>,
    ids: u8,
    atlas: BTreeMap<String, Documents>,
    clock: u64,
    /// All that ever happened locally, and of it what was not read yet.
    history: Vec<Incoming>,
    stream: VecDeque<Incoming>,
    held: BTreeSet<&'static str>,
    holds_all: bool,
    /// Times of the renames that Atlas has made.
    renamed: BTreeSet<ClusterTime>,
    read_whole: ClusterTime,
    leased: Vec<Entry>,
    now_ms: u64,
}

fn named(name: &str) -> Namespace {
    Namespace::new("shop", name)
}

impl Run {
    fn queue(&self) -> &Queue {
        self.queue.as_ref().expect("open")
    }

    fn step(&mut self, action: Action) {
        match action {
            Action::Change { name, id, kind, v } => self.change(NAMES[name], id, kind, v),
            Action::Rename { from, to, drop_target } => {
                self.rename(NAMES[from], NAMES[to], drop_target);
            }
            Action::Swap(id) => {
                for name in ["left", "right"] {
                    self.change(name, id, 3, self.clock as i32);
                }
                self.rename("left", "tmp", true);
                self.rename("right", "left", false);
                self.rename("tmp", "right", false);
            }
            Action::Drop(name) => {
                if self.local.remove(NAMES[name]).is_some() {
                    self.happened(Work::Schema(SchemaChange::Drop { ns: named(NAMES[name]) }));
                }
            }
            Action::Commit(n) => self.commit(n),
            Action::Late { name, id } => {
                let key = DocumentKey::of(&rawdoc! { "_id": id }).unwrap();
                let ns = named(NAMES[name]);
                let work = Work::refresh(ns, key);
                let late = Incoming { work, cluster_time: self.read_whole, wall_ms: 1 };
                self.queue().commit(vec![late], None).unwrap();
            }
            Action::Leased(n) => {
                let batch = self.queue().lease(n, usize::MAX, self.now_ms).unwrap();
                assert!(batch.entries.is_empty() || !self.holds_all, "everything is held");
                for entry in &batch.entries {
                    let is_held = |ns: &Namespace| self.held.contains(ns.coll());
                    let is_wrong = match &entry.work {
                        Work::Document { ns, .. } => is_held(ns),
                        Work::Schema(change) => change.namespaces().iter().any(is_held),
                    };
                    assert!(!is_wrong, "held: {entry:?}");
                }
                self.leased.extend(batch.entries);
            }
            Action::Hold(name) => self.hold(name.map(|name| NAMES[name])),
            Action::Release(name) => self.release(name.map(|name| NAMES[name])),
            Action::Ack(outcomes) => self.ack(&outcomes),
            Action::RetryLetters => self.retry_letters(),
            Action::Restart => {
                self.leased.clear();
                self.queue = None;
                self.opens();
            }
            Action::Kill => self.is_killed(),
        }
    }

    /// What is held is so in memory alone: whoever held it does so again.
    fn opens(&mut self) {
        self.queue = Some(open(&self.dir));
        for name in &self.held {
            self.queue().hold(&named(name));
        }
        if self.holds_all {
            self.queue().hold_all();
        }
    }

    fn is_killed(&mut self) {
        let left = TempDir::new().unwrap();
        copy_dir(&self.dir.path().join("queue"), &left.path().join("queue"));
        self.leased.clear();
        self.queue = None;
        self.dir = left;
        self.opens();
        let read =
            self.queue().checkpoint().unwrap().map_or(ClusterTime::default(), |at| at.anchor);
        assert!(read <= self.read_whole, "a checkpoint that was never committed");
        self.read_whole = read;
        let unread = self.history.iter().filter(|event| event.cluster_time > read);
        self.stream = unread.cloned().collect();
    }

    fn hold(&mut self, name: Option<&'static str>) {
        match name {
            Some(name) if self.held.insert(name) => self.queue().hold(&named(name)),
            Some(_) => {}
            None => {
                self.holds_all = true;
                self.queue().hold_all();
            }
        }
    }

    fn release(&mut self, name: Option<&'static str>) {
        match name {
            Some(name) if self.held.remove(name) => self.queue().release(&named(name)),
            Some(_) => {}
            None => {
                self.holds_all = false;
                self.queue().release_all();
            }
        }
    }

    fn happened(&mut self, work: Work) {
        self.clock += 1;
        let cluster_time = ClusterTime(self.clock);
        let event = Incoming { work, cluster_time, wall_ms: self.clock };
        self.history.push(event.clone());
        self.stream.push_back(event);
    }

    fn change(&mut self, name: &'static str, id: i32, kind: u8, v: i32) {
        if !self.local.contains_key(name) {
            self.ids += 1;
            let of = Collection { id: CollectionId([self.ids; 16]), documents: Documents::new() };
            self.local.insert(name, of);
            if self.tells_ids {
                let options = RawDocumentBuf::new();
                self.happened(Work::Schema(SchemaChange::Create { ns: named(name), options }));
            }
        }
        let Collection { id: uuid, documents } = self.local.get_mut(name).unwrap();
        let op = match (documents.get_mut(&id), kind % 4) {
            (None, _) => {
                documents.insert(id, doc(id, v));
                WriteOp::Insert(doc(id, v))
            }
            (Some(_), 0) => {
                documents.remove(&id);
                WriteOp::Delete
            }
            (Some(held), 1) => {
                *held = doc(id, v);
                WriteOp::Replace(doc(id, v))
            }
            (Some(held), _) => {
                *held = doc(id, v);
                let diff = Delta::from_diff(&rawdoc! { "u": { "v": v } }).unwrap();
                if self.tells_ids { WriteOp::Update(diff) } else { WriteOp::Refresh }
            }
        };
        let collection = self.tells_ids.then_some(*uuid);
        let key = DocumentKey::of(&rawdoc! { "_id": id }).unwrap();
        self.happened(Work::Document { ns: named(name), key, op, collection });
    }

    fn rename(&mut self, from: &'static str, to: &'static str, drop_target: bool) {
        if from == to || (self.local.contains_key(to) && !drop_target) {
            return;
        }
        let Some(moved) = self.local.remove(from) else { return };
        self.local.insert(to, moved);
        let rename = SchemaChange::Rename { from: named(from), to: named(to), drop_target };
        self.happened(Work::Schema(rename));
        let reconcile = SchemaChange::Reconcile { ns: named(to), collection: None };
        self.happened(Work::Schema(reconcile));
    }

    fn commit(&mut self, n: usize) {
        let n = n.min(self.stream.len());
        let part: Vec<_> = self.stream.drain(..n).collect();
        let Some(last) = part.last() else { return };
        let time = last.cluster_time;
        self.queue().commit(part, Some(&checkpoint(time.0))).unwrap();
        self.read_whole = time;
    }

    fn ack(&mut self, outcomes: &[u8]) {
        let mut acks = Vec::new();
        for (n, entry) in std::mem::take(&mut self.leased).into_iter().enumerate() {
            let is_document = matches!(entry.work, Work::Document { .. });
            let outcome = match outcomes[n % outcomes.len()] % 8 {
                0 => Outcome::Unavailable { due_ms: 0 },
                1 if is_document => {
                    self.write(&entry);
                    Outcome::Unavailable { due_ms: 0 }
                }
                2 if is_document => Outcome::Refresh { due_ms: 0, keep_collection: true },
                3 if is_document => rejected(),
                4 if is_document => {
                    Outcome::Retry { due_ms: self.now_ms + 5, error: "again".into() }
                }
                _ => self.write(&entry),
            };
            acks.push(Ack { seq: entry.seq, version: entry.version, outcome });
        }
        self.now_ms += 1;
        self.queue().ack(&acks).unwrap();
    }

    /// What the worker does in `document` mode. A schema change is on the disk before it is made.
    fn write(&mut self, entry: &Entry) -> Outcome {
        if matches!(entry.work, Work::Schema(_)) {
            self.queue().flush().unwrap();
        }
        let (ns, key, op, collection) = match &entry.work {
            Work::Document { ns, key, op, collection } => (ns, key, op, *collection),
            Work::Schema(SchemaChange::Drop { ns }) => {
                self.atlas.remove(ns.coll());
                return Outcome::Applied;
            }
            Work::Schema(SchemaChange::Rename { from, .. })
                if !self.renamed.insert(entry.last_time) =>
            {
                // A kill took the ack: it is repeated with nothing after it.
                let after = self.atlas.get(from.coll()).map_or(0, BTreeMap::len);
                assert_eq!(
                    after, 0,
                    "written behind a rename whose settlement was not on the disk"
                );
                return Outcome::Applied;
            }
            Work::Schema(SchemaChange::Rename { from, to, .. }) => {
                let moved = self.atlas.remove(from.coll()).unwrap_or_default();
                self.atlas.insert(to.coll().to_owned(), moved);
                return Outcome::Applied;
            }
            Work::Schema(_) => return Outcome::Applied,
        };
        let id = key.value().unwrap().as_i32().unwrap();
        let document = match op {
            WriteOp::Insert(document) | WriteOp::Replace(document) => Some(document.clone()),
            WriteOp::Delete => None,
            WriteOp::Merge(_) => unreachable!("no such source"),
            WriteOp::Update(_) | WriteOp::Refresh => match self.read(ns, entry.seq, id, collection)
            {
                Ok(None) if matches!(op, WriteOp::Update(_)) => return Outcome::Applied,
                Ok(document) => document,
                Err(outcome) => return outcome,
            },
        };
        let documents = self.atlas.entry(ns.coll().to_owned()).or_default();
        match document {
            Some(document) => drop(documents.insert(id, document)),
            None => drop(documents.remove(&id)),
        }
        Outcome::Applied
    }

    /// What `hydrate` does.
    fn read(
        &self,
        ns: &Namespace,
        seq: u64,
        id: i32,
        collection: Option<CollectionId>,
    ) -> Result<Option<RawDocumentBuf>, Outcome> {
        let name = || self.queue().called_now(ns, [seq].into_iter()).remove(0);
        let Some(now) = name() else { return Err(Outcome::Applied) };
        let found = self.local.get(now.coll());
        let current = found.map(|found| found.id);
        let later = Err(Outcome::Unavailable { due_ms: 0 });
        if collection.is_some() {
            if collection != current {
                assert!(!self.stream.is_empty(), "the stream tells of what has become of {now}");
                return later;
            }
        } else {
            match self.queue().proof(&now, current, self.read_whole) {
                Proof::Proven => {}
                Proof::Waits => return later,
                Proof::Unseen => {
                    self.queue().seen((ns, seq), &now, current, ClusterTime(self.clock));
                    return later;
                }
            }
        }
        Ok(found.and_then(|found| found.documents.get(&id).cloned()))
    }

    fn retry_letters(&self) {
        let letters: Vec<_> = self.queue().letters().map(Result::unwrap).collect();
        assert_eq!(letters.len() as u64, self.queue().dead_letters_len());
        for letter in letters {
            self.queue().retry_dead_letter(letter.id(), &|_| true).unwrap();
        }
    }

    fn drain(&mut self) {
        self.release(None);
        for name in NAMES {
            self.release(Some(name));
        }
        self.commit(usize::MAX);
        for _ in 0..1_000 {
            self.now_ms += 10;
            let batch = self.queue().lease(100, usize::MAX, self.now_ms).unwrap();
            self.leased.extend(batch.entries);
            if self.leased.is_empty() {
                break;
            }
            self.ack(&[7]);
        }
        assert_eq!(self.queue().pending(), (0, 0), "everything drains");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, max_shrink_iters: 5_000, ..ProptestConfig::default() })]

    #[test]
    fn collections_that_change_names_end_equal_and_their_letters_follow(
        tells_ids: bool,
        actions in prop::collection::vec(action(), 1..80)
    ) {
        let (dir, queue) = fresh();
        let mut run = Run {
            dir,
            queue: Some(queue),
            tells_ids,
            local: BTreeMap::new(),
            ids: 0,
            atlas: BTreeMap::new(),
            clock: 0,
            history: Vec::new(),
            stream: VecDeque::new(),
            held: BTreeSet::new(),
            holds_all: false,
            renamed: BTreeSet::new(),
            read_whole: ClusterTime::default(),
            leased: Vec::new(),
            now_ms: 0,
        };
        for action in actions {
            run.step(action);
        }
        run.drain();
        run.retry_letters();
        run.drain();

        prop_assert_eq!(run.queue().dead_letters_len(), 0, "each letter was for its document");
        prop_assert_eq!(run.queue().letters().count(), 0);
        let local: BTreeMap<String, Documents> = run
            .local
            .into_iter()
            .map(|(name, of)| (name.to_owned(), of.documents))
            .filter(|(_, documents)| !documents.is_empty())
            .collect();
        run.atlas.retain(|_, documents| !documents.is_empty());
        prop_assert_eq!(local, run.atlas);
    }
}
