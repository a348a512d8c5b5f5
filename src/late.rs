//! Writes without an answer, which may still come true. Pure: `now` is passed in.
//!
//! A write that was sent on a line that stalled stays in the kernel's buffers after its connection was
//! given up, and is sent again for some minutes more. When the line comes back it may reach Atlas after
//! a later write of the same document, and put the older state back. Nothing in the stream would correct
//! that. So the documents of such a write are refreshed twice: a little after Atlas has answered again,
//! which is when a late write comes if the line was at fault, and once more when none can come any more.
//! A late schema change may take a whole collection with it, so after one everything is compared.

use std::time::{Duration, Instant};

use crate::{document_key::DocumentKey, namespace::Namespace};

/// How long after Atlas's next answer the first refresh comes.
const AFTER_ANSWER: Duration = Duration::from_secs(10);

/// How long a given-up connection can still deliver: Linux retransmits for an orphaned socket eight times
/// (`tcp_orphan_retries`), which is under four minutes at the round trips of the internet.
const AT_LAST: Duration = Duration::from_secs(300);

/// What is to be made good.
#[derive(Debug, Default, PartialEq)]
pub struct Due {
    /// Documents that are to be refreshed.
    pub documents: Vec<(Namespace, Vec<DocumentKey>)>,
    /// Everything is to be compared.
    pub everything: bool,
}

/// Documents that are remembered.
const KEYS_MAX: usize = 100_000;

/// The writes without an answer.
#[derive(Debug, Default)]
pub struct LateWrites {
    waiting: Vec<Late>,
}

#[derive(Debug)]
struct Late {
    ns: Namespace,
    /// `None` for a schema change.
    keys: Option<Vec<DocumentKey>>,
    sent: Instant,
    early: Early,
}

/// The first of the two refreshes.
#[derive(Debug, PartialEq)]
enum Early {
    /// Atlas has not answered yet.
    Open,
    At(Instant),
    Done,
}

impl LateWrites {
    /// A write of these documents was given up without an answer.
    pub fn given_up(&mut self, ns: &Namespace, keys: Vec<DocumentKey>, now: Instant) {
        if !keys.is_empty() {
            let keys = Some(keys);
            self.waiting.push(Late { ns: ns.clone(), keys, sent: now, early: Early::Open });
        }
    }

    /// A schema change was given up without an answer.
    pub fn schema_given_up(&mut self, ns: &Namespace, now: Instant) {
        self.waiting.push(Late { ns: ns.clone(), keys: None, sent: now, early: Early::Open });
    }

    /// Atlas has answered a write.
    pub fn answered(&mut self, now: Instant) {
        for late in &mut self.waiting {
            if late.early == Early::Open {
                late.early = Early::At(now + AFTER_ANSWER);
            }
        }
    }

    /// What is to be made good now.
    pub fn due(&mut self, now: Instant) -> Due {
        let mut due = Due { everything: self.overflows(), ..Due::default() };
        self.waiting.retain_mut(|late| {
            let is_last = now >= late.sent + AT_LAST;
            if is_last || matches!(late.early, Early::At(at) if now >= at) {
                late.early = Early::Done;
                match &late.keys {
                    Some(keys) => due.documents.push((late.ns.clone(), keys.clone())),
                    None => due.everything = true,
                }
            }
            !is_last
        });
        due
    }

    /// True, once, when there are too many to remember: they are forgotten in favour of a comparison.
    fn overflows(&mut self) -> bool {
        let keys = self.waiting.iter().filter_map(|late| late.keys.as_ref()).map(Vec::len);
        let overflows = keys.sum::<usize>() > KEYS_MAX;
        if overflows {
            self.waiting.clear();
        }
        overflows
    }
}

#[cfg(test)]
mod tests {
    use bson::rawdoc;

    use super::*;

    fn noted(late: &mut LateWrites, keys: i32, now: Instant) {
        let keys = (0..keys).map(|id| DocumentKey::of(&rawdoc! { "_id": id }).unwrap()).collect();
        late.given_up(&Namespace::new("shop", "orders"), keys, now);
    }

    #[test]
    fn documents_are_refreshed_after_the_next_answer_and_at_last() {
        let (mut late, start) = (LateWrites::default(), Instant::now());
        noted(&mut late, 1, start);

        let mut documents = |now| late_documents(&mut late, now);
        assert_eq!(documents(start + AFTER_ANSWER * 2), 0, "no answer yet");
        late.answered(start + AFTER_ANSWER * 2);
        late.answered(start + AFTER_ANSWER * 3);
        let mut documents = |now| late_documents(&mut late, now);
        assert_eq!(documents(start + AFTER_ANSWER * 3), 1);
        assert_eq!(documents(start + AFTER_ANSWER * 4), 0, "once");
        assert_eq!(documents(start + AT_LAST), 1);
        assert_eq!(documents(start + AT_LAST * 2), 0);
    }

    fn late_documents(late: &mut LateWrites, now: Instant) -> usize {
        late.due(now).documents.len()
    }

    #[test]
    fn a_schema_change_without_an_answer_has_everything_compared() {
        let (mut late, start) = (LateWrites::default(), Instant::now());
        late.schema_given_up(&Namespace::new("shop", "orders"), start);
        late.answered(start);

        assert!(!late.due(start).everything);
        assert!(late.due(start + AFTER_ANSWER).everything);
        assert!(!late.due(start + AFTER_ANSWER * 2).everything);
        assert!(late.due(start + AT_LAST).everything);
    }

    #[test]
    fn too_many_are_forgotten_in_favour_of_a_comparison() {
        let (mut late, start) = (LateWrites::default(), Instant::now());
        noted(&mut late, 10, start);
        assert!(!late.due(start).everything);

        for _ in 0..=KEYS_MAX / 1_000 {
            noted(&mut late, 1_000, start);
        }

        assert!(late.due(start).everything);
        assert_eq!(late.due(start + AT_LAST), Due::default());
    }
}
