//! The statements that write rows: their text, which depends on the table alone, and their parameters.
//!
//! They are [planned](super::fence) without a look at their parameters, so none of them leaves the planner a choice that
//! depends on how long an array is: rows are found by their keys, one after the other.

use tokio_postgres::types::Type;

use super::{
    cell::Cell,
    names::{OWN_SCHEMA, literal, quoted},
    row::Row,
    table::{Child, SYNCED_AT, Table},
    wire::{self, Column},
};
use crate::config::ColumnType;

fn list<'a>(names: impl Iterator<Item = &'a str>) -> String {
    names.map(quoted).collect::<Vec<_>>().join(", ")
}

/// The rows that the arrays of [`columns`] are, one array for each column.
///
/// The arrays are taken apart side by side as the rows are asked for: in `FROM` each of them would become a table of its own
/// first. A document is sent as text and becomes `jsonb` row by row: an array of `jsonb` is made as a whole, with all that
/// the parser takes for 500 documents at a time, which the server asks of its system for each statement anew.
fn rows(types: impl Iterator<Item = ColumnType>) -> String {
    let (values, arrays): (Vec<_>, Vec<_>) = types
        .zip(1..)
        .map(|(ty, n)| {
            let value = match ty {
                ColumnType::Jsonb => format!("c{n}::jsonb"),
                _ => format!("c{n}"),
            };
            (value, format!("unnest(${n}) AS c{n}"))
        })
        .unzip();
    format!("SELECT {} FROM (SELECT {}) AS t", values.join(", "), arrays.join(", "))
}

/// Writes rows whole, whether they are there or not. Says of each, in their order, whether it was not.
pub fn upsert(table: &Table) -> String {
    let names: Vec<_> = table.types().map(|(name, _)| name).collect();
    let changed: Vec<_> = names[1..]
        .iter()
        .map(|name| format!("{0} = EXCLUDED.{0}", quoted(name)))
        .chain([format!("{} = now()", quoted(SYNCED_AT))])
        .collect();
    format!(
        "INSERT INTO {} ({}) {} ON CONFLICT (_id) DO UPDATE SET {} RETURNING xmax = 0",
        table.quoted(),
        list(names.iter().copied()),
        rows(table.types().map(|(_, ty)| ty)),
        changed.join(", ")
    )
}

/// The same rows by `COPY`, into a table that has none of them.
pub fn copy(table: &Table) -> String {
    format!(
        "COPY {} ({}) FROM STDIN (FORMAT binary)",
        table.quoted(),
        list(table.types().map(|(name, _)| name))
    )
}

/// As [`copy`], of a child.
pub fn copy_child(child: &Child) -> String {
    format!(
        "COPY {} ({}) FROM STDIN (FORMAT binary)",
        child.quoted(),
        list(child.types().map(|(name, _)| name))
    )
}

/// Rows of a child, of documents that have none there.
pub fn insert_child(child: &Child) -> String {
    let names = child.types().map(|(name, _)| name);
    let rows = rows(child.types().map(|(_, ty)| ty));
    format!("INSERT INTO {} ({}) {rows}", child.quoted(), list(names))
}

/// Everything of these documents in a table.
pub fn delete(table: &str) -> String {
    format!("DELETE FROM {table} AS t USING unnest($1) AS k (_id) WHERE t._id = k._id")
}

/// Everything of these documents in a child.
///
/// That a position is an integer, whichever, is said for the planner, which knows nothing of a table that was never
/// analyzed: else it takes each document to have a two-hundredth of all rows, and reads all of them for each batch.
pub fn delete_children(child: &Child) -> String {
    let all = format!("'{}'::integer AND '{}'::integer", i32::MIN, i32::MAX);
    format!("{} AND t.position BETWEEN {all}", delete(&child.quoted()))
}

/// What was said of these documents before. The usual table says nothing of any.
pub fn forget_failures(table: &Table) -> String {
    let failures = format!("{}.failures", quoted(OWN_SCHEMA));
    let ns = literal(table.ns.as_str());
    format!(
        "DELETE FROM {failures} AS f USING unnest($1) AS k (_id) WHERE f.ns = {ns} AND f._id = k._id \
         AND EXISTS (SELECT FROM {failures} WHERE ns = {ns})"
    )
}

/// What is to be said of them now: key, id, state, path, problem.
pub fn note_failures(table: &Table) -> String {
    format!(
        "INSERT INTO {}.failures (ns, _id, id, state, path, error) SELECT {}, * FROM unnest($1, $2, $3, $4, $5) \
         ON CONFLICT (ns, _id, state, path) DO UPDATE SET error = EXCLUDED.error, at = now()",
        quoted(OWN_SCHEMA),
        literal(table.ns.as_str())
    )
}

/// The types of [`note_failures`].
pub const NOTED: [Type; 5] =
    [Type::BYTEA_ARRAY, Type::TEXT_ARRAY, Type::TEXT_ARRAY, Type::TEXT_ARRAY, Type::TEXT_ARRAY];

/// The columns of rows, as parameters of [`upsert`] or [`insert_child`].
pub fn columns<'a>(
    types: impl Iterator<Item = ColumnType>,
    rows: &[&'a [Cell]],
) -> Vec<(Column<'a>, Type)> {
    types
        .enumerate()
        .map(|(at, ty)| (Column(rows.iter().map(|row| &row[at]).collect()), wire::array_of(ty)))
        .collect()
}

/// The rows of one child, of many documents.
pub fn child_rows<'a>(rows: &[&'a Row], child: usize) -> Vec<&'a [Cell]> {
    rows.iter().flat_map(|row| row.children[child].iter().map(Vec::as_slice)).collect()
}
