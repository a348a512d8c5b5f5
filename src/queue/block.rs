//! A block: up to 64 entries in one value of the store.
//!
//! ```text
//! value = layout version (1 byte) · how the rest is packed (1 byte: 0 as it is, 1 snappy) · the rest:
//!         count (1 byte) · sequence numbers (8 bytes each) · where each entry ends (4 bytes each)
//!         · the entries, each sealed by the codec
//! ```
//!
//! All numbers are little-endian. What a value costs sled is paid once per value, so with 40 entries in one a
//! commit takes a sixth of the time that it takes with 40 values. What it costs by its bytes is paid about three times,
//! since sled rewrites what it splits: packing costs no more than it saves there, and documents, whose field names
//! repeat, take a third of the disk.
//!
//! A block is written whole and never changed; which of its entries are gone is noted beside it
//! ([`Blocks`](super::blocks::Blocks)).

use std::borrow::Cow;

use snap::raw::{Decoder, Encoder, decompress_len, max_compress_len};

use super::codec::{CodecError, LAYOUT_VERSION};

/// Most entries of a block: as many as tombstones of 64 bits can tell apart.
pub const ENTRIES_MAX: usize = 64;

/// A block takes no further entry that would make its entries larger than this; a single entry may be larger.
///
/// sled rewrites a leaf of up to 16 values for every eighth value that is added, and keeps at least 256 leaves in
/// memory: 16 KiB is where larger ones stop to save time and begin to cost memory.
pub const BYTES_MAX: usize = 16 << 10;

/// Layout version, and how the rest is packed.
const HEAD: usize = 2;

const AS_IT_IS: u8 = 0;
const SNAPPY: u8 = 1;

/// Packs blocks, with one table for many.
pub struct Packer(Encoder);

impl Default for Packer {
    fn default() -> Self {
        Self(Encoder::new())
    }
}

impl Packer {
    /// The value of a block of `entries`, of which there are 1 to [`ENTRIES_MAX`].
    pub fn pack<'a>(&mut self, entries: impl Iterator<Item = (u64, &'a [u8])> + Clone) -> Vec<u8> {
        let value = encode(entries);
        let plain = &value[HEAD..];
        // What is larger than any document was merged of many, and is left as it is, like what would hardly become smaller.
        if plain.len() > PLAIN_MAX {
            return value;
        }
        let mut packed = vec![0; HEAD + max_compress_len(plain.len())];
        packed[..HEAD].copy_from_slice(&[LAYOUT_VERSION, SNAPPY]);
        match self.0.compress(plain, &mut packed[HEAD..]) {
            Ok(len) if len > 0 && len < plain.len() / 8 * 7 => {
                packed.truncate(HEAD + len);
                packed.shrink_to_fit();
                packed
            }
            Ok(_) | Err(_) => value,
        }
    }
}

/// The block in a value, for [`View::of`].
///
/// # Errors
/// [`CodecError`] for another layout, or bytes that are none.
pub fn unpack<'a>(value: impl Into<Cow<'a, [u8]>>) -> Result<Cow<'a, [u8]>, CodecError> {
    let value = value.into();
    let how = value.split_first_chunk::<HEAD>().map(|(head, _)| *head);
    if how != Some([LAYOUT_VERSION, AS_IT_IS]) {
        return unpack_slice(&value).map(Cow::Owned);
    }
    // Not copied: a document may have 16 MiB.
    Ok(match value {
        Cow::Borrowed(value) => value[HEAD..].into(),
        Cow::Owned(mut value) => {
            value.drain(..HEAD);
            value.into()
        }
    })
}

