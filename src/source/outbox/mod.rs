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
//! it is found to be like, and the statements), `lease` (one reads), `stream`, `upkeep`; `tables` (those that are compared); `look` (before a start).
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
mod lease;
mod look;
pub mod route;
mod shape;
mod stream;
pub mod table;
mod tables;
mod upkeep;

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bson::RawDocumentBuf;
use futures_util::future::BoxFuture;
use tokio_postgres::types::Type;

use self::{
    lease::Held,
    route::{Routed, Routes},
    shape::{NotSeen, Shape, Unfit},
    stream::Position,
    tables::NotRead,
};
pub use self::{
    look::{Flaw, Looked},
    stream::{COLLECTION, OutboxStream},
    tables::{Stretch, Tables},
};
use super::{Cause, Journal, Page, Pages, SchemaSource, Source, SourceError, StartFrom};
use crate::{
    config::{Config, ConfigError, Outbox},
    model::{
        checkpoint::{ClusterTime, PositionKind},
        document_key::DocumentKey,
        event::CollectionId,
        namespace::Namespace,
        write_op::WriteOp,
    },
    policy::{coalesce::coalesce, majority::Writes},
    postgres::{
        class::Class,
        connect::{Failed, Postgres},
        listen::Listener,
    },
    runtime::clock::now_ms,
    schema::{Description, Kind},
};

/// Connections: one reads, one marks, one renews the lease and deletes, one looks documents up.
const CONNECTIONS: usize = 4;

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
    collections: Vec<Namespace>,
    tables: Tables,
    /// Of the rows themselves, for what makes no sense.
    own: Namespace,
    /// What the stream has come to, and up to where its rows are marked.
    number: AtomicU64,
    marked: AtomicU64,
}

