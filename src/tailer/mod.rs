//! From the change stream to the queue.
//!
//! ```text
//!   stream.next() ─▶ room in the queue? ─▶ queue.commit(ops, checkpoint) ─┐
//!        ▲               no: wait, read nothing; the oplog holds the rest │
//!        └────────────────────────────────────────────────────────────────┘
//! ```
//!
//! The next batch is fetched while the last one is being committed. A checkpoint is committed with
//! the ops before it, and, when nothing happens, every few seconds by itself: so an idle namespace
//! never ages out of the oplog, with no write to the local database.
//!
//! Whatever breaks the connection is met in the same way: open the stream again at the last
//! committed position. Where the oplog no longer reaches back to it, the stream is opened anew
//! first, and a comparison of everything is asked for then, so that no change falls between the two.

use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::Notify;

use crate::{
    gate::{Gate, reading::Reading},
    model::{
        checkpoint::{Checkpoint, ClusterTime},
        event::{Change, ChangeEvent, CollectionId, SchemaChange, is_series},
        namespace::{Namespace, NamespaceFilter},
    },
    observe::status::Status,
    queue::{Incoming, Queue, QueueError, Work, free_disk},
    runtime::{
        clock::now_ms,
        crash::{self, Step},
        shutdown::{Stop, blocking},
    },
    schema::watch::SchemaWatch,
    source::{EventBatch, EventStream, Source, SourceError, StartFrom},
    sync::{
        state::{Reason, SyncState},
        unproven,
    },
};

mod parts;
mod trouble;

use parts::without_repetition;
pub use trouble::IMPASSE_PATIENCE;
use trouble::Trouble;

/// How often a checkpoint is committed when nothing happens.
const IDLE_CHECKPOINT: Duration = Duration::from_secs(5);

/// How often the disk is looked at, and how long to wait when there is no room.
const ROOM_CHECK: Duration = Duration::from_millis(500);

/// How long the local database may be away before what waits for the stream waits no longer: longer than an
/// election takes.
const STREAM_PATIENCE: Duration = Duration::from_secs(20);

/// At which fullness of the queue reading stops.
#[derive(Clone, Copy, Debug)]
pub struct QueueLimits {
    pub max_bytes: u64,
    pub max_documents: u64,
    pub min_free_disk: u64,
}

const DISK_LOW: &str =
    "the queue's disk would have less than `queue.min_free_disk` left while the queue drains";

/// What makes a position usable: see [`Checkpoint`].
#[derive(Clone, Debug)]
pub struct Identity {
    pub source_id: String,
    pub pipeline: String,
}

/// Reads the source into the queue.
pub struct Tailer<S> {
    pub queue: Arc<Queue>,
    pub source: Arc<S>,
    pub status: Arc<Status>,
    pub reading: Arc<Reading>,
    pub filter: NamespaceFilter,
    pub limits: QueueLimits,
    pub identity: Identity,
    /// Where the queue's files are, whose disk must not fill.
    pub disk: std::path::PathBuf,
    /// Wakes the reconciler when everything must be compared.
    pub compare: Arc<Notify>,
    /// Keeps the last known [`Checkpoint::anchor`]; what the stream says is read under its permits.
    pub gate: Arc<Gate>,
    /// Told when the stream cannot say what has become of options and indexes.
    pub watch: Arc<SchemaWatch>,
    /// [`IMPASSE_PATIENCE`], but for a test.
    pub impasse_patience: Duration,
}

/// What a batch of events asks for beyond the queue, and what is known while it is gone through.
#[derive(Clone, Debug, Default)]
struct Wishes {
    /// Collections that are to be compared: the stream alone cannot tell what Atlas must hold of them.
    compare: BTreeSet<Namespace>,
    /// Something changed of options or indexes that no event names.
    look_at_schema: bool,
    /// Names of collections that have changed hands.
    renamed: Vec<Namespace>,
    /// The same as they were made: from, to, and when.
    renames: Vec<(Namespace, Namespace, ClusterTime)>,
    /// The last collection that was looked at, and whether it is replicated.
    last: Option<(Namespace, bool)>,
}

