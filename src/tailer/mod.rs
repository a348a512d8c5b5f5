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
//! never ages out of the oplog, with no write to the local database. A source that keeps what is not
//! [confirmed](EventStream::confirm) hears of a commit once it is on the disk.
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
        checkpoint::{Checkpoint, ClusterTime, OtherKind, ResumeToken},
        namespace::NamespaceFilter,
    },
    observe::status::Status,
    queue::{Queue, QueueError, free_disk},
    runtime::{
        clock::{self, now_ms},
        crash::{self, CrashPoint},
        shutdown::{Stop, blocking},
    },
    schema::watch::SchemaWatch,
    source::{EventBatch, EventStream, Source, SourceError, StartFrom},
    sync::{
        state::{Reason, SyncState},
        unproven,
    },
};

mod intake;
mod limits;
mod parts;
#[cfg(test)]
mod tests;
mod trouble;

use intake::Intake;
use limits::DISK_LOW;
pub use limits::QueueLimits;
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
    /// See [`SchemaSource::tells_of_schema`](crate::source::SchemaSource::tells_of_schema).
    pub tells_of_schema: bool,
    /// Told when the stream cannot say what has become of options and indexes.
    pub watch: Arc<SchemaWatch>,
    /// [`IMPASSE_PATIENCE`], but for a test.
    pub impasse_patience: Duration,
}

/// Why reading cannot go on at all.
#[derive(Debug, thiserror::Error)]
pub enum TailerError {
    #[error(transparent)]
    Queue(#[from] QueueError),
    #[error(transparent)]
    Source(#[from] SourceError),
    #[error(transparent)]
    OtherKind(#[from] OtherKind),
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
            SyncState::require(&queue, position, reason)?;
            queue.refresh_pending(ClusterTime(position.0.saturating_sub(1)), now_ms(), |_| true)
        })
        .await?;
        crash::point(CrashPoint::PositionNoted);
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
        if let Some(checkpoint) = &checkpoint {
            checkpoint.is_of(&self.source.positions())?;
        }
        let committed = checkpoint.as_ref().map(|checkpoint| checkpoint.token.clone());
        let from = checkpoint.map_or(StartFrom::Now, |checkpoint| {
            if checkpoint.pipeline == self.identity.pipeline {
                StartFrom::Token(checkpoint.token)
            } else {
                StartFrom::Time(checkpoint.cluster_time)
            }
        });
        let mut stream = self.source.open(&from).await?;
        if let Some(committed) = &committed {
            // It may not have been heard before the stream, or the agent, ended.
            self.confirm(&mut stream, committed).await?;
        }
        let mut batch = stream.next().await?;
        self.status.faults.local.answers();
        let mut last_commit: Option<Instant> = None;
        loop {
            self.status.metrics.local_heard_ms.set(now_ms());
            self.wait_for_room().await?;
            let is_due = !batch.events.is_empty()
                || last_commit.is_none_or(|last| clock::since(last) >= IDLE_CHECKPOINT);
            if is_due {
                last_commit = Some(clock::now());
                let position = stream.keeps_unconfirmed().then(|| batch.token.clone());
                let (committed, next) = tokio::join!(self.commit(batch), stream.next());
                committed?;
                if let Some(position) = position {
                    self.confirm(&mut stream, &position).await?;
                }
                batch = next?;
            } else {
                self.status.metrics.read_wall_ms.set(now_ms());
                self.position_reached(batch.cluster_time, batch.whole);
                batch = stream.next().await?;
            }
            self.goes_on(trouble);
        }
    }

    /// Tells a source that keeps what it has handed out that it need not any more: after all of it is on the disk, since
    /// nothing else has it then.
    async fn confirm(
        &self,
        stream: &mut S::Stream,
        position: &ResumeToken,
    ) -> Result<(), TailerError> {
        if !stream.keeps_unconfirmed() {
            return Ok(());
        }
        let queue = self.queue.clone();
        blocking(move || queue.make_durable()).await?;
        Ok(stream.confirm(position).await?)
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
        let mut intake = Intake::new(&self.filter, self.tells_of_schema, batch.events.len());
        for event in batch.events {
            intake.take_in(event);
        }
        let Intake { incoming, refused, side_effects, .. } = intake;
        let incoming = without_repetition(incoming);
        let checkpoint = Checkpoint {
            token: batch.token,
            kind: self.source.positions(),
            anchor,
            cluster_time: batch.cluster_time,
            source_id: self.identity.source_id.clone(),
            pipeline: self.identity.pipeline.clone(),
        };
        let look_at_schema = side_effects.look_at_schema;
        self.reading.begin_reply();
        let queue = self.queue.clone();
        let (committed, compare) = blocking(move || -> Result<_, QueueError> {
            // A rename while collections are being copied or compared may carry documents along that were
            // still to be read under the old name, or put an older copy in the place of a new one.
            if !side_effects.renamed.is_empty() {
                SyncState::renamed(&queue, &side_effects.renamed)?;
            }
            let position = checkpoint.cluster_time;
            let mut compare = !side_effects.compare.is_empty();
            if compare {
                SyncState::require_of(&queue, position, &side_effects.compare, Reason::Replaced)?;
            }
            // After the reply has begun, so that whoever believes a name from here on sees it.
            let mut unproven_names = BTreeSet::new();
            for (from, to, time) in &side_effects.renames {
                if unproven::renamed(&queue, (from, to), *time)? {
                    unproven_names.extend([from.clone(), to.clone()]);
                }
            }
            if !unproven_names.is_empty() {
                compare = true;
                SyncState::require_of(&queue, position, &unproven_names, Reason::Renamed)?;
                // It may have gone on to another name already.
                SyncState::renamed(&queue, &side_effects.renamed)?;
            }
            queue.refuse(refused, now_ms())?;
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
