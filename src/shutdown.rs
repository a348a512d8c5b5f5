//! Stopping, in two steps: read no more and write what waits; then leave.

use tokio_util::sync::CancellationToken;

/// Handed to every task.
#[derive(Clone, Debug, Default)]
pub struct Stop {
    /// Stop reading; write what waits.
    pub drain: CancellationToken,
    /// Leave now. What is not written stays in the queue.
    pub leave: CancellationToken,
}

impl Stop {
    pub fn is_draining(&self) -> bool {
        self.drain.is_cancelled() || self.leave.is_cancelled()
    }
}

/// Runs blocking work of the queue off the async threads.
///
/// # Panics
/// Passes a panic of `work` on.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(value) => value,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}
