//! The indexes that a collection is to have in the target, as `[[route]]` declares them: `"a, -b"`, or
//! `{ keys = "a, -b", unique = true }`. A `-` sorts a field downwards.

use toml::{Spanned, de::DeValue};

use super::entries::{Entry, Mistake};

/// The keys of an index in the long form.
const KEYS: [&str; 2] = ["keys", "unique"];

/// As many as MongoDB lets an index have.
const FIELDS_MAX: usize = 32;

/// An index that is made where it is not there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IndexRule {
    /// Paths with dots, each with whether it sorts upwards.
    pub keys: Vec<(String, bool)>,
    pub unique: bool,
}

impl IndexRule {
    /// What MongoDB itself would call it.
    pub fn name(&self) -> String {
        let parts = self.keys.iter();
        parts
            .map(|(path, up)| format!("{path}_{}", if *up { "1" } else { "-1" }))
            .collect::<Vec<_>>()
            .join("_")
    }
}

/// Those of an entry.
pub(super) fn read(entry: &Entry<'_, '_>, mistakes: &mut Vec<Mistake>) -> Vec<IndexRule> {
    let Some(value) = entry.table.get("indexes") else { return Vec::new() };
    let Some(items) = value.get_ref().as_array() else {
        let problem = "is no list, such as `[\"status\", \"-created_at\"]`";
        mistakes.push(entry.invalid("indexes", problem.to_owned()));
        return Vec::new();
    };
    let mut rules: Vec<IndexRule> = Vec::new();
    for item in items {
        match rule(item) {
            Ok(rule) => {
                if let Some(problem) = clash(&rule, rules.iter()) {
                    mistakes.push(mistake(item, problem));
                }
                rules.push(rule);
            }
            Err(problem) => mistakes.push(mistake(item, problem)),
        }
    }
    rules
}

/// What is wrong with two indexes of one collection.
pub(super) fn clash<'a>(
    rule: &IndexRule,
    mut others: impl Iterator<Item = &'a IndexRule>,
) -> Option<String> {
    others.find(|other| other.keys == rule.keys && other.unique != rule.unique).map(|_| {
        format!("has `{}` twice for the same collection, once unique and once not", rule.name())
    })
}

fn mistake(item: &Spanned<DeValue<'_>>, problem: String) -> Mistake {
    (item.span(), super::ConfigError::invalid("route", format!("`indexes` {problem}")))
}

fn rule(item: &Spanned<DeValue<'_>>) -> Result<IndexRule, String> {
    if let Some(text) = item.get_ref().as_str() {
        return Ok(IndexRule { keys: keys(text)?, unique: false });
    }
    let table = item.get_ref().as_table().ok_or(
        "has an item that is neither a text such as `\"a, -b\"` nor `{ keys = \"a, -b\", unique = true }`",
    )?;
    if let Some(other) = table.keys().find(|key| !KEYS.contains(&key.get_ref().as_ref())) {
        return Err(format!(
            "has an index with `{}`, and an index has `keys` and `unique`: one of another kind is made in Atlas, where it stays",
            other.get_ref()
        ));
    }
    let text = table.get("keys").and_then(|keys| keys.get_ref().as_str());
    let unique = match table.get("unique") {
        Some(unique) => {
            unique.get_ref().as_bool().ok_or("has `unique` that is neither true nor false")?
        }
        None => false,
    };
    Ok(IndexRule { keys: keys(text.ok_or("has an index without `keys = \"…\"`")?)?, unique })
}

fn keys(text: &str) -> Result<Vec<(String, bool)>, String> {
    let mut keys: Vec<(String, bool)> = Vec::new();
    for part in text.split(',') {
        let part = part.trim();
        let (path, up) = part.strip_prefix('-').map_or((part, true), |path| (path, false));
        if path.split('.').any(str::is_empty) {
            return Err(format!("= \"{text}\" has a key, or a part of one, that is empty"));
        }
        if path.contains(['$', ':', '*', '\0', ' ']) {
            return Err(format!(
                "= \"{text}\": `{path}` is no path of a field; an index of another kind is made in Atlas, where it stays"
            ));
        }
        if keys.iter().any(|(other, _)| other == path) {
            return Err(format!("= \"{text}\" has `{path}` twice"));
        }
        keys.push((path.to_owned(), up));
    }
    match &keys[..] {
        [(path, _)] if path == "_id" => {
            Err("= \"_id\" is there by itself, in every collection".to_owned())
        }
        keys if keys.len() > FIELDS_MAX => {
            Err(format!("= \"{text}\" has more than {FIELDS_MAX} keys"))
        }
        _ => Ok(keys),
    }
}
