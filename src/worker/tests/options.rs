//! Options and indexes, and collections that nobody tells of: what the worker makes of them when it is their turn.

use super::*;
use crate::schema::{Claim, Description, Kind};

fn described(kind: Kind, indexes: &[&str]) -> Description {
    let indexes = indexes.iter().map(|name| crate::side::fake_schema::index(name)).collect();
    let options = RawDocumentBuf::new();
    Description { kind, claim: Claim::Whole, id: Some(HERE), options, indexes }
}

fn collection(indexes: &[&str]) -> Description {
    described(Kind::Collection, indexes)
}

fn reconcile(collection: CollectionId) -> Incoming {
    schema(SchemaChange::Reconcile { ns: orders(), collection: Some(collection) })
}

impl Scene {
    /// The collections whose options are to be looked at beside the data.
    fn asked(&self) -> Vec<Namespace> {
        self.worker.watch.take().namespaces.into_iter().collect()
    }

    /// Why something is to be compared.
    fn owed(&self) -> Option<crate::sync::state::Reason> {
        SyncState::load(&self.queue).unwrap().map(|owed| owed.reason)
    }
}

#[tokio::test]
async fn an_index_is_built_at_once_where_there_is_no_document_and_else_left_to_who_has_time() {
    for (documents, built, asked) in [(0, 1, 0), (1, 0, 1)] {
        let scene = Scene::new().queued([reconcile(HERE)]);
        scene.local.is_described(collection(&["a"]));
        scene.atlas.is_described(collection(&[]));
        (0..documents).for_each(|id| scene.atlas.has(doc(id, 1)));

        let scene = scene.drained().await;

        assert_eq!(scene.atlas.altered(), vec!["createIndexes"; built]);
        assert_eq!((scene.asked().len(), scene.waiting(), scene.owed()), (asked, 0, None));
    }
}

#[tokio::test]
async fn a_collection_that_is_missing_is_made_and_its_indexes_with_it() {
    let scene = Scene::new().queued([reconcile(HERE)]);
    scene.local.is_described(collection(&["a"]));

    let scene = scene.drained().await;

    assert_eq!((scene.atlas.changes(), scene.atlas.altered().len()), (vec!["create"], 1));
    assert_eq!((scene.asked().len(), scene.owed()), (0, None));
}

#[tokio::test]
async fn what_has_the_name_by_now_is_not_what_the_change_was_of() {
    let scene = Scene::new().queued([reconcile(CollectionId([2; 16]))]);
    scene.local.is_described(collection(&["a"]));
    scene.atlas.is_described(collection(&[]));

    let scene = scene.drained().await;

    assert_eq!((scene.atlas.altered().len(), scene.asked().len(), scene.waiting()), (0, 0, 0));
}

#[tokio::test]
async fn options_that_cannot_be_asked_for_keep_nothing_back_and_are_looked_at_later() {
    let scene = Scene::new().queued([reconcile(HERE), insert(1, 1)]);
    scene.local.is_away(true);

    let scene = scene.drained().await;

    assert_eq!((scene.atlas.documents(), scene.waiting()), (vec![doc(1, 1)], 0));
    assert_eq!(scene.asked(), [orders()]);
}

#[tokio::test]
async fn a_collection_takes_the_place_of_a_view_and_is_compared() {
    let scene = Scene::new().queued([reconcile(HERE)]);
    scene.local.is_described(collection(&[]));
    scene.atlas.is_described(described(Kind::View, &[]));

    let scene = scene.drained().await;

    assert_eq!(scene.owed(), Some(crate::sync::state::Reason::Replaced));
    assert_eq!(scene.waiting(), 0);
}

#[tokio::test]
async fn documents_that_find_a_view_in_their_place_have_the_collection_made_and_are_written() {
    let scene = Scene::new().queued([insert(1, 1)]);
    scene.local.is_described(collection(&[]));
    scene.atlas.is_described(described(Kind::View, &[]));
    scene.atlas.fails_with(SinkError::Held("a view has the name".to_owned()));

    let scene = scene.drained().await;

    assert_eq!((scene.atlas.changes(), scene.atlas.documents()), (vec!["create"], vec![doc(1, 1)]));
    assert_eq!(scene.owed(), Some(crate::sync::state::Reason::Replaced));
    assert_eq!(scene.asked(), [orders()]);
}

#[tokio::test]
async fn documents_whose_collection_atlas_has_lost_have_it_made_and_compared() {
    let scene = Scene::new().queued([insert(1, 1)]);
    scene.atlas.fails_with(SinkError::Gone("no such table".to_owned()));

    let scene = scene.drained().await;

    assert_eq!((scene.atlas.changes(), scene.atlas.documents()), (vec!["create"], vec![doc(1, 1)]));
    assert_eq!(scene.owed(), Some(crate::sync::state::Reason::Gone));
}

