//! Nothing is written to Atlas on the strength of a local database that is not proven to be the one, with the
//! same past: wiped and initiated anew at the same address, or put back to a backup, in the middle of whatever
//! the agent does. Atlas stays as it was at that moment, but for what had been read from the true database.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use mongodb::{
    Client, Collection,
    bson::{Document, RawDocumentBuf, doc},
};
use tempfile::TempDir;

use crate::support::{
    PATIENCE,
    agent::Agent,
    equal::{Everything, MayDiffer, brief, equal, equal_but, equal_in, everything, strays},
    eventually, fresh_pair,
    mongod::Mongod,
    pair,
    proxy::{Line, Proxy},
    receiver::Receiver,
    unasked::Unasked::{Doubt, Repair},
};

/// An agent of a database of its own, which shares the local server with others, and its copy.
struct Copy {
    db: &'static str,
    atlas: Mongod,
    line: Proxy,
    agent: Agent,
}

fn config(db: &str, more: &str) -> String {
    let all = "[sync]\nmax_delete_ratio = 1.0\n";
    format!("[namespaces]\ninclude = [\"{db}.*\"]\n{all}{more}")
}

fn people(client: &Client, db: &str) -> Collection<Document> {
    client.database(db).collection("people")
}

/// A document that says which version of itself it is, and of whose past.
fn person(n: i32, v: i32, of: &str) -> Document {
    doc! { "_id": n, "v": v, "of": of, "seat": format!("{of} {n}") }
}

/// Documents in the backup, and as many that came later.
const HALF: i32 = 150;

impl Copy {
    async fn of(db: &'static str, local: &str, more: &str) -> Self {
        let atlas = Mongod::start().await;
        let line = Proxy::to(atlas.port).await;
        let agent = Agent::new(local, &line.uri(), &config(db, more));
        agent.may(&[Doubt, Repair], "the local database is another for a while");
        Self { db, atlas, line, agent }
    }

    fn people(&self, local: &Mongod) -> Collection<Document> {
        people(&local.client, self.db)
    }

    /// What it copies, as the local database has it.
    async fn here(&self, local: &Mongod) -> Everything {
        let mut here = everything(local).await.unwrap();
        let prefix = format!("{}.", self.db);
        here.retain(|name, _| name.starts_with(&prefix));
        here
    }

    async fn is_equal(&self, local: &Mongod) {
        equal_in(self.db, local, &self.atlas, PATIENCE).await;
    }

