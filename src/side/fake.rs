//! A side for tests of what stands behind the seam: one collection in memory, with numbers for its keys.

use std::{
    collections::{BTreeMap, HashMap},
    sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed},
};

use bson::{RawDocument, RawDocumentBuf, rawdoc};
use parking_lot::Mutex;

use super::*;
use crate::source::Cause;

#[derive(Default)]
pub struct FakeSide {
    documents: Mutex<BTreeMap<i32, RawDocumentBuf>>,
    /// The ids in the order of insertion.
    inserted: Mutex<Vec<i32>>,
    /// What each document is said to have in bytes; 0: 20.
    said_bytes: AtomicU64,
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

fn is_in(range: &KeyRange, at: i32) -> bool {
    range.from.as_ref().is_none_or(|from| at >= id(from))
        && range.until.as_ref().is_none_or(|until| at < id(until))
}

impl FakeSide {
    /// With documents of these ids and values.
    pub fn of(documents: impl IntoIterator<Item = (i32, i32)>) -> Self {
        let side = Self::default();
        for (id, v) in documents {
            side.put(&rawdoc! { "_id": id, "v": v });
        }
        side
    }

    /// Has this document from now on. True when it is new.
    pub fn put(&self, document: &RawDocument) -> bool {
        let key = id(&DocumentKey::of(document).expect("it has an `_id`"));
        let is_new = self.documents.lock().insert(key, document.to_owned()).is_none();
        if is_new {
            self.inserted.lock().push(key);
        }
        is_new
    }

    pub fn remove(&self, key: &DocumentKey) {
        self.documents.lock().remove(&id(key));
        self.inserted.lock().retain(|of| *of != id(key));
    }

    pub fn get(&self, key: &DocumentKey) -> Option<RawDocumentBuf> {
        self.documents.lock().get(&id(key)).cloned()
    }

    /// All of them, by their ids.
    pub fn all(&self) -> Vec<RawDocumentBuf> {
        self.documents.lock().values().cloned().collect()
    }

    /// The ids in the order of insertion.
    pub fn inserted(&self) -> Vec<i32> {
        self.inserted.lock().clone()
    }

    /// Each document is said to be so large, as in statistics.
    pub fn is_said_to_have(&self, bytes_each: u64) {
        self.said_bytes.store(bytes_each, Relaxed);
    }

    pub fn said_size(&self) -> Size {
        let each = match self.said_bytes.load(Relaxed) {
            0 => 20,
            each => each,
        };
        Size { documents: self.counted(), bytes: self.counted() * each }
    }

    /// So many of its keys, as evenly as they come.
    pub fn sampled(&self, keys: u64) -> Vec<DocumentKey> {
        let all = self.all();
        let picked = (0..keys as usize).filter_map(|n| all.get(n * all.len() / keys as usize));
        picked.filter_map(|document| DocumentKey::of(document).ok()).collect()
    }

    /// What a walk reads behind a place, if anything is left.
    pub fn page(&self, route: &Route, behind: Option<&DocumentKey>) -> Option<Vec<RawDocumentBuf>> {
        let all = self.documents.lock();
        let ids: Vec<i32> = match route.order {
            Order::ById => all.keys().copied().collect(),
            Order::Natural => self.inserted(),
        };
        let begin = match (route.order, behind) {
            (_, None) => 0,
            (Order::ById, Some(behind)) => ids.partition_point(|at| *at <= id(behind)),
            (Order::Natural, Some(behind)) => {
                ids.iter().position(|at| *at == id(behind)).map_or(0, |at| at + 1)
            }
        };
        let found =
            ids[begin..].iter().filter(|at| is_in(&route.range, **at)).filter_map(|at| all.get(at));
        let found = found.take(route.page as usize).map(|document| match route.part {
            Part::Whole => document.clone(),
            Part::Key => rawdoc! { "_id": document.get_i32("_id").expect("a number") },
        });
        let page: Vec<_> = found.collect();
        (!page.is_empty()).then_some(page)
    }

    /// The sums of the parts into which `splits` cut a range.
    pub fn sums(&self, range: &KeyRange, splits: &[DocumentKey]) -> Vec<Digest> {
        let mut sums = vec![Digest::default(); splits.len() + 1];
        for (at, document) in self.documents.lock().iter().filter(|(at, _)| is_in(range, **at)) {
            let sum = &mut sums[splits.partition_point(|split| id(split) <= *at)];
            sum.documents += 1;
            sum.bytes += document.as_bytes().len() as u64;
            sum.hashes[0] += number(document);
        }
        sums
    }

    /// The copy of these, of which it keeps numbers alone.
    pub fn in_numbers(documents: impl IntoIterator<Item = (i32, i32)>) -> Self {
        let side = Self { keeps_numbers: true, ..Self::default() };
        for (id, v) in documents {
            side.put(&rawdoc! { "_id": id, "number": number(&rawdoc! { "_id": id, "v": v }) });
        }
        side
    }

    /// Is away so often before it hands out another page.
    pub fn is_away(&self, times: u32) {
        self.away.store(times, Relaxed);
    }

    pub fn counted(&self) -> u64 {
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
        told(self.said_size())
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

    fn sample<'a>(&'a self, _: &'a Namespace, keys: u64) -> Answer<'a, Vec<DocumentKey>> {
        told(self.sampled(keys))
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

/// A page of these documents.
pub fn page_of(documents: Vec<RawDocumentBuf>, permit: Permit, before: Place) -> Page {
    let count = documents.len();
    Page::new(Box::new(FakeBatch(documents)), (0, count), permit, before)
}

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
        let Some(page) = self.side.page(&self.route, self.behind.as_ref()) else {
            return told(None);
        };
        let before = Place { behind: self.behind.clone(), leg: 0 };
        self.behind = page.last().and_then(|last| DocumentKey::of(last).ok());
        self.side.pages.fetch_add(1, Relaxed);
        told(Some(page_of(page, Permit::free(), before)))
    }

    fn permit(&self) -> Permit {
        Permit::free()
    }

    fn go_back(&mut self, place: &Place) {
        self.behind.clone_from(&place.behind);
    }
}
