//! Whether anything may be written to Atlas now. All that speaks against it is told here, by whoever knows, and asked
//! here by whoever writes:
//!
//! | against it | who says so | until |
//! | --- | --- | --- |
//! | a person has paused it | the admin API | the person resumes it, or its time is over |
//! | the local database seems to be another one | the [`Gate`] | a proof |
//! | this agent does not hold the lease yet | the lease client | it is taken |
//! | the lease could not be renewed | the [`Lease`], by the time | it is renewed |
//! | Atlas does not answer | the worker, to the [breaker](crate::policy::breaker) | a probe that succeeds |
//! | a collection is somebody else's in Atlas | the lease client | it finds it otherwise |
//! | a comparison found too much to delete | the full sync | one that finds less, or is told to |
//!
//! The last two are of single collections, and hold up nothing else. What is displayed of all this is read from here,
//! and decides nothing.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::{Mutex, MutexGuard};

use crate::{
    gate::{
        Gate,
        lease::{BootTime, Lease},
        pause::Pause,
    },
    model::namespace::Namespace,
    policy::breaker::{BreakerPolicy, BreakerState, CircuitBreaker, Stage},
};

/// Owns the question.
#[derive(Debug)]
pub struct Writing {
    gate: Arc<Gate>,
    lease: Arc<Lease>,
    breaker: Mutex<CircuitBreaker>,
    state: Mutex<WritingState>,
}

#[derive(Debug, Default)]
struct WritingState {
    pause: Option<Pause>,
    is_acquired: bool,
    not_ours: BTreeMap<Namespace, String>,
    /// By name, as they are kept in the queue.
    refused_deletes: Vec<String>,
}

/// What speaks against writing anything at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "facts that do not exclude one another")]
pub struct Against {
    /// By a person.
    pub is_paused: bool,
    /// The local database seems to be another one.
    pub is_suspect: bool,
    /// The lease could not be renewed for so long that another agent may have it.
    pub is_fenced: bool,
    /// This very agent does not hold the lease yet.
    pub is_unacquired: bool,
    /// Whether Atlas answers.
    pub breaker: Stage,
}

impl Default for Writing {
    /// Of a gate that nobody closes, and a breaker that opens with the first failure.
    fn default() -> Self {
        let (open_for, open_for_max) = (Duration::from_secs(1), Duration::from_secs(60));
        Self::new(Arc::default(), BreakerPolicy { failure_threshold: 1, open_for, open_for_max })
    }
}

impl Writing {
    /// Of an agent whose local database is behind `gate`.
    pub fn new(gate: Arc<Gate>, breaker: BreakerPolicy) -> Self {
        let breaker = Mutex::new(CircuitBreaker::new(breaker));
        Self { gate, lease: Arc::default(), breaker, state: Mutex::default() }
    }

    /// What speaks against it now.
    pub fn against(&self) -> Against {
        let breaker = self.breaker.lock().stage();
        let (is_suspect, is_fenced) = (self.gate.is_suspect(), self.is_fenced());
        let state = self.lock();
        let (is_paused, is_unacquired) = (state.pause.is_some(), !state.is_acquired);
        Against { is_paused, is_suspect, is_fenced, is_unacquired, breaker }
    }

    /// True while nothing may be written, whoever wants it so. Whether Atlas is there is another matter.
    pub fn rests(&self) -> bool {
        self.is_paused() || self.gate.is_suspect() || self.is_fenced()
    }

    /// True while the local database seems to be another one.
    pub fn is_suspect(&self) -> bool {
        self.gate.is_suspect()
    }

    /// The lease could not be renewed for so long that another agent may have it: nothing is written.
    pub fn is_fenced(&self) -> bool {
        self.lease.has_lapsed(BootTime::now())
    }

    /// The lease, for whoever asks before each write.
    pub fn lease(&self) -> &Arc<Lease> {
        &self.lease
    }

