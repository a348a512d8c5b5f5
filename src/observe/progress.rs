//! How far a copy, a comparison or a restore is: counted per collection, shown with rate and time left.
//! Pure: the time is passed in.

use std::{
    collections::{BTreeMap, VecDeque},
    fmt,
};

use serde::{Deserialize, Serialize};

use crate::model::namespace::Namespace;

/// What is being done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Activity {
    /// Everything is copied or compared because it must be: the first copy, a lost history.
    #[default]
    Copy,
    /// A comparison that was asked for, which repairs.
    Sync,
    /// A comparison that was asked for, which only reports.
    DryRun,
    Verify,
    Restore,
}

/// One collection's share.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Share {
    /// Documents that there are to do, as the server estimates.
    pub documents: u64,
    /// Documents copied or compared, and their bytes.
    pub documents_done: u64,
    pub bytes_done: u64,
    /// What a comparison found, in documents.
    pub missing: u64,
    pub extra: u64,
    pub content: u64,
    /// Differences of options and indexes, a sentence each.
    pub schema: Vec<String>,
    /// The extra ones were too many to be deleted without being asked.
    pub mass_delete_refused: bool,
    pub state: ShareState,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ShareState {
    #[default]
    Waiting,
    Running,
    Done,
}

impl Share {
    /// True when a comparison found documents that differ.
    pub fn differs(&self) -> bool {
        self.missing + self.extra + self.content > 0
    }

    /// True when a comparison found nothing.
    pub fn is_equal(&self) -> bool {
        !self.differs() && self.schema.is_empty()
    }
}

/// How a run ended. The API tells it in words, by which the CLI knows it again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", from = "String")]
pub enum SyncOutcome {
    Done,
    /// With what is left, in words.
    DoneBut(String),
    /// It was asked for, and cannot be done as asked.
    Failed(String),
    /// It is owed, and cannot be done until somebody acts. It is tried again.
    NotDone(String),
    /// More was required meanwhile.
    BeginsAgain,
    Cancelled,
    /// What was asked for has given way to what is owed.
    GivenWay,
    /// In the words of an agent of another version.
    Other(String),
}

const DONE: &str = "done";
const DONE_BUT: &str = "done, but: ";
const FAILED: &str = "failed: ";
const NOT_DONE: &str = "not done, and tried again: ";
const BEGINS_AGAIN: &str = "ended; it begins anew, since more was demanded meanwhile";
const CANCELLED: &str = "cancelled";
const GIVEN_WAY: &str =
    "ended for one that is owed; what was asked for is part of that one, or comes behind it";

impl fmt::Display for SyncOutcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (words, what) = match self {
            SyncOutcome::Done => (DONE, ""),
            SyncOutcome::DoneBut(what) => (DONE_BUT, what.as_str()),
            SyncOutcome::Failed(why) => (FAILED, why.as_str()),
            SyncOutcome::NotDone(why) => (NOT_DONE, why.as_str()),
            SyncOutcome::BeginsAgain => (BEGINS_AGAIN, ""),
            SyncOutcome::Cancelled => (CANCELLED, ""),
            SyncOutcome::GivenWay => (GIVEN_WAY, ""),
            SyncOutcome::Other(words) => (words.as_str(), ""),
        };
        write!(f, "{words}{what}")
    }
}

impl From<SyncOutcome> for String {
    fn from(outcome: SyncOutcome) -> Self {
        outcome.to_string()
    }
}

impl From<String> for SyncOutcome {
    fn from(words: String) -> Self {
        let after = |said: &str| words.strip_prefix(said).map(str::to_owned);
        match words.as_str() {
            DONE => SyncOutcome::Done,
            BEGINS_AGAIN => SyncOutcome::BeginsAgain,
            CANCELLED => SyncOutcome::Cancelled,
            GIVEN_WAY => SyncOutcome::GivenWay,
            _ => None
                .or_else(|| after(DONE_BUT).map(SyncOutcome::DoneBut))
                .or_else(|| after(FAILED).map(SyncOutcome::Failed))
                .or_else(|| after(NOT_DONE).map(SyncOutcome::NotDone))
                .unwrap_or(SyncOutcome::Other(words)),
        }
    }
}

