//! What makes two collections alike beside their documents: options and indexes. Compares what
//! `listCollections` and `listIndexes` tell of both, and says what would make the second like the first.
//!
//! Both are kept as the bytes that the server told ([`value`]). Filters, validators and pipelines count byte for
//! byte. Elsewhere numbers count by value, since a spec that was typed by hand may hold `1` where another holds
//! `1.0`; the order of fields counts in an index's key as well.

use std::{borrow::Cow, collections::BTreeMap, fmt};

use bson::{RawDocument, RawDocumentBuf, rawdoc};

use crate::model::raw::{Builder, Field, kind};

pub mod expiry;
mod make;
mod steps;
pub mod value;
mod versions;
pub mod watch;

pub use make::{
    BUILD_ABORTED, Building, Left, Problem, StepRefusal, StepResult, Target, joined, make,
};
pub use steps::{Claim, Description, Kind, Step, build_command, in_the_way, index_names, steps};
use value::{Value, fields, get, is_on, is_same, projection};
pub use versions::{Version, not_taken};

/// A step that makes the indexes of a copy those of its original.
#[derive(Clone, Debug, PartialEq)]
pub enum IndexChange {
    /// It is not there.
    Create { spec: RawDocumentBuf },
    /// The original does not have it.
    Drop { spec: RawDocumentBuf },
    /// It differs in what `collMod` can change; `changes` is the command's `index`, `spec` what it is to
    /// become, for a server that cannot change it.
    Modify { spec: RawDocumentBuf, changes: RawDocumentBuf },
    /// It is to be prepared to become unique (`collMod`, 6.0+): documents with the same value stay, and no other
    /// may come.
    Prepare { spec: RawDocumentBuf },
    /// It is to become unique, which documents must obey from then on (`collMod`, 6.0+).
    MakeUnique { spec: RawDocumentBuf },
    /// It differs in what makes another index of it.
    Replace { spec: RawDocumentBuf },
}

impl IndexChange {
    /// True for one that is to be made and that documents must obey.
    pub fn is_unique(&self) -> bool {
        match self {
            IndexChange::Create { spec } | IndexChange::Replace { spec } => is_on(spec, "unique"),
            IndexChange::Drop { .. }
            | IndexChange::Modify { .. }
            | IndexChange::Prepare { .. }
            | IndexChange::MakeUnique { .. } => false,
        }
    }

    /// Its index.
    pub fn spec(&self) -> &RawDocument {
        match self {
            IndexChange::Create { spec }
            | IndexChange::Replace { spec }
            | IndexChange::MakeUnique { spec }
            | IndexChange::Prepare { spec }
            | IndexChange::Modify { spec, .. }
            | IndexChange::Drop { spec } => spec,
        }
    }

    /// Its index's name, for a person.
    pub fn name(&self) -> Cow<'_, str> {
        name_of(self.spec())
    }
}

/// What `createIndexes` takes for a spec that `listIndexes` told. An index without a collation is one of the
/// simple collation, even where the collection has another one by default, which a new index would get.
/// One that is prepared to become unique is made plain: see [`IndexChange::Prepare`].
pub fn creation(spec: &RawDocument) -> RawDocumentBuf {
    let mut creation = Builder::default();
    creation.extend(&value::without(spec, &["prepareUnique"]));
    if get(spec, "collation").is_none() {
        creation.document("collation", |collation| collation.push_str("locale", "simple"));
    }
    creation.finish()
}

/// A sentence about what differs, for a person.
impl fmt::Display for IndexChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.name();
        match self {
            IndexChange::Create { .. } => write!(f, "index `{name}` is missing in Atlas"),
            IndexChange::Drop { .. } => write!(f, "index `{name}` is in Atlas only"),
            IndexChange::Modify { changes, .. } => {
                let keys = value::names(changes).filter(|key| key != "name");
                write!(f, "index `{name}` differs: {}", keys.collect::<Vec<_>>().join(", "))
            }
            IndexChange::Prepare { .. } => write!(f, "index `{name}` differs: prepareUnique"),
            IndexChange::MakeUnique { .. } => write!(f, "index `{name}` differs: unique"),
            IndexChange::Replace { .. } => write!(f, "index `{name}` is another one in Atlas"),
        }
    }
}