fn unpack_slice(value: &[u8]) -> Result<Vec<u8>, CodecError> {
    let damaged = |what: &str| CodecError::Damaged(what.to_owned());
    let (&version, rest) = value.split_first().ok_or_else(|| damaged("an empty block"))?;
    if version != LAYOUT_VERSION {
        return Err(CodecError::UnknownLayout(version));
    }
    match rest.split_first() {
        Some((&AS_IT_IS, plain)) => Ok(plain.into()),
        Some((&SNAPPY, packed)) => {
            let len = decompress_len(packed).map_err(|error| damaged(&error.to_string()))?;
            // A length that is damaged must not take all memory.
            if len > PLAIN_MAX {
                return Err(damaged("a block that is too large"));
            }
            let plain = Decoder::new().decompress_vec(packed);
            plain.map_err(|error| damaged(&error.to_string()))
        }
        _ => Err(damaged("a block that is packed in another way")),
    }
}

/// The largest block that is packed: a document of 16 MiB, its key, and what else an entry has, with room to spare.
const PLAIN_MAX: usize = 64 << 20;

/// The value, as it is.
fn encode<'a>(entries: impl Iterator<Item = (u64, &'a [u8])> + Clone) -> Vec<u8> {
    let (mut count, mut bytes) = (0_usize, 0);
    for (_, entry) in entries.clone() {
        count += 1;
        bytes += entry.len();
    }
    debug_assert!((1..=ENTRIES_MAX).contains(&count));
    let mut plain = Vec::with_capacity(HEAD + 1 + 12 * count + bytes);
    plain.extend_from_slice(&[LAYOUT_VERSION, AS_IT_IS, count as u8]);
    for (seq, _) in entries.clone() {
        plain.extend_from_slice(&seq.to_le_bytes());
    }
    let mut end = 0_u32;
    for (_, entry) in entries.clone() {
        end += entry.len() as u32;
        plain.extend_from_slice(&end.to_le_bytes());
    }
    for (_, entry) in entries {
        plain.extend_from_slice(entry);
    }
    plain
}

/// A block.
#[derive(Clone, Copy)]
pub struct View<'a> {
    seqs: &'a [[u8; 8]],
    ends: &'a [[u8; 4]],
    entries: &'a [u8],
}

impl<'a> View<'a> {
    /// # Errors
    /// [`CodecError`] for bytes that are none.
    pub fn of(plain: &'a [u8]) -> Result<Self, CodecError> {
        let damaged = || CodecError::Damaged("a block ends early".to_owned());
        let (&count, rest) = plain.split_first().ok_or_else(damaged)?;
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

    /// Bytes of its entries.
    pub fn bytes(&self) -> usize {
        self.entries.len()
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
        let mut value = Packer::default().pack([(1, &b"one"[..])].into_iter());
        value[0] = 9;

        assert_eq!(unpack(&value).err(), Some(CodecError::UnknownLayout(9)));
    }

    #[test]
    fn what_repeats_is_packed() {
        let entry = b"a field, a value, a field, a value".repeat(9);
        let entries: Vec<_> = (0..40).map(|seq| (seq, entry.as_slice())).collect();
        let value = Packer::default().pack(entries.into_iter());

        assert!(value.len() < 40 * entry.len() / 5);
        assert_eq!(View::of(&unpack(&value).unwrap()).unwrap().entry(39).unwrap(), entry);
    }

    proptest! {
        #[test]
        fn what_is_packed_is_unpacked(
            entries in prop::collection::vec((any::<u64>(), any::<Vec<u8>>()), 1..=ENTRIES_MAX)
        ) {
            let mut packer = Packer::default();
            let value = packer.pack(entries.iter().map(|(seq, bytes)| (*seq, bytes.as_slice())));
            let plain = unpack(&value).unwrap();
            let view = View::of(&plain).unwrap();

            let found: Vec<_> = (0..view.len())
                .map(|slot| (view.seq(slot), view.entry(slot).unwrap().to_vec()))
                .collect();
            prop_assert_eq!(found, entries);
        }

        #[test]
        fn random_bytes_never_panic(mut value: Vec<u8>, how in 0..3_u8) {
            if value.len() >= 2 && how < 2 {
                value[0] = LAYOUT_VERSION;
                value[1] = how;
            }
            let plain = unpack(&value).unwrap_or_default();
            if let Ok(view) = View::of(&plain) {
                for slot in 0..=view.len() {
                    let _ = view.entry(slot);
                }
            }
        }
    }
}