    /// What is wrong, unless the agent ends as for a restored database, and Atlas has nothing of the wrong one.
    async fn refuses(&mut self, moment: &Moment) -> Vec<String> {
        let give_up = Instant::now() + PATIENCE;
        while self.agent.is_running() && Instant::now() < give_up {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let now = everything(&self.atlas).await.unwrap();
        let strays = strays(&moment.atlas, &moment.local, &now);
        let mut wrong = Vec::new();
        if let Some(first) = strays.first() {
            wrong.push(format!("{}: {} strays, the first {}", self.db, strays.len(), brief(first)));
        }
        if self.agent.is_running() {
            wrong.push(format!("{}: the agent goes on", self.db));
            return wrong;
        }
        let (code, log) = (self.agent.ended(PATIENCE).await.code(), self.agent.log());
        if code != Some(1) || !log.contains("--adopt") {
            wrong.push(format!("{}: exit code {code:?}: {log}", self.db));
        }
        wrong
    }

    /// The way out that it names.
    async fn adopts(&mut self, local: &Mongod) {
        self.agent.adopt();
        self.line.set(Line::Up);
        self.is_equal(local).await;
    }
}

/// Both sides when the local database was last the true one.
struct Moment {
    atlas: Everything,
    local: Everything,
}

impl Moment {
    async fn of(copy: &Copy, local: &Mongod) -> Self {
        Self { atlas: everything(&copy.atlas).await.unwrap(), local: copy.here(local).await }
    }
}

async fn moments(copies: &[Copy], local: &Mongod) -> Vec<Moment> {
    join_all(copies.iter().map(|copy| Moment::of(copy, local))).await
}

async fn all_refuse(copies: &mut [Copy], moments: &[Moment]) {
    let all = copies.iter_mut().zip(moments).map(|(copy, moment)| copy.refuses(moment));
    let wrong: Vec<_> = join_all(all).await.concat();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// A local server that has gone on since it was backed up: half of each database's documents are in the backup, in
/// an older version.
async fn local_with_backup(dbs: &[&str]) -> (Mongod, TempDir) {
    let mut local = Mongod::start().await;
    for db in dbs {
        let people = people(&local.client, db);
        people.insert_many((0..HALF).map(|n| person(n, 0, "backup"))).await.unwrap();
        let unique = doc! { "key": { "seat": 1 }, "name": "seat", "unique": true };
        let command = doc! { "createIndexes": "people", "indexes": [unique] };
        local.client.database(db).run_command(command).await.unwrap();
    }
    local.terminate();
    let backup = local.back_up();
    local.resume().await;
    for db in dbs {
        let people = people(&local.client, db);
        let set = doc! { "$set": { "v": 1, "of": "true" } };
        people.update_many(doc! {}, set).await.unwrap();
        people.insert_many((HALF..2 * HALF).map(|n| person(n, 1, "true"))).await.unwrap();
    }
    (local, backup)
}

/// The application goes on with whatever it finds.
async fn work_on(local: &Mongod, dbs: &[&str]) {
    for db in dbs {
        let people = people(&local.client, db);
        people.update_many(doc! {}, doc! { "$set": { "of": "wrong" } }).await.unwrap();
        people.insert_one(doc! { "_id": "after", "of": "wrong" }).await.unwrap();
    }
}

/// Copies that run, and equal the local database.
async fn copies_of(local: &Mongod, uri: &str, dbs: &[&'static str], more: &str) -> Vec<Copy> {
    let mut copies: Vec<_> = join_all(dbs.iter().map(|db| Copy::of(db, uri, more))).await;
    for copy in &mut copies {
        copy.agent.start(&[]);
    }
    for copy in &copies {
        copy.agent.streaming().await;
        copy.is_equal(local).await;
    }
    copies
}

async fn dump(local: &Mongod, db: &str, v: i32, documents: i32) {
    let dump = (0..documents).map(|n| person(n, v, "dump"));
    people(&local.client, db).insert_many(dump).await.unwrap();
}

/// True while the agent shows that it doubts the local database, and once it has ended over it.
fn doubts(agent: &Agent) -> bool {
    let is_told = |text: &str| text.contains("restored") || text.contains("another database");
    agent.health().is_none_or(|health| is_told(&health["alerts"].to_string()))
}

/// The token of one stands at no event, that of the other at one that has just come. The server is empty at
/// first, and then has an older dump in.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_was_wiped_and_initiated_anew_is_refused_and_adopted_when_told_so() {
    let dbs = ["idle", "event"];
    let (mut local, _) = local_with_backup(&dbs).await;
    let hook = Receiver::start();
    let often = "count_check_every = \"1s\"\n";
    let alerts = format!("{often}[alerts]\nwebhook = \"http://127.0.0.1:{}/\"\n", hook.port);
    let mut copies = copies_of(&local, &local.uri(), &dbs, &alerts).await;
    copies[1].people(&local).insert_one(doc! { "_id": "last" }).await.unwrap();
    copies[1].is_equal(&local).await;
    let moments = moments(&copies, &local).await;

    local.kill();
    local.wipe();
    local.resume().await;
    local.initiate().await;
    for copy in &copies {
        eventually("a doubt that shows", PATIENCE, async || doubts(&copy.agent)).await;
    }
    for db in dbs {
        dump(&local, db, 0, 100).await;
    }
    all_refuse(&mut copies, &moments).await;

    let told = format!("{:?}", hook.requests());
    assert!(told.contains("local_denied") && told.contains("failed"), "{told}");
    // What the wrong one holds is no difference.
    assert!(!told.contains("divergence") && !told.contains("mass_delete"), "{told}");
    copies[0].adopts(&local).await;
}

/// The agents see nothing of the server until it is full again.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_was_wiped_and_comes_back_with_a_dump_in_is_refused() {
    let dbs = ["older", "newer"];
    let (mut local, _) = local_with_backup(&dbs).await;
    let line = Proxy::to(local.port).await;
    let mut copies = copies_of(&local, &line.uri(), &dbs, "").await;
    let moments = moments(&copies, &local).await;

    line.set(Line::Cut);
    local.terminate();
    local.wipe();
    local.resume().await;
    local.initiate().await;
    dump(&local, "older", 0, HALF).await;
    dump(&local, "newer", 9, 3 * HALF).await;
    line.set(Line::Up);

    all_refuse(&mut copies, &moments).await;
}

/// Back after two seconds, with the queue full of whatever makes the worker look into the local database.
#[tokio::test(flavor = "multi_thread")]
async fn a_backup_that_is_put_back_under_a_full_queue_is_refused_and_adopted_when_told_so() {
    let dbs = ["updates", "deletes", "refreshes", "unique"];
    let (mut local, backup) = local_with_backup(&dbs).await;
    let mut copies = copies_of(&local, &local.uri(), &dbs, "").await;
    let [updates, deletes, refreshes, unique] = &copies[..] else { unreachable!("four") };
    // What a comparison finds is queued by key, to be read when its turn comes.
    assert!(refreshes.agent.cli(&["pause"]).status.success());
    let damaged = doc! { "_id": { "$mod": [2, 0] } };
    people(&refreshes.atlas.client, refreshes.db).delete_many(damaged.clone()).await.unwrap();
    assert!(refreshes.agent.cli(&["sync"]).status.success());
    for copy in [updates, deletes, unique] {
        copy.line.set(Line::Cut);
    }
    updates.people(&local).update_many(doc! {}, doc! { "$set": { "v": 2 } }).await.unwrap();
    deletes.people(&local).delete_many(damaged).await.unwrap();
    for n in (0..100).step_by(2) {
        // Each pair changes seats.
        let seats = unique.people(&local);
        let mut pair = Vec::new();
        for n in [n, n + 1] {
            let seat = seats.find_one(doc! { "_id": n }).await.unwrap().unwrap();
            pair.push(seat.get_str("seat").unwrap().to_owned());
        }
        for (n, seat) in [(n, "none"), (n + 1, &pair[0]), (n, &pair[1])] {
            let set = doc! { "$set": { "seat": seat, "v": 2 } };
            seats.update_one(doc! { "_id": n }, set).await.unwrap();
        }
    }
    for (copy, queued) in [(updates, 300), (deletes, 150), (refreshes, 150), (unique, 100)] {
        copy.agent.queued(queued).await;
    }
    let moments = moments(&copies, &local).await;

    local.terminate();
    assert!(copies[2].agent.cli(&["resume"]).status.success());
    local.put_back(&backup);
    tokio::time::sleep(Duration::from_secs(2)).await;
    local.resume().await;
    for copy in &copies {
        copy.line.set(Line::Up);
    }
    work_on(&local, &dbs).await;
    all_refuse(&mut copies, &moments).await;

    copies[0].adopts(&local).await;
}

/// Back after ten seconds, in the middle of what takes its time.
#[tokio::test(flavor = "multi_thread")]
async fn a_backup_that_is_put_back_during_a_copy_a_comparison_a_pause_or_before_a_barrier_is_refused()
 {
    let dbs = ["comparing", "paused", "barrier", "copying"];
    let (mut local, backup) = local_with_backup(&dbs).await;
    let slow = "parallel = 1\nmax_docs_per_second = 60\n";
    let mut copies = copies_of(&local, &local.uri(), &dbs[..1], slow).await;
    copies.extend(copies_of(&local, &local.uri(), &dbs[1..3], "").await);
    copies.push(Copy::of("copying", &local.uri(), slow).await);
    let [comparing, paused, barrier, copying] = &mut copies[..] else { unreachable!("four") };
    assert!(paused.agent.cli(&["pause"]).status.success());
    barrier.line.set(Line::Cut);
    for copy in [&*paused, barrier] {
        copy.people(&local).update_many(doc! {}, doc! { "$set": { "v": 2 } }).await.unwrap();
    }
    let shop = local.client.database("barrier");
    let commands = [
        doc! { "dropIndexes": "people", "index": "seat" },
        doc! { "createIndexes": "people", "indexes": [{ "key": { "v": 1 }, "name": "v" }] },
        doc! { "collMod": "people", "validator": { "v": { "$gte": 0 } } },
        doc! { "create": "later", "collation": { "locale": "de" } },
        doc! { "insert": "later", "documents": [{ "_id": 1, "of": "true" }] },
    ];
    for command in commands {
        shop.run_command(command).await.unwrap();
    }
    paused.agent.queued(300).await;
    barrier.agent.queued(301).await;
    assert!(comparing.agent.cli(&["sync", "--allow-mass-delete"]).status.success());
    copying.agent.start(&[]);
    eventually("some of the copy", PATIENCE, async || {
        people(&copying.atlas.client, "copying").count_documents(doc! {}).await.unwrap() > 0
    })
    .await;
    let moments = moments(&copies, &local).await;

    local.terminate();
    local.put_back(&backup);
    tokio::time::sleep(Duration::from_secs(10)).await;
    local.resume().await;
    copies[2].line.set(Line::Up);
    assert!(copies[1].agent.cli(&["resume"]).status.success());
    work_on(&local, &dbs).await;

    all_refuse(&mut copies, &moments).await;
}

/// Changes documents until the server goes; no version of a document is less than the one before.
async fn load(people: Collection<Document>) {
    for n in 2.. {
        let newer = doc! { "$set": { "v": n, "of": "true" } };
        let born = person(10_000 + n, 1, "true");
        let changed = people.update_one(doc! { "_id": n % (2 * HALF) }, newer).await.is_ok();
        let inserted = changed && people.insert_one(born).await.is_ok();
        let gone = doc! { "_id": 10_000 + n - 10 };
        if !inserted || people.delete_one(gone).await.is_err() {
            return;
        }
    }
}

/// Back after 25 seconds: longer than an agent waits for the local database before it writes without it.
#[tokio::test(flavor = "multi_thread")]
async fn a_backup_that_is_put_back_under_load_is_refused() {
    let (mut local, backup) = local_with_backup(&["load"]).await;
    let mut copies = copies_of(&local, &local.uri(), &["load"], "").await;
    let Copy { atlas, agent, .. } = &mut copies[0];
    let task = tokio::spawn(load(people(&local.client, "load")));
    let in_atlas = people(&atlas.client, "load");
    eventually("the load in Atlas", PATIENCE, async || {
        in_atlas.count_documents(doc! { "_id": { "$gt": 10_060 } }).await.unwrap() > 0
    })
    .await;
    let before = everything(&*atlas).await.unwrap();

    local.kill();
    task.await.unwrap();
    local.put_back(&backup);
    tokio::time::sleep(Duration::from_secs(25)).await;
    local.resume().await;
    work_on(&local, &["load"]).await;
    let status = agent.ended(PATIENCE).await;

    let now = everything(&*atlas).await.unwrap();
    let (before, now) = (before["load.people"].by_id(), now["load.people"].by_id());
    for (key, was) in &before {
        let raw = |bytes: &&[u8]| RawDocumentBuf::from_bytes(bytes.to_vec()).unwrap();
        let (was, is) = (&raw(was), &now.get(key).map(raw));
        let version = |of: &RawDocumentBuf| of.get_i32("v").unwrap();
        match is {
            Some(is) => assert!(version(is) >= version(was), "was {was:?}, is {is:?}"),
            None => assert!(was.get_i32("_id").unwrap() >= 10_000, "was {was:?}, and is gone"),
        }
    }
    let wrong = in_atlas.count_documents(doc! { "of": { "$ne": "true" } }).await.unwrap();
    assert_eq!((wrong, status.code()), (0, Some(1)), "{}", agent.log());
}

async fn is_proven_again(agent: &Agent) {
    let is_proven = async || agent.log().contains("reading from the local database again");
    eventually("another proof", PATIENCE, is_proven).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_that_was_read_before_a_new_proof_is_read_again_before_it_is_written() {
    let (local, atlas) = fresh_pair().await;
    let people = people(&local.client, "late");
    people.insert_many((0..20).map(|n| person(n, 1, "before"))).await.unwrap();
    let slow = doc! { "failCommands": ["insert"], "namespace": "late.people", "errorCode": 50 };
    atlas.fail(slow, 1_000).await;
    let mut agent = Agent::new(&local.uri(), &atlas.uri(), &config("late", ""));
    agent.start(&[]);
    let is_tried = async || agent.health().is_some_and(|health| health["atlasError"].is_string());
    eventually("a write of the page", PATIENCE, is_tried).await;

    people.update_many(doc! {}, doc! { "$set": { "v": 2 } }).await.unwrap();
    local.fail(doc! { "failCommands": ["getMore"], "closeConnection": true }, 1).await;
    is_proven_again(&agent).await;
    atlas.end_failing().await;
    agent.streaming().await;
    equal(&local, &atlas, PATIENCE).await;

    let oplog = atlas.client.database("local").collection::<Document>("oplog.rs");
    let of = async |v: i32| {
        let inserted = doc! { "$or": [
            { "op": "i", "ns": "late.people", "o.v": v },
            { "o.applyOps": { "$elemMatch": { "op": "i", "ns": "late.people", "o.v": v } } },
        ] };
        oplog.count_documents(inserted).await.unwrap()
    };
    assert_eq!((of(1).await, of(2).await > 0), (0, true));
    assert!(agent.stop().success());
}

/// Between the look at the local options and the change of those in Atlas the gate closes: what was read then is
/// old by now.
#[tokio::test(flavor = "multi_thread")]
async fn options_that_were_read_before_a_new_proof_are_read_again_before_they_are_written() {
    let (local, atlas) = fresh_pair().await;
    people(&local.client, "late").insert_one(person(1, 1, "before")).await.unwrap();
    let mut agent = Agent::new(&local.uri(), &atlas.uri(), &config("late", ""));
    agent.waits_long_for_atlas();
    agent.start(&[]);
    agent.streaming().await;
    let slow =
        doc! { "failCommands": ["listCollections"], "blockConnection": true, "blockTimeMS": 8_000 };
    atlas.fail(slow, 1_000).await;
    let validate = async |v: i32| {
        let command = doc! { "collMod": "people", "validator": { "v": { "$gte": v } } };
        local.client.database("late").run_command(command).await.unwrap();
    };

    validate(-1).await;
    atlas.is_at(doc! { "command.listCollections": 1, "command.$db": "late" }).await;
    validate(-2).await;
    local.fail(doc! { "failCommands": ["getMore"], "closeConnection": true }, 1).await;
    is_proven_again(&agent).await;
    atlas.end_failing().await;
    equal_but(MayDiffer::Documents, &local, &atlas, PATIENCE).await;

    let oplog = atlas.client.database("local").collection::<Document>("oplog.rs");
    let of = async |v: i32| {
        let validator = doc! { "$eq": { "v": { "$gte": v } } };
        let changed = doc! { "op": "c", "o.collMod": "people", "o.validator": validator };
        oplog.count_documents(changed).await.unwrap()
    };
    assert_eq!((of(-1).await, of(-2).await > 0), (0, true));
    assert!(agent.stop().success());
}

/// Held up in Atlas, between what it has read here and what it reads there.
#[tokio::test(flavor = "multi_thread")]
async fn a_comparison_reads_again_what_it_read_before_a_new_proof() {
    let (local, atlas) = pair().await;
    let people = people(&local.client, "late");
    people.insert_many((0..20).map(|n| person(n, 1, "before"))).await.unwrap();
    let mut agent = Agent::new(&local.uri(), &atlas.uri(), &config("late", ""));
    agent.waits_long_for_atlas();
    agent.start(&[]);
    agent.streaming().await;
    equal(&local, &atlas, PATIENCE).await;
    let ended = || agent.log().matches("a full sync has ended").count();
    let before = ended();
    let find = doc! {
        "failCommands": ["find"], "namespace": "late.people",
        "blockConnection": true, "blockTimeMS": 12_000,
    };
    atlas.fail(find, 1).await;
    assert!(agent.cli(&["sync"]).status.success());
    atlas.is_at(doc! { "command.find": "people" }).await;

    local.fail(doc! { "failCommands": ["getMore"], "closeConnection": true }, 1).await;
    is_proven_again(&agent).await;
    people.update_many(doc! {}, doc! { "$set": { "v": 2 } }).await.unwrap();
    equal(&local, &atlas, PATIENCE).await;
    atlas.is_at(doc! { "command.find": "people" }).await;

    eventually("the end of the comparison", PATIENCE, async || ended() > before).await;
    let log = agent.log();
    let last = log.lines().rfind(|line| line.contains("a full sync has ended")).unwrap();
    assert!(last.contains("missing=0 extra=0 content=0"), "{last}");
    assert!(agent.stop().success());
}

/// Held up in Atlas between the look at the estimates and the exact count, which is too much for the server: what it
/// has seen of the local database until then is told of no other one.
#[tokio::test(flavor = "multi_thread")]
async fn a_count_that_was_begun_before_a_new_proof_raises_no_alert() {
    let (local, atlas) = pair().await;
    let people_here = people(&local.client, "late");
    people_here.insert_many((0..100).map(|n| person(n, 1, "before"))).await.unwrap();
    let often = "count_check_every = \"1s\"\n";
    let mut agent = Agent::new(&local.uri(), &atlas.uri(), &config("late", often));
    agent.waits_long_for_atlas();
    agent.start(&[]);
    agent.streaming().await;
    equal(&local, &atlas, PATIENCE).await;
    let slow = doc! {
        "failCommands": ["aggregate"], "namespace": "late.people", "errorCode": 50,
        "blockConnection": true, "blockTimeMS": 12_000,
    };
    atlas.fail(slow, 1).await;
    let people_there = people(&atlas.client, "late");
    let gone = doc! { "_id": { "$lt": 10 } };
    people_there.delete_many(gone.clone()).await.unwrap();
    atlas.is_at(doc! { "command.aggregate": "people" }).await;

    local.fail(doc! { "failCommands": ["getMore"], "closeConnection": true }, 1).await;
    is_proven_again(&agent).await;
    people_there.insert_many((0..10).map(|n| person(n, 1, "before"))).await.unwrap();
    let is_at_it =
        async || atlas.admin(doc! { "currentOp": 1, "command.aggregate": "people" }).await;
    eventually("the end of the count", PATIENCE, async || {
        is_at_it().await.get_array("inprog").unwrap().is_empty()
    })
    .await;
    assert_eq!(atlas.end_failing().await, 1);

    // What is missing by now is told, and nothing was before.
    people_there.delete_many(doc! { "_id": { "$lt": 15 } }).await.unwrap();
    eventually("the alert", PATIENCE, async || agent.log().contains("100 documents locally")).await;
    let log = agent.log();
    assert!(log.contains("100 documents locally and 85 in Atlas"), "{log}");
    assert!(!log.contains("100 documents locally and 90 in Atlas"), "{log}");
    assert!(agent.stop().success());
}

/// Held up in Atlas in the look whether what it has of a collection that was replaced is empty, and may give way: what
/// was known of the local database until then makes nothing go.
#[tokio::test(flavor = "multi_thread")]
async fn what_gives_way_to_a_copy_is_looked_at_again_after_a_new_proof() {
    let (local, atlas) = pair().await;
    let db = local.client.database("late");
    db.create_collection("people").await.unwrap();
    let staging = db.collection("staging");
    staging.insert_many((0..20).map(|n| person(n, 1, "staging"))).await.unwrap();
    let include = "[namespaces]\ninclude = [\"late.people\"]\n";
    let mut agent = Agent::new(&local.uri(), &atlas.uri(), include);
    agent.may(&[Doubt, Repair], "the local database is another for a while");
    agent.waits_long_for_atlas();
    agent.start(&[]);
    agent.streaming().await;
    let there = atlas.client.database("late");
    let is_there = async || there.list_collection_names().await.unwrap() == ["people"];
    eventually("the empty collection", PATIENCE, is_there).await;
    // Set once: a fail point is not changed while somebody is in it.
    let find = doc! {
        "failCommands": ["find"], "namespace": "late.people",
        "blockConnection": true, "blockTimeMS": 7_000,
    };
    atlas.fail(find, 1_000).await;

    let rename = doc! {
        "renameCollection": "late.staging", "to": "late.people", "dropTarget": true,
    };
    local.admin(rename).await;
    atlas.is_at(doc! { "command.find": "people" }).await;
    local.fail(doc! { "failCommands": ["getMore"], "closeConnection": true }, 1).await;
    people(&local.client, "late").insert_one(person(20, 1, "later")).await.unwrap();
    is_proven_again(&agent).await;
    atlas.is_at(doc! { "command.find": "people" }).await;

    // Once more before it goes, and once for the copy.
    equal(&local, &atlas, PATIENCE).await;
    assert_eq!(atlas.end_failing().await, 3);
    assert!(agent.stop().success());
}
