//! A look at one collection: what differs is made, what takes long is waited for, what is refused is told.

use std::{collections::BTreeSet, time::Duration};

use bson::{Document, rawdoc};

use super::super::{
    End, Reconciler, SyncError,
    schema::{BUILD_PATIENCE, raw, without_values},
};
use crate::{
    event::{CollectionId, SchemaChange},
    mongo::class::{Class, class_of},
    namespace::Namespace,
    schema::{Description, Kind, Step, build_command, steps},
    shutdown::{Stop, blocking},
    sink::{
        Sink, SinkError,
        classify::{BUILD_IN_PROGRESS, INDEX_NOT_FOUND},
    },
    status::{Build, now_ms},
    sync_state::{Reason, SyncState},
};

/// How often the progress of a build is asked for.
const PROGRESS_EVERY: Duration = Duration::from_secs(2);

/// `CollectionUUIDMismatch` (6.0+).
const OTHER_COLLECTION: i32 = 361;

/// How a look ended.
pub(super) enum Looked {
    /// All is as it should be, or another event will see to it.
    Done,
    /// Something passes that is in the way.
    Soon,
    /// A sentence each, with the server's reason.
    Problems(Vec<String>),
}

/// What a server said to one command.
enum Answer {
    Done,
    Refused(String),
    /// The collection is not the one that was meant any more, or its build was ended.
    Overtaken,
    Away,
}

impl<K: Sink> Reconciler<K> {
    /// Makes one collection's options and indexes as they are locally.
    pub(super) async fn look(&self, ns: &Namespace, stop: &Stop) -> Result<Looked, SyncError> {
        if !self.may_alter() {
            return Ok(Looked::Soon);
        }
        let local = self.ends.local.describe(ns).await;
        let Some(wanted) = local.map_err(|error| End::Local.error(error))? else {
            return Ok(Looked::Done);
        };
        let copy = self.ends.atlas.describe(ns).await;
        let copy = copy.map_err(|error| End::Atlas.error(error))?;
        if !self.stream_has_come(stop).await? || self.queue.has_barrier(ns) {
            return Ok(Looked::Soon);
        }
        let mut problems = Vec::new();
        let mut builds = Vec::new();
        let steps = steps(&wanted, copy.as_ref());
        if steps.iter().any(Step::is_fixed) && self.make_anew(ns, &wanted).await? {
            return Ok(Looked::Soon);
        }
        for step in steps {
            match self.take_step(ns, &step, &mut builds).await {
                Answer::Done => {}
                Answer::Refused(reason) => problems.push(reason),
                Answer::Overtaken | Answer::Away => return Ok(Looked::Soon),
            }
        }
        // Of what was made just now the id is not known; it can only be the one that was meant.
        let id = copy.as_ref().and_then(|copy| copy.id);
        match self.build(ns, builds, id, stop).await? {
            Ok(refused) => problems.extend(refused),
            Err(()) => return Ok(Looked::Soon),
        }
        Ok(if problems.is_empty() { Looked::Done } else { Looked::Problems(problems) })
    }

    /// What only a new collection can change is changed by a new one, where no more is at stake than a
    /// buffer's documents, or none; once, since Atlas may take the option even then not.
    async fn make_anew(&self, ns: &Namespace, wanted: &Description) -> Result<bool, SyncError> {
        let is_capped = wanted.options.get_bool("capped").unwrap_or(false);
        let is_empty = self.ends.atlas.is_empty(ns).await;
        let is_empty = is_empty.map_err(|error| End::Atlas.error(error))?;
        let may = wanted.kind == Kind::Collection && (is_capped || is_empty);
        let is_first = |made: &mut BTreeSet<Namespace>| made.insert(ns.clone());
        if !may
            || !is_first(
                &mut self.made_anew.lock().unwrap_or_else(std::sync::PoisonError::into_inner),
            )
        {
            return Ok(false);
        }
        tracing::info!(%ns, "made anew in Atlas, for options that only a new collection can have");
        let (queue, position) = (self.queue.clone(), self.status.state().read_up_to);
        let only = BTreeSet::from([ns.clone()]);
        blocking(move || SyncState::demand_of(&queue, position, &only, Reason::Replaced)).await?;
        let options = (&wanted.options).try_into().unwrap_or_default();
        let changes = vec![
            SchemaChange::Drop { ns: ns.clone() },
            SchemaChange::Create { ns: ns.clone(), options },
            SchemaChange::Reconcile { ns: ns.clone(), collection: wanted.id },
        ];
        self.queue_changes(changes).await?;
        self.demanded.notify_one();
        Ok(true)
    }

