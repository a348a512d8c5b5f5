//! Collections that a run does not wait for: a change of theirs is queued that Atlas does not make yet, for days perhaps,
//! and until then their names mean one thing here and another there.
//!
//! What is asked for says so, and ends without them. What is owed ends too; they are noted, and owed again as soon as the
//! change is made.

use std::{collections::BTreeSet, time::Duration};

use super::run::{LOOK_AGAIN, Run};
use crate::{
    model::namespace::Namespace,
    queue::{Queue, QueueError},
    runtime::{
        clock::{self, now_ms},
        shutdown::blocking,
    },
    schema::{joined, watch::SchemaWatch},
    sink::SchemaSink,
    sync::{
        Context, SyncError, pause,
        state::{Reason, behind},
    },
};

/// How long indexes wait for the repair of the documents.
const WRITTEN_WITHIN: Duration = Duration::from_secs(60);

/// True when something is queued, and all of it waits for changes that Atlas does not make yet.
pub fn is_all_held_up(queue: &Queue, watch: &SchemaWatch) -> bool {
    let held = watch.all_held();
    if held.is_empty() {
        return false;
    }
    let (held_up, waiting) = (queue.behind(held), queue.pending_by_namespace());
    !waiting.is_empty() && waiting.keys().all(|ns| held_up.contains(ns))
}

/// Waits until every drop and rename of a collection that was queued is made. False when one of them is not made
/// yet.
pub(super) async fn barriers_go<K: SchemaSink>(
    run: &Run<'_, K>,
    ns: &Namespace,
) -> Result<bool, SyncError> {
    while run.cx.queue.has_barrier(ns) {
        if held_up(run.cx).contains(ns) {
            tracing::warn!(%ns, "not compared, since a change of it waits that Atlas does not make yet");
            run.plans.leave(ns);
            return Ok(false);
        }
        pause(run.stop, LOOK_AGAIN).await?;
    }
    Ok(true)
}

/// All that waits for changes that Atlas does not make yet.
fn held_up<K>(cx: &Context<K>) -> BTreeSet<Namespace> {
    cx.queue.behind(cx.watch.all_held())
}

/// Waits, but not for ever, until what was queued is in Atlas: indexes must fit the documents.
pub(super) async fn wait_until_written<K: SchemaSink>(run: &Run<'_, K>) -> Result<(), SyncError> {
    let (began, since) = (clock::now(), now_ms());
    while !run.is_dry() && clock::since(began) < WRITTEN_WITHIN {
        let queue = run.cx.queue.clone();
        let oldest = blocking(move || queue.oldest_ms()).await?;
        if oldest.is_none_or(|oldest| oldest >= since)
            || is_all_held_up(&run.cx.queue, &run.cx.watch)
        {
            break;
        }
        pause(run.stop, LOOK_AGAIN).await?;
    }
    Ok(())
}

/// Why a run has left a collection, in words.
pub(super) fn say_left<K>(cx: &Context<K>, ns: &Namespace) -> String {
    let held = cx.watch.all_held();
    let is_of_it = |held: &Namespace| cx.queue.behind([held.clone()].into()).contains(ns);
    let held = held.into_iter().filter(is_of_it);
    let problems = cx.watch.all_listed();
    let why: BTreeSet<_> = held.filter_map(|held| Some(joined(problems.get(&held)?))).collect();
    let why: Vec<_> = why.into_iter().collect();
    let why = if why.is_empty() { "a change of it waits".to_owned() } else { why.join("; ") };
    format!("`{ns}` was not compared: {why}")
}

/// Requires what was left, where nothing is in its way any more.
pub(super) async fn require_left<K>(cx: &Context<K>) -> Result<(), SyncError> {
    let (queue, position) = (cx.queue.clone(), cx.reading.position().seen());
    let required = blocking(move || {
        let mut free = behind::noted(&queue)?;
        free.retain(|ns| !queue.has_barrier(ns));
        behind::require(&queue, position, &free, Reason::Renamed)?;
        Ok::<_, QueueError>(free)
    })
    .await?;
    if !required.is_empty() {
        cx.sync_wanted.notify_one();
    }
    Ok(())
}
