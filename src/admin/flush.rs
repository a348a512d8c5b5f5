//! Waiting until all that is committed locally now is in Atlas.

use std::time::Duration;

use axum::{
    Json,
    body::Bytes,
    extract::{State, rejection::BytesRejection},
    http::StatusCode,
};
use serde::{Deserialize, Deserializer, Serialize, de::Error as _};

use super::{Api, Problem, body_of};
use crate::{
    agent::{self, FlushError, Flushed},
    runtime::clock::rfc3339,
};

/// The body of `POST /api/sync/flush`, which may be empty.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct FlushRequest {
    #[serde(deserialize_with = "whole")]
    timeout_ms: u64,
    /// Wait for index builds too.
    indexes: bool,
}

impl Default for FlushRequest {
    fn default() -> Self {
        Self { timeout_ms: 30_000, indexes: false }
    }
}

/// A whole number in either of JSON's ways: 30000.0 is one to JSON Schema, by which clients are made.
fn whole<'de, D: Deserializer<'de>>(from: D) -> Result<u64, D::Error> {
    let number = serde_json::Number::deserialize(from)?;
    let exact = |number: f64| {
        (number.fract() == 0.0 && (0.0..=TIMEOUT_MAX_MS as f64).contains(&number))
            .then_some(number as u64)
    };
    number.as_u64().or_else(|| number.as_f64().and_then(exact)).ok_or_else(|| {
        D::Error::custom(format!("{number} is no whole number from 0 to {TIMEOUT_MAX_MS}"))
    })
}

/// Longest wait that may be asked for.
const TIMEOUT_MAX_MS: u64 = 3_600_000;

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct FlushReport {
    flushed: bool,
    /// Atlas has everything up to this time, RFC 3339.
    up_to: Option<String>,
    /// Indexes are being built in Atlas, and were not waited for.
    indexes_building: bool,
}

pub(super) async fn flush(
    State(api): State<Api>,
    body: Result<Bytes, BytesRejection>,
) -> Result<Json<FlushReport>, Problem> {
    let request: FlushRequest = body_of(body, "{\"timeoutMs\": 30000, \"indexes\": false}")?;
    if request.timeout_ms > TIMEOUT_MAX_MS {
        return Err(Problem::new(StatusCode::BAD_REQUEST, "`timeoutMs` is at most 3600000")
            .hint("ask again when that time is over"));
    }
    let patience = Duration::from_millis(request.timeout_ms);
    match agent::flush(&api.handles, patience, request.indexes).await {
        Ok(Flushed::Done { up_to, is_building }) => Ok(Json(FlushReport {
            flushed: true,
            up_to: rfc3339(up_to.millis()),
            indexes_building: is_building,
        })),
        Ok(Flushed::Waiting { pending, because }) => {
            let waiting = if pending == 1 {
                "1 change waits".to_owned()
            } else {
                format!("{pending} changes wait")
            };
            let problem = format!("not everything is in Atlas yet: {waiting}");
            Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, problem)
                .cause(because)
                .hint("`outrigger status` shows what goes on; nothing is lost meanwhile"))
        }
        Ok(Flushed::GivenUp { dead_letters }) => {
            let problem = format!("everything is in Atlas but {dead_letters} dead letters");
            Err(Problem::new(StatusCode::CONFLICT, problem)
                .hint("`outrigger dead list` shows them, with the reasons"))
        }
        Err(FlushError::Local(error)) => {
            Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, "the local database does not answer")
                .cause(crate::observe::report::one_line(&error))
                .hint("`outrigger status` tells since when"))
        }
        Err(FlushError::Queue(error)) => Err(error.into()),
    }
}
