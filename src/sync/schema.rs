//! Options and indexes of one collection: what differs, and the steps that make it equal.

use std::time::Duration;

use bson::{RawDocument, RawDocumentBuf};

use super::{
    SyncError,
    sides::{Attempts, SideName, Sides, ask},
};
use crate::{
    gate::Permit,
    model::namespace::Namespace,
    runtime::shutdown::Stop,
    schema::{
        Claim, Description, IndexChange, Kind, Problem, Step, StepRefusal, StepResult, Target,
        index_changes, make, steps,
    },
    side::{Because, SchemaSide, Side, SideError, Unaltered},
    sink::SinkError,
    source::SourceError,
};

/// How long one attempt waits for an index to be built. The server goes on building, and the next attempt
/// joins it.
pub const BUILD_PATIENCE: Duration = Duration::from_secs(600);

/// How often a change is tried whose failures are those of a server that stops, or of a connection. Whether it is that
/// or not, nothing else waits for it any longer.
const FAILURES_MAX: u32 = 5;

/// How often one is tried that is answered with anything else that may pass: a lock; or does not, as a full disk.
const ANSWERS_MAX: u32 = 2;

/// Compares the options that were listed, and the indexes as they are now.
///
/// # Errors
/// When an end stays away for longer than patience lasts, or refuses.
pub async fn schema_steps(
    sides: &Sides,
    ns: &Namespace,
    original: SideName,
    options: (&RawDocumentBuf, &RawDocumentBuf),
    stop: &Stop,
) -> Result<Vec<Step>, SyncError> {
    let copy = match original {
        SideName::Local => SideName::Atlas,
        SideName::Atlas => SideName::Local,
    };
    if sides.of(copy).schema().is_none() || sides.of(original).schema().is_none() {
        return Ok(Vec::new());
    }
    // The copy first, which may be away for minutes: an index that the original got meanwhile, and the worker has made,
    // would stand in the copy only.
    let target = described(options.1, indexes_of(sides, copy, ns, stop).await?);
    let wanted = described(options.0, indexes_of(sides, original, ns, stop).await?);
    Ok(steps(&wanted, Some(&target)))
}

fn described(options: &RawDocument, indexes: Vec<RawDocumentBuf>) -> Description {
    let (kind, claim) = (Kind::Collection, Claim::Whole);
    Description { kind, claim, id: None, options: options.to_owned(), indexes }
}

/// A sentence each.
pub fn sentences<T: ToString>(of: &[T]) -> Vec<String> {
    of.iter().map(ToString::to_string).collect()
}

/// A collection or view with its options and indexes, as far as its side keeps such; `None` where the name is free.
///
/// # Errors
/// When the side does not answer, or refuses.
pub async fn describe(side: &dyn Side, ns: &Namespace) -> Result<Option<Description>, SideError> {
    match side.schema() {
        Some(schema) => schema.describe(ns).await,
        None => side.describe_options(ns).await,
    }
}

/// The indexes of a collection that are ready; none where it is not there, or its side keeps none.
///
/// # Errors
/// When the side does not answer, or refuses.
pub async fn list_indexes(
    side: &dyn Side,
    ns: &Namespace,
) -> Result<Vec<RawDocumentBuf>, SideError> {
    match side.schema() {
        Some(schema) => schema.list_indexes(ns).await,
        None => Ok(Vec::new()),
    }
}

/// The unique ones among indexes: those that documents must obey from the first on.
pub fn unique_builds(indexes: &[RawDocumentBuf]) -> Vec<Step> {
    let all = index_changes(indexes, &[]).into_iter();
    all.filter(IndexChange::is_unique).map(Step::Index).collect()
}

/// The indexes of a collection that are ready; none where it is not there.
///
/// # Errors
/// When the end stays away for longer than patience lasts, or refuses.
pub async fn indexes_of(
    sides: &Sides,
    end: SideName,
    ns: &Namespace,
    stop: &Stop,
) -> Result<Vec<RawDocumentBuf>, SyncError> {
    Ok(ask!(sides, stop, list_indexes(sides.of(end), ns)))
}

