//! What becomes of a write whose unique value another document holds. Pure.
//!
//! | the local database has | then |
//! | --- | --- |
//! | our document in another form | ours is outdated: it is read again |
//! | the holder with another value, or out of the index | the holder in Atlas is outdated: it gives way |
//! | the holder with this value | the values really collide: retried, then a dead letter |
//! | no holder, and its delete is under way | the delete is waited for |
//! | no holder, and no trace of one | somebody else's document: retried, then a dead letter |

use std::collections::HashMap;

use bson::{RawDocument, RawDocumentBuf};

use crate::{model::document_key::DocumentKey, sink::Holder};

/// A document of Atlas that stands in the way.
#[derive(Clone, Debug)]
pub(super) struct Rival {
    pub key: DocumentKey,
    pub holder: Holder,
}

/// What the local database and the queue know about a conflict.
#[derive(Debug, Default)]
pub(super) struct View {
    /// Both sides' documents as they are now, by canonical key.
    pub documents: HashMap<Vec<u8>, RawDocumentBuf>,
    /// Canonical keys of holders that have an entry in the queue.
    pub queued: Vec<Vec<u8>>,
}

/// See the table of this module.
#[derive(Debug, PartialEq)]
pub(super) enum Judgement {
    /// These holders give way. None: the place has become free.
    Evict(Vec<DocumentKey>),
    /// Ours is outdated.
    Outdated,
    /// The holder's delete is under way.
    Wait,
    /// The local database has the same value twice.
    Collision,
    /// Only Atlas has the holder.
    Foreign,
}

/// The holders among what was found, without our own document, each once.
pub(super) fn rivals(own: &DocumentKey, found: Vec<Holder>) -> Vec<Rival> {
    let mut rivals: Vec<Rival> = Vec::new();
    let own = own.canonical();
    for holder in found {
        let Ok(key) = DocumentKey::of(&holder.document) else {
            continue;
        };
        let name = key.canonical();
        if name != own && rivals.iter().all(|rival| rival.key.canonical() != name) {
            rivals.push(Rival { key, holder });
        }
    }
    rivals
}

/// Judges the write of `document`. `is_read_past` says that every event up to the view's time was in the
/// queue before it was looked at.
pub(super) fn judge(
    key: &DocumentKey,
    document: &RawDocument,
    rivals: &[Rival],
    view: &View,
    is_read_past: bool,
) -> Judgement {
    let now = |key: &DocumentKey| view.documents.get(&key.canonical());
    if now(key).is_none_or(|now| now.as_bytes() != document.as_bytes()) {
        return Judgement::Outdated;
    }
    let mut outdated = Vec::new();
    let (mut waits, mut collides, mut foreign) = (false, false, false);
    for Rival { key, holder } in rivals {
        match now(key) {
            Some(now) if now.as_bytes() == holder.document.as_bytes() => collides = true,
            Some(now) if holder.has_its_values(now) => collides = true,
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

    fn rival(id: i32) -> Rival {
        let document = rawdoc! { "_id": id, "u": "x" };
        Rival { key: key(id), holder: Holder { document, paths: Some(vec!["u".into()]) } }
    }

    fn view(documents: &[RawDocumentBuf]) -> View {
        let documents = documents
            .iter()
            .map(|document| (DocumentKey::of(document).unwrap().canonical(), document.clone()))
            .collect();
        View { documents, queued: Vec::new() }
    }

    /// Judges `{_id: 1, u: "x"}`.
    fn judged(rivals: &[Rival], view: &View, is_read_past: bool) -> Judgement {
        judge(&key(1), &rawdoc! { "_id": 1, "u": "x" }, rivals, view, is_read_past)
    }

    const OURS: fn() -> RawDocumentBuf = || rawdoc! { "_id": 1, "u": "x" };

    #[test]
    fn a_holder_that_has_another_value_by_now_gives_way() {
        let view = view(&[OURS(), rawdoc! { "_id": 2, "u": "y" }]);

        assert_eq!(judged(&[rival(2)], &view, true), Judgement::Evict(vec![key(2)]));
        assert_eq!(judged(&[], &view, true), Judgement::Evict(vec![]), "free by now");
    }

    #[test]
    fn a_holder_that_has_the_value_locally_too_stays_whatever_else_differs() {
        for now in [rawdoc! { "_id": 2, "u": "x" }, rawdoc! { "_id": 2, "u": "x", "n": 1 }] {
            assert_eq!(judged(&[rival(2)], &view(&[OURS(), now]), true), Judgement::Collision);
        }
        // From a partial index a document goes without another value.
        let left = view(&[OURS(), rawdoc! { "_id": 2, "u": "x", "gone": true }]);
        let mut of_partial = rival(2);
        of_partial.holder.paths = None;
        assert_eq!(judged(&[of_partial], &left, true), Judgement::Evict(vec![key(2)]));
    }

    #[test]
    fn our_own_document_is_read_again_when_it_has_changed_or_is_gone() {
        let changed = view(&[rawdoc! { "_id": 1, "u": "z" }]);

        assert_eq!(judged(&[rival(2)], &changed, true), Judgement::Outdated);
        assert_eq!(judged(&[rival(2)], &view(&[]), true), Judgement::Outdated);
    }

    #[test]
    fn a_delete_that_is_under_way_is_waited_for_and_a_foreign_document_is_not_touched() {
        assert_eq!(judged(&[rival(2)], &view(&[OURS()]), false), Judgement::Wait);
        let queued = View { queued: vec![key(2).canonical()], ..view(&[OURS()]) };
        assert_eq!(judged(&[rival(2)], &queued, true), Judgement::Wait);
        assert_eq!(judged(&[rival(2)], &view(&[OURS()]), true), Judgement::Foreign);
    }

    #[test]
    fn one_that_can_give_way_comes_before_one_too_many() {
        let view = view(&[OURS(), rawdoc! { "_id": 2, "u": "x" }, rawdoc! { "_id": 3, "u": "y" }]);

        let judgement = judged(&[rival(2), rival(3), rival(4)], &view, true);

        assert_eq!(judgement, Judgement::Evict(vec![key(3)]));
    }

    #[test]
    fn our_own_document_is_no_rival() {
        let holder = |document| Holder { document, paths: None };
        let found =
            vec![rawdoc! { "_id": 1_i64 }, rawdoc! { "_id": 2 }, rawdoc! { "_id": 2, "u": 1 }];

        let found = rivals(&key(1), found.into_iter().map(holder).collect());

        assert_eq!(found.into_iter().map(|rival| rival.key).collect::<Vec<_>>(), [key(2)]);
    }
}
