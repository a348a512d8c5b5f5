//! The first copy: in ranges, of every kind of collection, interrupted by everything, while the
//! application writes.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use mongodb::bson::{Bson, Decimal128, Document, doc, oid::ObjectId};
use rand::{Rng, SeedableRng, rngs::StdRng};

use crate::support::{
    PATIENCE,
    agent::Agent,
    api::Api,
    equal::{MayDiffer, equal, equal_but},
    eventually,
    mongod::Mongod,
    orders, pair,
    proxy::{Line, Proxy},
    seed,
    unasked::Unasked::Repair,
    workload,
};

/// Documents of `large`: several ranges of 8 MiB.
const LARGE: u64 = 8_000;

/// Slow enough to be interrupted. 8,000 documents take over five seconds.
const SLOW: &str = "[sync]\nmax_docs_per_second = 1500\n";

/// An `_id` of each kind of value in turn, so that every type stands beside every other.
fn mixed_id(n: u64) -> Bson {
    let small = n as i32;
    match n % 12 {
        0 => Bson::Int32(small),
        1 => Bson::Double(f64::from(small) + 0.25),
        2 => Bson::Decimal128(format!("{n}.5").parse::<Decimal128>().unwrap()),
        3 => Bson::String(format!("text {n}")),
        4 => Bson::Document(doc! { "a": small, "b": { "c": "x" } }),
        5 => Bson::Document(doc! { "b": small }),
        6 => Bson::ObjectId(ObjectId::new()),
        7 => Bson::Binary(mongodb::bson::Binary {
            subtype: mongodb::bson::spec::BinarySubtype::Generic,
            bytes: n.to_be_bytes().to_vec(),
        }),
        8 => Bson::DateTime(mongodb::bson::DateTime::from_millis(n as i64)),
        9 => Bson::Int64(1 << 40 | n as i64),
        10 => Bson::Double(-1e300 / (n as f64 + 1.0)),
        _ => Bson::Timestamp(mongodb::bson::Timestamp { time: small as u32, increment: 1 }),
    }
}

/// 64 MB in one collection, with `_id`s of every type and those at the ends of the order.
async fn fill_large(server: &Mongod) {
    let filler = "x".repeat(8_000);
    for part in 0..LARGE / 500 {
        let documents = (part * 500..(part + 1) * 500)
            .map(|n| doc! { "_id": mixed_id(n), "n": n as i64, "filler": &filler });
        orders(server).insert_many(documents).await.unwrap();
    }
    let ends = [
        Bson::MinKey,
        Bson::MaxKey,
        Bson::Null,
        Bson::Double(f64::NAN),
        Bson::Double(f64::INFINITY),
        Bson::Double(f64::NEG_INFINITY),
        Bson::Document(doc! {}),
        Bson::Boolean(false),
        Bson::String(String::new()),
    ];
    orders(server).insert_many(ends.map(|id| doc! { "_id": id, "end": true })).await.unwrap();
}

/// Random changes to all documents that have an `n`, and to some others.
fn keep_changing(server: &Mongod, on: Arc<AtomicBool>, seed: u64) -> tokio::task::JoinHandle<()> {
    let orders = orders(server);
    let mut rng = StdRng::seed_from_u64(seed);
    tokio::spawn(async move {
        while on.load(Ordering::Relaxed) {
            let some = doc! { "n": rng.random_range(0..LARGE as i64) };
            match rng.random_range(0..4) {
                // Twice as many deletes as there are inserts would empty it; there is time for few.
                0 => drop(
                    orders.delete_one(doc! { "_id": mixed_id(rng.random_range(0..LARGE)) }).await,
                ),
                1 => drop(orders.update_one(some, doc! { "$set": { "v": 1 } }).await),
                _ => drop(workload::change(&orders, &mut rng).await),
            }
        }
    })
}

