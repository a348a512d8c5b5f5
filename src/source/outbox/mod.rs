//! A table of events as a source: the application writes a row with each change, in the same transaction, and its
//! documents are made of them.
//!
//! ```text
//!   application ──BEGIN; its change; a row of the outbox; COMMIT──▶ table ──processed_at IS NULL, in order──▶ stream
//!                                                                     ▲                                         │
//!                                                                     └── marked: the queue has it on its disk ─┘
//! ```
//!
//! The files in their order: `json` (values), `route` (what a row asks for), `table` (what makes the table), `shape` (what
//! it is found to be like, and the statements), `lease` and `turn` (one reads), `stream`, `upkeep`, `waiting`; `renewed` (a
//! document of all its rows), `key`, `tables` and `pages` (those that are compared); `look` (before a start).
//!
//! # What is proven by what
//!
//! - *No row is lost.* A row is marked in the step that is behind the queue's disk, and a queue that does not have what is
//!   marked has every document renewed of which a row is there. Rows of long ago are gone by then: what they say is compared.
//! - *In order.* A transaction that changes an entity after another one has waited for its lock, so its row has the higher
//!   number and is seen by nobody who does not see the other. Both are read in one statement, in their order.
//! - *As often as it takes.* Each op says what fields are, and none what they were before. So rows that are read once more,
//!   in their order and to the last, end where they ended before.

pub mod json;
mod key;
mod lease;
mod look;
mod pages;
mod renewed;
pub mod route;
mod shape;
mod stream;
pub mod table;
mod tables;
mod turn;
mod upkeep;
mod waiting;

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use bson::RawDocumentBuf;
use parking_lot::Mutex;

use self::{
    lease::Held,
    route::Routes,
    shape::{NotSeen, Shape, Unfit},
    stream::{Position, fenced},
    tables::NotRead,
    turn::overtaken,
    waiting::Progress,
};
pub use self::{
    look::{Flaw, Looked},
    pages::OutboxPages,
    stream::{COLLECTION, OutboxStream},
    tables::{Stretch, Tables, Walked},
    turn::Whose,
};
use super::{Cause, Page, SchemaSource, Source, SourceError, StartFrom};
use crate::{
    config::{Config, ConfigError, IndexRule, Outbox},
    gate::lease::Lease,
    model::{
        checkpoint::{ClusterTime, PositionKind},
        document_key::DocumentKey,
        event::CollectionId,
        namespace::Namespace,
        write_op::WriteOp,
    },
    postgres::{
        class::Class,
        connect::{Failed, Postgres},
        listen::Listener,
    },
    runtime::{
        clock::now_ms,
        crash::{self, CrashPoint},
    },
    schema::{Claim, Description, Kind},
};

/// Connections: one reads, one marks, one renews the lease, one deletes, one counts what waits, one looks documents up.
const CONNECTIONS: usize = 6;

/// What the positions count.
pub const POSITIONS: PositionKind = PositionKind::named("rows of an outbox");

/// For an answer.
const TIMEOUT: Duration = Duration::from_secs(30);

/// The name under which rows are kept that make no sense: no database of the target.
const OWN_DATABASE: &str = "outbox";

/// See the [module](self).
#[derive(Clone)]
pub struct OutboxSource(Arc<Inner>);

struct Inner {
    db: Postgres,
    config: Outbox,
    routes: Routes,
    /// With the indexes that they are to have, as `listIndexes` would tell them.
    collections: Vec<(Namespace, Vec<RawDocumentBuf>)>,
    tables: Tables,
    /// Of the rows themselves, for what makes no sense.
    own: Namespace,
    progress: Mutex<Progress>,
    /// Up to where rows are marked: held while they are.
    marked: tokio::sync::Mutex<u64>,
    /// The right to read, while this agent has it, and who is told of that.
    held: Mutex<Option<Arc<Held>>>,
    fence: OnceLock<Arc<Lease>>,
}

impl Inner {
    /// The stream has come to this position.
    fn reached(&self, position: &mut Position) {
        let mut progress = self.progress.lock();
        if position.renewing.is_none() {
            position.number = position.number.max(std::mem::take(&mut progress.renewed_at));
        }
        progress.renewing.clone_from(&position.renewing);
        progress.number = progress.number.max(position.number);
    }

