//! Small values that others keep beside the queue, by name.

use std::collections::BTreeMap;

use super::{Queue, QueueError, layout::meta_key, note};

impl Queue {
    /// The queue was put back to an older state: it is not to be used any more, and is not opened again as it is.
    /// Returns what it fails with.
    pub fn give_up_as_outdated(&self) -> QueueError {
        let noted = self.set_meta(note::OUTDATED, Some(&[])).and_then(|()| self.flush());
        noted.err().unwrap_or(QueueError::Outdated)
    }

    /// A small value kept beside the queue, such as the state of the first copy.
    pub fn meta(&self, name: &str) -> Result<Option<Vec<u8>>, QueueError> {
        Ok(self.db.get(meta_key(name))?.map(|value| value.to_vec()))
    }

    /// Sets, or with `None` removes, a small value kept beside the queue.
    pub fn set_meta(&self, name: &str, value: Option<&[u8]>) -> Result<(), QueueError> {
        self.update_metas(|| Ok([(name.to_owned(), value.map(<[u8]>::to_vec))].into()))
    }

    /// The small values kept beside the queue whose names begin so, by name.
    pub fn metas_below(&self, prefix: &str) -> Result<Vec<(String, Vec<u8>)>, QueueError> {
        let name_of = |key: &[u8]| String::from_utf8(key[meta_key("").len()..].to_vec()).ok();
        let items = self.db.scan_prefix(meta_key(prefix)).map(|item| {
            let (key, value) = item?;
            Ok(name_of(&key).map(|name| (name, value.to_vec())))
        });
        items.filter_map(Result::transpose).collect()
    }

    /// Replaces a small value kept beside the queue by what `change` makes of it, with nobody in between.
    pub fn update_meta(
        &self,
        name: &str,
        change: impl FnOnce(Option<&[u8]>) -> Result<Option<Vec<u8>>, QueueError>,
    ) -> Result<(), QueueError> {
        self.update_metas(|| {
            let before = self.meta(name)?;
            Ok([(name.to_owned(), change(before.as_deref())?)].into())
        })
    }

    /// Sets, or with `None` removes, the small values that `change` names, with nobody in between: it may read others
    /// before it does.
    pub fn update_metas(
        &self,
        change: impl FnOnce() -> Result<BTreeMap<String, Option<Vec<u8>>>, QueueError>,
    ) -> Result<(), QueueError> {
        let mut state = self.lock();
        let changes = change()?;
        if changes.is_empty() {
            return Ok(());
        }
        let mut edit = state.edit();
        for (name, value) in changes {
            let key = meta_key(&name);
            let before = self.db.get(&key)?;
            match value {
                Some(value) => edit.put(&key, value, before.as_deref()),
                None => edit.remove(&key, before.as_deref()),
            }
        }
        self.write(&mut state, edit)
    }
}
