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

#[tokio::test]
async fn what_has_to_wait_is_passed_over_where_the_collection_is_dropped_behind_it() {
    let (create, drop) = (
        schema(SchemaChange::Create { ns: orders(), options: RawDocumentBuf::new() }),
        schema(SchemaChange::Drop { ns: orders() }),
    );
    let scene = Scene::new().queued([create, insert(1, 1), drop]);
    let held = SinkError::Held("a database in other capitals".to_owned());
    scene.atlas.fails_with(held.clone());
    scene.atlas.answers_a_change_with(Err(held));

    let scene = scene.drained().await;

    assert_eq!((scene.atlas.changes(), scene.waiting()), (vec!["create", "drop"], 1));
    assert!(scene.atlas.documents().is_empty());
}
