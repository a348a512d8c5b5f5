//! Which document: its `_id`, of any type, with MongoDB's own idea of equality.
//!
//! To MongoDB, `1`, `1.0`, `NumberLong(1)` and `NumberDecimal("1.00")` are one `_id`; `NaN` equals
//! `NaN`; `{a: 1, b: 2}` and `{b: 2, a: 1}` are two. The queue keeps one entry per document, so it
//! needs bytes that are equal exactly when MongoDB says so: [`DocumentKey::canonical`].
//!
//! Not here: collations. A collection whose default collation folds case makes `"a"` and `"A"` one `_id` on the server
//! and two keys here. So one key's delete may come after the other's insert, and must not find it: the [sink](crate::sink)
//! has such a filter compare the bytes as well. That the one cannot be written before the other has gone is retried.

use std::fmt;

use bson::{RawBsonRef, RawDocument, RawDocumentBuf};

use crate::model::raw::{self, Malformed};

/// The `_id` of one document, held as the document `{_id: …}`, which is also the filter for it.
#[derive(Clone, PartialEq)]
pub struct DocumentKey(RawDocumentBuf);

impl DocumentKey {
    /// Takes the `_id` out of `doc`: a full document, or a change event's `documentKey` (on a
    /// sharded cluster that one holds the shard key as well).
    ///
    /// # Errors
    /// [`Malformed`] when there is no `_id`.
    pub fn of(doc: &RawDocument) -> Result<Self, Malformed> {
        for element in raw::elements(doc) {
            let element = element?;
            if element.name == "_id" {
                let mut builder = raw::Builder::with_capacity(element.value.len() + 5);
                builder.push(element.kind, "_id", element.value);
                return Ok(Self(builder.finish()));
            }
        }
        Err(Malformed("no `_id`".into()))
    }

    /// The filter `{_id: …}` that finds this document and no other. A plain equality is enough
    /// because the server refuses the types for which it would not be: a regular expression, an
    /// array and `$`-prefixed fields cannot be an `_id` ("The '_id' value cannot be of type …").
    pub fn filter(&self) -> &RawDocument {
        &self.0
    }

