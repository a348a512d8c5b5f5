//! Catch-up through a line of 20 Mbit/s with a round trip of 50 ms, with and without compression.

use std::time::Duration;

use crate::{
    bed::{Bed, Variant},
    data::{Backlog, ORDERS, USUAL},
    raw,
    report::{Notebook, Target},
    settings::Settings,
    support::slow_line::{Shape, SlowLine},
};

const LINE: Shape = Shape { round_trip: Duration::from_millis(50), bits_per_second: 20_000_000 };

/// Connections of the pipe that goes through the same line.
const CONNECTIONS: usize = 4;

pub async fn compressed(settings: Settings, book: Notebook) {
    book.mark("share of the line's limit", Target::AtLeast(0.85));
    slow(&settings, &book, 1_000_000, Variant::Usual).await;
}

/// A quarter of the documents, each of which takes more than twice the line.
pub async fn uncompressed(settings: Settings, book: Notebook) {
    book.mark("share of the line's limit", Target::AtLeast(0.85));
    slow(&settings, &book, 250_000, Variant::Uncompressed).await;
}

async fn slow(settings: &Settings, book: &Notebook, documents: u64, variant: Variant) {
    book.note(
        "The share is that of the time in which the line towards Atlas was busy, from the agent's start on: the same \
         as its documents/s over those that the line could carry at the bytes each took. Since who sends more than \
         needed keeps a line busy too, a raw pipe goes through it as well.",
    );
    let backlog = Backlog::Inserts { count: settings.scaled(documents), size: USUAL };
    let bed = Bed::start().await;
    for _ in 0..settings.runs {
        bed.reset().await;
        let line = SlowLine::to(bed.atlas.port, LINE).await;
        let mut agent = bed.copied(&line.uri(), variant).await;
        backlog.apply(&bed.local.client, 1).await;
        bed.write_sentinel(1).await;
        let count = backlog.events() as f64 + 1.0;

        let before = line.carried();
        let meter = bed.start_agent(&mut agent);
        bed.has_sentinel(&agent, 1).await;
        let usage = meter.stop();
        let after = line.carried();
        let (sent, received) = ((after.0 - before.0) as f64, (after.1 - before.1) as f64);
        let seconds = usage.elapsed.as_secs_f64();
        book.costs("catch-up", &usage);
        book.add("catch-up", "documents/s", count / seconds);
        book.add("sent", "B/document", sent / count);
        book.add("received", "B/document", received / count);
        let share = sent * 8.0 / (seconds * LINE.bits_per_second as f64);
        book.add("share of the line's limit", "ratio", share);
        let possible = LINE.bits_per_second as f64 / 8.0 / (sent / count);
        book.add("what the line could carry", "documents/s", possible);
        book.add("agent CPU", "µs/document", usage.cpu("agent") * 1e6 / count);
        assert!(agent.stop().success());
        let (_, bytes) = bed.assert_equal().await;
        book.add("sent / documents' bytes", "ratio", sent / bytes as f64);

        bed.reset_atlas().await;
        let client = raw::compressing(&line.uri(), variant).await;
        let before = line.carried();
        let meter = bed.meter();
        raw::pipe(&bed.local.client, &client, &[ORDERS.to_owned()], CONNECTIONS).await;
        let usage = meter.stop();
        let through = count / usage.elapsed.as_secs_f64();
        book.costs("raw pipe through the line", &usage);
        book.add("raw pipe through the line", "documents/s", through);
        let sent = (line.carried().0 - before.0) as f64;
        book.add("raw pipe through the line, sent", "B/document", sent / count);
        let share = sent * 8.0 / (usage.elapsed.as_secs_f64() * LINE.bits_per_second as f64);
        book.add("raw pipe, share of the line's limit", "ratio", share);
        book.add("catch-up / raw pipe through the line", "ratio", count / seconds / through);
    }
}
