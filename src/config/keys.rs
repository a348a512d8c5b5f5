//! Every configuration key, once.

use std::{path::PathBuf, time::Duration};

use toml::Value;

use super::{
    Config, Exact, HttpUrl, LogFormat, Origin, OutboxColumns, PostgresUri, SourceKind, TargetKind,
    UpdateMode, Uri, units,
};

/// One key: how it is read from a TOML value, and what is accepted.
pub struct Key {
    pub name: &'static str,
    /// The accepted range, as an error names it.
    pub accepts: &'static str,
    /// Sets the key, or says what is wrong with the value.
    pub set: fn(&mut Config, &Value) -> Result<(), String>,
}

/// Declares a key: name, accepted range, place, and a function from a TOML value.
macro_rules! key {
    ($name:literal, $accepts:literal, $($place:ident).+ = $read:expr) => {
        Key {
            name: $name,
            accepts: $accepts,
            set: |config, value| {
                config.$($place).+ = ($read)(value)?;
                Ok(())
            },
        }
    };
}

/// All keys, in the order of the reference file.
pub const KEYS: &[Key] = &[
    key!("source.kind", "mongodb or outbox", source.kind = source_kind),
    key!(
        "local.uri",
        "a connection string without a password",
        local.uri = |v| public_uri(v, "`local.uri`").map(Some)
    ),
    key!("local.uri_file", "a file name", local.uri_file = |v| path(v).map(Some)),
    key!("local.timeout", "1s to 10m", local.timeout = |v| duration(v, 1, 600)),
    key!(
        "outbox.uri",
        "a connection string without a password",
        outbox.uri = |v| public_postgres_uri(v, "`outbox.uri`").map(Some)
    ),
    key!("outbox.uri_file", "a file name", outbox.uri_file = |v| path(v).map(Some)),
    key!("outbox.table", "a table, or `schema.table`", outbox.table = table),
    key!(
        "outbox.columns",
        "names of columns, such as { event_type = \"type\" }",
        outbox.columns = OutboxColumns::read
    ),
    key!(
        "outbox.batch_size",
        "100 to 5000",
        outbox.batch_size = |v| integer(v, 100, 5_000).map(|n| n as usize)
    ),
    key!("outbox.poll", "100ms to 1m", outbox.poll = |v| duration_ms(v, 100, 60_000)),
    key!("outbox.listen", "true or false", outbox.listen = boolean),
    key!("outbox.retention", "1h or more", outbox.retention = |v| duration(v, 3_600, u64::MAX)),
    key!("target.kind", "atlas or postgres", target.kind = target_kind),
    key!(
        "atlas.uri",
        "a connection string without a password",
        atlas.uri = |v| public_uri(v, "`atlas.uri`").map(Some)
    ),
    key!("atlas.uri_file", "a file name", atlas.uri_file = |v| path(v).map(Some)),
    key!("atlas.allow_insecure", "true or false", atlas.allow_insecure = boolean),
    key!("atlas.compressors", "a list of zstd, zlib and snappy", atlas.compressors = compressors),
    key!("atlas.timeout", "1s to 10m", atlas.timeout = |v| duration(v, 1, 600)),
    key!(
        "atlas.max_ops_per_second",
        "0 (no limit) or more",
        atlas.max_ops_per_second = |v| integer(v, 0, u64::MAX)
    ),
    key!(
        "atlas.max_bytes_per_second",
        "0 (no limit) or a size",
        atlas.max_bytes_per_second = |v| bytes(v, 0)
    ),
    key!(
        "atlas.state_database",
        "the name of a database, without `/\\. \"$*<>:|?`, of at most 63 bytes, and not the server's own",
        atlas.state_database = database
    ),
    key!(
        "postgres.uri",
        "a connection string without a password",
        postgres.uri = |v| public_postgres_uri(v, "`postgres.uri`").map(Some)
    ),
    key!("postgres.uri_file", "a file name", postgres.uri_file = |v| path(v).map(Some)),
    key!("postgres.exact", "hash or raw", postgres.exact = exact),
    key!(
        "namespaces.include",
        "a list of patterns such as `shop.*`",
        namespaces.include = patterns
    ),
    key!(
        "namespaces.exclude",
        "a list of patterns such as `*.sessions`",
        namespaces.exclude = patterns
    ),
    key!("queue.path", "a directory name", queue.path = path),
    key!("queue.max_bytes", "1MiB or more", queue.max_bytes = |v| bytes(v, 1 << 20)),
    key!("queue.max_documents", "1 or more", queue.max_documents = |v| integer(v, 1, u64::MAX)),
    key!("queue.min_free_disk", "a size", queue.min_free_disk = |v| bytes(v, 0)),
    key!("queue.persist", "true or false", queue.persist = boolean),
    key!(
        "worker.batch_size",
        "1 to 100000",
        worker.batch_size = |v| integer(v, 1, 100_000).map(|n| n as usize)
    ),
    key!("worker.lanes", "1 to 64", worker.lanes = |v| integer(v, 1, 64).map(|n| n as usize)),
    key!("worker.interval", "0s to 1h", worker.interval = |v| duration(v, 0, 3600)),
    key!(
        "worker.max_retries",
        "0 to 1000",
        worker.max_retries = |v| integer(v, 0, 1000).map(|n| n as u32)
    ),
    key!(
        "worker.retry_delays",
        "a list of at least one duration, each up to 1h",
        worker.retry_delays = durations
    ),
    key!("worker.update_mode", "document, delta or auto", worker.update_mode = update_mode),
    key!(
        "breaker.failure_threshold",
        "1 to 1000",
        breaker.failure_threshold = |v| integer(v, 1, 1000).map(|n| n as u32)
    ),
    key!("breaker.open_for", "100ms to 1h", breaker.open_for = |v| duration_ms(v, 100, 3_600_000)),
    key!(
        "breaker.open_for_max",
        "100ms to 1h",
        breaker.open_for_max = |v| duration_ms(v, 100, 3_600_000)
    ),
    key!("sync.enabled", "true or false", sync.enabled = boolean),
    key!("sync.parallel", "1 to 64", sync.parallel = |v| integer(v, 1, 64).map(|n| n as usize)),
    key!(
        "sync.verify_every",
        "0s (never) or a duration",
        sync.verify_every = |v| duration(v, 0, u64::MAX)
    ),
    key!(
        "sync.count_check_every",
        "0s (never), or 1s to 24h",
        sync.count_check_every = |v| duration(v, 0, 86_400)
    ),
    key!("sync.max_delete_ratio", "0.0 to 1.0", sync.max_delete_ratio = ratio),
    key!(
        "sync.max_docs_per_second",
        "0 (no limit) or more",
        sync.max_docs_per_second = |v| integer(v, 0, u64::MAX)
    ),
    key!(
        "admin.listen",
        "an address and a port",
        admin.listen = |v| text(v)?
            .parse()
            .map_err(|_| "no address and port, such as 127.0.0.1:8686".to_owned())
    ),
    key!("admin.token_file", "a file name", admin.token_file = path),
    key!("alerts.lag", "1s or more", alerts.lag = |v| duration(v, 1, u64::MAX)),
    key!("alerts.queue_size", "1 or more", alerts.queue_size = |v| integer(v, 1, u64::MAX)),
    key!("alerts.error_rate", "0.0 to 1.0", alerts.error_rate = ratio),
    key!("alerts.oplog_window", "a duration", alerts.oplog_window = |v| duration(v, 0, u64::MAX)),
    key!("alerts.runbook", "a URL with `{alert}` in it", alerts.runbook = |v| runbook(v).map(Some)),
    key!("alerts.webhook", "a URL", alerts.webhook = |v| url(v).map(Some)),
    key!("alerts.webhook_file", "a file name", alerts.webhook_file = |v| path(v).map(Some)),
    key!("alerts.heartbeat_url", "a URL", alerts.heartbeat_url = |v| url(v).map(Some)),
    key!(
        "alerts.heartbeat_every",
        "1s to 24h",
        alerts.heartbeat_every = |v| duration(v, 1, 86_400)
    ),
    key!("shutdown.drain_for", "0s to 1h", shutdown.drain_for = |v| duration(v, 0, 3600)),
    key!(
        "log.level",
        "error, warn, info, debug, trace, or a filter such as info,outrigger::worker=debug",
        log.level = level
    ),
    key!("log.format", "text or json", log.format = log_format),
];

