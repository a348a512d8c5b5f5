//! What is to be copied or compared, why, and how far that is: kept beside the queue, so that it
//! survives with the checkpoint that it belongs to.
//!
//! Two kinds share the one place. A *mandatory* sync is what the agent owes: the first copy, a lost history. It is
//! never refused and never cancelled; it takes the place of whatever else is noted. One *on demand* is what a
//! person or the clock asked for: refused while anything runs, and cancelled on request. Where it has given way to one
//! that is owed of some collections only, it is *postponed* to the end of that: else whoever asked would be told of an
//! end that another sync has come to.
//!
//! The run itself is one short note; how far it is in each collection is noted beside it, see `notes`.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{
    model::{checkpoint::ClusterTime, document_key::DocumentKey, namespace::Namespace},
    queue::{CodecError, Queue, QueueError, note::SYNC as META},
    runtime::clock::now_ms,
};

pub mod behind;
mod notes;
mod reason;
mod why;

use notes::Changes;
pub use notes::CollectionStep;
pub use reason::Reason;

/// A full sync that is asked for: the body of `POST /api/sync/full`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct SyncRequest {
    /// Patterns such as `shop.*`; empty for all that is replicated.
    pub namespaces: Vec<String>,
    /// Let the servers compare hashes, and open only what differs.
    pub digest: bool,
    /// Report, and repair nothing.
    pub dry_run: bool,
    /// Delete however many documents only Atlas has.
    pub allow_mass_delete: bool,
}

/// How far the copy of one collection is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct CopyPlan {
    /// The keys between its ranges.
    pub splits: Vec<DocumentKey>,
    /// The ranges that are done, by number.
    pub done: BTreeSet<usize>,
    /// It is a copy, and no comparison.
    pub is_copy: bool,
}

/// The note of a sync that is required or under way.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SyncState {
    /// Names this run.
    #[serde(default)]
    pub id: Uuid,
    /// The cluster time that local reads must have reached: the stream's position when the sync was
    /// required. What was committed before it is not in the stream.
    pub after: u64,
    #[serde(default)]
    pub reason: Reason,
    /// Why else, of the reasons that [last](Reason::lasts).
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub also: BTreeSet<Reason>,
    /// When it was required, milliseconds since 1970.
    #[serde(default)]
    pub since_ms: u64,
    /// `None` for a mandatory one.
    #[serde(default)]
    pub request: Option<SyncRequest>,
    /// It is mandatory for some collections.
    #[serde(default)]
    pub is_of_some: bool,
    /// Of a mandatory one: the collections that it is about. Empty for all.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub only: BTreeSet<Namespace>,
    /// Collections that are done.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub done: BTreeSet<Namespace>,
    /// Collections whose copy or comparison has begun.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub begun: BTreeMap<Namespace, CopyPlan>,
    /// Those of `done` in which a mass delete was refused.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub refused: BTreeSet<Namespace>,
    /// Collections that were renamed meanwhile: what was copied or compared under their names may be
    /// another's.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub again: BTreeSet<Namespace>,
}

/// What became of a cancellation.
#[derive(Clone, Debug, PartialEq)]
pub enum Cancelled {
    Done(SyncState),
    /// It must run, or the copy would stay wrong.
    IsOwed(SyncState),
    NothingRuns,
}

impl SyncState {
    /// What is open, if anything is, and how far it is.
    ///
    /// # Errors
    /// When the queue cannot be read.
    pub fn load(queue: &Queue) -> Result<Option<Self>, QueueError> {
        let Some(mut state) = Self::open(queue)? else { return Ok(None) };
        notes::read_into(queue, &mut state)?;
        Ok(Some(state))
    }

    /// What is open, if anything is, without how far it is.
    ///
    /// # Errors
    /// When the queue cannot be read.
    pub fn open(queue: &Queue) -> Result<Option<Self>, QueueError> {
        let Some(mut state) = Self::decode(queue.meta(META)?.as_deref())? else { return Ok(None) };
        state.is_of_some |= !state.only.is_empty();
        Ok(Some(state))
    }

