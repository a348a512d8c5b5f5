//! A schema change whose turn has come: everything that was queued before it for its namespaces is done.
//!
//! The changes of options and indexes are all one, [`SchemaChange::Reconcile`]: Atlas is made like the local
//! database *is now*, which is right whatever happened in between, and as often as it is done. What takes
//! long, or what Atlas will not do, is left to the task that builds indexes; documents never wait for it.

use std::{collections::BTreeSet, sync::Arc};

use bson::{RawDocument, RawDocumentBuf};
use parking_lot::Mutex;
use uuid::Uuid;

use super::{
    learned::{Collections, Waiting},
    outcomes::{HELD_WAIT_MS, Halt, LOCAL_WAIT_MS, Outcomes, wait},
    write::Dispatch,
};
use crate::{
    gate::reading::Reading,
    model::{
        checkpoint::ClusterTime,
        event::{CollectionId, SchemaChange},
        namespace::Namespace,
        write_op::Refusal as Refused,
    },
    policy::{in_doubt::InDoubtWrites, read_watermark::ReadWatermark},
    queue::{Outcome, Queue},
    runtime::{clock, shutdown::blocking},
    schema::{
        Building, Description, Kind, Problem, Step, StepRefusal, StepResult, Target, make, steps,
        value::{get, is_on},
        watch::SchemaWatch,
    },
    sink::{Changed, SchemaSink, SinkError},
    source::{SchemaSource, SourceError},
    sync::state::{Reason, SyncState},
};

/// How long a collection that only Atlas has waits for the stream.
const ORPHAN_WAIT_MS: u64 = 200;

/// The turn of a change: the entry that it stands in.
#[derive(Clone, Copy)]
pub(super) struct Turn {
    pub seq: u64,
    pub id: Uuid,
    pub attempts: u32,
    /// When it was made locally.
    pub time: ClusterTime,
}

/// Whose a collection is that a full sync found in Atlas alone.
enum Left {
    InAtlasAlone,
    /// The local database has it, or what is still to come says what becomes of it.
    IsHere,
    /// The stream has not come so far.
    NotKnownYet,
}

/// Makes the changes. Writes no document but through the [`Dispatch`], which is asked to say what Atlas does not take.
pub(super) struct CollectionChanges<S, K> {
    pub queue: Arc<Queue>,
    pub source: Arc<S>,
    pub sink: Arc<K>,
    pub reading: Arc<Reading>,
    pub watermark: Arc<Mutex<ReadWatermark>>,
    pub in_doubt: Arc<Mutex<InDoubtWrites>>,
    pub watch: Arc<SchemaWatch>,
    pub dispatch: Arc<Dispatch<S, K>>,
    pub collections: Arc<Collections>,
    pub waiting: Arc<Waiting>,
}

impl<S: SchemaSource, K: SchemaSink> CollectionChanges<S, K> {
    pub(super) async fn apply(
        &self,
        turn: Turn,
        change: &SchemaChange,
        outcomes: &mut Outcomes,
    ) -> Result<(), Halt> {
        match change {
            SchemaChange::Reconcile { ns, collection } => {
                self.apply_reconcile(turn, ns, *collection, outcomes).await
            }
            SchemaChange::Create { ns, options } => {
                self.queue.keep_capped_in_order(ns, is_on(options, "capped"));
                self.apply_change(turn, change, outcomes).await
            }
            SchemaChange::Drop { .. } => self.apply_change(turn, change, outcomes).await,
            SchemaChange::DropIfGone { ns } => {
                self.apply_drop_if_gone(turn, ns, change, outcomes).await
            }
            SchemaChange::Rename { from, to, .. } => {
                self.apply_rename(turn, (from, to), change, outcomes).await
            }
        }
    }

    async fn apply_reconcile(
        &self,
        turn: Turn,
        ns: &Namespace,
        collection: Option<CollectionId>,
        outcomes: &mut Outcomes,
    ) -> Result<(), Halt> {
        // Documents do not wait for the local database: what is left is seen to when it is back.
        if self.reconcile(ns, collection).await? {
            outcomes.answered = true;
        } else {
            self.watch.ask(ns);
        }
        tracing::debug!(%ns, "options and indexes are as they are locally, or being built");
        outcomes.insert(turn.seq, Outcome::Applied);
        Ok(())
    }

