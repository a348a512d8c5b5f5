//! Collections whose documents expire: only what stays, and what should be gone for long, tells anything.

use bson::{RawBsonRef, RawDocument};
use parking_lot::Mutex;

use super::*;

/// By when three counts of what stays have shown the same.
const COUNTED: u64 = BELIEVED + 2 * 15;

/// Documents by how they are chosen: those that stay, and those that should be gone.
fn counted(side: &FakeSchemas, staying: Option<u64>, gone: u64) {
    side.is_counted(move |filter| {
        let filter = filter.expect("all are never counted");
        if filter.get_array("$nor").is_ok() { staying } else { Some(gone) }
    });
}

fn expiring(local: u64, atlas: u64) -> Scene {
    let scene = scene(local, atlas);
    let mut spec = index("at");
    spec.append(bson::cstr!("expireAfterSeconds"), 60);
    scene.local.has(&orders(), &[spec]);
    for (side, documents) in [(&scene.local, local), (&scene.atlas, atlas)] {
        counted(side, Some(documents), 0);
    }
    scene
}

#[tokio::test(start_paused = true)]
async fn what_stays_and_is_missing_in_three_counts_is_told() {
    let scene = expiring(10, 4);
    scene.counts_every(600);

    scene.until(COUNTED - 1).await;
    assert_eq!((scene.told(), scene.atlas.counts()), (vec![], 2));
    scene.until(COUNTED).await;

    assert_eq!(scene.told(), [(10, 4, Counted::Staying)]);
    assert_eq!(scene.atlas.counts(), 4, "and what should be gone once");
}

#[tokio::test(start_paused = true)]
async fn what_one_side_keeps_long_past_its_time_is_told() {
    let scene = expiring(10, 14);
    counted(&scene.atlas, Some(10), 4);
    scene.counts_every(600);

    scene.until(COUNTED).await;

    assert_eq!(scene.told(), [(0, 4, Counted::Gone)]);
}

#[tokio::test(start_paused = true)]
async fn a_difference_that_is_over_at_the_second_count_is_none_and_is_not_counted_for_an_hour() {
    let scene = expiring(10, 4);
    scene.counts_every(600);
    scene.until(BELIEVED).await;
    counted(&scene.atlas, Some(10), 0);

    // The estimates change all the time.
    for minutes in 3..50 {
        scene.until(minutes * 60).await;
        scene.atlas.has_documents(4 - minutes % 2);
    }

    assert_eq!((scene.told(), scene.atlas.counts()), (vec![], 3));
}

/// By which moment a filter chooses, in seconds since 1970.
fn moment(filter: &RawDocument) -> i64 {
    let dates = filter.iter().flat_map(|field| dates(field.unwrap().1)).collect::<Vec<_>>();
    dates.first().expect("it chooses by a date") / 1_000
}

/// Those that any part of it has.
fn dates(value: RawBsonRef<'_>) -> Vec<i64> {
    match value {
        RawBsonRef::DateTime(date) => vec![date.timestamp_millis()],
        RawBsonRef::Array(items) => items.into_iter().flat_map(|of| dates(of.unwrap())).collect(),
        RawBsonRef::Document(of) => of.iter().flat_map(|field| dates(field.unwrap().1)).collect(),
        _ => Vec::new(),
    }
}

/// What the local side takes for now, and what Atlas does, in seconds since 1970: far ahead of this host, and far behind, so
/// that its own clock decides nothing.
const AHEAD: i64 = 1 << 33;
const BEHIND: i64 = 1 << 28;

/// The moments by which the local side is asked, each with whether it is for what stays.
fn moments(scene: &Scene, documents: u64) -> Arc<Mutex<Vec<(bool, i64)>>> {
    scene.local.takes_for_now(AHEAD * 1_000);
    scene.atlas.takes_for_now(BEHIND * 1_000);
    let asked: Arc<Mutex<Vec<_>>> = Arc::default();
    let noted = asked.clone();
    scene.local.is_counted(move |filter| {
        let filter = filter.expect("all are never counted");
        let stays = filter.get_array("$nor").is_ok();
        noted.lock().push((stays, moment(filter)));
        Some(if stays { documents } else { 0 })
    });
    asked
}

#[tokio::test(start_paused = true)]
async fn what_lives_for_two_minutes_by_each_clock_stays_and_what_is_an_hour_past_by_each_is_gone() {
    let scene = expiring(10, 4);
    let asked = moments(&scene, 10);
    scene.counts_every(600);

    scene.until(COUNTED).await;

    // A document expires a minute behind its date.
    let asked = asked.lock();
    assert_eq!(asked.first(), Some(&(true, AHEAD + 120 - 60)));
    assert_eq!(asked.last(), Some(&(false, BEHIND - 3_600 - 60)));
}

#[tokio::test(start_paused = true)]
async fn a_count_that_takes_half_of_the_margin_is_made_again_with_four_times_as_much() {
    let scene = expiring(10, 4);
    let asked = moments(&scene, 10);
    scene.atlas.counts_take(SECOND * 61);
    scene.counts_every(3_600);

    scene.until(600).await;

    assert_eq!(scene.told(), [(10, 4, Counted::Staying)]);
    // The side is asked before and after the other one.
    let begun: Vec<_> = asked.lock().iter().filter(|of| of.0).step_by(2).map(|of| of.1).collect();
    assert_eq!(begun, [120, 4 * 61, 4 * 61].map(|margin| AHEAD + margin - 60));
}

#[tokio::test(start_paused = true)]
async fn counts_that_always_take_too_long_tell_nothing() {
    let scene = expiring(10, 4);
    let (atlas, takes) = (scene.atlas.clone(), Mutex::new(SECOND * 61));
    scene.atlas.counts_take(*takes.lock());
    scene.atlas.is_counted(move |_| {
        let mut takes = takes.lock();
        *takes *= 3;
        atlas.counts_take(*takes);
        Some(4)
    });
    scene.counts_every(36_000);

    scene.until(30_000).await;

    assert_eq!((scene.told(), scene.atlas.counts()), (vec![], 3));
}

#[tokio::test(start_paused = true)]
async fn too_many_to_count_are_told_where_one_side_has_less_than_half() {
    for (atlas, told) in [(4, vec![(10, 4, Counted::Estimated)]), (6, vec![])] {
        let scene = expiring(10, atlas);
        counted(&scene.atlas, None, 0);
        scene.counts_every(600);

        scene.until(COUNTED).await;

        assert_eq!(scene.told(), told);
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_not_read_meanwhile_leaves_what_was_told() {
    let scene = expiring(10, 4);
    scene.counts_every(600);
    scene.until(COUNTED).await;
    assert_eq!(scene.told().len(), 1);

    scene.cx.in_hand.begins("a sync");
    scene.cx.in_hand.ended();
    scene.until(COUNTED + 600 + BELIEVED - 5).await;
    scene.local.is_at(NOW + 1);
    scene.until(COUNTED + 900).await;

    assert_eq!(scene.told().len(), 1);
}