    /// The `_id` alone.
    pub fn value(&self) -> Result<RawBsonRef<'_>, Malformed> {
        let element = self.0.iter_elements().next().ok_or_else(|| Malformed("no `_id`".into()))?;
        Ok(element?.value()?)
    }

    /// True for the `_id` that is before all others.
    pub fn is_min(&self) -> bool {
        matches!(self.value(), Ok(RawBsonRef::MinKey))
    }

    /// True for the `_id` that is behind all others.
    pub fn is_max(&self) -> bool {
        matches!(self.value(), Ok(RawBsonRef::MaxKey))
    }

    /// Bytes that two keys share exactly when MongoDB holds their `_id`s for equal.
    pub fn canonical(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.0.as_bytes().len());
        self.canonical_into(&mut out);
        out
    }

    /// Appends [`canonical`](Self::canonical).
    pub fn canonical_into(&self, out: &mut Vec<u8>) {
        let start = out.len();
        if self.value().and_then(|value| canonicalize(value, 0, out)).is_err() {
            // A string that is no UTF-8, which old drivers could write: equal only to its own bytes.
            out.truncate(start);
            out.push(b'!');
            out.extend_from_slice(self.0.as_bytes());
        }
    }

    /// Rebuilds a key from [`filter`](Self::filter)'s bytes.
    ///
    /// # Errors
    /// [`Malformed`] when they are no such document.
    pub fn from_filter_bytes(bytes: &[u8]) -> Result<Self, Malformed> {
        let filter = RawDocument::from_bytes(bytes)?;
        match raw::elements(filter).next() {
            Some(Ok(id)) if id.name == "_id" && id.value.len() + 10 == bytes.len() => {
                Ok(Self(filter.to_owned()))
            }
            _ => Self::of(filter),
        }
    }

    /// The key's bytes as hexadecimal digits, for notes that are JSON.
    fn to_hex(&self) -> String {
        use fmt::Write;
        let bytes = self.0.as_bytes();
        bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        })
    }

    fn from_hex(text: &str) -> Option<Self> {
        let digits = text.as_bytes().chunks(2);
        let bytes: Option<Vec<u8>> = digits
            .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok())
            .collect();
        let document = RawDocumentBuf::from_bytes(bytes?).ok()?;
        Self::of(&document).ok()
    }

    /// Makes a key of extended JSON, relaxed or canonical.
    ///
    /// # Errors
    /// [`Malformed`] for what is no extended JSON, or cannot be an `_id`.
    pub fn from_json(id: serde_json::Value) -> Result<Self, Malformed> {
        let id = bson::Bson::try_from(id).map_err(|error| Malformed(error.to_string()))?;
        if matches!(
            id,
            bson::Bson::Array(_) | bson::Bson::RegularExpression(_) | bson::Bson::Undefined
        ) {
            return Err(Malformed(
                "neither a list nor a regular expression can be an `_id`".into(),
            ));
        }
        let document = RawDocumentBuf::try_from(&bson::doc! { "_id": id })
            .map_err(|error| Malformed(error.to_string()))?;
        Self::of(&document)?.checked()
    }

    /// Refuses what is no plain value in a filter: `{_id: {$gt: 0}}` would find another document. A server lets
    /// nobody have such an `_id`, but a person can type one.
    ///
    /// # Errors
    /// [`Malformed`] for an embedded document with an operator.
    pub fn checked(self) -> Result<Self, Malformed> {
        if let RawBsonRef::Document(id) = self.value()? {
            for element in raw::elements(id) {
                let name = element?.name;
                if name.starts_with('$') && !["$ref", "$id", "$db"].contains(&name) {
                    return Err(Malformed(format!("`{name}` cannot stand in an `_id`")));
                }
            }
        }
        Ok(self)
    }

    /// The `_id`s that a person may mean who types `text`: extended JSON; else, of 24 hexadecimal digits, an
    /// ObjectId; else a string. The likeliest first.
    pub fn meant_by(text: &str) -> Vec<Self> {
        if let Ok(value) = serde_json::from_str(text)
            && let Ok(key) = Self::from_json(value)
        {
            return vec![key];
        }
        let object_id = bson::oid::ObjectId::parse_str(text).ok().map(bson::Bson::ObjectId);
        let string = bson::Bson::String(text.to_owned());
        object_id
            .into_iter()
            .chain([string])
            .filter_map(|id| RawDocumentBuf::try_from(&bson::doc! { "_id": id }).ok())
            .filter_map(|document| Self::of(&document).ok())
            .collect()
    }

    /// The `_id` as relaxed extended JSON, as shown to a person and in the API.
    pub fn to_json(&self) -> serde_json::Value {
        match bson::Document::try_from(self.filter()) {
            Ok(mut doc) => {
                doc.remove("_id").map_or(serde_json::Value::Null, bson::Bson::into_relaxed_extjson)
            }
            Err(_) => serde_json::Value::String("<not valid UTF-8>".into()),
        }
    }
}

/// Exact, so that a key that was noted finds the same document again.
impl serde::Serialize for DocumentKey {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.to_hex())
    }
}

impl<'de> serde::Deserialize<'de> for DocumentKey {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::from_hex(&text).ok_or_else(|| serde::de::Error::custom("not a document key"))
    }
}

/// The `_id` as relaxed extended JSON.
impl fmt::Display for DocumentKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.to_json())
    }
}

impl fmt::Debug for DocumentKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// MongoDB refuses documents nested deeper than 180; beyond that the bytes are hostile.
const MAX_DEPTH: usize = 200;

