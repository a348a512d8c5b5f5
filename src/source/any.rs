//! The sources that an agent may have, as one: which it is was decided when the configuration was read.

use super::{
    ChangeStream, ChangeStreamSource, EventBatch, EventStream, Page, Pages, SchemaSource, Source,
    SourceError, StartFrom,
    outbox::{OutboxPages, OutboxSource, OutboxStream},
};
use crate::{
    gate::Permit,
    model::{
        checkpoint::{ClusterTime, PositionKind, ResumeToken},
        document_key::DocumentKey,
        event::CollectionId,
        namespace::Namespace,
        write_op::WriteOp,
    },
    schema::Description,
};

/// Each hands on what it is asked; none adds anything.
#[expect(
    clippy::large_enum_variant,
    reason = "there are few of them, and the large one is the usual one"
)]
pub enum AnySource {
    Mongo(ChangeStreamSource),
    Outbox(OutboxSource),
}

/// An open stream of one of them.
#[expect(
    clippy::large_enum_variant,
    reason = "there are few of them, and the large one is the usual one"
)]
pub enum AnyStream {
    Mongo(ChangeStream),
    Outbox(Box<OutboxStream>),
}

/// Documents of one of them.
#[expect(
    clippy::large_enum_variant,
    reason = "there are few of them, and the large one is the usual one"
)]
pub enum AnyPages {
    Mongo(<ChangeStreamSource as Source>::Pages),
    Outbox(OutboxPages),
}

/// The same call, of whichever source it is.
macro_rules! of_each {
    ($any:ident, $source:ident => $call:expr) => {
        match $any {
            AnySource::Mongo($source) => $call,
            AnySource::Outbox($source) => $call,
        }
    };
}

impl Source for AnySource {
    type Stream = AnyStream;
    type Pages = AnyPages;

    fn positions(&self) -> PositionKind {
        of_each!(self, source => source.positions())
    }

    async fn open(&self, from: &StartFrom) -> Result<AnyStream, SourceError> {
        Ok(match self {
            AnySource::Mongo(source) => AnyStream::Mongo(source.open(from).await?),
            AnySource::Outbox(source) => AnyStream::Outbox(Box::new(source.open(from).await?)),
        })
    }

    async fn read(
        &self,
        ns: &Namespace,
        keys: &[&DocumentKey],
        after: ClusterTime,
    ) -> Result<AnyPages, SourceError> {
        Ok(match self {
            AnySource::Mongo(source) => AnyPages::Mongo(source.read(ns, keys, after).await?),
            AnySource::Outbox(source) => AnyPages::Outbox(source.read(ns, keys, after).await?),
        })
    }

    async fn renew(
        &self,
        ns: &Namespace,
        keys: &[&DocumentKey],
    ) -> Result<Option<Vec<Option<WriteOp>>>, SourceError> {
        of_each!(self, source => source.renew(ns, keys).await)
    }

    fn is_own(&self, ns: &Namespace) -> bool {
        of_each!(self, source => source.is_own(ns))
    }

    async fn time(&self) -> Result<ClusterTime, SourceError> {
        of_each!(self, source => source.time().await)
    }

    fn permit(&self) -> Permit {
        of_each!(self, source => Source::permit(source))
    }

    async fn last_entry(&self) -> Result<Option<ClusterTime>, SourceError> {
        of_each!(self, source => source.last_entry().await)
    }
}

impl SchemaSource for AnySource {
    async fn describe(&self, ns: &Namespace) -> Result<Option<Description>, SourceError> {
        of_each!(self, source => source.describe(ns).await)
    }

    fn tells_of_schema(&self) -> bool {
        of_each!(self, source => source.tells_of_schema())
    }

    async fn collection_id(&self, ns: &Namespace) -> Result<Option<CollectionId>, SourceError> {
        of_each!(self, source => source.collection_id(ns).await)
    }
}

impl EventStream for AnyStream {
    async fn next(&mut self) -> Result<EventBatch, SourceError> {
        match self {
            AnyStream::Mongo(stream) => stream.next().await,
            AnyStream::Outbox(stream) => stream.next().await,
        }
    }

    fn keeps_unconfirmed(&self) -> bool {
        match self {
            AnyStream::Mongo(stream) => stream.keeps_unconfirmed(),
            AnyStream::Outbox(stream) => stream.keeps_unconfirmed(),
        }
    }

    async fn confirm(&mut self, position: &ResumeToken) -> Result<(), SourceError> {
        match self {
            AnyStream::Mongo(stream) => stream.confirm(position).await,
            AnyStream::Outbox(stream) => stream.confirm(position).await,
        }
    }
}

impl Pages for AnyPages {
    async fn next(&mut self) -> Result<Option<Page>, SourceError> {
        match self {
            AnyPages::Mongo(pages) => pages.next().await,
            AnyPages::Outbox(pages) => pages.next().await,
        }
    }
}
