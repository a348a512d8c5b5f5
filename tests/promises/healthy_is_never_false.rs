//! Promise 5: "everything" and "healthy" are never said over a copy that lacks something.

use std::time::{SystemTime, UNIX_EPOCH};

use mongodb::{
    Client,
    bson::{Document, doc},
};

use crate::support::{
    PATIENCE,
    agent::Agent,
    api::Api,
    eventually,
    guarded::Guarded,
    mongod::Mongod,
    orders, pair,
    proxy::{Line, Proxy},
    receiver::Receiver,
    replica_set::ReplicaSet,
    unasked::Unasked::{DeadLetters, Repair, Retries},
};

/// Waits for the first tenth of a second: what is done now stays within one second for a while.
async fn early_in_a_second() {
    eventually("the begin of a second", PATIENCE, async || {
        SystemTime::now().duration_since(UNIX_EPOCH).unwrap().subsec_millis() < 100
    })
    .await;
}

/// Commits a transaction whose documents come in several replies of the stream.
async fn large_transaction(client: &Client, round: i32) {
    let mut session = client.start_session().await.unwrap();
    let collection = client.database("shop").collection::<Document>("orders");
    session.start_transaction().await.unwrap();
    let documents = (0..3_000).map(|n| doc! { "_id": format!("{round}-{n:05}") });
    collection.insert_many(documents).session(&mut session).await.unwrap();
    session.commit_transaction().await.unwrap();
}

