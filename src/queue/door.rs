//! The queue's door: takes the lock, lets one of the files beside it do the work on what it is given, and tells others
//! of it. What such a file may touch stands in its arguments: the [`Store`] and the [`StoreState`], for as long as the lock
//! is held. What needs neither, the [`Front`] answers.

use std::{
    collections::BTreeMap,
    io::{Read, Write},
    ops::Deref,
    sync::{Arc, Mutex, MutexGuard, TryLockError},
    vec,
};

use uuid::Uuid;

use super::{
    Ack, Batch, Choice, Committed, Entry, EntrySummary, Incoming, QueueError, QueueStats,
    Reservation, Retried, Work, ack, codec, commit, dead,
    dead_letter::{DeadLetter, DeadLetterSummary},
    layout::CHECKPOINT,
    lease,
    ledger::{Front, POISONED},
    look::{self, Oldest},
    metas, note,
    state::StoreState,
    store::Store,
    transfer::{self, Header, Whole},
};
use crate::model::{
    checkpoint::{Checkpoint, ClusterTime},
    document_key::DocumentKey,
    namespace::Namespace,
};

/// The durable, deduplicating queue. See the [module](super) for its contract.
///
/// All methods block on the disk for as long as sled does, and are called off the async threads; but those that look
/// at numbers and holds only, in [`Front`], which answer at once.
pub struct Queue {
    pub(super) store: Store,
    state: Mutex<StoreState>,
    front: Arc<Front>,
}

/// What is asked of the front is asked of the queue: whoever has one need not know what is answered where.
impl Deref for Queue {
    type Target = Front;

    fn deref(&self) -> &Front {
        &self.front
    }
}

impl Queue {
    pub(super) fn of(store: Store, state: StoreState) -> Self {
        let front = state.front().clone();
        Self { store, state: Mutex::new(state), front }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, StoreState> {
        self.state.lock().expect(POISONED)
    }

    /// A number that grows while the queue works, for one who watches whether it is stuck. Never waits.
    /// `None` when nothing is being done, so that it cannot be stuck.
    pub fn progress(&self) -> Option<u64> {
        match self.state.try_lock() {
            Err(TryLockError::WouldBlock) => Some(self.store.progress()),
            Ok(_) | Err(TryLockError::Poisoned(_)) => None,
        }
    }

    // --- what goes in and out ------------------------------------------------------------------

    /// Adds ops in the order of the stream, and the checkpoint that stands behind them, in
    /// atomic steps of which the last has the checkpoint (I1). What can be merged with what waits, is.
    ///
    /// # Errors
    /// After an error the first ops may be in the queue, never the checkpoint.
    pub fn commit(
        &self,
        incoming: Vec<Incoming>,
        checkpoint: Option<&Checkpoint>,
    ) -> Result<Committed, QueueError> {
        if let Some(barrier) = incoming.iter().position(|op| matches!(op.work, Work::Schema(_))) {
            self.lighten(&incoming[barrier..])?;
        }
        let mut incoming = incoming.into_iter();
        let mut all = self.commit_part(self.lock(), &mut incoming, checkpoint)?;
        while !incoming.as_slice().is_empty() {
            all += self.commit_part(self.lock(), &mut incoming, checkpoint)?;
        }
        Ok(all)
    }

    /// See [`commit::too_large`].
    pub(super) fn lighten(&self, behind: &[Incoming]) -> Result<(), QueueError> {
        let large = commit::too_large(&self.store, &self.lock(), behind)?;
        if !large.is_empty() {
            self.commit(large, None)?;
        }
        Ok(())
    }

    /// See [`commit::commit_part`].
    pub(super) fn commit_part(
        &self,
        mut state: MutexGuard<'_, StoreState>,
        incoming: &mut vec::IntoIter<Incoming>,
        checkpoint: Option<&Checkpoint>,
    ) -> Result<Committed, QueueError> {
        let committed = commit::commit_part(&self.store, &mut state, incoming, checkpoint)?;
        drop(state);
        self.front.tell();
        Ok(committed)
    }

    /// Turns what waits of these collections into `Refresh`, for a stream that has a gap: what was queued before it may be older
    /// than what Atlas gets by a comparison, and nothing later in the stream would put that right.
    pub fn refresh_pending(
        &self,
        cluster_time: ClusterTime,
        wall_ms: u64,
        is_of: impl Fn(&Namespace) -> bool,
    ) -> Result<(), QueueError> {
        let mut part = Vec::new();
        for entry in self.entries() {
            let Work::Document { ns, key, .. } = entry?.work else { continue };
            if is_of(&ns) {
                part.push(Incoming { work: Work::refresh(ns, key), cluster_time, wall_ms });
            }
            if part.len() >= 1_000 {
                self.commit(std::mem::take(&mut part), None)?;
            }
        }
        self.commit(part, None)?;
        Ok(())
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
        let mut looks = lease::SCAN_MAX;
        loop {
            if let Some(batch) = self.look(ops_max, bytes_max, now_ms, &mut looks)? {
                return Ok(batch);
            }
            // Who gives up a lock and takes it at once has it again before those who wait for it have woken up.
            std::thread::sleep(lease::LET_IN);
        }
    }

    /// See [`lease::stretch`].
    pub(super) fn look(
        &self,
        ops_max: usize,
        bytes_max: usize,
        now_ms: u64,
        looks: &mut usize,
    ) -> Result<Option<Batch>, QueueError> {
        lease::stretch(&self.store, &self.lock(), (ops_max, bytes_max), now_ms, looks)
    }

    /// Says how leased entries ended, in atomic steps: as one, as a rule, but what is given back may be merged with a
    /// large document each. An ack of what is not leased, or of another version than the leased one,
    /// changes nothing (I3).
    ///
    /// # Errors
    /// After an error those that are not acked are leased still.
    pub fn ack(&self, acks: &[Ack]) -> Result<(), QueueError> {
        let mut rest = acks.iter();
        self.ack_part(&mut rest)?;
        while !rest.as_slice().is_empty() {
            self.ack_part(&mut rest)?;
        }
        Ok(())
    }

    /// See [`ack::ack_part`].
    pub(super) fn ack_part(&self, acks: &mut std::slice::Iter<'_, Ack>) -> Result<(), QueueError> {
        ack::ack_part(&self.store, &mut self.lock(), acks)?;
        self.front.tell();
        Ok(())
    }

    /// Reserves documents of `ns`. Never waits, and may be done more than once for a document.
    pub fn reserve<'a>(
        &self,
        ns: &Namespace,
        keys: impl IntoIterator<Item = &'a DocumentKey>,
    ) -> Reservation {
        Reservation::of(&self.front, ns, keys)
    }

