//! How stubbornly two ends are asked, and how fast they are read.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use super::*;
use crate::{
    gate::lease::BootTime,
    model::checkpoint::ClusterTime,
    runtime::clock,
    side::{
        KeyRange, Order, Part, Route,
        fake_database::{Failure, FakeDatabase, ns, ones},
    },
    sync::range::PatientWalk,
};

fn ends() -> (Arc<FakeDatabase>, Arc<FakeDatabase>) {
    let (local, atlas) = (FakeDatabase::source(1), FakeDatabase::target(1));
    local.holds(&ns("shop.orders"), ones(1..=30));
    (Arc::new(local), Arc::new(atlas))
}

fn sides(reads_per_second: u64) -> (Sides, Arc<FakeDatabase>, Arc<FakeDatabase>) {
    let (local, atlas) = ends();
    (Sides::new(local.clone(), atlas.clone(), 3, reads_per_second), local, atlas)
}

/// Reads the local collection.
async fn read(sides: &Sides, stop: &Stop) -> Result<Vec<usize>, SyncError> {
    let route = Route {
        ns: ns("shop.orders"),
        range: KeyRange::default(),
        part: Part::Whole,
        order: Order::ById,
        after: ClusterTime::default(),
        page: 10,
    };
    let mut walk = PatientWalk::new(sides, SideName::Local, route, stop);
    let mut pages = Vec::new();
    while let Some(page) = walk.next().await? {
        sides.throttle(page.count(), stop).await?;
        pages.push(page.count());
    }
    Ok(pages)
}

