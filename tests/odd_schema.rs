//! Options, indexes and views as applications write them and drivers do not: what is named twice, what is no
//! text, what allows what is there and forbids what comes, and names that were somebody else's before.

mod support;

use std::time::Duration;

use mongodb::{
    bson::{Document, doc, rawdoc},
    options::CollectionOptions,
};
use support::{
    PATIENCE,
    agent::Agent,
    compare::{converge, schemas_converge},
    eventually,
    mongod::Mongod,
    odd::{self, array_of, create_index, joined, schema_bytes, twice},
    pair,
};

async fn equal(local: &Mongod, atlas: &Mongod) {
    converge(&local.client, &atlas.client, PATIENCE).await;
    let give_up = std::time::Instant::now() + PATIENCE;
    loop {
        let (here, there) = (schema_bytes(local, "shop"), schema_bytes(atlas, "shop"));
        if here == there {
            return;
        }
        let text = |all: Vec<(String, Vec<Vec<u8>>)>| {
            let text = |bytes: &Vec<u8>| String::from_utf8_lossy(bytes).into_owned();
            all.into_iter()
                .map(|(name, of)| format!("{name}: {:?}", of.iter().map(text).collect::<Vec<_>>()))
                .collect::<Vec<_>>()
        };
        let (here, there) = (text(here), text(there));
        assert!(std::time::Instant::now() < give_up, "{here:#?}\n{there:#?}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// A collection `NAME` with each kind of filter, and a view of it, all of which name a field twice.
fn make_all_twice(server: &Mongod, name: &str) {
    let options = joined(&rawdoc! { "create": name }, &twice("validator"));
    odd::run(server, "shop", &options);
    let unique = rawdoc! { "key": { "mail": 1 }, "name": "mail", "unique": true };
    create_index(server, "shop", name, &joined(&unique, &twice("partialFilterExpression")));
    let pipeline = array_of("pipeline", &twice("$match"));
    let view = rawdoc! { "create": format!("{name} seen"), "viewOn": name };
    odd::run(server, "shop", &joined(&view, &pipeline));
}

#[tokio::test]
async fn filters_pipelines_and_options_that_name_a_field_twice_arrive_whole() {
    let (local, atlas) = pair().await;
    make_all_twice(&local, "copied");
    let people = |name: &str| local.client.database("shop").collection::<Document>(name);
    // Neither is in the index, and the validator was not there.
    let bypass = |id: i32| doc! { "_id": id, "a": id, "mail": "x" };
    for id in [1, 2] {
        people("copied").insert_one(bypass(id)).bypass_document_validation(true).await.unwrap();
    }

    let agent = Agent::started(&local.uri(), &atlas.uri());
    agent.streaming().await;
    equal(&local, &atlas).await;
    make_all_twice(&local, "streamed");
    for id in [1, 2] {
        people("streamed").insert_one(bypass(id)).bypass_document_validation(true).await.unwrap();
    }
    // Changed later, by what names fields twice as well.
    odd::run(&local, "shop", &joined(&rawdoc! { "collMod": "copied" }, &twice("validator")));
    let plain = rawdoc! { "collMod": "copied seen", "viewOn": "streamed" };
    odd::run(&local, "shop", &joined(&plain, &array_of("pipeline", &twice("$match"))));
    equal(&local, &atlas).await;
    assert_eq!(agent.health().unwrap()["deadLetters"], 0);

    // What Atlas lacks of it is seen, and mended.
    let half = doc! { "collMod": "streamed", "validator": { "a": { "$lte": 20 } } };
    atlas.client.database("shop").run_command(half).await.unwrap();
    let verified = agent.cli_json(&["verify"]).unwrap();
    assert_eq!(verified["equal"], false, "{verified}");
    assert!(agent.cli(&["sync", "--wait"]).status.success());
    equal(&local, &atlas).await;
    assert_eq!(agent.cli_json(&["verify"]).unwrap()["equal"], true);
}
