//! What a batch has to do, of what is to be written.

use std::{borrow::Cow, sync::Arc};

use bson::RawDocument;

use super::{
    batch::RowWrite,
    cell::Cell,
    row::{self, Rows},
};
use crate::{
    model::{document_key::DocumentKey, raw::Malformed, write_op::Refusal},
    runtime::shutdown::blocking,
    sink::{Write, Written},
};

/// Bytes of documents that are made into rows where they are asked for. More of them, as of a page of a copy, have a thread of
/// their own: the pages that are copied side by side share a task, and would wait ten milliseconds for each other, and
/// PostgreSQL for all of them.
const BYTES_IN_PLACE: usize = 1 << 20;

/// The items, and of each write how it ended where no row can be made of it.
pub async fn items_of(
    rows: &Arc<Rows>,
    writes: &[Write<'_>],
    changed_ms: &[Option<u64>],
) -> (Vec<RowWrite>, Vec<Option<Written>>) {
    let given = writes.iter().map(Given::of).zip(changed_ms.iter().copied());
    if writes.iter().map(size).sum::<usize>() <= BYTES_IN_PLACE {
        return made_of(rows, given);
    }
    let given: Vec<_> = given.map(|(of, changed_ms)| (of.into_owned(), changed_ms)).collect();
    let rows = rows.clone();
    blocking(move || made_of(&rows, given.into_iter())).await
}

/// Bytes of a write, about.
pub fn size(write: &Write<'_>) -> usize {
    match *write {
        Write::Insert(document)
        | Write::Upsert { document, .. }
        | Write::Merge { fields: document, .. } => document.as_bytes().len(),
        Write::Change { .. } | Write::Delete(_) => 100,
    }
}

/// What a row is made of, or is found by.
enum Given<'a> {
    Document(Cow<'a, RawDocument>),
    Gone(Cow<'a, DocumentKey>),
    /// Never given: see `takes_changes`.
    Change,
}

impl<'a> Given<'a> {
    fn of(write: &Write<'a>) -> Self {
        match *write {
            Write::Insert(document) | Write::Upsert { document, .. } => {
                Given::Document(Cow::Borrowed(document))
            }
            Write::Delete(key) => Given::Gone(Cow::Borrowed(key)),
            Write::Change { .. } | Write::Merge { .. } => Given::Change,
        }
    }

    fn into_owned(self) -> Given<'static> {
        match self {
            Given::Document(document) => Given::Document(Cow::Owned(document.into_owned())),
            Given::Gone(key) => Given::Gone(Cow::Owned(key.into_owned())),
            Given::Change => Given::Change,
        }
    }

    fn item(&self, rows: &Rows, changed_ms: Option<u64>) -> Result<Option<RowWrite>, Malformed> {
        match self {
            Given::Document(document) => {
                let changed_ms = changed_ms.and_then(|ms| ms.try_into().ok());
                rows.row(document, changed_ms).map(RowWrite::Row).map(Some)
            }
            Given::Gone(key) => row::key_of(key).map(Cell::Bytes).map(RowWrite::Delete).map(Some),
            Given::Change => Ok(None),
        }
    }
}

fn made_of<'a>(
    rows: &Rows,
    given: impl Iterator<Item = (Given<'a>, Option<u64>)>,
) -> (Vec<RowWrite>, Vec<Option<Written>>) {
    let mut items = Vec::with_capacity(given.size_hint().0);
    let written = given.map(|(of, changed_ms)| match of.item(rows, changed_ms) {
        Ok(Some(item)) => {
            items.push(item);
            None
        }
        Ok(None) => Some(Written::Unmatched),
        Err(error) => {
            Some(Written::Rejected { reason: error.to_string(), refusal: Refusal::Other })
        }
    });
    let written = written.collect();
    (items, written)
}
