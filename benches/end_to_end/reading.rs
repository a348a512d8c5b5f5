//! Reading into the queue while Atlas is away, beside a raw read of the same events.

use crate::{
    bed::{Bed, Variant, emptied, filled},
    data::{Backlog, USUAL},
    raw,
    report::{Notebook, Target},
    settings::Settings,
    support::proxy::{Line, Proxy},
};

pub async fn inserts(settings: Settings, book: Notebook) {
    book.mark("reading / raw change stream", Target::AtLeast(0.9));
    book.mark("agent CPU", Target::AtMost(4.0));
    let backlog = Backlog::Inserts { count: settings.scaled(1_000_000), size: USUAL };
    reading(&settings, &book, backlog).await;
}

pub async fn updates(settings: Settings, book: Notebook) {
    book.mark("reading / raw change stream", Target::AtLeast(0.9));
    let count = settings.scaled(500_000);
    reading(&settings, &book, Backlog::Updates { count, documents: count }).await;
}

async fn reading(settings: &Settings, book: &Notebook, backlog: Backlog) {
    book.note(
        "Both rates of the ratio are those behind the first batch: it compares reading, not starting. The agent's \
         CPU is all of its process, start and outage included.",
    );
    let bed = Bed::start().await;
    let events = backlog.events();
    for _ in 0..settings.runs {
        bed.reset().await;
        backlog.prepare(&bed.local.client).await;
        let line = Proxy::to(bed.atlas.port).await;
        let mut agent = bed.copied(&line.uri(), Variant::Usual).await;
        let from = bed.position().await;
        backlog.apply(&bed.local.client, 1).await;

        let meter = bed.meter();
        let read = raw::read_stream(&bed.local.client, from, events).await;
        book.costs("raw change stream", &meter.stop());
        book.add("raw change stream", "events/s", read.per_second);

        line.set(Line::Cut);
        let meter = bed.start_agent(&mut agent);
        let filling = filled(&agent, events, events).await;
        let usage = meter.stop();
        book.costs("reading into the queue", &usage);
        book.add("reading", "events/s", filling.per_second);
        let whole = events as f64 / usage.elapsed.as_secs_f64();
        book.add("reading, the start included", "events/s", whole);
        book.add("first event read after", "s", filling.first_after.as_secs_f64());
        book.add("reading / raw change stream", "ratio", filling.per_second / read.per_second);
        book.add("agent CPU", "µs/event", usage.cpu("agent") * 1e6 / events as f64);
        book.add("agent peak RSS", "MB", usage.peak("agent"));

        line.set(Line::Up);
        emptied(&agent).await;
        assert!(agent.stop().success());
        bed.assert_equal().await;
    }
}
