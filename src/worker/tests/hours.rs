//! What the writers do over time: outages, attempts, and how they share the work. Hours pass in milliseconds.

use tokio::task::JoinHandle;

use super::*;
use crate::{policy::breaker::Admission, queue::QueueError, worker::Verdict};

const SECOND: Duration = Duration::from_secs(1);

/// A worker at the defaults of a configuration, but for what a test is about.
fn options() -> WorkerOptions {
    WorkerOptions {
        batch_size: 100,
        interval: Duration::ZERO,
        retries: RetrySchedule::new(vec![SECOND, 10 * SECOND], 3),
        update_mode: UpdateMode::Document,
        atlas_timeout: 30 * SECOND,
    }
}

fn inserts(ids: std::ops::Range<i32>) -> Vec<Incoming> {
    ids.map(|id| insert(id, 1)).collect()
}

impl Scene {
    fn is_queued(&self, changes: Vec<Incoming>) {
        self.queue.commit(changes, None).unwrap();
    }

    /// So many writers at work.
    fn at_work(&self, writers: usize, stop: &Stop) -> Vec<JoinHandle<Result<(), QueueError>>> {
        let one = |_| {
            let (worker, stop) = (self.worker.clone(), stop.clone());
            tokio::spawn(async move { worker.run(&stop).await })
        };
        (0..writers).map(one).collect()
    }

    /// Until so long after the start.
    async fn until(&self, seconds: u64) {
        clock::until(self.started, seconds).await;
    }

    fn commands(&self) -> Vec<(u64, usize)> {
        self.atlas.commands(self.started)
    }
}

/// Sixty seconds, of which a fifth may be spared, between two probes of ten documents.
#[tokio::test(start_paused = true)]
async fn an_outage_is_probed_with_few_documents_and_what_waits_follows_at_once_when_it_is_over() {
    let (scene, stop) = (Scene::with(options()), Stop::default());
    scene.is_queued(inserts(0..30));
    scene.atlas.fails_with(away());
    scene.at_work(1, &stop);

    scene.until(3_600).await;
    let commands = scene.commands();
    assert_eq!(commands[..2], [(0, 30), (0, 30)], "as often as the breaker wants to be sure");
    let probes = &commands[2..];
    assert!(probes.iter().all(|(_, documents)| *documents == 10), "{probes:?}");
    assert!((60..=75).contains(&probes.len()), "{} probes in an hour", probes.len());
    assert_eq!(
        (scene.waiting(), scene.status.metrics.retries.get()),
        (30, 0),
        "no attempt is lost"
    );

    scene.atlas.fails_with(None);
    scene.until(3_661).await;
    let after = &scene.commands()[commands.len()..];
    let documents: Vec<_> = after.iter().map(|(_, documents)| *documents).collect();
    assert_eq!((documents, scene.waiting()), (vec![10, 20], 0));
    assert_eq!(after[0].0, after[1].0, "nothing is waited for any more");
}

#[tokio::test(start_paused = true)]
async fn what_atlas_rejects_is_tried_by_its_schedule_and_becomes_a_dead_letter() {
    let (scene, stop) = (Scene::with(options()), Stop::default());
    scene.atlas.refuses_commands_with(7);
    scene.is_queued(vec![insert(7, 1)]);
    scene.at_work(1, &stop);

    scene.until(60).await;
    let tries: Vec<_> = scene.commands().into_iter().map(|(at, _)| at).collect();
    // At once, after one second, after ten more, and after ten more; a tenth is left to chance.
    assert!(matches!(tries[..], [0, 0..=1, 9..=12, 18..=23]), "{tries:?}");
    assert_eq!((scene.waiting(), scene.queue.dead_letters(10).unwrap().len()), (0, 1));
}

