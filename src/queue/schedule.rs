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
//! A barrier is an entry too. It may go when nothing is left of its namespaces before it, and what
//! stands behind it may go when it is gone. So per namespace only counts are kept, not lists.
//!
//! Some barriers are *turns*: from there on the name means another collection. A rename does not move what waits in
//! front of it. Its entries keep their place, and whoever reads their documents asks what their collection
//! [is called now](Schedule::called_now), by the turns that stand behind them: so a rename costs nothing, however
//! much waits, and what stood in front of an earlier one is not touched by a later one.

use std::{
    collections::{BTreeSet, VecDeque},
    sync::Arc,
};

use ahash::{HashMap, HashSet};

use super::turns::{Knowledge, Turn};
use crate::model::{
    checkpoint::ClusterTime, event::SchemaChange, foreign::Foreign, namespace::Namespace,
};

#[derive(Default)]
pub struct Schedule {
    /// The first sequence number that has not been looked at.
    pub cursor: u64,
    ready: BTreeSet<u64>,
    delayed: BTreeSet<(u64, u64)>,
    leased: HashMap<u64, Lease>,
    leased_documents: HashSet<u64>,
    /// Documents whose entries stay, and how often each was reserved.
    reserved: HashMap<u64, u32>,
    parked_at_document: HashMap<u64, Vec<u64>>,
    parked_at_namespace: HashMap<Namespace, Vec<u64>>,
    lines: HashMap<Namespace, Line>,
    held: HashSet<Namespace>,
    /// Namespaces that are not ours to write.
    foreign: Arc<Foreign>,
    hold_all: bool,
    /// Namespaces whose entries wait until the stream has been read up to a time.
    behind: HashMap<Namespace, ClusterTime>,
    /// Namespaces whose entries go in their order.
    in_order: HashSet<Namespace>,
    /// How many entries of each namespace are leased.
    leased_of: HashMap<Namespace, u64>,
    /// Those of them that another batch has.
    busy: HashSet<Namespace>,
    /// Which collection has a name behind all that is queued, where somebody had to find out.
    pub knowledge: Knowledge,
}

/// What a worker has taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
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

/// The entries of one namespace: so many before each barrier, so many behind the last.
#[derive(Default)]
struct Line {
    barriers: VecDeque<Barrier>,
    behind: u64,
}

struct Barrier {
    seq: u64,
    ahead: u64,
    turn: Option<Turn>,
}