/// Tags follow MongoDB's canonical types (`canonicalizeBSONType`): what compares equal shares one.
fn canonicalize(value: RawBsonRef<'_>, depth: usize, out: &mut Vec<u8>) -> Result<(), Malformed> {
    if depth > MAX_DEPTH {
        return Err(Malformed("nested too deeply".into()));
    }
    match value {
        RawBsonRef::Double(v) => Number::from(v).encode(out),
        RawBsonRef::Int32(v) => Number::Integer(v.into()).encode(out),
        RawBsonRef::Int64(v) => Number::Integer(v).encode(out),
        RawBsonRef::Decimal128(v) => Number::from(v).encode(out),
        RawBsonRef::String(v) | RawBsonRef::Symbol(v) => tagged(b's', v.as_bytes(), out),
        RawBsonRef::Document(doc) => {
            out.push(b'{');
            for element in doc.iter_elements() {
                let element = element?;
                out.push(b'.');
                tagged(b'k', element.key().as_str().as_bytes(), out);
                canonicalize(element.value()?, depth + 1, out)?;
            }
            out.push(b'}');
        }
        RawBsonRef::Array(array) => {
            out.push(b'[');
            for value in array {
                canonicalize(value?, depth + 1, out)?;
            }
            out.push(b']');
        }
        RawBsonRef::Binary(v) => {
            out.push(b'B');
            out.push(v.subtype.into());
            tagged(b'b', v.bytes, out);
        }
        RawBsonRef::ObjectId(v) => {
            out.push(b'o');
            out.extend_from_slice(&v.bytes());
        }
        RawBsonRef::Boolean(v) => out.extend_from_slice(&[b'?', v.into()]),
        RawBsonRef::DateTime(v) => {
            out.push(b'd');
            out.extend_from_slice(&v.timestamp_millis().to_be_bytes());
        }
        RawBsonRef::Timestamp(v) => {
            out.push(b't');
            out.extend_from_slice(&v.time.to_be_bytes());
            out.extend_from_slice(&v.increment.to_be_bytes());
        }
        RawBsonRef::RegularExpression(v) => {
            tagged(b'/', v.pattern.as_str().as_bytes(), out);
            tagged(b'/', v.options.as_str().as_bytes(), out);
        }
        RawBsonRef::JavaScriptCode(v) => tagged(b'j', v.as_bytes(), out),
        RawBsonRef::JavaScriptCodeWithScope(v) => {
            tagged(b'J', v.code.as_bytes(), out);
            canonicalize(RawBsonRef::Document(v.scope), depth + 1, out)?;
        }
        RawBsonRef::DbPointer(_) => {
            // Its parts are not public in the `bson` crate; its textual form is unambiguous.
            tagged(b'P', format!("{value:?}").as_bytes(), out);
        }
        RawBsonRef::Null => out.push(b'0'),
        RawBsonRef::Undefined => out.push(b'u'),
        RawBsonRef::MinKey => out.push(b'<'),
        RawBsonRef::MaxKey => out.push(b'>'),
    }
    Ok(())
}

fn tagged(tag: u8, bytes: &[u8], out: &mut Vec<u8>) {
    out.push(tag);
    out.extend_from_slice(&(bytes.len() as u32).to_be_bytes());
    out.extend_from_slice(bytes);
}

/// A number in a form that is unique for its value, whatever type it came in.
///
/// Every finite value of the four numeric types is `±n · 2^a · 5^b`. With all twos and fives taken
/// out of `n` this is unique, so doubles and decimals compare exactly, without rounding either.
#[derive(Debug, PartialEq)]
enum Number {
    Nan,
    Infinite { negative: bool },
    Integer(i64),
    Other { negative: bool, n: u128, twos: i32, fives: i32 },
}

