//! How a client ends whose server may not answer.
//!
//! The driver ends the sessions of a client that is dropped by a command of its own, whose answer it awaits without an end;
//! until then the client stays, with all its connections and with those that watch the server. A connection that takes
//! questions and brings no answers would keep them for as long as the process runs, and so would two connections that are being
//! made and get no answer: the driver makes no others meanwhile. What it sends to close a cursor has no end either, and cannot
//! be given one: that may keep the connection that it was sent over.

use std::{ops::Deref, sync::Arc, time::Duration};

use mongodb::Client;
use tokio::{runtime::Handle, time::timeout};

/// A connection that nobody has used for this long is closed: there are as many as were used at once in the worst minute, and
/// each is a thread of the server. Less than the time after which the tables of a provider forget a quiet connection (Azure:
/// four minutes), over which a command would only run into its timeout.
pub(super) const IDLE_MAX: Duration = Duration::from_secs(120);

/// How long a client's cursors, and then its sessions, are waited for.
const PATIENCE: Duration = Duration::from_secs(1);

/// More sessions than a client has: it has as many as commands of it were under way at once.
const SESSIONS_MAX: usize = 500;

/// A client that is ended, beside whoever drops it, once the last who holds it lets go.
#[derive(Debug)]
pub(super) struct Ended(Client);

impl Ended {
    pub fn when_dropped(client: Client) -> Arc<Self> {
        Arc::new(Self(client))
    }
}

impl Deref for Ended {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.0
    }
}

impl Drop for Ended {
    fn drop(&mut self) {
        let client = self.0.clone();
        // Without a runtime the driver's own tasks are gone as well.
        if let Ok(runtime) = Handle::try_current() {
            runtime.spawn(async move {
                if !end(&client, PATIENCE).await {
                    end_unanswered(&client).await;
                }
            });
        }
    }
}

/// Closes the cursors of reads that were broken off, the sessions and all connections. True when that is done.
pub(super) async fn end(client: &Client, patience: Duration) -> bool {
    // The driver sends what closes a cursor beside whoever drops it, and waits for that here only.
    timeout(patience, client.clone().shutdown()).await.is_ok()
        || timeout(patience, client.clone().shutdown().immediate(true)).await.is_ok()
}

/// Ends a client without a word to its server, which ends the sessions by itself after half an hour. What is shut down asks for
/// the end of the sessions that lie ready, before all else, and awaits the answer: so here none lies ready.
async fn end_unanswered(client: &Client) {
    let mut sessions = Vec::new();
    while sessions.len() < SESSIONS_MAX
        && let Ok(session) = client.start_session().await
    {
        sessions.push(session);
    }
    // The first thing that it does now is to stop what watches the server. What it awaits then may have no end: a connection
    // that is being made has none either.
    let _ = timeout(PATIENCE, client.clone().shutdown().immediate(true)).await;
}
