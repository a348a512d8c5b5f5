//! Whether two choices of namespaces have anything in common, told from their patterns alone.
//!
//! Collections come and go, so it does not matter which there are: two sources may write to one Atlas when no
//! name that could ever be is chosen by both. What cannot be proven disjoint counts as overlapping.

use crate::model::namespace::Patterns;

/// The patterns by which both choose the same name, one of each; `None` when no name is chosen by both.
pub fn overlap(ours: &Patterns, theirs: &Patterns) -> Option<(String, String)> {
    let everything = ["*.*".to_owned()];
    let included = |patterns: &Patterns| -> Vec<String> {
        let include: &[String] =
            if patterns.include.is_empty() { &everything } else { &patterns.include };
        include.to_vec()
    };
    let excluded = || ours.exclude.iter().chain(&theirs.exclude);
    for our in included(ours) {
        for their in included(theirs) {
            let (Some(a), Some(b)) = (PatternParts::of(&our), PatternParts::of(&their)) else {
                return Some((our, their));
            };
            let is_left_out = excluded()
                .filter_map(|exclude| PatternParts::of(exclude))
                .any(|exclude| exclude.covers_both(&a, &b));
            if a.meets(&b) && !is_left_out {
                return Some((our, their));
            }
        }
    }
    None
}

/// True when every name that `inner` chooses is provably chosen by `outer` too.
pub fn covers(outer: &Patterns, inner: &Patterns) -> bool {
    let parts = |patterns: &[String]| -> Option<Vec<PatternParts>> {
        patterns.iter().map(|pattern| PatternParts::of(pattern)).collect()
    };
    let all = (
        parts(&outer.include),
        parts(&outer.exclude),
        parts(&inner.include),
        parts(&inner.exclude),
    );
    let (Some(include), Some(exclude), Some(of_include), Some(of_exclude)) = all else {
        return false;
    };
    let is_within = |inner: &PatternParts, outer: &[PatternParts]| {
        outer.iter().any(|outer| outer.covers(inner))
    };
    let are_included = include.is_empty()
        || (!of_include.is_empty() && of_include.iter().all(|inner| is_within(inner, &include)));
    are_included && exclude.iter().all(|exclude| is_within(exclude, &of_exclude))
}

/// A pattern, in its two parts.
struct PatternParts {
    db: Vec<char>,
    coll: Vec<char>,
}

impl PatternParts {
    /// `None` for a text that is no pattern: it has no dot.
    fn of(pattern: &str) -> Option<Self> {
        let (db, coll) = pattern.split_once('.')?;
        Some(Self { db: db.chars().collect(), coll: coll.chars().collect() })
    }

    fn meets(&self, other: &Self) -> bool {
        meet(&self.db, &other.db) && meet(&self.coll, &other.coll)
    }

    fn covers(&self, inner: &Self) -> bool {
        is_within(&inner.db, &self.db) && is_within(&inner.coll, &self.coll)
    }

    /// True when it covers all that `a` and `b` have in common, as far as one of the two shows that.
    fn covers_both(&self, a: &Self, b: &Self) -> bool {
        (is_within(&a.db, &self.db) || is_within(&b.db, &self.db))
            && (is_within(&a.coll, &self.coll) || is_within(&b.coll, &self.coll))
    }
}

/// True when some text matches both globs.
fn meet(a: &[char], b: &[char]) -> bool {
    // Row by row: whether what is left of `a` and what is left of `b` have a text in common.
    let ends = |glob: &[char]| glob.iter().all(|c| *c == '*');
    let mut below = (0..=b.len()).map(|at| ends(&b[at..])).collect::<Vec<_>>();
    for i in (0..a.len()).rev() {
        let mut row = vec![false; b.len() + 1];
        row[b.len()] = ends(&a[i..]);
        for j in (0..b.len()).rev() {
            row[j] = match (a[i], b[j]) {
                ('*', _) => below[j] || row[j + 1],
                (_, '*') => row[j + 1] || below[j],
                (x, y) => (x == y || x == '?' || y == '?') && below[j + 1],
            };
        }
        below = row;
    }
    below[0]
}

