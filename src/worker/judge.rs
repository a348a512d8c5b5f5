//! What becomes of a write whose unique value another document holds. Pure.
//!
//! | the local database has | then |
//! | --- | --- |
//! | our document in another form | ours is outdated: it is read again |
//! | the owner with another value, or out of the index | the owner in Atlas is outdated: it gives way |
//! | the owner with this value | the values really collide: retried, then a dead letter |
//! | no owner, and its delete is under way | the delete is waited for |
//! | no owner, and no trace of one | somebody else's document: retried, then a dead letter |

use std::collections::HashMap;

use bson::{RawDocument, RawDocumentBuf};

use crate::{model::document_key::DocumentKey, sink::CurrentOwner};

/// A document of Atlas that stands in the way.
#[derive(Clone, Debug)]
pub(super) struct OtherOwner {
    pub key: DocumentKey,
    pub owner: CurrentOwner,
}

/// What the local database and the queue know about a conflict.
#[derive(Debug, Default)]
pub(super) struct ConflictView {
    /// Both sides' documents as they are now, by canonical key.
    pub documents: HashMap<Vec<u8>, RawDocumentBuf>,
    /// Canonical keys of owners that have an entry in the queue.
    pub queued: Vec<Vec<u8>>,
}

/// See the table of this module.
#[derive(Debug, PartialEq)]
pub(super) enum Judgement {
    /// These owners give way. None: the place has become free.
    Evict(Vec<DocumentKey>),
    /// Ours is outdated.
    Outdated,
    /// The owner's delete is under way.
    Wait,
    /// The local database has the same value twice.
    Collision,
    /// Only Atlas has the owner.
    Foreign,
}

/// The owners among what was found, without our own document, each once.
pub(super) fn other_owners(own: &DocumentKey, found: Vec<CurrentOwner>) -> Vec<OtherOwner> {
    let mut other_owners: Vec<OtherOwner> = Vec::new();
    let own = own.canonical();
    for owner in found {
        let Ok(key) = DocumentKey::of(&owner.document) else {
            continue;
        };
        let name = key.canonical();
        if name != own && other_owners.iter().all(|other| other.key.canonical() != name) {
            other_owners.push(OtherOwner { key, owner });
        }
    }
    other_owners
}

/// Judges the write of `document`. `is_read_past` says that every event up to the view's time was in the
/// queue before it was looked at.
pub(super) fn judge(
    key: &DocumentKey,
    document: &RawDocument,
    other_owners: &[OtherOwner],
    view: &ConflictView,
    is_read_past: bool,
) -> Judgement {
    let now = |key: &DocumentKey| view.documents.get(&key.canonical());
    if now(key).is_none_or(|now| now.as_bytes() != document.as_bytes()) {
        return Judgement::Outdated;
    }
    let mut outdated = Vec::new();
    let (mut waits, mut collides, mut foreign) = (false, false, false);
    for OtherOwner { key, owner } in other_owners {
        match now(key) {
            Some(now) if now.as_bytes() == owner.document.as_bytes() => collides = true,
            Some(now) if owner.has_its_values(now) => collides = true,
            Some(_) => outdated.push(key.clone()),
            None if !is_read_past || view.queued.contains(&key.canonical()) => waits = true,
            None => foreign = true,
        }
    }
    // What was found may be a document too many, so one that can give way comes first.
    match (outdated.is_empty(), waits, foreign, collides) {
        (true, true, _, _) => Judgement::Wait,
        (true, false, true, _) => Judgement::Foreign,
        (true, false, false, true) => Judgement::Collision,
        _ => Judgement::Evict(outdated),
    }
}

#[cfg(test)]
mod tests {
    use bson::rawdoc;

    use super::*;

    fn key(id: i32) -> DocumentKey {
        DocumentKey::of(&rawdoc! { "_id": id }).unwrap()
    }

    fn other(id: i32) -> OtherOwner {
        let document = rawdoc! { "_id": id, "u": "x" };
        OtherOwner { key: key(id), owner: CurrentOwner { document, paths: Some(vec!["u".into()]) } }
    }

