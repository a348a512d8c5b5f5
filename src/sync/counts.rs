//! Counting both sides from time to time: a cheap look that sees a whole collection missing.
//!
//! The servers' own estimates are compared (`estimatedDocumentCount`), which reads no document. They differ
//! all the time while changes are on the way, so a difference counts only when
//!
//! - it is larger than what waits in the queue, or lies among the dead letters, can explain,
//! - it outlives [`LOOKS`] looks over more than a minute (both servers expire documents once a minute, each
//!   at a moment of its own), and
//! - an exact count on both sides confirms it. An estimate may be off for good after a server has crashed;
//!   by how much is remembered, so that the exact count is made once. Of a collection that expires its
//!   documents, that is a count of what both must have ([`expiring`](super::expiring)).

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::{Duration, Instant},
};

use bson::RawDocument;

use super::{Collection, Context, Sides, SyncError, pause, schema::describe};
use crate::{
    model::namespace::Namespace,
    observe::status::{Counted, Divergence},
    runtime::{
        clock::{self, now_ms},
        shutdown::{Stop, blocking},
    },
    schema::expiry::Expiry,
    sink::SchemaSink,
};

/// How often a difference is looked at before it is believed, and how far apart at the most.
const LOOKS: usize = 6;
pub(super) const LOOK_APART: Duration = Duration::from_secs(15);

/// How long, and how often, what was committed before a count is waited for to be read.
const READ_LOOKS: usize = 20;
const READ_APART: Duration = Duration::from_millis(500);

/// How long what an exact count has confirmed is believed without another one.
const CONFIRM_EVERY: Duration = Duration::from_secs(3600);

/// How long after its start the agent counts for the first time.
const FIRST: Duration = Duration::from_secs(10);

/// What both sides hold of a collection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Counts {
    /// Before and after Atlas was asked.
    pub local: [u64; 2],
    pub atlas: u64,
    /// Documents that wait in the queue or are dead letters: each explains a difference of one.
    pub pending: u64,
}

/// What was found out before.
#[derive(Default)]
struct CountsSoFar {
    /// By how much the estimates of Atlas are off, compared with those of the local database.
    drifts: HashMap<Namespace, i64>,
    /// What an exact count has said of a difference of the estimates, and when.
    counted: HashMap<Namespace, Exact>,
}

/// See [`CountsSoFar::counted`].
struct Exact {
    at: Instant,
    /// By how much the estimates differed.
    difference: i64,
    divergences: Vec<Divergence>,
    /// The last sync by then: another one may have mended what was found.
    sync: Option<String>,
}

impl CountsSoFar {
    /// Forgets what was counted where the estimates do not differ any more, but not that there was nothing to tell:
    /// where documents expire they differ now and then, and counting costs what it costs.
    fn keep(&mut self, open: &[Collection]) {
        self.counted.retain(|ns, counted| {
            open.iter().any(|collection| collection.ns == *ns)
                || (counted.divergences.is_empty() && clock::since(counted.at) < CONFIRM_EVERY)
        });
    }

    /// What was counted of a collection, and counts still: for a while, as long as the estimates differ by as much, or
    /// documents expire and they are never the same, and no sync may have mended it.
    fn counts_still(
        &self,
        ns: &Namespace,
        difference: i64,
        expires: bool,
        sync: Option<&String>,
    ) -> Option<Vec<Divergence>> {
        let counted = self.counted.get(ns)?;
        let is_young = clock::since(counted.at) < CONFIRM_EVERY;
        let is_of_now = counted.difference == difference || expires;
        (is_young && is_of_now && counted.sync.as_ref() == sync).then(|| self.told(ns))
    }

    fn told(&self, ns: &Namespace) -> Vec<Divergence> {
        self.counted.get(ns).map(|counted| counted.divergences.clone()).unwrap_or_default()
    }
}

impl Counts {
    fn difference(&self) -> i64 {
        self.atlas as i64 - self.local[1] as i64
    }

    /// True when neither side has less than half of the other.
    pub fn are_about_equal(&self) -> bool {
        let (local, atlas) = (self.local[1], self.atlas);
        local.min(atlas) >= local.max(atlas) / 2
    }

    /// True when what waits explains the difference, given that the estimates of Atlas are off by `drift`.
    pub fn are_explained(&self, drift: i64) -> bool {
        let [first, second] = self.local;
        let atlas = i128::from(self.atlas) - i128::from(drift);
        let low = i128::from(first.min(second)) - i128::from(self.pending);
        let high = i128::from(first.max(second)) + i128::from(self.pending);
        (low..=high).contains(&atlas)
    }
}

