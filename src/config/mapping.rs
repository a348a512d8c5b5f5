//! What of a document gets a column, or a table, of its own in PostgreSQL: `[[column]]` and `[[child]]`.

use sha2::{Digest, Sha256};

use crate::model::namespace::Namespace;

/// The keys of `[[column]]` and `[[child]]`, which may be shown with their values.
pub const KEYS: &[&str] = &["collection", "path", "name", "type", "table", "columns"];

/// Names that every table has of its own. No column can be declared by one of them.
pub const OWN_COLUMNS: &[&str] =
    &["_id", "id", "doc", "hash", "shape", "raw", "source_time", "synced_at"];

/// PostgreSQL cuts a longer name without a word.
pub const NAME_BYTES_MAX: usize = 63;

/// The types that a column may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ColumnType {
    Text,
    Integer,
    Bigint,
    Double,
    Numeric,
    Boolean,
    Timestamptz,
    Uuid,
    Bytea,
    Jsonb,
}

impl ColumnType {
    /// By the names that the configuration and SQL have for them.
    pub const ALL: [(&'static str, Self); 10] = [
        ("text", Self::Text),
        ("integer", Self::Integer),
        ("bigint", Self::Bigint),
        ("double precision", Self::Double),
        ("numeric", Self::Numeric),
        ("boolean", Self::Boolean),
        ("timestamptz", Self::Timestamptz),
        ("uuid", Self::Uuid),
        ("bytea", Self::Bytea),
        ("jsonb", Self::Jsonb),
    ];

    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.iter().find(|(known, _)| *known == name).map(|(_, it)| *it)
    }

    pub fn name(self) -> &'static str {
        Self::ALL.iter().find(|(_, it)| *it == self).map_or("text", |(name, _)| name)
    }
}

/// A value that has a column.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ColumnRule {
    /// Where the value stands, with dots: `customer.name`. Of a child's column, within the element; empty for the
    /// element itself.
    pub path: String,
    /// The column's name; the path with `_` in place of the dots, unless the configuration says another.
    pub name: String,
    pub ty: ColumnType,
}

/// An array that has a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChildRule {
    pub path: String,
    pub table: String,
    pub columns: Vec<ColumnRule>,
}

/// All that is declared, by collection.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mapping {
    pub columns: Vec<(Namespace, ColumnRule)>,
    pub children: Vec<(Namespace, ChildRule)>,
}

impl Mapping {
    /// Changes exactly when something else may have been declared (sha-256, shortened): rows that were made before are
    /// then to be compared.
    pub fn fingerprint(&self) -> String {
        let declared = format!("{:?}{:?}", self.columns, self.children);
        let digest = Sha256::digest(declared.as_bytes());
        digest.first_chunk().map_or(0, |bytes| u64::from_be_bytes(*bytes)).to_string()
    }
}
