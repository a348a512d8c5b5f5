//! Restores between two databases in memory: what comes, what is refused, and what goes on.

use std::sync::Arc;

use bson::rawdoc;
use parking_lot::Mutex;

use super::*;
use crate::{
    observe::progress::Activity,
    schema::Kind,
    side::{
        fake_database::{Failure, FakeDatabase, ns, ones},
        fake_schema::{index, unique},
    },
};

/// From Atlas into a local database.
struct Scene {
    local: Arc<FakeDatabase>,
    atlas: Arc<FakeDatabase>,
    progress: Arc<Mutex<Progress>>,
    scope: Vec<String>,
    origin: &'static str,
    stop: Stop,
}

fn scene() -> Scene {
    let progress = Progress::begin("a".to_owned(), Activity::Restore, "asked".to_owned(), 1);
    Scene {
        local: Arc::new(FakeDatabase::source(1)),
        atlas: Arc::new(FakeDatabase::target(1)),
        progress: Arc::new(Mutex::new(progress)),
        scope: Vec::new(),
        origin: "cluster.example",
        stop: Stop::default(),
    }
}

impl Scene {
    fn atlas(self, name: &str, documents: impl IntoIterator<Item = (i32, i32)>) -> Self {
        self.atlas.holds(&ns(name), documents);
        self
    }

    fn of(mut self, scope: &str) -> Self {
        self.scope = vec![scope.to_owned()];
        self
    }

    /// Everything that is to be restored, and then the word that both are equal where `is_equal`.
    async fn restored_and(&self, is_equal: bool) -> Result<Restored, RestoreError> {
        let mut sides = Sides::new(self.local.clone(), self.atlas.clone(), 4, 0);
        sides.patience = Some(Duration::from_secs(60));
        let restore = Restore {
            sides: &sides,
            sink: &*self.local,
            filter: &NamespaceFilter::new(&[], &[]).unwrap(),
            scope: &NamespaceFilter::new(&self.scope, &[]).unwrap(),
            origin: self.origin.to_owned(),
            progress: self.progress.clone(),
            stop: &self.stop,
        };
        let restored = restore.run().await?;
        if is_equal {
            restore.verified().await?;
        }
        Ok(restored)
    }

    async fn restored(&self) -> Result<Restored, RestoreError> {
        self.restored_and(true).await
    }

    async fn refusal(&self) -> String {
        self.restored().await.unwrap_err().to_string()
    }

    fn is_equal(&self, name: &str) -> bool {
        self.local.is_there(&ns(name))
            && self.local.values(&ns(name)) == self.atlas.values(&ns(name))
    }
}

#[tokio::test(start_paused = true)]
async fn an_empty_database_gets_everything_with_options_indexes_and_views() {
    let scene = scene().atlas("shop.orders", ones(1..=10));
    scene.atlas.indexed(&ns("shop.orders"), &[index("a"), unique("u")]);
    let capped = rawdoc! { "capped": true, "size": 4_096 };
    scene.atlas.has(&ns("shop.log"), capped.clone());
    scene.atlas.holds(&ns("shop.log"), [(7, 1), (3, 1), (5, 1)]);
    scene.atlas.of(&ns("shop.log")).is_said_to_have(64 << 20);
    scene.atlas.has_view(&ns("shop.seen"), "orders");
    scene.atlas.has_time_series(&ns("shop.series"));
    scene.local.has(&ns("shop.orders"), rawdoc! {}); // Empty, and so in nobody's way.

    let restored = scene.restored().await.unwrap();

    assert!(scene.is_equal("shop.orders"));
    assert_eq!(scene.local.inserted(&ns("shop.log")), [7, 3, 5]);
    assert_eq!(scene.local.options_of(&ns("shop.log")), capped);
    assert_eq!(scene.atlas.times("sample shop.log"), 0, "in one piece");
    assert_eq!(scene.local.schemas.indexes(&ns("shop.orders")), ["u", "a"]);
    assert_eq!(scene.local.schemas.get(&ns("shop.seen")).unwrap().kind, Kind::View);
    let mut done = scene.local.done();
    done.retain(|of| of.ends_with("orders"));
    let expected = ["create", "createIndexes", "write", "createIndexes"];
    assert_eq!(done, expected.map(|of| format!("{of} shop.orders")), "what is unique comes first");
    let problems = vec!["`shop.series`: a time-series collection".to_owned()];
    assert_eq!(restored, Restored { documents: 13, problems });
    assert!(scene.local.notes_left().is_empty(), "it is over");
    assert!(scene.atlas.done().is_empty());
    let mut progress = scene.progress.lock().clone();
    let share = progress.share(&ns("shop.orders"));
    assert_eq!((share.documents, share.documents_done), (10, 10));
    assert!(share.bytes_done > 0 && share.state == ShareState::Done);
}

