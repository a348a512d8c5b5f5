//! What the agent remembers of the lease that it left, and whether its queue is older than that lease.

use std::time::Duration;

use crate::{
    gate::tally::Counts,
    model::checkpoint::{ClusterTime, PositionKind},
    side::records::LeaseRecord,
};

/// What the agent remembers of the lease that it left.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Remembered {
    /// The id of the lease that its queue's position belongs to.
    pub lease_id: Option<String>,
    /// The last position that the lease is known to carry.
    pub checkpoint: ClusterTime,
    /// The last position that was sent to it. Its answer may be lost, and then the lease carries it all the same.
    pub sent: ClusterTime,
    /// The queue came from another machine, and has not taken the lease of its target yet.
    pub moved: bool,
    /// The starts that may have taken the lease last.
    pub lives: Vec<String>,
    /// How far the queue has come by its own account.
    pub position: ClusterTime,
    /// What its positions count.
    pub kind: Option<PositionKind>,
    /// What the target has confirmed by count.
    pub confirmed: Counts,
}

/// By how much a lease may be ahead of a queue that has lost its last half second with its process.
const AHEAD_MAX: Duration = Duration::from_secs(60);

impl Remembered {
    /// True when the target lacks something that it is known to have had.
    pub fn is_ahead_of(&self, record: &LeaseRecord) -> bool {
        record.checkpoint < self.checkpoint || !record.counts.have(&self.confirmed)
    }

    /// True when this queue is an older one than that which has taken the lease.
    pub fn is_behind(&self, record: &LeaseRecord) -> bool {
        let Remembered { lives, checkpoint, sent, position, .. } = self;
        // Earlier versions tell of no life.
        let is_of_another_life =
            record.life.as_ref().is_some_and(|life| !lives.is_empty() && !lives.contains(life));
        // How far is too far is told in time alone.
        let millis = |position| self.kind.as_ref()?.millis(position);
        let known = millis(*position.max(sent).max(checkpoint)).zip(millis(record.checkpoint));
        let is_far_ahead = *position > ClusterTime::default()
            && known.is_some_and(|(known, ahead)| {
                ahead > known.saturating_add(AHEAD_MAX.as_millis() as u64)
            });
        is_of_another_life || is_far_ahead
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::model::namespace::NamespaceFilter;

    #[test]
    fn a_queue_that_was_put_back_is_behind_the_lease() {
        let second = |n: u64| ClusterTime(n << 32);
        let of = |life: &str, at: u64| LeaseRecord {
            source_id: "a".to_owned(),
            filter: NamespaceFilter::new(&[], &[]).unwrap(),
            copied: Vec::new(),
            refused: BTreeSet::default(),
            upstream: Vec::new(),
            lease_id: Some("c".to_owned()),
            checkpoint: second(at),
            life: Some(life.to_owned()),
            holder: None,
            counts: Counts::default(),
        };
        let queue = |lives: &[&str], position| Remembered {
            lives: lives.iter().map(|life| (*life).to_owned()).collect(),
            position: second(position),
            kind: Some(PositionKind::CLUSTER_TIME),
            ..Remembered::default()
        };

        assert!(!queue(&["1"], 100).is_behind(&of("1", 100)));
        assert!(!queue(&["1"], 100).is_behind(&of("1", 150)), "what a kill may cost");
        assert!(queue(&["1"], 100).is_behind(&of("1", 200)), "put back within one life");
        assert!(queue(&["1"], 100).is_behind(&of("2", 100)), "put back to an earlier life");
        assert!(
            !queue(&["1", "2"], 100).is_behind(&of("2", 100)),
            "it was not known whether it was set"
        );
        assert!(!queue(&[], 100).is_behind(&of("2", 100)), "of an earlier version");
        assert!(!queue(&["1"], 100).is_behind(&of("1", 160)), "as much as it may cost at most");
        let sent =
            Remembered { position: ClusterTime::default(), sent: second(100), ..queue(&["1"], 0) };
        assert!(!sent.is_behind(&of("1", 1_000)), "it is not known how far it has read");
        let counted = Remembered { kind: Some(PositionKind::named("row")), ..queue(&["1"], 100) };
        assert!(!counted.is_behind(&of("1", 1 << 30)), "rows are not times");
    }
}
