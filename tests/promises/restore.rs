//! The restore: Atlas into an empty local database, whatever interrupts it.

use std::{process::Stdio, time::Duration};

use mongodb::bson::{Bson, Document, doc};
use rand::{Rng, SeedableRng, rngs::StdRng};

use crate::support::{
    PATIENCE,
    agent::{Agent, signal},
    equal::equal,
    eventually,
    mongod::Mongod,
    orders, pair, seed,
};

/// A copy in Atlas of a database that is gone.
async fn replica(documents: i32, filler: usize) -> (Mongod, Mongod) {
    let (local, atlas) = pair().await;
    let filler = "x".repeat(filler);
    for part in 0..(documents + 499) / 500 {
        let documents = (part * 500..((part + 1) * 500).min(documents))
            .map(|n| doc! { "_id": if n % 2 == 0 { Bson::Int32(n) } else { Bson::String(n.to_string()) }, "u": n, "filler": &filler });
        orders(&local).insert_many(documents).await.unwrap();
    }
    let db = local.client.database("shop");
    db.run_command(doc! { "createIndexes": "orders", "indexes": [
        { "key": { "u": 1 }, "name": "u", "unique": true },
        { "key": { "filler": "text" }, "name": "text", "default_language": "none" },
    ] })
    .await
    .unwrap();
    db.run_command(doc! { "create": "log", "capped": true, "size": 4_096 }).await.unwrap();
    db.collection("log").insert_many((0..10).rev().map(|n| doc! { "_id": n })).await.unwrap();
    db.run_command(doc! { "create": "empty", "validator": { "a": 1 } }).await.unwrap();
    let few = doc! { "$match": { "_id": { "$lt": 5 } } };
    db.run_command(doc! { "create": "seen", "viewOn": "log", "pipeline": [few] }).await.unwrap();
    let mut agent = Agent::started(&local.uri(), &atlas.uri());
    agent.streaming().await;
    equal(&local, &atlas, PATIENCE).await;
    assert!(agent.stop().success());
    (local, atlas)
}

