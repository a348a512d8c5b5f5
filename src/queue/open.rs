//! Opening the queue, and what to do with one that does not open.

use std::path::PathBuf;

use super::{
    Queue, QueueError, QueueOptions, compact,
    files::{guarded, hand_over, lock, move_aside, open_sled},
    load::load,
    reader::CacheGuard,
    store::Store,
};
use crate::observe::report::one_line;

/// Where a broken queue was moved to, and what was wrong with it.
#[derive(Debug)]
pub struct Rebuilt {
    pub moved_to: PathBuf,
    pub error: QueueError,
}

impl Queue {
    /// Opens the queue and reads all of it once: the index is rebuilt and every entry is checked.
    ///
    /// # Errors
    /// [`QueueError::InUse`], [`QueueError::Unusable`], or one for which
    /// [`is_damage`](QueueError::is_damage) holds.
    pub fn open(options: &QueueOptions) -> Result<Queue, QueueError> {
        let unusable =
            |source| QueueError::Unusable { path: options.path.display().to_string(), source };
        let lock = lock(options)?;
        compact::finish(&options.path).map_err(unusable)?;
        let mut db = open_sled(options)?;
        let cache = CacheGuard::default();
        let mut state = guarded(|| load(&db, &cache, &options.path))??;
        let files = compact::files_bytes(&options.path).map_err(unusable)?;
        // What is worth its place on the disk.
        let content = state.blocks.stored() + state.dead_bytes;
        if options.compact
            && options.persist
            && compact::is_mostly_empty(files, content)
            && compact::has_room(&options.path, content)
        {
            match guarded(|| compact::write_compacted(&db, options)).and_then(|written| written) {
                Ok(()) => {
                    drop(db);
                    compact::finish(&options.path).map_err(unusable)?;
                    db = open_sled(options)?;
                    state = guarded(|| load(&db, &cache, &options.path))??;
                    tracing::info!(
                        files,
                        "the queue's files were mostly empty and are written anew"
                    );
                }
                // The old ones are as good as before.
                Err(error) => {
                    compact::give_up(&options.path);
                    let error = one_line(&error);
                    tracing::warn!(%error, "the queue's files could not be written anew");
                }
            }
        }
        hand_over(&options.path);
        Ok(Queue::of(Store::new(db, cache, lock, options), state))
    }

    /// Opens the queue; one that does not open, or fails its checks, is moved aside and a new one is
    /// made in its place. Nothing is deleted. The new queue has no checkpoint, so that the caller
    /// compares everything and nothing is lost.
    ///
    /// # Errors
    /// [`QueueError::InUse`] and [`QueueError::Unusable`]: a new queue would fare no better.
    pub fn open_or_rebuild(options: &QueueOptions) -> Result<(Queue, Option<Rebuilt>), QueueError> {
        match Queue::open(options) {
            Ok(queue) => Ok((queue, None)),
            Err(error) if error.is_damage() => {
                let moved_to = move_aside(&options.path).map_err(|source| {
                    QueueError::Unusable { path: options.path.display().to_string(), source }
                })?;
                let queue = Queue::open(options)?;
                Ok((queue, Some(Rebuilt { moved_to, error })))
            }
            Err(error) => Err(error),
        }
    }
}