    fn number(&self) -> u64 {
        self.progress.lock().number
    }

    async fn shape(&self) -> Result<Shape, SourceError> {
        let mut session = self.db.session().await.map_err(away)?;
        match Shape::see(&mut session, &self.config, &self.routes).await {
            Ok(shape) => Ok(shape),
            Err(NotSeen::Failed(failed)) => Err(away(failed)),
            Err(NotSeen::Unfit(Unfit(problem))) => Err(SourceError::Unfit {
                problem,
                hint: "`outrigger outbox init` prints what makes the table, with all that is read of it".to_owned(),
            }),
        }
    }
}

/// What a failed statement means for who reads.
fn away(failed: Failed) -> SourceError {
    let cause = Cause::Other(failed.problem.clone());
    match failed.class {
        Class::Unavailable | Class::Conflict => SourceError::Unavailable(cause),
        Class::Denied => SourceError::Denied {
            advice: "`outrigger outbox init --user NAME` prints what the reader's user needs"
                .to_owned(),
            source: cause,
        },
        Class::Rejected => SourceError::Failed(cause),
    }
}

/// The name under which an outbox keeps what is no collection's.
pub fn own_of(config: &Config) -> Namespace {
    let bare = config.outbox.table.rsplit('.').next().unwrap_or("outbox");
    Namespace::new(OWN_DATABASE, bare)
}

impl OutboxSource {
    /// Connects nowhere yet.
    ///
    /// # Errors
    /// Where the configuration has no such source, or a connection string that is none.
    pub fn new(config: &Config) -> Result<Self, ConfigError> {
        let uri = config.outbox_uri()?;
        let db = Postgres::new(uri.expose(), CONNECTIONS, TIMEOUT)
            .map_err(|error| ConfigError::invalid("outbox.uri", error.to_string()))?;
        Ok(Self(Arc::new(Inner {
            db,
            config: config.outbox.clone(),
            routes: Routes::new(config.routes.routes.clone()),
            collections: config
                .routes
                .collections()
                .into_iter()
                .map(|ns| (ns.clone(), config.routes.indexes(ns).into_iter().map(spec).collect()))
                .collect(),
            own: own_of(config),
            tables: Tables::new(
                config.routes.tables.clone(),
                config.routes.routes.clone(),
                config.outbox.clone(),
            ),
            progress: Mutex::default(),
            marked: tokio::sync::Mutex::default(),
            held: Mutex::default(),
            fence: OnceLock::new(),
        })))
    }

    /// Its database.
    pub fn postgres(&self) -> &Postgres {
        &self.0.db
    }

    /// What the stream has come to.
    pub fn come_to(&self) -> ClusterTime {
        ClusterTime(self.0.number())
    }

    /// What is declared of a collection beside its documents; `None` where nothing leads to it.
    pub fn declared(&self, ns: &Namespace) -> Option<Description> {
        self.0.collections.iter().find(|(of, _)| of == ns).map(|(_, indexes)| Description {
            kind: Kind::Collection,
            claim: Claim::Named,
            id: Some(COLLECTION),
            options: RawDocumentBuf::new(),
            indexes: indexes.clone(),
        })
    }

    /// The collections of which indexes are declared.
    pub fn indexed(&self) -> impl Iterator<Item = &Namespace> {
        self.0.collections.iter().filter(|(_, indexes)| !indexes.is_empty()).map(|(ns, _)| ns)
    }

    /// The tables whose rows are documents.
    pub fn tables(&self) -> &Tables {
        &self.0.tables
    }

    /// The documents of a stretch of a table; none of a collection that has none.
    ///
    /// # Errors
    /// When the database cannot be asked, or a row is none.
    pub async fn walk(&self, ns: &Namespace, stretch: Stretch<'_>) -> Result<Walked, SourceError> {
        let none = Walked { documents: Vec::new(), is_end: true };
        let Some(rule) = self.0.tables.of(ns) else { return Ok(none) };
        self.0.tables.walk(&self.0.db, rule, stretch).await.map_err(not_read)
    }

