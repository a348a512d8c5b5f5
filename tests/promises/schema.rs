//! Options, indexes and views: after the first copy, made and changed while documents flow, and through
//! everything that gets in the way.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use mongodb::bson::{Document, doc};

use crate::support::{
    PATIENCE,
    agent::Agent,
    equal::{MayDiffer, equal, equal_but, everything},
    eventually,
    mongod::Mongod,
    orders, pair,
    schemas::{changes, collections, document, indexes, names, run_all},
    unasked::Unasked::{Doubt, Repair},
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
                    let _ =
                        collection.update_one(doc! { "_id": n }, doc! { "$inc": { "s": 1 } }).await;
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

#[tokio::test]
async fn every_option_index_and_view_is_there_after_the_first_copy() {
    let (local, atlas) = pair().await;
    run_all(&local.client, collections(6)).await;
    run_all(&local.client, indexes()).await;
    fill(&local, &names(6)).await;
    run_all(&local.client, changes(6)).await;

    let agent = Agent::started(&local.uri(), &atlas.uri());
    agent.streaming().await;

    equal(&local, &atlas, PATIENCE).await;
    let verified = agent.cli_json(&["verify"]).unwrap();
    assert_eq!(verified["equal"], true, "{verified}");
    let health = agent.health().unwrap();
    assert_eq!(health["schemaProblems"].as_array().unwrap().len(), 0, "{health}");
}

#[tokio::test]
async fn every_option_index_and_view_that_is_made_while_documents_flow_arrives() {
    let (local, atlas) = pair().await;
    let agent = Agent::started(&local.uri(), &atlas.uri());
    agent.may(&[Doubt], "what was replaced as a whole is compared");
    agent.streaming().await;

    run_all(&local.client, collections(6)).await;
    let busy = Busy::start(&local, names(6));
    run_all(&local.client, indexes()).await;
    equal_but(MayDiffer::Documents, &local, &atlas, PATIENCE).await;
    run_all(&local.client, changes(6)).await;
    equal_but(MayDiffer::Documents, &local, &atlas, PATIENCE).await;
    busy.stop().await;

    equal(&local, &atlas, PATIENCE).await;
}

#[tokio::test]
async fn changes_of_options_and_indexes_wait_for_atlas_and_survive_restarts() {
    let (local, atlas) = pair().await;
    run_all(&local.client, collections(6)).await;
    // Soon full: the rest of it stays in the oplog meanwhile.
    let mut agent = Agent::new(&local.uri(), &atlas.uri(), "[queue]\nmax_documents = 400\n");
    agent.start(&[]);
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
        let there = everything(&atlas).await.unwrap();
        there.get("shop.plain").is_some_and(|plain| plain.indexes().len() > 1)
    })
    .await;
    agent.kill();
    agent.start(&[]);
    busy.stop().await;

    equal(&local, &atlas, PATIENCE).await;
}

#[tokio::test]
async fn databases_and_collections_that_are_dropped_and_renamed_are_so_in_atlas() {
    let (local, atlas) = pair().await;
    let agent = Agent::started(&local.uri(), &atlas.uri());
    agent.may(&[Doubt], "what was replaced as a whole is compared");
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
    equal(&local, &atlas, PATIENCE).await;

    run_all(&local.client, [("shop", doc! { "dropDatabase": 1 })]).await;
    equal(&local, &atlas, PATIENCE).await;
    run_all(&local.client, collections(6)).await;
    fill(&local, &names(6)).await;
    equal(&local, &atlas, PATIENCE).await;
}

#[tokio::test]
async fn a_view_that_is_still_being_made_in_atlas_goes_with_its_database() {
    let (local, atlas) = pair().await;
    orders(&local).insert_one(doc! { "_id": 1 }).await.unwrap();
    let agent = Agent::started(&local.uri(), &atlas.uri());
    agent.streaming().await;
    let slow = doc! { "failCommands": ["create"], "blockConnection": true, "blockTimeMS": 3_000 };
    atlas.fail(slow, 1).await;
    let view = doc! { "create": "seen", "viewOn": "orders", "pipeline": [] };
    run_all(&local.client, [("shop", view)]).await;
    agent.queued(1).await;

    run_all(&local.client, [("shop", doc! { "dropDatabase": 1 })]).await;
    equal(&local, &atlas, PATIENCE).await;
    assert!(atlas.end_failing().await > 0, "nothing was slow");
}