/// A step that makes the options of a copy those of its original.
#[derive(Clone, Debug, PartialEq)]
pub enum OptionChange {
    /// `collMod` can: the command's fields.
    Modify { option: &'static str, fields: RawDocumentBuf },
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
pub fn index_changes(original: &[RawDocumentBuf], copy: &[RawDocumentBuf]) -> Vec<IndexChange> {
    let by_name = |indexes: &[RawDocumentBuf]| -> BTreeMap<Vec<u8>, RawDocumentBuf> {
        indexes
            .iter()
            .filter(|spec| !is_id_index(spec))
            .map(|spec| (name_bytes(spec).get(4..).unwrap_or_default().to_vec(), essence(spec)))
            .collect()
    };
    let (wanted, existing) = (by_name(original), by_name(copy));
    let mut changes: Vec<_> = existing
        .iter()
        .filter(|(name, _)| !wanted.contains_key(*name))
        .map(|(_, spec)| IndexChange::Drop { spec: spec.clone() })
        .collect();
    for (name, spec) in wanted {
        let copy = existing.get(&name);
        let change = match copy {
            None => Some(IndexChange::Create { spec: spec.clone() }),
            Some(copy) => difference(spec.clone(), copy),
        };
        let is_recreated =
            matches!(change, Some(IndexChange::Create { .. } | IndexChange::Replace { .. }));
        changes.extend(change);
        let is_prepared = |spec: &RawDocumentBuf| is_on(spec, "prepareUnique");
        if is_prepared(&spec)
            && !is_on(&spec, "unique")
            && (is_recreated || !copy.is_some_and(is_prepared))
        {
            changes.push(IndexChange::Prepare { spec });
        }
    }
    changes
}

/// True for the index that every collection has by itself.
fn is_id_index(spec: &RawDocument) -> bool {
    name_of(spec) == "_id_" || is_on(spec, "clustered")
}

/// The bytes of its name, which need not be text.
fn name_bytes(spec: &RawDocument) -> &[u8] {
    get(spec, "name").map(|name| name.bytes).unwrap_or_default()
}

fn name_of(spec: &RawDocument) -> Cow<'_, str> {
    crate::model::raw::lossy(name_bytes(spec))
}

/// A spec without what says nothing: format versions, and flags that are off.
fn essence(spec: &RawDocument) -> RawDocumentBuf {
    let says_nothing = |field: &Field<'_>| {
        matches!(field.name, b"v" | b"ns" | b"background")
            || (field.kind == kind::BOOL && field.value == [0])
    };
    value::collect(fields(spec).filter(|field| !says_nothing(field)))
}

/// The names of its key, in their order.
fn order(spec: &RawDocument) -> Vec<Vec<u8>> {
    let key = get(spec, "key").and_then(Value::document);
    key.map(|key| fields(key).map(|field| field.name.to_vec()).collect()).unwrap_or_default()
}

fn difference(spec: RawDocumentBuf, copy: &RawDocument) -> Option<IndexChange> {
    let names = |of: &RawDocument| -> Vec<Vec<u8>> {
        fields(of).map(|field| field.name.to_vec()).collect()
    };
    let mut all = names(&spec);
    all.extend(names(copy).into_iter().filter(|name| !names(&spec).contains(name)));
    let all: Vec<_> = all.into_iter().filter_map(|name| String::from_utf8(name).ok()).collect();
    let is_equal = |field: &str| {
        let (a, b) = (get(&spec, field), get(copy, field));
        match field {
            "wildcardProjection" => projection(a) == projection(b),
            "partialFilterExpression" => a == b,
            _ => is_same(a, b),
        }
    };
    let different: Vec<_> = all.iter().filter(|field| !is_equal(field)).collect();
    let is_prepared = *different == ["prepareUnique"] && is_on(&spec, "prepareUnique");
    if (different.is_empty() || is_prepared) && order(&spec) == order(copy) {
        return None;
    }
    let mut changes = Builder::default();
    changes.push(kind::STRING, "name", name_bytes(&spec));
    let (mut becomes_unique, mut is_changed) = (false, false);
    let on = |value: Option<Value<'_>>| value.is_some_and(Value::is_true);
    for field in different {
        let wanted = get(&spec, field);
        match (field.as_str(), wanted) {
            ("expireAfterSeconds", Some(seconds)) => {
                changes.push(seconds.kind, "expireAfterSeconds", seconds.bytes);
                is_changed = true;
            }
            ("unique", unique) if on(unique) => becomes_unique = true,
            // What is being made unique is prepared for it on the way; else it is a step of its own.
            ("prepareUnique", prepared) if on(prepared) || is_on(&spec, "unique") => {}
            ("hidden" | "prepareUnique", wanted) => {
                changes.push_bool(field, on(wanted));
                is_changed = true;
            }
            _ => return Some(IndexChange::Replace { spec }),
        }
    }
    match (becomes_unique, is_changed) {
        (true, false) => Some(IndexChange::MakeUnique { spec }),
        // The order of the key; or more at once than is worth a step of its own.
        (true, true) | (false, false) => Some(IndexChange::Replace { spec }),
        (false, true) => Some(IndexChange::Modify { spec, changes: changes.finish() }),
    }
}

