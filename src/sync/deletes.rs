//! How much may be deleted from Atlas that nobody has asked for.

/// Fewer deletes than this are never a mass delete.
const MASS_DELETE_MIN: u64 = 100;

/// What a comparison, or a collection that is made anew, may take from Atlas (`sync.max_delete_ratio`).
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct DeleteLimit {
    ratio: f64,
}

impl DeleteLimit {
    pub fn new(ratio: f64) -> Self {
        Self { ratio }
    }

    /// True when a person has to say first that `extra` documents, of the `all` that Atlas has, may be deleted.
    pub fn is_mass_delete(self, extra: u64, all: u64) -> bool {
        extra > MASS_DELETE_MIN && extra as f64 > all as f64 * self.ratio
    }

    /// True when a collection that has `source` documents may take the place of one of Atlas that has `target`.
    pub fn may_replace(self, source: u64, target: u64) -> bool {
        !self.is_mass_delete(target.saturating_sub(source), target)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mass_delete_is_more_than_a_hundred_and_more_than_its_share() {
        for (ratio, extra, all, is_mass_delete) in [
            (0.1, 0, 0, false),
            (0.1, 100, 100, false),
            (0.1, 101, 101, true),
            (0.1, 101, 1_010, false),
            (0.1, 102, 1_010, true),
            (0.1, 1_000, 10_000, false),
            (0.1, 1_001, 10_009, true),
            (0.0, 101, 1_000_000, true),
            (1.0, 1_000_000, 1_000_000, false),
        ] {
            let limit = DeleteLimit::new(ratio);
            assert_eq!(limit.is_mass_delete(extra, all), is_mass_delete, "{extra} of {all}");
        }
    }

    #[test]
    fn a_collection_is_replaced_by_one_that_has_almost_as_much() {
        let limit = DeleteLimit::new(0.1);
        for (source, target, may) in
            [(0, 0, true), (0, 100, true), (0, 101, false), (900, 1_000, true), (899, 1_000, false)]
        {
            assert_eq!(limit.may_replace(source, target), may, "{source} for {target}");
        }
        assert!(limit.may_replace(5_000, 1_000), "nothing is lost");
    }
}
