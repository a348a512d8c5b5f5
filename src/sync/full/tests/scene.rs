//! Two databases in memory, a queue between them, a stream that has come as far as the local one is, and a worker that
//! writes what is queued.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use parking_lot::Mutex;
use tempfile::TempDir;

use crate::{
    gate::{reading::Reading, writing::Writing},
    model::{
        checkpoint::ClusterTime, document_key::DocumentKey, event::SchemaChange,
        namespace::Namespace, write_op::WriteOp,
    },
    observe::progress::{Progress, Share},
    policy::{breaker::BreakerPolicy, read_watermark::ReadWatermark},
    queue::{Ack, Entry, Incoming, Outcome, Queue, QueueOptions, Work},
    runtime::{clock::now_ms, shutdown::Stop},
    schema::watch::SchemaWatch,
    side::{
        Side,
        fake_database::{Failure, FakeDatabase},
    },
    sink::{SchemaSink, Sink, Write, Written},
    sync::{
        Context, SyncError,
        deletes::DeleteLimit,
        full::FullSync,
        sides::Sides,
        state::{Reason, SyncRequest, SyncState},
    },
};

pub use crate::side::{
    fake_database::{ns, ones},
    fake_schema::unique,
};

pub const SECOND: Duration = Duration::from_secs(1);

/// What the local database is at, and the stream has come to.
pub const NOW: u64 = 50;

pub fn names(names: &[&str]) -> BTreeSet<Namespace> {
    names.iter().map(|name| ns(name)).collect()
}

pub fn key(id: i32) -> DocumentKey {
    DocumentKey::of(&bson::rawdoc! { "_id": id }).unwrap()
}

/// A change of a collection that the stream tells of.
pub fn barrier(queue: &Queue, change: SchemaChange) {
    queue.commit(vec![incoming(Work::Schema(change))], None).unwrap();
}

fn incoming(work: Work) -> Incoming {
    Incoming { work, cluster_time: ClusterTime(NOW), wall_ms: now_ms() }
}

/// A document that the stream tells of.
pub fn changed(queue: &Queue, name: &str, id: i32) {
    let (key, op) = (key(id), WriteOp::Refresh);
    let work = Work::Document { ns: ns(name), key, op, collection: None };
    queue.commit(vec![incoming(work)], None).unwrap();
}

pub struct Scene {
    pub local: Arc<FakeDatabase>,
    pub atlas: Arc<FakeDatabase>,
    pub queue: Arc<Queue>,
    pub reading: Arc<Reading>,
    pub writing: Arc<Writing>,
    pub watch: Arc<SchemaWatch>,
    pub cx: Arc<Context<FakeDatabase>>,
    pub watermark: Arc<Mutex<ReadWatermark>>,
    pub stop: Stop,
    every: Duration,
    _dir: TempDir,
}

/// The agent may write. Nothing is owed, and nobody has asked for anything.
pub fn scene() -> Scene {
    let dir = TempDir::new().unwrap();
    let queue = Arc::new(Queue::open(&QueueOptions::new(dir.path().join("queue"))).unwrap());
    let local = Arc::new(FakeDatabase::source(NOW));
    let atlas = Arc::new(FakeDatabase::target(NOW));
    let breaker = BreakerPolicy { failure_threshold: 1, open_for: SECOND, open_for_max: SECOND };
    let writing = Arc::new(Writing::new(local.schemas.gate.clone(), breaker));
    writing.acquired();
    let reading: Arc<Reading> = Arc::default();
    reading.end_reply(ClusterTime(NOW), ClusterTime(NOW));
    let sides = Sides::new(local.clone(), atlas.clone(), 4, 0);
    let cx =
        Context::between(sides, atlas.clone(), queue.clone(), reading.clone(), writing.clone());
    let watch = cx.watch.clone();
    let cx = Arc::new(cx);
    let watermark = Arc::new(Mutex::new(ReadWatermark::new(ClusterTime::default(), 100)));
    let (every, stop) = (Duration::ZERO, Stop::default());
    Scene { local, atlas, queue, reading, writing, watch, cx, watermark, stop, every, _dir: dir }
}

impl Scene {
    /// The local database holds these documents.
    pub fn local(self, name: &str, documents: impl IntoIterator<Item = (i32, i32)>) -> Self {
        self.local.holds(&ns(name), documents);
        self
    }

    /// Atlas holds these.
    pub fn atlas(self, name: &str, documents: impl IntoIterator<Item = (i32, i32)>) -> Self {
        self.atlas.holds(&ns(name), documents);
        self
    }

    /// Both hold these.
    pub fn both(self, name: &str, documents: impl IntoIterator<Item = (i32, i32)>) -> Self {
        let documents: Vec<_> = documents.into_iter().collect();
        self.local(name, documents.clone()).atlas(name, documents)
    }

    /// Everything is to be copied or compared.
    pub fn owes_everything(self) -> Self {
        SyncState::require(&self.queue, ClusterTime(NOW), Reason::FirstCopy).unwrap();
        self
    }

    /// These are, which were replaced.
    pub fn owes(self, of: &[&str]) -> Self {
        let position = ClusterTime(NOW);
        SyncState::require_of(&self.queue, position, &names(of), Reason::Replaced).unwrap();
        self
    }

    /// Somebody asks for this.
    pub fn asks(self, request: SyncRequest) -> Self {
        let asked = SyncState::request(&self.queue, ClusterTime(NOW), request, Reason::Asked);
        asked.unwrap().unwrap();
        self
    }

