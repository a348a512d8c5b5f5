//! The queue: coalescing, commit, lease and ack, reopening, at several depths and sizes of documents. Beside each,
//! the same work on bare sled: with a value for each document, in ordered keys, and with the same values in blocks of
//! 40 as one. The difference to the latter is what the queue itself takes.
//!
//! `make bench-queue`. `OUTRIGGER_BENCH_DEPTHS` (0,1000000,10000000) chooses the depths for documents of 300 B. Those of
//! 16 KB stand at a hundredth of it, which is the same on the disk, more or less. sled with a value for each document
//! is left out above 1,000,000: its scan alone takes half a minute there, ten times.

use std::{
    hint::black_box,
    time::{Duration, Instant},
};

use bson::{RawDocumentBuf, rawdoc};
use criterion::{
    BatchSize, BenchmarkGroup, Criterion, SamplingMode, Throughput, criterion_group,
    criterion_main, measurement::WallTime,
};
use outrigger::{
    model::{
        checkpoint::{Checkpoint, ClusterTime, PositionKind, ResumeToken},
        delta::Delta,
        document_key::DocumentKey,
        namespace::Namespace,
        write_op::WriteOp,
    },
    policy::coalesce::coalesce,
    queue::{Ack, Incoming, Outcome, Queue, QueueOptions, Work},
};
use tempfile::TempDir;

/// As the program's: it counts for sled as much as for the queue.
#[cfg(feature = "jemalloc")]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Documents of one commit, and of one lease.
const BATCH: i64 = 1_000;

/// Documents of a block on bare sled.
const BLOCK: i64 = 40;

/// The most for which sled is measured with a value for each document.
const SINGLE_MAX: i64 = 1_000_000;

/// Documents of one size, at these depths.
struct Size {
    name: &'static str,
    text: usize,
    depths: Vec<i64>,
}

fn sizes() -> Vec<Size> {
    let text = std::env::var("OUTRIGGER_BENCH_DEPTHS").unwrap_or_default();
    let chosen = text.split(',').map(str::trim).filter(|depth| !depth.is_empty());
    let number = |depth: &str| depth.parse().expect("OUTRIGGER_BENCH_DEPTHS: numbers, by commas");
    let chosen: Vec<i64> = chosen.map(number).collect();
    let depths = if chosen.is_empty() { vec![0, 1_000_000, 10_000_000] } else { chosen };
    let fewer = depths.iter().map(|depth| depth / 100).collect();
    vec![
        Size { name: "300 B", text: 170, depths },
        Size { name: "16 KB", text: 16_250, depths: fewer },
    ]
}

/// An order of a shop, whose text is made of words.
fn document(id: i64, text: usize) -> RawDocumentBuf {
    const WORDS: [&str; 16] = [
        "order", "street", "green", "delivery", "table", "north", "river", "customer", "window",
        "paper", "garden", "winter", "market", "coffee", "bridge", "letter",
    ];
    let mut words = String::with_capacity(text + 10);
    let mut seed = id as u64;
    while words.len() < text {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        words.push_str(WORDS[(seed >> 60) as usize]);
        words.push(' ');
    }
    rawdoc! {
        "_id": id, "status": "open", "number": (seed >> 40) as i64, "total": (seed >> 48) as f64 / 100.0,
        "customer": { "name": "Smith", "city": "Porto" }, "note": words,
    }
}

fn incoming(id: i64, op: WriteOp) -> Incoming {
    let key = DocumentKey::of(&rawdoc! { "_id": id }).expect("an _id");
    let work = Work::Document { ns: Namespace::new("shop", "orders"), key, op, collection: None };
    Incoming { work, cluster_time: ClusterTime(1), wall_ms: 1 }
}

fn inserts(from: i64, text: usize) -> Vec<Incoming> {
    (from..from + BATCH).map(|id| incoming(id, WriteOp::Insert(document(id, text)))).collect()
}

fn delta(value: i64) -> Delta {
    Delta::from_diff(&rawdoc! { "u": { "status": "paid", "total": value } }).expect("a diff")
}

fn updates(ids: impl Iterator<Item = i64>, value: i64) -> Vec<Incoming> {
    ids.map(|id| incoming(id, WriteOp::Update(delta(value)))).collect()
}

