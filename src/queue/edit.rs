//! One atomic change of the store, which also keeps the store's *seal*.
//!
//! sled survives a damaged file by going back to what it can still read, page by page. The pages of
//! a checkpoint and of the entries before it are not the same, so one could come back newer than the
//! other, and a checkpoint ahead of its entries loses data silently. So every batch writes a seal as
//! well: the sum of the fingerprints of everything that counts. When the queue is opened the sum is
//! made again, and a queue whose seal does not fit is damaged, whatever sled thinks of it (I1).
//!
//! Entries are gathered while the edit is made, and put into blocks when it ends:
//!
//! - new ones into home blocks, which a small last block is joined to, so that a thousand small commits do not
//!   leave a thousand small blocks;
//! - changed ones into moved blocks, likewise;
//! - what else lives in a block of which less than half does moves along with them, unless it is leased and will be gone
//!   soon.
//!
//! Each of the three copies an entry only when that at least halves its dead room or doubles its block, so an
//! entry is written again a few times at the most, however the changes fall.

use std::{collections::BTreeMap, ops::Range};

use sled::Batch as SledBatch;

use super::{
    Entry, QueueError,
    block::{BYTES_MAX, ENTRIES_MAX, Packer, View},
    blocks::{Block, BlockId, Blocks, Changes, Place},
    codec,
    layout::{PIECE_MAX, SEAL, block_key, dead_key, further_pieces, piece_key, tombstones_key},
};

/// Bytes of one part, unless a single entry, or what stands behind a barrier, has more. Committed as one, 16 MiB keep
/// the worker waiting for the queue's lock.
pub const PART_BYTES: usize = 2 << 20;

/// Puts and removals that are written together or not at all.
pub struct Edit {
    batch: SledBatch,
    seal: u64,
    /// The sealed bytes of the entries that are put.
    bytes: Vec<u8>,
    /// Bytes of other values that are put, and of what is taken out of the store: sled reads it as well, and keeps it
    /// until the end of the batch.
    beside: usize,
    /// New entries, with ascending numbers that none had before.
    new: Vec<Piece>,
    /// Entries that are in the store with other bytes.
    changed: Vec<Piece>,
    removed: Vec<u64>,
    packer: Packer,
}

/// An entry whose bytes stand in `Edit::bytes`.
struct Piece {
    seq: u64,
    bytes: Range<usize>,
}

/// What is written, and what is to be remembered once it is.
pub struct Finished {
    pub batch: SledBatch,
    /// The seal that the store has then.
    pub seal: u64,
    pub changes: Changes,
}

/// What an edit ends with, beside the blocks themselves.
pub struct Surroundings<'a> {
    pub blocks: &'a Blocks,
    /// No entry from here on was ever leased.
    pub untouched_from: u64,
    /// True for an entry that will be acked soon: its block is left as it is meanwhile.
    pub is_leased: &'a dyn Fn(u64) -> bool,
    /// A block, unpacked.
    pub read: &'a dyn Fn(BlockId) -> Result<Vec<u8>, QueueError>,
}

impl Edit {
    /// An edit of a store that has this seal.
    pub fn of(seal: u64) -> Self {
        Self {
            batch: SledBatch::default(),
            seal,
            bytes: Vec::new(),
            beside: 0,
            new: Vec::new(),
            changed: Vec::new(),
            removed: Vec::new(),
            packer: Packer::default(),
        }
    }

    /// Puts a value in the place of `old`.
    pub fn put(&mut self, key: &[u8], value: Vec<u8>, old: Option<&[u8]>) {
        self.forget(key, old);
        self.seal = self.seal.wrapping_add(fingerprint(key, &value));
        self.beside += value.len();
        self.batch.insert(key, value);
    }

    /// Bytes of what is put and taken, which all stand in memory until the end.
    pub fn weight(&self) -> usize {
        self.bytes.len() + self.beside
    }

    /// Removes a value. `None` when it is known not to be there.
    pub fn remove(&mut self, key: &[u8], old: Option<&[u8]>) {
        self.forget(key, old);
        self.batch.remove(key);
    }

    /// Puts a dead letter in the place of `old`.
    pub fn put_letter(&mut self, seq: u64, value: Vec<u8>, old: Option<&[u8]>) {
        if let Some(old) = old {
            self.remove_letter(seq, old);
        }
        let key = dead_key(seq);
        self.seal = self.seal.wrapping_add(fingerprint(&key, &value));
        self.beside += value.len();
        self.put_pieces(key, value);
    }

