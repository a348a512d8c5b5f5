//! A document as `jsonb`, in the form in which SQL is best asked of it, and what of it `jsonb` cannot hold.
//!
//! What JSON has is JSON: texts, numbers of every type, booleans, null, documents, arrays. What people compare as text
//! is text: an ObjectId its 24 digits, a date ISO 8601 in UTC, a UUID its usual form. Everything else is canonical
//! Extended JSON, `{"$binary": …}`, `{"$timestamp": …}`. So the type of a value is not told by its JSON alone; that two
//! documents are the same is told by the hash beside it, of their BSON.
//!
//! `jsonb` holds no NUL in a text, no `NaN` and no infinity, no name twice, and no bytes that are no text. A document
//! with one of these still has its row: with a sign in the place of the bytes, with the number as a text, with the last
//! of the fields that share a name. Each such [`Loss`] is told, and the row then keeps the BSON as well.

use std::fmt::Write as _;

use base64::{Engine, prelude::BASE64_STANDARD};
use bson::RawDocument;

use super::moment;
use crate::model::raw::{self, Field, Malformed, kind};

/// What `jsonb` does not hold of a document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loss {
    /// Where, with dots between the names.
    pub path: String,
    pub what: &'static str,
}

/// So many are told of one document; it is one of a kind after that.
const LOSSES_MAX: usize = 8;

/// Bytes of a path that are told: with the key of the document it is in an index.
const PATH_BYTES_MAX: usize = 200;

/// As deep as a server lets documents be, and some more.
const DEPTH_MAX: usize = 200;

/// Writes JSON, and remembers what it could not.
#[derive(Default)]
pub struct Json {
    text: String,
    losses: Vec<Loss>,
    path: Vec<String>,
}

impl Json {
    /// The JSON of one value, and what is lost in it.
    ///
    /// # Errors
    /// [`Malformed`] for bytes that are no such value.
    pub fn of(kind: u8, value: &[u8]) -> Result<(String, Vec<Loss>), Malformed> {
        let mut json = Json { text: String::with_capacity(value.len() * 2), ..Json::default() };
        json.value(kind, value)?;
        // One for each place: a text may hold more than one NUL.
        let mut losses: Vec<Loss> = Vec::with_capacity(json.losses.len());
        for mut loss in json.losses {
            if loss.path.len() > PATH_BYTES_MAX {
                let is_whole = |at: &usize| loss.path.is_char_boundary(*at);
                let end = (0..=PATH_BYTES_MAX).rev().find(is_whole).unwrap_or(0);
                loss.path.truncate(end);
                loss.path.push('…');
            }
            if losses.iter().all(|told| told.path != loss.path) {
                losses.push(loss);
            }
        }
        Ok((json.text, losses))
    }

    fn lost(&mut self, what: &'static str) {
        if self.losses.len() < LOSSES_MAX {
            self.losses.push(Loss { path: self.path.join("."), what });
        }
    }

    fn document(&mut self, document: &RawDocument) -> Result<(), Malformed> {
        self.text.push('{');
        let mut seen = Seen::default();
        for (at, field) in raw::fields(document).enumerate() {
            let field = field?;
            if at > 0 {
                self.text.push(',');
            }
            let is_repeated = seen.has(field.name);
            self.within(field, |json, field| {
                if is_repeated {
                    json.lost("a name that is there twice: the last one counts");
                }
                json.string(field.name);
                json.text.push(':');
                json.value(field.kind, field.value)
            })?;
        }
        self.text.push('}');
        Ok(())
    }

    fn within<'a>(
        &mut self,
        field: Field<'a>,
        write: impl FnOnce(&mut Self, Field<'a>) -> Result<(), Malformed>,
    ) -> Result<(), Malformed> {
        if self.path.len() >= DEPTH_MAX {
            return Err(Malformed("nested too deeply".into()));
        }
        // Named when something is lost there, which is rare.
        self.path.push(String::new());
        let before = self.losses.len();
        write(self, field)?;
        self.path.pop();
        if before < self.losses.len() {
            self.name_losses(before, &String::from_utf8_lossy(field.name));
        }
        Ok(())
    }

