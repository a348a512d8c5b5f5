//! Raw BSON, element by element, without decoding what is only passed on.
//!
//! The `bson` crate validates and walks; what it does not offer is the undecoded bytes of a value.
//! They are needed because a copy must be byte for byte: a value that is never decoded cannot be
//! changed by decoding, not even a string that is no UTF-8.

use bson::{RawBsonRef, RawDocument, RawDocumentBuf, raw::RawElement};

/// One element of a document: the type byte, the name, and the bytes of the value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Element<'a> {
    pub kind: u8,
    pub name: &'a str,
    pub value: &'a [u8],
}

/// Type bytes of the BSON specification that are looked at here.
pub mod kind {
    pub const DOCUMENT: u8 = 0x03;
    pub const ARRAY: u8 = 0x04;
    pub const BOOL: u8 = 0x08;
    pub const INT32: u8 = 0x10;
    pub const TIMESTAMP: u8 = 0x11;
    pub const NULL: u8 = 0x0A;
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

/// Walks the elements of `doc` in order.
///
/// # Errors
/// An item is [`Malformed`] where lengths or names do not fit; the walk ends there.
pub fn elements(doc: &RawDocument) -> impl Iterator<Item = Result<Element<'_>, Malformed>> {
    let bytes = doc.as_bytes();
    let mut offset = 4;
    doc.iter_elements().map(move |element| {
        let element: RawElement<'_> = element?;
        let name = element.key().as_str();
        let start = offset + 1 + name.len() + 1;
        let end = start + element.size();
        let value =
            bytes.get(start..end).ok_or_else(|| Malformed("value runs past the end".into()))?;
        let kind = bytes[offset];
        offset = end;
        Ok(Element { kind, name, value })
    })
}

/// Builds a document from undecoded elements.
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
        debug_assert!(!name.as_bytes().contains(&0), "a field name with NUL ends early");
        self.bytes.push(kind);
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.bytes.extend_from_slice(value);
    }

    /// The finished document.
    pub fn finish(mut self) -> RawDocumentBuf {
        self.bytes.push(0);
        let len = i32::try_from(self.bytes.len()).expect("a document under 2 GiB");
        self.bytes[..4].copy_from_slice(&len.to_le_bytes());
        RawDocumentBuf::from_bytes(self.bytes).expect("length and terminator were just written")
    }
}

/// The document or array that an element's value bytes hold.
pub fn nested(value: &[u8]) -> Result<&RawDocument, Malformed> {
    Ok(RawDocument::from_bytes(value)?)
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
    use super::*;

    #[test]
    fn a_document_rebuilt_from_its_elements_is_the_same_bytes() {
        let doc =
            bson::rawdoc! { "_id": 1, "": "empty name", "n": { "a": [1, 2.5, null] }, "b": true };

        let mut builder = Builder::default();
        for element in elements(&doc) {
            let element = element.unwrap();
            builder.push(element.kind, element.name, element.value);
        }

        assert_eq!(builder.finish().as_bytes(), doc.as_bytes());
    }

    #[test]
    fn truncated_bytes_are_an_error() {
        let mut bytes = bson::rawdoc! { "s": "hello" }.into_bytes();
        bytes[7] = 200;
        let doc = RawDocumentBuf::from_bytes(bytes).unwrap();

        assert!(elements(&doc).any(|element| element.is_err()));
    }
}
