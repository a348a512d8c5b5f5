//! Options and specs as the bytes that a server told: looked into, and never decoded.
//!
//! A filter may name a field twice, which the server takes as two conditions, and it may hold text that is no
//! UTF-8. A [`bson::Document`] knows neither, so none is made of what a collection, a view or an index is.

use std::borrow::Cow;

use bson::{RawDocument, RawDocumentBuf};

use crate::model::raw::{self, Builder, Field, kind};

/// A value, undecoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Value<'a> {
    pub kind: u8,
    pub bytes: &'a [u8],
}

impl<'a> Value<'a> {
    fn of(field: &Field<'a>) -> Self {
        Value { kind: field.kind, bytes: field.value }
    }

    pub fn is_true(self) -> bool {
        self.kind == kind::BOOL && self.bytes == [1]
    }

    pub fn is_false(self) -> bool {
        self.kind == kind::BOOL && self.bytes == [0]
    }

    pub fn text(self) -> Option<&'a str> {
        if self.kind == kind::STRING { raw::string(self.bytes) } else { None }
    }

    pub fn document(self) -> Option<&'a RawDocument> {
        if self.kind == kind::DOCUMENT { raw::nested(self.bytes).ok() } else { None }
    }

    /// A document, or a list.
    pub fn nested(self) -> Option<&'a RawDocument> {
        let is_nested = matches!(self.kind, kind::DOCUMENT | kind::ARRAY);
        if is_nested { raw::nested(self.bytes).ok() } else { None }
    }

    pub fn number(self) -> Option<f64> {
        Some(match self.kind {
            kind::INT32 => f64::from(i32::from_le_bytes(self.bytes.try_into().ok()?)),
            kind::INT64 => i64::from_le_bytes(self.bytes.try_into().ok()?) as f64,
            kind::DOUBLE => f64::from_le_bytes(self.bytes.try_into().ok()?),
            _ => return None,
        })
    }
}

/// The elements of a document; what is malformed ends them.
pub fn fields(document: &RawDocument) -> impl Iterator<Item = Field<'_>> {
    raw::fields(document).map_while(Result::ok)
}

/// The first value of this name. At the top of options and specs the server takes no name twice.
pub fn get<'a>(document: &'a RawDocument, name: &str) -> Option<Value<'a>> {
    fields(document).find(|field| field.name == name.as_bytes()).map(|field| Value::of(&field))
}

/// True for a flag that is on.
pub fn is_on(document: &RawDocument, name: &str) -> bool {
    get(document, name).is_some_and(Value::is_true)
}

/// The names of a document's fields, for a person.
pub fn names(document: &RawDocument) -> impl Iterator<Item = Cow<'_, str>> {
    fields(document).map(|field| String::from_utf8_lossy(field.name))
}

/// A document without these fields.
pub fn without(document: &RawDocument, names: &[&str]) -> RawDocumentBuf {
    let is_left_out = |field: &Field<'_>| names.iter().any(|name| name.as_bytes() == field.name);
    collect(fields(document).filter(|field| !is_left_out(field)))
}

/// A document of these elements.
pub fn collect<'a>(fields: impl IntoIterator<Item = Field<'a>>) -> RawDocumentBuf {
    let mut document = Builder::default();
    fields.into_iter().for_each(|field| document.push_field(field));
    document.finish()
}

/// A command: its name, the collection, and what else it takes.
pub fn command(name: &str, coll: &str, fill: impl FnOnce(&mut Builder)) -> RawDocumentBuf {
    let mut command = Builder::default();
    command.push_str(name, coll);
    fill(&mut command);
    command.finish()
}

