//! The marks of ownership as they stand in Atlas: one document per source in `replicas`, in the database that
//! `atlas.state_database` names.
//!
//! | field | what |
//! | --- | --- |
//! | `_id` | the source, see [`source_id`](crate::source::source_id) |
//! | `include`, `exclude` | the patterns that it replicates now |
//! | `copied` | the patterns that it replicated before, as far as those of now do not cover them: what it has copied is its own |
//! | `refused` | collections that its patterns choose and that are not its own |
//! | `upstream` | the sources that its own local database is a copy of, see [`upstream`](super::upstream) |
//! | `claim`, `checkpoint` | which queue's position Atlas belongs to, and how far that has come |
//! | `life` | which start of an agent has set it last |
//! | `agent`, `heartbeatAt` | who keeps the copy, and when it last said so by Atlas's own clock |

use std::{collections::BTreeSet, time::Duration};

use bson::{Bson, DateTime, Document, doc, rawdoc};

use crate::{
    config::units,
    model::{
        checkpoint::ClusterTime,
        namespace::{Namespace, NamespaceFilter, Patterns},
    },
    mongo::{
        Mongo, MongoError,
        class::{Class, class_of},
        documents,
    },
    policy::overlap::covers,
    sync::SyncError,
};

/// In the database of `atlas.state_database`.
pub(super) const COLLECTION: &str = "replicas";

/// After how long without a heartbeat another agent may be told to take over.
pub(super) const STALE_AFTER: Duration = Duration::from_secs(60);
const _: () = assert!(crate::gate::lease::LIMIT.as_secs() < STALE_AFTER.as_secs());

/// One running agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgentMark {
    /// The same after a restart.
    pub id: String,
    /// Another one after each.
    pub instance: String,
    pub host: String,
    /// Another one for each start of a machine: two clones share everything else.
    pub boot: String,
    pub pid: u32,
}

impl AgentMark {
    pub(super) fn to_document(&self) -> Document {
        let Self { id, instance, host, boot, pid } = self;
        doc! { "id": id, "instance": instance, "host": host, "boot": boot, "pid": i64::from(*pid) }
    }
}

pub(super) struct Mark {
    pub source_id: String,
    pub filter: NamespaceFilter,
    pub copied: Vec<NamespaceFilter>,
    pub refused: BTreeSet<Namespace>,
    pub upstream: Vec<String>,
    pub claim: Option<String>,
    pub checkpoint: ClusterTime,
    /// The start that has set it last.
    pub life: Option<String>,
    pub keeper: Option<Keeper>,
}

/// What the agent remembers of the mark that it left.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Remembered {
    /// The claim that its queue's position belongs to.
    pub claim: Option<String>,
    /// The last position that the mark is known to carry.
    pub checkpoint: ClusterTime,
    /// The last position that was sent to it. Its answer may be lost, and then the mark carries it all the same.
    pub sent: ClusterTime,
    /// The queue came from another machine, and has not claimed its target yet.
    pub moved: bool,
    /// The starts that may have set the mark last.
    pub lives: Vec<String>,
    /// How far the queue has come by its own account.
    pub position: ClusterTime,
}

/// By how much a mark may be ahead of a queue that has lost its last half second with its process.
const AHEAD_MAX: Duration = Duration::from_secs(60);

impl Mark {
    /// True when what Atlas holds there was copied from this source.
    pub fn owns(&self, ns: &Namespace) -> bool {
        let was_copied =
            || self.filter.matches(ns) || self.copied.iter().any(|before| before.matches(ns));
        !self.refused.contains(ns) && was_copied()
    }

    /// True when the queue that remembers this is an older one than that which has set the mark.
    pub fn is_ahead_of(&self, remembered: &Remembered) -> bool {
        let Remembered { lives, checkpoint, sent, position, .. } = remembered;
        // Earlier versions tell of no life.
        let is_of_another_life =
            self.life.as_ref().is_some_and(|life| !lives.is_empty() && !lives.contains(life));
        let known = position.max(sent).max(checkpoint).millis();
        let is_far_ahead = *position > ClusterTime::default()
            && self.checkpoint.millis() > known.saturating_add(AHEAD_MAX.as_millis() as u64);
        is_of_another_life || is_far_ahead
    }

