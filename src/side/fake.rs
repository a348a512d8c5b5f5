//! A side for tests of what stands behind the seam: one collection in memory, with numbers for its keys.

use std::{
    collections::{BTreeMap, HashMap},
    sync::atomic::{AtomicU32, Ordering::Relaxed},
};

use bson::{RawDocument, RawDocumentBuf, rawdoc};
use parking_lot::Mutex;

use super::*;
use crate::source::Cause;

#[derive(Default)]
pub struct FakeSide {
    documents: Mutex<BTreeMap<i32, RawDocumentBuf>>,
    /// Of each document it keeps a number alone.
    keeps_numbers: bool,
    /// How often it is away before it hands out the next page.
    away: AtomicU32,
    /// How many pages it has handed out.
    pub pages: AtomicU32,
}

/// What a document comes down to, where that is all that is kept.
fn number(document: &RawDocument) -> i64 {
    document.as_bytes().iter().fold(7, |sum, byte| sum * 31 % 1_000_003 + i64::from(*byte))
}

fn id(key: &DocumentKey) -> i32 {
    key.filter().get_i32("_id").expect("its keys are numbers")
}

impl FakeSide {
    /// With documents of these ids and values.
    pub fn of(documents: impl IntoIterator<Item = (i32, i32)>) -> Self {
        let all = documents.into_iter().map(|(id, v)| (id, rawdoc! { "_id": id, "v": v }));
        Self { documents: Mutex::new(all.collect()), ..Self::default() }
    }

    /// The copy of these, of which it keeps numbers alone.
    pub fn in_numbers(documents: impl IntoIterator<Item = (i32, i32)>) -> Self {
        let whole = Self::of(documents);
        let all = whole.documents.into_inner().into_iter();
        let all = all.map(|(id, of)| (id, rawdoc! { "_id": id, "number": number(&of) })).collect();
        Self { documents: Mutex::new(all), keeps_numbers: true, ..Self::default() }
    }

    /// Is away so often before it hands out another page.
    pub fn is_away(&self, times: u32) {
        self.away.store(times, Relaxed);
    }

    fn counted(&self) -> u64 {
        self.documents.lock().len() as u64
    }
}

fn away() -> SideError {
    SourceError::Unavailable(Cause::Other("it is away".to_owned())).into()
}

fn told<'a, T: Send + 'a>(answer: T) -> Answer<'a, T> {
    Box::pin(ready(Ok(answer)))
}

impl Side for FakeSide {
    fn now(&self) -> Answer<'_, ClusterTime> {
        told(ClusterTime(1))
    }

    fn list<'a>(&'a self, _: &'a NamespaceFilter) -> Answer<'a, Listing> {
        told(Listing::default())
    }

    fn describe_options<'a>(&'a self, _: &'a Namespace) -> Answer<'a, Option<Description>> {
        told(None)
    }

    fn size<'a>(&'a self, _: &'a Namespace) -> Answer<'a, Size> {
        told(Size { documents: self.counted(), bytes: self.counted() * 20 })
    }

    fn is_empty<'a>(&'a self, _: &'a Namespace) -> Answer<'a, bool> {
        told(self.counted() == 0)
    }

    fn estimated_count<'a>(&'a self, _: &'a Namespace) -> Answer<'a, u64> {
        told(self.counted())
    }

    fn count<'a>(
        &'a self,
        _: &'a Namespace,
        _: Option<&'a RawDocument>,
    ) -> Answer<'a, Option<u64>> {
        told(Some(self.counted()))
    }

    fn sample<'a>(&'a self, _: &'a Namespace, _: u64) -> Answer<'a, Vec<DocumentKey>> {
        told(Vec::new())
    }

    fn walk(&self, route: Route) -> Box<dyn Walk + '_> {
        Box::new(FakeWalk { side: self, route, behind: None })
    }

    fn find<'a>(
        &'a self,
        _: &'a Namespace,
        keys: &'a [DocumentKey],
    ) -> Answer<'a, HashMap<Vec<u8>, RawDocumentBuf>> {
        let all = self.documents.lock();
        let found =
            keys.iter().filter_map(|key| Some((key.canonical(), all.get(&id(key))?.clone())));
        told(found.collect())
    }

    fn is_copy(&self, original: &RawDocument, copy: &RawDocument) -> bool {
        if self.keeps_numbers {
            return copy.get_i64("number").ok() == Some(number(original));
        }
        original.as_bytes() == copy.as_bytes()
    }

    fn malformed(&self, error: Malformed) -> SideError {
        SourceError::Malformed(error).into()
    }
}

struct FakeWalk<'a> {
    side: &'a FakeSide,
    route: Route,
    behind: Option<DocumentKey>,
}

struct FakeBatch(Vec<RawDocumentBuf>);

impl Batch for FakeBatch {
    fn documents(&self) -> Result<Vec<&RawDocument>, SideError> {
        Ok(self.0.iter().map(|document| &**document).collect())
    }

    fn bytes(&self) -> usize {
        self.0.iter().map(|document| document.as_bytes().len()).sum()
    }
}

impl Walk for FakeWalk<'_> {
    fn next(&mut self) -> Answer<'_, Option<Page>> {
        if self.side.away.fetch_update(Relaxed, Relaxed, |times| times.checked_sub(1)).is_ok() {
            return Box::pin(ready(Err(away())));
        }
        let KeyRange { from, until } = &self.route.range;
        let is_in = |at: i32| {
            from.as_ref().is_none_or(|from| at >= id(from))
                && until.as_ref().is_none_or(|until| at < id(until))
                && self.behind.as_ref().is_none_or(|behind| at > id(behind))
        };
        let all = self.side.documents.lock();
        let found: Vec<_> = all.iter().filter(|(at, _)| is_in(**at)).map(|(_, of)| of).collect();
        let page: Vec<_> =
            found.into_iter().take(self.route.page as usize).map(ToOwned::to_owned).collect();
        let before = Place { behind: self.behind.clone(), leg: 0 };
        let Some(last) = page.last() else { return told(None) };
        self.behind = DocumentKey::of(last).ok();
        self.side.pages.fetch_add(1, Relaxed);
        let count = page.len();
        told(Some(Page::new(Box::new(FakeBatch(page)), (0, count), Permit::free(), before)))
    }

    fn permit(&self) -> Permit {
        Permit::free()
    }

    fn go_back(&mut self, place: &Place) {
        self.behind.clone_from(&place.behind);
    }
}
