//! Replication goes one way: no database becomes, by way of however many others, a copy of itself.
//!
//! An agent from A to B, and one from B to A, each overwrite what the application has just written with what
//! they have in their queue. So each lease says which sources the local database of its own source is a copy of
//! (`upstream`): those that have a lease *in the local database*, and what those name in turn. An agent whose
//! target is among these does not start; one that finds it later ends. A chain, A to B to C, is fine.
//!
//! The target is known by the same id as a source. Where that may not be read, what is left is that one's own
//! id comes back in the lease records: some agent of the ring notices it then, after a heartbeat or two.

use std::collections::BTreeSet;

use crate::{
    gate::past::is_by_name,
    side::{Side, SideError},
    source::SourceError,
    sync::SyncError,
};

/// What the local database is a copy of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Upstream {
    /// How the place of the lease records is called.
    place: String,
    /// Sources that have a lease in the local database.
    direct: BTreeSet<String>,
    /// What those are copies of themselves.
    farther: BTreeSet<String>,
}

/// Fallbacks, which others may share: see [`source_id`](crate::source::source_id).
fn is_exact(id: &str) -> bool {
    !is_by_name(id) && id != "mongos"
}

impl Upstream {
    /// From the lease records in the local database: sources, each with its own `upstream`. A lease of the local
    /// database itself is a leftover of a restore.
    fn of(
        own: &str,
        place: String,
        records: impl IntoIterator<Item = (String, Vec<String>)>,
    ) -> Self {
        let mut upstream = Self { place, ..Self::default() };
        for (source, farther) in records.into_iter().filter(|(source, _)| source != own) {
            upstream.direct.insert(source);
            upstream.farther.extend(farther);
        }
        upstream
    }

    /// For the lease.
    pub fn ids(&self) -> Vec<&str> {
        self.direct.union(&self.farther).map(String::as_str).collect()
    }

    /// Says that there is a ring, if there is one.
    ///
    /// # Errors
    /// [`SyncError::Ring`].
    pub fn check(&self, own: &str, target: Option<&str>) -> Result<(), SyncError> {
        let target = target.filter(|id| is_exact(id));
        let problem = if target.is_some_and(|id| self.direct.contains(id)) {
            "the local database is itself the copy of this Atlas"
        } else if target.is_some_and(|id| self.farther.contains(id)) {
            "the local database is itself, by way of others, a copy of this Atlas"
        } else if is_exact(own) && self.farther.contains(own) {
            "the local database is, by way of others, a copy of itself"
        } else {
            return Ok(());
        };
        let sources = self.direct.iter().map(|id| format!("`{id}`")).collect::<Vec<_>>().join(", ");
        Err(SyncError::Ring {
            problem: format!(
                "{problem}: its `{}` carries the mark of {sources}, and two that overwrite each \
                 other lose what the application writes",
                self.place
            ),
        })
    }
}

/// Reads the lease records in the local database `db`; `None` where the user may not.
///
/// # Errors
/// When the server does not answer.
pub async fn read(local: &dyn Side, own: &str, db: &str) -> Result<Option<Upstream>, SideError> {
    // What no lease records can be in is a copy of nothing.
    let Some(store) = local.records() else { return Ok(Some(Upstream::default())) };
    match store.read(db).await {
        Ok(records) => {
            let records = records.into_iter().map(|record| (record.source_id, record.upstream));
            Ok(Some(Upstream::of(own, store.name(db), records)))
        }
        Err(SideError::Source(SourceError::Denied { .. } | SourceError::Failed(_))) => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn upstream(own: &str, records: &[(&str, &[&str])]) -> Upstream {
        let own_list = |list: &[&str]| list.iter().map(|id| (*id).to_owned()).collect();
        let records = records.iter().map(|(id, farther)| ((*id).to_owned(), own_list(farther)));
        Upstream::of(own, "outrigger.replicas".to_owned(), records)
    }

    fn is_refused(own: &str, target: Option<&str>, records: &[(&str, &[&str])]) -> bool {
        upstream(own, records).check(own, target).is_err()
    }

    #[test]
    fn a_chain_is_fine_and_a_ring_is_not() {
        assert!(!is_refused("b", Some("c"), &[("a", &[])]), "a to b to c");
        assert!(is_refused("b", Some("a"), &[("a", &[])]), "b to a, a to b");
        assert!(is_refused("c", Some("a"), &[("b", &["a"])]), "c to a, a to b to c");
        assert!(!is_refused("c", Some("d"), &[("b", &["a"])]));
        assert_eq!(upstream("c", &[("b", &["a"])]).ids(), ["a", "b"]);
    }

    #[test]
    fn a_ring_shows_in_ones_own_id_where_the_target_has_none() {
        assert!(is_refused("a", None, &[("b", &["a"])]));
        assert!(!is_refused("a", None, &[("b", &[])]));
    }

    #[test]
    fn names_that_others_may_share_prove_nothing() {
        assert!(!is_refused("set:rs0", Some("set:rs0"), &[("b", &["set:rs0"])]));
    }

    #[test]
    fn the_lease_of_the_local_database_in_itself_is_a_restore() {
        assert!(!is_refused("a", Some("b"), &[("a", &["b"])]));
    }
}
