//! Promise 2: every majority-committed change ends up in Atlas, whatever is killed, cut or lost.

use std::time::Duration;

use mongodb::bson::{Document, doc};
use rand::{Rng, SeedableRng, rngs::StdRng};

use crate::support::{
    PATIENCE,
    agent::Agent,
    copy_dir,
    equal::equal,
    eventually,
    names::rename,
    orders, pair,
    proxy::{Line, Proxy},
    seed,
    unasked::Unasked::{DeadLetters, Doubt, NewQueue, Repair, Retries},
    workload,
};

/// The application goes on meanwhile; the kills hit whatever the agent is doing: opening the queue,
/// taking the position, copying, committing, writing, acking.
#[tokio::test(flavor = "multi_thread")]
async fn fifty_kills_at_random_moments_under_load_lose_nothing() {
    let seed = seed();
    let mut rng = StdRng::seed_from_u64(seed);
    let (local, atlas) = pair().await;
    let collections = workload::collections(&local.client);
    for _ in 0..500 {
        workload::change(&collections[rng.random_range(0..3)], &mut rng).await.unwrap();
    }
    let stop = tokio_util::sync::CancellationToken::new();
    let load = tokio::spawn({
        let stop = stop.clone();
        let mut rng = StdRng::seed_from_u64(seed + 1);
        async move {
            let mut changes = 0;
            while !stop.is_cancelled() {
                workload::change(&collections[rng.random_range(0..3)], &mut rng).await.unwrap();
                changes += 1;
                if changes % 50 == 0 {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            }
            changes
        }
    });
    let mut agent = Agent::new(
        &local.uri(),
        &atlas.uri(),
        "[worker]\nbatch_size = 50\nretry_delays = [\"200ms\"]",
    );

    for _ in 0..50 {
        agent.start(&[]);
        let alive = if rng.random_bool(0.3) { 100..400 } else { 400..1200 };
        tokio::time::sleep(Duration::from_millis(rng.random_range(alive))).await;
        agent.kill();
    }
    stop.cancel();
    let changes = load.await.unwrap();
    agent.start(&[]);

    equal(&local, &atlas, PATIENCE).await;
    agent.streaming().await;
    println!("{changes} changes, 50 kills");
    assert!(changes > 1_000, "the load was too small to prove anything: {changes} changes");
    assert!(!agent.log().contains("moved aside"), "the queue survives kills");
}

#[tokio::test(flavor = "multi_thread")]
async fn atlas_away_at_the_start_is_caught_up_with() {
    let (local, mut atlas) = pair().await;
    orders(&local).insert_one(doc! { "_id": 1 }).await.unwrap();
    atlas.terminate();
    let agent = Agent::started(&local.uri(), &atlas.uri());
    eventually("an agent that runs without Atlas", PATIENCE, async || agent.health().is_some())
        .await;

    orders(&local).insert_one(doc! { "_id": 2 }).await.unwrap();
    orders(&local).update_one(doc! { "_id": 1 }, doc! { "$set": { "n": 1 } }).await.unwrap();
    agent.queued(2).await;
    atlas.resume().await;

    equal(&local, &atlas, PATIENCE).await;
    agent.streaming().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outage_of_atlas_costs_no_op_a_retry_and_makes_no_dead_letter() {
    let (local, atlas) = pair().await;
    let line = Proxy::to(atlas.port).await;
    let agent = Agent::started(&local.uri(), &line.uri());
    agent.streaming().await;

    line.set(Line::Cut);
    orders(&local).insert_many((0..100).map(|n| doc! { "_id": n })).await.unwrap();
    agent.queued(100).await;
    eventually("an open breaker", PATIENCE, async || {
        agent.health().unwrap()["breaker"] != "closed"
    })
    .await;
    // Through many probes of the breaker.
    tokio::time::sleep(Duration::from_secs(4)).await;
    let list = agent.cli_json(&["queue", "list", "--limit", "1000"]).unwrap();
    assert!(list.as_array().unwrap().iter().all(|op| op["retryCount"] == 0), "{list}");
    let log = agent.log();
    assert_eq!(log.matches("changes for Atlas wait").count(), 1, "logged on change only: {log}");
    line.set(Line::Up);

    equal(&local, &atlas, PATIENCE).await;
    assert_eq!(agent.health().unwrap()["deadLetters"], 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_goes_silent_is_noticed_on_either_side() {
    let (local, atlas) = pair().await;
    let (local_line, atlas_line) = (Proxy::to(local.port).await, Proxy::to(atlas.port).await);
    let agent = Agent::started(&local_line.uri(), &atlas_line.uri());
    agent.streaming().await;

    for (n, line) in [&local_line, &atlas_line].into_iter().enumerate() {
        line.set(Line::Silent);
        orders(&local).insert_one(doc! { "_id": n as i32 }).await.unwrap();
        // Longer than the timeout of 5 s, so that the connections are given up and not only slow.
        tokio::time::sleep(Duration::from_secs(7)).await;
        line.set(Line::Up);
        equal(&local, &atlas, PATIENCE).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_queue_is_rebuilt_by_comparing_everything() {
    let (local, atlas) = pair().await;
    orders(&local).insert_many((0..500).map(|n| doc! { "_id": n, "v": 1 })).await.unwrap();
    let mut agent = Agent::started(&local.uri(), &atlas.uri());
    agent.may(&[Repair], "the queue is lost");
    agent.streaming().await;
    equal(&local, &atlas, PATIENCE).await;
    assert!(agent.stop().success());

    orders(&local).delete_many(doc! { "_id": { "$lt": 50 } }).await.unwrap();
    orders(&local)
        .update_many(doc! { "_id": { "$gte": 400 } }, doc! { "$set": { "v": 2 } })
        .await
        .unwrap();
    orders(&local).insert_many((1000..1100).map(|n| doc! { "_id": n })).await.unwrap();
    std::fs::remove_dir_all(agent.dir.path().join("queue")).unwrap();
    agent.start(&[]);

    equal(&local, &atlas, PATIENCE).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_queue_is_moved_aside_and_rebuilt() {
    let (local, atlas) = pair().await;
    orders(&local).insert_one(doc! { "_id": 1 }).await.unwrap();
    let mut agent = Agent::started(&local.uri(), &atlas.uri());
    agent.may(&[Repair, NewQueue], "the queue is damaged");
    agent.streaming().await;
    equal(&local, &atlas, PATIENCE).await;
    assert!(agent.stop().success());
    orders(&local).insert_one(doc! { "_id": 2 }).await.unwrap();
    let db = agent.dir.path().join("queue/db");
    let mut bytes = std::fs::read(&db).unwrap();
    for byte in &mut bytes {
        *byte ^= 0xA5;
    }
    std::fs::write(&db, &bytes).unwrap();

    agent.start(&[]);

    equal(&local, &atlas, PATIENCE).await;
    assert!(agent.log().contains("moved aside"), "it says so");
    let kept = std::fs::read_dir(agent.dir.path())
        .unwrap()
        .flatten()
        .find(|entry| entry.file_name().to_string_lossy().starts_with("queue.broken-"));
    assert!(kept.unwrap().path().join("db").exists(), "nothing was deleted");
}

/// The agent's host comes back from a snapshot. Read once more from the old position, the update would make a
/// collection of one document, which the rename would put in the place of all.
#[tokio::test(flavor = "multi_thread")]
async fn a_queue_that_was_put_back_to_an_older_state_is_rebuilt_and_renames_nothing_once_more() {
    let (local, atlas) = pair().await;
    let db = local.client.database("shop");
    orders(&local).insert_many((0..500).map(|id| doc! { "_id": id })).await.unwrap();
    let mut agent = Agent::started(&local.uri(), &atlas.uri());
    agent.may(&[NewQueue], "the queue is put back");
    agent.streaming().await;
    equal(&local, &atlas, PATIENCE).await;
    assert!(agent.stop().success());
    let (queue, older) = (agent.dir.path().join("queue"), agent.dir.path().join("older"));
    copy_dir(&queue, &older);
    agent.start(&[]);
    agent.streaming().await;
    orders(&local).update_one(doc! { "_id": 1 }, doc! { "$set": { "v": 1 } }).await.unwrap();
    rename(&db, "orders", "archive", false).await.unwrap();
    equal(&local, &atlas, PATIENCE).await;
    agent.kill();

    std::fs::remove_dir_all(&queue).unwrap();
    std::fs::rename(&older, &queue).unwrap();
    agent.start(&[]);
    agent.streaming().await;
    assert!(agent.cli(&["flush"]).status.success());

    equal(&local, &atlas, Duration::ZERO).await;
    let log = agent.log();
    assert!(log.contains("it was put back to an older state"), "{log}");
    assert_eq!(log.matches("op=\"rename\"").count(), 1, "{log}");
}

/// While it drains, reading does not begin and end again with each batch that leaves.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_queue_stops_reading_and_loses_nothing() {
    let (local, atlas) = pair().await;
    let line = Proxy::to(atlas.port).await;
    let config = "[queue]\nmax_documents = 1000\n[worker]\nbatch_size = 20\n";
    let mut agent = Agent::new(&local.uri(), &line.uri(), config);
    agent.start(&[]);
    agent.streaming().await;
    line.set(Line::Cut);

    for n in 0..58 {
        orders(&local).insert_many((0..20).map(|m| doc! { "_id": n * 20 + m })).await.unwrap();
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    eventually("an alert", PATIENCE, async || {
        agent.health().is_some_and(|health| health["alerts"].to_string().contains("max_documents"))
    })
    .await;
    assert_eq!(agent.health().unwrap()["status"], "unhealthy");
    line.set(Line::Up);

    equal(&local, &atlas, PATIENCE).await;
    agent.streaming().await;
    let log = agent.log();
    for said in ["reading has stopped; the oplog", "there is room in the queue again"] {
        assert_eq!(log.matches(said).count(), 1, "{log}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_signal_leaves_at_once_and_the_queue_keeps_what_waits() {
    let (local, atlas) = pair().await;
    let line = Proxy::to(atlas.port).await;
    let mut agent = Agent::new(&local.uri(), &line.uri(), "[shutdown]\ndrain_for = \"10m\"\n");
    // Whoever waits for the drain, or for an exchange that hangs, is not there in time.
    agent.replace_setting(
        "[atlas]\nallow_insecure = true\ntimeout = \"5s\"",
        "[atlas]\nallow_insecure = true\ntimeout = \"10m\"",
    );
    agent.start(&[]);
    agent.streaming().await;
    line.set(Line::Silent);
    orders(&local).insert_many((0..10).map(|n| doc! { "_id": n })).await.unwrap();
    agent.queued(10).await;

    agent.signal("TERM");
    tokio::time::sleep(Duration::from_millis(300)).await;
    agent.signal("TERM");
    let status = agent.ended(PATIENCE).await;

    assert_eq!(status.code(), Some(0));
    let stats = agent.cli_json(&["queue", "stats"]).unwrap();
    assert_eq!(stats["pending"], 11, "the collection and its ten documents: {stats}");
    line.set(Line::Up);
    agent.start(&[]);
    equal(&local, &atlas, PATIENCE).await;
}

/// The collection's documents were never in the stream: they came under its name by a rename.
#[tokio::test(flavor = "multi_thread")]
async fn a_collection_that_is_renamed_into_the_replicated_ones_arrives_whole() {
    let (local, atlas) = pair().await;
    let line = Proxy::to(atlas.port).await;
    let config = "[namespaces]\ninclude = [\"shop.*\"]\nexclude = [\"shop.staging\"]\n";
    orders(&local).insert_many((0..150).map(|n| doc! { "_id": n })).await.unwrap();
    let mut agent = Agent::new(&local.uri(), &line.uri(), config);
    agent.may(&[Repair, Doubt], "what comes in by a rename is compared");
    agent.start(&[]);
    agent.streaming().await;
    let copied = async || orders(&atlas).count_documents(doc! {}).await.unwrap();
    assert_eq!(copied().await, 150);

    for round in 0..2 {
        line.set(if round == 0 { Line::Cut } else { Line::Up });
        let staging = local.client.database("shop").collection::<Document>("staging");
        staging.insert_many((0..150).map(|n| doc! { "_id": n })).await.unwrap();
        staging.insert_one(doc! { "_id": 1000 + round }).await.unwrap();
        let rename =
            doc! { "renameCollection": "shop.staging", "to": "shop.orders", "dropTarget": true };
        local.admin(rename).await;
        orders(&local)
            .update_one(doc! { "_id": 7 }, doc! { "$set": { "round": round } })
            .await
            .unwrap();
        tokio::time::sleep(Duration::from_secs(2)).await;
        line.set(Line::Up);
        equal(&local, &atlas, PATIENCE).await;
    }
    agent.streaming().await;
    equal(&local, &atlas, Duration::from_secs(5)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collection_that_is_renamed_before_it_could_be_copied_arrives_whole() {
    let (local, mut atlas) = pair().await;
    let db = local.client.database("shop");
    orders(&local).insert_many((0..500).map(|n| doc! { "_id": n })).await.unwrap();
    atlas.terminate();
    let agent = Agent::started(&local.uri(), &atlas.uri());
    agent.may(&[Repair], "what was renamed before its copy is compared");
    eventually("a running agent", PATIENCE, async || agent.health().is_some()).await;

    orders(&local).insert_one(doc! { "_id": "before" }).await.unwrap();
    local.admin(doc! { "renameCollection": "shop.orders", "to": "shop.archive" }).await;
    db.collection::<Document>("archive").insert_one(doc! { "_id": "after" }).await.unwrap();
    orders(&local).insert_one(doc! { "_id": "the new one" }).await.unwrap();
    agent.queued(4).await;
    atlas.resume().await;

    equal(&local, &atlas, PATIENCE).await;
    agent.streaming().await;
    equal(&local, &atlas, Duration::from_secs(5)).await;
}

/// The entries wait for the rename of their collection, and the rename for room in the queue.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_queue_of_a_collection_that_was_renamed_drains() {
    let (local, atlas) = pair().await;
    orders(&local).insert_many((0..300).map(|n| doc! { "_id": n })).await.unwrap();
    let mut agent = Agent::new(&local.uri(), &atlas.uri(), "[queue]\nmax_documents = 50\n");
    agent.start(&[]);
    agent.streaming().await;
    equal(&local, &atlas, PATIENCE).await;

    // Paused rather than cut, so that no batch is in flight that has read its documents already.
    assert!(agent.cli(&["pause"]).status.success());
    for n in 0..100 {
        orders(&local).update_one(doc! { "_id": n }, doc! { "$set": { "v": n } }).await.unwrap();
    }
    // Reading has stopped, so the rename is not read while nothing drains.
    eventually("a full queue", PATIENCE, async || {
        agent.health().is_some_and(|health| health["alerts"].to_string().contains("max_documents"))
    })
    .await;
    local.admin(doc! { "renameCollection": "shop.orders", "to": "shop.archive" }).await;
    assert!(agent.cli(&["resume"]).status.success());

    equal(&local, &atlas, PATIENCE).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_document_that_the_first_copy_cannot_place_becomes_a_dead_letter() {
    let (local, atlas) = pair().await;
    // Only a new collection could change that, so the full sync says so and leaves it.
    let folded = doc! { "create": "orders", "collation": { "locale": "en", "strength": 2 } };
    atlas.client.database("shop").run_command(folded).await.unwrap();
    orders(&local)
        .insert_many([doc! { "_id": "a" }, doc! { "_id": "A" }, doc! { "_id": "b" }])
        .await
        .unwrap();
    let mut agent = Agent::new(
        &local.uri(),
        &atlas.uri(),
        "[worker]\nmax_retries = 1\nretry_delays = [\"100ms\"]\n",
    );
    agent.may(&[Retries, DeadLetters], "two ids are one in Atlas");

    agent.start(&[]);
    agent.streaming().await;

    eventually("a dead letter", PATIENCE, async || agent.health().unwrap()["deadLetters"] == 1)
        .await;
    assert_eq!(orders(&atlas).count_documents(doc! {}).await.unwrap(), 2);
    let health = agent.health().unwrap();
    assert!(health["consistentAsOf"].is_null(), "the two sides are not equal");
    let problem = "option `collation` differs, which only a new collection can change";
    assert!(health["schemaProblems"].to_string().contains(problem), "{health}");
}

/// The line stalls in the middle of a write and delivers it when later writes of the same document have
/// been made.
#[tokio::test(flavor = "multi_thread")]
async fn a_write_that_arrives_late_does_not_put_an_older_state_back() {
    let (local, atlas) = pair().await;
    let line = Proxy::to(atlas.port).await;
    orders(&local).insert_many((0..20).map(|n| doc! { "_id": n, "v": 0 })).await.unwrap();
    let agent = Agent::started(&local.uri(), &line.uri());
    agent.streaming().await;
    equal(&local, &atlas, PATIENCE).await;

    line.set(Line::Silent);
    orders(&local).update_many(doc! {}, doc! { "$set": { "v": 1 } }).await.unwrap();
    orders(&local).insert_one(doc! { "_id": "brief" }).await.unwrap();
    // Longer than the timeout of 5 s, so that the write is given up.
    tokio::time::sleep(Duration::from_secs(7)).await;
    orders(&local).update_many(doc! {}, doc! { "$set": { "v": 2 } }).await.unwrap();
    orders(&local).delete_one(doc! { "_id": "brief" }).await.unwrap();
    line.set(Line::Up);

    eventually("the late write, and what makes it good", PATIENCE, async || {
        agent.log().contains("written once more")
    })
    .await;
    equal(&local, &atlas, PATIENCE).await;
}
