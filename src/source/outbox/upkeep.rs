//! Rows that were processed long enough ago go, few at a time: a delete of millions would hold up whoever writes.

use std::time::Duration;

use tokio_postgres::types::Type;

use super::shape::Shape;
use crate::postgres::connect::{Failed, Postgres};

/// Rows of one delete.
const ROWS: usize = 1_000;

/// Deletes of one round, so that the lease is renewed in between.
const DELETES: usize = 20;

/// Deletes what has had its time. What fails is tried again the next time.
pub async fn expire(db: &Postgres, shape: &Shape, retention: Duration) {
    for _ in 0..DELETES {
        match once(db, shape, retention).await {
            Ok(deleted) if deleted < ROWS => return,
            Ok(_) => {}
            Err(error) => {
                tracing::debug!(error = %error.problem, "rows of the outbox that have had their time stay for now");
                return;
            }
        }
    }
}

async fn once(db: &Postgres, shape: &Shape, retention: Duration) -> Result<usize, Failed> {
    let seconds = retention.as_secs_f64();
    let sql = shape.expire(ROWS);
    let mut session = db.session().await?;
    Ok(session.query(&sql, &[(&seconds, Type::FLOAT8)]).await?.len())
}
