//! Which entry may be leased next: order, retries, barriers and holds. No I/O and no clock.
//!
//! Entries are met in order of sequence by a cursor that walks the store. What is behind the cursor
//! and still there is in exactly one of these places:
//!
//! ```text
//!            ┌─ leased                  a worker has it
//! cursor ────┼─ ready                   came back, may go again
//!            ├─ delayed                 waits for its retry
//!            ├─ parked at a document    another entry of the document is leased, or it is reserved
//!            └─ parked at a namespace   behind a barrier, or the namespace is held or waits for the stream
//! ```
//!
//! What is parked at a namespace stays there when that is let go, until it is its turn. So a namespace that is held and
//! let go again and again costs no look at its entries, of which each is a read of the disk.
//!
//! # Why an entry may not go now
//!
//! | what keeps it | until | set by |
//! | --- | --- | --- |
//! | everything is held | `release_all` | the start, until it is acked whose Atlas this is and what is copied; an agent that leaves because it is not its own |
//! | its namespace is held | `release` | a copy or a comparison of it |
//! | its namespace is not ours to write | `keep_apart` with others | another agent's lease in Atlas covers it |
//! | its namespace waits for the stream | `stream_reached`, `no_longer_behind` | capped collections, see below |
//! | another batch has entries of its namespace, or one that is parked goes first | that batch is acked; that one's turn | capped collections, and what is kept in order |
//! | a barrier of its namespace stands in front of it | the barrier is acked | the [line](super::lines) of the namespace |
//! | it is a barrier, and entries of its namespaces are in front | these are acked | likewise |
//! | another entry of its document is leased, or the document is reserved | an ack, or it is let go | a lease; a worker that takes the document out of Atlas |
//! | it waits for its retry | its time | an ack |
//!
//! # Capped collections
//!
//! Their order is the order of insertion, and what is inserted pushes out the oldest. So their entries go in their
//! order, one batch at a time ([`keep_in_order`](Schedule::keep_in_order)): nothing says so in an entry, so whoever
//! lists the collections, or applies a change of one, tells the schedule. Where Atlas may hold a later state than the
//! entries tell of (the agent was killed, or the collection was copied as it was later), a document that has given way
//! already would come back at the end and push out another; so they wait until the stream has been read that far
//! ([`wait_for_stream`](Schedule::wait_for_stream)). A document that goes and comes again stands where its last insert
//! arrived (`Entry::begin_anew`), and comes anew in Atlas, with all inserts that wait behind it (`worker/apply`). A copy
//! reads them in one piece, as they lie, and writes over what is there in that order (`sync/copy`); where much is not lost
//! they are made anew rather than compared (`sync/full`), and what they have thrown away is nothing that a count misses
//! (`sync/counts`).

use std::{collections::BTreeSet, sync::Arc};

use ahash::{HashMap, HashSet};

use super::{lines::Lines, turns::Knowledge};
use crate::model::{
    checkpoint::ClusterTime, event::SchemaChange, foreign::Foreign, namespace::Namespace,
};

#[derive(Default)]
pub struct Schedule {
    /// The first sequence number that has not been looked at.
    pub cursor: u64,
    ready: BTreeSet<u64>,
    delayed: BTreeSet<(u64, u64)>,
    leased: HashMap<u64, Leased>,
    leased_documents: HashSet<u64>,
    /// Documents whose entries stay, and how often each was reserved.
    reserved: HashMap<u64, u32>,
    parked_at_document: HashMap<u64, Vec<u64>>,
    parked_at_namespace: HashMap<Namespace, BTreeSet<u64>>,
    /// Namespaces whose parked entries may go, by the lowest of them, as it was when they were let go.
    open: BTreeSet<(u64, Namespace)>,
    /// How much there is of each namespace, and the barriers between it.
    pub lines: Lines,
    held: HashSet<Namespace>,
    /// Namespaces that are not ours to write.
    foreign: Arc<Foreign>,
    hold_all: bool,
    /// Namespaces whose entries wait until the stream has been read up to a time.
    behind: HashMap<Namespace, ClusterTime>,
    /// Namespaces whose entries go in their order.
    in_order: HashSet<Namespace>,
    /// Those of them whose documents stand in the order of their inserts.
    capped: HashSet<Namespace>,
    /// The last barrier that puts the name in order, while it is queued.
    ordered_from: HashMap<Namespace, u64>,
    /// How many entries of each namespace are leased.
    leased_of: HashMap<Namespace, u64>,
    /// Those of them that another batch has.
    busy: HashSet<Namespace>,
    /// Which collection has a name behind all that is queued, where somebody had to find out.
    pub knowledge: Knowledge,
}

