//! A look at one collection: what differs is made, what takes long is waited for, what is refused is told.

use std::{collections::BTreeSet, time::Duration};

use bson::{RawDocumentBuf, rawdoc};
use sha2::{Digest, Sha256};

use super::SchemaKeeper;
use crate::{
    gate::Permit,
    model::{
        event::{CollectionId, SchemaChange},
        namespace::Namespace,
    },
    mongo::class::{Class, class_of},
    observe::{progress::ShareState, status::Build},
    queue::{QueueError, note},
    runtime::{
        clock::now_ms,
        shutdown::{Stop, blocking},
    },
    schema::{Description, OptionChange, Step, build_command, index_names, steps},
    sink::{
        Sink,
        classify::{BUILD_IN_PROGRESS, INDEX_NOT_FOUND},
    },
    sync::{
        SyncError,
        ends::End,
        schema::{BUILD_PATIENCE, without_values},
        state::{Reason, SyncState},
    },
};

/// How often the progress of a build is asked for.
const PROGRESS_EVERY: Duration = Duration::from_secs(2);

/// How long an index stays as it is that had to let a document in.
const LOOSE_FOR: Duration = Duration::from_secs(10);

/// `CollectionUUIDMismatch` (6.0+).
const OTHER_COLLECTION: i32 = 361;

/// How a look ended.
pub(super) enum Looked {
    /// All is as it should be, or another event will see to it.
    Done,
    /// Something passes that is in the way.
    Soon,
    /// Atlas is away, in its own words.
    Away(String),
    /// A sentence each, with the server's reason.
    Problems(Vec<String>),
}

/// What is altered in Atlas, for as long as the permit holds under which the local one was looked at.
struct Target<'a> {
    ns: &'a Namespace,
    permit: Permit,
}

/// What a server said to one command.
enum Answer {
    Done,
    Refused(String),
    /// The collection is not the one that was meant any more, or its build was ended.
    Overtaken(String),
    Away(String),
}

