//! What the keeper leaves to others, and what it makes anew.

use super::*;
use crate::model::foreign::Foreign;

/// A collection that a full sync is owed of.
fn owed(scene: &Scene) -> Option<(Reason, Vec<Namespace>)> {
    let owed = SyncState::load(&scene.queue).unwrap()?;
    Some((owed.reason, owed.only.into_iter().collect()))
}

#[tokio::test(start_paused = true)]
async fn an_empty_collection_that_is_another_kind_is_made_anew_once() {
    let scene = scene();
    scene.local.has_capped(&orders());
    scene.atlas.has(&orders(), &[]);
    let wanted = scene.cx.sync_wanted.clone();
    let woken = tokio::spawn(async move { wanted.notified().await });
    scene.kept();

    scene.until(2).await;
    assert_eq!(owed(&scene), Some((Reason::Replaced, vec![orders()])));
    assert!(woken.is_finished(), "it is made at once");
    let id = SyncState::load(&scene.queue).unwrap().unwrap().id;
    assert!(SyncState::complete(&scene.queue, id).unwrap());
    // Atlas has not taken the option then either.
    scene.until(7_200).await;
    assert_eq!((owed(&scene), scene.problems()), (None, 1));
}

/// A capped one holds no more than its buffer; of any other, all that it has is at stake.
#[tokio::test(start_paused = true)]
async fn a_collection_with_documents_is_made_anew_only_as_a_capped_one_and_with_most_of_them() {
    for (is_capped, local, atlas, is_replaced) in
        [(true, 900, 1_000, true), (true, 100, 1_000, false), (false, 1_000, 1_000, false)]
    {
        let scene = scene();
        if is_capped {
            scene.local.has_capped(&orders());
            scene.atlas.has(&orders(), &[]);
        } else {
            scene.local.has(&orders(), &[]);
            scene.atlas.has_capped(&orders());
        }
        scene.local.has_documents(local);
        scene.atlas.has_documents(atlas);
        scene.kept();

        scene.until(60).await;
        assert_eq!(owed(&scene).is_some(), is_replaced, "{is_capped}, {local} of {atlas}");
        assert!(is_replaced || scene.problems() == 1, "and what is not is named");
    }
}

#[tokio::test(start_paused = true)]
async fn an_index_is_not_tightened_while_its_collection_is_copied_or_compared() {
    let prepared = rawdoc! { "v": 2, "key": { "a": 1 }, "name": "a", "prepareUnique": true };
    let scene = scene().orders_with(&[prepared], &[index("a")]);
    SyncState::require(&scene.queue, ClusterTime(1), Reason::FirstCopy).unwrap();
    scene.cx.in_hand.begins("1");
    scene.cx.in_hand.meets(&orders());
    scene.watch.ask(&orders());
    scene.kept();

    scene.until(3_600).await;
    assert_eq!(scene.commands(), [""; 0]);
    scene.cx.in_hand.is_through(&orders(), true);
    scene.until(3_602).await;
    assert_eq!(scene.commands(), ["collMod prepareUnique"]);
}

/// Nobody knows what becomes of it: its name is about to mean something else.
#[tokio::test(start_paused = true)]
async fn a_collection_that_a_change_waits_for_is_left_alone() {
    let scene = scene().orders_with(&[index("a")], &[]);
    let change = SchemaChange::Drop { ns: orders() };
    let work = Work::Schema(change);
    scene
        .queue
        .commit(vec![Incoming { work, cluster_time: ClusterTime(1), wall_ms: now_ms() }], None)
        .unwrap();
    scene.watch.ask(&orders());
    scene.kept();

    scene.until(60).await;
    assert_eq!((scene.tries(), scene.problems()), (vec![], 0));
    assert!(scene.watch.is_building(), "it is still to be looked at");
}

#[tokio::test(start_paused = true)]
async fn while_a_change_waits_of_what_is_gone_locally_everything_is_looked_at_again() {
    let gone = || Namespace::new("shop", "gone");
    for (ns, is_foreign, looks_again) in
        [(gone(), false, true), (gone(), true, false), (orders(), false, false)]
    {
        let scene = scene().orders_with(&[], &[]);
        if is_foreign {
            let names = [ns.clone()].into();
            scene.queue.keep_apart(Foreign { names, ..Foreign::default() });
        }
        let work = Work::Schema(SchemaChange::Create { ns, options: RawDocumentBuf::new() });
        let incoming = Incoming { work, cluster_time: ClusterTime(1), wall_ms: now_ms() };
        scene.queue.commit(vec![incoming], None).unwrap();
        scene.kept();

        scene.until(100).await;

        assert_eq!(scene.looks_at_everything().len() > 1, looks_again);
    }
}

#[tokio::test(start_paused = true)]
async fn a_database_that_only_a_view_is_left_of_is_looked_at_again_for_it_may_be_empty_soon() {
    for (db, looks_again) in [("gone", true), ("shop", false)] {
        let scene = scene().orders_with(&[], &[]);
        scene.atlas.has_view(&Namespace::new(db, "view"));
        scene.kept();

        scene.until(100).await;

        assert_eq!(scene.looks_at_everything().len() > 1, looks_again, "{db}");
    }
}
