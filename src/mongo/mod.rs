//! The driver, as both ends use it: a connected client whose every wait has an end.

use std::{sync::Arc, time::Duration};

use bson::{Document, RawDocument, RawDocumentBuf};
use futures_util::StreamExt;
use mongodb::{
    options::ClientOptions,
    raw_batch_cursor::{RawBatch, RawBatchCursor},
};
use tokio::sync::Mutex;

use crate::{
    config::Uri,
    gate::{Gate, Permit},
    model::{
        namespace::Namespace,
        raw::{self, Element, Malformed, kind},
    },
    observe::metrics::{Counter, Gauge},
    runtime::clock::now_ms,
};

mod at_work;
mod cause;
pub mod class;
mod connections;
mod describe;
mod ending;
mod explained;
mod guard;
mod lenient;
mod lookup;
mod records;
mod renewal;
mod seeds;
mod trusting;

use ending::{Ended, IDLE_MAX};
pub use explained::Explained;
pub use guard::process_of;
use guard::{Guard, noting};
pub use lookup::{finds, majority_after};
/// What a cursor brought at once.
pub use mongodb::raw_batch_cursor::RawBatch as Reply;
use renewal::{Place, Print, Renewal};
pub use seeds::STANDALONE_HINT;
use trusting::{compressors, trusting};

/// A failed exchange with a server.
#[derive(Debug, Clone, thiserror::Error)]
pub enum MongoError {
    /// The peer went silent: no answer and no reset. A half-open socket looks like this.
    #[error("no answer within {0:?}")]
    Silent(Duration),
    /// The driver's own account.
    #[error("{}", cause::describe(.0))]
    Driver(mongodb::error::Error),
    /// The same, with what was found out about it.
    #[error("{0}")]
    Explained(Arc<Explained>),
    /// The connection string does not work. Its text, which may hold a password, is not repeated.
    #[error("the connection string is not usable: {0}")]
    BadUri(String),
    /// Whoever answers at the local address is not proven to be the database that the queue was filled from:
    /// the connection broke, another server answers, and the [gate](crate::gate) has not opened yet.
    #[error("it is not certain yet that this is the same database as before")]
    Unproven,
}

impl From<mongodb::error::Error> for MongoError {
    fn from(error: mongodb::error::Error) -> Self {
        MongoError::Driver(lenient::refusal(&error).unwrap_or(error))
    }
}

impl MongoError {
    /// True when what was asked for may have reached the server, or may still reach it.
    pub fn may_come_true(&self) -> bool {
        match self {
            MongoError::Silent(_) => true,
            other => {
                other.code().is_some_and(class::is_unanswered_behind_a_router)
                    || other.driver().is_some_and(cause::may_be_sent)
            }
        }
    }

    /// The server's error code, if a server answered with one.
    pub fn code(&self) -> Option<i32> {
        match self.driver()?.kind.as_ref() {
            mongodb::error::ErrorKind::Command(command) => Some(command.code),
            _ => None,
        }
    }
}

/// How a client connects.
#[derive(Clone, Debug, Default)]
pub struct Connect {
    /// Which end it is, for the log.
    pub end: &'static str,
    /// Longest wait for an answer.
    pub timeout: Duration,
    /// Compressors to offer, in this order.
    pub compressors: Vec<String>,
    /// Longest wait for a server that takes the command.
    pub select_for: Duration,
    /// What must be open before an answer is believed.
    pub gate: Option<Arc<Gate>>,
}

/// A client, and which one it is.
#[derive(Clone, Debug)]
struct ClientSlot {
    client: Arc<Ended>,
    number: u64,
    options: Arc<ClientOptions>,
    /// The print of the string and files that it was made of. `None` where they could not be read: then the next look
    /// finds them changed, and tries again.
    print: Option<Print>,
    /// The print of the system's certificates, where the string names none of its own.
    authorities: Option<Print>,
    place: Arc<Place>,
}

/// One of the two ends.
#[derive(Clone, Debug)]
pub struct Mongo {
    uri: Uri,
    connect: Connect,
    /// Made when it is first needed and can be made: `mongodb+srv://` asks the name service, which may
    /// be away like anything else.
    client: Arc<Mutex<Option<ClientSlot>>>,
    /// Bytes of the replies that cursors brought, before any compression of the wire.
    received: Arc<Counter>,
    /// Bytes of the commands that were sent, likewise.
    sent: Arc<Counter>,
    /// When the server last answered anything, milliseconds since 1970.
    heard_ms: Arc<Gauge>,
    /// See [`at_work_since`](Self::at_work_since).
    at_work_since: Arc<Gauge>,
    guard: Guard,
    renewal: Arc<Renewal>,
    /// See [`explained`](Self::explained).
    found: Arc<explained::Latest>,
}

