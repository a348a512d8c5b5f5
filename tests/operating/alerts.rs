//! Alerts are raised and cleared once each, told to a web hook, and never in the way; the heartbeat to the
//! outside tells the truth; both sides are counted.

use std::time::Duration;

use mongodb::bson::doc;
use serde_json::Value;

use crate::support::{
    PATIENCE,
    agent::Agent,
    compare::converge,
    eventually, orders, pair,
    proxy::{Line, Proxy},
    receiver::Receiver,
};

fn told(receiver: &Receiver, alert: &str) -> Vec<String> {
    receiver
        .requests()
        .into_iter()
        .filter(|(_, body)| body["alert"]["name"] == alert)
        .map(|(_, body)| body["event"].as_str().unwrap().to_owned())
        .collect()
}

fn raised(agent: &Agent) -> Vec<String> {
    let health = agent.health().unwrap_or_default();
    let list = health["raised"].as_array().cloned().unwrap_or_default();
    list.iter().map(|alert| alert["name"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_alert_is_told_once_when_it_begins_and_once_when_it_is_over() {
    let (local, atlas) = pair().await;
    let line = Proxy::to(atlas.port).await;
    let hook = Receiver::start();
    // The far end is away at first: what it missed comes later, and replication does not wait.
    hook.answer(503);
    let config = format!(
        "[alerts]\nqueue_size = 5\nlag = \"2s\"\nwebhook = \"http://127.0.0.1:{}/hook/s3cret\"\n[log]\nformat = \"json\"\n",
        hook.port
    );
    let mut agent = Agent::new(&local.uri(), &line.uri(), &config);
    agent.start(&[]);
    agent.streaming().await;
    line.set(Line::Cut);
    orders(&local).insert_many((0..20).map(|id| doc! { "_id": id })).await.unwrap();
    eventually("both alerts", PATIENCE, async || {
        let raised = raised(&agent);
        raised.contains(&"queue_size".to_owned()) && raised.contains(&"lag".to_owned())
    })
    .await;
    assert_eq!(agent.cli(&["status"]).status.code(), Some(1), "unhealthy");
    line.set(Line::Up);
    converge(&local.client, &atlas.client, PATIENCE).await;
    hook.answer(200);
    eventually("the end of both", PATIENCE, async || {
        told(&hook, "queue_size").len() + told(&hook, "lag").len() == 4
    })
    .await;

    // Around its threshold, again and again: nothing more is told than one alert each.
    for name in ["queue_size", "lag"] {
        assert_eq!(told(&hook, name), ["raised", "cleared"], "{name}");
    }
    let (line_of_request, body) = hook.requests().remove(0);
    assert!(line_of_request.starts_with("POST /hook/s3cret"), "{line_of_request}");
    for key in
        ["source", "version", "host", "event", "alert", "since", "clearedAt", "phase", "text"]
    {
        assert!(body.get(key).is_some(), "{key} is missing in {body}");
    }
    assert!(raised(&agent).is_empty());
    let log = agent.log();
    assert!(!log.contains("s3cret"), "the address holds a token");
    for (message, times) in [("alert raised", 2), ("alert cleared", 2)] {
        let found: Vec<Value> = log
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .filter(|line: &Value| {
                line["message"] == message
                    && (line["alert"] == "lag" || line["alert"] == "queue_size")
            })
            .collect();
        assert_eq!(found.len(), times, "{message}: {found:?}");
    }
    assert!(
        log.contains("the web hook does not take alerts") && log.contains("takes alerts again")
    );
}

/// Followed, a 301 makes the alert a request without a body, whose 200 would count as "taken".
#[tokio::test(flavor = "multi_thread")]
async fn a_web_hook_that_has_moved_is_named_and_its_alerts_wait() {
    let (local, atlas) = pair().await;
    let (old, new) = (Receiver::start(), Receiver::start());
    let port = old.port;
    let config = format!("[alerts]\nqueue_size = 5\nwebhook = \"http://127.0.0.1:{port}/hook\"\n");
    for status in [301, 302, 307] {
        old.redirect(status, &format!("http://127.0.0.1:{}/new?k=s3cret", new.port));
        let mut agent = Agent::new(&local.uri(), &atlas.uri(), &config);
        agent.start(&["--adopt"]);
        agent.streaming().await;
        assert!(agent.cli(&["pause"]).status.success());

        orders(&local)
            .insert_many((0..20).map(|_| doc! { "by": i32::from(status) }))
            .await
            .unwrap();

        let told_of = format!(
            "it answers {status}, a redirect to http://127.0.0.1:{}, and is not followed",
            new.port
        );
        eventually("a line", PATIENCE, async || agent.log().contains(&told_of)).await;
        old.answer(200);
        let before = told(&old, "queue_size").len();
        eventually("the alert", PATIENCE, async || told(&old, "queue_size").len() > before).await;
        assert!(new.requests().is_empty(), "{:?}", new.requests());
        assert!(!agent.log().contains("s3cret"));
        assert!(agent.cli(&["resume"]).status.success());
        converge(&local.client, &atlas.client, PATIENCE).await;
        assert!(agent.stop().success());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_heartbeat_is_sent_after_progress_or_proven_idleness_and_not_otherwise() {
    let (local, atlas) = pair().await;
    let line = Proxy::to(atlas.port).await;
    let far = Receiver::start();
    let config = format!(
        "[alerts]\nheartbeat_every = \"1s\"\nheartbeat_url = \"http://127.0.0.1:{}/ping\"\n",
        far.port
    );
    let mut agent = Agent::new(&local.uri(), &line.uri(), &config);
    agent.start(&[]);
    agent.streaming().await;
    let count = || far.requests().len();

    // Idle, and both ends prove it.
    eventually("two heartbeats", PATIENCE, async || count() >= 2).await;
    assert!(far.requests()[0].0.starts_with("GET /ping"));

    // Paused by a person with changes that wait: neither progress nor idleness.
    assert!(agent.cli(&["pause"]).status.success());
    orders(&local).insert_one(doc! { "_id": 1 }).await.unwrap();
    agent.queued(1).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let paused = count();
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert_eq!(count(), paused, "all loops are alive, and nothing moves");

    assert!(agent.cli(&["resume"]).status.success());
    eventually("heartbeats again", PATIENCE, async || count() > paused).await;

    // Atlas is away, and a change waits for it.
    line.set(Line::Cut);
    orders(&local).insert_one(doc! { "_id": 2 }).await.unwrap();
    agent.queued(1).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let away = count();
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert_eq!(count(), away);
}

/// Nothing is queued and no event is missing: only counting can see that somebody deleted in Atlas.
#[tokio::test(flavor = "multi_thread")]
async fn documents_that_are_missing_in_atlas_are_noticed_by_counting() {
    let (local, atlas) = pair().await;
    let mut agent = Agent::new(&local.uri(), &atlas.uri(), "[sync]\ncount_check_every = \"1s\"\n");
    orders(&local).insert_many((0..50).map(|id| doc! { "_id": id })).await.unwrap();
    agent.start(&[]);
    agent.streaming().await;
    converge(&local.client, &atlas.client, PATIENCE).await;
    // Writes on the way are no divergence.
    for n in 0..100 {
        orders(&local).insert_one(doc! { "_id": 1000 + n }).await.unwrap();
    }
    converge(&local.client, &atlas.client, PATIENCE).await;
    let health = agent.health().unwrap();
    assert!(!health["alerts"].to_string().contains("documents locally"), "{health}");
    eventually("health", PATIENCE, async || agent.health().unwrap()["status"] == "healthy").await;

    orders(&atlas).delete_many(doc! { "_id": { "$lt": 10 } }).await.unwrap();

    eventually("the divergence", PATIENCE, async || {
        raised(&agent).contains(&"divergence".to_owned())
    })
    .await;
    let health = agent.health().unwrap();
    assert_eq!(health["status"], "unhealthy");
    let said = health["alerts"].to_string();
    assert!(said.contains("150 documents locally and 140 in Atlas"), "{said}");

    assert!(agent.cli(&["sync", "--wait"]).status.success());
    eventually("the end of it", PATIENCE, async || raised(&agent).is_empty()).await;
}

/// A writer that never rests, and a count every second: what is on the way never looks like a loss.
#[tokio::test(flavor = "multi_thread")]
async fn counting_while_the_application_writes_raises_no_false_alarm() {
    let (local, atlas) = pair().await;
    let mut agent = Agent::new(&local.uri(), &atlas.uri(), "[sync]\ncount_check_every = \"1s\"\n");
    agent.start(&[]);
    agent.streaming().await;
    let collection = orders(&local);
    let writer = tokio::spawn(async move {
        for n in 0_i64.. {
            collection.insert_one(doc! { "_id": n }).await.unwrap();
            if n % 3 == 0 {
                collection.delete_one(doc! { "_id": n / 2 }).await.unwrap();
            }
        }
    });

    let began = std::time::Instant::now();
    while began.elapsed() < Duration::from_secs(15) {
        let health = agent.health().unwrap();
        assert!(!health["alerts"].to_string().contains("documents locally"), "{health}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }

    writer.abort();
    converge(&local.client, &atlas.client, PATIENCE).await;
}

/// A peer that goes silent without closing: every loop is alive, and nothing moves on the wire.
#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_peer_makes_unhealthy_though_all_loops_are_alive() {
    let (local, atlas) = pair().await;
    let to_local = Proxy::to(local.port).await;
    let to_atlas = Proxy::to(atlas.port).await;
    // Far longer than health waits: no task notices by itself.
    let mut agent = Agent::new(&to_local.uri(), &to_atlas.uri(), "");
    agent.replace_setting("timeout = \"5s\"", "timeout = \"10m\"");
    agent.start(&[]);
    agent.streaming().await;
    eventually("health", PATIENCE, async || agent.health().unwrap()["status"] == "healthy").await;

    to_local.set(Line::Silent);
    eventually("the local silence", PATIENCE, async || {
        raised(&agent).contains(&"local_silent".to_owned())
    })
    .await;
    let health = agent.health().unwrap();
    assert_eq!((&health["status"], &health["phase"]), (&"unhealthy".into(), &"streaming".into()));

    to_atlas.set(Line::Silent);
    eventually("the silence of Atlas", PATIENCE, async || {
        raised(&agent).contains(&"atlas_silent".to_owned())
    })
    .await;
    assert!(agent.is_running());
}
