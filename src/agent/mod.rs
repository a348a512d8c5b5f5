//! The agent: builds the parts, starts the tasks, stops them in order.
//!
//! ```text
//!             ┌──── Reconciler ────┬──────────────────────┐  refreshes by key go through the queue,
//!             │                    ▼                      ▼  the first copy and index builds do not
//!  local ─▶ Source ─▶ Tailer ─▶ Queue ─▶ Worker × writers ─▶ Sink ─▶ Atlas
//!             └────────────────────────────────▲  documents that are read when it is their turn
//! ```
//!
//! The files in their order: [`Builder`] and `connect` (from the configuration to what is connected), `patience` (a start
//! waits for the local database), `standby` (and for its turn), `parts` (the tasks are put together), `run` (they are started and watched), `stop`
//! (they end). Beside them `gatekeeper` proves the local database, `vitals`, `monitor`, `chronicle` and `alert_delivery` tell how it goes.
//!
//! What serves the agent's [`Handles`], the admin API in the program, is given to it by the [`Builder`]: the agent
//! knows nothing of it.
//!
//! A task that ends early takes the agent down with it: an agent that has quietly stopped reading is
//! worse than one that has exited.

use std::sync::Arc;

use tokio::sync::Notify;

use crate::{
    config::{Config, ConfigError},
    gate::{Gate, reading::Reading, tally::Tally, writing::Writing},
    model::{checkpoint::PositionKind, namespace::Namespace},
    observe::status::Status,
    queue::{Queue, QueueError, QueueOptions, Rebuilt, note},
    runtime::{
        clock::now_ms,
        shutdown::{Stop, blocking},
    },
    schema::watch::SchemaWatch,
    side::records::AgentIdentity,
    source::{PIPELINE_VERSION, Source, SourceError},
    sync::{
        SyncError,
        state::{Reason, SyncState},
    },
    tailer::TailerError,
};

mod alert_delivery;
mod builder;
mod chronicle;
mod connect;
mod ends;
mod far_end;
mod flush;
mod gatekeeper;
mod handles;
mod hint;
mod identity;
mod monitor;
mod parts;
mod patience;
mod pause;
mod run;
mod source_end;
mod standby;
mod stop;
mod trial;
mod vitals;

use builder::Serve;
pub use builder::{Builder, Serving};
use gatekeeper::Gatekeeper;
pub use handles::Handles;
pub use identity::known_id;

