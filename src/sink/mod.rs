//! Where changes go: what the worker writes to, and through which it learns how each write ended.
//!
//! [`Sink`] is the seam, and all that a target must do to take documents (`examples/stdout_sink.rs` is one); what only one can that has collections with
//! options and indexes is [`SchemaSink`]. Production enters through [`AtlasSink`], where what an error means is decided in
//! [`classify`] alone.

use std::{collections::BTreeSet, future::Future, time::Instant};

use bson::{RawDocument, RawDocumentBuf};

use crate::{
    gate::{
        faults::Fault,
        lease::{BootTime, Lease},
    },
    model::{
        delta::UpdateCommand, document_key::DocumentKey, event::SchemaChange, namespace::Namespace,
        write_op::Refusal,
    },
    policy::in_doubt::InDoubtWrites,
    schema::Description,
};

mod any;
#[cfg(test)]
pub(crate) mod fake;
pub mod hint;
pub mod mongodb;
mod plain;
pub mod postgres;

pub use self::mongodb::{AtlasSink, classify};
pub use any::{AnySink, OwnSink};
pub use plain::WithoutSchema;

/// One write to one document. It borrows what it writes: the worker keeps the entry, a copy the reply that the
/// document came in.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Write<'a> {
    /// A document that should not be there yet; see [`Written::AlreadyThere`].
    Insert(&'a RawDocument),
    /// The document is to be exactly this, whether it is there or not.
    Upsert { key: &'a DocumentKey, document: &'a RawDocument },
    /// Change the document that is there; see [`Written::Unmatched`].
    Change { key: &'a DocumentKey, command: &'a UpdateCommand },
    /// Set these fields of the document, and make it of them where it is not there. `fields` has the `_id` as well.
    Merge { key: &'a DocumentKey, fields: &'a RawDocument },
    /// Remove it; that it is not there is fine.
    Delete(&'a DocumentKey),
}

impl Write<'_> {
    /// The document that it writes. `None` for bytes that are no document with an `_id`.
    pub fn key(&self) -> Option<DocumentKey> {
        match *self {
            Write::Insert(document) => DocumentKey::of(document).ok(),
            Write::Upsert { key, .. }
            | Write::Change { key, .. }
            | Write::Merge { key, .. }
            | Write::Delete(key) => Some(key.clone()),
        }
    }
}

/// How one write ended.
#[derive(Clone, Debug, PartialEq)]
pub enum Written {
    /// Done. `created` is true when the document was not there before.
    Applied { created: bool },
    /// An insert found a document of that `_id`; nothing was changed.
    AlreadyThere,
    /// A change found no document, or not the one that it was made for; nothing was changed.
    Unmatched,
    /// Another document holds a value that a unique index reserves to one.
    Conflict { reason: String, taken: Taken },
    /// Atlas will not take it.
    Rejected { reason: String, refusal: Refusal },
}

/// How a schema change ended that Atlas has taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Changed {
    Done,
    /// A collection of that name is there, and its options are not those that were wanted.
    Differs,
    /// What was to be renamed is not there: an attempt whose answer was lost has renamed it, or it was empty and
    /// nobody has made it (local 5.0). What has the new name may be what the rename was to replace.
    WasNotThere,
}

/// Which unique value is taken, as far as Atlas tells.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Taken {
    pub index: Option<String>,
    /// The index key, `{path: value, …}`.
    pub key: Option<RawDocumentBuf>,
}

/// A document that does not find its place: another one holds a unique value of it.
#[derive(Clone, Debug, PartialEq)]
pub struct ConflictingWrite {
    pub document: RawDocumentBuf,
    pub taken: Taken,
}

/// A document that stands in another one's way.
#[derive(Clone, Debug, PartialEq)]
pub struct CurrentOwner {
    pub document: RawDocumentBuf,
    /// The paths of the index, when every document with these values is in it: such an owner lets go
    /// only by another value.
    pub paths: Option<Vec<String>>,
}

impl CurrentOwner {
    /// True when `document` has, byte for byte, the values that this one stands in the way with.
    pub fn has_its_values(&self, document: &RawDocument) -> bool {
        self.paths.as_ref().is_some_and(|paths| {
            paths.iter().all(|path| {
                mongodb::values_at(&self.document, path) == mongodb::values_at(document, path)
            })
        })
    }
}

