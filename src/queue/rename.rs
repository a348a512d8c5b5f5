//! Renames and drops of a commit: what they do to what waits, and to the dead letters.
//!
//! What waits in front of one keeps its place and its name: whoever reads a document asks what its collection
//! [is called now](super::lines::Lines::called_now). What comes behind it for a name is another collection's, and
//! is not merged with anything in front.
//!
//! A letter follows its collection, in the same step. Behind that, what is queued for the new name may be for a
//! document that has a letter, of which the index knows only when the step is done: a delta of it was made from a state
//! that never reached Atlas.

use std::collections::{BTreeMap, BTreeSet};

use ahash::HashMap;

use super::{
    Entry, QueueError, Work, codec, edit::Edit, index::DocumentName, ledger::Ledger,
    letters::Letters, state::StoreState, store::Store, turns::Turn,
};
use crate::{
    model::{event::SchemaChange, namespace::Namespace, write_op::WriteOp},
    queue::dead_letter::DeadLetter,
};

/// The barriers of a commit.
#[derive(Default)]
pub struct Barriers {
    /// Nothing before the last one of a namespace is merged into.
    closed: HashMap<Namespace, u64>,
    /// The letters of the names that were touched.
    now: HashMap<Namespace, BTreeSet<u64>>,
}

impl Barriers {
    pub fn is_empty(&self) -> bool {
        self.closed.is_empty()
    }

    /// Goes through a barrier that will have the number `seq`. The letters of the collections that it is about follow
    /// it.
    pub fn pass(&mut self, change: &SchemaChange, seq: u64, letters: &Letters) {
        for ns in change.namespaces() {
            match Turn::of(change, &ns) {
                Some(Turn::Renamed(to)) => {
                    let moved = self.take(&ns, letters);
                    // What the target had goes with the collection that gives way.
                    self.take(&to, letters);
                    self.now.insert(to, moved);
                }
                Some(Turn::Gone) if change.ns() == &ns => drop(self.take(&ns, letters)),
                // The target of a rename, which was seen to.
                Some(Turn::Gone) | None => {}
            }
            self.closed.insert(ns, seq);
        }
    }

    /// True when one of them stands behind `seq`.
    pub fn close(&self, ns: &Namespace, seq: u64) -> bool {
        self.closed.get(ns).is_some_and(|&barrier| barrier > seq)
    }

    fn take(&mut self, ns: &Namespace, letters: &Letters) -> BTreeSet<u64> {
        match self.now.insert(ns.clone(), BTreeSet::new()) {
            Some(known) => known,
            None => letters.of(ns).cloned().unwrap_or_default(),
        }
    }

    /// True when letters are under this name that the index does not know of yet.
    pub fn have_brought_letters(&self, ns: &Namespace) -> bool {
        self.now.get(ns).is_some_and(|letters| !letters.is_empty())
    }

    /// The letters that have another name now, or none.
    fn moved(&self, letters: &Letters) -> BTreeMap<u64, Option<Namespace>> {
        let mut moved = BTreeMap::new();
        for ns in self.now.keys() {
            let before = letters.of(ns);
            moved.extend(before.into_iter().flatten().map(|seq| (*seq, None)));
        }
        for (ns, now) in &self.now {
            for seq in now {
                moved.insert(*seq, Some(ns.clone()));
            }
        }
        moved.retain(|seq, to| {
            let stays = |to: &Namespace| letters.of(to).is_some_and(|of| of.contains(seq));
            !to.as_ref().is_some_and(stays)
        });
        moved
    }
}

/// A letter that follows its collection: the document that it was for, and the one that it is for now, if any.
pub struct Followed {
    seq: u64,
    from: Work,
    to: Option<Work>,
}

/// Letters that move together keep their documents as long as these are no more than so many bytes; the rest is left
/// as a `Refresh`, which is what a retry makes of a letter in any case.
const BODIES_MAX: usize = 8 << 20;

/// The letter of a document that was written, which goes.
pub struct Cleared {
    pub ns: Namespace,
    pub name: DocumentName,
    pub letter: u64,
}

/// Removes the letter of the document that an entry has written, if it has one: it may have another name by now,
/// and another collection's letter may have the name that it was written under.
pub fn clear_letter(
    store: &Store,
    state: &StoreState,
    entry: &Entry,
    edit: &mut Edit,
) -> Result<Option<Cleared>, QueueError> {
    let Work::Document { ns, key, collection, .. } = &entry.work else { return Ok(None) };
    let ns = state.ledger().schedule.lines.called_now(ns, entry.seq);
    let Some(ns) = ns else { return Ok(None) };
    let name = state.index.name_of(&ns, key);
    let Some(seq) = state.letters.get(&name) else { return Ok(None) };
    let Some(value) = store.letter(seq)? else { return Ok(None) };
    let letter = codec::decode_dead_letter(seq, &value)?;
    if let Work::Document { collection: Some(of), .. } = letter.entry.work
        && collection.is_some_and(|written| written != of)
    {
        return Ok(None);
    }
    edit.remove_letter(seq, &value);
    Ok(Some(Cleared { ns, name, letter: seq }))
}

/// Puts letters whose collections have another name now where they belong.
pub fn follow(
    store: &Store,
    barriers: &Barriers,
    letters: &Letters,
    edit: &mut Edit,
) -> Result<Vec<Followed>, QueueError> {
    let moved = barriers.moved(letters);
    let mut followed = Vec::with_capacity(moved.len());
    let mut bodies = 0;
    for (seq, to) in moved {
        let Some(stored) = store.letter(seq)? else { continue };
        let DeadLetter { entry, reason, died_ms } = codec::decode_dead_letter(seq, &stored)?;
        let from = named(&entry.work);
        let to = to.map(|to| {
            let mut work = entry.work.clone().renamed(&to);
            bodies += work.body().map_or(0, |body| body.as_bytes().len());
            if let Work::Document { op, .. } = &mut work
                && bodies > BODIES_MAX
            {
                *op = WriteOp::Refresh;
            }
            let document = named(&work);
            let letter = DeadLetter { entry: Entry { work, ..entry }, reason, died_ms };
            edit.put_letter(seq, codec::encode_dead_letter(&letter), Some(&stored));
            document
        });
        if to.is_none() {
            edit.remove_letter(seq, &stored);
        }
        followed.push(Followed { seq, from, to });
        store.goes_on();
    }
    Ok(followed)
}

/// The document that a work is about, and nothing else of it.
fn named(work: &Work) -> Work {
    match work {
        Work::Document { ns, key, .. } => {
            let (ns, key) = (ns.clone(), key.clone());
            Work::refresh(ns, key)
        }
        Work::Schema(change) => Work::Schema(change.clone()),
    }
}

/// A letter has followed its collection in the store.
pub fn letter_followed(state: &mut StoreState, followed: Followed, ledger: &mut Ledger) {
    let Followed { seq, from, to } = followed;
    if let Some(name) = state.name_of(&from)
        && state.letters.remove(from.ns(), &name, seq)
    {
        ledger.dead_len -= 1;
    }
    if let Some(work) = to
        && let Some(name) = state.name_of(&work)
    {
        ledger.dead_len += u64::from(state.letters.insert(work.ns(), name, seq));
    }
}
