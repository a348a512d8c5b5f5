//! The queue's files. Nothing else has hold of sled once the queue is open; what reads blocks is a [`Reader`] that is lent
//! here.
//!
//! What is written goes through one function, [`Store::write`]; after a write that failed nothing more does.

use std::{
    fs,
    path::PathBuf,
    sync::atomic::{AtomicU64, Ordering},
};

use super::{
    QueueError, QueueOptions, compact,
    edit::{Edit, Finished, PART_BYTES, Surroundings},
    files::{guarded, hand_over},
    layout::{DEAD, PIECE_MAX, block_key, dead_key, further_pieces, number_of, piece_key},
    reader::{CacheGuard, Reader, read_block},
    state::StoreState,
};
use crate::runtime::files::sync;

/// See the [module](self).
pub struct Store {
    db: sled::Db,
    cache: CacheGuard,
    /// Grows while a long task works under the lock.
    progress: AtomicU64,
    persist: bool,
    /// How much one step may take out of it and write: [`PART_BYTES`], but for a test.
    pub(super) part_bytes: usize,
    path: PathBuf,
    /// Held as long as the queue is open.
    _lock: fs::File,
}

/// Where sled keeps all that is in it, since no value of ours is so long that it gets a file of its own.
const FILE: &str = "db";

/// A key and its value.
type Item = (sled::IVec, sled::IVec);

impl Store {
    pub fn new(db: sled::Db, cache: CacheGuard, lock: fs::File, options: &QueueOptions) -> Self {
        Self {
            db,
            cache,
            progress: AtomicU64::new(0),
            persist: options.persist,
            part_bytes: PART_BYTES,
            path: options.path.clone(),
            _lock: lock,
        }
    }

    pub fn get(&self, key: &[u8]) -> Result<Option<sled::IVec>, QueueError> {
        Ok(self.db.get(key)?)
    }

    /// All whose keys begin so, in their order.
    pub fn scan(&self, prefix: &[u8]) -> impl Iterator<Item = Result<Item, QueueError>> + use<> {
        self.db.scan_prefix(prefix).map(|item| Ok(item?))
    }

    /// What all files take of the disk.
    pub fn disk_bytes(&self) -> Result<u64, QueueError> {
        Ok(self.db.size_on_disk()?)
    }

    pub fn reader(&self) -> Reader<'_> {
        Reader::new(&self.db, &self.cache)
    }

    /// The bytes of a dead letter. Whoever asks holds the state: else another might take a piece of it away.
    pub fn letter(&self, seq: u64) -> Result<Option<Vec<u8>>, QueueError> {
        let mut whole = None;
        for item in self.db.scan_prefix(dead_key(seq)) {
            let (key, piece) = item?;
            self.cache.passed(&self.db, &key, piece.len());
            whole.get_or_insert_with(Vec::new).extend_from_slice(&piece);
        }
        Ok(whole)
    }

    /// The first dead letter from `seq` on.
    pub fn next_letter(&self, seq: u64) -> Result<Option<u64>, QueueError> {
        let Some(next) = self.db.range(dead_key(seq)..).next() else { return Ok(None) };
        let (key, _) = next?;
        Ok(key.starts_with(&[DEAD]).then(|| number_of(&key)))
    }

    /// Writes what a step changes, and takes it into `state`: all of it, or nothing.
    ///
    /// # Errors
    /// The queue then refuses further steps: see [`QueueError::Disk`].
    pub fn write(&self, state: &mut StoreState, edit: Edit) -> Result<(), QueueError> {
        let untouched_from = state.ledger().schedule.cursor;
        let Finished { batch, seal, changes } = edit.finish(&Surroundings {
            blocks: &state.blocks,
            untouched_from,
            is_leased: &|seq| state.ledger().schedule.leased(seq).is_some(),
            read: &|id| read_block(&self.db, &self.cache, &state.blocks, id),
        })?;
        match guarded(|| self.db.apply_batch(batch)) {
            Ok(Ok(())) => {
                state.seal = seal;
                for (id, block) in &changes.added {
                    let stored = block.stored as usize;
                    self.cache.passed(&self.db, &block_key(*id), stored.min(PIECE_MAX));
                    for n in 1..=further_pieces(stored) {
                        self.cache.passed(&self.db, &piece_key(block_key(*id), n), PIECE_MAX);
                    }
                }
                state.blocks.apply(changes);
                Ok(())
            }
            Ok(Err(error)) => {
                state.failed = true;
                Err(error.into())
            }
            Err(error) => {
                state.failed = true;
                Err(error)
            }
        }
    }

    /// Writes everything to the disk and syncs it.
    pub fn flush(&self) -> Result<(), QueueError> {
        Ok(self.db.flush().map(drop)?)
    }

    /// As [`flush`](Self::flush), and with the disk's own word for it. sled's flush ends in `sync_file_range`, which tells
    /// neither the disk's cache nor that a file has grown. Files that are not to persist promise nothing.
    pub fn make_durable(&self) -> Result<(), QueueError> {
        self.flush()?;
        if !self.persist {
            return Ok(());
        }
        sync(&self.path.join(FILE)).map_err(QueueError::Disk)
    }

    /// True when writing the files anew would give back most of the disk that they take; `content` bytes are in
    /// blocks.
    pub fn is_mostly_empty(&self, mut content: u64) -> Result<bool, QueueError> {
        let files = self.disk_bytes()?;
        let is_worth = |content| {
            compact::is_mostly_empty(files, content) && compact::has_room(&self.path, content)
        };
        if !self.persist || !is_worth(content) {
            return Ok(false);
        }
        for item in self.scan(&[DEAD]) {
            content += item?.1.len() as u64;
        }
        Ok(is_worth(content))
    }

    /// A long task has done a little more.
    pub fn goes_on(&self) {
        self.progress.fetch_add(1, Ordering::Relaxed);
    }

    /// A number that grows while one works.
    pub fn progress(&self) -> u64 {
        self.progress.load(Ordering::Relaxed)
    }

    #[cfg(test)]
    pub fn db(&self) -> &sled::Db {
        &self.db
    }

    /// How many values were read or written.
    #[cfg(test)]
    pub fn passed(&self) -> u32 {
        self.cache.count()
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        hand_over(&self.path);
    }
}
