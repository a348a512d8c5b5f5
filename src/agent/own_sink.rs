//! An agent whose target is a sink of the program's own.
//!
//! The source, the gate, the queue, its writers, the order on the way out and the full sync are those of every
//! [`Agent`](super::Agent). What rests on being able to look into the target is not there: no lease, no
//! options and indexes, no counts. To a full sync such a target [holds nothing](crate::side::Blind): what is owed is
//! copied to it, through the sink as everything else.

use std::{sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::{sync::Notify, task::JoinSet, time::Instant};

use super::{
    AgentError, connect, from_tailer,
    gatekeeper::Gatekeeper,
    identity, open_queue,
    parts::WATERMARK_DOCUMENTS,
    patience::patiently,
    run, same_kind,
    stop::{Exit, result_of, stop_tasks},
};
use crate::{
    config::Config,
    gate::{Gate, reading::Reading, writing::Writing},
    model::namespace::NamespaceFilter,
    mongo::Mongo,
    observe::status::Status,
    policy::{in_doubt::InDoubtWrites, read_watermark::ReadWatermark},
    queue::Queue,
    runtime::shutdown::{Stop, blocking},
    schema::watch::SchemaWatch,
    side::{Blind, MongoSide, records::AgentIdentity},
    sink::{Sink, WithoutSchema},
    source::{ChangeStreamSource, PIPELINE_VERSION, SchemaSource, SourceInfo, inspect, source_id},
    sync::{
        self, Reconciler, Sides,
        state::{Reason, SyncState},
    },
    tailer::{IMPASSE_PATIENCE, Identity, QueueLimits, Tailer},
    worker::{Shared, Worker},
};

/// A prepared agent that replicates into `K`; see [`Builder::sink`](super::Builder::sink).
pub struct SinkAgent<K> {
    config: Config,
    sink: Arc<WithoutSchema<K>>,
    queue: Arc<Queue>,
    local: Mongo,
    gate: Arc<Gate>,
    info: SourceInfo,
    source_id: String,
    identity: AgentIdentity,
    status: Arc<Status>,
    reading: Arc<Reading>,
    writing: Arc<Writing>,
    sync_wanted: Arc<Notify>,
    watch: Arc<SchemaWatch>,
    stop: Stop,
}

/// What a [`SinkAgent`] begins with.
pub struct SinkBuilder<K> {
    config: Config,
    sink: K,
}

/// What it is made of. Nothing of it runs yet.
struct Parts<K> {
    tailer: Tailer<ChangeStreamSource>,
    reconciler: Reconciler<WithoutSchema<K>>,
    worker: Arc<Worker<ChangeStreamSource, WithoutSchema<K>>>,
}

impl<K: Sink> SinkBuilder<K> {
    pub(super) fn new(config: Config, sink: K) -> Self {
        Self { config, sink }
    }

    /// Connects, checks that the local database can be replicated from, and opens the queue.
    ///
    /// # Errors
    /// What the person who starts the agent must mend first.
    pub async fn prepare(self) -> Result<SinkAgent<K>, AgentError> {
        let Self { config, sink } = self;
        config.validate()?;
        let gate = Arc::new(Gate::default());
        let local = connect::connect_local_by(&config, Some(gate.clone())).await?;
        let (info, source_id) =
            patiently(config.local.timeout, || Box::pin(first_look(&local))).await?;
        let queue = open_queue(&config).await?;
        let identity = identity::identify(&queue, &config.queue.path).await?;
        let agent = SinkAgent {
            writing: Arc::new(Writing::new(gate.clone(), connect::breaker_policy(&config))),
            config,
            sink: Arc::new(WithoutSchema(sink)),
            queue,
            local,
            gate,
            info,
            source_id,
            identity,
            status: Arc::default(),
            reading: Arc::default(),
            sync_wanted: Arc::default(),
            watch: Arc::default(),
            stop: Stop::default(),
        };
        agent.check_kind()?;
        agent.gatekeeper().open().await?;
        agent.check_pipeline()?;
        Ok(agent)
    }
}

impl<K: Sink> SinkAgent<K> {
    fn gatekeeper(&self) -> Gatekeeper {
        Gatekeeper {
            local: self.local.clone(),
            gate: self.gate.clone(),
            queue: self.queue.clone(),
            status: self.status.clone(),
            source_id: self.source_id.clone(),
        }
    }

    fn check_kind(&self) -> Result<(), AgentError> {
        same_kind(&self.queue)
    }

    /// Of another filter, or for another target: what waits for that one is not all that this one needs.
    fn check_pipeline(&self) -> Result<(), AgentError> {
        if let Some(checkpoint) = self.queue.checkpoint()?
            && checkpoint.pipeline != self.pipeline()?
        {
            SyncState::require(&self.queue, self.info.now, Reason::NamespacesChanged)?;
        }
        Ok(())
    }

    /// Not that of an agent for Atlas: a queue that goes from one target to the other has everything required.
    fn pipeline(&self) -> Result<String, AgentError> {
        Ok(format!("{PIPELINE_VERSION}-{}-sink", self.config.filter()?.fingerprint()))
    }

    /// Stops the agent from outside: cancel `drain`, and `leave` to hurry.
    pub fn stop(&self) -> Stop {
        self.stop.clone()
    }

    /// Replicates until `shutdown` completes or a task ends, then stops every task: reading first,
    /// then, after `shutdown.drain_for` at the most, writing.
    ///
    /// # Errors
    /// What ended a task; see [`Agent::run`](super::Agent::run).
    pub async fn run(self, shutdown: impl Future<Output = ()> + Send) -> Result<(), AgentError> {
        // Nothing goes out before it is known whether everything is owed.
        self.queue.hold_all();
        let Parts { tailer, reconciler, worker } = self.build(&self.config.filter()?)?;
        // From here on: whatever is read waits for the proof of the connection that it comes by.
        let gatekeeper = self.gatekeeper();
        let proving = gatekeeper.run();
        tokio::pin!(shutdown, proving);
        let begun = tokio::select! {
            begun = self.take_position(&tailer) => begun.map(|()| true),
            error = &mut proving => Err(error),
            () = &mut shutdown => Ok(false),
        };
        match begun {
            Ok(true) => {}
            Ok(false) => return self.close(Exit::Asked, JoinSet::new()).await,
            Err(error) => return self.close(Exit::of(error), JoinSet::new()).await,
        }
        let lanes = self.config.worker.lanes;
        let mut tasks = run::spawn(tailer, Arc::new(reconciler), worker, lanes, &self.stop);
        let exit = tokio::select! {
            () = &mut shutdown => Exit::Asked,
            error = &mut proving => Exit::of(error),
            Some(exit) = tasks.join_next() => result_of(exit).map_or_else(Exit::of, |()| Exit::Asked),
        };
        self.close(exit, tasks).await
    }

    /// A queue that is new begins with the next change.
    async fn take_position(&self, tailer: &Tailer<ChangeStreamSource>) -> Result<(), AgentError> {
        let queue = self.queue.clone();
        if blocking(move || queue.checkpoint()).await?.is_none() {
            let take = || async { tailer.take_position().await.map_err(from_tailer) };
            patiently(self.config.local.timeout, || Box::pin(take())).await?;
        }
        Ok(())
    }

    /// As an [`Agent`](super::Agent)'s end, without a lease to give back.
    async fn close(
        self,
        exit: Exit,
        tasks: JoinSet<Result<(), AgentError>>,
    ) -> Result<(), AgentError> {
        let until = Instant::now() + self.config.shutdown.drain_for;
        let outcome = match exit {
            Exit::Asked => stop_tasks(&self.stop, tasks, until).await,
            Exit::NotOurs(error) => {
                self.queue.hold_all();
                self.stop.leave.cancel();
                let _ = stop_tasks(&self.stop, tasks, until).await;
                Err(error)
            }
            Exit::Failed(error) => {
                let _ = stop_tasks(&self.stop, tasks, until).await;
                Err(error)
            }
            Exit::Reopen(error) | Exit::QueueLost(error) => return Err(error),
        };
        let queue = self.queue.clone();
        blocking(move || queue.flush()).await?;
        self.local.close().await;
        outcome
    }

    fn build(&self, filter: &NamespaceFilter) -> Result<Parts<K>, AgentError> {
        let config = &self.config;
        let source = ChangeStreamSource::new(self.local.clone(), filter.clone(), &self.info);
        let source = Arc::new(source);
        let tells_of_schema = source.tells_of_schema();
        let watermark =
            Arc::new(Mutex::new(ReadWatermark::new(self.info.now, WATERMARK_DOCUMENTS)));
        let in_doubt: Arc<Mutex<InDoubtWrites>> = Arc::default();
        let tailer = Tailer {
            queue: self.queue.clone(),
            source: source.clone(),
            status: self.status.clone(),
            reading: self.reading.clone(),
            filter: filter.clone(),
            limits: QueueLimits {
                max_bytes: config.queue.max_bytes,
                max_documents: config.queue.max_documents,
                min_free_disk: config.queue.min_free_disk,
            },
            identity: Identity { source_id: self.source_id.clone(), pipeline: self.pipeline()? },
            disk: config.queue.path.clone(),
            compare: self.sync_wanted.clone(),
            gate: self.gate.clone(),
            tells_of_schema,
            watch: self.watch.clone(),
            impasse_patience: IMPASSE_PATIENCE,
        };
        let (parallel, reads) = (config.sync.parallel, config.sync.max_docs_per_second);
        let mut sides =
            Sides::new(MongoSide::source(&self.local), Arc::new(Blind), parallel, reads);
        sides.status = Some(self.status.clone());
        let context = sync::Context {
            queue: self.queue.clone(),
            sides,
            sink: self.sink.clone(),
            status: self.status.clone(),
            reading: self.reading.clone(),
            writing: self.writing.clone(),
            filter: filter.clone(),
            in_doubt: in_doubt.clone(),
            watch: self.watch.clone(),
            in_hand: Arc::default(),
            sync_wanted: self.sync_wanted.clone(),
        };
        let options = sync::Options {
            source_id: self.source_id.clone(),
            agent: self.identity.clone(),
            adopt: false,
            max_delete_ratio: config.sync.max_delete_ratio,
            queue_max: config.queue.max_documents / 2,
            verify_every: Duration::ZERO,
            count_check_every: Duration::ZERO,
            tells_of_schema,
        };
        let reconciler = Reconciler::new(context, options, watermark.clone());
        let shared = Shared {
            queue: self.queue.clone(),
            status: self.status.clone(),
            reading: self.reading.clone(),
            writing: self.writing.clone(),
            watermark,
            in_doubt,
            watch: self.watch.clone(),
        };
        let worker =
            Worker::new(source, self.sink.clone(), shared, connect::worker_options(config));
        Ok(Parts { tailer, reconciler, worker: Arc::new(worker) })
    }
}

/// As an agent's own look, of the local database alone.
async fn first_look(local: &Mongo) -> Result<(SourceInfo, String), AgentError> {
    let first_look = local.for_a_proof();
    let info = inspect(&first_look).await?;
    let (id, _) = source_id(&first_look, &info).await?;
    Ok((info, id))
}