fn text(value: &Value) -> Result<&str, String> {
    value.as_str().ok_or_else(|| {
        let found = value.type_str();
        let article = if found.starts_with(['a', 'i']) { "an" } else { "a" };
        format!("{article} {found} where a text is expected")
    })
}

fn boolean(value: &Value) -> Result<bool, String> {
    match value {
        Value::Boolean(v) => Ok(*v),
        Value::String(v) if v.eq_ignore_ascii_case("true") || v == "1" => Ok(true),
        Value::String(v) if v.eq_ignore_ascii_case("false") || v == "0" => Ok(false),
        _ => Err("neither true nor false".to_owned()),
    }
}

fn integer(value: &Value, min: u64, max: u64) -> Result<u64, String> {
    let number = match value {
        Value::Integer(v) => u64::try_from(*v).map_err(|_| "must not be negative".to_owned())?,
        Value::String(v) => v.trim().parse().map_err(|_| "not a whole number".to_owned())?,
        _ => return Err("not a whole number".to_owned()),
    };
    if (min..=max).contains(&number) { Ok(number) } else { Err("out of range".to_owned()) }
}

fn ratio(value: &Value) -> Result<f64, String> {
    let number = match value {
        Value::Float(v) => *v,
        Value::Integer(v) => *v as f64,
        Value::String(v) => fast_float::parse(v.trim()).map_err(|_| "not a number".to_owned())?,
        _ => return Err("not a number".to_owned()),
    };
    if (0.0..=1.0).contains(&number) { Ok(number) } else { Err("out of range".to_owned()) }
}