    /// As [`walk`](Self::walk), by key.
    ///
    /// # Errors
    /// As of [`walk`](Self::walk).
    pub async fn find(
        &self,
        ns: &Namespace,
        keys: impl Iterator<Item = &DocumentKey> + Send,
    ) -> Result<Vec<RawDocumentBuf>, SourceError> {
        let Some(rule) = self.0.tables.of(ns) else { return Ok(Vec::new()) };
        self.0.tables.find(&self.0.db, rule, keys).await.map_err(not_read)
    }

    /// Keys of a table by chance, in order.
    ///
    /// # Errors
    /// As of [`walk`](Self::walk).
    pub async fn sample(&self, ns: &Namespace, keys: u64) -> Result<Vec<DocumentKey>, SourceError> {
        let Some(rule) = self.0.tables.of(ns) else { return Ok(Vec::new()) };
        self.0.tables.sample(&self.0.db, rule, keys).await.map_err(not_read)
    }

    /// How many rows a table has.
    ///
    /// # Errors
    /// As of [`walk`](Self::walk).
    pub async fn count(&self, ns: &Namespace) -> Result<u64, SourceError> {
        let Some(rule) = self.0.tables.of(ns) else { return Ok(0) };
        self.0.tables.count(&self.0.db, rule).await.map_err(not_read)
    }

    /// How many rows a table has, and about how many bytes each.
    ///
    /// # Errors
    /// As of [`walk`](Self::walk).
    pub async fn measure(&self, ns: &Namespace) -> Result<(u64, u64), SourceError> {
        let Some(rule) = self.0.tables.of(ns) else { return Ok((0, 0)) };
        self.0.tables.measure(&self.0.db, rule).await.map_err(not_read)
    }

    /// Whether a table has no rows.
    ///
    /// # Errors
    /// As of [`walk`](Self::walk).
    pub async fn is_empty(&self, ns: &Namespace) -> Result<bool, SourceError> {
        let Some(rule) = self.0.tables.of(ns) else { return Ok(true) };
        self.0.tables.is_empty(&self.0.db, rule).await.map_err(not_read)
    }

    async fn start(&self, wanted: Position, is_new: bool) -> Result<OutboxStream, SourceError> {
        let mut position = wanted;
        let lease = self.0.turn(&position.reader).await?.map_err(|holder| {
            let waits = "; this one waits until its lease has run out";
            SourceError::Unavailable(Cause::Other(format!(
                "another agent reads the outbox ({holder}){waits}"
            )))
        })?;
        let shape = Arc::new(self.0.shape().await?);
        let mut session = self.0.db.session().await.map_err(away)?;
        let seen = lease::look(&mut session, &shape).await.map_err(away)?;
        let seen = seen.filter(|seen| !seen.reader.is_empty());
        match seen.as_ref().map(|seen| (seen, overtaken(seen, &position))) {
            Some((_, Some(why))) if !is_new => return Err(lost(why)),
            // What another queue has had may not be in the target.
            Some((seen, Some(_))) => {
                position.number = position.number.max(whole_number(seen.position) + 1);
                position.renewing = Some(Vec::new());
            }
            None if !is_new => return Err(lost("nothing is known of who has read the outbox")),
            Some((_, None)) | None => {}
        }
        let at = i64::try_from(position.number).unwrap_or(i64::MAX);
        // Behind the rows that are still to be marked.
        let marked = seen.as_ref().filter(|seen| seen.reader == position.reader);
        let at = marked.map_or(at, |seen| seen.position);
        let begun = lease::begin(&mut session, &shape, lease.term, (&position.reader, at));
        if !begun.await.map_err(away)? {
            return Err(fenced());
        }
        crash::point(CrashPoint::ReaderNoted);
        drop(session);
        let listener = if self.0.config.listen { self.listen().await } else { None };
        let unmarked = (position.rows.len() + position.refused.len()) as u64;
        *self.0.marked.lock().await = position.number.saturating_sub(unmarked);
        self.0.reached(&mut position.clone());
        let open = Position { renewing: None, ..position.clone() };
        position.rows.clear();
        position.refused.clear();
        let is_open = !open.rows.is_empty() || !open.refused.is_empty();
        Ok(OutboxStream {
            source: self.0.clone(),
            shape,
            lease,
            position,
            open: if is_open { vec![open] } else { Vec::new() },
            listener,
            is_first: true,
        })
    }

