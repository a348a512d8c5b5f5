//! PostgreSQL as the target: its address, and what of a document gets a column, or a table, of its own.

use std::{fmt, path::Path};

use toml::de::DeTable;

use super::{
    Origin,
    entries::{Entry, Mistake, entries, tables},
    mapping::{ChildRule, ColumnRule, ColumnType, Mapping, NAME_BYTES_MAX, OWN_COLUMNS},
    secret::{self, ReadError},
};

/// A PostgreSQL connection string. `Display` and `Debug` show the hosts and the database alone.
#[derive(Clone, PartialEq, Eq)]
pub struct PostgresUri {
    text: String,
    origin: Origin,
}

impl PostgresUri {
    /// Takes a connection string. Whether its options are ones is found out by whoever connects.
    ///
    /// # Errors
    /// What is wrong with it, in words that do not repeat it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let text = text.trim_start_matches('\u{feff}').trim();
        let rest = text
            .strip_prefix("postgres://")
            .or_else(|| text.strip_prefix("postgresql://"))
            .ok_or("a connection string begins with `postgres://` or `postgresql://`")?;
        if text.chars().any(|c| c.is_whitespace() || c.is_control()) {
            return Err("a connection string is one line without spaces".to_owned());
        }
        let (location, options) = rest.split_once('?').unwrap_or((rest, ""));
        // Else half of a password would look like the host.
        if location.matches('@').count() > 1 || options.contains('@') {
            return Err("in a user name or password, write `@` as %40 and `?` as %3F".to_owned());
        }
        check_hosts(location)?;
        Ok(Self { text: text.to_owned(), origin: Origin::Unknown })
    }

    pub(super) fn read(path: &Path) -> Result<Self, ReadError> {
        let uri = Self::parse(&secret::read(path)?).map_err(ReadError::Malformed)?;
        Ok(uri.from(Origin::File(path.to_owned())))
    }

    pub(super) fn from(self, origin: Origin) -> Self {
        Self { origin, ..self }
    }

    /// Where it comes from.
    pub fn origin(&self) -> &Origin {
        &self.origin
    }

    /// The whole string, for the driver alone.
    pub fn expose(&self) -> &str {
        &self.text
    }

    /// True when it holds a password, or anything else before an `@`, or as an option.
    pub fn has_credentials(&self) -> bool {
        self.text.contains('@') || self.text.contains("password=")
    }
}

impl fmt::Display for PostgresUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rest = self.text.split_once("://").map_or("", |(_, rest)| rest);
        let place = rest.split('?').next().unwrap_or_default();
        write!(f, "postgres://{}", place.rsplit('@').next().unwrap_or_default())
    }
}

impl fmt::Debug for PostgresUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// What stands where hosts do is shown to people. Half of a password that has lost its `@` looks like a host with a port.
fn check_hosts(location: &str) -> Result<(), String> {
    let place = location.rsplit('@').next().unwrap_or_default();
    let hosts = place.split('/').next().unwrap_or_default();
    let is_host = |host: &str| {
        let port = match host.rsplit_once(']') {
            Some((_, rest)) => rest.strip_prefix(':').or(rest.is_empty().then_some("")),
            None => host.split_once(':').map_or(Some(""), |(_, port)| Some(port)),
        };
        // A folder of a socket is written with %2F.
        let is_plain = !host.replace("%2F", "").replace("%2f", "").contains('%');
        is_plain && port.is_some_and(|port| port.is_empty() || port.parse::<u16>().is_ok())
    };
    // A password with a slash in it, `u:pa/ss@h`, ends where the database begins.
    if hosts.split(',').all(is_host) && !location.split('/').skip(1).any(|part| part.contains('@'))
    {
        return Ok(());
    }
    Err("between `//` and the next `/` stands no list of hosts: a port is a number, `@` is before the host, and a `/`, \
         `@` or `:` in a user name or password is written as %2F, %40 or %3A"
        .to_owned())
}

