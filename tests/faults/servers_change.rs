//! The servers become others under a running agent: with other members.

use mongodb::bson::{Document, doc};

use crate::support::{PATIENCE, agent::Agent, equal::equal, orders, replica_set::ReplicaSet};

/// In the end none of those that the connection strings name is left.
#[tokio::test(flavor = "multi_thread")]
async fn members_that_leave_and_others_that_join_are_followed_on_both_sides() {
    let (mut local, mut atlas) = tokio::join!(ReplicaSet::start(), ReplicaSet::start());
    let agent = Agent::started(&local.uri(), &atlas.uri());
    agent.streaming().await;
    let documents = local.client.database("shop").collection::<Document>("orders");

    for round in 0..3 {
        tokio::join!(local.replace(round), atlas.replace(round));
        let first = i32::try_from(round).unwrap() * 100;
        documents.insert_many((first..first + 50).map(|id| doc! { "_id": id })).await.unwrap();
        equal(&local, &atlas, PATIENCE).await;
    }

    assert!(agent.cli(&["flush"]).status.success());
    assert_eq!(orders(&atlas.members[0]).count_documents(doc! {}).await.unwrap(), 150);
}
