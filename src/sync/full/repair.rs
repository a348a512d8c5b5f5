//! What a full sync does with what it finds: a `Refresh` for each document that differs, in bounded
//! numbers, and no mass delete that nobody asked for.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use parking_lot::{Mutex, MutexGuard};

use super::run::{LOOK_AGAIN, Run};
use crate::{
    model::{
        document_key::DocumentKey,
        event::{CollectionId, SchemaChange},
        namespace::Namespace,
    },
    queue::{Incoming, Work},
    runtime::{
        clock::{self, now_ms},
        shutdown::blocking,
    },
    schema::Kind,
    side::{Collection, KeyRange, Part, Size},
    sink::SchemaSink,
    sync::{
        SyncError,
        compare::{Compared, Comparison, Findings, Mismatch},
        pause,
        range::splits,
        sides::ask,
        state::CopyPlan,
    },
};

/// While so many entries wait, the comparison does too: a huge difference must not fill the queue.
const QUEUE_MAX: u64 = 50_000;

/// How long what only Atlas has waits for what is on its way.
const WRITTEN_WITHIN: Duration = Duration::from_secs(60);

/// Bytes of keys that are kept until it is known how many there are in all. Beyond it the collection's keys
/// are read once more.
const KEPT_BYTES: usize = 4 << 20;

/// The comparison of one collection, and the repair of what it finds.
pub(super) struct Repair<'a, K> {
    run: &'a Run<'a, K>,
    ns: &'a Namespace,
    /// The collection that has the name; `None` for one that only Atlas has.
    id: Option<CollectionId>,
    extra: Mutex<Extra>,
}

/// Which walk over the collection it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Pass {
    /// What is found is counted, and what only Atlas has is kept back.
    #[default]
    First,
    /// The keys once more: what is found was counted by the first.
    Again,
    /// It is known how much it is: everything is queued at once.
    Release,
}

/// What only Atlas has: kept back until it is known how much it is.
#[derive(Default)]
struct Extra {
    pass: Pass,
    atlas_documents: u64,
    total: u64,
    kept: Vec<DocumentKey>,
    kept_bytes: usize,
}

impl Extra {
    fn keep(&mut self, atlas_documents: u64, keys: Vec<DocumentKey>) {
        self.atlas_documents += atlas_documents;
        self.total += keys.len() as u64;
        for key in keys {
            if self.kept_bytes < KEPT_BYTES {
                self.kept_bytes += key.filter().as_bytes().len();
                self.kept.push(key);
            }
        }
    }

    /// What was kept back, from where on nothing is. `None` when that was more than is kept.
    fn release(&mut self) -> Option<Vec<DocumentKey>> {
        self.pass = Pass::Release;
        let kept = std::mem::take(&mut self.kept);
        (kept.len() as u64 == self.total).then_some(kept)
    }
}

impl<'a, K: SchemaSink> Repair<'a, K> {
    pub fn new(run: &'a Run<'a, K>, ns: &'a Namespace, id: Option<CollectionId>) -> Self {
        Self { run, ns, id, extra: Mutex::default() }
    }

