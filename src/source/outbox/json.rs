//! JSON as documents, by Extended JSON. Pure.
//!
//! | in JSON | in the document |
//! | --- | --- |
//! | a whole number | an integer of 32 bits, of 64 where it needs them, else a double |
//! | another number | a double |
//! | `{"$oid": …}`, `{"$date": …}`, `{"$numberDecimal": …}` and the rest of Extended JSON | what it says |
//! | a value at a path of `dates` | a date: of RFC 3339, as PostgreSQL writes it, or of milliseconds since 1970 |
//! | a value at a path of `decimals` | a decimal of 34 digits, with every digit that stands there |
//!
//! A number is kept as its digits until it is known what it becomes: a decimal that has been a double is another one. So
//! JSON is read here, and not by a library that makes doubles of it.

use bson::{Bson, Document};

use crate::config::ValueRules;

/// Nested deeper, MongoDB takes it no more.
const DEPTH_MAX: usize = 100;

/// Why a text is no document.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct NotADocument(pub String);

/// A value as it stands in the text.
#[derive(Clone, Debug, PartialEq)]
enum Json {
    Null,
    Bool(bool),
    Number(String),
    String(String),
    Array(Vec<Json>),
    Object(Vec<(String, Json)>),
}

/// The value at `place` of a JSON text; `None` where nothing stands there.
///
/// # Errors
/// [`NotADocument`].
pub fn value(text: &str, place: &str, rules: &ValueRules) -> Result<Option<Bson>, NotADocument> {
    let mut json = Parser { rest: text.as_bytes() }.whole()?;
    for part in place.split('.').filter(|part| !part.is_empty()) {
        let Json::Object(fields) = json else { return Ok(None) };
        // Of a repeated name the last counts, as for PostgreSQL.
        let found = fields.into_iter().rev().find(|(name, _)| name == part);
        let Some((_, value)) = found else { return Ok(None) };
        json = value;
    }
    to_bson(json, "", rules).map(Some)
}

fn to_bson(json: Json, path: &str, rules: &ValueRules) -> Result<Bson, NotADocument> {
    let is = |paths: &[String]| paths.iter().any(|of| of == path);
    Ok(match json {
        Json::Null => Bson::Null,
        Json::Array(items) => Bson::Array(
            items.into_iter().map(|item| to_bson(item, path, rules)).collect::<Result<_, _>>()?,
        ),
        Json::Object(fields) if is_extended(&fields) => extended(fields, path)?,
        Json::Object(fields) => {
            let mut document = Document::new();
            for (name, value) in fields {
                if name.contains('\0') {
                    return Err(NotADocument("a field's name has a NUL in it".to_owned()));
                }
                let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                document.insert(name, to_bson(value, &path, rules)?);
            }
            Bson::Document(document)
        }
        Json::Number(digits) if is(&rules.decimals) => decimal(&digits, path)?,
        Json::String(digits) if is(&rules.decimals) => decimal(&digits, path)?,
        Json::String(text) if is(&rules.dates) => date(&text, path)?,
        Json::Number(millis) if is(&rules.dates) => {
            let millis = millis.parse::<i64>().map_err(|_| no_date(path))?;
            Bson::DateTime(bson::DateTime::from_millis(millis))
        }
        Json::Bool(value) => Bson::Boolean(value),
        Json::String(text) => Bson::String(text),
        Json::Number(digits) => number(&digits)?,
    })
}

fn number(digits: &str) -> Result<Bson, NotADocument> {
    if let Ok(whole) = digits.parse::<i64>() {
        return Ok(i32::try_from(whole).map_or(Bson::Int64(whole), Bson::Int32));
    }
    match digits.parse::<f64>() {
        Ok(number) if number.is_finite() => Ok(Bson::Double(number)),
        _ => Err(NotADocument(
            "a number is larger than a double; declare its path in `decimals`".to_owned(),
        )),
    }
}

