//! What is in memory only, rebuilt when the queue is opened.
//!
//! Everything is read once, checked and forgotten again, but for 20 bytes of each document.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    fs,
    path::Path,
};

use super::{
    CodecError, QueueError,
    block::{LAYOUT_VERSION, View, unpack},
    blocks::{Block, BlockId, Place},
    codec::{self, Namespaces, Subject},
    edit::{Edit, Finished, Surroundings, fingerprint},
    layout::{
        BULKHEAD, BULKHEAD_LEN, CHECKPOINT, DEAD, FORMAT, HOME, MASK, META, MOVED, SEAL, block_of,
        bulkhead_key, masked_block_of, number_of,
    },
    reader::{CacheGuard, Reader, read_block},
    store::State,
};

/// The file beside sled's own that says that a queue was made here.
const MADE: &str = "outrigger";

fn damaged(what: &str) -> QueueError {
    CodecError::Damaged(what.to_owned()).into()
}

/// Reads the whole queue once: checks every value and the seal, and rebuilds what is in memory only.
pub fn load(db: &sled::Db, cache: &CacheGuard, path: &Path) -> Result<State, QueueError> {
    make_or_recognize(db, path)?;
    let mut state = State::default();
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
    let masks = read_masks(db, &mut sum)?;
    read_moved(db, cache, &masks, &mut state, &mut sum)?;
    let twice = read_homes(db, cache, &masks, &mut state, &mut sum)?;
    for item in db.scan_prefix([DEAD]) {
        let (key, value) = item?;
        sum = sum.wrapping_add(fingerprint(&key, &value));
        let letter = codec::decode_dead_letter(number_of(&key), &value)?;
        if let Some(name) = state.name_of(&letter.entry.work) {
            state.dead.insert(name, number_of(&key));
        }
        state.dead_len += 1;
        state.dead_bytes += value.len() as u64;
        state.next_seq = state.next_seq.max(number_of(&key) + 1);
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
            Err(CodecError::UnknownVersion(version).into())
        }
        // sled takes a file that makes no sense for a new one.
        None if made.exists() || !db.is_empty() => Err(damaged("nothing of the queue can be read")),
        None => {
            for n in 0..BULKHEAD_LEN {
                db.insert(bulkhead_key(n), &[BULKHEAD])?;
            }
            db.insert(SEAL, &0_u64.to_be_bytes())?;
            db.insert(FORMAT, &[LAYOUT_VERSION])?;
            db.flush()?;
            fs::write(&made, "").map_err(QueueError::Disk)
        }
    }
}

/// Which entries of a block are gone.
type Masks = BTreeMap<BlockId, u64>;

fn read_masks(db: &sled::Db, sum: &mut u64) -> Result<Masks, QueueError> {
    let mut masks = Masks::new();
    for item in db.scan_prefix([MASK]) {
        let (key, value) = item?;
        *sum = sum.wrapping_add(fingerprint(&key, &value));
        let gone = (*value).try_into().map(u64::from_be_bytes);
        let (Some(id), Ok(gone)) = (masked_block_of(&key), gone) else {
            return Err(damaged("a note of what is gone is none"));
        };
        masks.insert(id, gone);
    }
    Ok(masks)
}