/// The rate is the average over so many milliseconds.
const WINDOW_MS: u64 = 30_000;
/// How often a point of it is kept.
const POINT_MS: u64 = 500;

/// One run, from its start to its end.
#[derive(Clone, Debug, Default)]
pub struct Progress {
    pub id: String,
    pub activity: Activity,
    /// Why it runs, in words.
    pub reason: String,
    /// Servers compare hashes of ranges; documents cross the line only where those differ.
    pub digest: bool,
    pub started_ms: u64,
    pub finished_ms: Option<u64>,
    pub outcome: Option<SyncOutcome>,
    /// Bytes that Atlas sent for it.
    pub bytes_from_atlas: u64,
    pub shares: BTreeMap<Namespace, Share>,
    /// `(time, documents, bytes)`, the oldest first.
    points: VecDeque<(u64, u64, u64)>,
}

impl Progress {
    /// A run that begins.
    pub fn begin(id: String, activity: Activity, reason: String, now_ms: u64) -> Self {
        Self { id, activity, reason, started_ms: now_ms, ..Self::default() }
    }

    /// The share of a collection, which is added if it is new.
    pub fn share(&mut self, ns: &Namespace) -> &mut Share {
        if !self.shares.contains_key(ns) {
            self.shares.insert(ns.clone(), Share::default());
        }
        self.shares.get_mut(ns).expect("it was just added")
    }

    /// Documents of `ns` were copied or compared.
    pub fn advanced(&mut self, ns: &Namespace, documents: u64, bytes: u64, now_ms: u64) {
        let share = self.share(ns);
        share.documents_done += documents;
        share.bytes_done += bytes;
        let last = self.points.back().map_or((self.started_ms, 0, 0), |point| *point);
        if now_ms >= last.0 + POINT_MS || self.points.is_empty() {
            let (documents, bytes) = self.done();
            self.points.push_back((now_ms, documents, bytes));
        }
        while self.points.front().is_some_and(|point| point.0 + WINDOW_MS < now_ms) {
            self.points.pop_front();
        }
    }

    fn done(&self) -> (u64, u64) {
        self.shares.values().fold((0, 0), |(documents, bytes), share| {
            (documents + share.documents_done, bytes + share.bytes_done)
        })
    }

    /// Everything about it, as the API and the CLI show it.
    pub fn report(&self, now_ms: u64) -> ProgressReport {
        let (documents_done, bytes_done) = self.done();
        let until = self.finished_ms.unwrap_or(now_ms);
        let first = match self.points.front() {
            Some(point) if self.finished_ms.is_none() && self.points.len() > 1 => *point,
            Some(_) | None => (self.started_ms, 0, 0),
        };
        let seconds = (until.saturating_sub(first.0) as f64 / 1000.0).max(0.001);
        let documents_per_second = (documents_done - first.1.min(documents_done)) as f64 / seconds;
        let bytes_per_second = (bytes_done - first.2.min(bytes_done)) as f64 / seconds;
        // A collection that grew since it was estimated has more done than estimated; saturating, so that it does not
        // take from what is left of the others.
        let left: u64 = self
            .shares
            .values()
            .filter(|share| share.state != ShareState::Done)
            .map(|share| share.documents.saturating_sub(share.documents_done))
            .sum();
        let is_known = self.finished_ms.is_none() && documents_per_second > 0.0;
        let sum = |of: fn(&Share) -> u64| self.shares.values().map(of).sum();
        ProgressReport {
            id: self.id.clone(),
            activity: self.activity,
            reason: self.reason.clone(),
            digest: self.digest,
            started_ms: self.started_ms,
            finished_ms: self.finished_ms,
            outcome: self.outcome.clone(),
            collections: self.shares.len() as u64,
            collections_done: sum(|share| u64::from(share.state == ShareState::Done)),
            documents: documents_done + left,
            documents_done,
            bytes_done,
            documents_per_second: documents_per_second.round(),
            bytes_per_second: bytes_per_second.round(),
            eta_seconds: is_known.then(|| (left as f64 / documents_per_second).ceil() as u64),
            bytes_from_atlas: self.bytes_from_atlas,
            missing: sum(|share| share.missing),
            extra: sum(|share| share.extra),
            content: sum(|share| share.content),
            schema: sum(|share| share.schema.len() as u64),
            mass_delete_refused: self
                .shares
                .iter()
                .filter(|(_, share)| share.mass_delete_refused)
                .map(|(ns, _)| ns.to_string())
                .collect(),
            namespaces: self
                .shares
                .iter()
                .map(|(ns, share)| NamespaceReport { ns: ns.clone(), share: share.clone() })
                .collect(),
        }
    }
}