async fn assert_restored(local: &Mongod, atlas: &Mongod) {
    equal(local, atlas, Duration::ZERO).await;
    let left = local.client.database("outrigger").list_collection_names().await.unwrap();
    assert!(left.is_empty(), "no note stays: {left:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_is_restored_with_indexes_and_options_into_a_replica_set_and_a_standalone() {
    let (_gone, atlas) = replica(2_000, 100).await;
    let (set, alone) = tokio::join!(Mongod::start(), Mongod::start_with(&[]));
    for local in [&set, &alone] {
        let cli = Agent::new(&local.uri(), &atlas.uri(), "");

        let output = cli.cli(&["restore"]);

        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
        assert!(text.contains("restored 2010 documents"), "{text}");
        assert!(text.contains("both sides are equal"), "{text}");
        assert!(
            text.contains("\nnext: point the application") && text.contains("run --adopt"),
            "{text}"
        );
        assert_restored(local, &atlas).await;

        let again = cli.cli(&["restore"]);
        assert_eq!(again.status.code(), Some(1), "it holds data now");
        let error = String::from_utf8_lossy(&again.stderr).into_owned();
        assert!(error.contains("never writes over anything") && error.contains("hint:"), "{error}");
        assert!(
            error.contains("already restored") && error.contains("outrigger verify"),
            "{error}"
        );
    }
    // From then on it is replicated as ever.
    let mut agent = Agent::new(&set.uri(), &atlas.uri(), "");
    agent.start(&["--adopt"]);
    agent.streaming().await;
    orders(&set).insert_one(doc! { "_id": "new" }).await.unwrap();
    equal(&set, &atlas, PATIENCE).await;
}

/// The application has gone on in Atlas while there was no local database, and comes home.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_written_in_atlas_meanwhile_comes_home_and_is_replicated_from_there() {
    let (_gone, atlas) = replica(500, 100).await;
    let meanwhile = (0..300).map(|n| doc! { "_id": format!("atlas {n}"), "u": 10_000 + n });
    orders(&atlas).insert_many(meanwhile).await.unwrap();
    orders(&atlas).delete_many(doc! { "u": { "$lt": 100 } }).await.unwrap();
    let some = doc! { "u": { "$gte": 100, "$lt": 200 } };
    orders(&atlas).update_many(some, doc! { "$set": { "filler": "changed" } }).await.unwrap();
    let db = atlas.client.database("shop");
    db.run_command(doc! { "createIndexes": "orders", "indexes": [
        { "key": { "filler": 1, "u": -1 }, "name": "made in Atlas" },
    ] })
    .await
    .unwrap();
    db.collection("made").insert_one(doc! { "_id": 1 }).await.unwrap();

    let home = Mongod::start().await;
    let mut agent = Agent::new(&home.uri(), &atlas.uri(), "");
    assert!(agent.cli(&["restore"]).status.success());
    assert_restored(&home, &atlas).await;
    let all = orders(&home).count_documents(doc! {}).await.unwrap();
    assert_eq!(all, 500 - 100 + 300);
    assert!(
        agent.refused(&[]).await.contains("--adopt"),
        "nobody takes it for the old one unasked"
    );
    agent.start(&["--adopt"]);
    agent.streaming().await;
    assert_eq!(orders(&atlas).count_documents(doc! {}).await.unwrap(), all, "and nothing goes");

    let back = doc! { "_id": { "$regex": "^atlas 1" } };
    orders(&home).delete_many(back).await.unwrap();
    orders(&home).update_many(doc! {}, doc! { "$set": { "home": true } }).await.unwrap();
    home.client.database("shop").collection::<Document>("made").drop().await.unwrap();
    equal(&home, &atlas, PATIENCE).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restore_that_is_killed_goes_on_with_what_is_not_done() {
    let (_gone, atlas) = replica(8_000, 8_000).await;
    let local = Mongod::start().await;
    let mut rng = StdRng::seed_from_u64(seed());
    let cli = Agent::new(&local.uri(), &atlas.uri(), "[sync]\nparallel = 1\n");
    for _ in 0..2 {
        let mut child = cli.spawn(&["restore"]);
        let so_far = orders(&local).count_documents(doc! {}).await.unwrap();
        // Of 8,000, so that there is something left to be killed in.
        let enough = (so_far + rng.random_range(1_000..3_000)).min(6_500);
        eventually("a part of the restore", PATIENCE, async || {
            orders(&local).count_documents(doc! {}).await.unwrap() > enough
        })
        .await;
        child.kill().unwrap();
        child.wait().unwrap();
    }

    let output = cli.cli(&["restore"]);

    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    let count: u64 = text.split_whitespace().nth(1).unwrap().parse().unwrap();
    assert!(count < 8_000, "the last run restored {count} of 8,010");
    assert_restored(&local, &atlas).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_what_is_named_is_restored_and_what_holds_data_is_never_touched() {
    let (_gone, atlas) = replica(100, 10).await;
    let local = Mongod::start().await;
    let log = local.client.database("shop").collection::<Document>("log");
    log.insert_one(doc! { "_id": "mine" }).await.unwrap();
    let cli = Agent::new(&local.uri(), &atlas.uri(), "");

    let refused = cli.cli(&["restore"]);
    assert_eq!(refused.status.code(), Some(1));
    let error = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(error.contains("holds data in `shop.log`") && error.contains("drop"), "{error}");
    assert!(!error.contains("already restored"), "{error}");
    assert_eq!(orders(&local).count_documents(doc! {}).await.unwrap(), 0, "nothing was begun");

    let output = cli.cli(&["restore", "--ns", "shop.orders"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(orders(&local).count_documents(doc! {}).await.unwrap(), 100);
    assert_eq!(log.count_documents(doc! {}).await.unwrap(), 1);

    let nothing = cli.cli(&["restore", "--ns", "nowhere.*"]);
    assert_eq!(nothing.status.code(), Some(2));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restore_that_is_interrupted_in_its_verification_goes_on_with_that() {
    let (_gone, atlas) = replica(100, 10).await;
    let local = Mongod::start().await;
    let cli = Agent::new(&local.uri(), &atlas.uri(), "");
    // What was restored is measured only to be compared.
    let later = doc! { "failCommands": ["aggregate"], "errorCode": 262, "appName": "outrigger" };
    for name in ["TERM", "INT", "KILL"] {
        let set =
            doc! { "configureFailPoint": "failCommand", "mode": "alwaysOn", "data": later.clone() };
        let times = local.admin(set).await.get_i32("count").unwrap();
        let mut command = cli.command();
        command.arg("restore").stdout(Stdio::null()).stderr(Stdio::piped());
        let child = command.spawn().unwrap();
        local
            .admin(doc! {
                "waitForFailPoint": "failCommand", "timesEntered": times + 1, "maxTimeMS": 60_000,
            })
            .await;

        signal(child.id(), name);

        let output = child.wait_with_output().unwrap();
        local.end_failing().await;
        if name != "KILL" {
            let error = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(1), "{error}");
            assert!(
                error.contains("interrupted") && error.contains("outrigger restore"),
                "{error}"
            );
            assert!(!error.contains("drop") && !error.contains("ATLAS"), "{error}");
        }
    }

    let output = cli.cli(&["restore"]);

    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    assert!(text.contains("restored 0 documents") && text.contains("are equal"), "{text}");
    assert_restored(&local, &atlas).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_notes_of_a_restore_are_not_replicated_while_they_stand() {
    let (_gone, atlas) = replica(100, 10).await;
    let local = Mongod::start().await;
    let mut agent = Agent::new(&local.uri(), &atlas.uri(), "");
    let later = doc! { "failCommands": ["aggregate"], "errorCode": 262, "appName": "outrigger" };
    let set = doc! { "configureFailPoint": "failCommand", "mode": "alwaysOn", "data": later };
    let times = local.admin(set).await.get_i32("count").unwrap();
    let mut child = agent.spawn(&["restore"]);
    let wait =
        doc! { "waitForFailPoint": "failCommand", "timesEntered": times + 1, "maxTimeMS": 60_000 };
    local.admin(wait).await;
    child.kill().unwrap();
    child.wait().unwrap();
    local.end_failing().await;
    let notes = local.client.database("outrigger").collection::<Document>("restore");
    assert!(notes.count_documents(doc! {}).await.unwrap() > 1);

    agent.start(&["--adopt"]);
    agent.streaming().await;
    notes.insert_one(doc! { "_id": "while it streams" }).await.unwrap();
    notes.delete_one(doc! { "_id": "while it streams" }).await.unwrap();
    orders(&local).delete_one(doc! { "_id": 4 }).await.unwrap();
    eventually("what came after it", PATIENCE, async || {
        orders(&atlas).count_documents(doc! {}).await.unwrap() == 99
    })
    .await;

    let in_atlas =
        async || atlas.client.database("outrigger").list_collection_names().await.unwrap();
    assert_eq!(in_atlas().await, ["replicas"]);
    let status = String::from_utf8(agent.cli(&["status"]).stdout).unwrap();
    assert!(status.contains("outrigger.restore`: where a restore keeps its notes"), "{status}");
    assert!(agent.cli(&["sync", "--wait"]).status.success());
    assert_eq!(agent.cli_json(&["verify"]).unwrap()["equal"], true);
    assert_eq!(in_atlas().await, ["replicas"]);
    assert!(agent.stop().success());
    let output = agent.cli(&["restore"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_restored(&local, &atlas).await;
}

/// What is restored in parts is one restore: the end of a part takes nothing from the rest.
#[tokio::test(flavor = "multi_thread")]
async fn a_part_that_is_restored_ends_no_wider_restore() {
    let (_gone, atlas) = replica(4_000, 8_000).await;
    let local = Mongod::start().await;
    let cli = Agent::new(&local.uri(), &atlas.uri(), "[sync]\nparallel = 1\n");
    let mut child = cli.spawn(&["restore"]);
    eventually("a part of the restore", PATIENCE, async || {
        orders(&local).count_documents(doc! {}).await.unwrap() > 500
    })
    .await;
    child.kill().unwrap();
    child.wait().unwrap();

    let part = cli.cli(&["restore", "--ns", "shop.log"]);
    assert!(part.status.success(), "{}", String::from_utf8_lossy(&part.stderr));
    let output = cli.cli(&["restore"]);

    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    assert_restored(&local, &atlas).await;
}

/// One that was begun may be gone on with only where it had begun: what has come since is somebody's.
#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_restore_does_not_open_the_way_over_newer_data() {
    let (_gone, atlas) = replica(4_000, 8_000).await;
    let local = Mongod::start().await;
    let cli = Agent::new(&local.uri(), &atlas.uri(), "[sync]\nparallel = 1\n");
    let mut child = cli.spawn(&["restore", "--ns", "shop.orders"]);
    eventually("a part of the restore", PATIENCE, async || {
        orders(&local).count_documents(doc! {}).await.unwrap() > 500
    })
    .await;
    child.kill().unwrap();
    child.wait().unwrap();
    let log = local.client.database("shop").collection::<Document>("log");
    log.insert_one(doc! { "_id": 3, "mine": true }).await.unwrap();
    // In the middle of what is not done yet.
    orders(&local).delete_one(doc! { "_id": 3_998 }).await.unwrap();
    orders(&local).insert_one(doc! { "_id": 3_998, "mine": true }).await.unwrap();

    let refused = cli.cli(&["restore"]);

    assert_eq!(refused.status.code(), Some(1), "{}", String::from_utf8_lossy(&refused.stdout));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("shop.log"));
    let kept = log.find_one(doc! { "_id": 3 }).await.unwrap().unwrap();
    assert!(kept.get_bool("mine").unwrap());
    let output = cli.cli(&["restore", "--ns", "shop.orders"]);
    assert_eq!(output.status.code(), Some(1), "the verification names what is different");
    assert!(String::from_utf8_lossy(&output.stdout).contains("different: 3998"));
    assert_eq!(orders(&local).count_documents(doc! {}).await.unwrap(), 4_000);
    let kept = orders(&local).find_one(doc! { "_id": 3_998 }).await.unwrap().unwrap();
    assert!(kept.get_bool("mine").unwrap());
    assert!(
        !String::from_utf8_lossy(&output.stdout).contains("outrigger sync"),
        "it would change Atlas"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restore_is_refused_while_an_agent_runs_or_an_end_is_away() {
    let (local, atlas) = pair().await;
    let mut agent = Agent::started(&local.uri(), &atlas.uri());
    agent.streaming().await;
    let refused = agent.cli(&["restore"]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("an agent runs"));
    assert!(agent.stop().success());

    let nowhere = "mongodb://127.0.0.1:1/?directConnection=true";
    assert_eq!(Agent::new(nowhere, &atlas.uri(), "").cli(&["restore"]).status.code(), Some(3));
    assert_eq!(Agent::new(&local.uri(), nowhere, "").cli(&["restore"]).status.code(), Some(4));
    assert_eq!(Agent::new(nowhere, &atlas.uri(), "").cli(&["verify"]).status.code(), Some(3));
    assert_eq!(Agent::new(&local.uri(), nowhere, "").cli(&["verify"]).status.code(), Some(4));
}
