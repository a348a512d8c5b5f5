//! What only Atlas has.

use std::collections::BTreeSet;

use super::{plan::Scope, repair::Repair, run::Run};
use crate::{
    model::namespace::Namespace, observe::progress::ShareState, side::Size, sink::SchemaSink,
    sync::SyncError,
};

/// Collections that only Atlas has: they are dropped, unless they hold too much for that. One that both have by now, and
/// that is `unmet`, is to be compared again: what it has in Atlas is an older one's, of whose end no event has told, and
/// that it is made anew leaves that there.
pub(super) async fn compare_rest<K: SchemaSink>(
    run: &Run<'_, K>,
    scope: &Scope,
    unmet: impl Fn(&Namespace) -> bool,
) -> Result<(), SyncError> {
    let target = run.target_listing().await?;
    // After those of Atlas, so that what is new here is in both.
    let source = run.source_listing().await?.collections;
    let source: BTreeSet<_> = source.into_iter().map(|collection| collection.ns).collect();
    let mut rest: Vec<_> = target.collections.into_iter().map(|collection| collection.ns).collect();
    rest.retain(|ns| scope.has(ns));
    let (both, rest): (Vec<_>, Vec<_>) = rest.into_iter().partition(|ns| source.contains(ns));
    if !run.is_dry() {
        run.plans.compare_again(both.into_iter().filter(unmet).collect()).await?;
    }
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
        let done = Repair::new(run, &ns, None).run(Size::default(), None).await.map(Some);
        let Some(is_refused) = run.unless_refused(&ns, done)? else { continue };
        if is_refused {
            run.refuse(&ns).await?;
        }
        run.set_state(&ns, ShareState::Done);
        run.plans.finished(&ns, is_refused).await?;
    }
    Ok(())
}
