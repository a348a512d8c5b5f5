//! What an error of Atlas means, decided here and nowhere else.
//!
//! The codes that both ends share are listed by name in [`mongo`](crate::mongo); what is not listed is *rejected*, so that an
//! error nobody thought of ends as a dead letter with its text and not as a wait without end.

use bson::Document;
use mongodb::error::ErrorKind;

use super::{SinkError, Written};
use crate::mongo::{DENIED, MongoError, UNAVAILABLE, is_in};

/// `AtlasError`: the cloud's own code, for a quota that is used up as well as for a bad password.
const ATLAS_ERROR: i32 = 8000;
/// `Unauthorized`, which a write that bypasses validation gets where the user may not.
pub const UNAUTHORIZED: i32 = 13;
/// `DuplicateKey`.
const DUPLICATE_KEY: i32 = 11000;
/// `NamespaceNotFound` and `NamespaceExists`: what a schema change meant to do is done.
pub const NAMESPACE_NOT_FOUND: i32 = 26;
pub const NAMESPACE_EXISTS: i32 = 48;

/// What a failed command means.
pub fn command_error(error: &MongoError) -> SinkError {
    let text = error.to_string();
    let MongoError::Driver(driver) = error else {
        return match error {
            MongoError::BadUri(_) => SinkError::Denied(text),
            MongoError::Silent(_) | MongoError::Driver(_) => SinkError::Unavailable(text),
        };
    };
    match driver.kind.as_ref() {
        ErrorKind::Command(command) => by_code(command.code, text, || {
            driver.contains_label("RetryableWriteError")
                || driver.contains_label("TransientTransactionError")
        }),
        ErrorKind::Authentication { .. } | ErrorKind::InvalidTlsConfig { .. } => {
            SinkError::Denied(text)
        }
        // What the driver says of a server that it cannot select names the cause in its text only.
        ErrorKind::ServerSelection { .. } | ErrorKind::Io(_) if is_tls_refusal(&text) => {
            SinkError::Denied(text)
        }
        ErrorKind::ServerSelection { .. }
        | ErrorKind::Io(_)
        | ErrorKind::ConnectionPoolCleared { .. }
        | ErrorKind::DnsResolve { .. } => SinkError::Unavailable(text),
        _ if driver.contains_label("RetryableWriteError") => SinkError::Unavailable(text),
        _ => SinkError::Rejected(text),
    }
}

fn by_code(code: i32, text: String, has_retry_label: impl Fn() -> bool) -> SinkError {
    if code == ATLAS_ERROR {
        return if text.to_ascii_lowercase().contains("auth") {
            SinkError::Denied(text)
        } else {
            SinkError::Unavailable(text)
        };
    }
    if is_in(DENIED, code) {
        SinkError::Denied(text)
    } else if is_in(UNAVAILABLE, code) || has_retry_label() {
        SinkError::Unavailable(text)
    } else {
        SinkError::Rejected(text)
    }
}

fn is_tls_refusal(text: &str) -> bool {
    let text = text.to_ascii_lowercase();
    text.contains("certificate")
        || text.contains("handshake failure")
        || text.contains("authentication failed")
}

/// What one element of a reply's `writeErrors` means: for the write alone, or, as an error, for the
/// whole batch (a stepdown in the middle of it).
pub fn write_error(error: &Document, is_insert: bool) -> Result<Written, SinkError> {
    let code = error.get_i32("code").unwrap_or(0);
    let message = error.get_str("errmsg").unwrap_or("no message");
    if code == DUPLICATE_KEY {
        let pattern = error.get_document("keyPattern").ok();
        let is_id =
            pattern.is_some_and(|pattern| pattern.len() == 1 && pattern.contains_key("_id"));
        if is_id && is_insert {
            return Ok(Written::AlreadyThere);
        }
        let index = pattern.map_or_else(
            || "unknown".to_owned(),
            |pattern| pattern.keys().cloned().collect::<Vec<_>>().join(", "),
        );
        // Not the server's message: it repeats the values.
        let reason =
            format!("another document holds the same value in the unique index on ({index})");
        return Ok(Written::Conflict { reason, index: index_name(message) });
    }
    match by_code(code, format!("{} ({code})", without_values(message)), || false) {
        SinkError::Rejected(reason) => Ok(Written::Rejected { reason }),
        error => Err(error),
    }
}

/// The index that a duplicate-key message names: `… index: NAME dup key: …`, or `collation:` in place of
/// `dup key:`.
fn index_name(message: &str) -> Option<String> {
    let (_, rest) = message.split_once(" index: ")?;
    let end = [" dup key:", " collation:"].iter().filter_map(|mark| rest.find(mark)).min()?;
    Some(rest[..end].to_owned())
}

/// The server's words up to where they begin to quote a document.
fn without_values(message: &str) -> &str {
    message.split(['{', '"']).next().unwrap_or("").trim_end_matches([' ', ':', ','])
}

/// What a reply's `writeConcernError` means: the write may be rolled back, so it is not done.
pub fn write_concern_error(error: &Document) -> SinkError {
    let message = error.get_str("errmsg").unwrap_or("no message");
    SinkError::Unavailable(format!("not confirmed by a majority: {message}"))
}

#[cfg(test)]
mod tests {
    use bson::doc;

    use super::*;

    #[test]
    fn a_quota_is_waited_for_and_a_bad_password_is_not() {
        assert!(matches!(
            by_code(8000, "you are over your space quota".into(), || false),
            SinkError::Unavailable(_)
        ));
        assert!(matches!(
            by_code(8000, "bad auth : Authentication failed.".into(), || false),
            SinkError::Denied(_)
        ));
    }

    #[test]
    fn a_stepdown_within_a_batch_is_no_documents_fault() {
        for (code, _) in UNAVAILABLE {
            let error = doc! { "index": 0, "code": *code, "errmsg": "x" };
            assert!(matches!(write_error(&error, true), Err(SinkError::Unavailable(_))));
        }
        let error = doc! { "code": 13, "errmsg": "not authorized" };
        assert!(matches!(write_error(&error, true), Err(SinkError::Denied(_))));
    }

    #[test]
    fn a_duplicate_id_is_told_apart_from_a_unique_value_and_repeats_no_value() {
        let id = doc! { "code": 11000, "keyPattern": { "_id": 1 }, "errmsg": "dup s3cret" };
        let unique = doc! { "code": 11000, "keyPattern": { "email": 1 }, "errmsg": "dup s3cret" };

        assert_eq!(write_error(&id, true), Ok(Written::AlreadyThere));
        match write_error(&unique, true) {
            Ok(Written::Conflict { reason, .. }) => {
                assert!(reason.contains("email") && !reason.contains("s3cret"));
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_reason_quotes_no_document() {
        let error = doc! { "code": 16755, "errmsg": "Can't extract geo keys: { _id: 1, card: \"s3cret\" }" };

        let Ok(Written::Rejected { reason }) = write_error(&error, false) else {
            panic!("a document of its own kind of badness is rejected")
        };

        assert_eq!(reason, "Can't extract geo keys (16755)");
    }

    #[test]
    fn what_nobody_thought_of_is_rejected() {
        let error = doc! { "code": 121, "errmsg": "Document failed validation" };

        assert!(matches!(write_error(&error, false), Ok(Written::Rejected { .. })));
    }
}
