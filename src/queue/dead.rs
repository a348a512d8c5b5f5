//! The dead letters in the store: read one, queue it again, discard it.

use uuid::Uuid;

use super::{
    Incoming, QueueError, Work, codec, dead_letter::DeadLetter, state::StoreState, store::Store,
};
use crate::{
    model::{document_key::DocumentKey, namespace::Namespace, write_op::WriteOp},
    runtime::clock::now_ms,
};

/// How many dead letters were queued again, and how many cannot be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Retried {
    pub queued: u64,
    /// Changes of schemas; see [`QueueError::NotRetried`].
    pub not_retried: u64,
    /// Of collections that are not replicated any more; see [`QueueError::LeftOut`].
    pub left_out: u64,
}

/// Which collections.
pub type Choice<'a> = &'a dyn Fn(&Namespace) -> bool;

/// The first from `seq` on. Whoever asks holds the state, as for the others: see [`Store::letter`].
pub fn from(store: &Store, _: &StoreState, seq: u64) -> Result<Option<DeadLetter>, QueueError> {
    let Some(seq) = store.next_letter(seq)? else { return Ok(None) };
    let value = store.letter(seq)?.unwrap_or_default();
    Ok(Some(codec::decode_dead_letter(seq, &value)?))
}

/// Everything, one after the other: each may hold a document of 16 MB.
pub fn all(
    mut next: impl FnMut(u64) -> Result<Option<DeadLetter>, QueueError>,
) -> impl Iterator<Item = Result<DeadLetter, QueueError>> {
    let mut from = Some(0);
    std::iter::from_fn(move || {
        let letter = next(from?).transpose()?;
        // One that cannot be read is the last: it would be met again and again.
        from = letter.as_ref().ok().map(|letter| letter.entry.seq + 1);
        Some(letter)
    })
}

/// That of a document, if it has one.
pub fn of(
    store: &Store,
    state: &StoreState,
    ns: &Namespace,
    key: &DocumentKey,
) -> Result<Option<DeadLetter>, QueueError> {
    let Some(seq) = state.letters.get(&state.index.name_of(ns, key)) else { return Ok(None) };
    let value = store.letter(seq)?;
    Ok(value.map(|value| codec::decode_dead_letter(seq, &value)).transpose()?)
}

/// What is queued to try the letter `seq` again: the document as it is now, not as it was.
///
/// # Errors
/// [`QueueError::NotRetried`], [`QueueError::LeftOut`], [`QueueError::NotFound`].
pub fn again(
    store: &Store,
    _: &StoreState,
    (seq, id): (u64, Uuid),
    is_replicated: Choice<'_>,
) -> Result<Incoming, QueueError> {
    // Its collection may have been renamed, or dropped, since it was looked for.
    let value = store.letter(seq)?.ok_or(QueueError::NotFound(id))?;
    let entry = codec::decode_dead_letter(seq, &value)?.entry;
    // It is behind since now: what lay among the dead letters was no lag.
    let (cluster_time, wall_ms) = (entry.last_time, now_ms());
    let Work::Document { ns, key, collection, .. } = entry.work else {
        return Err(QueueError::NotRetried(id));
    };
    if !is_replicated(&ns) {
        return Err(QueueError::LeftOut { id, ns });
    }
    let work = Work::Document { ns, key, op: WriteOp::Refresh, collection };
    Ok(Incoming { work, cluster_time, wall_ms })
}

/// Removes a letter.
///
/// # Errors
/// [`QueueError::NotFound`]: another request, or a success of the document, was faster.
pub fn discard(
    store: &Store,
    state: &mut StoreState,
    (seq, id): (u64, Uuid),
) -> Result<(), QueueError> {
    state.refuse_after_failure()?;
    let value = store.letter(seq)?.ok_or(QueueError::NotFound(id))?;
    let work = codec::decode_dead_letter(seq, &value)?.entry.work;
    let mut edit = state.edit();
    edit.remove_letter(seq, &value);
    store.write(state, edit)?;
    if let Some(name) = state.name_of(&work) {
        state.letters.remove(work.ns(), &name, seq);
    }
    state.ledger().dead_len -= 1;
    Ok(())
}