fn decimal(digits: &str, path: &str) -> Result<Bson, NotADocument> {
    let decimal = digits.parse::<bson::Decimal128>();
    decimal.map(Bson::Decimal128).map_err(|_| {
        NotADocument(format!("`{path}` is declared a decimal, and is none of 34 digits"))
    })
}

fn no_date(path: &str) -> NotADocument {
    NotADocument(format!("`{path}` is declared a date, and is none"))
}

/// `2026-01-31`, `2026-01-31T10:00:00.123+00:00`, and the same with a space or without an offset, which is UTC then.
fn date(text: &str, path: &str) -> Result<Bson, NotADocument> {
    let text = text.trim();
    let mut full = text.replacen(' ', "T", 1);
    if !full.contains('T') {
        full.push_str("T00:00:00");
    }
    let time = full.split_once('T').map_or("", |(_, time)| time);
    if let Some(at) = time.rfind(['+', '-']) {
        // PostgreSQL writes `+00` as text, and `+00:00` in JSON.
        if time.len() - at == 3 {
            full.push_str(":00");
        }
    } else if !time.ends_with(['Z', 'z']) {
        full.push('Z');
    }
    bson::DateTime::parse_rfc3339_str(&full).map(Bson::DateTime).map_err(|_| no_date(path))
}

/// True for what Extended JSON says by an object: one name of it, or those that a few of its types have.
fn is_extended(fields: &[(String, Json)]) -> bool {
    const ALONE: &[&str] = &[
        "$oid",
        "$date",
        "$numberInt",
        "$numberLong",
        "$numberDouble",
        "$numberDecimal",
        "$binary",
        "$uuid",
        "$timestamp",
        "$regularExpression",
        "$minKey",
        "$maxKey",
        "$undefined",
        "$symbol",
        "$code",
        "$dbPointer",
    ];
    match fields {
        [(name, _)] => ALONE.contains(&name.as_str()),
        [(first, _), (second, _)] => first == "$code" && second == "$scope",
        _ => false,
    }
}

fn extended(fields: Vec<(String, Json)>, path: &str) -> Result<Bson, NotADocument> {
    let name = fields[0].0.clone();
    Bson::try_from(plain(Json::Object(fields))).map_err(|_| {
        let at = if path.is_empty() { "the payload" } else { path };
        NotADocument(format!("`{name}` at {at} is not what Extended JSON has there"))
    })
}

/// As the library has it. What Extended JSON says has no number that a double would change.
fn plain(json: Json) -> serde_json::Value {
    use serde_json::Value;
    match json {
        Json::Null => Value::Null,
        Json::Bool(value) => Value::Bool(value),
        Json::Number(digits) => serde_json::from_str(&digits).unwrap_or(Value::Null),
        Json::String(text) => Value::String(text),
        Json::Array(items) => Value::Array(items.into_iter().map(plain).collect()),
        Json::Object(fields) => {
            Value::Object(fields.into_iter().map(|(name, value)| (name, plain(value))).collect())
        }
    }
}

struct Parser<'a> {
    rest: &'a [u8],
}

fn bad(what: &str) -> NotADocument {
    NotADocument(format!("the payload is no JSON: {what}"))
}

