//! Options and indexes of all collections of a run.

use std::collections::BTreeMap;

use super::{
    Collection, Reconciler, SyncError,
    ends::{End, ask},
    run::Run,
    schema::{mend, schema_steps, sentences},
};
use crate::{
    model::namespace::Namespace,
    observe::status::Build,
    runtime::clock::now_ms,
    schema::{Description, IndexChange, Step, index_names},
    sink::Sink,
};

/// Which differences are mended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mending {
    /// Indexes that only Atlas has: before the documents, which they may keep out.
    Drops,
    /// All: when the documents are there, since they must fit, and since it is faster.
    Everything,
}

impl<K: Sink> Reconciler<K> {
    /// Compares options and indexes, and mends them. Returns what could not be mended, a sentence each.
    pub(super) async fn mend_schemas(
        &self,
        run: &Run<'_>,
        collections: &[Collection],
        what: Mending,
    ) -> Result<BTreeMap<Namespace, Vec<String>>, SyncError> {
        let copies = self
            .retrying(run.stop, "Atlas cannot be compared yet", || Box::pin(self.there()))
            .await?;
        let copies: BTreeMap<_, _> =
            copies.collections.iter().map(|copy| (&copy.ns, copy)).collect();
        let copies = &copies;
        let problems = self
            .ends
            .each(collections.iter().collect(), |collection: &Collection| {
                Box::pin(async move {
                    let copy = copies.get(&collection.ns).copied();
                    let mended = loop {
                        match self.mend_schema(run, collection, copy, what).await {
                            Err(SyncError::Outdated) => {}
                            mended => break mended,
                        }
                    };
                    let problems = self.unless_refused(&collection.ns, mended)?;
                    Ok((collection.ns.clone(), problems))
                })
            })
            .await?;
        Ok(problems.into_iter().filter(|(_, problems)| !problems.is_empty()).collect())
    }

    async fn mend_schema(
        &self,
        run: &Run<'_>,
        collection: &Collection,
        copy: Option<&Collection>,
        what: Mending,
    ) -> Result<Vec<String>, SyncError> {
        let ns = &collection.ns;
        // What the name means is about to change.
        if self.queue.has_barrier(ns) {
            return Ok(Vec::new());
        }
        let Some(copy) = copy else {
            self.note_schema(ns, &["the collection is missing in Atlas".to_owned()]);
            return Ok(Vec::new());
        };
        let permit = self.ends.proven(run.stop).await?;
        let options = (&collection.options, &copy.options);
        let mut steps = schema_steps(&self.ends, ns, End::Local, options, run.stop).await?;
        if what == Mending::Drops {
            steps.retain(|step| matches!(step, Step::Index(IndexChange::Drop { .. })));
        }
        let sentences = sentences(&steps);
        if sentences.is_empty() {
            return Ok(Vec::new());
        }
        self.note_schema(ns, &sentences);
        if run.request.dry_run {
            return Ok(Vec::new());
        }
        let Some(here) = self.still(run, collection).await? else { return Ok(Vec::new()) };
        // Changed since it was listed.
        if here.options != collection.options {
            self.watch.ask(ns);
            return Ok(Vec::new());
        }
        // What allows less than what is there comes when all of it has arrived.
        let before = steps.len();
        steps.retain(|step| !step.tightens());
        if steps.len() < before {
            self.watch.ask(ns);
        }
        if steps.is_empty() {
            return Ok(Vec::new());
        }
        tracing::info!(%ns, differences = sentences.join("; "), "options and indexes are mended");
        self.may_write(run.stop).await?;
        let indexes = index_names(steps.iter().filter_map(Step::build));
        if !indexes.is_empty() {
            let build = Build { indexes, since_ms: now_ms(), percent: None };
            self.status.state().builds.insert(ns.clone(), build);
        }
        let left = mend(&self.ends, End::Atlas, ns, (steps, &permit), run.stop).await;
        self.status.state().builds.remove(ns);
        let left = left?;
        for problem in &left {
            tracing::warn!(%ns, error = problem, "not mended");
        }
        Ok(left)
    }

    /// As [`still`](Self::still), yes or no.
    pub(super) async fn is_still(
        &self,
        run: &Run<'_>,
        collection: &Collection,
    ) -> Result<bool, SyncError> {
        Ok(self.still(run, collection).await?.is_some())
    }

    /// This very collection as it is now, without its indexes, if the local database still has it: making an index
    /// would make a collection that is gone.
    pub(super) async fn still(
        &self,
        run: &Run<'_>,
        collection: &Collection,
    ) -> Result<Option<Description>, SyncError> {
        let (local, ns) = (&self.ends.local, &collection.ns);
        let here = ask!(self.ends, End::Local, run.stop, local.describe_options(ns));
        Ok(here.filter(|found| found.id == collection.id))
    }

    pub(super) fn note_schema(&self, ns: &Namespace, sentences: &[String]) {
        if let Some(progress) = &mut self.status.state().sync {
            let noted = &mut progress.share(ns).schema;
            let new: Vec<_> = sentences.iter().filter(|said| !noted.contains(said)).collect();
            noted.extend(new.into_iter().cloned());
        }
    }
}
