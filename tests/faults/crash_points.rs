//! The process ends at each named step of `src/runtime/crash.rs`, is started again, and both sides are
//! compared. Runs with the feature `crash-points`, as `make test` does.

use std::{
    collections::BTreeSet,
    os::unix::process::ExitStatusExt,
    sync::atomic::{AtomicI32, Ordering},
};

use mongodb::bson::{Document, doc, oid::ObjectId};
use outrigger::runtime::crash::CrashPoint;
use rand::{Rng, SeedableRng, rngs::StdRng};

use crate::support::{
    PATIENCE,
    agent::Agent,
    equal::{equal, equal_by_hand},
    eventually,
    mongod::Mongod,
    names, odd_work, orders, pair, root, seed,
    unasked::Unasked::{DeadLetters, Doubt, Repair},
    workload,
};

/// Steps before anything streams. A collection of more than one part is copied.
const AT_THE_START: [CrashPoint; 5] = [
    CrashPoint::PositionNoted,
    CrashPoint::LeaseIdNoted,
    CrashPoint::PartCopied,
    CrashPoint::RangeNoted,
    CrashPoint::CollectionCopied,
];

/// Passed by `outrigger restore`.
const OF_A_RESTORE: [CrashPoint; 1] = [CrashPoint::RestoredRangeNoted];

