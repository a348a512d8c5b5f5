//! Whether everything still has to be copied or compared, and how far that is: kept beside the queue,
//! so that it survives with the checkpoint that it belongs to.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::{
    checkpoint::ClusterTime,
    namespace::Namespace,
    queue::{CodecError, Queue, QueueError},
};

const META: &str = "sync";

/// The note of a full sync that is demanded or under way.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SyncState {
    /// Grows with each demand, so that one that comes while a sync runs is not lost with its end.
    pub demand: u64,
    /// The cluster time that local reads must have reached: the stream's position when the sync was
    /// demanded. What was committed before it is not in the stream.
    pub after: u64,
    /// Collections that are done.
    pub done: BTreeSet<Namespace>,
}

impl SyncState {
    /// The open demand, if there is one.
    ///
    /// # Errors
    /// When the queue cannot be read.
    pub fn load(queue: &Queue) -> Result<Option<Self>, QueueError> {
        Self::decode(queue.meta(META)?.as_deref())
    }

    /// Demands that everything be copied or compared, from the beginning, as it is at `position` or
    /// later.
    ///
    /// # Errors
    /// When the queue cannot be written.
    pub fn demand(queue: &Queue, position: ClusterTime) -> Result<(), QueueError> {
        queue.update_meta(META, |stored| {
            let last = Self::decode(stored)?.unwrap_or_default();
            // A position may be one tick ahead of the last operation, a time that no read can reach
            // yet; what is before it is what counts.
            let after = last.after.max(position.0.saturating_sub(1));
            let next = Self { demand: last.demand + 1, after, done: BTreeSet::new() };
            Ok(Some(next.encode()))
        })
    }

    /// Notes that a collection is done, unless everything was demanded again meanwhile.
    ///
    /// # Errors
    /// When the queue cannot be read or written.
    pub fn finished(&mut self, queue: &Queue, ns: &Namespace) -> Result<(), QueueError> {
        self.done.insert(ns.clone());
        queue.update_meta(META, |stored| {
            Ok(if self.is(stored)? { Some(self.encode()) } else { stored.map(<[u8]>::to_vec) })
        })
    }

    /// Ends the sync. False when everything was demanded again meanwhile, so that it must go on.
    ///
    /// # Errors
    /// When the queue cannot be read or written.
    pub fn complete(&self, queue: &Queue) -> Result<bool, QueueError> {
        let mut current = false;
        queue.update_meta(META, |stored| {
            current = self.is(stored)?;
            Ok(if current { None } else { stored.map(<[u8]>::to_vec) })
        })?;
        Ok(current)
    }

    /// The time that local reads must have reached.
    pub fn after(&self) -> ClusterTime {
        ClusterTime(self.after)
    }

    fn is(&self, stored: Option<&[u8]>) -> Result<bool, QueueError> {
        Ok(Self::decode(stored)?.is_some_and(|stored| stored.demand == self.demand))
    }

    fn decode(stored: Option<&[u8]>) -> Result<Option<Self>, QueueError> {
        stored.map(serde_json::from_slice).transpose().map_err(|error| {
            QueueError::Damaged(CodecError::Damaged(format!("sync state: {error}")))
        })
    }

    fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("names and numbers are JSON")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::queue::QueueOptions;

    #[test]
    fn a_demand_that_comes_while_a_sync_runs_is_not_lost_with_its_end() {
        let dir = tempfile::TempDir::new().unwrap();
        let queue = Queue::open(&QueueOptions::new(dir.path().join("queue"))).unwrap();
        let ns = Namespace::new("shop", "orders");
        SyncState::demand(&queue, ClusterTime(10)).unwrap();
        let mut running = SyncState::load(&queue).unwrap().unwrap();

        SyncState::demand(&queue, ClusterTime(20)).unwrap();
        running.finished(&queue, &ns).unwrap();

        assert!(!running.complete(&queue).unwrap());
        let next = SyncState::load(&queue).unwrap().unwrap();
        assert_eq!((next.after(), next.done.len()), (ClusterTime(19), 0));
        assert!(next.complete(&queue).unwrap());
        assert_eq!(SyncState::load(&queue).unwrap(), None);
    }
}
