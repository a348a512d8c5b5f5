//! Two ops on one document become one: the latest state, in one write.
//!
//! | pending ╲ arriving | Insert / Replace(d) | Update(δ) | Delete | Refresh |
//! | --- | --- | --- | --- | --- |
//! | Insert / Replace(p) | the latest document wins | p with δ applied | Delete | Refresh |
//! | Update(p) | the latest document wins | p merged with δ | Delete | Refresh |
//! | Delete | **Replace(d)**: born again | Delete (a stale update) | Delete | Refresh |
//! | Refresh | Refresh | Refresh | Refresh | Refresh |
//!
//! A source that tells of fields says Merge(m), and never Update: on a document it sets the fields of m, on another
//! Merge it adds to them, and behind a Delete it is all that there is, Replace(m). The two together are a Refresh.
//!
//! Whenever a merge is not *provably* exact, or of two differences makes a large one, the result is
//! [`WriteOp::Refresh`]: the document is then read from the local database when its turn comes, which is always
//! right and costs one read.
//!
//! Not here: when two ops may be merged at all. Nothing merges with an op that is leased, nor across
//! a schema barrier; the [queue](crate::queue) sees to both.

use std::collections::HashMap;

use bson::{RawDocument, RawDocumentBuf};

use crate::model::{raw, write_op::WriteOp};

/// Merges what is `pending` for a document with the op that is `arriving` after it.
pub fn coalesce(pending: WriteOp, arriving: WriteOp) -> WriteOp {
    use WriteOp::{Delete, Insert, Merge, Refresh, Replace, Update};
    match (pending, arriving) {
        (Refresh, Insert(_) | Replace(_) | Update(_) | Merge(_) | Delete | Refresh) => Refresh,
        (Insert(_) | Replace(_) | Update(_) | Merge(_) | Delete, Refresh) => Refresh,

        // Atlas does not have the document yet, so it stays an insert: a quarter of an upsert's cost.
        (Insert(_), Insert(doc) | Replace(doc)) => Insert(doc),
        (Replace(_) | Update(_) | Merge(_), Insert(doc) | Replace(doc)) => Replace(doc),

        (Insert(doc), Update(delta)) => delta.apply(&doc).map_or(Refresh, Insert),
        (Replace(doc), Update(delta)) => delta.apply(&doc).map_or(Refresh, Replace),
        (Update(first), Update(then)) => first.then(&then).map_or(Refresh, Update),

        (Insert(doc), Merge(fields)) => overlaid(&doc, &fields).map_or(Refresh, Insert),
        (Replace(doc), Merge(fields)) => overlaid(&doc, &fields).map_or(Refresh, Replace),
        (Merge(first), Merge(then)) => overlaid(&first, &then).map_or(Refresh, Merge),
        (Update(_), Merge(_)) | (Merge(_), Update(_)) => Refresh,
        // Nothing of its first life is left in it.
        (Delete, Merge(fields)) => Replace(fields),

        (Insert(_) | Replace(_) | Update(_) | Merge(_) | Delete, Delete) => Delete,

        // Born again. A rule "after a delete, ignore what follows" loses the document. It may still
        // be in Atlas from its first life, so this is a replace and not an insert.
        (Delete, Insert(doc) | Replace(doc)) => Replace(doc),
        (Delete, Update(_)) => Delete,
    }
}

/// A document with these fields set: those that it has in their places, the others behind them. `None` for bytes that are
/// no document.
fn overlaid(document: &RawDocument, fields: &RawDocument) -> Option<RawDocumentBuf> {
    let fields = raw::elements(fields).collect::<Result<Vec<_>, _>>().ok()?;
    let by_name: HashMap<&str, usize> =
        fields.iter().enumerate().map(|(at, field)| (field.name, at)).collect();
    let mut met = vec![false; fields.len()];
    let mut merged = raw::Builder::with_capacity(document.as_bytes().len() + 64);
    for element in raw::elements(document) {
        let element = element.ok()?;
        let at = by_name.get(element.name).copied().filter(|_| element.name != "_id");
        let of = at.map_or(&element, |at| &fields[at]);
        if let Some(at) = by_name.get(element.name) {
            met[*at] = true;
        }
        merged.push(of.kind, of.name, of.value);
    }
    for (field, met) in fields.iter().zip(met) {
        if !met {
            merged.push(field.kind, field.name, field.value);
        }
    }
    Some(merged.finish())
}

#[cfg(test)]
mod tests {
    use bson::{RawDocumentBuf, rawdoc};

