//! The queue on sled: what is in memory of it, leasing, and the one place where the store is written.

use std::{
    slice,
    sync::{
        Arc, Mutex, MutexGuard, TryLockError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::sync::Notify;

use super::{
    Batch, Entry, QueueError, Work,
    blocks::{Blocks, Place},
    codec,
    edit::{Edit, Finished, Surroundings},
    files::{guarded, hand_over},
    index::{DocumentName, Hasher, Index},
    layout::{CHECKPOINT, PIECE_MAX, block_key, dead_key, further_pieces, piece_key},
    ledger::{Ledger, POISONED},
    letters::Letters,
    reader::{CacheGuard, Reader, read_block},
    schedule::{Lease, is_due},
};
use crate::model::checkpoint::Checkpoint;

/// The durable, deduplicating queue. See the [module](super) for its contract.
///
/// All methods block on the disk for as long as sled does, and are called off the async threads; but those that look
/// at numbers and holds only, in `ledger`, which answer at once.
pub struct Queue {
    pub(super) db: sled::Db,
    pub(super) cache: CacheGuard,
    pub(super) state: Mutex<State>,
    pub(super) ledger: Arc<Mutex<Ledger>>,
    pub(super) hasher: Hasher,
    pub(super) changed: Notify,
    /// Grows while a long task works under the lock.
    pub(super) progress: AtomicU64,
    pub(super) persist: bool,
    /// [`PART_BYTES`](super::edit::PART_BYTES), but for a test.
    pub(super) part_bytes: usize,
    pub(super) path: std::path::PathBuf,
    /// Held as long as the queue is open.
    pub(super) _lock: std::fs::File,
}

#[derive(Default)]
pub(super) struct State {
    pub(super) blocks: Blocks,
    pub(super) index: Index,
    pub(super) ledger: Arc<Mutex<Ledger>>,
    pub(super) letters: Letters,
    /// Encoded size of the dead letters when the queue was opened.
    pub(super) dead_bytes: u64,
    /// See [`Edit`].
    pub(super) seal: u64,
    /// Set by the first failed write; see [`QueueError::Disk`].
    pub(super) failed: bool,
}

/// Most entries that one lease looks at.
const SCAN_MAX: usize = 50_000;

/// Entries that a lease passes, since they may not go now, before it lets others have the lock; or as many bytes of
/// them as a [part](super::edit::PART_BYTES) has. Each is read from the disk: 2,000 of 1 MB kept everybody waiting for 17 s.
const STRETCH: usize = 1_000;

/// Where sled keeps all that is in it, since no value of ours is so long that it gets a file of its own.
const FILE: &str = "db";

/// For how long it lets them.
const LET_IN: Duration = Duration::from_micros(100);

impl Queue {
    /// Takes up to `ops_max` entries of up to `bytes_max` bytes in all (one entry is taken whatever
    /// its size), the oldest first, at most one for any document. A barrier is taken alone.
    ///
    /// # Errors
    /// [`QueueError::Damaged`] where an entry no longer decodes.
    pub fn lease(
        &self,
        ops_max: usize,
        bytes_max: usize,
        now_ms: u64,
    ) -> Result<Batch, QueueError> {
        let mut looks = SCAN_MAX;
        loop {
            if let Some(batch) = self.look(ops_max, bytes_max, now_ms, &mut looks)? {
                return Ok(batch);
            }
            // Who gives up a lock and takes it at once has it again before those who wait for it have woken up.
            std::thread::sleep(LET_IN);
        }
    }

    /// One stretch of a lease under the lock. `None` if it has only passed what may not go now, and goes on.
    pub(super) fn look(
        &self,
        ops_max: usize,
        bytes_max: usize,
        now_ms: u64,
        looks: &mut usize,
    ) -> Result<Option<Batch>, QueueError> {
        let state = self.lock();
        let mut batch = Batch::default();
        {
            let mut ledger = self.ledger();
            if ledger.schedule.holds_all() {
                return Ok(Some(batch));
            }
            ledger.schedule.batch_begins();
        }
        let mut bytes = 0;
        let (mut passed, mut passed_bytes) = (0, 0);
        let mut reader = self.reader();
        while *looks > 0 {
            *looks -= 1;
            self.progress.fetch_add(1, Ordering::Relaxed);
            if batch.entries.len() >= ops_max || bytes >= bytes_max {
                break;
            }
            if passed >= STRETCH || passed_bytes >= self.part_bytes {
                return Ok(Some(batch).filter(|batch| !batch.entries.is_empty()));
            }
            let Some((seq, place)) = state.next_ready(now_ms) else {
                batch.next_due_ms = self.ledger().schedule.next_due();
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
            let schedule = &mut self.ledger().schedule;
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
            let lease = Lease { version: entry.version, document, successor: None, ns, bytes: len };
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

    /// The checkpoint of the last commit that had one.
    pub fn checkpoint(&self) -> Result<Option<Checkpoint>, QueueError> {
        let value = self.db.get(CHECKPOINT)?;
        Ok(value.map(|value| codec::decode_checkpoint(&value)).transpose()?)
    }

    /// A number that grows while the queue works, for one who watches whether it is stuck. Never waits.
    /// `None` when nothing is being done, so that it cannot be stuck.
    pub fn progress(&self) -> Option<u64> {
        match self.state.try_lock() {
            Err(TryLockError::WouldBlock) => Some(self.progress.load(Ordering::Relaxed)),
            Ok(_) | Err(TryLockError::Poisoned(_)) => None,
        }
    }

    /// Writes everything to the disk and syncs it.
    ///
    /// # Errors
    /// [`QueueError::Disk`]; the queue then refuses further commits.
    pub fn flush(&self) -> Result<(), QueueError> {
        let flushed = self.db.flush();
        if flushed.is_err() {
            self.lock().failed = true;
        }
        Ok(flushed.map(drop)?)
    }

    /// As [`flush`](Self::flush), and with the disk's own word for it: for what has no second copy anywhere. sled's flush
    /// ends in `sync_file_range`, which tells neither the disk's cache nor that a file has grown. A queue that is not to
    /// persist promises nothing.
    ///
    /// # Errors
    /// As of [`flush`](Self::flush).
    pub fn make_durable(&self) -> Result<(), QueueError> {
        self.flush()?;
        if !self.persist {
            return Ok(());
        }
        let synced = std::fs::File::open(self.path.join(FILE)).and_then(|file| file.sync_all());
        if synced.is_err() {
            self.lock().failed = true;
        }
        Ok(synced.map_err(sled::Error::from)?)
    }

    pub(super) fn write(&self, state: &mut State, edit: Edit) -> Result<(), QueueError> {
        let untouched_from = self.ledger().schedule.cursor;
        let Finished { batch, seal, changes } = edit.finish(&Surroundings {
            blocks: &state.blocks,
            untouched_from,
            is_leased: &|seq| self.ledger().schedule.leased(seq).is_some(),
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

    /// The bytes of a dead letter. Whoever asks holds the state: else another might take a piece of it away.
    pub(super) fn letter_bytes(&self, seq: u64) -> Result<Option<Vec<u8>>, QueueError> {
        let mut whole = None;
        for item in self.db.scan_prefix(dead_key(seq)) {
            let (key, piece) = item?;
            self.cache.passed(&self.db, &key, piece.len());
            whole.get_or_insert_with(Vec::new).extend_from_slice(&piece);
        }
        Ok(whole)
    }

    pub(super) fn reader(&self) -> Reader<'_> {
        Reader::new(&self.db, &self.cache)
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect(POISONED)
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        hand_over(&self.path);
    }
}

impl State {
    /// See [`ledger`](super::ledger).
    pub(super) fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().expect(POISONED)
    }

    pub(super) fn name_of(&self, work: &Work) -> Option<DocumentName> {
        match work {
            Work::Document { ns, key, .. } => Some(self.index.name_of(ns, key)),
            Work::Schema(_) => None,
        }
    }

    /// An entry and the length of its bytes, if it is there.
    pub(super) fn entry(
        &self,
        reader: &mut Reader<'_>,
        seq: u64,
    ) -> Result<Option<(Entry, usize)>, QueueError> {
        let place = self.blocks.place_of(seq);
        place.map(|place| reader.entry(&self.blocks, (seq, place))).transpose()
    }

    /// The newest entry of a document, and the length of its bytes.
    pub(super) fn newest(
        &self,
        reader: &mut Reader<'_>,
        name: &DocumentName,
    ) -> Result<Option<(Entry, usize)>, QueueError> {
        let mut read = |seq| self.entry(reader, seq);
        let mut found = None;
        let seq = self.index.find(name, |seq| -> Result<bool, QueueError> {
            found =
                read(seq)?.filter(|(entry, _)| self.name_of(&entry.work).as_ref() == Some(name));
            Ok(found.is_some())
        })?;
        match (found, seq) {
            (None, Some(seq)) => read(seq),
            (found, _) => Ok(found),
        }
    }

    /// The next entry that may be ready: one that came back, else the next that was not looked at.
    fn next_ready(&self, now_ms: u64) -> Option<(u64, Place)> {
        let schedule = &mut self.ledger().schedule;
        while let Some(seq) = schedule.next_ready(now_ms) {
            if let Some(place) = self.blocks.place_of(seq) {
                return Some((seq, place));
            }
        }
        let (seq, place) = self.blocks.next_from(schedule.cursor)?;
        schedule.cursor = seq + 1;
        Some((seq, place))
    }

    pub(super) fn edit(&self) -> Edit {
        Edit::of(self.seal)
    }

    pub(super) fn refuse_after_failure(&self) -> Result<(), QueueError> {
        if self.failed {
            return Err(QueueError::Disk(std::io::Error::other(
                "an earlier write failed; the queue takes no more until it is opened again",
            )));
        }
        Ok(())
    }
}
