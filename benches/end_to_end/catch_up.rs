//! The agent was stopped, the application went on, the agent starts: until Atlas has everything.

use crate::{
    bed::{Bed, Variant, await_until, filled, queue_size, scrape, streaming},
    data::{Backlog, ORDERS, USUAL},
    raw,
    report::{Notebook, Target},
    settings::Settings,
    support::{
        agent::Agent,
        proxy::{Line, Proxy},
    },
};

/// How long the polls of an empty queue are apart where no sentinel tells of the end.
const POLL: std::time::Duration = std::time::Duration::from_millis(50);

const RATIO_TO_STREAM: &str = "catch-up / raw change stream";
const RATIO_TO_UPSERTS: &str = "catch-up / raw upserts in 2 lanes";

pub async fn inserts(settings: Settings, book: Notebook) {
    book.mark(RATIO_TO_STREAM, Target::AtLeast(0.7));
    book.mark("agent CPU", Target::AtMost(8.0));
    let backlog = Backlog::Inserts { count: settings.scaled(1_000_000), size: USUAL };
    let bed = Bed::start().await;
    for _ in 0..settings.runs {
        // In turn, and the second time without the cost of compression, which on a loopback gains nothing.
        catch_up(&bed, &book, backlog, Variant::Usual).await;
        catch_up(&bed, &book, backlog, Variant::Uncompressed).await;
    }
}

pub async fn updates(settings: Settings, book: Notebook) {
    book.mark(RATIO_TO_UPSERTS, Target::AtLeast(0.8));
    book.note(
        "The raw upserts are all there is to do in their run, on both cores, uncompressed. The agent shares them with \
         the local server, which shows the events and reads the documents meanwhile; it writes in as many lanes as by \
         default.",
    );
    let count = settings.scaled(500_000);
    let backlog = Backlog::Updates { count, documents: count };
    let bed = Bed::start().await;
    for _ in 0..settings.runs {
        let rate = catch_up(&bed, &book, backlog, Variant::Usual).await;
        let bare = catch_up(&bed, &book, backlog, Variant::Uncompressed).await;
        // The limit: the same documents, changed once more, written over those in Atlas.
        backlog.apply(&bed.local.client, 2).await;
        let commands = raw::upserts_of(&bed.local.client, ORDERS).await;
        let meter = bed.meter();
        raw::send(&bed.atlas.client, commands, 2).await;
        let usage = meter.stop();
        bed.assert_equal().await;
        book.costs("raw upserts", &usage);
        let limit = count as f64 / usage.elapsed.as_secs_f64();
        book.add("raw upserts in 2 lanes", "documents/s", limit);
        book.add(RATIO_TO_UPSERTS, "ratio", rate / limit);
        book.add(&format!("{RATIO_TO_UPSERTS}, uncompressed"), "ratio", bare / limit);
    }
}

pub async fn mixed(settings: Settings, book: Notebook) {
    let bed = Bed::start().await;
    let backlog = Backlog::Mixed { count: settings.scaled(1_000_000) };
    for _ in 0..settings.runs {
        catch_up(&bed, &book, backlog, Variant::Usual).await;
    }
}

pub async fn large(settings: Settings, book: Notebook) {
    let bed = Bed::start().await;
    let backlog = Backlog::Inserts { count: settings.scaled(100_000), size: 16 * 1024 };
    for _ in 0..settings.runs {
        catch_up(&bed, &book, backlog, Variant::Usual).await;
        catch_up(&bed, &book, backlog, Variant::Uncompressed).await;
    }
}

/// One catch-up beside a raw read of the same events; returns events per second.
async fn catch_up(bed: &Bed, book: &Notebook, backlog: Backlog, variant: Variant) -> f64 {
    let suffix = variant.suffix();
    bed.reset().await;
    backlog.prepare(&bed.local.client).await;
    let mut agent = bed.copied(&bed.atlas.uri(), variant).await;
    let from = bed.position().await;
    backlog.apply(&bed.local.client, 1).await;
    bed.write_sentinel(1).await;
    let events = backlog.events() + 1;

    let meter = bed.meter();
    let read = raw::read_stream(&bed.local.client, from, events).await;
    book.costs(&format!("raw change stream{suffix}"), &meter.stop());
    let limit = events as f64 / read.elapsed.as_secs_f64();
    book.add(&format!("raw change stream{suffix}"), "events/s", limit);

    let meter = bed.start_agent(&mut agent);
    bed.has_sentinel(&agent, 1).await;
    let usage = meter.stop();
    let rate = events as f64 / usage.elapsed.as_secs_f64();
    book.costs(&format!("catch-up{suffix}"), &usage);
    book.add(&format!("catch-up{suffix}"), "events/s", rate);
    book.add(&format!("{RATIO_TO_STREAM}{suffix}"), "ratio", rate / limit);
    let cpu = usage.cpu("agent") * 1e6 / events as f64;
    book.add(&format!("agent CPU{suffix}"), "µs/event", cpu);
    book.add(&format!("agent peak RSS{suffix}"), "MB", usage.peak("agent"));
    assert!(agent.stop().success());
    bed.assert_equal().await;
    rate
}

