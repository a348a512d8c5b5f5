//! A MongoDB as one of the two sides.

use std::{collections::HashMap, sync::Arc};

use bson::{RawArrayBuf, RawDocument, RawDocumentBuf, rawdoc};

use super::{
    Answer, Digests, KeyRange, Listing, Looks, Notes, Route, SchemaSide, Side, SideError, Size,
    Walk, records::LeaseRecords,
};
use crate::{
    gate::Permit,
    model::{
        checkpoint::ClusterTime,
        document_key::DocumentKey,
        namespace::{Namespace, NamespaceFilter},
        raw::Malformed,
    },
    mongo::{
        Mongo, MongoError,
        class::{is_no_collection, overtaken},
        documents, finds, malformed,
    },
    schema::Description,
    sink::classify::command_error,
    source::{SourceError, inspect},
};

mod alter;
mod count;
mod digest;
mod list;
mod looks;
mod notes;
mod peer;
mod records;
mod walk;

/// A MongoDB, and which of the sides it is.
pub struct MongoSide {
    mongo: Mongo,
    role: Role,
    /// Of a source whose documents have their fields in no order of their own.
    in_any_order: bool,
}

/// Which of the sides, and so in whose words its errors are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Source,
    Target,
}

impl Role {
    fn error(self, error: MongoError) -> SideError {
        match self {
            // Only the stream has a history.
            Role::Source => match (overtaken(&error), SourceError::from(error)) {
                (
                    Some(what),
                    SourceError::HistoryLost(source)
                    | SourceError::Unavailable(source)
                    | SourceError::Failed(source),
                ) => SourceError::Overtaken { what, source }.into(),
                (None, SourceError::HistoryLost(error)) => SourceError::Unavailable(error).into(),
                (_, error) => error.into(),
            },
            Role::Target => command_error(&error).into(),
        }
    }
}

impl MongoSide {
    /// The database that changes come from.
    pub fn source(mongo: &Mongo) -> Arc<dyn Side> {
        Arc::new(Self { mongo: mongo.clone(), role: Role::Source, in_any_order: false })
    }

    /// The database that they go to.
    pub fn target(mongo: &Mongo) -> Arc<dyn Side> {
        Arc::new(Self { mongo: mongo.clone(), role: Role::Target, in_any_order: false })
    }

    /// The database that they go to, of a source that knows no order of fields: JSON's documents have none.
    pub fn target_in_any_order(mongo: &Mongo) -> Arc<dyn Side> {
        Arc::new(Self { mongo: mongo.clone(), role: Role::Target, in_any_order: true })
    }

    /// An exchange, with its failure in the words of the side.
    fn ask<'a, T>(
        &'a self,
        exchange: impl Future<Output = Result<T, MongoError>> + Send + 'a,
    ) -> Answer<'a, T> {
        Box::pin(async move { exchange.await.map_err(|error| self.role.error(error)) })
    }
}

impl Side for MongoSide {
    fn is_copy(&self, original: &RawDocument, copy: &RawDocument) -> bool {
        original.as_bytes() == copy.as_bytes()
            || (self.in_any_order && same_in_any_order(original, copy))
    }

    fn permit(&self) -> Permit {
        self.mongo.permit()
    }

    fn received(&self) -> u64 {
        self.mongo.received()
    }

    fn now(&self) -> Answer<'_, ClusterTime> {
        Box::pin(async move { Ok(inspect(&self.mongo).await?.now) })
    }

    fn clock(&self) -> Answer<'_, Option<i64>> {
        self.ask(async {
            let hello = self.mongo.hello().await?;
            Ok(hello.get_datetime("localTime").ok().map(|time| time.timestamp_millis()))
        })
    }

    fn looks(&self) -> Answer<'_, Looks> {
        Box::pin(looks::looks(&self.mongo, self.role))
    }

    fn list<'a>(&'a self, filter: &'a NamespaceFilter) -> Answer<'a, Listing> {
        self.ask(list::list(&self.mongo, filter))
    }

    fn describe_options<'a>(&'a self, ns: &'a Namespace) -> Answer<'a, Option<Description>> {
        self.ask(self.mongo.describe_options(ns))
    }

    fn size<'a>(&'a self, ns: &'a Namespace) -> Answer<'a, Size> {
        self.ask(self.size_of(ns))
    }

    fn is_empty<'a>(&'a self, ns: &'a Namespace) -> Answer<'a, bool> {
        self.ask(self.mongo.is_empty(ns))
    }

    fn estimated_count<'a>(&'a self, ns: &'a Namespace) -> Answer<'a, u64> {
        self.ask(self.mongo.estimated_count(ns))
    }

    fn count<'a>(
        &'a self,
        ns: &'a Namespace,
        filter: Option<&'a RawDocument>,
    ) -> Answer<'a, Option<u64>> {
        self.ask(count::exact(&self.mongo, ns, filter))
    }

    fn sample<'a>(&'a self, ns: &'a Namespace, keys: u64) -> Answer<'a, Vec<DocumentKey>> {
        self.ask(self.sample_of(ns, keys))
    }

    fn walk(&self, route: Route) -> Box<dyn Walk + '_> {
        Box::new(walk::FindWalk::new(&self.mongo, self.role, route))
    }

    fn find<'a>(
        &'a self,
        ns: &'a Namespace,
        keys: &'a [DocumentKey],
    ) -> Answer<'a, HashMap<Vec<u8>, RawDocumentBuf>> {
        self.ask(self.find_all(ns, keys))
    }

    fn digests<'a>(
        &'a self,
        ns: &'a Namespace,
        range: &'a KeyRange,
        splits: &'a [DocumentKey],
        after: ClusterTime,
    ) -> Answer<'a, Digests> {
        self.ask(async move {
            match digest::digests(&self.mongo, ns, range, splits, after).await {
                // It may hold far more in the range than the local side: in smaller parts, or exactly.
                Err(MongoError::Silent(_)) if self.role == Role::Target => Ok(Digests::TooLong),
                digests => digests,
            }
        })
    }

    fn malformed(&self, error: Malformed) -> SideError {
        self.role.error(malformed(error))
    }

    fn schema(&self) -> Option<&dyn SchemaSide> {
        Some(self)
    }

    fn notes(&self) -> Option<&dyn Notes> {
        Some(self)
    }

    fn records(&self) -> Option<&dyn LeaseRecords> {
        Some(self)
    }
}

