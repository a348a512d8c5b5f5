//! Acks and nacks: each leased entry ends as applied, as a dead letter, or pending again.

use std::slice;

use super::{
    Ack, Entry, Outcome, QueueError, Work, codec,
    edit::Edit,
    index::DocumentName,
    ledger::Ledger,
    metas,
    reader::Reader,
    rename::{Cleared, clear_letter},
    schedule::Leased,
    state::StoreState,
    store::Store,
};
use crate::{
    model::{namespace::Namespace, write_op::WriteOp},
    queue::dead_letter::DeadLetter,
    runtime::crash::{self, CrashPoint},
};

/// The first of the acks, as many as are one step.
///
/// # Errors
/// Nothing is acked then.
pub fn ack_part(
    store: &Store,
    state: &mut StoreState,
    acks: &mut slice::Iter<'_, Ack>,
) -> Result<(), QueueError> {
    state.refuse_after_failure()?;
    let mut edit = state.edit();
    let mut reader = store.reader();
    let mut steps = Vec::with_capacity(acks.len());
    for ack in acks {
        let lease = state.ledger().schedule.leased(ack.seq).cloned();
        let Some(lease) = lease.filter(|lease| lease.version == ack.version) else {
            continue;
        };
        let effect = effect(store, state, ack, &lease, &mut reader, &mut edit)?;
        steps.push(Acked { seq: ack.seq, lease, effect });
        if edit.weight() >= store.part_bytes {
            break;
        }
    }
    metas::carry(store, state, &mut edit)?;
    crash::point(CrashPoint::AckBegins);
    store.write(state, edit)?;
    crash::point(CrashPoint::AckDone);
    if steps.iter().any(|step| matches!(step.effect, Effect::Died { letter: Some(_), .. })) {
        crash::point(CrashPoint::DeadLetterDone);
    }
    if steps.iter().any(|step| step.lease.is_barrier()) {
        // A schema change must not be repeated once what stands behind it has been applied, so
        // its end is on the disk before anything behind it can be leased.
        if let Err(error) = store.flush() {
            // What is written does not fit what is leased any more.
            state.failed = true;
            return Err(error);
        }
    }
    let front = state.front().clone();
    let mut ledger = front.ledger();
    for step in steps {
        step.take(state, &mut ledger);
    }
    Ok(())
}

fn effect(
    store: &Store,
    state: &StoreState,
    Ack { seq, outcome, .. }: &Ack,
    lease: &Leased,
    reader: &mut Reader<'_>,
    edit: &mut Edit,
) -> Result<Effect, QueueError> {
    // All that an ordinary end needs is known; the entry itself need not be read for it.
    if *outcome == Outcome::Applied && state.letters.is_empty() && !lease.is_barrier() {
        edit.remove_entry(*seq, lease.bytes);
        return Ok(Effect::Applied { revived: None });
    }
    let (mut entry, _) = state.entry(reader, *seq)?.expect("a leased entry is in the store (I4)");
    let was_insert = entry.work.is_insert();
    let is_capped = |ns: &Namespace| state.ledger().schedule.is_capped(ns);
    let due_ms = match outcome {
        Outcome::Applied | Outcome::PassedOver => {
            edit.remove_entry(*seq, lease.bytes);
            if let Work::Schema(change) = &entry.work {
                return Ok(Effect::Passed { namespaces: change.namespaces(), is_dead: false });
            }
            if *outcome == Outcome::PassedOver {
                return Ok(Effect::Applied { revived: None });
            }
            return Ok(Effect::Applied { revived: clear_letter(store, state, &entry, edit)? });
        }
        Outcome::Rejected { reason, now_ms, refusal: _ } => {
            edit.remove_entry(*seq, lease.bytes);
            return bury(store, state, entry, (reason, *now_ms), reader, edit);
        }
        Outcome::Unavailable { due_ms } => (*due_ms > 0).then_some(*due_ms),
        Outcome::Retry { due_ms, error } => {
            entry.attempts += 1;
            entry.error = Some(error.clone());
            Some(*due_ms)
        }
        Outcome::Refresh { due_ms, keep_collection } => {
            if let Work::Document { op, collection, .. } = &mut entry.work {
                *op = WriteOp::Refresh;
                *collection = collection.filter(|_| *keep_collection);
            }
            Some(*due_ms)
        }
    };
    // Pending again, merged with what has arrived for it meanwhile (I2).
    entry.due_ms = due_ms.unwrap_or(0);
    let mut absorbed = None;
    if let Some((newer, bytes)) = successor(state, reader, *seq)? {
        if newer.is_born() && is_capped(&lease.ns) {
            edit.remove_entry(*seq, lease.bytes);
            entry.begin_anew(newer.seq, newer.into_later());
            let more = edit.change_entry(&entry, bytes) as i64 - bytes as i64;
            return Ok(Effect::Overtaken { more });
        }
        edit.remove_entry(newer.seq, bytes);
        absorbed = Some((newer.seq, bytes));
        entry.absorb(newer.into_later());
    }
    entry.keep_place(was_insert, is_capped);
    entry.version += 1;
    let bytes = edit.change_entry(&entry, lease.bytes);
    Ok(Effect::Back { bytes, due_ms, absorbed })
}

