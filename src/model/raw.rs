//! Raw BSON, element by element, without decoding what is only passed on.
//!
//! The `bson` crate validates and walks; what it does not offer is the undecoded bytes of a value.
//! They are needed because a copy must be byte for byte: a value that is never decoded cannot be
//! changed by decoding, not even a string that is no UTF-8.

use bson::{RawBsonRef, RawDocument, RawDocumentBuf};

/// One element of a document: the type byte, the name, and the bytes of the value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Element<'a> {
    pub kind: u8,
    pub name: &'a str,
    pub value: &'a [u8],
}

/// Type bytes of the BSON specification.
pub mod kind {
    pub const DOUBLE: u8 = 0x01;
    pub const STRING: u8 = 0x02;
    pub const DOCUMENT: u8 = 0x03;
    pub const ARRAY: u8 = 0x04;
    pub const BINARY: u8 = 0x05;
    pub const UNDEFINED: u8 = 0x06;
    pub const OBJECT_ID: u8 = 0x07;
    pub const BOOL: u8 = 0x08;
    pub const DATE_TIME: u8 = 0x09;
    pub const NULL: u8 = 0x0A;
    pub const REGEX: u8 = 0x0B;
    pub const DB_POINTER: u8 = 0x0C;
    pub const CODE: u8 = 0x0D;
    pub const SYMBOL: u8 = 0x0E;
    pub const CODE_WITH_SCOPE: u8 = 0x0F;
    pub const INT32: u8 = 0x10;
    pub const TIMESTAMP: u8 = 0x11;
    pub const INT64: u8 = 0x12;
    pub const DECIMAL128: u8 = 0x13;
    pub const MAX_KEY: u8 = 0x7F;
    pub const MIN_KEY: u8 = 0xFF;
}

/// Bytes that are no well-formed BSON document.
#[derive(Debug, Clone, thiserror::Error)]
#[error("malformed BSON: {0}")]
pub struct Malformed(pub String);

impl From<bson::error::Error> for Malformed {
    fn from(error: bson::error::Error) -> Self {
        Malformed(error.to_string())
    }
}

/// Walks the elements of `doc` in order. An item is [`Malformed`] where lengths or names do not fit; the
/// walk ends there.
///
/// Every document passes here once or twice on its way, so this is no wrapper around the `bson` crate's
/// walk, which took a fifth of the first copy's time.
pub fn elements(doc: &RawDocument) -> Elements<'_> {
    Elements { rest: inside(doc) }
}

/// What is between the length in front and the terminator behind.
fn inside(doc: &RawDocument) -> &[u8] {
    let bytes = doc.as_bytes();
    bytes.get(4..bytes.len() - 1).unwrap_or_default()
}

/// See [`elements`].
#[derive(Clone, Debug)]
pub struct Elements<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for Elements<'a> {
    type Item = Result<Element<'a>, Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        let (&kind, rest) = self.rest.split_first()?;
        self.rest = &[];
        Some(split_element(kind, rest).map(|(element, rest)| {
            self.rest = rest;
            element
        }))
    }
}

/// An element whose name need not be text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field<'a> {
    pub kind: u8,
    pub name: &'a [u8],
    pub value: &'a [u8],
}

/// As [`elements`], for what a server may hold in names that are no UTF-8: filters, and the keys of indexes.
pub fn fields(doc: &RawDocument) -> Fields<'_> {
    Fields { rest: inside(doc) }
}

/// See [`fields`].
#[derive(Clone, Debug)]
pub struct Fields<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<Field<'a>, Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        let (&kind, rest) = self.rest.split_first()?;
        self.rest = &[];
        Some(split_field(kind, rest).map(|(field, rest)| {
            self.rest = rest;
            field
        }))
    }
}

/// The element of this kind, and what is behind it.
fn split_element(kind: u8, bytes: &[u8]) -> Result<(Element<'_>, &[u8]), Malformed> {
    let (Field { kind, name, value }, rest) = split_field(kind, bytes)?;
    let name =
        std::str::from_utf8(name).map_err(|_| Malformed("a field name that is no UTF-8".into()))?;
    Ok((Element { kind, name, value }, rest))
}

