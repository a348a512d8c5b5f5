//! Promise 5: "everything" and "healthy" are never said over a copy that lacks something.

mod support;

use std::time::{SystemTime, UNIX_EPOCH};

use mongodb::{
    Client,
    bson::{Document, doc},
};
use support::{
    PATIENCE, agent::Agent, api::Api, eventually, mongod::Mongod, orders, pair,
    replica_set::ReplicaSet,
};

/// Waits for the first tenth of a second: what is done now stays within one second for a while.
async fn early_in_a_second() {
    eventually("the begin of a second", PATIENCE, async || {
        SystemTime::now().duration_since(UNIX_EPOCH).unwrap().subsec_millis() < 100
    })
    .await;
}

/// Commits a transaction whose documents come in several replies of the stream.
async fn large_transaction(client: &Client, round: i32) {
    let mut session = client.start_session().await.unwrap();
    let collection = client.database("shop").collection::<Document>("orders");
    session.start_transaction().await.unwrap();
    let documents = (0..3_000).map(|n| doc! { "_id": format!("{round}-{n:05}") });
    collection.insert_many(documents).session(&mut session).await.unwrap();
    session.commit_transaction().await.unwrap();
}

/// Flushes until it says "everything"; then everything of the transaction is there.
async fn flush_is_true(agent: &Agent, atlas: &Client, round: i32, when: &str) {
    let api = Api::of(agent);
    eventually("a flush that says everything", PATIENCE, async || {
        api.with_body("POST", "/api/sync/flush", r#"{"timeoutMs": 5000}"#).0 == 200
    })
    .await;
    let ours = doc! { "_id": { "$regex": format!("^{round}-") } };
    let there = atlas.database("shop").collection::<Document>("orders");
    assert_eq!(there.count_documents(ours).await.unwrap(), 3_000, "{when}, round {round}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_in_the_second_of_the_start_or_of_a_resume_is_in_atlas_when_flush_says_everything()
{
    let (local, atlas) = pair().await;
    orders(&local).insert_one(doc! { "_id": "first" }).await.unwrap();
    for round in 0..3 {
        let mut agent = Agent::new(&local.uri(), &atlas.uri(), "");
        for (server, db) in [(&atlas, "outrigger"), (&atlas, "shop"), (&local, "shop")] {
            server.client.database(db).drop().await.unwrap();
        }
        early_in_a_second().await;
        // The next write of this second has the time that the new stream names first.
        orders(&local).insert_one(doc! { "_id": round }).await.unwrap();
        agent.start(&[]);
        agent.streaming().await;
        large_transaction(&local.client, round).await;
        flush_is_true(&agent, &atlas.client, round, "start").await;

        agent.stop();
        early_in_a_second().await;
        orders(&local).insert_one(doc! { "_id": round + 100 }).await.unwrap();
        agent.start(&[]);
        agent.streaming().await;
        large_transaction(&local.client, round + 10).await;
        flush_is_true(&agent, &atlas.client, round + 10, "resume").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_in_the_second_of_a_failover_is_in_atlas_when_flush_says_everything() {
    let (set, atlas) = tokio::join!(ReplicaSet::start(), Mongod::start());
    let mut agent = Agent::new(&set.uri(), &atlas.uri(), "");
    agent.start(&[]);
    agent.streaming().await;
    for round in 0..2 {
        large_transaction(&set.client, round).await;
        set.step_down().await;
        eventually("a new primary that takes writes", PATIENCE, async || {
            set.client
                .database("shop")
                .collection::<Document>("other")
                .insert_one(doc! {})
                .await
                .is_ok()
        })
        .await;
        large_transaction(&set.client, round + 10).await;
        flush_is_true(&agent, &atlas.client, round, "before the failover").await;
        flush_is_true(&agent, &atlas.client, round + 10, "failover").await;
    }
}
