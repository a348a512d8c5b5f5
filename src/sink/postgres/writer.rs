//! The sink: what the worker writes, into tables that are made when the first of it comes.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::{Duration, Instant},
};

use bson::RawDocumentBuf;
use parking_lot::Mutex;
use tokio_postgres::types::Type;

use super::{
    batch::{self, Outcome, RowWrite},
    change::{self, Change},
    connect::{Failed, Postgres, Session},
    copy,
    fence::Fence,
    items::{items_of, size},
    names::{OWN_SCHEMA, quoted},
    obstacle,
    row::Rows,
    table::Table,
};
use crate::{
    config::{Config, ConfigError, Exact, Mapping},
    model::{
        event::{SchemaChange, is_series},
        namespace::Namespace,
        write_op::Refusal,
    },
    observe::misfits::Misfits,
    policy::{copy_mode::CopyMode, limiter::Limiter},
    schema::{Claim, Description, Kind, value},
    sink::{
        Changed, ConflictingWrite, CurrentOwner, SchemaSink, Sink, SinkError, Taken, Write, Written,
    },
};

/// For an answer.
const TIMEOUT: Duration = Duration::from_secs(30);

/// PostgreSQL as a [`Sink`], and with collections of its own as a [`SchemaSink`].
///
/// Each document has its row, whatever is in it, and what a row cannot say is in `outrigger.failures`. In a program of
/// one's own ([`Builder::sink`](crate::agent::Builder::sink)) it is told nothing of collections as such: a table whose
/// collection is dropped keeps its rows. Nobody asks there whose copy it is: two agents that write into one database
/// are not told of each other.
pub struct PostgresSink {
    pg: Postgres,
    mapping: Mapping,
    exact: Exact,
    fence: Option<Fence>,
    limiter: Mutex<Limiter>,
    /// Tables that are there, as far as is known.
    made: Mutex<HashMap<Namespace, Made>>,
    misfits: Arc<Misfits>,
}

/// A table that is there.
#[derive(Clone)]
struct Made {
    rows: Arc<Rows>,
    mode: CopyMode,
}

/// The rows that a table has, or why it cannot be made until a person makes way for it.
type Making = Result<Made, String>;

impl PostgresSink {
    /// With the address, and the columns, that the configuration says. Connects nowhere yet.
    ///
    /// # Errors
    /// [`ConfigError`], where the target is another, or its address is none.
    pub fn new(config: &Config) -> Result<Self, ConfigError> {
        let uri = config.postgres_uri()?;
        let pg = Postgres::new(uri.expose(), config.worker.lanes, TIMEOUT)
            .map_err(|error| ConfigError::invalid("postgres.uri", error.to_string()))?;
        Ok(Self::of(pg, config.mapping.clone(), config.postgres.exact, None))
    }

    /// Writes only what `fence` lets through, where there is one.
    pub fn of(pg: Postgres, mapping: Mapping, exact: Exact, fence: Option<Fence>) -> Self {
        let (limiter, made, misfits) = (Mutex::default(), Mutex::default(), Arc::default());
        Self { pg, mapping, exact, fence, limiter, made, misfits }
    }

    /// Within the rates of `limiter`.
    #[must_use]
    pub fn limited(self, limiter: Limiter) -> Self {
        Self { limiter: Mutex::new(limiter), ..self }
    }

    /// Counts in `misfits` what columns cannot take.
    #[must_use]
    pub fn counting(self, misfits: Arc<Misfits>) -> Self {
        Self { misfits, ..self }
    }

    /// Whether what is declared can be made: why not, where a table that is another's has a name that it needs.
    ///
    /// # Errors
    /// Where PostgreSQL could not be asked.
    pub async fn in_the_way(&self) -> Result<Option<String>, SinkError> {
        let columns = self.mapping.columns.iter().map(|(ns, _)| ns);
        let children = self.mapping.children.iter().map(|(ns, _)| ns);
        let declared: BTreeSet<_> = columns.chain(children).collect();
        let tables: Vec<_> = declared.into_iter().map(|ns| self.table_of(ns)).collect();
        obstacle::in_the_way(&mut self.pg.session().await?, &tables).await
    }

    /// How many values of another type a column was given, which are NULL there, by collection and column. Each time
    /// that it was written counts.
    pub fn misfits(&self) -> BTreeMap<(Namespace, String), u64> {
        self.misfits.all()
    }

    fn count_misfits(&self, ns: &Namespace, items: &[RowWrite]) {
        let rows = items.iter().filter_map(|item| match item {
            RowWrite::Row(row) => Some(row),
            RowWrite::Delete(_) => None,
        });
        self.misfits.add(ns, rows.flat_map(|row| &row.misfits));
    }

