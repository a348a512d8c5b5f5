//! Reading the configuration, and saying exactly what is wrong with it.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use toml::{Table, Value, de::DeTable};

use super::{
    Config, ConfigError, HttpUrl, Origin, Uri,
    belongs::misplaced,
    entries::Mistake,
    error::FilePlace,
    ignored::is_ignored,
    keys::KEYS,
    outbox,
    postgres::{self, PostgresUri},
    secret::{self, ReadError},
};

/// The reference file: every key at its default, with its explanation. `outrigger init` writes it.
pub const REFERENCE: &str = include_str!("../../config.toml");

/// A value, and the file that holds it: two words for one thing, of which a configuration has one. What the environment
/// says of it wins over either.
const EITHER: [[&str; 2]; 5] = [
    ["local.uri", "local.uri_file"],
    ["atlas.uri", "atlas.uri_file"],
    ["postgres.uri", "postgres.uri_file"],
    ["outbox.uri", "outbox.uri_file"],
    ["alerts.webhook", "alerts.webhook_file"],
];

/// Whether what is secret is read as well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Secrets {
    Read,
    /// For what only asks the agent: whoever may do that need not be able to read them.
    Leave,
    /// Only where alerts go.
    Deliveries,
}

/// Defaults → `file`, if any → `env` → validation. `env` looks up an environment variable.
///
/// # Errors
/// Every problem found, named by place, key, value and accepted range. Secrets are never repeated.
pub fn load(
    file: Option<&Path>,
    env: impl Fn(&str) -> Option<String>,
) -> Result<Config, ConfigError> {
    load_with(file, env, Secrets::Read)
}

/// As [`load`], with or without what is secret.
///
/// # Errors
/// As [`load`].
pub fn load_with(
    file: Option<&Path>,
    env: impl Fn(&str) -> Option<String>,
    secrets: Secrets,
) -> Result<Config, ConfigError> {
    let (path, text) = match file {
        Some(path) => {
            let text = secret::read(path);
            (path, text.map_err(|error| ConfigError::of_file(path, None, error))?)
        }
        None => (Path::new(""), String::new()),
    };
    parse_with(&text, path, env, secrets)
}

/// As [`load`], of a text that was read from `path`.
///
/// # Errors
/// As [`load`].
pub fn parse(
    text: &str,
    path: &Path,
    env: impl Fn(&str) -> Option<String>,
) -> Result<Config, ConfigError> {
    parse_with(text, path, env, Secrets::Read)
}

