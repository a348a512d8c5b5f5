//! Stretches of a collection in `_id` order, so that a large one can be worked on in parts.
//!
//! The order is the server's alone: `_id`s may be of any type, mixed, NaN or documents, and a collation
//! may rule. So nothing here compares two keys. Bounds are keys that the server sorted itself, and they are
//! given back to it as `min` and `max` of the `_id` index, which knows no type bracketing
//! (`{_id: {$gte: 5}}` would find numbers only).

use bson::{RawArrayBuf, RawDocumentBuf, rawdoc};
use mongodb::raw_batch_cursor::RawBatch;
use serde::{Deserialize, Serialize};

use super::{
    SyncError,
    ends::{End, Ends},
};
use crate::{
    gate::Permit,
    model::{
        checkpoint::ClusterTime, document_key::DocumentKey, namespace::Namespace, raw::Malformed,
    },
    mongo::{BatchCursor, Mongo, MongoError, class::is_no_collection, documents, majority_after},
    runtime::shutdown::Stop,
};

/// From `from` on, up to and without `until`; `None` is the end of the collection on that side.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct KeyRange {
    pub from: Option<DocumentKey>,
    pub until: Option<DocumentKey>,
}

impl KeyRange {
    /// The ranges between these keys, which the server has sorted.
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

    /// The condition of an aggregation for it. `$expr` compares across types, and uses the index.
    pub fn to_match(&self) -> RawDocumentBuf {
        let mut both = RawArrayBuf::new();
        for (operator, key) in [("$gte", &self.from), ("$lt", &self.until)] {
            if let Some(key) = key {
                both.push(compare_id(operator, key));
            }
        }
        rawdoc! { "$expr": { "$and": both } }
    }
}

/// `{operator: ["$_id", {$literal: key}]}`. Built from undecoded bytes: a key may be no UTF-8.
pub fn compare_id(operator: &str, key: &DocumentKey) -> RawDocumentBuf {
    use crate::model::raw::{Builder, elements, kind};
    let mut literal = Builder::default();
    for element in elements(key.filter()).flatten() {
        literal.push(element.kind, "$literal", element.value);
    }
    let mut operands = Builder::default();
    let field = rawdoc! { "0": "$_id" };
    for element in elements(&field).flatten() {
        operands.push(element.kind, element.name, element.value);
    }
    operands.push(kind::DOCUMENT, "1", literal.finish().as_bytes());
    let mut comparison = Builder::default();
    comparison.push(kind::ARRAY, operator, operands.finish().as_bytes());
    comparison.finish()
}

/// How large a collection is, as its server estimates without reading it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Size {
    pub documents: u64,
    pub bytes: u64,
}

/// Bytes that a page should have, and the most documents.
const PAGE_BYTES: u64 = 4 << 20;
const PAGE_DOCUMENTS: u64 = 5_000;

/// Bytes that a range should have, and the least and most documents. The least keeps the sample small
/// enough for the server's random cursor: beyond a twentieth of the collection it would read all of it.
const RANGE_BYTES: u64 = 8 << 20;
const RANGE_DOCUMENTS_MIN: u64 = 200;
const RANGE_DOCUMENTS_MAX: u64 = 25_000;

/// Most ranges of one collection; they are noted beside the queue.
const RANGES_MAX: u64 = 1_024;

/// Keys that are sampled for each bound, so that the ranges come out even.
const SAMPLES: u64 = 8;

