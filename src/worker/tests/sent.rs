//! In which form and order documents are sent, and what is read for it.

use super::*;
use crate::sync::state::Reason;

/// As the stream tells of it where no UUID comes with an event.
fn nameless(id: i32) -> Incoming {
    let work =
        Work::Document { ns: orders(), key: key(id), op: WriteOp::Refresh, collection: None };
    Incoming { work, ..refresh(id) }
}

/// A document of so many bytes, about.
fn large(id: i32, bytes: usize) -> RawDocumentBuf {
    rawdoc! { "_id": id, "v": "x".repeat(bytes) }
}

fn set_text(id: i32, bytes: usize) -> Incoming {
    let delta = Delta::from_diff(&rawdoc! { "u": { "v": "y".repeat(bytes) } }).unwrap();
    change_at(20, id, WriteOp::Update(delta))
}

#[tokio::test]
async fn a_capped_collection_is_written_in_the_order_of_its_entries_whatever_is_to_be_read() {
    for (is_capped, kinds) in
        [(true, ["upsert", "upsert", "upsert"]), (false, ["insert", "insert", "upsert"])]
    {
        let scene = Scene::new().local_has([doc(2, 2)]);
        scene.queue.keep_capped_in_order(&orders(), is_capped);
        let scene = scene.queued([insert(1, 1), refresh(2), insert(3, 3)]);

        scene.until_nothing_waits().await;

        assert_eq!(scene.atlas.written(), kinds);
        let commands: Vec<_> = scene
            .atlas
            .commands(scene.started)
            .into_iter()
            .map(|(_, documents)| documents)
            .collect();
        assert_eq!(commands, if is_capped { vec![1, 1, 1] } else { vec![2, 1] });
    }
}

/// Of a capped collection, or of another.
fn of(is_capped: bool) -> Scene {
    let scene = Scene::new();
    scene.queue.keep_capped_in_order(&orders(), is_capped);
    scene
}

/// What Atlas has of one that comes anew gives way first, and so does what waits behind it: a kill may have left that there.
/// What comes later cannot be.
#[tokio::test]
async fn a_document_that_comes_anew_in_a_capped_collection_comes_last_and_what_waits_behind_it_follows()
 {
    let scene = of(true).queued([insert(1, 1)]);
    scene.until_nothing_waits().await;
    let scene = scene.queued([insert(2, 1), delete(1), insert(3, 3), delete(3), insert(3, 4)]);
    let scene = scene.queued([delete(2), insert(2, 2), insert(4, 4), insert(1, 2)]);
    scene.until_nothing_waits().await;
    let scene = scene.queued([insert(5, 5)]);
    scene.until_nothing_waits().await;

    let anew = [3, 2, 4, 1];
    let expected = [
        vec![("upsert", 1)],
        anew.map(|id| ("delete", id)).into(),
        anew.map(|id| ("upsert", id)).into(),
        vec![("upsert", 5)],
    ];
    assert_eq!(scene.atlas.written_ids(), expected.concat());
}

/// A document that was inserted, and must be read by now, still comes where it was inserted.
#[tokio::test]
async fn what_is_to_be_read_of_a_capped_collection_comes_anew_one_by_one_in_the_order_of_inserts() {
    let scene = of(true).local_has([doc(1, 5), doc(2, 5), doc(3, 5)]);
    let scene = scene.queued([insert(3, 1), insert(2, 1), insert(1, 1), insert(4, 1)]);
    let scene = scene.queued([refresh(1), refresh(2), refresh(3)]);

    scene.until_nothing_waits().await;

    let each = [3, 2, 1, 4].map(|id| [("delete", id), ("upsert", id)]);
    assert_eq!(scene.atlas.written_ids(), each.concat());
}

