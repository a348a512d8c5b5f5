//! Promise 1: only reads go to the local database, and whatever happens to the agent or to Atlas, the
//! application's writes go on.

use std::collections::BTreeSet;

use futures_util::TryStreamExt;
use mongodb::{
    Client,
    bson::{Bson, Document, doc},
};
use serde_json::Value;

use crate::support::{
    PATIENCE,
    agent::Agent,
    equal::equal,
    eventually, fresh_pair,
    guarded::Guarded,
    mongod::Mongod,
    orders,
    proxy::{Line, Proxy},
};

/// With exactly the roles of the book (docs/configure.md). The local user may read and nothing else, so the agent
/// cannot have written there.
#[tokio::test(flavor = "multi_thread")]
async fn the_agent_needs_no_right_to_write_locally() {
    let reader = vec![
        "readAnyDatabase".into(),
        "clusterMonitor".into(),
        Bson::Document(doc! { "role": "read", "db": "local" }),
    ];
    let writer = vec!["readWriteAnyDatabase".into(), "dbAdminAnyDatabase".into()];
    let (local, atlas) = tokio::join!(Guarded::start(reader), Guarded::start(writer));
    let shop = local.root.database("shop");
    let orders = shop.collection::<Document>("orders");
    orders.insert_many((0..50).map(|n| doc! { "_id": n })).await.unwrap();
    // A document that violates its validator, as an application may have from before it.
    let validator = doc! { "collMod": "orders", "validator": { "total": { "$exists": true } } };
    shop.run_command(validator).await.unwrap();

    let agent = Agent::started(&local.uri(), &atlas.uri());
    agent.streaming().await;
    let change = doc! {
        "update": "orders", "bypassDocumentValidation": true,
        "updates": [{ "q": {}, "u": { "$set": { "n": 1 } }, "multi": true }],
    };
    shop.run_command(change).await.unwrap();
    orders.delete_one(doc! { "_id": 3 }).await.unwrap();
    shop.collection::<Document>("old").insert_one(doc! { "_id": 1 }).await.unwrap();
    shop.collection::<Document>("gone").insert_one(doc! { "_id": 1 }).await.unwrap();
    let rename = doc! { "renameCollection": "shop.old", "to": "shop.new" };
    local.root.database("admin").run_command(rename).await.unwrap();
    shop.collection::<Document>("gone").drop().await.unwrap();

    equal(&local, &atlas, PATIENCE).await;
    let check = agent.cli(&["check"]);
    assert_eq!(check.status.code(), Some(0), "{}", String::from_utf8_lossy(&check.stdout));
    let output = format!("{}{:?}{check:?}", agent.log(), agent.health());
    assert!(!output.contains("s3cret"), "no output shows the password");
}

#[tokio::test(flavor = "multi_thread")]
async fn property_01_the_local_database_serves_every_operation_whatever_the_state_of_atlas() {
    let (local, mut atlas) = fresh_pair().await;
    let line = Proxy::to(atlas.port).await;
    let orders = local.client.database("shop").collection::<Document>("orders");
    let agent = Agent::started(&local.uri(), &line.uri());
    agent.streaming().await;

    for (state, n) in [(Line::Up, 0), (Line::Cut, 1), (Line::Silent, 2), (Line::Up, 3)] {
        line.set(state);
        if n == 3 {
            atlas.kill();
        }
        for m in 0..25 {
            let id = n * 100 + m;
            orders.insert_one(doc! { "_id": id }).await.unwrap();
            orders.update_one(doc! { "_id": id }, doc! { "$set": { "m": m } }).await.unwrap();
            let found = orders.find_one(doc! { "_id": id }).await.unwrap().unwrap();
            assert_eq!(found.get_i32("m").unwrap(), m);
            if m % 5 == 0 {
                orders.delete_one(doc! { "_id": id }).await.unwrap();
            }
        }
    }
    atlas.resume().await;

    equal(&local, &atlas, PATIENCE).await;
}

