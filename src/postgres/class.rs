//! What an error of PostgreSQL means, by its SQLSTATE: the one place that decides it.
//!
//! | class | examples | what follows |
//! | --- | --- | --- |
//! | unavailable | no connection, shutting down, a standby, disk full, `too_many_connections`, canceled | wait; costs no document a retry |
//! | denied | wrong password, a missing privilege, no such database | wait; a person must act |
//! | conflict | deadlock, serialization, a lock that was not had in time | the transaction is run again at once |
//! | rejected | a value that a column or a constraint does not take, too large | the row is found, retried, and becomes a dead letter |

use tokio_postgres::{Error, error::SqlState};

/// What an error means for what was to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    Unavailable,
    Denied,
    Conflict,
    Rejected,
}

/// What `error` means. Without a SQLSTATE it is of the connection.
pub fn class_of(error: &Error) -> Class {
    match error.code() {
        Some(state) => class_of_state(state),
        // Of the values, before anything was sent.
        None if error.to_string().starts_with("error serializing") => Class::Rejected,
        None => Class::Unavailable,
    }
}

fn class_of_state(state: &SqlState) -> Class {
    // By the code, where the class of which it is says another thing.
    match state.code() {
        // insufficient_privilege: the only one of syntax and access that a grant mends.
        "42501" => return Class::Denied,
        // statement_too_complex and program_limit_exceeded are of what was sent; too_many_connections is not.
        "53300" | "53400" => return Class::Unavailable,
        // lock_not_available; the tables of a schema that another makes at the same moment.
        "55P03" | "55006" => return Class::Conflict,
        // unique_violation in PostgreSQL's own catalogues is the same race, and is told apart by who asks.
        // query_canceled: somebody's timeout, or somebody.
        "57014" => return Class::Unavailable,
        // A pooler that has not what it was told of before: the transaction is made anew.
        "26000" | "42P05" => return Class::Conflict,
        _ => {}
    }
    match &state.code()[..2] {
        // connection_exception, insufficient_resources, operator_intervention, system_error; the last includes a full
        // disk of the server that says so as an I/O error.
        "08" | "53" | "57" | "58" => Class::Unavailable,
        // read_only_sql_transaction is a standby, or a server whose disk is full at a provider.
        "25" => Class::Unavailable,
        // invalid_authorization_specification; invalid_catalog_name: no such database.
        "28" | "3D" => Class::Denied,
        // transaction_rollback: serialization, deadlock.
        "40" => Class::Conflict,
        // data_corrupted, index_corrupted: nothing that a document is to blame for.
        "XX" if state.code() != "XX000" => Class::Unavailable,
        // internal_error is also what an extension or a trigger in C says of a value that it does not like.
        _ => Class::Rejected,
    }
}

/// What a person reads: the server's own words, its code, and no value of a document. `DETAIL` has values and is left
/// out, and so are those that a message quotes.
pub fn told(error: &Error) -> String {
    if let Some(db) = error.as_db_error() {
        let about =
            [("table", db.table()), ("column", db.column()), ("constraint", db.constraint())];
        let about: Vec<_> = about
            .iter()
            .filter_map(|(what, name)| name.map(|name| format!(", {what} `{name}`")))
            .collect();
        return format!(
            "{} ({}{})",
            without_values(db.message()),
            db.code().code(),
            about.concat()
        );
    }
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        if !text.contains(&cause.to_string()) {
            text = format!("{text}: {cause}");
        }
        source = cause.source();
    }
    text
}

/// PostgreSQL quotes a value that it does not like behind a colon, `invalid input syntax for type integer: "x"`. A name
/// is quoted without one.
fn without_values(message: &str) -> String {
    match message.split_once(": \"") {
        Some((before, _)) => before.to_owned(),
        None => message.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_server_says_is_one_of_four() {
        for (code, class) in [
            ("08006", Class::Unavailable),
            ("57P01", Class::Unavailable),
            ("57014", Class::Unavailable),
            ("53100", Class::Unavailable),
            ("53300", Class::Unavailable),
            ("25006", Class::Unavailable),
            ("28P01", Class::Denied),
            ("42501", Class::Denied),
            ("3D000", Class::Denied),
            ("40001", Class::Conflict),
            ("40P01", Class::Conflict),
            ("26000", Class::Conflict),
            ("23514", Class::Rejected),
            ("22P05", Class::Rejected),
            ("54000", Class::Rejected),
            ("42P01", Class::Rejected),
        ] {
            assert_eq!(class_of_state(&SqlState::from_code(code)), class, "{code}");
        }
    }

    #[test]
    fn what_is_told_has_no_value_of_a_document() {
        let told = without_values("invalid input syntax for type integer: \"secret\"");
        assert_eq!(told, "invalid input syntax for type integer");
        let kept = "null value in column \"doc\" violates not-null constraint";
        assert_eq!(without_values(kept), kept);
    }
}