/// Counts both sides from time to time.
pub(super) struct CountCheck<K> {
    pub(super) cx: Arc<Context<K>>,
    /// How often. Zero: never.
    pub(super) every: Duration,
}

impl<K: SchemaSink> CountCheck<K> {
    pub fn new(cx: Arc<Context<K>>, every: Duration) -> Self {
        Self { cx, every }
    }

    /// Counts for as long as the agent runs.
    pub async fn keep(&self, stop: &Stop) -> Result<(), SyncError> {
        if self.every.is_zero() {
            std::future::pending::<()>().await;
        }
        let mut known = CountsSoFar::default();
        let mut has_failed = false;
        pause(stop, FIRST.min(self.every)).await?;
        loop {
            if self.may_count() {
                match self.count_all(&mut known, stop).await {
                    Ok(Some(found)) => {
                        has_failed = false;
                        self.cx.status.state().divergences = found;
                    }
                    // Not everything was read meanwhile, or copying began: the next count tells.
                    Ok(None) => {}
                    Err(error @ (SyncError::Stopped | SyncError::Queue(_))) => return Err(error),
                    Err(error) if !has_failed => {
                        has_failed = true;
                        tracing::warn!(%error, "the documents of both sides were not counted");
                    }
                    Err(error) => tracing::debug!(%error, "the documents were not counted"),
                }
            }
            pause(stop, self.every).await?;
        }
    }

    /// A copy or a comparison finds out by itself, and while one runs nothing is as it will be; nor while an
    /// end is away, reading stands still, or a person has paused the writing.
    fn may_count(&self) -> bool {
        let Context { status, reading, writing, in_hand, .. } = &*self.cx;
        let is_quiet =
            !status.faults.atlas.is_any() && !status.faults.local.is_any() && !reading.is_stopped();
        writing.is_acquired() && !writing.is_paused() && !in_hand.runs() && is_quiet
    }

    /// True once everything that was committed before the call is in the queue: what is not read yet could
    /// explain any difference.
    pub(super) async fn has_read_all(&self, stop: &Stop) -> Result<bool, SyncError> {
        let now = self.cx.sides.local.now().await?;
        for _ in 0..READ_LOOKS {
            if self.cx.reading.position().has_read(now) {
                return Ok(true);
            }
            pause(stop, READ_APART).await?;
        }
        Ok(false)
    }

    /// `None` where it cannot be told.
    async fn count_all(
        &self,
        known: &mut CountsSoFar,
        stop: &Stop,
    ) -> Result<Option<Vec<Divergence>>, SyncError> {
        let permit = self.cx.sides.local.permit();
        let listing = self.cx.source_listing().await?;
        let mut open = listing.collections;
        for look in 0..LOOKS {
            if look > 0 {
                pause(stop, LOOK_APART.min(self.every)).await?;
            }
            if !self.may_count() || !self.has_read_all(stop).await? {
                return Ok(None);
            }
            let dead = self.dead_letters().await?;
            let mut counted = Vec::new();
            let mut still = Vec::new();
            for collection in open {
                let ns = &collection.ns;
                let counts = self.count(ns, &dead).await?;
                counted.push((ns.clone(), counts));
                let drift = known.drifts.get(ns).copied().unwrap_or(0);
                // Which documents a capped collection has thrown away is each server's own affair; and what a
                // barrier stands for is no number of documents.
                let is_left_out = collection.is_capped() || self.cx.queue.has_barrier(ns);
                if !is_left_out && !counts.are_explained(drift) {
                    still.push(collection);
                }
            }
            self.note_figures(&counted, look == 0);
            open = still;
            if open.is_empty() {
                break;
            }
        }
        known.keep(&open);
        let mut found = Vec::new();
        for collection in open {
            match self.confirm(&collection.ns, known, stop).await? {
                Some(confirmed) => found.extend(confirmed),
                // What was told of it stays.
                None => found.extend(known.told(&collection.ns)),
            }
        }
        // Nothing is told of what may be another database, nor remembered.
        if !permit.holds() {
            *known = CountsSoFar::default();
            return Ok(None);
        }
        Ok(Some(found))
    }

