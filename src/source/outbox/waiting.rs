//! What waits in the table, and up to where all of it has been read.

use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use tokio_postgres::{
    Row,
    types::{ToSql, Type},
};

use super::{OutboxSource, TIMEOUT, away, whole_number};
use crate::{
    model::checkpoint::ClusterTime,
    policy::{backlog::Backlog, majority::Writes},
    runtime::clock::now_ms,
    source::{Cause, Journal, SourceError},
};

/// What the stream has come to.
#[derive(Default)]
pub(super) struct Progress {
    /// 0 before it was opened.
    pub number: u64,
    /// While documents are renewed: the row behind which that goes on.
    pub renewing: Option<Vec<String>>,
    /// The number that was told to be that of the end of it, by the rows that were there: some may go meanwhile.
    pub renewed_at: u64,
}

impl OutboxSource {
    /// The position at which all rows have been read that are committed now.
    ///
    /// # Errors
    /// When the database cannot be asked, or nothing is read yet.
    pub async fn all_read_at(&self) -> Result<ClusterTime, SourceError> {
        self.is_opened().await?;
        let marked = self.0.marked.lock().await;
        let (number, behind) = {
            let progress = self.0.progress.lock();
            (progress.number, progress.renewing.clone())
        };
        let waiting = self.waiting().await?.rows;
        let Some(behind) = behind else {
            // What is handed out and not marked waits as well: its numbers are given already.
            return Ok(ClusterTime(number.max(*marked + waiting)));
        };
        // What is renewed comes first.
        let shape = self.0.shape().await?;
        let params: Vec<_> =
            behind.iter().map(|text| (text as &(dyn ToSql + Sync), Type::TEXT)).collect();
        let mut session = self.0.db.session().await.map_err(away)?;
        let sql = shape.count_processed(!behind.is_empty());
        let rows = session.query(&sql, &params).await.map_err(away)?;
        let left = rows.first().map_or(0, |row| whole_number(row.get(0)));
        let end = {
            let mut progress = self.0.progress.lock();
            progress.renewed_at = progress.renewed_at.max(number + left);
            progress.renewed_at
        };
        Ok(ClusterTime(end + waiting))
    }

    /// Before the stream is opened there are no numbers to wait for.
    async fn is_opened(&self) -> Result<(), SourceError> {
        let give_up = Instant::now() + TIMEOUT;
        while self.0.number() == 0 {
            if Instant::now() > give_up {
                let problem = "this agent does not read the outbox";
                return Err(SourceError::Unavailable(Cause::Other(problem.to_owned())));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    }

    /// What waits in the table, by the database's clock.
    ///
    /// # Errors
    /// When the database cannot be asked.
    pub async fn waiting(&self) -> Result<Backlog, SourceError> {
        let shape = self.0.shape().await?;
        let mut session = self.0.db.session().await.map_err(away)?;
        let rows = session.query(&shape.waiting(), &[]).await.map_err(away)?;
        rows.first().map(backlog).ok_or_else(|| {
            SourceError::Unavailable(Cause::Other("a count without an answer".to_owned()))
        })
    }
}

/// The answer to [`Shape::waiting`](super::shape::Shape::waiting), which came just now.
pub(super) fn backlog(row: &Row) -> Backlog {
    let whole = |at: usize| row.get::<_, Option<i64>>(at).map(whole_number);
    let here_ms = now_ms();
    Backlog {
        rows: whole(0).unwrap_or(0),
        oldest: whole(1).map(Duration::from_millis),
        there_ms: whole(2).unwrap_or(here_ms),
        here_ms,
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

    fn keeps_a_backlog(&self) -> bool {
        true
    }

    fn backlog(&self) -> BoxFuture<'_, Result<Backlog, SourceError>> {
        Box::pin(self.waiting())
    }
}
