//! Walks along the `_id` index.
//!
//! The order is the server's alone: `_id`s may be of any type, mixed, NaN or documents, and a collation
//! may rule. So nothing here compares two keys. Bounds are keys that the server sorted itself, and they are
//! given back to it as `min` and `max` of the `_id` index, which knows no type bracketing
//! (`{_id: {$gte: 5}}` would find numbers only).

use bson::{RawDocument, RawDocumentBuf, rawdoc};

use super::Role;
use crate::{
    gate::Permit,
    model::document_key::DocumentKey,
    mongo::{BatchCursor, Mongo, MongoError, Reply, documents, majority_after, malformed},
    side::{Answer, Batch, Order, Page, Part, Place, Route, SideError, Walk},
};

/// Finds the document of the last of all keys.
fn find_last(route: &Route) -> RawDocumentBuf {
    use bson::raw::cstr;
    let mut command = rawdoc! {
        "find": route.ns.coll(), "filter": { "_id": bson::RawBson::MaxKey },
    };
    if route.part == Part::Key {
        command.append(cstr!("projection"), rawdoc! { "_id": 1 });
    }
    command.append(cstr!("readConcern"), majority_after(route.after));
    command
}

fn find(route: &Route, from: Option<&DocumentKey>) -> RawDocumentBuf {
    use bson::raw::cstr;
    let mut command = rawdoc! { "find": route.ns.coll() };
    match route.order {
        Order::ById => {
            command.append(cstr!("hint"), rawdoc! { "_id": 1 });
            for (name, key) in [(cstr!("min"), from), (cstr!("max"), route.range.until.as_ref())] {
                if let Some(key) = key {
                    command.append(name, key.filter().to_owned());
                }
            }
        }
        Order::Natural => command.append(cstr!("hint"), rawdoc! { "$natural": 1 }),
    }
    if route.part == Part::Key {
        command.append(cstr!("projection"), rawdoc! { "_id": 1 });
    }
    command.append(cstr!("batchSize"), i64::from(route.page));
    command.append(cstr!("readConcern"), majority_after(route.after));
    command
}

/// A `min` without a `max` ends before `MaxKey`, which may be an `_id` (seen on 6.0.5). So a range that is
/// open at its end has a tail: that one document, by itself.
pub(super) struct FindWalk<'a> {
    mongo: &'a Mongo,
    role: Role,
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

impl Stage {
    fn of(leg: u8) -> Self {
        match leg {
            0 => Stage::Body,
            1 => Stage::Tail,
            _ => Stage::Over,
        }
    }
}

/// A reply as it came.
struct RawReply {
    reply: Reply,
    role: Role,
}

impl Batch for RawReply {
    fn documents(&self) -> Result<Vec<&RawDocument>, SideError> {
        documents(&self.reply).map_err(|error| self.role.error(error))
    }

    fn bytes(&self) -> usize {
        self.reply.as_raw_document().as_bytes().len()
    }
}

impl Walk for FindWalk<'_> {
    fn next(&mut self) -> Answer<'_, Option<Page>> {
        let role = self.role;
        Box::pin(async move { self.read().await.map_err(|error| role.error(error)) })
    }

    fn permit(&self) -> Permit {
        self.permit.clone()
    }

    fn go_back(&mut self, place: &Place) {
        self.cursor = None;
        (self.last, self.stage) = (place.behind.clone(), Stage::of(place.leg));
    }
}

impl<'a> FindWalk<'a> {
    pub fn new(mongo: &'a Mongo, role: Role, route: Route) -> Self {
        // Nothing is before the first of all keys, and the server refuses to look.
        let is_empty = route.range.until.as_ref().is_some_and(DocumentKey::is_min);
        let stage = if is_empty { Stage::Over } else { Stage::Body };
        Self { mongo, role, route, cursor: None, last: None, stage, permit: Permit::free() }
    }

    async fn read(&mut self) -> Result<Option<Page>, MongoError> {
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
                        Stage::Body => find(&self.route, from),
                        Stage::Tail | Stage::Over => find_last(&self.route),
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

    fn page_of(&mut self, reply: Reply, is_new: bool) -> Result<Page, MongoError> {
        let found = documents(&reply)?;
        let count = found.len();
        let before = Place { behind: self.last.clone(), leg: self.stage as u8 };
        let key_of = |document: &&RawDocument| DocumentKey::of(document).map_err(malformed);
        let mut skip = 0;
        if self.route.order == Order::ById {
            let first = found.first().map(key_of).transpose()?;
            let last = found.last().map(key_of).transpose()?;
            let is_repeated = is_new
                && first
                    .zip(self.last.as_ref())
                    .is_some_and(|(first, last)| first.canonical() == last.canonical());
            skip = usize::from(is_repeated);
            if last.is_some() {
                self.last = last;
            }
        }
        let batch = Box::new(RawReply { reply, role: self.role });
        Ok(Page::new(batch, (skip, count - skip), self.permit.clone(), before))
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
