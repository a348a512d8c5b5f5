//! What the tailer does over time: outages, a history that is lost, a queue that is full. Hours pass in milliseconds.

use super::*;
use crate::{
    mongo::MongoError,
    queue::{Ack, Outcome},
    source::{
        Cause,
        fake::{Refuses, away},
    },
};

pub const SECOND: Duration = Duration::from_secs(1);
pub const ALL: QueueLimits =
    QueueLimits { max_bytes: u64::MAX, max_documents: u64::MAX, min_free_disk: 0 };

/// A tailer at work on a source.
pub struct Scene {
    pub tailer: Arc<Tailer<FakeSource>>,
    pub queue: Arc<Queue>,
    started: Instant,
    stop: Stop,
    _dir: TempDir,
}

pub fn scene(source: FakeSource, limits: QueueLimits) -> Scene {
    let dir = TempDir::new().unwrap();
    let queue = open(dir.path());
    let tailer = Tailer { limits, ..tailer(dir.path(), queue.clone(), source) };
    let (started, stop) = (clock::now(), Stop::default());
    Scene { tailer: Arc::new(tailer), queue, started, stop, _dir: dir }
}

impl Scene {
    pub fn at_work(&self) -> tokio::task::JoinHandle<Result<(), TailerError>> {
        let (tailer, stop) = (self.tailer.clone(), self.stop.clone());
        tokio::spawn(async move { tailer.run(&stop).await })
    }

    /// Until so long after the start.
    pub async fn until(&self, seconds: u64) {
        clock::until(self.started, seconds).await;
    }

    pub fn has(&self, batches: impl IntoIterator<Item = EventBatch>) {
        self.tailer.source.batches.lock().extend(batches);
    }

    pub fn refuses(&self, refuses: Option<Refuses>) {
        *self.tailer.source.refuses.lock() = refuses;
    }

    /// In which second after the start a stream was asked for, and from where.
    pub fn opened(&self) -> Vec<(u64, StartFrom)> {
        let opened = self.tailer.source.opened.lock();
        opened.iter().map(|(at, from)| ((*at - self.started).as_secs(), from.clone())).collect()
    }

    /// The number of the batch that the checkpoint is behind.
    pub fn checkpoint(&self) -> u64 {
        self.queue.checkpoint().unwrap().map_or(0, |checkpoint| number(&checkpoint.token))
    }

    /// Why everything is to be compared.
    pub fn owed(&self) -> Option<Reason> {
        SyncState::open(&self.queue).unwrap().map(|state| state.reason)
    }
}

fn position(n: u64) -> StartFrom {
    StartFrom::Token(batch(n).token)
}

/// Nothing happened, and the position is a later one.
pub fn nothing(n: u64) -> EventBatch {
    EventBatch { events: Vec::new(), ..batch(n) }
}

#[tokio::test(start_paused = true)]
async fn a_database_that_is_away_is_asked_for_ever_more_rarely_and_is_read_on_from_the_checkpoint()
{
    let scene = scene(FakeSource::default(), ALL);
    scene.has([batch(1)]);
    scene.at_work();

    scene.until(3_600).await;
    let opened = scene.opened();
    assert!(opened[1..].iter().all(|(_, from)| *from == position(1)), "{opened:?}");
    let waits: Vec<_> = opened.windows(2).map(|two| two[1].0 - two[0].0).collect();
    assert!(waits[..3].iter().all(|wait| *wait <= 2), "soon at first: {waits:?}");
    assert!(waits[10..].iter().all(|wait| (11..=19).contains(wait)), "{waits:?}");
    assert_eq!(scene.owed(), None, "an outage costs no comparison");

    scene.has([batch(2)]);
    scene.until(3_620).await;
    assert_eq!((scene.checkpoint(), scene.queue.pending().0), (2, 2));
}

#[tokio::test(start_paused = true)]
async fn when_nothing_happens_a_position_is_kept_every_five_seconds() {
    let source = FakeSource { every: SECOND, goes_on: true, ..FakeSource::default() };
    let scene = scene(source, ALL);
    scene.has((1..=100).map(nothing));
    scene.at_work();

    let mut kept = Vec::new();
    for second in 1..=20 {
        scene.until(second).await;
        kept.push(scene.checkpoint());
    }
    kept.dedup();
    assert_eq!(kept, [1, 6, 11, 16]);
    // What was read, it knows at once.
    assert_eq!(scene.tailer.reading.position().seen(), ClusterTime(20));
}

#[tokio::test(start_paused = true)]
async fn what_happens_is_kept_at_once() {
    let source = FakeSource { every: SECOND, goes_on: true, ..FakeSource::default() };
    let scene = scene(source, ALL);
    scene.has([nothing(1), batch(2), nothing(3), batch(4)]);
    scene.at_work();

    for (second, kept) in [(1, 1), (2, 2), (3, 2), (4, 4)] {
        scene.until(second).await;
        assert_eq!(scene.checkpoint(), kept, "after {second} s");
    }
}

