//! The worker between a queue and two ends in memory: what becomes of each entry, and of what is known of the ends.

use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, Instant},
};

use bson::{RawDocumentBuf, rawdoc};
use parking_lot::Mutex;
use tempfile::TempDir;

use super::{Shared, Worker, WorkerOptions};
use crate::{
    config::UpdateMode,
    gate::{
        Gate, lease::BootTime, past::Finding, pause::Pause, reading::Reading, writing::Writing,
    },
    model::{
        checkpoint::ClusterTime,
        delta::Delta,
        document_key::DocumentKey,
        event::{CollectionId, SchemaChange},
        namespace::{Namespace, NamespaceFilter},
        write_op::WriteOp,
    },
    observe::status::Status,
    policy::{
        backoff::RetrySchedule,
        breaker::{BreakerPolicy, Stage},
        in_doubt::InDoubtWrites,
        read_watermark::ReadWatermark,
    },
    queue::{Incoming, Queue, QueueOptions, Work, after_a_crash},
    runtime::{
        clock::{self, now_ms},
        shutdown::Stop,
    },
    schema::watch::SchemaWatch,
    sink::{Changed, SinkError, fake::FakeSink},
    sync::state::SyncState,
};

mod fakes;
mod held;
mod hours;
mod kinds;
mod left_out;
mod options;
mod sent;
mod taken;

use fakes::{HERE, Local};

/// Up to here an earlier run may have written already.
const FLOOR: u64 = 10;

fn key(id: i32) -> DocumentKey {
    DocumentKey::of(&rawdoc! { "_id": id }).unwrap()
}

fn orders() -> Namespace {
    Namespace::new("shop", "orders")
}

fn doc(id: i32, v: i32) -> RawDocumentBuf {
    rawdoc! { "_id": id, "v": v }
}

fn change_at(time: u64, id: i32, op: WriteOp) -> Incoming {
    let work = Work::Document { ns: orders(), key: key(id), op, collection: Some(HERE) };
    Incoming { work, cluster_time: ClusterTime(time), wall_ms: now_ms() }
}

fn insert(id: i32, v: i32) -> Incoming {
    change_at(20, id, WriteOp::Insert(doc(id, v)))
}

fn replace(document: RawDocumentBuf) -> Incoming {
    let id = document.get_i32("_id").unwrap();
    change_at(20, id, WriteOp::Replace(document))
}

fn set_at(time: u64, id: i32, v: i32) -> Incoming {
    let delta = Delta::from_diff(&rawdoc! { "u": { "v": v } }).unwrap();
    change_at(time, id, WriteOp::Update(delta))
}

fn set(id: i32, v: i32) -> Incoming {
    set_at(20, id, v)
}

fn delete(id: i32) -> Incoming {
    change_at(20, id, WriteOp::Delete)
}

fn refresh(id: i32) -> Incoming {
    change_at(20, id, WriteOp::Refresh)
}

fn schema(change: SchemaChange) -> Incoming {
    Incoming { work: Work::Schema(change), cluster_time: ClusterTime(20), wall_ms: now_ms() }
}

/// A worker, its queue and both ends.
struct Scene {
    local: Arc<Local>,
    atlas: Arc<FakeSink>,
    queue: Arc<Queue>,
    status: Arc<Status>,
    reading: Arc<Reading>,
    writing: Arc<Writing>,
    gate: Arc<Gate>,
    in_doubt: Arc<Mutex<InDoubtWrites>>,
    worker: Arc<Worker<Local, FakeSink>>,
    started: Instant,
    dir: TempDir,
}

impl Scene {
    fn new() -> Self {
        Self::with(Self::options())
    }

    fn of(update_mode: UpdateMode) -> Self {
        Self::with(WorkerOptions { update_mode, ..Self::options() })
    }

    fn options() -> WorkerOptions {
        WorkerOptions {
            batch_size: 100,
            interval: Duration::ZERO,
            retries: RetrySchedule::new(vec![Duration::from_millis(1)], 2),
            update_mode: UpdateMode::Document,
            atlas_timeout: Duration::from_millis(10),
        }
    }

