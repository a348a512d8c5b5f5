//! Whose copy the target is: the agent never wipes a database that it does not own, and no two agents
//! write one copy.
//!
//! In Atlas, `outrigger.replicas` holds one document per source, its *mark*: which namespaces of this
//! Atlas are a copy of that source, and which agent keeps it so. A collection that holds data, and that no
//! mark of ours covers or a mark of another source does, is somebody else's.
//!
//! The agent renews its *heartbeat* in the mark. Another agent of the same source refuses to start beside
//! it: always while the heartbeat is fresh, and, after an agent that was not stopped in order, until it is
//! told to take over. A mark that an agent gave back at its end is free. All times are Atlas's own.

use std::time::Duration;

use bson::{Bson, DateTime, Document, RawDocumentBuf, doc, rawdoc};

use super::{SyncError, atlas_collections};
use crate::{
    checkpoint::ClusterTime,
    config::units,
    mongo::{Mongo, documents},
    namespace::{Namespace, NamespaceFilter},
    sink::SinkError,
};

const DB: &str = "outrigger";
const COLLECTION: &str = "replicas";

/// How often the heartbeat is renewed, and after how long without one it is stale.
pub const HEARTBEAT: Duration = Duration::from_secs(10);
const STALE_AFTER: Duration = Duration::from_secs(60);

const DUPLICATE_KEY: i32 = 11000;

/// One running agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgentMark {
    /// The same after a restart.
    pub id: String,
    /// Another one after each.
    pub instance: String,
    pub host: String,
    pub pid: u32,
}

impl AgentMark {
    fn to_document(&self) -> Document {
        doc! { "id": &self.id, "instance": &self.instance, "host": &self.host, "pid": i64::from(self.pid) }
    }
}

/// A source's claim on a target.
pub struct Claim<'a> {
    pub atlas: &'a Mongo,
    pub filter: &'a NamespaceFilter,
    pub source_id: &'a str,
    pub agent: &'a AgentMark,
    /// Take over what is somebody else's.
    pub adopt: bool,
}

struct Mark {
    source_id: String,
    filter: NamespaceFilter,
    keeper: Option<Keeper>,
}

/// The agent that a mark names.
struct Keeper {
    agent: AgentMark,
    /// Time since its last heartbeat.
    silent_for: Duration,
}

/// What there is of ours in the target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Held {
    /// Our mark.
    Marked,
    /// Nothing, or something that is to be adopted.
    Unmarked,
}

