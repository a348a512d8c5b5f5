//! Collections whose documents expire: only what stays, and what should be gone for long, tells anything.

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

#[tokio::test(start_paused = true)]
async fn a_count_that_takes_long_is_made_again_with_a_larger_margin_and_tells_nothing_by_itself() {
    let scene = expiring(10, 4);
    let asked = Arc::new(Mutex::new(Vec::new()));
    let seen = asked.clone();
    scene.atlas.is_counted(move |filter| {
        let staying = filter.unwrap().get_array("$nor").ok()?;
        let until = format!("{staying:?}");
        seen.lock().push(until);
        Some(4)
    });
    scene.atlas.counts_take(SECOND * 61);
    scene.counts_every(3_600);

    scene.until(BELIEVED + 62).await;
    scene.until(600).await;

    assert_eq!(
        scene.told(),
        [(10, 4, Counted::Staying)],
        "the later ones have a margin of 4 minutes"
    );
    assert!(asked.lock().len() >= 3);
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
