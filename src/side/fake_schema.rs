//! A side for tests of what looks after options and indexes: collections and views in memory, without a document.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use bson::{RawDocument, RawDocumentBuf, doc, rawdoc};
use parking_lot::{Mutex, MutexGuard};

use super::{fake::FakeSide, fake_records::FakeRecords, *};
use crate::{
    gate::Gate,
    model::event::CollectionId,
    runtime::clock,
    schema::{Claim, Kind, value},
    source::Cause,
};

/// A side whose databases keep options and indexes.
#[derive(Default)]
pub struct FakeSchemas {
    state: Mutex<State>,
    pub gate: Arc<Gate>,
    /// What it hands out of documents: none.
    empty: FakeSide,
    /// Where it keeps lease records, if it does.
    records: Option<Arc<FakeRecords>>,
    looks: Mutex<Looks>,
}

#[derive(Default)]
struct State {
    clock_ms: Option<i64>,
    there: BTreeMap<Namespace, Description>,
    emptied: Vec<String>,
    /// How many each collection is said to have.
    documents: u64,
    time: u64,
    /// Of the next commands; beyond them all is done.
    answers: VecDeque<Unaltered>,
    /// How long it takes to build indexes.
    builds_take: Duration,
    /// Each command, and when it came.
    commands: Vec<(Instant, String)>,
    /// When everything was listed.
    listings: Vec<Instant>,
    denied: bool,
    while_it_alters: Option<Box<dyn FnOnce() + Send>>,
    while_it_lists: Option<Box<dyn FnOnce() + Send>>,
    /// What a count says of what a filter chooses.
    counted: Option<Arc<CountOf>>,
    counts_take: Duration,
    counts: usize,
}

type CountOf = dyn Fn(Option<&RawDocument>) -> Option<u64> + Send + Sync;

/// An index of this name, on the field of that name.
pub fn index(name: &str) -> RawDocumentBuf {
    RawDocumentBuf::try_from(doc! { "v": 2, "key": { name: 1 }, "name": name }).expect("a spec")
}

/// As [`index`], and documents must obey it.
pub fn unique(name: &str) -> RawDocumentBuf {
    let mut spec = index(name);
    spec.append(bson::cstr!("unique"), true);
    spec
}

fn name_of(spec: &RawDocument) -> &str {
    spec.get_str("name").expect("it has a name")
}

/// Why a command was not done.
pub fn unaltered(reason: &str, is_away: bool) -> Unaltered {
    let because = if is_away { Because::Silence } else { Because::Answer };
    let error = SinkError::Rejected(reason.to_owned()).into();
    Unaltered { reason: reason.to_owned(), advice: None, because, is_away, error }
}

impl FakeSchemas {
    /// A database that is proven, at this time.
    pub fn at(time: u64) -> Self {
        let fake = Self::default();
        fake.gate.proved(fake.gate.begin_proof(), ObjectId::from_bytes([1; 12]));
        fake.is_at(time);
        fake
    }

    /// Keeps lease records there from now on.
    pub fn keeping(self, records: Arc<FakeRecords>) -> Self {
        Self { records: Some(records), ..self }
    }

    /// Tells this of itself.
    pub fn looks_like(&self, looks: Looks) {
        *self.looks.lock() = looks;
    }

    /// Takes this for now, in milliseconds since 1970.
    pub fn takes_for_now(&self, clock_ms: i64) {
        self.lock().clock_ms = Some(clock_ms);
    }

    pub fn is_at(&self, time: u64) {
        self.lock().time = time;
    }

    /// Has this collection with these indexes.
    pub fn has(&self, ns: &Namespace, indexes: &[RawDocumentBuf]) {
        let id = Some(CollectionId([1; 16]));
        let (options, indexes) = (RawDocumentBuf::new(), indexes.to_vec());
        let made =
            Description { kind: Kind::Collection, claim: Claim::Whole, id, options, indexes };
        self.lock().there.insert(ns.clone(), made);
    }

    /// Has this collection as a capped one, which only a new one can become.
    pub fn has_capped(&self, ns: &Namespace) {
        self.has(ns, &[]);
        let options = rawdoc! { "capped": true, "size": 4_096 };
        self.lock().there.get_mut(ns).expect("it is there").options = options;
    }

    /// Its collections have so many documents each.
    pub fn has_documents(&self, documents: u64) {
        self.lock().documents = documents;
    }

    pub fn has_view(&self, ns: &Namespace) {
        let options = rawdoc! { "viewOn": "orders", "pipeline": [] };
        let (kind, claim, indexes) = (Kind::View, Claim::Whole, Vec::new());
        let made = Description { kind, claim, id: None, options, indexes };
        self.lock().there.insert(ns.clone(), made);
    }

    /// A database of which only the server's own is left.
    pub fn has_emptied(&self, db: &str) {
        self.lock().emptied.push(db.to_owned());
    }

    /// The next command ends so, and those behind it as was said before.
    pub fn answers_with(&self, answers: impl IntoIterator<Item = Unaltered>) {
        self.lock().answers.extend(answers);
    }

