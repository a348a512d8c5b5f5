//! The one line that whoever is on call needs first: what it is, what that means for the data, and what to do. Pure.
//!
//! Of all that holds at a moment the *cause* is named, and not what follows from it: while Atlas is away it is also behind,
//! the queue grows, and at last reading stops. The rows of `WORDS` stand in that order, the first that holds is the one,
//! and the alerts have the rest.

use serde::Serialize;

use super::{
    health::{Condition, Health, Vitals},
    status::{Flow, Phase},
};

/// What a state is called, what it means for the data, and what to do; by a code that stays. For an alert it is the name
/// of the alert.
struct Words {
    code: &'static str,
    state: &'static str,
    means: &'static str,
    act: &'static str,
}

const fn words(
    code: &'static str,
    state: &'static str,
    means: &'static str,
    act: &'static str,
) -> Words {
    Words { code, state, means, act }
}

const WAITS: &str =
    "Changes wait in the queue on disk, and nothing is lost. The application notices nothing.";
const OPLOG_ALONE: &str =
    "Nothing is read: the local oplog alone keeps what is written, as far as it reaches back.";

/// Causes before what follows from them.
const WORDS: &[Words] = &[
    words(
        "failed",
        "The agent has failed",
        "Nothing is copied. The queue keeps what was read.",
        "See its last log lines: `journalctl -u outrigger -n 50`.",
    ),
    words(
        "stopping",
        "The agent is stopping",
        "It writes what it still can, and keeps the rest for its next start.",
        "Nothing.",
    ),
    words(
        "local_denied",
        "The local database refuses access",
        OPLOG_ALONE,
        "Mend the password, the privilege or the TLS setting that the cause names.",
    ),
    words(
        "atlas_denied",
        "Atlas refuses access",
        WAITS,
        "Mend the password, the privilege or the TLS setting that the cause names.",
    ),
    words(
        "held",
        "Writes to Atlas are held back",
        "It is not certain that this is the database that was copied. Nothing is written until it is.",
        "See the log; if it stays, `outrigger check`.",
    ),
    words(
        "both_away",
        "Atlas and the local database are away",
        "What was read waits in the queue. The local oplog keeps the rest, as far as it reaches back.",
        "See the line out of this machine, then `systemctl status mongod`.",
    ),
    words(
        "atlas_away",
        "Atlas is away",
        WAITS,
        "Mend the line, or see the status page of Atlas. It is tried again by itself.",
    ),
    words(
        "ownership",
        "The mark in Atlas cannot be renewed",
        "Nothing is written, since another agent may be told to take over.",
        "Mend the line to Atlas; it goes on by itself.",
    ),
    words(
        "local_away",
        "The local database is away",
        "Nothing can be read. What was read is written to Atlas, as far as it goes without reading more.",
        "`systemctl status mongod`; the agent goes on by itself.",
    ),
    words(
        "local_silent",
        "The local database is away",
        "Nothing can be read. What was read is written to Atlas, as far as it goes without reading more.",
        "`systemctl status mongod`; the agent goes on by itself.",
    ),
    words(
        "no_majority",
        "The local replica set has no majority",
        "What only its primary has may be rolled back, so it is not copied yet.",
        "`rs.status()` names the member that is away or behind.",
    ),
    words(
        "unshowable",
        "The local server cannot show a change",
        "Everything is compared once that change is passed over.",
        "Nothing, but to wait for the comparison.",
    ),
    words(
        "put_back",
        "The target was put back",
        "It lacks writes that it had confirmed. Everything is compared, and what is missing is written again.",
        "Nothing, but to wait for the comparison. See who restored it, or which replica took over.",
    ),
    words(
        "standby",
        "Standing by",
        "Another agent reads the outbox and writes the copy. This one does when that one is gone.",
        "Nothing.",
    ),
    words(
        "paused",
        "Paused by a person",
        "Changes wait in the queue on disk, and nothing is lost.",
        "Resume when whoever paused it is done.",
    ),
    words(
        "reading_stopped",
        "Reading has stopped",
        OPLOG_ALONE,
        "Make room: the cause names the limit. Do it before the oplog rolls over.",
    ),
    words(
        "starting",
        "Waiting for Atlas before the first write",
        "Changes are read into the queue meanwhile.",
        "Nothing; if it lasts, see the error of Atlas.",
    ),
    words(
        "copying",
        "Copying or comparing everything",
        "Changes are queued meanwhile. Until it is done, Atlas is of no one moment.",
        "Wait; below stands how far it is.",
    ),
    words(
        "mass_delete",
        "A comparison would delete too much",
        "Nothing was deleted. Atlas holds documents that the local database does not.",
        "Look at both sides. If the local one is right: `outrigger sync --allow-mass-delete`.",
    ),
    words(
        "divergence",
        "The two sides differ",
        "Atlas does not hold what the local database does, though nothing waits.",
        "`outrigger verify --ns NS`, then `outrigger sync --ns NS --wait`.",
    ),
    words(
        "not_ours",
        "A collection is somebody else’s in Atlas",
        "Its changes wait; all others are copied.",
        "Exclude it here or there, or `outrigger run --adopt` if Atlas may be overwritten.",
    ),
    words(
        "error_rate",
        "Atlas rejects many writes",
        "What it rejects is tried again, then kept as dead letters.",
        "`outrigger dead list` has the reasons.",
    ),
    words(
        "oplog_window",
        "The local oplog is short",
        "Should reading stand still for longer than that, everything has to be compared.",
        "Enlarge it: `db.adminCommand({replSetResizeOplog: 1, size: MEGABYTES})`.",
    ),
    words(
        "lag",
        "Atlas is behind",
        "Both ends answer, and writing, or with an empty queue reading, is slower than what comes. Nothing is lost.",
        "If it lasts: `worker.lanes`, `worker.update_mode = \"auto\"`; where the queue is empty, the local database or its line.",
    ),
    words(
        "queue_size",
        "Atlas is behind",
        "Both ends answer, and writing is slower than what comes. Nothing is lost.",
        "If it lasts: `worker.lanes`, `worker.update_mode = \"auto\"`.",
    ),
    words(
        "dead_letters",
        "Atlas would not take some documents",
        "These differ in Atlas; all others are copied.",
        "See the dead letters below: mend the cause, then retry.",
    ),
    words(
        "expires_in_atlas",
        "Atlas expires what the local server keeps",
        "Documents are missing in Atlas.",
        "Set `ttlMonitorEnabled` to true on each member, or drop the TTL index.",
    ),
    words(
        "local_delayed",
        "The local member is a delayed one",
        "Atlas is behind the replica set by its delay, and by what follows.",
        "Name another member in `local.uri`, unless it is meant.",
    ),
    words(
        "rejected",
        "Atlas rejects a write",
        "It is tried again, then kept as a dead letter. All others are copied.",
        "`outrigger queue list`, then `outrigger queue show ID`, tell the reason.",
    ),
    words(
        "catching_up",
        "Catching up",
        "What waits is being written. Nothing is lost.",
        "Nothing.",
    ),
    words("streaming", "Replicating", "Changes reach Atlas as they are made.", "Nothing."),
];

