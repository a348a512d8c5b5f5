//! The fault matrix: each row is a sentence and a fault on real servers, and ends with both sides equal
//! byte for byte, the same agent running, and no dead letter.

use std::time::{Duration, Instant};

use mongodb::{
    Collection, IndexModel,
    bson::{Document, doc},
    options::IndexOptions,
};
use rand::{SeedableRng, rngs::StdRng};

use crate::support::{
    PATIENCE,
    agent::Agent,
    equal::{MayDiffer, brief, differences, equal, equal_by_hand, everything},
    eventually,
    honesty::Honesty,
    mongod::Mongod,
    names, odd_work, orders, pair,
    proxy::{Line, Proxy},
    seed, workload,
};

/// A sentence, the commands that fail, and how.
type Row = (&'static str, &'static [&'static str], Document);

fn code(code: i32) -> Document {
    doc! { "errorCode": code }
}

fn labelled(code: i32, label: &str) -> Document {
    doc! { "errorCode": code, "errorLabels": [label] }
}

/// Rows from this one on lose history, so that capped collections may stand in another order.
const LOST_HISTORY: &str = "a lost history is made good by a comparison";

/// Each stage has another way for updates: read again (the default, with Atlas's faults and the exchanged database), sent as
/// they came where that is exact, or what is less.
const DELTAS: &str = "[worker]\nupdate_mode = \"delta\"\n";
const AUTO: &str = "[worker]\nupdate_mode = \"auto\"\n";

const READS: &[&str] = &["find", "getMore", "aggregate", "listCollections"];
const LISTS: &[&str] = &["listCollections", "listIndexes"];
const STREAM: &[&str] = &["getMore", "aggregate"];
const WRITES: &[&str] = &["insert", "update", "delete"];

fn rows_of_the_local_side() -> Vec<Row> {
    let closed = || doc! { "closeConnection": true };
    let blocked = || doc! { "blockConnection": true, "blockTimeMS": 7_000 };
    vec![
        ("a cursor that the server has lost is opened again", &["getMore"], code(43)),
        ("a cursor that was killed is opened again", &["getMore"], code(237)),
        ("a query plan that was killed is made again", &["getMore"], code(175)),
        ("a primary that stepped down is looked for again", READS, code(189)),
        ("a server that is no primary any more is left", READS, code(10107)),
        ("a server that shuts down is waited for", READS, code(91)),
        ("an interruption by a change of state is waited out", READS, code(11602)),
        (
            "a server that is overloaded is waited for",
            READS,
            labelled(462, "SystemOverloadedError"),
        ),
        ("a time limit that is exceeded is met by trying again", READS, code(262)),
        ("a snapshot that is not there yet is waited for", &["find"], code(134)),
        ("a missing privilege is waited for until it is granted", READS, code(13)),
        ("an error that nobody knows ends nothing", READS, code(424_242)),
        ("a connection that is closed in the middle is made again", READS, closed()),
        ("a server that does not answer is given up and asked again", READS, blocked()),
        ("a list that the server cannot give is asked for again", LISTS, code(424_242)),
        ("a list that is lost on its way is asked for again", LISTS, closed()),
        (LOST_HISTORY, STREAM, code(286)),
        ("a stream that cannot resume is begun anew", STREAM, code(280)),
        ("a token that is not understood is given up", STREAM, code(260)),
        ("an oplog that rolled over under the cursor is made good", STREAM, code(136)),
        ("an event that is too large is gone around", STREAM, code(10334)),
    ]
}

fn rows_of_atlas() -> Vec<Row> {
    let closed = || doc! { "closeConnection": true };
    let blocked = || doc! { "blockConnection": true, "blockTimeMS": 7_000 };
    let concern = |code: i32| doc! { "writeConcernError": { "code": code, "errmsg": "planted" } };
    let schema: &[&str] = &["create", "drop", "renameCollection"];
    let indexes: &[&str] = &["createIndexes", "dropIndexes", "collMod"];
    vec![
        ("a primary that stepped down is looked for again", WRITES, code(189)),
        ("a server that is no primary any more is left", WRITES, code(10107)),
        ("a server that shuts down is waited for", WRITES, code(91)),
        ("an interruption at a shutdown is waited out", WRITES, code(11600)),
        ("a time limit costs no retry", WRITES, code(50)),
        ("a write conflict is tried again", WRITES, code(112)),
        ("a full disk of Atlas is waited for", WRITES, code(14031)),
        ("a quota that is used up is waited for", WRITES, code(8000)),
        ("throttling is waited out", WRITES, labelled(462, "SystemOverloadedError")),
        (
            "an unknown error with a retry label is tried again",
            WRITES,
            labelled(424_242, "RetryableWriteError"),
        ),
        ("a missing privilege is waited for until it is granted", WRITES, code(18)),
        ("a write that a majority did not confirm is made again", WRITES, concern(64)),
        ("a write that a stepdown left unconfirmed is made again", WRITES, concern(189)),
        ("a connection that is closed in the middle is made again", WRITES, closed()),
        ("a server that does not answer is given up and asked again", WRITES, blocked()),
        ("a schema change that is interrupted is made again", schema, code(11602)),
        ("a schema change whose answer is lost is made again", schema, closed()),
        ("a change of indexes or options that is interrupted is made again", indexes, code(11602)),
        ("a change of indexes or options whose answer is lost is made again", indexes, closed()),
        ("a list that Atlas cannot give is asked for again", LISTS, code(11602)),
        ("a list that is lost on its way is asked for again", LISTS, closed()),
    ]
}

/// Both ends, a proxy before each, and an agent that must outlive every row, watched in what it says.
struct Stage {
    local: Mongod,
    atlas: Mongod,
    to_local: Proxy,
    to_atlas: Proxy,
    agent: Agent,
    honesty: Honesty,
    order: MayDiffer,
    rng: StdRng,
    /// Of a field's index that is made with every row, in place of the last one.
    indexes: u32,
}

impl Stage {
    async fn set(config: &str) -> Self {
        let (local, atlas) = pair().await;
        let (to_local, to_atlas) = (Proxy::to(local.port).await, Proxy::to(atlas.port).await);
        orders(&local).insert_many((0..50).map(|n| doc! { "_id": n })).await.unwrap();
        kept(&local).insert_one(doc! { "_id": 1 }).await.unwrap();
        let mut agent = Agent::new(&to_local.uri(), &to_atlas.uri(), config);
        agent.start(&[]);
        agent.streaming().await;
        let honesty = Honesty::watch(&local.client, &atlas.client, &agent);
        let rng = StdRng::seed_from_u64(seed());
        let order = MayDiffer::Nothing;
        Self { local, atlas, to_local, to_atlas, agent, honesty, order, rng, indexes: 0 }
    }

    /// Changes of every kind: documents, collections that come, go and change their names, and odd schema.
    async fn work(&mut self) {
        for collection in &workload::collections(&self.local.client) {
            for _ in 0..15 {
                workload::change(collection, &mut self.rng).await.unwrap();
            }
        }
        // Large enough that a change of a little of it goes by itself, where either may.
        let texts = self.local.client.database("shop").collection::<Document>("texts");
        let change = doc! { "$set": { "text": "ü€𝄞".repeat(600), "n": self.indexes } };
        texts.update_one(doc! { "_id": 1 }, change).upsert(true).await.unwrap();
        // A field that the random changes leave alone: they may make anything of the others.
        orders(&self.local).update_many(doc! {}, doc! { "$inc": { "touched": 1 } }).await.unwrap();
        // The random ones leave indexes as they are now and then.
        let name = |n: u32| format!("touched {n}");
        // A server that was put back to a backup, or wiped, does not have the last one.
        let there = orders(&self.local).list_index_names().await.unwrap_or_default();
        if there.contains(&name(self.indexes)) {
            orders(&self.local).drop_index(name(self.indexes)).await.unwrap();
        }
        self.indexes += 1;
        let named = IndexOptions::builder().name(name(self.indexes)).build();
        let keys = doc! { "touched": if self.indexes.is_multiple_of(2) { 1 } else { -1 } };
        let index = IndexModel::builder().keys(keys).options(named).build();
        orders(&self.local).create_index(index).await.unwrap();
        let shop = self.local.client.database("shop");
        let staging = shop.collection::<Document>("staging");
        staging.insert_many((0..5).map(|n| doc! { "_id": n })).await.unwrap();
        let rename =
            doc! { "renameCollection": "shop.staging", "to": "shop.archive", "dropTarget": true };
        self.local.admin(rename).await;
        shop.collection::<Document>("brief").insert_one(doc! { "_id": 1 }).await.unwrap();
        shop.collection::<Document>("brief").drop().await.unwrap();
        let names = self.local.client.database("names");
        for _ in 0..12 {
            names::step(&names, &mut self.rng).await.unwrap();
            odd_work::step(self.local.port, &mut self.rng).await.unwrap();
        }
    }

    /// Somebody changes a document of Atlas, and a person has it compared: it is read by its key locally, which nothing
    /// else that happens here is sure to need. Before that has come to its end, a collection is replaced as a whole,
    /// whose comparison goes first.
    async fn has_one_read_by_key(&self) {
        let change = doc! { "$set": { "by hand": true } };
        let changed = kept(&self.atlas).update_one(doc! { "_id": 1 }, change).await.unwrap();
        assert_eq!(changed.modified_count, 1, "the last one was repaired");
        // It is refused as long as the comparison of what the row before has replaced goes on.
        eventually("a comparison on demand", PATIENCE, async || {
            let asked = self.agent.cli(&["sync", "--ns", "shop.kept"]);
            let said = String::from_utf8_lossy(&asked.stderr).into_owned();
            let is_busy = said.contains("a full sync runs already");
            assert!(asked.status.success() || is_busy, "{asked:?}");
            !is_busy
        })
        .await;
        let shop = self.local.client.database("shop");
        shop.collection("turned").insert_one(doc! { "_id": 1 }).await.unwrap();
        shop.run_command(doc! { "convertToCapped": "turned", "size": 65_536 }).await.unwrap();
    }

    async fn equal(&self) {
        match self.order {
            MayDiffer::Nothing => equal(&self.local, &self.atlas, PATIENCE).await,
            _ => {
                equal_by_hand(&self.local, &self.atlas, &self.agent, PATIENCE).await;
            }
        }
    }

    async fn is_well(&mut self, row: &str) {
        println!("    {row}");
        let started = Instant::now();
        self.equal().await;
        eventually(row, PATIENCE, async || {
            self.agent.health().is_some_and(|health| {
                health["queueSize"] == 0
                    && health["phase"] == "streaming"
                    && health["breaker"] == "closed"
            })
        })
        .await;
        self.equal().await;
        assert!(self.agent.is_running(), "{row}");
        assert_eq!(self.agent.health().unwrap()["deadLetters"], 0, "{row}");
        println!("ok  {row} ({:.1} s)", started.elapsed().as_secs_f64());
    }

    async fn ends(self) {
        assert!(self.honesty.end().await > 0, "the agent was never asked");
    }
}

/// What nobody changes locally.
fn kept(server: &Mongod) -> Collection<Document> {
    server.client.database("shop").collection("kept")
}

/// Each row on one stage; `at` is the server that fails.
async fn run(rows: Vec<Row>, config: &str, at: fn(&Stage) -> &Mongod) {
    let mut stage = Stage::set(config).await;
    for (row, commands, fault) in rows {
        let mut data = doc! { "failCommands": commands };
        data.extend(fault);
        if row == LOST_HISTORY {
            stage.order = MayDiffer::Order;
        }
        let before = at(&stage).end_failing().await;
        // After such a word the driver waits for the server's next one, up to ten seconds.
        let is_shutdown = matches!(data.get_i32("errorCode"), Ok(91 | 11600));
        at(&stage).fail(data, if is_shutdown { 1 } else { 3 }).await;
        if commands == ["find"] {
            stage.has_one_read_by_key().await;
        }
        stage.work().await;
        stage.is_well(row).await;
        assert!(at(&stage).end_failing().await > before, "{row}: nothing has failed");
    }
    stage.ends().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_row_of_the_local_sides_faults_ends_equal() {
    run(rows_of_the_local_side(), DELTAS, |stage| &stage.local).await;
}

/// What only takes its time costs no write an attempt, so that none needs a second one.
#[tokio::test(flavor = "multi_thread")]
async fn every_row_of_atlas_faults_ends_equal_without_a_single_retry() {
    run(rows_of_atlas(), "[worker]\nmax_retries = 0\n", |stage| &stage.atlas).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_row_of_the_lines_faults_ends_equal() {
    let mut stage = Stage::set(AUTO).await;
    let rows = [
        ("a line that is cut", Line::Cut),
        ("a line on which nothing comes through", Line::Silent),
        ("a line on which the answers are lost", Line::Mute),
        ("a line that is slow", Line::Slow),
    ];
    for (row, fault) in rows {
        for (end, name) in [(0, "to the local database"), (1, "to Atlas")] {
            let line = |stage: &Stage, state| {
                let line = if end == 0 { &stage.to_local } else { &stage.to_atlas };
                line.set(state);
                line.struck()
            };
            let before = line(&stage, fault);
            stage.work().await;
            // Longer than the timeout of 5 s, so that connections are given up.
            tokio::time::sleep(Duration::from_secs(7)).await;
            stage.work().await;
            let struck = line(&stage, Line::Up) - before;
            assert!(struck > 0, "{row} {name}: nothing was on the line");
            stage.is_well(&format!("{row} {name}")).await;
        }
    }
    stage.ends().await;
}

/// Here a row ends refused, with Atlas as it was, and equal once the agent was told to adopt it.
#[tokio::test(flavor = "multi_thread")]
async fn every_row_of_another_database_at_the_local_address_ends_refused() {
    let mut stage = Stage::set("").await;
    stage.local.terminate();
    let backup = stage.local.back_up();
    stage.local.resume().await;
    let rows =
        ["a local database that was put back to a backup", "a local database that was wiped"];
    for row in rows {
        stage.work().await;
        stage.honesty.look_away(true).await;
        stage.is_well(row).await;
        let before = everything(&stage.atlas).await.unwrap();
        stage.local.kill();
        if row.contains("wiped") {
            stage.local.wipe();
            stage.local.resume().await;
            stage.local.initiate().await;
        } else {
            stage.local.put_back(&backup);
            stage.local.resume().await;
        }
        stage.work().await;
        let status = stage.agent.ended(PATIENCE).await;
        let found =
            differences(&before, &everything(&stage.atlas).await.unwrap(), MayDiffer::Nothing);
        assert!(found.is_empty(), "{row}: {} strays, the first {}", found.len(), brief(&found[0]));
        assert_eq!(status.code(), Some(1), "{row}");
        stage.agent.adopt();
        stage.order = MayDiffer::Order;
        stage.is_well(row).await;
        stage.honesty.look_away(false).await;
    }

    let row = "a line to Atlas that leads to the local database";
    assert!(stage.agent.stop().success());
    let records = stage.local.client.database("outrigger").collection::<Document>("replicas");
    stage.agent.set_env("MONGODB_ATLAS_URI", &stage.to_local.uri());
    stage.agent.start(&[]);
    assert_eq!(stage.agent.ended(PATIENCE).await.code(), Some(2), "{row}");
    assert_eq!(records.count_documents(doc! {}).await.unwrap(), 0, "{row}");
    stage.agent.set_env("MONGODB_ATLAS_URI", &stage.to_atlas.uri());
    stage.agent.start(&[]);
    stage.work().await;
    stage.is_well(row).await;
    stage.ends().await;
}
