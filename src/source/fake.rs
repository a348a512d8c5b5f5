//! A source for tests of what stands behind the seam: a stream that says what it is told to.

use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, Instant},
};

use bson::{RawDocumentBuf, rawdoc};
use parking_lot::Mutex;

use super::*;
use crate::runtime::clock;

/// The collection that every name of it has.
pub const COLLECTION: CollectionId = CollectionId([7; 16]);

#[derive(Default)]
pub struct FakeSource {
    /// What its streams hand out, in this order.
    pub batches: Arc<Mutex<VecDeque<EventBatch>>>,
    /// How long each batch takes to come.
    pub every: Duration,
    /// When all is handed out a stream is silent until there is more, and does not break.
    pub goes_on: bool,
    /// Each attempt to open a stream, and when it was made.
    pub opened: Mutex<Vec<(Instant, StartFrom)>>,
    /// Why a stream cannot be opened there.
    pub refuses: Mutex<Option<Refuses>>,
    /// Hears of each confirmation, where the source keeps what is not confirmed; false when it does not get through.
    pub confirmed: Option<Confirmed>,
}

pub type Refuses = Box<dyn Fn(&StartFrom) -> Option<SourceError> + Send>;

type Confirmed = Arc<dyn Fn(&ResumeToken) -> bool + Send + Sync>;

/// Ends with an error once everything is handed out, unless it [goes on](FakeSource::goes_on).
pub struct FakeStream {
    batches: Arc<Mutex<VecDeque<EventBatch>>>,
    every: Duration,
    goes_on: bool,
    confirmed: Option<Confirmed>,
}

impl EventStream for FakeStream {
    async fn next(&mut self) -> Result<EventBatch, SourceError> {
        tokio::time::sleep(self.every).await;
        loop {
            let next = self.batches.lock().pop_front();
            match next {
                Some(batch) => return Ok(batch),
                None if self.goes_on => tokio::time::sleep(Duration::from_millis(10)).await,
                None => return Err(away()),
            }
        }
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

pub fn away() -> SourceError {
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

    async fn open(&self, from: &StartFrom) -> Result<FakeStream, SourceError> {
        self.opened.lock().push((clock::now(), from.clone()));
        if let Some(error) = self.refuses.lock().as_ref().and_then(|refuses| refuses(from)) {
            return Err(error);
        }
        Ok(FakeStream {
            batches: self.batches.clone(),
            every: self.every,
            goes_on: self.goes_on,
            confirmed: self.confirmed.clone(),
        })
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
