//! Committing: merge in memory what belongs together, then write each touched entry once.

use std::{collections::HashMap, sync::atomic::Ordering};

use sled::IVec;

use super::{
    Entry, Incoming, Queue, QueueError, Work, codec,
    index::DocumentName,
    merge::Later,
    store::{CHECKPOINT, State, entry_key},
};
use crate::{
    checkpoint::{Checkpoint, ClusterTime},
    crash::{self, Step},
    document_key::DocumentKey,
    event::{CollectionId, SchemaChange},
    namespace::Namespace,
    write_op::WriteOp,
};

/// What a commit did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Committed {
    /// Entries that are new.
    pub queued: u64,
    /// Ops that were merged into an entry.
    pub coalesced: u64,
}

impl Queue {
    /// Adds ops in the order of the stream, and the checkpoint that stands behind them, in one
    /// atomic step (I1). What can be merged with what waits, is.
    ///
    /// # Errors
    /// After an error nothing of this commit is in the queue.
    pub fn commit(
        &self,
        incoming: Vec<Incoming>,
        checkpoint: Option<&Checkpoint>,
    ) -> Result<Committed, QueueError> {
        let mut state = self.lock();
        state.refuse_after_failure()?;
        let mut staged = Staged::new(state.next_seq);
        for incoming in incoming {
            if let Work::Schema(SchemaChange::Rename { from, to, .. }) = &incoming.work {
                // What must still be read locally has moved to the new name.
                let moved = staged.unread(self, from)?;
                let (from_time, wall_ms, to) =
                    (incoming.cluster_time, incoming.wall_ms, to.clone());
                staged.add(self, &state, incoming)?;
                for (key, collection) in moved {
                    // A rename keeps the collection's UUID.
                    let work =
                        Work::Document { ns: to.clone(), key, op: WriteOp::Refresh, collection };
                    staged.add(
                        self,
                        &state,
                        Incoming { work, cluster_time: from_time, wall_ms },
                    )?;
                }
            } else {
                staged.add(self, &state, incoming)?;
            }
        }
        let mut edit = state.edit();
        let mut bytes_added = 0_i64;
        for slot in staged.slots.iter().filter(|slot| slot.is_changed) {
            let value = codec::encode_entry(&slot.entry);
            let before = slot.before.as_deref();
            bytes_added += value.len() as i64 - before.map_or(0, <[u8]>::len) as i64;
            edit.put(&entry_key(slot.entry.seq), value, before);
        }
        if let Some(checkpoint) = checkpoint {
            let before = self.db.get(CHECKPOINT)?;
            edit.put(CHECKPOINT, codec::encode_checkpoint(checkpoint), before.as_deref());
        }
        crash::point(Step::CommitBegins);
        self.write(&mut state, edit)?;
        crash::point(if staged.slots.is_empty() { Step::CheckpointDone } else { Step::CommitDone });

        state.next_seq = staged.next_seq;
        state.pending_bytes = state.pending_bytes.saturating_add_signed(bytes_added);
        for slot in &staged.slots {
            if slot.is_new {
                state.pending += 1;
                state.appeared(slot.name.as_ref(), &slot.entry.work, slot.entry.seq);
                if let Some(name) = &slot.name {
                    state.index.set(name, slot.previous, slot.entry.seq);
                }
                if let Some(leased) = slot.succeeds {
                    state.schedule.succeeded(leased, slot.entry.seq);
                }
            }
        }
        drop(state);
        self.changed.notify_waiters();
        Ok(staged.committed)
    }
}

impl Queue {
    /// Turns everything that waits into `Refresh`. For a stream that has a gap: what was queued before
    /// it may be older than what Atlas gets by a comparison, and nothing later in the stream would put
    /// that right.
    pub fn refresh_pending(
        &self,
        cluster_time: ClusterTime,
        wall_ms: u64,
    ) -> Result<(), QueueError> {
        let mut part = Vec::new();
        for entry in self.entries() {
            if let Work::Document { ns, key, .. } = entry?.work {
                let work = Work::Document { ns, key, op: WriteOp::Refresh, collection: None };
                part.push(Incoming { work, cluster_time, wall_ms });
            }
            if part.len() >= 1_000 {
                self.commit(std::mem::take(&mut part), None)?;
            }
        }
        self.commit(part, None)?;
        Ok(())
    }
}

/// The entries that a commit touches, merged in memory so that each is written once.
struct Staged {
    slots: Vec<Slot>,
    by_name: HashMap<DocumentName, usize>,
    /// Barriers of this commit: nothing before the last one of a namespace may be merged into.
    closed: HashMap<Namespace, u64>,
    next_seq: u64,
    committed: Committed,
}

struct Slot {
    entry: Entry,
    name: Option<DocumentName>,
    is_new: bool,
    /// False for an entry that was only looked at: it is leased, or behind it stands a barrier.
    is_changed: bool,
    /// The newest entry of the document before this one.
    previous: Option<u64>,
    /// The leased entry of the document that this one could have been merged into.
    succeeds: Option<u64>,
    /// The stored value that this entry replaces.
    before: Option<IVec>,
}

