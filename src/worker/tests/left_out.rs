//! What becomes of entries whose collection is left out by now; and what is counted.

use super::*;
use crate::{
    model::write_op::Refusal,
    queue::{Ack, Outcome},
};

fn left_out() -> Namespace {
    Namespace::new("shop", "left_out")
}

#[tokio::test]
async fn what_was_queued_of_a_collection_that_is_left_out_by_now_is_passed_over() {
    let op = WriteOp::Insert(doc(1, 1));
    let work = Work::Document { ns: left_out(), key: key(1), op, collection: Some(HERE) };
    let there = Incoming { work, ..insert(1, 1) };
    let drop = schema(SchemaChange::Drop { ns: left_out() });

    let scene = Scene::new().queued([there, drop, insert(2, 2)]);
    scene.until_nothing_waits().await;

    assert_eq!(scene.atlas.changes(), [""; 0]);
    assert_eq!(scene.atlas.documents(), [doc(2, 2)]);
    assert_eq!(scene.status.metrics.writes_applied.get(), 1, "and it is no write");
}

/// As of a rename that is read later.
#[tokio::test]
async fn of_a_rename_across_what_is_left_out_by_now_the_part_that_is_replicated_is_made() {
    let rename = |from, to| schema(SchemaChange::Rename { from, to, drop_target: true });

    let scene = Scene::new().queued([rename(orders(), left_out())]);
    scene.until_nothing_waits().await;
    assert_eq!(scene.atlas.changes(), ["drop"], "it is not there any more");
    assert_eq!(SyncState::load(&scene.queue).unwrap(), None);

    let scene = Scene::new().queued([rename(left_out(), orders())]);
    scene.until_nothing_waits().await;
    assert_eq!(scene.atlas.changes(), ["drop"], "another one has its name");
    let owed = SyncState::load(&scene.queue).unwrap().unwrap();
    assert_eq!(owed.only, [orders()].into(), "which is to be copied");

    let scene = Scene::new().queued([rename(left_out(), left_out())]);
    scene.until_nothing_waits().await;
    assert_eq!(scene.atlas.changes(), [""; 0]);
}

/// Else what is to be copied would begin anew with each attempt.
#[tokio::test(start_paused = true)]
async fn what_a_rename_brings_in_is_to_be_copied_once_there_is_a_place_for_it() {
    let rename = SchemaChange::Rename { from: left_out(), to: orders(), drop_target: true };
    let scene = Scene::new().queued([schema(rename)]);
    scene.atlas.answers_a_change_with(Err(SinkError::Held("a view needs it".to_owned())));

    let scene = scene.drained().await;
    assert_eq!((scene.atlas.changes(), scene.waiting()), (vec!["drop"], 1));
    assert_eq!(SyncState::load(&scene.queue).unwrap(), None);

    scene.atlas.answers_a_change_with(Ok(Changed::Done));
    tokio::time::sleep(Duration::from_secs(3)).await;
    let scene = scene.drained().await;
    assert_eq!((scene.atlas.changes(), scene.waiting()), (vec!["drop"; 2], 0));
    let owed = SyncState::load(&scene.queue).unwrap().unwrap();
    assert_eq!(owed.only, [orders()].into());
}

#[tokio::test]
async fn a_dead_letter_of_what_is_left_out_by_now_stays_though_its_document_is_queued() {
    let op = || WriteOp::Insert(doc(1, 1));
    let there = || {
        let work = Work::Document { ns: left_out(), key: key(1), op: op(), collection: Some(HERE) };
        Incoming { work, ..insert(1, 1) }
    };
    let scene = Scene::new().queued([there()]);
    let leased = scene.queue.lease(1, usize::MAX, now_ms()).unwrap().entries;
    let outcome = Outcome::Rejected {
        reason: "too large".to_owned(),
        refusal: Refusal::TooLarge,
        now_ms: now_ms(),
    };
    let (seq, version) = (leased[0].seq, leased[0].version);
    scene.queue.ack(&[Ack { seq, version, outcome }]).unwrap();

    let scene = scene.queued([there()]).drained().await;

    assert_eq!((scene.waiting(), scene.queue.dead_letters(10).unwrap().len()), (0, 1));
}

#[tokio::test]
async fn what_is_written_is_counted_by_its_kind_and_its_collection() {
    let others = || Namespace::new("shop", "others");
    let there = |id, op| {
        let work = Work::Document { ns: others(), key: key(id), op, collection: Some(HERE) };
        Incoming { work, ..insert(id, 1) }
    };
    let changes = [
        insert(1, 1),
        there(1, WriteOp::Insert(doc(1, 1))),
        insert(2, 1),
        delete(3),
        there(4, WriteOp::Delete),
        there(5, WriteOp::Delete),
        insert(6, 1),
    ];

    let scene = Scene::new().queued(changes).drained().await;

    let of = |ns: &Namespace| scene.status.state().namespaces.get(ns).map(|of| of.writes);
    assert_eq!((of(&orders()), of(&others())), (Some(4), Some(3)));
    let kinds: Vec<_> = scene.status.metrics.writes_by_kind.all().filter(|(_, n)| *n > 0).collect();
    assert_eq!(kinds, [("insert", 4), ("delete", 3)]);
    assert_eq!(scene.status.metrics.writes_applied.get(), 7);
}
