//! Reserving documents: their entries wait while somebody works on the documents in Atlas.
//!
//! A worker that takes a document out of Atlas for a while first queues a `Refresh` of it. Were that
//! written by another lane before the document is out, the document would be gone for good; so until
//! then it stays.

use std::sync::Arc;

use super::{Queue, QueueError, codec};
use crate::{document_key::DocumentKey, namespace::Namespace};

/// While it lives, no entry of its documents is leased. One that was leased before goes on.
#[must_use = "the documents are let go when it is dropped"]
pub struct Reservation {
    queue: Arc<Queue>,
    documents: Vec<u64>,
}

impl Queue {
    /// Reserves documents of `ns`. Never waits, and may be done more than once for a document.
    pub fn reserve<'a>(
        self: &Arc<Self>,
        ns: &Namespace,
        keys: impl IntoIterator<Item = &'a DocumentKey>,
    ) -> Reservation {
        let mut state = self.lock();
        let documents: Vec<_> =
            keys.into_iter().map(|key| state.index.name_of(ns, key).hash).collect();
        for document in &documents {
            state.schedule.reserve(*document);
        }
        drop(state);
        Reservation { queue: self.clone(), documents }
    }

    /// True when an entry of the document is pending or leased.
    ///
    /// # Errors
    /// When the queue cannot be read.
    pub fn holds(&self, ns: &Namespace, key: &DocumentKey) -> Result<bool, QueueError> {
        let state = self.lock();
        let name = state.index.name_of(ns, key);
        let found = state.index.find(&name, |seq| -> Result<bool, QueueError> {
            let Some(value) = self.entry_bytes(seq)? else {
                return Ok(false);
            };
            let entry = codec::decode_entry(seq, &value)?;
            Ok(state.name_of(&entry.work).as_ref() == Some(&name))
        })?;
        Ok(found.is_some())
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let mut state = self.queue.lock();
        for document in &self.documents {
            state.schedule.unreserve(*document);
        }
        drop(state);
        self.queue.changed.notify_waiters();
    }
}
