//! The local database: its change stream, and its documents read by key.
//!
//! [`Source`] is the seam, with what every source can do; what only one can that has collections of its own, with
//! options and indexes, is [`SchemaSource`]. Production enters through [`ChangeStreamSource`]; an embedder or a test may
//! bring its own. Nothing here ever writes, which the book promises first: the commands used are `hello`, `buildInfo`,
//! `replSetGetConfig`, `replSetGetStatus`, `listDatabases`, `listCollections`, `find` and `aggregate` with
//! `$changeStream`.

use std::future::Future;

use bson::RawDocumentBuf;

use crate::{
    gate::Permit,
    model::{
        checkpoint::{ClusterTime, PositionKind, ResumeToken},
        document_key::DocumentKey,
        event::{ChangeEvent, CollectionId},
        namespace::{Namespace, NamespaceFilter},
        write_op::WriteOp,
    },
    mongo::MongoError,
    schema::Description,
};

mod any;
#[cfg(test)]
pub(crate) mod fake;
mod hint;
mod journal;
pub mod mongodb;
pub mod outbox;

pub use any::AnySource;
pub use journal::Journal;

pub use self::mongodb::{
    ChangeStream, ChangeStreamSource, PIPELINE_VERSION, SourceInfo, evidence, inspect, is_router,
    last_entry, last_write, oplog_start, refuse_router, source_id,
};

/// Where to begin reading.
#[derive(Clone, Debug, PartialEq)]
pub enum StartFrom {
    /// With the next change.
    Now,
    /// After the event of this token.
    Token(ResumeToken),
    /// With the first change at or after this time. Safe on the same database only.
    Time(ClusterTime),
}

/// What one reply of the change stream held.
#[derive(Clone, Debug)]
pub struct EventBatch {
    /// In the order in which they were committed. Empty when nothing happened.
    pub events: Vec<ChangeEvent>,
    /// The position behind the last event, or, of an empty batch, behind all that was looked at.
    pub token: ResumeToken,
    /// The time of that position.
    pub cluster_time: ClusterTime,
    /// Everything up to this time has been handed out; see [`Replies`](crate::policy::position::Replies).
    pub whole: ClusterTime,
}

/// Documents that were read by key.
#[derive(Debug, Default)]
pub struct Page {
    pub documents: Vec<RawDocumentBuf>,
    /// The state that they show is not older than the `after` that was asked for, and not younger
    /// than this.
    pub read_at: ClusterTime,
}

/// Where changes come from.
pub trait Source: Send + Sync + 'static {
    type Stream: EventStream;
    type Pages: Pages;

    /// What its positions count: a queue that holds those of another kind is refused.
    fn positions(&self) -> PositionKind;

    /// Opens the change stream.
    fn open(
        &self,
        from: &StartFrom,
    ) -> impl Future<Output = Result<Self::Stream, SourceError>> + Send;

    /// Reads documents by key, in a state not older than `after`. Keys without a document are
    /// silently missing in what comes back.
    fn read(
        &self,
        ns: &Namespace,
        keys: &[&DocumentKey],
        after: ClusterTime,
    ) -> impl Future<Output = Result<Self::Pages, SourceError>> + Send;

    /// Of a source that keeps what was said of its documents, and cannot show the documents themselves: what brings each
    /// of these up to date, whatever was written before; `None` for one that nothing is kept of. `None` for all where
    /// documents are [read](Self::read).
    fn renew(
        &self,
        _ns: &Namespace,
        _keys: &[&DocumentKey],
    ) -> impl Future<Output = Result<Option<Vec<Option<WriteOp>>>, SourceError>> + Send {
        std::future::ready(Ok(None))
    }

    /// Whether a name is the source's own: of something that it keeps and that is no collection of the target. Nobody chooses it,
    /// and what is queued under it is the source's to see to ([`renew`](Self::renew)).
    fn is_own(&self, _ns: &Namespace) -> bool {
        false
    }

    /// False for what was queued before somebody left its collection out.
    fn is_replicated(&self, ns: &Namespace, filter: &NamespaceFilter) -> bool {
        filter.matches(ns) || self.is_own(ns)
    }

    /// The time of the last operation that the server has made: not older than anything that was read
    /// before.
    fn time(&self) -> impl Future<Output = Result<ClusterTime, SourceError>> + Send;

    /// What holds for as long as nothing can have put another database in the place of this one: see
    /// [`Gate`](crate::gate::Gate). A source that cannot be exchanged needs none.
    fn permit(&self) -> Permit {
        Permit::free()
    }

    /// Something of its past that this source, and no other, must still show where reading goes on: see
    /// [`Checkpoint::anchor`](crate::model::checkpoint::Checkpoint::anchor). Of a MongoDB the time of the last entry of
    /// the oplog that a majority has. `None` where there is nothing, or it may not be read.
    fn last_entry(&self) -> impl Future<Output = Result<Option<ClusterTime>, SourceError>> + Send {
        std::future::ready(Ok(None))
    }
}