/// What a worker has taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leased {
    pub version: u32,
    /// The document's hash; `None` for a barrier.
    pub document: Option<u64>,
    /// The entry that arrived for the document meanwhile, if no barrier is between the two. It is
    /// not the index's to know: the index knows the newest entry, which may stand behind a barrier.
    pub successor: Option<u64>,
    pub ns: Namespace,
    /// Its encoded size.
    pub bytes: usize,
}

impl Leased {
    pub fn is_barrier(&self) -> bool {
        self.document.is_none()
    }
}

/// The longest wait that a schedule may ask for (`worker.retry_delays`), with room for jitter.
const WAIT_MAX_MS: u64 = 2 * 60 * 60 * 1_000;

/// True when an entry need not wait any more. A time that is further ahead than any wait is from
/// before the clock was set back, and counts as reached: else the entry would wait for as long as the
/// clock was wrong.
pub fn is_due(due_ms: u64, now_ms: u64) -> bool {
    due_ms <= now_ms || due_ms > now_ms + WAIT_MAX_MS
}

impl Schedule {
    // --- what exists ---------------------------------------------------------------------------

    /// A new barrier, with the largest sequence number so far.
    pub fn barrier_added(&mut self, change: &SchemaChange, seq: u64) {
        self.lines.barrier_added(change, seq);
        self.knowledge.pass(change);
        // What is queued behind it must stand in its order already; what stands in front may.
        if let Some(ns) = change.makes_capped(|ns| self.capped.contains(ns)).cloned() {
            self.keep_inserts_in_order(&ns);
            self.ordered_from.insert(ns, seq);
        }
    }

    /// An entry is gone for good.
    pub fn removed(&mut self, ns: &Namespace, seq: u64) {
        if self.lines.removed(ns, seq) {
            self.unpark_namespace(ns);
        }
    }

    /// A barrier is gone for good.
    pub fn barrier_removed(&mut self, namespaces: &[Namespace], seq: u64) {
        for ns in namespaces {
            if self.ordered_from.get(ns) == Some(&seq) {
                self.ordered_from.remove(ns);
            }
            self.lines.barrier_removed(ns, seq);
            self.unpark_namespace(ns);
        }
    }

    // --- holds ---------------------------------------------------------------------------------

    /// Keeps the entries of a namespace from being leased, until [`release`](Self::release).
    pub fn hold(&mut self, ns: &Namespace) {
        self.held.insert(ns.clone());
    }

    pub fn release(&mut self, ns: &Namespace) {
        self.held.remove(ns);
        self.unpark_namespace(ns);
    }

    /// Keeps the entries of a namespace from being leased until the [stream](Self::stream_reached) has been read
    /// up to `until`. Releasing holds does not touch it.
    pub fn wait_for_stream(&mut self, ns: &Namespace, until: ClusterTime) {
        let behind = self.behind.entry(ns.clone()).or_default();
        *behind = until.max(*behind);
    }

    /// The stream has been read up to `time`, and all of it is queued. Returns the namespaces that need not wait
    /// for it any more.
    pub fn stream_reached(&mut self, time: ClusterTime) -> Vec<Namespace> {
        let there: Vec<_> =
            self.behind.extract_if(|_, until| *until <= time).map(|(ns, _)| ns).collect();
        for ns in &there {
            self.unpark_namespace(ns);
        }
        there
    }

    /// Keeps the entries of what is not ours from being leased. Other holds are not touched.
    pub fn keep_apart(&mut self, foreign: Arc<Foreign>) {
        self.foreign = foreign;
        self.unpark_all();
    }

    pub fn kept_apart(&self) -> Arc<Foreign> {
        self.foreign.clone()
    }

    /// Entries of the namespaces that are held on their own, are not ours, or wait for the stream.
    pub fn held_len(&self) -> u64 {
        if !self.foreign.is_empty() {
            let is_kept = |ns: &Namespace| {
                self.held.contains(ns) || self.behind.contains_key(ns) || self.foreign.has(ns)
            };
            let kept = self.lines.lens().map(|(ns, _)| ns).filter(|ns| is_kept(ns));
            return kept.map(|ns| self.lines.documents_of(ns)).sum();
        }
        let behind = self.behind.keys().filter(|ns| !self.held.contains(*ns));
        self.held.iter().chain(behind).map(|ns| self.lines.documents_of(ns)).sum()
    }

    /// Holds every namespace, known or not, until [`release_all`](Self::release_all). Holds on single
    /// ones are not touched by either.
    pub fn hold_all(&mut self) {
        self.hold_all = true;
    }

    pub fn holds_all(&self) -> bool {
        self.hold_all
    }