#[tokio::test]
async fn a_collection_that_the_server_fills_without_events_is_compared() {
    let (local, atlas) = pair().await;
    fill(&local, &["one", "two"]).await;
    let agent = Agent::started(&local.uri(), &atlas.uri());
    agent.may(&[Doubt], "what was replaced as a whole is compared");
    agent.streaming().await;

    let clone =
        doc! { "cloneCollectionAsCapped": "one", "toCollection": "cloned", "size": 1 << 20 };
    run_all(
        &local.client,
        [("shop", doc! { "convertToCapped": "two", "size": 1 << 20 }), ("shop", clone)],
    )
    .await;

    equal(&local, &atlas, PATIENCE).await;
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
        let there = everything(&atlas).await.unwrap();
        there.contains_key("shop.else")
            && there["shop.plain"].indexes().iter().any(|name| name == "other")
    })
    .await;
    let verified = agent.cli_json(&["verify"]).unwrap();
    assert_eq!(verified["equal"], false);
    let text = verified.to_string();
    assert!(text.contains("index `unique` is missing in Atlas: "), "with the reason: {text}");

    there.delete_one(doc! { "_id": "stranger" }).await.unwrap();
    equal(&local, &atlas, PATIENCE).await;
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
        everything(&atlas).await.unwrap().contains_key("shop.other")
    })
    .await;

    equal_but(MayDiffer::Documents, &local, &atlas, PATIENCE).await;
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
    orders(&local)
        .insert_one(doc! { "_id": "extended", "at": at(far), "filler": "x".repeat(9_000) })
        .await
        .unwrap();
    equal(&local, &atlas, PATIENCE).await;

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
    equal(&local, &atlas, PATIENCE).await;
    assert_eq!(orders(&atlas).count_documents(doc! {}).await.unwrap(), 2);
}

#[tokio::test]
async fn a_renamed_collection_takes_its_pending_updates_deltas_and_refreshes_along() {
    let (local, atlas) = pair().await;
    let large = |n: i32| doc! { "_id": n, "n": n, "filler": "x".repeat(9_000) };
    orders(&local).insert_many((0..60).map(large)).await.unwrap();
    let mut agent = Agent::new(&local.uri(), &atlas.uri(), "[worker]\nupdate_mode = \"delta\"\n");
    agent.start(&[]);
    agent.streaming().await;
    equal(&local, &atlas, PATIENCE).await;
    let mut atlas = atlas;
    atlas.terminate();

    // Deltas, whole documents, deltas on top of inserts, and what only a read can tell.
    let set = |n: i32| doc! { "$set": { "n": n } };
    orders(&local).update_many(doc! { "_id": { "$lt": 20 } }, set(100)).await.unwrap();
    for n in 20..30 {
        orders(&local).replace_one(doc! { "_id": n }, doc! { "n": 200 + n }).await.unwrap();
    }
    orders(&local).insert_many((60..70).map(large)).await.unwrap();
    orders(&local).update_many(doc! { "_id": { "$gte": 60 } }, set(300)).await.unwrap();
    for n in 30..40 {
        let twisted = vec![doc! { "$replaceWith": { "_id": "$_id", "z": 1, "n": "$n" } }];
        orders(&local).update_one(doc! { "_id": n }, twisted).await.unwrap();
    }
    orders(&local).delete_many(doc! { "_id": { "$gte": 50, "$lt": 60 } }).await.unwrap();
    agent.queued(50).await;
    let rename = |from: &str, to: &str| ("admin", doc! { "renameCollection": from, "to": to });
    run_all(&local.client, [rename("shop.orders", "shop.past")]).await;
    orders(&local).insert_many((0..10).map(|n| doc! { "_id": n, "new": true })).await.unwrap();
    let past = local.client.database("shop").collection::<Document>("past");
    past.update_many(doc! { "_id": { "$lt": 5 } }, set(400)).await.unwrap();
    run_all(&local.client, [rename("shop.past", "archive.past")]).await;
    atlas.resume().await;

    equal(&local, &atlas, PATIENCE).await;
}

#[tokio::test]
async fn a_collection_dropped_and_made_again_while_atlas_is_away_holds_the_new_documents_only() {
    let (local, atlas) = pair().await;
    fill(&local, &["plain"]).await;
    run_all(&local.client, [indexes().remove(0)]).await;
    let agent = Agent::started(&local.uri(), &atlas.uri());
    agent.streaming().await;
    equal(&local, &atlas, PATIENCE).await;
    let mut atlas = atlas;
    atlas.terminate();

    for (round, locale) in (0..).zip(["de", "fr", "sv"]) {
        run_all(&local.client, [("shop", doc! { "drop": "plain" })]).await;
        let create = doc! { "create": "plain", "collation": { "locale": locale } };
        let index = doc! { "createIndexes": "plain", "indexes": [{ "key": { format!("f{round}"): 1 }, "name": "same name" }] };
        run_all(&local.client, [("shop", create), ("shop", index)]).await;
        let plain = local.client.database("shop").collection::<Document>("plain");
        plain
            .insert_many((0..20).map(|n| doc! { "_id": n + round, "round": round }))
            .await
            .unwrap();
    }
    atlas.resume().await;

    equal(&local, &atlas, PATIENCE).await;
}

