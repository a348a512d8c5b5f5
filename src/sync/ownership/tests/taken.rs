//! Which target an agent takes at its start, and what follows from that.

use super::*;
use crate::{
    gate::lease::BootTime,
    side::{Looks, records::STALE_AFTER},
};

#[tokio::test(start_paused = true)]
async fn an_empty_target_is_taken_and_everything_is_owed() {
    let scene = scene();

    scene.start("1").await.unwrap();

    assert_eq!(scene.holder().as_deref(), Some("1"));
    assert_eq!(scene.owes(), Some(Reason::NewTarget));
    assert!(scene.may_write());
    assert_eq!(scene.noted(note::LEASE_ID), scene.lease_id().map(String::into_bytes));
    assert_eq!(scene.noted(note::LIVES).unwrap(), br#"["1"]"#);
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_starts_again_goes_on_with_its_lease_and_compares_nothing() {
    let scene = scene();
    scene.start("1").await.unwrap();
    scene.has_caught_up();
    let before = scene.lease_id();

    scene.start("2").await.unwrap();

    assert_eq!((scene.lease_id(), scene.holder().as_deref()), (before, Some("2")));
    assert_eq!(scene.owes(), None);
    assert_eq!(scene.noted(note::LIVES).unwrap(), br#"["2"]"#);
}

#[tokio::test(start_paused = true)]
async fn what_nobody_has_marked_and_holds_data_is_not_taken_unless_it_is_adopted() {
    let scene = scene().atlas_holds(&[orders()]);

    let problem = said(scene.start("1").await);

    assert!(problem.contains("`shop.orders`") && !problem.contains("state_database"), "{problem}");
    assert!(scene.records.lease(OURS).is_none() && !scene.may_write());
    assert_eq!(scene.owes(), None);
    scene.adopt("2").await.unwrap();
    assert!(scene.may_write() && scene.writing.not_ours().is_empty());
}

#[tokio::test(start_paused = true)]
async fn collections_without_a_document_are_nobodys() {
    let scene = scene().atlas_holds(&[orders()]);
    scene.atlas.has_documents(0);

    scene.start("1").await.unwrap();

    assert!(scene.may_write());
}

#[tokio::test(start_paused = true)]
async fn a_view_holds_something() {
    let scene = scene();
    scene.atlas.has_view(&orders());

    assert!(matches!(scene.start("1").await, Err(SyncError::NotOwned { .. })));
}

#[tokio::test(start_paused = true)]
async fn what_the_lease_does_not_cover_is_kept_apart_and_the_rest_is_replicated() {
    let scene = scene().atlas_holds(&[orders(), items()]);
    scene.records.has(lease_of(OURS, &["shop.orders"]));

    scene.start("1").await.unwrap();

    assert!(scene.may_write());
    assert!(scene.writing.not_ours().keys().eq([&items()]));
    assert!(scene.queue.kept_apart().has(&items()) && !scene.queue.kept_apart().has(&orders()));
    let lease = scene.records.lease(OURS).unwrap();
    assert!(lease.refused.iter().eq([&items()]) && !lease.owns(&items()) && lease.owns(&orders()));

    // It is made free, which nobody has compared since.
    scene.has_caught_up();
    scene.adopt("2").await.unwrap();
    assert!(scene.queue.kept_apart().is_empty() && scene.writing.not_ours().is_empty());
    assert_eq!(scene.owes(), Some(Reason::NewTarget));
}

#[tokio::test(start_paused = true)]
async fn another_agent_of_the_source_is_left_alone_until_a_person_says_otherwise() {
    let scene = scene();
    scene.records.has(lease_of(OURS, PATTERNS));
    scene.records.is_taken_by(OURS, agent("they", "theirs"));

    let fresh = scene.adopt("1").await;
    assert!(matches!(fresh, Err(SyncError::LeaseHeld { is_fresh: true, .. })));
    tokio::time::sleep(STALE_AFTER).await;
    let stale = scene.start("1").await;
    assert!(matches!(stale, Err(SyncError::LeaseHeld { is_fresh: false, .. })), "{stale:?}");
    assert_eq!(scene.holder().as_deref(), Some("theirs"));

    scene.adopt("1").await.unwrap();
    assert_eq!(scene.holder().as_deref(), Some("1"));
}

#[tokio::test(start_paused = true)]
async fn whoever_alone_may_read_the_source_takes_the_lease_of_another_at_once() {
    let scene = scene();
    scene.records.has(lease_of(OURS, PATTERNS));
    scene.records.is_taken_by(OURS, agent("they", "theirs"));
    scene.writing.lease().source_renewed(BootTime::now());

    scene.start("1").await.unwrap();

    assert_eq!(scene.holder().as_deref(), Some("1"));
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_was_released_is_free_for_any_agent_of_the_source() {
    let scene = scene();
    let (them, filter) = (agent("they", "theirs"), filter(PATTERNS));
    scene.records.has(lease_of(OURS, PATTERNS));
    scene.records.is_taken_by(OURS, them.clone());
    let lease = scene.writing.lease();
    let (atlas, source_id) = (&*scene.atlas, OURS);
    let client = LeaseClient { atlas, filter: &filter, source_id, agent: &them, lease };

    client.release().await.unwrap();

    assert_eq!(scene.holder(), None);
    scene.start("1").await.unwrap();
    assert_eq!(scene.holder().as_deref(), Some("1"));
}

#[tokio::test(start_paused = true)]
async fn a_machine_that_was_started_again_waits_a_minute_for_its_clone() {
    let scene = scene();
    scene.records.has(lease_of(OURS, PATTERNS));
    scene.records.is_taken_by(OURS, agent("we", "before"));
    let started = clock::now();

    scene.start("1").await.unwrap();

    assert!(clock::since(started) >= STALE_AFTER);
}

#[tokio::test(start_paused = true)]
async fn a_clone_that_goes_on_with_its_heartbeat_keeps_the_lease() {
    let scene = scene();
    scene.records.has(lease_of(OURS, PATTERNS));
    let records = scene.records.clone();
    let clone = tokio::spawn(async move {
        loop {
            records.is_taken_by(OURS, agent("we", "the clone"));
            tokio::time::sleep(SECOND * 10).await;
        }
    });
    tokio::time::sleep(SECOND).await;

    let refused = scene.start("1").await;

    assert!(matches!(refused, Err(SyncError::LeaseHeld { is_fresh: true, .. })), "{refused:?}");
    clone.abort();
}

#[tokio::test(start_paused = true)]
async fn of_two_that_take_a_lease_at_once_one_has_it() {
    let scene = scene();
    scene.records.has(lease_of(OURS, PATTERNS));
    let records = scene.records.clone();
    scene.records.while_it_is_set(move || records.is_taken_by(OURS, agent("they", "theirs")));

    let refused = scene.start("1").await;

    assert!(matches!(refused, Err(SyncError::LeaseHeld { .. })), "{refused:?}");
    assert!(scene.holder().as_deref() == Some("theirs") && !scene.may_write());
}

#[tokio::test(start_paused = true)]
async fn sources_whose_patterns_meet_do_not_write_to_one_target() {
    let scene = scene();
    scene.records.has(lease_of("theirs", &["*.orders"]));
    scene.records.has(lease_of("far", &["crm.*"]));
    scene.records.is_taken_by("theirs", agent("they", "theirs"));

    let problem = said(scene.adopt("1").await);
    assert!(problem.contains("`theirs`, whose agent runs on host `host`"), "{problem}");
    assert!(problem.contains("its pattern `*.orders` and ours, `shop.*`"), "{problem}");
    tokio::time::sleep(STALE_AFTER).await;
    assert!(matches!(scene.start("1").await, Err(SyncError::Overlap { .. })));
    assert_eq!(scene.records.all("outrigger").len(), 2);

    scene.adopt("1").await.unwrap();
    assert!(scene.records.lease("theirs").is_none(), "an adopted target is one source's");
    assert!(scene.records.lease("far").is_some());
}

#[tokio::test(start_paused = true)]
async fn a_lease_in_another_database_is_told_of_and_goes_with_an_adoption() {
    let scene = scene().atlas_holds(&[orders()]);
    scene.records.has_in("before", lease_of(OURS, PATTERNS));

    let problem = said(scene.start("1").await);
    assert!(
        problem.contains("`before.replicas`") && problem.contains("`outrigger` now"),
        "{problem}"
    );

    scene.adopt("1").await.unwrap();
    assert!(scene.records.all("before").is_empty() && scene.may_write());
}

#[tokio::test(start_paused = true)]
async fn agents_that_keep_their_leases_in_another_database_count_while_they_run() {
    for source in [OURS, "theirs"] {
        let scene = scene();
        scene.records.has_in("before", lease_of(source, PATTERNS));
        scene.records.is_taken_by(source, agent("they", "theirs"));

        assert!(scene.adopt("1").await.unwrap_err().is_of_ownership(), "{source}");
        tokio::time::sleep(STALE_AFTER).await;
        scene.start("1").await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn one_database_at_both_ends_is_refused() {
    let scene = scene();
    for side in [&scene.local, &scene.atlas] {
        side.looks_like(Looks { set_id: Some("one".to_owned()), ..Looks::default() });
    }

    assert!(matches!(scene.adopt("1").await, Err(SyncError::SameDatabase(_))));
    assert!(!scene.may_write());
}

#[tokio::test(start_paused = true)]
async fn a_local_database_that_is_a_copy_of_the_target_is_refused_even_where_it_is_adopted() {
    let scene = scene();
    scene.atlas.looks_like(Looks { set_id: Some("theirs".to_owned()), ..Looks::default() });
    scene.upstream.has(lease_of("theirs", PATTERNS));

    let problem = said(scene.adopt("1").await);

    assert!(problem.contains("its `outrigger.replicas` carries the mark of `theirs`"), "{problem}");
    assert!(!scene.may_write() && scene.records.lease(OURS).is_none());
}

#[tokio::test(start_paused = true)]
async fn a_chain_is_passed_on_in_the_lease() {
    let scene = scene();
    let mut first = lease_of("first", PATTERNS);
    first.upstream = vec!["farther".to_owned()];
    scene.upstream.has(first);

    scene.start("1").await.unwrap();

    assert_eq!(scene.records.lease(OURS).unwrap().upstream, ["farther", "first"]);
}

#[tokio::test(start_paused = true)]
async fn local_marks_that_may_not_be_read_keep_nobody_from_starting() {
    let scene = scene();
    scene.upstream.is_denied(true);

    scene.start("1").await.unwrap();

    assert!(scene.may_write());
}

#[tokio::test(start_paused = true)]
async fn a_target_that_is_away_is_waited_for_and_an_agent_that_is_told_to_stop_does_not_wait() {
    let scene = scene();
    scene.records.is_away(true);
    let (records, stop) = (scene.records.clone(), scene.stop.clone());
    tokio::spawn(async move {
        tokio::time::sleep(SECOND * 300).await;
        records.is_away(false);
    });

    scene.start("1").await.unwrap();
    assert!(scene.may_write());

    scene.records.is_away(true);
    tokio::spawn(async move {
        tokio::time::sleep(SECOND * 300).await;
        stop.drain.cancel();
    });
    assert!(matches!(scene.start("2").await, Err(SyncError::Stopped)));
    let lives = scene.noted(note::LIVES).unwrap();
    assert_eq!(lives, br#"["1","2"]"#, "either may have the lease, for all that is known");
}

#[tokio::test(start_paused = true)]
async fn a_target_without_records_is_given_everything_once_by_each_queue() {
    let (local, atlas) = (Arc::new(FakeSchemas::at(NOW)), Arc::new(FakeSchemas::at(NOW)));
    let scene = scene_between(local, atlas, Arc::default(), Arc::default());

    scene.start("1").await.unwrap();
    assert_eq!(scene.owes(), Some(Reason::NewTarget));
    scene.has_caught_up();
    scene.start("2").await.unwrap();

    assert_eq!(scene.owes(), None);
    assert!(scene.may_write());
    let mut keeping =
        std::pin::pin!(async { scene.ownership(life("2"), false).keep(&scene.stop).await });
    assert!(tokio::time::timeout(SECOND * 60, &mut keeping).await.is_err(), "it has no end");
}

/// Of this machine and this start of it: whether the agent that has the lease runs is known at once.
#[tokio::test(start_paused = true)]
async fn the_last_life_on_this_machine_has_the_lease_as_long_as_its_process_runs() {
    let dir = TempDir::new().unwrap();
    let ours = std::fs::read_to_string("/proc/self/comm").unwrap();
    // It is written by another process, for it is to be run at once.
    let called = |name: &str| {
        let program = dir.path().join(name.trim());
        let copied = std::process::Command::new("cp").arg("/bin/sleep").arg(&program).status();
        assert!(copied.unwrap().success());
        std::process::Command::new(program).arg("600").spawn().unwrap()
    };
    for (name, holds) in [(&*ours, true), ("another", false)] {
        let mut process = called(name);
        let (scene, pid) = (scene(), process.id());
        scene.records.has(lease_of(OURS, PATTERNS));
        scene.records.is_taken_by(OURS, AgentIdentity { pid, ..life("0") });
        let began = clock::now();

        let started = scene.start("1").await;
        // Before anything is judged, so that it is not left behind.
        process.kill().unwrap();
        process.wait().unwrap();
        let is_held = matches!(started, Err(SyncError::LeaseHeld { is_fresh: true, .. }));
        assert_eq!(is_held, holds, "{name}: {started:?}");
        scene.start("2").await.unwrap();

        assert_eq!(scene.holder().as_deref(), Some("2"));
        assert!(clock::since(began) < SECOND, "nobody waits for a heartbeat");
    }
    let scene = scene();
    scene.records.has(lease_of(OURS, PATTERNS));
    let pid = std::process::id();
    scene.records.is_taken_by(OURS, AgentIdentity { pid, ..life("0") });
    scene.start("1").await.expect("this process itself is none that is in its way");
}