/// Walks the blocks of a kind, in order, pieces put together.
fn each_block(
    db: &sled::Db,
    cache: &CacheGuard,
    kind: u8,
    masks: &Masks,
    sum: &mut u64,
    mut each: impl FnMut(BlockId, Block, View<'_>) -> Result<(), QueueError>,
) -> Result<(), QueueError> {
    let mut items = db.scan_prefix([kind]).peekable();
    while let Some(item) = items.next() {
        let (key, mut value) = item?;
        let id = block_of(&key).ok_or_else(|| damaged("a piece without its block"))?;
        let is_more = |next: &Result<_, sled::Error>| {
            next.as_ref().is_ok_and(|(next, _): &(sled::IVec, _)| next.starts_with(&key))
        };
        let mut whole = Vec::new();
        while let Some(piece) = items.next_if(is_more) {
            if whole.is_empty() {
                whole = value.to_vec();
            }
            whole.extend_from_slice(&piece?.1);
        }
        if !whole.is_empty() {
            value = whole.into();
        }
        cache.passed(db, &key);
        let plain = unpack(&value)?;
        let view = View::of(&plain)?;
        let fingerprint = fingerprint(&key, &value);
        *sum = sum.wrapping_add(fingerprint);
        let mut block = Block::new(view.len(), value.len(), view.bytes(), fingerprint);
        block.gone = masks.get(&id).copied().unwrap_or(0);
        if block.gone & !block.all() != 0 || block.gone == block.all() {
            return Err(damaged("a note of what is gone does not fit its block"));
        }
        each(id, block, view)?;
    }
    Ok(())
}

fn read_moved(
    db: &sled::Db,
    cache: &CacheGuard,
    masks: &Masks,
    state: &mut State,
    sum: &mut u64,
) -> Result<(), QueueError> {
    each_block(db, cache, MOVED, masks, sum, |id, block, view| {
        for slot in block.live() {
            let seq = view.seq(slot);
            if !state.blocks.add_moved(seq, Place { block: id, slot: slot as u8 }) {
                return Err(damaged("an entry is in two blocks"));
            }
            state.next_seq = state.next_seq.max(seq + 1);
        }
        state.blocks.add(id, block);
        Ok(())
    })
}

/// Meets every entry in its order, those that have moved between those at home. Returns the entries that are
/// to be joined with an earlier one of their document, and that one.
fn read_homes(
    db: &sled::Db,
    cache: &CacheGuard,
    masks: &Masks,
    state: &mut State,
    sum: &mut u64,
) -> Result<Vec<(u64, u64)>, QueueError> {
    let mut twice = Vec::new();
    let mut namespaces = Namespaces::default();
    let mut moved = Reader::new(db, cache);
    // Behind the last entry that was met.
    let mut next = 0;
    each_block(db, cache, HOME, masks, sum, |id, block, view| {
        let first = view.seq(0);
        if id != BlockId::Home(first) || (1..view.len()).any(|n| view.seq(n) != first + n as u64) {
            return Err(damaged("a block's entries do not follow one another"));
        }
        if first < next {
            return Err(damaged("an entry is in two blocks"));
        }
        state.blocks.add(id, block);
        for slot in 0..view.len() {
            let seq = view.seq(slot);
            state.meet_moved(&mut moved, &mut namespaces, next..seq, &mut twice)?;
            if block.gone >> slot & 1 == 0 {
                twice.extend(state.meet(&mut moved, &mut namespaces, seq, view.entry(slot)?)?);
            } else {
                state.meet_moved(&mut moved, &mut namespaces, seq..seq + 1, &mut twice)?;
            }
            next = seq + 1;
        }
        Ok(())
    })?;
    let end = state.next_seq.max(next);
    state.meet_moved(&mut moved, &mut namespaces, next..end, &mut twice)?;
    state.next_seq = end;
    Ok(twice)
}

/// The process ended while a document's first entry was leased: the two become one (I2).
fn join(
    db: &sled::Db,
    cache: &CacheGuard,
    state: &mut State,
    twice: Vec<(u64, u64)>,
) -> Result<(), QueueError> {
    if twice.is_empty() {
        return Ok(());
    }
    let mut edit = Edit::of(state.seal);
    let mut merged = BTreeMap::new();
    let mut reader = Reader::new(db, cache);
    for (first, second) in twice {
        let mut read = |seq| {
            let place = state.blocks.place_of(seq).expect("it was just met");
            reader.entry(&state.blocks, (seq, place))
        };
        let (later, _) = read(second)?;
        let (entry, _) = match merged.entry(first) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(free) => free.insert(read(first)?),
        };
        entry.absorb(later.into_later());
        edit.remove_entry(second);
    }
    for (entry, before) in merged.values() {
        let after = edit.change_entry(entry) as u64;
        state.pending_bytes = state.pending_bytes + after - *before as u64;
    }
    let Finished { batch, seal, changes } = edit.finish(&Surroundings {
        blocks: &state.blocks,
        untouched_from: 0,
        is_leased: &|_| false,
        read: &|id| read_block(db, cache, &state.blocks, id),
    })?;
    db.apply_batch(batch)?;
    state.seal = seal;
    state.blocks.apply(changes);
    Ok(())
}

impl State {
    /// Meets the entries that have moved, of these numbers.
    fn meet_moved(
        &mut self,
        reader: &mut Reader<'_>,
        namespaces: &mut Namespaces,
        seqs: std::ops::Range<u64>,
        twice: &mut Vec<(u64, u64)>,
    ) -> Result<(), QueueError> {
        let mut from = seqs.start;
        while let Some((seq, place)) =
            self.blocks.next_moved_from(from).filter(|(seq, _)| *seq < seqs.end)
        {
            let bytes = reader.bytes(&self.blocks, (seq, place))?.to_vec();
            twice.extend(self.meet(reader, namespaces, seq, &bytes)?);
            from = seq + 1;
        }
        Ok(())
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
        self.next_seq = self.next_seq.max(seq + 1);
        let (ns, key) = match codec::subject_of(bytes, namespaces)? {
            Subject::Document(ns, key) => (ns, key),
            Subject::Schema(change) => {
                self.pending += 1;
                self.pending_bytes += bytes.len() as u64;
                self.schedule.barrier_added(&change.namespaces(), seq);
                return Ok(None);
            }
        };
        let name = self.index.name_of(&ns, &key);
        let previous = self.newest(reader, &name)?.map(|(entry, _)| entry.seq);
        if let Some(first) = previous
            && !self.schedule.is_closed(&ns, first)
        {
            return Ok(Some((first, seq)));
        }
        self.pending += 1;
        self.pending_bytes += bytes.len() as u64;
        self.schedule.added(&ns);
        self.index.set(&name, previous, seq);
        Ok(None)
    }
}
