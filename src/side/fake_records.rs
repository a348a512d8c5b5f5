//! Lease records in memory, for tests of what takes a lease, renews it and loses it.

use std::{
    collections::BTreeSet,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    time::{Duration, Instant},
};

use parking_lot::Mutex;

use super::{Answer, SideError, records::*};
use crate::{
    gate::tally::Counts,
    model::{
        checkpoint::ClusterTime,
        namespace::{Namespace, NamespaceFilter, Patterns},
    },
    runtime::clock,
    sink::SinkError,
    source::{Cause, SourceError},
};

/// Where they stand unless a configuration says otherwise.
pub const PLACE: &str = "outrigger";

pub struct FakeRecords {
    kept: Mutex<Vec<Kept>>,
    started: Instant,
    is_away: AtomicBool,
    /// Nothing is answered at all.
    is_silent: AtomicBool,
    is_denied: AtomicBool,
    while_it_is_set: Mutex<Option<Box<dyn FnOnce() + Send>>>,
}

/// One of them, and when its agent was heard last.
struct Kept {
    place: String,
    record: LeaseRecord,
    heard: Instant,
}

impl Default for FakeRecords {
    fn default() -> Self {
        Self {
            kept: Mutex::default(),
            started: clock::now(),
            is_away: AtomicBool::default(),
            is_silent: AtomicBool::default(),
            is_denied: AtomicBool::default(),
            while_it_is_set: Mutex::default(),
        }
    }
}

/// An agent of this id, in this life of it.
pub fn agent(id: &str, instance: &str) -> AgentIdentity {
    let own = ToOwned::to_owned;
    let (host, boot) = (own("host"), format!("boot of {instance}"));
    AgentIdentity { id: own(id), instance: own(instance), host, boot, pid: 0 }
}

pub fn filter(include: &[&str]) -> NamespaceFilter {
    let include: Vec<_> = include.iter().map(|pattern| (*pattern).to_owned()).collect();
    NamespaceFilter::new(&include, &[]).expect("patterns")
}

/// The lease of a source on what these patterns choose, which no agent keeps.
pub fn lease_of(source: &str, include: &[&str]) -> LeaseRecord {
    LeaseRecord {
        source_id: source.to_owned(),
        filter: filter(include),
        copied: Vec::new(),
        refused: BTreeSet::new(),
        upstream: Vec::new(),
        lease_id: Some(format!("lease of {source}")),
        checkpoint: ClusterTime::default(),
        life: None,
        holder: None,
        counts: Counts::default(),
    }
}

impl FakeRecords {
    pub fn has(&self, record: LeaseRecord) {
        self.has_in(PLACE, record);
    }

    pub fn has_in(&self, place: &str, record: LeaseRecord) {
        let (place, heard) = (place.to_owned(), clock::now());
        self.kept.lock().push(Kept { place, record, heard });
    }

    /// This agent takes the lease of a source from now on, whoever had it.
    pub fn is_taken_by(&self, source: &str, agent: AgentIdentity) {
        let mut kept = self.kept.lock();
        let of = kept.iter_mut().find(|of| of.record.source_id == source).expect("it is there");
        of.heard = clock::now();
        of.record.life = Some(agent.instance.clone());
        of.record.holder =
            Some(LeaseHolder { agent, heartbeat: 0, silent_for: Duration::default() });
    }

    /// What stands there of a source is changed so by somebody else.
    pub fn change(&self, source: &str, change: impl FnOnce(&mut LeaseRecord)) {
        let mut kept = self.kept.lock();
        let of = kept.iter_mut().find(|of| of.record.source_id == source).expect("it is there");
        change(&mut of.record);
    }

    /// What stands in `PLACE` of a source.
    pub fn lease(&self, source: &str) -> Option<LeaseRecord> {
        self.all(PLACE).into_iter().find(|record| record.source_id == source)
    }

    pub fn all(&self, place: &str) -> Vec<LeaseRecord> {
        let kept = self.kept.lock();
        let there = kept.iter().filter(|of| of.place == place);
        there.map(|of| self.as_read(of)).collect()
    }

    fn as_read(&self, kept: &Kept) -> LeaseRecord {
        let mut record = kept.record.clone();
        if let Some(holder) = &mut record.holder {
            holder.heartbeat = (kept.heard - self.started).as_millis() as i64;
            holder.silent_for = clock::since(kept.heard);
        }
        record
    }

    pub fn is_away(&self, is_away: bool) {
        self.is_away.store(is_away, Relaxed);
    }

    pub fn is_silent(&self, is_silent: bool) {
        self.is_silent.store(is_silent, Relaxed);
    }

    /// The user may not read them.
    pub fn is_denied(&self, is_denied: bool) {
        self.is_denied.store(is_denied, Relaxed);
    }

    /// Done once, between the look at a lease and its taking.
    pub fn while_it_is_set(&self, done: impl FnOnce() + Send + 'static) {
        *self.while_it_is_set.lock() = Some(Box::new(done));
    }

