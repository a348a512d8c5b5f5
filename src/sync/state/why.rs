//! What an open sync says of the present: why it is owed, and what that makes of what was said before.

use super::{Reason, SyncState, behind};
use crate::queue::{Queue, QueueError};

impl SyncState {
    /// True while something is owed: Atlas cannot be equal then, whatever the queue says.
    ///
    /// # Errors
    /// When the queue cannot be read.
    pub fn is_owed(queue: &Queue) -> Result<bool, QueueError> {
        let is_open = Self::open(queue)?.is_some_and(|state| state.request.is_none());
        Ok(is_open || !behind::noted(queue)?.is_empty())
    }

    /// True from when the stream left out what the server could not show, until everything is compared.
    ///
    /// # Errors
    /// When the queue cannot be read.
    pub fn is_unshowable(queue: &Queue) -> Result<bool, QueueError> {
        Ok(Self::open(queue)?.is_some_and(|state| state.is_because_of(Reason::Unshowable)))
    }

    /// True from when the target was found to lack what it had confirmed, until everything is compared.
    ///
    /// # Errors
    /// When the queue cannot be read.
    pub fn is_put_back(queue: &Queue) -> Result<bool, QueueError> {
        Ok(Self::open(queue)?.is_some_and(|state| state.is_because_of(Reason::PutBack)))
    }

    /// True for a mandatory one that makes an earlier moment of equality say nothing of this Atlas: it is another one, or
    /// was put back, or something else is replicated.
    pub fn is_of_another(&self) -> bool {
        let another = [Reason::NewTarget, Reason::PutBack, Reason::NamespacesChanged];
        self.request.is_none() && another.into_iter().any(|reason| self.is_because_of(reason))
    }

    fn is_because_of(&self, reason: Reason) -> bool {
        self.reason == reason || self.also.contains(&reason)
    }

    /// Takes over why the one that this takes the place of was owed, as far as that [lasts](Reason::lasts). What is told of
    /// to people stays what they read.
    pub(super) fn carry(&mut self, last: &Self) {
        self.also.extend(last.also.iter().chain([&last.reason, &self.reason]));
        if matches!(last.reason, Reason::Unshowable | Reason::PutBack) {
            self.reason = last.reason;
        }
        self.also.retain(|reason| reason.lasts() && *reason != self.reason);
    }
}
