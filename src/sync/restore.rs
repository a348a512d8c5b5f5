//! The restore: the copy in the other direction, into a local database that holds nothing yet.
//!
//! How far it is stands in the local database itself, in `outrigger.restore`, so that it can go on after
//! whatever interrupted it, the comparison of both sides at its end included: the notes are dropped only when both
//! are equal.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use bson::RawDocumentBuf;
use parking_lot::{Mutex, MutexGuard};

use super::{
    Collection, LeftOut, Listing, SyncError, atlas_collections,
    copy::{Copier, CopyObserver, ThereAlready, Unit},
    range::splits,
    schema::{apply_schema, indexes_of, sentences, unique_builds},
    sides::{SideName, Sides, ask},
    unmatched,
};
use crate::{
    gate::Permit,
    model::{
        checkpoint::ClusterTime,
        document_key::DocumentKey,
        event::SchemaChange,
        namespace::{Namespace, NamespaceFilter, RESTORE_NOTES},
    },
    observe::progress::{Progress, ShareState},
    runtime::{
        clock::{self, now_ms},
        crash::{self, CrashPoint},
        shutdown::Stop,
    },
    schema::{self, IndexChange, index_changes},
    side::{KeyRange, Order, Size},
    sink::{Changed, SchemaSink, SinkError, Write},
    sync::state::CopyPlan,
};

/// The note of the restore itself, beside those of its collections. No namespace is empty.
const ITSELF: &str = "";

/// A restore to be made.
pub struct Restore<'a, K> {
    pub sides: &'a Sides,
    /// Into the local database.
    pub sink: &'a K,
    /// What is replicated.
    pub filter: &'a NamespaceFilter,
    /// What of it is restored.
    pub scope: &'a NamespaceFilter,
    /// Names the Atlas that is restored from, without credentials.
    pub origin: String,
    pub progress: Arc<Mutex<Progress>>,
    pub stop: &'a Stop,
}

/// Why there is no restore, or it ended early. It can be run again.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The target is not empty.
    #[error("the local database holds data in `{ns}`; a restore never writes over anything")]
    NotEmpty { ns: Namespace },
    /// The target holds what would be restored, as far as counts can tell.
    #[error(
        "the local database looks already restored: each collection holds as many documents as in Atlas, \
             `{ns}` is one; a restore never writes over anything"
    )]
    AlreadyThere { ns: Namespace },
    /// Another restore was begun there.
    #[error("a restore from `{origin}` was begun into this local database and is not finished")]
    Another { origin: String },
    /// The target keeps something else of each document: a hash.
    #[error("the target keeps no whole documents, so nothing can be restored from it")]
    NoDocuments,
    /// There is nothing to restore.
    #[error("Atlas holds no collection that would be restored")]
    Nothing,
    #[error(transparent)]
    Sync(#[from] SyncError),
}

/// What a restore did.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Restored {
    /// Documents that this run copied.
    pub documents: u64,
    /// What could not be restored, a sentence each.
    pub problems: Vec<String>,
}

