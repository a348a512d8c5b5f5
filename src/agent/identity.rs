//! Which agent this is: the same after a restart, and after the loss of its queue.

use std::{path::Path, sync::Arc};

use uuid::Uuid;

use crate::{
    queue::{Queue, QueueError},
    shutdown::blocking,
    sync::ownership::AgentMark,
};

/// Under which name the id stands in the queue.
const META: &str = "agent";

/// Reads this agent's id, or draws one. It stands in the queue, and in a file beside it for the case that the
/// queue is moved aside.
pub(super) async fn mark(queue: &Arc<Queue>, path: &Path) -> Result<AgentMark, QueueError> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(".id");
    let queue = queue.clone();
    let id = blocking(move || -> Result<String, QueueError> {
        let read = |bytes: Vec<u8>| String::from_utf8(bytes).ok()?.trim().parse::<Uuid>().ok();
        let noted = queue.meta(META)?.and_then(read);
        let in_file = std::fs::read(&beside).ok().and_then(read);
        let id = noted.or(in_file).unwrap_or_else(Uuid::new_v4).to_string();
        if noted.is_none() {
            queue.set_meta(META, Some(id.as_bytes()))?;
        }
        // Where only the queue's own folder may be written, the id goes with the queue.
        if in_file.is_none()
            && let Err(error) = std::fs::write(&beside, format!("{id}\n"))
        {
            tracing::debug!(%error, "the agent's id is in its queue only");
        }
        Ok(id)
    })
    .await?;
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let (instance, pid) = (Uuid::new_v4().to_string(), std::process::id());
    Ok(AgentMark { id, instance, host, boot: boot.trim().to_owned(), pid })
}
