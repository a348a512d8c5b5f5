//! A steady stream of single inserts: how long until each is visible in Atlas, and what the application notices.
//!
//! In turn, at each rate: the agent off and on, several times, since a machine that is shared is not the same a
//! minute later; the agent on and the lag watched; a bare forwarder in its place and the lag watched. Nobody watches
//! while the application's own latency is compared, since the watcher's work would count as the agent's.

use std::{
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use bson::{RawDocumentBuf, rawdoc};
use futures_util::StreamExt;
use mongodb::{Client, options::ClientOptions};
use tokio::{sync::Semaphore, task::JoinSet};

use crate::{
    bed::{Bed, Variant, streaming},
    data::{self, ORDERS, USUAL},
    process::{Meter, Process, Usage},
    raw,
    report::{Notebook, Target},
    settings::Settings,
    support::agent::Agent,
};

/// Connections of the application, and of the forwarder.
const CONNECTIONS: u32 = 64;

/// How often the agent is off and on in a run, each time for its part of the seconds.
const TURNS: u64 = 4;

/// How long the watcher waits for what is still under way.
const STRAGGLERS: Duration = Duration::from_secs(120);

/// When each write of a phase was sent, was committed, and was seen in Atlas.
#[derive(Default)]
struct Moments {
    sent: OnceLock<Instant>,
    committed: OnceLock<Instant>,
    seen: OnceLock<Instant>,
}

/// The writes of one phase: documents `first..first + moments.len()`.
struct Phase {
    first: u64,
    rate: u64,
    moments: Vec<Moments>,
}

pub async fn run(settings: Settings, book: Notebook) {
    book.note(
        "Open loop: each insert (majority) is sent when it is due. The lag is from its acknowledgement to its event \
         in a change stream of the target. Everything shares one machine, so that the target's work slows the \
         application down too, which Atlas would not. Where a rate is not reached with the agent off, the machine is \
         full, and its latencies are those of a growing line of waiting writes.",
    );
    for rate in &settings.rates {
        if *rate == 1_000 {
            for percentile in ["p50", "p99"] {
                let most = if percentile == "p50" { 20.0 } else { 100.0 };
                let figure = format!("1000/s: lag {percentile} above the bare forwarder's");
                book.mark(&figure, Target::AtMost(most));
                let most = if percentile == "p50" { 1.05 } else { 1.15 };
                let figure = format!("1000/s: insert latency {percentile}, on / off");
                book.mark(&figure, Target::AtMost(most));
            }
        }
        steady(&settings, &book, *rate).await;
    }
}

async fn steady(settings: &Settings, book: &Notebook, rate: u64) {
    let bed = Bed::start().await;
    let [app, target] = [&bed.local, &bed.atlas].map(|server| pool(server.uri()));
    let (app, target) = (app.await, target.await);
    for _ in 0..settings.runs {
        bed.reset().await;
        let mut agent = bed.copied(&bed.atlas.uri(), Variant::Usual).await;
        let mut next = 0;
        let mut phase = |seconds| {
            let phase = Phase::new(next, rate, seconds);
            next += phase.moments.len() as u64;
            Arc::new(phase)
        };

        let part = (settings.seconds / TURNS).max(1);
        for turn in 0..TURNS {
            let off = phase(part);
            let meter = bed.meter();
            let reached = off.write(&app).await;
            costs(book, rate, "agent off", meter.stop());
            book.add(&format!("{rate}/s: reached, off"), "writes/s", reached);
            agent.start(&[]);
            bed.settled(&agent, 2 * turn + 1).await;

            let on = phase(part);
            let meter = bed.meter_with(&agent);
            let reached = on.write(&app).await;
            book.add(&format!("{rate}/s: reached, on"), "writes/s", reached);
            costs(book, rate, "agent on", meter.stop());
            bed.settled(&agent, 2 * turn + 2).await;
            for (percentile, share) in [("p50", 0.5), ("p99", 0.99)] {
                let [off, on] = [&off, &on].map(|phase| percentile_of(phase.latencies(), share));
                let name = |what: &str| format!("{rate}/s: insert latency {percentile}, {what}");
                book.add(&name("off"), "ms", off);
                book.add(&name("on"), "ms", on);
                book.add(&name("on / off"), "ratio", on / off);
            }
            if turn + 1 < TURNS {
                assert!(agent.stop().success());
            }
        }

        let watched = phase(settings.seconds);
        let meter = bed.meter_with(&agent);
        watch(&bed.atlas.client, watched.clone(), watched.write(&app)).await;
        let usage = meter.stop();
        let share = usage.cpu("agent") * 100.0 / usage.elapsed.as_secs_f64();
        book.add(&format!("{rate}/s: agent CPU"), "% of a core", share);
        book.add(&format!("{rate}/s: agent peak RSS"), "MB", usage.peak("agent"));
        costs(book, rate, "agent on, lag watched", usage);
        bed.settled(&agent, 2 * TURNS + 1).await;
        assert!(agent.stop().success());

        let forwarded = phase(settings.seconds);
        let forwarder = forward(&bed, &target, forwarded.moments.len()).await;
        let meter = bed.meter();
        watch(&bed.atlas.client, forwarded.clone(), forwarded.write(&app)).await;
        costs(book, rate, "bare forwarder, lag watched", meter.stop());
        forwarder.abort();
        for (percentile, share) in [("p50", 0.5), ("p95", 0.95), ("p99", 0.99)] {
            let [agent, bare] =
                [&watched, &forwarded].map(|phase| percentile_of(phase.lags(), share));
            book.add(&format!("{rate}/s: lag {percentile}, agent"), "ms", agent);
            book.add(&format!("{rate}/s: lag {percentile}, bare forwarder"), "ms", bare);
            let above = agent - bare;
            book.add(
                &format!("{rate}/s: lag {percentile} above the bare forwarder's"),
                "ms",
                above,
            );
        }

        agent.start(&[]);
        streaming(&agent).await;
        bed.settled(&agent, 2 * TURNS + 2).await;
        assert!(agent.stop().success());
        bed.assert_equal().await;
    }
}

fn costs(book: &Notebook, rate: u64, step: &str, usage: Usage) {
    book.costs(&format!("{rate}/s, {step}"), &usage);
}

impl Bed {
    async fn settled(&self, agent: &Agent, n: u64) {
        self.write_sentinel(n).await;
        self.has_sentinel(agent, n).await;
    }

    fn meter_with(&self, agent: &Agent) -> Meter {
        Meter::start(&[
            Process { name: "local mongod", pid: self.local.id() },
            Process { name: "target mongod", pid: self.atlas.id() },
            Process { name: "bench", pid: std::process::id() },
            Process { name: "agent", pid: agent.id() },
        ])
    }
}

/// A client whose connections are all open: making them is no part of a steady state.
async fn pool(uri: String) -> Client {
    let mut options = ClientOptions::parse(uri).await.unwrap();
    options.max_pool_size = Some(CONNECTIONS);
    options.min_pool_size = Some(CONNECTIONS);
    let client = Client::with_options(options).unwrap();
    client.warm_connection_pool().await;
    client
}

impl Phase {
    fn new(first: u64, rate: u64, seconds: u64) -> Self {
        let moments = (0..rate * seconds).map(|_| Moments::default()).collect();
        Self { first, rate, moments }
    }

    /// Inserts at the rate, whether or not earlier ones were answered. Returns the rate at which they were.
    async fn write(self: &Arc<Self>, app: &Client) -> f64 {
        let orders = app.database("shop").collection::<RawDocumentBuf>(ORDERS);
        let started = tokio::time::Instant::now();
        let mut under_way = JoinSet::new();
        for n in 0..self.moments.len() {
            let due = started + Duration::from_secs_f64(n as f64 / self.rate as f64);
            tokio::time::sleep_until(due).await;
            let document = data::document(self.first + n as u64, USUAL);
            let (orders, phase) = (orders.clone(), self.clone());
            under_way.spawn(async move {
                let moments = &phase.moments[n];
                let _ = moments.sent.set(Instant::now());
                orders.insert_one(document).await.unwrap();
                let _ = moments.committed.set(Instant::now());
            });
            while under_way.try_join_next().is_some() {}
        }
        while let Some(written) = under_way.join_next().await {
            written.unwrap();
        }
        self.moments.len() as f64 / started.elapsed().as_secs_f64()
    }

    /// Milliseconds of each insert.
    fn latencies(&self) -> Vec<f64> {
        let of = |moments: &Moments| Some(between(*moments.sent.get()?, *moments.committed.get()?));
        self.moments.iter().filter_map(of).collect()
    }

    /// Milliseconds from each commit to its visibility. What was visible before its acknowledgement came back has
    /// none.
    fn lags(&self) -> Vec<f64> {
        let of = |moments: &Moments| Some(between(*moments.committed.get()?, *moments.seen.get()?));
        self.moments.iter().filter_map(of).collect()
    }
}

fn between(from: Instant, to: Instant) -> f64 {
    to.saturating_duration_since(from).as_secs_f64() * 1e3
}

/// # Panics
/// Without values: a share of nothing would pass every mark.
fn percentile_of(mut values: Vec<f64>, share: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    values[((values.len() - 1) as f64 * share).round() as usize]
}

/// Notes when each document of a phase is seen in Atlas, while `writing` goes on.
async fn watch(atlas: &Client, phase: Arc<Phase>, writing: impl Future<Output = f64>) {
    let stream = rawdoc! {
        "aggregate": ORDERS, "pipeline": [{ "$changeStream": {} }], "cursor": {},
    };
    let mut cursor = raw::open(atlas, "shop", stream).await;
    let watcher = tokio::spawn(async move {
        let mut left = phase.moments.len();
        while left > 0 {
            let reply = cursor.next().await.expect("the stream goes on").unwrap();
            let now = Instant::now();
            for event in raw::documents(&reply) {
                let Ok(document) = event.get_document("fullDocument") else { continue };
                let number = document.get_i64("number").unwrap() as u64;
                let place = number.checked_sub(phase.first).map(|place| place as usize);
                if let Some(moments) = place.and_then(|place| phase.moments.get(place))
                    && moments.seen.set(now).is_ok()
                {
                    left -= 1;
                }
            }
        }
    });
    writing.await;
    let seen = tokio::time::timeout(STRAGGLERS, watcher).await;
    seen.expect("all is seen in Atlas in time").unwrap();
}

/// Reads the change stream as the agent does, and writes each insert at once.
async fn forward(bed: &Bed, target: &Client, events: usize) -> tokio::task::JoinHandle<()> {
    let mut cursor = raw::open_stream(&bed.local.client, bed.position().await).await;
    let db = target.database("shop");
    tokio::spawn(async move {
        let slots = Arc::new(Semaphore::new(CONNECTIONS as usize));
        let mut under_way = JoinSet::new();
        let mut left = events;
        while left > 0 {
            let reply = cursor.next().await.expect("the stream goes on").unwrap();
            for event in raw::documents(&reply) {
                let Ok(document) = event.get_document("fullDocument") else { continue };
                let insert = rawdoc! {
                    "insert": ORDERS, "documents": [document.to_owned()],
                    "writeConcern": { "w": "majority" },
                };
                let (db, slots) = (db.clone(), slots.clone());
                under_way.spawn(async move {
                    let _slot = slots.acquire().await.unwrap();
                    db.run_raw_command(insert).await.unwrap();
                });
                left -= 1;
            }
            while under_way.try_join_next().is_some() {}
        }
        while let Some(written) = under_way.join_next().await {
            written.unwrap();
        }
    })
}