    /// What an exact count makes of a difference that lasts; `None` where that cannot be told.
    async fn confirm(
        &self,
        ns: &Namespace,
        known: &mut CountsSoFar,
        stop: &Stop,
    ) -> Result<Option<Vec<Divergence>>, SyncError> {
        let described = describe(&*self.cx.sides.local, ns).await?;
        let expiry = described.as_ref().and_then(Expiry::of);
        let sync = self.cx.in_hand.last();
        let dead = self.dead_letters().await?;
        let estimated = self.count(ns, &dead).await?;
        let difference = estimated.difference();
        // It reads every key on both sides, so it is not repeated while nothing has changed. What expires changes
        // all the time.
        let still = known.counts_still(ns, difference, expiry.is_some(), sync.as_ref());
        if still.is_some() {
            return Ok(still);
        }
        let found = match expiry {
            Some(expiry) => self.confirm_expiring(ns, &expiry, estimated, stop).await?,
            None => Some(self.confirm_all(ns, estimated, known).await?.into_iter().collect()),
        };
        if let Some(found) = &found {
            let divergences = found.clone();
            let counted = Exact { at: clock::now(), difference, divergences, sync };
            known.counted.insert(ns.clone(), counted);
        }
        Ok(found)
    }

    /// As [`confirm`](Self::confirm), of a collection that keeps what it has.
    async fn confirm_all(
        &self,
        ns: &Namespace,
        estimated: Counts,
        known: &mut CountsSoFar,
    ) -> Result<Option<Divergence>, SyncError> {
        let [_, local] = estimated.local;
        let exact = self.count_exactly(ns, None).await?;
        let of = |local, atlas, counted| Divergence { ns: ns.to_string(), local, atlas, counted };
        let divergence = match exact {
            // Too many to be counted one by one; the estimates are all there is.
            None => Some(of(local, estimated.atlas, Counted::Estimated)),
            Some(exact) if exact.are_explained(0) => {
                if exact.local == [exact.atlas; 2] && exact.pending + estimated.pending == 0 {
                    let off = |estimate: u64, count: u64| estimate as i64 - count as i64;
                    let drift = off(estimated.atlas, exact.atlas) - off(local, exact.local[1]);
                    tracing::info!(%ns, drift, "a server's estimate of its documents is off; an exact count agrees");
                    known.drifts.insert(ns.clone(), drift);
                }
                None
            }
            Some(exact) => Some(of(exact.local[1], exact.atlas, Counted::All)),
        };
        if divergence.is_some() {
            known.drifts.remove(ns);
        }
        Ok(divergence)
    }

    async fn dead_letters(&self) -> Result<BTreeMap<Namespace, u64>, SyncError> {
        let queue = self.cx.queue.clone();
        Ok(blocking(move || queue.dead_letters_by_namespace()).await?)
    }

    async fn count(
        &self,
        ns: &Namespace,
        dead: &BTreeMap<Namespace, u64>,
    ) -> Result<Counts, SyncError> {
        let before = self.cx.queue.pending_of(ns);
        let Sides { local, atlas, .. } = &self.cx.sides;
        let first = local.estimated_count(ns).await?;
        let atlas = atlas.estimated_count(ns).await?;
        let second = local.estimated_count(ns).await?;
        let pending = before.max(self.cx.queue.pending_of(ns)) + dead.get(ns).copied().unwrap_or(0);
        Ok(Counts { local: [first, second], atlas, pending })
    }

    /// Counts what `filter` chooses; all where there is none. `None` where a server would take longer than an
    /// answer is waited for.
    pub(super) async fn count_exactly(
        &self,
        ns: &Namespace,
        filter: Option<&RawDocument>,
    ) -> Result<Option<Counts>, SyncError> {
        let dead = self.dead_letters().await?;
        let before = self.cx.queue.pending_of(ns);
        let Sides { local, atlas, .. } = &self.cx.sides;
        let first = local.count(ns, filter).await?;
        let atlas = atlas.count(ns, filter).await?;
        let second = local.count(ns, filter).await?;
        let (Some(first), Some(atlas), Some(second)) = (first, atlas, second) else {
            return Ok(None);
        };
        let pending = before.max(self.cx.queue.pending_of(ns)) + dead.get(ns).copied().unwrap_or(0);
        Ok(Some(Counts { local: [first, second], atlas, pending }))
    }

    /// What the dashboard shows of each collection. `is_all`: those that are gone take their figures along.
    fn note_figures(&self, counted: &[(Namespace, Counts)], is_all: bool) {
        let mut state = self.cx.status.state();
        if is_all {
            state.namespaces.retain(|ns, _| counted.iter().any(|(of, _)| of == ns));
        }
        let counted_ms = now_ms();
        for (ns, counts) in counted {
            let figures = state.namespaces.entry(ns.clone()).or_default();
            (figures.local_documents, figures.atlas_documents) =
                (Some(counts.local[1]), Some(counts.atlas));
            figures.counted_ms = counted_ms;
        }
    }
}

#[cfg(test)]
mod tests;
