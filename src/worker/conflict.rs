//! Unique values that change hands.
//!
//! The queue keeps the order of each document's changes and gives up the order between documents. So
//! the write that takes a unique value may come before the one that frees it, and where two documents
//! swap their values no order helps. What did not find its place is written once more after the rest
//! of the batch. If the value is still held, both documents are read from the local database, and
//! [`judge`] says what follows.
//!
//! An owner that gives way is deleted in Atlas and written again in its local form. Before it goes a
//! `Refresh` of it is in the queue and on the disk, and stays there until all that is done
//! ([`Queue::reserve`](crate::queue::Queue::reserve)).

use std::collections::{BTreeSet, HashMap};

use bson::RawDocumentBuf;

use super::{
    Worker,
    judge::{ConflictView, Judgement, OtherOwner, judge, other_owners},
    outcomes::{Conflict, Halt, Outcomes, wait},
};
use crate::{
    model::{
        checkpoint::ClusterTime,
        document_key::DocumentKey,
        event::CollectionId,
        namespace::Namespace,
        write_op::{Refusal, WriteOp},
    },
    policy::position::Position,
    queue::{Incoming, Outcome, QueueError, Reservation, Work},
    runtime::{
        clock::{self, now_ms},
        crash::{self, CrashPoint},
        shutdown::blocking,
    },
    sink::{ConflictingWrite, CurrentOwner, SchemaSink, SinkError, Write, Written},
    source::{Pages, SchemaSource, SourceError},
    sync::state::{Reason, SyncState},
};

/// How often owners are looked for in one go: a document may be in the way of several.
const ROUNDS: usize = 4;

/// How long to wait for a delete that is under way.
const WAIT_MS: u64 = 200;

/// How long to wait for a comparison to remove what only Atlas has.
const SYNC_WAIT_MS: u64 = 60_000;

/// What a round of evictions has left to do.
#[derive(Default)]
struct Room {
    /// To be tried again.
    again: Vec<Conflict>,
    /// Evicted documents as the local database has them.
    back: Vec<(DocumentKey, RawDocumentBuf)>,
    reservation: Option<Reservation>,
}

/// The local database's side of the conflicts.
struct LocalSide {
    view: ConflictView,
    read_at: ClusterTime,
    /// All events up to this time were in the queue before it was looked at.
    position: Position,
    /// The collection that has the name now.
    collection: Option<CollectionId>,
    /// Everything is being compared.
    is_syncing: bool,
}

impl<S: SchemaSource, K: SchemaSink> Worker<S, K> {
    /// Ends every conflict of the batch: written, waiting, or rejected.
    pub(super) async fn resolve(
        &self,
        ns: &Namespace,
        outcomes: &mut Outcomes,
    ) -> Result<(), Halt> {
        let mut room = Room { again: outcomes.conflicts.take(), ..Room::default() };
        for round in 0..=ROUNDS {
            let open = self.write_again(ns, std::mem::take(&mut room.again), outcomes).await?;
            if !room.back.is_empty() {
                // One that does not find its place has its `Refresh`.
                let writes = room.back.iter();
                let writes: Vec<_> =
                    writes.map(|(key, document)| Write::Upsert { key, document }).collect();
                self.dispatch.send(ns, &writes, &vec![None; writes.len()]).await?;
            }
            drop(room);
            if open.is_empty() {
                return Ok(());
            }
            room = if round < ROUNDS {
                self.make_room(ns, open, outcomes).await?
            } else {
                for conflict in open {
                    let outcome = self.dispatch.rejected(
                        ns,
                        (conflict.item.id, conflict.item.attempts),
                        conflict.reason,
                        Refusal::Unique,
                    );
                    outcomes.insert(conflict.item.seq, outcome);
                }
                Room::default()
            };
        }
        Ok(())
    }

