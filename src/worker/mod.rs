//! From the queue to Atlas.
//!
//! ```text
//!   breaker.permit(now) ─▶ queue.lease ─▶ apply ─▶ breaker: succeeded / failed ─▶ queue.ack ────┐
//!          ▲                                                                                   │
//!          └───────────────────────────────────────────────────────────────────────────────────┘
//! ```
//!
//! The breaker hears of a batch before the queue does: what failed is ready again with its ack, and another writer
//! would try it once more.
//!
//! Several writers do this at the same time. A document is never in two of them: the queue leases at
//! most one entry of a document, and what arrives for it meanwhile waits for the ack. So the
//! order of one document's writes is kept without tying a document to a writer, and a slow writer holds
//! up nobody else's documents.
//!
//! `apply` takes a batch apart; `schema` makes changes of collections, `hydrate` reads what is to be written as it is now,
//! `conflict` sees to unique values that change hands, and all three write documents through `write` alone. What is
//! remembered between batches is in `learned`. Whether an update goes as its difference (`worker.update_mode`) is
//! decided in `apply`, by the [`ReadWatermark`].

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;

use crate::{
    config::UpdateMode,
    gate::{reading::Reading, writing::Writing},
    model::namespace::{Namespace, NamespaceFilter},
    observe::status::Status,
    policy::{
        backoff::RetrySchedule,
        breaker::{Admission, Stage},
        in_doubt::{InDoubtWrites, Overdue},
        read_watermark::ReadWatermark,
    },
    queue::{Ack, Entry, Incoming, NextDue, Outcome, Queue, QueueError, Work},
    runtime::{
        clock::{self, now_ms},
        crash::{self, CrashPoint},
        shutdown::{Stop, blocking},
    },
    schema::watch::SchemaWatch,
    sink::{SchemaSink, SinkError},
    source::SchemaSource,
    sync::state::{Reason, SyncState},
};

mod apply;
mod conflict;
mod hydrate;
mod in_the_way;
mod item;
mod judge;
mod learned;
mod outcomes;
mod schema;
mod write;

use learned::{Collections, Waiting};
use schema::CollectionChanges;
use write::Dispatch;

/// Writers that take what is there, however little. Further ones take full batches alone: they are for a line that is long,
/// and would cut a steady flow into small batches, each of which costs a command and an ack.
const EAGER_WRITERS: usize = 2;

/// Most documents of a probe: enough to prove that Atlas answers, small enough to lose little.
const PROBE_OPS: usize = 10;

/// Most collections whose figures are kept for the dashboard.
const NAMESPACES_MAX: usize = 10_000;

/// Most bytes of one lease, unless one entry has more. They stand in memory up to five times: as entries, as a command,
/// and in what the driver makes of that. Well below what a command takes: the allocator keeps no buffer of
/// 8 MiB or more, and the pages of a new one cost more than all else that is done with a document of 16 KB.
const LEASE_BYTES: usize = 4 << 20;

/// How a worker works.
#[derive(Clone, Debug)]
pub struct WorkerOptions {
    pub batch_size: usize,
    /// Pause between two batches of a writer.
    pub interval: Duration,
    pub retries: RetrySchedule,
    pub update_mode: UpdateMode,
    /// How long an answer of Atlas is waited for.
    pub atlas_timeout: Duration,
}

/// What the worker has in common with the other tasks.
pub struct Shared {
    pub queue: Arc<Queue>,
    pub status: Arc<Status>,
    pub reading: Arc<Reading>,
    pub writing: Arc<Writing>,
    pub watermark: Arc<Mutex<ReadWatermark>>,
    pub in_doubt: Arc<Mutex<InDoubtWrites>>,
    /// What is left to the task that builds indexes.
    pub watch: Arc<SchemaWatch>,
    /// What is replicated.
    pub filter: NamespaceFilter,
}

