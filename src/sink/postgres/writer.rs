//! The sink: what the worker writes, into tables that are made when the first of it comes.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;

use super::{
    batch::{self, Outcome, RowWrite},
    cell::Cell,
    connect::{Failed, Postgres, Session},
    ddl,
    row::{self, Exact, Rows},
    table::Table,
};
use crate::{
    config::{Config, ConfigError, Mapping},
    model::{namespace::Namespace, write_op::Refusal},
    sink::{Sink, SinkError, Taken, Write, Written},
};

/// Two that make the same table at once wait for each other: PostgreSQL's own `IF NOT EXISTS` does not.
const MAKING: &str = "SELECT pg_advisory_xact_lock(7161820493204185)";

/// For an answer.
const TIMEOUT: Duration = Duration::from_secs(30);

/// PostgreSQL as a [`Sink`], for a program of one's own: see [`Builder::sink`](crate::agent::Builder::sink).
///
/// Each document has its row, whatever is in it, and what a row cannot say is in `outrigger.failures`. As every such
/// sink it is told nothing of collections as such: a table whose collection is dropped keeps its rows. Nobody asks here
/// whose copy it is: two agents that write into one database are not told of each other.
pub struct PostgresSink {
    pg: Postgres,
    mapping: Mapping,
    exact: Exact,
    /// Tables that are there, as far as is known.
    made: Mutex<HashMap<Namespace, Arc<Rows>>>,
    misfits: Mutex<BTreeMap<(Namespace, String), u64>>,
}

impl PostgresSink {
    /// With the address, and the columns, that the configuration says. Connects nowhere yet.
    ///
    /// # Errors
    /// [`ConfigError`], where the target is another, or its address is none.
    pub fn new(config: &Config, exact: Exact) -> Result<Self, ConfigError> {
        let uri = config.postgres_uri()?;
        let pg = Postgres::new(uri.expose(), config.worker.lanes, TIMEOUT)
            .map_err(|error| ConfigError::invalid("postgres.uri", error.to_string()))?;
        Ok(Self {
            pg,
            mapping: config.mapping.clone(),
            exact,
            made: Mutex::default(),
            misfits: Mutex::default(),
        })
    }

    /// How many values of another type a column was given, which are NULL there, by collection and column. Each time
    /// that it was written counts.
    pub fn misfits(&self) -> BTreeMap<(Namespace, String), u64> {
        self.misfits.lock().clone()
    }

    fn count_misfits(&self, ns: &Namespace, items: &[RowWrite]) {
        let rows = items.iter().filter_map(|item| match item {
            RowWrite::Row(row) => Some(row),
            RowWrite::Delete(_) => None,
        });
        let names: Vec<_> = rows.flat_map(|row| &row.misfits).collect();
        if names.is_empty() {
            return;
        }
        let mut misfits = self.misfits.lock();
        for name in names {
            *misfits.entry((ns.clone(), name.clone())).or_default() += 1;
        }
    }

    /// The table of a collection, which is made where it is not known to be there.
    async fn table(&self, session: &mut Session, ns: &Namespace) -> Result<Arc<Rows>, Failed> {
        let known = self.made.lock().get(ns).cloned();
        if let Some(rows) = known {
            return Ok(rows);
        }
        let rows = Arc::new(Rows::of(Table::of(ns, &self.mapping), self.exact));
        session.batch("BEGIN").await?;
        match made(session, &rows.table).await {
            Ok(()) => {
                self.made.lock().insert(ns.clone(), rows.clone());
                Ok(rows)
            }
            Err(failed) => {
                session.roll_back().await;
                Err(failed)
            }
        }
    }

    async fn written(&self, ns: &Namespace, writes: &[Write<'_>]) -> Result<Vec<Written>, Failed> {
        let mut session = self.pg.session().await?;
        let mut is_second_time = false;
        loop {
            let rows = self.table(&mut session, ns).await?;
            let (items, mut written) = items_of(&rows, writes);
            self.count_misfits(ns, &items);
            match batch::write(&mut session, &rows.table, &items).await {
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
                }
                Err(failed) => return Err(failed),
            }
        }
    }
}

async fn made(session: &mut Session, table: &Table) -> Result<(), Failed> {
    session.batch(MAKING).await?;
    session.batch(&ddl::own().join(";\n")).await?;
    session.batch(&ddl::of_table(table).join(";\n")).await?;
    ddl::renew_status_view(session).await?;
    session.batch("COMMIT").await
}

/// What the batch has to do; a write that no row can be made of is refused here already.
fn items_of(rows: &Rows, writes: &[Write<'_>]) -> (Vec<RowWrite>, Vec<Option<Written>>) {
    let mut items = Vec::with_capacity(writes.len());
    let written = writes
        .iter()
        .map(|write| {
            let item = match *write {
                Write::Insert(document) | Write::Upsert { document, .. } => {
                    rows.row(document, None).map(RowWrite::Row)
                }
                Write::Delete(key) => row::key_of(key).map(Cell::Bytes).map(RowWrite::Delete),
                // Never given: see `takes_changes`.
                Write::Change { .. } | Write::Merge { .. } => return Some(Written::Unmatched),
            };
            match item {
                Ok(item) => {
                    items.push(item);
                    None
                }
                Err(error) => {
                    Some(Written::Rejected { reason: error.to_string(), refusal: Refusal::Other })
                }
            }
        })
        .collect();
    (items, written)
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
        self.written(ns, writes).await.map_err(SinkError::from)
    }
}
