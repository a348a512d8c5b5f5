//! A target, or a queue, that is not as it was left: put back to an earlier state, or moved.

use super::*;
use crate::{
    gate::tally::Counts,
    model::{
        checkpoint::{Checkpoint, PositionKind, ResumeToken},
        document_key::DocumentKey,
        write_op::WriteOp,
    },
    queue::{Incoming, Work},
    runtime::clock::now_ms,
    sync::state::CollectionStep,
};

/// The queue has come to `at`, in seconds.
fn has_come_to(queue: &Queue, at: u64) {
    let checkpoint = Checkpoint {
        token: ResumeToken(bson::rawdoc! { "_data": "82" }),
        anchor: ClusterTime(1),
        kind: PositionKind::CLUSTER_TIME,
        cluster_time: ClusterTime(at << 32),
        source_id: OURS.to_owned(),
        pipeline: String::new(),
    };
    queue.commit(Vec::new(), Some(&checkpoint)).unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_target_that_was_put_back_is_compared_and_leased_anew() {
    for is_counted in [false, true] {
        let scene = scene();
        scene.start("1").await.unwrap();
        scene.has_caught_up();
        let before = scene.lease_id();
        if is_counted {
            let confirmed = Counts::of([(1, 7)]).stored();
            scene.queue.set_meta(note::TALLY, Some(&confirmed)).unwrap();
            scene.records.change(OURS, |record| record.counts = Counts::of([(1, 6)]));
        } else {
            let renewed = 40_u64.to_be_bytes();
            scene.queue.set_meta(note::RENEWED, Some(&renewed)).unwrap();
            scene.records.change(OURS, |record| record.checkpoint = ClusterTime(39));
        }

        scene.start("2").await.unwrap();

        assert_eq!(scene.owes(), Some(Reason::PutBack));
        assert_ne!(scene.lease_id(), before);
        assert_eq!(scene.noted(note::RENEWED), None, "what was left there is of another lease");
    }
}

#[tokio::test(start_paused = true)]
async fn a_queue_that_was_put_back_is_given_up() {
    let (another, ahead) = ("another life", "ahead");
    for why in [another, ahead] {
        let scene = scene();
        scene.start("1").await.unwrap();
        scene.has_caught_up();
        has_come_to(&scene.queue, 100);
        scene.records.change(OURS, |record| {
            if why == another {
                record.life = Some("later".to_owned());
            } else {
                record.checkpoint = ClusterTime(200 << 32);
            }
        });

        let given_up = scene.start("2").await;

        assert!(matches!(given_up, Err(SyncError::Queue(_))), "{why}: {given_up:?}");
        assert_eq!(scene.holder().as_deref(), Some("1"), "{why}");
        assert!(scene.noted(note::OUTDATED).is_some());
    }
}

/// The queue came from another machine, which was at `sent` when it left.
async fn moved(sent: u64, lease_at: u64) -> Scene {
    let scene = scene();
    scene.start("1").await.unwrap();
    scene.has_caught_up();
    has_come_to(&scene.queue, 100);
    let key = DocumentKey::of(&bson::rawdoc! { "_id": 1 }).unwrap();
    let op = WriteOp::Insert(bson::rawdoc! { "_id": 1 });
    let work = Work::Document { ns: orders(), key, op, collection: None };
    let cluster_time = ClusterTime(100 << 32);
    let incoming = Incoming { work, cluster_time, wall_ms: now_ms() };
    scene.queue.commit(vec![incoming], None).unwrap();
    scene.queue.set_meta(note::MOVED, Some(&[])).unwrap();
    scene.queue.set_meta(note::RENEWING, Some(&(sent << 32).to_be_bytes())).unwrap();
    scene.records.change(OURS, |record| {
        record.life = Some("elsewhere".to_owned());
        record.checkpoint = ClusterTime(lease_at << 32);
    });
    scene
}

#[tokio::test(start_paused = true)]
async fn a_queue_that_was_moved_takes_the_lease_from_the_machine_that_it_came_from() {
    let scene = moved(100, 100).await;
    let before = scene.lease_id();

    scene.start("2").await.unwrap();

    assert_ne!(scene.lease_id(), before, "else the other machine would take Atlas for its own");
    assert_eq!(scene.owes(), None);
    assert_eq!(scene.noted(note::MOVED), None);
}

#[tokio::test(start_paused = true)]
async fn a_queue_that_was_moved_from_where_it_went_on_reads_everything_anew() {
    let scene = moved(100, 101).await;

    scene.start("2").await.unwrap();

    assert_eq!(scene.owes(), Some(Reason::NewTarget));
    let batch = scene.queue.lease(10, 1 << 20, u64::MAX).unwrap();
    let ops: Vec<_> = batch.entries.iter().map(|entry| format!("{:?}", entry.work)).collect();
    assert!(ops.len() == 1 && ops[0].contains("Refresh"), "{ops:?}");
}

#[tokio::test(start_paused = true)]
async fn a_copy_that_has_not_begun_is_not_asked_for_again() {
    let scene = scene();
    SyncState::require(&scene.queue, ClusterTime(1), Reason::FirstCopy).unwrap();

    scene.start("1").await.unwrap();

    assert_eq!(scene.owes(), Some(Reason::FirstCopy));
}

#[tokio::test(start_paused = true)]
async fn a_copy_that_has_begun_begins_anew_in_another_target() {
    let scene = scene();
    SyncState::require(&scene.queue, ClusterTime(1), Reason::FirstCopy).unwrap();
    let id = SyncState::load(&scene.queue).unwrap().unwrap().id;
    let step = CollectionStep::Finished { is_refused: false };
    SyncState::note(&scene.queue, id, &orders(), &step).unwrap();

    scene.start("1").await.unwrap();

    assert_eq!(scene.owes(), Some(Reason::NewTarget));
}