/// For a moment they are not in Atlas.
#[tokio::test]
async fn of_many_documents_that_come_anew_few_are_taken_out_at_once() {
    let scene = Scene::with(WorkerOptions { batch_size: 1_000, ..Scene::options() });
    scene.queue.keep_capped_in_order(&orders(), true);
    let turn = |v| (0..250).map(move |id| insert(id, v));
    let all = turn(1).chain((0..250).map(delete)).chain(turn(2));
    scene.queue.commit(all.collect(), None).unwrap();

    scene.until_nothing_waits().await;

    let written = scene.atlas.written();
    let out = written.chunk_by(|one, next| one == next).map(|run| (run[0], run.len()));
    let hundred = [("delete", 100), ("upsert", 100)];
    let expected = [hundred, hundred, [("delete", 50), ("upsert", 50)]].concat();
    assert_eq!(out.collect::<Vec<_>>(), expected);
}

/// What gives way before it is sent, as most does that a long outage leaves of a log, has nothing taken out behind it.
#[tokio::test]
async fn a_document_of_a_capped_collection_that_is_gone_before_it_is_sent_lets_no_other_come_anew()
{
    let scene = of(true).queued([insert(1, 1), insert(2, 1), delete(1), insert(1, 2)]);
    let scene = scene.queued([insert(3, 1), delete(2), delete(1), insert(4, 1)]);

    scene.until_nothing_waits().await;

    let expected = [("delete", 2), ("delete", 1), ("upsert", 3), ("upsert", 4)];
    assert_eq!(scene.atlas.written_ids(), expected);
}

/// The entries of any collection go in their order for a while (`sync::full`), and nothing of it is taken out for that.
#[tokio::test]
async fn in_a_collection_that_is_not_capped_nothing_comes_anew_whatever_goes_in_order() {
    let scene = Scene::new();
    scene.queue.keep_in_order(&orders());
    let scene = scene.queued([insert(1, 1), insert(2, 1), delete(1), insert(1, 2)]);

    scene.until_nothing_waits().await;

    assert_eq!(scene.atlas.written_ids(), [("upsert", 1), ("upsert", 2)]);
}

#[tokio::test]
async fn fields_are_merged_where_the_sink_can_and_else_the_document_is_read() {
    for (takes_changes, kind) in [(true, "merge"), (false, "upsert")] {
        let merge = change_at(20, 1, WriteOp::Merge(doc(1, 5)));
        let scene = Scene::new().local_has([doc(1, 5)]).queued([merge]);
        if !takes_changes {
            scene.atlas.takes_no_changes();
        }

        let scene = scene.drained().await;

        assert_eq!((scene.atlas.written(), scene.waiting()), (vec![kind], 0));
    }
}

#[tokio::test]
async fn an_update_goes_as_a_whole_document_to_a_sink_that_takes_no_changes() {
    let scene = Scene::of(UpdateMode::Delta).local_has([doc(1, 5)]).atlas_has([doc(1, 0)]);
    scene.atlas.takes_no_changes();

    let scene = scene.queued([set(1, 5)]).drained().await;

    assert_eq!((scene.atlas.written(), scene.atlas.documents()), (vec!["upsert"], vec![doc(1, 5)]));
}

#[tokio::test]
async fn without_the_local_database_an_update_waits_where_the_sink_takes_no_changes() {
    let scene = Scene::of(UpdateMode::Delta).atlas_has([doc(1, 0)]).queued([set(1, 5)]);
    scene.local.is_away(true);
    scene.atlas.takes_no_changes();

    let scene = scene.drained().await;

    assert_eq!((scene.atlas.written(), scene.waiting()), (Vec::new(), 1));
}

/// A difference is worth sending where it saves most of a document that is not small.
#[tokio::test]
async fn where_it_is_left_to_the_worker_a_difference_goes_as_such_if_it_is_an_eighth_of_a_large_document()
 {
    for (document, delta, kind) in [
        (8_000, 100, "change"),
        (8_000, 2_000, "upsert"),
        (2_000, 100, "upsert"),
        (2_000, 1_000, "upsert"),
    ] {
        let scene = Scene::of(UpdateMode::Auto).local_has([large(1, delta)]);
        let scene = scene.queued([change_at(20, 1, WriteOp::Insert(large(1, document)))]);
        let scene = scene.drained().await.queued([set_text(1, delta)]).drained().await;

        assert_eq!(scene.atlas.written(), ["insert", kind], "{delta} of {document}");
    }
}

