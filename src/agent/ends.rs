//! The two ends of an agent: which databases they are is decided here, once, from the configuration.
//!
//! Everything else takes an [`End`], or the seams of `source` and `sink`, and asks nobody of what kind it is. A new kind of
//! target is a variant of [`TargetEnd`] and one of [`AnySink`], with its [`Side`] and its [`Peer`].

use std::sync::Arc;

use super::{AgentError, connect};
use crate::{
    config::{Config, ConfigError, Exact, Mapping, SourceKind, TargetKind},
    gate::{lease::Lease, tally::Tally},
    mongo::Mongo,
    observe::misfits::Misfits,
    policy::limiter::Limiter,
    postgres::connect::Postgres,
    side::{
        Blind, MongoSide, NoPeer, OutboxSide, Peer, PostgresSide, Side, postgres::PostgresRecords,
    },
    sink::{
        AnySink, AtlasSink, OwnSink, WithoutSchema,
        postgres::{PostgresSink, fence::Fence},
    },
    source::outbox::OutboxSource,
};

/// One end, for all who look at it.
#[derive(Clone)]
pub struct End {
    pub peer: Arc<dyn Peer>,
    pub side: Arc<dyn Side>,
}

impl End {
    /// A MongoDB that is read from.
    pub fn source(mongo: &Mongo) -> Self {
        Self { peer: Arc::new(mongo.clone()), side: MongoSide::source(mongo) }
    }

    /// A table of events, and those beside it.
    pub fn outbox(source: &OutboxSource) -> Self {
        let (peer, side) = (Arc::new(source.postgres().clone()), OutboxSide::new(source.clone()));
        Self { peer, side: Arc::new(side) }
    }

    /// A MongoDB that is written to.
    pub fn target(mongo: &Mongo) -> Self {
        Self { peer: Arc::new(mongo.clone()), side: MongoSide::target(mongo) }
    }
}

/// Whether the source's documents have their fields in an order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FieldOrder {
    InOrder,
    InAnyOrder,
}

/// What an agent replicates into.
pub enum TargetEnd {
    Atlas(Mongo, FieldOrder),
    Postgres(PostgresEnd),
    /// A sink of the program that the agent runs in. Its own until the tasks begin, which take it.
    Own(Option<OwnSink>),
}

/// A PostgreSQL, and what its rows are made by.
pub struct PostgresEnd {
    pg: Postgres,
    connections: usize,
    mapping: Mapping,
    exact: Exact,
    /// What this agent holds there: noted by whoever takes the lease, asked for by each transaction that writes.
    fence: Fence,
}

impl PostgresEnd {
    fn new(config: &Config) -> Result<Self, ConfigError> {
        // Those who write, those who compare, and the lease.
        let connections = config.worker.lanes + config.sync.parallel + 2;
        let uri = config.postgres_uri()?;
        let pg = Postgres::new(uri.expose(), connections, config.atlas.timeout)
            .map_err(|error| ConfigError::invalid("postgres.uri", error.to_string()))?;
        let (mapping, exact) = (config.mapping.clone(), config.postgres.exact);
        Ok(Self { pg, connections, mapping, exact, fence: Fence::default() })
    }

    fn end(&self) -> End {
        let records = PostgresRecords::new(self.pg.clone(), self.fence.clone());
        let side = PostgresSide::new(self.pg.clone(), self.mapping.clone(), self.exact);
        End { peer: Arc::new(self.pg.clone()), side: Arc::new(side.with_records(records)) }
    }

    /// How many connections there may be at once.
    pub fn connections(&self) -> usize {
        self.connections
    }

    /// Its line.
    pub fn line(&self) -> Postgres {
        self.pg.clone()
    }

    /// The rows as the documents that they are, where those are kept.
    fn documents(&self) -> Arc<dyn Side> {
        let (pg, mapping) = (self.pg.clone(), self.mapping.clone());
        Arc::new(PostgresSide::documents(pg, mapping, self.exact))
    }

    fn sink(&self, limiter: Limiter, misfits: Arc<Misfits>) -> PostgresSink {
        let fence = Some(self.fence.clone());
        PostgresSink::of(self.pg.clone(), self.mapping.clone(), self.exact, fence)
            .limited(limiter)
            .counting(misfits)
    }
}

