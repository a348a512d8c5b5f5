//! Promise 1: only reads go to the local database, and whatever happens to the agent or to Atlas, the
//! application's writes go on.

use mongodb::bson::{Bson, Document, doc};

use crate::support::{
    PATIENCE,
    agent::Agent,
    equal::equal,
    eventually,
    guarded::Guarded,
    pair,
    proxy::{Line, Proxy},
};

/// With exactly the roles of the book (docs/configure.md). The local user may read and nothing else, so the agent
/// cannot have written there.
#[tokio::test(flavor = "multi_thread")]
async fn the_agent_needs_no_right_to_write_locally() {
    let reader = vec![
        "readAnyDatabase".into(),
        "clusterMonitor".into(),
        Bson::Document(doc! { "role": "read", "db": "local" }),
    ];
    let writer = vec!["readWriteAnyDatabase".into(), "dbAdminAnyDatabase".into()];
    let (local, atlas) = tokio::join!(Guarded::start(reader), Guarded::start(writer));
    let shop = local.root.database("shop");
    let orders = shop.collection::<Document>("orders");
    orders.insert_many((0..50).map(|n| doc! { "_id": n })).await.unwrap();
    // A document that violates its validator, as an application may have from before it.
    let validator = doc! { "collMod": "orders", "validator": { "total": { "$exists": true } } };
    shop.run_command(validator).await.unwrap();

    let agent = Agent::started(&local.uri(), &atlas.uri());
    agent.streaming().await;
    let change = doc! {
        "update": "orders", "bypassDocumentValidation": true,
        "updates": [{ "q": {}, "u": { "$set": { "n": 1 } }, "multi": true }],
    };
    shop.run_command(change).await.unwrap();
    orders.delete_one(doc! { "_id": 3 }).await.unwrap();
    shop.collection::<Document>("old").insert_one(doc! { "_id": 1 }).await.unwrap();
    shop.collection::<Document>("gone").insert_one(doc! { "_id": 1 }).await.unwrap();
    let rename = doc! { "renameCollection": "shop.old", "to": "shop.new" };
    local.root.database("admin").run_command(rename).await.unwrap();
    shop.collection::<Document>("gone").drop().await.unwrap();

    equal(&local, &atlas, PATIENCE).await;
    let check = agent.cli(&["check"]);
    assert_eq!(check.status.code(), Some(0), "{}", String::from_utf8_lossy(&check.stdout));
    let output = format!("{}{:?}{check:?}", agent.log(), agent.health());
    assert!(!output.contains("s3cret"), "no output shows the password");
}

#[tokio::test(flavor = "multi_thread")]
async fn property_01_the_local_database_serves_every_operation_whatever_the_state_of_atlas() {
    let (local, mut atlas) = pair().await;
    let line = Proxy::to(atlas.port).await;
    let orders = local.client.database("shop").collection::<Document>("orders");
    let agent = Agent::started(&local.uri(), &line.uri());
    agent.streaming().await;

    for (state, n) in [(Line::Up, 0), (Line::Cut, 1), (Line::Silent, 2), (Line::Up, 3)] {
        line.set(state);
        if n == 3 {
            atlas.kill();
        }
        for m in 0..25 {
            let id = n * 100 + m;
            orders.insert_one(doc! { "_id": id }).await.unwrap();
            orders.update_one(doc! { "_id": id }, doc! { "$set": { "m": m } }).await.unwrap();
            let found = orders.find_one(doc! { "_id": id }).await.unwrap().unwrap();
            assert_eq!(found.get_i32("m").unwrap(), m);
            if m % 5 == 0 {
                orders.delete_one(doc! { "_id": id }).await.unwrap();
            }
        }
    }
    atlas.resume().await;

    equal(&local, &atlas, PATIENCE).await;
}

/// A local write returns while nothing of it can have reached Atlas, which does not answer at all.
#[tokio::test(flavor = "multi_thread")]
async fn property_05_no_local_write_waits_for_atlas() {
    let (local, atlas) = pair().await;
    let line = Proxy::to(atlas.port).await;
    let orders = local.client.database("shop").collection::<Document>("orders");
    let agent = Agent::started(&local.uri(), &line.uri());
    agent.streaming().await;
    line.set(Line::Silent);

    for n in 0..100 {
        orders.insert_one(doc! { "_id": n }).await.unwrap();
    }

    assert_eq!(orders.count_documents(doc! {}).await.unwrap(), 100);
    let there = atlas.client.database("shop").collection::<Document>("orders");
    assert_eq!(there.count_documents(doc! {}).await.unwrap(), 0);
    agent.queued(100).await;
    line.set(Line::Up);
    equal(&local, &atlas, PATIENCE).await;
}

/// The same application code, the same data, with the agent up, stopped and killed.
#[tokio::test(flavor = "multi_thread")]
async fn property_10_no_change_to_the_application_is_needed() {
    let (local, atlas) = pair().await;
    let orders = local.client.database("shop").collection::<Document>("orders");
    orders.insert_one(doc! { "_id": "before" }).await.unwrap();
    let indexes = orders.list_index_names().await.unwrap();

    let mut agent = Agent::started(&local.uri(), &atlas.uri());
    agent.streaming().await;
    orders.insert_one(doc! { "_id": "with" }).await.unwrap();
    agent.kill();
    orders.insert_one(doc! { "_id": "without" }).await.unwrap();
    agent.start(&[]);
    equal(&local, &atlas, PATIENCE).await;

    // Nothing of ours has appeared in the application's database.
    let names = local.client.list_database_names().await.unwrap();
    assert!(
        names.iter().all(|name| matches!(name.as_str(), "admin" | "config" | "local" | "shop")),
        "{names:?}"
    );
    assert_eq!(local.client.database("shop").list_collection_names().await.unwrap(), ["orders"]);
    assert_eq!(orders.list_index_names().await.unwrap(), indexes);
    eventually("a healthy agent", PATIENCE, async || {
        agent.health().unwrap()["status"] == "healthy"
    })
    .await;
}
