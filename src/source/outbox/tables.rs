//! Tables of the same database whose rows are the documents of a collection: for the first copy, comparisons, and a
//! document that is to be read anew.
//!
//! A row is a document by way of JSON, as the payload of an event is that was made of it. Its `_id` is what the route to the
//! collection makes of it: text, unless both columns are whole numbers. Rows are walked in MongoDB's order of their [`Key`]s.

use std::collections::HashMap;

use bson::{Bson, Document, RawBsonRef, RawDocumentBuf};
use parking_lot::Mutex;
use tokio_postgres::types::Type;

use super::{
    json,
    key::Key,
    shape::is_whole,
    table::{literal, quoted, quoted_table},
};
use crate::{
    config::{KeyPlace, Outbox, RouteRule, TableRule},
    model::{document_key::DocumentKey, namespace::Namespace},
    postgres::connect::{Failed, Postgres, Row, Session},
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

/// Documents of a stretch.
#[derive(Debug, Default)]
pub struct Walked {
    pub documents: Vec<RawDocumentBuf>,
    /// Nothing of the stretch is behind them.
    pub is_end: bool,
}

/// Bytes of a page as text, but for one document: so an answer takes no more memory, however large the next rows are.
pub(super) const PAGE_BYTES: usize = 4 << 20;

/// Rows by which the size of all is estimated.
const MEASURED: usize = 200;

/// All tables that are declared.
pub struct Tables {
    rules: Vec<TableRule>,
    routes: Vec<RouteRule>,
    outbox: Outbox,
    /// What is known of the keys of a table, until it cannot be read as that.
    keys: Mutex<HashMap<Namespace, Key>>,
}

impl Tables {
    pub fn new(rules: Vec<TableRule>, routes: Vec<RouteRule>, outbox: Outbox) -> Self {
        Self { rules, routes, outbox, keys: Mutex::default() }
    }

    /// That of a collection.
    pub fn of(&self, ns: &Namespace) -> Option<&TableRule> {
        self.rules.iter().find(|rule| rule.collection == *ns)
    }

    pub fn all(&self) -> &[TableRule] {
        &self.rules
    }

    /// The key of a table.
    ///
    /// # Errors
    /// When the database cannot be asked.
    pub async fn key(&self, session: &mut Session, rule: &TableRule) -> Result<Key, Failed> {
        if let Some(known) = self.keys.lock().get(&rule.collection) {
            return Ok(known.clone());
        }
        let by_column = self.routes.iter().find_map(|route| match &route.key {
            KeyPlace::Column(name) if route.collection == rule.collection => Some(name),
            KeyPlace::Column(_) | KeyPlace::Payload(_) => None,
        });
        let mut is_number = true;
        if let Some(column) = by_column {
            let sql = "SELECT format_type(atttypid, atttypmod)::text FROM pg_attribute \
                       WHERE attrelid = $1::text::regclass AND attname = $2::text";
            let events = quoted_table(&self.outbox.table);
            let rows = session.query(sql, &[(&events, Type::TEXT), (column, Type::TEXT)]).await?;
            is_number = rows.first().is_some_and(|row| is_whole(row.get(0)));
        }
        let key = Key::look(session, rule, is_number).await?;
        self.keys.lock().insert(rule.collection.clone(), key.clone());
        Ok(key)
    }

    /// The rows that `sql` asks for, which is made for the table's key. Where they cannot be read, the key is looked at anew
    /// the next time: somebody may have given it another type.
    async fn rows(
        &self,
        db: &Postgres,
        rule: &TableRule,
        sql: impl FnOnce(&Key) -> Option<String>,
    ) -> Result<(Key, Vec<Row>), Failed> {
        let mut session = db.session().await?;
        let key = self.key(&mut session, rule).await?;
        let Some(sql) = sql(&key) else { return Ok((key, Vec::new())) };
        let rows = session.query(&sql, &[]).await;
        if rows.is_err() {
            self.keys.lock().remove(&rule.collection);
        }
        Ok((key, rows?))
    }

    /// The first documents of a stretch: so many at the most, and so many bytes, one at the least.
    pub async fn walk(
        &self,
        db: &Postgres,
        rule: &TableRule,
        stretch: Stretch<'_>,
    ) -> Result<Walked, NotRead> {
        let sql = |key: &Key| {
            let mut conditions = vec![format!("t.{} IS NOT NULL", quoted(&rule.key))];
            for (bound, than) in [(stretch.from, ">="), (stretch.until, "<"), (stretch.behind, ">")]
            {
                match bound.map(|bound| bound_of(bound, key)) {
                    None | Some(Bound::Nothing) => {}
                    Some(Bound::Before) if than == "<" => return None,
                    Some(Bound::Behind) if than != "<" => return None,
                    Some(Bound::Before | Bound::Behind) => {}
                    Some(Bound::At(value)) => conditions.push(key.compared(than, &value)),
                }
            }
            let (conditions, order) = (conditions.join(" AND "), key.order());
            let limit = stretch.limit;
            Some(format!(
                "SELECT id, document, through FROM (SELECT *, (sum(octet_length(document)) OVER (ORDER BY place \
                 ROWS UNBOUNDED PRECEDING))::int8 AS through FROM (SELECT {}, {order} AS place FROM {} t WHERE {conditions} \
                 ORDER BY {order} LIMIT {limit}) a) b WHERE through - octet_length(document) < {PAGE_BYTES} ORDER BY place",
                columns(rule),
                quoted_table(&rule.name)
            ))
        };
        let (key, rows) = self.rows(db, rule, sql).await?;
        // As the database counts them, which has cut: in its encoding a text may be longer than it is here.
        let bytes = rows.last().map_or(0, |row| row.get::<_, i64>(2));
        let is_end = rows.len() < stretch.limit && bytes < PAGE_BYTES as i64;
        let documents = rows.iter().map(|row| document(rule, &key, row));
        Ok(Walked { documents: documents.collect::<Result<_, _>>()?, is_end })
    }

    /// The documents of these keys; those without one are missing.
    pub async fn find(
        &self,
        db: &Postgres,
        rule: &TableRule,
        keys: impl Iterator<Item = &DocumentKey> + Send,
    ) -> Result<Vec<RawDocumentBuf>, NotRead> {
        let sql = |key: &Key| {
            let values = keys.filter_map(|of| match bound_of(of, key) {
                Bound::At(value) => Some(value),
                Bound::Nothing | Bound::Before | Bound::Behind => None,
            });
            let condition = key.one_of(&values.collect::<Vec<_>>())?;
            let table = quoted_table(&rule.name);
            Some(format!("SELECT {} FROM {table} t WHERE {condition}", columns(rule)))
        };
        let (key, rows) = self.rows(db, rule, sql).await?;
        rows.iter().map(|row| document(rule, &key, row)).collect()
    }

    /// So many keys by chance, in order.
    pub async fn sample(
        &self,
        db: &Postgres,
        rule: &TableRule,
        keys: u64,
    ) -> Result<Vec<DocumentKey>, NotRead> {
        let (column, table) = (quoted(&rule.key), quoted_table(&rule.name));
        let sql = |key: &Key| {
            Some(format!(
                "SELECT t.{column}::text FROM (SELECT {column} FROM {table} WHERE {column} IS NOT NULL \
                 ORDER BY random() LIMIT {keys}) t ORDER BY {}",
                key.order()
            ))
        };
        let (key, rows) = self.rows(db, rule, sql).await?;
        rows.iter().map(|row| made_key(row.get(0), &key)).collect()
    }

    /// How many rows there are, and about how many bytes each has as a document.
    pub async fn measure(&self, db: &Postgres, rule: &TableRule) -> Result<(u64, u64), NotRead> {
        let table = quoted_table(&rule.name);
        let sql = format!(
            "SELECT (SELECT count(*) FROM {table} WHERE {} IS NOT NULL), (SELECT avg(octet_length(document))::bigint \
             FROM (SELECT {} FROM (SELECT * FROM {table} LIMIT {MEASURED}) t) a)",
            quoted(&rule.key),
            columns(rule)
        );
        let mut session = db.session().await?;
        let rows = session.query(&sql, &[]).await?;
        let number = |at: usize| {
            let number = rows.first().and_then(|row| row.get::<_, Option<i64>>(at));
            number.and_then(|number| u64::try_from(number).ok()).unwrap_or(0)
        };
        Ok((number(0), number(1)))
    }

    pub async fn count(&self, db: &Postgres, rule: &TableRule) -> Result<u64, NotRead> {
        let key = quoted(&rule.key);
        let sql =
            format!("SELECT count(*) FROM {} WHERE {key} IS NOT NULL", quoted_table(&rule.name));
        let mut session = db.session().await?;
        let rows = session.query(&sql, &[]).await?;
        Ok(rows.first().and_then(|row| u64::try_from(row.get::<_, i64>(0)).ok()).unwrap_or(0))
    }

    pub async fn is_empty(&self, db: &Postgres, rule: &TableRule) -> Result<bool, NotRead> {
        let key = quoted(&rule.key);
        let table = quoted_table(&rule.name);
        let sql = format!("SELECT NOT EXISTS (SELECT 1 FROM {table} WHERE {key} IS NOT NULL)");
        let mut session = db.session().await?;
        let rows = session.query(&sql, &[]).await?;
        Ok(rows.first().is_none_or(|row| row.get(0)))
    }
}

/// The key of a row, and its document, as text.
fn columns(rule: &TableRule) -> String {
    let key = quoted(&rule.key);
    let document = if rule.columns.is_empty() {
        "to_jsonb(t)".to_owned()
    } else {
        let pairs =
            rule.columns.iter().map(|name| format!("{}, t.{}", literal(name), quoted(name)));
        format!("jsonb_build_object({})", pairs.collect::<Vec<_>>().join(", "))
    };
    format!("t.{key}::text AS id, {document}::text AS document")
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

fn bound_of(bound: &DocumentKey, key: &Key) -> Bound {
    let is_number = key.is_number();
    match bound.value() {
        Ok(RawBsonRef::String(text)) if !is_number && !text.contains('\0') => {
            Bound::At(text.to_owned())
        }
        Ok(RawBsonRef::Int32(number)) if is_number => Bound::At(number.to_string()),
        Ok(RawBsonRef::Int64(number)) if is_number => Bound::At(number.to_string()),
        // In MongoDB's order of types numbers come first, then texts.
        Ok(RawBsonRef::MinKey) => Bound::Before,
        Ok(RawBsonRef::Int32(_) | RawBsonRef::Int64(_) | RawBsonRef::Double(_)) if !is_number => {
            Bound::Before
        }
        Ok(RawBsonRef::Null | RawBsonRef::Double(_) | RawBsonRef::Decimal128(_)) | Err(_) => {
            Bound::Nothing
        }
        Ok(_) => Bound::Behind,
    }
}

fn made_key(text: Option<String>, key: &Key) -> Result<DocumentKey, NotRead> {
    let mut document = Document::new();
    document.insert("_id", id_of(text.unwrap_or_default(), key));
    let raw =
        RawDocumentBuf::try_from(&document).map_err(|e| NotRead::NoDocument(e.to_string()))?;
    DocumentKey::of(&raw).map_err(|error| NotRead::NoDocument(error.to_string()))
}

fn id_of(text: String, key: &Key) -> Bson {
    match text.parse::<i64>() {
        Ok(whole) if key.is_number() => {
            i32::try_from(whole).map_or(Bson::Int64(whole), Bson::Int32)
        }
        _ => Bson::String(text),
    }
}

fn document(
    rule: &TableRule,
    key: &Key,
    row: &tokio_postgres::Row,
) -> Result<RawDocumentBuf, NotRead> {
    let (id, text): (Option<String>, Option<String>) = (row.get(0), row.get(1));
    let value = json::value(&text.unwrap_or_default(), "", &rule.values)
        .map_err(|error| NotRead::NoDocument(format!("{}: {error}", rule.name)))?;
    let Some(Bson::Document(fields)) = value else {
        return Err(NotRead::NoDocument(format!("{}: a row is no object", rule.name)));
    };
    let mut document = Document::new();
    document.insert("_id", id_of(id.unwrap_or_default(), key));
    document.extend(fields.into_iter().filter(|(name, _)| name != "_id"));
    RawDocumentBuf::try_from(&document)
        .map_err(|error| NotRead::NoDocument(format!("{}: {error}", rule.name)))
}
