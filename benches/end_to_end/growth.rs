//! A queue that grows while Atlas is away: speed, memory, disk and the time to open it again, by depth.

use std::time::{Duration, Instant};

use crate::{
    bed::{Bed, Variant, await_until, emptied, filled, queue_size},
    data::{Backlog, USUAL},
    report::{Notebook, Target},
    settings::Settings,
    support::{
        agent::Agent,
        api::Api,
        proxy::{Line, Proxy},
    },
};

/// The depth that the marks speak of.
const DEEP: u64 = 10_000_000;

pub async fn run(settings: Settings, book: Notebook) {
    let depths: Vec<u64> = settings.growth.iter().map(|depth| settings.scaled(*depth)).collect();
    for depth in &depths {
        let figure = format!("depth {depth}: on disk after a drain and a refill / encoded bytes");
        book.mark(&figure, Target::AtMost(1.5));
    }
    if depths.contains(&DEEP) {
        book.mark(&format!("depth {DEEP}: agent peak RSS"), Target::AtMost(400.0));
        book.mark(&format!("depth {DEEP}: agent answers after a restart"), Target::AtMost(15.0));
    }
    if depths.len() > 1 {
        book.mark("reading, deepest / shallowest", Target::AtLeast(0.5));
    }
    let bed = Bed::start().await;
    for _ in 0..settings.runs {
        let mut rates = Vec::new();
        for depth in &depths {
            rates.push(grow(&bed, &book, *depth).await);
        }
        if let [shallowest, .., deepest] = rates[..] {
            book.add("reading, deepest / shallowest", "ratio", deepest / shallowest);
        }
    }
}

/// Returns the speed of reading.
async fn grow(bed: &Bed, book: &Notebook, depth: u64) -> f64 {
    let add = |name: &str, unit, value| book.add(&format!("depth {depth}: {name}"), unit, value);
    bed.reset().await;
    let line = Proxy::to(bed.atlas.port).await;
    let mut agent = bed.copied(&line.uri(), Variant::Usual).await;
    let backlog = Backlog::Inserts { count: depth, size: USUAL };
    backlog.apply(&bed.local.client, 1).await;

    line.set(Line::Cut);
    let meter = bed.start_agent(&mut agent);
    let filling = filled(&agent, depth, depth).await;
    let usage = meter.stop();
    book.costs(&format!("depth {depth}, reading"), &usage);
    add("reading", "events/s", filling.per_second);
    add("agent CPU", "µs/event", usage.cpu("agent") * 1e6 / depth as f64);
    add("agent peak RSS", "MB", usage.peak("agent"));
    let (_, encoded, disk) = queue_stats(&agent);
    add("encoded", "B/document", encoded / depth as f64);
    add("on disk / encoded bytes", "ratio", disk / encoded);

    assert!(agent.stop().success(), "{}", agent.log());
    let started = Instant::now();
    let stats = agent.cli_json(&["queue", "stats"]).expect("the queue opens");
    add("`queue stats` after", "s", started.elapsed().as_secs_f64());
    assert_eq!(stats["pending"], depth, "nothing was lost on the way");
    let meter = bed.start_agent(&mut agent);
    let started = Instant::now();
    await_until("an answer", Duration::from_millis(20), async || {
        assert!(agent.is_running(), "the agent has ended: {}", agent.log());
        agent.health().is_some()
    })
    .await;
    add("agent answers after a restart", "s", started.elapsed().as_secs_f64());
    book.costs(&format!("depth {depth}, restart"), &meter.stop());
    assert_eq!(queue_stats(&agent).0, depth, "nothing was lost on the way");

    let started = Instant::now();
    line.set(Line::Up);
    // Seldom, since each look costs the agent.
    await_until("an empty queue", Duration::from_millis(50), async || {
        queue_size(&agent) == Some(0)
    })
    .await;
    add("draining", "documents/s", depth as f64 / started.elapsed().as_secs_f64());
    line.set(Line::Cut);
    refill(bed, &agent, backlog).await;
    let (_, encoded, disk) = queue_stats(&agent);
    add("on disk after a drain and a refill / encoded bytes", "ratio", disk / encoded);
    line.set(Line::Up);
    emptied(&agent).await;
    assert!(agent.stop().success());
    bed.assert_equal().await;
    filling.per_second
}

async fn refill(bed: &Bed, agent: &Agent, backlog: Backlog) {
    backlog.apply(&bed.local.client, 2).await;
    await_until("a filled queue", Duration::from_millis(100), async || {
        queue_size(agent) == Some(backlog.events())
    })
    .await;
}

/// Entries, their encoded bytes, and the bytes of the files.
fn queue_stats(agent: &Agent) -> (u64, f64, f64) {
    let stats = Api::of(agent).with_token("GET", "/api/queue?limit=0").1["stats"].clone();
    let bytes = |name: &str| stats[name].as_f64().unwrap();
    (stats["pending"].as_u64().unwrap(), bytes("pendingBytes"), bytes("diskBytes"))
}
