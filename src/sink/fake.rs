//! A sink for tests of what stands before the seam: an Atlas in memory, with the faults that a test asks for.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use bson::{RawDocument, RawDocumentBuf, rawdoc};
use parking_lot::Mutex;

use super::*;
use crate::{model::document_key::DocumentKey, runtime::clock, schema::Kind};

/// Its field `u` is unique, and the `_id`s are numbers.
#[derive(Default)]
pub struct FakeSink(Mutex<State>);

#[derive(Default)]
struct State {
    documents: BTreeMap<Vec<u8>, RawDocumentBuf>,
    /// What each write was, in their order.
    written: Vec<(&'static str, i32)>,
    /// How many documents each command was of, and when it came.
    commands: Vec<(Instant, usize)>,
    /// How long each command takes.
    takes: Duration,
    /// All that it answers, while it is set.
    fault: Option<SinkError>,
    /// Documents that it takes neither alone nor among others.
    odd: BTreeSet<Vec<u8>>,
    takes_no_changes: bool,
    change: Option<Result<Changed, SinkError>>,
    create: Option<SinkError>,
    /// What has the name that it is asked for.
    there: Option<Description>,
    /// The names of the commands that alter a collection.
    altered: Vec<String>,
    /// When the documents of the writes were changed, in the order of the writes.
    changed_ms: Vec<Option<u64>>,
    /// An index that is only prepared to become unique keeps all documents out.
    is_prepared: bool,
    /// How often documents were counted.
    counts: usize,
    changes: Vec<&'static str>,
    /// Databases.
    dropped: Vec<String>,
    looks: Option<Box<dyn Fn() + Send>>,
}

impl FakeSink {
    pub fn has(&self, document: RawDocumentBuf) {
        let key = DocumentKey::of(&document).expect("it has an `_id`").canonical();
        self.0.lock().documents.insert(key, document);
    }

    pub fn fails_with(&self, fault: impl Into<Option<SinkError>>) {
        self.0.lock().fault = fault.into();
    }

    pub fn refuses_commands_with(&self, id: i32) {
        self.0
            .lock()
            .odd
            .insert(DocumentKey::of(&rawdoc! { "_id": id }).expect("it has an `_id`").canonical());
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

    /// A time series has the name, or nothing.
    pub fn has_something_else_there(&self, is_there: bool) {
        let series = rawdoc! { "name": "orders", "type": "timeseries" };
        self.is_described(is_there.then(|| Description::of(&series)));
    }

    pub fn is_described(&self, there: impl Into<Option<Description>>) {
        self.0.lock().there = there.into();
    }

    /// An index that is prepared to become unique keeps all documents out, until it is loosened.
    pub fn is_prepared(&self) {
        self.0.lock().is_prepared = true;
    }

    /// When the documents that it was sent were changed, in the order of the writes.
    pub fn changed_ms(&self) -> Vec<Option<u64>> {
        self.0.lock().changed_ms.clone()
    }

    /// How often it was asked for the number of documents.
    pub fn counts(&self) -> usize {
        self.0.lock().counts
    }

    /// The commands that alter a collection, in their order.
    pub fn altered(&self) -> Vec<String> {
        self.0.lock().altered.clone()
    }

    pub fn documents(&self) -> Vec<RawDocumentBuf> {
        self.0.lock().documents.values().cloned().collect()
    }

    /// The kinds of the writes that it was sent, in their order.
    pub fn written(&self) -> Vec<&'static str> {
        self.0.lock().written.iter().map(|(kind, _)| *kind).collect()
    }

    /// The same, with the `_id` of each.
    pub fn written_ids(&self) -> Vec<(&'static str, i32)> {
        self.0.lock().written.clone()
    }

    /// Each command takes so long.
    pub fn takes(&self, so_long: Duration) {
        self.0.lock().takes = so_long;
    }

    /// In which second after `start` each command came, and of how many documents it was.
    pub fn commands(&self, start: Instant) -> Vec<(u64, usize)> {
        let since = |(at, documents): &(Instant, usize)| ((*at - start).as_secs(), *documents);
        self.0.lock().commands.iter().map(since).collect()
    }

    /// Looked at, while a change is made.
    pub fn while_it_changes(&self, looks: impl Fn() + Send + 'static) {
        self.0.lock().looks = Some(Box::new(looks));
    }

