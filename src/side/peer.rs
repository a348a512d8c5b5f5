//! A database as whoever watches over the line to it sees it, whatever kind it is.

use futures_util::future::{BoxFuture, ready};

use crate::runtime::clock::now_ms;

/// The far side of a line.
pub trait Peer: Send + Sync {
    /// Its version, such as `6.0.5`: asked over the wire, within the timeout of the connection.
    ///
    /// # Errors
    /// In words, when it does not answer, or will not.
    fn version(&self) -> BoxFuture<'_, Result<String, String>>;

    /// When it last answered anything, milliseconds since 1970; 0: never.
    fn heard_ms(&self) -> u64;

    /// Silence counts from now on, not from the last answer.
    fn silent_from_now(&self) {}

    /// Bytes of all that was sent so far, before compression; 0 where nobody counts them.
    fn sent(&self) -> u64 {
        0
    }

    /// Bytes of all that was received so far, before compression; 0 where nobody counts them.
    fn received(&self) -> u64 {
        0
    }

    /// Since when it has been at work on what was asked, where that takes long: milliseconds since 1970.
    fn at_work_since(&self) -> Option<u64> {
        None
    }

    /// Closes the connections. Returns soon, whether the far side answers or not.
    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(ready(()))
    }
}

/// Of a target that is no database, but a part of this process: it is never silent.
pub struct NoPeer;

impl Peer for NoPeer {
    fn version(&self) -> BoxFuture<'_, Result<String, String>> {
        Box::pin(ready(Ok("none".to_owned())))
    }

    fn heard_ms(&self) -> u64 {
        now_ms()
    }
}
