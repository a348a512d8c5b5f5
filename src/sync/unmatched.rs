//! Patterns that choose nothing: a name with a slip of the pen is no collection without a difference.

use std::fmt;

use crate::{
    model::namespace::{Namespace, NamespaceFilter},
    side::{Listing, Side},
};

/// Names that differ from what was written by more are no guess.
const DISTANCE_MAX: usize = 4;

/// A pattern that nothing matches on either side.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unmatched {
    pub pattern: String,
    /// What was meant, perhaps.
    pub nearest: Option<String>,
    /// It matches something that `[namespaces]` leaves out.
    pub is_left_out: bool,
}

impl fmt::Display for Unmatched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let pattern = &self.pattern;
        match &self.nearest {
            _ if self.is_left_out => {
                write!(f, "`{pattern}` is not replicated: `[namespaces]` leaves it out")
            }
            Some(nearest) => {
                write!(f, "no collection matches `{pattern}`; did you mean `{nearest}`?")
            }
            None => write!(f, "no collection matches `{pattern}`"),
        }
    }
}

impl Unmatched {
    /// As a pattern of `namespaces.include`, whose collection may be still to come.
    pub fn as_include(&self) -> String {
        let pattern = &self.pattern;
        match &self.nearest {
            Some(nearest) => {
                format!("`{pattern}`: no collection matches it; did you mean `{nearest}`?")
            }
            None => format!("`{pattern}`: no collection matches it"),
        }
    }
}

/// Those of the patterns that match nothing in any of the listings.
pub fn unmatched(patterns: &[String], listings: &[&Listing]) -> Vec<Unmatched> {
    let chosen: Vec<&Namespace> = listings.iter().flat_map(|listing| listing.names()).collect();
    let others: Vec<&Namespace> = listings.iter().flat_map(|listing| &listing.not_chosen).collect();
    let of = |pattern: &String| {
        let one = NamespaceFilter::new(std::slice::from_ref(pattern), &[]).ok()?;
        let matches = |names: &[&Namespace]| names.iter().any(|ns| one.is_chosen(ns));
        if matches(&chosen) {
            return None;
        }
        let nearest = nearest(pattern, chosen.iter().chain(&others).copied());
        Some(Unmatched { pattern: pattern.clone(), nearest, is_left_out: matches(&others) })
    };
    patterns.iter().filter_map(of).collect()
}

/// The first of the patterns that matches nothing on either side, of what `filter` chooses. None where an end does
/// not answer: that is for whoever does the work to tell.
pub async fn nothing_of(
    patterns: &[String],
    local: &dyn Side,
    atlas: &dyn Side,
    filter: &NamespaceFilter,
) -> Option<Unmatched> {
    let both = tokio::join!(local.list(filter), atlas.list(filter));
    let (Ok(source), Ok(target)) = both else { return None };
    unmatched(patterns, &[&source, &target]).into_iter().next()
}

fn nearest<'a>(pattern: &str, names: impl Iterator<Item = &'a Namespace>) -> Option<String> {
    let is_of_a_database = pattern.ends_with(".*");
    names
        .filter(|ns| !ns.is_internal())
        .map(|ns| if is_of_a_database { format!("{}.*", ns.db()) } else { ns.to_string() })
        .map(|name| (strsim::damerau_levenshtein(&name, pattern), name))
        .filter(|(distance, _)| *distance <= DISTANCE_MAX && *distance < pattern.len() / 2)
        .min()
        .map(|(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::side::Collection;

    fn listing(chosen: &[&str], not_chosen: &[&str]) -> Listing {
        let collections = chosen.iter().map(|name| Collection {
            ns: name.parse().unwrap(),
            options: bson::RawDocumentBuf::new(),
            id: None,
        });
        let not_chosen = not_chosen.iter().map(|name| name.parse().unwrap());
        Listing {
            collections: collections.collect(),
            not_chosen: not_chosen.collect(),
            ..Listing::default()
        }
    }

    fn told(patterns: &[&str], listing: &Listing) -> Vec<String> {
        let patterns: Vec<String> = patterns.iter().map(|p| (*p).to_owned()).collect();
        unmatched(&patterns, &[listing]).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_pattern_that_matches_nothing_is_told_with_the_nearest_name() {
        let listing = listing(&["shop.orders", "shop.items", "crm.people"], &["log.raw"]);

        assert_eq!(told(&["shop.orders", "crm.*", "*.items"], &listing), Vec::<String>::new());
        assert_eq!(
            told(&["shop.ordres", "shpo.*", "nowhere.else", "log.raw"], &listing),
            [
                "no collection matches `shop.ordres`; did you mean `shop.orders`?",
                "no collection matches `shpo.*`; did you mean `shop.*`?",
                "no collection matches `nowhere.else`",
                "`log.raw` is not replicated: `[namespaces]` leaves it out",
            ]
        );
        let short = self::listing(&["a.b"], &[]);
        assert_eq!(told(&["a.c"], &short), ["no collection matches `a.c`"], "any is as near");
    }
}
