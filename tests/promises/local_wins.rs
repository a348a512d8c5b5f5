//! Promise 4: where the two disagree, the local document is the truth; but the agent never wipes a
//! database that it does not own.

use mongodb::bson::{Bson, doc};

use crate::support::{
    PATIENCE, agent::Agent, equal::equal, eventually, mongod::Mongod, orders, pair,
    unasked::Unasked::Repair,
};

#[tokio::test(flavor = "multi_thread")]
async fn an_atlas_that_holds_data_without_our_lease_is_refused_unless_adopted() {
    let (local, atlas) = pair().await;
    orders(&local).insert_many([doc! { "_id": 1, "v": "local" }, doc! { "_id": 2 }]).await.unwrap();
    orders(&atlas)
        .insert_many([doc! { "_id": 1, "v": "somebody's" }, doc! { "_id": 3 }])
        .await
        .unwrap();
    let mut agent = Agent::started(&local.uri(), &atlas.uri());
    agent.may(&[Repair], "Atlas held data of somebody else");

    let status = agent.ended(PATIENCE).await;

    assert_eq!(status.code(), Some(1));
    assert!(agent.log().contains("--adopt"), "{}", agent.log());
    let untouched = orders(&atlas).find_one(doc! { "_id": 1 }).await.unwrap().unwrap();
    assert_eq!(untouched.get("v"), Some(&Bson::String("somebody's".into())));

    agent.start(&["--adopt"]);
    equal(&local, &atlas, PATIENCE).await;
}

/// What was changed in Atlas by another hand is overwritten when everything is compared.
#[tokio::test(flavor = "multi_thread")]
async fn a_comparison_makes_atlas_equal_to_the_local_database() {
    let (local, atlas) = pair().await;
    orders(&local).insert_many((0..300).map(|n| doc! { "_id": n, "v": n })).await.unwrap();
    let mut agent = Agent::started(&local.uri(), &atlas.uri());
    agent.may(&[Repair], "somebody else writes to Atlas");
    agent.streaming().await;
    equal(&local, &atlas, PATIENCE).await;
    assert!(agent.stop().success());

    orders(&atlas)
        .update_one(doc! { "_id": 1 }, doc! { "$set": { "v": "another value" } })
        .await
        .unwrap();
    orders(&atlas).update_one(doc! { "_id": 2 }, doc! { "$set": { "v": 2_i64 } }).await.unwrap();
    orders(&atlas).delete_one(doc! { "_id": 3 }).await.unwrap();
    orders(&atlas).insert_one(doc! { "_id": "extra" }).await.unwrap();
    std::fs::remove_dir_all(agent.dir.path().join("queue")).unwrap();
    agent.start(&[]);

    equal(&local, &atlas, PATIENCE).await;
}

/// Two thirds of the copy are not in the local database any more, and no change event says why.
#[tokio::test(flavor = "multi_thread")]
async fn a_mass_delete_that_only_a_comparison_asks_for_is_not_made() {
    let (local, atlas) = pair().await;
    orders(&local).insert_many((0..300).map(|n| doc! { "_id": n })).await.unwrap();
    let mut agent = Agent::started(&local.uri(), &atlas.uri());
    agent.may(&[Repair], "the queue is lost while documents are deleted");
    agent.streaming().await;
    equal(&local, &atlas, PATIENCE).await;
    assert!(agent.stop().success());

    orders(&local).delete_many(doc! { "_id": { "$lt": 200 } }).await.unwrap();
    orders(&local).insert_one(doc! { "_id": 1000 }).await.unwrap();
    std::fs::remove_dir_all(agent.dir.path().join("queue")).unwrap();
    agent.start(&[]);
    eventually("the new document", PATIENCE, async || {
        orders(&atlas).find_one(doc! { "_id": 1000 }).await.unwrap().is_some()
    })
    .await;
    agent.streaming().await;

    assert_eq!(orders(&atlas).count_documents(doc! {}).await.unwrap(), 301);
    assert!(agent.log().contains("none of them is deleted"), "it says so");
    let health = agent.health().unwrap();
    assert_eq!(health["status"], "unhealthy", "{health}");
    assert!(
        health["alerts"].to_string().contains("max_delete_ratio")
            && health["consistentAsOf"].is_null(),
        "{health}"
    );

    // Who wants as much to go says so.
    assert!(agent.stop().success());
    agent.replace_setting("[admin]", "[sync]\nmax_delete_ratio = 0.9\n[admin]");
    std::fs::remove_dir_all(agent.dir.path().join("queue")).unwrap();
    agent.start(&[]);
    equal(&local, &atlas, PATIENCE).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_copy_of_another_source_is_refused_and_an_adopted_one_is_lost_to_its_first_owner() {
    let ((first, second), atlas) = tokio::join!(pair(), Mongod::start());
    orders(&first).insert_one(doc! { "_id": 1, "of": "first" }).await.unwrap();
    orders(&second).insert_one(doc! { "_id": 1, "of": "second" }).await.unwrap();
    let mut a = Agent::started(&first.uri(), &atlas.uri());
    a.streaming().await;
    assert!(a.stop().success());

    let mut b = Agent::started(&second.uri(), &atlas.uri());
    b.may(&[Repair], "the copy of another source is adopted");
    assert_eq!(b.ended(PATIENCE).await.code(), Some(1));
    assert!(b.log().contains("the copy of another source"), "{}", b.log());
    b.start(&["--adopt"]);
    equal(&second, &atlas, PATIENCE).await;

    a.start(&[]);
    assert_eq!(a.ended(PATIENCE).await.code(), Some(1));
    equal(&second, &atlas, PATIENCE).await;
}
