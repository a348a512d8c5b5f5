//! Where the dead letters are: by document, and by the collection that they belong to.
//!
//! A letter belongs to a collection and not to a name. When the collection is renamed its letters follow, in the same
//! step in which the rename is queued, and when it is dropped they go with it. So a letter has the name that its
//! collection has behind all that is queued, and what is queued next for that name is for the same document.
//!
//! An op that dies while a rename or a drop waits behind it dies under the name that its collection has
//! [by then](super::lines::Lines::called_now), or, where it is gone by then, leaves no letter: there
//! is nothing left that could be missing.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::atomic::Ordering,
};

use ahash::HashMap;

use super::{
    Entry, Queue, QueueError, Work, codec, edit::Edit, index::DocumentName, layout::dead_key,
    ledger::Ledger, store::State, turns::Turn,
};
use crate::{
    model::{event::SchemaChange, namespace::Namespace, write_op::WriteOp},
    queue::dead_letter::DeadLetter,
};

/// The letters of documents. Those of schema changes are only counted.
#[derive(Default)]
pub struct Letters {
    by_name: HashMap<DocumentName, u64>,
    of: HashMap<Namespace, BTreeSet<u64>>,
}

impl Letters {
    pub fn is_empty(&self) -> bool {
        self.by_name.is_empty()
    }

    /// The letter of a document.
    pub fn get(&self, name: &DocumentName) -> Option<u64> {
        self.by_name.get(name).copied()
    }

    /// Notes the letter of a document of `ns`. True when it had none.
    pub fn insert(&mut self, ns: &Namespace, name: DocumentName, seq: u64) -> bool {
        let older = self.by_name.insert(name, seq);
        let of = self.of.entry(ns.clone()).or_default();
        of.insert(seq);
        if let Some(older) = older.filter(|older| *older != seq) {
            of.remove(&older);
        }
        older.is_none()
    }

    /// Forgets the letter `seq` of a document of `ns`. True when it was there.
    pub fn remove(&mut self, ns: &Namespace, name: &DocumentName, seq: u64) -> bool {
        if self.get(name) != Some(seq) {
            return false;
        }
        self.by_name.remove(name);
        if let Some(of) = self.of.get_mut(ns) {
            of.remove(&seq);
            if of.is_empty() {
                self.of.remove(ns);
            }
        }
        true
    }
}

/// Where letters go while the barriers of a commit are gone through.
#[derive(Default)]
pub struct Followers {
    /// The letters of the names that were touched.
    now: HashMap<Namespace, BTreeSet<u64>>,
}

impl Followers {
    /// The letters of the collections that the change is about follow it.
    pub fn pass(&mut self, change: &SchemaChange, letters: &Letters) {
        for ns in change.namespaces() {
            match Turn::of(change, &ns) {
                Some(Turn::Renamed(to)) => {
                    let moved = self.take(&ns, letters);
                    // What the target had goes with the collection that gives way.
                    self.take(&to, letters);
                    self.now.insert(to, moved);
                }
                Some(Turn::Gone) if change.ns() == &ns => drop(self.take(&ns, letters)),
                // The target of a rename, which was seen to.
                Some(Turn::Gone) | None => {}
            }
        }
    }

    fn take(&mut self, ns: &Namespace, letters: &Letters) -> BTreeSet<u64> {
        match self.now.insert(ns.clone(), BTreeSet::new()) {
            Some(known) => known,
            None => letters.of.get(ns).cloned().unwrap_or_default(),
        }
    }

    /// True when letters are under this name that the index does not know of yet.
    pub fn have_come_to(&self, ns: &Namespace) -> bool {
        self.now.get(ns).is_some_and(|letters| !letters.is_empty())
    }

    /// The letters that have another name now, or none.
    pub fn moved(&self, letters: &Letters) -> BTreeMap<u64, Option<Namespace>> {
        let mut moved = BTreeMap::new();
        for ns in self.now.keys() {
            let before = letters.of.get(ns);
            moved.extend(before.into_iter().flatten().map(|seq| (*seq, None)));
        }
        for (ns, now) in &self.now {
            for seq in now {
                moved.insert(*seq, Some(ns.clone()));
            }
        }
        moved.retain(|seq, to| {
            let stays = |to: &Namespace| letters.of.get(to).is_some_and(|of| of.contains(seq));
            !to.as_ref().is_some_and(stays)
        });
        moved
    }
}

/// A letter that follows its collection: the document that it was for, and the one that it is for now, if any.
pub struct Followed {
    seq: u64,
    from: Work,
    to: Option<Work>,
}

/// Letters that move together keep their documents as long as these are no more than so many bytes; the rest is left
/// as a `Refresh`, which is what a retry makes of a letter in any case.
const BODIES_MAX: usize = 8 << 20;

impl Queue {
    /// Puts letters that have moved where they belong now.
    pub(super) fn follow(
        &self,
        moved: BTreeMap<u64, Option<Namespace>>,
        edit: &mut Edit,
    ) -> Result<Vec<Followed>, QueueError> {
        let mut followed = Vec::with_capacity(moved.len());
        let mut bodies = 0;
        for (seq, to) in moved {
            let key = dead_key(seq);
            let Some(stored) = self.db.get(key)? else { continue };
            let DeadLetter { entry, reason, died_ms } = codec::decode_dead_letter(seq, &stored)?;
            let from = named(&entry.work);
            let to = to.map(|to| {
                let mut work = entry.work.clone().renamed(&to);
                bodies += work.body().map_or(0, |body| body.as_bytes().len());
                if let Work::Document { op, .. } = &mut work
                    && bodies > BODIES_MAX
                {
                    *op = WriteOp::Refresh;
                }
                let document = named(&work);
                let letter = DeadLetter { entry: Entry { work, ..entry }, reason, died_ms };
                edit.put(&key, codec::encode_dead_letter(&letter), Some(&stored));
                document
            });
            if to.is_none() {
                edit.remove(&key, Some(&stored));
            }
            followed.push(Followed { seq, from, to });
            self.progress.fetch_add(1, Ordering::Relaxed);
        }
        Ok(followed)
    }
}

/// The document that a work is about, and nothing else of it.
fn named(work: &Work) -> Work {
    match work {
        Work::Document { ns, key, .. } => {
            let (ns, key) = (ns.clone(), key.clone());
            Work::refresh(ns, key)
        }
        Work::Schema(change) => Work::Schema(change.clone()),
    }
}

impl State {
    /// A letter has followed its collection in the store.
    pub(super) fn letter_followed(&mut self, followed: Followed, ledger: &mut Ledger) {
        let Followed { seq, from, to } = followed;
        if let Some(name) = self.name_of(&from)
            && self.letters.remove(from.ns(), &name, seq)
        {
            ledger.dead_len -= 1;
        }
        if let Some(work) = to
            && let Some(name) = self.name_of(&work)
        {
            ledger.dead_len += u64::from(self.letters.insert(work.ns(), name, seq));
        }
    }
}
