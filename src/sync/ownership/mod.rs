//! How the agent takes its target, and keeps it: what it remembers of the lease that it left, the mandatory sync that
//! follows from another target, the heartbeat, and what is looked at with each: whether the local database has
//! become a copy of the target, and whether another source has a lease on what is ours.

use std::{
    collections::BTreeMap,
    sync::{Arc, Once},
    time::Duration,
};

use parking_lot::Mutex;

use super::{Context, SyncError, same};
use crate::{
    gate::tally::Counts,
    model::{checkpoint::ClusterTime, foreign::Foreign},
    observe::report::one_line,
    queue::{Queue, QueueError, note},
    runtime::{
        clock::now_ms,
        crash::{self, CrashPoint},
        shutdown::{Stop, blocking},
    },
    side::records::AgentIdentity,
    sink::SchemaSink,
    sync::state::{Reason, SyncState},
};

mod lease_client;
mod remembered;
mod review;
#[cfg(test)]
mod tests;
mod upstream;

pub use lease_client::LeaseClient;
pub(super) use review::not_ours;
pub use review::{Asker, Remark, review};

use lease_client::{Acquired, Acquisition, HEARTBEAT};
use remembered::Remembered;
use upstream::Upstream;

/// How long the local database may take to show the lease records in it. Without an answer those that were seen last
/// count.
const UPSTREAM_PATIENCE: Duration = Duration::from_secs(3);

fn remembered(queue: &Queue) -> Result<Remembered, QueueError> {
    let lease_id =
        queue.meta(note::LEASE_ID)?.and_then(|lease_id| String::from_utf8(lease_id).ok());
    let position = |name| -> Result<ClusterTime, QueueError> {
        let noted = queue.meta(name)?.and_then(|noted| noted.try_into().ok());
        Ok(ClusterTime(noted.map_or(0, u64::from_be_bytes)))
    };
    let (checkpoint, sent) = (position(note::RENEWED)?, position(note::RENEWING)?);
    let moved = queue.meta(note::MOVED)?.is_some();
    let lives = queue.meta(note::LIVES)?.and_then(|lives| serde_json::from_slice(&lives).ok());
    let (lives, own) = (lives.unwrap_or_default(), queue.checkpoint()?);
    let position = own.as_ref().map(|checkpoint| checkpoint.cluster_time).unwrap_or_default();
    let kind = own.map(|checkpoint| checkpoint.kind);
    let confirmed = queue.meta(note::TALLY)?.map(|noted| Counts::read(&noted)).unwrap_or_default();
    Ok(Remembered { lease_id, checkpoint, sent, moved, lives, position, kind, confirmed })
}

fn note_lives(queue: &Queue, lives: &[String]) -> Result<(), QueueError> {
    let lives = serde_json::to_vec(lives).expect("a list of names is JSON");
    queue.set_meta(note::LIVES, Some(&lives))
}

/// A copy that has not begun goes to the new target anyway.
fn require_for_new_target(queue: &Queue, is_first: bool, reason: Reason) -> Result<(), QueueError> {
    let open = SyncState::load(queue)?.filter(|state| state.request.is_none());
    let has_not_begun =
        is_first && open.is_some_and(|state| state.done.is_empty() && state.begun.is_empty());
    if !has_not_begun {
        let position = queue.checkpoint()?.map(|checkpoint| checkpoint.cluster_time);
        SyncState::require(queue, position.unwrap_or_default(), reason)?;
    }
    queue.flush()
}

/// What stands in the place of a lease id where no lease can carry one.
const UNLEASED: &[u8] = b"no mark";

/// How often to look whether a lease that is too old may be renewed.
const FENCED_EVERY: Duration = Duration::from_secs(2);

/// Takes the target, and keeps it for as long as the agent runs.
pub(super) struct Ownership<K> {
    cx: Arc<Context<K>>,
    source_id: String,
    agent: AgentIdentity,
    /// Take the target over, whoever's it is.
    adopt: bool,
    /// See [`Acquisition`].
    seen_heartbeat: Mutex<Option<i64>>,
    ring: Mutex<Ring>,
    /// What cannot be read of the ring is told once, however often the target has to be asked.
    unread: Once,
    /// Why the heartbeat fails, as it was told last since one was renewed.
    told: Mutex<Option<String>>,
}