/// What it is, in words.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Verdict {
    /// Stable; the name of the alert, where one is the cause.
    pub code: &'static str,
    pub state: &'static str,
    /// What an end, or the agent itself, says of it.
    pub cause: Option<String>,
    /// What it means for the data.
    pub means: &'static str,
    /// What to do about it.
    pub act: &'static str,
    /// The path of the alert's page, where it has one.
    pub runbook: Option<&'static str>,
    /// Since when it is this one, milliseconds since 1970; 0: this moment.
    pub since_ms: u64,
}

/// What holds at one moment.
#[derive(Clone, Copy, Debug)]
pub struct Moment<'a> {
    pub vitals: &'a Vitals,
    pub health: Health,
    pub conditions: &'a [Condition],
    pub flow: Flow,
    pub local_error: Option<&'a str>,
    pub atlas_error: Option<&'a str>,
}

impl Moment<'_> {
    fn has(&self, name: &str) -> bool {
        self.conditions.iter().any(|condition| condition.name == name)
    }

    fn is_local_away(&self) -> bool {
        self.local_error.is_some() || self.has("local_silent")
    }

    fn is_atlas_away(&self) -> bool {
        self.flow == Flow::Away || self.atlas_error.is_some() || self.has("atlas_silent")
    }

    fn holds(&self, code: &str) -> bool {
        let phase = self.vitals.phase;
        match code {
            "failed" => phase == Phase::Failed,
            "stopping" => phase == Phase::Stopping,
            "held" => self.flow == Flow::Held && !self.vitals.is_fenced,
            "both_away" => self.is_atlas_away() && self.is_local_away(),
            "atlas_away" => self.is_atlas_away(),
            "local_away" => self.is_local_away(),
            // What cannot be renewed may be the right to read.
            "ownership" => self.has(code) && !(self.vitals.has_lost_source && self.is_local_away()),
            "paused" => self.flow == Flow::Paused,
            "standby" => phase == Phase::Standby,
            "starting" => phase == Phase::Starting,
            "copying" => phase == Phase::Copying,
            "rejected" => self.vitals.waits_for_retries(),
            "catching_up" => self.health != Health::Healthy,
            "streaming" => true,
            alert => self.has(alert),
        }
    }

    /// What is known of the cause beyond its name.
    fn cause(&self, code: &str) -> Option<String> {
        let of_alert = |name: &str| {
            let mut all = self.conditions.iter().filter(|condition| condition.name == name);
            let first = all.next()?.message.clone();
            Some(match all.count() {
                0 => first,
                more => format!("{first}; and {more} more like it"),
            })
        };
        let error = |error: Option<&str>| error.map(brief);
        match code {
            "atlas_away" => error(self.atlas_error).or_else(|| of_alert("atlas_silent")),
            "local_away" => error(self.local_error).or_else(|| of_alert("local_silent")),
            "both_away" => {
                let both = [self.atlas_error, self.local_error].into_iter().filter_map(error);
                Some(both.collect::<Vec<_>>().join("; ")).filter(|both| !both.is_empty())
            }
            "starting" => error(self.atlas_error),
            "stopping" | "standby" | "paused" | "copying" | "rejected" | "catching_up"
            | "streaming" | "held" => None,
            alert => of_alert(alert),
        }
    }
}