impl Mongo {
    /// Prepares a client. Connects lazily: a server, or a name service, that is away is no error here.
    ///
    /// # Errors
    /// [`MongoError::BadUri`].
    pub async fn connect(uri: &Uri, connect: &Connect) -> Result<Self, MongoError> {
        let mongo = Self {
            uri: uri.clone(),
            connect: connect.clone(),
            client: Arc::default(),
            received: Arc::default(),
            sent: Arc::default(),
            heard_ms: Arc::default(),
            at_work_since: Arc::default(),
            guard: connect.gate.clone().map_or(Guard::None, Guard::of),
            renewal: Arc::default(),
            found: Arc::default(),
        };
        match mongo.client().await {
            Err(error @ MongoError::BadUri(_)) => Err(error),
            Ok(_) | Err(_) => Ok(mongo),
        }
    }

    async fn client(&self) -> Result<ClientSlot, MongoError> {
        let mut slot = self.client.lock().await;
        if let Some(slot) = &*slot {
            self.look_for_renewal(slot);
            return Ok(slot.clone());
        }
        let timeout = self.connect.timeout;
        let uri = self.uri_now().await;
        let made = tokio::time::timeout(timeout, self.make_client(&uri))
            .await
            .unwrap_or(Err(MongoError::Silent(timeout)))?;
        Ok(slot.insert(made).clone())
    }

    /// Gives up a client whose server has not answered: its other connections are most likely as dead, and
    /// each would cost another timeout. What is under way on them goes on.
    async fn give_up(&self, number: u64) {
        let mut slot = self.client.lock().await;
        if slot.as_ref().is_some_and(|slot| slot.number == number) {
            *slot = None;
        }
    }

    async fn make_client(&self, uri: &Uri) -> Result<ClientSlot, MongoError> {
        let connect = &self.connect;
        // Before the files are read for use. In the other order a change in between would be taken for the state in use,
        // and never be noticed.
        let print =
            renewal::print_of(uri).map_err(|error| MongoError::BadUri(error.to_string()))?;
        let authorities = renewal::print_of_authorities(uri);
        let bad = |error| explained::of_the_string(uri, error);
        let mut options = ClientOptions::parse(uri.expose()).await.map_err(bad)?;
        options.app_name.get_or_insert_with(|| "outrigger".to_owned());
        options.server_selection_timeout = Some(connect.select_for);
        if connect.gate.is_some() {
            options.cmap_event_handler = Some(guard::handler());
        }
        options.connect_timeout.get_or_insert(Duration::from_secs(10));
        if options.compressors.is_none() && !connect.compressors.is_empty() {
            options.compressors = Some(compressors(&connect.compressors));
        }
        options.max_idle_time = Some(IDLE_MAX);
        let client = trusting(options.clone()).map_err(bad)?;
        Ok(ClientSlot {
            client,
            number: fastrand::u64(..),
            options: Arc::new(options),
            print: Some(print),
            authorities,
            place: Place::of(uri),
        })
    }

    /// Runs a command that answers with one document.
    ///
    /// # Errors
    /// [`MongoError`]; an answer of `ok: 0` is one too.
    pub async fn command(&self, db: &str, command: RawDocumentBuf) -> Result<Document, MongoError> {
        self.command_within(db, command, self.connect.timeout).await
    }

    /// As [`command`](Self::command), for one that the server may work on for longer: an index build.
    ///
    /// # Errors
    /// As [`command`](Self::command); the server may go on with it after [`MongoError::Silent`].
    pub async fn command_within(
        &self,
        db: &str,
        command: RawDocumentBuf,
        timeout: Duration,
    ) -> Result<Document, MongoError> {
        let permit = self.enter().await?;
        let slot = self.client().await?;
        let exchanged = noting(Box::pin(self.exchange(&slot, db, command, timeout))).await;
        let reply = self.believed(&permit, &slot, exchanged).await;
        self.explained(&slot, reply).await
    }

