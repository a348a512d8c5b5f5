//! Options and indexes beside the data: what takes long, what was refused, and what no event told of.
//!
//! The worker makes short changes in their order ([`SchemaChange::Reconcile`]) and names what is left; here
//! indexes are built while documents flow, what fails is listed and tried again, ever more rarely, and
//! everything is looked at when the agent starts and from time to time: often where the stream tells of no
//! schema change (5.0).

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::{StreamExt, future::BoxFuture, stream::FuturesUnordered};

use super::{Collection, Context, Listing, SyncError, deletes::DeleteLimit, ends::End, pause};
use crate::{
    gate::Permit,
    model::{event::SchemaChange, namespace::Namespace},
    observe::report::one_line,
    policy::breaker::Stage,
    runtime::shutdown::{Stop, blocking},
    schema::{Description, Kind, Problem, Step, joined, steps},
    sink::{SchemaSink, SinkError},
    source::SourceError,
    sync::{schema::list_indexes, state::SyncState},
};

mod look;

use look::Looked;

/// How often everything is looked at, where the stream tells of schema changes and where it does not.
const LOOK_EVERY: Duration = Duration::from_secs(600);
const LOOK_OFTEN: Duration = Duration::from_secs(30);

/// A look at everything takes at most this share of the time.
const SHARE_MAX: u32 = 20;

/// Waits before what was refused is tried again: the first one, doubled each time, and the longest.
const RETRY_FIRST: Duration = Duration::from_secs(5);
const RETRY_MAX: Duration = Duration::from_secs(3_600);

/// How soon to look again while something is in the way, or an end is away.
const SOON: Duration = Duration::from_secs(1);

/// How often that is believed of Atlas before it is listed.
const AWAY_MAX: u32 = 10;

/// How long to wait for the stream to come as far as what was read.
const STREAM_PATIENCE: Duration = Duration::from_secs(10);

/// Collections that are looked at at the same time. A server builds three at once by default
/// (`maxNumActiveUserIndexBuilds`), and a full sync may need one.
const LOOKS_MAX: usize = 2;

/// When a collection is looked at next.
struct Due {
    at: Instant,
    /// How often it was refused.
    refusals: u32,
    /// It was asked for, and is not only tried again.
    is_asked: bool,
    /// How often Atlas was away for it.
    away: u32,
}

impl Due {
    fn now() -> Self {
        Self { at: Instant::now(), refusals: 0, is_asked: true, away: 0 }
    }
}

type Look<'a> = BoxFuture<'a, (Namespace, Instant, Result<Looked, SyncError>)>;

/// Looks after options and indexes beside the data.
pub(super) struct SchemaKeeper<K> {
    cx: Arc<Context<K>>,
    deletes: DeleteLimit,
    /// See [`SchemaSource::tells_of_schema`](crate::source::SchemaSource::tells_of_schema).
    tells_of_schema: bool,
}

impl<K: SchemaSink> SchemaKeeper<K> {
    pub fn new(cx: Arc<Context<K>>, deletes: DeleteLimit, tells_of_schema: bool) -> Self {
        Self { cx, deletes, tells_of_schema }
    }

