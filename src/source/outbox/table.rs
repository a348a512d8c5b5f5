//! What the table consists of: the statements that make it, and its names in SQL. Pure.

use std::collections::BTreeSet;

use crate::config::{KeyPlace, Outbox, OutboxColumns, Routes};

/// Which of the two databases a table is made in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    PostgreSql,
    CockroachDb,
}

/// A name in SQL.
pub fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// `schema.table` or `table` in SQL.
pub fn quoted_table(name: &str) -> String {
    name.split('.').map(quoted).collect::<Vec<_>>().join(".")
}

/// A text in SQL.
pub fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// The table beside it in which the reader keeps its lease, in the same schema.
pub fn lease_table(table: &str) -> String {
    match table.split_once('.') {
        Some((schema, _)) => format!("{}.\"outrigger_outbox\"", quoted(schema)),
        None => "\"outrigger_outbox\"".to_owned(),
    }
}

/// What the database is asked to tell of new rows by.
pub const CHANNEL: &str = "outrigger_outbox";

/// A value of the payload as text: `"payload"->'a'->>'id'`.
pub fn payload_text(column: &str, path: &str) -> String {
    let mut parts: Vec<_> = path.split('.').map(literal).collect();
    let last = parts.pop().unwrap_or_default();
    parts.insert(0, quoted(column));
    format!("{}->>{last}", parts.join("->"))
}

/// Names of everything, for the statements below.
struct Names<'a> {
    table: String,
    bare: &'a str,
    columns: &'a OutboxColumns,
}

impl Names<'_> {
    fn column(&self, role: &str) -> Option<String> {
        self.columns.get(role).map(quoted)
    }

    fn index(&self, what: &str) -> String {
        quoted(&format!("{}_{what}", self.bare))
    }
}

/// The statements that make the table, its indexes and the lease, and grant a reader what it needs. What is there
/// already stays.
pub fn ddl(outbox: &Outbox, routes: &Routes, dialect: Dialect) -> Vec<String> {
    let bare = outbox.table.rsplit('.').next().unwrap_or(&outbox.table);
    let names = Names { table: quoted_table(&outbox.table), bare, columns: &outbox.columns };
    let mut statements = vec![table(&names, routes, dialect)];
    // Of a table that is older than the reader.
    for role in ["processed_at", "retry_count", "last_error"] {
        let ty = TYPES.iter().find(|(of, _)| *of == role).map_or("text", |(_, ty)| ty);
        if let Some(column) = names.column(role) {
            let table = &names.table;
            statements.push(format!("ALTER TABLE {table} ADD COLUMN IF NOT EXISTS {column} {ty}"));
        }
    }
    let order = names.column("order").or_else(|| names.column("id")).unwrap_or_default();
    let id = names.column("id").unwrap_or_default();
    let in_order = if order == id { id } else { format!("{order}, {id}") };
    let processed = names.column("processed_at").unwrap_or_default();
    statements.push(format!(
        "CREATE INDEX IF NOT EXISTS {} ON {} ({in_order}) WHERE {processed} IS NULL",
        names.index("unprocessed"),
        names.table
    ));
    if order != names.column("id").unwrap_or_default() {
        statements.push(format!(
            "CREATE INDEX IF NOT EXISTS {} ON {} ({in_order})",
            names.index("in_order"),
            names.table
        ));
    }
    let mut places: Vec<&KeyPlace> = Vec::new();
    for route in &routes.routes {
        if !places.contains(&&route.key) {
            places.push(&route.key);
        }
    }
    let entity = outbox.columns.get("entity_id").map(|name| KeyPlace::Column(name.to_owned()));
    if places.is_empty() {
        places.extend(entity.as_ref());
    }
    for place in places {
        let (name, value) = match place {
            KeyPlace::Column(name) => (format!("by_{name}"), quoted(name)),
            KeyPlace::Payload(path) => {
                let payload = outbox.columns.get("payload").unwrap_or("payload");
                let name = format!("by_payload_{}", path.replace('.', "_"));
                (name, format!("({})", payload_text(payload, path)))
            }
        };
        statements.push(format!(
            "CREATE INDEX IF NOT EXISTS {} ON {} ({value}, {in_order})",
            names.index(&name),
            names.table
        ));
    }
    statements.push(format!(
        "CREATE TABLE IF NOT EXISTS {} (\n  outbox text PRIMARY KEY,\n  reader text NOT NULL,\n  term bigint NOT NULL,\n  \
         position bigint NOT NULL,\n  holder text,\n  expires_at timestamptz NOT NULL\n)",
        lease_table(&outbox.table)
    ));
    // Of one that is older.
    let lease = lease_table(&outbox.table);
    statements.push(format!("ALTER TABLE {lease} ADD COLUMN IF NOT EXISTS holder text"));
    statements
}