    fn extra(&self) -> MutexGuard<'_, Extra> {
        self.extra.lock()
    }

    /// Compares the collection and queues what differs. True when a mass delete was refused.
    pub async fn run(
        &self,
        size: Size,
        collection: Option<&Collection>,
    ) -> Result<bool, SyncError> {
        let Run { cx, after, stop, .. } = self.run;
        let comparison = Comparison {
            sides: &cx.sides,
            ns: self.ns,
            after: *after,
            is_only_in_target: self.is_another_kind().await?,
            by_key: collection.is_some_and(|of| !cx.sides.atlas.keeps_order_of(&of.options)),
            page: size.page(),
            stop,
        };
        let plan = if comparison.by_key { CopyPlan::default() } else { self.load(size).await? };
        let is_clustered = collection.is_some_and(Collection::is_clustered);
        // A clustered collection has no index to hash a range by.
        let by_digest = self.run.request.digest && !is_clustered;
        self.compare(&comparison, &plan, size, by_digest).await?;
        let ranges = KeyRange::between(&plan.splits);
        // Of a comparison that goes on, the ranges that are done were not counted.
        let done = if plan.done.is_empty() { 0 } else { size.documents };
        // What was deleted, or has given way in a capped collection, while both were read is on its way: that is no
        // mass delete. The keys are looked at once more, when what was made until now is in Atlas.
        if self.is_too_much(done) && self.id.is_some() && !self.run.is_dry() {
            self.until_written().await?;
            *self.extra() = Extra { pass: Pass::Again, ..Extra::default() };
            self.walk_keys(&comparison, ranges.clone()).await?;
        }
        if self.is_too_much(done) {
            return Ok(true);
        }
        self.release(&comparison, ranges).await.map(|()| false)
    }

    /// True where what only Atlas has as a collection is something else locally.
    async fn is_another_kind(&self) -> Result<bool, SyncError> {
        if self.id.is_some() {
            return Ok(false);
        }
        let Run { cx, stop, .. } = self.run;
        let source = ask!(cx.sides, stop, cx.sides.local.describe_options(self.ns));
        Ok(source.is_some_and(|source| source.kind != Kind::Collection))
    }

    /// How far an earlier run has come, or where this one begins.
    async fn load(&self, size: Size) -> Result<CopyPlan, SyncError> {
        let Run { cx, plans, stop, .. } = self.run;
        if let Some(plan) = plans.known(self.ns, false).await {
            return Ok(plan);
        }
        let splits = ask!(cx.sides, stop, splits(&*cx.sides.local, self.ns, size));
        let plan = CopyPlan { splits, ..CopyPlan::default() };
        if self.is_noted(&plan) {
            plans.begun(self.ns, plan.clone()).await?;
        }
        Ok(plan)
    }

    /// True when its ranges are noted, so that it may go on where it was.
    fn is_noted(&self, plan: &CopyPlan) -> bool {
        !plan.splits.is_empty() && !self.run.is_dry()
    }

    /// Compares the ranges that are open.
    async fn compare(
        &self,
        comparison: &Comparison<'_>,
        plan: &CopyPlan,
        size: Size,
        by_digest: bool,
    ) -> Result<(), SyncError> {
        let ranges = KeyRange::between(&plan.splits);
        let expected = size.documents / ranges.len() as u64;
        let open = ranges.into_iter().enumerate().filter(|(n, _)| !plan.done.contains(n));
        let sides = &self.run.cx.sides;
        sides
            .each(open.collect(), |(n, range)| {
                Box::pin(async move {
                    let _slot = sides.slot().await;
                    let findings = RangeFindings { repair: self, extra: AtomicU64::new(0) };
                    if self.id.is_none() {
                        comparison.range(&range, Part::Key, &findings).await?;
                    } else if by_digest {
                        comparison.digest(&range, expected, &findings).await?;
                    } else {
                        comparison.range(&range, Part::Whole, &findings).await?;
                    }
                    // What is kept back is in memory alone; another run must find it again.
                    if findings.extra.into_inner() == 0 && self.is_noted(plan) {
                        self.run.plans.range_done(self.ns, n).await?;
                    }
                    Ok(())
                })
            })
            .await
            .map(drop)
    }

    /// True when a person has to say first that so much may be deleted, of `done` documents and more.
    fn is_too_much(&self, done: u64) -> bool {
        let extra = self.extra();
        let all = extra.atlas_documents.max(done);
        self.run.deletes.is_mass_delete(extra.total, all) && !self.run.request.allow_mass_delete
    }

    /// Queues what was kept back.
    async fn release(
        &self,
        comparison: &Comparison<'_>,
        ranges: Vec<KeyRange>,
    ) -> Result<(), SyncError> {
        let kept = self.extra().release();
        if self.run.is_dry() {
            return Ok(());
        }
        if self.id.is_none() {
            return self.queue_drop().await;
        }
        match kept {
            Some(kept) => self.queue_refresh(kept).await,
            None => self.walk_keys(comparison, ranges).await,
        }
    }

    /// Compares which documents there are, once more.
    async fn walk_keys(
        &self,
        comparison: &Comparison<'_>,
        ranges: Vec<KeyRange>,
    ) -> Result<(), SyncError> {
        let sides = &self.run.cx.sides;
        sides
            .each(ranges, |range| {
                Box::pin(async move {
                    let _slot = sides.slot().await;
                    let findings = RangeFindings { repair: self, extra: AtomicU64::new(0) };
                    comparison.range(&range, Part::Key, &findings).await
                })
            })
            .await
            .map(drop)
    }

    /// Waits, but not for ever, until what was made of the collection so far is in Atlas.
    async fn until_written(&self) -> Result<(), SyncError> {
        let Run { cx, stop, .. } = self.run;
        let (mut began, now) = (clock::now(), cx.local_time(stop).await?);
        let is_open = || !cx.reading.position().has_read(now) || cx.queue.pending_of(self.ns) > 0;
        while is_open() && clock::since(began) < WRITTEN_WITHIN {
            pause(stop, LOOK_AGAIN).await?;
            if cx.writing.rests() {
                began = clock::now();
            }
        }
        Ok(())
    }

    /// The collection goes as a whole. In the order of the queue, since the local database may make it again
    /// at any moment.
    async fn queue_drop(&self) -> Result<(), SyncError> {
        let change = SchemaChange::DropIfGone { ns: self.ns.clone() };
        let cluster_time = self.run.after;
        let incoming = Incoming { work: Work::Schema(change), cluster_time, wall_ms: now_ms() };
        let queue = self.run.cx.queue.clone();
        blocking(move || queue.commit(vec![incoming], None)).await?;
        Ok(())
    }

    async fn queue_refresh(&self, keys: Vec<DocumentKey>) -> Result<(), SyncError> {
        let Run { cx, after, stop, queue_max, .. } = self.run;
        for part in keys.chunks(1_000) {
            // What waits for a retry may wait for this very sync: for the delete of what only Atlas has.
            while cx.queue.ready() > QUEUE_MAX.min(*queue_max) {
                pause(stop, LOOK_AGAIN).await?;
            }
            cx.commit_refresh(self.ns, part.to_vec(), self.id, *after).await?;
        }
        Ok(())
    }

    fn count(&self, part: &Compared) {
        let found = |kind| part.found.iter().filter(|(of, _)| *of == kind).count() as u64;
        let received = self.run.received();
        let mut state = self.run.cx.status.state();
        let Some(progress) = &mut state.sync else { return };
        progress.bytes_from_atlas = received;
        progress.advanced(self.ns, part.local_documents, part.bytes, now_ms());
        let share = progress.share(self.ns);
        share.missing += found(Mismatch::Missing);
        share.extra += found(Mismatch::Extra);
        share.content += found(Mismatch::Content);
    }

    async fn compared(&self, part: Compared) -> Result<(), SyncError> {
        let pass = self.extra().pass;
        if pass == Pass::First {
            self.count(&part);
        }
        let (mut differing, mut only_in_target) = (Vec::new(), Vec::new());
        for (kind, key) in part.found {
            match kind {
                Mismatch::Extra => only_in_target.push(key),
                Mismatch::Missing | Mismatch::Content => differing.push(key),
            }
        }
        if pass == Pass::Release {
            return self.queue_refresh(only_in_target).await;
        }
        self.extra().keep(part.atlas_documents, only_in_target);
        if self.run.is_dry() { Ok(()) } else { self.queue_refresh(differing).await }
    }
}

