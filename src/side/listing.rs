//! Which collections there are, and which of them are replicated.

use bson::RawDocumentBuf;

use crate::{
    model::{event::CollectionId, namespace::Namespace},
    schema::{Claim, Description, Kind, value},
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
        Description { kind, claim: Claim::Whole, id: self.id, options, indexes: Vec::new() }
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

/// What one side has of what the filter chooses.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Listing {
    pub collections: Vec<Collection>,
    /// Views, which hold no documents.
    pub views: Vec<Collection>,
    pub left_out: Vec<LeftOut>,
    /// Collections of which indexes are declared, and whose documents nobody can list.
    pub declared: Vec<Namespace>,
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
