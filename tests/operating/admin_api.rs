//! The admin API beside a running agent: who may ask what, and what it answers.

use std::{os::unix::fs::PermissionsExt, time::Duration};

use mongodb::bson::{Document, doc};

use crate::support::{
    PATIENCE,
    agent::Agent,
    api::Api,
    equal::equal,
    eventually, pair,
    proxy::{Line, Proxy},
};

#[tokio::test(flavor = "multi_thread")]
async fn the_api_tells_the_state_and_guards_what_changes_it() {
    let (local, atlas) = pair().await;
    let line = Proxy::to(atlas.port).await;
    let orders = local.client.database("shop").collection::<Document>("orders");
    orders.insert_one(doc! { "_id": 0 }).await.unwrap();
    let agent = Agent::started(&local.uri(), &line.uri());
    agent.streaming().await;
    let api = Api::of(&agent);
    eventually("health", PATIENCE, async || api.get("/api/sync/health").1["status"] == "healthy")
        .await;
    assert_eq!(api.get("/healthz").0, 200);
    assert_eq!(api.get("/readyz").0, 200);
    let (_, health) = api.get("/api/sync/health");
    for key in [
        "status",
        "syncLag",
        "syncLagMs",
        "queueSize",
        "errorRate",
        "lastSync",
        "phase",
        "breaker",
        "consistentAsOf",
        "alerts",
    ] {
        assert!(health.get(key).is_some(), "{key} is missing in {health}");
    }
    let (_, databases) = api.get("/api/sync/databases");
    assert_eq!(
        (&databases["local"]["state"], &databases["atlas"]["state"]),
        (&"connected".into(), &"connected".into())
    );

    line.set(Line::Cut);
    orders.insert_one(doc! { "_id": 1, "secret": "of a customer" }).await.unwrap();
    agent.queued(1).await;
    eventually("not ready", PATIENCE, async || api.get("/readyz").0 == 503).await;
    // An `_id` may be an address: neither a list of them nor the state of one is for everybody on this machine.
    for path in ["/api/queue", "/api/dead-letters", "/api/documents/shop.orders/1"] {
        assert_eq!(api.get(path).0, 401, "{path}");
        assert_eq!(api.call("HEAD", path, &[]).0, 401, "{path}");
    }
    let (_, queue) = api.with_token("GET", "/api/queue");
    assert_eq!(queue["operations"][0]["documentId"], 1);
    assert!(!queue.to_string().contains("of a customer"), "a list shows no document");
    let item = format!("/api/queue/{}", queue["operations"][0]["id"].as_str().unwrap());
    assert_eq!(api.get(&item).0, 401, "a document needs the token");
    assert_eq!(api.with_token("GET", &item).1["data"]["secret"], "of a customer");

    assert_eq!(api.call("POST", "/api/sync/pause", &[]).0, 401);
    assert_eq!(api.call("POST", "/api/sync/pause", &[("Authorization", "Bearer wrong")]).0, 401);
    assert_eq!(api.with_token("POST", "/api/sync/pause").0, 200);
    line.set(Line::Up);
    // The batch in hand may end; what comes after it waits.
    orders.insert_one(doc! { "_id": 2 }).await.unwrap();
    agent.queued(1).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let there = atlas.client.database("shop").collection::<Document>("orders");
    assert_eq!(there.find_one(doc! { "_id": 2 }).await.unwrap(), None, "paused");
    assert_eq!(api.with_token("POST", "/api/sync/resume").0, 200);
    equal(&local, &atlas, PATIENCE).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn foreign_names_and_bad_requests_are_refused_with_a_reason() {
    let (local, atlas) = pair().await;
    let agent = Agent::started(&local.uri(), &atlas.uri());
    agent.streaming().await;
    let api = Api::of(&agent);

    for headers in [("Host", "evil.example"), ("Origin", "http://evil.example"), ("Origin", "null")]
    {
        let (status, problem) = api.call("GET", "/api/sync/health", &[headers]);
        assert_eq!(status, 403, "{headers:?}");
        assert!(problem["error"].is_string() && problem["hint"].is_string(), "{problem}");
    }
    let own = format!("http://127.0.0.1:{}", agent.admin_port);
    assert_eq!(api.call("GET", "/api/sync/health", &[("Origin", &own)]).0, 200);
    // By way of a tunnel that begins at another port; and a page of another program of this machine.
    for (host, origin, status) in [
        ("localhost:9000", "http://localhost:9000", 200),
        ("[::1]:9000", "http://[::1]:9000", 200),
        ("127.0.0.1:9000", "http://localhost:3000", 403),
    ] {
        let headers = [("Host", host), ("Origin", origin)];
        assert_eq!(api.call("GET", "/api/sync/health", &headers).0, status, "{headers:?}");
    }
    assert_eq!(api.get("/nowhere").0, 404);
    assert_eq!(api.with_token("DELETE", "/api/sync/health").0, 405);
    assert_eq!(api.with_token("GET", "/api/queue?limit=many").0, 400);
    for ns in ["shop.$cmd", "shop.$cmd.aggregate", "$external.users", "shop.%00"] {
        let (status, problem) = api.with_token("GET", &format!("/api/documents/{ns}/1"));
        assert_eq!((status, problem["hint"].is_string()), (400, true), "{ns}: {problem}");
    }
    assert_eq!(api.with_token("GET", "/api/queue/no-id").0, 400);
    let unknown = "/api/dead-letters/00000000-0000-7000-8000-000000000000";
    assert_eq!(api.with_token("DELETE", unknown).0, 404);
    assert_eq!(api.with_token("POST", &format!("{unknown}/retry")).0, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pause_survives_a_restart_and_files_are_their_owners_only() {
    let (local, atlas) = pair().await;
    let orders = local.client.database("shop").collection::<Document>("orders");
    let mut agent = Agent::started(&local.uri(), &atlas.uri());
    agent.streaming().await;
    assert!(agent.cli(&["pause"]).status.success());
    assert!(agent.stop().success());
    orders.insert_one(doc! { "_id": 1 }).await.unwrap();

    agent.start(&[]);
    agent.queued(1).await;
    tokio::time::sleep(Duration::from_secs(1)).await;

    assert!(agent.health().unwrap()["queueSize"].as_u64() > Some(0));
    assert!(agent.cli(&["resume"]).status.success());
    equal(&local, &atlas, PATIENCE).await;
    let mode = |name: &str| {
        std::fs::metadata(agent.dir.path().join(name)).unwrap().permissions().mode() & 0o777
    };
    assert_eq!((mode("queue"), mode("outrigger.token")), (0o700, 0o600));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_cli_works_beside_a_running_agent_and_without_one() {
    let (local, atlas) = pair().await;
    let mut agent = Agent::started(&local.uri(), &atlas.uri());
    agent.streaming().await;

    let beside = agent.cli(&["status"]);
    let text = String::from_utf8_lossy(&beside.stdout).into_owned();
    assert!(beside.status.success() && text.contains("streaming"), "{text}");
    assert!(agent.cli(&["queue", "list"]).status.success());
    assert!(agent.stop().success());

    let without = agent.cli(&["status"]);
    let text = String::from_utf8_lossy(&without.stdout).into_owned();
    assert_eq!(without.status.code(), Some(1));
    assert!(text.contains("not running"), "{text}");
    for args in [["queue", "stats"], ["queue", "list"], ["dead", "list"]] {
        assert!(agent.cli(&args).status.success());
        assert!(agent.cli_json(&args).is_some());
    }
}