/// Drains the queue into the sink. Shared by its writers.
pub struct Worker<S, K> {
    queue: Arc<Queue>,
    source: Arc<S>,
    sink: Arc<K>,
    status: Arc<Status>,
    reading: Arc<Reading>,
    writing: Arc<Writing>,
    options: WorkerOptions,
    watermark: Arc<Mutex<ReadWatermark>>,
    in_doubt: Arc<Mutex<InDoubtWrites>>,
    watch: Arc<SchemaWatch>,
    filter: NamespaceFilter,
    dispatch: Arc<Dispatch<S, K>>,
    changes: CollectionChanges<S, K>,
    collections: Arc<Collections>,
    waiting: Arc<Waiting>,
    /// Writers that write a batch just now.
    under_way: AtomicUsize,
}

/// What the entries of a batch are, for counting.
#[derive(Default)]
struct Tally {
    /// Kinds of write, each with a namespace.
    groups: Vec<(&'static str, Namespace)>,
    /// Of each entry, in their order: the place of its group, and whether Atlas has rejected it before.
    entries: Vec<(usize, bool)>,
}

impl Tally {
    fn of(entries: &[Entry]) -> Self {
        let mut tally = Self { groups: Vec::new(), entries: Vec::with_capacity(entries.len()) };
        for entry in entries {
            let ns = entry.work.ns();
            let kind = match &entry.work {
                Work::Document { op, .. } => op.name(),
                Work::Schema(_) => "schema",
            };
            let is_known = |(of_kind, of_ns): &(&str, Namespace)| *of_kind == kind && of_ns == ns;
            let group = tally.groups.iter().position(is_known).unwrap_or_else(|| {
                tally.groups.push((kind, ns.clone()));
                tally.groups.len() - 1
            });
            tally.entries.push((group, entry.attempts > 0));
        }
        tally
    }
}

/// What a batch taught about the ends.
#[derive(Clone, Debug, PartialEq)]
enum Verdict {
    /// Atlas answered.
    Answered,
    /// Atlas was not asked: the local database was away.
    NotAsked,
    /// Atlas is not available, or refuses access.
    Away(SinkError),
}

/// How long to wait for the next retry, a second at the most.
fn until(due_ms: Option<u64>) -> Duration {
    Duration::from_millis(due_ms.map_or(1_000, |due| due.saturating_sub(now_ms()).clamp(1, 1_000)))
}

impl<S: SchemaSource, K: SchemaSink> Worker<S, K> {
    /// A worker between the queue and `sink`, which reads documents from `source` when it must.
    pub fn new(source: Arc<S>, sink: Arc<K>, shared: Shared, options: WorkerOptions) -> Self {
        let Shared { queue, status, reading, writing, watermark, in_doubt, watch, filter } = shared;
        let (collections, waiting): (Arc<Collections>, Arc<Waiting>) = Default::default();
        let dispatch = Arc::new(Dispatch {
            queue: queue.clone(),
            source: source.clone(),
            sink: sink.clone(),
            watch: watch.clone(),
            status: status.clone(),
            retries: options.retries.clone(),
            in_doubt: in_doubt.clone(),
            collections: collections.clone(),
        });
        let changes = CollectionChanges {
            queue: queue.clone(),
            source: source.clone(),
            sink: sink.clone(),
            reading: reading.clone(),
            watermark: watermark.clone(),
            in_doubt: in_doubt.clone(),
            watch: watch.clone(),
            dispatch: dispatch.clone(),
            collections: collections.clone(),
            waiting: waiting.clone(),
        };
        Self {
            queue,
            source,
            sink,
            status,
            reading,
            writing,
            options,
            watermark,
            in_doubt,
            watch,
            filter,
            dispatch,
            changes,
            collections,
            waiting,
            under_way: AtomicUsize::new(0),
        }
    }

