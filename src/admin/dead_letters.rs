//! The dead letters: list, show, retry, discard.

use axum::{
    Json,
    body::Bytes,
    extract::{
        Path, Query, State,
        rejection::{BytesRejection, QueryRejection},
    },
    http::StatusCode,
};
use serde::{Deserialize, Serialize};

use super::{
    Api, Problem, body_of, parse_id,
    queue::{Limit, limit_of},
    with_queue,
};
use crate::{
    agent,
    model::namespace::{Namespace, NamespaceFilter},
    queue::{Retried, body_json, dead_letter::DeadLetterSummary},
};

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
    let is_replicated = is_replicated(&api)?;
    with_queue(&api, move |queue| queue.retry_dead_letter(id, &is_replicated)).await?;
    Ok(StatusCode::ACCEPTED)
}

/// Which of them.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Chosen {
    namespaces: Vec<String>,
}

pub(super) async fn retry_several(
    State(api): State<Api>,
    body: Result<Bytes, BytesRejection>,
) -> Result<Json<Retried>, Problem> {
    let chosen: Chosen = body_of(body, "{\"namespaces\": [\"shop.*\"]}")?;
    let scope = NamespaceFilter::new(&chosen.namespaces, &[]).map_err(|error| {
        Problem::new(StatusCode::BAD_REQUEST, "a pattern is not understood")
            .cause(error)
            .hint("write `shop.orders` or `shop.*`")
    })?;
    let is_replicated = is_replicated(&api)?;
    let retried = with_queue(&api, move |queue| {
        let retried = queue.retry_dead_letters(&|ns| scope.matches(ns), &is_replicated)?;
        queue.flush()?;
        Ok(retried)
    });
    Ok(Json(retried.await?))
}

fn is_replicated(api: &Api) -> Result<impl Fn(&Namespace) -> bool + Send + use<>, Problem> {
    agent::is_replicated(&api.handles.config).map_err(|error| {
        Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "what is replicated is not known")
            .cause(error)
    })
}

pub(super) async fn discard(
    State(api): State<Api>,
    Path(id): Path<String>,
) -> Result<StatusCode, Problem> {
    let id = parse_id(&id)?;
    with_queue(&api, move |queue| queue.discard_dead_letter(id)).await?;
    Ok(StatusCode::NO_CONTENT)
}
