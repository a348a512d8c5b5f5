//! Capped collections: the order of insertion is what they are for, and what comes at the end pushes out what
//! stands at the front.

use std::time::Duration;

use mongodb::bson::{Document, doc};

use crate::support::{
    PATIENCE, agent::Agent, copy_dir, equal::equal, eventually, mongod::Mongod, pair,
    unasked::Unasked::Doubt,
};

/// Documents that each of the collections holds at the most.
const CAP: i32 = 3_000;

/// Several lanes, and many batches in what a collection holds.
const SMALL_BATCHES: &str = "[worker]\nlanes = 4\nbatch_size = 100\n";

/// Why something is compared that nobody asked for.
const NEW: &str = "a capped collection that is new is copied as a whole, for the sake of its order";

async fn create(server: &Mongod, name: &str) {
    let command = doc! { "create": name, "capped": true, "size": 4 << 20, "max": CAP };
    server.client.database("shop").run_command(command).await.unwrap();
}

/// Inserts documents whose ids are in no order, so that only the natural order tells that of insertion.
async fn insert(server: &Mongod, name: &str, numbers: std::ops::Range<i32>) {
    let collection = server.client.database("shop").collection::<Document>(name);
    let documents = numbers.map(|n| doc! { "_id": (n * 7_919) % 100_003, "n": n });
    collection.insert_many(documents).await.unwrap();
}

#[tokio::test]
async fn capped_collections_keep_their_order() {
    let (local, atlas) = pair().await;
    create(&local, "before").await;
    insert(&local, "before", 0..2_000).await;
    let mut agent = Agent::new(&local.uri(), &atlas.uri(), SMALL_BATCHES);
    agent.may(&[Doubt], NEW);
    agent.start(&[]);
    agent.streaming().await;
    create(&local, "after").await;

    for part in 0..10 {
        insert(&local, "before", 2_000 + part * 400..2_400 + part * 400).await;
        insert(&local, "after", part * 400..400 + part * 400).await;
        if part == 5 {
            agent.kill();
            agent.start(&[]);
        }
    }

    equal(&local, &atlas, PATIENCE).await;
}

/// An agent that sends more slowly than it reads, so that most of what gives way to others is gone from the
/// queue before it is sent.
fn slow_agent(local: &Mongod, atlas: &Mongod) -> Agent {
    let mut agent = Agent::new(&local.uri(), &atlas.uri(), SMALL_BATCHES);
    agent.may(&[Doubt], NEW);
    agent.replace_setting("[atlas]", "[atlas]\nmax_ops_per_second = 1500");
    agent.start(&[]);
    agent
}

#[tokio::test]
async fn a_capped_collection_that_is_copied_ahead_of_the_stream_keeps_its_order() {
    let (local, atlas) = pair().await;
    let agent = slow_agent(&local, &atlas);
    agent.streaming().await;
    // Two answers, of 2,000 events, come late; the one that the agent waits for already comes within a second.
    let data = doc! {
        "failCommands": ["getMore"], "namespace": "admin.$cmd.aggregate",
        "blockConnection": true, "blockTimeMS": 4_000,
    };
    local.fail(data, 2).await;
    tokio::time::sleep(Duration::from_secs(2)).await;

    // It is copied when the stream tells of it, as it is then; how it came to that is still to be read.
    create(&local, "log").await;
    insert(&local, "log", 0..2 * CAP - 100).await;
    eventually("the copy", PATIENCE, async || {
        agent.log().contains("copied ns=shop.log documents=3000")
    })
    .await;
    // What shows that all was read after it.
    insert(&local, "log", 2 * CAP - 100..2 * CAP).await;

    equal(&local, &atlas, PATIENCE).await;
}

#[tokio::test]
async fn a_capped_collection_keeps_its_order_when_the_disk_has_lost_the_latest_of_the_queue() {
    let (local, atlas) = pair().await;
    create(&local, "log").await;
    let mut agent = slow_agent(&local, &atlas);
    agent.streaming().await;
    agent.stop();
    agent.start(&[]);
    agent.streaming().await;
    let (queue, earlier) = (agent.dir.path().join("queue"), agent.dir.path().join("earlier"));
    // Of this very start, as a disk would have it that loses the latest: an older one counts as put back.
    agent.signal("STOP");
    copy_dir(&queue, &earlier);
    agent.signal("CONT");
    insert(&local, "log", 0..CAP + 1_000).await;
    equal(&local, &atlas, PATIENCE).await;

    agent.kill();
    std::fs::remove_dir_all(&queue).unwrap();
    copy_dir(&earlier, &queue);
    agent.start(&[]);
    // What shows that all was read again.
    insert(&local, "log", CAP + 1_000..CAP + 1_100).await;

    equal(&local, &atlas, PATIENCE).await;
}

/// A ring of few ids: what has given way comes again under the same `_id`, many times over while nothing is sent.
#[tokio::test]
async fn a_ring_of_ids_that_come_again_and_again_keeps_its_order_through_an_outage() {
    let (local, atlas) = pair().await;
    let ring = local.client.database("shop").collection::<Document>("ring");
    let command = doc! { "create": "ring", "capped": true, "size": 4_096, "max": 3 };
    local.client.database("shop").run_command(command).await.unwrap();
    let mut agent = Agent::new(&local.uri(), &atlas.uri(), "[worker]\nbatch_size = 4\n");
    agent.may(&[Doubt], NEW);
    agent.start(&[]);
    agent.streaming().await;

    let mut turn = 0;
    for round in 0..6 {
        assert!(agent.cli(&["pause"]).status.success());
        for _ in 0..[2, 4, 5, 6, 23, 60][round] {
            ring.insert_one(doc! { "_id": turn % 5, "turn": turn }).await.unwrap();
            if turn % 7 == 0 {
                let last = doc! { "_id": turn % 5 };
                ring.update_one(last.clone(), doc! { "$set": { "n": turn } }).await.unwrap();
                ring.delete_one(last.clone()).await.unwrap();
                ring.insert_one(doc! { "_id": turn % 5, "again": turn }).await.unwrap();
            }
            turn += 1;
        }
        if round >= 3 {
            agent.kill();
            agent.start(&[]);
        }
        assert!(agent.cli(&["resume"]).status.success());
        // While it is sent, more comes.
        for _ in 0..4 {
            ring.insert_one(doc! { "_id": turn % 5, "turn": turn }).await.unwrap();
            turn += 1;
        }
        equal(&local, &atlas, PATIENCE).await;
    }
}