/// A local write returns while nothing of it can have reached Atlas, which does not answer at all.
#[tokio::test(flavor = "multi_thread")]
async fn property_05_no_local_write_waits_for_atlas() {
    let (local, atlas) = fresh_pair().await;
    let line = Proxy::to(atlas.port).await;
    let orders = local.client.database("shop").collection::<Document>("orders");
    let agent = Agent::started(&local.uri(), &line.uri());
    agent.streaming().await;
    line.set(Line::Silent);

    for n in 0..100 {
        orders.insert_one(doc! { "_id": n }).await.unwrap();
    }

    assert_eq!(orders.count_documents(doc! {}).await.unwrap(), 100);
    let there = atlas.client.database("shop").collection::<Document>("orders");
    assert_eq!(there.count_documents(doc! {}).await.unwrap(), 0);
    agent.queued(100).await;
    line.set(Line::Up);
    equal(&local, &atlas, PATIENCE).await;
}

/// The same application code, the same data, with the agent up, stopped and killed.
#[tokio::test(flavor = "multi_thread")]
async fn property_10_no_change_to_the_application_is_needed() {
    let (local, atlas) = fresh_pair().await;
    let orders = local.client.database("shop").collection::<Document>("orders");
    orders.insert_one(doc! { "_id": "before" }).await.unwrap();
    let indexes = orders.list_index_names().await.unwrap();

    let mut agent = Agent::started(&local.uri(), &atlas.uri());
    agent.streaming().await;
    orders.insert_one(doc! { "_id": "with" }).await.unwrap();
    agent.kill();
    orders.insert_one(doc! { "_id": "without" }).await.unwrap();
    agent.start(&[]);
    equal(&local, &atlas, PATIENCE).await;

    // Nothing of ours has appeared in the application's database.
    let names = local.client.list_database_names().await.unwrap();
    assert!(
        names.iter().all(|name| matches!(name.as_str(), "admin" | "config" | "local" | "shop")),
        "{names:?}"
    );
    assert_eq!(local.client.database("shop").list_collection_names().await.unwrap(), ["orders"]);
    assert_eq!(orders.list_index_names().await.unwrap(), indexes);
    eventually("a healthy agent", PATIENCE, async || {
        agent.health().unwrap()["status"] == "healthy"
    })
    .await;
}

/// What only reads, and takes part in a replica set as any client does.
const READS: &[&str] = &[
    "hello",
    "isMaster",
    "ismaster",
    "ping",
    "buildInfo",
    "connectionStatus",
    "endSessions",
    "killCursors",
    "find",
    "getMore",
    "aggregate",
    "count",
    "collStats",
    "dbStats",
    "listCollections",
    "listDatabases",
    "listIndexes",
    "serverStatus",
    "getParameter",
    "replSetGetConfig",
    "replSetGetStatus",
];

/// What the agent did to a server that logs everything: the commands that are no reads, and those that held a lock which
/// keeps others out. With it, the names of all its commands, and the sessions that they were sent in.
fn forbidden(server: &Mongod) -> (Vec<String>, BTreeSet<String>, BTreeSet<String>) {
    let (mut wrong, mut seen, mut sessions) = (Vec::new(), BTreeSet::new(), BTreeSet::new());
    let log = std::fs::read(server.path().join("log")).unwrap();
    for line in String::from_utf8_lossy(&log).lines() {
        let Ok(line) = serde_json::from_str::<Value>(line) else { continue };
        let told = &line["attr"];
        if line["msg"] != "Slow query" || told["appName"] != "outrigger" {
            continue;
        }
        let command = told["command"].as_object().and_then(|command| command.keys().next());
        let name = command.cloned().unwrap_or_default();
        let text = told["command"].to_string();
        let is_read = READS.contains(&name.as_str())
            && !text.contains("\"$out\"")
            && !text.contains("\"$merge\"");
        let nothing = serde_json::Map::new();
        // Whoever reads, too, waits for an election in this way.
        let locks = told["locks"].as_object().unwrap_or(&nothing).iter();
        let mut locks = locks.filter(|(of, _)| *of != "ReplicationStateTransition");
        let keeps_out = locks.any(|(_, lock)| {
            let modes = lock["acquireCount"].as_object().unwrap_or(&nothing);
            modes.keys().any(|mode| mode != "r")
        });
        if !is_read || keeps_out {
            wrong.push(told.to_string());
        }
        seen.insert(name);
        sessions.insert(told["command"]["lsid"].to_string());
    }
    (wrong, seen, sessions)
}

/// What a server keeps for the agent: its connections, and the cursors of whomever.
#[derive(Clone, Copy, Debug)]
struct Kept {
    connections: usize,
    cursors: i64,
}

