//! Which collections there are, and which of them are replicated.

use bson::{Document, RawDocumentBuf};

use crate::{
    event::CollectionId,
    mongo::Mongo,
    namespace::{Namespace, NamespaceFilter},
    source::SourceError,
};

/// A collection that is replicated.
#[derive(Clone, Debug, PartialEq)]
pub struct Collection {
    pub ns: Namespace,
    /// As `create` takes them.
    pub options: RawDocumentBuf,
    /// The collection's UUID.
    pub id: Option<CollectionId>,
}

impl Collection {
    pub fn is_capped(&self) -> bool {
        self.options.get_bool("capped").unwrap_or(false)
    }

    /// True for one that keeps its documents in `_id` order, without an index.
    pub fn is_clustered(&self) -> bool {
        matches!(self.options.get("clusteredIndex"), Ok(Some(_)))
    }
}

/// A collection that the filter chooses and that is not replicated all the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeftOut {
    pub ns: Namespace,
    pub reason: &'static str,
}

/// Lists the collections that `filter` chooses: those that are replicated, and those that cannot be.
///
/// # Errors
/// When the server does not answer or refuses.
pub async fn local_collections(
    mongo: &Mongo,
    filter: &NamespaceFilter,
) -> Result<(Vec<Collection>, Vec<LeftOut>), SourceError> {
    let mut replicated = Vec::new();
    let mut left_out = Vec::new();
    for db in mongo.list_databases().await? {
        for collection in mongo.list_collections(&db).await? {
            let Ok(name) = collection.get_str("name") else {
                continue;
            };
            let ns = Namespace::new(&db, name);
            if !filter.matches(&ns) {
                continue;
            }
            match collection.get_str("type").unwrap_or("collection") {
                "collection" => {
                    let options = collection.get_document("options").cloned().unwrap_or_default();
                    let id = collection.get_document("info").ok().and_then(uuid_of);
                    replicated.push(Collection { ns, options: raw(&options), id });
                }
                "timeseries" => {
                    left_out.push(LeftOut { ns, reason: "a time-series collection" });
                }
                "view" => left_out.push(LeftOut { ns, reason: "a view" }),
                _ => {
                    left_out.push(LeftOut { ns, reason: "a kind of collection that is not known" });
                }
            }
        }
    }
    Ok((replicated, left_out))
}

/// True when an item of `listCollections` is this very collection.
pub(super) fn is_collection(item: &Document, collection: &Collection) -> bool {
    item.get_str("name").is_ok_and(|name| name == collection.ns.coll())
        && item.get_document("info").ok().and_then(uuid_of) == collection.id
}

fn uuid_of(info: &Document) -> Option<CollectionId> {
    match info.get("uuid") {
        Some(bson::Bson::Binary(uuid)) => uuid.bytes.as_slice().try_into().ok().map(CollectionId),
        _ => None,
    }
}

fn raw(options: &Document) -> RawDocumentBuf {
    RawDocumentBuf::try_from(options).unwrap_or_default()
}