    fn answer<'a, T: Send + 'a>(
        &'a self,
        work: impl FnOnce(&mut Vec<Kept>) -> T + Send + 'a,
    ) -> Answer<'a, T> {
        Box::pin(async move {
            if self.is_silent.load(Relaxed) {
                std::future::pending::<()>().await;
            }
            if self.is_away.load(Relaxed) {
                return Err(SinkError::Unavailable("it is away".to_owned()).into());
            }
            Ok(work(&mut self.kept.lock()))
        })
    }

    fn is_readable(&self) -> Result<(), SideError> {
        if self.is_denied.load(Relaxed) {
            let source = Cause::Other("not authorized".to_owned());
            return Err(SourceError::Denied { source, advice: String::new() }.into());
        }
        Ok(())
    }
}

fn own(patterns: &Patterns) -> NamespaceFilter {
    NamespaceFilter::new(&patterns.include, &patterns.exclude).expect("patterns")
}

impl LeaseRecords for FakeRecords {
    fn name(&self, place: &str) -> String {
        format!("{place}.replicas")
    }

    fn is_of_records(&self, ns: &Namespace) -> bool {
        ns.coll() == "replicas"
    }

    fn read<'a>(&'a self, place: &'a str) -> Answer<'a, Vec<LeaseRecord>> {
        Box::pin(async move {
            self.is_readable()?;
            self.answer(|_| ()).await?;
            Ok(self.all(place))
        })
    }

    fn elsewhere<'a>(&'a self, place: &'a str) -> Answer<'a, Vec<(String, Vec<LeaseRecord>)>> {
        self.answer(move |kept| {
            let others = kept.iter().filter(|of| of.place != place);
            others.map(|of| (of.place.clone(), vec![self.as_read(of)])).collect()
        })
    }

    fn set<'a>(
        &'a self,
        place: &'a str,
        record: NewLeaseRecord<'a>,
        before: Option<&'a str>,
        is_new: bool,
    ) -> Answer<'a, bool> {
        if let Some(done) = self.while_it_is_set.lock().take() {
            done();
        }
        self.answer(move |kept| {
            let is_it = |of: &Kept| of.place == place && of.record.source_id == record.source_id;
            let at = kept.iter().position(is_it);
            let there = at.map(|at| kept[at].record.clone());
            let holder = there.as_ref().and_then(|of| of.holder.as_ref());
            let is_as_read = holder.map(|of| of.agent.instance.as_str()) == before
                && there.as_ref().map_or(is_new, |of| !is_new && of.counts.have(record.counts));
            if !is_as_read {
                return false;
            }
            let NewLeaseRecord { source_id, patterns, agent, lease_id, .. } = &record;
            let (agent, silent_for) = ((*agent).clone(), Duration::default());
            let record = LeaseRecord {
                source_id: (*source_id).to_owned(),
                filter: own(patterns),
                copied: record.copied.iter().map(own).collect(),
                refused: record.refused.clone(),
                upstream: record.upstream.iter().map(|id| (*id).to_owned()).collect(),
                lease_id: Some((*lease_id).to_owned()),
                checkpoint: there.as_ref().map(|of| of.checkpoint).unwrap_or_default(),
                life: Some(agent.instance.clone()),
                holder: Some(LeaseHolder { agent, heartbeat: 0, silent_for }),
                counts: there.map(|of| of.counts).unwrap_or_default(),
            };
            let new = Kept { place: place.to_owned(), record, heard: clock::now() };
            match at {
                Some(at) => kept[at] = new,
                None => kept.push(new),
            }
            true
        })
    }

    fn renew<'a>(
        &'a self,
        place: &'a str,
        source_id: &'a str,
        instance: &'a str,
        left: ClusterTime,
        checkpoint: ClusterTime,
        upstream: Vec<&'a str>,
    ) -> Answer<'a, bool> {
        self.answer(move |kept| {
            let is_own = |of: &&mut Kept| of.place == place && of.record.source_id == source_id;
            let Some(of) = kept.iter_mut().find(is_own) else { return false };
            let holder = of.record.holder.as_ref();
            if holder.is_none_or(|holder| holder.agent.instance != instance)
                || of.record.checkpoint < left
            {
                return false;
            }
            of.record.checkpoint = of.record.checkpoint.max(checkpoint);
            of.record.upstream = upstream.into_iter().map(ToOwned::to_owned).collect();
            of.heard = clock::now();
            true
        })
    }

    fn release<'a>(
        &'a self,
        place: &'a str,
        source_id: &'a str,
        instance: &'a str,
    ) -> Answer<'a, ()> {
        self.answer(move |kept| {
            for of in kept.iter_mut().filter(|of| of.place == place) {
                let is_its = |holder: &LeaseHolder| holder.agent.instance == instance;
                if of.record.source_id == source_id && of.record.holder.as_ref().is_some_and(is_its)
                {
                    of.record.holder = None;
                }
            }
        })
    }

    fn remove<'a>(&'a self, place: &'a str, source_id: &'a str) -> Answer<'a, ()> {
        self.answer(move |kept| {
            kept.retain(|of| of.place != place || of.record.source_id != source_id);
        })
    }

    fn remove_with_place<'a>(&'a self, place: &'a str, source_id: &'a str) -> Answer<'a, ()> {
        self.remove(place, source_id)
    }
}