#[tokio::test(start_paused = true)]
async fn a_full_queue_ends_the_reading_and_room_begins_it_again() {
    let source = FakeSource { goes_on: true, ..FakeSource::default() };
    let scene = scene(source, QueueLimits { max_documents: 10, ..ALL });
    scene.has((1..=20).map(batch));
    scene.at_work();

    scene.until(600).await;
    let held = scene.queue.pending().0;
    assert!((10..=11).contains(&held), "{held}");
    assert!(scene.tailer.reading.is_stopped());
    assert_eq!(scene.opened().len(), 1, "the stream stays open");

    let batch = scene.queue.lease(8, 1 << 20, now_ms()).unwrap();
    let done = |entry: &crate::queue::Entry| Ack {
        seq: entry.seq,
        version: entry.version,
        outcome: Outcome::Applied,
    };
    scene.queue.ack(&batch.entries.iter().map(done).collect::<Vec<_>>()).unwrap();
    scene.until(601).await;
    assert!(scene.checkpoint() > held, "{}", scene.checkpoint());
}

/// An entry may wait for a rename that nobody has read.
#[tokio::test(start_paused = true)]
async fn a_full_queue_reads_one_batch_more_for_whoever_waits_for_what_comes() {
    let source = FakeSource { goes_on: true, ..FakeSource::default() };
    let scene = scene(source, QueueLimits { max_documents: 10, ..ALL });
    scene.has((1..=20).map(batch));
    scene.at_work();

    scene.until(60).await;
    let before = scene.checkpoint();
    scene.tailer.reading.want();
    scene.until(62).await;
    assert_eq!(scene.checkpoint(), before + 1);
}

#[tokio::test(start_paused = true)]
async fn a_history_that_is_lost_ends_in_a_new_position_and_a_comparison() {
    let source = FakeSource { goes_on: true, ..FakeSource::default() };
    let scene = scene(source, ALL);
    scene.queue.commit(Vec::new(), Some(&checkpoint_at(1))).unwrap();
    let is_old = |from: &StartFrom| *from == position(1);
    let lost = || SourceError::HistoryLost(Cause::Other("it has gone".to_owned()));
    scene.refuses(Some(Box::new(move |from| is_old(from).then(lost))));
    scene.has([nothing(7)]);
    scene.at_work();

    scene.until(1).await;
    assert_eq!(scene.opened(), [(0, position(1)), (0, StartFrom::Now), (0, position(7))]);
    assert_eq!((scene.checkpoint(), scene.owed()), (7, Some(Reason::HistoryLost)));
}

#[tokio::test(start_paused = true)]
async fn a_history_that_stays_lost_is_not_asked_for_all_the_time() {
    let scene = scene(FakeSource { goes_on: true, ..FakeSource::default() }, ALL);
    scene.queue.commit(Vec::new(), Some(&checkpoint_at(1))).unwrap();
    let is_old = |from: &StartFrom| *from != StartFrom::Now;
    let lost = || SourceError::HistoryLost(Cause::Other("it has gone".to_owned()));
    scene.refuses(Some(Box::new(move |from| is_old(from).then(lost))));
    scene.has((2..10_000).map(nothing));
    scene.at_work();

    scene.until(1_800).await;
    let asked = scene.opened().iter().filter(|(_, from)| *from == StartFrom::Now).count();
    assert!((100..=200).contains(&asked), "{asked} times in half an hour");
}

/// The server answers, and fails at this one position.
#[tokio::test(start_paused = true)]
async fn a_position_at_which_the_server_fails_for_three_minutes_is_given_up() {
    let scene = scene(FakeSource { goes_on: true, ..FakeSource::default() }, ALL);
    scene.queue.commit(Vec::new(), Some(&checkpoint_at(1))).unwrap();
    let fails = |from: &StartFrom| {
        let silent = || SourceError::Unavailable(MongoError::Silent(SECOND).into());
        (*from == position(1)).then(silent)
    };
    scene.refuses(Some(Box::new(fails)));
    scene.has([nothing(7)]);
    scene.at_work();

    scene.until(179).await;
    assert_eq!((scene.checkpoint(), scene.owed()), (1, None));
    let is_failing = |scene: &Scene| {
        let unshowable = scene.tailer.status.state().unshowable.clone();
        matches!(unshowable, Some(crate::observe::status::Unshowable::Failing(_)))
    };
    assert!(is_failing(&scene), "and says so meanwhile");
    scene.until(200).await;
    assert_eq!((scene.checkpoint(), scene.owed()), (7, Some(Reason::Unshowable)));
    assert!(!is_failing(&scene));
}

#[tokio::test(start_paused = true)]
async fn a_database_that_is_away_for_hours_keeps_its_position() {
    let scene = scene(FakeSource::default(), ALL);
    scene.queue.commit(Vec::new(), Some(&checkpoint_at(1))).unwrap();
    scene.refuses(Some(Box::new(|_| Some(away()))));
    let run = scene.at_work();

    scene.until(20_000).await;
    assert_eq!((scene.checkpoint(), scene.owed()), (1, None));
    assert!(scene.opened().iter().all(|(_, from)| *from == position(1)));
    scene.stop.drain.cancel();
    run.await.unwrap().unwrap();
    assert!(clock::since(scene.started) < 20_002 * SECOND, "a wait ends when it is told to");
}

pub fn checkpoint_at(n: u64) -> Checkpoint {
    Checkpoint {
        token: batch(n).token,
        kind: PositionKind::named("number of a batch"),
        anchor: ClusterTime(n),
        cluster_time: ClusterTime(n),
        source_id: "rs".to_owned(),
        pipeline: "p".to_owned(),
    }
}
