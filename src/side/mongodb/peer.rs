//! The line to a MongoDB.

use futures_util::{FutureExt, future::BoxFuture};

use crate::{mongo::Mongo, side::Peer};

impl Peer for Mongo {
    fn version(&self) -> BoxFuture<'_, Result<String, String>> {
        Mongo::version(self).map(|version| version.map_err(|error| error.to_string())).boxed()
    }

    fn heard_ms(&self) -> u64 {
        Mongo::heard_ms(self)
    }

    fn silent_from_now(&self) {
        Mongo::silent_from_now(self);
    }

    fn sent(&self) -> u64 {
        Mongo::sent(self)
    }

    fn received(&self) -> u64 {
        Mongo::received(self)
    }

    fn at_work_since(&self) -> Option<u64> {
        Mongo::at_work_since(self)
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        Mongo::close(self).boxed()
    }
}
