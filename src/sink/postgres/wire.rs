//! Values as PostgreSQL is sent them, in its binary form.

use bytes::{BufMut, BytesMut};
use tokio_postgres::types::{Format, IsNull, Kind, ToSql, Type, to_sql_checked};

use super::cell::{Cell, Numeric};
use crate::config::ColumnType;

/// The type of an array of values of a column, as a parameter has it: of `jsonb` its text.
pub fn array_of(ty: ColumnType) -> Type {
    match ty {
        ColumnType::Text | ColumnType::Jsonb => Type::TEXT_ARRAY,
        ColumnType::Integer => Type::INT4_ARRAY,
        ColumnType::Bigint => Type::INT8_ARRAY,
        ColumnType::Double => Type::FLOAT8_ARRAY,
        ColumnType::Numeric => Type::NUMERIC_ARRAY,
        ColumnType::Boolean => Type::BOOL_ARRAY,
        ColumnType::Timestamptz => Type::TIMESTAMPTZ_ARRAY,
        ColumnType::Uuid => Type::UUID_ARRAY,
        ColumnType::Bytea => Type::BYTEA_ARRAY,
    }
}

/// What a `jsonb` begins with in its binary form, before its text.
const JSONB_VERSION: u8 = 1;

impl Cell {
    /// As a value of its column's own type: the length, then the bytes; a length of -1 is NULL.
    pub fn put(&self, out: &mut BytesMut) {
        self.put_as(out, &[JSONB_VERSION]);
    }

    /// With these bytes before the text of a `jsonb`.
    fn put_as(&self, out: &mut BytesMut, before_json: &[u8]) {
        if *self == Cell::Null {
            return out.put_i32(-1);
        }
        let start = out.len();
        out.put_i32(0);
        match self {
            Cell::Null => {}
            Cell::Text(text) => out.put_slice(text.as_bytes()),
            Cell::Int4(v) => out.put_i32(*v),
            Cell::Int8(v) | Cell::Moment(v) => out.put_i64(*v),
            Cell::Float8(v) => out.put_f64(*v),
            Cell::Numeric(number) => number.put(out),
            Cell::Bool(v) => out.put_u8(u8::from(*v)),
            Cell::Uuid(id) => out.put_slice(id),
            Cell::Bytes(bytes) => out.put_slice(bytes),
            Cell::Json(text) => {
                out.put_slice(before_json);
                out.put_slice(text.as_bytes());
            }
        }
        let len = (out.len() - start - 4) as i32;
        out[start..start + 4].copy_from_slice(&len.to_be_bytes());
    }
}

/// A parameter that is the array of one column's values: all of them of the type that the statement names.
#[derive(Debug)]
pub struct Column<'a>(pub Vec<&'a Cell>);

impl ToSql for Column<'_> {
    fn to_sql(
        &self,
        ty: &Type,
        out: &mut BytesMut,
    ) -> Result<IsNull, Box<dyn std::error::Error + Sync + Send>> {
        let Kind::Array(of) = ty.kind() else {
            return Err("a column that is sent as no array".into());
        };
        out.reserve(self.0.iter().map(|cell| cell.size() + 4).sum::<usize>() + 20);
        out.put_i32(1);
        out.put_i32(i32::from(self.0.contains(&&Cell::Null)));
        out.put_u32(of.oid());
        out.put_i32(i32::try_from(self.0.len())?);
        out.put_i32(1);
        for cell in &self.0 {
            cell.put_as(out, &[]);
        }
        Ok(IsNull::No)
    }

    fn accepts(ty: &Type) -> bool {
        matches!(ty.kind(), Kind::Array(_))
    }

    fn encode_format(&self, _: &Type) -> Format {
        Format::Binary
    }

    to_sql_checked!();
}

impl Numeric {
    fn put(&self, out: &mut BytesMut) {
        out.put_i16(self.groups.len() as i16);
        out.put_i16(self.weight);
        out.put_u16(self.sign);
        out.put_u16(self.scale);
        for group in &self.groups {
            out.put_i16(*group);
        }
    }
}
