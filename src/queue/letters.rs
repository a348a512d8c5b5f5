//! Where the dead letters are: by document, and by the collection that they belong to.
//!
//! A letter belongs to a collection and not to a name. When the collection is renamed its letters follow, in the same
//! step in which the rename is queued, and when it is dropped they go with it. So a letter has the name that its
//! collection has behind all that is queued, and what is queued next for that name is for the same document.
//!
//! An op that dies while a rename or a drop waits behind it dies under the name that its collection has
//! [by then](super::lines::Lines::called_now), or, where it is gone by then, leaves no letter: there
//! is nothing left that could be missing.

use std::collections::BTreeSet;

use ahash::HashMap;

use super::index::DocumentName;
use crate::model::namespace::Namespace;

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

    /// Those of the collection that has this name now.
    pub fn of(&self, ns: &Namespace) -> Option<&BTreeSet<u64>> {
        self.of.get(ns)
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
