//! The fault matrix: each row is a sentence and a fault on real servers, and ends with both sides equal
//! byte for byte, the same agent running, and no dead letter. No write has a second attempt (`max_retries = 0`), so that an
//! outage that is taken for a rejection shows.
//!
//! Each command of a row fails by itself and is seen to: of several that share a count, one takes all of it. Among the
//! other tests all commands of a row fail before both sides are compared, and each update mode has one stage; `make nightly`
//! compares them after each, in every mode.

use std::time::{Duration, Instant};

use mongodb::{
    Collection, IndexModel,
    bson::{Document, doc},
    options::IndexOptions,
};
use rand::{SeedableRng, rngs::StdRng, seq::SliceRandom};

use crate::support::{
    PATIENCE,
    agent::Agent,
    equal::{MayDiffer, equal, equal_by_hand},
    eventually,
    honesty::{Bounds, Honesty, Judged},
    mongod::Mongod,
    names, odd_work, orders, pair,
    proxy::{Line, Proxy},
    seed,
    unasked::Unasked::{Doubt, Repair},
    workload,
};

mod exchanged;
mod rows;

use rows::{LOST_HISTORY, NO_SNAPSHOT, Row, is_stall};

/// How updates are sent: read again, as they came where that is exact, or what is less.
const MODES: [&str; 3] = ["document", "delta", "auto"];

/// Every command of every row has both sides compared, in every mode. An hour at its own timeouts.
fn is_whole() -> bool {
    std::env::var_os("OUTRIGGER_TEST_UNSCALED").is_some()
}

/// A server that holds up an answer does so three times, each longer than the agent waits for it.
fn patience() -> Duration {
    if is_whole() { 5 * PATIENCE } else { PATIENCE }
}

/// The modes of a stage whose turn it is in `mode` among the other tests.
fn modes(mode: &'static str) -> Vec<&'static str> {
    if is_whole() { MODES.into() } else { vec![mode] }
}

/// Which server fails.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Local,
    Atlas,
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
    /// So often something was made with a number, in place of the last one.
    made: i32,
    /// No event of a 5.0 tells of options and indexes, which are looked at twice a minute.
    tells_all: bool,
}

impl Stage {
    async fn set(mode: &str) -> Self {
        let (local, atlas) = pair().await;
        Self::between(local, atlas, mode).await
    }

    async fn between(local: Mongod, atlas: Mongod, mode: &str) -> Self {
        let (to_local, to_atlas) = (Proxy::to(local.port).await, Proxy::to(atlas.port).await);
        orders(&local).insert_many((0..50).map(|n| doc! { "_id": n })).await.unwrap();
        kept(&local).insert_one(doc! { "_id": 1 }).await.unwrap();
        let config = format!("[worker]\nmax_retries = 0\nupdate_mode = \"{mode}\"\n");
        let agent = Agent::watched(&to_local.uri(), &to_atlas.uri(), &config);
        agent.may(&[Doubt, Repair], "histories are lost, and Atlas is written to by hand");
        agent.streaming().await;
        let honesty = Honesty::watch(&local.client, &atlas.client, &agent);
        let version = local.admin(doc! { "buildInfo": 1 }).await;
        let tells_all = !version.get_str("version").unwrap().starts_with("5.");
        let (order, rng) = (MayDiffer::Nothing, StdRng::seed_from_u64(seed()));
        Self { local, atlas, to_local, to_atlas, agent, honesty, order, rng, made: 0, tells_all }
    }

    fn server(&self, side: Side) -> &Mongod {
        if side == Side::Local { &self.local } else { &self.atlas }
    }

    fn line(&self, side: Side) -> &Proxy {
        if side == Side::Local { &self.to_local } else { &self.to_atlas }
    }

    /// Something for each command that the agent has: a document that comes, one that goes, one that changes, collections
    /// and indexes likewise, and a name that is taken over.
    async fn step(&mut self) {
        self.made += 1;
        let n = self.made;
        let shop = self.local.client.database("shop");
        let guests = shop.collection::<Document>("guests");
        guests.insert_one(doc! { "_id": n }).await.unwrap();
        guests.delete_one(doc! { "_id": n - 1 }).await.unwrap();
        // Large enough that a change of a little of it goes by itself, where either may.
        let change = doc! { "$set": { "text": "ü€𝄞".repeat(600), "n": n } };
        let texts = shop.collection::<Document>("texts");
        texts.update_one(doc! { "_id": 1 }, change).upsert(true).await.unwrap();
        // A field that the random changes leave alone: they may make anything of the others.
        orders(&self.local).update_many(doc! {}, doc! { "$inc": { "touched": 1 } }).await.unwrap();
        let staging = shop.collection::<Document>("staging");
        staging.insert_many((0..5).map(|n| doc! { "_id": n })).await.unwrap();
        let rename =
            doc! { "renameCollection": "shop.staging", "to": "shop.archive", "dropTarget": true };
        self.local.admin(rename).await;
        let brief = shop.collection::<Document>("brief");
        brief.insert_one(doc! { "_id": 1 }).await.unwrap();
        brief.drop().await.unwrap();
        if self.tells_all {
            self.step_of_schema().await;
        }
    }

