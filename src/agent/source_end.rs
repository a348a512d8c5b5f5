//! What an agent reads from, and all that is asked of it beside its stream.
//!
//! A new kind of source is a variant of [`SourceEnd`], and one of [`AnySource`] with its stream and its pages.

use std::sync::Arc;

use super::{
    AgentError, End, connect,
    gatekeeper::{self, Gatekeeper},
    patience::patiently,
};
use crate::{
    config::{Config, ConfigError, SourceKind},
    gate::{Gate, lease::Lease},
    model::{
        checkpoint::{Checkpoint, ClusterTime, PositionKind, ResumeToken},
        namespace::{Namespace, NamespaceFilter},
    },
    mongo::Mongo,
    observe::status::Status,
    queue::Queue,
    side::{MongoSide, Side},
    source::{
        AnySource, ChangeStreamSource, Journal, Source, SourceError, SourceInfo, inspect,
        outbox::{self, OutboxSource, Whose},
        source_id,
    },
    sync,
};

/// A source that was looked at once, when the agent was prepared.
pub(super) enum SourceEnd {
    Mongo(Box<MongoEnd>),
    Outbox(OutboxEnd),
}

/// A table of events. Nothing can be put in its place unseen: its lease says who has read it, and how far.
pub(super) struct OutboxEnd {
    source: OutboxSource,
    id: String,
    version: String,
    name: String,
}

/// A MongoDB, whose answers count only while `gate` is open.
pub(super) struct MongoEnd {
    local: Mongo,
    gate: Arc<Gate>,
    info: SourceInfo,
    /// The replica set's id.
    id: String,
}

impl SourceEnd {
    /// The source that the configuration names, once it has said what it is.
    ///
    /// # Errors
    /// What the person who starts the agent must mend first.
    pub async fn connect(
        config: &Config,
        gate: &Arc<Gate>,
        target: &dyn Side,
    ) -> Result<Self, AgentError> {
        if config.source.kind == SourceKind::Outbox {
            return Ok(SourceEnd::Outbox(OutboxEnd::connect(config).await?));
        }
        let local = connect::connect_local_by(config, Some(gate.clone())).await?;
        let (info, (id, is_exact)) =
            patiently(config.local.timeout, || Box::pin(first_look(&local, target))).await?;
        if !is_exact {
            tracing::warn!(
                "the user may not read the replica set's id; another database of the same set name could not be told apart"
            );
        }
        Ok(SourceEnd::Mongo(Box::new(MongoEnd { local, gate: gate.clone(), info, id })))
    }

    /// What its positions count.
    pub fn positions(&self) -> PositionKind {
        match self {
            SourceEnd::Mongo(_) => PositionKind::CLUSTER_TIME,
            SourceEnd::Outbox(_) => outbox::POSITIONS,
        }
    }

    /// Which database it is: the same at another address, and another one at the same address.
    pub fn id(&self) -> &str {
        match self {
            SourceEnd::Mongo(of) => &of.id,
            SourceEnd::Outbox(of) => &of.id,
        }
    }

    /// The position that it had when it was looked at.
    pub fn now(&self) -> ClusterTime {
        match self {
            SourceEnd::Mongo(of) => of.info.now,
            SourceEnd::Outbox(of) => of.source.come_to(),
        }
    }

    /// The position that it has now.
    pub async fn position(&self) -> Result<ClusterTime, SourceError> {
        match self {
            SourceEnd::Mongo(of) => Ok(inspect(&of.local).await?.now),
            SourceEnd::Outbox(of) => of.source.time().await,
        }
    }

    pub fn version(&self) -> &str {
        match self {
            SourceEnd::Mongo(of) => &of.info.version,
            SourceEnd::Outbox(of) => &of.version,
        }
    }

    /// What people call it: a MongoDB's replica set.
    pub fn name(&self) -> &str {
        match self {
            SourceEnd::Mongo(of) => &of.info.set_name,
            SourceEnd::Outbox(of) => &of.name,
        }
    }

    /// Its address, without its secrets.
    pub fn shown(&self, config: &Config) -> Result<String, ConfigError> {
        Ok(match self {
            SourceEnd::Mongo(_) => config.local_uri()?.to_string(),
            SourceEnd::Outbox(_) => config.outbox_uri()?.to_string(),
        })
    }

    pub fn end(&self) -> End {
        match self {
            SourceEnd::Mongo(of) => End::source(&of.local),
            SourceEnd::Outbox(of) => End::outbox(&of.source),
        }
    }

    pub fn journal(&self) -> Arc<dyn Journal> {
        match self {
            SourceEnd::Mongo(of) => Arc::new(of.local.clone()),
            SourceEnd::Outbox(of) => Arc::new(of.source.clone()),
        }
    }

    /// What reads its stream.
    pub fn source(&self, filter: &NamespaceFilter) -> AnySource {
        match self {
            SourceEnd::Mongo(of) => AnySource::Mongo(ChangeStreamSource::new(
                of.local.clone(),
                filter.clone(),
                &of.info,
            )),
            SourceEnd::Outbox(of) => AnySource::Outbox(of.source.clone()),
        }
    }

    /// Takes the turn to read, of a source that one agent reads at a time.
    pub async fn take_turn(&self, queue: Option<&ResumeToken>) -> Result<Whose, SourceError> {
        match self {
            SourceEnd::Mongo(_) => Ok(Whose::Ours),
            SourceEnd::Outbox(of) => of.source.take_turn(queue).await,
        }
    }

