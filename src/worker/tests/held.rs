//! What waits for something that is in its way in Atlas.

use super::*;

#[tokio::test]
async fn a_change_that_has_to_wait_is_listed_and_holds_up_its_collection_alone() {
    let drop = schema(SchemaChange::Drop { ns: Namespace::new("shop", "held") });
    let scene = Scene::new().queued([drop, insert(1, 1)]);
    scene.atlas.answers_a_change_with(Err(SinkError::Held("a view needs it".to_owned())));

    let scene = scene.drained().await;

    assert_eq!((scene.atlas.documents(), scene.waiting()), (vec![doc(1, 1)], 1));
    let problems = scene.worker.watch.all_listed();
    assert_eq!(problems[&Namespace::new("shop", "held")].len(), 1);
}

/// A collection is made, written and dropped, and Atlas will not make it.
async fn made_and_dropped(is_there: bool) -> Scene {
    let create = SchemaChange::Create { ns: orders(), options: RawDocumentBuf::new() };
    let drop = SchemaChange::Drop { ns: orders() };
    let scene = Scene::new().queued([schema(create), insert(1, 1), schema(drop)]);
    let held = SinkError::Held("a database in other capitals".to_owned());
    scene.atlas.fails_with(held.clone());
    scene.atlas.answers_a_create_with(held);
    scene.atlas.has_something_else_there(is_there);
    scene.drained().await
}

#[tokio::test]
async fn what_has_to_wait_is_passed_over_where_the_collection_is_dropped_behind_it() {
    let scene = made_and_dropped(false).await;

    assert_eq!((scene.atlas.changes(), scene.waiting()), (vec!["create", "drop"], 0));
    assert!(scene.atlas.documents().is_empty() && scene.queue.dead_letters_len() == 0);
    let watch = &scene.worker.watch;
    assert!(watch.all_held().is_empty() && watch.all_listed().is_empty());
}

/// The drop would be somebody else's.
#[tokio::test]
async fn what_has_to_wait_for_what_has_its_name_in_atlas_is_not_passed_over() {
    let scene = made_and_dropped(true).await;

    assert_eq!((scene.atlas.changes(), scene.waiting()), (vec!["create"], 3));
    assert_eq!(scene.worker.watch.all_held(), [orders()].into());
}

#[tokio::test]
async fn documents_that_have_to_wait_are_passed_over_where_their_collection_is_dropped_behind_them()
{
    let drop = SchemaChange::Drop { ns: orders() };
    let scene = Scene::new().queued([insert(1, 1), insert(2, 1)]);
    let held = SinkError::Held("a database in other capitals".to_owned());
    scene.atlas.fails_with(held);

    let scene = scene.drained().await;
    assert_eq!((scene.waiting(), scene.worker.watch.all_listed().len()), (2, 1));
    let scene = scene.queued([schema(drop)]);
    scene.until_nothing_waits().await;

    assert_eq!((scene.atlas.changes(), scene.atlas.documents()), (vec!["drop"], vec![]));
    assert!(scene.worker.watch.all_listed().is_empty(), "nothing waits for a person");
}

/// What it would do is not done by what comes behind it.
#[tokio::test]
async fn a_drop_that_has_to_wait_is_not_passed_over_for_another_one_behind_it() {
    let drop = || schema(SchemaChange::Drop { ns: orders() });
    let create = SchemaChange::Create { ns: orders(), options: RawDocumentBuf::new() };
    let scene = Scene::new().queued([drop(), schema(create), drop()]);
    scene.atlas.answers_a_change_with(Err(SinkError::Held("a view needs it".to_owned())));

    let scene = scene.drained().await;

    assert_eq!((scene.atlas.changes(), scene.waiting()), (vec!["drop"], 3));
}

/// The drop would be somebody else's.
#[tokio::test]
async fn documents_that_have_to_wait_for_what_has_their_name_in_atlas_are_not_passed_over() {
    let drop = SchemaChange::Drop { ns: orders() };
    let scene = Scene::new().queued([insert(1, 1), schema(drop)]);
    scene.atlas.fails_with(SinkError::Held("a time series has the name".to_owned()));
    scene.atlas.has_something_else_there(true);

    let scene = scene.drained().await;

    assert_eq!((scene.atlas.changes(), scene.waiting()), (vec![], 2));
    assert_eq!(scene.worker.watch.all_held(), [orders()].into());
}

/// A document that waits for what is in its way.
async fn one_that_waits() -> Scene {
    let scene = Scene::new().queued([insert(1, 1)]);
    scene.atlas.fails_with(SinkError::Held("a database in other capitals".to_owned()));
    let scene = scene.drained().await;
    let watch = &scene.worker.watch;
    assert_eq!((watch.all_held(), watch.all_listed().len()), ([orders()].into(), 1));
    scene
}

#[tokio::test(start_paused = true)]
async fn documents_that_are_passed_over_wait_for_nobody_though_the_drop_behind_them_is_not_made_yet()
 {
    let drop = SchemaChange::Drop { ns: orders() };
    let scene = one_that_waits().await.queued([schema(drop)]);
    scene.atlas.answers_a_change_with(Err(away()));
    tokio::time::sleep(Duration::from_secs(3)).await;

    let scene = scene.drained().await;

    assert_eq!(scene.waiting(), 1, "the drop");
    let watch = &scene.worker.watch;
    assert!(watch.all_held().is_empty() && watch.all_listed().is_empty());
}

#[tokio::test(start_paused = true)]
async fn documents_whose_way_is_free_again_arrive_and_their_collection_is_looked_at() {
    let scene = one_that_waits().await;
    scene.atlas.fails_with(None);
    tokio::time::sleep(Duration::from_secs(3)).await;

    let scene = scene.drained().await;

    assert_eq!((scene.atlas.documents(), scene.waiting()), (vec![doc(1, 1)], 0));
    let watch = &scene.worker.watch;
    assert!(watch.all_held().is_empty() && watch.all_listed().is_empty());
    assert_eq!(watch.take().namespaces, [orders()].into());
}