impl Size {
    /// Asks the server. A collection that is not there is empty.
    ///
    /// # Errors
    /// When the server does not answer, or refuses.
    pub async fn of(mongo: &Mongo, ns: &Namespace) -> Result<Self, MongoError> {
        let mut pipeline = RawArrayBuf::new();
        pipeline.push(rawdoc! { "$collStats": { "storageStats": {} } });
        pipeline.push(rawdoc! { "$project": {
            "n": { "$toLong": "$storageStats.count" }, "bytes": { "$toLong": "$storageStats.size" },
        } });
        let command = rawdoc! { "aggregate": ns.coll(), "pipeline": pipeline, "cursor": {} };
        let mut size = Self::default();
        let mut cursor = match mongo.cursor(ns.db(), command).await {
            // Also where a view has taken the name since it was listed.
            Err(error) if is_no_collection(&error) => return Ok(size),
            cursor => cursor?,
        };
        while let Some(reply) = cursor.next().await? {
            for stats in documents(&reply)? {
                let number = |name| stats.get_i64(name).ok().and_then(|n| u64::try_from(n).ok());
                size.documents += number("n").unwrap_or(0);
                size.bytes += number("bytes").unwrap_or(0);
            }
        }
        Ok(size)
    }

    fn document_bytes(self) -> u64 {
        (self.bytes / self.documents.max(1)).max(16)
    }

    /// Documents that one reply should have, so that memory is bounded by bytes.
    pub fn page(self) -> u32 {
        (PAGE_BYTES / self.document_bytes()).clamp(1, PAGE_DOCUMENTS) as u32
    }

    fn ranges(self) -> u64 {
        let documents =
            (RANGE_BYTES / self.document_bytes()).clamp(RANGE_DOCUMENTS_MIN, RANGE_DOCUMENTS_MAX);
        (self.documents / documents).clamp(1, RANGES_MAX)
    }
}

/// Keys that cut a collection into ranges of about the same size, in the server's order; none for one
/// that is small.
///
/// # Errors
/// When the server does not answer, or refuses.
pub async fn splits(
    mongo: &Mongo,
    ns: &Namespace,
    size: Size,
) -> Result<Vec<DocumentKey>, MongoError> {
    let ranges = size.ranges();
    if ranges < 2 {
        return Ok(Vec::new());
    }
    let mut pipeline = RawArrayBuf::new();
    pipeline.push(rawdoc! { "$sample": { "size": (ranges * SAMPLES) as i64 } });
    pipeline.push(rawdoc! { "$project": { "_id": 1 } });
    pipeline.push(rawdoc! { "$sort": { "_id": 1 } });
    let command = rawdoc! { "aggregate": ns.coll(), "pipeline": pipeline, "cursor": {} };
    let mut cursor = mongo.cursor(ns.db(), command).await?;
    let mut keys = Vec::new();
    while let Some(reply) = cursor.next().await? {
        for document in documents(&reply)? {
            keys.push(DocumentKey::of(document).map_err(malformed)?);
        }
    }
    Ok(every_nth(keys, SAMPLES as usize))
}

/// The last of each `n` keys, none twice, so that what is left over makes the last range.
pub fn every_nth(keys: Vec<DocumentKey>, n: usize) -> Vec<DocumentKey> {
    let count = keys.len();
    let mut chosen: Vec<_> = keys
        .into_iter()
        .enumerate()
        .filter(|(at, _)| at % n == n - 1 && at + 1 < count)
        .map(|(_, key)| key)
        .collect();
    chosen.dedup_by_key(|key| key.canonical());
    chosen
}

pub fn malformed(error: Malformed) -> MongoError {
    MongoError::Driver(mongodb::error::Error::custom(error.to_string()))
}

/// What is read of each document.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    Whole,
    /// The `_id` alone, which the index has: no document is touched.
    Key,
}

/// In which order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    ById,
    /// As they lie, which for a capped collection is the order of insertion. The whole collection only.
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
    /// Documents in a reply.
    pub page: u32,
}

impl Route {
    /// Finds the document of the last of all keys.
    fn find_last(&self) -> RawDocumentBuf {
        use bson::raw::cstr;
        let mut command = rawdoc! {
            "find": self.ns.coll(), "filter": { "_id": bson::RawBson::MaxKey },
        };
        if self.part == Part::Key {
            command.append(cstr!("projection"), rawdoc! { "_id": 1 });
        }
        command.append(cstr!("readConcern"), majority_after(self.after));
        command
    }

