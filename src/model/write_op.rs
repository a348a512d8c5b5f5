//! What must be done to one document in Atlas.

use bson::RawDocumentBuf;

use crate::model::delta::Delta;

/// What must be done to one document so that Atlas holds what the local database holds.
#[derive(Clone, Debug, PartialEq)]
pub enum WriteOp {
    /// The document was born: Atlas should not have it yet.
    Insert(RawDocumentBuf),
    /// The document is now this, whether Atlas has one or not.
    Replace(RawDocumentBuf),
    /// The document changed by this much. Never creates a document: a document that is missing in
    /// Atlas is followed in the stream by its delete or by the rename of its collection.
    Update(Delta),
    /// These fields of the document are so now, whatever else it has; where there is none, it is made of them. A source
    /// tells so that knows no more of its documents than what was sent.
    Merge(RawDocumentBuf),
    /// The document is gone.
    Delete,
    /// Read the document from the local database when it is this entry's turn, and write what is
    /// there, or delete, if nothing is. Says nothing, absorbs everything: the way out of any doubt.
    Refresh,
}

/// Why Atlas does not take a write, in one of few words, for counting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// A unique value that another document keeps.
    Unique,
    /// A validator of the collection.
    Validation,
    TooLarge,
    /// A change of a collection, not of a document.
    Schema,
    Other,
}

impl Refusal {
    /// Every one, the catch-all last.
    pub const ALL: [Self; 5] =
        [Self::Unique, Self::Validation, Self::TooLarge, Self::Schema, Self::Other];

    /// The label in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Unique => "unique_value",
            Self::Validation => "validation",
            Self::TooLarge => "too_large",
            Self::Schema => "schema",
            Self::Other => "other",
        }
    }
}

impl WriteOp {
    /// The name that people see, in the API, in metrics and in logs.
    pub fn name(&self) -> &'static str {
        match self {
            WriteOp::Insert(_) => "insert",
            WriteOp::Replace(_) => "replace",
            WriteOp::Update(_) => "update",
            WriteOp::Merge(_) => "merge",
            WriteOp::Delete => "delete",
            WriteOp::Refresh => "refresh",
        }
    }

    /// The raw BSON that the op carries: the document, the diff, or nothing.
    pub fn body(&self) -> Option<&bson::RawDocument> {
        match self {
            WriteOp::Insert(doc) | WriteOp::Replace(doc) | WriteOp::Merge(doc) => Some(doc),
            WriteOp::Update(delta) => Some(delta.as_raw()),
            WriteOp::Delete | WriteOp::Refresh => None,
        }
    }
}
