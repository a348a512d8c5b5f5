//! Log lines on stderr, as text or JSON.
//!
//! The message is a constant text; everything that varies is a field, and every field is one of [`FIELDS`].
//! Never a document, never a credential; a document's key at `debug` only, since an `_id` may be an address.

use tracing_subscriber::{
    filter::{LevelFilter, Targets},
    fmt,
    layer::SubscriberExt,
    util::SubscriberInitExt,
};

use crate::config::LogFormat;

/// Every field that a line may have beside `timestamp`, `level` and `message`, with what it holds.
pub const FIELDS: &[(&str, &str)] = &[
    ("again", "collections whose copy goes on where it was"),
    ("alert", "the stable name of an alert"),
    ("applied", "changes that reached Atlas in the last minute"),
    ("atlas", "Atlas's address, without credentials"),
    ("attempt", "how often a write was tried"),
    ("breaker", "closed, open or half-open"),
    ("bytes", "encoded size of what waits"),
    ("changes", "what was changed of a collection"),
    ("coalesced", "changes merged away in the last minute"),
    ("collections", "how many a run was about"),
    ("compare", "collections to compare"),
    ("content", "documents that differed"),
    ("copy", "collections to copy"),
    ("db", "a database"),
    ("differences", "differences of options and indexes"),
    ("documents", "how many documents"),
    ("drain_for", "how long a stopping agent writes"),
    ("drift", "by how many documents an estimate is off"),
    ("elapsed_ms", "how long it took or has lasted"),
    ("end", "local or atlas"),
    ("error", "what went wrong"),
    ("events", "change events of the last minute"),
    ("everything", "whether everything is compared"),
    ("extra", "documents that only Atlas had"),
    ("files", "size of the queue's files"),
    ("id", "an entry, a dead letter or a run"),
    ("indexes", "names of indexes"),
    ("is_done", "whether nothing is left to do"),
    ("key", "a document's `_id`; at debug only"),
    ("lag_s", "how far Atlas is behind"),
    ("left", "what is still to be built"),
    ("local", "the local database's address, without credentials"),
    ("local_version", "its version"),
    ("missing", "documents that Atlas lacked"),
    ("moved_to", "where a broken queue is now"),
    ("ns", "database and collection"),
    ("op", "what was to be done"),
    ("outcome", "how a run ended"),
    ("pending", "changes that wait"),
    ("phase", "the agent's phase"),
    ("reason", "why a run takes place"),
    ("source", "the id of another source's mark"),
    ("url", "scheme and host of a web hook"),
    ("version", "Outrigger's version"),
    ("wait_ms", "when it is tried again"),
];

/// Starts logging. Results go to stdout, so logs never mix with them.
///
/// `level` is one of error, warn, info, debug and trace, or a list of targets; the configuration has checked it. It
/// is about Outrigger's own lines: others speak from `warn` on, whatever is asked for, and the HTTP client not at
/// all, which would tell the whole address of a web hook.
pub fn start(level: &str, format: LogFormat) {
    let asked = level.parse::<Targets>().unwrap_or_default();
    let own = asked.default_level().unwrap_or(LevelFilter::INFO);
    let of_us = asked.iter().filter(|(target, _)| target.starts_with("outrigger"));
    let targets = Targets::new()
        .with_default(own.min(LevelFilter::WARN))
        .with_target("outrigger", own)
        .with_targets(of_us.map(|(target, level)| (target.to_owned(), level)))
        .with_targets([("ureq", LevelFilter::OFF), ("ureq_proto", LevelFilter::OFF)]);
    let registry = tracing_subscriber::registry().with(targets);
    // A second start, as in a test, keeps the first.
    let _ = match format {
        LogFormat::Text => {
            let layer = fmt::layer().with_writer(std::io::stderr).with_target(false);
            registry
                .with(layer.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())))
                .try_init()
        }
        LogFormat::Json => registry
            .with(
                fmt::layer()
                    .json()
                    .flatten_event(true)
                    .with_writer(std::io::stderr)
                    .with_target(false),
            )
            .try_init(),
    };
}