    fn find(&self, from: Option<&DocumentKey>) -> RawDocumentBuf {
        use bson::raw::cstr;
        let mut command = rawdoc! { "find": self.ns.coll() };
        match self.order {
            Order::ById => {
                command.append(cstr!("hint"), rawdoc! { "_id": 1 });
                for (name, key) in [(cstr!("min"), from), (cstr!("max"), self.range.until.as_ref())]
                {
                    if let Some(key) = key {
                        command.append(name, key.filter().to_owned());
                    }
                }
            }
            Order::Natural => command.append(cstr!("hint"), rawdoc! { "$natural": 1 }),
        }
        if self.part == Part::Key {
            command.append(cstr!("projection"), rawdoc! { "_id": 1 });
        }
        command.append(cstr!("batchSize"), i64::from(self.page));
        command.append(cstr!("readConcern"), majority_after(self.after));
        command
    }
}

/// Reads a range page by page. After an error it goes on behind the last key that it has read (in
/// natural order: from the beginning), so that an election costs a page and no more.
///
/// A `min` without a `max` ends before `MaxKey`, which may be an `_id` (seen on 6.0.5). So a range that is
/// open at its end has a tail: that one document, by itself.
pub struct Walk<'a> {
    mongo: &'a Mongo,
    route: Route,
    cursor: Option<BatchCursor>,
    last: Option<DocumentKey>,
    stage: Stage,
    /// Of the last reply.
    permit: Permit,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Body,
    Tail,
    Over,
}

/// Some documents of a [`Walk`], in its order.
pub struct Page {
    reply: RawBatch,
    /// 1 when the first document was in the page before.
    skip: usize,
    count: usize,
    /// Under which it was read.
    permit: Permit,
    /// Where the walk was before.
    before: (Option<DocumentKey>, Stage),
}

impl Page {
    pub fn documents(&self) -> Result<Vec<&bson::RawDocument>, MongoError> {
        let mut documents = documents(&self.reply)?;
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
    pub fn len(&self) -> usize {
        self.reply.as_raw_document().as_bytes().len()
    }
}

impl<'a> Walk<'a> {
    pub fn new(mongo: &'a Mongo, route: Route) -> Self {
        // Nothing is before the first of all keys, and the server refuses to look.
        let is_empty = route.range.until.as_ref().is_some_and(DocumentKey::is_min);
        let stage = if is_empty { Stage::Over } else { Stage::Body };
        Self { mongo, route, cursor: None, last: None, stage, permit: Permit::free() }
    }

    /// Of the last reply, also of the one that told of the end.
    pub fn permit(&self) -> Permit {
        self.permit.clone()
    }

    /// Reads this page, and what comes behind it, once more.
    pub fn go_back_before(&mut self, page: &Page) {
        self.cursor = None;
        (self.last, self.stage) = page.before.clone();
    }

    /// The next page, or `None` at the end of the range.
    ///
    /// # Errors
    /// When the server does not answer, or refuses. The next call tries again.
    async fn next(&mut self) -> Result<Option<Page>, MongoError> {
        loop {
            let from = self.last.as_ref().or(self.route.range.from.as_ref());
            let (mut cursor, is_new) = match (self.cursor.take(), self.stage) {
                (_, Stage::Over) => return Ok(None),
                (Some(cursor), _) => (cursor, false),
                (None, Stage::Body) if from.is_some_and(DocumentKey::is_max) => {
                    self.stage = if self.last.is_some() { Stage::Over } else { Stage::Tail };
                    continue;
                }
                (None, stage) => {
                    let command = match stage {
                        Stage::Body => self.route.find(from),
                        Stage::Tail | Stage::Over => self.route.find_last(),
                    };
                    let (ns, page) = (&self.route.ns, self.route.page);
                    (self.mongo.cursor_of(ns.db(), command, page).await?, true)
                }
            };
            let reply = cursor.next().await?;
            self.permit = cursor.permit().clone();
            let Some(reply) = reply else {
                self.stage = if self.has_tail() { Stage::Tail } else { Stage::Over };
                continue;
            };
            let page = self.page_of(reply, is_new)?;
            self.cursor = Some(cursor);
            return Ok(Some(page));
        }
    }

