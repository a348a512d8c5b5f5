//! Promise 5: every failure says what happened, why, and what to do next; and its exit code says whose
//! it is.

mod support;

use std::process::Output;

use mongodb::bson::{Document, doc};
use serde_json::Value;
use support::{
    PATIENCE,
    agent::Agent,
    compare::converge,
    eventually, free_port,
    guarded::Guarded,
    mongod::Mongod,
    orders, pair,
    proxy::{Line, Proxy},
    router::Router,
};

fn nowhere() -> String {
    format!("mongodb://127.0.0.1:{}/?directConnection=true", free_port())
}

/// Exit code, and that what went to stderr has the three parts.
fn told(output: &Output) -> (Option<i32>, String) {
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(text.contains("error: ") && text.contains("\nhint: "), "{text}");
    (output.status.code(), text)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_local_database_that_is_away_at_the_start_exits_3_and_says_how_to_start_it() {
    let agent = Agent::new(&nowhere(), &nowhere(), "");

    let (code, text) = told(&agent.cli(&["run"]));

    assert_eq!(code, Some(3));
    assert!(text.contains("systemctl start mongod"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standalone_server_exits_3_and_names_the_two_steps() {
    let standalone = Mongod::start_with(&[]).await;
    let agent = Agent::new(&standalone.uri(), &nowhere(), "");

    let (code, text) = told(&agent.cli(&["run"]));

    assert_eq!(code, Some(3));
    assert!(
        text.contains("no oplog") && text.contains("replSetName") && text.contains("rs.initiate()"),
        "{text}"
    );
    assert!(text.contains("no data is moved"), "{text}");
}

/// A router merges what its shards say: what tells one document from another on a replica set does not there.
#[tokio::test(flavor = "multi_thread")]
async fn a_router_as_the_local_side_exits_3_and_says_why_whatever_is_asked_for() {
    let (local, atlas) = pair().await;
    let router = Router::to(local.port).await;
    let agent = Agent::new(&router.uri(), &atlas.uri(), "");

    for command in ["run", "verify", "restore"] {
        let (code, text) = told(&agent.cli(&[command]));
        assert_eq!(code, Some(3), "{command}: {text}");
        let says_why = text.contains("router (mongos)")
            && text.contains("shards may hold documents of the same `_id`");
        assert!(says_why && text.contains("members of a replica set"), "{command}: {text}");
    }
    let check = agent.cli(&["check"]);
    let text = String::from_utf8_lossy(&check.stdout);
    assert_eq!(check.status.code(), Some(3), "{text}");
    assert!(text.contains("router (mongos)"), "{text}");
    let marks = atlas.client.database("outrigger").list_collection_names().await.unwrap();
    assert_eq!(marks, Vec::<String>::new());

    let router = Router::to(atlas.port).await;
    let check = Agent::new(&local.uri(), &router.uri(), "").cli(&["check"]);
    let text = String::from_utf8_lossy(&check.stdout);
    assert_eq!(check.status.code(), Some(0), "{text}");
    assert!(text.contains("it is a sharded cluster, on which these are not tried"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_set_that_was_never_initiated_is_told_so() {
    let server = Mongod::start_with(&["--replSet", "rs"]).await;
    let agent = Agent::new(&server.uri(), &nowhere(), "");

    let (code, text) = told(&agent.cli(&["run"]));

    assert_eq!(code, Some(3));
    assert!(text.contains("rs.initiate()"), "{text}");
}

#[tokio::test]
async fn bad_configuration_and_usage_exit_2() {
    let agent = Agent::new(&nowhere(), &nowhere(), "[worker]\nlane = 3\n");
    let (code, text) = told(&agent.cli(&["run"]));
    assert_eq!(code, Some(2));
    assert!(text.contains("did you mean `worker.lanes`?"), "{text}");

    let agent = Agent::new("", &nowhere(), "");
    let (code, text) = told(&agent.cli(&["check"]));
    assert_eq!(code, Some(2));
    assert!(text.contains("MONGODB_LOCAL_URI"), "{text}");

    assert_eq!(agent.cli(&["frobnicate"]).status.code(), Some(2));
    assert_eq!(agent.cli(&["queue", "show", "no-id"]).status.code(), Some(2));
}

#[tokio::test]
async fn an_atlas_without_tls_is_refused() {
    let agent = Agent::new(&nowhere(), "mongodb://ann:s3cret@h:27017", "");
    let config = agent.dir.path().join("config.toml");
    let text = std::fs::read_to_string(&config)
        .unwrap()
        .replace("allow_insecure = true", "allow_insecure = false");
    std::fs::write(&config, text).unwrap();

    let (code, text) = told(&agent.cli(&["run"]));

    assert_eq!(code, Some(2));
    assert!(text.contains("without TLS") && !text.contains("s3cret"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn check_says_for_each_point_how_it_is_and_exits_with_the_end_that_is_at_fault() {
    let (local, atlas) = pair().await;
    let series = doc! { "create": "series", "timeseries": { "timeField": "t" } };
    local.client.database("shop").run_command(series).await.unwrap();
    let fine = Agent::new(&local.uri(), &atlas.uri(), "");
    let no_local = Agent::new(&nowhere(), &atlas.uri(), "");
    let no_atlas = Agent::new(&local.uri(), &nowhere(), "");

    let output = fine.cli(&["check"]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(0), "{text}");
    assert!(
        text.contains("shop.series is not replicated: it is a time-series collection"),
        "{text}"
    );
    let lines = fine.cli_json(&["check"]).unwrap();
    assert!(lines.as_array().unwrap().iter().all(|line| line["verdict"] != "problem"), "{lines}");
    assert_eq!(no_local.cli(&["check"]).status.code(), Some(3));
    assert_eq!(no_atlas.cli(&["check"]).status.code(), Some(4));
}

#[tokio::test]
async fn init_writes_the_reference_once() {
    let agent = Agent::new(&nowhere(), &nowhere(), "");
    let config = agent.dir.path().join("config.toml");
    assert_eq!(agent.cli(&["init"]).status.code(), Some(1), "never over an existing file");
    std::fs::remove_file(&config).unwrap();

    assert_eq!(agent.cli(&["init"]).status.code(), Some(0));

    assert_eq!(std::fs::read_to_string(config).unwrap(), outrigger::config::REFERENCE);
}

#[tokio::test]
async fn replication_that_is_switched_off_does_nothing() {
    let mut agent = Agent::new(&nowhere(), &nowhere(), "");
    agent.set_env("SYNC_ENABLED", "false");

    let output = agent.cli(&["run"]);

    assert_eq!(output.status.code(), Some(0));
    assert!(String::from_utf8_lossy(&output.stdout).contains("switched off"));
}

/// Here a unique index that only Atlas has; other kinds are in `atlas_refuses.rs`.
#[tokio::test(flavor = "multi_thread")]
async fn a_document_that_atlas_rejects_becomes_a_dead_letter_and_the_others_flow_on() {
    let (local, atlas) = pair().await;
    let orders = |server: &Mongod| server.client.database("shop").collection::<Document>("orders");
    orders(&local).insert_one(doc! { "_id": 0, "email": "zero" }).await.unwrap();
    let mut agent = Agent::new(
        &local.uri(),
        &atlas.uri(),
        "[worker]\nmax_retries = 2\nretry_delays = [\"100ms\"]\n",
    );
    agent.start(&[]);
    agent.streaming().await;
    let index = doc! { "createIndexes": "orders", "indexes": [{ "key": { "email": 1 }, "name": "email", "unique": true }] };
    atlas.client.database("shop").run_command(index).await.unwrap();

    orders(&local)
        .insert_many([doc! { "_id": 1, "email": "zero" }, doc! { "_id": 2, "email": "two" }])
        .await
        .unwrap();

    eventually("a dead letter", PATIENCE, async || agent.health().unwrap()["deadLetters"] == 1)
        .await;
    assert!(
        orders(&atlas).find_one(doc! { "_id": 2 }).await.unwrap().is_some(),
        "the others flow on"
    );
    let list = agent.cli_json(&["dead", "list"]).unwrap();
    assert_eq!(
        (&list[0]["documentId"], &list[0]["attempts"]),
        (&Value::from(1), &Value::from(3)),
        "{list}"
    );
    assert!(list[0]["reason"].as_str().unwrap().contains("unique index on (email)"), "{list}");
    let id = list[0]["id"].as_str().unwrap();
    let shown = agent.cli_json(&["dead", "show", id]).unwrap();
    assert_eq!(shown["data"]["email"], "zero");

    // A later change that fits clears it.
    orders(&local)
        .update_one(doc! { "_id": 1 }, doc! { "$set": { "email": "one" } })
        .await
        .unwrap();
    converge(&local.client, &atlas.client, PATIENCE).await;
    eventually("no dead letter", PATIENCE, async || agent.health().unwrap()["deadLetters"] == 0)
        .await;
}

/// Through another host name, another member, with and without the privilege to read the set's id.
#[tokio::test(flavor = "multi_thread")]
async fn one_database_at_both_ends_exits_2_whatever_is_asked_for_and_nothing_is_written() {
    let set = Guarded::start(vec!["readAnyDatabase".into()]).await;
    let second = set.join().await;
    set.root.database("shop").collection("orders").insert_one(doc! { "_id": 1 }).await.unwrap();
    let (first, second) = (set.uri(), Guarded::uri_of(&second));
    let by_name = first.replace("127.0.0.1", "localhost");
    let discovered = first.replace("directConnection=true", "replicaSet=rs");
    let mut ends = vec![
        (first.clone(), first.clone(), "one server process"),
        (first.clone(), by_name, "one server process"),
        (first.clone(), second.clone(), "names the member"),
        (second.clone(), first.clone(), "names the member"),
    ];
    for is_known in [false, true] {
        if is_known {
            let roles = ["clusterMonitor", "readWriteAnyDatabase"].map(String::from).to_vec();
            set.admin(doc! { "grantRolesToUser": "outrigger", "roles": roles }).await;
            ends = vec![(second.clone(), discovered.clone(), "the replica set's id is")];
        }
        for (n, (local, atlas, evidence)) in ends.iter().enumerate() {
            let agent = Agent::new(local, atlas, "");
            let commands: [&[&str]; 7] = [
                &["run"],
                &["run", "--adopt"],
                &["sync"],
                &["sync", "--adopt", "--allow-mass-delete"],
                &["sync", "--dry-run"],
                &["verify"],
                &["restore"],
            ];
            let asked = if n == 0 { commands.len() } else { 1 };
            for command in &commands[..asked] {
                let (code, text) = told(&agent.cli(command));
                assert_eq!(code, Some(2), "{command:?}: {text}");
                assert!(text.contains(evidence) && text.contains("MONGODB_ATLAS_URI"), "{text}");
            }
            let check = agent.cli(&["check"]);
            let text = String::from_utf8(check.stdout).unwrap();
            assert_eq!(check.status.code(), Some(2), "{text}");
            assert!(text.contains("PROBLEM  both ") && text.contains(evidence), "{text}");
            assert!(!agent.dir.path().join("queue").exists(), "nothing is remembered of it");
        }
    }
    let databases = set.root.list_database_names().await.unwrap();
    assert_eq!(databases, ["admin", "config", "local", "shop"], "nothing was written");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_atlas_that_is_away_at_the_start_and_then_turns_out_to_be_the_local_database_exits_2() {
    let local = Mongod::start().await;
    orders(&local).insert_one(doc! { "_id": 1 }).await.unwrap();
    let line = Proxy::to(local.port).await;
    line.set(Line::Cut);
    let mut agent = Agent::started(&local.uri(), &line.uri());
    eventually("an agent that runs", PATIENCE, async || agent.health().is_some()).await;

    line.set(Line::Up);
    let status = agent.ended(PATIENCE).await;

    assert_eq!(status.code(), Some(2), "{}", agent.log());
    assert!(agent.log().contains("one server process answers at both ends"), "{}", agent.log());
    let databases = local.client.list_database_names().await.unwrap();
    assert_eq!(databases, ["admin", "config", "local", "shop"], "not even the mark");
}

#[tokio::test(flavor = "multi_thread")]
async fn check_says_that_two_databases_are_two() {
    let (local, atlas) = pair().await;
    let check = Agent::new(&local.uri(), &atlas.uri(), "").cli(&["check"]);

    let text = String::from_utf8(check.stdout).unwrap();
    assert!(check.status.success(), "{text}");
    assert!(text.contains("ok       both   they are two different databases"), "{text}");
}
