//! Telling others: alerts to a web hook, and a heartbeat to whoever waits for one.
//!
//! Both run beside replication and never hold it up: what the far end does not take waits in a bounded list,
//! is tried again for as long as the agent runs, and the oldest goes first when the list is full.

use std::{collections::VecDeque, io::ErrorKind, sync::Arc, time::Duration};

use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::Notify;
use ureq::tls::{Certificate, RootCerts, TlsConfig};

use super::{Handles, monitor::vitals};
use crate::{
    config::HttpUrl,
    observe::{
        alerts::{Alert, Notice},
        health::proves_life,
        status::Status,
    },
    policy::backoff::OutageWait,
    runtime::{
        clock::{now_ms, rfc3339},
        shutdown::blocking,
        trust::authorities,
    },
};

/// Longest wait for an answer of the far end.
const PATIENCE: Duration = Duration::from_secs(10);

/// How many redirects a heartbeat follows: it has no body that could be lost on the way.
const FOLLOWED: u32 = 5;

/// Most alerts that wait for a web hook that is away.
const WAITING_MAX: usize = 200;

/// Alerts that wait to be sent.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    waiting: Mutex<VecDeque<Value>>,
    filled: Notify,
}

impl Outbox {
    pub fn push(&self, letter: Value) {
        let mut waiting = self.waiting.lock();
        if waiting.len() == WAITING_MAX {
            waiting.pop_front();
        }
        waiting.push_back(letter);
        self.filled.notify_one();
    }

    fn first(&self) -> Option<Value> {
        self.waiting.lock().front().cloned()
    }

    /// Takes `letter` out, if it is still there: a full list may have dropped it meanwhile.
    fn remove(&self, letter: &Value) {
        let mut waiting = self.waiting.lock();
        if waiting.front() == Some(letter) {
            waiting.pop_front();
        }
    }

