//! The print of a row: one hash of everything that a document makes of it, taken by PostgreSQL where the row is, and
//! here of the row that it should be.
//!
//! A row's `hash` says which document it was made of, and nothing of what somebody has done to it since. So what is
//! compared is what stands there now: each cell in the binary form in which it is sent and received, the rows of the
//! children with it, and what `outrigger.failures` says of a document whose `doc` is not all. Left out are `_id`, by which it was found, and the times.

use bytes::BytesMut;
use sha2::{Digest, Sha256};

use super::{
    cell::Cell,
    jsonb,
    names::{OWN_SCHEMA, literal, quoted},
    row::Row,
    table::{Child, OWN_COLUMNS, Table},
};
use crate::config::ColumnType;

/// The hash of no value.
const NULL: [u8; 32] = [0; 32];

/// Columns that are not in it.
const LEFT_OUT: [&str; 2] = ["_id", "source_time"];

/// Of the row that a document makes.
pub fn of(row: &Row) -> [u8; 32] {
    let mut sum = Sha256::new();
    let own = OWN_COLUMNS.iter().map(|(name, ..)| LEFT_OUT.contains(name));
    let is_left_out = own.chain(std::iter::repeat(false));
    for (cell, _) in row.cells.iter().zip(is_left_out).filter(|(_, is_left_out)| !is_left_out) {
        sum.update(of_cell(cell));
    }
    for child in &row.children {
        let mut elements = Sha256::new();
        for cell in child.iter().flat_map(|cells| &cells[1..]) {
            elements.update(of_cell(cell));
        }
        sum.update(elements.finalize());
    }
    sum.update(of_losses(row));
    sum.finalize().into()
}

fn of_losses(row: &Row) -> [u8; 32] {
    let mut told: Vec<_> =
        row.losses.iter().map(|loss| (loss.path.replace('\0', "\u{FFFD}"), loss.what)).collect();
    told.sort_unstable();
    let mut sum = Sha256::new();
    for (path, what) in told {
        for text in [path.as_str(), what] {
            sum.update(text);
            sum.update([0]);
        }
    }
    sum.finalize().into()
}

fn of_cell(cell: &Cell) -> [u8; 32] {
    let mut bytes = BytesMut::new();
    match cell {
        Cell::Null => return NULL,
        Cell::Json(json) => Cell::Json(jsonb::text_of(json)).put(&mut bytes),
        cell => cell.put(&mut bytes),
    }
    // Without the length in front.
    Sha256::digest(&bytes[4..]).into()
}

/// The same of the row `t` that is there, as SQL.
pub fn sql(table: &Table) -> String {
    let own = table.types().filter(|(name, _)| !LEFT_OUT.contains(name));
    let cells = own.map(|(name, ty)| cell("t", name, ty));
    let children = table.children.iter().map(of_child);
    let all = cells.chain(children).chain([losses(table)]);
    format!("sha256({})", all.collect::<Vec<_>>().join(" || "))
}

/// Looked for only where `raw` says that there may be some.
fn losses(table: &Table) -> String {
    format!(
        "sha256(CASE WHEN t.raw IS NULL THEN '' ELSE coalesce((SELECT string_agg(convert_to(f.path, 'UTF8') || '\\x00' \
         || convert_to(f.error, 'UTF8') || '\\x00', ''::bytea ORDER BY f.path COLLATE \"C\") FROM {}.failures f \
         WHERE f.ns = {} AND f._id = t._id AND f.state = 'INEXACT'), '') END)",
        quoted(OWN_SCHEMA),
        literal(table.ns.as_str())
    )
}

fn of_child(child: &Child) -> String {
    let cells: Vec<_> = child.types().skip(1).map(|(name, ty)| cell("c", name, ty)).collect();
    format!(
        "sha256(coalesce((SELECT string_agg({}, ''::bytea ORDER BY c.position) FROM {} c WHERE c._id = t._id), ''))",
        cells.join(" || "),
        child.quoted()
    )
}

fn cell(of: &str, name: &str, ty: ColumnType) -> String {
    let sent = match ty {
        ColumnType::Text => "textsend",
        ColumnType::Integer => "int4send",
        ColumnType::Bigint => "int8send",
        ColumnType::Double => "float8send",
        ColumnType::Numeric => "numeric_send",
        ColumnType::Boolean => "boolsend",
        ColumnType::Timestamptz => "timestamptz_send",
        ColumnType::Uuid => "uuid_send",
        ColumnType::Bytea => "byteasend",
        ColumnType::Jsonb => "jsonb_send",
    };
    format!("coalesce(sha256({sent}({of}.{})), '\\x{}')", quoted(name), "00".repeat(NULL.len()))
}
