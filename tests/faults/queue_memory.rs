//! What large documents that wait take of the machine's memory: as much as the queue's cache, not as much as waits.
//!
//! Each step is a process of its own, as it is for an agent that was killed: this program, started again.

use std::{
    path::Path,
    process::{Command, Stdio},
};

use outrigger::{
    model::{
        checkpoint::ClusterTime, delta::Delta, document_key::DocumentKey, event::SchemaChange,
        namespace::Namespace, write_op::WriteOp,
    },
    queue::{Ack, Incoming, Outcome, Queue, QueueOptions, Work},
};
use rand::{RngCore, SeedableRng, rngs::StdRng};
use tempfile::TempDir;

/// As the program's.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

const STEP: &str = "OUTRIGGER_MEMORY_STEP";

/// Less than a third of what the shipped unit allows for everything (`MemoryMax=1G`); a slow disk leaves more unwritten.
const AT_MOST: u64 = 320 << 20;

/// Documents, and bytes of each. `OUTRIGGER_MEMORY=2000x1000000,100x15000000` for as much as an outage leaves.
fn sizes() -> Vec<(u32, usize)> {
    let text = std::env::var("OUTRIGGER_MEMORY").unwrap_or_else(|_| "300x1000000".into());
    text.split(',')
        .map(|size| size.split_once('x').expect("so many x bytes"))
        .map(|(n, bytes)| (n.parse().unwrap(), bytes.parse().unwrap()))
        .collect()
}

fn incoming(id: u32, op: WriteOp) -> Incoming {
    let key = DocumentKey::of(&bson::rawdoc! { "_id": id as i32 }).unwrap();
    let ns = Namespace::new("shop", "files");
    let work = Work::Document { ns, key, op, collection: None };
    Incoming { work, cluster_time: ClusterTime(1), wall_ms: 1 }
}

fn document(id: u32, bytes: usize) -> bson::RawDocumentBuf {
    // Nothing that could be packed.
    let mut content = vec![0; bytes];
    StdRng::seed_from_u64(id.into()).fill_bytes(&mut content);
    let content = bson::Binary { subtype: bson::spec::BinarySubtype::Generic, bytes: content };
    bson::rawdoc! { "_id": id as i32, "content": content }
}

fn fill(queue: &Queue) {
    let mut id = 0;
    for (n, bytes) in sizes() {
        for _ in 0..n {
            queue.commit(vec![incoming(id, WriteOp::Insert(document(id, bytes)))], None).unwrap();
            id += 1;
        }
    }
}

fn ids() -> std::ops::Range<u32> {
    0..sizes().iter().map(|(n, _)| n).sum()
}

/// All that waits is changed by one reply of the stream, as by one `update_many`.
fn update(queue: &Queue) {
    let delta = Delta::from_diff(&bson::rawdoc! { "i": { "touched": 1 } }).unwrap();
    let reply = ids().map(|id| incoming(id, WriteOp::Update(delta.clone()))).collect();
    queue.commit(reply, None).unwrap();
    assert!(queue.entries().all(|entry| entry.unwrap().work.name() == "insert"));
}

/// The same behind a barrier of another collection, with which it is one part.
fn update_behind_a_barrier(queue: &Queue) {
    let ns = Namespace::new("shop", "others");
    let work = Work::Schema(SchemaChange::Drop { ns });
    let mut reply = vec![Incoming { work, cluster_time: ClusterTime(1), wall_ms: 1 }];
    let delta = Delta::from_diff(&bson::rawdoc! { "u": { "touched": 2 } }).unwrap();
    reply.extend(ids().map(|id| incoming(id, WriteOp::Update(delta.clone()))));
    queue.commit(reply, None).unwrap();
}

/// As the worker takes it, with a change for one in five that comes meanwhile.
fn drain(queue: &Queue) {
    let mut taken = 0;
    loop {
        let batch = queue.lease(1_000, 4 << 20, 0).unwrap();
        if batch.entries.is_empty() {
            break;
        }
        let acked: Vec<_> = batch
            .entries
            .iter()
            .map(|entry| {
                taken += 1;
                let outcome = if taken % 5 == 0 && entry.attempts == 0 {
                    Outcome::Retry { due_ms: 0, error: "once more".into() }
                } else {
                    Outcome::Applied
                };
                Ack { seq: entry.seq, version: entry.version, outcome }
            })
            .collect();
        queue.ack(&acked).unwrap();
    }
}

fn lease_all(queue: &Queue) -> Vec<(u64, u32)> {
    let mut leased = Vec::new();
    loop {
        let batch = queue.lease(1_000, 4 << 20, 0).unwrap();
        if batch.entries.is_empty() {
            break;
        }
        leased.extend(batch.entries.iter().map(|entry| (entry.seq, entry.version)));
    }
    leased
}

/// Small entries are leased, the documents come meanwhile, and half of the leased ones come back.
fn nack(queue: &Queue) {
    let leased = lease_all(queue);
    fill(queue);
    let acked: Vec<_> = leased
        .into_iter()
        .map(|(seq, version)| {
            let outcome =
                if seq % 2 == 0 { Outcome::Unavailable { due_ms: 0 } } else { Outcome::Applied };
            Ack { seq, version, outcome }
        })
        .collect();
    queue.ack(&acked).unwrap();
}

fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10
}

/// One step of it, in a process of its own. Returns the most memory that it took, and what waits behind it.
fn step(name: &str, path: &Path) -> (u64, u64) {
    let child = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "queue_memory::large_documents_that_wait_take_no_more_memory_than_the_cache",
            "--nocapture",
        ])
        .env(STEP, format!("{name}:{}", path.display()))
        .stderr(Stdio::inherit())
        .output()
        .unwrap();
    let text = String::from_utf8(child.stdout).unwrap();
    let told =
        text.lines().find_map(|line| line.split_once("peak=")).unwrap_or_else(|| panic!("{text}"));
    let (peak, pending) = told.1.split_once(' ').unwrap();
    let (peak, pending) = (peak.parse().unwrap(), pending.parse().unwrap());
    println!("{name}: {} MiB at the most, {pending} wait", peak >> 20);
    (peak, pending)
}

#[test]
fn large_documents_that_wait_take_no_more_memory_than_the_cache() {
    if let Ok(step) = std::env::var(STEP) {
        let (name, path) = step.split_once(':').unwrap();
        let queue = Queue::open(&QueueOptions::new(path)).unwrap();
        match name {
            "fill" => fill(&queue),
            "update" => update(&queue),
            "update behind a barrier" => update_behind_a_barrier(&queue),
            "drain" => drain(&queue),
            "refresh" => queue.refresh_pending(ClusterTime(2), 2, |_| true).unwrap(),
            "give back" => nack(&queue),
            _ => {}
        }
        println!("peak={} {}", peak(), queue.pending().0);
        queue.flush().unwrap();
        // Killed: nothing is closed.
        std::process::abort();
    }
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("queue");
    let n: u64 = sizes().iter().map(|(n, _)| u64::from(*n)).sum();
    for (name, left) in [
        ("fill", n),
        ("open", n),
        ("update", n),
        ("drain", 0),
        ("fill", n),
        ("update behind a barrier", n + 1),
        ("refresh", n + 1),
        ("give back", n + 1),
    ] {
        let (peak, pending) = step(name, &path);
        assert_eq!(pending, left, "{name}");
        assert!(peak < AT_MOST, "{name}: {} MiB", peak >> 20);
    }
}
