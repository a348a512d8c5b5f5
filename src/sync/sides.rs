//! Both ends, read within bounds and with patience.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::{StreamExt, TryStreamExt, future::BoxFuture, stream};
use parking_lot::Mutex;
use tokio::sync::{Semaphore, SemaphorePermit};

use super::{SyncError, pause};
use crate::{
    gate::{Permit, faults::Fault, lease::Lease},
    model::namespace::Namespace,
    observe::status::Status,
    policy::{backoff::OutageWait, limiter::Limiter},
    runtime::{clock, shutdown::Stop},
    side::Side,
    sink::{SinkError, may_write},
    source::SourceError,
};

/// What is read from, and how fast and how stubbornly.
pub struct Sides {
    pub local: Arc<dyn Side>,
    pub atlas: Arc<dyn Side>,
    /// Of documents that are read from the local database.
    reads: Mutex<Limiter>,
    /// Where an end that is away is shown.
    pub status: Option<Arc<Status>>,
    /// Of the lease in Atlas, where one is kept.
    pub lease: Option<Arc<Lease>>,
    /// How long an end may be away before that is an error; `None` for ever.
    pub patience: Option<Duration>,
    parallel: usize,
    /// Ranges that are worked on at the same time, over all collections.
    slots: Semaphore,
    /// Kilobytes of documents that are being copied. Each stands in memory up to five times meanwhile: in the
    /// reply, in the command, and in what the driver makes of that.
    copying: Semaphore,
}

/// How often to look whether the local database is proven.
const PROOF_CHECK: Duration = Duration::from_millis(100);

/// More than the largest reply of a server (16 MiB).
const COPYING_KB: usize = 32 << 10;

impl Sides {
    /// With `parallel` ranges at the same time, and so many reads per second from the local database; 0
    /// for no limit.
    pub fn new(
        local: Arc<dyn Side>,
        atlas: Arc<dyn Side>,
        parallel: usize,
        reads_per_second: u64,
    ) -> Self {
        Self {
            local,
            atlas,
            reads: Mutex::new(Limiter::new(reads_per_second, 0)),
            status: None,
            lease: None,
            patience: None,
            parallel: parallel.max(1),
            slots: Semaphore::new(parallel.max(1)),
            copying: Semaphore::new(COPYING_KB),
        }
    }

    /// Runs `work` for each item, several at the same time.
    pub async fn each<'a, I, T: Send + 'a>(
        &'a self,
        items: Vec<I>,
        work: impl FnMut(I) -> BoxFuture<'a, Result<T, SyncError>>,
    ) -> Result<Vec<T>, SyncError> {
        self.each_or(items, work).await
    }

    /// As [`each`](Self::each), with failures of another kind.
    pub async fn each_or<'a, I, T: Send + 'a, E: Send + 'a>(
        &'a self,
        items: Vec<I>,
        work: impl FnMut(I) -> BoxFuture<'a, Result<T, E>>,
    ) -> Result<Vec<T>, E> {
        let work: Vec<_> = items.into_iter().map(work).collect();
        stream::iter(work).buffer_unordered(self.parallel).try_collect().await
    }

    /// The right to work on a range.
    pub async fn slot(&self) -> SemaphorePermit<'_> {
        self.slots.acquire().await.expect("the semaphore is never closed")
    }

    /// The right to hold a reply of so many bytes while it is written.
    pub async fn copying(&self, bytes: usize) -> SemaphorePermit<'_> {
        let kilobytes = (bytes >> 10).clamp(1, COPYING_KB) as u32;
        self.copying.acquire_many(kilobytes).await.expect("the semaphore is never closed")
    }

    /// Documents that a page of the local database may have, of so many at the most.
    pub fn page_max(&self, page: u32) -> u32 {
        let most = self.reads.lock().ops_max(page as usize);
        u32::try_from(most).unwrap_or(page)
    }

    /// Waits until so many documents may be read from the local database.
    pub async fn throttle(&self, documents: usize, stop: &Stop) -> Result<(), SyncError> {
        let wait = {
            let mut reads = self.reads.lock();
            reads.throttle(clock::now(), documents, 0)
        };
        if stop.is_draining() {
            return Err(SyncError::Stopped);
        }
        if wait.is_zero() { Ok(()) } else { pause(stop, wait).await }
    }

    /// A permit that holds when it is given: what is read of the local database from here on is written as long as
    /// it does. Waits for the proof.
    pub async fn proven(&self, stop: &Stop) -> Result<Permit, SyncError> {
        loop {
            let permit = self.local.permit();
            if permit.holds() {
                return Ok(permit);
            }
            pause(stop, PROOF_CHECK).await?;
        }
    }

    /// For something that is tried until it works.
    pub fn attempts<'a>(&'a self, stop: &'a Stop) -> Attempts<'a> {
        let wait = OutageWait::new(Duration::from_millis(500), Duration::from_secs(15));
        Attempts {
            sides: self,
            stop,
            wait,
            since: None,
            is_told: false,
            refusals: 0,
            overtaken: 0,
            refusals_max: REFUSALS_MAX,
            ns: None,
            message: "a sync is interrupted, and goes on when that is over",
        }
    }
}

