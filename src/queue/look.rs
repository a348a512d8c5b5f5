//! Looking at what waits, without taking it: nothing is changed.

use std::collections::VecDeque;

use super::{Entry, QueueError, state::StoreState, store::Store};
use crate::model::{document_key::DocumentKey, namespace::Namespace};

/// Most entries that are read to find one that Atlas has not rejected.
const RETRIES_MAX: usize = 20;

/// Of all that is queued, milliseconds since 1970.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Oldest {
    /// When the oldest change was made.
    pub ms: Option<u64>,
    /// The same without a few changes that Atlas has rejected and that are tried again. Where it has rejected the first
    /// twenty, so many are no single ones any more, and the oldest counts as any other.
    pub but_for_retries_ms: Option<u64>,
}

/// The oldest entry.
pub fn first(store: &Store, state: &StoreState) -> Result<Option<Entry>, QueueError> {
    let Some(first) = state.blocks.next_from(0) else { return Ok(None) };
    Ok(Some(store.reader().entry(&state.blocks, first)?.0))
}

/// When the oldest change was made, and the oldest that Atlas has not rejected yet.
pub fn oldest(store: &Store, state: &StoreState) -> Result<Oldest, QueueError> {
    let mut reader = store.reader();
    let mut oldest = Oldest::default();
    let mut next = state.blocks.next_from(0);
    for _ in 0..RETRIES_MAX {
        let Some((seq, place)) = next else { return Ok(oldest) };
        let entry = reader.entry(&state.blocks, (seq, place))?.0;
        oldest.ms = oldest.ms.or(Some(entry.first_ms));
        if entry.attempts == 0 {
            return Ok(Oldest { but_for_retries_ms: Some(entry.first_ms), ..oldest });
        }
        next = state.blocks.next_from(seq + 1);
    }
    Ok(Oldest { but_for_retries_ms: next.and(oldest.ms), ..oldest })
}

/// The newest entry of a document, pending or leased.
pub fn newest_of(
    store: &Store,
    state: &StoreState,
    ns: &Namespace,
    key: &DocumentKey,
) -> Result<Option<Entry>, QueueError> {
    let name = state.index.name_of(ns, key);
    Ok(state.newest(&mut store.reader(), &name)?.map(|(entry, _)| entry))
}

/// The next entries from `seq` on: those of one block.
pub fn page(store: &Store, state: &StoreState, seq: u64) -> Result<VecDeque<Entry>, QueueError> {
    let mut reader = store.reader();
    let mut page = VecDeque::new();
    let mut next = state.blocks.next_from(seq);
    let first = next.map(|(_, place)| place.block);
    while let Some((seq, place)) = next.filter(|(_, place)| Some(place.block) == first) {
        page.push_back(reader.entry(&state.blocks, (seq, place))?.0);
        next = state.blocks.next_from(seq + 1);
    }
    Ok(page)
}

/// Everything, page by page. What cannot be read is the last: it would be met again and again.
pub fn all(
    mut page: impl FnMut(u64) -> Result<VecDeque<Entry>, QueueError>,
) -> impl Iterator<Item = Result<Entry, QueueError>> {
    let mut from = Some(0);
    let mut read = VecDeque::new();
    std::iter::from_fn(move || {
        if read.is_empty() {
            match page(from?) {
                Ok(entries) => read = entries,
                Err(error) => {
                    from = None;
                    return Some(Err(error));
                }
            }
            from = read.back().map(|last: &Entry| last.seq + 1).or(from);
        }
        read.pop_front().map(Ok)
    })
}
