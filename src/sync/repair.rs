//! What a full sync does with what it finds: a `Refresh` for each document that differs, in bounded
//! numbers, and no mass delete that nobody asked for.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use parking_lot::{Mutex, MutexGuard};

use super::{
    Reconciler, SyncError,
    compare::{Compared, Comparison, Findings, Mismatch},
    ends::{End, ask},
    first::Plans,
    pause,
    range::{KeyRange, Part, Size, splits},
};
use crate::{
    model::{
        checkpoint::ClusterTime,
        document_key::DocumentKey,
        event::{CollectionId, SchemaChange},
        namespace::Namespace,
        write_op::WriteOp,
    },
    queue::{Incoming, Work},
    runtime::{
        clock::now_ms,
        shutdown::{Stop, blocking},
    },
    sink::Sink,
    sync::state::{CopyPlan, SyncRequest},
};

/// While so many entries wait, the comparison does too: a huge difference must not fill the queue.
const QUEUE_MAX: u64 = 50_000;

/// How often to look whether it has drained.
const DRAIN_CHECK: Duration = Duration::from_millis(100);

/// How long what only Atlas has waits for what is on its way.
const WRITTEN_WITHIN: Duration = Duration::from_secs(60);

/// Fewer deletes than this are never a mass delete.
pub(super) const MASS_DELETE_MIN: u64 = 100;

/// Bytes of keys that are kept until it is known how many there are in all. Beyond it the collection's keys
/// are read once more.
const KEPT_BYTES: usize = 4 << 20;

/// The comparison of one collection, and the repair of what it finds.
pub(super) struct Repair<'a, K> {
    pub reconciler: &'a Reconciler<K>,
    pub ns: &'a Namespace,
    /// The collection that has the name; `None` for one that only Atlas has.
    pub id: Option<CollectionId>,
    pub after: ClusterTime,
    pub request: &'a SyncRequest,
    pub stop: &'a Stop,
    extra: Mutex<Extra>,
}

/// What only Atlas has: kept back until the guard has seen how much it is.
#[derive(Default)]
struct Extra {
    atlas_documents: u64,
    total: u64,
    kept: Vec<DocumentKey>,
    kept_bytes: usize,
    /// The second walk: what is found was counted by the first.
    is_counted: bool,
    /// The last walk: everything is queued at once.
    is_released: bool,
}

impl<'a, K: Sink> Repair<'a, K> {
    pub fn new(
        reconciler: &'a Reconciler<K>,
        collection: (&'a Namespace, Option<CollectionId>),
        after: ClusterTime,
        request: &'a SyncRequest,
        stop: &'a Stop,
    ) -> Self {
        let (ns, id) = collection;
        Self { reconciler, ns, id, after, request, stop, extra: Mutex::default() }
    }

    fn extra(&self) -> MutexGuard<'_, Extra> {
        self.extra.lock()
    }

