//! What a comparison finds, whichever way it is made.

use std::sync::Arc;

use parking_lot::Mutex;

use super::*;
use crate::{
    runtime::clock,
    side::{
        fake::FakeSide,
        fake_database::{FakeDatabase, ns, ones},
    },
};

/// Documents of both sides, and what differs by `_id`.
type Sums = (u64, u64, Vec<(i32, Mismatch)>);

#[derive(Default)]
struct Found(Mutex<Sums>, Mutex<Vec<usize>>);

impl Findings for Found {
    async fn compared(&self, part: Compared) -> Result<(), SyncError> {
        self.1.lock().push(part.found.len());
        let mut found = self.0.lock();
        found.0 += part.local_documents;
        found.1 += part.atlas_documents;
        let of =
            |(kind, key): (Mismatch, DocumentKey)| (key.filter().get_i32("_id").unwrap(), kind);
        found.2.extend(part.found.into_iter().map(of));
        Ok(())
    }
}

/// What a comparison of two sides finds, neither of which is a MongoDB: in pages of three.
async fn compared(local: Arc<FakeSide>, atlas: FakeSide) -> Sums {
    let (stop, found) = (Stop::default(), Found::default());
    let sides = Sides::new(local, Arc::new(atlas), 1, 0);
    let ns = Namespace::new("shop", "orders");
    let comparison = Comparison {
        sides: &sides,
        ns: &ns,
        after: ClusterTime::default(),
        is_only_in_target: false,
        by_key: false,
        page: 3,
        stop: &stop,
    };
    comparison.range(&KeyRange::default(), Part::Whole, &found).await.unwrap();
    let mut found = found.0.into_inner();
    found.2.sort_by_key(|(id, _)| *id);
    found
}

fn ten() -> impl Iterator<Item = (i32, i32)> {
    (10..20).map(|id| (id, 1))
}

fn differing() -> impl Iterator<Item = (i32, i32)> {
    let kept = ten().filter(|(id, _)| *id != 12 && *id != 19);
    kept.map(|(id, v)| (id, if id == 15 { 2 } else { v })).chain([(1, 1), (99, 1)])
}

const DIFFERENCES: [(i32, Mismatch); 5] = [
    (1, Mismatch::Extra),
    (12, Mismatch::Missing),
    (15, Mismatch::Content),
    (19, Mismatch::Missing),
    (99, Mismatch::Extra),
];

#[tokio::test]
async fn each_difference_of_two_sides_is_found_once_whatever_they_are() {
    let found = compared(Arc::new(FakeSide::of(ten())), FakeSide::of(differing())).await;

    assert_eq!(found, (10, 10, DIFFERENCES.to_vec()));
}

#[tokio::test]
async fn a_target_that_keeps_less_than_documents_tells_itself_what_is_a_copy() {
    let atlas = FakeSide::in_numbers(differing());

    let found = compared(Arc::new(FakeSide::of(ten())), atlas).await;

    assert_eq!(found.2, DIFFERENCES);
}

#[tokio::test]
async fn a_side_that_is_away_for_a_while_costs_no_page() {
    let local = Arc::new(FakeSide::of(ten()));
    local.is_away(1);

    let found = compared(local.clone(), FakeSide::of(ten())).await;

    assert_eq!(found, (10, 10, Vec::new()));
    assert_eq!(local.pages.load(std::sync::atomic::Ordering::Relaxed), 4);
}

/// How a collection is compared.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Way {
    Ranges,
    Digest,
    ByKey,
}

const WAYS: [Way; 3] = [Way::Ranges, Way::Digest, Way::ByKey];

/// Two databases that hold these.
fn ends(
    local: impl IntoIterator<Item = (i32, i32)>,
    atlas: impl IntoIterator<Item = (i32, i32)>,
) -> (Arc<FakeDatabase>, Arc<FakeDatabase>) {
    let (source, target) = (FakeDatabase::source(1), FakeDatabase::target(1));
    source.holds(&ns("shop.orders"), local);
    target.holds(&ns("shop.orders"), atlas);
    (Arc::new(source), Arc::new(target))
}

/// What comes of it at so many reads a second, of so many documents that are expected.
async fn compared_by(
    way: Way,
    (local, atlas): (&Arc<FakeDatabase>, &Arc<FakeDatabase>),
    (range, page, rate): (KeyRange, u32, u64),
) -> Found {
    let (stop, found) = (Stop::default(), Found::default());
    let sides = Sides::new(local.clone(), atlas.clone(), 1, rate);
    let ns = ns("shop.orders");
    let comparison = Comparison {
        sides: &sides,
        ns: &ns,
        after: ClusterTime::default(),
        is_only_in_target: false,
        by_key: way == Way::ByKey,
        page,
        stop: &stop,
    };
    let expected = local.of(&ns).counted();
    match way {
        Way::Digest => comparison.digest(&range, expected, &found).await.unwrap(),
        Way::Ranges | Way::ByKey => comparison.range(&range, Part::Whole, &found).await.unwrap(),
    }
    found.0.lock().2.sort_by_key(|(id, _)| *id);
    found
}

/// A range between two ids.
fn between(from: i32, until: i32) -> KeyRange {
    let key = |id: i32| DocumentKey::of(&bson::rawdoc! { "_id": id }).ok();
    KeyRange { from: key(from), until: key(until) }
}

