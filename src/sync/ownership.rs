//! Whose copy the target is: the agent never wipes a database that it does not own.
//!
//! In Atlas, `outrigger.replicas` holds one document per source. A target that holds data in the
//! replicated namespaces and has no mark of this source is refused.

use bson::{DateTime, rawdoc};

use super::{SyncError, local_collections};
use crate::{
    mongo::{Mongo, documents},
    namespace::NamespaceFilter,
    source::SourceError,
};

/// What claiming found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claim {
    /// The mark was there.
    Owned,
    /// The mark was set just now.
    New,
}

const DB: &str = "outrigger";
const COLLECTION: &str = "replicas";

/// Claims the target for `source_id`.
///
/// # Errors
/// [`SyncError::NotOwned`] when it holds data without our mark and `adopt` is false.
pub async fn claim(
    atlas: &Mongo,
    filter: &NamespaceFilter,
    source_id: &str,
    adopt: bool,
) -> Result<Claim, SyncError> {
    let found = is_marked(atlas, source_id).await?;
    if !found
        && !adopt
        && let Some(ns) = first_with_data(atlas, filter).await?
    {
        return Err(SyncError::NotOwned {
            problem: format!(
                "Atlas already holds data in `{ns}` and carries no mark of this source, so it may be \
                 somebody else's"
            ),
        });
    }
    mark(atlas, source_id).await?;
    Ok(if found { Claim::Owned } else { Claim::New })
}

async fn is_marked(atlas: &Mongo, source_id: &str) -> Result<bool, SyncError> {
    let command = rawdoc! { "find": COLLECTION, "filter": { "_id": source_id }, "limit": 1 };
    has_any(atlas, DB, command).await
}

async fn has_any(
    atlas: &Mongo,
    db: &str,
    command: bson::RawDocumentBuf,
) -> Result<bool, SyncError> {
    let failed = |error| SyncError::atlas(&error);
    let mut cursor = atlas.cursor(db, command, None).await.map_err(failed)?;
    match cursor.next().await.map_err(failed)? {
        Some(batch) => Ok(!documents(&batch).map_err(failed)?.is_empty()),
        None => Ok(false),
    }
}

async fn first_with_data(
    atlas: &Mongo,
    filter: &NamespaceFilter,
) -> Result<Option<crate::namespace::Namespace>, SyncError> {
    let (collections, _) = local_collections(atlas, filter).await.map_err(|error| match error {
        SourceError::Unavailable(error)
        | SourceError::Denied(error)
        | SourceError::Failed(error) => SyncError::atlas(&error),
        other => SyncError::Source(other),
    })?;
    for collection in collections {
        let command =
            rawdoc! { "find": collection.ns.coll(), "limit": 1, "projection": { "_id": 1 } };
        if has_any(atlas, collection.ns.db(), command).await? {
            return Ok(Some(collection.ns));
        }
    }
    Ok(None)
}

async fn mark(atlas: &Mongo, source_id: &str) -> Result<(), SyncError> {
    let mut updates = bson::RawArrayBuf::new();
    updates.push(rawdoc! {
        "q": { "_id": source_id },
        "u": {
            "$set": { "version": env!("CARGO_PKG_VERSION"), "startedAt": DateTime::now() },
            "$setOnInsert": { "claimedAt": DateTime::now() },
        },
        "upsert": true,
    });
    let command = rawdoc! {
        "update": COLLECTION, "updates": updates, "writeConcern": { "w": "majority" },
    };
    let reply = atlas.command(DB, command).await.map_err(|error| SyncError::atlas(&error))?;
    match reply.get_array("writeErrors") {
        Ok(_) => Err(SyncError::Sink(crate::sink::SinkError::Rejected(
            "the mark of ownership was not taken".to_owned(),
        ))),
        Err(_) => Ok(()),
    }
}