    /// Returns those that still conflict.
    async fn write_again(
        &self,
        ns: &Namespace,
        open: Vec<Conflict>,
        outcomes: &mut Outcomes,
    ) -> Result<Vec<Conflict>, Halt> {
        if open.is_empty() {
            return Ok(open);
        }
        let writes: Vec<_> = open
            .iter()
            .map(|Conflict { item, document, .. }| Write::Upsert { key: &item.key, document })
            .collect();
        let changed_ms: Vec<_> = open.iter().map(|of| Some(of.item.last_ms)).collect();
        let written = self.dispatch.send(ns, &writes, &changed_ms).await?;
        let mut still = Vec::new();
        let ended = open.into_iter().zip(written).filter_map(|(mut conflict, written)| {
            if let Written::Conflict { reason, taken } = written {
                (conflict.reason, conflict.taken) = (reason, taken);
                still.push(conflict);
                return None;
            }
            if matches!(written, Written::Applied { .. }) {
                self.status.metrics.conflicts_resolved.add(1);
            }
            self.waiting.is_over(conflict.item.seq);
            Some((conflict.item, conflict.document, written))
        });
        self.dispatch.end_all(ns, ended, outcomes);
        Ok(still)
    }

    /// Makes the owners that are outdated give way. What is not to be tried again has its outcome.
    async fn make_room(
        &self,
        ns: &Namespace,
        open: Vec<Conflict>,
        outcomes: &mut Outcomes,
    ) -> Result<Room, Halt> {
        let conflicting: Vec<_> = open
            .iter()
            .map(|conflict| ConflictingWrite {
                document: conflict.document.clone(),
                taken: conflict.taken.clone(),
            })
            .collect();
        let owners = self.sink.owners(ns, &conflicting).await?;
        self.loosen(ns, conflicting.iter().zip(&owners)).await?;
        let other_owners: Vec<Vec<OtherOwner>> = open
            .iter()
            .zip(owners)
            .map(|(conflict, found)| other_owners(&conflict.item.key, found))
            .collect();
        let permit = self.source.permit();
        let local = match self.look_at_local(ns, &open, &other_owners).await? {
            Ok(local) => local,
            Err(error) => {
                tracing::debug!(%ns, %error, "the local database cannot be read");
                return Err(Halt::Local);
            }
        };
        let (mut room, mut leaving) = (Room::default(), Vec::new());
        for (conflict, other_owners) in open.into_iter().zip(other_owners) {
            let item = &conflict.item;
            match self.judgement(ns, &conflict, other_owners, &local) {
                Judgement::Evict(keys) => {
                    leaving.extend(keys.into_iter().map(|key| (key, item.collection)));
                    room.again.push(conflict);
                }
                Judgement::Outdated => {
                    let due_ms = now_ms();
                    outcomes.insert(item.seq, Outcome::Refresh { due_ms, keep_collection: true });
                }
                Judgement::Wait => {
                    self.reading.want();
                    outcomes.insert(item.seq, wait(WAIT_MS));
                }
                verdict @ (Judgement::Collision | Judgement::Foreign) => {
                    let is_foreign = verdict == Judgement::Foreign;
                    let outcome = self.refused(ns, &conflict, is_foreign, local.is_syncing);
                    outcomes.insert(item.seq, outcome);
                }
            }
        }
        // Nothing is deleted on the strength of a database that may have been exchanged since.
        if !permit.holds() {
            return Err(Halt::Local);
        }
        if !leaving.is_empty() {
            room.back = returning(&leaving, &room.again, &local.view.documents);
            self.note_read(&room.back, local.read_at);
            let seqs: Vec<_> = room.again.iter().map(|conflict| conflict.item.seq).collect();
            let after = read_after(room.again.iter(), local.position);
            room.reservation = Some(self.evict(ns, leaving, after, seqs).await?);
        }
        Ok(room)
    }