    fn with(options: WorkerOptions) -> Self {
        let dir = TempDir::new().unwrap();
        let queue = Queue::open(&QueueOptions::new(dir.path().join("queue"))).unwrap();
        let (queue, gate) = (Arc::new(queue), Arc::new(Gate::default()));
        let (open_for, open_for_max) = (Duration::from_secs(60), Duration::from_secs(60));
        let breaker = BreakerPolicy { failure_threshold: 2, open_for, open_for_max };
        let writing = Arc::new(Writing::new(gate.clone(), breaker));
        let (local, atlas): (Arc<Local>, Arc<FakeSink>) = Default::default();
        let (status, reading): (Arc<Status>, Arc<Reading>) = Default::default();
        let in_doubt: Arc<Mutex<InDoubtWrites>> = Arc::default();
        reading.end_reply(ClusterTime(25), ClusterTime(25));
        let shared = Shared {
            queue: queue.clone(),
            status: status.clone(),
            reading: reading.clone(),
            writing: writing.clone(),
            watermark: Arc::new(Mutex::new(ReadWatermark::new(ClusterTime(FLOOR), 100))),
            in_doubt: in_doubt.clone(),
            watch: Arc::new(SchemaWatch::default()),
            filter: NamespaceFilter::new(&[], &["shop.left_out".to_owned()]).unwrap(),
        };
        let worker = Arc::new(Worker::new(local.clone(), atlas.clone(), shared, options));
        let started = clock::now();
        Self { local, atlas, queue, status, reading, writing, gate, in_doubt, worker, started, dir }
    }

    /// These wait in the queue.
    fn queued<const N: usize>(self, changes: [Incoming; N]) -> Self {
        self.queue.commit(changes.into(), None).unwrap();
        self
    }

    fn local_has<const N: usize>(self, documents: [RawDocumentBuf; N]) -> Self {
        for document in documents {
            self.local.has(document);
        }
        self
    }

    fn atlas_has<const N: usize>(self, documents: [RawDocumentBuf; N]) -> Self {
        for document in documents {
            self.atlas.has(document);
        }
        self
    }

    /// One writer writes what can be written now.
    async fn drained(self) -> Self {
        self.drain().await;
        self
    }

    async fn drain(&self) {
        let stop = Stop::default();
        stop.drain.cancel();
        self.worker.run(&stop).await.unwrap();
    }

