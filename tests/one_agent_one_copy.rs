//! Ownership: one agent keeps one copy, and a second one says who the first is.

mod support;

use mongodb::bson::{DateTime, Document, doc};
use support::{
    PATIENCE, agent::Agent, compare::converge, eventually, mongod::Mongod, orders, pair,
};

fn marks(atlas: &Mongod) -> mongodb::Collection<Document> {
    atlas.client.database("outrigger").collection("replicas")
}

async fn refused(agent: &mut Agent, args: &[&str]) -> String {
    agent.start(args);
    assert_eq!(agent.ended(PATIENCE).await.code(), Some(1), "{}", agent.log());
    agent.log()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_agent_of_the_same_source_refuses_and_names_the_first() {
    let (local, atlas) = pair().await;
    orders(&local).insert_one(doc! { "_id": 1 }).await.unwrap();
    let mut first = Agent::started(&local.uri(), &atlas.uri());
    first.streaming().await;
    let mut second = Agent::new(&local.uri(), &atlas.uri(), "");

    for args in [&[][..], &["--adopt"]] {
        let log = refused(&mut second, args).await;
        let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
        assert!(log.contains(&format!("host `{host}`")), "{log}");
        assert!(log.contains(&format!("process {}", first.id())), "{log}");
        assert!(log.contains("last heartbeat") && log.contains("hint: stop that agent"), "{log}");
    }
    assert!(first.is_running(), "and the first is not disturbed");

    // An agent that was stopped in order leaves its place.
    assert!(first.stop().success());
    second.start(&[]);
    second.streaming().await;
    orders(&local).insert_one(doc! { "_id": 2 }).await.unwrap();
    converge(&local.client, &atlas.client, PATIENCE).await;
    assert!(refused(&mut first, &[]).await.contains("another agent replicates"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_place_of_an_agent_that_died_is_taken_over_when_that_is_said() {
    let (local, atlas) = pair().await;
    orders(&local).insert_one(doc! { "_id": 1 }).await.unwrap();
    let mut first = Agent::started(&local.uri(), &atlas.uri());
    first.streaming().await;
    first.kill();
    let mut second = Agent::new(&local.uri(), &atlas.uri(), "");
    assert!(refused(&mut second, &["--adopt"]).await.contains("last heartbeat"), "it is fresh");

    let long_ago = DateTime::from_millis(DateTime::now().timestamp_millis() - 600_000);
    let stale = doc! { "$set": { "heartbeatAt": long_ago } };
    marks(&atlas).update_one(doc! {}, stale).await.unwrap();
    let log = refused(&mut second, &[]).await;
    assert!(log.contains("10m ago") && log.contains("run --adopt"), "{log}");

    second.start(&["--adopt"]);
    second.streaming().await;
    orders(&local).insert_one(doc! { "_id": 2 }).await.unwrap();
    converge(&local.client, &atlas.client, PATIENCE).await;
    assert!(refused(&mut first, &[]).await.contains(&format!("process {}", second.id())));
}

/// It was cut off for so long that another one was told to take over.
#[tokio::test(flavor = "multi_thread")]
async fn an_agent_whose_place_was_taken_ends() {
    let (local, atlas) = pair().await;
    let mut agent = Agent::started(&local.uri(), &atlas.uri());
    agent.streaming().await;
    let mark = marks(&atlas).find_one(doc! {}).await.unwrap().unwrap();
    assert!(mark.get_timestamp("checkpoint").is_err(), "only the heartbeat writes it");
    eventually("a heartbeat", PATIENCE, async || {
        let mark = marks(&atlas).find_one(doc! {}).await.unwrap().unwrap();
        mark.get_timestamp("checkpoint").is_ok()
    })
    .await;

    let other = doc! { "id": "x", "instance": "y", "host": "elsewhere", "pid": 42_i64 };
    marks(&atlas).update_one(doc! {}, doc! { "$set": { "agent": other } }).await.unwrap();

    assert_eq!(agent.ended(PATIENCE).await.code(), Some(1));
    assert!(agent.log().contains("host `elsewhere`, process 42"), "{}", agent.log());
}

/// Somebody dropped it, or put Atlas back to a backup: nothing is known of what is there.
#[tokio::test(flavor = "multi_thread")]
async fn a_mark_that_is_gone_is_set_again_and_everything_compared() {
    let (local, atlas) = pair().await;
    orders(&local).insert_many((0..50).map(|n| doc! { "_id": n })).await.unwrap();
    let agent = Agent::started(&local.uri(), &atlas.uri());
    agent.streaming().await;

    orders(&atlas).delete_many(doc! {}).await.unwrap();
    atlas.client.database("outrigger").drop().await.unwrap();

    converge(&local.client, &atlas.client, PATIENCE).await;
    assert!(marks(&atlas).find_one(doc! {}).await.unwrap().is_some());
}
