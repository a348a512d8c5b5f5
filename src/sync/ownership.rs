//! Whose copy the target is: the agent never wipes a database that it does not own.
//!
//! In Atlas, `outrigger.replicas` holds one document per source, its *mark*: which namespaces of this
//! Atlas are a copy of that source. A collection that holds data, and that no mark of ours covers or a
//! mark of another source does, is somebody else's.

use bson::{Bson, DateTime, Document, rawdoc};

use super::{SyncError, atlas_collections};
use crate::{
    mongo::{Mongo, documents},
    namespace::{Namespace, NamespaceFilter},
    sink::SinkError,
};

const DB: &str = "outrigger";
const COLLECTION: &str = "replicas";

/// A source's claim on a target.
pub struct Claim<'a> {
    pub atlas: &'a Mongo,
    pub filter: &'a NamespaceFilter,
    pub source_id: &'a str,
    /// Take over what is somebody else's.
    pub adopt: bool,
}

struct Mark {
    source_id: String,
    filter: NamespaceFilter,
}

impl Claim<'_> {
    /// True when our mark is there; false when the target is free, or is to be adopted.
    ///
    /// # Errors
    /// [`SyncError::NotOwned`] when it holds somebody else's data and is not to be adopted.
    pub async fn is_ours(&self) -> Result<bool, SyncError> {
        let marks = self.marks().await?;
        let is_marked = marks.iter().any(|mark| mark.source_id == self.source_id);
        if self.adopt {
            return Ok(is_marked);
        }
        for ns in self.with_data().await? {
            let ours = marks
                .iter()
                .any(|mark| mark.source_id == self.source_id && mark.filter.matches(&ns));
            let theirs = marks
                .iter()
                .any(|mark| mark.source_id != self.source_id && mark.filter.matches(&ns));
            if theirs {
                return Err(SyncError::NotOwned {
                    problem: format!(
                        "Atlas already holds data in `{ns}`, which is marked as the copy of another source"
                    ),
                });
            }
            if !ours {
                return Err(SyncError::NotOwned {
                    problem: format!(
                        "Atlas already holds data in `{ns}` and carries no mark of this source for it, so \
                         it may be somebody else's"
                    ),
                });
            }
        }
        Ok(is_marked)
    }

    /// Sets our mark; when adopting, also removes the marks of others on what is ours now.
    ///
    /// # Errors
    /// When Atlas does not take it.
    pub async fn mark(&self) -> Result<(), SyncError> {
        if self.adopt {
            for mark in self.marks().await? {
                let overlaps = {
                    let held = self.with_data().await?;
                    held.iter().any(|ns| mark.filter.matches(ns))
                };
                if mark.source_id != self.source_id && overlaps {
                    tracing::warn!(
                        source = mark.source_id,
                        "the mark of another source is removed"
                    );
                    self.remove(&mark.source_id).await?;
                }
            }
        }
        let patterns = self.filter.patterns();
        let list = |patterns: &[String]| {
            patterns.iter().fold(bson::RawArrayBuf::new(), |mut array, pattern| {
                array.push(pattern.as_str());
                array
            })
        };
        let mut updates = bson::RawArrayBuf::new();
        updates.push(rawdoc! {
            "q": { "_id": self.source_id },
            "u": {
                "$set": {
                    "version": env!("CARGO_PKG_VERSION"), "startedAt": DateTime::now(),
                    "include": list(&patterns.include), "exclude": list(&patterns.exclude),
                },
                "$setOnInsert": { "claimedAt": DateTime::now() },
            },
            "upsert": true,
        });
        self.write(rawdoc! {
            "update": COLLECTION, "updates": updates, "writeConcern": { "w": "majority" },
        })
        .await
    }

    async fn remove(&self, source_id: &str) -> Result<(), SyncError> {
        let mut deletes = bson::RawArrayBuf::new();
        deletes.push(rawdoc! { "q": { "_id": source_id }, "limit": 1 });
        self.write(rawdoc! {
            "delete": COLLECTION, "deletes": deletes, "writeConcern": { "w": "majority" },
        })
        .await
    }

    async fn write(&self, command: bson::RawDocumentBuf) -> Result<(), SyncError> {
        let reply =
            self.atlas.command(DB, command).await.map_err(|error| SyncError::atlas(&error))?;
        let problem = reply.get_array("writeErrors").is_ok();
        let unconfirmed = reply.get_document("writeConcernError").is_ok();
        match (problem, unconfirmed) {
            (false, false) => Ok(()),
            (true, _) => {
                Err(SinkError::Rejected("the mark of ownership was not taken".to_owned()).into())
            }
            (false, true) => {
                Err(SinkError::Unavailable("the mark of ownership was not confirmed".to_owned())
                    .into())
            }
        }
    }

    async fn marks(&self) -> Result<Vec<Mark>, SyncError> {
        let failed = |error| SyncError::atlas(&error);
        let command = rawdoc! { "find": COLLECTION, "readConcern": { "level": "majority" } };
        let mut cursor = self.atlas.cursor(DB, command, None).await.map_err(failed)?;
        let mut marks = Vec::new();
        while let Some(reply) = cursor.next().await.map_err(failed)? {
            for raw in documents(&reply).map_err(failed)? {
                marks.extend(Document::try_from(raw).ok().as_ref().and_then(read_mark));
            }
        }
        Ok(marks)
    }

    /// The replicated namespaces in which Atlas holds anything.
    async fn with_data(&self) -> Result<Vec<Namespace>, SyncError> {
        let failed = |error| SyncError::atlas(&error);
        let (collections, _) = atlas_collections(self.atlas, self.filter).await?;
        let mut found = Vec::new();
        for collection in collections {
            let ns = collection.ns;
            let command = rawdoc! { "find": ns.coll(), "limit": 1, "projection": { "_id": 1 } };
            let mut cursor = self.atlas.cursor(ns.db(), command, None).await.map_err(failed)?;
            if let Some(reply) = cursor.next().await.map_err(failed)?
                && !documents(&reply).map_err(failed)?.is_empty()
            {
                found.push(ns);
            }
        }
        Ok(found)
    }
}

fn read_mark(doc: &Document) -> Option<Mark> {
    let list = |name: &str| -> Vec<String> {
        let array = doc.get_array(name).map(Vec::as_slice).unwrap_or_default();
        array.iter().filter_map(Bson::as_str).map(str::to_owned).collect()
    };
    Some(Mark {
        source_id: doc.get_str("_id").ok()?.to_owned(),
        filter: NamespaceFilter::new(&list("include"), &list("exclude")).ok()?,
    })
}
