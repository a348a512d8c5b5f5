//! What is copied, and what comes in between.

use bson::rawdoc;

use super::scene::{NOW, SECOND, Scene, barrier, changed, key, names, ns, ones, scene, unique};
use crate::{
    gate::pause::Pause,
    model::{checkpoint::ClusterTime, event::SchemaChange, foreign::Foreign},
    observe::{progress::ShareState, status::Phase},
    policy::in_doubt::InDoubtWrites,
    queue::note,
    runtime::{clock, shutdown::Stop},
    side::{fake_database::Failure, fake_schema::index},
    sync::{
        SyncError,
        full::{refused_deletes, refused_of_the_run},
        state::SyncState,
    },
};

#[tokio::test(start_paused = true)]
async fn what_atlas_lacks_is_copied_with_its_options_and_indexes() {
    let scene = scene().local("shop.orders", ones(1..=10)).owes_everything();
    let options = rawdoc! { "validator": { "v": 1 } };
    let id = scene.local.has(&ns("shop.items"), options.clone());
    scene.local.holds(&ns("shop.items"), ones(1..=3));
    scene.local.indexed(&ns("shop.orders"), &[index("a"), unique("u")]);

    assert_eq!(scene.run().await, "done");

    assert!(scene.is_equal("shop.orders") && scene.is_equal("shop.items"));
    assert_eq!(scene.atlas.options_of(&ns("shop.items")), options);
    assert_eq!(scene.local.id_of(&ns("shop.items")), Some(id));
    assert_eq!(scene.atlas.schemas.indexes(&ns("shop.orders")), ["u", "a"]);
    let mut done = scene.atlas.done();
    done.retain(|of| of.ends_with("shop.orders"));
    let expected = ["create", "createIndexes", "write", "createIndexes"];
    assert_eq!(done, expected.map(|of| format!("{of} shop.orders")), "what is unique comes first");
    assert!(!scene.is_owed() && scene.queue.pending() == (0, 0));
    assert!(scene.queue.meta(note::LAST_SYNC).unwrap().is_some());
    assert!(!scene.watermark.lock().is_new(ClusterTime(NOW)), "what was written is of now");
    let share = scene.share("shop.orders");
    assert_eq!((share.documents, share.documents_done), (10, 10));
    assert!(share.bytes_done > 0 && share.state == ShareState::Done);
    assert_eq!(scene.cx.status.metrics.documents_copied.get(), 13);
    assert!(scene.progress().finished_ms.is_some() && !scene.cx.in_hand.runs());
}

#[tokio::test(start_paused = true)]
async fn what_changes_while_its_collection_is_copied_waits_for_the_copy() {
    let scene = scene().local("shop.orders", ones(1..=5)).owes_everything();
    let (queue, local, atlas) = (scene.queue.clone(), scene.local.clone(), scene.atlas.clone());
    scene.atlas.when("create shop.orders", move || {
        local.holds(&ns("shop.orders"), [(3, 9)]);
        changed(&queue, "shop.orders", 3);
        assert!(queue.lease(10, 1 << 20, u64::MAX).unwrap().entries.is_empty());
        assert_eq!(atlas.times("write shop.orders"), 0);
    });

    assert_eq!(scene.run().await, "done");

    scene.serves_for(2).await;
    assert!(scene.is_equal("shop.orders"));
    assert_eq!(scene.atlas.values(&ns("shop.orders"))[&3], 9);
    assert_eq!(scene.queue.pending(), (0, 0));
}

/// A thousand documents that are said to be large: five ranges, in pages of 64.
fn large() -> Scene {
    let scene = scene().local("shop.big", ones(0..1_000));
    scene.local.of(&ns("shop.big")).is_said_to_have(64 << 10);
    scene
}

