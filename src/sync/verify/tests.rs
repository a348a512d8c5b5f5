//! Verifications of two databases in memory: what differs is found, and what is on its way is not told of.

use bson::rawdoc;

use super::*;
use crate::{
    observe::progress::Activity,
    side::{
        fake_database::{Failure, FakeDatabase, ns, ones},
        fake_schema::index,
    },
};

struct Scene {
    local: Arc<FakeDatabase>,
    atlas: Arc<FakeDatabase>,
    scope: Vec<String>,
    digest: bool,
    /// How far the agent lags behind; `None` where none runs.
    lag: Option<Duration>,
    progress: Arc<Mutex<Progress>>,
    stop: Stop,
}

fn scene() -> Scene {
    let progress = Progress::begin("a".to_owned(), Activity::Verify, "asked".to_owned(), 1);
    Scene {
        local: Arc::new(FakeDatabase::source(1)),
        atlas: Arc::new(FakeDatabase::target(1)),
        scope: Vec::new(),
        digest: false,
        lag: None,
        progress: Arc::new(Mutex::new(progress)),
        stop: Stop::default(),
    }
}

impl Scene {
    fn both(self, name: &str, documents: impl IntoIterator<Item = (i32, i32)> + Clone) -> Self {
        self.local.holds(&ns(name), documents.clone());
        self.atlas.holds(&ns(name), documents);
        self
    }

    fn of(mut self, scope: &str) -> Self {
        self.scope = vec![scope.to_owned()];
        self
    }

    fn by_digest(mut self) -> Self {
        self.digest = true;
        self
    }

    fn lags(mut self, seconds: u64) -> Self {
        self.lag = Some(Duration::from_secs(seconds));
        self
    }

    async fn verified(&self) -> Result<Verification, SyncError> {
        let lag = self.lag;
        let sides = Sides::new(self.local.clone(), self.atlas.clone(), 4, 0);
        let verify = Verify {
            sides: &sides,
            filter: &NamespaceFilter::new(&[], &[]).unwrap(),
            scope: &NamespaceFilter::new(&self.scope, &[]).unwrap(),
            digest: self.digest,
            lag: Arc::new(move || lag),
            progress: self.progress.clone(),
            stop: &self.stop,
        };
        verify.run().await
    }

    /// What was found in a collection.
    async fn found(&self, name: &str) -> NamespaceResult {
        let verified = self.verified().await.unwrap();
        let found = verified.namespaces.into_iter().find(|of| of.ns == name);
        found.expect("it was looked at")
    }
}

/// Missing, in Atlas only, and different.
fn counts(result: &NamespaceResult) -> (u64, u64, u64) {
    (result.missing.count, result.extra.count, result.different.count)
}

/// Atlas lacks two of ten, has another value in one, and three that are not here.
fn differing() -> Scene {
    let scene = scene().both("shop.orders", ones(10..20));
    scene.atlas.lacks(&ns("shop.orders"), [12, 19]);
    scene.atlas.holds(&ns("shop.orders"), [(15, 2), (1, 1), (98, 1), (99, 1)]);
    scene
}

#[tokio::test(start_paused = true)]
async fn each_difference_is_found_whatever_way_is_taken() {
    for (digest, in_another_order) in [(false, false), (true, false), (false, true)] {
        let scene = if digest { differing().by_digest() } else { differing() };
        if in_another_order {
            scene.atlas.walks_in_another_order();
        }

        let verified = scene.verified().await.unwrap();

        let found = &verified.namespaces[0];
        assert_eq!(counts(found), (2, 3, 1), "{digest}");
        assert_eq!(found.missing.keys, [12, 19].map(serde_json::Value::from));
        assert!(!verified.equal && !found.is_equal());
        assert_eq!((verified.digest, verified.by_hash), (digest, false));
        assert_eq!((verified.documents, found.documents, found.changing), (10, 10, 0));
        assert!(verified.bytes > 0 && verified.bytes == found.bytes);
        assert!(verified.bytes_from_atlas > 0);
        let mut progress = scene.progress.lock().clone();
        let share = progress.share(&ns("shop.orders"));
        assert_eq!(
            (share.documents, share.documents_done, share.state),
            (10, 10, ShareState::Done)
        );
        assert_eq!((share.missing, share.extra, share.content), (2, 3, 1));
        assert!(scene.atlas.done().is_empty() && scene.local.done().is_empty());
    }
}

