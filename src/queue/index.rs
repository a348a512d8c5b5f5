//! Which entry holds a document, in 16 bytes of memory per document.
//!
//! The index maps a 64-bit hash to a sequence number and leaves the proof to the caller, who reads
//! the entry anyway to merge with it. Two documents of one hash are possible, so the second goes
//! into a side table under its full name; with 10 million documents the table is empty in all but
//! three of a million runs.

use std::collections::HashMap;

use ahash::RandomState;

use crate::{document_key::DocumentKey, namespace::Namespace};

/// A document's full name, `namespace NUL canonical _id`, and its hash in this process.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct DocumentName {
    pub hash: u64,
    pub bytes: Box<[u8]>,
}

#[derive(Default)]
pub struct Index {
    newest: HashMap<u64, u64>,
    collided: HashMap<Box<[u8]>, u64>,
    hasher: Hasher,
}

/// Keyed at random, so that no `_id` can be chosen to collide.
struct Hasher(fn(&RandomState, &[u8]) -> u64, RandomState);

impl Default for Hasher {
    fn default() -> Self {
        Self(|state, bytes| state.hash_one(bytes), RandomState::new())
    }
}

impl Index {
    pub fn name_of(&self, ns: &Namespace, key: &DocumentKey) -> DocumentName {
        let mut bytes = ns.as_str().as_bytes().to_vec();
        bytes.push(0);
        bytes.extend_from_slice(&key.canonical());
        DocumentName { hash: (self.hasher.0)(&self.hasher.1, &bytes), bytes: bytes.into() }
    }

    /// The newest entry of `name`. `is_it` reads the entry and tells whether it really is.
    pub fn find<E>(
        &self,
        name: &DocumentName,
        is_it: impl FnOnce(u64) -> Result<bool, E>,
    ) -> Result<Option<u64>, E> {
        if let Some(&seq) = self.collided.get(&name.bytes) {
            return Ok(Some(seq));
        }
        match self.newest.get(&name.hash) {
            Some(&seq) if is_it(seq)? => Ok(Some(seq)),
            Some(_) | None => Ok(None),
        }
    }

    /// Makes `seq` the newest entry of `name`; `previous` is what [`find`](Self::find) returned.
    pub fn set(&mut self, name: &DocumentName, previous: Option<u64>, seq: u64) {
        if let Some(slot) = self.collided.get_mut(&name.bytes) {
            *slot = seq;
            return;
        }
        match self.newest.get_mut(&name.hash) {
            Some(slot) if previous == Some(*slot) => *slot = seq,
            Some(_) => {
                self.collided.insert(name.bytes.clone(), seq);
            }
            None => {
                self.newest.insert(name.hash, seq);
            }
        }
    }

    /// Makes `seq` the newest entry of `name` in place of `newest`, if that one still is.
    pub fn replace(&mut self, name: &DocumentName, newest: u64, seq: u64) {
        if let Some(slot) = self.collided.get_mut(&name.bytes) {
            if *slot == newest {
                *slot = seq;
            }
        } else if let Some(slot) = self.newest.get_mut(&name.hash)
            && *slot == newest
        {
            *slot = seq;
        }
    }

    /// Forgets `seq`, if it is still the newest entry of `name`.
    pub fn remove(&mut self, name: &DocumentName, seq: u64) {
        if self.newest.get(&name.hash) == Some(&seq) {
            self.newest.remove(&name.hash);
        } else if self.collided.get(&name.bytes) == Some(&seq) {
            self.collided.remove(&name.bytes);
        }
    }

    #[cfg(test)]
    pub fn with_collisions_only() -> Self {
        Self { hasher: Hasher(|_, _| 42, RandomState::new()), ..Self::default() }
    }
}

#[cfg(test)]
mod tests {
    use bson::rawdoc;

    use super::*;

    #[test]
    fn documents_of_one_hash_stay_two_documents() {
        let mut index = Index::with_collisions_only();
        let ns = Namespace::new("shop", "orders");
        let names: Vec<_> = (0..3)
            .map(|id| index.name_of(&ns, &DocumentKey::of(&rawdoc! { "_id": id }).unwrap()))
            .collect();
        let find = |index: &Index, n: usize| {
            // Entry number n belongs to document n.
            index.find(&names[n], |seq| Ok::<_, ()>(seq == n as u64)).unwrap()
        };

        for (n, name) in names.iter().enumerate() {
            assert_eq!(find(&index, n), None);
            index.set(name, None, n as u64);
        }
        assert_eq!([0, 1, 2].map(|n| find(&index, n)), [Some(0), Some(1), Some(2)]);

        index.remove(&names[0], 0);
        index.remove(&names[2], 2);
        assert_eq!([0, 1, 2].map(|n| find(&index, n)), [None, Some(1), None]);
    }
}
