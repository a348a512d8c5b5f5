//! Names that change hands, and what stands in the way.

use bson::rawdoc;

use super::scene::{NOW, barrier, changed, names, ns, ones, scene};
use crate::{
    model::{checkpoint::ClusterTime, event::SchemaChange},
    schema::{Kind, Problem},
    side::fake_database::Failure,
    sync::{
        full::is_all_held_up,
        state::{Reason, SyncRequest, SyncState, behind},
    },
};

#[tokio::test(start_paused = true)]
async fn an_empty_collection_with_the_wrong_options_is_made_anew() {
    let scene = scene().local("shop.orders", ones(1..=9)).owes(&["shop.orders"]);
    scene.atlas.has(&ns("shop.orders"), rawdoc! { "validator": {} });

    assert_eq!(scene.run().await, "done");

    assert!(scene.is_equal("shop.orders"));
    assert!(scene.atlas.options_of(&ns("shop.orders")).is_empty());
    let done = scene.atlas.done();
    assert_eq!(done[..2], ["drop shop.orders", "create shop.orders"], "{done:?}");
    assert!(!scene.queue.is_in_order(&ns("shop.orders")));
}

#[tokio::test(start_paused = true)]
async fn a_buffer_that_was_replaced_is_copied_in_its_order_unless_too_much_would_go() {
    let capped = rawdoc! { "capped": true, "size": 4_096 };
    for (more, is_copied) in [(1..=100, true), (1..=300, false)] {
        let scene = scene().owes(&["shop.log"]);
        for end in [&scene.local, &scene.atlas] {
            end.has(&ns("shop.log"), capped.clone());
        }
        scene.local.holds(&ns("shop.log"), [(7, 1), (3, 1), (5, 1)]);
        scene.atlas.holds(&ns("shop.log"), [(3, 1), (7, 1)]);
        scene.atlas.holds(&ns("shop.log"), ones(more).into_iter().map(|(id, v)| (1_000 + id, v)));

        let outcome = scene.run().await;

        assert_eq!(outcome == "done", is_copied, "{outcome}");
        assert_eq!(scene.atlas.inserted(&ns("shop.log")) == [7, 3, 5], is_copied);
        assert!(scene.queue.is_in_order(&ns("shop.log")));
    }
}

#[tokio::test(start_paused = true)]
async fn what_was_replaced_and_holds_documents_is_compared() {
    let scene = scene().local("shop.orders", ones(1..=9)).atlas("shop.orders", ones(5..=12));
    let scene = scene.atlas("shop.other", ones(1..=3)).owes(&["shop.orders"]);

    assert_eq!(scene.run().await, "done");

    scene.serves_for(2).await;
    assert!(scene.is_equal("shop.orders"));
    assert_eq!(scene.atlas.times("drop shop.orders"), 0);
    assert!(scene.atlas.is_there(&ns("shop.other")), "the run is not about it");
}

#[tokio::test(start_paused = true)]
async fn one_that_has_lost_its_name_is_left_to_the_stream() {
    let scene = scene().local("shop.orders", ones(1..=9)).atlas("shop.orders", ones(1..=9));
    let scene = scene.owes(&["shop.orders"]);
    let (local, queue) = (scene.local.clone(), scene.queue.clone());
    scene.local.when("size shop.orders", move || {
        local.drops(&ns("shop.orders"));
        barrier(&queue, SchemaChange::Drop { ns: ns("shop.orders") });
    });

    assert_eq!(scene.run().await, "done");

    assert!(!scene.atlas.is_there(&ns("shop.orders")));
    assert_eq!(scene.atlas.times("create shop.orders"), 0);
}

#[tokio::test(start_paused = true)]
async fn a_run_of_some_waits_until_the_stream_has_come_past_where_it_was_noted() {
    let scene = scene().local("shop.orders", ones(1..=9));
    let (queue, position) = (&scene.queue, ClusterTime(NOW + 10));
    SyncState::require_of(queue, position, &names(&["shop.orders"]), Reason::Replaced).unwrap();

    scene.serves_for(30).await;
    assert_eq!(scene.local.times("list"), 0);
    scene.local.schemas.is_at(NOW + 10);
    scene.reading.end_reply(position, position);
    assert_eq!(scene.run().await, "done");
    assert!(scene.is_equal("shop.orders"));
}

