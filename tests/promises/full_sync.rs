//! The full sync while streaming goes on: it finds and repairs every difference, on either side, and
//! never puts an older version back.

use std::{
    process::Stdio,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use mongodb::{
    Collection, IndexModel,
    bson::{Bson, Document, doc},
};
use rand::{Rng, SeedableRng, rngs::StdRng, seq::IndexedRandom};
use serde_json::Value;

use crate::support::{
    PATIENCE, agent::Agent, api::Api, equal::equal, eventually, mongod::Mongod, orders, pair, seed,
    unasked::Unasked::Repair, workload,
};

/// An agent that streams, with so many orders on both sides.
async fn streaming(documents: i32, config: &str) -> (Mongod, Mongod, Agent) {
    let (local, atlas) = pair().await;
    if documents > 0 {
        let all = (0..documents).map(|n| doc! { "_id": n, "v": n, "o": { "a": 1, "b": [n] } });
        orders(&local).insert_many(all).await.unwrap();
    }
    let mut agent = Agent::new(&local.uri(), &atlas.uri(), config);
    agent.may(&[Repair], "the test makes the differences");
    agent.start(&[]);
    agent.streaming().await;
    equal(&local, &atlas, PATIENCE).await;
    (local, atlas, agent)
}

/// Makes a full sync by the API, and waits for its end.
async fn sync(api: &Api, body: &str) -> Value {
    let (code, started) = api.with_body("POST", "/api/sync/full", body);
    assert_eq!(code, 202, "{started}");
    ended(api, started["running"].as_str().unwrap()).await
}

async fn ended(api: &Api, id: &str) -> Value {
    let mut last = Value::Null;
    eventually("the end of the full sync", PATIENCE, async || {
        last = api.get("/api/sync/full").1;
        let has_ended = last["running"].is_null() && !last["sync"]["finishedMs"].is_null();
        has_ended && last["sync"]["id"] == id
    })
    .await;
    last["sync"].clone()
}

/// Writes to a collection of its own until it is told to stop.
fn keep_writing(server: &Mongod, on: Arc<AtomicBool>) -> tokio::task::JoinHandle<()> {
    let busy = server.client.database("shop").collection::<Document>("busy");
    tokio::spawn(async move {
        let mut n = 0;
        while on.load(Ordering::Relaxed) {
            let document = doc! { "_id": n % 200, "n": n };
            busy.replace_one(doc! { "_id": n % 200 }, document).upsert(true).await.unwrap();
            n += 1;
        }
    })
}

/// Documents that differ in each way, on either side.
async fn plant_documents(side: &Mongod) {
    let copy = orders(side);
    let set = async |id: i32, change: Document| {
        copy.update_one(doc! { "_id": id }, doc! { "$set": change }).await.unwrap();
    };
    copy.delete_one(doc! { "_id": 10 }).await.unwrap();
    copy.insert_one(doc! { "_id": "extra" }).await.unwrap();
    set(20, doc! { "v": "another" }).await;
    set(30, doc! { "v": 30_i64 }).await;
    copy.replace_one(doc! { "_id": 40 }, doc! { "_id": 40, "o": { "a": 1, "b": [40] }, "v": 40 })
        .await
        .unwrap();
    set(50, doc! { "o.b.0": 51 }).await;
    set(60, doc! { "more": Bson::Null }).await;
}

/// What is planted into Atlas: one of each kind.
async fn plant(atlas: &Mongod) {
    plant_documents(atlas).await;
    let copy = orders(atlas);
    let index = |name: &str| {
        let options = mongodb::options::IndexOptions::builder().name(name.to_owned()).build();
        IndexModel::builder().keys(doc! { "planted": 1 }).options(options).build()
    };
    copy.create_index(index("planted")).await.unwrap();
    copy.drop_index("by_v").await.unwrap();
    let shop = atlas.client.database("shop");
    shop.run_command(doc! { "collMod": "orders", "validator": { "v": { "$exists": true } } })
        .await
        .unwrap();
    shop.run_command(
        doc! { "collMod": "orders", "index": { "name": "ttl", "expireAfterSeconds": 7 } },
    )
    .await
    .unwrap();
}

async fn with_indexes(server: &Mongod) {
    let commands = doc! { "createIndexes": "orders", "indexes": [
        { "key": { "v": 1 }, "name": "by_v" },
        { "key": { "at": 1 }, "name": "ttl", "expireAfterSeconds": 3600 },
        { "key": { "o.a": 1, "u": -1 }, "name": "unique", "unique": true,
          "partialFilterExpression": { "u": { "$exists": true } } },
    ] };
    server.client.database("shop").run_command(commands).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn differences_of_every_kind_are_found_and_repaired_while_the_application_writes() {
    let (local, atlas) = pair().await;
    orders(&local)
        .insert_many((0..3_000).map(|n| doc! { "_id": n, "v": n, "o": { "a": 1, "b": [n] } }))
        .await
        .unwrap();
    with_indexes(&local).await;
    let agent = Agent::started(&local.uri(), &atlas.uri());
    agent.may(&[Repair], "the test makes the differences");
    agent.streaming().await;
    // From the first copy on.
    equal(&local, &atlas, PATIENCE).await;
    let on = Arc::new(AtomicBool::new(true));
    let writer = keep_writing(&local, on.clone());

    for how in [&["sync", "--wait"][..], &["sync", "--wait", "--digest"]] {
        plant(&atlas).await;
        let seen = agent.cli_json(&["verify"]).unwrap();
        assert_eq!(seen["equal"], false, "{seen}");
        let found = of(&seen, "shop.orders");
        assert_eq!(
            (&found["missing"]["count"], &found["missing"]["keys"][0]),
            (&1.into(), &10.into())
        );
        assert_eq!(
            (&found["extra"]["count"], &found["extra"]["keys"][0]),
            (&1.into(), &"extra".into())
        );
        assert_eq!(found["different"]["count"], 5, "{found}");
        assert_eq!(found["schema"].as_array().unwrap().len(), 4, "{found}");

        let output = agent.cli(how);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
        assert!(text.contains("shop.orders"), "{text}");
        let seen = agent.cli_json(&["verify"]).unwrap();
        assert_eq!(seen["equal"], true, "{seen}");
    }

    on.store(false, Ordering::Relaxed);
    writer.await.unwrap();
    equal(&local, &atlas, PATIENCE).await;
}

fn of<'a>(verification: &'a Value, ns: &str) -> &'a Value {
    let all = verification["namespaces"].as_array().unwrap();
    all.iter().find(|of| of["ns"] == ns).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn property_08_a_full_sync_finds_and_repairs_what_is_missing_on_either_side() {
    let (local, atlas, agent) = streaming(0, "").await;
    let api = Api::of(&agent);
    let mut rng = StdRng::seed_from_u64(seed());
    let (here, there) = (orders(&local), orders(&atlas));
    for _ in 0..200 {
        workload::change(&here, &mut rng).await.unwrap();
    }
    for case in 0..100 {
        for _ in 0..rng.random_range(1..6) {
            // On the local side streaming brings it over; on the other side only the sync can tell.
            let side = if rng.random_bool(0.7) { &there } else { &here };
            workload::change(side, &mut rng).await.unwrap();
        }
        let body = [r#"{"digest":false}"#, r#"{"namespaces":["shop.*"]}"#, ""];
        let report = sync(&api, body.choose(&mut rng).unwrap()).await;
        assert_eq!(report["outcome"], "done", "case {case}: {report}");
        equal(&local, &atlas, PATIENCE).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn property_09_a_second_full_sync_is_refused_while_one_runs_and_the_first_can_be_cancelled() {
    let (local, atlas, agent) = streaming(20_000, "[sync]\nmax_docs_per_second = 2000\n").await;
    let api = Api::of(&agent);
    let (code, first) = api.with_body("POST", "/api/sync/full", "");
    assert_eq!(code, 202);
    let id = first["running"].as_str().unwrap();

    let (code, refused) = api.with_body("POST", "/api/sync/full", r#"{"digest":true}"#);
    assert_eq!(code, 409);
    assert!(refused["error"].as_str().unwrap().contains(id), "{refused}");
    let output = agent.cli(&["sync"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains(id));
    eventually("progress", PATIENCE, async || {
        api.get("/api/sync/full").1["sync"]["documentsDone"].as_u64() > Some(0)
    })
    .await;
    let status = String::from_utf8_lossy(&agent.cli(&["sync", "status"]).stdout).into_owned();
    assert!(status.contains(id) && status.contains("documents/s"), "{status}");
    assert_eq!(agent.health().unwrap()["phase"], "streaming", "it goes on meanwhile");

    assert!(agent.cli(&["sync", "cancel"]).status.success());
    let report = ended(&api, id).await;
    assert_eq!(report["outcome"], "cancelled", "{report}");
    assert!(report["documentsDone"].as_u64() < Some(20_000), "{report}");
    assert_eq!(agent.cli(&["sync", "cancel"]).status.code(), Some(1), "nothing runs any more");

    orders(&local).insert_one(doc! { "_id": -1 }).await.unwrap();
    equal(&local, &atlas, PATIENCE).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn collections_that_one_side_lacks_are_made_and_dropped() {
    let (local, atlas, agent) = streaming(10, "").await;
    let (here, there) = (local.client.database("shop"), atlas.client.database("shop"));
    here.create_collection("empty").await.unwrap();
    here.collection("few").insert_many((0..60).map(|n| doc! { "_id": n })).await.unwrap();
    equal(&local, &atlas, PATIENCE).await;
    eventually("the empty one", PATIENCE, async || {
        there.list_collection_names().await.unwrap().len() == 3
    })
    .await;
    there.collection::<Document>("empty").drop().await.unwrap();
    there.collection::<Document>("few").drop().await.unwrap();
    there.create_collection("strange").await.unwrap();
    there.collection("stranger").insert_many((0..60).map(|n| doc! { "_id": n })).await.unwrap();
    let seen = agent.cli_json(&["verify"]).unwrap();
    assert_eq!(of(&seen, "shop.empty")["schema"][0], "the collection is missing in Atlas");
    assert_eq!(of(&seen, "shop.strange")["schema"][0], "the collection is in Atlas only");
    assert_eq!(of(&seen, "shop.stranger")["extra"]["count"], 60);
    let dry = agent.cli(&["sync", "--dry-run", "--wait"]);
    assert!(String::from_utf8_lossy(&dry.stdout).contains("in Atlas only"));

    let output = agent.cli(&["sync", "--wait"]);

    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    assert_eq!(agent.cli_json(&["verify"]).unwrap()["equal"], true);
    let mut names = there.list_collection_names().await.unwrap();
    names.sort();
    assert_eq!(names, ["empty", "few", "orders"]);

    // Too many to be dropped without being asked.
    there.collection("huge").insert_many((0..200).map(|n| doc! { "_id": n })).await.unwrap();
    assert_eq!(agent.cli(&["sync", "--wait"]).status.code(), Some(1));
    assert_eq!(there.list_collection_names().await.unwrap().len(), 4);
    assert!(agent.cli(&["sync", "--wait", "--allow-mass-delete"]).status.success());
    assert_eq!(agent.cli_json(&["verify"]).unwrap()["equal"], true);
}

/// A large collection in ranges, and small ones; what a killed sync had done is not done again.
#[tokio::test(flavor = "multi_thread")]
async fn a_sync_that_is_killed_goes_on_with_what_is_not_done() {
    let (local, atlas) = pair().await;
    let filler = "x".repeat(8_000);
    let fill = async |name: &str, documents: i32| {
        let db = local.client.database("shop");
        for part in 0..documents / 500 {
            let all = (part * 500..(part + 1) * 500).map(|n| doc! { "_id": n, "filler": &filler });
            db.collection::<Document>(name).insert_many(all).await.unwrap();
        }
    };
    fill("orders", 6_000).await;
    for n in 0..4 {
        fill(&format!("small{n}"), 500).await;
    }
    let config = "[sync]\nmax_docs_per_second = 1500\nparallel = 1\n";
    let mut agent = Agent::new(&local.uri(), &atlas.uri(), config);
    agent.may(&[Repair], "the test makes the differences");
    agent.start(&[]);
    agent.streaming().await;
    equal(&local, &atlas, PATIENCE).await;
    orders(&atlas).delete_many(doc! { "_id": { "$mod": [1_000, 7] } }).await.unwrap();
    let small = atlas.client.database("shop").collection::<Document>("small3");
    small.update_one(doc! { "_id": 3 }, doc! { "$set": { "v": 1 } }).await.unwrap();

    let (code, started) = Api::of(&agent).with_body("POST", "/api/sync/full", "");
    assert_eq!(code, 202);
    let mut rng = StdRng::seed_from_u64(seed());
    for _ in 0..2 {
        let enough = rng.random_range(2_200..2_700);
        eventually("a part of the sync", PATIENCE, async || {
            let report = agent.health().map(|_| Api::of(&agent).get("/api/sync/full").1);
            report.is_some_and(|report| report["sync"]["documentsDone"].as_u64() > Some(enough))
        })
        .await;
        agent.kill();
        agent.start(&[]);
    }
    agent.streaming().await;
    let report = ended(&Api::of(&agent), started["running"].as_str().unwrap()).await;

    assert_eq!(report["outcome"], "done", "{report}");
    assert!(report["documentsDone"].as_u64() < Some(8_000 * 9 / 10), "{report}");
    equal(&local, &atlas, PATIENCE).await;
}

/// What only the local side has had since, and nobody streamed: the queue and its position are gone.
#[tokio::test(flavor = "multi_thread")]
async fn differences_of_the_local_side_are_found_as_well() {
    let (local, atlas, mut agent) = streaming(200, "").await;
    assert!(agent.stop().success());
    plant_documents(&local).await;
    let shop = local.client.database("shop");
    shop.run_command(doc! { "collMod": "orders", "validator": { "v": { "$exists": true } } })
        .await
        .unwrap();
    with_indexes(&local).await;
    shop.create_collection("new").await.unwrap();
    std::fs::remove_dir_all(agent.dir.path().join("queue")).unwrap();

    agent.start(&[]);
    agent.streaming().await;

    equal(&local, &atlas, PATIENCE).await;
}

/// A collection is renamed, and another one takes its name, in the middle of a sync; and temporary
/// collections come and go as `$out` makes them.
#[tokio::test(flavor = "multi_thread")]
async fn renames_while_a_sync_runs_lose_nothing() {
    let (local, atlas, agent) = streaming(3_000, "[sync]\nmax_docs_per_second = 3000\n").await;
    let api = Api::of(&agent);
    let shop = local.client.database("shop");
    for round in 0..4 {
        orders(&atlas).delete_many(doc! { "_id": { "$mod": [7, round as i64] } }).await.unwrap();
        let (code, _) = api.with_body("POST", "/api/sync/full", "");
        assert_eq!(code, 202);
        tokio::time::sleep(Duration::from_millis(200 * round)).await;
        let to = format!("shop.orders{round}");
        local.admin(doc! { "renameCollection": "shop.orders", "to": to }).await;
        orders(&local)
            .insert_many((0..500).map(|n| doc! { "_id": n, "round": round as i64 }))
            .await
            .unwrap();
        let out = doc! {
            "aggregate": "orders", "pipeline": [{ "$out": "copied" }], "cursor": {},
        };
        shop.run_command(out).await.unwrap();
        eventually("the end of the sync", PATIENCE, async || {
            api.get("/api/sync/full").1["running"].is_null()
        })
        .await;
        equal(&local, &atlas, PATIENCE).await;
    }
    // A dry run has nothing to do again.
    let (code, started) = api.with_body("POST", "/api/sync/full", r#"{"dryRun":true}"#);
    assert_eq!(code, 202);
    local.admin(doc! { "renameCollection": "shop.orders", "to": "shop.last" }).await;
    ended(&api, started["running"].as_str().unwrap()).await;
    assert!(agent.cli(&["sync", "--wait"]).status.success());
    equal(&local, &atlas, PATIENCE).await;
}

/// It is in the list of the first copy under one name only.
#[tokio::test(flavor = "multi_thread")]
async fn a_collection_that_is_renamed_while_it_is_copied_has_its_indexes() {
    let (local, atlas) = pair().await;
    let filler = "x".repeat(4_000);
    let all = (0..4_000).map(|n| doc! { "_id": n, "v": n, "filler": &filler });
    orders(&local).insert_many(all).await.unwrap();
    with_indexes(&local).await;
    let config = "[sync]\nmax_docs_per_second = 2000\nparallel = 1\n";
    let mut agent = Agent::new(&local.uri(), &atlas.uri(), config);
    agent.may(&[Repair], "the test makes the differences");
    agent.start(&[]);
    eventually("the copy", PATIENCE, async || {
        orders(&atlas).count_documents(doc! {}).await.unwrap() > 0
    })
    .await;

    local.admin(doc! { "renameCollection": "shop.orders", "to": "shop.archive" }).await;

    agent.streaming().await;
    equal(&local, &atlas, PATIENCE).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dry_run_reports_and_changes_nothing() {
    let (_local, atlas, agent) = streaming(500, "").await;
    orders(&atlas).delete_many(doc! { "_id": { "$lt": 7 } }).await.unwrap();
    orders(&atlas).insert_one(doc! { "_id": "extra" }).await.unwrap();
    let writes = atlas.document_writes().await;

    let output = agent.cli(&["sync", "--dry-run", "--wait"]);

    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("shop.orders") && text.contains("nothing was changed"), "{text}");
    let report = &Api::of(&agent).get("/api/sync/full").1["sync"];
    let found = ["missing", "extra", "content"].map(|kind| report[kind].as_u64().unwrap());
    assert_eq!(found, [7, 1, 0]);
    assert_eq!(atlas.document_writes().await, writes);
    assert_eq!(orders(&atlas).count_documents(doc! {}).await.unwrap(), 494);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mass_delete_is_made_only_when_it_is_allowed() {
    let (_local, atlas, agent) = streaming(100, "").await;
    orders(&atlas).insert_many((0..200).map(|n| doc! { "_id": 1_000 + n })).await.unwrap();
    orders(&atlas).delete_one(doc! { "_id": 3 }).await.unwrap();

    let output = agent.cli(&["sync", "--wait"]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("--allow-mass-delete") && text.contains("shop.orders"), "{text}");
    assert_eq!(
        orders(&atlas).count_documents(doc! {}).await.unwrap(),
        300,
        "the missing one is back"
    );

    let output = agent.cli(&["sync", "--wait", "--allow-mass-delete"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    assert_eq!(orders(&atlas).count_documents(doc! {}).await.unwrap(), 100);
    eventually("health", PATIENCE, async || agent.health().unwrap()["status"] == "healthy").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_huge_difference_does_not_fill_the_queue() {
    let (local, atlas, agent) = streaming(70_000, "").await;
    orders(&atlas).delete_many(doc! { "_id": { "$gte": 1_000 } }).await.unwrap();
    let api = Api::of(&agent);
    assert!(agent.cli(&["pause"]).status.success());

    let (code, started) = api.with_body("POST", "/api/sync/full", "");
    assert_eq!(code, 202);
    agent.queued(50_000).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    let waiting = agent.health().unwrap()["queueSize"].as_u64().unwrap();
    // A page of each range that is being compared may come on top.
    assert!(waiting < 60_000, "{waiting} wait");

    assert!(agent.cli(&["resume"]).status.success());
    let report = ended(&api, started["running"].as_str().unwrap()).await;
    assert_eq!(report["missing"], 69_000, "{report}");
    equal(&local, &atlas, PATIENCE).await;
}

/// Many documents change all the time, while syncs run one after the other and another hand changes the
/// copy: whatever is compared at the very moment of its change, the last version wins.
#[tokio::test(flavor = "multi_thread")]
async fn documents_that_change_while_they_are_compared_never_go_back_to_an_older_version() {
    let (local, atlas, agent) = streaming(300, "").await;
    let api = Api::of(&agent);
    let mut rng = StdRng::seed_from_u64(seed());
    let on = Arc::new(AtomicBool::new(true));
    let writers: Vec<_> = (0..2)
        .map(|_| {
            let (on, here) = (on.clone(), orders(&local));
            let mut rng = StdRng::seed_from_u64(rng.random());
            tokio::spawn(async move {
                while on.load(Ordering::Relaxed) {
                    let id = doc! { "_id": rng.random_range(0..300) };
                    match rng.random_range(0..4) {
                        0 => drop(here.delete_one(id).await.unwrap()),
                        1 => {
                            let new = doc! { "v": rng.random_range(0..1_000_000) };
                            here.replace_one(id, new).upsert(true).await.unwrap();
                        }
                        _ => drop(here.update_one(id, doc! { "$inc": { "v": 1 } }).await.unwrap()),
                    }
                }
            })
        })
        .collect();
    for _ in 0..12 {
        for _ in 0..20 {
            meddle(&orders(&atlas), &mut rng).await;
        }
        sync(&api, r#"{"allowMassDelete":true}"#).await;
    }
    on.store(false, Ordering::Relaxed);
    for writer in writers {
        writer.await.unwrap();
    }
    // What the last meddling did, and no event will tell.
    sync(&api, "").await;
    equal(&local, &atlas, PATIENCE).await;
    // And nothing comes late.
    tokio::time::sleep(Duration::from_secs(2)).await;
    equal(&local, &atlas, Duration::from_secs(1)).await;
}

async fn meddle(copy: &Collection<Document>, rng: &mut StdRng) {
    let id = doc! { "_id": rng.random_range(0..300) };
    let result = if rng.random() {
        copy.delete_one(id).await.map(drop)
    } else {
        copy.update_one(id, doc! { "$set": { "v": -1 } }).await.map(drop)
    };
    result.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_digest_sees_all_but_what_its_hash_does_not_and_exact_sees_that_too() {
    let (local, atlas, agent) = streaming(5_000, "").await;
    // Far apart: where one is opened, its neighbours are compared exactly.
    let numbers = [(100, Bson::Double(1.2)), (2_500, Bson::Double(5.0)), (4_900, Bson::Int32(7))];
    for (id, v) in numbers {
        let change = doc! { "$set": { "v": v } };
        orders(&local).update_one(doc! { "_id": id }, change).await.unwrap();
    }
    equal(&local, &atlas, PATIENCE).await;

    let verified = agent.cli_json(&["verify", "--digest"]).unwrap();
    assert_eq!(verified["equal"], true, "{verified}");
    assert_eq!(verified["documents"], 5_000);
    // A sum of each of a few ranges, and the answers about collections and indexes, against 335 kB.
    assert!(verified["bytesFromAtlas"].as_u64() < Some(4_000), "{verified}");
    let exact = agent.cli_json(&["verify"]).unwrap();
    assert!(exact["bytesFromAtlas"].as_u64() > exact["bytes"].as_u64(), "{exact}");

    let change = async |id: i32, v: Bson| {
        let change = doc! { "$set": { "v": v } };
        orders(&atlas).update_one(doc! { "_id": id }, change).await.unwrap();
    };
    // Below the integer part; another type of the same size: not seen. Another size: seen.
    change(100, Bson::Double(1.7)).await;
    change(2_500, Bson::Int64(5)).await;
    let blind = agent.cli_json(&["verify", "--digest"]).unwrap();
    assert_eq!(blind["equal"], true, "{blind}");
    change(4_900, Bson::Int64(7)).await;
    let seen = agent.cli_json(&["verify", "--digest"]).unwrap();
    assert_eq!(of(&seen, "shop.orders")["different"]["keys"], serde_json::json!([4_900]));
    assert!(seen["bytesFromAtlas"].as_u64() < Some(30_000), "only a few are opened: {seen}");
    let exact = agent.cli_json(&["verify"]).unwrap();
    assert_eq!(of(&exact, "shop.orders")["different"]["count"], 3, "{exact}");
    assert!(agent.cli(&["sync", "--wait"]).status.success());
    equal(&local, &atlas, PATIENCE).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_an_agent_sync_runs_one_until_all_is_repaired() {
    let (local, atlas, mut agent) = streaming(1_000, "").await;
    assert!(agent.stop().success());
    orders(&atlas).delete_many(doc! { "_id": { "$lt": 50 } }).await.unwrap();
    orders(&local).insert_one(doc! { "_id": "new" }).await.unwrap();

    let output = agent.cli(&["sync", "--ns", "shop.*"]);

    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    assert!(text.contains("shop.orders"), "{text}");
    equal(&local, &atlas, Duration::from_secs(1)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sync_comes_by_itself_as_often_as_configured() {
    let (local, atlas, _agent) = streaming(100, "[sync]\nverify_every = \"2s\"\n").await;
    orders(&atlas).delete_one(doc! { "_id": 1 }).await.unwrap();

    equal(&local, &atlas, PATIENCE).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_makes_no_sense_is_refused() {
    let (_local, _atlas, agent) = streaming(1, "").await;
    let api = Api::of(&agent);
    for body in ["{", "[]", r#"{"dryrun":true}"#, r#"{"namespaces":["shop"]}"#, r#"{"digest":1}"#] {
        let (code, problem) = api.with_body("POST", "/api/sync/full", body);
        assert_eq!(code, 400, "{body}: {problem}");
        assert!(problem["hint"].is_string(), "{problem}");
    }
    assert_eq!(api.call("POST", "/api/sync/full", &[]).0, 401);
    assert_eq!(api.with_token("DELETE", "/api/sync/full").0, 404);
    assert_eq!(agent.cli(&["sync", "--ns", "shop"]).status.code(), Some(2));
    assert_eq!(agent.cli(&["verify", "--ns", "shop"]).status.code(), Some(2));
}

/// Each of these says that the collection is no longer what it was when its reading began, and of no outage.
#[tokio::test(flavor = "multi_thread")]
async fn a_verification_reads_on_though_a_collection_was_taken_from_under_its_cursor() {
    let (local, atlas) = pair().await;
    orders(&local).insert_many((0..100).map(|id| doc! { "_id": id })).await.unwrap();
    let mut agent = Agent::started(&local.uri(), &atlas.uri());
    agent.streaming().await;
    equal(&local, &atlas, PATIENCE).await;
    assert!(agent.stop().success());

    let fail =
        |code| doc! { "failCommands": ["find"], "namespace": "shop.orders", "errorCode": code };
    for code in [43, 175] {
        let before = local.end_failing().await;
        local.fail(fail(code), 1).await;
        let verified = agent.cli_json(&["verify"]).unwrap();
        assert_eq!(verified["equal"], true, "{code}: {verified}");
        assert_eq!(local.end_failing().await - before, 1, "{code}: nothing has failed");
    }
}

/// What is said of a collection each time that it is read is no change of it, and nothing is waited for for ever.
#[tokio::test(flavor = "multi_thread")]
async fn a_read_that_a_server_never_lets_get_anywhere_ends_the_sync_and_names_the_collection() {
    let (local, atlas, agent) = streaming(100, "").await;
    let other = local.client.database("shop").collection("other");
    other.insert_many((0..10).map(|id| doc! { "_id": id })).await.unwrap();
    equal(&local, &atlas, PATIENCE).await;
    let there = atlas.client.database("shop").collection::<Document>("other");
    there.delete_one(doc! { "_id": 1 }).await.unwrap();
    let data = doc! {
        "failCommands": ["find"], "namespace": "shop.orders", "errorCode": 175, "appName": "outrigger",
    };
    let fail = doc! { "configureFailPoint": "failCommand", "mode": "alwaysOn", "data": data };
    local.client.database("admin").run_command(fail).await.unwrap();

    let mut command = agent.command();
    let sync = command.args(["sync", "--wait"]).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut sync = sync.spawn().unwrap();
    let mut code = None;
    eventually("the end of it", PATIENCE, async || {
        code = sync.try_wait().unwrap();
        code.is_some()
    })
    .await;

    let output = sync.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("shop.orders"), "{said}");
    local.end_failing().await;
    // The other collection was not kept waiting.
    equal(&local, &atlas, PATIENCE).await;
}
