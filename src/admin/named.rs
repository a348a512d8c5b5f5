//! The target by its own name in every answer: what the routes say calls it Atlas.

use axum::{
    body::{Body, to_bytes},
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};

use super::Problem;
use crate::observe::words;

/// The answer with its sentences as they are told. What is sent bit by bit says them so itself.
pub(super) async fn named(response: Response) -> Response {
    let kind = response.headers().get(header::CONTENT_TYPE);
    let is = |of: &str| {
        kind.is_some_and(|kind: &HeaderValue| kind.as_bytes().starts_with(of.as_bytes()))
    };
    let rename: fn(&[u8]) -> Option<Vec<u8>> = match () {
        () if !words::is_renamed() => return response,
        () if is("application/json") => in_json,
        () if is("text/plain") => in_figures,
        () => return response,
    };
    let (mut head, body) = response.into_parts();
    let Ok(bytes) = to_bytes(body, usize::MAX).await else {
        let problem = "the answer could not be put together";
        return Problem::new(StatusCode::INTERNAL_SERVER_ERROR, problem).into_response();
    };
    let Some(told) = rename(&bytes) else {
        return Response::from_parts(head, Body::from(bytes));
    };
    head.headers.remove(header::CONTENT_LENGTH);
    Response::from_parts(head, Body::from(told))
}

fn in_json(bytes: &[u8]) -> Option<Vec<u8>> {
    let mut answer = serde_json::from_slice(bytes).ok()?;
    words::told_in(&mut answer);
    serde_json::to_vec(&answer).ok()
}

/// What a metric is for; its labels are names of users'.
fn in_figures(bytes: &[u8]) -> Option<Vec<u8>> {
    let text = std::str::from_utf8(bytes).ok()?;
    let lines = text.split_inclusive('\n').map(|line| {
        if line.starts_with("# HELP ") { words::told_of_ours(line) } else { line.into() }
    });
    Some(lines.collect::<String>().into_bytes())
}
