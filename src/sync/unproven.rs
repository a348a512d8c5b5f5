//! Reads by name that were believed before the stream had come so far.
//!
//! An entry that does not know its collection is read by its collection's name, and that is believed once the stream
//! has passed the time of the read with no rename. Where reading has stopped, since the queue has no room, the stream
//! cannot come so far before the entries have gone: each would wait for the other, or the queue outgrow its limits.
//! Then they are written at once, and the name is noted here first, with a time after the read. A rename that the
//! stream tells of later, made before that time, may mean that another collection's documents were read: what the
//! collection is called by then is compared.

use std::collections::BTreeMap;

use crate::{
    model::{checkpoint::ClusterTime, namespace::Namespace},
    queue::{CodecError, Queue, QueueError, note},
};

type Noted = BTreeMap<Namespace, u64>;

fn decode(stored: Option<&[u8]>) -> Result<Noted, QueueError> {
    let damaged = |error: serde_json::Error| {
        QueueError::Damaged(CodecError::Damaged(format!("names that were believed: {error}")))
    };
    Ok(stored.map(serde_json::from_slice).transpose().map_err(damaged)?.unwrap_or_default())
}

fn encode(noted: &Noted) -> Option<Vec<u8>> {
    let encoded = || serde_json::to_vec(noted).expect("names and numbers are JSON");
    (!noted.is_empty()).then(encoded)
}

/// What is read in the minute after a note needs none of its own: it would cost a write each.
const AHEAD: u64 = 60 << 32;

/// Notes that what had the name `name` at `now` or before is believed. What is older than `read`, up to which the
/// stream was read, is forgotten. False when that was noted before.
///
/// # Errors
/// When the queue cannot be read or written.
pub fn note(
    queue: &Queue,
    name: &Namespace,
    now: ClusterTime,
    read: ClusterTime,
) -> Result<bool, QueueError> {
    let stored = queue.meta(note::UNPROVEN)?;
    if decode(stored.as_deref())?.get(name).is_some_and(|until| *until >= now.0) {
        return Ok(false);
    }
    queue.update_meta(note::UNPROVEN, |stored| {
        let mut noted = decode(stored)?;
        noted.retain(|_, until| *until >= read.0);
        let entry = noted.entry(name.clone()).or_default();
        *entry = (*entry).max(now.0.saturating_add(AHEAD));
        Ok(encode(&noted))
    })?;
    Ok(true)
}

/// The collection that was called `from` is called `to` since `time`. True when what was written of it may be
/// another's.
///
/// # Errors
/// When the queue cannot be read or written.
pub fn renamed(
    queue: &Queue,
    (from, to): (&Namespace, &Namespace),
    time: ClusterTime,
) -> Result<bool, QueueError> {
    if queue.meta(note::UNPROVEN)?.is_none() {
        return Ok(false);
    }
    let mut is_unproven = false;
    queue.update_meta(note::UNPROVEN, |stored| {
        let mut noted = decode(stored)?;
        // With the collection that gave way.
        noted.remove(to);
        if let Some(until) = noted.remove(from) {
            is_unproven = until >= time.0;
            noted.insert(to.clone(), until);
        }
        Ok(encode(&noted))
    })?;
    Ok(is_unproven)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::queue::QueueOptions;

    #[test]
    fn a_collection_whose_name_was_believed_is_unproven_after_a_rename_before_that_time_and_no_other_is()
     {
        let dir = tempfile::tempdir().unwrap();
        let queue = Queue::open(&QueueOptions::new(dir.path())).unwrap();
        let ns = |name: &str| Namespace::new("shop", name);
        let renamed =
            |from, to, time| renamed(&queue, (&ns(from), &ns(to)), ClusterTime(time)).unwrap();
        let note =
            |name, now, read| note(&queue, &ns(name), ClusterTime(now), ClusterTime(read)).unwrap();
        assert!(!renamed("left", "tmp", 5));

        assert!(note("left", 10, 1) && !note("left", 11, 1));
        assert!(!renamed("right", "other", 5), "nobody has believed this one");
        assert!(renamed("left", "tmp", 10 + AHEAD));
        assert!(renamed("tmp", "right", 10), "the doubt goes with the collection");
        assert!(!renamed("right", "left", 11 + AHEAD), "what is made later was not read");

        assert!(note("far", 500 + AHEAD, 1) && note("left", 12 + AHEAD, 12 + AHEAD));
        assert!(!note("far", 500, 1), "what is ahead stays noted");
        assert!(!renamed("other", "left", 15), "in the place of the one in doubt");
        assert!(!renamed("left", "tmp", 15));
    }
}