    /// The checkpoint of the last commit that had one.
    pub fn checkpoint(&self) -> Result<Option<Checkpoint>, QueueError> {
        let value = self.store.get(CHECKPOINT)?;
        Ok(value.map(|value| codec::decode_checkpoint(&value)).transpose()?)
    }

    /// Writes everything to the disk and syncs it.
    ///
    /// # Errors
    /// [`QueueError::Disk`]; the queue then refuses further commits.
    pub fn flush(&self) -> Result<(), QueueError> {
        self.or_failed(self.store.flush())
    }

    /// As [`flush`](Self::flush), and with the disk's own word for it: for what has no second copy anywhere. A queue
    /// that is not to persist promises nothing.
    ///
    /// # Errors
    /// As of [`flush`](Self::flush).
    pub fn make_durable(&self) -> Result<(), QueueError> {
        self.or_failed(self.store.make_durable())
    }

    fn or_failed(&self, written: Result<(), QueueError>) -> Result<(), QueueError> {
        if written.is_err() {
            self.lock().failed = true;
        }
        written
    }

    // --- what waits ----------------------------------------------------------------------------

    /// The queue in numbers.
    pub fn stats(&self) -> Result<QueueStats, QueueError> {
        let disk_bytes = self.store.disk_bytes()?;
        let oldest_ms = self.oldest_ms()?;
        let ledger = self.front.ledger();
        Ok(QueueStats {
            pending: ledger.pending,
            pending_bytes: ledger.pending_bytes,
            leased: ledger.schedule.leased_len(),
            delayed: ledger.schedule.delayed_len(),
            dead_letters: ledger.dead_len,
            oldest_ms,
            disk_bytes,
        })
    }

    /// When the oldest pending change was made, milliseconds since 1970.
    pub fn oldest_ms(&self) -> Result<Option<u64>, QueueError> {
        Ok(look::first(&self.store, &self.lock())?.map(|entry| entry.first_ms))
    }

    /// The same, and of what Atlas has not rejected, by one look.
    pub fn oldest(&self) -> Result<Oldest, QueueError> {
        look::oldest(&self.store, &self.lock())
    }

