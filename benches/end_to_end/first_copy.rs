//! The first copy beside a raw pipe with the same number of connections, and the comparison of equal sides.

use std::{
    io::Read,
    process::{Child, Stdio},
    time::Duration,
};

use bson::{Bson, Document, doc};
use serde_json::Value;

use crate::{
    bed::{Bed, Variant, await_until},
    data::{self, ORDERS, USUAL},
    process::{Meter, Process},
    raw,
    report::{Notebook, Target},
    settings::Settings,
    support::{agent::Agent, api::Api},
};

/// Connections that write, of both.
const CONNECTIONS: usize = 4;

const RATIO: &str = "first copy / raw pipe";

/// What is copied.
struct Shape {
    collections: Vec<String>,
    documents: u64,
    size: usize,
    has_indexes: bool,
}

pub async fn usual(settings: Settings, book: Notebook) {
    let documents = settings.scaled(1_000_000);
    let collections = vec![ORDERS.to_owned()];
    copy(&settings, &book, Shape { collections, documents, size: USUAL, has_indexes: false }).await;
}

pub async fn large(settings: Settings, book: Notebook) {
    let documents = settings.scaled(100_000);
    let collections = vec![ORDERS.to_owned()];
    copy(&settings, &book, Shape { collections, documents, size: 4096, has_indexes: false }).await;
}

pub async fn many(settings: Settings, book: Notebook) {
    let documents = settings.scaled(10_000);
    let collections = (0..20).map(|n| format!("{ORDERS}{n}")).collect();
    book.note(
        "The indexes are made before the pipe starts, and a copy ends when all of them are built.",
    );
    copy(&settings, &book, Shape { collections, documents, size: USUAL, has_indexes: true }).await;
}

impl Shape {
    fn all(&self) -> u64 {
        self.documents * self.collections.len() as u64
    }

    async fn index(&self, client: &mongodb::Client) {
        for name in self.collections.iter().filter(|_| self.has_indexes) {
            let command = doc! { "createIndexes": name, "indexes": [
                { "key": { "number": 1 }, "name": "number" },
                { "key": { "customer.city": 1, "status": 1 }, "name": "city and status" },
            ] };
            client.database("shop").run_command(command).await.unwrap();
        }
    }

    /// All collections are there, with their indexes built.
    async fn is_indexed(&self, client: &mongodb::Client) -> bool {
        let indexes = if self.has_indexes { 3 } else { 1 };
        for name in &self.collections {
            let collection = client.database("shop").collection::<Document>(name);
            if collection.list_index_names().await.is_ok_and(|names| names.len() < indexes) {
                return false;
            }
        }
        let running = doc! { "currentOp": 1, "msg": { "$regex": "^Index Build" } };
        let running = client.database("admin").run_command(running).await.unwrap();
        running.get("inprog").and_then(Bson::as_array).is_none_or(Vec::is_empty)
    }
}