#[tokio::test(start_paused = true)]
async fn equal_sides_are_equal_and_a_digest_reads_no_document_of_them() {
    let scene = scene().both("shop.orders", ones(1..=500)).both("shop.items", ones(1..=3));
    assert!(scene.verified().await.unwrap().equal);

    let scene = scene.by_digest();
    let pages = scene.atlas.times("page shop.orders");
    let verified = scene.verified().await.unwrap();

    assert!(verified.equal);
    assert_eq!((verified.documents, verified.bytes_from_atlas), (503, 0));
    assert_eq!(scene.atlas.times("page shop.orders"), pages);
}

#[tokio::test(start_paused = true)]
async fn a_digest_opens_only_what_differs_and_says_where_there_is_none() {
    let scene = scene().both("shop.orders", ones(1..=2_000)).by_digest();
    scene.atlas.holds(&ns("shop.orders"), [(700, 2)]);
    let verified = scene.verified().await.unwrap();
    assert_eq!(counts(&verified.namespaces[0]), (0, 0, 1));
    assert_eq!(verified.documents, 2_000);
    let each = verified.bytes / 2_000;
    assert!(verified.bytes_from_atlas <= 64 * each, "{}", verified.bytes_from_atlas);

    scene.atlas.cannot_hash();
    let refused = scene.verified().await.unwrap_err();
    assert!(matches!(refused, SyncError::NoDigest { end: super::super::SideName::Atlas }));
}

#[tokio::test(start_paused = true)]
async fn a_clustered_collection_is_never_hashed() {
    let scene = scene().by_digest();
    let clustered = rawdoc! { "clusteredIndex": { "key": { "_id": 1 }, "unique": true } };
    for end in [&scene.local, &scene.atlas] {
        end.has(&ns("shop.orders"), clustered.clone());
        end.holds(&ns("shop.orders"), ones(1..=9));
    }

    assert!(scene.verified().await.unwrap().equal);

    assert_eq!(scene.local.times("digests shop.orders"), 0);
}

#[tokio::test(start_paused = true)]
async fn collections_options_indexes_and_views_that_differ_are_told_of() {
    let scene = scene().both("shop.orders", ones(1..=3));
    scene.local.holds(&ns("shop.new"), ones(1..=2));
    scene.atlas.holds(&ns("shop.old"), ones(1..=2));
    scene.local.indexed(&ns("shop.orders"), &[index("a")]);
    scene.atlas.indexed(&ns("shop.orders"), &[index("b")]);
    scene.local.has_view(&ns("shop.shown"), "orders");
    scene.atlas.has_view(&ns("shop.seen"), "orders");
    for end in [&scene.local, &scene.atlas] {
        end.has_view(&ns("shop.view"), "orders");
        end.has_time_series(&ns("shop.series"));
    }

    let verified = scene.verified().await.unwrap();

    let found: Vec<_> = verified
        .namespaces
        .iter()
        .map(|of| (of.ns.as_str(), of.schema.len(), counts(of)))
        .collect();
    let expected = [
        ("shop.new", 1, (2, 0, 0)),
        ("shop.old", 1, (0, 2, 0)),
        ("shop.orders", 2, (0, 0, 0)),
        ("shop.seen", 1, (0, 0, 0)),
        ("shop.shown", 1, (0, 0, 0)),
    ];
    assert_eq!(found, expected);
    assert!(!verified.equal);
    assert_eq!(verified.namespaces[0].schema, ["the collection is missing in Atlas"]);
    assert_eq!(verified.namespaces[1].schema, ["the collection is in Atlas only"]);
    assert_eq!(verified.namespaces[3].schema, ["the view is in Atlas only"]);
    assert_eq!(verified.left_out, ["shop.series: a time-series collection"]);
    assert_eq!(scene.local.times("page shop.old"), 0, "a view may have the name");

    scene.atlas.is_plain();
    let verified = scene.verified().await.unwrap();
    assert!(verified.namespaces.iter().all(|of| of.ns != "shop.shown"), "it keeps none");
}

