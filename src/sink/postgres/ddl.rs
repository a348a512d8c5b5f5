//! The statements that make what is written to: Outrigger's own schema, and a table for each collection.
//!
//! Each may be run again, and by two at once: nothing is dropped, a column that is declared later is added, and what is
//! there by that name stays as it is.

use tokio_postgres::types::Type;

use super::{
    connect::{Failed, Session},
    names::{OWN_SCHEMA, literal, quoted},
    table::{CHILD_COLUMNS, Child, OWN_COLUMNS, SYNCED_AT, Table},
};

/// The view for whoever asks in SQL whether a document is there as it is in MongoDB.
pub const STATUS_VIEW: &str = "sync_status";

/// Outrigger's own schema.
pub fn own() -> Vec<String> {
    let schema = quoted(OWN_SCHEMA);
    vec![
        make_schema(OWN_SCHEMA),
        // FAILED: the document is not there, or not as it is in MongoDB. INEXACT: it is, and its `doc` does not say all.
        format!(
            "CREATE TABLE IF NOT EXISTS {schema}.failures (ns text NOT NULL, _id bytea NOT NULL, id text NOT NULL, \
             state text NOT NULL CHECK (state IN ('FAILED', 'INEXACT')), path text NOT NULL DEFAULT '', \
             error text NOT NULL, at timestamptz NOT NULL DEFAULT now(), PRIMARY KEY (ns, _id, state, path))"
        ),
        // Which table is whose. A name may be a hash, and a view is made of all of them.
        format!(
            "CREATE TABLE IF NOT EXISTS {schema}.tables (ns text PRIMARY KEY, table_schema text NOT NULL, \
             table_name text NOT NULL, UNIQUE (table_schema, table_name))"
        ),
        format!(
            "CREATE TABLE IF NOT EXISTS {schema}.children (ns text NOT NULL, path text NOT NULL, \
             table_schema text NOT NULL, table_name text NOT NULL, PRIMARY KEY (table_schema, table_name))"
        ),
    ]
}

/// How a schema is made.
const MAKES_SCHEMA: &str = "CREATE SCHEMA IF NOT EXISTS ";

pub fn make_schema(name: &str) -> String {
    format!("{MAKES_SCHEMA}{}", quoted(name))
}

/// Runs them, but for the making of schemas that are there: PostgreSQL asks for the right to make some before it looks
/// whether there is anything to make, and who has made them for the agent need not give it that.
///
/// # Errors
/// As [`Session::batch`].
pub async fn run(session: &mut Session, statements: &[String]) -> Result<(), Failed> {
    let mut left = Vec::with_capacity(statements.len());
    for statement in statements {
        if let Some(name) = statement.strip_prefix(MAKES_SCHEMA) {
            let sql = "SELECT to_regnamespace($1) IS NOT NULL";
            let rows = session.query(sql, &[(&name, Type::TEXT)]).await?;
            if rows.first().is_some_and(|row| row.try_get(0).unwrap_or_default()) {
                continue;
            }
        }
        left.push(statement.as_str());
    }
    session.batch(&left.join(";\n")).await
}

/// The table of a collection, and those of its children.
pub fn of_table(table: &Table) -> Vec<String> {
    let name = table.quoted();
    let own: Vec<_> = OWN_COLUMNS
        .iter()
        .map(|(name, ty, constraint)| format!("{} {} {constraint}", quoted(name), ty.name()))
        .map(|column| column.trim_end().to_owned())
        .chain([format!("{} timestamptz NOT NULL DEFAULT now()", quoted(SYNCED_AT))])
        .collect();
    let mut statements = vec![
        make_schema(&table.schema),
        format!("CREATE TABLE IF NOT EXISTS {name} ({})", own.join(", ")),
    ];
    let declared = table.columns.iter().map(|column| (&*column.name, column.ty));
    statements.extend(added(&name, declared));
    for child in &table.children {
        statements.extend(of_child(child));
        statements.push(format!(
            "INSERT INTO {}.children (ns, path, table_schema, table_name) VALUES ({}, {}, {}, {}) ON CONFLICT DO NOTHING",
            quoted(OWN_SCHEMA),
            literal(table.ns.as_str()),
            literal(&child.path),
            literal(&child.schema),
            literal(&child.name),
        ));
    }
    statements.push(format!(
        "INSERT INTO {}.tables (ns, table_schema, table_name) VALUES ({}, {}, {}) ON CONFLICT DO NOTHING",
        quoted(OWN_SCHEMA),
        literal(table.ns.as_str()),
        literal(&table.schema),
        literal(&table.name),
    ));
    statements
}

