//! Unique values that change hands.
//!
//! The queue keeps the order of each document's changes and gives up the order between documents. So
//! the write that takes a unique value may come before the one that frees it, and where two documents
//! swap their values no order helps. What did not find its place is written once more after the rest
//! of the batch. If the value is still held, both documents are read from the local database:
//!
//! | local database has | then |
//! | --- | --- |
//! | our document in another form | ours is outdated: it is read again |
//! | the holder in another form | the holder in Atlas is outdated: it gives way |
//! | the holder as it is in Atlas | the values really collide: retried, then a dead letter |
//! | no holder, and its delete is under way | the delete is waited for |
//! | no holder, and no trace of one | somebody else's document: retried, then a dead letter |
//!
//! Giving way means: a `Refresh` of the holder is in the queue, on the disk, before the holder is
//! deleted in Atlas, and stays there until the delete is done ([`Queue::reserve`]).
//!
//! [`Queue::reserve`]: crate::queue::Queue::reserve

use std::collections::HashMap;

use bson::{RawDocument, RawDocumentBuf};

use super::{
    Worker,
    apply::{Halt, Item, Outcomes},
    hydrate::LOCAL_WAIT_MS,
};
use crate::{
    checkpoint::ClusterTime,
    crash::{self, Step},
    document_key::DocumentKey,
    event::CollectionId,
    namespace::Namespace,
    queue::{Incoming, Outcome, QueueError, Work},
    shutdown::blocking,
    sink::{Contender, Sink, Write, Written},
    source::{Pages, Source, SourceError},
    status::now_ms,
    sync_state::SyncState,
    write_op::WriteOp,
};

/// How often holders are looked for in one go; each round may find that another one has come.
const ROUNDS: usize = 3;

/// How long to wait for a delete that is under way.
const DELETE_WAIT_MS: u64 = 200;

/// A write that found a unique value of its document with another one.
#[derive(Clone, Debug)]
pub(super) struct Conflict {
    pub item: Item,
    pub document: RawDocumentBuf,
    pub reason: String,
    pub index: Option<String>,
}

/// The local database's view of a conflict.
struct Local {
    documents: HashMap<Vec<u8>, RawDocumentBuf>,
    /// The collection that has the name now.
    collection: Option<CollectionId>,
    /// All events up to the time of the read were in the queue before it was looked at.
    is_read_past: bool,
    /// Keys of holders that have an entry in the queue.
    queued: Vec<Vec<u8>>,
}

