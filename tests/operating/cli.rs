//! The commands of an operator, beside a running agent and without one.

use std::{
    io::{BufRead, BufReader},
    os::unix::fs::PermissionsExt,
    process::{Command, Stdio},
};

use mongodb::bson::{Document, doc, oid::ObjectId};
use rand::{SeedableRng, rngs::StdRng};
use serde_json::Value;

use crate::support::{
    PATIENCE,
    agent::Agent,
    equal::equal,
    eventually, orders, pair,
    proxy::{Line, Proxy},
    seed, workload,
};

fn text(output: &std::process::Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// What takes the export is full; the queue's disk has room.
fn cannot_be_exported(agent: &Agent, script: &str) {
    let command = agent.command();
    let mut shell = Command::new("sh");
    shell.current_dir(agent.dir.path());
    shell.args(["-c", script, "sh"]).arg(command.get_program()).args(command.get_args());
    shell.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let output = shell.output().unwrap();

    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    assert!(
        text(&output).contains("the export of the queue cannot be written"),
        "{}",
        text(&output)
    );
    assert!(text(&output).contains("make room where it is to go"), "{}", text(&output));
}

#[tokio::test(flavor = "multi_thread")]
async fn flush_waits_until_all_that_is_committed_is_in_atlas_and_says_why_it_is_not() {
    let (local, atlas) = pair().await;
    let line = Proxy::to(atlas.port).await;
    let mut agent = Agent::started(&local.uri(), &line.uri());
    agent.streaming().await;
    for n in 0..20 {
        let batch = (0..50).map(|m| doc! { "_id": n * 50 + m });
        orders(&local).insert_many(batch).await.unwrap();

        let flushed = agent.cli(&["flush"]);

        assert!(flushed.status.success(), "{}", text(&flushed));
        let there = orders(&atlas).count_documents(doc! {}).await.unwrap();
        assert_eq!(there, u64::try_from((n + 1) * 50).unwrap(), "at once, without a look again");
    }
    assert!(agent.cli(&["flush", "--timeout", "5s"]).status.success(), "with nothing to write");

    line.set(Line::Cut);
    orders(&local).insert_one(doc! { "_id": "waits" }).await.unwrap();
    agent.queued(1).await;
    let late = agent.cli(&["flush", "--timeout", "1s"]);
    assert_eq!(late.status.code(), Some(1));
    assert!(
        text(&late).contains("1 change waits") && text(&late).contains("hint:"),
        "{}",
        text(&late)
    );
    assert!(agent.stop().success());
    let nobody = agent.cli(&["flush"]);
    assert_eq!(nobody.status.code(), Some(1));
    assert!(text(&nobody).contains("no agent runs"), "{}", text(&nobody));
    assert_eq!(agent.cli(&["flush", "--timeout", "soon"]).status.code(), Some(2));
}

#[tokio::test(flavor = "multi_thread")]
async fn doc_tells_of_one_document_whether_atlas_has_it_as_it_is_here() {
    let (local, atlas) = pair().await;
    let line = Proxy::to(atlas.port).await;
    let oid = ObjectId::new();
    let ids = [
        doc! { "_id": 42 },
        doc! { "_id": oid },
        doc! { "_id": "42" },
        doc! { "_id": { "bin": 3, "row": "ä/?#%" } },
        doc! { "_id": oid.to_hex() },
    ];
    orders(&local).insert_many(ids).await.unwrap();
    let mut agent = Agent::started(&local.uri(), &line.uri());
    agent.streaming().await;
    let state = |agent: &Agent, id: &str| {
        let report = agent.cli_json(&["doc", "shop.orders", id]);
        report.map_or_else(
            || "none".to_owned(),
            |report| report["state"].as_str().unwrap().to_owned(),
        )
    };
    let nested = "{\"bin\": 3, \"row\": \"ä/?#%\"}";
    for id in ["42", "42.0", &oid.to_hex(), "\"42\"", nested] {
        assert_eq!(state(&agent, id), "SYNCED", "{id}");
    }
    let unknown = agent.cli(&["doc", "shop.orders", "nobody"]);
    assert_eq!(unknown.status.code(), Some(1));
    assert!(text(&unknown).contains("neither side"), "{}", text(&unknown));
    assert!(text(&agent.cli(&["doc", "admin.users", "1"])).contains("not replicated"));

    // Written just now, so the agent remembers when.
    orders(&local).update_one(doc! { "_id": 42 }, doc! { "$set": { "v": 1 } }).await.unwrap();
    assert!(agent.cli(&["flush"]).status.success());
    let report = agent.cli_json(&["doc", "shop.orders", "42"]).unwrap();
    assert!(report["lastSync"].is_string() && report["error"].is_null(), "{report}");
    assert!(!report.to_string().contains("\"v\""), "it shows no document");

    // Somebody changes it in Atlas: nothing waits, and it is not the same.
    orders(&atlas).update_one(doc! { "_id": 42 }, doc! { "$set": { "v": 2 } }).await.unwrap();
    let report = agent.cli_json(&["doc", "shop.orders", "42"]).unwrap();
    assert_eq!(report["state"], "FAILED");
    assert!(report["error"].as_str().unwrap().contains("another content"), "{report}");
    assert_eq!(agent.cli(&["doc", "shop.orders", "42"]).status.code(), Some(1));

    line.set(Line::Cut);
    orders(&local).insert_one(doc! { "_id": 43 }).await.unwrap();
    agent.queued(1).await;
    assert_eq!(state(&agent, "43"), "PENDING");
    assert!(agent.stop().success());
    assert_eq!(state(&agent, "43"), "PENDING", "without an agent as well");
    line.set(Line::Up);
    assert_eq!(state(&agent, nested), "SYNCED");
}

/// Everything that waits for Atlas, with its checkpoint, goes to another machine, which goes on from there:
/// nothing is compared, so what arrives can only have come with the file.
#[tokio::test(flavor = "multi_thread")]
async fn an_exported_queue_goes_on_elsewhere_from_where_it_was() {
    let (local, atlas) = pair().await;
    orders(&local).insert_many((0..300).map(|id| doc! { "_id": id, "v": 0 })).await.unwrap();
    let line = Proxy::to(atlas.port).await;
    let mut first = Agent::started(&local.uri(), &line.uri());
    first.streaming().await;
    equal(&local, &atlas, PATIENCE).await;
    // Changes wait, and the agent can say goodbye to Atlas when it stops.
    assert!(first.cli(&["pause"]).status.success());
    // Documents and `_id`s of every kind, as extended JSON does not tell them apart.
    let mut rng = StdRng::seed_from_u64(seed());
    for _ in 0..150 {
        let document = workload::document(&mut rng);
        let written = orders(&local).insert_one(document).await;
        assert!(written.as_ref().err().is_none_or(workload::is_refusal), "{written:?}");
    }
    orders(&local)
        .update_many(doc! { "_id": { "$lt": 50 } }, doc! { "$set": { "v": 1 } })
        .await
        .unwrap();
    orders(&local).delete_many(doc! { "_id": { "$gte": 250, "$lt": 300 } }).await.unwrap();
    let index = doc! { "createIndexes": "orders", "indexes": [{ "key": { "v": 1 }, "name": "v" }] };
    local.client.database("shop").run_command(index).await.unwrap();
    let people = local.client.database("shop").collection::<Document>("people");
    people.insert_many((0..20).map(|id| doc! { "_id": id })).await.unwrap();
    people.drop().await.unwrap();
    people.insert_one(doc! { "_id": "after the drop" }).await.unwrap();
    first.queued(100).await;
    // There is no room for more than 4 KiB.
    let part = first.dir.path().join("part.json");
    let file = part.display();
    cannot_be_exported(
        &first,
        &format!("trap '' XFSZ; ulimit -f 8; exec \"$@\" queue export {file}"),
    );
    assert!(
        !part.exists() && !first.dir.path().join("part.json.part").exists(),
        "no half of a file"
    );
    tokio::time::sleep(std::time::Duration::from_secs(2)).await;
    // The last heartbeat reaches Atlas, and its answer is lost: what the file knows of the lease is older.
    let record = async || {
        let records = atlas.client.database("outrigger").collection::<Document>("replicas");
        let record = records.find_one(doc! {}).await.unwrap().unwrap();
        record.get_timestamp("checkpoint").map_or(0, |position| position.time)
    };
    loop {
        let before = record().await;
        line.set(Line::Mute);
        // Where the driver has noticed the silence first, it sends no heartbeat any more: once more then.
        let give_up = std::time::Instant::now() + std::time::Duration::from_secs(15);
        let mut is_there = false;
        while !is_there && std::time::Instant::now() < give_up {
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            is_there = record().await > before;
        }
        if is_there {
            break;
        }
        line.set(Line::Up);
        eventually("a heartbeat with its answer", PATIENCE, async || record().await > before).await;
    }
    line.set(Line::Cut);
    assert!(first.stop().success());
    let file = first.dir.path().join("backlog.json");
    let name = file.to_str().unwrap();
    cannot_be_exported(&first, "exec \"$@\" queue export > /dev/full");
    assert!(first.cli(&["queue", "export", name]).status.success());
    assert_eq!(first.cli(&["queue", "export", name]).status.code(), Some(1), "never over a file");
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    let exported: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    for key in ["version", "timestamp", "operations"] {
        assert!(!exported[key].is_null(), "{key}");
    }
    for key in ["id", "type", "collection", "documentId", "data", "timestamp", "retryCount"] {
        assert!(exported["operations"][0].get(key).is_some(), "{key}");
    }

    // By way of a machine that it never ran on.
    let between = Agent::new(&local.uri(), &atlas.uri(), "");
    assert!(between.cli(&["queue", "import", name]).status.success());
    let again = first.dir.path().join("again.json");
    let name = again.to_str().unwrap();
    assert!(between.cli(&["queue", "export", name]).status.success());
    let mut second = Agent::new(&local.uri(), &atlas.uri(), "");
    let imported = second.cli(&["queue", "import", name]);
    assert!(imported.status.success(), "{}", text(&imported));
    let entries = |agent: &Agent| {
        let list = agent.cli_json(&["queue", "list", "--limit", "10000"]).unwrap();
        let of = |op: &Value| {
            (
                op["type"].clone(),
                op["collection"].clone(),
                op["documentId"].clone(),
                op["changes"].clone(),
            )
        };
        list.as_array().unwrap().iter().map(of).collect::<Vec<_>>()
    };
    assert_eq!(entries(&second), entries(&first), "the same entries in the same order");
    second.start(&[]);

    equal(&local, &atlas, PATIENCE).await;
    assert!(!second.log().contains("a full sync begins"), "{}", second.log());

    // Once more, when the agent has gone on: by key, and collections that were changed are compared.
    assert!(second.cli(&["queue", "import", name]).status.success());
    eventually("the comparison", PATIENCE, async || second.log().contains("a queue was imported"))
        .await;
    equal(&local, &atlas, PATIENCE).await;
}

/// The agent went on after the export, so what the file holds is older than what Atlas has; and then it comes back
/// itself. Both times everything is compared, and nothing old stays.
#[tokio::test(flavor = "multi_thread")]
async fn an_export_of_long_ago_leaves_nothing_old_in_atlas() {
    let (local, atlas) = pair().await;
    let mut first = Agent::started(&local.uri(), &atlas.uri());
    first.streaming().await;
    assert!(first.cli(&["pause"]).status.success());
    orders(&local).insert_many((0..50).map(|id| doc! { "_id": id, "v": 1 })).await.unwrap();
    first.queued(50).await;
    assert!(first.stop().success());
    let file = first.dir.path().join("backlog.json");
    let name = file.to_str().unwrap().to_owned();
    assert!(first.cli(&["queue", "export", &name]).status.success());
    assert!(first.cli(&["resume"]).status.success());
    first.start(&[]);
    orders(&local).update_many(doc! {}, doc! { "$set": { "v": 2 } }).await.unwrap();
    equal(&local, &atlas, PATIENCE).await;
    // Until the lease carries a later position than the file knows of.
    tokio::time::sleep(std::time::Duration::from_secs(12)).await;
    assert!(first.stop().success());

    let mut second = Agent::new(&local.uri(), &atlas.uri(), "");
    assert!(second.cli(&["queue", "import", &name]).status.success());
    second.start(&[]);
    eventually("a comparison", PATIENCE, async || second.log().contains("a full sync has ended"))
        .await;
    equal(&local, &atlas, PATIENCE).await;
    assert!(second.stop().success());
    orders(&local).update_many(doc! {}, doc! { "$set": { "v": 3 } }).await.unwrap();
    let before = first.log().matches("a full sync begins").count();
    first.start(&[]);

    eventually("another one", PATIENCE, async || {
        first.log().matches("a full sync begins").count() > before
    })
    .await;
    equal(&local, &atlas, PATIENCE).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_import_beside_newer_data_takes_keys_and_never_contents() {
    let (local, atlas) = pair().await;
    let line = Proxy::to(atlas.port).await;
    let mut agent = Agent::started(&local.uri(), &line.uri());
    agent.streaming().await;
    line.set(Line::Cut);
    orders(&local).insert_many((0..30).map(|id| doc! { "_id": id, "v": "old" })).await.unwrap();
    agent.queued(30).await;
    // Beside the running agent: over its API, without a checkpoint.
    let file = agent.dir.path().join("old.json");
    let name = file.to_str().unwrap().to_owned();
    let exported = agent.cli(&["queue", "export", &name]);
    assert!(exported.status.success(), "{}", text(&exported));
    line.set(Line::Up);
    orders(&local).update_many(doc! {}, doc! { "$set": { "v": "new" } }).await.unwrap();
    orders(&local).delete_many(doc! { "_id": { "$lt": 10 } }).await.unwrap();
    equal(&local, &atlas, PATIENCE).await;

    assert!(agent.cli(&["queue", "import", &name]).status.success());
    assert!(agent.cli(&["flush"]).status.success());
    equal(&local, &atlas, PATIENCE).await;
    assert_eq!(orders(&atlas).count_documents(doc! { "v": "old" }).await.unwrap(), 0);
    assert_eq!(orders(&atlas).count_documents(doc! {}).await.unwrap(), 20);

    // What is no export changes nothing.
    let good = std::fs::read_to_string(&file).unwrap();
    for bad in [
        "{}".to_owned(),
        "nonsense".to_owned(),
        good.replace("\"version\":1", "\"version\":2"),
        good[..good.len() / 2].to_owned(),
        good.replacen("\"old\"", "\"edited\"", 1),
        good.replacen("\"insert\"", "\"rename\"", 1),
        good.replacen("shop.orders", "admin.orders", 1),
    ] {
        std::fs::write(&file, &bad).unwrap();
        let refused = agent.cli(&["queue", "import", &name]);
        assert_eq!(refused.status.code(), Some(1), "{bad}");
        assert!(text(&refused).contains("hint:"), "{}", text(&refused));
    }
    // By hand, with no more than a key: brought up to date, as it is here.
    orders(&atlas).delete_one(doc! { "_id": 20 }).await.unwrap();
    let by_hand = "{\"version\": 1, \"operations\": [{\"type\": \"delete\", \"collection\": \"shop.orders\", \"documentId\": 20}]}";
    std::fs::write(&file, by_hand).unwrap();
    assert!(agent.stop().success());
    assert!(agent.cli(&["queue", "import", &name]).status.success());
    agent.start(&[]);
    equal(&local, &atlas, PATIENCE).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_thrown_away_with_clear_is_found_again_by_a_comparison() {
    let (local, atlas) = pair().await;
    let line = Proxy::to(atlas.port).await;
    let mut agent = Agent::started(&local.uri(), &line.uri());
    agent.streaming().await;
    line.set(Line::Cut);
    orders(&local).insert_many((0..100).map(|id| doc! { "_id": id })).await.unwrap();
    agent.queued(100).await;
    assert_eq!(agent.cli(&["queue", "clear", "--yes"]).status.code(), Some(1), "an agent runs");
    assert!(agent.stop().success());
    let asked = agent.cli(&["queue", "clear"]);
    assert_eq!(asked.status.code(), Some(1));
    assert!(
        text(&asked).contains("throws away 10") && text(&asked).contains("--yes"),
        "{}",
        text(&asked)
    );

    assert!(agent.cli(&["queue", "clear", "--yes"]).status.success());

    assert_eq!(agent.cli_json(&["queue", "stats"]).unwrap()["pending"], 0);
    line.set(Line::Up);
    agent.start(&[]);
    equal(&local, &atlas, PATIENCE).await;
    assert!(agent.log().contains("the queue was cleared"));
}

/// As of a package: the connection strings are root's, and whoever is on call is not root.
#[tokio::test(flavor = "multi_thread")]
async fn what_only_asks_the_agent_needs_no_connection_string() {
    let (local, atlas) = pair().await;
    orders(&local).insert_one(doc! { "_id": 1 }).await.unwrap();
    let mut agent = Agent::started(&local.uri(), &atlas.uri());
    agent.streaming().await;
    let log = agent.log();
    for part in ["dashboard=", "config.toml", "/queue", "outrigger.token", "`outrigger dashboard`"]
    {
        assert!(log.contains(part), "{part} is missing at the start: {log}");
    }
    agent.replace_setting("[local]\n", "[local]\nuri_file = \"/nowhere/local.uri\"\n");
    agent.replace_setting("[atlas]\n", "[atlas]\nuri_file = \"/nowhere/atlas.uri\"\n");
    agent.set_env("MONGODB_LOCAL_URI", "");
    agent.set_env("MONGODB_ATLAS_URI", "");

    for command in [
        &["status"][..],
        &["status", "--alive"],
        &["flush"],
        &["pause"],
        &["resume"],
        &["queue", "stats"],
        &["dead", "list"],
        &["doc", "shop.orders", "1"],
        &["sync", "--wait"],
        &["sync", "status"],
        &["dashboard"],
    ] {
        let output = agent.cli(command);
        assert!(output.status.success(), "{command:?}: {}", text(&output));
    }
    let token = std::fs::read_to_string(agent.dir.path().join("outrigger.token")).unwrap();
    let address = format!("http://127.0.0.1:{}/#token={token}\n", agent.admin_port);
    assert_eq!(String::from_utf8(agent.cli(&["dashboard"]).stdout).unwrap(), address);
    assert_eq!(agent.cli_json(&["status", "--alive"]).unwrap()["alive"], true);

    assert!(agent.stop().success());
    for (command, code) in [
        (&["status"][..], 1),
        (&["status", "--alive"], 1),
        (&["dashboard"], 1),
        (&["queue", "stats"], 0),
        (&["sync", "status"], 0),
        (&["sync", "status", "--wait"], 1),
        (&["doc", "shop.orders", "1"], 2),
        (&["sync"], 2),
    ] {
        let output = agent.cli(command);
        assert_eq!(output.status.code(), Some(code), "{command:?}: {}", text(&output));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn watch_shows_the_state_again_and_again_until_nobody_reads() {
    let (local, atlas) = pair().await;
    let mut agent = Agent::started(&local.uri(), &atlas.uri());
    agent.streaming().await;
    let mut watch = agent.command();
    watch.args(["status", "--watch", "--json"]).stdout(Stdio::piped());
    let mut watch = watch.spawn().unwrap();
    let mut lines = BufReader::new(watch.stdout.take().unwrap()).lines();
    let mut next = || serde_json::from_str::<Value>(&lines.next().unwrap().unwrap()).unwrap();

    assert_eq!(next()["phase"], "streaming");
    assert_eq!(next()["phase"], "streaming");
    assert!(agent.stop().success());
    while next()["phase"] != "not running" {}

    drop(lines);
    let mut code = None;
    eventually("its end", PATIENCE, async || {
        code = watch.try_wait().unwrap();
        code.is_some()
    })
    .await;
    assert!(code.unwrap().success());
}

#[test]
fn completions_and_the_man_page_name_every_command_and_help_has_examples() {
    let program = env!("CARGO_BIN_EXE_outrigger");
    let run = |args: &[&str]| {
        let output = Command::new(program).args(args).output().unwrap();
        assert!(output.status.success(), "{args:?}");
        String::from_utf8(output.stdout).unwrap()
    };

    for shell in ["bash", "zsh", "fish"] {
        let script = run(&["completions", shell]);
        assert!(script.contains("flush") && script.contains("allow-mass-delete"), "{shell}");
    }
    let bash = Command::new("bash").args(["-n", "/dev/stdin"]).stdin(Stdio::piped()).spawn();
    let mut bash = bash.unwrap();
    std::io::Write::write_all(
        &mut bash.stdin.take().unwrap(),
        run(&["completions", "bash"]).as_bytes(),
    )
    .unwrap();
    assert!(bash.wait().unwrap().success(), "a shell understands it");
    let page = run(&["man"]);
    for command in [
        "init",
        "check",
        "roles",
        "alerts test",
        "run",
        "status",
        "sync",
        "verify",
        "restore",
        "flush",
        "pause",
        "resume",
        "queue import",
        "dead discard",
        "doc",
    ] {
        assert!(page.contains(&format!(".SS {command}")), "{command} is missing");
    }
    for command in ["status", "sync", "verify", "restore", "flush", "doc", "queue", "dead"] {
        assert!(run(&[command, "--help"]).contains("Examples:"), "{command}");
    }
    assert!(run(&["--help"]).contains("Exit codes:"));
}

/// Colour only repeats what the words say, and only on a terminal.
#[test]
fn what_is_no_terminal_gets_no_colours() {
    let dir = tempfile::TempDir::new().unwrap();
    let program = env!("CARGO_BIN_EXE_outrigger");
    let run = |program: &str, args: &[&str]| {
        let mut command = Command::new(program);
        command.args(args).current_dir(dir.path()).env_remove("NO_COLOR").env("TERM", "xterm");
        let output = command.output().unwrap();
        text(&output)
    };

    let piped = run(program, &["status"]);
    assert!(piped.contains("error: ") && !piped.contains('\x1b'), "{piped:?}");
    // `script` gives it a terminal.
    let command = format!("{program} status");
    let shown = run("script", &["-qec", &command, "/dev/null"]);
    assert!(shown.contains("\x1b[1;31merror:\x1b[0m"), "{shown:?}");
    let command = format!("NO_COLOR=1 {program} status");
    assert!(!run("script", &["-qec", &command, "/dev/null"]).contains("\x1b["), "NO_COLOR");
}