impl Inner {
    fn reached(&self, number: u64) {
        self.number.fetch_max(number, Ordering::Relaxed);
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

impl OutboxSource {
    /// Connects nowhere yet.
    ///
    /// # Errors
    /// Where the configuration has no such source, or a connection string that is none.
    pub fn new(config: &Config) -> Result<Self, ConfigError> {
        let uri = config.outbox_uri()?;
        let db = Postgres::new(uri.expose(), CONNECTIONS, TIMEOUT)
            .map_err(|error| ConfigError::invalid("outbox.uri", error.to_string()))?;
        let bare = config.outbox.table.rsplit('.').next().unwrap_or("outbox");
        Ok(Self(Arc::new(Inner {
            db,
            config: config.outbox.clone(),
            routes: Routes::new(config.routes.routes.clone()),
            collections: config.routes.collections().into_iter().cloned().collect(),
            own: Namespace::new(OWN_DATABASE, bare),
            tables: Tables::new(
                config.routes.tables.clone(),
                config.routes.routes.clone(),
                config.outbox.clone(),
            ),
            number: AtomicU64::new(0),
            marked: AtomicU64::new(0),
        })))
    }

    /// Its database.
    pub fn postgres(&self) -> &Postgres {
        &self.0.db
    }

    /// What the stream has come to.
    pub fn come_to(&self) -> ClusterTime {
        ClusterTime(self.0.number.load(Ordering::Relaxed))
    }

    /// The tables whose rows are documents.
    pub fn tables(&self) -> &Tables {
        &self.0.tables
    }

    /// The documents of a stretch of a table; none of a collection that has none.
    ///
    /// # Errors
    /// When the database cannot be asked, or a row is none.
    pub async fn walk(
        &self,
        ns: &Namespace,
        stretch: Stretch<'_>,
    ) -> Result<Vec<RawDocumentBuf>, SourceError> {
        let Some(rule) = self.0.tables.of(ns) else { return Ok(Vec::new()) };
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

    /// The position at which all rows have been read that are committed now.
    ///
    /// # Errors
    /// When the database cannot be asked.
    pub async fn all_read_at(&self) -> Result<ClusterTime, SourceError> {
        let marked = self.0.marked.load(Ordering::Relaxed);
        let (waiting, _) = self.waiting().await?;
        let number = self.0.number.load(Ordering::Relaxed);
        // What is handed out and not marked waits as well: its numbers are given already.
        Ok(ClusterTime(if marked == 0 { number + waiting } else { number.max(marked + waiting) }))
    }

    /// How many rows wait, and how old the oldest is in milliseconds since 1970.
    ///
    /// # Errors
    /// When the database cannot be asked.
    pub async fn waiting(&self) -> Result<(u64, Option<u64>), SourceError> {
        let shape = self.0.shape().await?;
        let mut session = self.0.db.session().await.map_err(away)?;
        let rows = session.query(&shape.waiting(), &[]).await.map_err(away)?;
        Ok(rows.first().map(look::counted).unwrap_or_default())
    }

    /// What the rows that are there make of these documents, one after the other.
    async fn folded(
        &self,
        ns: &Namespace,
        keys: &[&DocumentKey],
    ) -> Result<Vec<Option<WriteOp>>, SourceError> {
        let shape = self.0.shape().await?;
        let mut folded = vec![None; keys.len()];
        let Some((sql, params)) = shape.of_documents(&self.0.routes, ns, keys) else {
            return Ok(folded);
        };
        let places: HashMap<Vec<u8>, usize> =
            keys.iter().enumerate().map(|(at, key)| (key.canonical(), at)).collect();
        let params: Vec<_> = params
            .iter()
            .map(|texts| (texts as &(dyn tokio_postgres::types::ToSql + Sync), Type::TEXT_ARRAY))
            .collect();
        let mut session = self.0.db.session().await.map_err(away)?;
        let rows = session.query(&sql, &params).await.map_err(away)?;
        for row in &rows {
            let Ok(Routed { ns: of, key, op }) = self.0.routes.route(&shape.row(row)) else {
                continue;
            };
            let Some(&at) = places.get(&key.canonical()).filter(|_| of == *ns) else { continue };
            folded[at] = Some(match folded[at].take() {
                Some(before) => coalesce(before, op),
                None => op,
            });
        }
        Ok(folded)
    }

    /// Has rows come again that made no sense before, each with all that is newer of its entity. What is asked for and is
    /// not there any more is `None`.
    async fn read_again(&self, keys: &[&DocumentKey]) -> Result<Vec<Option<WriteOp>>, SourceError> {
        let shape = self.0.shape().await?;
        let id_of = |key: &DocumentKey| Some(key.value().ok()?.as_str()?.to_owned());
        let ids: Vec<String> = keys.iter().filter_map(|key| id_of(key)).collect();
        let mut session = self.0.db.session().await.map_err(away)?;
        let rows =
            session.query(&shape.again(), &[(&ids, Type::TEXT_ARRAY)]).await.map_err(away)?;
        let come: HashSet<String> = rows.iter().filter_map(|row| row.try_get(0).ok()).collect();
        let comes = |key: &&DocumentKey| id_of(key).is_some_and(|id| come.contains(&id));
        Ok(keys.iter().map(|key| comes(key).then_some(WriteOp::Refresh)).collect())
    }

    async fn start(&self, wanted: Position, is_new: bool) -> Result<OutboxStream, SourceError> {
        let shape = Arc::new(self.0.shape().await?);
        let mut session = self.0.db.session().await.map_err(away)?;
        let seen = lease::look(&mut session, &shape).await.map_err(away)?;
        let mut position = wanted;
        let number = |of: i64| u64::try_from(of).unwrap_or(0);
        match &seen {
            Some(seen)
                if seen.reader == position.reader && number(seen.position) > position.number =>
            {
                return Err(lost("the queue is older than what was marked in the outbox from it"));
            }
            Some(seen) if seen.reader == position.reader => {}
            Some(seen) if seen.is_live => {
                return Err(SourceError::Unavailable(Cause::Other(
                    "another agent reads the outbox; this one waits until its lease has run out"
                        .to_owned(),
                )));
            }
            Some(_) if !is_new => {
                return Err(lost("another agent has read the outbox since"));
            }
            // What another queue has had may not be in the target.
            Some(seen) => {
                position.number = position.number.max(number(seen.position) + 1);
                position.renewing = Some(Vec::new());
            }
            None if !is_new => return Err(lost("nothing is known of who has read the outbox")),
            None => {}
        }
        let at = i64::try_from(position.number).unwrap_or(i64::MAX);
        // Behind the rows that are still to be marked.
        let marked = seen.as_ref().filter(|seen| seen.reader == position.reader);
        let at = marked.map_or(at, |seen| seen.position);
        let taken = lease::take(&mut session, &shape, seen.as_ref(), (&position.reader, at)).await;
        let Some(term) = taken.map_err(away)? else {
            return Err(SourceError::Unavailable(Cause::Other(
                "another agent took the outbox's lease at the same moment".to_owned(),
            )));
        };
        drop(session);
        // Renewed from here on, whatever takes long.
        let lease = Held::new(self.0.db.clone(), shape.clone(), term, self.0.config.retention);
        let listener = if self.0.config.listen { self.listen().await } else { None };
        self.0.reached(position.number);
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
            row_bytes: 1 << 10,
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

fn not_read(error: NotRead) -> SourceError {
    match error {
        NotRead::Failed(failed) => away(failed),
        NotRead::NoDocument(problem) => SourceError::Failed(Cause::Other(problem)),
    }
}

fn lost(why: &str) -> SourceError {
    SourceError::HistoryLost(Cause::Other(why.to_owned()))
}

/// Documents, as far as the rows say them whole.
pub struct OutboxPages(Option<Page>);

impl Pages for OutboxPages {
    async fn next(&mut self) -> Result<Option<Page>, SourceError> {
        Ok(self.0.take())
    }
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
        let read_at = ClusterTime(self.0.number.load(Ordering::Relaxed));
        if self.0.tables.of(ns).is_some() {
            let documents = self.find(ns, keys.iter().copied()).await?;
            return Ok(OutboxPages(Some(Page { documents, read_at })));
        }
        let mut documents: Vec<RawDocumentBuf> = Vec::new();
        for op in self.folded(ns, keys).await? {
            match op {
                Some(WriteOp::Insert(document) | WriteOp::Replace(document)) => {
                    documents.push(document);
                }
                Some(WriteOp::Delete) => {}
                Some(WriteOp::Merge(_) | WriteOp::Update(_) | WriteOp::Refresh) | None => {
                    return Err(SourceError::Failed(Cause::Other(
                        "the outbox does not have the whole of a document any more".to_owned(),
                    )));
                }
            }
        }
        Ok(OutboxPages(Some(Page { documents, read_at })))
    }

    async fn renew(
        &self,
        ns: &Namespace,
        keys: &[&DocumentKey],
    ) -> Result<Option<Vec<Option<WriteOp>>>, SourceError> {
        if *ns == self.0.own {
            return self.read_again(keys).await.map(Some);
        }
        if self.0.tables.of(ns).is_some() {
            return Ok(None);
        }
        self.folded(ns, keys).await.map(Some)
    }

    async fn time(&self) -> Result<ClusterTime, SourceError> {
        let mut session = self.0.db.session().await.map_err(away)?;
        session.query("SELECT 1", &[]).await.map_err(away)?;
        Ok(ClusterTime(self.0.number.load(Ordering::Relaxed)))
    }
}

impl Journal for OutboxSource {
    fn last_write(&self) -> BoxFuture<'_, Result<Writes, SourceError>> {
        Box::pin(async {
            let at = self.all_read_at().await?;
            Ok(Writes { written: at, committed: at, delay: Duration::ZERO })
        })
    }

    fn begin(&self) -> BoxFuture<'_, Result<Option<ClusterTime>, SourceError>> {
        Box::pin(std::future::ready(Ok(None)))
    }
}

impl SchemaSource for OutboxSource {
    async fn describe(&self, ns: &Namespace) -> Result<Option<Description>, SourceError> {
        let is_known = self.0.collections.contains(ns);
        let (options, indexes) = (RawDocumentBuf::new(), Vec::new());
        let id = Some(COLLECTION);
        Ok(is_known.then_some(Description { kind: Kind::Collection, id, options, indexes }))
    }

    fn tells_of_schema(&self) -> bool {
        true
    }

    async fn collection_id(&self, ns: &Namespace) -> Result<Option<CollectionId>, SourceError> {
        Ok(self.0.collections.contains(ns).then_some(COLLECTION))
    }
}