    /// True while an entry from before `position` is in the queue.
    pub fn has_before(&self, position: u64) -> bool {
        self.lock().blocks.next_from(0).is_some_and(|(seq, _)| seq < position)
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

    /// True when an entry of the document is pending or leased.
    ///
    /// # Errors
    /// When the queue cannot be read.
    pub fn holds(&self, ns: &Namespace, key: &DocumentKey) -> Result<bool, QueueError> {
        Ok(self.entry_of(ns, key)?.is_some())
    }

    /// The newest entry of a document, pending or leased.
    ///
    /// # Errors
    /// When the queue cannot be read.
    pub fn entry_of(&self, ns: &Namespace, key: &DocumentKey) -> Result<Option<Entry>, QueueError> {
        look::newest_of(&self.store, &self.lock(), ns, key)
    }

    /// Every entry, in order. Others may work with the queue meanwhile: what they add behind the last one
    /// that was handed out is met, what they remove before it is met is not.
    pub fn entries(&self) -> impl Iterator<Item = Result<Entry, QueueError>> + '_ {
        look::all(|seq| look::page(&self.store, &self.lock(), seq))
    }

    /// True when writing the files anew, as opening the queue does, would give back most of the disk that
    /// they take.
    ///
    /// # Errors
    /// When the queue cannot be read.
    pub fn is_mostly_empty(&self) -> Result<bool, QueueError> {
        let content = self.lock().blocks.stored();
        self.store.is_mostly_empty(content)
    }

    // --- dead letters --------------------------------------------------------------------------