/// What a driver says, without its inner life.
fn brief(error: &str) -> String {
    error.split(" Topology:").next().unwrap_or(error).to_owned()
}

macro_rules! runbooks {
    ($($code:literal $(| $more:literal)* => $name:literal),* $(,)?) => {
        /// The page of what is an alert, and of what is the cause of one.
        fn runbook(code: &str) -> Option<&'static str> {
            match code {
                $($code $(| $more)* => Some(concat!("/runbook/", $name)),)*
                _ => None,
            }
        }

        /// Every page that a verdict may name.
        #[cfg(test)]
        fn runbooks() -> impl Iterator<Item = &'static str> {
            [$(concat!("/runbook/", $name)),*].into_iter()
        }
    };
}

runbooks! {
    "atlas_away" | "both_away" => "atlas_silent",
    "local_away" | "local_silent" => "local_silent",
    "atlas_denied" => "atlas_denied",
    "local_denied" => "local_denied",
    "dead_letters" => "dead_letters",
    "divergence" => "divergence",
    "error_rate" => "error_rate",
    "expires_in_atlas" => "expires_in_atlas",
    "failed" => "failed",
    "lag" => "lag",
    "local_delayed" => "local_delayed",
    "mass_delete" => "mass_delete",
    "no_majority" => "no_majority",
    "not_ours" => "not_ours",
    "oplog_window" => "oplog_window",
    "ownership" => "ownership",
    "put_back" => "put_back",
    "queue_size" => "queue_size",
    "reading_stopped" => "reading_stopped",
    "unshowable" => "unshowable",
}

