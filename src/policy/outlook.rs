//! How long what there is will last, and when it is over, at the rate of the last minutes. Pure.
//!
//! The rate is measured from where the queue last turned: from its lowest point while it grows, from its highest while
//! it drains. So the minutes before an outage do not flatten what the outage does.

use std::time::Duration;

/// How full the queue was at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Point {
    /// Milliseconds since 1970.
    pub at_ms: u64,
    pub documents: u64,
    pub bytes: u64,
}

/// What there is room for.
#[derive(Clone, Copy, Debug)]
pub struct Room {
    pub max_documents: u64,
    pub max_bytes: u64,
    pub min_free_disk: u64,
    /// Where it can be told.
    pub free_disk: Option<u64>,
}

/// What follows, where the queue moves at all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outlook {
    /// Until the queue is at `queue.max_documents` or `queue.max_bytes`, and reading stops.
    pub queue_full_in: Option<Duration>,
    /// Until the queue's disk is at `queue.min_free_disk`, and reading stops.
    pub disk_low_in: Option<Duration>,
    /// Until nothing waits any more.
    pub caught_up_in: Option<Duration>,
}

/// How far back is looked, and how long the queue must have moved one way to be believed.
const LOOK_BACK_MS: u64 = 300_000;
const BELIEVED_MS: u64 = 10_000;

/// Fewer documents than these come and go with every batch.
const NOISE: u64 = 10;

/// Judges by `points`, the oldest first.
pub fn outlook(points: &[Point], room: &Room) -> Outlook {
    let Some(&now) = points.last() else { return Outlook::default() };
    let from = now.at_ms.saturating_sub(LOOK_BACK_MS);
    let recent = points.iter().filter(|point| (from..=now.at_ms).contains(&point.at_ms));
    // The latest of those that are alike.
    let lowest = recent.clone().rev().min_by_key(|point| point.documents).copied().unwrap_or(now);
    let highest = recent.max_by_key(|point| point.documents).copied().unwrap_or(now);
    // A dip on the way up is no turn.
    let gone = highest.documents - now.documents;
    let range = highest.documents - lowest.documents;
    let has_turned = gone.saturating_mul(20) > range;
    // Once a drain fills all that is looked at, its lowest point is the latest.
    let is_down = highest.at_ms < lowest.at_ms
        && (now.documents - lowest.documents).saturating_mul(20) <= range;
    if is_down || (has_turned && highest.at_ms >= lowest.at_ms) {
        draining(highest, now)
    } else {
        growing(lowest, now, room)
    }
}

fn draining(highest: Point, now: Point) -> Outlook {
    let elapsed = now.at_ms.saturating_sub(highest.at_ms);
    let gone = highest.documents - now.documents;
    if now.documents < NOISE || gone < NOISE || elapsed == 0 {
        return Outlook::default();
    }
    let caught_up_in = reached(now.documents, gone, elapsed);
    Outlook { caught_up_in, ..Outlook::default() }
}

fn growing(lowest: Point, now: Point, room: &Room) -> Outlook {
    let elapsed = now.at_ms.saturating_sub(lowest.at_ms);
    let documents = now.documents.saturating_sub(lowest.documents);
    let bytes = now.bytes.saturating_sub(lowest.bytes);
    if documents < NOISE || elapsed < BELIEVED_MS {
        return Outlook::default();
    }
    let full = [
        reached(room.max_documents.saturating_sub(now.documents), documents, elapsed),
        reached(room.max_bytes.saturating_sub(now.bytes), bytes, elapsed),
    ];
    // Reading stops where draining what waits could leave too little: what comes takes its room twice.
    let needed = room.min_free_disk.saturating_add(now.bytes);
    let disk_low_in = room
        .free_disk
        .and_then(|free| reached(free.saturating_sub(needed), bytes.saturating_mul(2), elapsed));
    Outlook { queue_full_in: full.into_iter().flatten().min(), disk_low_in, caught_up_in: None }
}

/// How long `left` lasts when `moved` took `elapsed_ms`.
fn reached(left: u64, moved: u64, elapsed_ms: u64) -> Option<Duration> {
    if moved == 0 {
        return None;
    }
    let ms = u128::from(left) * u128::from(elapsed_ms) / u128::from(moved);
    Some(Duration::from_millis(u64::try_from(ms).unwrap_or(u64::MAX)))
}

/// What is known of how far Atlas has come.
#[derive(Clone, Copy, Debug, Default)]
pub struct Reached {
    /// Everything that was made before has been read. 0: nothing is known of it.
    pub read_ms: u64,
    /// When the oldest change was made that waits.
    pub oldest_ms: Option<u64>,
    /// The latest moment at which both sides were equal.
    pub equal_ms: Option<u64>,
    /// Nothing is missing but what waits: no copy or comparison is owed, nothing is kept from Atlas for good.
    pub is_gapless: bool,
}

