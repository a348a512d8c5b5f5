//! The last hour in samples of five seconds, the last day in samples of two minutes, and what happened meanwhile, for
//! charts. Pure, and bounded.
//!
//! It outlives the agent as bytes that [`History::to_bytes`] makes and [`History::restored`] takes. They are there to be
//! looked at: what cannot be read of them is thrown away, and nothing depends on it.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use super::marks::{Facts, Mark, Marks};

/// How far apart samples are, and how many are kept: an hour, and a day.
pub const SAMPLE_SECONDS: u64 = 5;
pub const DAY_SAMPLE_SECONDS: u64 = 120;
const SAMPLES: usize = 720;
const HOUR_MS: u64 = 3_600_000;
const DAY_MS: u64 = 24 * HOUR_MS;

/// Most bytes of a history: 2 × 720 samples and 100 marks have less than half of it.
pub const BYTES_MAX: usize = 1 << 20;

/// How the bytes are made. Those of another number are thrown away.
const VERSION: u32 = 1;

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

/// A sample as it is kept, and sent: times and sizes, and the rates in tenths.
pub type Row = [u64; 6];

impl Sample {
    pub fn row(&self) -> Row {
        let tenths = |rate: f64| (rate * 10.0).round() as u64;
        let rates = [tenths(self.events_per_second), tenths(self.writes_per_second)];
        [self.at_ms, self.lag_ms, self.pending, self.pending_bytes, rates[0], rates[1]]
    }

    fn of_row([at_ms, lag_ms, pending, pending_bytes, events, writes]: Row) -> Self {
        Self {
            at_ms,
            lag_ms,
            pending,
            pending_bytes,
            events_per_second: events as f64 / 10.0,
            writes_per_second: writes as f64 / 10.0,
        }
    }
}

/// Two minutes that are being gathered into one sample: the worst of them, and the rates on average.
#[derive(Debug, Default)]
struct Bucket {
    sum: Sample,
    samples: u32,
}

impl Bucket {
    fn add(&mut self, sample: &Sample) {
        let sum = &mut self.sum;
        sum.at_ms = sample.at_ms;
        sum.lag_ms = sum.lag_ms.max(sample.lag_ms);
        sum.pending = sum.pending.max(sample.pending);
        sum.pending_bytes = sum.pending_bytes.max(sample.pending_bytes);
        sum.events_per_second += sample.events_per_second;
        sum.writes_per_second += sample.writes_per_second;
        self.samples += 1;
    }

    fn number(at_ms: u64) -> u64 {
        at_ms / 1_000 / DAY_SAMPLE_SECONDS
    }

    /// The sample of what was gathered before `next_ms`, where that is the first of another bucket.
    fn take_before(&mut self, next_ms: u64) -> Option<Sample> {
        if self.samples == 0 || Self::number(self.sum.at_ms) == Self::number(next_ms) {
            return None;
        }
        let Self { mut sum, samples } = std::mem::take(self);
        sum.events_per_second /= f64::from(samples);
        sum.writes_per_second /= f64::from(samples);
        Some(sum)
    }
}

/// Why a history that was kept is thrown away.
#[derive(Debug, thiserror::Error)]
pub enum Unusable {
    #[error("it has {0} bytes, more than it can have")]
    TooLarge(usize),
    #[error("it is of version {0}, and this program knows {VERSION}")]
    OtherVersion(u32),
    #[error("it is no history")]
    Broken(#[from] serde_json::Error),
    #[error("its samples are not in the order of their times")]
    Disordered,
}

#[derive(Deserialize)]
struct Version {
    version: u32,
}

#[derive(Serialize, Deserialize)]
struct Kept {
    version: u32,
    hour: Vec<Row>,
    day: Vec<Row>,
    marks: Vec<Mark>,
}

/// Rings of samples, and the marks beside them.
#[derive(Debug, Default)]
pub struct History {
    samples: VecDeque<Sample>,
    day: VecDeque<Sample>,
    bucket: Bucket,
    marks: Marks,
    before: Option<(u64, Totals)>,
}

fn push(ring: &mut VecDeque<Sample>, sample: Sample) {
    if ring.len() == SAMPLES {
        ring.pop_front();
    }
    ring.push_back(sample);
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
        let sample = Sample { events_per_second: events, writes_per_second: writes, ..sample };
        // A clock that was set back: what is from the future of it would stand in the way of what comes.
        for ring in [&mut self.samples, &mut self.day] {
            while ring.back().is_some_and(|last| last.at_ms >= sample.at_ms) {
                ring.pop_back();
            }
        }
        if self.bucket.sum.at_ms >= sample.at_ms {
            self.bucket = Bucket::default();
        }
        if let Some(gathered) = self.bucket.take_before(sample.at_ms) {
            push(&mut self.day, gathered);
        }
        self.bucket.add(&sample);
        push(&mut self.samples, sample);
    }

    /// Takes what holds at `now_ms`; see [`Marks`].
    pub fn look(&mut self, facts: &Facts, now_ms: u64) {
        self.marks.look(facts, now_ms);
    }

    /// The agent begins to run.
    pub fn restarted(&mut self, now_ms: u64) {
        let last = self.samples.back().or(self.day.back()).map(|sample| sample.at_ms);
        self.marks.restarted(last, now_ms);
    }