    async fn step_of_schema(&mut self) {
        let shop = self.local.client.database("shop");
        shop.collection::<Document>("bounded").drop().await.unwrap();
        let bounded = shop.create_collection("bounded").capped(true).size(65_536);
        bounded.await.unwrap();
        let validator = doc! { "n": { "$lte": self.made + 1_000 } };
        shop.run_command(doc! { "collMod": "texts", "validator": validator }).await.unwrap();
        let name = |n: i32| format!("touched {n}");
        // The random changes leave indexes as they are now and then, and a server that was put back to a backup, or
        // wiped, does not have the last one.
        let there = orders(&self.local).list_index_names().await.unwrap_or_default();
        if there.contains(&name(self.made - 1)) {
            orders(&self.local).drop_index(name(self.made - 1)).await.unwrap();
        }
        let named = IndexOptions::builder().name(name(self.made)).build();
        let keys = doc! { "touched": if self.made % 2 == 0 { 1 } else { -1 } };
        let index = IndexModel::builder().keys(keys).options(named).build();
        orders(&self.local).create_index(index).await.unwrap();
    }

    /// Changes of every kind: documents, collections that come, go and change their names, and odd schema.
    async fn work(&mut self) {
        for collection in &workload::collections(&self.local.client) {
            for _ in 0..15 {
                workload::change(collection, &mut self.rng).await.unwrap();
            }
        }
        self.step().await;
        for _ in 0..if self.tells_all { 12 } else { 0 } {
            let names = self.local.client.database("names");
            names::step(&names, &mut self.rng).await.unwrap();
            odd_work::step(self.local.port, &mut self.rng).await.unwrap();
        }
    }

    /// Somebody changes a document of Atlas, and a person has it compared: it is read by its key locally, which nothing
    /// else that happens here is sure to need.
    async fn has_one_read_by_key(&self) {
        let change = doc! { "$set": { "by hand": true } };
        let changed = kept(&self.atlas).update_one(doc! { "_id": 1 }, change).await.unwrap();
        assert_eq!(changed.modified_count, 1, "the last one was repaired");
        // It is refused as long as the comparison of what the row before has replaced goes on.
        eventually("a comparison on demand", patience(), async || {
            let asked = self.agent.cli(&["sync", "--ns", "shop.kept"]);
            let said = String::from_utf8_lossy(&asked.stderr).into_owned();
            let is_busy = said.contains("a full sync runs already");
            assert!(asked.status.success() || is_busy, "{asked:?}");
            !is_busy
        })
        .await;
    }

    /// A collection is replaced as a whole, whose comparison goes before another that is under way.
    async fn replaces_one(&self) {
        let shop = self.local.client.database("shop");
        shop.collection("turned").insert_one(doc! { "_id": 1 }).await.unwrap();
        shop.run_command(doc! { "convertToCapped": "turned", "size": 65_536 }).await.unwrap();
    }

    /// Has a command of the agent fail, and sees that it has. What a stall is met by is a connection that is closed before
    /// the answer has come; or, where a stream is opened or read on, that the server is known to work on it still.
    async fn meets(&mut self, name: &str, side: Side, command: &str, fault: &Document) {
        let (logged, given_up) = (self.server(side).logged(), self.line(side).given_up());
        let mut data = doc! { "failCommands": [command] };
        data.extend(fault.clone());
        // After such a word the driver waits for the server's next one, up to ten seconds.
        let is_shutdown = matches!(data.get_i32("errorCode"), Ok(91 | 11600));
        self.server(side).fail(data, if is_shutdown { 1 } else { 3 }).await;
        if (side, command) == (Side::Local, "find") {
            self.has_one_read_by_key().await;
            if matches!(fault.get_i32("errorCode"), Ok(NO_SNAPSHOT)) {
                self.replaces_one().await;
            }
        }
        let give_up = Instant::now() + patience();
        let mut is_met = false;
        while !is_met {
            assert!(Instant::now() < give_up, "{name}: it was not asked");
            self.step().await;
            if (side, command) == (Side::Local, "aggregate") {
                self.loses_its_cursors().await;
            }
            let again = Instant::now() + Duration::from_secs(5);
            while !is_met && Instant::now() < again {
                tokio::time::sleep(Duration::from_millis(20)).await;
                is_met = self.server(side).failed_since(logged, command) > 0;
            }
        }
        if is_stall(fault) {
            eventually(&format!("{name}: nobody gives up"), patience(), async || {
                let scans =
                    || self.agent.health().is_some_and(|health| health["localScanMs"].is_u64());
                self.line(side).given_up() > given_up || side == Side::Local && scans()
            })
            .await;
        }
    }