impl Staged {
    fn new(next_seq: u64) -> Self {
        Self {
            slots: Vec::new(),
            by_name: HashMap::new(),
            closed: HashMap::new(),
            next_seq,
            committed: Committed::default(),
        }
    }

    fn add(
        &mut self,
        queue: &Queue,
        state: &State,
        mut incoming: Incoming,
    ) -> Result<(), QueueError> {
        let Some(name) = state.name_of(&incoming.work) else {
            let Work::Schema(change) = &incoming.work else {
                unreachable!("only barriers are nameless")
            };
            for ns in change.namespaces() {
                self.closed.insert(ns, self.next_seq);
            }
            self.push(incoming, None, None, None);
            return Ok(());
        };
        if let Work::Document { op: op @ WriteOp::Update(_), .. } = &mut incoming.work
            && state.dead.contains_key(&name)
        {
            // The state that this delta was made from never reached Atlas.
            *op = WriteOp::Refresh;
        }
        let ns = incoming.work.ns().clone();
        let slot = match self.by_name.get(&name) {
            Some(&slot) => Some(slot),
            None => self.load(queue, state, &name)?,
        };
        match slot {
            None => self.push(incoming, Some(name), None, None),
            Some(slot) => {
                let seq = self.slots[slot].entry.seq;
                if self.is_closed(state, &ns, seq) {
                    self.push(incoming, Some(name), Some(seq), None);
                } else if state.schedule.leased(seq).is_some() {
                    self.push(incoming, Some(name), Some(seq), Some(seq));
                } else {
                    self.slots[slot].entry.absorb(Later::from(incoming));
                    self.slots[slot].is_changed = true;
                    self.committed.coalesced += 1;
                }
            }
        }
        Ok(())
    }

    /// Brings the newest entry of `name` from the store into a slot.
    fn load(
        &mut self,
        queue: &Queue,
        state: &State,
        name: &DocumentName,
    ) -> Result<Option<usize>, QueueError> {
        let mut found = None;
        state
            .index
            .find(name, |seq| -> Result<bool, QueueError> {
                let Some(value) = queue.entry_bytes(seq)? else {
                    return Ok(false);
                };
                let entry = codec::decode_entry(seq, &value)?;
                let is_it = state.name_of(&entry.work).as_ref() == Some(name);
                if is_it {
                    found = Some((entry, value));
                }
                Ok(is_it)
            })?
            .map_or(Ok(()), |seq| -> Result<(), QueueError> {
                if found.is_none()
                    && let Some(value) = queue.entry_bytes(seq)?
                {
                    found = Some((codec::decode_entry(seq, &value)?, value));
                }
                Ok(())
            })?;
        let Some((entry, before)) = found else {
            return Ok(None);
        };
        self.slots.push(Slot {
            entry,
            name: Some(name.clone()),
            is_new: false,
            is_changed: false,
            previous: None,
            succeeds: None,
            before: Some(before),
        });
        self.by_name.insert(name.clone(), self.slots.len() - 1);
        Ok(Some(self.slots.len() - 1))
    }

    /// True when a barrier, stored or of this commit, stands behind `seq`.
    fn is_closed(&self, state: &State, ns: &Namespace, seq: u64) -> bool {
        state.schedule.is_closed(ns, seq)
            || self.closed.get(ns).is_some_and(|&barrier| barrier > seq)
    }

    fn push(
        &mut self,
        incoming: Incoming,
        name: Option<DocumentName>,
        previous: Option<u64>,
        succeeds: Option<u64>,
    ) {
        let entry = incoming.into_entry(self.next_seq);
        self.next_seq += 1;
        self.committed.queued += 1;
        if let Some(name) = &name {
            self.by_name.insert(name.clone(), self.slots.len());
        }
        self.slots.push(Slot {
            entry,
            name,
            is_new: true,
            is_changed: true,
            previous,
            succeeds,
            before: None,
        });
    }

    /// Keys of the entries of `ns`, stored or staged, whose document is still to be read locally.
    fn unread(
        &self,
        queue: &Queue,
        ns: &Namespace,
    ) -> Result<Vec<(DocumentKey, Option<CollectionId>)>, QueueError> {
        let unread = |entry: &Entry| match &entry.work {
            Work::Document {
                ns: of,
                key,
                op: WriteOp::Update(_) | WriteOp::Refresh,
                collection,
            } if of == ns => Some((key.clone(), *collection)),
            Work::Document { .. } | Work::Schema(_) => None,
        };
        let mut keys = Vec::new();
        for entry in queue.entries() {
            keys.extend(unread(&entry?));
            queue.progress.fetch_add(1, Ordering::Relaxed);
        }
        keys.extend(self.slots.iter().filter_map(|slot| unread(&slot.entry)));
        Ok(keys)
    }
}