fn parse_with(
    text: &str,
    path: &Path,
    env: impl Fn(&str) -> Option<String>,
    secrets: Secrets,
) -> Result<Config, ConfigError> {
    let mut config = Config::default();
    let (spans, errors) = DeTable::parse_recoverable(text);
    ConfigError::of_all(all_syntax(path, text, errors))?;
    let table: Table = text.parse().map_err(|error| syntax(path, text, &error))?;
    let mut mistakes = Vec::new();
    config.mapping = postgres::read(spans.get_ref(), &mut mistakes);
    config.routes = outbox::read(spans.get_ref(), &mut mistakes);
    let placed = |(span, error): Mistake| {
        let start = span.start;
        (start, error.at(FilePlace::of(path, text, span)))
    };
    let mut errors: Vec<_> = mistakes.into_iter().map(placed).collect();
    let flat = flatten(table);
    let kind = |key: &str, default| flat.get(key).and_then(Value::as_str).unwrap_or(default);
    let source = kind("source.kind", "mongodb").to_owned();
    let target = kind("target.kind", "atlas").to_owned();
    for [key, of_file] in
        EITHER.iter().filter(|pair| pair.iter().all(|key| flat.contains_key(*key)))
    {
        let problem = format!(
            "is set beside `{key}`, and only one of them can be meant: leave out the other"
        );
        let span = span_of(spans.get_ref(), of_file, false);
        let at = span.as_ref().map_or(usize::MAX, |span| span.start);
        let place = span.and_then(|span| FilePlace::of(path, text, span));
        errors.push((at, ConfigError::invalid(of_file, problem).at(place)));
    }
    for (key, value) in flat {
        let misplaced = misplaced(&key, &source, &target);
        if let Some((key, problem)) = misplaced.filter(|_| !is_default(&key, &value)) {
            let span = span_of(spans.get_ref(), key, false);
            let at = span.as_ref().map_or(usize::MAX, |span| span.start);
            let place = span.and_then(|span| FilePlace::of(path, text, span));
            errors.push((at, ConfigError::invalid(key, problem).at(place)));
        } else if let Err(error) = set(&mut config, &key, &value, None) {
            let is_value = matches!(error, ConfigError::Value { .. });
            let span = span_of(spans.get_ref(), &key, is_value);
            let at = span.as_ref().map_or(usize::MAX, |span| span.start);
            errors.push((at, error.at(span.and_then(|span| FilePlace::of(path, text, span)))));
        }
    }
    errors.sort_by_key(|(at, _)| *at);
    let mut errors: Vec<_> = errors.into_iter().map(|(_, error)| error).collect();
    read_environment(&mut config, &env, &mut errors);
    if secrets == Secrets::Deliveries {
        match webhook(&config, &env) {
            Ok(url) => config.alerts.webhook = url,
            Err(error) => errors.push(error),
        }
    }
    if secrets == Secrets::Read {
        read_secrets(&mut config, &env, &mut errors);
    }
    ConfigError::of_all(errors)?;
    config.validate()?;
    Ok(config)
}

/// In the order of the file, and of each line the first: those behind it mostly follow from it.
fn all_syntax(path: &Path, text: &str, mut errors: Vec<toml::de::Error>) -> Vec<ConfigError> {
    let start = |error: &toml::de::Error| error.span().map_or(usize::MAX, |span| span.start);
    let line = |error: &toml::de::Error| {
        text.get(..start(error)).map(|before| before.matches('\n').count())
    };
    errors.sort_by_key(start);
    errors.dedup_by_key(|error| line(error));
    errors.iter().map(|error| syntax(path, text, error)).collect()
}

fn syntax(path: &Path, text: &str, error: &toml::de::Error) -> ConfigError {
    // `message()` alone: the full form quotes the line, which may hold a secret.
    let message = match error.message() {
        "duplicate key" => "duplicate key: it is set above already",
        message => message,
    };
    ConfigError::Syntax { path: path.to_owned(), message: message.to_owned() }
        .at(error.span().and_then(|span| FilePlace::of(path, text, span)))
}

/// Where a key of [`flatten`] stands, or its value.
fn span_of(table: &DeTable<'_>, key: &str, is_value: bool) -> Option<std::ops::Range<usize>> {
    let find = |table: &DeTable<'_>, name: &str| {
        let (key, value) = table.iter().find(|(key, _)| key.get_ref() == name)?;
        Some(if is_value { value.span() } else { key.span() })
    };
    let inner = key
        .split_once('.')
        .and_then(|(section, name)| find(table.get(section)?.get_ref().as_table()?, name));
    inner.or_else(|| find(table, key))
}

fn flatten(table: Table) -> BTreeMap<String, Value> {
    let mut flat = BTreeMap::new();
    for (section, value) in table {
        match value {
            // Lists of tables, which are read by themselves.
            _ if ["column", "child", "route", "table"].contains(&&*section) => {}
            Value::Table(keys) => {
                flat.extend(
                    keys.into_iter().map(|(key, value)| (format!("{section}.{key}"), value)),
                );
            }
            other => {
                flat.insert(section, other);
            }
        }
    }
    flat
}

/// Whether the key says what would be so without it, as in the file that `outrigger init` writes.
fn is_default(key: &str, value: &Value) -> bool {
    let mut config = Config::default();
    set(&mut config, key, value, None).is_ok() && config == Config::default()
}

