//! Unique indexes: which values does a document need, and who holds them?
//!
//! The server's error names the value, but for an index with a collation only as a sort key, which
//! cannot be asked for. So the values are taken from the document that did not find its place, by the
//! paths of the index. Where arrays are on the way this may find a document too many, never one too
//! few; with the index as the hint, only what the index holds is looked at.

use bson::{RawArrayBuf, RawBsonRef, RawDocument, RawDocumentBuf, rawdoc};

use crate::raw::{self, kind};

/// A unique index, as `listIndexes` tells it.
#[derive(Clone, Debug, PartialEq)]
pub struct UniqueIndex {
    pub name: String,
    paths: Vec<String>,
    /// `{locale: "simple"}` where the index has none: the collection's own may differ.
    collation: RawDocumentBuf,
    /// A hidden index keeps its values unique, and is refused as a hint.
    is_hidden: bool,
}

impl UniqueIndex {
    /// Reads one element of `listIndexes`; `None` when the index is not unique, or is that on `_id`.
    pub fn of(spec: &RawDocument) -> Option<Self> {
        if !matches!(spec.get("unique"), Ok(Some(RawBsonRef::Boolean(true)))) {
            return None;
        }
        let key = raw::subdocument(spec, "key")?;
        let paths = raw::elements(key).map(|element| Some(element.ok()?.name.to_owned()));
        Some(Self {
            name: spec.get_str("name").ok()?.to_owned(),
            paths: paths.collect::<Option<_>>()?,
            collation: raw::subdocument(spec, "collation")
                .map_or_else(|| rawdoc! { "locale": "simple" }, ToOwned::to_owned),
            is_hidden: matches!(spec.get("hidden"), Ok(Some(RawBsonRef::Boolean(true)))),
        })
    }

    /// The `find` of the documents that hold what `document` needs of this index.
    pub fn find_holders(&self, collection: &str, document: &RawDocument) -> RawDocumentBuf {
        let mut all = RawArrayBuf::new();
        for path in &self.paths {
            let mut any = RawArrayBuf::new();
            for value in values_at(document, path) {
                // `$eq`, since a regular expression would match and not equal.
                let mut equal = raw::Builder::default();
                equal.push(value.kind, "$eq", value.bytes);
                let mut condition = raw::Builder::default();
                condition.push(kind::DOCUMENT, path, equal.finish().as_bytes());
                any.push(condition.finish());
            }
            all.push(rawdoc! { "$or": any });
        }
        let mut command = rawdoc! {
            "find": collection, "filter": { "$and": all }, "collation": self.collation.clone(),
        };
        if !self.is_hidden {
            command.append(bson::raw::cstr!("hint"), self.name.as_str());
        }
        command
    }
}

/// An undecoded value.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Value<'a> {
    kind: u8,
    bytes: &'a [u8],
}

/// What a missing field counts as in an index.
const NULL: Value<'static> = Value { kind: kind::NULL, bytes: &[] };

/// The values that an index has for `path`: of an array its elements, and the array itself, which the
/// index has when it is empty. At least one.
fn values_at<'a>(document: &'a RawDocument, path: &str) -> Vec<Value<'a>> {
    let mut values = Vec::new();
    collect(document, path, &mut values);
    if values.is_empty() {
        values.push(NULL);
    }
    values
}

fn collect<'a>(document: &'a RawDocument, path: &str, values: &mut Vec<Value<'a>>) {
    let (name, rest) = path.split_once('.').map_or((path, None), |(name, rest)| (name, Some(rest)));
    let Some(found) = raw::elements(document).flatten().find(|element| element.name == name) else {
        values.push(NULL);
        return;
    };
    let nested = || raw::nested(found.value).ok();
    match (rest, found.kind) {
        (None, kind::ARRAY) => {
            values.push(Value { kind: found.kind, bytes: found.value });
            let elements = nested().into_iter().flat_map(raw::elements).flatten();
            values.extend(elements.map(|item| Value { kind: item.kind, bytes: item.value }));
        }
        (None, kind) => values.push(Value { kind, bytes: found.value }),
        (Some(rest), kind::DOCUMENT) => {
            if let Some(nested) = nested() {
                collect(nested, rest, values);
            }
        }
        (Some(rest), kind::ARRAY) => {
            let Some(array) = nested() else { return };
            // A number in a path may be a place in the array.
            if rest.split('.').next().is_some_and(|name| name.bytes().all(|b| b.is_ascii_digit())) {
                collect(array, rest, values);
            }
            for item in raw::elements(array).flatten().filter(|item| item.kind == kind::DOCUMENT) {
                if let Ok(item) = raw::nested(item.value) {
                    collect(item, rest, values);
                }
            }
        }
        (Some(_), _) => values.push(NULL),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(key: RawDocumentBuf, document: &RawDocument) -> String {
        let spec = rawdoc! { "name": "i", "unique": true, "key": key };
        let command = UniqueIndex::of(&spec).unwrap().find_holders("c", document);
        let filter = command.get_document("filter").unwrap();
        bson::Document::try_from(filter).unwrap().to_string()
    }

    #[test]
    fn values_are_taken_by_the_paths_of_the_index() {
        let document = rawdoc! { "_id": 1, "a": { "b": 5 }, "tags": ["x", "y"] };

        assert_eq!(
            find(rawdoc! { "a.b": 1, "none": -1 }, &document),
            r#"{ "$and": [{ "$or": [{ "a.b": { "$eq": 5 } }] }, { "$or": [{ "none": { "$eq": null } }] }] }"#
        );
        assert_eq!(
            find(rawdoc! { "tags": 1 }, &document),
            r#"{ "$and": [{ "$or": [{ "tags": { "$eq": ["x", "y"] } }, { "tags": { "$eq": "x" } }, { "tags": { "$eq": "y" } }] }] }"#
        );
    }

    #[test]
    fn arrays_on_the_way_are_looked_into() {
        let document = rawdoc! { "items": [{ "sku": 1 }, { "sku": 2 }, 3] };
        let values = |path| values_at(&document, path).len();

        assert_eq!(values("items.sku"), 2);
        assert_eq!(values("items.1.sku"), 3, "the place, and what elements have under the name 1");
        assert_eq!(values("items.sku.x"), 2);
        assert_eq!(values("no.such.path"), 1);
    }

    #[test]
    fn an_index_that_is_not_unique_holds_nothing() {
        assert_eq!(UniqueIndex::of(&rawdoc! { "name": "i", "key": { "a": 1 } }), None);
    }
}