    async fn listen(&self) -> Option<Listener> {
        let listener = Listener::start(&self.0.db, table::CHANNEL).await;
        listener
            .inspect_err(|error| {
                tracing::debug!(error = %error.problem, "the database does not tell of new rows; they are looked for");
            })
            .ok()
    }
}

/// An index as a server would tell of it.
fn spec(rule: &IndexRule) -> RawDocumentBuf {
    let keys = rule.keys.iter();
    let keys: bson::Document = keys
        .map(|(path, up)| (path.clone(), bson::Bson::Int32(if *up { 1 } else { -1 })))
        .collect();
    let mut spec = bson::doc! { "key": keys, "name": rule.name() };
    if rule.unique {
        spec.insert("unique", true);
    }
    RawDocumentBuf::try_from(&spec).expect("no path of the configuration has a zero byte")
}

fn not_read(error: NotRead) -> SourceError {
    match error {
        NotRead::Failed(failed) => away(failed),
        NotRead::NoDocument(problem) => SourceError::Failed(Cause::Other(problem)),
    }
}

fn whole_number(of: i64) -> u64 {
    u64::try_from(of).unwrap_or(0)
}

fn lost(why: &str) -> SourceError {
    SourceError::HistoryLost(Cause::Other(why.to_owned()))
}

impl Source for OutboxSource {
    type Stream = OutboxStream;
    type Pages = OutboxPages;

    fn positions(&self) -> PositionKind {
        POSITIONS
    }

    async fn open(&self, from: &StartFrom) -> Result<OutboxStream, SourceError> {
        match from {
            StartFrom::Token(token) => {
                let position = Position::of(token)
                    .ok_or_else(|| lost("the checkpoint is of another source"))?;
                self.start(position, false).await
            }
            StartFrom::Now | StartFrom::Time(_) => {
                let reader = uuid::Uuid::new_v4().to_string();
                // Above those of any earlier reader of the same queue.
                let number = now_ms().saturating_mul(1_000);
                self.start(Position { reader, number, ..Position::default() }, true).await
            }
        }
    }

    async fn read(
        &self,
        ns: &Namespace,
        keys: &[&DocumentKey],
        _: ClusterTime,
    ) -> Result<OutboxPages, SourceError> {
        if self.0.tables.of(ns).is_some() {
            return Ok(OutboxPages::found(self, ns, keys));
        }
        let read_at = ClusterTime(self.0.number());
        let mut documents: Vec<RawDocumentBuf> = Vec::new();
        for op in renewed::folded(&self.0, ns, keys).await? {
            match op {
                Some(WriteOp::Insert(document) | WriteOp::Replace(document)) => {
                    documents.push(document);
                }
                // What no row says the whole of any more is not shown, which is no reason to delete it: documents are
                // renewed, and not read, where they are to be written.
                Some(
                    WriteOp::Delete | WriteOp::Merge(_) | WriteOp::Update(_) | WriteOp::Refresh,
                )
                | None => {}
            }
        }
        Ok(OutboxPages::Read(Some(Page { documents, read_at })))
    }

    async fn renew(
        &self,
        ns: &Namespace,
        keys: &[&DocumentKey],
    ) -> Result<Option<Vec<Option<WriteOp>>>, SourceError> {
        if *ns == self.0.own {
            return renewed::read_again(&self.0, keys).await.map(Some);
        }
        if self.0.tables.of(ns).is_some() {
            return Ok(None);
        }
        renewed::folded(&self.0, ns, keys).await.map(Some)
    }

    fn is_own(&self, ns: &Namespace) -> bool {
        *ns == self.0.own
    }

    async fn time(&self) -> Result<ClusterTime, SourceError> {
        let mut session = self.0.db.session().await.map_err(away)?;
        session.query("SELECT 1", &[]).await.map_err(away)?;
        Ok(ClusterTime(self.0.number()))
    }
}

impl SchemaSource for OutboxSource {
    async fn describe(&self, ns: &Namespace) -> Result<Option<Description>, SourceError> {
        Ok(self.declared(ns))
    }

    fn tells_of_schema(&self) -> bool {
        true
    }

    async fn collection_id(&self, ns: &Namespace) -> Result<Option<CollectionId>, SourceError> {
        Ok(self.declared(ns).map(|_| COLLECTION))
    }
}
