//! What is compared, found and repaired, and what a run may not do.

use super::scene::{NOW, SECOND, Scene, changed, ns, ones, scene};
use crate::{
    model::checkpoint::ClusterTime,
    observe::progress::{Activity, ShareState},
    queue::note,
    runtime::clock,
    side::{fake_database::Failure, fake_schema::index},
    sync::state::{Cancelled, Reason, SyncRequest, SyncState},
};

fn digest() -> SyncRequest {
    SyncRequest { digest: true, ..SyncRequest::default() }
}

fn dry_run() -> SyncRequest {
    SyncRequest { dry_run: true, ..SyncRequest::default() }
}

fn mass_delete() -> SyncRequest {
    SyncRequest { allow_mass_delete: true, ..SyncRequest::default() }
}

fn of(name: &str) -> SyncRequest {
    SyncRequest { namespaces: vec![name.to_owned()], ..SyncRequest::default() }
}

/// Atlas lacks two of ten, has another value in one, and three that are not here.
fn differing() -> Scene {
    let scene = scene().both("shop.orders", ones(10..20));
    scene.atlas.lacks(&ns("shop.orders"), [12, 19]);
    scene.atlas("shop.orders", [(15, 2), (1, 1), (98, 1), (99, 1)])
}

#[tokio::test(start_paused = true)]
async fn what_differs_is_found_and_mended() {
    for (request, by_key) in [(SyncRequest::default(), false), (digest(), false), (digest(), true)]
    {
        let scene = differing().asks(request.clone());
        if by_key {
            scene.atlas.walks_in_another_order();
        }

        assert_eq!(scene.run().await, "done");

        assert_eq!(scene.found("shop.orders"), (2, 3, 1), "{request:?}");
        scene.serves_for(5).await;
        assert!(scene.is_equal("shop.orders"), "{request:?}");
        assert_eq!(scene.queue.pending(), (0, 0));
        assert!(!scene.atlas.done().contains(&"create shop.orders".to_owned()));
        let (share, progress) = (scene.share("shop.orders"), scene.progress());
        assert_eq!((share.documents_done, share.state), (10, ShareState::Done));
        assert_eq!((progress.digest, progress.activity), (request.digest, Activity::Sync));
        assert!(progress.bytes_from_atlas > 0);
        assert_eq!(scene.local.times("keys shop.orders"), 0, "once is enough");
        assert!(scene.queue.meta(note::LAST_SYNC).unwrap().is_some());
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_owed_is_compared_where_atlas_has_something() {
    let scene = differing().local("shop.new", ones(1..=3)).owes_everything();

    assert_eq!(scene.run().await, "done");

    assert_eq!(scene.found("shop.orders"), (2, 3, 1));
    scene.serves_for(5).await;
    assert!(scene.is_equal("shop.orders") && scene.is_equal("shop.new"));
    assert_eq!(scene.progress().activity, Activity::Copy);
}

#[tokio::test(start_paused = true)]
async fn a_dry_run_changes_nothing_and_reports_all() {
    let scene = differing().atlas("shop.old", ones(1..=3)).atlas("shop.large", ones(1..=300));
    let scene = scene.local("shop.new", ones(1..=3)).asks(dry_run());
    scene.atlas.has_view(&ns("shop.seen"), "orders");
    scene.local.has_view(&ns("shop.shown"), "orders");
    scene.local.indexed(&ns("shop.orders"), &[index("a")]);
    scene.atlas.indexed(&ns("shop.orders"), &[index("b")]);
    scene.atlas.has_time_series(&ns("shop.shown"));

    let outcome = scene.run().await;

    assert_eq!(outcome, "done, but: a mass delete was refused in shop.large");
    assert_eq!(scene.found("shop.orders"), (2, 3, 1));
    assert_eq!(scene.found("shop.new"), (3, 0, 0));
    assert_eq!((scene.found("shop.old"), scene.found("shop.large")), ((0, 3, 0), (0, 300, 0)));
    let schema = scene.share("shop.orders").schema;
    assert_eq!(schema, ["index `b` is in Atlas only", "index `a` is missing in Atlas"]);
    assert_eq!(scene.share("shop.new").schema, ["the collection is missing in Atlas"]);
    assert_eq!(scene.share("shop.old").schema, ["the collection is in Atlas only"]);
    assert_eq!(scene.share("shop.seen").schema, ["the view is in Atlas only"]);
    assert_eq!(scene.share("shop.shown").schema.len(), 1);
    scene.serves_for(5).await;
    assert!(scene.atlas.done().is_empty() && scene.queue.pending() == (0, 0));
    assert!(scene.queue.meta(note::LAST_SYNC).unwrap().is_none());
    assert!(scene.writing.refused_deletes().is_empty());
    assert_eq!(scene.progress().activity, Activity::DryRun);
}

#[tokio::test(start_paused = true)]
async fn too_much_is_deleted_only_where_a_person_has_said_so() {
    let scene = scene().both("shop.orders", ones(1..=9)).atlas("shop.orders", ones(100..=300));
    scene.atlas.lacks(&ns("shop.orders"), [4]);
    let scene = scene.both("shop.items", ones(1..=9)).asks(SyncRequest::default());

    let outcome = scene.run().await;
    assert_eq!(outcome, "done, but: a mass delete was refused in shop.orders");
    assert!(scene.share("shop.orders").mass_delete_refused);
    scene.serves_for(2).await;
    assert_eq!(scene.atlas.values(&ns("shop.orders")).len(), 210, "what is missing comes");
    assert_eq!(scene.writing.refused_deletes(), ["shop.orders"]);

    let scene = scene.asks(of("shop.items"));
    assert_eq!(scene.run().await, "done");
    assert_eq!(scene.writing.refused_deletes(), ["shop.orders"], "it was not looked at");

    let scene = scene.asks(mass_delete());
    assert_eq!(scene.run().await, "done");
    assert!(scene.writing.refused_deletes().is_empty());
    scene.serves_for(2).await;
    assert!(scene.is_equal("shop.orders"));
}

#[tokio::test(start_paused = true)]
async fn what_was_deleted_during_the_comparison_is_no_mass_delete() {
    let scene = scene().both("shop.orders", ones(1..=300)).asks(SyncRequest::default());
    let (queue, local) = (scene.queue.clone(), scene.local.clone());
    scene.local.when("page shop.orders", move || {
        local.lacks(&ns("shop.orders"), 50..=300);
        (50..=300).for_each(|id| changed(&queue, "shop.orders", id));
    });

    let began = clock::now();
    assert_eq!(scene.run().await, "done");

    assert!(clock::since(began) < 30 * SECOND, "no longer than until it is written");
    assert_eq!(scene.atlas.values(&ns("shop.orders")).len(), 49);
    assert!(scene.atlas.times("keys shop.orders") > 0, "they are looked at once more");
    assert_eq!(scene.found("shop.orders"), (0, 251, 0), "and counted once");
}

#[tokio::test(start_paused = true)]
async fn a_comparison_waits_a_minute_for_what_is_on_its_way_and_longer_while_nothing_may_be_written()
 {
    for is_paused in [false, true] {
        let scene = scene().both("shop.orders", ones(1..=9)).atlas("shop.orders", ones(100..=300));
        let scene = scene.asks(SyncRequest::default());
        let (local, writing) = (scene.local.clone(), scene.writing.clone());
        scene.local.when("page shop.orders", move || {
            local.schemas.is_at(NOW + 5); // And nothing of it is read.
            if is_paused {
                writing.pause(Some(crate::gate::pause::Pause::default()));
            }
        });
        let is_refused = || !scene.writing.refused_deletes().is_empty();
        let watched = async {
            tokio::time::sleep(if is_paused { 300 } else { 1 } * SECOND).await;
            scene.writing.pause(None);
            tokio::time::sleep(57 * SECOND).await;
            assert!(!is_refused(), "{is_paused}");
            tokio::time::sleep(6 * SECOND).await;
            assert!(is_refused(), "{is_paused}");
            scene.reading.end_reply(ClusterTime(NOW + 5), ClusterTime(NOW + 5));
        };

        let (outcome, ()) = tokio::join!(scene.run(), watched);

        assert!(outcome.contains("a mass delete was refused"), "{outcome}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_collection_that_only_atlas_has_is_dropped_unless_it_holds_too_much() {
    let scene = scene().both("shop.orders", ones(1..=9)).atlas("shop.old", ones(1..=9));
    let scene = scene.atlas("shop.large", ones(1..=300)).asks(SyncRequest::default());

    let outcome = scene.run().await;

    assert_eq!(outcome, "done, but: a mass delete was refused in shop.large");
    scene.serves_for(2).await;
    assert!(!scene.atlas.is_there(&ns("shop.old")) && scene.atlas.is_there(&ns("shop.large")));
    assert_eq!(scene.share("shop.old").state, ShareState::Done);
    assert_eq!(scene.atlas.times("page shop.old"), 0, "its keys are enough");
}

#[tokio::test(start_paused = true)]
async fn an_index_that_only_atlas_has_goes_before_documents_come_and_others_come_behind_them() {
    let scene = differing().asks(SyncRequest::default());
    scene.atlas.indexed(&ns("shop.orders"), &[index("old")]);
    scene.local.indexed(&ns("shop.orders"), &[index("new")]);

    assert_eq!(scene.run().await, "done");

    let done = scene.atlas.done();
    let at = |what: &str| done.iter().position(|of| of == &format!("{what} shop.orders")).unwrap();
    assert!(at("dropIndexes") < at("write") && at("write") < at("createIndexes"), "{done:?}");
    assert_eq!(scene.atlas.schemas.indexes(&ns("shop.orders")), ["new"]);
    assert!(scene.watch.take().namespaces.contains(&ns("shop.orders")), "and looked at again");
    assert!(scene.watch.builds().is_empty());
}

#[tokio::test(start_paused = true)]
async fn an_index_that_atlas_does_not_take_is_listed_and_left() {
    let scene = scene().both("shop.orders", ones(1..=9)).asks(SyncRequest::default());
    scene.local.indexed(&ns("shop.orders"), &[index("a")]);
    scene.atlas.fails("createIndexes shop.orders", Failure::Refused, 9);

    let outcome = scene.run().await;

    assert!(outcome.starts_with("done, but: `shop.orders`: "), "{outcome}");
    assert_eq!(scene.watch.all_listed().len(), 1);
    assert!(scene.watch.take().namespaces.contains(&ns("shop.orders")));

    // A later run of something else says nothing of it.
    let scene = scene.both("shop.items", []).asks(of("shop.items"));
    assert_eq!(scene.run().await, "done");
    assert_eq!(scene.watch.all_listed().len(), 1);
    scene.atlas.fails("createIndexes shop.orders", Failure::Refused, 0);
    let scene = scene.asks(SyncRequest::default());
    assert_eq!(scene.run().await, "done");
    assert!(scene.watch.all_listed().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_server_that_cannot_hash_ends_what_was_asked_for_and_says_how_it_can_be_had() {
    let scene = differing().asks(digest());
    scene.atlas.cannot_hash();

    let outcome = scene.run().await;

    assert!(outcome.starts_with("failed: Atlas cannot hash documents"), "{outcome}");
    assert!(outcome.ends_with("; ask again without digest"), "{outcome}");
    assert!(SyncState::open(&scene.queue).unwrap().is_none());
}

#[tokio::test(start_paused = true)]
async fn what_was_asked_for_ends_at_once_when_it_is_cancelled_or_something_is_owed() {
    for (is_owed, told) in [(false, "cancelled"), (true, "ended for one that is owed")] {
        let scene = differing().asks(SyncRequest::default());
        scene.local.fails("page shop.orders", Failure::Away, u32::MAX);
        let queue = scene.queue.clone();
        scene.local.when_nth("page shop.orders", 3, move || {
            if is_owed {
                SyncState::require(&queue, ClusterTime(NOW), Reason::HistoryLost).unwrap();
            } else {
                assert!(matches!(SyncState::cancel(&queue), Ok(Cancelled::Done(_))));
            }
        });

        let outcome = scene.run().await;

        assert!(outcome.starts_with(told), "{outcome}");
        assert_eq!(scene.is_owed(), is_owed);
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_asked_for_is_about_no_other_collection() {
    let scene = differing().local("shop.items", ones(1..=3)).atlas("shop.old", ones(1..=3));
    let scene = scene.asks(of("shop.items"));

    assert_eq!(scene.run().await, "done");

    scene.serves_for(2).await;
    assert!(scene.is_equal("shop.items") && !scene.is_equal("shop.orders"));
    assert!(scene.atlas.is_there(&ns("shop.old")));
    assert!(scene.queue.meta(note::LAST_SYNC).unwrap().is_none(), "not everything was compared");
}

#[tokio::test(start_paused = true)]
async fn everything_is_compared_as_often_as_the_configuration_says() {
    let scene = differing().compares_every(3_600 * SECOND);

    scene.serves_for(30).await;
    assert!(scene.is_equal("shop.orders"));
    assert_eq!(scene.progress().reason, Reason::Periodic.to_string());
    let id = scene.progress().id;
    scene.serves_for(3_000).await;
    assert_eq!(scene.progress().id, id);
    scene.serves_for(700).await;
    assert_ne!(scene.progress().id, id);
}

#[tokio::test(start_paused = true)]
async fn a_comparison_in_ranges_goes_on_where_nothing_was_kept_back() {
    let mut scene =
        scene().both("shop.big", ones(0..1_000)).atlas("shop.big", [(-5, 1), (2_000, 1)]);
    scene.local.of(&ns("shop.big")).is_said_to_have(64 << 10);
    scene = scene.asks(SyncRequest::default());
    scene.stops_once_a_range_is_noted("shop.big");
    assert!(scene.serve().await.is_err() || scene.stop.is_draining());
    let state = SyncState::load(&scene.queue).unwrap().unwrap();
    let plan = state.begun[&ns("shop.big")].clone();
    assert!(!plan.is_copy && !plan.done.is_empty());
    assert!(!plan.done.contains(&0), "what it has found there is in memory alone");
    assert_eq!(plan.splits.len(), 4);

    scene.stop = crate::runtime::shutdown::Stop::default();
    let pages = scene.local.times("page shop.big");
    assert_eq!(scene.run().await, "done");

    let read = scene.local.times("page shop.big") - pages;
    assert!(read <= 5 * (5 - plan.done.len()), "{read} pages for {plan:?}");
    scene.serves_for(2).await;
    assert!(scene.is_equal("shop.big"));
}

/// It removes its note when it is done, just when somebody looks whether it was cancelled: it was told of as cancelled now
/// and then, and what it had found out was not shown.
#[tokio::test(start_paused = true)]
async fn a_run_that_is_done_is_never_told_of_as_cancelled() {
    for _ in 0..30 {
        let scene = scene().both("shop.orders", ones(1..=3)).asks(SyncRequest::default());
        let cx = scene.cx.clone();
        scene.local.when_nth("now", 2, move || cx.sync_wanted.notify_one());

        assert_eq!(scene.run().await, "done");
    }
}

#[tokio::test(start_paused = true)]
async fn a_run_that_is_cancelled_in_its_last_moment_is_told_of_as_cancelled() {
    for is_owed in [false, true] {
        let scene = scene().both("shop.orders", ones(1..=3)).asks(SyncRequest::default());
        let queue = scene.queue.clone();
        scene.local.when_nth("now", 2, move || {
            SyncState::cancel(&queue).unwrap();
            if is_owed {
                SyncState::require(&queue, ClusterTime(NOW), Reason::HistoryLost).unwrap();
            }
        });

        let outcome = scene.run().await;

        assert!(
            outcome.starts_with(if is_owed { "ended for one" } else { "cancelled" }),
            "{outcome}"
        );
    }
}
