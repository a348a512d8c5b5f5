//! What a server will not do, and what a run may not do: noted, so that it keeps nothing else away.

use parking_lot::MutexGuard;

use super::{Reconciler, SyncError, note_refused, run::Run};
use crate::{model::namespace::Namespace, runtime::shutdown::blocking, sink::Sink};

impl<K: Sink> Reconciler<K> {
    /// What a server will not do in one collection keeps the others away from nothing. It counts as not
    /// done.
    pub(super) fn unless_refused<T: Default>(
        &self,
        ns: &Namespace,
        result: Result<T, SyncError>,
    ) -> Result<T, SyncError> {
        match result {
            Err(error) if error.is_refusal() => {
                let error = crate::observe::report::one_line(&error);
                tracing::error!(%ns, error, "the collection cannot be copied or compared");
                self.queue.release(ns);
                self.failed().push(format!("`{ns}`: {error}"));
                Ok(T::default())
            }
            result => result,
        }
    }

    /// Said at once: a conflict with one of the documents waits for nothing then.
    pub(super) async fn refuse(&self, run: &Run<'_>, ns: &Namespace) -> Result<(), SyncError> {
        let noted = {
            let mut state = self.status.state();
            let share = state.sync.as_mut().map(|progress| progress.share(ns));
            let extra = share.map_or(0, |share| {
                share.mass_delete_refused = true;
                share.extra
            });
            tracing::error!(
                %ns, extra,
                "Atlas holds many documents that the local database does not; none of them is deleted"
            );
            if run.request.dry_run {
                return Ok(());
            }
            if !state.refused_deletes.iter().any(|refused| refused == ns.as_str()) {
                state.refused_deletes.push(ns.to_string());
            }
            state.refused_deletes.clone()
        };
        let queue = self.queue.clone();
        Ok(blocking(move || note_refused(&queue, &noted)).await?)
    }

    pub(super) fn refused_in_progress(&self) -> Vec<String> {
        let state = self.status.state();
        let shares = state.sync.as_ref().map(|progress| progress.shares.iter());
        let refused = shares.into_iter().flatten().filter(|(_, share)| share.mass_delete_refused);
        refused.map(|(ns, _)| ns.to_string()).collect()
    }

    pub(super) fn failed(&self) -> MutexGuard<'_, Vec<String>> {
        self.failed.lock()
    }
}
