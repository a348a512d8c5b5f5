//! Tables that fit the terminal: names are cut in the middle, where they differ least, and the last column is wrapped.
//! Where even that has no room, each row becomes a few lines of its own, every one with what it is.

use comfy_table::{ColumnConstraint, ContentArrangement, Table, presets::NOTHING};
use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

use crate::observe::report::legible;

/// Columns whose cells may be cut.
const NAMES: [&str; 2] = ["COLLECTION", "DOCUMENT"];

/// Least width of a name, and of the last column, below which there is no table.
const NAME_MIN: usize = 12;
const LAST_MIN: usize = 20;
const GAP: usize = 2;

/// The lines of a table of `width`, if there is a limit.
pub(super) fn laid_out(header: &[&str], rows: &[Vec<String>], width: Option<usize>) -> Vec<String> {
    // A name may hold what ends a line.
    let clean = |cell: &String| legible(cell, &[]).replace('\n', "\\n").replace('\t', "\\t");
    let rows: Vec<Vec<String>> = rows.iter().map(|row| row.iter().map(clean).collect()).collect();
    let Some(width) = width else { return table(header, &rows, None, usize::MAX) };
    let widest = |column: usize| {
        let cells = rows.iter().map(|row| row[column].width());
        cells.max().unwrap_or(0).max(header[column].len())
    };
    let last = header.len().saturating_sub(1);
    let is_name = |column: &usize| NAMES.contains(&header[*column]);
    let names = (0..header.len()).filter(is_name).count();
    let taken: usize = (0..header.len())
        .filter(|column| !is_name(column))
        .map(|column| if column == last { widest(column).min(LAST_MIN) } else { widest(column) })
        .sum();
    let left = width.saturating_sub(taken + GAP * header.len());
    // What a name does not need is another one's.
    let needed: usize = (0..header.len()).filter(is_name).map(widest).sum();
    let limit = if needed <= left { usize::MAX } else { left / names.max(1) };
    if taken + GAP * header.len() > width || limit < NAME_MIN {
        return stacked(header, &rows);
    }
    table(header, &rows, Some(width), limit)
}

fn table(header: &[&str], rows: &[Vec<String>], width: Option<usize>, limit: usize) -> Vec<String> {
    let mut table = Table::new();
    table.load_preset(NOTHING).set_header(header.iter().copied());
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

/// One below the other, with an empty line between two rows.
fn stacked(header: &[&str], rows: &[Vec<String>]) -> Vec<String> {
    let widest = header.iter().map(|name| name.len()).max().unwrap_or(0);
    let mut lines = Vec::new();
    for row in rows {
        if !lines.is_empty() {
            lines.push(String::new());
        }
        let cells = header.iter().zip(row).filter(|(_, cell)| !cell.is_empty());
        lines.extend(cells.map(|(name, cell)| format!("{name:<widest$}  {cell}")));
    }
    lines
}

/// No wider than this, without the middle.
fn cut(text: &str, most: usize) -> String {
    if text.width() <= most {
        return text.to_owned();
    }
    let within = |signs: &mut dyn Iterator<Item = char>, mut room: usize| -> Vec<char> {
        signs
            .take_while(|sign| {
                let width = sign.width().unwrap_or(0);
                let fits = width <= room;
                room = room.saturating_sub(width);
                fits
            })
            .collect()
    };
    let head = within(&mut text.chars(), most / 2);
    let tail = within(&mut text.chars().rev(), most.saturating_sub(most / 2 + 1));
    head.iter().chain(&['…']).chain(tail.iter().rev()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: [&str; 4] = ["ID", "COLLECTION", "DOCUMENT", "REASON"];

    fn row(n: u32) -> Vec<String> {
        let name = format!("shop.orders_of_the_year_before_last_in_the_north_{n}");
        let reason = "the unique index on (email) holds this value already";
        vec!["019aa5c2".to_owned(), name, n.to_string(), reason.to_owned()]
    }

    #[test]
    fn a_table_fits_the_terminal_and_names_are_cut_in_the_middle() {
        let narrow = laid_out(&HEADER, &[row(1), row(2)], Some(80));
        let wide = laid_out(&HEADER, &[row(1), row(2)], None);

        assert!(narrow.iter().all(|line| line.chars().count() <= 80), "{narrow:#?}");
        let text = narrow.join("\n");
        assert!(text.contains("shop.") && text.contains('…') && text.contains("north_2"), "{text}");
        assert!(text.contains("019aa5c2  "), "{text}");
        assert_eq!(wide.len(), 3, "{wide:#?}");
        assert!(wide[1].contains(&row(1)[1]) && wide[1].ends_with("already"), "{wide:#?}");
        assert!(wide[0].starts_with("ID        COLLECTION"), "{wide:#?}");
    }

    #[test]
    fn where_a_table_has_no_room_each_row_is_some_lines_and_no_word_stands_on_end() {
        for width in 20..=200 {
            let lines = laid_out(&HEADER, &[row(1), row(2)], Some(width));

            assert!(lines.len() < 20, "{width}: {lines:#?}");
            let is_table = lines[0].contains("COLLECTION") && lines[0].contains("REASON");
            let fits = lines.iter().all(|line| line.width() <= width);
            assert!(!is_table || fits, "{width}: {lines:#?}");
        }
        let lines = laid_out(&HEADER, &[row(1), row(2)], Some(40));
        assert_eq!(lines[0], "ID          019aa5c2");
        assert_eq!(lines[1], format!("COLLECTION  {}", row(1)[1]), "nothing is cut");
        assert_eq!(lines[4], "");
    }

    #[test]
    fn signs_of_double_width_count_twice_and_what_ends_a_line_does_not() {
        let of = |name: &str| vec!["copy".to_owned(), name.to_owned(), "a note".to_owned()];
        let header = ["ACTION", "COLLECTION", "NOTE"];
        let rows =
            [of("shop.注文注文注文注文注文注文注文注文"), of("shop.line\nbreak\ttab\x1b[2J")];

        let lines = laid_out(&header, &rows, Some(44));

        assert_eq!(lines.len(), 3, "{lines:#?}");
        assert!(lines.iter().all(|line| line.width() <= 44), "{lines:#?}");
        assert!(lines[1].contains("注文…"), "{lines:#?}");
        assert!(lines[2].contains("shop.line\\n") && lines[2].contains("[2J"), "{lines:#?}");
    }
}