    /// The databases that were dropped for want of anything in them.
    pub fn dropped(&self) -> Vec<String> {
        self.0.lock().dropped.clone()
    }

    /// The schema changes that it was sent, in their order.
    pub fn changes(&self) -> Vec<&'static str> {
        self.0.lock().changes.clone()
    }
}

impl State {
    /// Another document that holds its `u`.
    fn owner(&self, document: &RawDocument) -> Option<&RawDocumentBuf> {
        let value = document.get_str("u").ok()?;
        let own = DocumentKey::of(document).expect("it has an `_id`").canonical();
        let holds = |other: &RawDocumentBuf| other.get_str("u").is_ok_and(|held| held == value);
        self.documents.iter().find(|(key, other)| **key != own && holds(other)).map(|found| found.1)
    }

    fn put(&mut self, key: Vec<u8>, document: &RawDocument) -> Written {
        if self.is_prepared || self.owner(document).is_some() {
            let taken = Taken { index: Some("u_1".to_owned()), key: None };
            return Written::Conflict { reason: "u is taken".to_owned(), taken };
        }
        let created = self.documents.insert(key, document.to_owned()).is_none();
        Written::Applied { created }
    }

    fn write(&mut self, write: &Write<'_>) -> Written {
        let key = write.key().expect("it has an `_id`").canonical();
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
        let id = write.key().and_then(|key| key.value().ok()?.as_i32());
        self.written.push((kind, id.unwrap_or_default()));
        written
    }
}

impl Sink for FakeSink {
    async fn write(&self, _: &Namespace, writes: &[Write<'_>]) -> Result<Vec<Written>, SinkError> {
        let takes = {
            let mut state = self.0.lock();
            state.commands.push((clock::now(), writes.len()));
            state.takes
        };
        tokio::time::sleep(takes).await;
        let mut state = self.0.lock();
        if let Some(fault) = &state.fault {
            return Err(fault.clone());
        }
        let is_odd = |write: &Write<'_>| {
            state.odd.contains(&write.key().expect("it has an `_id`").canonical())
        };
        if writes.iter().any(is_odd) {
            return Err(SinkError::Rejected("what is this".to_owned()));
        }
        Ok(writes.iter().map(|write| state.write(write)).collect())
    }

    async fn write_changes(
        &self,
        ns: &Namespace,
        writes: &[Write<'_>],
        changed_ms: &[Option<u64>],
    ) -> Result<Vec<Written>, SinkError> {
        self.0.lock().changed_ms.extend(changed_ms);
        self.write(ns, writes).await
    }

    fn takes_changes(&self) -> bool {
        !self.0.lock().takes_no_changes
    }
}

impl SchemaSink for FakeSink {
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
        // The collection takes the place of a view, or of what has gone.
        if matches!(change, SchemaChange::Create { .. })
            && (matches!(&state.there, Some(there) if there.kind == Kind::View)
                || matches!(state.fault, Some(SinkError::Gone(_))))
        {
            (state.there, state.fault) = (None, None);
        }
        state.change.clone().unwrap_or(Ok(Changed::Done))
    }

    async fn drop_emptied(&self, db: &str) -> Result<bool, SinkError> {
        let mut state = self.0.lock();
        if let Some(fault) = &state.fault {
            return Err(fault.clone());
        }
        state.dropped.push(db.to_owned());
        Ok(true)
    }

    async fn loosen(&self, _: &Namespace, _: &str) -> Result<bool, SinkError> {
        Ok(std::mem::take(&mut self.0.lock().is_prepared))
    }

    async fn describe(&self, _: &Namespace) -> Result<Option<Description>, SinkError> {
        Ok(self.0.lock().there.clone())
    }

    async fn estimated_count(&self, _: &Namespace) -> Result<u64, SinkError> {
        let mut state = self.0.lock();
        state.counts += 1;
        Ok(state.documents.len() as u64)
    }

    async fn alter(&self, _: &Namespace, command: RawDocumentBuf) -> Result<(), SinkError> {
        let name = command.iter().next().and_then(Result::ok).map(|(name, _)| name.to_string());
        self.0.lock().altered.extend(name);
        Ok(())
    }
}