    /// True where another agent has had its turn since the queue came to this position.
    pub async fn is_overtaken(&self, queue: &ResumeToken) -> Result<bool, SourceError> {
        match self {
            SourceEnd::Mongo(_) => Ok(false),
            SourceEnd::Outbox(of) => of.source.is_overtaken(queue).await,
        }
    }

    /// Completes when another agent has its turn.
    pub async fn lost(&self) {
        match self {
            SourceEnd::Mongo(_) => std::future::pending().await,
            SourceEnd::Outbox(of) => of.source.lost().await,
        }
    }

    /// Gives the turn back.
    pub async fn give_back(&self) {
        match self {
            SourceEnd::Mongo(_) => {}
            SourceEnd::Outbox(of) => of.source.give_back().await,
        }
    }

    /// Who is told whether this agent has its turn.
    pub fn tell(&self, fence: &Arc<Lease>) {
        match self {
            SourceEnd::Mongo(_) => {}
            SourceEnd::Outbox(of) => of.source.tell(fence.clone()),
        }
    }

    /// Who proves, for as long as the agent runs, that this is still the database that it was started for. `None` for
    /// one that nothing can be put in the place of unseen.
    pub fn gatekeeper(&self, queue: &Arc<Queue>, status: &Arc<Status>) -> Option<Gatekeeper> {
        match self {
            SourceEnd::Mongo(of) => Some(Gatekeeper {
                local: of.local.clone(),
                gate: of.gate.clone(),
                queue: queue.clone(),
                status: status.clone(),
                source_id: of.id.clone(),
            }),
            SourceEnd::Outbox(_) => None,
        }
    }
}

impl OutboxEnd {
    async fn connect(config: &Config) -> Result<Self, AgentError> {
        let source = OutboxSource::new(config)?;
        let look = || async { Ok::<_, AgentError>(source.identify().await?) };
        let id = patiently(config.local.timeout, || Box::pin(look())).await?;
        let version = source.postgres().version().await.unwrap_or_default();
        Ok(Self { source, id, version, name: config.outbox.table.clone() })
    }
}

/// The side of the source that the configuration names, for who compares without an agent.
///
/// # Errors
/// When there is no usable connection string.
pub async fn source_side(config: &Config) -> Result<Arc<dyn Side>, AgentError> {
    Ok(match config.source.kind {
        SourceKind::Mongodb => MongoSide::source(&connect::connect_local(config).await?),
        SourceKind::Outbox => End::outbox(&OutboxSource::new(config)?).side,
    })
}

/// The side of the source that the configuration names, and what it is known by; `None` for one that nobody has begun to
/// read. Nothing is changed there.
///
/// # Errors
/// When there is no usable connection string, or the source does not answer.
pub async fn known_source(config: &Config) -> Result<(Arc<dyn Side>, Option<String>), AgentError> {
    Ok(match config.source.kind {
        SourceKind::Mongodb => {
            let local = connect::connect_local(config).await?;
            let (id, _) = source_id(&local, &inspect(&local).await?).await?;
            (MongoSide::source(&local), Some(id))
        }
        SourceKind::Outbox => {
            let source = OutboxSource::new(config)?;
            let id = source.known_id().await?;
            (End::outbox(&source).side, id)
        }
    })
}

/// [`Source::is_replicated`] by what the configuration says, for who has no source: its connection string need not be known.
///
/// # Errors
/// For patterns that are none.
pub fn is_replicated(
    config: &Config,
) -> Result<impl Fn(&Namespace) -> bool + Send + use<>, ConfigError> {
    let filter = config.filter()?;
    let own = match config.source.kind {
        SourceKind::Mongodb => None,
        SourceKind::Outbox => Some(outbox::own_of(config)),
    };
    Ok(move |ns: &Namespace| filter.matches(ns) || own.as_ref() == Some(ns))
}

/// What speaks against going on from this checkpoint with the source that the configuration names.
///
/// # Errors
/// As of [`known_source`].
pub async fn refusal(
    config: &Config,
    checkpoint: &Checkpoint,
) -> Result<Option<AgentError>, AgentError> {
    match config.source.kind {
        SourceKind::Mongodb => {
            let local = connect::connect_local(config).await?;
            Ok(gatekeeper::refusal(&local, checkpoint).await?)
        }
        SourceKind::Outbox => {
            if let Err(error) = checkpoint.is_of(&outbox::POSITIONS) {
                return Ok(Some(AgentError::OtherSource { problem: error.to_string() }));
            }
            let id = OutboxSource::new(config)?.known_id().await?;
            Ok(of_another_outbox(checkpoint, id.as_deref()))
        }
    }
}

/// An outbox says by its id alone that it is the one that a queue is of; one without an id has never been read.
pub(super) fn of_another_outbox(checkpoint: &Checkpoint, id: Option<&str>) -> Option<AgentError> {
    let problem = "the queue was filled from another outbox than the one that is configured now";
    let is_same = id == Some(&*checkpoint.source_id);
    (!is_same).then(|| AgentError::OtherSource { problem: problem.to_owned() })
}

/// What stands in the local database's own answers about it, and about both ends: whether they are one.
///
/// Whoever answers here is proven afterwards, before anything else that it says is believed. All of it comes from
/// one process: with an election in between it is begun anew. One that comes behind it changes nothing,
/// since the set's id is what the proof asks for, and what else is taken from here is where an agent that
/// has read nothing begins.
async fn first_look(
    local: &Mongo,
    target: &dyn Side,
) -> Result<(SourceInfo, (String, bool)), AgentError> {
    let first_look = local.for_a_proof();
    let info = inspect(&first_look).await?;
    let id = source_id(&first_look, &info).await?;
    sync::same::check_early(&*MongoSide::source(&first_look), target).await?;
    Ok((info, id))
}
