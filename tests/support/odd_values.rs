//! Values as bytes, those among them that no driver writes: every type that BSON has, the ends and the odd forms of each; and
//! `_id`s that are one to a server although their bytes differ.

use std::iter::repeat_n;

use mongodb::bson::{RawDocumentBuf, rawdoc};
use outrigger::model::raw::{Builder, kind};
use rand::{Rng, rngs::StdRng, seq::IndexedRandom};

use super::odd::{array_of, joined};

/// A type and the bytes behind it.
#[derive(Clone, Debug)]
pub struct Value {
    pub kind: u8,
    pub bytes: Vec<u8>,
}

fn value(kind: u8, bytes: impl Into<Vec<u8>>) -> Value {
    Value { kind, bytes: bytes.into() }
}

/// With the length in front of it, as a string is written.
fn text(bytes: &[u8]) -> Vec<u8> {
    let len = i32::try_from(bytes.len() + 1).unwrap();
    [&len.to_le_bytes()[..], bytes, &[0]].concat()
}

fn binary(subtype: u8, bytes: &[u8]) -> Value {
    let len = i32::try_from(bytes.len()).unwrap();
    value(kind::BINARY, [&len.to_le_bytes()[..], &[subtype], bytes].concat())
}

/// Sixteen bytes, the lower half first.
fn decimal(high: u64, low: u64) -> Value {
    value(kind::DECIMAL128, [low.to_le_bytes(), high.to_le_bytes()].concat())
}

fn double(bits: u64) -> Value {
    value(kind::DOUBLE, bits.to_le_bytes())
}

fn int32(n: i32) -> Value {
    value(kind::INT32, n.to_le_bytes())
}

/// A document of these fields, or an array whose items have these names.
fn holder(kind: u8, fields: &[(&str, &Value)]) -> Value {
    let mut inside = Builder::default();
    for (name, of) in fields {
        inside.push(of.kind, name, &of.bytes);
    }
    value(kind, inside.finish().into_bytes())
}

fn nested(kinds: impl Iterator<Item = u8>) -> Value {
    kinds.fold(int32(1), |inner, kind| {
        holder(kind, &[(if kind == kind::ARRAY { "0" } else { "d" }, &inner)])
    })
}

/// The deepest that a server stores: it keeps some of its 200 levels for itself, and a command takes two.
pub const DEEPEST: usize = 178;

/// One of each form, with its name.
pub fn forms() -> Vec<(String, Value)> {
    let mut all: Vec<(String, Value)> = Vec::new();
    let mut add = |name: &str, form: Value| all.push((name.to_owned(), form));
    let old = |inner: i32, bytes: &[u8]| binary(2, &[&inner.to_le_bytes()[..], bytes].concat());
    add("old binary", old(3, b"abc"));
    add("old binary of nothing", old(0, b""));
    add("old binary that says too much", old(9, b"abc"));
    add("old binary that says too little", old(1, b"abc"));
    add("old binary that says less than nothing", old(-1, b"abc"));
    add("old binary without its length", binary(2, b"ab"));
    for subtype in [0, 1, 3, 4, 5, 6, 7, 8, 9, 0x7F, 0x80, 0xFF] {
        for len in [0, 1, 16, 40] {
            add(&format!("binary {subtype} of {len}"), binary(subtype, &vec![0x90; len]));
        }
    }
    let pointer = |bytes: &[u8]| value(kind::DB_POINTER, [text(bytes), vec![7; 12]].concat());
    add("pointer", pointer(b"shop.orders"));
    add("pointer to nothing", pointer(b""));
    add("pointer that is no text", pointer(b"caf\xe9"));
    for (name, high) in [
        ("infinite", 0x78 << 56),
        ("infinite below", 0xF8 << 56),
        ("NaN", 0x7C << 56),
        ("NaN below", 0xFC << 56),
        ("signalling NaN", 0x7E << 56),
        ("NaN with a payload", (0x7C << 56) | 5),
        ("zero", 0x3040 << 48),
        ("zero below", 0xB040 << 48),
        ("zero with an exponent", 0x3046 << 48),
        ("a zero of too many digits", 0x6C10 << 48),
    ] {
        add(&format!("decimal {name}"), decimal(high, 0));
    }
    add("decimal 1.0", decimal(0x303E << 48, 10));
    add("decimal 1.00", decimal(0x303C << 48, 100));
    for (name, bits) in [
        ("zero below", 1 << 63),
        ("NaN below", 0xFFF8 << 48),
        ("NaN with a payload", (0x7FF8 << 48) | 5),
        ("signalling NaN", (0x7FF0 << 48) | 1),
        ("infinite below", 0xFFF0 << 48),
        ("least", 1),
    ] {
        add(&format!("double {name}"), double(bits));
    }
    for (name, kind) in [("string", kind::STRING), ("symbol", kind::SYMBOL), ("code", kind::CODE)] {
        add(name, value(kind, text(b"x")));
        add(&format!("{name} of nothing"), value(kind, text(b"")));
        add(&format!("{name} with a NUL"), value(kind, text(b"a\0b")));
        add(&format!("{name} that is no text"), value(kind, text(b"\xe9t\xe9")));
    }
    let scope = rawdoc! { "a": 1, "b": { "c": "x" } };
    let scoped = [text(b"f()"), scope.into_bytes()].concat();
    let len = i32::try_from(scoped.len() + 4).unwrap();
    add(
        "code with scope",
        value(kind::CODE_WITH_SCOPE, [&len.to_le_bytes()[..], &scoped].concat()),
    );
    add("regex", value(kind::REGEX, *b"^x\0im\0"));
    add("regex with options out of order", value(kind::REGEX, *b"x\0xsmi\0"));
    add("regex with unknown options", value(kind::REGEX, *b"(\0zz\0"));
    add("undefined", value(kind::UNDEFINED, []));
    add("null", value(kind::NULL, []));
    add("least key", value(kind::MIN_KEY, []));
    add("greatest key", value(kind::MAX_KEY, []));
    add("true", value(kind::BOOL, [1]));
    add("earliest date", value(kind::DATE_TIME, i64::MIN.to_le_bytes()));
    add("latest date", value(kind::DATE_TIME, i64::MAX.to_le_bytes()));
    // An empty one is filled in by the server.
    add("latest timestamp", value(kind::TIMESTAMP, u64::MAX.to_le_bytes()));
    for depth in [41, 100, DEEPEST] {
        add(&format!("documents {depth} deep"), nested(repeat_n(kind::DOCUMENT, depth)));
        add(&format!("arrays {depth} deep"), nested(repeat_n(kind::ARRAY, depth)));
        let both = [kind::DOCUMENT, kind::ARRAY].into_iter().cycle().take(depth);
        add(&format!("both {depth} deep"), nested(both));
    }
    let one = int32(1);
    add("a field twice", holder(kind::DOCUMENT, &[("a", &one), ("a", &int32(2))]));
    add("items of other names", holder(kind::ARRAY, &[("1", &one), ("x", &one)]));
    add("a dollar within", holder(kind::DOCUMENT, &[("$a", &one), ("b.c", &one), ("", &one)]));
    all
}

