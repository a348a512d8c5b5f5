//! What keeps the declared tables from being made, or has gone of them, looked at from outside a change.

use tokio_postgres::types::Type;

use super::{
    change::{self, Noted, Undone},
    connect::{Failed, Param, Session},
    names::{OWN_SCHEMA, quoted},
    table::Table,
};
use crate::sink::SinkError;

/// Why what is declared cannot be made as it is: a table that is another's has the name, or something of a person's stands on a
/// column that is to have another type.
///
/// # Errors
/// Where the server could not be asked.
pub async fn in_the_way(
    session: &mut Session,
    tables: &[Table],
) -> Result<Option<String>, SinkError> {
    let mut noted = Noted::ByName;
    for table in tables {
        let mut looked = change::require_ours(session, table, noted).await;
        // Nothing of Outrigger is there yet.
        if matches!(&looked, Err(Undone::Failed(failed)) if failed.is(&["42P01", "3F000"])) {
            noted = Noted::Nowhere;
            looked = change::require_ours(session, table, noted).await;
        }
        match looked {
            Ok(()) => {}
            Err(Undone::InTheWay(reason)) => return Ok(Some(reason)),
            Err(Undone::Failed(failed)) => return Err(failed.into()),
            // It is looked at, and not waited for.
            Err(Undone::InUse) => {}
        }
        if let Some(reason) = stood_on(session, table).await? {
            return Ok(Some(reason));
        }
    }
    Ok(None)
}

/// A view of a person's, or a constraint of another table, needs a column that is to be made anew with another type.
async fn stood_on(session: &mut Session, table: &Table) -> Result<Option<String>, Failed> {
    let sql = "SELECT coalesce('the view ' || r.ev_class::regclass::text, pg_describe_object(d.classid, d.objid, 0)) \
               FROM pg_attribute a JOIN pg_depend d ON d.refclassid = 'pg_class'::regclass AND d.refobjid = a.attrelid \
               AND d.refobjsubid = a.attnum AND d.deptype = 'n' LEFT JOIN pg_rewrite r ON d.classid = 'pg_rewrite'::regclass \
               AND r.oid = d.objid WHERE a.attrelid = to_regclass($1) AND a.attname = $2 LIMIT 1";
    for (name, column) in change::retyped(session, table).await? {
        let rows = session.query(sql, &[(&name, Type::TEXT), (&column, Type::TEXT)]).await?;
        if let Some(row) = rows.first() {
            let by: String = row.try_get(0)?;
            return Ok(Some(format!(
                "the column {} of {name} is declared with another type than it has, and cannot be made anew: {by} stands on it; \
                 drop that first, and make it again when the agent runs",
                quoted(&column)
            )));
        }
    }
    Ok(None)
}

/// What is noted of a table, or of one of its children, and is not there any more.
///
/// # Errors
/// Where the server could not be asked.
pub async fn gone(session: &mut Session, table: &Table) -> Result<Option<String>, SinkError> {
    let own = quoted(OWN_SCHEMA);
    let sql = format!(
        "SELECT format('%I.%I', table_schema, table_name) FROM (SELECT ns, table_schema, table_name FROM {own}.tables \
         UNION ALL SELECT ns, table_schema, table_name FROM {own}.children) a WHERE ns = $1 AND table_schema = $2 \
         AND table_name = ANY($3) AND to_regclass(format('%I.%I', table_schema, table_name)) IS NULL"
    );
    let ns = table.ns.as_str();
    let children = table.children.iter().map(|child| child.name.as_str());
    let names: Vec<_> = std::iter::once(table.name.as_str()).chain(children).collect();
    let params: [Param<'_>; 3] =
        [(&ns, Type::TEXT), (&table.schema, Type::TEXT), (&names, Type::TEXT_ARRAY)];
    let rows = match session.query(&sql, &params).await {
        // Nothing of Outrigger is there yet.
        Err(failed) if failed.is(&["42P01", "3F000"]) => return Ok(None),
        rows => rows?,
    };
    let name = rows.first().and_then(|row| row.try_get::<_, String>(0).ok());
    Ok(name.map(|name| {
        format!(
            "the table {name} of {ns} is gone: somebody has renamed or dropped it; it is made anew, and {ns} compared"
        )
    }))
}

/// Whether a table is there, whoever made it.
///
/// # Errors
/// Where the server could not be asked.
pub async fn is_there(session: &mut Session, table: &Table) -> Result<bool, SinkError> {
    let name = table.quoted();
    let rows = session.query("SELECT to_regclass($1) IS NOT NULL", &[(&name, Type::TEXT)]).await?;
    Ok(rows.first().is_some_and(|row| row.try_get(0).unwrap_or_default()))
}
