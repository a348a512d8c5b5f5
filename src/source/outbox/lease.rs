//! One reads, however many agents were started: a row of a table beside the outbox says who, and until when.
//!
//! ```text
//!   nobody, or run out ──take──▶ held (term + 1) ──renew──▶ held ──give back──▶ nobody
//!                                    │ not renewed in time: another takes it, with the next term
//!                                    ▼
//!                                 fenced: what is marked by this term is not marked any more, and nothing is written
//! ```
//!
//! The row is changed where it is what was read before, so no lock of a session is needed, which CockroachDB does not have
//! and a pooler loses. Times are the database's own. Rows of the outbox are marked in the statement that checks the term.
//!
//! Whoever has the lease may write to the target too, and takes the mark there over from an agent of the same outbox. So
//! one that has not renewed it for less time than it lasts writes nothing ([`gate::lease`](crate::gate::lease)).
//!
//! Beside who reads, the row names the reader whose queue has all that is marked, and how far. Who finds another reader
//! there, or a position that its own queue has not come to, does not have in its queue what was marked since.

use std::{sync::Arc, time::Duration};

use tokio::task::JoinHandle;
use tokio_postgres::types::{ToSql, Type};
use tokio_util::sync::CancellationToken;

use super::{shape::Shape, table::lease_table};
use crate::{
    gate::lease::{BootTime, Lease, SOURCE_LIMIT},
    postgres::connect::{Failed, Postgres, Session},
};

/// How long it lasts without being renewed.
const LASTS: Duration = Duration::from_secs(30);
const RENEWED_EVERY: Duration = Duration::from_secs(5);
const _: () = assert!(SOURCE_LIMIT.as_secs() < LASTS.as_secs());

/// How often it is looked for rows that have had their time.
const UPKEEP_EVERY: Duration = Duration::from_secs(10);

/// What the row says.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    /// Empty where nobody has read yet.
    pub reader: String,
    pub term: i64,
    pub position: i64,
    /// False where it has run out.
    pub is_live: bool,
    /// Who has it, in words.
    pub holder: String,
}

/// What the row says; `None` where nobody has ever had it.
pub async fn look(session: &mut Session, shape: &Shape) -> Result<Option<Record>, Failed> {
    let sql = format!(
        "SELECT reader, term, position, expires_at > now(), coalesce(holder, '') FROM {} WHERE outbox = $1",
        shape.lease()
    );
    let rows = session.query(&sql, &[(&shape.name(), Type::TEXT)]).await?;
    Ok(rows.first().map(|row| Record {
        reader: row.get(0),
        term: row.get(1),
        position: row.get(2),
        is_live: row.get(3),
        holder: row.get(4),
    }))
}

/// Takes it, where the row is still `seen` and has run out, or is of the queue of `reader`, whose last life has ended. The
/// term; `None` where somebody was faster.
pub async fn take(
    session: &mut Session,
    shape: &Shape,
    seen: Option<&Record>,
    (reader, holder): (&str, &str),
) -> Result<Option<i64>, Failed> {
    let (lease, until) =
        (shape.lease(), format!("now() + '{} seconds'::interval", LASTS.as_secs()));
    let name = shape.name();
    let rows = if let Some(Record { term, .. }) = seen {
        let sql = format!(
            "UPDATE {lease} SET term = term + 1, holder = $2, expires_at = {until} \
             WHERE outbox = $1 AND term = $3 AND (reader = $4 OR expires_at <= now()) RETURNING term"
        );
        let params: [(&(dyn ToSql + Sync), Type); 4] =
            [(&name, Type::TEXT), (&holder, Type::TEXT), (term, Type::INT8), (&reader, Type::TEXT)];
        session.query(&sql, &params).await?
    } else {
        let sql = format!(
            "INSERT INTO {lease} (outbox, reader, position, term, holder, expires_at) \
             VALUES ($1, '', 0, 1, $2, {until}) ON CONFLICT (outbox) DO NOTHING RETURNING term"
        );
        session.query(&sql, &[(&name, Type::TEXT), (&holder, Type::TEXT)]).await?
    };
    Ok(rows.first().map(|row| row.get(0)))
}

