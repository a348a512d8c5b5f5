//! The database as it is written: as a server does it, and without the answer where a test wants it so.

use bson::RawDocumentBuf;

use super::{Failure, FakeDatabase};
use crate::{
    model::{
        document_key::DocumentKey, event::SchemaChange, namespace::Namespace, write_op::Refusal,
    },
    schema::{Description, Kind},
    sink::{Changed, ConflictingWrite, CurrentOwner, SchemaSink, Sink, SinkError, Write, Written},
};

pub fn error(failure: Failure) -> SinkError {
    let words = "the server says so".to_owned();
    match failure {
        Failure::Away => SinkError::Unavailable(words),
        Failure::Unanswered => SinkError::Unanswered(words),
        Failure::Refused => SinkError::Rejected(words),
        Failure::Denied => SinkError::Denied(words),
        Failure::Overtaken => SinkError::Gone(words),
    }
}

fn id(key: &DocumentKey) -> i32 {
    key.filter().get_i32("_id").expect("its keys are numbers")
}

impl FakeDatabase {
    /// What comes of a change that ends with `failure`, if it does.
    fn ends<T>(failure: Option<Failure>, change: impl FnOnce() -> T) -> Result<T, SinkError> {
        match failure {
            None => Ok(change()),
            Some(Failure::Unanswered) => {
                change();
                Err(error(Failure::Unanswered))
            }
            Some(failure) => Err(error(failure)),
        }
    }

    fn put(&self, ns: &Namespace, write: &Write<'_>) -> Written {
        let (collection, key) = (self.of(ns), write.key().expect("it has an `_id`"));
        if self.lock().odd.contains(&id(&key)) {
            return Written::Rejected { reason: "too large".to_owned(), refusal: Refusal::Other };
        }
        match write {
            Write::Insert(_) if collection.get(&key).is_some() => Written::AlreadyThere,
            Write::Insert(document) | Write::Upsert { document, .. } => {
                Written::Applied { created: collection.put(document) }
            }
            Write::Delete(_) => {
                collection.remove(&key);
                Written::Applied { created: false }
            }
            Write::Change { .. } | Write::Merge { .. } => {
                panic!("a sync writes whole documents: {write:?}")
            }
        }
    }

    fn change(&self, change: &SchemaChange) -> Changed {
        match change {
            SchemaChange::Create { ns, options } => match self.schemas.get(ns) {
                Some(there) if there.kind == Kind::Collection && there.options == *options => {}
                Some(there) if there.kind == Kind::Collection => return Changed::Differs,
                _ if options.get("viewOn").is_ok_and(|on| on.is_some()) => {
                    let on = options.get_str("viewOn").expect("a name").to_owned();
                    self.has_view(ns, &on);
                }
                _ => drop(self.has(ns, options.clone())),
            },
            SchemaChange::Drop { ns } | SchemaChange::DropIfGone { ns } => self.drops(ns),
            SchemaChange::Rename { from, .. } if !self.is_there(from) => {
                return Changed::WasNotThere;
            }
            SchemaChange::Rename { from, to, .. } => self.renames(from, to),
            SchemaChange::Reconcile { .. } => {}
        }
        Changed::Done
    }
}

impl Sink for FakeDatabase {
    async fn write(&self, ns: &Namespace, writes: &[Write<'_>]) -> Result<Vec<Written>, SinkError> {
        let failure = self.hears(&format!("write {ns}"));
        Self::ends(failure, || {
            // As a server makes it for the first document.
            if !self.is_there(ns) {
                self.has(ns, RawDocumentBuf::new());
            }
            writes.iter().map(|write| self.put(ns, write)).collect()
        })
    }
}

impl SchemaSink for FakeDatabase {
    async fn owners(
        &self,
        _: &Namespace,
        conflicting: &[ConflictingWrite],
    ) -> Result<Vec<Vec<CurrentOwner>>, SinkError> {
        Ok(vec![Vec::new(); conflicting.len()])
    }

    async fn change_schema(&self, change: &SchemaChange) -> Result<Changed, SinkError> {
        let failure = self.hears(&format!("{} {}", change.name(), change.ns()));
        Self::ends(failure, || self.change(change))
    }

    async fn drop_emptied(&self, _: &str) -> Result<bool, SinkError> {
        Ok(true)
    }

    async fn loosen(&self, _: &Namespace, _: &str) -> Result<bool, SinkError> {
        Ok(false)
    }

    async fn describe(&self, ns: &Namespace) -> Result<Option<Description>, SinkError> {
        Ok(self.schemas.get(ns))
    }

    async fn estimated_count(&self, ns: &Namespace) -> Result<u64, SinkError> {
        Ok(self.of(ns).counted())
    }

    async fn alter(&self, _: &Namespace, _: RawDocumentBuf) -> Result<(), SinkError> {
        Ok(())
    }
}
