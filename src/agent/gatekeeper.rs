//! Proves the local database, again and again: whenever the [`Gate`] is closed, and when somebody has a new
//! connection to it.
//!
//! A proof is a look at the set's id and at the oplog, all answered by one server process, judged by
//! [`past`](crate::gate::past). Evidence against the database is shown at once, and nothing is written from then on;
//! but a primary that was cut off from its set looks the same for as long as it takes to step down, so it
//! counts only after [`PATIENCE`]. Then the agent ends, with Atlas as it was.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bson::oid::ObjectId;

use super::{AgentError, patience::tell_once};
use crate::{
    gate::{
        Gate,
        faults::Fault,
        past::{Finding, Known, judge},
    },
    model::checkpoint::{Checkpoint, PositionKind},
    mongo::{Mongo, MongoError},
    observe::{report::one_line, status::Status},
    policy::backoff::OutageWait,
    queue::{Queue, QueueError},
    runtime::shutdown::blocking,
    source::{SourceError, evidence},
};

/// How long a missing past must be missed before the local database counts as another one: longer than
/// an election takes.
const PATIENCE: Duration = Duration::from_secs(20);

/// How often a database that is suspect is looked at.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// What is proven, and where it is told.
pub(super) struct Gatekeeper {
    pub local: Mongo,
    pub gate: Arc<Gate>,
    pub queue: Arc<Queue>,
    pub status: Arc<Status>,
    /// The database that this agent was started for.
    pub source_id: String,
}

