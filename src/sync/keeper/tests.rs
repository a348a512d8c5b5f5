//! The keeper between two sides in memory, whose hours pass in milliseconds: when it looks, what it alters, and what it
//! leaves alone.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bson::{RawDocumentBuf, rawdoc};
use tempfile::TempDir;
use tokio::task::JoinHandle;

use super::{Context, DeleteLimit, SchemaKeeper};
use crate::{
    gate::{pause::Pause, reading::Reading, writing::Writing},
    model::{
        checkpoint::ClusterTime, document_key::DocumentKey, event::SchemaChange,
        namespace::Namespace, write_op::WriteOp,
    },
    policy::breaker::BreakerPolicy,
    queue::{Incoming, Queue, QueueOptions, Work},
    runtime::{
        clock::{self, now_ms},
        shutdown::Stop,
    },
    schema::{Problem, watch::SchemaWatch},
    side::fake_schema::{FakeSchemas, index, unaltered},
    sink::fake::FakeSink,
    sync::{
        SyncError,
        sides::Sides,
        state::{Reason, SyncState},
    },
};

mod left_alone;

const SECOND: Duration = Duration::from_secs(1);

/// What the local database is at, and the stream has come to.
const NOW: u64 = 50;

fn orders() -> Namespace {
    Namespace::new("shop", "orders")
}

/// A keeper between two databases.
struct Scene {
    local: Arc<FakeSchemas>,
    atlas: Arc<FakeSchemas>,
    sink: Arc<FakeSink>,
    queue: Arc<Queue>,
    reading: Arc<Reading>,
    writing: Arc<Writing>,
    watch: Arc<SchemaWatch>,
    cx: Arc<Context<FakeSink>>,
    started: Instant,
    stop: Stop,
    _dir: TempDir,
}

/// The agent may write, and the stream has come as far as the database is.
fn scene() -> Scene {
    let dir = TempDir::new().unwrap();
    let queue = Arc::new(Queue::open(&QueueOptions::new(dir.path().join("queue"))).unwrap());
    let (local, atlas) = (Arc::new(FakeSchemas::at(NOW)), Arc::new(FakeSchemas::at(NOW)));
    let breaker = BreakerPolicy { failure_threshold: 1, open_for: SECOND, open_for_max: SECOND };
    let writing = Arc::new(Writing::new(local.gate.clone(), breaker));
    writing.acquired();
    let reading: Arc<Reading> = Arc::default();
    reading.end_reply(ClusterTime(NOW), ClusterTime(NOW));
    let sides = Sides::new(local.clone(), atlas.clone(), 4, 0);
    let sink: Arc<FakeSink> = Arc::default();
    let cx = Context::between(sides, sink.clone(), queue.clone(), reading.clone(), writing.clone());
    let watch = cx.watch.clone();
    let cx = Arc::new(cx);
    let (started, stop) = (clock::now(), Stop::default());
    Scene { local, atlas, sink, queue, reading, writing, watch, cx, started, stop, _dir: dir }
}

impl Scene {
    /// Both have the collection, with these indexes each.
    fn orders_with(self, local: &[RawDocumentBuf], atlas: &[RawDocumentBuf]) -> Self {
        self.local.has(&orders(), local);
        self.atlas.has(&orders(), atlas);
        self
    }

    fn kept(&self) -> JoinHandle<Result<(), SyncError>> {
        self.kept_where(true)
    }

    fn kept_where(&self, tells_of_schema: bool) -> JoinHandle<Result<(), SyncError>> {
        let keeper = SchemaKeeper::new(self.cx.clone(), DeleteLimit::new(0.5), tells_of_schema);
        let stop = self.stop.clone();
        tokio::spawn(async move { keeper.keep(&stop).await })
    }

    /// Until so long after the start.
    async fn until(&self, seconds: u64) {
        clock::until(self.started, seconds).await;
    }

    /// The seconds in which Atlas was sent a command.
    fn tries(&self) -> Vec<u64> {
        self.atlas.commands(self.started).into_iter().map(|(at, _)| at).collect()
    }

