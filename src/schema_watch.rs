//! Collections whose options and indexes are to be looked at beside the data: what the worker hands to the
//! task that builds indexes. Kept in memory alone, since everything is looked at when an agent starts.

use std::{
    collections::BTreeSet,
    sync::{Mutex, MutexGuard, PoisonError},
};

use tokio::sync::{Notify, futures::Notified};

use crate::namespace::Namespace;

/// What is to be looked at.
#[derive(Debug, Default)]
pub struct SchemaWatch {
    asked: Mutex<Asked>,
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
        std::mem::take(&mut *self.asked())
    }

    /// Completes when something is asked, or was since the last call.
    pub fn changed(&self) -> Notified<'_> {
        self.changed.notified()
    }

    fn asked(&self) -> MutexGuard<'_, Asked> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
