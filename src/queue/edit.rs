//! One atomic change of the store, which also keeps the store's *seal*.
//!
//! sled survives a damaged file by going back to what it can still read, page by page. The pages of
//! a checkpoint and of the entries before it are not the same, so one could come back newer than the
//! other, and a checkpoint ahead of its entries loses data silently. So every batch writes a seal as
//! well: the sum of the fingerprints of everything that counts. When the queue is opened the sum is
//! made again, and a queue whose seal does not fit is damaged, whatever sled thinks of it (I1).

use sled::Batch as SledBatch;

/// The key of the seal.
pub const SEAL: &[u8] = b"mseal";

/// Puts and removals that are written together or not at all.
pub struct Edit {
    batch: SledBatch,
    seal: u64,
}

impl Edit {
    /// An edit of a store that has this seal.
    pub fn of(seal: u64) -> Self {
        Self { batch: SledBatch::default(), seal }
    }

    /// Puts a value in the place of `old`.
    pub fn put(&mut self, key: &[u8], value: Vec<u8>, old: Option<&[u8]>) {
        self.forget(key, old);
        self.seal = self.seal.wrapping_add(fingerprint(key, &value));
        self.batch.insert(key, value);
    }

    /// Removes a value. `None` when it is known not to be there.
    pub fn remove(&mut self, key: &[u8], old: Option<&[u8]>) {
        self.forget(key, old);
        self.batch.remove(key);
    }

    fn forget(&mut self, key: &[u8], old: Option<&[u8]>) {
        if let Some(old) = old {
            self.seal = self.seal.wrapping_sub(fingerprint(key, old));
        }
    }

    /// The batch, and the seal that the store has after it.
    pub fn finish(mut self) -> (SledBatch, u64) {
        self.batch.insert(SEAL, &self.seal.to_be_bytes());
        (self.batch, self.seal)
    }
}

/// 64 bits that depend on key and value. Guards against damage, not against an enemy.
pub fn fingerprint(key: &[u8], value: &[u8]) -> u64 {
    let low = crc32fast::hash(value);
    let mut high = crc32fast::Hasher::new_with_initial(low);
    high.update(key);
    u64::from(high.finalize()) << 32 | u64::from(low)
}