    /// Where no document holds the value in a unique index, it may be an index that is only prepared to become
    /// unique. Locally the documents were there before it was: they must all find their place here too.
    async fn loosen<'a>(
        &self,
        ns: &Namespace,
        open: impl Iterator<Item = (&'a ConflictingWrite, &'a Vec<CurrentOwner>)>,
    ) -> Result<(), Halt> {
        let named = open
            .filter(|(_, owners)| owners.is_empty())
            .filter_map(|(conflicting, _)| conflicting.taken.index.as_deref());
        for index in named.collect::<BTreeSet<_>>() {
            match self.sink.loosen(ns, index).await {
                Ok(false) => {}
                Ok(true) => {
                    tracing::info!(%ns, indexes = index, "documents with the same value arrive before an index is prepared to become unique");
                    self.watch.loosened(ns, clock::now());
                }
                // Then the write is refused, and tried again.
                Err(SinkError::Rejected(error) | SinkError::Held(error)) => {
                    tracing::warn!(%ns, indexes = index, error, "an index cannot be changed");
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn judgement(
        &self,
        ns: &Namespace,
        conflict: &Conflict,
        other_owners: Vec<OtherOwner>,
        local: &LocalSide,
    ) -> Judgement {
        let item = &conflict.item;
        if self.queue.has_turned(ns, item.seq) {
            // The collection's name is about to mean something else, or does already, so nothing can be
            // looked up; and the barrier must not wait. `evict` asks for a comparison.
            return Judgement::Evict(other_owners.into_iter().map(|other| other.key).collect());
        }
        if item.collection.is_some() && item.collection != local.collection {
            return Judgement::Outdated; // `hydrate` knows what to do about another collection.
        }
        let read_at = self.waiting.since(item.seq).unwrap_or(local.read_at);
        let is_read_past = read_at == ClusterTime(u64::MAX) || local.position.has_read(read_at);
        let judgement =
            judge(&item.key, &conflict.document, &other_owners, &local.view, is_read_past);
        if judgement == Judgement::Wait {
            self.waiting.goes_on(item.seq, read_at);
        } else {
            self.waiting.is_over(item.seq);
        }
        judgement
    }

    /// The next attempt or the end of a write whose value is really taken.
    fn refused(
        &self,
        ns: &Namespace,
        conflict: &Conflict,
        is_foreign: bool,
        is_syncing: bool,
    ) -> Outcome {
        let why = if is_foreign {
            "the other document is only in Atlas; remove it there, then retry"
        } else {
            "the local database has both documents with this value, so its indexes are not Atlas's"
        };
        let reason = format!("{}; {why}", conflict.reason);
        match self.dispatch.rejected(
            ns,
            (conflict.item.id, conflict.item.attempts),
            reason,
            Refusal::Unique,
        ) {
            // The comparison that is under way removes what only Atlas has.
            Outcome::Rejected { reason, .. }
                if is_foreign && is_syncing && self.writing.may_delete_in(ns) =>
            {
                Outcome::Retry { due_ms: now_ms() + SYNC_WAIT_MS, error: reason }
            }
            outcome => outcome,
        }
    }

    /// Reads both sides of the conflicts from the local database. The inner error is the local
    /// database's.
    async fn look_at_local(
        &self,
        ns: &Namespace,
        open: &[Conflict],
        other_owners: &[Vec<OtherOwner>],
    ) -> Result<Result<LocalSide, SourceError>, QueueError> {
        let held: Vec<DocumentKey> =
            other_owners.iter().flatten().map(|other| other.key.clone()).collect();
        let keys: Vec<&DocumentKey> =
            open.iter().map(|conflict| &conflict.item.key).chain(&held).collect();
        let after = read_after(open.iter(), self.reading.position());
        let (documents, read_at, collection) = match self.read_now(ns, &keys, after).await {
            Ok(read) => read,
            Err(error) => return Ok(Err(error)),
        };
        // Before the queue is looked at: what was read from the stream until here is in it.
        let position = self.reading.position();
        let (queue, ns) = (self.queue.clone(), ns.clone());
        let (queued, is_syncing) = blocking(move || -> Result<_, QueueError> {
            let mut queued = Vec::new();
            for key in held {
                if queue.holds(&ns, &key)? {
                    queued.push(key.canonical());
                }
            }
            Ok((queued, SyncState::open(&queue)?.is_some()))
        })
        .await?;
        let view = ConflictView { documents, queued };
        Ok(Ok(LocalSide { view, read_at, position, collection, is_syncing }))
    }

    async fn read_now(
        &self,
        ns: &Namespace,
        keys: &[&DocumentKey],
        after: ClusterTime,
    ) -> Result<(HashMap<Vec<u8>, RawDocumentBuf>, ClusterTime, Option<CollectionId>), SourceError>
    {
        let mut pages = self.source.read(ns, keys, after).await?;
        let mut documents = HashMap::new();
        let mut read_at = ClusterTime::default();
        while let Some(page) = pages.next().await? {
            read_at = read_at.max(page.read_at);
            for document in page.documents {
                documents.insert(DocumentKey::of(&document)?.canonical(), document);
            }
        }
        Ok((documents, read_at, self.source.collection_id(ns).await?))
    }

    /// Documents that are written whole may be younger than deltas that are still to come.
    fn note_read(&self, read: &[(DocumentKey, RawDocumentBuf)], read_at: ClusterTime) {
        if !self.sends_deltas() {
            return;
        }
        let mut watermark = self.watermark.lock();
        for (key, _) in read {
            watermark.read(key.canonical().into(), read_at);
        }
    }

    /// Takes documents out of Atlas. What brings them back is on the disk before they go, and is not
    /// leased while the reservation lives. `for_seqs` are the entries that they give way to.
    async fn evict(
        &self,
        ns: &Namespace,
        leaving: Vec<(DocumentKey, Option<CollectionId>)>,
        cluster_time: ClusterTime,
        for_seqs: Vec<u64>,
    ) -> Result<Reservation, Halt> {
        let reservation = self.queue.reserve(ns, leaving.iter().map(|(key, _)| key));
        let keys: Vec<_> = leaving.iter().map(|(key, _)| key.clone()).collect();
        let wall_ms = now_ms();
        let incoming: Vec<_> = leaving
            .into_iter()
            .map(|(key, collection)| Incoming {
                work: Work::Document { ns: ns.clone(), key, op: WriteOp::Refresh, collection },
                cluster_time,
                wall_ms,
            })
            .collect();
        let (queue, of) = (self.queue.clone(), ns.clone());
        blocking(move || {
            queue.commit(incoming, None)?;
            // A barrier that came before the commit has not taken the documents along, and behind it
            // the name means another collection.
            if for_seqs.iter().any(|seq| queue.has_turned(&of, *seq)) {
                let called = queue.called_now(&of, for_seqs.into_iter());
                let namespaces = called.into_iter().flatten().chain([of]).collect();
                SyncState::require_of(&queue, cluster_time, &namespaces, Reason::Evicted)?;
            }
            queue.flush()
        })
        .await?;
        let deletes: Vec<_> = keys.iter().map(Write::Delete).collect();
        tracing::debug!(%ns, documents = deletes.len(), "holders of unique values give way");
        crash::point(CrashPoint::EvictionNoted);
        if let Err(error) = self.dispatch.send(ns, &deletes, &vec![None; deletes.len()]).await {
            // The server may still be at it, for as long as an answer was waited for.
            let patience = self.options.atlas_timeout;
            tokio::spawn(async move {
                tokio::time::sleep(patience).await;
                drop(reservation);
            });
            return Err(error);
        }
        crash::point(CrashPoint::Evicted);
        Ok(reservation)
    }
}

/// The time that a read must show at least: what the conflicts have seen, and what the stream has.
fn read_after<'a>(
    conflicts: impl Iterator<Item = &'a Conflict>,
    position: Position,
) -> ClusterTime {
    let seen = conflicts.map(|conflict| conflict.item.last_time).max().unwrap_or_default();
    seen.max(position.whole())
}

/// Evicted documents, to be brought back at once, but for those that are written anyway.
fn returning(
    leaving: &[(DocumentKey, Option<CollectionId>)],
    again: &[Conflict],
    documents: &HashMap<Vec<u8>, RawDocumentBuf>,
) -> Vec<(DocumentKey, RawDocumentBuf)> {
    leaving
        .iter()
        .filter(|(key, _)| {
            let name = key.canonical();
            again.iter().all(|conflict| conflict.item.key.canonical() != name)
        })
        .filter_map(|(key, _)| {
            let document = documents.get(&key.canonical())?.clone();
            Some((key.clone(), document))
        })
        .collect()
}
