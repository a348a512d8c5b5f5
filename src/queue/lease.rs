//! Leasing: the oldest entries that may go now, at most one for any document.

use std::{slice, time::Duration};

use super::{
    Batch, QueueError, Work,
    schedule::{Leased, is_due},
    state::StoreState,
    store::Store,
};

/// Most entries that one lease looks at.
pub const SCAN_MAX: usize = 50_000;

/// Entries that a lease passes, since they may not go now, before it lets others have the lock; or as many bytes of
/// them as a [part](super::edit::PART_BYTES) has. Each is read from the disk: 2,000 of 1 MB kept everybody waiting for 17 s.
const STRETCH: usize = 1_000;

/// For how long it lets them.
pub const LET_IN: Duration = Duration::from_micros(100);

/// One stretch of a lease. `None` if it has only passed what may not go now, and goes on.
pub fn stretch(
    store: &Store,
    state: &StoreState,
    (ops_max, bytes_max): (usize, usize),
    now_ms: u64,
    looks: &mut usize,
) -> Result<Option<Batch>, QueueError> {
    let mut batch = Batch::default();
    {
        let mut ledger = state.ledger();
        if ledger.schedule.holds_all() {
            return Ok(Some(batch));
        }
        ledger.schedule.batch_begins();
    }
    let mut bytes = 0;
    let (mut passed, mut passed_bytes) = (0, 0);
    let mut reader = store.reader();
    while *looks > 0 {
        *looks -= 1;
        store.goes_on();
        if batch.entries.len() >= ops_max || bytes >= bytes_max {
            break;
        }
        if passed >= STRETCH || passed_bytes >= store.part_bytes {
            return Ok(Some(batch).filter(|batch| !batch.entries.is_empty()));
        }
        let Some((seq, place)) = state.next_ready(now_ms) else {
            batch.next_due_ms = state.ledger().schedule.next_due();
            break;
        };
        let (entry, len) = reader.entry(&state.blocks, (seq, place))?;
        passed += 1;
        passed_bytes += len;
        let document = match &entry.work {
            Work::Document { ns, key, .. } => Some(state.index.hash_of(ns, key)),
            Work::Schema(_) => None,
        };
        // From here on in one step: what is held meanwhile is not leased after that.
        let schedule = &mut state.ledger().schedule;
        if !is_due(entry.due_ms, now_ms) {
            // It waited when the queue was closed, and goes on waiting.
            schedule.requeue(seq, Some(entry.due_ms));
            continue;
        }
        let is_admitted = match &entry.work {
            Work::Document { ns, .. } => schedule.admit(slice::from_ref(ns), seq, document),
            Work::Schema(change) => schedule.admit(&change.namespaces(), seq, None),
        };
        if !is_admitted {
            continue;
        }
        let is_barrier = document.is_none();
        let is_beyond = bytes + len > bytes_max;
        if !batch.entries.is_empty() && (is_barrier || is_beyond) {
            schedule.requeue(seq, None);
            break;
        }
        let ns = entry.work.ns().clone();
        let lease = Leased { version: entry.version, document, successor: None, ns, bytes: len };
        schedule.lease(seq, lease);
        bytes += len;
        passed -= 1;
        passed_bytes -= len;
        batch.entries.push(entry);
        if is_barrier {
            break;
        }
    }
    Ok(Some(batch))
}
