//! Tables of the same database whose rows are the documents of a collection: for the first copy, comparisons, and a
//! document that is to be read anew.
//!
//! A row is a document by way of JSON, as the payload of an event is that was made of it. Its `_id` is what the route to the
//! collection makes of it: text, unless both columns are whole numbers. Texts are walked by their bytes, as MongoDB sorts
//! them.

use std::collections::HashMap;

use bson::{Bson, Document, RawBsonRef, RawDocumentBuf};
use parking_lot::Mutex;
use tokio_postgres::types::{ToSql, Type};

use super::{
    json,
    shape::is_whole,
    table::{literal, quoted, quoted_table},
};
use crate::{
    config::{KeyPlace, Outbox, RouteRule, TableRule},
    model::{document_key::DocumentKey, namespace::Namespace},
    postgres::connect::{Failed, Postgres},
};

/// Why rows could not be read as documents.
#[derive(Debug)]
pub enum NotRead {
    Failed(Failed),
    /// A row that no document can be made of, and why.
    NoDocument(String),
}

impl From<Failed> for NotRead {
    fn from(failed: Failed) -> Self {
        NotRead::Failed(failed)
    }
}

/// A part of a table, in the order of its keys.
#[derive(Clone, Copy, Debug, Default)]
pub struct Stretch<'a> {
    pub from: Option<&'a DocumentKey>,
    pub until: Option<&'a DocumentKey>,
    pub behind: Option<&'a DocumentKey>,
    pub limit: usize,
}

/// All tables that are declared.
pub struct Tables {
    rules: Vec<TableRule>,
    routes: Vec<RouteRule>,
    outbox: Outbox,
    /// Whether the keys of a table are whole numbers, once that is known.
    whole: Mutex<HashMap<Namespace, bool>>,
}

impl Tables {
    pub fn new(rules: Vec<TableRule>, routes: Vec<RouteRule>, outbox: Outbox) -> Self {
        Self { rules, routes, outbox, whole: Mutex::default() }
    }

    /// That of a collection.
    pub fn of(&self, ns: &Namespace) -> Option<&TableRule> {
        self.rules.iter().find(|rule| rule.collection == *ns)
    }

    pub fn all(&self) -> &[TableRule] {
        &self.rules
    }

    /// Whether the `_id`s are whole numbers.
    async fn is_whole(&self, db: &Postgres, rule: &TableRule) -> Result<bool, Failed> {
        if let Some(known) = self.whole.lock().get(&rule.collection) {
            return Ok(*known);
        }
        let mut columns = vec![(&*rule.name, &*rule.key)];
        let by_column = self.routes.iter().find_map(|route| match &route.key {
            KeyPlace::Column(name) if route.collection == rule.collection => Some(name),
            KeyPlace::Column(_) | KeyPlace::Payload(_) => None,
        });
        columns.extend(by_column.map(|name| (&*self.outbox.table, &**name)));
        let mut is = true;
        for (table, column) in columns {
            let sql = "SELECT format_type(atttypid, atttypmod)::text FROM pg_attribute \
                       WHERE attrelid = $1::text::regclass AND attname = $2::text";
            let mut session = db.session().await?;
            let params: [(&(dyn ToSql + Sync), Type); 2] =
                [(&quoted_table(table), Type::TEXT), (&column, Type::TEXT)];
            let rows = session.query(sql, &params).await?;
            is &= rows.first().is_some_and(|row| is_whole(row.get(0)));
        }
        self.whole.lock().insert(rule.collection.clone(), is);
        Ok(is)
    }

    /// Documents of a stretch.
    pub async fn walk(
        &self,
        db: &Postgres,
        rule: &TableRule,
        stretch: Stretch<'_>,
    ) -> Result<Vec<RawDocumentBuf>, NotRead> {
        let is_whole = self.is_whole(db, rule).await?;
        let key = key_of(rule, is_whole);
        let mut conditions = vec![format!("t.{} IS NOT NULL", quoted(&rule.key))];
        for (bound, than) in [(stretch.from, ">="), (stretch.until, "<"), (stretch.behind, ">")] {
            match bound.map(|bound| bound_of(bound, is_whole)) {
                None | Some(Bound::Nothing) => {}
                Some(Bound::Before) if than == "<" => return Ok(Vec::new()),
                Some(Bound::Behind) if than != "<" => return Ok(Vec::new()),
                Some(Bound::Before | Bound::Behind) => {}
                Some(Bound::At(value)) => conditions.push(format!("{key} {than} {value}")),
            }
        }
        let sql = format!(
            "{} WHERE {} ORDER BY {key} LIMIT {}",
            select(rule),
            conditions.join(" AND "),
            stretch.limit
        );
        let mut session = db.session().await?;
        let rows = session.query(&sql, &[]).await?;
        rows.iter().map(|row| document(rule, is_whole, row)).collect()
    }

    /// The documents of these keys; those without one are missing.
    pub async fn find(
        &self,
        db: &Postgres,
        rule: &TableRule,
        keys: impl Iterator<Item = &DocumentKey> + Send,
    ) -> Result<Vec<RawDocumentBuf>, NotRead> {
        let is_whole = self.is_whole(db, rule).await?;
        let key = key_of(rule, is_whole);
        let values: Vec<String> = keys
            .filter_map(|key| match bound_of(key, is_whole) {
                Bound::At(value) => Some(value),
                Bound::Nothing | Bound::Before | Bound::Behind => None,
            })
            .collect();
        if values.is_empty() {
            return Ok(Vec::new());
        }
        let sql = format!("{} WHERE {key} IN ({})", select(rule), values.join(", "));
        let mut session = db.session().await?;
        let rows = session.query(&sql, &[]).await?;
        rows.iter().map(|row| document(rule, is_whole, row)).collect()
    }

