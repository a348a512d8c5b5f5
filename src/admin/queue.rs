//! The queue: figures, entries, and whether it drains.

use axum::{
    Extension, Json,
    body::Bytes,
    extract::{Path, Query, State, rejection::BytesRejection},
    http::StatusCode,
};
use serde::{Deserialize, Serialize};

use super::{
    Api, Problem,
    askers::{Asker, Why, told},
    body_of, parse_id, with_queue,
};
use crate::{
    agent,
    config::units,
    gate::pause::Pause,
    queue::{Entry, EntrySummary, QueueStats, body_json},
    runtime::clock::{now_ms, rfc3339},
};

/// How many entries a list shows.
#[derive(Deserialize)]
pub(super) struct Limit {
    #[serde(default = "default_limit")]
    pub limit: usize,
}

fn default_limit() -> usize {
    50
}

/// Most entries that one answer lists.
pub const LIST_MAX: usize = 10_000;

#[derive(Debug, Serialize)]
pub struct QueueReport {
    stats: QueueStats,
    operations: Vec<EntrySummary>,
}

/// One entry, with its document.
#[derive(Debug, Serialize)]
pub struct EntryReport {
    #[serde(flatten)]
    summary: EntrySummary,
    data: serde_json::Value,
}

impl From<&Entry> for EntryReport {
    fn from(entry: &Entry) -> Self {
        Self { summary: entry.into(), data: body_json(&entry.work) }
    }
}

pub(super) async fn list(
    State(api): State<Api>,
    limit: Result<Query<Limit>, axum::extract::rejection::QueryRejection>,
) -> Result<Json<QueueReport>, Problem> {
    let limit = limit_of(limit)?;
    let report = with_queue(&api, move |queue| {
        let operations = queue.list(limit)?;
        Ok(QueueReport { stats: queue.stats()?, operations })
    });
    Ok(Json(report.await?))
}

pub(super) fn limit_of(
    limit: Result<Query<Limit>, axum::extract::rejection::QueryRejection>,
) -> Result<usize, Problem> {
    let Query(limit) = limit.map_err(|_| {
        Problem::new(axum::http::StatusCode::BAD_REQUEST, "`limit` is a whole number")
            .hint("such as `?limit=50`")
    })?;
    Ok(limit.limit.min(LIST_MAX))
}

pub(super) async fn show(
    State(api): State<Api>,
    Path(id): Path<String>,
) -> Result<Json<EntryReport>, Problem> {
    let id = parse_id(&id)?;
    let entry = with_queue(&api, move |queue| queue.show(id)).await?;
    Ok(Json((&entry).into()))
}

/// The body of `POST /api/sync/pause`, which may be empty.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct PauseRequest {
    reason: Option<String>,
    /// After this time it goes on by itself, such as `2h`.
    #[serde(rename = "for")]
    lasts: Option<String>,
}

pub(super) async fn pause(
    State(api): State<Api>,
    asker: Asker,
    body: Result<Bytes, BytesRejection>,
) -> Result<(Extension<Why>, Json<PauseReport>), Problem> {
    let request: PauseRequest = body_of(body, "{\"reason\": \"…\", \"for\": \"2h\"}")?;
    let since_ms = now_ms();
    let until_ms = match request.lasts.as_deref().map(units::parse_duration).transpose() {
        Ok(lasts) => lasts.map(|lasts| since_ms.saturating_add(lasts.as_millis() as u64)),
        Err(problem) => {
            return Err(Problem::new(StatusCode::BAD_REQUEST, "`for` is not understood")
                .cause(problem)
                .hint("write a duration such as `30m` or `2h`, or leave it out"));
        }
    };
    let reason = request.reason.or_else(|| asker.reason.clone()).map(|reason| told(&reason));
    let reason = reason.filter(|why| !why.is_empty());
    let pause = Pause { since_ms, until_ms, reason: reason.clone(), by: Some(asker.name()) };
    agent::set_paused(&api.handles, Some(pause.clone())).await?;
    Ok((Extension(Why(reason)), Json(PauseReport::of(Some(&pause)))))
}

pub(super) async fn resume(State(api): State<Api>) -> Result<Json<PauseReport>, Problem> {
    agent::set_paused(&api.handles, None).await?;
    Ok(Json(PauseReport::of(None)))
}

/// Whether writing is paused, and why.
#[derive(Debug, Serialize)]
pub struct PauseReport {
    paused: bool,
    #[serde(flatten)]
    pause: Option<Paused>,
}

/// A pause as it is shown.
#[derive(Clone, Debug, Serialize)]
pub struct Paused {
    /// RFC 3339; `null` where an earlier version has noted it.
    since: Option<String>,
    until: Option<String>,
    reason: Option<String>,
    by: Option<String>,
}

impl PauseReport {
    fn of(pause: Option<&Pause>) -> Self {
        Self { paused: pause.is_some(), pause: pause.map(Paused::from) }
    }
}

impl From<&Pause> for Paused {
    fn from(pause: &Pause) -> Self {
        let Pause { since_ms, until_ms, reason, by } = pause.clone();
        Self { since: rfc3339(since_ms), until: until_ms.and_then(rfc3339), reason, by }
    }
}
