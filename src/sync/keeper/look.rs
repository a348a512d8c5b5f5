//! A look at one collection: what differs is made, what takes long is waited for, what is refused is told.

use std::{collections::BTreeSet, time::Duration};

use bson::{RawDocument, RawDocumentBuf};
use sha2::{Digest, Sha256};

use super::{SchemaKeeper, due::Looked};
use crate::{
    gate::Permit,
    model::{
        event::{CollectionId, SchemaChange},
        namespace::Namespace,
    },
    queue::{QueueError, note},
    runtime::{
        clock::{self, now_ms},
        shutdown::{Stop, blocking},
    },
    schema::{
        Description, OptionChange, Problem, Step, StepRefusal, StepResult, Target, build_command,
        make, steps,
    },
    side::{Because, Unaltered},
    sink::SchemaSink,
    sync::{
        SyncError,
        schema::{BUILD_PATIENCE, describe},
        sides::SideName,
        state::{Reason, SyncState},
    },
};

/// How often the progress of a build is asked for.
const PROGRESS_EVERY: Duration = Duration::from_secs(2);

/// How long an index stays as it is that had to let a document in.
const LOOSE_FOR: Duration = Duration::from_secs(10);

impl<K: SchemaSink> SchemaKeeper<K> {
    /// Makes one collection's options and indexes as they are locally.
    ///
    /// What makes or drops a collection or view is left to the worker, in its turn: queued anew where it
    /// was refused before (`is_asked` false), and listed else.
    pub(super) async fn look(
        &self,
        ns: &Namespace,
        is_asked: bool,
        stop: &Stop,
    ) -> Result<Looked, SyncError> {
        if !self.may_alter() {
            return Ok(Looked::Soon);
        }
        if self.cx.queue.kept_apart().has(ns) {
            return Ok(Looked::Done);
        }
        let permit = self.cx.sides.local.permit();
        let local = || describe(&*self.cx.sides.local, ns);
        let Some(wanted) = local().await? else {
            return Ok(Looked::Done);
        };
        if !self.stream_has_come(stop).await? {
            return Ok(Looked::Soon);
        }
        let copy = describe(&*self.cx.sides.atlas, ns).await?;
        // Whatever has changed while the two were looked at is still to come, or has a barrier.
        let is_same = local().await?.is_some_and(|now| now == wanted);
        if !is_same || self.cx.queue.has_barrier(ns) {
            return Ok(Looked::Soon);
        }
        let steps = steps(&wanted, copy.as_ref());
        let is_fixed = |step: &Step| matches!(step, Step::Option(OptionChange::Fixed { .. }));
        if steps.iter().any(is_fixed) && self.recreate(ns, &permit, &wanted).await? {
            return Ok(Looked::Soon);
        }
        let is_the_workers = |step: &Step| matches!(step, Step::Create { .. } | Step::DropView);
        if steps.iter().any(is_the_workers) {
            if !is_asked {
                let reconcile = SchemaChange::Reconcile { ns: ns.clone(), collection: wanted.id };
                self.cx.queue_changes(vec![reconcile]).await?;
            }
            let plain = |step: &Step| Problem::plain(step.to_string());
            let mut listed = self.cx.watch.listed(ns);
            if listed.is_empty() {
                listed = steps.iter().map(plain).collect();
            }
            return Ok(Looked::Problems(listed));
        }
        // Of what was made just now the id is not known; it can only be the one that was meant.
        let id = copy.as_ref().and_then(|copy| copy.id);
        let is_any = !steps.is_empty();
        let mut copy = Copy { keeper: self, ns, permit, id, stop };
        let made = make(&mut copy, steps).await;
        // A build takes its time. What the worker did meanwhile of a change that came behind, it did to what it saw in
        // Atlas, which is not yet an index that was still being built.
        let has_changed = is_any && local().await?.is_none_or(|now| now != wanted);
        if made.is_ok() && (has_changed || self.cx.queue.has_barrier(ns)) {
            return Ok(Looked::Soon);
        }
        match made {
            Ok(left) if !left.problems.is_empty() => Ok(Looked::Problems(left.problems)),
            Ok(left) => Ok(if left.waits { Looked::Soon } else { Looked::Done }),
            Err(Halt::Away(reason)) => Ok(Looked::Away(reason)),
            Err(Halt::Failed(error)) => Err(error),
        }
    }

    /// True while documents of a collection are copied or compared, or just now one came that an index had to let
    /// in: it may get more that it has had locally for long.
    fn documents_come(&self, ns: &Namespace) -> bool {
        self.cx.in_hand.is_at(ns) || self.cx.watch.is_loosened(ns, LOOSE_FOR, clock::now())
    }