impl Number {
    fn encode(self, out: &mut Vec<u8>) {
        match self {
            Number::Nan => out.push(b'n'),
            Number::Infinite { negative } => out.extend_from_slice(&[b'I', negative.into()]),
            Number::Integer(v) => {
                out.push(b'i');
                out.extend_from_slice(&v.to_be_bytes());
            }
            Number::Other { negative, n, twos, fives } => {
                out.extend_from_slice(&[b'#', negative.into()]);
                out.extend_from_slice(&n.to_be_bytes());
                out.extend_from_slice(&twos.to_be_bytes());
                out.extend_from_slice(&fives.to_be_bytes());
            }
        }
    }

    /// `±n · 2^twos · 5^fives`, reduced; an integer that fits 64 bits becomes one.
    fn new(negative: bool, mut n: u128, mut twos: i32, mut fives: i32) -> Self {
        if n == 0 {
            return Number::Integer(0);
        }
        while n.is_multiple_of(2) {
            n /= 2;
            twos += 1;
        }
        while n.is_multiple_of(5) {
            n /= 5;
            fives += 1;
        }
        // 5^27 and 2^63 are the largest powers below 2^63.
        if (0..=63).contains(&twos) && (0..=27).contains(&fives) {
            let scaled = n
                .checked_mul(5_u128.pow(fives as u32))
                .and_then(|v| v.checked_mul(1_u128 << twos))
                .and_then(|v| i128::try_from(v).ok())
                .map(|v| if negative { -v } else { v })
                .and_then(|v| i64::try_from(v).ok());
            if let Some(integer) = scaled {
                return Number::Integer(integer);
            }
        }
        Number::Other { negative, n, twos, fives }
    }
}

impl From<f64> for Number {
    fn from(v: f64) -> Self {
        if v.is_nan() {
            return Number::Nan;
        }
        if v.is_infinite() {
            return Number::Infinite { negative: v < 0.0 };
        }
        let bits = v.to_bits();
        let exponent = ((bits >> 52) & 0x7FF) as i32;
        let fraction = bits & ((1 << 52) - 1);
        let (mantissa, exponent) =
            if exponent == 0 { (fraction, -1074) } else { (fraction | 1 << 52, exponent - 1075) };
        Number::new(v.is_sign_negative(), mantissa.into(), exponent, 0)
    }
}

impl From<bson::Decimal128> for Number {
    /// Decodes IEEE 754-2008 decimal128, binary integer significand. A significand above 34 digits
    /// is not canonical and counts as zero, as the standard says and the server does.
    fn from(v: bson::Decimal128) -> Self {
        const BIAS: i32 = 6176;
        const MAX: u128 = 9_999_999_999_999_999_999_999_999_999_999_999;
        let bits = u128::from_le_bytes(v.bytes());
        let negative = bits >> 127 == 1;
        let combination = (bits >> 122) & 0x1F;
        if combination == 0x1F {
            return Number::Nan;
        }
        if combination == 0x1E {
            return Number::Infinite { negative };
        }
        if combination >> 3 == 3 {
            return Number::Integer(0);
        }
        let exponent = ((bits >> 113) & 0x3FFF) as i32 - BIAS;
        let significand = bits & ((1 << 113) - 1);
        let significand = if significand > MAX { 0 } else { significand };
        Number::new(negative, significand, exponent, exponent)
    }
}

#[cfg(test)]
mod tests {
    use bson::{Bson, Decimal128, doc};
    use proptest::prelude::*;

    use super::*;

    fn key(id: impl Into<Bson>) -> DocumentKey {
        DocumentKey::of(&RawDocumentBuf::try_from(&doc! { "_id": id.into() }).unwrap()).unwrap()
    }

    fn decimal(text: &str) -> Decimal128 {
        text.parse().unwrap()
    }

