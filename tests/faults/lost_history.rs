//! The oplog no longer reaches back to the checkpoint, or the database is another one.

use std::time::Duration;

use mongodb::bson::{Document, Timestamp, doc};

use crate::support::{
    PATIENCE,
    agent::Agent,
    api::Api,
    equal::equal,
    eventually,
    honesty::Honesty,
    mongod::Mongod,
    orders, pair,
    proxy::{Line, Proxy},
    unasked::Unasked::{Doubt, Repair},
};

/// Makes the server answer the agent's next `aggregate`, which resumes its stream, with `code`.
async fn lose_history(local: &Mongod, code: i32) {
    local
        .admin(doc! {
            "configureFailPoint": "failCommand", "mode": { "times": 1 },
            "data": { "failCommands": ["aggregate"], "errorCode": code, "appName": "outrigger" },
        })
        .await;
}

async fn new_position(agent: &Agent) {
    eventually("the new position", PATIENCE, async || {
        agent.log().contains("no longer reaches back")
    })
    .await;
}

async fn first_entry(local: &Mongod) -> Timestamp {
    let oplog = local.client.database("local").collection::<Document>("oplog.rs");
    let first = oplog.find_one(doc! {}).sort(doc! { "$natural": 1 }).await.unwrap().unwrap();
    first.get_timestamp("ts").unwrap()
}

/// Each of these codes says that the position is lost; the server is made to answer it once.
#[tokio::test(flavor = "multi_thread")]
async fn a_lost_history_leads_to_a_new_position_and_a_comparison() {
    let (local, atlas) = pair().await;
    orders(&local).insert_many((0..100).map(|n| doc! { "_id": n })).await.unwrap();
    let mut agent = Agent::watched(&local.uri(), &atlas.uri(), "");
    agent.may(&[Doubt, Repair], "the history is lost");
    agent.streaming().await;
    let honesty = Honesty::watch(&local.client, &atlas.client, &agent);
    for (n, code) in [286, 136, 280, 260, 10334].into_iter().enumerate() {
        assert!(agent.stop().success());
        orders(&local).delete_one(doc! { "_id": n as i32 }).await.unwrap();
        orders(&local).insert_one(doc! { "_id": 1000 + n as i32 }).await.unwrap();
        lose_history(&local, code).await;
        agent.start(&[]);

        equal(&local, &atlas, PATIENCE).await;
        agent.streaming().await;
    }
    assert_eq!(agent.log().matches("no longer reaches back").count(), 4, "it says so");
    honesty.end().await;
}

/// The real thing: an oplog of a few megabytes that rolls over while the agent is down.
#[tokio::test(flavor = "multi_thread")]
async fn an_oplog_that_rolled_over_while_the_agent_was_down_is_made_good_by_a_comparison() {
    // Entries go only when a checkpoint of the server's no longer needs them.
    let small = ["--replSet", "rs", "--oplogSize", "16", "--syncdelay", "1"];
    let (local, atlas) = tokio::join!(Mongod::start_with(&small), Mongod::start());
    local.initiate().await;
    orders(&local).insert_many((0..500).map(|n| doc! { "_id": n, "v": 1 })).await.unwrap();
    let mut agent = Agent::watched(&local.uri(), &atlas.uri(), "");
    agent.may(&[Doubt, Repair], "the history is lost");
    agent.streaming().await;
    equal(&local, &atlas, PATIENCE).await;
    // Something waits in the queue as well.
    assert!(agent.cli(&["pause"]).status.success());
    orders(&local).delete_one(doc! { "_id": 0 }).await.unwrap();
    orders(&local).update_one(doc! { "_id": 1 }, doc! { "$set": { "v": 2 } }).await.unwrap();
    agent.queued(2).await;
    let honesty = Honesty::watch(&local.client, &atlas.client, &agent);
    let before = first_entry(&local).await;
    assert!(agent.stop().success());

    orders(&local).insert_one(doc! { "_id": 0, "back": true }).await.unwrap();
    orders(&local).delete_many(doc! { "_id": { "$gt": 400 } }).await.unwrap();
    orders(&local).insert_many((1000..1100).map(|n| doc! { "_id": n })).await.unwrap();
    let filler = local.client.database("shop").collection::<Document>("filler");
    let bulk = "x".repeat(1 << 20);
    eventually("an oplog that has rolled over", PATIENCE, async || {
        filler.insert_one(doc! { "x": bulk.as_str() }).await.unwrap();
        first_entry(&local).await > before
    })
    .await;
    // Past everything that happened while the agent was down, and not only past some of it.
    for _ in 0..40 {
        filler.insert_one(doc! { "x": bulk.as_str() }).await.unwrap();
    }
    filler.drop().await.unwrap();
    agent.start(&[]);
    new_position(&agent).await;
    assert!(agent.cli(&["resume"]).status.success());

    equal(&local, &atlas, PATIENCE).await;
    agent.streaming().await;
    eventually("health", PATIENCE, async || agent.health().unwrap()["queueSize"] == 0).await;
    honesty.end().await;
}

