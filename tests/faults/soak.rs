//! Random work under random faults on both sides, for as long as `OUTRIGGER_SOAK_SECONDS` says (60; `make
//! soak` takes ten minutes), repeatable by `OUTRIGGER_SEED` as far as time allows.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use mongodb::bson::{Document, RawDocumentBuf, doc};
use rand::{
    Rng, SeedableRng,
    rngs::StdRng,
    seq::{IndexedRandom, SliceRandom},
};
use tokio_util::sync::CancellationToken;

use crate::support::{
    PATIENCE,
    agent::Agent,
    equal::{MayDiffer, equal, equal_but, equal_by_hand},
    eventually, from_env,
    honesty::Honesty,
    mongod::Mongod,
    pair,
    proxy::{Line, Proxy},
    seed,
    unasked::{
        self, Unasked,
        Unasked::{Doubt, NewQueue, Repair, Retries},
    },
};

mod application;

use application::{Done, PERSONS};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Fault {
    AgentKilled,
    AgentRestarted,
    LocalKilled,
    LocalRestarted,
    AtlasKilled,
    AtlasRestarted,
    LocalLine,
    AtlasLine,
    LocalErrors,
    AtlasErrors,
    /// Atlas takes nothing of one collection.
    AtlasRejects,
    HistoryLost,
    QueueGone,
    Paused,
    /// The local database is put back to a backup, or wiped and initiated anew, under the agent's eyes.
    LocalPutBack,
    LocalWiped,
}

/// A deck, by weight: what is milder comes more often. Each run begins with one of each kind.
const FAULTS: &[Fault] = &[
    Fault::AgentKilled,
    Fault::AgentKilled,
    Fault::AgentKilled,
    Fault::AgentRestarted,
    Fault::LocalKilled,
    Fault::LocalRestarted,
    Fault::AtlasKilled,
    Fault::AtlasRestarted,
    Fault::LocalLine,
    Fault::LocalLine,
    Fault::AtlasLine,
    Fault::AtlasLine,
    Fault::LocalErrors,
    Fault::LocalErrors,
    Fault::AtlasErrors,
    Fault::AtlasErrors,
    Fault::AtlasRejects,
    Fault::HistoryLost,
    Fault::QueueGone,
    Fault::Paused,
];

/// Each takes half a minute, so these come in a long run only.
const LONG_FAULTS: &[Fault] = &[Fault::LocalPutBack, Fault::LocalWiped];

const LOSE_HISTORY: [Fault; 4] =
    [Fault::HistoryLost, Fault::QueueGone, Fault::LocalPutBack, Fault::LocalWiped];

#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Local,
    Atlas,
}

/// Reasons of comparisons of one collection, which the work itself gives: its events or an answer do not tell all of it.
const OF_ONE_COLLECTION: [&str; 4] = [
    "a collection was replaced as a whole",
    "a collection was renamed",
    "Atlas did not answer a schema change",
    "a collection changed while documents of it gave way to others",
];

/// Of `[worker]` in this test: the wait after a rejection, less its spread.
const RETRY_DELAY_MS: u128 = 450;

/// How often commands may be asked for in this time while they fail: by the policies. The lanes share a breaker, which
/// lets some through at first and then one in 160 ms (`breaker.open_for`, less its spread). Of the local side the tailer
/// asks, the gate's keeper, the comparison and each lane, none of them twice in 80 ms.
fn most_attempts(side: Side, took: Duration) -> i64 {
    let (loops, wait_ms) = if side == Side::Local { (7, 80) } else { (1, 160) };
    20 + loops * i64::try_from(took.as_millis() / wait_ms).unwrap()
}

/// What comes next, dealt from a shuffled deck, so that every kind comes.
struct Deck {
    cards: Vec<Fault>,
    is_long: bool,
    /// Not every kind has come.
    is_first: bool,
}

impl Deck {
    fn new(is_long: bool, rng: &mut StdRng) -> Self {
        let kinds = FAULTS.iter().chain(LONG_FAULTS.iter().filter(|_| is_long));
        let mut cards: Vec<Fault> =
            kinds.copied().collect::<std::collections::BTreeSet<_>>().into_iter().collect();
        cards.shuffle(rng);
        Self { cards, is_long, is_first: true }
    }

