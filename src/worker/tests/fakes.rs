//! A local database in memory, with the faults that a test asks for.

use std::{collections::BTreeMap, sync::Arc};

use bson::RawDocumentBuf;
use parking_lot::Mutex;

use crate::{
    gate::{Gate, Permit},
    model::{
        checkpoint::{ClusterTime, PositionKind},
        document_key::DocumentKey,
        event::CollectionId,
        namespace::Namespace,
        write_op::WriteOp,
    },
    mongo::MongoError,
    schema::Description,
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
    /// What every name is.
    described: Option<Description>,
    /// It keeps no documents, but what brings each up to date.
    renews: Option<WriteOp>,
    reads: usize,
    /// What the last read was to show at least.
    after: ClusterTime,
    /// What happens while documents are read.
    happens: Option<Box<dyn FnMut() + Send>>,
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
            described: None,
            renews: None,
            reads: 0,
            after: ClusterTime::default(),
            happens: None,
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

    pub fn is_described(&self, described: impl Into<Option<Description>>) {
        self.0.lock().described = described.into();
    }

    /// It shows no document, and brings each up to date by this.
    pub fn renews(&self, op: WriteOp) {
        self.0.lock().renews = Some(op);
    }

    /// How often documents were read.
    pub fn reads(&self) -> usize {
        self.0.lock().reads
    }

    /// What the last read was to show at least.
    pub fn was_read_after(&self) -> ClusterTime {
        self.0.lock().after
    }

    /// This happens whenever documents are read.
    pub fn while_it_is_read(&self, happens: impl FnMut() + Send + 'static) {
        self.0.lock().happens = Some(Box::new(happens));
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
        after: ClusterTime,
    ) -> Result<OnePage, SourceError> {
        let happens = self.0.lock().happens.take();
        if let Some(mut happens) = happens {
            happens();
            self.0.lock().happens.get_or_insert(happens);
        }
        self.ask(|state| {
            state.reads += 1;
            state.after = after;
            if state.is_exchanged {
                state.gate.close(&state.gate.permit(), "another process answers");
            }
            let found = keys.iter().filter_map(|key| state.documents.get(&key.canonical()));
            let documents = found.cloned().collect();
            OnePage(Some(Page { documents, read_at: state.time }))
        })
    }

    async fn renew(
        &self,
        _: &Namespace,
        keys: &[&DocumentKey],
    ) -> Result<Option<Vec<Option<WriteOp>>>, SourceError> {
        let Some(op) = self.0.lock().renews.clone() else { return Ok(None) };
        self.ask(|_| Some(vec![Some(op); keys.len()]))
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
        self.ask(|state| state.described.clone())
    }

    fn tells_of_schema(&self) -> bool {
        self.0.lock().tells_of_schema
    }

    async fn collection_id(&self, _: &Namespace) -> Result<Option<CollectionId>, SourceError> {
        self.ask(|state| Some(state.id))
    }
}