/// Those that `outbox_crash_points` passes.
const OF_AN_OUTBOX: [CrashPoint; 3] =
    [CrashPoint::TurnTaken, CrashPoint::ReaderNoted, CrashPoint::RowsMarked];

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_at_any_step_of_the_start_is_made_good_by_the_next_start() {
    let (local, atlas) = pair().await;
    // Several ranges, each of several parts.
    let filler = "x".repeat(2_000);
    orders(&local)
        .insert_many((0..12_000).map(|n| doc! { "_id": n, "v": 1, "filler": &filler }))
        .await
        .unwrap();
    let people = local.client.database("crm").collection::<Document>("people");
    people.insert_many((0..50).map(|n| doc! { "_id": n })).await.unwrap();
    let (mut rng, mut n) = (StdRng::seed_from_u64(seed()), 0);
    for step in AT_THE_START {
        for passes in [1, 2] {
            if passes == 2 && matches!(step, CrashPoint::PositionNoted | CrashPoint::LeaseIdNoted) {
                continue; // Passed once in a run.
            }
            for db in atlas.client.list_database_names().await.unwrap() {
                if !matches!(db.as_str(), "admin" | "config" | "local") {
                    atlas.client.database(&db).drop().await.unwrap();
                }
            }
            let mut agent = Agent::new(&local.uri(), &atlas.uri(), "[sync]\nparallel = 1\n");
            agent.may(&[Doubt, Repair], "what a crash leaves owed is compared");
            crash(&mut agent, step, passes, async |_| {}).await;

            // What the application does meanwhile.
            for _ in 0..20 {
                n += 1;
                orders(&local).insert_one(doc! { "_id": 100_000 + n }).await.unwrap();
                let some = doc! { "_id": rng.random_range(0..5_000) };
                orders(&local).delete_one(some.clone()).await.unwrap();
                people
                    .update_one(doc! { "_id": n % 50 }, doc! { "$set": { "n": n } })
                    .await
                    .unwrap();
                names::step(&local.client.database("names"), &mut rng).await.unwrap();
                odd_work::step(local.port, &mut rng).await.unwrap();
            }
            agent.start(&[]);
            agent.streaming().await;
            // A copy that was begun as a capped one, of a name that another collection has by now, waits for a person.
            equal_by_hand(&local, &atlas, &agent, PATIENCE).await;
            assert!(!agent.log().contains("moved aside"), "{step:?}: the queue is sound");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_at_any_step_of_streaming_is_made_good_by_the_next_start() {
    let stage = Stage::set().await;
    let Stage { local, atlas, .. } = &stage;
    let config = "[worker]\nbatch_size = 20\nmax_retries = 0\n";
    let mut agent = Agent::new(&local.uri(), &atlas.uri(), config);
    agent.may(
        &[Doubt, Repair, DeadLetters],
        "what a crash leaves owed is compared, and a letter is among the work",
    );
    agent.start(&["--adopt"]);
    agent.streaming().await;
    equal(local, atlas, PATIENCE).await;
    assert!(agent.stop().success());
    let mut rng = StdRng::seed_from_u64(seed());

    let others = [&AT_THE_START[..], &OF_A_RESTORE, &OF_AN_OUTBOX].concat();
    let streaming = CrashPoint::ALL.into_iter().filter(|step| !others.contains(step));
    for step in streaming {
        for passes in [1, 2] {
            crash(&mut agent, step, passes, async |agent| {
                stage.work(agent, &mut rng).await;
                if step == CrashPoint::CollectionCompared {
                    agent.cli(&["sync"]);
                }
            })
            .await;
            agent.start(&[]);
            agent.streaming().await;
            stage.forgive(&agent).await;
            equal(local, atlas, PATIENCE).await;
            eventually("an empty queue", PATIENCE, async || {
                agent.health().is_some_and(|health| health["queueSize"] == 0)
            })
            .await;
            assert!(agent.stop().success());
            println!("{step:?}:{passes} ok");
        }
    }
    assert!(!agent.log().contains("moved aside"), "the queue survives every crash");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_at_any_step_of_a_restore_is_made_good_by_the_next_one() {
    let (gone, atlas) = pair().await;
    // Several ranges.
    let filler = "x".repeat(8_000);
    for part in 0..8 {
        let some = (0..500).map(|n| doc! { "_id": part * 500 + n, "filler": &filler });
        orders(&gone).insert_many(some).await.unwrap();
    }
    let mut agent = Agent::started(&gone.uri(), &atlas.uri());
    agent.streaming().await;
    equal(&gone, &atlas, PATIENCE).await;
    assert!(agent.stop().success());
    let local = Mongod::start().await;
    let mut restore = Agent::new(&local.uri(), &atlas.uri(), "[sync]\nparallel = 1\n");
    for step in OF_A_RESTORE {
        for passes in [1, 2] {
            restore.set_env("OUTRIGGER_CRASH_AT", &format!("{step:?}:{passes}"));
            let crashed = restore.cli(&["restore"]);
            assert_eq!(crashed.status.signal(), Some(6), "{step:?}:{passes}: {crashed:?}");
        }
    }
    restore.set_env("OUTRIGGER_CRASH_AT", "");

    let restored = restore.cli(&["restore"]);
    assert!(restored.status.success(), "{restored:?}");
    equal(&local, &atlas, PATIENCE).await;
}

/// What a name is passed at twice, one of both places is never crashed at.
#[test]
fn each_crash_point_is_passed_at_one_place_of_the_program() {
    fn read(folder: &std::path::Path, text: &mut String) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                read(&path, text);
            } else if !path.ends_with("runtime/crash.rs") {
                *text += &std::fs::read_to_string(path).unwrap();
            }
        }
    }
    let mut text = String::new();
    read(&root().join("src"), &mut text);
    let words: Vec<_> = text.split(|c: char| !c.is_alphanumeric()).collect();
    for step in CrashPoint::ALL {
        let name = format!("{step:?}");
        let passed = words.windows(3).filter(|words| **words == ["CrashPoint", "", &name]).count();
        assert_eq!(passed, 1, "{name}");
    }
}

/// Starts the agent so that it ends at `step`, and has `work` done until it has.
async fn crash(
    agent: &mut Agent,
    step: CrashPoint,
    passes: u32,
    mut work: impl AsyncFnMut(&Agent),
) {
    agent.set_env("OUTRIGGER_CRASH_AT", &format!("{step:?}:{passes}"));
    agent.start(&[]);
    let give_up = std::time::Instant::now() + PATIENCE;
    while agent.is_running() {
        assert!(std::time::Instant::now() < give_up, "{step:?}:{passes} was not reached");
        work(agent).await;
        // A checkpoint without ops is made when nothing has happened for five seconds.
        let rest = if step == CrashPoint::CheckpointDone { 7_000 } else { 50 };
        let rested = std::time::Instant::now() + std::time::Duration::from_millis(rest);
        while agent.is_running() && std::time::Instant::now() < rested {
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    }
    let status = agent.ended(PATIENCE).await;
    assert_eq!(status.signal(), Some(6), "{step:?}: {status}");
    agent.set_env("OUTRIGGER_CRASH_AT", "");
}

/// Both ends, with collections in which every step is provoked.
struct Stage {
    local: Mongod,
    atlas: Mongod,
    /// Documents that were ever inserted into `log`, which is capped at 50.
    logged: AtomicI32,
}

impl Stage {
    async fn set() -> Self {
        let (local, atlas) = pair().await;
        let unique = |name: &str| doc! { "key": { "u": 1 }, "name": name, "unique": true };
        for server in [&local, &atlas] {
            let command = doc! { "createIndexes": "swaps", "indexes": [unique("u")] };
            server.client.database("shop").run_command(command).await.unwrap();
        }
        let shop = local.client.database("shop");
        let swaps = shop.collection::<Document>("swaps");
        swaps.insert_many((0..4).map(|n| doc! { "_id": n, "u": n })).await.unwrap();
        let poison = shop.collection::<Document>("poison");
        poison.insert_one(doc! { "_id": "first" }).await.unwrap();
        let log = doc! { "create": "log", "capped": true, "size": 1 << 20, "max": 50 };
        shop.run_command(log).await.unwrap();
        Self { local, atlas, logged: AtomicI32::new(0) }
    }

    /// Some of everything. The agent may end in the middle of it.
    async fn work(&self, agent: &Agent, rng: &mut StdRng) {
        let shop = self.local.client.database("shop");
        let orders = shop.collection::<Document>("orders");
        for _ in 0..10 {
            workload::change(&orders, rng).await.unwrap();
        }
        let first = self.logged.fetch_add(30, Ordering::Relaxed);
        let log = shop.collection::<Document>("log");
        log.insert_many((first..first + 30).map(|n| doc! { "n": n })).await.unwrap();
        // Atlas takes no document of this one.
        let refuse = doc! {
            "failCommands": ["insert", "update"], "namespace": "shop.poison", "errorCode": 121,
        };
        self.atlas.fail(refuse, i32::MAX).await;
        let poison = shop.collection::<Document>("poison");
        poison.insert_one(doc! { "_id": ObjectId::new() }).await.unwrap();
        let staging = shop.collection::<Document>("staging");
        staging.insert_one(doc! { "n": rng.random_range(0..9) }).await.unwrap();
        let to = format!("shop.archive{}", rng.random_range(0..2));
        let rename = doc! { "renameCollection": "shop.staging", "to": to, "dropTarget": true };
        self.local.admin(rename).await;
        for _ in 0..8 {
            names::step(&self.local.client.database("names"), rng).await.unwrap();
            odd_work::step(self.local.port, rng).await.unwrap();
        }
        // Paused, so that the swap is met as a whole.
        agent.cli(&["pause"]);
        let swaps = shop.collection::<Document>("swaps");
        let set = async |id: i32, value: mongodb::bson::Bson| {
            swaps.update_one(doc! { "_id": id }, doc! { "$set": { "u": value } }).await.unwrap();
        };
        for id in 0..4 {
            set(id, format!("aside {id}").into()).await;
        }
        let shift = rng.random_range(1..4);
        for id in 0..4 {
            set(id, ((id + shift) % 4).into()).await;
        }
        tokio::time::sleep(std::time::Duration::from_millis(300)).await;
        agent.cli(&["resume"]);
    }

    /// Takes the reason of the dead letters away and has them retried.
    async fn forgive(&self, agent: &Agent) {
        self.atlas.end_failing().await;
        let mut tried = BTreeSet::new();
        eventually("no dead letters", PATIENCE, async || {
            let letters = agent.cli_json(&["dead", "list", "--limit", "10000"]).unwrap();
            let letters = letters.as_array().unwrap();
            for id in letters.iter().map(|letter| letter["id"].as_str().unwrap()) {
                if tried.insert(id.to_owned()) {
                    agent.cli(&["dead", "retry", id]);
                }
            }
            let health = agent.health().unwrap();
            letters.is_empty() && health["queueSize"] == 0 && health["deadLetters"] == 0
        })
        .await;
    }
}