/// Names the cause. Since when it holds is for whoever looks again and again.
pub fn verdict(moment: &Moment<'_>) -> Verdict {
    let found = WORDS.iter().find(|words| moment.holds(words.code));
    let Words { code, state, means, act } = found.unwrap_or(&WORDS[WORDS.len() - 1]);
    let has_stopped = moment.has("reading_stopped");
    // The worst of an outage: what it means is another thing from then on.
    let means = if has_stopped && matches!(*code, "atlas_away" | "atlas_denied" | "paused") {
        "The queue is at its limit, and nothing more is read: the local oplog alone keeps what is written."
    } else {
        means
    };
    Verdict {
        code,
        state,
        cause: moment.cause(code),
        means,
        act,
        runbook: runbook(code),
        since_ms: 0,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{config::Config, observe::health::judge};

    /// The code of what `vitals` come to.
    fn judged(vitals: &Vitals, flow: Flow, [local, atlas]: [Option<&str>; 2]) -> Verdict {
        let (health, conditions) = judge(vitals, &Config::default().alerts);
        let conditions = &conditions;
        let (local_error, atlas_error) = (local, atlas);
        verdict(&Moment { vitals, health, conditions, flow, local_error, atlas_error })
    }

    fn streaming() -> Vitals {
        Vitals { phase: Phase::Streaming, ..Vitals::default() }
    }

    const NO_ERRORS: [Option<&str>; 2] = [None, None];

    #[test]
    fn the_cause_comes_before_what_follows_from_it() {
        let secs = Duration::from_secs;
        let outage = Vitals {
            lag: secs(600),
            queue_size: 99_999,
            breaker_open: true,
            atlas_silence: secs(600),
            dead_letters: 3,
            ..streaming()
        };
        let error = "connection refused Topology: { Type: … }";
        let found = judged(&outage, Flow::Away, [None, Some(error)]);
        assert_eq!(
            (found.code, found.cause.as_deref()),
            ("atlas_away", Some("connection refused"))
        );

        // The queue is full now, and the meaning is another one.
        let full = Vitals { reading_stopped: Some("the queue is full".into()), ..outage.clone() };
        let later = judged(&full, Flow::Away, [None, Some(error)]);
        assert_eq!(later.code, "atlas_away");
        assert!(later.means != found.means && later.means.contains("oplog"), "{later:?}");

        let both = judged(&outage, Flow::Away, [Some("no"), Some("no")]);
        assert_eq!(both.code, "both_away");
        let slow = Vitals { lag: secs(31), dead_letters: 3, ..streaming() };
        assert_eq!(judged(&slow, Flow::Flowing, NO_ERRORS).code, "lag");
        assert_eq!(judged(&slow, Flow::Flowing, [Some("no"), None]).code, "local_away");
    }

    #[test]
    fn what_is_no_trouble_has_words_too() {
        let of = |vitals: &Vitals, flow| judged(vitals, flow, NO_ERRORS).code;

        assert_eq!(of(&streaming(), Flow::Flowing), "streaming");
        let behind = Vitals { lag: Duration::from_secs(6), ..streaming() };
        assert_eq!(of(&behind, Flow::Flowing), "catching_up");
        let rejected = Vitals { lag_of_retries: Duration::from_secs(2), ..behind.clone() };
        assert_eq!(of(&rejected, Flow::Flowing), "rejected");
        let paused = Vitals { phase: Phase::Paused, lag: Duration::from_secs(99), ..streaming() };
        assert_eq!(of(&paused, Flow::Paused), "paused");
        for (phase, code) in [
            (Phase::Starting, "starting"),
            (Phase::Standby, "standby"),
            (Phase::Copying, "copying"),
            (Phase::Stopping, "stopping"),
            (Phase::Failed, "failed"),
        ] {
            assert_eq!(of(&Vitals { phase, ..streaming() }, Flow::Flowing), code);
        }
        assert_eq!(of(&streaming(), Flow::Held), "held");
    }

    #[test]
    fn several_collections_of_one_cause_are_counted() {
        let apart = |ns: &str| (ns.to_owned(), "it is theirs".to_owned());
        let vitals = Vitals { not_ours: vec![apart("a.b"), apart("a.c")], ..streaming() };

        let cause = judged(&vitals, Flow::Flowing, NO_ERRORS).cause.unwrap();
        assert!(cause.contains("a.b") && cause.ends_with("; and 1 more like it"), "{cause}");
    }

    #[test]
    fn every_alert_has_words_and_every_code_once() {
        let known = |name: &str| WORDS.iter().filter(|words| words.code == name).count();
        let source = include_str!("health.rs").split("#[cfg(test)]").next().unwrap();
        let names = source.split("add(\"").skip(1).map(|rest| rest.split('"').next().unwrap());
        let listed = source.split("(\"").skip(1).map(|rest| rest.split('"').next().unwrap());
        let pairs = listed.filter(|name| name.ends_with("_silent") || name.ends_with("_denied"));

        let all: Vec<_> = names.chain(pairs).collect();
        assert!(all.len() > 15, "{all:?}");
        for name in all {
            // The cause of it has a word of its own.
            assert!(name == "atlas_silent" || known(name) == 1, "{name} has no words");
            assert!(name == "atlas_silent" || runbook(name).is_some(), "{name} has no page");
        }
        let docs = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/alerts");
        for path in runbooks() {
            let name = path.strip_prefix("/runbook/").unwrap();
            assert!(docs.join(format!("{name}.md")).exists(), "{name}");
        }
    }
}
