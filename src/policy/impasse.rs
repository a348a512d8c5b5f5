//! Says when a position of the change stream is given up, at which the server fails though it answers otherwise.
//!
//! An entry of the oplog that the server cannot make an event of (seen on 6.0.5: `Location40532`) is answered
//! with an error for ever, and so is everything behind it. A new position and a comparison get past it. That is
//! worth it only when nothing else helps: so the same position must have failed several times, over some
//! minutes. Which failures count, the caller decides: those of a server that answers otherwise. That a new position
//! helps, it finds out by taking one.

//!
//! What is known of it is noted beside the queue: an agent that is started again and again because it does not get on
//! would have no minutes in a row. So the time is that of the calendar; one that jumps costs at most a comparison.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::model::checkpoint::ResumeToken;

/// Fewer failures than this may have a reason that passes, however long ago the first was: each may have taken
/// the server minutes.
const FAILURES_MIN: u32 = 3;

/// What is known of the position at which the stream fails.
#[derive(Debug)]
pub struct Impasse {
    patience: Duration,
    at: Option<At>,
}

#[derive(Debug, Serialize, Deserialize)]
struct At {
    /// The token, as bytes.
    position: Option<Vec<u8>>,
    /// The first failure, milliseconds since 1970.
    since_ms: u64,
    failures: u32,
}

impl Impasse {
    /// A position is given up after `patience`; `noted` is what an earlier life has found out.
    pub fn new(patience: Duration, noted: Option<&[u8]>) -> Self {
        // A note that cannot be read counts as none: the next failure overwrites it.
        let at = noted.and_then(|noted| serde_json::from_slice(noted).ok());
        Self { patience, at }
    }

    /// For the queue, so that the next process counts on instead of beginning at the first failure.
    pub fn note(&self) -> Option<Vec<u8>> {
        self.at.as_ref().map(|at| serde_json::to_vec(at).expect("numbers are JSON"))
    }

    /// The server has failed at this position. True when it is to be given up.
    pub fn failed(&mut self, position: Option<ResumeToken>, now_ms: u64) -> bool {
        let position = position.map(|token| token.0.into_bytes());
        match &mut self.at {
            Some(at) if at.position == position => at.failures += 1,
            _ => self.at = Some(At { position, since_ms: now_ms, failures: 1 }),
        }
        self.at.as_ref().is_some_and(|at| {
            let lasts = Duration::from_millis(now_ms.saturating_sub(at.since_ms));
            at.failures >= FAILURES_MIN && lasts >= self.patience
        })
    }

    /// True once it has failed there more than once.
    pub fn is_likely(&self) -> bool {
        self.at.as_ref().is_some_and(|at| at.failures > 1)
    }

    /// A new position was taken, or the stream fails for another reason. That the stream was opened again is no reason to
    /// call this: a server may accept the position and fail with the first `getMore`. False when nothing was known.
    pub fn is_over(&mut self) -> bool {
        self.at.take().is_some()
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
        let mut impasse = Impasse::new(Duration::from_secs(300), None);

        let given_up: Vec<_> = (0..40)
            .map(|n| n * 15)
            .filter(|second| impasse.failed(Some(token(1)), second * 1_000))
            .collect();

        assert_eq!(given_up.first(), Some(&300));
    }

    #[test]
    fn a_stream_that_moves_or_fails_for_another_reason_begins_anew() {
        let mut impasse = Impasse::new(Duration::from_secs(300), None);

        for second in 0..1_000 {
            let now = second * 1_000;
            assert!(!impasse.failed(Some(token(second as i32 / 200)), now), "the position moves");
        }
        for second in 1_000..2_000 {
            if second % 200 == 0 {
                impasse.is_over();
            }
            assert!(!impasse.failed(None, second * 1_000), "it was away");
        }
    }

    #[test]
    fn two_failures_far_apart_are_no_impasse() {
        let mut impasse = Impasse::new(Duration::from_secs(300), None);

        assert!(!impasse.is_likely());
        assert!(!impasse.failed(Some(token(1)), 0));
        assert!(!impasse.is_likely(), "once is what an outage does");
        assert!(!impasse.failed(Some(token(1)), 400_000));
        assert!(impasse.is_likely());
        assert!(impasse.failed(Some(token(1)), 800_000));
        assert!(impasse.is_over() && !impasse.is_likely());
    }

    #[test]
    fn a_later_life_goes_on_counting_at_the_same_position_and_at_no_other() {
        let mut impasse = Impasse::new(Duration::from_secs(300), None);
        assert!(impasse.note().is_none());

        for (life, given_up) in [(0, false), (100, false), (200, false), (299, false), (300, true)]
        {
            impasse = Impasse::new(Duration::from_secs(300), impasse.note().as_deref());
            assert_eq!(impasse.failed(Some(token(1)), life * 1_000), given_up, "{life}");
        }

        let note = impasse.note();
        let mut moved = Impasse::new(Duration::from_secs(300), note.as_deref());
        assert!(!moved.failed(Some(token(2)), 301_000));
        assert!(impasse.is_over() && !impasse.is_over() && impasse.note().is_none());
        let damaged = &note.unwrap()[1..];
        assert!(!Impasse::new(Duration::ZERO, Some(damaged)).is_likely());
    }
}
