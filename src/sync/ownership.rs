//! Whose copy the target is: the agent never wipes a database that it does not own, and no two agents
//! write one copy.
//!
//! In Atlas, `outrigger.replicas` holds one document per source, its *mark*: which namespaces of this
//! Atlas are a copy of that source, and which agent keeps it so. A collection that holds data, and that no
//! mark of ours covers or a mark of another source does, is somebody else's.
//!
//! The agent renews its *heartbeat* in the mark. Another agent of the same source refuses to start beside
//! it: always while the heartbeat is fresh, and, after an agent that was not stopped in order, until it is
//! told to take over. A mark that an agent gave back at its end is free. An agent that cannot renew its
//! heartbeat stops writing before it is stale. All times are Atlas's own.
//!
//! Each time the target turns out to be another one than the queue's position belongs to (another Atlas,
//! one that was put back to a backup, a mark that is gone), the mark gets a new claim, and everything is
//! compared.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use bson::{Bson, DateTime, Document, RawDocumentBuf, doc, rawdoc};

use super::{Listing, SyncError, atlas_collections};
use crate::{
    checkpoint::ClusterTime,
    config::units,
    lease::{BootTime, Lease},
    mongo::{Mongo, documents},
    namespace::{Namespace, NamespaceFilter},
    sink::SinkError,
};

const DB: &str = "outrigger";
const COLLECTION: &str = "replicas";

/// How often the heartbeat is renewed, and after how long without one it is stale. Before that, an agent that
/// could not renew its own stops writing ([`lease`](crate::lease)).
pub const HEARTBEAT: Duration = Duration::from_secs(10);
const STALE_AFTER: Duration = Duration::from_secs(60);
const _: () = assert!(crate::lease::LIMIT.as_secs() < STALE_AFTER.as_secs());

const DUPLICATE_KEY: i32 = 11000;

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
    fn to_document(&self) -> Document {
        let Self { id, instance, host, boot, pid } = self;
        doc! { "id": id, "instance": instance, "host": host, "boot": boot, "pid": i64::from(*pid) }
    }
}

/// What the agent remembers of the mark that it left.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Remembered {
    /// The claim that its queue's position belongs to.
    pub claim: Option<String>,
    /// The last position that the mark is known to carry.
    pub checkpoint: ClusterTime,
    /// The queue came from another machine, and has not claimed its target yet.
    pub moved: bool,
}

/// A source's claim on a target.
pub struct Claim<'a> {
    pub atlas: &'a Mongo,
    pub filter: &'a NamespaceFilter,
    pub source_id: &'a str,
    pub agent: &'a AgentMark,
    /// Begins anew with each renewal.
    pub lease: &'a Lease,
}

/// How a target is to be taken.
pub struct Taking<'a> {
    /// Take over what is somebody else's.
    pub adopt: bool,
    /// The agent's first look. Later on, whoever is in the mark in its place has put it aside.
    pub is_first: bool,
    /// Collections that will be written.
    pub wanted: &'a [Namespace],
    pub remembered: &'a Remembered,
    /// The heartbeat that an earlier attempt has seen, of what may be our own last life elsewhere.
    pub seen_beat: &'a Mutex<Option<i64>>,
}

struct Mark {
    source_id: String,
    filter: NamespaceFilter,
    claim: Option<String>,
    checkpoint: ClusterTime,
    keeper: Option<Keeper>,
}

/// The agent that a mark names.
struct Keeper {
    agent: AgentMark,
    /// Its last heartbeat, milliseconds since 1970 by Atlas's clock, and the time since.
    beat: i64,
    silent_for: Duration,
}

impl Keeper {
    fn is_fresh(&self) -> bool {
        self.silent_for < STALE_AFTER
    }

    fn rival(&self) -> SyncError {
        SyncError::Rival {
            host: self.agent.host.clone(),
            pid: self.agent.pid,
            heartbeat: units::show_duration(Duration::from_secs(self.silent_for.as_secs())),
            is_fresh: self.is_fresh(),
        }
    }
}

