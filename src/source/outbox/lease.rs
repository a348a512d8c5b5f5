//! One reads, however many agents were started: a row of a table beside the outbox says who, and until when.
//!
//! ```text
//!   nobody, or run out ──take──▶ held (term + 1) ──renew──▶ held
//!                                    │ not renewed in time: another takes it, with the next term
//!                                    ▼
//!                                 fenced: what is marked by this term is not marked any more
//! ```
//!
//! The row is changed where it is what was read before, so no lock of a session is needed, which CockroachDB does not have
//! and a pooler loses. Times are the database's own. Rows of the outbox are marked in the statement that checks the term.
//!
//! The row names the reader whose queue has all that is marked, and how far. Who finds another reader there, or a position
//! that its own queue has not come to, does not have in its queue what was marked since.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::task::JoinHandle;
use tokio_postgres::types::Type;

use super::{shape::Shape, table::lease_table};
use crate::postgres::connect::{Failed, Postgres, Session};

/// How long it lasts without being renewed.
const LASTS: Duration = Duration::from_secs(30);
const RENEWED_EVERY: Duration = Duration::from_secs(10);

/// What the row says.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    pub reader: String,
    pub term: i64,
    pub position: i64,
    /// False where it has run out.
    pub is_live: bool,
}

/// What the row says; `None` where nobody has ever read.
pub async fn look(session: &mut Session, shape: &Shape) -> Result<Option<Record>, Failed> {
    let sql = format!(
        "SELECT reader, term, position, expires_at > now() FROM {} WHERE outbox = $1",
        shape.lease()
    );
    let rows = session.query(&sql, &[(&shape.name(), Type::TEXT)]).await?;
    Ok(rows.first().map(|row| Record {
        reader: row.get(0),
        term: row.get(1),
        position: row.get(2),
        is_live: row.get(3),
    }))
}

/// Takes it for `reader`, whose queue has come to `position`, where the row is still `seen`. The term; `None` where
/// somebody was faster.
pub async fn take(
    session: &mut Session,
    shape: &Shape,
    seen: Option<&Record>,
    (reader, position): (&str, i64),
) -> Result<Option<i64>, Failed> {
    let (lease, until) =
        (shape.lease(), format!("now() + '{} seconds'::interval", LASTS.as_secs()));
    let (name, term) = (shape.name(), seen.map_or(0, |seen| seen.term));
    let sql = if seen.is_some() {
        format!(
            "UPDATE {lease} SET reader = $2, position = $3, term = term + 1, expires_at = {until} \
             WHERE outbox = $1 AND term = $4 AND (reader = $2 OR expires_at <= now()) RETURNING term"
        )
    } else {
        format!(
            "INSERT INTO {lease} (outbox, reader, position, term, expires_at) \
             VALUES ($1, $2, $3, $4::bigint + 1, {until}) ON CONFLICT (outbox) DO NOTHING RETURNING term"
        )
    };
    let params: [(&(dyn tokio_postgres::types::ToSql + Sync), Type); 4] =
        [(&name, Type::TEXT), (&reader, Type::TEXT), (&position, Type::INT8), (&term, Type::INT8)];
    let rows = session.query(&sql, &params).await?;
    Ok(rows.first().map(|row| row.get(0)))
}

/// What this outbox is known by: a row of its own, drawn once.
pub async fn identify(session: &mut Session, shape: &Shape) -> Result<String, Failed> {
    let (lease, drawn) = (shape.lease(), uuid::Uuid::new_v4().to_string());
    let name = row_of_id(shape.name());
    let sql = format!(
        "INSERT INTO {lease} (outbox, reader, position, term, expires_at) VALUES ($1, $2, 0, 0, now()) \
         ON CONFLICT (outbox) DO NOTHING"
    );
    session.query(&sql, &[(&name, Type::TEXT), (&drawn, Type::TEXT)]).await?;
    Ok(known(session, shape.name()).await?.unwrap_or(drawn))
}

/// As [`identify`], where it was drawn.
pub async fn known(session: &mut Session, table: &str) -> Result<Option<String>, Failed> {
    let sql = format!("SELECT reader FROM {} WHERE outbox = $1", lease_table(table));
    let rows = session.query(&sql, &[(&row_of_id(table), Type::TEXT)]).await?;
    Ok(rows.first().map(|row| row.get(0)))
}

/// No table is called so.
fn row_of_id(table: &str) -> String {
    format!("{table} is")
}

/// A lease that is held, and renewed until this is dropped. Rows that have had their time are deleted beside it.
pub struct Held {
    pub term: i64,
    is_lost: Arc<AtomicBool>,
    renewing: JoinHandle<()>,
}

impl Held {
    pub fn new(db: Postgres, shape: Arc<Shape>, term: i64, retention: Duration) -> Self {
        let is_lost = Arc::new(AtomicBool::new(false));
        let lost = is_lost.clone();
        let renewing = tokio::spawn(async move {
            loop {
                tokio::time::sleep(RENEWED_EVERY).await;
                // What fails is tried again; that the database is away is told by whoever reads.
                match renew(&db, &shape, term).await {
                    Ok(true) => super::upkeep::expire(&db, &shape, retention).await,
                    Ok(false) => return lost.store(true, Ordering::Relaxed),
                    Err(error) => {
                        tracing::debug!(error = %error.problem, "the lease of the outbox is not renewed");
                    }
                }
            }
        });
        Self { term, is_lost, renewing }
    }

    /// True once another agent reads.
    pub fn is_lost(&self) -> bool {
        self.is_lost.load(Ordering::Relaxed)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.renewing.abort();
    }
}

async fn renew(db: &Postgres, shape: &Shape, term: i64) -> Result<bool, Failed> {
    let sql = format!(
        "UPDATE {} SET expires_at = now() + '{} seconds'::interval WHERE outbox = $1 AND term = $2 RETURNING 1",
        shape.lease(),
        LASTS.as_secs()
    );
    let mut session = db.session().await?;
    let rows = session.query(&sql, &[(&shape.name(), Type::TEXT), (&term, Type::INT8)]).await?;
    Ok(!rows.is_empty())
}
