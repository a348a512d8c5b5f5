//! An agent and its lease, with records in memory: which target it takes and which it refuses, and what it does when the
//! lease, or whose copy the target is, turns out to be otherwise.

use std::{sync::Arc, time::Duration};

use tempfile::TempDir;
use tokio::task::JoinHandle;

use super::{LeaseClient, Ownership};
use crate::{
    gate::{reading::Reading, writing::Writing},
    model::{checkpoint::ClusterTime, namespace::Namespace},
    policy::breaker::BreakerPolicy,
    queue::{Queue, QueueOptions, note},
    runtime::{clock, shutdown::Stop},
    side::{
        fake_records::{FakeRecords, agent, filter, lease_of},
        fake_schema::FakeSchemas,
        records::AgentIdentity,
    },
    sink::fake::FakeSink,
    sync::{
        Context, SyncError,
        sides::Sides,
        state::{Reason, SyncState},
    },
};

mod kept;
mod put_back;
mod reviewed;
mod taken;

const SECOND: Duration = Duration::from_secs(1);

/// The source that is replicated, by its id.
const OURS: &str = "ours";

/// What is replicated.
const PATTERNS: &[&str] = &["shop.*"];

/// What the stream has come to.
const NOW: u64 = 50;

fn orders() -> Namespace {
    Namespace::new("shop", "orders")
}

fn items() -> Namespace {
    Namespace::new("shop", "items")
}

/// A life of our agent on its machine.
fn life(instance: &str) -> AgentIdentity {
    AgentIdentity { boot: "this machine's".to_owned(), ..agent("we", instance) }
}

/// Our agent, and a target that keeps lease records.
struct Scene {
    records: Arc<FakeRecords>,
    /// Those in the local database.
    upstream: Arc<FakeRecords>,
    local: Arc<FakeSchemas>,
    atlas: Arc<FakeSchemas>,
    queue: Arc<Queue>,
    writing: Arc<Writing>,
    cx: Arc<Context<FakeSink>>,
    stop: Stop,
    _dir: TempDir,
}

/// Both sides are empty, and nobody was here before.
fn scene() -> Scene {
    let (records, upstream): (Arc<FakeRecords>, Arc<FakeRecords>) = Default::default();
    let local = Arc::new(FakeSchemas::at(NOW).keeping(upstream.clone()));
    let atlas = Arc::new(FakeSchemas::at(NOW).keeping(records.clone()));
    scene_between(local, atlas, records, upstream)
}

fn scene_between(
    local: Arc<FakeSchemas>,
    atlas: Arc<FakeSchemas>,
    records: Arc<FakeRecords>,
    upstream: Arc<FakeRecords>,
) -> Scene {
    let dir = TempDir::new().unwrap();
    let queue = Arc::new(Queue::open(&QueueOptions::new(dir.path().join("queue"))).unwrap());
    let breaker = BreakerPolicy { failure_threshold: 1, open_for: SECOND, open_for_max: SECOND };
    let writing = Arc::new(Writing::new(local.gate.clone(), breaker));
    let reading: Arc<Reading> = Arc::default();
    reading.end_reply(ClusterTime(NOW), ClusterTime(NOW));
    let sides = Sides::new(local.clone(), atlas.clone(), 4, 0);
    let cx = Context::between(sides, Arc::default(), queue.clone(), reading, writing.clone());
    let cx = Arc::new(Context { filter: filter(PATTERNS), written: filter(PATTERNS), ..cx });
    let stop = Stop::default();
    Scene { records, upstream, local, atlas, queue, writing, cx, stop, _dir: dir }
}

impl Scene {
    /// Atlas has these collections, with a document in each.
    fn atlas_holds(self, namespaces: &[Namespace]) -> Self {
        for ns in namespaces {
            self.atlas.has(ns, &[]);
        }
        self.atlas.has_documents(1);
        self
    }

    fn ownership(&self, agent: AgentIdentity, adopt: bool) -> Ownership<FakeSink> {
        Ownership::new(self.cx.clone(), OURS.to_owned(), agent, adopt)
    }

    /// How a start in this life ends.
    async fn start(&self, instance: &str) -> Result<(), SyncError> {
        self.start_of(life(instance)).await
    }

    async fn start_of(&self, agent: AgentIdentity) -> Result<(), SyncError> {
        self.taken(&self.ownership(agent, false)).await
    }

    /// As [`start`](Self::start), by a person who says that the target is to be taken over.
    async fn adopt(&self, instance: &str) -> Result<(), SyncError> {
        self.taken(&self.ownership(life(instance), true)).await
    }

    async fn taken(&self, ownership: &Ownership<FakeSink>) -> Result<(), SyncError> {
        let taking = ownership.take(&self.stop);
        tokio::time::timeout(SECOND * 3_600, taking).await.expect("it ends within the hour")
    }

    /// An agent that has started, owes nothing any more, and keeps its lease.
    async fn running(&self) -> JoinHandle<Result<(), SyncError>> {
        let ownership = self.ownership(life("1"), false);
        self.taken(&ownership).await.unwrap();
        self.has_caught_up();
        let stop = self.stop.clone();
        tokio::spawn(async move { ownership.keep(&stop).await })
    }

    /// What is owed was done.
    fn has_caught_up(&self) {
        if let Some(state) = SyncState::load(&self.queue).unwrap() {
            assert!(SyncState::complete(&self.queue, state.id).unwrap());
        }
    }

    /// Why everything is to be compared, if it is.
    fn owes(&self) -> Option<Reason> {
        SyncState::load(&self.queue).unwrap().map(|state| state.reason)
    }

    /// Whose agent has our lease, by the start of it.
    fn holder(&self) -> Option<String> {
        let holder = self.records.lease(OURS)?.holder?;
        Some(holder.agent.instance)
    }

    fn lease_id(&self) -> Option<String> {
        self.records.lease(OURS)?.lease_id
    }

    fn noted(&self, name: &str) -> Option<Vec<u8>> {
        self.queue.meta(name).unwrap()
    }

    fn may_write(&self) -> bool {
        self.writing.is_acquired() && !self.writing.rests()
    }
}

/// How an agent has ended that keeps its lease.
async fn ended(running: JoinHandle<Result<(), SyncError>>) -> Result<(), SyncError> {
    tokio::time::timeout(SECOND * 3_600, running).await.expect("it ends within the hour").unwrap()
}

/// A problem that a person reads.
fn said(result: Result<(), SyncError>) -> String {
    result.expect_err("it is refused").to_string()
}