/// The moment, in whole seconds, of which this holds: everything that was made before it is in Atlas.
pub fn recovery_point(reached: Reached) -> Option<u64> {
    let whole = |ms: u64| ms / 1_000 * 1_000;
    let flowing = (reached.is_gapless && reached.read_ms > 0)
        .then(|| reached.oldest_ms.map_or(reached.read_ms, |oldest| oldest.min(reached.read_ms)));
    flowing.max(reached.equal_ms).map(whole)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOM: Room = Room {
        max_documents: 100_000,
        max_bytes: 1 << 40,
        min_free_disk: 1_000_000,
        free_disk: Some(5_000_000),
    };

    /// One every five seconds, of a kilobyte each.
    fn points(documents: impl IntoIterator<Item = u64>) -> Vec<Point> {
        let at = |(n, documents): (u64, u64)| Point {
            at_ms: n * 5_000,
            documents,
            bytes: documents * 1_000,
        };
        (0..).zip(documents).map(at).collect()
    }

    #[test]
    fn a_queue_that_grows_tells_when_it_and_its_disk_are_full() {
        // An hour of calm does not flatten it.
        let calm = std::iter::repeat_n(0, 600);
        let found = outlook(&points(calm.chain((0..=100).map(|n| n * 10))), &ROOM);

        // Two documents, and two kilobytes, a second; what they need of the disk counts twice.
        assert_eq!(found.queue_full_in, Some(Duration::from_secs(99_000 / 2)));
        assert_eq!(found.disk_low_in, Some(Duration::from_secs(3_000 / 4)));
        assert_eq!(found.caught_up_in, None);
    }

    #[test]
    fn a_queue_that_drains_tells_when_it_is_empty() {
        let grown = (0..=100).map(|n| n * 100);
        let found = outlook(&points(grown.chain([9_000, 8_000, 7_000])), &ROOM);

        assert_eq!(found.caught_up_in, Some(Duration::from_secs(35)));
        assert_eq!((found.queue_full_in, found.disk_low_in), (None, None));
    }

    #[test]
    fn a_long_drain_is_told_of_to_its_end() {
        // 100 go each second.
        for n in [20, 40, 120, 159] {
            let found = outlook(&points((0..=n).map(|n| 80_000 - n * 500)), &ROOM);
            let left = (80_000 - n * 500) / 100;
            assert_eq!(found.caught_up_in, Some(Duration::from_secs(left)), "{n}");
        }
    }

    #[test]
    fn one_that_drained_and_grows_anew_is_one_that_grows() {
        let found = outlook(&points([5_000, 4_000, 0, 0, 100, 200, 300, 400]), &ROOM);

        assert_eq!(found.queue_full_in, Some(Duration::from_secs(99_600 / 20)));
        assert_eq!(found.caught_up_in, None);
    }

    #[test]
    fn a_dip_on_the_way_up_is_no_end() {
        let found = outlook(&points([0, 1_000, 2_000, 3_000, 2_950]), &ROOM);

        assert!(found.queue_full_in.is_some() && found.caught_up_in.is_none(), "{found:?}");
    }

    #[test]
    fn what_comes_and_goes_with_each_batch_foretells_nothing() {
        assert_eq!(outlook(&points([0, 3, 1, 7, 2, 0, 9]), &ROOM), Outlook::default());
        assert_eq!(outlook(&points([0, 5_000]), &ROOM), Outlook::default(), "a moment ago");
        assert_eq!(outlook(&[], &ROOM), Outlook::default());
        assert_eq!(outlook(&points([50; 20]), &ROOM), Outlook::default());
    }

    #[test]
    fn everything_before_the_oldest_change_that_waits_is_in_atlas_unless_more_is_missing() {
        let of = |oldest_ms, is_gapless| {
            recovery_point(Reached { read_ms: 9_900, oldest_ms, equal_ms: Some(3_000), is_gapless })
        };

        assert_eq!(of(None, true), Some(9_000));
        assert_eq!(of(Some(7_300), true), Some(7_000));
        assert_eq!(of(Some(7_300), false), Some(3_000), "a copy is owed");
        assert_eq!(recovery_point(Reached { is_gapless: true, ..Reached::default() }), None);
    }

    #[test]
    fn what_is_less_than_noise_foretells_nothing_and_what_is_as_much_does() {
        let drained = |from, to| outlook(&points([from, from, to]), &ROOM).caught_up_in;
        assert_eq!(drained(20, 10), Some(Duration::from_secs(5)));
        assert_eq!(drained(1_000, 9), None, "hardly anything waits");
        assert_eq!(drained(1_000, 991), None, "hardly anything has gone");
        let grown = |documents: &[u64]| outlook(&points(documents.to_vec()), &ROOM).queue_full_in;
        assert_eq!(grown(&[0, 5, 10]), Some(Duration::from_secs(99_990)));
        assert_eq!(grown(&[0, 5, 9]), None);
        assert_eq!(grown(&[0, 5_000]), None, "for five seconds");
        assert_eq!(grown(&[0, 5_000, 10_000]), Some(Duration::from_secs(90)), "for ten");
    }
}
