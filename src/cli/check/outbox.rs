//! An outbox: whether its rows can be read and marked, and the tables beside it compared.

use super::{
    Report,
    line::{self, EndWords},
    tables::quoted,
    tell_skew,
};
use crate::{
    agent::AgentError,
    config::{Config, units},
    policy::backlog::Backlog,
    postgres::{
        class::Class,
        connect::{Failed, Postgres, Row, Session},
    },
    source::outbox::{Flaw, Looked, OutboxSource},
};

pub(super) const NAME: &str = "outbox";

const WORDS: EndWords = EndWords {
    end: NAME,
    address: "OUTBOX_URI or `outbox.uri_file`",
    without: "an agent that runs waits for it; one that starts waits for `local.timeout`",
};

/// Nothing that CockroachDB does not have.
const LOOK: &str = "SELECT version(), current_database()::text, current_user::text, pg_is_in_recovery(), \
     current_setting('transaction_read_only') = 'on', (extract(epoch FROM clock_timestamp()) * 1000)::int8";

/// Its answer.
struct Server {
    /// As it calls itself.
    version: String,
    database: String,
    user: String,
    is_standby: bool,
    is_read_only: bool,
    now_ms: u64,
}

impl Server {
    async fn look(session: &mut Session) -> Result<Option<Self>, Failed> {
        let rows = session.query(LOOK, &[]).await?;
        Ok(rows.first().map(Self::of))
    }

    fn of(row: &Row) -> Self {
        let text = |at| row.try_get::<_, String>(at).unwrap_or_default();
        let is = |at| row.try_get::<_, bool>(at).unwrap_or_default();
        Self {
            version: short(&text(0)),
            database: text(1),
            user: text(2),
            is_standby: is(3),
            is_read_only: is(4),
            now_ms: row.try_get::<_, i64>(5).map_or(0, |ms| u64::try_from(ms).unwrap_or(0)),
        }
    }
}

/// `PostgreSQL 15.8` of `PostgreSQL 15.8 (Debian …) on …`, `CockroachDB CCL v23.1.1` of `CockroachDB CCL v23.1.1 (…)`.
fn short(version: &str) -> String {
    let version = version.split(" (").next().unwrap_or_default();
    version.split(" on ").next().unwrap_or_default().to_owned()
}

pub(super) async fn check_outbox(config: &Config, lines: &mut Report) {
    let source = match OutboxSource::new(config) {
        Ok(source) => source,
        Err(error) => return lines.failure(NAME, AgentError::from(error).into()),
    };
    let pg = source.postgres();
    let server = match server(pg).await {
        Ok(server) => server,
        Err(failed) => return line::tell_unreachable(&failed, &WORDS, lines),
    };
    let Some(server) = server else { return };
    let Server { version, database, user, .. } = &server;
    lines.ok(NAME, format!("{version}, database {database}, user {user}"));
    line::tell(pg, NAME, lines);
    tell_writable(&server, lines);
    match source.look().await {
        Ok(looked) => tell(&server, &looked, lines),
        Err(failed) if failed.class == Class::Rejected => lines.problem(
            NAME,
            format!("the table cannot be looked at: {}", failed.problem),
            "`outrigger outbox init` prints what makes it",
        ),
        Err(failed) => line::tell_unreachable(&failed, &WORDS, lines),
    }
    tell_skew(NAME, server.now_ms, lines);
}

async fn server(pg: &Postgres) -> Result<Option<Server>, Failed> {
    Server::look(&mut pg.session().await?).await
}

/// Rows are marked where they are read.
fn tell_writable(server: &Server, lines: &mut Report) {
    if server.is_standby {
        lines.problem(
            NAME,
            "it is a standby, where no row can be marked as processed",
            "name the primary; of several hosts in the address `target_session_attrs=read-write` finds it",
        );
    } else if server.is_read_only {
        lines.problem(
            NAME,
            "transactions are read-only here, so no row can be marked as processed",
            format!("ALTER ROLE {} SET default_transaction_read_only = off", quoted(&server.user)),
        );
    }
}

