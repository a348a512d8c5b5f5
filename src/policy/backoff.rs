//! How long to wait before trying again. The `backoff` crate is used in this file only.
//!
//! Two waits exist. A document that Atlas rejects is retried on a fixed schedule and then given up
//! ([`RetrySchedule`]). A server that does not answer is waited for, for ever, in steps that double
//! ([`OutageWait`]).

use std::time::Duration;

use backoff::{ExponentialBackoff, ExponentialBackoffBuilder, backoff::Backoff};

/// The waits between the attempts of one op.
#[derive(Clone, Debug)]
pub struct RetrySchedule {
    delays: Vec<Duration>,
    max_retries: u32,
}

/// Share by which a wait is made shorter or longer, so that documents that failed together do not
/// all come back together.
const JITTER: f64 = 0.1;

impl RetrySchedule {
    /// `delays` is not empty; its last one repeats. After `max_retries` the op is given up.
    pub fn new(delays: Vec<Duration>, max_retries: u32) -> Self {
        assert!(!delays.is_empty(), "a schedule has at least one delay");
        Self { delays, max_retries }
    }

    /// The wait after the attempt number `failed` (from 1), or `None` when the op is given up.
    /// `random` is uniform in `[0, 1)` and spreads the wait by ±10 %.
    pub fn after(&self, failed: u32, random: f64) -> Option<Duration> {
        let mut waits = Waits { schedule: self, next: failed.saturating_sub(1), random };
        waits.next_backoff()
    }
}

struct Waits<'a> {
    schedule: &'a RetrySchedule,
    next: u32,
    random: f64,
}

impl Backoff for Waits<'_> {
    fn next_backoff(&mut self) -> Option<Duration> {
        if self.next >= self.schedule.max_retries {
            return None;
        }
        let last = self.schedule.delays.len() - 1;
        let delay = self.schedule.delays[(self.next as usize).min(last)];
        self.next += 1;
        Some(delay.mul_f64(1.0 - JITTER + 2.0 * JITTER * self.random))
    }

    fn reset(&mut self) {
        self.next = 0;
    }
}

/// The doubling wait for a server that does not answer.
#[derive(Debug)]
pub struct OutageWait(ExponentialBackoff);

impl OutageWait {
    /// Waits of `first`, 2 × `first`, … up to `longest`, each spread by ±20 %.
    pub fn new(first: Duration, longest: Duration) -> Self {
        Self(
            ExponentialBackoffBuilder::new()
                .with_initial_interval(first)
                .with_max_interval(longest)
                .with_multiplier(2.0)
                .with_randomization_factor(0.2)
                .with_max_elapsed_time(None)
                .build(),
        )
    }

    /// The next wait. Never gives up.
    pub fn next_wait(&mut self) -> Duration {
        self.0.next_backoff().unwrap_or(self.0.max_interval)
    }

    /// The server answered.
    pub fn reset(&mut self) {
        self.0.reset();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schedule() -> RetrySchedule {
        RetrySchedule::new([1, 5, 15, 30, 60].map(Duration::from_secs).into(), 5)
    }

    #[test]
    fn property_04_retries_wait_1_5_15_30_60_seconds_and_then_end() {
        for (attempt, seconds) in [(1, 1.0), (2, 5.0), (3, 15.0), (4, 30.0), (5, 60.0)] {
            for random in [0.0, 0.5, 0.999] {
                let wait = schedule().after(attempt, random).unwrap().as_secs_f64();
                assert!((wait - seconds).abs() <= seconds * JITTER + 1e-9, "{attempt}: {wait}");
            }
        }
        assert_eq!(schedule().after(6, 0.5), None);
    }

    #[test]
    fn the_last_delay_repeats_up_to_the_limit() {
        let schedule = RetrySchedule::new(vec![Duration::from_secs(1)], 3);

        assert_eq!(schedule.after(3, 0.5), Some(Duration::from_secs(1)));
        assert_eq!(schedule.after(4, 0.5), None);
    }

    #[test]
    fn a_server_that_is_away_is_waited_for_without_end() {
        let mut wait = OutageWait::new(Duration::from_secs(1), Duration::from_secs(60));

        let waits: Vec<_> = (0..50).map(|_| wait.next_wait()).collect();

        assert!(waits[0] <= Duration::from_millis(1200));
        assert!(waits.iter().all(|wait| *wait <= Duration::from_secs(72)));
        assert!(waits[49] >= Duration::from_secs(48));

        wait.reset();
        assert!(wait.next_wait() <= Duration::from_millis(1200), "from the first one again");
    }

    #[test]
    fn waits_follow_one_another_and_begin_anew() {
        let schedule = schedule();
        let mut waits = Waits { schedule: &schedule, next: 0, random: 0.5 };
        let mut next = || waits.next_backoff().map(|wait| wait.as_secs_f64().round());

        assert_eq!([next(), next(), next()], [Some(1.0), Some(5.0), Some(15.0)]);
        waits.reset();
        assert_eq!(waits.next_backoff(), schedule.after(1, 0.5));
    }
}