    /// The same until nothing waits.
    async fn until_nothing_waits(&self) {
        for _ in 0..1_000 {
            self.drain().await;
            if self.waiting() == 0 {
                return;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        panic!("{} entries still wait", self.waiting());
    }

    fn waiting(&self) -> u64 {
        self.queue.pending().0
    }
}

fn away() -> SinkError {
    SinkError::Unavailable("no server".to_owned())
}

#[tokio::test]
async fn each_kind_of_change_goes_as_what_it_is() {
    let changes = [insert(1, 1), replace(doc(2, 2)), delete(3)];

    let scene = Scene::new().atlas_has([doc(2, 0), doc(3, 0)]).queued(changes).drained().await;

    assert_eq!(scene.atlas.documents(), [doc(1, 1), doc(2, 2)]);
    assert_eq!(scene.atlas.written(), ["insert", "upsert", "delete"]);
    assert_eq!((scene.waiting(), scene.local.reads()), (0, 0));
    assert_eq!(scene.status.metrics.writes_applied.get(), 3);
}

#[tokio::test]
async fn an_insert_that_finds_its_document_is_sent_once_more_whole() {
    let scene = Scene::new().atlas_has([doc(1, 0)]).queued([insert(1, 1)]).drained().await;

    assert_eq!(scene.atlas.written(), ["insert", "upsert"]);
    assert_eq!((scene.atlas.documents(), scene.waiting()), (vec![doc(1, 1)], 0));
}

#[tokio::test]
async fn an_update_is_the_document_as_it_is_now() {
    let scene = Scene::new().local_has([doc(1, 9)]).queued([set(1, 5)]).drained().await;

    assert_eq!((scene.atlas.written(), scene.atlas.documents()), (vec!["upsert"], vec![doc(1, 9)]));
}

#[tokio::test]
async fn a_difference_goes_as_it_is_and_where_it_matches_nothing_the_document_is_read() {
    let scene = Scene::of(UpdateMode::Delta).local_has([doc(1, 5), doc(2, 6)]);

    let scene = scene.atlas_has([doc(1, 0)]).queued([set(1, 5), set(2, 6)]).drained().await;

    assert_eq!(scene.atlas.written(), ["change", "change", "upsert"]);
    assert_eq!((scene.local.reads(), scene.waiting()), (1, 0));
}

#[tokio::test]
async fn a_difference_that_atlas_may_have_already_is_not_sent_as_such() {
    let scene = Scene::of(UpdateMode::Delta).local_has([doc(1, 5)]).atlas_has([doc(1, 0)]);

    let scene = scene.queued([set_at(FLOOR, 1, 5)]).drained().await;

    assert_eq!((scene.atlas.written(), scene.atlas.documents()), (vec!["upsert"], vec![doc(1, 5)]));
}

#[tokio::test]
async fn of_a_document_that_is_gone_an_update_is_nothing_and_a_refresh_its_delete() {
    let scene = Scene::new().atlas_has([doc(1, 0), doc(2, 0)]);

    let scene = scene.queued([set(1, 5), refresh(2)]).drained().await;

    assert_eq!((scene.atlas.documents(), scene.waiting()), (vec![doc(1, 0)], 0));
}

#[tokio::test]
async fn without_the_local_database_differences_go_and_are_still_to_be_read() {
    let scene = Scene::new().atlas_has([doc(1, 0)]).queued([set(1, 5), refresh(2)]);
    scene.local.is_away(true);

    let scene = scene.drained().await;

    assert_eq!((scene.atlas.written(), scene.waiting()), (vec!["change"], 2));
    let entry = scene.queue.entry_of(&orders(), &key(1)).unwrap().unwrap();
    assert_eq!((entry.work.name(), entry.attempts), ("refresh", 0));
}

#[tokio::test]
async fn what_was_read_while_the_database_was_exchanged_is_not_written() {
    let scene = Scene::new().local_has([doc(1, 666)]).queued([refresh(1)]);
    scene.local.is_exchanged_by_the_next_read();

    let scene = scene.drained().await;

    assert_eq!((scene.local.reads(), scene.waiting()), (1, 1));
    assert!(scene.atlas.written().is_empty());
}

#[tokio::test]
async fn another_collection_of_the_name_is_not_written_and_the_stream_is_wanted() {
    let scene = Scene::new().local_has([doc(1, 666)]).queued([refresh(1)]);
    scene.local.is_another(CollectionId([2; 16]), 40);

    let scene = scene.drained().await;

    assert!(scene.atlas.written().is_empty() && scene.reading.is_wanted());
    assert_eq!((scene.waiting(), scene.local.reads()), (1, 1), "it is not read as another one's");
}

#[tokio::test]
async fn another_collection_whose_rename_never_came_is_read_once_the_stream_has_passed_it() {
    let scene = Scene::new().local_has([doc(1, 7)]).queued([refresh(1)]);
    scene.local.is_another(CollectionId([2; 16]), 40);
    // The look that shows it, and a read that began after that look.
    let scene = scene.drained().await;
    scene.reading.end_reply(ClusterTime(50), ClusterTime(50));

    scene.until_nothing_waits().await;

    assert_eq!(scene.atlas.documents(), [doc(1, 7)]);
}

#[tokio::test]
async fn a_command_that_is_refused_takes_no_innocent_document_with_it() {
    let scene = Scene::new().queued([insert(1, 1), insert(2, 2), insert(3, 3)]);
    scene.atlas.refuses_commands_with(2);

    scene.until_nothing_waits().await;

    assert_eq!(scene.atlas.documents(), [doc(1, 1), doc(3, 3)]);
    let letters = scene.queue.dead_letters(10).unwrap();
    assert_eq!(letters.len(), 1);
    // The first attempt, and as many as are configured.
    assert_eq!(scene.status.metrics.writes_failed.get(), 3);
    assert_eq!(scene.status.metrics.retries.get(), 2);
    assert_eq!(scene.status.metrics.writes_rejected.get(), 1);
}

#[tokio::test]
async fn an_outage_opens_the_breaker_once_and_costs_no_attempt() {
    let scene = Scene::new().queued([insert(1, 1)]);
    scene.atlas.fails_with(away());

    let scene = scene.drained().await;

    assert_eq!(scene.writing.against().breaker, Stage::Open);
    assert_eq!(scene.status.metrics.breaker_openings.get(), 1);
    assert!(scene.status.faults.atlas.get().is_some_and(|fault| !fault.is_denied));
    let entry = scene.queue.entry_of(&orders(), &key(1)).unwrap().unwrap();
    assert_eq!((entry.attempts, scene.queue.dead_letters_len()), (0, 0));
}

#[tokio::test]
async fn a_refusal_of_access_opens_the_breaker_with_the_first_answer() {
    let scene = Scene::new().queued([insert(1, 1)]);
    scene.atlas.fails_with(SinkError::Denied("no such user".to_owned()));

    let scene = scene.drained().await;

    assert_eq!(scene.writing.against().breaker, Stage::Open);
    assert!(scene.status.faults.atlas.get().is_some_and(|fault| fault.is_denied));
    assert_eq!((scene.atlas.commands(scene.started).len(), scene.waiting()), (1, 1));
}

#[tokio::test]
async fn a_write_without_an_answer_is_written_once_more_after_the_next_answer() {
    let scene = Scene::new().queued([insert(1, 1)]);
    scene.atlas.fails_with(SinkError::Unanswered("timeout".to_owned()));
    // Below the breaker's threshold: the second attempt is answered.
    let (worker, atlas) = (&scene.worker, &scene.atlas);
    let entries = scene.queue.lease(1, usize::MAX, now_ms()).unwrap().entries;
    worker.write(entries, crate::policy::breaker::Admission::Proceed).await.unwrap();
    atlas.fails_with(None);

    scene.until_nothing_waits().await;

    let soon = Instant::now() + Duration::from_secs(11);
    assert_eq!(scene.in_doubt.lock().due(soon).documents, [(orders(), vec![key(1)])]);
}

#[tokio::test]
async fn nothing_is_written_while_writing_rests() {
    let scene = Scene::new().queued([insert(1, 1)]);
    let process = bson::oid::ObjectId::from_bytes([1; 12]);

    scene.writing.pause(Some(Pause::default()));
    scene.drain().await;
    scene.writing.pause(None);
    scene.gate.refuted(Finding::OtherPast);
    scene.drain().await;
    assert!(scene.gate.proved(scene.gate.begin_proof(), process));
    scene.writing.lease().end();
    scene.drain().await;
    assert_eq!((scene.waiting(), scene.atlas.written().len()), (1, 0));

    scene.writing.lease().renew(BootTime::now());
    scene.drain().await;
    assert_eq!((scene.waiting(), scene.atlas.documents()), (0, vec![doc(1, 1)]));
}

#[tokio::test]
async fn two_documents_that_swap_a_unique_value_both_arrive() {
    let held = |id: i32, u: &str| rawdoc! { "_id": id, "u": u };
    let scene = Scene::new().local_has([held(1, "b"), held(2, "a")]);

    let scene = scene.atlas_has([held(1, "a"), held(2, "b")]);
    let scene = scene.queued([replace(held(1, "b")), replace(held(2, "a"))]);
    scene.until_nothing_waits().await;

    assert_eq!(scene.atlas.documents(), [held(1, "b"), held(2, "a")]);
    assert_eq!(scene.queue.dead_letters_len(), 0);
}

#[tokio::test]
async fn a_value_that_the_local_database_has_twice_becomes_a_dead_letter_that_says_so() {
    let held = |id: i32| rawdoc! { "_id": id, "u": "x" };
    let scene = Scene::new().local_has([held(1), held(2)]).atlas_has([held(2)]);

    let scene = scene.queued([replace(held(1))]);
    scene.until_nothing_waits().await;

    let letters: Vec<_> = scene.queue.letters().map(Result::unwrap).collect();
    assert_eq!(letters.len(), 1);
    assert!(letters[0].reason.contains("has both documents"), "{}", letters[0].reason);
    assert_eq!(scene.atlas.documents(), [held(2)]);
}

#[tokio::test]
async fn a_change_of_a_collection_is_on_the_disk_before_it_is_made() {
    let scene = Scene::new().queued([insert(1, 1), rename()]);
    let (folder, seen) = (scene.dir.path().join("queue"), Arc::new(Mutex::new(Vec::new())));
    let told = seen.clone();
    scene.atlas.while_it_changes(move || {
        let left = after_a_crash(&folder);
        let queue = Queue::open(&QueueOptions::new(left.path().to_owned())).unwrap();
        told.lock().push(queue.pending().0);
    });

    scene.until_nothing_waits().await;

    // A power cut then leaves the change itself, and so what it moved is known to the next start.
    assert_eq!(*seen.lock(), [1]);
}

#[tokio::test]
async fn a_view_that_atlas_does_not_take_keeps_nothing_back() {
    let options = rawdoc! { "viewOn": "orders", "pipeline": [] };
    let create = schema(SchemaChange::Create { ns: Namespace::new("shop", "view"), options });
    let scene = Scene::new().queued([create]);
    scene.atlas.answers_a_change_with(Err(SinkError::Rejected("no such stage".to_owned())));

    let scene = scene.drained().await;

    assert_eq!((scene.waiting(), scene.queue.dead_letters_len()), (0, 0));
    assert_eq!(scene.worker.watch.all_listed().len(), 1);
}

fn rename() -> Incoming {
    let to = Namespace::new("shop", "next");
    schema(SchemaChange::Rename { from: orders(), to, drop_target: false })
}

#[tokio::test]
async fn what_is_not_there_to_be_renamed_has_its_new_name_compared() {
    let scene = Scene::new().queued([rename()]);
    scene.atlas.answers_a_change_with(Ok(Changed::WasNotThere));

    let scene = scene.drained().await;

    assert_eq!((scene.atlas.changes(), scene.waiting()), (vec!["rename"], 0));
    let open = SyncState::resume(&scene.queue).unwrap().unwrap();
    assert_eq!(open.only, BTreeSet::from([Namespace::new("shop", "next")]));
}

#[tokio::test]
async fn where_nobody_tells_that_collections_are_made_it_was_empty_and_what_has_the_name_goes() {
    let scene = Scene::new().queued([rename()]);
    scene.local.tells_nothing_of_schema();
    scene.atlas.answers_a_change_with(Ok(Changed::WasNotThere));

    let scene = scene.drained().await;

    assert_eq!(scene.atlas.changes(), ["rename", "drop"]);
    assert!(!SyncState::is_owed(&scene.queue).unwrap());
}
