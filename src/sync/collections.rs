//! Which collections there are, and which of them are replicated.

use bson::{Document, RawDocumentBuf};

use crate::{
    event::CollectionId,
    mongo::Mongo,
    namespace::{Namespace, NamespaceFilter},
    schema::{Description, Kind},
    source::SourceError,
};

/// A collection or a view that is replicated.
#[derive(Clone, Debug, PartialEq)]
pub struct Collection {
    pub ns: Namespace,
    /// As `create` takes them.
    pub options: RawDocumentBuf,
    /// The collection's UUID.
    pub id: Option<CollectionId>,
}

impl Collection {
    /// As its server describes it, without the indexes.
    pub fn description(&self) -> Description {
        let options = Document::try_from(&self.options).unwrap_or_default();
        let is_view = options.contains_key("viewOn");
        let kind = if is_view { Kind::View } else { Kind::Collection };
        Description { kind, id: self.id, options, indexes: Vec::new() }
    }

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

/// What one end has of what the filter chooses.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Listing {
    pub collections: Vec<Collection>,
    /// Views, which hold no documents.
    pub views: Vec<Collection>,
    pub left_out: Vec<LeftOut>,
    /// What it does not choose.
    pub not_chosen: Vec<Namespace>,
}

impl Listing {
    /// All names that the filter chooses.
    pub fn names(&self) -> impl Iterator<Item = &Namespace> {
        let made = self.collections.iter().chain(&self.views).map(|of| &of.ns);
        made.chain(self.left_out.iter().map(|left| &left.ns))
    }
}

/// Lists what `filter` chooses: collections and views, and what cannot be replicated.
///
/// # Errors
/// When the server does not answer or refuses.
pub async fn local_collections(
    mongo: &Mongo,
    filter: &NamespaceFilter,
) -> Result<Listing, SourceError> {
    let mut listing = Listing::default();
    for db in mongo.list_databases().await? {
        for item in mongo.list_collections(&db).await? {
            let Ok(name) = item.get_str("name") else {
                continue;
            };
            let ns = Namespace::new(&db, name);
            if !filter.matches(&ns) {
                match filter.kept_apart(&ns) {
                    Some(reason) => listing.left_out.push(LeftOut { ns, reason }),
                    None => listing.not_chosen.push(ns),
                }
                continue;
            }
            let Description { kind, id, options, .. } = Description::of(&item);
            let options = raw(&options);
            match kind {
                Kind::Collection => listing.collections.push(Collection { ns, options, id }),
                Kind::View => listing.views.push(Collection { ns, options, id }),
                Kind::TimeSeries => {
                    listing.left_out.push(LeftOut { ns, reason: "a time-series collection" });
                }
                Kind::Other => {
                    let reason = "a kind of collection that is not known";
                    listing.left_out.push(LeftOut { ns, reason });
                }
            }
        }
    }
    Ok(listing)
}

/// True when an item of `listCollections` is this very collection.
pub(super) fn is_collection(item: &Document, collection: &Collection) -> bool {
    item.get_str("name").is_ok_and(|name| name == collection.ns.coll())
        && Description::of(item).id == collection.id
}

fn raw(options: &Document) -> RawDocumentBuf {
    RawDocumentBuf::try_from(options).unwrap_or_default()
}
