//! What is known of the queue without a look at the disk: its numbers, and which entry may go next.
//!
//! # The queue's locks
//!
//! - The *state* (`StoreState`): where everything is in the store. Whoever reads or writes entries holds it meanwhile, which
//!   may take seconds on a slow disk. So what takes it blocks, and is called off the async threads.
//! - The *ledger*: nobody holds it while the disk is read or written. So what needs nothing else answers at once, and
//!   may be asked by async code, while others walk through the store. All of it stands in this file, which
//!   `tests/tidy.rs` knows.
//!
//! Whoever needs both takes the state first. What stands in the store (numbers, lines, leases) changes under both locks,
//! so that it stays as it is for one who holds the state. Holds, reservations and what was seen of names change under
//! the ledger's alone: an entry is admitted and leased in one step under it, and once `hold` has returned none is
//! leased any more.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard},
};

use tokio::sync::Notify;

use super::{
    Work,
    index::Hasher,
    schedule::{Schedule, is_due},
    turns::Proof,
};
use crate::model::{
    checkpoint::ClusterTime, document_key::DocumentKey, event::CollectionId, foreign::Foreign,
    namespace::Namespace,
};

/// The time of the next retry, milliseconds since 1970, if there is one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NextDue(pub Option<u64>);

/// See the [module](self).
#[derive(Default)]
pub struct Ledger {
    pub schedule: Schedule,
    pub next_seq: u64,
    pub pending: u64,
    pub pending_bytes: u64,
    pub dead_len: u64,
}

impl Ledger {
    /// No entry is both delayed and leased, so that this is exact. Held ones may be either, and are not taken off: what
    /// is taken off twice would hide others, which would then wait for as long as a namespace is held.
    fn waiting(&self) -> u64 {
        self.pending.saturating_sub(self.schedule.delayed_len() + self.schedule.leased_len())
    }

    /// One more entry waits, of so many bytes.
    pub fn count(&mut self, seq: u64, bytes: usize) {
        self.next_seq = self.next_seq.max(seq + 1);
        self.pending += 1;
        self.pending_bytes += bytes as u64;
    }

    /// A new entry, with the largest sequence number so far.
    pub fn appeared(&mut self, work: &Work, seq: u64) {
        self.pending += 1;
        match work {
            Work::Schema(change) => self.schedule.barrier_added(change, seq),
            Work::Document { ns, .. } => self.schedule.lines.added(ns),
        }
    }

    /// What was the entry `seq` of `ns`, as [`Schedule::began_anew`] has it, is another one, which has appeared.
    pub fn began_anew(&mut self, ns: &Namespace, (seq, due_ms): (u64, u64), anew: u64) {
        self.pending -= 1;
        self.schedule.began_anew(ns, (seq, due_ms), anew);
        self.schedule.removed(ns, seq);
    }

    /// True for an entry that nothing is merged into: a worker has it, or a barrier stands behind it.
    pub fn stays(&self, ns: &Namespace, seq: u64) -> bool {
        self.schedule.leased(seq).is_some() || self.schedule.lines.is_closed(ns, seq)
    }
}

/// The front of the queue: whatever is asked of it is answered at once. A [`Queue`](super::Queue) has one, and answers as
/// it does.
pub struct Front {
    ledger: Mutex<Ledger>,
    hasher: Hasher,
    changed: Notify,
}

impl Front {
    pub(super) fn new(hasher: Hasher) -> Self {
        Self { ledger: Mutex::default(), hasher, changed: Notify::new() }
    }

