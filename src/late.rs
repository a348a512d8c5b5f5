//! Writes without an answer, which may still come true. Pure: `now` is passed in.
//!
//! A write that was sent on a line that stalled stays in the kernel's buffers after its connection was
//! given up, and is sent again for some minutes more. When the line comes back it may reach Atlas after
//! a later write of the same document, and put the older state back. Nothing in the stream would correct
//! that. So the documents of such a write are refreshed twice: a little after Atlas has answered again,
//! which is when a late write comes if the line was at fault, and once more when none can come any more.

use std::time::{Duration, Instant};

use crate::{document_key::DocumentKey, namespace::Namespace};

/// How long after Atlas's next answer the first refresh comes.
const AFTER_ANSWER: Duration = Duration::from_secs(10);

/// How long a given-up connection can still deliver: Linux retransmits for an orphaned socket eight times
/// (`tcp_orphan_retries`), which is under four minutes at the round trips of the internet.
const AT_LAST: Duration = Duration::from_secs(300);

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
    keys: Vec<DocumentKey>,
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
            self.waiting.push(Late { ns: ns.clone(), keys, sent: now, early: Early::Open });
        }
    }

    /// Atlas has answered a write.
    pub fn answered(&mut self, now: Instant) {
        for late in &mut self.waiting {
            if late.early == Early::Open {
                late.early = Early::At(now + AFTER_ANSWER);
            }
        }
    }

    /// Documents that are to be refreshed now.
    pub fn due(&mut self, now: Instant) -> Vec<(Namespace, Vec<DocumentKey>)> {
        let mut due = Vec::new();
        self.waiting.retain_mut(|late| {
            let is_last = now >= late.sent + AT_LAST;
            if is_last || matches!(late.early, Early::At(at) if now >= at) {
                late.early = Early::Done;
                due.push((late.ns.clone(), late.keys.clone()));
            }
            !is_last
        });
        due
    }

    /// True when there are too many to remember: the caller forgets them by having everything compared.
    pub fn overflows(&mut self) -> bool {
        let overflows = self.waiting.iter().map(|late| late.keys.len()).sum::<usize>() > KEYS_MAX;
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

        assert!(late.due(start + AFTER_ANSWER * 2).is_empty(), "no answer yet");
        late.answered(start + AFTER_ANSWER * 2);
        late.answered(start + AFTER_ANSWER * 3);
        assert_eq!(late.due(start + AFTER_ANSWER * 3).len(), 1);
        assert!(late.due(start + AFTER_ANSWER * 4).is_empty(), "once");
        assert_eq!(late.due(start + AT_LAST).len(), 1);
        assert!(late.due(start + AT_LAST * 2).is_empty());
    }

    #[test]
    fn too_many_are_forgotten_in_favour_of_a_comparison() {
        let (mut late, start) = (LateWrites::default(), Instant::now());
        noted(&mut late, 10, start);
        assert!(!late.overflows());

        for _ in 0..=KEYS_MAX / 1_000 {
            noted(&mut late, 1_000, start);
        }

        assert!(late.overflows());
        assert!(!late.overflows() && late.due(start + AT_LAST).is_empty());
    }
}
