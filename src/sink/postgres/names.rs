//! Names: a database is a schema, a collection a table, each by its own name.
//!
//! PostgreSQL cuts a name at 63 bytes without a word, and keeps some to itself. A name that it would not take as it
//! is, and one that two tables would have, gets a short hash of the whole name at its end, so that the same collection
//! has the same table for ever, whatever else there is.

use std::borrow::Cow;

use sha2::{Digest, Sha256};

use super::json;

/// `NAMEDATALEN` of every PostgreSQL that is not built otherwise, less the NUL.
const BYTES_MAX: usize = 63;

/// Outrigger's own tables.
pub const OWN_SCHEMA: &str = "outrigger";

/// The schema of a database.
pub fn schema(db: &str) -> Cow<'_, str> {
    match db {
        OWN_SCHEMA | "information_schema" => marked(db, db).into(),
        // Names that begin so are PostgreSQL's.
        _ if db.starts_with("pg_") => marked(&format!("_{db}"), db).into(),
        _ => fitting(db),
    }
}

/// The name, or as much of it as there is room for, with its hash.
pub fn fitting(name: &str) -> Cow<'_, str> {
    if name.len() <= BYTES_MAX { name.into() } else { marked(name, name).into() }
}

/// A name that is another than `shown`, whatever that is, and tells by `of` whose it is.
pub fn marked(shown: &str, of: &str) -> String {
    let digest = Sha256::digest(of.as_bytes());
    let mut hash = String::from("_");
    json::hex(&digest[..4], &mut hash);
    let mut end = shown.len().min(BYTES_MAX - hash.len());
    while !shown.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}{hash}", &shown[..end])
}

/// A name as SQL text has it.
pub fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A text as SQL has it.
pub fn literal(text: &str) -> String {
    let text = text.replace('\'', "''");
    // What a backslash means otherwise depends on `standard_conforming_strings`, which a role may have its own way.
    if text.contains('\\') {
        format!("E'{}'", text.replace('\\', "\\\\"))
    } else {
        format!("'{text}'")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_postgres_takes_is_kept_and_any_other_is_told_by_its_hash() {
        assert_eq!(schema("Shop"), "Shop");
        assert_eq!(fitting(&"x".repeat(63)).len(), 63);
        let (one, other) = ("y".repeat(64), format!("{}z", "y".repeat(63)));
        assert_ne!(fitting(&one), fitting(&other));
        assert!(fitting(&one).len() <= 63 && fitting(&one).starts_with("yyyy"));
        let wide = "é".repeat(40);
        assert!(fitting(&wide).len() <= 63);
        for reserved in ["outrigger", "pg_catalog", "pg_mine", "information_schema"] {
            let name = schema(reserved);
            assert_ne!(name, reserved);
            assert!(!name.starts_with("pg_"), "{name}");
        }
    }

    #[test]
    fn a_name_is_quoted_whatever_is_in_it() {
        assert_eq!(quoted("a\"b"), "\"a\"\"b\"");
        assert_eq!(literal("it's"), "'it''s'");
    }
}
