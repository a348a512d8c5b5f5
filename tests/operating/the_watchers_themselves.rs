//! That the watchers of the other tests bite: each lie, and each thing that nobody has asked for, is planted once and found; and what
//! is well is not accused.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    process::{Command, Stdio},
    time::Duration,
};

use futures_util::FutureExt;
use mongodb::{
    Client,
    bson::{Document, doc},
};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::{
    PATIENCE,
    agent::Agent,
    equal::equal,
    eventually,
    honesty::{Bounds, Honesty, Judged, Mouth},
    mongod::Mongod,
    orders, pair,
    receiver::Receiver,
    unasked::{
        Figures,
        Unasked::{Cursors, DeadLetters, Handles, Memory, NewQueue, Repair, Retries},
        told,
    },
};

/// So short that a second is enough to be found out.
const BOUNDS: Bounds = Bounds {
    healthy: Duration::from_millis(700),
    healthy_once: Duration::from_secs(600),
    heartbeat: Duration::from_millis(700),
    still: Duration::from_millis(500),
};

/// Who answers in an agent's place, and sends heartbeats.
struct StandIn {
    api: Receiver,
    heartbeats: Receiver,
    dir: TempDir,
}

impl StandIn {
    fn says(flush: u16, health: &Value) -> Self {
        let (api, heartbeats) = (Receiver::start(), Receiver::start());
        api.says("/api/sync/flush", flush, "{}");
        api.says("/api/sync/health", 200, &health.to_string());
        let dir = TempDir::new().unwrap();
        std::fs::write(dir.path().join("token"), "it").unwrap();
        Self { api, heartbeats, dir }
    }

    fn watched(&self, local: &Client, atlas: &Client, bounds: Bounds) -> Honesty {
        let (admin_port, token) = (self.api.port, self.dir.path().join("token"));
        let mouth = Mouth { admin_port, token, heartbeats: self.heartbeats.clone() };
        Honesty::of((local, atlas), mouth, bounds)
    }

    fn beats(&self) {
        ureq::get(format!("http://127.0.0.1:{}/beat", self.heartbeats.port)).call().unwrap();
    }
}

fn judged(honesty: &Honesty, is_enough: impl Fn(Judged) -> bool) -> bool {
    is_enough(honesty.judged()) || !honesty.lies().is_empty()
}

fn health(status: &str, equal: &str) -> Value {
    json!({ "status": status, "consistentAsOf": equal, "sync": null })
}

const LONG_AGO: &str = "2001-01-01T00:00:00Z";
const TO_COME: &str = "2999-01-01T00:00:00Z";

