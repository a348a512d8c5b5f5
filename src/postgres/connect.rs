//! Connections to PostgreSQL: a few that are kept, each used for one transaction at a time.
//!
//! A pooler in transaction mode gives every transaction another server. So nothing is left in a session: no `SET` that
//! outlives its transaction, no prepared statement that is used again, no lock that a session holds. Statements are
//! sent whole with the types of their parameters, as the unnamed one.

use std::{
    net::IpAddr,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use deadpool_postgres::{
    Manager, ManagerConfig, Object, Pool, PoolError, RecyclingMethod, Runtime, Timeouts,
};
use tokio_postgres::{
    Client, Config, Connection, Socket,
    config::{Host, SslMode},
    types::ToSql,
};
/// What an answer is made of, and a parameter, for those that do not know the driver.
pub use tokio_postgres::{Row, types::Type};

use super::{
    class::{self, Class},
    tls::Tls,
};
use crate::runtime::clock::now_ms;
/// Waits for what should take moments: a connection that is made, or is given back.
const CONNECT: Duration = Duration::from_secs(10);

/// Those of a connection string that the driver knows, but for TLS.
const OPTIONS: &[&str] = &[
    "application_name",
    "channel_binding",
    "connect_timeout",
    "dbname",
    "host",
    "hostaddr",
    "keepalives",
    "keepalives_idle",
    "keepalives_interval",
    "keepalives_retries",
    "load_balance_hosts",
    "options",
    "password",
    "port",
    "target_session_attrs",
    "tcp_user_timeout",
    "user",
];

/// A connection string that cannot be used, and why. Never the string itself.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct BadUri(String);

/// A PostgreSQL server, or a pooler in front of it.
#[derive(Clone)]
pub struct Postgres {
    pool: Pool,
    config: Config,
    tls: Tls,
    /// For an answer.
    timeout: Duration,
    /// When it answered last, in milliseconds since 1970.
    heard: Arc<AtomicU64>,
}

impl Postgres {
    /// Names that the server's `pg_stat_activity` has for the agent's connections.
    pub const APPLICATION: &str = "outrigger";

    /// Makes the pool; connects nowhere yet.
    ///
    /// # Errors
    /// [`BadUri`].
    pub fn new(uri: &str, connections: usize, timeout: Duration) -> Result<Self, BadUri> {
        let (mut config, ca_file) = parse(uri)?;
        config.application_name(Self::APPLICATION).connect_timeout(CONNECT);
        let pem = match &ca_file {
            Some(path) => Some(std::fs::read(path).map_err(|error| {
                BadUri(format!(
                    "`sslrootcert` names {}, which cannot be read: {error}",
                    path.display()
                ))
            })?),
            None => None,
        };
        let tls = Tls::new(pem.as_deref())
            .map_err(|problem| BadUri(format!("`sslrootcert`: {problem}")))?;
        let recycling_method = RecyclingMethod::Fast;
        let manager =
            Manager::from_config(config.clone(), tls.clone(), ManagerConfig { recycling_method });
        let pool = Pool::builder(manager)
            .max_size(connections)
            .runtime(Runtime::Tokio1)
            .timeouts(Timeouts {
                wait: Some(timeout),
                create: Some(CONNECT),
                recycle: Some(CONNECT),
            })
            .build()
            .map_err(|error| BadUri(error.to_string()))?;
        Ok(Self { pool, config, tls, timeout, heard: Arc::default() })
    }

    /// A connection beside those that are kept, which whoever asks drives.
    ///
    /// # Errors
    /// [`Failed`].
    pub(super) async fn alone(
        &self,
    ) -> Result<(Client, Connection<Socket, super::tls::Stream<Socket>>), Failed> {
        Ok(self.config.connect(self.tls.clone()).await?)
    }

    /// A connection that nobody else uses meanwhile.
    ///
    /// # Errors
    /// [`Failed`].
    pub async fn session(&self) -> Result<Session, Failed> {
        let client = self.pool.get().await.map_err(Failed::of_pool)?;
        let (timeout, heard, tls) = (self.timeout, self.heard.clone(), self.tls.clone());
        Ok(Session { client: Some(client), timeout, heard, tls, is_clean: true, is_asking: false })
    }

    /// False where the address says so, and by a socket of this machine.
    pub fn is_encrypted(&self) -> bool {
        self.config.get_ssl_mode() != SslMode::Disable
    }

    /// Whether every host of the address is this machine.
    pub fn is_of_this_machine(&self) -> bool {
        self.config.get_hosts().iter().all(|host| match host {
            Host::Unix(_) => true,
            Host::Tcp(name) => {
                name == "localhost" || name.parse::<IpAddr>().is_ok_and(|of| of.is_loopback())
            }
        })
    }

    /// Those that the address names.
    pub fn ports(&self) -> impl Iterator<Item = u16> {
        let named = self.config.get_ports().iter().copied();
        let usual = self.config.get_ports().is_empty().then_some(5432);
        named.chain(usual)
    }

    /// When it answered last, in milliseconds since 1970; 0: never.
    pub fn heard_ms(&self) -> u64 {
        self.heard.load(Relaxed)
    }

    /// Silence counts from now on, not from the last answer.
    pub fn silent_from_now(&self) {
        self.heard.store(now_ms(), Relaxed);
    }

    /// Its version, such as `15.8`.
    ///
    /// # Errors
    /// [`Failed`].
    pub async fn version(&self) -> Result<String, Failed> {
        let rows = self.session().await?.query("SHOW server_version", &[]).await?;
        let version: Option<String> = rows.first().and_then(|row| row.try_get(0).ok());
        // Distributions put a name behind it.
        Ok(version.and_then(|of| of.split(' ').next().map(str::to_owned)).unwrap_or_default())
    }

    /// Closes the connections that are not in use, and makes no other.
    pub fn close(&self) {
        self.pool.close();
    }
}

/// Why a statement was not done.
#[derive(Clone, Debug)]
pub struct Failed {
    pub class: Class,
    /// True when it may have been done: it was sent, and what came of it is not known.
    pub may_be_done: bool,
    /// There was no answer in time.
    is_late: bool,
    pub problem: String,
    /// The SQLSTATE, where the server had one.
    pub state: Option<String>,
}

impl Failed {
    fn of_pool(error: PoolError) -> Self {
        match error {
            PoolError::Backend(error) => Self { may_be_done: false, ..Self::from(&error) },
            error => Self {
                class: Class::Unavailable,
                may_be_done: false,
                is_late: false,
                problem: error.to_string(),
                state: None,
            },
        }
    }

    /// What was not asked at all.
    pub fn unasked(problem: String) -> Self {
        Self { class: Class::Unavailable, may_be_done: false, is_late: false, problem, state: None }
    }

    /// Of a statement that takes longer than an answer is waited for.
    pub fn is_late(&self) -> bool {
        // query_canceled, by a limit of the server's.
        self.is_late || self.is(&["57014"])
    }

    pub(super) fn late(after: Duration) -> Self {
        Self {
            class: Class::Unavailable,
            may_be_done: true,
            is_late: true,
            problem: format!("no answer within {after:?}"),
            state: None,
        }
    }

    /// Of what comes in the place of something that `may_be_done`.
    #[must_use]
    pub fn behind(self, may_be_done: bool) -> Self {
        Self { may_be_done: self.may_be_done || may_be_done, ..self }
    }

    pub fn is(&self, states: &[&str]) -> bool {
        self.state.as_deref().is_some_and(|state| states.contains(&state))
    }
}

impl From<&tokio_postgres::Error> for Failed {
    fn from(error: &tokio_postgres::Error) -> Self {
        Self {
            class: class::class_of(error),
            may_be_done: error.code().is_none_or(|state| is_of_the_line(state.code())),
            is_late: false,
            problem: class::told(error),
            state: error.code().map(|state| state.code().to_owned()),
        }
    }
}

/// What is said of a connection, by a pooler in the server's place or by a server that ends it, and not of the statement:
/// a COMMIT that was under way may still be made.
fn is_of_the_line(state: &str) -> bool {
    state.starts_with("08") || matches!(state, "57P01" | "57P02" | "57P05")
}

impl From<tokio_postgres::Error> for Failed {
    fn from(error: tokio_postgres::Error) -> Self {
        Self::from(&error)
    }
}

/// A parameter and its type.
pub type Param<'a> = (&'a (dyn ToSql + Sync), Type);