/// A time series takes some documents and not others.
#[tokio::test]
async fn a_document_that_is_refused_by_something_else_of_its_name_waits_and_loses_no_attempt() {
    for (is_there, retries, waits_for_a_person) in [(true, 0, 1), (false, 1, 0)] {
        let schedule = RetrySchedule::new(vec![Duration::from_secs(60)], 2);
        let scene = Scene::with(WorkerOptions { retries: schedule, ..Scene::options() });
        let scene = scene.queued([insert(1, 1)]);
        scene.atlas.refuses_commands_with(1);
        scene.atlas.has_something_else_there(is_there);

        let scene = scene.drained().await;

        assert_eq!((scene.waiting(), scene.status.metrics.retries.get()), (1, retries));
        assert_eq!(scene.worker.watch.all_held().len(), waits_for_a_person);
    }
}

#[tokio::test]
async fn a_change_that_atlas_made_otherwise_has_its_options_looked_at() {
    for (changed, asked) in [(Changed::Differs, vec![orders()]), (Changed::Done, vec![])] {
        let options = RawDocumentBuf::new();
        let create = schema(SchemaChange::Create { ns: orders(), options });
        let scene = Scene::new().queued([create]);
        scene.atlas.answers_a_change_with(Ok(changed));

        assert_eq!(scene.drained().await.asked(), asked);
    }
}

#[tokio::test]
async fn where_nobody_tells_that_a_collection_is_made_it_is_made_before_its_first_document_once() {
    let scene = Scene::new().queued([insert(1, 1)]);
    scene.local.tells_nothing_of_schema();
    scene.local.is_described(collection(&[]));

    let scene = scene.drained().await.queued([insert(2, 1)]).drained().await;
    assert_eq!(scene.atlas.changes(), ["create"]);
    assert_eq!(scene.atlas.documents(), [doc(1, 1), doc(2, 1)]);

    let drop = schema(SchemaChange::Drop { ns: orders() });
    let scene = scene.queued([drop]).drained().await.queued([insert(3, 1)]).drained().await;
    assert_eq!(scene.atlas.changes(), ["create", "drop", "create"]);
}

#[tokio::test]
async fn where_nobody_tells_that_a_collection_is_made_one_of_which_the_drop_alone_is_known_is_made()
{
    let drop = schema(SchemaChange::Drop { ns: orders() });
    let scene = Scene::new().queued([drop, insert(1, 1)]);
    scene.local.tells_nothing_of_schema();
    scene.local.is_described(collection(&[]));

    let scene = scene.drained().await;

    assert_eq!(scene.atlas.changes(), ["drop", "create"]);
    assert_eq!(scene.atlas.documents(), [doc(1, 1)]);
}

#[tokio::test]
async fn where_nobody_tells_that_a_collection_is_made_one_that_is_there_is_not_made_again() {
    let scene = Scene::new().queued([insert(1, 1)]);
    scene.local.tells_nothing_of_schema();
    scene.local.is_away(true);
    scene.atlas.is_described(collection(&[]));

    let scene = scene.drained().await;

    assert_eq!((scene.atlas.changes(), scene.atlas.documents()), (vec![], vec![doc(1, 1)]));
}

/// The write itself would make it, without its options.
#[tokio::test]
async fn where_nobody_tells_that_a_collection_is_made_its_documents_wait_for_the_local_database() {
    let scene = Scene::new().queued([insert(1, 1)]);
    scene.local.tells_nothing_of_schema();
    scene.local.is_away(true);

    let scene = scene.drained().await;

    assert_eq!((scene.atlas.documents(), scene.waiting()), (vec![], 1));
}

fn drop_if_gone() -> Incoming {
    schema(SchemaChange::DropIfGone { ns: orders() })
}

#[tokio::test(start_paused = true)]
async fn a_collection_that_atlas_alone_has_goes_when_the_stream_has_told_of_all_before() {
    let scene = Scene::new().queued([drop_if_gone()]);
    scene.atlas.is_described(collection(&[]));

    let scene = scene.drained().await;
    assert!(scene.reading.is_wanted());
    tokio::time::sleep(Duration::from_secs(1)).await;
    let scene = scene.drained().await;
    assert_eq!((scene.atlas.changes(), scene.waiting()), (vec![], 1));

    scene.reading.end_reply(ClusterTime(50), ClusterTime(50));
    tokio::time::sleep(Duration::from_secs(1)).await;
    let scene = scene.drained().await;
    assert_eq!((scene.atlas.changes(), scene.waiting()), (vec!["drop"], 0));
}

#[tokio::test(start_paused = true)]
async fn a_collection_that_is_here_after_all_stays_and_one_whose_name_a_view_has_goes() {
    use Kind::{Collection, View};
    for (here, there, goes) in
        [(Collection, Collection, false), (View, Collection, true), (View, View, false)]
    {
        let scene = Scene::new().queued([drop_if_gone()]);
        scene.local.is_described(described(here, &[]));
        scene.atlas.is_described(described(there, &[]));
        scene.reading.end_reply(ClusterTime(50), ClusterTime(50));

        scene.until_nothing_waits().await;

        assert_eq!(scene.atlas.changes().len(), usize::from(goes), "{here:?} and {there:?}");
    }
}