    /// What a full sync found in Atlas alone.
    async fn apply_drop_if_gone(
        &self,
        turn: Turn,
        ns: &Namespace,
        change: &SchemaChange,
        outcomes: &mut Outcomes,
    ) -> Result<(), Halt> {
        let target = self.sink.describe(ns).await?;
        let is_collection = target.is_some_and(|target| target.kind == Kind::Collection);
        let outcome = match self.whose_is(ns, turn.seq, is_collection).await {
            Ok(Left::InAtlasAlone) => return self.apply_change(turn, change, outcomes).await,
            Ok(Left::IsHere) => Outcome::Applied,
            Ok(Left::NotKnownYet) => {
                self.reading.want();
                wait(ORPHAN_WAIT_MS)
            }
            Err(error) => {
                tracing::debug!(%ns, %error, "the local database cannot be read");
                wait(LOCAL_WAIT_MS)
            }
        };
        outcomes.insert(turn.seq, outcome);
        Ok(())
    }

    async fn apply_rename(
        &self,
        turn: Turn,
        (from, to): (&Namespace, &Namespace),
        change: &SchemaChange,
        outcomes: &mut Outcomes,
    ) -> Result<(), Halt> {
        let is_first =
            self.waiting.rename_sent(turn.seq) && self.watermark.lock().is_new(turn.time);
        let Some(changed) = self.change(turn, change, outcomes).await? else { return Ok(()) };
        if changed == Changed::WasNotThere {
            self.clear_target(to, !is_first).await?;
        }
        self.in_doubt.lock().renamed(from, to);
        self.waiting.rename_made(turn.seq);
        self.made(turn, change, changed, outcomes);
        Ok(())
    }

    /// A change that needs nothing but to be made.
    async fn apply_change(
        &self,
        turn: Turn,
        change: &SchemaChange,
        outcomes: &mut Outcomes,
    ) -> Result<(), Halt> {
        if let Some(changed) = self.change(turn, change, outcomes).await? {
            self.made(turn, change, changed, outcomes);
        }
        Ok(())
    }

    /// Makes the change in Atlas. `None` where it was not made, and its outcome stands.
    async fn change(
        &self,
        turn: Turn,
        change: &SchemaChange,
        outcomes: &mut Outcomes,
    ) -> Result<Option<Changed>, Halt> {
        for ns in change.namespaces() {
            self.collections.set_there(&ns, false);
        }
        let ns = change.ns();
        let result = self.dispatch.change_schema(change).await;
        outcomes.answered |=
            matches!(result, Ok(_) | Err(SinkError::Rejected(_) | SinkError::Held(_)));
        let outcome = match result {
            Ok(changed) => return Ok(Some(changed)),
            Err(SinkError::Held(reason))
                if is_create(change) && self.dispatch.is_gone_behind(ns, turn.seq).await? =>
            {
                self.dispatch.pass_over(ns, &reason);
                Outcome::Applied
            }
            // It waits for a person, or for another change; and so does what comes after it, of these collections
            // alone.
            Err(SinkError::Held(reason)) => {
                self.hold(change, reason);
                wait(HELD_WAIT_MS)
            }
            // A view keeps no document away. It is listed, and tried again.
            Err(SinkError::Rejected(reason)) if is_view(change) => {
                self.dispatch.list(ns, Problem::refused(Step::missing_view(), reason));
                self.watch.ask(ns);
                Outcome::Applied
            }
            Err(SinkError::Rejected(reason)) => {
                self.dispatch.rejected(ns, (turn.id, turn.attempts), reason, Refused::Schema)
            }
            Err(error) => return Err(error.into()),
        };
        outcomes.insert(turn.seq, outcome);
        Ok(None)
    }

    fn hold(&self, change: &SchemaChange, reason: String) {
        let ns = change.ns();
        let what = Problem::refused(format!("{} of the collection waits", change.name()), reason);
        if self.watch.hold(&change.namespaces()) {
            self.dispatch.list(ns, what);
            // What is in the way may be what nobody has told to be gone.
            self.watch.ask_everything();
        } else {
            self.watch.list(ns, vec![what]);
        }
    }

