//! Which agent this is: the same after a restart, and after the loss of its queue. And how it leaves its place.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use uuid::Uuid;

use super::Agent;
use crate::{
    model::namespace::NamespaceFilter,
    queue::{Queue, QueueError, QueueOptions, note},
    runtime::{files, shutdown::blocking},
    side::records::AgentIdentity,
    sync::ownership::LeaseClient,
};

/// How long an agent that stops waits for Atlas to take its release.
const RELEASE_WITHIN: Duration = Duration::from_secs(2);

impl Agent {
    /// Releases the lease in Atlas, so that another agent may follow. One that could not be released
    /// is stale after a minute.
    pub(super) async fn release(&self, filter: &NamespaceFilter) {
        if !self.writing.is_acquired() {
            return;
        }
        let lease_client = LeaseClient {
            atlas: &*self.atlas.side,
            filter,
            source_id: self.source.id(),
            agent: &self.identity,
            lease: self.writing.lease(),
        };
        if let Ok(Err(error)) = tokio::time::timeout(RELEASE_WITHIN, lease_client.release()).await {
            tracing::debug!(%error, "the mark was not given back");
        }
    }
}

/// Where the id stands beside the queue.
fn beside(queue: &Path) -> PathBuf {
    files::beside(queue, ".id")
}

fn read(bytes: Vec<u8>) -> Option<Uuid> {
    String::from_utf8(bytes).ok()?.trim().parse().ok()
}

/// The id of the agent that is to work with a queue which nobody works with now; `None` where it is still to be drawn.
///
/// # Errors
/// When the queue fails.
pub fn known_id(options: &QueueOptions) -> Result<Option<String>, QueueError> {
    let in_file = std::fs::read(beside(&options.path)).ok().and_then(read);
    let noted = if options.path.join("db").exists() {
        Queue::open(options)?.meta(note::AGENT)?.and_then(read)
    } else {
        None
    };
    Ok(noted.or(in_file).map(|id| id.to_string()))
}

/// Reads this agent's id, or draws one. It stands in the queue, and in a file beside it for the case that the
/// queue is moved aside.
pub(super) async fn identify(queue: &Arc<Queue>, path: &Path) -> Result<AgentIdentity, QueueError> {
    let beside = beside(path);
    let queue = queue.clone();
    let id = blocking(move || -> Result<String, QueueError> {
        let noted = queue.meta(note::AGENT)?.and_then(read);
        let in_file = std::fs::read(&beside).ok().and_then(read);
        let id = noted.or(in_file).unwrap_or_else(Uuid::new_v4).to_string();
        if noted.is_none() {
            queue.set_meta(note::AGENT, Some(id.as_bytes()))?;
        }
        // Where only the queue's own folder may be written, the id goes with the queue.
        if in_file.is_none()
            && let Err(error) = files::replace(&beside, format!("{id}\n").as_bytes())
        {
            tracing::debug!(%error, "the agent's id is in its queue only");
        }
        Ok(id)
    })
    .await?;
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let (instance, pid) = (Uuid::new_v4().to_string(), std::process::id());
    Ok(AgentIdentity { id, instance, host, boot: boot.trim().to_owned(), pid })
}
