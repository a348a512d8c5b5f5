//! Keeps writes within a rate. Pure: the caller passes `now` in and does the waiting.
//!
//! Each write is throttled: it takes its share of time; the next one begins when that is over. There is
//! no burst to save up, so a rate holds over any span longer than one write. Writes are cut to a tenth
//! of a second's worth for that ([`Limiter::ops_max`], [`Limiter::bytes_max`]).

use std::time::{Duration, Instant};

/// Two rates, of which the slower decides.
#[derive(Debug, Default)]
pub struct Limiter {
    ops_per_second: Option<f64>,
    bytes_per_second: Option<f64>,
    free_at: Option<Instant>,
}

/// Writes per second that a rate is cut into.
const PARTS: f64 = 10.0;

impl Limiter {
    /// 0 stands for "no limit".
    pub fn new(ops_per_second: u64, bytes_per_second: u64) -> Self {
        let rate = |limit: u64| (limit > 0).then_some(limit as f64);
        Self {
            ops_per_second: rate(ops_per_second),
            bytes_per_second: rate(bytes_per_second),
            free_at: None,
        }
    }

    /// Takes a write's share of time, and returns how long to wait before it is sent.
    pub fn throttle(&mut self, now: Instant, ops: usize, bytes: usize) -> Duration {
        let time = |amount: usize, rate: Option<f64>| rate.map_or(0.0, |rate| amount as f64 / rate);
        let cost = time(ops, self.ops_per_second).max(time(bytes, self.bytes_per_second));
        if cost == 0.0 {
            return Duration::ZERO;
        }
        let start = self.free_at.map_or(now, |free_at| free_at.max(now));
        self.free_at = Some(start + Duration::from_secs_f64(cost));
        start - now
    }

    /// Most ops that one write should have.
    pub fn ops_max(&self, without_limit: usize) -> usize {
        part(self.ops_per_second, without_limit)
    }

    /// Most bytes that one write should have.
    pub fn bytes_max(&self, without_limit: usize) -> usize {
        part(self.bytes_per_second, without_limit)
    }
}

fn part(rate: Option<f64>, without_limit: usize) -> usize {
    rate.map_or(without_limit, |rate| ((rate / PARTS) as usize).clamp(1, without_limit))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sends `writes` of `ops` and `bytes` one after the other; returns the seconds until the last.
    fn run(limiter: &mut Limiter, writes: usize, ops: usize, bytes: usize) -> f64 {
        let start = Instant::now();
        let mut now = start;
        for _ in 0..writes {
            now += limiter.throttle(now, ops, bytes);
        }
        (now - start).as_secs_f64()
    }

    #[test]
    fn a_rate_holds_within_a_tenth_over_ten_seconds() {
        let seconds = run(&mut Limiter::new(1000, 0), 100, 100, 1 << 20);
        assert!((9.0..=11.0).contains(&seconds), "10,000 ops at 1,000 per second: {seconds}");

        let seconds = run(&mut Limiter::new(0, 1_000_000), 100, 1, 100_000);
        assert!((9.0..=11.0).contains(&seconds), "10 MB at 1 MB per second: {seconds}");
    }

    #[test]
    fn the_slower_rate_decides_and_idleness_saves_nothing_up() {
        let mut limiter = Limiter::new(100, 1_000);
        let start = Instant::now();

        assert_eq!(limiter.throttle(start, 1, 1_000), Duration::ZERO);
        assert_eq!(limiter.throttle(start, 1, 1_000), Duration::from_secs(1));
        let later = start + Duration::from_secs(60);
        assert_eq!(limiter.throttle(later, 1, 1_000), Duration::ZERO);
        assert_eq!(limiter.throttle(later, 1, 1_000), Duration::from_secs(1));
    }

    #[test]
    fn without_a_limit_nothing_waits() {
        let mut limiter = Limiter::new(0, 0);

        assert_eq!(run(&mut limiter, 1000, 1000, 1 << 20), 0.0);
        assert_eq!((limiter.ops_max(1000), limiter.bytes_max(1 << 20)), (1000, 1 << 20));
        assert_eq!(Limiter::new(50, 0).ops_max(1000), 5);
        assert_eq!(Limiter::new(1, 1).ops_max(1000), 1);
    }
}