/// How often a refusal is met before it is believed.
const REFUSALS_MAX: u32 = 4;

/// How often in a row a collection may have changed before a read of it got anywhere. Each time takes a drop or a
/// rename just then; what is answered more often, over a quarter of a minute, is how the server answers to this read.
const OVERTAKEN_MAX: u32 = 5;

/// One thing that is tried until it works, or until it never will.
pub struct Attempts<'a> {
    sides: &'a Sides,
    stop: &'a Stop,
    wait: OutageWait,
    since: Option<Instant>,
    is_told: bool,
    refusals: u32,
    overtaken: u32,
    refusals_max: u32,
    ns: Option<&'a Namespace>,
    message: &'static str,
}

impl<'a> Attempts<'a> {
    /// Named where it is told what has become of the collection.
    #[must_use]
    pub fn reading(mut self, ns: &'a Namespace) -> Self {
        self.ns = Some(ns);
        self
    }

    /// Refusals are not believed either; `message` is what is logged of the first failure.
    #[must_use]
    pub fn without_end(mut self, message: &'static str) -> Self {
        self.message = message;
        self.refusals_max = u32::MAX;
        self
    }

    /// Waits for the next attempt.
    ///
    /// # Errors
    /// The error itself, when waiting does not help or patience has ended; [`SyncError::Stopped`].
    pub async fn failed(&mut self, error: impl Into<SyncError>) -> Result<(), SyncError> {
        let error = self.unless_changing(error.into());
        let since = *self.since.get_or_insert_with(clock::now);
        // A person who waits wants to know; the agent goes on until somebody has mended it.
        let is_over = self
            .sides
            .patience
            .is_some_and(|patience| clock::since(since) > patience || !error.is_unavailable());
        // A server that has understood and will not is asked some times more, and then no more.
        self.refusals += u32::from(error.is_rejected());
        if !error.is_transient() || is_over || self.refusals > self.refusals_max {
            return Err(error);
        }
        if error.is_overtaken() {
            // No outage: the stream tells what has become of it, and what comes of that is in the queue.
            let (ns, error) =
                (self.ns.map(tracing::field::display), crate::observe::report::one_line(&error));
            tracing::info!(ns, %error, "a collection changed while a sync read it, and is read on as it is now");
        } else if !std::mem::replace(&mut self.is_told, true) {
            tracing::warn!(error = %crate::observe::report::one_line(&error), "{}", self.message);
        }
        if let (Some(status), SyncError::Sink(error)) = (&self.sides.status, &error) {
            status.faults.atlas.fails(Fault::from(error));
        }
        pause(self.stop, self.wait.next_wait()).await
    }

    /// A collection that is said to have changed again and again has not: it is a refusal then.
    fn unless_changing(&mut self, error: SyncError) -> SyncError {
        match error {
            SyncError::Source(SourceError::Overtaken { source, .. })
                if self.overtaken >= OVERTAKEN_MAX =>
            {
                self.refusals = self.refusals.max(REFUSALS_MAX);
                SourceError::Failed(source).into()
            }
            error => {
                self.overtaken += u32::from(error.is_overtaken());
                error
            }
        }
    }

    /// It worked.
    pub fn succeeded(&mut self) {
        self.overtaken = 0;
        if self.since.take().is_some() {
            self.wait.reset();
            if let Some(status) = &self.sides.status {
                status.faults.atlas.answers();
            }
        }
    }
}

/// Which of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SideName {
    Local,
    Atlas,
}

impl Sides {
    /// To be asked right before something is changed there, other than through the sink.
    ///
    /// # Errors
    /// When it is Atlas, and the lease is not young enough.
    pub fn may_alter(&self, end: SideName) -> Result<(), SinkError> {
        match (end, &self.lease) {
            (SideName::Atlas, Some(lease)) => may_write(lease),
            (SideName::Atlas, None) | (SideName::Local, _) => Ok(()),
        }
    }

    pub fn of(&self, end: SideName) -> &dyn Side {
        match end {
            SideName::Local => &*self.local,
            SideName::Atlas => &*self.atlas,
        }
    }
}

/// Asks one of the ends until it answers: `ask!(ends, stop, expression)`.
macro_rules! ask {
    ($sides:expr, $stop:expr, $exchange:expr) => {{
        let mut attempts = $sides.attempts($stop);
        loop {
            match $exchange.await {
                Ok(answer) => {
                    attempts.succeeded();
                    break answer;
                }
                Err(error) => attempts.failed(error).await?,
            }
        }
    }};
}
pub(super) use ask;

#[cfg(test)]
mod tests;
