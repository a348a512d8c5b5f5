//! How the CLI gets at the queue: over a running agent's admin API, or, when none runs, directly.

use std::{
    io::{ErrorKind, Read},
    net::TcpStream,
    time::Duration,
};

use serde_json::Value;

use crate::{
    admin::{askers, read_token},
    agent::queue_options,
    cli::args::Why,
    config::{Config, encoded},
    observe::report::{ExitCode, Failure},
    queue::{Queue, QueueError},
};

/// Longest answer of an agent.
const ANSWER_MAX: u64 = 256 << 20;

/// Longest wait for an agent on this machine.
const PATIENCE: Duration = Duration::from_secs(10);

pub enum Access {
    Agent(Client),
    Queue(Box<Queue>),
}

impl Access {
    /// Asks `admin.listen` first; opens the queue when nobody answers there.
    pub fn open(config: &Config) -> Result<Self, Failure> {
        if let Some(client) = Client::connect(config)? {
            return Ok(Access::Agent(client));
        }
        if !config.queue.path.exists() {
            let error = anyhow::anyhow!(
                "no agent runs on {} and there is no queue in `{}`",
                config.admin.listen,
                config.queue.path.display()
            );
            return Err(Failure::new(ExitCode::Problem, error)
                .hint("start one with `outrigger run`, or name its configuration with --config"));
        }
        Ok(Access::Queue(Box::new(Queue::open(&queue_options(config))?)))
    }
}

/// A client of the admin API.
pub struct Client {
    base: String,
    http: ureq::Agent,
    token: Option<String>,
    /// Why something is asked for.
    reason: Option<String>,
}

impl Client {
    /// `None` when nobody listens.
    pub fn connect(config: &Config) -> Result<Option<Self>, Failure> {
        let mut listen = config.admin.listen;
        if listen.ip().is_unspecified() {
            listen.set_ip([127, 0, 0, 1].into());
        }
        match TcpStream::connect_timeout(&listen, Duration::from_secs(2)) {
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => return Ok(None),
            Err(error) => {
                let error = anyhow::Error::new(error).context(format!("cannot reach {listen}"));
                return Err(Failure::new(ExitCode::Problem, error).hint("check `admin.listen`"));
            }
        }
        let http = http(PATIENCE);
        let token = read_token(&config.admin.token_file).ok();
        Ok(Some(Self { base: format!("http://{listen}"), http, token, reason: None }))
    }

    /// The same with more time for an answer.
    pub fn patient(self, patience: Duration) -> Self {
        Self { http: http(patience), ..self }
    }

    /// The same, which says why it asks.
    pub fn because(self, why: &Why) -> Self {
        Self { reason: why.reason.clone(), ..self }
    }

    /// A request with the token, and with who asks, and why.
    fn signed<T>(&self, request: ureq::RequestBuilder<T>) -> ureq::RequestBuilder<T> {
        let request =
            request.header("Authorization", self.bearer()).header(askers::USER, encoded(&user()));
        match &self.reason {
            Some(reason) => request.header(askers::REASON, encoded(reason)),
            None => request,
        }
    }

    /// Scheme, address and port.
    pub fn base(&self) -> &str {
        &self.base
    }

    /// Copies an answer as it comes.
    pub fn copy(&self, path: &str, out: &mut impl std::io::Write) -> Result<(), Failure> {
        let request = self.http.get(format!("{}{path}", self.base));
        let mut response = request.header("Authorization", self.bearer()).call().map_err(odd)?;
        if !response.status().is_success() {
            return read(Ok(response)).map(drop);
        }
        let mut body = response.body_mut().as_reader();
        let mut piece = vec![0; 64 << 10];
        loop {
            let n = body.read(&mut piece).map_err(|error| {
                let error =
                    anyhow::Error::new(error).context("the answer was not received in full");
                Failure::new(ExitCode::Problem, error).hint("try again")
            })?;
            // What cannot be written is no fault of the agent's.
            out.write_all(&piece[..n]).map_err(QueueError::NotExported)?;
            if n == 0 {
                return Ok(out.flush().map_err(QueueError::NotExported)?);
            }
        }
    }

