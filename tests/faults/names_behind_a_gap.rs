//! A gap in the stream, behind which a name has another kind, or a database other capitals: what no event has told of.

use mongodb::bson::{Document, doc};

use crate::support::{
    PATIENCE,
    agent::Agent,
    equal::{MayDiffer, equal_but},
    eventually,
    mongod::Mongod,
    orders, pair,
    unasked::Unasked::{Doubt, Repair},
};

/// Each write that is refused is a dead letter almost at once.
const NO_PATIENCE: &str = "[worker]\nmax_retries = 1\nretry_delays = [\"100ms\"]\n";

/// The next `aggregate` of the agent, which resumes its stream, is told that the history is lost.
async fn lose_history(local: &Mongod) {
    let data = doc! { "failCommands": ["aggregate"], "errorCode": 286 };
    local.fail(data, 1).await;
}

fn of(server: &Mongod, db: &str, name: &str) -> mongodb::Collection<Document> {
    server.client.database(db).collection(name)
}

async fn is_equal(local: &Mongod, atlas: &Mongod) {
    equal_but(MayDiffer::Order, local, atlas, PATIENCE).await;
}

/// The end of it: nothing waits, nothing was given up, everything is equal.
async fn is_well(local: &Mongod, atlas: &Mongod, agent: &Agent) {
    is_equal(local, atlas).await;
    agent.streaming().await;
    eventually("an empty queue", PATIENCE, async || agent.health().unwrap()["queueSize"] == 0)
        .await;
    is_equal(local, atlas).await;
    assert_eq!(agent.health().unwrap()["deadLetters"], 0, "{}", agent.log());
}

/// An agent that runs, and both sides equal.
async fn running(local: &Mongod, atlas: &Mongod) -> Agent {
    let mut agent = Agent::new(&local.uri(), &atlas.uri(), NO_PATIENCE);
    agent.may(&[Doubt, Repair], "the history is lost");
    agent.start(&[]);
    agent.streaming().await;
    is_equal(local, atlas).await;
    agent
}

async fn view(server: &Mongod, db: &str, name: &str) {
    let create = doc! { "create": name, "viewOn": "orders", "pipeline": [] };
    server.client.database(db).run_command(create).await.unwrap();
}

/// The view shows the very documents that the collection in its place has, so that a comparison that reads through it
/// finds nothing missing. What is written before the comparison has come so far meets the view as well.
#[tokio::test(flavor = "multi_thread")]
async fn a_collection_where_atlas_still_has_a_view_gets_all_of_its_documents_and_no_dead_letter() {
    let (local, atlas) = pair().await;
    let twenty = || (0..20).map(|id| doc! { "_id": id });
    orders(&local).insert_many(twenty()).await.unwrap();
    for name in ["shown", "written", "renamed"] {
        view(&local, "shop", name).await;
    }
    let mut agent = running(&local, &atlas).await;
    assert!(agent.stop().success());

    let db = local.client.database("shop");
    for name in ["shown", "written", "renamed"] {
        of(&local, "shop", name).drop().await.unwrap();
        let mut options = doc! { "create": name, "validator": { "_id": { "$gte": 0 } } };
        // What is renamed onto another takes nothing along that only a new collection can have.
        if name != "renamed" {
            options.insert("collation", doc! { "locale": "fr" });
        }
        db.run_command(options).await.unwrap();
        let index = doc! { "key": { "v": 1 }, "name": "v", "unique": true, "sparse": true };
        db.run_command(doc! { "createIndexes": name, "indexes": [index] }).await.unwrap();
        of(&local, "shop", name).insert_many(twenty()).await.unwrap();
    }
    lose_history(&local).await;
    // The comparison cannot begin.
    let listed =
        doc! { "failCommands": ["listDatabases"], "blockConnection": true, "blockTimeMS": 4_000 };
    agent.start(&[]);
    eventually("the new position", PATIENCE, async || {
        agent.log().contains("no longer reaches back")
    })
    .await;
    local.fail(listed, 2).await;
    let change = doc! { "$set": { "changed": true } };
    of(&local, "shop", "written").insert_one(doc! { "_id": 20, "v": 1 }).await.unwrap();
    of(&local, "shop", "written").update_one(doc! { "_id": 1 }, change).await.unwrap();
    of(&local, "shop", "written").delete_one(doc! { "_id": 2 }).await.unwrap();
    let rename =
        doc! { "renameCollection": "shop.renamed", "to": "shop.orders", "dropTarget": true };
    local.admin(rename).await;

    is_well(&local, &atlas, &agent).await;
    assert!(agent.stop().success());
}

