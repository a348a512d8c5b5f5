//! What is shown of the agent's condition and belongs to nobody else: the phase, progress, figures of collections. What
//! decides something is owned elsewhere ([`gate`](crate::gate), the queue, [`schema::watch`](crate::schema::watch)) and
//! shown from there; `tests/tidy.rs` lists the exceptions.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use parking_lot::{Mutex, MutexGuard};
use serde::Serialize;

use crate::{
    gate::{faults::Faults, writing::Against},
    model::{checkpoint::ClusterTime, namespace::Namespace},
    observe::{
        metrics::{Counter, Metrics},
        misfits::Misfits,
        progress::Progress,
        recent::Recent,
        repaired::Repaired,
    },
    policy::{backlog::Waiting, breaker::Stage, majority::Majority, position::Position},
};

/// Overall condition.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    #[default]
    Starting,
    /// Another agent reads the source, of which one does at a time. Nothing is read or written meanwhile.
    Standby,
    /// The first copy, or the comparison that takes its place, is under way. Changes are read into
    /// the queue meanwhile.
    Copying,
    Streaming,
    /// Writing to Atlas was paused by a person. Reading into the queue goes on.
    Paused,
    Stopping,
    Failed,
}

impl Phase {
    pub fn name(self) -> &'static str {
        match self {
            Phase::Starting => "starting",
            Phase::Standby => "standby",
            Phase::Copying => "copying",
            Phase::Streaming => "streaming",
            Phase::Paused => "paused",
            Phase::Stopping => "stopping",
            Phase::Failed => "failed",
        }
    }
}

/// Whether changes reach Atlas right now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Flow {
    /// Atlas has not been asked whose copy it holds, so nothing was written yet.
    Connecting,
    /// The local database seems to be another one, or the lease in Atlas another's.
    Held,
    /// Atlas refuses access.
    Denied,
    /// Atlas does not answer.
    Away,
    /// A person has paused the writing.
    Paused,
    Flowing,
}

/// Shared by all tasks: they write what they know, the admin API reads.
#[derive(Debug, Default)]
pub struct Status {
    pub metrics: Metrics,
    /// Grows every second for as long as the agent and its queue are not stuck.
    pub ticks: Counter,
    /// When documents were written to Atlas, as far as that is remembered.
    pub recent: Recent,
    /// The documents that the full sync in hand, or the last one, has queued.
    pub repaired: Repaired,
    /// Values that declared columns could not take. Counted by the sink.
    pub misfits: Arc<Misfits>,
    /// What is wrong with one of the ends, while it is.
    pub faults: Faults,
    state: Mutex<StatusState>,
}

/// What is known right now.
#[derive(Clone, Debug, Default)]
pub struct StatusState {
    pub phase: Phase,
    /// What the local server cannot show of its oplog.
    pub unshowable: Option<Unshowable>,
    /// Local writes that no majority has yet, so that the stream does not show them.
    pub majority: Majority,
    /// What a majority has and this agent has not read yet: replies that come one behind the other may all be old.
    pub unread: Majority,
    /// What waits in the source itself, of one that keeps what nobody has read.
    pub waiting: Waiting,
    /// Who reads the source, while this agent stands by.
    pub read_by: Option<String>,
    /// The latest source time at which the copy in Atlas equalled the local database.
    pub consistent_as_of: Option<ClusterTime>,
    /// The full sync that runs, or ran last.
    pub sync: Option<Progress>,
    /// What the last one could not do, a sentence each.
    pub sync_problems: Vec<String>,
    /// What the filter chooses and is not replicated all the same, with the reason.
    pub left_out: Vec<String>,
    /// The replicated collections that were counted or written to.
    pub namespaces: BTreeMap<Namespace, Figures>,
    /// Those whose numbers of documents differ by more than what waits explains.
    pub divergences: Vec<Divergence>,
    /// Writes applied and rejected at recent moments, the oldest first; see [`Status::sample`].
    pub samples: VecDeque<(u64, u64)>,
    /// The local oplog's reach back before the checkpoint, in seconds, where it may be asked for.
    pub oplog_window_s: Option<u64>,
}

/// The local server fails at one place of its oplog, though it answers otherwise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unshowable {
    /// With this error, for a while now.
    Failing(String),
    /// It was passed over, milliseconds since 1970; 0: before this start. Everything is to be compared.
    PassedOver { at_ms: u64 },
}

/// One collection in numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Figures {
    /// Changes written to Atlas since the agent started.
    pub writes: u64,
    /// When the last of them was, milliseconds since 1970; 0: none yet.
    pub last_write_ms: u64,
    /// Documents on either side when they were last counted, as the servers estimate.
    pub local_documents: Option<u64>,
    pub atlas_documents: Option<u64>,
    /// When that was, milliseconds since 1970; 0: not yet.
    pub counted_ms: u64,
}

/// A collection that holds another number of documents in Atlas than waiting writes explain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Divergence {
    pub ns: String,
    pub local: u64,
    pub atlas: u64,
    pub counted: Counted,
}

