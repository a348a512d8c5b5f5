//! What happened, counted: every counter that Outrigger shows. What is so now (how much waits, how far it is behind) is
//! asked of its owner.

use std::sync::atomic::{AtomicU64, Ordering};

use prometheus::{Histogram, HistogramOpts};

use crate::model::write_op::Refusal;

/// A number that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// The latest value of something.
#[derive(Debug, Default)]
pub struct Gauge(AtomicU64);

impl Gauge {
    pub fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }

    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Numbers that only grow, one for each of a fixed list of labels.
#[derive(Debug)]
pub struct Labelled<const N: usize> {
    labels: [&'static str; N],
    counts: [Counter; N],
}

impl<const N: usize> Labelled<N> {
    fn new(labels: [&'static str; N]) -> Self {
        Self { labels, counts: std::array::from_fn(|_| Counter::default()) }
    }

    /// Counts under `label`; what is not in the list counts under the last one.
    pub fn add(&self, label: &str, n: u64) {
        let at = self.labels.iter().position(|known| *known == label).unwrap_or(N - 1);
        self.counts[at].add(n);
    }

    /// Every label with its count.
    pub fn all(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        self.labels.iter().zip(&self.counts).map(|(label, count)| (*label, count.get()))
    }
}

/// What a write was, as the queue held it.
pub const WRITE_KINDS: [&str; 6] = ["insert", "replace", "update", "delete", "refresh", "schema"];

/// Counters since the agent started, and the times of what happened last (milliseconds since 1970,
/// 0: never).
#[derive(Debug)]
pub struct Metrics {
    /// Change events read from the local database.
    pub events_read: Counter,
    /// Ops merged into one that waited, each a write that was not made.
    pub ops_coalesced: Counter,
    /// Entries that reached Atlas, in all and by [`WRITE_KINDS`].
    pub writes_applied: Counter,
    pub writes_by_kind: Labelled<6>,
    /// Attempts that Atlas rejected.
    pub writes_failed: Counter,
    /// Writes that Atlas rejected: each counts once, however often it is tried.
    pub writes_rejected: Counter,
    /// Rejected attempts that are tried again.
    pub retries: Counter,
    /// Writes that found their unique value with another document, and got it.
    pub conflicts_resolved: Counter,
    /// Ops given up, in all and by [`Refusal`].
    pub dead_letters: Counter,
    pub dead_letters_by_reason: Labelled<5>,
    /// Documents read from the local database to be written whole.
    pub local_reads: Counter,
    /// Documents written by the first copy.
    pub documents_copied: Counter,
    /// Batches that Atlas answered, and the time that they took in all, in microseconds.
    pub batches: Counter,
    pub batch_micros: Counter,
    /// The same in seconds, by size.
    pub batch_seconds: Histogram,
    pub breaker_openings: Counter,
    /// The local change stream answered, with events or without.
    pub local_heard_ms: Gauge,
    /// An entry was applied.
    pub last_applied_ms: Gauge,
    /// When the newest change that was read was made; now, whenever there was none to read.
    pub read_wall_ms: Gauge,
    /// The checkpoint was committed.
    pub checkpoint_ms: Gauge,
}

/// From a write on the same machine to one that waits for `atlas.timeout`.
const BATCH_SECONDS: [f64; 12] =
    [0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 30.0];

impl Default for Metrics {
    fn default() -> Self {
        let batches = HistogramOpts::new(
            "outrigger_batch_duration_seconds",
            "Time from the lease of a batch to its settlement, of batches that Atlas answered.",
        );
        Self {
            events_read: Counter::default(),
            ops_coalesced: Counter::default(),
            writes_applied: Counter::default(),
            writes_by_kind: Labelled::new(WRITE_KINDS),
            writes_failed: Counter::default(),
            writes_rejected: Counter::default(),
            retries: Counter::default(),
            conflicts_resolved: Counter::default(),
            dead_letters: Counter::default(),
            dead_letters_by_reason: Labelled::new(Refusal::ALL.map(Refusal::name)),
            local_reads: Counter::default(),
            documents_copied: Counter::default(),
            batches: Counter::default(),
            batch_micros: Counter::default(),
            batch_seconds: Histogram::with_opts(batches.buckets(BATCH_SECONDS.into()))
                .expect("the name and the buckets are valid"),
            breaker_openings: Counter::default(),
            local_heard_ms: Gauge::default(),
            last_applied_ms: Gauge::default(),
            read_wall_ms: Gauge::default(),
            checkpoint_ms: Gauge::default(),
        }
    }
}