#[tokio::test(start_paused = true)]
async fn a_copy_that_was_broken_off_goes_on_with_the_ranges_that_are_open() {
    let mut scene = large().owes_everything();
    scene.stops_once_a_range_is_noted("shop.big");

    assert!(matches!(scene.serve().await, Err(SyncError::Stopped)));

    let state = SyncState::load(&scene.queue).unwrap().unwrap();
    let plan = &state.begun[&ns("shop.big")];
    let left = 5 - plan.done.len();
    assert_eq!((plan.splits.len(), plan.is_copy), (4, true));
    assert!((1..5).contains(&left), "{plan:?}");
    let (pages, samples) = (scene.local.times("page shop.big"), "sample shop.big");
    scene.stop = Stop::default();
    assert_eq!(scene.run().await, "done");
    assert!(scene.is_equal("shop.big"));
    assert!(scene.local.times("page shop.big") - pages <= left * 5 + 1, "no other is read again");
    assert_eq!(scene.local.times(samples), 1);
    // A note that was being written when it was stopped may have come to the disk since.
    let copied = scene.share("shop.big").documents;
    assert!(copied.is_multiple_of(200) && (1..=left as u64).contains(&(copied / 200)), "{copied}");
}

#[tokio::test(start_paused = true)]
async fn what_was_read_before_another_proof_was_asked_for_is_read_again() {
    let scene = large().owes_everything();
    let (gate, local) = (scene.local.schemas.gate.clone(), scene.local.clone());
    scene.local.when_nth("page shop.big", 7, move || {
        gate.close(&gate.permit(), "another process answers");
        local.holds(&ns("shop.big"), (0..1_000).map(|id| (id, 2)));
        gate.proved(gate.begin_proof(), bson::oid::ObjectId::from_bytes([2; 12]));
    });

    assert_eq!(scene.run().await, "done");

    let stale = scene.atlas.values(&ns("shop.big")).into_values().filter(|v| *v == 1).count();
    assert!(stale < 7 * 64, "{stale}");
    assert!(scene.atlas.values(&ns("shop.big")).len() == 1_000);
}