    /// What is asked of one collection is refused for want of a privilege.
    pub fn is_denied(&self, denied: bool) {
        self.lock().denied = denied;
    }

    pub fn builds_take(&self, so_long: Duration) {
        self.lock().builds_take = so_long;
    }

    /// Done once, before the next command.
    pub fn while_it_alters(&self, done: impl FnOnce() + Send + 'static) {
        self.lock().while_it_alters = Some(Box::new(done));
    }

    /// Done once, before indexes are listed next.
    pub fn while_it_lists(&self, done: impl FnOnce() + Send + 'static) {
        self.lock().while_it_lists = Some(Box::new(done));
    }

    /// Whoever counts what a filter chooses is told this.
    pub fn is_counted(
        &self,
        told: impl Fn(Option<&RawDocument>) -> Option<u64> + Send + Sync + 'static,
    ) {
        self.lock().counted = Some(Arc::new(told));
    }

    pub fn counts_take(&self, so_long: Duration) {
        self.lock().counts_take = so_long;
    }

    /// How often documents were counted, and not only estimated.
    pub fn counts(&self) -> usize {
        self.lock().counts
    }

    pub fn indexes(&self, ns: &Namespace) -> Vec<String> {
        let state = self.lock();
        let indexes = state.there.get(ns).map_or(&[][..], |found| &found.indexes);
        indexes.iter().map(|spec| name_of(spec).to_owned()).collect()
    }

    /// The commands that came, and in which second after `start`.
    pub fn commands(&self, start: Instant) -> Vec<(u64, String)> {
        let state = self.lock();
        let since = |(at, command): &(Instant, String)| ((*at - start).as_secs(), command.clone());
        state.commands.iter().map(since).collect()
    }

    /// The seconds after `start` in which everything was listed.
    pub fn listings(&self, start: Instant) -> Vec<u64> {
        self.lock().listings.iter().map(|at| (*at - start).as_secs()).collect()
    }

    /// What has this name from now on; nothing does where there is no description.
    pub fn is(&self, ns: &Namespace, described: impl Into<Option<Description>>) {
        let there = &mut self.lock().there;
        match described.into() {
            Some(described) => drop(there.insert(ns.clone(), described)),
            None => drop(there.remove(ns)),
        }
    }

    /// What has this name, with its indexes.
    pub fn get(&self, ns: &Namespace) -> Option<Description> {
        self.lock().there.get(ns).cloned()
    }

    /// What it has of what `filter` chooses.
    pub fn listing(&self, filter: &NamespaceFilter) -> Listing {
        let mut state = self.lock();
        state.listings.push(clock::now());
        let mut listing = Listing { emptied: state.emptied.clone(), ..Listing::default() };
        for (ns, found) in &state.there {
            let (ns, options) = (ns.clone(), found.options.clone());
            match found.kind {
                _ if !filter.matches(&ns) => listing.not_chosen.push(ns),
                Kind::Collection => {
                    listing.collections.push(Collection { ns, options, id: found.id });
                }
                Kind::View => listing.views.push(Collection { ns, options, id: found.id }),
                Kind::TimeSeries | Kind::Other => {
                    listing.left_out.push(LeftOut { ns, reason: "a time-series collection" });
                }
            }
        }
        listing.databases = state.there.keys().map(|ns| ns.db().to_owned()).collect();
        listing.databases.extend(state.emptied.iter().cloned());
        listing.databases.dedup();
        listing
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    fn found(&self, ns: &Namespace) -> Result<Option<Description>, SideError> {
        let state = self.lock();
        if state.denied {
            let source = Cause::Other("not authorized".to_owned());
            let error = SourceError::Denied { source, advice: String::new() };
            return Err(error.into());
        }
        Ok(state.there.get(ns).cloned())
    }
}

impl State {
    fn alter(&mut self, ns: &Namespace, command: &RawDocument) {
        let made = self.there.get_mut(ns).expect("it alters what is there");
        let (name, _) = command.iter().next().expect("a command").expect("sound");
        match name.as_str() {
            "createIndexes" => {
                for spec in command.get_array("indexes").expect("specs") {
                    let spec = spec.expect("sound").as_document().expect("a spec").to_owned();
                    // As a server keeps it.
                    made.indexes.push(value::without(&spec, &["collation"]));
                }
            }
            "dropIndexes" => {
                let dropped = command.get_str("index").expect("a name");
                made.indexes.retain(|spec| name_of(spec) != dropped);
            }
            "collMod" => {
                let Ok(change) = command.get_document("index") else {
                    let mut options = value::without(&made.options, &["validator"]);
                    let validator =
                        command.get_document("validator").expect("no other is known here");
                    options.append(bson::cstr!("validator"), validator);
                    made.options = options;
                    return;
                };
                let changed = change.get_str("name").expect("a name");
                for spec in &mut made.indexes {
                    if name_of(spec) == changed && value::is_on(change, "unique") {
                        spec.append(bson::cstr!("unique"), true);
                    }
                }
            }
            other => panic!("{other} is not known here"),
        }
    }
}

/// The command's name, with the indexes that it makes, or what it changes of one.
fn said(command: &RawDocument) -> String {
    let name = value::names(command).next().expect("a command").into_owned();
    let specs = command.get_array("indexes").into_iter().flatten();
    let made =
        specs.filter_map(|spec| Some(spec.ok()?.as_document()?.get_str("name").ok()?.to_owned()));
    let changed = command.get_document("index").into_iter().flat_map(value::names);
    let changed = changed.filter(|of| of != "name").map(Into::into);
    let words: Vec<String> = [name].into_iter().chain(made).chain(changed).collect();
    words.join(" ")
}

fn told<'a, T: Send + 'a>(answer: Result<T, SideError>) -> Answer<'a, T> {
    Box::pin(ready(answer))
}