    fn made(&self, turn: Turn, change: &SchemaChange, changed: Changed, outcomes: &mut Outcomes) {
        let ns = change.ns();
        tracing::info!(%ns, op = change.name(), "schema change applied");
        let was_held = self.watch.let_go(&change.namespaces());
        if was_held {
            self.watch.strike(ns);
        }
        if was_held || changed == Changed::Differs {
            change.namespaces().iter().for_each(|ns| self.watch.ask(ns));
        }
        outcomes.insert(turn.seq, Outcome::Applied);
    }

    /// What was to be renamed to this name is not in Atlas. Where an earlier attempt may have renamed it, what has the
    /// name is compared. Else it was empty, so that nobody has made it (5.0), and what has the name goes.
    async fn clear_target(&self, to: &Namespace, may_be_made: bool) -> Result<(), Halt> {
        if !may_be_made && !self.source.tells_of_schema() && self.sink.carries_options() {
            self.dispatch.change_schema(&SchemaChange::Drop { ns: to.clone() }).await?;
            return Ok(());
        }
        tracing::info!(ns = %to, "what was to be renamed to this name was not in Atlas; what has the name is compared");
        let (queue, only) = (self.queue.clone(), BTreeSet::from([to.clone()]));
        blocking(move || {
            let position = queue.checkpoint()?.map(|checkpoint| checkpoint.cluster_time);
            SyncState::require_of(&queue, position.unwrap_or_default(), &only, Reason::Renamed)
        })
        .await
        .map_err(Halt::from)
    }

    /// Makes options and indexes in Atlas like the local ones are now. False when the local database cannot
    /// be asked.
    async fn reconcile(
        &self,
        ns: &Namespace,
        collection: Option<CollectionId>,
    ) -> Result<bool, Halt> {
        let reconciled = self.make_alike(ns, collection).await;
        if let Err(Halt::Sink(error)) = &reconciled {
            let change = SchemaChange::Reconcile { ns: ns.clone(), collection };
            error.note_change(&change, &mut self.in_doubt.lock(), clock::now());
        }
        reconciled
    }

    async fn make_alike(
        &self,
        ns: &Namespace,
        collection: Option<CollectionId>,
    ) -> Result<bool, Halt> {
        if !self.sink.carries_options() {
            return Ok(true);
        }
        let permit = self.source.permit();
        let wanted = match self.source.describe(ns).await {
            Ok(Some(wanted)) => wanted,
            // Its drop or its rename is still to come, and with the rename another turn.
            Ok(None) => return Ok(true),
            Err(error) => {
                tracing::debug!(%ns, %error, "the local database cannot be read");
                return Ok(false);
            }
        };
        if collection.is_some() && wanted.id != collection {
            return Ok(true);
        }
        self.queue.keep_capped_in_order(ns, wanted.is_capped());
        let target = match self.sink.describe(ns).await {
            Err(SinkError::Held(reason)) => {
                self.dispatch.list(ns, Problem::plain(reason));
                return Ok(false);
            }
            target => target?,
        };
        if !permit.holds() {
            return Ok(false);
        }
        if wanted.kind == Kind::Collection
            && target.as_ref().is_some_and(|of| of.kind == Kind::View)
        {
            self.dispatch.compare_replaced(ns).await?;
        }
        let is_done = self.take_steps(ns, &wanted, target.as_ref()).await?;
        if !is_done {
            self.watch.ask(ns);
        }
        Ok(true)
    }

    /// Takes the steps that are short. False when something is left.
    async fn take_steps(
        &self,
        ns: &Namespace,
        wanted: &Description,
        target: Option<&Description>,
    ) -> Result<bool, Halt> {
        let mut steps = steps(wanted, target);
        // On an empty collection it takes no time to build an index, and unique ones are enforced from the
        // first document on. Elsewhere it may wait for members of the set, or for its turn among others.
        let is_long = |step: &Step| step.build().is_some() || step.scans();
        let may_build = match target {
            _ if !steps.iter().any(is_long) => false,
            Some(target) if target.kind == Kind::Collection => {
                self.sink.estimated_count(ns).await? == 0
            }
            // It is made first. A view is not counted: that would run it.
            Some(_) | None => true,
        };
        let said: Vec<_> = steps.iter().map(ToString::to_string).collect();
        // Whoever makes what belongs there looks at it once more first.
        steps.retain(|step| *step != Step::DropView);
        let is_done = make(&mut Short { changes: self, ns, may_build }, steps).await?.is_nothing();
        if !said.is_empty() {
            tracing::info!(%ns, changes = said.join("; "), is_done, "options and indexes are made as they are locally");
        }
        Ok(is_done)
    }

