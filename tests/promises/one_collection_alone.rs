//! What one collection needs is done for that collection: it costs the others nothing, and keeps none of them waiting.

use std::collections::BTreeSet;

use mongodb::bson::{Document, doc};

use crate::support::{
    PATIENCE,
    agent::Agent,
    api::Api,
    equal::equal,
    eventually,
    mongod::Mongod,
    pair,
    proxy::Proxy,
    unasked::Unasked::{Doubt, Repair},
};

fn collection(server: &Mongod, ns: &str) -> mongodb::Collection<Document> {
    let (db, name) = ns.split_once('.').unwrap();
    server.client.database(db).collection(name)
}

async fn count(server: &Mongod, ns: &str) -> u64 {
    collection(server, ns).count_documents(doc! {}).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_schema_change_without_an_answer_has_its_own_collections_compared_and_no_other() {
    let (local, atlas) = pair().await;
    let names = ["shop.orders", "shop.others", "crm.before", "crm.people"];
    for ns in names {
        collection(&local, ns).insert_many((0..10).map(|n| doc! { "_id": n })).await.unwrap();
    }
    let agent = Agent::started(&local.uri(), &atlas.uri());
    agent.may(&[Repair, Doubt], "Atlas does not answer a change");
    agent.streaming().await;
    // What only a comparison finds.
    for ns in names {
        collection(&atlas, ns).delete_one(doc! { "_id": 3 }).await.unwrap();
    }
    let shop = local.client.database("shop");
    let admin = local.client.database("admin");
    for command in ["collMod", "renameCollection"] {
        let data =
            doc! { "failCommands": [command], "closeConnection": true, "appName": "outrigger" };
        let set =
            doc! { "configureFailPoint": "failCommand", "mode": { "times": 1 }, "data": data };
        let times = atlas.admin(set).await.get_i32("count").unwrap();
        let change = match command {
            "collMod" => {
                shop.run_command(doc! { command: "orders", "validationLevel": "moderate" })
            }
            _ => admin.run_command(doc! { command: "crm.before", "to": "crm.after" }),
        };
        change.await.unwrap();
        let wait = doc! { "waitForFailPoint": "failCommand", "timesEntered": times + 1, "maxTimeMS": 60_000 };
        atlas.admin(wait).await;
    }

    for ns in ["shop.orders", "crm.after"] {
        eventually("the comparison", PATIENCE, async || count(&atlas, ns).await == 10).await;
    }
    let api = Api::of(&agent);
    eventually("its end", PATIENCE, async || api.get("/api/sync/full").1["running"].is_null())
        .await;

    for ns in ["shop.others", "crm.people"] {
        assert_eq!(count(&atlas, ns).await, 9, "{ns}");
    }
    let last = api.get("/api/sync/full").1["sync"].clone();
    let compared = last["namespaces"].as_array().unwrap();
    let compared: BTreeSet<_> = compared.iter().map(|of| of["ns"].as_str().unwrap()).collect();
    assert!(compared.is_subset(&["shop.orders", "crm.before", "crm.after"].into()), "{last}");
    assert_eq!(agent.log().matches(r#"phase="copying""#).count(), 1, "the first copy");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rename_that_atlas_does_not_make_keeps_no_comparison_of_others_from_its_end() {
    let (local, atlas) = pair().await;
    for ns in ["shop.before", "shop.orders", "crm.people"] {
        collection(&local, ns).insert_many((0..10).map(|n| doc! { "_id": n })).await.unwrap();
    }
    let filter = "[namespaces]\ninclude = [\"shop.*\", \"crm.*\"]\n";
    let mut agent = Agent::new(&local.uri(), &atlas.uri(), filter);
    agent.may(&[Repair, Doubt], "Atlas does not make the rename");
    agent.start(&[]);
    agent.streaming().await;
    let data =
        doc! { "failCommands": ["renameCollection"], "errorCode": 13, "appName": "outrigger" };
    let set = doc! { "configureFailPoint": "failCommand", "mode": "alwaysOn", "data": data };
    atlas.admin(set).await;
    let waits = |agent: &Agent| {
        let health = agent.health().unwrap_or_default();
        health["schemaProblems"].to_string().contains("rename of the collection waits")
    };

    // The second waits behind the first.
    for (from, to) in [("shop.before", "shop.after"), ("shop.after", "shop.last")] {
        local.admin(doc! { "renameCollection": from, "to": to }).await;
    }
    eventually("a rename that waits", PATIENCE, async || waits(&agent)).await;
    for ns in ["shop.before", "shop.orders", "crm.people"] {
        collection(&atlas, ns).delete_one(doc! { "_id": 3 }).await.unwrap();
    }
    let sync = agent.cli(&["sync", "--wait"]);

    let said = String::from_utf8_lossy(&sync.stdout).into_owned();
    assert_eq!(sync.status.code(), Some(1), "{said}");
    assert!(
        said.contains("`shop.last` was not compared: rename of the collection waits"),
        "{said}"
    );
    assert!(said.contains("renameCollectionSameDB"), "what to do: {said}");
    for ns in ["shop.orders", "crm.people"] {
        assert_eq!(count(&atlas, ns).await, 10, "{ns}");
    }

    // One that is owed ends as well, and what it has left is owed until it can be compared.
    collection(&atlas, "crm.people").delete_one(doc! { "_id": 4 }).await.unwrap();
    agent.kill();
    agent.replace_setting("\"crm.*\"", "\"crm.*\", \"more.*\"");
    agent.start(&[]);
    agent.streaming().await;
    assert_eq!(count(&atlas, "crm.people").await, 10);
    assert_eq!(count(&atlas, "shop.before").await, 9);
    eventually("a rename that waits", PATIENCE, async || waits(&agent)).await;
    agent.kill();
    agent.start(&[]);
    agent.streaming().await;
    atlas.end_failing().await;
    eventually("what was left", PATIENCE, async || count(&atlas, "shop.last").await == 10).await;
    equal(&local, &atlas, PATIENCE).await;
    assert!(agent.stop().success());
}

/// Messages and bytes between an agent and both ends, for one thing that it does.
type Traffic = (u64, u64);

/// What it takes to copy, to verify, to compare and mend, and to start again, with so many collections in one database.
async fn traffic(collections: usize) -> Vec<(&'static str, Traffic)> {
    let (local, atlas) = pair().await;
    let names: Vec<_> = (0..collections).map(|n| format!("collection{n:04}")).collect();
    let (shop, copy) = (local.client.database("shop"), atlas.client.database("shop"));
    for name in &names {
        let documents = (0..3).map(|n| doc! { "_id": n, "n": n });
        shop.collection::<Document>(name).insert_many(documents).await.unwrap();
        let index = doc! { "key": { "n": 1 }, "name": "n" };
        shop.run_command(doc! { "createIndexes": name, "indexes": [index] }).await.unwrap();
    }
    let (to_local, to_atlas) = (Proxy::to(local.port).await, Proxy::to(atlas.port).await);
    let mut before = (0, 0);
    let mut found = Vec::new();
    let mut note = |what| {
        let ends = [&to_local, &to_atlas];
        let messages = ends.iter().map(|end| end.messages()).sum::<u64>();
        let bytes = ends.iter().map(|end| end.asked() + end.answered()).sum::<u64>();
        found.push((what, (messages - before.0, bytes - before.1)));
        before = (messages, bytes);
    };
    let mut agent = Agent::new(&to_local.uri(), &to_atlas.uri(), "");
    agent.start(&[]);
    agent.streaming().await;
    assert!(agent.cli(&["flush", "--indexes"]).status.success());
    note("a copy");
    assert_eq!(agent.cli_json(&["verify"]).unwrap()["equal"], true);
    note("a verification");
    for name in &names {
        copy.run_command(doc! { "dropIndexes": name, "index": "n" }).await.unwrap();
    }
    let verified = agent.cli_json(&["verify"]).unwrap();
    assert_eq!(verified["equal"], false);
    let differ = verified["namespaces"].as_array().unwrap().iter();
    let differ = differ.filter(|of| of["schema"].as_array().is_some_and(|said| !said.is_empty()));
    assert_eq!(differ.count(), collections);
    note("a verification that finds a difference in each");
    let synced = agent.cli(&["sync", "--wait"]);
    assert!(synced.status.success(), "{synced:?}");
    note("a sync that mends each");
    assert_eq!(agent.cli_json(&["verify"]).unwrap()["equal"], true);
    assert!(agent.cli(&["sync", "--wait"]).status.success());
    note("a sync and a verification that find nothing");
    assert!(agent.stop().success());
    agent.start(&[]);
    agent.streaming().await;
    assert!(agent.cli(&["flush", "--indexes"]).status.success());
    note("a restart");
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_sent_grows_as_the_number_of_collections_and_not_as_its_square() {
    let few = traffic(40).await;

    let many = traffic(160).await;

    for ((what, few), (_, many)) in few.iter().zip(&many) {
        println!("{what}: {few:?} messages and bytes for 40 collections, {many:?} for 160");
        // Four times as much, and what goes on beside it; sixteen times where it is the square.
        assert!(many.0 < 8 * few.0, "messages of {what}: {few:?} {many:?}");
        assert!(many.1 < 8 * few.1, "bytes of {what}: {few:?} {many:?}");
    }
}
