//! What else may be found at the local address.

use mongodb::bson::{Document, doc};

use super::Stage;
use crate::support::{
    PATIENCE,
    equal::{Everything, MayDiffer, brief, differences, everything},
    eventually,
    mongod::Mongod,
    orders,
    proxy::Line,
};

impl Stage {
    /// The agent ends, and Atlas is as it was.
    async fn is_refused(&mut self, row: &str, before: &Everything) {
        let status = self.agent.ended(PATIENCE).await;
        let now = everything(&self.atlas).await.unwrap();
        let found = differences(before, &now, MayDiffer::Nothing);
        assert!(found.is_empty(), "{row}: {} strays, the first {}", found.len(), brief(&found[0]));
        assert_eq!(status.code(), Some(1), "{row}");
    }
}

/// Here a row ends refused, with Atlas as it was, and equal once the agent was told to adopt it.
#[tokio::test(flavor = "multi_thread")]
async fn every_row_of_another_database_at_the_local_address_ends_refused() {
    let mut stage = Stage::set("document").await;
    stage.local.terminate();
    let backup = stage.local.back_up();
    stage.local.resume().await;
    let rows =
        ["a local database that was put back to a backup", "a local database that was wiped"];
    for row in rows {
        stage.work().await;
        stage.honesty.look_away(true).await;
        stage.is_well(row).await;
        let before = everything(&stage.atlas).await.unwrap();
        stage.local.kill();
        if row.contains("wiped") {
            stage.local.wipe();
            stage.local.resume().await;
            stage.local.initiate().await;
        } else {
            stage.local.put_back(&backup);
            stage.local.resume().await;
        }
        stage.work().await;
        stage.is_refused(row, &before).await;
        stage.agent.adopt();
        stage.order = MayDiffer::Order;
        stage.is_well(row).await;
        stage.honesty.look_away(false).await;
    }

    another_server(&mut stage).await;
    no_majority(&mut stage).await;

    let row = "a line to Atlas that leads to the local database";
    assert!(stage.agent.stop().success());
    let records = stage.local.client.database("outrigger").collection::<Document>("replicas");
    stage.agent.set_env("MONGODB_ATLAS_URI", &stage.to_local.uri());
    stage.agent.start(&[]);
    assert_eq!(stage.agent.ended(PATIENCE).await.code(), Some(2), "{row}");
    assert_eq!(records.count_documents(doc! {}).await.unwrap(), 0, "{row}");
    stage.agent.set_env("MONGODB_ATLAS_URI", &stage.to_atlas.uri());
    stage.agent.start(&[]);
    stage.work().await;
    stage.is_well(row).await;
    stage.ends().await;
}

/// Somebody starts another server at its address, and then the old one again.
async fn another_server(stage: &mut Stage) {
    let row = "another server at the local address, which gives way to the old one";
    let other = Mongod::start().await;
    orders(&other).insert_many((0..60).map(|n| doc! { "_id": n, "of": "another" })).await.unwrap();
    stage.work().await;
    stage.honesty.look_away(true).await;
    stage.is_well(row).await;
    let before = everything(&stage.atlas).await.unwrap();
    stage.to_local.set(Line::Cut);
    // By then no connection stands that would still lead to the old one.
    eventually("its loss is told", PATIENCE, async || {
        stage.agent.health().is_some_and(|health| !health["localError"].is_null())
    })
    .await;
    stage.to_local.turn_to(other.port);
    stage.to_local.set(Line::Up);
    orders(&other).delete_one(doc! { "_id": 1 }).await.unwrap();
    stage.is_refused(row, &before).await;
    stage.to_local.turn_to(stage.local.port);
    stage.agent.start(&[]);
    stage.work().await;
    stage.is_well(row).await;
    stage.honesty.look_away(false).await;
}

/// The local set goes without a primary for a while. What only a minority has is `elections`' subject.
async fn no_majority(stage: &mut Stage) {
    let row = "a local set that has lost its majority";
    stage.work().await;
    stage.local.loses_its_majority().await;
    eventually("no primary", PATIENCE, async || {
        let hello = stage.local.admin(doc! { "hello": 1 }).await;
        !hello.get_bool("isWritablePrimary").unwrap()
    })
    .await;
    eventually("it is told", PATIENCE, async || {
        stage.agent.health().is_some_and(|health| !health["localError"].is_null())
    })
    .await;
    stage.local.initiate_again(&stage.local.client).await;
    stage.work().await;
    stage.is_well(row).await;
}
