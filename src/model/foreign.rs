//! What the agent must keep away from, though its patterns choose it: collections of the target that are
//! somebody else's.

use std::collections::BTreeSet;

use crate::model::namespace::{Namespace, NamespaceFilter};

/// Names and choices of names that are not ours to write in Atlas.
#[derive(Clone, Debug, Default)]
pub struct Foreign {
    /// Collections that held data in Atlas, which no lease record of ours covers.
    pub names: BTreeSet<Namespace>,
    /// What the leases of other sources cover, by the source's id.
    pub leased: Vec<(String, NamespaceFilter)>,
}

impl Foreign {
    pub fn has(&self, ns: &Namespace) -> bool {
        self.names.contains(ns) || self.leased_by(ns).is_some()
    }

    /// The source whose lease covers it.
    pub fn leased_by(&self, ns: &Namespace) -> Option<&str> {
        self.leased.iter().find(|(_, filter)| filter.matches(ns)).map(|(source, _)| &**source)
    }

    pub fn is_empty(&self) -> bool {
        self.names.is_empty() && self.leased.is_empty()
    }

    /// True when everything of this is in `other` too.
    pub fn is_within(&self, other: &Self) -> bool {
        let is_there = |(source, filter): &(String, NamespaceFilter)| {
            let is_it = |(of, other): &(String, NamespaceFilter)| {
                of == source && other.fingerprint() == filter.fingerprint()
            };
            other.leased.iter().any(is_it)
        };
        self.names.is_subset(&other.names) && self.leased.iter().all(is_there)
    }
}
