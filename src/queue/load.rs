//! What is in memory only, rebuilt when the queue is opened.
//!
//! Everything is read once, checked and forgotten again, but for what [the queue](super) keeps of each document.

use std::{collections::BTreeMap, fs, path::Path};

use super::{
    CodecError, QueueError,
    block::{View, unpack},
    blocks::{Block, BlockId, Place},
    codec::LAYOUT_VERSION,
    codec::{self, Namespaces, Subject},
    edit::{Edit, Finished, PART_BYTES, Surroundings, fingerprint},
    layout::{
        CHECKPOINT, DEAD, FORMAT, HOME, META, MOVED, PADDING, PADDING_LEN, SEAL, TOMBSTONES,
        block_of, block_of_tombstones, meta_key, number_of, padding_key,
    },
    note::OUTDATED,
    reader::{CacheGuard, Reader, read_block},
    state::StoreState,
};
use crate::{model::namespace::Namespace, queue::Work};

/// The file beside sled's own that says that a queue was made here.
const MADE: &str = "outrigger";

fn damaged(what: &str) -> QueueError {
    CodecError::Damaged(what.to_owned()).into()
}

/// Reads the whole queue once: checks every value and the seal, and rebuilds what is in memory only.
pub fn load(db: &sled::Db, cache: &CacheGuard, path: &Path) -> Result<StoreState, QueueError> {
    make_or_recognize(db, path)?;
    if db.contains_key(meta_key(OUTDATED))? {
        return Err(QueueError::Outdated);
    }
    let mut state = StoreState::default();
    let mut sum = 0_u64;
    for item in db.scan_prefix([META]) {
        let (key, value) = item?;
        match &*key {
            SEAL | FORMAT => continue,
            CHECKPOINT => drop(codec::decode_checkpoint(&value)?),
            _ => {}
        }
        sum = sum.wrapping_add(fingerprint(&key, &value));
    }
    let mut tombstones = read_tombstones(db, &mut sum)?;
    let moved = read_moved(db, cache, &mut tombstones, &mut state, &mut sum)?;
    let twice = read_homes(db, cache, (&mut tombstones, moved), &mut state, &mut sum)?;
    if !tombstones.is_empty() {
        return Err(damaged("a note of what is gone has no block"));
    }
    for item in wholes(db, cache, DEAD) {
        let (key, value) = item?;
        sum = sum.wrapping_add(fingerprint(&key, &value));
        let letter = codec::decode_dead_letter(number_of(&key), &value)?;
        if let Some(name) = state.name_of(&letter.entry.work) {
            state.letters.insert(letter.entry.work.ns(), name, number_of(&key));
        }
        let mut ledger = state.ledger();
        ledger.dead_len += 1;
        ledger.next_seq = ledger.next_seq.max(number_of(&key) + 1);
        drop(ledger);
        state.dead_bytes += value.len() as u64;
    }
    if db.get(SEAL)?.as_deref() != Some(&sum.to_be_bytes()) {
        return Err(damaged("the seal does not fit the entries"));
    }
    state.seal = sum;
    join(db, cache, &mut state, twice)?;
    Ok(state)
}

/// Makes the marks of a new queue, or finds those of this layout.
fn make_or_recognize(db: &sled::Db, path: &Path) -> Result<(), QueueError> {
    let made = path.join(MADE);
    match db.get(FORMAT)? {
        Some(version) if *version == [LAYOUT_VERSION] => Ok(()),
        Some(version) => {
            let version = version.first().copied().unwrap_or(0);
            Err(CodecError::UnknownLayout(version).into())
        }
        // sled takes a file that makes no sense for a new one.
        None if made.exists() || !db.is_empty() => Err(damaged("nothing of the queue can be read")),
        None => {
            let mut marks = sled::Batch::default();
            for n in 0..PADDING_LEN {
                marks.insert(&padding_key(n), &[PADDING]);
            }
            marks.insert(SEAL, &0_u64.to_be_bytes());
            marks.insert(FORMAT, &[LAYOUT_VERSION]);
            db.apply_batch(marks)?;
            db.flush()?;
            fs::write(&made, "").map_err(QueueError::Disk)
        }
    }
}

