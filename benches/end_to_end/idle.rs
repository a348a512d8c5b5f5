//! What the agent costs when nothing happens.

use std::time::Duration;

use crate::{
    bed::{Bed, Variant, emptied, streaming},
    data::{self, ORDERS, USUAL},
    process::{Meter, Process, memory},
    report::{Notebook, Target},
    settings::Settings,
    support::agent::Agent,
};

/// What the start leaves to be done, before nothing happens; within ten seconds of it the allocator has given back
/// what a copy took.
const SETTLE: Duration = Duration::from_secs(15);

pub async fn run(settings: Settings, book: Notebook) {
    book.mark("after a restart, agent CPU", Target::AtMost(0.5));
    book.mark("after a restart, agent peak RSS", Target::AtMost(40.0));
    book.mark("after a first copy, agent CPU", Target::AtMost(0.5));
    book.mark("after a first copy, agent peak RSS", Target::AtMost(40.0));
    let documents = settings.scaled(100_000);
    let bed = Bed::start().await;
    for _ in 0..settings.runs {
        bed.reset().await;
        data::insert(&bed.local.client, ORDERS, 0..documents, USUAL).await;
        let mut agent = bed.agent(&bed.atlas.uri(), Variant::Usual);
        agent.start(&[]);
        streaming(&agent).await;
        emptied(&agent).await;
        idle(&settings, &book, "after a first copy", &agent).await;
        assert!(agent.stop().success());
        agent.start(&[]);
        streaming(&agent).await;
        idle(&settings, &book, "after a restart", &agent).await;
        assert!(agent.stop().success());
        bed.assert_equal().await;
    }
}

async fn idle(settings: &Settings, book: &Notebook, when: &str, agent: &Agent) {
    tokio::time::sleep(SETTLE).await;
    let meter = Meter::start(&[Process { name: "agent", pid: agent.id() }]);
    tokio::time::sleep(Duration::from_secs(settings.seconds.min(60))).await;
    let resident = memory(agent.id(), "VmRSS").unwrap();
    let usage = meter.stop();
    let share = usage.cpu("agent") * 100.0 / usage.elapsed.as_secs_f64();
    book.add(&format!("{when}, agent CPU"), "% of a core", share);
    book.add(&format!("{when}, agent peak RSS"), "MB", usage.peak("agent"));
    book.add(&format!("{when}, agent RSS at the end"), "MB", resident);
    book.costs(when, &usage);
}
