//! Insert or upsert: what costs less depends on whether the documents are there already.
//!
//! On a real mongod a plain insert costs about a quarter of an upsert of a missing document, and an
//! insert of what is already there costs twice an upsert. So inserts are the rule, and a run of
//! duplicates, which means a replay, switches the namespace to upserts for a while.

/// Chooses for one namespace.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct InsertMode {
    /// Batches left to be written as upserts.
    upserts_left: u32,
}

/// Batches that go as upserts after a run of duplicates.
const UPSERT_BATCHES: u32 = 20;

impl InsertMode {
    /// True when the next batch's inserts should go as upserts.
    pub fn use_upserts(self) -> bool {
        self.upserts_left > 0
    }

    /// Learns from a batch of `inserts` of which `duplicates` were there already.
    pub fn inserted(&mut self, inserts: usize, duplicates: usize) {
        // The costs break even where two fifths are duplicates; a third leaves room for noise.
        if duplicates * 3 > inserts {
            self.upserts_left = UPSERT_BATCHES;
        }
    }

    /// Learns from a batch of `upserts` of which `created` were not there before.
    pub fn upserted(&mut self, upserts: usize, created: usize) {
        self.upserts_left =
            if created * 2 > upserts { 0 } else { self.upserts_left.saturating_sub(1) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_of_duplicates_switches_to_upserts_for_a_while() {
        let mut mode = InsertMode::default();
        mode.inserted(100, 90);
        assert!(mode.use_upserts());

        for _ in 0..UPSERT_BATCHES {
            mode.upserted(100, 5);
        }

        assert!(!mode.use_upserts());
    }

    #[test]
    fn a_few_duplicates_change_nothing_and_new_documents_end_the_replay() {
        let mut mode = InsertMode::default();
        mode.inserted(100, 10);
        assert!(!mode.use_upserts());

        mode.inserted(100, 100);
        mode.upserted(100, 100);

        assert!(!mode.use_upserts());
    }

    #[test]
    fn a_third_of_duplicates_is_not_too_many_and_half_of_new_ones_end_no_replay() {
        let mut mode = InsertMode::default();
        mode.inserted(99, 33);
        assert!(!mode.use_upserts());
        mode.inserted(99, 34);
        assert!(mode.use_upserts());

        mode.upserted(10, 5);
        assert!(mode.use_upserts());
        mode.upserted(10, 6);
        assert!(!mode.use_upserts());
    }
}
