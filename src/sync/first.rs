//! The first copy of a collection, and the notes that let it go on where it was.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Mutex;

use super::{
    Collection, Reconciler, SyncError,
    copy::{Copier, Ledger, ThereAlready, Unit},
    ends::{End, ask},
    pause,
    range::{KeyRange, Order, Size, splits},
    repair::MASS_DELETE_MIN,
    run::Run,
    schema::{indexes_of, mend, unique_builds},
};
use crate::{
    gate::Permit,
    model::{
        checkpoint::ClusterTime,
        document_key::DocumentKey,
        event::{CollectionId, SchemaChange},
        namespace::Namespace,
    },
    observe::progress::ShareState,
    queue::Queue,
    runtime::{
        clock::now_ms,
        crash,
        shutdown::{Stop, blocking},
    },
    sink::{Sink, SinkError, Write},
    sync::state::{CopyPlan, Step, SyncState},
};

/// How often to look whether a pause is over.
const PAUSE_CHECK: Duration = Duration::from_millis(200);

/// The note in the queue, which several collections change at the same time.
pub(super) struct Plans {
    queue: Arc<Queue>,
    state: Mutex<SyncState>,
    /// Collections that the run did not wait for.
    left: parking_lot::Mutex<BTreeSet<Namespace>>,
}

impl Plans {
    pub fn new(queue: Arc<Queue>, state: SyncState) -> Self {
        Self { queue, state: Mutex::new(state), left: parking_lot::Mutex::default() }
    }

    /// The run does not wait for this one.
    pub fn leave(&self, ns: &Namespace) {
        self.left.lock().insert(ns.clone());
    }

    pub fn left(&self) -> BTreeSet<Namespace> {
        self.left.lock().clone()
    }

    pub async fn state(&self) -> SyncState {
        self.state.lock().await.clone()
    }

    async fn note(&self, ns: &Namespace, step: Step) -> Result<(), SyncError> {
        let mut state = self.state.lock().await;
        let (queue, id, of, noted) = (self.queue.clone(), state.id, ns.clone(), step.clone());
        blocking(move || SyncState::note(&queue, id, &of, &noted)).await?;
        state.step(ns, step);
        Ok(())
    }

    /// The collection is done.
    pub async fn finished(&self, ns: &Namespace, is_refused: bool) -> Result<(), SyncError> {
        self.note(ns, Step::Finished { is_refused }).await
    }

    /// The names that have changed hands since this was asked last.
    pub async fn take_again(&self) -> Result<BTreeSet<Namespace>, SyncError> {
        let mut state = self.state.lock().await;
        let (queue, id) = (self.queue.clone(), state.id);
        let again = blocking(move || SyncState::take_again(&queue, id)).await?;
        state.done.retain(|ns| !again.iter().any(|again| again.covers(ns)));
        Ok(again)
    }

    /// How far a collection is, if it was begun in this way before.
    pub async fn known(&self, ns: &Namespace, is_copy: bool) -> Option<CopyPlan> {
        let state = self.state.lock().await;
        state.begun.get(ns).filter(|plan| plan.is_copy == is_copy).cloned()
    }

    /// What was begun is to be begun anew.
    pub async fn forget(&self, ns: &Namespace) -> Result<(), SyncError> {
        if !self.state.lock().await.begun.contains_key(ns) {
            return Ok(());
        }
        self.note(ns, Step::Forgotten).await
    }

    /// A copy or a comparison begins.
    pub async fn begun(&self, ns: &Namespace, plan: CopyPlan) -> Result<(), SyncError> {
        self.note(ns, Step::Begun(plan)).await
    }

    /// A range is done.
    pub async fn range_done(&self, ns: &Namespace, range: usize) -> Result<(), SyncError> {
        self.note(ns, Step::RangeDone(range)).await
    }
}

