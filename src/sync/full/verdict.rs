//! What has become of the documents that a full sync queued: whether Atlas took them.
//!
//! A number of dead letters says little: one that was there before is replaced when its document is refused again,
//! and one that comes meanwhile may be another's.

use crate::{
    observe::status::Status,
    queue::{Queue, QueueError, Work},
};

/// How many of the documents that the last run queued are dead letters by now. Those that still wait are not among
/// them.
///
/// # Errors
/// When the queue cannot be read.
pub fn refused_of_the_run(status: &Status, queue: &Queue) -> Result<u64, QueueError> {
    let began = status.state().sync.as_ref().map(|sync| sync.started_ms);
    let Some(began) = began.filter(|_| !status.repaired.is_empty()) else { return Ok(0) };
    if queue.dead_letters_len() == 0 {
        return Ok(0);
    }
    let mut refused = 0;
    for letter in queue.letters() {
        let letter = letter?;
        if let Work::Document { ns, key, .. } = &letter.entry.work
            && letter.died_ms >= began
            && status.repaired.contains(ns, key)
        {
            refused += 1;
        }
    }
    Ok(refused)
}