#[tokio::test]
async fn ten_collections_renamed_twice_in_a_row_with_inserts_between() {
    let (local, atlas) = pair().await;
    let db = local.client.database("shop");
    for n in 0..10 {
        db.collection(&format!("c{n}")).insert_many((0..30).map(document)).await.unwrap();
        let index = doc! { "createIndexes": format!("c{n}"), "indexes": [{ "key": { "s": 1 }, "name": format!("s{n}"), "unique": true }] };
        run_all(&local.client, [("shop", index)]).await;
    }
    let mut agent = Agent::started(&local.uri(), &atlas.uri());
    agent.streaming().await;

    for round in 0..2 {
        // Each takes the name of the next, all around.
        for n in (0..10).rev() {
            let rename = |from: String, to: String| {
                (
                    "admin",
                    doc! { "renameCollection": format!("shop.{from}"), "to": format!("shop.{to}") },
                )
            };
            let (from, to) =
                (format!("c{n}"), if n == 9 { "spare".to_owned() } else { format!("c{}", n + 1) });
            run_all(&local.client, [rename(from.clone(), to.clone())]).await;
            let more = (0..5).map(|k| document(1_000 * (round + 1) + n * 10 + k));
            db.collection(&to).insert_many(more).await.unwrap();
            db.collection::<Document>(&to)
                .update_many(doc! {}, doc! { "$inc": { "h": 1 } })
                .await
                .unwrap();
            if n == 0 {
                run_all(&local.client, [rename("spare".into(), "c0".into())]).await;
            }
        }
        if round == 0 {
            agent.kill();
            agent.start(&[]);
        }
    }

    equal(&local, &atlas, PATIENCE).await;
}

#[tokio::test]
async fn a_collection_that_is_renamed_during_the_first_copy_arrives_under_its_new_name() {
    let (local, atlas) = pair().await;
    let filler = "x".repeat(2_000);
    orders(&local)
        .insert_many((0..4_000).map(|n| doc! { "_id": n, "u": n, "filler": &filler }))
        .await
        .unwrap();
    let unique = doc! { "createIndexes": "orders", "indexes": [{ "key": { "u": 1 }, "name": "u", "unique": true }, { "key": { "v": 1 }, "name": "v" }] };
    run_all(&local.client, [("shop", unique)]).await;
    let mut agent = Agent::new(&local.uri(), &atlas.uri(), "[sync]\nmax_docs_per_second = 2000\n");
    agent.may(&[Repair], "what is renamed in the middle of its copy is compared");
    agent.start(&[]);
    eventually("the copy's first documents", PATIENCE, async || {
        orders(&atlas).estimated_document_count().await.unwrap() > 0
    })
    .await;

    let rename = doc! { "renameCollection": "shop.orders", "to": "archive.orders" };
    let (rename_within, hidden) = (
        doc! { "renameCollection": "shop.orders", "to": "shop.past" },
        doc! { "collMod": "past", "index": { "name": "v", "hidden": true } },
    );
    run_all(&local.client, [("admin", rename_within), ("shop", hidden)]).await;
    orders(&local).insert_one(doc! { "_id": 1, "u": 1 }).await.unwrap();
    run_all(&local.client, [("admin", rename)]).await;

    equal(&local, &atlas, PATIENCE * 2).await;
}