/// Flushes until it says "everything"; then everything of the transaction is there.
async fn flush_is_true(agent: &Agent, atlas: &Client, round: i32, when: &str) {
    let api = Api::of(agent);
    eventually("a flush that says everything", PATIENCE, async || {
        api.with_body("POST", "/api/sync/flush", r#"{"timeoutMs": 5000}"#).0 == 200
    })
    .await;
    let ours = doc! { "_id": { "$regex": format!("^{round}-") } };
    let there = atlas.database("shop").collection::<Document>("orders");
    assert_eq!(there.count_documents(ours).await.unwrap(), 3_000, "{when}, round {round}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_in_the_second_of_the_start_or_of_a_resume_is_in_atlas_when_flush_says_everything()
{
    let (local, atlas) = pair().await;
    orders(&local).insert_one(doc! { "_id": "first" }).await.unwrap();
    for round in 0..3 {
        let mut agent = Agent::new(&local.uri(), &atlas.uri(), "");
        for (server, db) in [(&atlas, "outrigger"), (&atlas, "shop"), (&local, "shop")] {
            server.client.database(db).drop().await.unwrap();
        }
        early_in_a_second().await;
        // The next write of this second has the time that the new stream names first.
        orders(&local).insert_one(doc! { "_id": round }).await.unwrap();
        agent.start(&[]);
        agent.streaming().await;
        large_transaction(&local.client, round).await;
        flush_is_true(&agent, &atlas.client, round, "start").await;

        agent.stop();
        early_in_a_second().await;
        orders(&local).insert_one(doc! { "_id": round + 100 }).await.unwrap();
        agent.start(&[]);
        agent.streaming().await;
        large_transaction(&local.client, round + 10).await;
        flush_is_true(&agent, &atlas.client, round + 10, "resume").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_in_the_second_of_a_failover_is_in_atlas_when_flush_says_everything() {
    let (set, atlas) = tokio::join!(ReplicaSet::start(), Mongod::start());
    let mut agent = Agent::new(&set.uri(), &atlas.uri(), "");
    agent.start(&[]);
    agent.streaming().await;
    for round in 0..2 {
        large_transaction(&set.client, round).await;
        set.step_down().await;
        eventually("a new primary that takes writes", PATIENCE, async || {
            set.client
                .database("shop")
                .collection::<Document>("other")
                .insert_one(doc! {})
                .await
                .is_ok()
        })
        .await;
        large_transaction(&set.client, round + 10).await;
        flush_is_true(&agent, &atlas.client, round, "before the failover").await;
        flush_is_true(&agent, &atlas.client, round + 10, "failover").await;
    }
}

fn alerts(agent: &Agent) -> String {
    agent.health().map(|health| health["alerts"].to_string()).unwrap_or_default()
}

/// A primary, a secondary and an arbiter, where one write is enough for the application.
async fn with_an_arbiter() -> [Mongod; 3] {
    let start = || Mongod::start_with(&["--replSet", "psa"]);
    let (primary, secondary, arbiter) = tokio::join!(start(), start(), start());
    let host = |server: &Mongod| format!("127.0.0.1:{}", server.port);
    let members = [
        doc! { "_id": 0, "host": host(&primary), "priority": 2 },
        doc! { "_id": 1, "host": host(&secondary) },
        doc! { "_id": 2, "host": host(&arbiter), "arbiterOnly": true },
    ];
    initiate(&primary, doc! { "_id": "psa", "members": members.to_vec() }).await;
    let one = doc! { "setDefaultRWConcern": 1, "defaultWriteConcern": { "w": 1 } };
    eventually("the write concern", PATIENCE, async || {
        primary.client.database("admin").run_command(one.clone()).await.is_ok()
    })
    .await;
    secondary_follows(&secondary).await;
    [primary, secondary, arbiter]
}

async fn initiate(primary: &Mongod, config: Document) {
    primary.admin(doc! { "replSetInitiate": config }).await;
    eventually("a primary", PATIENCE, async || {
        let hello = primary.client.database("admin").run_command(doc! { "hello": 1 }).await;
        hello.is_ok_and(|hello| hello.get_bool("isWritablePrimary").unwrap_or(false))
    })
    .await;
}

async fn secondary_follows(secondary: &Mongod) {
    eventually("a secondary", PATIENCE, async || {
        let hello = secondary.client.database("admin").run_command(doc! { "hello": 1 }).await;
        hello.is_ok_and(|hello| hello.get_bool("secondary").unwrap_or(false))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn writes_without_a_majority_are_lag_an_alert_and_no_heartbeat() {
    let (atlas, [primary, mut secondary, _arbiter]) =
        tokio::join!(Mongod::start(), with_an_arbiter());
    let hook = Receiver::start();
    let config = format!(
        "[alerts]\nheartbeat_every = \"1s\"\nheartbeat_url = \"http://127.0.0.1:{}/ping\"\n",
        hook.port
    );
    orders(&primary).insert_one(doc! { "_id": 0 }).await.unwrap();
    let mut agent = Agent::new(&primary.uri(), &atlas.uri(), &config);
    agent.start(&[]);
    agent.streaming().await;
    eventually("a heartbeat", PATIENCE, async || !hook.requests().is_empty()).await;

    secondary.kill();
    orders(&primary).insert_one(doc! { "_id": 1 }).await.unwrap();
    let api = Api::of(&agent);
    let (status, body) = api.with_body("POST", "/api/sync/flush", r#"{"timeoutMs": 6000}"#);
    assert_eq!(status, 503, "{body}");
    assert!(body["cause"].to_string().contains("has no majority for what was written"), "{body}");
    assert_eq!(agent.health().unwrap()["status"], "degraded", "it is behind");
    eventually("an alert", PATIENCE, async || alerts(&agent).contains("has no majority")).await;
    let health = agent.health().unwrap();
    assert_eq!(health["status"], "unhealthy");
    assert!(health["syncLagMs"].as_u64().unwrap() >= 20_000, "{health}");
    assert_eq!(api.get("/readyz").0, 503);
    let (_, metrics) = api.get("/metrics");
    assert!(metrics.as_str().unwrap().contains("outrigger_alerts{name=\"no_majority\"} 1"));
    let ticks = hook.requests().len();
    let check = String::from_utf8(agent.cli(&["check"]).stdout).unwrap();
    assert!(check.contains("has no majority"), "{check}");
    assert_eq!(orders(&atlas).count_documents(doc! {}).await.unwrap(), 1);
    // One may have been on its way.
    assert!(hook.requests().len() <= ticks + 1, "heartbeats go on");

    secondary.resume().await;
    eventually("health", PATIENCE, async || agent.health().unwrap()["status"] == "healthy").await;
    flush_says(&agent, 200).await;
    assert_eq!(orders(&atlas).count_documents(doc! {}).await.unwrap(), 2);
}

/// Flushes until it is answered like that.
async fn flush_says(agent: &Agent, status: u16) {
    let api = Api::of(agent);
    eventually("the answer of a flush", PATIENCE, async || {
        api.with_body("POST", "/api/sync/flush", r#"{"timeoutMs": 2000}"#).0 == status
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delayed_member_as_the_local_side_is_named_and_its_delay_is_lag() {
    let start = || Mongod::start_with(&["--replSet", "delayed"]);
    let (primary, member, atlas) = tokio::join!(start(), start(), Mongod::start());
    let host = |server: &Mongod| format!("127.0.0.1:{}", server.port);
    let late = doc! {
        "_id": 1, "host": host(&member), "priority": 0, "votes": 0, "secondaryDelaySecs": 10,
    };
    let members = vec![doc! { "_id": 0, "host": host(&primary) }, late];
    initiate(&primary, doc! { "_id": "delayed", "members": members }).await;
    orders(&primary).insert_one(doc! { "_id": 0 }).await.unwrap();
    secondary_follows(&member).await;
    // A member that has just been made shows nothing that a majority has.
    eventually("the first document", PATIENCE, async || {
        let name = "orders";
        let find = doc! { "find": name, "readConcern": { "level": "majority" }, "maxTimeMS": 500 };
        let found = member.client.database("shop").run_command(find).await;
        found.is_ok_and(|found| {
            let batch =
                found.get_document("cursor").and_then(|cursor| cursor.get_array("firstBatch"));
            batch.is_ok_and(|batch| !batch.is_empty())
        })
    })
    .await;
    let mut agent = Agent::new(&member.uri(), &atlas.uri(), "");

    let check = String::from_utf8(agent.cli(&["check"]).stdout).unwrap();
    assert!(check.contains("it is a delayed member") && check.contains("10s late"), "{check}");
    agent.start(&[]);
    agent.streaming().await;
    eventually("its name", PATIENCE, async || alerts(&agent).contains("a delayed one")).await;
    orders(&primary).insert_one(doc! { "_id": 1 }).await.unwrap();

    // The member hears of a write some moments after the primary has made it.
    let body = loop {
        let (status, body) =
            Api::of(&agent).with_body("POST", "/api/sync/flush", r#"{"timeoutMs": 2000}"#);
        if status == 503 {
            break body;
        }
        let is_there = orders(&atlas).count_documents(doc! {}).await.unwrap() == 2;
        assert!(!is_there, "it is there before it was waited for: {body}");
    };
    let health = agent.health().unwrap();
    assert!(health["syncLagMs"].as_u64().unwrap() >= 10_000, "{health}");
    assert_eq!(health["status"], "degraded");
    assert!(body["cause"].to_string().contains("delayed"), "{body}");
    flush_says(&agent, 200).await;
    assert_eq!(orders(&atlas).count_documents(doc! {}).await.unwrap(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn status_says_that_writes_flow_only_while_they_do_and_remembers_when_both_were_equal() {
    let (local, atlas) = pair().await;
    let line = Proxy::to(atlas.port).await;
    orders(&local).insert_one(doc! { "_id": 0 }).await.unwrap();
    let mut agent = Agent::new(&local.uri(), &line.uri(), "");
    line.set(Line::Cut);
    agent.start(&[]);
    let status = |agent: &Agent| String::from_utf8(agent.cli(&["status"]).stdout).unwrap();
    eventually("the agent", PATIENCE, async || agent.health().is_some()).await;
    let starting = status(&agent);
    assert!(!starting.contains("writes flow") && !starting.contains("0s behind"), "{starting}");

    line.set(Line::Up);
    agent.streaming().await;
    eventually("equality", PATIENCE, async || {
        let told = status(&agent);
        told.contains("writes flow") && told.contains("0s behind") && told.contains("equal ")
    })
    .await;
    assert!(agent.cli(&["pause"]).status.success());
    let paused = status(&agent);
    assert!(!paused.contains("writes flow") && !paused.contains("0s behind"), "{paused}");
    assert!(paused.contains("writing is paused"), "{paused}");
    assert!(agent.cli(&["resume"]).status.success());

    // An outage of Atlas, and a restart in it: the last moment of equality is still known.
    orders(&local).insert_one(doc! { "_id": 1 }).await.unwrap();
    flush_says(&agent, 200).await;
    let equal = |agent: &Agent| {
        agent.health().and_then(|h| h["consistentAsOf"].as_str().map(str::to_owned))
    };
    let before = equal(&agent);
    assert!(before.is_some());
    line.set(Line::Cut);
    agent.stop();
    agent.start(&[]);
    eventually("the moment", PATIENCE, async || equal(&agent).is_some()).await;
    orders(&local).insert_one(doc! { "_id": 2 }).await.unwrap();
    agent.queued(1).await;
    assert!(equal(&agent) >= before, "{:?} {before:?}", equal(&agent));
    assert!(!status(&agent).contains("writes flow"));
}

/// A comparison that only reports leaves what it has found, and the moment that was named before was none.
#[tokio::test(flavor = "multi_thread")]
async fn a_moment_of_equality_is_withdrawn_when_a_comparison_disproves_it() {
    let (local, atlas) = pair().await;
    orders(&local).insert_many((0..20).map(|id| doc! { "_id": id })).await.unwrap();
    let agent = Agent::started(&local.uri(), &atlas.uri());
    agent.may(&[Repair], "a document is taken out of Atlas");
    agent.streaming().await;
    let told = |agent: &Agent| {
        let health = agent.health().unwrap_or_default();
        let until = health["outlook"]["inAtlasUntil"].as_str().map(str::to_owned);
        (health["consistentAsOf"].as_str().map(str::to_owned), until)
    };
    let is_told = |(equal, until): (Option<String>, Option<String>)| {
        assert!(equal.is_some() || until.is_none());
        equal.is_some() && until.is_some()
    };
    eventually("equality", PATIENCE, async || is_told(told(&agent))).await;

    orders(&atlas).delete_one(doc! { "_id": 7 }).await.unwrap();
    agent.cli(&["sync", "--dry-run", "--wait"]);
    eventually("no equality", PATIENCE, async || told(&agent) == (None, None)).await;

    assert!(agent.cli(&["sync", "--wait"]).status.success());
    eventually("equality again", PATIENCE, async || is_told(told(&agent))).await;
    assert_eq!(orders(&atlas).count_documents(doc! {}).await.unwrap(), 20);
}

fn text(output: &std::process::Output) -> String {
    let [out, error] = [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text));
    format!("{out}{error}")
}

/// Atlas refuses a document that the local database has from before its validator.
#[tokio::test(flavor = "multi_thread")]
async fn a_sync_says_repaired_only_when_atlas_took_the_documents_that_it_queued() {
    let roles = vec!["readWriteAnyDatabase".into()];
    let (local, atlas) = tokio::join!(Mongod::start(), Guarded::start(roles));
    let shop = atlas.root.database("shop");
    let there = shop.collection::<Document>("orders");
    let other = |n: i32| doc! { "_id": n, "total": n };
    local.client.database("shop").collection("other").insert_many((0..5).map(other)).await.unwrap();
    orders(&local).insert_one(doc! { "_id": 1, "total": 1 }).await.unwrap();
    let validator = doc! { "collMod": "orders", "validator": { "total": { "$exists": true } } };
    local.client.database("shop").run_command(validator).await.unwrap();
    let refused = async |n: i32| {
        let there = orders(&local);
        there.insert_one(doc! { "_id": n }).bypass_document_validation(true).await.unwrap();
    };
    refused(7).await;
    let mut agent = Agent::new(
        &local.uri(),
        &atlas.uri(),
        "[worker]\nmax_retries = 1\nretry_delays = [\"100ms\"]\n",
    );
    agent.may(
        &[Repair, Retries, DeadLetters],
        "a document is taken out of Atlas, and a validator refuses others",
    );
    agent.start(&[]);
    agent.streaming().await;
    eventually("a dead letter", PATIENCE, async || agent.health().unwrap()["deadLetters"] == 1)
        .await;
    there.delete_one(doc! { "_id": 1 }).await.unwrap();

    // The letter was there before, and there is still one of it.
    let sync = agent.cli(&["sync", "--wait"]);
    assert_eq!(sync.status.code(), Some(1), "{}", text(&sync));
    assert!(text(&sync).contains("Atlas would not take 1 document"), "{}", text(&sync));
    assert!(!text(&sync).contains("is repaired"), "{}", text(&sync));
    assert!(there.find_one(doc! { "_id": 1 }).await.unwrap().is_some(), "the other one came");

    // Letters of other documents are not the run's.
    shop.collection::<Document>("other").delete_one(doc! { "_id": 3 }).await.unwrap();
    refused(8).await;
    let sync = agent.cli(&["sync", "--wait", "--ns", "shop.other"]);
    assert_eq!(sync.status.code(), Some(0), "{}", text(&sync));
    assert!(text(&sync).contains("what differed is repaired"), "{}", text(&sync));
    eventually("another letter", PATIENCE, async || agent.health().unwrap()["deadLetters"] == 2)
        .await;

    // Without an agent as well.
    assert!(agent.stop().success());
    let sync = agent.cli(&["sync", "--ns", "shop.orders"]);
    assert_eq!(sync.status.code(), Some(1), "{}", text(&sync));
    assert!(text(&sync).contains("Atlas would not take 2 documents"), "{}", text(&sync));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pattern_that_matches_nothing_is_an_error_with_the_nearest_name() {
    let (local, atlas) = pair().await;
    orders(&local).insert_one(doc! { "_id": 1 }).await.unwrap();
    let mut agent = Agent::new(&local.uri(), &atlas.uri(), "");
    agent.start(&[]);
    agent.streaming().await;
    let is_told = |args: &[&str]| {
        let output = agent.cli(args);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {}", text(&output));
        assert!(text(&output).contains("did you mean `shop.orders`?"), "{}", text(&output));
    };

    is_told(&["verify", "--ns", "shop.ordres"]);
    is_told(&["verify", "--ns", "shop.orders", "--ns", "shop.order"]);
    is_told(&["sync", "--ns", "shop.ordres"]);
    is_told(&["sync", "--dry-run", "--ns", "shop.ordres"]);
    let api = Api::of(&agent);
    let (status, problem) =
        api.with_body("POST", "/api/sync/full", r#"{"namespaces": ["shop.ordres"]}"#);
    assert_eq!(status, 404, "{problem}");
    assert_eq!(agent.cli(&["verify", "--ns", "shop.*"]).status.code(), Some(0));

    assert!(agent.stop().success());
    for args in [
        &["sync", "--ns", "shop.ordres"][..],
        &["sync", "--dry-run", "--ns", "shop.ordres"],
        &["restore", "--ns", "shop.ordres"],
    ] {
        let output = agent.cli(args);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {}", text(&output));
        assert!(text(&output).contains("did you mean `shop.orders`?"), "{}", text(&output));
    }
    let queued = agent.cli_json(&["sync", "status"]).unwrap();
    assert!(queued["running"].is_null(), "nothing is noted for the next agent: {queued}");

    // A collection that is chosen may be still to come.
    let config = "[namespaces]\ninclude = [\"shop.ordres\"]\n";
    let mut agent = Agent::new(&local.uri(), &atlas.uri(), config);
    let check = text(&agent.cli(&["check"]));
    assert!(check.contains("did you mean `shop.orders`?"), "{check}");
    assert!(check.contains("warning  local  0 collections"), "{check}");
    agent.start(&["--adopt"]);
    eventually("the warning", PATIENCE, async || {
        agent.log().contains("did you mean `shop.orders`?")
            && text(&agent.cli(&["status"])).contains("did you mean `shop.orders`?")
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn flush_says_whether_it_waited_for_index_builds() {
    let (local, atlas) = pair().await;
    orders(&local).insert_one(doc! { "_id": 1, "x": 1 }).await.unwrap();
    let mut agent = Agent::new(&local.uri(), &atlas.uri(), "");
    agent.start(&[]);
    agent.streaming().await;
    let shop = local.client.database("shop");
    let index = |name: &str| doc! { "createIndexes": "orders", "indexes": [{ "key": { name: 1 }, "name": name }] };
    let hang = |on: bool| {
        doc! { "configureFailPoint": "hangAfterStartingIndexBuild", "mode": if on { "alwaysOn" } else { "off" } }
    };

    atlas.admin(hang(true)).await;
    shop.run_command(index("x")).await.unwrap();
    eventually("a build", PATIENCE, async || {
        agent.health().unwrap()["indexBuilds"].to_string().contains('x')
    })
    .await;
    let told = text(&agent.cli(&["flush"]));
    assert!(told.contains("indexes are still being built"), "{told}");
    let waits = agent.cli(&["flush", "--indexes", "--timeout", "1s"]);
    assert_eq!(waits.status.code(), Some(1), "{}", text(&waits));
    assert!(text(&waits).contains("indexes are being built"), "{}", text(&waits));

    atlas.admin(hang(false)).await;
    let told = text(&agent.cli(&["flush", "--indexes"]));
    assert!(told.contains("indexes included"), "{told}");
    let names = orders(&atlas).list_index_names().await.unwrap();
    assert!(names.contains(&"x".to_owned()), "{names:?}");
    // At once, without a look in between.
    for name in ["y", "z"] {
        shop.run_command(index(name)).await.unwrap();
        assert!(agent.cli(&["flush", "--indexes"]).status.success());
        let names = orders(&atlas).list_index_names().await.unwrap();
        assert!(names.contains(&name.to_owned()), "{names:?}");
    }
}

/// What `mongorestore --oplogReplay` sends: the server tells a change stream nothing of it.
#[tokio::test(flavor = "multi_thread")]
async fn what_an_atomic_apply_ops_hides_from_the_stream_is_found_by_verify() {
    let (local, atlas) = pair().await;
    orders(&local).insert_many((0..10).map(|n| doc! { "_id": n, "v": 0 })).await.unwrap();
    let mut agent = Agent::new(&local.uri(), &atlas.uri(), "[sync]\ncount_check_every = \"1s\"\n");
    agent.may(&[Repair], "the stream tells nothing of it");
    agent.start(&[]);
    agent.streaming().await;
    let update = |n: i32| doc! { "op": "u", "ns": "shop.orders", "o2": { "_id": n }, "o": { "$v": 2, "diff": { "u": { "v": 1 } } } };
    let insert = |n: i32| doc! { "op": "i", "ns": "shop.orders", "o": { "_id": n } };
    local.admin(doc! { "applyOps": [update(3), update(4), insert(20), insert(21)] }).await;
    orders(&local).insert_one(doc! { "_id": "behind" }).await.unwrap();
    flush_says(&agent, 200).await;

    let verify = agent.cli(&["verify"]);
    let told = text(&verify);
    assert!(orders(&atlas).find_one(doc! { "_id": 3, "v": 1 }).await.unwrap().is_none());
    assert_eq!(verify.status.code(), Some(1), "{told}");
    // What makes another number of documents is seen without being asked for.
    eventually("the alert of the count", PATIENCE, async || {
        alerts(&agent).contains("holds 13 documents locally and 11 in Atlas")
    })
    .await;
    let sync = agent.cli(&["sync", "--wait"]);
    assert!(sync.status.success(), "{}", text(&sync));
    assert_eq!(agent.cli(&["verify"]).status.code(), Some(0));
    assert!(orders(&atlas).find_one(doc! { "_id": 3, "v": 1 }).await.unwrap().is_some());
}
