//! The fence: a transaction counts only while this agent's lease does, and nobody takes the copy over in its middle.
//!
//! In `outrigger.replicas` stands who keeps the copy of a source. Each transaction begins with a lock on that row, found
//! by this very agent's lease id and start: where it is another's by now there is no such row, and nothing is written. Who
//! takes the copy over locks the row for itself alone, and so waits for every transaction that has begun before. An
//! agent that was frozen with one open keeps nobody out: the server ends it after half a minute. Within a `COPY` it does: PostgreSQL
//! looks at no limit while it waits for rows, and the lock stands until the connection ends.
//!
//! Each also adds one to a counter of its own (`outrigger.tallies`), by which a server is known that was put back or has lost what it
//! had confirmed, see [`tally`](crate::gate::tally): such a one is not written to before everything in it is compared.
//!
//! The lock is the weakest that keeps a new holder out (`FOR KEY SHARE`). A heartbeat, which changes no more than a time,
//! passes it: with `FOR SHARE` a few writers side by side could keep the row locked for ever, and the agent would lose
//! its lease for all its work.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::future::{join3, join4};
use parking_lot::Mutex;
use tokio_postgres::{Client, Error, types::Type};

use super::{
    connect::{Failed, Param, Session},
    names::{OWN_SCHEMA, quoted},
};
use crate::gate::tally::{Tally, Turn};

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

/// Where the transactions of each source are counted. Each row is changed with each of them: the room beside it keeps its
/// versions on one page.
pub fn tallies_table() -> String {
    format!(
        "CREATE TABLE IF NOT EXISTS {}.tallies (source text NOT NULL, counter integer NOT NULL, n bigint NOT NULL, \
         PRIMARY KEY (source, counter)) WITH (fillfactor = 20)",
        quoted(OWN_SCHEMA)
    )
}

/// What an agent holds of a target: shared by whoever takes it and whoever writes.
#[derive(Clone, Debug, Default)]
pub struct Fence {
    held: Arc<Mutex<Option<Held>>>,
    tally: Arc<Tally>,
}

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
        *self.held.lock() = held;
    }

    /// What the target has confirmed to this agent.
    pub fn tally(&self) -> &Arc<Tally> {
        &self.tally
    }

    fn held(&self) -> Option<Held> {
        self.held.lock().clone()
    }
}

/// A transaction that has begun. Dropped, nobody knows its end.
pub struct Begun(Option<(Turn, u64)>);

impl Begun {
    /// The server has confirmed its end.
    pub fn committed(self) {
        if let Some((turn, n)) = self.0 {
            turn.confirmed(n);
        }
    }

    /// Ends it without what it has done.
    pub async fn roll_back(self, session: &mut Session) {
        session.roll_back().await;
        if let Some((turn, _)) = self.0.filter(|_| session.is_clean()) {
            turn.ended();
        }
    }
}

/// For this transaction alone, so that it is all the same behind a pooler: what is said to be committed is on the server's
/// disk, also where that is set up to say so before; and nobody waits for a transaction that is left open, nor does the
/// server go on with a statement that nobody waits for any more: one that waits for a lock would do so for ever, and each
/// attempt would leave another. Statements are planned without their parameters, which are arrays of thousands of values that
/// the planner would copy and walk through each time.
fn settings(timeout: Duration) -> String {
    let timeout = timeout.as_millis();
    format!(
        "set_config('synchronous_commit', CASE current_setting('synchronous_commit') WHEN 'off' THEN 'local' \
         ELSE current_setting('synchronous_commit') END, true), \
         set_config('idle_in_transaction_session_timeout', '{IDLE_MAX}', true), \
         set_config('statement_timeout', '{timeout}', true), \
         set_config('plan_cache_mode', 'force_generic_plan', true)"
    )
}

/// Begins a transaction, behind the fence where there is one.
///
/// # Errors
/// Where the server could not be asked, or this agent's lease is not the one that counts: nothing has begun then.
pub async fn begin(session: &mut Session, fence: Option<&Fence>) -> Result<Begun, Failed> {
    begin_and(session, fence, async |_| Ok(())).await.map(|(begun, ())| begun)
}

