//! The first copy of a collection: what is queued for it is held until it is over.

use super::{plan::Plan, run::Run};
use crate::{
    model::{
        checkpoint::ClusterTime,
        document_key::DocumentKey,
        event::{CollectionId, SchemaChange},
        namespace::Namespace,
    },
    observe::progress::ShareState,
    runtime::{
        clock::{self, now_ms},
        crash,
    },
    side::{KeyRange, Order, Size},
    sink::{SchemaSink, SinkError, Write},
    sync::{
        Collection, SyncError,
        copy::{Copier, CopyObserver, ThereAlready, Unit},
        range::splits,
        schema::{apply_schema, indexes_of, unique_builds},
        sides::{SideName, ask},
        state::CopyPlan,
    },
};

/// Copies a collection that is held, and releases it. False when a barrier has come for it, so that
/// nothing was done.
pub(super) async fn copy_unless_barrier<K: SchemaSink>(
    run: &Run<'_, K>,
    plan: Plan,
    collection: &Collection,
    size: Size,
) -> Result<bool, SyncError> {
    let ns = &collection.ns;
    if run.cx.queue.kept_apart().has(ns) {
        return Ok(true); // Since it was listed.
    }
    if run.cx.queue.has_barrier(ns) {
        run.cx.queue.release(ns);
        return Ok(false);
    }
    // Its drop or its rename may have been applied since it was listed, and it would be made for good. What is
    // made of it from here on waits in the queue, as long as it is held.
    if has_lost_its_name(run, plan, collection).await? {
        return Ok(true);
    }
    run.set_state(ns, ShareState::Running);
    create(run, collection).await?;
    let plan = plan_of(run, collection, size).await?;
    skip_done(run, ns, &plan, size);
    copy_ranges(run, collection, &plan, size).await?;
    crash::point(crash::CrashPoint::CollectionCopied);
    if collection.is_capped() {
        // What was read is later than the stream.
        run.cx.queue.wait_for_stream(ns, run.cx.local_time(run.stop).await?);
    }
    run.cx.queue.release(ns);
    run.plans.finished(ns, false).await?;
    run.set_state(ns, ShareState::Done);
    tracing::info!(%ns, documents = size.documents, "copied");
    Ok(true)
}

/// The ranges to copy: those of an earlier run, or new ones, which are noted first.
async fn plan_of<K: SchemaSink>(
    run: &Run<'_, K>,
    collection: &Collection,
    size: Size,
) -> Result<CopyPlan, SyncError> {
    let ns = &collection.ns;
    if let Some(known) = run.plans.known(ns, true).await {
        return Ok(known);
    }
    let splits = if collection.is_capped() {
        Vec::new() // In the order of insertion, and so in one piece.
    } else {
        ask!(run.cx.sides, run.stop, splits(&*run.cx.sides.local, ns, size))
    };
    let plan = CopyPlan { splits, is_copy: true, ..CopyPlan::default() };
    run.plans.begun(ns, plan.clone()).await?;
    Ok(plan)
}

