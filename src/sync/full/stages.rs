//! The stages of a run, one after the other: what there is, the copies, the comparisons, what only Atlas has, what
//! was renamed meanwhile, and options and indexes.

use std::collections::BTreeSet;

use parking_lot::Mutex;

use super::{
    apply_schema::{ToApply, apply_schemas},
    behind::wait_until_written,
    finish::finish,
    first::copy_unless_barrier,
    in_the_way::{empty_other_capitals, make_way, other_capitals},
    plan::Scope,
    reconcile::{is_target_empty, reconcile, size_of},
    rest::compare_rest,
    run::{LOOK_AGAIN, Run},
    views::apply_views,
};
use crate::{
    model::namespace::Namespace,
    observe::progress::{ShareState, SyncOutcome},
    policy::read_watermark::ReadWatermark,
    side::Size,
    sink::SchemaSink,
    sync::{Collection, SyncError, pause},
};

/// Does what is noted, and returns how it ended.
pub(super) async fn execute<K: SchemaSink>(
    run: &Run<'_, K>,
    watermark: &Mutex<ReadWatermark>,
) -> Result<SyncOutcome, SyncError> {
    // One that is mandatory for some is noted before its barriers are.
    while run.plan.replaces() && run.cx.reading.position().seen() <= run.after {
        pause(run.stop, LOOK_AGAIN).await?;
    }
    let source = run.source_listing().await?;
    // What waits for Atlas is in one of the two, since the queue is asked first.
    let waiting = run.cx.queue.pending_by_namespace();
    let target = run.target_listing().await?;
    let met: BTreeSet<_> = source.collections.iter().map(|of| of.ns.clone()).collect();
    let stands = target.collections.iter().map(|of| of.ns.clone()).chain(waiting.into_keys());
    let unmet: BTreeSet<_> = stands.filter(|ns| !met.contains(ns)).collect();
    let old = other_capitals(run, &source, &target);
    let collections = source.collections.into_iter().filter(|of| run.scope.has(&of.ns)).collect();
    let collections = make_way(run, collections, &target).await?;
    let (to_copy, to_compare) = sort_out(run, collections).await?;
    // What is not in the list was made after the stream's position was taken: all of its
    // documents are in the stream.
    run.cx.queue.release_all();
    tracing::info!(
        copy = to_copy.len(),
        compare = to_compare.len(),
        "copying what Atlas lacks, comparing what it has"
    );
    empty_other_capitals(run, &old, target).await?;
    // Only what is to be copied is held, and it is copied first: a comparison waits for the
    // queue to drain, which it never would for what is held.
    let in_doubt = copy_all(run, to_copy).await?;
    let others: Vec<_> = to_compare.into_iter().chain(in_doubt).collect();
    clear(run, &others).await?;
    reconcile_all(run, others).await?;
    compare_rest(run, &run.scope, |ns| unmet.contains(ns)).await?;
    let scope = run.scope.with(after_renames(run).await?);
    wait_until_written(run).await?;
    // As they are called by now.
    let mut collections = run.source_listing().await?.collections;
    collections.retain(|collection| scope.has(&collection.ns));
    let problems = apply_schemas(run, &collections, ToApply::Everything).await?;
    apply_views(run, &scope).await?;
    finish(run, watermark, problems).await
}

type Sized = (Collection, Size);

/// Which collections are copied, and which compared. Those that are copied are held from here on.
async fn sort_out<K: SchemaSink>(
    run: &Run<'_, K>,
    collections: Vec<Collection>,
) -> Result<(Vec<Sized>, Vec<Sized>), SyncError> {
    let collections = measure_all(run, collections).await?;
    let (sides, state) = (&run.cx.sides, run.plans.state().await);
    let open: Vec<_> =
        collections.into_iter().filter(|(of, _)| !state.done.contains(&of.ns)).collect();
    let begun = &state.begun;
    let sorted = sides
        .each(open, |(collection, size)| {
            Box::pin(async move {
                let ns = &collection.ns;
                let has_begun = begun.get(ns).is_some_and(|plan| plan.is_copy);
                let is_copied = match run.plan.copies_first(has_begun) {
                    Some(is_copied) => is_copied,
                    None => run.unless_refused(ns, is_target_empty(run, ns).await)?,
                };
                Ok((collection, size, is_copied))
            })
        })
        .await?;
    let (mut to_copy, mut to_compare) = (Vec::new(), Vec::new());
    for (collection, size, is_copied) in sorted {
        if is_copied && !run.cx.queue.has_barrier(&collection.ns) {
            run.cx.queue.hold(&collection.ns);
            to_copy.push((collection, size));
        } else {
            to_compare.push((collection, size));
        }
    }
    Ok((to_copy, to_compare))
}

