//! The queue: figures, entries, and whether it drains.

use axum::{
    Json,
    extract::{Path, Query, State},
};
use serde::{Deserialize, Serialize};

use super::{Api, Problem, parse_id, with_queue};
use crate::{
    observe::status::Phase,
    queue::{Entry, EntrySummary, QueueStats, body_json, note},
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

pub(super) async fn pause(State(api): State<Api>) -> Result<Json<serde_json::Value>, Problem> {
    set_paused(api, true).await
}

pub(super) async fn resume(State(api): State<Api>) -> Result<Json<serde_json::Value>, Problem> {
    set_paused(api, false).await
}

/// Kept beside the queue, so that a pause survives a restart.
async fn set_paused(api: Api, paused: bool) -> Result<Json<serde_json::Value>, Problem> {
    with_queue(&api, move |queue| {
        queue.set_meta(note::PAUSED, paused.then_some(&b"1"[..]))?;
        queue.flush()
    })
    .await?;
    let status = &api.handles.status;
    api.handles.writing.pause(paused);
    let phase = status.state().phase;
    match (paused, phase) {
        (true, Phase::Streaming) => status.enter(Phase::Paused),
        (false, Phase::Paused) => status.enter(Phase::Streaming),
        (_, _) => {}
    }
    Ok(Json(serde_json::json!({ "paused": paused })))
}