    /// Every dead letter, the oldest first, one after the other: each may hold a document of 16 MB.
    pub fn letters(&self) -> impl Iterator<Item = Result<DeadLetter, QueueError>> + '_ {
        dead::all(|seq| dead::from(&self.store, &self.lock(), seq))
    }

    /// The first `limit` dead letters, the oldest first, without their documents.
    ///
    /// # Errors
    /// When the queue cannot be read.
    pub fn dead_letters(&self, limit: usize) -> Result<Vec<DeadLetterSummary>, QueueError> {
        self.letters().take(limit).map(|letter| Ok(DeadLetterSummary::from(&letter?))).collect()
    }

    /// Dead letters of each namespace that has any.
    ///
    /// # Errors
    /// When the queue cannot be read.
    pub fn dead_letters_by_namespace(&self) -> Result<BTreeMap<Namespace, u64>, QueueError> {
        let mut counts = BTreeMap::new();
        for letter in self.letters() {
            *counts.entry(letter?.entry.work.ns().clone()).or_insert(0) += 1;
        }
        Ok(counts)
    }

    /// The dead letter with this id.
    ///
    /// # Errors
    /// [`QueueError::NotFound`] when there is none; a later success may have cleared it.
    pub fn dead_letter(&self, id: Uuid) -> Result<DeadLetter, QueueError> {
        self.letters()
            .find(|letter| letter.as_ref().is_ok_and(|letter| letter.id() == id))
            .unwrap_or(Err(QueueError::NotFound(id)))
    }

    /// The dead letter of a document, if it has one.
    ///
    /// # Errors
    /// When the queue cannot be read.
    pub fn dead_letter_of(
        &self,
        ns: &Namespace,
        key: &DocumentKey,
    ) -> Result<Option<DeadLetter>, QueueError> {
        dead::of(&self.store, &self.lock(), ns, key)
    }

    /// Queues a dead letter's document again, to be tried as it is now (a `Refresh`). The letter stays until that succeeds.
    ///
    /// # Errors
    /// [`QueueError::NotRetried`] for a schema change: repeated after what has followed it, it would destroy newer data.
    /// [`QueueError::LeftOut`] for a collection that is not replicated by now.
    pub fn retry_dead_letter(&self, id: Uuid, replicated: Choice<'_>) -> Result<(), QueueError> {
        self.retry_letter((self.dead_letter(id)?.entry.seq, id), replicated)
    }

    /// As [`retry_dead_letter`](Self::retry_dead_letter), for every one in the `chosen` collections.
    ///
    /// # Errors
    /// When the queue fails; what was queued until then stays.
    pub fn retry_dead_letters(
        &self,
        chosen: Choice<'_>,
        replicated: Choice<'_>,
    ) -> Result<Retried, QueueError> {
        let (mut found, mut retried) = (Vec::new(), Retried::default());
        for letter in self.letters() {
            let entry = letter?.entry;
            match entry.work {
                Work::Document { ref ns, .. } if chosen(ns) => found.push((entry.seq, entry.id)),
                ref other if chosen(other.ns()) => retried.not_retried += 1,
                _ => {}
            }
        }
        for letter in found {
            match self.retry_letter(letter, replicated) {
                Ok(()) => retried.queued += 1,
                Err(QueueError::LeftOut { .. }) => retried.left_out += 1,
                // A success of the document was faster.
                Err(QueueError::NotFound(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(retried)
    }

    fn retry_letter(&self, letter: (u64, Uuid), among: Choice<'_>) -> Result<(), QueueError> {
        let state = self.lock();
        let mut incoming = vec![dead::again(&self.store, &state, letter, among)?].into_iter();
        self.commit_part(state, &mut incoming, None)?;
        Ok(())
    }

    /// Removes a dead letter for good. Atlas and the local database then differ in that document
    /// until it changes again or a full sync repairs it.
    pub fn discard_dead_letter(&self, id: Uuid) -> Result<(), QueueError> {
        let seq = self.dead_letter(id)?.entry.seq;
        dead::discard(&self.store, &mut self.lock(), (seq, id))
    }

    // --- what others keep beside it ------------------------------------------------------------

    /// The queue was put back to an older state: it is not to be used any more, and is not opened again as it is.
    /// Returns what it fails with.
    pub fn give_up_as_outdated(&self) -> QueueError {
        let noted = self.set_meta(note::OUTDATED, Some(&[])).and_then(|()| self.flush());
        noted.err().unwrap_or(QueueError::Outdated)
    }

    /// A small value kept beside the queue, such as the state of the first copy.
    pub fn meta(&self, name: &str) -> Result<Option<Vec<u8>>, QueueError> {
        metas::get(&self.store, name)
    }

    /// Sets, or with `None` removes, a small value kept beside the queue.
    pub fn set_meta(&self, name: &str, value: Option<&[u8]>) -> Result<(), QueueError> {
        self.update_metas(|| Ok([(name.to_owned(), value.map(<[u8]>::to_vec))].into()))
    }

    /// The small values kept beside the queue whose names begin so, by name.
    pub fn metas_below(&self, prefix: &str) -> Result<Vec<(String, Vec<u8>)>, QueueError> {
        metas::below(&self.store, prefix)
    }

    /// Replaces a small value kept beside the queue by what `change` makes of it, with nobody in between.
    pub fn update_meta(
        &self,
        name: &str,
        change: impl FnOnce(Option<&[u8]>) -> Result<Option<Vec<u8>>, QueueError>,
    ) -> Result<(), QueueError> {
        self.update_metas(|| {
            let before = self.meta(name)?;
            Ok([(name.to_owned(), change(before.as_deref())?)].into())
        })
    }

    /// Sets, or with `None` removes, the small values that `change` names, with nobody in between: it may read others
    /// before it does.
    pub fn update_metas(
        &self,
        change: impl FnOnce() -> Result<metas::Changes, QueueError>,
    ) -> Result<(), QueueError> {
        let mut state = self.lock();
        metas::set(&self.store, &mut state, change()?)
    }

    // --- from one machine to another -----------------------------------------------------------

    /// Writes the queue, dead letters included, which are tried again where they land.
    ///
    /// # Errors
    /// When the queue cannot be read, or `out` cannot be written.
    pub fn export(&self, out: &mut impl Write, whole: Whole) -> Result<u64, QueueError> {
        transfer::export(&self.store, self.entries(), self.letters(), out, whole)
    }

    /// Fills a queue that was never used with the entries of another, those of `wanted` collections, and at last its
    /// checkpoint (I1). Ends the queue: it is opened anew to be worked with.
    ///
    /// # Errors
    /// [`QueueError::NotImported`] when the queue was used, or an operation cannot be read. Nothing is in
    /// it then that counts: without a checkpoint everything is compared at the first start.
    pub fn move_in(
        self,
        file: impl Read,
        header: &Header,
        wanted: impl Fn(&Namespace) -> bool,
    ) -> Result<u64, QueueError> {
        if self.checkpoint()?.is_some() || self.pending().0 > 0 || self.dead_letters_len() > 0 {
            return Err(QueueError::NotImported("the queue was used before".to_owned()));
        }
        let put = |part: &mut Vec<Entry>, last: Option<&Header>| {
            transfer::put_all(&self.store, &mut self.lock(), part, last)
        };
        let n = transfer::move_in(file, header, wanted, self.position(), put)?;
        self.flush()?;
        Ok(n)
    }

    /// Removes all that waits, and ends the queue: it is opened anew to be worked with. The checkpoint
    /// stays, so the caller has noted before that everything is to be compared.
    pub fn clear(self) -> Result<u64, QueueError> {
        let removed = transfer::clear(&self.store, &mut self.lock())?;
        self.flush()?;
        Ok(removed)
    }
}