/// Where changes go.
pub trait Sink: Send + Sync + 'static {
    /// Writes to one namespace. The writes are to different documents and commute. The outcomes are
    /// in the order of the writes.
    ///
    /// # Errors
    /// When Atlas could not be asked, or would not answer: nothing is known of any write then.
    fn write(
        &self,
        ns: &Namespace,
        writes: &[Write<'_>],
    ) -> impl Future<Output = Result<Vec<Written>, SinkError>> + Send;

    /// As [`write`](Self::write), by one who knows of each write when its document was changed in the source, in milliseconds
    /// since 1970, or does not. For a sink that keeps that with the document.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    fn write_changes(
        &self,
        ns: &Namespace,
        writes: &[Write<'_>],
        _changed_ms: &[Option<u64>],
    ) -> impl Future<Output = Result<Vec<Written>, SinkError>> + Send {
        self.write(ns, writes)
    }

    /// Whether it takes [`Write::Change`] and [`Write::Merge`]. One that does not is never given any: each update goes as the whole document,
    /// read from the source when it is its turn, and waits for as long as the source is away.
    fn takes_changes(&self) -> bool {
        false
    }
}

/// A sink that keeps collections as they are in a MongoDB: made, renamed and dropped in the order of the stream, with
/// their options and indexes, and with values that are unique.
pub trait SchemaSink: Sink {
    /// Whether options and indexes are made as they are in the source. Where not, collections are made, renamed and
    /// dropped all the same.
    fn carries_options(&self) -> bool {
        true
    }

    /// For each conflicting write the documents that hold a unique value of it now. Its own document
    /// may be among them. Empty when the place is free.
    ///
    /// # Errors
    /// When Atlas could not be asked, or would not answer.
    fn owners(
        &self,
        ns: &Namespace,
        conflicting: &[ConflictingWrite],
    ) -> impl Future<Output = Result<Vec<Vec<CurrentOwner>>, SinkError>> + Send;

    /// Changes a collection. Applying a change twice is harmless.
    ///
    /// # Errors
    /// As [`write`](Sink::write); [`SinkError::Rejected`] when Atlas will not do it.
    fn change_schema(
        &self,
        change: &SchemaChange,
    ) -> impl Future<Output = Result<Changed, SinkError>> + Send;

    /// Drops a database that holds nothing but what its server keeps for itself. False where it holds more.
    ///
    /// # Errors
    /// As [`change_schema`](Self::change_schema).
    fn drop_emptied(&self, db: &str) -> impl Future<Output = Result<bool, SinkError>> + Send;

    /// Lets an index take what it already has twice, where it is one that is only prepared to become unique: the
    /// local database has such documents of old. False where it is no such index.
    ///
    /// # Errors
    /// As [`change_schema`](Self::change_schema).
    fn loosen(
        &self,
        ns: &Namespace,
        index: &str,
    ) -> impl Future<Output = Result<bool, SinkError>> + Send;

    /// What has this name now, with its options and indexes, if anything has.
    ///
    /// # Errors
    /// As [`write`](Sink::write).
    fn describe(
        &self,
        ns: &Namespace,
    ) -> impl Future<Output = Result<Option<Description>, SinkError>> + Send;

    /// How many documents a collection holds, as its statistics say.
    ///
    /// # Errors
    /// As [`write`](Sink::write).
    fn estimated_count(
        &self,
        ns: &Namespace,
    ) -> impl Future<Output = Result<u64, SinkError>> + Send;

    /// Runs a command of a [`Step`](crate::schema::Step). An index that is gone already is fine.
    ///
    /// # Errors
    /// As [`change_schema`](Self::change_schema).
    fn alter(
        &self,
        ns: &Namespace,
        command: RawDocumentBuf,
    ) -> impl Future<Output = Result<(), SinkError>> + Send;
}

impl From<&SinkError> for Fault {
    fn from(error: &SinkError) -> Self {
        let is_denied = matches!(error, SinkError::Denied(_));
        Self { error: error.to_string(), is_denied }
    }
}

/// Whether anything may be written to Atlas now: to be asked right before it is sent.
///
/// # Errors
/// [`SinkError::Unavailable`] while the lease is not young enough.
pub fn may_write(lease: &Lease) -> Result<(), SinkError> {
    if lease.is_held(BootTime::now()) {
        return Ok(());
    }
    let problem =
        "the mark of ownership was not renewed in time, and nothing is written before it is";
    Err(SinkError::Unavailable(problem.to_owned()))
}