#[tokio::test(start_paused = true)]
async fn what_the_target_does_not_take_is_tried_alone_and_told_of() {
    let scene = scene().local("shop.orders", ones(1..=9)).owes_everything();
    scene.atlas.refuses_document(5);

    assert_eq!(scene.run().await, "done");

    assert_eq!(scene.atlas.values(&ns("shop.orders")).len(), 8);
    scene.serves_for(5).await;
    assert_eq!(scene.queue.dead_letters_len(), 1);
    assert_eq!(refused_of_the_run(&scene.cx.status, &scene.queue).unwrap(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_dead_letter_of_before_the_run_or_of_another_document_is_not_the_runs() {
    let scene = scene().both("shop.orders", ones(1..=9));
    let refused = || refused_of_the_run(&scene.cx.status, &scene.queue).unwrap();
    assert_eq!(refused(), 0, "there was no run");
    scene.atlas.refuses_document(5);
    changed(&scene.queue, "shop.orders", 5);
    scene.serves_for(2).await;
    assert_eq!((scene.queue.dead_letters_len(), refused()), (1, 0));

    let scene =
        scene.local("shop.orders", [(6, 2)]).asks(crate::sync::state::SyncRequest::default());
    assert_eq!(scene.run().await, "done");
    let refused = || refused_of_the_run(&scene.cx.status, &scene.queue).unwrap();
    assert_eq!(refused(), 0, "it was there before");
    changed(&scene.queue, "shop.orders", 5);
    scene.serves_for(2).await;
    assert_eq!(refused(), 0, "the run has not queued it");
}

#[tokio::test(start_paused = true)]
async fn a_write_without_an_answer_is_in_doubt_and_costs_no_document() {
    let scene = scene().local("shop.orders", ones(1..=9)).owes_everything();
    scene.atlas.fails("write shop.orders", Failure::Unanswered, 1);

    assert_eq!(scene.run().await, "done");

    assert!(scene.is_equal("shop.orders"));
    let is_in_doubt = |doubt: &InDoubtWrites| format!("{doubt:?}").contains("orders");
    assert!(is_in_doubt(&scene.cx.in_doubt.lock()));
    assert!(!scene.cx.status.faults.atlas.is_any(), "it answers again");
}

#[tokio::test(start_paused = true)]
async fn an_atlas_that_is_away_is_shown_and_waited_for() {
    let scene = scene().local("shop.orders", ones(1..=9)).owes_everything();
    scene.atlas.fails("write shop.orders", Failure::Away, 3);
    scene.local.fails("page shop.orders", Failure::Away, 2);
    scene.local.fails("list", Failure::Refused, 9);
    let status = scene.cx.status.clone();
    scene.atlas.when_nth("write shop.orders", 2, move || assert!(status.faults.atlas.is_any()));

    assert_eq!(scene.run().await, "done");

    assert!(scene.is_equal("shop.orders"));
    assert!(!scene.cx.status.faults.atlas.is_any());
}

#[tokio::test(start_paused = true)]
async fn options_that_atlas_does_not_take_keep_no_document_away() {
    let scene = scene().local("shop.orders", ones(1..=9)).owes_everything();
    scene.local.indexed(&ns("shop.orders"), &[unique("u")]);
    scene.atlas.fails("create shop.orders", Failure::Refused, 1);
    let atlas = scene.atlas.clone();
    scene.local.when("indexes shop.orders", move || atlas.holds(&ns("shop.orders"), []));

    assert_eq!(scene.run().await, "done");

    assert!(scene.is_equal("shop.orders"));
}

#[tokio::test(start_paused = true)]
async fn a_refused_collection_keeps_no_other_away_and_what_is_owed_is_tried_again() {
    let scene = scene().local("shop.bad", ones(1..=9)).local("shop.good", ones(1..=9));
    let scene = scene.owes_everything();
    scene.local.fails("page shop.bad", Failure::Refused, 10);

    let outcome = scene.run().await;
    assert!(outcome.starts_with("not done, and tried again: `shop.bad`: "), "{outcome}");
    assert!(scene.is_equal("shop.good") && !scene.is_equal("shop.bad"));
    assert_eq!(scene.cx.status.state().sync_problems.len(), 1);
    assert!(scene.is_owed());

    assert!(scene.run().await.starts_with("not done"));
    let began = clock::now();
    assert_eq!(scene.run().await, "done");
    assert!(clock::since(began) < 60 * SECOND);
    assert!(scene.is_equal("shop.bad") && scene.cx.status.state().sync_problems.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_barrier_that_has_come_is_made_before_its_collection_is_copied() {
    let scene = scene().local("shop.orders", ones(1..=9)).local("shop.items", ones(1..=9));
    let scene = scene.owes_everything();
    for (name, when) in [("shop.orders", "empty shop.orders"), ("shop.items", "create shop.orders")]
    {
        let queue = scene.queue.clone();
        let change = SchemaChange::Reconcile { ns: ns(name), collection: None };
        scene.atlas.when(when, move || barrier(&queue, change));
    }

    assert_eq!(scene.run().await, "done");

    scene.serves_for(2).await;
    assert!(scene.is_equal("shop.orders") && scene.is_equal("shop.items"));
    assert_eq!(scene.queue.pending(), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn what_is_somebody_elses_is_left_alone() {
    let scene = scene().local("shop.orders", ones(1..=9)).local("shop.theirs", ones(1..=9));
    let scene = scene.atlas("shop.theirs", ones(20..=30)).owes_everything();
    let foreign = Foreign { names: names(&["shop.theirs"]), ..Foreign::default() };
    scene.queue.keep_apart(foreign);

    assert_eq!(scene.run().await, "done");

    assert!(scene.is_equal("shop.orders"));
    assert_eq!(scene.atlas.values(&ns("shop.theirs")), ones(20..=30).into_iter().collect());
}

#[tokio::test(start_paused = true)]
async fn what_becomes_somebody_elses_during_the_run_is_left_alone_from_then_on() {
    for what in ["create", "compare"] {
        let scene = scene().local("shop.orders", ones(1..=9)).local("shop.theirs", ones(1..=9));
        let scene = match what {
            "create" => scene.owes_everything(),
            _ => scene
                .both("shop.orders", [])
                .atlas("shop.theirs", [])
                .asks(crate::sync::state::SyncRequest::default()),
        };
        let (queue, when) = (scene.queue.clone(), "empty shop.theirs");
        let asked = if what == "create" {
            (&scene.atlas, when)
        } else {
            (&scene.local, "size shop.theirs")
        };
        asked.0.when(asked.1, move || {
            let foreign = Foreign { names: names(&["shop.theirs"]), ..Foreign::default() };
            queue.keep_apart(foreign);
        });

        assert_eq!(scene.run().await, "done", "{what}");

        // A run queues what differs, and does not wait until all of it is written.
        scene.serves_for(2).await;
        assert!(scene.is_equal("shop.orders"), "{what}");
        assert!(scene.atlas.values(&ns("shop.theirs")).is_empty(), "{what}");
    }
}

#[tokio::test(start_paused = true)]
async fn nothing_is_copied_while_writing_is_paused() {
    let scene = scene().local("shop.orders", ones(1..=9)).owes_everything();
    scene.writing.pause(Some(Pause::default()));

    scene.serves_for(30).await;
    assert!(scene.atlas.done().is_empty() && scene.is_owed());
    assert_eq!(scene.cx.status.state().phase, Phase::Copying);
    scene.writing.pause(None);
    assert_eq!(scene.run().await, "done");
    assert!(scene.is_equal("shop.orders"));
    scene.writing.pause(Some(Pause::default()));
    scene.serves_for(3).await;
    assert_eq!(scene.cx.status.state().phase, Phase::Paused);
    scene.writing.pause(None);
    scene.serves_for(3).await;
    assert_eq!(scene.cx.status.state().phase, Phase::Streaming);
}

#[tokio::test(start_paused = true)]
async fn a_capped_collection_is_copied_in_its_order_and_what_follows_waits_for_the_stream() {
    let scene = scene().owes_everything();
    let capped = rawdoc! { "capped": true, "size": 4_096 };
    scene.local.has(&ns("shop.log"), capped.clone());
    scene.local.holds(&ns("shop.log"), [(7, 1), (3, 1), (5, 1)]);
    scene.local.of(&ns("shop.log")).is_said_to_have(64 << 20);

    assert_eq!(scene.run().await, "done");

    assert_eq!(scene.atlas.inserted(&ns("shop.log")), [7, 3, 5]);
    assert_eq!(scene.atlas.options_of(&ns("shop.log")), capped);
    assert!(scene.queue.is_in_order(&ns("shop.log")));
    assert_eq!(scene.local.times("sample shop.log"), 0, "in one piece");
    changed(&scene.queue, "shop.log", 3);
    assert!(scene.queue.lease(10, 1 << 20, u64::MAX).unwrap().entries.is_empty());
    scene.queue.stream_reached(ClusterTime(NOW));
    assert_eq!(scene.queue.lease(10, 1 << 20, u64::MAX).unwrap().entries.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_refusal_to_delete_is_kept_beside_the_queue() {
    let scene = scene().both("shop.orders", ones(1..=3)).atlas("shop.orders", ones(100..=300));
    assert!(refused_deletes(&scene.queue).unwrap().is_empty());
    let scene = scene.owes_everything();

    let outcome = scene.run().await;

    assert_eq!(outcome, "done, but: a mass delete was refused in shop.orders");
    assert_eq!(refused_deletes(&scene.queue).unwrap(), ["shop.orders"]);
    assert!(!scene.writing.may_delete_in(&ns("shop.orders")));
    assert!(key(1) != key(2) && scene.atlas.values(&ns("shop.orders")).len() == 204);
}