impl Line {
    fn len(&self) -> u64 {
        self.behind + self.barriers.iter().map(|barrier| barrier.ahead + 1).sum::<u64>()
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

    /// A new entry, with the largest sequence number so far.
    pub fn added(&mut self, ns: &Namespace) {
        match self.lines.get_mut(ns) {
            Some(line) => line.behind += 1,
            None => drop(self.lines.insert(ns.clone(), Line { behind: 1, ..Line::default() })),
        }
    }

    /// A new barrier, with the largest sequence number so far.
    pub fn barrier_added(&mut self, change: &SchemaChange, seq: u64) {
        for ns in change.namespaces() {
            let turn = Turn::of(change, &ns);
            let line = self.lines.entry(ns).or_default();
            let ahead = std::mem::take(&mut line.behind);
            line.barriers.push_back(Barrier { seq, ahead, turn });
        }
        self.knowledge.pass(change);
    }

    /// An entry is gone for good.
    pub fn removed(&mut self, ns: &Namespace, seq: u64) {
        let Some(line) = self.lines.get_mut(ns) else {
            return;
        };
        match line.barriers.iter_mut().find(|barrier| barrier.seq > seq) {
            Some(barrier) => {
                barrier.ahead -= 1;
                if barrier.ahead == 0 {
                    self.unpark_namespace(ns);
                }
            }
            None => line.behind -= 1,
        }
        self.forget_empty(ns);
    }

    /// A barrier is gone for good.
    pub fn barrier_removed(&mut self, namespaces: &[Namespace], seq: u64) {
        for ns in namespaces {
            if let Some(line) = self.lines.get_mut(ns)
                && let Some(at) = line.barriers.iter().position(|barrier| barrier.seq == seq)
            {
                // Only a front barrier is ever leased; one that a person removes may stand anywhere.
                let gone = line.barriers.remove(at).expect("position is within");
                match line.barriers.get_mut(at) {
                    Some(next) => next.ahead += gone.ahead,
                    None => line.behind += gone.ahead,
                }
            }
            self.unpark_namespace(ns);
            self.forget_empty(ns);
        }
    }

    fn forget_empty(&mut self, ns: &Namespace) {
        if self.lines.get(ns).is_some_and(|line| line.behind == 0 && line.barriers.is_empty()) {
            self.lines.remove(ns);
        }
    }

    /// True when a barrier stands behind `seq`, so that a new op must not be merged into it.
    pub fn is_closed(&self, ns: &Namespace, seq: u64) -> bool {
        self.lines.get(ns).and_then(|line| line.barriers.back()).is_some_and(|last| last.seq > seq)
    }

    /// True when a turn stands behind `seq`: the name means another collection by then.
    pub fn has_turned(&self, ns: &Namespace, seq: u64) -> bool {
        self.turn_behind(ns, seq).is_some()
    }

    /// The name that the collection of an entry of `ns` has behind all that is queued. `None` when it is gone.
    pub fn called_now(&self, ns: &Namespace, seq: u64) -> Option<Namespace> {
        let (mut name, mut seq) = (ns, seq);
        while let Some((at, turn)) = self.turn_behind(name, seq) {
            match turn {
                Turn::Gone => return None,
                Turn::Renamed(to) => (name, seq) = (to, at),
            }
        }
        Some(name.clone())
    }

    /// The first turn behind `seq`.
    fn turn_behind(&self, ns: &Namespace, seq: u64) -> Option<(u64, &Turn)> {
        let barriers = &self.lines.get(ns)?.barriers;
        let from = barriers.partition_point(|barrier| barrier.seq <= seq);
        barriers.range(from..).find_map(|barrier| Some((barrier.seq, barrier.turn.as_ref()?)))
    }

    /// Entries of the namespace, barriers included.
    pub fn len_of(&self, ns: &Namespace) -> u64 {
        self.lines.get(ns).map_or(0, Line::len)
    }

    /// Every namespace that has entries, with their number.
    pub fn lens(&self) -> impl Iterator<Item = (&Namespace, u64)> {
        self.lines.iter().map(|(ns, line)| (ns, line.len()))
    }

    /// Those of the namespaces, and what waits behind a barrier that it has in common with one of them.
    pub fn behind(&self, mut namespaces: BTreeSet<Namespace>) -> BTreeSet<Namespace> {
        let mut barriers = BTreeSet::new();
        loop {
            let before = (namespaces.len(), barriers.len());
            for (ns, line) in &self.lines {
                let seqs = line.barriers.iter().map(|barrier| barrier.seq);
                if namespaces.contains(ns) || seqs.clone().any(|seq| barriers.contains(&seq)) {
                    namespaces.insert(ns.clone());
                    barriers.extend(seqs);
                }
            }
            if before == (namespaces.len(), barriers.len()) {
                return namespaces;
            }
        }
    }

    /// True when any barrier of the namespace is left.
    pub fn has_barrier(&self, ns: &Namespace) -> bool {
        self.lines.get(ns).is_some_and(|line| !line.barriers.is_empty())
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
        for (_, parked) in self.parked_at_namespace.drain() {
            self.ready.extend(parked);
        }
    }

    pub fn kept_apart(&self) -> Arc<Foreign> {
        self.foreign.clone()
    }

    /// Entries of the namespaces that are held on their own, are not ours, or wait for the stream.
    pub fn held_len(&self) -> u64 {
        let of = |line: &Line| line.behind + line.barriers.iter().map(|b| b.ahead).sum::<u64>();
        if !self.foreign.is_empty() {
            let is_kept = |ns: &Namespace| {
                self.held.contains(ns) || self.behind.contains_key(ns) || self.foreign.has(ns)
            };
            return self.lines.iter().filter(|(ns, _)| is_kept(ns)).map(|(_, line)| of(line)).sum();
        }
        let behind = self.behind.keys().filter(|ns| !self.held.contains(*ns));
        self.held.iter().chain(behind).filter_map(|ns| self.lines.get(ns)).map(of).sum()
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
        for (_, parked) in self.parked_at_namespace.drain() {
            self.ready.extend(parked);
        }
    }

    // --- leasing -------------------------------------------------------------------------------

    /// Moves what has become due to `ready`, and returns the lowest ready entry from `from` on.
    pub fn next_ready(&mut self, from: u64, now_ms: u64) -> Option<u64> {
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
        self.ready.range(from..).next().copied()
    }

    /// The next time at which a delayed entry is due.
    pub fn next_due(&self) -> Option<u64> {
        self.delayed.first().map(|&(due_ms, _)| due_ms)
    }

    /// True when the entry may be leased now. Otherwise it is parked where its obstacle will free it.
    pub fn admit(&mut self, namespaces: &[Namespace], seq: u64, document: Option<u64>) -> bool {
        self.ready.remove(&seq);
        if let Some(ns) = namespaces.iter().find(|ns| self.is_blocked(ns, seq)) {
            self.parked_at_namespace.entry(ns.clone()).or_default().push(seq);
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

    fn is_blocked(&self, ns: &Namespace, seq: u64) -> bool {
        let is_kept = self.held.contains(ns)
            || self.behind.contains_key(ns)
            || (!self.foreign.is_empty() && self.foreign.has(ns));
        if self.hold_all || is_kept || self.busy.contains(ns) {
            return true;
        }
        match self.lines.get(ns).and_then(|line| line.barriers.front()) {
            Some(barrier) if barrier.seq == seq => barrier.ahead > 0,
            Some(barrier) => barrier.seq < seq,
            None => false,
        }
    }

    /// Entries of `ns` go in their order, one batch at a time; or as any others.
    pub fn keep_in_order(&mut self, ns: &Namespace, on: bool) {
        if on {
            self.in_order.insert(ns.clone());
        } else if self.in_order.remove(ns) {
            self.unpark_namespace(ns);
        }
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

    pub fn lease(&mut self, seq: u64, lease: Lease) {
        match self.leased_of.get_mut(&lease.ns) {
            Some(leased) => *leased += 1,
            None => drop(self.leased_of.insert(lease.ns.clone(), 1)),
        }
        if let Some(document) = lease.document {
            self.leased_documents.insert(document);
        }
        self.leased.insert(seq, lease);
    }

    pub fn leased(&self, seq: u64) -> Option<&Lease> {
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
        let Some(Lease { ns, document, .. }) = self.leased.remove(&seq) else {
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

    fn unpark_namespace(&mut self, ns: &Namespace) {
        if let Some(parked) = self.parked_at_namespace.remove(ns) {
            self.ready.extend(parked);
        }
    }
}
