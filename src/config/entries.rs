//! Lists of tables in the file, `[[section]]`, whose mistakes come with the place where they begin.

use std::ops::Range;

use toml::{Spanned, de::DeTable, de::DeValue};

use super::{ConfigError, mapping::NAME_BYTES_MAX};
use crate::model::namespace::Namespace;

/// A mistake, and where it stands.
pub(super) type Mistake = (Range<usize>, ConfigError);

/// One table of an array of them.
pub(super) struct Entry<'a, 'b> {
    section: &'static str,
    pub table: &'a DeTable<'b>,
    span: Range<usize>,
}

/// Those of `[[section]]`.
pub(super) fn entries<'a, 'b>(
    file: &'a DeTable<'b>,
    section: &'static str,
    mistakes: &mut Vec<Mistake>,
) -> Vec<Entry<'a, 'b>> {
    let Some(value) = file.get(section) else { return Vec::new() };
    tables(value, section, mistakes)
}

/// Those of a list, which is not the file's own.
pub(super) fn tables<'a, 'b>(
    value: &'a Spanned<DeValue<'b>>,
    section: &'static str,
    mistakes: &mut Vec<Mistake>,
) -> Vec<Entry<'a, 'b>> {
    let items = value.get_ref().as_array().map(|array| array.iter().collect::<Vec<_>>());
    let Some(items) = items else {
        let problem = format!("is a list: each entry begins with `[[{section}]]`");
        mistakes.push((value.span(), ConfigError::invalid(section, problem)));
        return Vec::new();
    };
    let mut entries = Vec::new();
    for item in items {
        match item.get_ref().as_table() {
            Some(table) => entries.push(Entry { section, table, span: item.span() }),
            None => mistakes
                .push((item.span(), ConfigError::invalid(section, "is no table".to_owned()))),
        }
    }
    entries
}

impl Entry<'_, '_> {
    pub fn invalid(&self, key: &str, problem: String) -> Mistake {
        let span = self.table.get(key).map_or_else(|| self.span.clone(), Spanned::span);
        (span, ConfigError::invalid(self.section, format!("`{key}` {problem}")))
    }

    pub fn check_keys(&self, known: &[&'static str], mistakes: &mut Vec<Mistake>) {
        for key in self.table.keys() {
            if !known.contains(&key.get_ref().as_ref()) {
                let nearest = known
                    .iter()
                    .copied()
                    .min_by_key(|known| strsim::damerau_levenshtein(known, key.get_ref()));
                let error = ConfigError::UnknownKey {
                    key: format!("{}.{}", self.section, key.get_ref()),
                    nearest,
                };
                mistakes.push((key.span(), error));
            }
        }
    }

    pub fn text(&self, key: &'static str, mistakes: &mut Vec<Mistake>) -> Option<String> {
        match self.table.get(key).map(|value| value.get_ref().as_str()) {
            Some(Some(text)) => Some(text.to_owned()),
            Some(None) => {
                mistakes.push(self.invalid(key, "is no text".to_owned()));
                None
            }
            None => {
                mistakes.push(self.invalid(key, "is missing".to_owned()));
                None
            }
        }
    }

    /// A list of texts; none where the key is not there.
    pub fn texts(&self, key: &str, mistakes: &mut Vec<Mistake>) -> Vec<String> {
        let Some(value) = self.table.get(key) else { return Vec::new() };
        let items = value.get_ref().as_array().map(|items| {
            items.iter().map(|item| item.get_ref().as_str().map(str::to_owned)).collect()
        });
        items.flatten().unwrap_or_else(|| {
            mistakes.push(self.invalid(key, "is no list of texts".to_owned()));
            Vec::new()
        })
    }

    pub fn has(&self, key: &str) -> bool {
        self.table.contains_key(key)
    }

    pub fn collection(&self, mistakes: &mut Vec<Mistake>) -> Option<Namespace> {
        let text = self.text("collection", mistakes)?;
        match text.parse::<Namespace>() {
            Ok(ns) if !text.contains(['*', '?']) => Some(ns),
            Ok(_) => {
                mistakes.push(
                    self.invalid("collection", "names one collection, without `*`".to_owned()),
                );
                None
            }
            Err(error) => {
                mistakes.push(self.invalid("collection", format!("= {error}")));
                None
            }
        }
    }

    pub fn check_name<'n>(
        &self,
        name: &str,
        mut others: impl Iterator<Item = &'n String>,
        own: &[&str],
        mistakes: &mut Vec<Mistake>,
    ) {
        let key = if self.table.contains_key("name") { "name" } else { "path" };
        let problem = if own.contains(&name) {
            format!(
                "makes a column `{name}`, which every such table has of its own; give it another `name`"
            )
        } else if others.any(|other| other == name) {
            format!("makes a second column `{name}`; give it another `name`")
        } else if name.is_empty() || name.len() > NAME_BYTES_MAX {
            format!(
                "makes the column's name empty, or longer than {NAME_BYTES_MAX} bytes; give it another `name`"
            )
        } else {
            return;
        };
        mistakes.push(self.invalid(key, problem));
    }
}
