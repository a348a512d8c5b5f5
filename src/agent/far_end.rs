//! Requests to far ends that are neither of the two: the web hook, and whoever waits for a heartbeat.
//!
//! Their addresses hold tokens, so no error repeats one.

use std::{io::ErrorKind, sync::Arc, time::Duration};

use serde_json::Value;
use ureq::tls::{Certificate, RootCerts, TlsConfig};

use crate::{config::HttpUrl, runtime::trust::authorities};

/// Longest wait for an answer of the far end.
const PATIENCE: Duration = Duration::from_secs(10);

/// How many redirects a heartbeat follows: it has no body that could be lost on the way.
const FOLLOWED: u32 = 5;

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
pub(super) struct NotTaken {
    /// Trying again is of no use.
    pub is_final: bool,
    pub error: String,
}

impl From<ureq::Error> for NotTaken {
    fn from(error: ureq::Error) -> Self {
        // Too slow, too early, too many: these pass. So may a wrong address or token, which a person mends.
        let is_final =
            matches!(error, ureq::Error::StatusCode(400 | 405 | 406 | 411 | 413 | 414 | 415 | 422));
        Self { is_final, error: in_words(&error) }
    }
}

/// A redirect is not followed: it would have the alert arrive as a request without a body, and be counted as taken.
/// Returns the status of the answer.
pub(super) fn post(url: &HttpUrl, body: &Value) -> Result<u16, NotTaken> {
    let answer = client(0).post(url.expose()).send_json(body)?;
    if !answer.status().is_redirection() {
        return Ok(answer.status().as_u16());
    }
    // Scheme and host only, as everywhere: the rest may hold a token.
    let to = answer.headers().get("location").and_then(|to| HttpUrl::parse(to.to_str().ok()?).ok());
    let to = to.map_or_else(|| "another path".to_owned(), |to| to.to_string());
    let error = format!(
        "it answers {}, a redirect to {to}, and is not followed: name the new address",
        answer.status().as_u16()
    );
    Err(NotTaken { is_final: false, error })
}

/// Returns the status of the answer.
pub(super) fn get(url: &HttpUrl) -> Result<u16, NotTaken> {
    Ok(client(FOLLOWED).get(url.expose()).call()?.status().as_u16())
}

/// Whether somebody answers at this address, found out without its path: nothing is sent that would count as an alert
/// or as a heartbeat.
///
/// # Errors
/// Why nobody does.
pub fn reach(url: &HttpUrl) -> Result<(), String> {
    match client(0).head(url.to_string()).call() {
        Ok(_) | Err(ureq::Error::StatusCode(_)) => Ok(()),
        Err(error) => Err(in_words(&error)),
    }
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
