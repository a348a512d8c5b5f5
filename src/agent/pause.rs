//! Pausing and resuming an agent. A pause stands in its queue, and in a file beside that for the case that the queue is
//! moved aside: else a disk that fails would have everything compared, and overwritten, in an Atlas that a person wants
//! left as it is.

use std::{
    fs, io,
    os::unix::fs::{MetadataExt, chown},
    path::{Path, PathBuf},
};

use tokio::sync::Mutex;

use super::{Handles, queue_options};
use crate::{
    gate::pause::Pause,
    observe::status::Phase,
    queue::{Queue, QueueError, QueueOptions, note},
    runtime::{clock::now_ms, files, shutdown::blocking},
};

/// Held by whoever pauses or resumes: else a pause that is over and one that takes its place could cross, and what is kept
/// would not be what holds.
static TURN: Mutex<()> = Mutex::const_new(());

fn beside(queue: &Path) -> PathBuf {
    files::beside(queue, ".paused")
}

/// Keeps a pause for the agent that works with this queue, or will, and with `None` that there is none.
///
/// # Errors
/// [`QueueError`]. What was kept before may still be then.
pub fn keep_pause(
    queue: &Queue,
    options: &QueueOptions,
    pause: Option<&Pause>,
) -> Result<(), QueueError> {
    let file = beside(&options.path);
    // First: a pause that is over for the queue alone would begin again with the next queue.
    if pause.is_none() {
        remove(&file).map_err(QueueError::Disk)?;
    }
    queue.set_meta(note::PAUSED, pause.map(Pause::stored).as_deref())?;
    queue.flush()?;
    // One that is not to persist ends with its queue. Where only the queue's own folder may be written, so does any other.
    if let Some(pause) = pause.filter(|_| options.persist)
        && let Err(error) = write(&file, &options.path, pause)
    {
        tracing::debug!(%error, "the pause is noted in the queue only");
    }
    Ok(())
}

/// A power cut must not bring it back: what the queue has noted would be gone by then.
fn remove(file: &Path) -> io::Result<()> {
    if files::remove(file)? {
        let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty());
        files::sync(folder.unwrap_or(Path::new(".")))?;
    }
    Ok(())
}

fn write(file: &Path, queue: &Path, pause: &Pause) -> io::Result<()> {
    files::replace(file, &pause.stored())?;
    // Root may have paused it, and is not who reads it.
    let owner = fs::metadata(queue)?;
    if fs::metadata(file)?.uid() != owner.uid() {
        chown(file, Some(owner.uid()), Some(owner.gid()))?;
    }
    Ok(())
}

/// The pause that was kept, also beside a queue that was moved aside since.
///
/// # Errors
/// When the queue cannot be read.
pub(super) fn kept_pause(
    queue: &Queue,
    options: &QueueOptions,
) -> Result<Option<Pause>, QueueError> {
    let noted = queue.meta(note::PAUSED)?;
    let in_file = || fs::read(beside(&options.path)).ok().filter(|_| options.persist);
    Ok(noted.or_else(in_file).as_deref().map(Pause::read))
}

/// Pauses the writing to Atlas, or lets it go on. Kept first, so that a restart knows of it.
///
/// # Errors
/// [`QueueError`]; nothing is changed then.
pub async fn set_paused(handles: &Handles, pause: Option<Pause>) -> Result<(), QueueError> {
    let _turn = TURN.lock().await;
    keep(handles, pause.clone()).await?;
    take_effect(handles, pause);
    Ok(())
}

async fn keep(handles: &Handles, pause: Option<Pause>) -> Result<(), QueueError> {
    let (queue, options) = (handles.queue.clone(), queue_options(&handles.config));
    blocking(move || keep_pause(&queue, &options, pause.as_ref())).await
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
