//! The plain copy into an empty collection: read and write overlapped, raw throughout, a range at a time.
//!
//! Used in both directions: the first copy (local → Atlas) and the restore (Atlas → local).

use std::time::Duration;

use super::{
    SyncError,
    ends::{End, Ends},
    pause,
    range::{KeyRange, Order, Page, Part, Route, Walk},
};
use crate::{
    backoff::OutageWait,
    checkpoint::ClusterTime,
    crash::{self, Step},
    document_key::DocumentKey,
    namespace::Namespace,
    shutdown::Stop,
    sink::{Sink, SinkError, Write, Written},
    source::SourceError,
};

/// A part of a copy.
#[derive(Clone, Debug)]
pub struct Unit {
    pub ns: Namespace,
    pub range: KeyRange,
    pub order: Order,
    /// Documents in a reply.
    pub page: u32,
}

/// Who wants to know what becomes of a copy.
pub trait Ledger: Sync {
    /// Waits while nothing may be written.
    fn may_go_on(&self) -> impl Future<Output = Result<(), SyncError>> + Send;

    /// These are in the target.
    fn copied(&self, ns: &Namespace, documents: u64, bytes: u64);

    /// The target would not take these, for this reason.
    fn refused(
        &self,
        ns: &Namespace,
        documents: Vec<(DocumentKey, String)>,
    ) -> impl Future<Output = Result<(), SyncError>> + Send;

    /// The target did not answer, or answers again. An error ends the copy.
    fn answered(
        &self,
        ns: &Namespace,
        writes: &[Write],
        error: Option<&SinkError>,
    ) -> Result<(), SyncError>;
}

/// Copies ranges of collections.
pub struct Copier<'a, K, L> {
    pub ends: &'a Ends,
    /// Where from.
    pub from: End,
    pub sink: &'a K,
    pub ledger: &'a L,
    /// What is read shows no older state.
    pub after: ClusterTime,
    /// What becomes of a document that is there already, from a part whose answer was lost, or from an earlier
    /// run.
    pub there_already: ThereAlready,
    pub stop: &'a Stop,
}

/// See [`Copier`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ThereAlready {
    /// It is written over: the original may be newer.
    WriteOver,
    /// It is left as it is: it may be somebody's.
    Leave,
}

impl<K: Sink, L: Ledger> Copier<'_, K, L> {
    /// Copies one unit. Whatever passes is waited for.
    ///
    /// # Errors
    /// What waiting does not mend.
    pub async fn copy(&self, unit: &Unit) -> Result<(), SyncError> {
        let route = Route {
            ns: unit.ns.clone(),
            range: unit.range.clone(),
            part: Part::Whole,
            order: unit.order,
            after: self.after,
            page: unit.page,
        };
        let _slot = self.ends.slot().await;
        let mut walk = Walk::new(self.ends.of(self.from), route);
        let mut page = self.read(&mut walk).await?;
        while let Some(read) = page {
            if self.stop.is_draining() {
                return Err(SyncError::Stopped);
            }
            let writes = self.writes_of(&read)?;
            let bytes = read.len();
            drop(read);
            let write = async {
                let _room = self.ends.copying(bytes).await;
                self.write(&unit.ns, writes).await
            };
            let (next, written) = tokio::join!(self.read(&mut walk), write);
            written?;
            page = next?;
            crash::point(Step::PartCopied);
        }
        Ok(())
    }

    async fn read(&self, walk: &mut Walk<'_>) -> Result<Option<Page>, SyncError> {
        let mut attempts = self.ends.attempts(self.stop);
        loop {
            match walk.next().await {
                Ok(page) => {
                    attempts.succeeded();
                    if let (End::Local, Some(page)) = (self.from, &page) {
                        let documents = page.documents().map_err(|error| self.from.error(error))?;
                        self.ends.book(documents.len(), self.stop).await?;
                    }
                    return Ok(page);
                }
                Err(error) => attempts.failed(self.from.error(error)).await?,
            }
        }
    }

    fn writes_of(&self, page: &Page) -> Result<Vec<Write>, SyncError> {
        let documents = page.documents().map_err(|error| self.from.error(error))?;
        Ok(documents.into_iter().map(|document| Write::Insert(document.to_owned())).collect())
    }

    async fn write(&self, ns: &Namespace, mut writes: Vec<Write>) -> Result<(), SyncError> {
        let documents = writes.len() as u64;
        let bytes = writes.iter().map(bytes_of).sum();
        let mut wait = OutageWait::new(Duration::from_millis(500), Duration::from_secs(15));
        while !writes.is_empty() {
            self.ledger.may_go_on().await?;
            match self.sink.write(ns, &writes).await {
                Ok(written) => {
                    self.ledger.answered(ns, &writes, None)?;
                    let (again, refused) = leftovers(writes, written, self.there_already)?;
                    if !refused.is_empty() {
                        self.ledger.refused(ns, refused).await?;
                    }
                    writes = again;
                }
                // The command as such.
                Err(SinkError::Rejected(error)) => {
                    let keys = writes.iter().filter_map(Write::key);
                    let refused = keys.map(|key| (key, error.clone())).collect();
                    self.ledger.refused(ns, refused).await?;
                    writes.clear();
                }
                Err(error) => {
                    self.ledger.answered(ns, &writes, Some(&error))?;
                    pause(self.stop, wait.next_wait()).await?;
                }
            }
        }
        self.ledger.copied(ns, documents, bytes);
        Ok(())
    }
}

fn bytes_of(write: &Write) -> u64 {
    match write {
        Write::Insert(document) | Write::Upsert { document, .. } => {
            document.as_bytes().len() as u64
        }
        Write::Change { .. } | Write::Delete(_) => 0,
    }
}

type Refused = Vec<(DocumentKey, String)>;

/// What a part left to do: documents that were there already, to be written over; and those that the target would not take.
fn leftovers(
    writes: Vec<Write>,
    written: Vec<Written>,
    there_already: ThereAlready,
) -> Result<(Vec<Write>, Refused), SyncError> {
    let (mut again, mut refused) = (Vec::new(), Vec::new());
    for (write, written) in writes.into_iter().zip(written) {
        match (written, write) {
            (Written::AlreadyThere, Write::Insert(document))
                if there_already == ThereAlready::WriteOver =>
            {
                let key = DocumentKey::of(&document).map_err(SourceError::from)?;
                again.push(Write::Upsert { key, document });
            }
            (Written::Conflict { reason, .. } | Written::Rejected { reason, .. }, write) => {
                refused.extend(write.key().map(|key| (key, reason)));
            }
            (_, _) => {}
        }
    }
    Ok((again, refused))
}