#[tokio::test(start_paused = true)]
async fn a_document_that_waits_for_its_next_attempt_holds_up_no_other() {
    let (scene, stop) = (Scene::with(options()), Stop::default());
    scene.atlas.refuses_commands_with(7);
    scene.is_queued(vec![insert(7, 1)]);
    scene.at_work(1, &stop);

    scene.until(5).await;
    scene.is_queued(vec![insert(8, 1)]);
    scene.until(5).await;
    assert_eq!(scene.atlas.documents(), [doc(8, 1)]);
}

#[tokio::test(start_paused = true)]
async fn the_third_writer_leaves_little_to_the_first_two_and_takes_a_full_batch() {
    let (scene, stop) = (Scene::with(options()), Stop::default());
    scene.atlas.takes(10 * SECOND);
    scene.at_work(3, &stop);

    for (second, ids) in [(1, 0..5), (2, 5..10), (3, 10..15)] {
        scene.until(second).await;
        scene.is_queued(inserts(ids));
    }
    scene.until(9).await;
    assert_eq!(scene.commands(), [(1, 5), (2, 5)]);
    scene.until(13).await;
    assert_eq!(scene.commands().len(), 3, "the first of them is free again");

    scene.until(40).await;
    let before = scene.commands().len();
    for (second, ids) in [(41, 20..25), (42, 25..30), (43, 100..200)] {
        scene.until(second).await;
        scene.is_queued(inserts(ids));
    }
    scene.until(44).await;
    let sizes: Vec<_> = scene.commands()[before..].iter().map(|(_, size)| *size).collect();
    assert_eq!(sizes, [5, 5, 100]);
}

#[tokio::test(start_paused = true)]
async fn a_document_is_never_in_two_writers_and_what_arrives_meanwhile_goes_as_one() {
    let (scene, stop) = (Scene::with(options()), Stop::default());
    scene.atlas.takes(10 * SECOND);
    scene.is_queued(vec![insert(1, 1)]);
    scene.at_work(2, &stop);

    for (second, v) in [(1, 2), (2, 3), (3, 4)] {
        scene.until(second).await;
        scene.is_queued(vec![replace(doc(1, v))]);
    }
    scene.until(30).await;
    assert_eq!(scene.commands(), [(0, 1), (10, 1)]);
    assert_eq!((scene.atlas.documents(), scene.waiting()), (vec![doc(1, 4)], 0));
}

