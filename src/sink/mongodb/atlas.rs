//! Atlas through the driver.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use bson::{Document, RawArrayBuf, RawDocument, RawDocumentBuf, rawdoc};
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::RwLock;

use super::{
    classify,
    command::{BYTES_MAX, Command, CommandKind, Ids, OPS_MAX, commands, may_be_folded},
    reply::{confirmed, read_reply},
    unique::{UniqueIndex, is_same_key},
};
use crate::{
    gate::lease::Lease,
    model::{event::SchemaChange, namespace::Namespace},
    mongo::{
        Mongo, MongoError,
        class::{Class, class_of, is_out_of_time},
        documents,
    },
    policy::{limiter::Limiter, line::Line},
    schema::{
        Description, index_names,
        value::{self, Value},
    },
    sink::{Changed, ConflictingWrite, CurrentOwner, SchemaSink, Sink, SinkError, Write, Written},
};

/// Atlas, or any replica set that stands in for it.
pub struct AtlasSink {
    mongo: Mongo,
    /// A copy must take what the original took, so validation is bypassed, until we learn that the
    /// user lacks the privilege `bypassDocumentValidation`. Each document that a validator refuses from then on
    /// is reason to ask again: it may have been granted, or nothing but a moment's denial.
    bypass_validation: AtomicBool,
    limiter: Mutex<Limiter>,
    /// How much a command may carry, by what the line has shown.
    line: Mutex<Line>,
    /// Asked before each write; `None` for a target that nobody else writes to.
    lease: Option<Arc<Lease>>,
    /// Which collections have a collation, as far as that was asked for.
    collations: Mutex<HashMap<Namespace, bool>>,
    /// Held by whoever changes anything, and alone by whoever drops a database that was found empty.
    pub(super) changing: RwLock<()>,
}

impl AtlasSink {
    /// Writes through `mongo`, within the rates of `limiter` and while `lease` is held.
    pub fn new(mongo: Mongo, limiter: Limiter, lease: Option<Arc<Lease>>) -> Self {
        let (bypass_validation, limiter) = (AtomicBool::new(true), Mutex::new(limiter));
        let (line, collations, changing) = (Mutex::default(), Mutex::default(), RwLock::new(()));
        Self { mongo, bypass_validation, limiter, line, lease, collations, changing }
    }

    /// Every command that changes anything goes through here. The outer error says that it was not sent.
    pub(super) async fn order(
        &self,
        db: &str,
        command: RawDocumentBuf,
    ) -> Result<Result<Document, MongoError>, SinkError> {
        let _others_may = self.changing.read().await;
        self.send_order(db, command).await
    }

    /// As [`order`](Self::order), for who holds `changing`.
    pub(super) async fn send_order(
        &self,
        db: &str,
        command: RawDocumentBuf,
    ) -> Result<Result<Document, MongoError>, SinkError> {
        if let Some(lease) = &self.lease {
            crate::sink::may_write(lease)?;
        }
        Ok(self.mongo.command(db, command).await)
    }

    pub(super) fn mongo(&self) -> &Mongo {
        &self.mongo
    }