impl Side for FakeSchemas {
    fn permit(&self) -> Permit {
        self.gate.permit()
    }

    fn now(&self) -> Answer<'_, ClusterTime> {
        told(Ok(ClusterTime(self.lock().time)))
    }

    fn list<'a>(&'a self, filter: &'a NamespaceFilter) -> Answer<'a, Listing> {
        told(Ok(self.listing(filter)))
    }

    fn describe_options<'a>(&'a self, ns: &'a Namespace) -> Answer<'a, Option<Description>> {
        let found = self.found(ns);
        told(found.map(|found| found.map(|found| Description { indexes: Vec::new(), ..found })))
    }

    fn size<'a>(&'a self, _: &'a Namespace) -> Answer<'a, Size> {
        let documents = self.lock().documents;
        told(Ok(Size { documents, bytes: documents * 20 }))
    }

    fn is_empty<'a>(&'a self, _: &'a Namespace) -> Answer<'a, bool> {
        told(Ok(self.lock().documents == 0))
    }

    fn estimated_count<'a>(&'a self, _: &'a Namespace) -> Answer<'a, u64> {
        told(Ok(self.lock().documents))
    }

    fn count<'a>(
        &'a self,
        ns: &'a Namespace,
        filter: Option<&'a RawDocument>,
    ) -> Answer<'a, Option<u64>> {
        let (counted, takes) = {
            let mut state = self.lock();
            state.counts += 1;
            (state.counted.clone(), state.counts_take)
        };
        let Some(counted) = counted else { return self.empty.count(ns, filter) };
        Box::pin(async move {
            tokio::time::sleep(takes).await;
            Ok(counted(filter))
        })
    }

    fn sample<'a>(&'a self, ns: &'a Namespace, keys: u64) -> Answer<'a, Vec<DocumentKey>> {
        self.empty.sample(ns, keys)
    }

    fn walk(&self, route: Route) -> Box<dyn Walk + '_> {
        self.empty.walk(route)
    }

    fn find<'a>(
        &'a self,
        ns: &'a Namespace,
        keys: &'a [DocumentKey],
    ) -> Answer<'a, HashMap<Vec<u8>, RawDocumentBuf>> {
        self.empty.find(ns, keys)
    }

    fn malformed(&self, error: Malformed) -> SideError {
        self.empty.malformed(error)
    }

    fn schema(&self) -> Option<&dyn SchemaSide> {
        Some(self)
    }

    fn clock(&self) -> Answer<'_, Option<i64>> {
        told(Ok(self.lock().clock_ms))
    }

    fn looks(&self) -> Answer<'_, Looks> {
        told(Ok(self.looks.lock().clone()))
    }

    fn records(&self) -> Option<&dyn LeaseRecords> {
        self.records.as_deref().map(|records| records as &dyn LeaseRecords)
    }
}

impl SchemaSide for FakeSchemas {
    fn describe<'a>(&'a self, ns: &'a Namespace) -> Answer<'a, Option<Description>> {
        told(self.found(ns))
    }

    fn list_indexes<'a>(&'a self, ns: &'a Namespace) -> Answer<'a, Vec<RawDocumentBuf>> {
        let first = self.lock().while_it_lists.take();
        if let Some(done) = first {
            done();
        }
        told(self.found(ns).map(|found| found.map(|found| found.indexes).unwrap_or_default()))
    }

    fn alter<'a>(
        &'a self,
        ns: &'a Namespace,
        command: RawDocumentBuf,
        _: Duration,
    ) -> BoxFuture<'a, Result<(), Unaltered>> {
        Box::pin(async move {
            let what = said(&command);
            let is_build = what.starts_with("createIndexes");
            let (meanwhile, takes) = {
                let mut state = self.lock();
                state.commands.push((clock::now(), what));
                (state.while_it_alters.take(), state.builds_take)
            };
            if let Some(done) = meanwhile {
                done();
            }
            if is_build {
                tokio::time::sleep(takes).await;
            }
            let mut state = self.lock();
            if let Some(refusal) = state.answers.pop_front() {
                return Err(refusal);
            }
            state.alter(ns, &command);
            Ok(())
        })
    }

    fn build_progress<'a>(&'a self, _: &'a Namespace) -> BoxFuture<'a, Option<u8>> {
        Box::pin(ready(Some(40)))
    }

    fn is_there(&self) -> BoxFuture<'_, bool> {
        Box::pin(ready(true))
    }
}
