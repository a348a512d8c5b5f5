//! Entrances for input that nobody has checked, each with what must hold for any bytes whatever: no panic,
//! and the properties that are asserted here. With the feature `fuzzing` only.
//!
//! `fuzz/` runs them under cargo-fuzz; `tests/faults/random_input.rs` runs them for a moment with random and with
//! mutated input, in every test run. What they found is kept there.

use std::{
    path::Path,
    sync::{Arc, LazyLock},
};

use axum::{
    Router,
    body::Body,
    http::{Method, Request, StatusCode, header},
};
use bson::{RawDocument, RawDocumentBuf, rawdoc};
use tower::ServiceExt;

use crate::{
    admin,
    agent::{End, Handles},
    config::{self, Config},
    model::{delta::Delta, event::ChangeEvent},
    mongo::{Connect, Mongo},
    queue::{Queue, QueueOptions, fuzz as queue_codec},
};

pub use queue_codec::samples as codec_samples;

/// A stored entry, dead letter or checkpoint. True when it is one.
pub fn codec(bytes: &[u8]) -> bool {
    queue_codec::decode(bytes)
}

/// A change event as a server may send it. True when it is one.
pub fn event(bytes: &[u8]) -> bool {
    RawDocument::from_bytes(bytes).is_ok_and(|event| ChangeEvent::parse(event).is_ok())
}

/// A document and two differences, one BSON document after the other. Where all that is exact, two
/// differences merged do what they do one after the other. True when all that is exact.
pub fn delta(bytes: &[u8]) -> bool {
    let mut rest = bytes;
    let mut next = || {
        let length = u32::from_le_bytes(rest.get(..4)?.try_into().ok()?) as usize;
        let (document, after) = rest.split_at_checked(length)?;
        rest = after;
        RawDocumentBuf::from_bytes(document.to_vec()).ok()
    };
    let (Some(document), Some(first), Some(second)) = (next(), next(), next()) else {
        return false;
    };
    let (Ok(first), Ok(second)) = (Delta::from_diff(&first), Delta::from_diff(&second)) else {
        return false;
    };
    let _ = (first.to_command(), second.to_command());
    let Ok(once) = first.apply(&document) else { return false };
    let Ok(twice) = second.apply(&once) else { return false };
    let Ok(at_once) = first.then(&second).and_then(|merged| merged.apply(&document)) else {
        return false;
    };
    assert_eq!(at_once.as_bytes(), twice.as_bytes(), "{first:?} then {second:?} on {document:?}");
    true
}

/// A configuration file. True when it is a good one.
pub fn configuration(bytes: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(bytes) else { return false };
    let parsed = config::parse(text, Path::new("fuzzed"), |_| None);
    if let Err(error) = &parsed {
        assert!(!error.to_string().is_empty());
    }
    parsed.is_ok()
}

/// A request to the admin API: a byte for the method, the path, a line feed, a header's value, a line feed,
/// the body. Answers are never 500, and errors are JSON. True when it is
/// answered well.
pub fn admin_request(bytes: &[u8]) -> bool {
    let mut parts = bytes.get(1..).unwrap_or_default().splitn(3, |byte| *byte == b'\n');
    let mut part = || parts.next().unwrap_or_default();
    let (path, value, body) = (part(), part(), part().to_vec());
    let method = [Method::GET, Method::POST, Method::DELETE, Method::PUT]
        [usize::from(bytes.first().copied().unwrap_or(0)) % 4]
        .clone();
    // That one asks both servers, and waits for them.
    if path.windows(9).any(|part| part == b"databases") {
        return false;
    }
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(header::AUTHORIZATION, "Bearer token")
        .header(header::HOST, "127.0.0.1:8686")
        .header(header::CONTENT_TYPE, value)
        .body(Body::from(body));
    let Ok(request) = request else { return false };
    let (runtime, router) = &*ADMIN;
    runtime.block_on(async {
        let Ok(response) = router.clone().oneshot(request).await;
        let status = response.status();
        let body = axum::body::to_bytes(response.into_body(), 1 << 20).await.unwrap_or_default();
        assert_ne!(status, StatusCode::INTERNAL_SERVER_ERROR);
        if status.is_client_error() {
            let problem: Option<serde_json::Value> = serde_json::from_slice(&body).ok();
            let text = String::from_utf8_lossy(&body);
            assert!(
                problem.is_some_and(|problem| problem["error"].is_string()),
                "{status}: {text}"
            );
        }
        status.is_success()
    })
}

