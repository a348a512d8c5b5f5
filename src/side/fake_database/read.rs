//! The database as it is read: what it has, and its documents in the order of their keys.

use std::{collections::BTreeMap, time::Duration};

use bson::{RawDocument, RawDocumentBuf};

use super::{super::*, End, Failure, FakeDatabase, page_of, unaltered};
use crate::schema::value;

fn told<'a, T: Send + 'a>(answer: Result<T, SideError>) -> Answer<'a, T> {
    Box::pin(ready(answer))
}

impl Side for FakeDatabase {
    fn permit(&self) -> Permit {
        self.schemas.permit()
    }

    fn received(&self) -> u64 {
        self.lock().received
    }

    fn now(&self) -> Answer<'_, ClusterTime> {
        Box::pin(async move {
            self.answers("now")?;
            self.schemas.now().await
        })
    }

    fn list<'a>(&'a self, filter: &'a NamespaceFilter) -> Answer<'a, Listing> {
        told(self.answers("list").map(|()| self.schemas.listing(filter)))
    }

    fn describe_options<'a>(&'a self, ns: &'a Namespace) -> Answer<'a, Option<Description>> {
        Box::pin(async move {
            self.answers(&format!("describe {ns}"))?;
            self.schemas.describe_options(ns).await
        })
    }

    fn size<'a>(&'a self, ns: &'a Namespace) -> Answer<'a, Size> {
        told(self.answers(&format!("size {ns}")).map(|()| self.of(ns).said_size()))
    }

    fn is_empty<'a>(&'a self, ns: &'a Namespace) -> Answer<'a, bool> {
        told(self.answers(&format!("empty {ns}")).map(|()| self.of(ns).counted() == 0))
    }

    fn estimated_count<'a>(&'a self, ns: &'a Namespace) -> Answer<'a, u64> {
        told(self.answers(&format!("count {ns}")).map(|()| self.of(ns).counted()))
    }

    fn count<'a>(
        &'a self,
        ns: &'a Namespace,
        _: Option<&'a RawDocument>,
    ) -> Answer<'a, Option<u64>> {
        told(self.answers(&format!("count {ns}")).map(|()| Some(self.of(ns).counted())))
    }

    fn sample<'a>(&'a self, ns: &'a Namespace, keys: u64) -> Answer<'a, Vec<DocumentKey>> {
        told(self.answers(&format!("sample {ns}")).map(|()| self.of(ns).sampled(keys)))
    }

    fn walk(&self, route: Route) -> Box<dyn Walk + '_> {
        Box::new(DatabaseWalk { database: self, route, behind: None, permit: self.permit() })
    }

    fn find<'a>(
        &'a self,
        ns: &'a Namespace,
        keys: &'a [DocumentKey],
    ) -> Answer<'a, HashMap<Vec<u8>, RawDocumentBuf>> {
        told(self.answers(&format!("find {ns}")).map(|()| {
            let collection = self.of(ns);
            keys.iter().filter_map(|key| Some((key.canonical(), collection.get(key)?))).collect()
        }))
    }

    fn digests<'a>(
        &'a self,
        ns: &'a Namespace,
        range: &'a KeyRange,
        splits: &'a [DocumentKey],
        _: ClusterTime,
    ) -> Answer<'a, Digests> {
        if self.lock().is_unable_to_hash {
            return told(Ok(Digests::Unable));
        }
        let answered = self.answers(&format!("digests {ns}"));
        told(answered.map(|()| Digests::Sums(self.of(ns).sums(range, splits))))
    }

    fn keeps_documents(&self) -> bool {
        !self.lock().is_lossy
    }

    fn keeps_order_of(&self, _: &RawDocument) -> bool {
        !self.lock().in_another_order
    }

    fn malformed(&self, error: Malformed) -> SideError {
        SourceError::Malformed(error).into()
    }

    fn schema(&self) -> Option<&dyn SchemaSide> {
        (!self.lock().is_plain).then_some(self as &dyn SchemaSide)
    }

    fn notes(&self) -> Option<&dyn Notes> {
        (self.end == End::Source).then_some(self as &dyn Notes)
    }
}

impl SchemaSide for FakeDatabase {
    fn describe<'a>(&'a self, ns: &'a Namespace) -> Answer<'a, Option<Description>> {
        told(self.answers(&format!("describe {ns}")).map(|()| self.schemas.get(ns)))
    }

    fn list_indexes<'a>(&'a self, ns: &'a Namespace) -> Answer<'a, Vec<RawDocumentBuf>> {
        Box::pin(async move {
            self.answers(&format!("indexes {ns}"))?;
            self.schemas.list_indexes(ns).await
        })
    }

    fn alter<'a>(
        &'a self,
        ns: &'a Namespace,
        command: RawDocumentBuf,
        patience: Duration,
    ) -> BoxFuture<'a, Result<(), Unaltered>> {
        Box::pin(async move {
            let name = value::names(&command).next().expect("a command").into_owned();
            match self.hears(&format!("{name} {ns}")) {
                None => self.schemas.alter(ns, command, patience).await,
                Some(failure) => Err(Unaltered {
                    error: self.error(failure),
                    ..unaltered("the server says so", failure == Failure::Away)
                }),
            }
        })
    }

    fn build_progress<'a>(&'a self, ns: &'a Namespace) -> BoxFuture<'a, Option<u8>> {
        self.schemas.build_progress(ns)
    }

    fn is_there(&self) -> BoxFuture<'_, bool> {
        Box::pin(ready(true))
    }
}

impl Notes for FakeDatabase {
    fn read<'a>(&'a self, _: &'a Namespace) -> Answer<'a, BTreeMap<String, String>> {
        told(self.answers("read notes").map(|()| self.notes_left()))
    }

    fn write<'a>(&'a self, at: &'a Namespace, name: &'a str, text: &'a str) -> Answer<'a, bool> {
        assert_eq!(at.to_string(), "outrigger.restore", "beside the application's databases");
        told(match self.hears("note") {
            Some(Failure::Refused) => Ok(false),
            Some(failure) => Err(self.error(failure)),
            None => {
                self.lock().notes.insert(name.to_owned(), text.to_owned());
                Ok(true)
            }
        })
    }

    fn drop<'a>(&'a self, _: &'a Namespace) -> Answer<'a, ()> {
        told(self.answers("forget notes").map(|()| self.lock().notes.clear()))
    }
}

/// Reads on behind the last key, in whatever collection has the name by then.
struct DatabaseWalk<'a> {
    database: &'a FakeDatabase,
    route: Route,
    behind: Option<DocumentKey>,
    permit: Permit,
}

impl Walk for DatabaseWalk<'_> {
    fn next(&mut self) -> Answer<'_, Option<Page>> {
        let what = if self.route.part == Part::Key { "keys" } else { "page" };
        self.permit = self.database.permit();
        if let Err(error) = self.database.answers(&format!("{what} {}", self.route.ns)) {
            return told(Err(error));
        }
        let collection = self.database.of(&self.route.ns);
        let Some(page) = collection.page(&self.route, self.behind.as_ref()) else {
            return told(Ok(None));
        };
        let bytes: usize = page.iter().map(|document| document.as_bytes().len()).sum();
        self.database.lock().received += bytes as u64;
        let before = Place { behind: self.behind.clone(), leg: 0 };
        self.behind = page.last().and_then(|last| DocumentKey::of(last).ok());
        told(Ok(Some(page_of(page, self.permit.clone(), before))))
    }

    fn permit(&self) -> Permit {
        self.permit.clone()
    }

    fn go_back(&mut self, place: &Place) {
        self.behind.clone_from(&place.behind);
    }
}
