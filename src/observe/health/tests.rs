use super::*;
use crate::config::Config;

fn streaming() -> Vitals {
    Vitals { phase: Phase::Streaming, ..Vitals::default() }
}

fn health(vitals: &Vitals) -> Health {
    judge(vitals, &Config::default().alerts).0
}

fn names(vitals: &Vitals) -> Vec<&'static str> {
    let (_, conditions) = judge(vitals, &Config::default().alerts);
    conditions.into_iter().map(|condition| condition.name).collect()
}

const fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

fn writing(applied: u64, rejected: u64) -> Vitals {
    Vitals { recent_writes: RecentWrites { applied, rejected }, ..streaming() }
}

#[test]
fn a_single_rejected_write_is_no_reason_to_wake_anybody() {
    let alone = writing(0, 1);
    let behind = Vitals { lag: secs(90), lag_of_retries: secs(90), ..alone.clone() };
    let and_more = Vitals { lag_of_retries: secs(50), ..behind.clone() };

    assert_eq!((health(&alone), names(&alone)), (Health::Degraded, vec![]));
    assert_eq!((health(&behind), names(&behind)), (Health::Degraded, vec![]));
    assert_eq!(names(&and_more), ["lag"], "others are behind as well");
    assert_eq!(names(&writing(0, JUDGED_WRITES_MIN - 1)), Vec::<&str>::new());
    assert_eq!(names(&writing(0, JUDGED_WRITES_MIN)), ["error_rate"]);
    assert_eq!(names(&writing(JUDGED_WRITES_MIN - 1, 1)), Vec::<&str>::new());
}

#[test]
fn health_follows_the_targets_and_the_alerts() {
    assert_eq!(health(&streaming()), Health::Healthy);
    assert_eq!(health(&Vitals { lag: secs(6), ..streaming() }), Health::Degraded);
    assert_eq!(health(&Vitals { lag: secs(31), ..streaming() }), Health::Unhealthy);
    assert_eq!(health(&Vitals { queue_size: 1_001, ..streaming() }), Health::Degraded);
    assert_eq!(health(&Vitals { queue_size: 10_001, ..streaming() }), Health::Unhealthy);
    assert_eq!(health(&writing(98, 2)), Health::Degraded);
    assert_eq!(health(&writing(94, 6)), Health::Unhealthy);
    assert_eq!(health(&Vitals { breaker_open: true, ..streaming() }), Health::Degraded);
    assert_eq!(health(&Vitals { dead_letters: 1, ..streaming() }), Health::Degraded);
    assert_eq!(health(&Vitals { phase: Phase::Paused, ..streaming() }), Health::Degraded);
    assert_eq!(health(&Vitals { phase: Phase::Failed, ..streaming() }), Health::Unhealthy);
}

#[test]
fn an_end_that_is_silent_is_unhealthy_though_all_loops_are_alive() {
    let local = Vitals { local_silence: secs(31), ..streaming() };
    let atlas = Vitals { atlas_silence: secs(31), ..streaming() };

    assert_eq!((health(&local), names(&local)), (Health::Unhealthy, vec!["local_silent"]));
    assert_eq!((health(&atlas), names(&atlas)), (Health::Unhealthy, vec!["atlas_silent"]));
}

