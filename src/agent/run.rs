//! The life of an agent: its tasks are started, watched, and ended when one of them does or somebody asks for it.

use std::sync::Arc;

use tokio::{sync::oneshot, task::JoinSet, time::Instant};

use super::{
    Agent, AgentError,
    alert_delivery::{self, AlertDelivery},
    chronicle, from_tailer,
    parts::Parts,
    pause::kept_pause,
    queue_options, standby,
    stop::{Exit, result_of},
    vitals,
};
use crate::{
    model::namespace::NamespaceFilter,
    observe::status::Unshowable,
    queue::QueueError,
    runtime::{clock::now_ms, shutdown::blocking},
    sink::AnySink,
    sync::{self, Reconciler, state::SyncState},
};

impl Agent {
    /// Replicates until `shutdown` completes or a task ends, then stops every task: reading first,
    /// then, after `shutdown.drain_for` at the most, writing.
    ///
    /// # Errors
    /// What ended a task. After [`AgentError::Queue`] the process should begin anew: threads of the
    /// queue's storage may hang, and its lock on the directory with them.
    pub async fn run(mut self, shutdown: impl Future<Output = ()>) -> Result<(), AgentError> {
        let filter = self.config.filter()?;
        // The port was bound before; answers begin here, when what they tell is known.
        let mut serving = match self.serve.take() {
            Some(serve) => Some(serve(self.handles()).await?),
            None => None,
        };
        let mut beside = JoinSet::new();
        beside.spawn(vitals::count_ticks(self.status.clone(), self.queue.clone()));
        if self.source.journal().keeps_a_backlog() {
            beside.spawn(vitals::look_at_backlog(self.handles()));
        }
        let refused = self.keep_gate(&mut beside);
        self.remember().await?;
        let (monitor, config) = (self.monitor.clone(), self.config.clone());
        blocking(move || chronicle::take_up(&monitor, &config)).await;
        let parts = self.build(&filter)?;
        // Once an agent answers, all that happens from then on is read. One that may have to wait for its turn says before
        // that that it does.
        if self.source.journal().keeps_a_backlog()
            && let Some(serving) = serving.take()
        {
            beside.spawn(serving);
        }
        tokio::pin!(shutdown);
        let is_ready = tokio::select! {
            ready = self.begin(&parts, &filter) => ready.map(|()| true)?,
            () = &mut shutdown => false,
        };
        if !is_ready {
            beside.abort_all();
            return self.end(&filter, Instant::now()).await;
        }
        if let Some(serving) = serving {
            beside.spawn(serving);
        }
        let alert_delivery = Arc::new(AlertDelivery::default());
        self.spawn_beside(&mut beside, &parts.reconciler, &alert_delivery);
        let mut tasks = self.spawn(parts);
        let version = env!("CARGO_PKG_VERSION");
        tracing::info!(version, local = %self.source.shown(&self.config)?, local_version = %self.source.version(), atlas = %self.target.shown(&self.config)?, "started");

        let exit = tokio::select! {
            () = &mut shutdown => Exit::Asked,
            Ok(error) = refused => Exit::of(error),
            error = standby::superseded(&self) => Exit::of(error),
            Some(exit) = tasks.join_next() => result_of(exit).map_or_else(Exit::of, |()| Exit::Asked),
        };
        self.close(exit, tasks, beside, &alert_delivery).await
    }

    /// Until its tasks may start.
    async fn begin(&self, parts: &Parts, filter: &NamespaceFilter) -> Result<(), AgentError> {
        standby::stand_by(self).await?;
        self.take_up(&parts.tailer, filter).await
    }

    /// Proves the local database for as long as the agent runs; what is received is why it is not the one that the
    /// agent was started for.
    fn keep_gate(&self, beside: &mut JoinSet<()>) -> oneshot::Receiver<AgentError> {
        let gatekeeper = self.gatekeeper();
        let (refuse, refused) = oneshot::channel();
        beside.spawn(async move {
            let error = match gatekeeper {
                Some(gatekeeper) => gatekeeper.run().await,
                None => std::future::pending().await,
            };
            // Fails only when the agent has ended meanwhile, and then nobody needs to know.
            let _ = refuse.send(error);
        });
        refused
    }

    /// What stands in the queue about an earlier life.
    async fn remember(&self) -> Result<(), AgentError> {
        // Nothing goes to Atlas before the reconciler holds the lease.
        self.queue.hold_all();
        let (queue, options) = (self.queue.clone(), queue_options(&self.config));
        let noted = blocking(move || {
            let pause = kept_pause(&queue, &options)?;
            let refused = sync::refused_deletes(&queue)?;
            Ok::<_, QueueError>((pause, refused, SyncState::is_unshowable(&queue)?))
        });
        let (pause, refused_deletes, was_passed_over) = noted.await?;
        self.writing.pause(pause);
        self.writing.set_refused_deletes(refused_deletes);
        self.status.state().unshowable =
            was_passed_over.then_some(Unshowable::PassedOver { at_ms: 0 });
        // Heard of at its inspection; from now on its silence counts.
        self.status.metrics.local_heard_ms.set(now_ms());
        self.atlas.peer.silent_from_now();
        Ok(())
    }

    /// The tasks whose end is the agent's.
    fn spawn(&self, parts: Parts) -> JoinSet<Result<(), AgentError>> {
        let Parts { tailer, reconciler, worker } = parts;
        let mut tasks = JoinSet::new();
        let stop = self.stop.clone();
        tasks.spawn(async move { tailer.run(&stop).await.map_err(from_tailer) });
        let stop = self.stop.clone();
        tasks.spawn(async move { reconciler.run(&stop).await.map_err(AgentError::from) });
        for _ in 0..self.config.worker.lanes {
            let (worker, stop) = (worker.clone(), self.stop.clone());
            tasks.spawn(async move { worker.run(&stop).await.map_err(AgentError::from) });
        }
        tasks
    }

    /// What goes on beside them, and ends with the agent.
    fn spawn_beside(
        &self,
        beside: &mut JoinSet<()>,
        reconciler: &Arc<Reconciler<AnySink>>,
        alert_delivery: &Arc<AlertDelivery>,
    ) {
        let (reconciler, stop) = (reconciler.clone(), self.stop.clone());
        beside.spawn(async move { drop(reconciler.heartbeat_while_draining(&stop).await) });
        beside.spawn(vitals::tick(self.handles(), alert_delivery.clone()));
        beside.spawn(vitals::look_at_oplog(self.handles()));
        beside.spawn(chronicle::keep_on(self.handles()));
        if !self.source.journal().keeps_a_backlog() {
            beside.spawn(vitals::look_at_majority(self.handles()));
        }
        let alerts = &self.config.alerts;
        if let Some(url) = alerts.webhook.clone() {
            let alert_delivery = alert_delivery.clone();
            beside.spawn(async move { alert_delivery.deliver(&url).await });
        }
        if let Some(url) = alerts.heartbeat_url.clone() {
            beside.spawn(alert_delivery::heartbeat(self.handles(), url, alerts.heartbeat_every));
        }
    }
}
