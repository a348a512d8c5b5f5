//! What the table is found to be like, and the statements that read and mark its rows.
//!
//! Rows are taken by `processed_at IS NULL`, in their order, and never by "what is behind the last one": a transaction may
//! take its number early and commit late. All values travel as text, so that an `id` may be of any type.

use bson::{Bson, RawBsonRef};
use tokio_postgres::types::Type;

use super::{
    route::{OutboxRow, Routes},
    table::{lease_table, literal, payload_text, quoted, quoted_table},
};
use crate::{
    config::{KeyPlace, Outbox},
    model::{document_key::DocumentKey, namespace::Namespace},
    postgres::connect::{Failed, Session},
};

/// Bytes that a row takes beside its payload, about.
const ROW_BYTES: usize = 200;

/// The table as it is.
#[derive(Clone, Debug)]
pub struct Shape {
    table: String,
    lease: String,
    name: String,
    /// Columns that there are, with their types and defaults.
    found: Vec<(String, String, Option<String>)>,
    config: Outbox,
    /// The columns that rows are in order by, with their types; the id is the last.
    order: Vec<(String, String)>,
    key_columns: Vec<String>,
}

/// What is wrong with the table, for a person.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unfit(pub String);

/// Why it is not known what the table is like.
#[derive(Debug)]
pub enum NotSeen {
    Failed(Failed),
    Unfit(Unfit),
}

impl From<Failed> for NotSeen {
    fn from(failed: Failed) -> Self {
        NotSeen::Failed(failed)
    }
}

impl Shape {
    /// Looks the table up.
    ///
    /// # Errors
    /// [`NotSeen::Unfit`] for one that is not there, or lacks a column.
    pub async fn see(
        session: &mut Session,
        config: &Outbox,
        routes: &Routes,
    ) -> Result<Self, NotSeen> {
        let table = quoted_table(&config.table);
        let sql = "SELECT a.attname::text, format_type(a.atttypid, a.atttypmod)::text, \
                   pg_get_expr(d.adbin, d.adrelid)::text FROM pg_attribute a \
                   LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum \
                   WHERE a.attrelid = $1::text::regclass AND a.attnum > 0 AND NOT a.attisdropped";
        let rows = match session.query(sql, &[(&table, Type::TEXT)]).await {
            Ok(rows) => rows,
            Err(failed) if failed.is(&["42P01", "3F000"]) => {
                return Err(NotSeen::Unfit(Unfit(format!("there is no table {table}"))));
            }
            Err(failed) => return Err(failed.into()),
        };
        let found: Vec<(String, String, Option<String>)> =
            rows.iter().map(|row| (row.get(0), row.get(1), row.get(2))).collect();
        Self::of(found, config, routes).map_err(NotSeen::Unfit)
    }

    fn of(
        found: Vec<(String, String, Option<String>)>,
        config: &Outbox,
        routes: &Routes,
    ) -> Result<Self, Unfit> {
        let type_of =
            |name: &str| found.iter().find(|(of, _, _)| of == name).map(|(_, ty, _)| ty.clone());
        let key_columns = routes.key_columns();
        let columns = &config.columns;
        let needed = ["id", "event_type", "payload", "processed_at", "order"];
        let named = needed.iter().filter_map(|role| columns.get(role));
        for name in named.chain(key_columns.iter().map(String::as_str)) {
            if type_of(name).is_none() {
                return Err(Unfit(format!(
                    "the table {} has no column `{name}`",
                    quoted_table(&config.table)
                )));
            }
        }
        let id = columns.get("id").unwrap_or("id").to_owned();
        let id_type = type_of(&id).unwrap_or_default();
        let mut order = Vec::new();
        if let Some(name) = columns.get("order") {
            order.push((name.to_owned(), type_of(name).unwrap_or_default()));
        } else if !is_whole(&id_type) {
            // Numbers that are drawn by chance are in no order.
            let at = columns.get("created_at").and_then(|name| Some((name, type_of(name)?)));
            let (name, ty) = at.ok_or_else(|| {
                Unfit(format!(
                    "`{id}` is no number that counts up, and no column tells the order of the rows; name one in \
                     `outbox.columns`, `order = …`"
                ))
            })?;
            order.push((name.to_owned(), ty));
        }
        order.push((id, id_type));
        Ok(Self {
            table: quoted_table(&config.table),
            lease: lease_table(&config.table),
            name: config.table.clone(),
            found,
            config: config.clone(),
            order,
            key_columns,
        })
    }

