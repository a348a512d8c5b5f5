//! What no run may do, kept beside the queue: so that it is told after a restart too.

use crate::queue::{Queue, QueueError, note};

/// Reads them.
///
/// # Errors
/// When the queue cannot be read.
pub fn refused_deletes(queue: &Queue) -> Result<Vec<String>, QueueError> {
    let stored = queue.meta(note::REFUSED)?;
    // A list for display alone: one that cannot be read is made again by the next comparison.
    Ok(stored.and_then(|stored| serde_json::from_slice(&stored).ok()).unwrap_or_default())
}

pub(super) fn note_refused(queue: &Queue, refused: &[String]) -> Result<(), QueueError> {
    let list = serde_json::to_vec(refused).expect("a list of names is JSON");
    queue.set_meta(note::REFUSED, (!refused.is_empty()).then_some(&list))
}
