//! Settling: each leased entry ends as applied, as a dead letter, or pending again.

use std::slice;

use super::{
    Entry, Outcome, Queue, QueueError, Settlement, Work, codec, edit::Edit, index::DocumentName,
    layout::dead_key, ledger::Ledger, reader::Reader, schedule::Lease, store::State,
};
use crate::{
    model::{namespace::Namespace, write_op::WriteOp},
    queue::dead_letter::DeadLetter,
    runtime::crash::{self, Step as Crash},
};

impl Queue {
    /// Says how leased entries ended, in atomic steps: as one, as a rule, but what is given back may be merged with a
    /// large document each. A settlement of what is not leased, or of another version than the leased one,
    /// changes nothing (I3).
    ///
    /// # Errors
    /// After an error those that are not settled are leased still.
    pub fn settle(&self, settlements: &[Settlement]) -> Result<(), QueueError> {
        let mut rest = settlements.iter();
        self.settle_part(&mut rest)?;
        while !rest.as_slice().is_empty() {
            self.settle_part(&mut rest)?;
        }
        Ok(())
    }

    pub(super) fn settle_part(
        &self,
        settlements: &mut slice::Iter<'_, Settlement>,
    ) -> Result<(), QueueError> {
        let mut state = self.lock();
        state.refuse_after_failure()?;
        let mut edit = state.edit();
        let mut reader = self.reader();
        let mut steps = Vec::with_capacity(settlements.len());
        for settlement in settlements {
            let lease = self.ledger().schedule.leased(settlement.seq).cloned();
            let Some(lease) = lease.filter(|lease| lease.version == settlement.version) else {
                continue;
            };
            steps.push(self.settle_one(&state, settlement, &lease, &mut reader, &mut edit)?);
            if edit.weight() >= self.part_bytes {
                break;
            }
        }
        crash::point(Crash::SettleBegins);
        self.write(&mut state, edit)?;
        crash::point(Crash::SettleDone);
        if steps.iter().any(|step| step.died.is_some()) {
            crash::point(Crash::DeadLetterDone);
        }
        if steps.iter().any(Step::is_barrier) {
            // A schema change must not be repeated once what stands behind it has been applied, so
            // its end is on the disk before anything behind it can be leased.
            if let Err(error) = self.db.flush() {
                // What is written does not fit what is leased any more.
                state.failed = true;
                return Err(error.into());
            }
        }
        let mut ledger = self.ledger();
        for step in steps {
            step.take(&mut state, &mut ledger);
        }
        drop(ledger);
        drop(state);
        self.changed.notify_waiters();
        Ok(())
    }

    fn settle_one(
        &self,
        state: &State,
        settlement: &Settlement,
        lease: &Lease,
        reader: &mut Reader<'_>,
        edit: &mut Edit,
    ) -> Result<Step, QueueError> {
        let seq = settlement.seq;
        let mut step = Step::new(seq, lease);
        // All that an ordinary end needs is known; the entry itself need not be read for it.
        if settlement.outcome == Outcome::Applied && state.letters.is_empty() && !step.is_barrier()
        {
            edit.remove_entry(seq, lease.bytes);
            step.gone = true;
            return Ok(step);
        }
        let (mut entry, _) =
            state.entry(reader, seq)?.expect("a leased entry is in the store (I4)");
        if let Work::Schema(change) = &entry.work {
            step.barrier = Some(change.namespaces());
        }
        match &settlement.outcome {
            Outcome::Applied => {
                edit.remove_entry(seq, lease.bytes);
                step.gone = true;
                step.revived = self.clear_letter(state, &entry, edit)?;
            }
            Outcome::Rejected { reason, now_ms, refusal: _ } => {
                edit.remove_entry(seq, lease.bytes);
                step.gone = true;
                // What arrived meanwhile was made on top of an op that never got through.
                if let Some(newer) = successor(state, reader, seq)? {
                    widen(newer, &mut step, edit);
                }
                let mut entry = Entry { attempts: entry.attempts + 1, ..entry };
                if step.is_barrier() {
                    step.barrier_died = true;
                } else {
                    // What is dropped behind it cannot be missing.
                    let ns = self.ledger().schedule.lines.called_now(entry.work.ns(), seq);
                    let Some(ns) = ns else {
                        return Ok(step);
                    };
                    entry.work = entry.work.renamed(&ns);
                    let name = state.name_of(&entry.work).expect("it is no barrier");
                    if let Some(older) = state.letters.get(&name) {
                        self.remove_dead(older, edit)?;
                    }
                    step.died = Some((ns, name));
                }
                let letter = DeadLetter { reason: reason.clone(), died_ms: *now_ms, entry };
                edit.put(&dead_key(seq), codec::encode_dead_letter(&letter), None);
            }
            Outcome::Unavailable { due_ms } => {
                let due_ms = (*due_ms > 0).then_some(*due_ms);
                give_back((state, reader), entry, due_ms, &mut step, edit)?;
            }
            Outcome::Retry { due_ms, error } => {
                entry.attempts += 1;
                entry.error = Some(error.clone());
                give_back((state, reader), entry, Some(*due_ms), &mut step, edit)?;
            }
            Outcome::Refresh { due_ms, keep_collection } => {
                if let Work::Document { op, collection, .. } = &mut entry.work {
                    *op = WriteOp::Refresh;
                    *collection = collection.filter(|_| *keep_collection);
                }
                give_back((state, reader), entry, Some(*due_ms), &mut step, edit)?;
            }
        }
        Ok(step)
    }

