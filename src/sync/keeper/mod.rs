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

use super::{
    Collection, Context, Listing, SyncError, deletes::DeleteLimit, pause, sides::SideName,
};
use crate::{
    gate::Permit,
    model::{event::SchemaChange, namespace::Namespace},
    observe::report::one_line,
    policy::breaker::Stage,
    runtime::{
        clock,
        shutdown::{Stop, blocking},
    },
    schema::{Description, Kind, Problem, joined, steps},
    sink::{SchemaSink, SinkError},
    source::SourceError,
    sync::{
        schema::{describe, list_indexes},
        state::SyncState,
    },
};

mod due;
mod look;
#[cfg(test)]
mod tests;

use due::{Looked, Passed, Sorted, Table, Told, sort_out};

/// How often everything is looked at, where the stream tells of schema changes and where it does not.
const LOOK_EVERY: Duration = Duration::from_secs(600);
const LOOK_OFTEN: Duration = Duration::from_secs(30);

/// How long to wait for the stream to come as far as what was read.
const STREAM_PATIENCE: Duration = Duration::from_secs(10);

type Look<'a> = BoxFuture<'a, (Namespace, Instant, Result<Looked, SyncError>)>;

/// A collection or view, as it is locally and in Atlas.
type Described = (Namespace, Description, Option<Description>);

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
        if self.cx.sides.atlas.schema().is_none() {
            std::future::pending::<()>().await;
        }
        let mut looks: FuturesUnordered<Look<'_>> = FuturesUnordered::new();
        let usual = if self.tells_of_schema { LOOK_EVERY } else { LOOK_OFTEN };
        let mut table = Table::new(usual, clock::now());
        loop {
            let is_held = !self.cx.watch.all_held().is_empty();
            table.ask(self.cx.watch.take(), is_held, clock::now());
            let began = clock::now();
            if table.is_pass_due(began) {
                let passed = self.pass(stop).await?;
                let is_owed = matches!(passed, Passed::Owed { .. });
                table.passed(passed, began, clock::now());
                if is_owed {
                    continue;
                }
            }
            let now = clock::now();
            for (ns, is_asked) in table.take(now) {
                looks.push(Box::pin(async move {
                    let looked = self.look(&ns, is_asked, stop).await;
                    (ns, now, looked)
                }));
            }
            self.cx.watch.set_open(table.open());
            tokio::select! {
                () = stop.drain.cancelled() => return Err(SyncError::Stopped),
                () = stop.leave.cancelled() => return Err(SyncError::Stopped),
                () = self.cx.watch.changed() => {}
                () = tokio::time::sleep_until(table.wake(now).into()) => {}
                Some((ns, since, looked)) = looks.next() => {
                    let looked = looked_of(&ns, looked)?;
                    self.tell(&ns, table.ended(&ns, looked, since, clock::now()));
                }
            }
        }
    }

    /// Looks at everything, unless a full sync is about to.
    async fn pass(&self, stop: &Stop) -> Result<Passed, SyncError> {
        let queue = self.cx.queue.clone();
        if let Some(owed) = blocking(move || SyncState::open(&queue)).await?
            && owed.request.is_none()
        {
            return Ok(Passed::Owed { is_of_some: owed.is_of_some });
        }
        match self.look_at_all(stop).await {
            Ok(Some(open)) => Ok(Passed::Open(open)),
            Ok(None) => Ok(Passed::NotNow),
            Err(error @ (SyncError::Queue(_) | SyncError::Stopped)) => Err(error),
            Err(error) => {
                tracing::debug!(%error, "options and indexes cannot be looked at yet");
                Ok(Passed::Failed)
            }
        }
    }

    fn tell(&self, ns: &Namespace, told: Told) {
        match told {
            Told::Nothing => {}
            Told::Fine => self.cx.watch.strike(ns),
            Told::Listed(problems, wait) => {
                let error = joined(&problems);
                if self.cx.watch.list(ns, problems) {
                    let wait_ms = wait.as_millis() as u64;
                    tracing::warn!(%ns, error, wait_ms, "options or indexes in Atlas differ; tried again");
                }
            }
        }
    }

    /// Compares the options and indexes of everything. Queues what is short, so that it comes in its turn;
    /// returns the collections whose indexes are to be built, or that nothing short can mend. `None` while
    /// it is not the time for it.
    async fn look_at_all(&self, stop: &Stop) -> Result<Option<Vec<Namespace>>, SyncError> {
        if !self.may_alter() {
            return Ok(None);
        }
        let permit = self.cx.sides.local.permit();
        let source = self.cx.source_listing().await?;
        let target = self.cx.target_listing().await?;
        self.cx.note_left_out(&source);
        let mut described = self.describe_all(&source, &target).await?;
        described.extend(self.describe_declared(&source).await?);
        if !self.stream_has_come(stop).await? {
            return Ok(None);
        }
        let mut open = Vec::new();
        let mut changes = Vec::new();
        for (ns, wanted, target) in described {
            if self.cx.queue.has_barrier(&ns) {
                continue; // What the name means is about to change.
            }
            self.cx.queue.keep_capped_in_order(&ns, wanted.is_capped());
            let steps = steps(&wanted, target.as_ref());
            match sort_out(&steps, &self.cx.watch.listed(&ns)) {
                Sorted::Fine => self.cx.watch.strike(&ns),
                Sorted::Open => open.push(ns),
                Sorted::Change => {
                    changes.push(SchemaChange::Reconcile { ns, collection: wanted.id });
                }
            }
        }
        changes.extend(self.views_that_are_left(&source, &target));
        self.cx.queue_changes(changes).await?;
        self.drop_emptied(&source, &target.emptied, &permit).await?;
        Ok(Some(open))
    }

    /// What each is like locally, and in Atlas.
    async fn describe_all(
        &self,
        source: &Listing,
        target: &Listing,
    ) -> Result<Vec<Described>, SyncError> {
        let copies = target.collections.iter().chain(&target.views);
        let copies: BTreeMap<_, _> = copies.map(|copy| (&copy.ns, copy)).collect();
        let mut pairs = Vec::new();
        for (original, is_view) in source
            .collections
            .iter()
            .map(|of| (of, false))
            .chain(source.views.iter().map(|of| (of, true)))
        {
            pairs.push((original, copies.get(&original.ns).copied(), is_view));
        }
        self.cx
            .sides
            .each(pairs, |(original, copy, is_view)| {
                Box::pin(async move {
                    let wanted = self.described(SideName::Local, original, is_view).await?;
                    let target = match copy {
                        Some(copy) => Some(self.described(SideName::Atlas, copy, is_view).await?),
                        None => None,
                    };
                    Ok((original.ns.clone(), wanted, target))
                })
            })
            .await
    }

    /// Collections that are not listed, and of which something is declared.
    async fn describe_declared(&self, source: &Listing) -> Result<Vec<Described>, SyncError> {
        let kept_apart = self.cx.queue.kept_apart();
        let names = source.declared.iter().filter(|ns| !kept_apart.has(ns));
        let pairs = self.cx.sides.each(names.collect(), |ns| {
            Box::pin(async move {
                let wanted = describe(&*self.cx.sides.local, ns).await?;
                let target = describe(&*self.cx.sides.atlas, ns).await?;
                Ok(wanted.map(|wanted| (ns.clone(), wanted, target)))
            })
        });
        Ok(pairs.await?.into_iter().flatten().collect())
    }

    /// Those that only Atlas has go.
    fn views_that_are_left(&self, source: &Listing, target: &Listing) -> Vec<SchemaChange> {
        let taken: BTreeSet<_> = source.names().collect();
        let waiting = self.cx.queue.pending_by_namespace();
        let mut to_come = waiting.keys().filter(|ns| self.cx.queue.has_barrier(ns));
        // What is made in Atlas behind this listing and has gone locally meanwhile: a view that goes with its database
        // is told of by nobody.
        if to_come.any(|ns| !taken.contains(ns) && !self.cx.queue.kept_apart().has(ns)) {
            self.cx.watch.ask_everything();
        }
        let mut changes = Vec::new();
        for Collection { ns, .. } in &target.views {
            let ns = ns.clone();
            if !taken.contains(&ns) && !self.cx.queue.has_barrier(&ns) {
                // When it is gone its database may be empty.
                if !source.databases.iter().any(|db| db == ns.db()) {
                    self.cx.watch.ask_everything();
                }
                changes.push(SchemaChange::DropIfGone { ns });
            }
        }
        changes
    }

    /// A database goes with the last that was in it. In Atlas its name would keep away one of other capitals.
    /// On the strength of the listing alone, so only while that is certain.
    async fn drop_emptied(
        &self,
        source: &Listing,
        emptied: &[String],
        permit: &Permit,
    ) -> Result<(), SyncError> {
        for db in emptied.iter().filter(|db| !source.databases.contains(db)) {
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
                        let all = error.may_still_drop().into_iter().collect();
                        self.cx.in_doubt().schema_given_up(all, clock::now());
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
        end: SideName,
        collection: &Collection,
        is_view: bool,
    ) -> Result<Description, SyncError> {
        let side = self.cx.sides.of(end);
        if side.schema().is_none() {
            // It keeps no indexes, and says what is declared of them.
            let declared = side.describe_options(&collection.ns).await?;
            return Ok(declared.unwrap_or_else(|| collection.description()));
        }
        let mut description = collection.description();
        if !is_view && description.kind == Kind::Collection {
            description.indexes = list_indexes(side, &collection.ns).await?;
        }
        Ok(description)
    }

    /// False while Atlas is not ours to write to, or away.
    fn may_alter(&self) -> bool {
        let writing = &self.cx.writing;
        let is_there = writing.against().breaker != Stage::Open;
        !writing.rests()
            && writing.is_acquired()
            && is_there
            && self.cx.sides.local.permit().holds()
    }

    /// Waits until everything that was done locally until now has been read into the queue: what a name
    /// meant when it was looked at is certain then, if no barrier waits for it.
    async fn stream_has_come(&self, stop: &Stop) -> Result<bool, SyncError> {
        let now = self.cx.sides.local.now().await?;
        let give_up = clock::now() + STREAM_PATIENCE;
        while !self.cx.reading.position().has_read(now) {
            if clock::now() > give_up {
                return Ok(false);
            }
            pause(stop, Duration::from_millis(50)).await?;
        }
        Ok(true)
    }
}

/// How a look ended, for the table.
///
/// # Errors
/// What ends the keeper.
fn looked_of(ns: &Namespace, looked: Result<Looked, SyncError>) -> Result<Looked, SyncError> {
    match looked {
        Err(error @ (SyncError::Queue(_) | SyncError::Stopped)) => Err(error),
        // Waiting does not help: a person must.
        Err(
            error @ (SyncError::Source(SourceError::Denied { .. })
            | SyncError::Sink(SinkError::Denied(_))),
        ) => Ok(Looked::Problems(vec![Problem::plain(one_line(&error))])),
        Err(error) => {
            tracing::debug!(%ns, %error, "a collection cannot be looked at yet");
            Ok(Looked::Soon)
        }
        Ok(Looked::Away(reason)) => {
            tracing::debug!(%ns, reason, "Atlas is away, or says so");
            Ok(Looked::Away(reason))
        }
        Ok(looked) => Ok(looked),
    }
}
