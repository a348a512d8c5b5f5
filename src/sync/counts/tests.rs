//! When a difference in numbers is believed, and how rarely documents are counted for it.

use bson::rawdoc;
use tempfile::TempDir;
use tokio::task::JoinHandle;

use super::*;
use crate::{
    gate::{pause::Pause, reading::Reading, writing::Writing},
    model::{
        checkpoint::ClusterTime,
        document_key::DocumentKey,
        event::SchemaChange,
        write_op::{Refusal, WriteOp},
    },
    observe::status::Figures,
    queue::{Ack, Incoming, Outcome, Queue, QueueOptions, Work},
    side::fake_schema::{FakeSchemas, index},
    sink::fake::FakeSink,
};

mod expiring;

const SECOND: Duration = Duration::from_secs(1);

/// What the local database is at, and the stream has come to.
const NOW: u64 = 50;

/// By when a difference has been looked at often enough: ten seconds after the start, and six times a quarter of a minute.
const BELIEVED: u64 = 10 + 5 * 15;

fn orders() -> Namespace {
    Namespace::new("shop", "orders")
}

struct Scene {
    local: Arc<FakeSchemas>,
    atlas: Arc<FakeSchemas>,
    queue: Arc<Queue>,
    reading: Arc<Reading>,
    writing: Arc<Writing>,
    cx: Arc<Context<FakeSink>>,
    started: Instant,
    stop: Stop,
    _dir: TempDir,
}

/// Both sides have one collection, with so many documents by their estimates and when they are counted.
fn scene(local: u64, atlas: u64) -> Scene {
    let dir = TempDir::new().unwrap();
    let queue = Arc::new(Queue::open(&QueueOptions::new(dir.path().join("queue"))).unwrap());
    let (here, there) = (Arc::new(FakeSchemas::at(NOW)), Arc::new(FakeSchemas::at(NOW)));
    for (side, documents) in [(&here, local), (&there, atlas)] {
        side.has(&orders(), &[]);
        side.has_documents(documents);
        side.is_counted(move |_| Some(documents));
    }
    let writing: Arc<Writing> = Arc::default();
    writing.acquired();
    let reading: Arc<Reading> = Arc::default();
    reading.end_reply(ClusterTime(NOW), ClusterTime(NOW));
    let sides = Sides::new(here.clone(), there.clone(), 4, 0);
    let (of_queue, of_reading) = (queue.clone(), reading.clone());
    let cx = Context::between(sides, Arc::default(), of_queue, of_reading, writing.clone());
    let (cx, started, stop) = (Arc::new(cx), clock::now(), Stop::default());
    Scene { local: here, atlas: there, queue, reading, writing, cx, started, stop, _dir: dir }
}

impl Scene {
    /// Counts every so many seconds.
    fn counts_every(&self, seconds: u64) -> JoinHandle<Result<(), SyncError>> {
        let check = CountCheck::new(self.cx.clone(), SECOND * seconds as u32);
        let stop = self.stop.clone();
        tokio::spawn(async move { check.keep(&stop).await })
    }

    async fn until(&self, seconds: u64) {
        clock::until(self.started, seconds).await;
    }

    /// What is told, of each collection the numbers.
    fn told(&self) -> Vec<(u64, u64, Counted)> {
        let divergences = self.cx.status.state().divergences.clone();
        assert!(divergences.iter().all(|of| of.ns == "shop.orders"));
        divergences.into_iter().map(|of| (of.local, of.atlas, of.counted)).collect()
    }

