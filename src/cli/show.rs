//! Printing: JSON for programs, aligned lines for people.

use std::{
    io::{IsTerminal, Write},
    sync::atomic::{AtomicBool, Ordering},
};

use comfy_table::{ColumnConstraint, ContentArrangement, Table, presets::NOTHING};
use serde::Serialize;
use serde_json::Value;

use super::args::Output;
use crate::observe::words;

/// Prints a line to stdout. A reader that has gone, as `head` does, is no error. Colours are left out where
/// stdout is no terminal, or `NO_COLOR` is set.
pub fn line(text: impl AsRef<str>) {
    put(&words::told(text.as_ref()));
}

fn put(text: &str) {
    let written = writeln!(anstream::stdout(), "{text}");
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
    put(&serde_json::to_string_pretty(value).unwrap_or_default());
}

/// A number in a JSON answer, 0 where it is missing.
pub fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or(0)
}

/// A result for people or for programs.
pub fn result(output: Output, value: &impl Serialize, text: impl AsRef<str>) {
    if output.json { json(value) } else { line(text) }
}

/// Prints rows under a header. On a terminal they fit its width: names are cut in the middle, where they differ
/// least, and the last column is wrapped.
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

/// Columns whose cells may be cut.
const NAMES: [&str; 2] = ["COLLECTION", "DOCUMENT"];

/// Least signs of a name, and of the last column, however narrow the terminal is.
const NAME_MIN: usize = 12;
const LAST_MIN: usize = 20;

fn laid_out(header: &[&str], rows: &[Vec<String>], width: Option<usize>) -> Vec<String> {
    const GAP: usize = 2;
    let mut table = Table::new();
    table.load_preset(NOTHING).set_header(header.iter().copied());
    let limit = width.map_or(usize::MAX, |width| {
        let widest = |column: usize| {
            let cells = rows.iter().map(|row| row[column].chars().count());
            cells.max().unwrap_or(0).max(header[column].len()) + GAP
        };
        let last = header.len().saturating_sub(1);
        let names = header.iter().filter(|name| NAMES.contains(name)).count().max(1);
        let taken: usize =
            (0..header.len())
                .filter(|column| !NAMES.contains(&header[*column]))
                .map(|column| {
                    if column == last { widest(column).min(LAST_MIN + GAP) } else { widest(column) }
                })
                .sum();
        (width.saturating_sub(taken) / names).saturating_sub(GAP).max(NAME_MIN)
    });
    for row in rows {
        table.add_row(row.iter().zip(header).map(|(cell, name)| {
            if NAMES.contains(name) { cut(cell, limit) } else { cell.clone() }
        }));
    }
    if let Some(width) = width {
        table.set_content_arrangement(ContentArrangement::Dynamic);
        table.set_width(u16::try_from(width).unwrap_or(u16::MAX));
        for column in table.column_iter_mut().rev().skip(1) {
            column.set_constraint(ColumnConstraint::ContentWidth);
        }
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, GAP as u16));
    }
    table.lines().map(|line| line.trim_end().to_owned()).collect()
}

/// At most so many signs, without the middle.
fn cut(text: &str, most: usize) -> String {
    let signs: Vec<char> = text.chars().collect();
    if signs.len() <= most {
        return text.to_owned();
    }
    let (head, tail) = (most / 2, most - most / 2 - 1);
    signs[..head].iter().chain(&['…']).chain(&signs[signs.len() - tail..]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_fits_the_terminal_and_names_are_cut_in_the_middle() {
        let header = ["ID", "COLLECTION", "DOCUMENT", "REASON"];
        let row = |n: u32| {
            let name = format!("shop.orders_of_the_year_before_last_in_the_north_{n}");
            let reason = "the unique index on (email) holds this value already";
            vec!["019aa5c2".to_owned(), name, n.to_string(), reason.to_owned()]
        };

        let narrow = laid_out(&header, &[row(1), row(2)], Some(80));
        let wide = laid_out(&header, &[row(1), row(2)], None);

        assert!(narrow.iter().all(|line| line.chars().count() <= 80), "{narrow:#?}");
        let text = narrow.join("\n");
        assert!(text.contains("shop.") && text.contains('…') && text.contains("north_2"), "{text}");
        assert!(text.contains("019aa5c2  "), "{text}");
        assert_eq!(wide.len(), 3, "{wide:#?}");
        assert!(wide[1].contains(&row(1)[1]) && wide[1].ends_with("already"), "{wide:#?}");
        assert!(wide[0].starts_with("ID        COLLECTION"), "{wide:#?}");
    }
}
