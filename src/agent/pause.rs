//! Pausing and resuming a running agent.

use tokio::sync::Mutex;

use super::Handles;
use crate::{
    gate::pause::Pause,
    observe::status::Phase,
    queue::{QueueError, note},
    runtime::{clock::now_ms, shutdown::blocking},
};

/// Held by whoever pauses or resumes: else a pause that is over and one that takes its place could cross, and what is kept
/// would not be what holds.
static TURN: Mutex<()> = Mutex::const_new(());

/// Pauses the writing to Atlas, or lets it go on. Kept beside the queue first, so that a restart knows of it.
///
/// # Errors
/// [`QueueError`]; nothing is changed then.
pub async fn set_paused(handles: &Handles, pause: Option<Pause>) -> Result<(), QueueError> {
    let _turn = TURN.lock().await;
    keep(handles, pause.as_ref()).await?;
    take_effect(handles, pause);
    Ok(())
}

async fn keep(handles: &Handles, pause: Option<&Pause>) -> Result<(), QueueError> {
    let (queue, kept) = (handles.queue.clone(), pause.map(Pause::stored));
    blocking(move || {
        queue.set_meta(note::PAUSED, kept.as_deref())?;
        queue.flush()
    })
    .await
}

fn take_effect(handles: &Handles, pause: Option<Pause>) {
    let is_paused = pause.is_some();
    handles.writing.pause(pause);
    let phase = handles.status.state().phase;
    match (is_paused, phase) {
        (true, Phase::Streaming) => handles.status.enter(Phase::Paused),
        (false, Phase::Paused) => handles.status.enter(Phase::Streaming),
        (_, _) => {}
    }
}

/// Ends a pause whose time is over. Where that cannot be noted writing goes on all the same: it may be the pause that has
/// filled the disk, and what is noted is over by its own time after a restart.
pub(super) async fn resume_in_time(handles: &Handles) {
    if !handles.writing.paused().is_some_and(|pause| pause.is_over(now_ms())) {
        return;
    }
    let _turn = TURN.lock().await;
    // It may have been given more time since.
    let Some(pause) = handles.writing.paused().filter(|pause| pause.is_over(now_ms())) else {
        return;
    };
    if let Err(error) = keep(handles, None).await {
        tracing::warn!(%error, "the end of the pause cannot be noted");
    }
    take_effect(handles, None);
    tracing::info!(reason = pause.reason, by = pause.by, "the pause is over, writing goes on");
}