/// Nobody brings a marker to Atlas, so each of these words is too much.
#[tokio::test(flavor = "multi_thread")]
async fn each_lie_over_a_marker_that_is_not_in_atlas_is_found_and_no_other() {
    let (local, atlas) = pair().await;
    let once = Bounds { healthy: BOUNDS.healthy_once, healthy_once: BOUNDS.healthy, ..BOUNDS };
    for (words, flush, health, beats, bounds) in [
        ("flush said everything without marker", 200, health("degraded", LONG_AGO), false, BOUNDS),
        ("healthy without marker", 503, health("healthy", LONG_AGO), false, BOUNDS),
        ("healthy without marker", 503, health("healthy", LONG_AGO), false, once),
        ("equal behind marker", 503, health("unhealthy", TO_COME), false, BOUNDS),
        ("a heartbeat without marker", 503, health("unhealthy", LONG_AGO), true, BOUNDS),
    ] {
        local.client.database("honesty").drop().await.unwrap();
        let agent = StandIn::says(flush, &health);
        let honesty = agent.watched(&local.client, &atlas.client, bounds);
        eventually(words, PATIENCE, async || {
            if beats {
                agent.beats();
            }
            !honesty.lies().is_empty()
        })
        .await;
        let lies = honesty.lies();
        assert!(lies.iter().all(|lie| lie.starts_with(words)), "{words}: {lies:#?}");
        // And a test that ends it fails.
        let ended = AssertUnwindSafe(honesty.end()).catch_unwind().await;
        assert!(ended.is_err(), "{words}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_honest_agent_is_not_accused_whatever_lasts_and_what_there_was_to_judge_by_is_counted() {
    let (local, atlas) = pair().await;
    let moves = atlas.client.database("shop").collection::<Document>("orders");

    // Nothing comes to Atlas, and it says so.
    let agent = StandIn::says(503, &health("degraded", LONG_AGO));
    let honesty = agent.watched(&local.client, &atlas.client, BOUNDS);
    eventually("old markers", PATIENCE, async || {
        judged(&honesty, |judged| judged.over_an_old_marker >= 4)
    })
    .await;
    // A heartbeat while other documents come to Atlas, and one while a comparison reads them.
    let mut beats = 0;
    eventually("heartbeats over what comes", PATIENCE, async || {
        moves.insert_one(doc! {}).await.unwrap();
        if judged(&honesty, |judged| judged.over_an_old_marker >= 6) {
            agent.beats();
            beats += 1;
        }
        judged(&honesty, |judged| judged.heartbeats >= 4)
    })
    .await;
    let told = honesty.end().await;
    assert!(told.answers >= told.over_an_old_marker && told.heartbeats >= 4, "{told:?}, {beats}");

    // All of it is there at once: the same server is at both ends.
    let agent = StandIn::says(200, &health("healthy", TO_COME));
    local.client.database("honesty").drop().await.unwrap();
    let honesty = agent.watched(&local.client, &local.client, BOUNDS);
    eventually("answers", PATIENCE, async || {
        agent.beats();
        judged(&honesty, |judged| judged.answers >= 5)
    })
    .await;
    let told = honesty.end().await;
    assert_eq!(told.over_an_old_marker, 0, "{told:?}");

    // It has not answered for long; the first that it says may be of before it has read on.
    local.client.database("honesty").drop().await.unwrap();
    let agent = StandIn::says(503, &health("healthy", LONG_AGO));
    agent.api.says("/api/sync/health", 500, "it begins");
    let honesty = agent.watched(&local.client, &atlas.client, BOUNDS);
    let markers = local.client.database("honesty").collection::<Document>("markers");
    eventually("markers", PATIENCE, async || markers.count_documents(doc! {}).await.unwrap() > 4)
        .await;
    agent.api.says("/api/sync/health", 200, &health("healthy", LONG_AGO).to_string());
    eventually("an answer", PATIENCE, async || judged(&honesty, |judged| judged.answers > 0)).await;
    agent.api.says("/api/sync/health", 200, &health("degraded", LONG_AGO).to_string());
    eventually("more", PATIENCE, async || judged(&honesty, |judged| judged.answers > 3)).await;
    honesty.end().await;
}

/// The limits are the program's, and not far from what it promises.
#[test]
fn the_bounds_of_honesty_follow_the_program() {
    let bounds = Bounds::of_the_program();
    assert!(bounds.healthy <= Duration::from_secs(10), "{bounds:?}");
    assert!(bounds.heartbeat <= Duration::from_secs(35), "{bounds:?}");
}

/// What a test is told of its agent in the end; nothing where all is well.
fn told_at_the_end(agent: Agent) -> String {
    match catch_unwind(AssertUnwindSafe(|| drop(agent))) {
        Ok(()) => String::new(),
        Err(panic) => panic.downcast_ref::<String>().cloned().expect("it has words"),
    }
}

async fn running(local: &Mongod, atlas: &Mongod, config: &str) -> Agent {
    orders(local).insert_many((0..10).map(|n| doc! { "_id": n })).await.unwrap();
    let mut agent = Agent::new(&local.uri(), &atlas.uri(), config);
    agent.start(&[]);
    agent.streaming().await;
    equal(local, atlas, PATIENCE).await;
    agent
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repair_that_nobody_has_asked_for_ends_a_test_and_one_that_was_named_does_not() {
    for is_named in [false, true] {
        let (local, atlas) = pair().await;
        let agent = running(&local, &atlas, "").await;
        if is_named {
            agent.may(&[Repair], "somebody else writes there");
        }
        orders(&atlas).delete_one(doc! { "_id": 1 }).await.unwrap();
        assert!(agent.cli(&["sync", "--wait"]).status.success());
        equal(&local, &atlas, PATIENCE).await;

        let told = told_at_the_end(agent);

        assert_eq!(told.contains("Repair"), !is_named, "{told}");
        assert!(is_named || told.matches("\n    \"").count() == 1, "nothing else: {told}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_comparison_for_a_doubt_and_a_queue_that_was_put_aside_end_a_test() {
    let (local, atlas) = pair().await;
    let mut agent = running(&local, &atlas, "").await;
    let lost = doc! { "failCommands": ["getMore", "aggregate"], "errorCode": 286 };
    local.fail(lost, 1).await;
    eventually("a new position", PATIENCE, async || agent.log().contains("no longer reaches back"))
        .await;
    equal(&local, &atlas, PATIENCE).await;
    agent.kill();
    std::fs::remove_file(agent.dir.path().join("queue/db")).unwrap();
    agent.start(&[]);
    eventually("a new queue", PATIENCE, async || agent.log().contains("moved aside")).await;
    agent.streaming().await;
    equal(&local, &atlas, PATIENCE).await;

    let told = told_at_the_end(agent);

    assert!(told.contains("Doubt: ") && told.contains("NewQueue: "), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn retries_and_dead_letters_end_a_test_though_the_agent_was_stopped_in_order() {
    for named in [&[][..], &[Retries, DeadLetters]] {
        let (local, atlas) = pair().await;
        let config = "[worker]\nmax_retries = 1\nretry_delays = [\"100ms\"]\n";
        let mut agent = running(&local, &atlas, config).await;
        agent.may(named, "Atlas refuses");
        let refused = doc! { "failCommands": ["insert", "update"], "namespace": "shop.orders", "errorCode": 121 };
        atlas.fail(refused, i32::MAX).await;
        orders(&local).insert_one(doc! { "_id": "refused" }).await.unwrap();
        eventually("a letter", PATIENCE, async || agent.health().unwrap()["deadLetters"] == 1)
            .await;
        assert!(agent.stop().success());

        let told = told_at_the_end(agent);

        for what in ["Retries: 1 ", "DeadLetters: 1 "] {
            assert_eq!(told.contains(what), named.is_empty(), "{what}: {told}");
        }
    }
}

/// A server keeps a cursor for half an hour when nobody closes it; this one stands for the agent's.
#[tokio::test(flavor = "multi_thread")]
async fn a_cursor_that_is_left_on_a_server_ends_a_test_and_one_from_before_does_not() {
    let (local, atlas) = pair().await;
    orders(&local).insert_many((100..110).map(|n| doc! { "_id": n })).await.unwrap();
    let find = || async { orders(&local).find(doc! {}).batch_size(2).await.unwrap() };
    let mut kept = vec![find().await];
    for is_left in [false, true] {
        let mut agent = Agent::started(&local.uri(), &atlas.uri());
        agent.streaming().await;
        if is_left {
            kept.push(find().await);
        }
        assert!(agent.stop().success());

        let told = told_at_the_end(agent);

        assert_eq!(told.contains("Cursors: 1 cursors left at its end"), is_left, "{told}");
        // Of the same source, to the next agent.
        atlas.client.database("outrigger").drop().await.unwrap();
        orders(&atlas).drop().await.unwrap();
    }

    let mut agent = Agent::started(&local.uri(), &atlas.uri());
    agent.may(&[Cursors], "what follows is no fault of the agent's");
    agent.streaming().await;
    for _ in 0..25 {
        kept.push(find().await);
    }
    assert!(agent.stop().success());
    assert_eq!(told_at_the_end(agent), "");
}

/// Ends with the test.
struct Process(std::process::Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test]
async fn much_memory_and_many_files_are_told_of_a_process_that_has_them() {
    for (script, kinds) in [
        ("kept = 1", vec![]),
        ("kept = [open('/dev/null') for n in range(200)]", vec![Handles]),
        ("kept = bytearray(b'x' * (450 << 20))", vec![Memory]),
    ] {
        let dir = TempDir::new().unwrap();
        let is_ready = dir.path().join("ready");
        let script = format!("import time\n{script}\nopen({is_ready:?}, 'w')\ntime.sleep(600)");
        let python = Command::new("python3").args(["-c", &script]).stdin(Stdio::null()).spawn();
        let python = Process(python.unwrap());
        eventually("the process", PATIENCE, async || is_ready.exists()).await;

        let found = Figures::of(python.0.id(), None).unasked();

        assert_eq!(found.iter().map(|(what, _)| *what).collect::<Vec<_>>(), kinds, "{found:?}");
    }
}

/// A word that is said otherwise one day would be looked for in vain, in every test.
#[test]
fn the_words_that_are_looked_for_in_a_log_are_those_of_the_program() {
    let mut sources = String::new();
    let mut folders = vec![crate::support::root().join("src")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                sources += &std::fs::read_to_string(path).unwrap();
            }
        }
    }
    for words in ["moved aside", "the queue failed", "has panicked", "the agent is stuck"] {
        assert!(sources.contains(words), "{words}");
        assert_eq!(told(&format!("  ERROR it is: {words} (1)\n")).len(), 1, "{words}");
    }
    assert_eq!(told("thread 'main' panicked at src/main.rs:1:1:\n").len(), 1);
    assert_eq!(told("INFO a full sync begins reason=the first copy\n"), []);
    let ended = "{\"message\":\"a full sync has ended\",\"missing\":0,\"extra\":0,\"content\":2}";
    assert_eq!(told(ended)[0].0, Repair);
    assert_eq!(told("ERROR the queue failed\n")[0].0, NewQueue);
}
