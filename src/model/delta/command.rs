//! A delta as the `$set`/`$unset` that a server accepts from a client.

use bson::RawDocumentBuf;

use super::{Change, Item, Node, Value};
use crate::model::raw::{self, kind};

/// An update command's `u`, and what must hold in the target for it to be exact.
///
/// A server takes no `$v: 2` diff from a client, and `$set` says less than one: it creates several
/// fields in an order of its own, cannot move a field to the end, cannot truncate an array, and
/// reads dots in a name as a path. There is a command only where none of that matters.
#[derive(Clone, Debug, PartialEq)]
pub struct UpdateCommand {
    /// `{$set: …, $unset: …}`.
    pub update: RawDocumentBuf,
    /// Paths that must not exist yet: a field that is to be appended would stay in place otherwise.
    pub absent: Vec<String>,
}

impl UpdateCommand {
    pub(super) fn new(node: &Node<'_>) -> Option<Self> {
        let mut parts = CommandParts::default();
        parts.collect(node, "")?;
        let mut update = raw::Builder::default();
        if parts.any_set {
            update.push(kind::DOCUMENT, "$set", parts.set.finish().as_bytes());
        }
        if parts.any_unset {
            update.push(kind::DOCUMENT, "$unset", parts.unset.finish().as_bytes());
        }
        (parts.any_set || parts.any_unset)
            .then(|| UpdateCommand { update: update.finish(), absent: parts.absent })
    }
}

#[derive(Default)]
struct CommandParts {
    set: raw::Builder,
    unset: raw::Builder,
    any_set: bool,
    any_unset: bool,
    absent: Vec<String>,
}

impl CommandParts {
    /// `None` as soon as one part cannot be said exactly.
    fn collect(&mut self, node: &Node<'_>, prefix: &str) -> Option<()> {
        match node {
            Node::Object(diff) => {
                let inserts =
                    diff.fields.iter().filter(|(_, change)| matches!(change, Change::Insert(_)));
                if inserts.count() > 1 {
                    return None;
                }
                for (name, change) in &diff.fields {
                    let path = object_path(prefix, name)?;
                    match change {
                        Change::Delete => {
                            self.unset.push(kind::BOOL, &path, &[1]);
                            self.any_unset = true;
                        }
                        Change::Update(value) => self.set(&path, value),
                        Change::Insert(value) => {
                            self.set(&path, value);
                            self.absent.push(path);
                        }
                        Change::Within(node) => self.collect(node, &path)?,
                    }
                }
            }
            Node::Array(diff) => {
                if diff.truncate_to.is_some() {
                    return None;
                }
                for (index, item) in &diff.items {
                    let path = format!("{prefix}.{index}");
                    match item {
                        Item::Set(value) => self.set(&path, value),
                        Item::Within(node) => self.collect(node, &path)?,
                    }
                }
            }
        }
        Some(())
    }

    fn set(&mut self, path: &str, value: &Value<'_>) {
        self.set.push(value.kind, path, &value.bytes);
        self.any_set = true;
    }
}

/// `prefix.name`, unless the server would read the name as something else.
fn object_path(prefix: &str, name: &str) -> Option<String> {
    let special = name.is_empty()
        || name.contains('.')
        || name.starts_with('$')
        || name.bytes().all(|byte| byte.is_ascii_digit());
    if special {
        None
    } else if prefix.is_empty() {
        Some(name.to_owned())
    } else {
        Some(format!("{prefix}.{name}"))
    }
}
