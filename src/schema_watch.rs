//! Collections whose options and indexes are to be looked at beside the data: what the worker hands to the
//! task that builds indexes. Kept in memory alone, since everything is looked at when an agent starts.

use std::{
    collections::BTreeSet,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use tokio::sync::{Notify, futures::Notified};

use crate::namespace::Namespace;

/// What is to be looked at.
#[derive(Debug, Default)]
pub struct SchemaWatch {
    asked: Mutex<Asked>,
    /// Looks that were taken up and are not done: what was refused and is tried again later is none of them.
    open: AtomicUsize,
    changed: Notify,
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

    /// True while a look was asked for and is not done: an index may be still to be built.
    pub fn is_open(&self) -> bool {
        let asked = self.asked();
        *asked != Asked::default() || self.open.load(Ordering::SeqCst) > 0
    }

    /// Completes when something is asked, or was since the last call.
    pub fn changed(&self) -> Notified<'_> {
        self.changed.notified()
    }

    fn asked(&self) -> MutexGuard<'_, Asked> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