fn split_field(kind: u8, bytes: &[u8]) -> Result<(Field<'_>, &[u8]), Malformed> {
    let name_len = cstring_len(bytes)?;
    let (name, rest) = (&bytes[..name_len], &bytes[name_len + 1..]);
    let malformed = |what: &str| {
        let name = String::from_utf8_lossy(name);
        Malformed(format!("the value of `{name}` {what}"))
    };
    let (value, rest) = value_len(kind, rest)
        .and_then(|len| rest.split_at_checked(len))
        .ok_or_else(|| malformed("has no type or length that fits"))?;
    let ends_in_nul =
        matches!(kind, kind::STRING | kind::CODE | kind::SYMBOL | kind::DOCUMENT | kind::ARRAY);
    if ends_in_nul && value.last() != Some(&0) {
        return Err(malformed("is not terminated"));
    }
    Ok((Field { kind, name, value }, rest))
}

/// Bytes of the value that `bytes` begin with; `None` where it has no type or a length below what that
/// type needs. It may be more than there is.
fn value_len(kind: u8, bytes: &[u8]) -> Option<usize> {
    let counted = |least: usize| {
        let len = i32::from_le_bytes(*bytes.first_chunk()?);
        usize::try_from(len).ok().filter(|len| *len >= least)
    };
    Some(match kind {
        kind::UNDEFINED | kind::NULL | kind::MIN_KEY | kind::MAX_KEY => 0,
        kind::BOOL => 1,
        kind::INT32 => 4,
        kind::DOUBLE | kind::DATE_TIME | kind::TIMESTAMP | kind::INT64 => 8,
        kind::OBJECT_ID => 12,
        kind::DECIMAL128 => 16,
        // Of these the length in front does not count its own four bytes,
        kind::STRING | kind::CODE | kind::SYMBOL => 4 + counted(1)?,
        kind::DB_POINTER => 4 + counted(1)? + 12,
        kind::BINARY => 4 + 1 + counted(0)?,
        // and of these it does.
        kind::DOCUMENT | kind::ARRAY => counted(5)?,
        kind::CODE_WITH_SCOPE => counted(4)?,
        kind::REGEX => {
            let pattern = cstring_len(bytes).ok()? + 1;
            pattern + cstring_len(&bytes[pattern..]).ok()? + 1
        }
        _ => return None,
    })
}

/// Bytes before the NUL.
fn cstring_len(bytes: &[u8]) -> Result<usize, Malformed> {
    bytes.iter().position(|byte| *byte == 0).ok_or_else(|| Malformed("a name without end".into()))
}

/// Builds a document, from undecoded elements and in one buffer, however deep it is.
pub struct Builder {
    bytes: Vec<u8>,
}

impl Default for Builder {
    fn default() -> Self {
        Self::with_capacity(64)
    }
}

impl Builder {
    pub fn with_capacity(capacity: usize) -> Self {
        let mut bytes = Vec::with_capacity(capacity + 5);
        bytes.extend_from_slice(&[0; 4]);
        Self { bytes }
    }

    /// Appends an element. `name` comes from BSON or from a literal, so it holds no NUL.
    pub fn push(&mut self, kind: u8, name: &str, value: &[u8]) {
        self.begin(kind, name);
        self.bytes.extend_from_slice(value);
    }

    /// As [`push`](Self::push), for a name that need not be text.
    pub fn push_field(&mut self, field: Field<'_>) {
        self.bytes.push(field.kind);
        self.bytes.extend_from_slice(field.name);
        self.bytes.push(0);
        self.bytes.extend_from_slice(field.value);
    }

    /// Appends all elements of a document, as they are.
    pub fn extend(&mut self, document: &RawDocument) {
        self.bytes.extend_from_slice(inside(document));
    }

    pub fn push_str(&mut self, name: &str, value: &str) {
        self.begin(kind::STRING, name);
        let len = i32::try_from(value.len() + 1).expect("a string under 2 GiB");
        self.bytes.extend_from_slice(&len.to_le_bytes());
        self.bytes.extend_from_slice(value.as_bytes());
        self.bytes.push(0);
    }

    pub fn push_bool(&mut self, name: &str, value: bool) {
        self.push(kind::BOOL, name, &[value.into()]);
    }

    pub fn push_i64(&mut self, name: &str, value: i64) {
        self.push(kind::INT64, name, &value.to_le_bytes());
    }