/// Makes a dead letter of an entry that is taken out.
fn bury(
    store: &Store,
    state: &StoreState,
    mut entry: Entry,
    (reason, died_ms): (&str, u64),
    reader: &mut Reader<'_>,
    edit: &mut Edit,
) -> Result<Effect, QueueError> {
    let seq = entry.seq;
    // What arrived meanwhile was made on top of an op that never got through.
    let widened = match successor(state, reader, seq)? {
        Some(newer) => widen(newer, edit),
        None => 0,
    };
    entry.attempts += 1;
    let effect = if let Work::Schema(change) = &entry.work {
        Effect::Passed { namespaces: change.namespaces(), is_dead: true }
    } else {
        let ns = state.ledger().schedule.lines.called_now(entry.work.ns(), seq);
        // What is dropped behind it cannot be missing.
        let Some(ns) = ns else { return Ok(Effect::Died { letter: None, widened }) };
        entry.work = entry.work.renamed(&ns);
        let name = state.name_of(&entry.work).expect("it is no barrier");
        if let Some(older) = state.letters.get(&name) {
            let value = store.letter(older)?.unwrap_or_default();
            edit.remove_letter(older, &value);
        }
        Effect::Died { letter: Some((ns, name)), widened }
    };
    let letter = DeadLetter { reason: reason.to_owned(), died_ms, entry };
    edit.put_letter(seq, codec::encode_dead_letter(&letter), None);
    Ok(effect)
}

/// The pending entry that arrived for the document while this one was leased, if no barrier is
/// between the two, and its encoded size.
fn successor(
    state: &StoreState,
    reader: &mut Reader<'_>,
    seq: u64,
) -> Result<Option<(Entry, usize)>, QueueError> {
    let successor = state.ledger().schedule.leased(seq).and_then(|lease| lease.successor);
    let Some(successor) = successor else { return Ok(None) };
    let found = state.entry(reader, successor)?;
    Ok(Some(found.expect("a successor waits for its lease to end")))
}

/// Turns a delta into a `Refresh`: the state that it was made from is not in Atlas. Returns by how much it is larger.
fn widen((mut newer, before): (Entry, usize), edit: &mut Edit) -> i64 {
    let Work::Document { op: op @ (WriteOp::Update(_) | WriteOp::Merge(_)), .. } = &mut newer.work
    else {
        return 0;
    };
    *op = WriteOp::Refresh;
    newer.version += 1;
    edit.change_entry(&newer, before) as i64 - before as i64
}

/// What an ack changes in memory, once it is in the store.
struct Acked {
    seq: u64,
    lease: Leased,
    effect: Effect,
}

enum Effect {
    /// Atlas holds it. With it goes the letter of its document, if it had one.
    Applied { revived: Option<Cleared> },
    /// A barrier is applied or given up, and what stands behind it may go.
    Passed { namespaces: Vec<Namespace>, is_dead: bool },
    /// It is the letter of this document, or of none, where its collection is gone by then. What has arrived for it
    /// meanwhile has so many bytes more.
    Died { letter: Option<(Namespace, DocumentName)>, widened: i64 },
    /// Its document has begun anew meanwhile, in the entry that arrived for it, which has so many bytes more.
    Overtaken { more: i64 },
    /// It is pending again, with so many bytes, at once or at a time; what has arrived for it meanwhile is part of it.
    Back { bytes: usize, due_ms: Option<u64>, absorbed: Option<(u64, usize)> },
}

impl Effect {
    /// Bytes that come for those that were leased.
    fn bytes(&self) -> i64 {
        match self {
            Effect::Applied { .. } | Effect::Passed { .. } => 0,
            Effect::Died { widened, .. } => *widened,
            Effect::Overtaken { more } => *more,
            Effect::Back { bytes, absorbed, .. } => {
                *bytes as i64 - absorbed.map_or(0, |(_, bytes)| bytes as i64)
            }
        }
    }
}

impl Acked {
    fn take(self, state: &mut StoreState, ledger: &mut Ledger) {
        let Acked { seq, lease, effect } = self;
        let bytes = effect.bytes() - lease.bytes as i64;
        ledger.pending_bytes = ledger.pending_bytes.saturating_add_signed(bytes);
        ledger.schedule.unlease(seq);
        match effect {
            Effect::Applied { revived } => {
                remove(seq, &lease, state, ledger);
                if let Some(Cleared { ns, name, letter }) = revived
                    && state.letters.remove(&ns, &name, letter)
                {
                    ledger.dead_len -= 1;
                }
            }
            Effect::Passed { namespaces, is_dead } => {
                ledger.pending -= 1;
                ledger.schedule.barrier_removed(&namespaces, seq);
                ledger.dead_len += u64::from(is_dead);
            }
            Effect::Died { letter, .. } => {
                remove(seq, &lease, state, ledger);
                if let Some((ns, name)) = letter {
                    ledger.dead_len += u64::from(state.letters.insert(&ns, name, seq));
                }
            }
            Effect::Overtaken { .. } => remove(seq, &lease, state, ledger),
            Effect::Back { due_ms, absorbed, .. } => {
                if let Some((newer, _)) = absorbed {
                    let document = lease.document.expect("only documents are merged");
                    state.index.replace(document, newer, seq);
                    ledger.schedule.forget(newer);
                    ledger.schedule.removed(&lease.ns, newer);
                    ledger.pending -= 1;
                }
                ledger.schedule.requeue(seq, due_ms);
            }
        }
    }
}

/// A document's entry is gone for good.
fn remove(seq: u64, lease: &Leased, state: &mut StoreState, ledger: &mut Ledger) {
    let document = lease.document.expect("a barrier is passed");
    ledger.pending -= 1;
    state.index.remove(document, seq);
    ledger.schedule.removed(&lease.ns, seq);
}
