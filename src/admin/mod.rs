//! The admin API: what the CLI and scripts ask a running agent.
//!
//! Anything that changes state, and anything that shows a document or an `_id`, needs the token of
//! `admin.token_file`; on an address other than loopback, everything but
//! `/healthz` and the runbook does. A browser
//! is kept out by name: a foreign `Host` (DNS rebinding) or `Origin` (another site's script) is
//! refused, and so is a request that names more than one host. Errors are JSON with `error`, `cause` and `hint`.

use std::{borrow::Cow, net::SocketAddr, sync::Arc, time::Duration};

use axum::{
    Json, Router,
    body::{Body, Bytes, to_bytes},
    extract::{DefaultBodyLimit, Request, State, rejection::BytesRejection},
    http::{HeaderMap, Method, StatusCode, header},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{delete, get, post},
};
use serde::Serialize;
use subtle::ConstantTimeEq;
use tokio::net::TcpListener;

use crate::{
    agent::{AgentError, Handles, Serving},
    model::hint::Hint,
    observe::report::one_line,
};

mod about;
pub mod askers;
mod assets;
mod collections;
mod dead_letters;
mod difference;
mod documents;
mod events;
mod flush;
mod full;
pub mod health;
mod named;
mod prometheus;
mod queue;
mod server;
mod token;
mod transfer;

use askers::Asker;
use named::named;
pub use queue::LIST_MAX;
pub use token::{TokenError, read_or_make, read_token};

/// What a route works with.
#[derive(Clone)]
pub(crate) struct Api {
    handles: Handles,
    token: Arc<str>,
    listen: SocketAddr,
}

/// Where it stands what there is.
const SEE: &str = "`GET /openapi.json` describes what is understood";

/// Most bytes of a request's body; the answer beyond is 413.
const BODY_MAX: usize = 16 << 20;

/// Longest wait for the whole of a body.
const BODY_WITHIN: Duration = Duration::from_secs(30);

/// Longest time for an answer to begin, but for `flush`, which has a time of its own.
const ANSWER_WITHIN: Duration = Duration::from_secs(60);

/// Binds `admin.listen`, and reads or makes the token; what it returns serves until it is dropped.
///
/// # Errors
/// [`AgentError::Admin`] where the address is taken, or the token file cannot be used.
pub async fn start(handles: Handles) -> Result<Serving, AgentError> {
    let listen = handles.config.admin.listen;
    let failed = |source| AgentError::Admin { listen: listen.to_string(), source };
    let token = read_or_make(&handles.config.admin.token_file)
        .map_err(|error| failed(std::io::Error::other(one_line(&error))))?;
    let listener = TcpListener::bind(listen).await.map_err(failed)?;
    Ok(Box::pin(async move {
        if let Err(error) = serve(listener, handles, token).await {
            tracing::error!(%error, "the admin API has stopped");
        }
    }))
}

/// Serves until the task is dropped.
///
/// # Errors
/// When the socket fails; not when a request does.
pub async fn serve(listener: TcpListener, handles: Handles, token: String) -> std::io::Result<()> {
    let listen = listener.local_addr()?;
    let api = Api { handles, token: token.into(), listen };
    server::serve(listener, router(api)).await
}