    /// Appends a document of what `fill` appends.
    pub fn document(&mut self, name: &str, fill: impl FnOnce(&mut Builder)) {
        self.nest(kind::DOCUMENT, name, fill);
    }

    /// Appends an array of what `fill` appends.
    pub fn array(&mut self, name: &str, fill: impl FnOnce(&mut Items<'_>)) {
        self.nest(kind::ARRAY, name, |builder| fill(&mut Items { builder, next: Index::ZERO }));
    }

    fn nest(&mut self, kind: u8, name: &str, fill: impl FnOnce(&mut Builder)) {
        self.begin(kind, name);
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 4]);
        fill(self);
        self.end(start);
    }

    fn begin(&mut self, kind: u8, name: &str) {
        debug_assert!(!name.as_bytes().contains(&0), "a field name with NUL ends early");
        self.bytes.push(kind);
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
    }

    /// Terminates the document that begins at `start`, and writes its length there.
    fn end(&mut self, start: usize) {
        self.bytes.push(0);
        let len = i32::try_from(self.bytes.len() - start).expect("a document under 2 GiB");
        self.bytes[start..start + 4].copy_from_slice(&len.to_le_bytes());
    }

    /// The finished document.
    pub fn finish(mut self) -> RawDocumentBuf {
        self.end(0);
        RawDocumentBuf::from_bytes(self.bytes).expect("length and terminator were just written")
    }
}

/// The items of an array that is being built: elements whose names count up.
pub struct Items<'a> {
    builder: &'a mut Builder,
    next: Index,
}

impl Items<'_> {
    /// Appends an item.
    pub fn push(&mut self, kind: u8, value: &[u8]) {
        self.builder.push(kind, self.next.as_str(), value);
        self.next.increment();
    }

    /// Appends a document of what `fill` appends.
    pub fn document(&mut self, fill: impl FnOnce(&mut Builder)) {
        self.builder.document(self.next.as_str(), fill);
        self.next.increment();
    }
}

/// A number in decimal digits that counts up in place: formatting each one anew costs more than copying
/// a small document.
struct Index {
    digits: [u8; 10],
    first: usize,
}

impl Index {
    const ZERO: Index = Index { digits: [b'0'; 10], first: 9 };

    fn as_str(&self) -> &str {
        std::str::from_utf8(&self.digits[self.first..]).expect("digits are ASCII")
    }

    /// # Panics
    /// Beyond ten digits, which no document holds.
    fn increment(&mut self) {
        let mut at = self.digits.len() - 1;
        while self.digits[at] == b'9' {
            self.digits[at] = b'0';
            at -= 1;
        }
        self.digits[at] += 1;
        self.first = self.first.min(at);
    }
}

/// The document or array that an element's value bytes hold.
pub fn nested(value: &[u8]) -> Result<&RawDocument, Malformed> {
    Ok(RawDocument::from_bytes(value)?)
}

/// The text that the value bytes of a string hold; `None` where it is no UTF-8.
pub fn string(value: &[u8]) -> Option<&str> {
    std::str::from_utf8(value.get(4..value.len().checked_sub(1)?)?).ok()
}

/// The text that the value bytes of a string hold, with a sign in the place of what is no UTF-8.
pub fn lossy(value: &[u8]) -> std::borrow::Cow<'_, str> {
    let text = value.len().checked_sub(1).and_then(|end| value.get(4..end));
    String::from_utf8_lossy(text.unwrap_or_default())
}