fn tell(server: &Server, looked: &Looked, lines: &mut Report) {
    let user = &server.user;
    if let Some(problem) = &looked.unfit {
        let fix =
            "`outrigger outbox init` prints what makes the table, with all that is read of it";
        return lines.problem(NAME, problem.clone(), fix);
    }
    if let Some(odd) = &looked.odd {
        lines.warning(
            NAME,
            odd.clone(),
            "until then two changes of one entity may arrive in the wrong order",
        );
    }
    tell_rights(user, looked, lines);
    if !looked.is_indexed {
        lines.warning(
            NAME,
            "no index holds the rows alone that wait: each look for new ones, every `outbox.poll`, reads the whole table",
            "`outrigger outbox init` prints it",
        );
    }
    if looked.is_read == Some(true) {
        lines.ok(NAME, "an agent reads it now, or did half a minute ago; another one waits");
    }
    match looked.waiting {
        Some(Backlog { rows: 0, .. }) => lines.ok(NAME, "no row waits"),
        Some(Backlog { rows, oldest, .. }) => {
            let age = oldest.map(|age| format!(", the oldest for {}", units::show_duration(age)));
            let age = age.unwrap_or_default();
            lines.ok(NAME, format!("{rows} rows wait{age}"));
        }
        None => {}
    }
    if looked.tables.is_empty() {
        lines.warning(
            NAME,
            "no `[[table]]` says where documents come from: what is older than `outbox.retention` is neither copied nor compared",
            "declare one for each collection, or leave it if the rows are all that there is",
        );
    }
    for (table, flaws) in &looked.tables {
        tell_table(user, table, flaws, lines);
    }
}

fn tell_rights(user: &str, looked: &Looked, lines: &mut Report) {
    let mut has_all = true;
    for (right, table) in &looked.lacks {
        has_all = false;
        let grant = format!("GRANT {right} ON {table} TO {}", quoted(user));
        match *right {
            "DELETE" => lines.warning(
                NAME,
                format!("the user may not delete in {table}: processed rows stay there for ever"),
                grant,
            ),
            _ => lines.problem(NAME, format!("the user lacks {right} on {table}"), grant),
        }
    }
    if has_all {
        lines.ok(
            NAME,
            "the user may read its rows, mark them, and delete those that have had their time",
        );
    }
}

fn tell_table(user: &str, table: &str, flaws: &[Flaw], lines: &mut Report) {
    if flaws.is_empty() {
        lines.ok(NAME, format!("the table {table} can be compared"));
    }
    for flaw in flaws {
        match flaw {
            Flaw::IsMissing => lines.problem(
                NAME,
                format!("there is no table {table}, or the user may not look into its schema"),
                "correct `name` in `[[table]]`, or GRANT USAGE ON SCHEMA …",
            ),
            Flaw::HasNoColumn(column) => lines.problem(
                NAME,
                format!("the table {table} has no column {column}"),
                "correct `key` or `columns` in `[[table]]`",
            ),
            Flaw::MayNotRead => lines.problem(
                NAME,
                format!("the user lacks SELECT on {table}"),
                format!("GRANT SELECT ON {table} TO {}", quoted(user)),
            ),
            Flaw::KeyIsNotUnique => lines.warning(
                NAME,
                format!(
                    "the table {table} has no unique index on its `key`: two rows of one key would be one document, and each \
                     page of a comparison reads all of it"
                ),
                "make one, or name the primary key in `[[table]]`",
            ),
            Flaw::IsSorted { rows, index } => lines.warning(
                NAME,
                format!(
                    "each page of a comparison sorts all {rows} rows of the table {table}: no index has its keys in the order of \
                     MongoDB's"
                ),
                format!("CREATE INDEX CONCURRENTLY ON {table} ({index})"),
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_called_as_it_calls_itself() {
        for (text, told) in [
            ("PostgreSQL 15.8 (Debian 15.8-0+deb12u1) on x86_64-pc-linux-gnu", "PostgreSQL 15.8"),
            ("PostgreSQL 16.1 on x86_64-pc-linux-musl, compiled by gcc", "PostgreSQL 16.1"),
            (
                "CockroachDB CCL v23.1.1 (x86_64-pc-linux-gnu, built 2023)",
                "CockroachDB CCL v23.1.1",
            ),
        ] {
            assert_eq!(short(text), told);
        }
    }
}
