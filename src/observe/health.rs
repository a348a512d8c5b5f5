//! What health follows from. Pure: the figures are passed in.
//!
//! | health | when |
//! | --- | --- |
//! | `healthy` | every figure is within its target |
//! | `degraded` | past a target; or Atlas's breaker is not closed; or copying, paused; or a warning holds |
//! | `unhealthy` | past an alert, or nothing moves on the wire |
//!
//! The wire counts, not the loops: the local change stream answers at least every second and Atlas's lease record
//! is renewed every ten, so an end that is silent for longer than [`SILENCE`] is not there, however alive
//! the task that waits for it.

use std::time::Duration;

use serde::Serialize;

use crate::{
    config::{Alerts, units},
    observe::status::{Counted, Divergence, Phase, RecentWrites, Unshowable},
    policy::majority,
};

/// Health, in the words of the API.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Health {
    /// Within the targets.
    Healthy,
    /// Between target and alert.
    Degraded,
    /// Past an alert, or nothing moves on the wire.
    Unhealthy,
}

/// How bad a condition is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Degrades health: a person should look, not tonight.
    Warning,
    /// Makes unhealthy.
    Critical,
}

/// Something that a person should know, while it holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Condition {
    /// Stable; what scripts and alert rules go by.
    pub name: &'static str,
    /// The collection that it is about, where it is about one.
    pub ns: Option<String>,
    pub severity: Severity,
    /// What happened, in words, with the figure of the moment.
    pub message: String,
}

/// Targets (design: lag 5 s, queue 1,000, error rate 1 %).
const LAG_TARGET: Duration = Duration::from_secs(5);
const QUEUE_TARGET: u64 = 1_000;
const ERROR_RATE_TARGET: f64 = 0.01;
/// The fewest writes whose share of rejected ones is worth an alert: of fewer, a single one is beyond the limit that
/// `alerts.error_rate` has at first.
pub const JUDGED_WRITES_MIN: u64 = 20;
/// After this long an end that should have answered is not heard any more.
pub const SILENCE: Duration = Duration::from_secs(30);

/// Figures that health follows from.
#[expect(clippy::struct_excessive_bools, reason = "facts that do not exclude one another")]
#[derive(Clone, Debug, Default)]
pub struct Vitals {
    pub phase: Phase,
    /// The age of the oldest change that is not in Atlas yet.
    pub lag: Duration,
    /// By how much of that only changes are behind that Atlas has rejected and that are tried again.
    pub lag_of_retries: Duration,
    pub queue_size: u64,
    /// What waits in the source itself, of one that keeps what nobody has read; and whether that is not known, since it does
    /// not answer.
    pub backlog: u64,
    pub is_backlog_unknown: bool,
    pub recent_writes: RecentWrites,
    /// Time since the local change stream answered.
    pub local_silence: Duration,
    /// Time since Atlas answered anything.
    pub atlas_silence: Duration,
    /// The age of the oldest local write that no majority has, as far as no delay explains it.
    pub uncommitted: Duration,
    /// By how much the local member is kept behind its set by configuration.
    pub local_delay: Duration,
    /// A person has paused the writing.
    pub is_paused: bool,
    /// The breaker is not closed.
    pub breaker_open: bool,
    /// Why reading into the queue stands still, while it does.
    pub reading_stopped: Option<String>,
    /// How far the local oplog reaches back before the checkpoint, where that is known.
    pub oplog_window: Option<Duration>,
    /// What the local server cannot show of its oplog.
    pub unshowable: Option<Unshowable>,
    /// The target lacks what it had confirmed, and is not compared yet.
    pub is_put_back: bool,
    /// What an end says that refuses access.
    pub local_denied: Option<String>,
    pub atlas_denied: Option<String>,
    /// The lease could not be renewed.
    pub is_fenced: bool,
    /// It is the right to read the source that could not.
    pub has_lost_source: bool,
    /// Collections in which a comparison found too much to delete.
    pub refused_deletes: Vec<String>,
    /// Collections that are somebody else's in Atlas, with the reason.
    pub not_ours: Vec<(String, String)>,
    /// Collections whose numbers of documents differ by more than what waits explains.
    pub divergences: Vec<Divergence>,
    pub dead_letters: u64,
}

impl Vitals {
    /// True while the application writes what no majority takes over.
    pub fn has_no_majority(&self) -> bool {
        self.uncommitted > majority::PATIENCE
    }

    /// How far Atlas is behind with what it has not rejected.
    fn lag_of_flow(&self) -> Duration {
        self.lag.saturating_sub(self.lag_of_retries)
    }

