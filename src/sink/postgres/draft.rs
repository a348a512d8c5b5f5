//! A draft of `[[column]]` and `[[child]]`, from a sample of a collection, for a person to read and to choose from.
//!
//! Nothing is inferred without being read by somebody: a field that has held one type in a thousand documents may hold
//! another in the next. So the draft says of how many it was seen in, and how many would be NULL.
//!
//! Only names and types leave it, never a value; and names that look like values, of which there are as many as
//! documents (`{"2024-01-01": …, "2024-01-02": …}`), are left out.

use std::collections::BTreeMap;

use bson::RawDocument;

use super::{
    column::{Fit, Found, fit},
    names,
};
use crate::{
    config::{ColumnType, Mapping, OWN_COLUMNS},
    model::{
        namespace::Namespace,
        raw::{self, kind},
    },
};

/// As deep as columns are drafted.
const DEPTH_MAX: usize = 3;

/// More names than these below one path are no fields but keys.
const NAMES_MAX: usize = 40;

/// The types that are tried, the narrowest first: what an integer holds fits a bigint, too.
const TRIED: [ColumnType; 8] = [
    ColumnType::Boolean,
    ColumnType::Integer,
    ColumnType::Bigint,
    ColumnType::Numeric,
    ColumnType::Timestamptz,
    ColumnType::Uuid,
    ColumnType::Text,
    ColumnType::Bytea,
];

/// A type is drafted that holds at least so many of a hundred values.
const FITS_MIN: u64 = 90;

/// What was seen in a sample of one collection.
#[derive(Debug, Default)]
pub struct Sample {
    documents: u64,
    fields: Fields,
}

/// What was seen below one path.
#[derive(Debug, Default)]
struct Fields(BTreeMap<String, Seen>);

/// What was seen at one path.
#[derive(Debug, Default)]
struct Seen {
    /// Documents, or elements, that have a value there, null apart.
    values: u64,
    fits: [u64; TRIED.len()],
    documents: u64,
    inner: Fields,
    arrays: u64,
    elements: Elements,
}

#[derive(Debug, Default)]
struct Elements {
    values: u64,
    fields: Fields,
}

impl Sample {
    pub fn add(&mut self, document: &RawDocument) {
        self.documents += 1;
        self.fields.add(document, 1);
    }

    pub fn documents(&self) -> u64 {
        self.documents
    }

    /// As the configuration takes it, without what `mapping` has already. Empty where nothing is to be drafted.
    pub fn draft(&self, ns: &Namespace, mapping: &Mapping) -> String {
        let mut entries = self.columns(ns, mapping);
        entries.extend(self.children(ns, mapping));
        entries.join("\n")
    }

    fn columns(&self, ns: &Namespace, mapping: &Mapping) -> Vec<String> {
        let declared: Vec<_> = mapping.columns.iter().filter(|(of, _)| of == ns).collect();
        let mut taken: Vec<String> = declared.iter().map(|(_, it)| it.name.clone()).collect();
        let mut entries = Vec::new();
        for Drafted { path, ty, values, fits } in self.fields.columns("") {
            if declared.iter().any(|(_, it)| it.path == path) {
                continue;
            }
            let name = free_name(&path, &taken);
            let others = match values - fits {
                0 => String::new(),
                others => format!("; {others} of another type would be NULL"),
            };
            let named =
                if name == path { String::new() } else { format!("name = {}\n", quoted(&name)) };
            entries.push(format!(
                "# in {values} of {} documents{others}\n[[column]]\ncollection = {}\npath = {}\n{named}type = {}\n",
                self.documents,
                quoted(ns.as_str()),
                quoted(&path),
                quoted(ty.name()),
            ));
            taken.push(name);
        }
        entries
    }