    /// As [`load`](Self::load), for a run that goes on. What an earlier build noted has the present form from here on.
    ///
    /// # Errors
    /// When the queue cannot be read or written.
    pub fn resume(queue: &Queue) -> Result<Option<Self>, QueueError> {
        let mut found = None;
        queue.update_metas(|| {
            found = Self::load(queue)?;
            let noted = Self::open(queue)?;
            Ok(match (&found, noted) {
                (Some(state), Some(noted)) if noted != noted.run() => {
                    let mut changes = notes::of_whole(state);
                    state.put(&mut changes);
                    changes
                }
                _ => Changes::new(),
            })
        })?;
        Ok(found)
    }

    /// Requires that everything be copied or compared, from the beginning, as it is at `position` or
    /// later.
    ///
    /// # Errors
    /// When the queue cannot be written.
    pub fn require(queue: &Queue, position: ClusterTime, reason: Reason) -> Result<(), QueueError> {
        queue.update_metas(|| {
            let last = Self::load(queue)?.unwrap_or_default();
            let mut next = Self::begin(position, reason, None);
            next.after = next.after.max(last.after);
            next.carry(&last);
            let mut changes = notes::remove_all(queue)?;
            // What was to be copied as a whole still is.
            notes::put_again(&mut changes, next.id, last.again.union(&last.only));
            next.put(&mut changes);
            Ok(changes)
        })
    }

    /// Requires that these collections, or [whole databases](Namespace::all_of), be copied or compared, as they are at
    /// `position` or later. What is required already stays so; one on demand of everything becomes mandatory, and any
    /// other one is postponed.
    ///
    /// # Errors
    /// When the queue cannot be written.
    pub fn require_of(
        queue: &Queue,
        position: ClusterTime,
        namespaces: &BTreeSet<Namespace>,
        reason: Reason,
    ) -> Result<(), QueueError> {
        queue.update_metas(|| {
            let mut next = Self::begin(position, reason, None);
            let mut changes = Changes::new();
            match Self::open(queue)? {
                Some(mut open) if open.request.is_none() => {
                    if open.is_of_some {
                        notes::put_only(&mut changes, open.id, namespaces);
                    }
                    // It may be done with them already.
                    notes::put_again(&mut changes, open.id, namespaces);
                    open.also.extend(Some(reason).filter(|reason| reason.lasts()));
                    open.after = open.after.max(next.after);
                    open.put_as_noted(&mut changes);
                }
                open => {
                    changes = notes::remove_all(queue)?;
                    let is_everything = open.as_ref().is_some_and(|open| {
                        let request = open.request.as_ref();
                        request.is_some_and(|asked| asked.namespaces.is_empty() && !asked.dry_run)
                    });
                    if is_everything {
                        notes::put_again(&mut changes, next.id, namespaces);
                    } else {
                        next.is_of_some = !namespaces.is_empty();
                        notes::put_only(&mut changes, next.id, namespaces);
                        if let Some(asked) = open {
                            notes::put_postponed(&mut changes, &asked.run());
                        }
                    }
                    next.put(&mut changes);
                }
            }
            Ok(changes)
        })
    }

    /// Notes a sync on demand, unless something is open already: that is the inner error then.
    ///
    /// # Errors
    /// When the queue cannot be read or written.
    pub fn request(
        queue: &Queue,
        position: ClusterTime,
        request: SyncRequest,
        reason: Reason,
    ) -> Result<Result<Self, Self>, QueueError> {
        let next = Self::begin(position, reason, Some(request));
        let mut open = None;
        queue.update_metas(|| {
            open = Self::open(queue)?;
            if open.is_some() {
                return Ok(Changes::new());
            }
            let mut changes = notes::remove_all(queue)?;
            next.put(&mut changes);
            Ok(changes)
        })?;
        Ok(open.map_or(Ok(next), Err))
    }