    /// True where single writes that Atlas rejects, and nothing else, are behind.
    pub fn waits_for_retries(&self) -> bool {
        self.lag > LAG_TARGET && self.lag_of_flow() <= LAG_TARGET
    }
}

/// Judges health, and lists every condition that holds.
pub fn judge(vitals: &Vitals, alerts: &Alerts) -> (Health, Vec<Condition>) {
    let conditions = conditions(vitals, alerts);
    let is_beyond_target = vitals.is_paused
        || vitals.lag > LAG_TARGET
        || vitals.queue_size.max(vitals.backlog) > QUEUE_TARGET
        || vitals.is_backlog_unknown
        || vitals.recent_writes.error_rate() > ERROR_RATE_TARGET
        || vitals.breaker_open;
    let is_limited = match vitals.phase {
        Phase::Starting | Phase::Copying | Phase::Paused | Phase::Stopping => true,
        Phase::Streaming | Phase::Standby | Phase::Failed => false,
    };
    let health = if conditions.iter().any(|found| found.severity == Severity::Critical) {
        Health::Unhealthy
    } else if is_beyond_target || is_limited || !conditions.is_empty() {
        Health::Degraded
    } else {
        Health::Healthy
    };
    (health, conditions)
}

/// What a pause explains: while a person means nothing to be written, none of these is worth anybody's night. What
/// speaks of the local side, or of the copy, stays as it is.
const OF_A_PAUSE: [&str; 6] =
    ["lag", "queue_size", "error_rate", "atlas_silent", "atlas_denied", "ownership"];