    pub fn release_all(&mut self) {
        self.hold_all = false;
        self.unpark_all();
    }

    // --- leasing -------------------------------------------------------------------------------

    /// Takes out the lowest entry that came back and may be ready: whether it is, [`admit`](Self::admit) tells.
    pub fn next_ready(&mut self, now_ms: u64) -> Option<u64> {
        while let Some(&(due_ms, seq)) = self.delayed.first()
            && is_due(due_ms, now_ms)
        {
            self.delayed.remove(&(due_ms, seq));
            self.ready.insert(seq);
        }
        while let Some(&(due_ms, seq)) = self.delayed.last()
            && is_due(due_ms, now_ms)
        {
            self.delayed.remove(&(due_ms, seq));
            self.ready.insert(seq);
        }
        match (self.ready.first().copied(), self.next_parked()) {
            (Some(ready), parked) if parked.as_ref().is_none_or(|(seq, _)| ready < *seq) => {
                self.ready.remove(&ready);
                Some(ready)
            }
            (_, Some((seq, ns))) => {
                self.open.pop_first();
                let parked = self.parked_at_namespace.get_mut(&ns).expect("it was just met");
                parked.remove(&seq);
                match parked.first() {
                    Some(next) => drop(self.open.insert((*next, ns))),
                    None => drop(self.parked_at_namespace.remove(&ns)),
                }
                Some(seq)
            }
            (_, None) => None,
        }
    }

    /// The lowest parked entry of a namespace that was let go and is not blocked again.
    fn next_parked(&mut self) -> Option<(u64, Namespace)> {
        while let Some((seq, ns)) = self.open.first().cloned() {
            let first = self.parked_at_namespace.get(&ns).and_then(BTreeSet::first).copied();
            if first == Some(seq) && !self.is_blocked(&ns, seq) {
                return Some((seq, ns));
            }
            // Where the lowest is blocked, so are all behind it, until what blocks them lets them go.
            self.open.pop_first();
            self.open.extend(first.filter(|first| *first != seq).map(|first| (first, ns)));
        }
        None
    }

    /// The next time at which a delayed entry is due.
    pub fn next_due(&self) -> Option<u64> {
        self.delayed.first().map(|&(due_ms, _)| due_ms)
    }

    /// True when the entry may be leased now. Otherwise it is parked where its obstacle will free it.
    pub fn admit(&mut self, namespaces: &[Namespace], seq: u64, document: Option<u64>) -> bool {
        self.ready.remove(&seq);
        if let Some(ns) = namespaces.iter().find(|ns| self.is_blocked(ns, seq)) {
            self.parked_at_namespace.entry(ns.clone()).or_default().insert(seq);
            return false;
        }
        // Let go between the moment at which this one was met and now: those before it go first.
        if let Some(ns) = namespaces.iter().find(|ns| self.overtakes(ns, seq)) {
            self.parked_at_namespace.entry(ns.clone()).or_default().insert(seq);
            self.unpark_namespace(ns);
            return false;
        }
        if let Some(document) = document
            && (self.leased_documents.contains(&document) || self.reserved.contains_key(&document))
        {
            self.parked_at_document.entry(document).or_default().push(seq);
            return false;
        }
        true
    }

    /// True where entries go in their order, and one in front of this is parked.
    fn overtakes(&self, ns: &Namespace, seq: u64) -> bool {
        let first = self.parked_at_namespace.get(ns).and_then(BTreeSet::first);
        self.in_order.contains(ns) && first.is_some_and(|first| *first < seq)
    }

    fn is_blocked(&self, ns: &Namespace, seq: u64) -> bool {
        let is_kept = self.held.contains(ns)
            || self.behind.contains_key(ns)
            || (!self.foreign.is_empty() && self.foreign.has(ns));
        if self.hold_all || is_kept || self.busy.contains(ns) {
            return true;
        }
        self.lines.is_blocked(ns, seq)
    }

    /// Entries of `ns` go in their order, one batch at a time; or as any others. That holds for a batch that is being
    /// gathered, too: what it parked for another one's sake nobody would let go again.
    pub fn keep_in_order(&mut self, ns: &Namespace, on: bool) {
        let becomes_capped = self.ordered_from.contains_key(ns);
        if !becomes_capped {
            self.capped.remove(ns);
        }
        if on {
            self.in_order.insert(ns.clone());
            if self.leased_of.contains_key(ns) {
                self.busy.insert(ns.clone());
            }
        } else if !becomes_capped && self.in_order.remove(ns) {
            self.busy.remove(ns);
            self.unpark_namespace(ns);
        }
    }

