//! What the driver says, in the words of a person: the innermost cause, one for each server.
//!
//! The driver tells of a server that it cannot choose by a dump of all that it knows (`Topology: { Type: …`), and wraps
//! one error into another with kinds, labels and the server's whole reply. None of that leaves this folder: whoever
//! shows an error shows what is made of it here. The dump itself is in the log at `debug`.

use mongodb::error::{Error, ErrorKind, WriteFailure};

/// Where the driver's account of one server begins, and of its error.
const SERVER: &str = "{ Address: ";
const ERROR: &str = ", Error: ";

/// What a failed exchange comes down to.
pub fn describe(error: &Error) -> String {
    match error.kind.as_ref() {
        ErrorKind::Command(command) => {
            let message = without_documents(&command.message);
            format!("{message} ({} {})", command.code_name, command.code)
        }
        ErrorKind::Write(WriteFailure::WriteConcernError(error)) => {
            format!("{} ({} {})", without_documents(&error.message), error.code_name, error.code)
        }
        ErrorKind::Write(WriteFailure::WriteError(error)) => {
            format!("{} ({})", without_documents(&error.message), error.code)
        }
        ErrorKind::ServerSelection { message, .. } => choice(message),
        ErrorKind::ConnectionPoolCleared { message, .. } => cleared(message),
        ErrorKind::Io(error) => plain(&error.to_string()),
        ErrorKind::Custom(_) => error
            .get_custom::<String>()
            .cloned()
            .or_else(|| error.get_custom::<&str>().map(|text| (*text).to_owned()))
            .unwrap_or_else(|| "the driver failed".to_owned()),
        kind => innermost(&kind.to_string()),
    }
}

/// True when the driver had begun to send what failed, or may have.
pub(super) fn may_be_sent(error: &Error) -> bool {
    match error.kind.as_ref() {
        ErrorKind::Io(_) => true,
        ErrorKind::ConnectionPoolCleared { message, .. } => of_a_queue(message).is_none(),
        _ => false,
    }
}

/// By one kind of error the driver (3.9.1) tells of two things: of who waited for a connection when the pool was cleared, and
/// of who was waiting for an answer ("Connection to … interrupted due to server monitor timeout"). The second was sent, and
/// on a line that stalls it is what a write ends with: the monitor notices within 20 seconds, before any timeout of ours.
///
/// Of the first: the address, and why the pool was cleared.
fn of_a_queue(message: &str) -> Option<(&str, &str)> {
    let rest = message.strip_prefix("Connection pool for ")?;
    rest.split_once(" cleared because another operation failed with: ")
}

/// The driver's dump, where it has one that says more than [`describe`].
pub(super) fn dump(error: &Error) -> Option<&str> {
    match error.kind.as_ref() {
        ErrorKind::ServerSelection { message, .. }
        | ErrorKind::ConnectionPoolCleared { message, .. } => Some(message),
        _ => None,
    }
}

/// A server's message up to where it begins to quote a document; of a command its name stays.
pub fn without_documents(message: &str) -> String {
    let Some((before, quoted)) = message.split_once(['{', '"']) else {
        return message.to_owned();
    };
    let before = before.trim_end_matches([' ', ':', ',']);
    match (before.ends_with("command"), quoted.split_once(':')) {
        (true, Some((name, _))) => format!("{before} `{}`", name.trim()),
        _ => before.to_owned(),
    }
}

/// `Server selection timeout: … Topology: { …, Servers: [ { Address: h:1, Type: Unknown, Error: … }, … ] }`
fn choice(message: &str) -> String {
    let Some((_, dump)) = message.split_once("Topology: ") else {
        return innermost(message);
    };
    let mut servers = Vec::new();
    for server in dump.split(SERVER).skip(1) {
        let (address, rest) = server.split_once(", Type: ").unwrap_or((server, ""));
        let said = match rest.split_once(ERROR) {
            Some((_, error)) => innermost(error),
            None => match rest.split([',', ' ']).next().unwrap_or_default() {
                "Unknown" | "" => "no answer".to_owned(),
                "RsPrimary" => "answers as the primary".to_owned(),
                "RsSecondary" => "answers as a secondary".to_owned(),
                "RsArbiter" => "answers as an arbiter".to_owned(),
                _ => "answers".to_owned(),
            },
        };
        servers.push(format!("{}: {said}", address.trim()));
    }
    if servers.is_empty() {
        return "no server can be used: none of those that are named belongs to the set".to_owned();
    }
    format!("no server can be used; {}", servers.join("; "))
}

/// `Connection pool for h:1 cleared because another operation failed with: …`
fn cleared(message: &str) -> String {
    match of_a_queue(message) {
        Some((address, cause)) => format!("{address}: {}", innermost(cause)),
        None => innermost(message),
    }
}

