//! How much a run queues at once, and what it remembers of one that was broken off.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::Relaxed},
};

use super::scene::{NOW, barrier, key, names, ns, ones, scene};
use crate::{
    model::{checkpoint::ClusterTime, event::SchemaChange},
    observe::progress::ShareState,
    runtime::shutdown::Stop,
    sync::state::{Reason, SyncRequest, SyncState},
};

#[tokio::test(start_paused = true)]
async fn a_huge_difference_does_not_fill_the_queue() {
    let scene = scene().both("shop.orders", ones(1..=1)).local("shop.orders", ones(2..=4_500));
    let scene = scene.asks(SyncRequest::default());
    let most: Arc<AtomicU64> = Arc::default();
    for n in 1..100 {
        let (queue, most) = (scene.queue.clone(), most.clone());
        let seen = move || {
            most.fetch_max(queue.pending().0, Relaxed);
        };
        scene.atlas.when_nth("write shop.orders", n, seen);
    }

    assert_eq!(scene.run().await, "done");

    let most = most.load(Relaxed);
    assert!((1..=2_000).contains(&most), "{most}");
    scene.serves_for(300).await;
    assert!(scene.is_equal("shop.orders"));
}

#[tokio::test(start_paused = true)]
async fn what_is_a_view_here_is_not_read_through_for_the_collection_that_atlas_has() {
    let scene = scene().both("shop.orders", ones(1..=9)).atlas("shop.seen", ones(1..=5));
    let scene = scene.asks(SyncRequest { digest: true, ..SyncRequest::default() });
    scene.local.has_view(&ns("shop.seen"), "orders");

    assert_eq!(scene.run().await, "done");

    assert_eq!(scene.found("shop.seen"), (0, 5, 0));
    let asked = ["page", "keys", "digests"].map(|of| scene.local.times(&format!("{of} shop.seen")));
    assert_eq!(asked, [0, 0, 0]);
}

#[tokio::test(start_paused = true)]
async fn a_run_that_goes_on_shows_what_is_done_and_answers_for_all_that_may_be_queued() {
    let mut scene = scene().local("shop.a", ones(1..=9)).local("shop.b", ones(1..=9));
    scene = scene.owes_everything();
    let stop = scene.stop.clone();
    scene.local.fails("page shop.b", crate::side::fake_database::Failure::Away, 5);
    scene.local.when_nth("page shop.b", 4, move || stop.drain.cancel());
    assert!(scene.serve().await.is_err());
    assert_eq!(SyncState::load(&scene.queue).unwrap().unwrap().done, names(&["shop.a"]));
    assert!(!scene.cx.status.repaired.contains(&ns("shop.a"), &key(1)));

    scene.stop = Stop::default();
    let writes = scene.atlas.times("write shop.a");
    assert_eq!(scene.run().await, "done");

    assert!(scene.is_equal("shop.b"));
    assert_eq!(scene.atlas.times("write shop.a"), writes, "it is done");
    assert_eq!(scene.share("shop.a").state, ShareState::Done);
    assert_eq!((scene.share("shop.a").documents, scene.share("shop.b").documents), (0, 9));
    assert!(scene.cx.status.repaired.contains(&ns("shop.a"), &key(1)), "nobody knows any more");
}

#[tokio::test(start_paused = true)]
async fn what_is_required_while_a_run_is_owed_has_it_begin_again() {
    let scene = scene().local("shop.a", ones(1..=9)).owes_everything();
    let queue = scene.queue.clone();
    scene.local.when("page shop.a", move || {
        SyncState::require(&queue, ClusterTime(NOW), Reason::HistoryLost).unwrap();
    });

    let outcome = scene.run().await;

    assert!(outcome.starts_with("ended; it begins anew"), "{outcome}");
    assert!(scene.is_owed());
    assert_eq!(scene.run().await, "done");
    assert!(!scene.is_owed() && scene.is_equal("shop.a"));
}

#[tokio::test(start_paused = true)]
async fn what_was_asked_for_and_gave_way_comes_behind_what_was_owed() {
    let scene = scene().both("shop.a", ones(1..=9)).both("shop.b", ones(1..=3));
    scene.atlas.lacks(&ns("shop.b"), [2]);
    let request = SyncRequest { namespaces: vec!["shop.b".into()], ..SyncRequest::default() };
    let scene = scene.asks(request).owes(&["shop.a"]);

    assert_eq!(scene.run().await, "done");
    assert_eq!(scene.found("shop.b"), (0, 0, 0));
    assert_eq!(scene.run().await, "done");
    assert_eq!(scene.found("shop.b"), (1, 0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_barrier_of_a_buffer_that_comes_while_it_is_made_anew_has_it_looked_at_once_more() {
    let capped = bson::rawdoc! { "capped": true, "size": 4_096 };
    let scene = scene().owes(&["shop.log"]);
    for end in [&scene.local, &scene.atlas] {
        end.has(&ns("shop.log"), capped.clone());
    }
    scene.local.holds(&ns("shop.log"), [(7, 1), (3, 1)]);
    let queue = scene.queue.clone();
    scene.atlas.when_nth("empty shop.log", 2, move || {
        barrier(&queue, SchemaChange::Reconcile { ns: ns("shop.log"), collection: None });
    });

    assert_eq!(scene.run().await, "done");

    assert_eq!(scene.atlas.inserted(&ns("shop.log")), [7, 3]);
}
