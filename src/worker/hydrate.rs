//! Documents that are read from the local database when it is their turn.
//!
//! What is read is the document as it is now, which may be younger than the change that asked for
//! it. That is right: the younger change is in the stream and will be written again. Two things are
//! not right, and are guarded against here:
//!
//! - *A document that is not there* is no empty document. For a `Refresh` it means "delete". For an
//!   update it means that its delete follows in the stream, so there is nothing to do.
//! - *Another collection of the same name.* The one that the change was made in may have been renamed
//!   away and a new one made in its place. So what is read is what its collection is called by now, as far as the
//!   stream was read ([`Front::called_now`](crate::queue::Front::called_now)), and it is written under the name
//!   that it has in Atlas, where the rename stands behind the entry and is still to come. After each read
//!   the collection's UUID is compared with the event's, and what differs is not written: the entry
//!   waits for the rename or the drop that the stream must tell of.
//!
//! An entry may not know its collection: one of a 5.0 server, of a write that came late, of a gap in the stream, or of
//! an import. Then the UUID that is compared is the one that the name had at a time up to which the stream was read
//! since, with no rename or drop. That is found out once for each name, and forgotten when it changes
//! hands ([`Front::proof`](crate::queue::Front::proof)). Where the stream is not read before entries have gone, since
//! the queue is full, they are written all the same, and [compared](crate::sync::unproven) should a rename turn up.

use std::{
    collections::{HashMap, HashSet},
    time::Instant,
};

use ahash::RandomState;

use super::{
    Worker,
    item::{Draft, Item, Unread},
    outcomes::{Halt, LOCAL_WAIT_MS, Outcomes, wait},
};
use crate::{
    model::{
        checkpoint::ClusterTime,
        document_key::DocumentKey,
        event::CollectionId,
        namespace::Namespace,
        write_op::{Refusal, WriteOp},
    },
    mongo::MongoError,
    queue::{Outcome, Proof},
    runtime::{
        clock::{self, now_ms},
        shutdown::blocking,
    },
    sink::SchemaSink,
    source::{Page, Pages, SchemaSource, SourceError},
    sync::unproven,
};

/// How long an entry waits for the rename that it must see.
const BARRIER_WAIT_MS: u64 = 200;

/// How long it waits for the stream, that says whether a name still means its collection.
const PROOF_WAIT_MS: u64 = 50;

/// What is still to be read, by [`DocumentKey::canonical`].
type Wanted = HashMap<Vec<u8>, Unread, RandomState>;

impl<S: SchemaSource, K: SchemaSink> Worker<S, K> {
    pub(super) async fn hydrate(
        &self,
        ns: &Namespace,
        unread: Vec<Unread>,
        outcomes: &mut Outcomes,
    ) -> Result<(), Halt> {
        for (name, unread) in self.by_present_name(ns, unread, outcomes) {
            let after = unread.iter().map(|unread| unread.item.last_time).max().unwrap_or_default();
            let keys: Vec<&DocumentKey> = unread.iter().map(|unread| &unread.item.key).collect();
            let renewed = match self.source.renew(&name, &keys).await {
                Ok(renewed) => renewed.map(Ok),
                Err(error) => Some(Err(error)),
            };
            let unread = match renewed {
                Some(Ok(ops)) => {
                    self.write_renewed(ns, unread.into_iter().zip(ops), outcomes).await?;
                    continue;
                }
                Some(Err(error)) => {
                    tracing::debug!(%ns, %error, "what is kept of the documents cannot be read");
                    for Unread { item, .. } in unread {
                        outcomes.insert(item.seq, wait(LOCAL_WAIT_MS));
                    }
                    return Err(Halt::Local);
                }
                None => unread,
            };
            let mut wanted: Wanted =
                unread.into_iter().map(|unread| (unread.item.key.canonical(), unread)).collect();
            match self.read_pages((ns, &name), after, &mut wanted, outcomes).await {
                Ok(Ok(())) => self.write_missing(ns, wanted, outcomes).await?,
                Ok(Err(error)) => {
                    tracing::debug!(%ns, %error, "the local database cannot be read");
                    self.write_without_local(ns, wanted, outcomes).await?;
                    return Err(Halt::Local);
                }
                Err(halt) => return Err(halt),
            }
        }
        Ok(())
    }

