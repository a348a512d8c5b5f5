//! One run of a full sync, stage by stage: what there is, the copies, the comparisons, what only Atlas has,
//! and options and indexes.

use super::{
    Collection, LAST, LeftOut, Reconciler, SyncError, atlas_collections,
    ends::{End, ask},
    first::Plans,
    local_collections, note_refused, pause,
    range::Size,
    repair::Repair,
    schema::{mend, schema_differences},
};
use crate::{
    checkpoint::ClusterTime,
    crash::{self, Step},
    namespace::{Namespace, NamespaceFilter},
    progress::ShareState,
    queue::QueueError,
    shutdown::{Stop, blocking},
    sink::Sink,
    source::inspect,
    status::now_ms,
    sync_state::{SyncRequest, SyncState},
};

/// How often to look whether a barrier is gone, or the stream has come so far.
const LOOK_AGAIN: std::time::Duration = std::time::Duration::from_millis(100);

/// What a run is about.
pub(super) struct Run<'a> {
    pub request: SyncRequest,
    /// Owed, and not just asked for: it may copy.
    pub is_owed: bool,
    pub after: ClusterTime,
    pub stop: &'a Stop,
}

impl<K: Sink> Reconciler<K> {
    /// Does what is noted, and returns how it ended.
    pub(super) async fn execute(&self, state: SyncState, stop: &Stop) -> Result<String, SyncError> {
        let run = Run {
            request: state.request.clone().unwrap_or_default(),
            is_owed: state.request.is_none(),
            after: state.after(),
            stop,
        };
        let scope = NamespaceFilter::new(&run.request.namespaces, &[]).ok();
        let in_scope = |ns: &Namespace| scope.as_ref().is_none_or(|scope| scope.matches(ns));
        let mut collections = self
            .retrying(stop, "the local collections cannot be listed yet", || Box::pin(self.list()))
            .await?;
        collections.retain(|collection| in_scope(&collection.ns));
        let listed_at = self.local_time(stop).await?;
        let sizes = self.measure_all(&collections, &state, stop).await?;

        let (to_copy, to_compare) = self.plan(&run, &collections, &state).await?;
        // What is not in the list was made after the stream's position was taken: all of its
        // documents are in the stream.
        self.queue.release_all();
        tracing::info!(
            copy = to_copy.len(),
            compare = to_compare.len(),
            "copying what Atlas lacks, comparing what it has"
        );
        let plans = Plans::new(self.queue.clone(), state);
        let with_size = |chosen: Vec<&'_ Collection>| -> Vec<(Collection, Size)> {
            let size =
                |ns: &Namespace| sizes.iter().find(|(of, _)| of == ns).map(|(_, size)| *size);
            chosen
                .into_iter()
                .map(|collection| (collection.clone(), size(&collection.ns).unwrap_or_default()))
                .collect()
        };
        // Only what is to be copied is held, and it is copied first: a comparison waits for the
        // queue to drain, which it never would for what is held.
        let (run, plans) = (&run, &plans);
        let mut late = self
            .ends
            .each(with_size(to_copy), |(collection, size)| {
                Box::pin(async move {
                    let is_copied = self.copy_unless_barrier(run, plans, &collection, size).await?;
                    Ok((!is_copied).then_some((collection, size)))
                })
            })
            .await?;
        let mut others = with_size(to_compare);
        others.extend(late.drain(..).flatten());
        let refused = self
            .ends
            .each(others, |(collection, size)| {
                Box::pin(async move {
                    let is_refused = self.reconcile(run, plans, &collection, size).await?;
                    Ok(is_refused.then(|| collection.ns.to_string()))
                })
            })
            .await?;
        let mut refused: Vec<String> = refused.into_iter().flatten().collect();
        let known: Vec<_> = collections.iter().map(|collection| &collection.ns).collect();
        refused.extend(self.compare_rest(run, &known, &in_scope, listed_at).await?);
        let problems = self.mend_schemas(run, &collections).await?;
        self.finish(run, plans, refused, problems).await
    }

    async fn list(&self) -> Result<Vec<Collection>, SyncError> {
        let (replicated, left_out) = local_collections(&self.ends.local, &self.filter).await?;
        for LeftOut { ns, reason } in left_out {
            tracing::warn!(%ns, error = reason, "not replicated");
        }
        Ok(replicated)
    }

    async fn local_time(&self, stop: &Stop) -> Result<ClusterTime, SyncError> {
        self.retrying(stop, "the local time is not known yet", || {
            Box::pin(async move { Ok(inspect(&self.ends.local).await?.now) })
        })
        .await
    }

    async fn measure_all(
        &self,
        collections: &[Collection],
        state: &SyncState,
        stop: &Stop,
    ) -> Result<Vec<(Namespace, Size)>, SyncError> {
        let sizes = self
            .ends
            .each(collections.iter().collect(), |collection: &Collection| {
                Box::pin(async move {
                    let size = ask!(
                        self.ends,
                        End::Local,
                        stop,
                        Size::of(&self.ends.local, &collection.ns)
                    );
                    Ok((collection.ns.clone(), size))
                })
            })
            .await?;
        let mut status = self.status.state();
        if let Some(progress) = &mut status.sync {
            for (ns, size) in &sizes {
                let share = progress.share(ns);
                if state.done.contains(ns) {
                    share.state = ShareState::Done;
                } else {
                    share.documents = size.documents;
                }
            }
        }
        Ok(sizes)
    }

    /// Which collections are copied, and which compared. Those that are copied are held from here on.
    async fn plan<'c>(
        &self,
        run: &Run<'_>,
        collections: &'c [Collection],
        state: &SyncState,
    ) -> Result<(Vec<&'c Collection>, Vec<&'c Collection>), SyncError> {
        let open: Vec<_> =
            collections.iter().filter(|collection| !state.done.contains(&collection.ns)).collect();
        if !run.is_owed {
            return Ok((Vec::new(), open));
        }
        let empty = self
            .ends
            .each(open, |collection| {
                let has_begun = state.copying.contains_key(&collection.ns);
                let atlas = &self.ends.atlas;
                Box::pin(async move {
                    let is_empty = has_begun
                        || ask!(self.ends, End::Atlas, run.stop, atlas.is_empty(&collection.ns));
                    Ok((collection, is_empty))
                })
            })
            .await?;
        let (mut to_copy, mut to_compare) = (Vec::new(), Vec::new());
        for (collection, is_empty) in empty {
            if is_empty && !self.queue.has_barrier(&collection.ns) {
                self.queue.hold(&collection.ns);
                to_copy.push(collection);
            } else {
                to_compare.push(collection);
            }
        }
        Ok((to_copy, to_compare))
    }

    /// Copies or compares one collection. True when a mass delete was refused.
    async fn reconcile(
        &self,
        run: &Run<'_>,
        plans: &Plans,
        collection: &Collection,
        size: Size,
    ) -> Result<bool, SyncError> {
        let ns = &collection.ns;
        // A drop or a rename that was queued before would destroy what is copied or compared now.
        self.queue.release(ns);
        while self.queue.has_barrier(ns) {
            pause(run.stop, LOOK_AGAIN).await?;
        }
        if run.is_owed {
            self.queue.hold(ns);
            let atlas = &self.ends.atlas;
            if ask!(self.ends, End::Atlas, run.stop, atlas.is_empty(ns)) {
                plans.forget(ns).await?;
                if self.copy_unless_barrier(run, plans, collection, size).await? {
                    return Ok(false);
                }
            }
            self.queue.release(ns);
        }
        self.set_state(ns, ShareState::Running);
        let repair = Repair::new(self, (ns, collection.id), run.after, &run.request, run.stop);
        let is_refused = repair.run(size, collection.is_clustered()).await?;
        if is_refused {
            self.refuse(run, ns);
        }
        self.set_state(ns, ShareState::Done);
        crash::point(Step::CollectionCopied);
        plans.finished(ns).await?;
        Ok(is_refused)
    }

    /// Said at once: a conflict with one of the documents waits for nothing then.
    fn refuse(&self, run: &Run<'_>, ns: &Namespace) {
        let mut state = self.status.state();
        if let Some(progress) = &mut state.sync {
            progress.share(ns).mass_delete_refused = true;
        }
        let extra = state
            .sync
            .as_ref()
            .map_or(0, |progress| progress.shares.get(ns).map_or(0, |share| share.extra));
        if run.request.dry_run {
            return;
        }
        if !state.refused_deletes.iter().any(|refused| refused == ns.as_str()) {
            state.refused_deletes.push(ns.to_string());
        }
        tracing::error!(
            %ns, extra,
            "Atlas holds many documents that the local database does not; none of them is deleted"
        );
    }

    pub(super) fn set_state(&self, ns: &Namespace, state: ShareState) {
        if let Some(progress) = &mut self.status.state().sync {
            progress.share(ns).state = state;
        }
    }

    /// Collections that only Atlas has: what is in them is extra. Returns those in which a mass delete
    /// was refused.
    async fn compare_rest(
        &self,
        run: &Run<'_>,
        known: &[&Namespace],
        in_scope: &(impl Fn(&Namespace) -> bool + Sync),
        listed_at: ClusterTime,
    ) -> Result<Vec<String>, SyncError> {
        let listed = || async { atlas_collections(&self.ends.atlas, &self.filter).await };
        let (in_atlas, _) =
            self.retrying(run.stop, "Atlas cannot be compared yet", || Box::pin(listed())).await?;
        let mut rest: Vec<_> = in_atlas.into_iter().map(|collection| collection.ns).collect();
        rest.retain(|ns| !known.contains(&ns) && in_scope(ns));
        if rest.is_empty() {
            return Ok(Vec::new());
        }
        // A rename or a drop from before the list is in the queue then.
        while self.status.state().read_up_to < listed_at {
            pause(run.stop, LOOK_AGAIN).await?;
        }
        let mut refused = Vec::new();
        for ns in rest {
            if self.queue.has_barrier(&ns) {
                continue; // Its drop, or its rename from here, is on the way.
            }
            self.set_state(&ns, ShareState::Running);
            let repair = Repair::new(self, (&ns, None), run.after, &run.request, run.stop);
            if repair.run(Size::default(), false).await? {
                self.refuse(run, &ns);
                refused.push(ns.to_string());
            }
            self.set_state(&ns, ShareState::Done);
        }
        Ok(refused)
    }

    /// Compares options and indexes, and mends them. Returns what could not be mended, a sentence each.
    async fn mend_schemas(
        &self,
        run: &Run<'_>,
        collections: &[Collection],
    ) -> Result<Vec<String>, SyncError> {
        let listed = || async { atlas_collections(&self.ends.atlas, &self.filter).await };
        let (copies, _) =
            self.retrying(run.stop, "Atlas cannot be compared yet", || Box::pin(listed())).await?;
        let copies = &copies;
        let problems = self
            .ends
            .each(collections.iter().collect(), |collection: &Collection| {
                Box::pin(async move {
                    let copy = copies.iter().find(|copy| copy.ns == collection.ns);
                    self.mend_schema(run, collection, copy).await
                })
            })
            .await?;
        Ok(problems.into_iter().flatten().collect())
    }

    async fn mend_schema(
        &self,
        run: &Run<'_>,
        collection: &Collection,
        copy: Option<&Collection>,
    ) -> Result<Vec<String>, SyncError> {
        let ns = &collection.ns;
        // What the name means is about to change; and making an index would make the collection.
        let Some(copy) = copy.filter(|_| !self.queue.has_barrier(ns)) else {
            return Ok(Vec::new());
        };
        let options = (&collection.options, &copy.options);
        let differences = schema_differences(&self.ends, ns, End::Local, options, run.stop).await?;
        let sentences = differences.sentences();
        if sentences.is_empty() {
            return Ok(Vec::new());
        }
        if let Some(progress) = &mut self.status.state().sync {
            progress.share(ns).schema.clone_from(&sentences);
        }
        if run.request.dry_run {
            return Ok(Vec::new());
        }
        tracing::info!(%ns, differences = sentences.join("; "), "options and indexes are mended");
        let left = mend(&self.ends, End::Atlas, ns, differences, run.stop).await?;
        for problem in &left {
            tracing::warn!(%ns, error = problem, "not mended");
        }
        Ok(left.into_iter().map(|problem| format!("`{ns}`: {problem}")).collect())
    }

    /// Notes the end of a run, and says in words how it was.
    async fn finish(
        &self,
        run: &Run<'_>,
        plans: &Plans,
        refused: Vec<String>,
        problems: Vec<String>,
    ) -> Result<String, SyncError> {
        // What was written whole may be younger than deltas that are still to come.
        let now = self.local_time(run.stop).await?;
        self.horizon.lock().unwrap_or_else(std::sync::PoisonError::into_inner).raise(now);
        let state = plans.state().await;
        let is_dry = run.request.dry_run;
        let is_everything = run.request.namespaces.is_empty() && !is_dry;
        let scope = NamespaceFilter::new(&run.request.namespaces, &[]).ok();
        let mut still_refused = self.status.state().refused_deletes.clone();
        still_refused.retain(|ns| {
            let ns = ns.parse::<Namespace>().ok();
            is_dry || !ns.zip(scope.as_ref()).is_none_or(|(ns, scope)| scope.matches(&ns))
        });
        if !is_dry {
            still_refused.extend(refused.iter().cloned());
        }
        let (queue, noted) = (self.queue.clone(), still_refused.clone());
        let is_complete = blocking(move || -> Result<_, QueueError> {
            note_refused(&queue, &noted)?;
            if is_everything {
                let now = serde_json::to_vec(&now_ms()).expect("a number is JSON");
                queue.set_meta(LAST, Some(&now))?;
            }
            state.complete(&queue)
        })
        .await?;
        {
            let mut status = self.status.state();
            status.refused_deletes = still_refused;
            if is_everything {
                status.schema_problems.clone_from(&problems);
            }
        }
        Ok(match (is_complete, refused.is_empty(), problems.is_empty()) {
            (false, ..) => "ended; it begins anew, since more was demanded meanwhile".to_owned(),
            (true, false, _) => {
                format!("done, but for a mass delete that was refused in {}", refused.join(", "))
            }
            (true, true, false) => {
                format!("done, but for options or indexes: {}", problems.join("; "))
            }
            (true, true, true) => "done".to_owned(),
        })
    }
}
