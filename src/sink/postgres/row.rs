//! A document as the rows that it is in PostgreSQL: one of its table, and those of its children.
//!
//! Pure: it knows the declarations and the document, no server.

use bson::RawDocument;
use sha2::{Digest, Sha256};

use super::{
    cell::Cell,
    column::{self, Fit, Found},
    json::{Json, Loss},
    key,
    table::{Child, OWN_COLUMNS, Table},
};
use crate::{
    config::{ColumnRule, Exact},
    model::{
        document_key::DocumentKey,
        raw::{self, Field, Malformed, kind},
    },
};

/// A B-tree of PostgreSQL takes no key above 2,704 bytes. A longer one is cut, and has a hash of all of it at its end: it
/// is still of one document alone, and stands where it did but among those that begin with the same 2,000 bytes.
pub const KEY_BYTES_MAX: usize = 2_000;

/// A document as its table holds it.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// In the order of [`Table::types`].
    pub cells: Vec<Cell>,
    /// For each child of the table its rows.
    pub children: Vec<Vec<Vec<Cell>>>,
    pub losses: Vec<Loss>,
    /// Columns whose value is of another type.
    pub misfits: Vec<String>,
}

impl Row {
    pub fn key(&self) -> &Cell {
        &self.cells[0]
    }
}

/// Makes the rows of a table.
#[derive(Clone, Debug)]
pub struct Rows {
    pub table: Table,
    exact: Exact,
    shape: i32,
}

impl Rows {
    pub fn of(table: Table, exact: Exact) -> Self {
        // Another number when something else is declared: a row that was made by other declarations is not what it
        // should be, though its document is.
        let declared = format!("{exact:?}{:?}{:?}", table.columns, table.children);
        let digest = Sha256::digest(declared.as_bytes());
        let shape = digest.first_chunk().map_or(0, |bytes| i32::from_be_bytes(*bytes));
        Self { table, exact, shape }
    }

    /// The row of a document. `source_time` in milliseconds from 1970.
    ///
    /// # Errors
    /// [`Malformed`] for bytes that are no document with an `_id`.
    pub fn row(&self, document: &RawDocument, source_time: Option<i64>) -> Result<Row, Malformed> {
        let (json, losses) = Json::of(kind::DOCUMENT, document.as_bytes())?;
        let keeps_raw = self.exact == Exact::Raw || !losses.is_empty();
        let moment = source_time.and_then(super::moment::to_pg).map_or(Cell::Null, Cell::Moment);
        let document_key = DocumentKey::of(document)?;
        let mut cells = Vec::with_capacity(OWN_COLUMNS.len() + self.table.columns.len());
        cells.extend([
            Cell::Bytes(key_of(&document_key)?),
            Cell::Text(id_text(&document_key)),
            Cell::Json(json),
            Cell::Bytes(Sha256::digest(document.as_bytes()).to_vec()),
            Cell::Int4(self.shape),
            if keeps_raw { Cell::Bytes(document.as_bytes().to_vec()) } else { Cell::Null },
            moment,
        ]);
        let mut misfits = Vec::new();
        for column in &self.table.columns {
            cells.push(cell_of(column, at_path(document, &column.path), &mut misfits));
        }
        let children = self.table.children.iter();
        let children =
            children.map(|child| child.rows(document, &cells[0], &mut misfits)).collect();
        Ok(Row { cells, children, losses, misfits })
    }
}

impl Child {
    fn rows(
        &self,
        document: &RawDocument,
        key: &Cell,
        misfits: &mut Vec<String>,
    ) -> Vec<Vec<Cell>> {
        let array = match at_path(document, &self.path) {
            None => return Vec::new(),
            Some(Found { kind: kind::ARRAY, value }) => value,
            Some(Found { kind, .. }) => {
                if kind != kind::NULL {
                    misfits.push(self.name.clone());
                }
                return Vec::new();
            }
        };
        let Ok(array) = raw::nested(array) else { return Vec::new() };
        let elements = raw::fields(array).map_while(Result::ok).enumerate();
        elements
            .map(|(position, field)| {
                let element = Found { kind: field.kind, value: field.value };
                let mut cells = vec![key.clone(), Cell::Int4(position as i32)];
                for column in &self.columns {
                    let mut of_child = Vec::new();
                    cells.push(cell_of(column, within(element, &column.path), &mut of_child));
                    // A column of the documents may have the name as well.
                    misfits.extend(of_child.iter().map(|of| format!("{}.{of}", self.name)));
                }
                cells
            })
            .collect()
    }
}