    /// As [`next`](Self::next), as often as it takes.
    ///
    /// # Errors
    /// When the server stays away for longer than patience lasts, or refuses.
    pub async fn advance(
        &mut self,
        ends: &Ends,
        end: End,
        stop: &Stop,
    ) -> Result<Option<Page>, SyncError> {
        let ns = self.route.ns.clone();
        let mut attempts = ends.attempts(stop).reading(&ns);
        loop {
            match self.next().await {
                Ok(page) => {
                    attempts.succeeded();
                    return Ok(page);
                }
                Err(error) => attempts.failed(end.error(error)).await?,
            }
        }
    }

    fn page_of(&mut self, reply: RawBatch, is_new: bool) -> Result<Page, MongoError> {
        let found = documents(&reply)?;
        let count = found.len();
        let (permit, before) = (self.permit.clone(), (self.last.clone(), self.stage));
        if self.route.order == Order::Natural {
            return Ok(Page { reply, skip: 0, count, permit, before });
        }
        let key_of = |document: &&bson::RawDocument| DocumentKey::of(document).map_err(malformed);
        let first = found.first().map(key_of).transpose()?;
        let last = found.last().map(key_of).transpose()?;
        let is_repeated = is_new
            && first
                .zip(self.last.as_ref())
                .is_some_and(|(first, last)| first.canonical() == last.canonical());
        if last.is_some() {
            self.last = last;
        }
        let skip = usize::from(is_repeated);
        Ok(Page { reply, skip, count: count - skip, permit, before })
    }

    fn has_tail(&self) -> bool {
        let Route { range, order, .. } = &self.route;
        self.stage == Stage::Body
            && *order == Order::ById
            && range.until.is_none()
            // A clustered collection has shown it already.
            && !self.last.as_ref().is_some_and(DocumentKey::is_max)
            && (range.from.is_some() || self.last.is_some())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(ids: impl IntoIterator<Item = i32>) -> Vec<DocumentKey> {
        ids.into_iter().map(|id| DocumentKey::of(&rawdoc! { "_id": id }).unwrap()).collect()
    }

    #[test]
    fn ranges_leave_nothing_out_and_nothing_twice() {
        let ranges = KeyRange::between(&keys([3, 5]));

        assert_eq!(ranges.len(), 3);
        assert!(ranges[0].from.is_none() && ranges[2].until.is_none());
        for pair in ranges.windows(2) {
            assert_eq!(pair[0].until, pair[1].from);
        }
        assert!(KeyRange::between(&[])[0].is_all());
    }

    #[test]
    fn a_key_that_was_sampled_twice_bounds_one_range() {
        assert_eq!(every_nth(keys([1, 2, 2, 2, 3, 4, 5]), 2), keys([2, 4]));
        assert_eq!(every_nth(keys([1, 2]), 2), keys([]));
    }

    #[test]
    fn pages_and_ranges_are_bounded_in_bytes() {
        let size = |documents, each| Size { documents, bytes: documents * each };

        assert_eq!((size(0, 0).page(), size(0, 0).ranges()), (5_000, 1));
        assert_eq!((size(1_000_000, 325).page(), size(1_000_000, 325).ranges()), (5_000, 40));
        assert_eq!((size(10_000, 1 << 20).page(), size(10_000, 1 << 20).ranges()), (4, 50));
        assert_eq!(size(100, 16 << 20).page(), 1);
        assert_eq!(size(1_000_000_000, 325).ranges(), RANGES_MAX);
    }
}
