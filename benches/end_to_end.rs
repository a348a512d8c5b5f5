//! The first copy and the verification between two real servers, beside the least that any copy must do:
//! `make bench-copy`. Each run takes the limit and Outrigger in turn, on the same data.
//!
//! Environment: `OUTRIGGER_BENCH_DOCUMENTS` (1,000,000), `OUTRIGGER_BENCH_RUNS` (3),
//! `OUTRIGGER_BENCH_BYTES` (325, of one document).

#[path = "../tests/support/mod.rs"]
mod support;

use std::{
    process::{Child, Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::{StreamExt, TryStreamExt};
use mongodb::{
    Client,
    bson::{RawArrayBuf, RawDocumentBuf, doc, rawdoc},
    options::FindOptions,
};
use serde_json::Value;
use support::{agent::Agent, api::Api, eventually, mongod::Mongod};
use tokio::sync::{Mutex, mpsc};

/// Connections that write, of both.
const PARALLEL: usize = 4;

/// Without the limit that protects an application.
const CONFIG: &str = "[sync]\nparallel = 4\nmax_docs_per_second = 0\n";

const PATIENCE: Duration = Duration::from_secs(1_800);

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

#[tokio::main]
async fn main() {
    // What `cargo bench` says, and a run of all targets as tests does not.
    if !std::env::args().any(|arg| arg == "--bench") {
        return;
    }
    let documents = number("OUTRIGGER_BENCH_DOCUMENTS", 1_000_000);
    let bytes = number("OUTRIGGER_BENCH_BYTES", 325);
    let runs = number("OUTRIGGER_BENCH_RUNS", 3);
    let (local, atlas) = support::pair().await;
    fill(&local, documents, bytes).await;
    println!("{documents} documents of {bytes} B, {PARALLEL} connections, {runs} runs\n");
    let mut table = Table::default();
    for _ in 0..runs {
        let pipe = raw_pipe(&local.client, &atlas.client).await;
        table.add("raw find -> insert pipe, documents/s", rate(documents, pipe));
        reset(&atlas).await;
        let mut agent = Agent::new(&local.uri(), &atlas.uri(), CONFIG);
        let (copy, memory) = first_copy(&mut agent).await;
        table.add("first copy, documents/s", rate(documents, copy));
        table.add("first copy, MB/s", rate(documents * bytes, copy) / 1e6);
        table.add("first copy / pipe", pipe.as_secs_f64() / copy.as_secs_f64());
        table.add("first copy, peak memory MB", memory);
        assert!(agent.stop().success());
        for (name, args) in [
            ("verify", &["verify", "--json"][..]),
            ("verify --digest", &["verify", "--digest", "--json"]),
        ] {
            let (took, memory, found) = verify(&agent, args);
            assert_eq!(found["equal"], true, "{found}");
            table.add(&format!("{name}, documents/s"), rate(documents, took));
            table.add(&format!("{name}, MB/s"), rate(documents * bytes, took) / 1e6);
            let received = found["bytesFromAtlas"].as_f64().unwrap_or(0.0);
            let share = received * 100.0 / (documents * bytes) as f64;
            table.add(&format!("{name}, % of the bytes received from Atlas"), share);
            table.add(&format!("{name}, peak memory MB"), memory);
        }
        assert_equal(&local.client, &atlas.client).await;
        reset(&atlas).await;
    }
    table.print();
}

/// Figures in the order in which they first came.
#[derive(Default)]
struct Table(Vec<(String, Vec<f64>)>);

impl Table {
    fn add(&mut self, name: &str, value: f64) {
        match self.0.iter_mut().find(|(of, _)| of == name) {
            Some((_, values)) => values.push(value),
            None => self.0.push((name.to_owned(), vec![value])),
        }
    }

    fn print(&mut self) {
        println!("| figure | min | median | max |\n| --- | ---: | ---: | ---: |");
        for (name, values) in &mut self.0 {
            values.sort_by(f64::total_cmp);
            let show = |value: f64| {
                if value >= 100.0 { format!("{value:.0}") } else { format!("{value:.3}") }
            };
            let (min, max) = (values[0], values[values.len() - 1]);
            println!(
                "| {name} | {} | {} | {} |",
                show(min),
                show(values[values.len() / 2]),
                show(max)
            );
        }
    }
}

fn rate(amount: u64, took: Duration) -> f64 {
    amount as f64 / took.as_secs_f64()
}

async fn fill(local: &Mongod, documents: u64, bytes: u64) {
    let orders = support::orders(local);
    let filler = "x".repeat((bytes.saturating_sub(46)) as usize);
    for first in (0..documents).step_by(10_000) {
        let part = (first..documents.min(first + 10_000))
            .map(|n| doc! { "_id": n as i64, "n": n as i64, "text": &filler });
        orders.insert_many(part).await.unwrap();
    }
}

async fn reset(atlas: &Mongod) {
    for db in ["shop", "outrigger"] {
        atlas.client.database(db).drop().await.unwrap();
    }
}

/// The least that a copy must do: replies as they come, into plain inserts, reading and writing overlapped.
async fn raw_pipe(local: &Client, atlas: &Client) -> Duration {
    let started = Instant::now();
    let (sender, receiver) = mpsc::channel::<RawArrayBuf>(2);
    let receiver = Arc::new(Mutex::new(receiver));
    let writers: Vec<_> = (0..PARALLEL)
        .map(|_| {
            let (receiver, db) = (receiver.clone(), atlas.database("shop"));
            tokio::spawn(async move {
                loop {
                    let Some(documents) = receiver.lock().await.recv().await else { return };
                    let insert = rawdoc! {
                        "insert": "orders", "documents": documents, "ordered": false,
                        "writeConcern": { "w": "majority" },
                    };
                    db.run_raw_command(insert).await.unwrap();
                }
            })
        })
        .collect();
    let find = rawdoc! {
        "find": "orders", "batchSize": 5_000, "readConcern": { "level": "majority" },
    };
    let db = local.database("shop");
    let mut cursor = db.run_raw_cursor_command(find).batch_size(5_000).batch().await.unwrap();
    while let Some(reply) = cursor.next().await {
        let reply = reply.unwrap();
        let mut documents = RawArrayBuf::new();
        for document in reply.doc_slices().unwrap() {
            documents.push(document.unwrap().as_document().unwrap().to_owned());
        }
        if !documents.is_empty() {
            sender.send(documents).await.unwrap();
        }
    }
    drop(sender);
    for writer in writers {
        writer.await.unwrap();
    }
    started.elapsed()
}

/// From the beginning of the copy to its end, as the agent itself tells, and its peak memory in MB.
async fn first_copy(agent: &mut Agent) -> (Duration, f64) {
    agent.start(&[]);
    let mut took = Duration::ZERO;
    eventually("the end of the copy", PATIENCE, async || {
        if agent.health().is_none() {
            return false;
        }
        let sync = &Api::of(agent).get("/api/sync/full").1["sync"];
        let (Some(started), Some(finished)) =
            (sync["startedMs"].as_u64(), sync["finishedMs"].as_u64())
        else {
            return false;
        };
        took = Duration::from_millis(finished - started);
        true
    })
    .await;
    (took, peak_memory(agent.id()).unwrap_or(0.0))
}

/// `VmHWM` in MB.
fn peak_memory(pid: u32) -> Option<f64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    line.split_whitespace().nth(1)?.parse::<f64>().ok().map(|kb| kb / 1e3)
}

fn verify(agent: &Agent, args: &[&str]) -> (Duration, f64, Value) {
    let started = Instant::now();
    let mut command: Command = agent.command();
    let mut child: Child = command.args(args).stdout(Stdio::piped()).spawn().unwrap();
    let mut memory: f64 = 0.0;
    while child.try_wait().unwrap().is_none() {
        memory = memory.max(peak_memory(child.id()).unwrap_or(0.0));
        std::thread::sleep(Duration::from_millis(5));
    }
    let took = started.elapsed();
    let output = child.wait_with_output().unwrap();
    (took, memory, serde_json::from_slice(&output.stdout).unwrap())
}

/// Byte for byte, by nothing of Outrigger's.
async fn assert_equal(local: &Client, atlas: &Client) {
    let read = async |client: &Client| {
        let options = FindOptions::builder().sort(doc! { "_id": 1 }).build();
        let orders = client.database("shop").collection::<RawDocumentBuf>("orders");
        orders.find(doc! {}).with_options(options).await.unwrap()
    };
    let (mut here, mut there) = (read(local).await, read(atlas).await);
    loop {
        match (here.try_next().await.unwrap(), there.try_next().await.unwrap()) {
            (None, None) => return,
            (a, b) => assert!(a == b, "{a:?} is not {b:?}"),
        }
    }
}