    /// Runs one writer until told to stop: on `drain` it ends when nothing is left that could be
    /// written now, on `leave` after the batch in hand.
    ///
    /// # Errors
    /// [`QueueError`] when the queue itself fails; nothing can be trusted then.
    pub async fn run(&self, stop: &Stop) -> Result<(), QueueError> {
        loop {
            if stop.leave.is_cancelled() {
                return Ok(());
            }
            let changed = self.queue.changed();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if self.writing.rests() {
                if stop.is_draining() {
                    return Ok(());
                }
                self.wait(stop, changed, Duration::from_millis(200)).await;
                continue;
            }
            self.refresh_in_doubt().await?;
            // All writers are woken by each change; those that find nothing go back to sleep at once.
            let idle = self.queue.idle_until(now_ms());
            let is_left_to_others = self.under_way.load(Ordering::Relaxed) >= EAGER_WRITERS
                && self.queue.waiting() < self.options.batch_size as u64;
            if idle.is_some() || is_left_to_others {
                if stop.is_draining() {
                    return Ok(());
                }
                let next_due = idle.and_then(|NextDue(due_ms)| due_ms);
                self.wait(stop, changed, until(next_due)).await;
                continue;
            }
            let permit = self.writing.breaker().permit(clock::now());
            let ops_max = match permit {
                Admission::Proceed => self.options.batch_size,
                Admission::Probe => self.options.batch_size.min(PROBE_OPS),
                // Atlas is away. The queue keeps what waits: there is nothing to drain for.
                Admission::Wait(_) if stop.is_draining() => return Ok(()),
                Admission::Wait(wait) => {
                    self.wait(stop, std::future::pending(), wait).await;
                    continue;
                }
            };
            let queue = self.queue.clone();
            let batch = blocking(move || queue.lease(ops_max, LEASE_BYTES, now_ms())).await?;
            if batch.entries.is_empty() {
                if permit == Admission::Probe {
                    self.writing.breaker().abandoned(clock::now());
                }
                if stop.is_draining() {
                    return Ok(());
                }
                self.wait(stop, changed, until(batch.next_due_ms)).await;
                continue;
            }
            crash::point(CrashPoint::Leased);
            self.under_way.fetch_add(1, Ordering::Relaxed);
            let written = self.write(batch.entries, permit).await;
            self.under_way.fetch_sub(1, Ordering::Relaxed);
            written?;
            if !self.options.interval.is_zero() {
                self.wait(stop, std::future::pending(), self.options.interval).await;
            }
        }
    }

    async fn wait(&self, stop: &Stop, until: impl Future<Output = ()>, at_most: Duration) {
        tokio::select! {
            () = stop.leave.cancelled() => {}
            () = stop.drain.cancelled(), if !stop.drain.is_cancelled() => {}
            () = until => {}
            () = tokio::time::sleep(at_most) => {}
        }
    }

    async fn write(&self, entries: Vec<Entry>, permit: Admission) -> Result<(), QueueError> {
        let started = clock::now();
        // It comes alone.
        let changed = entries.first().and_then(|entry| match &entry.work {
            Work::Schema(change) => Some(change.namespaces().into_iter().collect::<BTreeSet<_>>()),
            Work::Document { .. } => None,
        });
        let is_schema = changed.is_some();
        if is_schema {
            // The change's own entry is on the disk before it is made; its ack is before anything
            // behind it is (`Queue::ack`). So a crash repeats it at the most with nothing after it.
            self.flush().await?;
        }
        let tally = Tally::of(&entries);
        let (acks, verdict) = self.apply(entries).await?;
        self.count(&acks, &tally);
        crash::point(if is_schema { CrashPoint::BarrierApplied } else { CrashPoint::Written });
        // Before what failed is ready again: else another writer would try it once more.
        self.learn(&verdict, permit);
        let queue = self.queue.clone();
        let is_given_up = acks.iter().any(|end| matches!(end.outcome, Outcome::Rejected { .. }));
        let given_up = changed.filter(|_| is_given_up);
        blocking(move || {
            if let Some(namespaces) = given_up {
                // What stood behind the change goes on without it; only a comparison can tell what
                // that makes of the documents.
                let position = queue.checkpoint()?.map(|checkpoint| checkpoint.cluster_time);
                let position = position.unwrap_or_default();
                SyncState::require_of(&queue, position, &namespaces, Reason::SchemaGivenUp)?;
            }
            queue.ack(&acks)
        })
        .await?;
        if verdict == Verdict::Answered {
            let metrics = &self.status.metrics;
            metrics.batches.add(1);
            metrics.batch_micros.add(clock::since(started).as_micros() as u64);
            metrics.batch_seconds.observe(clock::since(started).as_secs_f64());
            self.in_doubt.lock().answered(clock::now());
        }
        Ok(())
    }