/// Which entries of a block are gone.
type Tombstones = BTreeMap<BlockId, u64>;

fn read_tombstones(db: &sled::Db, sum: &mut u64) -> Result<Tombstones, QueueError> {
    let mut tombstones = Tombstones::new();
    for item in db.scan_prefix([TOMBSTONES]) {
        let (key, value) = item?;
        *sum = sum.wrapping_add(fingerprint(&key, &value));
        let gone = (*value).try_into().map(u64::from_be_bytes);
        let (Some(id), Ok(gone)) = (block_of_tombstones(&key), gone) else {
            return Err(damaged("a note of what is gone is none"));
        };
        tombstones.insert(id, gone);
    }
    Ok(tombstones)
}

/// The values of a kind, in order, pieces put together.
fn wholes<'a>(
    db: &'a sled::Db,
    cache: &'a CacheGuard,
    kind: u8,
) -> impl Iterator<Item = Result<(sled::IVec, sled::IVec), QueueError>> + 'a {
    let mut items = db.scan_prefix([kind]).peekable();
    let mut next = move || -> Result<Option<(sled::IVec, sled::IVec)>, QueueError> {
        let Some((key, value)) = items.next().transpose()? else { return Ok(None) };
        let is_more = |next: &Result<_, sled::Error>| {
            next.as_ref().is_ok_and(|(next, _): &(sled::IVec, _)| next.starts_with(&key))
        };
        cache.passed(db, &key, value.len());
        let mut whole = Vec::new();
        while let Some(piece) = items.next_if(is_more) {
            let (key, piece) = piece?;
            cache.passed(db, &key, piece.len());
            if whole.is_empty() {
                whole = value.to_vec();
            }
            whole.extend_from_slice(&piece);
        }
        let value = if whole.is_empty() { value } else { whole.into() };
        Ok(Some((key, value)))
    };
    std::iter::from_fn(move || next().transpose())
}