fn router(api: Api) -> Router {
    Router::new()
        .route("/", get(assets::page))
        .route("/assets/{name}", get(assets::asset))
        .route("/openapi.json", get(assets::openapi))
        .route("/runbook", get(assets::night))
        .route("/runbook/{alert}", get(assets::runbook))
        .route("/metrics", get(prometheus::scrape))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(health::ready))
        .route("/api/sync/health", get(health::health))
        .route("/api/sync/metrics", get(health::metrics))
        .route("/api/sync/databases", get(health::databases))
        .route("/api/sync/full", get(full::progress).post(full::start).delete(full::cancel))
        .route("/api/sync/flush", post(flush::flush))
        .route("/api/sync/pause", post(queue::pause))
        .route("/api/sync/resume", post(queue::resume))
        .route("/api/queue", get(queue::list))
        .route("/api/queue/export", get(transfer::export))
        .route("/api/queue/import", post(transfer::import))
        .route("/api/queue/{id}", get(queue::show))
        .route("/api/dead-letters", get(dead_letters::list))
        .route("/api/dead-letters/retry", post(dead_letters::retry_several))
        .route("/api/dead-letters/{id}", get(dead_letters::show))
        .route("/api/dead-letters/{id}", delete(dead_letters::discard))
        .route("/api/dead-letters/{id}/retry", post(dead_letters::retry))
        .route("/api/documents/{ns}/{id}", get(documents::show))
        .route("/api/events", get(events::events))
        .fallback(|| async { Problem::new(StatusCode::NOT_FOUND, "no such path").hint(SEE) })
        .method_not_allowed_fallback(|| async {
            Problem::new(StatusCode::METHOD_NOT_ALLOWED, "this path does not take this method")
                .hint(SEE)
        })
        // The one bound is the guard's, which has read the whole body by then.
        .layer(DefaultBodyLimit::disable())
        .layer(middleware::from_fn_with_state(api.clone(), guard))
        .with_state(api)
}

/// The routes without a socket.
#[cfg(feature = "fuzzing")]
pub(crate) fn router_of(handles: Handles, token: &str) -> Router {
    router(Api { handles, token: token.into(), listen: ([127, 0, 0, 1], 8686).into() })
}

/// An error as JSON.
#[derive(Debug, Serialize)]
pub(crate) struct Problem {
    #[serde(skip)]
    status: StatusCode,
    error: String,
    cause: Option<String>,
    hint: Option<String>,
}

impl Problem {
    fn new(status: StatusCode, error: impl Into<String>) -> Self {
        Self { status, error: error.into(), cause: None, hint: None }
    }

    fn cause(mut self, cause: impl ToString) -> Self {
        self.cause = Some(cause.to_string());
        self
    }

    fn hint(mut self, hint: &str) -> Self {
        self.hint = Some(hint.to_owned());
        self
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        (self.status, Json(self)).into_response()
    }
}