impl<K: Sink> Reconciler<K> {
    /// Copies a collection that is held, and releases it. False when a barrier has come for it, so that
    /// nothing was done.
    pub(super) async fn copy_unless_barrier(
        &self,
        run: &Run<'_>,
        plans: &Plans,
        collection: &Collection,
        size: Size,
    ) -> Result<bool, SyncError> {
        let ns = &collection.ns;
        if self.queue.kept_apart().has(ns) {
            return Ok(true); // Since it was listed.
        }
        if self.queue.has_barrier(ns) {
            self.queue.release(ns);
            return Ok(false);
        }
        // Its drop or its rename may have been applied since it was listed, and it would be made for good. What is
        // made of it from here on waits in the queue, as long as it is held.
        if self.has_lost_its_name(run, plans, collection).await? {
            return Ok(true);
        }
        self.set_state(ns, ShareState::Running);
        self.create(run, collection).await?;
        let known = plans.known(ns, true).await;
        let plan = if let Some(plan) = known {
            plan
        } else {
            let splits = if collection.is_capped() {
                Vec::new() // In the order of insertion, and so in one piece.
            } else {
                ask!(self.ends, End::Local, run.stop, splits(&self.ends.local, ns, size))
            };
            let plan = CopyPlan { splits, is_copy: true, ..CopyPlan::default() };
            plans.begun(ns, plan.clone()).await?;
            plan
        };
        // A read of now has everything that was queued before it was held.
        let after = run.after.max(self.status.state().position.whole());
        let notes = Notes { reconciler: self, id: collection.id, stop: run.stop };
        let copier = Copier {
            ends: &self.ends,
            from: End::Local,
            sink: &*self.sink,
            ledger: &notes,
            there_already: if collection.is_capped() {
                ThereAlready::WriteOverInOrder
            } else {
                ThereAlready::WriteOver
            },
            after,
            stop: run.stop,
        };
        let ranges: Vec<_> = KeyRange::between(&plan.splits)
            .into_iter()
            .enumerate()
            .filter(|(n, _)| !plan.done.contains(n))
            .collect();
        self.skip_done(ns, &plan, size);
        let order =
            if ranges.len() == 1 && plan.splits.is_empty() { Order::Natural } else { Order::ById };
        let (copier, plan) = (&copier, &plan);
        self.ends
            .each(ranges, |(n, range)| {
                let unit = Unit { ns: ns.clone(), range, order, page: size.page() };
                Box::pin(async move {
                    copier.copy(&unit).await?;
                    if !plan.splits.is_empty() {
                        plans.range_done(&unit.ns, n).await?;
                        crash::point(crash::Step::RangeNoted);
                    }
                    Ok(())
                })
            })
            .await?;
        crash::point(crash::Step::CollectionCopied);
        if collection.is_capped() {
            // What was read is later than the stream.
            self.queue.wait_for_stream(ns, self.local_time(run.stop).await?);
        }
        self.queue.release(ns);
        plans.finished(ns, false).await?;
        self.set_state(ns, ShareState::Done);
        tracing::info!(%ns, documents = size.documents, "copied");
        Ok(true)
    }

    /// True for one of those that are replaced as a whole whose name means something else by now, or nothing. It is
    /// held: there is nothing to do with it any more, and it is released.
    pub(super) async fn has_lost_its_name(
        &self,
        run: &Run<'_>,
        plans: &Plans,
        collection: &Collection,
    ) -> Result<bool, SyncError> {
        if !run.is_of_some || self.is_still(run, collection).await? {
            return Ok(false);
        }
        let ns = &collection.ns;
        self.queue.release(ns);
        plans.finished(ns, false).await?;
        self.set_state(ns, ShareState::Done);
        Ok(true)
    }

    pub(super) async fn size_of(&self, ns: &Namespace, stop: &Stop) -> Result<Size, SyncError> {
        Ok(ask!(self.ends, End::Local, stop, Size::of(&self.ends.local, ns)))
    }

    pub(super) async fn is_empty_there(
        &self,
        ns: &Namespace,
        stop: &Stop,
    ) -> Result<bool, SyncError> {
        Ok(ask!(self.ends, End::Atlas, stop, self.ends.atlas.is_empty(ns)))
    }

    /// As [`may_replace`](Self::may_replace), with patience.
    pub(super) async fn may_replace_held(
        &self,
        run: &Run<'_>,
        ns: &Namespace,
    ) -> Result<bool, SyncError> {
        let (local, atlas) = (&self.ends.local, &self.ends.atlas);
        let here = ask!(self.ends, End::Local, run.stop, local.estimated_count(ns));
        let there = ask!(self.ends, End::Atlas, run.stop, atlas.estimated_count(ns));
        Ok(self.may_lose(here, there))
    }

    /// A collection is replaced as a whole only if that takes no more from Atlas than a comparison may
    /// delete.
    pub(super) fn may_lose(&self, here: u64, there: u64) -> bool {
        let extra = there.saturating_sub(here);
        extra <= MASS_DELETE_MIN || extra as f64 <= there as f64 * self.max_delete_ratio
    }

    /// Drops a collection that is held, to be copied anew, as long as the permit holds under which it was looked
    /// at.
    pub(super) async fn drop_held(
        &self,
        run: &Run<'_>,
        ns: &Namespace,
        permit: &Permit,
    ) -> Result<(), SyncError> {
        let change = SchemaChange::Drop { ns: ns.clone() };
        let mut attempts = self.ends.attempts(run.stop);
        loop {
            self.may_write(run.stop).await?;
            if !permit.holds() {
                return Err(SyncError::Outdated);
            }
            match self.sink.change_schema(&change).await {
                Ok(_) => return Ok(()),
                Err(error) => {
                    self.late().schema_given_up(error.may_still_change(&change), Instant::now());
                    attempts.failed(error).await?;
                }
            }
        }
    }

