//! A local database and an Atlas in memory, with the faults that a test asks for.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use bson::{RawDocument, RawDocumentBuf, rawdoc};
use parking_lot::Mutex;

use crate::{
    gate::{Gate, Permit},
    model::{
        checkpoint::{ClusterTime, PositionKind},
        document_key::DocumentKey,
        event::{CollectionId, SchemaChange},
        namespace::Namespace,
    },
    mongo::MongoError,
    schema::Description,
    sink::{
        Changed, ConflictingWrite, CurrentOwner, SchemaSink, Sink, SinkError, Taken, Write, Written,
    },
    source::{EventBatch, EventStream, Page, Pages, SchemaSource, Source, SourceError, StartFrom},
};

/// The collection that each name means locally, unless a test says otherwise.
pub const HERE: CollectionId = CollectionId([1; 16]);

/// The local database.
#[derive(Default)]
pub struct Local(Mutex<LocalState>);

struct LocalState {
    documents: BTreeMap<Vec<u8>, RawDocumentBuf>,
    is_away: bool,
    id: CollectionId,
    time: ClusterTime,
    /// Closed by the next read: another database answers from then on.
    gate: Arc<Gate>,
    is_exchanged: bool,
    tells_of_schema: bool,
    reads: usize,
}

impl Default for LocalState {
    fn default() -> Self {
        let gate = Arc::new(Gate::default());
        gate.proved(gate.begin_proof(), bson::oid::ObjectId::from_bytes([1; 12]));
        Self {
            documents: BTreeMap::new(),
            is_away: false,
            id: HERE,
            time: ClusterTime(30),
            gate,
            is_exchanged: false,
            tells_of_schema: true,
            reads: 0,
        }
    }
}

impl Local {
    pub fn has(&self, document: RawDocumentBuf) {
        let key = DocumentKey::of(&document).unwrap().canonical();
        self.0.lock().documents.insert(key, document);
    }

    pub fn is_away(&self, is_away: bool) {
        self.0.lock().is_away = is_away;
    }

    /// Another collection has the name from now on, whoever reads at `time`.
    pub fn is_another(&self, id: CollectionId, time: u64) {
        let mut state = self.0.lock();
        (state.id, state.time) = (id, ClusterTime(time));
    }

    pub fn is_exchanged_by_the_next_read(&self) {
        self.0.lock().is_exchanged = true;
    }

    pub fn tells_nothing_of_schema(&self) {
        self.0.lock().tells_of_schema = false;
    }

    /// How often documents were read.
    pub fn reads(&self) -> usize {
        self.0.lock().reads
    }

    fn ask<T>(&self, answer: impl FnOnce(&mut LocalState) -> T) -> Result<T, SourceError> {
        let mut state = self.0.lock();
        if state.is_away {
            return Err(SourceError::Unavailable(MongoError::Unproven.into()));
        }
        Ok(answer(&mut state))
    }
}

/// Nothing ever happens.
pub struct Silence;

impl EventStream for Silence {
    async fn next(&mut self) -> Result<EventBatch, SourceError> {
        std::future::pending().await
    }
}

pub struct OnePage(Option<Page>);

impl Pages for OnePage {
    async fn next(&mut self) -> Result<Option<Page>, SourceError> {
        Ok(self.0.take())
    }
}

impl Source for Local {
    type Stream = Silence;
    type Pages = OnePage;

    fn positions(&self) -> PositionKind {
        PositionKind::CLUSTER_TIME
    }

    async fn open(&self, _: &StartFrom) -> Result<Silence, SourceError> {
        Ok(Silence)
    }

    async fn read(
        &self,
        _: &Namespace,
        keys: &[&DocumentKey],
        _: ClusterTime,
    ) -> Result<OnePage, SourceError> {
        self.ask(|state| {
            state.reads += 1;
            if state.is_exchanged {
                state.gate.close(&state.gate.permit(), "another process answers");
            }
            let found = keys.iter().filter_map(|key| state.documents.get(&key.canonical()));
            let documents = found.cloned().collect();
            OnePage(Some(Page { documents, read_at: state.time }))
        })
    }

    async fn time(&self) -> Result<ClusterTime, SourceError> {
        self.ask(|state| state.time)
    }

    fn permit(&self) -> Permit {
        self.0.lock().gate.permit()
    }

    async fn last_entry(&self) -> Result<Option<ClusterTime>, SourceError> {
        self.ask(|state| Some(state.time))
    }
}

impl SchemaSource for Local {
    async fn describe(&self, _: &Namespace) -> Result<Option<Description>, SourceError> {
        self.ask(|_| None)
    }

    fn tells_of_schema(&self) -> bool {
        self.0.lock().tells_of_schema
    }

    async fn collection_id(&self, _: &Namespace) -> Result<Option<CollectionId>, SourceError> {
        self.ask(|state| Some(state.id))
    }
}

/// Atlas, whose field `u` is unique.
#[derive(Default)]
pub struct Atlas(Mutex<AtlasState>);

#[derive(Default)]
struct AtlasState {
    documents: BTreeMap<Vec<u8>, RawDocumentBuf>,
    /// What each write was, in their order.
    written: Vec<&'static str>,
    /// All that it answers, while it is set.
    fault: Option<SinkError>,
    /// Documents that it takes neither alone nor among others.
    odd: BTreeSet<Vec<u8>>,
    takes_no_changes: bool,
    change: Option<Result<Changed, SinkError>>,
    create: Option<SinkError>,
    /// Of the name that it is asked for, and no collection of ours.
    is_there: bool,
    changes: Vec<&'static str>,
    looks: Option<Box<dyn Fn() + Send>>,
}