fn checkpoint() -> Checkpoint {
    Checkpoint {
        anchor: ClusterTime(1),
        token: ResumeToken(rawdoc! { "_data": "82".repeat(40) }),
        kind: PositionKind::CLUSTER_TIME,
        cluster_time: ClusterTime(1),
        source_id: "rs".into(),
        pipeline: "p".into(),
    }
}

/// A queue that holds `depth` documents, and the id of the next one.
struct Filled {
    dir: TempDir,
    queue: Queue,
    next: i64,
    text: usize,
}

impl Filled {
    fn new(depth: i64, text: usize) -> Self {
        let dir = TempDir::new().expect("a folder");
        let queue = Queue::open(&options(&dir)).expect("a queue");
        let mut filled = Self { dir, queue, next: 0, text };
        while filled.next < depth {
            filled.commit();
        }
        filled
    }

    fn inserts(&mut self) -> Vec<Incoming> {
        let batch = inserts(self.next, self.text);
        self.next += BATCH;
        batch
    }

    fn commit(&mut self) {
        let batch = self.inserts();
        self.queue.commit(batch, Some(&checkpoint())).expect("a commit");
    }

    fn drain(&self) {
        let batch = self.queue.lease(BATCH as usize, usize::MAX, 0).expect("a lease");
        assert_eq!(batch.entries.len(), BATCH as usize, "the queue drains in step");
        let acked = |entry: &outrigger::queue::Entry| Ack {
            seq: entry.seq,
            version: entry.version,
            outcome: Outcome::Applied,
        };
        let acks: Vec<_> = batch.entries.iter().map(acked).collect();
        self.queue.ack(&acks).expect("settled");
    }
}

fn options(dir: &TempDir) -> QueueOptions {
    QueueOptions::new(dir.path().join("queue"))
}

/// sled with as many documents as values, or in blocks.
struct Bare {
    dir: TempDir,
    db: sled::Db,
    block: i64,
    text: usize,
    first: i64,
    next: i64,
}

impl Bare {
    fn new(depth: i64, text: usize, block: i64) -> Self {
        let dir = TempDir::new().expect("a folder");
        let db = Self::open(&dir);
        let mut bare = Self { dir, db, block, text, first: 0, next: 0 };
        while bare.next < depth {
            let values = bare.values();
            bare.commit(values);
        }
        bare
    }

    fn open(dir: &TempDir) -> sled::Db {
        let config = sled::Config::default().path(dir.path().join("db")).cache_capacity(64 << 20);
        config.mode(sled::Mode::HighThroughput).segment_size(4 << 20).open().expect("sled")
    }

    fn values(&mut self) -> Vec<(i64, Vec<u8>)> {
        let from = self.next;
        self.next += BATCH;
        (from..self.next)
            .step_by(self.block as usize)
            .map(|first| {
                let ids = first..(first + self.block).min(from + BATCH);
                (first, ids.flat_map(|id| document(id, self.text).into_bytes()).collect())
            })
            .collect()
    }

    fn commit(&self, values: Vec<(i64, Vec<u8>)>) {
        let mut batch = sled::Batch::default();
        for (first, value) in values {
            batch.insert(&first.to_be_bytes(), value);
        }
        self.db.apply_batch(batch).expect("a batch");
    }

    fn drain(&mut self) {
        let mut batch = sled::Batch::default();
        let end = self.first + BATCH;
        for item in self.db.range(self.first.to_be_bytes()..end.to_be_bytes()) {
            let (key, value) = item.expect("a value");
            black_box(value);
            batch.remove(key);
        }
        self.db.apply_batch(batch).expect("a batch");
        self.first = end;
    }
}

fn merging(c: &mut Criterion) {
    let mut group = c.benchmark_group("coalesce");
    group.throughput(Throughput::Elements(1));
    for (name, pending) in [
        ("insert with update", WriteOp::Insert(document(1, 170))),
        ("update with update", WriteOp::Update(delta(1))),
    ] {
        group.bench_function(name, |b| {
            b.iter_batched(
                || (pending.clone(), WriteOp::Update(delta(2))),
                |(pending, arriving)| black_box(coalesce(pending, arriving)),
                BatchSize::SmallInput,
            );
        });
    }
    group.throughput(Throughput::Elements(BATCH as u64)).sample_size(20);
    for (name, documents) in [("hot, 1,000 documents", BATCH), ("distinct, 1,000,000", 1_000_000)] {
        let filled = Filled::new(documents, 170);
        let (mut from, mut value) = (0, 0);
        group.bench_function(format!("1,000 updates of pending documents: {name}"), |b| {
            b.iter_batched(
                || {
                    from = (from + BATCH) % documents;
                    value += 1;
                    updates(from..from + BATCH, value)
                },
                |batch| filled.queue.commit(batch, Some(&checkpoint())).expect("a commit"),
                BatchSize::PerIteration,
            );
        });
    }
    group.finish();
}

