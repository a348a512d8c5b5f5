//! Log lines on stderr, as text or JSON.
//!
//! The message is a constant text; everything that varies is a field, and every field is one of [`FIELDS`].
//! Never a document, never a credential; a document's key at `debug` only, since an `_id` may be an address.
//!
//! Nobody waits for whoever reads the lines, and what was logged before the end is written before the end, if it is
//! taken within seconds.

use std::{
    backtrace::{Backtrace, BacktraceStatus},
    fmt::Debug,
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use tracing::field::Field;
use tracing_subscriber::{
    field::MakeExt,
    filter::{LevelFilter, Targets},
    fmt::{
        self,
        format::{Writer, debug_fn},
    },
    layer::SubscriberExt,
    util::SubscriberInitExt,
};

use crate::config::LogFormat;

mod stderr;

use stderr::Stderr;

/// How long the end waits for whoever reads the log.
const FLUSH_FOR: Duration = Duration::from_secs(2);

/// Whether lines are logged at all: many commands say on stdout what there is to say.
static HAS_STARTED: AtomicBool = AtomicBool::new(false);

/// The outcome is known, and what is left is on its way out.
static IS_LEAVING: AtomicBool = AtomicBool::new(false);

/// Every field that a line may have beside `timestamp`, `level` and `message`, with what it holds.
pub const FIELDS: &[(&str, &str)] = &[
    ("action", "what was asked of the API"),
    ("again", "collections that are compared again, or whose copy goes on where it was"),
    ("alert", "the stable name of an alert"),
    ("applied", "changes that reached Atlas in the last minute"),
    ("atlas", "Atlas's address, without credentials"),
    ("attempt", "how often a write was tried"),
    ("breaker", "closed, open or half-open"),
    ("by", "who asked for it"),
    ("bytes", "encoded size of what waits"),
    ("changes", "what was changed of a collection"),
    ("coalesced", "changes merged away in the last minute"),
    ("collections", "how many a run was about"),
    ("column", "a declared column of PostgreSQL"),
    ("compare", "collections to compare"),
    ("config", "the configuration file in use"),
    ("content", "documents that differed"),
    ("dashboard", "its address"),
    ("databases", "names in other capitals that make way in Atlas"),
    ("copy", "collections to copy"),
    ("db", "a database"),
    ("differences", "differences of options and indexes"),
    ("documents", "how many documents"),
    ("drain_for", "how long a stopping agent writes"),
    ("drift", "by how many documents an estimate is off"),
    ("dropped", "lines of the log that found no room"),
    ("elapsed_ms", "how long it took or has lasted"),
    ("end", "local or atlas"),
    ("error", "what went wrong"),
    ("events", "change events of the last minute"),
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
    ("outcome", "how a run ended, or the status of an answer"),
    ("pending", "changes that wait"),
    ("phase", "the agent's phase"),
    ("queue", "the folder of the queue"),
    ("reason", "why a run takes place, an action was asked for, or an option is left out"),
    ("runbook", "the address of the page that says what to do about an alert"),
    ("source", "the id of another source's mark"),
    ("token_file", "where the token of the API is"),
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
    HAS_STARTED.store(true, Ordering::Relaxed);
    // Fails when there is a subscriber already, as in a test that starts two agents: the first stays.
    let _ = match format {
        LogFormat::Text => {
            let layer = fmt::layer()
                .fmt_fields(debug_fn(text_field).delimited(" "))
                .with_writer(Stderr::get)
                .with_target(false);
            registry
                .with(layer.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())))
                .try_init()
        }
        LogFormat::Json => registry
            .with(
                fmt::layer().json().flatten_event(true).with_writer(Stderr::get).with_target(false),
            )
            .try_init(),
    };
}

/// One field of a line of text, as logfmt has it: a value with spaces, quotes or an `=` stands in quotes, so that
/// nothing in it can be taken for another field.
fn text_field(writer: &mut Writer<'_>, field: &Field, value: &dyn Debug) -> std::fmt::Result {
    let text = format!("{value:?}");
    if field.name() == "message" {
        return writer.write_str(&text);
    }
    // `Debug` of a string has put it in quotes already; once more would double them.
    let is_quoted = text.len() > 1 && text.starts_with('"') && text.ends_with('"');
    let needs = |c: char| c.is_whitespace() || c.is_control() || c == '"' || c == '=';
    if !is_quoted && (text.is_empty() || text.contains(needs)) {
        write!(writer, "{}={text:?}", field.name())
    } else {
        write!(writer, "{}={text}", field.name())
    }
}

/// Writes what waits, within seconds. Before every way out of the process: an `exit` or an `exec` ends the thread
/// that writes.
pub fn flush() {
    if HAS_STARTED.load(Ordering::Relaxed) {
        Stderr::get().flush(FLUSH_FOR);
    }
}

/// Says why the program fails, after what was logged, in seconds.
pub fn last_words(text: &str) {
    let stderr = Stderr::get();
    stderr.push(text.as_bytes());
    stderr.flush(FLUSH_FOR);
}

/// Lines that were dropped since the start, because whoever reads them did not keep up.
pub fn dropped() -> u64 {
    if HAS_STARTED.load(Ordering::Relaxed) { Stderr::get().dropped() } else { 0 }
}

/// From now on no panic in code that others have written is worth a word: the driver's and the storage's own tasks do so
/// when the runtime goes away under them (each task of the driver takes one that it waits for to have ended well), over an
/// outcome that is good.
pub fn leave() {
    IS_LEAVING.store(true, Ordering::Relaxed);
}

/// Has panics told as log lines, once there are any: what prints them otherwise waits for whoever reads stderr.
///
/// Cargo names the files of the package that it builds from its folder on, and those of others from the root.
pub fn take_panics() {
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        let is_ours = panic.location().is_none_or(|at| Path::new(at.file()).is_relative());
        if IS_LEAVING.load(Ordering::Relaxed) && !is_ours {
            return;
        }
        if !HAS_STARTED.load(Ordering::Relaxed) {
            return print(panic);
        }
        let mut error = panic.to_string();
        // As `RUST_BACKTRACE` asks for it.
        let backtrace = Backtrace::capture();
        if backtrace.status() == BacktraceStatus::Captured {
            error = format!("{error}\n{backtrace}");
        }
        tracing::error!(%error, "a part of the program has panicked, which is a bug");
    }));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone)]
    struct To(std::sync::Arc<parking_lot::Mutex<Vec<u8>>>);
    impl std::io::Write for To {
        fn write(&mut self, part: &[u8]) -> std::io::Result<usize> {
            self.0.lock().extend_from_slice(part);
            Ok(part.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_value_that_is_no_word_stands_in_quotes() {
        let lines = std::sync::Arc::new(parking_lot::Mutex::new(Vec::new()));
        let to = To(lines.clone());
        let layer = fmt::layer()
            .fmt_fields(debug_fn(text_field).delimited(" "))
            .with_writer(move || to.clone())
            .with_ansi(false);
        let error = std::io::Error::other("says \"no\", a=b\nand more");

        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || {
            tracing::info!(%error, ns = %"shop.orders", alert = "lag", pending = 3, "it is told");
        });

        let text = String::from_utf8(lines.lock().clone()).unwrap();
        let fields = "it is told error=\"says \\\"no\\\", a=b\\nand more\" ns=shop.orders alert=\"lag\" pending=3\n";
        assert!(text.ends_with(fields), "{text}");
    }
}
