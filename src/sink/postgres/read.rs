//! What stands in the tables: rows in the order of their keys, by key, and how many.
//!
//! Of a row its `_id`, what a person reads of it, and its [`mod@print`] are told. No document crosses the line,
//! but for a restore.

use tokio_postgres::{Row as Answered, types::Type};

use super::{
    class::Class,
    connect::{Failed, Param, Postgres},
    names::{OWN_SCHEMA, quoted},
    print,
    row::KEY_BYTES_MAX,
    table::{Child, SYNCED_AT, Table},
};

/// undefined_table, invalid_schema_name: nothing is there.
const NOT_THERE: [&str; 2] = ["42P01", "3F000"];

/// undefined_table, undefined_column, undefined_function: it is there, and not as it is declared.
const NOT_AS_DECLARED: [&str; 3] = ["42P01", "42703", "42883"];

/// Fewer rows than these are counted, where an estimate is asked for.
const COUNTED_MAX: i64 = 100_000;

/// What is asked of each row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// Its key alone.
    Key,
    /// Its key and its print.
    Print,
    /// The document as it was, where it is kept.
    Document,
}

/// A row, as far as it was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SeenRow {
    pub key: Vec<u8>,
    pub id: String,
    /// The print, or the document. `None` where that cannot be had.
    pub what: Option<Vec<u8>>,
    /// It has no row, and there are elements of its arrays.
    pub is_orphan: bool,
}

impl SeenRow {
    pub fn orphan(key: Vec<u8>) -> Self {
        Self { key, id: String::new(), what: None, is_orphan: true }
    }
}

/// Rows from here on, or behind this key, up to a key.
#[derive(Clone, Debug, Default)]
pub struct Stretch {
    pub from: Option<Vec<u8>>,
    pub behind: Option<Vec<u8>>,
    pub before: Option<Vec<u8>>,
    pub up_to: Option<Vec<u8>>,
}

impl Stretch {
    /// Its conditions on the key of a table of some name, and their parameters.
    fn bounds(&self) -> (impl Fn(&str) -> Vec<String>, Vec<Param<'_>>) {
        let Self { from, behind, before, up_to } = self;
        let bounds = [(from, ">="), (behind, ">"), (before, "<"), (up_to, "<=")];
        let (keys, ops): (Vec<_>, Vec<_>) =
            bounds.into_iter().filter_map(|(key, op)| Some((key.as_ref()?, op))).unzip();
        let conditions = move |of: &str| {
            let numbered = ops.iter().zip(1..);
            numbered.map(|(op, n)| format!("{of}._id {op} ${n}")).collect()
        };
        (conditions, keys.into_iter().map(|key| (key as _, Type::BYTEA)).collect())
    }
}