#[tokio::test(start_paused = true)]
async fn what_holds_data_is_never_written_over() {
    let scene = scene().atlas("shop.orders", ones(1..=10)).atlas("shop.items", ones(1..=3));
    scene.local.holds(&ns("shop.items"), ones(20..=21));
    assert!(scene.refusal().await.contains("holds data in `shop.items`"));
    scene.local.holds(&ns("shop.items"), ones(22..=22));
    scene.local.holds(&ns("shop.orders"), ones(1..=10));
    assert!(scene.refusal().await.contains("looks already restored"));
    scene.local.drops(&ns("shop.items"));
    scene.local.drops(&ns("shop.orders"));
    scene.local.has_view(&ns("shop.seen"), "orders");
    assert!(scene.refusal().await.contains("holds data in `shop.seen`"));
    scene.local.has_time_series(&ns("shop.seen"));
    assert!(scene.refusal().await.contains("holds data in `shop.seen`"));
    assert!(scene.local.done().is_empty() && scene.local.notes_left().is_empty());

    // What is not restored may be there.
    let scene = scene.of("shop.orders");
    scene.local.holds(&ns("shop.items"), ones(1..=3));
    assert_eq!(scene.restored().await.unwrap().documents, 10);
    assert!(scene.is_equal("shop.orders"));
    assert_eq!(scene.local.times("write shop.items"), 0);
}

