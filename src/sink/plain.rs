//! A sink that takes documents and no more, in the place of one that has collections of its own.

use bson::RawDocumentBuf;

use super::{Changed, ConflictingWrite, CurrentOwner, SchemaSink, Sink, SinkError, Write, Written};
use crate::{
    model::{event::SchemaChange, namespace::Namespace},
    schema::Description,
};

/// What is done to collections as such passes this sink by: it is taken to be done, and nothing is known of it.
pub struct WithoutSchema<K>(pub K);

impl<K: Sink> Sink for WithoutSchema<K> {
    async fn write(&self, ns: &Namespace, writes: &[Write<'_>]) -> Result<Vec<Written>, SinkError> {
        self.0.write(ns, writes).await
    }

    fn takes_changes(&self) -> bool {
        self.0.takes_changes()
    }
}

impl<K: Sink> SchemaSink for WithoutSchema<K> {
    fn carries_options(&self) -> bool {
        false
    }

    async fn owners(
        &self,
        _: &Namespace,
        conflicting: &[ConflictingWrite],
    ) -> Result<Vec<Vec<CurrentOwner>>, SinkError> {
        Ok(vec![Vec::new(); conflicting.len()])
    }

    /// What is renamed is not there under its new name, for all that is known: so it is given once more.
    async fn change_schema(&self, change: &SchemaChange) -> Result<Changed, SinkError> {
        Ok(match change {
            SchemaChange::Rename { .. } => Changed::WasNotThere,
            SchemaChange::Create { .. }
            | SchemaChange::Drop { .. }
            | SchemaChange::DropIfGone { .. }
            | SchemaChange::Reconcile { .. } => Changed::Done,
        })
    }

    async fn drop_emptied(&self, _: &str) -> Result<bool, SinkError> {
        Ok(false)
    }

    async fn loosen(&self, _: &Namespace, _: &str) -> Result<bool, SinkError> {
        Ok(false)
    }

    async fn describe(&self, _: &Namespace) -> Result<Option<Description>, SinkError> {
        Ok(None)
    }

    async fn estimated_count(&self, _: &Namespace) -> Result<u64, SinkError> {
        Ok(0)
    }

    async fn alter(&self, _: &Namespace, _: RawDocumentBuf) -> Result<(), SinkError> {
        Ok(())
    }
}