/// An `_id` of a small set. Many of them are one to the server: numbers of another type, texts of another type, also deep
/// within; and others are not, although they hold the same: fields in another order.
pub fn id(rng: &mut StdRng) -> Value {
    let n = rng.random_range(0..3_u8);
    let numbers = [
        int32(n.into()),
        value(kind::INT64, i64::from(n).to_le_bytes()),
        double(f64::from(n).to_bits()),
        decimal(0x3040 << 48, n.into()),
        decimal(0x303E << 48, u64::from(n) * 10),
        double(1 << 63),
        double(f64::NAN.to_bits()),
        decimal(0x7C << 56, 0),
        double(f64::INFINITY.to_bits()),
        decimal(0x78 << 56, 0),
    ];
    let texts = [value(kind::STRING, text(&[b'a' + n])), value(kind::SYMBOL, text(&[b'a' + n]))];
    let leaf = match rng.random_range(0..11) {
        0..7 => numbers.choose(rng).unwrap().clone(),
        7 | 8 => texts.choose(rng).unwrap().clone(),
        // Items of other names than their places, which a server looks for without end beside another `_id` (`{$in: […]}`).
        9 => holder(kind::ARRAY, &[("1", &numbers[0]), ("x", &numbers[0])]),
        _ => forms().choose(rng).unwrap().1.clone(),
    };
    let within = holder(kind::DOCUMENT, &[("a", &leaf)]);
    let other = numbers.choose(rng).unwrap();
    match rng.random_range(0..8) {
        // No `_id` is an array.
        0 if leaf.kind != kind::ARRAY => leaf,
        0..=2 => within,
        3 => holder(kind::DOCUMENT, &[("a", &leaf), ("b", other)]),
        4 => holder(kind::DOCUMENT, &[("b", other), ("a", &leaf)]),
        5 => holder(kind::DOCUMENT, &[("x", &holder(kind::ARRAY, &[("0", &leaf)]))]),
        _ => holder(kind::DOCUMENT, &[("x", &within)]),
    }
}

/// `insert` of a document with this `_id`, and the value in a field and in an array.
pub fn insert(coll: &str, id: &Value, v: &Value) -> RawDocumentBuf {
    let mut document = Builder::default();
    document.push(id.kind, "_id", &id.bytes);
    document.push(v.kind, "v", &v.bytes);
    document.array("arr", |items| items.push(kind::INT32, &1_i32.to_le_bytes()));
    document.document("o", |inside| inside.push(kind::INT32, "n", &1_i32.to_le_bytes()));
    joined(&rawdoc! { "insert": coll }, &array_of("documents", &document.finish()))
}

/// Another change of the document with this `_id`.
pub fn change(coll: &str, id: &Value, v: &Value, rng: &mut StdRng) -> RawDocumentBuf {
    let mut statement = Builder::default();
    statement.document("q", |q| {
        q.document("_id", |is| is.push(id.kind, "$eq", &id.bytes));
    });
    let which = rng.random_range(0..8);
    if which == 0 {
        statement.push(kind::INT32, "limit", &1_i32.to_le_bytes());
        return joined(&rawdoc! { "delete": coll }, &array_of("deletes", &statement.finish()));
    }
    let operator = |statement: &mut Builder, name: &str, path: &str| {
        statement.document("u", |u| {
            u.document(name, |of| of.push(v.kind, path, &v.bytes));
        });
    };
    match which {
        1 => statement.document("u", |u| u.push(v.kind, "w", &v.bytes)),
        2 => operator(&mut statement, "$push", "arr"),
        3 => operator(&mut statement, "$set", "o.n"),
        4 => operator(&mut statement, "$set", "o.m"),
        5 => operator(&mut statement, "$set", "arr.0"),
        _ => operator(&mut statement, "$set", "v"),
    }
    statement.push_bool("upsert", rng.random_bool(0.3));
    joined(&rawdoc! { "update": coll }, &array_of("updates", &statement.finish()))
}
