//! How far a sync is: a note of each collection and of each range, each under a key of its own.
//!
//! So that what is written for one is as long as itself, however many there are. Each begins with the id of the run that
//! it belongs to: what a run notes that was replaced meanwhile is nobody's, and goes with the next one's end.
//!
//! | key after `sync` | what it notes |
//! | --- | --- |
//! | `only`, name | a collection that the mandatory sync is about |
//! | `again`, name | one whose name has changed hands meanwhile |
//! | `begun`, name | its copy or comparison has begun: the [`CopyPlan`], without the ranges |
//! | `range`, name, number | a range that is done |
//! | `done`, name | it is done; with a 1 when a mass delete was refused in it |
//! | `postponed` | of no run yet, and so without an id before it: the note of one on demand that is to come behind this one |
//!
//! Earlier builds kept all of it in the one note of the run. That is read, and written anew in this form by the next
//! run that goes on.

use std::collections::{BTreeMap, BTreeSet};

use uuid::Uuid;

use super::{CopyPlan, META, SyncState, damaged};
use crate::{
    model::namespace::Namespace,
    queue::{Queue, QueueError},
};

/// Between the parts of a key: no name has it.
const BETWEEN: char = '\0';

const ONLY: &str = "only";
const AGAIN: &str = "again";
const BEGUN: &str = "begun";
const RANGE: &str = "range";
const DONE: &str = "done";
const POSTPONED: &str = "postponed";

/// Notes to be put, and with `None` to be removed.
pub(super) type Changes = BTreeMap<String, Option<Vec<u8>>>;

/// What has become of one collection.
#[derive(Clone, Debug, PartialEq)]
pub enum CollectionStep {
    /// Its copy or comparison begins.
    Begun(CopyPlan),
    /// The range of this number is done.
    RangeDone(usize),
    /// It is done; `is_refused` when a mass delete was refused in it.
    Finished { is_refused: bool },
    /// What was begun is to be begun anew.
    Forgotten,
}

fn below(kind: &str) -> String {
    format!("{META}{BETWEEN}{kind}{BETWEEN}")
}

fn key(kind: &str, ns: &Namespace) -> String {
    below(kind) + ns.as_str()
}

fn ranges_of(ns: &Namespace) -> String {
    format!("{}{BETWEEN}", key(RANGE, ns))
}

fn value(id: Uuid, rest: &[u8]) -> Vec<u8> {
    [id.as_bytes(), rest].concat()
}

fn plan_of(id: Uuid, plan: &CopyPlan) -> Vec<u8> {
    let plan = CopyPlan { done: BTreeSet::new(), ..plan.clone() };
    value(id, &serde_json::to_vec(&plan).expect("keys are JSON"))
}

fn put_range(changes: &mut Changes, id: Uuid, ns: &Namespace, range: usize) {
    changes.insert(format!("{}{range}", ranges_of(ns)), Some(value(id, &[])));
}

/// Removes what is noted of all ranges of a collection.
fn forget_ranges(queue: &Queue, ns: &Namespace, changes: &mut Changes) -> Result<(), QueueError> {
    for (name, _) in queue.metas_below(&ranges_of(ns))? {
        changes.insert(name, None);
    }
    Ok(())
}

/// What a step of the run `id` changes.
pub(super) fn of_step(
    queue: &Queue,
    id: Uuid,
    ns: &Namespace,
    step: &CollectionStep,
) -> Result<Changes, QueueError> {
    let mut changes = Changes::new();
    match step {
        CollectionStep::RangeDone(range) => put_range(&mut changes, id, ns, *range),
        CollectionStep::Begun(plan) => {
            forget_ranges(queue, ns, &mut changes)?;
            changes.insert(key(BEGUN, ns), Some(plan_of(id, plan)));
            for range in &plan.done {
                put_range(&mut changes, id, ns, *range);
            }
        }
        CollectionStep::Finished { is_refused } => {
            forget_ranges(queue, ns, &mut changes)?;
            changes.insert(key(BEGUN, ns), None);
            changes.insert(key(DONE, ns), Some(value(id, &[u8::from(*is_refused)])));
        }
        CollectionStep::Forgotten => {
            forget_ranges(queue, ns, &mut changes)?;
            changes.insert(key(BEGUN, ns), None);
        }
    }
    Ok(changes)
}

/// Notes that collections are part of what is required.
pub(super) fn put_only<'n>(
    changes: &mut Changes,
    id: Uuid,
    namespaces: impl IntoIterator<Item = &'n Namespace>,
) {
    changes.extend(namespaces.into_iter().map(|ns| (key(ONLY, ns), Some(value(id, &[])))));
}

