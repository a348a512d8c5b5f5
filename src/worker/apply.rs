//! One leased batch: sort it by namespace and kind, write it, say how each entry ended.

use std::{collections::HashMap, time::Instant};

use ahash::RandomState;
use bson::RawDocumentBuf;
use uuid::Uuid;

use super::{
    Verdict, Worker,
    conflict::{Conflict, Conflicts},
    item::{Draft, Item, Unread},
    schema::LOCAL_WAIT_MS,
};
use crate::{
    config::UpdateMode,
    model::{
        namespace::Namespace,
        write_op::{Refusal, WriteOp},
    },
    queue::{Entry, Outcome, QueueError, Settlement, Work},
    runtime::clock::now_ms,
    sink::{Sink, SinkError, Write, Written},
    source::Source,
};

/// The batch cannot go on; what has no outcome yet goes back to the queue.
pub(super) enum Halt {
    Sink(SinkError),
    /// The local database is away; everything that could be done without it is done.
    Local,
    /// The queue failed.
    Queue(QueueError),
}

impl From<QueueError> for Halt {
    fn from(error: QueueError) -> Self {
        Halt::Queue(error)
    }
}

impl From<SinkError> for Halt {
    fn from(error: SinkError) -> Self {
        Halt::Sink(error)
    }
}

/// How the entries of a batch ended, by sequence number.
#[derive(Default)]
pub(super) struct Outcomes {
    by_seq: HashMap<u64, Outcome, RandomState>,
    /// Writes that found a unique value taken; see [`Worker::resolve`].
    pub conflicts: Conflicts,
    /// Atlas answered at least once.
    pub answered: bool,
}

impl Outcomes {
    pub fn insert(&mut self, seq: u64, outcome: Outcome) {
        self.by_seq.insert(seq, outcome);
    }

    /// Of an entry that has not ended otherwise.
    pub fn insert_if_open(&mut self, seq: u64, outcome: Outcome) {
        self.by_seq.entry(seq).or_insert(outcome);
    }

    pub fn is_applied(&self, seq: u64) -> bool {
        self.by_seq.get(&seq) == Some(&Outcome::Applied)
    }
}

impl<S: Source, K: Sink> Worker<S, K> {
    /// Writes the batch and returns one settlement for each entry.
    ///
    /// # Errors
    /// When the queue fails.
    pub(super) async fn apply(
        &self,
        entries: Vec<Entry>,
    ) -> Result<(Vec<Settlement>, Verdict), QueueError> {
        let leased: Vec<_> = entries.iter().map(|entry| (entry.seq, entry.version)).collect();
        let mut outcomes = Outcomes::default();
        outcomes.by_seq.reserve(leased.len());
        let mut by_namespace: Vec<(Namespace, Vec<Entry>)> = Vec::new();
        let mut schema = Vec::new();
        for entry in entries {
            match &entry.work {
                Work::Schema(change) => {
                    let ids = (entry.seq, entry.id, entry.attempts);
                    schema.push((ids, entry.first_time, change.clone()));
                }
                Work::Document { ns, .. } => {
                    match by_namespace.iter_mut().find(|(of, _)| of == ns) {
                        Some((_, group)) => group.push(entry),
                        None => by_namespace.push((ns.clone(), vec![entry])),
                    }
                }
            }
        }
        let mut halted = None;
        for (ids, time, change) in schema {
            if let Err(halt) = self.apply_schema(ids, time, &change, &mut outcomes).await {
                halted = Some(verdict_of(halt)?);
            }
        }
        for (ns, entries) in self.keep_order(by_namespace) {
            let seqs: Vec<u64> = entries.iter().map(|entry| entry.seq).collect();
            match self.apply_namespace(&ns, entries, &mut outcomes).await {
                Ok(()) => self.way_is_free(&ns),
                Err(Halt::Sink(SinkError::Held(reason))) => {
                    self.hold_documents(&ns, &seqs, reason, &mut outcomes);
                }
                Err(halt @ Halt::Local) => halted = Some(verdict_of(halt)?),
                Err(halt) => {
                    halted = Some(verdict_of(halt)?);
                    break;
                }
            }
        }
        let verdict = match halted {
            Some(Verdict::NotAsked) | None if outcomes.answered => Verdict::Answered,
            halted => halted.unwrap_or(Verdict::NotAsked),
        };
        let settlements = leased
            .into_iter()
            .map(|(seq, version)| {
                let outcome =
                    outcomes.by_seq.remove(&seq).unwrap_or(Outcome::Unavailable { due_ms: 0 });
                Settlement { seq, version, outcome }
            })
            .collect();
        Ok((settlements, verdict))
    }

