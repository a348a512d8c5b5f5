//! What comes in between: another proof, answers that are lost, batches in flight, and a stop.

use bson::rawdoc;

use super::scene::{NOW, SECOND, Scene, barrier, changed, key, ns, ones, scene, unique};
use crate::{
    gate::pause::Pause,
    model::{checkpoint::ClusterTime, event::SchemaChange},
    queue::{Ack, Outcome},
    runtime::clock::now_ms,
    side::{fake_database::Failure, fake_schema::index},
    sync::state::{Reason, SyncRequest, SyncState},
};

/// A collection that was replaced, and stands in Atlas without a document and with the wrong options.
fn replaced() -> Scene {
    let scene = scene().local("shop.orders", ones(1..=9)).owes(&["shop.orders"]);
    scene.local.indexed(&ns("shop.orders"), &[unique("u"), index("a")]);
    scene.atlas.has(&ns("shop.orders"), rawdoc! { "validator": {} });
    scene
}

#[tokio::test(start_paused = true)]
async fn what_a_change_rests_on_is_looked_at_again_after_another_proof() {
    for (is_of_atlas, asked, nth) in [
        (false, "describe shop.orders", 1),
        (false, "describe shop.orders", 2),
        (false, "indexes shop.orders", 1),
        (false, "indexes shop.orders", 2),
        (true, "indexes shop.orders", 1),
        (true, "empty shop.orders", 1),
        (true, "drop shop.orders", 1),
        (true, "createIndexes shop.orders", 1),
    ] {
        let scene = replaced();
        let gate = scene.local.schemas.gate.clone();
        let end = if is_of_atlas { &scene.atlas } else { &scene.local };
        end.when_nth(asked, nth, move || {
            gate.close(&gate.permit(), "another process answers");
            gate.proved(gate.begin_proof(), bson::oid::ObjectId::from_bytes([2; 12]));
        });

        assert_eq!(scene.run().await, "done", "{asked}");

        assert!(scene.is_equal("shop.orders"), "{asked}");
        assert!(scene.atlas.options_of(&ns("shop.orders")).is_empty(), "{asked}");
        assert_eq!(scene.atlas.schemas.indexes(&ns("shop.orders")), ["u", "a"], "{asked}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_change_without_an_answer_is_made_again_and_in_doubt() {
    for asked in ["drop shop.orders", "create shop.orders"] {
        let scene = replaced();
        scene.atlas.fails(asked, Failure::Unanswered, 1);

        assert_eq!(scene.run().await, "done", "{asked}");

        assert!(scene.is_equal("shop.orders"), "{asked}");
        assert_eq!(scene.atlas.times(asked), 2);
        assert!(format!("{:?}", scene.cx.in_doubt.lock()).contains("shop.orders"), "{asked}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_batch_in_flight_is_waited_for_before_its_collection_is_dropped() {
    let scene = replaced();
    changed(&scene.queue, "shop.orders", 3);
    let batch = scene.queue.lease(10, 1 << 20, now_ms()).unwrap();
    let landing = async {
        tokio::time::sleep(5 * SECOND).await;
        assert_eq!(scene.atlas.times("drop shop.orders"), 0);
        let entry = &batch.entries[0];
        let outcome = Outcome::Applied;
        scene.queue.ack(&[Ack { seq: entry.seq, version: entry.version, outcome }]).unwrap();
    };

    let (outcome, ()) = tokio::join!(scene.run(), landing);

    assert_eq!(outcome, "done");
    assert_eq!(scene.atlas.times("drop shop.orders"), 1);
}

#[tokio::test(start_paused = true)]
async fn what_is_owed_while_nothing_runs_is_found_within_seconds() {
    let scene = scene().local("shop.orders", ones(1..=9));
    let required = async {
        tokio::time::sleep(5 * SECOND).await;
        SyncState::require(&scene.queue, ClusterTime(NOW), Reason::Gone).unwrap();
        tokio::time::sleep(3 * SECOND).await;
        assert!(scene.is_equal("shop.orders"));
    };

    tokio::join!(scene.serves_for(10), required);

    assert!(!scene.is_owed());
    scene.stop.drain.cancel();
    assert!(scene.serve().await.is_ok(), "it ends when nothing is owed");
}

#[tokio::test(start_paused = true)]
async fn what_was_held_for_a_run_goes_when_another_begins() {
    let scene = scene().both("shop.orders", ones(1..=9)).local("shop.orders", [(3, 2)]);
    scene.queue.hold_all();
    changed(&scene.queue, "shop.orders", 3);

    let scene = scene.asks(SyncRequest::default());
    assert_eq!(scene.run().await, "done");
    scene.serves_for(1).await;

    assert!(scene.is_equal("shop.orders") && key(3) != key(4));
    assert_eq!(scene.queue.pending(), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn what_is_not_replicated_is_said_once_a_run_has_met_it() {
    let scene = scene().both("shop.orders", ones(1..=9)).asks(SyncRequest::default());
    scene.local.has_time_series(&ns("shop.series"));
    scene.atlas.is_plain();
    scene.local.is_plain();

    assert_eq!(scene.run().await, "done");

    let left_out = scene.cx.status.state().left_out.clone();
    assert_eq!(left_out.len(), 2);
    assert_eq!(left_out[0], "`shop.series`: a time-series collection");
    assert!(left_out[1].starts_with("validators, options, indexes and views"));
    assert!(scene.watch.take().everything, "what is only declared is looked at from here on");
}

#[tokio::test(start_paused = true)]
async fn a_source_with_a_schema_has_nothing_looked_at_beside_what_differs() {
    let scene = scene().both("shop.orders", ones(1..=9)).asks(SyncRequest::default());
    assert_eq!(scene.run().await, "done");
    let asked = scene.watch.take();
    assert!(!asked.everything && asked.namespaces.is_empty());
    assert!(scene.cx.status.state().left_out.is_empty());
}

#[tokio::test(start_paused = true)]
async fn what_allows_less_than_is_there_comes_when_all_of_it_has_arrived() {
    let scene = scene().both("shop.orders", ones(1..=9)).asks(SyncRequest::default());
    let mut prepared = index("a");
    prepared.append(bson::cstr!("prepareUnique"), true);
    scene.local.indexed(&ns("shop.orders"), &[prepared]);
    scene.atlas.indexed(&ns("shop.orders"), &[index("a")]);

    assert_eq!(scene.run().await, "done");

    assert_eq!(scene.share("shop.orders").schema, ["index `a` differs: prepareUnique"]);
    assert_eq!(scene.atlas.times("collMod shop.orders"), 0);
    assert!(scene.watch.take().namespaces.contains(&ns("shop.orders")));
}

#[tokio::test(start_paused = true)]
async fn a_collection_that_changes_while_its_schema_is_compared_is_left_to_the_keeper() {
    for is_gone in [false, true] {
        let scene = scene().both("shop.orders", ones(1..=9)).asks(SyncRequest::default());
        scene.local.indexed(&ns("shop.orders"), &[index("a")]);
        let local = scene.local.clone();
        scene.local.when_nth("indexes shop.orders", 2, move || {
            let mut there = local.schemas.get(&ns("shop.orders")).unwrap();
            if is_gone {
                there.id = None;
            } else {
                there.options = rawdoc! { "validator": {} };
            }
            local.schemas.is(&ns("shop.orders"), there);
        });

        assert_eq!(scene.run().await, "done");

        assert_eq!(scene.atlas.times("createIndexes shop.orders"), 0);
        let asked = scene.watch.take().namespaces.contains(&ns("shop.orders"));
        assert_eq!(asked, !is_gone, "what has gone is the stream's");
    }
}

#[tokio::test(start_paused = true)]
async fn a_copy_stands_still_while_writing_is_paused_and_goes_on_where_it_was() {
    let scene = scene().local("shop.orders", ones(1..=9)).owes_everything();
    let writing = scene.writing.clone();
    scene.local.when("page shop.orders", move || writing.pause(Some(Pause::default())));
    let resumed = async {
        tokio::time::sleep(30 * SECOND).await;
        assert_eq!(scene.atlas.times("write shop.orders"), 0);
        scene.writing.pause(None);
    };

    let (outcome, ()) = tokio::join!(scene.run(), resumed);

    assert_eq!(outcome, "done");
    assert!(scene.is_equal("shop.orders"));
}

#[tokio::test(start_paused = true)]
async fn other_tasks_know_which_collections_a_run_is_at() {
    let scene = scene().both("shop.orders", ones(1..=9)).asks(SyncRequest::default());
    let (at, done) = (scene.cx.clone(), scene.cx.clone());
    scene.atlas.when("page shop.orders", move || assert!(at.in_hand.is_at(&ns("shop.orders"))));
    scene.local.when_nth("now", 2, move || assert!(!done.in_hand.is_at(&ns("shop.orders"))));

    assert_eq!(scene.run().await, "done");

    assert!(scene.local.times("now") >= 2);
}

#[tokio::test(start_paused = true)]
async fn an_index_that_was_built_is_looked_at_once_more_and_one_that_was_dropped_is_not() {
    for is_built in [true, false] {
        let scene = scene().both("shop.orders", ones(1..=9)).asks(SyncRequest::default());
        let end = if is_built { &scene.local } else { &scene.atlas };
        end.indexed(&ns("shop.orders"), &[index("a")]);

        assert_eq!(scene.run().await, "done");

        let asked = scene.watch.take().namespaces.contains(&ns("shop.orders"));
        assert_eq!(asked, is_built);
    }
}

#[tokio::test(start_paused = true)]
async fn what_only_atlas_has_is_believed_to_be_so_when_the_stream_has_come_as_far() {
    let scene = scene().both("shop.orders", ones(1..=9)).atlas("shop.gone", ones(1..=300));
    let scene = scene.asks(SyncRequest::default());
    let local = scene.local.clone();
    scene.local.when("now", move || local.schemas.is_at(NOW + 5));
    let read = async {
        tokio::time::sleep(30 * SECOND).await;
        barrier(&scene.queue, SchemaChange::Drop { ns: ns("shop.gone") });
        scene.reading.end_reply(ClusterTime(NOW + 5), ClusterTime(NOW + 5));
    };

    let (outcome, ()) = tokio::join!(scene.run(), read);

    assert_eq!(outcome, "done", "its drop was on the way");
}
