//! Those of the specification's seventeen properties that the main job reaches, each by its name.
//! Properties 1, 5 and 10 are in `the_application_never_notices.rs`, 4 in `atlas_refuses.rs` and, for
//! every wait and jitter, in `src/policy/backoff.rs`.

use std::collections::BTreeMap;

use mongodb::{
    Collection,
    bson::{Document, doc},
};
use rand::{Rng, SeedableRng, rngs::StdRng};
use serde_json::Value;

use crate::support::{
    PATIENCE,
    agent::Agent,
    api::Api,
    copy_dir,
    equal::{MayDiffer, equal, equal_but},
    eventually,
    mongod::Mongod,
    pair,
    proxy::{Line, Proxy},
    seed,
    unasked::Unasked::{DeadLetters, Retries},
};

/// Both ends, a line to Atlas that can be cut, and an agent between them.
struct Stage {
    local: Mongod,
    atlas: Mongod,
    line: Proxy,
    agent: Agent,
    orders: Collection<Document>,
}

impl Stage {
    async fn set(config: &str) -> Self {
        let (local, atlas) = pair().await;
        let line = Proxy::to(atlas.port).await;
        let orders: Collection<Document> = local.client.database("shop").collection("orders");
        // Made beforehand, so that its creation is no entry of the queue.
        local.client.database("shop").create_collection("orders").await.unwrap();
        let mut agent = Agent::new(&local.uri(), &line.uri(), config);
        agent.start(&[]);
        agent.streaming().await;
        Self { local, atlas, line, agent, orders }
    }

    fn queue(&self) -> Vec<Value> {
        let list = self.agent.cli_json(&["queue", "list", "--limit", "10000"]).unwrap();
        list.as_array().unwrap().clone()
    }

    async fn waits(&self, entries: usize) {
        eventually("the queue's length", PATIENCE, async || self.queue().len() == entries).await;
    }