    /// Somebody kills the cursor of the change stream, which is opened again then. One that is idle does not say whose it is.
    async fn loses_its_cursors(&self) {
        let admin = self.local.client.database("admin");
        let all = doc! { "$currentOp": { "allUsers": true, "idleCursors": true } };
        let ours = doc! { "$match": { "cursor.tailable": true } };
        let mut found = admin.aggregate([all, ours]).await.unwrap();
        while found.advance().await.unwrap() {
            let of = found.deserialize_current().unwrap();
            let cursor = of.get_document("cursor").unwrap().get_i64("cursorId").unwrap();
            let kill = doc! { "killCursors": "$cmd.aggregate", "cursors": [cursor] };
            admin.run_command(kill).await.unwrap();
        }
    }

    async fn equal(&self) {
        match self.order {
            MayDiffer::Nothing => equal(&self.local, &self.atlas, patience()).await,
            _ => {
                equal_by_hand(&self.local, &self.atlas, &self.agent, patience()).await;
            }
        }
    }

    async fn is_well(&mut self, row: &str) {
        println!("    {row}");
        let started = Instant::now();
        self.equal().await;
        eventually(row, patience(), async || {
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

    async fn ends(self) -> Judged {
        self.honesty.end().await
    }
}

/// What nobody changes locally.
fn kept(server: &Mongod) -> Collection<Document> {
    server.client.database("shop").collection("kept")
}

/// Each row on one stage.
async fn run(stage: &mut Stage, rows: Vec<Row>, side: Side) {
    for (row, commands, fault) in rows {
        if row == LOST_HISTORY {
            stage.order = MayDiffer::Order;
        }
        for command in commands {
            let name = format!("{row} ({command})");
            stage.meets(&name, side, command, &fault).await;
            if is_whole() {
                stage.is_well(&name).await;
            }
        }
        stage.work().await;
        stage.is_well(row).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_row_of_the_local_sides_faults_ends_equal() {
    for mode in modes("delta") {
        let mut stage = Stage::set(mode).await;
        run(&mut stage, rows::of_the_local_side(), Side::Local).await;
        stage.ends().await;
    }
}

/// Its stream tells less, so another part of the agent finds out what collections are like; a few rows among the other
/// tests, and others each time.
#[tokio::test(flavor = "multi_thread")]
async fn every_row_of_the_faults_of_a_local_side_that_is_a_5_0_ends_equal() {
    for mode in modes("document") {
        let (local, atlas) = tokio::join!(Mongod::start_of("5.0.4"), Mongod::start());
        let mut stage = Stage::between(local, atlas, mode).await;
        let mut rows = rows::of_the_local_side();
        if !is_whole() {
            let lost = rows.iter().position(|(row, ..)| *row == LOST_HISTORY).unwrap();
            let last = rows.split_off(lost);
            rows = [some(rows, 3, &mut stage.rng), some(last, 1, &mut stage.rng)].concat();
            stage.order = MayDiffer::Order;
        }
        run(&mut stage, rows, Side::Local).await;
        stage.ends().await;
    }
}

fn some(mut rows: Vec<Row>, n: usize, rng: &mut StdRng) -> Vec<Row> {
    rows.shuffle(rng);
    rows.truncate(n);
    rows
}

/// What only takes its time costs no write an attempt, so that none needs a second one.
#[tokio::test(flavor = "multi_thread")]
async fn every_row_of_atlas_faults_ends_equal_without_a_single_retry() {
    for mode in modes("document") {
        let mut stage = Stage::set(mode).await;
        run(&mut stage, rows::of_atlas(), Side::Atlas).await;
        stage.ends().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_row_of_the_lines_faults_ends_equal() {
    let mut stage = Stage::set("auto").await;
    let rows = [
        ("a line that is cut", Line::Cut),
        ("a line on which nothing comes through", Line::Silent),
        ("a line on which the answers are lost", Line::Mute),
        ("a line that is slow", Line::Slow),
    ];
    for (row, fault) in rows {
        for (side, name) in [(Side::Local, "to the local database"), (Side::Atlas, "to Atlas")] {
            let name = format!("{row} {name}");
            let (struck, given_up) = (stage.line(side).struck(), stage.line(side).given_up());
            stage.line(side).set(fault);
            stage.work().await;
            if fault == Line::Silent {
                // So long that nobody may be called healthy who does not hear of what is new.
                let lasts = Bounds::of_the_program().healthy + Duration::from_secs(3);
                tokio::time::sleep(lasts).await;
            }
            eventually(&name, patience(), async || {
                let line = stage.line(side);
                let is_stall = matches!(fault, Line::Silent | Line::Mute);
                line.struck() > struck && (!is_stall || line.given_up() > given_up)
            })
            .await;
            stage.work().await;
            stage.line(side).set(Line::Up);
            stage.is_well(&name).await;
        }
    }
    let judged = stage.ends().await;
    assert!(judged.over_an_old_marker > 0 && judged.heartbeats > 0, "{judged:?}");
}
