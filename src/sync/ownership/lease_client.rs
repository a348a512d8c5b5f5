//! Whose copy the target is: the agent never wipes a database that it does not own, and no two agents
//! write one copy.
//!
//! In Atlas, `outrigger.replicas` (see `atlas.state_database`) holds one document per source, its
//! *lease* ([`records`](crate::side::records)): which namespaces of this Atlas are a copy of that source, and which agent keeps it
//! so. A collection that holds data, and that no lease of ours covers, now or before, is somebody else's.
//!
//! - Where no lease of ours is there at all, one such collection is enough to refuse the target. Where there is
//!   one, the collection is kept apart, and the others are replicated.
//! - Sources whose patterns could ever choose one name do not write to one target, whatever is there
//!   ([`overlap`](crate::policy::overlap)).
//! - The local database is not, by whatever way, a copy of the target ([`upstream`](super::upstream)).
//!
//! The agent renews its *heartbeat* in the lease record. Another agent of the same source refuses to start beside
//! it: always while the heartbeat is fresh, and, after an agent that was not stopped in order, until it is
//! told to take over; or, where one agent at a time reads the source, as soon as that is another one. A lease that an agent released at its end is free. An agent that cannot renew its
//! heartbeat stops writing before it is stale ([`lease`](crate::gate::lease)). All times are Atlas's own.
//!
//! Each time the target turns out to be another one than the queue's position belongs to (another Atlas,
//! one that was put back to a backup, a lease that is gone), the lease gets a new id, and everything is
//! compared. And where it is the queue that was put back, with its folder or with the whole host, it is of no use:
//! what would be read once more from its position renames and drops what Atlas has since.

use std::{collections::BTreeSet, time::Duration};

use parking_lot::Mutex;

use super::{remembered::Remembered, upstream::Upstream};
use crate::{
    gate::{
        lease::{BootTime, Lease},
        tally::Counts,
    },
    model::{
        checkpoint::ClusterTime,
        namespace::{Namespace, NamespaceFilter},
    },
    policy::overlap::overlap,
    side::{
        Side,
        records::{AgentIdentity, LeaseHolder, LeaseRecord, LeaseRecords, NewLeaseRecord},
    },
    sink::SinkError,
    sync::{Listing, SyncError, atlas_collections, state::Reason},
};

/// How often the heartbeat is renewed.
pub const HEARTBEAT: Duration = Duration::from_secs(10);

/// What works with a source's lease in one target.
pub struct LeaseClient<'a> {
    pub atlas: &'a dyn Side,
    pub filter: &'a NamespaceFilter,
    pub source_id: &'a str,
    pub agent: &'a AgentIdentity,
    /// Begins anew with each renewal.
    pub lease: &'a Lease,
}

/// How a target is to be taken.
pub struct Acquisition<'a> {
    /// Take over what is somebody else's.
    pub adopt: bool,
    /// The agent's first look. Later on, whoever is in the lease in its place has put it aside.
    pub is_first: bool,
    /// What the local database is a copy of.
    pub upstream: &'a Upstream,
    /// The target's id, where it may be read.
    pub target: Option<&'a str>,
    pub remembered: &'a Remembered,
    /// The heartbeat that an earlier attempt has seen, of what may be our own last life elsewhere.
    pub seen_heartbeat: &'a Mutex<Option<i64>>,
}

/// A target that was taken.
pub struct Acquired {
    /// The id of the lease that the queue's position belongs to from now on.
    pub lease_id: String,
    /// Collections that are not ours, and are kept apart.
    pub refused: BTreeSet<Namespace>,
}

