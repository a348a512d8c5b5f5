//! The last hour in samples, for charts. Pure, and bounded.

use std::collections::VecDeque;

use serde::Serialize;

/// How far apart samples are, and how many are kept: an hour.
pub const SAMPLE_SECONDS: u64 = 5;
const SAMPLES: usize = 720;

/// The state at one moment, and what happened since the sample before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Sample {
    /// Milliseconds since 1970.
    pub at_ms: u64,
    pub lag_ms: u64,
    pub pending: u64,
    pub pending_bytes: u64,
    /// Per second, since the sample before.
    pub events_per_second: f64,
    pub writes_per_second: f64,
}

/// Counters at the last sample.
#[derive(Clone, Copy, Debug, Default)]
pub struct Totals {
    pub events: u64,
    /// Writes applied, and documents copied.
    pub writes: u64,
}

/// A ring of samples.
#[derive(Debug, Default)]
pub struct History {
    samples: VecDeque<Sample>,
    before: Option<(u64, Totals)>,
}

impl History {
    /// Adds a sample; its rates follow from `totals` and those of the last call.
    pub fn add(&mut self, sample: Sample, totals: Totals) {
        let (events, writes) = match self.before.replace((sample.at_ms, totals)) {
            Some((at, before)) if sample.at_ms > at => {
                let seconds = (sample.at_ms - at) as f64 / 1000.0;
                (
                    totals.events.saturating_sub(before.events) as f64 / seconds,
                    totals.writes.saturating_sub(before.writes) as f64 / seconds,
                )
            }
            Some(_) | None => (0.0, 0.0),
        };
        if self.samples.len() == SAMPLES {
            self.samples.pop_front();
        }
        self.samples.push_back(Sample {
            events_per_second: events,
            writes_per_second: writes,
            ..sample
        });
    }

    /// All samples, the oldest first.
    pub fn samples(&self) -> impl ExactSizeIterator<Item = &Sample> {
        self.samples.iter()
    }

    /// The newest one.
    pub fn last(&self) -> Option<&Sample> {
        self.samples.back()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_follow_from_the_counters_and_an_hour_is_kept() {
        let mut history = History::default();

        for n in 0..1_000 {
            let totals = Totals { events: n * 50, writes: n * 25 };
            history.add(Sample { at_ms: n * 5_000, ..Sample::default() }, totals);
        }

        assert_eq!(history.samples().len(), 720);
        let last = history.last().unwrap();
        assert_eq!((last.events_per_second, last.writes_per_second), (10.0, 5.0));
        assert_eq!(history.samples().next().unwrap().at_ms, 280 * 5_000);
    }
}
