//! Of a source that one agent reads at a time the others wait until it is their turn: they read nothing and write nothing,
//! tell who does, and look every second.
//!
//! Whoever has had its turn and finds that another agent reads is ended: what it has in hand is another's by now. Its
//! service starts it anew, and then it waits.

use std::time::Duration;

use super::{Agent, AgentError};
use crate::{
    gate::faults::Fault,
    observe::{report::one_line, status::Phase},
    runtime::shutdown::blocking,
    source::{SourceError, outbox::Whose},
};

/// How often it is asked whose turn it is.
const LOOK: Duration = Duration::from_secs(1);

/// How long an agent that stops waits for the source to take its turn back.
const GIVE_BACK_WITHIN: Duration = Duration::from_secs(2);

/// Waits for this agent's turn.
///
/// # Errors
/// What waiting does not mend.
pub(super) async fn stand_by(agent: &Agent) -> Result<(), AgentError> {
    let (queue, status) = (agent.queue.clone(), &agent.status);
    let token = blocking(move || queue.checkpoint()).await?.map(|checkpoint| checkpoint.token);
    let mut has_waited = false;
    loop {
        match agent.source.take_turn(token.as_ref()).await {
            Ok(Whose::Ours) => break,
            Ok(Whose::Of(holder)) => {
                status.faults.local.answers();
                status.enter(Phase::Standby);
                let before = status.state().read_by.replace(holder.clone());
                if before.as_ref() != Some(&holder) {
                    tracing::info!(reason = holder, "another agent reads; this one stands by");
                }
            }
            Err(error) if error.is_transient() => {
                let is_denied = matches!(error, SourceError::Denied { .. });
                status.faults.local.fails(Fault { error: one_line(&error), is_denied });
            }
            Err(error) => return Err(error.into()),
        }
        has_waited = true;
        tokio::time::sleep(LOOK).await;
    }
    if !has_waited {
        return Ok(());
    }
    status.faults.local.answers();
    status.state().read_by = None;
    status.enter(Phase::Starting);
    agent.atlas.peer.silent_from_now();
    Ok(())
}

/// Completes when another agent reads in the place of this one.
pub(super) async fn superseded(agent: &Agent) -> AgentError {
    agent.source.lost().await;
    AgentError::Superseded
}

/// Another agent may have its turn at once. What could not be given back is free when it has run out.
pub(super) async fn give_back(agent: &Agent) {
    let _ = tokio::time::timeout(GIVE_BACK_WITHIN, agent.source.give_back()).await;
}