    /// As [`request`](Self::request), but where the one that is open is owed of some collections only, it is to come
    /// behind it.
    ///
    /// # Errors
    /// When the queue cannot be read or written.
    pub fn request_behind(
        queue: &Queue,
        position: ClusterTime,
        request: SyncRequest,
        reason: Reason,
    ) -> Result<Result<Self, Self>, QueueError> {
        let asked = Self::request(queue, position, request.clone(), reason)?;
        if !matches!(&asked, Err(open) if open.request.is_none() && open.is_of_some) {
            return Ok(asked);
        }
        let next = Self::begin(position, reason, Some(request));
        let mut refused = None;
        queue.update_metas(|| {
            let mut changes = Changes::new();
            match notes::postponed(queue)? {
                Some(asked) if asked.request != next.request => refused = Some(asked),
                _ => notes::put_postponed(&mut changes, &next),
            }
            Ok(changes)
        })?;
        Ok(refused.map_or(Ok(next), Err))
    }

    /// Takes a sync on demand back, also one that is postponed.
    ///
    /// # Errors
    /// When the queue cannot be read or written.
    pub fn cancel(queue: &Queue) -> Result<Cancelled, QueueError> {
        let mut result = Cancelled::NothingRuns;
        queue.update_metas(|| {
            result = match Self::open(queue)? {
                None => Cancelled::NothingRuns,
                Some(state) if state.request.is_none() => match notes::postponed(queue)? {
                    None => Cancelled::IsOwed(state),
                    Some(asked) => {
                        let mut changes = Changes::new();
                        notes::remove_postponed(&mut changes);
                        result = Cancelled::Done(asked);
                        return Ok(changes);
                    }
                },
                Some(state) => {
                    result = Cancelled::Done(state);
                    return Self::removed(queue);
                }
            };
            Ok(Changes::new())
        })?;
        Ok(result)
    }

    fn begin(position: ClusterTime, reason: Reason, request: Option<SyncRequest>) -> Self {
        Self {
            id: Uuid::now_v7(),
            // A position may be one tick ahead of the last operation, a time that no read can reach
            // yet; what is before it is what counts.
            after: position.0.saturating_sub(1),
            reason,
            since_ms: now_ms(),
            request,
            ..Self::default()
        }
    }

    /// Notes what has become of a collection, in the run `id`. It writes that alone, so that it costs the same however
    /// many collections there are; [`step`](Self::step) has it in memory.
    ///
    /// # Errors
    /// When the queue cannot be read or written.
    pub fn note(
        queue: &Queue,
        id: Uuid,
        ns: &Namespace,
        step: &CollectionStep,
    ) -> Result<(), QueueError> {
        queue.update_metas(|| notes::of_step(queue, id, ns, step))
    }

    /// What has become of a collection.
    pub fn step(&mut self, ns: &Namespace, step: CollectionStep) {
        match step {
            CollectionStep::Begun(plan) => drop(self.begun.insert(ns.clone(), plan)),
            CollectionStep::RangeDone(range) => {
                if let Some(plan) = self.begun.get_mut(ns) {
                    plan.done.insert(range);
                }
            }
            CollectionStep::Finished { is_refused } => {
                if is_refused {
                    self.refused.insert(ns.clone());
                } else {
                    self.refused.remove(ns);
                }
                self.begun.remove(ns);
                self.done.insert(ns.clone());
            }
            CollectionStep::Forgotten => drop(self.begun.remove(ns)),
        }
    }