/// What keeps the options `copy` from being `original`.
pub fn option_changes(original: &RawDocument, copy: &RawDocument) -> Vec<OptionChange> {
    let differs = |name: &str| match name {
        // `{ $gt: 1 }` in another order means the same; `{ $eq: { a: 1, b: 2 } }` does not.
        "validator" => setting(original, name) != setting(copy, name),
        name => !is_same(setting(original, name), setting(copy, name)),
    };
    let mut changes = Vec::new();
    let mut modified = Builder::default();
    let mut is_modified = false;
    let defaults =
        rawdoc! { "validator": {}, "validationLevel": "strict", "validationAction": "error" };
    for name in ["validator", "validationLevel", "validationAction"] {
        if differs(name)
            && let Some(wanted) = setting(original, name).or_else(|| get(&defaults, name))
        {
            modified.push(wanted.kind, name, wanted.bytes);
            is_modified = true;
        }
    }
    if is_modified {
        changes.push(OptionChange::Modify { option: "validator", fields: modified.finish() });
    }
    let off = rawdoc! {
        "changeStreamPreAndPostImages": { "enabled": false }, "expireAfterSeconds": "off", "max": 0_i64,
    };
    for (name, field) in [
        ("changeStreamPreAndPostImages", "changeStreamPreAndPostImages"),
        ("expireAfterSeconds", "expireAfterSeconds"),
        ("size", "cappedSize"),
        ("max", "cappedMax"),
    ] {
        if !differs(name) || differs("capped") {
            continue;
        }
        changes.push(match setting(original, name).or_else(|| get(&off, name)) {
            Some(wanted) => {
                let mut fields = Builder::default();
                fields.push(wanted.kind, field, wanted.bytes);
                OptionChange::Modify { option: name, fields: fields.finish() }
            }
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
fn setting<'a>(options: &'a RawDocument, name: &str) -> Option<Value<'a>> {
    let is_default = |value: Value<'_>| match (name, value.document()) {
        (_, _) if value.is_false() => true,
        ("validationLevel", _) => value.text() == Some("strict"),
        ("validationAction", _) => value.text() == Some("error"),
        ("changeStreamPreAndPostImages", Some(images)) => !is_on(images, "enabled"),
        ("max", _) => value.number() == Some(0.0),
        (_, Some(inner)) => fields(inner).next().is_none(),
        (_, None) => false,
    };
    get(options, name).filter(|value| !is_default(*value))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn index(name: &str, more: RawDocumentBuf) -> RawDocumentBuf {
        let mut spec = Builder::default();
        spec.extend(&rawdoc! { "v": 2, "key": { "a": 1, "b": -1 }, "name": name });
        spec.extend(&more);
        spec.finish()
    }

    #[test]
    fn equal_indexes_need_nothing() {
        let id = rawdoc! { "v": 2, "key": { "_id": 1 }, "name": "_id_" };
        let local = [id.clone(), index("a", rawdoc! { "unique": true, "sparse": false })];
        let atlas =
            [rawdoc! { "v": 2, "key": { "a": 1.0, "b": -1_i64 }, "name": "a", "unique": true }, id];

        assert_eq!(index_changes(&local, &atlas), []);
    }

    #[test]
    fn each_difference_has_its_step_and_what_is_in_the_way_goes_first() {
        let local = [
            index("missing", rawdoc! {}),
            index("ttl", rawdoc! { "expireAfterSeconds": 60 }),
            index("hidden", rawdoc! {}),
            index("unique", rawdoc! { "unique": true }),
            index("turned", rawdoc! {}),
        ];
        let atlas = [
            index("ttl", rawdoc! { "expireAfterSeconds": 30 }),
            index("hidden", rawdoc! { "hidden": true }),
            index("unique", rawdoc! {}),
            rawdoc! { "v": 2, "key": { "b": -1, "a": 1 }, "name": "turned" },
            index("only in Atlas", rawdoc! {}),
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
                spec: rawdoc! { "key": { "a": 1, "b": -1 }, "name": "hidden" },
                changes: rawdoc! { "name": "hidden", "hidden": false }
            }
        );
    }

    #[test]
    fn a_projection_means_the_same_in_the_words_of_another_version() {
        let new = [index("w", rawdoc! { "wildcardProjection": { "a": 0, "b": 0 } })];
        let old = [index(
            "w",
            rawdoc! { "wildcardProjection": { "_id": false, "b": false, "a": false } },
        )];
        let other = [index("w", rawdoc! { "wildcardProjection": { "a": 1 } })];

        assert_eq!(index_changes(&new, &old), []);
        assert!(matches!(&index_changes(&new, &other)[..], [IndexChange::Replace { .. }]));
    }

    #[test]
    fn an_index_that_expires_no_more_is_made_anew() {
        let ttl = [index("a", rawdoc! { "expireAfterSeconds": 60 })];
        let plain = [index("a", rawdoc! {})];

        assert!(matches!(&index_changes(&plain, &ttl)[..], [IndexChange::Replace { .. }]));
        assert!(matches!(&index_changes(&ttl, &plain)[..], [IndexChange::Modify { .. }]));
    }

    #[test]
    fn an_index_that_becomes_unique_stays_in_its_place() {
        let unique = [index("a", rawdoc! { "unique": true })];
        let prepared = [index("a", rawdoc! { "prepareUnique": true })];
        let plain = [index("a", rawdoc! {})];

        assert!(matches!(&index_changes(&unique, &plain)[..], [IndexChange::MakeUnique { .. }]));
        assert!(matches!(&index_changes(&unique, &prepared)[..], [IndexChange::MakeUnique { .. }]));
        assert!(matches!(&index_changes(&plain, &unique)[..], [IndexChange::Replace { .. }]));
        assert!(matches!(&index_changes(&prepared, &plain)[..], [IndexChange::Prepare { .. }]));
        assert!(matches!(
            &index_changes(&plain, &prepared)[..],
            [IndexChange::Modify { changes, .. }] if !changes.get_bool("prepareUnique").unwrap()
        ));
    }

    #[test]
    fn an_index_is_prepared_to_become_unique_behind_what_makes_it() {
        let prepared = [index("a", rawdoc! { "prepareUnique": true, "hidden": true })];

        let made = index_changes(&prepared, &[]);
        assert!(matches!(&made[..], [IndexChange::Create { .. }, IndexChange::Prepare { .. }]));
        assert_eq!(get(&creation(made[0].spec()), "prepareUnique"), None);
        let changed = index_changes(&prepared, &[index("a", rawdoc! {})]);
        assert!(matches!(&changed[..], [IndexChange::Modify { .. }, IndexChange::Prepare { .. }]));
        assert_eq!(index_changes(&prepared, &prepared), []);
    }

    #[test]
    fn an_index_of_the_simple_collation_does_not_get_that_of_its_collection() {
        let simple = creation(&index("a", rawdoc! {}));
        assert_eq!(simple.get_document("collation").unwrap(), &*rawdoc! { "locale": "simple" });

        let own = index("a", rawdoc! { "collation": { "locale": "de" } });
        assert_eq!(creation(&own), own);
    }

    #[test]
    fn options_that_are_off_are_as_if_they_were_not_there() {
        let off = rawdoc! {
            "validator": {}, "validationLevel": "strict", "validationAction": "error",
            "changeStreamPreAndPostImages": { "enabled": false }, "capped": false,
        };

        assert_eq!(option_changes(&rawdoc! {}, &off), []);
        assert_eq!(option_changes(&off, &rawdoc! {}), []);
    }

    #[test]
    fn what_collmod_can_change_is_changed_and_the_rest_is_named() {
        let local = rawdoc! { "validator": { "a": 1 }, "collation": { "locale": "de" } };
        let atlas = rawdoc! { "validationLevel": "moderate", "capped": true, "size": 4096 };

        let changes = option_changes(&local, &atlas);

        assert_eq!(
            changes[0],
            OptionChange::Modify {
                option: "validator",
                fields: rawdoc! { "validator": { "a": 1 }, "validationLevel": "strict" }
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
        let with = |value: bson::RawBson| rawdoc! { "validator": { "x": { "$eq": value } } };
        let ab = with(bson::RawBson::Document(rawdoc! { "a": 1, "b": 2 }));
        let ba = with(bson::RawBson::Document(rawdoc! { "b": 2, "a": 1 }));

        assert_eq!(option_changes(&ab, &ab), []);
        assert_eq!(option_changes(&ab, &ba).len(), 1);
        let of = |filter: RawDocumentBuf| index("a", rawdoc! { "partialFilterExpression": filter });
        let replaced = index_changes(&[of(ab)], &[of(ba)]);
        assert!(matches!(replaced[..], [IndexChange::Replace { .. }]), "{replaced:?}");
        assert_eq!(
            option_changes(
                &with(bson::RawBson::Double(f64::NAN)),
                &with(bson::RawBson::Double(f64::NAN))
            ),
            []
        );
    }

    #[test]
    fn a_validator_that_is_gone_is_taken_away() {
        let changes = option_changes(&rawdoc! {}, &rawdoc! { "validator": { "a": 1 } });

        assert_eq!(
            changes,
            [OptionChange::Modify { option: "validator", fields: rawdoc! { "validator": {} } }]
        );
    }
}