/// What the numbers of a [`Divergence`] are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counted {
    /// All documents, by the servers' estimates, which a crash of one may have put wrong.
    Estimated,
    /// All documents, one by one.
    All,
    /// One by one, those that no server is about to throw away by itself, of a collection with an expiry.
    Staying,
    /// One by one, those that every server should have thrown away long ago.
    Gone,
}

impl StatusState {
    /// The stream goes on, or fails for another reason.
    pub fn no_longer_failing(&mut self) {
        if matches!(self.unshowable, Some(Unshowable::Failing(_))) {
            self.unshowable = None;
        }
    }
}

impl Status {
    pub fn state(&self) -> MutexGuard<'_, StatusState> {
        self.state.lock()
    }

    /// Whether changes reach Atlas. What needs a person comes before what passes.
    pub fn flow(&self, against: Against) -> Flow {
        let fault = self.faults.atlas.get();
        match () {
            () if against.is_suspect || against.is_fenced => Flow::Held,
            () if fault.as_ref().is_some_and(|fault| fault.is_denied) => Flow::Denied,
            () if against.is_paused => Flow::Paused,
            () if against.is_unacquired && fault.is_none() => Flow::Connecting,
            () if fault.is_some() || against.breaker != Stage::Closed => Flow::Away,
            () => Flow::Flowing,
        }
    }

    /// False while nothing says how far Atlas is behind: nothing was read yet, or what is read does not get there.
    pub fn knows_lag(&self, against: Against, position: Position) -> bool {
        self.flow(Against { is_fenced: false, ..against }) == Flow::Flowing
            && self.state().phase == Phase::Streaming
            && !self.state().waiting.is_unknown()
            && !self.faults.local.is_any()
            && !position.is_unknown()
    }

    /// Sets the phase; says so in the log when it is another.
    pub fn enter(&self, phase: Phase) {
        let before = std::mem::replace(&mut self.state().phase, phase);
        if before != phase {
            tracing::info!(phase = phase.name(), "phase changed");
        }
    }
}

/// How the writes of the last five minutes ended. One that is tried again and again is one write.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RecentWrites {
    pub applied: u64,
    pub rejected: u64,
}

impl RecentWrites {
    pub fn all(self) -> u64 {
        self.applied + self.rejected
    }

    /// The share of them that Atlas rejected.
    pub fn error_rate(self) -> f64 {
        self.rejected as f64 / self.all().max(1) as f64
    }
}

/// Samples that [`recent_writes`](Status::recent_writes) looks back over: five minutes, one every five seconds.
const SAMPLES: usize = 60;

impl Status {
    /// Takes a sample for [`recent_writes`](Self::recent_writes); called every five seconds.
    pub fn sample(&self) {
        let now = (self.metrics.writes_applied.get(), self.metrics.writes_rejected.get());
        let samples = &mut self.state().samples;
        if samples.len() == SAMPLES {
            samples.pop_front();
        }
        samples.push_back(now);
    }

    /// The writes of the last five minutes.
    pub fn recent_writes(&self) -> RecentWrites {
        let (applied, rejected) = self.state().samples.front().copied().unwrap_or_default();
        RecentWrites {
            applied: self.metrics.writes_applied.get().saturating_sub(applied),
            rejected: self.metrics.writes_rejected.get().saturating_sub(rejected),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gate::faults::Fault;

    #[test]
    fn writes_flow_only_when_atlas_is_ours_answers_and_nobody_has_paused() {
        let nothing = Against::default();
        let unacquired = Against { is_unacquired: true, ..nothing };
        let paused = Against { is_paused: true, ..nothing };
        let of = |is_denied| {
            let status = Status::default();
            status.faults.atlas.fails(Fault { error: "no".to_owned(), is_denied });
            status
        };

        assert_eq!(Status::default().flow(nothing), Flow::Flowing);
        assert_eq!(Status::default().flow(unacquired), Flow::Connecting);
        assert_eq!(Status::default().flow(paused), Flow::Paused);
        assert_eq!(of(true).flow(paused), Flow::Denied);
        assert_eq!(of(false).flow(unacquired), Flow::Away);
        let open = Against { breaker: Stage::Open, ..nothing };
        assert_eq!(Status::default().flow(open), Flow::Away);
        let suspect = Against { is_suspect: true, ..nothing };
        assert_eq!(Status::default().flow(suspect), Flow::Held);
    }

    #[test]
    fn how_far_atlas_is_behind_is_not_known_before_anything_was_read() {
        let status = Status::default();
        status.enter(Phase::Streaming);
        let (nothing, mut position) = (Against::default(), Position::default());
        assert!(!status.knows_lag(nothing, position));

        position.end_reply(ClusterTime(2), ClusterTime(1));
        assert!(status.knows_lag(nothing, position));
        assert!(!status.knows_lag(Against { is_paused: true, ..nothing }, position));
    }
}