/// Notes that collections are to be looked at again.
pub(super) fn put_again<'n>(
    changes: &mut Changes,
    id: Uuid,
    namespaces: impl IntoIterator<Item = &'n Namespace>,
) {
    changes.extend(namespaces.into_iter().map(|ns| (key(AGAIN, ns), Some(value(id, &[])))));
}

/// Takes the collections that are to be looked at again: they are done no longer.
pub(super) fn take_again(
    queue: &Queue,
    id: Uuid,
    changes: &mut Changes,
) -> Result<BTreeSet<Namespace>, QueueError> {
    let mut taken = BTreeSet::new();
    for (name, noted) in queue.metas_below(&below(AGAIN))? {
        if noted.starts_with(id.as_bytes()) {
            let ns = namespace(&name[below(AGAIN).len()..])?;
            changes.insert(key(DONE, &ns), None);
            if ns == Namespace::all_of(ns.db()) {
                let of_all = queue.metas_below(&format!("{}{}.", below(DONE), ns.db()))?;
                changes.extend(of_all.into_iter().map(|(name, _)| (name, None)));
            }
            taken.insert(ns);
        }
        changes.insert(name, None);
    }
    Ok(taken)
}

/// True when collections are to be looked at again.
pub(super) fn has_again(queue: &Queue, id: Uuid) -> Result<bool, QueueError> {
    let again = queue.metas_below(&below(AGAIN))?;
    Ok(again.iter().any(|(_, noted)| noted.starts_with(id.as_bytes())))
}

/// Notes a sync on demand that is to come behind the one that is open.
pub(super) fn put_postponed(changes: &mut Changes, asked: &SyncState) {
    changes.insert(format!("{META}{BETWEEN}{POSTPONED}"), Some(asked.encode()));
}

/// Nothing on demand is to come behind the one that is open.
pub(super) fn remove_postponed(changes: &mut Changes) {
    changes.insert(format!("{META}{BETWEEN}{POSTPONED}"), None);
}

/// The sync on demand that is to come behind the one that is open, if there is one.
pub(super) fn postponed(queue: &Queue) -> Result<Option<SyncState>, QueueError> {
    SyncState::decode(queue.meta(&format!("{META}{BETWEEN}{POSTPONED}"))?.as_deref())
}

/// Removes all notes, of whichever run.
pub(super) fn remove_all(queue: &Queue) -> Result<Changes, QueueError> {
    let all = queue.metas_below(&format!("{META}{BETWEEN}"))?;
    Ok(all.into_iter().map(|(name, _)| (name, None)).collect())
}

/// Adds to a run what is noted of its collections.
pub(super) fn read_into(queue: &Queue, state: &mut SyncState) -> Result<(), QueueError> {
    let prefix = format!("{META}{BETWEEN}");
    let mut ranges = Vec::new();
    for (name, noted) in queue.metas_below(&prefix)? {
        let Some(rest) = noted.strip_prefix(state.id.as_bytes()) else { continue };
        let mut parts = name[prefix.len()..].split(BETWEEN);
        let (kind, ns) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
        let ns = namespace(ns)?;
        match kind {
            ONLY => drop(state.only.insert(ns)),
            AGAIN => drop(state.again.insert(ns)),
            DONE => {
                state.begun.remove(&ns);
                if rest == [1] {
                    state.refused.insert(ns.clone());
                }
                state.done.insert(ns);
            }
            BEGUN => {
                let plan = serde_json::from_slice(rest).map_err(damaged)?;
                state.begun.insert(ns, plan);
            }
            RANGE => {
                let range = parts.next().unwrap_or_default().parse().map_err(damaged)?;
                ranges.push((ns, range));
            }
            _ => {}
        }
    }
    for (ns, range) in ranges {
        if let Some(plan) = state.begun.get_mut(&ns) {
            plan.done.insert(range);
        }
    }
    Ok(())
}

/// All that is known of a run, as notes.
pub(super) fn of_whole(state: &SyncState) -> Changes {
    let mut changes = Changes::new();
    put_only(&mut changes, state.id, &state.only);
    put_again(&mut changes, state.id, &state.again);
    for ns in &state.done {
        let is_refused = u8::from(state.refused.contains(ns));
        changes.insert(key(DONE, ns), Some(value(state.id, &[is_refused])));
    }
    for (ns, plan) in &state.begun {
        changes.insert(key(BEGUN, ns), Some(plan_of(state.id, plan)));
        for range in &plan.done {
            put_range(&mut changes, state.id, ns, *range);
        }
    }
    changes
}

fn namespace(name: &str) -> Result<Namespace, QueueError> {
    name.parse().map_err(damaged)
}
