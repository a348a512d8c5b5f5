//! The queue as a file: export, and import beside a running agent.
//!
//! An export made here has no checkpoint, since entries come and go while it is written. What is imported
//! here is queued by key, never by content; see [`transfer`](crate::queue::transfer).

use std::io::Write;

use axum::{
    Json,
    body::{Body, Bytes},
    extract::{State, rejection::BytesRejection},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use futures_util::stream;
use tokio::sync::mpsc;

use super::{Api, Problem, bytes_of, with_queue};
use crate::{
    queue::transfer::{ImportEffect, Whole, read_keys},
    sync::state::{Reason, SyncState},
};

/// Bytes that are gathered before they are sent, and how many such parts may wait.
const PART: usize = 64 << 10;
const PARTS: usize = 8;

pub(super) async fn export(State(api): State<Api>) -> Response {
    let (parts, mut received) = mpsc::channel::<std::io::Result<Bytes>>(PARTS);
    let queue = api.handles.queue.clone();
    tokio::task::spawn_blocking(move || {
        let mut out = std::io::BufWriter::with_capacity(PART, ExportBody(parts.clone()));
        // The answer must not look whole then.
        if let Err(error) = queue.export(&mut out, Whole::No) {
            tracing::warn!(%error, "an export of the queue ended early");
            let _ = parts.blocking_send(Err(std::io::Error::other(error.to_string())));
        }
    });
    let body = stream::poll_fn(move |context| received.poll_recv(context));
    ([(header::CONTENT_TYPE, "application/json")], Body::from_stream(body)).into_response()
}

struct ExportBody(mpsc::Sender<std::io::Result<Bytes>>);

impl Write for ExportBody {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let sent = self.0.blocking_send(Ok(Bytes::copy_from_slice(bytes)));
        sent.map_err(|_| std::io::ErrorKind::BrokenPipe)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

pub(super) async fn import(
    State(api): State<Api>,
    body: Result<Bytes, BytesRejection>,
) -> Result<(StatusCode, Json<serde_json::Value>), Problem> {
    let body = bytes_of(body)?;
    let filter = api.handles.config.filter().map_err(|error| {
        Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "the filter cannot be used").cause(error)
    })?;
    let position = api.handles.reading.position().seen();
    let done = with_queue(&api, move |queue| {
        let mut incoming = Vec::new();
        let mut compare = std::collections::BTreeSet::new();
        let left_out = read_keys(
            &*body,
            position,
            |ns| filter.matches(ns),
            |wish| {
                match wish {
                    ImportEffect::Refresh(wanted) => incoming.push(wanted),
                    ImportEffect::Compare(namespaces) => compare.extend(namespaces),
                }
                Ok(())
            },
        )?;
        let queued = incoming.len();
        if !compare.is_empty() {
            SyncState::require_of(queue, position, &compare, Reason::Imported)?;
        }
        queue.commit(incoming, None)?;
        queue.flush()?;
        Ok(serde_json::json!({ "queued": queued, "compared": compare, "leftOut": left_out }))
    })
    .await?;
    api.handles.sync_wanted.notify_one();
    Ok((StatusCode::ACCEPTED, Json(done)))
}
