//! How a lease is kept: its heartbeat, and what happens once it, or what is around it, is not as it was left.

use super::*;
use crate::side::Looks;

const HEARTBEAT: u64 = 10;

impl Scene {
    /// How long ago the lease was renewed.
    fn silent_for(&self) -> Duration {
        let holder = self.records.lease(OURS).and_then(|record| record.holder);
        holder.expect("an agent has it").silent_for
    }

    /// Until so long after `started`, and half a second more.
    async fn beats(&self, started: std::time::Instant, beats: u64) {
        clock::until(started, beats * HEARTBEAT).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_lease_is_renewed_every_ten_seconds_with_the_position_of_the_stream() {
    let (scene, started) = (scene(), clock::now());
    let running = scene.running().await;

    for beat in 1..=3 {
        scene.beats(started, beat).await;
        assert!(scene.silent_for() < SECOND, "{:?} at the beat {beat}", scene.silent_for());
    }

    assert_eq!(scene.records.lease(OURS).unwrap().checkpoint, ClusterTime(NOW));
    let position = NOW.to_be_bytes().to_vec();
    assert_eq!(scene.noted(note::RENEWED), Some(position.clone()));
    assert_eq!(scene.noted(note::RENEWING), Some(position));
    assert!(scene.may_write() && !running.is_finished() && scene.owes().is_none());
}

#[tokio::test(start_paused = true)]
async fn the_position_in_a_lease_never_goes_back() {
    let (scene, started) = (scene(), clock::now());
    let before = (NOW + 7).to_be_bytes();
    scene.queue.set_meta(note::RENEWED, Some(&before)).unwrap();
    let _running = scene.running().await;
    scene.queue.set_meta(note::RENEWED, Some(&before)).unwrap();
    scene.records.change(OURS, |record| record.checkpoint = ClusterTime(NOW + 7));

    scene.beats(started, 1).await;

    assert_eq!(scene.records.lease(OURS).unwrap().checkpoint, ClusterTime(NOW + 7));
    assert!(scene.may_write() && scene.owes().is_none());
}

#[tokio::test(start_paused = true)]
async fn an_agent_whose_lease_was_taken_writes_nothing_and_ends() {
    let (scene, started) = (scene(), clock::now());
    let running = scene.running().await;
    scene.records.is_taken_by(OURS, agent("they", "theirs"));

    scene.beats(started, 1).await;

    assert!(scene.writing.is_fenced() && !scene.may_write());
    let ended = ended(running).await;
    assert!(matches!(ended, Err(SyncError::LeaseHeld { is_fresh: true, .. })), "{ended:?}");
    assert_eq!(scene.holder().as_deref(), Some("theirs"));
}

#[tokio::test(start_paused = true)]
async fn a_life_of_our_own_agent_that_is_heard_of_has_the_lease() {
    let scene = scene();
    let running = scene.running().await;
    scene.records.is_taken_by(OURS, life("2"));

    let ended = ended(running).await;

    assert!(matches!(ended, Err(SyncError::LeaseHeld { .. })), "{ended:?}");
    assert!(scene.writing.is_fenced());
}

#[tokio::test(start_paused = true)]
async fn a_backup_of_the_target_with_an_older_life_of_ours_is_taken_again() {
    let (scene, started) = (scene(), clock::now());
    let running = scene.running().await;
    scene.beats(started, 1).await;
    scene.records.is_taken_by(OURS, life("0"));
    scene.records.is_away(true);
    tokio::time::sleep(SECOND * 61).await;
    scene.records.change(OURS, |record| record.checkpoint = ClusterTime(1));
    scene.records.is_away(false);

    tokio::time::sleep(SECOND * 20).await;

    assert_eq!((scene.holder().as_deref(), scene.owes()), (Some("1"), Some(Reason::PutBack)));
    assert!(scene.may_write() && !running.is_finished());
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_is_gone_is_taken_anew_and_everything_compared_at_once() {
    let (scene, started) = (scene(), clock::now());
    let running = scene.running().await;
    let before = scene.lease_id();
    let wanted = scene.cx.sync_wanted.clone();
    let woken = tokio::spawn(async move { wanted.notified().await });
    scene.records.change(OURS, |record| *record = lease_of("gone", &["crm.*"]));

    scene.beats(started, 1).await;

    assert!(scene.lease_id().is_some() && scene.lease_id() != before);
    assert_eq!(scene.owes(), Some(Reason::NewTarget));
    assert!(woken.is_finished() && scene.may_write() && !running.is_finished());
}

#[tokio::test(start_paused = true)]
async fn a_target_that_was_taken_from_us_in_a_backup_is_not_adopted_by_itself() {
    let scene = scene();
    let ownership = scene.ownership(life("1"), true);
    scene.taken(&ownership).await.unwrap();
    let stop = scene.stop.clone();
    let running = tokio::spawn(async move { ownership.keep(&stop).await });
    scene.records.change(OURS, |record| *record = lease_of("gone", &["crm.*"]));
    let scene = scene.atlas_holds(&[orders()]);

    let ended = ended(running).await;

    assert!(matches!(ended, Err(SyncError::NotOwned { .. })), "{ended:?}");
    assert!(scene.writing.is_fenced(), "nothing is written meanwhile");
}

#[tokio::test(start_paused = true)]
async fn a_fenced_agent_looks_every_other_second_whether_it_may_go_on() {
    let (scene, started) = (scene(), clock::now());
    let _running = scene.running().await;
    scene.writing.lease().end();
    scene.beats(started, 1).await;
    assert!(scene.may_write(), "renewed");
    scene.records.is_away(true);
    scene.writing.lease().end();
    scene.beats(started, 3).await;
    scene.records.is_away(false);

    tokio::time::sleep(SECOND * 3).await;

    assert!(scene.may_write() && scene.owes().is_none());
}

#[tokio::test(start_paused = true)]
async fn a_target_that_says_nothing_is_given_ten_seconds_for_each_heartbeat() {
    let (scene, started) = (scene(), clock::now());
    let running = scene.running().await;
    scene.records.is_silent(true);
    scene.beats(started, 30).await;
    assert_eq!(scene.noted(note::RENEWED), None);
    assert_eq!(scene.noted(note::RENEWING), Some(NOW.to_be_bytes().to_vec()));
    scene.records.is_silent(false);

    scene.beats(started, 33).await;

    assert!(scene.silent_for() <= SECOND * HEARTBEAT as u32);
    assert!(!running.is_finished() && scene.owes().is_none());
}

#[tokio::test(start_paused = true)]
async fn a_local_database_that_becomes_a_copy_of_the_target_ends_the_agent() {
    let scene = scene();
    scene.atlas.looks_like(Looks { set_id: Some("theirs".to_owned()), ..Looks::default() });
    let running = scene.running().await;
    scene.upstream.has(lease_of("theirs", PATTERNS));

    let ended = ended(running).await;

    assert!(matches!(ended, Err(SyncError::Ring { .. })), "{ended:?}");
    assert!(scene.writing.is_fenced());
}

#[tokio::test(start_paused = true)]
async fn marks_in_the_local_database_that_do_not_answer_hold_up_no_heartbeat() {
    for problem in [FakeRecords::is_silent, FakeRecords::is_away, FakeRecords::is_denied] {
        let (scene, started) = (scene(), clock::now());
        scene.upstream.has(lease_of("first", &["crm.*"]));
        let running = scene.running().await;
        problem(&scene.upstream, true);

        scene.beats(started, 4).await;

        assert!(scene.silent_for() < SECOND * 15, "{:?}", scene.silent_for());
        assert_eq!(scene.records.lease(OURS).unwrap().upstream, ["first"], "as it was seen last");
        assert!(!running.is_finished());
    }
}

#[tokio::test(start_paused = true)]
async fn a_source_that_comes_in_between_has_its_collections_and_they_are_compared_once_it_is_gone()
{
    let (scene, started) = (scene(), clock::now());
    scene.local.has(&orders(), &[]);
    scene.local.has_view(&items());
    let _running = scene.running().await;
    scene.records.has(lease_of("theirs", &["shop.o*"]));

    scene.beats(started, 1).await;

    let not_ours = scene.writing.not_ours();
    assert!(not_ours.keys().eq([&orders()]) && not_ours[&orders()].contains("`theirs`"));
    assert!(scene.queue.kept_apart().has(&orders()) && !scene.queue.kept_apart().has(&items()));
    assert!(scene.may_write() && scene.owes().is_none(), "the rest goes on");

    let wanted = scene.cx.sync_wanted.clone();
    let woken = tokio::spawn(async move { wanted.notified().await });
    scene.records.change("theirs", |record| *record = lease_of("theirs", &["crm.*"]));
    scene.beats(started, 2).await;

    assert!(scene.writing.not_ours().is_empty() && !scene.queue.kept_apart().has(&orders()));
    assert_eq!(scene.owes(), Some(Reason::NewTarget), "they may have written to it");
    assert!(woken.is_finished());
}

#[tokio::test(start_paused = true)]
async fn one_that_starts_at_the_same_moment_is_seen_before_anything_is_written() {
    let scene = scene();
    scene.local.has(&orders(), &[]);
    let records = scene.records.clone();
    scene.records.while_it_is_set(move || records.has(lease_of("theirs", PATTERNS)));

    scene.start("1").await.unwrap();

    assert!(scene.queue.kept_apart().has(&orders()));
    assert!(scene.writing.not_ours().contains_key(&orders()));
}

#[tokio::test(start_paused = true)]
async fn the_heartbeat_goes_on_while_what_waits_is_written_and_ends_with_the_lease() {
    let (scene, started) = (scene(), clock::now());
    let ownership = scene.ownership(life("1"), false);
    scene.taken(&ownership).await.unwrap();
    let stop = scene.stop.clone();
    let draining = tokio::spawn(async move { ownership.heartbeat_while_draining(&stop).await });

    scene.beats(started, 2).await;
    assert!(scene.silent_for() >= SECOND * 20, "nobody has told it to stop");
    scene.stop.drain.cancel();
    scene.beats(started, 5).await;
    assert!(scene.silent_for() < SECOND * 11 && !draining.is_finished());
    scene.records.is_taken_by(OURS, agent("they", "theirs"));
    scene.beats(started, 7).await;

    assert!(draining.is_finished());
    ended(draining).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn who_holds_no_lease_has_no_heartbeat() {
    let (scene, started) = (scene(), clock::now());
    scene.records.has(lease_of(OURS, PATTERNS));
    let ownership = scene.ownership(life("1"), false);
    let stop = scene.stop.clone();
    let running = tokio::spawn(async move { ownership.keep(&stop).await });
    scene.beats(started, 3).await;
    assert_eq!((scene.holder(), scene.noted(note::RENEWING)), (None, None));
    assert!(!running.is_finished());

    scene.stop.drain.cancel();
    let (ownership, stop) = (scene.ownership(life("1"), false), scene.stop.clone());
    let draining = tokio::spawn(async move { ownership.heartbeat_while_draining(&stop).await });
    ended(draining).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_stops_before_it_has_a_lease_sends_no_heartbeat() {
    let scene = scene();
    scene.stop.drain.cancel();

    let ownership = scene.ownership(life("1"), false);
    let draining = ownership.heartbeat_while_draining(&scene.stop);
    tokio::time::timeout(SECOND, draining).await.expect("it ends at once").unwrap();

    assert_eq!(scene.noted(note::RENEWING), None);
}
