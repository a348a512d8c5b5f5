//! Whether a server can be replicated from, and which database it is.

use std::time::Duration;

use bson::{Document, Timestamp, rawdoc};
use futures_util::{FutureExt, future::BoxFuture};

use crate::{
    gate::past::{Evidence, Oplog, by_name},
    model::checkpoint::ClusterTime,
    mongo::{Mongo, STANDALONE_HINT, documents},
    policy::majority::Writes,
    source::{Journal, SourceError},
};

/// What Outrigger needs to know about the local server.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SourceInfo {
    pub version: String,
    pub major: u32,
    /// The replica set's name; of a target that is a sharded cluster `mongos`.
    pub set_name: String,
    /// The time of the last operation that the server has made.
    pub now: ClusterTime,
    /// The time of the last entry of the oplog that a majority has.
    pub last_entry: Option<ClusterTime>,
    pub is_primary: bool,
}

/// Asks the server what it is.
///
/// # Errors
/// [`SourceError::Unfit`] for a standalone server, a router, or one before 5.0, with the way out as its hint;
/// otherwise what keeps it from answering.
pub async fn inspect(mongo: &Mongo) -> Result<SourceInfo, SourceError> {
    let hello = mongo.hello().await?;
    let version = mongo.version().await?;
    let major = version.split('.').next().and_then(|major| major.parse().ok()).unwrap_or(0);
    if major < 5 {
        return Err(SourceError::Unfit {
            problem: format!(
                "the local MongoDB is version {version}; Outrigger needs 5.0 or later"
            ),
            hint: "upgrade the local MongoDB; each major version is one step".to_owned(),
        });
    }
    refuse_router(&hello)?;
    let set_name = match hello.get_str("setName") {
        Ok(name) => name.to_owned(),
        Err(_) if hello.get_bool("isreplicaset").unwrap_or(false) => {
            return Err(SourceError::Unfit {
                problem: "the local MongoDB was started as a replica set that was never initiated"
                    .to_owned(),
                hint: "run `rs.initiate()` once in mongosh; no data is moved".to_owned(),
            });
        }
        Err(_) => return Err(standalone()),
    };
    let now = hello.get_timestamp("operationTime").map(ClusterTime::from).unwrap_or_default();
    let is_primary = hello.get_bool("isWritablePrimary").unwrap_or(false);
    Ok(SourceInfo { version, major, set_name, now, last_entry: majority_entry(&hello), is_primary })
}

/// True for the answer of a sharded cluster's router (`mongos`).
pub fn is_router(hello: &Document) -> bool {
    hello.get_str("msg").is_ok_and(|msg| msg == "isdbgrid")
}

/// Refuses a router as the local database.
///
/// # Errors
/// [`SourceError::Unfit`].
pub fn refuse_router(hello: &Document) -> Result<(), SourceError> {
    if !is_router(hello) {
        return Ok(());
    }
    Err(SourceError::Unfit {
        problem: "the local MongoDB is a router (mongos) of a sharded cluster, which cannot be copied \
                  exactly: two of its shards may hold documents of the same `_id`, and a document whose \
                  shard key changes may be seen to arrive on one shard before it leaves the other"
            .to_owned(),
        hint: "name the members of a replica set in MONGODB_LOCAL_URI; a cluster of one shard can be read from \
               that shard's members"
            .to_owned(),
    })
}

fn standalone() -> SourceError {
    SourceError::Unfit {
        problem:
            "the local MongoDB is a standalone server, which has no oplog: it keeps no record \
                  of changes that could be followed"
                .to_owned(),
        hint: STANDALONE_HINT.to_owned(),
    }
}

/// Tells this database from any other, also from a restored copy of itself: the replica set's id,
/// which is drawn at random when a set is initiated.
///
/// Falls back to the set's name where the user may not read the configuration (the privilege is
/// `replSetGetConfig` on the cluster); that tells less, and the second value says so.
///
/// # Errors
/// When the server does not answer.
pub async fn source_id(mongo: &Mongo, info: &SourceInfo) -> Result<(String, bool), SourceError> {
    if info.set_name == "mongos" {
        let command = rawdoc! { "find": "version", "limit": 1 };
        let mut cursor = mongo.cursor("config", command).await?;
        if let Some(batch) = cursor.next().await?
            && let Some(version) = documents(&batch)?.first()
            && let Ok(id) = version.get_object_id("clusterId")
        {
            return Ok((id.to_hex(), true));
        }
        return Ok(("mongos".to_owned(), false));
    }
    match mongo.command("admin", rawdoc! { "replSetGetConfig": 1 }).await.map_err(SourceError::from)
    {
        Ok(reply) => Ok(match replica_set_id(&reply) {
            Some(id) => (id, true),
            None => (by_name(&info.set_name), false),
        }),
        Err(SourceError::Denied { .. }) => Ok((by_name(&info.set_name), false)),
        Err(error) => Err(error),
    }
}

fn replica_set_id(reply: &Document) -> Option<String> {
    let settings = reply.get_document("config").ok()?.get_document("settings").ok()?;
    settings.get_object_id("replicaSetId").ok().map(bson::oid::ObjectId::to_hex)
}

/// The time of the oldest entry in the oplog, where the user may read it (`read` on `local`). `None`
/// while the oplog still holds everything since the replica set was initiated: nothing can be lost
/// then, however young it is.
///
/// # Errors
/// When the server does not answer, or refuses.
pub async fn oplog_start(mongo: &Mongo) -> Result<Option<ClusterTime>, SourceError> {
    Ok(oplog_entry(mongo, rawdoc! {})
        .await?
        .filter(|first| !first.is_the_very_first)
        .map(|first| first.time))
}

