//! The tasks, put together: who reads, who compares, who writes, and what they share.

use std::{sync::Arc, time::Duration};

use parking_lot::Mutex;

use super::{Agent, AgentError, connect};
use crate::{
    model::namespace::NamespaceFilter,
    policy::{in_doubt::InDoubtWrites, read_watermark::ReadWatermark},
    sink::AnySink,
    source::{AnySource, SchemaSource},
    sync::{self, Reconciler},
    tailer::{IMPASSE_PATIENCE, Identity, QueueLimits, Tailer},
    worker::{Shared, Worker},
};

/// Documents whose reads are remembered one by one; see [`ReadWatermark`].
const WATERMARK_DOCUMENTS: usize = 100_000;

/// What an agent is made of. Nothing of it runs yet.
pub(super) struct Parts {
    pub tailer: Tailer<AnySource>,
    pub reconciler: Arc<Reconciler<AnySink>>,
    pub worker: Arc<Worker<AnySource, AnySink>>,
}

impl Agent {
    pub(super) fn build(&mut self, filter: &NamespaceFilter) -> Result<Parts, AgentError> {
        let source = Arc::new(self.source.source(filter));
        let sink =
            Arc::new(self.target.sink(&self.config, self.writing.lease(), &self.status.misfits));
        let watermark =
            Arc::new(Mutex::new(ReadWatermark::new(self.source.now(), WATERMARK_DOCUMENTS)));
        let in_doubt = Arc::new(Mutex::new(InDoubtWrites::default()));
        let tells_of_schema = source.tells_of_schema();
        let tailer = self.tailer(source.clone(), filter)?;
        let compared = self.config.compared()?;
        let context = self.context(sink.clone(), (filter, &compared), in_doubt.clone());
        let options = self.sync_options(tells_of_schema);
        let reconciler = Arc::new(Reconciler::new(context, options, watermark.clone()));
        let shared = Shared {
            queue: self.queue.clone(),
            status: self.status.clone(),
            reading: self.reading.clone(),
            writing: self.writing.clone(),
            watermark,
            in_doubt,
            watch: self.watch.clone(),
            filter: filter.clone(),
        };
        let worker = Worker::new(source, sink, shared, connect::worker_options(&self.config));
        Ok(Parts { tailer, reconciler, worker: Arc::new(worker) })
    }

    fn tailer(
        &self,
        source: Arc<AnySource>,
        filter: &NamespaceFilter,
    ) -> Result<Tailer<AnySource>, AgentError> {
        let queue = &self.config.queue;
        Ok(Tailer {
            queue: self.queue.clone(),
            tells_of_schema: source.tells_of_schema(),
            source,
            status: self.status.clone(),
            reading: self.reading.clone(),
            filter: filter.clone(),
            limits: QueueLimits {
                max_bytes: queue.max_bytes,
                max_documents: queue.max_documents,
                min_free_disk: queue.min_free_disk,
            },
            identity: Identity {
                source_id: self.source.id().to_owned(),
                pipeline: self.pipeline()?,
            },
            disk: queue.path.clone(),
            compare: self.sync_wanted.clone(),
            gate: self.gate.clone(),
            watch: self.watch.clone(),
            impasse_patience: IMPASSE_PATIENCE,
        })
    }

    fn context(
        &self,
        sink: Arc<AnySink>,
        (written, compared): (&NamespaceFilter, &NamespaceFilter),
        in_doubt: Arc<Mutex<InDoubtWrites>>,
    ) -> sync::Context<AnySink> {
        let mut sides =
            connect::sides(&self.config, self.local.side.clone(), self.atlas.side.clone());
        sides.status = Some(self.status.clone());
        sides.lease = Some(self.writing.lease().clone());
        sync::Context {
            queue: self.queue.clone(),
            sides,
            sink,
            status: self.status.clone(),
            reading: self.reading.clone(),
            writing: self.writing.clone(),
            filter: compared.clone(),
            written: written.clone(),
            in_doubt,
            watch: self.watch.clone(),
            in_hand: Arc::default(),
            sync_wanted: self.sync_wanted.clone(),
        }
    }

    fn sync_options(&self, tells_of_schema: bool) -> sync::Options {
        let config = &self.config;
        let of_comparison =
            |every| if self.target.can_be_looked_into() { every } else { Duration::ZERO };
        sync::Options {
            source_id: self.source.id().to_owned(),
            agent: self.identity.clone(),
            adopt: self.adopt,
            max_delete_ratio: config.sync.max_delete_ratio,
            queue_max: config.queue.max_documents / 2,
            verify_every: of_comparison(config.sync.verify_every),
            count_check_every: of_comparison(config.sync.count_check_every),
            tells_of_schema,
        }
    }
}
