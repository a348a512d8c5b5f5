//! Options, indexes and views: after the first copy, made and changed while documents flow, and through
//! everything that gets in the way.

mod support;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures_util::TryStreamExt;
use mongodb::bson::{Document, RawDocumentBuf, doc};
use support::{
    PATIENCE,
    agent::Agent,
    compare::{converge, schema, schemas_converge},
    eventually,
    mongod::Mongod,
    orders, pair,
    schemas::{changes, collections, document, indexes, names, run_all},
};

/// Inserts, changes and deletes documents in all of these collections, until it is stopped.
struct Busy {
    on: Arc<AtomicBool>,
    task: tokio::task::JoinHandle<()>,
}

impl Busy {
    fn start(server: &Mongod, names: Vec<&'static str>) -> Self {
        let on = Arc::new(AtomicBool::new(true));
        let (db, go_on) = (server.client.database("shop"), on.clone());
        let task = tokio::spawn(async move {
            let mut n = 0;
            while go_on.load(Ordering::Relaxed) {
                n += 1;
                for name in &names {
                    let collection = db.collection::<Document>(name);
                    // What a collection does not take in the middle of a change is no matter here.
                    let _ = collection.insert_one(document(n)).await;
                    let _ = collection.update_one(doc! { "_id": n }, doc! { "$inc": { "s": 1 } }).await;
                    if n % 5 == 0 && *name != "capped" {
                        let _ = collection.delete_one(doc! { "_id": n - 3 }).await;
                    }
                }
            }
        });
        Self { on, task }
    }

    async fn stop(self) {
        self.on.store(false, Ordering::Relaxed);
        self.task.await.unwrap();
    }
}

async fn fill(server: &Mongod, names: &[&str]) {
    for name in names {
        let collection = server.client.database("shop").collection::<Document>(name);
        collection.insert_many((0..50).map(|n| document(10_000 + n))).await.unwrap();
    }
}

async fn equal(local: &Mongod, atlas: &Mongod) {
    converge(&local.client, &atlas.client, PATIENCE).await;
    schemas_converge(&local.client, &atlas.client, PATIENCE).await;
}

#[tokio::test]
async fn every_option_index_and_view_is_there_after_the_first_copy() {
    let (local, atlas) = pair().await;
    run_all(&local.client, collections(6)).await;
    run_all(&local.client, indexes()).await;
    fill(&local, &names(6)).await;
    run_all(&local.client, changes(6)).await;

    let agent = Agent::started(&local.uri(), &atlas.uri());
    agent.streaming().await;

    equal(&local, &atlas).await;
    let verified = agent.cli_json(&["verify"]).unwrap();
    assert_eq!(verified["equal"], true, "{verified}");
    let health = agent.health().unwrap();
    assert_eq!(health["schemaProblems"].as_array().unwrap().len(), 0, "{health}");
}

#[tokio::test]
async fn every_option_index_and_view_that_is_made_while_documents_flow_arrives() {
    let (local, atlas) = pair().await;
    let agent = Agent::started(&local.uri(), &atlas.uri());
    agent.streaming().await;

    run_all(&local.client, collections(6)).await;
    let busy = Busy::start(&local, names(6));
    run_all(&local.client, indexes()).await;
    schemas_converge(&local.client, &atlas.client, PATIENCE).await;
    run_all(&local.client, changes(6)).await;
    schemas_converge(&local.client, &atlas.client, PATIENCE).await;
    busy.stop().await;

    equal(&local, &atlas).await;
}

#[tokio::test]
async fn changes_of_options_and_indexes_wait_for_atlas_and_survive_restarts() {
    let (local, atlas) = pair().await;
    run_all(&local.client, collections(6)).await;
    let mut agent = Agent::started(&local.uri(), &atlas.uri());
    agent.streaming().await;
    let mut atlas = atlas;
    atlas.terminate();

    let busy = Busy::start(&local, names(6));
    run_all(&local.client, indexes()).await;
    agent.queued(200).await;
    agent.kill();
    run_all(&local.client, changes(6)).await;
    agent.start(&[]);
    agent.queued(300).await;
    atlas.resume().await;
    // Somewhere in the middle of the barriers.
    eventually("an index", PATIENCE, async || {
        schema(&atlas.client).await.get("shop.plain").is_some_and(|(_, indexes)| indexes.len() > 1)
    })
    .await;
    agent.kill();
    agent.start(&[]);
    busy.stop().await;

    equal(&local, &atlas).await;
}