    /// Removes the letter of the document that an entry has written, if it has one: it may have another name by now,
    /// and another collection's letter may have the name that it was written under.
    fn clear_letter(
        &self,
        state: &State,
        entry: &Entry,
        edit: &mut Edit,
    ) -> Result<Option<(Namespace, DocumentName, u64)>, QueueError> {
        let Work::Document { ns, key, collection, .. } = &entry.work else { return Ok(None) };
        let ns = self.ledger().schedule.lines.called_now(ns, entry.seq);
        let Some(ns) = ns else { return Ok(None) };
        let name = state.index.name_of(&ns, key);
        let Some(seq) = state.letters.get(&name) else { return Ok(None) };
        let Some(value) = self.db.get(dead_key(seq))? else { return Ok(None) };
        let letter = codec::decode_dead_letter(seq, &value)?;
        if let Work::Document { collection: Some(of), .. } = letter.entry.work
            && collection.is_some_and(|written| written != of)
        {
            return Ok(None);
        }
        edit.remove(&dead_key(seq), Some(&value));
        Ok(Some((ns, name, seq)))
    }

    fn remove_dead(&self, seq: u64, edit: &mut Edit) -> Result<(), QueueError> {
        let value = self.db.get(dead_key(seq))?;
        edit.remove(&dead_key(seq), value.as_deref());
        Ok(())
    }
}

/// Makes a leased entry pending again, merged with what has arrived for it meanwhile (I2).
fn give_back(
    (state, reader): (&State, &mut Reader<'_>),
    mut entry: Entry,
    due_ms: Option<u64>,
    step: &mut Step,
    edit: &mut Edit,
) -> Result<(), QueueError> {
    step.due_ms = due_ms;
    entry.due_ms = due_ms.unwrap_or(0);
    if let Some((newer, bytes)) = successor(state, reader, entry.seq)? {
        edit.remove_entry(newer.seq, bytes);
        step.absorbed = Some((newer.seq, bytes));
        entry.absorb(newer.into_later());
    }
    entry.version += 1;
    step.bytes_after = edit.change_entry(&entry, step.bytes_before);
    Ok(())
}

/// The pending entry that arrived for the document while this one was leased, if no barrier is
/// between the two, and its encoded size.
fn successor(
    state: &State,
    reader: &mut Reader<'_>,
    seq: u64,
) -> Result<Option<(Entry, usize)>, QueueError> {
    let successor = state.ledger().schedule.leased(seq).and_then(|lease| lease.successor);
    let Some(successor) = successor else { return Ok(None) };
    let found = state.entry(reader, successor)?;
    Ok(Some(found.expect("a successor waits for its lease to end")))
}

/// Turns a delta into a `Refresh`: the state that it was made from is not in Atlas.
fn widen((mut newer, before): (Entry, usize), step: &mut Step, edit: &mut Edit) {
    if let Work::Document { op: op @ WriteOp::Update(_), .. } = &mut newer.work {
        *op = WriteOp::Refresh;
        newer.version += 1;
        step.extra_bytes = edit.change_entry(&newer, before) as i64 - before as i64;
    }
}

/// What a settlement changes in memory, once it is in the store.
struct Step {
    seq: u64,
    ns: Namespace,
    /// The document's hash; `None` for a barrier.
    document: Option<u64>,
    /// The namespaces of a barrier.
    barrier: Option<Vec<Namespace>>,
    bytes_before: usize,
    bytes_after: usize,
    extra_bytes: i64,
    gone: bool,
    due_ms: Option<u64>,
    absorbed: Option<(u64, usize)>,
    /// The letter that goes, and its document.
    revived: Option<(Namespace, DocumentName, u64)>,
    died: Option<(Namespace, DocumentName)>,
    barrier_died: bool,
}

impl Step {
    fn new(seq: u64, lease: &Lease) -> Self {
        Self {
            seq,
            ns: lease.ns.clone(),
            document: lease.document,
            barrier: None,
            bytes_before: lease.bytes,
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

    fn is_barrier(&self) -> bool {
        self.document.is_none()
    }

    fn take(self, state: &mut State, ledger: &mut Ledger) {
        let delta = self.bytes_after as i64 + self.extra_bytes
            - self.bytes_before as i64
            - self.absorbed.map_or(0, |(_, bytes)| bytes as i64);
        ledger.pending_bytes = ledger.pending_bytes.saturating_add_signed(delta);
        ledger.schedule.unlease(self.seq);
        if let Some((newer, _)) = self.absorbed {
            let document = self.document.expect("only documents are merged");
            state.index.replace(document, newer, self.seq);
            ledger.schedule.forget(newer);
            ledger.schedule.removed(&self.ns, newer);
            ledger.pending -= 1;
        }
        if self.gone {
            ledger.pending -= 1;
            if let Some(document) = self.document {
                state.index.remove(document, self.seq);
                ledger.schedule.removed(&self.ns, self.seq);
            } else {
                let namespaces = self.barrier.expect("a barrier's entry was read");
                ledger.schedule.barrier_removed(&namespaces, self.seq);
            }
        } else {
            ledger.schedule.requeue(self.seq, self.due_ms);
        }
        if let Some((ns, name, letter)) = self.revived
            && state.letters.remove(&ns, &name, letter)
        {
            ledger.dead_len -= 1;
        }
        if let Some((ns, name)) = self.died {
            ledger.dead_len += u64::from(state.letters.insert(&ns, name, self.seq));
        }
        ledger.dead_len += u64::from(self.barrier_died);
    }
}