    /// What is odd about the table and does not keep it from being read.
    pub fn warning(&self) -> Option<String> {
        let (first, _) = self.order.first()?;
        let default = self.found.iter().find(|(of, _, _)| of == first)?.2.as_deref()?;
        let default = default.to_lowercase();
        let is_of_the_transaction = ["now()", "current_timestamp", "transaction_timestamp()"]
            .iter()
            .any(|of| default.contains(of));
        is_of_the_transaction.then(|| {
            format!(
                "`{first}` is when a transaction began: of two that change one entity the later may have begun first; \
                 give it the default `clock_timestamp()`"
            )
        })
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn lease(&self) -> &str {
        &self.lease
    }

    fn has(&self, role: &str) -> Option<String> {
        let name = self.config.columns.get(role)?;
        self.found.iter().any(|(of, _, _)| of == name).then(|| quoted(name))
    }

    fn of_row(&self, role: &str) -> String {
        self.has(role).unwrap_or_default()
    }

    fn id(&self) -> (String, &str) {
        let (name, ty) = self.order.last().expect("the id is there");
        (quoted(name), ty)
    }

    fn in_order(&self, of: &str) -> String {
        let columns = self.order.iter().map(|(name, _)| format!("{of}.{}", quoted(name)));
        columns.collect::<Vec<_>>().join(", ")
    }

    /// `SELECT … FROM table t`, as [`row`](Self::row) takes it.
    fn select(&self) -> String {
        let mut columns: Vec<_> =
            self.order.iter().map(|(name, _)| format!("t.{}::text", quoted(name))).collect();
        columns.push(format!("t.{}::text", self.of_row("event_type")));
        columns.push(format!("t.{}::text", self.of_row("payload")));
        columns.push(match self.has("created_at") {
            Some(at) => format!("(extract(epoch from t.{at}) * 1000)::bigint"),
            None => "NULL::bigint".to_owned(),
        });
        columns.push(match self.has("retry_count") {
            Some(count) => format!("coalesce(t.{count}, 0) > 0"),
            None => "false".to_owned(),
        });
        columns.extend(self.key_columns.iter().map(|name| format!("t.{}::text", quoted(name))));
        format!("SELECT {} FROM {} t", columns.join(", "), self.table)
    }

    /// A row of [`select`](Self::select).
    pub fn row(&self, of: &tokio_postgres::Row) -> OutboxRow {
        let ordered = self.order.len();
        let text = |at: usize| of.get::<_, Option<String>>(at);
        let order: Vec<String> = (0..ordered).map(|at| text(at).unwrap_or_default()).collect();
        let keys = self.key_columns.iter().enumerate().map(|(at, name)| {
            let ty = self.found.iter().find(|(of, _, _)| of == name).map(|(_, ty, _)| ty.as_str());
            (name.clone(), text(ordered + 4 + at), ty.is_some_and(is_whole))
        });
        OutboxRow {
            id: order.last().cloned().unwrap_or_default(),
            event: text(ordered).unwrap_or_default(),
            payload: text(ordered + 1),
            comes_again: of.get(ordered + 3),
            wall_ms: of
                .get::<_, Option<i64>>(ordered + 2)
                .and_then(|ms| u64::try_from(ms).ok())
                .unwrap_or(0),
            keys: keys.collect(),
            order,
        }
    }

    fn ids(&self, param: usize) -> String {
        format!("ANY(${param}::text[]::{}[])", self.id().1)
    }

    /// The first rows of a condition, in order: so many at the most, and so many bytes of payloads as they are stored, one
    /// row at the least. What a batch takes in memory is known before it is read, however large the next rows are.
    fn first(&self, condition: &str, (rows, bytes): (usize, usize)) -> String {
        let (table, order, (id, _)) = (&self.table, self.in_order("t"), self.id());
        let payload = self.of_row("payload");
        format!(
            "{} JOIN (SELECT s.{id} AS one, sum(s.size) OVER (ORDER BY {} ROWS UNBOUNDED PRECEDING) - s.size AS before \
             FROM (SELECT {order}, coalesce(pg_column_size(t.{payload}), 0) + {ROW_BYTES} AS size FROM {table} t \
             WHERE {condition} ORDER BY {order} LIMIT {rows}) s) f ON f.one = t.{id} AND f.before < {bytes} ORDER BY {order}",
            self.select(),
            self.in_order("s"),
        )
    }

    /// What waits, but for rows of these ids (`$1`).
    pub fn unprocessed(&self, limit: (usize, usize)) -> String {
        let (processed, (id, _)) = (self.of_row("processed_at"), self.id());
        let condition = format!("t.{processed} IS NULL AND NOT (t.{id} = {})", self.ids(1));
        self.first(&condition, limit)
    }

    /// Of what was processed that which is behind a row (`$1`…), or all of it.
    fn is_processed(&self, is_behind: bool) -> String {
        let behind = if is_behind {
            let values: Vec<_> = self
                .order
                .iter()
                .enumerate()
                .map(|(at, (_, ty))| format!("${}::text::{ty}", at + 1))
                .collect();
            format!(" AND ({}) > ({})", self.in_order("t"), values.join(", "))
        } else {
            String::new()
        };
        format!("t.{} IS NOT NULL{behind}", self.of_row("processed_at"))
    }

    /// What was processed, behind a row (`$1`…) where `is_behind`.
    pub fn processed(&self, is_behind: bool, limit: (usize, usize)) -> String {
        self.first(&self.is_processed(is_behind), limit)
    }

    /// How many rows that is.
    pub fn count_processed(&self, is_behind: bool) -> String {
        format!("SELECT count(*) FROM {} t WHERE {}", self.table, self.is_processed(is_behind))
    }

    /// Marks rows (`$1`), and those that make no sense (`$2`) with what is wrong with them (`$3`), for the reader of the
    /// term `$5`, that has come to the position `$4`. Tells whether it is that reader still.
    pub fn mark(&self) -> String {
        let (table, processed) = (&self.table, self.of_row("processed_at"));
        let (id, ty) = self.id();
        // In one statement for both: CockroachDB takes no two that change one table.
        let error =
            self.has("last_error").map(|name| format!(", {name} = coalesce(r.error, t.{name})"));
        let count = self.has("retry_count").map(|name| {
            format!(
                ", {name} = CASE WHEN r.error IS NULL THEN t.{name} ELSE coalesce(t.{name}, 0) + 1 END"
            )
        });
        let noted = [error, count].into_iter().flatten().collect::<String>();
        format!(
            "WITH held AS (UPDATE {} SET position = $4::bigint WHERE outbox = {} AND term = $5::bigint RETURNING 1), \
             done AS (SELECT m.id, NULL::text AS error FROM unnest($1::text[]) AS m(id) UNION ALL \
             SELECT e.id, e.error FROM unnest($2::text[], $3::text[]) AS e(id, error)), \
             marked AS (UPDATE {table} t SET {processed} = now(){noted} FROM done r \
             WHERE t.{id} = r.id::{ty} AND t.{processed} IS NULL AND EXISTS (SELECT 1 FROM held) \
             RETURNING r.error IS NOT NULL AS is_refused) \
             SELECT (SELECT count(*) FROM held), (SELECT count(*) FROM marked WHERE NOT is_refused), \
             (SELECT count(*) FROM marked WHERE is_refused)",
            self.lease,
            literal(&self.name),
        )
    }

    /// Has rows (`$1`) come again, and all behind them of the same entity, which are newer.
    pub fn again(&self) -> String {
        let (table, processed, (id, _)) = (&self.table, self.of_row("processed_at"), self.id());
        let error = self.has("last_error").map(|name| format!(", {name} = NULL"));
        let same: Vec<_> = ["entity_type", "entity_id"]
            .iter()
            .filter_map(|role| self.has(role))
            .map(|name| format!("bad.{name} = t.{name}"))
            .collect();
        let newer = if self.has("entity_id").is_some() {
            format!(
                " OR EXISTS (SELECT 1 FROM {table} bad WHERE bad.{id} = {} AND {} AND ({}) > ({}))",
                self.ids(1),
                same.join(" AND "),
                self.in_order("t"),
                self.in_order("bad"),
            )
        } else {
            String::new()
        };
        format!(
            "UPDATE {table} t SET {processed} = NULL{} WHERE t.{processed} IS NOT NULL AND (t.{id} = {}{newer}) RETURNING t.{id}::text",
            error.unwrap_or_default(),
            self.ids(1),
        )
    }

    /// All rows that may be of one of these documents, in order, and the texts that their keys may have there.
    pub fn of_documents(
        &self,
        routes: &Routes,
        ns: &Namespace,
        keys: &[&DocumentKey],
    ) -> Option<(String, Vec<Vec<String>>)> {
        let mut places: Vec<&KeyPlace> = Vec::new();
        for route in routes.to(ns) {
            if !places.contains(&&route.key) {
                places.push(&route.key);
            }
        }
        let mut params: Vec<Vec<String>> = Vec::new();
        let mut any = Vec::new();
        for place in places {
            let texts: Vec<String> = keys.iter().filter_map(|key| text_of(key)).collect();
            let n = params.len() + 1;
            match place {
                KeyPlace::Column(name) => {
                    let ty = self.found.iter().find(|(of, _, _)| of == name);
                    let ty = ty.map_or("text", |(_, ty, _)| ty.as_str());
                    let column = format!("t.{}", quoted(name));
                    if is_whole(ty) {
                        any.push(format!("{column} = ANY(${n}::text[]::{ty}[])"));
                        params
                            .push(texts.into_iter().filter(|t| t.parse::<i64>().is_ok()).collect());
                    } else {
                        let cast = if ty == "text" { "" } else { "::text" };
                        any.push(format!("{column}{cast} = ANY(${n}::text[])"));
                        params.push(texts);
                    }
                }
                KeyPlace::Payload(path) => {
                    let payload = self.config.columns.get("payload").unwrap_or("payload");
                    any.push(format!("(t.{}) = ANY(${n}::text[])", payload_text(payload, path)));
                    params.push(texts);
                }
            }
        }
        if any.is_empty() {
            return None;
        }
        let sql =
            format!("{} WHERE {} ORDER BY {}", self.select(), any.join(" OR "), self.in_order("t"));
        Some((sql, params))
    }

    /// Deletes rows that were processed so many seconds ago (`$1`), the oldest first and none before one that is not as
    /// old: the rows that are left of a document are its newest, whatever a clock has done.
    pub fn expire(&self, limit: usize) -> String {
        let (table, processed, (id, _)) = (&self.table, self.of_row("processed_at"), self.id());
        let columns: Vec<_> = self.order.iter().map(|(name, _)| quoted(name)).collect();
        let columns = columns.join(", ");
        format!(
            "WITH oldest AS (SELECT {columns}, {processed} AS at FROM {table} WHERE {processed} IS NOT NULL \
             ORDER BY {columns} LIMIT {limit}), \
             expired AS (SELECT {id} AS id, bool_and(at < now() - $1::float8 * '1 second'::interval) OVER \
             (ORDER BY {columns}) AS is_expired FROM oldest) \
             DELETE FROM {table} WHERE {id} IN (SELECT id FROM expired WHERE is_expired) RETURNING 1"
        )
    }

    /// How many rows wait, for how many milliseconds the oldest, and what time it is, as milliseconds since 1970: all by the
    /// database's own clock.
    pub fn waiting(&self) -> String {
        let oldest = match self.has("created_at") {
            Some(at) => {
                format!("(extract(epoch from clock_timestamp() - min({at})) * 1000)::bigint")
            }
            None => "NULL::bigint".to_owned(),
        };
        format!(
            "SELECT count(*), {oldest}, (extract(epoch from clock_timestamp()) * 1000)::bigint \
             FROM {} WHERE {} IS NULL",
            self.table,
            self.of_row("processed_at")
        )
    }
}

pub(super) fn is_whole(ty: &str) -> bool {
    ["bigint", "integer", "smallint"].contains(&ty)
}

/// How a key looks as text; `None` for one that no column and no payload can have.
fn text_of(key: &DocumentKey) -> Option<String> {
    Some(match key.value().ok()? {
        RawBsonRef::String(text) => text.to_owned(),
        RawBsonRef::Int32(number) => number.to_string(),
        RawBsonRef::Int64(number) => number.to_string(),
        RawBsonRef::Boolean(value) => value.to_string(),
        RawBsonRef::ObjectId(id) => format!("{{\"$oid\": \"{}\"}}", id.to_hex()),
        value => match Bson::try_from(value).ok()?.into_relaxed_extjson() {
            serde_json::Value::Number(number) => number.to_string(),
            _ => return None,
        },
    })
}
