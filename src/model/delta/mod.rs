//! The exact difference between two states of one document.
//!
//! The server describes an update in two ways. `updateDescription` is what most tools read, and it
//! is ambiguous: it does not say whether a field was changed in place or moved to the end, nor
//! whether `a.0` is an array's first item or a field called `0`. `rawUpdateDescription`
//! (`$changeStream: {showRawUpdateDescription: true}`, 6.0+) shows the oplog's own `$v: 2` diff
//! instead, which the secondaries replay and which is therefore exact. This file knows only that
//! one; a source that cannot show it (5.0) queues a [`Refresh`](crate::model::write_op::WriteOp::Refresh)
//! for each update.
//!
//! The form of a diff (server source: `update/document_diff_serialization.h`), of an object and of an
//! array:
//!
//! ```text
//! { d: {f: false},  u: {f: value},  i: {f: value},  s<f>: diff }
//!   removed         changed in place  appended (a    changed within
//!                                     present field
//!                                     moves to the end)
//! { a: true,  l: length after truncation,  u<n>: value,  s<n>: diff }
//! ```
//!
//! Whatever does not fit that form, or does not fit the document it is applied to, is [`Inexact`].

use std::collections::{BTreeMap, HashMap};

use bson::{RawDocument, RawDocumentBuf};

use crate::model::raw::{self, Malformed, kind};

mod command;
pub use command::UpdateCommand;

/// A merge that is not provably exact. The caller's way out is a `Refresh`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Inexact(&'static str);

impl From<Malformed> for Inexact {
    fn from(_: Malformed) -> Self {
        Inexact("malformed BSON")
    }
}

/// What one update did to one document: a `$v: 2` diff that has been checked for its form.
#[derive(Clone, Debug, PartialEq)]
pub struct Delta(RawDocumentBuf);

impl Delta {
    /// Takes the `diff` of an event's `rawUpdateDescription`.
    ///
    /// # Errors
    /// [`Inexact`] when the diff holds a section that is not known here.
    pub fn from_diff(diff: &RawDocument) -> Result<Self, Inexact> {
        Node::parse(diff, 0)?;
        Ok(Self(diff.to_owned()))
    }

    /// Rebuilds a delta from [`as_raw`](Self::as_raw)'s bytes. They were checked when it was made; should they be
    /// no delta all the same, every use of it is [`Inexact`].
    pub fn from_checked(diff: RawDocumentBuf) -> Self {
        Self(diff)
    }

    /// The diff as the server wrote it.
    pub fn as_raw(&self) -> &RawDocument {
        &self.0
    }

    /// The document after this delta, given the one `before` it, byte for byte as the server has it.
    ///
    /// # Errors
    /// [`Inexact`] when the delta cannot have been made from `before`.
    pub fn apply(&self, before: &RawDocument) -> Result<RawDocumentBuf, Inexact> {
        match self.node()? {
            Node::Object(diff) => diff.apply(before),
            Node::Array(_) => Err(Inexact("a document is no array")),
        }
    }

    /// One delta with the effect of this one and `then` the other.
    ///
    /// # Errors
    /// [`Inexact`] when the second cannot have followed the first, or when the two have become so large that it takes
    /// less to read the document than to go on merging: a field that came and went stays in a delta, and every further
    /// merge goes through all of it.
    pub fn then(&self, then: &Delta) -> Result<Delta, Inexact> {
        let merged = self.node()?.then(then.node()?)?.to_raw();
        if merged.as_bytes().len() > MERGED_MAX {
            return Err(Inexact("too much for one delta"));
        }
        Ok(Delta(merged))
    }

    /// The update command with the effect of this delta, if one exists. See [`UpdateCommand`].
    pub fn to_command(&self) -> Option<UpdateCommand> {
        self.node().ok().and_then(|node| UpdateCommand::new(&node))
    }

    fn node(&self) -> Result<Node<'_>, Inexact> {
        Node::parse(&self.0, 0)
    }
}

/// The bytes of a value with its type. Borrowed from a diff, or made by a merge.
#[derive(Clone, Debug)]
struct Value<'a> {
    kind: u8,
    bytes: std::borrow::Cow<'a, [u8]>,
}

impl Value<'_> {
    /// This value with `diff` applied to it.
    fn changed_by(&self, diff: &Node<'_>) -> Result<Value<'static>, Inexact> {
        let bytes = diff.apply_to_value(self.kind, &self.bytes)?;
        Ok(Value { kind: self.kind, bytes: bytes.into() })
    }
}