pub use connect::{connect_atlas, connect_local, queue_options, sides};
pub use ends::{End, TargetEnd};
pub use far_end::reach;
pub use flush::{FlushError, Flushed, flush};
pub use monitor::{Monitor, is_gapless, judged, judgement, lag, lives};
pub use pause::{keep_pause, set_paused};
use source_end::{SourceEnd, of_another_outbox};
pub use source_end::{is_replicated, known_source, refusal, source_side};
pub use trial::{Delivery, try_deliveries};

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
    /// The source is read by one agent at a time, and another one has taken its turn: this one had not been able to say
    /// for half a minute that it still does.
    #[error("another agent reads the outbox in the place of this one")]
    Superseded,
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
    source: SourceEnd,
    /// Of `source`, as everybody sees it who does not read the stream.
    local: End,
    /// What `source` says counts only while it is open, of a kind that has one.
    gate: Arc<Gate>,
    target: TargetEnd,
    /// Of `target`, as everybody sees it who does not write.
    atlas: End,
    adopt: bool,
    identity: AgentIdentity,
    sync_wanted: Arc<Notify>,
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
        let Builder { config, adopt, serve, own } = builder;
        config.validate()?;
        let is_own = own.is_some();
        connect::tell_of_options(&config, is_own)?;
        let gate = Arc::new(Gate::default());
        let target = match own {
            Some(sink) => TargetEnd::Own(Some(sink)),
            None => TargetEnd::connect(&config).await?,
        };
        target.check_declared().await?;
        let atlas = target.end();
        let source = SourceEnd::connect(&config, &gate, &*atlas.side).await?;
        let queue = open_queue(&config, target.tally()).await?;
        let identity = identity::identify(&queue, &config.queue.path).await?;
        let agent = Self {
            status: Arc::default(),
            reading: Arc::default(),
            writing: Arc::new(Writing::new(gate.clone(), connect::breaker_policy(&config))),
            queue,
            monitor: Arc::new(Monitor::new(&config)),
            config,
            local: source.end(),
            source,
            gate,
            target,
            atlas,
            adopt,
            identity,
            sync_wanted: Arc::default(),
            watch: Arc::default(),
            stop: Stop::default(),
            serve,
        };
        agent.check_kind()?;
        agent.source.tell(agent.writing.lease());
        if let Some(gatekeeper) = agent.gatekeeper() {
            gatekeeper.open().await?;
        }
        agent.check_filter().await?;
        Ok(agent)
    }

    fn check_kind(&self) -> Result<(), AgentError> {
        same_kind(&self.queue, &self.source.positions())?;
        // A source that nobody proves again and again says by its id alone that it is the one that the queue is of.
        let checkpoint = self.queue.checkpoint()?.filter(|_| self.gatekeeper().is_none());
        match checkpoint {
            Some(checkpoint) if !self.adopt => {
                of_another_outbox(&checkpoint, Some(self.source.id())).map_or(Ok(()), Err)
            }
            Some(_) | None => Ok(()),
        }
    }

    /// The checkpoint must be of this filter.
    async fn check_filter(&self) -> Result<(), AgentError> {
        let (queue, pipeline, now) = (self.queue.clone(), self.pipeline()?, self.source.now());
        let is_another = blocking(move || {
            let is_another = queue.checkpoint()?.is_some_and(|of| of.pipeline != pipeline);
            if is_another {
                SyncState::require(&queue, now, Reason::NamespacesChanged)?;
            }
            Ok::<_, QueueError>(is_another)
        });
        if is_another.await? {
            tracing::info!("the namespaces have changed; everything will be compared");
            self.pass_over().await?;
        }
        Ok(())
    }

    /// What waits of collections that are left out from now on is not written. Should they be chosen again while it still waits,
    /// it is read anew: the stream has a gap there, and what comes in it may be older than what a comparison brings.
    async fn pass_over(&self) -> Result<(), AgentError> {
        let filter = self.config.filter()?;
        let source = self.source.source(&filter);
        let is_left_out = move |ns: &Namespace| !source.is_replicated(ns, &filter);
        let mut left_out = self.queue.pending_by_namespace();
        left_out.retain(|ns, _| is_left_out(ns));
        for (ns, documents) in &left_out {
            tracing::info!(%ns, documents, "it is not replicated any more, and what waits of it is not written");
        }
        if left_out.is_empty() {
            return Ok(());
        }
        let (queue, now) = (self.queue.clone(), self.source.now());
        Ok(blocking(move || queue.refresh_pending(now, now_ms(), is_left_out)).await?)
    }

    fn gatekeeper(&self) -> Option<Gatekeeper> {
        self.source.gatekeeper(&self.queue, &self.status)
    }

    fn pipeline(&self) -> Result<String, ConfigError> {
        let (filter, suffix) = (self.config.filter()?, self.target.suffix());
        Ok(format!("{PIPELINE_VERSION}-{}{suffix}", filter.fingerprint()))
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
            journal: self.source.journal(),
            config: Arc::new(self.config.clone()),
            sync_wanted: self.sync_wanted.clone(),
            watch: self.watch.clone(),
            monitor: self.monitor.clone(),
            local_set: self.source.name().into(),
        }
    }

    /// Stops the agent from outside: cancel `drain`, and `leave` to hurry.
    pub fn stop(&self) -> Stop {
        self.stop.clone()
    }
}

/// The configured queue, or a new one in the place of one that cannot be used. What the target confirms by count is kept
/// with what is concluded from it.
async fn open_queue(config: &Config, tally: Option<Arc<Tally>>) -> Result<Arc<Queue>, AgentError> {
    let options = QueueOptions { compact: true, ..queue_options(config) };
    let opened = blocking(move || {
        let (queue, rebuilt) = Queue::open_or_rebuild(&options)?;
        if let Some(tally) = tally {
            queue.carry(note::TALLY, move || tally.confirmed().map(|counts| counts.stored()));
        }
        Ok::<_, QueueError>((queue, rebuilt))
    });
    let (queue, rebuilt) = opened.await?;
    if let Some(Rebuilt { moved_to, error }) = rebuilt {
        let error = crate::observe::report::one_line(&error);
        tracing::error!(%error, moved_to = %moved_to.display(), "the queue could not be used and was moved aside; a new one is built and everything is compared");
    }
    Ok(Arc::new(queue))
}

/// The checkpoint must be of this kind of source, before it is asked what it proves of this one.
fn same_kind(queue: &Queue, positions: &PositionKind) -> Result<(), AgentError> {
    let Some(checkpoint) = queue.checkpoint()? else {
        return Ok(());
    };
    checkpoint
        .is_of(positions)
        .map_err(|error| AgentError::OtherSource { problem: error.to_string() })
}

fn from_tailer(error: TailerError) -> AgentError {
    match error {
        TailerError::Queue(error) => AgentError::Queue(error),
        TailerError::Source(error) => AgentError::Local(error),
        TailerError::OtherKind(error) => AgentError::OtherSource { problem: error.to_string() },
    }
}

/// What is embedded in a program is spawned there: kept by the compiler, and so by every build.
const _: fn(Builder, Agent) = |builder, agent| {
    fn is_send<T: Send>(_: T) {}
    is_send(builder.prepare());
    is_send(agent.run(std::future::pending()));
};