    /// Waits while nothing may be written to Atlas: also while the local database is not proven, since all that
    /// a sync writes rests on it.
    pub(super) async fn may_write(&self, stop: &Stop) -> Result<(), SyncError> {
        while self.status.rests() || !self.ends.local.permit().holds() {
            pause(stop, PAUSE_CHECK).await?;
        }
        Ok(())
    }

    /// What an earlier run has copied is not to be done.
    fn skip_done(&self, ns: &Namespace, plan: &CopyPlan, size: Size) {
        let ranges = plan.splits.len() as u64 + 1;
        let left = ranges - (plan.done.len() as u64).min(ranges);
        if let Some(progress) = &mut self.status.state().sync {
            progress.share(ns).documents = size.documents * left / ranges;
        }
    }

    /// Makes the collection, and those of its indexes that documents must obey from the first on. The
    /// others are built when the documents are there, which is faster.
    pub(super) async fn create(
        &self,
        run: &Run<'_>,
        collection: &Collection,
    ) -> Result<(), SyncError> {
        self.queue.keep_in_order(&collection.ns, collection.is_capped());
        loop {
            match self.create_once(run, collection).await {
                Err(SyncError::Outdated) => {}
                result => return result,
            }
        }
    }

    async fn create_once(&self, run: &Run<'_>, collection: &Collection) -> Result<(), SyncError> {
        let ns = &collection.ns;
        let permit = self.ends.proven(run.stop).await?;
        // As it was listed, where its drop or its rename is still to come.
        let here = self.still(run, collection).await?;
        let options = here.map_or_else(|| collection.options.clone(), |here| here.options);
        let change = SchemaChange::Create { ns: ns.clone(), options };
        let mut attempts = self.ends.attempts(run.stop);
        loop {
            self.may_write(run.stop).await?;
            if !permit.holds() {
                return Err(SyncError::Outdated);
            }
            match self.sink.change_schema(&change).await {
                Ok(_) => break,
                // Options that this Atlas does not take must not keep the documents away.
                Err(SinkError::Rejected(error)) => {
                    tracing::warn!(%ns, %error, "created without its options");
                    break;
                }
                Err(error) => {
                    self.late().schema_given_up(error.may_still_change(&change), Instant::now());
                    attempts.failed(error).await?;
                }
            }
        }
        let indexes = indexes_of(&self.ends, End::Local, ns, run.stop).await?;
        let unique = unique_builds(&indexes);
        if !unique.is_empty() {
            let left = mend(&self.ends, End::Atlas, ns, (unique, &permit), run.stop).await?;
            for problem in left {
                tracing::warn!(%ns, error = problem, "copied without it");
            }
        }
        Ok(())
    }
}

/// What the agent notes of a copy.
struct Notes<'a, K> {
    reconciler: &'a Reconciler<K>,
    id: Option<CollectionId>,
    stop: &'a Stop,
}

impl<K: Sink> Ledger for Notes<'_, K> {
    async fn may_go_on(&self) -> Result<(), SyncError> {
        self.reconciler.may_write(self.stop).await
    }

    fn copied(&self, ns: &Namespace, documents: u64, bytes: u64) {
        let status = &self.reconciler.status;
        status.metrics.documents_copied.add(documents);
        if let Some(progress) = &mut status.state().sync {
            progress.advanced(ns, documents, bytes, now_ms());
        }
    }

    /// The worker tries them on the schedule, and keeps them if it must.
    async fn refused(
        &self,
        ns: &Namespace,
        documents: Vec<(DocumentKey, String)>,
    ) -> Result<(), SyncError> {
        if let Some((_, error)) = documents.first() {
            tracing::warn!(%ns, documents = documents.len(), error, "Atlas did not take documents of the copy; they are tried one by one");
        }
        let keys = documents.into_iter().map(|(key, _)| key).collect();
        self.reconciler.commit_refresh(ns, keys, self.id, ClusterTime::default()).await
    }

    fn answered(
        &self,
        ns: &Namespace,
        writes: &[Write<'_>],
        error: Option<&SinkError>,
    ) -> Result<(), SyncError> {
        if let Some(SinkError::Unanswered(_)) = error {
            let keys = writes.iter().filter_map(Write::key).collect();
            self.reconciler.late().given_up(ns, keys, Instant::now());
        }
        self.reconciler.status.state().atlas_fault = error.map(Into::into);
        Ok(())
    }
}