/// Makes the steps on the copy, as long as the permit holds under which the original was looked at. What it will not
/// take is no error: it comes back, with the server's reason.
///
/// # Errors
/// When the end stays away for longer than patience lasts, or refuses access; [`SyncError::Outdated`].
pub async fn apply_schema(
    sides: &Sides,
    copy: SideName,
    ns: &Namespace,
    (steps, permit): (Vec<Step>, &Permit),
    stop: &Stop,
) -> Result<Vec<Problem>, SyncError> {
    let Some(schema) = sides.of(copy).schema() else { return Ok(Vec::new()) };
    let attempts = sides.attempts(stop);
    let mut target = Patient { sides, schema, end: copy, ns, permit, attempts, stop };
    Ok(make(&mut target, steps).await?.problems)
}

/// A copy whose answer is waited for.
struct Patient<'a> {
    sides: &'a Sides,
    schema: &'a dyn SchemaSide,
    end: SideName,
    ns: &'a Namespace,
    permit: &'a Permit,
    attempts: Attempts<'a>,
    stop: &'a Stop,
}

impl Target for Patient<'_> {
    type Stop = SyncError;

    fn ns(&self) -> &Namespace {
        self.ns
    }

    /// What differs, in words that fit the direction.
    fn say(&self, step: &Step) -> String {
        match self.end {
            SideName::Atlas => step.to_string(),
            SideName::Local => step.to_string().replace(" in Atlas", " in the local database"),
        }
    }

    /// What is compared here is there on both sides.
    async fn create(&mut self, _: &Step, _: &RawDocument) -> StepResult<SyncError> {
        Ok(Err(StepRefusal::of("it is gone")))
    }

    /// Runs a command until it is done or refused. What fails again and again while the server answers otherwise is a
    /// refusal, whatever it is: a server whose disk is full says that it may pass.
    async fn run(&mut self, command: RawDocumentBuf) -> StepResult<SyncError> {
        let mut failures = 0;
        loop {
            if let Err(error) = self.sides.may_alter(self.end) {
                self.attempts.failed(error).await?;
                continue;
            }
            if !self.permit.holds() {
                return Err(SyncError::Outdated);
            }
            let exchange = self.schema.alter(self.ns, command.clone(), BUILD_PATIENCE);
            let reply = tokio::select! {
                reply = exchange => reply,
                () = self.stop.drain.cancelled() => return Err(SyncError::Stopped),
                () = self.stop.leave.cancelled() => return Err(SyncError::Stopped),
            };
            let Unaltered { reason, advice, because, error, .. } = match reply {
                Ok(()) | Err(Unaltered { because: Because::NoMajority, .. }) => {
                    self.attempts.succeeded();
                    return Ok(Ok(()));
                }
                Err(unaltered) => unaltered,
            };
            let error = SyncError::from(error);
            failures += 1;
            let has_answered = because != Because::Silence;
            let failures_max = match because {
                Because::Silence | Because::ChangeOfState => FAILURES_MAX,
                _ if is_denied(&error) => FAILURES_MAX,
                _ => ANSWERS_MAX,
            };
            let is_final = error.is_rejected() || because == Because::Forbidden;
            let is_over =
                failures >= failures_max && (has_answered || self.schema.is_there().await);
            if is_final || is_over {
                // It is there.
                self.attempts.succeeded();
                let reason = advice.unwrap_or(reason);
                return Ok(Err(StepRefusal { reason, may_pass: !is_final }));
            }
            self.attempts.failed(error).await?;
        }
    }
}

/// Who we are is not believed, or no more: if that is so, whatever is asked next waits, and a person hears of it.
fn is_denied(error: &SyncError) -> bool {
    matches!(
        error,
        SyncError::Source(SourceError::Denied { .. }) | SyncError::Sink(SinkError::Denied(_))
    )
}

#[cfg(test)]
mod tests;
