//! The dashboard, the OpenAPI document and the runbook: embedded, so that nothing else is needed to look at them.

use std::borrow::Cow;

use axum::{
    extract::Path,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};

use super::{Problem, SEE};
use crate::observe::{runbook, words};

const PAGE: &str = include_str!("../../assets/dashboard/index.html");
const OPENAPI: &str = include_str!("../../docs/openapi.json");

/// Name, type, content. uPlot (MIT) is unchanged from its npm package: 1.6.32, sha512
/// `KIMVnG68zvu5XXUbC4LQEPnhwOxBuLyW1AHtpm6IKTXImkbLgkMy+jabjLgSLMasNuGGzQm/ep3tOkyTxpiQIw==`.
const ASSETS: [(&str, &str, &str); 8] = [
    ("app.js", "text/javascript", include_str!("../../assets/dashboard/app.js")),
    ("tables.js", "text/javascript", include_str!("../../assets/dashboard/tables.js")),
    ("link.js", "text/javascript", include_str!("../../assets/dashboard/link.js")),
    ("format.js", "text/javascript", include_str!("../../assets/dashboard/format.js")),
    ("charts.js", "text/javascript", include_str!("../../assets/dashboard/charts.js")),
    ("app.css", "text/css", include_str!("../../assets/dashboard/app.css")),
    ("uplot.js", "text/javascript", include_str!("../../assets/vendor/uPlot.iife.min.js")),
    ("uplot.css", "text/css", include_str!("../../assets/vendor/uPlot.min.css")),
];

pub(super) async fn page() -> Response {
    told("text/html", PAGE)
}

pub(super) async fn openapi() -> Response {
    text("application/json", OPENAPI)
}

/// What to do, whatever it is.
pub(super) async fn night() -> Response {
    told("text/plain", runbook::NIGHT)
}

/// What to do about an alert.
pub(super) async fn runbook(Path(alert): Path<String>) -> Result<Response, Problem> {
    runbook::page(&alert).map(|page| told("text/plain", page)).ok_or_else(|| {
        let known: Vec<_> = runbook::alerts().collect();
        Problem::new(StatusCode::NOT_FOUND, "there is no such alert")
            .hint(&format!("known are {}", known.join(", ")))
    })
}

pub(super) async fn asset(Path(name): Path<String>) -> Result<Response, Problem> {
    let found = ASSETS.iter().find(|(known, ..)| *known == name);
    let (_, kind, content) =
        found.ok_or_else(|| Problem::new(StatusCode::NOT_FOUND, "no such path").hint(SEE))?;
    Ok(told(kind, content))
}

fn text(kind: &str, content: impl Into<Cow<'static, str>>) -> Response {
    ([(header::CONTENT_TYPE, format!("{kind}; charset=utf-8"))], content.into()).into_response()
}

/// With the target by its own name.
fn told(kind: &str, content: &'static str) -> Response {
    text(kind, words::told_of_ours(content))
}
