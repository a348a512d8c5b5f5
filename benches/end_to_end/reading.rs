//! Reading into the queue while Atlas is away, beside a raw read of the same events.

use outrigger::model::namespace::NamespaceFilter;

use crate::{
    bed::{Bed, Variant, emptied, filled},
    data::{Backlog, ORDERS, USUAL},
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

/// What a filter costs the application's server for each change that passes it.
pub async fn filters(settings: Settings, book: Notebook) {
    book.note(
        "CPU of the local server for each change that a raw read of the stream gets, all filters in turn. The \
         changes are of the collection whose name the server tries last.",
    );
    let count = settings.scaled(100_000);
    let bed = Bed::start().await;
    bed.reset().await;
    Backlog::Inserts { count, size: USUAL }.prepare(&bed.local.client).await;
    let from = bed.position().await;
    Backlog::Inserts { count, size: USUAL }.apply(&bed.local.client, 1).await;
    let names = |n: usize, last: &str| -> Vec<String> {
        let others = (1..n).map(|n| format!("shop.a{n}"));
        others.chain([format!("shop.{last}")]).collect()
    };
    let mut filters = vec![("no filter".to_owned(), vec![], vec![])];
    filters.push(("a database".to_owned(), vec!["shop.*".to_owned()], vec![]));
    filters.push(("without a database".to_owned(), vec![], vec!["crm.*".to_owned()]));
    let databases = |n: usize, last: &str| -> Vec<String> {
        (1..n).map(|n| format!("a{n}.*")).chain([format!("{last}.*")]).collect()
    };
    for n in [10, 30, 300] {
        filters.push((format!("{n} databases included"), databases(n, "shop"), vec![]));
        filters.push((format!("{n} databases excluded"), vec![], databases(n, "zoo")));
        for what in ["included", "excluded"] {
            let most = if n == 300 { 4.0 } else { 1.1 };
            book.mark(&format!("{n} databases {what} / no filter"), Target::AtMost(most));
        }
    }
    filters.push(("a wildcard inside".to_owned(), vec!["shop.o*".to_owned()], vec![]));
    for n in [1, 10, 30, 300] {
        filters.push((format!("{n} included"), names(n, ORDERS), vec![]));
        filters.push((format!("{n} excluded"), vec![], names(n, "another")));
        let most = if n == 300 { 4.0 } else { 1.5 };
        for what in ["included", "excluded"] {
            book.mark(&format!("{n} {what} / no filter"), Target::AtMost(most));
        }
    }
    for what in ["a database", "without a database"] {
        book.mark(&format!("{what} / no filter"), Target::AtMost(1.1));
    }
    // One round more, whose figures do not count: the first reads from the disk.
    for round in 0..=settings.runs {
        let mut without = None;
        for (name, include, exclude) in &filters {
            let filter = NamespaceFilter::new(include, exclude).expect("usable patterns");
            let meter = bed.meter();
            raw::read_filtered(&bed.local.client, from, count, &filter).await;
            let cpu = meter.stop().cpu("local mongod") * 1e6 / count as f64;
            let without = *without.get_or_insert(cpu);
            if round > 0 {
                book.add(&format!("{name}: CPU of the local server"), "µs/change", cpu);
                if name != "no filter" {
                    book.add(&format!("{name} / no filter"), "ratio", cpu / without);
                }
            }
        }
    }
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
