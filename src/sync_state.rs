//! What is to be copied or compared, why, and how far that is: kept beside the queue, so that it
//! survives with the checkpoint that it belongs to.
//!
//! Two kinds share the one place. A *demand* is what the agent owes: the first copy, a lost history. It is
//! never refused and never cancelled; it takes the place of whatever else is noted. A *request* is what a
//! person or the clock asked for: refused while anything runs, and cancelled on request.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{
    checkpoint::ClusterTime,
    document_key::DocumentKey,
    namespace::Namespace,
    queue::{CodecError, Queue, QueueError},
    status::now_ms,
};

const META: &str = "sync";

/// Why everything is copied or compared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reason {
    /// There is no position to go on from: a new queue, or one that was rebuilt.
    FirstCopy,
    /// The stream cannot go on from its position.
    HistoryLost,
    /// The server could not show what follows the stream's position.
    Unshowable,
    /// This Atlas carries no mark of ours.
    NewTarget,
    NamespacesChanged,
    /// A collection came in by a rename, or was renamed while others were copied.
    Renamed,
    /// Documents came into a collection without events (`convertToCapped`), or it must be made anew.
    Replaced,
    /// Atlas would not take a schema change.
    SchemaGivenUp,
    /// What became of a write to Atlas is not known.
    Unanswered,
    /// A collection was dropped or renamed while documents of it were taken out for a moment.
    Evicted,
    /// A person asked.
    Asked,
    /// `sync.verify_every`.
    Periodic,
    /// A person has thrown away what waited.
    Cleared,
    /// Schema changes came with an imported queue.
    Imported,
    #[default]
    Unknown,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Reason::FirstCopy => "the first copy",
            Reason::HistoryLost => "the stream could not go on from its position",
            Reason::Unshowable => {
                "the local server could not show what followed the stream's position"
            }
            Reason::NewTarget => "this Atlas was not the target before",
            Reason::NamespacesChanged => "the replicated namespaces have changed",
            Reason::Renamed => "a collection was renamed",
            Reason::Replaced => "a collection was replaced as a whole",
            Reason::SchemaGivenUp => "Atlas would not take a schema change",
            Reason::Unanswered => "Atlas did not answer a schema change",
            Reason::Evicted => "a collection changed while documents of it gave way to others",
            Reason::Asked => "it was asked for",
            Reason::Periodic => "`sync.verify_every`",
            Reason::Cleared => "the queue was cleared",
            Reason::Imported => "a queue was imported",
            Reason::Unknown => "it was demanded",
        })
    }
}

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

