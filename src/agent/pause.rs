//! Pausing and resuming a running agent.

use super::Handles;
use crate::{
    gate::pause::Pause,
    observe::status::Phase,
    queue::{QueueError, note},
    runtime::{clock::now_ms, shutdown::blocking},
};

/// Pauses the writing to Atlas, or lets it go on. Kept beside the queue first, so that a restart knows of it.
///
/// # Errors
/// [`QueueError`]; nothing is changed then.
pub async fn set_paused(handles: &Handles, pause: Option<Pause>) -> Result<(), QueueError> {
    let (queue, kept) = (handles.queue.clone(), pause.as_ref().map(Pause::stored));
    blocking(move || {
        queue.set_meta(note::PAUSED, kept.as_deref())?;
        queue.flush()
    })
    .await?;
    let is_paused = pause.is_some();
    handles.writing.pause(pause);
    let phase = handles.status.state().phase;
    match (is_paused, phase) {
        (true, Phase::Streaming) => handles.status.enter(Phase::Paused),
        (false, Phase::Paused) => handles.status.enter(Phase::Streaming),
        (_, _) => {}
    }
    Ok(())
}

/// Ends a pause whose time is over. One that cannot be taken out of the queue is tried again.
pub(super) async fn resume_in_time(handles: &Handles) {
    let Some(pause) = handles.writing.paused().filter(|pause| pause.is_over(now_ms())) else {
        return;
    };
    match set_paused(handles, None).await {
        Ok(()) => tracing::info!(
            reason = pause.reason,
            by = pause.by,
            "the pause is over, writing goes on"
        ),
        Err(error) => tracing::debug!(%error, "the end of the pause cannot be noted"),
    }
}
