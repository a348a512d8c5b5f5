//! A run: what it is about, how far it is, what it could not do. What it does with that are the [stages](super::stages).

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use parking_lot::{Mutex, MutexGuard};

use super::{
    plan::{Plan, Scope},
    plans::Plans,
    refusals::note_refused,
};
use crate::{
    gate::Permit,
    model::{checkpoint::ClusterTime, event::SchemaChange, namespace::Namespace},
    observe::{
        progress::{Share, ShareState},
        report::one_line,
    },
    runtime::{
        clock,
        shutdown::{Stop, blocking},
    },
    sink::{Changed, SchemaSink, SinkError},
    sync::{
        Collection, Context, Listing, SyncError,
        deletes::DeleteLimit,
        pause,
        state::{SyncRequest, SyncState},
    },
};

/// How often to look whether a barrier is gone, the stream has come so far, or the queue has drained.
pub(super) const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// How long an owed run waits before it tries again what a server would not do.
pub(super) const FAILED_WAIT: Duration = Duration::from_secs(60);

/// The run in hand.
pub(super) struct Run<'a, K> {
    pub cx: &'a Context<K>,
    pub plan: Plan,
    pub scope: Scope,
    pub plans: Plans,
    /// As it was asked for; of what is owed, what holds where nothing is said.
    pub request: SyncRequest,
    /// Local reads show no older state.
    pub after: ClusterTime,
    pub deletes: DeleteLimit,
    /// Entries that may be ready in the queue before a comparison waits.
    pub queue_max: u64,
    pub stop: &'a Stop,
    /// What a server would not do, a sentence each.
    failed: Mutex<Vec<String>>,
    /// Bytes that Atlas had sent when the run began.
    received_before: u64,
    /// See [`ends`](Self::ends).
    is_ending: AtomicBool,
}

impl<'a, K> Run<'a, K> {
    pub fn new(
        cx: &'a Context<K>,
        state: SyncState,
        (deletes, queue_max): (DeleteLimit, u64),
        stop: &'a Stop,
    ) -> Self {
        Self {
            cx,
            plan: Plan::of(&state),
            scope: Scope::of(&state, &cx.filter),
            request: state.request.clone().unwrap_or_default(),
            after: state.after(),
            deletes,
            queue_max,
            stop,
            failed: Mutex::default(),
            received_before: cx.sides.atlas.received(),
            is_ending: AtomicBool::new(false),
            plans: Plans::new(cx.queue.clone(), state),
        }
    }

    pub fn is_dry(&self) -> bool {
        self.request.dry_run
    }

    /// All of it is done: from here on it is the run itself that removes its note.
    pub fn ends(&self) {
        self.is_ending.store(true, Ordering::Release);
    }

    pub fn is_ending(&self) -> bool {
        self.is_ending.load(Ordering::Acquire)
    }

    /// Bytes that Atlas has sent for it.
    pub fn received(&self) -> u64 {
        self.cx.sides.atlas.received().saturating_sub(self.received_before)
    }

    /// Changes what is shown of a collection.
    pub fn share(&self, ns: &Namespace, change: impl FnOnce(&mut Share)) {
        self.cx.in_hand.meets(ns);
        if let Some(progress) = &mut self.cx.status.state().sync {
            change(progress.share(ns));
        }
    }

    pub fn set_state(&self, ns: &Namespace, state: ShareState) {
        self.share(ns, |share| share.state = state);
        self.cx.in_hand.is_through(ns, state == ShareState::Done);
    }

    /// Options and indexes of it differ.
    pub fn note_schema(&self, ns: &Namespace, sentences: &[String]) {
        self.share(ns, |share| {
            let noted = &mut share.schema;
            let new: Vec<_> = sentences.iter().filter(|said| !noted.contains(said)).collect();
            noted.extend(new.into_iter().cloned());
        });
    }

    /// True when the local database still has this very collection under its name.
    pub async fn is_still(&self, collection: &Collection) -> Result<bool, SyncError> {
        Ok(self.cx.still(&collection.ns, collection.id, self.stop).await?.is_some())
    }

