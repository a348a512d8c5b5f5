//! Making a collection or a view in Atlas, and what may stand there already.

use bson::{RawDocument, RawDocumentBuf, rawdoc};

use super::{AtlasSink, classify};
use crate::{
    model::{namespace::Namespace, raw::Builder},
    schema::{
        Claim, Description, Kind, Step, steps,
        value::{self, Value, get, without},
    },
    sink::{Changed, SinkError},
};

/// Options that can be changed later, and whose words a server may not know.
const CHANGEABLE: [&str; 4] =
    ["validator", "validationLevel", "validationAction", "expireAfterSeconds"];

/// Options without which a collection still holds its documents as it should.
const DISPENSABLE: [&str; 4] =
    ["storageEngine", "indexOptionDefaults", "changeStreamPreAndPostImages", "encryptedFields"];

impl AtlasSink {
    /// Makes a collection. Options that this Atlas does not take must not keep the documents away: those
    /// that it can do without are left out first, then all.
    pub(super) async fn create(
        &self,
        ns: &Namespace,
        options: &RawDocument,
    ) -> Result<Changed, SinkError> {
        let is_view = get(options, "viewOn").is_some();
        let plain = without(options, &DISPENSABLE);
        let bare = without(&plain, &CHANGEABLE);
        let mut refused = None;
        for some in [options.to_owned(), plain, bare, RawDocumentBuf::new()] {
            let made = match self.create_once(ns, &some).await {
                Ok(()) if refused.is_none() => Changed::Done,
                Ok(()) => Changed::Differs,
                Err(CreateFailure::IsThere) => self.what_is_there(ns, options).await?,
                Err(CreateFailure::Other(SinkError::Rejected(error))) if !is_view => {
                    tracing::warn!(%ns, %error, "Atlas does not take the collection's options");
                    refused = Some(SinkError::Rejected(error));
                    continue;
                }
                Err(CreateFailure::Other(error)) => return Err(error),
            };
            return Ok(made);
        }
        refused.map_or(Ok(Changed::Done), Err)
    }

    async fn create_once(
        &self,
        ns: &Namespace,
        options: &RawDocument,
    ) -> Result<(), CreateFailure> {
        let command = create_command(ns, options, rawdoc! { "w": "majority" });
        let mut has_made_room = false;
        loop {
            let error = match self.order(ns.db(), command.clone()).await? {
                Ok(reply) => return Ok(super::reply::confirmed(&reply)?),
                Err(error) => error,
            };
            match error.code() {
                Some(classify::NAMESPACE_EXISTS) => return Err(CreateFailure::IsThere),
                Some(classify::OTHER_CAPITALS) if !has_made_room => {
                    self.make_room(ns, &error.to_string()).await?;
                    has_made_room = true;
                }
                // A user that may make no collection may most likely write none: that is told of Atlas as a whole.
                Some(_) | None => return Err(classify::command_error(&error).into()),
            }
        }
    }

    /// The name is taken, by an attempt whose answer was lost, or by what no event has told to be gone. A view
    /// holds nothing, so what is wrong with one is mended here; a collection stays, whatever its options are.
    async fn what_is_there(
        &self,
        ns: &Namespace,
        options: &RawDocument,
    ) -> Result<Changed, SinkError> {
        let existing = self.mongo().describe_options(ns).await;
        let existing = existing.map_err(|error| classify::read_error(&error))?;
        let kind = if get(options, "viewOn").is_some() { Kind::View } else { Kind::Collection };
        let options = without(options, &NOT_OPTIONS);
        let wanted =
            Description { kind, claim: Claim::Whole, id: None, options, indexes: Vec::new() };
        let mut made = Changed::Done;
        for step in steps(&wanted, existing.as_ref()) {
            match &step {
                // Nothing can be written to it before a person has made way.
                Step::InTheWay { .. } if kind == Kind::Collection => {
                    return Err(SinkError::Held(step.to_string()));
                }
                Step::InTheWay { .. } => return Err(SinkError::Rejected(step.to_string())),
                Step::Create { options } => match self.create_once(ns, options).await {
                    Ok(()) | Err(CreateFailure::IsThere) => {}
                    Err(CreateFailure::Other(error)) => return Err(error),
                },
                Step::DropView => drop(self.drop_view(ns).await?),
                Step::ModifyView { .. } => {
                    for command in step.commands(ns.coll()) {
                        crate::sink::SchemaSink::alter(self, ns, command).await?;
                    }
                }
                Step::Option(_) | Step::Index(_) => made = Changed::Differs,
            }
        }
        Ok(made)
    }

