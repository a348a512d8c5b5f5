//! The read watermark: which deltas may still be sent as such.
//!
//! A delta is exact on the state that it was made from and on no other: applied to a later state, it
//! may leave the fields in another order. Atlas may hold a later state of a document in two cases:
//! the document was read locally and written whole, or the stream is being replayed after a restart.
//! So a delta is sent only when all its changes are younger than both.

use std::collections::HashMap;

use ahash::RandomState;

use crate::model::checkpoint::ClusterTime;

/// Remembers, in bounded memory, up to when each document may have been written already.
#[derive(Debug)]
pub struct ReadWatermark {
    /// Holds for every document.
    floor: ClusterTime,
    read_at: HashMap<Box<[u8]>, ClusterTime, RandomState>,
    capacity: usize,
}

impl ReadWatermark {
    /// `floor` is the local database's time when the agent started: what came before may have been
    /// written by an earlier run.
    pub fn new(floor: ClusterTime, capacity: usize) -> Self {
        Self { floor, read_at: HashMap::default(), capacity }
    }

    /// The document was read at a time not later than `at`.
    pub fn read(&mut self, document: Box<[u8]>, at: ClusterTime) {
        if self.read_at.len() >= self.capacity {
            // What is forgotten must be assumed of all.
            self.floor = self.read_at.drain().map(|(_, at)| at).fold(self.floor, ClusterTime::max);
        }
        let known = self.read_at.entry(document).or_default();
        *known = at.max(*known);
    }

    /// Everything up to `at` may have been written already.
    pub fn raise(&mut self, at: ClusterTime) {
        self.floor = self.floor.max(at);
    }

    /// True for a change that no earlier run can have made.
    pub fn is_new(&self, first: ClusterTime) -> bool {
        first > self.floor
    }

    /// True when a delta whose earliest change is of `first` was made from the state that Atlas has.
    pub fn is_exact(&self, document: &[u8], first: ClusterTime) -> bool {
        self.is_new(first) && self.read_at.get(document).is_none_or(|at| first > *at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_delta_older_than_a_read_of_its_document_is_not_exact() {
        let mut watermark = ReadWatermark::new(ClusterTime(10), 100);
        watermark.read(Box::from(*b"a"), ClusterTime(20));

        assert!(!watermark.is_exact(b"a", ClusterTime(20)));
        assert!(watermark.is_exact(b"a", ClusterTime(21)));
        assert!(watermark.is_exact(b"b", ClusterTime(11)));
        assert!(!watermark.is_exact(b"b", ClusterTime(10)), "it may be a replay");
    }

    #[test]
    fn what_is_forgotten_is_assumed_of_all() {
        let mut watermark = ReadWatermark::new(ClusterTime(0), 2);
        for (document, at) in [(b"a", 5), (b"b", 7), (b"c", 1)] {
            watermark.read(Box::from(*document), ClusterTime(at));
        }

        assert!(!watermark.is_exact(b"a", ClusterTime(5)));
        assert!(!watermark.is_exact(b"d", ClusterTime(7)));
        assert!(watermark.is_exact(b"d", ClusterTime(8)));
    }

    #[test]
    fn a_later_read_of_a_document_counts_and_what_all_may_be_of_only_rises() {
        let mut watermark = ReadWatermark::new(ClusterTime(10), 100);
        for at in [20, 15] {
            watermark.read(Box::from(*b"a"), ClusterTime(at));
        }
        assert!(!watermark.is_exact(b"a", ClusterTime(20)));
        assert!(watermark.is_exact(b"a", ClusterTime(21)));

        watermark.raise(ClusterTime(30));
        watermark.raise(ClusterTime(25));

        assert!(!watermark.is_new(ClusterTime(30)) && watermark.is_new(ClusterTime(31)));
        assert!(!watermark.is_exact(b"b", ClusterTime(30)));
        assert!(!watermark.is_exact(b"a", ClusterTime(30)));
    }
}