    /// What is read from the local database is written after what is not, but for a capped collection,
    /// whose documents stay in the order of their entries.
    fn keep_order(&self, groups: Vec<(Namespace, Vec<Entry>)>) -> Vec<(Namespace, Vec<Entry>)> {
        let mut parts = Vec::with_capacity(groups.len());
        for (ns, entries) in groups {
            if !self.queue.is_in_order(&ns) {
                parts.push((ns, entries));
                continue;
            }
            let mut last = None;
            for entry in entries {
                let is_read = matches!(
                    &entry.work,
                    Work::Document { op: WriteOp::Update(_) | WriteOp::Refresh, .. }
                );
                if last.replace(is_read) != Some(is_read) {
                    parts.push((ns.clone(), Vec::new()));
                }
                let (_, part) = parts.last_mut().expect("one was just begun, or before");
                part.push(entry);
            }
        }
        parts
    }

    async fn apply_namespace(
        &self,
        ns: &Namespace,
        entries: Vec<Entry>,
        outcomes: &mut Outcomes,
    ) -> Result<(), Halt> {
        if !self.ensure(ns).await? {
            let due_ms = now_ms() + LOCAL_WAIT_MS;
            for entry in entries {
                outcomes.insert(entry.seq, Outcome::Unavailable { due_ms });
            }
            return Err(Halt::Local);
        }
        // Those of another namespace that had no chance wait; see `Conflicts::push`.
        drop(outcomes.conflicts.take());
        let mut direct = Vec::with_capacity(entries.len());
        let mut unread = Vec::new();
        let traits = self.traits_of(ns, |_| {});
        // Else what was there already would be written after what it stands before, which may have pushed it
        // out by then.
        let use_upserts = traits.insert_mode.use_upserts() || self.queue.is_in_order(ns);
        for entry in entries {
            let (item, op) = Item::split(entry);
            match op {
                WriteOp::Insert(document) if !use_upserts => {
                    direct.push((item, Draft::Insert(document)));
                }
                WriteOp::Insert(document) | WriteOp::Replace(document) => {
                    direct.push((item, Draft::Upsert(document)));
                }
                WriteOp::Delete => direct.push((item, Draft::Delete)),
                WriteOp::Update(delta) => {
                    let command = if self.may_send(
                        &item,
                        delta.as_raw().as_bytes().len(),
                        traits.document_bytes,
                    ) {
                        delta.to_command()
                    } else {
                        None
                    };
                    match command {
                        Some(command) => direct.push((item, Draft::Change(command))),
                        None => unread.push(Unread { item, op: WriteOp::Update(delta) }),
                    }
                }
                WriteOp::Refresh => unread.push(Unread { item, op: WriteOp::Refresh }),
            }
        }
        let unmatched = self.write_direct(ns, direct, outcomes).await?;
        // What a change did not match is read and written whole.
        unread.extend(unmatched.into_iter().map(|item| Unread { item, op: WriteOp::Refresh }));
        if !unread.is_empty() {
            self.hydrate(ns, unread, outcomes).await?;
        }
        self.resolve(ns, outcomes).await
    }

    /// May this delta go as it is?
    fn may_send(&self, item: &Item, delta_bytes: usize, document_bytes: usize) -> bool {
        let wanted = match self.options.update_mode {
            UpdateMode::Document => false,
            UpdateMode::Delta => true,
            // Worth it where it saves most of a document that is not small.
            UpdateMode::Auto => document_bytes >= 4096 && delta_bytes * 8 <= document_bytes,
        };
        wanted && self.horizon().is_exact(&item.key.canonical(), item.first_time)
    }

    /// Writes, and once more as upserts what was there already. Returns the changes that did not
    /// match.
    pub(super) async fn write_direct(
        &self,
        ns: &Namespace,
        direct: Vec<(Item, Draft)>,
        outcomes: &mut Outcomes,
    ) -> Result<Vec<Item>, Halt> {
        if direct.is_empty() {
            return Ok(Vec::new());
        }
        let writes = writes_of(&direct);
        let written = self.send(ns, &writes).await?;
        outcomes.answered = true;
        self.learn_traits(ns, &writes, &written);
        let mut again = Vec::new();
        let mut unmatched = Vec::new();
        let rest = direct.into_iter().zip(written).filter_map(|((item, draft), written)| {
            match (written, draft) {
                (Written::AlreadyThere, Draft::Insert(document)) => {
                    again.push((item, Draft::Upsert(document)));
                }
                (Written::Unmatched, _) => unmatched.push(item),
                (written, draft) => return Some((item, draft.into_document(), written)),
            }
            None
        });
        self.end_all(ns, rest, outcomes);
        if !again.is_empty() {
            let written = self.send(ns, &writes_of(&again)).await?;
            let rest = again.into_iter().zip(written);
            let rest = rest.map(|((item, draft), written)| (item, draft.into_document(), written));
            self.end_all(ns, rest, outcomes);
        }
        Ok(unmatched)
    }

