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
    /// The document by itself that stayed without an answer last, by its bytes, and how many times in a row one did.
    alone: Option<(usize, u32)>,
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

    /// A document by itself was in a command of so many bytes that had no answer in time: nothing smaller can be sent.
    /// When that has happened so often that it may never arrive, returns what a person is to be told.
    pub fn unanswered_alone(&mut self, bytes: usize, timeout: Duration) -> Option<String> {
        let times = self.alone.map_or(1, |(_, times)| times.saturating_add(1));
        self.alone = Some((bytes, times));
        let kb_per_second = bytes as f64 / timeout.as_secs_f64() / 1_000.0;
        (times > 1 && bytes > LEAST).then(|| {
            format!(
                "a document of {} kB waits, which a line of less than {kb_per_second:.0} kB/s does not carry within `atlas.timeout`: raise it",
                bytes / 1_000
            )
        })
    }

    /// A command of so many bytes was answered after `took`, for which `timeout` would have been waited.
    pub fn answered(
        &mut self,
        bytes: usize,
        took: Duration,
        timeout: Duration,
        without_limit: usize,
    ) {
        self.alone = self.alone.filter(|(alone, _)| *alone > bytes);
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

    #[test]
    fn a_document_that_cannot_be_made_smaller_is_told_of_when_it_has_failed_again() {
        let mut line = Line::default();
        let tells = |line: &mut Line, bytes| line.unanswered_alone(bytes, TIMEOUT).is_some();
        assert!(!tells(&mut line, 1 << 20), "once is what an outage does");
        line.answered(1_000, TIMEOUT / 9, TIMEOUT, ALL);
        assert!(tells(&mut line, 1 << 20));
        line.answered(1 << 20, TIMEOUT / 2, TIMEOUT, ALL);
        assert!(!tells(&mut line, 1 << 20), "it has arrived meanwhile");
        assert!(!tells(&mut line, 1_000), "as small as that, it is not the line's width");
    }

    #[test]
    fn what_a_person_is_told_has_the_size_and_what_the_line_would_have_to_carry() {
        let mut line = Line::default();
        assert_eq!(line.unanswered_alone(2_000_000, TIMEOUT), None);

        let told = line.unanswered_alone(2_000_000, TIMEOUT).unwrap();

        assert!(told.contains("of 2000 kB") && told.contains("than 400 kB/s"), "{told}");
        assert_eq!(line.unanswered_alone(LEAST, TIMEOUT), None);
        assert!(line.unanswered_alone(LEAST + 1, TIMEOUT).is_some());
    }

    #[test]
    fn more_is_given_to_a_line_that_has_carried_half_its_measure_in_less_than_a_quarter_of_the_time()
     {
        let after = |bytes, took| {
            let mut line = Line::default();
            line.unanswered(1 << 20);
            line.answered(bytes, took, TIMEOUT, ALL);
            line.bytes_max(ALL)
        };
        let just = TIMEOUT.mul_f64(0.249);
        assert_eq!(after(1 << 18, just), 1 << 20);
        assert_eq!(after((1 << 18) - 1, just), 1 << 19);
        assert_eq!(after(1 << 18, TIMEOUT / 4), 1 << 19);
        // No measure is needed once the next one would be all.
        let mut line = Line::default();
        line.unanswered(ALL);
        line.answered(ALL / 2, just, TIMEOUT, ALL);
        assert_eq!(line.bytes_max(usize::MAX), usize::MAX);
    }
}