/// A connection in use. One that is left in the middle of something is closed, since nobody knows what it would say
/// next.
pub struct Session {
    client: Option<Object>,
    timeout: Duration,
    heard: Arc<AtomicU64>,
    tls: Tls,
    is_clean: bool,
    /// Something was sent, and nobody waits for its answer any more, or has it.
    is_asking: bool,
}

impl Session {
    /// Is not used again by anybody.
    pub fn abandon(&mut self) {
        self.is_clean = false;
    }

    /// Whether the server has answered all that it was asked.
    pub fn is_clean(&self) -> bool {
        self.is_clean
    }

    /// How long an answer is waited for.
    pub fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Runs what speaks to the server, within the time for an answer.
    ///
    /// # Errors
    /// [`Failed`], and the connection is not used again where it did not answer.
    pub async fn within<T>(
        &mut self,
        exchange: impl AsyncFnOnce(&tokio_postgres::Client) -> Result<T, tokio_postgres::Error>,
    ) -> Result<T, Failed> {
        let timeout = self.timeout;
        self.is_clean = false;
        // Behind what was given up nothing is asked: it would wait for that as well.
        let client = self.client.as_ref().filter(|_| !self.is_asking).ok_or_else(closed)?;
        self.is_asking = true;
        match tokio::time::timeout(timeout, exchange(client)).await {
            Ok(result) => {
                (self.is_clean, self.is_asking) = (true, false);
                // A refusal is an answer, too; without a SQLSTATE it is of the connection.
                if result.as_ref().err().is_none_or(|error| error.code().is_some()) {
                    self.heard.store(now_ms(), Relaxed);
                }
                result.map_err(Failed::from)
            }
            Err(_) => Err(Failed::late(timeout)),
        }
    }