/// Sets a key; `shown_as` replaces its name in errors, for values that come from the environment.
fn set(
    config: &mut Config,
    name: &str,
    value: &Value,
    shown_as: Option<&str>,
) -> Result<(), ConfigError> {
    let Some(key) = KEYS.iter().find(|key| key.name == name) else {
        let nearest = KEYS
            .iter()
            .map(|key| (strsim::damerau_levenshtein(key.name, name), key.name))
            .min()
            .filter(|(distance, _)| *distance <= 4)
            .map(|(_, nearest)| nearest);
        return Err(ConfigError::UnknownKey { key: name.to_owned(), nearest });
    };
    let mut unheard = is_ignored(name).then(|| config.clone());
    (key.set)(unheard.as_mut().unwrap_or(config), value).map_err(|problem| ConfigError::Value {
        key: shown_as.unwrap_or(name).to_owned(),
        value: if name.contains("uri") || name.contains("url") || name.contains("webhook") {
            "<not shown>".to_owned()
        } else {
            value.to_string()
        },
        problem,
        accepts: key.accepts,
    })
}

/// A variable that says something.
fn said(env: &impl Fn(&str) -> Option<String>, name: &str) -> Option<String> {
    env(name).map(|value| value.trim().to_owned()).filter(|value| !value.is_empty())
}

fn read_environment(
    config: &mut Config,
    env: &impl Fn(&str) -> Option<String>,
    errors: &mut Vec<ConfigError>,
) {
    let env = |name: &str| said(env, name);
    for (variable, key) in [
        ("SYNC_ENABLED", "sync.enabled"),
        ("SYNC_QUEUE_MAX_SIZE", "queue.max_documents"),
        ("SYNC_MAX_RETRIES", "worker.max_retries"),
        ("SYNC_PERSIST_QUEUE", "queue.persist"),
        ("SYNC_BATCH_SIZE", "worker.batch_size"),
    ] {
        if let Some(text) = env(variable) {
            errors.extend(set(config, key, &Value::String(text), Some(variable)).err());
        }
    }
    if let Some(text) = env("SYNC_WORKER_INTERVAL") {
        const NAME: &str = "SYNC_WORKER_INTERVAL";
        // What is said of it is said of what was written, which is a number alone.
        let problem = |problem: String| ConfigError::Value {
            key: NAME.to_owned(),
            value: format!("{text:?}"),
            problem,
            accepts: "a number of milliseconds, 0 to 3600000",
        };
        let value = Value::String(format!("{text}ms"));
        match text.parse::<f64>() {
            Err(_) => errors.push(problem("not a number".to_owned())),
            Ok(_) => match set(config, "worker.interval", &value, Some(NAME)) {
                Err(ConfigError::Value { problem: why, .. }) => errors.push(problem(why)),
                other => errors.extend(other.err()),
            },
        }
    }
    if let Some(text) = env("SYNC_EXCLUDED_COLLECTIONS") {
        // A bare name means the collection of that name in every database.
        let listed = text
            .split(',')
            .map(str::trim)
            .filter(|name| !name.is_empty())
            .map(|name| if name.contains('.') { name.to_owned() } else { format!("*.{name}") })
            .filter(|_| !is_ignored("namespaces.exclude"));
        config.namespaces.exclude.extend(listed);
    }
}

/// A file with a secret. A service that systemd runs may not read it, and gets a copy of the same name instead
/// (`LoadCredential=`).
fn in_use(path: &Path, env: &impl Fn(&str) -> Option<String>) -> PathBuf {
    let copies = env("CREDENTIALS_DIRECTORY").filter(|folder| !folder.is_empty());
    let copy = copies.zip(path.file_name()).map(|(folder, name)| Path::new(&folder).join(name));
    copy.filter(|copy| copy.exists()).unwrap_or_else(|| path.to_owned())
}

