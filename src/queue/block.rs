//! A block: up to 64 entries in one value of the store.
//!
//! ```text
//! value = layout version (1 byte) · count (1 byte) · sequence numbers (8 bytes each)
//!       · where each entry ends (4 bytes each) · the entries, each sealed by the codec
//! ```
//!
//! All numbers are little-endian. What a value costs sled is paid once per value, not per byte: with 40
//! entries in one, a commit takes a sixth of the time that it takes with 40 values. A block is written whole and
//! never changed; which of its entries are gone is noted beside it ([`Blocks`](super::blocks::Blocks)).

use super::codec::CodecError;

/// Most entries of a block: as many as a mask of 64 bits can tell apart.
pub const ENTRIES_MAX: usize = 64;

/// A block takes no further entry that would make it larger than this; a single entry may be larger.
///
/// sled rewrites a leaf of up to 16 values for every eighth value that is added, and keeps at least 256 leaves in
/// memory: 16 KiB is where larger ones stop to save time and begin to cost memory (measured with 8, 16, 32 and
/// 64 KiB: 2.3, 2.0, 1.9, 2.2 µs of CPU for an entry of 400 B).
pub const BYTES_MAX: usize = 16 << 10;

/// The layout that this program writes, and the only one it reads (I6).
pub const LAYOUT_VERSION: u8 = 2;

const HEAD: usize = 2;

/// Encodes a block of `entries`, of which there are 1 to [`ENTRIES_MAX`].
pub fn encode<'a>(entries: impl Iterator<Item = (u64, &'a [u8])> + Clone) -> Vec<u8> {
    let (mut count, mut bytes) = (0_usize, 0);
    for (_, entry) in entries.clone() {
        count += 1;
        bytes += entry.len();
    }
    debug_assert!((1..=ENTRIES_MAX).contains(&count));
    let mut value = Vec::with_capacity(HEAD + 12 * count + bytes);
    value.extend_from_slice(&[LAYOUT_VERSION, count as u8]);
    for (seq, _) in entries.clone() {
        value.extend_from_slice(&seq.to_le_bytes());
    }
    let mut end = 0_u32;
    for (_, entry) in entries.clone() {
        end += entry.len() as u32;
        value.extend_from_slice(&end.to_le_bytes());
    }
    for (_, entry) in entries {
        value.extend_from_slice(entry);
    }
    value
}

/// A block as it is stored.
#[derive(Clone, Copy)]
pub struct View<'a> {
    seqs: &'a [[u8; 8]],
    ends: &'a [[u8; 4]],
    entries: &'a [u8],
}

impl<'a> View<'a> {
    /// # Errors
    /// [`CodecError`] for another layout, or bytes that are none.
    pub fn of(value: &'a [u8]) -> Result<Self, CodecError> {
        let damaged = || CodecError::Damaged("a block ends early".to_owned());
        let (&version, rest) = value.split_first().ok_or_else(damaged)?;
        if version != LAYOUT_VERSION {
            return Err(CodecError::UnknownVersion(version));
        }
        let (&count, rest) = rest.split_first().ok_or_else(damaged)?;
        let count = usize::from(count);
        let (seqs, rest) = rest.split_at_checked(8 * count).ok_or_else(damaged)?;
        let (ends, entries) = rest.split_at_checked(4 * count).ok_or_else(damaged)?;
        let view = Self { seqs: seqs.as_chunks().0, ends: ends.as_chunks().0, entries };
        if count == 0 || count > ENTRIES_MAX || view.end(count) != entries.len() {
            return Err(CodecError::Damaged("a block of another length".to_owned()));
        }
        Ok(view)
    }

    /// Its entries.
    pub fn len(&self) -> usize {
        self.seqs.len()
    }

    /// The sequence number of an entry that is within.
    pub fn seq(&self, slot: usize) -> u64 {
        u64::from_le_bytes(self.seqs[slot])
    }

    /// Where the first `n` entries end.
    fn end(&self, n: usize) -> usize {
        n.checked_sub(1).map_or(0, |last| u32::from_le_bytes(self.ends[last]) as usize)
    }

    /// The sealed bytes of an entry.
    ///
    /// # Errors
    /// [`CodecError`] when there is no such entry.
    pub fn entry(&self, slot: usize) -> Result<&'a [u8], CodecError> {
        (slot < self.len())
            .then(|| self.entries.get(self.end(slot)..self.end(slot + 1)))
            .flatten()
            .ok_or_else(|| CodecError::Damaged("a block without the entry".to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn i6_a_block_of_another_layout_is_refused() {
        let mut value = encode([(1, &b"one"[..])].into_iter());
        value[0] = 9;

        assert_eq!(View::of(&value).err(), Some(CodecError::UnknownVersion(9)));
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded(
            entries in prop::collection::vec((any::<u64>(), any::<Vec<u8>>()), 1..=ENTRIES_MAX)
        ) {
            let value = encode(entries.iter().map(|(seq, bytes)| (*seq, bytes.as_slice())));
            let view = View::of(&value).unwrap();

            let found: Vec<_> = (0..view.len())
                .map(|slot| (view.seq(slot), view.entry(slot).unwrap().to_vec()))
                .collect();
            prop_assert_eq!(found, entries);
        }

        #[test]
        fn random_bytes_never_panic(mut value: Vec<u8>, known: bool) {
            if known && !value.is_empty() {
                value[0] = LAYOUT_VERSION;
            }
            if let Ok(view) = View::of(&value) {
                for slot in 0..=view.len() {
                    let _ = view.entry(slot);
                }
            }
        }
    }
}
