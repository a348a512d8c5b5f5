//! The lease records as they stand in a MongoDB: one document per source in `replicas`, in the database that
//! `atlas.state_database` names.
//!
//! | field | what |
//! | --- | --- |
//! | `_id` | the source, see [`source_id`](crate::source::source_id) |
//! | `include`, `exclude` | the patterns that it replicates now |
//! | `copied` | the patterns that it replicated before, as far as those of now do not cover them: what it has copied is its own |
//! | `refused` | collections that its patterns choose and that are not its own |
//! | `upstream` | the sources that its own local database is a copy of, see `upstream` in [`ownership`](crate::sync::ownership) |
//! | `claim`, `checkpoint` | which queue's position Atlas belongs to, and how far that has come |
//! | `life` | which start of an agent has set it last |
//! | `agent`, `heartbeatAt` | who keeps the copy, and when it last said so by Atlas's own clock |

use std::time::Duration;

use bson::{Bson, DateTime, Document, RawDocumentBuf, doc, rawdoc};

use super::MongoSide;
use crate::{
    gate::tally::Counts,
    model::{
        checkpoint::ClusterTime,
        namespace::{Namespace, NamespaceFilter, Patterns},
    },
    mongo::{
        Mongo, MongoError,
        class::{Class, class_of},
        documents,
    },
    side::{
        Answer, SideError,
        records::{AgentIdentity, LeaseHolder, LeaseRecord, LeaseRecords, NewLeaseRecord},
    },
    sink::{SinkError, Written, classify},
};

/// In the database of `atlas.state_database`.
const COLLECTION: &str = "replicas";

fn agent_doc(agent: &AgentIdentity) -> Document {
    let AgentIdentity { id, instance, host, boot, pid } = agent;
    doc! { "id": id, "instance": instance, "host": host, "boot": boot, "pid": i64::from(*pid) }
}

fn patterns_doc(patterns: &Patterns) -> Document {
    doc! { "include": &patterns.include, "exclude": &patterns.exclude }
}

impl LeaseRecords for MongoSide {
    fn name(&self, place: &str) -> String {
        format!("{place}.{COLLECTION}")
    }

    fn is_of_records(&self, ns: &Namespace) -> bool {
        ns.coll() == COLLECTION
    }

    fn read<'a>(&'a self, place: &'a str) -> Answer<'a, Vec<LeaseRecord>> {
        self.ask(read(&self.mongo, place))
    }

    fn elsewhere<'a>(&'a self, place: &'a str) -> Answer<'a, Vec<(String, Vec<LeaseRecord>)>> {
        self.ask(elsewhere(&self.mongo, place))
    }

