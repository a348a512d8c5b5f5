//! A source for tests of what stands behind the seam: a stream that says what it is told to.

use std::{collections::VecDeque, sync::Arc};

use bson::{RawDocumentBuf, rawdoc};
use parking_lot::Mutex;

use super::*;

/// The collection that every name of it has.
pub const COLLECTION: CollectionId = CollectionId([7; 16]);

#[derive(Default)]
pub struct FakeSource {
    /// What the next stream hands out.
    pub batches: Mutex<VecDeque<EventBatch>>,
    /// Hears of each confirmation, where the source keeps what is not confirmed; false when it does not get through.
    pub confirmed: Option<Confirmed>,
}

type Confirmed = Arc<dyn Fn(&ResumeToken) -> bool + Send + Sync>;

/// Ends with an error once everything is handed out.
pub struct FakeStream {
    batches: VecDeque<EventBatch>,
    confirmed: Option<Confirmed>,
}

impl EventStream for FakeStream {
    async fn next(&mut self) -> Result<EventBatch, SourceError> {
        self.batches.pop_front().ok_or_else(away)
    }

    fn keeps_unconfirmed(&self) -> bool {
        self.confirmed.is_some()
    }

    async fn confirm(&mut self, position: &ResumeToken) -> Result<(), SourceError> {
        match &self.confirmed {
            Some(confirmed) if confirmed(position) => Ok(()),
            _ => Err(away()),
        }
    }
}

fn away() -> SourceError {
    SourceError::Unavailable(Cause::Other("nothing more is told".to_owned()))
}

/// There are no documents.
pub struct FakePages;

impl Pages for FakePages {
    async fn next(&mut self) -> Result<Option<Page>, SourceError> {
        Ok(None)
    }
}

impl Source for FakeSource {
    type Stream = FakeStream;
    type Pages = FakePages;

    fn positions(&self) -> PositionKind {
        PositionKind::named("number of a batch")
    }

    async fn open(&self, _: &StartFrom) -> Result<FakeStream, SourceError> {
        let batches = std::mem::take(&mut *self.batches.lock());
        Ok(FakeStream { batches, confirmed: self.confirmed.clone() })
    }

    async fn read(
        &self,
        _: &Namespace,
        _: &[&DocumentKey],
        _: ClusterTime,
    ) -> Result<FakePages, SourceError> {
        Ok(FakePages)
    }

    async fn time(&self) -> Result<ClusterTime, SourceError> {
        Ok(ClusterTime(1))
    }
}

/// A document of this id and value.
pub fn document(id: i32, v: i32) -> RawDocumentBuf {
    rawdoc! { "_id": id, "v": v }
}