/// From here on it is the queue of `reader` that has what is marked, up to `position`. False for a term that is over.
pub async fn begin(
    session: &mut Session,
    shape: &Shape,
    term: i64,
    (reader, position): (&str, i64),
) -> Result<bool, Failed> {
    let sql = format!(
        "UPDATE {} SET reader = $3, position = $4 WHERE outbox = $1 AND term = $2 RETURNING 1",
        shape.lease()
    );
    let params: [(&(dyn ToSql + Sync), Type); 4] = [
        (&shape.name(), Type::TEXT),
        (&term, Type::INT8),
        (&reader, Type::TEXT),
        (&position, Type::INT8),
    ];
    Ok(!session.query(&sql, &params).await?.is_empty())
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
    lost: CancellationToken,
    beside: [JoinHandle<()>; 2],
}

impl Held {
    /// Taken by what was sent at `sent_at`. `fence` is told of each renewal, and of the end.
    pub fn new(
        db: &Postgres,
        shape: &Arc<Shape>,
        (term, sent_at): (i64, BootTime),
        retention: Duration,
        fence: Option<Arc<Lease>>,
    ) -> Self {
        let lost = CancellationToken::new();
        if let Some(fence) = &fence {
            fence.source_renewed(sent_at);
        }
        let renewing = {
            let (db, shape, lost) = (db.clone(), shape.clone(), lost.clone());
            tokio::spawn(async move {
                loop {
                    tokio::time::sleep(RENEWED_EVERY).await;
                    let sent_at = BootTime::now();
                    // What fails is tried again; that the database is away is told by whoever reads.
                    match renew(&db, &shape, term).await {
                        Ok(true) => {
                            if let Some(fence) = &fence {
                                fence.source_renewed(sent_at);
                            }
                        }
                        Ok(false) => {
                            if let Some(fence) = &fence {
                                fence.source_ended();
                            }
                            return lost.cancel();
                        }
                        Err(error) => {
                            tracing::debug!(error = %error.problem, "the lease of the outbox is not renewed");
                        }
                    }
                }
            })
        };
        let upkeep = {
            let (db, shape, lost) = (db.clone(), shape.clone(), lost.clone());
            tokio::spawn(async move {
                while !lost.is_cancelled() {
                    tokio::time::sleep(UPKEEP_EVERY).await;
                    super::upkeep::expire(&db, &shape, retention).await;
                }
            })
        };
        Self { term, lost, beside: [renewing, upkeep] }
    }

    /// True once another agent reads.
    pub fn is_lost(&self) -> bool {
        self.lost.is_cancelled()
    }

    /// Completes when another agent reads.
    pub async fn lost(&self) {
        self.lost.cancelled().await;
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.beside.iter().for_each(JoinHandle::abort);
    }
}

async fn renew(db: &Postgres, shape: &Shape, term: i64) -> Result<bool, Failed> {
    let until = format!("now() + '{} seconds'::interval", LASTS.as_secs());
    expires_at(db, shape, term, &until).await
}

/// Another agent may take it at once.
pub async fn give_back(db: &Postgres, shape: &Shape, term: i64) -> Result<(), Failed> {
    expires_at(db, shape, term, "now()").await.map(drop)
}

/// False for a term that is over.
async fn expires_at(db: &Postgres, shape: &Shape, term: i64, at: &str) -> Result<bool, Failed> {
    let sql = format!(
        "UPDATE {} SET expires_at = {at} WHERE outbox = $1 AND term = $2 RETURNING 1",
        shape.lease()
    );
    let mut session = db.session().await?;
    let rows = session.query(&sql, &[(&shape.name(), Type::TEXT), (&term, Type::INT8)]).await?;
    Ok(!rows.is_empty())
}
