//! Stopping, in two steps: read no more and write what waits; then leave.

use tokio::task::JoinError;
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
/// Never returns where the runtime goes down before the work has begun: whoever waits goes down with it.
///
/// # Panics
/// Passes a panic of `work` on.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await.map_err(JoinError::try_into_panic) {
        Ok(value) => value,
        Err(Ok(panic)) => std::panic::resume_unwind(panic),
        Err(Err(_cancelled)) => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use std::task::{Context, Poll, Waker};

    use super::*;

    #[test]
    fn work_that_a_runtime_on_its_way_out_does_not_begin_is_no_panic() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let within = runtime.enter();
        // Of a runtime that is gone.
        let mut waiting = std::pin::pin!(blocking(|| ()));
        let mut look = Context::from_waker(Waker::noop());
        drop(within);
        let handle = runtime.handle().clone();
        runtime.shutdown_background();
        let _within = handle.enter();

        assert_eq!(waiting.as_mut().poll(&mut look), Poll::Pending);
        assert_eq!(waiting.as_mut().poll(&mut look), Poll::Pending);
    }

    #[tokio::test]
    #[should_panic(expected = "of the work")]
    async fn a_panic_of_the_work_is_passed_on() {
        blocking(|| panic!("of the work")).await;
    }
}
