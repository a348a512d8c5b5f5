//! Property 11, where another test would end the same with a program that ignores the setting: each key here has a value
//! under which something is seen that its default never shows. `scripts/settings` holds them to that.

use std::{path::Path, process::Command, time::Duration};

use mongodb::bson::{Document, doc};
use outrigger::{
    config,
    source::{EventStream, Source, StartFrom, outbox::OutboxSource},
};

use crate::support::{
    PATIENCE,
    agent::Agent,
    api::Api,
    equal::equal,
    eventually,
    mongod::Mongod,
    orders,
    outbox::{Program, World},
    pair,
    postgres::Postgres,
    root,
    unasked::Unasked::Retries,
};

/// What a command says, and whether it is content.
fn check(agent: &Agent) -> (bool, String) {
    let output = agent.cli(&["check"]);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.success(), text(&output.stdout) + &text(&output.stderr))
}

#[tokio::test(flavor = "multi_thread")]
async fn property_11_both_ends_are_those_that_the_file_names_or_holds_the_names_of() {
    let (local, atlas) = pair().await;
    for key in ["uri", "uri_file"] {
        let mut agent = Agent::new("", "", "");
        for (section, server) in [("local", &local), ("atlas", &atlas)] {
            let value = if key == "uri" {
                server.uri()
            } else {
                let file = agent.dir.path().join(section);
                std::fs::write(&file, server.uri()).unwrap();
                file.display().to_string()
            };
            let section = format!("[{section}]\n");
            agent.replace_setting(&section, &format!("{section}{key} = {value:?}\n"));
        }
        agent.start(&["--adopt"]);
        agent.streaming().await;
        orders(&local).insert_one(doc! { "_id": key }).await.unwrap();

        eventually("the document of one end in the other", PATIENCE, async || {
            orders(&atlas).find_one(doc! { "_id": key }).await.unwrap().is_some()
        })
        .await;
        assert!(agent.stop().success());
    }
}

