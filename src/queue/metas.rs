//! Small values that others keep beside the queue, by name; `note` has the names.

use std::{collections::BTreeMap, sync::Arc};

use super::{
    Queue, QueueError,
    edit::Edit,
    layout::meta_key,
    state::{Carried, StoreState},
    store::Store,
};

/// Values to be set, or with `None` removed, by name.
pub type Changes = BTreeMap<String, Option<Vec<u8>>>;

/// The value of a name.
pub fn get(store: &Store, name: &str) -> Result<Option<Vec<u8>>, QueueError> {
    Ok(store.get(&meta_key(name))?.map(|value| value.to_vec()))
}

/// The values whose names begin so, by name.
pub fn below(store: &Store, prefix: &str) -> Result<Vec<(String, Vec<u8>)>, QueueError> {
    let name_of = |key: &[u8]| String::from_utf8(key[meta_key("").len()..].to_vec()).ok();
    let items = store.scan(&meta_key(prefix)).map(|item| {
        let (key, value) = item?;
        Ok(name_of(&key).map(|name| (name, value.to_vec())))
    });
    items.filter_map(Result::transpose).collect()
}

/// Makes the changes, all of them or none.
pub fn set(store: &Store, state: &mut StoreState, changes: Changes) -> Result<(), QueueError> {
    let mut edit = state.edit();
    let mut is_changed = carry(store, state, &mut edit)?;
    for (name, value) in changes {
        let key = meta_key(&name);
        let before = store.get(&key)?;
        match value {
            Some(value) => edit.put(&key, value, before.as_deref()),
            None => edit.remove(&key, before.as_deref()),
        }
        is_changed = true;
    }
    if is_changed { store.write(state, edit) } else { Ok(()) }
}

/// Puts what is carried into a step. False where it is as it was.
pub fn carry(store: &Store, state: &StoreState, edit: &mut Edit) -> Result<bool, QueueError> {
    let Some(Carried { name, value }) = &state.carried else { return Ok(false) };
    let Some(value) = value() else { return Ok(false) };
    let key = meta_key(name);
    let before = store.get(&key)?;
    if before.as_deref() == Some(&*value) {
        return Ok(false);
    }
    edit.put(&key, value, before.as_deref());
    Ok(true)
}

impl Queue {
    /// From now on every ack, and every change of these values, also writes what `value` says then, in the same step: so what
    /// is concluded from it is never on the disk without it. Nothing is written where it says nothing.
    pub fn carry(
        &self,
        name: &'static str,
        value: impl Fn() -> Option<Vec<u8>> + Send + Sync + 'static,
    ) {
        self.lock().carried = Some(Carried { name, value: Arc::new(value) });
    }

    /// Writes what is [carried](Self::carry) now.
    pub fn write_carried(&self) -> Result<(), QueueError> {
        self.update_metas(|| Ok(Changes::new()))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU8, Ordering};

    use bson::rawdoc;

    use super::*;
    use crate::{
        model::{
            checkpoint::ClusterTime, document_key::DocumentKey, namespace::Namespace,
            write_op::WriteOp,
        },
        queue::{Ack, Incoming, Outcome, QueueOptions, Work},
    };

    /// Invariant T2 of [`tally`](crate::gate::tally).
    #[test]
    fn what_is_carried_is_on_the_disk_with_every_ack_and_every_note() {
        let dir = tempfile::tempdir().unwrap();
        let queue = Queue::open(&QueueOptions::new(dir.path())).unwrap();
        let now = Arc::new(AtomicU8::new(0));
        let value = now.clone();
        queue.carry("carried", move || {
            Some(value.load(Ordering::SeqCst)).filter(|n| *n > 0).map(|n| vec![n])
        });
        let carried = |queue: &Queue| queue.meta("carried").unwrap();
        queue.set_meta("other", Some(&[9])).unwrap();
        assert_eq!(carried(&queue), None, "it has nothing to say yet");

        now.store(1, Ordering::SeqCst);
        queue.set_meta("other", None).unwrap();
        assert_eq!(carried(&queue), Some(vec![1]));
        let key = DocumentKey::of(&rawdoc! { "_id": 1 }).unwrap();
        let ns = Namespace::new("shop", "orders");
        let work = Work::Document { ns, key, op: WriteOp::Delete, collection: None };
        let one = Incoming { work, cluster_time: ClusterTime(1), wall_ms: 1 };
        queue.commit(vec![one], None).unwrap();
        let batch = queue.lease(1, usize::MAX, 0).unwrap();
        now.store(2, Ordering::SeqCst);
        let entry = &batch.entries[0];
        let ack = Ack { seq: entry.seq, version: entry.version, outcome: Outcome::Applied };
        queue.ack(&[ack]).unwrap();
        drop(queue);

        let queue = Queue::open(&QueueOptions::new(dir.path())).unwrap();
        assert_eq!(carried(&queue), Some(vec![2]));
        assert_eq!(queue.pending().0, 0);
    }
}
