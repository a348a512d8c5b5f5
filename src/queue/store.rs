//! The queue on sled: commit, lease, settle.

use std::{
    slice,
    sync::{
        Mutex, MutexGuard, TryLockError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::sync::Notify;

use super::{
    Batch, Entry, QueueError, QueueOptions, Work,
    blocks::{Blocks, Place},
    codec,
    commit::PART_BYTES,
    compact,
    edit::{Edit, Finished, Surroundings},
    index::{DocumentName, Index},
    layout::{CHECKPOINT, PIECE_MAX, block_key, further_pieces, piece_key},
    letters::Letters,
    load::load,
    open::{guarded, hand_over, lock, open_sled},
    reader::{CacheGuard, Reader, read_block},
    schedule::{Lease, Schedule, is_due},
};
use crate::{
    model::{
        checkpoint::{Checkpoint, ClusterTime},
        namespace::Namespace,
    },
    observe::report::one_line,
};

/// The durable, deduplicating queue. See the [module](super) for its contract.
///
/// All methods block on the disk for as long as sled does; call them off the async threads.
pub struct Queue {
    pub(super) db: sled::Db,
    pub(super) cache: CacheGuard,
    pub(super) state: Mutex<State>,
    pub(super) changed: Notify,
    /// Grows while a long task works under the lock.
    pub(super) progress: AtomicU64,
    pub(super) persist: bool,
    /// [`PART_BYTES`], but for a test.
    pub(super) part_bytes: usize,
    pub(super) path: std::path::PathBuf,
    /// Held as long as the queue is open.
    _lock: std::fs::File,
}

/// The time of the next retry, milliseconds since 1970, if there is one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NextDue(pub Option<u64>);

#[derive(Default)]
pub(super) struct State {
    pub(super) blocks: Blocks,
    pub(super) index: Index,
    pub(super) schedule: Schedule,
    pub(super) next_seq: u64,
    pub(super) pending: u64,
    pub(super) pending_bytes: u64,
    pub(super) letters: Letters,
    pub(super) dead_len: u64,
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
/// them as a [part](PART_BYTES) has. Each is read from the disk: 2,000 of 1 MB kept everybody waiting for 17 s.
const STRETCH: usize = 1_000;

/// For how long it lets them.
const LET_IN: Duration = Duration::from_micros(100);

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
        let content = state.content_bytes();
        if options.compact
            && options.persist
            && compact::is_mostly_empty(files, content)
            && compact::has_room(&options.path, content)
        {
            match guarded(|| compact::write_anew(&db, options)).and_then(|written| written) {
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
        Ok(Queue {
            db,
            cache,
            state: Mutex::new(state),
            changed: Notify::new(),
            progress: AtomicU64::new(0),
            persist: options.persist,
            part_bytes: PART_BYTES,
            path: options.path.clone(),
            _lock: lock,
        })
    }

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
        let mut state = self.lock();
        let state = &mut *state;
        let mut batch = Batch::default();
        if state.schedule.holds_all() {
            return Ok(Some(batch));
        }
        state.schedule.batch_begins();
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
                batch.next_due_ms = state.schedule.next_due();
                break;
            };
            let (entry, len) = reader.entry(&state.blocks, (seq, place))?;
            passed += 1;
            passed_bytes += len;
            if !is_due(entry.due_ms, now_ms) {
                // It waited when the queue was closed, and goes on waiting.
                state.schedule.requeue(seq, Some(entry.due_ms));
                continue;
            }
            let document = match &entry.work {
                Work::Document { ns, key, .. } => Some(state.index.hash_of(ns, key)),
                Work::Schema(_) => None,
            };
            let is_admitted = match &entry.work {
                Work::Document { ns, .. } => {
                    state.schedule.admit(slice::from_ref(ns), seq, document)
                }
                Work::Schema(change) => state.schedule.admit(&change.namespaces(), seq, None),
            };
            if !is_admitted {
                continue;
            }
            let is_barrier = document.is_none();
            let is_beyond = bytes + len > bytes_max;
            if !batch.entries.is_empty() && (is_barrier || is_beyond) {
                state.schedule.requeue(seq, None);
                break;
            }
            let ns = entry.work.ns().clone();
            let lease = Lease { version: entry.version, document, successor: None, ns, bytes: len };
            state.schedule.lease(seq, lease);
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

    /// Entries of `ns` are leased in their order, one batch at a time: it is a capped collection. Or as
    /// any others.
    pub fn keep_in_order(&self, ns: &Namespace, on: bool) {
        self.lock().schedule.keep_in_order(ns, on);
    }

    /// True while a batch has entries of `ns`.
    pub fn is_leased(&self, ns: &Namespace) -> bool {
        self.lock().schedule.is_leased_of(ns)
    }

    /// True for a namespace of [`keep_in_order`](Self::keep_in_order).
    pub fn is_in_order(&self, ns: &Namespace) -> bool {
        self.lock().schedule.is_in_order(ns)
    }

    /// Keeps the entries of `ns` from being leased until [`release`](Self::release).
    pub fn hold(&self, ns: &Namespace) {
        self.lock().schedule.hold(ns);
    }

    /// Keeps every entry from being leased until [`release_all`](Self::release_all).
    pub fn hold_all(&self) {
        self.lock().schedule.hold_all();
    }

    /// Keeps the entries of `ns` from being leased until the stream has been read up to `until`: Atlas may
    /// hold a later state than they tell of, which only what follows them can say. For a capped collection:
    /// a document that has given way already would come back at its end, and push out another.
    pub fn wait_for_stream(&self, ns: &Namespace, until: ClusterTime) {
        self.lock().schedule.wait_for_stream(ns, until);
    }

    /// The stream has been read up to `time`, and all of it is committed.
    pub fn stream_reached(&self, time: ClusterTime) {
        self.let_go(time);
    }

    /// The stream is not read any further for now, for the reason that `error` gives, so nothing may wait for
    /// it: what waits may be all that there is, and late is worse than in another order.
    pub fn no_longer_behind(&self, error: &str) {
        for ns in self.let_go(ClusterTime(u64::MAX)) {
            tracing::warn!(%ns, error, "changes of a capped collection go before the stream was read again up to where Atlas may be; its documents may come into another order");
        }
    }

    fn let_go(&self, time: ClusterTime) -> Vec<Namespace> {
        let namespaces = self.lock().schedule.stream_reached(time);
        if !namespaces.is_empty() {
            self.changed.notify_waiters();
        }
        namespaces
    }

    /// Lets the entries of `ns` go again.
    pub fn release(&self, ns: &Namespace) {
        self.lock().schedule.release(ns);
        self.changed.notify_waiters();
    }

    /// Ends [`hold_all`](Self::hold_all). Namespaces that are held on their own stay so.
    pub fn release_all(&self) {
        self.lock().schedule.release_all();
        self.changed.notify_waiters();
    }

    /// True when a barrier of `ns` waits or is being applied.
    pub fn has_barrier(&self, ns: &Namespace) -> bool {
        self.lock().schedule.lines.has_barrier(ns)
    }

    /// Completes at the next commit, settlement or release, and when what waited for the stream may go. To
    /// miss none, make the future before looking at the queue.
    pub fn changed(&self) -> tokio::sync::futures::Notified<'_> {
        self.changed.notified()
    }

    /// The checkpoint of the last commit that had one.
    pub fn checkpoint(&self) -> Result<Option<Checkpoint>, QueueError> {
        let value = self.db.get(CHECKPOINT)?;
        Ok(value.map(|value| codec::decode_checkpoint(&value)).transpose()?)
    }

    /// The number of dead letters, without touching the disk.
    pub fn dead_letters_len(&self) -> u64 {
        self.lock().dead_len
    }

    /// Entries not yet in Atlas and their encoded bytes, without touching the disk.
    pub fn pending(&self) -> (u64, u64) {
        let state = self.lock();
        (state.pending, state.pending_bytes)
    }

    /// Entries that may go to Atlas as soon as a worker has time: not those that wait for a retry, nor those
    /// of namespaces that are held or wait for the stream.
    pub fn ready(&self) -> u64 {
        let state = self.lock();
        let waiting = state.schedule.delayed_len() + state.schedule.held_len();
        state.pending.saturating_sub(waiting)
    }

    /// Entries that no worker has and that wait for no retry. Some may be held, or stand behind a barrier: only a lease
    /// can tell.
    pub fn waiting(&self) -> u64 {
        self.lock().waiting()
    }

    /// When a lease may find something, if there is nothing for one now: the time at which a retry is due, milliseconds
    /// since 1970. Looks at nothing but numbers.
    pub fn idle_until(&self, now_ms: u64) -> Option<NextDue> {
        let state = self.lock();
        let due = state.schedule.next_due();
        let is_idle = state.waiting() == 0 && due.is_none_or(|due| !is_due(due, now_ms));
        is_idle.then_some(NextDue(due))
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

    pub(super) fn write(&self, state: &mut State, edit: Edit) -> Result<(), QueueError> {
        let Finished { batch, seal, changes } = edit.finish(&Surroundings {
            blocks: &state.blocks,
            untouched_from: state.schedule.cursor,
            is_leased: &|seq| state.schedule.leased(seq).is_some(),
            read: &|id| read_block(&self.db, &self.cache, &state.blocks, id),
        })?;
        match guarded(|| self.db.apply_batch(batch)) {
            Ok(Ok(())) => {
                state.seal = seal;
                for (id, block) in &changes.added {
                    let stored = block.stored as usize;
                    self.cache.passed(&self.db, &block_key(*id), stored.min(PIECE_MAX));
                    for n in 1..=further_pieces(stored) {
                        self.cache.passed(&self.db, &piece_key(*id, n), PIECE_MAX);
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

    pub(super) fn reader(&self) -> Reader<'_> {
        Reader::new(&self.db, &self.cache)
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("the queue's lock is never held across a panic of ours")
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        hand_over(&self.path);
    }
}

impl State {
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

    /// No entry is both delayed and leased, so that this is exact. Held ones may be either, and are not taken off: what
    /// is taken off twice would hide others, which would then wait for as long as a namespace is held.
    fn waiting(&self) -> u64 {
        self.pending.saturating_sub(self.schedule.delayed_len() + self.schedule.leased_len())
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
    fn next_ready(&mut self, now_ms: u64) -> Option<(u64, Place)> {
        while let Some(seq) = self.schedule.next_ready(now_ms) {
            if let Some(place) = self.blocks.place_of(seq) {
                return Some((seq, place));
            }
        }
        let (seq, place) = self.blocks.next_from(self.schedule.cursor)?;
        self.schedule.cursor = seq + 1;
        Some((seq, place))
    }

    /// Bytes that are worth their place on the disk.
    fn content_bytes(&self) -> u64 {
        self.blocks.stored() + self.dead_bytes
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

    pub(super) fn appeared(&mut self, name: Option<&DocumentName>, work: &Work, seq: u64) {
        match (name, work) {
            (None, Work::Schema(change)) => self.schedule.barrier_added(change, seq),
            (Some(_) | None, work) => self.schedule.lines.added(work.ns()),
        }
    }
}
