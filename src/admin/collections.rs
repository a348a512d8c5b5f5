//! Which collections the dashboard shows, and in which order: those in trouble first, or as a person wants it. Pure.

use std::{cmp::Reverse, collections::BTreeMap};

use serde::{Deserialize, Serialize};

use crate::{model::namespace::Namespace, observe::status::Figures};

/// Most rows of one view.
pub const ROWS_MAX: usize = 1_000;

/// By what rows are ordered; alike ones by name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Sort {
    #[default]
    Trouble,
    Name,
    Waiting,
    Written,
    /// By how far the numbers of documents differ.
    Difference,
    /// Those with the latest write first.
    Last,
}

/// What a person wants to see of them.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct View {
    /// A part of the name; capitals do not count.
    pub filter: String,
    pub sort: Sort,
    pub limit: Option<usize>,
}

/// One collection.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Row {
    pub pending: u64,
    #[serde(flatten)]
    pub figures: Figures,
    /// The names of the alerts that are about it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub alerts: Vec<&'static str>,
}

impl Row {
    /// By how many documents the two sides differ, where nothing waits that explains it.
    fn difference(&self) -> u64 {
        match (self.figures.local_documents, self.figures.atlas_documents) {
            (Some(local), Some(atlas)) if self.pending == 0 => local.abs_diff(atlas),
            _ => 0,
        }
    }

    /// The more, the worse. What changes with each batch counts by its order of magnitude, so that rows do not dance.
    fn trouble(&self) -> (usize, bool, u32, u32) {
        let magnitude = |n: u64| n.checked_ilog(4).map_or(0, |log| log + 1);
        (
            self.alerts.len(),
            self.difference() > 0,
            magnitude(self.pending),
            magnitude(self.figures.writes),
        )
    }
}

/// The rows of a view, with their order.
#[derive(Debug, Default, Serialize)]
pub struct Shown {
    /// Of all, and of those that the filter chooses.
    pub total: usize,
    pub matching: usize,
    pub order: Vec<Namespace>,
    pub rows: BTreeMap<Namespace, Row>,
}

/// Chooses and orders; `limit` where the view names none.
pub fn chosen(all: BTreeMap<Namespace, Row>, view: &View, limit: usize) -> Shown {
    let total = all.len();
    let part = view.filter.trim().to_lowercase();
    let mut rows: Vec<_> =
        all.into_iter().filter(|(ns, _)| ns.as_str().to_lowercase().contains(&part)).collect();
    let matching = rows.len();
    // They come by name, and stay so where they are alike.
    match view.sort {
        Sort::Trouble => rows.sort_by_key(|(_, row)| Reverse(row.trouble())),
        Sort::Name => {}
        Sort::Waiting => rows.sort_by_key(|(_, row)| Reverse(row.pending)),
        Sort::Written => rows.sort_by_key(|(_, row)| Reverse(row.figures.writes)),
        Sort::Difference => rows.sort_by_key(|(_, row)| Reverse(row.difference())),
        Sort::Last => rows.sort_by_key(|(_, row)| Reverse(row.figures.last_write_ms)),
    }
    rows.truncate(view.limit.unwrap_or(limit).min(ROWS_MAX));
    let order = rows.iter().map(|(ns, _)| ns.clone()).collect();
    Shown { total, matching, order, rows: rows.into_iter().collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(pending: u64, writes: u64, [local, atlas]: [u64; 2]) -> Row {
        let figures = Figures {
            writes,
            last_write_ms: writes,
            local_documents: Some(local),
            atlas_documents: Some(atlas),
            counted_ms: 1,
        };
        Row { pending, figures, alerts: Vec::new() }
    }

    fn all() -> BTreeMap<Namespace, Row> {
        let quiet = (0..500).map(|n| (format!("quiet{n:03}"), row(0, 0, [5, 5])));
        let named = [
            ("differs", row(0, 7, [5, 4])),
            ("explained", row(9, 3, [5, 4])),
            ("alarmed", Row { alerts: vec!["not_ours"], ..row(0, 1, [5, 5]) }),
            ("Busy", row(0, 900, [5, 5])),
        ];
        let named = named.map(|(name, row)| (name.to_owned(), row));
        quiet.chain(named).map(|(name, row)| (Namespace::new("shop", &name), row)).collect()
    }

    fn first(view: &View) -> Vec<String> {
        let rows = chosen(all(), view, 4);
        assert_eq!(rows.order.len(), rows.rows.len());
        rows.order.iter().map(|ns| ns.coll().to_owned()).collect()
    }

    #[test]
    fn those_in_trouble_come_first_and_what_waits_explains_a_difference() {
        assert_eq!(first(&View::default()), ["alarmed", "differs", "explained", "Busy"]);
    }

    #[test]
    fn a_person_may_choose_and_order_them() {
        let by = |sort| first(&View { sort, ..View::default() });
        assert_eq!(by(Sort::Name), ["Busy", "alarmed", "differs", "explained"]);
        assert_eq!(by(Sort::Waiting)[..2], ["explained", "Busy"]);
        assert_eq!(by(Sort::Written)[..2], ["Busy", "differs"]);
        assert_eq!(by(Sort::Difference)[..2], ["differs", "Busy"]);
        assert_eq!(by(Sort::Last)[..2], ["Busy", "differs"]);

        let filter = " BUS ".to_owned();
        assert_eq!(first(&View { filter, ..View::default() }), ["Busy"]);
        let view = View { limit: Some(usize::MAX), ..View::default() };
        let rows = chosen(all(), &view, 4);
        assert_eq!((rows.total, rows.matching, rows.order.len()), (504, 504, 504));
    }

    #[test]
    fn rows_stay_where_they_are_while_a_little_is_written() {
        let mut later = all();
        for row in later.values_mut() {
            row.pending = row.pending.saturating_sub(1);
        }
        let names = |rows: Shown| rows.order;
        let before = names(chosen(all(), &View::default(), 20));
        assert_eq!(names(chosen(later, &View::default(), 20)), before);
    }
}
