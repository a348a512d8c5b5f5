//! Values of a row, as PostgreSQL has them.

/// One value of a row.
#[derive(Clone, Debug, PartialEq)]
pub enum Cell {
    Null,
    Text(String),
    Int4(i32),
    Int8(i64),
    Float8(f64),
    Numeric(Numeric),
    Bool(bool),
    /// Microseconds from 2000.
    Moment(i64),
    Uuid([u8; 16]),
    Bytes(Vec<u8>),
    Json(String),
}

impl Cell {
    /// Bytes that it has when it is sent, about.
    pub fn size(&self) -> usize {
        match self {
            Cell::Null => 0,
            Cell::Text(text) => text.len(),
            Cell::Json(text) => text.len() + 1,
            Cell::Bytes(bytes) => bytes.len(),
            Cell::Int4(_) | Cell::Bool(_) => 4,
            Cell::Int8(_) | Cell::Float8(_) | Cell::Moment(_) => 8,
            Cell::Uuid(_) => 16,
            Cell::Numeric(number) => 8 + 2 * number.groups.len(),
        }
    }
}

/// A decimal number of any length, in PostgreSQL's own digits of base 10,000.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Numeric {
    pub groups: Vec<i16>,
    pub weight: i16,
    pub sign: u16,
    pub scale: u16,
}

const NEGATIVE: u16 = 0x4000;
const NAN: u16 = 0xC000;
const INFINITY: u16 = 0xD000;
const NEGATIVE_INFINITY: u16 = 0xF000;

/// PostgreSQL's own limit on digits behind the point.
const SCALE_MAX: i64 = 16_383;

impl Numeric {
    /// Of a number as `Decimal128` and the standard library write them: `-12.50`, `1E+3`, `NaN`. `None` for anything
    /// else, and for one that PostgreSQL has no room for.
    pub fn parse(text: &str) -> Option<Self> {
        let special = |sign| Some(Self { groups: Vec::new(), weight: 0, sign, scale: 0 });
        match text {
            "NaN" => return special(NAN),
            "Infinity" | "inf" => return special(INFINITY),
            "-Infinity" | "-inf" => return special(NEGATIVE_INFINITY),
            _ => {}
        }
        let (sign, text) = text.strip_prefix('-').map_or((0, text), |text| (NEGATIVE, text));
        let (mantissa, exponent) = match text.split_once(['e', 'E']) {
            Some((mantissa, exponent)) => (mantissa, exponent.parse::<i64>().ok()?),
            None => (text, 0),
        };
        let (whole, part) = mantissa.split_once('.').unwrap_or((mantissa, ""));
        let digits: Vec<u8> = whole.bytes().chain(part.bytes()).collect();
        if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
            return None;
        }
        // Digits before the point, which may be less than none.
        let point = whole.len() as i64 + exponent;
        let scale = (digits.len() as i64 - point).max(0);
        if scale > SCALE_MAX {
            return None;
        }
        // The first group is filled with zeros from the left, so that the point falls between two groups.
        let lead = (4 - point.rem_euclid(4)) % 4;
        let mut padded = vec![b'0'; usize::try_from(lead).ok()?];
        padded.extend_from_slice(&digits);
        while !padded.len().is_multiple_of(4) {
            padded.push(b'0');
        }
        let mut groups: Vec<i16> = padded
            .chunks(4)
            .map(|group| group.iter().fold(0, |n, digit| n * 10 + i16::from(digit - b'0')))
            .collect();
        let mut weight = (point + lead) / 4 - 1;
        let zeros = groups.iter().take_while(|group| **group == 0).count();
        groups.drain(..zeros);
        weight -= zeros as i64;
        while groups.last() == Some(&0) {
            groups.pop();
        }
        if groups.is_empty() {
            weight = 0;
        }
        let sign = if groups.is_empty() { 0 } else { sign };
        Some(Self { groups, weight: weight.try_into().ok()?, sign, scale: scale as u16 })
    }

    /// The number where it is a whole one: `1E+3` and `2.00` are.
    pub fn whole(&self) -> Option<i64> {
        let is_negative = match self.sign {
            0 => false,
            NEGATIVE => true,
            _ => return None,
        };
        let behind =
            usize::try_from(i32::from(self.weight) + 1).ok()?.checked_sub(self.groups.len())?;
        let zeros = std::iter::repeat_n(&0, behind);
        let mut whole = 0_i64;
        for group in self.groups.iter().chain(zeros) {
            // Downwards, where there is room for one more.
            whole = whole.checked_mul(10_000)?.checked_sub((*group).into())?;
        }
        if is_negative { Some(whole) } else { whole.checked_neg() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_whole_number_is_one_however_it_is_written() {
        for (text, whole) in [
            ("0", Some(0)),
            ("-0E+3", Some(0)),
            ("0E-6176", Some(0)),
            ("2.00", Some(2)),
            ("1E+3", Some(1_000)),
            ("-1.2345E+8", Some(-123_450_000)),
            ("9223372036854775807", Some(i64::MAX)),
            ("-9223372036854775808", Some(i64::MIN)),
            ("9223372036854775808", None),
            ("1E+6111", None),
            ("-1E-6176", None),
            ("1.5", None),
            ("0.5", None),
            ("NaN", None),
            ("-Infinity", None),
        ] {
            assert_eq!(Numeric::parse(text).unwrap().whole(), whole, "{text}");
        }
    }
}
