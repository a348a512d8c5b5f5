//! The way to a PostgreSQL, of whichever end: whether it is there, and who may read along.

use super::Report;
use crate::postgres::{
    class::Class,
    connect::{Failed, Postgres},
};

/// What is advised of an end.
pub(super) struct EndWords {
    pub end: &'static str,
    /// Where its connection string stands.
    pub address: &'static str,
    /// What an agent does that does not reach it.
    pub without: &'static str,
}

/// It is not there, or does not let the user in.
pub(super) fn tell_unreachable(failed: &Failed, words: &EndWords, lines: &mut Report) {
    let EndWords { end, address, without } = words;
    let fix = match failed.state.as_deref() {
        Some("28P01" | "28000") => {
            format!(
                "check user and password in {address}, and that `pg_hba.conf` lets them in from here"
            )
        }
        Some("3D000") => "make the database, `CREATE DATABASE … OWNER …`, or name another behind the address".to_owned(),
        Some("53300") => "raise `max_connections`, or let fewer others connect; the agent starts all the same and waits for one"
            .to_owned(),
        Some("42501") => "grant the user USAGE on the schema, and what else it needs there".to_owned(),
        _ if failed.class == Class::Denied => "GRANT CONNECT ON DATABASE … TO the user".to_owned(),
        _ => format!("check the network, the address in {address}, and TLS; {without}"),
    };
    lines.problem(end, failed.problem.clone(), fix);
}

/// Whether the line is encrypted.
pub(super) fn tell(pg: &Postgres, end: &'static str, lines: &mut Report) {
    if pg.is_encrypted() {
        lines.ok(end, "the connection is encrypted, and the server's certificate is checked");
    } else if pg.is_of_this_machine() {
        lines.ok(end, "the connection does not leave this machine");
    } else {
        lines.warning(
            end,
            "the connection is not encrypted",
            "take `sslmode=disable` out of the address, and give the server a certificate; `sslrootcert` names a file of \
             authorities of your own",
        );
    }
}