impl Atlas {
    pub fn has(&self, document: RawDocumentBuf) {
        let key = DocumentKey::of(&document).unwrap().canonical();
        self.0.lock().documents.insert(key, document);
    }

    pub fn fails_with(&self, fault: impl Into<Option<SinkError>>) {
        self.0.lock().fault = fault.into();
    }

    pub fn refuses_commands_with(&self, id: i32) {
        self.0.lock().odd.insert(super::key(id).canonical());
    }

    /// Each update is to come as a whole document.
    pub fn takes_no_changes(&self) {
        self.0.lock().takes_no_changes = true;
    }

    pub fn answers_a_change_with(&self, answer: Result<Changed, SinkError>) {
        self.0.lock().change = Some(answer);
    }

    pub fn answers_a_create_with(&self, answer: SinkError) {
        self.0.lock().create = Some(answer);
    }

    pub fn has_something_else_there(&self, is_there: bool) {
        self.0.lock().is_there = is_there;
    }

    pub fn documents(&self) -> Vec<RawDocumentBuf> {
        self.0.lock().documents.values().cloned().collect()
    }

    /// The kinds of the writes that it was sent, in their order.
    pub fn written(&self) -> Vec<&'static str> {
        self.0.lock().written.clone()
    }

    /// Looked at, while a change is made.
    pub fn while_it_changes(&self, looks: impl Fn() + Send + 'static) {
        self.0.lock().looks = Some(Box::new(looks));
    }

    /// The schema changes that it was sent, in their order.
    pub fn changes(&self) -> Vec<&'static str> {
        self.0.lock().changes.clone()
    }
}

impl AtlasState {
    /// Another document that holds its `u`.
    fn owner(&self, document: &RawDocument) -> Option<&RawDocumentBuf> {
        let value = document.get_str("u").ok()?;
        let own = DocumentKey::of(document).unwrap().canonical();
        let holds = |other: &RawDocumentBuf| other.get_str("u").is_ok_and(|held| held == value);
        self.documents.iter().find(|(key, other)| **key != own && holds(other)).map(|found| found.1)
    }

    fn put(&mut self, key: Vec<u8>, document: &RawDocument) -> Written {
        if self.owner(document).is_some() {
            let taken = Taken { index: Some("u_1".to_owned()), key: None };
            return Written::Conflict { reason: "u is taken".to_owned(), taken };
        }
        let created = self.documents.insert(key, document.to_owned()).is_none();
        Written::Applied { created }
    }

    fn write(&mut self, write: &Write<'_>) -> Written {
        let key = write.key().unwrap().canonical();
        let (kind, written) = match write {
            Write::Insert(_) if self.documents.contains_key(&key) => {
                ("insert", Written::AlreadyThere)
            }
            Write::Insert(document) => ("insert", self.put(key, document)),
            Write::Upsert { document, .. } => ("upsert", self.put(key, document)),
            Write::Change { .. } if !self.documents.contains_key(&key) => {
                ("change", Written::Unmatched)
            }
            Write::Merge { fields, .. } => ("merge", self.put(key, fields)),
            Write::Change { .. } => ("change", Written::Applied { created: false }),
            Write::Delete(_) => {
                self.documents.remove(&key);
                ("delete", Written::Applied { created: false })
            }
        };
        self.written.push(kind);
        written
    }
}

impl Sink for Atlas {
    async fn write(&self, _: &Namespace, writes: &[Write<'_>]) -> Result<Vec<Written>, SinkError> {
        let mut state = self.0.lock();
        if let Some(fault) = &state.fault {
            return Err(fault.clone());
        }
        let is_odd = |write: &Write<'_>| state.odd.contains(&write.key().unwrap().canonical());
        if writes.iter().any(is_odd) {
            return Err(SinkError::Rejected("what is this".to_owned()));
        }
        Ok(writes.iter().map(|write| state.write(write)).collect())
    }

    fn takes_changes(&self) -> bool {
        !self.0.lock().takes_no_changes
    }
}

impl SchemaSink for Atlas {
    async fn owners(
        &self,
        _: &Namespace,
        conflicting: &[ConflictingWrite],
    ) -> Result<Vec<Vec<CurrentOwner>>, SinkError> {
        let state = self.0.lock();
        let of = |conflicting: &ConflictingWrite| {
            let found = state.owner(&conflicting.document).cloned();
            let paths = Some(vec!["u".to_owned()]);
            found.map(|document| CurrentOwner { document, paths }).into_iter().collect()
        };
        Ok(conflicting.iter().map(of).collect())
    }

    async fn change_schema(&self, change: &SchemaChange) -> Result<Changed, SinkError> {
        let mut state = self.0.lock();
        state.changes.push(change.name());
        if let Some(looks) = &state.looks {
            looks();
        }
        if let (SchemaChange::Create { .. }, Some(error)) = (change, &state.create) {
            return Err(error.clone());
        }
        state.change.clone().unwrap_or(Ok(Changed::Done))
    }

    async fn drop_emptied(&self, _: &str) -> Result<bool, SinkError> {
        Ok(false)
    }

    async fn loosen(&self, _: &Namespace, _: &str) -> Result<bool, SinkError> {
        Ok(false)
    }

    async fn describe(&self, _: &Namespace) -> Result<Option<Description>, SinkError> {
        let is_there = self.0.lock().is_there;
        let series = rawdoc! { "name": "orders", "type": "timeseries" };
        Ok(is_there.then(|| Description::of(&series)))
    }

    async fn estimated_count(&self, _: &Namespace) -> Result<u64, SinkError> {
        Ok(self.0.lock().documents.len() as u64)
    }

    async fn alter(&self, _: &Namespace, _: RawDocumentBuf) -> Result<(), SinkError> {
        Ok(())
    }
}
