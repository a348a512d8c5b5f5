//! The whole program with an outbox as its source.

use std::{sync::Arc, time::Duration};

use mongodb::{
    IndexModel,
    bson::{Bson, Document, doc},
    options::IndexOptions,
};
use tokio::task::JoinSet;

use crate::support::{
    PATIENCE, eventually,
    outbox::{Program, World, transaction, work},
};

#[tokio::test(flavor = "multi_thread")]
async fn kills_of_the_agent_and_of_both_databases_lose_nothing_and_put_nothing_in_another_order() {
    let mut world = World::start().await;
    let mut program = Program::started(&world, "agent", "");
    let is_over = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let mut writing = JoinSet::new();
    for writer in 0..4_u64 {
        let (is_over, uri) = (is_over.clone(), world.postgres.uri());
        writing.spawn(async move {
            let mut n = writer << 32;
            while !is_over.load(std::sync::atomic::Ordering::Relaxed) {
                let connected = tokio_postgres::connect(&uri, tokio_postgres::NoTls).await;
                let Ok((mut client, connection)) = connected else {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                };
                tokio::spawn(connection);
                // What a commit without an answer has come to is in the model as well.
                while !is_over.load(std::sync::atomic::Ordering::Relaxed)
                    && transaction(&mut client, n).await.is_ok()
                {
                    n += 1;
                }
            }
        });
    }
    let processed = "SELECT count(*) FROM outbox WHERE processed_at IS NOT NULL";
    let count =
        async |world: &World| world.postgres.ask(processed).await[0].parse::<u64>().unwrap();
    for round in 0..5 {
        let before = count(&world).await;
        eventually("it reads", PATIENCE, async || count(&world).await > before + 20).await;
        match round {
            1 => {
                world.postgres.kill();
                world.postgres.resume().await;
            }
            3 => {
                world.mongod.kill();
                tokio::time::sleep(Duration::from_millis(500)).await;
                world.mongod.resume().await;
            }
            _ => {
                program.kill();
                program.start();
            }
        }
    }
    is_over.store(true, std::sync::atomic::Ordering::Relaxed);
    while writing.join_next().await.is_some() {}

    world.equal().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_are_copied_at_first_and_compared_and_mended_when_somebody_asks() {
    let world = World::start().await;
    let ask = async |sql: &str| world.postgres.ask(sql).await;
    ask("CREATE TABLE items (id int PRIMARY KEY, title text, price numeric, at timestamptz)").await;
    ask("INSERT INTO items SELECT n, 'item ' || n, n / 4.0, '2026-01-31T10:00:00.5Z' FROM generate_series(1, 3000) n").await;
    let items = world.mongod.client.database("app").collection::<Document>("items");
    let title = IndexModel::builder().keys(doc! { "title": 1 }).build();
    items.create_index(title).await.unwrap();
    let program = Program::started(
        &world,
        "agent",
        "[[table]]\nname = \"items\"\nkey = \"id\"\ncollection = \"app.items\"\ndates = [\"at\"]\ndecimals = [\"price\"]\n",
    );
    eventually("all are copied", PATIENCE, async || {
        items.count_documents(doc! {}).await.unwrap() == 3_000
    })
    .await;
    let one = items.find_one(doc! { "_id": 7 }).await.unwrap().unwrap();
    assert_eq!(one.get("price"), Some(&Bson::Decimal128("1.7500000000000000".parse().unwrap())));
    assert_eq!(one.get_datetime("at").unwrap().timestamp_millis() % 1_000, 500);
    let run = |args: &[&str]| program.run(args);
    eventually("the sides are equal", PATIENCE, async || run(&["verify"]).0 == 0).await;

    // The order of fields is none of theirs.
    items.delete_one(doc! { "_id": 5 }).await.unwrap();
    items.update_one(doc! { "_id": 6 }, doc! { "$set": { "title": "other" } }).await.unwrap();
    items.insert_one(doc! { "_id": 9_000, "title": "nobody's" }).await.unwrap();
    let first = items.find_one(doc! { "_id": 8 }).await.unwrap().unwrap();
    let mut turned = doc! { "_id": 8 };
    turned.extend(
        first.into_iter().filter(|(name, _)| name != "_id").collect::<Vec<_>>().into_iter().rev(),
    );
    items.replace_one(doc! { "_id": 8 }, turned).await.unwrap();
    let (code, told) = run(&["verify", "--json"]);
    assert_eq!(code, 1, "{told}");
    let (code, told) = run(&["sync", "--wait"]);
    assert_eq!(code, 0, "{told}");

    assert_eq!(run(&["verify"]).0, 0);
    assert!(items.find_one(doc! { "_id": 9_000 }).await.unwrap().is_none());
    assert_eq!(items.list_index_names().await.unwrap(), ["_id_", "title_1"], "it is somebody's");
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_are_walked_by_the_index_of_their_keys_whatever_type_those_have() {
    let world = World::start().await;
    let ask = async |sql: &str| world.postgres.ask(sql).await;
    // In the order of the database's own collation `a` comes before `B`; the index that serves MongoDB's is somebody's.
    let tables = [
        ("uuids", "uuid", "md5(n::text)::uuid", 3_000),
        ("bytes", "text COLLATE \"C\"", "chr(65 + n % 50) || n", 3_000),
        // Few rows are sorted in no time.
        ("texts", "text COLLATE \"und-x-icu\"", "chr(65 + n % 50) || n", 10_100),
        ("wholes", "bigint", "n * 7 - 500", 10_100),
    ];
    for (name, ty, key, rows) in tables {
        ask(&format!("CREATE TABLE {name} (id {ty} PRIMARY KEY, n int)")).await;
        ask(&format!("INSERT INTO {name} SELECT {key}, n FROM generate_series(1, {rows}) n")).await;
    }
    let config = tables.map(|(name, ..)| {
        format!(
            "[[route]]\nevent = \"{name}.*\"\ncollection = \"app.{name}\"\nkey = \"entity_id\"\nop = \"replace\"\n\
             [[table]]\nname = \"{name}\"\nkey = \"id\"\ncollection = \"app.{name}\"\n"
        )
    });
    let config = config.concat();
    ask("ANALYZE").await;
    let program = Program::new(&world, "agent", &config);
    let (_, told) = program.run(&["check"]);
    for (table, index) in
        [("texts", "(\"id\" COLLATE \"C\")"), ("wholes", "((\"id\"::text) COLLATE \"C\")")]
    {
        let statement = format!("CREATE INDEX CONCURRENTLY ON \"{table}\" ({index})");
        assert!(told.contains(&statement), "{statement}: {told}");
        ask(&statement).await;
    }
    ask("ANALYZE").await;
    let (code, told) = program.run(&["check"]);
    assert!(code == 0 && !told.contains("CREATE INDEX CONCURRENTLY"), "{told}");

    let mut program = program;
    program.start();
    let app = world.mongod.client.database("app");
    eventually("all are copied", Duration::from_secs(120), async || {
        program.health().is_some_and(|health| health["phase"] == "streaming")
    })
    .await;
    assert_eq!(program.run(&["verify"]).0, 0);
    let scans = async || {
        let sql = "SELECT relname, seq_scan FROM pg_stat_user_tables WHERE relname IN ('uuids', 'bytes', 'texts', 'wholes') ORDER BY 1";
        let rows = ask(sql).await;
        rows.iter().map(|row| row.split_once('|').unwrap().1.parse::<u64>().unwrap()).sum::<u64>()
    };
    let before = scans().await;
    assert_eq!(program.run(&["verify"]).0, 0);
    // What is counted, and drawn by chance, is read as a whole; what a page or a key needs is not.
    let whole = scans().await - before;
    assert!(whole <= 4 * 4, "{whole} times whole tables were read");

    // Somebody's documents, with keys that no row can have, and one that is missing: each is found.
    let uuids = app.collection::<Document>("uuids");
    for id in ["", "0193A5B0", "zz", "c4ca4238-a0b9-2382-0dcc-509a6f75849B"] {
        uuids.insert_one(doc! { "_id": id }).await.unwrap();
    }
    uuids.delete_one(doc! { "_id": "c4ca4238-a0b9-2382-0dcc-509a6f75849b" }).await.unwrap();
    let texts = app.collection::<Document>("texts");
    texts.update_one(doc! { "_id": "a32" }, doc! { "$set": { "n": 0 } }).await.unwrap();
    let wholes = app.collection::<Document>("wholes");
    wholes.insert_one(doc! { "_id": "007" }).await.unwrap();
    wholes.delete_one(doc! { "_id": "-493" }).await.unwrap();
    wholes.delete_one(doc! { "_id": "200" }).await.unwrap();
    assert_eq!(program.run(&["verify"]).0, 1);
    let (code, told) = program.run(&["sync", "--wait"]);
    assert_eq!(code, 0, "{told}");
    assert_eq!(program.run(&["verify"]).0, 0);
    for (name, _, _, rows) in tables {
        let collection = app.collection::<Document>(name);
        assert_eq!(collection.count_documents(doc! {}).await.unwrap(), rows, "{name}");
    }

    // Somebody gives a key another type while the agent runs.
    ask("ALTER TABLE uuids ALTER id TYPE text").await;
    eventually("it is compared as what it is now", PATIENCE, async || {
        program.run(&["verify"]).0 == 0
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collection_gets_the_indexes_of_its_routes_and_keeps_those_that_somebody_has_made() {
    let world = World::start().await;
    let app = world.mongod.client.database("app");
    let todos = app.collection::<Document>("todos");
    let index = |keys, name: &str| {
        let options = IndexOptions::builder().name(name.to_owned()).build();
        IndexModel::builder().keys(keys).options(options).build()
    };
    // What somebody has made: one that does what one of the routes asks for, one that is in the way of another, and one
    // that nobody asks for.
    let by = |name: &str| index(doc! { "status": 1 }, name);
    todos.create_index(by("by status")).await.unwrap();
    todos.create_index(index(doc! { "other": 1 }, "owner_1")).await.unwrap();
    todos.create_index(index(doc! { "more": 1 }, "more")).await.unwrap();
    world.write("todo.saved", "1", r#"{"code": 1, "status": "a"}"#).await;

    let program = Program::started(
        &world,
        "agent",
        "[[route]]\nevent = \"todo.more\"\ncollection = \"app.todos\"\nkey = \"entity_id\"\nop = \"merge\"\n\
         indexes = [\"status\", \"owner\", \"list.id, -at\", { keys = \"code\", unique = true }]\n\
         [[route]]\nevent = \"list.*\"\ncollection = \"app.lists\"\nkey = \"entity_id\"\nop = \"replace\"\nindexes = [\"-made\"]\n",
    );

    let names = async |collection: &str| {
        let names = app.collection::<Document>(collection).list_index_names().await;
        let mut names = names.unwrap_or_default();
        names.sort();
        names
    };
    let wanted = ["_id_", "by status", "code_1", "list.id_1_at_-1", "more", "owner_1"];
    eventually("they are made", PATIENCE, async || {
        names("todos").await == wanted && names("lists").await == ["_id_", "made_-1"]
    })
    .await;
    let told = async |part: &str| {
        let health = program.health().unwrap_or_default();
        let problems = health["schemaProblems"].to_string();
        problems.contains("`app.todos`: index `owner_1`") && problems.contains(part)
    };
    eventually("what Atlas refuses is told", PATIENCE, async || told("same name").await).await;
    eventually("and keeps no document away", PATIENCE, async || {
        todos.count_documents(doc! {}).await.unwrap() == 1
    })
    .await;

    // A unique one: what is older than the rows that are kept stays, and what collides with it does not hold up the rest.
    todos.insert_one(doc! { "_id": "old", "code": 7 }).await.unwrap();
    world.write("todo.saved", "2", r#"{"code": 7}"#).await;
    world.write("todo.saved", "3", r#"{"code": 8}"#).await;
    eventually("the others flow", PATIENCE, async || {
        todos.count_documents(doc! { "_id": "3" }).await.unwrap() == 1
    })
    .await;
    assert_eq!(todos.count_documents(doc! { "code": 7, "_id": "old" }).await.unwrap(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_in_the_table_is_told_and_while_the_database_is_away_that_it_is_not_known() {
    let mut world = World::start().await;
    let program = Program::started(&world, "agent", "[queue]\nmax_documents = 10\n");
    let health = |program: &Program| program.health().unwrap_or_default();
    eventually("it reads", PATIENCE, async || health(&program)["phase"] == "streaming").await;
    assert_eq!(program.run(&["pause"]).0, 0);
    // As many as a batch has are read, and no more: the queue is full then.
    world
        .postgres
        .ask(
            "INSERT INTO outbox (event_type, entity_id, payload, created_at) \
             SELECT 'todo.saved', n, '{}', clock_timestamp() - interval '1 hour' FROM generate_series(1, 12000) n",
        )
        .await;

    eventually("the rows that wait, and the oldest", PATIENCE, async || {
        let health = health(&program);
        let told = health["alerts"].to_string();
        health["waitingRows"] == 11_900
            && health["oldestRowMs"].as_u64().is_some_and(|ms| (3_600_000..7_200_000).contains(&ms))
            && health["syncLagMs"].as_u64() >= Some(3_600_000)
            && told.contains("11900 rows wait in the outbox")
    })
    .await;
    let (_, told) = program.run(&["status"]);
    assert!(told.contains("outbox   11900 rows to be read, the oldest for"), "{told}");
    assert!(program.metrics().contains("\noutrigger_outbox_rows 11900\n"));

    world.postgres.kill();
    eventually("nobody knows", PATIENCE, async || {
        let health = health(&program);
        health["waitingRows"].is_null()
            && health["lagKnown"] == false
            && health["status"] != "healthy"
    })
    .await;
    assert!(!program.metrics().contains("outrigger_outbox_rows"));
    let connections = program.get("/api/sync/databases").unwrap();
    assert_eq!(connections["local"]["state"], "disconnected", "{connections}");
    assert_eq!(connections["atlas"]["state"], "connected", "{connections}");

    world.postgres.resume().await;
    assert_eq!(program.run(&["resume"]).0, 0);
    eventually("all of it arrives", PATIENCE, async || {
        let health = health(&program);
        health["waitingRows"] == 0
            && health["oldestRowMs"].is_null()
            && health["status"] == "healthy"
    })
    .await;
    assert_eq!(world.todos().await.len(), 12_000);
}

/// The lines for an application are SQL that runs, in the tables that they speak of.
#[tokio::test(flavor = "multi_thread")]
async fn the_lines_that_init_prints_for_an_application_carry_its_change_over() {
    let world = World::start().await;
    world.postgres.ask("ALTER TABLE todos ADD title text").await;
    world.postgres.ask("INSERT INTO todos (id, title) VALUES ('7', 'old')").await;
    let program = Program::started(&world, "agent", "");
    let (code, printed) = program.run(&["outbox", "init"]);
    assert_eq!(code, 0, "{printed}");
    let lines = printed.lines().map(|line| line.trim_start_matches("-- ").trim_end());
    let sql = lines.skip_while(|line| *line != "SQL:").skip(1).take_while(|line| *line != "--");
    let sql = sql.collect::<Vec<_>>().join("\n");
    let statements: Vec<&str> = sql.split(';').map(str::trim).filter(|of| !of.is_empty()).collect();
    let ["BEGIN", update, insert, "COMMIT"] = &statements[..] else { panic!("{statements:?}") };

    let mut client = world.postgres.client().await;
    let transaction = client.transaction().await.unwrap();
    assert_eq!(transaction.execute(*update, &[&"7", &"new"]).await.unwrap(), 1);
    assert_eq!(transaction.execute(*insert, &[&"7"]).await.unwrap(), 1);
    transaction.commit().await.unwrap();

    eventually("it is carried over", PATIENCE, async || {
        world
            .todos()
            .await
            .get("7")
            .is_some_and(|todo| todo.get_str("title").is_ok_and(|title| title == "new"))
    })
    .await;
}

/// What the queue has needs no row any more.
#[tokio::test(flavor = "multi_thread")]
async fn an_outage_of_the_target_that_is_longer_than_the_retention_loses_nothing() {
    let mut world = World::start().await;
    let program = Program::started(&world, "agent", "");
    let mut writing = work(&world, 3, 20).await;
    while writing.join_next().await.is_some() {}
    world.equal().await;
    world.mongod.kill();
    let mut writing = work(&world, 3, 40).await;
    while writing.join_next().await.is_some() {}
    let waiting = "SELECT count(*) FROM outbox WHERE processed_at IS NULL";
    eventually("all are read", PATIENCE, async || world.postgres.ask(waiting).await == ["0"]).await;

    // As if a week had gone by.
    world.postgres.ask("UPDATE outbox SET processed_at = processed_at - interval '8 days'").await;
    let rows = "SELECT count(*) FROM outbox";
    eventually("the rows are gone", PATIENCE, async || world.postgres.ask(rows).await == ["0"])
        .await;
    world.mongod.resume().await;

    world.equal().await;
    assert_eq!(program.health().unwrap()["deadLetters"], 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_table_what_is_compared_says_what_is_missing() {
    let world = World::start().await;
    world.write("todo.saved", "1", "{}").await;
    let program = Program::started(&world, "agent", "");
    eventually("it arrives", PATIENCE, async || {
        world.todos().await.len() == 1
            && program.health().is_some_and(|health| health["phase"] == "streaming")
    })
    .await;
    for args in [&["verify"][..], &["sync", "--wait"], &["sync", "--dry-run", "--wait"]] {
        let (code, told) = program.run(args);
        assert!(code == 2 && told.contains("a `[[table]]` with"), "{args:?}: {code}: {told}");
    }
    let token = std::fs::read_to_string(program.dir.join("outrigger.token")).unwrap();
    let url = format!("http://127.0.0.1:{}/api/sync/full", program.port);
    let asked = ureq::post(url).header("Authorization", format!("Bearer {}", token.trim()));
    let asked = asked.config().http_status_as_error(false).build().send_empty().unwrap();
    assert_eq!(asked.status().as_u16(), 409);
    assert_eq!(world.todos().await.len(), 1);
}