    /// Queues a `Refresh` of documents whose given-up writes may have been made since.
    async fn refresh_in_doubt(&self) -> Result<(), QueueError> {
        let due = self.in_doubt.lock().due(clock::now());
        if due == Overdue::default() {
            return Ok(());
        }
        let cluster_time = self.reading.position().whole();
        let incoming: Vec<_> = due
            .documents
            .into_iter()
            .flat_map(|(ns, keys)| keys.into_iter().map(move |key| (ns.clone(), key)))
            .map(|(ns, key)| Incoming {
                work: Work::refresh(ns, key),
                cluster_time,
                wall_ms: now_ms(),
            })
            .collect();
        tracing::info!(
            documents = incoming.len(),
            again = ?due.namespaces,
            "what had no answer may have been done late: documents are written once more"
        );
        let queue = self.queue.clone();
        blocking(move || {
            if !due.namespaces.is_empty() {
                SyncState::require_of(&queue, cluster_time, &due.namespaces, Reason::Unanswered)?;
            }
            queue.commit(incoming, None).map(drop)
        })
        .await
    }

    async fn flush(&self) -> Result<(), QueueError> {
        let queue = self.queue.clone();
        blocking(move || queue.flush()).await
    }

    /// Counts how the entries ended; `acks` are in the order of the entries.
    fn count(&self, acks: &[Ack], tally: &Tally) {
        let metrics = &self.status.metrics;
        let mut applied = vec![0; tally.groups.len()];
        for (ack, (group, was_rejected)) in acks.iter().zip(&tally.entries) {
            let is_first = u64::from(!was_rejected);
            match &ack.outcome {
                Outcome::Applied => applied[*group] += 1,
                Outcome::Retry { .. } => {
                    metrics.writes_failed.add(1);
                    metrics.writes_rejected.add(is_first);
                    metrics.retries.add(1);
                }
                Outcome::Rejected { refusal, .. } => {
                    metrics.writes_failed.add(1);
                    metrics.writes_rejected.add(is_first);
                    metrics.dead_letters.add(1);
                    metrics.dead_letters_by_reason.add(refusal.name(), 1);
                }
                Outcome::Unavailable { .. } | Outcome::Refresh { .. } | Outcome::PassedOver => {}
            }
        }
        let now = now_ms();
        let mut state = self.status.state();
        for ((kind, ns), writes) in tally.groups.iter().zip(applied).filter(|(_, n)| *n > 0) {
            metrics.writes_applied.add(writes);
            metrics.writes_by_kind.add(kind, writes);
            metrics.last_applied_ms.set(now);
            // Names may come and go without end; counting forgets those that are gone, where it is on.
            if state.namespaces.len() < NAMESPACES_MAX || state.namespaces.contains_key(ns) {
                let figures = state.namespaces.entry(ns.clone()).or_default();
                figures.writes += writes;
                figures.last_write_ms = now;
            }
        }
    }

    /// Tells the breaker, and, when it changes, everybody.
    fn learn(&self, verdict: &Verdict, permit: Admission) {
        let now = clock::now();
        // Held to the end: what another writer's batch has changed of it must not be told before.
        let mut breaker = self.writing.breaker();
        match verdict {
            Verdict::Away(error) => {
                let random = fastrand::f64();
                let is_new = match error {
                    SinkError::Denied(_) => breaker.denied(now, random),
                    _ => breaker.failed(now, random),
                };
                self.status.faults.atlas.fails(error.into());
                if is_new {
                    let breaker = breaker.stage().name();
                    self.status.metrics.breaker_openings.add(1);
                    tracing::warn!(%error, breaker, "changes for Atlas wait in the queue");
                }
            }
            Verdict::Answered => {
                let outage = breaker.succeeded();
                let breaker = breaker.stage();
                if breaker == Stage::Closed {
                    self.status.faults.atlas.answers();
                }
                if let Some(since) = outage {
                    let elapsed_ms = now.duration_since(since).as_millis() as u64;
                    tracing::info!(elapsed_ms, breaker = breaker.name(), "Atlas is back");
                }
            }
            Verdict::NotAsked if permit == Admission::Probe => breaker.abandoned(now),
            Verdict::NotAsked => {}
        }
    }
}

#[cfg(test)]
mod tests;
