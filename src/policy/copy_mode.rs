//! `COPY` or upsert: a `COPY` costs half as much, and all of it is for nothing where one of its rows is there.

use super::insert_mode::InsertMode;

/// Chooses for one table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CopyMode {
    /// Of documents that should not be there.
    inserts: InsertMode,
    /// Of documents that were changed, or that were some of them: none of the last batch was there all the same, as in a
    /// table that somebody has emptied. Where most are inserted and some changed no batch is worth it: one row is enough.
    changed_are_missing: bool,
}

impl CopyMode {
    /// Whether the next batch is worth a `COPY`. `are_inserts`: all of it are documents that should not be there yet.
    pub fn is_worth_it(self, are_inserts: bool) -> bool {
        if are_inserts { !self.inserts.use_upserts() } else { self.changed_are_missing }
    }

    /// Learns from a batch that was upserted, of whose `rows` `created` were not there before. `was_copied` in vain, before.
    pub fn upserted(&mut self, are_inserts: bool, was_copied: bool, rows: usize, created: usize) {
        match (are_inserts, was_copied) {
            (false, _) => self.changed_are_missing = created == rows && !was_copied,
            (true, true) => self.inserts.inserted(rows, rows - created),
            (true, false) => self.inserts.upserted(rows, created),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INSERTS: bool = true;
    const CHANGES: bool = false;

    #[test]
    fn inserts_are_copied_until_many_were_there_and_changes_once_none_was() {
        let mut mode = CopyMode::default();
        assert!(mode.is_worth_it(INSERTS) && !mode.is_worth_it(CHANGES));

        mode.upserted(INSERTS, true, 100, 10);
        mode.upserted(CHANGES, false, 100, 99);
        assert!(!mode.is_worth_it(INSERTS) && !mode.is_worth_it(CHANGES));
        mode.upserted(CHANGES, false, 100, 100);
        assert!(mode.is_worth_it(CHANGES));

        mode.upserted(INSERTS, false, 100, 51);
        mode.upserted(CHANGES, true, 100, 99);
        assert!(mode.is_worth_it(INSERTS) && !mode.is_worth_it(CHANGES));
    }

    /// Under row security, say.
    #[test]
    fn a_copy_that_is_refused_for_another_reason_is_not_tried_with_the_next_batch() {
        let mut mode = CopyMode::default();
        mode.upserted(CHANGES, false, 100, 100);
        assert!(mode.is_worth_it(CHANGES));
        mode.upserted(CHANGES, true, 100, 100);
        assert!(!mode.is_worth_it(CHANGES));
    }

    /// A `COPY` of changes is never tried by chance, as one of inserts is from time to time: most changes are of what is there.
    #[test]
    fn changes_of_what_is_there_are_never_copied_however_many_there_are() {
        let mut mode = CopyMode::default();
        for _ in 0..1_000 {
            assert!(!mode.is_worth_it(CHANGES));
            mode.upserted(CHANGES, false, 1_000, 999);
        }
    }

    #[test]
    fn a_run_of_inserts_of_what_is_there_is_copied_again_from_time_to_time() {
        let mut mode = CopyMode::default();
        mode.upserted(INSERTS, true, 100, 0);
        let mut batches = 0;
        while !mode.is_worth_it(INSERTS) {
            mode.upserted(INSERTS, false, 100, 0);
            batches += 1;
        }
        assert_eq!(batches, 20);
    }
}