impl TargetEnd {
    /// The target that the configuration names. It may be away.
    ///
    /// # Errors
    /// When there is no usable connection string, or something is declared that the target does not have.
    pub async fn connect(config: &Config) -> Result<Self, AgentError> {
        match config.target.kind {
            TargetKind::Atlas if config.mapping != Mapping::default() => {
                let problem = "is `atlas`, which has neither the columns of `[[column]]` nor the tables of `[[child]]`: they are PostgreSQL's";
                Err(ConfigError::invalid("target.kind", problem.to_owned()).into())
            }
            TargetKind::Atlas => {
                let fields = match config.source.kind {
                    SourceKind::Mongodb => FieldOrder::InOrder,
                    SourceKind::Outbox => FieldOrder::InAnyOrder,
                };
                Ok(TargetEnd::Atlas(connect::connect_atlas(config).await?, fields))
            }
            TargetKind::Postgres => Ok(TargetEnd::Postgres(PostgresEnd::new(config)?)),
        }
    }

    pub fn end(&self) -> End {
        match self {
            TargetEnd::Atlas(mongo, FieldOrder::InOrder) => End::target(mongo),
            TargetEnd::Atlas(mongo, FieldOrder::InAnyOrder) => {
                let side = MongoSide::target_in_any_order(mongo);
                End { peer: Arc::new(mongo.clone()), side }
            }
            TargetEnd::Postgres(postgres) => postgres.end(),
            TargetEnd::Own(_) => End { peer: Arc::new(NoPeer), side: Arc::new(Blind) },
        }
    }

    /// As a restore reads it: whole documents, as far as it has them.
    pub fn documents(&self) -> Arc<dyn Side> {
        match self {
            TargetEnd::Postgres(postgres) => postgres.documents(),
            TargetEnd::Atlas(..) | TargetEnd::Own(_) => self.end().side,
        }
    }

    /// What writes to it, while `lease` is held.
    pub(super) fn sink(
        &mut self,
        config: &Config,
        lease: &Arc<Lease>,
        misfits: &Arc<Misfits>,
    ) -> AnySink {
        match self {
            TargetEnd::Atlas(mongo, _) => {
                let limiter = connect::limiter(config);
                AnySink::Atlas(AtlasSink::new(mongo.clone(), limiter, Some(lease.clone())))
            }
            TargetEnd::Postgres(postgres) => {
                AnySink::Postgres(postgres.sink(connect::limiter(config), misfits.clone()))
            }
            TargetEnd::Own(sink) => {
                let sink = sink.take().expect("the tasks of an agent are built once");
                AnySink::Own(WithoutSchema(sink))
            }
        }
    }

    /// What it confirms by count, where it does.
    pub(super) fn tally(&self) -> Option<Arc<Tally>> {
        match self {
            TargetEnd::Postgres(postgres) => Some(postgres.fence.tally().clone()),
            TargetEnd::Atlas(..) | TargetEnd::Own(_) => None,
        }
    }

    /// Whether what is there can be asked for at all, and so compared.
    pub(super) fn can_be_looked_into(&self) -> bool {
        match self {
            TargetEnd::Atlas(..) | TargetEnd::Postgres(_) => true,
            TargetEnd::Own(_) => false,
        }
    }

    /// Of the pipeline's name: a queue that goes from one kind of target to another has everything required, and so
    /// has one whose rows are to be others than they were.
    pub(super) fn suffix(&self) -> String {
        match self {
            TargetEnd::Atlas(..) => String::new(),
            TargetEnd::Postgres(PostgresEnd { mapping, exact, .. }) => {
                format!("-postgres-{}-{exact:?}", mapping.fingerprint())
            }
            TargetEnd::Own(_) => "-sink".to_owned(),
        }
    }

    /// Whether what is declared for it can be made there. It may be away, and then its writer finds it out.
    ///
    /// # Errors
    /// What a person has to change first.
    pub(super) async fn check_declared(&self) -> Result<(), ConfigError> {
        let TargetEnd::Postgres(postgres) = self else { return Ok(()) };
        match postgres.sink(Limiter::default(), Arc::default()).in_the_way().await {
            Ok(None) => Ok(()),
            Ok(Some(reason)) => Err(ConfigError::invalid("child", reason)),
            Err(error) => {
                tracing::debug!(%error, "what is declared cannot be looked at yet");
                Ok(())
            }
        }
    }

    /// Its address, without its secrets.
    ///
    /// # Errors
    /// When the configuration has none.
    pub fn shown(&self, config: &Config) -> Result<String, ConfigError> {
        Ok(match self {
            TargetEnd::Atlas(..) => config.atlas_uri()?.to_string(),
            TargetEnd::Postgres(_) => config.postgres_uri()?.to_string(),
            TargetEnd::Own(_) => "a sink of the program's own".to_owned(),
        })
    }
}
