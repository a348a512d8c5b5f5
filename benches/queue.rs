//! The queue: coalescing, commit of distinct and of hot documents, lease and settle, reopening. Each
//! with its throughput in documents; beside the commits, the same bytes on bare sled.
//!
//! `cargo bench --bench queue`

use std::hint::black_box;

use bson::{RawDocumentBuf, rawdoc};
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use outrigger::{
    checkpoint::{Checkpoint, ClusterTime, ResumeToken},
    coalesce::coalesce,
    delta::Delta,
    document_key::DocumentKey,
    namespace::Namespace,
    queue::{Incoming, Outcome, Queue, QueueOptions, Settlement, Work},
    write_op::WriteOp,
};
use tempfile::TempDir;

/// About 325 bytes, as an order of a shop.
fn document(id: i64) -> RawDocumentBuf {
    rawdoc! { "_id": id, "status": "open", "total": 12.5, "text": "x".repeat(260) }
}

fn incoming(id: i64, op: WriteOp) -> Incoming {
    let key = DocumentKey::of(&rawdoc! { "_id": id }).expect("an _id");
    let work = Work::Document { ns: Namespace::new("shop", "orders"), key, op, collection: None };
    Incoming { work, cluster_time: ClusterTime(1), wall_ms: 1 }
}

fn inserts(from: i64, count: i64) -> Vec<Incoming> {
    (from..from + count).map(|id| incoming(id, WriteOp::Insert(document(id)))).collect()
}

fn delta(value: i64) -> Delta {
    Delta::from_diff(&rawdoc! { "u": { "status": "paid", "total": value } }).expect("a diff")
}

fn checkpoint() -> Checkpoint {
    Checkpoint {
        anchor: ClusterTime(1),
        token: ResumeToken(rawdoc! { "_data": "82".repeat(40) }),
        cluster_time: ClusterTime(1),
        source_id: "rs".into(),
        pipeline: "p".into(),
    }
}

fn fresh() -> (TempDir, Queue) {
    let dir = TempDir::new().expect("a folder");
    let queue = Queue::open(&QueueOptions::new(dir.path().join("queue"))).expect("a queue");
    (dir, queue)
}

/// A queue that holds `count` documents.
fn filled(count: i64) -> (TempDir, Queue) {
    let (dir, queue) = fresh();
    for from in (0..count).step_by(1000) {
        queue.commit(inserts(from, 1000.min(count - from)), Some(&checkpoint())).expect("a commit");
    }
    (dir, queue)
}

fn merging(c: &mut Criterion) {
    let mut group = c.benchmark_group("coalesce");
    group.throughput(Throughput::Elements(1));
    group.bench_function("insert with update", |b| {
        b.iter_batched(
            || (WriteOp::Insert(document(1)), WriteOp::Update(delta(1))),
            |(pending, arriving)| black_box(coalesce(pending, arriving)),
            BatchSize::SmallInput,
        );
    });
    group.bench_function("update with update", |b| {
        b.iter_batched(
            || (WriteOp::Update(delta(1)), WriteOp::Update(delta(2))),
            |(pending, arriving)| black_box(coalesce(pending, arriving)),
            BatchSize::SmallInput,
        );
    });
    group.finish();
}

fn committing(c: &mut Criterion) {
    let mut group = c.benchmark_group("commit");
    group.throughput(Throughput::Elements(1000)).sample_size(20);
    group.bench_function("1000 distinct documents", |b| {
        let (_dir, queue) = fresh();
        let mut next = 0;
        b.iter_batched(
            || {
                next += 1000;
                inserts(next, 1000)
            },
            |batch| queue.commit(batch, Some(&checkpoint())).expect("a commit"),
            BatchSize::PerIteration,
        );
    });
    group.bench_function("1000 distinct documents on bare sled", |b| {
        let dir = TempDir::new().expect("a folder");
        let db = sled::Config::default()
            .path(dir.path().join("db"))
            .mode(sled::Mode::HighThroughput)
            .open()
            .expect("sled");
        let mut next = 0_u64;
        b.iter_batched(
            || {
                next += 1000;
                (next..next + 1000)
                    .map(|id| (id, document(id as i64).into_bytes()))
                    .collect::<Vec<_>>()
            },
            |values| {
                let mut batch = sled::Batch::default();
                for (id, value) in values {
                    batch.insert(&id.to_be_bytes(), value);
                }
                db.apply_batch(batch).expect("a batch");
            },
            BatchSize::PerIteration,
        );
    });
    group.bench_function("1000 updates of 10 hot documents", |b| {
        let (_dir, queue) = filled(10);
        let mut value = 0;
        b.iter_batched(
            || {
                value += 1;
                (0..1000)
                    .map(|n| incoming(n % 10, WriteOp::Update(delta(value))))
                    .collect::<Vec<_>>()
            },
            |batch| queue.commit(batch, Some(&checkpoint())).expect("a commit"),
            BatchSize::PerIteration,
        );
    });
    group.finish();
}

fn draining(c: &mut Criterion) {
    let mut group = c.benchmark_group("drain");
    group.throughput(Throughput::Elements(1000)).sample_size(20);
    group.bench_function("lease and settle 1000 documents", |b| {
        let (_dir, queue) = fresh();
        let mut next = 0;
        b.iter_batched(
            || {
                queue.commit(inserts(next, 1000), None).expect("a commit");
                next += 1000;
            },
            |()| {
                let batch = queue.lease(1000, usize::MAX, 0).expect("a lease");
                assert_eq!(batch.entries.len(), 1000, "the queue drains in step");
                let settlements: Vec<_> = batch
                    .entries
                    .iter()
                    .map(|entry| Settlement {
                        seq: entry.seq,
                        version: entry.version,
                        outcome: Outcome::Applied,
                    })
                    .collect();
                queue.settle(&settlements).expect("settled");
            },
            BatchSize::PerIteration,
        );
    });
    group.finish();
}

fn reopening(c: &mut Criterion) {
    const DOCUMENTS: i64 = 100_000;
    let mut group = c.benchmark_group("reopen");
    group.throughput(Throughput::Elements(DOCUMENTS as u64)).sample_size(10);
    let (dir, queue) = filled(DOCUMENTS);
    queue.flush().expect("flushed");
    drop(queue);
    let options = QueueOptions::new(dir.path().join("queue"));
    group.bench_function("100000 documents", |b| {
        b.iter_with_large_drop(|| {
            let queue = Queue::open(&options).expect("it opens");
            assert_eq!(queue.pending().0, DOCUMENTS as u64);
            drop(queue);
        });
    });
    group.finish();
}

criterion_group!(benches, merging, committing, draining, reopening);
criterion_main!(benches);
