//! Views: compared by what they show, and made like the local ones.

use std::{collections::BTreeSet, time::Duration};

use super::{
    plan::Scope,
    run::{LOOK_AGAIN, Run},
};
use crate::{
    model::{event::SchemaChange, namespace::Namespace},
    runtime::clock,
    schema::steps,
    sink::SchemaSink,
    sync::{Collection, SyncError, pause, schema::sentences},
};

/// How long a full sync waits for the views, and for what stands in the way.
const VIEWS_WITHIN: Duration = Duration::from_secs(60);

/// Compares the views. What differs is made like the local one by the worker, in its turn.
pub(super) async fn apply_views<K: SchemaSink>(
    run: &Run<'_, K>,
    scope: &Scope,
) -> Result<(), SyncError> {
    let (message, stop) = ("views cannot be listed yet", run.stop);
    let target = run.cx.retrying(stop, message, || Box::pin(run.cx.target_listing())).await?;
    let source = run.cx.retrying(stop, message, || Box::pin(run.cx.source_listing())).await?;
    let mut changes = Vec::new();
    for view in source.views.iter().filter(|view| scope.has(&view.ns)) {
        let mut copies = target.views.iter().chain(&target.collections);
        let copy = copies.find(|copy| copy.ns == view.ns).map(Collection::description);
        let steps = steps(&view.description(), copy.as_ref());
        if !steps.is_empty() {
            run.note_schema(&view.ns, &sentences(&steps));
            changes.push(SchemaChange::Reconcile { ns: view.ns.clone(), collection: None });
        }
    }
    for view in target.views.iter().filter(|view| scope.has(&view.ns)) {
        let is_left_out = source.left_out.iter().any(|left| left.ns == view.ns);
        if !is_left_out
            && !source.views.iter().chain(&source.collections).any(|found| found.ns == view.ns)
        {
            run.note_schema(&view.ns, &["the view is in Atlas only".to_owned()]);
            changes.push(SchemaChange::DropIfGone { ns: view.ns.clone() });
        }
    }
    if run.is_dry() {
        return Ok(());
    }
    let names = changes.iter().map(|change| change.ns().clone()).collect();
    queue_and_wait(run, changes, &names).await
}

/// Queues changes, and waits, but not for ever, until what was queued for their names is made.
pub(super) async fn queue_and_wait<K: SchemaSink>(
    run: &Run<'_, K>,
    changes: Vec<SchemaChange>,
    names: &BTreeSet<Namespace>,
) -> Result<(), SyncError> {
    run.cx.queue_changes(changes).await?;
    let began = clock::now();
    while names.iter().any(|ns| run.cx.queue.has_barrier(ns)) && clock::since(began) < VIEWS_WITHIN
    {
        pause(run.stop, LOOK_AGAIN).await?;
    }
    Ok(())
}
