//! A source that is a table of events in a database of SQL: where it is, and what becomes of each kind of event.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use toml::{Value, de::DeTable};

use super::{
    ConfigError, PostgresUri,
    entries::{Entry, Mistake, entries},
    indexes::{self, IndexRule},
};
use crate::model::namespace::Namespace;

/// The keys of `[[route]]` and `[[table]]`, which may be shown with their values.
pub const KEYS: &[&str] = &[
    "event",
    "collection",
    "key",
    "op",
    "payload",
    "dates",
    "decimals",
    "indexes",
    "name",
    "columns",
];

#[derive(Clone, Debug, PartialEq)]
pub struct Outbox {
    pub uri: Option<PostgresUri>,
    pub uri_file: Option<PathBuf>,
    /// `outbox` or `schema.outbox`.
    pub table: String,
    pub columns: OutboxColumns,
    /// Most rows that are read at once.
    pub batch_size: usize,
    /// How often it is looked for new rows when there are none.
    pub poll: Duration,
    /// Whether the database is asked to tell of new rows.
    pub listen: bool,
    pub retention: Duration,
}

impl Default for Outbox {
    fn default() -> Self {
        Self {
            uri: None,
            uri_file: None,
            table: "outbox".to_owned(),
            columns: OutboxColumns::default(),
            batch_size: 5_000,
            poll: Duration::from_secs(2),
            listen: true,
            retention: Duration::from_secs(7 * 86_400),
        }
    }
}

/// What the columns of the table are called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutboxColumns(BTreeMap<&'static str, String>);

/// What a column is for, and what it is called unless something else is said. An empty name is that of a column that
/// need not be there.
const COLUMNS: &[(&str, &str)] = &[
    ("id", "id"),
    ("event_type", "event_type"),
    ("entity_type", ""),
    ("entity_id", "entity_id"),
    ("payload", "payload"),
    ("created_at", "created_at"),
    ("processed_at", "processed_at"),
    ("retry_count", "retry_count"),
    ("last_error", "last_error"),
    ("order", ""),
];

impl Default for OutboxColumns {
    fn default() -> Self {
        let named = COLUMNS.iter().map(|(role, name)| (*role, (*name).to_owned()));
        Self(named.filter(|(_, name)| !name.is_empty()).collect())
    }
}

impl OutboxColumns {
    /// The column that is there for this; `None` where none is.
    pub fn get(&self, role: &str) -> Option<&str> {
        self.0.get(role).map(String::as_str)
    }

    /// By what the rows are read in order: that of `order`, else the id.
    pub fn order(&self) -> &str {
        self.get("order").or_else(|| self.get("id")).unwrap_or("id")
    }

    pub(super) fn read(value: &Value) -> Result<Self, String> {
        let table = value.as_table().ok_or("no table of names")?;
        let mut columns = Self::default();
        for (role, name) in table {
            let Some((role, _)) = COLUMNS.iter().find(|(known, _)| known == role) else {
                let known: Vec<_> = COLUMNS.iter().map(|(known, _)| *known).collect();
                return Err(format!("`{role}` is none of {}", known.join(", ")));
            };
            match name.as_str() {
                Some("") if ["id", "event_type", "payload", "processed_at"].contains(role) => {
                    return Err(format!("`{role}` is needed, and cannot be left out"));
                }
                Some("") => drop(columns.0.remove(role)),
                Some(name) => drop(columns.0.insert(role, name.to_owned())),
                None => return Err(format!("`{role}` is no name of a column")),
            }
        }
        Ok(columns)
    }
}

/// What becomes of events of a type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteRule {
    /// A pattern over the type of the event, with `*` and `?`.
    pub event: String,
    pub collection: Namespace,
    pub key: KeyPlace,
    pub op: RouteOp,
    /// Where in the payload the document is, with dots; empty where it is the payload.
    pub payload: String,
    pub values: ValueRules,
    /// What the collection is to have in the target, whichever of its routes says so.
    pub indexes: Vec<IndexRule>,
}

/// Where the `_id` stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeyPlace {
    Column(String),
    /// In the payload, with dots.
    Payload(String),
}

/// What is done with the document.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RouteOp {
    Insert,
    Replace,
    Merge,
    Delete,
}

impl RouteOp {
    const ALL: [(&'static str, Self); 4] = [
        ("insert", Self::Insert),
        ("replace", Self::Replace),
        ("merge", Self::Merge),
        ("delete", Self::Delete),
    ];
}

/// Which values of a document are more than JSON can say: paths with dots, through lists as well.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ValueRules {
    pub dates: Vec<String>,
    pub decimals: Vec<String>,
}

/// A table whose rows are the documents of a collection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableRule {
    pub name: String,
    /// Its column of the `_id`.
    pub key: String,
    pub collection: Namespace,
    /// The columns that the documents have as fields; every one where none is named.
    pub columns: Vec<String>,
    pub values: ValueRules,
}

/// All that is declared of an outbox.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Routes {
    pub routes: Vec<RouteRule>,
    pub tables: Vec<TableRule>,
}

impl Routes {
    /// What is declared of a collection's indexes, each once.
    pub fn indexes<'a>(&'a self, ns: &'a Namespace) -> Vec<&'a IndexRule> {
        let mut all: Vec<&IndexRule> = Vec::new();
        let routes = self.routes.iter().filter(|route| route.collection == *ns);
        for rule in routes.flat_map(|route| &route.indexes) {
            if !all.contains(&rule) {
                all.push(rule);
            }
        }
        all
    }

