//! The dead letters: list, show, retry, discard.

use axum::{
    Json,
    extract::{Path, Query, State, rejection::QueryRejection},
    http::StatusCode,
};
use serde::Serialize;

use super::{
    Api, Problem, parse_id,
    queue::{Limit, limit_of},
    with_queue,
};
use crate::queue::{body_json, dead_letter::DeadLetterSummary};

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DeadLettersReport {
    total: u64,
    dead_letters: Vec<DeadLetterSummary>,
}

/// One dead letter, with its document.
#[derive(Debug, Serialize)]
pub struct DeadLetterReport {
    #[serde(flatten)]
    summary: DeadLetterSummary,
    data: serde_json::Value,
}

pub(super) async fn list(
    State(api): State<Api>,
    limit: Result<Query<Limit>, QueryRejection>,
) -> Result<Json<DeadLettersReport>, Problem> {
    let limit = limit_of(limit)?;
    let dead_letters = with_queue(&api, move |queue| queue.dead_letters(limit)).await?;
    Ok(Json(DeadLettersReport { total: api.handles.queue.dead_letters_len(), dead_letters }))
}

pub(super) async fn show(
    State(api): State<Api>,
    Path(id): Path<String>,
) -> Result<Json<DeadLetterReport>, Problem> {
    let id = parse_id(&id)?;
    let letter = with_queue(&api, move |queue| queue.dead_letter(id)).await?;
    Ok(Json(DeadLetterReport { summary: (&letter).into(), data: body_json(&letter.entry.work) }))
}

pub(super) async fn retry(
    State(api): State<Api>,
    Path(id): Path<String>,
) -> Result<StatusCode, Problem> {
    let id = parse_id(&id)?;
    with_queue(&api, move |queue| queue.retry_dead_letter(id)).await?;
    Ok(StatusCode::ACCEPTED)
}

pub(super) async fn discard(
    State(api): State<Api>,
    Path(id): Path<String>,
) -> Result<StatusCode, Problem> {
    let id = parse_id(&id)?;
    with_queue(&api, move |queue| queue.discard_dead_letter(id)).await?;
    Ok(StatusCode::NO_CONTENT)
}