    /// What `copied` is to be when `next` takes the place of the patterns.
    pub fn history(&self, next: &Patterns) -> Vec<Patterns> {
        let before = self.copied.iter().chain([&self.filter]).map(NamespaceFilter::patterns);
        let mut kept: Vec<Patterns> = Vec::new();
        for patterns in before {
            let is_covered =
                covers(next, patterns) || kept.iter().any(|other| covers(other, patterns));
            if !is_covered {
                kept.retain(|other| !covers(patterns, other));
                kept.push(patterns.clone());
            }
        }
        kept
    }
}

/// The agent that a mark names.
pub(super) struct Keeper {
    pub agent: AgentMark,
    /// Its last heartbeat, milliseconds since 1970 by Atlas's clock, and the time since.
    pub beat: i64,
    silent_for: Duration,
}

impl Keeper {
    pub fn is_fresh(&self) -> bool {
        self.silent_for < STALE_AFTER
    }

    /// The time since its last heartbeat, to be shown.
    pub fn silence(&self) -> String {
        units::show_duration(Duration::from_secs(self.silent_for.as_secs()))
    }

    pub fn rival(&self) -> SyncError {
        SyncError::Rival {
            host: self.agent.host.clone(),
            pid: self.agent.pid,
            heartbeat: self.silence(),
            is_fresh: self.is_fresh(),
        }
    }
}

/// All marks in a database, with their age by that server's clock.
///
/// # Errors
/// When the server does not answer, or refuses.
pub(super) async fn read(mongo: &Mongo, db: &str) -> Result<Vec<Mark>, MongoError> {
    let hello = mongo.hello().await?;
    let now = hello.get_datetime("localTime").map_or_else(|_| DateTime::now(), |now| *now);
    // What else may stand there is an application's.
    let is_mark = rawdoc! { "include": { "$type": "array" }, "startedAt": { "$type": "date" } };
    let command = rawdoc! {
        "find": COLLECTION, "filter": is_mark, "readConcern": { "level": "majority" },
    };
    let mut cursor = mongo.cursor(db, command).await?;
    let mut marks = Vec::new();
    while let Some(reply) = cursor.next().await? {
        for raw in documents(&reply)? {
            let mark = Document::try_from(raw).ok();
            marks.extend(mark.as_ref().and_then(|doc| read_mark(doc, db, now)));
        }
    }
    Ok(marks)
}