    /// Looks after options and indexes until told to stop.
    ///
    /// # Errors
    /// [`SyncError::Stopped`], or a failure of the queue.
    pub async fn keep(&self, stop: &Stop) -> Result<(), SyncError> {
        if self.cx.ends.atlas.schema().is_none() {
            std::future::pending::<()>().await;
        }
        let mut looks: FuturesUnordered<Look<'_>> = FuturesUnordered::new();
        let mut busy = BTreeSet::new();
        let mut due: BTreeMap<Namespace, Due> = BTreeMap::new();
        let mut next_pass = Instant::now();
        let mut earliest = next_pass;
        let mut is_pass_asked = true;
        loop {
            let asked = self.cx.watch.take();
            if asked.everything {
                is_pass_asked = true;
                next_pass = next_pass.min((Instant::now() + SOON / 2).max(earliest));
            }
            for ns in asked.namespaces {
                let entry = due.entry(ns).or_insert_with(Due::now);
                (entry.at, entry.is_asked) = (Instant::now(), true);
            }
            let usual = if self.tells_of_schema { LOOK_EVERY } else { LOOK_OFTEN };
            if Instant::now() >= next_pass {
                let began = Instant::now();
                let queue = self.cx.queue.clone();
                if let Some(owed) = blocking(move || SyncState::open(&queue)).await?
                    && owed.request.is_none()
                {
                    // One of everything ends with the same comparison.
                    is_pass_asked &= owed.is_of_some;
                    let wait = if owed.is_of_some { SOON } else { usual };
                    next_pass = began + wait;
                    continue;
                }
                match self.look_at_all(stop).await {
                    Ok(Some(open)) => {
                        is_pass_asked = false;
                        earliest = Instant::now() + began.elapsed() * SHARE_MAX;
                        next_pass = Instant::now() + usual.max(began.elapsed() * SHARE_MAX);
                        for ns in open {
                            due.entry(ns).or_insert_with(Due::now);
                        }
                    }
                    Ok(None) => next_pass = Instant::now() + SOON,
                    Err(error @ (SyncError::Queue(_) | SyncError::Stopped)) => return Err(error),
                    Err(error) => {
                        tracing::debug!(%error, "options and indexes cannot be looked at yet");
                        next_pass = Instant::now() + SOON * 5;
                    }
                }
            }
            let now = Instant::now();
            let ready = due.iter().filter(|(ns, due)| due.at <= now && !busy.contains(*ns));
            let ready: Vec<_> = ready.map(|(ns, _)| ns.clone()).collect();
            for ns in ready.into_iter().take(LOOKS_MAX - looks.len()) {
                busy.insert(ns.clone());
                let entry = due.get_mut(&ns);
                let is_asked = entry.is_some_and(|due| std::mem::take(&mut due.is_asked));
                looks.push(Box::pin(async move {
                    let looked = self.look(&ns, is_asked, stop).await;
                    (ns, now, looked)
                }));
            }
            let open = due.values().filter(|due| due.refusals == 0).count();
            self.cx.watch.set_open(open + usize::from(is_pass_asked));
            // What is due and has no place waits for one that ends.
            let idle = due.iter().filter(|(ns, due)| due.at > now && !busy.contains(*ns));
            let wake = idle.map(|(_, due)| due.at).min().unwrap_or(next_pass).min(next_pass);
            tokio::select! {
                () = stop.drain.cancelled() => return Err(SyncError::Stopped),
                () = stop.leave.cancelled() => return Err(SyncError::Stopped),
                () = self.cx.watch.changed() => {}
                () = tokio::time::sleep_until(wake.into()) => {}
                Some((ns, since, looked)) = looks.next() => {
                    busy.remove(&ns);
                    self.looked(ns, looked, since, &mut due)?;
                }
            }
        }
    }

    /// Notes how a look ended that began at `since`.
    fn looked(
        &self,
        ns: Namespace,
        looked: Result<Looked, SyncError>,
        since: Instant,
        due: &mut BTreeMap<Namespace, Due>,
    ) -> Result<(), SyncError> {
        let looked = match looked {
            Err(error @ (SyncError::Queue(_) | SyncError::Stopped)) => return Err(error),
            // Waiting does not help: a person must.
            Err(
                error @ (SyncError::Source(SourceError::Denied { .. })
                | SyncError::Sink(SinkError::Denied(_))),
            ) => Looked::Problems(vec![Problem::plain(one_line(&error))]),
            Err(error) => {
                tracing::debug!(%ns, %error, "a collection cannot be looked at yet");
                Looked::Soon
            }
            Ok(looked) => looked,
        };
        let entry = due.entry(ns.clone()).or_insert_with(Due::now);
        match looked {
            Looked::Done => {
                self.cx.status.state().schema_problems.remove(&ns);
                // Unless it was asked for again meanwhile.
                if entry.at <= since {
                    due.remove(&ns);
                }
            }
            Looked::Soon => entry.at = Instant::now() + SOON,
            Looked::Away(reason) if entry.away < AWAY_MAX => {
                tracing::debug!(%ns, reason, "Atlas is away, or says so");
                entry.away += 1;
                entry.at = Instant::now() + SOON;
            }
            // What is said so often is no outage, or one of this alone: a full disk, a quota.
            Looked::Away(problem) => self.list_problems(&ns, vec![Problem::plain(problem)], entry),
            Looked::Problems(problems) => self.list_problems(&ns, problems, entry),
        }
        Ok(())
    }

    fn list_problems(&self, ns: &Namespace, problems: Vec<Problem>, entry: &mut Due) {
        let wait = RETRY_FIRST.saturating_mul(1 << entry.refusals.min(16)).min(RETRY_MAX);
        entry.away = 0;
        entry.refusals += 1;
        // What was asked for during the look is looked at at once.
        if !entry.is_asked {
            entry.at = Instant::now() + wait;
        }
        let before = self.cx.status.state().schema_problems.insert(ns.clone(), problems.clone());
        if before.as_ref() != Some(&problems) {
            let error = joined(&problems);
            let wait_ms = wait.as_millis() as u64;
            tracing::warn!(%ns, error, wait_ms, "options or indexes in Atlas differ; tried again");
        }
    }

