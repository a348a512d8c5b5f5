//! Where a collection, or the sink, is of another kind than it was taken for.

use super::*;
use crate::{
    schema::{Claim, Description, Kind},
    sink::{ConflictingWrite, CurrentOwner, SchemaSink, Sink, WithoutSchema, Write, Written},
};

fn of_capped<const N: usize>(changes: [Incoming; N]) -> Scene {
    let scene = Scene::new();
    scene.queue.keep_capped_in_order(&orders(), true);
    scene.queued(changes)
}

impl Scene {
    /// One writer writes to this sink what can be written now.
    async fn drained_into<K: SchemaSink>(&self, sink: Arc<K>) {
        let worker = &self.worker;
        let shared = Shared {
            queue: self.queue.clone(),
            status: self.status.clone(),
            reading: self.reading.clone(),
            writing: self.writing.clone(),
            watermark: worker.watermark.clone(),
            in_doubt: self.in_doubt.clone(),
            watch: worker.watch.clone(),
            filter: worker.filter.clone(),
        };
        let stop = Stop::default();
        stop.drain.cancel();
        Worker::new(self.local.clone(), sink, shared, Self::options()).run(&stop).await.unwrap();
    }
}

/// They are queued while it is still capped.
#[tokio::test]
async fn in_a_collection_that_takes_the_name_of_a_capped_one_nothing_comes_anew() {
    let drop = SchemaChange::Drop { ns: orders() };
    let create = SchemaChange::Create { ns: orders(), options: RawDocumentBuf::new() };
    let scene = of_capped([schema(drop), schema(create)]);

    let scene = scene.queued([insert(1, 1), delete(1), insert(1, 2)]);
    scene.until_nothing_waits().await;

    assert_eq!(scene.atlas.written_ids(), [("upsert", 1)]);
}

#[tokio::test]
async fn from_a_sink_that_keeps_no_order_of_inserts_nothing_is_taken_out_for_it() {
    let scene = of_capped([insert(1, 1), insert(2, 1), delete(1), insert(1, 2)]);
    let sink = Arc::new(WithoutSchema(FakeSink::default()));

    scene.drained_into(sink.clone()).await;

    assert_eq!(sink.0.written_ids(), [("upsert", 2), ("upsert", 1)]);
}

/// It has a view of the name, until a collection is made there.
#[derive(Default)]
struct ViewThere {
    made_with: Mutex<Option<RawDocumentBuf>>,
}

impl Sink for ViewThere {
    async fn write(&self, _: &Namespace, writes: &[Write<'_>]) -> Result<Vec<Written>, SinkError> {
        match *self.made_with.lock() {
            Some(_) => Ok(vec![Written::Applied { created: true }; writes.len()]),
            None => Err(SinkError::Held("a view has the name".to_owned())),
        }
    }
}

impl SchemaSink for ViewThere {
    async fn change_schema(&self, change: &SchemaChange) -> Result<Changed, SinkError> {
        if let SchemaChange::Create { options, .. } = change {
            *self.made_with.lock() = Some(options.clone());
        }
        Ok(Changed::Done)
    }

    async fn describe(&self, _: &Namespace) -> Result<Option<Description>, SinkError> {
        let is_made = self.made_with.lock().is_some();
        let kind = if is_made { Kind::Collection } else { Kind::View };
        Ok(Some(described(kind, RawDocumentBuf::new())))
    }

    async fn owners(
        &self,
        _: &Namespace,
        _: &[ConflictingWrite],
    ) -> Result<Vec<Vec<CurrentOwner>>, SinkError> {
        unreachable!("no value is unique")
    }

    async fn drop_emptied(&self, _: &str) -> Result<bool, SinkError> {
        Ok(false)
    }

    async fn loosen(&self, _: &Namespace, _: &str) -> Result<bool, SinkError> {
        Ok(false)
    }

    async fn estimated_count(&self, _: &Namespace) -> Result<u64, SinkError> {
        Ok(0)
    }

    async fn alter(&self, _: &Namespace, _: RawDocumentBuf) -> Result<(), SinkError> {
        Ok(())
    }
}

fn described(kind: Kind, options: RawDocumentBuf) -> Description {
    Description { kind, claim: Claim::Whole, id: Some(HERE), options, indexes: Vec::new() }
}

/// Nobody can make it capped later.
#[tokio::test]
async fn a_collection_that_takes_the_place_of_a_view_is_made_with_the_options_that_it_has_locally()
{
    let capped = || rawdoc! { "capped": true, "size": 4096 };
    // A view that has the name by now is not what the documents are of.
    for (kind, options) in [(Kind::Collection, capped()), (Kind::View, RawDocumentBuf::new())] {
        let scene = Scene::new().queued([insert(1, 1)]);
        scene.local.is_described(described(kind, capped()));
        let sink = Arc::new(ViewThere::default());

        scene.drained_into(sink.clone()).await;

        assert_eq!((scene.waiting(), sink.made_with.lock().clone()), (0, Some(options)));
    }
}
