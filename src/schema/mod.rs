//! What makes two collections alike beside their documents: options and indexes. Compares what
//! `listCollections` and `listIndexes` tell of both, and says what would make the second like the first.
//!
//! Numbers count by value, since a spec that was typed by hand may hold `1` where another holds `1.0`; the
//! order of fields counts in an index's key, a validator and a view's pipeline alone.

use std::{collections::BTreeMap, fmt};

use bson::{Bson, Document, doc};

mod steps;
mod versions;

pub use steps::{Description, Kind, Step, build_command, steps};
pub use versions::{Version, not_taken};

/// A step that makes the indexes of a copy those of its original.
#[derive(Clone, Debug, PartialEq)]
pub enum IndexChange {
    /// It is not there.
    Create { spec: Document },
    /// The original does not have it.
    Drop { name: String },
    /// It differs in what `collMod` can change; `changes` is the command's `index`, `spec` what it is to
    /// become, for a server that cannot change it.
    Modify { spec: Document, changes: Document },
    /// It is to become unique, which documents must obey from then on (`collMod`, 6.0+).
    MakeUnique { spec: Document },
    /// It differs in what makes another index of it.
    Replace { spec: Document },
}

impl IndexChange {
    /// True for one that is to be made and that documents must obey.
    pub fn is_unique(&self) -> bool {
        match self {
            IndexChange::Create { spec } | IndexChange::Replace { spec } => {
                spec.get_bool("unique").unwrap_or(false)
            }
            IndexChange::Drop { .. }
            | IndexChange::Modify { .. }
            | IndexChange::MakeUnique { .. } => false,
        }
    }

    /// Its index.
    pub fn name(&self) -> &str {
        match self {
            IndexChange::Create { spec }
            | IndexChange::Replace { spec }
            | IndexChange::MakeUnique { spec }
            | IndexChange::Modify { spec, .. } => name_of(spec),
            IndexChange::Drop { name } => name,
        }
    }
}

/// What `createIndexes` takes for a spec that `listIndexes` told. An index without a collation is one of the
/// simple collation, even where the collection has another one by default, which a new index would get.
pub fn creation(spec: &Document) -> Document {
    let mut spec = spec.clone();
    spec.entry("collation".to_owned()).or_insert_with(|| doc! { "locale": "simple" }.into());
    spec
}

/// A sentence about what differs, for a person.
impl fmt::Display for IndexChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.name();
        match self {
            IndexChange::Create { .. } => write!(f, "index `{name}` is missing in Atlas"),
            IndexChange::Drop { .. } => write!(f, "index `{name}` is in Atlas only"),
            IndexChange::Modify { changes, .. } => {
                let keys = changes.keys().filter(|key| *key != "name").map(String::as_str);
                write!(f, "index `{name}` differs: {}", keys.collect::<Vec<_>>().join(", "))
            }
            IndexChange::MakeUnique { .. } => write!(f, "index `{name}` differs: unique"),
            IndexChange::Replace { .. } => write!(f, "index `{name}` is another one in Atlas"),
        }
    }
}

/// A step that makes the options of a copy those of its original.
#[derive(Clone, Debug, PartialEq)]
pub enum OptionChange {
    /// `collMod` can: the command's fields.
    Modify { option: &'static str, fields: Document },
    /// The collection would have to be made anew.
    Fixed { option: String },
}

/// A sentence about what differs, for a person.
impl fmt::Display for OptionChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            OptionChange::Modify { option, .. } => write!(f, "option `{option}` differs"),
            OptionChange::Fixed { option } => {
                write!(f, "option `{option}` differs, which only a new collection can change")
            }
        }
    }
}

/// What keeps the indexes `copy` from being those of `original`, drops first: a name or a key that is
/// taken must be free before it is used again.
pub fn index_changes(original: &[Document], copy: &[Document]) -> Vec<IndexChange> {
    let by_name = |indexes: &[Document]| -> BTreeMap<String, Document> {
        indexes
            .iter()
            .filter(|spec| !is_id_index(spec))
            .map(|spec| (name_of(spec).to_owned(), essence(spec)))
            .collect()
    };
    let (wanted, there) = (by_name(original), by_name(copy));
    let mut changes: Vec<_> = there
        .keys()
        .filter(|name| !wanted.contains_key(*name))
        .map(|name| IndexChange::Drop { name: name.clone() })
        .collect();
    for (name, spec) in wanted {
        match there.get(&name) {
            None => changes.push(IndexChange::Create { spec }),
            Some(copy) => changes.extend(difference(&name, spec, copy)),
        }
    }
    changes
}