    /// Everything is compared as often as that.
    pub fn compares_every(mut self, every: Duration) -> Self {
        self.every = every;
        self
    }

    fn full(&self) -> FullSync<FakeDatabase> {
        let (watermark, deletes) = (self.watermark.clone(), DeleteLimit::new(0.1));
        FullSync::new(self.cx.clone(), watermark, deletes, 1_000, self.every)
    }

    /// Makes the run that is noted, and tells how it has ended.
    pub async fn run(&self) -> String {
        let full = self.full();
        let state = SyncState::resume(&self.queue).unwrap().expect("a run is noted");
        let run = async {
            tokio::select! {
                ended = full.run_until_ended(state, &self.stop) => ended.unwrap(),
                () = self.works() => panic!("a worker never ends"),
            }
        };
        tokio::time::timeout(SECOND * 3_600, run).await.expect("it ends within the hour");
        self.progress().outcome.expect("it has ended").to_string()
    }

    /// Serves for so long.
    pub async fn serves_for(&self, seconds: u64) {
        let full = self.full();
        tokio::select! {
            served = full.serve(&self.stop) => panic!("it has ended by itself: {served:?}"),
            () = self.works() => panic!("a worker never ends"),
            () = tokio::time::sleep(SECOND * seconds as u32) => {}
        }
    }

    /// Serves until it is told to stop, or cannot go on.
    pub async fn serve(&self) -> Result<(), SyncError> {
        let full = self.full();
        tokio::select! {
            served = full.serve(&self.stop) => served,
            () = self.works() => panic!("a worker never ends"),
        }
    }

    /// The agent is told to stop at the first page of a collection that is asked for once a range of it is noted. By the
    /// twentieth, four ranges of four pages have been asked for all they have: the fifth waits for the notes of these.
    pub fn stops_once_a_range_is_noted(&self, name: &'static str) {
        let asked = format!("page {name}");
        for nth in 1..=40 {
            let (queue, local, stop) = (self.queue.clone(), self.local.clone(), self.stop.clone());
            let page = asked.clone();
            self.local.when_nth(&asked, nth, move || {
                let state = SyncState::load(&queue).unwrap();
                let plan = state.as_ref().and_then(|state| state.begun.get(&ns(name)));
                match plan.map(|plan| plan.done.len()) {
                    Some(1..) => stop.drain.cancel(),
                    Some(0) if nth > 20 => local.fails(&page, Failure::Away, 1),
                    Some(0) | None => {}
                }
            });
        }
    }

    /// Writes what is queued, and waits for more.
    async fn works(&self) {
        loop {
            let batch = self.queue.lease(100, 1 << 20, now_ms()).unwrap();
            if batch.entries.is_empty() {
                tokio::time::sleep(SECOND / 20).await;
                continue;
            }
            let mut acks = Vec::new();
            for entry in &batch.entries {
                let outcome = self.write(entry).await;
                acks.push(Ack { seq: entry.seq, version: entry.version, outcome });
            }
            self.queue.ack(&acks).unwrap();
        }
    }

    async fn write(&self, entry: &Entry) -> Outcome {
        match &entry.work {
            Work::Schema(change) => {
                let ns = change.ns();
                if self.watch.all_held().contains(ns) {
                    return Outcome::Unavailable { due_ms: now_ms() + 1_000 };
                }
                let is_here = self.local.is_there(ns);
                match change {
                    SchemaChange::DropIfGone { .. } if is_here => {}
                    SchemaChange::Reconcile { .. } => {
                        if let Some(there) = self.local.schemas.get(ns) {
                            self.atlas.schemas.is(ns, there);
                        }
                    }
                    change => drop(self.atlas.change_schema(change).await.unwrap()),
                }
                Outcome::Applied
            }
            Work::Document { ns, key, .. } => {
                let keys = [key.clone()];
                let found = self.local.find(ns, &keys).await.unwrap();
                let write = match found.get(&key.canonical()) {
                    Some(document) => Write::Upsert { key, document },
                    None => Write::Delete(key),
                };
                match self.atlas.write(ns, &[write]).await.unwrap().remove(0) {
                    Written::Rejected { reason, refusal } => {
                        Outcome::Rejected { reason, refusal, now_ms: now_ms() }
                    }
                    _ => Outcome::Applied,
                }
            }
        }
    }

    /// What was shown of the last run.
    pub fn progress(&self) -> Progress {
        self.cx.status.state().sync.clone().expect("a run has begun")
    }

    /// What was shown of a collection.
    pub fn share(&self, name: &str) -> Share {
        self.progress().share(&ns(name)).clone()
    }

    /// How many documents the comparison has found missing in Atlas, in Atlas only, and different.
    pub fn found(&self, name: &str) -> (u64, u64, u64) {
        let share = self.share(name);
        (share.missing, share.extra, share.content)
    }

    /// True when both hold the same documents in a collection that both have.
    pub fn is_equal(&self, name: &str) -> bool {
        let (name, is_there) = (ns(name), |end: &FakeDatabase| end.is_there(&ns(name)));
        is_there(&self.local)
            && is_there(&self.atlas)
            && self.local.values(&name) == self.atlas.values(&name)
    }

    pub fn is_owed(&self) -> bool {
        SyncState::is_owed(&self.queue).unwrap()
    }
}
