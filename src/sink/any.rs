//! The sinks that an agent may have, as one: which it is was decided when the configuration was read.

use bson::RawDocumentBuf;
use futures_util::{FutureExt, future::BoxFuture};

use super::{
    AtlasSink, Changed, ConflictingWrite, CurrentOwner, SchemaSink, Sink, SinkError, WithoutSchema,
    Write, Written, postgres::PostgresSink,
};
use crate::{
    model::{event::SchemaChange, namespace::Namespace},
    schema::Description,
};

/// Each hands on what it is asked; none adds anything.
pub enum AnySink {
    Atlas(AtlasSink),
    Postgres(PostgresSink),
    Own(WithoutSchema<OwnSink>),
}

/// A [`Sink`] of the program's own, of whatever type.
pub struct OwnSink(Box<dyn BoxedSink>);

impl OwnSink {
    pub fn new(sink: impl Sink) -> Self {
        Self(Box::new(sink))
    }
}

/// A [`Sink`] whose futures have no type of their own.
trait BoxedSink: Send + Sync {
    fn write_boxed<'a>(
        &'a self,
        ns: &'a Namespace,
        writes: &'a [Write<'_>],
    ) -> BoxFuture<'a, Result<Vec<Written>, SinkError>>;

    fn takes_changes_boxed(&self) -> bool;
}

impl<K: Sink> BoxedSink for K {
    fn write_boxed<'a>(
        &'a self,
        ns: &'a Namespace,
        writes: &'a [Write<'_>],
    ) -> BoxFuture<'a, Result<Vec<Written>, SinkError>> {
        self.write(ns, writes).boxed()
    }

    fn takes_changes_boxed(&self) -> bool {
        self.takes_changes()
    }
}

impl Sink for OwnSink {
    async fn write(&self, ns: &Namespace, writes: &[Write<'_>]) -> Result<Vec<Written>, SinkError> {
        self.0.write_boxed(ns, writes).await
    }

    fn takes_changes(&self) -> bool {
        self.0.takes_changes_boxed()
    }
}

/// The same call, of whichever it is.
macro_rules! of_each {
    ($any:ident, $sink:ident => $call:expr) => {
        match $any {
            AnySink::Atlas($sink) => $call,
            AnySink::Postgres($sink) => $call,
            AnySink::Own($sink) => $call,
        }
    };
}

impl Sink for AnySink {
    async fn write(&self, ns: &Namespace, writes: &[Write<'_>]) -> Result<Vec<Written>, SinkError> {
        of_each!(self, sink => sink.write(ns, writes).await)
    }

    async fn write_changes(
        &self,
        ns: &Namespace,
        writes: &[Write<'_>],
        changed_ms: &[Option<u64>],
    ) -> Result<Vec<Written>, SinkError> {
        of_each!(self, sink => sink.write_changes(ns, writes, changed_ms).await)
    }

    fn takes_changes(&self) -> bool {
        of_each!(self, sink => sink.takes_changes())
    }
}

impl SchemaSink for AnySink {
    fn carries_options(&self) -> bool {
        of_each!(self, sink => sink.carries_options())
    }

    async fn owners(
        &self,
        ns: &Namespace,
        conflicting: &[ConflictingWrite],
    ) -> Result<Vec<Vec<CurrentOwner>>, SinkError> {
        of_each!(self, sink => sink.owners(ns, conflicting).await)
    }

    async fn change_schema(&self, change: &SchemaChange) -> Result<Changed, SinkError> {
        of_each!(self, sink => sink.change_schema(change).await)
    }

    async fn drop_emptied(&self, db: &str) -> Result<bool, SinkError> {
        of_each!(self, sink => sink.drop_emptied(db).await)
    }

    async fn loosen(&self, ns: &Namespace, index: &str) -> Result<bool, SinkError> {
        of_each!(self, sink => sink.loosen(ns, index).await)
    }

    async fn describe(&self, ns: &Namespace) -> Result<Option<Description>, SinkError> {
        of_each!(self, sink => sink.describe(ns).await)
    }

    async fn estimated_count(&self, ns: &Namespace) -> Result<u64, SinkError> {
        of_each!(self, sink => sink.estimated_count(ns).await)
    }

    async fn alter(&self, ns: &Namespace, command: RawDocumentBuf) -> Result<(), SinkError> {
        of_each!(self, sink => sink.alter(ns, command).await)
    }
}
