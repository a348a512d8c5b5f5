//! PostgreSQL: whether tables can be made there, and written to.

use super::Report;
use crate::{agent::TargetEnd, config::Config, postgres::connect::Postgres};

/// Older ones lack what the tables are made with.
const OLDEST: u32 = 15;

const NAME: &str = "postgres";

/// A question with the answer yes, and what to do where it is no.
const PRIVILEGES: [(&str, &str, &str); 2] = [
    (
        "SELECT has_database_privilege(current_database(), 'CREATE')",
        "the user may make schemas, one for each database",
        "GRANT CREATE ON DATABASE … TO its user, or make it the owner of the database",
    ),
    (
        "SELECT NOT pg_is_in_recovery() AND current_setting('default_transaction_read_only') = 'off'",
        "it takes writes",
        "name the primary, not a standby: `target_session_attrs=read-write` behind the address finds it among several hosts",
    ),
];

pub(super) async fn check_postgres(config: &Config, lines: &mut Report) {
    let pg = match TargetEnd::connect(config).await {
        Ok(TargetEnd::Postgres(end)) => end.line(),
        Ok(TargetEnd::Atlas(..) | TargetEnd::Own(_)) => return,
        Err(error) => return lines.failure(NAME, error.into()),
    };
    let version = match pg.version().await {
        Ok(version) => version,
        Err(failed) => {
            return lines.problem(
                NAME,
                failed.problem,
                "check the network, the address in POSTGRES_URI or `postgres.uri_file`, user, password and TLS; the agent \
                 starts without PostgreSQL and catches up",
            );
        }
    };
    let major = version.split('.').next().and_then(|major| major.parse::<u32>().ok());
    if major.is_some_and(|major| major < OLDEST) {
        let text = format!("PostgreSQL {version}");
        return lines.problem(
            NAME,
            text,
            format!("upgrade it: {OLDEST} is the oldest that is known to work"),
        );
    }
    lines.ok(NAME, format!("PostgreSQL {version}"));
    for (sql, text, fix) in PRIVILEGES {
        match answer(&pg, sql).await {
            Ok(true) => lines.ok(NAME, text),
            Ok(false) => lines.problem(NAME, format!("not so: {text}"), fix),
            Err(problem) => lines.warning(NAME, format!("cannot be told: {text}: {problem}"), fix),
        }
    }
}

async fn answer(pg: &Postgres, sql: &str) -> Result<bool, String> {
    let mut session = pg.session().await.map_err(|failed| failed.problem)?;
    let rows = session.query(sql, &[]).await.map_err(|failed| failed.problem)?;
    Ok(rows.first().is_some_and(|row| row.try_get(0).unwrap_or_default()))
}
