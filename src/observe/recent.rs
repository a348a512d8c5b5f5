//! When documents were written to Atlas: the latest ones, in bounded memory.
//!
//! A document is remembered by a 64-bit hash, in two generations of at most 50,000 documents: when
//! the younger one is full it becomes the older one, and what was older is forgotten. So between one and
//! two generations are known, in about three megabytes at the most.

use std::collections::HashMap;

use ahash::RandomState;
use parking_lot::{Mutex, MutexGuard};

use crate::model::{document_key::DocumentKey, namespace::Namespace};

const GENERATION: usize = 50_000;

/// The latest writes.
#[derive(Debug, Default)]
pub struct Recent {
    hasher: RandomState,
    generations: Mutex<Generations>,
}

#[derive(Debug, Default)]
struct Generations {
    young: HashMap<u64, u64, RandomState>,
    old: HashMap<u64, u64, RandomState>,
}

/// Writes of one moment to one namespace that are being noted. Locks the rest out meanwhile.
pub struct Noting<'a> {
    recent: &'a Recent,
    generations: MutexGuard<'a, Generations>,
    ns: &'a Namespace,
    now_ms: u64,
}

impl Noting<'_> {
    /// A document was written.
    pub fn written(&mut self, key: &DocumentKey) {
        let hash = self.recent.hash(self.ns, key);
        let generations = &mut *self.generations;
        if generations.young.len() >= GENERATION {
            generations.old = std::mem::take(&mut generations.young);
        }
        generations.young.insert(hash, self.now_ms);
    }
}

impl Recent {
    /// Begins to note what is written at `now_ms`.
    pub fn notes<'a>(&'a self, ns: &'a Namespace, now_ms: u64) -> Noting<'a> {
        Noting { recent: self, generations: self.lock(), ns, now_ms }
    }

    /// When a document was last written, milliseconds since 1970; `None` when that is not remembered.
    pub fn when(&self, ns: &Namespace, key: &DocumentKey) -> Option<u64> {
        let hash = self.hash(ns, key);
        let generations = self.lock();
        generations.young.get(&hash).or_else(|| generations.old.get(&hash)).copied()
    }

    fn hash(&self, ns: &Namespace, key: &DocumentKey) -> u64 {
        self.hasher.hash_one((ns, key.canonical()))
    }

    fn lock(&self) -> MutexGuard<'_, Generations> {
        self.generations.lock()
    }
}

#[cfg(test)]
mod tests {
    use bson::rawdoc;

    use super::*;

    #[test]
    fn the_latest_writes_are_known_and_memory_is_bounded() {
        let recent = Recent::default();
        let ns = Namespace::new("shop", "orders");
        let key = |id: i32| DocumentKey::of(&rawdoc! { "_id": id }).unwrap();

        let mut notes = recent.notes(&ns, 7);
        for id in 0..120_000 {
            notes.written(&key(id));
        }
        drop(notes);
        recent.notes(&ns, 9).written(&key(119_999));

        assert_eq!(recent.when(&ns, &key(119_999)), Some(9));
        assert_eq!(recent.when(&ns, &key(60_000)), Some(7));
        assert_eq!(recent.when(&ns, &key(0)), None);
        assert_eq!(recent.when(&Namespace::new("shop", "people"), &key(119_999)), None);
        let generations = recent.lock();
        assert!(generations.young.len() + generations.old.len() <= 2 * GENERATION);
    }
}
