//! Stops the worker from hammering an Atlas that is down.
//!
//! ```text
//!            `threshold` failures in a row            wait is over
//!   Closed ──────────────────────────────▶ Open ─────────────────────▶ HalfOpen
//!     ▲                                     ▲                            │   │
//!     │                                     └──────── probe failed ──────┘   │
//!     └──────────────────────────────── probe succeeded ─────────────────────┘
//! ```
//!
//! The breaker never sleeps and never reads a clock: the caller passes `now` in and does the
//! waiting, so every transition can be tested in a line.
//!
//! Only *unavailable* and *denied* batches count as failures. A document that Atlas rejects proves
//! that Atlas answers.

use std::time::{Duration, Instant};

/// When to open and for how long.
#[derive(Clone, Copy, Debug)]
pub struct BreakerPolicy {
    pub failure_threshold: u32,
    pub open_for: Duration,
    pub open_for_max: Duration,
}

/// What the breaker knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BreakerState {
    /// Writes flow.
    Closed { failures: u32 },
    /// Writes wait until `until`, and have since `since`. `trips` counts openings since the last success and sizes the
    /// wait.
    Open { until: Instant, trips: u32, since: Instant },
    /// One probe is in flight; its outcome decides.
    HalfOpen { trips: u32, since: Instant },
}

/// [`BreakerState`] without what it knows, as it is told to people.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Stage {
    #[default]
    Closed,
    Open,
    HalfOpen,
}

impl Stage {
    /// `closed`, `open` or `half-open`.
    pub fn name(self) -> &'static str {
        match self {
            Stage::Closed => "closed",
            Stage::Open => "open",
            Stage::HalfOpen => "half-open",
        }
    }
}

/// The answer to "may we write to Atlas now?".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// Yes.
    Proceed,
    /// Yes, one small batch, whose outcome decides for all.
    Probe,
    /// Ask again after this time.
    Wait(Duration),
}

/// A pure state machine around [`BreakerState`].
#[derive(Debug)]
pub struct CircuitBreaker {
    policy: BreakerPolicy,
    state: BreakerState,
}

/// How soon to ask again while another writer's probe is in flight.
const PROBE_PATIENCE: Duration = Duration::from_millis(100);

impl CircuitBreaker {
    pub fn new(policy: BreakerPolicy) -> Self {
        Self { policy, state: BreakerState::Closed { failures: 0 } }
    }

    pub fn state(&self) -> BreakerState {
        self.state
    }

    pub fn stage(&self) -> Stage {
        match self.state {
            BreakerState::Closed { .. } => Stage::Closed,
            BreakerState::Open { .. } => Stage::Open,
            BreakerState::HalfOpen { .. } => Stage::HalfOpen,
        }
    }

    /// May a batch be written at `now`? An answer of [`Admission::Probe`] must be followed by
    /// [`succeeded`](Self::succeeded), [`failed`](Self::failed) or [`abandoned`](Self::abandoned).
    pub fn permit(&mut self, now: Instant) -> Admission {
        match self.state {
            BreakerState::Closed { .. } => Admission::Proceed,
            BreakerState::Open { until, .. } if now < until => Admission::Wait(until - now),
            BreakerState::Open { trips, since, .. } => {
                self.state = BreakerState::HalfOpen { trips, since };
                Admission::Probe
            }
            BreakerState::HalfOpen { .. } => Admission::Wait(PROBE_PATIENCE),
        }
    }

    /// Atlas answered. Returns since when it was away, where that is over with this.
    pub fn succeeded(&mut self) -> Option<Instant> {
        let outage = match self.state {
            BreakerState::HalfOpen { since, .. } => Some(since),
            BreakerState::Closed { .. } | BreakerState::Open { .. } => None,
        };
        self.state = match self.state {
            BreakerState::Closed { .. } | BreakerState::HalfOpen { .. } => {
                BreakerState::Closed { failures: 0 }
            }
            // A batch that was sent before the breaker opened; the probe decides, not this one.
            BreakerState::Open { .. } => self.state,
        };
        outage
    }

    /// Atlas did not answer. `random` is uniform in `[0, 1)` and shortens the wait by up to 20 %. True when an outage
    /// begins with this.
    pub fn failed(&mut self, now: Instant, random: f64) -> bool {
        let was_closed = self.stage() == Stage::Closed;
        self.state = match self.state {
            BreakerState::Closed { failures } if failures + 1 < self.policy.failure_threshold => {
                BreakerState::Closed { failures: failures + 1 }
            }
            BreakerState::Closed { .. } => self.open(now, 1, now, random),
            BreakerState::HalfOpen { trips, since } => {
                self.open(now, trips.saturating_add(1), since, random)
            }
            BreakerState::Open { .. } => self.state,
        };
        was_closed && self.stage() == Stage::Open
    }

    /// Atlas refused us: waiting for `failure_threshold` more refusals would teach nothing. True when an outage begins
    /// with this.
    pub fn denied(&mut self, now: Instant, random: f64) -> bool {
        let was_closed = self.stage() == Stage::Closed;
        self.state = match self.state {
            BreakerState::Closed { .. } => self.open(now, 1, now, random),
            BreakerState::HalfOpen { trips, since } => {
                self.open(now, trips.saturating_add(1), since, random)
            }
            BreakerState::Open { .. } => self.state,
        };
        was_closed && self.stage() == Stage::Open
    }

    /// The probe was not sent after all: nothing was ready, or the local database was away.
    pub fn abandoned(&mut self, now: Instant) {
        self.state = match self.state {
            BreakerState::HalfOpen { trips, since } => {
                BreakerState::Open { until: now, trips, since }
            }
            BreakerState::Closed { .. } | BreakerState::Open { .. } => self.state,
        };
    }

