//! How a client ends whose server may not answer.
//!
//! The driver ends the sessions of a client that is dropped, and the cursors of reads that were broken off, by commands of its
//! own, whose answers it awaits without an end; until then the client stays, with all its connections and with those that
//! watch the server. Where those get no answer either, the driver notices after a while, and breaks off all else. Where
//! they do, as on a line on which single connections went dead, the client would stay for as long as the process runs.
//!
//! What is then left of it are the dead connections themselves: the one on which a cursor was to be closed, and up to two that
//! were being made, which the driver gives no end and lets nobody give one.

use std::{ops::Deref, sync::Arc, time::Duration};

use mongodb::{Client, error::Result, options::ClientOptions};
use tokio::{runtime::Handle, time::timeout};

/// A connection that nobody has used for this long is closed: there are as many as were used at once when most was to do, and
/// each is a thread of the server. Less than the time after which the tables of a provider forget a quiet connection (Azure:
/// four minutes), over which a command would only run into its timeout.
pub(super) const IDLE_MAX: Duration = Duration::from_secs(120);

/// How often the driver looks whether a server still answers, and how long it waits for that, where its options say nothing.
const HEARTBEAT: Duration = Duration::from_secs(10);
const CONNECT: Duration = Duration::from_secs(10);

/// How much longer than the driver itself needs to notice it a client is waited for.
const GRACE: Duration = Duration::from_secs(10);

/// More sessions than a client has: as many as there were commands and cursors under way at once.
const SESSIONS_MAX: usize = 150;

/// A client that is ended, beside whoever drops it, once the last who holds it lets go.
#[derive(Debug)]
pub(super) struct Ended {
    client: Client,
    patience: Duration,
}

impl Ended {
    /// Makes a client.
    ///
    /// # Errors
    /// Where the driver does not take the options.
    pub fn made_of(options: ClientOptions) -> Result<Arc<Self>> {
        let heartbeat = options.heartbeat_freq.unwrap_or(HEARTBEAT);
        let connect = options.connect_timeout.unwrap_or(CONNECT);
        let patience = heartbeat.saturating_add(connect).saturating_add(GRACE);
        Ok(Arc::new(Self { client: Client::with_options(options)?, patience }))
    }
}

impl Deref for Ended {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.client
    }
}

impl Drop for Ended {
    fn drop(&mut self) {
        let (client, patience) = (self.client.clone(), self.patience);
        // Without a runtime the driver's own tasks are gone as well.
        if let Ok(runtime) = Handle::try_current() {
            runtime.spawn(async move {
                if timeout(patience, client.clone().shutdown()).await.is_err() {
                    end_unanswered(&client).await;
                }
            });
        }
    }
}

/// Closes the cursors of reads that were broken off, the sessions and all connections, as far as that is done within `patience`.
pub(super) async fn end(client: &Client, patience: Duration) {
    // The driver sends what closes a cursor beside whoever drops it, and waits for that here only.
    if timeout(patience, client.clone().shutdown()).await.is_err() {
        let _ = timeout(patience, client.clone().shutdown().immediate(true)).await;
    }
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
    // The first thing that it does now is to stop what watches the server. What it awaits then may have no end.
    let _ = timeout(GRACE, client.clone().shutdown().immediate(true)).await;
}