#[tokio::test(start_paused = true)]
async fn what_was_read_before_another_proof_was_asked_for_is_compared_again() {
    for way in WAYS {
        for (end, asked, nth) in [
            (0, "page", 3),
            (0, "page", 5),
            (0, "keys", 1),
            (0, "digests", 1),
            (0, "find", 1),
            (1, "page", 2),
            (1, "find", 2),
        ] {
            let (local, atlas) = ends(ten(), differing());
            let (gate, here) = (local.schemas.gate.clone(), local.clone());
            let asked = format!("{asked} shop.orders");
            [&local, &atlas][end].when_nth(&asked, nth, move || {
                gate.close(&gate.permit(), "another process answers");
                // What was there before is another database's.
                here.holds(&ns("shop.orders"), [(12, 7), (13, 7), (17, 7)]);
                gate.proved(gate.begin_proof(), bson::oid::ObjectId::from_bytes([2; 12]));
            });

            let found = compared_by(way, (&local, &atlas), (KeyRange::default(), 3, 0)).await;

            let found = found.0.into_inner();
            let differ: Vec<_> = found.2.iter().map(|(id, _)| *id).collect();
            // What had been compared before differs by what came later, where that was read.
            let is_fine = differ.iter().all(|id| [1, 12, 13, 15, 17, 19, 99].contains(id))
                && [1, 12, 15, 19, 99].iter().all(|id| differ.contains(id));
            assert!(is_fine, "{way:?} {end} {asked}: {differ:?}");
            if (end, nth) == (0, 3) && way != Way::Digest {
                assert!(differ.contains(&17), "{way:?}: it was read under another permit");
            }
            assert_eq!((found.0, found.1), (10, 10), "{way:?}: none is counted twice");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_range_is_about_nothing_outside_of_it() {
    for way in [Way::Ranges, Way::Digest] {
        let (local, atlas) = ends(ten(), differing());

        let found =
            compared_by(way, (&local, &atlas), (between(12, 19), 3, 0)).await.0.into_inner();

        assert_eq!(found, (7, 6, DIFFERENCES[1..3].to_vec()), "{way:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn pages_of_one_document_are_compared_as_well() {
    let (local, atlas) = ends(ten(), differing());

    let found = compared_by(Way::Ranges, (&local, &atlas), (KeyRange::default(), 1, 0)).await;

    assert_eq!(found.0.into_inner(), (10, 10, DIFFERENCES.to_vec()));
}

#[tokio::test(start_paused = true)]
async fn a_huge_difference_is_handed_over_in_parts() {
    let (local, atlas) = ends(ones(1..=1), ones(2..=3_500));

    let found = compared_by(Way::Ranges, (&local, &atlas), (KeyRange::default(), 500, 0)).await;

    let parts = found.1.into_inner();
    assert!(parts.iter().all(|part| *part <= FOUND_MAX + 500), "{parts:?}");
    assert_eq!(found.0.into_inner().2.len(), 3_500);
}

#[tokio::test(start_paused = true)]
async fn a_digest_narrows_a_difference_down_to_a_few_documents() {
    for (id, kind) in
        [(1, Mismatch::Content), (1_500, Mismatch::Content), (3_000, Mismatch::Content)]
    {
        let (local, atlas) = ends(ones(1..=3_000), ones(1..=3_000));
        atlas.holds(&ns("shop.orders"), [(id, 2)]);

        let found = compared_by(Way::Digest, (&local, &atlas), (KeyRange::default(), 50, 0)).await;

        assert_eq!(found.0.into_inner(), (3_000, 3_000, vec![(id, kind)]));
        // Some 94 documents are a 32nd of them, and those are cut once more.
        assert!(atlas.times("page shop.orders") <= 4, "{}", atlas.times("page shop.orders"));
        assert!((3..=4).contains(&local.times("digests shop.orders")));
        assert_eq!(local.times("digests shop.orders"), atlas.times("digests shop.orders"));
    }
}

#[tokio::test(start_paused = true)]
async fn where_the_local_side_has_nothing_keys_are_all_that_is_read() {
    let (local, atlas) = ends(ones(1..=100), ones(1..=200));

    let found = compared_by(Way::Digest, (&local, &atlas), (between(101, 300), 50, 0)).await;

    assert_eq!(found.0.into_inner().2.len(), 100);
    assert_eq!((atlas.times("page shop.orders"), local.times("page shop.orders")), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn sums_and_keys_are_paid_for_as_reads() {
    for (way, seconds) in [(Way::Ranges, 29..=30), (Way::Digest, 67..=75), (Way::ByKey, 54..=56)] {
        let (local, atlas) = ends(ones(1..=3_000), ones(1..=3_000));
        atlas.holds(&ns("shop.orders"), [(70, 2)]);
        let began = clock::now();

        let found = compared_by(way, (&local, &atlas), (KeyRange::default(), 1_000, 100)).await;

        assert_eq!(found.0.into_inner().2.len(), 1);
        let took = clock::since(began).as_secs();
        assert!(seconds.contains(&took), "{way:?}: {took}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_collection_that_only_the_target_has_is_not_looked_for_at_the_source() {
    let (local, atlas) = ends([], ones(1..=9));
    let sides = Sides::new(local.clone(), atlas.clone(), 1, 0);
    let (stop, found, ns) = (Stop::default(), Found::default(), ns("shop.orders"));
    let comparison = Comparison {
        sides: &sides,
        ns: &ns,
        after: ClusterTime::default(),
        is_only_in_target: true,
        by_key: true,
        page: 3,
        stop: &stop,
    };

    comparison.range(&KeyRange::default(), Part::Key, &found).await.unwrap();

    assert_eq!(found.0.into_inner().2.len(), 9);
    assert!(local.asked().is_empty());
}