/// Walks the blocks of a kind, in order.
fn each_block(
    db: &sled::Db,
    cache: &CacheGuard,
    kind: u8,
    tombstones: &mut Tombstones,
    sum: &mut u64,
    mut each: impl FnMut(BlockId, Block, View<'_>) -> Result<(), QueueError>,
) -> Result<(), QueueError> {
    for item in wholes(db, cache, kind) {
        let (key, value) = item?;
        let id = block_of(&key).ok_or_else(|| damaged("a piece without its block"))?;
        let plain = unpack(&*value)?;
        let view = View::of(&plain)?;
        let fingerprint = fingerprint(&key, &value);
        *sum = sum.wrapping_add(fingerprint);
        let mut block = Block::new(view.len(), value.len(), view.bytes(), fingerprint);
        block.gone = tombstones.remove(&id).unwrap_or(0);
        if block.gone & !block.all() != 0 || block.gone == block.all() {
            return Err(damaged("a note of what is gone does not fit its block"));
        }
        each(id, block, view)?;
    }
    Ok(())
}

/// An entry of a moved block, as much of it as is needed when its turn comes: to read its block once more then
/// would read each block as often as it has entries.
struct Moved {
    seq: u64,
    /// The document's hash; `None` for a barrier.
    hash: Option<u64>,
    ns: Namespace,
    bytes: u32,
}

/// Reads the moved blocks. Returns their entries in order.
fn read_moved(
    db: &sled::Db,
    cache: &CacheGuard,
    tombstones: &mut Tombstones,
    state: &mut StoreState,
    sum: &mut u64,
) -> Result<Vec<Moved>, QueueError> {
    let mut moved = Vec::new();
    let mut namespaces = Namespaces::default();
    each_block(db, cache, MOVED, tombstones, sum, |id, block, view| {
        for slot in block.live() {
            let (seq, bytes) = (view.seq(slot), view.entry(slot)?);
            let (hash, ns) = match codec::subject_of(bytes, &mut namespaces)? {
                Subject::Document(ns, key) => (Some(state.index.hash_of(&ns, &key)), ns),
                Subject::Schema(change) => (None, change.ns().clone()),
            };
            moved.push(Moved { seq, hash, ns, bytes: bytes.len() as u32 });
            state.blocks.add_moved(seq, Place { block: id, slot: slot as u8 });
        }
        state.blocks.add(id, block);
        Ok(())
    })?;
    moved.sort_unstable_by_key(|entry| entry.seq);
    if moved.windows(2).any(|two| two[0].seq == two[1].seq) {
        return Err(damaged(TWICE));
    }
    Ok(moved)
}

const TWICE: &str = "an entry is in two blocks";

/// Meets every entry in its order, those that have moved between those at home. Returns the entries that are
/// to be joined with an earlier one of their document, behind that one.
fn read_homes(
    db: &sled::Db,
    cache: &CacheGuard,
    (tombstones, moved): (&mut Tombstones, Vec<Moved>),
    state: &mut StoreState,
    sum: &mut u64,
) -> Result<Vec<(u64, u64)>, QueueError> {
    let mut twice = Vec::new();
    let mut namespaces = Namespaces::default();
    let mut reader = Reader::new(db, cache);
    let mut moved = moved.into_iter().peekable();
    let mut end = 0;
    each_block(db, cache, HOME, tombstones, sum, |id, block, view| {
        let first = view.seq(0);
        if id != BlockId::Home(first) || (1..view.len()).any(|n| view.seq(n) != first + n as u64) {
            return Err(damaged("a block's entries do not follow one another"));
        }
        if first < end {
            return Err(damaged(TWICE));
        }
        end = first + view.len() as u64;
        state.blocks.add(id, block);
        for slot in block.live() {
            let seq = view.seq(slot);
            while let Some(entry) = moved.next_if(|entry| entry.seq < seq) {
                twice.extend(state.meet_moved(&mut reader, &mut namespaces, &entry)?);
            }
            if moved.peek().is_some_and(|entry| entry.seq == seq) {
                return Err(damaged(TWICE));
            }
            twice.extend(state.meet(&mut reader, &mut namespaces, seq, view.entry(slot)?)?);
        }
        Ok(())
    })?;
    for entry in moved {
        twice.extend(state.meet_moved(&mut reader, &mut namespaces, &entry)?);
    }
    // The gone ones at the end of a block have had their numbers too.
    let mut ledger = state.ledger();
    ledger.next_seq = ledger.next_seq.max(end);
    drop(ledger);
    Ok(twice)
}

/// The process ended while a document's first entry was leased: the two become one (I2). In parts, since there may be
/// a thousand of them, and a large document in each.
fn join(
    db: &sled::Db,
    cache: &CacheGuard,
    state: &mut StoreState,
    mut twice: Vec<(u64, u64)>,
) -> Result<(), QueueError> {
    // Those of one entry follow one another, in their order.
    twice.sort_by_key(|(first, _)| *first);
    let mut entries = twice.chunk_by(|(one, _), (next, _)| one == next).peekable();
    while entries.peek().is_some() {
        let mut edit = Edit::of(state.seal);
        let mut reader = Reader::new(db, cache);
        let mut bytes = state.ledger().pending_bytes;
        for pairs in &mut entries {
            let mut read = |seq| {
                let place = state.blocks.place_of(seq).expect("it was just met");
                reader.entry(&state.blocks, (seq, place))
            };
            let first = pairs[0].0;
            let (mut entry, counted) = read(first)?;
            let mut before = counted;
            for (_, second) in pairs {
                let (later, len) = read(*second)?;
                // Nobody knows yet whether its collection keeps the order of insertion, which is no matter to any other.
                if later.is_born() {
                    edit.remove_entry(entry.seq, before);
                    let begun = (entry.first_time, entry.first_ms);
                    entry.begin_anew(*second, later.into_later());
                    (entry.first_time, entry.first_ms) = begun;
                    before = len;
                } else {
                    let was_insert = entry.work.is_insert();
                    entry.absorb(later.into_later());
                    entry.keep_place(was_insert, |_| true);
                    edit.remove_entry(*second, len);
                }
            }
            if entry.seq != first
                && let Work::Document { ns, key, .. } = &entry.work
            {
                let hash = state.index.hash_of(ns, key);
                state.index.replace(hash, first, entry.seq);
            }
            bytes = bytes + edit.change_entry(&entry, before) as u64 - counted as u64;
            if edit.weight() >= PART_BYTES {
                break;
            }
        }
        let Finished { batch, seal, changes } = edit.finish(&Surroundings {
            blocks: &state.blocks,
            untouched_from: 0,
            is_leased: &|_| false,
            read: &|id| read_block(db, cache, &state.blocks, id),
        })?;
        db.apply_batch(batch)?;
        state.ledger().pending_bytes = bytes;
        state.seal = seal;
        state.blocks.apply(changes);
    }
    Ok(())
}

impl StoreState {
    /// As [`meet`](Self::meet), for an entry that has moved. It is read again only if its document may have
    /// another one.
    fn meet_moved(
        &mut self,
        reader: &mut Reader<'_>,
        namespaces: &mut Namespaces,
        entry: &Moved,
    ) -> Result<Option<(u64, u64)>, QueueError> {
        let seq = entry.seq;
        if let Some(hash) = entry.hash
            && self.meet_first(hash, &entry.ns, seq, entry.bytes as usize)
        {
            return Ok(None);
        }
        let place = self.blocks.place_of(seq).expect("it was just put there");
        let bytes = reader.bytes(&self.blocks, (seq, place))?.to_vec();
        self.meet(reader, namespaces, seq, &bytes)
    }

    /// Takes an entry into what is in memory. Returns it, behind the earlier entry of its document that it is to be
    /// joined with, if there is one and no barrier between the two.
    fn meet(
        &mut self,
        reader: &mut Reader<'_>,
        namespaces: &mut Namespaces,
        seq: u64,
        bytes: &[u8],
    ) -> Result<Option<(u64, u64)>, QueueError> {
        let (ns, key) = match codec::subject_of(bytes, namespaces)? {
            Subject::Document(ns, key) => (ns, key),
            Subject::Schema(change) => {
                let mut ledger = self.ledger();
                ledger.schedule.barrier_added(&change, seq);
                ledger.count(seq, bytes.len());
                return Ok(None);
            }
        };
        if self.meet_first(self.index.hash_of(&ns, &key), &ns, seq, bytes.len()) {
            return Ok(None);
        }
        let name = self.index.name_of(&ns, &key);
        let previous = self.newest(reader, &name)?.map(|(entry, _)| entry.seq);
        if let Some(first) = previous
            && !self.ledger().schedule.lines.is_closed(&ns, first)
        {
            // The one that they become may have the number of either.
            let mut ledger = self.ledger();
            ledger.next_seq = ledger.next_seq.max(seq + 1);
            return Ok(Some((first, seq)));
        }
        self.count(&ns, seq, bytes.len());
        self.index.set(&name, previous, seq);
        Ok(None)
    }

    /// Takes in the only entry of its document, as nearly all are, without a look at any other. False when the
    /// document may have another one.
    fn meet_first(&mut self, hash: u64, ns: &Namespace, seq: u64, bytes: usize) -> bool {
        let is_first = self.index.set_first(hash, seq);
        if is_first {
            self.count(ns, seq, bytes);
        }
        is_first
    }

    /// One more document waits.
    fn count(&self, ns: &Namespace, seq: u64, bytes: usize) {
        let mut ledger = self.ledger();
        ledger.schedule.lines.added(ns);
        ledger.count(seq, bytes);
    }
}