fn bytes(value: &Value, min: u64) -> Result<u64, String> {
    let size = match value {
        Value::Integer(v) => u64::try_from(*v).map_err(|_| "must not be negative".to_owned())?,
        other => units::parse_bytes(text(other)?)?,
    };
    if size >= min { Ok(size) } else { Err("out of range".to_owned()) }
}

fn duration(value: &Value, min_s: u64, max_s: u64) -> Result<Duration, String> {
    duration_ms(value, min_s.saturating_mul(1000), max_s.saturating_mul(1000))
}

fn duration_ms(value: &Value, min_ms: u64, max_ms: u64) -> Result<Duration, String> {
    let duration = units::parse_duration(text(value)?)?;
    let ms = duration.as_millis();
    if (u128::from(min_ms)..=u128::from(max_ms)).contains(&ms) {
        Ok(duration)
    } else {
        Err("out of range".to_owned())
    }
}

fn durations(value: &Value) -> Result<Vec<Duration>, String> {
    let list = value.as_array().ok_or("not a list")?;
    if list.is_empty() {
        return Err("the list is empty".to_owned());
    }
    list.iter().map(|value| duration(value, 0, 3_600)).collect()
}

fn path(value: &Value) -> Result<PathBuf, String> {
    let path = text(value)?;
    if path.is_empty() { Err("empty".to_owned()) } else { Ok(path.into()) }
}

fn database(value: &Value) -> Result<String, String> {
    let name = text(value)?;
    if name.is_empty() || name.len() > 63 {
        return Err("empty, or too long".to_owned());
    }
    if name.contains(['/', '\\', '.', ' ', '"', '$', '*', '<', '>', ':', '|', '?', '\0']) {
        return Err("it has a sign that no database's name may have".to_owned());
    }
    if crate::model::namespace::is_internal_db(&name.to_lowercase()) {
        return Err("that database belongs to the server".to_owned());
    }
    Ok(name.to_owned())
}

fn texts(value: &Value) -> Result<Vec<String>, String> {
    let list = value.as_array().ok_or("not a list")?;
    list.iter().map(|value| text(value).map(str::to_owned)).collect()
}

fn patterns(value: &Value) -> Result<Vec<String>, String> {
    let patterns = texts(value)?;
    crate::model::namespace::NamespaceFilter::new(&patterns, &[])
        .map_err(|error| error.to_string())?;
    Ok(patterns)
}