/// Reads `[[column]]` and `[[child]]` of the whole file.
pub(super) fn read(file: &DeTable<'_>, mistakes: &mut Vec<Mistake>) -> Mapping {
    let mut mapping = Mapping::default();
    for entry in entries(file, "column", mistakes) {
        let read = column(&entry, true, mistakes);
        if let (Some(ns), Some(rule)) = (entry.collection(mistakes), read) {
            let names = mapping.columns.iter().filter(|(of, _)| *of == ns).map(|(_, it)| &it.name);
            entry.check_name(&rule.name, names, OWN_COLUMNS, mistakes);
            mapping.columns.push((ns, rule));
        }
    }
    for entry in entries(file, "child", mistakes) {
        let rule = child(&entry, mistakes);
        if let (Some(ns), Some(rule)) = (entry.collection(mistakes), rule) {
            let is_taken = mapping
                .children
                .iter()
                .any(|(of, child)| of.db() == ns.db() && child.table == rule.table);
            if is_taken {
                let problem = format!("another table is called `{}` already", rule.table);
                mistakes.push(entry.invalid("table", problem));
            }
            mapping.children.push((ns, rule));
        }
    }
    mapping
}

fn path_of(
    entry: &Entry<'_, '_>,
    may_be_empty: bool,
    mistakes: &mut Vec<Mistake>,
) -> Option<String> {
    let path = entry.text("path", mistakes)?;
    let is_fine =
        if path.is_empty() { may_be_empty } else { path.split('.').all(|part| !part.is_empty()) };
    if is_fine {
        return Some(path);
    }
    mistakes.push(entry.invalid("path", "is empty, or has a part that is".to_owned()));
    None
}

fn column(
    entry: &Entry<'_, '_>,
    is_of_document: bool,
    mistakes: &mut Vec<Mistake>,
) -> Option<ColumnRule> {
    let known: &[&'static str] = if is_of_document {
        &["collection", "path", "name", "type"]
    } else {
        &["path", "name", "type"]
    };
    entry.check_keys(known, mistakes);
    let path = path_of(entry, !is_of_document, mistakes);
    let name = match entry.table.get("name") {
        Some(_) => entry.text("name", mistakes),
        None => path.as_ref().map(|path| path.replace('.', "_")),
    };
    let text = entry.text("type", mistakes)?;
    let Some(ty) = ColumnType::named(&text) else {
        let names: Vec<_> = ColumnType::ALL.iter().map(|(name, _)| *name).collect();
        let problem =
            format!("= \"{text}\" is no type of a column; accepted: {}", names.join(", "));
        let (span, error) = entry.invalid("type", problem);
        mistakes.push((span, error));
        return None;
    };
    Some(ColumnRule { path: path?, name: name?, ty })
}

fn child(entry: &Entry<'_, '_>, mistakes: &mut Vec<Mistake>) -> Option<ChildRule> {
    entry.check_keys(&["collection", "path", "table", "columns"], mistakes);
    let path = path_of(entry, false, mistakes);
    let table = entry.text("table", mistakes);
    if let Some(table) = &table
        && (table.is_empty() || table.len() > NAME_BYTES_MAX)
    {
        let problem = format!("is empty, or longer than {NAME_BYTES_MAX} bytes");
        mistakes.push(entry.invalid("table", problem));
    }
    let Some(list) = entry.table.get("columns") else {
        mistakes.push(entry.invalid("columns", "is missing".to_owned()));
        return None;
    };
    let mut columns: Vec<ColumnRule> = Vec::new();
    for of in tables(list, "child", mistakes) {
        if let Some(rule) = column(&of, false, mistakes) {
            let names = columns.iter().map(|it| &it.name);
            of.check_name(&rule.name, names, &["_id", "position"], mistakes);
            columns.push(rule);
        }
    }
    Some(ChildRule { path: path?, table: table?, columns })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_string_shows_no_secret() {
        let uri = PostgresUri::parse("postgres://ann:s3cret@h:5432/shop?sslmode=disable").unwrap();

        assert_eq!(format!("{uri} {uri:?}"), "postgres://h:5432/shop postgres://h:5432/shop");
        assert!(uri.has_credentials());
        for text in [
            "postgres://ann:s3?cret@h/shop",
            "postgres://ann:s3@cret@h",
            "mysql://h/s3cret",
            "postgres://ann:s3cret%40h/shop",
            "postgres://ann:s3cret",
            "postgres://ann:s3/cret@h/shop",
            "postgres://h:s3,h/shop",
        ] {
            assert!(!PostgresUri::parse(text).unwrap_err().contains("s3"), "{text}");
        }
        for text in [
            "postgres://h",
            "postgres://a,b:5433/shop",
            "postgres://u:p@[::1]:5432/s",
            "postgres://[::1]/s",
            "postgres://%2Fvar%2Frun/shop",
            "postgres:///shop?host=/run/postgresql",
            "postgres://u:p%40%2F@h:5432/s",
        ] {
            assert!(PostgresUri::parse(text).is_ok(), "{text}");
        }
    }
}
