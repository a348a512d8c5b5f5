//! What to do about a local database that cannot be read.

use std::borrow::Cow;

use super::SourceError;
use crate::{model::hint::Hint, mongo::MongoError};

impl Hint for SourceError {
    fn hint(&self) -> Option<Cow<'_, str>> {
        let hint = match self {
            SourceError::Unfit { hint, .. } => hint.as_str().into(),
            SourceError::Denied { source, .. } => source.mongo().and_then(Hint::hint).unwrap_or(
                "`outrigger roles` prints what makes the user, with all that it needs".into(),
            ),
            SourceError::Failed(_) => {
                "look the message up in the local server's log; the agent goes on trying".into()
            }
            SourceError::Overtaken { .. } => "run it again".into(),
            SourceError::Unavailable(error) => {
                error.mongo().and_then(Hint::hint).unwrap_or_else(|| {
                    let origin = error.mongo().and_then(MongoError::origin);
                    let origin = origin.unwrap_or("MONGODB_LOCAL_URI");
                    format!(
                        "start it (`systemctl start mongod`) or correct the address in {origin}"
                    )
                    .into()
                })
            }
            SourceError::HistoryLost(_) | SourceError::Malformed(_) => {
                "restart the agent; if it happens again, report it".into()
            }
        };
        Some(hint)
    }
}
