//! Which block holds an entry. In memory only; rebuilt when the queue is opened. No I/O.
//!
//! ```text
//! new entries      ─▶ home blocks    entries that follow one another, named by the first one's number
//! changed entries  ─▶ moved blocks   any entries; their old places are marked as gone
//! ```
//!
//! An entry keeps its number, and with it its place in the order, wherever it is. A block whose entries
//! are all gone is removed; of one that is mostly gone the rest is moved ([`Edit`](super::edit::Edit)). So there are at
//! the most as many dead entries as living ones.

use std::collections::BTreeMap;

/// The name of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum BlockId {
    /// The number of its first entry.
    Home(u64),
    /// A number of its own.
    Moved(u64),
}

/// Where an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    pub block: BlockId,
    pub slot: u8,
}

/// What is known of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Block {
    /// Its entries, gone ones included.
    pub count: u8,
    /// A bit for each that is gone, the lowest for the first.
    pub gone: u64,
    /// Bytes of its value, packed.
    pub stored: u32,
    /// Bytes of its entries.
    pub bytes: u32,
    /// The fingerprint of its key and value.
    pub fingerprint: u64,
}

impl Block {
    pub fn new(count: usize, stored: usize, bytes: usize, fingerprint: u64) -> Self {
        Self {
            count: count as u8,
            gone: 0,
            stored: stored as u32,
            bytes: bytes as u32,
            fingerprint,
        }
    }

    /// The bits of its entries.
    pub fn all(&self) -> u64 {
        u64::MAX >> (64 - u32::from(self.count))
    }

    /// Slots of the entries that are still there.
    pub fn live(&self) -> impl Iterator<Item = usize> + use<> {
        let gone = self.gone;
        (0..usize::from(self.count)).filter(move |slot| gone >> slot & 1 == 0)
    }
}

/// What an edit does to the blocks.
#[derive(Default)]
pub struct Changes {
    /// Entries that leave the place that they had in a moved block.
    pub unmoved: Vec<u64>,
    /// Blocks with entries that are gone now, and all of these.
    pub gone: Vec<(BlockId, u64)>,
    pub added: Vec<(BlockId, Block)>,
    /// Where the entries of moved blocks are.
    pub moved: Vec<(u64, Place)>,
}

/// All blocks.
#[derive(Default)]
pub struct Blocks {
    homes: BTreeMap<u64, Block>,
    others: BTreeMap<u64, Block>,
    /// By number, the moved block and the slot of an entry, in one number to save memory.
    moved: BTreeMap<u64, u64>,
    stored: u64,
}

/// Bits of a slot.
const SLOT: u32 = 6;

fn packed(place: Place) -> u64 {
    let (BlockId::Home(n) | BlockId::Moved(n)) = place.block;
    n << SLOT | u64::from(place.slot)
}

fn unpacked(place: u64) -> Place {
    Place { block: BlockId::Moved(place >> SLOT), slot: (place & ((1 << SLOT) - 1)) as u8 }
}

impl Blocks {
    /// Where an entry is, if it is there.
    pub fn place_of(&self, seq: u64) -> Option<Place> {
        if let Some(place) = self.moved.get(&seq) {
            return Some(unpacked(*place));
        }
        let (&first, block) = self.homes.range(..=seq).next_back()?;
        let slot = u8::try_from(seq - first).ok().filter(|slot| *slot < block.count)?;
        (block.gone >> slot & 1 == 0).then_some(Place { block: BlockId::Home(first), slot })
    }

    /// The first entry from `seq` on.
    pub fn next_from(&self, seq: u64) -> Option<(u64, Place)> {
        let home = self.next_home(seq);
        match (home, self.next_moved_from(seq)) {
            (Some(home), Some(moved)) => Some(if home.0 < moved.0 { home } else { moved }),
            (home, moved) => home.or(moved),
        }
    }

    fn next_moved_from(&self, seq: u64) -> Option<(u64, Place)> {
        self.moved.range(seq..).next().map(|(seq, place)| (*seq, unpacked(*place)))
    }

    fn next_home(&self, seq: u64) -> Option<(u64, Place)> {
        let within = self.homes.range(..=seq).next_back();
        let behind = self.homes.range(seq.checked_add(1)?..);
        within.into_iter().chain(behind).find_map(|(&first, block)| {
            let slot = block.live().find(|slot| first + *slot as u64 >= seq)?;
            Some((first + slot as u64, Place { block: BlockId::Home(first), slot: slot as u8 }))
        })
    }

