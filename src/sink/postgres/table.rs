//! The table of a collection: its name, its columns, and the tables of its arrays.
//!
//! Pure: it knows what is declared, no server.

use super::names;
use crate::{
    config::{ChildRule, ColumnRule, ColumnType, Mapping},
    model::namespace::Namespace,
};

/// Columns that every table has, in this order. `hash` is the SHA-256 of the BSON, `shape` tells by what
/// declarations the row was made. `raw` is null unless `exact = "raw"`, or what stands in `doc` is
/// not all.
pub const OWN_COLUMNS: [(&str, ColumnType, &str); 7] = [
    ("_id", ColumnType::Bytea, "PRIMARY KEY"),
    ("id", ColumnType::Text, "NOT NULL"),
    ("doc", ColumnType::Jsonb, "NOT NULL"),
    ("hash", ColumnType::Bytea, "NOT NULL"),
    ("shape", ColumnType::Integer, "NOT NULL"),
    ("raw", ColumnType::Bytea, ""),
    ("source_time", ColumnType::Timestamptz, ""),
];

/// When the row was written, by PostgreSQL's clock.
pub const SYNCED_AT: &str = "synced_at";

/// Columns that a child's table has before those that are declared.
pub const CHILD_COLUMNS: [(&str, ColumnType); 2] =
    [("_id", ColumnType::Bytea), ("position", ColumnType::Integer)];

/// The table of a collection.
#[derive(Clone, Debug, PartialEq)]
pub struct Table {
    pub ns: Namespace,
    pub schema: String,
    pub name: String,
    pub columns: Vec<ColumnRule>,
    pub children: Vec<Child>,
}

/// The table of an array.
#[derive(Clone, Debug, PartialEq)]
pub struct Child {
    pub schema: String,
    pub name: String,
    pub path: String,
    pub columns: Vec<ColumnRule>,
}

impl Table {
    pub fn of(ns: &Namespace, mapping: &Mapping) -> Self {
        let schema = names::schema(ns.db()).into_owned();
        let is_childs = |(of, child): &(Namespace, ChildRule)| {
            of.db() == ns.db() && names::fitting(&child.table) == names::fitting(ns.coll())
        };
        // A table that was declared has its name; what a collection is called by chance gives way.
        let name = if mapping.children.iter().any(is_childs) {
            names::marked(ns.coll(), ns.as_str())
        } else {
            names::fitting(ns.coll()).into_owned()
        };
        let columns = mapping.columns.iter().filter(|(of, _)| of == ns);
        let children = mapping.children.iter().filter(|(of, _)| of == ns);
        Self {
            ns: ns.clone(),
            columns: columns.map(|(_, column)| column.clone()).collect(),
            children: children
                .map(|(_, child)| Child {
                    schema: schema.clone(),
                    name: names::fitting(&child.table).into_owned(),
                    path: child.path.clone(),
                    columns: child.columns.clone(),
                })
                .collect(),
            schema,
            name,
        }
    }

    /// As SQL names it.
    pub fn quoted(&self) -> String {
        format!("{}.{}", names::quoted(&self.schema), names::quoted(&self.name))
    }

    /// Itself and its children, as SQL names each, with its columns.
    pub fn all(&self) -> impl Iterator<Item = (String, Vec<(&str, ColumnType)>)> {
        let own = (self.quoted(), self.types().collect());
        let children = self.children.iter();
        std::iter::once(own).chain(children.map(|of| (of.quoted(), of.types().collect())))
    }

    /// Names and types of all columns that a row fills.
    pub fn types(&self) -> impl Iterator<Item = (&str, ColumnType)> {
        let own = OWN_COLUMNS.iter().map(|(name, ty, _)| (*name, *ty));
        own.chain(self.columns.iter().map(|column| (&*column.name, column.ty)))
    }
}

impl Child {
    /// As SQL names it.
    pub fn quoted(&self) -> String {
        format!("{}.{}", names::quoted(&self.schema), names::quoted(&self.name))
    }

    pub fn types(&self) -> impl Iterator<Item = (&str, ColumnType)> {
        let own = CHILD_COLUMNS.into_iter();
        own.chain(self.columns.iter().map(|column| (&*column.name, column.ty)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;

    #[test]
    fn no_column_can_be_declared_by_a_name_that_every_table_has() {
        let own: Vec<_> = OWN_COLUMNS.iter().map(|(name, ..)| *name).chain([SYNCED_AT]).collect();
        assert_eq!(own, config::OWN_COLUMNS);
    }

    #[test]
    fn a_collection_gives_way_to_a_child_of_its_name() {
        let child = ChildRule { path: "items".into(), table: "lines".into(), columns: Vec::new() };
        let mapping = Mapping {
            columns: Vec::new(),
            children: vec![("shop.orders".parse().unwrap(), child)],
        };
        let name = |ns: &str| Table::of(&ns.parse().unwrap(), &mapping).name;

        assert_eq!(name("shop.orders"), "orders");
        assert!(name("shop.lines").starts_with("lines_"));
        assert_eq!(name("crm.lines"), "lines");
    }
}
