//! The plain copy of one collection into an empty one: read and write overlapped, raw throughout.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bson::rawdoc;
use tokio::sync::{Mutex, mpsc};

use super::{Collection, Reconciler, SyncError, pause};
use crate::{
    backoff::OutageWait,
    checkpoint::ClusterTime,
    crash::{self, Step},
    document_key::DocumentKey,
    mongo::{documents, majority_after},
    shutdown::Stop,
    sink::{Sink, SinkError, Write, Written},
    source::SourceError,
    status::now_ms,
};

/// Most documents in one write, and how many such parts may wait for a writer. A part is at most one
/// reply of the server, 16 MiB.
const PART: usize = 2_000;
const PARTS_WAITING: usize = 2;

impl<K: Sink> Reconciler<K> {
    /// Copies all documents of `ns` and returns their number. Where it is interrupted by Atlas it
    /// waits and goes on; where it is interrupted by the local database it fails, and the next
    /// attempt finds a collection that is no longer empty and compares it.
    pub(super) async fn copy(
        &self,
        collection: &Collection,
        after: ClusterTime,
        stop: &Stop,
    ) -> Result<u64, SyncError> {
        let ns = &collection.ns;
        let command = rawdoc! { "find": ns.coll(), "readConcern": majority_after(after) };
        let cursor = self.local.cursor(ns.db(), command, None).await;
        let mut cursor = cursor.map_err(SourceError::from)?;
        let (sender, receiver) = mpsc::channel::<Vec<Write>>(PARTS_WAITING);
        let receiver = Arc::new(Mutex::new(receiver));
        let read = async move {
            let mut copied = 0;
            while let Some(reply) = cursor.next().await.map_err(SourceError::from)? {
                let batch = documents(&reply).map_err(SourceError::from)?;
                for part in batch.chunks(PART) {
                    let writes: Vec<_> =
                        part.iter().map(|document| Write::Insert((*document).to_owned())).collect();
                    copied += writes.len() as u64;
                    if sender.send(writes).await.is_err() {
                        return Ok(copied); // The writers have failed and say why.
                    }
                }
            }
            Ok::<_, SyncError>(copied)
        };
        let writers: Vec<_> = (0..self.parallel.max(1))
            .map(|_| self.write_parts(collection, receiver.clone(), stop))
            .collect();
        // Only the writers hold it now: when they fail, the reader's next send fails too.
        drop(receiver);
        let (copied, written) = tokio::join!(read, futures_util::future::try_join_all(writers));
        written?;
        copied
    }

    async fn write_parts(
        &self,
        collection: &Collection,
        parts: Arc<Mutex<mpsc::Receiver<Vec<Write>>>>,
        stop: &Stop,
    ) -> Result<(), SyncError> {
        let ns = &collection.ns;
        loop {
            let Some(mut writes) = parts.lock().await.recv().await else {
                return Ok(());
            };
            let count = writes.len() as u64;
            let mut wait = OutageWait::new(Duration::from_millis(500), Duration::from_secs(15));
            while !writes.is_empty() {
                match self.sink.write(ns, &writes).await {
                    Ok(written) => {
                        let (again, refused) = leftovers(writes, &written)?;
                        // The worker tries them on the schedule, and keeps them if it must.
                        self.commit_refresh(ns, refused, collection.id, ClusterTime::default())
                            .await?;
                        writes = again;
                    }
                    Err(
                        error @ (SinkError::Unavailable(_)
                        | SinkError::Unanswered(_)
                        | SinkError::Denied(_)),
                    ) => {
                        if matches!(error, SinkError::Unanswered(_)) {
                            let keys = writes.iter().filter_map(Write::key).collect();
                            let mut late =
                                self.late.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                            late.given_up(ns, keys, Instant::now());
                        }
                        self.status.state().atlas_fault = Some((&error).into());
                        pause(stop, wait.next_wait()).await?;
                    }
                    // The command as such: its documents one by one, by the worker.
                    Err(SinkError::Rejected(error)) => {
                        tracing::warn!(%ns, %error, "a part of the copy was rejected");
                        let refused = writes.iter().filter_map(Write::key).collect();
                        self.commit_refresh(ns, refused, collection.id, ClusterTime::default())
                            .await?;
                        writes.clear();
                    }
                }
            }
            self.status.state().atlas_fault = None;
            self.status.metrics.atlas_heard_ms.set(now_ms());
            self.status.metrics.documents_copied.add(count);
            crash::point(Step::PartCopied);
        }
    }
}

/// What a part left to do: documents that were there already, from a part whose answer was lost, to be
/// written over; and the keys of those that Atlas would not take.
fn leftovers(
    writes: Vec<Write>,
    written: &[Written],
) -> Result<(Vec<Write>, Vec<DocumentKey>), SyncError> {
    let (mut again, mut refused) = (Vec::new(), Vec::new());
    for (write, written) in writes.into_iter().zip(written) {
        match (written, write) {
            (Written::AlreadyThere, Write::Insert(document)) => {
                let key = DocumentKey::of(&document).map_err(SourceError::from)?;
                again.push(Write::Upsert { key, document });
            }
            (Written::Conflict { .. } | Written::Rejected { .. }, write) => {
                refused.extend(write.key());
            }
            (_, _) => {}
        }
    }
    Ok((again, refused))
}