    /// Of a source that [renews](crate::source::Source::renew) documents.
    async fn write_renewed(
        &self,
        ns: &Namespace,
        renewed: impl Iterator<Item = (Unread, Option<WriteOp>)>,
        outcomes: &mut Outcomes,
    ) -> Result<(), Halt> {
        let mut writes = Vec::new();
        for (Unread { item, .. }, op) in renewed {
            let draft = match op {
                Some(WriteOp::Insert(document) | WriteOp::Replace(document)) => {
                    Draft::Upsert(document)
                }
                Some(WriteOp::Merge(fields)) if self.sink.takes_changes() => Draft::Merge(fields),
                Some(WriteOp::Delete) => Draft::Delete,
                // The source sees to it itself, and it comes again.
                Some(WriteOp::Refresh) => {
                    outcomes.insert(item.seq, Outcome::Applied);
                    continue;
                }
                // To let it go would lose without a word what was only in the queue.
                Some(WriteOp::Merge(_) | WriteOp::Update(_)) | None => {
                    let reason = "nothing that the source keeps says what it is: it is older than what is kept".to_owned();
                    let of = (item.id, item.attempts);
                    let rejected = self.dispatch.rejected(ns, of, reason, Refusal::Other);
                    outcomes.insert(item.seq, rejected);
                    continue;
                }
            };
            writes.push((item, draft));
        }
        self.dispatch.write_direct(ns, writes, outcomes).await?;
        Ok(())
    }

    /// What is to be read under which name. An entry whose collection is gone, as the stream says behind it, needs
    /// nothing any more; one that no read could be believed for yet waits.
    fn by_present_name(
        &self,
        ns: &Namespace,
        unread: Vec<Unread>,
        outcomes: &mut Outcomes,
    ) -> Vec<(Namespace, Vec<Unread>)> {
        let names = self.queue.called_now(ns, unread.iter().map(|unread| unread.item.seq));
        let read = self.reading.position().whole();
        let mut groups: Vec<(Namespace, Vec<Unread>)> = Vec::new();
        for (unread, name) in unread.into_iter().zip(names) {
            let Some(name) = name else {
                outcomes.insert(unread.item.seq, Outcome::Applied);
                continue;
            };
            match groups.iter_mut().find(|(of, _)| *of == name) {
                Some((_, group)) => group.push(unread),
                None => groups.push((name, vec![unread])),
            }
        }
        for (name, group) in &mut groups {
            // What is left out by now goes under no other name either: a change that makes it so comes behind this.
            if !self.is_replicated(name) {
                for unread in group.drain(..) {
                    outcomes.insert(unread.item.seq, Outcome::PassedOver);
                }
                continue;
            }
            if group.iter().any(|unread| unread.item.collection.is_none())
                && self.queue.waits_for_proof(name, read)
                && !self.is_full()
            {
                self.reading.want();
                for unread in group.extract_if(.., |unread| unread.item.collection.is_none()) {
                    outcomes.insert(unread.item.seq, wait(PROOF_WAIT_MS));
                }
            }
        }
        groups.retain(|(_, group)| !group.is_empty());
        groups
    }

