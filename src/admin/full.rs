//! The full sync: start, progress, cancel.

use axum::{
    Json,
    body::Bytes,
    extract::{State, rejection::BytesRejection},
    http::StatusCode,
};
use serde::Serialize;

use super::{Api, Problem, body_of, with_queue};
use crate::{
    agent::Handles,
    model::namespace::NamespaceFilter,
    observe::progress::ProgressReport,
    runtime::{clock::now_ms, shutdown::blocking},
    sync::{
        Unmatched, is_all_held_up, nothing_of, refused_of_the_run,
        state::{Cancelled, Reason, SyncRequest, SyncState},
    },
};

/// `GET /api/sync/full`, and the answer to a start.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FullReport {
    /// The id of what runs or is about to; `null` when nothing does.
    running: Option<String>,
    /// Why it runs.
    reason: Option<String>,
    /// How far the run is, or how the last one ended; `null` before the first.
    sync: Option<ProgressReport>,
    /// Documents that it queued and Atlas would not take, so far.
    refused: u64,
    /// All that waits in the queue waits for changes of collections that Atlas does not make yet.
    held_up: bool,
}

async fn report(api: &Api) -> Result<FullReport, Problem> {
    let open = with_queue(api, SyncState::open).await?;
    let sync = api.handles.status.state().sync.as_ref().map(|sync| sync.report(now_ms()));
    let handles = api.handles.clone();
    let refused = blocking(move || refused_of_the_run(&handles.status, &handles.queue)).await?;
    let held_up = is_all_held_up(&api.handles.queue, &api.handles.watch);
    Ok(FullReport {
        running: open.as_ref().map(|open| open.id.to_string()),
        reason: open.map(|open| open.reason.to_string()),
        sync,
        refused,
        held_up,
    })
}

pub(super) async fn progress(State(api): State<Api>) -> Result<Json<FullReport>, Problem> {
    Ok(Json(report(&api).await?))
}

/// Starts one. The body is a [`SyncRequest`], or empty for everything.
pub(super) async fn start(
    State(api): State<Api>,
    body: Result<Bytes, BytesRejection>,
) -> Result<(StatusCode, Json<FullReport>), Problem> {
    let request: SyncRequest = body_of(
        body,
        "{\"namespaces\": [\"shop.*\"], \"digest\": false, \"dryRun\": false, \"allowMassDelete\": false}",
    )?;
    NamespaceFilter::new(&request.namespaces, &[]).map_err(|error| {
        Problem::new(StatusCode::BAD_REQUEST, error.to_string()).hint("a pattern is `shop.*`")
    })?;
    if let Err(error) = api.handles.config.comparable() {
        return Err(Problem::new(StatusCode::CONFLICT, error.to_string()));
    }
    if let Some(nothing) = nothing_matches(&api, &request.namespaces).await {
        return Err(Problem::new(StatusCode::NOT_FOUND, nothing.to_string())
            .hint("a pattern is `shop.*`; `outrigger check` counts what there is"));
    }
    let position = api.handles.reading.position().seen();
    let asked = with_queue(&api, move |queue| {
        let asked = SyncState::request(queue, position, request, Reason::Asked)?;
        queue.flush()?;
        Ok(asked)
    });
    match asked.await? {
        Ok(_) => {
            api.handles.sync_wanted.notify_one();
            Ok((StatusCode::ACCEPTED, Json(report(&api).await?)))
        }
        Err(open) => {
            let problem = format!("a full sync runs already: {} ({})", open.id, open.reason);
            Err(Problem::new(StatusCode::CONFLICT, problem).hint(
                "`outrigger sync status` shows how far it is, `outrigger sync cancel` ends it",
            ))
        }
    }
}

/// A pattern that chooses nothing on either side; none where an end does not answer.
async fn nothing_matches(api: &Api, patterns: &[String]) -> Option<Unmatched> {
    let Handles { local, atlas, config, .. } = &api.handles;
    if patterns.is_empty() {
        return None;
    }
    nothing_of(patterns, &*local.side, &*atlas.side, &config.compared().ok()?).await
}

pub(super) async fn cancel(State(api): State<Api>) -> Result<Json<serde_json::Value>, Problem> {
    match with_queue(&api, SyncState::cancel).await? {
        Cancelled::Done(state) => {
            api.handles.sync_wanted.notify_one();
            Ok(Json(serde_json::json!({ "cancelled": state.id })))
        }
        Cancelled::IsOwed(state) => {
            let problem = format!("this full sync is owed, because of this: {}", state.reason);
            Err(Problem::new(StatusCode::CONFLICT, problem)
                .hint("without it the copy stays wrong; `outrigger pause` makes it wait"))
        }
        Cancelled::NothingRuns => Err(Problem::new(StatusCode::NOT_FOUND, "no full sync runs")
            .hint("`outrigger sync status` shows how the last one ended")),
    }
}
