//! What to do about an agent that does not start, or ends.

use std::borrow::Cow;

use super::AgentError;
use crate::model::hint::Hint;

impl Hint for AgentError {
    fn hint(&self) -> Option<Cow<'_, str>> {
        let hint = match self {
            AgentError::Config(error) => return error.hint(),
            AgentError::Local(error) => return error.hint(),
            AgentError::Queue(error) => return error.hint(),
            AgentError::Sync(error) => return error.hint(),
            AgentError::OtherSource { .. } => {
                "if the local database is the one to replicate from now on, move `queue.path` aside \
                 and start with `outrigger run --adopt`: everything is then compared"
            }
            AgentError::Superseded => {
                "nothing to do: its service starts it anew, and it waits for its turn (see `outrigger status`)"
            }
            AgentError::Admin { .. } => {
                "set `admin.listen` and `admin.token_file` to what is free and writable"
            }
            AgentError::Task(_) => "this is a bug; please report it",
        };
        Some(hint.into())
    }
}
