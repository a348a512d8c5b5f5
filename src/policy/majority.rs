//! How old the oldest local write is that no majority has yet. Pure: the time is passed in.
//!
//! A change stream shows only what a majority of the replica set has. Without one (a member is dead, the other
//! votes are an arbiter's) an application with `w: 1` goes on writing, the stream answers every second with
//! nothing, and the copy looks complete. The server tells both times, of its last write and of the last one that a
//! majority has; they are looked at about every second.
//!
//! What counts is not the distance between the two, which is large for a moment whenever a write follows a pause,
//! but for how long a write has been seen that is not committed.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use crate::model::checkpoint::ClusterTime;

/// Looks that are remembered: one a second, and beyond them a coarser picture that errs towards older.
const LOOKS: usize = 600;

/// For so long a write may wait for its majority before it counts as missing one: twice what a server's own flow
/// control aims at, and less than health waits for an end.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// What a server tells of its writes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Writes {
    /// The last one that is known to have been made.
    pub written: ClusterTime,
    /// The last one that a majority has, and this member shows.
    pub committed: ClusterTime,
    /// By how much the member is kept behind the others, by its configuration.
    pub delay: Duration,
}

/// The writes that were seen and had no majority yet.
#[derive(Clone, Debug, Default)]
pub struct Majority {
    /// The last write at a look, and when that was; the oldest first, and only what is not committed.
    open: VecDeque<(ClusterTime, Instant)>,
    looked: Option<Instant>,
    delay: Duration,
}

impl Majority {
    /// Takes what the server tells now.
    pub fn look(&mut self, writes: Writes, now: Instant) {
        (self.looked, self.delay) = (Some(now), writes.delay);
        while self.open.front().is_some_and(|(written, _)| *written <= writes.committed) {
            self.open.pop_front();
        }
        if writes.written <= writes.committed {
            return;
        }
        let is_full = self.open.len() >= LOOKS;
        match self.open.back_mut() {
            Some((written, _)) if *written >= writes.written => {}
            Some((written, _)) if is_full => *written = writes.written,
            _ => self.open.push_back((writes.written, now)),
        }
    }

    /// The age of the oldest write that this member does not show yet, at the last look: what that one saw first may
    /// be committed by now, as it is on a server that is only busy.
    pub fn behind(&self) -> Duration {
        let (Some(looked), Some((_, seen))) = (self.looked, self.open.front()) else {
            return self.delay;
        };
        looked.saturating_duration_since(*seen).max(self.delay)
    }

    /// The part of that age that the member's configured delay does not explain: what health judges.
    pub fn uncommitted(&self) -> Duration {
        self.behind().saturating_sub(self.delay)
    }

    /// See [`Writes::delay`].
    pub fn delay(&self) -> Duration {
        self.delay
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn secs(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    fn writes(written: u64, committed: u64) -> Writes {
        Writes {
            written: ClusterTime(written),
            committed: ClusterTime(committed),
            ..Writes::default()
        }
    }

    #[test]
    fn a_write_without_a_majority_grows_old_and_is_young_again_when_it_has_one() {
        let (mut majority, start) = (Majority::default(), Instant::now());
        for second in 0..=40 {
            majority.look(writes(100 + second, 99), start + secs(second));
        }

        assert_eq!(majority.uncommitted(), secs(40));
        majority.look(writes(140, 130), start + secs(40));
        assert_eq!(majority.uncommitted(), secs(9), "that of the 31st second");
        majority.look(writes(140, 140), start + secs(41));
        assert_eq!(majority.uncommitted(), secs(0));
    }

    #[test]
    fn a_server_that_is_only_busy_or_writes_after_a_long_pause_is_not_behind() {
        let (mut majority, start) = (Majority::default(), Instant::now());
        for second in 0..100 {
            majority.look(writes(1_000 * second + 7, 1_000 * second), start + secs(second));
            assert_eq!(majority.behind(), secs(0));
        }
        majority.look(writes(200_000, 100_000), start + secs(3_600));
        assert_eq!(majority.behind(), secs(0));
    }

    #[test]
    fn an_application_that_stops_writing_is_behind_all_the_same() {
        let (mut majority, start) = (Majority::default(), Instant::now());
        for second in 0..=100 {
            majority.look(writes(101, 100), start + secs(second));
        }

        assert_eq!(majority.behind(), secs(100));
    }

    #[test]
    fn a_week_without_a_majority_takes_no_memory_and_never_looks_younger() {
        let (mut majority, start) = (Majority::default(), Instant::now());
        for second in 0..10_000 {
            majority.look(writes(100 + second, 99), start + secs(second));
        }

        assert!(majority.open.len() <= LOOKS);
        majority.look(writes(20_000, 9_000), start + secs(10_000));
        assert!(majority.behind() >= secs(1_100));
    }

    #[test]
    fn a_delay_that_is_meant_is_lag_and_no_missing_majority() {
        let (mut majority, start) = (Majority::default(), Instant::now());
        let delayed = Writes { delay: secs(3_600), ..writes(100, 50) };
        majority.look(delayed, start);
        majority.look(delayed, start + secs(3_600));

        assert_eq!((majority.behind(), majority.uncommitted()), (secs(3_600), secs(0)));
    }
}