/// True for the index that every collection has by itself.
fn is_id_index(spec: &Document) -> bool {
    name_of(spec) == "_id_" || spec.get_bool("clustered").unwrap_or(false)
}

fn name_of(spec: &Document) -> &str {
    spec.get_str("name").unwrap_or_default()
}

/// A spec without what says nothing: format versions, and flags that are off.
fn essence(spec: &Document) -> Document {
    spec.iter()
        .filter(|(name, value)| {
            !matches!(name.as_str(), "v" | "ns" | "background") && **value != Bson::Boolean(false)
        })
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect()
}

fn difference(name: &str, spec: Document, copy: &Document) -> Option<IndexChange> {
    let order = |spec: &Document| -> Vec<String> {
        spec.get_document("key").map(|key| key.keys().cloned().collect()).unwrap_or_default()
    };
    let fields = spec.keys().chain(copy.keys().filter(|name| !spec.contains_key(*name)));
    let is_same = |field: &str| match field {
        "wildcardProjection" => projection(spec.get(field)) == projection(copy.get(field)),
        "partialFilterExpression" => is_identical(spec.get(field), copy.get(field)),
        field => is_same_field(spec.get(field), copy.get(field)),
    };
    let different: Vec<_> = fields.filter(|field| !is_same(field)).collect();
    if different.is_empty() && order(&spec) == order(copy) {
        return None;
    }
    let mut changes = doc! { "name": name };
    let mut becomes_unique = false;
    let on = |value: Option<&Bson>| value == Some(&Bson::Boolean(true));
    for field in different {
        match (field.as_str(), spec.get(field), copy.get(field)) {
            ("expireAfterSeconds", Some(seconds), _) => {
                changes.insert("expireAfterSeconds", seconds.clone());
            }
            ("hidden", hidden, _) => {
                changes.insert("hidden", on(hidden));
            }
            ("unique", unique, _) if on(unique) => becomes_unique = true,
            // What is being made unique is prepared for it on the way.
            ("prepareUnique", _, _) if on(spec.get("unique")) => {}
            ("prepareUnique", prepared, _) => {
                changes.insert("prepareUnique", on(prepared));
            }
            _ => return Some(IndexChange::Replace { spec }),
        }
    }
    match (becomes_unique, changes.len()) {
        (true, 1) => Some(IndexChange::MakeUnique { spec }),
        // The order of the key; or more at once than is worth a step of its own.
        (true, _) | (false, 1) => Some(IndexChange::Replace { spec }),
        (false, _) => Some(IndexChange::Modify { spec, changes }),
    }
}

/// Which fields a wildcard index takes or leaves. 5.0 writes `1` as `true`, and adds the `_id` that is left
/// out anyway.
fn projection(value: Option<&Bson>) -> Option<Document> {
    fn plain(value: &Bson) -> Bson {
        match value {
            Bson::Document(nested) => nested
                .iter()
                .map(|(field, value)| (field.clone(), plain(value)))
                .collect::<Document>()
                .into(),
            value => number(value).map_or_else(|| value.clone(), |n| (n != 0.0).into()),
        }
    }
    let mut fields = plain(&value?.as_document()?.clone().into()).as_document()?.clone();
    if fields.get("_id") == Some(&Bson::Boolean(false)) {
        fields.remove("_id");
    }
    Some(fields)
}

/// Equal byte for byte: in the order of fields too, which `==` does not see, and with NaN equal to itself.
fn is_identical(a: Option<&Bson>, b: Option<&Bson>) -> bool {
    let bytes = |value: Option<&Bson>| value.map(|value| doc! { "": value.clone() }.to_vec().ok());
    bytes(a) == bytes(b)
}

fn is_same_field(a: Option<&Bson>, b: Option<&Bson>) -> bool {
    match (a, b) {
        (Some(a), Some(b)) => is_same(a, b),
        (a, b) => a == b,
    }
}

/// Equal, with numbers by value.
fn is_same(a: &Bson, b: &Bson) -> bool {
    match (a, b) {
        (Bson::Document(a), Bson::Document(b)) => {
            a.len() == b.len() && a.iter().all(|(name, a)| is_same_field(Some(a), b.get(name)))
        }
        (Bson::Array(a), Bson::Array(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| is_same(a, b))
        }
        (a, b) => match (number(a), number(b)) {
            (Some(a), Some(b)) => a == b || (a.is_nan() && b.is_nan()),
            (_, _) => a == b,
        },
    }
}