    fn children(&self, ns: &Namespace, mapping: &Mapping) -> Vec<String> {
        let mut entries = Vec::new();
        for (path, array) in self.fields.arrays("") {
            let is_declared =
                mapping.children.iter().any(|(of, child)| of == ns && child.path == path);
            let columns = array.elements.fields.columns("");
            if is_declared || columns.is_empty() {
                continue;
            }
            let mut taken = vec!["_id".to_owned(), "position".to_owned()];
            let mut lines = Vec::new();
            for Drafted { path, ty, .. } in columns {
                let name = free_name(&path, &taken);
                let named = if name == path {
                    String::new()
                } else {
                    format!(", name = {}", quoted(&name))
                };
                lines.push(format!(
                    "  {{ path = {}{named}, type = {} }},\n",
                    quoted(&path),
                    quoted(ty.name())
                ));
                taken.push(name);
            }
            let table = format!("{}_{}", ns.coll(), path.replace('.', "_"));
            entries.push(format!(
                "# an array in {} of {} documents, with {} elements\n[[child]]\ncollection = {}\npath = {}\n\
                 table = {}\ncolumns = [\n{}]\n",
                array.arrays,
                self.documents,
                array.elements.values,
                quoted(ns.as_str()),
                quoted(&path),
                quoted(&names::fitting(&table)),
                lines.concat(),
            ));
        }
        entries
    }
}

/// A column that could be declared.
struct Drafted {
    path: String,
    ty: ColumnType,
    values: u64,
    fits: u64,
}

impl Fields {
    fn add(&mut self, document: &RawDocument, depth: usize) {
        for field in raw::fields(document).map_while(Result::ok) {
            // A name with a dot is no path, and one that is no text cannot be written down.
            let Ok(name) = std::str::from_utf8(field.name) else { continue };
            if name.is_empty() || name.contains(['.', '\0']) {
                continue;
            }
            // One more than may be, to know that there are too many.
            if self.0.len() > NAMES_MAX && !self.0.contains_key(name) {
                continue;
            }
            let seen = self.0.entry(name.to_owned()).or_default();
            seen.add(Found { kind: field.kind, value: field.value }, depth);
        }
    }

    fn is_of_keys(&self) -> bool {
        self.0.len() > NAMES_MAX
    }

    fn columns(&self, before: &str) -> Vec<Drafted> {
        if self.is_of_keys() {
            return Vec::new();
        }
        let mut columns = Vec::new();
        for (name, seen) in &self.0 {
            let path = format!("{before}{name}");
            if path != "_id" {
                columns.extend(seen.column(&path));
            }
            columns.extend(seen.inner.columns(&format!("{path}.")));
        }
        columns
    }

    fn arrays(&self, before: &str) -> Vec<(String, &Seen)> {
        if self.is_of_keys() {
            return Vec::new();
        }
        let mut arrays = Vec::new();
        for (name, seen) in &self.0 {
            let path = format!("{before}{name}");
            arrays.extend(seen.inner.arrays(&format!("{path}.")));
            if seen.arrays > 0 {
                arrays.push((path, seen));
            }
        }
        arrays
    }
}

impl Seen {
    fn add(&mut self, found: Found<'_>, depth: usize) {
        if matches!(found.kind, kind::NULL | kind::UNDEFINED) {
            return;
        }
        self.values += 1;
        match found.kind {
            kind::DOCUMENT => {
                self.documents += 1;
                if let (true, Ok(document)) = (depth < DEPTH_MAX, raw::nested(found.value)) {
                    self.inner.add(document, depth + 1);
                }
            }
            kind::ARRAY => {
                self.arrays += 1;
                let Ok(array) = raw::nested(found.value) else { return };
                for field in raw::fields(array).map_while(Result::ok) {
                    self.elements.values += 1;
                    if let (kind::DOCUMENT, Ok(element)) = (field.kind, raw::nested(field.value)) {
                        self.elements.fields.add(element, 1);
                    }
                }
            }
            _ => {
                for (count, ty) in self.fits.iter_mut().zip(TRIED) {
                    *count += u64::from(matches!(fit(ty, Some(found)), Fit::Is(_)));
                }
            }
        }
    }

    /// The first of the types that hold the most, where that is nearly all.
    fn column(&self, path: &str) -> Option<Drafted> {
        let most = *self.fits.iter().max()?;
        if most == 0 || most * 100 < self.values * FITS_MIN {
            return None;
        }
        let (ty, fits) = TRIED.into_iter().zip(self.fits).find(|(_, fits)| *fits == most)?;
        Some(Drafted { path: path.to_owned(), ty, values: self.values, fits })
    }
}