impl<K: SchemaSink> Restore<'_, K> {
    /// Copies everything in scope that is not there yet. It is not over before it is [`verified`](Self::verified).
    ///
    /// # Errors
    /// [`RestoreError`]. What was copied stays, and the next run goes on from there.
    pub async fn run(&self) -> Result<Restored, RestoreError> {
        if !self.sides.atlas.keeps_documents() {
            return Err(RestoreError::NoDocuments);
        }
        let found = ask!(self.sides, self.stop, atlas_collections(&*self.sides.atlas, self.filter));
        let patterns = &self.scope.patterns().include;
        if let Some(nothing) = unmatched(patterns, &[&found]).into_iter().next() {
            return Err(SyncError::NothingMatches(nothing).into());
        }
        let Listing { mut collections, mut views, mut left_out, .. } = found;
        collections.retain(|collection| self.scope.matches(&collection.ns));
        views.retain(|view| self.scope.matches(&view.ns));
        left_out.retain(|left| self.scope.is_chosen(&left.ns));
        if collections.is_empty() && views.is_empty() && left_out.is_empty() {
            return Err(RestoreError::Nothing);
        }
        let notes = self.read_notes().await?;
        match notes.get(ITSELF) {
            Some(origin) if *origin == self.origin => tracing::info!("an earlier restore goes on"),
            Some(origin) => return Err(RestoreError::Another { origin: origin.clone() }),
            None => {
                match self.check_empty().await {
                    Err(RestoreError::NotEmpty { ns }) if self.is_there(&collections).await? => {
                        return Err(RestoreError::AlreadyThere { ns });
                    }
                    checked => checked?,
                }
                self.note(ITSELF, &self.origin).await?;
            }
        }
        let (notes, done) = (&notes, Mutex::new(Restored::default()));
        let outcome = &done;
        if self.sides.atlas.schema().is_none() {
            let problem = "options and indexes of collections: the target keeps none";
            outcome.lock().problems.push(problem.to_owned());
        }
        for LeftOut { ns, reason } in left_out {
            note_problems(outcome, &ns, vec![reason.to_owned()]);
        }
        let copied = self.sides.each_or(collections, |collection| {
            Box::pin(async move {
                let plan = notes
                    .get(collection.ns.as_str())
                    .and_then(|plan| serde_json::from_str(plan).ok());
                self.collection(&collection, plan, outcome).await
            })
        });
        copied.await?;
        for view in views {
            self.make(&view, outcome).await?;
        }
        Ok(done.into_inner())
    }

    /// Drops the notes when both sides were found equal. Those of a restore that was about more stay.
    ///
    /// # Errors
    /// When the local database stays away for longer than patience lasts, or refuses.
    pub async fn verified(&self) -> Result<(), RestoreError> {
        let is_in_scope = |name: &String| {
            name == ITSELF || name.parse().is_ok_and(|ns: Namespace| self.scope.matches(&ns))
        };
        if self.read_notes().await?.keys().all(is_in_scope) {
            let (notes, at) = (self.notes()?, self.notes_at());
            ask!(self.sides, self.stop, notes.drop(&at));
        }
        Ok(())
    }

    /// True when each collection of Atlas has as many documents here. No more than a guess, for the words of a
    /// refusal.
    async fn is_there(&self, collections: &[Collection]) -> Result<bool, RestoreError> {
        let Sides { local, atlas, .. } = self.sides;
        for Collection { ns, .. } in collections {
            let source = ask!(self.sides, self.stop, atlas.size(ns));
            let target = ask!(self.sides, self.stop, local.size(ns));
            if target.documents != source.documents {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Nothing of what would be written may be there.
    async fn check_empty(&self) -> Result<(), RestoreError> {
        let Listing { collections, views, left_out, .. } =
            ask!(self.sides, self.stop, self.sides.local.list(self.filter));
        for Collection { ns, .. } in collections {
            if self.scope.matches(&ns) && ns.db() != self.db() {
                self.check_collection(&ns).await?;
            }
        }
        // A view or a time-series collection is not asked whether it is empty.
        let others = views.into_iter().map(|view| view.ns);
        let mut others = others.chain(left_out.into_iter().map(|LeftOut { ns, .. }| ns));
        match others.find(|ns| self.scope.matches(ns)) {
            Some(ns) => Err(RestoreError::NotEmpty { ns }),
            None => Ok(()),
        }
    }

    async fn check_collection(&self, ns: &Namespace) -> Result<(), RestoreError> {
        let local = &self.sides.local;
        if ask!(self.sides, self.stop, local.is_empty(ns)) {
            return Ok(());
        }
        Err(RestoreError::NotEmpty { ns: ns.clone() })
    }

    async fn collection(
        &self,
        collection: &Collection,
        plan: Option<CopyPlan>,
        outcome: &Mutex<Restored>,
    ) -> Result<(), RestoreError> {
        let ns = &collection.ns;
        let atlas = &self.sides.atlas;
        let size = ask!(self.sides, self.stop, atlas.size(ns));
        self.progress().share(ns).documents = size.documents;
        let indexes = indexes_of(self.sides, SideName::Atlas, ns, self.stop).await?;
        let plan = match plan {
            Some(plan) => plan,
            None => self.begin(collection, size, &indexes, outcome).await?,
        };
        {
            let mut progress = self.progress();
            let share = progress.share(ns);
            share.state = ShareState::Running;
            let ranges = plan.splits.len() as u64 + 1;
            share.documents = size.documents * (ranges - plan.done.len() as u64) / ranges;
        }
        let order = if plan.splits.is_empty() { Order::Natural } else { Order::ById };
        let ranges = KeyRange::between(&plan.splits).into_iter().enumerate();
        let open: Vec<_> = ranges.filter(|(n, _)| !plan.done.contains(n)).collect();
        let notes =
            RestoreNotes { outcome, progress: &self.progress, away_since: Mutex::default() };
        let copier = Copier {
            sides: self.sides,
            from: SideName::Atlas,
            sink: self.sink,
            ledger: &notes,
            there_already: ThereAlready::Leave,
            after: ClusterTime::default(),
            stop: self.stop,
        };
        let (copier, plan) = (&copier, &tokio::sync::Mutex::new(plan));
        self.sides
            .each(open, |(n, range)| {
                let unit = Unit { ns: ns.clone(), range, order, page: size.page() };
                Box::pin(async move {
                    copier.copy(&unit).await?;
                    let mut plan = plan.lock().await;
                    plan.done.insert(n);
                    self.note_plan(&unit.ns, &plan).await?;
                    crash::point(CrashPoint::RestoredRangeNoted);
                    Ok(())
                })
            })
            .await?;
        // Those that the documents had to obey are there already. What is there and not in Atlas is somebody's, who
        // came before an interrupted restore went on.
        let source = indexes_of(self.sides, SideName::Local, ns, self.stop).await?;
        let mut missing = index_changes(&indexes, &source);
        missing.retain(|change| {
            !matches!(change, IndexChange::Drop { .. } | IndexChange::Replace { .. })
        });
        let missing = missing.into_iter().map(schema::Step::Index).collect();
        let left =
            apply_schema(self.sides, SideName::Local, ns, (missing, &Permit::free()), self.stop)
                .await?;
        note_problems(outcome, ns, sentences(&left));
        self.progress().share(ns).state = ShareState::Done;
        Ok(())
    }

    /// Makes the collection with its unique indexes, and cuts it into ranges.
    async fn begin(
        &self,
        collection: &Collection,
        size: Size,
        indexes: &[RawDocumentBuf],
        outcome: &Mutex<Restored>,
    ) -> Result<CopyPlan, RestoreError> {
        let ns = &collection.ns;
        // Whatever an earlier restore was about: one that has not begun here writes over nothing.
        self.check_collection(ns).await?;
        self.make(collection, outcome).await?;
        let unique = unique_builds(indexes);
        let left =
            apply_schema(self.sides, SideName::Local, ns, (unique, &Permit::free()), self.stop)
                .await?;
        note_problems(outcome, ns, sentences(&left));
        let splits = if collection.is_capped() {
            Vec::new()
        } else {
            ask!(self.sides, self.stop, splits(&*self.sides.atlas, ns, size))
        };
        let plan = CopyPlan { splits, ..CopyPlan::default() };
        self.note_plan(ns, &plan).await?;
        Ok(plan)
    }

    /// Makes a collection or a view, with its options.
    async fn make(
        &self,
        collection: &Collection,
        outcome: &Mutex<Restored>,
    ) -> Result<(), RestoreError> {
        let (ns, options) = (&collection.ns, collection.options.clone());
        let change = SchemaChange::Create { ns: ns.clone(), options };
        let mut attempts = self.sides.attempts(self.stop);
        loop {
            match self.sink.change_schema(&change).await {
                Ok(Changed::Done | Changed::WasNotThere) => return Ok(()),
                Ok(Changed::Differs) => {
                    let problem = "not made as it was: its options are others".to_owned();
                    note_problems(outcome, ns, vec![problem]);
                    return Ok(());
                }
                Err(SinkError::Rejected(problem)) => {
                    note_problems(outcome, ns, vec![format!("not made as it was: {problem}")]);
                    return Ok(());
                }
                Err(error) => attempts.failed(local_error(&error)).await?,
            }
        }
    }

    async fn read_notes(&self) -> Result<BTreeMap<String, String>, SyncError> {
        let (notes, at) = (self.notes()?, self.notes_at());
        Ok(ask!(self.sides, self.stop, notes.read(&at)))
    }

    async fn note_plan(&self, ns: &Namespace, plan: &CopyPlan) -> Result<(), SyncError> {
        let text = serde_json::to_string(plan).expect("keys and numbers are JSON");
        self.note(ns.as_str(), &text).await
    }

    async fn note(&self, name: &str, text: &str) -> Result<(), SyncError> {
        let (notes, at) = (self.notes()?, self.notes_at());
        if ask!(self.sides, self.stop, notes.write(&at, name, text)) {
            return Ok(());
        }
        let problem = "the note of the restore was not taken".to_owned();
        Err(SyncError::LocalTarget { problem, is_away: false })
    }

    fn notes(&self) -> Result<&dyn crate::side::Notes, SyncError> {
        let problem = "it is none that anything is restored into".to_owned();
        self.sides.local.notes().ok_or(SyncError::LocalTarget { problem, is_away: false })
    }

    /// Where they are: beside the application's databases.
    fn notes_at(&self) -> Namespace {
        Namespace::new(self.db(), RESTORE_NOTES)
    }

    fn db(&self) -> &str {
        self.filter.state_database()
    }

    fn progress(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock()
    }
}

fn note_problems(outcome: &Mutex<Restored>, ns: &Namespace, problems: Vec<String>) {
    let mut outcome = outcome.lock();
    outcome.problems.extend(problems.into_iter().map(|problem| format!("`{ns}`: {problem}")));
}

/// The failure of a target that is not Atlas, in its own words.
fn local_error(error: &SinkError) -> SyncError {
    let (SinkError::Unavailable(problem)
    | SinkError::Unanswered(problem)
    | SinkError::DropUnanswered { problem, .. }
    | SinkError::Denied(problem)
    | SinkError::Rejected(problem)
    | SinkError::Held(problem)
    | SinkError::Gone(problem)) = error;
    let problem = problem.replace("MONGODB_ATLAS_URI", "MONGODB_LOCAL_URI");
    let is_away = matches!(
        error,
        SinkError::Unavailable(_) | SinkError::Unanswered(_) | SinkError::DropUnanswered { .. }
    );
    SyncError::LocalTarget { problem, is_away }
}

/// What a restore notes of a copy.
struct RestoreNotes<'a> {
    outcome: &'a Mutex<Restored>,
    progress: &'a Mutex<Progress>,
    away_since: Mutex<Option<Instant>>,
}

/// How long the target may be away. Longer than an election; whoever looks on wants to know.
const PATIENCE: Duration = Duration::from_secs(60);

impl CopyObserver for RestoreNotes<'_> {
    async fn may_go_on(&self) -> Result<(), SyncError> {
        Ok(())
    }

    fn copied(&self, ns: &Namespace, documents: u64, bytes: u64) {
        self.outcome.lock().documents += documents;
        let mut progress = self.progress.lock();
        progress.advanced(ns, documents, bytes, now_ms());
    }

    async fn refused(
        &self,
        ns: &Namespace,
        documents: Vec<(DocumentKey, String)>,
    ) -> Result<(), SyncError> {
        let problems =
            documents.into_iter().map(|(key, reason)| format!("document {key}: {reason}"));
        note_problems(self.outcome, ns, problems.collect());
        Ok(())
    }

    fn answered(
        &self,
        _: &Namespace,
        _: &[Write<'_>],
        error: Option<&SinkError>,
    ) -> Result<(), SyncError> {
        let mut away_since = self.away_since.lock();
        let Some(error) = error else {
            *away_since = None;
            return Ok(());
        };
        let since = *away_since.get_or_insert_with(clock::now);
        if matches!(error, SinkError::Denied(_)) || clock::since(since) > PATIENCE {
            return Err(local_error(error));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
