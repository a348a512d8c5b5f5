//! Collections that come, go, and change their names: in the order of the stream, each in one transaction.
//!
//! A `create` makes nothing that the first document would not; options, validators and indexes of MongoDB are not
//! carried. A table that Outrigger has not made is nobody's to change here: what is to have its name waits for a person.
//! So does a drop of a table on which a view of a person's stands.

use tokio_postgres::types::Type;

use super::{
    connect::{Failed, Param, Session},
    ddl::{self, STATUS_VIEW},
    fence::{self, Fence},
    names::{OWN_SCHEMA, literal, marked, quoted},
    table::{CHILD_COLUMNS, OWN_COLUMNS, SYNCED_AT, Table},
};
use crate::{
    config::ColumnType,
    sink::{Changed, SinkError},
};

/// Two that make the same table at once wait for each other: PostgreSQL's own `IF NOT EXISTS` does not. And no longer
/// than this for a table that somebody reads: everybody else who wants to read it waits behind.
const MAKING: &str =
    "SET LOCAL lock_timeout = '5s'; SELECT pg_advisory_xact_lock(7161820493204185)";

/// dependent_objects_still_exist, lock_not_available.
const DEPENDED_ON: &str = "2BP01";
const IN_USE: &str = "55P03";

/// In the place of the notes where they are not there.
const NO_NOTES: &str = "(SELECT NULL::text AS ns, NULL::text AS path, NULL::text AS table_schema, NULL::text AS table_name WHERE false)";