/// Why Atlas did not do what it was asked to.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SinkError {
    /// Network, no primary, timeout, shutting down, throttled, over quota: the breaker's business.
    #[error("Atlas is not available: {0}")]
    Unavailable(String),
    /// As [`Unavailable`](Self::Unavailable), after something was sent: it may still be done.
    #[error("Atlas is not available: {0}")]
    Unanswered(String),
    /// As [`Unanswered`](Self::Unanswered), of the drop of a whole database.
    #[error("Atlas is not available: {problem}")]
    DropUnanswered { db: String, problem: String },
    /// Authentication, privileges, TLS: waiting does not help, a person must.
    #[error("Atlas refuses access: {0}")]
    Denied(String),
    /// The command itself was refused.
    #[error("Atlas rejected the command: {0}")]
    Rejected(String),
    /// A change of a collection that has to wait until a person, or another change, has made way for it. Only
    /// that collection waits with it.
    #[error("Atlas does not make the change yet: {0}")]
    Held(String),
    /// Somebody has taken away what was there of the collection. Nothing is written into what is made in its place before
    /// it is noted that it is to be compared: it has none of the other documents.
    #[error("{0}")]
    Gone(String),
}

impl SinkError {
    /// True where something was sent, and nobody knows what has become of it.
    pub fn is_unanswered(&self) -> bool {
        matches!(self, SinkError::Unanswered(_) | SinkError::DropUnanswered { .. })
    }

    /// The database that may still be dropped, with [all that is in it](Namespace::all_of).
    pub fn may_still_drop(&self) -> Option<Namespace> {
        match self {
            SinkError::DropUnanswered { db, .. } => Some(Namespace::all_of(db)),
            _ => None,
        }
    }

    /// What `change` may still do that ended with this: to collections, or to [whole databases](Namespace::all_of).
    fn may_still_change(&self, change: &SchemaChange) -> BTreeSet<Namespace> {
        if !self.is_unanswered() {
            return BTreeSet::new();
        }
        let database = self.may_still_drop();
        change.namespaces().into_iter().chain(database).collect()
    }

    /// Notes what may still come of writes that ended with this.
    pub fn note_writes(
        &self,
        ns: &Namespace,
        writes: &[Write<'_>],
        in_doubt: &mut InDoubtWrites,
        now: Instant,
    ) {
        if self.is_unanswered() {
            in_doubt.given_up(ns, writes.iter().filter_map(Write::key).collect(), now);
            in_doubt.schema_given_up(self.may_still_drop().into_iter().collect(), now);
        }
    }

    /// As [`note_writes`](Self::note_writes), of a change of collections.
    pub fn note_change(&self, change: &SchemaChange, in_doubt: &mut InDoubtWrites, now: Instant) {
        in_doubt.schema_given_up(self.may_still_change(change), now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::in_doubt::Overdue;

    #[test]
    fn nothing_may_be_written_but_while_the_lease_is_held() {
        let lease = Lease::default();
        assert!(matches!(may_write(&lease), Err(SinkError::Unavailable(_))), "it was never taken");

        lease.renew(BootTime::now());
        assert_eq!(may_write(&lease), Ok(()));
        lease.end();
        assert!(may_write(&lease).is_err(), "it is another's");
    }

    #[test]
    fn what_stays_unanswered_is_in_doubt_with_the_database_that_may_go_and_nothing_else_is() {
        let (ns, document) = (Namespace::new("shop", "orders"), bson::rawdoc! { "_id": 1 });
        let due = |error: SinkError| {
            let (mut in_doubt, now) = (InDoubtWrites::default(), Instant::now());
            error.note_writes(&ns, &[Write::Insert(&document)], &mut in_doubt, now);
            in_doubt.due(now + std::time::Duration::from_secs(3_600))
        };
        let text = || "it is away".to_owned();

        let write = due(SinkError::Unanswered(text()));
        assert_eq!((write.documents.len(), write.namespaces.len()), (1, 0));
        let drop = due(SinkError::DropUnanswered { db: "shop".to_owned(), problem: text() });
        assert_eq!(drop.documents.len(), 1);
        assert!(drop.namespaces.iter().eq([&Namespace::all_of("shop")]));
        for error in
            [SinkError::Unavailable, SinkError::Denied, SinkError::Rejected, SinkError::Held]
        {
            assert_eq!(due(error(text())), Overdue::default());
        }
    }
}