    fn limiter(&self) -> MutexGuard<'_, Limiter> {
        self.limiter.lock()
    }

    fn collations(&self) -> MutexGuard<'_, HashMap<Namespace, bool>> {
        self.collations.lock()
    }

    /// When two `_id`s are one in a collection that these are for. It is asked for once, and only where it counts.
    async fn ids(&self, ns: &Namespace, writes: &[Write<'_>]) -> Result<Ids, SinkError> {
        let counts = |write: &Write<'_>| match write {
            Write::Delete(key) | Write::Change { key, .. } => may_be_folded(key),
            Write::Insert(_) | Write::Upsert { .. } | Write::Merge { .. } => false,
        };
        if !writes.iter().any(counts) {
            return Ok(Ids::Plain);
        }
        let known = self.collations().get(ns).copied();
        let has_collation = if let Some(known) = known {
            known
        } else {
            let existing = self.mongo.describe_options(ns).await;
            let existing = existing.map_err(|error| classify::read_error(&error))?;
            let has = |of: &Description| value::get(&of.options, "collation").is_some();
            let has_collation = existing.as_ref().is_some_and(has);
            // One that is not there may still be made with any.
            if existing.is_some() {
                self.collations().insert(ns.clone(), has_collation);
            }
            has_collation
        };
        Ok(if has_collation { Ids::Folded } else { Ids::Plain })
    }

    /// Whatever is unanswered ends it: what a further attempt said would hide that it may still come.
    async fn send(&self, ns: &Namespace, command: &Command<'_>) -> Result<Document, SinkError> {
        let bypass = self.bypass_validation.load(Ordering::Relaxed);
        let time_max = self.mongo.server_time_max();
        let body = |bypass| command.body(ns.coll(), bypass, time_max);
        let sent = Instant::now();
        let mut reply = self.order(ns.db(), body(bypass)).await?;
        let too_slow = self.learn_line(&reply, command, sent.elapsed());
        if let Some(error) = classify::unanswered(&reply) {
            return Err(classify::told_with(error, too_slow));
        }
        // `Unauthorized`, or on Atlas's shared tiers the proxy's own words for it.
        let is_denied = reply.as_ref().is_err_and(|error| class_of(error) == Class::Denied);
        let is_plain = !bypass || is_denied;
        if bypass && is_denied {
            reply = self.send_again(ns, body(false)).await?;
            if reply.is_ok() {
                self.bypass_validation.store(false, Ordering::Relaxed);
            }
        }
        // What was denied may have been so for a moment only. Writes that are made twice are as they were.
        if is_plain
            && reply.as_ref().is_ok_and(classify::is_refused_by_a_validator)
            && let Ok(bypassed) = self.send_again(ns, body(true)).await?
        {
            self.bypass_validation.store(true, Ordering::Relaxed);
            reply = Ok(bypassed);
        }
        if let Some(obstacle) = classify::in_the_way(&reply) {
            // Where there is no such collection there is nothing to delete.
            if command.kind == CommandKind::Delete {
                return Ok(bson::doc! { "n": 0 });
            }
            self.make_way(ns, obstacle).await?;
            reply = self.send_again(ns, body(false)).await?;
            if let Some((_, error)) = classify::in_the_way(&reply) {
                return Err(SinkError::Held(error));
            }
        }
        reply.map_err(|error| classify::told_with(classify::command_error(&error), too_slow))
    }

    async fn send_again(
        &self,
        ns: &Namespace,
        body: RawDocumentBuf,
    ) -> Result<Result<Document, MongoError>, SinkError> {
        let reply = self.order(ns.db(), body).await?;
        classify::unanswered(&reply).map_or(Ok(reply), Err)
    }

    /// A server that has ended a command for the time that it took has not answered it either. Returns what a person is
    /// to be told of a document that may never arrive so.
    fn learn_line(
        &self,
        reply: &Result<Document, MongoError>,
        command: &Command<'_>,
        took: Duration,
    ) -> Option<String> {
        let (timeout, bytes) = (self.mongo.server_time_max(), command.len());
        let mut line = self.line.lock();
        let is_over = match reply {
            Ok(reply) => classify::is_out_of_time(reply),
            Err(error) => is_out_of_time(error),
        };
        if is_over {
            line.unanswered(bytes);
            // Of one write by itself a router speaks whose servers do not answer: that is no matter of this line.
            if command.places.len() == 1 && reply.is_err() {
                return line.unanswered_alone(bytes, timeout);
            }
        } else if reply.is_ok() {
            line.answered(bytes, took, timeout, BYTES_MAX);
        }
        None
    }

    /// The document that has exactly this key in the index.
    async fn owner_of_key(
        &self,
        ns: &Namespace,
        unique: &UniqueIndex,
        key: &RawDocument,
    ) -> Result<Vec<RawDocumentBuf>, SinkError> {
        // What is found first may be the next key, if this one has become free.
        let first = self.find(ns, unique.find_key(ns.coll(), key, true)).await?;
        if !first.first().is_some_and(|found| is_same_key(found, key)) {
            return Ok(Vec::new());
        }
        self.find(ns, unique.find_key(ns.coll(), key, false)).await
    }

    /// All documents of a cursor; none where Atlas rejects the command: the collection or the index is
    /// gone.
    async fn find(
        &self,
        ns: &Namespace,
        mut command: RawDocumentBuf,
    ) -> Result<Vec<RawDocumentBuf>, SinkError> {
        let max_time_ms = i64::try_from(self.mongo.server_time_max().as_millis());
        command.append(bson::raw::cstr!("maxTimeMS"), max_time_ms.unwrap_or(i64::MAX));
        let read = async {
            let mut cursor = self.mongo.cursor(ns.db(), command).await?;
            let mut found = Vec::new();
            while let Some(reply) = cursor.next().await? {
                found.extend(documents(&reply)?.into_iter().map(ToOwned::to_owned));
            }
            Ok(found)
        };
        match read.await.map_err(|error| classify::read_error(&error)) {
            Err(SinkError::Rejected(error)) => {
                tracing::debug!(%ns, %error, "nothing was found");
                Ok(Vec::new())
            }
            found => found,
        }
    }

    /// A collection cannot be renamed while an index of it is built. Its build begins anew under the new
    /// name.
    async fn abort_builds(&self, ns: &Namespace) -> Result<(), SinkError> {
        let builds = self.mongo.list_builds(ns).await;
        let needs = format!("`listIndexes` on `{ns}`");
        let denied = |error| classify::of_a_read(classify::schema_error(&error, &needs));
        let (_, building) = builds.map_err(denied)?;
        if building.is_empty() {
            return Ok(());
        }
        let indexes = index_names(&building);
        tracing::info!(%ns, indexes = indexes.join(", "), "builds of indexes end for a rename");
        let command =
            rawdoc! { "dropIndexes": ns.coll(), "index": RawArrayBuf::from_iter(indexes) };
        self.alter(ns, command).await
    }

    /// Changes a collection as such, if it is there. `needs` names the privilege for it.
    async fn run(
        &self,
        db: &str,
        command: RawDocumentBuf,
        needs: &str,
    ) -> Result<Changed, SinkError> {
        changed(self.order(db, command).await?, needs)
    }
}

