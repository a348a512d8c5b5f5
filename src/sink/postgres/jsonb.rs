//! The text that PostgreSQL makes of a `jsonb`, made here of the JSON that it was given.
//!
//! With it a row's `doc` is compared by a hash that PostgreSQL takes of its own text, and no document crosses the line.
//! Names are in the order of their length, then of their bytes, the last of those that are there twice counts; numbers
//! are written out as `numeric` writes them; texts are escaped in one way.

/// Of JSON as [`Json`](super::json::Json) writes it. What is none comes back as far as it was understood.
pub fn text_of(json: &str) -> String {
    let mut reader = JsonReader { text: json, at: 0 };
    let mut out = String::with_capacity(json.len() + json.len() / 8);
    reader.value(&mut out);
    out
}

struct JsonReader<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> JsonReader<'a> {
    fn peek(&self) -> u8 {
        self.text.as_bytes().get(self.at).copied().unwrap_or_default()
    }

    /// Steps over `byte` where it is next.
    fn takes(&mut self, byte: u8) -> bool {
        let is_next = self.peek() == byte;
        self.at += usize::from(is_next);
        is_next
    }

    fn value(&mut self, out: &mut String) {
        match self.peek() {
            b'{' => self.object(out),
            b'[' => {
                self.at += 1;
                out.push('[');
                while !self.takes(b']') && self.at < self.text.len() {
                    self.value(out);
                    if self.takes(b',') {
                        out.push_str(", ");
                    }
                }
                out.push(']');
            }
            b'"' => {
                let text = self.string();
                escaped(&text, out);
            }
            _ => {
                let word = self.word();
                match word.as_bytes().first() {
                    Some(b'-' | b'0'..=b'9') => number(word, out),
                    _ => out.push_str(word),
                }
            }
        }
    }

    fn object(&mut self, out: &mut String) {
        self.at += 1;
        let mut members: Vec<(std::borrow::Cow<'a, str>, String)> = Vec::new();
        while !self.takes(b'}') && self.at < self.text.len() {
            let name = self.string();
            self.takes(b':');
            let mut value = String::new();
            self.value(&mut value);
            members.push((name, value));
            self.takes(b',');
        }
        // Stable: of two that share a name the last one stays behind.
        members.sort_by(|(one, _), (other, _)| {
            (one.len(), one.as_bytes()).cmp(&(other.len(), other.as_bytes()))
        });
        out.push('{');
        let mut is_first = true;
        for (at, (name, value)) in members.iter().enumerate() {
            if members.get(at + 1).is_some_and(|(next, _)| next == name) {
                continue;
            }
            if !std::mem::take(&mut is_first) {
                out.push_str(", ");
            }
            escaped(name, out);
            out.push_str(": ");
            out.push_str(value);
        }
        out.push('}');
    }

    /// A number, `true`, `false` or `null`. At least a byte, so that nothing is read for ever.
    fn word(&mut self) -> &'a str {
        let rest = &self.text[self.at..];
        let end = rest.find([',', ']', '}']).unwrap_or(rest.len());
        self.at += end.max(1);
        &rest[..end]
    }

    fn string(&mut self) -> std::borrow::Cow<'a, str> {
        self.takes(b'"');
        let rest = &self.text[self.at..];
        let end = rest.find(['"', '\\']).unwrap_or(rest.len());
        if rest[end..].starts_with('"') {
            self.at += end + 1;
            return rest[..end].into();
        }
        let mut text = rest[..end].to_owned();
        let mut chars = rest[end..].char_indices();
        let mut len = rest.len();
        while let Some((at, c)) = chars.next() {
            match c {
                '"' => {
                    len = end + at + 1;
                    break;
                }
                '\\' => match chars.next().map(|(_, c)| c) {
                    Some('u') => {
                        let digits: String = chars.by_ref().take(4).map(|(_, c)| c).collect();
                        let code = u32::from_str_radix(&digits, 16).ok().and_then(char::from_u32);
                        text.push(code.unwrap_or(char::REPLACEMENT_CHARACTER));
                    }
                    Some(c) => text.push(c),
                    None => {}
                },
                c => text.push(c),
            }
        }
        self.at += len;
        text.into()
    }
}

/// As `escape_json` of PostgreSQL writes a text.
fn escaped(text: &str, out: &mut String) {
    out.push('"');
    let mut plain = 0;
    for (at, byte) in text.bytes().enumerate() {
        if byte >= b' ' && byte != b'"' && byte != b'\\' {
            continue;
        }
        out.push_str(&text[plain..at]);
        plain = at + 1;
        match byte {
            b'"' => out.push_str("\\\""),
            b'\\' => out.push_str("\\\\"),
            b'\n' => out.push_str("\\n"),
            b'\r' => out.push_str("\\r"),
            b'\t' => out.push_str("\\t"),
            8 => out.push_str("\\b"),
            12 => out.push_str("\\f"),
            byte => {
                use std::fmt::Write as _;
                // Nothing that is written into a text fails.
                let _ = write!(out, "\\u{byte:04x}");
            }
        }
    }
    out.push_str(&text[plain..]);
    out.push('"');
}

/// As `numeric` writes it: all digits, with as many behind the point as were given, and no sign before a zero.
fn number(text: &str, out: &mut String) {
    let (sign, rest) = text.strip_prefix('-').map_or(("", text), |rest| ("-", rest));
    let (mantissa, exponent) = rest.split_once(['e', 'E']).unwrap_or((rest, "0"));
    let exponent: i64 = exponent.parse().unwrap_or_default();
    let (whole, part) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let digits = format!("{whole}{part}");
    let point = whole.len() as i64 + exponent;
    let scale = (part.len() as i64 - exponent).max(0);
    let at = |place: i64| {
        usize::try_from(place)
            .ok()
            .and_then(|at| digits.as_bytes().get(at))
            .map_or('0', |digit| char::from(*digit))
    };
    if digits.bytes().any(|digit| digit != b'0') {
        out.push_str(sign);
    }
    let start = out.len();
    out.extend((0..point.max(0)).map(at).skip_while(|digit| *digit == '0'));
    if out.len() == start {
        out.push('0');
    }
    if scale > 0 {
        out.push('.');
        out.extend((point..point + scale).map(at));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_as_postgres_would_write_it() {
        for (json, text) in [
            ("{}", "{}"),
            ("[]", "[]"),
            (
                r#"{"bb":1,"a":[1,{"x":null}],"c":true}"#,
                r#"{"a": [1, {"x": null}], "c": true, "bb": 1}"#,
            ),
            (r#"{"twice":1,"b":2,"twice":3}"#, r#"{"b": 2, "twice": 3}"#),
            (r#"["a\"\\\u000a\u0001é/"]"#, "[\"a\\\"\\\\\\n\\u0001é/\"]"),
            (
                "[1e3,1.50e1,100e-1,-0,-0.0,5e-7,0.0e-3,12.50,-1E+2,00]",
                "[1000, 15.0, 10.0, 0, 0.0, 0.0000005, 0.0000, 12.50, -100, 0]",
            ),
        ] {
            assert_eq!(text_of(json), text, "{json}");
        }
    }

    #[test]
    fn what_is_no_json_ends_all_the_same() {
        for json in ["", "{", "[", "\"", "{\"a\"", "[1,", "}", "[}", "{\"a\\"] {
            let _ = text_of(json);
        }
    }
}
