//! Says when a position of the change stream is given up, at which the server fails though it answers otherwise.
//!
//! An entry of the oplog that the server cannot make an event of (seen on 6.0.5: `Location40532`) is answered
//! with an error for ever, and so is everything behind it. A new position and a comparison get past it. That is
//! worth it only when nothing else helps: so the same position must have failed several times, over some
//! minutes. Which failures count, the caller decides: those of a server that answers otherwise. That a new position
//! helps, it finds out by taking one.

use std::time::{Duration, Instant};

use crate::checkpoint::ResumeToken;

/// Fewer failures than this may have a reason that passes, however long ago the first was: each may have taken
/// the server minutes.
const FAILURES_MIN: u32 = 3;

/// What is known of the position at which the stream fails.
#[derive(Debug)]
pub struct Impasse {
    patience: Duration,
    at: Option<At>,
}

#[derive(Debug)]
struct At {
    position: Option<ResumeToken>,
    since: Instant,
    failures: u32,
}

impl Impasse {
    /// A position is given up after `patience`.
    pub fn new(patience: Duration) -> Self {
        Self { patience, at: None }
    }

    /// The server has failed at this position. True when it is to be given up.
    pub fn failed(&mut self, position: Option<ResumeToken>, now: Instant) -> bool {
        match &mut self.at {
            Some(at) if at.position == position => at.failures += 1,
            _ => self.at = Some(At { position, since: now, failures: 1 }),
        }
        self.at.as_ref().is_some_and(|at| {
            at.failures >= FAILURES_MIN && now.saturating_duration_since(at.since) >= self.patience
        })
    }

    /// True once it has failed there more than once.
    pub fn is_likely(&self) -> bool {
        self.at.as_ref().is_some_and(|at| at.failures > 1)
    }

    /// A new position was taken, or the stream fails for another reason. That it was opened is none: a server may
    /// take the question and fail at the next.
    pub fn is_over(&mut self) {
        self.at = None;
    }
}

#[cfg(test)]
mod tests {
    use bson::rawdoc;

    use super::*;

    fn token(n: i32) -> ResumeToken {
        ResumeToken(rawdoc! { "_data": n })
    }

    #[test]
    fn a_position_is_given_up_when_it_has_failed_for_minutes_and_not_before() {
        let start = Instant::now();
        let mut impasse = Impasse::new(Duration::from_secs(300));

        let given_up: Vec<_> = (0..40)
            .map(|n| n * 15)
            .filter(|second| impasse.failed(Some(token(1)), start + Duration::from_secs(*second)))
            .collect();

        assert_eq!(given_up.first(), Some(&300));
    }

    #[test]
    fn a_stream_that_moves_or_fails_for_another_reason_begins_anew() {
        let start = Instant::now();
        let mut impasse = Impasse::new(Duration::from_secs(300));

        for second in 0..1_000 {
            let now = start + Duration::from_secs(second);
            assert!(!impasse.failed(Some(token(second as i32 / 200)), now), "the position moves");
        }
        for second in 1_000..2_000 {
            if second % 200 == 0 {
                impasse.is_over();
            }
            assert!(!impasse.failed(None, start + Duration::from_secs(second)), "it was away");
        }
    }

    #[test]
    fn two_failures_far_apart_are_no_impasse() {
        let start = Instant::now();
        let mut impasse = Impasse::new(Duration::from_secs(300));

        assert!(!impasse.failed(Some(token(1)), start));
        assert!(!impasse.failed(Some(token(1)), start + Duration::from_secs(400)));
        assert!(impasse.failed(Some(token(1)), start + Duration::from_secs(800)));
    }
}
