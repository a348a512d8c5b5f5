//! Ownership: one agent keeps one copy, and a second one says who the first is.

use std::time::{Duration, Instant};

use mongodb::bson::{DateTime, Document, doc};
use outrigger::side::records::STALE_AFTER;

use crate::support::{
    PATIENCE,
    agent::Agent,
    equal::equal,
    eventually,
    mongod::Mongod,
    orders, pair,
    proxy::{Line, Proxy},
    unasked::Unasked::{Doubt, Repair},
};

fn records(atlas: &Mongod) -> mongodb::Collection<Document> {
    atlas.client.database("outrigger").collection("replicas")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_agent_of_the_same_source_refuses_and_names_the_first() {
    let (local, atlas) = pair().await;
    orders(&local).insert_one(doc! { "_id": 1 }).await.unwrap();
    let mut first = Agent::started(&local.uri(), &atlas.uri());
    first.streaming().await;
    let mut second = Agent::new(&local.uri(), &atlas.uri(), "");

    for args in [&[][..], &["--adopt"]] {
        let log = second.refused(args).await;
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
    equal(&local, &atlas, PATIENCE).await;
    assert!(first.refused(&[]).await.contains("another agent replicates"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_place_of_an_agent_that_died_is_taken_over_when_that_is_said() {
    let (local, atlas) = pair().await;
    orders(&local).insert_one(doc! { "_id": 1 }).await.unwrap();
    let mut first = Agent::started(&local.uri(), &atlas.uri());
    first.streaming().await;
    first.kill();
    let mut second = Agent::new(&local.uri(), &atlas.uri(), "");
    assert!(second.refused(&["--adopt"]).await.contains("last heartbeat"), "it is fresh");

    // "10m" from 597 s to 603 s.
    let long_ago = DateTime::from_millis(DateTime::now().timestamp_millis() - 598_000);
    let stale = doc! { "$set": { "heartbeatAt": long_ago } };
    records(&atlas).update_one(doc! {}, stale).await.unwrap();
    let log = second.refused(&[]).await;
    assert!(log.contains("10m ago") && log.contains("run --adopt"), "{log}");

    second.start(&["--adopt"]);
    second.streaming().await;
    orders(&local).insert_one(doc! { "_id": 2 }).await.unwrap();
    equal(&local, &atlas, PATIENCE).await;
    assert!(first.refused(&[]).await.contains(&format!("process {}", second.id())));
}

/// It was cut off for so long that another one was told to take over.
#[tokio::test(flavor = "multi_thread")]
async fn an_agent_whose_place_was_taken_ends() {
    let (local, atlas) = pair().await;
    let mut agent = Agent::started(&local.uri(), &atlas.uri());
    agent.streaming().await;
    let record = records(&atlas).find_one(doc! {}).await.unwrap().unwrap();
    assert!(record.get_timestamp("checkpoint").is_err(), "only the heartbeat writes it");
    eventually("a heartbeat", PATIENCE, async || {
        let record = records(&atlas).find_one(doc! {}).await.unwrap().unwrap();
        record.get_timestamp("checkpoint").is_ok()
    })
    .await;

    let other = doc! { "id": "x", "instance": "y", "host": "elsewhere", "pid": 42_i64 };
    records(&atlas).update_one(doc! {}, doc! { "$set": { "agent": other } }).await.unwrap();

    assert_eq!(agent.ended(PATIENCE).await.code(), Some(1));
    assert!(agent.log().contains("host `elsewhere`, process 42"), "{}", agent.log());
}

/// The agent wrote to another Atlas meanwhile: this one still carries its lease, and has missed all that.
#[tokio::test(flavor = "multi_thread")]
async fn an_atlas_that_was_not_the_target_for_a_while_is_compared_when_it_is_again() {
    let ((local, first), second) = tokio::join!(pair(), Mongod::start());
    orders(&local).insert_many((0..20).map(|n| doc! { "_id": n })).await.unwrap();
    let mut agent = Agent::started(&local.uri(), &first.uri());
    agent.may(&[Repair], "the first one does not have what the second one got meanwhile");
    agent.streaming().await;
    assert!(agent.stop().success());

    agent.set_env("MONGODB_ATLAS_URI", &second.uri());
    agent.start(&[]);
    agent.streaming().await;
    orders(&local).delete_one(doc! { "_id": 1 }).await.unwrap();
    orders(&local).insert_one(doc! { "_id": "meanwhile" }).await.unwrap();
    equal(&local, &second, PATIENCE).await;
    assert!(agent.stop().success());

    agent.set_env("MONGODB_ATLAS_URI", &first.uri());
    agent.start(&[]);
    equal(&local, &first, PATIENCE).await;
}

/// Atlas was put back to a backup, lease and all.
#[tokio::test(flavor = "multi_thread")]
async fn a_lease_that_is_older_than_it_was_left_has_everything_compared() {
    let (local, atlas) = pair().await;
    orders(&local).insert_many((0..20).map(|n| doc! { "_id": n })).await.unwrap();
    let agent = Agent::started(&local.uri(), &atlas.uri());
    agent.may(&[Repair, Doubt], "Atlas is put back");
    agent.streaming().await;
    eventually("a heartbeat", PATIENCE, async || {
        records(&atlas)
            .find_one(doc! { "checkpoint": { "$exists": true } })
            .await
            .unwrap()
            .is_some()
    })
    .await;

    orders(&atlas).delete_many(doc! { "_id": { "$lt": 5 } }).await.unwrap();
    let older = mongodb::bson::Timestamp { time: 5, increment: 1 };
    records(&atlas).update_one(doc! {}, doc! { "$set": { "checkpoint": older } }).await.unwrap();

    equal(&local, &atlas, PATIENCE).await;
}

/// The line to Atlas is cut for so long that another agent might have been told to take over.
#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_could_not_renew_its_heartbeat_writes_only_when_it_has() {
    let (local, atlas) = pair().await;
    let line = Proxy::to(atlas.port).await;
    orders(&local).insert_one(doc! { "_id": 0 }).await.unwrap();
    let mut agent = Agent::started(&local.uri(), &line.uri());
    agent.streaming().await;
    equal(&local, &atlas, PATIENCE).await;
    line.set(Line::Cut);
    orders(&local).insert_one(doc! { "_id": 1 }).await.unwrap();
    eventually("the fence", Duration::from_secs(120), async || {
        agent.health().unwrap()["alerts"].to_string().contains("mark of ownership")
    })
    .await;
    // What a lane has begun before the fence ends by itself, long before the heartbeat is stale.
    tokio::time::sleep(Duration::from_secs(8)).await;
    let other = doc! { "id": "x", "instance": "y", "host": "elsewhere", "pid": 42_i64 };
    records(&atlas).update_one(doc! {}, doc! { "$set": { "agent": other } }).await.unwrap();

    line.set(Line::Up);

    assert_eq!(agent.ended(PATIENCE).await.code(), Some(1));
    assert!(agent.log().contains("host `elsewhere`"), "{}", agent.log());
    assert_eq!(orders(&atlas).count_documents(doc! {}).await.unwrap(), 1, "it has written nothing");
}

/// Somebody dropped it: nothing is known of what is there.
#[tokio::test(flavor = "multi_thread")]
async fn a_lease_that_is_gone_is_taken_again_and_everything_compared() {
    let (local, atlas) = pair().await;
    orders(&local).insert_many((0..50).map(|n| doc! { "_id": n })).await.unwrap();
    let agent = Agent::started(&local.uri(), &atlas.uri());
    agent.streaming().await;

    orders(&atlas).delete_many(doc! {}).await.unwrap();
    atlas.client.database("outrigger").drop().await.unwrap();

    equal(&local, &atlas, PATIENCE).await;
    assert!(records(&atlas).find_one(doc! {}).await.unwrap().is_some());
}

/// In the middle of a drain, which goes on where it was the moment the process does: what it has taken from its
/// queue is old by then.
#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_was_frozen_and_replaced_writes_nothing_when_it_goes_on() {
    is_frozen_and_replaced(Line::Up).await;
}

/// Atlas was away, so that what goes out first is the probe, which nobody has waited for.
#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_was_frozen_and_replaced_in_an_outage_does_not_even_probe() {
    is_frozen_and_replaced(Line::Cut).await;
}

/// `line`: how the line to Atlas is when the agent is stopped. It is up again when that goes on.
async fn is_frozen_and_replaced(line: Line) {
    let (local, atlas) = pair().await;
    orders(&local).insert_many((0..10).map(|n| doc! { "_id": n })).await.unwrap();
    let to_atlas = Proxy::to(atlas.port).await;
    let mut frozen = Agent::new(&local.uri(), &to_atlas.uri(), "");
    // The drain takes 20 s, so that even a busy machine finds it in the middle.
    frozen.replace_setting(
        "timeout = \"5s\"\n[local]",
        "timeout = \"5s\"\nmax_ops_per_second = 5\n[local]",
    );
    frozen.start(&[]);
    frozen.streaming().await;
    equal(&local, &atlas, PATIENCE).await;
    // At once: with a command for each, the drain would keep up.
    let old = |n: i32| doc! { "q": { "_id": n }, "u": { "version": "old" }, "upsert": true };
    let old = (0..100).map(old).collect::<Vec<_>>();
    let shop = local.client.database("shop");
    shop.run_command(doc! { "update": "orders", "updates": old }).await.unwrap();
    let old_there =
        async || orders(&atlas).count_documents(doc! { "version": "old" }).await.unwrap();
    eventually("the drain", PATIENCE, async || old_there().await > 0).await;
    if line == Line::Cut {
        to_atlas.set(line);
        eventually("the outage", PATIENCE, async || {
            frozen.health().is_some_and(|health| health["breaker"] != "closed")
        })
        .await;
    }
    frozen.signal("STOP");
    let since = Instant::now();
    assert!(old_there().await < 80, "it is in the middle");
    to_atlas.set(Line::Up);

    let mut next = Agent::new(&local.uri(), &atlas.uri(), "");
    next.may(&[Repair], "whoever takes over compares");
    if line == Line::Up {
        // By the time that passes, as it is with any two agents.
        assert!(next.refused(&["--adopt"]).await.contains("last heartbeat"), "it is fresh");
        let is_stale = async || since.elapsed() > STALE_AFTER;
        eventually("a stale heartbeat", 2 * PATIENCE, is_stale).await;
    } else {
        let long_ago = DateTime::from_millis(DateTime::now().timestamp_millis() - 600_000);
        let stale = doc! { "$set": { "heartbeatAt": long_ago } };
        records(&atlas).update_one(doc! {}, stale).await.unwrap();
    }
    next.start(&["--adopt"]);
    next.streaming().await;
    let newer = doc! { "$set": { "version": "new" } };
    orders(&local).update_many(doc! {}, newer).await.unwrap();
    equal(&local, &atlas, PATIENCE).await;
    eventually("the end of the lease", PATIENCE, async || {
        since.elapsed() > outrigger::gate::lease::LIMIT + Duration::from_secs(1)
    })
    .await;
    frozen.signal("CONT");

    assert_eq!(frozen.ended(PATIENCE).await.code(), Some(1));
    assert!(frozen.log().contains(&format!("process {}", next.id())), "{}", frozen.log());
    assert_eq!(old_there().await, 0, "it has written nothing");
}

/// What waits at the end may take longer than a lease stays young.
#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_drains_keeps_its_place_until_it_is_done() {
    let (local, atlas) = pair().await;
    let mut agent = Agent::new(&local.uri(), &atlas.uri(), "");
    agent.replace_setting("[atlas]\n", "[atlas]\nmax_ops_per_second = 20\n");
    agent.start(&[]);
    agent.streaming().await;
    orders(&local).insert_many((0..450).map(|n| doc! { "_id": n })).await.unwrap();
    agent.queued(350).await;
    let told_at = DateTime::now().timestamp_millis();
    agent.signal("TERM");

    let later = DateTime::from_millis(told_at + 10_000);
    eventually("a heartbeat while it drains", PATIENCE, async || {
        assert!(agent.is_running(), "{}", agent.log());
        let beaten = doc! { "heartbeatAt": { "$gt": later }, "agent": { "$exists": true } };
        records(&atlas).find_one(beaten).await.unwrap().is_some()
    })
    .await;
    assert!(agent.ended(PATIENCE).await.success());
    assert!(
        records(&atlas).find_one(doc! { "agent": { "$exists": false } }).await.unwrap().is_some()
    );
}