#[tokio::test(start_paused = true)]
async fn a_restore_of_nothing_or_of_no_documents_is_refused() {
    assert!(scene().refusal().await.contains("holds no collection"));
    let scene = scene().atlas("shop.orders", ones(1..=3)).of("shop.oders");
    let refusal = scene.refusal().await;
    assert!(refusal.contains("no collection matches `shop.oders`; did you mean"), "{refusal}");
    let scene = scene.of("shop.orders");
    scene.atlas.keeps_hashes_alone();
    assert!(scene.refusal().await.contains("keeps no whole documents"));
    assert!(scene.local.asked().is_empty());

    let scene = self::scene();
    scene.atlas.has_view(&ns("shop.seen"), "orders");
    scene.restored().await.unwrap();
    assert!(scene.local.is_there(&ns("shop.seen")), "a view is something");
    let scene = self::scene();
    scene.atlas.has_time_series(&ns("shop.series"));
    assert_eq!(scene.restored().await.unwrap().problems.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_restore_that_was_broken_off_goes_on_with_what_is_open() {
    let mut scene = scene().atlas("shop.big", ones(0..1_000)).atlas("shop.orders", ones(1..=3));
    scene.atlas.of(&ns("shop.big")).is_said_to_have(64 << 10);
    let stop = scene.stop.clone();
    scene.atlas.when_nth("page shop.big", 19, move || stop.drain.cancel());
    let stopped = scene.restored().await.unwrap_err();
    assert!(matches!(stopped, RestoreError::Sync(SyncError::Stopped)));
    let notes = scene.local.notes_left();
    let plan: CopyPlan = serde_json::from_str(&notes["shop.big"]).unwrap();
    assert_eq!((notes[ITSELF].as_str(), plan.splits.len()), ("cluster.example", 4));
    assert!(!plan.done.is_empty() && plan.done.len() < 5);

    // Somebody writes into it meanwhile, and makes an index.
    let (pages, open) = (scene.atlas.times("page shop.big"), 5 - plan.done.len());
    let ours = scene.local.values(&ns("shop.big"));
    let theirs = (0..1_000).find(|id| !ours.contains_key(id)).unwrap();
    scene.local.holds(&ns("shop.big"), [(theirs, 9)]);
    scene.local.indexed(&ns("shop.big"), &[index("theirs")]);
    scene.stop = Stop::default();
    let restored = scene.restored_and(false).await.unwrap();

    assert!(scene.atlas.times("page shop.big") - pages <= open * 5, "no other is read again");
    let (kept, share) = (scene.local.values(&ns("shop.big")), &ns("shop.big"));
    assert_eq!((kept.len(), kept[&theirs]), (1_000, 9));
    assert_eq!(scene.local.schemas.indexes(&ns("shop.big")), ["theirs"]);
    assert_eq!(scene.progress.lock().share(share).documents, 200 * open as u64);
    assert!(restored.documents >= 200 * open as u64 && restored.documents < 1_000 + 4);
    assert!(!scene.local.notes_left().is_empty(), "nobody has said that both are equal");
    scene.origin = "another.example";
    assert!(scene.refusal().await.contains("a restore from `cluster.example` was begun"));
    scene.origin = "cluster.example";
    let scene = scene.of("shop.orders");
    scene.restored().await.unwrap();
    assert!(!scene.local.notes_left().is_empty(), "they are of more than that");
}

#[tokio::test(start_paused = true)]
async fn one_that_goes_on_writes_over_nothing_that_it_has_not_begun() {
    let scene = scene().atlas("shop.orders", ones(1..=3)).of("shop.orders");
    scene.restored_and(false).await.unwrap();
    let scene = scene.atlas("shop.items", ones(1..=3)).of("shop.items");
    scene.local.holds(&ns("shop.items"), ones(7..=7));

    assert!(scene.refusal().await.contains("holds data in `shop.items`"));
}

#[tokio::test(start_paused = true)]
async fn what_the_local_database_does_not_take_is_told_of() {
    let scene = scene().atlas("shop.orders", ones(1..=9)).atlas("shop.items", ones(1..=9));
    scene.atlas.has(&ns("shop.other"), rawdoc! { "validator": {} });
    scene.atlas.indexed(&ns("shop.items"), &[index("a"), unique("u")]);
    scene.local.refuses_document(5);
    scene.local.has(&ns("shop.other"), rawdoc! { "validator": { "v": 1 } });
    scene.local.fails("createIndexes shop.items", Failure::Refused, 9);
    scene.local.fails("create shop.orders", Failure::Refused, 1);
    let local = scene.local.clone();
    scene.local.when("write shop.orders", move || local.holds(&ns("shop.orders"), []));

    let mut problems = scene.restored().await.unwrap().problems;

    problems.sort();
    problems.dedup();
    let begin = [
        "`shop.items`: document 5: too large",
        "`shop.items`: index `a` is missing in the local database",
        "`shop.items`: index `u` is missing in the local database",
        "`shop.orders`: document 5: too large",
        "`shop.orders`: not made as it was: ",
        "`shop.other`: not made as it was: its options are others",
    ];
    assert_eq!(problems.len(), begin.len(), "{problems:#?}");
    for (problem, begin) in problems.iter().zip(begin) {
        assert!(problem.starts_with(begin), "{problem}");
    }
    assert_eq!(scene.local.values(&ns("shop.orders")).len(), 8);
}

#[tokio::test(start_paused = true)]
async fn a_local_database_that_is_away_is_waited_for_a_minute_and_one_that_denies_is_not() {
    let scene = scene().atlas("shop.orders", ones(1..=9));
    scene.local.fails("write shop.orders", Failure::Away, 3);
    scene.local.fails("create shop.orders", Failure::Unanswered, 2);
    scene.local.fails("read notes", Failure::Away, 2);
    assert_eq!(scene.restored().await.unwrap().documents, 9);

    for (failure, is_away, at_least) in [(Failure::Away, true, 60), (Failure::Denied, false, 0)] {
        for what in ["write shop.orders", "create shop.orders"] {
            let scene = self::scene().atlas("shop.orders", ones(1..=9));
            scene.local.fails(what, failure, 1_000);
            let began = clock::now();

            let ended = scene.restored().await.unwrap_err();

            let RestoreError::Sync(SyncError::LocalTarget { is_away: found, .. }) = ended else {
                panic!("{ended}");
            };
            assert_eq!(found, is_away, "{what}");
            let took = clock::since(began).as_secs();
            assert!((at_least..at_least + 30).contains(&took), "{what}: {took}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn nothing_is_copied_before_it_is_noted() {
    let scene = scene().atlas("shop.orders", ones(1..=9));
    scene.local.fails("note", Failure::Refused, 1);

    assert!(scene.refusal().await.contains("the note of the restore was not taken"));

    assert!(scene.local.done().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_target_without_options_gives_its_documents_and_says_so() {
    let scene = scene().atlas("shop.orders", ones(1..=9));
    scene.atlas.is_plain();
    scene.local.fails("forget notes", Failure::Away, 1);

    let restored = scene.restored().await.unwrap();

    assert_eq!(restored.problems, ["options and indexes of collections: the target keeps none"]);
    assert!(scene.is_equal("shop.orders"));
}

#[test]
fn what_a_local_target_says_names_its_own_connection_string() {
    let error = SinkError::Denied("look at MONGODB_ATLAS_URI".to_owned());
    let told = local_error(&error).to_string();
    assert!(told.ends_with("look at MONGODB_LOCAL_URI"), "{told}");
}