async fn kept(server: &Mongod) -> Kept {
    let all = doc! { "$currentOp": { "allUsers": true, "idleConnections": true } };
    let ours = doc! { "$match": { "appName": "outrigger" } };
    let admin = server.client.database("admin");
    let found: Vec<_> = admin.aggregate([all, ours]).await.unwrap().try_collect().await.unwrap();
    let status = server.admin(doc! { "serverStatus": 1 }).await;
    let of = |path: &[&str]| {
        let mut value = Bson::Document(status.clone());
        for name in path {
            value = value.as_document().unwrap().get(*name).unwrap().clone();
        }
        value.as_i64().or(value.as_i32().map(i64::from)).unwrap()
    };
    Kept { connections: found.len(), cursors: of(&["metrics", "cursor", "open", "total"]) }
}

/// The server itself says what was done to it, through the first copy, the steady state, a sync, a verification, a
/// restart and the end.
#[tokio::test(flavor = "multi_thread")]
async fn the_local_server_sees_no_write_and_no_lock_and_keeps_no_more_for_the_agent_with_time() {
    let (local, atlas) = fresh_pair().await;
    local.admin(doc! { "profile": 0, "slowms": -1 }).await;
    for n in 0..20 {
        let name = format!("c{n}");
        let some = local.client.database("many").collection::<Document>(&name);
        some.insert_many((0..50).map(|id| doc! { "_id": id })).await.unwrap();
    }
    orders(&local).insert_many((0..3_000).map(|id| doc! { "_id": id })).await.unwrap();
    let before = kept(&local).await;
    let mut agent = Agent::started(&local.uri(), &atlas.uri());
    agent.streaming().await;
    equal(&local, &atlas, PATIENCE).await;

    let (mut first, mut handles) = (None, 0);
    for round in 0..4 {
        for id in 0..50 {
            let id = 10_000 + round * 100 + id;
            orders(&local).insert_one(doc! { "_id": id }).await.unwrap();
            orders(&local)
                .update_one(doc! { "_id": id }, doc! { "$set": { "n": 1 } })
                .await
                .unwrap();
        }
        let change = doc! { "collMod": "orders", "validator": { "n": { "$ne": -1 - round } } };
        local.client.database("shop").run_command(change).await.unwrap();
        for args in [&["sync", "--wait"][..], &["verify"], &["verify", "--digest"]] {
            assert!(agent.cli(args).status.success(), "{args:?}");
        }
        equal(&local, &atlas, PATIENCE).await;
        let now = kept(&local).await;
        let open = std::fs::read_dir(format!("/proc/{}/fd", agent.id())).unwrap().count();
        // The pool may still grow by what happened to be asked for at once; each round that leaves something behind
        // would show three times.
        let (then, handles_then): &mut (Kept, usize) = first.get_or_insert((now, open));
        assert!(now.connections <= then.connections.max(10) + 4, "{then:?} {now:?}");
        assert!(now.cursors <= then.cursors + 1, "{then:?} {now:?}");
        assert!(open <= *handles_then + 12, "{handles_then} files open, then {open}");
        handles = handles.max(open);
        if round == 1 {
            assert!(agent.stop().success());
            agent.start(&[]);
            agent.streaming().await;
        }
    }
    println!("{before:?} {first:?}, {handles} files");
    assert!(agent.stop().success());

    eventually("nothing kept", PATIENCE, async || {
        let now = kept(&local).await;
        now.connections == 0 && now.cursors <= before.cursors
    })
    .await;
    let (wrong, seen, sessions) = forbidden(&local);
    assert_eq!(wrong, Vec::<String>::new());
    // A driver uses a session again: of two agents' processes there are as many as are busy at once, not one for each of
    // some thousand commands.
    println!("{} sessions", sessions.len());
    assert!(sessions.len() < 100, "{} sessions", sessions.len());
    for name in ["aggregate", "getMore", "find", "listCollections", "listIndexes", "hello"] {
        assert!(seen.contains(name), "the log has no {name}: {seen:?}");
    }
    // That it would be seen.
    let uri = format!("{}&appName=outrigger", local.uri());
    let stranger = Client::with_uri_str(uri).await.unwrap();
    let shop = stranger.database("shop");
    shop.collection("orders").insert_one(doc! { "_id": "written" }).await.unwrap();
    shop.run_command(doc! { "validate": "orders" }).await.unwrap();
    let (wrong, ..) = forbidden(&local);
    for name in ["\"insert\":", "\"validate\":"] {
        assert!(wrong.iter().any(|told| told.contains(name)), "{wrong:?}");
    }
}
