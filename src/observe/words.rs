//! How the target is called to people: the messages say "Atlas", and where it is a PostgreSQL they say that.
//!
//! Decided once, when the configuration was read, and done where a text leaves the program, on a terminal, in the log, in an
//! answer of the API, on the page, in an alert: whoever writes a message need not know of what kind the target is. What
//! programs read, keys, labels and names of metrics, stays as it is.

use std::{
    borrow::Cow,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
};

use serde_json::Value;

use crate::config::TargetKind;

static IS_POSTGRES: AtomicBool = AtomicBool::new(false);

/// Of what kind the target of this process is.
pub fn target_is(kind: TargetKind) {
    IS_POSTGRES.store(kind == TargetKind::Postgres, Relaxed);
}

/// Whether it is called otherwise than the messages call it.
pub fn is_renamed() -> bool {
    IS_POSTGRES.load(Relaxed)
}

/// What the target is called, at the head of a column.
pub fn target() -> &'static str {
    if is_renamed() { OTHER } else { WORD }
}

/// The text as it is told.
pub fn told(text: &str) -> Cow<'_, str> {
    if is_renamed() { of_postgres(text) } else { text.into() }
}

/// The same of a text in which no name of anybody's stands: a page, its scripts, what a metric is for.
pub fn told_of_ours(text: &str) -> Cow<'_, str> {
    let is_between = |c: char| !(c.is_alphanumeric() || c == '_');
    if is_renamed() { renamed(text, is_between, is_between) } else { text.into() }
}

/// The texts of an answer as they are told; what stands there of users', and every key, is left as it is.
pub fn told_in(value: &mut Value) {
    if is_renamed() {
        rename_in(value);
    }
}

/// What stands under these keys was written by users.
const USERS: [&str; 6] = ["collection", "data", "documentId", "id", "ns", "pause"];

fn rename_in(value: &mut Value) {
    match value {
        Value::String(text) => {
            if let Cow::Owned(told) = of_postgres(text) {
                *text = told;
            }
        }
        Value::Array(values) => values.iter_mut().for_each(rename_in),
        Value::Object(fields) => {
            let ours = fields.iter_mut().filter(|(name, _)| !USERS.contains(&name.as_str()));
            ours.for_each(|(_, value)| rename_in(value));
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

const WORD: &str = "Atlas";
const OTHER: &str = "PostgreSQL";

/// Names that stand for the address, and advice that is of use for Atlas alone.
const PHRASES: [(&str, &str); 7] = [
    ("MONGODB_ATLAS_URI", "POSTGRES_URI"),
    ("`atlas.uri`", "`postgres.uri`"),
    ("`atlas.uri_file`", "`postgres.uri_file`"),
    ("see the status page of Atlas", "look into PostgreSQL's log"),
    ("Look at Atlas's status page", "Look into PostgreSQL's log"),
    ("Compare the user's rights with `deploy/roles.js`. `outrigger check`", "`outrigger check`"),
    (
        "`outrigger roles` prints what makes the user, with all that it needs",
        "`outrigger check` names what the user may not do, with what grants it",
    ),
];

fn of_postgres(text: &str) -> Cow<'_, str> {
    // A word of a sentence, and not a name of somebody's.
    let begins = |c: char| c.is_whitespace() || "\"(".contains(c);
    renamed(text, begins, |c| c.is_whitespace() || ".,;:')".contains(c))
}

/// With the other name wherever the word has, if anything, such signs before and behind it.
fn renamed(text: &str, begins: impl Fn(char) -> bool, ends: impl Fn(char) -> bool) -> Cow<'_, str> {
    let mut told = Cow::Borrowed(text);
    for (phrase, other) in PHRASES {
        if told.contains(phrase) {
            told = told.replace(phrase, other).into();
        }
    }
    if !told.contains(WORD) {
        return told;
    }
    let mut out = String::with_capacity(told.len() + 16);
    let mut rest = &*told;
    while let Some(at) = rest.find(WORD) {
        let (before, behind) = (&rest[..at], &rest[at + WORD.len()..]);
        let last = before.chars().next_back().or_else(|| out.chars().next_back());
        let is_word = last.is_none_or(&begins) && behind.chars().next().is_none_or(&ends);
        out.push_str(before);
        out.push_str(if is_word { OTHER } else { WORD });
        rest = behind;
    }
    out.push_str(rest);
    out.into()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

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

    #[test]
    fn advice_that_only_an_atlas_can_follow_is_another_for_postgres() {
        let text = "Mend the line, or see the status page of Atlas. It is tried again by itself.";
        assert_eq!(
            of_postgres(text),
            "Mend the line, or look into PostgreSQL's log. It is tried again by itself."
        );
    }

    #[test]
    fn of_an_answer_the_sentences_are_told_and_what_users_wrote_stays() {
        let mut answer = json!({
            "atlas": { "error": "Atlas is away" },
            "raised": [{ "ns": "the.Atlas mountains", "message": "Atlas is 3m behind" }],
            "data": { "text": "Atlas is a range of mountains" },
            "documentId": "Atlas is one",
            "pause": { "reason": "Atlas is moved" },
        });
        rename_in(&mut answer);
        assert_eq!(
            answer,
            json!({
                "atlas": { "error": "PostgreSQL is away" },
                "raised": [{ "ns": "the.Atlas mountains", "message": "PostgreSQL is 3m behind" }],
                "data": { "text": "Atlas is a range of mountains" },
                "documentId": "Atlas is one",
                "pause": { "reason": "Atlas is moved" },
            })
        );
    }

    #[test]
    fn what_is_the_programs_own_is_told_within_signs_too() {
        let is_between = |c: char| !(c.is_alphanumeric() || c == '_');
        for (text, told) in [
            ("<dt>Atlas</dt>", "<dt>PostgreSQL</dt>"),
            ("[\"Atlas\", \"number\"]", "[\"PostgreSQL\", \"number\"]"),
            ("const { inAtlasUntil, Atlas_x } = of;", "const { inAtlasUntil, Atlas_x } = of;"),
        ] {
            assert_eq!(renamed(text, is_between, is_between), told);
        }
    }
}
