//! Which documents of a collection its servers throw away by themselves, and by when.
//!
//! A TTL index expires a document whose field is a date, or a list that holds dates, the earliest of which is old
//! enough; a clustered collection may expire by its `_id`. What has no date there stays, and so does what a
//! partial index leaves out. Each server looks once a minute, by its own clock, and may be told not to look at
//! all (`ttlMonitorEnabled`).

use bson::{RawDocument, RawDocumentBuf};

use super::{
    Description,
    value::{self, Value, fields, get},
};
use crate::model::raw::{Builder, Items, kind};

/// What expires the documents of one collection.
#[derive(Clone, Debug, PartialEq)]
pub struct Expiry {
    rules: Vec<Rule>,
}

/// One index, or the collection's own key.
#[derive(Clone, Debug, PartialEq)]
struct Rule {
    /// The path of the date; it need not be text.
    field: Vec<u8>,
    after: After,
    /// Which documents a partial index has.
    only: Option<RawDocumentBuf>,
}

/// How long after its date a document goes.
#[derive(Clone, Copy, Debug, PartialEq)]
enum After {
    Ms(i64),
    /// No number of seconds (NaN): at once to some versions, never to others.
    NoTime,
}

impl After {
    /// `expireAfterSeconds`, where there is one.
    fn of(described: &RawDocument) -> Option<Self> {
        let value = value::get(described, "expireAfterSeconds")?;
        let seconds = value.number().filter(|seconds| seconds.is_finite() && *seconds >= 0.0);
        // Whole ones, as the server takes them; `as` bounds what is beyond.
        let ms = seconds.map(|seconds| (seconds.trunc() as i64).saturating_mul(1000));
        Some(ms.map_or(Self::NoTime, Self::Ms))
    }

    fn at_least(self) -> i64 {
        match self {
            Self::Ms(ms) => ms,
            Self::NoTime => 0,
        }
    }

    fn certain(self) -> Option<i64> {
        match self {
            Self::Ms(ms) => Some(ms),
            Self::NoTime => None,
        }
    }
}

impl Expiry {
    /// `None` for a collection that keeps what it has.
    pub fn of(described: &Description) -> Option<Self> {
        let own = After::of(&described.options).map(|after| Rule {
            field: b"_id".to_vec(),
            after,
            only: None,
        });
        let rules: Vec<_> =
            described.indexes.iter().filter_map(|spec| Rule::of(spec)).chain(own).collect();
        (!rules.is_empty()).then_some(Self { rules })
    }

    /// A filter of the documents that no server throws away by itself before `until` (milliseconds since 1970).
    pub fn staying(&self, until: i64) -> RawDocumentBuf {
        let mut filter = Builder::default();
        filter.array("$nor", |any| {
            for rule in &self.rules {
                rule.push(any, until.saturating_sub(rule.after.at_least()));
            }
        });
        filter.finish()
    }

    /// A filter of the documents that every server should have thrown away before `since`; `None` where nothing
    /// is certain to go.
    pub fn gone(&self, since: i64) -> Option<RawDocumentBuf> {
        let certain: Vec<_> =
            self.rules.iter().filter_map(|rule| Some((rule, rule.after.certain()?))).collect();
        if certain.is_empty() {
            return None;
        }
        let mut filter = Builder::default();
        filter.array("$or", |any| {
            for (rule, after) in certain {
                rule.push(any, since.saturating_sub(after));
            }
        });
        Some(filter.finish())
    }
}

impl Rule {
    fn of(spec: &RawDocument) -> Option<Self> {
        let after = After::of(spec)?;
        let key = get(spec, "key").and_then(Value::document)?;
        // A server expires by an index of one field alone.
        let mut key = fields(key);
        let (Some(field), None) = (key.next(), key.next()) else { return None };
        // A filter is read by its index's collation, and a query has but one: without the filter more documents count
        // as those that may go.
        let is_simple = get(spec, "collation").is_none();
        let only = get(spec, "partialFilterExpression").and_then(Value::document);
        let only = only.filter(|_| is_simple).map(RawDocument::to_owned);
        Some(Self { field: field.name.to_vec(), after, only })
    }

    /// Those whose earliest date is not after `last`.
    fn push(&self, any: &mut Items<'_>, last: i64) {
        let mut range = Builder::default();
        range.push(kind::DATE_TIME, "$lte", &last.to_le_bytes());
        let range = range.finish();
        let field = crate::model::raw::Field {
            kind: kind::DOCUMENT,
            name: &self.field,
            value: range.as_bytes(),
        };
        any.document(|both| {
            both.array("$and", |both| {
                both.document(|dated| dated.push_field(field));
                if let Some(only) = &self.only {
                    both.document(|filter| filter.extend(only));
                }
            });
        });
    }
}

