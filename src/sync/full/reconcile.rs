//! One collection that Atlas has something of, or whose name it may have for another: made anew, copied or compared.

use super::{
    behind::barriers_go,
    first::{copy_unless_barrier, create, has_lost_its_name},
    plan::Plan,
    repair::Repair,
    run::{LOOK_AGAIN, Run},
};
use crate::{
    gate::Permit,
    model::{event::SchemaChange, namespace::Namespace},
    observe::progress::ShareState,
    runtime::crash::{self, CrashPoint},
    side::Size,
    sink::SchemaSink,
    sync::{Collection, SyncError, pause, sides::ask},
};

/// Copies or compares one collection.
pub(super) async fn reconcile<K: SchemaSink>(
    run: &Run<'_, K>,
    plan: Plan,
    collection: &Collection,
    size: Size,
) -> Result<(), SyncError> {
    let (ns, queue) = (&collection.ns, &run.cx.queue);
    if queue.kept_apart().has(ns) {
        return Ok(()); // Since it was listed.
    }
    if plan.keeps_in_order() && !collection.is_capped() {
        queue.keep_in_order(ns);
    } else {
        queue.keep_capped_in_order(ns, collection.is_capped());
    }
    // A drop or a rename that was queued before would destroy what is copied or compared now.
    queue.release(ns);
    if !barriers_go(run, ns).await? {
        return Ok(());
    }
    if plan.is_owed() {
        queue.hold(ns);
        // What is dropped would be another's, such as a view.
        if has_lost_its_name(run, plan, collection).await? {
            return Ok(());
        }
        if plan.replaces() {
            give_way(run, collection).await?;
        }
        if is_target_empty(run, ns).await? {
            run.plans.forget(ns).await?;
            if copy_unless_barrier(run, plan, collection, size).await? {
                return Ok(());
            }
            // What a comparison brings has no order.
            if collection.is_capped() {
                return Box::pin(reconcile(run, plan, collection, size)).await;
            }
        }
        queue.release(ns);
    } else if !run.is_dry() {
        // Else the first write would make it, without its options.
        let atlas = &run.cx.sides.atlas;
        let target = ask!(run.cx.sides, run.stop, atlas.describe_options(ns));
        if target.is_none() && run.is_still(collection).await? {
            create(run, collection).await?;
        }
    }
    run.set_state(ns, ShareState::Running);
    let repaired = Repair::new(run, ns, collection.id).run(size, Some(collection)).await;
    queue.keep_capped_in_order(ns, collection.is_capped());
    let is_refused = repaired?;
    if is_refused {
        run.refuse(ns).await?;
    }
    run.set_state(ns, ShareState::Done);
    crash::point(CrashPoint::CollectionCompared);
    run.plans.finished(ns, is_refused).await
}

/// Drops what Atlas has under the name of a collection that is held, where that is empty, or a buffer: the documents
/// of a buffer have an order that a comparison cannot mend. It was replaced as a whole just now, so it is copied as a
/// whole.
async fn give_way<K: SchemaSink>(
    run: &Run<'_, K>,
    collection: &Collection,
) -> Result<(), SyncError> {
    let (ns, queue) = (&collection.ns, &run.cx.queue);
    while !queue.has_barrier(ns) {
        let permit = run.cx.sides.proven(run.stop).await?;
        let is_recreated = is_target_empty(run, ns).await?
            || (collection.is_capped() && may_replace(run, ns).await?);
        if !is_recreated {
            return Ok(());
        }
        // A batch in flight would make it again, without its options.
        while queue.is_leased(ns) {
            pause(run.stop, LOOK_AGAIN).await?;
        }
        match drop_held(run, ns, &permit).await {
            Err(SyncError::Outdated) => {}
            dropped => return dropped,
        }
    }
    Ok(())
}

/// Drops a collection that is held, to be copied anew, as long as the permit holds under which it was looked
/// at.
async fn drop_held<K: SchemaSink>(
    run: &Run<'_, K>,
    ns: &Namespace,
    permit: &Permit,
) -> Result<(), SyncError> {
    let change = SchemaChange::Drop { ns: ns.clone() };
    let mut attempts = run.cx.sides.attempts(run.stop);
    while let Err(error) = run.try_change(&change, permit).await? {
        attempts.failed(error).await?;
    }
    Ok(())
}

/// True when what the local database has of a collection may take the place of what Atlas has.
async fn may_replace<K: SchemaSink>(run: &Run<'_, K>, ns: &Namespace) -> Result<bool, SyncError> {
    let sides = &run.cx.sides;
    let source = ask!(sides, run.stop, sides.local.estimated_count(ns));
    let target = ask!(sides, run.stop, sides.atlas.estimated_count(ns));
    Ok(run.deletes.may_replace(source, target))
}

/// How much the local database has of a collection.
pub(super) async fn size_of<K: SchemaSink>(
    run: &Run<'_, K>,
    ns: &Namespace,
) -> Result<Size, SyncError> {
    let sides = &run.cx.sides;
    Ok(ask!(sides, run.stop, sides.local.size(ns)))
}

/// True when Atlas has no document of it.
pub(super) async fn is_target_empty<K: SchemaSink>(
    run: &Run<'_, K>,
    ns: &Namespace,
) -> Result<bool, SyncError> {
    let sides = &run.cx.sides;
    Ok(ask!(sides, run.stop, sides.atlas.is_empty(ns)))
}