    pub(super) fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().expect(POISONED)
    }

    /// The hash under which a document is leased, and reserved.
    pub(super) fn hash_of(&self, ns: &Namespace, key: &DocumentKey) -> u64 {
        self.hasher.hash_of(ns, key)
    }

    /// Wakes up whoever waits for a [change](Self::changed).
    pub(super) fn tell(&self) {
        self.changed.notify_waiters();
    }

    /// The number that the next entry will have: all that is in the queue now is before it.
    pub fn position(&self) -> u64 {
        self.ledger().next_seq
    }

    /// The number of dead letters, without touching the disk.
    pub fn dead_letters_len(&self) -> u64 {
        self.ledger().dead_len
    }

    /// Entries not yet in Atlas and their encoded bytes, without touching the disk.
    pub fn pending(&self) -> (u64, u64) {
        let ledger = self.ledger();
        (ledger.pending, ledger.pending_bytes)
    }

    /// Entries that may go to Atlas as soon as a worker has time: not those that wait for a retry, nor those
    /// of namespaces that are held or wait for the stream.
    pub fn ready(&self) -> u64 {
        let ledger = self.ledger();
        let waiting = ledger.schedule.delayed_len() + ledger.schedule.held_len();
        ledger.pending.saturating_sub(waiting)
    }

    /// Entries that no worker has and that wait for no retry. Some may be held, or stand behind a barrier: only a lease
    /// can tell.
    pub fn waiting(&self) -> u64 {
        self.ledger().waiting()
    }

    /// When a lease may find something, if there is nothing for one now: the time at which a retry is due, milliseconds
    /// since 1970. Looks at nothing but numbers.
    pub fn idle_until(&self, now_ms: u64) -> Option<NextDue> {
        let ledger = self.ledger();
        let due = ledger.schedule.next_due();
        let is_idle = ledger.waiting() == 0 && due.is_none_or(|due| !is_due(due, now_ms));
        is_idle.then_some(NextDue(due))
    }

    /// Entries of each namespace that has any. One that changes two namespaces counts for both.
    pub fn pending_by_namespace(&self) -> BTreeMap<Namespace, u64> {
        let ledger = self.ledger();
        ledger.schedule.lines.lens().map(|(ns, n)| (ns.clone(), n)).collect()
    }

    /// Entries of `ns`, without touching the disk.
    pub fn pending_of(&self, ns: &Namespace) -> u64 {
        self.ledger().schedule.lines.len_of(ns)
    }

    /// Entries of `ns` are leased in their order, one batch at a time.
    pub fn keep_in_order(&self, ns: &Namespace) {
        self.ledger().schedule.keep_in_order(ns, true);
    }

    /// Entries of `ns` are leased in their order, one batch at a time, and stand where their documents were inserted last: it
    /// is a capped collection. Or as any others.
    pub fn keep_capped_in_order(&self, ns: &Namespace, is_capped: bool) {
        let schedule = &mut self.ledger().schedule;
        if is_capped {
            schedule.keep_inserts_in_order(ns);
        } else {
            schedule.keep_in_order(ns, false);
        }
    }

    /// True while a batch has entries of `ns`.
    pub fn is_leased(&self, ns: &Namespace) -> bool {
        self.ledger().schedule.is_leased_of(ns)
    }

    /// True for a namespace of [`keep_in_order`](Self::keep_in_order), or [a capped one](Self::keep_capped_in_order).
    pub fn is_in_order(&self, ns: &Namespace) -> bool {
        self.ledger().schedule.is_in_order(ns)
    }

    /// True for [a capped one](Self::keep_capped_in_order).
    pub fn is_capped(&self, ns: &Namespace) -> bool {
        self.ledger().schedule.is_capped(ns)
    }

    /// Keeps the entries of `ns` from being leased until [`release`](Self::release).
    pub fn hold(&self, ns: &Namespace) {
        self.ledger().schedule.hold(ns);
    }

    /// Keeps every entry from being leased until [`release_all`](Self::release_all).
    pub fn hold_all(&self) {
        self.ledger().schedule.hold_all();
    }

    /// Keeps the entries of `ns` from being leased until the stream has been read up to `until`: Atlas may
    /// hold a later state than they tell of, which only what follows them can say. For a capped collection:
    /// a document that has given way already would come back at its end, and push out another.
    pub fn wait_for_stream(&self, ns: &Namespace, until: ClusterTime) {
        self.ledger().schedule.wait_for_stream(ns, until);
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
        let namespaces = self.ledger().schedule.stream_reached(time);
        if !namespaces.is_empty() {
            self.tell();
        }
        namespaces
    }

    /// Lets the entries of `ns` go again.
    pub fn release(&self, ns: &Namespace) {
        self.ledger().schedule.release(ns);
        self.tell();
    }

    /// Ends [`hold_all`](Self::hold_all). Namespaces that are held on their own stay so.
    pub fn release_all(&self) {
        self.ledger().schedule.release_all();
        self.tell();
    }

    /// True when a barrier of `ns` waits or is being applied.
    pub fn has_barrier(&self, ns: &Namespace) -> bool {
        self.ledger().schedule.lines.has_barrier(ns)
    }

    /// Completes at the next commit, ack or release, and when what waited for the stream may go. To
    /// miss none, make the future before looking at the queue.
    pub fn changed(&self) -> tokio::sync::futures::Notified<'_> {
        self.changed.notified()
    }

    /// Keeps the entries of what is not ours from being leased, and lets go what was so before.
    pub fn keep_apart(&self, foreign: Foreign) {
        self.ledger().schedule.keep_apart(Arc::new(foreign));
        self.tell();
    }

    /// What is not ours to write.
    pub fn kept_apart(&self) -> Arc<Foreign> {
        self.ledger().schedule.kept_apart()
    }

    /// True when a rename or a drop stands behind the entry `seq` of `ns`: the name means another collection by then.
    pub fn has_turned(&self, ns: &Namespace, seq: u64) -> bool {
        self.ledger().schedule.lines.has_turned(ns, seq)
    }

    /// All that waits when the next changes of these namespaces do: they, and what is renamed from or to them behind
    /// that.
    pub fn behind(&self, namespaces: BTreeSet<Namespace>) -> BTreeSet<Namespace> {
        if namespaces.is_empty() {
            namespaces
        } else {
            self.ledger().schedule.lines.behind(namespaces)
        }
    }

    /// What the collections of entries of `ns` are called now, as far as the stream was read. `None` for one that
    /// is gone.
    pub fn called_now(
        &self,
        ns: &Namespace,
        seqs: impl Iterator<Item = u64>,
    ) -> Vec<Option<Namespace>> {
        let ledger = self.ledger();
        seqs.map(|seq| ledger.schedule.lines.called_now(ns, seq)).collect()
    }

    /// Whether `id`, which is called `name` locally, is the collection that entries are for that are
    /// [called](Self::called_now) so. All that was made up to `read` is queued.
    pub fn proof(&self, name: &Namespace, id: Option<CollectionId>, read: ClusterTime) -> Proof {
        self.ledger().schedule.knowledge.proof(name, id, read)
    }

    /// True when there is no [proof](Self::proof) before the stream is read further than `read`.
    pub fn waits_for_proof(&self, name: &Namespace, read: ClusterTime) -> bool {
        self.ledger().schedule.knowledge.waits(name, read)
    }

    /// Remembers that `id` had the name `name` locally at `at` or before. Not when the entry of `ns`, which was called
    /// so before anybody looked, has another name meanwhile: then `id` may have been seen on the other side of a turn.
    pub fn seen(
        &self,
        (ns, seq): (&Namespace, u64),
        name: &Namespace,
        id: Option<CollectionId>,
        at: ClusterTime,
    ) {
        let mut ledger = self.ledger();
        if ledger.schedule.lines.called_now(ns, seq).as_ref() == Some(name) {
            ledger.schedule.knowledge.see(name, id, at);
        }
    }
}

/// What a panic of ours has left half done must not be worked with.
pub const POISONED: &str = "the queue's lock is never held across a panic of ours";