/// Entries wait that were made in the collection; what is read for them must not be read through the view.
#[tokio::test(flavor = "multi_thread")]
async fn a_view_where_atlas_still_has_a_collection_takes_its_place_unless_that_loses_too_much() {
    let (local, atlas) = pair().await;
    orders(&local).insert_many((0..30).map(|id| doc! { "_id": id, "of": "orders" })).await.unwrap();
    for (name, documents) in [("few", 20), ("many", 300), ("timed", 20)] {
        let all = (0..documents).map(|id| doc! { "_id": id, "of": name });
        of(&local, "shop", name).insert_many(all).await.unwrap();
    }
    let mut agent = running(&local, &atlas).await;
    assert!(agent.cli(&["pause"]).status.success());
    for name in ["few", "many", "timed"] {
        let change = doc! { "$set": { "v": 1 } };
        let some = doc! { "_id": { "$lt": 10 } };
        of(&local, "shop", name).update_many(some, change).await.unwrap();
    }
    agent.queued(30).await;
    assert!(agent.stop().success());

    for name in ["few", "many", "timed"] {
        of(&local, "shop", name).drop().await.unwrap();
    }
    view(&local, "shop", "few").await;
    view(&local, "shop", "many").await;
    let timed = doc! { "create": "timed", "timeseries": { "timeField": "at" } };
    local.client.database("shop").run_command(timed).await.unwrap();
    lose_history(&local).await;
    agent.start(&[]);
    eventually("the new position", PATIENCE, async || {
        agent.log().contains("no longer reaches back")
    })
    .await;
    assert!(agent.cli(&["resume"]).status.success());

    agent.streaming().await;
    let there = atlas.client.database("shop");
    let kind_of = async |name: &str| {
        let list = doc! { "listCollections": 1, "filter": { "name": name } };
        let listed = there.run_command(list).await.unwrap();
        let batch = listed.get_document("cursor").unwrap().get_array("firstBatch").unwrap();
        batch.first().map(|of| of.as_document().unwrap().get_str("type").unwrap().to_owned())
    };
    eventually("the view of few", PATIENCE, async || {
        kind_of("few").await.as_deref() == Some("view")
    })
    .await;
    assert_eq!(kind_of("timed").await, None);
    // Those that are gone were deleted one by one, as they waited; nothing else is.
    assert_eq!(kind_of("many").await.as_deref(), Some("collection"));
    let left = of(&atlas, "shop", "many").count_documents(doc! { "of": "many" }).await.unwrap();
    assert!(left >= 290, "{left}");
    let status = String::from_utf8(agent.cli(&["status"]).stdout).unwrap();
    assert!(status.contains("shop.many"), "{status}");
    assert!(agent.cli(&["sync", "--wait", "--allow-mass-delete"]).status.success());
    is_well(&local, &atlas, &agent).await;
    assert!(agent.stop().success());
}

/// Atlas keeps no two databases whose names differ in capitals alone. What only Atlas has goes before what would take
/// its place comes, as far as that may go unasked.
#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_has_other_capitals_behind_a_gap_takes_the_place_of_the_old_one_in_atlas() {
    let (local, atlas) = pair().await;
    let fill = async |db: &str, documents: i32| {
        let all = (0..documents).map(|id| doc! { "_id": id, "of": db });
        of(&local, db, "orders").insert_many(all).await.unwrap();
        view(&local, db, "seen").await;
    };
    fill("few", 40).await;
    fill("many", 300).await;
    let mut agent = running(&local, &atlas).await;
    assert!(agent.stop().success());

    for db in ["few", "many"] {
        local.client.database(db).drop().await.unwrap();
    }
    fill("Few", 30).await;
    fill("Many", 30).await;
    lose_history(&local).await;
    agent.start(&[]);
    eventually("the new position", PATIENCE, async || {
        agent.log().contains("no longer reaches back")
    })
    .await;
    // Before the copy has come so far.
    for db in ["Few", "Many"] {
        of(&local, db, "orders").insert_one(doc! { "_id": 100 }).await.unwrap();
        let change = doc! { "$set": { "changed": true } };
        of(&local, db, "orders").update_one(doc! { "_id": 1 }, change).await.unwrap();
    }

    let count = async |db: &str| of(&atlas, db, "orders").count_documents(doc! {}).await.unwrap();
    eventually("the one that may go unasked", PATIENCE, async || count("Few").await == 31).await;
    assert!(!agent.log().contains("Atlas has a database `few`"), "{}", agent.log());
    assert_eq!(count("many").await, 300);
    let status = || String::from_utf8(agent.cli(&["status"]).stdout).unwrap();
    eventually("what stands in the way", PATIENCE, async || {
        status().contains("Atlas has a database `many`, which still holds something")
    })
    .await;
    assert_eq!(agent.health().unwrap()["deadLetters"], 0);
    // A person says that it may go.
    atlas.client.database("many").drop().await.unwrap();
    equal_but(MayDiffer::Order, &local, &atlas, 2 * PATIENCE).await;
    is_well(&local, &atlas, &agent).await;
    assert!(agent.stop().success());
}

