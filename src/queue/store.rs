//! The queue on sled: commit, lease, settle.

use std::{
    collections::HashMap,
    sync::{
        Mutex, MutexGuard, TryLockError,
        atomic::{AtomicU64, Ordering},
    },
};

use sled::IVec;
use tokio::sync::Notify;
use uuid::Uuid;

use super::{
    Batch, Entry, EntrySummary, QueueError, QueueOptions, QueueStats, Work, codec, compact,
    edit::Edit,
    index::{DocumentName, Index},
    open::{guarded, hand_over, load, lock, open_sled},
    schedule::{Lease, Schedule, is_due},
};
use crate::{checkpoint::Checkpoint, namespace::Namespace, report::one_line};

/// The durable, deduplicating queue. See the [module](super) for its contract.
///
/// All methods block on the disk for as long as sled does; call them off the async threads.
pub struct Queue {
    pub(super) db: sled::Db,
    pub(super) state: Mutex<State>,
    pub(super) changed: Notify,
    /// Grows while a long task works under the lock.
    pub(super) progress: AtomicU64,
    pub(super) persist: bool,
    pub(super) path: std::path::PathBuf,
    /// Held as long as the queue is open.
    _lock: std::fs::File,
}

#[derive(Default)]
pub(super) struct State {
    pub(super) index: Index,
    pub(super) schedule: Schedule,
    pub(super) next_seq: u64,
    pub(super) pending: u64,
    pub(super) pending_bytes: u64,
    /// Documents that have a dead letter, and where it is.
    pub(super) dead: HashMap<DocumentName, u64>,
    pub(super) dead_len: u64,
    /// Encoded size of the dead letters when the queue was opened.
    pub(super) dead_bytes: u64,
    /// See [`Edit`].
    pub(super) seal: u64,
    /// Set by the first failed write; see [`QueueError::Disk`].
    failed: bool,
}

pub(super) const ENTRY: u8 = b'e';
pub(super) const DEAD: u8 = b'd';
pub(super) const META: u8 = b'm';
pub(super) const CHECKPOINT: &[u8] = b"mcheckpoint";
pub(super) const FORMAT: &[u8] = b"mformat";

