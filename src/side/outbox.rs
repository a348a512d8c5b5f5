//! The tables beside an outbox as the side that is copied and compared: what `[[table]]` declares, and no more. Without
//! one there is nothing that a copy could be compared with.

use std::collections::HashMap;

use bson::{RawDocument, RawDocumentBuf};

use super::{
    Answer, Batch, Collection, KeyRange, Listing, Page, Place, Route, Side, SideError, Size, Walk,
};
use crate::{
    gate::Permit,
    model::{
        checkpoint::ClusterTime,
        document_key::DocumentKey,
        namespace::{Namespace, NamespaceFilter},
        raw::Malformed,
    },
    schema::Description,
    source::{
        Source, SourceError,
        outbox::{COLLECTION, OutboxSource, Stretch, Walked},
    },
};

/// Rows of the first page of a walk. Each later one may have four times as many as the last, for as long as all of them
/// fit: what the database makes of a page and does not send is in vain.
const FIRST: usize = 500;

/// What an outbox's tables hold, as a side.
pub struct OutboxSide(OutboxSource);

impl OutboxSide {
    pub fn new(source: OutboxSource) -> Self {
        Self(source)
    }

    async fn counted(&self, ns: &Namespace) -> Result<u64, SideError> {
        Ok(self.0.count(ns).await?)
    }
}

impl Side for OutboxSide {
    fn now(&self) -> Answer<'_, ClusterTime> {
        Box::pin(async { Ok(self.0.time().await?) })
    }

    fn list<'a>(&'a self, filter: &'a NamespaceFilter) -> Answer<'a, Listing> {
        Box::pin(async move {
            // Whether it is there, and not only declared.
            self.0.time().await?;
            let mut listing = Listing::default();
            for rule in self.0.tables().all() {
                let ns = rule.collection.clone();
                if filter.matches(&ns) {
                    listing.databases.push(ns.db().to_owned());
                    let (options, id) = (RawDocumentBuf::new(), Some(COLLECTION));
                    listing.collections.push(Collection { ns, options, id });
                } else {
                    listing.not_chosen.push(ns);
                }
            }
            let is_listed = |ns: &&Namespace| self.0.tables().of(ns).is_none();
            listing.declared.extend(self.0.indexed().filter(is_listed).cloned());
            listing.databases.sort();
            listing.databases.dedup();
            listing.collections.sort_by(|a, b| a.ns.cmp(&b.ns));
            Ok(listing)
        })
    }

    fn describe_options<'a>(&'a self, ns: &'a Namespace) -> Answer<'a, Option<Description>> {
        Box::pin(std::future::ready(Ok(self.0.declared(ns))))
    }

    fn size<'a>(&'a self, ns: &'a Namespace) -> Answer<'a, Size> {
        Box::pin(async move {
            let (documents, each) = self.0.measure(ns).await?;
            Ok(Size { documents, bytes: documents.saturating_mul(each) })
        })
    }

    fn is_empty<'a>(&'a self, ns: &'a Namespace) -> Answer<'a, bool> {
        Box::pin(async move { Ok(self.0.is_empty(ns).await?) })
    }

    fn estimated_count<'a>(&'a self, ns: &'a Namespace) -> Answer<'a, u64> {
        Box::pin(self.counted(ns))
    }

    fn count<'a>(
        &'a self,
        ns: &'a Namespace,
        filter: Option<&'a RawDocument>,
    ) -> Answer<'a, Option<u64>> {
        Box::pin(async move {
            if filter.is_some() { Ok(None) } else { Ok(Some(self.counted(ns).await?)) }
        })
    }

    fn sample<'a>(&'a self, ns: &'a Namespace, keys: u64) -> Answer<'a, Vec<DocumentKey>> {
        Box::pin(async move { Ok(self.0.sample(ns, keys).await?) })
    }

    fn walk(&self, route: Route) -> Box<dyn Walk + '_> {
        let limit = FIRST.min(route.page as usize);
        Box::new(TableWalk { side: self, route, behind: None, limit, is_over: false })
    }

    fn find<'a>(
        &'a self,
        ns: &'a Namespace,
        keys: &'a [DocumentKey],
    ) -> Answer<'a, HashMap<Vec<u8>, RawDocumentBuf>> {
        Box::pin(async move {
            let documents = self.0.find(ns, keys.iter()).await?;
            let keyed = documents.into_iter().filter_map(|document| {
                Some((DocumentKey::of(&document).ok()?.canonical(), document))
            });
            Ok(keyed.collect())
        })
    }

    fn malformed(&self, error: Malformed) -> SideError {
        SourceError::Malformed(error).into()
    }
}

struct TableWalk<'a> {
    side: &'a OutboxSide,
    route: Route,
    behind: Option<DocumentKey>,
    /// Rows of the next page, at the most.
    limit: usize,
    is_over: bool,
}

struct Rows(Vec<RawDocumentBuf>);

impl Batch for Rows {
    fn documents(&self) -> Result<Vec<&RawDocument>, SideError> {
        Ok(self.0.iter().map(|document| &**document).collect())
    }

    fn bytes(&self) -> usize {
        self.0.iter().map(|document| document.as_bytes().len()).sum()
    }
}

impl Walk for TableWalk<'_> {
    fn next(&mut self) -> Answer<'_, Option<Page>> {
        Box::pin(async move {
            if self.is_over {
                return Ok(None);
            }
            let KeyRange { from, until } = &self.route.range;
            let stretch = Stretch {
                from: from.as_ref(),
                until: until.as_ref(),
                behind: self.behind.as_ref(),
                limit: self.limit,
            };
            let Walked { documents, is_end } = self.side.0.walk(&self.route.ns, stretch).await?;
            self.is_over = is_end;
            let is_cut = documents.len() < self.limit;
            let most = documents.len() * if is_cut { 2 } else { 4 };
            self.limit = most.clamp(1, self.route.page.max(1) as usize);
            let before = Place { behind: self.behind.clone(), leg: 0 };
            let Some(last) = documents.last() else { return Ok(None) };
            self.behind = DocumentKey::of(last).ok();
            let count = documents.len();
            Ok(Some(Page::new(Box::new(Rows(documents)), (0, count), Permit::free(), before)))
        })
    }

    fn permit(&self) -> Permit {
        Permit::free()
    }

    fn go_back(&mut self, place: &Place) {
        self.behind.clone_from(&place.behind);
        self.is_over = false;
    }
}