/// Made by somebody else: the agent replicates none.
#[tokio::test(flavor = "multi_thread")]
async fn writes_to_what_atlas_has_as_a_time_series_wait_for_a_person_and_hold_up_nothing_else() {
    let (local, atlas) = pair().await;
    orders(&local).insert_one(doc! { "_id": 1 }).await.unwrap();
    let mut agent = running(&local, &atlas).await;
    let timed = doc! { "create": "timed", "timeseries": { "timeField": "at" } };
    atlas.client.database("shop").run_command(timed).await.unwrap();

    let timed = of(&local, "shop", "timed");
    timed.insert_many((0..10).map(|id| doc! { "_id": id })).await.unwrap();
    timed.update_one(doc! { "_id": 1 }, doc! { "$set": { "v": 1 } }).await.unwrap();
    timed.delete_one(doc! { "_id": 2 }).await.unwrap();
    let status = || String::from_utf8(agent.cli(&["status"]).stdout).unwrap();
    eventually("what stands in the way", PATIENCE, async || status().contains("time-series")).await;
    orders(&local).insert_one(doc! { "_id": 2 }).await.unwrap();
    eventually("another collection", PATIENCE, async || {
        orders(&atlas).count_documents(doc! {}).await.unwrap() == 2
    })
    .await;
    assert_eq!(agent.health().unwrap()["deadLetters"], 0, "{}", agent.log());
    assert_eq!(agent.health().unwrap()["breaker"], "closed");

    of(&atlas, "shop", "timed").drop().await.unwrap();
    is_well(&local, &atlas, &agent).await;
    assert!(agent.stop().success());
}

/// It is in no list of what is copied or compared, and what the stream tells of it is that it is new: of the documents that
/// an older one has in Atlas under its name, neither knows. Those may have been written from the queue only after the
/// gap was found.
#[tokio::test(flavor = "multi_thread")]
async fn a_collection_that_is_made_again_while_others_are_copied_has_nothing_of_the_old_one() {
    let (local, atlas) = pair().await;
    let older = || (0..20).map(|id| doc! { "_id": id });
    of(&local, "shop", "brief").insert_many(older()).await.unwrap();
    orders(&local).insert_many(older()).await.unwrap();
    let mut agent = running(&local, &atlas).await;
    assert!(agent.cli(&["pause"]).status.success());
    of(&local, "shop", "queued").insert_many(older()).await.unwrap();
    agent.queued(20).await;
    assert!(agent.stop().success());
    assert!(agent.cli(&["resume"]).status.success());

    for name in ["brief", "queued"] {
        of(&local, "shop", name).drop().await.unwrap();
    }
    let bulk = (0..3_000).map(|id| doc! { "_id": id });
    of(&local, "shop", "bulk").insert_many(bulk).await.unwrap();
    agent.replace_setting("[worker]", "[sync]\nmax_docs_per_second = 500\n[worker]");
    lose_history(&local).await;
    agent.start(&[]);
    let runs = || agent.log().matches("copying what Atlas lacks").count();
    eventually("the copy", PATIENCE, async || runs() == 2).await;
    for name in ["brief", "queued"] {
        of(&local, "shop", name).insert_one(doc! { "_id": 100 }).await.unwrap();
    }
    is_well(&local, &atlas, &agent).await;
    assert!(agent.stop().success());
}