    /// Puts the name of the field that is left into the paths of what was lost in it.
    fn name_losses(&mut self, from: usize, name: &str) {
        let depth = self.path.len();
        for loss in &mut self.losses[from..] {
            let mut parts: Vec<_> = loss.path.split('.').map(str::to_owned).collect();
            if let Some(part) = parts.get_mut(depth) {
                // A dot in a name would cut the path elsewhere.
                *part = name.replace('.', "\u{2024}");
            }
            loss.path = parts.join(".");
        }
    }

    fn value(&mut self, kind: u8, value: &[u8]) -> Result<(), Malformed> {
        let misfit = || Malformed("a value that is too short for its type".into());
        match kind {
            kind::DOCUMENT => return self.document(raw::nested(value)?),
            kind::ARRAY => {
                self.text.push('[');
                for (at, field) in raw::fields(raw::nested(value)?).enumerate() {
                    if at > 0 {
                        self.text.push(',');
                    }
                    self.within(field?, |json, field| json.value(field.kind, field.value))?;
                }
                self.text.push(']');
            }
            kind::STRING | kind::SYMBOL => self.string(text(value).ok_or_else(misfit)?),
            kind::DOUBLE => self.double(f64::from_le_bytes(fixed(value).ok_or_else(misfit)?)),
            kind::INT32 => {
                self.put(i32::from_le_bytes(fixed(value).ok_or_else(misfit)?));
            }
            kind::INT64 => {
                self.put(i64::from_le_bytes(fixed(value).ok_or_else(misfit)?));
            }
            kind::DECIMAL128 => {
                let number = bson::Decimal128::from_bytes(fixed(value).ok_or_else(misfit)?);
                self.decimal(&number.to_string());
            }
            kind::BOOL => self.text.push_str(if value == [0] { "false" } else { "true" }),
            kind::NULL => self.text.push_str("null"),
            kind::OBJECT_ID => {
                self.text.push('"');
                hex(value, &mut self.text);
                self.text.push('"');
            }
            kind::DATE_TIME => {
                let millis = i64::from_le_bytes(fixed(value).ok_or_else(misfit)?);
                match moment::iso8601(millis) {
                    Some(text) => self.put(format_args!("\"{text}\"")),
                    None => {
                        self.put(format_args!("{{\"$date\":{{\"$numberLong\":\"{millis}\"}}}}"));
                    }
                }
            }
            kind::BINARY => self.binary(value.get(4..).ok_or_else(misfit)?),
            kind::TIMESTAMP => {
                let stamp = u64::from_le_bytes(fixed(value).ok_or_else(misfit)?);
                let (t, i) = (stamp >> 32, stamp & u64::from(u32::MAX));
                self.put(format_args!("{{\"$timestamp\":{{\"t\":{t},\"i\":{i}}}}}"));
            }
            kind::REGEX => {
                let mut parts = value.split(|byte| *byte == 0);
                self.text.push_str("{\"$regularExpression\":{\"pattern\":");
                self.string(parts.next().unwrap_or_default());
                self.text.push_str(",\"options\":");
                self.string(parts.next().unwrap_or_default());
                self.text.push_str("}}");
            }
            kind::CODE => {
                self.text.push_str("{\"$code\":");
                self.string(text(value).ok_or_else(misfit)?);
                self.text.push('}');
            }
            kind::CODE_WITH_SCOPE => {
                let inside = value.get(4..).ok_or_else(misfit)?;
                let len = u32::from_le_bytes(*inside.first_chunk().ok_or_else(misfit)?) as usize;
                let (code, scope) = inside.split_at_checked(4 + len).ok_or_else(misfit)?;
                self.text.push_str("{\"$code\":");
                self.string(text(code).ok_or_else(misfit)?);
                self.text.push_str(",\"$scope\":");
                self.document(raw::nested(scope)?)?;
                self.text.push('}');
            }
            kind::DB_POINTER => {
                let (name, id) = value.split_last_chunk::<12>().ok_or_else(misfit)?;
                self.text.push_str("{\"$dbPointer\":{\"$ref\":");
                self.string(text(name).ok_or_else(misfit)?);
                self.text.push_str(",\"$id\":\"");
                hex(id, &mut self.text);
                self.text.push_str("\"}}");
            }
            kind::UNDEFINED => self.text.push_str("{\"$undefined\":true}"),
            kind::MIN_KEY => self.text.push_str("{\"$minKey\":1}"),
            kind::MAX_KEY => self.text.push_str("{\"$maxKey\":1}"),
            _ => return Err(Malformed("a value of no known type".into())),
        }
        Ok(())
    }

