//! What a source tells of its own past, to those who watch and wait.

use futures_util::future::{BoxFuture, ready};

use super::SourceError;
use crate::{
    model::checkpoint::ClusterTime,
    policy::{backlog::Backlog, majority::Writes},
};

pub trait Journal: Send + Sync {
    /// What was written last: whoever has read up to there has read all that was committed before the call.
    ///
    /// # Errors
    /// When the source does not answer.
    fn last_write(&self) -> BoxFuture<'_, Result<Writes, SourceError>>;

    /// How far back changes can still be read; `None` where nothing is ever lost, or nobody knows.
    ///
    /// # Errors
    /// When the source does not answer.
    fn begin(&self) -> BoxFuture<'_, Result<Option<ClusterTime>, SourceError>>;

    /// True for a source that keeps what nobody has read yet where it can be counted: [`backlog`](Self::backlog). Who
    /// waits for it to be read asks there, and not for a majority.
    fn keeps_a_backlog(&self) -> bool {
        false
    }

    /// What waits in the source now.
    ///
    /// # Errors
    /// When the source does not answer.
    fn backlog(&self) -> BoxFuture<'_, Result<Backlog, SourceError>> {
        Box::pin(ready(Ok(Backlog::default())))
    }
}