impl LeaseClient<'_> {
    /// Takes the target: looks whose it is, lets `before_acquiring` note what follows from a target that is not
    /// as the queue's position has it, and why, and takes the lease.
    ///
    /// # Errors
    /// [`SyncError::NotOwned`] when it holds somebody else's data and is not to be adopted;
    /// [`SyncError::Overlap`] when it is another source's in part; [`SyncError::Ring`];
    /// [`SyncError::LeaseHeld`] when another agent keeps it; otherwise what keeps Atlas from answering.
    pub async fn take(
        &self,
        acquisition: &Acquisition<'_>,
        before_acquiring: impl AsyncFnOnce(Reason) -> Result<(), SyncError>,
    ) -> Result<Acquired, SyncError> {
        let records = self.records().await?;
        let own = records.iter().find(|record| record.source_id == self.source_id);
        let holder = own.and_then(|record| record.holder.as_ref());
        self.check_holder(holder, acquisition)?;
        acquisition.upstream.check(self.source_id, acquisition.target)?;
        self.check_others(&records, acquisition)?;
        let elsewhere =
            if own.is_none() { self.check_elsewhere(acquisition).await? } else { Vec::new() };
        let refused = if acquisition.adopt {
            BTreeSet::new()
        } else {
            self.not_ours(own, &elsewhere).await?
        };
        let remembered = acquisition.remembered;
        let Remembered { lease_id, checkpoint, sent, moved, .. } = remembered;
        let moved = *moved;
        // Another target than last time, or this one put back to an older state.
        let same = own.filter(|record| record.lease_id.is_some() && record.lease_id == *lease_id);
        let is_put_back = same.is_some_and(|record| remembered.is_ahead_of(record));
        let same = same.filter(|_| !is_put_back);
        if !moved && same.is_some_and(|record| remembered.is_behind(record)) {
            return Err(SyncError::OlderQueue);
        }
        // A queue that came from another machine: where that one went on after the export, what came with the
        // file is older than what Atlas has. And should it come back, it must not take Atlas for its own.
        let same = same.filter(|record| !moved || record.checkpoint <= *sent.max(checkpoint));
        // What was kept apart, and is ours now, is as nobody knows.
        let same = same.filter(|record| record.refused.is_subset(&refused));
        let lease_id = match same.and_then(|record| record.lease_id.clone()) {
            Some(lease_id) if !moved => lease_id,
            Some(_) => uuid::Uuid::new_v4().to_string(),
            None => {
                before_acquiring(if is_put_back { Reason::PutBack } else { Reason::NewTarget })
                    .await?;
                uuid::Uuid::new_v4().to_string()
            }
        };
        if acquisition.adopt {
            self.remove_others(&records).await?;
        }
        if is_put_back {
            tracing::error!(
                "the target was put back to an earlier state, and lacks what it had confirmed; everything is compared"
            );
        }
        self.set(own, &lease_id, &refused, acquisition.upstream).await?;
        if acquisition.adopt {
            self.remove_elsewhere(&elsewhere).await?;
        }
        Ok(Acquired { lease_id, refused })
    }

    /// Another agent may keep this very copy.
    fn check_holder(
        &self,
        holder: Option<&LeaseHolder>,
        acquisition: &Acquisition<'_>,
    ) -> Result<(), SyncError> {
        let Some(holder) = holder else { return Ok(()) };
        let LeaseHolder { agent: other, heartbeat, .. } = holder;
        let (is_us, is_fresh) = (other.id == self.agent.id, holder.is_fresh());
        if !acquisition.is_first {
            // An older life of ours that is stale is what a backup of Atlas holds.
            return if other.instance == self.agent.instance || (is_us && !is_fresh) {
                Ok(())
            } else {
                Err(lease_held(holder))
            };
        }
        // Where the source is read by one agent at a time, and that is this one, the other has had its turn: an agent of
        // the same source writes nothing any more by then.
        if !is_us && self.lease.has_source(BootTime::now()) {
            return Ok(());
        }
        if !is_us {
            return if acquisition.adopt && !is_fresh { Ok(()) } else { Err(lease_held(holder)) };
        }
        if !is_fresh {
            return Ok(());
        }
        if !other.boot.is_empty() && other.boot == self.agent.boot {
            // Our last life, which has ended, unless the queue was copied.
            return if is_another_agent(other.pid) { Err(lease_held(holder)) } else { Ok(()) };
        }
        // A machine that was started again, a container under another name, or a clone: only the last goes
        // on with its heartbeat.
        let mut seen = acquisition.seen_heartbeat.lock();
        if seen.replace(*heartbeat).is_some_and(|seen| seen != *heartbeat) {
            return Err(lease_held(holder));
        }
        let wait = format!(
            "an agent of the same id kept this copy until {} ago, on host `{}`; whether it still does is \
             known in a minute",
            holder.silence(),
            other.host
        );
        Err(SinkError::Unavailable(wait).into())
    }

    /// What we are about to write may be another source's, now or one day.
    fn check_others(
        &self,
        records: &[LeaseRecord],
        acquisition: &Acquisition<'_>,
    ) -> Result<(), SyncError> {
        for (record, patterns) in overlapping(self.source_id, self.filter, records) {
            let is_fresh = record.holder.as_ref().is_some_and(LeaseHolder::is_fresh);
            if !acquisition.adopt || is_fresh {
                return Err(overlap_error(record, &patterns));
            }
        }
        Ok(())
    }

    /// Without a lease of ours: lease records may stand in another database, where another configuration has put them.
    /// Returns where one of our own is.
    async fn check_elsewhere(
        &self,
        acquisition: &Acquisition<'_>,
    ) -> Result<Vec<String>, SyncError> {
        let home = self.filter.state_database();
        let mut own_in = Vec::new();
        for (db, records) in self.store()?.elsewhere(home).await? {
            let own = records.iter().find(|record| record.source_id == self.source_id);
            let is_fresh =
                |record: &&LeaseRecord| record.holder.as_ref().is_some_and(LeaseHolder::is_fresh);
            self.check_holder(
                own.filter(is_fresh).and_then(|record| record.holder.as_ref()),
                acquisition,
            )?;
            let mut others = overlapping(self.source_id, self.filter, &records);
            if let Some((record, patterns)) = others.find(|(record, _)| is_fresh(record)) {
                return Err(overlap_error(record, &patterns));
            }
            if own.is_some() {
                own_in.push(db);
            }
        }
        Ok(own_in)
    }

    /// What Atlas holds that is not ours.
    async fn not_ours(
        &self,
        own: Option<&LeaseRecord>,
        elsewhere: &[String],
    ) -> Result<BTreeSet<Namespace>, SyncError> {
        let mut held = with_data(self.atlas, self.filter).await?;
        let store = self.store()?;
        held.retain(|ns| !store.is_of_records(ns) || !elsewhere.iter().any(|db| db == ns.db()));
        let refused: BTreeSet<_> =
            held.into_iter().filter(|ns| !own.is_some_and(|record| record.owns(ns))).collect();
        match refused.first() {
            Some(ns) if own.is_none() => {
                Err(not_owned(ns, self.filter.state_database(), elsewhere, store))
            }
            Some(_) | None => Ok(refused),
        }
    }

    /// When adopting, a lease of our own that another configuration has left in another database goes. A name
    /// that differs from it in capitals alone could not be in Atlas as long as it is there.
    async fn remove_elsewhere(&self, databases: &[String]) -> Result<(), SyncError> {
        for db in databases {
            tracing::warn!(db, "the mark that this source has in another database is removed");
            self.store()?.remove_with_place(db, self.source_id).await?;
        }
        Ok(())
    }

    /// When adopting, the lease records of others on what is ours now go.
    async fn remove_others(&self, records: &[LeaseRecord]) -> Result<(), SyncError> {
        for (record, _) in overlapping(self.source_id, self.filter, records) {
            tracing::warn!(source = record.source_id, "the mark of another source is removed");
            self.store()?.remove(self.filter.state_database(), &record.source_id).await?;
        }
        Ok(())
    }

    /// Takes the lease, unless another agent has taken it since it was looked at.
    async fn set(
        &self,
        own: Option<&LeaseRecord>,
        lease_id: &str,
        refused: &BTreeSet<Namespace>,
        upstream: &Upstream,
    ) -> Result<(), SyncError> {
        let (patterns, none) = (self.filter.patterns(), Counts::default());
        let before = own.and_then(|record| record.holder.as_ref());
        let before = before.map(|holder| holder.agent.instance.as_str());
        let record = NewLeaseRecord {
            source_id: self.source_id,
            patterns,
            copied: own.map(|record| record.history(patterns)).unwrap_or_default(),
            refused,
            upstream: upstream.ids(),
            agent: self.agent,
            lease_id,
            counts: own.map_or(&none, |record| &record.counts),
        };
        let place = self.filter.state_database();
        let sent_at = BootTime::now();
        if !self.store()?.set(place, record, before, own.is_none()).await? {
            let lost = "another agent has set the mark of ownership at the same time";
            return Err(SinkError::Unavailable(lost.to_owned()).into());
        }
        self.lease.renew(sent_at);
        Ok(())
    }

    /// Renews the heartbeat. False when the lease is not as we left it: another agent's, gone, or older.
    ///
    /// # Errors
    /// When Atlas does not take it.
    pub async fn renew(
        &self,
        left: ClusterTime,
        checkpoint: ClusterTime,
        upstream: &Upstream,
    ) -> Result<bool, SyncError> {
        let (place, instance) = (self.filter.state_database(), &self.agent.instance);
        let (store, upstream) = (self.store()?, upstream.ids());
        let sent_at = BootTime::now();
        let renewal = store.renew(place, self.source_id, instance, left, checkpoint, upstream);
        let is_as_left = renewal.await?;
        if is_as_left {
            self.lease.renew(sent_at);
        } else {
            self.lease.end();
        }
        Ok(is_as_left)
    }

    /// Releases the lease: the target stays this source's, and any agent of it may take it.
    ///
    /// # Errors
    /// When Atlas does not take it.
    pub async fn release(&self) -> Result<(), SyncError> {
        let (place, instance) = (self.filter.state_database(), &self.agent.instance);
        Ok(self.store()?.release(place, self.source_id, instance).await?)
    }

    /// Where lease records are kept. Of a target that has no such place nobody can tell whose copy it is.
    fn store(&self) -> Result<&dyn LeaseRecords, SyncError> {
        let problem = || "the target keeps no marks of ownership".to_owned();
        self.atlas.records().ok_or_else(|| SyncError::NotOwned { problem: problem() })
    }

    /// All lease records in this Atlas.
    pub(super) async fn records(&self) -> Result<Vec<LeaseRecord>, SyncError> {
        Ok(self.store()?.read(self.filter.state_database()).await?)
    }

    /// What of the target other sources hold leases on by now: what their patterns and ours choose.
    pub(super) async fn others(&self) -> Result<Vec<(String, NamespaceFilter)>, SyncError> {
        let records = self.records().await?;
        Ok(overlapping(self.source_id, self.filter, &records)
            .map(|(record, _)| (record.source_id.clone(), record.filter.clone()))
            .collect())
    }
}