    /// Statements without parameters, of which none returns anything.
    ///
    /// # Errors
    /// As [`within`](Self::within).
    pub async fn batch(&mut self, sql: &str) -> Result<(), Failed> {
        self.within(async |client| client.batch_execute(sql).await).await
    }

    /// One statement, and its rows.
    ///
    /// # Errors
    /// As [`within`](Self::within).
    pub async fn query(&mut self, sql: &str, params: &[Param<'_>]) -> Result<Vec<Row>, Failed> {
        self.within(async |client| client.query_typed(sql, params).await).await
    }

    /// Takes another connection in the place of this one.
    ///
    /// # Errors
    /// [`Failed`], and there is none then.
    pub async fn renew(&mut self, pg: &Postgres) -> Result<(), Failed> {
        // First, since there may be no more than are in use.
        self.let_go();
        *self = pg.session().await?;
        Ok(())
    }

    /// What nobody waits for any more is cancelled: a server that works does not look whether the connection was closed,
    /// and would go on to the end. The connection is kept until it was told, so that the word is about nobody else.
    fn let_go(&mut self) {
        let Some(client) = self.client.take().filter(|_| !self.is_clean).map(Object::take) else {
            return;
        };
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        if !self.is_asking {
            return;
        }
        let (token, tls) = (client.cancel_token(), self.tls.clone());
        runtime.spawn(async move {
            if let Ok(Err(error)) = tokio::time::timeout(CONNECT, token.cancel_query(tls)).await {
                tracing::debug!(%error, "what was given up could not be cancelled");
            }
            drop(client);
        });
    }

    /// Ends a transaction that failed. Where that fails as well the connection is closed, which ends it, too.
    pub async fn roll_back(&mut self) {
        if self.batch("ROLLBACK").await.is_err() {
            self.is_clean = false;
        }
    }
}

fn closed() -> Failed {
    Failed::unasked("the connection was closed".to_owned())
}

impl Drop for Session {
    fn drop(&mut self) {
        self.let_go();
    }
}

/// What the driver makes of a connection string, and the file of authorities that it names. `sslmode` is `verify-full`
/// unless it says `disable`: the driver knows neither that word nor the file, and takes `prefer` for granted, with which
/// whoever sits in between decides.
fn parse(uri: &str) -> Result<(Config, Option<PathBuf>), BadUri> {
    let (base, options) = uri.split_once('?').unwrap_or((uri, ""));
    let mut kept = Vec::new();
    let (mut ca_file, mut goes_plain) = (None, false);
    for option in options.split('&').filter(|option| !option.is_empty()) {
        match option.split_once('=').unwrap_or((option, "")) {
            ("sslmode", "disable") => goes_plain = true,
            ("sslmode", "prefer" | "allow" | "require" | "verify-ca" | "verify-full") => {}
            ("sslmode", _) => {
                return Err(BadUri("`sslmode` is neither `verify-full` nor `disable`".to_owned()));
            }
            ("sslrootcert", "system") => {}
            ("sslrootcert", path) => ca_file = Some(PathBuf::from(path.replace("%2F", "/"))),
            (name, _) if OPTIONS.contains(&name) => kept.push(option),
            // Not repeated: behind a `?` that stands in a password it is half of that.
            _ => {
                let known = OPTIONS.join(", ");
                return Err(BadUri(format!(
                    "it has an option that is none; there are `sslmode`, `sslrootcert`, {known}"
                )));
            }
        }
    }
    let mut config: Config = format!("{base}?{}", kept.join("&"))
        .parse()
        // Its message names the option at most.
        .map_err(|error: tokio_postgres::Error| BadUri(class::told(&error)))?;
    let is_local = config.get_hosts().iter().all(|host| matches!(host, Host::Unix(_)));
    config.ssl_mode(if goes_plain || is_local { SslMode::Disable } else { SslMode::Require });
    if config.get_hosts().is_empty() {
        return Err(BadUri("it names no host".to_owned()));
    }
    Ok((config, ca_file))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tls_is_there_unless_it_was_switched_off_by_name() {
        for (uri, mode) in [
            ("postgres://u:p@h/db", SslMode::Require),
            ("postgres://u:p@h/db?sslmode=prefer", SslMode::Require),
            (
                "postgres://u:p@h/db?sslmode=verify-full&target_session_attrs=read-write",
                SslMode::Require,
            ),
            ("postgres://u:p@h/db?sslmode=disable", SslMode::Disable),
            ("postgres:///db?host=/run/postgresql", SslMode::Disable),
        ] {
            assert_eq!(parse(uri).unwrap().0.get_ssl_mode(), mode, "{uri}");
        }
        let error = parse("postgres://u:secret@h/db?sslmode=maybe").unwrap_err().to_string();
        assert!(error.contains("sslmode") && !error.contains("secret"), "{error}");
        let error = parse("postgres://u:pa?secret%40h/db").unwrap_err().to_string();
        assert!(error.contains("option") && !error.contains("secret"), "{error}");
        let (_, file) = parse("postgres://h/db?sslrootcert=/etc/ca.pem").unwrap();
        assert_eq!(file, Some("/etc/ca.pem".into()));
    }
}
