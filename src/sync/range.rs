//! In how large parts a collection is worked on, and how a part is walked with patience.

use super::{
    SyncError,
    sides::{SideName, Sides},
};
use crate::{
    gate::Permit,
    model::{document_key::DocumentKey, namespace::Namespace},
    runtime::shutdown::Stop,
    side::{Page, Route, Side, SideError, Size, Walk},
};

/// Bytes that a page should have, and the most documents.
const PAGE_BYTES: u64 = 4 << 20;
const PAGE_DOCUMENTS: u64 = 5_000;

/// Bytes that a range should have, and the least and most documents. The least keeps the sample small
/// enough for the server's random cursor: beyond a twentieth of the collection it would read all of it.
const RANGE_BYTES: u64 = 8 << 20;
const RANGE_DOCUMENTS_MIN: u64 = 200;
const RANGE_DOCUMENTS_MAX: u64 = 25_000;

/// Most ranges of one collection; they are noted beside the queue.
const RANGES_MAX: u64 = 1_024;

/// Keys that are sampled for each bound, so that the ranges come out even.
const SAMPLES: u64 = 8;

impl Size {
    fn document_bytes(self) -> u64 {
        (self.bytes / self.documents.max(1)).max(16)
    }

    /// Documents that one reply should have, so that memory is bounded by bytes.
    pub fn page(self) -> u32 {
        (PAGE_BYTES / self.document_bytes()).clamp(1, PAGE_DOCUMENTS) as u32
    }

    fn ranges(self) -> u64 {
        let documents =
            (RANGE_BYTES / self.document_bytes()).clamp(RANGE_DOCUMENTS_MIN, RANGE_DOCUMENTS_MAX);
        (self.documents / documents).clamp(1, RANGES_MAX)
    }
}

/// Keys that cut a collection into ranges of about the same size, in the side's order; none for one
/// that is small.
///
/// # Errors
/// When the side does not answer, or refuses.
pub async fn splits(
    side: &dyn Side,
    ns: &Namespace,
    size: Size,
) -> Result<Vec<DocumentKey>, SideError> {
    let ranges = size.ranges();
    if ranges < 2 {
        return Ok(Vec::new());
    }
    let keys = side.sample(ns, ranges * SAMPLES).await?;
    Ok(every_nth(keys, SAMPLES as usize))
}

/// The last of each `n` keys, none twice, so that what is left over makes the last range.
pub fn every_nth(keys: Vec<DocumentKey>, n: usize) -> Vec<DocumentKey> {
    let count = keys.len();
    let mut chosen: Vec<_> = keys
        .into_iter()
        .enumerate()
        .filter(|(at, _)| at % n == n - 1 && at + 1 < count)
        .map(|(_, key)| key)
        .collect();
    chosen.dedup_by_key(|key| key.canonical());
    chosen
}

/// A [`Walk`] that is gone on with for as long as patience lasts.
pub struct PatientWalk<'a> {
    walk: Box<dyn Walk + 'a>,
    sides: &'a Sides,
    ns: Namespace,
    stop: &'a Stop,
}

impl<'a> PatientWalk<'a> {
    /// Of the local database in pages of no more than its rate has for a moment: a page is read before it is
    /// [paid for](Sides::throttle).
    pub fn new(sides: &'a Sides, end: SideName, mut route: Route, stop: &'a Stop) -> Self {
        if end == SideName::Local {
            route.page = sides.page_max(route.page);
        }
        let ns = route.ns.clone();
        Self { walk: sides.of(end).walk(route), sides, ns, stop }
    }

    /// Of the last page, also of the answer that told of the end.
    pub fn permit(&self) -> Permit {
        self.walk.permit()
    }

    /// Reads this page, and what comes behind it, once more.
    pub fn go_back_before(&mut self, page: &Page) {
        self.walk.go_back(page.before());
    }

    /// The next page, or `None` at the end of the range.
    ///
    /// # Errors
    /// When the side stays away for longer than patience lasts, or refuses.
    pub async fn next(&mut self) -> Result<Option<Page>, SyncError> {
        let mut attempts = self.sides.attempts(self.stop).reading(&self.ns);
        loop {
            match self.walk.next().await {
                Ok(page) => {
                    attempts.succeeded();
                    return Ok(page);
                }
                Err(error) => attempts.failed(error).await?,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use bson::rawdoc;

    use super::*;
    use crate::side::fake_database::{FakeDatabase, ns, ones};

    fn keys(ids: impl IntoIterator<Item = i32>) -> Vec<DocumentKey> {
        ids.into_iter().map(|id| DocumentKey::of(&rawdoc! { "_id": id }).unwrap()).collect()
    }

    #[test]
    fn a_key_that_was_sampled_twice_bounds_one_range() {
        assert_eq!(every_nth(keys([1, 2, 2, 2, 3, 4, 5]), 2), keys([2, 4]));
        assert_eq!(every_nth(keys([1, 2]), 2), keys([]));
    }

    #[test]
    fn pages_and_ranges_are_bounded_in_bytes() {
        let size = |documents, each| Size { documents, bytes: documents * each };

        assert_eq!((size(0, 0).page(), size(0, 0).ranges()), (5_000, 1));
        assert_eq!((size(1_000_000, 325).page(), size(1_000_000, 325).ranges()), (5_000, 40));
        assert_eq!((size(10_000, 1 << 20).page(), size(10_000, 1 << 20).ranges()), (4, 50));
        assert_eq!(size(100, 16 << 20).page(), 1);
        assert_eq!(size(1_000_000_000, 325).ranges(), RANGES_MAX);
    }

    #[tokio::test]
    async fn a_collection_is_cut_where_it_is_large_enough_for_two_ranges() {
        let side = FakeDatabase::source(1);
        for (documents, bounds) in [(399, 0), (400, 1), (1_000, 4)] {
            side.holds(&ns("shop.orders"), ones(0..documents));
            let size = Size { documents: documents as u64, bytes: documents as u64 * (64 << 10) };

            let splits = splits(&side, &ns("shop.orders"), size).await.unwrap();

            assert_eq!(splits.len(), bounds, "{documents}");
        }
        assert_eq!(side.times("sample shop.orders"), 2, "a small one is not asked for keys");
    }
}