#[tokio::test]
async fn what_a_source_keeps_of_a_document_is_sent_as_what_it_is() {
    let renewed = [
        (WriteOp::Insert(doc(1, 1)), Some("upsert")),
        (WriteOp::Merge(doc(1, 1)), Some("merge")),
        (WriteOp::Delete, Some("delete")),
        // It comes again.
        (WriteOp::Refresh, None),
    ];
    for (op, kind) in renewed {
        let scene = Scene::new().queued([refresh(1)]);
        scene.local.renews(op);

        let scene = scene.drained().await;

        assert_eq!(scene.atlas.written(), Vec::from_iter(kind));
        assert_eq!(
            (scene.waiting(), scene.queue.dead_letters_len(), scene.local.reads()),
            (0, 0, 0)
        );
    }

    let scene = Scene::new().queued([refresh(1)]);
    scene.local.renews(WriteOp::Merge(doc(1, 1)));
    scene.atlas.takes_no_changes();
    scene.until_nothing_waits().await;
    assert_eq!((scene.atlas.written().len(), scene.queue.dead_letters_len()), (0, 1));
}

#[tokio::test(start_paused = true)]
async fn an_entry_without_a_collection_is_read_when_the_stream_has_told_whose_its_name_is() {
    let scene = Scene::new().local_has([doc(1, 7)]).queued([nameless(1)]);

    let scene = scene.drained().await;
    assert!(scene.reading.is_wanted());
    tokio::time::sleep(Duration::from_secs(1)).await;
    let scene = scene.drained().await;
    assert_eq!((scene.atlas.written().len(), scene.waiting()), (0, 1));

    scene.reading.end_reply(ClusterTime(50), ClusterTime(50));
    scene.until_nothing_waits().await;
    assert_eq!(scene.atlas.documents(), [doc(1, 7)]);
}

/// The stream is not read before entries have gone.
#[tokio::test]
async fn of_a_full_queue_an_entry_without_a_collection_is_believed() {
    let scene = Scene::new().local_has([doc(1, 7)]).queued([nameless(1)]);
    scene.reading.stop("the queue is full");

    let scene = scene.drained().await;

    assert_eq!((scene.atlas.documents(), scene.waiting()), (vec![doc(1, 7)], 0));
}

fn held(id: i32) -> RawDocumentBuf {
    rawdoc! { "_id": id, "u": "x" }
}

