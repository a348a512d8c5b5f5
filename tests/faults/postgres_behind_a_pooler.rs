//! A pooler in transaction mode stands between the agent and PostgreSQL: nothing may be left in a session, since the next
//! transaction has another one.

use mongodb::bson::doc;
use rand::{SeedableRng, rngs::StdRng};

use crate::support::{
    PATIENCE, agent::Agent, mongod::Mongod, names, orders, pooler::Pooler, postgres::Postgres,
    rows, seed, unasked::Unasked, workload,
};

#[tokio::test(flavor = "multi_thread")]
async fn behind_a_pooler_in_transaction_mode_every_document_is_its_row_and_is_found_to_be() {
    let (local, target) = tokio::join!(Mongod::start(), Postgres::start());
    let Some(mut pooler) = Pooler::before(&target).await else { return };
    let mut rng = StdRng::seed_from_u64(seed());
    orders(&local).insert_many((0..3_000).map(|n| doc! { "_id": n, "a": n })).await.unwrap();
    let mut agent = Agent::into_postgres(&local.uri(), &pooler.uri(), &rows::declared());
    let why =
        "rows go by hand, collections are replaced, and the pooler is killed in their changes";
    agent.may(&[Unasked::Repair, Unasked::Doubt], why);
    agent.start(&[]);
    agent.streaming().await;
    let renamed = local.client.database("names");
    for round in 0..3 {
        for collection in &workload::collections(&local.client) {
            for _ in 0..15 {
                workload::change(collection, &mut rng).await.unwrap();
            }
        }
        for _ in 0..15 {
            names::step(&renamed, &mut rng).await.unwrap();
        }
        orders(&local).update_many(doc! {}, doc! { "$inc": { "touched": 1 } }).await.unwrap();
        if round == 1 {
            pooler.kill();
            pooler.resume().await;
        }
    }
    rows::equal(&local.client, &target, PATIENCE).await;

    // It is compared through it as well, by more connections than there are behind it.
    target.ask("DELETE FROM shop.orders WHERE a = 7").await;
    let found = agent.cli_json(&["verify"]).expect("it compares");
    assert_eq!(found["equal"], false, "{found}");
    let repaired = agent.cli(&["sync", "--wait"]);
    assert!(repaired.status.success(), "{}", String::from_utf8_lossy(&repaired.stderr));
    rows::equal(&local.client, &target, PATIENCE).await;
}