impl Parser<'_> {
    fn whole(mut self) -> Result<Json, NotADocument> {
        let json = self.value(0)?;
        self.space();
        if self.rest.is_empty() { Ok(json) } else { Err(bad("something stands behind it")) }
    }

    fn space(&mut self) {
        let len = self.rest.iter().take_while(|c| b" \t\r\n".contains(c)).count();
        self.rest = &self.rest[len..];
    }

    /// True, and past it, where this is next.
    fn takes(&mut self, sign: u8) -> bool {
        self.space();
        let is_it = self.rest.first() == Some(&sign);
        if is_it {
            self.rest = &self.rest[1..];
        }
        is_it
    }

    fn word(&mut self, word: &str, json: Json) -> Result<Json, NotADocument> {
        let rest = self.rest.strip_prefix(word.as_bytes()).ok_or_else(|| bad("an unknown word"))?;
        self.rest = rest;
        Ok(json)
    }

    fn value(&mut self, depth: usize) -> Result<Json, NotADocument> {
        if depth > DEPTH_MAX {
            return Err(NotADocument("nested deeper than MongoDB takes".to_owned()));
        }
        self.space();
        match self.rest.first() {
            Some(b'{') => self.object(depth),
            Some(b'[') => self.array(depth),
            Some(b'"') => Ok(Json::String(self.string()?)),
            Some(b'n') => self.word("null", Json::Null),
            Some(b't') => self.word("true", Json::Bool(true)),
            Some(b'f') => self.word("false", Json::Bool(false)),
            Some(b'-' | b'0'..=b'9') => {
                let len = self
                    .rest
                    .iter()
                    .take_while(|c| matches!(c, b'-' | b'+' | b'.' | b'e' | b'E' | b'0'..=b'9'))
                    .count();
                let (digits, rest) = self.rest.split_at(len);
                self.rest = rest;
                let digits = String::from_utf8_lossy(digits).into_owned();
                if digits.parse::<f64>().is_err() {
                    return Err(bad("a number that is none"));
                }
                Ok(Json::Number(digits))
            }
            _ => Err(bad("it ends early, or has a sign that nothing begins with")),
        }
    }

    fn array(&mut self, depth: usize) -> Result<Json, NotADocument> {
        self.takes(b'[');
        let mut items = Vec::new();
        if self.takes(b']') {
            return Ok(Json::Array(items));
        }
        loop {
            items.push(self.value(depth + 1)?);
            if self.takes(b']') {
                return Ok(Json::Array(items));
            }
            if !self.takes(b',') {
                return Err(bad("a list without an end"));
            }
        }
    }

    fn object(&mut self, depth: usize) -> Result<Json, NotADocument> {
        self.takes(b'{');
        let mut fields = Vec::new();
        if self.takes(b'}') {
            return Ok(Json::Object(fields));
        }
        loop {
            self.space();
            let name = self.string()?;
            if !self.takes(b':') {
                return Err(bad("a name without a value"));
            }
            fields.push((name, self.value(depth + 1)?));
            if self.takes(b'}') {
                return Ok(Json::Object(fields));
            }
            if !self.takes(b',') {
                return Err(bad("an object without an end"));
            }
        }
    }

    /// The library knows the escapes.
    fn string(&mut self) -> Result<String, NotADocument> {
        if self.rest.first() != Some(&b'"') {
            return Err(bad("a name that is no text"));
        }
        let mut at = 1;
        loop {
            match self.rest.get(at) {
                Some(b'"') => break,
                Some(b'\\') => at += 2,
                Some(_) => at += 1,
                None => return Err(bad("a text without an end")),
            }
        }
        let (text, rest) = self.rest.split_at(at + 1);
        self.rest = rest;
        if let Ok(plain) = std::str::from_utf8(&text[1..at])
            && !plain.contains('\\')
        {
            return Ok(plain.to_owned());
        }
        serde_json::from_slice(text).map_err(|_| bad("a text with an unknown escape"))
    }
}

#[cfg(test)]
mod tests {
    use bson::{bson, oid::ObjectId};

    use super::*;

    fn read(text: &str) -> Result<Bson, NotADocument> {
        let rules = ValueRules {
            dates: vec!["at".to_owned(), "items.at".to_owned()],
            decimals: vec!["price".to_owned(), "items.price".to_owned()],
        };
        value(text, "", &rules).map(Option::unwrap)
    }