    /// What happened in the last day.
    pub fn marks(&self) -> impl ExactSizeIterator<Item = &Mark> {
        self.marks.kept()
    }

    /// The last day, the oldest first, but for the last two minutes.
    pub fn day(&self) -> impl ExactSizeIterator<Item = &Sample> {
        self.day.iter()
    }

    /// What is to be kept of it.
    pub fn to_bytes(&self) -> Vec<u8> {
        let rows = |ring: &VecDeque<Sample>| ring.iter().map(Sample::row).collect();
        let (hour, day) = (rows(&self.samples), rows(&self.day));
        let marks = self.marks.kept().cloned().collect();
        // It has no map keys but strings.
        serde_json::to_vec(&Kept { version: VERSION, hour, day, marks }).unwrap_or_default()
    }

    /// A history as it was kept, without what is too old at `now_ms`, or lies behind it.
    ///
    /// # Errors
    /// [`Unusable`]: it is thrown away.
    pub fn restored(bytes: &[u8], now_ms: u64) -> Result<Self, Unusable> {
        if bytes.len() > BYTES_MAX {
            return Err(Unusable::TooLarge(bytes.len()));
        }
        let Version { version } = serde_json::from_slice(bytes)?;
        if version != VERSION {
            return Err(Unusable::OtherVersion(version));
        }
        let kept: Kept = serde_json::from_slice(bytes)?;
        let ring = |rows: Vec<Row>, reach: u64| {
            if !rows.is_sorted_by(|a, b| a[0] < b[0]) {
                return Err(Unusable::Disordered);
            }
            let times = now_ms.saturating_sub(reach)..=now_ms;
            let kept = rows.into_iter().filter(|row| times.contains(&row[0])).map(Sample::of_row);
            let mut kept: VecDeque<_> = kept.collect();
            kept.drain(..kept.len().saturating_sub(SAMPLES));
            Ok(kept)
        };
        Ok(Self {
            samples: ring(kept.hour, HOUR_MS)?,
            day: ring(kept.day, DAY_MS)?,
            marks: Marks::restored(kept.marks, now_ms),
            ..Self::default()
        })
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

    /// An hour and a half, with one bad moment.
    fn lived() -> History {
        let mut history = History::default();
        for n in 0..1_080_u64 {
            let sample = Sample {
                at_ms: n * 5_000,
                pending: if n == 10 { 99 } else { 1 },
                ..Sample::default()
            };
            history.add(sample, Totals { events: n * 50, writes: n * 25 });
        }
        history.look(&Facts { is_paused: true, ..Facts::default() }, 5_400_000);
        history
    }

    #[test]
    fn a_day_is_kept_in_samples_of_two_minutes_with_the_worst_of_each() {
        let history = lived();

        let day: Vec<_> = history.day().copied().collect();
        assert_eq!(day.len(), 44, "the last two minutes are still gathered");
        assert_eq!((day[0].pending, day[1].pending), (99, 1));
        assert_eq!((day[1].events_per_second, day[1].writes_per_second), (10.0, 5.0));
    }

    #[test]
    fn it_outlives_the_agent_without_what_is_too_old() {
        let bytes = lived().to_bytes();

        let same = History::restored(&bytes, 5_400_000).unwrap();
        assert_eq!((same.samples().len(), same.day().len(), same.marks().len()), (720, 44, 1));
        assert_eq!(same.to_bytes(), bytes);
        let later = History::restored(&bytes, 5_400_000 + HOUR_MS / 2).unwrap();
        assert_eq!((later.samples().len(), later.day().len()), (360, 44));
        let earlier = History::restored(&bytes, 2_700_000).unwrap();
        assert!(
            earlier.samples().all(|sample| sample.at_ms <= 2_700_000),
            "the clock was set back"
        );
    }

    #[test]
    fn a_history_that_cannot_be_used_says_why_and_is_never_half_taken() {
        let bytes = lived().to_bytes();
        let text = String::from_utf8(bytes.clone()).unwrap();
        let why = |bytes: &[u8]| History::restored(bytes, 5_400_000).unwrap_err();

        for len in (0..bytes.len()).step_by(1_999) {
            assert!(matches!(why(&bytes[..len]), Unusable::Broken(_)), "cut at {len}");
        }
        let other = text.replace("\"version\":1", "\"version\":2");
        assert!(matches!(why(other.as_bytes()), Unusable::OtherVersion(2)));
        let disordered = text.replace("5395000", "1000");
        assert!(matches!(why(disordered.as_bytes()), Unusable::Disordered));
        assert!(matches!(why(&vec![b' '; BYTES_MAX + 1]), Unusable::TooLarge(_)));
    }

    #[test]
    fn a_clock_that_was_set_back_leaves_no_sample_in_the_future() {
        let mut history = lived();

        history.add(Sample { at_ms: 2_700_000, ..Sample::default() }, Totals::default());

        assert_eq!(history.last().unwrap().at_ms, 2_700_000);
        assert!(history.samples().is_sorted_by_key(|sample| sample.at_ms));
        assert!(history.day().all(|sample| sample.at_ms < 2_700_000));
    }
}
