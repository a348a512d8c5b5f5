//! What a source says that makes no sense: a dead letter from the start, since there is nothing to write.

use uuid::Uuid;

use super::{
    Incoming, Queue, QueueError, Work, codec, dead_letter::DeadLetter, state::StoreState,
    store::Store,
};
use crate::model::{
    checkpoint::ClusterTime, document_key::DocumentKey, namespace::Namespace, write_op::WriteOp,
};

/// Something that was read and cannot be written, by a name that its source knows again: to try it once more means to
/// ask the source for it.
#[derive(Clone, Debug, PartialEq)]
pub struct Refused {
    pub ns: Namespace,
    pub key: DocumentKey,
    pub reason: String,
    pub cluster_time: ClusterTime,
    pub wall_ms: u64,
}

impl Queue {
    /// Keeps them as dead letters. One that is refused again has one letter.
    ///
    /// # Errors
    /// None of them is kept then.
    pub fn refuse(&self, refused: Vec<Refused>, now_ms: u64) -> Result<(), QueueError> {
        if refused.is_empty() {
            return Ok(());
        }
        refuse(&self.store, &mut self.lock(), refused, now_ms)
    }
}

fn refuse(
    store: &Store,
    state: &mut StoreState,
    refused: Vec<Refused>,
    died_ms: u64,
) -> Result<(), QueueError> {
    state.refuse_after_failure()?;
    let mut edit = state.edit();
    let mut next_seq = state.ledger().next_seq;
    let mut letters = Vec::with_capacity(refused.len());
    for Refused { ns, key, reason, cluster_time, wall_ms } in refused {
        let work = Work::Document { ns: ns.clone(), key, op: WriteOp::Refresh, collection: None };
        let incoming = Incoming { work, cluster_time, wall_ms };
        let mut entry = incoming.into_entry(next_seq, Uuid::now_v7());
        entry.attempts = 1;
        let name = state.index.name_of(
            &ns,
            match &entry.work {
                Work::Document { key, .. } => key,
                Work::Schema(_) => unreachable!("it is a document's"),
            },
        );
        if let Some(older) = state.letters.get(&name)
            && let Some(value) = store.letter(older)?
        {
            edit.remove_letter(older, &value);
        }
        let letter = DeadLetter { entry, reason, died_ms };
        edit.put_letter(next_seq, codec::encode_dead_letter(&letter), None);
        letters.push((ns, name, next_seq));
        next_seq += 1;
    }
    store.write(state, edit)?;
    let front = state.front().clone();
    let mut ledger = front.ledger();
    ledger.next_seq = next_seq;
    for (ns, name, seq) in letters {
        ledger.dead_len += u64::from(state.letters.insert(&ns, name, seq));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use bson::rawdoc;
    use tempfile::TempDir;

    use super::*;
    use crate::queue::{QueueOptions, Retried};

    fn ns() -> Namespace {
        "outbox.events".parse().unwrap()
    }

    fn refused(id: &str, reason: &str) -> Refused {
        Refused {
            ns: ns(),
            key: DocumentKey::of(&rawdoc! { "_id": id }).unwrap(),
            reason: reason.to_owned(),
            cluster_time: ClusterTime(5),
            wall_ms: 7,
        }
    }

    #[test]
    fn what_is_refused_is_one_letter_until_it_is_tried_again_and_survives_a_restart() {
        let dir = TempDir::new().unwrap();
        let options = QueueOptions::new(dir.path());
        let queue = Queue::open(&options).unwrap();

        queue.refuse(vec![refused("a", "first"), refused("b", "other")], 9).unwrap();
        queue.refuse(vec![refused("a", "second")], 9).unwrap();

        drop(queue);
        let queue = Queue::open(&options).unwrap();
        let letters = queue.dead_letters(10).unwrap();
        let mut reasons: Vec<_> = letters.iter().map(|letter| letter.reason.as_str()).collect();
        reasons.sort_unstable();
        assert_eq!((reasons, queue.dead_letters_len()), (vec!["other", "second"], 2));
        let id = letters.iter().find(|letter| letter.reason == "second").unwrap().id;
        queue.retry_dead_letter(id, &|_| true).unwrap();
        let batch = queue.lease(10, 1 << 20, 100).unwrap();
        assert_eq!(batch.entries[0].work, Work::refresh(ns(), refused("a", "").key));
    }

    #[test]
    fn a_letter_of_a_collection_that_is_left_out_by_now_is_not_queued_again_and_stays() {
        let dir = TempDir::new().unwrap();
        let queue = Queue::open(&QueueOptions::new(dir.path())).unwrap();
        queue.refuse(vec![refused("a", "first")], 9).unwrap();
        let id = queue.dead_letters(1).unwrap()[0].id;

        let one = queue.retry_dead_letter(id, &|of| *of != ns());
        let all = queue.retry_dead_letters(&|_| true, &|of| *of != ns()).unwrap();

        assert!(matches!(one, Err(QueueError::LeftOut { .. })), "{one:?}");
        assert_eq!(all, Retried { left_out: 1, ..Retried::default() });
        assert!(queue.lease(10, 1 << 20, 100).unwrap().entries.is_empty());
        assert_eq!(queue.dead_letters_len(), 1);
    }
}
