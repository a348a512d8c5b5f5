//! Replica sets of three, on either side: a primary that steps down, one that is killed, and writes that
//! are rolled back. The agent is never restarted.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use futures_util::future::join_all;
use mongodb::{
    Client,
    bson::{Document, doc},
    options::{Acknowledgment, WriteConcern},
};
use rand::{Rng, SeedableRng, rngs::StdRng};
use tokio_util::sync::CancellationToken;

use crate::support::{
    PATIENCE, agent::Agent, certificates::Certificates, equal::equal, eventually, honesty::Honesty,
    mongod::Mongod, replica_set::ReplicaSet, seed, workload,
};

/// Changes documents until it is ended; an error of the server's is an unknown outcome and no more.
pub struct Load {
    stop: CancellationToken,
    changes: Arc<AtomicU32>,
    task: tokio::task::JoinHandle<()>,
}

impl Load {
    pub fn begin(client: &Client, seed: u64) -> Self {
        let (stop, changes) = (CancellationToken::new(), Arc::new(AtomicU32::new(0)));
        let (stopped, made) = (stop.clone(), changes.clone());
        let collections = workload::collections(client);
        let task = tokio::spawn(async move {
            let mut rng = StdRng::seed_from_u64(seed);
            while !stopped.is_cancelled() {
                let one = &collections[rng.random_range(0..3)];
                let is_made = workload::change(one, &mut rng).await.is_ok_and(|made| made);
                made.fetch_add(u32::from(is_made), Ordering::Relaxed);
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        });
        Self { stop, changes, task }
    }

    /// Waits for so many further changes.
    pub async fn goes_on(&self, changes: u32) {
        let made = || self.changes.load(Ordering::Relaxed);
        let enough = made() + changes;
        eventually("changes", PATIENCE, async || made() >= enough).await;
    }

    /// Waits until Atlas has each of the collections. One that is made while Atlas changes its primary may be made or not,
    /// and is compared for that.
    pub async fn is_met(&self, atlas: &Client) {
        eventually("the collections in Atlas", PATIENCE, async || {
            for one in workload::collections(atlas) {
                if !one.find_one(doc! {}).await.is_ok_and(|found| found.is_some()) {
                    return false;
                }
            }
            true
        })
        .await;
    }

    /// Returns the number of changes, once they are enough to prove something.
    pub async fn end(self) -> u32 {
        let made = || self.changes.load(Ordering::Relaxed);
        eventually("enough changes", PATIENCE, async || made() > 200).await;
        self.stop.cancel();
        self.task.await.unwrap();
        made()
    }
}

async fn elect_twice(set: &mut ReplicaSet) {
    tokio::time::sleep(Duration::from_secs(1)).await;
    set.step_down().await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let killed = set.kill_primary().await;
    set.primary().await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    set.members[killed].resume().await;
    tokio::time::sleep(Duration::from_secs(1)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn elections_of_the_local_replica_set_lose_nothing() {
    let (mut local, atlas) = tokio::join!(ReplicaSet::start(), Mongod::start());
    let mut agent = Agent::watched(&local.uri(), &atlas.uri(), "");
    agent.streaming().await;
    let honesty = Honesty::watch(&local.client, &atlas.client, &agent);
    let load = Load::begin(&local.client, seed());

    elect_twice(&mut local).await;
    let changes = load.end().await;

    equal(&local, &atlas, PATIENCE).await;
    honesty.end().await;
    assert!(agent.is_running(), "without a restart");
    assert!(!agent.log().contains("restored"), "an election is no other past");
    assert!(changes > 200, "{changes} changes prove little");
    assert!(!agent.log().contains("everything will be compared"), "the token survives an election");
    assert!(agent.stop().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn elections_of_atlas_lose_nothing_and_make_no_dead_letter() {
    let (local, mut atlas) = tokio::join!(Mongod::start(), ReplicaSet::start());
    let mut agent = Agent::watched(&local.uri(), &atlas.uri(), "");
    agent.streaming().await;
    let honesty = Honesty::watch(&local.client, &atlas.client, &agent);
    let load = Load::begin(&local.client, seed());
    load.is_met(&atlas.client).await;

    elect_twice(&mut atlas).await;
    let changes = load.end().await;

    equal(&local, &atlas, PATIENCE).await;
    honesty.end().await;
    assert!(agent.is_running(), "without a restart");
    assert!(changes > 200, "{changes} changes prove little");
    assert_eq!(agent.health().unwrap()["deadLetters"], 0);
    assert!(agent.stop().success());
}

/// Of its two members with data the primary dies. The other goes on alone: what it takes then is no majority's, and could
/// still be rolled back.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_local_set_with_an_arbiter_takes_without_a_majority_waits_until_it_has_one() {
    let (mut local, atlas) = tokio::join!(ReplicaSet::start_with_arbiter(), Mongod::start());
    let mut agent = Agent::watched(&local.uri(), &atlas.uri(), "");
    agent.streaming().await;
    let honesty = Honesty::watch(&local.client, &atlas.client, &agent);
    let load = Load::begin(&local.client, seed());
    load.goes_on(100).await;

    let killed = local.kill_primary().await;
    local.primary().await;
    let one = WriteConcern::builder().w(Acknowledgment::Nodes(1)).build();
    let lonely = |client: &Client| client.database("shop").collection::<Document>("lonely");
    lonely(&local.client).insert_one(doc! { "_id": 1 }).write_concern(one).await.unwrap();
    load.goes_on(100).await;
    assert!(lonely(&atlas.client).find_one(doc! {}).await.unwrap().is_none(), "no majority has it");
    let flush = agent.cli(&["flush", "--timeout", "6s"]);
    let told = String::from_utf8_lossy(&flush.stderr);
    assert!(!flush.status.success() && told.contains("no majority"), "{told}");
    local.members[killed].resume().await;
    load.goes_on(100).await;
    load.end().await;

    equal(&local, &atlas, PATIENCE).await;
    assert!(lonely(&atlas.client).find_one(doc! {}).await.unwrap().is_some());
    assert!(agent.cli(&["flush"]).status.success());
    honesty.end().await;
    assert!(agent.is_running() && !agent.log().contains("restored"), "{}", agent.log());
    assert!(!agent.log().contains("everything will be compared"), "the token survives it");
    assert!(agent.stop().success());
}

/// The same of Atlas: it takes each write, and says of none that a majority has it.
#[tokio::test(flavor = "multi_thread")]
async fn what_an_atlas_with_an_arbiter_takes_without_a_majority_is_not_held_to_be_there() {
    let (local, mut atlas) = tokio::join!(Mongod::start(), ReplicaSet::start_with_arbiter());
    let mut agent = Agent::watched(&local.uri(), &atlas.uri(), "");
    agent.streaming().await;
    let honesty = Honesty::watch(&local.client, &atlas.client, &agent);
    let load = Load::begin(&local.client, seed());
    load.is_met(&atlas.client).await;
    load.goes_on(100).await;

    let killed = atlas.kill_primary().await;
    atlas.primary().await;
    load.goes_on(100).await;
    agent.queued(1).await;
    let flush = agent.cli(&["flush", "--timeout", "3s"]);
    assert!(!flush.status.success(), "no majority has it");
    atlas.members[killed].resume().await;
    load.end().await;

    equal(&local, &atlas, PATIENCE).await;
    assert!(agent.cli(&["flush"]).status.success());
    honesty.end().await;
    assert_eq!(agent.health().unwrap()["deadLetters"], 0);
    assert!(agent.stop().success());
}

/// As most have it: each new primary is met with TLS and a password, on both sides at once.
#[tokio::test(flavor = "multi_thread")]
async fn elections_with_tls_and_passwords_lose_nothing() {
    let certificates = Certificates::new();
    let reader = vec![
        "readAnyDatabase".into(),
        "clusterMonitor".into(),
        doc! { "role": "read", "db": "local" }.into(),
    ];
    let writer = vec!["readWriteAnyDatabase".into(), "dbAdminAnyDatabase".into()];
    let (local, mut atlas) = tokio::join!(
        ReplicaSet::start_tls(reader, &certificates),
        ReplicaSet::start_tls(writer, &certificates)
    );
    let mut agent = Agent::started(&local.uri(), &atlas.uri());
    agent.streaming().await;
    let load = Load::begin(&local.client, seed());
    load.is_met(&atlas.client).await;

    tokio::join!(local.step_down(), atlas.step_down());
    let killed = atlas.kill_primary().await;
    atlas.primary().await;
    load.end().await;
    equal(&local, &atlas, PATIENCE).await;
    atlas.members[killed].resume().await;

    assert_eq!(agent.health().unwrap()["deadLetters"], 0);
    assert!(agent.stop().success());
    assert!(!agent.log().contains("everything will be compared"), "{}", agent.log());
    assert!(!agent.log().contains("s3cret"));
}

/// The first copy goes on where it was when either primary changes under it.
#[tokio::test(flavor = "multi_thread")]
async fn an_election_during_the_first_copy_loses_nothing() {
    let (local, atlas) = tokio::join!(ReplicaSet::start(), ReplicaSet::start());
    let people = local.client.database("crm").collection::<Document>("bulk");
    for part in 0..20 {
        people
            .insert_many((0..1_000).map(|n| doc! { "_id": part * 1_000 + n, "x": "x".repeat(500) }))
            .await
            .unwrap();
    }
    let mut agent = Agent::new(&local.uri(), &atlas.uri(), "[sync]\nparallel = 1\n");
    // So slow that the elections come in the middle.
    agent.replace_setting("[atlas]", "[atlas]\nmax_ops_per_second = 2000");
    agent.beats();
    agent.start(&[]);
    eventually("the copy", PATIENCE, async || {
        agent.health().is_some_and(|health| health["phase"] == "copying")
    })
    .await;
    let honesty = Honesty::watch(&local.client, &atlas.client, &agent);
    tokio::time::sleep(Duration::from_secs(2)).await;

    local.step_down().await;
    atlas.step_down().await;

    equal(&local, &atlas, 2 * PATIENCE).await;
    agent.streaming().await;
    honesty.end().await;
    assert!(agent.is_running());
}

/// Only what a majority has is in the change stream, and only what a majority has is read.
#[tokio::test(flavor = "multi_thread")]
async fn local_writes_that_are_rolled_back_never_reach_atlas() {
    let (mut local, atlas) = tokio::join!(ReplicaSet::start(), Mongod::start());
    let alone = WriteConcern::builder().w(Acknowledgment::Nodes(1)).journal(true).build();
    let majority = local.client.database("shop").collection::<Document>("orders");
    majority.insert_many((0..20).map(|n| doc! { "_id": n, "v": 0 })).await.unwrap();
    let agent = Agent::watched(&local.uri(), &atlas.uri(), "");
    agent.streaming().await;
    equal(&local, &atlas, PATIENCE).await;

    // Its markers wait for a majority, so that none is rolled back.
    let honesty = Honesty::watch(&local.client, &atlas.client, &agent);
    // The secondaries stop to follow, so that nothing more is a majority's.
    let primary = local.primary().await;
    let fail_point = |mode: &str| doc! { "configureFailPoint": "stopReplProducer", "mode": mode };
    for (n, member) in local.members.iter().enumerate() {
        if n != primary {
            member.admin(fail_point("alwaysOn")).await;
        }
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    let on_primary = local.members[primary].client.database("shop");
    let doomed = on_primary.collection_with_options::<Document>(
        "orders",
        mongodb::options::CollectionOptions::builder().write_concern(alone).build(),
    );
    doomed.insert_one(doc! { "_id": "doomed" }).await.unwrap();
    doomed.update_one(doc! { "_id": 1 }, doc! { "$set": { "v": "doomed" } }).await.unwrap();
    doomed.delete_one(doc! { "_id": 2 }).await.unwrap();
    // Long enough for an agent that read too early to have written it.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let in_atlas = atlas.client.database("shop").collection::<Document>("orders");
    let is_untouched = async || {
        in_atlas.find_one(doc! { "_id": "doomed" }).await.unwrap().is_none()
            && in_atlas.count_documents(doc! { "v": 0 }).await.unwrap() == 20
    };
    assert!(is_untouched().await);

    let killed = local.kill_primary().await;
    for (n, member) in local.members.iter().enumerate() {
        if n != primary {
            member.admin(fail_point("off")).await;
        }
    }
    local.primary().await;
    assert!(is_untouched().await);
    majority.update_one(doc! { "_id": 3 }, doc! { "$set": { "v": "kept" } }).await.unwrap();
    local.members[killed].resume().await;
    eventually("the rollback", PATIENCE, async || {
        let member = &local.members[killed].client.database("shop");
        let there = member.collection::<Document>("orders");
        there.find_one(doc! { "_id": "doomed" }).await.is_ok_and(|found| found.is_none())
    })
    .await;

    equal(&local, &atlas, PATIENCE).await;
    assert!(in_atlas.find_one(doc! { "_id": "doomed" }).await.unwrap().is_none());
    assert!(in_atlas.find_one(doc! { "_id": 3, "v": "kept" }).await.unwrap().is_some());
    honesty.end().await;
    assert!(agent.is_running() && !agent.log().contains("restored"), "{}", agent.log());
}

/// A set goes on without what one member has lost, so its past is the same.
#[tokio::test(flavor = "multi_thread")]
async fn a_set_that_is_reconfigured_and_whose_primary_is_put_back_to_a_backup_goes_on_being_replicated()
 {
    let (mut local, atlas) = tokio::join!(ReplicaSet::start(), Mongod::start());
    let orders = local.client.database("shop").collection::<Document>("orders");
    orders.insert_many((0..50).map(|n| doc! { "_id": n, "v": 0 })).await.unwrap();
    // All three at one moment, as snapshots of their disks.
    local.members.iter_mut().for_each(Mongod::kill);
    let backups: Vec<_> = local.members.iter().map(Mongod::back_up).collect();
    join_all(local.members.iter_mut().map(Mongod::resume)).await;
    local.primary().await;
    let agent = Agent::watched(&local.uri(), &atlas.uri(), "");
    agent.streaming().await;
    let honesty = Honesty::watch(&local.client, &atlas.client, &agent);
    let in_atlas = atlas.client.database("shop").collection::<Document>("orders");
    let work = async |v: i32| {
        eventually("a write", PATIENCE, async || {
            orders.update_many(doc! {}, doc! { "$set": { "v": v } }).await.is_ok()
                && orders
                    .replace_one(doc! { "_id": 100 + v }, doc! { "v": v })
                    .upsert(true)
                    .await
                    .is_ok()
        })
        .await;
    };
    work(1).await;
    equal(&local, &atlas, PATIENCE).await;

    // Another version of the configuration, and another name for a member.
    let primary = local.primary().await;
    let renamed = (primary + 1) % 3;
    let found = local.members[primary].admin(doc! { "replSetGetConfig": 1 }).await;
    let mut config = found.get_document("config").unwrap().clone();
    config.insert("version", config.get_i32("version").unwrap() + 1);
    let members = config.get_array_mut("members").unwrap();
    let name = format!("localhost:{}", local.members[renamed].port);
    members[renamed].as_document_mut().unwrap().insert("host", name);
    local.members[primary].admin(doc! { "replSetReconfig": config }).await;
    work(2).await;
    equal(&local, &atlas, PATIENCE).await;
    assert!(agent.is_running() && !agent.log().contains("restored"), "{}", agent.log());

    let primary = local.primary().await;
    local.members[primary].kill();
    local.members[primary].put_back(&backups[primary]);
    local.members[primary].resume().await;
    local.primary().await;
    work(3).await;
    equal(&local, &atlas, PATIENCE).await;

    honesty.end().await;
    assert!(agent.is_running(), "{}", agent.log());
    assert_eq!(in_atlas.count_documents(doc! { "v": 3 }).await.unwrap(), 53);
}
