//! In-doubt writes: those without an answer, which may still come true. Pure: `now` is passed in.
//!
//! A write that was sent on a line that stalled stays in the kernel's buffers after its connection was
//! given up, and is sent again for some minutes more. When the line comes back it may reach Atlas after
//! a later write of the same document, and put the older state back. Nothing in the stream would correct
//! that. So the documents of such a write are refreshed twice: a little after Atlas has answered again,
//! which is when an in-doubt write comes if the line was at fault, and once more when none can come any more.
//! An in-doubt schema change may take whole collections with it, so after one its collections are compared, or its database.
//!
//! A rename in Atlas takes what came late along, so what is remembered of the old name is of both from then on.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use crate::model::{document_key::DocumentKey, namespace::Namespace};

/// How long after Atlas's next answer the first refresh comes.
const AFTER_ANSWER: Duration = Duration::from_secs(10);

/// How long a given-up connection can still deliver: Linux retransmits for an orphaned socket eight times
/// (`tcp_orphan_retries`), which is under four minutes at the round trips of the internet.
const AT_LAST: Duration = Duration::from_secs(300);

/// What may hold an older state by now, and is to be written or compared again.
#[derive(Debug, Default, PartialEq)]
pub struct Overdue {
    /// Documents that are to be refreshed.
    pub documents: Vec<(Namespace, Vec<DocumentKey>)>,
    /// Collections that are to be compared, or [whole databases](Namespace::all_of).
    pub namespaces: BTreeSet<Namespace>,
}

/// Documents that are remembered.
const KEYS_MAX: usize = 100_000;

/// The writes without an answer.
#[derive(Debug, Default)]
pub struct InDoubtWrites {
    waiting: Vec<InDoubt>,
}

#[derive(Clone, Debug)]
struct InDoubt {
    what: What,
    sent: Instant,
    early: Early,
}

/// What may be done late.
#[derive(Clone, Debug, PartialEq)]
enum What {
    Documents(Namespace, Vec<DocumentKey>),
    /// A schema change of these.
    Schema(BTreeSet<Namespace>),
}

/// The first of the two refreshes.
#[derive(Clone, Debug, PartialEq)]
enum Early {
    /// Atlas has not answered yet.
    Open,
    At(Instant),
    Done,
}

impl InDoubtWrites {
    /// A write of these documents was given up without an answer.
    pub fn given_up(&mut self, ns: &Namespace, keys: Vec<DocumentKey>, now: Instant) {
        if !keys.is_empty() {
            self.add(What::Documents(ns.clone(), keys), now);
        }
    }

    /// A schema change of these was given up without an answer: collections, or [whole databases](Namespace::all_of).
    pub fn schema_given_up(&mut self, namespaces: BTreeSet<Namespace>, now: Instant) {
        if !namespaces.is_empty() {
            self.add(What::Schema(namespaces), now);
        }
    }

    /// What was in doubt before, and was tried again, is so from now on: as long as nothing was answered, it makes no
    /// difference which of the attempts comes late. Whose first refresh is near keeps it.
    fn add(&mut self, what: What, now: Instant) {
        self.waiting.retain(|known| known.what != what || matches!(known.early, Early::At(_)));
        self.waiting.push(InDoubt { what, sent: now, early: Early::Open });
    }

    /// A collection has another name in Atlas.
    pub fn renamed(&mut self, from: &Namespace, to: &Namespace) {
        let mut more = Vec::new();
        for in_doubt in &mut self.waiting {
            match &mut in_doubt.what {
                What::Schema(namespaces) => {
                    if namespaces.iter().any(|ns| ns.covers(from)) {
                        namespaces.insert(to.clone());
                    }
                }
                What::Documents(ns, keys) if ns == from => {
                    let what = What::Documents(to.clone(), keys.clone());
                    more.push(InDoubt { what, ..in_doubt.clone() });
                }
                What::Documents(..) => {}
            }
        }
        // Without this, names that are swapped over and over would add a copy with every rename, and the list would grow
        // for as long as they are.
        more.retain(|in_doubt| {
            let is_known =
                |known: &InDoubt| known.sent == in_doubt.sent && known.what == in_doubt.what;
            !self.waiting.iter().any(is_known)
        });
        self.waiting.extend(more);
    }