fn number(value: &Bson) -> Option<f64> {
    match value {
        Bson::Int32(n) => Some(f64::from(*n)),
        Bson::Int64(n) => Some(*n as f64),
        Bson::Double(n) => Some(*n),
        _ => None,
    }
}

/// What keeps the options `copy` from being `original`.
pub fn option_changes(original: &Document, copy: &Document) -> Vec<OptionChange> {
    let differs = |name: &str| !is_same_field(setting(original, name), setting(copy, name));
    // `{ $gt: 1 }` in another order means the same; `{ $eq: { a: 1, b: 2 } }` does not.
    let differs = |name: &str| match name {
        "validator" => !is_identical(setting(original, name), setting(copy, name)),
        name => differs(name),
    };
    let mut changes = Vec::new();
    let mut fields = Document::new();
    for (name, default) in [
        ("validator", Bson::Document(doc! {})),
        ("validationLevel", "strict".into()),
        ("validationAction", "error".into()),
    ] {
        if differs(name) {
            fields.insert(name, setting(original, name).cloned().unwrap_or(default));
        }
    }
    if !fields.is_empty() {
        changes.push(OptionChange::Modify { option: "validator", fields });
    }
    for (name, field, off) in [
        (
            "changeStreamPreAndPostImages",
            "changeStreamPreAndPostImages",
            Some(doc! { "enabled": false }.into()),
        ),
        ("expireAfterSeconds", "expireAfterSeconds", Some(Bson::from("off"))),
        ("size", "cappedSize", None),
        ("max", "cappedMax", Some(Bson::Int64(0))),
    ] {
        if !differs(name) || differs("capped") {
            continue;
        }
        let wanted = setting(original, name).cloned().or(off);
        changes.push(match wanted {
            Some(wanted) => OptionChange::Modify {
                option: name,
                fields: Document::from_iter([(field.to_owned(), wanted)]),
            },
            None => OptionChange::Fixed { option: name.to_owned() },
        });
    }
    for name in ["capped", "collation", "clusteredIndex", "storageEngine"] {
        if differs(name) {
            changes.push(OptionChange::Fixed { option: name.to_owned() });
        }
    }
    changes
}