    pub fn get(&self, id: BlockId) -> Option<&Block> {
        match id {
            BlockId::Home(first) => self.homes.get(&first),
            BlockId::Moved(n) => self.others.get(&n),
        }
    }

    /// The blocks of new entries, the youngest first.
    pub fn homes_backwards(&self) -> impl Iterator<Item = (u64, &Block)> {
        self.homes.iter().rev().map(|(first, block)| (*first, block))
    }

    /// The blocks of changed entries, the youngest first.
    pub fn moved_backwards(&self) -> impl Iterator<Item = (u64, &Block)> {
        self.others.iter().rev().map(|(n, block)| (*n, block))
    }

    /// The name of the next block of changed entries.
    pub fn next_moved(&self) -> u64 {
        self.others.last_key_value().map_or(0, |(n, _)| n + 1)
    }

    /// Bytes of all blocks, packed, with what is gone in them.
    pub fn stored(&self) -> u64 {
        self.stored
    }

    /// A block that is in the store.
    pub fn add(&mut self, id: BlockId, block: Block) {
        self.stored += u64::from(block.stored);
        match id {
            BlockId::Home(first) => self.homes.insert(first, block),
            BlockId::Moved(n) => self.others.insert(n, block),
        };
    }

    /// An entry that is in a moved block.
    pub fn add_moved(&mut self, seq: u64, place: Place) {
        self.moved.insert(seq, packed(place));
    }

    /// What an edit has done is in the store.
    pub fn apply(&mut self, changes: Changes) {
        for seq in changes.unmoved {
            self.moved.remove(&seq);
        }
        for (id, gone) in changes.gone {
            let (map, n) = match id {
                BlockId::Home(first) => (&mut self.homes, first),
                BlockId::Moved(n) => (&mut self.others, n),
            };
            if let Some(block) = map.get_mut(&n) {
                block.gone = gone;
                if gone == block.all() {
                    self.stored -= u64::from(block.stored);
                    map.remove(&n);
                }
            }
        }
        for (id, block) in changes.added {
            self.add(id, block);
        }
        for (seq, place) in changes.moved {
            self.add_moved(seq, place);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(block: BlockId, slot: u8) -> Place {
        Place { block, slot }
    }

    #[test]
    fn entries_are_met_in_their_order_wherever_they_are() {
        let mut blocks = Blocks::default();
        blocks.add(BlockId::Home(0), Block { gone: 0b0110, ..Block::new(4, 9, 9, 0) });
        blocks.add(BlockId::Home(10), Block::new(2, 9, 9, 0));
        blocks.add(BlockId::Moved(0), Block::new(2, 9, 9, 0));
        blocks.add_moved(2, place(BlockId::Moved(0), 0));
        blocks.add_moved(20, place(BlockId::Moved(0), 1));

        let mut met = Vec::new();
        let mut from = 0;
        while let Some((seq, at)) = blocks.next_from(from) {
            assert_eq!(blocks.place_of(seq), Some(at));
            met.push(seq);
            from = seq + 1;
        }

        assert_eq!(met, [0, 2, 3, 10, 11, 20]);
        assert_eq!([1, 4, 9, 12].map(|seq| blocks.place_of(seq)), [None; 4]);
    }

    #[test]
    fn a_block_without_a_living_entry_is_forgotten() {
        let mut blocks = Blocks::default();
        blocks.add(BlockId::Home(0), Block::new(2, 9, 9, 0));

        blocks.apply(Changes { gone: vec![(BlockId::Home(0), 0b01)], ..Changes::default() });
        assert_eq!(blocks.next_from(0), Some((1, place(BlockId::Home(0), 1))));
        blocks.apply(Changes { gone: vec![(BlockId::Home(0), 0b11)], ..Changes::default() });

        assert_eq!(blocks.next_from(0), None);
        assert_eq!(blocks.homes_backwards().next(), None);
    }

    #[test]
    fn a_full_block_has_a_bit_for_each_entry() {
        assert_eq!(Block::new(64, 0, 0, 0).all(), u64::MAX);
        assert_eq!(Block::new(1, 0, 0, 0).all(), 1);
    }
}
