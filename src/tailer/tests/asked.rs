//! What the tailer asks of others beside the queue, and what it shows of the local database.

use super::{
    hours::{ALL, SECOND, checkpoint_at, nothing, scene},
    *,
};
use crate::{
    model::event::SchemaChange,
    mongo::MongoError,
    source::{Cause, fake::away},
};

fn orders() -> Namespace {
    Namespace::new("shop", "orders")
}

/// A batch of one change of a collection.
fn change(n: u64, change: SchemaChange) -> EventBatch {
    let cluster_time = ClusterTime(n);
    let change = Change::Schema(change);
    let event = ChangeEvent { cluster_time, wall_ms: n, collection: None, change };
    EventBatch { events: vec![event], ..batch(n) }
}

fn going_on() -> FakeSource {
    FakeSource { goes_on: true, ..FakeSource::default() }
}

#[tokio::test(start_paused = true)]
async fn after_an_outage_the_next_one_is_waited_for_in_short_steps_again() {
    let scene = scene(FakeSource::default(), ALL);
    scene.at_work();

    scene.until(3_600).await;
    let before = scene.opened().len();
    // That a stream was opened is no sign yet that it goes on.
    scene.has([batch(1), batch(2), batch(3)]);
    scene.until(3_640).await;
    let opened: Vec<_> = scene.opened().into_iter().map(|(at, _)| at).collect();
    let waits: Vec<_> = opened[before..].windows(2).map(|two| two[1] - two[0]).collect();
    assert!(waits.len() > 3 && waits[..3].iter().all(|wait| *wait <= 2), "{waits:?}");
}

#[tokio::test(start_paused = true)]
async fn what_is_wrong_with_the_database_is_shown_for_as_long_as_it_is() {
    let scene = scene(going_on(), ALL);
    let fault = || scene.tailer.status.faults.local.get();
    let is_denied = || fault().map(|fault| fault.is_denied);
    scene.refuses(Some(Box::new(|_| Some(away()))));
    scene.at_work();

    scene.until(10).await;
    assert_eq!(is_denied(), Some(false));
    assert!(fault().is_some_and(|fault| fault.error.contains("nothing more is told")));
    let denied = || SourceError::Denied {
        advice: "grant it".to_owned(),
        source: Cause::Other("no privilege".to_owned()),
    };
    scene.refuses(Some(Box::new(move |_| Some(denied()))));
    scene.until(60).await;
    assert_eq!(is_denied(), Some(true), "and that a person must act");
    scene.refuses(None);
    scene.has([batch(1)]);
    scene.until(120).await;
    assert_eq!((scene.checkpoint(), is_denied()), (1, None));
}