    /// So many keys by chance, in order.
    pub async fn sample(
        &self,
        db: &Postgres,
        rule: &TableRule,
        keys: u64,
    ) -> Result<Vec<DocumentKey>, NotRead> {
        let is_whole = self.is_whole(db, rule).await?;
        let key = key_of(rule, is_whole);
        let column = quoted(&rule.key);
        let sql = format!(
            "SELECT t.{column}::text FROM (SELECT {column} FROM {} WHERE {column} IS NOT NULL \
             ORDER BY random() LIMIT {keys}) t ORDER BY {key}",
            quoted_table(&rule.name)
        );
        let mut session = db.session().await?;
        let rows = session.query(&sql, &[]).await?;
        rows.iter().map(|row| made_key(row.get(0), is_whole)).collect()
    }

    pub async fn count(&self, db: &Postgres, rule: &TableRule) -> Result<u64, NotRead> {
        let sql = format!(
            "SELECT count(*) FROM {} WHERE {} IS NOT NULL",
            quoted_table(&rule.name),
            quoted(&rule.key)
        );
        let mut session = db.session().await?;
        let rows = session.query(&sql, &[]).await?;
        Ok(rows.first().and_then(|row| u64::try_from(row.get::<_, i64>(0)).ok()).unwrap_or(0))
    }
}

/// The key as MongoDB sorts it.
fn key_of(rule: &TableRule, is_whole: bool) -> String {
    let column = format!("t.{}", quoted(&rule.key));
    if is_whole { column } else { format!("({column}::text COLLATE \"C\")") }
}

fn select(rule: &TableRule) -> String {
    let key = quoted(&rule.key);
    let document = if rule.columns.is_empty() {
        "to_jsonb(t)".to_owned()
    } else {
        let pairs =
            rule.columns.iter().map(|name| format!("{}, t.{}", literal(name), quoted(name)));
        format!("jsonb_build_object({})", pairs.collect::<Vec<_>>().join(", "))
    };
    format!("SELECT t.{key}::text, {document}::text FROM {} t", quoted_table(&rule.name))
}

/// Where a key is among those of the table.
enum Bound {
    At(String),
    /// Before all of them, by its type; or behind them.
    Before,
    Behind,
    /// Of a type that no text and no number is compared with here.
    Nothing,
}

fn bound_of(key: &DocumentKey, is_whole: bool) -> Bound {
    match key.value() {
        Ok(RawBsonRef::String(text)) if !is_whole && !text.contains('\0') => {
            Bound::At(literal(text))
        }
        Ok(RawBsonRef::Int32(number)) if is_whole => Bound::At(number.to_string()),
        Ok(RawBsonRef::Int64(number)) if is_whole => Bound::At(number.to_string()),
        // In MongoDB's order of types numbers come first, then texts.
        Ok(RawBsonRef::MinKey) => Bound::Before,
        Ok(RawBsonRef::Int32(_) | RawBsonRef::Int64(_) | RawBsonRef::Double(_)) if !is_whole => {
            Bound::Before
        }
        Ok(RawBsonRef::Null | RawBsonRef::Double(_) | RawBsonRef::Decimal128(_)) | Err(_) => {
            Bound::Nothing
        }
        Ok(_) => Bound::Behind,
    }
}

fn made_key(text: Option<String>, is_whole: bool) -> Result<DocumentKey, NotRead> {
    let mut document = Document::new();
    document.insert("_id", id_of(text.unwrap_or_default(), is_whole));
    let raw =
        RawDocumentBuf::try_from(&document).map_err(|e| NotRead::NoDocument(e.to_string()))?;
    DocumentKey::of(&raw).map_err(|error| NotRead::NoDocument(error.to_string()))
}

fn id_of(text: String, is_whole: bool) -> Bson {
    match text.parse::<i64>() {
        Ok(whole) if is_whole => i32::try_from(whole).map_or(Bson::Int64(whole), Bson::Int32),
        _ => Bson::String(text),
    }
}

fn document(
    rule: &TableRule,
    is_whole: bool,
    row: &tokio_postgres::Row,
) -> Result<RawDocumentBuf, NotRead> {
    let (key, text): (Option<String>, Option<String>) = (row.get(0), row.get(1));
    let value = json::value(&text.unwrap_or_default(), "", &rule.values)
        .map_err(|error| NotRead::NoDocument(format!("{}: {error}", rule.name)))?;
    let Some(Bson::Document(fields)) = value else {
        return Err(NotRead::NoDocument(format!("{}: a row is no object", rule.name)));
    };
    let mut document = Document::new();
    document.insert("_id", id_of(key.unwrap_or_default(), is_whole));
    document.extend(fields.into_iter().filter(|(name, _)| name != "_id"));
    RawDocumentBuf::try_from(&document)
        .map_err(|error| NotRead::NoDocument(format!("{}: {error}", rule.name)))
}