impl Wishes {
    /// As [`NamespaceFilter::matches`], which is slow for something that is asked of each change.
    fn is_chosen(&mut self, ns: &Namespace, filter: &NamespaceFilter) -> bool {
        match &self.last {
            Some((last, is_chosen)) if last == ns => *is_chosen,
            _ => self.last.insert((ns.clone(), filter.matches(ns))).1,
        }
    }
}

/// Why reading cannot go on at all.
#[derive(Debug, thiserror::Error)]
pub enum TailerError {
    #[error(transparent)]
    Queue(#[from] QueueError),
    #[error(transparent)]
    Source(#[from] SourceError),
}

impl<S: Source> Tailer<S> {
    /// Takes the stream's position, before anything is copied: what changes from now on will be in
    /// the stream. Leaves the note that everything is to be copied or compared.
    ///
    /// # Errors
    /// When the source or the queue fails.
    pub async fn take_position(&self) -> Result<(), TailerError> {
        self.take_position_because(Reason::HistoryLost).await
    }

    /// As [`take_position`](Self::take_position); `reason` counts where there was a position before.
    async fn take_position_because(&self, reason: Reason) -> Result<(), TailerError> {
        let mut stream = self.source.open(&StartFrom::Now).await?;
        let batch = stream.next().await?;
        // First the note, then the checkpoint: a crash between the two repeats this, and no crash
        // can leave a checkpoint without the note. What waits is from before a gap in the stream.
        let (queue, position) = (self.queue.clone(), batch.cluster_time);
        blocking(move || {
            let is_first = queue.checkpoint()?.is_none();
            let reason = if is_first { Reason::FirstCopy } else { reason };
            SyncState::demand(&queue, position, reason)?;
            queue.refresh_pending(ClusterTime(position.0.saturating_sub(1)), now_ms())
        })
        .await?;
        crash::point(Step::PositionNoted);
        self.commit(batch).await?;
        self.compare.notify_one();
        Ok(())
    }

    /// Reads until told to stop.
    ///
    /// # Errors
    /// What waiting does not mend: the queue fails, or the source turns out to be unfit.
    pub async fn run(&self, stop: &Stop) -> Result<(), TailerError> {
        let mut trouble = self.no_trouble().await?;
        while !stop.is_draining() {
            let result = tokio::select! {
                () = stop.drain.cancelled() => return Ok(()),
                () = stop.leave.cancelled() => return Ok(()),
                result = self.follow(&mut trouble) => result,
            };
            match result {
                Ok(never) => match never {},
                Err(error) => self.recover(error, &mut trouble, stop).await?,
            }
        }
        Ok(())
    }

    async fn follow(&self, trouble: &mut Trouble) -> Result<std::convert::Infallible, TailerError> {
        let queue = self.queue.clone();
        let checkpoint = blocking(move || queue.checkpoint()).await?;
        let from = checkpoint.map_or(StartFrom::Now, |checkpoint| {
            if checkpoint.pipeline == self.identity.pipeline {
                StartFrom::Token(checkpoint.token)
            } else {
                StartFrom::Time(checkpoint.cluster_time)
            }
        });
        let mut stream = self.source.open(&from).await?;
        let mut batch = stream.next().await?;
        self.status.state().local_fault = None;
        let mut last_commit: Option<Instant> = None;
        loop {
            self.status.metrics.local_heard_ms.set(now_ms());
            self.wait_for_room().await?;
            let is_due = !batch.events.is_empty()
                || last_commit.is_none_or(|last| last.elapsed() >= IDLE_CHECKPOINT);
            if is_due {
                last_commit = Some(Instant::now());
                let (committed, next) = tokio::join!(self.commit(batch), stream.next());
                committed?;
                batch = next?;
            } else {
                self.status.metrics.read_wall_ms.set(now_ms());
                self.position_reached(batch.cluster_time, batch.whole);
                batch = stream.next().await?;
            }
            self.goes_on(trouble);
        }
    }

    /// An entry of the oplog that was there when `batch` was read; see [`Checkpoint::anchor`].
    async fn anchor(&self, batch: &EventBatch) -> Result<ClusterTime, SourceError> {
        match batch.events.last() {
            Some(event) => Ok(event.cluster_time),
            None => Ok(self.source.last_entry().await?.unwrap_or_else(|| {
                // Where it may not be read, that of the last event stays.
                self.gate.anchor()
            })),
        }
    }

    /// The batch's ops and the position behind them: a step that is taken whole, or once more.
    async fn commit(&self, batch: EventBatch) -> Result<(), TailerError> {
        let anchor = self.anchor(&batch).await?;
        self.gate.seen(anchor);
        let metrics = &self.status.metrics;
        metrics.events_read.add(batch.events.len() as u64);
        let read_wall_ms = batch.events.last().map_or_else(now_ms, |event| event.wall_ms);
        let mut wishes = Wishes::default();
        let mut incoming = Vec::with_capacity(batch.events.len());
        for event in batch.events {
            self.take_in(event, &mut incoming, &mut wishes);
        }
        let incoming = without_repetition(incoming);
        let checkpoint = Checkpoint {
            token: batch.token,
            anchor,
            cluster_time: batch.cluster_time,
            source_id: self.identity.source_id.clone(),
            pipeline: self.identity.pipeline.clone(),
        };
        let look_at_schema = wishes.look_at_schema;
        self.reading.begin_reply();
        let queue = self.queue.clone();
        let (committed, compare) = blocking(move || -> Result<_, QueueError> {
            // A rename while collections are being copied or compared may carry documents along that were
            // still to be read under the old name, or put an older copy in the place of a new one.
            if !wishes.renamed.is_empty() {
                SyncState::renamed(&queue, &wishes.renamed)?;
            }
            let position = checkpoint.cluster_time;
            let mut compare = !wishes.compare.is_empty();
            if compare {
                SyncState::demand_of(&queue, position, &wishes.compare, Reason::Replaced)?;
            }
            // After the reply has begun, so that whoever believes a name from here on sees it.
            let mut doubts = BTreeSet::new();
            for (from, to, time) in &wishes.renames {
                if unproven::renamed(&queue, (from, to), *time)? {
                    doubts.extend([from.clone(), to.clone()]);
                }
            }
            if !doubts.is_empty() {
                compare = true;
                SyncState::demand_of(&queue, position, &doubts, Reason::Renamed)?;
                // It may have gone on to another name already.
                SyncState::renamed(&queue, &wishes.renamed)?;
            }
            Ok((queue.commit(incoming, Some(&checkpoint))?, compare))
        })
        .await?;
        if look_at_schema {
            self.watch.ask_everything();
        }
        metrics.ops_coalesced.add(committed.coalesced);
        metrics.checkpoint_ms.set(now_ms());
        metrics.read_wall_ms.set(read_wall_ms);
        if compare {
            self.compare.notify_one();
        }
        self.position_reached(batch.cluster_time, batch.whole);
        Ok(())
    }

    /// The position is published after its ops are committed, and the queue is looked at after the
    /// position: an empty queue then proves that Atlas has everything up to it.
    fn position_reached(&self, position: ClusterTime, whole: ClusterTime) {
        self.reading.end_reply(position, whole);
        self.queue.stream_reached(whole);
    }

    /// Appends what an event puts into the queue; `wishes` takes what goes beyond it.
    fn take_in(&self, event: ChangeEvent, incoming: &mut Vec<Incoming>, wishes: &mut Wishes) {
        let (cluster_time, wall_ms) = (event.cluster_time, event.wall_ms);
        let with_times = |work| Incoming { work, cluster_time, wall_ms };
        match event.change {
            Change::Document { ns, key, op } => {
                if wishes.is_chosen(&ns, &self.filter) {
                    let collection = event.collection;
                    incoming.push(with_times(Work::Document { ns, key, op, collection }));
                }
            }
            Change::Schema(change) => {
                if let SchemaChange::Rename { from, to, .. } = &change {
                    wishes.renames.push((from.clone(), to.clone(), cluster_time));
                }
                let changes = self.narrow(change, event.collection, wishes);
                incoming.extend(changes.into_iter().map(Work::Schema).map(with_times));
            }
            Change::DatabaseDropped { db } => {
                tracing::info!(db, "a database was dropped");
                wishes.look_at_schema = true;
            }
            // The server's filter may let more through than ours.
            Change::Ignored { ns: Some(ns), .. } if !self.filter.matches(&ns) => {}
            Change::Ignored { ns, kind } => {
                let ns = ns.map_or_else(String::new, |ns| ns.to_string());
                tracing::warn!(%ns, op = %kind, "a change of this kind is not replicated");
            }
        }
    }

    /// The part of a schema change that concerns replicated collections.
    fn narrow(
        &self,
        change: SchemaChange,
        collection: Option<CollectionId>,
        wishes: &mut Wishes,
    ) -> Vec<SchemaChange> {
        let tells = self.source.tells_of_schema();
        let SchemaChange::Rename { from, to, drop_target } = change else {
            if !self.filter.matches(change.ns()) {
                return Vec::new();
            }
            if let SchemaChange::Create { ns, options } = &change {
                if is_series(options) {
                    tracing::warn!(%ns, "a time-series collection is not replicated");
                    return Vec::new();
                }
                // `cloneCollectionAsCapped` fills it without an event (6.0.5), and looks no different.
                if options.get_bool("capped").unwrap_or(false) {
                    wishes.compare.insert(ns.clone());
                }
            }
            wishes.look_at_schema |= !tells;
            return vec![change];
        };
        match (self.filter.matches(&from), self.filter.matches(&to)) {
            (true, true) => {
                wishes.renamed.extend([from.clone(), to.clone()]);
                if is_filled_unseen(&from, tells) {
                    wishes.compare.insert(to.clone());
                }
                wishes.look_at_schema |= !tells;
                // What was changed of it under its old name, and not applied there any more, is now.
                let reconcile = SchemaChange::Reconcile { ns: to.clone(), collection };
                vec![SchemaChange::Rename { from, to, drop_target }, reconcile]
            }
            (true, false) => vec![SchemaChange::Drop { ns: from }],
            (false, true) => {
                // Its documents were never copied and are not in the stream.
                wishes.compare.insert(to.clone());
                vec![SchemaChange::Drop { ns: to }]
            }
            (false, false) => Vec::new(),
        }
    }

    async fn wait_for_room(&self) -> Result<(), QueueError> {
        loop {
            let Some(reason) = self.no_room() else {
                if self.reading.go_on() {
                    tracing::info!("there is room in the queue again; reading goes on");
                }
                return Ok(());
            };
            if self.reading.stop(&reason) {
                tracing::error!(error = %reason, "reading has stopped; the oplog holds what follows");
            }
            self.queue.no_longer_behind(&reason);
            // An entry may wait for a rename or a drop that was not read yet: without one more batch
            // neither side would move again.
            if self.reading.is_wanted() {
                return Ok(());
            }
            // Its files keep what they ever took, so that draining alone may never make room.
            let queue = self.queue.clone();
            if reason == DISK_LOW && blocking(move || queue.is_mostly_empty()).await? {
                return Err(QueueError::MostlyEmpty);
            }
            // The stream is not read meanwhile, but the local database is not silent either.
            self.status.metrics.local_heard_ms.set(now_ms());
            tokio::time::sleep(ROOM_CHECK).await;
        }
    }

    fn no_room(&self) -> Option<String> {
        let is_stopped = self.reading.is_stopped();
        self.limits.reached(self.queue.pending(), free_disk(&self.disk), is_stopped)
    }
}

impl QueueLimits {
    /// Why nothing more is read into a queue of so many documents and bytes, with so much of its disk free. Once reading
    /// has stopped it goes on only when a quarter is free again: else each batch that leaves would start and stop it.
    fn reached(
        &self,
        (documents, bytes): (u64, u64),
        free_disk: Option<u64>,
        is_stopped: bool,
    ) -> Option<String> {
        let up_to = |max: u64| if is_stopped { max - max / 4 } else { max };
        if bytes >= up_to(self.max_bytes) {
            return Some("the queue is at `queue.max_bytes`".to_owned());
        }
        if documents >= up_to(self.max_documents) {
            return Some("the queue is at `queue.max_documents`".to_owned());
        }
        let to_spare = if is_stopped { self.min_free_disk / 4 } else { 0 };
        // Draining takes disk before it gives any back: sled writes what is left of a page anew, and
        // was seen to double its files (0.34.7, documents of 50 kB).
        let needed = self.min_free_disk.saturating_add(bytes).saturating_add(to_spare);
        free_disk.filter(|free| *free < needed).map(|_| DISK_LOW.to_owned())
    }
}

/// True for the temporary names under which a server fills a collection that it then renames, without an
/// event for its documents: `convertToCapped` always, a rename across databases before 6.0.
fn is_filled_unseen(from: &Namespace, tells_of_schema: bool) -> bool {
    from.coll().strip_prefix("tmp").and_then(|rest| rest.split_once('.')).is_some_and(
        |(_, what)| {
            what.starts_with("convertToCapped.") || (what == "renameCollection" && !tells_of_schema)
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A batch leaves, and as much as there is room for is read: each line in the log is a change of `stopped`.
    #[test]
    fn a_full_queue_that_drains_says_once_that_reading_stops_and_once_that_it_goes_on() {
        let limits = QueueLimits { max_bytes: u64::MAX, max_documents: 10_000, min_free_disk: 100 };
        let (mut waiting, mut to_read, mut lines) = (0_u64, 12_000_u64, Vec::new());
        let mut is_stopped = false;
        while waiting + to_read > 0 {
            let reason = limits.reached((waiting, 0), Some(1_000), is_stopped);
            if reason.is_some() != is_stopped {
                is_stopped = reason.is_some();
                lines.push(waiting);
            }
            if !is_stopped {
                let read = to_read.min(500);
                (waiting, to_read) = (waiting + read, to_read - read);
            }
            // Nothing leaves before the queue is full.
            if !lines.is_empty() {
                waiting = waiting.saturating_sub(300);
            }
        }

        assert_eq!(lines, [10_000, 7_300]);
    }

    #[test]
    fn reading_goes_on_where_a_queue_of_one_document_is_empty_and_its_disk_has_some_to_spare() {
        let limits = QueueLimits { max_bytes: 1, max_documents: 1, min_free_disk: 100 };
        let is_reached =
            |waits, free, is_stopped| limits.reached(waits, Some(free), is_stopped).is_some();

        assert!(is_reached((1, 0), 1_000, false) && is_reached((0, 1), 1_000, false));
        assert!(!is_reached((0, 0), 1_000, true) && !is_reached((0, 0), 100, false));
        assert!(is_reached((0, 0), 99, false) && is_reached((0, 0), 124, true));
        assert!(!is_reached((0, 0), 125, true));
    }

    #[test]
    fn a_collection_that_is_filled_without_events_is_known_by_its_temporary_name() {
        let is = |coll: &str, tells| is_filled_unseen(&Namespace::new("shop", coll), tells);

        assert!(is("tmpRhESk.convertToCapped.c", true) && is("tmpRhESk.convertToCapped.c", false));
        assert!(is("tmp8GWGL.renameCollection", false) && !is("tmp8GWGL.renameCollection", true));
        assert!(
            !is("tmp.agg_out.7be2b1b0", false) && !is("orders", false) && !is("tmporders", false)
        );
    }
}