impl From<crate::queue::QueueError> for Problem {
    fn from(error: crate::queue::QueueError) -> Self {
        let status = match &error {
            crate::queue::QueueError::NotFound(_) => StatusCode::NOT_FOUND,
            crate::queue::QueueError::NotRetried(_) | crate::queue::QueueError::LeftOut { .. } => {
                StatusCode::CONFLICT
            }
            crate::queue::QueueError::NotImported(_) => StatusCode::BAD_REQUEST,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        let cause = std::error::Error::source(&error).map(ToString::to_string);
        Self { status, error: error.to_string(), cause, hint: error.hint().map(Cow::into_owned) }
    }
}

async fn guard(State(api): State<Api>, request: Request, next: Next) -> Response {
    let path = request.uri().path().to_owned();
    let (path, method) = (path.as_str(), request.method().clone());
    if let Err(problem) = names_one_host(&request) {
        return harden(problem.into_response());
    }
    if path != "/healthz" {
        if let Err(problem) = check_names(&api, request.headers()) {
            return harden(problem.into_response());
        }
        // Whoever is woken has no token at hand, and the pages are the same for everyone.
        let is_book = path == "/runbook" || path.starts_with("/runbook/");
        let is_near = api.listen.ip().is_loopback();
        let is_open = only_reads(&method) && !shows_documents(path) && (is_near || is_book);
        if !is_open && !has_token(&api, request.headers()) {
            let problem = Problem::new(StatusCode::UNAUTHORIZED, "this needs the agent's token")
                .hint("send `Authorization: Bearer` with the content of `admin.token_file`");
            let mut response = harden(problem.into_response());
            let bearer = header::HeaderValue::from_static("Bearer");
            response.headers_mut().insert(header::WWW_AUTHENTICATE, bearer);
            return response;
        }
    }
    let request = match with_its_body(request).await {
        Ok(request) => request,
        Err(problem) => return harden(problem.into_response()),
    };
    let asker = Asker::of(request.headers(), request.extensions().get());
    let waits_itself = path == "/api/sync/flush";
    let answer = next.run(request);
    let response = if waits_itself {
        answer.await
    } else {
        tokio::time::timeout(ANSWER_WITHIN, answer).await.unwrap_or_else(|_| {
            Problem::new(StatusCode::SERVICE_UNAVAILABLE, "there was no answer in time")
                .hint("`outrigger status` tells which end is away")
                .into_response()
        })
    };
    // A flush waits, and changes nothing: scripts ask for it again and again.
    if !only_reads(&method) && !waits_itself {
        asker.log(&method, path, &response);
    }
    let response = as_json(response);
    // The document of the API is the same for every target.
    let response = if path == "/openapi.json" { response } else { named(response).await };
    harden(response)
}

fn only_reads(method: &Method) -> bool {
    method == Method::GET || method == Method::HEAD
}

/// What axum refuses by itself it says in plain text.
fn as_json(response: Response) -> Response {
    let status = response.status();
    let is_json = response
        .headers()
        .get(header::CONTENT_TYPE)
        .is_some_and(|kind| kind.as_bytes().starts_with(b"application/json"));
    if is_json || !(status.is_client_error() || status == StatusCode::INTERNAL_SERVER_ERROR) {
        return response;
    }
    let error = status.canonical_reason().unwrap_or("the request was refused").to_lowercase();
    Problem::new(status, error).hint(SEE).into_response()
}

/// Nothing here is for other sites, for caches, or for guessing its type.
fn harden(mut response: Response) -> Response {
    let headers = response.headers_mut();
    for (name, value) in [
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::X_FRAME_OPTIONS, "DENY"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CACHE_CONTROL, "no-store"),
        (
            header::CONTENT_SECURITY_POLICY,
            "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; \
             connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        ),
    ] {
        headers.entry(name).or_insert(header::HeaderValue::from_static(value));
    }
    response
}

/// A request may name its host in its target and in any number of headers, and whoever stands between may have read
/// another one than we do.
fn names_one_host(request: &Request) -> Result<(), Problem> {
    let named = request.headers().get_all(header::HOST).iter().count();
    if named <= 1 && request.uri().authority().is_none() {
        return Ok(());
    }
    Err(Problem::new(StatusCode::BAD_REQUEST, "the request names its host more than once")
        .hint("send a path, and one `Host` header"))
}

/// The request once all of its body is there.
async fn with_its_body(request: Request) -> Result<Request, Problem> {
    let (head, body) = request.into_parts();
    match tokio::time::timeout(BODY_WITHIN, to_bytes(body, BODY_MAX)).await {
        Ok(Ok(body)) => Ok(Request::from_parts(head, Body::from(body))),
        // One that broke off has nobody who reads this.
        Ok(Err(_)) => Err(Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "the body is too large")
            .cause(format!("{} MiB is the most", BODY_MAX >> 20))
            .hint("send it in parts")),
        Err(_) => Err(Problem::new(StatusCode::REQUEST_TIMEOUT, "the body did not come in time")
            .hint("send it at once, or none")),
    }
}

/// The body as it came.
pub(crate) fn bytes_of(body: Result<Bytes, BytesRejection>) -> Result<Bytes, Problem> {
    body.map_err(|refused| {
        Problem::new(refused.status(), "the body cannot be read")
            .cause(refused)
            .hint("send it again")
    })
}

/// A body that is a JSON object, or empty for the default; `example` is what to send instead of a bad one.
pub(crate) fn body_of<T: serde::de::DeserializeOwned + Default>(
    body: Result<Bytes, BytesRejection>,
    example: &str,
) -> Result<T, Problem> {
    let body = bytes_of(body)?;
    if body.is_empty() {
        return Ok(T::default());
    }
    // Through an object, since a list would pass for one without fields.
    let object = serde_json::from_slice::<serde_json::Map<_, _>>(&body);
    object.and_then(|object| serde_json::from_value(object.into())).map_err(|error| {
        Problem::new(StatusCode::BAD_REQUEST, "the body is not understood")
            .cause(error)
            .hint(&format!("send {example}, each field optional"))
    })
}