    /// Atlas has answered a write.
    pub fn answered(&mut self, now: Instant) {
        for in_doubt in &mut self.waiting {
            if in_doubt.early == Early::Open {
                in_doubt.early = Early::At(now + AFTER_ANSWER);
            }
        }
    }

    /// What is to be written or compared again now.
    pub fn due(&mut self, now: Instant) -> Overdue {
        let mut due = Overdue { namespaces: self.overflow(), ..Overdue::default() };
        self.waiting.retain_mut(|in_doubt| {
            let is_last = now >= in_doubt.sent + AT_LAST;
            if is_last || matches!(in_doubt.early, Early::At(at) if now >= at) {
                in_doubt.early = Early::Done;
                match &in_doubt.what {
                    What::Documents(ns, keys) => due.documents.push((ns.clone(), keys.clone())),
                    What::Schema(namespaces) => due.namespaces.extend(namespaces.iter().cloned()),
                }
            }
            !is_last
        });
        due
    }

    /// The collections of all documents, once, when there are too many to remember: they are forgotten in favour of a
    /// comparison.
    fn overflow(&mut self) -> BTreeSet<Namespace> {
        let mut keys_len = 0;
        let mut namespaces = BTreeSet::new();
        for in_doubt in &self.waiting {
            if let What::Documents(ns, keys) = &in_doubt.what {
                keys_len += keys.len();
                namespaces.insert(ns.clone());
            }
        }
        if keys_len <= KEYS_MAX {
            return BTreeSet::new();
        }
        self.waiting.retain(|in_doubt| matches!(in_doubt.what, What::Schema(_)));
        namespaces
    }
}

#[cfg(test)]
mod tests {
    use bson::rawdoc;

    use super::*;

    fn noted(in_doubt: &mut InDoubtWrites, keys: i32, now: Instant) {
        let keys = (0..keys).map(|id| DocumentKey::of(&rawdoc! { "_id": id }).unwrap()).collect();
        in_doubt.given_up(&Namespace::new("shop", "orders"), keys, now);
    }

    #[test]
    fn documents_are_refreshed_after_the_next_answer_and_at_last() {
        let (mut in_doubt, start) = (InDoubtWrites::default(), Instant::now());
        noted(&mut in_doubt, 1, start);

        let mut documents = |now| due_documents(&mut in_doubt, now);
        assert_eq!(documents(start + AFTER_ANSWER * 2), 0, "no answer yet");
        in_doubt.answered(start + AFTER_ANSWER * 2);
        in_doubt.answered(start + AFTER_ANSWER * 3);
        let mut documents = |now| due_documents(&mut in_doubt, now);
        assert_eq!(documents(start + AFTER_ANSWER * 3), 1);
        assert_eq!(documents(start + AFTER_ANSWER * 4), 0, "once");
        assert_eq!(documents(start + AT_LAST), 1);
        assert_eq!(documents(start + AT_LAST * 2), 0);
    }

    fn due_documents(in_doubt: &mut InDoubtWrites, now: Instant) -> usize {
        in_doubt.due(now).documents.len()
    }

    fn names<const N: usize>(names: [&str; N]) -> BTreeSet<Namespace> {
        names.iter().map(|name| name.parse().unwrap()).collect()
    }

    #[test]
    fn a_schema_change_without_an_answer_has_its_collections_compared_and_no_other() {
        let (mut in_doubt, start) = (InDoubtWrites::default(), Instant::now());
        in_doubt.schema_given_up(names(["shop.orders", "shop.old"]), start);
        in_doubt.answered(start);

        let both = names(["shop.orders", "shop.old"]);
        assert_eq!(in_doubt.due(start), Overdue::default());
        assert_eq!(in_doubt.due(start + AFTER_ANSWER).namespaces, both);
        assert_eq!(in_doubt.due(start + AFTER_ANSWER * 2), Overdue::default());
        assert_eq!(in_doubt.due(start + AT_LAST).namespaces, both);
    }

