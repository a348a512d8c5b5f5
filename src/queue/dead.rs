//! The dead letters: list, show, retry, discard.

use uuid::Uuid;

use super::{
    Incoming, Queue, QueueError, Work, codec,
    store::{DEAD, seq_of},
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
    pub fn retry_dead_letter(&self, id: Uuid) -> Result<(), QueueError> {
        let letter = self.dead_letter(id)?;
        let (cluster_time, wall_ms) = (letter.entry.last_time, letter.entry.last_ms);
        let work = match letter.entry.work {
            Work::Document { ns, key, .. } => {
                Work::Document { ns, key, op: WriteOp::Refresh, collection: None }
            }
            schema @ Work::Schema(_) => {
                self.discard_dead_letter(id)?;
                schema
            }
        };
        self.commit(vec![Incoming { work, cluster_time, wall_ms }], None)?;
        Ok(())
    }

    /// Removes a dead letter for good. Atlas and the local database then differ in that document
    /// until it changes again or a full sync repairs it.
    pub fn discard_dead_letter(&self, id: Uuid) -> Result<(), QueueError> {
        let letter = self.dead_letter(id)?;
        let mut state = self.lock();
        let mut edit = state.edit();
        self.remove_dead(letter.entry.seq, &mut edit)?;
        self.write(&mut state, edit)?;
        if let Some(name) = state.name_of(&letter.entry.work) {
            state.dead.remove(&name);
        }
        state.dead_len -= 1;
        Ok(())
    }
}