    /// Whether Atlas answers: asked before a batch and told after it, by the worker alone.
    pub fn breaker(&self) -> MutexGuard<'_, CircuitBreaker> {
        self.breaker.lock()
    }

    /// How long until Atlas is tried again, while it does not answer.
    pub fn next_try(&self, now: Instant) -> Option<Duration> {
        match self.breaker.lock().state() {
            BreakerState::Open { until, .. } => Some(until.saturating_duration_since(now)),
            BreakerState::Closed { .. } | BreakerState::HalfOpen { .. } => None,
        }
    }

    /// By a person, or no longer.
    pub fn pause(&self, pause: Option<Pause>) {
        self.lock().pause = pause;
    }

    /// Why a person wants it so, and until when.
    pub fn paused(&self) -> Option<Pause> {
        self.lock().pause.clone()
    }

    /// True while a person wants it so.
    pub fn is_paused(&self) -> bool {
        self.lock().pause.is_some()
    }

    /// This very agent holds the lease from now on.
    pub fn acquired(&self) {
        self.lock().is_acquired = true;
    }

    /// True once it does.
    pub fn is_acquired(&self) -> bool {
        self.lock().is_acquired
    }

    /// These collections, with the reason, are somebody else's in Atlas. Returns those that were so far.
    pub fn keep_apart(&self, named: BTreeMap<Namespace, String>) -> BTreeMap<Namespace, String> {
        std::mem::replace(&mut self.lock().not_ours, named)
    }

    /// Collections that are not ours to write in Atlas, with the reason.
    pub fn not_ours(&self) -> BTreeMap<Namespace, String> {
        self.lock().not_ours.clone()
    }

    /// In this collection, too, a comparison found too much to delete without being asked. Returns all of them.
    pub fn refuse_deletes(&self, ns: &Namespace) -> Vec<String> {
        let mut state = self.lock();
        if !state.refused_deletes.iter().any(|refused| refused == ns.as_str()) {
            state.refused_deletes.push(ns.to_string());
        }
        state.refused_deletes.clone()
    }

    /// In these, and in no others.
    pub fn set_refused_deletes(&self, refused: Vec<String>) {
        self.lock().refused_deletes = refused;
    }

    /// Collections in which a comparison found too much to delete without being asked.
    pub fn refused_deletes(&self) -> Vec<String> {
        self.lock().refused_deletes.clone()
    }

    /// False in those: what Atlas alone has of them stays.
    pub fn may_delete_in(&self, ns: &Namespace) -> bool {
        !self.lock().refused_deletes.iter().any(|refused| refused == ns.as_str())
    }

    /// True when an empty queue means that Atlas has everything: the lease is held, no collection is kept apart, and no
    /// delete was refused. Without this question `flush` and `status` would call a copy complete that lacks a collection.
    pub fn leaves_nothing(&self) -> bool {
        let state = self.lock();
        state.is_acquired && state.refused_deletes.is_empty() && state.not_ours.is_empty()
    }

    fn lock(&self) -> MutexGuard<'_, WritingState> {
        self.state.lock()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gate::past::Finding;

    #[test]
    fn writing_rests_while_a_person_the_gate_or_the_lease_says_so_and_not_for_an_outage() {
        let writing = Writing::default();
        assert!(!writing.rests(), "no mark was ever set, and nothing could lapse");

        writing.pause(Some(Pause::default()));
        assert!(writing.rests());
        writing.pause(None);
        writing.lease.end();
        assert!(writing.rests() && writing.against().is_fenced);
        writing.lease.renew(BootTime::now());
        writing.gate.refuted(Finding::OtherPast);
        assert!(writing.rests() && writing.against().is_suspect);

        let process = bson::oid::ObjectId::from_bytes([1; 12]);
        assert!(writing.gate.proved(writing.gate.begin_proof(), process) && !writing.rests());
        let now = Instant::now();
        assert_eq!(writing.next_try(now), None);
        writing.breaker().failed(now, 0.0);
        assert_eq!(writing.against().breaker, Stage::Open);
        assert_eq!(writing.next_try(now), Some(Duration::from_secs(1)));
        assert!(!writing.rests());
    }

    #[test]
    fn a_collection_that_is_kept_apart_or_may_not_be_emptied_leaves_something() {
        let (writing, ns) = (Writing::default(), Namespace::new("shop", "orders"));
        assert!(!writing.leaves_nothing(), "no mark");
        writing.acquired();
        assert!(writing.leaves_nothing() && writing.may_delete_in(&ns));

        assert_eq!(writing.refuse_deletes(&ns), writing.refuse_deletes(&ns), "once");
        assert!(!writing.leaves_nothing() && !writing.may_delete_in(&ns));
        writing.set_refused_deletes(Vec::new());

        let apart = BTreeMap::from([(ns, "theirs".to_owned())]);
        assert!(writing.keep_apart(apart.clone()).is_empty() && !writing.leaves_nothing());
        assert_eq!(writing.keep_apart(BTreeMap::new()), apart);
    }
}