    /// Before the first document of a collection is written whose making the stream does not tell of (5.0):
    /// the write itself would make it, without its options.
    /// False when the local database cannot be asked.
    pub(super) async fn ensure(&self, ns: &Namespace) -> Result<bool, Halt> {
        if self.source.tells_of_schema() || self.collections.is_there(ns) {
            return Ok(true);
        }
        let target = self.sink.describe(ns).await?;
        let is_there = target.is_some_and(|target| target.kind == Kind::Collection);
        if !is_there && !self.reconcile(ns, None).await? {
            return Ok(false);
        }
        self.collections.set_there(ns, true);
        Ok(true)
    }

    /// Whether only Atlas has the collection, and nothing that is still to come says what becomes of it: its own drop,
    /// or a rename that takes its documents along.
    async fn whose_is(
        &self,
        ns: &Namespace,
        seq: u64,
        is_collection_there: bool,
    ) -> Result<Left, SourceError> {
        let permit = self.source.permit();
        let seen_at = self.waiting.since(seq);
        let is_gone = match self.source.describe(ns).await? {
            None => true,
            Some(source) if source.kind == Kind::Collection => false,
            // A view or a time series has its name now: that is no reason to keep the documents of a collection.
            Some(_) => is_collection_there,
        };
        let Some(seen_at) = seen_at.filter(|_| is_gone) else {
            self.waiting.is_over(seq);
            if !is_gone {
                return Ok(Left::IsHere);
            }
            let now = self.source.time().await?;
            self.waiting.goes_on(seq, now);
            return Ok(Left::NotKnownYet);
        };
        // What was done to it before it was seen to be gone is in the queue when the stream has come so far.
        if !self.reading.position().has_read(seen_at) || !permit.holds() {
            return Ok(Left::NotKnownYet);
        }
        self.waiting.is_over(seq);
        let has_turned = self.queue.has_turned(ns, seq);
        Ok(if has_turned { Left::IsHere } else { Left::InAtlasAlone })
    }
}

fn is_create(change: &SchemaChange) -> bool {
    matches!(change, SchemaChange::Create { .. })
}

fn is_view(change: &SchemaChange) -> bool {
    matches!(change, SchemaChange::Create { options, .. } if get(options, "viewOn").is_some())
}

/// A copy of which only what is short is made. What Atlas will not, or this user may not, is left to whoever looks at it
/// beside the data; an outage is the caller's.
struct Short<'a, S, K> {
    changes: &'a CollectionChanges<S, K>,
    ns: &'a Namespace,
    may_build: bool,
}

impl<S: SchemaSource, K: SchemaSink> Target for Short<'_, S, K> {
    type Stop = SinkError;

    fn ns(&self) -> &Namespace {
        self.ns
    }

    async fn run(&mut self, command: RawDocumentBuf) -> StepResult<SinkError> {
        match self.changes.sink.alter(self.ns, command).await {
            Ok(()) => Ok(Ok(())),
            Err(error) => refusal_of(error).map(Err),
        }
    }

    async fn create(&mut self, step: &Step, options: &RawDocument) -> StepResult<SinkError> {
        let create = SchemaChange::Create { ns: self.ns.clone(), options: options.to_owned() };
        match self.changes.sink.change_schema(&create).await {
            Ok(Changed::Done) => Ok(Ok(())),
            Ok(_) => Ok(Err(StepRefusal::of("one of other options has the name"))),
            Err(error) => {
                let refusal = refusal_of(error)?;
                let problem = Problem::refused(step.to_string(), refusal.reason.as_str());
                self.changes.dispatch.list(self.ns, problem);
                Ok(Err(refusal))
            }
        }
    }

    fn may(&self, step: &Step) -> bool {
        !step.tightens() && (!step.scans() || self.may_build)
    }

    fn building(&self) -> Building {
        if self.may_build { Building::AtOnce } else { Building::None }
    }
}

fn refusal_of(error: SinkError) -> Result<StepRefusal, SinkError> {
    match error {
        SinkError::Rejected(reason) | SinkError::Denied(reason) | SinkError::Held(reason) => {
            Ok(StepRefusal::of(reason))
        }
        error => Err(error),
    }
}
