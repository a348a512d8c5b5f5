//! PostgreSQL: whether it takes writes, what its user may do there, and what of the server would be in the way later.

use super::{
    Report,
    line::{self, EndWords},
    tables::{self, NAME},
    tell_skew,
};
use crate::{
    agent::TargetEnd,
    config::{Config, units},
    postgres::connect::{Failed, Postgres, Row, Session, Type},
};

const WORDS: EndWords = EndWords {
    end: NAME,
    address: "POSTGRES_URI or `postgres.uri_file`",
    without: "the agent starts without PostgreSQL and catches up",
};

/// Older ones lack what the tables are made with.
const OLDEST: u64 = 15;

/// What is asked of the server and of the connection, in one row. Whatever the user may not know is NULL.
const LOOK: &str = "SELECT current_setting('server_version'), current_setting('server_version_num')::int8 / 10000, \
     current_database()::text, current_user::text, current_setting('server_encoding'), pg_is_in_recovery(), \
     current_setting('transaction_read_only') = 'on', \
     (SELECT setting::int8 FROM pg_settings WHERE name = 'statement_timeout'), \
     inet_server_port()::int8, pg_database_size(current_database())::int8, \
     (extract(epoch FROM clock_timestamp()) * 1000)::int8, \
     LEAST(current_setting('max_connections')::int8 - current_setting('superuser_reserved_connections')::int8 \
       - (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' AND application_name IS DISTINCT FROM $1), \
       (SELECT NULLIF(rolconnlimit, -1)::int8 FROM pg_roles WHERE rolname = current_user), \
       (SELECT NULLIF(datconnlimit, -1)::int8 FROM pg_database WHERE datname = current_database()))";

/// Its answer.
struct Looked {
    version: String,
    major: u64,
    database: String,
    user: String,
    encoding: String,
    is_standby: bool,
    is_read_only: bool,
    statement_timeout_ms: u64,
    /// `None` by a socket.
    port: Option<u64>,
    /// Of the whole database.
    bytes: u64,
    now_ms: u64,
    /// How many connections the agent may have.
    connections: Option<u64>,
}

impl Looked {
    fn of(row: &Row) -> Self {
        let text = |at| row.try_get::<_, String>(at).unwrap_or_default();
        let is = |at| row.try_get::<_, bool>(at).unwrap_or_default();
        let number = |at| {
            let number = row.try_get::<_, Option<i64>>(at).ok().flatten();
            number.map(|of| u64::try_from(of).unwrap_or(0))
        };
        Self {
            // Distributions put a name behind it.
            version: text(0).split(' ').next().unwrap_or_default().to_owned(),
            major: number(1).unwrap_or(0),
            database: text(2),
            user: text(3),
            encoding: text(4),
            is_standby: is(5),
            is_read_only: is(6),
            statement_timeout_ms: number(7).unwrap_or(0),
            port: number(8),
            bytes: number(9).unwrap_or(0),
            now_ms: number(10).unwrap_or(0),
            connections: number(11),
        }
    }
}

pub(super) async fn check_postgres(config: &Config, lines: &mut Report) {
    let (pg, connections) = match TargetEnd::connect(config).await {
        Ok(TargetEnd::Postgres(end)) => (end.line(), end.connections()),
        Ok(TargetEnd::Atlas(..) | TargetEnd::Own(_)) => return,
        Err(error) => return lines.failure(NAME, error.into()),
    };
    let mut session = match pg.session().await {
        Ok(session) => session,
        Err(failed) => return line::tell_unreachable(&failed, &WORDS, lines),
    };
    let own: Option<&str> = Some(Postgres::APPLICATION);
    let looked = match session.query(LOOK, &[(&own, Type::TEXT)]).await {
        Ok(rows) => rows.first().map(Looked::of),
        Err(failed) => return line::tell_unreachable(&failed, &WORDS, lines),
    };
    let Some(looked) = looked else { return };
    let Looked { version, major, database, user, bytes, .. } = &looked;
    if *major < OLDEST {
        return lines.problem(
            NAME,
            format!("PostgreSQL {version} is older than {OLDEST}, and lacks what the tables are made with"),
            format!("upgrade it to {OLDEST} or later"),
        );
    }
    lines.ok(NAME, format!("PostgreSQL {version}, database {database}, user {user}"));
    tell_line(&pg, &looked, lines);
    tell_settings(config, &looked, connections as u64, lines);
    if let Err(failed) = one_server(&mut session).await {
        return lines.problem(
            NAME,
            format!("a transaction of some statements does not go through: {}", failed.problem),
            "a pooler in front of it has to be in transaction or session mode (PgBouncer: `pool_mode = transaction`), or name \
             the server itself",
        );
    }
    if !tell_writable(&looked, lines) {
        return;
    }
    let held = tables::check_tables(config, &mut session, (database, user), lines).await;
    tell_room(*bytes, held, lines);
    tell_skew(NAME, looked.now_ms, lines);
}