/// Many updates of few documents while Atlas is away: what is sent when it is back.
pub async fn hot(settings: Settings, book: Notebook) {
    let documents = settings.scaled(10_000);
    let count = settings.scaled(1_000_000);
    // Where the sizes are those of the suite, it is the mark's ten thousand.
    book.mark("writes sent", Target::AtMost(documents as f64));
    book.mark("bytes of commands / documents' bytes", Target::AtMost(1.05));
    book.mark("bytes on the wire / documents' bytes", Target::AtMost(1.05));
    book.note(
        "The agent counts the bytes of its commands before compression; each update command carries, beside the \
         document, its `_id` once more and the names of its fields. The bytes on the wire are those that went \
         through a proxy, compressed as by default.",
    );
    let backlog = Backlog::Updates { count, documents };
    let bed = Bed::start().await;
    for _ in 0..settings.runs {
        let (mut agent, line) = prepared(&bed, backlog, Variant::Usual).await;
        line.set(Line::Cut);
        backlog.apply(&bed.local.client, 1).await;
        let meter = bed.start_agent(&mut agent);
        let filling = filled(&agent, count, documents).await;
        let usage = meter.stop();
        book.costs("reading while Atlas is away", &usage);
        book.add("reading while Atlas is away", "events/s", filling.per_second);
        book.add("agent CPU of reading", "µs/event", usage.cpu("agent") * 1e6 / count as f64);
        deliver(&bed, &book, agent, &line, Variant::Usual).await;

        // It reads meanwhile: what was changed before its start never goes as a delta.
        let (mut agent, line) = prepared(&bed, backlog, Variant::Deltas).await;
        agent.start(&[]);
        streaming(&agent).await;
        line.set(Line::Cut);
        backlog.apply(&bed.local.client, 1).await;
        filled(&agent, count, documents).await;
        deliver(&bed, &book, agent, &line, Variant::Deltas).await;
    }
}

/// An agent that was stopped when both sides were equal, and its line.
async fn prepared(bed: &Bed, backlog: Backlog, variant: Variant) -> (Agent, Proxy) {
    bed.reset().await;
    backlog.prepare(&bed.local.client).await;
    let line = Proxy::to(bed.atlas.port).await;
    let agent = bed.copied(&line.uri(), variant).await;
    (agent, line)
}

/// The line is back: what the agent sends until both sides are equal.
async fn deliver(bed: &Bed, book: &Notebook, mut agent: Agent, line: &Proxy, variant: Variant) {
    let suffix = variant.suffix();
    let add = |name: &str, unit, figure| book.add(&format!("{name}{suffix}"), unit, figure);
    let before = Sent::by(&agent, line);
    let meter = bed.meter();
    line.set(Line::Up);
    await_until("an empty queue", POLL, async || queue_size(&agent) == Some(0)).await;
    let usage = meter.stop();
    let sent = Sent::by(&agent, line).since(&before);
    add("Atlas has everything after", "s", usage.elapsed.as_secs_f64());
    add("writes sent", "writes", sent.writes);
    assert!(agent.stop().success());
    let (_, bytes) = bed.assert_equal().await;
    add("bytes of commands / documents' bytes", "ratio", sent.command_bytes / bytes as f64);
    add("bytes on the wire / documents' bytes", "ratio", sent.wire_bytes / bytes as f64);
}

/// What an agent has sent so far.
struct Sent {
    writes: f64,
    command_bytes: f64,
    wire_bytes: f64,
}

impl Sent {
    fn by(agent: &Agent, line: &Proxy) -> Self {
        let metric = |name| scrape(agent, name).expect("the agent answers");
        Self {
            writes: metric("outrigger_writes_applied_total"),
            command_bytes: metric("outrigger_atlas_sent_bytes_total"),
            wire_bytes: line.asked() as f64,
        }
    }

    fn since(&self, before: &Self) -> Self {
        Self {
            writes: self.writes - before.writes,
            command_bytes: self.command_bytes - before.command_bytes,
            wire_bytes: self.wire_bytes - before.wire_bytes,
        }
    }
}
