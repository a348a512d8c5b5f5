//! The line to a PostgreSQL.

use futures_util::{
    FutureExt,
    future::{BoxFuture, ready},
};

use crate::{postgres::connect::Postgres, side::Peer};

impl Peer for Postgres {
    fn version(&self) -> BoxFuture<'_, Result<String, String>> {
        Postgres::version(self).map(|version| version.map_err(|failed| failed.problem)).boxed()
    }

    fn heard_ms(&self) -> u64 {
        Postgres::heard_ms(self)
    }

    fn silent_from_now(&self) {
        Postgres::silent_from_now(self);
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        Postgres::close(self);
        Box::pin(ready(()))
    }
}