    fn open(&self, now: Instant, trips: u32, since: Instant, random: f64) -> BreakerState {
        let doubled = self.policy.open_for.saturating_mul(1 << (trips - 1).min(20));
        let wait = doubled.min(self.policy.open_for_max).mul_f64(1.0 - 0.2 * random);
        BreakerState::Open { until: now + wait, trips, since }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: BreakerPolicy = BreakerPolicy {
        failure_threshold: 3,
        open_for: Duration::from_secs(1),
        open_for_max: Duration::from_secs(60),
    };

    fn secs(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn open_breaker(now: Instant) -> CircuitBreaker {
        let mut breaker = CircuitBreaker::new(POLICY);
        for _ in 0..3 {
            breaker.failed(now, 0.0);
        }
        breaker
    }

    #[test]
    fn it_opens_after_so_many_failures_in_a_row() {
        let now = Instant::now();
        let mut breaker = CircuitBreaker::new(POLICY);

        breaker.failed(now, 0.0);
        breaker.failed(now, 0.0);
        breaker.succeeded();
        breaker.failed(now, 0.0);
        breaker.failed(now, 0.0);
        assert_eq!(breaker.permit(now), Admission::Proceed);
        breaker.failed(now, 0.0);

        assert_eq!(breaker.permit(now), Admission::Wait(secs(1)));
    }

    #[test]
    fn failed_probe_reopens_and_doubles_the_wait() {
        let start = Instant::now();
        let mut breaker = open_breaker(start);
        assert_eq!(breaker.permit(start + secs(1)), Admission::Probe);

        breaker.failed(start + secs(1), 0.0);

        assert_eq!(breaker.permit(start + secs(1)), Admission::Wait(secs(2)));
    }

    #[test]
    fn only_one_probe_is_in_flight_and_its_success_closes() {
        let start = Instant::now();
        let mut breaker = open_breaker(start);

        assert_eq!(breaker.permit(start + secs(1)), Admission::Probe);
        assert!(matches!(breaker.permit(start + secs(1)), Admission::Wait(_)));
        breaker.succeeded();

        assert_eq!(breaker.state(), BreakerState::Closed { failures: 0 });
    }

    #[test]
    fn a_probe_that_was_not_sent_may_be_tried_again_at_once() {
        let start = Instant::now();
        let mut breaker = open_breaker(start);
        assert_eq!(breaker.permit(start + secs(1)), Admission::Probe);

        breaker.abandoned(start + secs(1));

        assert_eq!(breaker.permit(start + secs(1)), Admission::Probe);
    }

    #[test]
    fn a_success_from_before_the_outage_does_not_close_it() {
        let start = Instant::now();
        let mut breaker = open_breaker(start);

        breaker.succeeded();

        assert!(matches!(breaker.permit(start), Admission::Wait(_)));
    }

    #[test]
    fn a_refusal_opens_at_once() {
        let now = Instant::now();
        let mut breaker = CircuitBreaker::new(POLICY);

        breaker.denied(now, 0.0);

        assert!(matches!(breaker.permit(now), Admission::Wait(_)));
    }

    #[test]
    fn the_wait_grows_to_its_maximum_and_no_further() {
        let mut now = Instant::now();
        let mut breaker = open_breaker(now);

        for _ in 0..100 {
            now += secs(61);
            assert_eq!(breaker.permit(now), Admission::Probe);
            breaker.failed(now, 0.0);
        }

        assert_eq!(breaker.permit(now), Admission::Wait(secs(60)));
    }

    /// What may end a stretch of answers.
    type Ends = fn(&mut CircuitBreaker, Instant) -> bool;

    #[test]
    fn an_outage_begins_with_one_failure_or_refusal_and_ends_with_the_answer_to_a_probe() {
        let start = Instant::now();
        let fails = |breaker: &mut CircuitBreaker, now| breaker.failed(now, 0.0);
        let refuses = |breaker: &mut CircuitBreaker, now| breaker.denied(now, 0.0);
        for (ends, threshold) in [(fails as Ends, 3), (refuses as Ends, 1)] {
            let mut breaker = CircuitBreaker::new(POLICY);
            for n in 1..=5 {
                let begins = ends(&mut breaker, start);
                assert_eq!(begins, n == threshold, "{n} of {threshold}");
                let is_open = breaker.stage() == Stage::Open;
                assert_eq!(is_open, n >= threshold, "{n} of {threshold}");
            }
            assert_eq!(breaker.succeeded(), None, "it was sent before");
            assert_eq!(breaker.permit(start + secs(1)), Admission::Probe);
            assert_eq!(breaker.stage(), Stage::HalfOpen);

            assert!(!ends(&mut breaker, start + secs(1)), "the same outage goes on");
            assert_eq!(breaker.permit(start + secs(1)), Admission::Wait(secs(2)));
            assert_eq!(breaker.permit(start + secs(3)), Admission::Probe);
            assert_eq!(breaker.succeeded(), Some(start), "since it began");
            assert_eq!((breaker.stage(), breaker.succeeded()), (Stage::Closed, None));
        }
        assert_eq!(
            [Stage::Closed, Stage::HalfOpen, Stage::Open].map(Stage::name),
            ["closed", "half-open", "open"]
        );
    }

    #[test]
    fn up_to_a_fifth_of_the_wait_is_left_to_chance() {
        let now = Instant::now();
        let mut breaker = CircuitBreaker::new(POLICY);
        breaker.denied(now, 0.5);

        assert_eq!(breaker.permit(now), Admission::Wait(Duration::from_millis(900)));
    }
}
