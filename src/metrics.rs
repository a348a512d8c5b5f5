//! What happened, counted. Every figure that Outrigger shows comes from here.

use std::sync::atomic::{AtomicU64, Ordering};

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

/// Counters since the agent started, and the times of what happened last (milliseconds since 1970,
/// 0: never).
#[derive(Debug, Default)]
pub struct Metrics {
    /// Change events read from the local database.
    pub events_read: Counter,
    /// Ops merged into one that waited, each a write that was not made.
    pub ops_coalesced: Counter,
    /// Entries that reached Atlas.
    pub writes_applied: Counter,
    /// Attempts that Atlas rejected.
    pub writes_failed: Counter,
    /// Rejected attempts that are tried again.
    pub retries: Counter,
    /// Writes that found their unique value with another document, and got it.
    pub conflicts_resolved: Counter,
    /// Ops given up.
    pub dead_letters: Counter,
    /// Documents read from the local database to be written whole.
    pub local_reads: Counter,
    /// Documents written by the first copy.
    pub documents_copied: Counter,
    /// Batches that Atlas answered, and the time that they took in all, in microseconds.
    pub batches: Counter,
    pub batch_micros: Counter,
    pub breaker_openings: Counter,
    /// The local change stream answered, with events or without.
    pub local_heard_ms: Gauge,
    /// Atlas answered a write.
    pub atlas_heard_ms: Gauge,
    /// An entry was applied.
    pub last_applied_ms: Gauge,
}
