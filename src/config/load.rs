//! Reading the configuration, and saying exactly what is wrong with it.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use toml::{Table, Value};

use super::{
    Config, HttpUrl, Origin, Uri,
    keys::KEYS,
    secret::{self, ReadError},
};

/// The reference file: every key at its default, with its explanation. `outrigger init` writes it.
pub const REFERENCE: &str = include_str!("../../config.toml");

/// What is wrong with the configuration.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file named by `--config` or a `*_file` key is not there or not readable.
    #[error("cannot read `{path}`")]
    Unreadable { path: PathBuf, source: std::io::Error },
    /// The file is no TOML.
    #[error("`{path}` is not valid TOML: {message}")]
    Syntax { path: PathBuf, message: String },
    /// A file that is there and holds no text, or a secret of the wrong form.
    #[error("`{path}` cannot be used: {problem}")]
    NoText { path: PathBuf, problem: String },
    /// A key that does not exist, in practice a typing mistake.
    #[error("unknown key `{key}`{}", did_you_mean(*.nearest))]
    UnknownKey { key: String, nearest: Option<&'static str> },
    /// A value that a key does not accept.
    #[error("`{key}` = {value}: {problem}; accepted: {accepts}")]
    Value { key: String, value: String, problem: String, accepts: &'static str },
    /// Values that do not go together.
    #[error("`{key}`: {problem}")]
    Invalid { key: &'static str, problem: String },
    /// A connection string that is needed and not there.
    #[error(
        "no connection string for {what}: `{key}` is not set and the environment variable {variable} is empty"
    )]
    Missing { what: &'static str, key: &'static str, variable: &'static str },
}

fn did_you_mean(nearest: Option<&'static str>) -> String {
    nearest.map_or_else(String::new, |key| format!("; did you mean `{key}`?"))
}

impl ConfigError {
    fn of_file(path: &Path, error: ReadError) -> Self {
        let path = path.to_owned();
        match error {
            ReadError::Unreadable(source) => ConfigError::Unreadable { path, source },
            ReadError::Malformed(problem) => ConfigError::NoText { path, problem },
        }
    }

    /// A value that a key cannot have, as was found out later.
    pub fn invalid(key: &'static str, problem: String) -> Self {
        ConfigError::Invalid { key, problem }
    }
}

/// Defaults → `file`, if any → `env` → validation. `env` looks up an environment variable.
///
/// # Errors
/// The first problem found, named by key, value and accepted range. Secrets are never repeated.
pub fn load(
    file: Option<&Path>,
    env: impl Fn(&str) -> Option<String>,
) -> Result<Config, ConfigError> {
    let (path, text) = match file {
        Some(path) => {
            let text = secret::read(path).map_err(|error| ConfigError::of_file(path, error))?;
            (path, text)
        }
        None => (Path::new(""), String::new()),
    };
    parse(&text, path, env)
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
    let mut config = Config::default();
    let table: Table = text.parse().map_err(|error: toml::de::Error| ConfigError::Syntax {
        path: path.to_owned(),
        // `message()` alone: the full form quotes the line, which may hold a secret.
        message: error.message().to_owned(),
    })?;
    for (key, value) in flatten(table) {
        set(&mut config, &key, &value, None)?;
    }
    read_environment(&mut config, &env)?;
    read_uri_files(&mut config, &env)?;
    read_webhook_file(&mut config, &env)?;
    config.validate()?;
    Ok(config)
}

fn flatten(table: Table) -> BTreeMap<String, Value> {
    let mut flat = BTreeMap::new();
    for (section, value) in table {
        match value {
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
    (key.set)(config, value).map_err(|problem| ConfigError::Value {
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

fn read_environment(
    config: &mut Config,
    env: &impl Fn(&str) -> Option<String>,
) -> Result<(), ConfigError> {
    let env = |name: &str| env(name).map(|value| value.trim().to_owned()).filter(|v| !v.is_empty());
    if let Some(text) = env("MONGODB_LOCAL_URI") {
        config.local.uri = Some(secret_uri("MONGODB_LOCAL_URI", &text)?);
    }
    if let Some(text) = env("MONGODB_ATLAS_URI") {
        config.atlas.uri = Some(secret_uri("MONGODB_ATLAS_URI", &text)?);
    }
    for (variable, key) in [
        ("SYNC_ENABLED", "sync.enabled"),
        ("SYNC_QUEUE_MAX_SIZE", "queue.max_documents"),
        ("SYNC_MAX_RETRIES", "worker.max_retries"),
        ("SYNC_PERSIST_QUEUE", "queue.persist"),
        ("SYNC_BATCH_SIZE", "worker.batch_size"),
    ] {
        if let Some(text) = env(variable) {
            set(config, key, &Value::String(text), Some(variable))?;
        }
    }
    if let Some(text) = env("SYNC_WORKER_INTERVAL") {
        let value = Value::String(format!("{text}ms"));
        set(config, "worker.interval", &value, Some("SYNC_WORKER_INTERVAL"))?;
    }
    if let Some(text) = env("SYNC_EXCLUDED_COLLECTIONS") {
        // A bare name means the collection of that name in every database.
        let listed = text
            .split(',')
            .map(str::trim)
            .filter(|name| !name.is_empty())
            .map(|name| if name.contains('.') { name.to_owned() } else { format!("*.{name}") });
        config.namespaces.exclude.extend(listed);
    }
    Ok(())
}

/// A file with a secret. A service that systemd runs may not read it, and gets a copy of the same name instead
/// (`LoadCredential=`).
fn in_use(path: &Path, env: &impl Fn(&str) -> Option<String>) -> PathBuf {
    let copies = env("CREDENTIALS_DIRECTORY").filter(|folder| !folder.is_empty());
    let copy = copies.zip(path.file_name()).map(|(folder, name)| Path::new(&folder).join(name));
    copy.filter(|copy| copy.exists()).unwrap_or_else(|| path.to_owned())
}

fn read_uri_files(
    config: &mut Config,
    env: &impl Fn(&str) -> Option<String>,
) -> Result<(), ConfigError> {
    let local = (&mut config.local.uri, &config.local.uri_file);
    let atlas = (&mut config.atlas.uri, &config.atlas.uri_file);
    for (uri, file) in [local, atlas] {
        let (None, Some(path)) = (&uri, file) else {
            continue;
        };
        let path = in_use(path, env);
        *uri = Some(Uri::read(&path).map_err(|error| ConfigError::of_file(&path, error))?);
    }
    Ok(())
}

fn read_webhook_file(
    config: &mut Config,
    env: &impl Fn(&str) -> Option<String>,
) -> Result<(), ConfigError> {
    let alerts = &mut config.alerts;
    let (None, Some(path)) = (&alerts.webhook, &alerts.webhook_file) else {
        return Ok(());
    };
    let path = in_use(path, env);
    let text = secret::read(&path).map_err(|error| ConfigError::of_file(&path, error))?;
    let url = HttpUrl::parse(&text).map_err(|problem| ConfigError::Value {
        key: "alerts.webhook_file".to_owned(),
        value: "<not shown>".to_owned(),
        problem,
        accepts: "a URL",
    })?;
    alerts.webhook = Some(url);
    Ok(())
}

fn secret_uri(key: &'static str, text: &str) -> Result<Uri, ConfigError> {
    let uri = Uri::parse(text.trim_start_matches('\u{feff}'));
    uri.map(|uri| uri.from(Origin::Named(key))).map_err(|problem| ConfigError::Value {
        key: key.to_owned(),
        value: "<not shown>".to_owned(),
        problem,
        accepts: "a connection string",
    })
}

impl Config {
    /// What a single key cannot see: whether the values go together. For a configuration that was put together
    /// in code; [`load`] and [`parse`] have done it.
    ///
    /// # Errors
    /// [`ConfigError`], naming the key.
    pub fn validate(&self) -> Result<(), ConfigError> {
        self.filter()?;
        if self.breaker.open_for > self.breaker.open_for_max {
            return Err(ConfigError::invalid(
                "breaker.open_for",
                "is longer than `breaker.open_for_max`".to_owned(),
            ));
        }
        Ok(())
    }
}
