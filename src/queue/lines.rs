//! The line of each namespace: how much waits, the barriers in between, and what its name means behind them.
//!
//! A barrier is an entry too. It may go when nothing is left of its namespaces before it, and what
//! stands behind it may go when it is gone. So per namespace only counts are kept, not lists.
//!
//! Some barriers are *turns*: from there on the name means another collection. A rename does not move what waits in
//! front of it. Its entries keep their place, and whoever reads their documents asks what their collection
//! [is called now](Lines::called_now), by the turns that stand behind them: so a rename costs nothing, however
//! much waits, and what stood in front of an earlier one is not touched by a later one.

use std::collections::{BTreeSet, VecDeque};

use ahash::HashMap;

use super::turns::Turn;
use crate::model::{event::SchemaChange, namespace::Namespace};

/// A line for each namespace that has entries.
#[derive(Default)]
pub struct Lines(HashMap<Namespace, Line>);

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

impl Lines {
    /// A new entry, with the largest sequence number so far.
    pub fn added(&mut self, ns: &Namespace) {
        match self.0.get_mut(ns) {
            Some(line) => line.behind += 1,
            None => drop(self.0.insert(ns.clone(), Line { behind: 1, ..Line::default() })),
        }
    }

    /// A new barrier, with the largest sequence number so far.
    pub fn barrier_added(&mut self, change: &SchemaChange, seq: u64) {
        for ns in change.namespaces() {
            let turn = Turn::of(change, &ns);
            let line = self.0.entry(ns).or_default();
            let ahead = std::mem::take(&mut line.behind);
            line.barriers.push_back(Barrier { seq, ahead, turn });
        }
    }

    /// An entry is gone for good. True when it was the last in front of a barrier, which may go now.
    pub fn removed(&mut self, ns: &Namespace, seq: u64) -> bool {
        let Some(line) = self.0.get_mut(ns) else { return false };
        let is_last = if let Some(next) = line.barriers.iter_mut().find(|next| next.seq > seq) {
            next.ahead -= 1;
            next.ahead == 0
        } else {
            line.behind -= 1;
            false
        };
        self.forget_empty(ns);
        is_last
    }

    /// A barrier of the namespace is gone for good.
    pub fn barrier_removed(&mut self, ns: &Namespace, seq: u64) {
        if let Some(line) = self.0.get_mut(ns)
            && let Some(at) = line.barriers.iter().position(|barrier| barrier.seq == seq)
        {
            // Only a front barrier is ever leased; one that a person removes may stand anywhere.
            let gone = line.barriers.remove(at).expect("position is within");
            match line.barriers.get_mut(at) {
                Some(next) => next.ahead += gone.ahead,
                None => line.behind += gone.ahead,
            }
        }
        self.forget_empty(ns);
    }

    fn forget_empty(&mut self, ns: &Namespace) {
        if self.0.get(ns).is_some_and(|line| line.behind == 0 && line.barriers.is_empty()) {
            self.0.remove(ns);
        }
    }

    /// True for an entry that waits for a barrier in front of it, or a barrier that waits for what is in front of it.
    pub fn is_blocked(&self, ns: &Namespace, seq: u64) -> bool {
        match self.0.get(ns).and_then(|line| line.barriers.front()) {
            Some(barrier) if barrier.seq == seq => barrier.ahead > 0,
            Some(barrier) => barrier.seq < seq,
            None => false,
        }
    }

    /// Entries of the namespace, without its barriers.
    pub fn documents_of(&self, ns: &Namespace) -> u64 {
        let of = |line: &Line| line.behind + line.barriers.iter().map(|b| b.ahead).sum::<u64>();
        self.0.get(ns).map_or(0, of)
    }

    /// True when a barrier stands behind `seq`, so that a new op must not be merged into it.
    pub fn is_closed(&self, ns: &Namespace, seq: u64) -> bool {
        self.0.get(ns).and_then(|line| line.barriers.back()).is_some_and(|last| last.seq > seq)
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
        let barriers = &self.0.get(ns)?.barriers;
        let from = barriers.partition_point(|barrier| barrier.seq <= seq);
        barriers.range(from..).find_map(|barrier| Some((barrier.seq, barrier.turn.as_ref()?)))
    }

    /// Entries of the namespace, barriers included.
    pub fn len_of(&self, ns: &Namespace) -> u64 {
        self.0.get(ns).map_or(0, Line::len)
    }

    /// Every namespace that has entries, with their number.
    pub fn lens(&self) -> impl Iterator<Item = (&Namespace, u64)> {
        self.0.iter().map(|(ns, line)| (ns, line.len()))
    }

    /// Those of the namespaces, and what waits behind a barrier that it has in common with one of them.
    pub fn behind(&self, mut namespaces: BTreeSet<Namespace>) -> BTreeSet<Namespace> {
        let mut barriers = BTreeSet::new();
        loop {
            let before = (namespaces.len(), barriers.len());
            for (ns, line) in &self.0 {
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
        self.0.get(ns).is_some_and(|line| !line.barriers.is_empty())
    }
}