/// A source whose collections have options, indexes and a UUID: a MongoDB.
pub trait SchemaSource: Source {
    /// What has this name now, with its options and indexes, if anything has.
    fn describe(
        &self,
        ns: &Namespace,
    ) -> impl Future<Output = Result<Option<Description>, SourceError>> + Send;

    /// True when the stream tells of new collections, options and indexes (6.0+).
    fn tells_of_schema(&self) -> bool;

    /// The collection that has this name now, if any has.
    fn collection_id(
        &self,
        ns: &Namespace,
    ) -> impl Future<Output = Result<Option<CollectionId>, SourceError>> + Send;
}

/// An open stream of changes.
pub trait EventStream: Send + 'static {
    /// The next batch; an empty one about every second when nothing happens. Not safe to drop
    /// half-way: reopen the stream from the last token instead.
    fn next(&mut self) -> impl Future<Output = Result<EventBatch, SourceError>> + Send;

    /// True for a source that keeps each change until it is [confirmed](Self::confirm): the rows of a database's
    /// outbox. Then what is committed is also made durable, which costs an fsync of the queue for each batch. An oplog
    /// keeps what it keeps, whoever has read it, so that it is the second copy of what a power cut takes from the queue.
    fn keeps_unconfirmed(&self) -> bool {
        false
    }

    /// Everything up to this position, the token of a batch, is on the queue's disk, and will not be asked for again. It
    /// comes behind the commit and while the batch after it may have been handed out already; it may come twice, and
    /// after a crash not at all for some batches, of which the next one to be confirmed is behind. Only of a stream that
    /// [keeps](Self::keeps_unconfirmed) them.
    fn confirm(
        &mut self,
        _position: &ResumeToken,
    ) -> impl Future<Output = Result<(), SourceError>> + Send {
        std::future::ready(Ok(()))
    }
}

/// Documents, a bounded number of bytes at a time.
pub trait Pages: Send {
    /// The next page, or `None` after the last.
    fn next(&mut self) -> impl Future<Output = Result<Option<Page>, SourceError>> + Send;
}

/// What a source's own database said.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Cause {
    /// In the driver's account.
    #[error(transparent)]
    Mongo(#[from] MongoError),
    /// Of a source of another kind, in its words.
    #[error("{0}")]
    Other(String),
}

impl Cause {
    /// The account of a MongoDB.
    pub fn mongo(&self) -> Option<&MongoError> {
        match self {
            Cause::Mongo(error) => Some(error),
            Cause::Other(_) => None,
        }
    }
}

/// Why the local database could not be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SourceError {
    /// Not reachable, no primary, shutting down, a cursor that was killed: try again.
    #[error("the local database is not available")]
    Unavailable(#[source] Cause),
    /// Wrong password, missing privilege, TLS that does not fit.
    #[error("the local database refuses access; {advice}")]
    Denied { advice: String, source: Cause },
    /// The oplog has rolled past the checkpoint, so events between the two are gone; or the token is
    /// of another history. Only a comparison of everything can tell what they were.
    #[error("the oplog no longer reaches back to the checkpoint")]
    HistoryLost(#[source] Cause),
    /// A collection that was being read is not there any more, or not as it was. Only of a read, never of the stream.
    #[error("{what}")]
    Overtaken { what: &'static str, source: Cause },
    /// An event that does not have the form of one.
    #[error("the change stream sent what is not understood")]
    Malformed(#[from] crate::model::raw::Malformed),
    /// A server that cannot be replicated from: a standalone, or one that is too old.
    #[error("{problem}")]
    Unfit { problem: String, hint: String },
    /// Anything else that the server said.
    #[error("the local database answered with an error")]
    Failed(#[source] Cause),
}

impl SourceError {
    /// True when it may be for the stream's position that it fails: see
    /// [`may_be_of_the_question`](crate::mongo::class::may_be_of_the_question).
    pub fn may_be_of_the_position(&self) -> bool {
        match self {
            SourceError::Unavailable(error) | SourceError::Failed(error) => {
                error.mongo().is_some_and(crate::mongo::class::may_be_of_the_question)
            }
            SourceError::Denied { .. }
            | SourceError::HistoryLost(_)
            | SourceError::Overtaken { .. }
            | SourceError::Malformed(_)
            | SourceError::Unfit { .. } => false,
        }
    }

    /// True when waiting and trying again is all there is to do.
    pub fn is_transient(&self) -> bool {
        match self {
            SourceError::Unavailable(_)
            | SourceError::Failed(_)
            | SourceError::Denied { .. }
            | SourceError::Overtaken { .. } => true,
            SourceError::HistoryLost(_) | SourceError::Malformed(_) | SourceError::Unfit { .. } => {
                false
            }
        }
    }
}