    /// The collections that they lead to, each once.
    pub fn collections(&self) -> Vec<&Namespace> {
        let mut all: Vec<_> = self.routes.iter().map(|route| &route.collection).collect();
        all.extend(self.tables.iter().map(|table| &table.collection));
        all.sort();
        all.dedup();
        all
    }
}

/// Reads `[[route]]` and `[[table]]`.
pub(super) fn read(file: &DeTable<'_>, mistakes: &mut Vec<Mistake>) -> Routes {
    let mut routes = Routes::default();
    for entry in entries(file, "route", mistakes) {
        let Some(route) = route(&entry, mistakes) else { continue };
        if routes.routes.iter().any(|other| other.event == route.event) {
            let problem = format!("= \"{}\" has a route already", route.event);
            mistakes.push(entry.invalid("event", problem));
        }
        let there = routes.indexes(&route.collection);
        let clash = |rule| indexes::clash(rule, there.iter().copied());
        if let Some(problem) = route.indexes.iter().find_map(clash) {
            mistakes.push(entry.invalid("indexes", problem));
        }
        routes.routes.push(route);
    }
    for entry in entries(file, "table", mistakes) {
        let Some(table) = table(&entry, mistakes) else { continue };
        if routes.tables.iter().any(|other| other.collection == table.collection) {
            let problem = format!("= \"{}\" has a table already", table.collection);
            mistakes.push(entry.invalid("collection", problem));
        }
        routes.tables.push(table);
    }
    routes
}

fn route(entry: &Entry<'_, '_>, mistakes: &mut Vec<Mistake>) -> Option<RouteRule> {
    entry.check_keys(
        &["event", "collection", "key", "op", "payload", "dates", "decimals", "indexes"],
        mistakes,
    );
    let event = entry.text("event", mistakes);
    let collection = entry.collection(mistakes);
    let key = entry.text("key", mistakes).and_then(|key| {
        let place = match key.strip_prefix("payload.") {
            Some(path) if is_path(path) => Some(KeyPlace::Payload(path.to_owned())),
            None if !key.is_empty() => Some(KeyPlace::Column(key)),
            _ => None,
        };
        if place.is_none() {
            let problem = "is neither a column nor a path such as `payload.id`";
            mistakes.push(entry.invalid("key", problem.to_owned()));
        }
        place
    });
    let op = entry.text("op", mistakes).and_then(|op| {
        let known = RouteOp::ALL.iter().find(|(name, _)| *name == op).map(|(_, op)| *op);
        if known.is_none() {
            let problem = format!("= \"{op}\" is none of insert, replace, merge and delete");
            mistakes.push(entry.invalid("op", problem));
        }
        known
    });
    let payload = optional(entry, "payload", mistakes);
    if !payload.is_empty() && !is_path(&payload) {
        mistakes.push(entry.invalid("payload", "has an empty part".to_owned()));
    }
    Some(RouteRule {
        event: event?,
        collection: collection?,
        key: key?,
        op: op?,
        payload,
        values: values(entry, mistakes),
        indexes: indexes::read(entry, mistakes),
    })
}

fn table(entry: &Entry<'_, '_>, mistakes: &mut Vec<Mistake>) -> Option<TableRule> {
    entry.check_keys(&["name", "key", "collection", "columns", "dates", "decimals"], mistakes);
    let (name, key) = (entry.text("name", mistakes), entry.text("key", mistakes));
    let collection = entry.collection(mistakes);
    Some(TableRule {
        name: name?,
        key: key?,
        collection: collection?,
        columns: entry.texts("columns", mistakes),
        values: values(entry, mistakes),
    })
}

fn values(entry: &Entry<'_, '_>, mistakes: &mut Vec<Mistake>) -> ValueRules {
    let mut paths = |key: &'static str| {
        let paths = entry.texts(key, mistakes);
        if paths.iter().any(|path| !is_path(path)) {
            mistakes.push(entry.invalid(key, "has a path with an empty part".to_owned()));
        }
        paths
    };
    ValueRules { dates: paths("dates"), decimals: paths("decimals") }
}

fn optional(entry: &Entry<'_, '_>, key: &'static str, mistakes: &mut Vec<Mistake>) -> String {
    if entry.has(key) { entry.text(key, mistakes).unwrap_or_default() } else { String::new() }
}

fn is_path(path: &str) -> bool {
    path.split('.').all(|part| !part.is_empty())
}

/// What does not go together.
pub(super) fn check(config: &super::Config) -> Result<(), ConfigError> {
    use super::{SourceKind, TargetKind};
    let routes = &config.routes;
    match config.source.kind {
        SourceKind::Outbox if config.target.kind == TargetKind::Postgres => {
            Err(ConfigError::invalid(
                "source.kind",
                "is `outbox`, which goes into MongoDB alone: rows of PostgreSQL come into another PostgreSQL by its \
                 own replication, with nothing turned into documents and back"
                    .to_owned(),
            ))
        }
        SourceKind::Outbox if routes.routes.is_empty() => Err(ConfigError::invalid(
            "source.kind",
            "is `outbox`, and no `[[route]]` says what becomes of an event".to_owned(),
        )),
        SourceKind::Outbox if !config.namespaces.include.is_empty() => Err(ConfigError::invalid(
            "namespaces.include",
            "does not go with `source.kind = \"outbox\"`: the collections are those of `[[route]]`".to_owned(),
        )),
        SourceKind::Mongodb if !routes.routes.is_empty() || !routes.tables.is_empty() => {
            Err(ConfigError::invalid(
                "source.kind",
                "is `mongodb`, which has no `[[route]]` and no `[[table]]`: those are of `outbox`".to_owned(),
            ))
        }
        SourceKind::Outbox | SourceKind::Mongodb => Ok(()),
    }
}