    async fn converge(&self) {
        equal(&self.local, &self.atlas, PATIENCE).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn property_02_and_03_every_change_enters_the_queue_in_the_order_of_first_change() {
    let stage = Stage::set("").await;
    let mut rng = StdRng::seed_from_u64(seed());
    stage.orders.insert_many((0..300).map(|id| doc! { "_id": id })).await.unwrap();
    stage.converge().await;
    stage.line.set(Line::Cut);
    let mut first_changed = Vec::new();
    let mut changes: BTreeMap<i64, u64> = BTreeMap::new();

    for n in 0..300 {
        let id = rng.random_range(0..150_i64) + 150 * (n % 3);
        match n % 3 {
            // Inserts and deletes work on documents of their own, so that every one takes effect.
            0 if !changes.contains_key(&(1000 + id)) => {
                stage.orders.insert_one(doc! { "_id": 1000 + id }).await.unwrap();
                changes.insert(1000 + id, 1);
                first_changed.push(1000 + id);
            }
            1 => {
                stage
                    .orders
                    .update_one(doc! { "_id": id % 150 }, doc! { "$set": { "n": n } })
                    .await
                    .unwrap();
                let count = changes.entry(id % 150).or_default();
                if *count == 0 {
                    first_changed.push(id % 150);
                }
                *count += 1;
            }
            2 if !changes.contains_key(&(150 + id % 150)) => {
                stage.orders.delete_one(doc! { "_id": 150 + id % 150 }).await.unwrap();
                changes.insert(150 + id % 150, 1);
                first_changed.push(150 + id % 150);
            }
            _ => {}
        }
    }
    let total: u64 = changes.values().sum();
    let mut queued = Vec::new();
    // While a batch tries the line, what changes of its documents meanwhile is an entry of its own.
    eventually("all changes, each document once", PATIENCE, async || {
        let queue = stage.queue();
        queued = queue.iter().map(|op| op["documentId"].as_i64().unwrap()).collect();
        let counted: u64 = queue.iter().map(|op| op["changes"].as_u64().unwrap()).sum();
        queued.len() == changes.len() && counted == total
    })
    .await;

    assert_eq!(queued, first_changed);
    assert!(total >= 100, "{total} changes");
    stage.line.set(Line::Up);
    stage.converge().await;
}

/// Successes at debug, each by itself; in the summary of the minute, all of them. What is rejected says so,
/// and what is given up is an error.
#[tokio::test(flavor = "multi_thread")]
async fn property_06_every_outcome_is_logged_with_time_and_details() {
    let config = "[log]\nlevel = \"debug\"\nformat = \"json\"\n[worker]\nmax_retries = 1\nretry_delays = [\"100ms\"]\n";
    let stage = Stage::set(config).await;
    stage.agent.may(&[Retries, DeadLetters], "Atlas alone has a unique index");
    // Atlas alone has this index, so that it rejects some.
    let unique = doc! { "key": { "u": 1 }, "name": "u", "unique": true, "sparse": true };
    let command = doc! { "createIndexes": "orders", "indexes": [unique] };
    stage.atlas.client.database("shop").run_command(command).await.unwrap();
    let mut rng = StdRng::seed_from_u64(seed());
    for id in 0..120 {
        stage.orders.insert_one(doc! { "_id": id, "n": rng.random::<i32>() }).await.unwrap();
    }
    equal_but(MayDiffer::Schema, &stage.local, &stage.atlas, PATIENCE).await;
    stage
        .orders
        .insert_many([doc! { "_id": 500, "u": 1 }, doc! { "_id": 501, "u": 1 }])
        .await
        .unwrap();
    eventually("a dead letter", PATIENCE, async || {
        stage.agent.health().unwrap()["deadLetters"] == 1
    })
    .await;
    let summary = async || {
        let log = stage.agent.log();
        log.lines().any(|line| line.contains("the last minute") && !line.contains("\"applied\":0"))
    };
    eventually("the summary of the minute", 2 * PATIENCE, summary).await;

    let lines: Vec<Value> = stage
        .agent
        .log()
        .lines()
        .map(|line| serde_json::from_str(line).expect("every line is JSON"))
        .collect();
    let said = |text: &str| -> Vec<&Value> {
        lines.iter().filter(|line| line["message"].as_str().unwrap_or("").contains(text)).collect()
    };
    let written: std::collections::BTreeSet<_> = said("written")
        .into_iter()
        .inspect(|line| assert!(line["timestamp"].is_string() && line["id"].is_string(), "{line}"))
        .filter(|line| line["ns"] == "shop.orders" && line["level"] == "DEBUG")
        .filter_map(|line| line["key"].as_str()?.parse::<i32>().ok())
        .collect();
    assert!((0..120).all(|id| written.contains(&id)), "{written:?}");
    let retried = said("tried again later");
    assert_eq!((retried.len(), &retried[0]["attempt"]), (1, &1.into()), "{retried:?}");
    assert!(retried[0]["error"].as_str().unwrap().contains("unique index"), "{}", retried[0]);
    let died = said("kept as a dead letter");
    assert_eq!((died.len(), &died[0]["level"]), (1, &"ERROR".into()), "{died:?}");
    let letters = stage.agent.cli_json(&["dead", "list"]).unwrap();
    assert_eq!(died[0]["id"], letters[0]["id"], "the log leads to the letter");
    let total: u64 =
        said("the last minute").iter().filter_map(|line| line["applied"].as_u64()).sum();
    assert!(total >= 120, "{total} in the summaries");
}

#[tokio::test(flavor = "multi_thread")]
async fn property_11_excluded_collections_and_limits_are_respected() {
    let (local, atlas) = pair().await;
    let mut agent = Agent::new(
        &local.uri(),
        &atlas.uri(),
        "[namespaces]\ninclude = [\"shop.*\"]\nexclude = [\"shop.tmp_*\"]\n[worker]\nbatch_size = 7\nlanes = 1\n",
    );
    agent.set_env("SYNC_EXCLUDED_COLLECTIONS", "sessions");
    let insert = async |n: i32| {
        for name in ["shop.orders", "shop.sessions", "shop.tmp_1", "crm.people"] {
            let (db, collection) = name.split_once('.').unwrap();
            let collection = local.client.database(db).collection::<Document>(collection);
            collection.insert_many((0..50).map(|m| doc! { "_id": n * 100 + m })).await.unwrap();
        }
    };
    insert(0).await;

    agent.start(&[]);
    agent.streaming().await;
    insert(1).await;

    let orders = |server: &Mongod| server.client.database("shop").collection::<Document>("orders");
    eventually("the orders", PATIENCE, async || {
        orders(&atlas).count_documents(doc! {}).await.unwrap() == 100
    })
    .await;
    assert_eq!(atlas.client.database("shop").list_collection_names().await.unwrap(), ["orders"]);
    assert!(!atlas.client.list_database_names().await.unwrap().contains(&"crm".to_owned()));
    let metrics = || Api::of(&agent).get("/api/sync/metrics").1;
    eventually("50 documents in batches of 7", PATIENCE, async || {
        metrics()["batches"].as_u64() >= Some(8)
    })
    .await;
    let metrics = metrics();
    assert_eq!(metrics["totalOperations"], 50, "the filter is the server's: {metrics}");
}

/// That a rate holds over time is shown where no clock is needed, in `src/policy/limiter.rs`. Here: that it
/// reaches the wire, as commands of a tenth of a second's worth.
#[tokio::test(flavor = "multi_thread")]
async fn property_11_a_rate_limit_cuts_what_is_sent() {
    let (local, atlas) = pair().await;
    let orders = local.client.database("shop").collection::<Document>("orders");
    orders.insert_many((0..100).map(|n| doc! { "_id": n })).await.unwrap();
    let mut agent = Agent::new(&local.uri(), &atlas.uri(), "");
    agent.replace_setting("[atlas]", "[atlas]\nmax_ops_per_second = 200");
    let inserts = async || atlas.insert_commands().await;
    let before = inserts().await;

    agent.start(&[]);
    equal(&local, &atlas, PATIENCE).await;
    let after_copy = inserts().await;
    orders.insert_many((100..200).map(|n| doc! { "_id": n })).await.unwrap();
    equal(&local, &atlas, PATIENCE).await;

    assert!(after_copy - before >= 5, "100 documents at 20 in a command: {}", after_copy - before);
    assert!(inserts().await - after_copy >= 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn property_12_what_is_queued_while_atlas_is_away_is_delivered_and_survives_a_restart() {
    let mut stage = Stage::set("").await;
    stage.line.set(Line::Cut);
    stage.orders.insert_many((0..120).map(|id| doc! { "_id": id, "v": id })).await.unwrap();
    stage.waits(120).await;

    assert!(stage.agent.stop().success());
    let while_stopped = stage.agent.cli_json(&["queue", "stats"]).unwrap();
    assert_eq!(while_stopped["pending"], 120);
    stage.agent.start(&[]);
    stage.waits(120).await;
    assert_eq!(
        stage
            .atlas
            .client
            .database("shop")
            .collection::<Document>("orders")
            .count_documents(doc! {})
            .await
            .unwrap(),
        0
    );
    stage.line.set(Line::Up);

    stage.converge().await;
}

/// The stream is replayed from an old checkpoint: the queue of an earlier moment is put back.
#[tokio::test(flavor = "multi_thread")]
async fn property_13_14_and_15_repeated_inserts_updates_and_deletes_end_as_if_made_once() {
    let mut stage = Stage::set("").await;
    stage.orders.insert_many((0..100).map(|id| doc! { "_id": id, "v": 0 })).await.unwrap();
    stage.converge().await;
    assert!(stage.agent.stop().success());
    stage.agent.start(&[]);
    stage.agent.streaming().await;
    let queue = stage.agent.dir.path().join("queue");
    let earlier = stage.agent.dir.path().join("earlier");
    // Of this very start: one of an earlier start counts as put back, and is not gone on with.
    stage.agent.signal("STOP");
    copy_dir(&queue, &earlier);
    stage.agent.signal("CONT");
    let mut rng = StdRng::seed_from_u64(seed());
    for n in 0..150 {
        let id = rng.random_range(0..200);
        match n % 3 {
            0 => drop(stage.orders.insert_one(doc! { "_id": id, "born": n }).await),
            1 => drop(
                stage
                    .orders
                    .update_one(
                        doc! { "_id": id },
                        doc! { "$inc": { "v": 1 }, "$push": { "log": n } },
                    )
                    .await
                    .unwrap(),
            ),
            _ => drop(stage.orders.delete_one(doc! { "_id": id }).await.unwrap()),
        }
    }
    stage.converge().await;
    assert!(stage.agent.stop().success());

    std::fs::remove_dir_all(&queue).unwrap();
    std::fs::rename(&earlier, &queue).unwrap();
    stage.agent.start(&[]);
    stage.orders.insert_one(doc! { "_id": "the end" }).await.unwrap();

    stage.converge().await;
    let health = stage.agent.health().unwrap();
    assert_eq!(
        (&health["deadLetters"], &health["errorRate"]),
        (&Value::from(0), &Value::from("0.0%")),
        "no duplicate-key error"
    );
    assert!(!stage.agent.log().contains("moved aside"), "it is gone on with");
}

#[tokio::test(flavor = "multi_thread")]
async fn property_16_and_17_a_second_op_is_recognized_and_merged_into_one_write_with_the_latest_data()
 {
    let stage = Stage::set("").await;
    let mut rng = StdRng::seed_from_u64(seed());
    stage.orders.insert_many((0..20).map(|id| doc! { "_id": id, "v": 0 })).await.unwrap();
    stage.converge().await;
    let writes_before = stage.atlas.document_writes().await;
    stage.line.set(Line::Cut);

    let mut touched = std::collections::BTreeSet::new();
    for n in 1..=200 {
        let id = rng.random_range(0..20);
        stage.orders.update_one(doc! { "_id": id }, doc! { "$set": { "v": n } }).await.unwrap();
        touched.insert(id);
    }
    eventually("all changes", PATIENCE, async || {
        stage.queue().iter().map(|op| op["changes"].as_u64().unwrap()).sum::<u64>() == 200
    })
    .await;
    // A second op is recognized; one for a document that is in a failing write joins it afterwards.
    stage.waits(touched.len()).await;
    stage.line.set(Line::Up);

    stage.converge().await;
    assert_eq!(
        stage.atlas.document_writes().await - writes_before,
        touched.len() as i64,
        "one write each"
    );
}