/// One range's findings, of which it is to be known whether anything was kept back.
struct RangeFindings<'a, K> {
    repair: &'a Repair<'a, K>,
    extra: AtomicU64,
}

impl<K: SchemaSink> Findings for RangeFindings<'_, K> {
    async fn compared(&self, part: Compared) -> Result<(), SyncError> {
        let extra = part.found.iter().filter(|(kind, _)| *kind == Mismatch::Extra).count();
        self.extra.fetch_add(extra as u64, Ordering::Relaxed);
        self.repair.compared(part).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(n: i32) -> Vec<DocumentKey> {
        (0..n).map(|n| DocumentKey::of(&bson::rawdoc! { "_id": n }).unwrap()).collect()
    }

    #[test]
    fn what_only_atlas_has_is_kept_back_as_far_as_memory_allows() {
        let mut extra = Extra::default();
        extra.keep(500, keys(3));
        extra.keep(500, keys(2));
        assert_eq!((extra.atlas_documents, extra.total), (1_000, 5));
        let bytes: usize = extra.kept.iter().map(|key| key.filter().as_bytes().len()).sum();
        assert_eq!(extra.kept_bytes, bytes);
        assert_eq!(extra.release().map(|kept| kept.len()), Some(5));
        assert_eq!(extra.pass, Pass::Release);

        let mut full = Extra { kept_bytes: KEPT_BYTES, ..Extra::default() };
        full.keep(1, keys(1));
        assert_eq!((full.total, full.release()), (1, None), "the keys are read once more");
    }
}