/// Else what waits for the stream would wait for as long as the database is away.
#[tokio::test(start_paused = true)]
async fn nothing_waits_for_a_stream_that_has_been_interrupted_for_a_while() {
    let scene = scene(FakeSource::default(), ALL);
    scene.queue.commit(Vec::new(), Some(&checkpoint_at(1))).unwrap();
    scene.has([batch(2)]);
    scene.queue.wait_for_stream(&orders(), ClusterTime(99));
    scene.at_work();
    let ready = || scene.queue.lease(1, 1 << 20, now_ms()).unwrap().entries.len();

    scene.until(15).await;
    assert_eq!((scene.queue.pending().0, ready()), (1, 0));
    scene.until(60).await;
    assert_eq!(ready(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_checkpoint_is_anchored_in_the_last_entry_that_is_known_to_have_been_there() {
    let scene = scene(going_on(), ALL);
    let kept = || {
        let kept = scene.queue.checkpoint().unwrap().unwrap();
        (kept.cluster_time, kept.anchor)
    };
    scene.has([batch(3)]);
    scene.at_work();

    scene.until(10).await;
    assert_eq!(kept(), (ClusterTime(3), ClusterTime(3)));
    // Its oplog may not be read, and no event came with it.
    scene.has([nothing(9)]);
    scene.until(20).await;
    assert_eq!(kept(), (ClusterTime(9), ClusterTime(3)));
}

#[tokio::test(start_paused = true)]
async fn a_rename_while_everything_is_compared_has_both_names_looked_at_again() {
    let scene = scene(going_on(), ALL);
    scene.queue.commit(Vec::new(), Some(&checkpoint_at(1))).unwrap();
    SyncState::require(&scene.queue, ClusterTime(1), Reason::FirstCopy).unwrap();
    let to = Namespace::new("shop", "next");
    scene.has([
        batch(2),
        change(3, SchemaChange::Rename { from: orders(), to: to.clone(), drop_target: false }),
    ]);
    scene.at_work();

    scene.until(1).await;
    let open = SyncState::load(&scene.queue).unwrap().unwrap();
    assert_eq!((scene.checkpoint(), open.again), (3, BTreeSet::from([orders(), to])));
}

#[tokio::test(start_paused = true)]
async fn what_the_stream_alone_cannot_tell_of_is_compared_and_nothing_else() {
    let scene = scene(going_on(), ALL);
    scene.queue.commit(Vec::new(), Some(&checkpoint_at(1))).unwrap();
    scene.has([batch(2), change(3, SchemaChange::Drop { ns: orders() })]);
    scene.at_work();

    scene.until(1).await;
    assert_eq!((scene.checkpoint(), SyncState::load(&scene.queue).unwrap()), (3, None));
    let options = rawdoc! { "capped": true, "size": 4_096 };
    scene.has([change(4, SchemaChange::Create { ns: orders(), options })]);
    scene.until(2).await;
    let open = SyncState::load(&scene.queue).unwrap().unwrap();
    assert_eq!((open.reason, open.only), (Reason::Replaced, BTreeSet::from([orders()])));
    tokio::time::timeout(PATIENCE, scene.tailer.compare.notified()).await.expect("it is told of");
}

fn silent(from: &StartFrom) -> Option<SourceError> {
    let silent = || SourceError::Unavailable(MongoError::Silent(SECOND).into());
    (*from == StartFrom::Token(batch(1).token)).then(silent)
}

/// A server that is overloaded would else be given three minutes more with each start of the agent.
#[tokio::test(start_paused = true)]
async fn for_how_long_a_position_has_failed_is_known_to_the_next_start() {
    let scene = scene(going_on(), ALL);
    scene.queue.commit(Vec::new(), Some(&checkpoint_at(1))).unwrap();
    scene.refuses(Some(Box::new(silent)));
    scene.has([nothing(7)]);
    let run = scene.at_work();

    scene.until(100).await;
    run.abort();
    let _ = run.await;
    scene.at_work();
    scene.until(170).await;
    assert_eq!((scene.checkpoint(), scene.owed()), (1, None));
    scene.until(205).await;
    assert_eq!((scene.checkpoint(), scene.owed()), (7, Some(Reason::Unshowable)));
}

#[tokio::test(start_paused = true)]
async fn an_outage_in_between_makes_the_three_minutes_of_a_position_begin_anew() {
    let scene = scene(going_on(), ALL);
    scene.queue.commit(Vec::new(), Some(&checkpoint_at(1))).unwrap();
    scene.refuses(Some(Box::new(silent)));
    scene.has([nothing(7)]);
    scene.at_work();

    scene.until(100).await;
    scene.refuses(Some(Box::new(|_| Some(away()))));
    scene.until(130).await;
    scene.refuses(Some(Box::new(silent)));
    scene.until(290).await;
    assert_eq!((scene.checkpoint(), scene.owed()), (1, None));
    scene.until(360).await;
    assert_eq!((scene.checkpoint(), scene.owed()), (7, Some(Reason::Unshowable)));
}

#[tokio::test(start_paused = true)]
async fn a_source_that_cannot_be_replicated_from_is_not_waited_for() {
    let scene = scene(going_on(), ALL);
    let unfit = || SourceError::Unfit { problem: "a standalone".to_owned(), hint: String::new() };
    scene.refuses(Some(Box::new(move |_| Some(unfit()))));

    let ended = tokio::time::timeout(PATIENCE, scene.at_work()).await.expect("it ends").unwrap();

    assert!(ended.unwrap_err().to_string().contains("a standalone"));
}