/// The note of a sync that is demanded or under way.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SyncState {
    /// Names this run.
    #[serde(default)]
    pub id: Uuid,
    /// The cluster time that local reads must have reached: the stream's position when the sync was
    /// demanded. What was committed before it is not in the stream.
    pub after: u64,
    #[serde(default)]
    pub reason: Reason,
    /// When it was demanded, milliseconds since 1970.
    #[serde(default)]
    pub since_ms: u64,
    /// `None` for a demand.
    #[serde(default)]
    pub request: Option<SyncRequest>,
    /// Of a demand: the collections that it is about. Empty for all.
    #[serde(default)]
    pub only: BTreeSet<Namespace>,
    /// Collections that are done.
    #[serde(default)]
    pub done: BTreeSet<Namespace>,
    /// Collections whose copy or comparison has begun.
    #[serde(default)]
    pub begun: BTreeMap<Namespace, CopyPlan>,
    /// Those of `done` in which a mass delete was refused.
    #[serde(default)]
    pub refused: BTreeSet<Namespace>,
    /// Collections that were renamed meanwhile: what was copied or compared under their names may be
    /// another's.
    #[serde(default)]
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
    /// What is open, if anything is.
    ///
    /// # Errors
    /// When the queue cannot be read.
    pub fn load(queue: &Queue) -> Result<Option<Self>, QueueError> {
        Self::decode(queue.meta(META)?.as_deref())
    }

    /// True while something is owed: Atlas cannot be equal then, whatever the queue says.
    ///
    /// # Errors
    /// When the queue cannot be read.
    pub fn is_owed(queue: &Queue) -> Result<bool, QueueError> {
        Ok(Self::load(queue)?.is_some_and(|state| state.request.is_none()))
    }

    /// True from when the stream left out what the server could not show, until everything is compared.
    ///
    /// # Errors
    /// When the queue cannot be read.
    pub fn is_unshowable(queue: &Queue) -> Result<bool, QueueError> {
        Ok(Self::load(queue)?.is_some_and(|state| state.reason == Reason::Unshowable))
    }

    /// Demands that everything be copied or compared, from the beginning, as it is at `position` or
    /// later.
    ///
    /// # Errors
    /// When the queue cannot be written.
    pub fn demand(queue: &Queue, position: ClusterTime, reason: Reason) -> Result<(), QueueError> {
        queue.update_meta(META, |stored| {
            let last = Self::decode(stored)?.unwrap_or_default();
            let mut next = Self::begin(position, reason, None);
            next.after = next.after.max(last.after);
            // Told of until everything is compared.
            if last.reason == Reason::Unshowable {
                next.reason = last.reason;
            }
            // What was to be copied as a whole still is.
            next.again = &last.again | &last.only;
            Ok(Some(next.encode()))
        })
    }

    /// Demands that these collections be copied or compared, as they are at `position` or later. What is
    /// demanded already stays so; a request of everything becomes a demand, and any other one gives way.
    ///
    /// # Errors
    /// When the queue cannot be written.
    pub fn demand_of(
        queue: &Queue,
        position: ClusterTime,
        namespaces: &BTreeSet<Namespace>,
        reason: Reason,
    ) -> Result<(), QueueError> {
        queue.update_meta(META, |stored| {
            let mut next = Self::begin(position, reason, None);
            let next = match Self::decode(stored)? {
                Some(mut open) if open.request.is_none() => {
                    if !open.only.is_empty() {
                        open.only.extend(namespaces.iter().cloned());
                    }
                    // It may be done with them already.
                    open.again.extend(namespaces.iter().cloned());
                    open.after = open.after.max(next.after);
                    open
                }
                open => {
                    let is_everything = open.is_some_and(|open| {
                        let request = open.request.unwrap_or_default();
                        request.namespaces.is_empty() && !request.dry_run
                    });
                    if is_everything {
                        next.again.clone_from(namespaces);
                    } else {
                        next.only.clone_from(namespaces);
                    }
                    next
                }
            };
            Ok(Some(next.encode()))
        })
    }

    /// Notes a request, unless something is open already: that is the inner error then.
    ///
    /// # Errors
    /// When the queue cannot be read or written.
    pub fn ask(
        queue: &Queue,
        position: ClusterTime,
        request: SyncRequest,
        reason: Reason,
    ) -> Result<Result<Self, Self>, QueueError> {
        let next = Self::begin(position, reason, Some(request));
        let mut open = None;
        queue.update_meta(META, |stored| {
            open = Self::decode(stored)?;
            let stays = open.as_ref().unwrap_or(&next);
            Ok(Some(stays.encode()))
        })?;
        Ok(open.map_or(Ok(next), Err))
    }

    /// Takes a request back.
    ///
    /// # Errors
    /// When the queue cannot be read or written.
    pub fn cancel(queue: &Queue) -> Result<Cancelled, QueueError> {
        let mut result = Cancelled::NothingRuns;
        queue.update_meta(META, |stored| {
            result = match Self::decode(stored)? {
                None => Cancelled::NothingRuns,
                Some(state) if state.request.is_none() => Cancelled::IsOwed(state),
                Some(state) => {
                    result = Cancelled::Done(state);
                    return Ok(None);
                }
            };
            Ok(stored.map(<[u8]>::to_vec))
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

    /// Notes that a collection is done.
    ///
    /// # Errors
    /// When the queue cannot be read or written.
    pub fn finished(&mut self, queue: &Queue, ns: &Namespace) -> Result<(), QueueError> {
        self.done.insert(ns.clone());
        self.begun.remove(ns);
        self.save(queue)
    }

    /// Notes that the names of collections have changed hands. False when nothing is open.
    ///
    /// # Errors
    /// When the queue cannot be read or written.
    pub fn renamed(queue: &Queue, namespaces: &[Namespace]) -> Result<bool, QueueError> {
        let mut is_open = false;
        queue.update_meta(META, |stored| {
            let Some(mut state) = Self::decode(stored)? else { return Ok(None) };
            is_open = true;
            // A dry run repairs nothing, so there is nothing to do again.
            if !state.request.as_ref().is_some_and(|request| request.dry_run) {
                state.again.extend(namespaces.iter().cloned());
            }
            Ok(Some(state.encode()))
        })?;
        Ok(is_open)
    }

    /// Takes the collections that are to be looked at again.
    ///
    /// # Errors
    /// When the queue cannot be read or written.
    pub fn take_again(&mut self, queue: &Queue) -> Result<BTreeSet<Namespace>, QueueError> {
        let mut again = BTreeSet::new();
        queue.update_meta(META, |stored| {
            let Some(mut state) = Self::decode(stored)?.filter(|stored| stored.id == self.id)
            else {
                return Ok(stored.map(<[u8]>::to_vec));
            };
            again = std::mem::take(&mut state.again);
            state.done.retain(|ns| !again.contains(ns));
            Ok(Some(state.encode()))
        })?;
        self.done.retain(|ns| !again.contains(ns));
        Ok(again)
    }

    /// Notes how far it is, unless everything was demanded again meanwhile.
    ///
    /// # Errors
    /// When the queue cannot be read or written.
    pub fn save(&self, queue: &Queue) -> Result<(), QueueError> {
        queue.update_meta(META, |stored| {
            let Some(noted) = Self::decode(stored)?.filter(|noted| noted.id == self.id) else {
                return Ok(stored.map(<[u8]>::to_vec));
            };
            let (again, only) = (noted.again, noted.only);
            let after = self.after.max(noted.after);
            Ok(Some(Self { after, only, again, ..self.clone() }.encode()))
        })
    }

    /// Ends the sync. False when it must go on: more was demanded meanwhile.
    ///
    /// # Errors
    /// When the queue cannot be read or written.
    pub fn complete(&self, queue: &Queue) -> Result<bool, QueueError> {
        let mut current = false;
        queue.update_meta(META, |stored| {
            let noted = Self::decode(stored)?;
            current = noted.is_some_and(|noted| noted.id == self.id && noted.again.is_empty());
            Ok(if current { None } else { stored.map(<[u8]>::to_vec) })
        })?;
        Ok(current)
    }

    /// The time that local reads must have reached.
    pub fn after(&self) -> ClusterTime {
        ClusterTime(self.after)
    }

    fn decode(stored: Option<&[u8]>) -> Result<Option<Self>, QueueError> {
        stored.map(serde_json::from_slice).transpose().map_err(|error| {
            QueueError::Damaged(CodecError::Damaged(format!("sync state: {error}")))
        })
    }

    fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("names, keys and numbers are JSON")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::queue::QueueOptions;

    fn queue() -> (tempfile::TempDir, Queue) {
        let dir = tempfile::TempDir::new().unwrap();
        let queue = Queue::open(&QueueOptions::new(dir.path().join("queue"))).unwrap();
        (dir, queue)
    }

    #[expect(clippy::result_large_err, reason = "of a test")]
    fn ask(queue: &Queue) -> Result<SyncState, SyncState> {
        SyncState::ask(queue, ClusterTime(10), SyncRequest::default(), Reason::Asked).unwrap()
    }

    #[test]
    fn a_demand_that_comes_while_a_sync_runs_is_not_lost_with_its_end() {
        let (_dir, queue) = queue();
        let ns = Namespace::new("shop", "orders");
        SyncState::demand(&queue, ClusterTime(10), Reason::FirstCopy).unwrap();
        let mut running = SyncState::load(&queue).unwrap().unwrap();

        SyncState::demand(&queue, ClusterTime(20), Reason::HistoryLost).unwrap();
        running.finished(&queue, &ns).unwrap();

        assert!(!running.complete(&queue).unwrap());
        let next = SyncState::load(&queue).unwrap().unwrap();
        assert_eq!((next.after(), next.done.len()), (ClusterTime(19), 0));
        assert!(next.complete(&queue).unwrap());
        assert_eq!(SyncState::load(&queue).unwrap(), None);
    }

    #[test]
    fn a_request_is_refused_while_another_is_open_and_gives_way_to_a_demand() {
        let (_dir, queue) = queue();
        let first = ask(&queue).unwrap();

        assert_eq!(ask(&queue).unwrap_err().id, first.id);
        assert!(!SyncState::is_owed(&queue).unwrap());

        SyncState::demand(&queue, ClusterTime(5), Reason::HistoryLost).unwrap();
        assert_ne!(SyncState::load(&queue).unwrap().unwrap().id, first.id);
        assert_eq!(SyncState::load(&queue).unwrap().unwrap().after(), ClusterTime(9));
        assert_eq!(ask(&queue).unwrap_err().reason, Reason::HistoryLost);
    }

    #[test]
    fn a_request_can_be_cancelled_and_what_is_owed_cannot() {
        let (_dir, queue) = queue();
        assert_eq!(SyncState::cancel(&queue).unwrap(), Cancelled::NothingRuns);

        let request = ask(&queue).unwrap();
        assert_eq!(SyncState::cancel(&queue).unwrap(), Cancelled::Done(request));
        assert_eq!(SyncState::load(&queue).unwrap(), None);

        SyncState::demand(&queue, ClusterTime(5), Reason::FirstCopy).unwrap();
        assert!(matches!(SyncState::cancel(&queue).unwrap(), Cancelled::IsOwed(_)));
        assert!(SyncState::is_owed(&queue).unwrap());
    }

    #[test]
    fn a_rename_while_a_sync_runs_keeps_it_open_until_the_names_are_looked_at_again() {
        let (_dir, queue) = queue();
        let (old, new) = (Namespace::new("shop", "old"), Namespace::new("shop", "new"));
        assert!(
            !SyncState::renamed(&queue, std::slice::from_ref(&old)).unwrap(),
            "nothing is open"
        );
        let mut running = ask(&queue).unwrap();
        running.finished(&queue, &new).unwrap();

        assert!(SyncState::renamed(&queue, &[old.clone(), new.clone()]).unwrap());
        running.finished(&queue, &old).unwrap();
        assert!(!running.complete(&queue).unwrap());

        assert_eq!(running.take_again(&queue).unwrap(), [new, old].into());
        assert!(running.done.is_empty());
        assert!(running.complete(&queue).unwrap());
    }

    #[test]
    fn the_note_of_an_earlier_version_is_read() {
        let (_dir, queue) = queue();
        queue.set_meta(META, Some(br#"{"demand":3,"after":7,"done":["shop.orders"]}"#)).unwrap();

        let state = SyncState::load(&queue).unwrap().unwrap();
        assert_eq!(
            (state.after(), state.done.len(), state.request.is_none()),
            (ClusterTime(7), 1, true)
        );
        assert!(state.complete(&queue).unwrap());
    }
}
