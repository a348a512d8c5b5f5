//! A connection that hears what is told on a channel. Where it breaks it is not made anew: whoever listens asks now and
//! then anyway.

use std::{future::poll_fn, sync::Arc, time::Duration};

use tokio::{sync::Notify, task::JoinHandle};
use tokio_postgres::{AsyncMessage, Client};

use super::connect::{Failed, Postgres};

const PATIENCE: Duration = Duration::from_secs(10);

/// Listens until it is dropped.
pub struct Listener {
    heard: Arc<Notify>,
    _client: Client,
    driving: JoinHandle<()>,
}

/// A server that takes the connection and says nothing is not waited for.
async fn within<T>(exchange: impl Future<Output = Result<T, Failed>>) -> Result<T, Failed> {
    let late = |_| Err(Failed::late(PATIENCE));
    tokio::time::timeout(PATIENCE, exchange).await.unwrap_or_else(late)
}

impl Listener {
    /// Listens to `channel`, which is a word.
    ///
    /// # Errors
    /// [`Failed`]: CockroachDB knows no such statement, and a pooler does not keep the connection for it.
    pub async fn start(postgres: &Postgres, channel: &str) -> Result<Self, Failed> {
        let (client, mut connection) = within(postgres.alone()).await?;
        let heard = Arc::new(Notify::new());
        let told = heard.clone();
        let driving = tokio::spawn(async move {
            while let Some(Ok(message)) = poll_fn(|cx| connection.poll_message(cx)).await {
                if matches!(message, AsyncMessage::Notification(_)) {
                    told.notify_one();
                }
            }
        });
        let listen = format!("LISTEN {channel}");
        within(async { client.batch_execute(&listen).await.map_err(Failed::from) }).await?;
        Ok(Self { heard, _client: client, driving })
    }

    /// Ends when something was told since the last time.
    pub async fn heard(&self) {
        self.heard.notified().await;
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.driving.abort();
    }
}
