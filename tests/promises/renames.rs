//! Collections that change their names while changes of them wait: each document ends where its collection is, and
//! nowhere else.

use std::time::Duration;

use mongodb::bson::{Document, doc};
use rand::{SeedableRng, rngs::StdRng};
use serde_json::json;

use crate::support::{
    PATIENCE,
    agent::Agent,
    api::Api,
    equal::equal,
    eventually,
    guarded::Guarded,
    mongod::Mongod,
    names::{self, rename},
    orders, pair, seed,
    unasked::Unasked::{DeadLetters, Doubt, Retries},
};

/// `OUTRIGGER_SEED=13313997902051060551` left a view out now and then, while a comparison dropped by name what a
/// collection was listed under.
#[tokio::test(flavor = "multi_thread")]
async fn collections_that_change_their_names_at_random_end_equal() {
    let mut rng = StdRng::seed_from_u64(seed());
    let (local, atlas) = pair().await;
    let mut agent = Agent::started(&local.uri(), &atlas.uri());
    agent.may(&[Doubt], "a collection whose name has changed hands is compared");
    agent.streaming().await;
    let db = local.client.database("shop");

    for round in 0..24 {
        let is_paused = round % 2 == 1;
        if is_paused {
            assert!(agent.cli(&["pause"]).status.success());
        }
        for _ in 0..40 {
            names::step(&db, &mut rng).await.unwrap();
        }
        if is_paused {
            assert!(agent.cli(&["resume"]).status.success());
        }
        println!("round {round}");
        equal(&local, &atlas, PATIENCE).await;
    }

    assert_eq!(agent.health().unwrap()["deadLetters"], 0);
    assert!(agent.stop().success());
}

/// What reads for an entry that does not know its collection.
#[derive(Clone, Copy, PartialEq)]
enum Reads {
    /// An update: on a server whose events tell nothing of it.
    Update,
    /// The key of an import.
    Import,
}