    #[test]
    fn ids_that_mongodb_holds_for_equal_are_one_document() {
        let one = key(1_i32).canonical();
        for same in
            [key(1_i64), key(1.0), key(decimal("1")), key(decimal("1.000")), key(decimal("10E-1"))]
        {
            assert_eq!(same.canonical(), one, "{same}");
        }
        assert_eq!(key(f64::NAN).canonical(), key(decimal("NaN")).canonical());
        assert_eq!(key(-0.0).canonical(), key(0).canonical());
        assert_eq!(key(0.5).canonical(), key(decimal("0.5")).canonical());
        assert_eq!(key(doc! { "a": 1 }).canonical(), key(doc! { "a": 1.0 }).canonical());
        assert_eq!(key(1e300).canonical(), key(1e300).canonical());
        assert_eq!(key(f64::INFINITY).canonical(), key(decimal("Infinity")).canonical());
        assert_eq!(key(i64::MIN).canonical(), key(i64::MIN as f64).canonical());
    }

    #[test]
    fn ids_that_mongodb_tells_apart_are_two_documents() {
        // 0.1 as a double is not 0.1 as a decimal; MongoDB compares them exactly.
        let different = [
            (key(0.1), key(decimal("0.1"))),
            (key("1"), key(1)),
            (key(Bson::Null), key(0)),
            (key(Bson::Null), key(false)),
            (key(i64::MAX), key(i64::MAX as f64)),
            (key(doc! { "a": 1, "b": 2 }), key(doc! { "b": 2, "a": 1 })),
            (key(doc! { "a": "b" }), key(doc! { "a": { "b": "" } })),
            (key(bson::DateTime::from_millis(5)), key(5_i64)),
            (key(Bson::MinKey), key(Bson::MaxKey)),
        ];
        for (a, b) in different {
            assert_ne!(a.canonical(), b.canonical(), "{a} and {b}");
        }
    }

    #[test]
    fn a_document_without_an_id_is_refused() {
        assert!(DocumentKey::of(&bson::rawdoc! { "a": 1 }).is_err());
    }

    #[test]
    fn an_id_that_is_no_utf8_is_a_key_all_the_same() {
        let bytes = |last: u8| {
            [&[18, 0, 0, 0, 2][..], b"_id\0", &[4, 0, 0, 0, b'a', 0xFF, last, 0, 0]].concat()
        };
        let key =
            |last| DocumentKey::of(&RawDocumentBuf::from_bytes(bytes(last)).unwrap()).unwrap();

        assert_ne!(key(0xFE).canonical(), key(0xFD).canonical());
        assert_eq!(key(0xFE).canonical(), key(0xFE).canonical());
        assert_eq!(key(0xFE).to_json(), "<not valid UTF-8>");
    }

    #[test]
    fn a_noted_key_is_the_same_key_when_it_is_read_again() {
        for key in [key(f64::NAN), key("ä"), key(doc! { "a": [1, 2.5] }), key(Bson::MinKey)] {
            let noted = serde_json::to_string(&key).unwrap();
            let again: DocumentKey = serde_json::from_str(&noted).unwrap();
            assert_eq!(again.filter().as_bytes(), key.filter().as_bytes());
        }
        for bad in ["\"\"", "\"zz\"", "\"0\"", "\"0500000000\"", "\"€€\""] {
            assert!(serde_json::from_str::<DocumentKey>(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_shard_key_is_no_part_of_the_key() {
        let key = DocumentKey::of(&bson::rawdoc! { "region": "eu", "_id": 7 }).unwrap();

        assert_eq!(key.filter().as_bytes(), bson::rawdoc! { "_id": 7 }.as_bytes());
    }

    proptest! {
        #[test]
        fn integers_agree_in_every_numeric_type_that_holds_them(v in -(1_i64 << 53)..(1_i64 << 53)) {
            let expected = key(v).canonical();
            prop_assert_eq!(&key(v as f64).canonical(), &expected);
            prop_assert_eq!(&key(decimal(&v.to_string())).canonical(), &expected);
        }

        #[test]
        fn doubles_are_equal_only_to_themselves(a: f64, b: f64) {
            prop_assert_eq!(key(a).canonical() == key(b).canonical(), a == b || (a.is_nan() && b.is_nan()));
        }
    }
}