async fn copy(settings: &Settings, book: &Notebook, shape: Shape) {
    book.mark(RATIO, Target::AtLeast(0.9));
    let bed = Bed::start().await;
    bed.reset().await;
    shape.index(&bed.local.client).await;
    for name in &shape.collections {
        data::insert(&bed.local.client, name, 0..shape.documents, shape.size).await;
    }
    let (all, bytes) = (shape.all() as f64, shape.all() as f64 * shape.size as f64);
    for _ in 0..settings.runs {
        for variant in [Variant::Uncompressed, Variant::Usual] {
            let suffix = variant.suffix();
            bed.reset_atlas().await;
            shape.index(&bed.atlas.client).await;
            // Compressed as the agent's: what zstd takes of both cores is no merit of the pipe.
            let client = raw::compressing(&bed.atlas.uri(), variant).await;
            let meter = bed.meter();
            raw::pipe(&bed.local.client, &client, &shape.collections, CONNECTIONS).await;
            let usage = meter.stop();
            book.costs(&format!("raw pipe{suffix}"), &usage);
            let pipe = all / usage.elapsed.as_secs_f64();
            book.add(&format!("raw pipe{suffix}"), "documents/s", pipe);

            bed.reset_atlas().await;
            let mut agent = bed.agent(&bed.atlas.uri(), variant);
            let meter = bed.start_agent(&mut agent);
            let took = end_of_copy(&bed, &agent, &shape).await;
            let usage = meter.stop();
            book.costs(&format!("first copy{suffix}"), &usage);
            let rate = all / took.as_secs_f64();
            book.add(&format!("first copy{suffix}"), "documents/s", rate);
            book.add(&format!("{RATIO}{suffix}"), "ratio", rate / pipe);
            let cpu = usage.cpu("agent") * 1e6 / all;
            book.add(&format!("first copy, agent CPU{suffix}"), "µs/document", cpu);
            book.add(&format!("first copy, agent peak RSS{suffix}"), "MB", usage.peak("agent"));
            assert!(agent.stop().success());
            if variant == Variant::Usual {
                for (name, args) in [
                    ("verify", &["verify", "--json"][..]),
                    ("verify --digest", &["verify", "--digest", "--json"]),
                ] {
                    verify(&bed, book, &agent, name, args, (all, bytes)).await;
                }
            }
            bed.assert_equal().await;
        }
    }
}

/// From the beginning of the copy, as the agent itself tells, since the pipe has no start-up either. To its end as the
/// agent tells, or to that of the last index, if that comes later.
async fn end_of_copy(bed: &Bed, agent: &Agent, shape: &Shape) -> Duration {
    let (mut started, mut ended) = (0, 0);
    await_until("the end of the copy", Duration::from_millis(100), async || {
        assert!(agent.is_running(), "the agent has ended: {}", agent.log());
        if agent.health().is_none() {
            return false;
        }
        let sync = &Api::of(agent).get("/api/sync/full").1["sync"];
        let (Some(from), Some(to)) = (sync["startedMs"].as_u64(), sync["finishedMs"].as_u64())
        else {
            return false;
        };
        (started, ended) = (from, to);
        true
    })
    .await;
    await_until("the indexes", Duration::from_millis(20), async || {
        let is_indexed = shape.is_indexed(&bed.atlas.client).await;
        if !is_indexed {
            ended = bson::DateTime::now().timestamp_millis() as u64;
        }
        is_indexed
    })
    .await;
    Duration::from_millis(ended - started)
}

/// A command that does not outlive the scenario.
struct Command(Child);

impl Drop for Command {
    fn drop(&mut self) {
        // It has ended, or is to end now.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

async fn verify(
    bed: &Bed,
    book: &Notebook,
    agent: &Agent,
    name: &str,
    args: &[&str],
    (documents, bytes): (f64, f64),
) {
    let meter: Meter = bed.meter();
    let child = agent.command().args(args).stdout(Stdio::piped()).spawn().unwrap();
    let mut command = Command(child);
    meter.born(Process { name: "outrigger", pid: command.0.id() });
    let mut stdout = command.0.stdout.take().unwrap();
    let read = move || {
        let mut output = Vec::new();
        stdout.read_to_end(&mut output).unwrap();
        output
    };
    // Off this thread, so that a limit or a signal ends it too.
    let output = tokio::task::spawn_blocking(read).await.unwrap();
    // Before anybody waits for it: the kernel keeps the times of an ended process until then.
    let usage = meter.stop();
    drop(command);
    let found: Value = serde_json::from_slice(&output).unwrap();
    assert_eq!(found["equal"], true, "{found}");
    book.costs(name, &usage);
    let seconds = usage.elapsed.as_secs_f64();
    book.add(name, "documents/s", documents / seconds);
    book.add(&format!("{name}, data"), "MB/s", bytes / seconds / 1e6);
    let received = found["bytesFromAtlas"].as_f64().unwrap_or(0.0);
    book.add(&format!("{name}, received from Atlas"), "% of the data", received * 100.0 / bytes);
    book.add(&format!("{name}, peak RSS"), "MB", usage.peak("outrigger"));
}