#[tokio::test(start_paused = true)]
async fn a_writer_rests_between_two_batches_for_as_long_as_it_is_told() {
    let options = WorkerOptions { batch_size: 10, interval: 5 * SECOND, ..options() };
    let (scene, stop) = (Scene::with(options), Stop::default());
    scene.is_queued(inserts(0..30));
    scene.at_work(1, &stop);

    scene.until(20).await;
    assert_eq!(scene.commands(), [(0, 10), (5, 10), (10, 10)]);
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_is_told_to_leave_ends_behind_its_batch_and_one_that_drains_when_all_is_written()
 {
    let options = WorkerOptions { batch_size: 10, ..options() };
    let (scene, stop) = (Scene::with(options.clone()), Stop::default());
    scene.atlas.takes(10 * SECOND);
    scene.is_queued(inserts(0..30));
    let writers = scene.at_work(1, &stop);
    scene.until(2).await;
    stop.leave.cancel();
    for writer in writers {
        writer.await.unwrap().unwrap();
    }
    assert_eq!((scene.commands(), scene.waiting()), (vec![(0, 10)], 20));

    let (scene, stop) = (Scene::with(options), Stop::default());
    scene.atlas.takes(10 * SECOND);
    scene.is_queued(inserts(0..30));
    let writers = scene.at_work(1, &stop);
    scene.until(2).await;
    stop.drain.cancel();
    for writer in writers {
        writer.await.unwrap().unwrap();
    }
    assert_eq!((scene.commands().len(), scene.waiting()), (3, 0));
}

#[tokio::test(start_paused = true)]
async fn who_drains_waits_for_no_atlas_that_is_away() {
    let (scene, stop) = (Scene::with(options()), Stop::default());
    scene.atlas.fails_with(away());
    scene.is_queued(inserts(0..30));
    let writers = scene.at_work(2, &stop);
    scene.until(10).await;
    stop.drain.cancel();
    for writer in writers {
        writer.await.unwrap().unwrap();
    }
    assert!(clock::since(scene.started) < 12 * SECOND);
    assert_eq!(scene.waiting(), 30);
}

#[tokio::test(start_paused = true)]
async fn what_rests_goes_on_within_a_moment() {
    let (scene, stop) = (Scene::with(options()), Stop::default());
    scene.writing.pause(Some(Pause::default()));
    scene.is_queued(inserts(0..3));
    scene.at_work(2, &stop);

    scene.until(7_200).await;
    assert_eq!(scene.commands(), []);
    scene.writing.pause(None);
    scene.until(7_201).await;
    assert_eq!(scene.waiting(), 0);
}

/// A write that had no answer may be made late, over what was written since.
#[tokio::test(start_paused = true)]
async fn a_write_without_an_answer_is_made_once_more_behind_the_next_answer_and_when_it_cannot_come_late()
 {
    let (scene, stop) = (Scene::with(options()), Stop::default());
    scene.local.has(doc(1, 1));
    scene.atlas.fails_with(SinkError::Unanswered("no answer".to_owned()));
    scene.is_queued(vec![insert(1, 1)]);
    scene.at_work(1, &stop);

    scene.until(1).await;
    scene.reading.end_reply(ClusterTime(50), ClusterTime(50));
    scene.local.is_another(HERE, 50);
    scene.atlas.fails_with(None);
    scene.until(7_200).await;
    let commands = scene.commands();
    let [_, _, (probe, _), (soon, _), (late, _)] = commands[..] else { panic!("{commands:?}") };
    assert!((10..=11).contains(&(soon - probe)), "soon after the next answer: {commands:?}");
    assert_eq!(late, 300, "and when nothing can come any more");
    assert_eq!((scene.atlas.written(), scene.waiting()), (vec!["insert", "upsert", "upsert"], 0));
}

/// As while a collection is copied.
#[tokio::test(start_paused = true)]
async fn a_probe_for_which_nothing_may_go_is_made_up_for_as_soon_as_something_may() {
    let (scene, stop) = (Scene::with(options()), Stop::default());
    scene.atlas.fails_with(away());
    scene.is_queued(inserts(0..3));
    scene.at_work(1, &stop);

    scene.until(5).await;
    assert_eq!(scene.writing.against().breaker, Stage::Open);
    scene.queue.hold(&orders());
    scene.atlas.fails_with(None);
    scene.until(120).await;
    assert_eq!(scene.waiting(), 3);
    scene.queue.release(&orders());
    scene.until(122).await;
    assert_eq!((scene.waiting(), scene.status.faults.atlas.get()), (0, None));
}

#[tokio::test(start_paused = true)]
async fn who_asked_nothing_of_atlas_ends_its_own_probe_and_no_other() {
    let scene = Scene::new().queued([insert(1, 1)]);
    scene.atlas.fails_with(away());
    let scene = scene.drained().await;
    scene.until(61).await;
    assert_eq!(scene.writing.breaker().permit(clock::now()), Admission::Probe);

    scene.worker.learn(&Verdict::NotAsked, Admission::Proceed);
    assert_eq!(scene.writing.against().breaker, Stage::HalfOpen);
    scene.worker.learn(&Verdict::NotAsked, Admission::Probe);
    assert_eq!(scene.writing.against().breaker, Stage::Open);
}

#[tokio::test]
async fn a_batch_of_which_nothing_was_asked_of_atlas_is_none_that_it_answered() {
    let scene = Scene::new().queued([refresh(1)]);
    scene.local.is_away(true);
    let scene = scene.drained().await;
    assert_eq!(scene.status.metrics.batches.get(), 0);

    let scene = scene.queued([insert(2, 1)]).drained().await;
    assert_eq!(scene.status.metrics.batches.get(), 1);
}