fn seen(row: &Answered) -> Result<SeenRow, tokio_postgres::Error> {
    let (key, id, what) = (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
    Ok(SeenRow { key, id, what, is_orphan: false })
}

fn all(rows: &[Answered]) -> Result<Vec<SeenRow>, Failed> {
    rows.iter().map(seen).collect::<Result<_, _>>().map_err(Failed::from)
}

/// The reading half of a PostgreSQL that is a target.
#[derive(Clone)]
pub struct TableReader(pub Postgres);

impl TableReader {
    /// The rows that a statement finds; none where the table is not there.
    async fn ask(&self, sql: &str, params: &[Param<'_>]) -> Result<Vec<Answered>, Failed> {
        let mut session = self.0.session().await?;
        match session.query(sql, params).await {
            Err(error) if error.is(&NOT_THERE) => Ok(Vec::new()),
            result => result,
        }
    }

    async fn number(&self, sql: &str) -> Result<Option<i64>, Failed> {
        let rows = self.ask(sql, &[]).await?;
        Ok(rows.first().and_then(|row| row.try_get(0).ok()))
    }

    /// Rows with what is wanted of them. Those of a table that is not as it is declared have no print.
    async fn rows(
        &self,
        table: &Table,
        wanted: Wanted,
        rest: &str,
        params: &[Param<'_>],
    ) -> Result<Vec<SeenRow>, Failed> {
        let select =
            |what: &str| format!("SELECT t._id, t.id, {what} FROM {} t {rest}", table.quoted());
        let bare = select("NULL::bytea");
        let sql = match wanted {
            Wanted::Key => return all(&self.ask(&bare, params).await?),
            Wanted::Document => select("t.raw"),
            Wanted::Print => select(&print::sql(table)),
        };
        let mut session = self.0.session().await?;
        match session.query(&sql, params).await {
            Err(error) if error.is(&NOT_AS_DECLARED) => {
                drop(session);
                all(&self.ask(&bare, params).await?)
            }
            result => all(&result?),
        }
    }

    /// Keys of elements in a stretch whose document has no row, in their order.
    ///
    /// # Errors
    /// As [`Session::query`](crate::postgres::connect::Session::query).
    pub async fn orphans(
        &self,
        table: &Table,
        stretch: &Stretch,
        limit: u32,
    ) -> Result<Vec<Vec<u8>>, Failed> {
        let (bounds, params) = stretch.bounds();
        self.orphans_where(table, |of| bounds(of), &format!("LIMIT {limit}"), &params).await
    }

    /// Those of these keys that have elements, and no row.
    ///
    /// # Errors
    /// As [`Session::query`](crate::postgres::connect::Session::query).
    pub async fn orphans_of(
        &self,
        table: &Table,
        keys: &[Vec<u8>],
    ) -> Result<Vec<Vec<u8>>, Failed> {
        let params: [Param<'_>; 1] = [(&keys, Type::BYTEA_ARRAY)];
        self.orphans_where(table, |of| vec![format!("{of}._id = ANY($1)")], "", &params).await
    }

    async fn orphans_where(
        &self,
        table: &Table,
        conditions: impl Fn(&str) -> Vec<String>,
        rest: &str,
        params: &[Param<'_>],
    ) -> Result<Vec<Vec<u8>>, Failed> {
        if table.children.is_empty() {
            return Ok(Vec::new());
        }
        let of_child = |child: &Child| {
            // The same bounds on both: else each row of the table would be looked at for each page.
            let rows = conditions("t").into_iter().chain(["t._id = c._id".to_owned()]);
            let has_row = format!(
                "NOT EXISTS (SELECT FROM {} t WHERE {})",
                table.quoted(),
                rows.collect::<Vec<_>>().join(" AND ")
            );
            // Nobody can tell whose one is that is cut.
            let is_whole = format!("octet_length(c._id) <= {KEY_BYTES_MAX}");
            let all: Vec<_> = conditions("c").into_iter().chain([is_whole, has_row]).collect();
            format!("SELECT c._id FROM {} c WHERE {}", child.quoted(), all.join(" AND "))
        };
        let children: Vec<_> = table.children.iter().map(of_child).collect();
        let sql = format!(
            "SELECT DISTINCT o._id FROM ({}) o ORDER BY o._id {rest}",
            children.join(" UNION ALL ")
        );
        let rows = self.ask(&sql, params).await?;
        rows.iter().map(|row| row.try_get(0)).collect::<Result<_, _>>().map_err(Failed::from)
    }

    /// The first rows of a stretch, in the order of their keys.
    ///
    /// # Errors
    /// As [`Session::query`](crate::postgres::connect::Session::query).
    pub async fn walk(
        &self,
        table: &Table,
        wanted: Wanted,
        stretch: &Stretch,
        limit: u32,
    ) -> Result<Vec<SeenRow>, Failed> {
        let (bounds, params) = stretch.bounds();
        let conditions = match bounds("t") {
            none if none.is_empty() => String::new(),
            some => format!("WHERE {}", some.join(" AND ")),
        };
        let rest = format!("{conditions} ORDER BY t._id LIMIT {limit}");
        self.rows(table, wanted, &rest, &params).await
    }

    /// The rows of these keys; those that are not there are missing.
    ///
    /// # Errors
    /// As [`Session::query`](crate::postgres::connect::Session::query).
    pub async fn find(
        &self,
        table: &Table,
        wanted: Wanted,
        keys: &[Vec<u8>],
    ) -> Result<Vec<SeenRow>, Failed> {
        self.rows(table, wanted, "WHERE t._id = ANY($1)", &[(&keys, Type::BYTEA_ARRAY)]).await
    }

    /// Rows that are drawn at random, about so many, in the order of their keys.
    ///
    /// # Errors
    /// As [`Session::query`](crate::postgres::connect::Session::query).
    pub async fn sample(&self, table: &Table, rows: u64) -> Result<Vec<SeenRow>, Failed> {
        let there = self.estimated_count(table).await?.max(1);
        let percent = (100.0 * rows as f64 / there as f64).clamp(0.000_1, 100.0);
        let sql = format!(
            "SELECT t._id, t.id, NULL::bytea FROM {} t TABLESAMPLE BERNOULLI ({percent}) ORDER BY t._id",
            table.quoted()
        );
        all(&self.ask(&sql, &[]).await?)
    }

    /// Whether a table holds no row, or is not there.
    ///
    /// # Errors
    /// As [`Session::query`](crate::postgres::connect::Session::query).
    pub async fn is_empty(&self, table: &Table) -> Result<bool, Failed> {
        let sql = format!("SELECT 1::bigint FROM {} LIMIT 1", table.quoted());
        Ok(self.number(&sql).await?.is_none())
    }

    /// How many rows there are.
    ///
    /// # Errors
    /// As [`Session::query`](crate::postgres::connect::Session::query).
    pub async fn count(&self, table: &Table) -> Result<u64, Failed> {
        let number = self.number(&format!("SELECT count(*) FROM {}", table.quoted())).await?;
        Ok(number.and_then(|n| n.try_into().ok()).unwrap_or_default())
    }

    /// As PostgreSQL's statistics say; counted where they say that it is little, or nothing yet.
    ///
    /// # Errors
    /// As [`Session::query`](crate::postgres::connect::Session::query).
    pub async fn estimated_count(&self, table: &Table) -> Result<u64, Failed> {
        let sql = "SELECT greatest(c.reltuples::bigint, pg_stat_get_live_tuples(c.oid)) \
                   FROM pg_class c WHERE c.oid = to_regclass($1)";
        let name = table.quoted();
        let rows = self.ask(sql, &[(&name, Type::TEXT)]).await?;
        let estimate = rows.first().and_then(|row| row.try_get::<_, i64>(0).ok());
        match estimate {
            None => Ok(0),
            Some(estimate) if estimate >= COUNTED_MAX => Ok(estimate.unsigned_abs()),
            Some(_) => self.count(table).await,
        }
    }

    /// Bytes of a table, with what is kept beside it.
    ///
    /// # Errors
    /// As [`Session::query`](crate::postgres::connect::Session::query).
    pub async fn bytes(&self, table: &Table) -> Result<u64, Failed> {
        let name = table.quoted();
        let sql = "SELECT pg_table_size(to_regclass($1))";
        let rows = self.ask(sql, &[(&name, Type::TEXT)]).await?;
        let bytes = rows.first().and_then(|row| row.try_get::<_, i64>(0).ok());
        Ok(bytes.map_or(0, i64::unsigned_abs))
    }

    /// When a row was written, in milliseconds from 1970.
    ///
    /// # Errors
    /// As [`Session::query`](crate::postgres::connect::Session::query).
    pub async fn written_at(&self, table: &Table, key: &Vec<u8>) -> Result<Option<u64>, Failed> {
        let sql = format!(
            "SELECT (extract(epoch FROM {}) * 1000)::bigint FROM {} WHERE _id = $1",
            quoted(SYNCED_AT),
            table.quoted()
        );
        let rows = self.ask(&sql, &[(key, Type::BYTEA)]).await?;
        let millis = rows.first().and_then(|row| row.try_get::<_, i64>(0).ok());
        Ok(millis.and_then(|millis| millis.try_into().ok()))
    }

    /// Whether the table is there.
    ///
    /// # Errors
    /// As [`Session::query`](crate::postgres::connect::Session::query).
    pub async fn is_there(&self, table: &Table) -> Result<bool, Failed> {
        let name = table.quoted();
        let rows = self.ask("SELECT to_regclass($1) IS NOT NULL", &[(&name, Type::TEXT)]).await?;
        Ok(rows.first().is_some_and(|row| row.try_get(0).unwrap_or_default()))
    }

    /// Which database of which cluster it is, the same through whatever name or pooler; `None` where that may not be
    /// read.
    ///
    /// # Errors
    /// As [`Session::query`](crate::postgres::connect::Session::query), but for a privilege that is missing.
    pub async fn identity(&self) -> Result<Option<String>, Failed> {
        let sql = "SELECT format('postgres:%s:%s', system_identifier, current_database()) FROM pg_control_system()";
        match self.ask(sql, &[]).await {
            Err(failed) if failed.class == Class::Denied && failed.is(&["42501"]) => Ok(None),
            rows => Ok(rows?.first().and_then(|row| row.try_get(0).ok())),
        }
    }

    /// The collections that have a table.
    ///
    /// # Errors
    /// As [`Session::query`](crate::postgres::connect::Session::query).
    pub async fn collections(&self) -> Result<Vec<String>, Failed> {
        let sql = format!(
            "SELECT ns FROM {}.tables WHERE to_regclass(format('%I.%I', table_schema, table_name)) IS NOT NULL \
             ORDER BY ns",
            quoted(OWN_SCHEMA)
        );
        let rows = self.ask(&sql, &[]).await?;
        rows.iter().map(|row| row.try_get(0)).collect::<Result<_, _>>().map_err(Failed::from)
    }
}