/// Marks in all other databases than `db`.
///
/// # Errors
/// As [`read`].
pub(super) async fn elsewhere(
    mongo: &Mongo,
    db: &str,
) -> Result<Vec<(String, Vec<Mark>)>, MongoError> {
    let mut found = Vec::new();
    for other in mongo.list_databases().await?.into_iter().filter(|other| other != db) {
        match read(mongo, &other).await {
            Ok(marks) if marks.is_empty() => {}
            Ok(marks) => found.push((other, marks)),
            // A user that may write to some databases alone.
            Err(error) if class_of(&error) == Class::Denied => {}
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}

fn texts(doc: &Document, name: &str) -> Vec<String> {
    let array = doc.get_array(name).map(Vec::as_slice).unwrap_or_default();
    array.iter().filter_map(Bson::as_str).map(str::to_owned).collect()
}

fn filter_of(doc: &Document, db: &str) -> Option<NamespaceFilter> {
    let filter = NamespaceFilter::new(&texts(doc, "include"), &texts(doc, "exclude")).ok()?;
    Some(filter.with_state_database(db))
}

fn read_mark(doc: &Document, db: &str, now: DateTime) -> Option<Mark> {
    let before = doc.get_array("copied").map(Vec::as_slice).unwrap_or_default();
    let before = before.iter().filter_map(Bson::as_document);
    Some(Mark {
        source_id: doc.get_str("_id").ok()?.to_owned(),
        filter: filter_of(doc, db)?,
        copied: before.filter_map(|patterns| filter_of(patterns, db)).collect(),
        refused: texts(doc, "refused").iter().filter_map(|name| name.parse().ok()).collect(),
        upstream: texts(doc, "upstream"),
        claim: doc.get_str("claim").ok().map(str::to_owned),
        life: doc.get_str("life").ok().map(str::to_owned),
        checkpoint: doc.get_timestamp("checkpoint").map(ClusterTime::from).unwrap_or_default(),
        keeper: doc.get_document("agent").ok().map(|agent| read_keeper(agent, doc, now)),
    })
}

fn read_keeper(agent: &Document, mark: &Document, now: DateTime) -> Keeper {
    let text = |name: &str| agent.get_str(name).unwrap_or("unknown").to_owned();
    let beat = mark.get_datetime("heartbeatAt").map_or(0, |at| at.timestamp_millis());
    let silent_ms = u64::try_from(now.timestamp_millis() - beat).unwrap_or(0);
    Keeper {
        agent: AgentMark {
            id: text("id"),
            instance: text("instance"),
            host: text("host"),
            boot: text("boot"),
            pid: agent.get_i64("pid").ok().and_then(|pid| u32::try_from(pid).ok()).unwrap_or(0),
        },
        beat,
        silent_for: Duration::from_millis(silent_ms),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mark(doc: &Document) -> Mark {
        read_mark(doc, "outrigger", DateTime::now()).unwrap()
    }

    #[test]
    fn a_mark_remembers_what_its_source_has_copied() {
        let first = mark(&doc! { "_id": "a", "include": ["shop.*"], "exclude": [] });
        let narrower =
            Patterns { include: vec!["shop.*".into()], exclude: vec!["shop.logs".into()] };

        let before = first.history(&narrower);
        assert_eq!(before, [Patterns { include: vec!["shop.*".into()], exclude: vec![] }]);
        let second = mark(&doc! {
            "_id": "a", "include": ["shop.*"], "exclude": ["shop.logs"], "refused": ["shop.theirs"],
            "copied": [{ "include": ["shop.*"], "exclude": [] }],
        });

        for (ns, owns) in
            [("shop.logs", true), ("shop.x", true), ("shop.theirs", false), ("crm.x", false)]
        {
            assert_eq!(second.owns(&ns.parse().unwrap()), owns, "{ns}");
        }
        let all = Patterns { include: vec!["shop.*".into()], exclude: vec![] };
        assert_eq!(second.history(&all), [], "what covers all that was needs no memory");
        assert_eq!(second.history(&narrower), before, "nor is anything remembered twice");
    }

    #[test]
    fn a_queue_that_was_put_back_is_behind_the_mark() {
        let second = |n: u64| ClusterTime(n << 32);
        let of = |life: &str, at: u64| {
            mark(&doc! {
                "_id": "a", "include": [], "exclude": [], "claim": "c", "life": life,
                "checkpoint": bson::Timestamp::from(second(at)),
            })
        };
        let queue = |lives: &[&str], position| Remembered {
            lives: lives.iter().map(|life| (*life).to_owned()).collect(),
            position: second(position),
            ..Remembered::default()
        };

        assert!(!of("1", 100).is_ahead_of(&queue(&["1"], 100)));
        assert!(!of("1", 150).is_ahead_of(&queue(&["1"], 100)), "what a kill may cost");
        assert!(of("1", 200).is_ahead_of(&queue(&["1"], 100)), "put back within one life");
        assert!(of("2", 100).is_ahead_of(&queue(&["1"], 100)), "put back to an earlier life");
        assert!(
            !of("2", 100).is_ahead_of(&queue(&["1", "2"], 100)),
            "it was not known whether it was set"
        );
        assert!(!of("2", 100).is_ahead_of(&queue(&[], 100)), "of an earlier version");
    }

    #[test]
    fn marks_of_earlier_versions_are_read() {
        let old = mark(&doc! { "_id": "a", "include": [], "exclude": [], "claim": "c" });

        assert!(old.owns(&"any.thing".parse().unwrap()));
        assert!(old.upstream.is_empty() && old.keeper.is_none());
    }
}