/// A run as the API and the CLI show it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ProgressReport {
    pub id: String,
    pub activity: Activity,
    pub reason: String,
    pub digest: bool,
    pub started_ms: u64,
    pub finished_ms: Option<u64>,
    pub outcome: Option<SyncOutcome>,
    pub collections: u64,
    pub collections_done: u64,
    pub documents: u64,
    pub documents_done: u64,
    pub bytes_done: u64,
    pub documents_per_second: f64,
    pub bytes_per_second: f64,
    pub eta_seconds: Option<u64>,
    pub bytes_from_atlas: u64,
    pub missing: u64,
    pub extra: u64,
    pub content: u64,
    /// Differences of options and indexes.
    pub schema: u64,
    pub mass_delete_refused: Vec<String>,
    pub namespaces: Vec<NamespaceReport>,
}

impl ProgressReport {
    /// The same without its collections, for a place where many would be too much.
    #[must_use]
    pub fn brief(mut self) -> Self {
        self.namespaces.retain(|of| of.share.state == ShareState::Running);
        self
    }
}

/// One collection's share, with its name.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NamespaceReport {
    pub ns: Namespace,
    #[serde(flatten)]
    pub share: Share,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn running() -> (Progress, Namespace) {
        let ns = Namespace::new("shop", "orders");
        let mut progress =
            Progress::begin("1".into(), Activity::Copy, "the first copy".into(), 10_000);
        let share = progress.share(&ns);
        (share.documents, share.state) = (1_000, ShareState::Running);
        (progress, ns)
    }

    #[test]
    fn rate_and_time_left_follow_the_last_half_minute() {
        let (mut progress, ns) = running();
        progress.advanced(&ns, 100, 1_000, 11_000);
        let after = progress.report(12_000);
        assert_eq!((after.documents_per_second, after.eta_seconds), (50.0, Some(18)));

        // A pause of a minute, then ten a second.
        for second in 0..40 {
            progress.advanced(&ns, 10, 100, 72_000 + second * 1_000);
        }
        let after = progress.report(112_000);
        assert!((9.0..=11.0).contains(&after.documents_per_second), "{after:?}");
        assert_eq!((after.documents, after.documents_done), (1_000, 500));
    }

    #[test]
    fn how_a_run_ended_is_known_again_by_its_words() {
        let why = || "`shop.orders`: too large".to_owned();
        for outcome in [
            SyncOutcome::Done,
            SyncOutcome::DoneBut(why()),
            SyncOutcome::Failed(why()),
            SyncOutcome::NotDone(why()),
            SyncOutcome::BeginsAgain,
            SyncOutcome::Cancelled,
            SyncOutcome::GivenWay,
            SyncOutcome::Other("of another version".into()),
        ] {
            assert_eq!(SyncOutcome::from(String::from(outcome.clone())), outcome);
        }
    }

    #[test]
    fn a_collection_that_grows_while_it_is_read_is_never_less_than_done() {
        let (mut progress, ns) = running();
        progress.advanced(&ns, 1_500, 1, 20_000);

        let report = progress.report(20_000);
        assert_eq!((report.documents, report.documents_done), (1_500, 1_500));
        assert_eq!(report.eta_seconds, Some(0));
    }

    #[test]
    fn what_has_ended_has_its_average_and_no_time_left() {
        let (mut progress, ns) = running();
        progress.advanced(&ns, 1_000, 5_000, 11_000);
        progress.share(&ns).state = ShareState::Done;
        progress.finished_ms = Some(15_000);

        let report = progress.report(99_000);
        assert_eq!((report.documents_per_second, report.eta_seconds), (200.0, None));
        assert_eq!((report.collections_done, report.collections), (1, 1));
    }
}