impl MongoSide {
    async fn size_of(&self, ns: &Namespace) -> Result<Size, MongoError> {
        let mut pipeline = RawArrayBuf::new();
        pipeline.push(rawdoc! { "$collStats": { "storageStats": {} } });
        pipeline.push(rawdoc! { "$project": {
            "n": { "$toLong": "$storageStats.count" }, "bytes": { "$toLong": "$storageStats.size" },
        } });
        let command = rawdoc! { "aggregate": ns.coll(), "pipeline": pipeline, "cursor": {} };
        let mut size = Size::default();
        let mut cursor = match self.mongo.cursor(ns.db(), command).await {
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

    async fn sample_of(&self, ns: &Namespace, keys: u64) -> Result<Vec<DocumentKey>, MongoError> {
        let mut pipeline = RawArrayBuf::new();
        pipeline.push(rawdoc! { "$sample": { "size": keys as i64 } });
        pipeline.push(rawdoc! { "$project": { "_id": 1 } });
        pipeline.push(rawdoc! { "$sort": { "_id": 1 } });
        let command = rawdoc! { "aggregate": ns.coll(), "pipeline": pipeline, "cursor": {} };
        let mut cursor = self.mongo.cursor(ns.db(), command).await?;
        let mut keys = Vec::new();
        while let Some(reply) = cursor.next().await? {
            for document in documents(&reply)? {
                keys.push(DocumentKey::of(document).map_err(malformed)?);
            }
        }
        Ok(keys)
    }

    async fn find_all(
        &self,
        ns: &Namespace,
        keys: &[DocumentKey],
    ) -> Result<HashMap<Vec<u8>, RawDocumentBuf>, MongoError> {
        let mut found = HashMap::new();
        for command in finds(ns, keys, ClusterTime::default()) {
            let mut cursor = self.mongo.cursor(ns.db(), command).await?;
            while let Some(reply) = cursor.next().await? {
                for document in documents(&reply)? {
                    let key = DocumentKey::of(document).map_err(malformed)?;
                    found.insert(key.canonical(), document.to_owned());
                }
            }
        }
        Ok(found)
    }
}

/// The same fields with the same values, in whatever order, within documents as well.
fn same_in_any_order(one: &RawDocument, other: &RawDocument) -> bool {
    let sorted = |document: &RawDocument| {
        bson::Document::try_from(document).ok().map(|document| sorted(document.into()))
    };
    matches!((sorted(one), sorted(other)), (Some(one), Some(other)) if one == other)
}

fn sorted(value: bson::Bson) -> bson::Bson {
    match value {
        bson::Bson::Document(document) => {
            let mut fields: Vec<_> =
                document.into_iter().map(|(name, value)| (name, sorted(value))).collect();
            fields.sort_by(|(one, _), (other, _)| one.cmp(other));
            bson::Bson::Document(fields.into_iter().collect())
        }
        bson::Bson::Array(items) => bson::Bson::Array(items.into_iter().map(sorted).collect()),
        value => value,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_the_same_in_any_order_and_items_in_their_own() {
        let one = rawdoc! { "_id": 1, "a": { "x": 1, "y": 2 }, "b": [{ "p": 1, "q": 2 }] };
        let other = rawdoc! { "_id": 1, "b": [{ "q": 2, "p": 1 }], "a": { "y": 2, "x": 1 } };

        assert!(same_in_any_order(&one, &other));
        assert!(!same_in_any_order(&rawdoc! { "a": [1, 2] }, &rawdoc! { "a": [2, 1] }));
        assert!(!same_in_any_order(&rawdoc! { "a": 1 }, &rawdoc! { "a": 1_i64 }));
    }
}
