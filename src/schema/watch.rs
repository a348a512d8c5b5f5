//! Collections whose options and indexes are to be looked at beside the data: what the worker hands to the
//! task that builds indexes, and what became of it, which is displayed from here. Kept in memory alone, since
//! everything is looked at when an agent starts.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::atomic::{AtomicUsize, Ordering},
    time::{Duration, Instant},
};

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::{Notify, futures::Notified};

use super::Problem;
use crate::model::namespace::Namespace;

/// What is to be looked at.
#[derive(Debug, Default)]
pub struct SchemaWatch {
    asked: Mutex<Asked>,
    /// Looks that were taken up and are not done: what was refused and is tried again later is none of them.
    open: AtomicUsize,
    changed: Notify,
    /// Collections whose next change waits until Atlas makes it.
    held: Mutex<BTreeSet<Namespace>>,
    /// When indexes had to let documents in that they would have kept out.
    loosened: Mutex<BTreeMap<Namespace, Instant>>,
    /// What Atlas does not take.
    problems: Mutex<BTreeMap<Namespace, Vec<Problem>>>,
    builds: Mutex<BTreeMap<Namespace, Build>>,
}

/// Indexes of one collection that are being built.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Build {
    pub indexes: Vec<String>,
    /// Milliseconds since 1970.
    pub since_ms: u64,
    /// How far it is, where the server tells.
    pub percent: Option<u8>,
}

/// The collections that were named, or all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Asked {
    pub namespaces: BTreeSet<Namespace>,
    pub everything: bool,
}

impl SchemaWatch {
    /// One collection is to be looked at.
    pub fn ask(&self, ns: &Namespace) {
        self.asked().namespaces.insert(ns.clone());
        self.changed.notify_one();
    }

    /// All are: something changed that no event names.
    pub fn ask_everything(&self) {
        self.asked().everything = true;
        self.changed.notify_one();
    }

    /// Takes what was asked since this was called last.
    pub fn take(&self) -> Asked {
        let mut asked = self.asked();
        // Open from here on, until the taker says otherwise: nobody sees a moment in between.
        self.open
            .fetch_add(asked.namespaces.len() + usize::from(asked.everything), Ordering::SeqCst);
        std::mem::take(&mut asked)
    }

    /// So many looks that were taken up are not done.
    pub fn set_open(&self, looks: usize) {
        self.open.store(looks, Ordering::SeqCst);
    }

    /// These stay as they are in Atlas, and are tried again from time to time. True when that is news.
    pub fn list(&self, ns: &Namespace, problems: Vec<Problem>) -> bool {
        let mut listed = self.problems.lock();
        let is_news = listed.get(ns) != Some(&problems);
        listed.insert(ns.clone(), problems);
        is_news
    }

    /// What is known to stay as it is of a collection; nothing where that is not known.
    pub fn listed(&self, ns: &Namespace) -> Vec<Problem> {
        self.problems.lock().get(ns).cloned().unwrap_or_default()
    }

    /// Nothing of it differs any more.
    pub fn strike(&self, ns: &Namespace) {
        self.problems.lock().remove(ns);
    }

    /// These, and of no other collection.
    pub fn list_only(&self, problems: BTreeMap<Namespace, Vec<Problem>>) {
        *self.problems.lock() = problems;
    }

    pub fn all_listed(&self) -> BTreeMap<Namespace, Vec<Problem>> {
        self.problems.lock().clone()
    }

    /// A build of indexes begins.
    pub fn build_begins(&self, ns: &Namespace, indexes: Vec<String>, since_ms: u64) {
        self.builds.lock().insert(ns.clone(), Build { indexes, since_ms, percent: None });
    }

    /// It is so far, as the server tells.
    pub fn build_is_at(&self, ns: &Namespace, percent: Option<u8>) {
        if let Some(build) = self.builds.lock().get_mut(ns) {
            build.percent = percent;
        }
    }

    /// It has ended, or there was none.
    pub fn build_ended(&self, ns: &Namespace) {
        self.builds.lock().remove(ns);
    }

    /// Indexes that are being built in Atlas.
    pub fn builds(&self) -> BTreeMap<Namespace, Build> {
        self.builds.lock().clone()
    }

    /// True while an index is being built, or may be still to be.
    pub fn is_building(&self) -> bool {
        self.is_open() || !self.builds.lock().is_empty()
    }

    /// True while a look was asked for and is not done: an index may be still to be built.
    pub fn is_open(&self) -> bool {
        let asked = self.asked();
        *asked != Asked::default() || self.open.load(Ordering::SeqCst) > 0
    }

    /// The next change of these collections cannot be made yet. False when that is no news.
    pub fn hold(&self, namespaces: &[Namespace]) -> bool {
        let mut held = self.held();
        let before = held.len();
        held.extend(namespaces.iter().cloned());
        held.len() > before
    }

    /// Those whose next change cannot be made yet.
    pub fn all_held(&self) -> BTreeSet<Namespace> {
        self.held().clone()
    }

    /// It is made. False when these were not held.
    pub fn let_go(&self, namespaces: &[Namespace]) -> bool {
        let mut held = self.held();
        let before = held.len();
        held.retain(|ns| !namespaces.contains(ns));
        held.len() < before
    }

    /// An index had to let a document in. It is to be looked at, though not at once.
    pub fn loosened(&self, ns: &Namespace, now: Instant) {
        self.loose().insert(ns.clone(), now);
        self.ask(ns);
    }

    /// True when that was less than `within` before `now`.
    pub fn is_loosened(&self, ns: &Namespace, within: Duration, now: Instant) -> bool {
        let mut loose = self.loose();
        loose.retain(|_, since| now.saturating_duration_since(*since) < within);
        loose.contains_key(ns)
    }

    fn loose(&self) -> MutexGuard<'_, BTreeMap<Namespace, Instant>> {
        self.loosened.lock()
    }

    fn held(&self) -> MutexGuard<'_, BTreeSet<Namespace>> {
        self.held.lock()
    }

    /// Completes when something is asked, or was since the last call.
    pub fn changed(&self) -> Notified<'_> {
        self.changed.notified()
    }

    fn asked(&self) -> MutexGuard<'_, Asked> {
        self.asked.lock()
    }
}
