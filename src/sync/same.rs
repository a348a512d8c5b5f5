//! Whether the two ends are two databases.
//!
//! Where both connection strings lead to one replica set, each write of the agent is a change that it reads
//! again, and older versions overwrite what the application writes meanwhile. So this is looked at before
//! anything is written, compared or restored, and no flag overrides it.
//!
//! The replica set's id tells exactly, through whatever host name or member, and is drawn at random where a set
//! is initiated. Where one of the users may not read it, the process that answers and the members that it names
//! are left: the first proves, the second is strong enough to refuse, since two sets that share a name *and* a
//! member's address are told apart as soon as their ids may be read.

use std::{borrow::Cow, time::Duration};

use super::{Sides, SyncError};
use crate::{
    model::hint::Hint,
    side::{Looks, Side},
};

/// How long Atlas may take at the agent's start. It may be away then, and is looked at again when it is claimed.
const EARLY: Duration = Duration::from_secs(3);

/// Both connection strings lead to one database.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Same {
    #[error(
        "both connection strings lead to the same database: the replica set's id is `{id}` at both ends"
    )]
    Set { id: String },
    #[error(
        "both connection strings lead to the same database: one server process answers at both ends"
    )]
    Process,
    #[error(
        "both connection strings lead to the same database, as far as can be told: at both ends the replica \
         set `{set}` names the member `{member}`"
    )]
    Member { set: String, member: String },
}

impl Hint for Same {
    fn hint(&self) -> Option<Cow<'_, str>> {
        let hint = match self {
            Same::Set { .. } => {
                "MONGODB_LOCAL_URI names the database that is replicated, MONGODB_ATLAS_URI its copy: correct the \
                 one that is wrong; a server that was set up from the other's files has its id as well, and must \
                 be set up from an empty folder"
            }
            Same::Process => {
                "MONGODB_LOCAL_URI names the database that is replicated, MONGODB_ATLAS_URI its copy: correct the \
                 one that is wrong"
            }
            Same::Member { .. } => {
                "MONGODB_LOCAL_URI names the database that is replicated, MONGODB_ATLAS_URI its copy: correct the \
                 one that is wrong; if they are two sets whose members have the same names, grant both users the \
                 action replSetGetConfig on the cluster (role clusterMonitor), so that their ids tell them apart"
            }
        };
        Some(hint.into())
    }
}

/// Says so where two sides are one, as far as their looks tell.
fn compare(source: &Looks, other: &Looks) -> Result<(), Same> {
    if source.process.is_some() && source.process == other.process {
        return Err(Same::Process);
    }
    if let (Some(id), Some(other)) = (&source.set_id, &other.set_id) {
        return if id == other { Err(Same::Set { id: id.clone() }) } else { Ok(()) };
    }
    let set = source.set_name.as_ref().filter(|_| source.set_name == other.set_name);
    match (set, source.members.intersection(&other.members).next()) {
        (Some(set), Some(member)) => Err(Same::Member { set: set.clone(), member: member.clone() }),
        _ => Ok(()),
    }
}

/// Refuses one database at both ends, and a local one that is a router's. Returns the target's id; `None` where it may not be read.
///
/// # Errors
/// [`SyncError::SameDatabase`]; otherwise what keeps an end from answering.
pub async fn check(sides: &Sides) -> Result<Option<String>, SyncError> {
    let source = sides.local.looks().await?;
    let target = sides.atlas.looks().await?;
    compare(&source, &target)?;
    Ok(target.set_id)
}

/// As [`check`], before anything is made of a local database that may be the wrong one. Atlas may be away.
///
/// # Errors
/// [`SyncError::SameDatabase`]; otherwise what keeps the local database from answering.
pub async fn check_early(local: &dyn Side, atlas: &dyn Side) -> Result<(), SyncError> {
    let source = local.looks().await?;
    match tokio::time::timeout(EARLY, atlas.looks()).await {
        Ok(Ok(target)) => compare(&source, &target)?,
        Ok(Err(error)) => tracing::debug!(%error, "Atlas does not say yet which database it is"),
        Err(_) => tracing::debug!("Atlas has not said yet which database it is"),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use bson::oid::ObjectId;

    use super::*;

    fn looks(set_id: Option<&str>, members: &[&str], process: u8) -> Looks {
        Looks {
            set_id: set_id.map(str::to_owned),
            set_name: Some("rs0".to_owned()),
            members: members.iter().map(|member| member.to_lowercase()).collect(),
            process: Some(ObjectId::from_bytes([process; 12])),
        }
    }

    fn is_same(source: &Looks, target: &Looks) -> bool {
        compare(source, target).is_err()
    }

    #[test]
    fn one_set_is_told_by_its_id_whatever_its_members_are_called() {
        let source = looks(Some("a"), &["db1:27017"], 1);
        assert!(is_same(&source, &looks(Some("a"), &["elsewhere:27018"], 2)));
        assert!(!is_same(&source, &looks(Some("b"), &["elsewhere:27018"], 2)));
    }

    #[test]
    fn two_sets_whose_members_have_the_same_names_are_two() {
        let source = looks(Some("a"), &["localhost:27017"], 1);
        assert!(!is_same(&source, &looks(Some("b"), &["localhost:27017"], 2)));
    }

    #[test]
    fn without_ids_the_process_and_the_members_tell() {
        let source = looks(None, &["db1:27017", "DB2:27017"], 1);
        assert!(is_same(&source, &looks(Some("a"), &["other:27017"], 1)), "the process");
        assert!(
            is_same(&source, &looks(Some("a"), &["db2:27017"], 2)),
            "a member, in other capitals"
        );
        assert!(!is_same(&source, &looks(None, &["db3:27017"], 2)));
        let mut other_name = looks(None, &["db1:27017"], 2);
        other_name.set_name = Some("rs1".to_owned());
        assert!(!is_same(&source, &other_name));
    }

    #[test]
    fn servers_that_tell_nothing_are_not_taken_for_one() {
        assert!(!is_same(&Looks::default(), &Looks::default()));
    }
}
