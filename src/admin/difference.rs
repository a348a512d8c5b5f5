//! What has changed between two states of a JSON document, as a merge patch (RFC 7396): of an object the fields that are
//! others, `null` for those that are gone; of everything else the whole. Pure.
//!
//! `null` stands for "gone", so a state must hold none: [`without_nulls`].

use serde_json::{Map, Value};

/// The patch that makes `after` of `before`; `None` when they are alike.
pub fn difference(before: &Value, after: &Value) -> Option<Value> {
    let (Value::Object(old), Value::Object(new)) = (before, after) else {
        return (before != after).then(|| after.clone());
    };
    let mut patch = Map::new();
    for (name, value) in new {
        let found = match old.get(name) {
            Some(known) => difference(known, value),
            None => Some(value.clone()),
        };
        patch.extend(found.map(|found| (name.clone(), found)));
    }
    let gone = old.keys().filter(|name| !new.contains_key(*name));
    patch.extend(gone.map(|name| (name.clone(), Value::Null)));
    (!patch.is_empty()).then_some(Value::Object(patch))
}

/// The same without fields that are `null`.
pub fn without_nulls(value: Value) -> Value {
    match value {
        Value::Object(fields) => {
            let kept = fields.into_iter().filter(|(_, value)| !value.is_null());
            Value::Object(kept.map(|(name, value)| (name, without_nulls(value))).collect())
        }
        Value::Array(items) => Value::Array(items.into_iter().map(without_nulls).collect()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    /// RFC 7396, as whoever reads the stream does it.
    fn patched(target: Value, patch: Value) -> Value {
        let Value::Object(patch) = patch else { return patch };
        let mut fields = match target {
            Value::Object(fields) => fields,
            _ => Map::new(),
        };
        for (name, value) in patch {
            match value {
                Value::Null => drop(fields.remove(&name)),
                value => {
                    let before = fields.remove(&name).unwrap_or(Value::Null);
                    fields.insert(name, patched(before, value));
                }
            }
        }
        Value::Object(fields)
    }

    #[test]
    fn only_what_is_another_is_in_it() {
        let before = json!({ "a": 1, "b": { "c": 2, "d": 3 }, "e": [1, 2], "gone": true });
        let after = json!({ "a": 1, "b": { "c": 2, "d": 4 }, "e": [1, 3], "new": {} });

        let expected = json!({ "b": { "d": 4 }, "e": [1, 3], "gone": null, "new": {} });
        assert_eq!(difference(&before, &after), Some(expected));
        assert_eq!(difference(&after, &after), None);
    }

    fn state() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(json!(null)),
            any::<bool>().prop_map(Value::from),
            (0..4).prop_map(Value::from)
        ];
        leaf.prop_recursive(4, 32, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
                prop::collection::hash_map("[a-d]", inner, 0..4)
                    .prop_map(|fields| Value::Object(fields.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn whoever_applies_it_has_the_later_state(before in state(), after in state()) {
            let of = |fields: Value| without_nulls(json!({ "fields": fields }));
            let (before, after) = (of(before), of(after));
            let patch = difference(&before, &after).unwrap_or_else(|| json!({}));
            prop_assert_eq!(patched(before, patch), after);
        }
    }
}