#[tokio::test(start_paused = true)]
async fn a_rename_during_the_run_has_both_names_compared_again() {
    for is_owed in [true, false] {
        let scene = scene().both("shop.a", ones(1..=9)).both("shop.b", ones(20..=29));
        let scene =
            if is_owed { scene.owes_everything() } else { scene.asks(SyncRequest::default()) };
        let (local, queue) = (scene.local.clone(), scene.queue.clone());
        scene.local.when_nth("list", 2, move || {
            local.drops(&ns("shop.b"));
            local.renames(&ns("shop.a"), &ns("shop.b"));
            // Nobody has told of it but this: what was to be renamed was not there.
            assert!(SyncState::renamed(&queue, &[ns("shop.a"), ns("shop.b")]).unwrap());
        });

        assert_eq!(scene.run().await, "done");

        scene.serves_for(5).await;
        assert!(scene.is_equal("shop.b"), "{:?}", scene.atlas.values(&ns("shop.b")));
        assert!(!scene.atlas.is_there(&ns("shop.a")), "{is_owed}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_name_that_is_made_again_during_the_run_is_compared_again() {
    let scene = scene().both("shop.orders", ones(1..=9)).atlas("shop.late", ones(1..=9));
    let scene = scene.owes_everything();
    let (local, queue) = (scene.local.clone(), scene.queue.clone());
    scene.local.when_nth("list", 2, move || {
        local.holds(&ns("shop.late"), [(40, 1)]);
        changed(&queue, "shop.late", 40);
    });

    assert_eq!(scene.run().await, "done");

    scene.serves_for(5).await;
    assert!(scene.is_equal("shop.late"), "{:?}", scene.atlas.values(&ns("shop.late")));
}

#[tokio::test(start_paused = true)]
async fn a_collection_that_comes_during_the_run_and_was_nowhere_is_the_streams() {
    let scene = scene().both("shop.orders", ones(1..=9)).owes_everything();
    let (local, atlas) = (scene.local.clone(), scene.atlas.clone());
    scene.local.when_nth("list", 2, move || local.holds(&ns("shop.new"), ones(1..=9)));
    scene.atlas.when_nth("list", 3, move || atlas.holds(&ns("shop.new"), ones(1..=4)));

    assert_eq!(scene.run().await, "done");

    assert_eq!(scene.atlas.values(&ns("shop.new")).len(), 4, "its documents are in the stream");
}

#[tokio::test(start_paused = true)]
async fn a_drop_that_is_on_its_way_is_not_made_twice() {
    let scene = scene().both("shop.orders", ones(1..=9)).atlas("shop.gone", ones(1..=300));
    let scene = scene.asks(SyncRequest::default());
    let queue = scene.queue.clone();
    scene
        .local
        .when_nth("now", 1, move || barrier(&queue, SchemaChange::Drop { ns: ns("shop.gone") }));

    assert_eq!(scene.run().await, "done");

    assert_eq!(scene.found("shop.gone"), (0, 0, 0), "it is not compared");
    scene.serves_for(2).await;
    assert!(!scene.atlas.is_there(&ns("shop.gone")));
}

#[tokio::test(start_paused = true)]
async fn a_collection_takes_the_place_of_a_view_of_its_name() {
    let scene = scene().local("shop.orders", ones(1..=9)).both("shop.seen", ones(1..=3));
    let scene = scene.asks(SyncRequest::default());
    scene.atlas.drops(&ns("shop.orders"));
    scene.atlas.has_view(&ns("shop.orders"), "seen");

    assert_eq!(scene.run().await, "done");

    scene.serves_for(2).await;
    assert!(scene.is_equal("shop.orders") && scene.is_equal("shop.seen"));
    assert_eq!(scene.atlas.schemas.get(&ns("shop.orders")).unwrap().kind, Kind::Collection);
}

#[tokio::test(start_paused = true)]
async fn a_time_series_in_the_way_is_left_and_told_of() {
    let scene = scene().local("shop.orders", ones(1..=9)).local("shop.items", ones(1..=3));
    let scene = scene.asks(SyncRequest::default());
    scene.atlas.has_time_series(&ns("shop.orders"));

    let outcome = scene.run().await;

    assert!(outcome.starts_with("done, but: `shop.orders`: "), "{outcome}");
    scene.serves_for(2).await;
    assert!(scene.is_equal("shop.items"));
    assert_eq!(scene.atlas.schemas.get(&ns("shop.orders")).unwrap().kind, Kind::TimeSeries);
    assert_eq!(scene.cx.status.state().sync_problems.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_database_in_other_capitals_makes_way_for_the_local_one() {
    let scene = scene().local("shop.orders", ones(1..=9)).atlas("Shop.orders", ones(1..=9));
    let scene = scene.atlas("Shop.items", ones(1..=9)).atlas("other.items", ones(1..=9));
    let scene = scene.local("other.items", ones(1..=9)).owes_everything();
    scene.atlas.has_view(&ns("Shop.seen"), "orders");
    let atlas = scene.atlas.clone();
    scene.atlas.when("create shop.orders", move || {
        let names = ["Shop.orders", "Shop.items", "Shop.seen"];
        assert!(names.iter().all(|name| !atlas.is_there(&ns(name))), "it goes first");
    });

    assert_eq!(scene.run().await, "done");

    assert!(scene.is_equal("shop.orders") && scene.is_equal("other.items"));
}

#[tokio::test(start_paused = true)]
async fn views_are_made_like_the_local_ones() {
    let scene = scene().both("shop.orders", ones(1..=9)).asks(SyncRequest::default());
    scene.local.has_view(&ns("shop.new"), "orders");
    scene.local.has_view(&ns("shop.same"), "orders");
    scene.atlas.has_view(&ns("shop.same"), "orders");
    scene.local.has_view(&ns("shop.changed"), "orders");
    scene.atlas.has_view(&ns("shop.changed"), "items");
    scene.atlas.has_view(&ns("shop.old"), "orders");
    scene.local.has_time_series(&ns("shop.series"));
    scene.atlas.has_view(&ns("shop.series"), "orders");

    assert_eq!(scene.run().await, "done");

    let on =
        |name: &str| scene.atlas.options_of(&ns(name)).get_str("viewOn").map(str::to_owned).ok();
    assert_eq!((on("shop.new"), on("shop.changed")), (on("shop.same"), on("shop.same")));
    assert!(!scene.atlas.is_there(&ns("shop.old")));
    assert!(scene.atlas.is_there(&ns("shop.series")), "nobody replicates it");
    assert!(scene.share("shop.same").schema.is_empty());
    assert_eq!(scene.share("shop.old").schema, ["the view is in Atlas only"]);
}

#[tokio::test(start_paused = true)]
async fn a_collection_whose_change_is_held_up_is_left_and_owed_until_it_is_made() {
    let scene = scene().both("shop.a", ones(1..=9)).both("shop.b", ones(1..=3)).owes_everything();
    scene.atlas.lacks(&ns("shop.a"), [4]);
    barrier(&scene.queue, SchemaChange::Reconcile { ns: ns("shop.a"), collection: None });
    scene.watch.hold(&[ns("shop.a")]);
    scene.watch.list(&ns("shop.a"), vec![Problem::refused("an index is missing", "it is full")]);
    assert!(is_all_held_up(&scene.queue, &scene.watch));

    let outcome = scene.run().await;

    assert!(outcome.starts_with("done, but: `shop.a` was not compared: "), "{outcome}");
    assert!(outcome.contains("it is full"), "{outcome}");
    assert_eq!(behind::noted(&scene.queue).unwrap(), names(&["shop.a"]));
    assert!(scene.is_owed() && SyncState::open(&scene.queue).unwrap().is_none());
    scene.serves_for(10).await;
    assert!(scene.is_owed() && !scene.is_equal("shop.a"));
    scene.watch.let_go(&[ns("shop.a")]);
    scene.serves_for(20).await;
    assert!(!scene.is_owed() && scene.is_equal("shop.a"));
    assert!(!is_all_held_up(&scene.queue, &scene.watch));
}

#[tokio::test(start_paused = true)]
async fn what_is_asked_for_makes_a_collection_with_its_options_before_its_documents() {
    let scene = scene().local("shop.orders", ones(1..=9)).asks(SyncRequest::default());
    let options = rawdoc! { "validator": { "v": 1 } };
    scene.local.has(&ns("shop.empty"), options.clone());

    assert_eq!(scene.run().await, "done");

    scene.serves_for(2).await;
    assert!(scene.is_equal("shop.orders") && scene.is_equal("shop.empty"));
    assert_eq!(scene.atlas.options_of(&ns("shop.empty")), options);
    assert_eq!(scene.atlas.done()[..2].iter().filter(|of| of.starts_with("create")).count(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_replaced_collection_whose_drop_is_refused_is_told_of_and_the_others_are_done() {
    let scene = scene().local("shop.a", ones(1..=9)).local("shop.b", ones(1..=3));
    let scene = scene.owes(&["shop.a", "shop.b"]);
    scene.atlas.has(&ns("shop.a"), rawdoc! {});
    scene.atlas.fails("drop shop.a", Failure::Refused, 9);

    let outcome = scene.run().await;

    assert!(outcome.starts_with("not done, and tried again: `shop.a`"), "{outcome}");
    assert!(scene.is_equal("shop.b"));
}

#[tokio::test(start_paused = true)]
async fn a_name_that_was_given_away_and_is_made_again_meanwhile_is_compared_again() {
    let scene = scene().both("shop.a", ones(1..=9)).both("shop.b", ones(20..=29));
    let scene = scene.both("shop.c", ones(1..=3)).owes_everything();
    let (local, queue) = (scene.local.clone(), scene.queue.clone());
    scene.local.when_nth("list", 2, move || {
        local.renames(&ns("shop.a"), &ns("shop.b"));
        assert!(SyncState::renamed(&queue, &[ns("shop.a"), ns("shop.b")]).unwrap());
    });
    let local = scene.local.clone();
    scene.local.when_nth("list", 4, move || local.holds(&ns("shop.a"), [(40, 1)]));

    assert_eq!(scene.run().await, "done");

    scene.serves_for(5).await;
    assert!(scene.is_equal("shop.a") && scene.is_equal("shop.b"));
    assert_eq!(scene.local.times("size shop.c"), 1, "it is compared once");
}

#[tokio::test(start_paused = true)]
async fn what_is_asked_for_lets_a_database_in_other_capitals_go_as_far_as_it_is_about_it() {
    for (namespaces, goes) in [(vec![], true), (vec!["shop.orders".to_owned()], false)] {
        let scene = scene().local("shop.orders", ones(1..=9)).atlas("Shop.items", ones(1..=9));
        let scene = scene.asks(SyncRequest { namespaces, ..SyncRequest::default() });
        let atlas = scene.atlas.clone();
        scene.atlas.when("create shop.orders", move || {
            assert_eq!(atlas.is_there(&ns("Shop.items")), !goes, "it goes first");
        });

        assert_eq!(scene.run().await, "done");

        assert_eq!(scene.atlas.times("create shop.orders"), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn not_all_is_held_up_while_something_waits_that_may_go() {
    let scene = scene().both("shop.a", ones(1..=9)).both("shop.b", ones(1..=3));
    assert!(!is_all_held_up(&scene.queue, &scene.watch), "nothing waits");
    barrier(&scene.queue, SchemaChange::Reconcile { ns: ns("shop.a"), collection: None });
    scene.watch.hold(&[ns("shop.a")]);
    assert!(is_all_held_up(&scene.queue, &scene.watch));

    changed(&scene.queue, "shop.b", 1);

    assert!(!is_all_held_up(&scene.queue, &scene.watch));
}
