//! What is in memory of the store, under the queue's first lock: where each entry is, which documents have one, and
//! where the dead letters are. `load` builds it from the files, [`Store::write`](super::store::Store::write) keeps it
//! to them.

use std::sync::{Arc, MutexGuard};

use super::{
    Entry, QueueError, Work,
    blocks::{Blocks, Place},
    edit::Edit,
    index::{DocumentName, Index},
    ledger::{Front, Ledger},
    letters::Letters,
    reader::Reader,
};

/// A value that is written with each step that concludes something from it.
#[derive(Clone)]
pub struct Carried {
    pub name: &'static str,
    /// Says what it is now; nothing where it is to stay.
    pub value: Arc<dyn Fn() -> Option<Vec<u8>> + Send + Sync>,
}

/// See the [module](self).
pub struct StoreState {
    pub blocks: Blocks,
    pub index: Index,
    pub letters: Letters,
    /// Encoded size of the dead letters when the queue was opened.
    pub dead_bytes: u64,
    /// See [`Edit`].
    pub seal: u64,
    /// Set by the first failed write; see [`QueueError::Disk`].
    pub failed: bool,
    pub carried: Option<Carried>,
    front: Arc<Front>,
}

impl Default for StoreState {
    fn default() -> Self {
        let index = Index::default();
        let front = Arc::new(Front::new(index.hasher.clone()));
        let (blocks, letters) = (Blocks::default(), Letters::default());
        let (dead_bytes, seal, failed, carried) = (0, 0, false, None);
        Self { blocks, index, letters, dead_bytes, seal, failed, carried, front }
    }
}

impl StoreState {
    /// What is known beside it, under a lock of its own.
    pub fn front(&self) -> &Arc<Front> {
        &self.front
    }

    /// See [`ledger`](super::ledger).
    pub fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.front.ledger()
    }

    pub fn name_of(&self, work: &Work) -> Option<DocumentName> {
        match work {
            Work::Document { ns, key, .. } => Some(self.index.name_of(ns, key)),
            Work::Schema(_) => None,
        }
    }

    /// An entry and the length of its bytes, if it is there.
    pub fn entry(
        &self,
        reader: &mut Reader<'_>,
        seq: u64,
    ) -> Result<Option<(Entry, usize)>, QueueError> {
        let place = self.blocks.place_of(seq);
        place.map(|place| reader.entry(&self.blocks, (seq, place))).transpose()
    }

    /// The newest entry of a document, and the length of its bytes.
    pub fn newest(
        &self,
        reader: &mut Reader<'_>,
        name: &DocumentName,
    ) -> Result<Option<(Entry, usize)>, QueueError> {
        let mut read = |seq| self.entry(reader, seq);
        let mut found = None;
        let seq = self.index.find(name, |seq| -> Result<bool, QueueError> {
            found =
                read(seq)?.filter(|(entry, _)| self.name_of(&entry.work).as_ref() == Some(name));
            Ok(found.is_some())
        })?;
        match (found, seq) {
            (None, Some(seq)) => read(seq),
            (found, _) => Ok(found),
        }
    }

    /// The next entry that may be ready: one that came back, else the next that was not looked at.
    pub fn next_ready(&self, now_ms: u64) -> Option<(u64, Place)> {
        let schedule = &mut self.ledger().schedule;
        while let Some(seq) = schedule.next_ready(now_ms) {
            if let Some(place) = self.blocks.place_of(seq) {
                return Some((seq, place));
            }
        }
        let (seq, place) = self.blocks.next_from(schedule.cursor)?;
        schedule.cursor = seq + 1;
        Some((seq, place))
    }

    pub fn edit(&self) -> Edit {
        Edit::of(self.seal)
    }

    pub fn refuse_after_failure(&self) -> Result<(), QueueError> {
        if self.failed {
            return Err(QueueError::Disk(std::io::Error::other(
                "an earlier write failed; the queue takes no more until it is opened again",
            )));
        }
        Ok(())
    }
}
