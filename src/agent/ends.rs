//! The two ends of an agent: which databases they are is decided here, once, from the configuration.
//!
//! Everything else takes an [`End`], or the seams of `source` and `sink`, and asks nobody of what kind it is. A new kind of target is a
//! variant of [`TargetEnd`] and one of [`AnySink`](crate::sink::AnySink), with its [`Side`] and its [`Peer`].

use std::sync::Arc;

use super::{AgentError, connect};
use crate::{
    config::{Config, ConfigError, TargetKind},
    gate::lease::Lease,
    mongo::Mongo,
    side::{Blind, MongoSide, NoPeer, Peer, Side},
    sink::{AnySink, AtlasSink, OwnSink, WithoutSchema},
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

    /// A MongoDB that is written to.
    pub fn target(mongo: &Mongo) -> Self {
        Self { peer: Arc::new(mongo.clone()), side: MongoSide::target(mongo) }
    }
}

/// What an agent replicates into.
pub enum TargetEnd {
    Atlas(Mongo),
    /// A sink of the program that the agent runs in. Its own until the tasks begin, which take it.
    Own(Option<OwnSink>),
}

impl TargetEnd {
    /// The target that the configuration names. It may be away.
    ///
    /// # Errors
    /// When there is no usable connection string.
    pub async fn connect(config: &Config) -> Result<Self, AgentError> {
        match config.target.kind {
            // PostgreSQL is refused there.
            TargetKind::Atlas | TargetKind::Postgres => {
                Ok(TargetEnd::Atlas(connect::connect_atlas(config).await?))
            }
        }
    }

    pub fn end(&self) -> End {
        match self {
            TargetEnd::Atlas(mongo) => End::target(mongo),
            TargetEnd::Own(_) => End { peer: Arc::new(NoPeer), side: Arc::new(Blind) },
        }
    }

    /// What writes to it, while `lease` is held.
    pub(super) fn sink(&mut self, config: &Config, lease: &Arc<Lease>) -> AnySink {
        match self {
            TargetEnd::Atlas(mongo) => {
                let limiter = connect::limiter(config);
                AnySink::Atlas(AtlasSink::new(mongo.clone(), limiter, Some(lease.clone())))
            }
            TargetEnd::Own(sink) => {
                let sink = sink.take().expect("the tasks of an agent are built once");
                AnySink::Own(WithoutSchema(sink))
            }
        }
    }

    /// Whether what is there can be asked for at all, and so compared.
    pub(super) fn can_be_looked_into(&self) -> bool {
        match self {
            TargetEnd::Atlas(_) => true,
            TargetEnd::Own(_) => false,
        }
    }

    /// Of the pipeline's name: a queue that goes from one kind of target to another has everything required.
    pub(super) fn suffix(&self) -> &'static str {
        match self {
            TargetEnd::Atlas(_) => "",
            TargetEnd::Own(_) => "-sink",
        }
    }

    /// Its address, without its secrets.
    ///
    /// # Errors
    /// When the configuration has none.
    pub fn shown(&self, config: &Config) -> Result<String, ConfigError> {
        Ok(match self {
            TargetEnd::Atlas(_) => config.atlas_uri()?.to_string(),
            TargetEnd::Own(_) => "a sink of the program's own".to_owned(),
        })
    }
}
