//! A whole database in memory, for tests of what goes between two: collections with options, indexes and documents,
//! views, the notes of a restore. It is read as a [`Side`], and written as a sink (`written`).
//!
//! Whatever it is asked has a name, such as `page shop.orders` or `create shop.orders`. By that name a test has
//! something [happen](FakeDatabase::when) just before the answer, lets the question [fail](FakeDatabase::fails), and looks
//! up afterwards [what was done](FakeDatabase::done), and in which order.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use bson::{RawDocumentBuf, rawdoc};
use parking_lot::{Mutex, MutexGuard};

use super::{
    fake::{FakeSide, page_of},
    fake_schema::{FakeSchemas, unaltered},
    *,
};
use crate::{
    model::event::CollectionId,
    schema::{Claim, Kind},
    source::Cause,
};

mod read;
mod written;

/// Which end it is, in whose words it fails.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum End {
    #[default]
    Source,
    Target,
}

/// How a question fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// Nobody answers.
    Away,
    /// It is done all the same, and nobody hears of it. Of what changes something.
    Unanswered,
    /// The server has understood, and will not.
    Refused,
    /// The privilege is missing.
    Denied,
    /// The collection is not what it was when the read began.
    Overtaken,
}

pub fn ns(name: &str) -> Namespace {
    name.parse().expect("a name")
}

/// Documents of these ids, each with the value 1.
pub fn ones(ids: impl IntoIterator<Item = i32>) -> Vec<(i32, i32)> {
    ids.into_iter().map(|id| (id, 1)).collect()
}

type Happening = Box<dyn FnOnce() + Send>;

#[derive(Default)]
pub struct FakeDatabase {
    end: End,
    /// Options, indexes and names, the gate, and the time.
    pub schemas: FakeSchemas,
    collections: Mutex<BTreeMap<Namespace, Arc<FakeSide>>>,
    state: Mutex<State>,
}

#[derive(Default)]
#[expect(clippy::struct_excessive_bools, reason = "each is a thing that a test may want of it")]
struct State {
    /// How many collections were made: each has another id.
    made: u8,
    asked: Vec<String>,
    /// What happens at which of the questions of a name.
    happenings: Vec<(String, usize, Happening)>,
    /// What fails, how, and how often from now on.
    failures: BTreeMap<String, (Failure, u32)>,
    /// Documents that nobody takes.
    odd: BTreeSet<i32>,
    notes: BTreeMap<String, String>,
    /// It keeps documents, and nothing of options and indexes.
    is_plain: bool,
    /// It makes no sums.
    is_unable_to_hash: bool,
    /// It walks collections in another order than the source.
    in_another_order: bool,
    /// It keeps less of each document than the document.
    is_lossy: bool,
    received: u64,
}

impl FakeDatabase {
    /// The one that is read from, at this time.
    pub fn source(time: u64) -> Self {
        Self { schemas: FakeSchemas::at(time), ..Self::default() }
    }

    /// The one that is written to.
    pub fn target(time: u64) -> Self {
        Self { end: End::Target, ..Self::source(time) }
    }

    /// Has a collection of this name, with these options; a new one, even where there was one of that name.
    pub fn has(&self, ns: &Namespace, options: RawDocumentBuf) -> CollectionId {
        let id = {
            let mut state = self.lock();
            state.made += 1;
            CollectionId([state.made; 16])
        };
        let (kind, claim) = (Kind::Collection, Claim::Whole);
        let indexes = Vec::new();
        self.schemas.is(ns, Description { kind, claim, id: Some(id), options, indexes });
        self.collections.lock().insert(ns.clone(), Arc::default());
        id
    }

    /// Has these documents, by their ids and values, in a collection that is made for them where it is not there.
    pub fn holds(&self, ns: &Namespace, documents: impl IntoIterator<Item = (i32, i32)>) {
        if self.schemas.get(ns).is_none() {
            self.has(ns, RawDocumentBuf::new());
        }
        let collection = self.of(ns);
        for (id, v) in documents {
            collection.put(&rawdoc! { "_id": id, "v": v });
        }
    }

    /// Has these indexes as well.
    pub fn indexed(&self, ns: &Namespace, indexes: &[RawDocumentBuf]) {
        let mut there = self.schemas.get(ns).expect("it is there");
        there.indexes.extend_from_slice(indexes);
        self.schemas.is(ns, there);
    }

    pub fn has_view(&self, ns: &Namespace, on: &str) {
        let options = rawdoc! { "viewOn": on, "pipeline": [] };
        let (kind, claim, indexes) = (Kind::View, Claim::Whole, Vec::new());
        self.schemas.is(ns, Description { kind, claim, id: None, options, indexes });
    }

    pub fn has_time_series(&self, ns: &Namespace) {
        let options = rawdoc! { "timeseries": { "timeField": "t" } };
        let (kind, claim, indexes) = (Kind::TimeSeries, Claim::Whole, Vec::new());
        self.schemas.is(ns, Description { kind, claim, id: None, options, indexes });
    }

    pub fn lacks(&self, ns: &Namespace, ids: impl IntoIterator<Item = i32>) {
        let collection = self.of(ns);
        for id in ids {
            collection.remove(&DocumentKey::of(&rawdoc! { "_id": id }).expect("an `_id`"));
        }
    }

