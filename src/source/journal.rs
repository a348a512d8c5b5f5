//! What a source tells of its own past, to those who watch and wait.

use futures_util::future::BoxFuture;

use super::SourceError;
use crate::{model::checkpoint::ClusterTime, policy::majority::Writes};

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
}