impl<K: Sink> SchemaKeeper<K> {
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
        let target = Target { ns, permit: self.cx.ends.local.permit() };
        let local = || async {
            let described = self.cx.ends.local.describe(ns).await;
            described.map_err(|error| End::Local.error(error))
        };
        let Some(wanted) = local().await? else {
            return Ok(Looked::Done);
        };
        if !self.stream_has_come(stop).await? {
            return Ok(Looked::Soon);
        }
        let copy = self.cx.ends.atlas.describe(ns).await;
        let copy = copy.map_err(|error| End::Atlas.error(error))?;
        // Whatever has changed while the two were looked at is still to come, or has a barrier.
        let is_same = local().await?.is_some_and(|now| now == wanted);
        if !is_same || self.cx.queue.has_barrier(ns) {
            return Ok(Looked::Soon);
        }
        let mut problems = Vec::new();
        let mut builds = Vec::new();
        let steps = steps(&wanted, copy.as_ref());
        let is_fixed = |step: &Step| matches!(step, Step::Option(OptionChange::Fixed { .. }));
        if steps.iter().any(is_fixed) && self.make_anew(&target, &wanted).await? {
            return Ok(Looked::Soon);
        }
        let is_the_workers = |step: &Step| matches!(step, Step::Create { .. } | Step::DropView);
        if steps.iter().any(is_the_workers) {
            if !is_asked {
                let reconcile = SchemaChange::Reconcile { ns: ns.clone(), collection: wanted.id };
                self.cx.queue_changes(vec![reconcile]).await?;
            }
            let listed = self.cx.status.state().schema_problems.get(ns).cloned();
            let listed = listed.unwrap_or_else(|| steps.iter().map(ToString::to_string).collect());
            return Ok(Looked::Problems(listed));
        }
        let (behind, first): (Vec<_>, Vec<_>) = steps.into_iter().partition(Step::tightens);
        for step in first {
            match self.take_step(&target, &step, &mut builds).await {
                Answer::Done => {}
                Answer::Refused(reason) => problems.push(reason),
                Answer::Overtaken(reason) | Answer::Away(reason) => {
                    return Ok(Looked::Away(reason));
                }
            }
        }
        // Of what was made just now the id is not known; it can only be the one that was meant.
        let id = copy.as_ref().and_then(|copy| copy.id);
        match self.build(&target, builds, id, stop).await? {
            Ok(refused) => problems.extend(refused),
            Err(reason) => return Ok(Looked::Away(reason)),
        }
        // What is tightened too early is loosened by the first document that does not fit.
        if !behind.is_empty() && self.documents_come(ns) {
            return Ok(if problems.is_empty() { Looked::Soon } else { Looked::Problems(problems) });
        }
        for step in behind {
            match self.take_step(&target, &step, &mut Vec::new()).await {
                Answer::Done => {}
                Answer::Refused(reason) => problems.push(reason),
                Answer::Overtaken(reason) | Answer::Away(reason) => {
                    return Ok(Looked::Away(reason));
                }
            }
        }
        Ok(if problems.is_empty() { Looked::Done } else { Looked::Problems(problems) })
    }

    /// True while documents of a collection are copied or compared, or just now one came that an index had to let
    /// in: it may get more that it has had locally for long.
    fn documents_come(&self, ns: &Namespace) -> bool {
        let is_synced = self.cx.status.state().sync.as_ref().is_some_and(|progress| {
            let share = progress.shares.get(ns);
            progress.finished_ms.is_none() && share.is_some_and(|of| of.state != ShareState::Done)
        });
        is_synced || self.cx.watch.is_loosened(ns, LOOSE_FOR)
    }

    /// What only a new collection can change is changed by a new one, where no more is at stake than a
    /// buffer's documents, or none; once, since Atlas may take the option even then not.
    async fn make_anew(
        &self,
        Target { ns, permit }: &Target<'_>,
        wanted: &Description,
    ) -> Result<bool, SyncError> {
        let is_capped = wanted.is_capped();
        let is_empty = self.cx.ends.atlas.is_empty(ns).await;
        let is_empty = is_empty.map_err(|error| End::Atlas.error(error))?;
        let may = is_empty || (is_capped && self.may_replace(ns).await?);
        if !may || !permit.holds() {
            return Ok(false);
        }
        // Once for these options, also after a restart.
        let digest = Sha256::digest(wanted.options.as_bytes());
        let mark = format!("{ns} {}", uuid::Uuid::from_slice(&digest[..16]).unwrap_or_default());
        let (queue, position) = (self.cx.queue.clone(), self.cx.reading.position().seen());
        let only = BTreeSet::from([(*ns).clone()]);
        let is_first = blocking(move || -> Result<bool, QueueError> {
            let stored = queue.meta(note::MADE_ANEW)?;
            let mut made: BTreeSet<String> =
                stored.and_then(|stored| serde_json::from_slice(&stored).ok()).unwrap_or_default();
            if !made.insert(mark) {
                return Ok(false);
            }
            // First the demand: a crash between the two repeats it.
            SyncState::demand_of(&queue, position, &only, Reason::Replaced)?;
            let made = serde_json::to_vec(&made).expect("a list of names is JSON");
            queue.set_meta(note::MADE_ANEW, Some(&made))?;
            Ok(true)
        })
        .await?;
        if !is_first {
            return Ok(false);
        }
        tracing::info!(%ns, "made anew in Atlas, for options that only a new collection can have");
        self.cx.demanded.notify_one();
        Ok(true)
    }

    /// True when what the local database has of a collection may take the place of what Atlas has.
    async fn may_replace(&self, ns: &Namespace) -> Result<bool, SyncError> {
        let (here, there) = tokio::join!(
            self.cx.ends.local.estimated_count(ns),
            self.cx.ends.atlas.estimated_count(ns)
        );
        let here = here.map_err(|error| End::Local.error(error))?;
        let there = there.map_err(|error| End::Atlas.error(error))?;
        Ok(self.deletes.may_replace(here, there))
    }

    /// Takes a step but for what it builds, which goes to `builds` with the sentence for it.
    async fn take_step(
        &self,
        target: &Target<'_>,
        step: &Step,
        builds: &mut Vec<(String, RawDocumentBuf)>,
    ) -> Answer {
        if step.is_fixed() {
            return Answer::Refused(step.to_string());
        }
        let mut taken = step.clone();
        let mut answer = self.run_all(target, &taken).await;
        if let Answer::Refused(reason) = &answer
            && let Some(instead) = step.instead(reason)
        {
            answer = self.run_all(target, &instead).await;
            taken = instead;
        }
        match answer {
            Answer::Done => {
                builds.extend(taken.build().map(|spec| (step.to_string(), spec.clone())));
            }
            Answer::Refused(reason) => return Answer::Refused(format!("{step}: {reason}")),
            answer => return answer,
        }
        Answer::Done
    }

    async fn run_all(&self, target: &Target<'_>, step: &Step) -> Answer {
        for command in step.commands(target.ns.coll()) {
            match self.run_command(target, command).await {
                Answer::Done => {}
                answer => return answer,
            }
        }
        Answer::Done
    }

    /// Builds indexes, all at once, which reads the collection once; where that is refused, one by one, so
    /// that one that cannot be built keeps none of the others away. Returns what was refused; the inner
    /// error says that something is in the way.
    async fn build(
        &self,
        target: &Target<'_>,
        builds: Vec<(String, RawDocumentBuf)>,
        id: Option<CollectionId>,
        stop: &Stop,
    ) -> Result<Result<Vec<String>, String>, SyncError> {
        if builds.is_empty() {
            return Ok(Ok(Vec::new()));
        }
        let ns = target.ns;
        let indexes = index_names(builds.iter().map(|(_, spec)| spec));
        tracing::info!(%ns, indexes = indexes.join(", "), "building indexes in Atlas");
        let build = Build { indexes, since_ms: now_ms(), percent: None };
        self.cx.status.state().builds.insert(ns.clone(), build);
        let built = tokio::select! {
            built = self.build_each(target, &builds, id) => Ok(built),
            never = self.watch_progress(ns) => match never {},
            () = stop.drain.cancelled() => Err(SyncError::Stopped),
            () = stop.leave.cancelled() => Err(SyncError::Stopped),
        };
        self.cx.status.state().builds.remove(ns);
        if matches!(&built, Ok(Ok(refused)) if refused.is_empty()) {
            tracing::info!(%ns, "the indexes are built");
        }
        built
    }

    async fn build_each(
        &self,
        target: &Target<'_>,
        builds: &[(String, RawDocumentBuf)],
        id: Option<CollectionId>,
    ) -> Result<Vec<String>, String> {
        let specs: Vec<_> = builds.iter().map(|(_, spec)| spec.clone()).collect();
        match self.build_some(target, &specs, id).await {
            Answer::Done => return Ok(Vec::new()),
            Answer::Overtaken(reason) | Answer::Away(reason) => return Err(reason),
            Answer::Refused(_) => {}
        }
        let mut refused = Vec::new();
        for (what, spec) in builds {
            match self.build_some(target, std::slice::from_ref(spec), id).await {
                Answer::Done => {}
                Answer::Refused(reason) => refused.push(format!("{what}: {reason}")),
                Answer::Overtaken(reason) | Answer::Away(reason) => return Err(reason),
            }
        }
        Ok(refused)
    }

    async fn build_some(
        &self,
        target: &Target<'_>,
        specs: &[RawDocumentBuf],
        id: Option<CollectionId>,
    ) -> Answer {
        let coll = target.ns.coll();
        match self.run_command(target, build_command(coll, specs, id)).await {
            // Before 6.0 a collection that was replaced just now cannot be told apart.
            Answer::Refused(reason) if id.is_some() && reason.contains("collectionUUID") => {
                self.run_command(target, build_command(coll, specs, None)).await
            }
            answer => answer,
        }
    }

    async fn run_command(
        &self,
        Target { ns, permit }: &Target<'_>,
        mut command: RawDocumentBuf,
    ) -> Answer {
        command.append(bson::raw::cstr!("writeConcern"), rawdoc! { "w": "majority" });
        if let Err(error) = self.cx.ends.may_alter(End::Atlas) {
            return Answer::Away(error.to_string());
        }
        if !permit.holds() {
            return Answer::Overtaken(SyncError::Outdated.to_string());
        }
        let atlas = &self.cx.ends.atlas;
        let error = match atlas.command_within(ns.db(), command, BUILD_PATIENCE).await {
            Ok(reply) if reply.contains_key("writeConcernError") => {
                return Answer::Away("no majority has answered".to_owned());
            }
            Ok(_) => return Answer::Done,
            Err(error) => error,
        };
        let reason = without_values(&error.to_string());
        match (error.code(), class_of(&error)) {
            (Some(INDEX_NOT_FOUND), _) => Answer::Done,
            (Some(OTHER_COLLECTION), _) => Answer::Overtaken(reason),
            (Some(BUILD_IN_PROGRESS), _) => Answer::Refused(reason),
            (_, Class::Unavailable) => Answer::Away(reason),
            (_, _) if reason.contains("IndexBuildAborted") => Answer::Overtaken(reason),
            (_, _) => Answer::Refused(reason),
        }
    }

    async fn watch_progress(&self, ns: &Namespace) -> std::convert::Infallible {
        loop {
            tokio::time::sleep(PROGRESS_EVERY).await;
            let percent = self.cx.ends.atlas.build_progress(ns).await;
            if let Some(build) = self.cx.status.state().builds.get_mut(ns) {
                build.percent = percent;
            }
        }
    }
}