fn read_secrets(
    config: &mut Config,
    env: &impl Fn(&str) -> Option<String>,
    errors: &mut Vec<ConfigError>,
) {
    let local = (&mut config.local.uri, &config.local.uri_file);
    let atlas = (&mut config.atlas.uri, &config.atlas.uri_file);
    // A variable stands for the key, and is ignored with it.
    let said = |variable, key| said(env, variable).filter(|_| !is_ignored(key));
    for ((uri, file), variable, key, of_file) in [
        (local, "MONGODB_LOCAL_URI", "local.uri", "local.uri_file"),
        (atlas, "MONGODB_ATLAS_URI", "atlas.uri", "atlas.uri_file"),
    ] {
        let read = if let Some(text) = said(variable, key) {
            secret_uri(variable, &text)
        } else if let (None, Some(path)) = (&uri, file) {
            let path = in_use(path, env);
            Uri::read(&path).map_err(|error| ConfigError::of_file(&path, Some(of_file), error))
        } else {
            continue;
        };
        match read {
            Ok(read) => *uri = Some(read),
            Err(error) => errors.push(error),
        }
    }
    let postgres = (&mut config.postgres.uri, &config.postgres.uri_file);
    let outbox = (&mut config.outbox.uri, &config.outbox.uri_file);
    for ((uri, file), variable, key, of_file) in [
        (postgres, "POSTGRES_URI", "postgres.uri", "postgres.uri_file"),
        (outbox, "OUTBOX_URI", "outbox.uri", "outbox.uri_file"),
    ] {
        let read = if let Some(text) = said(variable, key) {
            let read = PostgresUri::parse(&text).map(|uri| uri.from(Origin::Named(variable)));
            read.map_err(|problem| unfit_uri(variable, problem))
        } else if let (None, Some(path)) = (&uri, file) {
            let path = in_use(path, env);
            PostgresUri::read(&path)
                .map_err(|error| ConfigError::of_file(&path, Some(of_file), error))
        } else {
            continue;
        };
        match read {
            Ok(read) => *uri = Some(read),
            Err(error) => errors.push(error),
        }
    }
    match webhook(config, env) {
        Ok(url) => config.alerts.webhook = url,
        Err(error) => errors.push(error),
    }
}

/// As the configuration names it, or as the file holds it.
fn webhook(
    config: &Config,
    env: &impl Fn(&str) -> Option<String>,
) -> Result<Option<HttpUrl>, ConfigError> {
    let alerts = &config.alerts;
    let (None, Some(path)) = (&alerts.webhook, &alerts.webhook_file) else {
        return Ok(alerts.webhook.clone());
    };
    let path = in_use(path, env);
    let of_file = |error| ConfigError::of_file(&path, Some("alerts.webhook_file"), error);
    let text = secret::read(&path).map_err(of_file)?;
    HttpUrl::parse(&text).map(Some).map_err(|problem| of_file(ReadError::Malformed(problem)))
}

fn secret_uri(key: &'static str, text: &str) -> Result<Uri, ConfigError> {
    let uri = Uri::parse(text.trim_start_matches('\u{feff}'));
    uri.map(|uri| uri.from(Origin::Named(key))).map_err(|problem| unfit_uri(key, problem))
}

fn unfit_uri(key: &'static str, problem: String) -> ConfigError {
    ConfigError::Value {
        key: key.to_owned(),
        value: "<not shown>".to_owned(),
        problem,
        accepts: "a connection string",
    }
}

impl Config {
    /// What a single key cannot see: whether the values go together. For a configuration that was put together
    /// in code; [`load`] and [`parse`] have done it.
    ///
    /// # Errors
    /// [`ConfigError`], naming the key.
    pub fn validate(&self) -> Result<(), ConfigError> {
        self.filter()?;
        outbox::check(self)?;
        if self.breaker.open_for > self.breaker.open_for_max {
            return Err(ConfigError::invalid(
                "breaker.open_for",
                "is longer than `breaker.open_for_max`".to_owned(),
            ));
        }
        Ok(())
    }
}
