//! Reserving documents: their entries wait while somebody works on the documents in Atlas.
//!
//! A worker that takes a document out of Atlas for a while first queues a `Refresh` of it. Were that
//! written by another lane before the document is out, the document would be gone for good; so until
//! then it stays. And keeping apart what is not ours to write: it waits for as long as that is so.

use std::sync::Arc;

use super::{Entry, Queue, QueueError, codec, layout::dead_key};
use crate::{
    model::{document_key::DocumentKey, foreign::Foreign, namespace::Namespace},
    queue::dead_letter::DeadLetter,
};

/// While it lives, no entry of its documents is leased. One that was leased before goes on.
#[must_use = "the documents are let go when it is dropped"]
pub struct Reservation {
    queue: Arc<Queue>,
    documents: Vec<u64>,
}

impl Queue {
    /// Keeps the entries of what is not ours from being leased, and lets go what was so before.
    pub fn keep_apart(&self, foreign: Foreign) {
        self.lock().schedule.keep_apart(Arc::new(foreign));
        self.changed.notify_waiters();
    }

    /// What is not ours to write.
    pub fn kept_apart(&self) -> Arc<Foreign> {
        self.lock().schedule.kept_apart()
    }

    /// Reserves documents of `ns`. Never waits, and may be done more than once for a document.
    pub fn reserve<'a>(
        self: &Arc<Self>,
        ns: &Namespace,
        keys: impl IntoIterator<Item = &'a DocumentKey>,
    ) -> Reservation {
        let mut state = self.lock();
        let documents: Vec<_> = keys.into_iter().map(|key| state.index.hash_of(ns, key)).collect();
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
        Ok(self.entry_of(ns, key)?.is_some())
    }

    /// The newest entry of a document, pending or leased.
    ///
    /// # Errors
    /// When the queue cannot be read.
    pub fn entry_of(&self, ns: &Namespace, key: &DocumentKey) -> Result<Option<Entry>, QueueError> {
        let state = self.lock();
        let name = state.index.name_of(ns, key);
        Ok(state.newest(&mut self.reader(), &name)?.map(|(entry, _)| entry))
    }

    /// The dead letter of a document, if it has one.
    ///
    /// # Errors
    /// When the queue cannot be read.
    pub fn dead_letter_of(
        &self,
        ns: &Namespace,
        key: &DocumentKey,
    ) -> Result<Option<DeadLetter>, QueueError> {
        let state = self.lock();
        let Some(seq) = state.letters.get(&state.index.name_of(ns, key)) else { return Ok(None) };
        let value = self.db.get(dead_key(seq))?;
        Ok(value.map(|value| codec::decode_dead_letter(seq, &value)).transpose()?)
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