/// What stands at `path`, `customer.name` or `items.0.sku`. `None` where nothing does, or bytes that are no document.
/// An empty path leads nowhere.
fn at_path<'a>(document: &'a RawDocument, path: &str) -> Option<Found<'a>> {
    let (name, rest) = path.split_once('.').map_or((path, None), |(name, rest)| (name, Some(rest)));
    let field = raw::fields(document)
        .map_while(Result::ok)
        .filter(|Field { name: found, .. }| *found == name.as_bytes())
        // Of two that share a name jsonb has the last one, too.
        .last()?;
    match rest {
        None => Some(Found { kind: field.kind, value: field.value }),
        Some(rest) if matches!(field.kind, kind::DOCUMENT | kind::ARRAY) => {
            at_path(raw::nested(field.value).ok()?, rest)
        }
        Some(_) => None,
    }
}

fn within<'a>(element: Found<'a>, path: &str) -> Option<Found<'a>> {
    match (path, element.kind) {
        ("", _) => Some(element),
        (path, kind::DOCUMENT | kind::ARRAY) => at_path(raw::nested(element.value).ok()?, path),
        _ => None,
    }
}

fn cell_of(column: &ColumnRule, found: Option<Found<'_>>, misfits: &mut Vec<String>) -> Cell {
    match column::fit(column.ty, found) {
        Fit::Is(cell) => cell,
        Fit::Nothing => Cell::Null,
        Fit::Not => {
            misfits.push(column.name.clone());
            Cell::Null
        }
    }
}

/// The primary key of a document.
///
/// # Errors
/// [`Malformed`] where the key holds no value.
pub fn key_of(key: &DocumentKey) -> Result<Vec<u8>, Malformed> {
    if let Some(stored) = stored_as(key) {
        return Ok(stored);
    }
    let mut bytes = whole_key_of(key)?;
    if bytes.len() > KEY_BYTES_MAX {
        let hash = Sha256::digest(&bytes);
        bytes.truncate(KEY_BYTES_MAX);
        bytes.extend_from_slice(&hash);
    }
    Ok(bytes)
}

/// As [`key_of`], not cut: the order of these is MongoDB's also among keys that begin alike.
///
/// # Errors
/// [`Malformed`] where the key holds no value.
pub fn whole_key_of(key: &DocumentKey) -> Result<Vec<u8>, Malformed> {
    let field = raw::fields(key.filter())
        .next()
        .unwrap_or_else(|| Err(Malformed("a key without a value".into())))?;
    key::encode(field.kind, field.value)
}

/// Whether a primary key ends in a hash.
pub fn is_cut(stored: &[u8]) -> bool {
    stored.len() > KEY_BYTES_MAX
}

/// Bounds of all keys that begin as this one does, where it is cut.
pub fn begin_alike(stored: &[u8]) -> Option<(Vec<u8>, Vec<u8>)> {
    let first = is_cut(stored).then(|| stored[..KEY_BYTES_MAX].to_vec())?;
    // Longer than any hash, and not less than one.
    let last = [&first[..], &[0xFF; 33]].concat();
    Some((first, last))
}

/// A key for a row that is none of a document: somebody has made it. No document has it, since no list can be an `_id`.
/// [`key_of`] leads back to the row, so that it can be told, and deleted, unless it is cut: it may be a document's.
///
/// # Errors
/// Never: what it makes is a key.
pub fn key_of_stranger(stored: &[u8]) -> Result<DocumentKey, Malformed> {
    let subtype = bson::spec::BinarySubtype::Generic;
    let mut list = bson::RawArrayBuf::new();
    list.push(bson::Binary { subtype, bytes: stored.to_vec() });
    DocumentKey::of(&bson::rawdoc! { "_id": list })
}

fn stored_as(key: &DocumentKey) -> Option<Vec<u8>> {
    let field = raw::fields(key.filter()).next()?.ok()?;
    let list = (field.kind == kind::ARRAY).then(|| raw::nested(field.value).ok()).flatten()?;
    let inside = raw::fields(list).next()?.ok()?;
    let stored = inside.value.get(5..).filter(|_| inside.kind == kind::BINARY)?;
    (!is_cut(stored)).then(|| stored.to_vec())
}

/// The `_id` as people write it: the 24 digits of an ObjectId, else canonical Extended JSON.
pub fn id_text(key: &DocumentKey) -> String {
    match key.value() {
        Ok(bson::RawBsonRef::ObjectId(id)) => id.to_hex(),
        Ok(value) => bson::Bson::try_from(value)
            .map_or_else(|_| key.to_string(), |id| id.into_canonical_extjson().to_string()),
        Err(_) => key.to_string(),
    }
}