    fn deal(&mut self, rng: &mut StdRng) -> Fault {
        if self.cards.is_empty() {
            self.cards = FAULTS.to_vec();
            self.cards.extend(LONG_FAULTS.iter().filter(|_| self.is_long));
            self.cards.shuffle(rng);
        }
        let card = self.cards.pop().expect("it was filled");
        self.is_first &= !self.cards.is_empty();
        card
    }
}

struct Stage {
    local: Mongod,
    atlas: Mongod,
    to_local: Proxy,
    to_atlas: Proxy,
    agent: Agent,
    honesty: Option<Honesty>,
    rng: StdRng,
    done: Arc<Done>,
    /// What the application did, of servers whose oplog is gone.
    kinds: BTreeSet<&'static str>,
    /// Of servers that were stopped since.
    writes_sent: i64,
}

#[tokio::test(flavor = "multi_thread")]
async fn random_work_under_random_faults_ends_equal() {
    let seconds: Option<u64> = from_env("OUTRIGGER_SOAK_SECONDS");
    let until = Instant::now() + Duration::from_secs(seconds.unwrap_or(60));
    let seed = seed();
    let (local, atlas) = pair().await;
    let (to_local, to_atlas) = (Proxy::to(local.port).await, Proxy::to(atlas.port).await);
    for server in [&local, &atlas] {
        unique_seats(server).await;
    }
    let (stop, done) = (CancellationToken::new(), Arc::<Done>::default());
    let work = tokio::spawn(application::work(
        local.client.clone(),
        local.port,
        StdRng::seed_from_u64(seed),
        (stop.clone(), done.clone()),
    ));
    let config = "[worker]\nbatch_size = 100\nretry_delays = [\"500ms\"]\nmax_retries = 200\n[sync]\nmax_delete_ratio = 1.0\n";
    let mut agent = Agent::new(&to_local.uri(), &to_atlas.uri(), config);
    agent.may(&[Doubt, Repair, Retries, NewQueue], "every fault is dealt");
    agent.beats();
    agent.start(&["--adopt"]);
    agent.streaming().await;
    let honesty = Some(Honesty::watch(&local.client, &atlas.client, &agent));
    let rng = StdRng::seed_from_u64(seed + 1);
    let mut stage = Stage {
        local,
        atlas,
        to_local,
        to_atlas,
        agent,
        honesty,
        rng,
        done: done.clone(),
        kinds: BTreeSet::new(),
        writes_sent: 0,
    };
    let mut faults: BTreeMap<Fault, u32> = BTreeMap::new();
    let mut deck = Deck::new(seconds.is_some_and(|seconds| seconds >= 300), &mut stage.rng);
    let began = Instant::now();
    while deck.is_first || Instant::now() < until {
        let fault = deck.deal(&mut stage.rng);
        // Behind these everything is compared, which would mend what replication has missed before.
        if LOSE_HISTORY.contains(&fault) {
            let _rests = done.turn.lock().await;
            stage.is_equal(faults.keys().any(|fault| LOSE_HISTORY.contains(fault))).await;
        }
        *faults.entry(fault).or_default() += 1;
        stage.inflict(fault).await;
        let calm = stage.rng.random_range(200..2_500);
        tokio::time::sleep(Duration::from_millis(calm)).await;
    }
    let judged = stage.honesty.take().expect("it watches").end().await;
    stop.cancel();
    work.await.unwrap();
    let [operations, refused] =
        [&done.operations, &done.refused].map(|count| count.load(Ordering::Relaxed));

    stage.take_kinds().await;
    let Stage { local, atlas, agent, .. } = &stage;
    // Where a history was lost, what only a new collection can change stays, until a person takes it away.
    let by_hand = equal_by_hand(local, atlas, agent, 2 * PATIENCE).await;
    assert!(
        by_hand == 0 || LOSE_HISTORY.iter().any(|fault| faults.contains_key(fault)),
        "{faults:?}"
    );
    eventually("an empty queue", PATIENCE, async || {
        agent.health().is_some_and(|health| health["queueSize"] == 0)
    })
    .await;
    equal_but(MayDiffer::Order, local, atlas, PATIENCE).await;
    let sent = stage.writes_sent + stage.atlas.writes().await;
    println!("operations {operations}, {refused} had an error");
    println!("faults     {faults:?}");
    println!("writes sent {sent}");
    println!("judged     {judged:?}");
    println!("equal      yes, byte for byte");
    assert_eq!(stage.agent.health().unwrap()["deadLetters"], 0);
    // Servers are away for a part of the time; what the rest is must be work, of every kind.
    assert!(operations > 500, "{operations} in {:?}", began.elapsed());
    for (kind, _) in application::kinds() {
        assert!(stage.kinds.contains(kind), "the application has made no {kind}");
    }
    assert!(operations > refused, "{refused} errors, {operations} operations");
    assert!(!stage.agent.log().contains("panicked"));
}

