//! Waiting until all that is committed locally now is in Atlas.

use std::time::{Duration, Instant};

use super::Handles;
use crate::{
    config::units,
    model::checkpoint::ClusterTime,
    observe::status::{Phase, StatusState},
    queue::QueueError,
    runtime::shutdown::blocking,
    source::SourceError,
    sync::state::SyncState,
};

/// How it ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Flushed {
    /// Atlas has all documents up to this time; so many collections have indexes that are still to be built, or
    /// are being built.
    Done { up_to: ClusterTime, is_building: bool },
    /// It has not, so far.
    Waiting { pending: u64, because: String },
    /// Nothing waits any more, and some of it was given up.
    GivenUp { dead_letters: u64 },
}

/// Why it cannot be told.
#[derive(Debug, thiserror::Error)]
pub enum FlushError {
    #[error(transparent)]
    Local(#[from] SourceError),
    #[error(transparent)]
    Queue(#[from] QueueError),
}

/// A write that has waited so long for a majority is named as what is waited for.
const NO_MAJORITY: Duration = Duration::from_secs(2);

/// How often it is looked at.
const LOOK: Duration = Duration::from_millis(50);

/// Waits until Atlas has all that was committed locally before the call, at most for `patience`; its indexes are
/// built beside the documents, and waited for where that is asked.
///
/// # Errors
/// When the local database does not tell its time, or the queue fails.
pub async fn flush(
    handles: &Handles,
    patience: Duration,
    wait_for_indexes: bool,
) -> Result<Flushed, FlushError> {
    let give_up = Instant::now() + patience;
    // Also what no majority has yet, and what a delayed member does not show yet.
    let target = handles.journal.last_write().await?.written;
    // Everything up to the target is read first; only then does the queue's end mean something.
    let mut position = None;
    let mut is_owed = false;
    loop {
        let has_read = handles.reading.position().has_read(target);
        if has_read && position.is_none() {
            position = Some(handles.queue.position());
        }
        if let Some(position) = position {
            let queue = handles.queue.clone();
            let (waits, owed) = blocking(move || {
                Ok::<_, QueueError>((queue.has_before(position), SyncState::is_owed(&queue)?))
            })
            .await?;
            is_owed = owed;
            let leaves_nothing = handles.writing.leaves_nothing();
            let is_building = handles.watch.is_building();
            let is_waited_for = is_building && wait_for_indexes;
            if !waits && !owed && leaves_nothing && !is_waited_for {
                let dead_letters = handles.queue.dead_letters_len();
                return Ok(if dead_letters > 0 {
                    Flushed::GivenUp { dead_letters }
                } else {
                    Flushed::Done { up_to: target, is_building }
                });
            }
        }
        if Instant::now() >= give_up {
            let (pending, _) = handles.queue.pending();
            return Ok(Flushed::Waiting {
                pending,
                because: why(handles, position.is_some(), is_owed),
            });
        }
        tokio::time::sleep(LOOK).await;
    }
}

fn why(handles: &Handles, has_read: bool, is_owed: bool) -> String {
    let state = handles.status.state();
    let faults = &handles.status.faults;
    if let Some(fault) = faults.local.get().or_else(|| faults.atlas.get()) {
        return fault.error;
    }
    if handles.writing.is_paused() {
        return "writing to Atlas is paused".to_owned();
    }
    if let Some(reason) = handles.reading.stopped() {
        return format!("reading has stopped: {reason}");
    }
    if !handles.writing.refused_deletes().is_empty() {
        return "a comparison found more to delete in Atlas than it may".to_owned();
    }
    if handles.local.peer.at_work_since().is_some() {
        return "the local server looks through its oplog for what is behind the checkpoint"
            .to_owned();
    }
    if let Some((ns, reason)) = handles.writing.not_ours().first_key_value() {
        return format!("`{ns}` is not written: {reason}");
    }
    match state.phase {
        Phase::Starting => "the agent waits for Atlas".to_owned(),
        Phase::Standby => "another agent reads the outbox, and writes the copy".to_owned(),
        Phase::Copying => "the first copy is not done".to_owned(),
        _ if !has_read => unread(&state),
        _ if is_owed => {
            "collections are being compared (`outrigger sync status` shows how far)".to_owned()
        }
        _ if handles.queue.pending().0 == 0 && handles.watch.is_open() => {
            "indexes are being built in Atlas (`outrigger status` shows them)".to_owned()
        }
        _ => "changes wait in the queue".to_owned(),
    }
}

/// Why something that was written locally has not been read.
fn unread(state: &StatusState) -> String {
    let (uncommitted, delay) = (state.majority.uncommitted(), state.majority.delay());
    if uncommitted >= NO_MAJORITY {
        let since = units::show_duration(Duration::from_secs(uncommitted.as_secs()));
        return format!(
            "the local replica set has no majority for what was written in the last {since}: a member is away or \
             behind, and what only the primary has may still be rolled back"
        );
    }
    if delay > Duration::ZERO {
        let delay = units::show_duration(delay);
        return format!(
            "the local member is a delayed one: it shows what its set writes {delay} late"
        );
    }
    "not everything was read yet".to_owned()
}
