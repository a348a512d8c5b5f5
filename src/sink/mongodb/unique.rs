//! Unique indexes: which values does a document need, and who holds them?
//!
//! The server's error names the index and the key, and the index is asked for exactly that. For an index
//! with a collation the key is a sort key, which cannot be asked for, and a hidden index cannot be asked
//! at all; there the values are taken from the document that did not find its place, by the paths of the
//! index. Where arrays are on the way that may find a document too many.

use bson::{RawArrayBuf, RawBsonRef, RawDocument, RawDocumentBuf, rawdoc};

use crate::model::{
    document_key::DocumentKey,
    raw::{self, kind},
};

/// A unique index, as `listIndexes` tells it.
#[derive(Clone, Debug, PartialEq)]
pub struct UniqueIndex {
    pub name: String,
    paths: Vec<String>,
    collation: Option<RawDocumentBuf>,
    /// `partialFilterExpression`: only documents that match it are in the index.
    filter: Option<RawDocumentBuf>,
    is_sparse: bool,
    /// A hidden index keeps its values unique, and is refused as a hint.
    is_hidden: bool,
}

impl UniqueIndex {
    /// Reads one element of `listIndexes`; `None` when the index is not unique, or is that on `_id`.
    pub fn of(spec: &RawDocument) -> Option<Self> {
        let is = |name| matches!(spec.get(name), Ok(Some(RawBsonRef::Boolean(true))));
        if !is("unique") {
            return None;
        }
        let part = |name| raw::subdocument(spec, name).map(ToOwned::to_owned);
        let key = raw::subdocument(spec, "key")?;
        let paths = raw::elements(key).map(|element| Some(element.ok()?.name.to_owned()));
        Some(Self {
            name: spec.get_str("name").ok()?.to_owned(),
            paths: paths.collect::<Option<_>>()?,
            collation: part("collation"),
            filter: part("partialFilterExpression"),
            is_sparse: is("sparse"),
            is_hidden: is("hidden"),
        })
    }

    /// True when [`find_key`](Self::find_key) works.
    pub fn finds_keys(&self) -> bool {
        self.collation.is_none() && !self.is_hidden
    }

    /// The paths, when every document is in the index. One that leaves a partial index lets go of its
    /// value without another one.
    pub fn paths_of_all(&self) -> Option<Vec<String>> {
        (self.filter.is_none() && !self.is_sparse).then(|| self.paths.clone())
    }

    /// The `find` of the first index entry from `key` on: its key, or its document.
    pub fn find_key(&self, collection: &str, key: &RawDocument, keys: bool) -> RawDocumentBuf {
        rawdoc! {
            "find": collection, "hint": self.name.as_str(), "min": key.to_owned(), "limit": 1,
            "returnKey": keys, "collation": { "locale": "simple" },
        }
    }

    /// The `find` of the documents that hold what `document` needs of this index.
    pub fn find_by_values(&self, collection: &str, document: &RawDocument) -> RawDocumentBuf {
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
        // Without it a server walks a partial index from end to end.
        if let Some(filter) = &self.filter {
            all.push(filter.clone());
        }
        // The collection's own collation may differ from the index's.
        let simple = || rawdoc! { "locale": "simple" };
        let mut command = rawdoc! {
            "find": collection, "filter": { "$and": all },
            "collation": self.collation.clone().unwrap_or_else(simple),
        };
        if !self.is_hidden {
            command.append(bson::raw::cstr!("hint"), self.name.as_str());
        }
        command
    }
}

/// True when two index keys are the same to the server, which makes no difference between numbers of
/// equal value.
pub fn is_same_key(a: &RawDocument, b: &RawDocument) -> bool {
    let canonical = |key: &RawDocument| {
        let key = rawdoc! { "_id": key.to_owned() };
        DocumentKey::of(&key).map(|key| key.canonical()).ok()
    };
    canonical(a) == canonical(b)
}

/// An undecoded value.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct KeyValue<'a> {
    kind: u8,
    bytes: &'a [u8],
}

/// What a missing field counts as in an index.
const NULL: KeyValue<'static> = KeyValue { kind: kind::NULL, bytes: &[] };

/// The values that an index has for `path`: of an array its elements, and the array itself, which the
/// index has when it is empty. At least one.
pub fn values_at<'a>(document: &'a RawDocument, path: &str) -> Vec<KeyValue<'a>> {
    let mut values = Vec::new();
    collect(document, path, &mut values);
    if values.is_empty() {
        values.push(NULL);
    }
    values
}

fn collect<'a>(document: &'a RawDocument, path: &str, values: &mut Vec<KeyValue<'a>>) {
    let (name, rest) = path.split_once('.').map_or((path, None), |(name, rest)| (name, Some(rest)));
    let Some(found) = raw::elements(document).flatten().find(|element| element.name == name) else {
        values.push(NULL);
        return;
    };
    let nested = || raw::nested(found.value).ok();
    match (rest, found.kind) {
        (None, kind::ARRAY) => {
            values.push(KeyValue { kind: found.kind, bytes: found.value });
            let elements = nested().into_iter().flat_map(raw::elements).flatten();
            values.extend(elements.map(|item| KeyValue { kind: item.kind, bytes: item.value }));
        }
        (None, kind) => values.push(KeyValue { kind, bytes: found.value }),
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
        let command = UniqueIndex::of(&spec).unwrap().find_by_values("c", document);
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
    fn keys_of_equal_value_are_the_same() {
        let key = rawdoc! { "a": 1, "b": "x" };

        assert!(is_same_key(&key, &rawdoc! { "a": 1.0, "b": "x" }));
        assert!(!is_same_key(&key, &rawdoc! { "a": 1, "b": "y" }));
    }

    #[test]
    fn only_what_is_in_every_case_in_the_index_counts_by_its_values() {
        let index = |more: RawDocumentBuf| {
            let mut spec = rawdoc! { "name": "i", "unique": true, "key": { "a": 1 } };
            for (name, value) in more.iter().flatten() {
                spec.append(name, bson::RawBson::from(value));
            }
            UniqueIndex::of(&spec).unwrap()
        };

        assert_eq!(index(rawdoc! {}).paths_of_all(), Some(vec!["a".to_owned()]));
        assert_eq!(index(rawdoc! { "sparse": true }).paths_of_all(), None);
        assert!(index(rawdoc! {}).finds_keys());
        assert!(!index(rawdoc! { "hidden": true }).finds_keys());
        assert!(!index(rawdoc! { "collation": { "locale": "en" } }).finds_keys());
    }

    #[test]
    fn an_index_that_is_not_unique_holds_nothing() {
        assert_eq!(UniqueIndex::of(&rawdoc! { "name": "i", "key": { "a": 1 } }), None);
    }
}