    fn commands(&self) -> Vec<String> {
        self.atlas.commands(self.started).into_iter().map(|(_, command)| command).collect()
    }

    fn looks_at_everything(&self) -> Vec<u64> {
        self.local.listings(self.started)
    }

    fn problems(&self) -> usize {
        self.watch.all_listed().len()
    }

    /// The changes of collections that wait in the queue.
    fn queued(&self) -> Vec<SchemaChange> {
        let batch = self.queue.lease(100, 1 << 20, now_ms()).unwrap();
        let changes = batch.entries.into_iter().filter_map(|entry| match entry.work {
            Work::Schema(change) => Some(change),
            Work::Document { .. } => None,
        });
        changes.collect()
    }
}

#[tokio::test(start_paused = true)]
async fn an_index_that_is_missing_is_built_and_everything_is_looked_at_every_ten_minutes() {
    let scene = scene().orders_with(&[index("a"), index("b")], &[index("b")]);
    scene.kept();

    scene.until(1).await;
    assert_eq!(scene.commands(), ["createIndexes a"]);
    assert_eq!(scene.atlas.indexes(&orders()), ["b", "a"]);
    assert_eq!((scene.problems(), scene.watch.is_building()), (0, false));
    scene.until(2_000).await;
    assert_eq!(scene.looks_at_everything(), [0, 600, 1_200, 1_800]);
    assert_eq!(scene.commands().len(), 1, "nothing differs any more");
}

#[tokio::test(start_paused = true)]
async fn where_no_event_tells_of_indexes_everything_is_looked_at_each_half_minute() {
    let scene = scene().orders_with(&[], &[]);
    scene.kept_where(false);

    scene.until(45).await;
    scene.local.has(&orders(), &[index("a")]);
    scene.until(100).await;
    assert_eq!(scene.looks_at_everything(), [0, 30, 60, 90]);
    assert_eq!(scene.atlas.commands(scene.started), [(60, "createIndexes a".to_owned())]);
}

#[tokio::test(start_paused = true)]
async fn what_atlas_refuses_is_listed_and_tried_ever_more_rarely_until_it_is_made() {
    let scene = scene().orders_with(&[index("a")], &[]);
    scene.atlas.answers_with((0..4).map(|_| unaltered("too many indexes", false)));
    scene.kept();

    scene.until(1).await;
    let listed = scene.watch.listed(&orders());
    assert_eq!(listed.len(), 1);
    assert!(listed[0].to_string().contains("too many indexes"), "{listed:?}");
    assert!(!scene.watch.is_building(), "nobody waits for what is refused");
    scene.until(74).await;
    assert_eq!((scene.tries(), scene.problems()), (vec![0, 5, 15, 35], 1));
    scene.until(75).await;
    assert_eq!((scene.tries().last(), scene.problems()), (Some(&75), 0));
}

