//! Reserving documents: their entries wait while somebody works on the documents in Atlas.
//!
//! A worker that takes a document out of Atlas for a while first queues a `Refresh` of it. Were that
//! written by another lane before the document is out, the document would be gone for good; so until
//! then it stays.

use std::sync::Arc;

use super::Queue;

/// While it lives, no entry of its documents is leased. One that was leased before goes on.
#[must_use = "the documents are let go when it is dropped"]
pub struct Reservation {
    pub(super) queue: Arc<Queue>,
    pub(super) documents: Vec<u64>,
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let mut ledger = self.queue.ledger();
        for document in &self.documents {
            ledger.schedule.unreserve(*document);
        }
        drop(ledger);
        self.queue.changed.notify_waiters();
    }
}
