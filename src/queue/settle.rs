//! Settling: each leased entry ends as applied, as a dead letter, or pending again.

use sled::IVec;

use super::{
    Entry, Outcome, Queue, QueueError, Settlement, Work, codec,
    edit::Edit,
    index::DocumentName,
    store::{State, dead_key, entry_key},
};
use crate::{
    crash::{self, Step as Crash},
    dead_letter::DeadLetter,
    write_op::WriteOp,
};

impl Queue {
    /// Says how leased entries ended, in one atomic step. A settlement of what is not leased, or of
    /// another version than the leased one, changes nothing (I3).
    ///
    /// # Errors
    /// After an error the entries are leased still.
    pub fn settle(&self, settlements: &[Settlement]) -> Result<(), QueueError> {
        let mut state = self.lock();
        state.refuse_after_failure()?;
        let mut edit = state.edit();
        let mut steps = Vec::with_capacity(settlements.len());
        for settlement in settlements {
            if state.schedule.leased(settlement.seq).map(|lease| lease.version)
                != Some(settlement.version)
            {
                continue;
            }
            steps.push(self.settle_one(&state, settlement, &mut edit)?);
        }
        crash::point(Crash::SettleBegins);
        self.write(&mut state, edit)?;
        crash::point(Crash::SettleDone);
        if steps.iter().any(|step| step.died.is_some()) {
            crash::point(Crash::DeadLetterDone);
        }
        if steps.iter().any(|step| step.name.is_none()) {
            // A schema change must not be repeated once what stands behind it has been applied, so
            // its end is on the disk before anything behind it can be leased.
            self.db.flush()?;
        }
        for step in steps {
            step.take(&mut state);
        }
        drop(state);
        self.changed.notify_waiters();
        Ok(())
    }

    fn settle_one(
        &self,
        state: &State,
        settlement: &Settlement,
        edit: &mut Edit,
    ) -> Result<Step, QueueError> {
        let seq = settlement.seq;
        let value = self.entry_bytes(seq)?.expect("a leased entry is in the store (I4)");
        let entry = codec::decode_entry(seq, &value)?;
        let name = state.name_of(&entry.work);
        let mut step = Step::new(seq, name.clone(), entry.work.clone(), value.len());
        match &settlement.outcome {
            Outcome::Applied => {
                edit.remove(&entry_key(seq), Some(&value));
                step.gone = true;
                if let Some(dead) = name.as_ref().and_then(|name| state.dead.get(name)) {
                    self.remove_dead(*dead, edit)?;
                    step.revived = name;
                }
            }
            Outcome::Rejected { reason, now_ms, refusal: _ } => {
                edit.remove(&entry_key(seq), Some(&value));
                step.gone = true;
                // What arrived meanwhile was made on top of an op that never got through.
                if let Some((newer, newer_value)) = self.successor(state, seq)? {
                    Self::widen(newer, &newer_value, &mut step, edit);
                }
                if let Some(name) = name {
                    if let Some(older) = state.dead.get(&name) {
                        self.remove_dead(*older, edit)?;
                    }
                    step.died = Some(name);
                } else {
                    step.barrier_died = true;
                }
                let entry = Entry { attempts: entry.attempts + 1, ..entry };
                let letter = DeadLetter { reason: reason.clone(), died_ms: *now_ms, entry };
                edit.put(&dead_key(seq), codec::encode_dead_letter(&letter), None);
            }
            Outcome::Unavailable { due_ms } => {
                let due_ms = (*due_ms > 0).then_some(*due_ms);
                self.give_back(state, (entry, &value), due_ms, &mut step, edit)?;
            }
            Outcome::Retry { due_ms, error } => {
                let mut entry = entry;
                entry.attempts += 1;
                entry.error = Some(error.clone());
                self.give_back(state, (entry, &value), Some(*due_ms), &mut step, edit)?;
            }
            Outcome::Refresh { due_ms, keep_collection } => {
                let mut entry = entry;
                let is_closed = state.schedule.is_closed(entry.work.ns(), seq);
                match &mut entry.work {
                    // A rename that came meanwhile has not taken this document along, as it would a
                    // `Refresh`: it is held here and nowhere else.
                    Work::Document { op: WriteOp::Insert(_) | WriteOp::Replace(_), .. }
                        if is_closed => {}
                    Work::Document { op, collection, .. } => {
                        *op = WriteOp::Refresh;
                        *collection = collection.filter(|_| *keep_collection);
                    }
                    Work::Schema(_) => {}
                }
                self.give_back(state, (entry, &value), Some(*due_ms), &mut step, edit)?;
            }
        }
        Ok(step)
    }