    /// Removes a dead letter.
    pub fn remove_letter(&mut self, seq: u64, old: &[u8]) {
        self.forget(&dead_key(seq), Some(old));
        self.beside += old.len();
        self.remove_pieces(dead_key(seq), old.len());
    }

    fn forget(&mut self, key: &[u8], old: Option<&[u8]>) {
        if let Some(old) = old {
            self.seal = self.seal.wrapping_sub(fingerprint(key, old));
        }
    }

    /// Room for these entries, which are put next.
    pub fn reserve<'a>(&mut self, entries: impl Iterator<Item = &'a Entry>) {
        // An entry's key, namespace and numbers take less as a rule; what takes more makes room for itself.
        const BESIDE_BODY: usize = 160;
        let bytes = entries
            .map(|entry| BESIDE_BODY + entry.work.body().map_or(0, |body| body.as_bytes().len()));
        self.bytes.reserve(bytes.sum());
    }

    /// Puts an entry that is not in the store. Its number is above those of all that are, and of this edit. Returns its
    /// bytes.
    pub fn add_entry(&mut self, entry: &Entry) -> usize {
        let piece = self.encode(entry);
        let len = piece.bytes.len();
        self.new.push(piece);
        len
    }

    /// Puts an entry in the place of the one of `before` bytes that has its number. Returns its bytes.
    pub fn change_entry(&mut self, entry: &Entry, before: usize) -> usize {
        self.beside += before;
        let piece = self.encode(entry);
        let len = piece.bytes.len();
        self.changed.push(piece);
        len
    }

    /// Removes an entry of so many bytes that is there.
    pub fn remove_entry(&mut self, seq: u64, bytes: usize) {
        self.beside += bytes;
        self.removed.push(seq);
    }

    fn encode(&mut self, entry: &Entry) -> Piece {
        let start = self.bytes.len();
        codec::encode_entry_into(entry, &mut self.bytes);
        Piece { seq: entry.seq, bytes: start..self.bytes.len() }
    }

    /// The batch, and what it makes of the blocks.
    ///
    /// # Errors
    /// When a block that must be read cannot be.
    pub fn finish(mut self, around: &Surroundings<'_>) -> Result<Finished, QueueError> {
        let mut changes = Changes::default();
        let mut gone = self.leave_places(around, &mut changes);
        self.move_survivors(around, &mut gone, &mut changes)?;
        let joined = self.join_last_homes(around, &mut gone)?;
        self.join_last_moved(around, &mut gone, &mut changes)?;
        for (id, bits) in gone {
            self.mark_gone(around.blocks, id, bits);
            changes.gone.push((id, bits));
        }
        let new: Vec<Piece> = joined.into_iter().chain(std::mem::take(&mut self.new)).collect();
        // The place of an entry in its home block follows from its number.
        for pieces in new.chunk_by(|one, next| one.seq + 1 == next.seq).flat_map(in_blocks) {
            let id = BlockId::Home(pieces[0].seq);
            let block = self.put_block(id, pieces);
            changes.added.push((id, block));
        }
        let mut changed = std::mem::take(&mut self.changed);
        changed.sort_unstable_by_key(|piece| piece.seq);
        let first = around.blocks.next_moved();
        for (n, pieces) in in_blocks(&changed).enumerate() {
            let id = BlockId::Moved(first + n as u64);
            let block = self.put_block(id, pieces);
            changes.added.push((id, block));
            let places = pieces
                .iter()
                .enumerate()
                .map(|(slot, piece)| (piece.seq, Place { block: id, slot: slot as u8 }));
            changes.moved.extend(places);
        }
        self.batch.insert(SEAL, &self.seal.to_be_bytes());
        Ok(Finished { batch: self.batch, seal: self.seal, changes })
    }

    /// Where changed and removed entries were, there is nothing any more.
    fn leave_places(
        &self,
        around: &Surroundings<'_>,
        changes: &mut Changes,
    ) -> BTreeMap<BlockId, u64> {
        let mut gone = BTreeMap::new();
        let changed = self.changed.iter().map(|piece| piece.seq);
        for seq in changed.chain(self.removed.iter().copied()) {
            let place = around.blocks.place_of(seq).expect("what is edited is in the store (I4)");
            debug_assert!(
                gone.get(&place.block).is_none_or(|bits: &u64| bits >> place.slot & 1 == 0),
                "an entry is edited once"
            );
            leave(around.blocks, seq, place, &mut gone, changes);
        }
        gone
    }

    /// Moves what lives in blocks that would be mostly empty.
    fn move_survivors(
        &mut self,
        around: &Surroundings<'_>,
        gone: &mut BTreeMap<BlockId, u64>,
        changes: &mut Changes,
    ) -> Result<(), QueueError> {
        let mut sparse = Vec::new();
        for (id, bits) in gone.iter() {
            let block = around.blocks.get(*id).expect("it was just looked at");
            let live = u32::from(block.count) - bits.count_ones();
            if live > 0 && live * 2 < u32::from(block.count) {
                sparse.push((*id, Block { gone: *bits, ..*block }));
            }
        }
        for (id, block) in sparse {
            // The numbers of a home block are known without reading it.
            let is_leased = |slot: usize| match id {
                BlockId::Home(first) => (around.is_leased)(first + slot as u64),
                BlockId::Moved(_) => false,
            };
            if block.live().any(is_leased) {
                continue;
            }
            let plain = (around.read)(id)?;
            let view = View::of(&plain)?;
            if !block.live().any(|slot| (around.is_leased)(view.seq(slot))) {
                self.move_along(around.blocks, (id, &block), view, gone, changes)?;
            }
        }
        Ok(())
    }

    /// Takes small last blocks of new entries along, as far as what is new follows them without a gap.
    fn join_last_homes(
        &mut self,
        around: &Surroundings<'_>,
        gone: &mut BTreeMap<BlockId, u64>,
    ) -> Result<Vec<Piece>, QueueError> {
        let mut joined: Vec<Piece> = Vec::new();
        let Some(mut follower) = self.new.first().map(|piece| piece.seq) else {
            return Ok(joined);
        };
        let mut join = Join::of(&self.new);
        for (start, block) in around.blocks.homes_backwards() {
            let id = BlockId::Home(start);
            let follows = start + u64::from(block.count) == follower;
            let is_whole = block.gone == 0 && !gone.contains_key(&id);
            let is_untouched = start >= around.untouched_from;
            if !(follows && is_whole && is_untouched && join.takes(block)) {
                break;
            }
            let plain = (around.read)(id)?;
            let view = View::of(&plain)?;
            let mut pieces = Vec::with_capacity(view.len() + joined.len());
            for slot in 0..view.len() {
                pieces.push(self.copy(view.seq(slot), view.entry(slot)?));
            }
            pieces.append(&mut joined);
            joined = pieces;
            gone.insert(id, block.all());
            follower = start;
        }
        Ok(joined)
    }

    /// Takes small last blocks of changed entries along.
    fn join_last_moved(
        &mut self,
        around: &Surroundings<'_>,
        gone: &mut BTreeMap<BlockId, u64>,
        changes: &mut Changes,
    ) -> Result<(), QueueError> {
        if self.changed.is_empty() {
            return Ok(());
        }
        let mut join = Join::of(&self.changed);
        for (n, block) in around.blocks.moved_backwards() {
            if !join.takes(block) {
                break;
            }
            let id = BlockId::Moved(n);
            let block = Block { gone: gone.get(&id).copied().unwrap_or(block.gone), ..*block };
            if block.gone != block.all() {
                let plain = (around.read)(id)?;
                let view = View::of(&plain)?;
                self.move_along(around.blocks, (id, &block), view, gone, changes)?;
            }
        }
        Ok(())
    }

    /// Puts what lives in a block among the changed entries.
    fn move_along(
        &mut self,
        blocks: &Blocks,
        (id, block): (BlockId, &Block),
        view: View<'_>,
        gone: &mut BTreeMap<BlockId, u64>,
        changes: &mut Changes,
    ) -> Result<(), QueueError> {
        for slot in block.live() {
            let seq = view.seq(slot);
            let piece = self.copy(seq, view.entry(slot)?);
            self.changed.push(piece);
            leave(blocks, seq, Place { block: id, slot: slot as u8 }, gone, changes);
        }
        Ok(())
    }

    fn copy(&mut self, seq: u64, entry: &[u8]) -> Piece {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(entry);
        Piece { seq, bytes: start..self.bytes.len() }
    }

    fn mark_gone(&mut self, blocks: &Blocks, id: BlockId, bits: u64) {
        let block = blocks.get(id).expect("it was just looked at");
        let tombstones = tombstones_key(id);
        let old = (block.gone != 0).then(|| block.gone.to_be_bytes());
        if bits == block.all() {
            self.seal = self.seal.wrapping_sub(block.fingerprint);
            self.remove_pieces(block_key(id), block.stored as usize);
            if let Some(old) = old {
                self.remove(&tombstones, Some(&old));
            }
        } else {
            self.put(
                &tombstones,
                bits.to_be_bytes().to_vec(),
                old.as_ref().map(<[u8; 8]>::as_slice),
            );
        }
    }

    fn put_block(&mut self, id: BlockId, pieces: &[Piece]) -> Block {
        let entries = pieces.iter().map(|piece| (piece.seq, &self.bytes[piece.bytes.clone()]));
        let value = self.packer.pack(entries);
        let key = block_key(id);
        let fingerprint = fingerprint(&key, &value);
        let bytes = pieces.iter().map(|piece| piece.bytes.len()).sum();
        let block = Block::new(pieces.len(), value.len(), bytes, fingerprint);
        self.seal = self.seal.wrapping_add(fingerprint);
        // After its removal, if a block of this name was joined to it: the last word counts.
        self.put_pieces(key, value);
        block
    }

    fn put_pieces(&mut self, key: [u8; 9], value: Vec<u8>) {
        if value.len() <= PIECE_MAX {
            self.batch.insert(&key, value);
            return;
        }
        let mut pieces = value.chunks(PIECE_MAX);
        self.batch.insert(&key, pieces.next().unwrap_or_default());
        for (n, piece) in (1..).zip(pieces) {
            self.batch.insert(&piece_key(key, n), piece);
        }
    }

    fn remove_pieces(&mut self, key: [u8; 9], bytes: usize) {
        self.batch.remove(&key);
        for n in 1..=further_pieces(bytes) {
            self.batch.remove(&piece_key(key, n));
        }
    }
}

