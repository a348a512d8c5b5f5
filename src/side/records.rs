//! The lease records that a target carries: one for each source.
//!
//! A lease says which names of the target are a copy of that source, and which agent keeps it so. What is made of that,
//! who may take a target and who may not, is decided by whoever takes it; here stands what a lease says, and what a
//! database must be able to do with lease records: [`LeaseRecords`]. What keeps an agent from writing that has lost its lease without
//! knowing it, is its [lease](crate::gate::lease), which each renewal begins anew.

use std::{collections::BTreeSet, time::Duration};

use super::Answer;
use crate::{
    config::units,
    gate::tally::Counts,
    model::{
        checkpoint::ClusterTime,
        namespace::{Namespace, NamespaceFilter, Patterns},
    },
    policy::overlap::covers,
};

/// After how long without a heartbeat another agent may be told to take over.
pub const STALE_AFTER: Duration = Duration::from_secs(60);
const _: () = assert!(crate::gate::lease::LIMIT.as_secs() < STALE_AFTER.as_secs());

/// One running agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgentIdentity {
    /// The same after a restart.
    pub id: String,
    /// Another one after each.
    pub instance: String,
    pub host: String,
    /// Another one for each start of a machine: two clones share everything else.
    pub boot: String,
    pub pid: u32,
}

/// A lease as it was read.
#[derive(Clone)]
pub struct LeaseRecord {
    pub source_id: String,
    pub filter: NamespaceFilter,
    pub copied: Vec<NamespaceFilter>,
    pub refused: BTreeSet<Namespace>,
    pub upstream: Vec<String>,
    pub lease_id: Option<String>,
    pub checkpoint: ClusterTime,
    /// The start that has set it last.
    pub life: Option<String>,
    pub holder: Option<LeaseHolder>,
    /// What of the source's transactions is there, where they are counted.
    pub counts: Counts,
}

impl LeaseRecord {
    /// True when what Atlas holds there was copied from this source.
    pub fn owns(&self, ns: &Namespace) -> bool {
        let was_copied =
            || self.filter.matches(ns) || self.copied.iter().any(|before| before.matches(ns));
        !self.refused.contains(ns) && was_copied()
    }

    /// What `copied` is to be when `next` takes the place of the patterns.
    pub fn history(&self, next: &Patterns) -> Vec<Patterns> {
        let before = self.copied.iter().chain([&self.filter]).map(NamespaceFilter::patterns);
        let mut kept: Vec<Patterns> = Vec::new();
        for patterns in before {
            let is_covered =
                covers(next, patterns) || kept.iter().any(|other| covers(other, patterns));
            if !is_covered {
                kept.retain(|other| !covers(patterns, other));
                kept.push(patterns.clone());
            }
        }
        kept
    }
}

/// The agent that a lease names.
#[derive(Clone)]
pub struct LeaseHolder {
    pub agent: AgentIdentity,
    /// Its last heartbeat, milliseconds since 1970 by Atlas's clock, and the time since.
    pub heartbeat: i64,
    pub silent_for: Duration,
}

impl LeaseHolder {
    pub fn is_fresh(&self) -> bool {
        self.silent_for < STALE_AFTER
    }

    /// The time since its last heartbeat, to be shown.
    pub fn silence(&self) -> String {
        units::show_duration(Duration::from_secs(self.silent_for.as_secs()))
    }
}

/// What a lease is to say from now on.
pub struct NewLeaseRecord<'a> {
    pub source_id: &'a str,
    pub patterns: &'a Patterns,
    pub copied: Vec<Patterns>,
    pub refused: &'a BTreeSet<Namespace>,
    pub upstream: Vec<&'a str>,
    pub agent: &'a AgentIdentity,
    pub lease_id: &'a str,
    /// What was there when the lease was looked at.
    pub counts: &'a Counts,
}

/// Where lease records are kept: in `replicas`, or what a database has for that, of a place that the configuration names
/// (`atlas.state_database`).
pub trait LeaseRecords: Send + Sync {
    /// How the lease records of a place are called, for a person.
    fn name(&self, place: &str) -> String;

    /// True for what holds lease records in some place.
    fn is_of_records(&self, ns: &Namespace) -> bool;

    /// All of them, with their age by that database's own clock.
    fn read<'a>(&'a self, place: &'a str) -> Answer<'a, Vec<LeaseRecord>>;

    /// Those in all other places, as far as they may be read.
    fn elsewhere<'a>(&'a self, place: &'a str) -> Answer<'a, Vec<(String, Vec<LeaseRecord>)>>;

    /// Sets a lease and its heartbeat, in one step with the look whether it is still as it was read: kept by the agent
    /// `before`, by none, or not there at all (`is_new`), and with all that was there. False where it is not.
    fn set<'a>(
        &'a self,
        place: &'a str,
        record: NewLeaseRecord<'a>,
        before: Option<&'a str>,
        is_new: bool,
    ) -> Answer<'a, bool>;

    /// Renews the heartbeat, in one step with the look whether the lease is as this agent left it: its own, with no
    /// `checkpoint` before `left`, and with all that was confirmed. False where it is not.
    fn renew<'a>(
        &'a self,
        place: &'a str,
        source_id: &'a str,
        instance: &'a str,
        left: ClusterTime,
        checkpoint: ClusterTime,
        upstream: Vec<&'a str>,
    ) -> Answer<'a, bool>;

    /// Takes an agent out of its lease, which stays its source's.
    fn release<'a>(
        &'a self,
        place: &'a str,
        source_id: &'a str,
        instance: &'a str,
    ) -> Answer<'a, ()>;

    /// Removes the lease of a source.
    fn remove<'a>(&'a self, place: &'a str, source_id: &'a str) -> Answer<'a, ()>;

    /// As [`remove`](Self::remove), and the place with it where nothing is left in it.
    fn remove_with_place<'a>(&'a self, place: &'a str, source_id: &'a str) -> Answer<'a, ()>;
}
