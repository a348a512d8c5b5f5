//! Much of everything: collections, deletes, collections that are written anew. Small among the other tests; `make many` has
//! it in the numbers of a large application.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use mongodb::bson::{Document, doc};

use crate::support::{
    PATIENCE,
    agent::Agent,
    equal::equal,
    eventually, from_env,
    mongod::Mongod,
    orders, pair,
    slow_line::{Shape, SlowLine},
};

/// How much of it: by a variable of the environment, or little.
fn number(name: &str, little: i32) -> i32 {
    from_env(name).unwrap_or(little)
}

/// Longer where there is more to do.
fn patience(number: i32, in_a_second: i32) -> Duration {
    PATIENCE + Duration::from_secs(u64::try_from(number / in_a_second).unwrap())
}

/// Each collection is five files there, of which a server keeps open what it has used in the last ten minutes: for 10,000 more
/// than a process may have open on many a machine. So large a number has servers that keep them for a second.
async fn pair_for(collections: i32) -> (Mongod, Mongod) {
    if collections < 1_000 {
        return pair().await;
    }
    let start = async || {
        let parameters = ["IdleTime=1", "ScanInterval=1", "Minimum=100"];
        let parameters = parameters.map(|of| format!("wiredTigerFileHandleClose{of}"));
        let mut args = vec!["--replSet", "rs"];
        args.extend(parameters.iter().flat_map(|parameter| ["--setParameter", parameter]));
        let server = Mongod::start_with(&args).await;
        server.initiate().await;
        server
    };
    tokio::join!(start(), start())
}

#[tokio::test(flavor = "multi_thread")]
async fn many_collections_with_three_indexes_each_are_copied_and_told_of_in_little_space() {
    const DATABASES: i32 = 8;
    let n = number("OUTRIGGER_COLLECTIONS", 48);
    let (local, atlas) = pair_for(n).await;
    let make = async |database: i32| {
        let db = local.client.database(&format!("shop{database}"));
        for collection in (0..n).filter(|of| of % DATABASES == database) {
            let name = format!("c{collection}");
            db.collection(&name).insert_one(doc! { "_id": 1, "a": 1, "b": 1 }).await.unwrap();
            let index = |field: &str| doc! { "key": { field: 1 }, "name": field };
            let indexes = ["a", "b", "c"].map(index).to_vec();
            db.run_command(doc! { "createIndexes": name, "indexes": indexes }).await.unwrap();
        }
    };
    join_all((0..DATABASES).map(make)).await;

    let began = Instant::now();
    let agent = Agent::started(&local.uri(), &atlas.uri());
    eventually("the phase `streaming`", patience(n, 5), async || {
        agent.health().is_some_and(|health| health["phase"] == "streaming")
    })
    .await;
    let streaming = began.elapsed();
    equal(&local, &atlas, patience(n, 5)).await;
    let told = agent.health().unwrap().to_string().len();
    let status = agent.cli(&["status"]).stdout.len();
    println!("{n} collections: streaming after {streaming:?}, equal after {:?}", began.elapsed());
    println!("health {told} bytes, status {status} bytes");
    assert!(told < 20_000 && status < 20_000, "{told}, {status}");

    for of in (0..n).step_by(15) {
        let db = local.client.database(&format!("shop{}", of % DATABASES));
        db.collection::<Document>(&format!("c{of}")).insert_one(doc! { "_id": 2 }).await.unwrap();
    }
    equal(&local, &atlas, patience(n, 20)).await;
}

/// 2 Mbit/s and a tenth of a second.
#[tokio::test(flavor = "multi_thread")]
async fn many_deletes_at_once_go_over_a_slow_line() {
    let n = number("OUTRIGGER_DELETES", 20_000);
    let (local, atlas) = pair().await;
    for part in 0..n / 10_000 {
        let some = (0..10_000).map(|id| doc! { "_id": part * 10_000 + id });
        orders(&local).insert_many(some).await.unwrap();
    }
    let shape = Shape { round_trip: Duration::from_millis(100), bits_per_second: 2_000_000 };
    let line = SlowLine::to(atlas.port, shape).await;
    let agent = Agent::started(&local.uri(), &line.uri());
    eventually("the phase `streaming`", patience(n, 1_000), async || {
        agent.health().is_some_and(|health| health["phase"] == "streaming")
    })
    .await;
    equal(&local, &atlas, patience(n, 1_000)).await;
    let (before, _) = line.carried();
    let began = Instant::now();

    orders(&local).delete_many(doc! {}).await.unwrap();
    eventually("the last of it", patience(n, 1_000), async || {
        orders(&atlas).estimated_document_count().await.unwrap() == 0
    })
    .await;
    let sent = line.carried().0 - before;
    println!("{n} deletes: {:?}, {sent} bytes", began.elapsed());
    equal(&local, &atlas, PATIENCE).await;
}

/// What `mongorestore --drop` does: each collection is dropped, made with its options, filled side by side with others, and
/// indexed at the end; and once more before the first time has gone through. A report is merged from them meanwhile.
async fn restored(local: &Mongod, collection: i32) {
    let shop = local.client.database("shop");
    let name = format!("c{collection}");
    for round in 0..3 {
        shop.collection::<Document>(&name).drop().await.unwrap();
        let options = doc! { "create": &name, "validator": { "round": round } };
        shop.run_command(options).await.unwrap();
        for part in 0..4 {
            let first = part * 250;
            let some = (first..first + 250).map(|id| doc! { "_id": id, "round": round, "u": id });
            shop.collection(&name).insert_many(some).await.unwrap();
        }
        let by = doc! { "key": { "u": 1 }, "name": format!("u{round}"), "unique": true };
        shop.run_command(doc! { "createIndexes": &name, "indexes": [by] }).await.unwrap();
        let into = doc! { "into": "report", "whenMatched": "merge", "whenNotMatched": "insert" };
        let stages = [doc! { "$set": { &name: round } }, doc! { "$merge": into }];
        shop.collection::<Document>(&name).aggregate(stages).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn collections_that_are_restored_and_merged_again_and_again_end_equal() {
    let (local, atlas) = pair().await;
    let agent = Agent::started(&local.uri(), &atlas.uri());
    agent.streaming().await;

    join_all((0..5).map(|collection| restored(&local, collection))).await;
    equal(&local, &atlas, 2 * PATIENCE).await;
    assert!(agent.is_running());
}
