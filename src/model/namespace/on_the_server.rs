//! The filter as a `$match` on change events, in the form that costs the server least.
//!
//! The server (6.0 on) turns a condition on `ns` into one on the oplog's entries, so that it is tried on every
//! write of the application. What each form costs it there decides what is sent:
//!
//! | condition | becomes | cost for each entry (6.0.5) |
//! | --- | --- | --- |
//! | `ns.db` or `ns.coll` equals a name, or is one of some | one anchored regular expression for each name | 0.1 µs for each |
//! | `ns` is one of some `{db, coll}` | comparisons, but each with its own path through the entry | 0.8 µs for each |
//! | a regular expression on `ns.db` or `ns.coll` | an aggregation expression, which cuts the name out of the entry | 8 µs and more for each |
//!
//! So names go as values, those of a database together, and only a wildcard inside a name stays a regular
//! expression. `to` is not asked for: renames are rare, all of them pass, as does the drop of any database, and
//! [`NamespaceFilter::matches`](super::NamespaceFilter::matches) decides.
//!
//! A collection whose name is that of an excluded one and the end of a line is left out with it, as it ever was:
//! to the server's regular expressions the line may end there.
//!
//! An event whose token is a checkpoint must pass, else the server cannot find where to go on. So what passes may
//! grow from one version to the next, and may not shrink.

use std::collections::BTreeMap;

use bson::{
    RawArrayBuf, RawBson, RawDocumentBuf,
    raw::{CStr, cstr},
    rawdoc,
};

use super::{Glob, Part};

const DB: &CStr = cstr!("ns.db");
const COLL: &CStr = cstr!("ns.coll");

pub(super) fn match_stage(include: &[Glob], exclude: &[Glob]) -> RawDocumentBuf {
    let mut all = RawArrayBuf::new();
    if !include.is_empty() {
        all.push(rawdoc! { "$or": array(Groups::of(include).ways_to_match()) });
    }
    // Not `$nor`: on 6.0.5 the optimizer of change streams can rewrite it into an empty array, and then
    // fails ("$and/$or/$nor must be a nonempty array").
    for ways in Groups::of(exclude).ways_not_to_match() {
        all.push(rawdoc! { "$or": array(ways) });
    }
    all.push(on(COLL, rawdoc! { "$exists": true }));
    rawdoc! { "$match": { "$or": [
        { "$and": all },
        { "operationType": { "$in": ["rename", "dropDatabase"] } },
    ] } }
}

/// Globs that are tried together. The order within is that of the alphabet, so that the same patterns make
/// the same stage.
#[derive(Default)]
struct Groups<'a> {
    /// `shop.*`
    databases: Vec<&'a str>,
    /// `shop.orders`: of each database, its collections.
    collections: BTreeMap<&'a str, Vec<&'a str>>,
    /// `*.sessions`
    anywhere: Vec<&'a str>,
    /// With a wildcard inside a name, `*.*`, and names that the server cannot look for.
    others: Vec<&'a Glob>,
}

impl<'a> Groups<'a> {
    fn of(globs: &'a [Glob]) -> Self {
        let mut groups = Self::default();
        for glob in globs {
            match (&glob.db, &glob.coll) {
                (Part::Name(db), Part::Any) if is_plain(db) => groups.databases.push(db),
                (Part::Name(db), Part::Name(coll)) if is_plain(db) && is_plain(coll) => {
                    groups.collections.entry(db).or_default().push(coll);
                }
                (Part::Any, Part::Name(coll)) if is_plain(coll) => groups.anywhere.push(coll),
                _ => groups.others.push(glob),
            }
        }
        groups.databases.sort_unstable();
        groups.anywhere.sort_unstable();
        groups.collections.values_mut().for_each(|names| names.sort_unstable());
        groups
    }

    /// Conditions of which one holds when some glob matches.
    fn ways_to_match(&self) -> Vec<RawDocumentBuf> {
        let mut ways = Vec::new();
        if !self.databases.is_empty() {
            ways.push(on(DB, one_of(&self.databases)));
        }
        for (db, collections) in &self.collections {
            let mut way = on(DB, one_of(&[db]));
            way.append(COLL, one_of(collections));
            ways.push(way);
        }
        if !self.anywhere.is_empty() {
            ways.push(on(COLL, one_of(&self.anywhere)));
        }
        for glob in &self.others {
            let mut way = RawDocumentBuf::new();
            for (field, part) in parts(glob) {
                way.append(field, like(part));
            }
            ways.push(way);
        }
        ways
    }

    /// Lists of conditions: where no glob matches, one of each list holds.
    fn ways_not_to_match(&self) -> Vec<Vec<RawDocumentBuf>> {
        let mut all = Vec::new();
        if !self.databases.is_empty() {
            all.push(vec![on(DB, none_of(&self.databases))]);
        }
        for (db, collections) in &self.collections {
            all.push(vec![on(DB, none_of(&[db])), on(COLL, none_of(collections))]);
        }
        if !self.anywhere.is_empty() {
            all.push(vec![on(COLL, none_of(&self.anywhere))]);
        }
        for glob in &self.others {
            let mut ways: Vec<_> = parts(glob)
                .map(|(field, part)| on(field, rawdoc! { "$not": like(part) }))
                .collect();
            if ways.is_empty() {
                // `*.*` excludes everything. A match must say something, so it asks for a database that cannot be.
                ways.push(on(DB, one_of(&[""])));
            }
            all.push(ways);
        }
        all
    }
}

/// True for a name that the server can look for among the oplog's entries. It makes a regular expression of it
/// and escapes what is special in one, braces excepted (6.0 to 8.0, `regexEscapeNsForChangeStream`): `a{2}` would
/// find `aa`.
fn is_plain(name: &str) -> bool {
    !name.contains(['{', '}'])
}

fn one_of(names: &[&str]) -> RawDocumentBuf {
    rawdoc! { "$in": names.iter().copied().collect::<RawArrayBuf>() }
}

fn none_of(names: &[&str]) -> RawDocumentBuf {
    rawdoc! { "$nin": names.iter().copied().collect::<RawArrayBuf>() }
}

/// The parts of a glob that leave anything out.
fn parts(glob: &Glob) -> impl Iterator<Item = (&'static CStr, &Part)> {
    [(DB, &glob.db), (COLL, &glob.coll)].into_iter().filter(|(_, part)| !matches!(part, Part::Any))
}

fn like(part: &Part) -> RawBson {
    let regex = match part {
        Part::Any => &super::regex_of_glob("*"),
        Part::Name(name) if is_plain(name) => return one_of(&[name]).into(),
        Part::Name(name) => &super::regex_of_glob(name),
        Part::Like(regex) => regex,
    };
    // The server writes it between single quotes, as JSON, and parses that again.
    let escaped = |c: char| match c {
        '\'' | '\0'..='\x1F' | '\x7F' => format!("\\x{:02X}", u32::from(c)),
        c => c.to_string(),
    };
    let pattern: String = regex.as_str().chars().map(escaped).collect();
    let pattern = pattern.try_into().expect("a pattern holds no NUL: it was checked");
    RawBson::RegularExpression(bson::Regex { pattern, options: cstr!("").into() })
}

fn on(field: &CStr, condition: impl Into<RawBson>) -> RawDocumentBuf {
    let mut doc = RawDocumentBuf::new();
    doc.append(field, condition.into());
    doc
}

fn array(conditions: Vec<RawDocumentBuf>) -> RawArrayBuf {
    conditions.into_iter().collect()
}