#[test]
fn every_condition_has_a_name_of_its_own_and_collections_are_told_apart() {
    let divergence = |ns: &str, counted| Divergence { ns: ns.into(), local: 3, atlas: 1, counted };
    let everything = Vitals {
        phase: Phase::Failed,
        lag: secs(100),
        queue_size: 20_000,
        lag_of_retries: Duration::ZERO,
        recent_writes: RecentWrites { applied: 20, rejected: 20 },
        backlog: 20_000,
        is_backlog_unknown: true,
        local_silence: secs(100),
        atlas_silence: secs(100),
        uncommitted: secs(100),
        local_delay: secs(60),
        is_paused: false,
        breaker_open: true,
        reading_stopped: Some("the queue is full".into()),
        oplog_window: Some(secs(60)),
        local_denied: Some("no".into()),
        atlas_denied: Some("no".into()),
        unshowable: Some(Unshowable::Failing("no".into())),
        is_put_back: true,
        is_fenced: true,
        has_lost_source: false,
        refused_deletes: vec!["a.b".into()],
        not_ours: vec![("a.b".into(), "it is theirs".into())],
        divergences: vec![
            divergence("a.b", Counted::All),
            divergence("a.c", Counted::Staying),
            divergence("a.c", Counted::Gone),
        ],
        dead_letters: 2,
    };

    let (_, found) = judge(&everything, &Config::default().alerts);

    let keys: std::collections::BTreeSet<_> =
        found.iter().map(|found| (found.name, found.ns.clone())).collect();
    assert_eq!((keys.len(), found.len()), (21, 21));
    assert!(found.iter().any(|found| found.message.contains("3 documents locally and 1")));
}

#[test]
fn a_heartbeat_needs_progress_or_proven_idleness() {
    let paused = Vitals { phase: Phase::Paused, ..streaming() };
    let waiting = Vitals { queue_size: 5, ..streaming() };
    let silent = Vitals { local_silence: secs(31), ..streaming() };
    // What a delayed member does not show yet nobody can read.
    let at_work = |lag, local_delay| Vitals { lag, local_delay, ..streaming() };

    for delay in [0, 600].map(secs) {
        assert!(proves_life(0, &at_work(secs(30) + delay, delay)));
        assert!(!proves_life(0, &at_work(secs(31) + delay, delay)));
    }
    assert!(proves_life(1, &at_work(secs(31), secs(0))));
    assert!(proves_life(0, &streaming()) && proves_life(1, &waiting));
    assert!(!proves_life(0, &waiting) && !proves_life(0, &paused));
    assert!(!proves_life(0, &silent) && !proves_life(1, &silent));
}

#[test]
fn a_pause_is_degraded_and_never_critical_but_what_it_does_not_explain_is() {
    let paused = Vitals {
        phase: Phase::Paused,
        is_paused: true,
        lag: secs(9_000),
        queue_size: 50_000_000,
        recent_writes: RecentWrites { applied: 0, rejected: 20 },
        atlas_silence: secs(9_000),
        atlas_denied: Some("no".into()),
        is_fenced: true,
        ..streaming()
    };
    let full = Vitals { reading_stopped: Some("the queue is full".into()), ..paused.clone() };

    assert_eq!(health(&paused), Health::Degraded);
    assert_eq!(health(&Vitals { is_paused: true, ..streaming() }), Health::Degraded);
    let (_, told) = judge(&paused, &Config::default().alerts);
    assert!(told.iter().all(|found| found.message.ends_with("(writing is paused)")));
    assert_eq!(health(&full), Health::Unhealthy);
    assert_eq!(health(&Vitals { is_paused: false, ..paused }), Health::Unhealthy);
}

#[test]
fn writes_without_a_majority_are_unhealthy_and_end_the_heartbeat() {
    let without = Vitals { uncommitted: secs(21), lag: secs(21), ..streaming() };

    assert_eq!((health(&without), names(&without)), (Health::Unhealthy, vec!["no_majority"]));
    assert!(!proves_life(0, &without) && !proves_life(1, &without));
    assert!(proves_life(0, &Vitals { uncommitted: secs(20), ..streaming() }));
}

#[test]
fn the_watchdog_forgives_an_end_that_is_known_to_be_away_and_nothing_else() {
    let (here, away) = ((secs(1), KnownFault::No), (secs(500), KnownFault::Yes));
    let hangs = (secs(500), KnownFault::No);

    assert!(is_alive(here, here, secs(90)) && is_alive(away, away, secs(90)));
    assert!(!is_alive(hangs, here, secs(90)) && !is_alive(here, hangs, secs(90)));
}
