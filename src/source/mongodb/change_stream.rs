//! The cluster's change stream, read raw.
//!
//! One stream for all databases (`aggregate: 1` on `admin` with `allChangesForCluster`), so that the
//! order of changes across collections is the server's own. The driver's typed events lack
//! `operationDescription` and `collectionUUID`, and decode every document on the way; so the
//! command is built here and its replies are read as raw BSON.
//!
//! An event may be larger than a reply can be (16 MiB): a large `_id` stands in it four times. The
//! server then answers `BSONObjectTooLarge`, for ever, at that position. The stream gets past it
//! with a *slim* one that leaves the contents out, so that each event it shows becomes a `Refresh`,
//! and returns to the full one behind it. `$changeStreamSplitLargeEvent` would do the same, from
//! 6.0.9 on; this works everywhere.

use std::{collections::VecDeque, time::Duration};

use bson::{RawArrayBuf, RawDocument, RawDocumentBuf, Timestamp, rawdoc};
use mongodb::raw_batch_cursor::RawBatch;
use tokio::task::JoinHandle;

use super::{
    error_class::UNKNOWN_FIELD,
    fitness::{SourceInfo, last_entry},
};
use crate::{
    gate::Permit,
    model::{
        checkpoint::{ClusterTime, PositionKind, ResumeToken},
        document_key::DocumentKey,
        event::{ChangeEvent, CollectionId},
        namespace::{Interner, Namespace, NamespaceFilter},
        raw::Malformed,
    },
    mongo::{BatchCursor, Mongo, MongoError, class::BSON_OBJECT_TOO_LARGE, documents, finds},
    policy::position::Replies,
    schema::Description,
    source::{EventBatch, EventStream, Page, Pages, SchemaSource, Source, SourceError, StartFrom},
};

/// Changes when the pipeline changes in a way that makes old tokens unusable. Part of the
/// checkpoint's fingerprint, beside the filter's.
pub const PIPELINE_VERSION: &str = "2";

/// How long the server waits for news before it answers with an empty batch.
const AWAIT: Duration = Duration::from_secs(1);

/// Most events of a reply. Without it a reply has up to 16 MiB, of which several are in memory at the same time,
/// and the queue gets nothing of it before all of it is here.
const REPLY_EVENTS: u32 = 2_000;

/// How long changes gather at the server after a reply with few of them. Asked again at once, the server answers with
/// every single change as it comes, and each costs it an answer, the queue a commit, Atlas a command: at 1,000 writes a
/// second that took half a core. Who writes after a pause does not wait: the server has been asked by then.
const GATHER: Duration = Duration::from_millis(25);

/// A reply of less than this has few changes.
const SMALL_REPLY: usize = 128 << 10;

/// The local database as production reads it.
#[derive(Clone)]
pub struct ChangeStreamSource {
    mongo: Mongo,
    filter: NamespaceFilter,
    options: StreamOptions,
}

/// What the server can show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum StreamOptions {
    /// 6.0+: schema changes, collection UUIDs, exact diffs.
    Exact,
    /// 6.0+ without the exact diffs; each update is a `Refresh`.
    Expanded,
    /// 5.0: neither.
    Plain,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Contents {
    Full,
    Slim,
}

impl ChangeStreamSource {
    /// Reads from `mongo`, which [`inspect`](super::inspect) found to be `info`.
    pub fn new(mongo: Mongo, filter: NamespaceFilter, info: &SourceInfo) -> Self {
        let options = if info.major >= 6 { StreamOptions::Exact } else { StreamOptions::Plain };
        Self { mongo, filter, options }
    }

    fn command(
        &self,
        from: &StartFrom,
        options: StreamOptions,
        contents: Contents,
    ) -> RawDocumentBuf {
        let mut stage = rawdoc! { "allChangesForCluster": true };
        match options {
            StreamOptions::Exact => {
                stage.append(bson::raw::cstr!("showExpandedEvents"), true);
                stage.append(bson::raw::cstr!("showRawUpdateDescription"), true);
            }
            StreamOptions::Expanded => stage.append(bson::raw::cstr!("showExpandedEvents"), true),
            StreamOptions::Plain => {}
        }
        match from {
            StartFrom::Now => {}
            // `startAfter` and not `resumeAfter`: it also accepts the token of an invalidation.
            StartFrom::Token(token) => {
                stage.append(bson::raw::cstr!("startAfter"), token.0.clone());
            }
            StartFrom::Time(time) => {
                stage.append(bson::raw::cstr!("startAtOperationTime"), Timestamp::from(*time));
            }
        }
        let mut pipeline = RawArrayBuf::new();
        pipeline.push(rawdoc! { "$changeStream": stage });
        pipeline.push(self.filter.to_match_stage());
        let mut cursor = RawDocumentBuf::new();
        if contents == Contents::Slim {
            pipeline.push(rawdoc! { "$project": {
                "fullDocument": 0, "updateDescription": 0, "rawUpdateDescription": 0,
            } });
            cursor.append(bson::raw::cstr!("batchSize"), 1);
        }
        rawdoc! { "aggregate": 1, "pipeline": pipeline, "cursor": cursor }
    }