fn copied(api: &Api) -> u64 {
    api.get("/api/sync/metrics").1["documentsCopied"].as_u64().unwrap_or(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_is_killed_goes_on_with_the_ranges_that_are_not_done() {
    let (local, atlas) = pair().await;
    fill_large(&local).await;
    let mut rng = StdRng::seed_from_u64(seed());
    let on = Arc::new(AtomicBool::new(true));
    let application = keep_changing(&local, on.clone(), rng.random());
    let mut agent = Agent::new(&local.uri(), &atlas.uri(), &format!("{SLOW}parallel = 1\n"));
    for _ in 0..2 {
        agent.start(&[]);
        let enough = rng.random_range(2_200..2_900);
        eventually("a part of the copy", PATIENCE, async || {
            agent.health().is_some() && copied(&Api::of(&agent)) > enough
        })
        .await;
        let shown = agent.health().unwrap();
        assert_eq!(shown["phase"], "copying");
        assert!(shown["sync"]["documents"].as_u64() > Some(0), "{shown}");
        agent.kill();
    }
    agent.start(&[]);
    agent.streaming().await;
    let last = copied(&Api::of(&agent));
    assert!(last < LARGE * 9 / 10, "the last of three copied {last} of {LARGE}");
    on.store(false, Ordering::Relaxed);
    application.await.unwrap();
    equal(&local, &atlas, PATIENCE).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_waits_while_it_is_paused_and_survives_elections_on_both_sides() {
    let (local, atlas) = pair().await;
    fill_large(&local).await;
    let mut agent = Agent::new(&local.uri(), &atlas.uri(), SLOW);
    agent.start(&[]);
    let under_way = async |at_least| {
        eventually("a part of the copy", PATIENCE, async || {
            agent.health().is_some() && copied(&Api::of(&agent)) > at_least
        })
        .await;
        copied(&Api::of(&agent))
    };
    under_way(500).await;
    assert!(agent.cli(&["pause"]).status.success());
    // What is being written is still written.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let before = copied(&Api::of(&agent));
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(copied(&Api::of(&agent)), before, "it waits");
    assert!(before < LARGE);
    assert!(agent.cli(&["resume"]).status.success());

    for server in [&local, &atlas, &local] {
        let so_far = under_way(0).await;
        // The connection breaks with the role.
        let down = doc! { "replSetStepDown": 1, "force": true };
        let _ = server.client.database("admin").run_command(down).await;
        eventually("a primary", PATIENCE, async || {
            let hello = server.client.database("admin").run_command(doc! { "hello": 1 }).await;
            hello.is_ok_and(|hello| hello.get_bool("isWritablePrimary").unwrap_or(false))
        })
        .await;
        if so_far < LARGE {
            under_way(so_far).await;
        }
    }
    agent.streaming().await;
    equal(&local, &atlas, PATIENCE).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn collections_of_every_kind_are_copied_with_their_options_and_indexes() {
    let (local, atlas) = pair().await;
    let db = local.client.database("shop");
    let create = async |command: Document| db.run_command(command).await.unwrap();
    create(doc! { "create": "capped", "capped": true, "size": 1 << 20, "max": 5_000 }).await;
    create(
        doc! { "create": "clustered", "clusteredIndex": { "key": { "_id": 1 }, "unique": true } },
    )
    .await;
    create(doc! { "create": "collated", "collation": { "locale": "de", "strength": 2 } }).await;
    create(doc! { "create": "validated", "validator": { "v": { "$gt": 5 } }, "validationLevel": "moderate" })
        .await;
    create(doc! { "create": "images", "changeStreamPreAndPostImages": { "enabled": true } }).await;
    create(doc! { "createIndexes": "collated", "indexes": [
        { "key": { "email": 1 }, "name": "email", "unique": true, "sparse": true },
        { "key": { "place": "2dsphere" }, "name": "place" },
        { "key": { "t": "text", "u": "text" }, "name": "text", "weights": { "u": 7 }, "default_language": "german",
          "collation": { "locale": "simple" } },
        { "key": { "h": "hashed" }, "name": "hashed", "collation": { "locale": "simple" } },
        { "key": { "$**": 1 }, "name": "wild", "wildcardProjection": { "a": 1, "b.c": 1 } },
        { "key": { "x": 1, "y": -1 }, "name": "hidden", "hidden": true },
        { "key": { "at": 1 }, "name": "ttl", "expireAfterSeconds": 86_400 },
        { "key": { "s": 1 }, "name": "partial", "partialFilterExpression": { "s": { "$gt": 3 } } },
    ] })
    .await;
    // In another order than that of their `_id`s.
    let capped = db.collection::<Document>("capped");
    for n in 0..3_000 {
        capped.insert_one(doc! { "_id": (n * 7_919) % 3_001, "n": n }).await.unwrap();
    }
    for name in ["clustered", "collated", "images"] {
        let documents = (0..2_000).map(|n| doc! { "_id": n, "v": n, "email": format!("{n}@x") });
        db.collection::<Document>(name).insert_many(documents).await.unwrap();
    }
    for n in 0..1_000 {
        db.create_collection(format!("empty{n}")).await.unwrap();
    }
    let agent = Agent::started(&local.uri(), &atlas.uri());
    agent.streaming().await;

    // A capped collection in the order of insertion, too.
    equal(&local, &atlas, PATIENCE).await;
    let verified = agent.cli_json(&["verify"]).unwrap();
    assert_eq!(verified["equal"], true, "{verified}");
    assert_eq!(verified["namespaces"].as_array().unwrap().len(), 1_005);
}

/// What only the index of one side knows: the order over `_id`s, by a collation.
#[tokio::test(flavor = "multi_thread")]
async fn ranges_follow_the_order_of_a_collation() {
    let (local, atlas) = pair().await;
    let db = local.client.database("shop");
    db.run_command(doc! { "create": "orders", "collation": { "locale": "sv", "caseFirst": "upper", "strength": 3 } })
        .await
        .unwrap();
    let filler = "x".repeat(8_000);
    for part in 0..8 {
        let letters = ["ä", "Ä", "z", "Z", "å", "a", "ö", "é"];
        let documents = (0..500).map(|n| {
            let letter = letters[n % 8];
            doc! { "_id": format!("{letter}{}{}", part, n), "filler": &filler }
        });
        orders(&local).insert_many(documents).await.unwrap();
    }
    let agent = Agent::started(&local.uri(), &atlas.uri());
    agent.may(&[Repair], "it changes while it is copied");
    agent.streaming().await;
    equal(&local, &atlas, PATIENCE).await;

    orders(&atlas).delete_many(doc! { "_id": { "$gt": "å", "$lt": "ä5" } }).await.unwrap();
    orders(&atlas).insert_one(doc! { "_id": "Åextra" }).await.unwrap();
    for how in [&["sync", "--wait"][..], &["sync", "--wait", "--digest"]] {
        assert!(agent.cli(how).status.success());
        equal(&local, &atlas, PATIENCE).await;
        orders(&atlas).delete_one(doc! { "_id": "Z013" }).await.unwrap();
    }
}

/// The lines of a log that have this level, without their times.
fn lines(log: &str, level: &str) -> Vec<String> {
    let of_level = log.lines().filter_map(|line| line.split_once(level));
    of_level.map(|(_, rest)| rest.trim().to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn collections_that_change_while_they_are_copied_are_told_of_as_what_they_are() {
    let (local, atlas) = pair().await;
    let db = local.client.database("shop");
    let filler = "x".repeat(4_000);
    let fill = async |name: &str, ids: std::ops::Range<i32>| {
        let documents = ids.map(|id| doc! { "_id": id, "of": name, "filler": &filler });
        db.collection::<Document>(name).insert_many(documents).await.unwrap();
    };
    db.run_command(doc! { "create": "turned", "capped": true, "size": 10_600_000 }).await.unwrap();
    let names = ["turned", "dropped", "renamed", "viewed"];
    for name in names {
        fill(name, 0..2_500).await;
    }
    let to_atlas = Proxy::to(atlas.port).await;
    let mut agent =
        Agent::new(&local.uri(), &to_atlas.uri(), "[sync]\nmax_docs_per_second = 1000\n");
    agent.waits_long_for_atlas();
    agent.may(&[Repair], "it changes while it is copied");
    agent.start(&[]);
    for name in names {
        let there = atlas.client.database("shop").collection::<Document>(name);
        let has_begun = async || there.estimated_document_count().await.unwrap() > 0;
        eventually("a part of each copy", PATIENCE, has_begun).await;
    }
    // None of the copies comes to its end before its collection has changed, however long that takes.
    to_atlas.set(Line::Silent);
    fill("turned", 2_500..4_950).await;

    db.collection::<Document>("dropped").drop().await.unwrap();
    let rename = doc! { "renameCollection": "shop.renamed", "to": "shop.archive" };
    local.admin(rename).await;
    db.collection::<Document>("viewed").drop().await.unwrap();
    db.create_collection("viewed").view_on("archive".to_owned()).pipeline([]).await.unwrap();
    to_atlas.set(Line::Up);
    agent.streaming().await;
    equal(&local, &atlas, PATIENCE).await;

    let log = agent.log();
    let log = log.split_once("copying what Atlas lacks").unwrap().1;
    assert_eq!((lines(log, " WARN "), lines(log, "ERROR ")), (Vec::new(), Vec::new()), "{log}");
    let told = lines(log, " INFO ").join("\n");
    // Unless a loaded machine had read all of it by then.
    for (what, of) in [
        ("written over what was to be read", &["turned"][..]),
        ("dropped or renamed while it was read", &["dropped", "renamed"]),
    ] {
        let was_read =
            |name: &&str| told.contains(&format!("copied ns=shop.{name} documents=2500"));
        assert!(told.contains(what) || of.iter().all(was_read), "{what}: {told}");
    }
    assert!(!log.contains("not available") && !log.contains("turned}"), "{log}");

    // What was deleted, and is still to go from Atlas, is no mass delete.
    assert!(agent.cli(&["pause"]).status.success());
    let archive = db.collection::<Document>("archive");
    archive.delete_many(doc! { "_id": { "$gte": 400 } }).await.unwrap();
    agent.queued(2_000).await;
    let mut sync = agent.spawn(&["sync", "--ns", "shop.archive", "--wait"]);
    eventually("the comparison", PATIENCE, async || {
        agent.health().is_some_and(|health| {
            health["sync"]["extra"].as_u64() == Some(2_100) || agent.log().contains("ERROR")
        })
    })
    .await;
    assert!(agent.cli(&["resume"]).status.success());
    assert!(sync.wait().unwrap().success(), "{}", agent.log());
    equal(&local, &atlas, PATIENCE).await;
    assert_eq!(lines(&agent.log(), "ERROR "), Vec::<String>::new());
}

/// Whatever a build is answered, on this connection or on none: a full disk, a server that steps down, a user that is not
/// believed, a line that is cut.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_index_that_atlas_does_not_build_keeps_no_copy_and_no_sync_from_its_end() {
    let local = Mongod::start().await;
    for name in ["orders", "others"] {
        let collection = local.client.database("shop").collection::<Document>(name);
        collection.insert_many((0..100).map(|n| doc! { "_id": n, "u": n, "v": n })).await.unwrap();
        let indexes = doc! { "createIndexes": name, "indexes": [
            { "key": { "u": 1 }, "name": "plain" }, { "key": { "v": 1 }, "name": "only", "unique": true },
        ] };
        local.client.database("shop").run_command(indexes).await.unwrap();
    }
    let answers = [
        doc! { "errorCode": 14_031 },
        doc! { "errorCode": 189 },
        doc! { "errorCode": 18 },
        doc! { "closeConnection": true },
    ];
    // Most of the time goes by with waiting.
    let (local, here) = (&local, &tokio::runtime::Handle::current());
    std::thread::scope(|scope| {
        for answer in answers {
            scope.spawn(move || here.block_on(does_not_build(local, answer)));
        }
    });
}

/// A copy and a sync whose indexes Atlas answers so.
async fn does_not_build(local: &Mongod, answer: Document) {
    let atlas = Mongod::start().await;
    let mut data = doc! {
        "failCommands": ["createIndexes"], "namespace": "shop.orders", "appName": "outrigger",
    };
    data.extend(answer.clone());
    let set = doc! { "configureFailPoint": "failCommand", "mode": "alwaysOn", "data": data };
    let before = atlas.admin(set).await.get_i32("count").unwrap();
    let mut agent = Agent::started(&local.uri(), &atlas.uri());
    // In the middle of it.
    let wait =
        doc! { "waitForFailPoint": "failCommand", "timesEntered": before + 1, "maxTimeMS": 60_000 };
    atlas.admin(wait).await;
    agent.kill();
    agent.start(&[]);

    agent.streaming().await;

    let health = agent.health().unwrap();
    let problems = health["schemaProblems"].to_string();
    assert!(problems.contains("`shop.orders`") && problems.contains("plain"), "{answer}: {health}");
    assert!(!problems.contains("shop.others"), "{answer}: {health}");
    let status = agent.cli(&["status"]);
    let status = String::from_utf8_lossy(&status.stdout).into_owned();
    assert!(status.contains("plain"), "{answer}: {status}");
    let sync = agent.cli(&["sync", "--wait"]);
    let said = String::from_utf8_lossy(&sync.stdout).into_owned();
    assert!(said.contains("done, but") && said.contains("plain"), "{answer}: {said}{sync:?}");
    atlas.end_failing().await;
    if answer.get_i32("errorCode").ok() == Some(14_031) {
        // The index, by the keeper.
        equal(&local, &atlas, PATIENCE * 2).await;
    }
    assert!(agent.stop().success());
    equal_but(MayDiffer::Schema, &local, &atlas, PATIENCE).await;
}
