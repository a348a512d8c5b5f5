//! Whether this agent may still write to Atlas: its lease, which lasts as long as its last renewal is young.
//!
//! Another agent may be told to take over once the lease has not been renewed for a minute. So an agent that
//! has not renewed its own for [`LIMIT`] writes nothing, and it asks before each write, not from time to time:
//! a process that was stopped (SIGSTOP, a debugger, a machine that slept) knows nothing of that when it goes
//! on, and its first write may be the one that puts a document back to an old version.
//!
//! Where the source itself is read by one agent at a time, whoever has that right may write, at once: an agent that has
//! not renewed it for [`SOURCE_LIMIT`] writes nothing either, however young its mark is.
//!
//! The age counts from the moment at which the renewal was *sent*, by a clock that goes on while the machine
//! sleeps and that nobody sets ([`BootTime`]). What is on its way at the moment of the stop is not called
//! back: only a fence in Atlas itself could do that.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

/// How old the last renewal may be. Below the time after which another agent may take over by more than a
/// command takes.
pub const LIMIT: Duration = Duration::from_secs(45);

/// How old the last renewal of the right to read the source may be, of a source that another agent may take after 30
/// seconds.
pub const SOURCE_LIMIT: Duration = Duration::from_secs(20);

/// The time since the machine was started, suspension included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct BootTime(Duration);

impl BootTime {
    pub fn now() -> Self {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        let (seconds, nanos) = (u64::try_from(now.tv_sec), u32::try_from(now.tv_nsec));
        Self(Duration::new(seconds.unwrap_or(0), nanos.unwrap_or(0)))
    }
}

/// No lease was taken yet; and the lease is known to be another's, or unknown.
const NEVER: u64 = u64::MAX;
const ENDED: u64 = u64::MAX - 1;

/// Owns the question. Only the [client](crate::sync::ownership::LeaseClient) renews it, and the source its own part.
#[derive(Debug)]
pub struct Lease {
    /// When the last renewal that was confirmed had been sent, in milliseconds of [`BootTime`].
    renewed: AtomicU64,
    /// The same of the right to read the source; [`NEVER`] where it needs none.
    source: AtomicU64,
}

impl Default for Lease {
    fn default() -> Self {
        Self { renewed: AtomicU64::new(NEVER), source: AtomicU64::new(NEVER) }
    }
}

fn is_young(renewed: &AtomicU64, limit: Duration, now: BootTime) -> bool {
    match renewed.load(Ordering::SeqCst) {
        NEVER | ENDED => false,
        renewed => now.0.saturating_sub(Duration::from_millis(renewed)) <= limit,
    }
}

impl Lease {
    /// The lease was taken or renewed, by what was sent at `sent_at`.
    pub fn renew(&self, sent_at: BootTime) {
        self.renewed.store(sent_at.0.as_millis() as u64, Ordering::SeqCst);
    }

    /// The lease is not as it was left: nothing is written before it is taken again.
    pub fn end(&self) {
        self.renewed.store(ENDED, Ordering::SeqCst);
    }

    /// This agent alone may read the source, by what was sent at `sent_at`.
    pub fn source_renewed(&self, sent_at: BootTime) {
        self.source.store(sent_at.0.as_millis() as u64, Ordering::SeqCst);
    }

    /// Another agent may.
    pub fn source_ended(&self) {
        self.source.store(ENDED, Ordering::SeqCst);
    }

    /// True while this agent alone may read a source that only one may: no other that goes by the same right writes.
    pub fn has_source(&self, now: BootTime) -> bool {
        is_young(&self.source, SOURCE_LIMIT, now)
    }

    /// True once that right was had, and is not any more.
    pub fn has_lost_source(&self, now: BootTime) -> bool {
        self.source.load(Ordering::SeqCst) != NEVER && !self.has_source(now)
    }

    /// True while writing is safe.
    pub fn is_held(&self, now: BootTime) -> bool {
        is_young(&self.renewed, LIMIT, now) && !self.has_lost_source(now)
    }

    /// True when it was held once and is not any more.
    pub fn has_lapsed(&self, now: BootTime) -> bool {
        self.renewed.load(Ordering::SeqCst) != NEVER && !self.is_held(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> BootTime {
        BootTime(Duration::from_secs(seconds))
    }

    #[test]
    fn nothing_is_written_before_the_lease_was_taken_nor_after_it_was_lost() {
        let lease = Lease::default();
        assert!(!lease.is_held(at(0)) && !lease.has_lapsed(at(1_000)), "it was never held");

        lease.renew(at(10));
        assert!(lease.is_held(at(10)));
        lease.end();

        assert!(!lease.is_held(at(10)) && lease.has_lapsed(at(10)));
    }

    #[test]
    fn a_lease_ends_by_itself_and_begins_again_with_a_renewal() {
        let lease = Lease::default();
        lease.renew(at(100));

        assert!(lease.is_held(at(145)) && !lease.has_lapsed(at(145)));
        assert!(!lease.is_held(at(146)) && lease.has_lapsed(at(146)));

        lease.renew(at(150));
        assert!(lease.is_held(at(160)));
        // A renewal whose answer was read after a long sleep is as old as its question.
        assert!(!lease.is_held(at(200)));
    }

    #[test]
    fn who_may_not_read_the_source_any_more_writes_nothing() {
        let lease = Lease::default();
        lease.renew(at(100));
        assert!(!lease.has_source(at(100)) && lease.is_held(at(140)), "it needs no such right");

        lease.source_renewed(at(100));
        assert!(lease.has_source(at(120)) && lease.is_held(at(120)));
        assert!(!lease.has_source(at(121)) && lease.has_lapsed(at(121)));
        lease.source_renewed(at(121));
        assert!(lease.is_held(at(122)));
        lease.source_ended();
        assert!(lease.has_lost_source(at(122)) && lease.has_lapsed(at(122)));
    }

    #[test]
    fn the_clock_goes_on() {
        assert!(BootTime::now() <= BootTime::now() && BootTime::now() > at(0));
    }
}
