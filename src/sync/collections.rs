//! Which collections there are, and which of them are replicated.

use bson::RawDocumentBuf;

use crate::{
    model::{
        event::CollectionId,
        namespace::{Namespace, NamespaceFilter},
        raw,
    },
    mongo::Mongo,
    schema::{Description, Kind, value},
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
        let options = self.options.clone();
        let is_view = value::get(&options, "viewOn").is_some();
        let kind = if is_view { Kind::View } else { Kind::Collection };
        Description { kind, id: self.id, options, indexes: Vec::new() }
    }

    pub fn is_capped(&self) -> bool {
        value::is_on(&self.options, "capped")
    }

    /// True for one that keeps its documents in `_id` order, without an index.
    pub fn is_clustered(&self) -> bool {
        value::get(&self.options, "clusteredIndex").is_some()
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
    /// All databases, but for the server's own.
    pub databases: Vec<String>,
    /// Those of them in which nothing is left but what the server keeps for itself.
    pub emptied: Vec<String>,
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
        // Of such a database no more can be asked.
        if db.contains(char::REPLACEMENT_CHARACTER) {
            let ns = Namespace::new(&db, "*");
            let reason = filter.kept_apart(&ns);
            listing.left_out.extend(reason.map(|reason| LeftOut { ns, reason }));
            continue;
        }
        let mut is_emptied = true;
        for item in mongo.list_collections(&db).await? {
            // With a sign in the place of what is no text, by which the filter knows it.
            let name = value::get(&item, "name").map(|name| raw::lossy(name.bytes));
            let ns = Namespace::new(&db, &name.unwrap_or_default());
            is_emptied &= matches!(ns.coll(), "system.views" | "system.profile");
            if !filter.matches(&ns) {
                match filter.kept_apart(&ns) {
                    Some(reason) => listing.left_out.push(LeftOut { ns, reason }),
                    None => listing.not_chosen.push(ns),
                }
                continue;
            }
            let Description { kind, id, options, .. } = Description::of(&item);
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
        if is_emptied {
            listing.emptied.push(db.clone());
        }
        listing.databases.push(db);
    }
    Ok(listing)
}