    fn put(&mut self, what: impl std::fmt::Display) {
        // Nothing that is written into a text fails.
        let _ = write!(self.text, "{what}");
    }

    fn double(&mut self, v: f64) {
        let size = v.abs();
        if !v.is_finite() {
            self.not_finite(if v.is_nan() {
                "NaN"
            } else if v > 0.0 {
                "Infinity"
            } else {
                "-Infinity"
            });
        } else if size == 0.0 || (1e-5..1e16).contains(&size) {
            self.put(v);
        } else {
            self.put(format_args!("{v:e}"));
        }
    }

    fn decimal(&mut self, text: &str) {
        match text {
            "NaN" | "Infinity" | "-Infinity" => self.not_finite(text),
            _ => self.text.push_str(text),
        }
    }

    /// As a text, of which a cast to `numeric` or `double precision` makes the number again.
    fn not_finite(&mut self, name: &str) {
        self.lost("a number that JSON does not have, kept as a text");
        self.put(format_args!("\"{name}\""));
    }

    fn binary(&mut self, value: &[u8]) {
        let (&subtype, bytes) = value.split_first().unwrap_or((&0, &[]));
        if let (4, Ok(id)) = (subtype, <[u8; 16]>::try_from(bytes)) {
            self.put(format_args!("\"{}\"", uuid(id)));
        } else {
            self.text.push_str("{\"$binary\":{\"base64\":\"");
            BASE64_STANDARD.encode_string(bytes, &mut self.text);
            self.put(format_args!("\",\"subType\":\"{subtype:02x}\"}}}}"));
        }
    }

    fn string(&mut self, bytes: &[u8]) {
        let text = String::from_utf8_lossy(bytes);
        if matches!(text, std::borrow::Cow::Owned(_)) {
            self.lost("bytes that are no text");
        }
        self.text.push('"');
        let mut plain = 0;
        for (at, byte) in text.bytes().enumerate() {
            if byte >= b' ' && byte != b'"' && byte != b'\\' {
                continue;
            }
            self.text.push_str(&text[plain..at]);
            plain = at + 1;
            match byte {
                b'"' => self.text.push_str("\\\""),
                b'\\' => self.text.push_str("\\\\"),
                0 => {
                    self.lost("a NUL in a text");
                    self.text.push(char::REPLACEMENT_CHARACTER);
                }
                byte => self.put(format_args!("\\u{byte:04x}")),
            }
        }
        self.text.push_str(&text[plain..]);
        self.text.push('"');
    }
}

/// Names that an object has had.
#[derive(Default)]
struct Seen<'a> {
    few: Vec<&'a [u8]>,
    many: ahash::AHashSet<&'a [u8]>,
}

/// Beyond these a hash is quicker than a look at each.
const FEW: usize = 12;

impl<'a> Seen<'a> {
    /// True for a name that was asked for before.
    fn has(&mut self, name: &'a [u8]) -> bool {
        if self.few.len() < FEW {
            let is_there = self.few.contains(&name);
            self.few.push(name);
            return is_there;
        }
        self.few.contains(&name) || !self.many.insert(name)
    }
}