    /// Notes that the names of collections have changed hands. False when nothing is open.
    ///
    /// # Errors
    /// When the queue cannot be read or written.
    pub fn renamed(queue: &Queue, namespaces: &[Namespace]) -> Result<bool, QueueError> {
        behind::renamed(queue, namespaces)?;
        let mut is_open = false;
        queue.update_metas(|| {
            let mut changes = Changes::new();
            let Some(state) = Self::open(queue)? else { return Ok(changes) };
            is_open = true;
            // A dry run repairs nothing, so there is nothing to do again.
            if !state.request.as_ref().is_some_and(|request| request.dry_run) {
                notes::put_again(&mut changes, state.id, namespaces);
            }
            Ok(changes)
        })?;
        Ok(is_open)
    }

    /// Takes the collections that are to be looked at again, of the run `id`: none of them is done any more.
    ///
    /// # Errors
    /// When the queue cannot be read or written.
    pub fn take_again(queue: &Queue, id: Uuid) -> Result<BTreeSet<Namespace>, QueueError> {
        let mut again = BTreeSet::new();
        queue.update_metas(|| {
            let mut changes = Changes::new();
            if Self::open(queue)?.is_some_and(|noted| noted.id == id) {
                again = notes::take_again(queue, id, &mut changes)?;
            }
            Ok(changes)
        })?;
        Ok(again)
    }

    /// Notes that the run `id` is to look at these again.
    ///
    /// # Errors
    /// When the queue cannot be read or written.
    pub fn compare_again(
        queue: &Queue,
        id: Uuid,
        namespaces: &BTreeSet<Namespace>,
    ) -> Result<(), QueueError> {
        queue.update_metas(|| {
            let mut changes = Changes::new();
            notes::put_again(&mut changes, id, namespaces);
            Ok(changes)
        })
    }

    /// Ends the run `id`; what was postponed for it comes next. False when it must go on: more was required meanwhile.
    ///
    /// # Errors
    /// When the queue cannot be read or written.
    pub fn complete(queue: &Queue, id: Uuid) -> Result<bool, QueueError> {
        let mut current = false;
        queue.update_metas(|| {
            let noted = Self::open(queue)?;
            let after = noted.as_ref().map_or(0, |noted| noted.after);
            current = noted.is_some_and(|noted| noted.id == id && noted.again.is_empty())
                && !notes::has_again(queue, id)?;
            if !current {
                return Ok(Changes::new());
            }
            let mut changes = Self::removed(queue)?;
            if let Some(asked) = notes::postponed(queue)? {
                // Whoever waits for an id waits for that one or a later one.
                Self { id: Uuid::now_v7(), after: asked.after.max(after), ..asked }
                    .put(&mut changes);
            }
            Ok(changes)
        })?;
        Ok(current)
    }

    /// Nothing is noted any more.
    fn removed(queue: &Queue) -> Result<Changes, QueueError> {
        let mut changes = notes::remove_all(queue)?;
        changes.insert(META.to_owned(), None);
        Ok(changes)
    }

    /// The note of the run itself, without those of its collections.
    fn run(&self) -> Self {
        Self {
            id: self.id,
            after: self.after,
            reason: self.reason,
            also: self.also.clone(),
            since_ms: self.since_ms,
            request: self.request.clone(),
            is_of_some: self.is_of_some,
            ..Self::default()
        }
    }

    fn put(&self, changes: &mut Changes) {
        self.run().put_as_noted(changes);
    }

    /// With what an earlier build has noted in it, if it did.
    fn put_as_noted(&self, changes: &mut Changes) {
        changes.insert(META.to_owned(), Some(self.encode()));
    }

    /// The time that local reads must have reached.
    pub fn after(&self) -> ClusterTime {
        ClusterTime(self.after)
    }

    fn decode(stored: Option<&[u8]>) -> Result<Option<Self>, QueueError> {
        stored.map(serde_json::from_slice).transpose().map_err(damaged)
    }

    fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("names, keys and numbers are JSON")
    }
}

fn damaged(error: impl fmt::Display) -> QueueError {
    QueueError::Damaged(CodecError::Damaged(format!("sync state: {error}")))
}

#[cfg(test)]
mod tests;