    /// Waits for `soon`, and then until nothing waits.
    pub async fn is_empty_after(&self, soon: Duration) {
        tokio::time::sleep(soon).await;
        while self.first().is_some() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Sends what there is to `url`, one after the other, for ever.
    pub async fn deliver(&self, url: &HttpUrl) {
        let mut wait = OutageWait::new(Duration::from_secs(1), Duration::from_secs(60));
        let mut has_failed = false;
        loop {
            let filled = self.filled.notified();
            let Some(letter) = self.first() else {
                filled.await;
                continue;
            };
            let (to, body) = (url.clone(), letter.clone());
            match blocking(move || post(&to, &body)).await {
                Ok(()) => {
                    self.remove(&letter);
                    wait.reset();
                    if std::mem::take(&mut has_failed) {
                        tracing::info!(%url, "the web hook takes alerts again");
                    }
                }
                // The far end refuses this very alert. Kept, it would hold up all those behind it for ever.
                Err(Refused { is_final: true, error }) => {
                    tracing::warn!(%url, error, "the web hook refuses an alert, which is dropped");
                    self.remove(&letter);
                }
                Err(Refused { error, .. }) => {
                    if !std::mem::replace(&mut has_failed, true) {
                        tracing::warn!(%url, error, "the web hook does not take alerts, trying on");
                    }
                    tokio::time::sleep(wait.next_wait()).await;
                }
            }
        }
    }
}

/// What the web hook gets. `text` is for receivers that show a line and know nothing of us.
pub(super) fn letter(notice: &Notice, status: &Status) -> Value {
    let (event, alert, cleared) = match notice {
        Notice::Raised(alert) => ("raised", alert, None),
        Notice::Cleared(alert, at) => ("cleared", alert, rfc3339(*at)),
    };
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let Alert { name, ns, severity, message, runbook, since_ms, .. } = alert;
    json!({
        "source": "outrigger",
        "version": env!("CARGO_PKG_VERSION"),
        "host": host,
        "event": event,
        "alert": {
            "name": name, "ns": ns, "severity": severity, "message": message, "runbook": runbook,
        },
        "since": rfc3339(*since_ms),
        "clearedAt": cleared,
        "phase": status.state().phase,
        "text": format!("outrigger on {host}: {event}: {message}"),
    })
}

/// Asks for `url` from time to time, for as long as replication proves that it lives.
pub(super) async fn heartbeat(handles: Handles, url: HttpUrl, every: Duration) {
    let mut before = 0;
    let mut has_failed = false;
    loop {
        tokio::time::sleep(every).await;
        let metrics = &handles.status.metrics;
        let compared = {
            let state = handles.status.state();
            state.sync.as_ref().map_or(0, |sync| sync.report(now_ms()).documents_done)
        };
        let now = metrics.writes_applied.get() + metrics.documents_copied.get() + compared;
        let figures = {
            let handles = handles.clone();
            blocking(move || vitals(&handles)).await
        };
        // `abs_diff`, since the part of a comparison falls back to 0 when another run begins.
        if !proves_life(now.abs_diff(before), &figures) {
            continue;
        }
        let to = url.clone();
        match blocking(move || get(&to)).await {
            Ok(()) => {
                // What was done before a heartbeat that failed still counts for the next.
                before = now;
                has_failed = false;
            }
            Err(Refused { error, .. }) => {
                if !std::mem::replace(&mut has_failed, true) {
                    tracing::warn!(%url, error, "the heartbeat does not get through");
                }
            }
        }
    }
}

/// `follow`: how many redirects are followed.
fn client(follow: u32) -> ureq::Agent {
    let authorities = authorities();
    let certificates = authorities.iter().map(|der| Certificate::from_der(der).to_owned());
    let roots = RootCerts::Specific(Arc::new(certificates.collect()));
    ureq::Agent::config_builder()
        .timeout_global(Some(PATIENCE))
        .max_redirects(follow)
        .tls_config(TlsConfig::builder().root_certs(roots).build())
        .build()
        .into()
}

/// Why the far end did not take something.
struct Refused {
    /// Trying again is of no use.
    is_final: bool,
    error: String,
}

impl From<ureq::Error> for Refused {
    fn from(error: ureq::Error) -> Self {
        // Too slow, too early, too many: these pass. So may a wrong address or token, which a person mends.
        let is_final =
            matches!(error, ureq::Error::StatusCode(400 | 405 | 406 | 411 | 413 | 414 | 415 | 422));
        Self { is_final, error: in_words(&error) }
    }
}

/// A redirect is not followed: it would have the alert arrive as a request without a body, and be counted as taken.
fn post(url: &HttpUrl, body: &Value) -> Result<(), Refused> {
    let answer = client(0).post(url.expose()).send_json(body)?;
    if !answer.status().is_redirection() {
        return Ok(());
    }
    // Scheme and host only, as everywhere: the rest may hold a token.
    let to = answer.headers().get("location").and_then(|to| HttpUrl::parse(to.to_str().ok()?).ok());
    let to = to.map_or_else(|| "another path".to_owned(), |to| to.to_string());
    let error = format!(
        "it answers {}, a redirect to {to}, and is not followed: name the new address",
        answer.status().as_u16()
    );
    Err(Refused { is_final: false, error })
}

fn get(url: &HttpUrl) -> Result<(), Refused> {
    Ok(client(FOLLOWED).get(url.expose()).call().map(drop)?)
}

/// Without the address, which may hold a token, and which some of the library's errors repeat.
fn in_words(error: &ureq::Error) -> String {
    match error {
        ureq::Error::StatusCode(code) => format!("it answers {code}"),
        ureq::Error::Timeout(_) => "no answer in time".to_owned(),
        ureq::Error::HostNotFound => "its host is not known".to_owned(),
        ureq::Error::ConnectionFailed => "no connection".to_owned(),
        // What TLS has against the far end comes as one of these, in words of its own.
        ureq::Error::Io(error) if error.kind() == ErrorKind::InvalidData => format!("TLS: {error}"),
        ureq::Error::Io(error) => error.kind().to_string(),
        ureq::Error::Tls(what) => format!("TLS: {what}"),
        ureq::Error::Rustls(error) => format!("TLS: {error}"),
        ureq::Error::BadUri(_) => "the address is no URL".to_owned(),
        ureq::Error::TooManyRedirects => "it redirects without end".to_owned(),
        _ => "the request failed".to_owned(),
    }
}
