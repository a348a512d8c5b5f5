//! What goes to Atlas as documents: sent, counted, and each write told how it ended.
//!
//! Knows Atlas and what has come of writes before. What is to be written is the business of those who read the entry,
//! or the local database.

use std::sync::Arc;

use bson::RawDocumentBuf;
use parking_lot::Mutex;
use uuid::Uuid;

use super::{
    item::{Draft, Item},
    learned::Collections,
    outcomes::{Conflict, Halt, Outcomes},
};
use crate::{
    model::{event::SchemaChange, namespace::Namespace, write_op::Refusal},
    observe::status::Status,
    policy::{backoff::RetrySchedule, in_doubt::InDoubtWrites},
    queue::{Outcome, Queue},
    runtime::clock::{self, now_ms},
    schema::{Problem, watch::SchemaWatch},
    sink::{Changed, SchemaSink, SinkError, Write, Written},
    source::SchemaSource,
};

/// Writes documents of one collection at a time.
pub(super) struct Dispatch<S, K> {
    pub queue: Arc<Queue>,
    /// Asked for the options of a collection alone that takes the place of something else.
    pub source: Arc<S>,
    pub sink: Arc<K>,
    pub watch: Arc<SchemaWatch>,
    pub status: Arc<Status>,
    pub retries: RetrySchedule,
    pub in_doubt: Arc<Mutex<InDoubtWrites>>,
    pub collections: Arc<Collections>,
}

impl<S: SchemaSource, K: SchemaSink> Dispatch<S, K> {
    /// Writes, what comes anew when it is taken out, and once more as upserts what was there already. Returns the changes
    /// that did not match.
    pub async fn write_direct(
        &self,
        ns: &Namespace,
        direct: Vec<(Item, Draft)>,
        outcomes: &mut Outcomes,
    ) -> Result<Vec<Item>, Halt> {
        if direct.is_empty() {
            return Ok(Vec::new());
        }
        self.take_out(ns, &direct).await?;
        let writes = writes_of(&direct);
        let written = self.send(ns, &writes, &changed_of(&direct)).await?;
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
                // Whose document the value is by now can be told of whole documents alone.
                (Written::Conflict { reason, .. }, Draft::Merge(_)) => {
                    let refusal = Refusal::Unique;
                    let written = Written::Rejected { reason, refusal };
                    return Some((item, RawDocumentBuf::new(), written));
                }
                (written, draft) => return Some((item, draft.into_document(), written)),
            }
            None
        });
        self.end_all(ns, rest, outcomes);
        if !again.is_empty() {
            let written = self.send(ns, &writes_of(&again), &changed_of(&again)).await?;
            let rest = again.into_iter().zip(written);
            let rest = rest.map(|((item, draft), written)| (item, draft.into_document(), written));
            self.end_all(ns, rest, outcomes);
        }
        Ok(unmatched)
    }

    /// Takes what comes anew out of Atlas. Where that refuses it, the document is written over in its old place.
    async fn take_out(&self, ns: &Namespace, direct: &[(Item, Draft)]) -> Result<(), Halt> {
        let anew = direct.iter().filter(|(_, draft)| matches!(draft, Draft::Anew(_)));
        let (deletes, changed): (Vec<_>, Vec<_>) =
            anew.map(|(item, _)| (Write::Delete(&item.key), Some(item.last_ms))).unzip();
        if !deletes.is_empty() {
            self.send(ns, &deletes, &changed).await?;
        }
        Ok(())
    }

    /// Sends; where Atlas refuses a command as a whole, sends each write alone, so that one odd
    /// document cannot take others with it. `changed_ms` as [`Sink`](crate::sink::Sink::write_changes) has it.
    pub async fn send_all(
        &self,
        ns: &Namespace,
        writes: &[Write<'_>],
        changed_ms: &[Option<u64>],
    ) -> Result<Vec<Written>, SinkError> {
        let reason = match self.send_once(ns, writes, changed_ms).await {
            Err(SinkError::Rejected(reason)) => reason,
            answered => return answered,
        };
        if let [_] = writes {
            return Ok(vec![Written::Rejected { reason, refusal: Refusal::Other }]);
        }
        let mut written = Vec::with_capacity(writes.len());
        for one in writes.chunks(1).zip(changed_ms.chunks(1)) {
            match self.send_once(ns, one.0, one.1).await {
                Err(SinkError::Rejected(reason)) => {
                    written.push(Written::Rejected { reason, refusal: Refusal::Other });
                }
                one => written.extend(one?),
            }
        }
        Ok(written)
    }

    async fn send_once(
        &self,
        ns: &Namespace,
        writes: &[Write<'_>],
        changed_ms: &[Option<u64>],
    ) -> Result<Vec<Written>, SinkError> {
        let written = self.sink.write_changes(ns, writes, changed_ms).await;
        if let Err(error) = &written {
            error.note_writes(ns, writes, &mut self.in_doubt.lock(), clock::now());
        }
        written
    }

    /// Has the target change a collection, and notes what may still come of it where there is no answer.
    pub async fn change_schema(&self, change: &SchemaChange) -> Result<Changed, SinkError> {
        let changed = self.sink.change_schema(change).await;
        if let Err(error) = &changed {
            error.note_change(change, &mut self.in_doubt.lock(), clock::now());
        }
        changed
    }

    /// Names what Atlas will not take of a collection, until a look at it finds out more.
    pub fn list(&self, ns: &Namespace, problem: Problem) {
        tracing::warn!(%ns, error = %problem, "Atlas does not take a collection or view as it is");
        self.watch.list(ns, vec![problem]);
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
                Write::Change { .. } | Write::Merge { .. } | Write::Delete(_) => {}
            }
        }
        self.collections.learn(ns, |traits| {
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
    pub fn end_all(
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
    pub fn rejected(
        &self,
        ns: &Namespace,
        (id, attempts): (Uuid, u32),
        reason: String,
        refusal: Refusal,
    ) -> Outcome {
        let attempt = attempts + 1;
        if let Some(wait) = self.retries.after(attempt, fastrand::f64()) {
            let wait_ms = wait.as_millis() as u64;
            tracing::debug!(%ns, %id, attempt, wait_ms, error = %reason, "write rejected, tried again later");
            Outcome::Retry { due_ms: now_ms() + wait_ms, error: reason }
        } else {
            tracing::error!(%ns, %id, attempt, error = %reason, "write rejected, kept as a dead letter");
            Outcome::Rejected { reason, refusal, now_ms: now_ms() }
        }
    }
}

fn changed_of(direct: &[(Item, Draft)]) -> Vec<Option<u64>> {
    direct.iter().map(|(item, _)| Some(item.last_ms)).collect()
}

fn writes_of(direct: &[(Item, Draft)]) -> Vec<Write<'_>> {
    direct.iter().map(|(item, draft)| draft.write_to(&item.key)).collect()
}
