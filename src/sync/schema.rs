//! Options and indexes of one collection: what differs, and the steps that mend it.

use std::time::Duration;

use bson::{RawDocument, RawDocumentBuf, rawdoc};

use super::{
    SyncError,
    ends::{Attempts, End, Ends, ask},
};
use crate::{
    gate::Permit,
    model::namespace::Namespace,
    mongo::class::{is_change_of_state, is_missing_privilege},
    runtime::shutdown::Stop,
    schema::{
        Description, IndexChange, Kind, Problem, Refusal, Step, Taken, Target, index_changes, make,
        steps,
    },
    sink::{
        SinkError,
        classify::{INDEX_NOT_FOUND, schema_error},
    },
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
    ends: &Ends,
    ns: &Namespace,
    original: End,
    options: (&RawDocumentBuf, &RawDocumentBuf),
    stop: &Stop,
) -> Result<Vec<Step>, SyncError> {
    let copy = match original {
        End::Local => End::Atlas,
        End::Atlas => End::Local,
    };
    let wanted = described(options.0, indexes_of(ends, original, ns, stop).await?);
    let there = described(options.1, indexes_of(ends, copy, ns, stop).await?);
    Ok(steps(&wanted, Some(&there)))
}

fn described(options: &RawDocument, indexes: Vec<RawDocumentBuf>) -> Description {
    Description { kind: Kind::Collection, id: None, options: options.to_owned(), indexes }
}

/// A sentence each.
pub fn sentences<T: ToString>(of: &[T]) -> Vec<String> {
    of.iter().map(ToString::to_string).collect()
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
    ends: &Ends,
    end: End,
    ns: &Namespace,
    stop: &Stop,
) -> Result<Vec<RawDocumentBuf>, SyncError> {
    Ok(ask!(ends, end, stop, ends.of(end).list_indexes(ns)))
}

/// Makes the steps on the copy, as long as the permit holds under which the original was looked at. What it will not
/// take is no error: it comes back, with the server's reason.
///
/// # Errors
/// When the end stays away for longer than patience lasts, or refuses access; [`SyncError::Outdated`].
pub async fn mend(
    ends: &Ends,
    copy: End,
    ns: &Namespace,
    (steps, permit): (Vec<Step>, &Permit),
    stop: &Stop,
) -> Result<Vec<Problem>, SyncError> {
    let attempts = ends.attempts(stop);
    let mut target = Patient { ends, end: copy, ns, permit, attempts, stop };
    Ok(make(&mut target, steps).await?.problems)
}

/// A copy whose answer is waited for.
struct Patient<'a> {
    ends: &'a Ends,
    end: End,
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
            End::Atlas => step.to_string(),
            End::Local => step.to_string().replace(" in Atlas", " in the local database"),
        }
    }

    /// What is compared here is there on both sides.
    async fn create(&mut self, _: &Step, _: &RawDocument) -> Taken<SyncError> {
        Ok(Err(Refusal::of("it is gone")))
    }

    /// Runs a command until it is done or refused. What fails again and again while the server answers otherwise is a
    /// refusal, whatever it is: a server whose disk is full says that it may pass.
    async fn run(&mut self, command: RawDocumentBuf) -> Taken<SyncError> {
        let mongo = self.ends.of(self.end);
        let mut failures = 0;
        loop {
            if let Err(error) = self.ends.may_alter(self.end) {
                self.attempts.failed(error).await?;
                continue;
            }
            if !self.permit.holds() {
                return Err(SyncError::Outdated);
            }
            let mut command = command.clone();
            command.append(bson::raw::cstr!("writeConcern"), rawdoc! { "w": "majority" });
            let exchange = mongo.command_within(self.ns.db(), command, BUILD_PATIENCE);
            let reply = tokio::select! {
                reply = exchange => reply,
                () = self.stop.drain.cancelled() => return Err(SyncError::Stopped),
                () = self.stop.leave.cancelled() => return Err(SyncError::Stopped),
            };
            let error = match reply {
                Ok(_) => {
                    self.attempts.succeeded();
                    return Ok(Ok(()));
                }
                // Done by an attempt whose answer was lost.
                Err(error) if error.code() == Some(INDEX_NOT_FOUND) => return Ok(Ok(())),
                Err(error) => error,
            };
            let mut message = error.to_string();
            let is_forbidden = is_missing_privilege(&error);
            if is_forbidden && self.end == End::Atlas {
                let needs = format!("`collMod`, `createIndex` and `dropIndex` on `{}`", self.ns);
                message = schema_error(&error, &needs).to_string();
            }
            let (code, error) = (error.code(), self.end.error(error));
            failures += 1;
            let failures_max = match code {
                Some(code) if is_change_of_state(code) || is_denied(&error) => FAILURES_MAX,
                Some(_) => ANSWERS_MAX,
                None => FAILURES_MAX,
            };
            let is_final = error.is_refusal() || is_forbidden;
            let is_over =
                failures >= failures_max && (code.is_some() || mongo.hello().await.is_ok());
            if is_final || is_over {
                // It is there.
                self.attempts.succeeded();
                let reason = without_values(&message);
                return Ok(Err(Refusal { reason, may_pass: !is_final }));
            }
            self.attempts.failed(error).await?;
        }
    }
}

/// A server's message without the values of documents that it quotes.
pub fn without_values(message: &str) -> String {
    message.split(" dup key:").next().unwrap_or_default().to_owned()
}

/// Who we are is not believed, or no more: if that is so, whatever is asked next waits, and a person hears of it.
fn is_denied(error: &SyncError) -> bool {
    matches!(
        error,
        SyncError::Source(SourceError::Denied { .. }) | SyncError::Sink(SinkError::Denied(_))
    )
}