#[tokio::test(start_paused = true)]
async fn one_index_that_is_refused_keeps_none_of_the_others_away() {
    let scene = scene().orders_with(&[index("a"), index("b"), index("c")], &[]);
    // All at once, and then the first alone.
    scene.atlas.answers_with((0..2).map(|_| unaltered("duplicates", false)));
    scene.kept();

    scene.until(1).await;
    assert_eq!(scene.atlas.indexes(&orders()), ["b", "c"]);
    assert_eq!(scene.watch.listed(&orders()).len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_server_that_does_not_know_how_to_name_a_collection_by_its_id_builds_without() {
    let scene = scene().orders_with(&[index("a")], &[]);
    scene.atlas.answers_with([unaltered("BSON field 'collectionUUID' is an unknown field", false)]);
    scene.kept();

    scene.until(1).await;

    assert_eq!((scene.tries(), scene.atlas.indexes(&orders())), (vec![0, 0], vec!["a".to_owned()]));
    assert_eq!(scene.problems(), 0);
}

#[tokio::test(start_paused = true)]
async fn while_atlas_is_away_nothing_is_listed_and_it_is_asked_each_second() {
    let scene = scene().orders_with(&[index("a")], &[]);
    scene.atlas.answers_with((0..3).map(|_| unaltered("no primary", true)));
    scene.kept();

    scene.until(2).await;
    assert_eq!((scene.tries(), scene.problems()), (vec![0, 1, 2], 0));
    assert!(scene.watch.is_building(), "and it is still to be made");
    scene.until(3).await;
    assert_eq!(scene.atlas.indexes(&orders()), ["a"]);
}

#[tokio::test(start_paused = true)]
async fn a_command_for_which_atlas_is_away_again_and_again_is_a_problem() {
    let scene = scene().orders_with(&[index("a")], &[]);
    scene.atlas.answers_with((0..100).map(|_| unaltered("the disk is full", true)));
    scene.kept();

    scene.until(9).await;
    assert_eq!(scene.problems(), 0);
    scene.until(11).await;
    assert!(scene.watch.listed(&orders())[0].to_string().contains("the disk is full"));
    assert!(scene.tries().len() <= 12);
}

#[tokio::test(start_paused = true)]
async fn nothing_is_looked_at_while_nothing_may_be_written_and_at_once_behind_it() {
    let scene = scene().orders_with(&[index("a")], &[]);
    scene.writing.pause(Some(Pause::default()));
    scene.kept();

    scene.until(300).await;
    assert_eq!((scene.looks_at_everything(), scene.tries()), (vec![], vec![]));
    scene.writing.pause(None);
    scene.until(302).await;
    assert_eq!(scene.atlas.indexes(&orders()), ["a"]);
}

#[tokio::test(start_paused = true)]
async fn nothing_is_altered_while_the_breaker_is_open() {
    let scene = scene().orders_with(&[index("a")], &[]);
    scene.writing.breaker().failed(clock::now(), 0.5);
    scene.kept();

    scene.until(60).await;
    assert_eq!(scene.tries(), [0; 0]);
    scene.writing.breaker().permit(clock::now());
    scene.writing.breaker().succeeded();
    scene.until(62).await;
    assert_eq!(scene.atlas.indexes(&orders()), ["a"]);
}

#[tokio::test(start_paused = true)]
async fn what_the_stream_has_not_come_to_is_waited_for() {
    let scene = scene().orders_with(&[index("a")], &[]);
    scene.local.is_at(NOW + 1);
    scene.kept();

    scene.until(60).await;
    assert_eq!(scene.tries(), [0; 0], "the name may mean another collection by now");
    assert_eq!(scene.looks_at_everything()[..3], [0, 11, 22], "ten seconds at a time");
    scene.reading.end_reply(ClusterTime(NOW + 1), ClusterTime(NOW + 1));
    scene.until(72).await;
    assert_eq!(scene.atlas.indexes(&orders()), ["a"]);
}

#[tokio::test(start_paused = true)]
async fn nothing_is_altered_on_the_word_of_a_database_that_was_exchanged_meanwhile() {
    let scene = scene().orders_with(&[index("a"), index("b")], &[]);
    let gate = scene.local.gate.clone();
    scene.atlas.while_it_alters(move || gate.close(&gate.permit(), "another process answers"));
    // So that each is tried alone.
    scene.atlas.answers_with([unaltered("duplicates", false)]);
    scene.kept();

    scene.until(60).await;
    assert_eq!(scene.commands(), ["createIndexes a b"], "what was under way, and no other");
    let gate = &scene.local.gate;
    scene.local.has(&orders(), &[index("b")]);
    gate.proved(gate.begin_proof(), bson::oid::ObjectId::from_bytes([2; 12]));
    scene.until(65).await;
    assert_eq!(scene.atlas.indexes(&orders()), ["b"]);
}

#[tokio::test(start_paused = true)]
async fn what_changes_while_an_index_is_built_is_looked_at_again() {
    let scene = scene().orders_with(&[index("a")], &[]);
    let local = scene.local.clone();
    scene.atlas.while_it_alters(move || local.has(&orders(), &[index("a"), index("b")]));
    scene.kept();

    scene.until(2).await;
    assert_eq!(scene.commands(), ["createIndexes a", "createIndexes b"]);
}

#[tokio::test(start_paused = true)]
async fn how_far_a_build_is_is_shown_and_nobody_waits_for_its_end_who_is_told_to_stop() {
    let scene = scene().orders_with(&[index("a")], &[]);
    scene.atlas.builds_take(3_600 * SECOND);
    let kept = scene.kept();

    scene.until(1).await;
    let build = |scene: &Scene| scene.watch.builds().get(&orders()).cloned();
    assert_eq!(build(&scene).unwrap().indexes, ["a"]);
    assert_eq!(build(&scene).unwrap().percent, None);
    scene.until(3).await;
    assert_eq!(build(&scene).unwrap().percent, Some(40));
    scene.stop.drain.cancel();
    assert!(matches!(kept.await.unwrap(), Err(SyncError::Stopped)));
    assert!(clock::since(scene.started) < 5 * SECOND);
}

#[tokio::test(start_paused = true)]
async fn a_look_at_another_collection_does_not_wait_for_a_build() {
    let (scene, others) = (scene().orders_with(&[index("a")], &[]), Namespace::new("shop", "z"));
    scene.atlas.builds_take(3_600 * SECOND);
    scene.kept();

    scene.until(10).await;
    scene.local.has(&others, &[]);
    scene.atlas.has(&others, &[index("old")]);
    scene.watch.ask(&others);
    scene.until(11).await;
    assert_eq!(scene.commands(), ["createIndexes a", "dropIndexes"]);
    assert!(scene.watch.is_building());
    scene.until(3_601).await;
    assert_eq!(
        (scene.atlas.indexes(&orders()), scene.watch.is_building()),
        (vec!["a".into()], false)
    );
}

#[tokio::test(start_paused = true)]
async fn an_index_is_made_unique_when_no_document_has_come_that_it_had_to_let_in() {
    let prepared = rawdoc! { "v": 2, "key": { "a": 1 }, "name": "a", "prepareUnique": true };
    let scene = scene().orders_with(&[prepared], &[index("a")]);
    // What is short is the worker's else.
    SyncState::require(&scene.queue, ClusterTime(1), Reason::FirstCopy).unwrap();
    scene.watch.loosened(&orders(), clock::now());
    scene.kept();

    scene.until(9).await;
    assert_eq!(scene.commands(), [""; 0]);
    scene.until(12).await;
    let made = scene.atlas.commands(scene.started);
    assert!(made.first().is_some_and(|(at, _)| (10..=11).contains(at)), "{made:?}");
    assert_eq!(made[0].1, "collMod prepareUnique");
}

#[tokio::test(start_paused = true)]
async fn a_collection_that_is_missing_is_made_by_the_worker_in_its_turn_and_named_until_then() {
    let scene = scene();
    scene.local.has(&orders(), &[index("a")]);
    scene.kept();

    scene.until(1).await;
    assert_eq!(scene.commands(), [""; 0]);
    let queued = scene.queued();
    assert!(
        matches!(&queued[..], [SchemaChange::Reconcile { ns, .. }] if *ns == orders()),
        "{queued:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn what_the_worker_was_refused_is_queued_once_more_and_not_while_it_waits() {
    let scene = scene();
    scene.local.has(&orders(), &[]);
    let problem = Problem::refused("the collection is missing in Atlas", "no room for it");
    scene.watch.list(&orders(), vec![problem.clone()]);
    scene.watch.ask(&orders());
    scene.kept();

    scene.until(1).await;
    assert_eq!(scene.watch.listed(&orders()), [problem], "in Atlas' words");
    assert_eq!(scene.queued().len(), 0, "the worker has just been refused");
    scene.until(6).await;
    assert_eq!(scene.queued().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_view_that_atlas_alone_has_goes_in_its_turn() {
    let (scene, view) = (scene().orders_with(&[], &[]), Namespace::new("shop", "view"));
    scene.atlas.has_view(&view);
    scene.kept();

    scene.until(1).await;
    let queued = scene.queued();
    assert!(matches!(&queued[..], [SchemaChange::DropIfGone { ns }] if *ns == view), "{queued:?}");
    // Until it has gone.
    scene.until(700).await;
    assert_eq!(scene.queued().len(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_database_that_is_empty_in_atlas_goes_when_nothing_waits_for_it() {
    let scene = scene().orders_with(&[], &[]);
    for db in ["gone", "busy", "shop"] {
        scene.atlas.has_emptied(db);
    }
    let (key, collection) = (DocumentKey::of(&rawdoc! { "_id": 1 }).unwrap(), None);
    let (ns, op) = (Namespace::new("busy", "orders"), WriteOp::Refresh);
    let work = Work::Document { ns, key, op, collection };
    let incoming = Incoming { work, cluster_time: ClusterTime(1), wall_ms: now_ms() };
    scene.queue.commit(vec![incoming], None).unwrap();
    scene.kept();

    scene.until(1).await;
    assert_eq!(scene.sink.dropped(), ["gone"]);
}

#[tokio::test(start_paused = true)]
async fn a_database_that_atlas_will_not_drop_stays_and_hinders_nothing() {
    let scene = scene().orders_with(&[index("a")], &[]);
    scene.atlas.has_emptied("gone");
    scene.sink.fails_with(crate::sink::SinkError::Rejected("somebody is in it".to_owned()));
    scene.kept();

    scene.until(1).await;
    assert_eq!(scene.atlas.indexes(&orders()), ["a"]);
}

#[tokio::test(start_paused = true)]
async fn a_full_sync_that_is_owed_compares_the_same_and_comes_first() {
    let scene = scene().orders_with(&[index("a")], &[]);
    SyncState::require(&scene.queue, ClusterTime(1), Reason::FirstCopy).unwrap();
    scene.kept();

    scene.until(60).await;
    assert_eq!((scene.looks_at_everything(), scene.tries()), (vec![], vec![]));
    // What the worker hands over meanwhile is looked at all the same.
    scene.watch.ask(&orders());
    scene.until(61).await;
    assert_eq!(scene.atlas.indexes(&orders()), ["a"]);
}

#[tokio::test(start_paused = true)]
async fn a_privilege_that_is_missing_is_listed_and_asked_for_again() {
    let scene = scene().orders_with(&[index("a")], &[]);
    scene.local.is_denied(true);
    scene.watch.ask(&orders());
    scene.kept();

    scene.until(1).await;
    assert!(scene.watch.listed(&orders())[0].to_string().contains("refuses access"));
    scene.local.is_denied(false);
    scene.until(6).await;
    assert_eq!((scene.problems(), scene.atlas.indexes(&orders())), (0, vec!["a".to_owned()]));
}

#[tokio::test(start_paused = true)]
async fn two_collections_are_looked_at_at_a_time_and_the_third_when_one_of_them_is_done() {
    let scene = scene();
    for name in ["a", "b", "c"] {
        let ns = Namespace::new("shop", name);
        scene.local.has(&ns, &[index(name)]);
        scene.atlas.has(&ns, &[]);
    }
    scene.atlas.builds_take(60 * SECOND);
    scene.kept();

    scene.until(59).await;
    assert_eq!(scene.tries(), [0, 0]);
    scene.until(121).await;
    assert_eq!((scene.tries(), scene.watch.is_building()), (vec![0, 0, 60], false));
}

#[tokio::test(start_paused = true)]
async fn what_somebody_asks_for_is_looked_at_at_once_though_it_was_refused() {
    let scene = scene().orders_with(&[index("a")], &[]);
    scene.atlas.answers_with((0..20).map(|_| unaltered("duplicates", false)));
    scene.kept();

    scene.until(100).await;
    let before = scene.tries();
    assert_eq!(before, [0, 5, 15, 35, 75]);
    scene.watch.ask(&orders());
    scene.until(101).await;
    assert_eq!(scene.tries().len(), before.len() + 1);
}
