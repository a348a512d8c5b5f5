//! What an error means, decided here and nowhere else, for both ends.
//!
//! | class | what | who acts |
//! | --- | --- | --- |
//! | unavailable | network, election, timeout, shutdown, overload, throttling, a quota that is used up | nobody: it is waited for, and costs no op a retry |
//! | denied | wrong password, missing privilege, TLS | a person; [`advice`] says what to do |
//! | history lost | the change stream cannot be resumed | the tailer: a new position and a comparison |
//! | rejected | everything else | the retries, then a dead letter |
//!
//! A unique value that is taken (`DuplicateKey` among a reply's `writeErrors`) is a matter of one write
//! and is told apart where those are read, in [`sink::classify`](crate::sink::classify).
//!
//! What is not listed is *rejected*, so that an error nobody thought of ends as a dead letter with its
//! text and not as a wait without end.

use mongodb::error::ErrorKind;

use super::MongoError;

/// See the table of this module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    Unavailable,
    Denied,
    HistoryLost,
    Rejected,
}

/// `NamespaceNotFound`.
pub const NAMESPACE_NOT_FOUND: i32 = 26;

/// True when a collection was asked for that is not there, or whose name a view has by now: what that shows is not its
/// own.
pub fn is_no_collection(error: &MongoError) -> bool {
    matches!(error.code(), Some(NAMESPACE_NOT_FOUND | NOT_SUPPORTED_ON_VIEW))
}

/// Codes that waiting helps with. Names as in MongoDB's `error_codes.yml`.
const UNAVAILABLE: &[(i32, &str)] = &[
    (6, "HostUnreachable"),
    (7, "HostNotFound"),
    (24, "LockTimeout"),
    (CURSOR_NOT_FOUND, "CursorNotFound"),
    (46, "LockBusy"),
    (MAX_TIME_EXPIRED, "MaxTimeMSExpired"),
    (64, "WriteConcernFailed"),
    (82, "NoProgressMade"),
    (89, "NetworkTimeout"),
    (90, "CallbackCanceled"),
    (91, "ShutdownInProgress"),
    (94, "NotYetInitialized"),
    (100, "UnsatisfiableWriteConcern"),
    (112, "WriteConflict"),
    (117, "ConflictingOperationInProgress"),
    (133, "FailedToSatisfyReadPreference"),
    (134, "ReadConcernMajorityNotAvailableYet"),
    (145, "PooledConnectionsDropped"),
    (150, "StaleEpoch"),
    (QUERY_PLAN_KILLED, "QueryPlanKilled"),
    (189, "PrimarySteppedDown"),
    (202, "NetworkInterfaceExceededTimeLimit"),
    (211, "KeyNotFound"),
    (237, "CursorKilled"),
    (249, "StaleDbVersion"),
    (262, "ExceededTimeLimit"),
    (314, "ObjectIsBusy"),
    (317, "ConnectionPoolExpired"),
    (365, "TemporarilyUnavailable"),
    (USER_WRITES_BLOCKED, "UserWritesBlocked"),
    (384, "ConnectionError"),
    (402, "ResourceExhausted"),
    (407, "PooledConnectionAcquisitionExceededTimeLimit"),
    (433, "AdmissionQueueOverflow"),
    (449, "RateLimitExceeded"),
    (450, "PooledConnectionAcquisitionRejected"),
    (453, "InterruptedDueToReshardingCriticalSection"),
    (462, "IngressRequestRateLimitExceeded"),
    (9001, "SocketException"),
    (10107, "NotWritablePrimary"),
    (12586, "BackgroundOperationInProgressForDatabase"),
    (12587, "BackgroundOperationInProgressForNamespace"),
    (13388, "StaleConfig"),
    (91331, "RetriableRemoteCommandFailure"),
    (10_045_600, "InterruptedDueToFCVChange"),
    (11600, "InterruptedAtShutdown"),
    (11601, "Interrupted"),
    (11602, "InterruptedDueToReplStateChange"),
    (13435, "NotPrimaryNoSecondaryOk"),
    (13436, "NotPrimaryOrSecondary"),
    (14031, "OutOfDiskSpace"),
];

/// Those of them by which a server says that it stops, or is the primary no longer, or reaches nobody.
const CHANGE_OF_STATE: &[i32] =
    &[6, 7, 89, 91, 94, 189, 202, 317, 384, 9001, 10107, 11600, 11602, 13435, 13436, 91331];

/// True when a server says with this code that it stops, or that its role changes.
pub fn is_change_of_state(code: i32) -> bool {
    CHANGE_OF_STATE.contains(&code)
}

