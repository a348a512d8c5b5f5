//! An entry on its way through the worker, with what is to be done to its document.
//!
//! What is large is moved from the entry to its end, never copied: a [`Write`] borrows from here.

use bson::RawDocumentBuf;
use uuid::Uuid;

use crate::{
    model::{
        checkpoint::ClusterTime, delta::UpdateCommand, document_key::DocumentKey,
        event::CollectionId, write_op::WriteOp,
    },
    queue::{Entry, Work},
    sink::Write,
};

/// An entry without its op, which has become a [`Draft`].
#[derive(Clone, Debug)]
pub(super) struct Item {
    pub seq: u64,
    pub id: Uuid,
    pub attempts: u32,
    pub key: DocumentKey,
    pub collection: Option<CollectionId>,
    /// What Atlas has of it gives way first.
    pub comes_anew: bool,
    pub first_time: ClusterTime,
    pub last_time: ClusterTime,
    /// When the document was changed last, as far as is known here, by the source's clock: milliseconds since 1970.
    pub last_ms: u64,
}

impl Item {
    /// The document's side of an entry, and its op.
    pub fn split(entry: Entry, comes_anew: bool) -> (Self, WriteOp) {
        let Work::Document { key, op, collection, .. } = entry.work else {
            unreachable!("barriers are leased alone and applied elsewhere")
        };
        let item = Self {
            seq: entry.seq,
            id: entry.id,
            attempts: entry.attempts,
            key,
            collection,
            comes_anew,
            first_time: entry.first_time,
            last_time: entry.last_time,
            last_ms: entry.last_ms,
        };
        (item, op)
    }
}

/// An entry whose document is to be read from the local database.
#[derive(Clone, Debug)]
pub(super) struct Unread {
    pub item: Item,
    /// What is held meanwhile: the delta, or `Refresh`.
    pub op: WriteOp,
}

/// What is to be done to the document of an [`Item`]: a [`Write`] that owns its part of it.
#[derive(Debug)]
pub(super) enum Draft {
    Insert(RawDocumentBuf),
    Upsert(RawDocumentBuf),
    /// As an upsert, when Atlas has been rid of it: so it comes last.
    Anew(RawDocumentBuf),
    Change(UpdateCommand),
    /// Fields with their `_id`.
    Merge(RawDocumentBuf),
    Delete,
}

impl Draft {
    pub fn write_to<'a>(&'a self, key: &'a DocumentKey) -> Write<'a> {
        match self {
            Draft::Insert(document) => Write::Insert(document),
            Draft::Upsert(document) | Draft::Anew(document) => Write::Upsert { key, document },
            Draft::Change(command) => Write::Change { key, command },
            Draft::Merge(fields) => Write::Merge { key, fields },
            Draft::Delete => Write::Delete(key),
        }
    }

    /// The whole document, if that is what is written.
    pub fn into_document(self) -> RawDocumentBuf {
        match self {
            Draft::Insert(document) | Draft::Upsert(document) | Draft::Anew(document) => document,
            Draft::Change(_) | Draft::Merge(_) | Draft::Delete => RawDocumentBuf::new(),
        }
    }
}
