//! What Outrigger is told: defaults → file → environment, then one check of everything. Of the flags only
//! `--log-format` stands for a key (`log.format`), and wins.
//!
//! Every key stands once, in `config/keys.rs`: its name, its accepted range, how it is read and how it is
//! shown. `config.toml` at the root of the repository is the reference and equals
//! [`Config::default`]; a test keeps it so.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use crate::model::namespace::NamespaceFilter;

mod belongs;
mod entries;
mod error;
mod ignored;
mod indexes;
mod keys;
mod load;
mod mapping;
mod outbox;
mod postgres;
pub mod secret;
pub mod units;
mod uri;
mod uri_options;

pub use error::{ConfigError, FilePlace};
pub use indexes::IndexRule;
pub use load::{REFERENCE, Secrets, load, load_with, parse};
pub use mapping::{ChildRule, ColumnRule, ColumnType, Mapping, NAME_BYTES_MAX, OWN_COLUMNS};
pub use outbox::{
    KeyPlace, Outbox, OutboxColumns, RouteOp, RouteRule, Routes, TableRule, ValueRules,
};
pub use postgres::PostgresUri;
pub use uri::{HttpUrl, Origin, Uri};
pub(crate) use uri::{decoded, encoded};

/// Everything that can be configured. Field names are the keys.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    pub source: Source,
    pub local: Local,
    pub outbox: Outbox,
    /// `[[route]]` and `[[table]]`.
    pub routes: Routes,
    pub target: Target,
    pub atlas: Atlas,
    pub postgres: Postgres,
    /// `[[column]]` and `[[child]]`.
    pub mapping: Mapping,
    pub namespaces: Namespaces,
    pub queue: Queue,
    pub worker: Worker,
    pub breaker: Breaker,
    pub sync: Sync,
    pub admin: Admin,
    pub alerts: Alerts,
    pub shutdown: Shutdown,
    pub log: Log,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Source {
    pub kind: SourceKind,
}