/// After so long it may have been made all the same.
#[tokio::test(start_paused = true)]
async fn a_change_of_a_collection_without_an_answer_has_it_compared_behind_the_next_one() {
    let drop = schema(SchemaChange::Drop { ns: orders() });
    let scene = Scene::new().queued([drop]);
    scene.atlas.answers_a_change_with(Err(SinkError::Unanswered("no answer".to_owned())));
    let entries = scene.queue.lease(1, usize::MAX, now_ms()).unwrap().entries;
    scene.worker.write(entries, crate::policy::breaker::Admission::Proceed).await.unwrap();
    scene.atlas.answers_a_change_with(Ok(Changed::Done));
    scene.until_nothing_waits().await;
    assert_eq!(scene.owed(), None);

    tokio::time::sleep(Duration::from_secs(11)).await;
    scene.drain().await;

    assert_eq!(scene.owed(), Some(crate::sync::state::Reason::Unanswered));
}

/// Nobody but the stream tells of it, and it may be that it was made before the process ended.
#[tokio::test]
async fn a_rename_that_an_earlier_run_may_have_made_leaves_what_has_its_name() {
    let scene = Scene::new().queued([Incoming { cluster_time: ClusterTime(FLOOR), ..rename() }]);
    scene.local.tells_nothing_of_schema();
    scene.atlas.answers_a_change_with(Ok(Changed::WasNotThere));

    let scene = scene.drained().await;

    assert_eq!(scene.atlas.changes(), ["rename"]);
    assert_eq!(scene.owed(), Some(crate::sync::state::Reason::Renamed));
}

#[tokio::test]
async fn a_change_that_atlas_does_not_make_is_given_up_in_the_end_and_its_collection_compared() {
    let scene = Scene::new().queued([schema(SchemaChange::Drop { ns: orders() }), insert(1, 1)]);
    scene.atlas.answers_a_change_with(Err(SinkError::Rejected("not allowed".to_owned())));

    scene.until_nothing_waits().await;

    assert_eq!(
        (scene.atlas.changes(), scene.atlas.documents()),
        (vec!["drop"; 3], vec![doc(1, 1)])
    );
    assert_eq!(scene.queue.dead_letters_len(), 1);
    assert_eq!(scene.owed(), Some(crate::sync::state::Reason::SchemaGivenUp));
    assert!(scene.worker.watch.all_listed().is_empty());
}

#[tokio::test]
async fn a_change_that_atlas_makes_or_puts_off_is_an_answer_of_it() {
    for answer in [Ok(Changed::Done), Err(SinkError::Held("a view needs it".to_owned()))] {
        let scene = Scene::new().queued([schema(SchemaChange::Drop { ns: orders() })]);
        scene.atlas.answers_a_change_with(answer);

        assert_eq!(scene.drained().await.status.metrics.batches.get(), 1);
    }
}

/// To count a view is to run it.
#[tokio::test]
async fn documents_are_counted_for_what_reads_them_and_in_a_collection() {
    let validated = Description {
        options: rawdoc! { "validator": { "a": 1 } },
        ..described(Kind::Collection, &[])
    };
    for (wanted, there, altered, counts) in [
        (validated, Kind::Collection, "collMod", 0),
        (collection(&["a"]), Kind::View, "createIndexes", 0),
    ] {
        let scene = Scene::new().atlas_has([doc(1, 1)]).queued([reconcile(HERE)]);
        scene.local.is_described(wanted);
        scene.atlas.is_described(described(there, &[]));

        let scene = scene.drained().await;

        assert_eq!((scene.atlas.altered(), scene.atlas.counts()), (vec![altered.into()], counts));
    }
}

#[tokio::test]
async fn an_index_becomes_unique_where_there_is_no_document_and_is_prepared_behind_all_of_them() {
    let unique = || crate::side::fake_schema::unique("a");
    let prepared = || {
        let mut spec = crate::side::fake_schema::index("a");
        spec.append(bson::cstr!("prepareUnique"), true);
        spec
    };
    for (wanted, documents, altered, asked) in
        [(unique(), 0, 2, 0), (unique(), 1, 0, 1), (prepared(), 0, 0, 1), (prepared(), 1, 0, 1)]
    {
        let scene = Scene::new().queued([reconcile(HERE)]);
        scene.local.is_described(Description { indexes: vec![wanted], ..collection(&[]) });
        scene.atlas.is_described(collection(&["a"]));
        (0..documents).for_each(|id| scene.atlas.has(doc(id, 1)));

        let scene = scene.drained().await;

        assert_eq!(
            (scene.atlas.altered(), scene.asked().len()),
            (vec!["collMod".to_owned(); altered], asked)
        );
    }
}