/// What is done to tables.
#[derive(Clone, Copy, Debug)]
pub enum Change<'a> {
    Make(&'a Table),
    Drop(&'a Table),
    Rename { from: &'a Table, to: &'a Table },
}

/// Why it was not done.
pub(super) enum Undone {
    Failed(Failed),
    /// A person has to make way for it.
    InTheWay(String),
    /// Somebody reads or writes the table for long, which passes.
    InUse,
}

impl From<Failed> for Undone {
    fn from(failed: Failed) -> Self {
        if failed.is(&[DEPENDED_ON]) {
            let problem = failed.problem;
            return Undone::InTheWay(format!(
                "{problem}: a view, or a constraint of another table, stands on it; drop that first"
            ));
        }
        if failed.is(&[IN_USE]) {
            return Undone::InUse;
        }
        Undone::Failed(failed)
    }
}

/// Does it, or nothing. Doing it twice is harmless.
///
/// # Errors
/// Where the server could not be asked or will not; [`SinkError::Held`] where something of a person's is in the way.
pub async fn apply(
    session: &mut Session,
    fence: Option<&Fence>,
    change: Change<'_>,
) -> Result<Changed, SinkError> {
    let begun = fence::begin(session, fence).await?;
    let is_made = matches!(change, Change::Make(_));
    let done = match within(session, change).await {
        Ok(changed) => session.batch("COMMIT").await.map(|()| changed).map_err(Undone::from),
        Err(undone) => Err(undone),
    };
    match done {
        Ok(changed) => {
            begun.committed();
            Ok(changed)
        }
        Err(undone) => {
            begun.roll_back(session).await;
            Err(match undone {
                Undone::Failed(failed) => failed.into(),
                Undone::InTheWay(reason) => SinkError::Held(reason),
                Undone::InUse => {
                    let problem = "another transaction has been using the table for long";
                    // No document is to blame for it, so none that waits for its table is given up.
                    if is_made {
                        SinkError::Unavailable(problem.to_owned())
                    } else {
                        SinkError::Held(problem.to_owned())
                    }
                }
            })
        }
    }
}

async fn within(session: &mut Session, change: Change<'_>) -> Result<Changed, Undone> {
    session.batch(MAKING).await?;
    ddl::run(session, &ddl::own()).await?;
    match change {
        Change::Make(table) => {
            require_ours(session, table, Noted::ToBeMade).await?;
            // A statement that adds nothing would wait for whoever reads the table all the same.
            if !is_made(session, table).await? {
                drop_retyped(session, table).await?;
                ddl::run(session, &ddl::of_table(table)).await?;
                ddl::renew_status_view(session).await?;
            }
            Ok(Changed::Done)
        }
        Change::Drop(table) => {
            drop_table(session, table).await?;
            Ok(Changed::Done)
        }
        Change::Rename { from, to } => rename(session, from, to).await,
    }
}

/// Whether all of it is there, and noted.
async fn is_made(session: &mut Session, table: &Table) -> Result<bool, Failed> {
    let own = quoted(OWN_SCHEMA);
    let sql = format!(
        "SELECT (SELECT count(*) FROM unnest($2, $3) w(name, type) JOIN pg_attribute ON attrelid = to_regclass($1) \
         AND attname = name AND atttypid = type::regtype AND NOT attisdropped) = cardinality($2) \
         AND EXISTS (SELECT FROM {own}.tables WHERE ns = $4) AND to_regclass('{own}.{STATUS_VIEW}') IS NOT NULL"
    );
    for (name, columns) in table.all() {
        let (names, types) = named(columns);
        let ns = table.ns.as_str();
        let params: [Param<'_>; 4] = [
            (&name, Type::TEXT),
            (&names, Type::TEXT_ARRAY),
            (&types, Type::TEXT_ARRAY),
            (&ns, Type::TEXT),
        ];
        let rows = session.query(&sql, &params).await?;
        if !rows.first().is_some_and(|row| row.try_get(0).unwrap_or_default()) {
            return Ok(false);
        }
    }
    Ok(true)
}

fn named(columns: Vec<(&str, ColumnType)>) -> (Vec<&str>, Vec<&'static str>) {
    columns.into_iter().map(|(name, ty)| (name, ty.name())).unzip()
}

/// A column that is declared with another type by now is made again. What was in it is in the documents as well, and
/// whoever has declared it anew has everything compared.
async fn drop_retyped(session: &mut Session, table: &Table) -> Result<(), Undone> {
    for (name, column) in retyped(session, table).await? {
        tracing::warn!(ns = %table.ns, column, "a column is declared with another type now: it is made anew, without its indexes, and filled again");
        let column = quoted(&column);
        session.batch(&format!("ALTER TABLE {name} DROP COLUMN {column}")).await?;
    }
    Ok(())
}

/// The declared columns that have another type in the database: each with its table as SQL names it.
pub(super) async fn retyped(
    session: &mut Session,
    table: &Table,
) -> Result<Vec<(String, String)>, Failed> {
    let sql = "SELECT attname::text FROM unnest($2, $3) w(name, type) JOIN pg_attribute ON attrelid = to_regclass($1) \
               AND attname = name AND atttypid <> type::regtype AND NOT attisdropped";
    let (own_columns, child_columns) = columns_of_each();
    let mut found = Vec::new();
    for (name, columns) in table.all() {
        let is_declared =
            |(name, _): &(&str, _)| !own_columns.contains(name) && !child_columns.contains(name);
        let (names, types) = named(columns.into_iter().filter(is_declared).collect());
        if names.is_empty() {
            continue;
        }
        let params: [Param<'_>; 3] =
            [(&name, Type::TEXT), (&names, Type::TEXT_ARRAY), (&types, Type::TEXT_ARRAY)];
        for row in session.query(sql, &params).await? {
            found.push((name.clone(), row.try_get(0)?));
        }
    }
    Ok(found)
}

/// What is noted of the tables that there are.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Noted {
    /// And whose name is to be another's, since it is to be made.
    ToBeMade,
    ByName,
    /// There is no note of any.
    Nowhere,
}

/// A table that is there is this collection's, or one of its children's, as Outrigger has noted it.
pub(super) async fn require_ours(
    session: &mut Session,
    table: &Table,
    noted: Noted,
) -> Result<(), Undone> {
    let own = quoted(OWN_SCHEMA);
    let (tables, children) = match noted {
        Noted::ToBeMade | Noted::ByName => (format!("{own}.tables"), format!("{own}.children")),
        Noted::Nowhere => (NO_NOTES.to_owned(), NO_NOTES.to_owned()),
    };
    let sql = format!(
        "SELECT t.ns, c.ns, c.path, \
         EXISTS (SELECT FROM pg_class k JOIN pg_namespace n ON n.oid = k.relnamespace WHERE n.nspname = $1 AND k.relname = $2), \
         (SELECT count(*) FROM pg_attribute WHERE attrelid = to_regclass(format('%I.%I', $1, $2)) AND attname = ANY($3)) \
         = cardinality($3) \
         FROM (SELECT 1) q \
         LEFT JOIN {tables} t ON t.table_schema = $1 AND t.table_name = $2 \
         LEFT JOIN {children} c ON c.table_schema = $1 AND c.table_name = $2"
    );
    let (own_columns, child_columns) = columns_of_each();
    let whole = std::iter::once((&table.schema, &table.name, None));
    let children = table.children.iter().map(|of| (&of.schema, &of.name, Some(of.path.as_str())));
    for (schema, name, path) in whole.chain(children) {
        let columns = if path.is_none() { &own_columns } else { &child_columns };
        let params: [Param<'_>; 3] =
            [(schema, Type::TEXT), (name, Type::TEXT), (columns, Type::TEXT_ARRAY)];
        let rows = session.query(&sql, &params).await?;
        let Some(row) = rows.first() else { continue };
        let text = |at| row.try_get::<_, Option<String>>(at).ok().flatten();
        let is_there: bool = row.try_get(3).unwrap_or_default();
        let ns = Some(table.ns.to_string());
        let is_ours = match path {
            None => text(0) == ns,
            Some(path) => text(1) == ns && text(2).as_deref() == Some(path),
        };
        // Where Outrigger's own schema was dropped, its tables are known by their columns.
        let is_known =
            || row.try_get(4).unwrap_or_default() && text(0).is_none() && text(1).is_none();
        // Another table may have taken the name of one that somebody has dropped or renamed by hand.
        let has_its_columns = !is_there || row.try_get(4).unwrap_or_default();
        if (is_ours && has_its_columns) || is_known() {
            continue;
        }
        if !is_there {
            // What is noted of a table that somebody has dropped by hand must not stand for the one that takes its name.
            for of in ["tables", "children"].iter().filter(|_| noted == Noted::ToBeMade) {
                let sql =
                    format!("DELETE FROM {own}.{of} WHERE table_schema = $1 AND table_name = $2");
                session.query(&sql, &[(schema, Type::TEXT), (name, Type::TEXT)]).await?;
            }
            continue;
        }
        let whose = match (text(0), text(1)) {
            (Some(ns), _) => format!("is that of the collection {ns}"),
            (None, Some(ns)) => format!("is that of an array of {ns}"),
            (None, None) => "was not made by Outrigger, so it is somebody else's".to_owned(),
        };
        let (schema, name) = (quoted(schema), quoted(name));
        return Err(Undone::InTheWay(format!(
            "the table {schema}.{name} {whose}, and is not written to: rename it or drop it, or name another table in \
             the configuration"
        )));
    }
    Ok(())
}

/// The columns that each table of documents has, and each of an array's items.
fn columns_of_each() -> (Vec<&'static str>, Vec<&'static str>) {
    let own = OWN_COLUMNS.iter().map(|(name, ..)| *name).chain([SYNCED_AT]).collect();
    (own, CHILD_COLUMNS.iter().map(|(name, _)| *name).collect())
}

/// The view first, which is of all tables, and would keep each of them.
async fn drop_table(session: &mut Session, table: &Table) -> Result<(), Undone> {
    // Those that it has by what is declared, and had by what was declared before.
    let own = quoted(OWN_SCHEMA);
    // One that has not their columns is somebody's, who has taken the name.
    let sql = format!(
        "SELECT format('%I.%I', table_schema, table_name) FROM \
         (SELECT ns, table_schema, table_name, $3 AS columns FROM {own}.children UNION ALL \
         SELECT ns, table_schema, table_name, $2 AS columns FROM {own}.tables) a WHERE ns = $1 AND \
         (SELECT count(*) FROM pg_attribute WHERE attrelid = to_regclass(format('%I.%I', table_schema, table_name)) \
         AND attname = ANY(columns) AND NOT attisdropped) = cardinality(columns)"
    );
    let ns = table.ns.as_str();
    let (own_columns, child_columns) = columns_of_each();
    let params: [Param<'_>; 3] =
        [(&ns, Type::TEXT), (&own_columns, Type::TEXT_ARRAY), (&child_columns, Type::TEXT_ARRAY)];
    let rows = session.query(&sql, &params).await?;
    session.batch(&ddl::forget(ns).join(";\n")).await?;
    ddl::renew_status_view(session).await?;
    for row in rows {
        let name: String = row.try_get(0).map_err(Failed::from)?;
        session.batch(&format!("DROP TABLE IF EXISTS {name}")).await?;
    }
    Ok(())
}

async fn rename(session: &mut Session, from: &Table, to: &Table) -> Result<Changed, Undone> {
    let sql = format!(
        "SELECT to_regclass(format('%I.%I', table_schema, table_name)) IS NOT NULL FROM {}.tables WHERE ns = $1",
        quoted(OWN_SCHEMA)
    );
    let ns = from.ns.as_str();
    let there = session.query(&sql, &[(&ns, Type::TEXT)]).await?;
    if !there.first().is_some_and(|row| row.try_get(0).unwrap_or_default()) {
        return Ok(Changed::WasNotThere);
    }
    require_ours(session, from, Noted::ByName).await?;
    drop_table(session, to).await?;
    require_ours(session, to, Noted::ToBeMade).await?;
    ddl::run(session, &moved(from, to)).await?;
    if from.columns == to.columns && from.children.is_empty() && to.children.is_empty() {
        ddl::renew_status_view(session).await?;
        return Ok(Changed::Done);
    }
    // What is declared for the new name is still to be filled, by whoever compares it.
    for child in &from.children {
        session.batch(&format!("DROP TABLE IF EXISTS {}", child.quoted())).await?;
    }
    let own = quoted(OWN_SCHEMA);
    session.batch(&format!("DELETE FROM {own}.children WHERE ns = {}", literal(ns))).await?;
    ddl::run(session, &ddl::of_table(to)).await?;
    ddl::renew_status_view(session).await?;
    Ok(Changed::WasNotThere)
}

/// By its name alone, and without the columns that were declared for the old one. The shape that each row keeps says by
/// what it was made.
fn moved(from: &Table, to: &Table) -> Vec<String> {
    // Neither schema may have another table of the name that it has in between.
    let between = quoted(&marked("outrigger_moving", to.ns.as_str()));
    let (old, new) = (quoted(&from.schema), quoted(&to.schema));
    let mut statements = vec![
        ddl::make_schema(&to.schema),
        format!("ALTER TABLE {} RENAME TO {between}", from.quoted()),
        format!("ALTER TABLE {old}.{between} SET SCHEMA {new}"),
        format!("ALTER TABLE {new}.{between} RENAME TO {}", quoted(&to.name)),
        format!(
            "UPDATE {}.tables SET ns = {}, table_schema = {}, table_name = {} WHERE ns = {}",
            quoted(OWN_SCHEMA),
            literal(to.ns.as_str()),
            literal(&to.schema),
            literal(&to.name),
            literal(from.ns.as_str())
        ),
        failures_moved(from, to),
    ];
    let other = from.columns.iter().filter(|column| !to.columns.contains(column));
    let dropped: Vec<_> =
        other.map(|column| format!("DROP COLUMN IF EXISTS {}", quoted(&column.name))).collect();
    if !dropped.is_empty() {
        statements.push(format!("ALTER TABLE {} {}", to.quoted(), dropped.join(", ")));
    }
    statements
}

fn failures_moved(from: &Table, to: &Table) -> String {
    format!(
        "UPDATE {}.failures SET ns = {} WHERE ns = {}",
        quoted(OWN_SCHEMA),
        literal(to.ns.as_str()),
        literal(from.ns.as_str())
    )
}