    async fn open_cursor(
        &self,
        from: &StartFrom,
        contents: Contents,
    ) -> Result<(BatchCursor, StreamOptions), MongoError> {
        let open = |options| {
            self.mongo.tail("admin", self.command(from, options, contents), AWAIT, REPLY_EVENTS)
        };
        match open(self.options).await {
            // An option of the server that is not documented may go as it came: exactness does not
            // depend on it, only the number of local reads does.
            Err(error)
                if error.code() == Some(UNKNOWN_FIELD) && self.options == StreamOptions::Exact =>
            {
                Ok((open(StreamOptions::Expanded).await?, StreamOptions::Expanded))
            }
            Err(error) => Err(error),
            Ok(cursor) => Ok((cursor, self.options)),
        }
    }
}

impl Source for ChangeStreamSource {
    type Stream = ChangeStream;
    type Pages = FindPages;

    fn positions(&self) -> PositionKind {
        PositionKind::CLUSTER_TIME
    }

    async fn open(&self, from: &StartFrom) -> Result<ChangeStream, SourceError> {
        let state = match self.open_cursor(from, Contents::Full).await {
            Ok((cursor, _)) => StreamState::Full(ReadAhead::of(cursor)),
            Err(error) if error.code() == Some(BSON_OBJECT_TOO_LARGE) => {
                StreamState::Slim(Box::new(self.open_cursor(from, Contents::Slim).await?.0))
            }
            Err(error) => return Err(error.into()),
        };
        Ok(ChangeStream {
            source: self.clone(),
            state,
            position: from.clone(),
            replies: Replies::default(),
        })
    }

    async fn read(
        &self,
        ns: &Namespace,
        keys: &[&DocumentKey],
        after: ClusterTime,
    ) -> Result<FindPages, SourceError> {
        // Read at least as far as the change that is being written.
        let commands = finds(ns, keys.iter().copied(), after).collect();
        let (mongo, db) = (self.mongo.clone(), ns.db().to_owned());
        Ok(FindPages { mongo, db, commands, cursor: None })
    }

    async fn time(&self) -> Result<ClusterTime, SourceError> {
        let hello = self.mongo.hello().await?;
        let now = hello.get_timestamp("operationTime").map(ClusterTime::from);
        now.map_err(|_| SourceError::Malformed(Malformed("a server without a time".to_owned())))
    }

    async fn last_entry(&self) -> Result<Option<ClusterTime>, SourceError> {
        last_entry(&self.mongo).await
    }

    fn permit(&self) -> Permit {
        self.mongo.permit()
    }
}

impl SchemaSource for ChangeStreamSource {
    async fn describe(&self, ns: &Namespace) -> Result<Option<Description>, SourceError> {
        Ok(self.mongo.describe(ns).await?)
    }

    fn tells_of_schema(&self) -> bool {
        self.options != StreamOptions::Plain
    }

    async fn collection_id(&self, ns: &Namespace) -> Result<Option<CollectionId>, SourceError> {
        let command = rawdoc! {
            "listCollections": 1,
            "filter": { "name": ns.coll() },
            "cursor": {},
        };
        let mut cursor = self.mongo.cursor(ns.db(), command).await?;
        let Some(batch) = cursor.next().await? else {
            return Ok(None);
        };
        Ok(documents(&batch)?.first().and_then(|collection| {
            let info = crate::model::raw::subdocument(collection, "info")?;
            info.get("uuid").ok().flatten().and_then(CollectionId::from_raw)
        }))
    }
}

/// An open change stream.
pub struct ChangeStream {
    source: ChangeStreamSource,
    state: StreamState,
    /// Behind everything that was handed out.
    position: StartFrom,
    /// What the replies of the cursor have proven.
    replies: Replies,
}

enum StreamState {
    Full(ReadAhead),
    /// At an event that is too large to be shown.
    Slim(Box<BatchCursor>),
    /// Past it.
    Past,
}

/// A cursor whose next reply is asked for before the last one is looked at: the server works on it
/// meanwhile. One reply, of 16 MiB at the most, waits here.
struct ReadAhead(Option<Asked>);

type Asked = JoinHandle<(BatchCursor, Result<Option<RawBatch>, MongoError>)>;

impl ReadAhead {
    fn of(cursor: BatchCursor) -> Self {
        Self::after(Duration::ZERO, cursor)
    }

    fn after(wait: Duration, mut cursor: BatchCursor) -> Self {
        Self(Some(tokio::spawn(async move {
            if !wait.is_zero() {
                tokio::time::sleep(wait).await;
            }
            let reply = cursor.next().await;
            (cursor, reply)
        })))
    }

