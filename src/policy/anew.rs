//! Which inserts of a capped collection come anew in Atlas. Pure.
//!
//! A document that comes anew is taken out and put at the end. An insert that waits behind it may be in Atlas already, from a
//! write without an answer or one that is made once more, and would stand in front of it from then on: so it comes anew
//! too. What is queued later cannot be there.

use std::ops::Range;

/// The entries of a collection, by their numbers, that may stand behind one that came anew.
#[derive(Clone, Debug, Default)]
pub struct ComesAnew(Range<u64>);

impl ComesAnew {
    /// The document of the entry `seq` comes anew, and all that waits has a number below `position`.
    pub fn begin(&mut self, seq: u64, position: u64) {
        let first = if self.0.end > seq { self.0.start.min(seq) } else { seq };
        self.0 = first..position;
    }

    /// True for an entry that comes anew if it is an insert.
    pub fn has(&self, seq: u64) -> bool {
        self.0.contains(&seq)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(anew: &ComesAnew) -> Vec<u64> {
        (0..20).filter(|seq| anew.has(*seq)).collect()
    }

    #[test]
    fn what_waits_behind_a_document_that_came_anew_does_too_and_what_comes_later_does_not() {
        let mut anew = ComesAnew::default();
        assert!(of(&anew).is_empty());

        anew.begin(3, 6);
        assert_eq!(of(&anew), [3, 4, 5]);
        anew.begin(5, 9);
        assert_eq!(of(&anew), [3, 4, 5, 6, 7, 8], "4 may come back, and still stands behind 3");
        anew.begin(2, 9);
        assert_eq!(of(&anew), [2, 3, 4, 5, 6, 7, 8]);
        anew.begin(12, 14);
        assert_eq!(of(&anew), [12, 13], "all before it is gone");
    }
}
