//! How documents are asked for by their keys.

use bson::{RawDocument, RawDocumentBuf, rawdoc};

use crate::model::{checkpoint::ClusterTime, document_key::DocumentKey, namespace::Namespace, raw};

/// The read concern `majority`, in a state not older than `after`.
pub fn majority_after(after: ClusterTime) -> RawDocumentBuf {
    let mut concern = rawdoc! { "level": "majority" };
    if after > ClusterTime::default() {
        concern.append(bson::raw::cstr!("afterClusterTime"), bson::Timestamp::from(after));
    }
    concern
}

/// The commands that together read the documents of all `keys`, each in one reply as far as that holds them, in a state not
/// older than `after`.
pub fn finds<'a>(
    ns: &Namespace,
    keys: impl IntoIterator<Item = &'a DocumentKey>,
    after: ClusterTime,
) -> impl Iterator<Item = RawDocumentBuf> {
    let (coll, concern) = (ns.coll().to_owned(), majority_after(after));
    filters_of(keys).into_iter().map(move |filter| {
        rawdoc! {
            "find": &*coll, "filter": filter, "batchSize": i32::MAX, "readConcern": concern.clone(),
        }
    })
}

/// The filters that together find the documents of all `keys`, each by a `find` of its own. It is one filter, but for the
/// sake of `_id`s that hold an array whose items have other names than their places: beside another key in one `$in`,
/// MongoDB 6.0.5 looks for such a one without end (seen), and by itself finds it.
fn filters_of<'a>(keys: impl IntoIterator<Item = &'a DocumentKey>) -> Vec<RawDocumentBuf> {
    let (odd, usual): (Vec<_>, Vec<_>) =
        keys.into_iter().partition(|key| has_odd_array(key.filter()));
    let together = (!usual.is_empty()).then(|| filter_of_any(usual));
    let alone = odd.into_iter().map(|key| filter_of_any([key]));
    together.into_iter().chain(alone).collect()
}

/// Built from undecoded bytes, so that an `_id` that is no UTF-8 is found as well.
fn filter_of_any<'a>(keys: impl IntoIterator<Item = &'a DocumentKey>) -> RawDocumentBuf {
    let mut ids = raw::Builder::default();
    for (n, key) in keys.into_iter().enumerate() {
        for element in raw::elements(key.filter()).flatten() {
            ids.push(element.kind, &n.to_string(), element.value);
        }
    }
    let mut any = raw::Builder::default();
    any.push(raw::kind::ARRAY, "$in", ids.finish().as_bytes());
    let mut filter = raw::Builder::default();
    filter.push(raw::kind::DOCUMENT, "_id", any.finish().as_bytes());
    filter.finish()
}

/// Whether there is such an array somewhere within. Drivers write none, but a server takes them as they come.
fn has_odd_array(within: &RawDocument) -> bool {
    raw::fields(within).flatten().any(|field| match field.kind {
        raw::kind::DOCUMENT => RawDocument::from_bytes(field.value).is_ok_and(has_odd_array),
        raw::kind::ARRAY => RawDocument::from_bytes(field.value).is_ok_and(|items| {
            let mut names = raw::fields(items).flatten().zip(0_usize..);
            names.any(|(item, place)| item.name != place.to_string().as_bytes())
                || has_odd_array(items)
        }),
        _ => false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `{_id: {a: [10, 10, …]}}`, with these names for the items.
    fn key(names: &[&str]) -> DocumentKey {
        let mut items = raw::Builder::default();
        for name in names {
            items.push(raw::kind::INT32, name, &10_i32.to_le_bytes());
        }
        let mut a = raw::Builder::default();
        a.push(raw::kind::ARRAY, "a", items.finish().as_bytes());
        let mut id = raw::Builder::default();
        id.push(raw::kind::DOCUMENT, "_id", a.finish().as_bytes());
        DocumentKey::of(&id.finish()).unwrap()
    }

    #[test]
    fn an_array_with_other_names_than_its_places_is_looked_for_by_itself() {
        let plain = DocumentKey::of(&rawdoc! { "_id": 1 }).unwrap();
        let keys = [key(&["0", "1"]), key(&["1", "x"]), plain, key(&["1", "0"])];

        let filters = filters_of(&keys);

        let ids = |filter: &RawDocumentBuf| {
            let any = filter.get_document("_id").unwrap().get_array("$in").unwrap();
            any.into_iter().count()
        };
        assert_eq!(filters.iter().map(ids).collect::<Vec<_>>(), [2, 1, 1]);
        assert!(filters_of([]).is_empty());
    }
}