    /// Sends; where Atlas refuses a command as a whole, sends each write alone, so that one odd
    /// document cannot take others with it.
    pub(super) async fn send_all(
        &self,
        ns: &Namespace,
        writes: &[Write<'_>],
    ) -> Result<Vec<Written>, SinkError> {
        match self.sink.write(ns, writes).await {
            Err(SinkError::Rejected(reason)) if writes.len() == 1 => {
                Ok(vec![Written::Rejected { reason, refusal: Refusal::Other }])
            }
            Err(SinkError::Rejected(_)) => {
                let mut written = Vec::with_capacity(writes.len());
                for write in writes {
                    match self.sink.write(ns, std::slice::from_ref(write)).await {
                        Err(SinkError::Rejected(reason)) => {
                            let refusal = Refusal::Other;
                            written.push(Written::Rejected { reason, refusal });
                        }
                        one => written.extend(one?),
                    }
                }
                Ok(written)
            }
            Err(error @ SinkError::Unanswered(_)) => {
                self.late().given_up(
                    ns,
                    writes.iter().filter_map(Write::key).collect(),
                    Instant::now(),
                );
                Err(error)
            }
            result => result,
        }
    }

    fn learn_traits(&self, ns: &Namespace, writes: &[Write<'_>], written: &[Written]) {
        let (mut inserts, mut duplicates, mut upserts, mut created) = (0, 0, 0, 0);
        let mut bytes = 0;
        for (write, written) in writes.iter().zip(written) {
            match write {
                Write::Insert(document) => {
                    inserts += 1;
                    duplicates += usize::from(*written == Written::AlreadyThere);
                    bytes += document.as_bytes().len();
                }
                Write::Upsert { document, .. } => {
                    upserts += 1;
                    created += usize::from(*written == Written::Applied { created: true });
                    bytes += document.as_bytes().len();
                }
                Write::Change { .. } | Write::Delete(_) => {}
            }
        }
        self.traits_of(ns, |traits| {
            if inserts > 0 {
                traits.insert_mode.inserted(inserts, duplicates);
            }
            if upserts > 0 {
                traits.insert_mode.upserted(upserts, created);
            }
            if let Some(average) = bytes.checked_div(inserts + upserts) {
                traits.document_bytes = match traits.document_bytes {
                    0 => average,
                    known => (known * 7 + average) / 8,
                };
            }
        });
    }

    /// Notes how the writes of entries ended; the documents are what was written.
    pub(super) fn end_all(
        &self,
        ns: &Namespace,
        ended: impl Iterator<Item = (Item, RawDocumentBuf, Written)>,
        outcomes: &mut Outcomes,
    ) {
        let mut notes = self.status.recent.notes(ns, now_ms());
        for (item, document, written) in ended {
            let outcome = match written {
                Written::Applied { .. } => {
                    notes.written(&item.key);
                    tracing::debug!(%ns, key = %item.key, id = %item.id, "written");
                    Outcome::Applied
                }
                Written::Conflict { reason, taken } => {
                    let seq = item.seq;
                    let conflict = Conflict { item, document, reason, taken };
                    let meanwhile = outcomes.conflicts.push(conflict);
                    outcomes.insert(seq, meanwhile);
                    continue;
                }
                Written::Rejected { reason, refusal } => {
                    self.rejected(ns, (item.id, item.attempts), reason, refusal)
                }
                Written::AlreadyThere | Written::Unmatched => {
                    unreachable!("only inserts and changes end so, and both are written once more")
                }
            };
            outcomes.insert(item.seq, outcome);
        }
    }

    /// The next attempt, or the end.
    pub(super) fn rejected(
        &self,
        ns: &Namespace,
        (id, attempts): (Uuid, u32),
        reason: String,
        refusal: Refusal,
    ) -> Outcome {
        let attempt = attempts + 1;
        if let Some(wait) = self.options.retries.after(attempt, fastrand::f64()) {
            let wait_ms = wait.as_millis() as u64;
            tracing::debug!(%ns, %id, attempt, wait_ms, error = %reason, "write rejected, tried again later");
            Outcome::Retry { due_ms: now_ms() + wait_ms, error: reason }
        } else {
            tracing::error!(%ns, %id, attempt, error = %reason, "write rejected, kept as a dead letter");
            Outcome::Rejected { reason, refusal, now_ms: now_ms() }
        }
    }
}

fn writes_of(direct: &[(Item, Draft)]) -> Vec<Write<'_>> {
    direct.iter().map(|(item, draft)| draft.write_to(&item.key)).collect()
}

fn verdict_of(halt: Halt) -> Result<Verdict, QueueError> {
    match halt {
        Halt::Sink(error) => Ok(Verdict::Away(error)),
        Halt::Local => Ok(Verdict::NotAsked),
        Halt::Queue(error) => Err(error),
    }
}