/// What a string's bytes hold.
fn text(value: &[u8]) -> Option<&[u8]> {
    value.get(4..value.len().wrapping_sub(1))
}

fn fixed<const N: usize>(value: &[u8]) -> Option<[u8; N]> {
    value.try_into().ok()
}

/// Two digits for each byte.
pub fn hex(bytes: &[u8], out: &mut String) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    for byte in bytes {
        out.push(DIGITS[usize::from(byte >> 4)].into());
        out.push(DIGITS[usize::from(byte & 15)].into());
    }
}

/// A UUID as people write it.
pub fn uuid(id: [u8; 16]) -> String {
    let mut digits = String::with_capacity(36);
    for (at, byte) in id.into_iter().enumerate() {
        if matches!(at, 4 | 6 | 8 | 10) {
            digits.push('-');
        }
        hex(&[byte], &mut digits);
    }
    digits
}

#[cfg(test)]
mod tests {
    use bson::{Bson, RawDocumentBuf, doc};

    use super::*;

    fn json(document: bson::Document) -> (String, Vec<Loss>) {
        Json::of(kind::DOCUMENT, RawDocumentBuf::try_from(&document).unwrap().as_bytes()).unwrap()
    }

    #[test]
    fn what_json_has_is_json_and_what_people_read_as_text_is_text() {
        let id: bson::oid::ObjectId = "64f1c0ffee64f1c0ffee64f1".parse().unwrap();
        let document = doc! {
            "_id": id, "n": 1, "l": 1_i64 << 60, "d": 1.5, "e": 1e300, "s": "a\"\\\n", "b": true, "z": Bson::Null,
            "at": bson::DateTime::from_millis(1_700_000_000_123), "price": "12.50".parse::<bson::Decimal128>().unwrap(),
            "list": [1, {"x": "y"}], "blob": bson::Binary { subtype: bson::spec::BinarySubtype::Generic, bytes: vec![1, 2] },
            "re": bson::Regex { pattern: "^a".try_into().unwrap(), options: "i".try_into().unwrap() },
        };
        let (text, losses) = json(document);
        assert_eq!(
            text,
            r#"{"_id":"64f1c0ffee64f1c0ffee64f1","n":1,"l":1152921504606846976,"d":1.5,"e":1e300,"s":"a\"\\\u000a","b":true,"z":null,"at":"2023-11-14T22:13:20.123Z","price":12.50,"list":[1,{"x":"y"}],"blob":{"$binary":{"base64":"AQI=","subType":"00"}},"re":{"$regularExpression":{"pattern":"^a","options":"i"}}}"#
        );
        assert_eq!(losses, []);
    }

    #[test]
    fn what_jsonb_cannot_hold_is_told_with_its_path() {
        let (text, losses) = json(doc! { "a": {"list": [0, f64::NAN]}, "s": "x\0y\0", "f": 1 });
        assert_eq!(text, "{\"a\":{\"list\":[0,\"NaN\"]},\"s\":\"x\u{FFFD}y\u{FFFD}\",\"f\":1}");
        let told: Vec<_> = losses.iter().map(|loss| &*loss.path).collect();
        assert_eq!(told, ["a.list.1", "s"]);
    }

    #[test]
    fn a_path_is_told_as_far_as_an_index_takes_it() {
        let (_, losses) = json(doc! { "é".repeat(3_000): f64::NAN });

        assert_eq!(losses[0].path, format!("{}…", "é".repeat(100)));
    }

    #[test]
    fn a_name_that_is_there_twice_is_told_however_many_there_are() {
        for before in [0, 5, 30] {
            let mut builder = raw::Builder::default();
            builder.push_i64("twice", 1);
            for n in 0..before {
                builder.push_i64(&format!("f{n}"), n);
            }
            builder.push_i64("twice", 2);
            let (_, losses) = Json::of(kind::DOCUMENT, builder.finish().as_bytes()).unwrap();
            assert_eq!(losses.len(), 1, "{before}");
            assert_eq!(losses[0].path, "twice");
        }
    }
}
