//! Where `mongodb+srv://` leads to by now.
//!
//! The driver asks the name service for a cluster's servers when a client is made. Later it asks only as long as it has met
//! no replica set (mongodb 3.9.1, `srv_polling.rs`): of one that it knows, it takes the members' word for where the others
//! are. A cluster that was moved, or restored onto other machines, has none of them left, and a client would look for them
//! without end. So where no server can be chosen the records are asked for again, beside whatever fails; where they name
//! other servers a new client is tried, and takes the place of the old one when it is answered. Whose data those servers
//! hold is found out as it is behind any new connection.

use std::{
    collections::HashSet,
    time::{Duration, Instant},
};

use mongodb::options::{ClientOptions, ServerAddress};
use parking_lot::Mutex;

use super::{ClientSlot, Mongo};

/// How often the name service is asked while no server can be chosen.
const ASK_EVERY: Duration = Duration::from_secs(5);

/// When it was last asked.
#[derive(Debug, Default)]
pub(super) struct LastAsked(Mutex<Option<Instant>>);

impl LastAsked {
    fn is_time(&self) -> bool {
        let mut last = self.0.lock();
        let is_time = last.is_none_or(|at| at.elapsed() >= ASK_EVERY);
        if is_time {
            *last = Some(Instant::now());
        }
        is_time
    }
}

/// Has the records asked for, since none of this client's servers could be chosen.
pub(super) fn follow(mongo: &Mongo, slot: &ClientSlot) {
    if mongo.uri.is_srv() && mongo.renewal.records.is_time() {
        let (mongo, slot) = (mongo.clone(), slot.clone());
        tokio::spawn(async move { ask(&mongo, &slot).await });
    }
}

async fn ask(mongo: &Mongo, slot: &ClientSlot) {
    let uri = mongo.uri_now().await;
    let asked = tokio::time::timeout(mongo.connect.timeout, ClientOptions::parse(uri.expose()));
    // A name service that is away as well is no news: the records that are known may be right.
    let Ok(Ok(told)) = asked.await else { return };
    let servers = |hosts: &[ServerAddress]| hosts.iter().cloned().collect::<HashSet<_>>();
    if servers(&told.hosts) == servers(&slot.options.hosts) {
        return;
    }
    let end = mongo.connect.end;
    match mongo.tried(&uri).await {
        Ok(new) => {
            if mongo.replace(slot, new, uri).await {
                tracing::info!(
                    end,
                    "the name service tells other servers than before; they are used from now on"
                );
            }
        }
        Err(error) => {
            tracing::debug!(end, %error, "the name service tells other servers than before, which cannot be used yet");
        }
    }
}