static ADMIN: LazyLock<(tokio::runtime::Runtime, Router)> = LazyLock::new(|| {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime for one thread");
    let router = runtime.block_on(async {
        let uri = config::Uri::parse("mongodb://127.0.0.1:1/").expect("a literal");
        let mongo = Mongo::connect(&uri, &Connect::default()).await.expect("nothing is asked yet");
        let path = std::env::temp_dir().join(format!("outrigger-fuzz-{}", std::process::id()));
        let options = QueueOptions { persist: false, ..QueueOptions::new(path) };
        let handles = Handles {
            monitor: Arc::default(),
            local_set: "rs0".into(),
            sync_wanted: Arc::default(),
            watch: Arc::default(),
            status: Arc::default(),
            reading: Arc::default(),
            writing: Arc::default(),
            queue: Arc::new(Queue::open(&options).expect("a new queue")),
            local: End::source(&mongo),
            atlas: End::target(&mongo),
            journal: Arc::new(mongo),
            config: Arc::new(Config::default()),
        };
        admin::router_of(handles, "token")
    });
    (runtime, router)
});

/// An event of each kind, for mutation.
pub fn event_samples() -> Vec<Vec<u8>> {
    let ns = || rawdoc! { "db": "shop", "coll": "orders" };
    let time = bson::Timestamp { time: 5, increment: 1 };
    let event = |kind: &str, more: RawDocumentBuf| {
        let mut event = rawdoc! {
            "_id": { "_data": "82" }, "operationType": kind, "clusterTime": time, "ns": ns(),
            "wallTime": bson::DateTime::from_millis(5),
        };
        for element in more.iter().flatten() {
            event.append(element.0, bson::RawBson::from(element.1));
        }
        event.into_bytes()
    };
    let key = || rawdoc! { "_id": 1 };
    let diff = rawdoc! { "u": { "a": 1 }, "sb": { "a": true, "u1": 5 }, "d": { "x": false } };
    vec![
        event(
            "insert",
            rawdoc! { "documentKey": key(), "fullDocument": { "_id": 1, "a": [1, 2] } },
        ),
        event("replace", rawdoc! { "documentKey": key(), "fullDocument": { "_id": 1 } }),
        event("update", rawdoc! { "documentKey": key(), "rawUpdateDescription": diff }),
        event("delete", rawdoc! { "documentKey": key() }),
        event("create", rawdoc! { "operationDescription": { "idIndex": {}, "capped": true } }),
        event("drop", rawdoc! {}),
        event(
            "rename",
            rawdoc! { "to": { "db": "shop", "coll": "x" }, "operationDescription": {} },
        ),
    ]
}

/// A document and two differences, for mutation.
pub fn delta_samples() -> Vec<Vec<u8>> {
    let document =
        rawdoc! { "_id": 1, "a": 1, "o": { "x": 1, "y": [1, 2, 3] }, "arr": [1, { "z": 2 }] };
    let diffs = [
        rawdoc! { "u": { "a": 2 }, "i": { "n": [1] } },
        rawdoc! { "d": { "a": false }, "so": { "u": { "x": 2 }, "sy": { "a": true, "l": 2 } } },
        rawdoc! { "sarr": { "a": true, "u0": "first", "s1": { "u": { "z": 3 } } } },
    ];
    let mut samples = Vec::new();
    for first in &diffs {
        for second in &diffs {
            samples.push([document.as_bytes(), first.as_bytes(), second.as_bytes()].concat());
        }
    }
    samples
}