    /// As [`keep_in_order`](Self::keep_in_order), of a collection that keeps the order of insertion. In order it stays while
    /// a barrier waits that puts it so.
    pub fn keep_inserts_in_order(&mut self, ns: &Namespace) {
        self.keep_in_order(ns, true);
        self.capped.insert(ns.clone());
    }

    pub fn is_capped(&self, ns: &Namespace) -> bool {
        self.capped.contains(ns)
    }

    /// True while a batch has entries of the namespace.
    pub fn is_leased_of(&self, ns: &Namespace) -> bool {
        self.leased_of.contains_key(ns)
    }

    pub fn is_in_order(&self, ns: &Namespace) -> bool {
        self.in_order.contains(ns)
    }

    /// What is leased from here on belongs to one batch.
    pub fn batch_begins(&mut self) {
        self.busy.clear();
        let taken = self.in_order.iter().filter(|ns| self.leased_of.contains_key(*ns));
        self.busy.extend(taken.cloned());
    }

    pub fn lease(&mut self, seq: u64, lease: Leased) {
        match self.leased_of.get_mut(&lease.ns) {
            Some(leased) => *leased += 1,
            None => drop(self.leased_of.insert(lease.ns.clone(), 1)),
        }
        if let Some(document) = lease.document {
            self.leased_documents.insert(document);
        }
        self.leased.insert(seq, lease);
    }

    pub fn leased(&self, seq: u64) -> Option<&Leased> {
        self.leased.get(&seq)
    }

    /// Remembers what has arrived for a leased document.
    pub fn succeeded(&mut self, leased: u64, successor: u64) {
        if let Some(lease) = self.leased.get_mut(&leased) {
            lease.successor = Some(successor);
        }
    }

    pub fn leased_len(&self) -> u64 {
        self.leased.len() as u64
    }

    pub fn delayed_len(&self) -> u64 {
        self.delayed.len() as u64
    }

    /// Ends a lease; where the entry goes from here is the caller's to say.
    pub fn unlease(&mut self, seq: u64) {
        let Some(Leased { ns, document, .. }) = self.leased.remove(&seq) else {
            return;
        };
        if let Some(leased) = self.leased_of.get_mut(&ns) {
            *leased -= 1;
            if *leased == 0 {
                self.leased_of.remove(&ns);
                if self.in_order.contains(&ns) {
                    self.unpark_namespace(&ns);
                }
            }
        }
        if let Some(document) = document {
            self.leased_documents.remove(&document);
            if let Some(parked) = self.parked_at_document.remove(&document) {
                self.ready.extend(parked);
            }
        }
    }

    /// Keeps the entries of a document from being leased. One that is leased already stays so.
    pub fn reserve(&mut self, document: u64) {
        *self.reserved.entry(document).or_default() += 1;
    }

    /// Ends one [`reserve`](Self::reserve).
    pub fn unreserve(&mut self, document: u64) {
        let Some(times) = self.reserved.get_mut(&document) else {
            return;
        };
        *times -= 1;
        if *times == 0 {
            self.reserved.remove(&document);
            if let Some(parked) = self.parked_at_document.remove(&document) {
                self.ready.extend(parked);
            }
        }
    }

    /// The entry may go again, at once or at `due_ms`.
    pub fn requeue(&mut self, seq: u64, due_ms: Option<u64>) {
        match due_ms {
            Some(due_ms) => {
                self.delayed.insert((due_ms, seq));
            }
            None => {
                self.ready.insert(seq);
            }
        }
    }

    /// The entry is gone: drops it from `ready`. Elsewhere it is skipped when it is met.
    pub fn forget(&mut self, seq: u64) {
        self.ready.remove(&seq);
    }

    /// What was this entry, which no worker has and which waits until `due_ms`, is the one with the number `anew`.
    pub fn began_anew(&mut self, ns: &Namespace, (seq, due_ms): (u64, u64), anew: u64) {
        self.forget(seq);
        if let Some(parked) = self.parked_at_namespace.get_mut(ns) {
            parked.remove(&seq);
        }
        self.delayed.remove(&(due_ms, seq));
        if let Some(lease) = self.leased.values_mut().find(|lease| lease.successor == Some(seq)) {
            lease.successor = Some(anew);
        }
    }

    fn unpark_namespace(&mut self, ns: &Namespace) {
        let first = self.parked_at_namespace.get(ns).and_then(BTreeSet::first);
        self.open.extend(first.map(|first| (*first, ns.clone())));
    }

    fn unpark_all(&mut self) {
        let firsts = self.parked_at_namespace.iter();
        let firsts = firsts.filter_map(|(ns, parked)| Some((*parked.first()?, ns.clone())));
        self.open.extend(firsts);
    }
}

#[cfg(test)]
mod tests;