/// Those by which a router says that it has lost the server behind it, waits for it no longer, or gives up what it was at
/// (`NetworkError`, `NetworkTimeoutError` and `CallbackCanceled` in `error_codes.yml`).
const BEHIND_A_ROUTER: &[i32] = &[6, 89, 90, 202, 317, 384, 9001, 91331];

/// By these a server ends a command as a whole, and never one of its writes alone (`handleError` of `write_ops_exec.cpp`
/// throws an interruption on): who names them of a write has handed it on to another server.
const ENDS_A_COMMAND: &[i32] = &[MAX_TIME_EXPIRED, 262, 11600, 11601];

/// A server stops. One that makes writes itself makes none of them later; a router has no such say over the servers behind it,
/// and whether it is one is not told with the code.
const STOPS: &[i32] = &[91, 11600];

/// True when a router answers a command with this code. What it has handed on may still be done by the server behind it, and
/// as late as anything on a line that stalls: it is no answer to a write. No server says so of a write that it makes itself.
pub fn is_unanswered_behind_a_router(code: i32) -> bool {
    BEHIND_A_ROUTER.contains(&code)
}

/// As [`is_unanswered_behind_a_router`], of one write of a command.
pub fn is_unanswered_write(code: i32) -> bool {
    is_unanswered_behind_a_router(code) || ENDS_A_COMMAND.contains(&code) || is_stopping(code)
}

/// True when a server says with this code that it stops. Where that is a router, writes that it was at are unanswered.
pub fn is_stopping(code: i32) -> bool {
    STOPS.contains(&code)
}

/// Codes that a person must act upon: who we are, or what we may do.
const DENIED: &[(i32, &str)] = &[
    (11, "UserNotFound"),
    (UNAUTHORIZED, "Unauthorized"),
    (18, "AuthenticationFailed"),
    (31, "RoleNotFound"),
    (391, "ReauthenticationRequired"),
];

const UNAUTHORIZED: i32 = 13;
const MAX_TIME_EXPIRED: i32 = 50;
/// Nobody may write for now but who is allowed to all the same: a migration's end, or a disk that is nearly full. No write is
/// at fault.
const USER_WRITES_BLOCKED: i32 = 371;
const CURSOR_NOT_FOUND: i32 = 43;
const CAPPED_POSITION_LOST: i32 = 136;
/// `CommandNotSupportedOnView`.
pub const NOT_SUPPORTED_ON_VIEW: i32 = 166;
const QUERY_PLAN_KILLED: i32 = 175;

/// Codes by which a server says that a change stream cannot go on where it was.
const HISTORY_LOST: &[(i32, &str)] = &[
    (CAPPED_POSITION_LOST, "CappedPositionLost"),
    (260, "InvalidResumeToken"),
    (280, "ChangeStreamFatalError"),
    (286, "ChangeStreamHistoryLost"),
    (BSON_OBJECT_TOO_LARGE, "BSONObjectTooLarge"),
];

/// `BSONObjectTooLarge`: an event that does not fit a reply.
pub const BSON_OBJECT_TOO_LARGE: i32 = 10334;
/// `AtlasError`: the cloud's own code, for a quota that is used up as well as for a bad password.
pub const ATLAS_ERROR: i32 = 8000;

/// Labels by which server and driver say that trying again may help.
const RETRY_LABELS: &[&str] = &[
    "RetryableWriteError",
    "TransientTransactionError",
    "ResumableChangeStreamError",
    "RetryableError",
    "SystemOverloadedError",
];

/// What has become of a collection that was being read, where the answer tells it: no server is away then. Of a read
/// only; a change stream that has lost its place has lost history.
pub fn overtaken(error: &MongoError) -> Option<&'static str> {
    Some(match error.code()? {
        CURSOR_NOT_FOUND => "the server has closed the cursor by which the collection was read",
        CAPPED_POSITION_LOST => {
            "the capped collection has written over what was to be read of it next"
        }
        NOT_SUPPORTED_ON_VIEW => "a view has taken the place of the collection that was read",
        QUERY_PLAN_KILLED => "the collection was dropped or renamed while it was read",
        _ => return None,
    })
}

