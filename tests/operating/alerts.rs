//! Alerts are raised and cleared once each, told to a web hook, and never in the way; the heartbeat to the
//! outside tells the truth; both sides are counted.

use std::time::Duration;

use mongodb::bson::{DateTime, Document, doc};
use serde_json::Value;

use crate::support::{
    PATIENCE,
    agent::Agent,
    api::Api,
    equal::equal,
    eventually,
    mongod::Mongod,
    orders, pair,
    proxy::{Line, Proxy},
    receiver::Receiver,
    unasked::Unasked::{DeadLetters, Repair, Retries},
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
    equal(&local, &atlas, PATIENCE).await;
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
    let lines = || log.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    // Long before the default would have been past.
    let is_raised = |line: &Value| line["message"] == "alert raised" && line["alert"] == "lag";
    let late = lines().find(is_raised).expect("it was raised")["error"].to_string();
    let digits: String = late.chars().filter(char::is_ascii_digit).collect();
    assert!(late.contains("s behind") && digits.parse::<u64>().unwrap() < 30, "{late}");
    for (message, times) in [("alert raised", 2), ("alert cleared", 2)] {
        let found: Vec<Value> = lines()
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

/// Once it was "100.0% of the writes fail" and "Atlas is 31s behind", both critical, until it was given up.
#[tokio::test(flavor = "multi_thread")]
async fn one_rejected_write_of_a_quiet_minute_is_a_dead_letter_and_wakes_nobody_and_many_do() {
    let (local, atlas) = pair().await;
    let hook = Receiver::start();
    let config = format!(
        "[worker]\nmax_retries = 2\nretry_delays = [\"6s\"]\n[alerts]\nlag = \"2s\"\nwebhook = \"http://127.0.0.1:{}/\"\n",
        hook.port
    );
    let mut agent = Agent::new(&local.uri(), &atlas.uri(), &config);
    agent.may(&[DeadLetters, Retries], "the test provokes them");
    orders(&local).insert_one(doc! { "_id": 0 }).await.unwrap();
    agent.start(&[]);
    agent.streaming().await;
    let refuse = doc! {
        "failCommands": ["insert", "update"], "namespace": "shop.orders", "errorCode": 121,
    };
    atlas.fail(refuse, i32::MAX).await;

    orders(&local).insert_one(doc! { "_id": 1 }).await.unwrap();

    let verdict = |agent: &Agent| agent.health().unwrap()["verdict"]["code"].clone();
    eventually("its cause", PATIENCE, async || verdict(&agent) == "rejected").await;
    assert_eq!(agent.health().unwrap()["status"], "degraded");
    eventually("the dead letter", PATIENCE, async || !told(&hook, "dead_letters").is_empty()).await;
    let alerts: Vec<_> =
        hook.requests().into_iter().map(|(_, body)| body["alert"].clone()).collect();
    assert_eq!((alerts.len(), &alerts[0]["severity"]), (1, &"warning".into()), "{alerts:?}");

    orders(&local).insert_many((10..40).map(|id| doc! { "_id": id })).await.unwrap();
    eventually("both alerts", PATIENCE, async || {
        told(&hook, "error_rate") == ["raised"] && told(&hook, "lag") == ["raised"]
    })
    .await;
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
        equal(&local, &atlas, PATIENCE).await;
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
    eventually("four heartbeats", PATIENCE, async || count() >= 4).await;
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
    agent.may(&[Repair], "the test provokes it");
    orders(&local).insert_many((0..50).map(|id| doc! { "_id": id })).await.unwrap();
    agent.start(&[]);
    agent.streaming().await;
    equal(&local, &atlas, PATIENCE).await;
    // Writes on the way are no divergence.
    for n in 0..100 {
        orders(&local).insert_one(doc! { "_id": 1000 + n }).await.unwrap();
    }
    equal(&local, &atlas, PATIENCE).await;
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

/// Half of such a collection may be missing for as long as each server expires at moments of its own. So what both must
/// have is counted, and what Atlas has thrown away though the local server keeps it is said.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_missing_of_a_collection_that_expires_is_noticed_and_so_is_what_only_atlas_expires()
{
    let with = async |parameter: &str| {
        let server = Mongod::start_with(&["--replSet", "rs", "--setParameter", parameter]).await;
        server.initiate().await;
        server
    };
    let (local, atlas) =
        tokio::join!(with("ttlMonitorEnabled=false"), with("ttlMonitorSleepSecs=1"));
    let shop = local.client.database("shop");
    let ttl = |field: &str, more: Document| {
        let mut spec = doc! { "key": { field: 1 }, "name": field, "expireAfterSeconds": 60 };
        spec.extend(more);
        spec
    };
    let now = DateTime::now().timestamp_millis();
    let at = |minutes: i64| DateTime::from_millis(now + minutes * 60_000);
    let only = doc! { "partialFilterExpression": { "s": "x" } };
    // Of each documents that no server expires: live ones, those without a date, with a list of later dates, outside of
    // the index.
    let (live, list) = (doc! { "at": at(600), "b": at(600) }, doc! { "at": [at(600), at(900)] });
    let never = doc! { "expireAfterSeconds": i32::MAX };
    let shapes = [
        ("kept", vec![ttl("at", doc! {})], vec![live.clone()]),
        ("some", vec![ttl("at", doc! {})], vec![live.clone(), list, doc! { "s": "x" }]),
        (
            "several",
            vec![ttl("at", only), ttl("b", doc! {}), ttl("c", never)],
            vec![live, doc! { "at": at(-600), "s": "y" }, doc! { "c": at(-600) }],
        ),
    ];
    for (name, indexes, documents) in &shapes {
        shop.run_command(doc! { "createIndexes": *name, "indexes": indexes }).await.unwrap();
        let documents = documents.iter().cycle().zip(0..60).map(|(document, id)| {
            let mut document = document.clone();
            document.insert("_id", id);
            document
        });
        shop.collection(name).insert_many(documents).await.unwrap();
    }
    let key = doc! { "key": { "_id": 1 }, "unique": true };
    let clustered = doc! { "create": "clustered", "clusteredIndex": key, "expireAfterSeconds": 60 };
    shop.run_command(clustered).await.unwrap();
    let documents = (0..60).map(|n| doc! { "_id": at(600 + n) });
    shop.collection("clustered").insert_many(documents).await.unwrap();
    // Past their time for long, and for a few minutes.
    let past = (1000..1020).map(|id| doc! { "_id": id, "at": at(-120) });
    shop.collection("kept").insert_many(past).await.unwrap();
    shop.run_command(doc! { "createIndexes": "due", "indexes": [ttl("at", doc! {})] })
        .await
        .unwrap();
    let due = (0..100).map(|id| doc! { "_id": id, "at": at(-5) });
    shop.collection("due").insert_many(due).await.unwrap();

    let mut agent = Agent::new(&local.uri(), &atlas.uri(), "[sync]\ncount_check_every = \"1s\"\n");
    agent.may(&[Repair], "the test provokes it");
    agent.start(&[]);
    agent.streaming().await;
    let there = atlas.client.database("shop");
    for (name, _, _) in &shapes[1..] {
        there.collection::<Document>(name).delete_many(doc! { "_id": { "$lt": 9 } }).await.unwrap();
    }
    let first = doc! { "_id": { "$lt": at(609) } };
    there.collection::<Document>("clustered").delete_many(first).await.unwrap();

    let told = |name: &str| {
        let health = agent.health().unwrap_or_default();
        let list = health["raised"].as_array().cloned().unwrap_or_default();
        let of = list.into_iter().filter(|alert| alert["name"] == name);
        of.map(|alert| alert["message"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    eventually("all of it", PATIENCE * 2, async || {
        told("divergence").len() == 3 && told("expires_in_atlas").len() == 1
    })
    .await;
    let missing = told("divergence");
    for name in shapes[1..].iter().map(|shape| shape.0).chain(["clustered"]) {
        let message = format!(
            "`shop.{name}` holds 60 documents locally and 51 in Atlas of those that are not about to expire"
        );
        assert!(missing.iter().any(|told| told.starts_with(&message)), "{message}: {missing:?}");
    }
    let kept = told("expires_in_atlas").remove(0);
    assert!(
        kept.starts_with("Atlas expires documents of `shop.kept` that the local server keeps"),
        "{kept}"
    );
    assert!(
        kept.contains("20 that are past their time") && kept.ends_with("and 0 in Atlas"),
        "{kept}"
    );
    assert_eq!(agent.health().unwrap()["status"], "unhealthy");

    // What is mended is counted again, though the hour is not over.
    assert!(agent.cli(&["sync", "--wait"]).status.success());
    eventually("the end of it", PATIENCE * 2, async || told("divergence").is_empty()).await;
    assert_eq!(told("expires_in_atlas").len(), 1);
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
    equal(&local, &atlas, PATIENCE).await;
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

#[tokio::test(flavor = "multi_thread")]
async fn an_alert_names_the_page_that_says_what_to_do() {
    let (local, atlas) = pair().await;
    let hook = Receiver::start();
    let told_to =
        format!("[alerts]\nqueue_size = 5\nwebhook = \"http://127.0.0.1:{}/\"\n", hook.port);
    let elsewhere = format!("{told_to}runbook = \"https://wiki.example/{{alert}}.html\"\n");
    for (config, own) in [(told_to, true), (elsewhere, false)] {
        let mut agent = Agent::new(&local.uri(), &atlas.uri(), &config);
        agent.start(&["--adopt"]);
        agent.streaming().await;
        assert!(agent.cli(&["pause"]).status.success());
        orders(&local).insert_many((0..20).map(|_| doc! { "own": own })).await.unwrap();

        let address = if own {
            format!("http://127.0.0.1:{}/runbook/queue_size", agent.admin_port)
        } else {
            "https://wiki.example/queue_size.html".to_owned()
        };
        eventually("the address, told and sent", PATIENCE, async || {
            let health = agent.health().unwrap_or_default();
            let raised = health["raised"].as_array().cloned().unwrap_or_default();
            raised.iter().any(|alert| alert["runbook"] == address.as_str())
                && agent.log().contains(&address)
                && hook.requests().iter().any(|(_, of)| of["alert"]["runbook"] == address.as_str())
        })
        .await;
        let (status, page) = Api::of(&agent).get("/runbook/queue_size");
        assert_eq!(status, 200);
        assert!(page.as_str().unwrap().starts_with("# `queue_size`"), "{page}");
        agent.stop();
    }
}