/// An `_id` may be an address, and whether a document exists may be nobody's business.
fn shows_documents(path: &str) -> bool {
    let of = |collection: &str| {
        path.strip_prefix(collection).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    ["/api/queue", "/api/dead-letters", "/api/documents"].into_iter().any(of)
}

fn has_token(api: &Api, headers: &HeaderMap) -> bool {
    let given = headers
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.strip_prefix("Bearer "));
    given.is_some_and(|given| given.trim().as_bytes().ct_eq(api.token.as_bytes()).into())
}

/// `Host` must name this agent, and `Origin`, which only browsers send, must be the same place.
fn check_names(api: &Api, headers: &HeaderMap) -> Result<(), Problem> {
    let refused = |name: &str| {
        Problem::new(StatusCode::FORBIDDEN, format!("the `{name}` header names another site"))
            .hint("use the address of `admin.listen`")
    };
    let text =
        |name: header::HeaderName| headers.get(name).map(|value| value.to_str().unwrap_or(""));
    let Some(host) = text(header::HOST).filter(|host| is_own_name(api.listen, host)) else {
        return Err(refused("Host"));
    };
    match text(header::ORIGIN) {
        // The very place that was asked, and no other page of this machine.
        Some(origin) if origin.strip_prefix("http://") != Some(host) => Err(refused("Origin")),
        Some(_) | None => Ok(()),
    }
}

/// What the agent may be called: its own address, and every name of this machine's own, with any port: a tunnel
/// (`ssh -L 9000:127.0.0.1:8686`) begins at a port of its own. No other site can have such a name.
fn is_own_name(own: SocketAddr, host: &str) -> bool {
    // An agent that listens on every address cannot know its names; there the token guards alone.
    if own.ip().is_unspecified() || host == own.to_string() {
        return true;
    }
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.parse::<u16>().is_ok() => name,
        _ => host,
    };
    let bare = name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(name);
    name.eq_ignore_ascii_case("localhost")
        || bare.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// Runs queue work for a route.
pub(crate) async fn with_queue<T: Send + 'static>(
    api: &Api,
    work: impl FnOnce(&crate::queue::Queue) -> Result<T, crate::queue::QueueError> + Send + 'static,
) -> Result<T, Problem> {
    let queue = api.handles.queue.clone();
    Ok(crate::runtime::shutdown::blocking(move || work(&queue)).await?)
}

/// The id in a path.
pub(crate) fn parse_id(id: &str) -> Result<uuid::Uuid, Problem> {
    id.parse().map_err(|_| {
        Problem::new(StatusCode::BAD_REQUEST, format!("`{}` is no id", id.escape_debug()))
            .hint("ids are listed by `GET /api/queue` and `GET /api/dead-letters`")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_name_of_this_machine_with_any_port_is_the_agents_and_no_other_is() {
        let own = ([127, 0, 0, 1], 8686).into();
        for host in
            ["127.0.0.1:8686", "localhost:9000", "LOCALHOST", "127.0.0.53:1", "[::1]:9000", "[::1]"]
        {
            assert!(is_own_name(own, host), "{host}");
        }
        for host in [
            "evil.example",
            "evil.example:8686",
            "localhost.evil.example",
            "127.0.0.1.evil.example:8686",
            "10.0.0.1:8686",
            "127.0.0.1:8686:1",
            "localhost:many",
            "",
        ] {
            assert!(!is_own_name(own, host), "{host}");
        }
        let elsewhere = ([10, 0, 0, 1], 8686).into();
        assert!(
            is_own_name(elsewhere, "10.0.0.1:8686") && !is_own_name(elsewhere, "10.0.0.2:8686")
        );
        assert!(is_own_name(([0, 0, 0, 0], 8686).into(), "anything"));
    }
}
