//! Atlas's answers in the words of a sink. What an error means is decided in
//! [`class`](crate::mongo::class); here stands what becomes of one write, and of a schema change.

use bson::{Document, RawDocumentBuf};

use crate::{
    model::write_op::Refusal,
    mongo::{
        MongoError,
        class::{
            Class, advice, class_of, class_of_code, is_code_out_of_time, is_missing_privilege,
            is_stopping, is_unanswered_write,
        },
    },
    sink::{SinkError, Taken, Written},
};

/// `DuplicateKey`.
const DUPLICATE_KEY: i32 = 11000;
/// `NamespaceNotFound` and `NamespaceExists`: what a schema change meant to do is done.
pub use crate::mongo::class::NAMESPACE_NOT_FOUND;
pub const NAMESPACE_EXISTS: i32 = 48;
/// `IndexNotFound`.
pub const INDEX_NOT_FOUND: i32 = 27;
/// An index build keeps a collection from being renamed or changed (6.0.5).
pub const BUILD_IN_PROGRESS: i32 = 12587;

/// `CommandNotSupportedOnView`: documents are to be written where Atlas has a view.
pub use crate::mongo::class::NOT_SUPPORTED_ON_VIEW as ON_VIEW;
/// `DatabaseDifferCase`: the server keeps no two databases whose names differ in capitals alone.
pub const OTHER_CAPITALS: i32 = 13297;

/// What stands where documents were to be written, and keeps all of a command away: its code and the server's words.
/// Servers tell it of the command, or of each of its writes.
pub fn in_the_way(reply: &Result<Document, MongoError>) -> Option<(i32, String)> {
    let is_it = |code: &i32| matches!(*code, ON_VIEW | OTHER_CAPITALS);
    match reply {
        Err(error) => Some((error.code().filter(is_it)?, error.to_string())),
        Ok(reply) => failed(reply).find_map(|error| {
            let code = Some(code_of(error)).filter(is_it)?;
            Some((code, error.get_str("errmsg").unwrap_or_default().to_owned()))
        }),
    }
}

/// What was not done of a reply's writes.
pub fn failed(reply: &Document) -> impl Iterator<Item = &Document> {
    let failed = reply.get_array("writeErrors").into_iter().flatten();
    failed.filter_map(bson::Bson::as_document)
}

/// `MultipleErrorsOccurred`: a router has handed a write on to several servers, and each says something else.
const SEVERAL: i32 = 65;

/// A failed write by itself, and what several servers say of it.
fn causes(error: &Document) -> impl Iterator<Item = &Document> {
    let info = error.get_document("errInfo").unwrap_or(error);
    let several = info.get_array("causedBy").into_iter().flatten();
    std::iter::once(error).chain(several.filter_map(bson::Bson::as_document))
}

fn code_of(error: &Document) -> i32 {
    error.get_i32("code").unwrap_or(0)
}

fn reason_of(error: &Document) -> String {
    let message = error.get_str("errmsg").unwrap_or("no message");
    format!("{} ({})", without_values(message), code_of(error))
}

/// The error where nobody knows what has become of writes, or of one of them: whatever else the reply says.
pub fn unanswered(reply: &Result<Document, MongoError>) -> Option<SinkError> {
    match reply {
        Err(error) if error.code().is_some_and(is_stopping) => {
            Some(SinkError::Unanswered(error.to_string()))
        }
        Err(error) => Some(command_error(error)).filter(SinkError::is_unanswered),
        Ok(reply) => {
            let found = failed(reply).flat_map(causes).find(|of| is_unanswered_write(code_of(of)));
            found.map(|error| SinkError::Unanswered(reason_of(error)))
        }
    }
}

/// True where the time was up for one of the writes: less may be answered.
pub fn is_out_of_time(reply: &Document) -> bool {
    failed(reply).flat_map(causes).any(|of| is_code_out_of_time(code_of(of)))
}

/// What a failed look means.
pub fn read_error(error: &MongoError) -> SinkError {
    of_a_read(command_error(error))
}

/// Nobody need fear what comes of a look late.
pub fn of_a_read(error: SinkError) -> SinkError {
    match error {
        SinkError::Unanswered(reason) => SinkError::Unavailable(reason),
        error => error,
    }
}

/// What a failed command means.
pub fn command_error(error: &MongoError) -> SinkError {
    let text = error.to_string();
    match class_of(error) {
        Class::Unavailable if error.may_come_true() => SinkError::Unanswered(text),
        Class::Unavailable => SinkError::Unavailable(text),
        Class::Denied => {
            SinkError::Denied(format!("{text}; {}", advice(error, "MONGODB_ATLAS_URI")))
        }
        Class::HistoryLost | Class::Rejected => SinkError::Rejected(text),
    }
}

/// With more to be told of a command for which the time was up.
pub fn told_with(error: SinkError, advice: Option<String>) -> SinkError {
    match (error, advice) {
        (SinkError::Unanswered(text), Some(advice)) => {
            SinkError::Unanswered(format!("{text}; {advice}"))
        }
        (SinkError::Unavailable(text), Some(advice)) => {
            SinkError::Unavailable(format!("{text}; {advice}"))
        }
        (error, _) => error,
    }
}

/// As [`command_error`], for a change of a collection: that this user may not make it is no reason for others to
/// wait. `needs` names the privilege.
pub fn schema_error(error: &MongoError, needs: &str) -> SinkError {
    if is_missing_privilege(error) {
        let roles = "or the roles that `outrigger roles` prints";
        return SinkError::Held(format!("{error}; grant its user the privilege {needs}, {roles}"));
    }
    command_error(error)
}

