//! A declared column: from a value of a document, by its path, to a value of the column's type.
//!
//! A value of another type is NULL there and counted; the document itself holds it. Only what the type can hold
//! exactly counts as of its type: 2.5 is no integer, and a long beyond 2^53 no double.

use super::{
    cell::{Cell, Numeric},
    json::{self, Json},
    moment,
};
use crate::{
    config::ColumnType,
    model::raw::{self, kind},
};

/// A value that a path has led to.
#[derive(Clone, Copy, Debug)]
pub struct Found<'a> {
    pub kind: u8,
    pub value: &'a [u8],
}

/// What a column holds of a value.
#[derive(Clone, Debug, PartialEq)]
pub enum Fit {
    Is(Cell),
    /// Nothing, or null, which every column can be.
    Nothing,
    /// A value of another type.
    Not,
}

impl From<Option<Cell>> for Fit {
    fn from(cell: Option<Cell>) -> Self {
        cell.map_or(Fit::Not, Fit::Is)
    }
}

/// `found` in a column of this type.
pub fn fit(ty: ColumnType, found: Option<Found<'_>>) -> Fit {
    let Some(Found { kind, value }) = found else { return Fit::Nothing };
    if matches!(kind, kind::NULL | kind::UNDEFINED) && ty != ColumnType::Jsonb {
        return Fit::Nothing;
    }
    let cell = match ty {
        ColumnType::Text => text(kind, value).map(Cell::Text),
        ColumnType::Integer => whole(kind, value).and_then(|v| v.try_into().ok()).map(Cell::Int4),
        ColumnType::Bigint => whole(kind, value).map(Cell::Int8),
        ColumnType::Double => double(kind, value).map(Cell::Float8),
        ColumnType::Numeric => numeric(kind, value).map(Cell::Numeric),
        ColumnType::Boolean => (kind == kind::BOOL).then(|| Cell::Bool(value != [0])),
        ColumnType::Timestamptz => match kind {
            kind::DATE_TIME => {
                fixed(value).map(i64::from_le_bytes).and_then(moment::to_pg).map(Cell::Moment)
            }
            _ => None,
        },
        ColumnType::Uuid => match (kind, value.get(4), value.get(5..)) {
            (kind::BINARY, Some(4), Some(id)) => id.try_into().ok().map(Cell::Uuid),
            _ => None,
        },
        ColumnType::Bytea => match kind {
            kind::BINARY => value.get(5..).map(|bytes| Cell::Bytes(bytes.to_vec())),
            _ => None,
        },
        ColumnType::Jsonb => Json::of(kind, value).ok().map(|(text, _)| Cell::Json(text)),
    };
    cell.into()
}

fn fixed<const N: usize>(value: &[u8]) -> Option<[u8; N]> {
    value.try_into().ok()
}

fn text(kind: u8, value: &[u8]) -> Option<String> {
    match kind {
        kind::STRING | kind::SYMBOL => {
            raw::string(value).filter(|text| !text.contains('\0')).map(str::to_owned)
        }
        kind::OBJECT_ID => {
            let mut digits = String::with_capacity(24);
            json::hex(value, &mut digits);
            Some(digits)
        }
        kind::BINARY if value.get(4) == Some(&4) => value.get(5..)?.try_into().ok().map(json::uuid),
        _ => None,
    }
}

/// A whole number, of whatever type: some drivers write every number as a double.
fn whole(kind: u8, value: &[u8]) -> Option<i64> {
    match kind {
        kind::INT32 => fixed(value).map(|v| i32::from_le_bytes(v).into()),
        kind::INT64 => fixed(value).map(i64::from_le_bytes),
        kind::DOUBLE => {
            let v = f64::from_le_bytes(fixed(value)?);
            // Both bounds are doubles; the upper one is no i64 any more.
            let is_one = v.trunc() == v && (i64::MIN as f64..i64::MAX as f64).contains(&v);
            is_one.then_some(v as i64)
        }
        kind::DECIMAL128 => {
            Numeric::parse(&bson::Decimal128::from_bytes(fixed(value)?).to_string())?.whole()
        }
        _ => None,
    }
}

fn double(kind: u8, value: &[u8]) -> Option<f64> {
    match kind {
        kind::DOUBLE => fixed(value).map(f64::from_le_bytes),
        kind::INT32 => fixed(value).map(|v| i32::from_le_bytes(v).into()),
        kind::INT64 => {
            let v = i64::from_le_bytes(fixed(value)?);
            (v.unsigned_abs() <= 1 << 53).then_some(v as f64)
        }
        _ => None,
    }
}

fn numeric(kind: u8, value: &[u8]) -> Option<Numeric> {
    match kind {
        kind::INT32 | kind::INT64 => Numeric::parse(&whole(kind, value)?.to_string()),
        // The shortest digits that make this double again.
        kind::DOUBLE => Numeric::parse(&match f64::from_le_bytes(fixed(value)?) {
            v if v.is_nan() => "NaN".to_owned(),
            v => format!("{v:e}"),
        }),
        kind::DECIMAL128 => {
            Numeric::parse(&bson::Decimal128::from_bytes(fixed(value)?).to_string())
        }
        _ => None,
    }
}
