//! The admin API: what the CLI and scripts ask a running agent.
//!
//! Anything that changes state, and anything that shows a document, needs the token of
//! `admin.token_file`; on an address other than loopback, everything but `/healthz` does. A browser
//! is kept out by name: a foreign `Host` (DNS rebinding) or `Origin` (another site's script) is
//! refused. Errors are JSON with `error`, `cause` and `hint`.

use std::{net::SocketAddr, sync::Arc};

use axum::{
    Json, Router,
    extract::{Request, State},
    http::{HeaderMap, Method, StatusCode, header},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{delete, get, post},
};
use serde::Serialize;
use subtle::ConstantTimeEq;
use tokio::net::TcpListener;

use crate::agent::Handles;

mod dead_letters;
mod full;
pub mod health;
mod queue;
mod token;

pub use token::{TokenError, read_or_make, read_token};

/// What a route works with.
#[derive(Clone)]
pub(crate) struct Api {
    handles: Handles,
    token: Arc<str>,
    listen: SocketAddr,
}

/// Serves until the task is dropped.
///
/// # Errors
/// When the socket fails; not when a request does.
pub async fn serve(listener: TcpListener, handles: Handles, token: String) -> std::io::Result<()> {
    let listen = listener.local_addr()?;
    let api = Api { handles, token: token.into(), listen };
    axum::serve(listener, router(api)).await
}

fn router(api: Api) -> Router {
    Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(health::ready))
        .route("/api/sync/health", get(health::health))
        .route("/api/sync/metrics", get(health::metrics))
        .route("/api/sync/databases", get(health::databases))
        .route("/api/sync/full", get(full::progress).post(full::start).delete(full::cancel))
        .route("/api/sync/pause", post(queue::pause))
        .route("/api/sync/resume", post(queue::resume))
        .route("/api/queue", get(queue::list))
        .route("/api/queue/{id}", get(queue::show))
        .route("/api/dead-letters", get(dead_letters::list))
        .route("/api/dead-letters/{id}", get(dead_letters::show))
        .route("/api/dead-letters/{id}", delete(dead_letters::discard))
        .route("/api/dead-letters/{id}/retry", post(dead_letters::retry))
        .fallback(|| async { Problem::new(StatusCode::NOT_FOUND, "no such path") })
        .method_not_allowed_fallback(|| async {
            Problem::new(StatusCode::METHOD_NOT_ALLOWED, "this path does not take this method")
        })
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
            crate::queue::QueueError::NotRetried(_) => StatusCode::CONFLICT,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        let cause = std::error::Error::source(&error).map(ToString::to_string);
        Self { status, error: error.to_string(), cause, hint: None }
    }
}

async fn guard(State(api): State<Api>, request: Request, next: Next) -> Response {
    let path = request.uri().path();
    if path != "/healthz" {
        if let Err(problem) = check_names(&api, request.headers()) {
            return problem.into_response();
        }
        let shows_document = is_item(path, "/api/queue/") || is_item(path, "/api/dead-letters/");
        let is_open =
            request.method() == Method::GET && !shows_document && api.listen.ip().is_loopback();
        if !is_open && !has_token(&api, request.headers()) {
            return Problem::new(StatusCode::UNAUTHORIZED, "this needs the agent's token")
                .hint("send `Authorization: Bearer` with the content of `admin.token_file`")
                .into_response();
        }
    }
    next.run(request).await
}

fn is_item(path: &str, collection: &str) -> bool {
    path.strip_prefix(collection).is_some_and(|id| !id.is_empty())
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
    if !text(header::HOST).is_some_and(|host| is_own_name(api, host)) {
        return Err(refused("Host"));
    }
    match text(header::ORIGIN) {
        Some(origin)
            if !origin.strip_prefix("http://").is_some_and(|host| is_own_name(api, host)) =>
        {
            Err(refused("Origin"))
        }
        Some(_) | None => Ok(()),
    }
}

fn is_own_name(api: &Api, host: &str) -> bool {
    let own = api.listen;
    let names = [
        own.to_string(),
        format!("localhost:{}", own.port()),
        format!("127.0.0.1:{}", own.port()),
        format!("[::1]:{}", own.port()),
    ];
    // An agent that listens on every address cannot know its names; there the token guards alone.
    own.ip().is_unspecified() || names.iter().any(|name| name == host)
}

/// Runs queue work for a route.
pub(crate) async fn with_queue<T: Send + 'static>(
    api: &Api,
    work: impl FnOnce(&crate::queue::Queue) -> Result<T, crate::queue::QueueError> + Send + 'static,
) -> Result<T, Problem> {
    let queue = api.handles.queue.clone();
    Ok(crate::shutdown::blocking(move || work(&queue)).await?)
}

/// The id in a path.
pub(crate) fn parse_id(id: &str) -> Result<uuid::Uuid, Problem> {
    id.parse().map_err(|_| {
        Problem::new(StatusCode::BAD_REQUEST, format!("`{}` is no id", id.escape_debug()))
            .hint("ids are listed by `GET /api/queue` and `GET /api/dead-letters`")
    })
}