/// Most entries that one lease looks at, so that a long line of blocked ones cannot hold the lock.
const SCAN_MAX: usize = 50_000;

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
        let mut state = guarded(|| load(&db, &options.path))??;
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
                    state = guarded(|| load(&db, &options.path))??;
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
            state: Mutex::new(state),
            changed: Notify::new(),
            progress: AtomicU64::new(0),
            persist: options.persist,
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
        let mut state = self.lock();
        state.schedule.batch_begins();
        let mut batch = Batch::default();
        let mut bytes = 0;
        let mut scan = Scan::new(self, now_ms);
        for _ in 0..SCAN_MAX {
            if batch.entries.len() >= ops_max || bytes >= bytes_max {
                break;
            }
            let Some((seq, value)) = scan.next(&mut state)? else {
                batch.next_due_ms = state.schedule.next_due();
                break;
            };
            let entry = codec::decode_entry(seq, &value)?;
            if !is_due(entry.due_ms, now_ms) {
                // It waited when the queue was closed, and goes on waiting.
                state.schedule.requeue(seq, Some(entry.due_ms));
                continue;
            }
            let name = state.name_of(&entry.work);
            let namespaces = barrier_or_own(&entry.work);
            let is_barrier = name.is_none();
            let document = name.map(|name| name.hash);
            if !state.schedule.admit(&namespaces, seq, document) {
                continue;
            }
            if is_barrier && !batch.entries.is_empty() {
                state.schedule.requeue(seq, None);
                break;
            }
            if !batch.entries.is_empty() && bytes + value.len() > bytes_max {
                state.schedule.requeue(seq, None);
                break;
            }
            let lease = Lease { version: entry.version, document, successor: None };
            state.schedule.lease(seq, lease, entry.work.ns());
            bytes += value.len();
            batch.entries.push(entry);
            if is_barrier {
                break;
            }
        }
        Ok(batch)
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

    /// True when a barrier of `ns` stands behind the entry `seq`.
    pub fn has_barrier_behind(&self, ns: &Namespace, seq: u64) -> bool {
        self.lock().schedule.is_closed(ns, seq)
    }

    /// True when a barrier of `ns` waits or is being applied.
    pub fn has_barrier(&self, ns: &Namespace) -> bool {
        self.lock().schedule.has_barrier(ns)
    }

    /// Completes at the next commit, settlement or release. To miss none, make the future before
    /// looking at the queue.
    pub fn changed(&self) -> tokio::sync::futures::Notified<'_> {
        self.changed.notified()
    }

    /// The checkpoint of the last commit that had one.
    pub fn checkpoint(&self) -> Result<Option<Checkpoint>, QueueError> {
        let value = self.db.get(CHECKPOINT)?;
        Ok(value.map(|value| codec::decode_checkpoint(&value)).transpose()?)
    }

    /// A small value kept beside the queue, such as the state of the first copy.
    pub fn meta(&self, name: &str) -> Result<Option<Vec<u8>>, QueueError> {
        Ok(self.db.get(meta_key(name))?.map(|value| value.to_vec()))
    }

    /// Sets, or with `None` removes, a small value kept beside the queue.
    pub fn set_meta(&self, name: &str, value: Option<&[u8]>) -> Result<(), QueueError> {
        self.update_meta(name, |_| Ok(value.map(<[u8]>::to_vec)))
    }

    /// Replaces a small value kept beside the queue by what `change` makes of it, with nobody in
    /// between.
    pub fn update_meta(
        &self,
        name: &str,
        change: impl FnOnce(Option<&[u8]>) -> Result<Option<Vec<u8>>, QueueError>,
    ) -> Result<(), QueueError> {
        let mut state = self.lock();
        let key = meta_key(name);
        let before = self.db.get(&key)?;
        let mut edit = state.edit();
        match change(before.as_deref())? {
            Some(value) => edit.put(&key, value, before.as_deref()),
            None => edit.remove(&key, before.as_deref()),
        }
        self.write(&mut state, edit)
    }

    /// The queue in numbers.
    pub fn stats(&self) -> Result<QueueStats, QueueError> {
        let disk_bytes = self.db.size_on_disk()?;
        let oldest = self.oldest_ms()?;
        let state = self.lock();
        Ok(QueueStats {
            pending: state.pending,
            pending_bytes: state.pending_bytes,
            leased: state.schedule.leased_len(),
            delayed: state.schedule.delayed_len(),
            dead_letters: state.dead_len,
            oldest_ms: oldest,
            disk_bytes,
        })
    }

    /// When the oldest pending change was made, milliseconds since 1970.
    pub fn oldest_ms(&self) -> Result<Option<u64>, QueueError> {
        let first = self.entries().next().transpose()?;
        Ok(first.map(|entry| entry.first_ms))
    }

    /// The number that the next entry will have: all that is in the queue now is before it.
    pub fn position(&self) -> u64 {
        self.lock().next_seq
    }

    /// True while an entry from before `position` is in the queue.
    ///
    /// # Errors
    /// When the queue cannot be read.
    pub fn has_before(&self, position: u64) -> Result<bool, QueueError> {
        let first = self.entries().next().transpose()?;
        Ok(first.is_some_and(|entry| entry.seq < position))
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
    /// of namespaces that are held.
    pub fn ready(&self) -> u64 {
        let state = self.lock();
        let waiting = state.schedule.delayed_len() + state.schedule.held_len();
        state.pending.saturating_sub(waiting)
    }

    /// A number that grows while the queue works, for one who watches whether it is stuck. Never waits.
    /// `None` when nothing is being done, so that it cannot be stuck.
    pub fn progress(&self) -> Option<u64> {
        match self.state.try_lock() {
            Err(TryLockError::WouldBlock) => Some(self.progress.load(Ordering::Relaxed)),
            Ok(_) | Err(TryLockError::Poisoned(_)) => None,
        }
    }

    /// The first `limit` entries, the oldest first, without their documents.
    pub fn list(&self, limit: usize) -> Result<Vec<EntrySummary>, QueueError> {
        self.entries().take(limit).map(|entry| Ok(EntrySummary::from(&entry?))).collect()
    }

    /// The entry with this id.
    ///
    /// # Errors
    /// [`QueueError::NotFound`] when there is none; it may have gone to Atlas meanwhile.
    pub fn show(&self, id: Uuid) -> Result<Entry, QueueError> {
        self.entries()
            .find(|entry| entry.as_ref().is_ok_and(|entry| entry.id == id))
            .unwrap_or(Err(QueueError::NotFound(id)))
    }

    /// Every entry, in order.
    pub fn entries(&self) -> impl Iterator<Item = Result<Entry, QueueError>> + '_ {
        self.db.scan_prefix([ENTRY]).map(|item| {
            let (key, value) = item?;
            Ok(codec::decode_entry(seq_of(&key), &value)?)
        })
    }

    /// Writes everything to the disk and syncs it.
    ///
    /// # Errors
    /// [`QueueError::Disk`]; the queue then refuses further commits.
    pub fn flush(&self) -> Result<(), QueueError> {
        self.db.flush()?;
        Ok(())
    }

    pub(super) fn write(&self, state: &mut State, edit: Edit) -> Result<(), QueueError> {
        let (batch, seal) = edit.finish();
        match guarded(|| self.db.apply_batch(batch)) {
            Ok(Ok(())) => {
                state.seal = seal;
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

    pub(super) fn entry_bytes(&self, seq: u64) -> Result<Option<IVec>, QueueError> {
        Ok(self.db.get(entry_key(seq))?)
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

    /// Bytes that are worth their place on the disk.
    fn content_bytes(&self) -> u64 {
        self.pending_bytes + self.dead_bytes
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
            (None, Work::Schema(change)) => self.schedule.barrier_added(&change.namespaces(), seq),
            (Some(_) | None, work) => self.schedule.added(work.ns()),
        }
    }
}

/// Walks the entries that may be ready, in order of sequence: those that came back, then new ones.
struct Scan<'a> {
    queue: &'a Queue,
    ahead: Option<sled::Iter>,
    now_ms: u64,
}

impl<'a> Scan<'a> {
    fn new(queue: &'a Queue, now_ms: u64) -> Self {
        Self { queue, ahead: None, now_ms }
    }

    fn next(&mut self, state: &mut State) -> Result<Option<(u64, IVec)>, QueueError> {
        while let Some(seq) = state.schedule.next_ready(0, self.now_ms) {
            match self.queue.entry_bytes(seq)? {
                Some(value) => {
                    state.schedule.forget(seq);
                    return Ok(Some((seq, value)));
                }
                None => state.schedule.forget(seq),
            }
        }
        let cursor = state.schedule.cursor;
        let ahead = self
            .ahead
            .get_or_insert_with(|| self.queue.db.range(entry_key(cursor)..entry_key(u64::MAX)));
        match ahead.next().transpose()? {
            Some((key, value)) => {
                let seq = seq_of(&key);
                state.schedule.cursor = seq + 1;
                Ok(Some((seq, value)))
            }
            None => Ok(None),
        }
    }
}

fn barrier_or_own(work: &Work) -> Vec<Namespace> {
    match work {
        Work::Document { ns, .. } => vec![ns.clone()],
        Work::Schema(change) => change.namespaces(),
    }
}

pub(super) fn entry_key(seq: u64) -> [u8; 9] {
    numbered(ENTRY, seq)
}

pub(super) fn dead_key(seq: u64) -> [u8; 9] {
    numbered(DEAD, seq)
}

fn numbered(kind: u8, seq: u64) -> [u8; 9] {
    let mut key = [kind; 9];
    key[1..].copy_from_slice(&seq.to_be_bytes());
    key
}

pub(super) fn seq_of(key: &[u8]) -> u64 {
    key.get(1..9).and_then(|bytes| bytes.try_into().ok()).map_or(0, u64::from_be_bytes)
}

pub(super) fn meta_key(name: &str) -> Vec<u8> {
    [&[META], name.as_bytes()].concat()
}
