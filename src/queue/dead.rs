//! The dead letters: list, show, retry, discard.

use uuid::Uuid;

use super::{
    Incoming, Queue, QueueError, Work, codec,
    store::{DEAD, dead_key, seq_of},
};
use crate::{dead_letter::DeadLetter, write_op::WriteOp};

impl Queue {
    /// The first `limit` dead letters, the oldest first.
    pub fn dead_letters(&self, limit: usize) -> Result<Vec<DeadLetter>, QueueError> {
        self.db
            .scan_prefix([DEAD])
            .take(limit)
            .map(|item| {
                let (key, value) = item?;
                Ok(codec::decode_dead_letter(seq_of(&key), &value)?)
            })
            .collect()
    }

    /// The dead letter with this id.
    ///
    /// # Errors
    /// [`QueueError::NotFound`] when there is none; a later success may have cleared it.
    pub fn dead_letter(&self, id: Uuid) -> Result<DeadLetter, QueueError> {
        self.dead_letters(usize::MAX)?
            .into_iter()
            .find(|letter| letter.id() == id)
            .ok_or(QueueError::NotFound(id))
    }

    /// Queues a dead letter's document again, as a `Refresh`: what is tried is the document as it is
    /// now, not as it was. The letter stays until that succeeds.
    ///
    /// # Errors
    /// [`QueueError::NotRetried`] for a schema change: repeated after what has followed it, it would
    /// destroy newer data.
    pub fn retry_dead_letter(&self, id: Uuid) -> Result<(), QueueError> {
        let letter = self.dead_letter(id)?;
        let (cluster_time, wall_ms) = (letter.entry.last_time, letter.entry.last_ms);
        let Work::Document { ns, key, collection, .. } = letter.entry.work else {
            return Err(QueueError::NotRetried(id));
        };
        let work = Work::Document { ns, key, op: WriteOp::Refresh, collection };
        self.commit(vec![Incoming { work, cluster_time, wall_ms }], None)?;
        Ok(())
    }

    /// Removes a dead letter for good. Atlas and the local database then differ in that document
    /// until it changes again or a full sync repairs it.
    pub fn discard_dead_letter(&self, id: Uuid) -> Result<(), QueueError> {
        let letter = self.dead_letter(id)?;
        let seq = letter.entry.seq;
        let mut state = self.lock();
        state.refuse_after_failure()?;
        // Another request, or a success of the document, may have been faster.
        let value = self.db.get(dead_key(seq))?.ok_or(QueueError::NotFound(id))?;
        let mut edit = state.edit();
        edit.remove(&dead_key(seq), Some(&value));
        self.write(&mut state, edit)?;
        if let Some(name) = state.name_of(&letter.entry.work)
            && state.dead.get(&name) == Some(&seq)
        {
            state.dead.remove(&name);
        }
        state.dead_len -= 1;
        Ok(())
    }
}