    /// Compares the collection and queues what differs. True when a mass delete was refused.
    pub async fn run(
        &self,
        plans: &Plans,
        size: Size,
        is_clustered: bool,
    ) -> Result<bool, SyncError> {
        let ends = &self.reconciler.ends;
        let comparison =
            Comparison { ends, ns: self.ns, after: self.after, page: size.page(), stop: self.stop };
        let plan = if let Some(plan) = plans.known(self.ns, false).await {
            plan
        } else {
            let splits = ask!(ends, End::Local, self.stop, splits(&ends.local, self.ns, size));
            let plan = CopyPlan { splits, ..CopyPlan::default() };
            if !plan.splits.is_empty() && !self.request.dry_run {
                plans.begun(self.ns, plan.clone()).await?;
            }
            plan
        };
        let ranges = KeyRange::between(&plan.splits);
        let expected = size.documents / ranges.len() as u64;
        // A clustered collection has no index to hash a range by.
        let by_digest = self.request.digest && !is_clustered;
        let open: Vec<_> = ranges.iter().cloned().enumerate().collect();
        let open = open.into_iter().filter(|(n, _)| !plan.done.contains(n)).collect();
        let (comparison, plan) = (&comparison, &plan);
        ends.each(open, |(n, range)| {
            Box::pin(async move {
                let _slot = ends.slot().await;
                let findings = RangeFindings { repair: self, extra: AtomicU64::new(0) };
                if self.id.is_none() {
                    comparison.range(&range, Part::Key, &findings).await?;
                } else if by_digest {
                    comparison.digest(&range, expected, &findings).await?;
                } else {
                    comparison.range(&range, Part::Whole, &findings).await?;
                }
                // What is kept back is in memory alone; another run must find it again.
                let is_noted = !plan.splits.is_empty() && !self.request.dry_run;
                if findings.extra.into_inner() == 0 && is_noted {
                    plans.range_done(self.ns, n).await?;
                }
                Ok(())
            })
        })
        .await?;
        // Of a comparison that goes on, the ranges that are done were not counted.
        let done = if plan.done.is_empty() { 0 } else { size.documents };
        // What was deleted, or has given way in a capped collection, while both were read is on its way: that is no
        // mass delete. The keys are looked at once more, when what was made until now is in Atlas.
        if self.is_too_much(done) && self.id.is_some() && !self.request.dry_run {
            self.until_written().await?;
            *self.extra() = Extra { is_counted: true, ..Extra::default() };
            self.walk_keys(comparison, ranges.clone()).await?;
        }
        if self.is_too_much(done) {
            return Ok(true);
        }
        let (kept, total) = {
            let mut extra = self.extra();
            extra.is_released = true;
            (std::mem::take(&mut extra.kept), extra.total)
        };
        if self.request.dry_run {
            return Ok(false);
        }
        if self.id.is_none() {
            return self.queue_drop().await.map(|()| false);
        }
        if kept.len() as u64 == total {
            self.queue_refresh(kept).await?;
        } else {
            self.walk_keys(comparison, ranges).await?;
        }
        Ok(false)
    }

    /// True when a person has to say first that so much may be deleted, of `done` documents and more.
    fn is_too_much(&self, done: u64) -> bool {
        let extra = self.extra();
        let all = extra.atlas_documents.max(done);
        let allowed = (all as f64 * self.reconciler.max_delete_ratio) as u64;
        extra.total > allowed.max(MASS_DELETE_MIN) && !self.request.allow_mass_delete
    }

    /// Compares which documents there are, once more.
    async fn walk_keys(
        &self,
        comparison: &Comparison<'_>,
        ranges: Vec<KeyRange>,
    ) -> Result<(), SyncError> {
        let ends = &self.reconciler.ends;
        ends.each(ranges, |range| {
            Box::pin(async move {
                let _slot = ends.slot().await;
                let findings = RangeFindings { repair: self, extra: AtomicU64::new(0) };
                comparison.range(&range, Part::Key, &findings).await
            })
        })
        .await
        .map(drop)
    }

    /// Waits, but not for ever, until what was made of the collection so far is in Atlas.
    async fn until_written(&self) -> Result<(), SyncError> {
        let reconciler = self.reconciler;
        let (mut began, now) = (Instant::now(), reconciler.local_time(self.stop).await?);
        let is_open = || {
            !reconciler.status.state().position.has_read(now)
                || reconciler.queue.pending_of(self.ns) > 0
        };
        while is_open() && began.elapsed() < WRITTEN_WITHIN {
            pause(self.stop, DRAIN_CHECK).await?;
            if reconciler.status.rests() {
                began = Instant::now();
            }
        }
        Ok(())
    }

    /// The collection goes as a whole. In the order of the queue, since the local database may make it again
    /// at any moment.
    async fn queue_drop(&self) -> Result<(), SyncError> {
        let change = SchemaChange::DropIfGone { ns: self.ns.clone() };
        let incoming =
            Incoming { work: Work::Schema(change), cluster_time: self.after, wall_ms: now_ms() };
        let queue = self.reconciler.queue.clone();
        blocking(move || queue.commit(vec![incoming], None)).await?;
        Ok(())
    }

