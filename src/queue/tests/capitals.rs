//! Databases of which a server keeps one: whatever order the queue hands its entries out in, and however often they come
//! back, a target that keeps no two either has never to refuse one.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

const DBS: [&str; 3] = ["odd", "Odd", "else"];

/// The collections of a server that keeps no two databases whose names differ in capitals alone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Server(BTreeSet<Namespace>);

impl Server {
    /// False where it refuses.
    fn make(&mut self, ns: &Namespace) -> bool {
        let is_twin = |of: &Namespace| of.db() != ns.db() && of.db().eq_ignore_ascii_case(ns.db());
        let is_free = !self.0.iter().any(is_twin);
        is_free && self.0.insert(ns.clone())
    }

    fn change(&mut self, change: &SchemaChange) -> bool {
        match change {
            SchemaChange::Create { ns, .. } => self.make(ns),
            SchemaChange::Drop { ns } => self.0.remove(ns),
            SchemaChange::Rename { from, to, .. } => {
                // A rename within a database, or out of it, needs both while it lasts.
                let is_made = self.0.contains(from) && self.make(to);
                is_made && self.0.remove(from)
            }
            SchemaChange::DropIfGone { .. } | SchemaChange::Reconcile { .. } => true,
        }
    }
}

fn named((db, name): (usize, u8)) -> Namespace {
    Namespace::new(DBS[db], &format!("c{name}"))
}

#[derive(Clone, Debug)]
enum Action {
    Create((usize, u8)),
    Drop((usize, u8)),
    /// As the stream tells it: a drop for each collection.
    DropDatabase(usize),
    Rename((usize, u8), (usize, u8)),
    Write((usize, u8)),
    Lease(usize),
    /// Half of what is leased comes back once, or none.
    Ack(bool),
    Restart,
}

fn action() -> impl Strategy<Value = Action> {
    let name = || (0..DBS.len(), 0..3_u8);
    prop_oneof![
        6 => name().prop_map(Action::Create),
        2 => name().prop_map(Action::Drop),
        4 => (0..DBS.len()).prop_map(Action::DropDatabase),
        2 => (name(), name()).prop_map(|(from, to)| Action::Rename(from, to)),
        4 => name().prop_map(Action::Write),
        4 => (1..6_usize).prop_map(Action::Lease),
        4 => any::<bool>().prop_map(Action::Ack),
        1 => Just(Action::Restart),
    ]
}

struct Run {
    dir: TempDir,
    queue: Option<Queue>,
    leased: Vec<Entry>,
    local: Server,
    target: Server,
}

impl Run {
    fn queue(&self) -> &Queue {
        self.queue.as_ref().unwrap()
    }

    fn happens(&mut self, change: SchemaChange) {
        if self.local.change(&change) {
            self.queue().commit(vec![barrier(change)], None).unwrap();
        }
    }

    fn step(&mut self, action: Action) {
        match action {
            Action::Create(name) => {
                self.happens(SchemaChange::Create { ns: named(name), options: rawdoc! {} });
            }
            Action::Drop(name) => self.happens(SchemaChange::Drop { ns: named(name) }),
            Action::DropDatabase(db) => {
                let all = self.local.0.clone();
                for ns in all.into_iter().filter(|ns| ns.db() == DBS[db]) {
                    self.happens(SchemaChange::Drop { ns });
                }
            }
            Action::Rename(from, to) => {
                let (from, to) = (named(from), named(to));
                self.happens(SchemaChange::Rename { from, to, drop_target: false });
            }
            Action::Write(name) if self.local.0.contains(&named(name)) => {
                let key = DocumentKey::of(&rawdoc! { "_id": 1 }).unwrap();
                let op = WriteOp::Insert(doc(1, 1));
                let work = Work::Document { ns: named(name), key, op, collection: None };
                let incoming = Incoming { work, cluster_time: ClusterTime(1), wall_ms: 1 };
                self.queue().commit(vec![incoming], None).unwrap();
            }
            Action::Write(_) => {}
            Action::Lease(most) => {
                let batch = self.queue().lease(most, usize::MAX, 0).unwrap();
                self.leased.extend(batch.entries);
            }
            Action::Ack(comes_back) => self.ack(comes_back),
            Action::Restart => {
                self.leased.clear();
                drop(self.queue.take());
                self.queue = Some(open(&self.dir));
            }
        }
    }

    fn ack(&mut self, comes_back: bool) {
        for (n, entry) in std::mem::take(&mut self.leased).into_iter().enumerate() {
            let (seq, version) = (entry.seq, entry.version);
            let outcome = if comes_back && n % 2 == 0 {
                Outcome::Unavailable { due_ms: 0 }
            } else {
                self.write(&entry);
                Outcome::Applied
            };
            self.queue().ack(&[Ack { seq, version, outcome }]).unwrap();
        }
    }

    fn write(&mut self, entry: &Entry) {
        match &entry.work {
            Work::Schema(change) => {
                assert!(self.target.change(change), "{change:?} with {:?}", self.target);
            }
            Work::Document { ns, .. } => {
                assert!(self.target.0.contains(ns), "a document of {ns} with {:?}", self.target);
            }
        }
    }

    /// Nothing waits for ever.
    fn drain(&mut self) {
        self.ack(false);
        while self.queue().pending().0 > 0 {
            self.step(Action::Lease(3));
            assert!(!self.leased.is_empty(), "{:?} wait", self.queue().pending_by_namespace());
            self.ack(false);
        }
    }
}

fn run(actions: Vec<Action>) {
    let dir = TempDir::new().unwrap();
    let queue = Some(open(&dir));
    let (local, target) = (Server::default(), Server::default());
    let mut run = Run { dir, queue, leased: Vec::new(), local, target };
    for action in actions {
        run.step(action);
    }
    run.drain();
    assert_eq!(run.target, run.local);
}

#[test]
fn a_database_that_is_made_once_more_waits_for_the_one_in_other_capitals_in_between() {
    let (odd, other) = ((0, 0), (1, 0));
    run(vec![
        Action::Create(odd),
        Action::Lease(1),
        Action::Ack(false),
        Action::DropDatabase(0),
        Action::Create(other),
        Action::DropDatabase(1),
        Action::Create((0, 1)),
        Action::Write((0, 1)),
        Action::Lease(1),
        Action::Lease(1),
        Action::Lease(1),
        Action::Ack(true),
    ]);
}

#[test]
fn what_waits_behind_a_change_that_is_held_is_told_with_databases_in_other_capitals() {
    let dir = TempDir::new().unwrap();
    let queue = open(&dir);
    let [old, new] = [(1, 0), (0, 0)].map(named);
    let create =
        |ns: &Namespace| barrier(SchemaChange::Create { ns: ns.clone(), options: rawdoc! {} });
    let drop = barrier(SchemaChange::Drop { ns: old.clone() });
    queue.commit(vec![create(&old), drop, create(&new)], None).unwrap();

    assert_eq!(queue.behind([old.clone()].into()), [old.clone(), new.clone()].into());
    assert_eq!(queue.behind([new.clone()].into()), [new].into(), "the first waits for none");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn a_target_that_keeps_no_two_names_in_other_capitals_refuses_nothing(
        actions in prop::collection::vec(action(), 1..80)
    ) {
        run(actions);
    }
}