    /// Compares the options and indexes of everything. Queues what is short, so that it comes in its turn;
    /// returns the collections whose indexes are to be built, or that nothing short can mend. `None` while
    /// it is not the time for it.
    async fn look_at_all(&self, stop: &Stop) -> Result<Option<Vec<Namespace>>, SyncError> {
        if !self.may_alter() {
            return Ok(None);
        }
        let permit = self.cx.ends.local.permit();
        let here = self.cx.here().await?;
        let there = self.cx.there().await?;
        self.cx.note_left_out(&here);
        let copies = there.collections.iter().chain(&there.views);
        let copies: BTreeMap<_, _> = copies.map(|copy| (&copy.ns, copy)).collect();
        let mut pairs = Vec::new();
        for (original, is_view) in here
            .collections
            .iter()
            .map(|of| (of, false))
            .chain(here.views.iter().map(|of| (of, true)))
        {
            pairs.push((original, copies.get(&original.ns).copied(), is_view));
        }
        let described = self
            .cx
            .ends
            .each(pairs, |(original, copy, is_view)| {
                Box::pin(async move {
                    let wanted = self.described(End::Local, original, is_view).await?;
                    let there = match copy {
                        Some(copy) => Some(self.described(End::Atlas, copy, is_view).await?),
                        None => None,
                    };
                    Ok((original.ns.clone(), wanted, there))
                })
            })
            .await?;
        if !self.stream_has_come(stop).await? {
            return Ok(None);
        }
        let mut open = Vec::new();
        let mut changes = Vec::new();
        for (ns, wanted, there) in described {
            if self.cx.queue.has_barrier(&ns) {
                continue; // What the name means is about to change.
            }
            self.cx.queue.keep_in_order(&ns, wanted.is_capped());
            let steps = steps(&wanted, there.as_ref());
            // What was refused is tried again in its own time.
            let listed =
                self.cx.status.state().schema_problems.get(&ns).cloned().unwrap_or_default();
            let is_listed = |step: &Step| listed.iter().any(|problem| problem.is_of(step));
            if !steps.is_empty() && steps.iter().all(is_listed) {
                open.push(ns);
            } else if steps.iter().any(|step| step.build().is_none() && !step.is_fixed()) {
                changes.push(SchemaChange::Reconcile { ns, collection: wanted.id });
            } else if steps.is_empty() {
                self.cx.status.state().schema_problems.remove(&ns);
            } else {
                open.push(ns);
            }
        }
        let taken: BTreeSet<_> = here.names().collect();
        for Collection { ns, .. } in &there.views {
            let ns = ns.clone();
            if !taken.contains(&ns) && !self.cx.queue.has_barrier(&ns) {
                // When it is gone its database may be empty.
                if !here.databases.iter().any(|db| db == ns.db()) {
                    self.cx.watch.ask_everything();
                }
                changes.push(SchemaChange::DropIfGone { ns });
            }
        }
        self.cx.queue_changes(changes).await?;
        self.drop_emptied(&here, &there.emptied, &permit).await?;
        Ok(Some(open))
    }

    /// A database goes with the last that was in it. In Atlas its name would keep away one of other capitals.
    /// On the strength of the listing alone, so only while that is certain.
    async fn drop_emptied(
        &self,
        here: &Listing,
        emptied: &[String],
        permit: &Permit,
    ) -> Result<(), SyncError> {
        for db in emptied.iter().filter(|db| !here.databases.contains(db)) {
            let waiting = self.cx.queue.pending_by_namespace();
            let is_free = self.cx.filter.is_whole(db) && waiting.keys().all(|ns| ns.db() != db);
            if is_free && permit.holds() {
                match self.cx.sink.drop_emptied(db).await {
                    Ok(_) => {}
                    // It does no harm but to that name, and whoever needs it says so.
                    Err(SinkError::Rejected(error) | SinkError::Held(error)) => {
                        tracing::debug!(db, error, "an emptied database stays");
                    }
                    Err(error) => {
                        if let SinkError::DropUnanswered { db, .. } = &error {
                            let all = [Namespace::all_of(db)].into();
                            self.cx.late().schema_given_up(all, Instant::now());
                        }
                        return Err(error.into());
                    }
                }
            }
        }
        Ok(())
    }

    /// As a listing told of it, with the indexes as they are now.
    async fn described(
        &self,
        end: End,
        collection: &Collection,
        is_view: bool,
    ) -> Result<Description, SyncError> {
        let mut description = collection.description();
        if !is_view && description.kind == Kind::Collection {
            description.indexes = list_indexes(self.cx.ends.of(end), &collection.ns).await?;
        }
        Ok(description)
    }

    /// False while Atlas is not ours to write to, or away.
    fn may_alter(&self) -> bool {
        let writing = &self.cx.writing;
        let is_there = writing.against().breaker != Stage::Open;
        !writing.rests() && writing.is_marked() && is_there && self.cx.ends.local.permit().holds()
    }

    /// Waits until everything that was done locally until now has been read into the queue: what a name
    /// meant when it was looked at is certain then, if no barrier waits for it.
    async fn stream_has_come(&self, stop: &Stop) -> Result<bool, SyncError> {
        let now = self.cx.ends.local.now().await?;
        let give_up = Instant::now() + STREAM_PATIENCE;
        while !self.cx.reading.position().has_read(now) {
            if Instant::now() > give_up {
                return Ok(false);
            }
            pause(stop, Duration::from_millis(50)).await?;
        }
        Ok(true)
    }
}
