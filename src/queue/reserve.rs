//! Reserving documents: their entries wait while somebody works on the documents in Atlas.
//!
//! A worker that takes a document out of Atlas for a while first queues a `Refresh` of it. Were that
//! written by another writer before the document is out, the document would be gone for good; so until
//! then it stays.

use std::sync::Arc;

use super::ledger::Front;
use crate::model::{document_key::DocumentKey, namespace::Namespace};

/// While it lives, no entry of its documents is leased. One that was leased before goes on.
#[must_use = "the documents are let go when it is dropped"]
pub struct Reservation {
    front: Arc<Front>,
    documents: Vec<u64>,
}

impl Reservation {
    /// Never waits, and may be made more than once for a document.
    pub(super) fn of<'a>(
        front: &Arc<Front>,
        ns: &Namespace,
        keys: impl IntoIterator<Item = &'a DocumentKey>,
    ) -> Self {
        let documents: Vec<_> = keys.into_iter().map(|key| front.hash_of(ns, key)).collect();
        let mut ledger = front.ledger();
        for document in &documents {
            ledger.schedule.reserve(*document);
        }
        drop(ledger);
        Self { front: front.clone(), documents }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let mut ledger = self.front.ledger();
        for document in &self.documents {
            ledger.schedule.unreserve(*document);
        }
        drop(ledger);
        self.front.tell();
    }
}