/// `doc[name]` if it is a document, without decoding anything else.
pub fn subdocument<'a>(doc: &'a RawDocument, name: &str) -> Option<&'a RawDocument> {
    match doc.get(name) {
        Ok(Some(RawBsonRef::Document(found))) => Some(found),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A document with a value of every type, and as many elements again in a nested one.
    fn of_every_type() -> RawDocumentBuf {
        use bson::{Bson, doc, oid::ObjectId, spec::BinarySubtype};
        let binary = bson::Binary { subtype: BinarySubtype::Generic, bytes: vec![1, 2, 0] };
        let mut all = doc! {
            "_id": ObjectId::from_bytes([7; 12]), "": "empty name", "d": 2.5, "a": [1, [2], {}], "bin": binary,
            "u": Bson::Undefined, "b": true, "at": bson::DateTime::from_millis(-5), "nil": null,
            "r": bson::Regex { pattern: bson::raw::cstr!("^x").into(), options: bson::raw::cstr!("i").into() },
            "c": Bson::JavaScriptCode("f()".into()), "s": Bson::Symbol("s".into()), "i": 1, "l": 1_i64,
            "cs": bson::JavaScriptCodeWithScope { code: "g()".into(), scope: doc! { "x": 1 } },
            "t": bson::Timestamp { time: 1, increment: 2 }, "n": "1.5".parse::<bson::Decimal128>().unwrap(),
            "min": Bson::MinKey, "max": Bson::MaxKey,
        };
        all.insert("o", all.clone());
        RawDocumentBuf::try_from(&all).unwrap()
    }

    /// The same by the `bson` crate, up to what it cannot read.
    fn elements_by_bson(doc: &RawDocument) -> Result<Vec<Element<'_>>, Malformed> {
        let mut offset = 4;
        doc.iter_elements()
            .map(|element| {
                let element = element?;
                let name = element.key().as_str();
                let start = offset + 1 + name.len() + 1;
                let kind = doc.as_bytes()[offset];
                offset = start + element.size();
                Ok(Element { kind, name, value: &doc.as_bytes()[start..offset] })
            })
            .collect()
    }

    #[test]
    fn a_document_rebuilt_from_its_elements_is_the_same_bytes() {
        let doc = of_every_type();

        let mut builder = Builder::default();
        for element in elements(&doc) {
            let element = element.unwrap();
            builder.push(element.kind, element.name, element.value);
        }

        assert_eq!(builder.finish().as_bytes(), doc.as_bytes());
    }

    #[test]
    fn a_value_that_is_no_utf8_is_walked_over() {
        let mut bytes = bson::rawdoc! { "s": "hello", "n": 1 }.into_bytes();
        bytes[12] = 0xFF;
        let doc = RawDocumentBuf::from_bytes(bytes).unwrap();

        let names: Vec<_> = elements(&doc).map(|element| element.unwrap().name).collect();

        assert_eq!(names, ["s", "n"]);
    }

    #[test]
    fn truncated_bytes_are_an_error_and_end_the_walk() {
        let mut bytes = bson::rawdoc! { "s": "hello", "n": 1 }.into_bytes();
        bytes[7] = 200;
        let doc = RawDocumentBuf::from_bytes(bytes).unwrap();

        let walked: Vec<_> = elements(&doc).collect();

        assert!(matches!(walked[..], [Err(_)]), "{walked:?}");
    }

    #[test]
    fn nested_documents_and_arrays_are_built_as_by_the_bson_crate() {
        let mut builder = Builder::default();
        builder.push_str("insert", "orders");
        builder.array("documents", |items| {
            for n in 0..1_001 {
                items.push(kind::INT64, &i64::to_le_bytes(n));
            }
            items.document(|item| item.document("o", |inner| inner.push_bool("b", true)));
        });
        builder.push_i64("l", -1);

        let mut documents: Vec<_> = (0..1_001).map(bson::Bson::Int64).collect();
        documents.push(bson::bson!({ "o": { "b": true } }));
        let same = bson::doc! { "insert": "orders", "documents": documents, "l": -1_i64 };
        assert_eq!(builder.finish(), RawDocumentBuf::try_from(&same).unwrap());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4096))]

        /// What the `bson` crate accepts is walked alike; nothing panics, and nothing is left out.
        #[test]
        fn damaged_bytes_are_walked_as_the_bson_crate_does(
            damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4)
        ) {
            let mut bytes = of_every_type().into_bytes();
            let inside = 4..bytes.len() - 1;
            for (at, byte) in damage {
                bytes[inside.start + at.index(inside.len())] = byte;
            }
            let doc = RawDocumentBuf::from_bytes(bytes).unwrap();

            let walked: Result<Vec<_>, _> = elements(&doc).collect();

            if let Ok(expected) = elements_by_bson(&doc) {
                prop_assert_eq!(walked.as_ref().ok(), Some(&expected));
            }
            if let Ok(walked) = walked {
                let len: usize = walked.iter().map(|e| 1 + e.name.len() + 1 + e.value.len()).sum();
                prop_assert_eq!(len, inside.len());
            }
        }
    }
}
