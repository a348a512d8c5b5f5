//! The state of one document.

use axum::{
    Json,
    extract::{Path, State},
    http::StatusCode,
};

use super::{Api, Problem};
use crate::{
    model::{document_key::DocumentKey, namespace::Namespace},
    runtime::clock::rfc3339,
    sync::document::{DocumentReport, look_up, not_replicated},
};

pub(super) async fn show(
    State(api): State<Api>,
    Path((ns, id)): Path<(String, String)>,
) -> Result<Json<DocumentReport>, Problem> {
    // With a `$` it is a command to the server, or a part of its own.
    let parsed = ns.parse().ok().filter(|_| !ns.contains(['$', '\0']));
    let ns: Namespace = parsed.ok_or_else(|| {
        Problem::new(StatusCode::BAD_REQUEST, "the path names no collection")
            .hint("write `/api/documents/shop.orders/42`")
    })?;
    let filter = api.handles.config.filter().map_err(|error| {
        Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "the filter cannot be used").cause(error)
    })?;
    if let Some((reason, hint)) = not_replicated(&filter, &ns) {
        let problem = Problem::new(StatusCode::NOT_FOUND, reason);
        return Err(if let Some(hint) = hint { problem.hint(hint) } else { problem });
    }
    let handles = &api.handles;
    let (local, atlas) = (&*handles.local.side, &*handles.atlas.side);
    let mut found = None;
    // What was typed may mean more than one `_id`; the first that anybody has is meant.
    for key in DocumentKey::meant_by(&id) {
        let report = look_up(&handles.queue, Some(&handles.reading), local, atlas, &ns, &key).await;
        let mut report = report.map_err(|error| {
            Problem::new(StatusCode::SERVICE_UNAVAILABLE, "not both sides can be asked")
                .cause(crate::observe::report::one_line(&error))
                .hint("`outrigger status` tells which end is away")
        })?;
        let remembered = handles.status.recent.when(&ns, &key).and_then(rfc3339);
        report.last_sync = remembered.or(report.last_sync);
        let exists = report.in_local != Some(false) || report.in_atlas != Some(false);
        if exists {
            return Ok(Json(report));
        }
        found.get_or_insert(report);
    }
    match found {
        // It was there, and both sides know that it is gone.
        Some(report) if report.last_sync.is_some() => Ok(Json(report)),
        Some(_) | None => {
            Err(Problem::new(StatusCode::NOT_FOUND, "neither side has such a document")
                .hint("an `_id` is extended JSON: 42, \"abc\", {\"$oid\": \"…\"}"))
        }
    }
}
