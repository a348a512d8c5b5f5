//! How the agent takes its target, and keeps it: what it remembers of the mark that it left, the demand that
//! follows from another target, and the heartbeat.

use super::{
    LOOK_AGAIN, Reconciler, SyncError, local_collections, ownership, ownership::Remembered, same,
};
use crate::{
    checkpoint::ClusterTime,
    crash::{self, Step},
    queue::{Queue, QueueError, transfer::MOVED},
    shutdown::{Stop, blocking},
    sink::Sink,
    status::now_ms,
    sync_state::{Reason, SyncState},
};

/// The claim that the queue's position belongs to, and the last position that its mark is known to carry; kept
/// beside the queue.
const CLAIM: &str = "claim";
const RENEWED: &str = "renewed";

fn remembered(queue: &Queue) -> Result<Remembered, QueueError> {
    let claim = queue.meta(CLAIM)?.and_then(|claim| String::from_utf8(claim).ok());
    let renewed = queue.meta(RENEWED)?.and_then(|renewed| renewed.try_into().ok());
    let checkpoint = ClusterTime(renewed.map_or(0, u64::from_be_bytes));
    let moved = queue.meta(MOVED)?.is_some();
    Ok(Remembered { claim, checkpoint, moved })
}

/// A copy that has not begun goes to the new target anyway.
fn demand_for_new_target(queue: &Queue, is_first: bool) -> Result<(), QueueError> {
    let open = SyncState::load(queue)?.filter(|state| state.request.is_none());
    let has_not_begun =
        is_first && open.is_some_and(|state| state.done.is_empty() && state.begun.is_empty());
    if !has_not_begun {
        let position = queue.checkpoint()?.map(|checkpoint| checkpoint.cluster_time);
        SyncState::demand(queue, position.unwrap_or_default(), Reason::NewTarget)?;
    }
    queue.flush()
}

impl<K: Sink> Reconciler<K> {
    fn claim(&self) -> ownership::Claim<'_> {
        ownership::Claim {
            atlas: &self.ends.atlas,
            filter: &self.filter,
            source_id: &self.source_id,
            agent: &self.agent,
            lease: &self.status.lease,
        }
    }

    /// Makes sure that the target is ours.
    pub(super) async fn claim_patiently(
        &self,
        is_first: bool,
        stop: &Stop,
    ) -> Result<(), SyncError> {
        self.retrying(stop, "the mark of ownership cannot be set yet", || {
            Box::pin(self.take_target(is_first))
        })
        .await
    }

    /// Takes the target, and demands a sync where it is not the one that the queue's position belongs to.
    /// The demand is on the disk before the mark is set, since the mark is what keeps the next start from
    /// demanding it.
    async fn take_target(&self, is_first: bool) -> Result<(), SyncError> {
        same::check(&self.ends).await?;
        let here = local_collections(&self.ends.local, &self.filter).await?.collections;
        let wanted: Vec<_> = here.into_iter().map(|collection| collection.ns).collect();
        let queue = self.queue.clone();
        let remembered = blocking(move || remembered(&queue)).await?;
        let taking = ownership::Taking {
            // A target is adopted once, by a person who looks on.
            adopt: self.adopt && is_first,
            is_first,
            wanted: &wanted,
            remembered: &remembered,
            seen_beat: &self.seen_beat,
        };
        let demand = async || {
            let (queue, moved) = (self.queue.clone(), remembered.moved);
            blocking(move || {
                if moved {
                    let position = queue.checkpoint()?.map(|checkpoint| checkpoint.cluster_time);
                    let before = position.unwrap_or_default().0.saturating_sub(1);
                    queue.refresh_pending(ClusterTime(before), now_ms())?;
                }
                demand_for_new_target(&queue, is_first)
            })
            .await?;
            crash::point(Step::ClaimNoted);
            Ok(())
        };
        let claim = self.claim().take(&taking, demand).await?;
        let (queue, is_new) = (self.queue.clone(), remembered.claim.as_ref() != Some(&claim));
        if is_new {
            blocking(move || {
                queue.set_meta(RENEWED, None)?;
                queue.set_meta(CLAIM, Some(claim.as_bytes()))?;
                queue.set_meta(MOVED, None)
            })
            .await?;
        }
        self.status.state().is_marked = true;
        Ok(())
    }

    /// Renews the heartbeat in the mark for as long as the agent runs, and stops the writing when that
    /// fails for too long: another agent may have been told to take over.
    pub(super) async fn keep_mark(&self, stop: &Stop) -> Result<(), SyncError> {
        loop {
            let is_fenced = self.status.is_fenced();
            tokio::time::sleep(if is_fenced { LOOK_AGAIN } else { ownership::HEARTBEAT }).await;
            // Before the claim there is no mark of this instance.
            if !self.status.state().is_marked {
                continue;
            }
            if self.beat().await? == Some(false) {
                tracing::warn!("the mark of ownership in Atlas is not as it was left");
                self.claim_patiently(false, stop).await?;
                self.demanded.notify_one();
            }
        }
    }

    /// Goes on with the heartbeat when the agent stops, for as long as what waits is still written: that may
    /// take longer than a mark stays young.
    ///
    /// # Errors
    /// When the queue fails.
    pub async fn beat_while_draining(&self, stop: &Stop) -> Result<(), SyncError> {
        stop.drain.cancelled().await;
        while self.status.state().is_marked && self.beat().await? != Some(false) {
            tokio::time::sleep(ownership::HEARTBEAT).await;
        }
        Ok(())
    }

    /// Renews the heartbeat once. False when the mark is not as it was left; `None` where Atlas did not answer.
    async fn beat(&self) -> Result<Option<bool>, SyncError> {
        let queue = self.queue.clone();
        let left = blocking(move || remembered(&queue)).await?.checkpoint;
        let position = self.status.state().position.seen().max(left);
        let claim = self.claim();
        let renewal = claim.renew(left, position);
        match tokio::time::timeout(ownership::HEARTBEAT, renewal).await {
            Ok(Ok(is_as_left)) => {
                if is_as_left {
                    let (queue, position) = (self.queue.clone(), position.0.to_be_bytes());
                    blocking(move || queue.set_meta(RENEWED, Some(&position))).await?;
                }
                return Ok(Some(is_as_left));
            }
            Ok(Err(error)) => tracing::debug!(%error, "the heartbeat was not renewed"),
            Err(_) => tracing::debug!("the heartbeat was not renewed in time"),
        }
        Ok(None)
    }
}