/// What has come of a change of a collection as such. `needs` names the privilege for it.
pub(super) fn changed(
    reply: Result<Document, MongoError>,
    needs: &str,
) -> Result<Changed, SinkError> {
    match reply {
        Ok(reply) => confirmed(&reply).map(|()| Changed::Done),
        Err(error) if error.code() == Some(classify::NAMESPACE_NOT_FOUND) => {
            Ok(Changed::WasNotThere)
        }
        Err(error) => Err(classify::schema_error(&error, needs)),
    }
}

impl Sink for AtlasSink {
    async fn write(&self, ns: &Namespace, writes: &[Write<'_>]) -> Result<Vec<Written>, SinkError> {
        let mut outcomes = vec![Written::Applied { created: false }; writes.len()];
        let (ops_max, bytes_max) = {
            let limiter = self.limiter();
            (limiter.ops_max(OPS_MAX), limiter.bytes_max(self.line.lock().bytes_max(BYTES_MAX)))
        };
        let ids = self.ids(ns, writes).await?;
        for command in commands(writes, ids, ops_max, bytes_max) {
            let wait = self.limiter().throttle(Instant::now(), command.places.len(), command.len());
            if !wait.is_zero() {
                tokio::time::sleep(wait).await;
            }
            let reply = self.send(ns, &command).await?;
            read_reply(&reply, &command, writes, &mut outcomes)?;
        }
        Ok(outcomes)
    }

    fn takes_changes(&self) -> bool {
        true
    }
}

impl SchemaSink for AtlasSink {
    async fn owners(
        &self,
        ns: &Namespace,
        conflicting: &[ConflictingWrite],
    ) -> Result<Vec<Vec<CurrentOwner>>, SinkError> {
        let list = rawdoc! { "listIndexes": ns.coll() };
        let indexes: Vec<_> =
            self.find(ns, list).await?.iter().filter_map(|spec| UniqueIndex::of(spec)).collect();
        let mut all = Vec::with_capacity(conflicting.len());
        for ConflictingWrite { document, taken } in conflicting {
            let mut owners = Vec::new();
            let named = |unique: &&UniqueIndex| {
                taken.index.as_ref().is_none_or(|name| unique.name == *name)
            };
            for unique in indexes.iter().filter(named) {
                let mut found = match &taken.key {
                    Some(key) if unique.finds_keys() => self.owner_of_key(ns, unique, key).await?,
                    Some(_) | None => Vec::new(),
                };
                // A text that is no UTF-8 a server tells in hexadecimal digits, which nobody holds (6.0.5).
                if found.is_empty() {
                    found = self.find(ns, unique.find_by_values(ns.coll(), document)).await?;
                }
                let paths = unique.paths_of_all();
                owners.extend(
                    found
                        .into_iter()
                        .map(|document| CurrentOwner { document, paths: paths.clone() }),
                );
            }
            all.push(owners);
        }
        Ok(all)
    }