    async fn queue_refresh(&self, keys: Vec<DocumentKey>) -> Result<(), SyncError> {
        for part in keys.chunks(1_000) {
            // What waits for a retry may wait for this very sync: for the delete of what only Atlas has.
            while self.reconciler.queue.ready() > self.reconciler.queue_max.min(QUEUE_MAX) {
                pause(self.stop, DRAIN_CHECK).await?;
            }
            self.reconciler.commit_refresh(self.ns, part.to_vec(), self.id, self.after).await?;
        }
        Ok(())
    }

    fn count(&self, part: &Compared) {
        let found = |kind| part.found.iter().filter(|(of, _)| *of == kind).count() as u64;
        let status = &self.reconciler.status;
        let mut state = status.state();
        let received = self.reconciler.ends.atlas.received();
        let Some(progress) = &mut state.sync else { return };
        progress.bytes_from_atlas = received.saturating_sub(self.reconciler.received_before.get());
        progress.advanced(self.ns, part.local_documents, part.bytes, now_ms());
        let share = progress.share(self.ns);
        share.missing += found(Mismatch::Missing);
        share.extra += found(Mismatch::Extra);
        share.content += found(Mismatch::Content);
    }
}

/// One range's findings, of which it is to be known whether anything was kept back.
struct RangeFindings<'a, K> {
    repair: &'a Repair<'a, K>,
    extra: AtomicU64,
}

impl<K: Sink> Findings for RangeFindings<'_, K> {
    async fn compared(&self, part: Compared) -> Result<(), SyncError> {
        let extra = part.found.iter().filter(|(kind, _)| *kind == Mismatch::Extra).count();
        self.extra.fetch_add(extra as u64, Ordering::Relaxed);
        self.repair.compared(part).await
    }
}

impl<K: Sink> Repair<'_, K> {
    async fn compared(&self, part: Compared) -> Result<(), SyncError> {
        let (is_released, is_counted) = {
            let extra = self.extra();
            (extra.is_released, extra.is_counted)
        };
        if !is_released && !is_counted {
            self.count(&part);
        }
        let (mut differing, mut only_there) = (Vec::new(), Vec::new());
        for (kind, key) in part.found {
            match kind {
                Mismatch::Extra => only_there.push(key),
                Mismatch::Missing | Mismatch::Content => differing.push(key),
            }
        }
        if is_released {
            return self.queue_refresh(only_there).await;
        }
        {
            let mut extra = self.extra();
            extra.atlas_documents += part.atlas_documents;
            extra.total += only_there.len() as u64;
            for key in only_there {
                if extra.kept_bytes < KEPT_BYTES {
                    extra.kept_bytes += key.filter().as_bytes().len();
                    extra.kept.push(key);
                }
            }
        }
        if self.request.dry_run { Ok(()) } else { self.queue_refresh(differing).await }
    }
}

impl<K: Sink> Reconciler<K> {
    /// Queues a `Refresh` of each key, to be read in a state not older than `after`.
    pub(super) async fn commit_refresh(
        &self,
        ns: &Namespace,
        keys: Vec<DocumentKey>,
        id: Option<CollectionId>,
        after: ClusterTime,
    ) -> Result<(), SyncError> {
        if keys.is_empty() {
            return Ok(());
        }
        self.status.repaired.add(ns, &keys);
        // What streaming has brought to Atlas since must not be read in an older state.
        let after = after.max(self.status.state().position.whole());
        let incoming: Vec<_> = keys
            .into_iter()
            .map(|key| Incoming {
                work: Work::Document { ns: ns.clone(), key, op: WriteOp::Refresh, collection: id },
                cluster_time: after,
                wall_ms: now_ms(),
            })
            .collect();
        let queue = self.queue.clone();
        blocking(move || queue.commit(incoming, None)).await?;
        Ok(())
    }
}
