//! What an outbox is found to be like before anything is read from it. Nothing is made there, and nothing is changed.

use tokio_postgres::types::{ToSql, Type};

use super::{
    OutboxSource, away, lease,
    shape::{NotSeen, Shape, Unfit},
    table::{lease_table, quoted, quoted_table},
    tables::Tables,
    waiting,
};
use crate::{
    config::TableRule,
    policy::backlog::Backlog,
    postgres::connect::{Failed, Row, Session},
    source::SourceError,
};

/// What was found.
#[derive(Debug, Default)]
pub struct Looked {
    /// Why the table of events cannot be read at all. Nothing else is looked at then.
    pub unfit: Option<String>,
    /// What is odd about it, and does not keep it from being read.
    pub odd: Option<String>,
    /// Rights that the user lacks, each with its table as SQL names it.
    pub lacks: Vec<(&'static str, String)>,
    /// False where each look for new rows reads the whole table.
    pub is_indexed: bool,
    /// Whether an agent reads it now; `None` where none ever has.
    pub is_read: Option<bool>,
    /// `None` where the user may not read the rows.
    pub waiting: Option<Backlog>,
    /// Each table that is compared, with what is wrong with it.
    pub tables: Vec<(String, Vec<Flaw>)>,
}

/// What is wrong with a table that is compared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Flaw {
    IsMissing,
    /// A declared column that it does not have.
    HasNoColumn(String),
    /// The user may not read it.
    MayNotRead,
    /// Nothing keeps two rows from having one key, and each page of a comparison sorts all rows.
    KeyIsNotUnique,
    /// Each page of a comparison sorts so many rows, about, for want of an index of this, in SQL.
    IsSorted {
        rows: u64,
        index: String,
    },
}

impl OutboxSource {
    /// What tells this outbox from another one, wherever its database has moved: drawn by whoever looks first.
    ///
    /// # Errors
    /// When the database cannot be asked, or the table is not fit.
    pub async fn identify(&self) -> Result<String, SourceError> {
        let shape = self.0.shape().await?;
        if let Some(warning) = shape.warning() {
            tracing::warn!(error = %warning, "the order of the outbox's rows is not certain");
        }
        let mut session = self.0.db.session().await.map_err(away)?;
        lease::identify(&mut session, &shape).await.map_err(away)
    }

    /// As [`identify`](Self::identify), where somebody has drawn it.
    ///
    /// # Errors
    /// When the database cannot be asked.
    pub async fn known_id(&self) -> Result<Option<String>, SourceError> {
        let (inner, mut session) = (&self.0, self.0.db.session().await.map_err(away)?);
        match lease::known(&mut session, &inner.config.table).await {
            Ok(known) => Ok(known),
            Err(failed) if failed.is(&["42P01", "3F000"]) => Ok(None),
            Err(failed) => Err(away(failed)),
        }
    }

    /// Looks at everything that is read or written there.
    ///
    /// # Errors
    /// When the database cannot be asked.
    pub async fn look(&self) -> Result<Looked, Failed> {
        let inner = &self.0;
        let mut session = inner.db.session().await?;
        let mut looked = Looked::default();
        let shape = match Shape::see(&mut session, &inner.config, &inner.routes).await {
            Ok(shape) => shape,
            Err(NotSeen::Failed(failed)) => return Err(failed),
            Err(NotSeen::Unfit(Unfit(problem))) => {
                looked.unfit = Some(problem);
                return Ok(looked);
            }
        };
        looked.odd = shape.warning();
        let lease = lease_table(&inner.config.table);
        if !is_there(&mut session, &lease).await? {
            looked.unfit = Some(format!("there is no table {lease}, in which the reader is noted"));
            return Ok(looked);
        }
        let events = quoted_table(&inner.config.table);
        for (table, rights) in
            [(&events, &["SELECT", "UPDATE", "DELETE"]), (&lease, &["SELECT", "INSERT", "UPDATE"])]
        {
            for right in rights {
                if !may(&mut session, table, right).await? {
                    looked.lacks.push((right, table.clone()));
                }
            }
        }
        looked.is_indexed = asks(&mut session, IS_INDEXED, &[&events]).await?;
        if looked.lacks.iter().all(|(right, _)| *right != "SELECT") {
            let seen = lease::look(&mut session, &shape).await?;
            looked.is_read = seen.map(|seen| seen.is_live);
            let rows = session.query(&shape.waiting(), &[]).await?;
            looked.waiting = rows.first().map(waiting::backlog);
        }
        for rule in inner.tables.all() {
            let flaws = flaws(&mut session, &inner.tables, rule).await?;
            looked.tables.push((quoted_table(&rule.name), flaws));
        }
        Ok(looked)
    }
}

