//! How the target is called to people: the messages say "Atlas", and where it is a PostgreSQL they say that.
//!
//! Decided once, when the configuration was read, and done where a text leaves the program: whoever writes a message need
//! not know of what kind the target is. What programs read, keys, labels and names of metrics, stays as it is.

use std::{
    borrow::Cow,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
};

use crate::config::TargetKind;

static IS_POSTGRES: AtomicBool = AtomicBool::new(false);

/// Of what kind the target of this process is.
pub fn target_is(kind: TargetKind) {
    IS_POSTGRES.store(kind == TargetKind::Postgres, Relaxed);
}

/// The text as it is told.
pub fn told(text: &str) -> Cow<'_, str> {
    if IS_POSTGRES.load(Relaxed) { of_postgres(text) } else { text.into() }
}

const WORD: &str = "Atlas";

/// Names that stand for the address.
const ADDRESSES: [(&str, &str); 3] = [
    ("MONGODB_ATLAS_URI", "POSTGRES_URI"),
    ("`atlas.uri`", "`postgres.uri`"),
    ("`atlas.uri_file`", "`postgres.uri_file`"),
];

fn of_postgres(text: &str) -> Cow<'_, str> {
    let mut told = Cow::Borrowed(text);
    for (name, other) in ADDRESSES {
        if told.contains(name) {
            told = told.replace(name, other).into();
        }
    }
    if !told.contains(WORD) {
        return told;
    }
    let mut out = String::with_capacity(told.len() + 16);
    let mut rest = &*told;
    while let Some(at) = rest.find(WORD) {
        let (before, behind) = (&rest[..at], &rest[at + WORD.len()..]);
        // A word of a sentence, and not a name of somebody's.
        let begins = before.chars().next_back().or_else(|| out.chars().next_back());
        let is_word = begins.is_none_or(|c| c.is_whitespace() || "\"(".contains(c))
            && behind.chars().next().is_none_or(|c| c.is_whitespace() || ".,;:')".contains(c));
        out.push_str(before);
        out.push_str(if is_word { "PostgreSQL" } else { WORD });
        rest = behind;
    }
    out.push_str(rest);
    out.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_target_is_called_by_what_it_is_and_nobodys_names_are_changed() {
        for (text, told) in [
            ("Atlas did not answer; Atlas's user", "PostgreSQL did not answer; PostgreSQL's user"),
            ("{\"message\":\"Atlas is away\"}", "{\"message\":\"PostgreSQL is away\"}"),
            ("not in Atlas", "not in PostgreSQL"),
            ("`shop.Atlas`, db=Atlas, \"Atlas\"", "`shop.Atlas`, db=Atlas, \"Atlas\""),
            ("Atlases", "Atlases"),
            ("MONGODB_ATLAS_URI or `atlas.uri_file`", "POSTGRES_URI or `postgres.uri_file`"),
        ] {
            assert_eq!(of_postgres(text), told);
        }
    }
}