    fn view(documents: &[RawDocumentBuf]) -> ConflictView {
        let documents = documents
            .iter()
            .map(|document| (DocumentKey::of(document).unwrap().canonical(), document.clone()))
            .collect();
        ConflictView { documents, queued: Vec::new() }
    }

    /// Judges `{_id: 1, u: "x"}`.
    fn judged(other_owners: &[OtherOwner], view: &ConflictView, is_read_past: bool) -> Judgement {
        judge(&key(1), &rawdoc! { "_id": 1, "u": "x" }, other_owners, view, is_read_past)
    }

    const OURS: fn() -> RawDocumentBuf = || rawdoc! { "_id": 1, "u": "x" };

    #[test]
    fn an_owner_that_has_another_value_by_now_gives_way() {
        let view = view(&[OURS(), rawdoc! { "_id": 2, "u": "y" }]);

        assert_eq!(judged(&[other(2)], &view, true), Judgement::Evict(vec![key(2)]));
        assert_eq!(judged(&[], &view, true), Judgement::Evict(vec![]), "free by now");
    }

    #[test]
    fn an_owner_that_has_the_value_locally_too_stays_whatever_else_differs() {
        for now in [rawdoc! { "_id": 2, "u": "x" }, rawdoc! { "_id": 2, "u": "x", "n": 1 }] {
            assert_eq!(judged(&[other(2)], &view(&[OURS(), now]), true), Judgement::Collision);
        }
        // From a partial index a document goes without another value.
        let left = view(&[OURS(), rawdoc! { "_id": 2, "u": "x", "gone": true }]);
        let mut of_partial = other(2);
        of_partial.owner.paths = None;
        assert_eq!(judged(&[of_partial], &left, true), Judgement::Evict(vec![key(2)]));
    }

    #[test]
    fn an_owner_that_is_the_same_locally_stays_though_it_is_not_known_which_values_its_index_has() {
        let mut of_partial = other(2);
        of_partial.owner.paths = None;
        let view = view(&[OURS(), of_partial.owner.document.clone()]);

        assert_eq!(judged(&[of_partial], &view, true), Judgement::Collision);
    }

    #[test]
    fn our_own_document_is_read_again_when_it_has_changed_or_is_gone() {
        let changed = view(&[rawdoc! { "_id": 1, "u": "z" }]);

        assert_eq!(judged(&[other(2)], &changed, true), Judgement::Outdated);
        assert_eq!(judged(&[other(2)], &view(&[]), true), Judgement::Outdated);
    }

    #[test]
    fn a_delete_that_is_under_way_is_waited_for_and_a_foreign_document_is_not_touched() {
        assert_eq!(judged(&[other(2)], &view(&[OURS()]), false), Judgement::Wait);
        let queued = ConflictView { queued: vec![key(2).canonical()], ..view(&[OURS()]) };
        assert_eq!(judged(&[other(2)], &queued, true), Judgement::Wait);
        assert_eq!(judged(&[other(2)], &view(&[OURS()]), true), Judgement::Foreign);
    }

    #[test]
    fn one_that_can_give_way_comes_before_one_too_many() {
        let view = view(&[OURS(), rawdoc! { "_id": 2, "u": "x" }, rawdoc! { "_id": 3, "u": "y" }]);

        let judgement = judged(&[other(2), other(3), other(4)], &view, true);

        assert_eq!(judgement, Judgement::Evict(vec![key(3)]));
    }

    #[test]
    fn our_own_document_is_no_other_owner() {
        let owner = |document| CurrentOwner { document, paths: None };
        let found =
            vec![rawdoc! { "_id": 1_i64 }, rawdoc! { "_id": 2 }, rawdoc! { "_id": 2, "u": 1 }];

        let found = other_owners(&key(1), found.into_iter().map(owner).collect());

        assert_eq!(found.into_iter().map(|other| other.key).collect::<Vec<_>>(), [key(2)]);
    }
}
