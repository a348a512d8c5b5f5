//! One run of a full sync, stage by stage: what there is, the copies, the comparisons, what only Atlas has,
//! and options and indexes.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use super::{
    Collection, FAILED_WAIT, LAST, Reconciler, SyncError,
    ends::{End, ask},
    first::Plans,
    mend::Mending,
    note_refused, pause,
    range::Size,
    repair::Repair,
};
use crate::{
    model::{
        checkpoint::ClusterTime,
        namespace::{Namespace, NamespaceFilter},
    },
    observe::progress::ShareState,
    queue::QueueError,
    runtime::{
        clock::now_ms,
        crash::{self, Step},
        shutdown::{Stop, blocking},
    },
    sink::Sink,
    source::inspect,
    sync::state::{SyncRequest, SyncState, behind},
};

/// How often to look whether a barrier is gone, or the stream has come so far.
pub(super) const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// What a run is about.
pub(super) struct Run<'a> {
    pub request: SyncRequest,
    /// Owed, and not just asked for: it may copy.
    pub is_owed: bool,
    /// Owed of some collections, which were replaced.
    pub is_of_some: bool,
    pub after: ClusterTime,
    pub stop: &'a Stop,
}

/// True when one of the names is this, or stands for its database.
fn covers(names: &BTreeSet<Namespace>, ns: &Namespace) -> bool {
    names.contains(ns) || names.contains(&Namespace::all_of(ns.db()))
}

