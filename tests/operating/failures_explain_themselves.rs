//! Promise 5: every failure says what happened, why, and what to do next; and its exit code says whose
//! it is.

mod first_day;
mod no_dumps;

use std::process::Output;

use mongodb::bson::{Document, doc};
use serde_json::Value;

use crate::support::{
    PATIENCE,
    agent::Agent,
    certificates::Certificates,
    equal::{MayDiffer, equal, equal_but},
    eventually, free_port,
    guarded::Guarded,
    mongod::Mongod,
    orders, pair,
    proxy::{Line, Proxy},
    router::Router,
    strangers,
    unasked::Unasked::{DeadLetters, Retries},
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
    let records = atlas.client.database("outrigger").list_collection_names().await.unwrap();
    assert_eq!(records, Vec::<String>::new());

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
async fn an_atlas_without_tls_is_refused_unless_it_is_allowed() {
    let agent = Agent::new(&nowhere(), "mongodb://ann:s3cret@127.0.0.1:1", "");
    let (code, text) = told(&agent.cli(&["run"]));
    assert!(code == Some(3) && !text.contains("without TLS"), "{text}");
    agent.replace_setting("allow_insecure = true", "allow_insecure = false");

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
    agent.may(&[Retries, DeadLetters], "an index of Atlas refuses the document");
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
    // But for the index, which the agent leaves alone.
    equal_but(MayDiffer::Schema, &local, &atlas, PATIENCE).await;
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
            // The second member, which is asked at once, has it as well.
            let both = doc! { "w": 2 };
            let grant =
                doc! { "grantRolesToUser": "outrigger", "roles": roles, "writeConcern": both };
            set.admin(grant).await;
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

/// An agent that waits no longer than it must for a server that does not come.
fn hasty(local: &str, atlas: &str) -> Agent {
    let agent = Agent::new(local, atlas, "");
    agent.replace_setting("[local]\ntimeout = \"5s\"", "[local]\ntimeout = \"3s\"");
    agent
}

/// What `check` says of the local end, and its exit code.
fn checked(agent: &Agent) -> (Option<i32>, String) {
    let output = agent.cli(&["check"]);
    let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(!text.contains("s3cret"), "{text}");
    assert!(!text.contains("Topology") && !text.contains("Kind:"), "the driver's dump: {text}");
    (output.status.code(), text)
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_answers_in_the_place_of_a_usable_server_is_named_with_the_way_out() {
    let certificates = Certificates::new();
    let tls: Vec<String> = certificates.server_args();
    let tls: Vec<&str> = tls.iter().map(String::as_str).collect();
    let options = certificates.options();
    let (set, alone, encrypted) = tokio::join!(
        Mongod::start(),
        Mongod::start_with(&[]),
        Mongod::start_with_options(&tls, &options),
    );
    let at = |port: u16, options: &str| format!("mongodb://ann:s3cret@127.0.0.1:{port}/?{options}");
    let serve = |stranger| at(strangers::serve(stranger), "");
    let (set, alone, encrypted, nothing) = (set.port, alone.port, encrypted.port, free_port());
    let cases = [
        (at(set, "replicaSet=other"), "its set is `rs`, not `other`", "write `replicaSet=rs` in"),
        (at(alone, "replicaSet=rs0"), "but is no replica set", "no data is moved"),
        (
            format!("mongodb://127.0.0.1:{set},127.0.0.1:{nothing}/?replicaSet=other"),
            "nothing listens there",
            "write `replicaSet=rs` in",
        ),
        (
            at(strangers::serve(strangers::unknown_names), "replicaSet=rs"),
            "`db1.invalid:27017`",
            "`directConnection=true`",
        ),
        (at(nothing, ""), "nothing listens there", "systemctl start mongod"),
        (
            format!("mongodb://h:1,H:1,127.0.0.1:{nothing},127.0.0.1:{nothing}/"),
            "nothing listens",
            "correct the name",
        ),
        (format!("mongodb://[::1]:{nothing}/"), "`[::1]:", "systemctl start mongod"),
        (
            "mongodb://%2Ftmp%2Fnobody.sock/".to_owned(),
            "`/tmp/nobody.sock`: nothing listens",
            "fix",
        ),
        (
            "mongodb://ann:s3cret@Db1.Invalid".to_owned(),
            "`db1.invalid:27017`: the name does not resolve",
            "/etc/hosts",
        ),
        ("mongodb+srv://ann:s3cret@none.invalid/".to_owned(), "`none.invalid`", "name service"),
        (serve(strangers::web), "answers as a web server does", "correct host and port"),
        (serve(strangers::greeting), "answers, but not as MongoDB does", "correct host and port"),
        (serve(strangers::silent), "no answer", "correct the address"),
        (serve(strangers::closing), "closes each connection at once", "correct the address"),
        (at(encrypted, ""), "answers with TLS only", "add `tls=true` to"),
        (at(set, "tls=true"), "answers, but without TLS", "take `tls=true`"),
        (at(encrypted, "tls=true"), "invalid peer certificate: UnknownIssuer", "`tlsCAFile`"),
    ];

    std::thread::scope(|scope| {
        // Most of the time they wait.
        for (local, cause, way_out) in &cases {
            scope.spawn(move || {
                let (code, text) = checked(&hasty(local, "mongodb://127.0.0.1:1/"));
                assert_eq!(code, Some(3), "{local}: {text}");
                let told = text.lines().take_while(|line| !line.contains("  atlas  "));
                let told: Vec<&str> = told.collect();
                let told = told.join("\n");
                assert!(told.contains(cause) && told.contains(way_out), "{local}: {text}");
                assert_eq!(told.matches(cause).count(), 1, "once: {told}");
            });
        }
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_name_of_the_set_is_told_by_each_command_and_in_the_log_of_a_running_agent() {
    let (local, atlas) = pair().await;
    let wrong = |server: &Mongod| format!("mongodb://127.0.0.1:{}/?replicaSet=other", server.port);
    let here = hasty(&wrong(&local), &atlas.uri());
    let there = hasty(&local.uri(), &wrong(&atlas));

    for command in [&["run"][..], &["sync"], &["verify"], &["restore"]] {
        let (code, text) = told(&here.cli(command));
        assert_eq!(code, Some(3), "{command:?}: {text}");
        assert!(text.contains("answers, but its set is `rs"), "{command:?}: {text}");
        assert!(text.contains("hint: write `replicaSet="), "{command:?}: {text}");
    }
    let (code, text) = checked(&there);
    assert_eq!(code, Some(4), "{text}");
    assert!(text.contains("answers, but its set is `rs"), "{text}");
    let mut running = there;
    running.start(&[]);
    eventually("the cause in the log", PATIENCE, async || {
        running.log().contains("answers, but its set is `rs")
    })
    .await;
    assert!(!running.log().contains("Topology"), "{}", running.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn options_of_an_application_are_left_out_by_name_and_what_cannot_be_done_exits_2() {
    let (local, atlas) = pair().await;
    orders(&local).insert_one(doc! { "_id": 1 }).await.unwrap();
    let harmless = "&w=0&journal=false&readPreference=secondary&maxStalenessSeconds=120&socketTimeoutMS=5\
                    &uuidRepresentation=standard&compressors=lz4,zstd&maxPoolSize=1&minPoolSize=9&retryWrites=false\
                    &readConcernLevel=local&wtimeoutMS=1&waitQueueTimeoutMS=1&serverSelectionTimeoutMS=1\
                    &heartbeatFrequencyMS=1&tlsDisableOCSPEndpointCheck=true";
    let with = |server: &Mongod| server.uri() + harmless;
    let mut agent = Agent::new(&with(&local), &with(&atlas), "");

    let (code, text) = checked(&agent);
    assert_eq!(code, Some(0), "{text}");
    for name in ["w", "readPreference", "socketTimeoutMS", "compressors", "maxPoolSize"] {
        let warnings = text.lines().filter(|line| line.starts_with("warning"));
        assert_eq!(
            warnings.filter(|line| line.contains(&format!("`{name}`"))).count(),
            2,
            "{text}"
        );
    }
    agent.start(&[]);
    agent.streaming().await;
    orders(&local).insert_one(doc! { "_id": 2 }).await.unwrap();
    equal(&local, &atlas, PATIENCE).await;
    assert!(agent.log().contains("an option of the connection string is left out"));

    for (option, named) in [
        ("authMechanismProperties=AWS_SESSION_TOKEN:s3cret", "`authMechanismProperties`"),
        ("authMechanism=GSSAPI", "`authMechanism`"),
        ("tlsAllowInvalidHostnames=true", "`tlsAllowInvalidHostnames`"),
        ("tlsCertificateKeyFilePassword=s3cret", "`tlsCertificateKeyFilePassword`"),
        ("tlsCAFile=/nowhere/ca.pem", "`/nowhere/ca.pem`"),
        ("replicaSett=s3cret", "did you mean `replicaSet`?"),
        ("loadBalanced=true&replicaSet=rs", "loadBalanced"),
        ("s3cret", "`name=value`"),
    ] {
        for (here, there) in
            [(local.uri() + "&" + option, atlas.uri()), (local.uri(), atlas.uri() + "&" + option)]
        {
            let refused = Agent::new(&here, &there, "");
            for command in ["check", "run", "sync"] {
                let (code, text) = told(&refused.cli(&[command]));
                assert_eq!(code, Some(2), "{command} {option}: {text}");
                assert!(
                    text.contains(named) && !text.contains("refuses access"),
                    "{option}: {text}"
                );
                assert!(!text.contains("s3cret"), "{option}: {text}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn files_by_another_systems_editor_are_read_or_named_as_what_they_are() {
    let (local, atlas) = pair().await;
    let agent = Agent::new("", "", "");
    let path = |name: &str| agent.dir.path().join(name);
    let config = std::fs::read_to_string(path("config.toml")).unwrap();
    let config = config
        .replace("[atlas]", &format!("[atlas]\nuri_file = {:?}", path("atlas.uri")))
        .replace("[local]", &format!("[local]\nuri_file = {:?}", path("local.uri")));
    let utf_16 = |text: &str| -> Vec<u8> {
        "\u{feff}".encode_utf16().chain(text.encode_utf16()).flat_map(u16::to_le_bytes).collect()
    };
    let marked = |text: &str| format!("\u{feff}{text}\r\n").into_bytes();
    std::fs::write(path("config.toml"), marked(&config)).unwrap();
    std::fs::write(path("local.uri"), marked(&local.uri())).unwrap();
    std::fs::write(path("atlas.uri"), marked(&atlas.uri())).unwrap();

    let (code, text) = checked(&agent);
    assert_eq!(code, Some(0), "{text}");

    for (name, text) in [("atlas.uri", atlas.uri()), ("config.toml", config.clone())] {
        std::fs::write(path(name), utf_16(&text)).unwrap();
        let (code, said) = told(&agent.cli(&["check"]));
        assert_eq!(code, Some(2), "{said}");
        assert!(said.contains(name) && said.contains("it is UTF-16"), "{said}");
        std::fs::write(path(name), text).unwrap();
    }
}