    /// Takes a step but for what it builds, which goes to `builds` with the sentence for it.
    async fn take_step(
        &self,
        ns: &Namespace,
        step: &Step,
        builds: &mut Vec<(String, Document)>,
    ) -> Answer {
        if let Step::Create { options } = step {
            let options = options.try_into().unwrap_or_default();
            let create = SchemaChange::Create { ns: ns.clone(), options };
            return match self.sink.change_schema(&create).await {
                Ok(()) => Answer::Done,
                Err(SinkError::Rejected(reason) | SinkError::Denied(reason)) => {
                    Answer::Refused(format!("{step}: {reason}"))
                }
                Err(_) => Answer::Away,
            };
        }
        if step.is_fixed() {
            return Answer::Refused(step.to_string());
        }
        let mut taken = step.clone();
        let mut answer = self.run_all(ns, &taken).await;
        if let Answer::Refused(reason) = &answer
            && let Some(instead) = step.instead(reason)
        {
            answer = self.run_all(ns, &instead).await;
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

    async fn run_all(&self, ns: &Namespace, step: &Step) -> Answer {
        for command in step.commands(ns.coll()) {
            match self.run_command(ns, command).await {
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
        ns: &Namespace,
        builds: Vec<(String, Document)>,
        id: Option<CollectionId>,
        stop: &Stop,
    ) -> Result<Result<Vec<String>, ()>, SyncError> {
        if builds.is_empty() {
            return Ok(Ok(Vec::new()));
        }
        let name = |spec: &Document| spec.get_str("name").unwrap_or_default().to_owned();
        let indexes: Vec<_> = builds.iter().map(|(_, spec)| name(spec)).collect();
        tracing::info!(%ns, indexes = indexes.join(", "), "building indexes in Atlas");
        let build = Build { indexes, since_ms: now_ms(), percent: None };
        self.status.state().builds.insert(ns.clone(), build);
        let built = tokio::select! {
            built = self.build_each(ns, &builds, id) => Ok(built),
            never = self.watch_progress(ns) => match never {},
            () = stop.drain.cancelled() => Err(SyncError::Stopped),
            () = stop.leave.cancelled() => Err(SyncError::Stopped),
        };
        self.status.state().builds.remove(ns);
        if matches!(&built, Ok(Ok(refused)) if refused.is_empty()) {
            tracing::info!(%ns, "the indexes are built");
        }
        built
    }

    async fn build_each(
        &self,
        ns: &Namespace,
        builds: &[(String, Document)],
        id: Option<CollectionId>,
    ) -> Result<Vec<String>, ()> {
        let specs: Vec<_> = builds.iter().map(|(_, spec)| spec.clone()).collect();
        match self.build_some(ns, &specs, id).await {
            Answer::Done => return Ok(Vec::new()),
            Answer::Overtaken | Answer::Away => return Err(()),
            Answer::Refused(_) => {}
        }
        let mut refused = Vec::new();
        for (what, spec) in builds {
            match self.build_some(ns, std::slice::from_ref(spec), id).await {
                Answer::Done => {}
                Answer::Refused(reason) => refused.push(format!("{what}: {reason}")),
                Answer::Overtaken | Answer::Away => return Err(()),
            }
        }
        Ok(refused)
    }

    async fn build_some(
        &self,
        ns: &Namespace,
        specs: &[Document],
        id: Option<CollectionId>,
    ) -> Answer {
        match self.run_command(ns, build_command(ns.coll(), specs, id)).await {
            // Before 6.0 a collection that was replaced just now cannot be told apart.
            Answer::Refused(reason) if id.is_some() && reason.contains("collectionUUID") => {
                self.run_command(ns, build_command(ns.coll(), specs, None)).await
            }
            answer => answer,
        }
    }

    async fn run_command(&self, ns: &Namespace, command: Document) -> Answer {
        let mut command = raw(&command);
        command.append(bson::raw::cstr!("writeConcern"), rawdoc! { "w": "majority" });
        let atlas = &self.ends.atlas;
        let error = match atlas.command_within(ns.db(), command, BUILD_PATIENCE).await {
            Ok(reply) if reply.contains_key("writeConcernError") => return Answer::Away,
            Ok(_) => return Answer::Done,
            Err(error) => error,
        };
        let reason = without_values(&error.to_string());
        match (error.code(), class_of(&error)) {
            (Some(INDEX_NOT_FOUND), _) => Answer::Done,
            (Some(OTHER_COLLECTION), _) => Answer::Overtaken,
            (Some(BUILD_IN_PROGRESS), _) => Answer::Refused(reason),
            (_, Class::Unavailable) => Answer::Away,
            (_, _) if reason.contains("IndexBuildAborted") => Answer::Overtaken,
            (_, _) => Answer::Refused(reason),
        }
    }

    async fn watch_progress(&self, ns: &Namespace) -> std::convert::Infallible {
        loop {
            tokio::time::sleep(PROGRESS_EVERY).await;
            let percent = self.ends.atlas.build_progress(ns).await;
            if let Some(build) = self.status.state().builds.get_mut(ns) {
                build.percent = percent;
            }
        }
    }
}