impl Claim<'_> {
    /// Takes the target: looks whose it is, lets `before_mark` note what follows from a target that is not
    /// as the queue's position has it, and sets the mark. Returns the id of the claim.
    ///
    /// # Errors
    /// [`SyncError::NotOwned`] when it holds somebody else's data and is not to be adopted;
    /// [`SyncError::Rival`] when another agent keeps it; otherwise what keeps Atlas from answering.
    pub async fn take(
        &self,
        taking: &Taking<'_>,
        before_mark: impl AsyncFnOnce() -> Result<(), SyncError>,
    ) -> Result<String, SyncError> {
        let marks = self.marks().await?;
        let own = marks.iter().find(|mark| mark.source_id == self.source_id);
        let keeper = own.and_then(|mark| mark.keeper.as_ref());
        self.check_rival(keeper, taking)?;
        self.check_others(&marks, taking).await?;
        let Remembered { claim, checkpoint, moved } = taking.remembered;
        let moved = *moved;
        // Another target than last time, or this one put back to an older state.
        let same = own.filter(|mark| mark.claim.is_some() && mark.claim == *claim);
        let same = same.filter(|mark| mark.checkpoint >= *checkpoint);
        // A queue that came from another machine: where that one went on after the export, what came with the
        // file is older than what Atlas has. And should it come back, it must not take Atlas for its own.
        let same = same.filter(|mark| !moved || mark.checkpoint == *checkpoint);
        let claim = match same.and_then(|mark| mark.claim.clone()) {
            Some(claim) if !moved => claim,
            Some(_) => uuid::Uuid::new_v4().to_string(),
            None => {
                before_mark().await?;
                uuid::Uuid::new_v4().to_string()
            }
        };
        if taking.adopt {
            self.remove_others(&marks, taking).await?;
        }
        let instance = keeper.map(|keeper| keeper.agent.instance.as_str());
        self.set(own.is_some(), instance, &claim).await?;
        Ok(claim)
    }

    /// Another agent may keep this very copy.
    fn check_rival(&self, keeper: Option<&Keeper>, taking: &Taking<'_>) -> Result<(), SyncError> {
        let Some(keeper) = keeper else { return Ok(()) };
        let Keeper { agent: other, beat, .. } = keeper;
        let (is_us, is_fresh) = (other.id == self.agent.id, keeper.is_fresh());
        if !taking.is_first {
            // An older life of ours that is stale is what a backup of Atlas holds.
            return if other.instance == self.agent.instance || (is_us && !is_fresh) {
                Ok(())
            } else {
                Err(keeper.rival())
            };
        }
        if !is_us {
            return if taking.adopt && !is_fresh { Ok(()) } else { Err(keeper.rival()) };
        }
        if !is_fresh {
            return Ok(());
        }
        if !other.boot.is_empty() && other.boot == self.agent.boot {
            // Our last life, which has ended, unless the queue was copied.
            return if is_another_agent(other.pid) { Err(keeper.rival()) } else { Ok(()) };
        }
        // A machine that was started again, a container under another name, or a clone: only the last goes
        // on beating.
        let mut seen = taking.seen_beat.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.replace(*beat).is_some_and(|seen| seen != *beat) {
            return Err(keeper.rival());
        }
        let wait = format!(
            "an agent of the same id kept this copy until {} ago, on host `{}`; whether it still does is \
             known in a minute",
            units::show_duration(Duration::from_secs(keeper.silent_for.as_secs())),
            other.host
        );
        Err(SinkError::Unavailable(wait).into())
    }

    /// What we are about to write may be another source's.
    async fn check_others(&self, marks: &[Mark], taking: &Taking<'_>) -> Result<(), SyncError> {
        let held = self.with_data().await?;
        if taking.adopt {
            let mut others = self.overlapping(marks, &held, taking);
            let fresh =
                others.find_map(|mark| mark.keeper.as_ref().filter(|keeper| keeper.is_fresh()));
            return fresh.map_or(Ok(()), |keeper| Err(keeper.rival()));
        }
        self.check_data(marks, &held)?;
        match self.overlapping(marks, &[], taking).next() {
            None => Ok(()),
            Some(_) => Err(SyncError::NotOwned {
                problem:
                    "Atlas is marked as the copy of another source for collections that are to be \
                          written"
                        .to_owned(),
            }),
        }
    }

    /// Marks of other sources that cover what is held there or wanted by us.
    fn overlapping<'m>(
        &'m self,
        marks: &'m [Mark],
        held: &'m [Namespace],
        taking: &'m Taking<'_>,
    ) -> impl Iterator<Item = &'m Mark> {
        marks.iter().filter(move |mark| {
            mark.source_id != self.source_id
                && held.iter().chain(taking.wanted).any(|ns| mark.filter.matches(ns))
        })
    }

    fn check_data(&self, marks: &[Mark], held: &[Namespace]) -> Result<(), SyncError> {
        for ns in held {
            let covers = |mark: &&Mark| mark.filter.matches(ns);
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
    async fn remove_others(&self, marks: &[Mark], taking: &Taking<'_>) -> Result<(), SyncError> {
        let held = self.with_data().await?;
        for mark in self.overlapping(marks, &held, taking) {
            tracing::warn!(source = mark.source_id, "the mark of another source is removed");
            let delete = doc! { "q": { "_id": &mark.source_id }, "limit": 1 };
            let command = doc! {
                "delete": COLLECTION, "deletes": [delete], "writeConcern": { "w": "majority" },
            };
            self.write(&command).await?;
        }
        Ok(())
    }

    /// Sets the mark, unless another agent has set it since it was looked at.
    async fn set(
        &self,
        is_there: bool,
        instance: Option<&str>,
        claim: &str,
    ) -> Result<(), SyncError> {
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
                    "agent": self.agent.to_document(), "claim": claim,
                },
                "$setOnInsert": { "claimedAt": DateTime::now() },
                "$currentDate": { "heartbeatAt": true },
            },
            "upsert": !is_there,
        };
        let sent_at = BootTime::now();
        let matched = self.update(update).await?;
        if matched == 0 {
            let lost = "another agent has set the mark of ownership at the same time";
            return Err(SinkError::Unavailable(lost.to_owned()).into());
        }
        self.lease.renew(sent_at);
        Ok(())
    }

    /// Renews the heartbeat. False when the mark is not as we left it: another agent's, gone, or older.
    ///
    /// # Errors
    /// When Atlas does not take it.
    pub async fn renew(
        &self,
        left: ClusterTime,
        checkpoint: ClusterTime,
    ) -> Result<bool, SyncError> {
        let not_older = doc! { "$not": { "$lt": bson::Timestamp::from(left) } };
        let update = doc! {
            "q": {
                "_id": self.source_id, "agent.instance": &self.agent.instance, "checkpoint": not_older,
            },
            "u": {
                "$max": { "checkpoint": bson::Timestamp::from(checkpoint) },
                "$currentDate": { "heartbeatAt": true },
            },
        };
        let sent_at = BootTime::now();
        let is_as_left = self.update(update).await? > 0;
        if is_as_left {
            self.lease.renew(sent_at);
        } else {
            self.lease.end();
        }
        Ok(is_as_left)
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
        let mut cursor = self.atlas.cursor(DB, command).await.map_err(failed)?;
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
        let Listing { collections, views, .. } = atlas_collections(self.atlas, self.filter).await?;
        let mut found: Vec<_> = views.into_iter().map(|view| view.ns).collect();
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
        claim: doc.get_str("claim").ok().map(str::to_owned),
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

/// True when a process of our own program, and not this one, has the id.
fn is_another_agent(pid: u32) -> bool {
    let name = |pid: &str| std::fs::read_to_string(format!("/proc/{pid}/comm")).ok();
    pid != std::process::id()
        && name(&pid.to_string()).is_some_and(|comm| Some(comm) == name("self"))
}
