//! Is this still the database that the queue was filled from? The gate owns the answer.
//!
//! ```text
//!            a local error, another process answers
//!   Open ────────────────────────────────────────────▶ Closed
//!    ▲                                                   │
//!    └───────────────── a proof that nothing ────────────┘
//!                       has closed meanwhile
//! ```
//!
//! Each opening begins an *epoch*. What is read from the local database is read under a [`Permit`] of the
//! epoch, and counts only while the permit still holds: a read that began in one epoch and ended in another is
//! thrown away, and what was read in one is not written in another. So a database that was restored, wiped or
//! exchanged at the same address never reaches Atlas: its server is another process, and before anything that
//! this one says is believed, the proof asks for the replica set's id and for the past
//! ([`past`]).
//!
//! The gate knows nothing of servers: [`mongo`](crate::mongo) closes it and asks it around each exchange, and
//! the agent's gatekeeper proves.
//!
//! # Invariants
//!
//! - **G1** A permit holds only while its epoch lasts; no permit holds while the gate is closed.
//! - **G2** A proof opens the gate only if nothing closed it since the proof began.
//! - **G3** An epoch is of one server process.

use std::{sync::Arc, time::Duration};

use bson::oid::ObjectId;
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::Notify;

use self::past::Finding;
use crate::model::checkpoint::ClusterTime;

pub mod faults;
pub mod lease;
pub mod past;
pub mod pause;
pub mod reading;
pub mod tally;
pub mod writing;

/// Tells the local database that is known from any other.
#[derive(Debug, Default)]
pub struct Gate {
    state: Mutex<GateState>,
    /// Woken with every change of the state, so that whoever waits for the gate need not poll.
    changed: Notify,
}

#[derive(Debug, Default)]
struct GateState {
    open: Option<Epoch>,
    /// How often it was opened: the number of the latest epoch.
    epochs: u64,
    /// How often it was closed: a proof that has seen another number began before (G2).
    closings: u64,
    /// Proofs that were begun, and the latest of them that ended well.
    begun: u64,
    ended_well: u64,
    /// The proof that somebody waits for, or a later one.
    wanted: u64,
    /// See [`Gate::anchor`].
    anchor: ClusterTime,
    /// See [`Gate::is_suspect`].
    is_suspect: bool,
}

#[derive(Clone, Copy, Debug)]
struct Epoch {
    number: u64,
    /// `topologyVersion.processId` of the server that was proven.
    process: ObjectId,
}

/// The right to believe what the local database says, for as long as it holds.
#[derive(Clone, Debug, Default)]
pub struct Permit(Option<(Arc<Gate>, u64)>);

impl Permit {
    /// Of a source that needs no proof: it always holds.
    pub fn free() -> Self {
        Self(None)
    }

    /// False once anything has happened since that could have put another database in the place of this one.
    pub fn holds(&self) -> bool {
        self.0
            .as_ref()
            .is_none_or(|(gate, epoch)| gate.lock().open.is_some_and(|open| open.number == *epoch))
    }
}

/// A proof that is under way.
#[derive(Clone, Copy, Debug)]
pub struct Attempt {
    closings: u64,
    number: u64,
}

impl Gate {
    /// A permit of the epoch that lasts now; one that never holds while the gate is closed.
    pub fn permit(self: &Arc<Self>) -> Permit {
        // Epochs count from 1.
        let epoch = self.lock().open.map_or(0, |open| open.number);
        Permit(Some((self.clone(), epoch)))
    }

    /// Waits, at most `patience`, until the gate is open.
    pub async fn permit_within(self: &Arc<Self>, patience: Duration) -> Permit {
        let opened = self.until(|state| state.open.is_some());
        let _ = tokio::time::timeout(patience, opened).await;
        self.permit()
    }

    /// True when `process` is the server process that was proven for the epoch of this permit. What any other process
    /// answers is not believed: it may hold another database.
    pub fn is_of(&self, permit: &Permit, process: ObjectId) -> bool {
        let epoch = permit.0.as_ref().map_or(0, |(_, epoch)| *epoch);
        self.lock().open.is_some_and(|open| open.number == epoch && open.process == process)
    }

