//! Replies that hold what is no UTF-8.
//!
//! A server cuts long texts of its own by bytes, in the middle of a character where it comes so: messages that
//! repeat a value (`dup key: { title: "…` }), commands that `currentOp` shows. And it may repeat names and values
//! that never were text. The driver makes a [`Document`] of each reply, which holds text alone, and fails over such a
//! one: of a reply that says which writes were refused as well as of one that is an error as a whole. It hands
//! the reply out with its error, so that it is read here: with a sign in the place of what is no text.
//!
//! Replies of cursors are not decoded by anybody, so documents are as exact as ever.

use bson::{Bson, Document, RawDocument, RawDocumentBuf};
use mongodb::error::{CommandError, Error, ErrorKind};

use crate::model::raw::{self, Builder, Field, Malformed, kind};

/// What a server repeats of a document's values. It is looked for by its very bytes, so it is left out where it is
/// no text: another text would be nobody's.
const KEY_VALUE: &str = "keyValue";

/// The reply of a command that was answered well, and that the driver could not decode.
pub(super) fn reply(error: &Error) -> Option<Document> {
    let reply = undecoded(error)?;
    is_ok(reply).then(|| document(reply).ok())?
}

/// The same error, if the server answered with one that the driver could not decode.
pub(super) fn refusal(error: &Error) -> Option<Error> {
    let reply = undecoded(error).filter(|reply| !is_ok(reply))?;
    let reply = document(reply).ok()?;
    let code = reply.get_i32("code").ok()?;
    let text = |name| reply.get_str(name).unwrap_or_default().to_owned();
    let refusal =
        bson::doc! { "code": code, "codeName": text("codeName"), "errmsg": text("errmsg") };
    let refusal: CommandError = bson::deserialize_from_document(refusal).ok()?;
    Some(Error::from(ErrorKind::Command(refusal)))
}

fn undecoded(error: &Error) -> Option<&RawDocument> {
    match error.kind.as_ref() {
        ErrorKind::Bson(_) | ErrorKind::InvalidResponse { .. } => {
            error.server_response().map(RawDocumentBuf::as_ref)
        }
        _ => None,
    }
}

fn is_ok(reply: &RawDocument) -> bool {
    let ok = reply.get("ok").ok().flatten().and_then(|ok| Bson::try_from(ok).ok());
    matches!(ok, Some(Bson::Double(1.0) | Bson::Int32(1) | Bson::Int64(1)))
}

/// A document with a sign in the place of what is no text.
fn document(raw: &RawDocument) -> Result<Document, Malformed> {
    let mut document = Document::new();
    for field in raw::fields(raw) {
        let field = field?;
        let name = String::from_utf8_lossy(field.name);
        if name != KEY_VALUE || Document::try_from(raw::nested(field.value)?).is_ok() {
            document.insert(name, value(field)?);
        }
    }
    Ok(document)
}

fn value(field: Field<'_>) -> Result<Bson, Malformed> {
    Ok(match field.kind {
        kind::STRING => Bson::String(raw::lossy(field.value).into_owned()),
        kind::SYMBOL => Bson::Symbol(raw::lossy(field.value).into_owned()),
        kind::CODE => Bson::JavaScriptCode(raw::lossy(field.value).into_owned()),
        kind::DOCUMENT => Bson::Document(document(raw::nested(field.value)?)?),
        kind::ARRAY => Bson::Array(
            raw::fields(raw::nested(field.value)?)
                .map(|item| value(item?))
                .collect::<Result<_, _>>()?,
        ),
        kind => {
            let mut builder = Builder::default();
            builder.push(kind, "value", field.value);
            let decoded = builder.finish().get("value").ok().flatten().map(Bson::try_from);
            // A regular expression that is no text: nobody asks for it.
            decoded.and_then(Result::ok).unwrap_or(Bson::Null)
        }
    })
}

#[cfg(test)]
mod tests {
    use bson::{doc, rawdoc};

    use super::*;

    /// `reply` with all of its `ÿ` made bytes that are no text.
    fn cut(reply: &RawDocument) -> RawDocumentBuf {
        let mut bytes = reply.as_bytes().to_vec();
        for at in 0..bytes.len() - 1 {
            if bytes[at..].starts_with("ÿ".as_bytes()) {
                bytes[at..at + 2].copy_from_slice(&[0xFF, 0xFE]);
            }
        }
        RawDocumentBuf::from_bytes(bytes).unwrap()
    }

    #[test]
    fn a_reply_with_what_is_no_text_is_read_with_signs_in_its_place() {
        let raw = cut(&rawdoc! {
            "ok": 1.0, "n": 1, "list": [1_i64, "aÿb", { "ÿ": true }],
            "writeErrors": [{ "errmsg": "dup key: { t: \"ÿ", "keyValue": { "t": "ÿ" } }, { "keyValue": { "t": "a" } }],
        });

        let read = document(&raw).unwrap();

        let signs = "\u{FFFD}\u{FFFD}";
        let expected = doc! {
            "ok": 1.0, "n": 1, "list": [1_i64, format!("a{signs}b"), { signs: true }],
            "writeErrors": [{ "errmsg": format!("dup key: {{ t: \"{signs}") }, { "keyValue": { "t": "a" } }],
        };
        assert_eq!(read, expected);
        assert!(Document::try_from(&*raw).is_err());
    }

    #[test]
    fn what_is_text_is_read_as_by_the_bson_crate() {
        let raw = rawdoc! {
            "s": "é", "d": 1.5, "o": { "a": [{ "x": null }] }, "at": bson::DateTime::from_millis(5),
            "t": bson::Timestamp { time: 1, increment: 2 }, "id": bson::oid::ObjectId::from_bytes([7; 12]),
            "keyValue": { "a": "b" },
        };

        assert_eq!(document(&raw).unwrap(), Document::try_from(&*raw).unwrap());
    }
}