    async fn change_schema(&self, change: &SchemaChange) -> Result<Changed, SinkError> {
        let majority = rawdoc! { "w": "majority" };
        // Nothing is written to these meanwhile.
        self.collations().retain(|ns, _| !change.namespaces().contains(ns));
        match change {
            SchemaChange::Create { ns, options } => return self.create(ns, options).await,
            SchemaChange::Drop { ns } | SchemaChange::DropIfGone { ns } => {
                let command = rawdoc! { "drop": ns.coll(), "writeConcern": majority };
                let needs = format!("`dropCollection` on `{ns}`");
                self.run(ns.db(), command, &needs).await?;
            }
            // Whatever stands in Atlas under the new name is not what the local database has there:
            // everything before the rename has been applied.
            SchemaChange::Rename { from, to, .. } => {
                let command = rawdoc! {
                    "renameCollection": from.as_str(), "to": to.as_str(), "dropTarget": true,
                    "writeConcern": majority,
                };
                for ns in [from, to] {
                    self.abort_builds(ns).await?;
                }
                let needs = if from.db() == to.db() {
                    let db = from.db();
                    format!(
                        "`renameCollectionSameDB` on the database `{db}`, `dropCollection` on `{to}`"
                    )
                } else {
                    let existing = "`insert`, `createIndex` and `dropCollection`";
                    format!("`find` and `dropCollection` on `{from}`, {existing} on `{to}`")
                };
                let renamed = self.run("admin", command.clone(), &needs).await;
                if !matches!(renamed, Err(SinkError::Rejected(_))) {
                    return renamed;
                }
                // Neither is what the local database had, and no event has told that they are gone. The server renames
                // no view, and drops none for it.
                if self.drop_view(from).await? {
                    return Ok(Changed::WasNotThere);
                }
                if self.drop_view(to).await? {
                    return self.run("admin", command, &needs).await;
                }
                return renamed;
            }
            // Needs the local side too: the worker makes single steps of it.
            SchemaChange::Reconcile { .. } => {}
        }
        Ok(Changed::Done)
    }

    async fn drop_emptied(&self, db: &str) -> Result<bool, SinkError> {
        self.drop_if_emptied(db).await
    }

    async fn loosen(&self, ns: &Namespace, index: &str) -> Result<bool, SinkError> {
        let indexes = self.mongo.list_indexes(ns).await;
        let indexes = indexes.map_err(|error| classify::read_error(&error))?;
        let is_it = |spec: &&RawDocumentBuf| {
            value::get(spec, "name").and_then(Value::text) == Some(index)
                && value::is_on(spec, "prepareUnique")
                && !value::is_on(spec, "unique")
        };
        if !indexes.iter().any(|spec| is_it(&spec)) {
            return Ok(false);
        }
        let off = rawdoc! { "name": index, "prepareUnique": false };
        self.alter(ns, rawdoc! { "collMod": ns.coll(), "index": off }).await?;
        Ok(true)
    }

    async fn describe(&self, ns: &Namespace) -> Result<Option<Description>, SinkError> {
        let needs =
            format!("`listCollections` on the database `{}`, `listIndexes` on `{ns}`", ns.db());
        let described = self.mongo.describe(ns).await;
        described.map_err(|error| classify::of_a_read(classify::schema_error(&error, &needs)))
    }

    async fn estimated_count(&self, ns: &Namespace) -> Result<u64, SinkError> {
        self.mongo.estimated_count(ns).await.map_err(|error| classify::read_error(&error))
    }

    async fn alter(&self, ns: &Namespace, mut command: RawDocumentBuf) -> Result<(), SinkError> {
        command.append(bson::raw::cstr!("writeConcern"), rawdoc! { "w": "majority" });
        match self.order(ns.db(), command).await? {
            // The keeper of the indexes goes on with it when the build has ended.
            Err(error) if error.code() == Some(classify::BUILD_IN_PROGRESS) => {
                Err(SinkError::Rejected(error.to_string()))
            }
            Err(error) if error.code() == Some(classify::INDEX_NOT_FOUND) => Ok(()),
            Err(error) => {
                let needs = format!("`collMod`, `createIndex` and `dropIndex` on `{ns}`");
                Err(classify::schema_error(&error, &needs))
            }
            Ok(reply) => confirmed(&reply),
        }
    }
}