async fn measure_all<K: SchemaSink>(
    run: &Run<'_, K>,
    collections: Vec<Collection>,
) -> Result<Vec<Sized>, SyncError> {
    let measured = run
        .cx
        .sides
        .each(collections, |collection| {
            Box::pin(async move {
                let size = size_of(run, &collection.ns).await;
                let size = run.unless_refused(&collection.ns, size)?;
                Ok((collection, size))
            })
        })
        .await?;
    let state = run.plans.state().await;
    for (Collection { ns, .. }, size) in &measured {
        run.share(ns, |share| {
            if state.done.contains(ns) {
                share.state = ShareState::Done;
            } else {
                share.documents = size.documents;
            }
        });
    }
    Ok(measured)
}

/// Returns those for which a barrier has come.
async fn copy_all<K: SchemaSink>(
    run: &Run<'_, K>,
    collections: Vec<Sized>,
) -> Result<Vec<Sized>, SyncError> {
    let in_doubt = run
        .cx
        .sides
        .each(collections, |(collection, size)| {
            Box::pin(async move {
                let copy = copy_unless_barrier(run, run.plan, &collection, size).await;
                // One that a server has refused is not tried once more by a comparison.
                let is_copied = run.unless_refused(&collection.ns, copy.map(Some))?;
                Ok((is_copied == Some(false)).then_some((collection, size)))
            })
        })
        .await?;
    Ok(in_doubt.into_iter().flatten().collect())
}

/// Indexes that only Atlas has go before documents come that they may keep out.
async fn clear<K: SchemaSink>(run: &Run<'_, K>, of: &[Sized]) -> Result<(), SyncError> {
    let collections: Vec<_> = of.iter().map(|(collection, _)| collection.clone()).collect();
    apply_schemas(run, &collections, ToApply::Drops).await.map(drop)
}

async fn reconcile_all<K: SchemaSink>(
    run: &Run<'_, K>,
    collections: Vec<Sized>,
) -> Result<(), SyncError> {
    reconcile_each(run, run.plan, collections).await
}

async fn reconcile_each<K: SchemaSink>(
    run: &Run<'_, K>,
    plan: super::Plan,
    collections: Vec<Sized>,
) -> Result<(), SyncError> {
    run.cx
        .sides
        .each(collections, |(collection, size)| {
            Box::pin(async move {
                let done = reconcile(run, plan, &collection, size).await;
                run.unless_refused(&collection.ns, done).map(drop)
            })
        })
        .await
        .map(drop)
}

/// Names that changed hands while the run was at work: what has them now is compared once more. Returns them.
async fn after_renames<K: SchemaSink>(run: &Run<'_, K>) -> Result<BTreeSet<Namespace>, SyncError> {
    let mut all = BTreeSet::new();
    if run.is_dry() {
        return Ok(all);
    }
    loop {
        // What was renamed until now is noted when the stream has come so far.
        run.until_read(run.cx.local_time(run.stop).await?).await?;
        let mut again = run.plans.take_again().await?;
        // What is owed may have become more meanwhile.
        again.retain(|ns| run.plan.is_owed() || run.scope.has(ns));
        if again.is_empty() {
            return Ok(all);
        }
        all.extend(again.iter().cloned());
        tracing::info!(
            ?again,
            "names changed hands or collections were replaced meanwhile, and these are compared again"
        );
        let source = run.source_listing().await?.collections;
        // One that was copied from a list in which it had this name still has it in Atlas, perhaps.
        let named: BTreeSet<_> = source.iter().map(|collection| &collection.ns).collect();
        let are_all_in_source = again.iter().all(|ns| named.contains(ns));
        let scope = Scope::only(again);
        if !are_all_in_source {
            compare_rest(run, &scope, |ns| !named.contains(ns)).await?;
        }
        let mut renamed = Vec::new();
        for collection in source.into_iter().filter(|found| scope.has(&found.ns)) {
            let size = size_of(run, &collection.ns).await;
            let size = run.unless_refused(&collection.ns, size)?;
            run.plans.forget(&collection.ns).await?;
            renamed.push((collection, size));
        }
        clear(run, &renamed).await?;
        reconcile_each(run, run.plan.after_a_rename(), renamed).await?;
    }
}
