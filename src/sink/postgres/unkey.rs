//! From a primary key back to an `_id` that MongoDB holds for the same.
//!
//! The key tells no type among numbers, nor a symbol from a string, so what comes back is one of those that are equal.
//! With it a row is known by its key alone, whatever somebody has made of the rest of it.

use super::key::{self, number as part, tag};
use crate::model::{document_key::DocumentKey, raw::kind};

/// As deep as a server lets documents be, and some more.
const DEPTH_MAX: usize = 200;

/// The `_id` of a key; `None` for bytes that are none.
pub fn decode(bytes: &[u8]) -> Option<DocumentKey> {
    let mut reader = KeyReader { rest: bytes };
    let tag = reader.byte()?;
    let (kind, value) = reader.value(tag, 0)?;
    // What has more than one form has one that is right.
    if !reader.rest.is_empty() || key::encode(kind, &value).ok()? != bytes {
        return None;
    }
    let mut document = Vec::new();
    let field = [&[kind], &b"_id\0"[..], &value].concat();
    push_document(&field, &mut document);
    DocumentKey::from_filter_bytes(&document).ok()
}

/// Fields, as a document.
fn push_document(fields: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(&(fields.len() as u32 + 5).to_le_bytes());
    out.extend_from_slice(fields);
    out.push(0);
}

fn push_string(text: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(&(text.len() as u32 + 1).to_le_bytes());
    out.extend_from_slice(text);
    out.push(0);
}

struct KeyReader<'a> {
    rest: &'a [u8],
}

impl<'a> KeyReader<'a> {
    fn byte(&mut self) -> Option<u8> {
        let (byte, rest) = self.rest.split_first()?;
        self.rest = rest;
        Some(*byte)
    }

    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.rest.split_at_checked(count)?;
        self.rest = rest;
        Some(taken)
    }

    fn fixed<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    /// Up to a NUL, which is stepped over.
    fn name(&mut self) -> Option<&'a [u8]> {
        let len = self.rest.iter().position(|byte| *byte == 0)?;
        let name = self.take(len)?;
        self.take(1)?;
        Some(name)
    }

    /// A string, in which a NUL is `00 FF`.
    fn text(&mut self) -> Option<Vec<u8>> {
        let mut text = Vec::new();
        loop {
            text.extend_from_slice(self.name()?);
            if self.rest.first() != Some(&0xFF) {
                return Some(text);
            }
            self.take(1)?;
            text.push(0);
        }
    }

    /// The body of a value behind its tag: what it is in a document.
    fn value(&mut self, tag: u8, depth: usize) -> Option<(u8, Vec<u8>)> {
        if depth > DEPTH_MAX {
            return None;
        }
        let mut out = Vec::new();
        let kind = match tag {
            tag::MIN_KEY => kind::MIN_KEY,
            tag::UNDEFINED => kind::UNDEFINED,
            tag::NULL => kind::NULL,
            tag::MAX_KEY => kind::MAX_KEY,
            tag::NUMBER => return self.number(),
            tag::STRING | tag::CODE => {
                push_string(&self.text()?, &mut out);
                if tag == tag::STRING { kind::STRING } else { kind::CODE }
            }
            tag::DOCUMENT | tag::ARRAY => {
                let fields = self.fields(tag == tag::ARRAY, depth)?;
                push_document(&fields, &mut out);
                if tag == tag::ARRAY { kind::ARRAY } else { kind::DOCUMENT }
            }
            tag::BINARY => {
                let len = u32::from_be_bytes(self.fixed()?);
                out.extend_from_slice(&len.to_le_bytes());
                out.push(self.byte()?);
                out.extend_from_slice(self.take(len as usize)?);
                kind::BINARY
            }
            tag::OBJECT_ID => {
                out.extend_from_slice(self.take(12)?);
                kind::OBJECT_ID
            }
            tag::BOOL => {
                out.push(self.byte()?);
                kind::BOOL
            }
            tag::DATE_TIME => {
                let millis = u64::from_be_bytes(self.fixed()?) ^ (1 << 63);
                out.extend_from_slice(&millis.to_le_bytes());
                kind::DATE_TIME
            }
            tag::TIMESTAMP => {
                out.extend_from_slice(&u64::from_be_bytes(self.fixed()?).to_le_bytes());
                kind::TIMESTAMP
            }
            tag::REGEX => {
                for text in [self.name()?, self.name()?] {
                    out.extend_from_slice(text);
                    out.push(0);
                }
                kind::REGEX
            }
            tag::DB_POINTER => {
                let len = u32::from_be_bytes(self.fixed()?);
                push_string(self.take(len as usize)?, &mut out);
                out.extend_from_slice(self.take(12)?);
                kind::DB_POINTER
            }
            tag::CODE_WITH_SCOPE => {
                let mut inside = Vec::new();
                push_string(&self.text()?, &mut inside);
                let tag = self.byte().filter(|tag| *tag == tag::DOCUMENT)?;
                inside.extend(self.value(tag, depth + 1)?.1);
                out.extend_from_slice(&(inside.len() as u32 + 4).to_le_bytes());
                out.extend(inside);
                kind::CODE_WITH_SCOPE
            }
            _ => return None,
        };
        Some((kind, out))
    }

    fn fields(&mut self, is_list: bool, depth: usize) -> Option<Vec<u8>> {
        let mut fields = Vec::new();
        for at in 0.. {
            let tag = self.byte()?;
            if tag == 0 {
                break;
            }
            let name = if is_list { at.to_string().into_bytes() } else { self.name()?.to_vec() };
            let (kind, value) = self.value(tag, depth + 1)?;
            fields.push(kind);
            fields.extend(name);
            fields.push(0);
            fields.extend(value);
        }
        Some(fields)
    }

    fn number(&mut self) -> Option<(u8, Vec<u8>)> {
        let double = |v: f64| Some((kind::DOUBLE, v.to_le_bytes().to_vec()));
        let is_negative = match self.byte()? {
            part::NAN => return double(f64::NAN),
            part::NEGATIVE_INFINITY => return double(f64::NEG_INFINITY),
            part::INFINITY => return double(f64::INFINITY),
            part::ZERO => return Some((kind::INT32, vec![0; 4])),
            part::NEGATIVE => true,
            part::POSITIVE => false,
            _ => return None,
        };
        let turned = if is_negative { 0xFF } else { 0 };
        let exponent = self.fixed::<2>()?.map(|byte| byte ^ turned);
        let mut digits = String::new();
        loop {
            match self.byte()? ^ turned {
                0 => break,
                pair @ 1..=100 => {
                    digits.extend([(pair - 1) / 10, (pair - 1) % 10].map(|d| char::from(b'0' + d)));
                }
                _ => return None,
            }
        }
        let kept = digits.trim_end_matches('0').len();
        digits.truncate(kept);
        let exponent = i32::from(u16::from_be_bytes(exponent)) - part::BIAS;
        // Of the last digit.
        let mut last = exponent - (digits.len() as i32 - 1);
        let sign = if is_negative { "-" } else { "" };
        let text = format!("{sign}{digits}e{last}");
        if (0..19).contains(&last) {
            let whole = format!("{sign}{digits}{}", "0".repeat(last as usize));
            if let Ok(v) = whole.parse::<i64>() {
                return Some((kind::INT64, v.to_le_bytes().to_vec()));
            }
        }
        let v: f64 = text.parse().ok()?;
        let mut encoded = Vec::new();
        part::double(v, &mut encoded);
        let mut wanted = Vec::new();
        part::finite(
            is_negative,
            &digits.bytes().map(|d| d - b'0').collect::<Vec<_>>(),
            exponent,
            &mut wanted,
        );
        if encoded == wanted {
            return double(v);
        }
        // As many digits as there are, so that the exponent is one that a decimal has.
        while digits.len() < 34 && last > 6111 {
            digits.push('0');
            last -= 1;
        }
        let decimal: bson::Decimal128 = format!("{sign}{digits}E{last}").parse().ok()?;
        Some((kind::DECIMAL128, decimal.bytes().to_vec()))
    }
}