    /// What only a new collection can change is changed by a new one, where no more is at stake than a
    /// buffer's documents, or none; once, since Atlas may take the option even then not.
    async fn recreate(
        &self,
        ns: &Namespace,
        permit: &Permit,
        wanted: &Description,
    ) -> Result<bool, SyncError> {
        let is_capped = wanted.is_capped();
        let is_empty = self.cx.sides.atlas.is_empty(ns).await?;
        let may = is_empty || (is_capped && self.may_replace(ns).await?);
        if !may || !permit.holds() {
            return Ok(false);
        }
        // Once for these options, also after a restart.
        let digest = Sha256::digest(wanted.options.as_bytes());
        let mark = format!("{ns} {}", uuid::Uuid::from_slice(&digest[..16]).unwrap_or_default());
        let (queue, position) = (self.cx.queue.clone(), self.cx.reading.position().seen());
        let only = BTreeSet::from([ns.clone()]);
        let is_first = blocking(move || -> Result<bool, QueueError> {
            let stored = queue.meta(note::RECREATED)?;
            let mut made: BTreeSet<String> =
                stored.and_then(|stored| serde_json::from_slice(&stored).ok()).unwrap_or_default();
            if !made.insert(mark) {
                return Ok(false);
            }
            // First the note that a sync is mandatory: a crash between the two repeats it.
            SyncState::require_of(&queue, position, &only, Reason::Replaced)?;
            let made = serde_json::to_vec(&made).expect("a list of names is JSON");
            queue.set_meta(note::RECREATED, Some(&made))?;
            Ok(true)
        })
        .await?;
        if !is_first {
            return Ok(false);
        }
        tracing::info!(%ns, "made anew in Atlas, for options that only a new collection can have");
        self.cx.sync_wanted.notify_one();
        Ok(true)
    }

    /// True when what the local database has of a collection may take the place of what Atlas has.
    async fn may_replace(&self, ns: &Namespace) -> Result<bool, SyncError> {
        let (source, target) = tokio::join!(
            self.cx.sides.local.estimated_count(ns),
            self.cx.sides.atlas.estimated_count(ns)
        );
        Ok(self.deletes.may_replace(source?, target?))
    }

    async fn watch_progress(&self, ns: &Namespace) -> std::convert::Infallible {
        loop {
            tokio::time::sleep(PROGRESS_EVERY).await;
            let percent = match self.cx.sides.atlas.schema() {
                Some(schema) => schema.build_progress(ns).await,
                None => None,
            };
            self.cx.watch.build_is_at(ns, percent);
        }
    }
}

/// The collection as Atlas has it, for as long as the permit holds under which the local one was looked at.
struct Copy<'a, K> {
    keeper: &'a SchemaKeeper<K>,
    ns: &'a Namespace,
    permit: Permit,
    id: Option<CollectionId>,
    stop: &'a Stop,
}

/// Why a look ends early.
enum Halt {
    /// Atlas is away; or the collection is not the one that was meant any more, or its build was ended.
    Away(String),
    Failed(SyncError),
}

impl<K: SchemaSink> Target for Copy<'_, K> {
    type Stop = Halt;

    fn ns(&self) -> &Namespace {
        self.ns
    }

    /// The worker does, in its turn.
    async fn create(&mut self, step: &Step, _: &RawDocument) -> StepResult<Halt> {
        Ok(Err(StepRefusal::of(step.to_string())))
    }

    /// What is tightened too early is loosened by the first document that does not fit.
    fn may(&self, step: &Step) -> bool {
        !step.tightens() || !self.keeper.documents_come(self.ns)
    }

    fn begins(&mut self, indexes: Vec<String>) {
        let ns = self.ns;
        tracing::info!(%ns, indexes = indexes.join(", "), "building indexes in Atlas");
        self.keeper.cx.watch.build_begins(ns, indexes, now_ms());
    }

    fn ended(&mut self, is_built: bool) {
        self.keeper.cx.watch.build_ended(self.ns);
        if is_built {
            tracing::info!(ns = %self.ns, "the indexes are built");
        }
    }

    async fn build(&mut self, specs: &[RawDocumentBuf]) -> StepResult<Halt> {
        let (keeper, ns, stop) = (self.keeper, self.ns, self.stop);
        tokio::select! {
            built = self.build_these(specs) => built,
            never = keeper.watch_progress(ns) => match never {},
            () = stop.drain.cancelled() => Err(Halt::Failed(SyncError::Stopped)),
            () = stop.leave.cancelled() => Err(Halt::Failed(SyncError::Stopped)),
        }
    }

    async fn run(&mut self, command: RawDocumentBuf) -> StepResult<Halt> {
        let sides = &self.keeper.cx.sides;
        if let Err(error) = sides.may_alter(SideName::Atlas) {
            return Err(Halt::Away(error.to_string()));
        }
        if !self.permit.holds() {
            return Err(Halt::Away(SyncError::Outdated.to_string()));
        }
        // A target that keeps no options has nothing that differs.
        let Some(schema) = sides.atlas.schema() else { return Ok(Ok(())) };
        match schema.alter(self.ns, command, BUILD_PATIENCE).await {
            Ok(()) => Ok(Ok(())),
            Err(Unaltered { reason, because: Because::InProgress, .. }) => {
                Ok(Err(StepRefusal::of(reason)))
            }
            Err(Unaltered { reason, because, is_away, .. })
                if is_away || because == Because::Overtaken =>
            {
                Err(Halt::Away(reason))
            }
            Err(Unaltered { reason, .. }) => Ok(Err(StepRefusal::of(reason))),
        }
    }
}

impl<K: SchemaSink> Copy<'_, K> {
    async fn build_these(&mut self, specs: &[RawDocumentBuf]) -> StepResult<Halt> {
        let coll = self.ns.coll();
        match self.run(build_command(coll, specs, self.id)).await? {
            // Before 6.0 a collection that was replaced just now cannot be told apart.
            Err(StepRefusal { reason, .. })
                if self.id.is_some() && reason.contains("collectionUUID") =>
            {
                self.run(build_command(coll, specs, None)).await
            }
            built => Ok(built),
        }
    }
}