    /// Writes what is found, page by page, and takes it out of `wanted`: read under the one name, written under the
    /// other. The inner error is the local database's.
    async fn read_pages(
        &self,
        (ns, name): (&Namespace, &Namespace),
        after: ClusterTime,
        wanted: &mut Wanted,
        outcomes: &mut Outcomes,
    ) -> Result<Result<(), SourceError>, Halt> {
        let read_began = clock::now();
        let permit = self.source.permit();
        let pages = {
            let keys: Vec<&DocumentKey> = wanted.values().map(|unread| &unread.item.key).collect();
            self.source.read(name, &keys, after).await
        };
        let mut pages = match pages {
            Ok(pages) => pages,
            Err(error) => return Ok(Err(error)),
        };
        loop {
            let page = match pages.next().await {
                Ok(page) => page,
                Err(error) => return Ok(Err(error)),
            };
            // After the read, so that the collection that was read is the one that is compared.
            let read = (read_began, page.as_ref().map(|page| page.read_at));
            let is_collection =
                match self.set_aside_uuid_mismatches((ns, name), read, wanted, outcomes).await {
                    Ok(is_collection) => is_collection,
                    Err(error) => return Ok(Err(error)),
                };
            // What was read under an epoch that has ended is as good as not read.
            if !permit.holds() {
                return Ok(Err(SourceError::Unavailable(MongoError::Unproven.into())));
            }
            let Some(page) = page else { return Ok(Ok(())) };
            // What a view shows are no documents of its own.
            if !is_collection {
                continue;
            }
            let writes = self.writes_of(page, wanted);
            self.status.metrics.local_reads.add(writes.len() as u64);
            self.dispatch.write_direct(ns, writes, outcomes).await?;
        }
    }

    fn writes_of(&self, page: Page, wanted: &mut Wanted) -> Vec<(Item, Draft)> {
        let mut watermark = self.sends_deltas().then(|| self.watermark.lock());
        let mut writes = Vec::with_capacity(page.documents.len());
        for document in page.documents {
            let Ok(key) = DocumentKey::of(&document) else {
                continue;
            };
            let name = key.canonical();
            // A collection whose collation folds case may return more than was asked for.
            let Some(unread) = wanted.remove(&name) else {
                continue;
            };
            if let Some(watermark) = &mut watermark {
                watermark.read(name.into(), page.read_at);
            }
            let item = Item { key, ..unread.item };
            let draft = if item.comes_anew { Draft::Anew } else { Draft::Upsert };
            writes.push((item, draft(document)));
        }
        writes
    }

    /// Takes out what was queued for another collection than the one that has the name `name`.
    ///
    /// Its rename or drop was committed before the look that showed another collection, and so before
    /// any read that began after that look. Once the stream has been read up to such a read and no
    /// barrier has come, none will: the event fell into a gap of the stream, and the comparison that
    /// follows a gap rests on what has the name now.
    ///
    /// False when no collection has the name.
    async fn set_aside_uuid_mismatches(
        &self,
        (ns, name): (&Namespace, &Namespace),
        read: (Instant, Option<ClusterTime>),
        wanted: &mut Wanted,
        outcomes: &mut Outcomes,
    ) -> Result<bool, SourceError> {
        if wanted.is_empty() {
            return Ok(true);
        }
        let current = self.source.collection_id(name).await?;
        let position = self.reading.position();
        let nameless = wanted.values().find(|unread| unread.item.collection.is_none());
        let is_proven = match nameless.map(|unread| unread.item.seq) {
            Some(seq) => {
                self.is_proven((ns, seq), name, current).await? || self.believe(name).await?
            }
            None => false,
        };
        // After the proof: a turn that has come since takes an entry's name from it.
        let seqs: Vec<u64> = wanted.values().map(|unread| unread.item.seq).collect();
        let names = self.queue.called_now(ns, seqs.iter().copied());
        let turned: HashSet<u64> = seqs
            .into_iter()
            .zip(names)
            .filter_map(|(seq, now)| (now.as_ref() != Some(name)).then_some(seq))
            .collect();
        let is_orphaned = self
            .collections
            .mismatch_read_at(name, read)
            .is_some_and(|read_at| position.has_read(read_at));
        let (mut waits, mut uuid_mismatches) = (false, false);
        wanted.retain(|_, Unread { item, .. }| {
            let has_turned = turned.contains(&item.seq);
            let outcome = match item.collection {
                Some(_) if item.collection == current => return true,
                None if is_proven && !has_turned => return true,
                // It is read under its new name, or is gone.
                _ if has_turned => Outcome::Unavailable { due_ms: 0 },
                Some(_) if is_orphaned => {
                    Outcome::Refresh { due_ms: now_ms(), keep_collection: false }
                }
                Some(_) => {
                    (waits, uuid_mismatches) = (true, true);
                    wait(BARRIER_WAIT_MS)
                }
                None => {
                    waits = true;
                    wait(PROOF_WAIT_MS)
                }
            };
            outcomes.insert(item.seq, outcome);
            false
        });
        if waits {
            self.reading.want();
        }
        self.collections.uuid_mismatch(name, uuid_mismatches);
        Ok(current.is_some())
    }

