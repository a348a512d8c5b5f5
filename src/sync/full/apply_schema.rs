//! Options and indexes of all collections of a run.

use std::collections::BTreeMap;

use super::run::Run;
use crate::{
    model::namespace::Namespace,
    runtime::clock::now_ms,
    schema::{IndexChange, Problem, Step, index_names},
    sink::SchemaSink,
    sync::{
        Collection, SyncError,
        schema::{apply_schema, schema_steps, sentences},
        sides::SideName,
    },
};

/// Which schema changes are applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ToApply {
    /// Indexes that only Atlas has: before the documents, which they may keep out.
    Drops,
    /// All: when the documents are there, since they must fit, and since it is faster.
    Everything,
}

/// Compares options and indexes, and applies what differs to the copy. Returns what could not be applied, a sentence each.
pub(super) async fn apply_schemas<K: SchemaSink>(
    run: &Run<'_, K>,
    collections: &[Collection],
    what: ToApply,
) -> Result<BTreeMap<Namespace, Vec<Problem>>, SyncError> {
    let copies = run.target_listing().await?;
    let copies: BTreeMap<_, _> = copies.collections.iter().map(|copy| (&copy.ns, copy)).collect();
    let copies = &copies;
    let problems = run
        .cx
        .sides
        .each(collections.iter().collect(), |collection: &Collection| {
            Box::pin(async move {
                let copy = copies.get(&collection.ns).copied();
                let applied = loop {
                    match apply_schema_of(run, collection, copy, what).await {
                        Err(SyncError::Outdated) => {}
                        applied => break applied,
                    }
                };
                let problems = run.unless_refused(&collection.ns, applied)?;
                Ok((collection.ns.clone(), problems))
            })
        })
        .await?;
    Ok(problems.into_iter().filter(|(_, problems)| !problems.is_empty()).collect())
}

async fn apply_schema_of<K: SchemaSink>(
    run: &Run<'_, K>,
    collection: &Collection,
    copy: Option<&Collection>,
    what: ToApply,
) -> Result<Vec<Problem>, SyncError> {
    let ns = &collection.ns;
    // What the name means is about to change.
    if run.cx.queue.has_barrier(ns) {
        return Ok(Vec::new());
    }
    let Some(copy) = copy else {
        run.note_schema(ns, &["the collection is missing in Atlas".to_owned()]);
        return Ok(Vec::new());
    };
    let permit = run.cx.sides.proven(run.stop).await?;
    let options = (&collection.options, &copy.options);
    let mut steps = schema_steps(&run.cx.sides, ns, SideName::Local, options, run.stop).await?;
    if what == ToApply::Drops {
        steps.retain(|step| matches!(step, Step::Index(IndexChange::Drop { .. })));
    }
    let sentences = sentences(&steps);
    if sentences.is_empty() {
        return Ok(Vec::new());
    }
    run.note_schema(ns, &sentences);
    if run.is_dry() {
        return Ok(Vec::new());
    }
    let Some(source) = run.cx.still(ns, collection.id, run.stop).await? else {
        return Ok(Vec::new());
    };
    // Changed since it was listed.
    if source.options != collection.options {
        run.cx.watch.ask(ns);
        return Ok(Vec::new());
    }
    // What allows less than what is there comes when all of it has arrived.
    let before = steps.len();
    steps.retain(|step| !step.tightens());
    if steps.len() < before {
        run.cx.watch.ask(ns);
    }
    if steps.is_empty() {
        return Ok(Vec::new());
    }
    tracing::info!(%ns, differences = sentences.join("; "), "options and indexes are mended");
    run.cx.may_write(run.stop).await?;
    let indexes = index_names(steps.iter().filter_map(Step::build));
    if !indexes.is_empty() {
        run.cx.watch.build_begins(ns, indexes, now_ms());
    }
    let left = apply_schema(&run.cx.sides, SideName::Atlas, ns, (steps, &permit), run.stop).await;
    run.cx.watch.build_ended(ns);
    let left = left?;
    // What was changed locally between the look and now, the worker may have made before these steps were. What is only
    // dropped here is looked at once more when the documents are there, and what is left at the run's end.
    if what == ToApply::Everything && left.is_empty() {
        run.cx.watch.ask(ns);
    }
    for problem in &left {
        tracing::warn!(%ns, error = %problem, "not mended");
    }
    Ok(left)
}
