//! Options and indexes of one collection: what differs, and the steps that mend it.

use std::time::Duration;

use bson::{Document, RawArrayBuf, RawDocumentBuf, rawdoc};

use super::{
    SyncError,
    ends::{Attempts, End, Ends},
};
use crate::{
    mongo::{Mongo, MongoError, documents},
    namespace::Namespace,
    schema::{IndexChange, OptionChange, creation, index_changes, option_changes},
    shutdown::Stop,
};

/// How long one attempt waits for an index to be built. The server goes on building, and the next attempt
/// joins it.
const BUILD_PATIENCE: Duration = Duration::from_secs(600);

const NAMESPACE_NOT_FOUND: i32 = 26;
const INDEX_NOT_FOUND: i32 = 27;

/// What keeps the copy of a collection from being like the original.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SchemaDifferences {
    pub options: Vec<OptionChange>,
    pub indexes: Vec<IndexChange>,
}

impl SchemaDifferences {
    /// A sentence each.
    pub fn sentences(&self) -> Vec<String> {
        let options = self.options.iter().map(ToString::to_string);
        options.chain(self.indexes.iter().map(ToString::to_string)).collect()
    }
}

/// Compares the options that were listed, and the indexes as they are now.
///
/// # Errors
/// When an end stays away for longer than patience lasts, or refuses.
pub async fn schema_differences(
    ends: &Ends,
    ns: &Namespace,
    original: End,
    options: (&RawDocumentBuf, &RawDocumentBuf),
    stop: &Stop,
) -> Result<SchemaDifferences, SyncError> {
    let copy = match original {
        End::Local => End::Atlas,
        End::Atlas => End::Local,
    };
    let wanted = indexes_of(ends, original, ns, stop).await?;
    let there = indexes_of(ends, copy, ns, stop).await?;
    let decode = |options: &RawDocumentBuf| Document::try_from(options).unwrap_or_default();
    Ok(SchemaDifferences {
        options: option_changes(&decode(options.0), &decode(options.1)),
        indexes: index_changes(&wanted, &there),
    })
}

/// The indexes of a collection; none where it is not there.
///
/// # Errors
/// When the end stays away for longer than patience lasts, or refuses.
pub async fn indexes_of(
    ends: &Ends,
    end: End,
    ns: &Namespace,
    stop: &Stop,
) -> Result<Vec<Document>, SyncError> {
    let mut attempts = ends.attempts(stop);
    loop {
        match list(ends.of(end), ns).await {
            Ok(indexes) => return Ok(indexes),
            Err(error) => attempts.failed(end.error(error)).await?,
        }
    }
}

async fn list(mongo: &Mongo, ns: &Namespace) -> Result<Vec<Document>, MongoError> {
    let command = rawdoc! { "listIndexes": ns.coll(), "cursor": { "batchSize": 1_000 } };
    let mut cursor = match mongo.cursor(ns.db(), command, None).await {
        Err(error) if error.code() == Some(NAMESPACE_NOT_FOUND) => return Ok(Vec::new()),
        cursor => cursor?,
    };
    let mut indexes = Vec::new();
    while let Some(reply) = cursor.next().await? {
        for spec in documents(&reply)? {
            indexes.push(Document::try_from(spec).map_err(mongodb::error::Error::from)?);
        }
    }
    Ok(indexes)
}

/// Makes the steps on the copy. What it will not take is no error: it comes back as a sentence each, with
/// the server's reason.
///
/// # Errors
/// When the end stays away for longer than patience lasts, or refuses access.
pub async fn mend(
    ends: &Ends,
    copy: End,
    ns: &Namespace,
    differences: SchemaDifferences,
    stop: &Stop,
) -> Result<Vec<String>, SyncError> {
    let mut target =
        Target { ends, end: copy, ns, attempts: ends.attempts(stop), stop, left: Vec::new() };
    for change in differences.options {
        match &change {
            OptionChange::Modify { fields, .. } => {
                let mut command = Document::from_iter([("collMod".to_owned(), ns.coll().into())]);
                command.extend(fields.clone());
                target.run(&change, raw(&command)).await?;
            }
            OptionChange::Fixed { .. } => target.left.push(target.say(&change)),
        }
    }
    let mut builds = Vec::new();
    for change in differences.indexes {
        match &change {
            IndexChange::Drop { name } => target.drop_index(&change, name).await?,
            IndexChange::Modify { changes, .. } => {
                let command = rawdoc! { "collMod": ns.coll(), "index": raw(changes) };
                target.run(&change, command).await?;
            }
            IndexChange::Create { spec } => builds.push((target.say(&change), spec.clone())),
            IndexChange::Replace { spec } => {
                target.drop_index(&change, change.name()).await?;
                builds.push((target.say(&change), spec.clone()));
            }
        }
    }
    target.build(builds).await?;
    Ok(target.left)
}

struct Target<'a> {
    ends: &'a Ends,
    end: End,
    ns: &'a Namespace,
    attempts: Attempts<'a>,
    stop: &'a Stop,
    /// What could not be done.
    left: Vec<String>,
}

impl Target<'_> {
    /// What differs, in words that fit the direction.
    fn say(&self, what: &impl ToString) -> String {
        match self.end {
            End::Atlas => what.to_string(),
            End::Local => what.to_string().replace(" in Atlas", " in the local database"),
        }
    }

    async fn drop_index(&mut self, what: &IndexChange, name: &str) -> Result<(), SyncError> {
        self.run(what, rawdoc! { "dropIndexes": self.ns.coll(), "index": name }).await
    }

    async fn run(
        &mut self,
        what: &impl ToString,
        command: RawDocumentBuf,
    ) -> Result<(), SyncError> {
        if let Err(reason) = self.send(&command).await? {
            self.left.push(format!("{}: {reason}", self.say(what)));
        }
        Ok(())
    }

    /// All at once, which reads the collection once; where that is refused, one by one, so that one that
    /// cannot be built keeps none of the others away.
    async fn build(&mut self, builds: Vec<(String, Document)>) -> Result<(), SyncError> {
        let command = |specs: &[(String, Document)]| {
            let mut indexes = RawArrayBuf::new();
            for (_, spec) in specs {
                indexes.push(raw(&creation(spec)));
            }
            rawdoc! { "createIndexes": self.ns.coll(), "indexes": indexes }
        };
        let all = command(&builds);
        let each: Vec<_> = builds.chunks(1).map(command).collect();
        if builds.is_empty() || self.send(&all).await?.is_ok() {
            return Ok(());
        }
        for ((what, _), command) in builds.iter().zip(each) {
            if let Err(reason) = self.send(&command).await? {
                let is_aborted = reason.contains("IndexBuildAborted");
                self.left.push(format!("{what}: {reason}"));
                if is_aborted {
                    break; // Dropped meanwhile: building the next would make the collection again.
                }
            }
        }
        Ok(())
    }

    /// Runs a command until it is done or refused; the inner error is the reason.
    async fn send(&mut self, command: &RawDocumentBuf) -> Result<Result<(), String>, SyncError> {
        let mongo = self.ends.of(self.end);
        loop {
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
            let message = error.to_string();
            let error = self.end.error(error);
            if error.is_refusal() {
                return Ok(Err(without_values(&message)));
            }
            self.attempts.failed(error).await?;
        }
    }
}

/// A server's message without the values of documents that it quotes.
fn without_values(message: &str) -> String {
    message.split(" dup key:").next().unwrap_or_default().to_owned()
}

fn raw(document: &Document) -> RawDocumentBuf {
    RawDocumentBuf::try_from(document).unwrap_or_default()
}