    /// True when `id`, which has the name now, is the collection that the entry was queued for, whose name it is as
    /// far as the stream was read.
    async fn is_proven(
        &self,
        entry: (&Namespace, u64),
        name: &Namespace,
        id: Option<CollectionId>,
    ) -> Result<bool, SourceError> {
        let read = self.reading.position().whole();
        let proof = self.queue.proof(name, id, read);
        if proof == Proof::Unseen {
            // After the look, so that whatever it has shown was made before.
            let at = self.source.time().await?;
            self.queue.seen(entry, name, id, at);
        }
        Ok(proof == Proof::Proven)
    }

    /// True while the stream is not read until entries have gone.
    fn is_full(&self) -> bool {
        self.reading.is_stopped()
    }

    /// Believes what was read under the name until now, where the stream cannot tell. False while it can.
    async fn believe(&self, name: &Namespace) -> Result<bool, SourceError> {
        if !self.is_full() {
            return Ok(false);
        }
        let now = self.source.time().await?;
        let (queue, ns) = (self.queue.clone(), name.clone());
        let read = self.reading.position().whole();
        match blocking(move || unproven::note(&queue, &ns, now, read)).await {
            Ok(false) => {}
            Ok(true) => {
                tracing::info!(ns = %name, "the queue is full: documents are read before the stream has come so far, and compared should their collection turn out to be renamed");
            }
            Err(error) => {
                tracing::debug!(ns = %name, %error, "a name cannot be noted");
                return Ok(false);
            }
        }
        // Whatever begins to be committed from here on finds the note.
        Ok(!self.reading.position().is_within_reply())
    }

    async fn write_missing(
        &self,
        ns: &Namespace,
        wanted: Wanted,
        outcomes: &mut Outcomes,
    ) -> Result<(), Halt> {
        let mut deletes = Vec::new();
        for Unread { item, op } in wanted.into_values() {
            match op {
                WriteOp::Update(_) => {
                    outcomes.insert(item.seq, Outcome::Applied);
                }
                _ => deletes.push((item, Draft::Delete)),
            }
        }
        self.dispatch.write_direct(ns, deletes, outcomes).await?;
        Ok(())
    }

    /// The local database is away, and the copy is all the more wanted: changes that can be sent as
    /// such are sent, and read again when it is back. The rest waits.
    async fn write_without_local(
        &self,
        ns: &Namespace,
        wanted: Wanted,
        outcomes: &mut Outcomes,
    ) -> Result<(), Halt> {
        let due_ms = now_ms() + LOCAL_WAIT_MS;
        let mut changes = Vec::new();
        for Unread { item, op } in wanted.into_values() {
            outcomes.insert(item.seq, Outcome::Unavailable { due_ms });
            let command = match &op {
                WriteOp::Update(delta) if self.sink.takes_changes() => delta.to_command(),
                _ => None,
            };
            if let Some(command) = command {
                changes.push((item, Draft::Change(command)));
            }
        }
        let sent: Vec<u64> = changes.iter().map(|(item, _)| item.seq).collect();
        let mut written = Outcomes::default();
        self.dispatch.write_direct(ns, changes, &mut written).await?;
        for seq in sent {
            if written.is_applied(seq) {
                outcomes.insert(seq, Outcome::Refresh { due_ms, keep_collection: true });
            }
        }
        Ok(())
    }
}