#[tokio::test(start_paused = true)]
async fn only_what_is_in_scope_is_looked_at() {
    let scene = differing().both("shop.items", ones(1..=3)).of("shop.items");
    scene.atlas.has_view(&ns("shop.seen"), "orders");
    scene.atlas.has_time_series(&ns("shop.series"));
    let verified = scene.verified().await.unwrap();
    assert!(verified.equal && verified.left_out.is_empty());
    assert_eq!(verified.namespaces.len(), 1);

    let refused = scene.of("shop.itms").verified().await.unwrap_err();
    assert!(matches!(refused, SyncError::NothingMatches(_)), "{refused}");
}

#[tokio::test(start_paused = true)]
async fn what_arrives_within_the_lag_is_no_difference() {
    let scene = differing().lags(5);
    let atlas = scene.atlas.clone();
    scene.atlas.when_nth("find shop.orders", 6, move || {
        atlas.holds(&ns("shop.orders"), [(12, 1), (15, 1)]);
        atlas.lacks(&ns("shop.orders"), [1, 98]);
    });

    let found = scene.found("shop.orders").await;

    assert_eq!(counts(&found), (1, 1, 0), "what has stayed longer than it lags");
    assert!(scene.atlas.times("find shop.orders") >= 7);
}

#[tokio::test(start_paused = true)]
async fn where_no_agent_runs_one_more_look_is_enough() {
    let scene = differing();
    let atlas = scene.atlas.clone();
    scene.atlas.when("find shop.orders", move || atlas.holds(&ns("shop.orders"), [(15, 1)]));

    let began = clock::now();
    let found = scene.found("shop.orders").await;

    assert_eq!(counts(&found), (2, 3, 0));
    assert!(clock::since(began) < Duration::from_secs(2));
}

#[tokio::test(start_paused = true)]
async fn a_document_whose_kind_of_difference_changes_is_counted_as_what_it_is_at_last() {
    let scene = differing().lags(2);
    let (local, atlas) = (scene.local.clone(), scene.atlas.clone());
    scene.local.when_nth("find shop.orders", 2, move || {
        local.lacks(&ns("shop.orders"), [15]);
        local.holds(&ns("shop.orders"), [(1, 5)]);
        atlas.lacks(&ns("shop.orders"), [98]);
    });

    let found = scene.found("shop.orders").await;

    assert_eq!(counts(&found), (2, 2, 1), "15 is in Atlas only, and 1 in both");
}

#[tokio::test(start_paused = true)]
async fn a_document_that_changes_all_the_time_on_both_sides_is_not_judged() {
    let scene = scene().both("shop.orders", ones(1..=3)).lags(5);
    scene.atlas.holds(&ns("shop.orders"), [(2, 0)]);
    for n in 1..=100 {
        let (local, atlas) = (scene.local.clone(), scene.atlas.clone());
        scene.local.when_nth("find shop.orders", n, move || {
            local.holds(&ns("shop.orders"), [(2, 2 * n as i32)]);
            atlas.holds(&ns("shop.orders"), [(2, 2 * n as i32 - 1)]);
        });
    }

    let found = scene.found("shop.orders").await;

    assert_eq!((counts(&found), found.changing), ((0, 0, 0), 1));
    assert!(found.is_equal());
}