/// The last write of the replica set, as far as the member that answers knows, and the last one that a majority has.
/// A router tells of no majority; what it has written counts as committed.
///
/// # Errors
/// When the server does not answer.
pub async fn last_write(mongo: &Mongo) -> Result<Writes, SourceError> {
    let hello = mongo.hello().await?;
    Ok(writes_of(&hello))
}

impl Journal for Mongo {
    fn last_write(&self) -> BoxFuture<'_, Result<Writes, SourceError>> {
        last_write(self).boxed()
    }

    fn begin(&self) -> BoxFuture<'_, Result<Option<ClusterTime>, SourceError>> {
        oplog_start(self).boxed()
    }
}

/// A time of `hello.lastWrite`: `opTime`, or `majorityOpTime`.
fn last_write_at(hello: &Document, key: &str) -> Option<ClusterTime> {
    let op_time = hello.get_document("lastWrite").and_then(|last| last.get_document(key)).ok()?;
    op_time.get_timestamp("ts").ok().map(ClusterTime::from)
}

fn writes_of(hello: &Document) -> Writes {
    let time = |of: &Document, key: &str| of.get_timestamp(key).ok().map(ClusterTime::from);
    let mut written = time(hello, "operationTime").unwrap_or_default();
    written = written.max(last_write_at(hello, "opTime").unwrap_or_default());
    // A member that is not the primary learns the newest time of the set from the others, long before it has the
    // write: it may lag, or be delayed on purpose.
    if !hello.get_bool("isWritablePrimary").unwrap_or(false) {
        let heard = hello.get_document("$clusterTime").ok().and_then(|of| time(of, "clusterTime"));
        written = written.max(heard.unwrap_or_default());
    }
    let seconds = ["secondaryDelaySecs", "slaveDelay"]
        .into_iter()
        .find_map(|key| hello.get_i64(key).ok().or_else(|| hello.get_i32(key).ok().map(i64::from)));
    let delay = Duration::from_secs(seconds.and_then(|s| u64::try_from(s).ok()).unwrap_or(0));
    Writes { written, committed: last_write_at(hello, "majorityOpTime").unwrap_or(written), delay }
}

/// The time of the last entry that a majority has, which needs no privilege.
///
/// # Errors
/// When the server does not answer.
pub async fn last_entry(mongo: &Mongo) -> Result<Option<ClusterTime>, SourceError> {
    Ok(majority_entry(&mongo.hello().await?))
}

/// `None` while the server knows of none yet, for which it tells a time of 0.
fn majority_entry(hello: &Document) -> Option<ClusterTime> {
    last_write_at(hello, "majorityOpTime").filter(|time| *time > ClusterTime::default())
}

/// What the server of the moment says of itself, for [`judge`](crate::gate::past::judge).
///
/// # Errors
/// When it does not answer, or cannot be replicated from.
pub async fn evidence(mongo: &Mongo, anchor: ClusterTime) -> Result<Evidence, SourceError> {
    let info = inspect(mongo).await?;
    let (set_id, _) = source_id(mongo, &info).await?;
    let oplog = if_permitted(oplog_from(mongo, anchor).await)?;
    Ok(Evidence {
        set_id,
        is_primary: info.is_primary,
        now: info.now,
        last_entry: info.last_entry,
        oplog,
    })
}

/// The oplog, seen from `anchor`.
async fn oplog_from(mongo: &Mongo, anchor: ClusterTime) -> Result<Oplog, SourceError> {
    let from = rawdoc! { "ts": { "$gte": Timestamp::from(anchor) } };
    let next = oplog_entry(mongo, from).await?.map(|entry| entry.time);
    if next == Some(anchor) {
        return Ok(Oplog { next, oldest: None });
    }
    // After the look for the entry: what has rolled away between the two counts as rolled away.
    let oldest = oplog_entry(mongo, rawdoc! {}).await?;
    Ok(Oplog { next, oldest: oldest.map(|entry| (entry.time, entry.is_the_very_first)) })
}

fn if_permitted<T>(result: Result<T, SourceError>) -> Result<Option<T>, SourceError> {
    match result {
        Ok(value) => Ok(Some(value)),
        // Not permitted, or, of a router, not known.
        Err(SourceError::Denied { .. } | SourceError::Failed(_)) => Ok(None),
        Err(error) => Err(error),
    }
}

struct OplogEntry {
    time: ClusterTime,
    is_the_very_first: bool,
}

/// The oldest entry that matches, whether a majority has it or not: what a majority has a new primary
/// only learns after a while.
async fn oplog_entry(
    mongo: &Mongo,
    filter: bson::RawDocumentBuf,
) -> Result<Option<OplogEntry>, SourceError> {
    let command = rawdoc! {
        "find": "oplog.rs", "filter": filter, "sort": { "$natural": 1 }, "limit": 1,
        "projection": { "ts": 1, "o.msg": 1 },
    };
    let mut cursor = mongo.cursor("local", command).await?;
    let Some(batch) = cursor.next().await? else {
        return Ok(None);
    };
    let entries = documents(&batch)?;
    let Some(entry) = entries.first() else {
        return Ok(None);
    };
    let is_the_very_first = crate::model::raw::subdocument(entry, "o")
        .is_some_and(|o| o.get_str("msg").is_ok_and(|msg| msg == "initiating set"));
    Ok(entry
        .get_timestamp("ts")
        .ok()
        .map(|ts| OplogEntry { time: ClusterTime::from(ts), is_the_very_first }))
}
