//! Committing: merge in memory what belongs together, then write each touched entry once.
//!
//! What is merged stands in memory, several times while it is written, and sled (0.34.7) frees nothing of a batch before
//! its end. A change of some bytes brings along the document that waits, which may have 16 MiB. So ops are committed in
//! parts, cut by the bytes of what they come to, not of what arrives; the last part has the checkpoint. After a crash in
//! between, what is in the queue is read and merged once more, which ends with the same documents (I5).
//!
//! From the first barrier on all is one part: a rename or a drop that is read once more, after a crash, would take what
//! has the name by then. So what waits, and would make that part too large, is made a `Refresh` in parts before it: that
//! needs nothing of the document, and is harmless read twice. What has become large since is not merged either.

use std::vec;

use ahash::{HashMap, HashSet};
use uuid::Uuid;

use super::{
    Entry, Incoming, QueueError, Work, codec,
    index::DocumentName,
    layout::CHECKPOINT,
    merge::Later,
    reader::Reader,
    rename::{Barriers, follow, letter_followed},
    state::StoreState,
    store::Store,
};
use crate::{
    model::{checkpoint::Checkpoint, namespace::Namespace, write_op::WriteOp},
    runtime::crash::{self, CrashPoint},
};

/// What a commit did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Committed {
    /// Entries that are new.
    pub queued: u64,
    /// Ops that were merged into an entry.
    pub coalesced: u64,
}

impl std::ops::AddAssign for Committed {
    fn add_assign(&mut self, further: Self) {
        self.queued += further.queued;
        self.coalesced += further.coalesced;
    }
}

/// Bytes of an entry that is worth to be read anew for.
const LARGE: usize = 4 << 10;

/// What an entry that was brought from the store counts for beside its body: others of its block may move along.
const BROUGHT: usize = 1 << 10;

/// A `Refresh` of each large entry that ops behind a barrier would take out of the store in one part with it; of none
/// where these are no more than a part may have.
///
/// # Errors
/// When the queue cannot be read, or takes no more.
pub fn too_large(
    store: &Store,
    state: &StoreState,
    behind: &[Incoming],
) -> Result<Vec<Incoming>, QueueError> {
    state.refuse_after_failure()?;
    // Nearly always: then nothing need be read twice.
    if state.ledger().pending_bytes <= store.part_bytes as u64 {
        return Ok(Vec::new());
    }
    // What a barrier closes is not merged with.
    let mut closed = Vec::new();
    for op in behind {
        if let Work::Schema(change) = &op.work {
            closed.extend(change.namespaces());
        }
    }
    let (mut bytes, mut large) = (0, Vec::new());
    let mut reader = store.reader();
    for op in behind.iter().filter(|op| !closed.contains(op.work.ns())) {
        let Work::Document { ns, key, .. } = &op.work else { continue };
        let Some(name) = state.name_of(&op.work) else { continue };
        let Some((entry, len)) = state.newest(&mut reader, &name)? else { continue };
        if len < LARGE || state.ledger().stays(ns, entry.seq) {
            continue;
        }
        bytes += len;
        let (ns, key) = (ns.clone(), key.clone());
        let work = Work::refresh(ns, key);
        large.push(Incoming { work, cluster_time: op.cluster_time, wall_ms: op.wall_ms });
    }
    Ok(if bytes > store.part_bytes { large } else { Vec::new() })
}

/// The first of the ops, as many as are one part, with nobody in between since `state` was looked at.
///
/// # Errors
/// Nothing of the part is in the queue then.
pub fn commit_part(
    store: &Store,
    state: &mut StoreState,
    incoming: &mut vec::IntoIter<Incoming>,
    checkpoint: Option<&Checkpoint>,
) -> Result<Committed, QueueError> {
    state.refuse_after_failure()?;
    let mut staged = Staged::new(state, store.part_bytes, incoming.len(), store.reader());
    for incoming in &mut *incoming {
        staged.add(state, incoming)?;
        if staged.is_full() && staged.barriers.is_empty() {
            break;
        }
    }
    let checkpoint = checkpoint.filter(|_| incoming.as_slice().is_empty());
    let mut edit = state.edit();
    edit.reserve(staged.slots.iter().filter(|slot| slot.is_changed).map(|slot| &slot.entry));
    let mut bytes_added = 0_i64;
    for gone in staged.slots.iter().filter_map(|slot| slot.anew_of.as_ref()) {
        edit.remove_entry(gone.seq, gone.bytes);
        bytes_added -= gone.bytes as i64;
    }
    for slot in staged.slots.iter_mut().filter(|slot| slot.is_changed) {
        let bytes = if slot.is_new {
            edit.add_entry(&slot.entry)
        } else {
            edit.change_entry(&slot.entry, slot.bytes_before)
        };
        // It stands in the edit now.
        if let Work::Document { op, .. } = &mut slot.entry.work {
            *op = WriteOp::Refresh;
        }
        bytes_added += bytes as i64 - slot.bytes_before as i64;
    }
    if let Some(checkpoint) = checkpoint {
        let before = store.get(CHECKPOINT)?;
        edit.put(CHECKPOINT, codec::encode_checkpoint(checkpoint), before.as_deref());
    }
    let followed = follow(store, &staged.barriers, &state.letters, &mut edit)?;
    crash::point(CrashPoint::CommitBegins);
    store.write(state, edit)?;
    crash::point(if staged.slots.is_empty() {
        CrashPoint::CheckpointDone
    } else {
        CrashPoint::CommitDone
    });

    let front = state.front().clone();
    let mut ledger = front.ledger();
    ledger.next_seq = staged.next_seq;
    ledger.pending_bytes = ledger.pending_bytes.saturating_add_signed(bytes_added);
    for slot in &staged.slots {
        if slot.is_new {
            ledger.appeared(&slot.entry.work, slot.entry.seq);
            if let Some(name) = &slot.name {
                state.index.set(name, slot.previous, slot.entry.seq);
            }
            if let Some(leased) = slot.succeeds {
                ledger.schedule.succeeded(leased, slot.entry.seq);
            }
            if let Some(gone) = &slot.anew_of {
                let gone = (gone.seq, gone.due_ms);
                ledger.began_anew(slot.entry.work.ns(), gone, slot.entry.seq);
            }
        }
    }
    for letter in followed {
        letter_followed(state, letter, &mut ledger);
    }
    Ok(staged.committed)
}