#[tokio::test(start_paused = true)]
async fn one_that_follows_and_never_arrives_is_a_difference_after_a_minute() {
    // The copy stays as it is, and the queue lags further behind than anyone waits.
    let scene = differing().lags(10_000);
    let began = clock::now();

    let found = scene.found("shop.orders").await;

    assert_eq!((counts(&found), found.changing), ((2, 3, 1), 0));
    let took = clock::since(began);
    assert!(took > LOOK_MAX && took < LOOK_MAX + Duration::from_secs(3), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn a_large_difference_is_compared_anew_as_it_may_be_on_its_way() {
    let scene = scene().lags(5);
    scene.local.holds(&ns("shop.orders"), ones(0..10_050));
    scene.atlas.holds(&ns("shop.orders"), []);
    let atlas = scene.atlas.clone();
    scene.atlas.when_nth("page shop.orders", 4, move || {
        atlas.holds(&ns("shop.orders"), ones(0..10_050));
    });
    assert!(scene.verified().await.unwrap().equal, "it has come");

    scene.atlas.drops(&ns("shop.orders"));
    scene.atlas.holds(&ns("shop.orders"), []);
    let began = clock::now();
    let found = scene.found("shop.orders").await;
    assert_eq!((found.missing.count, found.missing.keys.len()), (10_050, NAMED));
    let took = clock::since(began).as_secs();
    assert!((20..30).contains(&took), "two waits of the lag, and the looks: {took}");
    let mut scene = scene;
    scene.lag = None;
    let began = clock::now();
    assert_eq!(scene.found("shop.orders").await.missing.count, 10_050);
    assert!(clock::since(began).as_secs() < 3, "nothing is on its way");
}

#[tokio::test(start_paused = true)]
async fn a_schema_that_differs_is_looked_at_once_more_after_the_lag() {
    let scene = scene().both("shop.orders", ones(1..=3)).both("shop.items", ones(1..=3)).lags(5);
    scene.local.indexed(&ns("shop.orders"), &[index("a")]);
    scene.local.indexed(&ns("shop.items"), &[index("b")]);
    scene.local.holds(&ns("shop.gone"), []);
    scene.atlas.holds(&ns("shop.new"), []);
    scene.local.has_view(&ns("shop.shown"), "orders");
    scene.local.has_view(&ns("shop.late"), "orders");
    let (local, atlas) = (scene.local.clone(), scene.atlas.clone());
    scene.local.when_nth("list", 2, move || atlas.has_view(&ns("shop.late"), "orders"));
    let atlas = scene.atlas.clone();
    scene.local.when_nth("describe shop.orders", 1, move || {
        atlas.indexed(&ns("shop.orders"), &[index("a")]);
        local.drops(&ns("shop.gone"));
    });

    let began = clock::now();
    let verified = scene.verified().await.unwrap();

    assert!(clock::since(began).as_secs() >= 14, "once for the views, and once for the rest");
    let differ: Vec<_> =
        verified.namespaces.iter().filter(|of| !of.is_equal()).map(|of| of.ns.as_str()).collect();
    let expected = ["shop.items", "shop.new", "shop.shown"];
    assert!(differ == expected || differ == ["shop.gone", "shop.items", "shop.new", "shop.shown"]);
}

#[tokio::test(start_paused = true)]
async fn an_end_that_is_away_is_waited_for_and_one_that_refuses_is_not_for_ever() {
    let scene = differing();
    for what in ["list", "size shop.orders", "page shop.orders", "find shop.orders"] {
        scene.local.fails(what, Failure::Away, 2);
    }
    scene.local.fails("page shop.orders", Failure::Overtaken, 3);
    assert_eq!(counts(&scene.found("shop.orders").await), (2, 3, 1));

    scene.atlas.fails("page shop.orders", Failure::Refused, 9);
    let refused = scene.verified().await.unwrap_err();
    assert!(matches!(refused, SyncError::Sink(_)), "{refused}");
    scene.local.fails("page shop.orders", Failure::Overtaken, 99);
    let refused = scene.verified().await.unwrap_err();
    assert!(matches!(refused, SyncError::Source(crate::source::SourceError::Failed(_))));
}

#[test]
fn a_document_that_is_gone_looks_like_no_other() {
    assert_ne!(fingerprint(&rawdoc! { "_id": 1 }), fingerprint(&rawdoc! { "_id": 2 }));
    let mut seen = Seen::unknown();
    seen.look(None);
    assert_eq!(seen.fingerprint, Some(0));
    seen.look(Some(&rawdoc! { "_id": 1 }));
    assert_eq!(seen.fingerprint, Some(fingerprint(&rawdoc! { "_id": 1 })));
}

#[test]
fn a_collection_is_equal_where_nothing_of_any_kind_was_found_and_only_there() {
    let key = DocumentKey::of(&rawdoc! { "_id": 1 }).unwrap();
    assert!(NamespaceResult::default().is_equal());
    for kind in [Mismatch::Missing, Mismatch::Extra, Mismatch::Content] {
        let mut found = NamespaceResult::default();
        found.add(kind, &key);
        assert!(!found.is_equal(), "{kind:?}");
    }
    let of_schema = NamespaceResult { schema: vec!["an index".to_owned()], ..Default::default() };
    assert!(!of_schema.is_equal());
}
