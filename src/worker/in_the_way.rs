//! What stands in Atlas where documents are to be written, and is no collection. No event has told that it is gone: it
//! fell into a gap of the stream, or somebody else has made it.
//!
//! An entry is proof that its name was a collection's as far as the stream has come, and all that was queued before it
//! for that name is done. So a view, which holds nothing, makes way at once, and what is there then is compared. What
//! may hold documents waits for a comparison or for a person, and with it the writes to this name alone: they were not
//! refused for what they are, so none of them becomes a dead letter.

use bson::RawDocumentBuf;

use super::{
    outcomes::{HELD_WAIT_MS, Halt, Outcomes, wait},
    write::Dispatch,
};
use crate::{
    model::{event::SchemaChange, namespace::Namespace, write_op::Refusal},
    queue::Outcome,
    runtime::shutdown::blocking,
    schema::{Kind, Problem, in_the_way},
    sink::{SchemaSink, SinkError, Write, Written},
    source::SchemaSource,
    sync::state::{Reason, SyncState},
};

impl<S: SchemaSource, K: SchemaSink> Dispatch<S, K> {
    /// As [`send_all`](Self::send_all), once more where a view had to make way, or what was there is gone. [`SinkError::Held`] where something
    /// else is in the way.
    pub(super) async fn send(
        &self,
        ns: &Namespace,
        writes: &[Write<'_>],
        changed_ms: &[Option<u64>],
    ) -> Result<Vec<Written>, Halt> {
        let written = match self.send_all(ns, writes, changed_ms).await {
            Err(SinkError::Held(reason)) => {
                if !self.replace_view(ns).await? {
                    return Err(SinkError::Held(reason).into());
                }
                self.send_all(ns, writes, changed_ms).await?
            }
            Err(SinkError::Gone(reason)) => {
                tracing::error!(%ns, error = %reason, "what Atlas had of a collection is gone");
                self.compare(ns, Reason::Gone).await?;
                let options = RawDocumentBuf::new();
                let create = SchemaChange::Create { ns: ns.clone(), options };
                self.change_schema(&create).await?;
                self.send_all(ns, writes, changed_ms).await?
            }
            written => written?,
        };
        let is_odd = |of: &Written| matches!(of, Written::Rejected { refusal: Refusal::Other, .. });
        if written.iter().any(is_odd)
            && let Some(target) = self.sink.describe(ns).await?
            && !matches!(target.kind, Kind::Collection | Kind::View)
        {
            return Err(SinkError::Held(in_the_way(target.kind).to_owned()).into());
        }
        Ok(written)
    }

    /// Makes a collection in the place of a view, with the options that it has locally, and has it compared. False
    /// when there is no view, or the local database cannot be asked.
    async fn replace_view(&self, ns: &Namespace) -> Result<bool, Halt> {
        let permit = self.source.permit();
        let target = self.sink.describe(ns).await?;
        if target.is_none_or(|target| target.kind != Kind::View) {
            return Ok(false);
        }
        let source = match self.source.describe(ns).await {
            Ok(source) => source.filter(|source| source.kind == Kind::Collection),
            Err(error) => {
                tracing::debug!(%ns, %error, "the local database cannot be read");
                return Ok(false);
            }
        };
        if !permit.holds() {
            return Ok(false);
        }
        // First the note that a sync is mandatory: a crash between the two repeats it.
        self.compare_replaced(ns).await?;
        // Where it is no collection any more, its drop or its rename is still to come.
        let options = source.map_or_else(RawDocumentBuf::new, |source| source.options);
        let create = SchemaChange::Create { ns: ns.clone(), options };
        self.change_schema(&create).await?;
        self.watch.ask(ns);
        Ok(true)
    }

    /// A collection was made in the place of something else: its documents are still to come, whatever was compared
    /// before.
    pub(super) async fn compare_replaced(&self, ns: &Namespace) -> Result<(), Halt> {
        tracing::info!(%ns, "Atlas has a view where the local database has a collection; it is made, and compared");
        self.compare(ns, Reason::Replaced).await
    }

    /// What is there of it is compared, whatever was before.
    async fn compare(&self, ns: &Namespace, reason: Reason) -> Result<(), Halt> {
        let (queue, only) = (self.queue.clone(), [ns.clone()].into());
        let required = blocking(move || {
            let position = queue.checkpoint()?.map(|checkpoint| checkpoint.cluster_time);
            SyncState::require_of(&queue, position.unwrap_or_default(), &only, reason)
        });
        required.await.map_err(Halt::from)
    }

    /// The entries wait, and no others do; but those of a collection that is [gone behind them](Self::is_gone_behind).
    ///
    /// # Errors
    /// Where Atlas could not be asked.
    pub(super) async fn hold_documents(
        &self,
        ns: &Namespace,
        seqs: &[u64],
        reason: String,
        outcomes: &mut Outcomes,
    ) -> Result<(), Halt> {
        outcomes.answered = true;
        let names = self.queue.called_now(ns, seqs.iter().copied());
        let is_free = names.contains(&None) && self.is_nothing_there(ns).await?;
        let is_gone = |name: &Option<Namespace>| is_free && name.is_none();
        for (&seq, name) in seqs.iter().zip(&names) {
            let outcome = if is_gone(name) { Outcome::Applied } else { wait(HELD_WAIT_MS) };
            outcomes.insert_if_open(seq, outcome);
        }
        if names.iter().all(is_gone) {
            self.pass_over(ns, &reason);
            return Ok(());
        }
        let what = Problem::refused("its documents wait", reason);
        if self.watch.hold(std::slice::from_ref(ns)) {
            self.list(ns, what);
            // What is in the way may be what nobody has told to be gone.
            self.watch.ask_everything();
        } else {
            self.watch.list(ns, vec![what]);
        }
        Ok(())
    }

    /// True for an entry of a collection that is dropped behind all that is queued, while nothing has its name in Atlas. Its
    /// drop waits for the entry, and what is in the entry's way, a database in other capitals that was made after that drop,
    /// for nothing: so it need not be made. Where something has the name it is somebody else's, and the drop must not come
    /// to it by itself.
    pub(super) async fn is_gone_behind(&self, ns: &Namespace, seq: u64) -> Result<bool, Halt> {
        let is_dropped = self.queue.called_now(ns, [seq].into_iter()) == [None];
        Ok(is_dropped && self.is_nothing_there(ns).await?)
    }

    async fn is_nothing_there(&self, ns: &Namespace) -> Result<bool, Halt> {
        match self.sink.describe(ns).await {
            Ok(there) => Ok(there.is_none()),
            Err(SinkError::Held(_)) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Nothing of it waits any more.
    pub(super) fn pass_over(&self, ns: &Namespace, reason: &str) {
        tracing::info!(%ns, reason, "not made in Atlas, as the collection is dropped behind that");
        if self.watch.let_go(std::slice::from_ref(ns)) {
            self.watch.strike(ns);
        }
    }

    /// Documents of this name were written.
    pub(super) fn way_is_free(&self, ns: &Namespace) {
        if self.watch.let_go(std::slice::from_ref(ns)) {
            self.watch.strike(ns);
            self.watch.ask(ns);
        }
    }
}