    #[test]
    fn every_shape_of_json_is_a_value() {
        let id = ObjectId::parse_str("5f0000000000000000000001").unwrap();
        for (text, expected) in [
            ("null", Bson::Null),
            ("true", bson!(true)),
            (" [ ] ", bson!([])),
            ("{}", bson!({})),
            ("2147483647", Bson::Int32(i32::MAX)),
            ("2147483648", Bson::Int64(2_147_483_648)),
            ("-9223372036854775808", Bson::Int64(i64::MIN)),
            ("12345678901234567890", Bson::Double(12_345_678_901_234_567_890.0)),
            ("1.50", Bson::Double(1.5)),
            ("1e3", Bson::Double(1000.0)),
            (r#""a\n\u00e4\ud83d\ude00\\""#, bson!("a\n\u{e4}\u{1F600}\\")),
            (
                r#"{"a": [1, {"b": null}], "": {"$x": 1}}"#,
                bson!({ "a": [1, { "b": null }], "": { "$x": 1 } }),
            ),
            (r#"{"id": {"$oid": "5f0000000000000000000001"}}"#, bson!({ "id": id })),
            (r#"{"n": {"$numberLong": "5"}}"#, bson!({ "n": 5_i64 })),
            (r#"{"$gt": 1}"#, bson!({ "$gt": 1 })),
        ] {
            assert_eq!(read(text), Ok(expected), "{text}");
        }
    }

    #[test]
    fn a_declared_decimal_keeps_its_digits_and_a_declared_date_is_one() {
        let text = r#"{"price": 0.10, "items": [{"price": "12345678901234567890.123", "at": "2026-01-31"}], "at": null}"#;
        let decimal = |digits: &str| Bson::Decimal128(digits.parse().unwrap());
        let day = bson::DateTime::parse_rfc3339_str("2026-01-31T00:00:00Z").unwrap();

        let expected = bson!({
            "price": decimal("0.10"),
            "items": [{ "price": decimal("12345678901234567890.123"), "at": day }],
            "at": null,
        });
        assert_eq!(read(text), Ok(expected));
        let moment = bson::DateTime::parse_rfc3339_str("2026-01-31T10:00:00.123Z").unwrap();
        for text in [
            "\"2026-01-31T10:00:00.123Z\"",
            "\"2026-01-31 10:00:00.123+00\"",
            "\"2026-01-31T10:00:00.123456\"",
            "\"2026-01-31T11:00:00.123+01:00\"",
            "1769853600123",
        ] {
            let at = read(&format!(r#"{{"at": {text}}}"#)).unwrap();
            let Bson::Document(at) = at else { panic!("{at}") };
            assert_eq!(at.get_datetime("at").unwrap(), &moment, "{text}");
        }
    }

    #[test]
    fn what_is_none_is_said_to_be_none_and_without_its_value() {
        let deep = format!("{}1{}", "[".repeat(200), "]".repeat(200));
        for text in [
            "",
            "{",
            "[1,",
            "{\"a\"}",
            "nul",
            "1 2",
            "\"a",
            "01x",
            "{\"at\": \"secret\"}",
            "{\"price\": \"secret\"}",
            "{\"a\": {\"$oid\": \"secret\"}}",
            "1e999",
            &deep,
            "{\"a\\u0000b\": 1}",
            "\"\\q\"",
        ] {
            let error = read(text).unwrap_err();
            assert!(!error.0.contains("secret"), "{text}: {error}");
        }
    }

    #[test]
    fn a_place_within_is_found() {
        let rules = ValueRules { dates: vec!["at".to_owned()], decimals: vec![] };
        let text = r#"{"after": {"at": "2026-01-31"}, "a": 1, "a": 2}"#;

        let day = bson::DateTime::parse_rfc3339_str("2026-01-31T00:00:00Z").unwrap();
        assert_eq!(value(text, "after", &rules), Ok(Some(bson!({ "at": day }))));
        assert_eq!(value(text, "a", &rules), Ok(Some(Bson::Int32(2))));
        assert_eq!(value(text, "after.b", &rules), Ok(None));
        assert_eq!(value(text, "a.b", &rules), Ok(None));
    }
}