fn conditions(vitals: &Vitals, alerts: &Alerts) -> Vec<Condition> {
    let mut found = Vec::new();
    let mut add = |name, severity, ns: Option<&str>, message: String| {
        let is_explained = vitals.is_paused && OF_A_PAUSE.contains(&name);
        let (severity, message) = if is_explained {
            (Severity::Warning, format!("{message} (writing is paused)"))
        } else {
            (severity, message)
        };
        found.push(Condition { name, ns: ns.map(str::to_owned), severity, message });
    };
    let critical = Severity::Critical;
    // While the agent stops, the stream is not read any more: its silence is no fault then.
    let is_stopping = vitals.phase == Phase::Stopping;
    let whole = |time: Duration| units::show_duration(Duration::from_secs(time.as_secs()));
    if vitals.lag_of_flow() > alerts.lag && !is_stopping {
        add("lag", critical, None, format!("Atlas is {} behind", whole(vitals.lag)));
    }
    if vitals.queue_size > alerts.queue_size {
        let message = format!("{} documents wait in the queue", vitals.queue_size);
        add("queue_size", critical, None, message);
    } else if vitals.backlog > alerts.queue_size {
        let message = format!("{} rows wait in the outbox", vitals.backlog);
        add("queue_size", critical, None, message);
    }
    let writes = vitals.recent_writes;
    if writes.all() >= JUDGED_WRITES_MIN && writes.error_rate() > alerts.error_rate {
        let message = format!("{:.1}% of the writes fail", writes.error_rate() * 100.0);
        add("error_rate", critical, None, message);
    }
    for (name, end, silence) in [
        ("local_silent", "the local database", vitals.local_silence),
        ("atlas_silent", "Atlas", vitals.atlas_silence),
    ] {
        // Who stands by asks nothing of Atlas.
        let is_asked = name != "atlas_silent" || vitals.phase != Phase::Standby;
        if silence > SILENCE && is_asked && !is_stopping {
            add(name, critical, None, format!("{end} has not answered for {}", whole(silence)));
        }
    }
    if vitals.has_no_majority() && !is_stopping {
        let message = format!(
            "the local replica set has no majority for its writes of the last {}: a member is away or behind, what only the primary has may still be rolled back, and none of it can be in Atlas",
            whole(vitals.uncommitted)
        );
        add("no_majority", critical, None, message);
    }
    if vitals.local_delay > Duration::ZERO {
        let message = format!(
            "the local member is a delayed one: it shows what its replica set writes {} late, and so does Atlas",
            whole(vitals.local_delay)
        );
        add("local_delayed", Severity::Warning, None, message);
    }
    if let Some(reason) = &vitals.reading_stopped {
        add("reading_stopped", critical, None, format!("reading has stopped: {reason}"));
    }
    if vitals.phase == Phase::Failed {
        add("failed", critical, None, "the agent has failed".to_owned());
    }
    if let Some(window) = vitals.oplog_window
        && window < alerts.oplog_window
    {
        let message =
            format!("the local oplog reaches back only {} before the checkpoint", whole(window));
        add("oplog_window", critical, None, message);
    }
    if let Some(unshowable) = &vitals.unshowable {
        let message = match unshowable {
            Unshowable::Failing(error) => format!(
                "the local server fails at one place of its oplog, though it answers otherwise: {error}; where that lasts, a new position is taken and everything is compared"
            ),
            Unshowable::PassedOver { .. } => {
                "the local server could not show a change; it was passed over, and everything is compared".to_owned()
            }
        };
        add("unshowable", critical, None, message);
    }
    if vitals.is_put_back {
        let message = "the target lacks writes that it had confirmed: it was put back to an earlier state, and everything is compared";
        add("put_back", critical, None, message.to_owned());
    }
    for (name, error) in
        [("local_denied", &vitals.local_denied), ("atlas_denied", &vitals.atlas_denied)]
    {
        if let Some(error) = error {
            add(name, critical, None, error.clone());
        }
    }
    if vitals.is_fenced {
        let message = if vitals.has_lost_source {
            "the outbox's lease could not be renewed, and another agent may have it; nothing is written until it is"
        } else {
            "the mark of ownership in Atlas could not be renewed; nothing is written until it is"
        };
        add("ownership", critical, None, message.to_owned());
    }
    for ns in &vitals.refused_deletes {
        let message = format!(
            "`{ns}` holds more documents in Atlas than a comparison may delete (`sync.max_delete_ratio`)"
        );
        add("mass_delete", critical, Some(ns), message);
    }
    for (ns, reason) in &vitals.not_ours {
        add("not_ours", critical, Some(ns), format!("`{ns}` is not written: {reason}"));
    }
    for Divergence { ns, local, atlas, counted } in &vitals.divergences {
        let which = match counted {
            // Atlas lacks nothing that should still be there. Yet the two sides will never be equal, and only a person can
            // change that.
            Counted::Gone if local > atlas => {
                let message = format!(
                    "Atlas expires documents of `{ns}` that the local server keeps (is `ttlMonitorEnabled` off there?): {local} that are past their time for more than an hour are here, and {atlas} in Atlas"
                );
                add("expires_in_atlas", Severity::Warning, Some(ns), message);
                continue;
            }
            Counted::Estimated | Counted::All => "",
            Counted::Staying => " of those that are not about to expire",
            Counted::Gone => " of those that have expired",
        };
        let message = format!(
            "`{ns}` holds {local} documents locally and {atlas} in Atlas{which}, and what waits does not explain it"
        );
        let severity = match counted {
            Counted::Estimated => Severity::Warning,
            Counted::All | Counted::Staying | Counted::Gone => critical,
        };
        add("divergence", severity, Some(ns), message);
    }
    match vitals.dead_letters {
        0 => {}
        1 => add("dead_letters", Severity::Warning, None, "1 dead letter is kept".to_owned()),
        n => add("dead_letters", Severity::Warning, None, format!("{n} dead letters are kept")),
    }
    found
}

/// What a heartbeat to the outside needs: something was written since the last one, or there was provably
/// nothing to write.
pub fn proves_life(writes_since: u64, vitals: &Vitals) -> bool {
    let is_idle = vitals.queue_size == 0
        && vitals.backlog == 0
        && !vitals.is_backlog_unknown
        && vitals.phase == Phase::Streaming
        && !vitals.is_fenced
        && vitals.reading_stopped.is_none()
        // A server that works on its answer for minutes is there, and has not said that nothing was written.
        && vitals.lag.saturating_sub(vitals.local_delay) <= SILENCE;
    let are_both_there = vitals.local_silence <= SILENCE && vitals.atlas_silence <= SILENCE;
    are_both_there && !vitals.has_no_majority() && (writes_since > 0 || is_idle)
}

/// What the watchdog of systemd is told: false when this process hangs, so that a new one would help.
///
/// An end that is away is no reason, as long as the agent knows it: each exchange has a timeout, after
/// which the fault is noted and the next attempt made. An end that is silent for `patience`, several of
/// those timeouts, with no fault noted, means that whoever should have noticed does not run.
pub fn is_alive(
    local: (Duration, KnownFault),
    atlas: (Duration, KnownFault),
    patience: Duration,
) -> bool {
    [local, atlas]
        .into_iter()
        .all(|(silence, known)| silence < patience || known == KnownFault::Yes)
}

/// Whether the agent has noticed that an end is away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KnownFault {
    Yes,
    No,
}

#[cfg(test)]
mod tests;