fn body_len(work: &Work) -> usize {
    work.body().map_or(0, |body| body.as_bytes().len())
}

/// The entries that a commit touches, merged in memory so that each is written once.
struct Staged<'a> {
    slots: Vec<StagedEntry>,
    by_name: HashMap<DocumentName, usize>,
    barriers: Barriers,
    /// What is capped from a barrier of this commit on.
    capped: HashSet<Namespace>,
    next_seq: u64,
    ids: Ids,
    reader: Reader<'a>,
    committed: Committed,
    /// Bytes of what is to be written, and how many are to be one part.
    bytes: usize,
    bytes_max: usize,
}

/// The ids of a commit's new entries: one after the other, since asking for each costs more than all else that is
/// done for it.
struct Ids(u128);

impl Ids {
    /// Room for the ids that follow in the lowest of the random bits.
    const ROOM: u128 = 1 << 40;

    fn new() -> Self {
        Self(Uuid::now_v7().as_u128() & !Self::ROOM)
    }

    fn next(&mut self) -> Uuid {
        self.0 += 1;
        Uuid::from_u128(self.0)
    }
}

struct StagedEntry {
    entry: Entry,
    name: Option<DocumentName>,
    is_new: bool,
    /// False for an entry that was only looked at: it is leased, or behind it stands a barrier.
    is_changed: bool,
    /// The newest entry of the document before this one.
    previous: Option<u64>,
    /// The leased entry of the document that this one could have been merged into.
    succeeds: Option<u64>,
    /// The entry in the store that has begun anew as this one.
    anew_of: Option<Gone>,
    /// Encoded size of what this entry replaces.
    bytes_before: usize,
}

/// An entry that is taken out of the store, which waits until `due_ms` and has so many bytes there.
struct Gone {
    seq: u64,
    due_ms: u64,
    bytes: usize,
}

impl<'a> Staged<'a> {
    fn new(state: &StoreState, bytes_max: usize, incoming: usize, reader: Reader<'a>) -> Self {
        Self {
            slots: Vec::with_capacity(incoming),
            by_name: HashMap::with_capacity_and_hasher(incoming, ahash::RandomState::default()),
            barriers: Barriers::default(),
            capped: HashSet::default(),
            next_seq: state.ledger().next_seq,
            ids: Ids::new(),
            reader,
            committed: Committed::default(),
            bytes: 0,
            bytes_max,
        }
    }

    fn is_full(&self) -> bool {
        self.bytes >= self.bytes_max
    }

    fn add(&mut self, state: &StoreState, mut incoming: Incoming) -> Result<(), QueueError> {
        let Some(name) = state.name_of(&incoming.work) else {
            let Work::Schema(change) = &incoming.work else {
                unreachable!("only barriers are nameless")
            };
            self.barriers.pass(change, self.next_seq, &state.letters);
            let capped =
                change.makes_capped(|ns| Self::is_capped(&self.capped, state, ns)).cloned();
            self.capped.extend(capped);
            self.push(incoming, None, (None, None), false);
            return Ok(());
        };
        if let Work::Document { ns, op: op @ (WriteOp::Update(_) | WriteOp::Merge(_)), .. } =
            &mut incoming.work
            && (state.letters.get(&name).is_some() || self.barriers.have_brought_letters(ns))
        {
            // The state that this delta was made from never reached Atlas.
            *op = WriteOp::Refresh;
        }
        let slot = match self.by_name.get(&name) {
            Some(&slot) => Some(slot),
            None => self.load(state, &name)?,
        };
        match slot {
            None => self.push(incoming, Some(name), (None, None), false),
            Some(slot) => {
                let seq = self.slots[slot].entry.seq;
                // An entry in front that is read may bring what is inserted here, into the old place.
                let begins_anew = incoming.work.is_insert()
                    && Self::is_capped(&self.capped, state, incoming.work.ns());
                if self.is_closed(state, incoming.work.ns(), seq) {
                    self.push(incoming, Some(name), (Some(seq), None), begins_anew);
                } else if state.ledger().schedule.leased(seq).is_some() {
                    self.push(incoming, Some(name), (Some(seq), Some(seq)), begins_anew);
                } else if begins_anew {
                    self.begin_anew(slot, name, incoming);
                } else {
                    if self.is_full()
                        && !self.slots[slot].is_new
                        && let Work::Document {
                            op: op @ (WriteOp::Update(_) | WriteOp::Merge(_)),
                            ..
                        } = &mut incoming.work
                    {
                        *op = WriteOp::Refresh;
                    }
                    self.take_up(slot);
                    let slot = &mut self.slots[slot];
                    let was_insert = slot.entry.work.is_insert();
                    slot.entry.absorb(Later::from(incoming));
                    let is_capped = |ns: &Namespace| Self::is_capped(&self.capped, state, ns);
                    slot.entry.keep_place(was_insert, is_capped);
                    slot.is_changed = true;
                    self.bytes += body_len(&slot.entry.work);
                    self.committed.coalesced += 1;
                }
            }
        }
        Ok(())
    }

