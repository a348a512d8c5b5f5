//! Printing: JSON for programs, aligned lines for people.
//!
//! What is printed holds names that anybody may have made who can write to a database. A terminal takes some signs for
//! orders (to colour, to move, to call its window otherwise), so that none of them gets there but the colours from here.

use std::{
    borrow::Cow,
    io::{self, ErrorKind, IsTerminal, Write},
    sync::{
        OnceLock,
        atomic::{AtomicBool, Ordering},
    },
};

use serde::Serialize;
use serde_json::Value;

use super::{args::Output, table::laid_out};
use crate::observe::{
    report::{ExitCode, Failure, legible},
    words,
};

/// Prints a line to stdout. A reader that has gone, as `head` does, is no error. Colours are left out where
/// stdout is no terminal, or `NO_COLOR` is set.
pub fn line(text: impl AsRef<str>) {
    put(&legible(&words::told(text.as_ref()), &COLOURS));
}

fn put(text: &str) {
    note(writeln!(anstream::stdout(), "{text}"));
}

/// A failure is told at the end, by [`all_written`]: what else there is to print may find room.
fn note(written: io::Result<()>) {
    match written {
        Ok(()) => {}
        Err(error) if error.kind() == ErrorKind::BrokenPipe => {
            READER_GONE.store(true, Ordering::Relaxed);
        }
        Err(error) => drop(NOT_WRITTEN.set(error)),
    }
}

/// Prints all of a file.
///
/// # Errors
/// As [`all_written`].
pub fn whole(bytes: &[u8]) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    note(stdout.write_all(bytes).and_then(|()| stdout.flush()));
    all_written()
}

/// A disk that is full, say, under the file that a report was to go to.
static NOT_WRITTEN: OnceLock<io::Error> = OnceLock::new();

/// Whether all that was printed got to where stdout leads.
///
/// # Errors
/// Where it did not: whoever reads that file must not take a part for the whole.
pub fn all_written() -> Result<(), Failure> {
    let Some(error) = NOT_WRITTEN.get() else { return Ok(()) };
    let error = anyhow::anyhow!("{error}").context("the answer cannot be written to stdout");
    Err(Failure::new(ExitCode::Problem, error).hint("make room where it goes, and ask again"))
}

static READER_GONE: AtomicBool = AtomicBool::new(false);

/// Empties the screen of a terminal, and puts the cursor at its top.
pub fn clear() {
    let _ = std::io::stdout().write_all(b"\x1b[H\x1b[2J");
}

/// False once the reader of stdout has gone, for what would go on for ever.
pub fn is_read() -> bool {
    !READER_GONE.load(Ordering::Relaxed)
}

const GOOD: &str = "\x1b[32m";
const SOSO: &str = "\x1b[33m";
const BAD: &str = "\x1b[31m";
const PLAIN: &str = "\x1b[0m";
const COLOURS: [&str; 4] = [GOOD, SOSO, BAD, PLAIN];

/// Words in colour; it only repeats what they say.
pub fn good(text: &str) -> String {
    format!("{GOOD}{text}{PLAIN}")
}

/// As [`good`], for what a person should look at.
pub fn soso(text: &str) -> String {
    format!("{SOSO}{text}{PLAIN}")
}

/// As [`good`], for what is wrong.
pub fn bad(text: &str) -> String {
    format!("{BAD}{text}{PLAIN}")
}

/// Prints a value as indented JSON.
pub fn json(value: &impl Serialize) {
    put(&escaped(&serde_json::to_string_pretty(value).unwrap_or_default()));
}

/// The same on one line, where one follows the other.
pub fn json_line(value: &Value) {
    put(&escaped(&value.to_string()));
}

/// JSON escapes the old control characters by itself, and leaves the newer ones (U+007F to U+009F) as they are.
fn escaped(json: &str) -> Cow<'_, str> {
    let is_order = |c: char| c.is_control() && !c.is_ascii_whitespace();
    if !json.contains(is_order) {
        return json.into();
    }
    let as_text = |c: char| {
        if is_order(c) { format!("\\u{:04x}", u32::from(c)) } else { c.to_string() }
    };
    json.chars().map(as_text).collect::<String>().into()
}

/// A number in a JSON answer, 0 where it is missing.
pub fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or(0)
}

/// A result for people or for programs.
pub fn result(output: Output, value: &impl Serialize, text: impl AsRef<str>) {
    if output.json { json(value) } else { line(text) }
}

/// A number of things: `1 document`, `2 documents`.
pub fn many(n: u64, one: &str) -> String {
    if n == 1 { format!("1 {one}") } else { format!("{n} {one}s") }
}

/// Prints rows under a header. On a terminal they fit its width.
pub fn table(header: &[&str], rows: &[Vec<String>]) {
    for text in laid_out(header, rows, width()) {
        line(text);
    }
}

/// Columns of the terminal; `None` where stdout is none, or it does not say.
fn width() -> Option<usize> {
    let stdout = std::io::stdout();
    if !stdout.is_terminal() {
        return None;
    }
    let size = rustix::termios::tcgetwinsize(&stdout).ok()?;
    (size.ws_col > 0).then(|| usize::from(size.ws_col))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_gets_no_orders_but_our_own_colours() {
        let name = "shop.\x1b]0;title\x07\x1b[2J\u{9b}1mx";

        let told = legible(&format!("{} {name}\n", good("ok")), &COLOURS).into_owned();

        let shown = "shop.\\u{1b}]0;title\\u{7}\\u{1b}[2J\\u{9b}1mx";
        assert_eq!(told, format!("\x1b[32mok\x1b[0m {shown}\n"));
    }

    #[test]
    fn json_stays_json_and_has_no_order_for_a_terminal() {
        let name = "a\u{9b}\x7f\x1bä";
        let text = serde_json::to_string_pretty(&serde_json::json!({ "name": name })).unwrap();

        let told = escaped(&text);

        assert!(!told.contains(|c: char| c.is_control() && c != '\n'), "{told:?}");
        let read: Value = serde_json::from_str(&told).unwrap();
        assert_eq!(read["name"], name);
    }
}
