//! Printing: JSON for programs, aligned lines for people.

use std::{
    io::Write,
    sync::atomic::{AtomicBool, Ordering},
};

use serde::Serialize;
use serde_json::Value;

/// Prints a line to stdout. A reader that has gone, as `head` does, is no error. Colours are left out where
/// stdout is no terminal, or `NO_COLOR` is set.
pub fn line(text: impl AsRef<str>) {
    let written = writeln!(anstream::stdout(), "{}", text.as_ref());
    if written.is_err_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe) {
        READER_GONE.store(true, Ordering::Relaxed);
    }
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

/// Words in colour; it only repeats what they say.
pub fn good(text: &str) -> String {
    format!("\x1b[32m{text}\x1b[0m")
}

/// As [`good`], for what a person should look at.
pub fn soso(text: &str) -> String {
    format!("\x1b[33m{text}\x1b[0m")
}

/// As [`good`], for what is wrong.
pub fn bad(text: &str) -> String {
    format!("\x1b[31m{text}\x1b[0m")
}

/// Prints a value as indented JSON.
pub fn json(value: &impl Serialize) {
    line(serde_json::to_string_pretty(value).unwrap_or_default());
}

/// A number in a JSON answer, 0 where it is missing.
pub fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or(0)
}

/// Prints rows under a header, each column as wide as its widest cell.
pub fn table(header: &[&str], rows: &[Vec<String>]) {
    let width = |column: usize| {
        rows.iter()
            .map(|row| row[column].chars().count())
            .chain([header[column].chars().count()])
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<_> = (0..header.len()).map(width).collect();
    let show = |cells: &[String]| {
        let cells: Vec<_> =
            cells.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        line(cells.join("  ").trim_end());
    };
    show(&header.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>());
    for row in rows {
        show(row);
    }
}