#[tokio::test(start_paused = true)]
async fn reads_keep_their_rate_in_pages_of_a_tenth_of_a_second() {
    for (rate, pages, seconds) in [(0, vec![10, 10, 10], 0), (20, vec![2; 15], 1)] {
        let (sides, ..) = sides(rate);
        let began = clock::now();

        assert_eq!(read(&sides, &Stop::default()).await.unwrap(), pages);

        assert_eq!(clock::since(began).as_secs(), seconds, "{rate}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_read_that_waits_for_its_turn_ends_when_the_agent_leaves() {
    for early in [true, false] {
        let (sides, ..) = sides(u8::from(!early).into());
        let stop = Stop::default();
        let told = async {
            tokio::time::sleep(Duration::from_secs(3)).await;
            stop.drain.cancel();
        };
        if early {
            stop.leave.cancel();
            let stopped = sides.throttle(1, &stop).await;
            assert!(matches!(stopped, Err(SyncError::Stopped)));
        } else {
            let (stopped, ()) = tokio::join!(read(&sides, &stop), told);
            assert!(matches!(stopped, Err(SyncError::Stopped)));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn no_more_is_done_at_once_than_was_said() {
    let (sides, ..) = sides(0);
    let (now, most) = (AtomicUsize::new(0), AtomicUsize::new(0));

    let done = sides.each((0..9).collect(), |n: u32| {
        let (now, most) = (&now, &most);
        Box::pin(async move {
            most.fetch_max(now.fetch_add(1, Relaxed) + 1, Relaxed);
            tokio::time::sleep(Duration::from_secs(1)).await;
            now.fetch_sub(1, Relaxed);
            Ok(n)
        })
    });
    let mut done = done.await.unwrap();

    done.sort_unstable();
    assert_eq!((done, most.into_inner()), ((0..9).collect(), 3));
    let slots = [sides.slot().await, sides.slot().await, sides.slot().await];
    let wait = Duration::from_secs(1);
    assert!(tokio::time::timeout(wait, sides.slot()).await.is_err());
    drop(slots);
}

#[tokio::test(start_paused = true)]
async fn what_is_copied_at_once_is_bounded_in_bytes_and_nothing_is_too_large() {
    let (sides, ..) = sides(0);
    let wait = Duration::from_secs(1);
    let large = sides.copying(usize::MAX).await;
    assert!(tokio::time::timeout(wait, sides.copying(1)).await.is_err());
    drop(large);

    let half = sides.copying(16 << 20).await;
    let small = sides.copying(1).await;
    assert!(tokio::time::timeout(wait, sides.copying(16 << 20)).await.is_err());
    drop(small);
    let rest = tokio::time::timeout(wait, sides.copying(16 << 20)).await;
    assert!(rest.is_ok());
    drop(half);
}

#[tokio::test(start_paused = true)]
async fn a_refusal_is_believed_the_fifth_time_and_never_where_there_is_no_end() {
    let (sides, local, _) = sides(0);
    local.fails("page shop.orders", Failure::Refused, 4);
    assert!(read(&sides, &Stop::default()).await.is_ok());
    local.fails("page shop.orders", Failure::Refused, 5);
    let refused = read(&sides, &Stop::default()).await.unwrap_err();
    assert!(refused.is_rejected());

    let stop = Stop::default();
    let mut attempts = sides.attempts(&stop).without_end("it is tried again");
    for _ in 0..50 {
        attempts.failed(SinkError::Rejected("no".to_owned())).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_collection_that_changes_again_and_again_is_a_refusal_in_the_end() {
    let (sides, local, _) = sides(0);
    local.fails("page shop.orders", Failure::Overtaken, 5);
    assert!(read(&sides, &Stop::default()).await.is_ok());

    let stop = Stop::default();
    let overtaken = || SourceError::Overtaken {
        what: "it was dropped",
        source: crate::source::Cause::Other("gone".to_owned()),
    };
    let mut attempts = sides.attempts(&stop);
    for _ in 0..5 {
        attempts.failed(overtaken()).await.unwrap();
    }
    attempts.succeeded();
    for _ in 0..5 {
        attempts.failed(overtaken()).await.unwrap();
    }
    let ended = attempts.failed(overtaken()).await.unwrap_err();
    assert!(matches!(ended, SyncError::Source(SourceError::Failed(_))), "{ended:?}");
}

#[tokio::test(start_paused = true)]
async fn an_end_is_waited_for_as_long_as_patience_lasts_and_a_denial_ends_it_at_once() {
    let (mut sides, local, _) = sides(0);
    let stop = Stop::default();
    local.fails("page shop.orders", Failure::Away, 60);
    assert!(read(&sides, &stop).await.is_ok(), "for ever, where nobody waits");

    sides.patience = Some(Duration::from_secs(60));
    local.fails("page shop.orders", Failure::Away, 3);
    assert!(read(&sides, &stop).await.is_ok());
    local.fails("page shop.orders", Failure::Away, 100);
    let began = clock::now();
    assert!(read(&sides, &stop).await.unwrap_err().is_unavailable());
    assert!((60..90).contains(&clock::since(began).as_secs()));
    local.fails("page shop.orders", Failure::Denied, 1);
    let began = clock::now();
    assert!(!read(&sides, &stop).await.unwrap_err().is_unavailable());
    assert_eq!(clock::since(began), Duration::ZERO);
    sides.patience = None;
    local.fails("page shop.orders", Failure::Denied, 9);
    assert!(read(&sides, &stop).await.is_ok(), "somebody may grant it");
}

#[tokio::test(start_paused = true)]
async fn waits_grow_while_an_end_is_away_and_begin_small_again_when_it_answers() {
    let (mut sides, ..) = sides(0);
    let status: Arc<Status> = Arc::default();
    sides.status = Some(status.clone());
    let stop = Stop::default();
    let mut attempts = sides.attempts(&stop);
    let away = || SinkError::Unavailable("no primary".to_owned());
    let began = clock::now();
    for _ in 0..10 {
        attempts.failed(away()).await.unwrap();
    }
    assert!(clock::since(began).as_secs() > 60);
    assert!(status.faults.atlas.is_any());

    attempts.succeeded();

    assert!(!status.faults.atlas.is_any());
    let began = clock::now();
    attempts.failed(away()).await.unwrap();
    assert!(clock::since(began) < Duration::from_secs(1));
    status.faults.atlas.fails(Fault::from(&away()));
    sides.attempts(&stop).succeeded();
    assert!(status.faults.atlas.is_any(), "nothing had failed of this one");
}

#[tokio::test(start_paused = true)]
async fn what_waiting_does_not_help_against_is_an_error_at_once() {
    let (sides, ..) = sides(0);
    let stop = Stop::default();

    let ended = sides.attempts(&stop).failed(SyncError::OlderQueue).await;

    assert!(matches!(ended, Err(SyncError::OlderQueue)));
    stop.leave.cancel();
    let ended = sides.attempts(&stop).failed(SinkError::Unavailable(String::new())).await;
    assert!(matches!(ended, Err(SyncError::Stopped)));
}

#[tokio::test(start_paused = true)]
async fn a_permit_is_given_when_the_local_database_is_proven() {
    let (sides, local, _) = sides(0);
    let gate = local.schemas.gate.clone();
    gate.close(&gate.permit(), "another process answers");
    let stop = Stop::default();
    let wait = Duration::from_secs(5);
    assert!(tokio::time::timeout(wait, sides.proven(&stop)).await.is_err());

    gate.proved(gate.begin_proof(), bson::oid::ObjectId::from_bytes([2; 12]));

    assert!(tokio::time::timeout(wait, sides.proven(&stop)).await.unwrap().unwrap().holds());
}

#[test]
fn atlas_is_altered_only_while_the_lease_is_held() {
    let (mut sides, ..) = sides(0);
    assert!(sides.may_alter(SideName::Atlas).is_ok(), "no lease is kept");
    let lease: Arc<Lease> = Arc::default();
    sides.lease = Some(lease.clone());
    assert!(sides.may_alter(SideName::Atlas).is_err() && sides.may_alter(SideName::Local).is_ok());
    lease.renew(BootTime::now());
    assert!(sides.may_alter(SideName::Atlas).is_ok());
}