    async fn exchange(
        &self,
        ClientSlot { client, number, .. }: &ClientSlot,
        db: &str,
        command: RawDocumentBuf,
        timeout: Duration,
    ) -> Result<Document, MongoError> {
        self.sent.add(command.as_bytes().len() as u64);
        let db = client.database(db);
        let exchange = async {
            match db.run_raw_command(command).await {
                Err(error) => lenient::reply(&error).ok_or_else(|| error.into()),
                reply => Ok(reply?),
            }
        };
        let reply = tokio::time::timeout(timeout, exchange)
            .await
            .unwrap_or(Err(MongoError::Silent(timeout)));
        if matches!(reply, Err(MongoError::Silent(_))) {
            self.give_up(*number).await;
        }
        self.note_answer(&reply);
        reply
    }

    /// A refusal is an answer too.
    fn note_answer<T>(&self, reply: &Result<T, MongoError>) {
        if reply.as_ref().err().is_none_or(|error| error.code().is_some()) {
            self.heard_ms.set(now_ms());
        }
    }

    /// When the server last answered anything, milliseconds since 1970; 0: never.
    pub fn heard_ms(&self) -> u64 {
        self.heard_ms.get()
    }

    /// Silence counts from now on, not from the last answer.
    pub fn silent_from_now(&self) {
        self.heard_ms.set(now_ms());
    }

    /// Runs a command that opens a cursor.
    ///
    /// # Errors
    /// [`MongoError`].
    pub async fn cursor(
        &self,
        db: &str,
        command: RawDocumentBuf,
    ) -> Result<BatchCursor, MongoError> {
        self.open(db, command, None, None).await
    }

    /// As [`cursor_of`](Self::cursor_of), for a cursor without an end: where there is nothing, the server waits for
    /// something, up to `await_for`. While it looks for something it is waited for without bound.
    ///
    /// # Errors
    /// [`MongoError`].
    pub async fn tail(
        &self,
        db: &str,
        command: RawDocumentBuf,
        await_for: Duration,
        page: u32,
    ) -> Result<BatchCursor, MongoError> {
        self.open(db, command, Some(await_for), Some(page)).await
    }

    /// As [`cursor`](Self::cursor), with so many documents in each reply but the first, whose number the
    /// command tells.
    ///
    /// # Errors
    /// [`MongoError`].
    pub async fn cursor_of(
        &self,
        db: &str,
        command: RawDocumentBuf,
        page: u32,
    ) -> Result<BatchCursor, MongoError> {
        self.open(db, command, None, Some(page)).await
    }

    async fn open(
        &self,
        db: &str,
        mut command: RawDocumentBuf,
        await_for: Option<Duration>,
        page: Option<u32>,
    ) -> Result<BatchCursor, MongoError> {
        let mark = await_for.map(|_| Self::mark());
        if let Some(mark) = &mark {
            command.append(bson::raw::cstr!("comment"), &**mark);
        }
        let permit = self.enter().await?;
        let slot = self.client().await?;
        self.sent.add(command.as_bytes().len() as u64);
        let db = slot.client.database(db);
        let mut action = db.run_raw_cursor_command(command);
        if let Some(page) = page {
            action = action.batch_size(page);
        }
        if let Some(await_for) = await_for {
            action =
                action.cursor_type(mongodb::options::CursorType::TailableAwait).max_time(await_for);
        }
        let opening = self.bounded(mark.as_deref(), async { Ok(action.batch().await?) });
        let (opened, taken) = noting(Box::pin(opening)).await;
        if matches!(opened, Err(MongoError::Silent(_))) {
            self.give_up(slot.number).await;
        }
        self.note_answer(&opened);
        let opened = self.believed(&permit, &slot, (opened, taken)).await;
        let cursor = self.explained(&slot, opened).await?;
        Ok(BatchCursor { cursor, mongo: self.clone(), slot, permit, mark })
    }

    /// Closes the cursors of reads that were broken off, which the server would keep for ten minutes, and all connections.
    /// Without it the driver's tasks complain while the runtime goes down. A server that does not answer is not waited for.
    pub async fn close(&self) {
        // Held by somebody who makes a client just now, which may take seconds: there is nothing to close yet.
        let Ok(mut slot) = self.client.try_lock() else { return };
        let Some(ClientSlot { client, .. }) = slot.take() else { return };
        ending::end(&client, Duration::from_millis(300)).await;
    }

    /// Bytes of all replies that cursors brought so far, as BSON: what the wire carries is less where it
    /// is compressed.
    pub fn received(&self) -> u64 {
        self.received.get()
    }

