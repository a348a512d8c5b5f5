//! The tables that the collections have in PostgreSQL: whether the user may make them and write them, and whose those are
//! that are there already.

use std::collections::BTreeSet;

use super::Report;
pub(super) use crate::sink::postgres::names::quoted;
use crate::{
    agent::source_side,
    config::Config,
    postgres::connect::{Failed, Param, Row, Session, Type},
    sink::postgres::{names::OWN_SCHEMA, obstacle::in_the_way, table::Table},
};

/// What the end is called in the findings.
pub(super) const NAME: &str = "postgres";

/// Names of the schemas and of the tables that are needed, and how much is to come.
struct Needed {
    tables: Vec<Table>,
    bytes: u64,
}

/// So many are named, of many that have the same fault.
const NAMED_MAX: usize = 5;

/// Returns how many bytes of documents are to come.
pub(super) async fn check_tables(
    config: &Config,
    session: &mut Session,
    (database, user): (&str, &str),
    lines: &mut Report,
) -> u64 {
    // Whoever does not answer has been named already; Outrigger's own tables are needed all the same.
    let needed = needed(config).await.unwrap_or(Needed { tables: Vec::new(), bytes: 0 });
    let looked = async {
        let schemas = schemas(session, &needed.tables).await?;
        let owners = owners(session, &needed.tables).await?;
        Ok::<_, Failed>((schemas, owners))
    };
    let (schemas, owners) = match looked.await {
        Ok(looked) => looked,
        Err(failed) => {
            let fix = "look into the server's log; the agent would stand before the same";
            lines.warning(
                NAME,
                format!("what the user may do cannot be told: {}", failed.problem),
                fix,
            );
            return needed.bytes;
        }
    };
    let is_well =
        tell_schemas(&schemas, (database, user), lines) & tell_owners(&owners, user, lines);
    if is_well {
        lines.ok(NAME, "the user may make the tables, and write them");
    }
    tell_in_the_way(session, &needed.tables, lines).await;
    needed.bytes
}

async fn needed(config: &Config) -> Option<Needed> {
    let (filter, source) = (config.filter().ok()?, source_side(config).await.ok()?);
    let listing = source.list(&filter).await.ok()?;
    let mut bytes = 0;
    for collection in &listing.collections {
        bytes += source.size(&collection.ns).await.map_or(0, |size| size.bytes);
    }
    let tables = listing.collections.iter().map(|of| Table::of(&of.ns, &config.mapping)).collect();
    Some(Needed { tables, bytes })
}

/// What is known of a schema that is needed.
struct Schema {
    name: String,
    is_there: bool,
    may_make_tables: bool,
    /// The same for all: whether the user may make schemas.
    may_make_schemas: bool,
}

async fn schemas(session: &mut Session, tables: &[Table]) -> Result<Vec<Schema>, Failed> {
    let names: BTreeSet<_> = tables.iter().map(|of| &*of.schema).chain([OWN_SCHEMA]).collect();
    let names: Vec<_> = names.into_iter().collect();
    let sql = "SELECT s.name, n.oid IS NOT NULL, \
               COALESCE(has_schema_privilege(n.oid, 'CREATE') AND has_schema_privilege(n.oid, 'USAGE'), false), \
               has_database_privilege(current_database(), 'CREATE') \
               FROM unnest($1) AS s(name) LEFT JOIN pg_namespace n ON n.nspname = s.name ORDER BY s.name";
    let rows = session.query(sql, &[(&names, Type::TEXT_ARRAY)]).await?;
    let is = |row: &Row, at: usize| row.try_get(at).unwrap_or_default();
    Ok(rows
        .iter()
        .map(|row| Schema {
            name: row.try_get(0).unwrap_or_default(),
            is_there: is(row, 1),
            may_make_tables: is(row, 2),
            may_make_schemas: is(row, 3),
        })
        .collect())
}