#[cfg(test)]
mod tests {
    use bson::{Bson, RawDocumentBuf, doc};

    use super::*;
    use crate::model::raw;

    fn key_of(id: Bson) -> (DocumentKey, Vec<u8>) {
        let key = DocumentKey::of(&RawDocumentBuf::try_from(&doc! { "_id": id }).unwrap()).unwrap();
        let field = raw::fields(key.filter()).next().unwrap().unwrap();
        let bytes = key::encode(field.kind, field.value).unwrap();
        (key, bytes)
    }

    #[test]
    fn a_key_leads_back_to_an_id_that_mongodb_holds_for_the_same() {
        let decimal = |text: &str| Bson::Decimal128(text.parse().unwrap());
        let bytes = vec![0, 1, 255, 0];
        let ids = vec![
            Bson::Null,
            Bson::MinKey,
            Bson::MaxKey,
            Bson::Undefined,
            Bson::Boolean(true),
            Bson::Boolean(false),
            Bson::Int32(0),
            Bson::Int32(-7),
            Bson::Int64(i64::MAX),
            Bson::Int64(i64::MIN),
            Bson::Int64(1 << 60),
            Bson::Double(0.1),
            Bson::Double(-1.5),
            Bson::Double(1e300),
            Bson::Double(5e-324),
            Bson::Double(f64::NAN),
            Bson::Double(f64::INFINITY),
            Bson::Double(f64::NEG_INFINITY),
            Bson::Double(-1e19),
            Bson::Double(1.0),
            decimal("0.1"),
            decimal("-12.50"),
            decimal("1E+6144"),
            decimal("-1E-6176"),
            decimal("123456789012345678901234567890"),
            Bson::String(String::new()),
            Bson::String("a\0b\0".into()),
            Bson::String("é".repeat(100)),
            Bson::Symbol("x".into()),
            Bson::ObjectId(bson::oid::ObjectId::from_bytes([0; 12])),
            Bson::DateTime(bson::DateTime::from_millis(-5)),
            Bson::Timestamp(bson::Timestamp { time: 3, increment: 9 }),
            Bson::Binary(bson::Binary { subtype: bson::spec::BinarySubtype::Uuid, bytes }),
            Bson::JavaScriptCode("f()".into()),
            Bson::JavaScriptCodeWithScope(bson::JavaScriptCodeWithScope {
                code: "f".into(),
                scope: doc! { "a": [1] },
            }),
            Bson::RegularExpression(bson::Regex {
                pattern: "^a".try_into().unwrap(),
                options: "i".try_into().unwrap(),
            }),
            Bson::Document(doc! { "": 1, "b": { "c": ["x\0", 1.5, {}] }, "d": Bson::Null }),
            Bson::Document(doc! {}),
        ];
        for id in ids {
            let (key, bytes) = key_of(id.clone());
            let back = decode(&bytes).unwrap_or_else(|| panic!("{id:?}"));
            assert_eq!(back.canonical(), key.canonical(), "{id:?}");
            assert_eq!(decode(&bytes[..bytes.len() - 1]), None, "{id:?}");
            assert_eq!(decode(&[&bytes[..], b"x"].concat()), None, "{id:?}");
        }
        for bytes in
            [&b""[..], b"\x01", b"planted", &[tag::NUMBER, part::POSITIVE, 0x40, 0, 101, 0]]
        {
            assert_eq!(decode(bytes), None, "{bytes:?}");
        }
    }
}
