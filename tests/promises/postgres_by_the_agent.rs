//! The program replicates into PostgreSQL, and is asked about it: compared, repaired, and restored from.

use mongodb::bson::{Bson, doc};
use rand::{SeedableRng, rngs::StdRng};
use serde_json::Value;

use super::into_postgres::{DECLARED, odd_document, odd_id};
use crate::support::{
    PATIENCE,
    agent::Agent,
    equal::{MayDiffer, differences, everything},
    eventually,
    mongod::Mongod,
    odd, orders,
    postgres::Postgres,
    seed,
    unasked::Unasked,
};

fn told(output: &std::process::Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// Missing, extra, different, as `verify` finds them.
fn verified(agent: &Agent) -> [u64; 3] {
    let report = agent.cli_json(&["verify"]).expect("it compares");
    let of = |kind: &str| -> u64 {
        let namespaces = report["namespaces"].as_array().unwrap();
        namespaces.iter().map(|ns| ns[kind]["count"].as_u64().unwrap()).sum()
    };
    let found = ["missing", "extra", "different"].map(of);
    assert_eq!(report["equal"], found == [0; 3], "{report}");
    found
}

fn document(agent: &Agent, id: &str) -> Value {
    agent.cli_json(&["doc", "shop.orders", id]).expect("it looks the document up")
}

#[tokio::test(flavor = "multi_thread")]
async fn each_row_says_when_its_document_was_changed_in_mongodb() {
    let (local, target) = tokio::join!(Mongod::start(), Postgres::start());
    orders(&local).insert_one(doc! { "_id": 1 }).await.unwrap();
    let mut agent = Agent::into_postgres(&local.uri(), &target.uri(), DECLARED);
    agent.start(&[]);
    agent.streaming().await;
    let times = "SELECT id || ' ' || coalesce((extract(epoch FROM source_time) * 1000)::bigint::text, 'NULL') FROM shop.orders ORDER BY _id";
    let copied = "{\"$numberInt\":\"1\"} NULL";
    assert_eq!(target.ask(times).await, [copied], "nobody knows that of a first copy");

    // It is written later than it was changed.
    assert!(agent.cli(&["pause", "--reason", "a test"]).status.success());
    orders(&local).insert_one(doc! { "_id": 2 }).await.unwrap();
    let change = doc! { "$set": { "v": 1 } };
    orders(&local).update_one(doc! { "_id": 2 }, change).await.unwrap();
    let oplog = local.client.database("local").collection::<mongodb::bson::Document>("oplog.rs");
    let update = doc! { "ns": "shop.orders", "op": "u" };
    // The server may have one of an earlier test.
    let update = oplog.find_one(update).sort(doc! { "$natural": -1 }).await.unwrap();
    let update = update.expect("the update");
    let changed = update.get_datetime("wall").unwrap().timestamp_millis();
    agent.queued(1).await;
    assert!(agent.cli(&["resume"]).status.success());
    eventually("the row", PATIENCE, async || {
        target.ask(times).await.get(1) == Some(&format!("{{\"$numberInt\":\"2\"}} {changed}"))
    })
    .await;
    let later = "SELECT id FROM shop.orders WHERE synced_at > source_time";
    assert_eq!(target.ask(later).await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sync_repairs_what_verify_finds_in_postgres_and_deletes_no_more_than_it_may() {
    let (local, target) = tokio::join!(Mongod::start(), Postgres::start());
    let mut random = StdRng::seed_from_u64(seed());
    for id in 0..300 {
        orders(&local).insert_one(odd_document(&mut random, Bson::Int32(id))).await.unwrap();
    }
    let mut agent = Agent::into_postgres(&local.uri(), &target.uri(), DECLARED);
    agent.may(&[Unasked::Repair], "somebody changes rows by hand");
    agent.start(&[]);
    agent.streaming().await;
    assert_eq!(verified(&agent), [0; 3]);

    let row = |id: i32| format!("WHERE id = '{{\"$numberInt\":\"{id}\"}}'");
    target.ask(&format!("UPDATE shop.orders SET doc = '{{}}' {}", row(1))).await;
    target.ask(&format!("UPDATE shop.orders SET customer = 'x' {}", row(2))).await;
    let child = "INSERT INTO shop.orders_items SELECT _id, 99 FROM shop.orders";
    target.ask(&format!("{child} {}", row(3))).await;
    target.ask(&format!("DELETE FROM shop.orders {}", row(4))).await;
    let strangers = "INSERT INTO shop.orders (_id, id, doc, hash, shape) \
                     SELECT convert_to('x' || n, 'UTF8'), 'x', '{}', '', 0 FROM generate_series(1, ";
    target.ask(&format!("{strangers}1) n")).await;
    assert_eq!(verified(&agent), [1, 1, 3]);
    assert_eq!(document(&agent, "1")["state"], "FAILED");

    let dry = agent.cli(&["sync", "--dry-run", "--wait"]);
    assert_eq!(dry.status.code(), Some(1), "{}", told(&dry));
    assert_eq!(verified(&agent), [1, 1, 3], "nothing was written");

    let repaired = agent.cli(&["sync", "--wait"]);
    assert!(repaired.status.success(), "{}", told(&repaired));
    eventually("it is repaired", PATIENCE, async || verified(&agent) == [0; 3]).await;
    let found = document(&agent, "1");
    assert_eq!((&found["state"], &found["inAtlas"]), (&"SYNCED".into(), &true.into()));
    assert!(found["lastSync"].is_string(), "{found}");

    target.ask(&format!("{strangers}200) n")).await;
    let refused = agent.cli(&["sync", "--wait"]);
    assert!(!refused.status.success(), "{}", told(&refused));
    assert_eq!(target.ask("SELECT count(*) FROM shop.orders WHERE id = 'x'").await, ["200"]);
    let allowed = agent.cli(&["sync", "--wait", "--allow-mass-delete"]);
    assert!(allowed.status.success(), "{}", told(&allowed));
    eventually("it is repaired", PATIENCE, async || verified(&agent) == [0; 3]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_view_on_a_column_that_is_declared_anew_is_said_at_the_start_and_loses_no_document() {
    let (local, target) = tokio::join!(Mongod::start(), Postgres::start());
    orders(&local).insert_many((0..20).map(|id| doc! { "_id": id, "v": id })).await.unwrap();
    let mut agent = Agent::into_postgres(&local.uri(), &target.uri(), DECLARED);
    agent.start(&[]);
    agent.streaming().await;
    assert!(agent.stop().success());
    target.ask("CREATE VIEW public.mine AS SELECT v + 1 AS w FROM shop.orders").await;
    agent.replace_setting("path = \"v\"\ntype = \"integer\"", "path = \"v\"\ntype = \"text\"");
    orders(&local).update_one(doc! { "_id": 7 }, doc! { "$set": { "v": "seven" } }).await.unwrap();

    let refused = agent.cli(&["run"]);
    let told = told(&refused);
    assert_eq!(refused.status.code(), Some(2), "{told}");
    for part in ["the column \"v\"", "the view mine stands on it", "drop that first"] {
        assert!(told.contains(part), "{part}: {told}");
    }

    target.ask("DROP VIEW public.mine").await;
    agent.may(&[Unasked::Repair], "a column is made anew");
    agent.start(&[]);
    agent.streaming().await;
    let filled = "SELECT v FROM shop.orders WHERE doc->>'_id' IN ('7', '8') ORDER BY _id";
    eventually("it is filled", PATIENCE, async || {
        target.try_ask(filled).await.is_ok_and(|rows| rows == ["seven", "NULL"])
    })
    .await;
    assert_eq!(agent.health().unwrap()["deadLetters"], 0);
    eventually("all of it", PATIENCE, async || verified(&agent) == [0; 3]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_postgres_refuses_is_failed_to_whoever_asks_until_it_is_written() {
    let (local, target) = tokio::join!(Mongod::start(), Postgres::start());
    orders(&local).insert_many((0..20).map(|id| doc! { "_id": id, "v": id })).await.unwrap();
    let retries = "[worker]\nmax_retries = 1\nretry_delays = [\"50ms\"]\n";
    let mut agent =
        Agent::into_postgres(&local.uri(), &target.uri(), &format!("{retries}{DECLARED}"));
    agent.means_dead_letters(true);
    agent.may(&[Unasked::Retries], "a constraint of somebody's own is in the way");
    agent.start(&[]);
    agent.streaming().await;
    target.ask("ALTER TABLE shop.orders ADD CONSTRAINT small CHECK (v < 100)").await;

    orders(&local).update_one(doc! { "_id": 7 }, doc! { "$set": { "v": 700 } }).await.unwrap();
    eventually("it is given up", PATIENCE, async || document(&agent, "7")["state"] == "FAILED")
        .await;
    let found = document(&agent, "7");
    assert!(found["error"].as_str().unwrap().contains("small"), "{found}");
    assert!(found["since"].is_string(), "{found}");
    let status = "SELECT mongo_id, state, error LIKE '%small%' FROM outrigger.sync_status WHERE state <> 'SYNCED'";
    assert_eq!(target.ask(status).await, ["{\"$numberInt\":\"7\"}|FAILED|t"]);
    assert_eq!(verified(&agent), [0, 0, 1]);

    target.ask("ALTER TABLE shop.orders DROP CONSTRAINT small").await;
    let again = agent.cli(&["dead", "retry", "--all"]);
    assert!(again.status.success(), "{}", told(&again));
    eventually("it is written", PATIENCE, async || document(&agent, "7")["state"] == "SYNCED")
        .await;
    assert_eq!(target.ask(status).await, Vec::<String>::new());
    assert_eq!(target.ask("SELECT count(*) FROM outrigger.sync_status").await, ["20"]);
    assert_eq!(verified(&agent), [0; 3]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_kept_raw_is_restored_byte_for_byte_and_a_hash_is_no_document() {
    let (local, target, empty) = tokio::join!(Mongod::start(), Postgres::start(), Mongod::start());
    let mut random = StdRng::seed_from_u64(seed());
    for _ in 0..200 {
        let id = odd_id(&mut random);
        let _ = orders(&local).insert_one(odd_document(&mut random, id)).await;
    }
    let twice = odd::joined(&odd::raw(&doc! { "_id": "twice" }), &odd::twice("name"));
    let insert = mongodb::bson::rawdoc! { "insert": "orders", "documents": [twice] };
    odd::run(&local, "shop", &insert);
    let hash = "[postgres]\nexact = \"hash\"\n";
    let mut agent = Agent::into_postgres(&local.uri(), &target.uri(), &format!("{hash}{DECLARED}"));
    agent.start(&[]);
    agent.streaming().await;
    assert!(agent.stop().success());

    agent.set_env("MONGODB_LOCAL_URI", &empty.uri());
    let refused = agent.cli(&["restore"]);
    assert_eq!(refused.status.code(), Some(1), "{}", told(&refused));
    assert!(told(&refused).contains("exact = \"raw\""), "{}", told(&refused));
    agent.set_env("MONGODB_LOCAL_URI", &local.uri());

    // Rows that were made by a hash are made again.
    agent.may(&[Unasked::Repair], "what is kept of each document is to be more");
    agent.replace_setting("exact = \"hash\"", "exact = \"raw\"");
    agent.start(&[]);
    agent.streaming().await;
    let all = orders(&local).count_documents(doc! {}).await.unwrap();
    let raw = async || target.ask("SELECT count(raw) FROM shop.orders").await;
    assert!(agent.cli(&["sync", "--wait"]).status.success());
    eventually("each document is kept", PATIENCE, async || raw().await == [all.to_string()]).await;
    assert_eq!(verified(&agent), [0; 3]);
    assert!(agent.stop().success());

    agent.set_env("MONGODB_LOCAL_URI", &empty.uri());
    let restored = agent.cli(&["restore"]);
    assert!(restored.status.success(), "{}", told(&restored));
    assert!(told(&restored).contains("the target keeps none"), "{}", told(&restored));
    let (was, is) = (everything(&local).await.unwrap(), everything(&empty).await.unwrap());
    let found = differences(&was, &is, MayDiffer::Nothing);
    assert!(found.is_empty(), "{found:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_somebody_has_renamed_is_made_anew_and_filled_and_it_is_said() {
    let (local, target) = tokio::join!(Mongod::start(), Postgres::start());
    let line = |id: i32| doc! { "_id": id, "v": id, "items": [{ "sku": "s", "qty": id }] };
    orders(&local).insert_many((0..50).map(line)).await.unwrap();
    let mut agent = Agent::into_postgres(&local.uri(), &target.uri(), DECLARED);
    agent.may(&[Unasked::Repair, Unasked::Doubt], "somebody renames tables by hand");
    agent.start(&[]);
    agent.streaming().await;
    for (round, table) in ["orders", "orders_items"].into_iter().enumerate() {
        target.ask(&format!("ALTER TABLE shop.{table} RENAME TO kept_{round}")).await;

        let change = doc! { "$inc": { "v": 1000 } };
        orders(&local).update_one(doc! { "_id": 7 }, change).await.unwrap();
        let rows = format!("SELECT count(*) FROM shop.{table}");
        eventually("all of it is there", PATIENCE, async || {
            target.try_ask(&rows).await.is_ok_and(|rows| rows == ["50"])
        })
        .await;

        eventually("nothing differs", PATIENCE, async || verified(&agent) == [0; 3]).await;
        let said = format!("the table shop.{table} of shop.orders is gone: somebody has renamed");
        assert!(agent.log().contains(&said), "{}", agent.log());
        assert_eq!(target.ask(&format!("SELECT count(*) FROM shop.kept_{round}")).await, ["50"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn values_that_a_column_cannot_take_are_counted_by_column_and_shown() {
    let (local, target) = tokio::join!(Mongod::start(), Postgres::start());
    let of = |id: i32| {
        let qty = if id % 2 == 0 { Bson::Int32(id) } else { "many".into() };
        doc! { "_id": id, "v": "no number", "items": [{ "sku": "s", "qty": qty }, { "qty": 1 }] }
    };
    orders(&local).insert_many((0..20).map(of)).await.unwrap();
    let mut agent = Agent::into_postgres(&local.uri(), &target.uri(), DECLARED);
    agent.start(&[]);
    agent.streaming().await;

    let told = |column: &str, values: u64| serde_json::json!({ "ns": "shop.orders", "column": column, "values": values });
    let misfits = agent.health().unwrap()["misfits"].clone();
    assert_eq!(misfits, serde_json::json!([told("orders_items.qty", 10), told("v", 20)]));
    let status = agent.cli(&["status"]);
    let line =
        "column   `orders_items.qty` of `shop.orders`: 10 values of another type, NULL there";
    assert!(self::told(&status).contains(line), "{}", self::told(&status));
    let url = format!("http://127.0.0.1:{}/metrics", agent.admin_port);
    let metrics = ureq::get(url).call().unwrap().body_mut().read_to_string().unwrap();
    let line = "outrigger_misfits_total{column=\"v\",ns=\"shop.orders\"} 20";
    assert!(metrics.contains(line), "{metrics}");
    let null = "SELECT count(*) FROM shop.orders WHERE v IS NULL";
    assert_eq!(target.ask(null).await, ["20"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_somebody_removes_are_found_by_counting() {
    let (local, target) = tokio::join!(Mongod::start(), Postgres::start());
    orders(&local).insert_many((0..300).map(|id| doc! { "_id": id, "v": id })).await.unwrap();
    let counting = "[sync]\ncount_check_every = \"1s\"\n";
    let mut agent =
        Agent::into_postgres(&local.uri(), &target.uri(), &format!("{counting}{DECLARED}"));
    agent.may(&[Unasked::Repair], "somebody removes rows by hand");
    agent.start(&[]);
    agent.streaming().await;
    target.ask("DELETE FROM shop.orders WHERE v >= 260").await;

    let alerts = || agent.health().map(|health| health["alerts"].to_string()).unwrap_or_default();
    eventually("the alert", PATIENCE, async || {
        alerts().contains("300 documents locally and 260 in PostgreSQL")
    })
    .await;
    assert!(agent.cli(&["sync", "--wait"]).status.success());
    eventually("it is over", PATIENCE, async || !alerts().contains("documents locally")).await;
    assert_eq!(verified(&agent), [0; 3]);
}

/// As large as MongoDB takes them, to the byte; what JSON makes of the second one is six times as long.
#[tokio::test(flavor = "multi_thread")]
async fn documents_of_sixteen_megabytes_are_rows_whatever_is_in_them() {
    let (local, target) = tokio::join!(Mongod::start(), Postgres::start());
    for (id, sign) in [(1, "x"), (2, "\u{1}")] {
        let of = |text: &str| doc! { "_id": id, "v": 0, "customer": { "name": text } };
        let document = of(&sign.repeat((16 << 20) - odd::raw(&of("")).as_bytes().len()));
        assert_eq!(odd::raw(&document).as_bytes().len(), 16 << 20);
        orders(&local).insert_one(document).await.unwrap();
    }
    let mut agent = Agent::into_postgres(&local.uri(), &target.uri(), DECLARED);
    agent.replace_setting("timeout = \"5s\"", "timeout = \"30s\"");
    agent.may(&[Unasked::Memory], "two documents of 16 MB at once, and their JSON");
    agent.start(&[]);
    agent.streaming().await;
    let rows = async |v: i32| {
        let sql = "SELECT id FROM shop.orders WHERE octet_length(customer) > 16777100 AND v";
        target.ask(&format!("{sql} = {v}")).await.len()
    };
    assert_eq!(rows(0).await, 2, "copied");

    orders(&local).update_many(doc! {}, doc! { "$set": { "v": 1 } }).await.unwrap();

    eventually("each is written again", PATIENCE, async || rows(1).await == 2).await;
    assert_eq!(verified(&agent), [0; 3]);
}
