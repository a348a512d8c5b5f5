//! Values that a declared column could not take, since they are of another type, and that are NULL in it: counted by
//! column, each time that one is written.

use std::collections::BTreeMap;

use parking_lot::Mutex;

use crate::model::namespace::Namespace;

/// See the [module](self). A column of a child is named with its table: `orders_items.qty`.
#[derive(Debug, Default)]
pub struct Misfits(Mutex<BTreeMap<(Namespace, String), u64>>);

impl Misfits {
    pub fn add<'n>(&self, ns: &Namespace, columns: impl Iterator<Item = &'n String>) {
        let mut columns = columns.peekable();
        if columns.peek().is_none() {
            return;
        }
        let mut counts = self.0.lock();
        for column in columns {
            *counts.entry((ns.clone(), column.clone())).or_default() += 1;
        }
    }

    /// How many there were since the start, by collection and column.
    pub fn all(&self) -> BTreeMap<(Namespace, String), u64> {
        self.0.lock().clone()
    }
}
