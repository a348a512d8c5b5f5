//! The primary key: a document's `_id` as bytes that PostgreSQL sorts as MongoDB sorts the `_id`.
//!
//! Both sides of a comparison are walked in one order, and only the server's own order is one for both. So the bytes
//! must sort, byte by byte, as an index of MongoDB does without a collation; and they must be equal exactly where
//! MongoDB holds two `_id`s for one: `1`, `1.0`, `NumberLong(1)` and `NumberDecimal("1.00")`, `0` and `-0.0`, a `NaN`
//! and another, a string and a symbol of the same text.
//! [`DocumentKey::canonical`](crate::model::document_key::DocumentKey::canonical) is the same idea of equality
//! without the order.
//!
//! A value is a tag for its type, in MongoDB's order of types, and a body that ends itself, so that one that begins
//! another is less. Tests compare both with a real server's sort.
//!
//! | type | body |
//! | --- | --- |
//! | numbers | sign, exponent, decimal digits: exact for doubles and decimals alike |
//! | strings, symbols, code | the bytes, `00` as `00 FF`, then `00` |
//! | documents | for each field tag, name, value; then `00` |
//! | arrays | the values; then `00` |
//! | binary | length, subtype, bytes |
//! | others | fixed, the sign turned over |

use crate::model::raw::{self, Malformed, kind};

/// MongoDB refuses documents nested deeper than 180; beyond that the bytes are hostile.
const DEPTH_MAX: usize = 200;

/// MongoDB's order of types. None is zero, which ends what holds others, before every other value.
pub(super) mod tag {
    pub const MIN_KEY: u8 = 10;
    pub const UNDEFINED: u8 = 15;
    pub const NULL: u8 = 20;
    pub const NUMBER: u8 = 30;
    pub const STRING: u8 = 60;
    pub const DOCUMENT: u8 = 70;
    pub const ARRAY: u8 = 80;
    pub const BINARY: u8 = 90;
    pub const OBJECT_ID: u8 = 100;
    pub const BOOL: u8 = 110;
    pub const DATE_TIME: u8 = 120;
    pub const TIMESTAMP: u8 = 130;
    pub const REGEX: u8 = 140;
    pub const DB_POINTER: u8 = 150;
    pub const CODE: u8 = 160;
    pub const CODE_WITH_SCOPE: u8 = 170;
    pub const MAX_KEY: u8 = 240;
}

/// The key of a value, of a type and with the bytes that it has in a document.
///
/// # Errors
/// [`Malformed`] for bytes that are no such value.
pub fn encode(kind: u8, value: &[u8]) -> Result<Vec<u8>, Malformed> {
    let mut out = Vec::with_capacity(value.len() + 8);
    append(kind, None, value, 0, &mut out)?;
    Ok(out)
}