#[derive(Clone, Debug)]
enum Node<'a> {
    Object(ObjectDiff<'a>),
    Array(ArrayDiff<'a>),
}

#[derive(Clone, Debug)]
enum Change<'a> {
    Delete,
    Update(Value<'a>),
    Insert(Value<'a>),
    Within(Node<'a>),
}

/// Field changes. The order matters for `Insert` only: it is the order in which fields are appended.
#[derive(Clone, Debug, Default)]
struct ObjectDiff<'a> {
    fields: Vec<(&'a str, Change<'a>)>,
}

#[derive(Clone, Debug)]
enum Item<'a> {
    Set(Value<'a>),
    Within(Node<'a>),
}

#[derive(Clone, Debug, Default)]
struct ArrayDiff<'a> {
    truncate_to: Option<u32>,
    items: BTreeMap<u32, Item<'a>>,
}

/// Bytes of a delta that was merged of several.
const MERGED_MAX: usize = 16 << 10;

/// The server nests documents to 180 levels at the most.
const MAX_DEPTH: usize = 200;

/// The server grows an array by padding it with nulls up to an index given in an update, but never
/// by more than 1,500,000 (`kMaxPaddingAllowed`).
const MAX_ARRAY_INDEX: u32 = 16 * 1024 * 1024;

impl<'a> Node<'a> {
    fn parse(diff: &'a RawDocument, depth: usize) -> Result<Self, Inexact> {
        if depth > MAX_DEPTH {
            return Err(Inexact("nested too deeply"));
        }
        let first = raw::elements(diff).next().transpose()?;
        match first {
            Some(element) if element.name == "a" && element.kind == kind::BOOL => {
                Ok(Node::Array(ArrayDiff::parse(diff, depth)?))
            }
            _ => Ok(Node::Object(ObjectDiff::parse(diff, depth)?)),
        }
    }

    fn then(self, then: Node<'a>) -> Result<Node<'a>, Inexact> {
        match (self, then) {
            (Node::Object(first), Node::Object(then)) => first.then(then).map(Node::Object),
            (Node::Array(first), Node::Array(then)) => first.then(then).map(Node::Array),
            (Node::Object(_), Node::Array(_)) | (Node::Array(_), Node::Object(_)) => {
                Err(Inexact("an object's diff follows an array's"))
            }
        }
    }

    fn apply_to_value(&self, value_kind: u8, bytes: &[u8]) -> Result<Vec<u8>, Inexact> {
        match (self, value_kind) {
            (Node::Object(diff), kind::DOCUMENT) => {
                Ok(diff.apply(raw::nested(bytes)?)?.into_bytes())
            }
            (Node::Array(diff), kind::ARRAY) => Ok(diff.apply(raw::nested(bytes)?)?.into_bytes()),
            (Node::Object(_) | Node::Array(_), _) => Err(Inexact("the diff is of another type")),
        }
    }

    fn to_raw(&self) -> RawDocumentBuf {
        match self {
            Node::Object(diff) => diff.to_raw(),
            Node::Array(diff) => diff.to_raw(),
        }
    }
}

/// Field name → index in [`ObjectDiff::fields`].
enum Positions<'a> {
    /// Looked through one by one, which is faster than a map for as few fields as most updates change.
    Few(Vec<&'a str>),
    /// How many there are, repeated ones too.
    Many(usize, HashMap<&'a str, usize>),
}

const FEW: usize = 8;

impl Positions<'_> {
    fn get(&self, name: &str) -> Option<usize> {
        match self {
            Positions::Few(names) => names.iter().position(|of| *of == name),
            Positions::Many(_, map) => map.get(name).copied(),
        }
    }

    fn has_repetition(&self) -> bool {
        match self {
            Positions::Few(names) => {
                names.iter().enumerate().any(|(n, name)| names[..n].contains(name))
            }
            Positions::Many(len, map) => map.len() < *len,
        }
    }
}

impl<'a> ObjectDiff<'a> {
    fn parse(diff: &'a RawDocument, depth: usize) -> Result<Self, Inexact> {
        let mut fields: Vec<(&'a str, Change<'a>)> = Vec::new();
        for section in raw::elements(diff) {
            let section = section?;
            if section.kind != kind::DOCUMENT {
                return Err(Inexact("unknown section in a diff"));
            }
            let body = raw::nested(section.value)?;
            if let Some(field) = section.name.strip_prefix('s') {
                fields.push((field, Change::Within(Node::parse(body, depth + 1)?)));
                continue;
            }
            for element in raw::elements(body) {
                let element = element?;
                let value = Value { kind: element.kind, bytes: element.value.into() };
                let change = match section.name {
                    "d" => Change::Delete,
                    "u" => Change::Update(value),
                    "i" => Change::Insert(value),
                    _ => return Err(Inexact("unknown section in a diff")),
                };
                fields.push((element.name, change));
            }
        }
        let diff = Self { fields };
        if diff.positions().has_repetition() {
            return Err(Inexact("a field changes twice in one diff"));
        }
        Ok(diff)
    }

    fn positions(&self) -> Positions<'a> {
        let names = self.fields.iter().map(|(name, _)| *name);
        if self.fields.len() <= FEW {
            Positions::Few(names.collect())
        } else {
            Positions::Many(
                self.fields.len(),
                names.enumerate().map(|(n, name)| (name, n)).collect(),
            )
        }
    }

    fn apply(&self, before: &RawDocument) -> Result<RawDocumentBuf, Inexact> {
        let positions = self.positions();
        let mut met = vec![false; self.fields.len()];
        let mut after = raw::Builder::with_capacity(before.as_bytes().len() + 64);
        for element in raw::elements(before) {
            let element = element?;
            let Some(n) = positions.get(element.name) else {
                after.push(element.kind, element.name, element.value);
                continue;
            };
            if std::mem::replace(&mut met[n], true) {
                return Err(Inexact("the document holds a changed field twice"));
            }
            match &self.fields[n].1 {
                Change::Delete | Change::Insert(_) => {}
                Change::Update(value) => after.push(value.kind, element.name, &value.bytes),
                Change::Within(diff) => {
                    let value = diff.apply_to_value(element.kind, element.value)?;
                    after.push(element.kind, element.name, &value);
                }
            }
        }
        for ((name, change), met) in self.fields.iter().zip(met) {
            match change {
                Change::Insert(value) => after.push(value.kind, name, &value.bytes),
                // A merged delta may remove a field that this document never had: one change made it, a later one
                // removed it.
                Change::Delete => {}
                Change::Update(_) | Change::Within(_) if !met => {
                    return Err(Inexact("the document lacks a changed field"));
                }
                Change::Update(_) | Change::Within(_) => {}
            }
        }
        Ok(after.finish())
    }

    fn then(self, then: ObjectDiff<'a>) -> Result<ObjectDiff<'a>, Inexact> {
        use Change::{Delete, Insert, Update, Within};
        let positions = self.positions();
        let mut kept: Vec<Option<(&'a str, Change<'a>)>> =
            self.fields.into_iter().map(Some).collect();
        let mut appended = Vec::new();
        for (name, change) in then.fields {
            let slot = positions.get(name);
            let first = slot.and_then(|n| kept[n].take()).map(|(_, change)| change);
            // The order counts for inserts alone. A field that the first delta appended and the
            // second changed keeps its place; one that the second appended goes to the end.
            let (merged, place) = match (first, change) {
                (None, change) => (change, None),
                (Some(Delete), Insert(value)) => (Insert(value), None),
                (Some(Delete), Delete | Update(_) | Within(_)) => {
                    return Err(Inexact("a removed field changes"));
                }
                (Some(Update(_) | Insert(_) | Within(_)), last @ (Delete | Insert(_))) => {
                    (last, None)
                }
                (Some(Update(_) | Within(_)), Update(value)) => (Update(value), None),
                (Some(Update(value)), Within(diff)) => (Update(value.changed_by(&diff)?), None),
                (Some(Within(first)), Within(diff)) => (Within(first.then(diff)?), None),
                (Some(Insert(_)), Update(value)) => (Insert(value), slot),
                (Some(Insert(value)), Within(diff)) => (Insert(value.changed_by(&diff)?), slot),
            };
            match place {
                Some(n) => kept[n] = Some((name, merged)),
                None => appended.push((name, merged)),
            }
        }
        let mut fields: Vec<_> = kept.into_iter().flatten().collect();
        fields.extend(appended);
        Ok(ObjectDiff { fields })
    }

    fn to_raw(&self) -> RawDocumentBuf {
        let mut diff = raw::Builder::default();
        for section in ["d", "u", "i"] {
            let mut body = raw::Builder::default();
            let mut any = false;
            for (name, change) in &self.fields {
                match (section, change) {
                    ("d", Change::Delete) => body.push(kind::BOOL, name, &[0]),
                    ("u", Change::Update(value)) | ("i", Change::Insert(value)) => {
                        body.push(value.kind, name, &value.bytes);
                    }
                    _ => continue,
                }
                any = true;
            }
            if any {
                diff.push(kind::DOCUMENT, section, body.finish().as_bytes());
            }
        }
        for (name, change) in &self.fields {
            if let Change::Within(node) = change {
                diff.push(kind::DOCUMENT, &format!("s{name}"), node.to_raw().as_bytes());
            }
        }
        diff.finish()
    }
}

impl<'a> ArrayDiff<'a> {
    fn parse(diff: &'a RawDocument, depth: usize) -> Result<Self, Inexact> {
        let mut parsed = ArrayDiff::default();
        for element in raw::elements(diff).skip(1) {
            let element = element?;
            if element.name == "l" && element.kind == kind::INT32 {
                let bytes = element.value.try_into().map_err(|_| Inexact("malformed BSON"))?;
                let len = u32::try_from(i32::from_le_bytes(bytes))
                    .map_err(|_| Inexact("an array of negative length"))?;
                parsed.truncate_to = Some(len);
                continue;
            }
            let (section, index) =
                element.name.split_at_checked(1).ok_or(Inexact("unknown section in a diff"))?;
            let index: u32 =
                index.parse().map_err(|_| Inexact("an array index that is no number"))?;
            if index > MAX_ARRAY_INDEX {
                return Err(Inexact("an array index beyond any document"));
            }
            let item = match section {
                "u" => Item::Set(Value { kind: element.kind, bytes: element.value.into() }),
                "s" if element.kind == kind::DOCUMENT => {
                    Item::Within(Node::parse(raw::nested(element.value)?, depth + 1)?)
                }
                _ => return Err(Inexact("unknown section in a diff")),
            };
            if parsed.items.insert(index, item).is_some() {
                return Err(Inexact("an item changes twice in one diff"));
            }
        }
        if parsed.truncate_to.is_some_and(|len| len > MAX_ARRAY_INDEX) {
            return Err(Inexact("an array index beyond any document"));
        }
        Ok(parsed)
    }

    fn apply(&self, before: &RawDocument) -> Result<RawDocumentBuf, Inexact> {
        let mut after = raw::Builder::with_capacity(before.as_bytes().len() + 64);
        let mut len = 0;
        for element in raw::elements(before) {
            let element = element?;
            if self.truncate_to.is_some_and(|limit| len >= limit) {
                break;
            }
            let name = len.to_string();
            if element.name != name {
                // A client may store an array with any names. The diff does not tell which of them survive an
                // update: only the document itself does.
                return Err(Inexact("an array whose items are not named 0, 1, 2 and so on"));
            }
            match self.items.get(&len) {
                None => after.push(element.kind, &name, element.value),
                Some(Item::Set(value)) => after.push(value.kind, &name, &value.bytes),
                Some(Item::Within(diff)) => {
                    after.push(
                        element.kind,
                        &name,
                        &diff.apply_to_value(element.kind, element.value)?,
                    );
                }
            }
            len += 1;
        }
        if self.truncate_to.is_some_and(|limit| len < limit) {
            return Err(Inexact("the array is shorter than what is left of it"));
        }
        for (&index, item) in self.items.range(len..) {
            let Item::Set(value) = item else {
                return Err(Inexact("the array lacks a changed item"));
            };
            while len < index {
                after.push(kind::NULL, &len.to_string(), &[]);
                len += 1;
            }
            after.push(value.kind, &len.to_string(), &value.bytes);
            len += 1;
        }
        Ok(after.finish())
    }

    fn then(self, then: ArrayDiff<'a>) -> Result<ArrayDiff<'a>, Inexact> {
        let mut merged = self;
        if let Some(len) = then.truncate_to {
            merged.items.retain(|&index, _| index < len);
            let padded = merged.truncate_to.is_some_and(|first| first < len)
                && !merged.items.contains_key(&(len - 1));
            if padded {
                // The first delta cut the array shorter and then grew it again; the server fills the gap with nulls that
                // its diff does not list. Merged, the array would end before them.
                return Err(Inexact("a truncation ends among padding"));
            }
            merged.truncate_to = Some(merged.truncate_to.map_or(len, |first| first.min(len)));
        }
        for (index, item) in then.items {
            let item = match (merged.items.remove(&index), item) {
                (None, item) | (Some(_), item @ Item::Set(_)) => item,
                (Some(Item::Set(value)), Item::Within(diff)) => Item::Set(value.changed_by(&diff)?),
                (Some(Item::Within(first)), Item::Within(diff)) => Item::Within(first.then(diff)?),
            };
            merged.items.insert(index, item);
        }
        Ok(merged)
    }

    fn to_raw(&self) -> RawDocumentBuf {
        let mut diff = raw::Builder::default();
        diff.push(kind::BOOL, "a", &[1]);
        if let Some(len) = self.truncate_to {
            diff.push(kind::INT32, "l", &(len as i32).to_le_bytes());
        }
        for (index, item) in &self.items {
            match item {
                Item::Set(value) => diff.push(value.kind, &format!("u{index}"), &value.bytes),
                Item::Within(node) => {
                    diff.push(kind::DOCUMENT, &format!("s{index}"), node.to_raw().as_bytes());
                }
            }
        }
        diff.finish()
    }
}

#[cfg(test)]
mod tests;
