//! Which full sync is in hand, and which collections it is still at: what other tasks go by. What is shown of a run is
//! its [`Progress`](crate::observe::progress::Progress), which decides nothing.

use std::collections::BTreeMap;

use parking_lot::{Mutex, MutexGuard};

use crate::model::namespace::Namespace;

/// Owns the question. Empty until a first run begins.
#[derive(Debug, Default)]
pub struct InHand(Mutex<RunInHand>);

#[derive(Debug, Default)]
struct RunInHand {
    /// Of the one that runs, or ran last.
    id: Option<String>,
    is_running: bool,
    /// The collections that it has met, and whether it is done with them.
    is_done: BTreeMap<Namespace, bool>,
}

impl InHand {
    pub(super) fn begins(&self, id: &str) {
        *self.lock() =
            RunInHand { id: Some(id.to_owned()), is_running: true, is_done: BTreeMap::new() };
    }

    /// It is about this collection, too.
    pub(super) fn meets(&self, ns: &Namespace) {
        self.lock().is_done.entry(ns.clone()).or_insert(false);
    }

    /// It has finished with a collection, or begins with it.
    pub(super) fn is_through(&self, ns: &Namespace, is_done: bool) {
        self.lock().is_done.insert(ns.clone(), is_done);
    }

    pub(super) fn ended(&self) {
        self.lock().is_running = false;
    }

    /// True while one runs.
    pub(super) fn runs(&self) -> bool {
        self.lock().is_running
    }

    /// The one that runs, or ran last: another one may have mended what was found before.
    pub(super) fn last(&self) -> Option<String> {
        self.lock().id.clone()
    }

    /// True while one runs that has met the collection and is not done with it.
    pub(super) fn is_at(&self, ns: &Namespace) -> bool {
        let run = self.lock();
        run.is_running && run.is_done.get(ns).is_some_and(|is_done| !is_done)
    }

    fn lock(&self) -> MutexGuard<'_, RunInHand> {
        self.0.lock()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_is_at_what_it_has_met_and_not_finished_for_as_long_as_it_runs() {
        let (in_hand, ns) = (InHand::default(), Namespace::new("shop", "orders"));
        assert!(!in_hand.runs() && !in_hand.is_at(&ns) && in_hand.last().is_none());

        in_hand.begins("one");
        assert!(in_hand.runs() && !in_hand.is_at(&ns));
        in_hand.meets(&ns);
        assert!(in_hand.is_at(&ns));
        in_hand.is_through(&ns, true);
        in_hand.meets(&ns);
        assert!(!in_hand.is_at(&ns), "what is done stays so");

        in_hand.is_through(&ns, false);
        in_hand.ended();
        assert!(!in_hand.runs() && !in_hand.is_at(&ns));
        assert_eq!(in_hand.last().as_deref(), Some("one"));
    }
}