fn append(
    kind: u8,
    name: Option<&[u8]>,
    value: &[u8],
    depth: usize,
    out: &mut Vec<u8>,
) -> Result<(), Malformed> {
    if depth > DEPTH_MAX {
        return Err(Malformed("nested too deeply".into()));
    }
    out.push(tag_of(kind)?);
    // The type comes before the name: of two documents with fields of different types the types decide.
    if let Some(name) = name {
        out.extend_from_slice(name);
        out.push(0);
    }
    match kind {
        kind::DOUBLE => number::double(f64::from_le_bytes(fixed(value)?), out),
        kind::INT32 => number::integer(i32::from_le_bytes(fixed(value)?).into(), out),
        kind::INT64 => number::integer(i64::from_le_bytes(fixed(value)?), out),
        kind::DECIMAL128 => number::decimal(u128::from_le_bytes(fixed(value)?), out),
        kind::STRING | kind::SYMBOL | kind::CODE => escaped(text(value)?, out),
        kind::DOCUMENT => {
            for field in raw::fields(raw::nested(value)?) {
                let field = field?;
                append(field.kind, Some(field.name), field.value, depth + 1, out)?;
            }
            out.push(0);
        }
        kind::ARRAY => {
            for field in raw::fields(raw::nested(value)?) {
                let field = field?;
                append(field.kind, None, field.value, depth + 1, out)?;
            }
            out.push(0);
        }
        kind::BINARY => {
            let bytes = value.get(5..).ok_or_else(misfit)?;
            out.extend_from_slice(&(bytes.len() as u32).to_be_bytes());
            out.push(value[4]);
            out.extend_from_slice(bytes);
        }
        kind::OBJECT_ID | kind::BOOL => out.extend_from_slice(value),
        kind::DATE_TIME => {
            let millis = i64::from_le_bytes(fixed(value)?);
            out.extend_from_slice(&((millis as u64) ^ (1 << 63)).to_be_bytes());
        }
        kind::TIMESTAMP => out.extend_from_slice(&u64::from_le_bytes(fixed(value)?).to_be_bytes()),
        // Two texts that end in NUL, so that the pattern decides first.
        kind::REGEX => out.extend_from_slice(value),
        kind::DB_POINTER => {
            let (text, id) = value.split_last_chunk::<12>().ok_or_else(misfit)?;
            let text = self::text(text)?;
            out.extend_from_slice(&(text.len() as u32).to_be_bytes());
            out.extend_from_slice(text);
            out.extend_from_slice(id);
        }
        kind::CODE_WITH_SCOPE => {
            let inside = value.get(4..).ok_or_else(misfit)?;
            let len = u32::from_le_bytes(*inside.first_chunk().ok_or_else(misfit)?) as usize;
            let (code, scope) = inside.split_at_checked(4 + len).ok_or_else(misfit)?;
            escaped(text(code)?, out);
            append(kind::DOCUMENT, None, scope, depth + 1, out)?;
        }
        _ => {}
    }
    Ok(())
}

fn tag_of(kind: u8) -> Result<u8, Malformed> {
    Ok(match kind {
        kind::MIN_KEY => tag::MIN_KEY,
        kind::UNDEFINED => tag::UNDEFINED,
        kind::NULL => tag::NULL,
        kind::DOUBLE | kind::INT32 | kind::INT64 | kind::DECIMAL128 => tag::NUMBER,
        kind::STRING | kind::SYMBOL => tag::STRING,
        kind::DOCUMENT => tag::DOCUMENT,
        kind::ARRAY => tag::ARRAY,
        kind::BINARY => tag::BINARY,
        kind::OBJECT_ID => tag::OBJECT_ID,
        kind::BOOL => tag::BOOL,
        kind::DATE_TIME => tag::DATE_TIME,
        kind::TIMESTAMP => tag::TIMESTAMP,
        kind::REGEX => tag::REGEX,
        kind::DB_POINTER => tag::DB_POINTER,
        kind::CODE => tag::CODE,
        kind::CODE_WITH_SCOPE => tag::CODE_WITH_SCOPE,
        kind::MAX_KEY => tag::MAX_KEY,
        _ => return Err(Malformed("a value of no known type".into())),
    })
}

fn misfit() -> Malformed {
    Malformed("a value that is too short for its type".into())
}

fn fixed<const N: usize>(value: &[u8]) -> Result<[u8; N], Malformed> {
    value.try_into().map_err(|_| misfit())
}

/// What a string's bytes hold, without the length in front and the NUL behind.
fn text(value: &[u8]) -> Result<&[u8], Malformed> {
    value.get(4..value.len().wrapping_sub(1)).ok_or_else(misfit)
}

/// A string may hold NUL itself.
fn escaped(bytes: &[u8], out: &mut Vec<u8>) {
    for &byte in bytes {
        out.push(byte);
        if byte == 0 {
            out.push(0xFF);
        }
    }
    out.push(0);
}