/// What small blocks are joined to: as much as goes into one block, and no more, however many small ones there are.
struct Join {
    bytes: usize,
    entries: usize,
}

impl Join {
    fn of(pieces: &[Piece]) -> Self {
        Self { bytes: pieces.iter().map(|piece| piece.bytes.len()).sum(), entries: pieces.len() }
    }

    /// True for a small block that becomes at least half as large again, so that an entry is written a few times
    /// more at the most. It counts as joined then.
    fn takes(&mut self, block: &Block) -> bool {
        let (bytes, entries) = (block.bytes as usize, usize::from(block.count));
        let is_small = bytes < BYTES_MAX / 2 && entries < ENTRIES_MAX / 2;
        let takes = is_small
            && bytes <= 2 * self.bytes
            && self.bytes < BYTES_MAX
            && self.entries < ENTRIES_MAX;
        if takes {
            self.bytes += bytes;
            self.entries += entries;
        }
        takes
    }
}

/// Marks one entry's place as gone.
fn leave(
    blocks: &Blocks,
    seq: u64,
    place: Place,
    gone: &mut BTreeMap<BlockId, u64>,
    changes: &mut Changes,
) {
    let before = || blocks.get(place.block).map_or(0, |block| block.gone);
    *gone.entry(place.block).or_insert_with(before) |= 1 << place.slot;
    if matches!(place.block, BlockId::Moved(_)) {
        changes.unmoved.push(seq);
    }
}

/// Cuts entries into blocks, in their order.
fn in_blocks(mut pieces: &[Piece]) -> impl Iterator<Item = &[Piece]> {
    std::iter::from_fn(move || {
        let mut bytes = 0;
        let fits = |piece: &&Piece| {
            bytes += piece.bytes.len();
            bytes <= BYTES_MAX
        };
        let n = pieces.iter().take(ENTRIES_MAX).take_while(fits).count().max(1);
        let (block, rest) = pieces.split_at_checked(n)?;
        pieces = rest;
        Some(block)
    })
}

/// 64 bits that depend on key and value. Guards against damage, not against an enemy.
pub fn fingerprint(key: &[u8], value: &[u8]) -> u64 {
    let low = crc32fast::hash(value);
    let mut high = crc32fast::Hasher::new_with_initial(low);
    high.update(key);
    u64::from(high.finalize()) << 32 | u64::from(low)
}
