//! Whether everything still has to be copied or compared, and how far that is: kept beside the queue,
//! so that it survives with the checkpoint that it belongs to.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::{
    namespace::Namespace,
    queue::{CodecError, Queue, QueueError},
};

const META: &str = "sync";

/// The note of a full sync that is demanded or under way.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SyncState {
    /// Grows with each demand, so that one that comes while a sync runs is not lost with its end.
    pub demand: u64,
    /// Collections that are done.
    pub done: BTreeSet<Namespace>,
}

impl SyncState {
    /// The open demand, if there is one.
    ///
    /// # Errors
    /// When the queue cannot be read.
    pub fn load(queue: &Queue) -> Result<Option<Self>, QueueError> {
        let Some(bytes) = queue.meta(META)? else {
            return Ok(None);
        };
        serde_json::from_slice(&bytes).map(Some).map_err(|error| {
            QueueError::Damaged(CodecError::Damaged(format!("sync state: {error}")))
        })
    }

    /// Demands that everything be copied or compared, from the beginning.
    ///
    /// # Errors
    /// When the queue cannot be written.
    pub fn demand(queue: &Queue) -> Result<(), QueueError> {
        let last = Self::load(queue)?.unwrap_or_default().demand;
        Self { demand: last + 1, done: BTreeSet::new() }.save(queue)
    }

    /// Notes that a collection is done, unless everything was demanded again meanwhile.
    ///
    /// # Errors
    /// When the queue cannot be read or written.
    pub fn finished(&mut self, queue: &Queue, ns: &Namespace) -> Result<(), QueueError> {
        self.done.insert(ns.clone());
        if self.is_current(queue)? { self.save(queue) } else { Ok(()) }
    }

    /// Ends the sync. False when everything was demanded again meanwhile, so that it must go on.
    ///
    /// # Errors
    /// When the queue cannot be read or written.
    pub fn complete(&self, queue: &Queue) -> Result<bool, QueueError> {
        let current = self.is_current(queue)?;
        if current {
            queue.set_meta(META, None)?;
        }
        Ok(current)
    }

    fn is_current(&self, queue: &Queue) -> Result<bool, QueueError> {
        Ok(Self::load(queue)?.is_some_and(|stored| stored.demand == self.demand))
    }

    fn save(&self, queue: &Queue) -> Result<(), QueueError> {
        let bytes = serde_json::to_vec(self).expect("names and numbers are JSON");
        queue.set_meta(META, Some(&bytes))
    }
}