/// The path with `_` in place of its dots, or, where that is another column's, with its hash.
fn free_name(path: &str, taken: &[String]) -> String {
    let name = names::fitting(&path.replace('.', "_")).into_owned();
    if OWN_COLUMNS.contains(&&*name) || taken.contains(&name) {
        names::marked(&name, path)
    } else {
        name
    }
}

/// As TOML has a text.
fn quoted(text: &str) -> String {
    toml::Value::from(text).to_string()
}

#[cfg(test)]
mod tests {
    use bson::{Bson, RawDocumentBuf, doc};

    use super::*;
    use crate::config::ColumnRule;

    fn sample(documents: &[bson::Document]) -> Sample {
        let mut sample = Sample::default();
        for document in documents {
            sample.add(&RawDocumentBuf::try_from(document).unwrap());
        }
        sample
    }

    fn draft(documents: &[bson::Document]) -> String {
        sample(documents).draft(&"shop.orders".parse().unwrap(), &Mapping::default())
    }

    #[test]
    fn each_field_is_drafted_with_the_narrowest_type_that_holds_it() {
        let document = |n: i64| {
            doc! {
                "_id": n, "customer": {"name": "Ann"}, "total": "1.50".parse::<bson::Decimal128>().unwrap(),
                "n": n, "at": bson::DateTime::now(), "paid": true, "ref": bson::oid::ObjectId::new(), "empty": Bson::Null,
                "items": [{"sku": "a", "qty": 1}],
            }
        };
        let text = draft(&[document(1), document(1 << 40)]);

        for (path, ty) in [
            ("customer.name", "text"),
            ("total", "numeric"),
            ("n", "bigint"),
            ("at", "timestamptz"),
            ("paid", "boolean"),
            ("ref", "text"),
        ] {
            let entry = text
                .split("[[column]]")
                .find(|entry| entry.contains(&format!("path = \"{path}\"\n")));
            assert!(
                entry.is_some_and(|entry| entry.contains(&format!("type = \"{ty}\""))),
                "{path}: {text}"
            );
        }
        assert!(text.contains("name = \"customer_name\""), "{text}");
        assert!(!text.contains("\"empty\"") && !text.contains("\"_id\""), "{text}");
        assert!(
            text.contains("table = \"orders_items\"")
                && text.contains("{ path = \"qty\", type = \"integer\" }"),
            "{text}"
        );
        toml::from_str::<toml::Table>(&text).unwrap();
    }

    #[test]
    fn what_would_be_null_is_said_and_what_has_no_type_is_left_out() {
        let mut documents = vec![doc! { "n": 1, "mixed": 1, "id": "x" }; 9];
        documents.push(doc! { "n": "secret", "mixed": "x", "id": "x" });
        documents.extend(vec![doc! { "mixed": "x" }; 5]);

        let text = draft(&documents);

        assert!(
            text.contains("# in 10 of 15 documents; 1 of another type would be NULL\n"),
            "{text}"
        );
        assert!(!text.contains("\"mixed\"") && !text.contains("secret"), "{text}");
        assert!(
            !text.contains("name = \"id\"\n") && text.contains("path = \"id\"\nname = \"id_"),
            "{text}"
        );
    }

    #[test]
    fn names_that_are_keys_are_no_columns() {
        let mut days = bson::Document::new();
        for day in 0..60 {
            days.insert(format!("day {day}"), day);
        }
        assert_eq!(draft(&[doc! { "_id": 1, "days": days }]), "");
    }

    #[test]
    fn what_is_declared_is_not_drafted_again() {
        let ns: Namespace = "shop.orders".parse().unwrap();
        let column = ColumnRule { path: "a".into(), name: "a_b".into(), ty: ColumnType::Integer };
        let mapping = Mapping { columns: vec![(ns.clone(), column)], children: Vec::new() };

        let text = sample(&[doc! { "a": 1, "a_b": 1 }]).draft(&ns, &mapping);

        assert!(!text.contains("path = \"a\"\n") && text.contains("path = \"a_b\""), "{text}");
        assert!(!text.contains("name = \"a_b\"\n"), "a name that is taken: {text}");
    }
}