    /// The table of a collection, which is made where it is not known to be there.
    async fn table(&self, session: &mut Session, ns: &Namespace) -> Result<Making, SinkError> {
        let known = self.made.lock().get(ns).cloned();
        if let Some(made) = known {
            return Ok(Ok(made));
        }
        let rows = Arc::new(Rows::of(Table::of(ns, &self.mapping), self.exact));
        // In a program of one's own there is nobody who could compare it.
        if self.fence.is_some()
            && let Some(gone) = obstacle::gone(session, &rows.table).await?
        {
            return Err(SinkError::Gone(gone));
        }
        match change::apply(session, self.fence.as_ref(), Change::Make(&rows.table)).await {
            Ok(_) => {}
            Err(SinkError::Held(reason)) => return Ok(Err(reason)),
            Err(error) => return Err(error),
        }
        let made = Made { rows, mode: CopyMode::default() };
        self.made.lock().insert(ns.clone(), made.clone());
        Ok(Ok(made))
    }

    async fn written(
        &self,
        ns: &Namespace,
        writes: &[Write<'_>],
        changed_ms: &[Option<u64>],
    ) -> Result<Vec<Written>, SinkError> {
        let mut session = self.pg.session().await?;
        // What is written late may be of a collection that has gone, and a table would be made for nothing.
        if writes.iter().all(|write| matches!(write, Write::Delete(_)))
            && !self.made.lock().contains_key(ns)
            && !obstacle::is_there(&mut session, &Table::of(ns, &self.mapping)).await?
        {
            return Ok(vec![Written::Applied { created: false }; writes.len()]);
        }
        let are_inserts = writes.iter().all(|write| matches!(write, Write::Insert(_)));
        let mut is_second_time = false;
        loop {
            let made = match self.table(&mut session, ns).await? {
                Ok(made) => made,
                Err(reason) => {
                    let refusal = Refusal::Schema;
                    return Ok(vec![Written::Rejected { reason, refusal }; writes.len()]);
                }
            };
            let (items, mut written) = items_of(&made.rows, writes, changed_ms).await;
            self.count_misfits(ns, &items);
            match self.outcomes(&mut session, &made, &items, are_inserts).await {
                Ok(outcomes) => {
                    let mut outcomes = outcomes.into_iter();
                    for slot in &mut written {
                        if slot.is_none() {
                            *slot = outcomes.next().map(as_written);
                        }
                    }
                    return Ok(written.into_iter().flatten().collect());
                }
                // Somebody has dropped it, or this agent made it before the collection was dropped and made again.
                Err(failed) if batch::is_of_the_table(&failed) && !is_second_time => {
                    is_second_time = true;
                    self.made.lock().remove(ns);
                    session.abandon();
                    session = self.pg.session().await?;
                }
                Err(failed) => return Err(failed.into()),
            }
        }
    }

    /// By `COPY` where none of it is there, as far as can be told.
    async fn outcomes(
        &self,
        session: &mut Session,
        made: &Made,
        items: &[RowWrite],
        are_inserts: bool,
    ) -> Result<Vec<Outcome>, Failed> {
        let (fence, table) = (self.fence.as_ref(), &made.rows.table);
        let rows = items.iter().filter(|item| item.row().is_some()).count();
        let may_copy =
            rows >= copy::ROWS_MIN && rows == items.len() && made.mode.is_worth_it(are_inserts);
        let mut may_be_done = false;
        if may_copy {
            match copy::copy(session, fence, table, items).await {
                Ok(true) => return Ok(vec![Outcome::Done { created: true }; rows]),
                Ok(false) => {}
                // The driver tells of a COPY that the server has refused at its begin as of a connection that was closed.
                // On another one it is found out what is the matter; the same rows may be written twice, and the first
                // time still come about.
                Err(failed) if failed.state.is_none() && !failed.is_late() => {
                    may_be_done = failed.may_be_done;
                    session.abandon();
                }
                Err(failed) => return Err(failed),
            }
            if !session.is_clean() {
                let renewed = session.renew(&self.pg).await;
                renewed.map_err(|failed| failed.behind(may_be_done))?;
            }
        }
        let written = batch::write(session, fence, table, items).await;
        let outcomes = written.map_err(|failed| failed.behind(may_be_done))?;
        let is_new = |outcome: &&Outcome| **outcome == Outcome::Done { created: true };
        let created = outcomes.iter().filter(is_new).count();
        let is_told = rows >= copy::ROWS_MIN;
        if let Some(made) = self.made.lock().get_mut(&table.ns).filter(|_| is_told) {
            made.mode.upserted(are_inserts, may_copy, rows, created);
        }
        Ok(outcomes)
    }

    fn table_of(&self, ns: &Namespace) -> Table {
        Table::of(ns, &self.mapping)
    }

    /// The number that a statement finds about a table; `None` where it is not there.
    async fn number(&self, sql: &str, table: &Table) -> Result<Option<i64>, SinkError> {
        let mut session = self.pg.session().await?;
        let name = table.quoted();
        match session.query(sql, &[(&name, Type::TEXT)]).await {
            Ok(rows) => Ok(rows.first().and_then(|row| row.try_get(0).ok())),
            Err(failed) if batch::is_of_the_table(&failed) => Ok(None),
            Err(failed) => Err(failed.into()),
        }
    }
}

fn as_written(outcome: Outcome) -> Written {
    match outcome {
        Outcome::Done { created } => Written::Applied { created },
        // unique_violation: of an index that somebody has made on a declared column.
        Outcome::Refused { reason, state } if state == "23505" => {
            Written::Conflict { reason, taken: Taken::default() }
        }
        Outcome::Refused { reason, state } => {
            let refusal = match &state[..2.min(state.len())] {
                "23" => Refusal::Validation,
                "54" => Refusal::TooLarge,
                _ => Refusal::Other,
            };
            Written::Rejected { reason, refusal }
        }
    }
}

impl Sink for PostgresSink {
    async fn write(&self, ns: &Namespace, writes: &[Write<'_>]) -> Result<Vec<Written>, SinkError> {
        self.write_changes(ns, writes, &vec![None; writes.len()]).await
    }

    async fn write_changes(
        &self,
        ns: &Namespace,
        writes: &[Write<'_>],
        changed_ms: &[Option<u64>],
    ) -> Result<Vec<Written>, SinkError> {
        let (ops_max, bytes_max) = {
            let limiter = self.limiter.lock();
            (limiter.ops_max(usize::MAX), limiter.bytes_max(usize::MAX))
        };
        let mut written = Vec::with_capacity(writes.len());
        let mut rest = writes;
        while !rest.is_empty() {
            let (now, later) = rest.split_at(part(rest, ops_max, bytes_max));
            let bytes = now.iter().map(size).sum();
            let wait = self.limiter.lock().throttle(Instant::now(), now.len(), bytes);
            if !wait.is_zero() {
                tokio::time::sleep(wait).await;
            }
            let changed_ms = &changed_ms[written.len()..][..now.len()];
            written.extend(self.written(ns, now, changed_ms).await?);
            rest = later;
        }
        Ok(written)
    }
}

/// How many of the first go at once within a rate: one at least.
fn part(writes: &[Write<'_>], ops_max: usize, bytes_max: usize) -> usize {
    let mut bytes: usize = 0;
    let fits = writes.iter().take_while(|write| {
        bytes = bytes.saturating_add(size(write));
        bytes <= bytes_max
    });
    fits.count().clamp(1, ops_max)
}

impl SchemaSink for PostgresSink {
    /// Validators and indexes of a MongoDB mean nothing here.
    fn carries_options(&self) -> bool {
        false
    }

    /// An index that is unique is a person's own here, and whose value it has is not looked up: what frees the value comes
    /// in its turn, and until then the write is tried again.
    async fn owners(
        &self,
        _: &Namespace,
        conflicting: &[ConflictingWrite],
    ) -> Result<Vec<Vec<CurrentOwner>>, SinkError> {
        Ok(vec![Vec::new(); conflicting.len()])
    }

    async fn change_schema(&self, change: &SchemaChange) -> Result<Changed, SinkError> {
        let mut session = self.pg.session().await?;
        let fence = self.fence.as_ref();
        {
            let mut made = self.made.lock();
            change.namespaces().iter().for_each(|ns| drop(made.remove(ns)));
        }
        match change {
            SchemaChange::Create { options, .. }
                if value::get(options, "viewOn").is_some() || is_series(options) =>
            {
                Ok(Changed::Done)
            }
            SchemaChange::Create { ns, .. } => {
                change::apply(&mut session, fence, Change::Make(&self.table_of(ns))).await
            }
            SchemaChange::Drop { ns } | SchemaChange::DropIfGone { ns } => {
                change::apply(&mut session, fence, Change::Drop(&self.table_of(ns))).await
            }
            SchemaChange::Rename { from, to, .. } => {
                let (from, to) = (self.table_of(from), self.table_of(to));
                change::apply(&mut session, fence, Change::Rename { from: &from, to: &to }).await
            }
            SchemaChange::Reconcile { .. } => Ok(Changed::Done),
        }
    }

    /// A schema stays: who may read it was said to PostgreSQL by a person.
    async fn drop_emptied(&self, _: &str) -> Result<bool, SinkError> {
        Ok(false)
    }

    async fn loosen(&self, _: &Namespace, _: &str) -> Result<bool, SinkError> {
        Ok(false)
    }

    async fn describe(&self, ns: &Namespace) -> Result<Option<Description>, SinkError> {
        let own = quoted(OWN_SCHEMA);
        let sql = format!(
            "SELECT count(*) FROM {own}.tables WHERE to_regclass($1) IS NOT NULL \
             AND to_regclass($1) = to_regclass(format('%I.%I', table_schema, table_name))"
        );
        let is_there = self.number(&sql, &self.table_of(ns)).await?.is_some_and(|count| count > 0);
        let (id, options, indexes) = (None, RawDocumentBuf::new(), Vec::new());
        let kind = Kind::Collection;
        Ok(is_there.then_some(Description { kind, claim: Claim::Whole, id, options, indexes }))
    }

    async fn estimated_count(&self, ns: &Namespace) -> Result<u64, SinkError> {
        let sql = "SELECT n_live_tup FROM pg_stat_user_tables WHERE relid = to_regclass($1)";
        let count = self.number(sql, &self.table_of(ns)).await?.unwrap_or_default();
        Ok(count.try_into().unwrap_or_default())
    }

    async fn alter(&self, _: &Namespace, _: RawDocumentBuf) -> Result<(), SinkError> {
        Ok(())
    }
}