    use super::*;
    use crate::model::delta::Delta;

    fn doc(v: i32) -> RawDocumentBuf {
        rawdoc! { "_id": 1, "v": v }
    }

    fn set_v(v: i32) -> WriteOp {
        WriteOp::Update(Delta::from_diff(&rawdoc! { "u": { "v": v } }).unwrap())
    }

    #[test]
    fn the_latest_document_wins() {
        use WriteOp::{Insert, Replace};

        assert_eq!(coalesce(Insert(doc(1)), Replace(doc(2))), Insert(doc(2)));
        assert_eq!(coalesce(Insert(doc(1)), Insert(doc(2))), Insert(doc(2)));
        assert_eq!(coalesce(Replace(doc(1)), Insert(doc(2))), Replace(doc(2)));
        assert_eq!(coalesce(set_v(1), Replace(doc(2))), Replace(doc(2)));
    }

    #[test]
    fn an_update_is_applied_to_the_document_that_waits() {
        assert_eq!(coalesce(WriteOp::Insert(doc(1)), set_v(2)), WriteOp::Insert(doc(2)));
        assert_eq!(coalesce(WriteOp::Replace(doc(1)), set_v(2)), WriteOp::Replace(doc(2)));
    }

    #[test]
    fn two_updates_become_one() {
        assert_eq!(coalesce(set_v(1), set_v(2)), set_v(2));
    }

    #[test]
    fn an_update_that_does_not_fit_the_document_becomes_a_refresh() {
        let pending = WriteOp::Insert(rawdoc! { "_id": 1, "other": 1 });

        assert_eq!(coalesce(pending, set_v(2)), WriteOp::Refresh);
    }

    /// Sessions, presence: each update is small, and none of what it names is left in the document.
    #[test]
    fn fields_that_come_and_go_under_ever_new_names_do_not_make_an_update_grow_without_end() {
        let mut pending = set_v(0);
        let mut largest = 0;
        for n in 0..2_000 {
            let name = format!("session-{n}");
            let mut field = RawDocumentBuf::new();
            field.append(<&bson::raw::CStr>::try_from(&*name).unwrap(), false);
            for diff in [rawdoc! { "i": field.clone() }, rawdoc! { "d": field.clone() }] {
                pending = coalesce(pending, WriteOp::Update(Delta::from_diff(&diff).unwrap()));
                largest = largest.max(pending.body().map_or(0, |body| body.as_bytes().len()));
            }
        }

        assert_eq!(pending, WriteOp::Refresh);
        assert!((1_000..32_000).contains(&largest), "{largest} bytes");
    }

    #[test]
    fn a_deleted_document_that_is_inserted_again_comes_back() {
        let deleted = coalesce(WriteOp::Insert(doc(1)), WriteOp::Delete);

        assert_eq!(coalesce(deleted, WriteOp::Insert(doc(2))), WriteOp::Replace(doc(2)));
    }

    #[test]
    fn a_stale_update_does_not_revive_a_deleted_document() {
        assert_eq!(coalesce(WriteOp::Delete, set_v(2)), WriteOp::Delete);
    }

    #[test]
    fn fields_are_set_on_what_waits_and_are_all_there_is_behind_a_delete() {
        use WriteOp::{Delete, Insert, Merge, Replace};
        let fields = || Merge(rawdoc! { "_id": 1, "w": 3, "v": 2 });
        let both = rawdoc! { "_id": 1, "v": 2, "w": 3 };

        assert_eq!(coalesce(Insert(doc(1)), fields()), Insert(both.clone()));
        assert_eq!(coalesce(Replace(doc(1)), fields()), Replace(both.clone()));
        assert_eq!(coalesce(Merge(doc(1)), fields()), Merge(both));
        let alone = rawdoc! { "_id": 1, "w": 3, "v": 2 };
        assert_eq!(coalesce(Delete, fields()), Replace(alone));
        assert_eq!(coalesce(fields(), Delete), Delete);
        assert_eq!(coalesce(fields(), Insert(doc(1))), Replace(doc(1)));
        assert_eq!(coalesce(fields(), set_v(1)), WriteOp::Refresh);
    }

    #[test]
    fn a_refresh_absorbs_everything() {
        for op in [WriteOp::Insert(doc(1)), WriteOp::Replace(doc(1)), set_v(1), WriteOp::Delete] {
            assert_eq!(coalesce(WriteOp::Refresh, op.clone()), WriteOp::Refresh);
            assert_eq!(coalesce(op, WriteOp::Refresh), WriteOp::Refresh);
        }
    }
}