    /// Whether the process answers at all.
    pub fn lives(&self) -> Result<bool, Failure> {
        let answer = self.http.get(format!("{}/healthz", self.base)).call().map_err(odd)?;
        Ok(answer.status().is_success())
    }

    pub fn get(&self, path: &str) -> Result<Value, Failure> {
        let mut request = self.http.get(format!("{}{path}", self.base));
        if let Some(token) = &self.token {
            request = request.header("Authorization", format!("Bearer {token}"));
        }
        read(request.call())
    }

    pub fn delete(&self, path: &str) -> Result<(), Failure> {
        let request = self.http.delete(format!("{}{path}", self.base));
        read(self.signed(request).call()).map(drop)
    }

    /// Sends a JSON body; null for none.
    pub fn post(&self, path: &str, body: &Value) -> Result<Value, Failure> {
        let request = self.http.post(format!("{}{path}", self.base));
        let request = self.signed(request);
        read(if body.is_null() { request.send_empty() } else { request.send_json(body) })
    }

    /// The same, where a 404 means that what was typed does not exist: wrong usage, and no failure of the agent.
    pub fn post_what_exists(&self, path: &str, body: &Value) -> Result<Value, Failure> {
        let request = self.http.post(format!("{}{path}", self.base));
        let answer = self.signed(request).send_json(body);
        let is_typo = answer.as_ref().is_ok_and(|answer| answer.status() == 404);
        read(answer).map_err(|failure| {
            if is_typo { Failure { exit: ExitCode::Usage, ..failure } } else { failure }
        })
    }

    fn bearer(&self) -> String {
        format!("Bearer {}", self.token.as_deref().unwrap_or_default())
    }
}

/// Who types, as this machine knows them: `ann@desk`, also behind `sudo`.
pub fn user() -> String {
    let named = |name: &str| std::env::var(name).ok().filter(|user| !user.is_empty());
    let user = named("SUDO_USER").or_else(|| named("USER"));
    let user = user.unwrap_or_else(|| format!("uid {}", rustix::process::getuid().as_raw()));
    format!("{user}@{}", rustix::system::uname().nodename().to_string_lossy())
}

fn http(patience: Duration) -> ureq::Agent {
    let config = ureq::Agent::config_builder().http_status_as_error(false);
    config.timeout_global(Some(patience)).build().into()
}

/// Something listens, and is no agent.
fn not_an_agent(what: impl Into<anyhow::Error>) -> Failure {
    let error =
        what.into().context("what listens on `admin.listen` does not answer as an agent does");
    Failure::new(ExitCode::Problem, error).hint(
        "`ss -ltnp` names the program on each port; name a free one in `admin.listen`, or the one that the agent has",
    )
}

fn odd(error: ureq::Error) -> Failure {
    not_an_agent(error)
}

fn read(response: Result<ureq::http::Response<ureq::Body>, ureq::Error>) -> Result<Value, Failure> {
    let mut response = response.map_err(odd)?;
    let status = response.status();
    // A document of 16 MB is longer as JSON.
    let text = response.body_mut().with_config().limit(ANSWER_MAX).read_to_string().map_err(odd)?;
    let no_agent = || {
        // What it says is not repeated: it may be a page of anybody's.
        not_an_agent(anyhow::anyhow!("it answers {} and no JSON of ours", status.as_u16()))
    };
    if status.is_success() && text.is_empty() {
        return Ok(Value::Null);
    }
    let body: Value = serde_json::from_str(&text).map_err(|_| no_agent())?;
    if status.is_success() {
        return Ok(body);
    }
    let message = body["error"].as_str().ok_or_else(no_agent)?.to_owned();
    let error = match body["cause"].as_str() {
        Some(cause) => anyhow::anyhow!(cause.to_owned()).context(message),
        None => anyhow::anyhow!(message),
    };
    let mut failure = Failure::new(ExitCode::Problem, error);
    failure.hint = match (status.as_u16(), body["hint"].as_str()) {
        (401, _) => Some("run this as the user who may read `admin.token_file`".to_owned()),
        (_, hint) => hint.map(str::to_owned),
    };
    Err(failure)
}