/// The same under an agent that stood still meanwhile, and by a server that was started anew: another process,
/// and nothing of what was read is left, which is what a wiped server looks like.
#[tokio::test(flavor = "multi_thread")]
async fn an_oplog_that_rolled_over_under_a_running_agent_is_made_good_by_a_comparison() {
    let small = ["--replSet", "rs", "--oplogSize", "16", "--syncdelay", "1"];
    let (mut local, atlas) = tokio::join!(Mongod::start_with(&small), Mongod::start());
    local.initiate().await;
    orders(&local).insert_many((0..100).map(|n| doc! { "_id": n, "v": 1 })).await.unwrap();
    let agent = Agent::watched(&local.uri(), &atlas.uri(), "");
    agent.may(&[Doubt, Repair], "the history is lost");
    agent.streaming().await;
    equal(&local, &atlas, PATIENCE).await;

    let honesty = Honesty::watch(&local.client, &atlas.client, &agent);
    agent.signal("STOP");
    let last = local.admin(doc! { "hello": 1 }).await.get_timestamp("operationTime").unwrap();
    orders(&local).delete_many(doc! { "_id": { "$gt": 50 } }).await.unwrap();
    let filler = local.client.database("other").collection::<Document>("filler");
    let bulk = "x".repeat(1 << 20);
    eventually("an oplog that has rolled over", PATIENCE, async || {
        filler.insert_one(doc! { "x": bulk.as_str() }).await.unwrap();
        first_entry(&local).await > last
    })
    .await;
    filler.drop().await.unwrap();
    local.terminate();
    local.resume().await;
    agent.signal("CONT");
    new_position(&agent).await;

    equal(&local, &atlas, PATIENCE).await;
    honesty.end().await;
    assert!(agent.is_running() && !agent.log().contains("restored"), "{}", agent.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_oplog_that_is_about_to_roll_over_is_an_alert_and_status_shows_what_is_left() {
    let small = ["--replSet", "rs", "--oplogSize", "16", "--syncdelay", "1"];
    let (local, atlas) = tokio::join!(Mongod::start_with(&small), Mongod::start());
    local.initiate().await;
    let mut agent = Agent::started(&local.uri(), &atlas.uri());
    agent.streaming().await;
    let healthy =
        |agent: &Agent| agent.health().is_some_and(|health| health["status"] == "healthy");
    eventually("health, while the oplog is whole", PATIENCE, async || healthy(&agent)).await;

    // The default for `alerts.oplog_window` is far longer than this oplog lasts.
    let bulk = "x".repeat(1 << 20);
    eventually("an alert", PATIENCE, async || {
        orders(&local).insert_one(doc! { "x": bulk.as_str() }).await.unwrap();
        agent.health().unwrap()["alerts"].to_string().contains("oplog reaches back only")
    })
    .await;

    assert_eq!(agent.health().unwrap()["status"], "unhealthy");
    let status = agent.cli(&["status"]);
    assert_eq!(status.status.code(), Some(1));
    let text = String::from_utf8(status.stdout).unwrap();
    assert!(text.contains("oplog    reaches back"), "{text}");
    let metrics = Api::of(&agent).get("/metrics").1;
    let metrics = metrics.as_str().unwrap();
    assert!(metrics.contains("# TYPE outrigger_oplog_window_seconds gauge"), "{metrics}");
    assert!(metrics.contains("outrigger_alerts{name=\"oplog_window\"} 1"), "{metrics}");

    // For whom as little is enough, all is well.
    assert!(agent.stop().success());
    agent.replace_setting("[admin]", "[alerts]\noplog_window = \"0s\"\n[admin]");
    agent.start(&[]);
    eventually("health with a short oplog", PATIENCE, async || healthy(&agent)).await;
    // Told as an alert, it would have been by now.
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!(healthy(&agent), "{:?}", agent.health());
}

/// The same replica set, set back to an earlier state: its history has another end. The agent is down
/// meanwhile, or it looks on.
#[tokio::test(flavor = "multi_thread")]
async fn a_local_database_that_was_restored_from_a_backup_is_refused_with_the_way_out() {
    for looks_on in [false, true] {
        let (mut local, atlas) = pair().await;
        orders(&local).insert_one(doc! { "_id": 1 }).await.unwrap();
        local.terminate();
        let backup = local.back_up();
        local.resume().await;
        let mut agent = Agent::watched(&local.uri(), &atlas.uri(), "");
        agent.may(&[Repair], "the history is lost");
        agent.streaming().await;
        orders(&local).insert_many((2..50).map(|n| doc! { "_id": n })).await.unwrap();
        equal(&local, &atlas, PATIENCE).await;
        let honesty = Honesty::watch(&local.client, &atlas.client, &agent);
        honesty.look_away(true).await;
        if !looks_on {
            assert!(agent.stop().success());
        }

        local.terminate();
        local.put_back(&backup);
        local.resume().await;
        orders(&local).insert_one(doc! { "_id": "after the restore" }).await.unwrap();
        if !looks_on {
            agent.start(&[]);
        }
        let status = agent.ended(PATIENCE).await;

        assert_eq!(status.code(), Some(1));
        let log = agent.log();
        assert!(log.contains("restored from a backup") && log.contains("--adopt"), "{log}");
        let in_atlas = orders(&atlas).count_documents(doc! {}).await.unwrap();
        assert_eq!(in_atlas, 49, "the copy is untouched");
        // The way out that it names.
        agent.adopt();
        honesty.look_away(false).await;
        equal(&local, &atlas, PATIENCE).await;
        honesty.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn another_local_database_is_refused_with_the_way_out() {
    let (first, atlas) = pair().await;
    let other = Mongod::start().await;
    orders(&first).insert_one(doc! { "_id": 1 }).await.unwrap();
    let mut agent = Agent::started(&first.uri(), &atlas.uri());
    agent.streaming().await;
    assert!(agent.stop().success());

    agent.set_env("MONGODB_LOCAL_URI", &other.uri());
    agent.start(&[]);
    let status = agent.ended(PATIENCE).await;

    assert_eq!(status.code(), Some(1));
    assert!(agent.log().contains("another database"), "{}", agent.log());
    assert_eq!(orders(&atlas).count_documents(doc! {}).await.unwrap(), 1, "the copy is untouched");
}

/// What was queued before a gap in the stream is older than what a comparison gives Atlas, and no later
/// event would put that right.
#[tokio::test(flavor = "multi_thread")]
async fn entries_from_before_a_lost_history_do_not_overwrite_what_came_in_the_gap() {
    let (local, atlas) = pair().await;
    let line = Proxy::to(atlas.port).await;
    orders(&local).insert_many((0..20).map(|n| doc! { "_id": n, "v": 1 })).await.unwrap();
    let mut agent = Agent::watched(&local.uri(), &line.uri(), "");
    agent.may(&[Doubt, Repair], "the history is lost");
    agent.streaming().await;
    equal(&local, &atlas, PATIENCE).await;
    line.set(Line::Cut);
    orders(&local).delete_one(doc! { "_id": 1 }).await.unwrap();
    orders(&local).replace_one(doc! { "_id": 2 }, doc! { "v": 2 }).await.unwrap();
    orders(&local).insert_one(doc! { "_id": 100, "v": 2 }).await.unwrap();
    agent.queued(3).await;
    let honesty = Honesty::watch(&local.client, &atlas.client, &agent);
    assert!(agent.stop().success());

    // In the gap all three go back to what Atlas has.
    orders(&local).insert_one(doc! { "_id": 1, "v": 1 }).await.unwrap();
    orders(&local).replace_one(doc! { "_id": 2 }, doc! { "v": 1 }).await.unwrap();
    orders(&local).delete_one(doc! { "_id": 100 }).await.unwrap();
    lose_history(&local, 286).await;
    agent.start(&[]);
    new_position(&agent).await;
    line.set(Line::Up);
    agent.streaming().await;
    eventually("an empty queue", PATIENCE, async || agent.health().unwrap()["queueSize"] == 0)
        .await;

    equal(&local, &atlas, Duration::from_secs(5)).await;
    honesty.end().await;
}

/// No event will ever tell what became of the collection that the waiting updates were made in.
#[tokio::test(flavor = "multi_thread")]
async fn updates_of_a_collection_that_was_replaced_in_a_lost_history_hold_nothing_up() {
    let (local, atlas) = pair().await;
    orders(&local).insert_many((0..20).map(|n| doc! { "_id": n })).await.unwrap();
    let mut agent = Agent::watched(&local.uri(), &atlas.uri(), "");
    agent.may(&[Doubt, Repair], "the history is lost");
    agent.streaming().await;
    equal(&local, &atlas, PATIENCE).await;
    assert!(agent.cli(&["pause"]).status.success());
    orders(&local).update_many(doc! {}, doc! { "$set": { "v": 1 } }).await.unwrap();
    agent.queued(20).await;
    let honesty = Honesty::watch(&local.client, &atlas.client, &agent);
    assert!(agent.stop().success());

    orders(&local).drop().await.unwrap();
    orders(&local)
        .insert_many((10..30).map(|n| doc! { "_id": n, "of": "the second" }))
        .await
        .unwrap();
    lose_history(&local, 286).await;
    agent.start(&[]);
    new_position(&agent).await;
    assert!(agent.cli(&["resume"]).status.success());

    equal(&local, &atlas, PATIENCE).await;
    eventually("an empty queue", PATIENCE, async || agent.health().unwrap()["queueSize"] == 0)
        .await;
    honesty.end().await;
}
