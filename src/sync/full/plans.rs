//! The note of a run in the queue, which several collections change at the same time.

use std::{collections::BTreeSet, sync::Arc};

use tokio::sync::Mutex;

use crate::{
    model::namespace::Namespace,
    queue::Queue,
    runtime::shutdown::blocking,
    sync::{
        SyncError,
        state::{CollectionStep, CopyPlan, SyncState},
    },
};

/// What is noted, in the queue and as it is known here.
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

    async fn note(&self, ns: &Namespace, step: CollectionStep) -> Result<(), SyncError> {
        let mut state = self.state.lock().await;
        let (queue, id, of, noted) = (self.queue.clone(), state.id, ns.clone(), step.clone());
        blocking(move || SyncState::note(&queue, id, &of, &noted)).await?;
        state.step(ns, step);
        Ok(())
    }

    /// The collection is done.
    pub async fn finished(&self, ns: &Namespace, is_refused: bool) -> Result<(), SyncError> {
        self.note(ns, CollectionStep::Finished { is_refused }).await
    }

    /// The names that have changed hands since this was asked last.
    pub async fn take_again(&self) -> Result<BTreeSet<Namespace>, SyncError> {
        let mut state = self.state.lock().await;
        let (queue, id) = (self.queue.clone(), state.id);
        let again = blocking(move || SyncState::take_again(&queue, id)).await?;
        state.done.retain(|ns| !again.iter().any(|again| again.covers(ns)));
        Ok(again)
    }

    /// These are to be compared again before the run ends.
    pub async fn compare_again(&self, names: BTreeSet<Namespace>) -> Result<(), SyncError> {
        if names.is_empty() {
            return Ok(());
        }
        let (queue, id) = (self.queue.clone(), self.state.lock().await.id);
        Ok(blocking(move || SyncState::compare_again(&queue, id, &names)).await?)
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
        self.note(ns, CollectionStep::Forgotten).await
    }

    /// A copy or a comparison begins.
    pub async fn begun(&self, ns: &Namespace, plan: CopyPlan) -> Result<(), SyncError> {
        self.note(ns, CollectionStep::Begun(plan)).await
    }

    /// A range is done.
    pub async fn range_done(&self, ns: &Namespace, range: usize) -> Result<(), SyncError> {
        self.note(ns, CollectionStep::RangeDone(range)).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        model::checkpoint::ClusterTime, queue::QueueOptions, side::fake_database::ns,
        sync::state::Reason,
    };

    fn plans() -> (tempfile::TempDir, Plans) {
        let dir = tempfile::TempDir::new().unwrap();
        let queue = Arc::new(Queue::open(&QueueOptions::new(dir.path().join("queue"))).unwrap());
        SyncState::require(&queue, ClusterTime(1), Reason::FirstCopy).unwrap();
        let state = SyncState::load(&queue).unwrap().unwrap();
        (dir, Plans::new(queue, state))
    }

    #[tokio::test]
    async fn what_is_forgotten_is_begun_anew_here_and_after_a_restart() {
        let (_dir, plans) = plans();
        let copy = CopyPlan { is_copy: true, ..CopyPlan::default() };
        for name in ["shop.a", "shop.b"] {
            plans.begun(&ns(name), copy.clone()).await.unwrap();
            plans.range_done(&ns(name), 0).await.unwrap();
        }
        let begun = plans.known(&ns("shop.a"), true).await;
        assert!(begun.is_some_and(|plan| plan.done.contains(&0)));
        assert_eq!(plans.known(&ns("shop.a"), false).await, None, "a comparison is another one");

        plans.forget(&ns("shop.a")).await.unwrap();
        plans.forget(&ns("shop.never")).await.unwrap();

        let noted = SyncState::load(&plans.queue).unwrap().unwrap();
        for state in [plans.state().await, noted] {
            assert!(state.begun.keys().eq([&ns("shop.b")]), "{state:?}");
        }
    }

    #[tokio::test]
    async fn a_name_that_has_changed_hands_is_not_done_any_more_and_the_others_are() {
        let (_dir, plans) = plans();
        for name in ["shop.a", "shop.b"] {
            plans.finished(&ns(name), false).await.unwrap();
        }

        plans.compare_again([ns("shop.a")].into()).await.unwrap();

        assert!(plans.take_again().await.unwrap().iter().eq([&ns("shop.a")]));
        assert!(plans.state().await.done.iter().eq([&ns("shop.b")]));
        assert!(plans.take_again().await.unwrap().is_empty(), "once");
    }
}