/// The replicated namespaces in which Atlas holds anything.
pub(super) async fn with_data(
    atlas: &dyn Side,
    filter: &NamespaceFilter,
) -> Result<Vec<Namespace>, SyncError> {
    let Listing { collections, views, .. } = atlas_collections(atlas, filter).await?;
    let mut found: Vec<_> = views.into_iter().map(|view| view.ns).collect();
    for collection in collections {
        let ns = collection.ns;
        if !atlas.is_empty(&ns).await? {
            found.push(ns);
        }
    }
    Ok(found)
}

/// `elsewhere` says where a lease of ours was found instead of in `db`.
pub(super) fn not_owned(
    ns: &Namespace,
    db: &str,
    elsewhere: &[String],
    store: &dyn LeaseRecords,
) -> SyncError {
    let note = elsewhere.first().map_or_else(String::new, |other| {
        let place = store.name(other);
        format!(
            "; a mark of this source stands in `{place}`, so `atlas.state_database` was `{other}` \
             before, and is `{db}` now"
        )
    });
    SyncError::NotOwned {
        problem: format!(
            "Atlas already holds data in `{ns}` and carries no mark of this source for it, so it may be \
             somebody else's{note}"
        ),
    }
}

/// The lease records of other sources whose patterns and ours could choose one name, with a pattern of each.
pub(super) fn overlapping<'m>(
    source_id: &'m str,
    filter: &'m NamespaceFilter,
    records: &'m [LeaseRecord],
) -> impl Iterator<Item = (&'m LeaseRecord, (String, String))> {
    let others = records.iter().filter(move |record| record.source_id != source_id);
    others.filter_map(|record| {
        overlap(filter.patterns(), record.filter.patterns()).map(|patterns| (record, patterns))
    })
}

