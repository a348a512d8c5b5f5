//! Which entry holds a document, in about 20 bytes of memory per document.
//!
//! The index maps 48 bits of a hash to a sequence number and leaves the proof to the caller, who reads
//! the entry anyway to merge with it. Two documents of one hash are possible, so the second goes
//! into a side table under its full name; with 10 million documents that table is empty in five of six runs.
//!
//! A slot has 12 bytes and a byte of the table's own, and a table is between 44 % and 88 % full. It grows by being
//! copied, with both copies in memory: so there are many small ones in place of a large one.

use std::{
    collections::HashMap,
    hash::{BuildHasher, Hash, Hasher as _},
};

use ahash::RandomState;
use hashbrown::HashTable;

use crate::model::{document_key::DocumentKey, namespace::Namespace};

/// A document's full name, `namespace NUL canonical _id`, and its hash in this process.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DocumentName {
    pub hash: u64,
    pub bytes: Box<[u8]>,
}

impl Hash for DocumentName {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        state.write_u64(self.hash);
    }
}

pub struct Index {
    /// By the highest bits of the hash.
    shards: Vec<HashTable<Slot>>,
    collided: HashMap<Box<[u8]>, u64>,
    /// For one who needs nothing else of the index.
    pub hasher: Hasher,
}

const SHARDS: usize = 256;

/// 48 bits of a document's hash, and of its newest entry's number: at 100,000 entries a second the numbers last
/// for 89 years.
#[derive(Clone, Copy)]
struct Slot([u8; 12]);

impl Slot {
    fn new(hash: u64, seq: u64) -> Self {
        debug_assert!(seq < 1 << 48);
        let mut bytes = [0; 12];
        bytes[..6].copy_from_slice(&hash.to_be_bytes()[..6]);
        bytes[6..].copy_from_slice(&seq.to_be_bytes()[2..]);
        Self(bytes)
    }

    fn is_of(&self, hash: u64) -> bool {
        self.0[..6] == hash.to_be_bytes()[..6]
    }

    fn seq(&self) -> u64 {
        let mut bytes = [0; 8];
        bytes[2..].copy_from_slice(&self.0[6..]);
        u64::from_be_bytes(bytes)
    }

    /// For the table, which wants 64 bits.
    fn spread(&self) -> u64 {
        let mut bytes = [0; 8];
        bytes[..6].copy_from_slice(&self.0[..6]);
        spread(u64::from_be_bytes(bytes))
    }
}

/// What the table takes for a hash: the 48 bits that are kept, mixed. The table's own place in the index is made of
/// the highest ones, so that those alone would be the same for a whole table.
fn spread(hash: u64) -> u64 {
    (hash >> 16).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(24)
}

/// Keyed at random, so that no `_id` can be chosen to collide.
#[derive(Clone)]
pub struct Hasher(fn(&RandomState, &[u8]) -> u64, RandomState);

impl Default for Hasher {
    fn default() -> Self {
        let hash = |state: &RandomState, bytes: &[u8]| {
            let mut hasher = state.build_hasher();
            hasher.write(bytes);
            hasher.finish()
        };
        Self(hash, RandomState::new())
    }
}

impl Hasher {
    pub fn hash_of(&self, ns: &Namespace, key: &DocumentKey) -> u64 {
        self.hash(&name(ns, key))
    }

    fn hash(&self, name: &[u8]) -> u64 {
        (self.0)(&self.1, name)
    }
}

impl Default for Index {
    fn default() -> Self {
        let shards = std::iter::repeat_with(HashTable::new).take(SHARDS).collect();
        Self { shards, collided: HashMap::new(), hasher: Hasher::default() }
    }
}

impl Index {
    pub fn name_of(&self, ns: &Namespace, key: &DocumentKey) -> DocumentName {
        let bytes = name(ns, key);
        DocumentName { hash: self.hasher.hash(&bytes), bytes: bytes.into() }
    }

    /// The hash of [`name_of`](Self::name_of).
    pub fn hash_of(&self, ns: &Namespace, key: &DocumentKey) -> u64 {
        self.hasher.hash_of(ns, key)
    }

    fn newest(&self, hash: u64) -> Option<u64> {
        let found = self.shards[shard(hash)].find(spread(hash), |slot| slot.is_of(hash));
        found.map(Slot::seq)
    }