/// The cause in what the driver says of one error: `… Error: Kind: I/O error: CAUSE, labels: {…`.
pub(super) fn innermost(text: &str) -> String {
    let cause = text.rsplit("Kind: ").next().unwrap_or(text);
    let cause = cause.split(", labels: ").next().unwrap_or(cause);
    let cause = cause.split(", source: ").next().unwrap_or(cause);
    let cause = match cause.strip_prefix("Command failed: ") {
        // `Error code 18 (AuthenticationFailed): …`, which may quote a document.
        Some(refusal) => return without_documents(refusal),
        None => cause,
    };
    let wrapped = ["I/O error: ", "An error occurred during DNS resolution: ", "Internal error: "];
    plain(wrapped.into_iter().find_map(|words| cause.strip_prefix(words)).unwrap_or(cause))
}

/// Without what the standard library adds for programmers.
fn plain(text: &str) -> String {
    let text = text.split(" (os error ").next().unwrap_or(text);
    match text {
        "Connection refused" => "connection refused".to_owned(),
        "Connection reset by peer" => "the connection was reset".to_owned(),
        "Broken pipe" => "the connection was closed".to_owned(),
        "unexpected end of file" | "early eof" => "the connection ended in mid-reply".to_owned(),
        "timed out" | "deadline has elapsed" => "no answer in time".to_owned(),
        text => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DUMP: &str = "Server selection timeout: No available servers. Topology: { Type: ReplicaSetNoPrimary, Set Name: \
         rs, Servers: [ { Address: db1:27017, Type: Unknown, Error: Kind: I/O error: Connection refused (os error 111), \
         labels: {\"RetryableError\", \"SystemOverloadedError\"}, source: None, server response: None }, { Address: \
         db2:27017, Type: Unknown, Error: Kind: An error occurred during DNS resolution: failed to lookup, labels: {}, \
         source: None, server response: None }, { Address: db3:27017, Type: RsSecondary, Average RTT: 1ms, Max Wire \
         Version: 17 }, { Address: db4:27017, Type: Unknown } ] }";

    #[test]
    fn what_waited_for_a_connection_was_not_sent_and_what_waited_for_an_answer_was() {
        let queued = "Connection pool for db1:27017 cleared because another operation failed with: Kind: I/O error: timed out";
        let sent = "Connection to db1:27017 interrupted due to server monitor timeout";

        assert!(of_a_queue(queued).is_some() && of_a_queue(sent).is_none());
        assert_eq!(of_a_queue("anything that another driver may say"), None);
    }

    #[test]
    fn of_all_servers_together_each_has_its_innermost_cause_in_one_line() {
        assert_eq!(
            choice(DUMP),
            "no server can be used; db1:27017: connection refused; db2:27017: failed to lookup; db3:27017: answers as a secondary; db4:27017: no answer"
        );
        assert!(
            choice("Server selection timeout: No available servers. Topology: { Type: Single }")
                .contains("belongs to the set")
        );
        assert_eq!(choice("plain words"), "plain words");
    }

    #[test]
    fn the_innermost_cause_is_what_is_told() {
        let text = "Server selection timeout: No available servers. Topology: { Type: Single, Servers: [ { Address: \
                    h:1, Type: Unknown, Error: Kind: I/O error: invalid peer certificate: UnknownIssuer, labels: \
                    {\"RetryableError\"} } ] }";

        assert_eq!(innermost(text), "invalid peer certificate: UnknownIssuer");
        assert_eq!(innermost("plain words"), "plain words");
        let pool = "Connection pool for h:1 cleared because another operation failed with: Kind: I/O error: Connection \
                    reset by peer (os error 104), labels: {}, source: None, server response: None";
        assert_eq!(cleared(pool), "h:1: the connection was reset");
        let refused = "Kind: Command failed: Error code 18 (AuthenticationFailed): no { user: \"ann\" }, labels: {}";
        assert_eq!(innermost(refused), "Error code 18 (AuthenticationFailed): no");
    }

    #[test]
    fn an_error_of_our_own_is_told_as_it_was_made() {
        assert_eq!(describe(&Error::custom("the change stream ended")), "the change stream ended");
        assert_eq!(describe(&Error::custom("a batch ends early".to_owned())), "a batch ends early");
    }

    #[test]
    fn no_document_is_quoted() {
        let refused = r#"not authorized on shop to execute command { insert: "orders", documents: [ { _id: 1, card: "s3cret" } ] }"#;
        let shown = without_documents(refused);
        assert_eq!(shown, "not authorized on shop to execute command `insert`");
        assert_eq!(without_documents("Field x: { _id: 1 }"), "Field x");
        assert_eq!(without_documents("plain words"), "plain words");
    }
}
