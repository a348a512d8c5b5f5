//! The agent: builds the parts, starts the tasks, stops them in order.
//!
//! ```text
//!             ┌───────── Reconciler ────────┐ (first copy; then Refresh by key)
//!             │                             ▼
//!  local ─▶ Source ─▶ Tailer ─▶ Queue ─▶ Worker × lanes ─▶ Sink ─▶ Atlas
//!                                 ▲
//!                         Handles: admin API, CLI
//! ```
//!
//! What serves the agent's [`Handles`], the admin API in the program, is given to it by the [`Builder`]: the agent
//! knows nothing of it.
//!
//! A task that ends early takes the agent down with it: an agent that has quietly stopped reading is
//! worse than one that has exited.

use std::{sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::{sync::Notify, task::JoinSet};

use crate::{
    config::{Config, ConfigError},
    gate::{Gate, reading::Reading, writing::Writing},
    mongo::Mongo,
    observe::status::{Phase, Status, Unshowable},
    policy::{horizon::Horizon, late::LateWrites},
    queue::{Queue, QueueError, QueueOptions, Rebuilt},
    runtime::{
        clock::now_ms,
        shutdown::{Stop, blocking},
    },
    schema::watch::SchemaWatch,
    sink::AtlasSink,
    source::{
        ChangeStreamSource, PIPELINE_VERSION, Source, SourceError, SourceInfo, inspect, source_id,
    },
    sync::{
        self, Reconciler, SyncError,
        ownership::AgentMark,
        state::{Reason, SyncState},
    },
    tailer::{IMPASSE_PATIENCE, Identity, QueueLimits, Tailer, TailerError},
    worker::{Shared, Worker},
};

mod builder;
mod connect;
mod flush;
mod gatekeeper;
mod handles;
mod identity;
mod monitor;
mod outbox;
mod patience;
mod stop;
mod vitals;

use builder::Serve;
pub use builder::{Builder, Serving};
use gatekeeper::Gatekeeper;
pub use handles::Handles;
use stop::{settle, stop_tasks};

pub use connect::{connect_atlas, connect_local, ends, queue_options};
pub use flush::{FlushError, Flushed, flush};
pub use monitor::{Monitor, judged, lag, lives};
use patience::patiently;

/// Documents whose reads are remembered one by one; see [`Horizon`].
const HORIZON_DOCUMENTS: usize = 100_000;

/// How long an agent that fails waits for its alert to be noticed, and to be taken by the web hook.
const LAST_WORDS_SOON: Duration = Duration::from_millis(1500);
const LAST_WORDS_FOR: Duration = Duration::from_secs(5);

/// Why the agent does not start, or ended.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AgentError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The local database cannot be reached, or cannot be replicated from.
    #[error(transparent)]
    Local(#[from] SourceError),
    #[error(transparent)]
    Queue(#[from] QueueError),
    /// The queue was filled from another database than the one that is configured now.
    #[error("{problem}")]
    OtherSource { problem: String },
    #[error(transparent)]
    Sync(#[from] SyncError),
    /// What serves the agent's handles cannot listen, or its token file cannot be used.
    #[error("the admin API cannot be started on {listen}")]
    Admin { listen: String, source: std::io::Error },
    /// A bug: a task panicked.
    #[error("a task of the agent failed: {0}")]
    Task(String),
}

impl AgentError {
    /// True when the queue itself failed, whichever task met it.
    pub fn is_of_the_queue(&self) -> bool {
        matches!(self, AgentError::Queue(_) | AgentError::Sync(SyncError::Queue(_)))
    }
}

/// A prepared agent.
pub struct Agent {
    config: Config,
    status: Arc<Status>,
    reading: Arc<Reading>,
    writing: Arc<Writing>,
    queue: Arc<Queue>,
    local: Mongo,
    /// What `local` says counts only while it is open.
    gate: Arc<Gate>,
    atlas: Mongo,
    info: SourceInfo,
    source_id: String,
    adopt: bool,
    mark: AgentMark,
    demanded: Arc<Notify>,
    watch: Arc<SchemaWatch>,
    monitor: Arc<Monitor>,
    stop: Stop,
    serve: Option<Serve>,
}

impl Agent {
    /// Begins with a configuration; see [`Builder`].
    pub fn builder(config: Config) -> Builder {
        Builder::new(config)
    }

    async fn prepare(builder: Builder) -> Result<Self, AgentError> {
        let Builder { config, adopt, serve } = builder;
        config.validate()?;
        connect::tell_of_options(&config)?;
        let gate = Arc::new(Gate::default());
        let local = connect::connect_local_by(&config, Some(gate.clone())).await?;
        let atlas = connect_atlas(&config).await?;
        let (info, (source_id, is_exact)) =
            patiently(config.local.timeout, || Box::pin(first_look(&local, &atlas))).await?;
        if !is_exact {
            tracing::warn!(
                "the user may not read the replica set's id; another database of the same set name could not be told apart"
            );
        }
        let options = QueueOptions { compact: true, ..queue_options(&config) };
        let (queue, rebuilt) = blocking(move || Queue::open_or_rebuild(&options)).await?;
        if let Some(Rebuilt { moved_to, error }) = rebuilt {
            let error = crate::observe::report::one_line(&error);
            tracing::error!(%error, moved_to = %moved_to.display(), "the queue could not be used and was moved aside; a new one is built and everything is compared");
        }
        let queue = Arc::new(queue);
        let mark = identity::mark(&queue, &config.queue.path).await?;
        let agent = Self {
            status: Arc::default(),
            reading: Arc::default(),
            writing: Arc::new(Writing::new(gate.clone(), connect::breaker_policy(&config))),
            queue,
            config,
            local,
            gate,
            atlas,
            info,
            source_id,
            adopt,
            mark,
            demanded: Arc::default(),
            watch: Arc::default(),
            monitor: Arc::default(),
            stop: Stop::default(),
            serve,
        };
        agent.gatekeeper().open().await?;
        agent.check_filter()?;
        Ok(agent)
    }

    /// The checkpoint must be of this filter.
    fn check_filter(&self) -> Result<(), AgentError> {
        let Some(checkpoint) = self.queue.checkpoint()? else {
            return Ok(());
        };
        if checkpoint.pipeline != self.pipeline()? {
            tracing::info!("the namespaces have changed; everything will be compared");
            SyncState::demand(&self.queue, self.info.now, Reason::NamespacesChanged)?;
        }
        Ok(())
    }

    fn gatekeeper(&self) -> Gatekeeper {
        Gatekeeper {
            local: self.local.clone(),
            gate: self.gate.clone(),
            queue: self.queue.clone(),
            status: self.status.clone(),
            source_id: self.source_id.clone(),
        }
    }

    fn pipeline(&self) -> Result<String, ConfigError> {
        Ok(format!("{PIPELINE_VERSION}-{}", self.config.filter()?.fingerprint()))
    }

    /// What the agent is looked at and asked by, while it runs.
    pub fn handles(&self) -> Handles {
        Handles {
            status: self.status.clone(),
            reading: self.reading.clone(),
            writing: self.writing.clone(),
            queue: self.queue.clone(),
            local: self.local.clone(),
            atlas: self.atlas.clone(),
            config: Arc::new(self.config.clone()),
            demanded: self.demanded.clone(),
            watch: self.watch.clone(),
            monitor: self.monitor.clone(),
        }
    }

    /// Stops the agent from outside: cancel `drain`, and `leave` to hurry.
    pub fn stop(&self) -> Stop {
        self.stop.clone()
    }

    /// Replicates until `shutdown` completes or a task ends, then stops every task: reading first,
    /// then, after `shutdown.drain_for` at the most, writing.
    ///
    /// # Errors
    /// What ended a task. After [`AgentError::Queue`] the process should begin anew: threads of the
    /// queue's storage may hang, and its lock on the directory with them.
    pub async fn run(mut self, shutdown: impl Future<Output = ()>) -> Result<(), AgentError> {
        let config = self.config.clone();
        let filter = config.filter()?;
        let source =
            Arc::new(ChangeStreamSource::new(self.local.clone(), filter.clone(), &self.info));
        let sink = Arc::new(AtlasSink::new(
            self.atlas.clone(),
            connect::limiter(&config),
            Some(self.writing.lease().clone()),
        ));
        let horizon = Arc::new(Mutex::new(Horizon::new(self.info.now, HORIZON_DOCUMENTS)));
        let late = Arc::new(Mutex::new(LateWrites::default()));
        let watch = self.watch.clone();
        let compare = self.demanded.clone();
        // Bound by now, and answering once the agent knows from where it reads.
        let serving = match self.serve.take() {
            Some(serve) => Some(serve(self.handles()).await?),
            None => None,
        };
        let mut beside = JoinSet::new();
        beside.spawn(vitals::beat(self.status.clone(), self.queue.clone()));
        let gatekeeper = self.gatekeeper();
        let (refuse, refused) = tokio::sync::oneshot::channel();
        beside.spawn(async move {
            // An agent that is gone does not hear it.
            let _ = refuse.send(gatekeeper.run().await);
        });
        // Nothing goes to Atlas before the reconciler has settled whose Atlas it is.
        self.queue.hold_all();
        self.writing.pause(self.queue.meta("paused")?.is_some());
        self.writing.set_refused_deletes(sync::refused_deletes(&self.queue)?);
        let was_passed_over = SyncState::is_unshowable(&self.queue)?;
        self.status.state().unshowable =
            was_passed_over.then_some(Unshowable::PassedOver { at_ms: 0 });
        // Heard of at its inspection; from now on its silence counts.
        self.status.metrics.local_heard_ms.set(now_ms());
        self.atlas.silent_from_now();
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
            compare: compare.clone(),
            gate: self.gate.clone(),
            watch: watch.clone(),
            impasse_patience: IMPASSE_PATIENCE,
        };
        tokio::pin!(shutdown);
        let is_ready = tokio::select! {
            ready = self.take_up(&tailer, &filter) => ready.map(|()| true)?,
            () = &mut shutdown => false,
        };
        if !is_ready {
            beside.abort_all();
            return self.end(&filter, tokio::time::Instant::now()).await;
        }
        let mut ends = connect::ends(&config, &self.local, &self.atlas);
        ends.status = Some(self.status.clone());
        ends.lease = Some(self.writing.lease().clone());
        let shared = sync::Context {
            queue: self.queue.clone(),
            ends,
            sink: sink.clone(),
            status: self.status.clone(),
            reading: self.reading.clone(),
            writing: self.writing.clone(),
            filter,
            late: late.clone(),
            watch: watch.clone(),
            demanded: compare,
        };
        let options = sync::Options {
            source_id: self.source_id.clone(),
            agent: self.mark.clone(),
            adopt: self.adopt,
            max_delete_ratio: config.sync.max_delete_ratio,
            queue_max: config.queue.max_documents / 2,
            verify_every: config.sync.verify_every,
            count_check_every: config.sync.count_check_every,
            tells_of_schema: source.tells_of_schema(),
        };
        let reconciler = Arc::new(Reconciler::new(shared, options, horizon.clone()));
        let shared = Shared {
            queue: self.queue.clone(),
            status: self.status.clone(),
            reading: self.reading.clone(),
            writing: self.writing.clone(),
            horizon,
            late,
            watch,
        };
        let worker = Worker::new(source, sink, shared, connect::worker_options(&config));
        let worker = Arc::new(worker);
        let mut tasks = JoinSet::new();
        let stop = self.stop.clone();
        tasks.spawn({
            let stop = stop.clone();
            async move { tailer.run(&stop).await.map_err(from_tailer) }
        });
        tasks.spawn({
            let (reconciler, stop) = (reconciler.clone(), stop.clone());
            async move { reconciler.run(&stop).await.map_err(AgentError::from) }
        });
        for _ in 0..config.worker.lanes {
            let (worker, stop) = (worker.clone(), stop.clone());
            tasks.spawn(async move { worker.run(&stop).await.map_err(AgentError::from) });
        }
        let outbox = Arc::new(outbox::Outbox::default());
        if let Some(serving) = serving {
            beside.spawn(serving);
        }
        beside.spawn({
            let stop = stop.clone();
            async move { drop(reconciler.beat_while_draining(&stop).await) }
        });
        beside.spawn(vitals::tick(self.handles(), outbox.clone()));
        beside.spawn(vitals::look_at_oplog(self.handles()));
        beside.spawn(vitals::look_at_majority(self.handles()));
        if let Some(url) = config.alerts.webhook.clone() {
            let outbox = outbox.clone();
            beside.spawn(async move { outbox.deliver(&url).await });
        }
        if let Some(url) = config.alerts.heartbeat_url.clone() {
            beside.spawn(outbox::heartbeat(self.handles(), url, config.alerts.heartbeat_every));
        }
        let version = env!("CARGO_PKG_VERSION");
        tracing::info!(version, local = %config.local_uri()?, local_version = %self.info.version, atlas = %config.atlas_uri()?, "started");

        let outcome = tokio::select! {
            () = &mut shutdown => Ok(()),
            Ok(error) = refused => Err(error),
            Some(exit) = tasks.join_next() => settle(exit),
        };
        // To be opened again at once, to give back disk, is no failure.
        let is_meant = matches!(outcome, Ok(()) | Err(AgentError::Queue(QueueError::MostlyEmpty)));
        self.status.enter(if is_meant { Phase::Stopping } else { Phase::Failed });
        let is_not_ours = match &outcome {
            Err(AgentError::OtherSource { .. }) => true,
            Err(AgentError::Sync(error)) => error.is_of_ownership(),
            _ => false,
        };
        if is_not_ours {
            // What waits is not ours to write any more.
            self.queue.hold_all();
            stop.leave.cancel();
        }
        let until = tokio::time::Instant::now() + config.shutdown.drain_for;
        // Nothing can be waited for then: after a failed write sled's own threads may never answer again.
        let is_queue_lost = outcome.as_ref().is_err_and(AgentError::is_of_the_queue);
        let outcome = if is_queue_lost {
            outcome
        } else {
            outcome.and(stop_tasks(&stop, tasks, until).await)
        };
        if self.status.state().phase == Phase::Failed && config.alerts.webhook.is_some() {
            // Somebody should hear of it.
            let _ =
                tokio::time::timeout(LAST_WORDS_FOR, outbox.is_empty_after(LAST_WORDS_SOON)).await;
        }
        beside.abort_all();
        if is_queue_lost {
            return outcome;
        }
        self.end(&config.filter()?, until).await?;
        outcome
    }
}

/// What stands in the local database's own answers about it, and about both ends: whether they are one.
///
/// Whoever answers here is proven afterwards, before anything else that it says is believed. All of it comes from
/// one process: with an election in between it is begun anew. One that comes behind it changes nothing,
/// since the set's id is what the proof asks for, and what else is taken from here is where an agent that
/// has read nothing begins.
async fn first_look(
    local: &Mongo,
    atlas: &Mongo,
) -> Result<(SourceInfo, (String, bool)), AgentError> {
    let first_look = local.for_a_proof();
    let info = inspect(&first_look).await?;
    let id = source_id(&first_look, &info).await?;
    sync::same::check_early(&first_look, atlas).await?;
    Ok((info, id))
}

fn from_tailer(error: TailerError) -> AgentError {
    match error {
        TailerError::Queue(error) => AgentError::Queue(error),
        TailerError::Source(error) => AgentError::Local(error),
    }
}

/// What is embedded in a program is spawned there: kept by the compiler, and so by every build.
const _: fn(Builder, Agent) = |builder, agent| {
    fn is_send<T: Send>(_: T) {}
    is_send(builder.prepare());
    is_send(agent.run(std::future::pending()));
};