impl<K: Sink> Reconciler<K> {
    /// Does what is noted, and returns how it ended.
    pub(super) async fn execute(&self, state: SyncState, stop: &Stop) -> Result<String, SyncError> {
        let run = Run {
            request: state.request.clone().unwrap_or_default(),
            is_owed: state.request.is_none(),
            is_of_some: state.is_of_some,
            after: state.after(),
            stop,
        };
        let scope = NamespaceFilter::new(&run.request.namespaces, &[]).ok();
        let scope = scope.map(|scope| scope.with_state_database(self.filter.state_database()));
        let (is_of_some, only) = (state.is_of_some, state.only.clone());
        let in_scope = |ns: &Namespace| {
            scope.as_ref().is_none_or(|scope| scope.matches(ns))
                && (!is_of_some || covers(&only, ns))
        };
        // A demand of some is noted before its barriers are.
        while is_of_some && self.status.state().position.seen() <= run.after {
            pause(stop, LOOK_AGAIN).await?;
        }
        let mut collections = self
            .retrying(stop, "the local collections cannot be listed yet", || Box::pin(self.list()))
            .await?;
        collections.retain(|collection| in_scope(&collection.ns));
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
        let sizes: BTreeMap<_, _> = sizes.into_iter().collect();
        let with_size = |chosen: Vec<&'_ Collection>| -> Vec<(Collection, Size)> {
            let size = |ns: &Namespace| sizes.get(ns).copied();
            chosen
                .into_iter()
                .map(|collection| (collection.clone(), size(&collection.ns).unwrap_or_default()))
                .collect()
        };
        // Only what is to be copied is held, and it is copied first: a comparison waits for the
        // queue to drain, which it never would for what is held.
        let (run, plans) = (&run, &plans);
        let late = self
            .ends
            .each(with_size(to_copy), |(collection, size)| {
                Box::pin(async move {
                    let copy = self.copy_unless_barrier(run, plans, &collection, size).await;
                    let is_copied = self.unless_refused(&collection.ns, copy)?;
                    Ok((!is_copied).then_some((collection, size)))
                })
            })
            .await?;
        let mut others = with_size(to_compare);
        others.extend(late.into_iter().flatten());
        let to_clear: Vec<_> = others.iter().map(|(collection, _)| collection.clone()).collect();
        self.mend_schemas(run, &to_clear, Mending::Drops).await?;
        self.reconcile_all(run, plans, others).await?;
        self.compare_rest(run, plans, &in_scope).await?;
        let again = self.after_renames(run, plans, &in_scope).await?;
        let in_scope = |ns: &Namespace| in_scope(ns) || again.contains(ns);
        self.wait_until_written(run).await?;
        // As they are called by now.
        let mut collections = self
            .retrying(stop, "the local collections cannot be listed yet", || Box::pin(self.list()))
            .await?;
        collections.retain(|collection| in_scope(&collection.ns));
        let problems = self.mend_schemas(run, &collections, Mending::Everything).await?;
        self.mend_views(run, &in_scope).await?;
        self.finish(run, plans, problems).await
    }

    async fn reconcile_all(
        &self,
        run: &Run<'_>,
        plans: &Plans,
        collections: Vec<(Collection, Size)>,
    ) -> Result<(), SyncError> {
        self.ends
            .each(collections, |(collection, size)| {
                Box::pin(async move {
                    let done = self.reconcile(run, plans, &collection, size).await;
                    self.unless_refused(&collection.ns, done).map(drop)
                })
            })
            .await
            .map(drop)
    }

    /// Names that changed hands while the run was at work: what has them now is compared once more. Returns them.
    async fn after_renames(
        &self,
        run: &Run<'_>,
        plans: &Plans,
        in_scope: &(impl Fn(&Namespace) -> bool + Sync),
    ) -> Result<BTreeSet<Namespace>, SyncError> {
        let mut all = BTreeSet::new();
        if run.request.dry_run {
            return Ok(all);
        }
        loop {
            // What was renamed until now is noted when the stream has come so far.
            let now = self.local_time(run.stop).await?;
            while !self.status.state().position.has_read(now) {
                pause(run.stop, LOOK_AGAIN).await?;
            }
            let mut again = plans.take_again().await?;
            // What is owed may have become more meanwhile.
            again.retain(|ns| run.is_owed || in_scope(ns));
            if again.is_empty() {
                return Ok(all);
            }
            all.extend(again.iter().cloned());
            tracing::info!(
                ?again,
                "names changed hands or collections were replaced meanwhile, and these are compared again"
            );
            let here = self
                .retrying(run.stop, "the local collections cannot be listed yet", || {
                    Box::pin(self.list())
                })
                .await?;
            // One that was copied from a list in which it had this name still has it in Atlas, perhaps.
            let named: BTreeSet<_> = here.iter().map(|collection| &collection.ns).collect();
            if !again.iter().all(|ns| named.contains(ns)) {
                self.compare_rest(run, plans, &|ns: &Namespace| covers(&again, ns)).await?;
            }
            let mut renamed = Vec::new();
            for collection in here.into_iter().filter(|found| covers(&again, &found.ns)) {
                let size = self.size_of(&collection.ns, run.stop).await;
                let size = self.unless_refused(&collection.ns, size)?;
                plans.forget(&collection.ns).await?;
                renamed.push((collection, size));
            }
            let to_clear: Vec<_> =
                renamed.iter().map(|(collection, _)| collection.clone()).collect();
            self.mend_schemas(run, &to_clear, Mending::Drops).await?;
            let run = &Run { is_of_some: run.is_owed, request: run.request.clone(), ..*run };
            self.reconcile_all(run, plans, renamed).await?;
        }
    }

    async fn list(&self) -> Result<Vec<Collection>, SyncError> {
        let listing = self.here().await?;
        self.note_left_out(&listing);
        Ok(listing.collections)
    }

    pub(super) async fn local_time(&self, stop: &Stop) -> Result<ClusterTime, SyncError> {
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
                    let size = self.size_of(&collection.ns, stop).await;
                    let size = self.unless_refused(&collection.ns, size)?;
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
                let has_begun = state.begun.get(&collection.ns).is_some_and(|plan| plan.is_copy);
                Box::pin(async move {
                    // One that was replaced may be there, empty, with the wrong options: see `reconcile`.
                    if run.is_of_some && !has_begun {
                        return Ok((collection, false));
                    }
                    if has_begun {
                        return Ok((collection, true));
                    }
                    let is_empty = self.is_empty_there(&collection.ns, run.stop).await;
                    let is_empty = self.unless_refused(&collection.ns, is_empty)?;
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

    /// Copies or compares one collection.
    async fn reconcile(
        &self,
        run: &Run<'_>,
        plans: &Plans,
        collection: &Collection,
        size: Size,
    ) -> Result<(), SyncError> {
        let ns = &collection.ns;
        if self.queue.kept_apart().has(ns) {
            return Ok(()); // Since it was listed.
        }
        self.queue.keep_in_order(ns, collection.is_capped() || run.is_of_some);
        // A drop or a rename that was queued before would destroy what is copied or compared now.
        self.queue.release(ns);
        if !self.barriers_go(plans, ns, run.stop).await? {
            return Ok(());
        }
        let atlas = &self.ends.atlas;
        if run.is_owed {
            self.queue.hold(ns);
            // What is dropped would be another's, such as a view.
            if self.has_lost_its_name(run, plans, collection).await? {
                return Ok(());
            }
            // The documents of a buffer have an order that a comparison cannot mend. It was replaced as a
            // whole just now, so it is copied as a whole.
            loop {
                if !run.is_of_some || self.queue.has_barrier(ns) {
                    break;
                }
                let permit = self.ends.proven(run.stop).await?;
                let is_made_anew = self.is_empty_there(ns, run.stop).await?
                    || (collection.is_capped() && self.may_replace_held(run, ns).await?);
                if !is_made_anew {
                    break;
                }
                // A batch in flight would make it again, without its options.
                while self.queue.is_leased(ns) {
                    pause(run.stop, LOOK_AGAIN).await?;
                }
                match self.drop_held(run, ns, &permit).await {
                    Err(SyncError::Outdated) => {}
                    dropped => {
                        dropped?;
                        break;
                    }
                }
            }
            if self.is_empty_there(ns, run.stop).await? {
                plans.forget(ns).await?;
                if self.copy_unless_barrier(run, plans, collection, size).await? {
                    return Ok(());
                }
                // What a comparison brings has no order.
                if collection.is_capped() {
                    return Box::pin(self.reconcile(run, plans, collection, size)).await;
                }
            }
            self.queue.release(ns);
        } else if !run.request.dry_run {
            // Else the first write would make it, without its options.
            let there = ask!(self.ends, End::Atlas, run.stop, atlas.describe_options(ns));
            if there.is_none() && self.is_still(run, collection).await? {
                self.create(run, collection).await?;
            }
        }
        self.set_state(ns, ShareState::Running);
        let repair = Repair::new(self, (ns, collection.id), run.after, &run.request, run.stop);
        let repaired = repair.run(plans, size, collection.is_clustered()).await;
        self.queue.keep_in_order(ns, collection.is_capped());
        let is_refused = repaired?;
        if is_refused {
            self.refuse(run, ns).await?;
        }
        self.set_state(ns, ShareState::Done);
        crash::point(Step::CollectionCopied);
        plans.finished(ns, is_refused).await
    }

    pub(super) fn set_state(&self, ns: &Namespace, state: ShareState) {
        if let Some(progress) = &mut self.status.state().sync {
            progress.share(ns).state = state;
        }
    }

    /// Collections that only Atlas has: they are dropped, unless they hold too much for that.
    async fn compare_rest(
        &self,
        run: &Run<'_>,
        plans: &Plans,
        in_scope: &(impl Fn(&Namespace) -> bool + Sync),
    ) -> Result<(), SyncError> {
        let there = self
            .retrying(run.stop, "Atlas cannot be compared yet", || Box::pin(self.there()))
            .await?;
        let there = there.collections;
        // After those of Atlas, so that what is new here is in both.
        let here = self
            .retrying(run.stop, "the local collections cannot be listed yet", || {
                Box::pin(self.list())
            })
            .await?;
        let here: BTreeSet<_> = here.into_iter().map(|collection| collection.ns).collect();
        let is_here = |ns: &Namespace| here.contains(ns);
        let mut rest: Vec<_> = there.into_iter().map(|collection| collection.ns).collect();
        rest.retain(|ns| in_scope(ns) && !is_here(ns));
        if rest.is_empty() {
            return Ok(());
        }
        // A rename or a drop from before the list is in the queue then.
        let listed_at = self.local_time(run.stop).await?;
        while !self.status.state().position.has_read(listed_at) {
            pause(run.stop, LOOK_AGAIN).await?;
        }
        for ns in rest {
            if self.queue.has_barrier(&ns) {
                continue; // Its drop, or its rename from here, is on the way.
            }
            self.set_state(&ns, ShareState::Running);
            self.note_schema(&ns, &["the collection is in Atlas only".to_owned()]);
            let repair = Repair::new(self, (&ns, None), run.after, &run.request, run.stop);
            let done = repair.run(plans, Size::default(), false).await.map(Some);
            let Some(is_refused) = self.unless_refused(&ns, done)? else { continue };
            if is_refused {
                self.refuse(run, &ns).await?;
            }
            self.set_state(&ns, ShareState::Done);
            plans.finished(&ns, is_refused).await?;
        }
        Ok(())
    }

    /// Notes the end of a run, and says in words how it was.
    async fn finish(
        &self,
        run: &Run<'_>,
        plans: &Plans,
        problems: BTreeMap<Namespace, Vec<String>>,
    ) -> Result<String, SyncError> {
        // What was written whole may be younger than deltas that are still to come.
        let now = self.local_time(run.stop).await?;
        self.horizon.lock().raise(now);
        let failed = std::mem::take(&mut *self.failed());
        if run.is_owed && !failed.is_empty() {
            // Without them the copy stays wrong, so it is not over.
            self.status.state().sync_problems.clone_from(&failed);
            pause(run.stop, FAILED_WAIT).await?;
            return Ok(format!("not done, and tried again: {}", failed.join("; ")));
        }
        let state = plans.state().await;
        let is_dry = run.request.dry_run;
        let refused: Vec<_> = state.refused.iter().map(ToString::to_string).collect();
        let refused = if is_dry { self.refused_in_progress() } else { refused };
        let mut still_refused = self.status.state().refused_deletes.clone();
        if !is_dry {
            // Of what was looked at, this run knows best.
            let is_looked_at = |ns: &String| state.done.iter().any(|done| done.as_str() == *ns);
            still_refused.retain(|ns| !is_looked_at(ns));
            still_refused.extend(refused.iter().cloned());
            if run.request.namespaces.is_empty() {
                still_refused.clone_from(&refused);
            }
        }
        let left = plans.left();
        let is_everything =
            run.request.namespaces.is_empty() && !is_dry && !state.is_of_some && left.is_empty();
        let (queue, noted) = (self.queue.clone(), still_refused.clone());
        let owed = if run.is_owed { left.clone() } else { BTreeSet::new() };
        let is_complete = blocking(move || -> Result<_, QueueError> {
            behind::note(&queue, &owed)?;
            note_refused(&queue, &noted)?;
            if is_everything {
                let now = serde_json::to_vec(&now_ms()).expect("a number is JSON");
                queue.set_meta(LAST, Some(&now))?;
            }
            SyncState::complete(&queue, state.id)
        })
        .await?;
        {
            let mut status = self.status.state();
            status.refused_deletes = still_refused;
            if is_everything {
                status.sync_problems.clone_from(&failed);
                status.schema_problems.clone_from(&problems);
            } else if !is_dry {
                status.schema_problems.extend(problems.clone());
            }
        }
        // From here on they are tried again beside the data.
        for ns in problems.keys().filter(|_| !is_dry) {
            self.watch.ask(ns);
        }
        let mut but = failed;
        but.extend(left.iter().map(|ns| self.say_left(ns)));
        let named = |(ns, of): (Namespace, Vec<String>)| format!("`{ns}`: {}", of.join("; "));
        but.extend(problems.into_iter().map(named));
        if !refused.is_empty() {
            but.insert(0, format!("a mass delete was refused in {}", refused.join(", ")));
        }
        Ok(match (is_complete, but.is_empty()) {
            (false, _) => "ended; it begins anew, since more was demanded meanwhile".to_owned(),
            (true, true) => "done".to_owned(),
            (true, false) => format!("done, but: {}", but.join("; ")),
        })
    }
}
