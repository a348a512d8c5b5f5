//! How an agent is put together by the program that it runs in.

use std::{future::Future, pin::Pin};

use super::{Agent, AgentError, Handles};
use crate::{
    config::Config,
    sink::{OwnSink, Sink},
};

/// Serves until it is dropped.
pub type Serving = Pin<Box<dyn Future<Output = ()> + Send>>;

type Starting = Pin<Box<dyn Future<Output = Result<Serving, AgentError>> + Send>>;

/// Starts what serves the handles.
pub(super) type Serve = Box<dyn FnOnce(Handles) -> Starting + Send + Sync>;

/// What an agent begins with.
pub struct Builder {
    pub(super) config: Config,
    pub(super) adopt: bool,
    pub(super) serve: Option<Serve>,
    pub(super) own: Option<OwnSink>,
}

impl Builder {
    pub(super) fn new(config: Config) -> Self {
        Self { config, adopt: false, serve: None, own: None }
    }

    /// Takes over a target that holds somebody else's data, and a local database that is another than the one
    /// that was replicated before. For a person who looks on: what is overwritten so is gone.
    #[must_use]
    pub fn adopt(mut self, adopt: bool) -> Self {
        self.adopt = adopt;
        self
    }

    /// What serves the agent's handles while it runs: [`admin::start`](crate::admin::start) in the program.
    /// `start` is called before anything of the agent begins, so that a port that is taken is known by then;
    /// what it returns ends with the agent. Without one the agent runs unseen.
    #[must_use]
    pub fn serve<F>(mut self, start: impl FnOnce(Handles) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Result<Serving, AgentError>> + Send + 'static,
    {
        self.serve = Some(Box::new(|handles| Box::pin(start(handles))));
        self
    }

    /// Replicates into a [`Sink`] of one's own and not to Atlas, of which the configuration need not know then. It is
    /// given every document that is there, and from then on each change, as often as it takes: a document may come more
    /// than once, and never an older version behind a newer one. It is told nothing of collections as such: what is
    /// renamed comes once more under the new name, and what goes with its collection, or within a gap of the stream, goes
    /// without a word.
    ///
    /// Nobody can look into such a target: it carries no lease, is not compared or counted, and each full sync gives it
    /// everything that there is.
    #[must_use]
    pub fn sink(mut self, sink: impl Sink) -> Self {
        self.own = Some(OwnSink::new(sink));
        self
    }

    /// Connects, checks that the local database can be replicated from, and opens the queue. The target
    /// may be away.
    ///
    /// # Errors
    /// What the person who starts the agent must mend first; [`AgentError::Config`] where values of the
    /// configuration do not go together.
    pub async fn prepare(self) -> Result<Agent, AgentError> {
        Agent::prepare(self).await
    }
}