/// An option, or `None` where it is as if it were not there.
fn setting<'a>(options: &'a Document, name: &str) -> Option<&'a Bson> {
    let is_default = |value: &Bson| match (name, value) {
        (_, Bson::Boolean(on)) => !on,
        ("validationLevel", Bson::String(level)) => level == "strict",
        ("validationAction", Bson::String(action)) => action == "error",
        ("changeStreamPreAndPostImages", Bson::Document(images)) => {
            !images.get_bool("enabled").unwrap_or(false)
        }
        ("max", value) => number(value) == Some(0.0),
        (_, Bson::Document(empty)) => empty.is_empty(),
        (_, _) => false,
    };
    options.get(name).filter(|value| !is_default(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn index(name: &str, more: Document) -> Document {
        let mut spec = doc! { "v": 2, "key": { "a": 1, "b": -1 }, "name": name };
        spec.extend(more);
        spec
    }

    #[test]
    fn equal_indexes_need_nothing() {
        let id = doc! { "v": 2, "key": { "_id": 1 }, "name": "_id_" };
        let local = [id.clone(), index("a", doc! { "unique": true, "sparse": false })];
        let atlas =
            [doc! { "v": 2, "key": { "a": 1.0, "b": -1_i64 }, "name": "a", "unique": true }, id];

        assert_eq!(index_changes(&local, &atlas), []);
    }

    #[test]
    fn each_difference_has_its_step_and_what_is_in_the_way_goes_first() {
        let local = [
            index("missing", doc! {}),
            index("ttl", doc! { "expireAfterSeconds": 60 }),
            index("hidden", doc! {}),
            index("unique", doc! { "unique": true }),
            index("turned", doc! {}),
        ];
        let atlas = [
            index("ttl", doc! { "expireAfterSeconds": 30 }),
            index("hidden", doc! { "hidden": true }),
            index("unique", doc! {}),
            doc! { "v": 2, "key": { "b": -1, "a": 1 }, "name": "turned" },
            index("only in Atlas", doc! {}),
        ];

        let changes = index_changes(&local, &atlas);

        let sentences: Vec<_> = changes.iter().map(ToString::to_string).collect();
        assert_eq!(
            sentences,
            [
                "index `only in Atlas` is in Atlas only",
                "index `hidden` differs: hidden",
                "index `missing` is missing in Atlas",
                "index `ttl` differs: expireAfterSeconds",
                "index `turned` is another one in Atlas",
                "index `unique` differs: unique",
            ]
        );
        assert_eq!(
            changes[1],
            IndexChange::Modify {
                spec: doc! { "key": { "a": 1, "b": -1 }, "name": "hidden" },
                changes: doc! { "name": "hidden", "hidden": false }
            }
        );
    }

    #[test]
    fn a_projection_means_the_same_in_the_words_of_another_version() {
        let new = [index("w", doc! { "wildcardProjection": { "a": 0, "b": 0 } })];
        let old =
            [index("w", doc! { "wildcardProjection": { "_id": false, "b": false, "a": false } })];
        let other = [index("w", doc! { "wildcardProjection": { "a": 1 } })];

        assert_eq!(index_changes(&new, &old), []);
        assert!(matches!(&index_changes(&new, &other)[..], [IndexChange::Replace { .. }]));
    }

    #[test]
    fn an_index_that_expires_no_more_is_made_anew() {
        let ttl = [index("a", doc! { "expireAfterSeconds": 60 })];
        let plain = [index("a", doc! {})];

        assert!(matches!(&index_changes(&plain, &ttl)[..], [IndexChange::Replace { .. }]));
        assert!(matches!(&index_changes(&ttl, &plain)[..], [IndexChange::Modify { .. }]));
    }

    #[test]
    fn an_index_that_becomes_unique_stays_in_its_place() {
        let unique = [index("a", doc! { "unique": true })];
        let prepared = [index("a", doc! { "prepareUnique": true })];
        let plain = [index("a", doc! {})];

        assert!(matches!(&index_changes(&unique, &plain)[..], [IndexChange::MakeUnique { .. }]));
        assert!(matches!(&index_changes(&unique, &prepared)[..], [IndexChange::MakeUnique { .. }]));
        assert!(matches!(&index_changes(&plain, &unique)[..], [IndexChange::Replace { .. }]));
        assert!(matches!(
            &index_changes(&prepared, &plain)[..],
            [IndexChange::Modify { changes, .. }] if changes.get_bool("prepareUnique").unwrap()
        ));
    }

    #[test]
    fn an_index_of_the_simple_collation_does_not_get_that_of_its_collection() {
        let simple = creation(&index("a", doc! {}));
        assert_eq!(simple.get_document("collation").unwrap(), &doc! { "locale": "simple" });

        let own = index("a", doc! { "collation": { "locale": "de" } });
        assert_eq!(creation(&own), own);
    }

    #[test]
    fn options_that_are_off_are_as_if_they_were_not_there() {
        let off = doc! {
            "validator": {}, "validationLevel": "strict", "validationAction": "error",
            "changeStreamPreAndPostImages": { "enabled": false }, "capped": false,
        };

        assert_eq!(option_changes(&doc! {}, &off), []);
        assert_eq!(option_changes(&off, &doc! {}), []);
    }

    #[test]
    fn what_collmod_can_change_is_changed_and_the_rest_is_named() {
        let local = doc! { "validator": { "a": 1 }, "collation": { "locale": "de" } };
        let atlas = doc! { "validationLevel": "moderate", "capped": true, "size": 4096 };

        let changes = option_changes(&local, &atlas);

        assert_eq!(
            changes[0],
            OptionChange::Modify {
                option: "validator",
                fields: doc! { "validator": { "a": 1 }, "validationLevel": "strict" }
            }
        );
        let rest: Vec<_> = changes[1..].iter().map(ToString::to_string).collect();
        assert_eq!(
            rest,
            [
                "option `capped` differs, which only a new collection can change",
                "option `collation` differs, which only a new collection can change"
            ]
        );
    }

    #[test]
    fn the_order_of_fields_counts_in_a_validator_and_not_a_number_equals_itself() {
        let with = |value: Bson| doc! { "validator": { "x": { "$eq": value } } };
        let ab = with(doc! { "a": 1, "b": 2 }.into());
        let ba = with(doc! { "b": 2, "a": 1 }.into());

        assert_eq!(option_changes(&ab, &ab), []);
        assert_eq!(option_changes(&ab, &ba).len(), 1);
        assert_eq!(option_changes(&with(f64::NAN.into()), &with(f64::NAN.into())), []);
    }

    #[test]
    fn a_validator_that_is_gone_is_taken_away() {
        let changes = option_changes(&doc! {}, &doc! { "validator": { "a": 1 } });

        assert_eq!(
            changes,
            [OptionChange::Modify { option: "validator", fields: doc! { "validator": {} } }]
        );
    }
}