    /// All that the local database has of what is replicated.
    pub async fn source_listing(&self) -> Result<Listing, SyncError>
    where
        K: SchemaSink,
    {
        let message = "the local collections cannot be listed yet";
        let listing =
            self.cx.retrying(self.stop, message, || Box::pin(self.cx.source_listing())).await?;
        self.cx.note_left_out(&listing);
        Ok(listing)
    }

    /// As [`source_listing`](Self::source_listing), of Atlas.
    pub async fn target_listing(&self) -> Result<Listing, SyncError>
    where
        K: SchemaSink,
    {
        let message = "Atlas cannot be compared yet";
        self.cx.retrying(self.stop, message, || Box::pin(self.cx.target_listing())).await
    }

    /// Waits until all that was committed until `time` has been read into the queue.
    pub async fn until_read(&self, time: ClusterTime) -> Result<(), SyncError> {
        while !self.cx.reading.position().has_read(time) {
            pause(self.stop, LOOK_AGAIN).await?;
        }
        Ok(())
    }

    /// What a server will not do in one collection keeps the others away from nothing. It counts as not
    /// done.
    pub fn unless_refused<T: Default>(
        &self,
        ns: &Namespace,
        result: Result<T, SyncError>,
    ) -> Result<T, SyncError> {
        match result {
            Err(error) if error.is_rejected() => {
                let error = one_line(&error);
                tracing::error!(%ns, error, "the collection cannot be copied or compared");
                self.cx.queue.release(ns);
                let (said, mut failed) = (format!("`{ns}`: {error}"), self.failed());
                if !failed.contains(&said) {
                    failed.push(said);
                }
                Ok(T::default())
            }
            result => result,
        }
    }

    /// One attempt at a change of Atlas, as long as the permit holds under which its reason was looked at. What may
    /// still come of one that failed is noted.
    ///
    /// # Errors
    /// [`SyncError::Outdated`] when the reason is to be looked at again; [`SyncError::Stopped`].
    pub async fn try_change(
        &self,
        change: &SchemaChange,
        permit: &Permit,
    ) -> Result<Result<Changed, SinkError>, SyncError>
    where
        K: SchemaSink,
    {
        self.cx.may_write(self.stop).await?;
        if !permit.holds() {
            return Err(SyncError::Outdated);
        }
        let made = self.cx.sink.change_schema(change).await;
        if let Err(error) = &made {
            error.note_change(change, &mut self.cx.in_doubt(), clock::now());
        }
        Ok(made)
    }

    /// Takes what no server would do, a sentence each.
    pub fn take_failed(&self) -> Vec<String> {
        std::mem::take(&mut *self.failed())
    }

    fn failed(&self) -> MutexGuard<'_, Vec<String>> {
        self.failed.lock()
    }

    /// A mass delete is refused. Said at once: a conflict with one of the documents waits for nothing then.
    pub async fn refuse(&self, ns: &Namespace) -> Result<(), SyncError> {
        {
            let mut state = self.cx.status.state();
            let share = state.sync.as_mut().map(|progress| progress.share(ns));
            let extra = share.map_or(0, |share| {
                share.mass_delete_refused = true;
                share.extra
            });
            tracing::error!(
                %ns, extra,
                "Atlas holds many documents that the local database does not; none of them is deleted"
            );
        }
        if self.is_dry() {
            return Ok(());
        }
        let (queue, noted) = (self.cx.queue.clone(), self.cx.writing.refuse_deletes(ns));
        Ok(blocking(move || note_refused(&queue, &noted)).await?)
    }

    /// Those of which that was said.
    pub fn refused_in_progress(&self) -> Vec<String> {
        let state = self.cx.status.state();
        let shares = state.sync.as_ref().map(|progress| progress.shares.iter());
        let refused = shares.into_iter().flatten().filter(|(_, share)| share.mass_delete_refused);
        refused.map(|(ns, _)| ns.to_string()).collect()
    }
}