fn compressors(value: &Value) -> Result<Vec<String>, String> {
    let names = texts(value)?;
    match names.iter().find(|name| !matches!(name.as_str(), "zstd" | "zlib" | "snappy")) {
        Some(unknown) => Err(format!("`{unknown}` is no compressor")),
        None => Ok(names),
    }
}

fn url(value: &Value) -> Result<HttpUrl, String> {
    HttpUrl::parse(text(value)?)
}

fn runbook(value: &Value) -> Result<String, String> {
    let address = text(value)?;
    HttpUrl::parse(address)?;
    if !address.contains("{alert}") {
        return Err("the name of the alert has no place in it".to_owned());
    }
    Ok(address.to_owned())
}

fn update_mode(value: &Value) -> Result<UpdateMode, String> {
    match text(value)? {
        "document" => Ok(UpdateMode::Document),
        "delta" => Ok(UpdateMode::Delta),
        "auto" => Ok(UpdateMode::Auto),
        _ => Err("no such mode".to_owned()),
    }
}

fn log_format(value: &Value) -> Result<LogFormat, String> {
    match text(value)? {
        "text" => Ok(LogFormat::Text),
        "json" => Ok(LogFormat::Json),
        _ => Err("no such format".to_owned()),
    }
}

fn level(value: &Value) -> Result<String, String> {
    const LEVELS: [&str; 6] = ["error", "warn", "info", "debug", "trace", "off"];
    let level = text(value)?;
    // To the filter any word alone is the name of a target, of which everything is shown: so is a level with a slip of
    // the finger in it, and then nothing changes.
    let is_target = |word: &str| word.contains("::") || word == env!("CARGO_PKG_NAME");
    let wrong = level.split(',').map(str::trim).find(|part| {
        let is_level = LEVELS.iter().any(|known| known.eq_ignore_ascii_case(part));
        !part.is_empty() && !part.contains('=') && !is_level && !is_target(part)
    });
    if let Some(wrong) = wrong {
        let nearest = LEVELS.map(|known| (strsim::damerau_levenshtein(known, wrong), known));
        let nearest = nearest.into_iter().min().filter(|(distance, _)| *distance <= 2);
        let advice =
            nearest.map_or(String::new(), |(_, known)| format!("; did you mean `{known}`?"));
        return Err(format!("`{wrong}` is no level{advice}"));
    }
    level
        .parse::<tracing_subscriber::filter::Targets>()
        .map_err(|_| "no such level".to_owned())
        .map(|_| level.to_owned())
}

fn source_kind(value: &Value) -> Result<SourceKind, String> {
    match text(value)? {
        "mongodb" => Ok(SourceKind::Mongodb),
        "outbox" => Ok(SourceKind::Outbox),
        _ => Err("no such source".to_owned()),
    }
}

fn table(value: &Value) -> Result<String, String> {
    let name = text(value)?;
    if name.split('.').count() > 2 || name.split('.').any(str::is_empty) {
        return Err("neither a name nor two".to_owned());
    }
    Ok(name.to_owned())
}

fn target_kind(value: &Value) -> Result<TargetKind, String> {
    match text(value)? {
        "atlas" => Ok(TargetKind::Atlas),
        "postgres" => Ok(TargetKind::Postgres),
        _ => Err("no such target".to_owned()),
    }
}

fn exact(value: &Value) -> Result<Exact, String> {
    match text(value)? {
        "hash" => Ok(Exact::Hash),
        "raw" => Ok(Exact::Raw),
        _ => Err("no such form".to_owned()),
    }
}

fn public_postgres_uri(value: &Value, key: &'static str) -> Result<PostgresUri, String> {
    let uri = PostgresUri::parse(text(value)?)?;
    if uri.has_credentials() {
        return Err(WITH_CREDENTIALS.to_owned());
    }
    Ok(uri.from(Origin::Named(key)))
}

const WITH_CREDENTIALS: &str =
    "holds credentials; secrets come from the environment or from a `*_file`";

/// A URI in the file: without a password, since files are copied, shared and committed.
fn public_uri(value: &Value, key: &'static str) -> Result<Uri, String> {
    let uri = Uri::parse(text(value)?)?;
    if uri.has_credentials() {
        return Err(WITH_CREDENTIALS.to_owned());
    }
    Ok(uri.from(Origin::Named(key)))
}
