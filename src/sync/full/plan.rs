//! What sets one kind of run apart from another, and what a run is about.

use std::collections::BTreeSet;

use crate::{
    model::namespace::{Namespace, NamespaceFilter},
    observe::progress::Activity,
    sync::state::SyncState,
};

/// How a run treats its collections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Plan {
    /// Everything is owed: what Atlas lacks is copied, the rest is compared.
    Mandatory,
    /// Owed of collections that were replaced, or whose names have changed hands: what Atlas has under such a name may
    /// be another, or empty with the wrong options. It gives way as a whole where that loses nothing.
    MandatoryOfSome,
    /// Asked for, and so only compared: it can be cancelled at any moment.
    OnDemand,
}

impl Plan {
    pub fn of(state: &SyncState) -> Self {
        match (&state.request, state.is_of_some) {
            (Some(_), _) => Plan::OnDemand,
            (None, true) => Plan::MandatoryOfSome,
            (None, false) => Plan::Mandatory,
        }
    }

    /// Of names that changed hands while the run was at work: what is owed of them is what is owed of a replaced one.
    pub fn after_a_rename(self) -> Self {
        match self {
            Plan::Mandatory | Plan::MandatoryOfSome => Plan::MandatoryOfSome,
            Plan::OnDemand => Plan::OnDemand,
        }
    }

    /// It must come to its end, and may copy: what is queued for a collection is held while it is looked at.
    pub fn is_owed(self) -> bool {
        match self {
            Plan::Mandatory | Plan::MandatoryOfSome => true,
            Plan::OnDemand => false,
        }
    }

    /// Nothing is streamed to Atlas until it is known what is to be copied.
    pub fn holds_everything(self) -> bool {
        match self {
            Plan::Mandatory => true,
            Plan::MandatoryOfSome | Plan::OnDemand => false,
        }
    }

    /// What Atlas has under a name may give way as a whole.
    pub fn replaces(self) -> bool {
        match self {
            Plan::MandatoryOfSome => true,
            Plan::Mandatory | Plan::OnDemand => false,
        }
    }

    /// The entries of a collection go in the order of the stream while it is compared. Those of a capped one always do.
    pub fn keeps_in_order(self) -> bool {
        match self {
            Plan::MandatoryOfSome => true,
            Plan::Mandatory | Plan::OnDemand => false,
        }
    }

    /// Whether a collection is among those that are copied first; `None` when it depends on whether Atlas has any of it.
    pub fn copies_first(self, has_begun: bool) -> Option<bool> {
        match self {
            Plan::OnDemand => Some(false),
            Plan::Mandatory | Plan::MandatoryOfSome if has_begun => Some(true),
            // One that was replaced may be there, empty, with the wrong options: see `reconcile`.
            Plan::MandatoryOfSome => Some(false),
            Plan::Mandatory => None,
        }
    }

    /// As it is shown.
    pub fn activity(self, is_dry: bool) -> Activity {
        match self {
            Plan::Mandatory => Activity::Copy,
            Plan::OnDemand if is_dry => Activity::DryRun,
            Plan::MandatoryOfSome | Plan::OnDemand => Activity::Sync,
        }
    }
}

/// True when one of the names is this, or stands for its database.
fn covers(names: &BTreeSet<Namespace>, ns: &Namespace) -> bool {
    names.contains(ns) || names.contains(&Namespace::all_of(ns.db()))
}

/// Which collections a run is about.
#[derive(Clone, Debug, Default)]
pub(super) struct Scope {
    /// What was asked for.
    asked: Option<NamespaceFilter>,
    /// What is owed, where that is not everything.
    only: Option<BTreeSet<Namespace>>,
    also: BTreeSet<Namespace>,
}

impl Scope {
    /// Of a run that looks at what `filter` chooses.
    pub fn of(state: &SyncState, filter: &NamespaceFilter) -> Self {
        let patterns = state.request.as_ref().map(|request| request.namespaces.as_slice());
        let asked = NamespaceFilter::new(patterns.unwrap_or_default(), &[]).ok();
        let asked = asked.map(|asked| asked.with_state_database(filter.state_database()));
        let only = state.is_of_some.then(|| state.only.clone());
        Self { asked, only, also: BTreeSet::new() }
    }

    /// Of these alone.
    pub fn only(names: BTreeSet<Namespace>) -> Self {
        Self { only: Some(names), ..Self::default() }
    }

    /// And these.
    pub fn with(&self, names: BTreeSet<Namespace>) -> Self {
        Self { also: names, ..self.clone() }
    }

    pub fn has(&self, ns: &Namespace) -> bool {
        let is_asked = self.asked.as_ref().is_none_or(|asked| asked.matches(ns));
        let is_owed = self.only.as_ref().is_none_or(|only| covers(only, ns));
        (is_asked && is_owed) || self.also.contains(ns)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sync::state::SyncRequest;

    fn ns(name: &str) -> Namespace {
        name.parse().unwrap()
    }

    #[test]
    fn what_is_owed_copies_and_what_is_asked_for_only_compares() {
        // owed, holds everything, replaces, keeps in order, copies what has begun, and what has not.
        for (plan, expected) in [
            (Plan::Mandatory, (true, true, false, false, Some(true), None)),
            (Plan::MandatoryOfSome, (true, false, true, true, Some(true), Some(false))),
            (Plan::OnDemand, (false, false, false, false, Some(false), Some(false))),
        ] {
            let found = (
                plan.is_owed(),
                plan.holds_everything(),
                plan.replaces(),
                plan.keeps_in_order(),
                plan.copies_first(true),
                plan.copies_first(false),
            );
            assert_eq!(found, expected, "{plan:?}");
        }
    }

    #[test]
    fn a_run_is_about_what_was_asked_for_or_is_owed() {
        let filter = NamespaceFilter::new(&[], &[]).unwrap();
        let request = SyncRequest { namespaces: vec!["shop.*".into()], ..SyncRequest::default() };
        let asked = SyncState { request: Some(request), ..SyncState::default() };
        let only = [ns("shop.orders"), Namespace::all_of("crm")].into();
        let owed = SyncState { is_of_some: true, only, ..SyncState::default() };
        let everything = SyncState::default();

        for (state, has, has_not) in [
            (&asked, "shop.orders", Some("crm.people")),
            (&owed, "shop.orders", Some("shop.items")),
            (&owed, "crm.people", Some("log.raw")),
            (&everything, "log.raw", None),
        ] {
            let scope = Scope::of(state, &filter);
            assert!(scope.has(&ns(has)), "{has}");
            if let Some(name) = has_not {
                assert!(!scope.has(&ns(name)), "{name}");
                assert!(scope.with([ns(name)].into()).has(&ns(name)), "and also {name}");
            }
        }
    }
}
