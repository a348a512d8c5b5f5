//! Counts, one document after another.

use bson::{RawDocument, RawDocumentBuf, rawdoc};

use crate::{
    model::{checkpoint::ClusterTime, namespace::Namespace},
    mongo::{Mongo, MongoError, documents, majority_after},
};

/// `MaxTimeMSExpired`.
const TIME_EXPIRED: i32 = 50;

/// Counts the documents one by one, in a snapshot that a majority has; `None` when that takes too long.
pub(super) async fn exact(
    mongo: &Mongo,
    ns: &Namespace,
    filter: Option<&RawDocument>,
) -> Result<Option<u64>, MongoError> {
    match count_all(mongo, ns, filter).await {
        Ok(count) => Ok(Some(count)),
        Err(error) if error.code() == Some(TIME_EXPIRED) => Ok(None),
        Err(error) => Err(error),
    }
}

async fn count_all(
    mongo: &Mongo,
    ns: &Namespace,
    filter: Option<&RawDocument>,
) -> Result<u64, MongoError> {
    let filter = filter.map_or_else(RawDocumentBuf::new, RawDocument::to_owned);
    let mut pipeline = bson::RawArrayBuf::new();
    pipeline.push(rawdoc! { "$match": filter });
    pipeline.push(rawdoc! { "$count": "n" });
    // A filter of a partial index is meant in the simple collation, whatever the collection's is.
    let mut command: RawDocumentBuf = rawdoc! {
        "aggregate": ns.coll(), "pipeline": pipeline, "cursor": {}, "collation": { "locale": "simple" },
    };
    command.append(bson::raw::cstr!("readConcern"), majority_after(ClusterTime::default()));
    // The server gives up first: else the connection would count as dead, and all others with it.
    let max_time_ms = i64::try_from(mongo.server_time_max().as_millis()).unwrap_or(i64::MAX);
    command.append(bson::raw::cstr!("maxTimeMS"), max_time_ms);
    let mut cursor = mongo.cursor(ns.db(), command).await?;
    let mut count = 0;
    while let Some(reply) = cursor.next().await? {
        for document in documents(&reply)? {
            count = match document.get("n") {
                Ok(Some(bson::RawBsonRef::Int32(n))) => u64::try_from(n).unwrap_or(0),
                Ok(Some(bson::RawBsonRef::Int64(n))) => u64::try_from(n).unwrap_or(0),
                _ => count,
            };
        }
    }
    Ok(count)
}