/// The class of a failed command. [`Class::HistoryLost`] means something for a change stream only.
pub fn class_of(error: &MongoError) -> Class {
    let Some(driver) = error.driver() else {
        // At the start this is told as a mistake of the configuration, before any class is asked for. Later it means
        // that a file of the string is being exchanged, and is there again in a moment.
        return Class::Unavailable;
    };
    let may_be_retried = RETRY_LABELS.iter().any(|label| driver.contains_label(label));
    match driver.kind.as_ref() {
        ErrorKind::Command(command) => match class_of_code(command.code, &command.message) {
            Class::Rejected if may_be_retried => Class::Unavailable,
            class => class,
        },
        ErrorKind::Authentication { .. } | ErrorKind::InvalidTlsConfig { .. } => Class::Denied,
        // What the driver says of a server that it cannot select names the cause in its text only.
        ErrorKind::ServerSelection { .. } | ErrorKind::Io(_)
            if is_refusal_of_access(&driver.to_string()) =>
        {
            Class::Denied
        }
        ErrorKind::ServerSelection { .. }
        | ErrorKind::Io(_)
        | ErrorKind::ConnectionPoolCleared { .. }
        | ErrorKind::DnsResolve { .. } => Class::Unavailable,
        _ if may_be_retried => Class::Unavailable,
        _ => Class::Rejected,
    }
}

/// True when a server knows who we are, and that this one thing is not allowed to us.
pub fn is_missing_privilege(error: &MongoError) -> bool {
    let Some(driver) = error.driver() else { return false };
    match driver.kind.as_ref() {
        ErrorKind::Command(command) => match command.code {
            UNAUTHORIZED => true,
            ATLAS_ERROR => {
                command.message.to_ascii_lowercase().contains("not allowed to do action")
            }
            _ => false,
        },
        _ => false,
    }
}

/// Codes that tell of the server's condition, and not of what it was asked; beside [`CHANGE_OF_STATE`].
const OF_THE_SERVER: &[i32] =
    &[64, 100, 133, 134, 211, 365, USER_WRITES_BLOCKED, 402, 433, 449, 450, 462];

/// True where nobody has answered in time, or a server has ended what it was asked for the time that it took
/// (`MaxTimeMSExpired`): less may be answered.
pub fn is_out_of_time(error: &MongoError) -> bool {
    matches!(error, MongoError::Silent(_)) || error.code().is_some_and(is_code_out_of_time)
}

/// As [`is_out_of_time`], of one write by its code: a router does not wait for ever for the server behind it either
/// (`NetworkInterfaceExceededTimeLimit`).
pub fn is_code_out_of_time(code: i32) -> bool {
    matches!(code, MAX_TIME_EXPIRED | 202)
}

/// True for a failure that may come of what was asked, so that asking the same again may fail for ever: if
/// the server answers anything else meanwhile.
pub fn may_be_of_the_question(error: &MongoError) -> bool {
    let Some(driver) = error.driver() else { return matches!(error, MongoError::Silent(_)) };
    match driver.kind.as_ref() {
        ErrorKind::Command(command) => {
            !is_change_of_state(command.code)
                && !OF_THE_SERVER.contains(&command.code)
                && matches!(class_of(error), Class::Rejected | Class::Unavailable)
        }
        ErrorKind::Io(_) => class_of(error) == Class::Unavailable,
        _ => class_of(error) == Class::Rejected,
    }
}

/// The class of a code that a server answered with, for a command or for one write of it.
pub fn class_of_code(code: i32, message: &str) -> Class {
    let is_in = |list: &[(i32, &str)]| list.iter().any(|(listed, _)| *listed == code);
    if code == ATLAS_ERROR {
        return class_of_atlas_error(&message.to_ascii_lowercase());
    }
    if is_in(DENIED) {
        Class::Denied
    } else if is_in(HISTORY_LOST) {
        Class::HistoryLost
    } else if is_in(UNAVAILABLE) {
        Class::Unavailable
    } else {
        Class::Rejected
    }
}

/// Atlas has one code for everything that its own proxy says, so its words must tell. What they do not
/// tell is waited for: quotas and throttling are the usual.
fn class_of_atlas_error(message: &str) -> Class {
    if message.contains("auth") || message.contains("user is not allowed") {
        Class::Denied
    } else if ["not allowed in this", "unsupported", "disallowed", "cmd_not_allowed"]
        .iter()
        .any(|words| message.contains(words))
    {
        Class::Rejected
    } else {
        Class::Unavailable
    }
}

/// True for a TLS or authentication failure that the driver reports as a network error. Taken for one, it would be waited
/// for without end, and nobody would be told that a certificate or a password is wrong.
fn is_refusal_of_access(text: &str) -> bool {
    let text = text.to_ascii_lowercase();
    ["certificate", "handshake failure", "handshakefailure", "authentication failed"]
        .iter()
        .any(|sign| text.contains(sign))
}