    /// Drops what has this name, where it is a view. False where it is something else, or nothing. Alone, since the
    /// command drops whatever has the name by then.
    pub(super) async fn drop_view(&self, ns: &Namespace) -> Result<bool, SinkError> {
        let _alone = self.changing.write().await;
        let existing = self.mongo().describe_options(ns).await;
        let existing = existing.map_err(|error| classify::read_error(&error))?;
        if !existing.is_some_and(|existing| existing.kind == Kind::View) {
            return Ok(false);
        }
        tracing::info!(%ns, "a view in Atlas makes way for a collection, or for another view");
        let command = rawdoc! { "drop": ns.coll(), "writeConcern": { "w": "majority" } };
        let reply = self.send_order(ns.db(), command).await?;
        super::atlas::changed(reply, &format!("`dropCollection` on `{ns}`")).map(|_| true)
    }

    /// Makes way for documents. What is to be made in the place of a view is not known here.
    pub(super) async fn make_way(
        &self,
        ns: &Namespace,
        (code, error): (i32, String),
    ) -> Result<(), SinkError> {
        if code == classify::OTHER_CAPITALS {
            return self.make_room(ns, &error).await;
        }
        let what = "Atlas has a view where the local database had a collection";
        Err(SinkError::Held(what.to_owned()))
    }

    /// Drops the database that has the name in other capitals, when nothing is left in it: the local server has
    /// dropped it before it took this one.
    async fn make_room(&self, ns: &Namespace, message: &str) -> Result<(), SinkError> {
        let other =
            message.split_once("already have: [").and_then(|(_, rest)| rest.split_once(']'));
        let other = other.map(|(db, _)| db).filter(|db| db.eq_ignore_ascii_case(ns.db()));
        let in_the_way = |what: &str| {
            let db = other.unwrap_or("of other capitals");
            SinkError::Held(format!(
                "Atlas has a database `{db}`, {what}, and keeps no two whose names differ in capitals alone"
            ))
        };
        let Some(db) = other else { return Err(in_the_way("which it does not name")) };
        if self.drop_if_emptied(db).await? {
            return Ok(());
        }
        Err(in_the_way("which still holds something"))
    }

    /// Drops a database in which the server has nothing but what it keeps for itself. False where there is more.
    pub(super) async fn drop_if_emptied(&self, db: &str) -> Result<bool, SinkError> {
        let _alone = self.changing.write().await;
        let listed = self.mongo().list_collections(db).await;
        let listed = listed.map_err(|error| classify::read_error(&error))?;
        let name = |item: &RawDocument| get(item, "name").and_then(Value::text).map(str::to_owned);
        let is_the_servers = |name: String| matches!(&*name, "system.views" | "system.profile");
        if !listed.iter().all(|item| name(item).is_some_and(is_the_servers)) {
            return Ok(false);
        }
        tracing::info!(db, "a database that was emptied is dropped in Atlas");
        let command = rawdoc! { "dropDatabase": 1, "writeConcern": { "w": "majority" } };
        match self.send_order(db, command).await? {
            Ok(reply) => super::reply::confirmed(&reply).map(|()| true),
            Err(error) => {
                let needs = format!("`dropDatabase` on the database `{db}`");
                Err(match classify::schema_error(&error, &needs) {
                    SinkError::Unanswered(problem) => {
                        SinkError::DropUnanswered { db: db.to_owned(), problem }
                    }
                    error => error,
                })
            }
        }
    }
}

/// Why nothing was made.
enum CreateFailure {
    IsThere,
    Other(SinkError),
}

impl From<SinkError> for CreateFailure {
    fn from(error: SinkError) -> Self {
        CreateFailure::Other(error)
    }
}

/// What is told among the options and is none that `create` takes: the `_id` index is the new collection's own,
/// and `temp`, which `$out` sets, is the server's ("the 'temp' field is an invalid option").
const NOT_OPTIONS: [&str; 4] = ["idIndex", "uuid", "autoIndexId", "temp"];

/// `create` with the options as the local server tells them, in a change event or in `listCollections`.
fn create_command(
    ns: &Namespace,
    options: &RawDocument,
    write_concern: RawDocumentBuf,
) -> RawDocumentBuf {
    value::command("create", ns.coll(), |command: &mut Builder| {
        command.extend(&without(options, &NOT_OPTIONS));
        command.push(crate::model::raw::kind::DOCUMENT, "writeConcern", write_concern.as_bytes());
    })
}
