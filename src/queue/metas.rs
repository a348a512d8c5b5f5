//! Small values that others keep beside the queue, by name; `note` has the names.

use std::collections::BTreeMap;

use super::{QueueError, layout::meta_key, state::StoreState, store::Store};

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
    if changes.is_empty() {
        return Ok(());
    }
    let mut edit = state.edit();
    for (name, value) in changes {
        let key = meta_key(&name);
        let before = store.get(&key)?;
        match value {
            Some(value) => edit.put(&key, value, before.as_deref()),
            None => edit.remove(&key, before.as_deref()),
        }
    }
    store.write(state, edit)
}