fn at_depths(c: &mut Criterion) {
    for Size { name, text, depths } in sizes() {
        for depth in depths {
            let mut group = c.benchmark_group(format!("{name}, depth {depth}"));
            group.throughput(Throughput::Elements(BATCH as u64)).sample_size(20);
            group.sampling_mode(SamplingMode::Flat);
            of_the_queue(&mut group, depth, text);
            of_sled(
                &mut group,
                ("sled in blocks", depth, text, BLOCK.min(16_384 / text as i64 + 1)),
            );
            if depth <= SINGLE_MAX {
                of_sled(&mut group, ("sled", depth, text, 1));
            }
            group.finish();
        }
    }
}

fn of_the_queue(group: &mut BenchmarkGroup<'_, WallTime>, depth: i64, text: usize) {
    let mut filled = Filled::new(depth, text);
    group.bench_function("commit 1,000", |b| {
        timed(b, &mut filled, Filled::inserts, |filled, batch| {
            filled.queue.commit(batch, Some(&checkpoint())).expect("a commit");
        });
    });
    group.bench_function("lease and settle 1,000", |b| {
        timed(b, &mut filled, Filled::commit, |filled, ()| filled.drain());
    });
    if depth > 0 {
        let documents = filled.queue.pending().0;
        filled.queue.flush().expect("flushed");
        let Filled { dir, queue, .. } = filled;
        drop(queue);
        group.throughput(Throughput::Elements(documents)).sample_size(10);
        group.bench_function("reopen", |b| {
            b.iter_custom(|times| {
                repeated(times, || Queue::open(&options(&dir)).expect("it opens"))
            });
        });
        group.throughput(Throughput::Elements(BATCH as u64)).sample_size(20);
    }
}

fn of_sled(
    group: &mut BenchmarkGroup<'_, WallTime>,
    (name, depth, text, block): (&str, i64, usize, i64),
) {
    let mut bare = Bare::new(depth, text, block);
    group.bench_function(format!("commit 1,000 on bare {name}"), |b| {
        timed(b, &mut bare, Bare::values, |bare, values| bare.commit(values));
    });
    let refill = |bare: &mut Bare| {
        let values = bare.values();
        bare.commit(values);
    };
    group.bench_function(format!("read and remove 1,000 on bare {name}"), |b| {
        timed(b, &mut bare, refill, |bare, ()| bare.drain());
    });
    if depth > 0 {
        let documents = (bare.next - bare.first) as u64;
        bare.db.flush().expect("flushed");
        let Bare { dir, db, .. } = bare;
        drop(db);
        group.throughput(Throughput::Elements(documents)).sample_size(10);
        group.bench_function(format!("open and scan bare {name}"), |b| {
            b.iter_custom(|times| {
                repeated(times, || {
                    let db = Bare::open(&dir);
                    black_box(db.iter().map(|item| item.expect("a value").1.len()).sum::<usize>());
                    db
                })
            });
        });
        group.throughput(Throughput::Elements(BATCH as u64)).sample_size(20);
    }
}

/// Measures `work` on what `setup` makes, outside of the measured time.
fn timed<S, T>(
    b: &mut criterion::Bencher<'_>,
    on: &mut S,
    setup: impl Fn(&mut S) -> T,
    work: impl Fn(&mut S, T),
) {
    b.iter_custom(|times| {
        let mut took = Duration::ZERO;
        for _ in 0..times {
            let input = setup(on);
            let started = Instant::now();
            work(on, input);
            took += started.elapsed();
        }
        took
    });
}

/// The time that opening takes, without closing.
fn repeated<T>(times: u64, open: impl Fn() -> T) -> Duration {
    let mut took = Duration::ZERO;
    for _ in 0..times {
        let started = Instant::now();
        let opened = open();
        took += started.elapsed();
        drop(opened);
        // sled's own threads let go of the lock a moment later.
        std::thread::sleep(Duration::from_millis(100));
    }
    took
}

criterion_group!(benches, merging, at_depths);
criterion_main!(benches);