    /// So many documents wait.
    fn waits(&self, documents: i32) {
        let incoming = (0..documents).map(|id| {
            let key = DocumentKey::of(&rawdoc! { "_id": id }).unwrap();
            let (ns, op) = (orders(), WriteOp::Refresh);
            let work = Work::Document { ns, key, op, collection: None };
            Incoming { work, cluster_time: ClusterTime(NOW), wall_ms: now_ms() }
        });
        self.queue.commit(incoming.collect(), None).unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn documents_that_are_missing_for_more_than_a_minute_are_told_once_they_were_counted() {
    let scene = scene(10, 4);
    let running = scene.counts_every(3_600);

    scene.until(9).await;
    assert_eq!(scene.local.listings(scene.started), [0; 0]);
    scene.until(11).await;
    let figures = scene.cx.status.state().namespaces[&orders()];
    assert_eq!((figures.local_documents, figures.atlas_documents), (Some(10), Some(4)));
    assert!(figures.counted_ms > 0);
    scene.until(BELIEVED - 1).await;
    assert_eq!((scene.told(), scene.atlas.counts()), (vec![], 0));
    scene.until(BELIEVED).await;
    assert_eq!(scene.told(), [(10, 4, Counted::All)]);
    assert_eq!((scene.local.counts(), scene.atlas.counts()), (2, 1));

    scene.stop.drain.cancel();
    assert!(matches!(running.await.unwrap(), Err(SyncError::Stopped)));
}

#[tokio::test(start_paused = true)]
async fn a_difference_that_goes_by_itself_is_never_told_nor_counted() {
    let scene = scene(10, 4);
    scene.counts_every(3_600);

    scene.until(60).await;
    scene.atlas.has_documents(10);
    scene.until(3_000).await;

    assert_eq!((scene.told(), scene.atlas.counts()), (vec![], 0));
}

#[tokio::test(start_paused = true)]
async fn what_was_found_is_counted_again_after_an_hour_or_a_sync_and_is_over_once_it_is_mended() {
    let scene = scene(10, 4);
    scene.counts_every(600);

    scene.until(3_500).await;
    assert_eq!((scene.told().len(), scene.atlas.counts()), (1, 1), "nothing has changed");
    scene.until(4_500).await;
    assert_eq!((scene.told().len(), scene.atlas.counts()), (1, 2), "an hour later");
    scene.cx.in_hand.begins("a sync");
    scene.cx.in_hand.ended();
    scene.until(5_200).await;
    assert_eq!((scene.told().len(), scene.atlas.counts()), (1, 3), "it may be mended");
    scene.atlas.has_documents(5);
    scene.until(6_000).await;
    assert_eq!((scene.told().len(), scene.atlas.counts()), (1, 4), "it is another difference");

    scene.atlas.has_documents(10);
    scene.until(6_700).await;
    assert_eq!((scene.told(), scene.atlas.counts()), (vec![], 4));
}

#[tokio::test(start_paused = true)]
async fn an_estimate_that_is_off_is_counted_once_and_counts_as_it_is_from_then_on() {
    let scene = scene(10, 4);
    scene.atlas.is_counted(|_| Some(10));
    scene.counts_every(600);

    scene.until(10_000).await;
    assert_eq!((scene.told(), scene.atlas.counts()), (vec![], 1));
    scene.atlas.has_documents(3);
    scene.atlas.is_counted(|_| Some(9));
    scene.until(11_000).await;
    assert_eq!((scene.told(), scene.atlas.counts()), (vec![(10, 9, Counted::All)], 2));
    // As a server's does that is right again: what was known of it before counts no longer.
    scene.atlas.is_counted(|_| Some(10));
    scene.atlas.has_documents(4);
    scene.until(12_000).await;
    assert_eq!((scene.told(), scene.atlas.counts()), (vec![], 3));
}

#[tokio::test(start_paused = true)]
async fn estimates_that_are_off_on_both_sides_are_counted_once() {
    let scene = scene(12, 4);
    scene.local.is_counted(|_| Some(10));
    scene.atlas.is_counted(|_| Some(10));
    scene.counts_every(600);

    scene.until(20_000).await;

    assert_eq!((scene.told(), scene.atlas.counts()), (vec![], 1));
}

#[tokio::test(start_paused = true)]
async fn an_estimate_is_not_taken_for_off_while_something_waits() {
    let scene = scene(10, 4);
    scene.waits(1);
    scene.atlas.is_counted(|_| Some(10));
    scene.counts_every(600);
    scene.until(700).await;
    scene.atlas.is_counted(|_| Some(4));

    scene.until(4_200).await;

    assert_eq!((scene.told(), scene.atlas.counts()), (vec![(10, 4, Counted::All)], 2));
}

#[tokio::test(start_paused = true)]
async fn what_waits_or_was_rejected_explains_as_many_documents() {
    let scene = scene(10, 4);
    scene.waits(6);
    let rejected = |entry: &crate::queue::Entry| Ack {
        seq: entry.seq,
        version: entry.version,
        outcome: Outcome::Rejected {
            reason: "it is too large".to_owned(),
            refusal: Refusal::TooLarge,
            now_ms: now_ms(),
        },
    };
    let batch = scene.queue.lease(3, 1 << 20, now_ms()).unwrap();
    scene.queue.ack(&batch.entries.iter().map(rejected).collect::<Vec<_>>()).unwrap();
    scene.counts_every(600);

    scene.until(650).await;
    assert_eq!((scene.told(), scene.atlas.counts()), (vec![], 0));
    scene.atlas.has_documents(3);
    scene.until(2_000).await;
    assert_eq!(scene.atlas.counts(), 1, "one more than these");
    assert_eq!(scene.told(), vec![], "which the exact count does not confirm");
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_counted_in_time_is_told_by_the_estimates() {
    let scene = scene(1_000_000, 4);
    scene.atlas.is_counted(|_| None);
    scene.counts_every(600);

    scene.until(100).await;

    assert_eq!(scene.told(), [(1_000_000, 4, Counted::Estimated)]);
}

#[tokio::test(start_paused = true)]
async fn capped_collections_and_those_with_a_change_that_waits_are_left_out() {
    let capped: fn(&Scene) = |scene| scene.local.has_capped(&orders());
    let changed: fn(&Scene) = |scene| {
        let change = SchemaChange::Drop { ns: orders() };
        let (work, cluster_time) = (Work::Schema(change), ClusterTime(NOW));
        let incoming = Incoming { work, cluster_time, wall_ms: now_ms() };
        scene.queue.commit(vec![incoming], None).unwrap();
    };
    for why in [capped, changed] {
        let scene = scene(10, 4);
        why(&scene);
        scene.counts_every(600);

        scene.until(2_000).await;

        assert_eq!((scene.told(), scene.atlas.counts()), (vec![], 0));
        assert!(scene.local.listings(scene.started).len() > 2);
    }
}

#[tokio::test(start_paused = true)]
async fn nothing_is_counted_while_the_sides_are_on_their_way_or_nobody_could_tell() {
    type Change = fn(&Scene);
    let conditions: [(Change, Change); 4] = [
        (|of| of.writing.pause(Some(Pause::default())), |of| of.writing.pause(None)),
        (|of| of.cx.in_hand.begins("a sync"), |of| of.cx.in_hand.ended()),
        (|of| assert!(of.reading.stop("a person")), |of| assert!(of.reading.go_on())),
        (|of| of.local.is_denied(true), |of| of.local.is_denied(false)),
    ];
    for (begin, end) in conditions {
        let scene = scene(10, 4);
        begin(&scene);
        scene.counts_every(600);
        scene.until(1_500).await;
        assert_eq!((scene.told(), scene.atlas.counts()), (vec![], 0));

        end(&scene);
        scene.until(2_600).await;
        assert_eq!(scene.told(), [(10, 4, Counted::All)]);
    }
}

#[tokio::test(start_paused = true)]
async fn an_agent_without_its_lease_or_told_not_to_counts_nothing() {
    let scene = scene(10, 4);
    scene.counts_every(0);
    let cx = Context::between(
        Sides::new(scene.local.clone(), scene.atlas.clone(), 4, 0),
        Arc::new(FakeSink::default()),
        scene.queue.clone(),
        scene.reading.clone(),
        Arc::default(),
    );
    let (check, stop) = (CountCheck::new(Arc::new(cx), SECOND * 600), scene.stop.clone());
    tokio::spawn(async move { check.keep(&stop).await });

    scene.until(5_000).await;

    assert_eq!(scene.local.listings(scene.started), [0; 0]);
}

#[tokio::test(start_paused = true)]
async fn what_is_not_read_yet_could_explain_anything() {
    let scene = scene(10, 4);
    scene.local.is_at(NOW + 1);
    scene.counts_every(600);
    scene.until(5_000).await;
    assert_eq!((scene.told(), scene.atlas.counts()), (vec![], 0));
    assert!(scene.cx.status.state().namespaces.is_empty(), "nothing is estimated either");

    // Within the ten seconds for which it is waited.
    let next = scene.local.listings(scene.started).last().unwrap() + 610;
    scene.until(next + 5).await;
    scene.reading.end_reply(ClusterTime(NOW + 1), ClusterTime(NOW + 1));
    scene.until(next + 90).await;

    assert_eq!(scene.told().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn nothing_is_told_of_what_may_be_another_database() {
    let scene = scene(10, 4);
    let gate = scene.local.gate.clone();
    scene.atlas.is_counted(move |_| {
        gate.close(&gate.permit(), "another process answers");
        Some(4)
    });
    scene.counts_every(3_600);

    scene.until(200).await;

    assert_eq!((scene.told(), scene.atlas.counts()), (vec![], 1));
}

#[tokio::test(start_paused = true)]
async fn a_collection_that_is_gone_takes_its_figures_along() {
    let scene = scene(10, 10);
    let gone = Namespace::new("shop", "gone");
    scene.cx.status.state().namespaces.insert(gone.clone(), Figures::default());
    scene.counts_every(600);

    scene.until(11).await;

    assert!(scene.cx.status.state().namespaces.keys().eq([&orders()]));
}

fn counts(local: [u64; 2], atlas: u64, pending: u64) -> Counts {
    Counts { local, atlas, pending }
}

#[test]
fn what_waits_explains_as_many_documents_as_there_are_entries() {
    assert!(counts([100, 100], 100, 0).are_explained(0));
    assert!(counts([100, 100], 90, 10).are_explained(0));
    assert!(counts([100, 100], 110, 10).are_explained(0), "deletes wait");
    assert!(!counts([100, 100], 89, 10).are_explained(0));
    assert!(!counts([100, 100], 0, 0).are_explained(0));
    assert!(counts([100, 120], 110, 0).are_explained(0), "inserted between the two");
}

/// Else each moment at which both sides have the same would cost another count.
#[test]
fn an_exact_count_counts_for_an_hour_also_where_the_estimates_were_the_same_in_between() {
    let of = |name: &str| Namespace::new("shop", name);
    let lost = |ns: Namespace| Divergence {
        ns: ns.to_string(),
        local: 2,
        atlas: 1,
        counted: Counted::Staying,
    };
    let mut known = CountsSoFar::default();
    for (ns, divergences) in [(of("fine"), vec![]), (of("lost"), vec![lost(of("lost"))])] {
        let counted = Exact { at: Instant::now(), difference: -1, divergences, sync: None };
        known.counted.insert(ns, counted);
    }

    known.keep(&[]);

    let still =
        |name: &str, difference, expires| known.counts_still(&of(name), difference, expires, None);
    assert_eq!(still("fine", -5, true), Some(vec![]));
    assert_eq!(still("fine", -5, false), None, "another difference is another matter");
    assert_eq!(still("fine", -1, false), Some(vec![]));
    assert_eq!(known.counts_still(&of("fine"), -1, true, Some(&"sync".to_owned())), None);
    assert_eq!(still("lost", -1, true), None, "it was mended, and may be lost again");
}

#[test]
fn an_estimate_that_is_off_for_good_is_taken_into_account() {
    assert!(counts([100, 100], 93, 0).are_explained(-7));
    assert!(!counts([100, 100], 92, 0).are_explained(-7));
    assert!(!counts([100, 100], 100, 0).are_explained(-7), "it was mended");
}
