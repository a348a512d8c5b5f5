//! Collections that are owed a comparison when a change that is queued for them is made: a run could not wait for it.

use std::collections::BTreeSet;

use super::{Reason, SyncState, damaged};
use crate::{
    model::{checkpoint::ClusterTime, namespace::Namespace},
    queue::{Queue, QueueError, note},
};

/// Those that are noted.
///
/// # Errors
/// When the queue cannot be read.
pub fn noted(queue: &Queue) -> Result<BTreeSet<Namespace>, QueueError> {
    decode(queue.meta(note::BEHIND)?.as_deref())
}

/// Notes these as well.
///
/// # Errors
/// When the queue cannot be read or written.
pub fn note(queue: &Queue, namespaces: &BTreeSet<Namespace>) -> Result<(), QueueError> {
    if namespaces.is_empty() {
        return Ok(());
    }
    change(queue, |noted| noted.extend(namespaces.iter().cloned()))
}

/// Names have changed hands: where one of them is noted, all are.
///
/// # Errors
/// When the queue cannot be read or written.
pub(super) fn renamed(queue: &Queue, namespaces: &[Namespace]) -> Result<(), QueueError> {
    let noted = noted(queue)?;
    if !namespaces.iter().any(|ns| noted.contains(ns)) {
        return Ok(());
    }
    change(queue, |noted| noted.extend(namespaces.iter().cloned()))
}

/// Requires these, and notes them no longer.
///
/// # Errors
/// When the queue cannot be read or written.
pub fn require(
    queue: &Queue,
    position: ClusterTime,
    namespaces: &BTreeSet<Namespace>,
    reason: Reason,
) -> Result<(), QueueError> {
    if namespaces.is_empty() {
        return Ok(());
    }
    // First the note that a sync is mandatory: a crash between the two repeats it.
    SyncState::require_of(queue, position, namespaces, reason)?;
    change(queue, |noted| noted.retain(|ns| !namespaces.contains(ns)))
}

fn change(queue: &Queue, change: impl FnOnce(&mut BTreeSet<Namespace>)) -> Result<(), QueueError> {
    queue.update_meta(note::BEHIND, |stored| {
        let mut noted = decode(stored)?;
        change(&mut noted);
        let encoded = || serde_json::to_vec(&noted).expect("names are JSON");
        Ok((!noted.is_empty()).then(encoded))
    })
}

fn decode(stored: Option<&[u8]>) -> Result<BTreeSet<Namespace>, QueueError> {
    let decoded = stored.map(serde_json::from_slice).transpose().map_err(damaged)?;
    Ok(decoded.unwrap_or_default())
}