/// Why a proof brought nothing.
#[derive(Debug, thiserror::Error)]
enum NoProof {
    #[error(transparent)]
    Queue(#[from] QueueError),
    #[error(transparent)]
    Source(#[from] SourceError),
    /// Something happened to the connection meanwhile.
    #[error("the connection to the local database was interrupted while it was looked at")]
    Interrupted,
}

impl Gatekeeper {
    /// Opens the gate for the first time.
    ///
    /// # Errors
    /// What the person who starts the agent must mend first.
    pub(super) async fn open(&self) -> Result<(), AgentError> {
        let began = Instant::now();
        let mut is_told = false;
        loop {
            match self.prove().await {
                Ok(Finding::Same | Finding::RolledOver) => return Ok(()),
                // The queue was filled from a set of another id: no later look can find the same one, so waiting does
                // not help.
                Ok(finding @ Finding::OtherDatabase) => return Err(refused(finding)),
                Ok(finding @ (Finding::OtherPast | Finding::NotYet)) => {
                    if began.elapsed() > PATIENCE {
                        return Err(refused(finding));
                    }
                }
                // An election, for instance. The next look is at whoever answers then.
                Err(
                    error @ (NoProof::Interrupted | NoProof::Source(SourceError::Unavailable(_))),
                ) if began.elapsed() < PATIENCE => {
                    tell_once(&mut is_told, &error);
                }
                Err(NoProof::Interrupted) => {
                    return Err(SourceError::Unavailable(MongoError::Unproven.into()).into());
                }
                Err(NoProof::Source(error)) => return Err(error.into()),
                Err(NoProof::Queue(error)) => return Err(error.into()),
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    /// Proves for as long as the agent runs. Returns why the local database is not the one that it was started
    /// for, or that the queue failed.
    pub(super) async fn run(&self) -> AgentError {
        let mut wait = OutageWait::new(Duration::from_millis(100), LOOK_AGAIN);
        let mut suspected_since: Option<Instant> = None;
        loop {
            self.gate.proof_wanted().await;
            let was_suspect = self.gate.is_suspect();
            match self.prove().await {
                Ok(Finding::Same | Finding::RolledOver) => {
                    wait.reset();
                    suspected_since = None;
                    if was_suspect {
                        tracing::info!("the local database is the same as before after all");
                        self.status.faults.local.answers();
                    }
                    continue;
                }
                Ok(finding @ Finding::NotYet) => {
                    // A suspicion is what lasts without a break.
                    suspected_since = None;
                    self.note(one_line(&refused(finding)), false);
                }
                Ok(finding @ (Finding::OtherDatabase | Finding::OtherPast)) => {
                    let error = refused(finding);
                    let sentence = one_line(&error);
                    self.note(sentence.clone(), true);
                    if suspected_since.is_none() {
                        tracing::warn!(error = %sentence, "the local database seems to be another one; looking again");
                    }
                    if suspected_since.get_or_insert_with(Instant::now).elapsed() > PATIENCE {
                        return error;
                    }
                }
                Err(NoProof::Queue(error)) => return error.into(),
                Err(NoProof::Interrupted) => {}
                Err(NoProof::Source(error)) => {
                    self.note(one_line(&error), !matches!(error, SourceError::Unavailable(_)));
                }
            }
            tokio::time::sleep(wait.next_wait()).await;
        }
    }

    /// Shows why the local database is not read. What is suspect is not overwritten by a mere interruption.
    fn note(&self, error: String, is_denied: bool) {
        if is_denied || !self.gate.is_suspect() {
            self.status.faults.local.fails(Fault { error, is_denied });
        }
    }

    /// One proof. Opens the gate, or closes it, as it ends.
    async fn prove(&self) -> Result<Finding, NoProof> {
        let attempt = self.gate.begin_proof();
        let known = self.known().await?;
        // One exchange after the other, all of which must be answered by the same process.
        let local = self.local.for_a_proof();
        let seen = evidence(&local, known.anchor).await?;
        let finding = judge(&known, &seen);
        match finding {
            Finding::Same | Finding::RolledOver => {
                let process: ObjectId = local.process().ok_or(NoProof::Interrupted)?;
                if !self.gate.proved(attempt, process) {
                    return Err(NoProof::Interrupted);
                }
                // Before anything was read there is no other anchor: without one, the first exchange of the database would
                // go unnoticed.
                if let Some(entry) = seen.last_entry.filter(|_| finding == Finding::Same) {
                    self.gate.seen(entry);
                }
            }
            Finding::OtherDatabase | Finding::OtherPast | Finding::NotYet => {
                self.gate.refuted(finding);
            }
        }
        Ok(finding)
    }

    async fn known(&self) -> Result<Known, QueueError> {
        let queue = self.queue.clone();
        let checkpoint = blocking(move || queue.checkpoint()).await?;
        let mut known = Known {
            set_id: self.source_id.clone(),
            anchor: self.gate.anchor(),
            ..Known::default()
        };
        if let Some(checkpoint) = checkpoint {
            known.set_id = checkpoint.source_id;
            known.anchor = known.anchor.max(checkpoint.anchor);
            known.position = checkpoint.cluster_time;
        }
        Ok(known)
    }
}

/// Why an agent would not go on with a queue of this checkpoint, if it would not: the same look, for whoever asks
/// before a start.
///
/// # Errors
/// When the local database does not answer, or refuses to.
pub async fn refusal(
    local: &Mongo,
    checkpoint: &Checkpoint,
) -> Result<Option<AgentError>, SourceError> {
    if let Err(error) = checkpoint.is_of(&PositionKind::CLUSTER_TIME) {
        return Ok(Some(AgentError::OtherSource { problem: error.to_string() }));
    }
    let known = Known {
        set_id: checkpoint.source_id.clone(),
        anchor: checkpoint.anchor,
        position: checkpoint.cluster_time,
    };
    let seen = evidence(&local.for_a_proof(), known.anchor).await?;
    Ok(match judge(&known, &seen) {
        Finding::Same | Finding::RolledOver => None,
        finding @ (Finding::OtherDatabase | Finding::OtherPast | Finding::NotYet) => {
            Some(refused(finding))
        }
    })
}

/// What the finding means for an agent.
fn refused(finding: Finding) -> AgentError {
    let problem = match finding {
        Finding::OtherDatabase => {
            "the queue was filled from another database than the one that `local.uri` names now (the replica \
             set's id differs)"
        }
        Finding::OtherPast => {
            "the local database does not have the past that the queue was filled from: it was restored from a \
             backup"
        }
        Finding::NotYet => {
            "the local server has not come as far as what was read before; it may still be catching up"
        }
        Finding::Same | Finding::RolledOver => unreachable!("such a database is not refused"),
    };
    AgentError::OtherSource { problem: problem.to_owned() }
}
