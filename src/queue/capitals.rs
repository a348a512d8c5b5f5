//! Databases whose names differ in capitals alone. MongoDB keeps no two of them (error `DatabaseDifferCase`), so the
//! application had emptied one before it made the other. Their collections have lines of their own, and still the target
//! must see them in that order: what is queued for one database waits for the barriers of the other in front of it. A
//! drop waits for none, as it is what makes way.

use std::collections::BTreeSet;

use ahash::HashMap;

use crate::model::namespace::Namespace;

/// The barriers of each database: by its name without capitals, then by its name.
#[derive(Default)]
pub struct Capitals(HashMap<String, Vec<(String, BTreeSet<u64>)>>);

impl Capitals {
    pub fn barrier_added(&mut self, ns: &Namespace, seq: u64) {
        let spellings = self.0.entry(folded(ns)).or_default();
        match spellings.iter_mut().find(|(db, _)| db == ns.db()) {
            Some((_, barriers)) => drop(barriers.insert(seq)),
            None => spellings.push((ns.db().to_owned(), [seq].into())),
        }
    }

    pub fn barrier_removed(&mut self, ns: &Namespace, seq: u64) {
        let name = folded(ns);
        let Some(spellings) = self.0.get_mut(&name) else { return };
        for (_, barriers) in spellings.iter_mut().filter(|(db, _)| db == ns.db()) {
            barriers.remove(&seq);
        }
        spellings.retain(|(_, barriers)| !barriers.is_empty());
        if spellings.is_empty() {
            self.0.remove(&name);
        }
    }

    /// The barriers of each database that has the name of this one's in other capitals.
    pub fn twins_of(&self, ns: &Namespace) -> impl Iterator<Item = &BTreeSet<u64>> {
        // Most of the time there is no barrier at all, and nobody pays for a name.
        let spellings = if self.0.is_empty() { None } else { self.0.get(&folded(ns)) };
        let others = spellings.into_iter().flatten().filter(move |(db, _)| db != ns.db());
        others.map(|(_, barriers)| barriers)
    }
}

/// As the server compares them: ASCII alone.
fn folded(ns: &Namespace) -> String {
    ns.db().to_ascii_lowercase()
}

/// True for two databases of which a server keeps one.
pub fn are_twins(one: &Namespace, other: &Namespace) -> bool {
    one.db() != other.db() && one.db().eq_ignore_ascii_case(other.db())
}