/// Why a target with such a lease is not for us.
pub(super) fn overlap_error(record: &LeaseRecord, (ours, theirs): &(String, String)) -> SyncError {
    let holder = record.holder.as_ref().map_or_else(String::new, |holder| {
        let LeaseHolder { agent, .. } = holder;
        format!(
            ", whose agent runs on host `{}`, process {}, last heartbeat {} ago",
            agent.host,
            agent.pid,
            holder.silence()
        )
    });
    SyncError::Overlap {
        problem: format!(
            "Atlas is marked as the copy of another source (`{}`{holder}) for namespaces that are to be \
             written: its pattern `{theirs}` and ours, `{ours}`, can choose the same collection",
            record.source_id
        ),
    }
}

pub(super) fn lease_held(holder: &LeaseHolder) -> SyncError {
    SyncError::LeaseHeld {
        host: holder.agent.host.clone(),
        pid: holder.agent.pid,
        heartbeat: holder.silence(),
        is_fresh: holder.is_fresh(),
    }
}

/// True when a process of our own program, and not this one, has the id.
fn is_another_agent(pid: u32) -> bool {
    let name = |pid: &str| std::fs::read_to_string(format!("/proc/{pid}/comm")).ok();
    pid != std::process::id()
        && name(&pid.to_string()).is_some_and(|comm| Some(comm) == name("self"))
}
