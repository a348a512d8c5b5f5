//! Unique values that change hands: who gives way, who comes back, and who waits.

use super::*;
use crate::policy::breaker::Admission;

fn held(id: i32, u: &str) -> RawDocumentBuf {
    rawdoc! { "_id": id, "u": u }
}

/// A document takes the value that another one of Atlas has had.
fn taking(collection: Option<CollectionId>) -> Scene {
    taking_in(Scene::new(), collection)
}

fn taking_in(scene: Scene, collection: Option<CollectionId>) -> Scene {
    let scene = scene.local_has([held(1, "b"), held(2, "c")]).atlas_has([held(2, "b")]);
    let op = WriteOp::Replace(held(1, "b"));
    let work = Work::Document { ns: orders(), key: key(1), op, collection };
    scene.queued([Incoming { work, ..refresh(1) }])
}

impl Scene {
    /// One batch of what can be written now.
    async fn one_batch(&self) {
        let entries = self.queue.lease(100, usize::MAX, now_ms()).unwrap().entries;
        self.worker.write(entries, Admission::Proceed).await.unwrap();
    }
}

#[tokio::test]
async fn a_document_that_gives_way_is_back_within_the_batch_and_read_once_more_behind_it() {
    let scene = taking(Some(HERE));

    scene.one_batch().await;

    assert_eq!(scene.atlas.written(), ["upsert", "upsert", "delete", "upsert", "upsert"]);
    assert_eq!(scene.atlas.documents(), [held(1, "b"), held(2, "c")]);
    let left = scene.queue.entry_of(&orders(), &key(2)).unwrap().unwrap();
    assert_eq!((left.work.name(), scene.waiting()), ("refresh", 1));
    assert_eq!(scene.status.metrics.conflicts_resolved.get(), 1);
}

/// A difference that is older would undo a part of it.
#[tokio::test]
async fn what_comes_back_is_as_young_as_its_read() {
    let scene = taking_in(Scene::of(UpdateMode::Delta), Some(HERE));

    scene.one_batch().await;

    let is_exact = |id, time| {
        let first = ClusterTime(time);
        scene.worker.watermark.lock().is_exact(&key(id).canonical(), first)
    };
    assert!(!is_exact(2, 30) && is_exact(2, 31), "it was read at 30");
    assert!(is_exact(1, 30), "and the other one was not read to be written");
}

#[tokio::test]
async fn an_entry_that_knows_no_collection_takes_its_place_and_one_of_another_collection_does_not()
{
    let scene = taking(None);
    scene.one_batch().await;
    assert_eq!(scene.atlas.documents(), [held(1, "b"), held(2, "c")]);

    let scene = taking(Some(CollectionId([2; 16])));
    scene.one_batch().await;
    assert_eq!(scene.atlas.documents(), [held(2, "b")]);
    let left = scene.queue.entry_of(&orders(), &key(1)).unwrap().unwrap();
    assert_eq!(left.work.name(), "refresh");
}

#[tokio::test]
async fn a_document_in_whose_way_too_many_stand_is_tried_again_at_another_time() {
    let scene = Scene::new().local_has([held(1, "x")]).queued([replace(held(1, "x"))]);
    for id in 2..=7 {
        scene.local.has(held(id, &id.to_string()));
        scene.atlas.has(held(id, "x"));
    }

    scene.one_batch().await;

    let in_the_way =
        scene.atlas.documents().into_iter().filter(|of| of.get_str("u").unwrap() == "x");
    assert_eq!(in_the_way.count(), 2, "one gives way in each round");
    assert_eq!((scene.status.metrics.retries.get(), scene.queue.dead_letters_len()), (1, 0));
}

/// Each new look is of a time that is still ahead.
#[tokio::test(start_paused = true)]
async fn on_a_busy_stream_a_delete_is_waited_for_from_the_first_look_on() {
    let scene = Scene::new().local_has([held(1, "x")]).atlas_has([held(2, "x")]);
    let scene = scene.queued([replace(held(1, "x"))]);
    scene.one_batch().await;
    assert_eq!((scene.status.metrics.retries.get(), scene.reading.is_wanted()), (0, true));

    scene.local.is_another(HERE, 60);
    scene.reading.end_reply(ClusterTime(35), ClusterTime(35));
    tokio::time::sleep(Duration::from_secs(1)).await;
    scene.one_batch().await;

    assert_eq!((scene.status.metrics.retries.get(), scene.reading.is_wanted()), (1, false));
}

#[tokio::test]
async fn what_is_read_of_a_conflict_is_no_older_than_the_entry_and_the_stream() {
    for (time, after) in [(20, 25), (40, 40)] {
        let scene = Scene::new().local_has([held(1, "b"), held(2, "c")]);
        let scene = scene.atlas_has([held(2, "b")]);
        let scene = scene.queued([change_at(time, 1, WriteOp::Replace(held(1, "b")))]);

        scene.one_batch().await;

        assert_eq!(scene.local.was_read_after(), ClusterTime(after));
    }
}

#[tokio::test]
async fn an_index_that_is_only_prepared_to_become_unique_lets_documents_in_and_is_looked_at_later()
{
    let scene = Scene::new().local_has([held(1, "x")]).queued([replace(held(1, "x"))]);
    scene.atlas.is_prepared();

    scene.one_batch().await;

    assert_eq!((scene.atlas.documents(), scene.waiting()), (vec![held(1, "x")], 0));
    let minute = Duration::from_secs(60);
    assert!(scene.worker.watch.is_loosened(&orders(), minute, clock::now()));
}

#[tokio::test]
async fn nothing_gives_way_to_what_is_not_known_locally() {
    let scene = taking(Some(HERE));
    scene.local.is_exchanged_by_the_next_read();
    scene.one_batch().await;
    assert_eq!((scene.atlas.documents(), scene.waiting()), (vec![held(2, "b")], 1));

    let scene = taking(Some(HERE));
    scene.local.is_away(true);
    scene.one_batch().await;
    assert_eq!((scene.atlas.documents(), scene.waiting()), (vec![held(2, "b")], 1));
}

/// Both sides of each are held in memory.
#[tokio::test(start_paused = true)]
async fn of_many_or_large_documents_that_find_no_place_a_part_is_seen_to_at_once_and_the_rest_later()
 {
    for (documents, bytes, at_once) in [(250, 0, 200), (3, 8 << 20, 2)] {
        let scene = Scene::with(WorkerOptions { batch_size: 1_000, ..Scene::options() });
        for id in 0..documents {
            scene.local.has(rawdoc! { "_id": id, "v": "x".repeat(bytes) });
        }
        scene.queue.commit((0..documents).map(refresh).collect(), None).unwrap();
        scene.atlas.is_prepared();

        scene.until_nothing_waits().await;

        let commands = scene.atlas.commands(scene.started);
        let sizes: Vec<_> = commands.into_iter().map(|(_, documents)| documents).collect();
        let documents = documents as usize;
        assert_eq!(sizes[..3], [documents, at_once, at_once]);
        assert_eq!(scene.atlas.documents().len(), documents, "in the end");
    }
}