fn tell_line(pg: &Postgres, looked: &Looked, lines: &mut Report) {
    line::tell(pg, NAME, lines);
    if let Some(port) = looked.port.filter(|port| !pg.ports().any(|of| u64::from(of) == *port)) {
        lines.ok(
            NAME,
            format!(
                "the server's own port is {port}, another than that of the address: a pooler, or a port that is passed on, is in \
                 between. A pooler must be in transaction or session mode"
            ),
        );
    }
}

/// What the server is set to that the agent would find out about late.
fn tell_settings(config: &Config, looked: &Looked, needed: u64, lines: &mut Report) {
    let Looked { encoding, database, user, statement_timeout_ms, .. } = looked;
    if encoding == "UTF8" {
        lines.ok(NAME, "its encoding is UTF8, which has every character");
    } else {
        lines.problem(
            NAME,
            format!("the database {database} is in {encoding}, which has not every character: a document with another is refused"),
            "make a database with `CREATE DATABASE … ENCODING 'UTF8' TEMPLATE template0`, and name that one",
        );
    }
    let limit = std::time::Duration::from_millis(*statement_timeout_ms);
    if !limit.is_zero() && limit < config.atlas.timeout {
        let (limit, patience) =
            (units::show_duration(limit), units::show_duration(config.atlas.timeout));
        lines.warning(
            NAME,
            format!(
                "its `statement_timeout` of {limit} cancels what the agent reads, for a comparison or a count, before the {patience} \
                 of `atlas.timeout` are over; what it writes has a limit of its own"
            ),
            format!("ALTER ROLE {} SET statement_timeout = 0", tables::quoted(user)),
        );
    }
    if let Some(left) = looked.connections.filter(|left| *left < needed) {
        lines.warning(
            NAME,
            format!("{left} connections are left, and the agent may use {needed}: it waits where it gets none"),
            "raise `max_connections`, or the limit of the user or of the database; or lower `worker.lanes` and `sync.parallel`",
        );
    }
}

/// Whether it takes writes at all.
fn tell_writable(looked: &Looked, lines: &mut Report) -> bool {
    let database = tables::quoted(&looked.database);
    if looked.is_standby {
        lines.problem(
            NAME,
            "it is a standby, which takes no writes",
            "name the primary; of several hosts in the address `target_session_attrs=read-write` finds it",
        );
    } else if looked.is_read_only {
        lines.problem(
            NAME,
            "transactions are read-only here, by the user's or the database's settings",
            format!(
                "ALTER DATABASE {database} RESET default_transaction_read_only, or the same of the role; or take it out of the \
                 server's configuration"
            ),
        );
    } else {
        lines.ok(NAME, "it takes writes");
        return true;
    }
    false
}

/// Of all that could be short, the disk alone cannot be asked about.
fn tell_room(held: u64, to_come: u64, lines: &mut Report) {
    let (held, to_come) = (units::show_bytes(held), units::show_bytes(to_come));
    lines.ok(
        NAME,
        format!(
            "the database takes {held}; {to_come} of documents are to be in it. SQL does not tell how much room the server's \
             disk has: look there"
        ),
    );
}

/// Statements of one transaction must reach one server, which a pooler in statement mode does not let them.
async fn one_server(session: &mut Session) -> Result<(), Failed> {
    session.batch("BEGIN").await?;
    let done = session.query("SELECT pg_backend_pid()", &[]).await;
    session.roll_back().await;
    done.map(drop)
}
