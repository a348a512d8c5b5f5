//! What to do about an Atlas that cannot be written to.

use std::borrow::Cow;

use super::SinkError;
use crate::model::hint::Hint;

impl Hint for SinkError {
    fn hint(&self) -> Option<Cow<'_, str>> {
        let hint = match self {
            SinkError::Denied(_) => {
                "`outrigger roles` prints what makes the user, with all that it needs"
            }
            SinkError::Unavailable(_)
            | SinkError::Unanswered(_)
            | SinkError::DropUnanswered { .. }
            | SinkError::Rejected(_)
            | SinkError::Held(_)
            | SinkError::Gone(_) => TRY_AGAIN,
        };
        Some(hint.into())
    }
}

/// Where nothing else is known.
pub const TRY_AGAIN: &str = "check the line, and the address in MONGODB_ATLAS_URI; then try again";