/// What becomes of a conflict.
#[derive(Debug, PartialEq)]
enum Judgement {
    /// These holders give way.
    Evict(Vec<DocumentKey>),
    /// Ours is outdated.
    Outdated,
    /// The holder's delete is under way.
    Wait,
    /// The values really collide.
    Taken(&'static str),
}

impl<S: Source, K: Sink> Worker<S, K> {
    /// Ends every conflict of the batch: written, waiting, or rejected.
    pub(super) async fn resolve(
        &self,
        ns: &Namespace,
        outcomes: &mut Outcomes,
    ) -> Result<(), Halt> {
        let mut open = std::mem::take(&mut outcomes.conflicts);
        for round in 0..=ROUNDS {
            open = self.write_again(ns, open, outcomes).await?;
            if open.is_empty() {
                return Ok(());
            }
            if round < ROUNDS {
                open = self.make_room(ns, open, outcomes).await?;
            }
        }
        for conflict in open {
            self.reject(ns, &conflict, "", outcomes);
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
        let writes: Vec<_> = open
            .iter()
            .map(|conflict| Write::Upsert {
                key: conflict.item.key.clone(),
                document: conflict.document.clone(),
            })
            .collect();
        let written = self.send(ns, &writes).await?;
        let mut still = Vec::new();
        for (mut conflict, written) in open.into_iter().zip(written) {
            if let Written::Conflict { reason, index } = written {
                (conflict.reason, conflict.index) = (reason, index);
                still.push(conflict);
            } else {
                if matches!(written, Written::Applied { .. }) {
                    self.status.metrics.conflicts_resolved.add(1);
                }
                self.end(ns, conflict.item, conflict.document, written, outcomes);
            }
        }
        Ok(still)
    }

    /// Makes the holders that are outdated give way. Returns the conflicts that are to be tried again;
    /// the others have their outcome.
    async fn make_room(
        &self,
        ns: &Namespace,
        open: Vec<Conflict>,
        outcomes: &mut Outcomes,
    ) -> Result<Vec<Conflict>, Halt> {
        let contenders: Vec<_> = open
            .iter()
            .map(|conflict| Contender {
                document: conflict.document.clone(),
                index: conflict.index.clone(),
            })
            .collect();
        let holders = self.sink.holders(ns, &contenders).await?;
        let holders: Vec<Vec<Holder>> = open
            .iter()
            .zip(holders)
            .map(|(conflict, found)| others(&conflict.item.key, found))
            .collect();
        let local = match self.look_at_local(ns, &open, &holders).await? {
            Ok(local) => local,
            Err(error) => {
                tracing::debug!(%ns, %error, "the local database cannot be read");
                return Err(Halt::Local);
            }
        };
        let (mut again, mut leaving) = (Vec::new(), Vec::new());
        let mut needs_comparison = false;
        for (conflict, holders) in open.into_iter().zip(holders) {
            let item = &conflict.item;
            let judgement = if self.queue.has_barrier_behind(ns, item.seq) {
                // The collection's name is about to mean something else, or does already: a `Refresh`
                // behind the barrier would look in the wrong place. The barrier must not wait either.
                needs_comparison = true;
                Judgement::Evict(holders.into_iter().map(|holder| holder.key).collect())
            } else if item.collection.is_some() && item.collection != local.collection {
                Judgement::Outdated // `hydrate` knows what to do about another collection.
            } else {
                judge(&conflict, &holders, &local)
            };
            match judgement {
                Judgement::Evict(keys) => {
                    leaving.extend(keys.into_iter().map(|key| (key, item.collection)));
                    again.push(conflict);
                }
                Judgement::Outdated => {
                    let due_ms = now_ms();
                    outcomes.insert(item.seq, Outcome::Refresh { due_ms, keep_collection: true });
                }
                Judgement::Wait => {
                    self.status.state().stream_wanted = true;
                    let due_ms = now_ms() + DELETE_WAIT_MS;
                    outcomes.insert(item.seq, Outcome::Unavailable { due_ms });
                }
                Judgement::Taken(by) => self.reject(ns, &conflict, by, outcomes),
            }
        }
        let after = again.iter().map(|conflict| conflict.item.last_time).max();
        self.evict(ns, leaving, after.unwrap_or_default(), needs_comparison).await?;
        Ok(again)
    }

    /// Reads both sides of the conflicts from the local database. The inner error is the local
    /// database's.
    async fn look_at_local(
        &self,
        ns: &Namespace,
        open: &[Conflict],
        holders: &[Vec<Holder>],
    ) -> Result<Result<Local, SourceError>, QueueError> {
        let after = open.iter().map(|conflict| conflict.item.last_time).max().unwrap_or_default();
        let held: Vec<DocumentKey> =
            holders.iter().flatten().map(|holder| holder.key.clone()).collect();
        let keys: Vec<&DocumentKey> =
            open.iter().map(|conflict| &conflict.item.key).chain(&held).collect();
        let (documents, read_at, collection) = match self.read_now(ns, &keys, after).await {
            Ok(read) => read,
            Err(error) => return Ok(Err(error)),
        };
        // Before the queue is looked at: what was read from the stream until here is in it.
        let is_read_past =
            read_at == ClusterTime(u64::MAX) || read_at <= self.status.state().read_up_to;
        let (queue, ns) = (self.queue.clone(), ns.clone());
        let queued = blocking(move || {
            let mut queued = Vec::new();
            for key in held {
                if queue.holds(&ns, &key)? {
                    queued.push(key.canonical());
                }
            }
            Ok::<_, QueueError>(queued)
        })
        .await?;
        Ok(Ok(Local { documents, collection, is_read_past, queued }))
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

    /// Takes documents out of Atlas for a while. What brings them back is on the disk before they go.
    async fn evict(
        &self,
        ns: &Namespace,
        leaving: Vec<(DocumentKey, Option<CollectionId>)>,
        cluster_time: ClusterTime,
        needs_comparison: bool,
    ) -> Result<(), Halt> {
        if leaving.is_empty() {
            return Ok(());
        }
        let reservation = self.queue.reserve(ns, leaving.iter().map(|(key, _)| key));
        let deletes: Vec<_> = leaving.iter().map(|(key, _)| Write::Delete(key.clone())).collect();
        let wall_ms = now_ms();
        let incoming: Vec<_> = leaving
            .into_iter()
            .map(|(key, collection)| Incoming {
                work: Work::Document { ns: ns.clone(), key, op: WriteOp::Refresh, collection },
                cluster_time,
                wall_ms,
            })
            .collect();
        let queue = self.queue.clone();
        blocking(move || {
            if needs_comparison {
                SyncState::demand(&queue, cluster_time)?;
            }
            queue.commit(incoming, None)?;
            queue.flush()
        })
        .await?;
        tracing::debug!(%ns, documents = deletes.len(), "holders of unique values give way");
        crash::point(Step::EvictionNoted);
        self.send(ns, &deletes).await?;
        crash::point(Step::Evicted);
        drop(reservation);
        Ok(())
    }

    fn reject(&self, ns: &Namespace, conflict: &Conflict, by: &str, outcomes: &mut Outcomes) {
        let Conflict { item, reason, .. } = conflict;
        let reason = if by.is_empty() { reason.clone() } else { format!("{reason}; {by}") };
        outcomes.insert(item.seq, self.rejected(ns, item.attempts, reason));
    }
}

/// A document of Atlas that stands in the way.
struct Holder {
    key: DocumentKey,
    document: RawDocumentBuf,
}

/// The holders among what was found, without our own document, each once.
fn others(own: &DocumentKey, found: Vec<RawDocumentBuf>) -> Vec<Holder> {
    let mut holders: Vec<Holder> = Vec::new();
    let own = own.canonical();
    for document in found {
        let Ok(key) = DocumentKey::of(&document) else {
            continue;
        };
        let name = key.canonical();
        if name != own && holders.iter().all(|holder| holder.key.canonical() != name) {
            holders.push(Holder { key, document });
        }
    }
    holders
}

/// See the table of this module.
fn judge(conflict: &Conflict, holders: &[Holder], local: &Local) -> Judgement {
    let now = |key: &DocumentKey| local.documents.get(&key.canonical());
    let same = |a: &RawDocument, b: &RawDocument| a.as_bytes() == b.as_bytes();
    if !now(&conflict.item.key).is_some_and(|now| same(now, &conflict.document)) {
        return Judgement::Outdated;
    }
    let mut evict = Vec::new();
    for holder in holders {
        match now(&holder.key) {
            Some(now) if same(now, &holder.document) => {
                return Judgement::Taken(
                    "the local database has both documents with this value; its indexes differ from Atlas's",
                );
            }
            Some(_) => evict.push(holder.key.clone()),
            None if !local.is_read_past || local.queued.contains(&holder.key.canonical()) => {
                return Judgement::Wait;
            }
            None => {
                return Judgement::Taken(
                    "the other document is only in Atlas; remove it there, or run a full sync",
                );
            }
        }
    }
    Judgement::Evict(evict)
}

impl Conflict {
    /// What holds for it until it is resolved: the local database may be away meanwhile.
    pub fn outcome_meanwhile() -> Outcome {
        Outcome::Unavailable { due_ms: now_ms() + LOCAL_WAIT_MS }
    }
}

#[cfg(test)]
mod tests {
    use bson::rawdoc;

    use super::*;

    fn key(id: i32) -> DocumentKey {
        DocumentKey::of(&rawdoc! { "_id": id }).unwrap()
    }

    fn conflict() -> Conflict {
        let item = Item {
            seq: 1,
            attempts: 0,
            key: key(1),
            collection: None,
            first_time: ClusterTime(1),
            last_time: ClusterTime(1),
        };
        let document = rawdoc! { "_id": 1, "u": "x" };
        Conflict { item, document, reason: "taken".into(), index: None }
    }

    fn holder() -> Vec<Holder> {
        vec![Holder { key: key(2), document: rawdoc! { "_id": 2, "u": "x" } }]
    }

    fn local(documents: &[RawDocumentBuf]) -> Local {
        let documents = documents
            .iter()
            .map(|document| (DocumentKey::of(document).unwrap().canonical(), document.clone()))
            .collect();
        Local { documents, collection: None, is_read_past: true, queued: Vec::new() }
    }

    #[test]
    fn a_holder_that_has_another_value_by_now_gives_way() {
        let local = local(&[rawdoc! { "_id": 1, "u": "x" }, rawdoc! { "_id": 2, "u": "y" }]);

        assert_eq!(judge(&conflict(), &holder(), &local), Judgement::Evict(vec![key(2)]));
        assert_eq!(judge(&conflict(), &[], &local), Judgement::Evict(vec![]), "free by now");
    }

    #[test]
    fn a_holder_that_is_what_the_local_database_has_stays() {
        let local = local(&[rawdoc! { "_id": 1, "u": "x" }, rawdoc! { "_id": 2, "u": "x" }]);

        assert!(matches!(judge(&conflict(), &holder(), &local), Judgement::Taken(_)));
    }

    #[test]
    fn our_own_document_is_read_again_when_it_has_changed_or_is_gone() {
        let changed = local(&[rawdoc! { "_id": 1, "u": "z" }, rawdoc! { "_id": 2, "u": "x" }]);

        assert_eq!(judge(&conflict(), &holder(), &changed), Judgement::Outdated);
        assert_eq!(judge(&conflict(), &holder(), &local(&[])), Judgement::Outdated);
    }

    #[test]
    fn a_delete_that_is_under_way_is_waited_for_and_a_foreign_document_is_not_touched() {
        let ours = [rawdoc! { "_id": 1, "u": "x" }];

        let unread = Local { is_read_past: false, ..local(&ours) };
        assert_eq!(judge(&conflict(), &holder(), &unread), Judgement::Wait);
        let queued = Local { queued: vec![key(2).canonical()], ..local(&ours) };
        assert_eq!(judge(&conflict(), &holder(), &queued), Judgement::Wait);
        assert!(matches!(judge(&conflict(), &holder(), &local(&ours)), Judgement::Taken(_)));
    }

    #[test]
    fn our_own_document_is_no_holder() {
        let found =
            vec![rawdoc! { "_id": 1_i64 }, rawdoc! { "_id": 2 }, rawdoc! { "_id": 2, "u": 1 }];

        let keys: Vec<_> = others(&key(1), found).into_iter().map(|holder| holder.key).collect();

        assert_eq!(keys, [key(2)]);
    }
}
