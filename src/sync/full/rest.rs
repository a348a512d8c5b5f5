//! What the local database has, and what only Atlas has.

use std::collections::BTreeSet;

use super::{plan::Scope, repair::Repair, run::Run};
use crate::{
    observe::progress::ShareState,
    sink::Sink,
    sync::{Collection, SyncError, range::Size},
};

/// All that the local database has of what is replicated.
pub(super) async fn list_all<K: Sink>(run: &Run<'_, K>) -> Result<Vec<Collection>, SyncError> {
    run.cx
        .retrying(run.stop, "the local collections cannot be listed yet", || {
            Box::pin(async move {
                let listing = run.cx.here().await?;
                run.cx.note_left_out(&listing);
                Ok(listing.collections)
            })
        })
        .await
}

/// Collections that only Atlas has: they are dropped, unless they hold too much for that.
pub(super) async fn compare_rest<K: Sink>(
    run: &Run<'_, K>,
    scope: &Scope,
) -> Result<(), SyncError> {
    let there = run
        .cx
        .retrying(run.stop, "Atlas cannot be compared yet", || Box::pin(run.cx.there()))
        .await?;
    // After those of Atlas, so that what is new here is in both.
    let here = list_all(run).await?;
    let here: BTreeSet<_> = here.into_iter().map(|collection| collection.ns).collect();
    let mut rest: Vec<_> = there.collections.into_iter().map(|collection| collection.ns).collect();
    rest.retain(|ns| scope.has(ns) && !here.contains(ns));
    if rest.is_empty() {
        return Ok(());
    }
    // A rename or a drop from before the list is in the queue then.
    run.until_read(run.cx.local_time(run.stop).await?).await?;
    for ns in rest {
        if run.cx.queue.has_barrier(&ns) {
            continue; // Its drop, or its rename from here, is on the way.
        }
        run.set_state(&ns, ShareState::Running);
        run.note_schema(&ns, &["the collection is in Atlas only".to_owned()]);
        let done = Repair::new(run, &ns, None).run(Size::default(), false).await.map(Some);
        let Some(is_refused) = run.unless_refused(&ns, done)? else { continue };
        if is_refused {
            run.refuse(&ns).await?;
        }
        run.set_state(&ns, ShareState::Done);
        run.plans.finished(&ns, is_refused).await?;
    }
    Ok(())
}