#[tokio::test]
async fn databases_and_collections_that_are_dropped_and_renamed_are_so_in_atlas() {
    let (local, atlas) = pair().await;
    let agent = Agent::started(&local.uri(), &atlas.uri());
    agent.streaming().await;
    run_all(&local.client, collections(6)).await;
    run_all(&local.client, indexes()).await;
    fill(&local, &names(6)).await;
    let rename = |from: &str, to: &str, drop: bool| {
        ("admin", doc! { "renameCollection": from, "to": to, "dropTarget": drop })
    };

    run_all(&local.client, [rename("shop.plain", "shop.renamed", false)]).await;
    run_all(&local.client, [rename("shop.german", "archive.german", false)]).await;
    run_all(&local.client, [rename("shop.checked", "shop.json", true)]).await;
    run_all(&local.client, [rename("shop.stored", "archive.german", true)]).await;
    run_all(&local.client, [("shop", doc! { "drop": "imaged" })]).await;
    equal(&local, &atlas).await;

    run_all(&local.client, [("shop", doc! { "dropDatabase": 1 })]).await;
    equal(&local, &atlas).await;
    assert!(!atlas.client.list_database_names().await.unwrap().contains(&"shop".to_owned()));
    run_all(&local.client, collections(6)).await;
    fill(&local, &names(6)).await;
    equal(&local, &atlas).await;
}

#[tokio::test]
async fn a_collection_that_the_server_fills_without_events_is_compared() {
    let (local, atlas) = pair().await;
    fill(&local, &["one", "two"]).await;
    let agent = Agent::started(&local.uri(), &atlas.uri());
    agent.streaming().await;

    let clone = doc! { "cloneCollectionAsCapped": "one", "toCollection": "cloned", "size": 1 << 20 };
    run_all(&local.client, [("shop", doc! { "convertToCapped": "two", "size": 1 << 20 }), ("shop", clone)]).await;

    equal(&local, &atlas).await;
}

/// Documents in their natural order.
async fn in_order(server: &Mongod, name: &str) -> Vec<RawDocumentBuf> {
    let collection = server.client.database("shop").collection::<RawDocumentBuf>(name);
    collection.find(doc! {}).sort(doc! { "$natural": 1 }).await.unwrap().try_collect().await.unwrap()
}

#[tokio::test]
async fn capped_collections_keep_their_order() {
    let (local, atlas) = pair().await;
    let create = |name: &str| ("shop", doc! { "create": name, "capped": true, "size": 4 << 20, "max": 3_000 });
    run_all(&local.client, [create("before")]).await;
    let insert = async |name: &str, from: i32, to: i32| {
        let collection = local.client.database("shop").collection::<Document>(name);
        // Ids in no order, so that only the natural order tells the order of insertion.
        let documents = (from..to).map(|n| doc! { "_id": (n * 7_919) % 100_003, "n": n });
        collection.insert_many(documents).await.unwrap();
    };
    insert("before", 0, 2_000).await;
    let mut agent = Agent::new(&local.uri(), &atlas.uri(), "[worker]\nlanes = 4\nbatch_size = 100\n");
    agent.start(&[]);
    agent.streaming().await;
    run_all(&local.client, [create("after")]).await;

    for part in 0..10 {
        insert("before", 2_000 + part * 400, 2_400 + part * 400).await;
        insert("after", part * 400, 400 + part * 400).await;
        if part == 5 {
            agent.kill();
            agent.start(&[]);
        }
    }

    equal(&local, &atlas).await;
    for name in ["before", "after"] {
        assert_eq!(in_order(&local, name).await, in_order(&atlas, name).await, "{name}");
    }
}

