//! Stretches of a collection in the order of its keys, read page by page.

use bson::RawDocument;
use serde::{Deserialize, Serialize};

use super::{Answer, SideError};
use crate::{
    gate::Permit,
    model::{checkpoint::ClusterTime, document_key::DocumentKey, namespace::Namespace},
};

/// From `from` on, up to and without `until`; `None` is the end of the collection on that side.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct KeyRange {
    pub from: Option<DocumentKey>,
    pub until: Option<DocumentKey>,
}

impl KeyRange {
    /// The ranges between these keys, which a side has sorted.
    pub fn between(splits: &[DocumentKey]) -> Vec<KeyRange> {
        let mut ranges = Vec::with_capacity(splits.len() + 1);
        let mut from = None;
        for split in splits {
            ranges.push(KeyRange { from: from.replace(split.clone()), until: Some(split.clone()) });
        }
        ranges.push(KeyRange { from, until: None });
        ranges
    }

    pub fn is_all(&self) -> bool {
        self.from.is_none() && self.until.is_none()
    }
}

/// What is read of each document.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    Whole,
    /// The `_id` alone, which an index has: no document is touched.
    Key,
}

/// In which order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    ById,
    /// As they lie, which for a capped collection is the order of insertion. The whole collection only; a side that knows
    /// of no such order takes any.
    Natural,
}

/// What a [`Walk`] reads.
#[derive(Clone, Debug)]
pub struct Route {
    pub ns: Namespace,
    pub range: KeyRange,
    pub part: Part,
    pub order: Order,
    /// The state that is read is not older than this.
    pub after: ClusterTime,
    /// Documents in a page.
    pub page: u32,
}

/// Reads a range page by page. After an error it goes on behind the last key that it has read (in natural order: from
/// the beginning), so that an election costs a page and no more.
pub trait Walk: Send {
    /// The next page, or `None` at the end of the range. After an error the next call tries again.
    fn next(&mut self) -> Answer<'_, Option<Page>>;

    /// Of the last page, also of the answer that told of the end.
    fn permit(&self) -> Permit;

    /// Goes back to a place where it was.
    fn go_back(&mut self, place: &Place);
}

/// Where a [`Walk`] is.
#[derive(Clone, Debug, PartialEq)]
pub struct Place {
    /// The last key that it has read.
    pub behind: Option<DocumentKey>,
    /// Which part of its way it is on, where that has parts.
    pub leg: u8,
}

/// A reply, with documents in it.
pub trait Batch: Send + Sync {
    /// All of them, in the order of the walk.
    fn documents(&self) -> Result<Vec<&RawDocument>, SideError>;

    /// Its bytes.
    fn bytes(&self) -> usize;
}

/// Some documents of a [`Walk`], in its order.
pub struct Page {
    batch: Box<dyn Batch>,
    /// 1 when the first document was in the page before.
    skip: usize,
    count: usize,
    /// Under which it was read.
    permit: Permit,
    /// Where the walk was before.
    before: Place,
}

impl Page {
    /// Of a reply with `count` documents behind the first `skip`.
    pub fn new(
        batch: Box<dyn Batch>,
        (skip, count): (usize, usize),
        permit: Permit,
        before: Place,
    ) -> Self {
        Self { batch, skip, count, permit, before }
    }

    /// # Errors
    /// Where the reply holds something else.
    pub fn documents(&self) -> Result<Vec<&RawDocument>, SideError> {
        let mut documents = self.batch.documents()?;
        documents.drain(..self.skip);
        Ok(documents)
    }

    /// How many they are.
    pub fn count(&self) -> usize {
        self.count
    }

    /// What rests on it is written only while this holds.
    pub fn permit(&self) -> &Permit {
        &self.permit
    }

    /// Bytes of the reply.
    pub fn bytes(&self) -> usize {
        self.batch.bytes()
    }

    /// Where the walk was before: from there this page, and what comes behind it, is read once more.
    pub fn before(&self) -> &Place {
        &self.before
    }
}

#[cfg(test)]
mod tests {
    use bson::rawdoc;

    use super::*;

    #[test]
    fn ranges_leave_nothing_out_and_nothing_twice() {
        let keys = [3, 5].map(|id| DocumentKey::of(&rawdoc! { "_id": id }).unwrap());
        let ranges = KeyRange::between(&keys);

        assert_eq!(ranges.len(), 3);
        assert!(ranges[0].from.is_none() && ranges[2].until.is_none());
        for pair in ranges.windows(2) {
            assert_eq!(pair[0].until, pair[1].from);
        }
        assert!(KeyRange::between(&[])[0].is_all());
    }
}