/// Equal, with numbers by value, and fields of other names in whatever order.
pub fn is_same(a: Option<Value<'_>>, b: Option<Value<'_>>) -> bool {
    let (Some(a), Some(b)) = (a, b) else { return a == b };
    if let (Some(a), Some(b)) = (a.number(), b.number()) {
        return a == b || (a.is_nan() && b.is_nan());
    }
    match (a.nested(), b.nested()) {
        (Some(inner_a), Some(inner_b)) if a.kind == b.kind => {
            let (a, b) = (sorted(inner_a), sorted(inner_b));
            a.len() == b.len()
                && a.iter().zip(&b).all(|(a, b)| {
                    a.name == b.name && is_same(Some(Value::of(a)), Some(Value::of(b)))
                })
        }
        (_, _) => a == b,
    }
}

/// By name; those of one name stay in their order.
fn sorted(document: &RawDocument) -> Vec<Field<'_>> {
    let mut fields: Vec<_> = fields(document).collect();
    fields.sort_by_key(|field| field.name);
    fields
}

/// Which fields a wildcard index takes or leaves, as pairs of a path and whether it is taken. 5.0 writes `1`
/// as `true`, and adds the `_id` that is left out anyway.
pub fn projection(value: Option<Value<'_>>) -> Option<Vec<(Vec<u8>, bool)>> {
    fn walk(document: &RawDocument, before: &[u8], found: &mut Vec<(Vec<u8>, bool)>) {
        for field in fields(document) {
            let path = [before, field.name].concat();
            let value = Value::of(&field);
            if let Some(inner) = value.nested() {
                walk(inner, &[&*path, b"."].concat(), found);
            } else {
                let is_taken = value.number().map_or(!value.is_false(), |n| n != 0.0);
                found.push((path, is_taken));
            }
        }
    }
    let mut found = Vec::new();
    walk(value?.document()?, b"", &mut found);
    found.retain(|(path, is_taken)| *is_taken || path != b"_id");
    found.sort();
    Some(found)
}

/// True when `name` is a field's name anywhere in it.
pub fn uses(value: Value<'_>, name: &str) -> bool {
    value.nested().is_some_and(|inner| {
        fields(inner).any(|field| field.name == name.as_bytes() || uses(Value::of(&field), name))
    })
}

#[cfg(test)]
mod tests {
    use bson::rawdoc;

    use super::*;

    /// A document that names `a` twice.
    fn twice(first: i32, second: i32) -> RawDocumentBuf {
        let mut document = Builder::default();
        document.push(kind::INT32, "a", &first.to_le_bytes());
        document.push(kind::INT32, "a", &second.to_le_bytes());
        document.finish()
    }

    fn whole(document: &RawDocument) -> Value<'_> {
        Value { kind: kind::DOCUMENT, bytes: document.as_bytes() }
    }

    fn are_same(one: &RawDocument, other: &RawDocument) -> bool {
        is_same(Some(whole(one)), Some(whole(other)))
    }

    #[test]
    fn a_field_that_is_named_twice_counts_twice() {
        assert!(are_same(&twice(1, 2), &twice(1, 2)));
        assert!(!are_same(&twice(1, 2), &twice(2, 1)));
        assert!(!are_same(&twice(1, 2), &rawdoc! { "a": 2 }));
        assert_eq!(without(&twice(1, 2), &["b"]), twice(1, 2));
    }

    #[test]
    fn numbers_count_by_value_and_the_order_of_fields_does_not() {
        let (a, b) =
            (rawdoc! { "x": 1, "y": { "z": 2.0 } }, rawdoc! { "y": { "z": 2 }, "x": 1_i64 });

        assert!(are_same(&a, &b));
        assert!(!are_same(&a, &rawdoc! { "x": 1 }));
        assert!(!is_same(Some(whole(&a)), None));
    }

    #[test]
    fn text_that_is_no_utf8_is_looked_into() {
        let mut odd = Builder::default();
        odd.push_field(Field { kind: kind::STRING, name: b"\xff", value: b"\x02\0\0\0\xfe\0" });
        odd.push_bool("on", true);
        let odd = odd.finish();

        assert!(is_on(&odd, "on"));
        assert_eq!(names(&odd).collect::<Vec<_>>(), ["\u{FFFD}", "on"]);
        assert!(are_same(&odd, &odd));
    }
}
