//! How much one command may carry, on a line that is slow. Pure: the times are passed in.
//!
//! What the line does not carry within the time that an answer is waited for is sent in vain, and the same again after
//! it: 480 KB at 256 kbit/s take 15 seconds, so with a timeout of 5 none of it would ever arrive. So each command that
//! stays without an answer halves what the next ones carry, down to where a document goes by itself; each that fills
//! its measure and is answered well within the time doubles it, until no measure is needed.

use std::time::Duration;

/// Less than this makes no difference to a line that carries anything at all. A document that is larger goes alone.
const LEAST: usize = 8 << 10;

/// What a line has shown that it carries.
#[derive(Debug, Default)]
pub struct Line {
    /// Most bytes of a command; `None` while none has stayed without an answer.
    most: Option<usize>,
}

impl Line {
    /// Most bytes that a command should have.
    pub fn bytes_max(&self, without_limit: usize) -> usize {
        self.most.map_or(without_limit, |most| most.min(without_limit))
    }

    /// A command of so many bytes had no answer in time. Several writers that fail at one size halve it once.
    pub fn unanswered(&mut self, bytes: usize) {
        let half = (bytes / 2).max(LEAST);
        self.most = Some(self.most.map_or(half, |most| most.min(half)));
    }

    /// A command of so many bytes was answered after `took`, for which `timeout` would have been waited.
    pub fn answered(
        &mut self,
        bytes: usize,
        took: Duration,
        timeout: Duration,
        without_limit: usize,
    ) {
        let Some(most) = self.most else { return };
        // Twice as much takes no more than twice as long. What is far below the measure shows nothing of it.
        if took < timeout / 4 && bytes >= most / 2 {
            let next = most.saturating_mul(2);
            self.most = (next < without_limit).then_some(next);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(5);
    const ALL: usize = 15 << 20;

    /// Sends `bytes` in commands over a line of so many bytes per second; returns how many were sent, answered or not,
    /// until all of it was answered.
    fn sent(line: &mut Line, bytes: usize, per_second: usize) -> usize {
        let (mut left, mut sent) = (bytes, 0);
        while left > 0 {
            let command = left.min(line.bytes_max(ALL));
            sent += command;
            let took = Duration::from_secs_f64(command as f64 / per_second as f64);
            if took > TIMEOUT {
                line.unanswered(command);
            } else {
                line.answered(command, took, TIMEOUT, ALL);
                left -= command;
            }
            assert!(sent < 100 * bytes, "it never arrives");
        }
        sent
    }

    #[test]
    fn what_a_line_cannot_carry_in_time_goes_in_parts_that_it_can() {
        let mut line = Line::default();

        assert!(sent(&mut line, 4 << 20, 32_000) < 3 * (4 << 20));
        let most = line.bytes_max(ALL);
        assert!((LEAST..=5 * 32_000).contains(&most), "{most}");
    }

    #[test]
    fn a_line_that_is_fast_again_is_given_whole_commands_again() {
        let mut line = Line::default();
        for _ in 0..3 {
            line.unanswered(1 << 20);
        }
        assert_eq!(line.bytes_max(ALL), 1 << 19, "once");
        for _ in 0..20 {
            line.unanswered(line.bytes_max(ALL));
        }
        assert_eq!(line.bytes_max(ALL), LEAST);

        sent(&mut line, 64 << 20, 100 << 20);
        assert_eq!(line.bytes_max(ALL), ALL);
    }

    #[test]
    fn what_is_small_shows_nothing_of_a_line() {
        let mut line = Line::default();
        line.unanswered(1 << 20);

        line.answered(1_000, Duration::from_millis(1), TIMEOUT, ALL);
        assert_eq!(line.bytes_max(ALL), 1 << 19);
        line.answered(1 << 19, TIMEOUT / 2, TIMEOUT, ALL);
        assert_eq!(line.bytes_max(ALL), 1 << 19, "nor is what was slow a reason to send more");
    }
}