/// A key holds no password, so that it is seen by whose door is found locked; a file does.
#[tokio::test(flavor = "multi_thread")]
async fn property_11_a_postgres_is_the_one_that_the_file_names_or_holds_the_name_of() {
    let (world, local) = tokio::join!(World::start(), Mongod::start());
    let postgres = Postgres::start().await;
    let to_postgres = Agent::into_postgres(&local.uri(), "", "[postgres]\nuri_file = \"uri\"\n");
    let routes = world.text("").split_once("[[route]]").map(|it| format!("[[route]]{}", it.1));
    let from_outbox = Agent::unprepared_outbox("", &world.mongod.uri(), &routes.unwrap());
    from_outbox.replace_setting("[outbox]\n", "[outbox]\nuri_file = \"uri\"\n");
    for (agent, server) in [(&to_postgres, &postgres), (&from_outbox, &world.postgres)] {
        std::fs::write(agent.dir.path().join("uri"), server.uri()).unwrap();
        let (is_content, said) = check(agent);
        assert!(is_content, "{said}");

        let nobody = format!("postgres://127.0.0.1:{}/postgres?sslmode=disable", server.port);
        agent.replace_setting("uri_file = \"uri\"", &format!("uri = {nobody:?}"));
        let (is_content, said) = check(agent);
        assert!(!is_content && said.contains("password"), "{said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn property_11_rows_of_an_outbox_are_read_so_many_at_once() {
    let world = World::start().await;
    let fill = "INSERT INTO outbox (event_type, entity_id, payload) \
                SELECT 'todo.saved', n::text, '{}' FROM generate_series(1, 450) n";
    world.postgres.ask(fill).await;
    for size in [100, 200] {
        let uri = world.postgres.uri();
        let env = |name: &str| (name == "OUTBOX_URI").then(|| uri.clone());
        let text = world.text("").replace("batch_size = 100", &format!("batch_size = {size}"));
        let config = config::parse(&text, Path::new("config.toml"), env).unwrap();
        let source = OutboxSource::new(&config).unwrap();
        let mut stream = source.open(&StartFrom::Now).await.unwrap();

        // A look may come to nothing.
        let mut rows = 0;
        while rows == 0 {
            rows = stream.next().await.unwrap().events.len();
        }

        assert_eq!(rows, size);
        drop(stream);
        world.postgres.ask("UPDATE outrigger_outbox SET expires_at = now()").await;
    }
}

/// One who is told of rows has no need to look; one who is not told finds them when it looks, which here is much later.
#[tokio::test(flavor = "multi_thread")]
async fn property_11_an_outbox_is_looked_at_as_often_as_configured_and_listened_to_if_so() {
    let world = World::start().await;
    let mut program = Program::new(&world, "p", "");
    let path = program.dir.join("config.toml");
    let text = std::fs::read_to_string(&path).unwrap();
    for (n, listen) in [true, false].into_iter().enumerate() {
        let waits = format!("poll = \"1m\"\nlisten = {listen}");
        std::fs::write(&path, text.replace("poll = \"100ms\"", &waits)).unwrap();
        world.write("todo.saved", &format!("before {n}"), "{}").await;
        program.start();
        // Read at the start, before the first wait.
        eventually("what is there already", PATIENCE / 2, async || {
            world.todos().await.len() == 2 * n + 1
        })
        .await;

        world.write("todo.saved", &format!("behind {n}"), "{}").await;

        if listen {
            let has_come = async || world.todos().await.len() == 2;
            eventually("what it was told of", PATIENCE / 2, has_come).await;
        } else {
            tokio::time::sleep(Duration::from_secs(5)).await;
            assert_eq!(world.todos().await.len(), 3, "nobody has told it, and it has not looked");
        }
        program.kill();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn property_11_what_is_rejected_waits_as_long_as_configured() {
    let (local, atlas) = pair().await;
    let config = "[worker]\nretry_delays = [\"1h\"]\n[log]\nlevel = \"debug\"\n";
    let mut agent = Agent::new(&local.uri(), &atlas.uri(), config);
    agent.may(&[Retries], "the test provokes it");
    for (n, (delay, seconds)) in [("1h", 3_600_u64), ("20m", 1_200)].into_iter().enumerate() {
        agent.replace_setting("1h", delay);
        agent.start(&[]);
        agent.streaming().await;
        let commands = ["insert", "update"].as_slice();
        let refuse =
            doc! { "failCommands": commands, "namespace": "shop.orders", "errorCode": 121 };
        atlas.fail(refuse, i32::MAX).await;
        orders(&local).insert_one(doc! { "_id": i32::try_from(n).unwrap() }).await.unwrap();

        let waits = || -> Vec<u64> {
            let log = agent.log();
            let waits = log.lines().filter(|line| line.contains("tried again later"));
            let of = |line: &str| line.split_once("wait_ms=")?.1.split(' ').next()?.parse().ok();
            waits.filter_map(of).collect()
        };
        eventually("the document is put off", PATIENCE, async || waits().len() > n).await;

        // Spread by a tenth.
        assert!(waits()[n].abs_diff(seconds * 1_000) <= seconds * 100, "{:?}", waits());
        atlas.end_failing().await;
        agent.stop();
    }
}

/// A field that only the copy has is gone with a whole document, and stays beside what a delta sets.
#[tokio::test(flavor = "multi_thread")]
async fn property_11_an_update_is_sent_as_configured() {
    let (local, atlas) = pair().await;
    let mut agent = Agent::new(&local.uri(), &atlas.uri(), "[worker]\nupdate_mode = \"delta\"\n");
    orders(&local).insert_one(doc! { "_id": 1, "n": 0 }).await.unwrap();
    for (n, mode, stays) in [(1, "delta", true), (2, "document", false)] {
        agent.replace_setting("delta", mode);
        agent.start(&[]);
        agent.streaming().await;
        eventually("the document", PATIENCE, async || {
            orders(&atlas).count_documents(doc! { "n": n - 1 }).await.unwrap() == 1
        })
        .await;
        let planted = doc! { "$set": { "planted": true } };
        orders(&atlas).update_one(doc! { "_id": 1 }, planted).await.unwrap();

        orders(&local).update_one(doc! { "_id": 1 }, doc! { "$set": { "n": n } }).await.unwrap();

        let mut there = None;
        eventually("the update", PATIENCE, async || {
            there = orders(&atlas).find_one(doc! { "_id": 1, "n": n }).await.unwrap();
            there.is_some()
        })
        .await;
        assert_eq!(there.unwrap().contains_key("planted"), stays, "{mode}");
        agent.stop();
    }
}

/// Each of them writes to Atlas, which answers none.
#[tokio::test(flavor = "multi_thread")]
async fn property_11_so_many_ranges_are_copied_at_the_same_time() {
    let (local, atlas) = pair().await;
    for n in 0..6 {
        let collection = local.client.database("shop").collection::<Document>(&format!("c{n}"));
        collection.insert_one(doc! { "_id": 1 }).await.unwrap();
    }
    let mut agent = Agent::new(&local.uri(), &atlas.uri(), "[sync]\nparallel = 3\n");
    agent.replace_setting("timeout = \"5s\"\n[local]", "timeout = \"1m\"\n[local]");
    let hang = doc! { "failCommands": ["insert"], "blockConnection": true, "blockTimeMS": 10_000 };
    atlas.fail(hang, i32::MAX).await;
    let under_way = async || {
        let inserts = doc! { "$match": { "command.insert": { "$regex": "^c" } } };
        let admin = atlas.client.database("admin");
        let mut found = admin.aggregate([doc! { "$currentOp": {} }, inserts]).await.unwrap();
        let mut many = 0;
        while found.advance().await.unwrap() {
            many += 1;
        }
        many
    };

    agent.start(&[]);

    eventually("three inserts", PATIENCE, async || under_way().await == 3).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(under_way().await, 3);
    agent.kill();
    atlas.end_failing().await;
}

/// Out of disk space, which is over at once for whoever asks again.
fn full() -> Document {
    let commands = ["insert", "update"].as_slice();
    doc! { "failCommands": commands, "namespace": "shop.orders", "errorCode": 14_031 }
}

/// Each failure doubles the pause: with as many of them it would be hours without the bound.
#[tokio::test(flavor = "multi_thread")]
async fn property_11_no_pause_before_atlas_is_longer_than_configured() {
    let (local, atlas) = pair().await;
    let mut agent = Agent::new(&local.uri(), &atlas.uri(), "");
    let shortest = "open_for = \"100ms\"\nopen_for_max = \"100ms\"";
    agent.replace_setting("open_for = \"200ms\"\nopen_for_max = \"1s\"", shortest);
    agent.start(&[]);
    agent.streaming().await;
    atlas.fail(full(), 60).await;

    orders(&local).insert_one(doc! { "_id": 1 }).await.unwrap();

    equal(&local, &atlas, PATIENCE).await;
    atlas.end_failing().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn property_11_the_breaker_stays_closed_for_as_many_failures_as_configured() {
    let (local, atlas) = pair().await;
    let mut agent = Agent::new(&local.uri(), &atlas.uri(), "");
    agent.replace_setting("[breaker]\n", "[breaker]\nfailure_threshold = 1000\n");
    agent.start(&[]);
    agent.streaming().await;
    atlas.fail(full(), 10).await;

    orders(&local).insert_one(doc! { "_id": 1 }).await.unwrap();

    equal(&local, &atlas, PATIENCE).await;
    atlas.end_failing().await;
    assert_eq!(Api::of(&agent).get("/api/sync/metrics").1["breakerOpenings"], 0);
}

/// Which takes most of a minute; by default all are there in one second.
#[tokio::test(flavor = "multi_thread")]
async fn property_11_a_copy_reads_no_faster_than_configured() {
    let (local, atlas) = pair().await;
    let documents = (0..5_000).map(|id| doc! { "_id": id });
    orders(&local).insert_many(documents).await.unwrap();
    let there = async || orders(&atlas).count_documents(doc! {}).await.unwrap();
    let config = "[sync]\nmax_docs_per_second = 100\n";
    let mut agent = Agent::new(&local.uri(), &atlas.uri(), config);
    agent.start(&[]);
    eventually("the first documents", PATIENCE, async || there().await > 0).await;

    tokio::time::sleep(Duration::from_secs(3)).await;

    let there = there().await;
    assert!(there < 2_500, "{there}");
    assert_eq!(agent.health().unwrap()["phase"], "copying");
    agent.kill();
}

/// What `scripts/settings` relies on: the value is still checked, and then has no effect.
#[tokio::test]
async fn a_program_that_is_told_to_ignore_a_key_goes_by_its_default() {
    let nowhere = "mongodb://127.0.0.1:1/?directConnection=true";
    let with = |config: &str, variable: (&str, &str), ignored: &str| {
        let mut agent = Agent::new(nowhere, nowhere, config);
        agent.set_env(variable.0, variable.1);
        agent.set_env("OUTRIGGER_TEST_IGNORES", ignored);
        let output = agent.cli(&["run"]);
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let off = "[sync]\nenabled = false\n";
    let none = ("SYNC_ENABLED", "");

    assert_eq!(with(off, none, "worker.lanes").0, Some(0), "the others count");
    // Nobody is there, which it only finds out if it does anything.
    assert_eq!(with(off, none, "sync.enabled").0, Some(3));
    assert_eq!(with("", ("SYNC_ENABLED", "false"), "sync.enabled").0, Some(3));
    let (code, text) = with("[worker]\nlanes = 0\n", none, "worker.lanes");
    assert!(code == Some(2) && text.contains("`worker.lanes` = 0"), "{text}");
    let (code, text) = with("", none, "local.uri");
    assert!(code == Some(2) && text.contains("MONGODB_LOCAL_URI"), "{text}");
}

#[test]
fn the_script_that_has_settings_ignored_believes_no_test_that_fails_for_another_reason() {
    let verdict = |key: &str, as_it_is: (i32, &str), ignoring: (i32, &str)| {
        let call = format!(
            "from importlib.machinery import SourceFileLoader as S; m = S('s', {:?}).load_module(); \
             print(*m.verdict({key:?}, 'a_test', {as_it_is:?}, {ignoring:?}))",
            root().join("scripts/settings").display().to_string()
        );
        let python = Command::new("python3").args(["-B", "-W", "ignore", "-c", &call]).output();
        let output = python.unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let passes = (0, "test result: ok. 1 passed; 0 failed");
    let fails =
        (101, "thread 'a_test' panicked at tests/a.rs:1:2:\nthree batches: not within 60s\n");
    let refused = "thread 'a_test' panicked at tests/a.rs:1:2:\nstreaming: not within 60s\n\
                   --- the agent's log ---\nerror: no connection string for Atlas\n  cause: MONGODB_ATLAS_URI is empty\n";

    let noticed = verdict("worker.lanes", passes, fails);
    assert!(noticed.starts_with("True") && noticed.contains("three batches"), "{noticed}");
    for (key, as_it_is, ignoring, says) in [
        ("worker.lanes", passes, passes, "does not notice"),
        ("worker.lanes", fails, fails, "fails as it is"),
        ("worker.lanes", (0, "0 passed"), fails, "was not run"),
        (
            "worker.lanes",
            (0, "NOT PROVED: root: there is no root\n1 passed"),
            fails,
            "proves nothing",
        ),
        ("worker.lanes", passes, (124, "no end"), "no assertion"),
        ("worker.lanes", passes, (101, refused), "no connection string for Atlas"),
    ] {
        let told = verdict(key, as_it_is, ignoring);
        assert!(told.starts_with("False") && told.contains(says), "{says}: {told}");
    }
    // What it cannot do without is missed by its name.
    assert!(verdict("atlas.uri", passes, (101, refused)).starts_with("True"));
}
