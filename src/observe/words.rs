//! How the ends are called to people: the messages say "Atlas", and where it is a PostgreSQL they say that; of an outbox they
//! say what stands in the place of a local MongoDB and its oplog.
//!
//! Decided once, when the configuration was read, and done where a text leaves the program, on a terminal, in the log, in an
//! answer of the API, on the page, in an alert: whoever writes a message need not know of what kind the ends are. What
//! programs read, keys, labels and names of metrics, stays as it is.

use std::{
    borrow::Cow,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
};

use serde_json::Value;

use crate::config::{SourceKind, TargetKind};

static IS_POSTGRES: AtomicBool = AtomicBool::new(false);
static IS_OUTBOX: AtomicBool = AtomicBool::new(false);

/// Of what kind the ends of this process are.
pub fn ends_are(source: SourceKind, target: TargetKind) {
    IS_OUTBOX.store(source == SourceKind::Outbox, Relaxed);
    IS_POSTGRES.store(target == TargetKind::Postgres, Relaxed);
}

/// Whether one is called otherwise than the messages call it.
pub fn is_renamed() -> bool {
    IS_POSTGRES.load(Relaxed) || IS_OUTBOX.load(Relaxed)
}

/// What the target is called, at the head of a column.
pub fn target() -> &'static str {
    if IS_POSTGRES.load(Relaxed) { OTHER } else { WORD }
}

/// The text as it is told. An outbox goes into no PostgreSQL: at most one end is called otherwise.
pub fn told(text: &str) -> Cow<'_, str> {
    told_by(text, of_postgres)
}

/// The same of a text in which no name of anybody's stands: a page, its scripts, what a metric is for.
pub fn told_of_ours(text: &str) -> Cow<'_, str> {
    let is_between = |c: char| !(c.is_alphanumeric() || c == '_');
    told_by(text, |text| renamed(text, is_between, is_between))
}

fn told_by<'a>(text: &'a str, of_postgres: impl FnOnce(&'a str) -> Cow<'a, str>) -> Cow<'a, str> {
    match () {
        () if IS_OUTBOX.load(Relaxed) => with(text, &OF_OUTBOX),
        () if IS_POSTGRES.load(Relaxed) => of_postgres(text),
        () => text.into(),
    }
}

/// The texts of an answer as they are told; what stands there of users', and every key, is left as it is.
pub fn told_in(value: &mut Value) {
    if is_renamed() {
        rename_in(value, told);
    }
}

/// What stands under these keys was written by users.
const USERS: [&str; 6] = ["collection", "data", "documentId", "id", "ns", "pause"];

fn rename_in(value: &mut Value, told: fn(&str) -> Cow<'_, str>) {
    match value {
        Value::String(text) => {
            if let Cow::Owned(told) = told(text) {
                *text = told;
            }
        }
        Value::Array(values) => values.iter_mut().for_each(|value| rename_in(value, told)),
        Value::Object(fields) => {
            let ours = fields.iter_mut().filter(|(name, _)| !USERS.contains(&name.as_str()));
            ours.for_each(|(_, value)| rename_in(value, told));
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

const WORD: &str = "Atlas";
const OTHER: &str = "PostgreSQL";

/// Names that stand for the address, and advice that is of use for Atlas alone.
const OF_POSTGRES: [(&str, &str); 7] = [
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

/// What an outbox has in the place of a local MongoDB. Its rows wait where they are until they are read.
const OF_OUTBOX: [(&str, &str); 17] = [
    ("MONGODB_LOCAL_URI", "OUTBOX_URI"),
    ("`local.uri`", "`outbox.uri`"),
    ("`local.uri_file`", "`outbox.uri_file`"),
    ("The local oplog keeps the rest, as far as it reaches back", "The rest waits in the outbox"),
    (
        "the local oplog alone keeps what is written, as far as it reaches back",
        "what is written waits in the outbox",
    ),
    ("the local oplog alone keeps what is written", "what is written waits in the outbox"),
    (" Do it before the oplog rolls over.", ""),
    ("is read from the oplog again", "is read from the outbox again"),
    ("this local database", "this outbox"),
    ("The local database", "The outbox's database"),
    ("the local database", "the outbox's database"),
    ("The local server", "The outbox's database"),
    ("the local server", "the outbox's database"),
    ("Change events read", "Rows read"),
    ("`systemctl status mongod`", "the status and the log of that database"),
    ("; its oplog has dropped nothing yet, or may not be read", ""),
    (
        "Compare the user's rights with `deploy/roles.js`",
        "Compare the user's rights with what `outrigger roles` prints",
    ),
];

/// With the second of each pair in the place of the first.
fn with<'a>(text: &'a str, phrases: &[(&str, &str)]) -> Cow<'a, str> {
    phrases.iter().fold(Cow::Borrowed(text), |told, (phrase, other)| {
        if told.contains(phrase) { told.replace(phrase, other).into() } else { told }
    })
}

fn of_postgres(text: &str) -> Cow<'_, str> {
    // A word of a sentence, and not a name of somebody's.
    let begins = |c: char| c.is_whitespace() || "\"(".contains(c);
    renamed(text, begins, |c| c.is_whitespace() || ".,;:')".contains(c))
}

/// With the other name wherever the word has, if anything, such signs before and behind it.
fn renamed(text: &str, begins: impl Fn(char) -> bool, ends: impl Fn(char) -> bool) -> Cow<'_, str> {
    let told = with(text, &OF_POSTGRES);
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
    fn of_an_outbox_nothing_is_said_that_only_a_mongodb_has() {
        for (text, told) in [
            (
                "Nothing is read: the local oplog alone keeps what is written, as far as it reaches back.",
                "Nothing is read: what is written waits in the outbox.",
            ),
            (
                "The local database is away: look at `systemctl status mongod`",
                "The outbox's database is away: look at the status and the log of that database",
            ),
            (
                "check MONGODB_LOCAL_URI or `local.uri_file`",
                "check OUTBOX_URI or `outbox.uri_file`",
            ),
            ("`shop.local` is not in Atlas", "`shop.local` is not in Atlas"),
        ] {
            assert_eq!(with(text, &OF_OUTBOX), told);
        }
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
        rename_in(&mut answer, of_postgres);
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