/// What one element of a reply's `writeErrors` means: for the write alone, or, as an error, for the
/// whole batch (a stepdown in the middle of it).
pub fn write_error(error: &Document, is_insert: bool) -> Result<Written, SinkError> {
    let code = code_of(error);
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
        let key = error.get_document("keyValue").ok();
        let key = key.and_then(|key| RawDocumentBuf::try_from(key).ok());
        return Ok(Written::Conflict { reason, taken: Taken { index: index_name(message), key } });
    }
    let reason = reason_of(error);
    if causes(error).any(|of| is_unanswered_write(code_of(of))) {
        return Err(SinkError::Unanswered(reason));
    }
    let class_of = |of: &Document| class_of_code(code_of(of), of.get_str("errmsg").unwrap_or(""));
    // Several reasons are no more than that: they pass where each of them does.
    let mut several = causes(error).skip(1).map(class_of).peekable();
    let may_pass =
        code == SEVERAL && several.peek().is_some() && several.all(|of| of == Class::Unavailable);
    match if may_pass { Class::Unavailable } else { class_of(error) } {
        Class::Unavailable => Err(SinkError::Unavailable(reason)),
        Class::Denied => Err(SinkError::Denied(reason)),
        Class::HistoryLost | Class::Rejected => {
            Ok(Written::Rejected { reason, refusal: refusal(code) })
        }
    }
}

/// True where one of the writes failed for the collection's validator.
pub fn is_refused_by_a_validator(reply: &Document) -> bool {
    failed(reply).any(|error| refusal(code_of(error)) == Refusal::Validation)
}

/// `DocumentValidationFailure`; `BSONObjectTooLarge` and its older number, and 17420, a document that an
/// update would make too large.
fn refusal(code: i32) -> Refusal {
    match code {
        121 => Refusal::Validation,
        10334 | 17419 | 17420 => Refusal::TooLarge,
        _ => Refusal::Other,
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
    fn a_stepdown_within_a_batch_is_no_documents_fault() {
        for code in [189, 10107, 11602] {
            let error = doc! { "index": 0, "code": code, "errmsg": "x" };
            assert!(matches!(write_error(&error, true), Err(SinkError::Unavailable(_))));
        }
        let error = doc! { "code": 13, "errmsg": "not authorized" };
        assert!(matches!(write_error(&error, true), Err(SinkError::Denied(_))));
    }

    /// As a router tells of a write of its own, whatever else the reply says.
    #[test]
    fn a_router_that_waits_no_longer_for_its_server_has_not_answered_a_write() {
        let of = |error: Document| {
            let other = doc! { "index": 0, "code": 189, "errmsg": "stepped down" };
            let concern = doc! { "code": 189, "errmsg": "x" };
            let reply = doc! { "ok": 1, "writeErrors": [other, error.clone()], "writeConcernError": concern };
            let told = write_error(&error, false);
            assert!(matches!(told, Err(SinkError::Unanswered(_))), "{error}: {told:?}");
            (unanswered(&Ok(reply.clone())), is_out_of_time(&reply))
        };
        for code in [6, 50, 89, 90, 91, 202, 262, 317, 384, 9001, 11600, 11601, 91331] {
            let (told, out_of_time) = of(doc! { "index": 1, "code": code, "errmsg": "x" });
            assert_eq!(told, Some(SinkError::Unanswered(format!("x ({code})"))));
            assert_eq!(out_of_time, code == 50 || code == 202, "{code}");
        }
        let both = [doc! { "code": 189, "errmsg": "a" }, doc! { "code": 50, "errmsg": "b" }];
        for several in
            [doc! { "causedBy": both.to_vec() }, doc! { "errInfo": { "causedBy": both.to_vec() } }]
        {
            let mut error = doc! { "index": 1, "code": 65, "errmsg": "several" };
            error.extend(several);
            assert_eq!(of(error), (Some(SinkError::Unanswered("b (50)".to_owned())), true));
        }
        let answered =
            doc! { "ok": 1, "writeErrors": [{ "index": 0, "code": 189, "errmsg": "x" }] };
        assert_eq!((unanswered(&Ok(answered.clone())), is_out_of_time(&answered)), (None, false));
    }

    #[test]
    fn what_several_servers_say_passes_where_each_of_it_does() {
        let of = |codes: &[i32]| {
            let causes: Vec<_> =
                codes.iter().map(|code| doc! { "code": *code, "errmsg": "x" }).collect();
            write_error(&doc! { "code": 65, "errmsg": "several", "causedBy": causes }, false)
        };
        assert!(matches!(of(&[189, 112]), Err(SinkError::Unavailable(_))));
        assert!(matches!(of(&[189, 121]), Ok(Written::Rejected { .. })));
        assert!(matches!(of(&[]), Ok(Written::Rejected { .. })));
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

        let Ok(Written::Rejected { reason, .. }) = write_error(&error, false) else {
            panic!("a document of its own kind of badness is rejected")
        };

        assert_eq!(reason, "Can't extract geo keys (16755)");
    }

    #[test]
    fn what_nobody_thought_of_is_rejected() {
        let error = doc! { "code": 121, "errmsg": "Document failed validation" };

        assert!(matches!(
            write_error(&error, false),
            Ok(Written::Rejected { refusal: Refusal::Validation, .. })
        ));
    }
}
