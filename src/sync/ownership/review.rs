//! What `run` would say of the ownership of its target, found out without taking it.

use std::collections::BTreeSet;

use super::{
    lease_client::{lease_held, not_owned, overlap_error, overlapping, with_data},
    upstream,
};
use crate::{
    model::namespace::{Namespace, NamespaceFilter},
    side::{
        Looks, Side,
        records::{LeaseHolder, LeaseRecord},
    },
    sync::SyncError,
};

/// One thing that was found.
#[derive(Debug)]
pub enum Remark {
    Fine(String),
    /// Does not keep `run` from starting.
    Warning {
        text: String,
        fix: String,
    },
    /// What `run` would end with, unless it is told to adopt, where that helps.
    Refusal(SyncError),
}

/// Who asks.
#[derive(Clone, Copy, Debug)]
pub enum Asker<'a> {
    /// The agent of this id is to start; of none, where there was none yet.
    Starts(Option<&'a str>),
    /// It runs already, or nobody can tell which it is: whose agent keeps the copy is settled then, or not known.
    Unknown,
}

impl Asker<'_> {
    fn is_another_than(self, holder: &LeaseHolder) -> bool {
        matches!(self, Asker::Starts(id) if id != Some(holder.agent.id.as_str()))
    }
}

/// Looks at the lease records on both sides, and at what Atlas holds.
///
/// # Errors
/// When an end does not answer, or refuses to.
pub async fn review(
    local: &dyn Side,
    atlas: &dyn Side,
    filter: &NamespaceFilter,
    source_id: &str,
    asker: Asker<'_>,
) -> Result<Vec<Remark>, SyncError> {
    let mut found = Vec::new();
    let db = filter.state_database();
    let Some(store) = atlas.records() else { return Ok(found) };
    let records = store.read(db).await?;
    let own = records.iter().find(|record| record.source_id == source_id);
    let holder = own.and_then(|record| record.holder.as_ref());
    let other = holder.filter(|holder| asker.is_another_than(holder));
    found.extend(other.map(|holder| Remark::Refusal(lease_held(holder))));
    for (record, patterns) in overlapping(source_id, filter, &records) {
        found.push(Remark::Refusal(overlap_error(record, &patterns)));
    }
    let looks = atlas.looks().await?;
    // One that tells nothing of itself is no MongoDB, and nobody replicates from it.
    let may_be_a_source = looks != Looks::default();
    let target = looks.set_id;
    let seen = upstream::read(local, source_id, db).await?;
    if target.is_none() && may_be_a_source {
        found.push(Remark::Warning {
            text: "Atlas's identity cannot be read, so two agents that replicate crosswise are noticed only after \
                   a while"
                .to_owned(),
            fix: "grant the user in Atlas the action replSetGetConfig on the cluster (role clusterMonitor)"
                .to_owned(),
        });
    }
    match seen {
        Some(upstream) => {
            found.extend(upstream.check(source_id, target.as_deref()).err().map(Remark::Refusal));
        }
        None => found.push(Remark::Warning {
            text: format!(
                "`{}` in the local database cannot be read, so two agents that replicate crosswise are \
                 not noticed",
                store.name(db)
            ),
            fix: "grant the local user the role readAnyDatabase, or find on that collection".to_owned(),
        }),
    }
    let held = with_data(atlas, filter).await?;
    let not_ours: BTreeSet<_> =
        held.iter().filter(|ns| !own.is_some_and(|record| record.owns(ns))).collect();
    match (own, not_ours.first()) {
        (None, Some(ns)) => found.push(Remark::Refusal(not_owned(ns, db, &[], store))),
        (Some(_), Some(_)) => found.extend(not_ours.iter().map(|ns| Remark::Warning {
            text: format!(
                "{ns} will not be written: Atlas holds data in it, and no mark of this source covers it, now or \
                 before"
            ),
            fix: "exclude it, or, if Atlas may be made equal to the local database there, deletes included, start \
                  once with `outrigger run --adopt`"
                .to_owned(),
        })),
        // Said already, and it is not fine.
        (_, None) if other.is_some() => {}
        (own, None) => found.push(Remark::Fine(whose(own, held.len()))),
    }
    Ok(found)
}

/// What Atlas holds data in, of what `filter` chooses, and no lease of this source covers.
pub(in crate::sync) async fn not_ours(
    atlas: &dyn Side,
    filter: &NamespaceFilter,
    source_id: &str,
) -> Result<BTreeSet<Namespace>, SyncError> {
    let Some(store) = atlas.records() else { return Ok(BTreeSet::new()) };
    let records = store.read(filter.state_database()).await?;
    let own = records.iter().find(|record| record.source_id == source_id);
    let mut held: BTreeSet<_> = with_data(atlas, filter).await?.into_iter().collect();
    held.retain(|ns| !own.is_some_and(|record| record.owns(ns)));
    Ok(held)
}

fn whose(own: Option<&LeaseRecord>, held: usize) -> String {
    let Some(own) = own else {
        return "Atlas holds nothing in the namespaces that will be replicated".to_owned();
    };
    let holder = own.holder.as_ref().map_or_else(String::new, |holder| {
        let LeaseHolder { agent, .. } = holder;
        let (host, pid, silence) = (&agent.host, agent.pid, holder.silence());
        format!(", kept by the agent on host `{host}`, process {pid}, last heartbeat {silence} ago")
    });
    format!(
        "the {held} collections with data in Atlas are marked as the copy of this source{holder}"
    )
}
