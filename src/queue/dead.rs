//! The dead letters: list, show, retry, discard.

use std::collections::BTreeMap;

use uuid::Uuid;

use super::{
    Incoming, Queue, QueueError, Work, codec,
    layout::{DEAD, dead_key, number_of},
};
use crate::{
    model::{document_key::DocumentKey, namespace::Namespace, write_op::WriteOp},
    queue::dead_letter::{DeadLetter, DeadLetterSummary},
    runtime::clock::now_ms,
};

/// How many dead letters were queued again, and how many cannot be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Retried {
    pub queued: u64,
    /// Changes of schemas; see [`QueueError::NotRetried`].
    pub not_retried: u64,
}

impl Queue {
    /// Every dead letter, the oldest first, one after the other: each may hold a document of 16 MB.
    pub fn letters(&self) -> impl Iterator<Item = Result<DeadLetter, QueueError>> + '_ {
        let mut from = Some(0);
        std::iter::from_fn(move || {
            let letter = self.letter_from(from?).transpose()?;
            // One that cannot be read is the last: it would be met again and again.
            from = letter.as_ref().ok().map(|letter| letter.entry.seq + 1);
            Some(letter)
        })
    }

    fn letter_from(&self, seq: u64) -> Result<Option<DeadLetter>, QueueError> {
        let _state = self.lock();
        let Some(next) = self.db.range(dead_key(seq)..).next() else { return Ok(None) };
        let (key, _) = next?;
        if !key.starts_with(&[DEAD]) {
            return Ok(None);
        }
        let seq = number_of(&key);
        let value = self.letter_bytes(seq)?.unwrap_or_default();
        Ok(Some(codec::decode_dead_letter(seq, &value)?))
    }

    /// The first `limit` dead letters, the oldest first, without their documents.
    ///
    /// # Errors
    /// When the queue cannot be read.
    pub fn dead_letters(&self, limit: usize) -> Result<Vec<DeadLetterSummary>, QueueError> {
        self.letters().take(limit).map(|letter| Ok(DeadLetterSummary::from(&letter?))).collect()
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

    /// The dead letter with this id.
    ///
    /// # Errors
    /// [`QueueError::NotFound`] when there is none; a later success may have cleared it.
    pub fn dead_letter(&self, id: Uuid) -> Result<DeadLetter, QueueError> {
        self.letters()
            .find(|letter| letter.as_ref().is_ok_and(|letter| letter.id() == id))
            .unwrap_or(Err(QueueError::NotFound(id)))
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
        let value = self.letter_bytes(seq)?;
        Ok(value.map(|value| codec::decode_dead_letter(seq, &value)).transpose()?)
    }

    /// Queues a dead letter's document again, as a `Refresh`: what is tried is the document as it is
    /// now, not as it was. The letter stays until that succeeds.
    ///
    /// # Errors
    /// [`QueueError::NotRetried`] for a schema change: repeated after what has followed it, it would
    /// destroy newer data.
    pub fn retry_dead_letter(&self, id: Uuid) -> Result<(), QueueError> {
        self.retry_letter(self.dead_letter(id)?.entry.seq, id)
    }

    /// As [`retry_dead_letter`](Self::retry_dead_letter), for every one in the `chosen` collections.
    ///
    /// # Errors
    /// When the queue fails; what was queued until then stays.
    pub fn retry_dead_letters(
        &self,
        chosen: impl Fn(&Namespace) -> bool,
    ) -> Result<Retried, QueueError> {
        let (mut found, mut retried) = (Vec::new(), Retried::default());
        for letter in self.letters() {
            let entry = letter?.entry;
            match entry.work {
                Work::Document { ref ns, .. } if chosen(ns) => found.push((entry.seq, entry.id)),
                ref other if chosen(other.ns()) => retried.not_retried += 1,
                _ => {}
            }
        }
        for (seq, id) in found {
            match self.retry_letter(seq, id) {
                Ok(()) => retried.queued += 1,
                // A success of the document was faster.
                Err(QueueError::NotFound(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(retried)
    }

    fn retry_letter(&self, seq: u64, id: Uuid) -> Result<(), QueueError> {
        // Its collection may have been renamed, or dropped, since it was looked for.
        let state = self.lock();
        let value = self.letter_bytes(seq)?.ok_or(QueueError::NotFound(id))?;
        let entry = codec::decode_dead_letter(seq, &value)?.entry;
        // It is behind since now: what lay among the dead letters was no lag.
        let (cluster_time, wall_ms) = (entry.last_time, now_ms());
        let Work::Document { ns, key, collection, .. } = entry.work else {
            return Err(QueueError::NotRetried(id));
        };
        let work = Work::Document { ns, key, op: WriteOp::Refresh, collection };
        let mut incoming = vec![Incoming { work, cluster_time, wall_ms }].into_iter();
        self.commit_part(state, &mut incoming, None)?;
        Ok(())
    }

    /// Removes a dead letter for good. Atlas and the local database then differ in that document
    /// until it changes again or a full sync repairs it.
    pub fn discard_dead_letter(&self, id: Uuid) -> Result<(), QueueError> {
        let seq = self.dead_letter(id)?.entry.seq;
        let mut state = self.lock();
        state.refuse_after_failure()?;
        // Another request, or a success of the document, may have been faster.
        let value = self.letter_bytes(seq)?.ok_or(QueueError::NotFound(id))?;
        let work = codec::decode_dead_letter(seq, &value)?.entry.work;
        let mut edit = state.edit();
        edit.remove_letter(seq, &value);
        self.write(&mut state, edit)?;
        if let Some(name) = state.name_of(&work) {
            state.letters.remove(work.ns(), &name, seq);
        }
        self.ledger().dead_len -= 1;
        Ok(())
    }
}