fn of_child(child: &Child) -> Vec<String> {
    let name = child.quoted();
    let own: Vec<_> = CHILD_COLUMNS
        .iter()
        .map(|(name, ty)| format!("{} {} NOT NULL", quoted(name), ty.name()))
        .collect();
    let key: Vec<_> = CHILD_COLUMNS.iter().map(|(name, _)| quoted(name)).collect();
    let create = format!(
        "CREATE TABLE IF NOT EXISTS {name} ({}, PRIMARY KEY ({}))",
        own.join(", "),
        key.join(", ")
    );
    let declared = child.columns.iter().map(|column| (&*column.name, column.ty));
    std::iter::once(create).chain(added(&name, declared)).collect()
}

/// One statement for all, since each takes the table for itself.
fn added<'a>(
    table: &str,
    columns: impl Iterator<Item = (&'a str, crate::config::ColumnType)>,
) -> Option<String> {
    let added: Vec<_> = columns
        .map(|(name, ty)| format!("ADD COLUMN IF NOT EXISTS {} {}", quoted(name), ty.name()))
        .collect();
    (!added.is_empty()).then(|| format!("ALTER TABLE {table} {}", added.join(", ")))
}

/// Makes the view of all tables that there are.
///
/// # Errors
/// As [`Session::query`].
pub async fn renew_status_view(session: &mut Session) -> Result<(), Failed> {
    // Without those that somebody has dropped by hand.
    let sql = format!(
        "SELECT table_schema, table_name, ns FROM {}.tables \
         WHERE to_regclass(format('%I.%I', table_schema, table_name)) IS NOT NULL ORDER BY ns",
        quoted(OWN_SCHEMA)
    );
    let rows = session.query(&sql, &[]).await?;
    let tables: Vec<_> = rows
        .iter()
        .filter_map(|row| {
            let text = |at| row.try_get::<_, String>(at).ok();
            Some((format!("{}.{}", quoted(&text(0)?), quoted(&text(1)?)), text(2)?))
        })
        .collect();
    session.batch(&status_view(&tables)).await
}

/// The view of all tables, by name and namespace.
fn status_view(tables: &[(String, String)]) -> String {
    let schema = quoted(OWN_SCHEMA);
    let mut parts: Vec<_> = tables
        .iter()
        .map(|(table, ns)| {
            let ns = literal(ns);
            format!(
                "SELECT {ns}::text AS ns, t.id AS mongo_id, 'SYNCED'::text AS state, t.synced_at, NULL::text AS error \
                 FROM {table} t WHERE NOT EXISTS (SELECT FROM {schema}.failures f \
                 WHERE f.ns = {ns} AND f._id = t._id AND f.state = 'FAILED')"
            )
        })
        .collect();
    parts.push(format!(
        "SELECT ns, id AS mongo_id, state, at AS synced_at, error FROM {schema}.failures WHERE state = 'FAILED'"
    ));
    format!(
        "CREATE OR REPLACE VIEW {schema}.{} AS {}",
        quoted(STATUS_VIEW),
        parts.join(" UNION ALL ")
    )
}

/// What is noted of a collection that is gone.
pub fn forget(ns: &str) -> Vec<String> {
    let (schema, ns) = (quoted(OWN_SCHEMA), literal(ns));
    let of = |table: &&str| format!("DELETE FROM {schema}.{table} WHERE ns = {ns}");
    ["tables", "children", "failures"].iter().map(of).collect()
}
