//! What waits in a source itself until somebody has read it, as far as that is known. Pure: the time is passed in.
//!
//! A source that keeps what nobody has read yet, the rows of an outbox, is asked about every second how much that is and
//! for how long the oldest has waited. An answer is what is known, and its absence is that nothing is known: that nothing
//! was read is no sign that nothing waits.

use std::time::{Duration, Instant};

/// What a source tells of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Backlog {
    pub rows: u64,
    /// For how long the oldest of them has waited, by the source's own clock; `None` where nothing waits, or nothing
    /// tells when it was written.
    pub oldest: Option<Duration>,
    /// What time it was there, and here, when the answer came: milliseconds since 1970.
    pub there_ms: u64,
    pub here_ms: u64,
}

/// What is known of it.
#[derive(Clone, Debug, Default)]
pub struct Waiting {
    last: Option<(Backlog, Instant)>,
    is_silent: bool,
}

impl Waiting {
    /// The source has answered.
    pub fn look(&mut self, backlog: Backlog, now: Instant) {
        (self.last, self.is_silent) = (Some((backlog, now)), false);
    }

    /// It has not, or could not tell.
    pub fn unanswered(&mut self) {
        self.is_silent = true;
    }

    /// True while it is not known what waits, of a source that was asked.
    pub fn is_unknown(&self) -> bool {
        self.is_silent
    }

    /// What waits, of a source that tells.
    pub fn known(&self) -> Option<Backlog> {
        self.last.map(|(backlog, _)| backlog).filter(|_| !self.is_silent)
    }

    /// For how long the oldest has waited at least: what waited at the last answer counts as waiting still while there is
    /// no other.
    pub fn oldest(&self, now: Instant) -> Duration {
        let Some((Backlog { oldest: Some(oldest), .. }, seen)) = &self.last else {
            return Duration::ZERO;
        };
        let since =
            if self.is_silent { now.saturating_duration_since(*seen) } else { Duration::ZERO };
        *oldest + since
    }

    /// What time it is here for the source's clock, which may go ahead of this one or behind it.
    pub fn there_ms(&self, here_ms: u64) -> u64 {
        let Some((Backlog { there_ms, here_ms: then_ms, .. }, _)) = &self.last else {
            return here_ms;
        };
        (here_ms + there_ms).saturating_sub(*then_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn what_does_not_answer_is_not_known_and_what_waited_grows_old_meanwhile() {
        let (mut waiting, start) = (Waiting::default(), Instant::now());
        assert_eq!((waiting.known(), waiting.is_unknown()), (None, false), "nobody was asked");

        let backlog = Backlog { rows: 2, oldest: Some(3 * SECOND), ..Backlog::default() };
        waiting.look(backlog, start);
        assert_eq!(waiting.known(), Some(backlog));
        assert_eq!(waiting.oldest(start + SECOND), 3 * SECOND);

        waiting.unanswered();
        assert_eq!((waiting.known(), waiting.is_unknown()), (None, true));
        assert_eq!(waiting.oldest(start + 10 * SECOND), 13 * SECOND);
        waiting.look(Backlog::default(), start + 11 * SECOND);
        assert_eq!(
            (waiting.oldest(start + 12 * SECOND), waiting.is_unknown()),
            (Duration::ZERO, false)
        );
    }

    #[test]
    fn the_time_is_the_sources_own() {
        let mut waiting = Waiting::default();
        assert_eq!(waiting.there_ms(70_000), 70_000);
        for there_ms in [40_000, 95_000] {
            let backlog = Backlog { there_ms, here_ms: 60_000, ..Backlog::default() };
            waiting.look(backlog, Instant::now());
            assert_eq!(waiting.there_ms(70_000), there_ms + 10_000);
        }
    }
}
