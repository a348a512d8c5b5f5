//! Looking at what waits, without taking it.

use std::collections::VecDeque;

use uuid::Uuid;

use super::{Entry, EntrySummary, Queue, QueueError, QueueStats};
use crate::model::{document_key::DocumentKey, namespace::Namespace};

impl Queue {
    /// The queue in numbers.
    pub fn stats(&self) -> Result<QueueStats, QueueError> {
        let disk_bytes = self.db.size_on_disk()?;
        let oldest = self.oldest_ms()?;
        let ledger = self.ledger();
        Ok(QueueStats {
            pending: ledger.pending,
            pending_bytes: ledger.pending_bytes,
            leased: ledger.schedule.leased_len(),
            delayed: ledger.schedule.delayed_len(),
            dead_letters: ledger.dead_len,
            oldest_ms: oldest,
            disk_bytes,
        })
    }

    /// When the oldest pending change was made, milliseconds since 1970.
    pub fn oldest_ms(&self) -> Result<Option<u64>, QueueError> {
        Ok(self.first_entry()?.map(|entry| entry.first_ms))
    }

    fn first_entry(&self) -> Result<Option<Entry>, QueueError> {
        let state = self.lock();
        let Some(first) = state.blocks.next_from(0) else { return Ok(None) };
        Ok(Some(self.reader().entry(&state.blocks, first)?.0))
    }

    /// True while an entry from before `position` is in the queue.
    pub fn has_before(&self, position: u64) -> bool {
        self.lock().blocks.next_from(0).is_some_and(|(seq, _)| seq < position)
    }

    /// The first `limit` entries, the oldest first, without their documents.
    pub fn list(&self, limit: usize) -> Result<Vec<EntrySummary>, QueueError> {
        self.entries().take(limit).map(|entry| Ok(EntrySummary::from(&entry?))).collect()
    }

    /// The entry with this id.
    ///
    /// # Errors
    /// [`QueueError::NotFound`] when there is none; it may have gone to Atlas meanwhile.
    pub fn show(&self, id: Uuid) -> Result<Entry, QueueError> {
        self.entries()
            .find(|entry| entry.as_ref().is_ok_and(|entry| entry.id == id))
            .unwrap_or(Err(QueueError::NotFound(id)))
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

    /// Every entry, in order. Others may work with the queue meanwhile: what they add behind the last one
    /// that was handed out is met, what they remove before it is met is not.
    pub fn entries(&self) -> impl Iterator<Item = Result<Entry, QueueError>> + '_ {
        let mut from = Some(0);
        let mut page = VecDeque::new();
        std::iter::from_fn(move || {
            if page.is_empty() {
                match self.page(from?) {
                    Ok(read) => page = read,
                    Err(error) => {
                        // What cannot be read is the last: it would be met again and again.
                        from = None;
                        return Some(Err(error));
                    }
                }
                from = page.back().map(|last: &Entry| last.seq + 1).or(from);
            }
            page.pop_front().map(Ok)
        })
    }

    /// The next entries from `seq` on: those of one block.
    fn page(&self, seq: u64) -> Result<VecDeque<Entry>, QueueError> {
        let state = self.lock();
        let mut reader = self.reader();
        let mut page = VecDeque::new();
        let mut next = state.blocks.next_from(seq);
        let first = next.map(|(_, place)| place.block);
        while let Some((seq, place)) = next.filter(|(_, place)| Some(place.block) == first) {
            page.push_back(reader.entry(&state.blocks, (seq, place))?.0);
            next = state.blocks.next_from(seq + 1);
        }
        Ok(page)
    }
}