/// An index of nothing but what waits.
const IS_INDEXED: &str = "SELECT EXISTS (SELECT 1 FROM pg_index WHERE indrelid = $1::text::regclass AND indpred IS NOT NULL \
     AND pg_get_expr(indpred, indrelid) ILIKE '%IS NULL%')";

const IS_UNIQUE: &str = "SELECT EXISTS (SELECT 1 FROM pg_index i JOIN pg_attribute a ON a.attrelid = i.indrelid \
     AND a.attnum = i.indkey[0] WHERE i.indrelid = $1::text::regclass AND i.indisunique AND i.indnatts = 1 \
     AND i.indpred IS NULL AND a.attname = $2::text)";

const HAS_COLUMN: &str = "SELECT EXISTS (SELECT 1 FROM pg_attribute WHERE attrelid = $1::text::regclass \
     AND attname = $2::text AND attnum > 0 AND NOT attisdropped)";

async fn flaws(
    session: &mut Session,
    tables: &Tables,
    rule: &TableRule,
) -> Result<Vec<Flaw>, Failed> {
    let table = quoted_table(&rule.name);
    if !is_there(session, &table).await? {
        return Ok(vec![Flaw::IsMissing]);
    }
    let mut found = Vec::new();
    for column in std::iter::once(&rule.key).chain(&rule.columns) {
        let flaw = Flaw::HasNoColumn(quoted(column));
        if !asks(session, HAS_COLUMN, &[&table, column]).await? && !found.contains(&flaw) {
            found.push(flaw);
        }
    }
    if !may(session, &table, "SELECT").await? {
        found.push(Flaw::MayNotRead);
    }
    if found.is_empty() && !asks(session, IS_UNIQUE, &[&table, &rule.key]).await? {
        found.push(Flaw::KeyIsNotUnique);
    }
    if found.is_empty() {
        found.extend(sorted(session, tables, rule).await?);
    }
    Ok(found)
}

/// Rows that are sorted in no time.
const FEW: f64 = 10_000.0;

/// What the database itself plans to do for a page.
async fn sorted(
    session: &mut Session,
    tables: &Tables,
    rule: &TableRule,
) -> Result<Option<Flaw>, Failed> {
    let (table, key) = (quoted_table(&rule.name), tables.key(session, rule).await?);
    let Some(index) = key.wants_index() else { return Ok(None) };
    let sql = "SELECT reltuples::float8 FROM pg_class WHERE oid = $1::text::regclass";
    let rows = session.query(sql, &[(&table, Type::TEXT)]).await?;
    let rows = rows.first().map_or(0.0, |row| row.get::<_, f64>(0));
    if rows < FEW {
        return Ok(None);
    }
    let page = format!("EXPLAIN SELECT * FROM {table} t ORDER BY {} LIMIT 1", key.order());
    let plan = session.query(&page, &[]).await?;
    let is_sort = |row: &Row| {
        let step = row.get::<_, String>(0);
        step.trim_start_matches(|c: char| !c.is_alphanumeric()).to_lowercase().starts_with("sort")
    };
    Ok(plan.iter().any(is_sort).then_some(Flaw::IsSorted { rows: rows as u64, index }))
}

/// A name in a schema that the user may not look into is as good as missing.
async fn is_there(session: &mut Session, table: &str) -> Result<bool, Failed> {
    match asks(session, "SELECT to_regclass($1::text) IS NOT NULL", &[table]).await {
        Err(failed) if failed.is(&["42501"]) => Ok(false),
        asked => asked,
    }
}

/// On the whole table, or on columns of it alone.
async fn may(session: &mut Session, table: &str, right: &str) -> Result<bool, Failed> {
    let sql = if right == "DELETE" {
        "SELECT has_table_privilege($1::text, $2::text)"
    } else {
        "SELECT has_any_column_privilege($1::text, $2::text)"
    };
    asks(session, sql, &[table, right]).await
}

async fn asks(session: &mut Session, sql: &str, params: &[&str]) -> Result<bool, Failed> {
    let params: Vec<_> =
        params.iter().map(|text| (text as &(dyn ToSql + Sync), Type::TEXT)).collect();
    let rows = session.query(sql, &params).await?;
    Ok(rows.first().is_some_and(|row| row.get(0)))
}
