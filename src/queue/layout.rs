//! The keys of the store. See the [module](super) for the picture.

use super::blocks::BlockId;

/// One byte of kind begins each key. What is small and often written comes first, then padding keys, then what is
/// large: sled writes a whole leaf anew for every tenth change of it, and must not find blocks in it that only
/// happen to be the neighbours of the seal.
pub const META: u8 = b'a';
pub const TOMBSTONES: u8 = b'b';
pub const PADDING: u8 = b'c';
pub const DEAD: u8 = b'd';
pub const HOME: u8 = b'e';
pub const MOVED: u8 = b'f';

pub const CHECKPOINT: &[u8] = b"acheckpoint";
pub const FORMAT: &[u8] = b"aformat";
/// See [`Edit`](super::edit::Edit).
pub const SEAL: &[u8] = b"aseal";

/// Keys that hold nothing, more than a leaf of sled has (it splits one of more than 16, and joins one of less
/// than 4 with its neighbour).
pub const PADDING_LEN: u8 = 24;

pub fn padding_key(n: u8) -> [u8; 2] {
    [PADDING, n]
}

pub fn block_key(id: BlockId) -> [u8; 9] {
    match id {
        BlockId::Home(first) => numbered(HOME, first),
        BlockId::Moved(n) => numbered(MOVED, n),
    }
}

/// A block larger than this is cut into pieces, each under a key of its own: so a leaf stays small, whatever the
/// documents are, and none becomes large enough for sled to put it into a file beside its log, which it
/// does not sync (0.34.7, `blob_io.rs`), and of which its cache knows nothing. Dead letters likewise.
pub const PIECE_MAX: usize = 24 << 10;

/// Pieces of a value of so many bytes behind the first one.
pub fn further_pieces(bytes: usize) -> u16 {
    u16::try_from(bytes.saturating_sub(1) / PIECE_MAX).expect("a document has 16 MiB at the most")
}

/// The key of a further piece of a block or a letter, which follows the key of the first.
pub fn piece_key(of: [u8; 9], n: u16) -> [u8; 11] {
    let mut key = [0; 11];
    key[..9].copy_from_slice(&of);
    key[9..].copy_from_slice(&n.to_be_bytes());
    key
}

/// Where it is noted which entries of a block are gone.
pub fn tombstones_key(id: BlockId) -> [u8; 10] {
    let mut key = [TOMBSTONES; 10];
    key[1..].copy_from_slice(&block_key(id));
    key
}

/// The block that a key of [`block_key`] names. `None` for that of a further piece.
pub fn block_of(key: &[u8]) -> Option<BlockId> {
    let id = u64::from_be_bytes(key.get(1..)?.try_into().ok()?);
    match key[0] {
        HOME => Some(BlockId::Home(id)),
        MOVED => Some(BlockId::Moved(id)),
        _ => None,
    }
}

/// The block that a key of [`tombstones_key`] names.
pub fn block_of_tombstones(key: &[u8]) -> Option<BlockId> {
    key.split_first().filter(|(kind, _)| **kind == TOMBSTONES).and_then(|(_, rest)| block_of(rest))
}

pub fn dead_key(seq: u64) -> [u8; 9] {
    numbered(DEAD, seq)
}

/// Big-endian, so that the order of bytes is the order of arrival.
fn numbered(kind: u8, n: u64) -> [u8; 9] {
    let mut key = [kind; 9];
    key[1..].copy_from_slice(&n.to_be_bytes());
    key
}

/// The number in a key of [`dead_key`].
pub fn number_of(key: &[u8]) -> u64 {
    key.get(1..9).and_then(|bytes| bytes.try_into().ok()).map_or(0, u64::from_be_bytes)
}

pub fn meta_key(name: &str) -> Vec<u8> {
    [&[META], name.as_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_large_value_has_a_key_for_each_piece() {
        let pieces = [0, 1, PIECE_MAX, PIECE_MAX + 1, 2 * PIECE_MAX, 2 * PIECE_MAX + 1];

        assert_eq!(pieces.map(further_pieces), [0, 0, 0, 1, 1, 2]);
    }

    #[test]
    fn a_key_names_its_block() {
        for id in [BlockId::Home(7), BlockId::Moved(u64::MAX)] {
            assert_eq!(block_of(&block_key(id)), Some(id));
            assert_eq!(block_of_tombstones(&tombstones_key(id)), Some(id));
        }
        let [seven, eight] = [7, 8].map(|n| block_key(BlockId::Home(n)));
        assert_eq!(block_of(&piece_key(seven, 1)), None);
        assert!(seven.as_slice() < piece_key(seven, 1).as_slice());
        assert!(piece_key(seven, 9) < piece_key(eight, 1));
        assert_eq!(block_of(&dead_key(1)), None);
        assert_eq!(block_of(b""), None);
    }
}