/// True when every text that matches `inner` matches `outer`: `outer` read as a pattern over the signs of
/// `inner`, in which `*` is met by `*` alone.
fn is_within(inner: &[char], outer: &[char]) -> bool {
    let mut below = vec![false; inner.len() + 1];
    below[inner.len()] = true;
    for o in (0..outer.len()).rev() {
        let mut row = vec![false; inner.len() + 1];
        for i in (0..=inner.len()).rev() {
            let sign = inner.get(i).copied();
            row[i] = match (outer[o], sign) {
                ('*', None) => below[i],
                ('*', Some(_)) => below[i] || row[i + 1],
                (_, None | Some('*')) => false,
                ('?', Some(_)) => below[i + 1],
                (c, Some(sign)) => c == sign && below[i + 1],
            };
        }
        below = row;
    }
    below[0]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::namespace::{Namespace, NamespaceFilter};

    fn patterns(include: &[&str], exclude: &[&str]) -> Patterns {
        let own = |list: &[&str]| list.iter().map(|text| (*text).to_owned()).collect();
        Patterns { include: own(include), exclude: own(exclude) }
    }

    fn do_overlap(ours: (&[&str], &[&str]), theirs: (&[&str], &[&str])) -> bool {
        let (ours, theirs) = (patterns(ours.0, ours.1), patterns(theirs.0, theirs.1));
        let found = overlap(&ours, &theirs).is_some();
        assert_eq!(overlap(&theirs, &ours).is_some(), found, "both see it alike");
        found
    }

    #[test]
    fn other_databases_or_other_names_do_not_overlap() {
        assert!(!do_overlap((&["shop.*"], &[]), (&["crm.*"], &[])));
        assert!(!do_overlap((&["shop.orders"], &[]), (&["shop.people", "crm.*"], &[])));
        assert!(!do_overlap((&["*.a?"], &[]), (&["*.b*"], &[])));
        assert!(!do_overlap((&["shop.*_eu"], &[]), (&["shop.*_us"], &[])));
    }

    #[test]
    fn patterns_that_could_choose_one_name_overlap_though_none_is_there() {
        assert!(do_overlap((&[], &[]), (&["crm.*"], &[])));
        assert!(do_overlap((&["shop.*"], &[]), (&["*.sessions"], &[])));
        assert!(do_overlap((&["shop.a*"], &[]), (&["shop.*z"], &[])));
        assert!(do_overlap((&["shop.orders.2024"], &[]), (&["shop.orders.*"], &[])));
    }

    #[test]
    fn what_one_side_leaves_out_is_not_shared() {
        assert!(!do_overlap((&["shop.*"], &["shop.logs"]), (&["shop.logs"], &[])));
        assert!(!do_overlap((&[], &["crm.*"]), (&["crm.*"], &[])));
        assert!(!do_overlap((&["shop.*"], &["*.log*"]), (&["*.logs"], &[])));
        assert!(do_overlap((&["shop.*"], &["shop.log?"]), (&["shop.log*"], &[])));
    }

    #[test]
    fn a_choice_covers_a_narrower_one() {
        let covers = |outer: (&[&str], &[&str]), inner: (&[&str], &[&str])| {
            super::covers(&patterns(outer.0, outer.1), &patterns(inner.0, inner.1))
        };
        assert!(covers((&[], &[]), (&["shop.*"], &["shop.logs"])));
        assert!(covers((&["shop.*"], &[]), (&["shop.orders"], &[])));
        assert!(covers((&["shop.*"], &["shop.l"]), (&["shop.*"], &["shop.*"])));
        assert!(!covers((&["shop.*"], &["shop.logs"]), (&["shop.*"], &[])));
        assert!(!covers((&["shop.*"], &[]), (&[], &[])));
        assert!(!covers((&["shop.?"], &[]), (&["shop.*"], &[])));
    }

    fn globs() -> impl Strategy<Value = Vec<String>> {
        prop::collection::vec("[ab*?]{1,3}\\.[ab*?]{1,3}", 0..3)
    }

    proptest! {
        /// Against the filter itself, over all short names.
        #[test]
        fn no_shared_name_is_missed_and_what_is_covered_is(
            include in globs(), exclude in globs(), of_include in globs(), of_exclude in globs(),
        ) {
            let ours = Patterns { include: include.clone(), exclude: exclude.clone() };
            let theirs = Patterns { include: of_include.clone(), exclude: of_exclude.clone() };
            let our_filter = NamespaceFilter::new(&include, &exclude).unwrap();
            let their_filter = NamespaceFilter::new(&of_include, &of_exclude).unwrap();
            let words = ["a", "b", "aa", "ab", "ba", "bb", "aba", "bab", "abb", "baa"];
            for (db, coll) in words.iter().flat_map(|db| words.map(|coll| (*db, coll))) {
                let ns = Namespace::new(db, coll);
                if our_filter.matches(&ns) && their_filter.matches(&ns) {
                    prop_assert!(overlap(&ours, &theirs).is_some(), "{ns}");
                }
                if covers(&ours, &theirs) && their_filter.matches(&ns) {
                    prop_assert!(our_filter.matches(&ns), "{ns}");
                }
            }
        }
    }
}
