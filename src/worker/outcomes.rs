//! How the entries of a batch end.

use std::collections::HashMap;

use ahash::RandomState;
use bson::RawDocumentBuf;

use super::item::Item;
use crate::{
    queue::{Outcome, QueueError},
    runtime::clock::now_ms,
    sink::{SinkError, Taken},
};

/// How long an entry waits for the local database.
pub(super) const LOCAL_WAIT_MS: u64 = 1_000;

/// How long entries wait for what stands in their way in Atlas, and a change that Atlas does not make yet.
pub(super) const HELD_WAIT_MS: u64 = 2_000;

/// How long a conflict waits for its turn.
const TURN_WAIT_MS: u64 = 200;

/// Conflicts that are resolved at once, in documents and in bytes of them; both sides are held in
/// memory. The rest waits a moment.
const CONFLICTS_MAX: usize = 200;
const BYTES_MAX: usize = 16 << 20;

/// It costs no attempt, and is due after so long.
pub(super) fn wait(ms: u64) -> Outcome {
    Outcome::Unavailable { due_ms: now_ms() + ms }
}

/// The batch cannot go on; what has no outcome yet goes back to the queue.
pub(super) enum Halt {
    Sink(SinkError),
    /// The local database is away; everything that could be done without it is done.
    Local,
    /// The queue failed.
    Queue(QueueError),
}

impl From<QueueError> for Halt {
    fn from(error: QueueError) -> Self {
        Halt::Queue(error)
    }
}

impl From<SinkError> for Halt {
    fn from(error: SinkError) -> Self {
        Halt::Sink(error)
    }
}

/// How the entries of a batch ended, by sequence number.
#[derive(Default)]
pub(super) struct Outcomes {
    by_seq: HashMap<u64, Outcome, RandomState>,
    /// Writes that found a unique value taken; see [`Worker::resolve`](super::Worker::resolve).
    pub conflicts: Conflicts,
    /// Atlas answered at least once.
    pub answered: bool,
}

impl Outcomes {
    /// Of a batch of so many entries.
    pub fn of(entries: usize) -> Self {
        let mut outcomes = Self::default();
        outcomes.by_seq.reserve(entries);
        outcomes
    }

    pub fn insert(&mut self, seq: u64, outcome: Outcome) {
        self.by_seq.insert(seq, outcome);
    }

    /// Of an entry that has not ended otherwise.
    pub fn insert_if_open(&mut self, seq: u64, outcome: Outcome) {
        self.by_seq.entry(seq).or_insert(outcome);
    }

    /// How the entry ended; one that had no chance goes back as it was.
    pub fn take(&mut self, seq: u64) -> Outcome {
        self.by_seq.remove(&seq).unwrap_or(Outcome::Unavailable { due_ms: 0 })
    }

    pub fn is_applied(&self, seq: u64) -> bool {
        self.by_seq.get(&seq) == Some(&Outcome::Applied)
    }
}

/// A write that found a unique value of its document with another one.
#[derive(Clone, Debug)]
pub(super) struct Conflict {
    pub item: Item,
    pub document: RawDocumentBuf,
    pub reason: String,
    pub taken: Taken,
}

/// The conflicts of a batch that wait for the rest of it.
#[derive(Default)]
pub(super) struct Conflicts {
    open: Vec<Conflict>,
    bytes: usize,
}

impl Conflicts {
    /// Takes a conflict; returns what holds for it until it is resolved, as something may come between.
    pub fn push(&mut self, conflict: Conflict) -> Outcome {
        let is_full = self.open.len() >= CONFLICTS_MAX || self.bytes >= BYTES_MAX;
        if is_full {
            return wait(TURN_WAIT_MS);
        }
        self.bytes += conflict.document.as_bytes().len();
        self.open.push(conflict);
        wait(LOCAL_WAIT_MS)
    }

    pub fn take(&mut self) -> Vec<Conflict> {
        std::mem::take(self).open
    }
}