async fn unique_seats(server: &Mongod) {
    let unique = doc! { "key": { "u": 1 }, "name": "u", "unique": true };
    let command = doc! { "createIndexes": "seats", "indexes": [unique] };
    // Where the work is under way already, its documents may not allow it.
    let _ = server.client.database("shop").run_command(command).await;
}

impl Stage {
    /// While the application rests; `is_lost` once a history was. Before that nothing had everything compared.
    async fn is_equal(&self, is_lost: bool) {
        if is_lost {
            equal_by_hand(&self.local, &self.atlas, &self.agent, 2 * PATIENCE).await;
            return;
        }
        equal(&self.local, &self.atlas, 2 * PATIENCE).await;
        let doubts = unasked::told(&self.agent.log()).into_iter().filter(|(what, told)| {
            *what == Unasked::Doubt && !OF_ONE_COLLECTION.iter().any(|reason| told.contains(reason))
        });
        assert_eq!(doubts.count(), 0, "something has everything compared that loses no history");
    }

    /// What the application has done, as the local oplog has it.
    async fn take_kinds(&mut self) {
        // Not decoded: it tells of names that are no text.
        let oplog = self.local.client.database("local").collection::<RawDocumentBuf>("oplog.rs");
        for (kind, found) in application::kinds() {
            if !self.kinds.contains(kind) && oplog.find_one(found).await.unwrap().is_some() {
                self.kinds.insert(kind);
            }
        }
    }

    fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        *of.choose(&mut self.rng).unwrap()
    }

    async fn hold(&mut self) {
        let ms = self.rng.random_range(100..4_000);
        tokio::time::sleep(Duration::from_millis(ms)).await;
    }

    /// An agent that meets no local database at its start says so and ends; the service manager starts it again,
    /// which there is none of here.
    async fn start_agent(&mut self) {
        self.local.end_failing().await;
        self.agent.start(&[]);
        eventually("an agent that runs", PATIENCE, async || self.agent.health().is_some()).await;
    }

    /// Has commands fail for a while; how often they were asked for, and in what time.
    async fn fails(&mut self, side: Side, data: Document) -> (i64, Duration) {
        let ms = self.rng.random_range(1_000..4_000);
        let server = if side == Side::Local { &self.local } else { &self.atlas };
        let before = server.end_failing().await;
        let began = Instant::now();
        server.fail(data, i32::MAX).await;
        tokio::time::sleep(Duration::from_millis(ms)).await;
        (server.end_failing().await - before, began.elapsed())
    }

    async fn inflict(&mut self, fault: Fault) {
        match fault {
            Fault::AgentKilled => {
                self.agent.kill();
                self.start_agent().await;
            }
            Fault::AgentRestarted => {
                assert!(self.agent.stop().success(), "{}", self.agent.log());
                self.start_agent().await;
            }
            Fault::LocalKilled => {
                self.local.kill();
                self.hold().await;
                self.local.resume().await;
            }
            Fault::LocalRestarted => {
                self.local.terminate();
                self.local.resume().await;
            }
            Fault::AtlasKilled | Fault::AtlasRestarted => {
                self.writes_sent += self.atlas.writes().await;
                if fault == Fault::AtlasKilled {
                    self.atlas.kill();
                } else {
                    self.atlas.terminate();
                }
                self.hold().await;
                self.atlas.resume().await;
            }
            Fault::LocalLine | Fault::AtlasLine => {
                // A silent line to Atlas delivers late, which an agent that was killed meanwhile does not
                // know of (docs/limits.md). The fault matrix has it, without kills.
                let mut states = vec![Line::Cut, Line::Mute, Line::Slow];
                states.extend((fault == Fault::LocalLine).then_some(Line::Silent));
                let state = self.pick(&states);
                let of = |stage: &Self, state| {
                    if fault == Fault::LocalLine {
                        stage.to_local.set(state);
                    } else {
                        stage.to_atlas.set(state);
                    }
                };
                of(self, state);
                self.hold().await;
                of(self, Line::Up);
            }
            Fault::LocalErrors => {
                let code = self.pick(&[43, 91, 189, 237, 10107, 11602]);
                let commands = ["find", "getMore", "aggregate", "listCollections"];
                let data = doc! { "failCommands": commands.as_slice(), "errorCode": code };
                let (asked, took) = self.fails(Side::Local, data).await;
                let most = most_attempts(Side::Local, took);
                println!("{fault:?} {code}: asked {asked} times in {took:?}, of at most {most}");
                assert!(asked <= most, "{asked} attempts in {took:?}");
            }
            Fault::AtlasErrors => {
                let code = self.pick(&[50, 91, 112, 189, 8000, 10107, 11600]);
                let mut data = doc! { "failCommands": ["insert", "update", "delete"] };
                data.extend(match self.rng.random_range(0..3) {
                    0 => doc! { "closeConnection": true },
                    1 => doc! { "writeConcernError": { "code": 64, "errmsg": "planted" } },
                    _ => doc! { "errorCode": code },
                });
                let (asked, took) = self.fails(Side::Atlas, data).await;
                let most = most_attempts(Side::Atlas, took);
                println!("{fault:?} {code}: asked {asked} times in {took:?}, of at most {most}");
                assert!(asked <= most, "{asked} attempts in {took:?}");
            }
            Fault::AtlasRejects => {
                let commands = ["insert", "update"];
                let data = doc! {
                    "failCommands": commands.as_slice(), "namespace": "shop.seats", "errorCode": 121,
                };
                let seated = self.done.seated.load(Ordering::Relaxed);
                let (asked, took) = self.fails(Side::Atlas, data).await;
                let seated = self.done.seated.load(Ordering::Relaxed) - seated;
                // Whoever was moved is tried again, and whoever had the seat; and each person by the schedule. A batch
                // that was refused as a whole is tried in its parts.
                let rounds = u64::try_from(1 + took.as_millis() / RETRY_DELAY_MS).unwrap();
                let most = i64::try_from(2 * (2 * seated + PERSONS * rounds)).unwrap();
                println!("{fault:?}: asked {asked} times in {took:?}, of at most {most}");
                assert!(asked <= most, "{asked} attempts in {took:?}, {seated} seats");
            }
            Fault::HistoryLost => {
                let code = self.pick(&[136, 260, 280, 286]);
                let data = doc! { "failCommands": ["aggregate", "getMore"], "errorCode": code };
                self.local.fail(data, 1).await;
            }
            Fault::QueueGone => {
                self.agent.kill();
                std::fs::remove_dir_all(self.agent.dir.path().join("queue")).unwrap();
                self.start_agent().await;
            }
            Fault::Paused => {
                self.agent.cli(&["pause"]);
                self.hold().await;
                self.agent.cli(&["resume"]);
            }
            Fault::LocalPutBack => {
                self.take_kinds().await;
                self.look_away(true).await;
                self.local.terminate();
                let backup = self.local.back_up();
                self.local.resume().await;
                // Something is to come after it, and to be read.
                self.agent.streaming().await;
                self.hold().await;
                self.local.kill();
                self.local.put_back(&backup);
                self.local.resume().await;
                self.is_refused().await;
                self.look_away(false).await;
            }
            Fault::LocalWiped => {
                self.take_kinds().await;
                self.look_away(true).await;
                self.agent.streaming().await;
                self.local.kill();
                self.local.wipe();
                self.local.resume().await;
                self.local.initiate().await;
                unique_seats(&self.local).await;
                self.is_refused().await;
                self.look_away(false).await;
            }
        }
    }
}

impl Stage {
    async fn look_away(&self, away: bool) {
        if let Some(honesty) = &self.honesty {
            honesty.look_away(away).await;
        }
    }

    /// Nothing of the wrong database comes to Atlas, until the agent is told to adopt it.
    async fn is_refused(&mut self) {
        let wrong = |server: &Mongod| server.client.database("shop").collection("wrong");
        wrong(&self.local).insert_one(doc! { "_id": 1 }).await.unwrap();
        let status = self.agent.ended(PATIENCE).await;
        assert_eq!(status.code(), Some(1), "{}", self.agent.log());
        let found = wrong(&self.atlas).count_documents(doc! {}).await.unwrap();
        assert_eq!(found, 0, "{}", self.agent.log());
        wrong(&self.local).drop().await.unwrap();
        self.local.end_failing().await;
        self.agent.adopt();
        eventually("an agent that runs", PATIENCE, async || self.agent.health().is_some()).await;
    }
}
