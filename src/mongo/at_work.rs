//! Waiting for a server that is known to work on what it was asked.
//!
//! A change stream that is resumed after a downtime looks through the oplog from the checkpoint on, in one
//! command, which answers when it has found something to show or has come to the end: minutes, where most of the
//! oplog is not replicated. To give that up and ask again begins it anew, for ever.
//!
//! That some other connection is answered does not prove that this one still leads anywhere. So the server is
//! asked, over another one, whether it works on this very command, which carries a mark of its own: while it does,
//! it is waited for. A command that never arrived is not among those, and one whose answer was lost is no longer,
//! so that a half-open connection is given up after the usual time. A user may always see its own commands.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bson::rawdoc;

use super::{Mongo, MongoError};
use crate::{observe::metrics::Gauge, runtime::clock::now_ms};

/// Longest wait for the answer to the question.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// Sets a gauge back when it is dropped. A future that is dropped half-way runs no code after its `await`: without this
/// the gauge would say for ever that the server is at work.
struct Reset<'a>(&'a Gauge);

impl Drop for Reset<'_> {
    fn drop(&mut self) {
        self.0.set(0);
    }
}

impl Mongo {
    /// A mark for a command, by which it is found among those that the server works on.
    pub(super) fn mark() -> Arc<str> {
        format!("outrigger stream {:016x}", fastrand::u64(..)).into()
    }

    /// Waits for an answer for as long as the server works on the command with this mark, and as long as
    /// for any answer beside that.
    pub(super) async fn while_at_work<T>(
        &self,
        mark: &str,
        exchange: impl Future<Output = Result<T, MongoError>>,
    ) -> Result<T, MongoError> {
        let timeout = self.connect.timeout;
        let _reset = Reset(&self.at_work_since);
        let silence = async {
            let mut seen = Instant::now();
            let asked_ms = now_ms();
            loop {
                tokio::time::sleep(timeout / 3).await;
                if self.works_on(mark).await {
                    seen = Instant::now();
                    self.at_work_since.set(asked_ms);
                } else if seen.elapsed() >= timeout {
                    return;
                }
            }
        };
        tokio::select! {
            biased;
            reply = exchange => reply,
            () = silence => Err(MongoError::Silent(timeout)),
        }
    }

    async fn works_on(&self, mark: &str) -> bool {
        // Not the stage of the same name: it would show the whole command, which may be long, while this cuts
        // it and keeps the comment. A `getMore` shows that of the command that opened its cursor, too.
        let question = rawdoc! {
            "currentOp": 1, "$ownOps": true, "active": true,
            "$or": [
                { "command.comment": mark },
                { "cursor.originatingCommand.comment": mark },
            ],
        };
        let patience = ANSWER_WITHIN.min(self.connect.timeout);
        // Asked without the gate: only the server that works on our command can list it with this mark, so whoever
        // answers that it does is the right one.
        let reply = self.unguarded().command_within("admin", question, patience).await;
        reply.is_ok_and(|reply| reply.get_array("inprog").is_ok_and(|found| !found.is_empty()))
    }

    /// Since when the server works on a question of the change stream that takes it longer than usual,
    /// milliseconds since 1970.
    pub fn at_work_since(&self) -> Option<u64> {
        Some(self.at_work_since.get()).filter(|since| *since > 0)
    }
}