    fn set<'a>(
        &'a self,
        place: &'a str,
        record: NewLeaseRecord<'a>,
        before: Option<&'a str>,
        is_new: bool,
    ) -> Answer<'a, bool> {
        let NewLeaseRecord {
            source_id, patterns, copied, refused, upstream, agent, lease_id, ..
        } = record;
        let same_holder = match before {
            Some(instance) => Bson::from(instance),
            None => doc! { "$exists": false }.into(),
        };
        let copied: Vec<_> = copied.iter().map(patterns_doc).collect();
        let refused: Vec<_> = refused.iter().map(Namespace::as_str).collect();
        let update = doc! {
            "q": { "_id": source_id, "agent.instance": same_holder },
            "u": {
                "$set": {
                    "version": env!("CARGO_PKG_VERSION"), "startedAt": DateTime::now(),
                    "include": &patterns.include, "exclude": &patterns.exclude,
                    "copied": copied, "refused": refused, "upstream": upstream,
                    "agent": agent_doc(agent), "life": &agent.instance, "claim": lease_id,
                },
                "$setOnInsert": { "claimedAt": DateTime::now() },
                "$currentDate": { "heartbeatAt": true },
            },
            "upsert": is_new,
        };
        Box::pin(async move { Ok(self.update(place, update).await? > 0) })
    }

    fn renew<'a>(
        &'a self,
        place: &'a str,
        source_id: &'a str,
        instance: &'a str,
        left: ClusterTime,
        checkpoint: ClusterTime,
        upstream: Vec<&'a str>,
    ) -> Answer<'a, bool> {
        let not_older = doc! { "$not": { "$lt": bson::Timestamp::from(left) } };
        let update = doc! {
            "q": { "_id": source_id, "agent.instance": instance, "checkpoint": not_older },
            "u": {
                "$max": { "checkpoint": bson::Timestamp::from(checkpoint) },
                "$set": { "upstream": upstream },
                "$currentDate": { "heartbeatAt": true },
            },
        };
        Box::pin(async move { Ok(self.update(place, update).await? > 0) })
    }

    fn release<'a>(
        &'a self,
        place: &'a str,
        source_id: &'a str,
        instance: &'a str,
    ) -> Answer<'a, ()> {
        let update = doc! {
            "q": { "_id": source_id, "agent.instance": instance },
            "u": { "$unset": { "agent": "" } },
        };
        Box::pin(async move { self.update(place, update).await.map(drop) })
    }

    fn remove<'a>(&'a self, place: &'a str, source_id: &'a str) -> Answer<'a, ()> {
        let delete = doc! { "q": { "_id": source_id }, "limit": 1 };
        let command = doc! {
            "delete": COLLECTION, "deletes": [delete], "writeConcern": { "w": "majority" },
        };
        Box::pin(async move { self.write(place, &command).await.map(drop) })
    }

    fn remove_with_place<'a>(&'a self, place: &'a str, source_id: &'a str) -> Answer<'a, ()> {
        Box::pin(async move {
            self.remove(place, source_id).await?;
            let failed = |error| self.role.error(error);
            if self.mongo.is_empty(&Namespace::new(place, COLLECTION)).await.map_err(failed)? {
                let command = doc! { "drop": COLLECTION, "writeConcern": { "w": "majority" } };
                self.write(place, &command).await?;
            }
            // An empty one keeps its name from others.
            if self.mongo.list_collections(place).await.map_err(failed)?.is_empty() {
                let command = doc! { "dropDatabase": 1, "writeConcern": { "w": "majority" } };
                self.write(place, &command).await?;
            }
            Ok(())
        })
    }
}

impl MongoSide {
    async fn update(&self, db: &str, update: Document) -> Result<i32, SideError> {
        let command = doc! {
            "update": COLLECTION, "updates": [update], "writeConcern": { "w": "majority" },
        };
        self.write(db, &command).await
    }

    /// Returns how many documents it matched.
    async fn write(&self, db: &str, command: &Document) -> Result<i32, SideError> {
        let command = RawDocumentBuf::try_from(command).expect("a literal");
        let reply = self.mongo.command(db, command).await;
        let reply = reply.map_err(|error| self.role.error(error))?;
        if let Some(failed) = classify::failed(&reply).next() {
            // What everybody is refused is no matter of this mark: it is waited for, and told.
            return match classify::write_error(failed, false)? {
                Written::Rejected { reason, .. } => {
                    let refused = format!("the mark of ownership was not taken: {reason}");
                    Err(SinkError::Rejected(refused).into())
                }
                // Somebody else's is there already.
                _ => Ok(0),
            };
        }
        if reply.get_document("writeConcernError").is_ok() {
            let unconfirmed = "the mark of ownership was not confirmed".to_owned();
            return Err(SinkError::Unavailable(unconfirmed).into());
        }
        Ok(reply.get_i32("n").unwrap_or(0))
    }
}