#[tokio::test]
async fn an_index_that_cannot_be_built_is_listed_and_built_when_it_can_be() {
    let (local, atlas) = pair().await;
    fill(&local, &["plain"]).await;
    let agent = Agent::started(&local.uri(), &atlas.uri());
    agent.streaming().await;
    // A person's own document in Atlas; the local database does not know of it.
    let stranger = doc! { "_id": "stranger", "u": 10_007 };
    let there = atlas.client.database("shop").collection::<Document>("plain");
    there.insert_one(stranger).await.unwrap();

    let unique = doc! { "createIndexes": "plain", "indexes": [
        { "key": { "u": 1 }, "name": "unique", "unique": true }, { "key": { "s": 1 }, "name": "other" }
    ] };
    run_all(&local.client, [("shop", unique)]).await;
    eventually("a listed problem", PATIENCE, async || {
        let health = agent.health().unwrap();
        let problems = health["schemaProblems"].as_array().unwrap().clone();
        problems.iter().any(|problem| problem.as_str().unwrap().contains("`unique`"))
    })
    .await;
    let status = String::from_utf8(agent.cli(&["status"]).stdout).unwrap();
    assert!(status.contains("index `unique` is missing in Atlas"), "{status}");
    assert!(!status.contains("10007"), "a value of a document is shown: {status}");

    // It stops nothing: neither the other index nor documents.
    fill(&local, &["else"]).await;
    local.client.database("shop").collection("plain").insert_one(document(1)).await.unwrap();
    eventually("the documents and the other index", PATIENCE, async || {
        let there = schema(&atlas.client).await;
        there.contains_key("shop.else") && there["shop.plain"].1.contains_key("other")
    })
    .await;
    let verified = agent.cli_json(&["verify"]).unwrap();
    assert_eq!(verified["equal"], false);
    let text = verified.to_string();
    assert!(text.contains("index `unique` is missing in Atlas"), "{text}");

    there.delete_one(doc! { "_id": "stranger" }).await.unwrap();
    equal(&local, &atlas).await;
    eventually("no problem left", PATIENCE, async || {
        agent.health().unwrap()["schemaProblems"].as_array().unwrap().is_empty()
    })
    .await;
}

#[tokio::test]
async fn time_series_are_left_out_and_named() {
    let (local, atlas) = pair().await;
    let series = |name: &str| ("shop", doc! { "create": name, "timeseries": { "timeField": "t" } });
    run_all(&local.client, [series("before")]).await;
    fill(&local, &["plain"]).await;
    let agent = Agent::started(&local.uri(), &atlas.uri());
    agent.streaming().await;
    run_all(&local.client, [series("after")]).await;
    let granularity = doc! { "collMod": "after", "timeseries": { "granularity": "hours" } };
    run_all(&local.client, [("shop", granularity)]).await;
    fill(&local, &["other"]).await;
    eventually("what came after it", PATIENCE, async || {
        schema(&atlas.client).await.contains_key("shop.other")
    })
    .await;

    schemas_converge(&local.client, &atlas.client, PATIENCE).await;
    let names = atlas.client.database("shop").list_collection_names().await.unwrap();
    assert!(!names.iter().any(|name| name == "after" || name == "before"), "{names:?}");
    for command in ["check", "status"] {
        let told = String::from_utf8(agent.cli(&[command]).stdout).unwrap();
        assert!(told.contains("before") && told.contains("time-series"), "{command}: {told}");
    }
    assert!(agent.log().contains("a time-series collection"));
}

#[tokio::test]
async fn an_expired_document_is_gone_on_both_sides_and_one_that_lives_longer_comes_back() {
    let (local, atlas) = tokio::join!(Mongod::start_of("6.0.5"), Mongod::start_of("6.0.5"));
    let agent = Agent::started(&local.uri(), &atlas.uri());
    agent.streaming().await;
    let ttl = doc! { "createIndexes": "orders", "indexes": [{ "key": { "at": 1 }, "name": "at", "expireAfterSeconds": 0 }] };
    run_all(&local.client, [("shop", ttl)]).await;
    let now = || mongodb::bson::DateTime::now().timestamp_millis();
    let at = |ms: i64| mongodb::bson::DateTime::from_millis(ms);
    let far = now() + 3_600_000;
    orders(&local).insert_one(doc! { "_id": "stays", "at": at(far) }).await.unwrap();
    orders(&local).insert_one(doc! { "_id": "expires", "at": at(now() + 2_000) }).await.unwrap();
    orders(&local).insert_one(doc! { "_id": "extended", "at": at(far), "filler": "x".repeat(9_000) }).await.unwrap();
    equal(&local, &atlas).await;

    // It expires in Atlas alone: as if the extension had come too late.
    let early = doc! { "$set": { "at": at(now() - 1) } };
    orders(&atlas).update_one(doc! { "_id": "extended" }, early).await.unwrap();
    eventually("the expiry in Atlas", PATIENCE, async || {
        orders(&atlas).find_one(doc! { "_id": "extended" }).await.unwrap().is_none()
    })
    .await;
    let longer = doc! { "$set": { "at": at(far + 1) } };
    orders(&local).update_one(doc! { "_id": "extended" }, longer).await.unwrap();

    eventually("the expiry of the other", PATIENCE, async || {
        orders(&local).count_documents(doc! {}).await.unwrap() == 2
    })
    .await;
    equal(&local, &atlas).await;
    assert_eq!(orders(&atlas).count_documents(doc! {}).await.unwrap(), 2);
}
