//! The end of a run: what is noted of it, and how it is told.

use std::collections::{BTreeMap, BTreeSet};

use parking_lot::Mutex;

use super::{
    behind::say_left,
    refusals::note_refused,
    run::{FAILED_WAIT, Run},
};
use crate::{
    model::namespace::Namespace,
    observe::progress::SyncOutcome,
    policy::read_watermark::ReadWatermark,
    queue::{Queue, QueueError, note},
    runtime::{clock::now_ms, shutdown::blocking},
    schema::{Problem, joined},
    sink::SchemaSink,
    sync::{
        SyncError, pause,
        state::{SyncState, behind},
    },
};

/// Everything was compared just now, or begins to be.
pub(super) fn note_last(queue: &Queue) -> Result<(), QueueError> {
    let now = serde_json::to_vec(&now_ms()).expect("a number is JSON");
    queue.set_meta(note::LAST_SYNC, Some(&now))
}

/// Notes the end of a run, and says how it was.
pub(super) async fn finish<K: SchemaSink>(
    run: &Run<'_, K>,
    watermark: &Mutex<ReadWatermark>,
    problems: BTreeMap<Namespace, Vec<Problem>>,
) -> Result<SyncOutcome, SyncError> {
    let cx = run.cx;
    // What was written whole may be younger than deltas that are still to come.
    let now = cx.local_time(run.stop).await?;
    watermark.lock().raise(now);
    let failed = run.take_failed();
    if run.plan.is_owed() && !failed.is_empty() {
        // Without them the copy stays wrong, so it is not over.
        cx.status.state().sync_problems.clone_from(&failed);
        pause(run.stop, FAILED_WAIT).await?;
        return Ok(SyncOutcome::NotDone(failed.join("; ")));
    }
    let state = run.plans.state().await;
    let (is_dry, is_of_all) = (run.is_dry(), run.request.namespaces.is_empty());
    let refused: Vec<_> = state.refused.iter().map(ToString::to_string).collect();
    let refused = if is_dry { run.refused_in_progress() } else { refused };
    let mut all_refused = cx.writing.refused_deletes();
    if !is_dry {
        all_refused = still_refused(all_refused, &refused, &state.done, is_of_all);
    }
    let left = run.plans.left();
    let is_everything = is_of_all && !is_dry && !state.is_of_some && left.is_empty();
    let (queue, noted) = (cx.queue.clone(), all_refused.clone());
    let owed = if run.plan.is_owed() { left.clone() } else { BTreeSet::new() };
    run.ends();
    let is_complete = blocking(move || -> Result<_, QueueError> {
        behind::note(&queue, &owed)?;
        note_refused(&queue, &noted)?;
        if is_everything {
            note_last(&queue)?;
        }
        SyncState::complete(&queue, state.id)
    })
    .await?;
    {
        cx.writing.set_refused_deletes(all_refused);
        if is_everything {
            cx.status.state().sync_problems.clone_from(&failed);
            cx.watch.list_only(problems.clone());
        } else if !is_dry {
            for (ns, problems) in &problems {
                cx.watch.list(ns, problems.clone());
            }
        }
    }
    // From here on they are tried again beside the data.
    for ns in problems.keys().filter(|_| !is_dry) {
        cx.watch.ask(ns);
    }
    let mut but = failed;
    but.extend(left.iter().map(|ns| say_left(cx, ns)));
    let named = |(ns, of): (Namespace, Vec<Problem>)| format!("`{ns}`: {}", joined(&of));
    but.extend(problems.into_iter().map(named));
    Ok(outcome(is_complete, &refused, but))
}

/// Where a mass delete is refused, after a run that has refused it in `refused`: of what it was `done` with, it knows
/// best.
fn still_refused(
    mut before: Vec<String>,
    refused: &[String],
    done: &BTreeSet<Namespace>,
    is_of_all: bool,
) -> Vec<String> {
    if is_of_all {
        return refused.to_vec();
    }
    before.retain(|ns| !done.iter().any(|done| done.as_str() == *ns));
    before.extend(refused.iter().cloned());
    before
}

/// How a run has ended that came to its end, with what it leaves, a sentence each.
fn outcome(is_complete: bool, refused: &[String], mut but: Vec<String>) -> SyncOutcome {
    if !is_complete {
        return SyncOutcome::BeginsAgain;
    }
    if !refused.is_empty() {
        but.insert(0, format!("a mass delete was refused in {}", refused.join(", ")));
    }
    if but.is_empty() { SyncOutcome::Done } else { SyncOutcome::DoneBut(but.join("; ")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn a_run_that_leaves_something_is_done_but_for_that() {
        for (is_complete, refused, but, told) in [
            (true, &[] as &[&str], &[] as &[&str], "done"),
            (true, &[], &["a", "b"], "done, but: a; b"),
            (true, &["x.y"], &["a"], "done, but: a mass delete was refused in x.y; a"),
            (false, &["x.y"], &["a"], "ended; it begins anew, since more was demanded meanwhile"),
        ] {
            assert_eq!(outcome(is_complete, &names(refused), names(but)).to_string(), told);
        }
    }

    #[test]
    fn a_refusal_lasts_until_its_collection_is_compared_again() {
        let done: BTreeSet<Namespace> = ["a.x", "a.y"].map(|ns| ns.parse().unwrap()).into();
        let before = || names(&["a.x", "b.z"]);
        for (refused, is_of_all, after) in [
            (&[] as &[&str], false, &["b.z"] as &[&str]),
            (&["a.y"], false, &["b.z", "a.y"]),
            (&["a.x"], false, &["b.z", "a.x"]),
            (&["a.y"], true, &["a.y"]),
            (&[], true, &[]),
        ] {
            let found = still_refused(before(), &names(refused), &done, is_of_all);
            assert_eq!(found, names(after), "{refused:?}");
        }
    }
}