    /// Bytes of all commands that were sent so far, as BSON: what the wire carries is less where it is
    /// compressed.
    pub fn sent(&self) -> u64 {
        self.sent.get()
    }

    /// The longest that the server may work on a command: less than its answer is waited for, so that
    /// a write that was given up does not come true later.
    pub fn server_time_max(&self) -> Duration {
        self.connect.timeout.mul_f64(0.9)
    }

    async fn bounded<T>(
        &self,
        mark: Option<&str>,
        exchange: impl Future<Output = Result<T, MongoError>>,
    ) -> Result<T, MongoError> {
        if let Some(mark) = mark {
            return Box::pin(self.while_at_work(mark, exchange)).await;
        }
        tokio::time::timeout(self.connect.timeout, exchange)
            .await
            .unwrap_or(Err(MongoError::Silent(self.connect.timeout)))
    }

    /// `hello`: who answers and in which role.
    pub async fn hello(&self) -> Result<Document, MongoError> {
        self.command("admin", bson::rawdoc! { "hello": 1 }).await
    }

    /// The server's version, such as `6.0.5`.
    pub async fn version(&self) -> Result<String, MongoError> {
        let info = self.command("admin", bson::rawdoc! { "buildInfo": 1 }).await?;
        Ok(info.get_str("version").unwrap_or("unknown").to_owned())
    }

    /// `listCollections` of one database: name, type, options, info.
    pub async fn list_collections(&self, db: &str) -> Result<Vec<RawDocumentBuf>, MongoError> {
        let command = bson::rawdoc! { "listCollections": 1, "cursor": { "batchSize": 1000 } };
        self.items(db, command).await
    }

    /// True when a collection holds no document, or is not there.
    pub async fn is_empty(&self, ns: &Namespace) -> Result<bool, MongoError> {
        let command = bson::rawdoc! { "find": ns.coll(), "limit": 1, "projection": { "_id": 1 } };
        let mut cursor = self.cursor(ns.db(), command).await?;
        match cursor.next().await? {
            Some(reply) => Ok(documents(&reply)?.is_empty()),
            None => Ok(true),
        }
    }
}

/// A cursor that hands out the server's replies as they came.
pub struct BatchCursor {
    cursor: RawBatchCursor,
    mongo: Mongo,
    /// The client that it belongs to.
    slot: ClientSlot,
    /// The permit under which it was opened. Once that has ended, a reply may come from another database under the same
    /// cursor, and is thrown away.
    permit: Permit,
    /// Of a cursor without an end.
    mark: Option<Arc<str>>,
}

impl BatchCursor {
    /// Under which its replies were read.
    pub fn permit(&self) -> &Permit {
        &self.permit
    }

    /// The next reply, or `None` when the cursor is exhausted. An empty batch of a change stream is
    /// a reply as well.
    ///
    /// # Errors
    /// [`MongoError`]; [`MongoError::Silent`] after the client's timeout.
    pub async fn next(&mut self) -> Result<Option<RawBatch>, MongoError> {
        let Self { cursor, mongo, slot, permit, mark } = self;
        if !permit.holds() {
            return Err(MongoError::Unproven);
        }
        let exchange = async { Ok(cursor.next().await.transpose()?) };
        let (reply, taken) = noting(Box::pin(mongo.bounded(mark.as_deref(), exchange))).await;
        if matches!(reply, Err(MongoError::Silent(_))) {
            mongo.give_up(slot.number).await;
        }
        mongo.note_answer(&reply);
        let reply = mongo.believed(permit, slot, (reply, taken)).await;
        let reply = mongo.explained(slot, reply).await?;
        let bytes = reply.as_ref().map_or(0, |reply| reply.as_raw_document().as_bytes().len());
        mongo.received.add(bytes as u64);
        Ok(reply)
    }
}

/// What a server has answered with is not what it should be.
pub fn malformed(error: Malformed) -> MongoError {
    MongoError::Driver(mongodb::error::Error::custom(error.to_string()))
}

/// The documents of a reply.
pub fn documents(batch: &RawBatch) -> Result<Vec<&RawDocument>, MongoError> {
    let list = RawDocument::from_bytes(batch.doc_slices()?.as_bytes())
        .map_err(mongodb::error::Error::from)?;
    raw::elements(list)
        .map(|element| match element? {
            Element { kind: kind::DOCUMENT, value, .. } => raw::nested(value),
            _ => Err(Malformed("a batch holds what is no document".into())),
        })
        .collect::<Result<_, _>>()
        .map_err(malformed)
}