    /// Makes a leased entry pending again, merged with what has arrived for it meanwhile (I2).
    fn give_back(
        &self,
        state: &State,
        (mut entry, value): (Entry, &[u8]),
        due_ms: Option<u64>,
        step: &mut Step,
        edit: &mut Edit,
    ) -> Result<(), QueueError> {
        step.due_ms = due_ms;
        entry.due_ms = due_ms.unwrap_or(0);
        if let Some((newer, newer_value)) = self.successor(state, entry.seq)? {
            edit.remove(&entry_key(newer.seq), Some(&newer_value));
            step.absorbed = Some((newer.seq, newer_value.len()));
            entry.absorb(newer.into_later());
        }
        entry.version += 1;
        let encoded = codec::encode_entry(&entry);
        step.bytes_after = encoded.len();
        edit.put(&entry_key(entry.seq), encoded, Some(value));
        Ok(())
    }

    /// The pending entry that arrived for the document while this one was leased, if no barrier is
    /// between the two.
    fn successor(&self, state: &State, seq: u64) -> Result<Option<(Entry, IVec)>, QueueError> {
        let Some(successor) = state.schedule.leased(seq).and_then(|lease| lease.successor) else {
            return Ok(None);
        };
        let value = self.entry_bytes(successor)?.expect("a successor waits for its lease to end");
        Ok(Some((codec::decode_entry(successor, &value)?, value)))
    }

    pub(super) fn remove_dead(&self, seq: u64, edit: &mut Edit) -> Result<(), QueueError> {
        let value = self.db.get(dead_key(seq))?;
        edit.remove(&dead_key(seq), value.as_deref());
        Ok(())
    }

    /// Turns a delta into a `Refresh`: the state that it was made from is not in Atlas.
    fn widen(mut newer: Entry, before: &[u8], step: &mut Step, edit: &mut Edit) {
        if let Work::Document { op: op @ WriteOp::Update(_), .. } = &mut newer.work {
            *op = WriteOp::Refresh;
            newer.version += 1;
            let value = codec::encode_entry(&newer);
            step.extra_bytes = value.len() as i64 - before.len() as i64;
            edit.put(&entry_key(newer.seq), value, Some(before));
        }
    }
}

/// What a settlement changes in memory, once it is in the store.
struct Step {
    seq: u64,
    name: Option<DocumentName>,
    work: Work,
    bytes_before: usize,
    bytes_after: usize,
    extra_bytes: i64,
    gone: bool,
    due_ms: Option<u64>,
    absorbed: Option<(u64, usize)>,
    revived: Option<DocumentName>,
    died: Option<DocumentName>,
    barrier_died: bool,
}

impl Step {
    fn new(seq: u64, name: Option<DocumentName>, work: Work, bytes_before: usize) -> Self {
        Self {
            seq,
            name,
            work,
            bytes_before,
            bytes_after: 0,
            extra_bytes: 0,
            gone: false,
            due_ms: None,
            absorbed: None,
            revived: None,
            died: None,
            barrier_died: false,
        }
    }

    fn take(self, state: &mut State) {
        let delta = self.bytes_after as i64 + self.extra_bytes
            - self.bytes_before as i64
            - self.absorbed.map_or(0, |(_, bytes)| bytes as i64);
        state.pending_bytes = state.pending_bytes.saturating_add_signed(delta);
        state.schedule.unlease(self.seq, self.work.ns());
        if let Some((newer, _)) = self.absorbed {
            let name = self.name.as_ref().expect("only documents are merged");
            state.index.replace(name, newer, self.seq);
            state.schedule.forget(newer);
            state.schedule.removed(self.work.ns(), newer);
            state.pending -= 1;
        }
        if self.gone {
            state.pending -= 1;
            match (&self.name, &self.work) {
                (Some(name), work) => {
                    state.index.remove(name, self.seq);
                    state.schedule.removed(work.ns(), self.seq);
                }
                (None, Work::Schema(change)) => {
                    state.schedule.barrier_removed(&change.namespaces(), self.seq);
                }
                (None, Work::Document { .. }) => unreachable!("every document has a name"),
            }
        } else {
            state.schedule.requeue(self.seq, self.due_ms);
        }
        if let Some(name) = self.revived
            && state.dead.remove(&name).is_some()
        {
            state.dead_len -= 1;
        }
        if let Some(name) = self.died {
            state.dead_len += u64::from(state.dead.insert(name, self.seq).is_none());
        }
        state.dead_len += u64::from(self.barrier_died);
    }
}