#[tokio::test(start_paused = true)]
async fn a_delete_that_may_still_come_is_waited_for_before_a_document_is_called_foreign() {
    let scene = Scene::new().local_has([held(1)]).atlas_has([held(2)]);
    let scene = scene.queued([replace(held(1))]);

    for _ in 0..10 {
        scene.drain().await;
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    assert_eq!((scene.waiting(), scene.status.metrics.retries.get()), (1, 0));
    assert!(scene.reading.is_wanted());

    scene.reading.end_reply(ClusterTime(50), ClusterTime(50));
    scene.until_nothing_waits().await;
    let letters: Vec<_> = scene.queue.letters().map(Result::unwrap).collect();
    assert!(letters[0].reason.contains("only in Atlas"), "{}", letters[0].reason);
    assert_eq!(scene.atlas.documents(), [held(2)], "which is somebody else's");
}

#[tokio::test(start_paused = true)]
async fn a_comparison_that_may_remove_a_foreign_document_is_waited_for() {
    let scene = Scene::new().local_has([held(1)]).atlas_has([held(2)]);
    SyncState::require(&scene.queue, ClusterTime(20), Reason::FirstCopy).unwrap();
    scene.reading.end_reply(ClusterTime(50), ClusterTime(50));
    let scene = scene.queued([replace(held(1))]);

    for _ in 0..10 {
        scene.drain().await;
        tokio::time::sleep(Duration::from_secs(10)).await;
    }
    assert_eq!((scene.waiting(), scene.queue.dead_letters_len()), (1, 0));
    let entry = scene.queue.entry_of(&orders(), &key(1)).unwrap().unwrap();
    assert!(entry.attempts > 2, "{} attempts", entry.attempts);

    // It came to as many as it may not remove.
    scene.writing.refuse_deletes(&orders());
    tokio::time::sleep(Duration::from_secs(100)).await;
    scene.until_nothing_waits().await;
    assert_eq!(scene.queue.dead_letters_len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_probe_that_was_not_sent_since_the_local_database_is_away_is_made_up_for() {
    let (scene, stop) = (Scene::new().local_has([doc(1, 1)]).queued([refresh(1)]), Stop::default());
    scene.atlas.fails_with(away());
    let worker = scene.worker.clone();
    let run = tokio::spawn(async move { worker.run(&stop).await });

    clock::until(scene.started, 5).await;
    assert_eq!(scene.writing.against().breaker, Stage::Open);
    scene.local.is_away(true);
    scene.atlas.fails_with(None);
    clock::until(scene.started, 200).await;
    assert!(scene.atlas.written().is_empty());
    scene.local.is_away(false);
    clock::until(scene.started, 300).await;
    assert_eq!((scene.atlas.documents(), scene.waiting()), (vec![doc(1, 1)], 0));
    assert_eq!(scene.status.faults.atlas.get(), None);
    run.abort();
}

#[tokio::test]
async fn collections_are_counted_apart_up_to_a_number_and_those_that_are_known_beyond_it() {
    let scene = Scene::new().queued([insert(1, 1)]).drained().await;
    let fill =
        |n| (Namespace::new("other", &format!("c{n}")), crate::observe::status::Figures::default());
    scene.status.state().namespaces.extend((1..crate::worker::NAMESPACES_MAX).map(fill));
    let next = Namespace::new("shop", "next");
    let op = WriteOp::Insert(doc(1, 1));
    let work = Work::Document { ns: next.clone(), key: key(1), op, collection: Some(HERE) };

    let scene = scene.queued([insert(2, 1), Incoming { work, ..insert(1, 1) }]).drained().await;

    let of = |ns: &Namespace| scene.status.state().namespaces.get(ns).map(|of| of.writes);
    assert_eq!((of(&orders()), of(&next)), (Some(2), None));
    assert_eq!(scene.status.metrics.writes_applied.get(), 3);
}

#[tokio::test]
async fn a_collection_of_which_nothing_was_written_has_no_figures() {
    let scene = Scene::new().queued([insert(1, 1)]);
    scene.atlas.refuses_commands_with(1);

    let scene = scene.drained().await;

    assert!(scene.status.state().namespaces.is_empty());
}

/// What is there already costs twice as an insert; what is not costs four times as an upsert.
#[tokio::test]
async fn inserts_of_what_is_mostly_there_go_as_upserts_until_they_are_new_again() {
    let scene = Scene::new().atlas_has([doc(1, 0), doc(2, 0), doc(3, 0)]);
    let scene = scene.queued([insert(1, 1), insert(2, 1), insert(3, 1), insert(4, 1)]);
    let scene = scene.drained().await;
    assert_eq!(scene.atlas.written()[4..], ["upsert"; 3], "once more, whole");

    let scene = scene.queued([insert(5, 1), insert(6, 1), insert(7, 1)]).drained().await;
    assert_eq!(scene.atlas.written()[7..], ["upsert"; 3]);

    let scene = scene.queued([insert(8, 1), insert(9, 1)]).drained().await;
    assert_eq!(scene.atlas.written()[10..], ["insert"; 2]);
}

/// After so many batches of upserts it would be tried again.
#[tokio::test]
async fn deletes_say_nothing_of_whether_documents_are_new() {
    let scene = Scene::new().atlas_has([doc(1, 0), doc(2, 0)]);
    let mut scene = scene.queued([insert(1, 1), insert(2, 1)]).drained().await;
    for _ in 0..20 {
        scene = scene.queued([delete(3)]).drained().await;
    }

    let scene = scene.queued([insert(4, 1)]).drained().await;

    assert_eq!(scene.atlas.written().last(), Some(&"upsert"));
}

#[tokio::test]
async fn the_size_of_a_collections_documents_is_an_average_that_follows_slowly() {
    let of = |bytes| large(1, bytes).as_bytes().len();
    let known = |scene: &Scene| scene.worker.collections.traits(&orders()).document_bytes;

    let scene = Scene::new().queued([change_at(20, 1, WriteOp::Insert(large(1, 8_000)))]);
    let scene = scene.drained().await;
    assert_eq!(known(&scene), of(8_000), "the first one");

    let scene = scene.queued([replace(large(1, 1_000))]).drained().await;
    let second = (of(8_000) * 7 + of(1_000)) / 8;
    assert_eq!(known(&scene), second, "an eighth is the next one's");

    let insert = change_at(20, 2, WriteOp::Insert(large(2, 3_000)));
    let scene = scene.queued([insert, replace(large(1, 1_000)), delete(3)]).drained().await;
    let average = usize::midpoint(of(3_000), of(1_000));
    assert_eq!(known(&scene), (second * 7 + average) / 8, "of a batch its own average");
}

#[tokio::test]
async fn each_write_says_when_its_document_was_changed() {
    let scene = Scene::new().atlas_has([doc(1, 0)]);
    let one = Incoming { wall_ms: 700, ..insert(1, 1) };

    let scene = scene.queued([one, Incoming { wall_ms: 800, ..delete(2) }]).drained().await;

    assert_eq!(scene.atlas.written(), ["insert", "delete", "upsert"], "it was there already");
    assert_eq!(scene.atlas.changed_ms(), [Some(700), Some(800), Some(700)]);
}

#[tokio::test]
async fn what_is_to_be_read_of_a_collection_is_read_in_one_go() {
    let scene = Scene::new().local_has([doc(1, 1), doc(2, 2)]).queued([refresh(1), refresh(2)]);

    let scene = scene.drained().await;

    assert_eq!((scene.local.reads(), scene.waiting()), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn what_waits_for_the_stream_is_not_read_meanwhile_and_no_longer_waited_for_when_it_stops() {
    let scene = Scene::new().local_has([doc(1, 7)]).queued([nameless(1)]).drained().await;
    for _ in 0..3 {
        tokio::time::sleep(Duration::from_secs(1)).await;
        scene.drain().await;
    }
    assert_eq!((scene.local.reads(), scene.waiting()), (1, 1));

    scene.reading.stop("the queue is full");
    scene.until_nothing_waits().await;
    assert_eq!(scene.atlas.documents(), [doc(1, 7)]);
}

/// Its read may have been of either side of the rename.
#[tokio::test(start_paused = true)]
async fn a_document_whose_collection_is_renamed_while_it_is_read_is_read_at_once_under_its_new_name()
 {
    let scene = Scene::new().local_has([doc(1, 7)]).queued([refresh(1)]);
    let (queue, local) = (scene.queue.clone(), Arc::downgrade(&scene.local));
    scene.local.while_it_is_read(move || {
        let local = local.upgrade().unwrap();
        if local.reads() == 0 {
            queue.commit(vec![rename()], None).unwrap();
            local.is_another(CollectionId([2; 16]), 30);
        } else {
            local.is_another(HERE, 30);
        }
    });

    let scene = scene.drained().await;

    assert_eq!((scene.local.reads(), scene.waiting()), (2, 0));
    assert_eq!((scene.atlas.documents(), scene.atlas.changes()), (vec![doc(1, 7)], vec!["rename"]));
    assert!(!scene.reading.is_wanted());
}