    fn newest_mut(&mut self, hash: u64) -> Option<&mut Slot> {
        self.shards[shard(hash)].find_mut(spread(hash), |slot| slot.is_of(hash))
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
        match self.newest(name.hash) {
            Some(seq) if is_it(seq)? => Ok(Some(seq)),
            Some(_) | None => Ok(None),
        }
    }

    /// Makes `seq` the newest entry of `name`; `previous` is what [`find`](Self::find) returned.
    pub fn set(&mut self, name: &DocumentName, previous: Option<u64>, seq: u64) {
        if let Some(newest) = self.collided.get_mut(&name.bytes) {
            *newest = seq;
            return;
        }
        let hash = name.hash;
        match self.newest_mut(hash) {
            Some(slot) if previous == Some(slot.seq()) => *slot = Slot::new(hash, seq),
            Some(_) => {
                self.collided.insert(name.bytes.clone(), seq);
            }
            None => drop(self.set_first(hash, seq)),
        }
    }

    /// Makes `seq` the newest entry of a document with this hash, if none of that hash is known. False if one is: then
    /// it takes the document's name to tell the two apart.
    pub fn set_first(&mut self, hash: u64, seq: u64) -> bool {
        let is_first = self.newest(hash).is_none();
        if is_first {
            let shard = &mut self.shards[shard(hash)];
            shard.insert_unique(spread(hash), Slot::new(hash, seq), Slot::spread);
        }
        is_first
    }

    /// Makes `seq` the newest entry of the document with this hash in place of `newest`, if that one still is.
    pub fn replace(&mut self, hash: u64, newest: u64, seq: u64) {
        if let Some(slot) = self.newest_mut(hash)
            && slot.seq() == newest
        {
            *slot = Slot::new(hash, seq);
        } else if let Some(of) = self.collided.values_mut().find(|of| **of == newest) {
            *of = seq;
        }
    }

    /// Forgets `seq`, if it is still the newest entry of the document with this hash.
    pub fn remove(&mut self, hash: u64, seq: u64) {
        let shard = &mut self.shards[shard(hash)];
        let is_it = |slot: &Slot| slot.is_of(hash) && slot.seq() == seq;
        if let Ok(found) = shard.find_entry(spread(hash), is_it) {
            found.remove();
            // What a long outage has filled is given back.
            if shard.len() * 8 < shard.capacity() {
                shard.shrink_to(shard.len() * 2, Slot::spread);
            }
        } else if !self.collided.is_empty() {
            self.collided.retain(|_, of| *of != seq);
        }
    }

    #[cfg(test)]
    pub fn with_collisions_only() -> Self {
        Self { hasher: Hasher(|_, _| 42, RandomState::new()), ..Self::default() }
    }
}

fn name(ns: &Namespace, key: &DocumentKey) -> Vec<u8> {
    let ns = ns.as_str().as_bytes();
    let mut bytes = Vec::with_capacity(ns.len() + 1 + key.filter().as_bytes().len());
    bytes.extend_from_slice(ns);
    bytes.push(0);
    key.canonical_into(&mut bytes);
    bytes
}

fn shard(hash: u64) -> usize {
    (hash >> 56) as usize
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

        index.remove(names[0].hash, 0);
        index.remove(names[2].hash, 2);
        assert_eq!([0, 1, 2].map(|n| find(&index, n)), [None, Some(1), None]);
    }

    #[test]
    fn many_documents_are_found_until_they_are_removed() {
        let mut index = Index::default();
        let ns = Namespace::new("shop", "orders");
        let names: Vec<_> = (0..20_000)
            .map(|id| index.name_of(&ns, &DocumentKey::of(&rawdoc! { "_id": id }).unwrap()))
            .collect();
        for (n, name) in names.iter().enumerate() {
            index.set(name, None, n as u64 + (1 << 40));
        }

        for (n, name) in names.iter().enumerate().filter(|(n, _)| n % 100 != 0) {
            index.remove(name.hash, n as u64 + (1 << 40));
        }

        for (n, name) in names.iter().enumerate() {
            let expected = (n % 100 == 0).then_some(n as u64 + (1 << 40));
            assert_eq!(index.find(name, |_| Ok::<_, ()>(true)), Ok(expected));
        }
        let room: usize = index.shards.iter().map(HashTable::capacity).sum();
        assert!(room < 4_000, "{room} places for 200 documents");
    }
}
