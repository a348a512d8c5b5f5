//! Reading entries out of their blocks.

use std::{
    collections::VecDeque,
    sync::atomic::{AtomicU32, Ordering},
};

use super::{
    CodecError, Entry, QueueError,
    block::{View, unpack},
    blocks::{BlockId, Blocks, Place},
    codec::{self, Namespaces},
    layout::{PIECE_MAX, block_key, further_pieces, piece_key},
};

/// Blocks that a reader keeps, and their bytes, unless a single one is larger. Entries that have moved stand between
/// those that have not, and among one another.
const RECENT: usize = 8;
const RECENT_BYTES: usize = 1 << 20;

/// Reads entries, those of one block, or of a few, with one look at the store.
pub struct Reader<'a> {
    db: &'a sled::Db,
    cache: &'a CacheGuard,
    /// The blocks that were read last, unpacked, the latest at the end.
    recent: VecDeque<(BlockId, Vec<u8>)>,
    namespaces: Namespaces,
}

impl<'a> Reader<'a> {
    pub fn new(db: &'a sled::Db, cache: &'a CacheGuard) -> Self {
        Self { db, cache, recent: VecDeque::new(), namespaces: Namespaces::default() }
    }

    /// The sealed bytes of the entry `seq`, which is at `place`.
    ///
    /// # Errors
    /// [`QueueError::Damaged`] when it is not there.
    pub fn bytes(
        &mut self,
        blocks: &Blocks,
        (seq, place): (u64, Place),
    ) -> Result<&[u8], QueueError> {
        let known = self.recent.iter().rposition(|(id, _)| *id == place.block);
        let at = known.map_or_else(|| self.read(blocks, place.block), Ok)?;
        entry_in(&self.recent[at].1, seq, place)
    }

    /// Reads a block, and returns where it is in `recent`.
    fn read(&mut self, blocks: &Blocks, id: BlockId) -> Result<usize, QueueError> {
        let plain = read_block(self.db, self.cache, blocks, id)?;
        while self.recent.len() >= RECENT || self.recent_bytes() + plain.len() > RECENT_BYTES {
            if self.recent.pop_front().is_none() {
                break;
            }
        }
        self.recent.push_back((id, plain));
        Ok(self.recent.len() - 1)
    }

    fn recent_bytes(&self) -> usize {
        self.recent.iter().map(|(_, plain)| plain.len()).sum()
    }

    /// The entry `seq`, which is at `place`, and the length of its bytes.
    ///
    /// # Errors
    /// [`QueueError::Damaged`] when it is not there, or no longer decodes.
    pub fn entry(
        &mut self,
        blocks: &Blocks,
        (seq, place): (u64, Place),
    ) -> Result<(Entry, usize), QueueError> {
        let mut namespaces = std::mem::take(&mut self.namespaces);
        let bytes = self.bytes(blocks, (seq, place))?;
        let len = bytes.len();
        let entry = codec::decode_entry_of(seq, bytes, &mut namespaces);
        self.namespaces = namespaces;
        if len > RECENT_BYTES {
            // Alone in its block, and in memory a second time by now.
            self.recent.retain(|(id, _)| *id != place.block);
        }
        Ok((entry?, len))
    }
}

fn entry_in(plain: &[u8], seq: u64, place: Place) -> Result<&[u8], QueueError> {
    let (view, slot) = (View::of(plain)?, usize::from(place.slot));
    let bytes = view.entry(slot)?;
    if view.seq(slot) != seq {
        return Err(CodecError::Damaged("a block holds another entry".to_owned()).into());
    }
    Ok(bytes)
}

/// A block, for [`View::of`].
///
/// # Errors
/// [`QueueError::Damaged`] when it is not whole.
pub fn read_block(
    db: &sled::Db,
    cache: &CacheGuard,
    blocks: &Blocks,
    id: BlockId,
) -> Result<Vec<u8>, QueueError> {
    let key = block_key(id);
    let missing = || CodecError::Damaged("a block is missing".to_owned());
    let first = db.get(key)?.ok_or_else(missing)?;
    cache.passed(db, &key, first.len());
    let further = blocks.get(id).map_or(0, |block| further_pieces(block.stored as usize));
    if further == 0 {
        return Ok(unpack(&*first)?.into_owned());
    }
    let mut value = Vec::with_capacity(first.len() + usize::from(further) * PIECE_MAX);
    value.extend_from_slice(&first);
    for n in 1..=further {
        let key = piece_key(block_key(id), n);
        let piece = db.get(key)?.ok_or_else(missing)?;
        cache.passed(db, &key, piece.len());
        value.extend_from_slice(&piece);
    }
    Ok(unpack(value)?.into_owned())
}

/// Keeps sled's page cache to its size.
///
/// sled (0.34.7, `lru.rs`) notes accesses to pages in 256 lists, by page, and looks at its cache's size only when a
/// list has 64 accesses. With leaves of 16 blocks that comes too late: reading 600 MB once took 560 MB of memory,
/// with a cache of 16 MiB. So who passes a leaf asks for it until its list is full, which costs 15 µs for each
/// 8 blocks; the same reading then takes 50 MB. What is passed are values: each piece of a large block is one.
#[derive(Debug, Default)]
pub struct CacheGuard {
    passed: AtomicU32,
}

/// Values that a leaf has at least, as a rule.
const LEAF: u32 = 8;

/// Accesses in a list of sled.
const LIST: usize = 64;

impl CacheGuard {
    /// How many values there were.
    #[cfg(test)]
    pub fn count(&self) -> u32 {
        self.passed.load(Ordering::Relaxed)
    }

    /// The value of `key`, of so many bytes, was read or written.
    pub fn passed(&self, db: &sled::Db, key: &[u8], bytes: usize) {
        // A dead letter of an earlier version is a value of any size, and counts for as many as it could be pieces.
        let values = 1 + bytes.saturating_sub(1) as u32 / PIECE_MAX as u32;
        let before = self.passed.fetch_add(values, Ordering::Relaxed);
        if before / LEAF != before.wrapping_add(values) / LEAF {
            for _ in 0..LIST {
                // What it says is of no interest, and a store that fails says so elsewhere.
                let _ = db.contains_key(key);
            }
        }
    }
}