/// As [`begin`], and in the same round trip something that is asked in the transaction and changes nothing.
///
/// # Errors
/// As [`begin`], and where that failed.
pub async fn begin_and<T>(
    session: &mut Session,
    fence: Option<&Fence>,
    also: impl AsyncFnOnce(&Client) -> Result<T, Error>,
) -> Result<(Begun, T), Failed> {
    let Some(fence) = fence else {
        let text = format!("SELECT {}", settings(session.timeout()));
        let begun = session
            .within(async |client| {
                let begin = client.batch_execute("BEGIN");
                let (begun, set, also) =
                    join3(begin, client.query_typed(&text, &[]), also(client)).await;
                begun.and(set)?;
                also
            })
            .await;
        if begun.is_err() {
            session.roll_back().await;
        }
        return begun.map(|also| (Begun(None), also));
    };
    let Some(held) = fence.held() else {
        return Err(fenced("the mark of ownership is not set yet"));
    };
    let turn = fence.tally().begin(Instant::now());
    match counted(session, &held, &turn, also).await {
        Ok((n, also)) => Ok((Begun(Some((turn, n))), also)),
        Err(failed) => {
            Begun(Some((turn, 0))).roll_back(session).await;
            Err(failed)
        }
    }
}

/// In one round trip with `BEGIN`. Returns which one of its counter's transactions it is.
async fn counted<T>(
    session: &mut Session,
    held: &Held,
    turn: &Turn,
    also: impl AsyncFnOnce(&Client) -> Result<T, Error>,
) -> Result<(u64, T), Failed> {
    let Held { source, lease_id, holder } = held;
    let own = quoted(OWN_SCHEMA);
    let lock = format!(
        "SELECT {} FROM {own}.replicas WHERE source = $1 AND lease_id = $2 AND holder = $3 FOR KEY SHARE",
        settings(session.timeout()),
    );
    let locked: [Param<'_>; 3] =
        [(source, Type::TEXT), (lease_id, Type::TEXT), (holder, Type::TEXT)];
    let count = format!(
        "INSERT INTO {own}.tallies AS t (source, counter, n) VALUES ($1, $2, 1) \
         ON CONFLICT (source, counter) DO UPDATE SET n = t.n + 1 RETURNING n"
    );
    let counter = turn.counter() as i32;
    let counts: [Param<'_>; 2] = [(source, Type::TEXT), (&counter, Type::INT4)];
    let begun = session
        .within(async |client| {
            let begin = client.batch_execute("BEGIN");
            let (lock, count) =
                (client.query_typed(&lock, &locked), client.query_typed(&count, &counts));
            // The first that failed tells why: all behind it are told no more than that the transaction is aborted.
            let (begun, locked, counted, also) = join4(begin, lock, count, also(client)).await;
            let (locked, counted) = begun.and(locked).and_then(|of| Ok((of, counted?)))?;
            let n = counted.first().and_then(|row| row.try_get::<_, i64>(0).ok());
            Ok((locked.len(), n.and_then(|n| u64::try_from(n).ok()), also?))
        })
        .await;
    match begun {
        Ok((0, ..)) => Err(fenced(
            "another agent has taken the copy over, or the mark of ownership is gone: nothing is written before this \
             agent has it again",
        )),
        Ok((_, Some(n), also)) if turn.follows(n) => Ok((n, also)),
        Ok(_) => Err(fenced(
            "PostgreSQL has less than what it had confirmed, as after a failover or a restore: nothing is written before \
             the mark of ownership is set anew, and then everything is compared",
        )),
        // The table of the marks itself is gone.
        Err(failed) if failed.is(&["42P01", "3F000"]) => {
            Err(fenced("the mark of ownership is gone, with the table that it stood in"))
        }
        Err(failed) => Err(failed),
    }
}

fn fenced(problem: &str) -> Failed {
    Failed::unasked(problem.to_owned())
}
