//! How much waits of each namespace.

use std::collections::BTreeMap;

use super::{Queue, QueueError};
use crate::model::namespace::Namespace;

impl Queue {
    /// Entries of each namespace that has any. One that changes two namespaces counts for both.
    pub fn pending_by_namespace(&self) -> BTreeMap<Namespace, u64> {
        let state = self.lock();
        state.schedule.lines.lens().map(|(ns, n)| (ns.clone(), n)).collect()
    }

    /// Entries of `ns`, without touching the disk.
    pub fn pending_of(&self, ns: &Namespace) -> u64 {
        self.lock().schedule.lines.len_of(ns)
    }

    /// Dead letters of each namespace that has any.
    ///
    /// # Errors
    /// When the queue cannot be read.
    pub fn dead_letters_by_namespace(&self) -> Result<BTreeMap<Namespace, u64>, QueueError> {
        let mut counts = BTreeMap::new();
        for letter in self.letters() {
            *counts.entry(letter?.entry.work.ns().clone()).or_insert(0) += 1;
        }
        Ok(counts)
    }
}
