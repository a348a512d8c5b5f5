//! Views: compared by what they show, and made like the local ones.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use super::{
    Collection, NamespaceResult, Reconciler, SyncError, pause, run::Run, schema::sentences,
};
use crate::{
    model::{event::SchemaChange, namespace::Namespace},
    schema::steps,
    sink::Sink,
};

/// How long a full sync waits for the views, and how often it looks.
const VIEWS_WITHIN: Duration = Duration::from_secs(60);
const LOOK_AGAIN: Duration = Duration::from_millis(100);

impl<K: Sink> Reconciler<K> {
    /// Compares the views. What differs is made like the local one by the worker, in its turn.
    pub(super) async fn mend_views(
        &self,
        run: &Run<'_>,
        in_scope: &(impl Fn(&Namespace) -> bool + Sync),
    ) -> Result<(), SyncError> {
        let (message, stop) = ("views cannot be listed yet", run.stop);
        let there = self.retrying(stop, message, || Box::pin(self.there())).await?;
        let here = self.retrying(stop, message, || Box::pin(self.here())).await?;
        let mut changes = Vec::new();
        for view in here.views.iter().filter(|view| in_scope(&view.ns)) {
            let mut copies = there.views.iter().chain(&there.collections);
            let copy = copies.find(|copy| copy.ns == view.ns).map(Collection::description);
            let steps = steps(&view.description(), copy.as_ref());
            if !steps.is_empty() {
                self.note_schema(&view.ns, &sentences(&steps));
                changes.push(SchemaChange::Reconcile { ns: view.ns.clone(), collection: None });
            }
        }
        for view in there.views.iter().filter(|view| in_scope(&view.ns)) {
            let is_left_out = here.left_out.iter().any(|left| left.ns == view.ns);
            if !is_left_out
                && !here.views.iter().chain(&here.collections).any(|found| found.ns == view.ns)
            {
                self.note_schema(&view.ns, &["the view is in Atlas only".to_owned()]);
                changes.push(SchemaChange::DropIfGone { ns: view.ns.clone() });
            }
        }
        if run.request.dry_run {
            return Ok(());
        }
        let names: Vec<_> = changes.iter().map(|change| change.ns().clone()).collect();
        self.queue_changes(changes).await?;
        let began = Instant::now();
        while names.iter().any(|ns| self.queue.has_barrier(ns)) && began.elapsed() < VIEWS_WITHIN {
            pause(stop, LOOK_AGAIN).await?;
        }
        Ok(())
    }
}

/// What differs, without those that are equal.
pub(super) fn view_differences(here: &[Collection], there: &[Collection]) -> Vec<NamespaceResult> {
    let of = |all: &[Collection], ns: &Namespace| {
        all.iter().find(|view| view.ns == *ns).map(Collection::description)
    };
    let names: BTreeSet<_> = here.iter().chain(there).map(|view| &view.ns).collect();
    let differ = |ns: &Namespace| match of(here, ns) {
        Some(local) => sentences(&steps(&local, of(there, ns).as_ref())),
        None => vec!["the view is in Atlas only".to_owned()],
    };
    names
        .into_iter()
        .map(|ns| NamespaceResult {
            ns: ns.to_string(),
            schema: differ(ns),
            ..NamespaceResult::default()
        })
        .filter(|result| !result.is_equal())
        .collect()
}