const TYPES: &[(&str, &str)] = &[
    ("event_type", "text NOT NULL"),
    ("entity_type", "text"),
    ("entity_id", "text"),
    ("payload", "jsonb"),
    // Not `now()`, which is when the transaction began.
    ("created_at", "timestamptz NOT NULL DEFAULT clock_timestamp()"),
    ("processed_at", "timestamptz"),
    ("retry_count", "integer NOT NULL DEFAULT 0"),
    ("last_error", "text"),
];

fn table(names: &Names<'_>, routes: &Routes, dialect: Dialect) -> String {
    let is_cockroach = dialect == Dialect::CockroachDb;
    let types = [
        (
            "id",
            if is_cockroach {
                "bigint NOT NULL DEFAULT unique_rowid() PRIMARY KEY"
            } else {
                "bigint GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY"
            },
        ),
        (
            "order",
            if is_cockroach {
                "decimal NOT NULL DEFAULT cluster_logical_timestamp()"
            } else {
                "bigint NOT NULL GENERATED BY DEFAULT AS IDENTITY"
            },
        ),
    ];
    let types: Vec<_> = types.iter().chain(TYPES).collect();
    let mut columns: Vec<String> = types
        .iter()
        .filter_map(|(role, ty)| Some(format!("  {} {ty}", names.column(role)?)))
        .collect();
    let named = |name: &str| types.iter().any(|(role, _)| names.columns.get(role) == Some(name));
    let mut more: Vec<&String> = Vec::new();
    for route in &routes.routes {
        if let KeyPlace::Column(name) = &route.key
            && !named(name)
            && !more.contains(&name)
        {
            more.push(name);
        }
    }
    columns.extend(more.into_iter().map(|name| format!("  {} text", quoted(name))));
    format!("CREATE TABLE IF NOT EXISTS {} (\n{}\n)", names.table, columns.join(",\n"))
}

/// What has PostgreSQL tell of new rows: for whoever wants them within moments.
pub fn notify(outbox: &Outbox) -> Vec<String> {
    let bare = outbox.table.rsplit('.').next().unwrap_or(&outbox.table);
    let table = quoted_table(&outbox.table);
    let function = quoted(&format!("{bare}_tells"));
    vec![
        format!(
            "CREATE OR REPLACE FUNCTION {function}() RETURNS trigger LANGUAGE plpgsql AS\n  \
             $$ BEGIN PERFORM pg_notify({}, {}); RETURN NULL; END $$",
            literal(CHANNEL),
            literal(&outbox.table)
        ),
        format!(
            "CREATE OR REPLACE TRIGGER {function} AFTER INSERT ON {table}\n  \
             FOR EACH STATEMENT EXECUTE FUNCTION {function}()"
        ),
    ]
}

/// What the reader may do, for a user of its own: in the outbox, and in the tables that are compared.
pub fn grants(outbox: &Outbox, routes: &Routes, user: &str) -> Vec<String> {
    let (table, user) = (quoted_table(&outbox.table), quoted(user));
    let tables = || routes.tables.iter().map(|rule| &rule.name);
    let schemas: BTreeSet<_> = std::iter::once(&outbox.table)
        .chain(tables())
        .filter_map(|name| Some(quoted(name.split_once('.')?.0)))
        .collect();
    let mut statements: Vec<_> =
        schemas.iter().map(|schema| format!("GRANT USAGE ON SCHEMA {schema} TO {user}")).collect();
    statements.extend([
        format!("GRANT SELECT, UPDATE, DELETE ON {table} TO {user}"),
        format!("GRANT SELECT, INSERT, UPDATE ON {} TO {user}", lease_table(&outbox.table)),
    ]);
    statements
        .extend(tables().map(|name| format!("GRANT SELECT ON {} TO {user}", quoted_table(name))));
    statements
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_quoted_and_a_path_is_a_way_into_the_payload() {
        assert_eq!(quoted_table("sales.out\"box"), "\"sales\".\"out\"\"box\"");
        assert_eq!(payload_text("payload", "id"), "\"payload\"->>'id'");
        assert_eq!(payload_text("p", "a.b'.id"), "\"p\"->'a'->'b'''->>'id'");
        assert_eq!(lease_table("sales.outbox"), "\"sales\".\"outrigger_outbox\"");
    }
}