/// False where something is missing.
fn tell_schemas(schemas: &[Schema], (database, user): (&str, &str), lines: &mut Report) -> bool {
    let user = quoted(user);
    let missing: Vec<_> =
        schemas.iter().filter(|of| !of.is_there).map(|of| quoted(&of.name)).collect();
    let may_make = schemas.iter().any(|of| of.may_make_schemas);
    if !missing.is_empty() && !may_make {
        lines.problem(
            NAME,
            format!("the user may make no schema, and these are not there: {}", some_of(&missing)),
            format!(
                "GRANT CREATE ON DATABASE {} TO {user}; or have each made for it: CREATE SCHEMA {} AUTHORIZATION {user}",
                quoted(database),
                missing[0],
            ),
        );
    } else if !may_make {
        lines.warning(
            NAME,
            "the user may make no schema: those that are needed now are there, and a database that is new in MongoDB waits \
             for its own",
            format!("GRANT CREATE ON DATABASE {} TO {user}", quoted(database)),
        );
    }
    let closed: Vec<_> = schemas
        .iter()
        .filter(|of| of.is_there && !of.may_make_tables)
        .map(|of| quoted(&of.name))
        .collect();
    if !closed.is_empty() {
        let fix = format!("GRANT USAGE, CREATE ON SCHEMA {} TO {user}", closed.join(", "));
        lines.problem(
            NAME,
            format!("the user may make no tables in these schemas: {}", some_of(&closed)),
            fix,
        );
    }
    (missing.is_empty() || may_make) && closed.is_empty()
}

/// A table of Outrigger's that is there and that the user does not own.
struct Others {
    table: String,
    owner: String,
    may_write: bool,
}

async fn owners(session: &mut Session, tables: &[Table]) -> Result<Vec<Others>, Failed> {
    let (mut schemas, mut names) = (Vec::new(), Vec::new());
    for own in ["tables", "children", "failures", "replicas", "tallies"] {
        schemas.push(OWN_SCHEMA);
        names.push(own);
    }
    for table in tables {
        let children = table.children.iter().map(|of| (&*of.schema, &*of.name));
        for (schema, name) in children.chain([(&*table.schema, &*table.name)]) {
            schemas.push(schema);
            names.push(name);
        }
    }
    let sql = "SELECT format('%I.%I', n.nspname, c.relname), pg_get_userbyid(c.relowner)::text, \
               has_table_privilege(c.oid, 'SELECT') AND has_table_privilege(c.oid, 'INSERT') \
               AND has_table_privilege(c.oid, 'UPDATE') AND has_table_privilege(c.oid, 'DELETE') \
               FROM unnest($1, $2) AS w(s, t) JOIN pg_namespace n ON n.nspname = w.s \
               JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = w.t \
               WHERE NOT pg_has_role(c.relowner, 'USAGE') ORDER BY 1";
    let params: [Param<'_>; 2] = [(&schemas, Type::TEXT_ARRAY), (&names, Type::TEXT_ARRAY)];
    let rows = session.query(sql, &params).await?;
    Ok(rows
        .iter()
        .map(|row| Others {
            table: row.try_get(0).unwrap_or_default(),
            owner: row.try_get(1).unwrap_or_default(),
            may_write: row.try_get(2).unwrap_or_default(),
        })
        .collect())
}

/// False where one cannot be written.
fn tell_owners(others: &[Others], user: &str, lines: &mut Report) -> bool {
    let named = |may_write: bool| -> Vec<String> {
        let of = others.iter().filter(|of| of.may_write == may_write);
        of.map(|of| of.table.clone()).collect()
    };
    let Some(Others { owner, .. }) = others.first() else { return true };
    let fix = format!(
        "REASSIGN OWNED BY {0} TO {1}, if all of it is to be the agent's; or GRANT {0} TO {1}",
        quoted(owner),
        quoted(user)
    );
    let (closed, open) = (named(false), named(true));
    if !closed.is_empty() {
        let text = format!(
            "the user may not write these tables, which belong to {owner}: {}",
            some_of(&closed)
        );
        lines.problem(NAME, text, fix.clone());
    }
    if !open.is_empty() {
        let text = format!(
            "these tables belong to {owner}: {}. The user may write them; a column that is declared, and a collection that is \
             dropped or renamed, waits",
            some_of(&open)
        );
        lines.warning(NAME, text, fix);
    }
    closed.is_empty()
}

/// Tables of somebody else that have the names.
async fn tell_in_the_way(session: &mut Session, tables: &[Table], lines: &mut Report) {
    for table in tables {
        match in_the_way(session, std::slice::from_ref(table)).await {
            Ok(None) => {}
            Ok(Some(reason)) => lines.problem(
                NAME,
                format!("{}: {reason}", table.ns),
                "make way for it, or leave the collection out by `namespaces.exclude`",
            ),
            // What keeps the user out was told.
            Err(_) => return,
        }
    }
}

/// All of them, or the first.
fn some_of(names: &[String]) -> String {
    let shown = names.iter().take(NAMED_MAX).cloned().collect::<Vec<_>>().join(", ");
    match names.len().saturating_sub(NAMED_MAX) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}
