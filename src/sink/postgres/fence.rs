//! The fence: a transaction counts only while this agent's lease does, and nobody takes the copy over in its middle.
//!
//! In `outrigger.replicas` stands who keeps the copy of a source. Each transaction begins with a lock on that row, found
//! by this very agent's lease id and start: where it is another's by now there is no such row, and nothing is written. Who
//! takes the copy over locks the row for itself alone, and so waits for every transaction that has begun before. An
//! agent that was frozen with one open keeps nobody out: the server ends it after half a minute.
//!
//! The lock is the weakest that keeps a new holder out (`FOR KEY SHARE`). A heartbeat, which changes no more than a time,
//! passes it: with `FOR SHARE` a few writers side by side could keep the row locked for ever, and the agent would lose
//! its lease for all its work.

use std::{sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio_postgres::types::Type;

use super::{
    connect::{Failed, Param, Session},
    names::{OWN_SCHEMA, quoted},
};

/// How long a transaction may stand open with nothing to do. It is waited for by whoever takes the copy over.
const IDLE_MAX: &str = "30s";

/// Where it is kept who keeps a copy, one row for each source.
pub fn records_table() -> String {
    format!(
        "CREATE TABLE IF NOT EXISTS {}.replicas (source text PRIMARY KEY, lease_id text NOT NULL, holder text, \
         checkpoint numeric, heartbeat timestamptz NOT NULL, mark jsonb NOT NULL)",
        quoted(OWN_SCHEMA)
    )
}

/// What an agent holds of a target: shared by whoever takes it and whoever writes.
#[derive(Clone, Debug, Default)]
pub struct Fence(Arc<Mutex<Option<Held>>>);

/// A lease as its transactions ask for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    pub source: String,
    pub lease_id: String,
    /// The start of the agent that has taken it.
    pub holder: String,
}

impl Fence {
    /// It was taken, or (`None`) given back.
    pub fn set(&self, held: Option<Held>) {
        *self.0.lock() = held;
    }

    fn held(&self) -> Option<Held> {
        self.0.lock().clone()
    }
}

/// For this transaction alone, so that it is all the same behind a pooler: what is said to be committed is on the server's
/// disk, also where that is set up to say so before; and nobody waits for a transaction that is left open, nor does the
/// server go on with a statement that nobody waits for any more: one that waits for a lock would do so for ever, and each
/// attempt would leave another.
fn settings(timeout: Duration) -> String {
    let timeout = timeout.as_millis();
    format!(
        "set_config('synchronous_commit', CASE current_setting('synchronous_commit') WHEN 'off' THEN 'local' \
         ELSE current_setting('synchronous_commit') END, true), \
         set_config('idle_in_transaction_session_timeout', '{IDLE_MAX}', true), \
         set_config('statement_timeout', '{timeout}', true)"
    )
}

/// Begins a transaction, behind the fence where there is one.
///
/// # Errors
/// Where the server could not be asked, or this agent's lease is not the one that counts: nothing has begun then.
pub async fn begin(session: &mut Session, fence: Option<&Fence>) -> Result<(), Failed> {
    let Some(fence) = fence else {
        let text = format!("SELECT {}", settings(session.timeout()));
        let begun = send(session, &text, &[]).await.map(drop);
        return ended_if_failed(session, begun).await;
    };
    let Some(Held { source, lease_id, holder }) = fence.held() else {
        return Err(fenced("the mark of ownership is not set yet"));
    };
    let text = format!(
        "SELECT {} FROM {}.replicas WHERE source = $1 AND lease_id = $2 AND holder = $3 FOR KEY SHARE",
        settings(session.timeout()),
        quoted(OWN_SCHEMA)
    );
    let params: [Param<'_>; 3] =
        [(&source, Type::TEXT), (&lease_id, Type::TEXT), (&holder, Type::TEXT)];
    let begun = match send(session, &text, &params).await {
        Ok(0) => Err(fenced(
            "another agent has taken the copy over, or the mark of ownership is gone: nothing is written before this \
             agent has it again",
        )),
        Ok(_) => Ok(()),
        // The table of the marks itself is gone.
        Err(failed) if failed.is(&["42P01", "3F000"]) => {
            Err(fenced("the mark of ownership is gone, with the table that it stood in"))
        }
        Err(failed) => Err(failed),
    };
    ended_if_failed(session, begun).await
}

/// In one round trip with `BEGIN`. Returns how many rows there are.
async fn send(session: &mut Session, text: &str, params: &[Param<'_>]) -> Result<usize, Failed> {
    session
        .within(async |client| {
            let begin = client.batch_execute("BEGIN");
            let rows = client.query_typed(text, params);
            let ((), rows) = futures_util::future::try_join(begin, rows).await?;
            Ok(rows.len())
        })
        .await
}

async fn ended_if_failed(session: &mut Session, begun: Result<(), Failed>) -> Result<(), Failed> {
    if begun.is_err() {
        session.roll_back().await;
    }
    begun
}

fn fenced(problem: &str) -> Failed {
    Failed::unasked(problem.to_owned())
}