    /// Ends the epoch: a local error, or an answer of another process. What is said by a permit that has
    /// ended already closes no later epoch; a proof that is under way is void all the same, since it may have met
    /// what that permit's reader has met.
    pub fn close(&self, permit: &Permit, why: &str) {
        let mut state = self.lock();
        let epoch = permit.0.as_ref().map_or(0, |(_, epoch)| *epoch);
        state.closings += 1;
        if state.open.is_some_and(|open| open.number == epoch) {
            state.open = None;
            tracing::debug!(error = why, "the local database is to be proven again");
        }
        drop(state);
        self.changed.notify_waiters();
    }

    /// Waits for a proof that begins after this call and ends well, at most `patience`: for a new connection to
    /// the process that is known, which may be to an older state of that very process (a virtual machine that
    /// was put back to a snapshot).
    pub async fn proven_anew_within(&self, patience: Duration) -> bool {
        let wanted = {
            let mut state = self.lock();
            state.wanted = state.wanted.max(state.begun + 1);
            state.begun + 1
        };
        self.changed.notify_waiters();
        let proven = self.until(|state| state.ended_well >= wanted);
        tokio::time::timeout(patience, proven).await.is_ok()
    }

    /// Waits until a proof is needed: the gate is closed, or somebody waits for one.
    pub async fn proof_wanted(&self) {
        // Compared with the proofs that ended well, not with those that were begun: one that failed brings nobody
        // what he waits for, and no other would follow it.
        self.until(|state| state.open.is_none() || state.wanted > state.ended_well).await;
    }

    pub fn begin_proof(&self) -> Attempt {
        let mut state = self.lock();
        state.begun += 1;
        Attempt { closings: state.closings, number: state.begun }
    }

    /// The proof ended well, and all its answers came from `process`. False when something closed the gate
    /// meanwhile, so that another proof is needed (G2).
    pub fn proved(&self, attempt: Attempt, process: ObjectId) -> bool {
        let mut state = self.lock();
        if state.closings != attempt.closings {
            return false;
        }
        if state.open.is_none_or(|open| open.process != process) {
            // Another process was proven while an epoch lasted: that epoch ends with this, and so it counts as a
            // closing. Else a proof that began before, of the process of then, would open the gate once more (G2).
            state.closings += u64::from(state.open.is_some());
            state.epochs += 1;
            state.open = Some(Epoch { number: state.epochs, process });
        }
        state.ended_well = state.ended_well.max(attempt.number);
        state.is_suspect = false;
        drop(state);
        self.changed.notify_waiters();
        true
    }

    /// The proof ended without the past that is known. A server that only lags behind it ([`Finding::NotYet`]) raises no
    /// suspicion of another database, and ends none that is there.
    pub fn refuted(&self, finding: Finding) {
        let mut state = self.lock();
        state.is_suspect |= matches!(finding, Finding::OtherDatabase | Finding::OtherPast);
        state.closings += 1;
        state.open = None;
        drop(state);
        self.changed.notify_waiters();
    }

    /// True while there is evidence that this is another database, until a proof says otherwise: nothing is written to
    /// Atlas meanwhile, whoever has read it and whenever.
    pub fn is_suspect(&self) -> bool {
        self.lock().is_suspect
    }

    /// The time of the youngest entry of the oplog that is known to have been there, of those that a majority
    /// had: a database without it has another past. 0: none is known.
    pub fn anchor(&self) -> ClusterTime {
        self.lock().anchor
    }

    /// An entry of this time was there.
    pub fn seen(&self, entry: ClusterTime) {
        let mut state = self.lock();
        state.anchor = state.anchor.max(entry);
    }

    async fn until(&self, is_so: impl Fn(&GateState) -> bool) {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            // Listens before it looks: a change between a look and the listening would wake nobody, and the wait would
            // last until the next one.
            changed.as_mut().enable();
            if is_so(&self.lock()) {
                return;
            }
            changed.await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, GateState> {
        self.state.lock()
    }
}

#[cfg(test)]
mod tests;