/// Copies the ranges that are open, several at a time.
async fn copy_ranges<K: SchemaSink>(
    run: &Run<'_, K>,
    collection: &Collection,
    plan: &CopyPlan,
    size: Size,
) -> Result<(), SyncError> {
    let ns = &collection.ns;
    // A read of now has everything that was queued before it was held.
    let after = run.after.max(run.cx.reading.position().whole());
    let notes = CopyNotes { run, id: collection.id };
    let copier = Copier {
        sides: &run.cx.sides,
        from: SideName::Local,
        sink: &*run.cx.sink,
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
    let order =
        if ranges.len() == 1 && plan.splits.is_empty() { Order::Natural } else { Order::ById };
    let copier = &copier;
    run.cx
        .sides
        .each(ranges, |(n, range)| {
            let unit = Unit { ns: ns.clone(), range, order, page: size.page() };
            Box::pin(async move {
                copier.copy(&unit).await?;
                if !plan.splits.is_empty() {
                    run.plans.range_done(&unit.ns, n).await?;
                    crash::point(crash::CrashPoint::RangeNoted);
                }
                Ok(())
            })
        })
        .await?;
    Ok(())
}

/// True for one of those that are replaced as a whole whose name means something else by now, or nothing. It is
/// held: there is nothing to do with it any more, and it is released.
pub(super) async fn has_lost_its_name<K: SchemaSink>(
    run: &Run<'_, K>,
    plan: Plan,
    collection: &Collection,
) -> Result<bool, SyncError> {
    if !plan.replaces() || run.is_still(collection).await? {
        return Ok(false);
    }
    let ns = &collection.ns;
    run.cx.queue.release(ns);
    run.plans.finished(ns, false).await?;
    run.set_state(ns, ShareState::Done);
    Ok(true)
}

/// What an earlier run has copied is not to be done.
fn skip_done<K: SchemaSink>(run: &Run<'_, K>, ns: &Namespace, plan: &CopyPlan, size: Size) {
    let ranges = plan.splits.len() as u64 + 1;
    let left = ranges - (plan.done.len() as u64).min(ranges);
    if let Some(progress) = &mut run.cx.status.state().sync {
        progress.share(ns).documents = size.documents * left / ranges;
    }
}

/// Makes the collection, and those of its indexes that documents must obey from the first on. The
/// others are built when the documents are there, which is faster.
pub(super) async fn create<K: SchemaSink>(
    run: &Run<'_, K>,
    collection: &Collection,
) -> Result<(), SyncError> {
    run.cx.queue.keep_capped_in_order(&collection.ns, collection.is_capped());
    loop {
        match create_once(run, collection).await {
            Err(SyncError::Outdated) => {}
            result => return result,
        }
    }
}

async fn create_once<K: SchemaSink>(
    run: &Run<'_, K>,
    collection: &Collection,
) -> Result<(), SyncError> {
    let ns = &collection.ns;
    let permit = run.cx.sides.proven(run.stop).await?;
    // As it was listed, where its drop or its rename is still to come.
    let source = run.cx.still(ns, collection.id, run.stop).await?;
    let options = source.map_or_else(|| collection.options.clone(), |source| source.options);
    let change = SchemaChange::Create { ns: ns.clone(), options };
    let mut attempts = run.cx.sides.attempts(run.stop);
    loop {
        match run.try_change(&change, &permit).await? {
            Ok(_) => break,
            // Options that this Atlas does not take must not keep the documents away.
            Err(SinkError::Rejected(error)) => {
                tracing::warn!(%ns, %error, "created without its options");
                break;
            }
            Err(error) => attempts.failed(error).await?,
        }
    }
    let indexes = indexes_of(&run.cx.sides, SideName::Local, ns, run.stop).await?;
    let unique = unique_builds(&indexes);
    if !unique.is_empty() {
        let left =
            apply_schema(&run.cx.sides, SideName::Atlas, ns, (unique, &permit), run.stop).await?;
        for problem in left {
            tracing::warn!(%ns, error = %problem, "copied without it");
        }
    }
    Ok(())
}

/// What the agent notes of a copy.
struct CopyNotes<'a, K> {
    run: &'a Run<'a, K>,
    id: Option<CollectionId>,
}

impl<K: SchemaSink> CopyObserver for CopyNotes<'_, K> {
    async fn may_go_on(&self) -> Result<(), SyncError> {
        self.run.cx.may_write(self.run.stop).await
    }

    fn copied(&self, ns: &Namespace, documents: u64, bytes: u64) {
        let status = &self.run.cx.status;
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
        self.run.cx.commit_refresh(ns, keys, self.id, ClusterTime::default()).await
    }

    fn answered(
        &self,
        ns: &Namespace,
        writes: &[Write<'_>],
        error: Option<&SinkError>,
    ) -> Result<(), SyncError> {
        if let Some(error) = error {
            error.note_writes(ns, writes, &mut self.run.cx.in_doubt(), clock::now());
        }
        let atlas = &self.run.cx.status.faults.atlas;
        match error {
            Some(error) => atlas.fails(error.into()),
            None => atlas.answers(),
        }
        Ok(())
    }
}