/// All lease records in a database, with their age by that server's clock.
///
/// # Errors
/// When the server does not answer, or refuses.
async fn read(mongo: &Mongo, db: &str) -> Result<Vec<LeaseRecord>, MongoError> {
    let hello = mongo.hello().await?;
    let now = hello.get_datetime("localTime").map_or_else(|_| DateTime::now(), |now| *now);
    // What else may stand there is an application's.
    let is_record = rawdoc! { "include": { "$type": "array" }, "startedAt": { "$type": "date" } };
    let command = rawdoc! {
        "find": COLLECTION, "filter": is_record, "readConcern": { "level": "majority" },
    };
    let mut cursor = mongo.cursor(db, command).await?;
    let mut records = Vec::new();
    while let Some(reply) = cursor.next().await? {
        for raw in documents(&reply)? {
            let record = Document::try_from(raw).ok();
            records.extend(record.as_ref().and_then(|doc| read_record(doc, db, now)));
        }
    }
    Ok(records)
}

/// Lease records in all other databases than `db`.
///
/// # Errors
/// As [`read`].
async fn elsewhere(mongo: &Mongo, db: &str) -> Result<Vec<(String, Vec<LeaseRecord>)>, MongoError> {
    let mut found = Vec::new();
    for other in mongo.list_databases().await?.into_iter().filter(|other| other != db) {
        match read(mongo, &other).await {
            Ok(records) if records.is_empty() => {}
            Ok(records) => found.push((other, records)),
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

fn read_record(doc: &Document, db: &str, now: DateTime) -> Option<LeaseRecord> {
    let before = doc.get_array("copied").map(Vec::as_slice).unwrap_or_default();
    let before = before.iter().filter_map(Bson::as_document);
    Some(LeaseRecord {
        source_id: doc.get_str("_id").ok()?.to_owned(),
        filter: filter_of(doc, db)?,
        copied: before.filter_map(|patterns| filter_of(patterns, db)).collect(),
        refused: texts(doc, "refused").iter().filter_map(|name| name.parse().ok()).collect(),
        upstream: texts(doc, "upstream"),
        lease_id: doc.get_str("claim").ok().map(str::to_owned),
        life: doc.get_str("life").ok().map(str::to_owned),
        checkpoint: doc.get_timestamp("checkpoint").map(ClusterTime::from).unwrap_or_default(),
        holder: doc.get_document("agent").ok().map(|agent| read_holder(agent, doc, now)),
        // A majority has what it has confirmed.
        counts: Counts::default(),
    })
}

fn read_holder(agent: &Document, record: &Document, now: DateTime) -> LeaseHolder {
    let text = |name: &str| agent.get_str(name).unwrap_or("unknown").to_owned();
    let heartbeat = record.get_datetime("heartbeatAt").map_or(0, |at| at.timestamp_millis());
    let silent_ms = u64::try_from(now.timestamp_millis() - heartbeat).unwrap_or(0);
    LeaseHolder {
        agent: AgentIdentity {
            id: text("id"),
            instance: text("instance"),
            host: text("host"),
            boot: text("boot"),
            pid: agent.get_i64("pid").ok().and_then(|pid| u32::try_from(pid).ok()).unwrap_or(0),
        },
        heartbeat,
        silent_for: Duration::from_millis(silent_ms),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(doc: &Document) -> LeaseRecord {
        read_record(doc, "outrigger", DateTime::now()).unwrap()
    }

    #[test]
    fn a_lease_remembers_what_its_source_has_copied() {
        let first = record(&doc! { "_id": "a", "include": ["shop.*"], "exclude": [] });
        let narrower =
            Patterns { include: vec!["shop.*".into()], exclude: vec!["shop.logs".into()] };

        let before = first.history(&narrower);
        assert_eq!(before, [Patterns { include: vec!["shop.*".into()], exclude: vec![] }]);
        let second = record(&doc! {
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
    fn lease_records_of_earlier_versions_are_read() {
        let old = record(&doc! { "_id": "a", "include": [], "exclude": [], "claim": "c" });

        assert!(old.owns(&"any.thing".parse().unwrap()));
        assert!(old.upstream.is_empty() && old.holder.is_none());
    }
}
