//! Which documents a full sync has queued, in bounded memory.

use std::{
    collections::{BTreeSet, HashSet},
    hash::{DefaultHasher, Hash, Hasher},
};

use parking_lot::{Mutex, MutexGuard};

use crate::model::{document_key::DocumentKey, namespace::Namespace};

/// Documents that are remembered one by one; of a collection in which there are more, all count.
const DOCUMENTS_MAX: usize = 200_000;

/// The documents that a run has queued; see the module for what they explain.
#[derive(Debug, Default)]
pub struct Repaired(Mutex<Queued>);

#[derive(Debug, Default)]
struct Queued {
    documents: HashSet<u64>,
    /// Collections of which every document counts.
    whole: BTreeSet<Namespace>,
    /// After a restart it is not known what the run had queued before, so every document may be one.
    everything: bool,
}

impl Repaired {
    /// A run begins, or, with `goes_on`, goes on after a restart.
    pub fn begin(&self, goes_on: bool) {
        *self.queued() = Queued { everything: goes_on, ..Queued::default() };
    }

    pub fn add(&self, ns: &Namespace, keys: &[DocumentKey]) {
        let mut queued = self.queued();
        if queued.documents.len() + keys.len() > DOCUMENTS_MAX {
            queued.whole.insert(ns.clone());
            return;
        }
        queued.documents.extend(keys.iter().map(|key| name(ns, key)));
    }

    /// False for a document that the run has certainly not queued.
    pub fn contains(&self, ns: &Namespace, key: &DocumentKey) -> bool {
        let queued = self.queued();
        queued.everything || queued.whole.contains(ns) || queued.documents.contains(&name(ns, key))
    }

    pub fn is_empty(&self) -> bool {
        let queued = self.queued();
        !queued.everything && queued.whole.is_empty() && queued.documents.is_empty()
    }

    fn queued(&self) -> MutexGuard<'_, Queued> {
        self.0.lock()
    }
}

fn name(ns: &Namespace, key: &DocumentKey) -> u64 {
    let mut hasher = DefaultHasher::new();
    ns.as_str().hash(&mut hasher);
    key.canonical().hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use bson::rawdoc;

    use super::*;

    fn key(id: i32) -> DocumentKey {
        DocumentKey::of(&rawdoc! { "_id": id }).unwrap()
    }

    #[test]
    fn what_a_run_queued_is_told_from_what_it_did_not() {
        let (orders, items) = (Namespace::new("shop", "orders"), Namespace::new("shop", "items"));
        let repaired = Repaired::default();
        repaired.begin(false);
        assert!(repaired.is_empty());

        repaired.add(&orders, &[key(1), key(2)]);
        assert!(repaired.contains(&orders, &key(2)));
        assert!(!repaired.contains(&orders, &key(3)) && !repaired.contains(&items, &key(2)));

        let many: Vec<_> = (0..300_000).map(key).collect();
        repaired.add(&items, &many);
        assert!(repaired.contains(&items, &key(-1)), "too many to be told apart");

        repaired.begin(true);
        assert!(repaired.contains(&orders, &key(3)), "what it did before is not known");
    }
}