/// The entry is in the queue, the rename has been made, and the stream has not told of it when the document is read.
async fn is_read_after_a_rename(version: &str, reads: Reads) {
    let (local, atlas) = tokio::join!(Mongod::start_of(version), Mongod::start());
    let db = local.client.database("shop");
    let (left, right) = (db.collection::<Document>("left"), db.collection("right"));
    left.insert_many((0..20).map(|id| doc! { "_id": id, "of": "left" })).await.unwrap();
    right.insert_many((10..30).map(|id| doc! { "_id": id, "of": "right" })).await.unwrap();
    let agent = Agent::started(&local.uri(), &atlas.uri());
    agent.streaming().await;
    equal(&local, &atlas, PATIENCE).await;

    // Twice: what was found out of the names once must not be taken for what they mean now.
    for round in 0..2 {
        assert!(agent.cli(&["pause"]).status.success());
        match reads {
            Reads::Update => {
                left.update_many(doc! {}, doc! { "$set": { "round": round } }).await.unwrap();
            }
            Reads::Import => {
                let of = |id: i32| json!({ "type": "refresh", "collection": "shop.left", "documentId": id });
                let operations: Vec<_> = (0..30).map(of).collect();
                let file = json!({ "version": 1, "operations": operations }).to_string();
                let (status, told) = Api::of(&agent).with_body("POST", "/api/queue/import", &file);
                assert_eq!(status, 202, "{told}");
            }
        }
        agent.queued(20).await;
        let data = doc! {
            "failCommands": ["getMore"], "namespace": "admin.$cmd.aggregate",
            "blockConnection": true, "blockTimeMS": 3_000,
        };
        local.fail(data, 1).await;
        // The reply that is awaited comes before the next is kept back.
        orders(&local).insert_one(doc! { "_id": round }).await.unwrap();
        agent.queued(21).await;
        names::swap(&db).await.unwrap();
        assert!(agent.cli(&["resume"]).status.success());

        eventually("the empty queue", PATIENCE, async || {
            agent.health().is_some_and(|health| health["queueSize"] == 0)
        })
        .await;
        equal(&local, &atlas, PATIENCE).await;
        assert_eq!(local.end_failing().await, round + 1);
    }
    assert!(!agent.log().contains("will be compared"));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_update_that_is_read_after_its_collection_was_renamed_is_kept_with_a_local_5_0() {
    is_read_after_a_rename("5.0.4", Reads::Update).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_update_that_knows_its_collection_is_not_read_from_another_of_the_same_name() {
    is_read_after_a_rename("6.0.5", Reads::Update).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_is_read_after_its_name_has_changed_hands_is_read_where_it_belongs() {
    is_read_after_a_rename("6.0.5", Reads::Import).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_letter_follows_its_collection_and_its_retry_mends_the_document() {
    let (local, atlas) =
        tokio::join!(Mongod::start(), Guarded::start(vec!["readWriteAnyDatabase".into()]));
    let config = "[worker]\nmax_retries = 1\nretry_delays = [\"100ms\"]\n";
    let mut agent = Agent::new(&local.uri(), &atlas.uri(), config);
    agent.may(&[Retries, DeadLetters], "Atlas refuses the document");
    agent.start(&[]);
    agent.streaming().await;
    let strict = doc! { "create": "orders", "validator": { "total": { "$exists": true } } };
    atlas.root.database("shop").run_command(strict).await.unwrap();
    orders(&local).insert_one(doc! { "_id": 1, "v": 1 }).await.unwrap();
    let letters = |n: i32| {
        let agent = &agent;
        eventually("its dead letters", PATIENCE, async move || {
            agent
                .health()
                .is_some_and(|health| health["deadLetters"] == n && health["queueSize"] == 0)
        })
    };
    letters(1).await;

    rename(&local.client.database("shop"), "orders", "archive", false).await.unwrap();
    // Another document of the same name and key, which is no concern of the letter.
    orders(&local).insert_one(doc! { "_id": 1, "total": 2 }).await.unwrap();
    let there = atlas.root.database("shop").collection::<Document>("orders");
    // A count is ended by a rename of what it counts.
    let has_come =
        async || there.count_documents(doc! { "total": 2 }).await.is_ok_and(|found| found == 1);
    eventually("the new collection", PATIENCE, has_come).await;
    letters(1).await;
    let letter = agent.cli_json(&["dead", "list"]).unwrap()[0].clone();
    assert_eq!(letter["collection"], "shop.archive");

    let relaxed = doc! { "collMod": "archive", "validator": {} };
    atlas.root.database("shop").run_command(relaxed).await.unwrap();
    assert!(agent.cli(&["dead", "retry", letter["id"].as_str().unwrap()]).status.success());
    letters(0).await;
    equal(&local, &atlas, Duration::ZERO).await;

    // With its collection it goes.
    let strict = doc! { "collMod": "archive", "validator": { "total": { "$exists": true } } };
    atlas.root.database("shop").run_command(strict).await.unwrap();
    let archive = local.client.database("shop").collection::<Document>("archive");
    archive.insert_one(doc! { "_id": 2 }).await.unwrap();
    letters(1).await;
    archive.drop().await.unwrap();
    letters(0).await;
    equal(&local, &atlas, PATIENCE).await;
}

/// Both come in by a rename from what is not replicated. The second is demanded while the first is copied.
#[tokio::test(flavor = "multi_thread")]
async fn a_collection_that_comes_in_while_another_is_copied_gets_its_indexes_at_once() {
    let (local, atlas) = pair().await;
    let db = local.client.database("shop");
    let config = "[namespaces]\ninclude = [\"shop.orders\", \"shop.items\"]\n[sync]\nmax_docs_per_second = 1000\n";
    let of = |name: &str| db.collection::<Document>(name);
    of("many").insert_many((0..6_000).map(|id| doc! { "_id": id })).await.unwrap();
    of("few").insert_many((0..10).map(|id| doc! { "_id": id })).await.unwrap();
    let index = doc! { "key": { "v": 1 }, "name": "v_1" };
    db.run_command(doc! { "createIndexes": "few", "indexes": [index] }).await.unwrap();
    let mut agent = Agent::new(&local.uri(), &atlas.uri(), config);
    agent.may(&[Doubt], "it comes in while another is copied");
    agent.start(&[]);
    agent.streaming().await;

    rename(&db, "many", "orders", false).await.unwrap();
    eventually("a copy that has begun", PATIENCE, async || {
        orders(&atlas).estimated_document_count().await.unwrap() > 0
    })
    .await;
    rename(&db, "few", "items", false).await.unwrap();

    equal(&local, &atlas, PATIENCE).await;
}

/// Nothing has made the empty one in Atlas, so that there is nothing to rename.
#[tokio::test(flavor = "multi_thread")]
async fn an_empty_collection_that_takes_the_place_of_a_full_one_empties_it_with_a_local_5_0() {
    let (local, atlas) = tokio::join!(Mongod::start_of("5.0.4"), Mongod::start());
    let db = local.client.database("shop");
    let names = ["replaced", "written"];
    // More than a comparison may delete.
    for name in names {
        let of = db.collection::<Document>(name);
        of.insert_many((0..200).map(|id| doc! { "_id": id })).await.unwrap();
    }
    let agent = Agent::started(&local.uri(), &atlas.uri());
    agent.streaming().await;
    equal(&local, &atlas, PATIENCE).await;

    db.create_collection("empty").await.unwrap();
    rename(&db, "empty", "replaced", true).await.unwrap();
    let nothing = [doc! { "$match": { "_id": -1 } }, doc! { "$out": "written" }];
    let _ = db.collection::<Document>(names[1]).aggregate(nothing).await.unwrap();

    assert!(agent.cli(&["flush"]).status.success());
    equal(&local, &atlas, Duration::ZERO).await;
    assert_eq!(agent.health().unwrap()["deadLetters"], 0);
}

/// Each of the two would wait for the other: the stream for room in the queue, the entries for the stream.
#[tokio::test(flavor = "multi_thread")]
async fn a_queue_full_of_updates_with_a_local_5_0_drains_and_what_was_renamed_meanwhile_is_compared()
 {
    let (local, atlas) = tokio::join!(Mongod::start_of("5.0.4"), Mongod::start());
    let db = local.client.database("shop");
    let (left, right) = (db.collection::<Document>("left"), db.collection("right"));
    left.insert_many((0..60).map(|id| doc! { "_id": id, "of": "left" })).await.unwrap();
    right.insert_many((30..90).map(|id| doc! { "_id": id, "of": "right" })).await.unwrap();
    let mut agent = Agent::new(
        &local.uri(),
        &atlas.uri(),
        "[queue]\nmax_documents = 50\n[worker]\nlanes = 2\n",
    );
    agent.may(&[Doubt], "an update of a local 5.0 does not tell its collection");
    agent.start(&[]);
    agent.streaming().await;
    equal(&local, &atlas, PATIENCE).await;
    assert!(agent.cli(&["pause"]).status.success());
    left.update_many(doc! {}, doc! { "$set": { "round": 1 } }).await.unwrap();
    let is_full = async || agent.log().contains("reading has stopped");
    eventually("the full queue", PATIENCE, is_full).await;
    // The reply behind it has been read by then, and nothing that follows.
    rename(&db, "left", "tmp", false).await.unwrap();
    rename(&db, "right", "left", false).await.unwrap();
    rename(&db, "tmp", "right", false).await.unwrap();

    assert!(agent.cli(&["resume"]).status.success());
    let is_empty = async || agent.health().is_some_and(|health| health["queueSize"] == 0);
    eventually("the empty queue", PATIENCE, is_empty).await;
    equal(&local, &atlas, PATIENCE).await;
    assert!(agent.log().contains("before the stream has come so far"), "{}", agent.log());
    assert!(agent.stop().success());
}

/// What the user may do in Atlas: all that the agent does there, but to rename (which `dropCollection` would allow
/// as well).
fn all_but_renames() -> Document {
    let anywhere = doc! { "db": "", "collection": "" };
    let actions = [
        "find",
        "insert",
        "update",
        "remove",
        "createCollection",
        "createIndex",
        "dropIndex",
        "collMod",
        "listCollections",
        "listIndexes",
        "collStats",
        "dbStats",
        "bypassDocumentValidation",
    ];
    doc! {
        "createRole": "writesAndNoMore", "roles": [],
        "privileges": [
            { "resource": anywhere, "actions": actions.to_vec() },
            { "resource": { "cluster": true }, "actions": ["listDatabases"] },
        ],
    }
}

/// One change that Atlas refuses this user used to stop every collection.
#[tokio::test(flavor = "multi_thread")]
async fn a_rename_that_the_user_may_not_make_holds_its_names_alone_and_goes_on_when_it_may() {
    let (local, atlas) = tokio::join!(Mongod::start(), Guarded::start(vec![]));
    atlas.admin(all_but_renames()).await;
    let role = doc! { "grantRolesToUser": "outrigger", "roles": ["writesAndNoMore"] };
    atlas.admin(role).await;
    let (here, there) = (local.client.database("shop"), atlas.root.database("shop"));
    let count = async |name: &str| {
        there.collection::<Document>(name).count_documents(doc! {}).await.unwrap()
    };
    here.collection("left").insert_one(doc! { "_id": 0 }).await.unwrap();
    let mut agent = Agent::started(&local.uri(), &atlas.uri());
    agent.streaming().await;
    equal(&local, &atlas, PATIENCE).await;

    rename(&here, "left", "right", false).await.unwrap();
    here.collection("right").insert_one(doc! { "_id": 1 }).await.unwrap();
    let advice = "grant its user the privilege `renameCollectionSameDB` on the database `shop`, `dropCollection` on \
                  `shop.right`";
    let is_told =
        |agent: &Agent| String::from_utf8_lossy(&agent.cli(&["status"]).stdout).contains(advice);
    eventually("the advice in `status`", PATIENCE, async || is_told(&agent)).await;

    // Others flow, those that are new too; also after a restart.
    for round in 1..=2_u32 {
        here.collection("other").insert_one(doc! { "_id": round }).await.unwrap();
        let has_come = async || count("other").await == u64::from(round);
        eventually("another collection", PATIENCE, has_come).await;
        assert_eq!((count("left").await, count("right").await), (1, 0));
        assert!(agent.stop().success());
        agent.start(&[]);
        agent.streaming().await;
    }
    assert!(agent.log().contains(advice), "{}", agent.log());
    assert_eq!(agent.health().unwrap()["deadLetters"], 0);

    let may = |collection: &str, action: &str| doc! { "resource": { "db": "shop", "collection": collection }, "actions": [action] };
    let may = [may("", "renameCollectionSameDB"), may("right", "dropCollection")];
    let grant = doc! { "grantPrivilegesToRole": "writesAndNoMore", "privileges": may.to_vec() };
    atlas.admin(grant).await;
    equal(&local, &atlas, PATIENCE).await;
    eventually("nothing to tell in `status`", PATIENCE, async || !is_told(&agent)).await;
    assert!(agent.stop().success());
}

/// A capped collection is replaced as a whole after it was made, since what fills it may come without an event. While
/// that is being measured a view takes its name.
#[tokio::test(flavor = "multi_thread")]
async fn a_comparison_does_not_drop_what_has_taken_the_name_of_a_collection_since_it_was_listed() {
    let (local, atlas) = pair().await;
    let mut agent = Agent::started(&local.uri(), &atlas.uri());
    agent.may(&[Doubt], "a collection is taken for another while everything is compared");
    agent.streaming().await;
    let db = local.client.database("shop");
    orders(&local).insert_one(doc! { "_id": 1 }).await.unwrap();
    equal(&local, &atlas, PATIENCE).await;
    let ended = || agent.log().matches("a full sync has ended").count();
    let before = ended();

    let block = doc! { "blockConnection": true, "blockTimeMS": 4_000 };
    let measure = doc! { "failCommands": ["aggregate"], "namespace": "shop.left" };
    local.fail(measure.into_iter().chain(block).collect(), 1).await;
    db.create_collection("left").capped(true).size(1 << 20).await.unwrap();
    local.is_at(doc! { "command.aggregate": "left" }).await;
    db.collection::<Document>("left").drop().await.unwrap();
    db.create_collection("left").view_on("orders".to_owned()).await.unwrap();

    eventually("the end of the comparison", PATIENCE, async || ended() > before).await;
    equal(&local, &atlas, Duration::from_secs(5)).await;
    assert!(agent.stop().success());
}

/// As after a gap in the stream, in which the view was dropped locally. A server drops a collection for a rename that
/// is told to, and no view.
#[tokio::test(flavor = "multi_thread")]
async fn a_collection_that_is_renamed_takes_the_place_of_a_view_that_only_atlas_has() {
    let (local, atlas) = pair().await;
    let (here, there) = (local.client.database("shop"), atlas.client.database("shop"));
    here.collection("orders").insert_one(doc! { "_id": 1 }).await.unwrap();
    let agent = Agent::started(&local.uri(), &atlas.uri());
    agent.streaming().await;
    equal(&local, &atlas, PATIENCE).await;
    there.run_command(doc! { "create": "old", "viewOn": "orders", "pipeline": [] }).await.unwrap();

    let rename = doc! { "renameCollection": "shop.orders", "to": "shop.old" };
    local.client.database("admin").run_command(rename).await.unwrap();
    here.collection("old").insert_one(doc! { "_id": 2 }).await.unwrap();

    equal(&local, &atlas, PATIENCE).await;
    assert_eq!(there.collection::<Document>("old").count_documents(doc! {}).await.unwrap(), 2);
    assert!(agent.is_running());
    let dead = agent.cli_json(&["dead", "list"]).unwrap();
    assert_eq!(dead.as_array().map(Vec::len), Some(0), "{dead}");
}