    /// Safe to drop half-way. After an error there is no more.
    async fn next(&mut self) -> Result<Option<RawBatch>, MongoError> {
        let Some(asked) = &mut self.0 else { return Ok(None) };
        let answer = asked.await;
        self.0 = None;
        let (cursor, reply) = answer.map_err(|error| {
            // The runtime goes down, or the driver panicked.
            MongoError::Driver(mongodb::error::Error::custom(error.to_string()))
        })?;
        if let Ok(Some(batch)) = &reply {
            let is_small = batch.as_raw_document().as_bytes().len() < SMALL_REPLY;
            *self = Self::after(if is_small { GATHER } else { Duration::ZERO }, cursor);
        }
        reply
    }
}

impl Drop for ReadAhead {
    fn drop(&mut self) {
        if let Some(asked) = &self.0 {
            asked.abort();
        }
    }
}

impl EventStream for ChangeStream {
    async fn next(&mut self) -> Result<EventBatch, SourceError> {
        loop {
            let batch = match &mut self.state {
                StreamState::Full(cursor) => match cursor.next().await {
                    Err(error) if error.code() == Some(BSON_OBJECT_TOO_LARGE) => {
                        tracing::info!(
                            "an event is too large to be shown; its document is read instead"
                        );
                        let slim = self.source.open_cursor(&self.position, Contents::Slim).await?;
                        (self.state, self.replies) =
                            (StreamState::Slim(Box::new(slim.0)), Replies::default());
                        continue;
                    }
                    reply => events_of(reply?, &mut self.replies)?,
                },
                StreamState::Slim(cursor) => {
                    let batch = events_of(cursor.next().await?, &mut self.replies)?;
                    if !batch.events.is_empty() {
                        self.state = StreamState::Past;
                    }
                    batch
                }
                StreamState::Past => {
                    let stream = self.source.open(&self.position).await?;
                    (self.state, self.replies) = (stream.state, stream.replies);
                    continue;
                }
            };
            self.position = StartFrom::Token(batch.token.clone());
            return Ok(batch);
        }
    }
}

fn events_of(reply: Option<RawBatch>, replies: &mut Replies) -> Result<EventBatch, SourceError> {
    let reply = reply.ok_or_else(|| {
        // A cluster's stream has no end; the server closed the cursor, so that it is opened again.
        MongoError::Driver(mongodb::error::Error::custom("the change stream ended"))
    })?;
    let raw_events = documents(&reply)?;
    let mut events = Vec::with_capacity(raw_events.len());
    let mut namespaces = Interner::default();
    for event in &raw_events {
        events.push(ChangeEvent::parse_one_of(event, &mut namespaces)?);
    }
    let token = position_of(reply.as_raw_document(), raw_events.last().copied())?;
    let cluster_time = token
        .cluster_time()
        .or_else(|| events.last().map(|event| event.cluster_time))
        .unwrap_or_default();
    // A server that does not tell its time has proven nothing by it.
    let server_time = reply.as_raw_document().get_timestamp("operationTime");
    let server_time = server_time.map(ClusterTime::from).unwrap_or_default();
    let whole = replies.next(cluster_time, events.is_empty(), server_time);
    Ok(EventBatch { events, token, cluster_time, whole })
}

/// The `postBatchResumeToken`, which every reply of 4.0.7 and later carries.
fn position_of(reply: &RawDocument, last: Option<&RawDocument>) -> Result<ResumeToken, Malformed> {
    crate::model::raw::subdocument(reply, "cursor")
        .and_then(|cursor| crate::model::raw::subdocument(cursor, "postBatchResumeToken"))
        .or_else(|| crate::model::raw::subdocument(last?, "_id"))
        .map(ResumeToken::from_raw)
        .ok_or_else(|| Malformed("a reply without a resume token".to_owned()))
}

/// Documents of a `find`.
pub struct FindPages {
    mongo: Mongo,
    db: String,
    /// What is still to be asked.
    commands: VecDeque<RawDocumentBuf>,
    cursor: Option<BatchCursor>,
}

impl FindPages {
    async fn reply(&mut self) -> Result<Option<RawBatch>, MongoError> {
        loop {
            if let Some(cursor) = &mut self.cursor
                && let Some(reply) = cursor.next().await?
            {
                return Ok(Some(reply));
            }
            let Some(command) = self.commands.pop_front() else { return Ok(None) };
            self.cursor = Some(self.mongo.cursor(&self.db, command).await?);
        }
    }
}

impl Pages for FindPages {
    async fn next(&mut self) -> Result<Option<Page>, SourceError> {
        let Some(reply) = self.reply().await? else {
            return Ok(None);
        };
        let read_at = reply.as_raw_document().get_timestamp("operationTime").map(ClusterTime::from);
        let documents = documents(&reply)?.into_iter().map(ToOwned::to_owned).collect();
        // A server that does not tell the time of a read could have read anything up to now.
        Ok(Some(Page { documents, read_at: read_at.unwrap_or(ClusterTime(u64::MAX)) }))
    }
}
