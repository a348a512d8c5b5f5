//! Whose turn it is: the right to read is taken, given back and lost here.

use std::sync::Arc;

use super::{
    Inner, OutboxSource, away,
    lease::{self, Held, Record},
    stream::Position,
    whole_number,
};
use crate::{
    gate::lease::{BootTime, Lease},
    model::checkpoint::ResumeToken,
    runtime::crash::{self, CrashPoint},
    source::SourceError,
};

/// Whose turn it is to read.
pub enum Whose {
    Ours,
    /// Another agent's, in words.
    Of(String),
}

impl Inner {
    /// The right to read, taken where nobody has it: by a queue whose reader is this one at once.
    pub(super) async fn turn(
        &self,
        reader: &str,
    ) -> Result<Result<Arc<Held>, String>, SourceError> {
        if let Some(held) = self.held.lock().as_ref().filter(|held| !held.is_lost()) {
            return Ok(Ok(held.clone()));
        }
        let shape = Arc::new(self.shape().await?);
        let mut session = self.db.session().await.map_err(away)?;
        let seen = lease::look(&mut session, &shape).await.map_err(away)?;
        let is_own = |seen: &Record| !reader.is_empty() && seen.reader == reader;
        if let Some(seen) = seen.as_ref().filter(|seen| seen.is_live && !is_own(seen)) {
            return Ok(Err(seen.holder.clone()));
        }
        let (sent_at, holder) = (BootTime::now(), holder());
        let taken = lease::take(&mut session, &shape, seen.as_ref(), (reader, &holder));
        let Some(term) = taken.await.map_err(away)? else {
            return Ok(Err("an agent that took it at the same moment".to_owned()));
        };
        crash::point(CrashPoint::TurnTaken);
        let (retention, fence) = (self.config.retention, self.fence.get().cloned());
        let held = Arc::new(Held::new(&self.db, &shape, (term, sent_at), retention, fence));
        *self.held.lock() = Some(held.clone());
        Ok(Ok(held))
    }
}

/// Who this agent is, for whoever waits for it.
fn holder() -> String {
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    format!("host `{host}`, process {}", std::process::id())
}

impl OutboxSource {
    /// Who is told whether this agent may read, and with that write.
    pub fn tell(&self, fence: Arc<Lease>) {
        let _ = self.0.fence.set(fence);
    }

    /// Takes the right to read, of which there is one, where nobody has it. `queue` is the position that this agent's queue
    /// has come to.
    ///
    /// # Errors
    /// When the database cannot be asked.
    pub async fn take_turn(&self, queue: Option<&ResumeToken>) -> Result<Whose, SourceError> {
        let reader = queue.and_then(Position::of).map(|position| position.reader);
        Ok(match self.0.turn(&reader.unwrap_or_default()).await? {
            Ok(_) => Whose::Ours,
            Err(holder) => Whose::Of(holder),
        })
    }

    /// Completes when another agent reads; never where this one does not.
    pub async fn lost(&self) {
        let held = self.0.held.lock().clone();
        match held {
            Some(held) => held.lost().await,
            None => std::future::pending().await,
        }
    }

    /// Another agent may read at once.
    pub async fn give_back(&self) {
        let held = self.0.held.lock().take();
        let (Some(held), Ok(shape)) = (held, self.0.shape().await) else { return };
        if let Err(error) = lease::give_back(&self.0.db, &shape, held.term).await {
            tracing::debug!(error = %error.problem, "the lease of the outbox is not given back");
        }
    }

    /// True where somebody has read since, from another queue or a younger state of this one: what waits in this one may
    /// be older than what the target has.
    ///
    /// # Errors
    /// When the database cannot be asked.
    pub async fn is_overtaken(&self, queue: &ResumeToken) -> Result<bool, SourceError> {
        let shape = self.0.shape().await?;
        let mut session = self.0.db.session().await.map_err(away)?;
        let seen = lease::look(&mut session, &shape).await.map_err(away)?;
        Ok(Position::of(queue)
            .zip(seen)
            .is_none_or(|(position, seen)| overtaken(&seen, &position).is_some()))
    }
}

/// Why a queue that has come to `position` does not have what was marked.
pub(super) fn overtaken(seen: &Record, position: &Position) -> Option<&'static str> {
    if seen.reader != position.reader {
        return Some("another agent has read the outbox since");
    }
    (whole_number(seen.position) > position.number)
        .then_some("the queue is older than what was marked in the outbox from it")
}