impl Claim<'_> {
    /// Takes the target: looks whose it is, lets `before_mark` note what follows from a target without our
    /// mark, and sets the mark.
    ///
    /// # Errors
    /// [`SyncError::NotOwned`] when it holds somebody else's data and is not to be adopted;
    /// [`SyncError::Rival`] when another agent keeps it; otherwise what keeps Atlas from answering.
    pub async fn take(
        &self,
        before_mark: impl AsyncFnOnce() -> Result<(), SyncError>,
    ) -> Result<Held, SyncError> {
        let marks = self.marks().await?;
        let own = marks.iter().find(|mark| mark.source_id == self.source_id);
        let keeper = own.and_then(|mark| mark.keeper.as_ref());
        self.check_rival(keeper)?;
        if !self.adopt {
            self.check_data(&marks).await?;
        }
        let held = if own.is_some() { Held::Marked } else { Held::Unmarked };
        if held == Held::Unmarked {
            before_mark().await?;
        }
        if self.adopt {
            self.remove_others(&marks).await?;
        }
        self.set(own.is_some(), keeper.map(|keeper| keeper.agent.instance.as_str())).await?;
        Ok(held)
    }

    /// Another agent may keep this very copy.
    fn check_rival(&self, keeper: Option<&Keeper>) -> Result<(), SyncError> {
        let Some(Keeper { agent, silent_for }) = keeper else { return Ok(()) };
        let is_fresh = *silent_for < STALE_AFTER;
        // A machine that was cloned has our id too.
        let is_us = agent.id == self.agent.id && (agent.host == self.agent.host || !is_fresh);
        if is_us || (self.adopt && !is_fresh) {
            return Ok(());
        }
        Err(SyncError::Rival {
            host: agent.host.clone(),
            pid: agent.pid,
            heartbeat: units::show_duration(Duration::from_secs(silent_for.as_secs())),
            is_fresh,
        })
    }

    async fn check_data(&self, marks: &[Mark]) -> Result<(), SyncError> {
        for ns in self.with_data().await? {
            let covers = |mark: &&Mark| mark.filter.matches(&ns);
            let is_ours = |mark: &&Mark| mark.source_id == self.source_id;
            if marks.iter().filter(covers).any(|mark| !is_ours(&mark)) {
                return Err(SyncError::NotOwned {
                    problem: format!(
                        "Atlas already holds data in `{ns}`, which is marked as the copy of another source"
                    ),
                });
            }
            if !marks.iter().filter(covers).any(|mark| is_ours(&mark)) {
                return Err(SyncError::NotOwned {
                    problem: format!(
                        "Atlas already holds data in `{ns}` and carries no mark of this source for it, so \
                         it may be somebody else's"
                    ),
                });
            }
        }
        Ok(())
    }

    /// When adopting, the marks of others on what is ours now go.
    async fn remove_others(&self, marks: &[Mark]) -> Result<(), SyncError> {
        let held = self.with_data().await?;
        for mark in marks.iter().filter(|mark| mark.source_id != self.source_id) {
            if held.iter().any(|ns| mark.filter.matches(ns)) {
                tracing::warn!(source = mark.source_id, "the mark of another source is removed");
                let delete = doc! { "q": { "_id": &mark.source_id }, "limit": 1 };
                let command = doc! {
                    "delete": COLLECTION, "deletes": [delete], "writeConcern": { "w": "majority" },
                };
                self.write(&command).await?;
            }
        }
        Ok(())
    }

    /// Sets the mark, unless another agent has set it since it was looked at.
    async fn set(&self, is_there: bool, instance: Option<&str>) -> Result<(), SyncError> {
        let patterns = self.filter.patterns();
        let same_keeper = match instance {
            Some(instance) => Bson::from(instance),
            None => doc! { "$exists": false }.into(),
        };
        let update = doc! {
            "q": { "_id": self.source_id, "agent.instance": same_keeper },
            "u": {
                "$set": {
                    "version": env!("CARGO_PKG_VERSION"), "startedAt": DateTime::now(),
                    "include": &patterns.include, "exclude": &patterns.exclude,
                    "agent": self.agent.to_document(),
                },
                "$setOnInsert": { "claimedAt": DateTime::now() },
                "$currentDate": { "heartbeatAt": true },
            },
            "upsert": !is_there,
        };
        let matched = self.update(update).await?;
        if matched == 0 {
            let lost = "another agent has set the mark of ownership at the same time";
            return Err(SinkError::Unavailable(lost.to_owned()).into());
        }
        Ok(())
    }

    /// Renews the heartbeat. False when the mark is not ours any more.
    ///
    /// # Errors
    /// When Atlas does not take it.
    pub async fn renew(&self, checkpoint: ClusterTime) -> Result<bool, SyncError> {
        let update = doc! {
            "q": { "_id": self.source_id, "agent.instance": &self.agent.instance },
            "u": {
                "$set": { "checkpoint": bson::Timestamp::from(checkpoint) },
                "$currentDate": { "heartbeatAt": true },
            },
        };
        Ok(self.update(update).await? > 0)
    }

    /// Gives the mark back: the target stays this source's, and any agent of it may take it.
    ///
    /// # Errors
    /// When Atlas does not take it.
    pub async fn give_back(&self) -> Result<(), SyncError> {
        let update = doc! {
            "q": { "_id": self.source_id, "agent.instance": &self.agent.instance },
            "u": { "$unset": { "agent": "" } },
        };
        self.update(update).await.map(drop)
    }

    async fn update(&self, update: Document) -> Result<i32, SyncError> {
        let command = doc! {
            "update": COLLECTION, "updates": [update], "writeConcern": { "w": "majority" },
        };
        self.write(&command).await
    }

    /// Returns how many documents it matched.
    async fn write(&self, command: &Document) -> Result<i32, SyncError> {
        let command = RawDocumentBuf::try_from(command).expect("a literal");
        let reply =
            self.atlas.command(DB, command).await.map_err(|error| SyncError::atlas(&error))?;
        let problem = reply.get_array("writeErrors").ok().and_then(|errors| {
            errors.first().and_then(Bson::as_document).and_then(|error| error.get_i32("code").ok())
        });
        if problem == Some(DUPLICATE_KEY) {
            return Ok(0);
        }
        if problem.is_some() {
            let refused = "the mark of ownership was not taken".to_owned();
            return Err(SinkError::Rejected(refused).into());
        }
        if reply.get_document("writeConcernError").is_ok() {
            let unconfirmed = "the mark of ownership was not confirmed".to_owned();
            return Err(SinkError::Unavailable(unconfirmed).into());
        }
        Ok(reply.get_i32("n").unwrap_or(0))
    }

    async fn marks(&self) -> Result<Vec<Mark>, SyncError> {
        let failed = |error| SyncError::atlas(&error);
        let hello = self.atlas.hello().await.map_err(failed)?;
        let now = hello.get_datetime("localTime").map_or_else(|_| DateTime::now(), |now| *now);
        let command = rawdoc! { "find": COLLECTION, "readConcern": { "level": "majority" } };
        let mut cursor = self.atlas.cursor(DB, command, None).await.map_err(failed)?;
        let mut marks = Vec::new();
        while let Some(reply) = cursor.next().await.map_err(failed)? {
            for raw in documents(&reply).map_err(failed)? {
                marks.extend(
                    Document::try_from(raw).ok().as_ref().and_then(|doc| read_mark(doc, now)),
                );
            }
        }
        Ok(marks)
    }

    /// The replicated namespaces in which Atlas holds anything.
    async fn with_data(&self) -> Result<Vec<Namespace>, SyncError> {
        let failed = |error| SyncError::atlas(&error);
        let (collections, _) = atlas_collections(self.atlas, self.filter).await?;
        let mut found = Vec::new();
        for collection in collections {
            let ns = collection.ns;
            if !self.atlas.is_empty(&ns).await.map_err(failed)? {
                found.push(ns);
            }
        }
        Ok(found)
    }
}

fn read_mark(doc: &Document, now: DateTime) -> Option<Mark> {
    let list = |name: &str| -> Vec<String> {
        let array = doc.get_array(name).map(Vec::as_slice).unwrap_or_default();
        array.iter().filter_map(Bson::as_str).map(str::to_owned).collect()
    };
    Some(Mark {
        source_id: doc.get_str("_id").ok()?.to_owned(),
        filter: NamespaceFilter::new(&list("include"), &list("exclude")).ok()?,
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
            pid: agent.get_i64("pid").ok().and_then(|pid| u32::try_from(pid).ok()).unwrap_or(0),
        },
        silent_for: Duration::from_millis(silent_ms),
    }
}