/// What is read from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SourceKind {
    Mongodb,
    Outbox,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Local {
    pub uri: Option<Uri>,
    pub uri_file: Option<PathBuf>,
    /// Longest wait for an answer.
    pub timeout: Duration,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Target {
    pub kind: TargetKind,
}

/// Where the copy is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TargetKind {
    Atlas,
    Postgres,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Postgres {
    pub uri: Option<PostgresUri>,
    pub uri_file: Option<PathBuf>,
    pub exact: Exact,
}

/// How much of a document PostgreSQL keeps beside its JSON.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Exact {
    /// The hash of its BSON, by which it is known to be the same; the BSON where the JSON does not say all.
    #[default]
    Hash,
    /// The BSON itself.
    Raw,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Atlas {
    pub uri: Option<Uri>,
    pub uri_file: Option<PathBuf>,
    pub allow_insecure: bool,
    pub compressors: Vec<String>,
    /// Longest wait for an answer.
    pub timeout: Duration,
    /// 0: no limit.
    pub max_ops_per_second: u64,
    /// 0: no limit.
    pub max_bytes_per_second: u64,
    /// Where the lease is kept in Atlas.
    pub state_database: String,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Namespaces {
    pub include: Vec<String>,
    pub exclude: Vec<String>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Queue {
    pub path: PathBuf,
    pub max_bytes: u64,
    pub max_documents: u64,
    pub min_free_disk: u64,
    pub persist: bool,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Worker {
    pub batch_size: usize,
    pub lanes: usize,
    pub interval: Duration,
    pub max_retries: u32,
    pub retry_delays: Vec<Duration>,
    pub update_mode: UpdateMode,
}

/// How an update gets to Atlas; see [`worker`](crate::worker).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UpdateMode {
    /// Read the local document, replace the one in Atlas. Always exact.
    Document,
    /// Send the change itself where `$set`/`$unset` say it exactly, else as `document`.
    Delta,
    /// A delta where the document is large and the delta small, else as `document`.
    Auto,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Breaker {
    pub failure_threshold: u32,
    pub open_for: Duration,
    pub open_for_max: Duration,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Sync {
    pub enabled: bool,
    pub parallel: usize,
    /// Zero: never.
    pub verify_every: Duration,
    /// Zero: never.
    pub count_check_every: Duration,
    pub max_delete_ratio: f64,
    /// 0: no limit.
    pub max_docs_per_second: u64,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Admin {
    pub listen: SocketAddr,
    pub token_file: PathBuf,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Alerts {
    pub lag: Duration,
    pub queue_size: u64,
    pub error_rate: f64,
    pub oplog_window: Duration,
    /// Holds `{alert}`.
    pub runbook: Option<String>,
    pub webhook: Option<HttpUrl>,
    pub webhook_file: Option<PathBuf>,
    pub heartbeat_url: Option<HttpUrl>,
    pub heartbeat_every: Duration,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Shutdown {
    pub drain_for: Duration,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Log {
    pub level: String,
    pub format: LogFormat,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    Text,
    Json,
}

impl Default for Config {
    fn default() -> Self {
        let seconds = Duration::from_secs;
        Self {
            source: Source { kind: SourceKind::Mongodb },
            outbox: Outbox::default(),
            routes: Routes::default(),
            local: Local { uri: None, uri_file: None, timeout: seconds(30) },
            target: Target { kind: TargetKind::Atlas },
            postgres: Postgres::default(),
            mapping: Mapping::default(),
            atlas: Atlas {
                uri: None,
                uri_file: None,
                allow_insecure: false,
                compressors: ["zstd", "zlib", "snappy"].map(String::from).into(),
                timeout: seconds(30),
                max_ops_per_second: 0,
                max_bytes_per_second: 0,
                state_database: crate::model::namespace::STATE_DATABASE.to_owned(),
            },
            namespaces: Namespaces { include: vec![], exclude: vec![] },
            queue: Queue {
                path: "queue".into(),
                max_bytes: 10 << 30,
                max_documents: 10_000_000,
                min_free_disk: 1 << 30,
                persist: true,
            },
            worker: Worker {
                batch_size: 1000,
                lanes: 4,
                interval: Duration::ZERO,
                max_retries: 5,
                retry_delays: [1, 5, 15, 30, 60].map(seconds).into(),
                update_mode: UpdateMode::Document,
            },
            breaker: Breaker {
                failure_threshold: 3,
                open_for: seconds(1),
                open_for_max: seconds(60),
            },
            sync: Sync {
                enabled: true,
                parallel: 4,
                verify_every: Duration::ZERO,
                count_check_every: seconds(300),
                max_delete_ratio: 0.2,
                max_docs_per_second: 50_000,
            },
            admin: Admin {
                listen: SocketAddr::from(([127, 0, 0, 1], 8686)),
                token_file: "outrigger.token".into(),
            },
            alerts: Alerts {
                lag: seconds(30),
                queue_size: 10_000,
                error_rate: 0.05,
                oplog_window: seconds(6 * 3600),
                runbook: None,
                webhook: None,
                webhook_file: None,
                heartbeat_url: None,
                heartbeat_every: seconds(60),
            },
            shutdown: Shutdown { drain_for: seconds(30) },
            log: Log { level: "info".to_owned(), format: LogFormat::Text },
        }
    }
}

impl Config {
    /// The namespaces that are replicated: those of `namespaces`, and without an `include`, those of
    /// the database that `local.uri` names, else all.
    ///
    /// # Errors
    /// [`ConfigError`] for a pattern that is none.
    pub fn filter(&self) -> Result<NamespaceFilter, ConfigError> {
        if self.source.kind == SourceKind::Outbox {
            let led_to = self.routes.collections().into_iter().map(ToString::to_string);
            return NamespaceFilter::new(&led_to.collect::<Vec<_>>(), &self.namespaces.exclude)
                .map(|filter| filter.with_state_database(&self.atlas.state_database))
                .map_err(|error| ConfigError::invalid("source.kind", error.to_string()));
        }
        let named = self.local.uri.as_ref().and_then(Uri::database);
        let include = match (self.namespaces.include.is_empty(), named) {
            (true, Some(db)) if !crate::model::namespace::is_internal_db(db) => {
                vec![format!("{db}.*")]
            }
            (true | false, _) => self.namespaces.include.clone(),
        };
        NamespaceFilter::new(&include, &self.namespaces.exclude)
            .map(|filter| filter.with_state_database(&self.atlas.state_database))
            .map_err(|error| ConfigError::invalid("namespaces.include", error.to_string()))
    }

    /// What is copied and compared: all that is replicated; of an outbox the collections of `[[table]]`.
    ///
    /// # Errors
    /// As of [`filter`](Self::filter).
    pub fn compared(&self) -> Result<NamespaceFilter, ConfigError> {
        if self.source.kind == SourceKind::Mongodb {
            return self.filter();
        }
        let mut tables: Vec<_> =
            self.routes.tables.iter().map(|table| table.collection.to_string()).collect();
        // Without any name all would be meant.
        if tables.is_empty() {
            tables.push(format!("outbox.{}", self.outbox.table));
        }
        NamespaceFilter::new(&tables, &self.namespaces.exclude)
            .map(|filter| filter.with_state_database(&self.atlas.state_database))
            .map_err(|error| ConfigError::invalid("source.kind", error.to_string()))
    }

    /// As [`compared`](Self::compared), for who asks for a comparison.
    ///
    /// # Errors
    /// Where there is nothing to compare with.
    pub fn comparable(&self) -> Result<NamespaceFilter, ConfigError> {
        if self.source.kind == SourceKind::Outbox && self.routes.tables.is_empty() {
            return Err(ConfigError::invalid(
                "source.kind",
                "is `outbox`, whose rows are no documents: a `[[table]]` with `name`, `key` and `collection` says \
                 which table a collection is compared with"
                    .to_owned(),
            ));
        }
        self.compared()
    }

    /// The connection string of the local database.
    ///
    /// # Errors
    /// [`ConfigError::Missing`] when there is none; [`ConfigError::MissingBoth`] when neither end is named.
    pub fn local_uri(&self) -> Result<&Uri, ConfigError> {
        if self.source.kind == SourceKind::Outbox {
            return Err(ConfigError::invalid(
                "source.kind",
                "is `outbox`; this is for a MongoDB that is read from, which has oplog, users and collections of its own"
                    .to_owned(),
            ));
        }
        self.local.uri.as_ref().ok_or(if self.atlas.uri.is_none() {
            ConfigError::MissingBoth
        } else {
            ConfigError::Missing {
                what: "the local database",
                key: "local.uri_file",
                variable: "MONGODB_LOCAL_URI",
            }
        })
    }

    /// The connection string of PostgreSQL.
    ///
    /// # Errors
    /// [`ConfigError::Missing`] when there is none, and an invalid one where the target is another.
    pub fn postgres_uri(&self) -> Result<&PostgresUri, ConfigError> {
        self.check_is_postgres()?;
        self.postgres.uri.as_ref().ok_or(ConfigError::Missing {
            what: "PostgreSQL",
            key: "postgres.uri_file",
            variable: "POSTGRES_URI",
        })
    }

    /// The connection string of the outbox's database.
    ///
    /// # Errors
    /// [`ConfigError::Missing`] when there is none, and an invalid one where the source is another.
    pub fn outbox_uri(&self) -> Result<&PostgresUri, ConfigError> {
        if self.source.kind != SourceKind::Outbox {
            return Err(ConfigError::invalid(
                "source.kind",
                "is `mongodb`, which has no outbox".to_owned(),
            ));
        }
        self.outbox.uri.as_ref().ok_or(ConfigError::Missing {
            what: "the outbox",
            key: "outbox.uri_file",
            variable: "OUTBOX_URI",
        })
    }

    /// # Errors
    /// Where the target is another.
    pub fn check_is_postgres(&self) -> Result<(), ConfigError> {
        match self.target.kind {
            TargetKind::Postgres => Ok(()),
            TargetKind::Atlas => Err(ConfigError::invalid(
                "target.kind",
                "is `atlas`, where collections are made as they are in MongoDB; tables are what `postgres` has"
                    .to_owned(),
            )),
        }
    }

    /// The connection string of Atlas.
    ///
    /// # Errors
    /// [`ConfigError::Missing`] when there is none, and an invalid one when it would go without TLS
    /// although `atlas.allow_insecure` is off.
    pub fn atlas_uri(&self) -> Result<&Uri, ConfigError> {
        if self.target.kind == TargetKind::Postgres {
            return Err(ConfigError::invalid(
                "target.kind",
                "is `postgres`: there is no Atlas to be asked".to_owned(),
            ));
        }
        let uri = self.atlas.uri.as_ref().ok_or(ConfigError::Missing {
            what: "Atlas",
            key: "atlas.uri_file",
            variable: "MONGODB_ATLAS_URI",
        })?;
        if !self.atlas.allow_insecure && !uri.uses_tls() {
            return Err(ConfigError::invalid(
                "atlas.uri",
                format!(
                    "`{uri}` goes without TLS; use `mongodb+srv://` or add `tls=true`, or, for a test, \
                     set `atlas.allow_insecure = true`"
                ),
            ));
        }
        Ok(uri)
    }
}