    pub fn drops(&self, ns: &Namespace) {
        self.schemas.is(ns, None);
        self.collections.lock().remove(ns);
    }

    /// The collection keeps its id, its documents and its indexes.
    pub fn renames(&self, from: &Namespace, to: &Namespace) {
        let (described, documents) = (self.schemas.get(from), self.of(from));
        self.drops(from);
        self.schemas.is(to, described);
        self.collections.lock().insert(to.clone(), documents);
    }

    /// Its documents by id and value, as far as the collection is there.
    pub fn values(&self, ns: &Namespace) -> BTreeMap<i32, i32> {
        let number = |document: &RawDocumentBuf, of| document.get_i32(of).expect("a number");
        let all = self.of(ns).all();
        all.iter().map(|document| (number(document, "_id"), number(document, "v"))).collect()
    }

    /// The ids in the order of insertion.
    pub fn inserted(&self, ns: &Namespace) -> Vec<i32> {
        self.of(ns).inserted()
    }

    pub fn is_there(&self, ns: &Namespace) -> bool {
        self.schemas.get(ns).is_some()
    }

    pub fn id_of(&self, ns: &Namespace) -> Option<CollectionId> {
        self.schemas.get(ns)?.id
    }

    pub fn options_of(&self, ns: &Namespace) -> RawDocumentBuf {
        self.schemas.get(ns).map(|found| found.options).unwrap_or_default()
    }

    /// The documents of a collection, which has none where it is not there.
    pub fn of(&self, ns: &Namespace) -> Arc<FakeSide> {
        if !self.is_there(ns) {
            return Arc::default();
        }
        self.collections.lock().entry(ns.clone()).or_default().clone()
    }

    /// Done once, just before the next answer to what has this name.
    pub fn when(&self, asked: &str, done: impl FnOnce() + Send + 'static) {
        self.when_nth(asked, 1, done);
    }

    /// As [`when`](Self::when), at the `nth` of them from now on.
    pub fn when_nth(&self, asked: &str, nth: usize, done: impl FnOnce() + Send + 'static) {
        let nth = self.times(asked) + nth;
        self.lock().happenings.push((asked.to_owned(), nth, Box::new(done)));
    }

    /// What has this name fails so often from now on.
    pub fn fails(&self, asked: &str, failure: Failure, times: u32) {
        self.lock().failures.insert(asked.to_owned(), (failure, times));
    }

    /// This document is taken by nobody.
    pub fn refuses_document(&self, id: i32) {
        self.lock().odd.insert(id);
    }

    /// It keeps no options, no indexes and no views.
    pub fn is_plain(&self) {
        self.lock().is_plain = true;
    }

    pub fn keeps_hashes_alone(&self) {
        self.lock().is_lossy = true;
    }

    pub fn cannot_hash(&self) {
        self.lock().is_unable_to_hash = true;
    }

    pub fn walks_in_another_order(&self) {
        self.lock().in_another_order = true;
    }

    /// All that it was asked, in that order.
    pub fn asked(&self) -> Vec<String> {
        self.lock().asked.clone()
    }

    /// How often it was asked this.
    pub fn times(&self, asked: &str) -> usize {
        self.lock().asked.iter().filter(|of| *of == asked).count()
    }

    /// What was changed in it, in that order.
    pub fn done(&self) -> Vec<String> {
        let changes =
            ["create ", "drop ", "rename ", "write ", "createIndexes ", "dropIndexes ", "collMod "];
        let mut asked = self.asked();
        asked.retain(|of| changes.iter().any(|change| of.starts_with(change)));
        asked
    }

    pub fn notes_left(&self) -> BTreeMap<String, String> {
        self.lock().notes.clone()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    /// It is asked this.
    fn hears(&self, asked: &str) -> Option<Failure> {
        let happening = {
            let mut state = self.lock();
            state.asked.push(asked.to_owned());
            let times = state.asked.iter().filter(|of| *of == asked).count();
            let at = state.happenings.iter().position(|(of, nth, _)| of == asked && *nth == times);
            at.map(|at| state.happenings.remove(at).2)
        };
        if let Some(happening) = happening {
            happening();
        }
        let mut state = self.lock();
        let (failure, times) = state.failures.get_mut(asked)?;
        *times = times.checked_sub(1)?;
        Some(*failure)
    }

    fn answers(&self, asked: &str) -> Result<(), SideError> {
        self.hears(asked).map_or(Ok(()), |failure| Err(self.error(failure)))
    }

    fn error(&self, failure: Failure) -> SideError {
        match self.end {
            End::Target => written::error(failure).into(),
            End::Source => {
                let source = Cause::Other("the server says so".to_owned());
                match failure {
                    Failure::Away | Failure::Unanswered => SourceError::Unavailable(source),
                    Failure::Refused => SourceError::Failed(source),
                    Failure::Denied => SourceError::Denied { source, advice: String::new() },
                    Failure::Overtaken => SourceError::Overtaken { what: "it was dropped", source },
                }
                .into()
            }
        }
    }
}