    #[test]
    fn what_is_remembered_of_a_name_is_of_the_next_name_as_well() {
        let (mut in_doubt, start) = (InDoubtWrites::default(), Instant::now());
        noted(&mut in_doubt, 2, start);
        in_doubt.schema_given_up(names(["shop.orders"]), start);
        in_doubt.schema_given_up(names(["crm.*"]), start);

        in_doubt.renamed(&"shop.orders".parse().unwrap(), &"shop.next".parse().unwrap());
        in_doubt.renamed(&"shop.next".parse().unwrap(), &"shop.last".parse().unwrap());
        in_doubt.renamed(&"crm.people".parse().unwrap(), &"shop.people".parse().unwrap());

        let due = in_doubt.due(start + AT_LAST);
        let expected = names(["shop.orders", "shop.next", "shop.last", "shop.people", "crm.*"]);
        assert_eq!(due.namespaces, expected);
        let documents: BTreeSet<_> = due.documents.iter().map(|(ns, _)| ns.clone()).collect();
        assert_eq!(documents, names(["shop.orders", "shop.next", "shop.last"]));
        assert!(due.documents.iter().all(|(_, keys)| keys.len() == 2));
    }

    #[test]
    fn names_that_are_swapped_again_and_again_are_remembered_once_each() {
        let (mut in_doubt, start) = (InDoubtWrites::default(), Instant::now());
        noted(&mut in_doubt, 2, start);
        let names = ["shop.orders", "shop.left", "shop.right"].map(|name| name.parse().unwrap());

        for n in 0..60 {
            in_doubt.renamed(&names[n % 3], &names[(n + 1) % 3]);
        }

        assert_eq!(in_doubt.due(start + AT_LAST).documents.len(), 3);
    }

    /// A router that reaches no server answers at once, and each attempt would be remembered by itself.
    #[test]
    fn what_is_tried_again_and_again_is_remembered_once_for_as_long_as_its_last_attempt_may_come() {
        let (mut in_doubt, start) = (InDoubtWrites::default(), Instant::now());
        let keys = KEYS_MAX as i32 / 2;
        for second in 0..100 {
            noted(&mut in_doubt, keys, start + Duration::from_secs(second));
            in_doubt.schema_given_up(names(["shop.old"]), start + Duration::from_secs(second));
        }
        let last = start + Duration::from_secs(99);
        in_doubt.answered(last);

        let early = in_doubt.due(last + AFTER_ANSWER);
        assert_eq!((early.documents.len(), early.namespaces), (1, names(["shop.old"])));
        assert_eq!(in_doubt.due(start + AT_LAST), Overdue::default(), "the last may still come");
        let at_last = in_doubt.due(last + AT_LAST);
        assert_eq!((at_last.documents.len(), at_last.namespaces), (1, names(["shop.old"])));
    }

    #[test]
    fn what_is_in_doubt_anew_is_refreshed_all_the_same_for_what_was_so_before() {
        let (mut in_doubt, start) = (InDoubtWrites::default(), Instant::now());
        let second = |n| start + Duration::from_secs(n);
        for n in 0..60 {
            // Each attempt in vain is followed by one that is answered.
            noted(&mut in_doubt, 1, second(10 * n));
            in_doubt.answered(second(10 * n + 1));
            let due = due_documents(&mut in_doubt, second(10 * n + 9));
            assert_eq!(due, usize::from(n > 0), "{n}: of the attempt before");
            assert!(in_doubt.waiting.len() <= 2, "{n}");
        }
    }

    #[test]
    fn too_many_are_forgotten_in_favour_of_a_comparison_of_their_collections() {
        let (mut in_doubt, start) = (InDoubtWrites::default(), Instant::now());
        noted(&mut in_doubt, 10, start);
        assert_eq!(in_doubt.due(start), Overdue::default());

        for more in 0..=KEYS_MAX as i32 / 1_000 {
            noted(&mut in_doubt, 1_000 + more, start);
        }

        assert_eq!(in_doubt.due(start).namespaces, names(["shop.orders"]));
        assert_eq!(in_doubt.due(start + AT_LAST), Overdue::default());
    }
}