#[tokio::test]
async fn an_index_of_a_large_collection_is_built_beside_its_documents() {
    let (local, atlas) = pair().await;
    let documents = |from: i32| {
        (from..from + 20_000).map(|n| doc! { "_id": n, "a": n, "b": format!("{n:0>40}") })
    };
    for part in 0..3 {
        orders(&local).insert_many(documents(part * 20_000)).await.unwrap();
    }
    let agent = Agent::started(&local.uri(), &atlas.uri());
    agent.streaming().await;
    // Builds in Atlas stand still until they are let go.
    let hang =
        |mode: &str| doc! { "configureFailPoint": "hangAfterStartingIndexBuild", "mode": mode };
    atlas.admin(hang("alwaysOn")).await;
    let index = doc! { "createIndexes": "orders", "indexes": [{ "key": { "a": 1, "b": 1 }, "name": "slow" }] };
    run_all(&local.client, [("shop", index)]).await;
    eventually("the build in `status`", PATIENCE, async || {
        let health = agent.health().unwrap();
        health["indexBuilds"][0]["indexes"][0] == "slow"
    })
    .await;

    for n in 0..50 {
        orders(&local).insert_one(doc! { "_id": format!("meanwhile {n}") }).await.unwrap();
        orders(&local).update_one(doc! { "_id": n }, doc! { "$set": { "a": -n } }).await.unwrap();
    }
    equal_but(MayDiffer::Schema, &local, &atlas, PATIENCE).await;
    let status = String::from_utf8(agent.cli(&["status"]).stdout).unwrap();
    assert!(status.contains("building `slow` of `shop.orders`"), "{status}");
    assert!(
        !agent.cli_json(&["verify"]).unwrap()["equal"].as_bool().unwrap(),
        "it is not there yet"
    );

    // Nor does it keep other changes of the collection away, nor a rename.
    run_all(
        &local.client,
        [("shop", doc! { "collMod": "orders", "validator": { "x": { "$exists": false } } })],
    )
    .await;
    let rename = doc! { "renameCollection": "shop.orders", "to": "shop.past" };
    run_all(&local.client, [("admin", rename)]).await;
    let past = local.client.database("shop").collection::<Document>("past");
    past.insert_one(doc! { "_id": "after the rename" }).await.unwrap();
    equal_but(MayDiffer::Schema, &local, &atlas, PATIENCE).await;
    atlas.admin(hang("off")).await;
    equal(&local, &atlas, PATIENCE).await;
}

#[tokio::test]
async fn an_index_that_goes_while_it_is_built_in_atlas_goes_there_too() {
    let (local, atlas) = pair().await;
    orders(&local).insert_many((0..100).map(|n| doc! { "_id": n, "a": n })).await.unwrap();
    let agent = Agent::started(&local.uri(), &atlas.uri());
    agent.streaming().await;
    let hang =
        |mode: &str| doc! { "configureFailPoint": "hangAfterStartingIndexBuild", "mode": mode };
    atlas.admin(hang("alwaysOn")).await;
    let index = |name: &str| doc! { "createIndexes": "orders", "indexes": [{ "key": { "a": 1 }, "name": name }] };
    run_all(&local.client, [("shop", index("brief"))]).await;
    eventually("the build in `status`", PATIENCE, async || {
        agent.health().unwrap()["indexBuilds"][0]["indexes"][0] == "brief"
    })
    .await;

    let orders_go_on = async |id: &str| {
        orders(&local).insert_one(doc! { "_id": id }).await.unwrap();
        equal_but(MayDiffer::Schema, &local, &atlas, PATIENCE).await;
    };
    let gone = doc! { "dropIndexes": "orders", "index": "brief" };
    run_all(&local.client, [("shop", gone)]).await;
    orders_go_on("behind the drop").await;
    atlas.admin(hang("off")).await;
    equal(&local, &atlas, PATIENCE).await;
    orders_go_on("afterwards").await;
}

#[tokio::test]
async fn a_thousand_collections_are_made_and_dropped_in_a_storm() {
    let (local, atlas) = pair().await;
    let agent = Agent::started(&local.uri(), &atlas.uri());
    agent.streaming().await;
    let db = local.client.database("storm");

    for n in 0..1_000 {
        let name = format!("c{n}");
        db.collection(&name).insert_one(doc! { "_id": n, "a": n }).await.unwrap();
        if n % 10 == 0 {
            let index =
                doc! { "createIndexes": &name, "indexes": [{ "key": { "a": 1 }, "name": "a" }] };
            db.run_command(index).await.unwrap();
        }
        if n >= 20 {
            db.run_command(doc! { "drop": format!("c{}", n - 20) }).await.unwrap();
        }
    }

    equal(&local, &atlas, PATIENCE * 3).await;
    assert_eq!(atlas.client.database("storm").list_collection_names().await.unwrap().len(), 20);
}

#[tokio::test]
async fn options_that_only_a_new_collection_can_have_come_with_a_new_one_where_little_is_at_stake()
{
    let (local, atlas) = pair().await;
    fill(&local, &["plain"]).await;
    let mut agent = Agent::started(&local.uri(), &atlas.uri());
    agent.may(&[Doubt], "what was replaced as a whole is compared");
    agent.streaming().await;
    equal(&local, &atlas, PATIENCE).await;
    assert!(agent.stop().success());
    // In Atlas each is there already, without its options; one is empty, one holds what it should.
    run_all(&atlas.client, [("shop", doc! { "create": "collated" })]).await;
    fill(&atlas, &["buffer"]).await;
    let collated = doc! { "create": "collated", "collation": { "locale": "de" } };
    let buffer = doc! { "create": "buffer", "capped": true, "size": 1 << 20 };
    run_all(&local.client, [("shop", collated), ("shop", buffer)]).await;
    fill(&local, &["buffer"]).await;

    agent.start(&[]);

    equal(&local, &atlas, PATIENCE).await;
}