    /// Brings the newest entry of `name` from the store into a slot.
    fn load(
        &mut self,
        state: &StoreState,
        name: &DocumentName,
    ) -> Result<Option<usize>, QueueError> {
        let Some((mut entry, bytes_before)) = state.newest(&mut self.reader, name)? else {
            return Ok(None);
        };
        let is_kept = self.is_closed(state, entry.work.ns(), entry.seq)
            || state.ledger().schedule.leased(entry.seq).is_some();
        if let Work::Document { op, .. } = &mut entry.work
            && is_kept
        {
            // It stays as it is: only its place counts.
            *op = WriteOp::Refresh;
        }
        self.bytes += BROUGHT;
        self.slots.push(StagedEntry {
            entry,
            name: Some(name.clone()),
            is_new: false,
            is_changed: false,
            previous: None,
            succeeds: None,
            anew_of: None,
            bytes_before,
        });
        self.by_name.insert(name.clone(), self.slots.len() - 1);
        Ok(Some(self.slots.len() - 1))
    }

    /// True for a collection whose documents stand in the order of their inserts.
    fn is_capped(capped: &HashSet<Namespace>, state: &StoreState, ns: &Namespace) -> bool {
        capped.contains(ns) || state.ledger().schedule.is_capped(ns)
    }

    /// What a slot has is changed. What goes out of the store counts too: sled reads it, and keeps it until the end of the
    /// batch.
    fn take_up(&mut self, slot: usize) {
        let slot = &self.slots[slot];
        if slot.is_changed {
            self.bytes -= body_len(&slot.entry.work);
        } else {
            self.bytes += slot.bytes_before;
        }
    }

    /// See [`Entry::begin_anew`]: a new entry in place of the one in this slot.
    fn begin_anew(&mut self, slot: usize, name: DocumentName, insert: Incoming) {
        self.take_up(slot);
        let before = &mut self.slots[slot];
        // It is not needed, and may be large.
        if let Work::Document { op, .. } = &mut before.entry.work {
            *op = WriteOp::Refresh;
        }
        let mut entry = before.entry.clone();
        let (previous, succeeds, anew_of) = if before.is_new {
            (before.previous, before.succeeds, before.anew_of.take())
        } else {
            let (seq, due_ms, bytes) = (entry.seq, entry.due_ms, before.bytes_before);
            (Some(seq), None, Some(Gone { seq, due_ms, bytes }))
        };
        (before.is_new, before.is_changed) = (false, false);
        entry.begin_anew(self.next_seq, Later::from(insert));
        self.committed.coalesced += 1;
        self.stage(entry, Some(name), (previous, succeeds), anew_of);
    }

    /// True when a barrier, stored or of this commit, stands behind `seq`.
    fn is_closed(&self, state: &StoreState, ns: &Namespace, seq: u64) -> bool {
        state.ledger().schedule.lines.is_closed(ns, seq) || self.barriers.close(ns, seq)
    }

    fn push(
        &mut self,
        incoming: Incoming,
        name: Option<DocumentName>,
        before: (Option<u64>, Option<u64>),
        again: bool,
    ) {
        let entry = incoming.into_entry(self.next_seq, self.ids.next());
        let entry = Entry { again, ..entry };
        self.committed.queued += 1;
        self.stage(entry, name, before, None);
    }

    /// An entry with the next number.
    fn stage(
        &mut self,
        entry: Entry,
        name: Option<DocumentName>,
        (previous, succeeds): (Option<u64>, Option<u64>),
        anew_of: Option<Gone>,
    ) {
        self.next_seq += 1;
        self.bytes += body_len(&entry.work);
        if let Some(name) = &name {
            self.by_name.insert(name.clone(), self.slots.len());
        }
        self.slots.push(StagedEntry {
            entry,
            name,
            is_new: true,
            is_changed: true,
            previous,
            succeeds,
            anew_of,
            bytes_before: 0,
        });
    }
}