/// Numbers, exactly: every value of the four types has a finite decimal expansion, so its sign, its exponent and
/// its digits are one form for all of them.
pub(super) mod number {
    pub(in super::super) const NAN: u8 = 0;
    pub(in super::super) const NEGATIVE_INFINITY: u8 = 1;
    pub(in super::super) const NEGATIVE: u8 = 2;
    pub(in super::super) const ZERO: u8 = 3;
    pub(in super::super) const POSITIVE: u8 = 4;
    pub(in super::super) const INFINITY: u8 = 5;

    /// More than the exponent of any double or decimal (-6176 to 6144).
    pub(in super::super) const BIAS: i32 = 1 << 14;

    pub(super) fn integer(v: i64, out: &mut Vec<u8>) {
        digits(v < 0, v.unsigned_abs().into(), 0, out);
    }

    pub(in super::super) fn double(v: f64, out: &mut Vec<u8>) {
        if v.is_nan() {
            return out.push(NAN);
        }
        if v.is_infinite() {
            return out.push(if v < 0.0 { NEGATIVE_INFINITY } else { INFINITY });
        }
        if v.abs() < (1_u64 << 53) as f64 && v.trunc() == v {
            return integer(v as i64, out);
        }
        // All digits that a double can have: the formatter of the standard library is exact.
        let text = format!("{:.766e}", v.abs());
        let Some((mantissa, exponent)) = text.split_once('e') else { return out.push(NAN) };
        let mut mantissa: Vec<u8> =
            mantissa.bytes().filter(u8::is_ascii_digit).map(|digit| digit - b'0').collect();
        while mantissa.last() == Some(&0) {
            mantissa.pop();
        }
        finite(v < 0.0, &mantissa, exponent.parse().unwrap_or_default(), out);
    }

    /// IEEE 754-2008 decimal128 with a binary significand, which above 34 digits counts as zero.
    pub(super) fn decimal(bits: u128, out: &mut Vec<u8>) {
        const MAX: u128 = 9_999_999_999_999_999_999_999_999_999_999_999;
        let is_negative = bits >> 127 == 1;
        let combination = (bits >> 122) & 0x1F;
        match combination {
            0x1F => return out.push(NAN),
            0x1E => return out.push(if is_negative { NEGATIVE_INFINITY } else { INFINITY }),
            combination if combination >> 3 == 3 => return out.push(ZERO),
            _ => {}
        }
        let exponent = ((bits >> 113) & 0x3FFF) as i32 - 6176;
        let significand = bits & ((1 << 113) - 1);
        digits(is_negative, if significand > MAX { 0 } else { significand }, exponent, out);
    }

    /// `±n · 10^exponent`.
    fn digits(is_negative: bool, mut n: u128, exponent: i32, out: &mut Vec<u8>) {
        if n == 0 {
            return out.push(ZERO);
        }
        let mut reversed = [0; 39];
        let mut len = 0;
        while n > 0 {
            reversed[len] = (n % 10) as u8;
            n /= 10;
            len += 1;
        }
        let exponent = exponent + len as i32 - 1;
        let significant = reversed.iter().position(|digit| *digit != 0).unwrap_or_default();
        let digits = &mut reversed[significant..len];
        digits.reverse();
        finite(is_negative, digits, exponent, out);
    }

    /// `±d.ddd · 10^exponent`, without zeros at the end. Two digits to a byte, none of which is zero, then zero.
    pub(in super::super) fn finite(
        is_negative: bool,
        digits: &[u8],
        exponent: i32,
        out: &mut Vec<u8>,
    ) {
        out.push(if is_negative { NEGATIVE } else { POSITIVE });
        let start = out.len();
        out.extend_from_slice(&((exponent + BIAS) as u16).to_be_bytes());
        for pair in digits.chunks(2) {
            out.push(pair[0] * 10 + pair.get(1).copied().unwrap_or_default() + 1);
        }
        out.push(0);
        if is_negative {
            for byte in &mut out[start..] {
                *byte = !*byte;
            }
        }
    }
}