/// What is known of the way from the local database, and to the target.
#[derive(Clone, Debug, Default)]
struct Ring {
    /// The target's id.
    target: Option<String>,
    upstream: Arc<Upstream>,
}

impl<K: SchemaSink> Ownership<K> {
    pub(super) fn new(
        cx: Arc<Context<K>>,
        source_id: String,
        agent: AgentIdentity,
        adopt: bool,
    ) -> Self {
        let (seen_heartbeat, ring) = (Mutex::default(), Mutex::default());
        let (unread, told) = (Once::new(), Mutex::default());
        Self { cx, source_id, agent, adopt, seen_heartbeat, ring, unread, told }
    }

    /// Makes sure that the target is ours, at the start.
    ///
    /// # Errors
    /// When it is not, or the queue fails.
    pub(super) async fn take(&self, stop: &Stop) -> Result<(), SyncError> {
        if !self.keeps_leases() {
            return self.take_unmarked().await;
        }
        self.take_patiently(true, stop).await
    }

    fn keeps_leases(&self) -> bool {
        self.cx.sides.atlas.records().is_some()
    }

    /// Of a target without lease records nobody can tell whose it is, nor whether it has what an earlier queue was told of. So
    /// each queue gives it everything once.
    async fn take_unmarked(&self) -> Result<(), SyncError> {
        let queue = self.cx.queue.clone();
        blocking(move || {
            if queue.meta(note::LEASE_ID)?.as_deref() == Some(UNLEASED) {
                return Ok(());
            }
            require_for_new_target(&queue, true, Reason::NewTarget)?;
            queue.set_meta(note::LEASE_ID, Some(UNLEASED))
        })
        .await?;
        self.cx.writing.acquired();
        Ok(())
    }