#[cfg(test)]
mod tests {
    use bson::{Bson, Document, doc, rawdoc};

    use super::*;
    use crate::schema::{Claim, Kind};

    fn described(options: RawDocumentBuf, indexes: Vec<RawDocumentBuf>) -> Description {
        let (kind, claim) = (Kind::Collection, Claim::Whole);
        Description { kind, claim, id: None, options, indexes }
    }

    fn ttl(seconds: impl Into<Bson>) -> RawDocumentBuf {
        let spec = doc! { "key": { "at": 1 }, "name": "ttl", "expireAfterSeconds": seconds.into() };
        RawDocumentBuf::try_from(&spec).unwrap()
    }

    fn read(filter: &RawDocument) -> Document {
        Document::try_from(filter).unwrap()
    }

    fn date(ms: i64) -> bson::DateTime {
        bson::DateTime::from_millis(ms)
    }

    #[test]
    fn what_has_no_expiry_keeps_what_it_has() {
        let plain = rawdoc! { "key": { "at": 1 }, "name": "at_1" };
        assert_eq!(Expiry::of(&described(rawdoc! {}, vec![plain])), None);
    }

    #[test]
    fn what_stays_is_past_no_index_and_what_is_gone_past_any() {
        let other = rawdoc! {
            "key": { "b.c": -1 }, "expireAfterSeconds": 0,
            "partialFilterExpression": { "s": "x" },
        };
        let expiry = Expiry::of(&described(rawdoc! {}, vec![ttl(60), other])).unwrap();

        let rules = |a: i64, b: i64| {
            vec![
                doc! { "$and": [{ "at": { "$lte": date(a) } }] },
                doc! { "$and": [{ "b.c": { "$lte": date(b) } }, { "s": "x" }] },
            ]
        };
        assert_eq!(read(&expiry.staying(100_000)), doc! { "$nor": rules(40_000, 100_000) });
        assert_eq!(read(&expiry.gone(90_000).unwrap()), doc! { "$or": rules(30_000, 90_000) });
    }

    #[test]
    fn a_clustered_collection_expires_by_its_key() {
        let options =
            rawdoc! { "clusteredIndex": { "key": { "_id": 1 } }, "expireAfterSeconds": 1_i64 };
        let expiry = Expiry::of(&described(options, vec![])).unwrap();

        let of = |ms| doc! { "$nor": [{ "$and": [{ "_id": { "$lte": date(ms) } }] }] };
        assert_eq!(read(&expiry.staying(5_000)), of(4_000));
    }

    #[test]
    fn what_is_no_number_of_seconds_may_go_at_once_and_is_certain_never_to_be_gone() {
        for seconds in [Bson::Double(f64::NAN), Bson::Int32(-1)] {
            let expiry = Expiry::of(&described(rawdoc! {}, vec![ttl(seconds)])).unwrap();
            let of = doc! { "$nor": [{ "$and": [{ "at": { "$lte": date(5_000) } }] }] };
            assert_eq!(read(&expiry.staying(5_000)), of);
            assert_eq!(expiry.gone(5_000), None);
        }
        let never = Expiry::of(&described(rawdoc! {}, vec![ttl(f64::MAX)])).unwrap();
        let of = |last| doc! { "$nor": [{ "$and": [{ "at": { "$lte": date(last) } }] }] };
        assert_eq!(read(&never.staying(5_000)), of(5_000 - i64::MAX));
    }

    #[test]
    fn a_partial_index_with_a_collation_may_expire_whatever_has_the_date() {
        let spec = rawdoc! {
            "key": { "at": 1 }, "expireAfterSeconds": 1, "collation": { "locale": "en" },
            "partialFilterExpression": { "s": "x" },
        };
        let expiry = Expiry::of(&described(rawdoc! {}, vec![spec])).unwrap();
        let of = doc! { "$nor": [{ "$and": [{ "at": { "$lte": date(4_000) } }] }] };
        assert_eq!(read(&expiry.staying(5_000)), of);
    }

    #[test]
    fn an_index_of_several_fields_expires_nothing() {
        let spec = rawdoc! { "key": { "at": 1, "b": 1 }, "expireAfterSeconds": 1 };
        assert_eq!(Expiry::of(&described(rawdoc! {}, vec![spec])), None);
    }
}