/// What a person can do about an error of the class [`Class::Denied`]. `variable` is where the end's
/// connection string comes from, where the error does not know better.
pub fn advice(error: &MongoError, variable: &str) -> String {
    let variable = error.origin().unwrap_or(variable);
    let text = error.driver().map_or_else(|| error.to_string(), ToString::to_string);
    let lower = text.to_ascii_lowercase();
    if lower.contains("not authorized") || lower.contains("user is not allowed") {
        let roles = "the roles that `outrigger roles` prints";
        return match privilege(&text) {
            Some(privilege) => format!("grant its user the privilege {privilege}, or {roles}"),
            None => format!("grant its user {roles}"),
        };
    }
    if lower.contains("certificate") || lower.contains("handshake") || lower.contains("tls") {
        let file = |option: &str| match error.file(option) {
            Some(path) => format!("`{option}` (in use: `{}`)", path.display()),
            None => format!("`{option}`"),
        };
        let client = match error.file("tlsCertificateKeyFile") {
            Some(_) => format!(", {}", file("tlsCertificateKeyFile")),
            None => String::new(),
        };
        return format!(
            "TLS does not come about: check `tls` and {}{client} in {variable}, the server's \
             certificate, and this machine's clock",
            file("tlsCAFile")
        );
    }
    if lower.contains("auth") {
        return match error.looked_for_in() {
            Some(db) => format!(
                "check user name and password in {variable}; it names no `authSource`, so the user is looked for in the \
                 database `{db}`: add `authSource=admin`, where most users are"
            ),
            None => format!("check user name, password and `authSource` in {variable}"),
        };
    }
    format!("check the connection string in {variable}")
}

/// The privilege that `not authorized on DB to execute command { NAME: "COLLECTION", …` asks for.
fn privilege(message: &str) -> Option<String> {
    let (_, rest) = message.split_once("not authorized on ")?;
    let (db, rest) = rest.split_once(" to execute command")?;
    let (name, rest) = rest.split_once('{')?.1.split_once(':')?;
    let name = name.trim();
    let action = match name {
        "delete" => "remove",
        "aggregate" if rest.contains("$changeStream") => "changeStream",
        "aggregate" | "getMore" => "find",
        "create" => "createCollection",
        "drop" => "dropCollection",
        "createIndexes" => "createIndex",
        "dropIndexes" => "dropIndex",
        other => other,
    };
    let collection = rest.trim_start().strip_prefix('"').and_then(|rest| rest.split('"').next());
    Some(match collection {
        Some(collection) => format!("`{action}` on `{db}.{collection}`"),
        None => format!("`{action}` on the database `{db}`"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quota_is_waited_for_and_a_bad_password_is_not() {
        let class = |message| class_of_code(ATLAS_ERROR, message);

        assert_eq!(class("you are over your space quota, using 513 MB"), Class::Unavailable);
        assert_eq!(class("bad auth : Authentication failed."), Class::Denied);
        assert_eq!(class("user is not allowed to do action [insert] on [a.b]"), Class::Denied);
        assert_eq!(class("collMod is not allowed in this atlas tier"), Class::Rejected);
    }

    #[test]
    fn throttling_elections_and_shutdowns_are_waited_for() {
        for code in [82, 145, 371, 433, 449, 462, 50, 91, 189, 10107, 11600, 13388, 13435, 14031] {
            assert_eq!(class_of_code(code, ""), Class::Unavailable, "{code}");
        }
    }

    #[test]
    fn a_lost_history_is_told_apart() {
        for code in [136, 260, 280, 286, 10334] {
            assert_eq!(class_of_code(code, ""), Class::HistoryLost, "{code}");
        }
    }

    #[test]
    fn what_nobody_thought_of_is_rejected() {
        assert_eq!(class_of_code(121, "Document failed validation"), Class::Rejected);
        assert_eq!(class_of_code(123_456, ""), Class::Rejected);
    }

    #[test]
    fn a_missing_privilege_is_named() {
        let refused = r#"not authorized on shop to execute command { insert: "orders", documents: [ { _id: 1, card: "s3cret" } ] }"#;
        assert_eq!(privilege(refused).unwrap(), "`insert` on `shop.orders`");
        let stream = "not authorized on admin to execute command { aggregate: 1, pipeline: [ { $changeStream: {} } ] }";
        assert_eq!(privilege(stream).unwrap(), "`changeStream` on the database `admin`");
        assert_eq!(privilege("something else"), None);
    }
}