    fn lease_client(&self) -> LeaseClient<'_> {
        LeaseClient {
            atlas: &*self.cx.sides.atlas,
            filter: &self.cx.written,
            source_id: &self.source_id,
            agent: &self.agent,
            lease: self.cx.writing.lease(),
        }
    }

    async fn take_patiently(&self, is_first: bool, stop: &Stop) -> Result<(), SyncError> {
        self.cx
            .retrying(stop, "the mark of ownership cannot be set yet", || {
                Box::pin(self.take_target(is_first))
            })
            .await
    }

    /// Takes the target, and requires a sync where it is not the one that the queue's position belongs to.
    /// The requirement is on the disk before the lease is taken, since the lease is what keeps the next start from
    /// requiring it.
    async fn take_target(&self, is_first: bool) -> Result<(), SyncError> {
        let target = same::check(&self.cx.sides).await?;
        let db = self.cx.filter.state_database();
        let seen = upstream::read(&*self.cx.sides.local, &self.source_id, db).await?;
        if is_first && (target.is_none() || seen.is_none()) {
            self.unread.call_once(|| tracing::warn!(
                "the user may not read Atlas's identity, or the marks in the local database; that this local database is not a copy of this Atlas cannot be made sure of"
            ));
        }
        let upstream = Arc::new(seen.unwrap_or_default());
        self.ring().clone_from(&Ring { target: target.clone(), upstream: upstream.clone() });
        let queue = self.cx.queue.clone();
        // With what was confirmed and is still to be acked.
        let remembered = blocking(move || {
            queue.write_carried()?;
            remembered(&queue)
        })
        .await?;
        let acquisition = Acquisition {
            // A target is adopted once, by a person who looks on.
            adopt: self.adopt && is_first,
            is_first,
            upstream: &upstream,
            target: target.as_deref(),
            remembered: &remembered,
            seen_heartbeat: &self.seen_heartbeat,
        };
        let require = async |reason| {
            let (queue, moved) = (self.cx.queue.clone(), remembered.moved);
            blocking(move || {
                if moved {
                    let position = queue.checkpoint()?.map(|checkpoint| checkpoint.cluster_time);
                    let before = position.unwrap_or_default().0.saturating_sub(1);
                    queue.refresh_pending(ClusterTime(before), now_ms(), |_| true)?;
                }
                require_for_new_target(&queue, is_first, reason)
            })
            .await?;
            crash::point(CrashPoint::LeaseIdNoted);
            Ok(())
        };
        let (queue, mut lives) = (self.cx.queue.clone(), remembered.lives.clone());
        let life = self.agent.instance.clone();
        if !lives.contains(&life) {
            lives.push(life.clone());
            // Before the lease can be taken, so that whoever has it finds its name here.
            blocking(move || note_lives(&queue, &lives).and_then(|()| queue.flush())).await?;
        }
        let acquired = self.lease_client().take(&acquisition, require).await;
        if matches!(acquired, Err(SyncError::OlderQueue)) {
            let queue = self.cx.queue.clone();
            return Err(blocking(move || queue.give_up_as_outdated()).await.into());
        }
        let Acquired { lease_id, refused } = acquired?;
        let queue = self.cx.queue.clone();
        blocking(move || note_lives(&queue, &[life])).await?;
        let leased = self.cx.queue.kept_apart().leased.clone();
        self.keep_apart(Foreign { names: refused, leased }).await?;
        let (queue, is_new) =
            (self.cx.queue.clone(), remembered.lease_id.as_ref() != Some(&lease_id));
        if is_new {
            blocking(move || {
                queue.set_meta(note::RENEWED, None)?;
                queue.set_meta(note::RENEWING, None)?;
                queue.set_meta(note::LEASE_ID, Some(lease_id.as_bytes()))?;
                queue.set_meta(note::MOVED, None)
            })
            .await?;
        }
        // Of two that take their leases at the same moment, one sees the other now, before it writes anything.
        self.look_upstream().await?;
        self.look_at_others().await?;
        self.cx.writing.acquired();
        Ok(())
    }

    /// Renews the heartbeat of the lease for as long as the agent runs, and stops the writing when that
    /// fails for too long: another agent may have been told to take over.
    pub(super) async fn keep(&self, stop: &Stop) -> Result<(), SyncError> {
        if !self.keeps_leases() {
            std::future::pending::<()>().await;
        }
        loop {
            let is_fenced = self.cx.writing.is_fenced();
            tokio::time::sleep(if is_fenced { FENCED_EVERY } else { HEARTBEAT }).await;
            // Before the lease is taken there is no record of this instance.
            if !self.cx.writing.is_acquired() {
                continue;
            }
            self.look_upstream().await?;
            match self.heartbeat().await? {
                Some(true) => self.look_at_others().await?,
                Some(false) => {
                    tracing::warn!("the mark of ownership in Atlas is not as it was left");
                    self.take_patiently(false, stop).await?;
                    self.cx.sync_wanted.notify_one();
                }
                None => {}
            }
        }
    }

    /// Goes on with the heartbeat when the agent stops, for as long as what waits is still written: that may
    /// take longer than a lease stays young.
    ///
    /// # Errors
    /// When the queue fails.
    pub(super) async fn heartbeat_while_draining(&self, stop: &Stop) -> Result<(), SyncError> {
        stop.drain.cancelled().await;
        while self.keeps_leases()
            && self.cx.writing.is_acquired()
            && self.heartbeat().await? != Some(false)
        {
            tokio::time::sleep(HEARTBEAT).await;
        }
        Ok(())
    }

    /// Renews the heartbeat once. False when the lease is not as it was left; `None` where Atlas did not answer.
    async fn heartbeat(&self) -> Result<Option<bool>, SyncError> {
        let queue = self.cx.queue.clone();
        let left = blocking(move || remembered(&queue)).await?.checkpoint;
        let position = self.cx.reading.position().seen().max(left);
        let noted = self.cx.queue.clone();
        blocking(move || noted.set_meta(note::RENEWING, Some(&position.0.to_be_bytes()))).await?;
        let (lease_client, upstream) = (self.lease_client(), self.ring().upstream.clone());
        let renewal = lease_client.renew(left, position, &upstream);
        match tokio::time::timeout(HEARTBEAT, renewal).await {
            Ok(Ok(is_as_left)) => {
                *self.told.lock() = None;
                if is_as_left {
                    let (queue, position) = (self.cx.queue.clone(), position.0.to_be_bytes());
                    blocking(move || queue.set_meta(note::RENEWED, Some(&position))).await?;
                }
                return Ok(Some(is_as_left));
            }
            Ok(Err(error)) => self.tell(one_line(&error)),
            Err(_) => self.tell(format!("no answer within {} s", HEARTBEAT.as_secs())),
        }
        Ok(None)
    }

    /// Once nothing is written for want of a heartbeat, a person is to find why: each reason once.
    fn tell(&self, error: String) {
        if self.cx.writing.is_fenced() && self.told.lock().as_ref() != Some(&error) {
            tracing::warn!(error, "the mark of ownership in Atlas is not renewed");
            *self.told.lock() = Some(error);
        } else {
            tracing::debug!(error, "the mark of ownership in Atlas is not renewed");
        }
    }

    /// Looks whether the local database has become a copy of the target.
    ///
    /// # Errors
    /// [`SyncError::Ring`]. Nothing is written from then on.
    async fn look_upstream(&self) -> Result<(), SyncError> {
        let db = self.cx.filter.state_database();
        let reading = upstream::read(&*self.cx.sides.local, &self.source_id, db);
        match tokio::time::timeout(UPSTREAM_PATIENCE, reading).await {
            Ok(Ok(Some(seen))) => self.ring().upstream = Arc::new(seen),
            Ok(Ok(None)) => {}
            Ok(Err(error)) => {
                tracing::debug!(%error, "the marks in the local database cannot be read");
            }
            Err(_) => tracing::debug!("the marks in the local database were not read in time"),
        }
        let Ring { target, upstream } = self.ring().clone();
        upstream.check(&self.source_id, target.as_deref()).inspect_err(|_| {
            self.cx.writing.lease().end();
        })
    }

    /// Looks whether another source has a lease on what is ours. One of today's version does not do that, nor do
    /// two that start at the same moment see each other: then neither writes what both choose.
    async fn look_at_others(&self) -> Result<(), SyncError> {
        let lease_client = self.lease_client();
        let leased = match tokio::time::timeout(HEARTBEAT / 2, lease_client.others()).await {
            Ok(Ok(leased)) => leased,
            Ok(Err(error)) => {
                tracing::debug!(%error, "the marks of others cannot be read");
                return Ok(());
            }
            Err(_) => return Ok(()),
        };
        let before = self.cx.queue.kept_apart();
        let foreign = Foreign { names: before.names.clone(), leased };
        if !before.is_within(&foreign) {
            // Whoever had it may have written to it.
            let (queue, position) = (self.cx.queue.clone(), self.cx.reading.position().seen());
            blocking(move || SyncState::require(&queue, position, Reason::NewTarget)).await?;
            self.cx.sync_wanted.notify_one();
        }
        if !foreign.leased.is_empty() || !before.is_within(&foreign) {
            self.keep_apart(foreign).await?;
        }
        Ok(())
    }

    /// Nothing of these is written from now on, and it is said so.
    async fn keep_apart(&self, foreign: Foreign) -> Result<(), SyncError> {
        self.cx.queue.keep_apart(foreign.clone());
        let mut named: BTreeMap<_, _> = foreign
            .names
            .iter()
            .map(|ns| (ns.clone(), "Atlas held data of somebody else's in it".to_owned()))
            .collect();
        if !foreign.leased.is_empty() {
            // What does not answer is asked again with the next heartbeat.
            let listing = self.cx.sides.local.list(&self.cx.filter).await.unwrap_or_default();
            for collection in listing.collections.into_iter().chain(listing.views) {
                if let Some(source) = foreign.leased_by(&collection.ns) {
                    let reason =
                        format!("another source, `{source}`, has marked it as its own in Atlas");
                    named.insert(collection.ns, reason);
                }
            }
        }
        let before = self.cx.writing.keep_apart(named.clone());
        for (ns, reason) in named.iter().filter(|(ns, _)| !before.contains_key(*ns)) {
            tracing::error!(%ns, reason, "the collection is not ours to write; its changes wait");
        }
        Ok(())
    }

    fn ring(&self) -> parking_lot::MutexGuard<'_, Ring> {
        self.ring.lock()
    }
}
