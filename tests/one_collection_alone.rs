//! What one collection needs is done for that collection: it costs the others nothing, and keeps none of them waiting.

mod support;

use std::collections::BTreeSet;

use mongodb::bson::{Document, doc};
use support::{PATIENCE, agent::Agent, api::Api, eventually, mongod::Mongod, pair};

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
