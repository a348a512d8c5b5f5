//! Telling others: alerts to a web hook, and a heartbeat to whoever waits for one.
//!
//! Both run beside replication and never hold it up: what the far end does not take waits in a bounded list,
//! is tried again for as long as the agent runs, and the oldest goes first when the list is full.

use std::{collections::VecDeque, time::Duration};

use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::Notify;

use super::{
    Handles,
    far_end::{NotTaken, get, post},
    monitor::vitals,
};
use crate::{
    config::HttpUrl,
    observe::{
        alerts::{Alert, Notice},
        health::proves_life,
        status::Status,
        words,
    },
    policy::backoff::OutageWait,
    runtime::{
        clock::{now_ms, rfc3339},
        shutdown::blocking,
    },
};

/// Most alerts that wait for a web hook that is away.
const WAITING_MAX: usize = 200;

/// Alerts that wait to be sent.
#[derive(Debug, Default)]
pub(super) struct AlertDelivery {
    waiting: Mutex<VecDeque<Value>>,
    filled: Notify,
}

impl AlertDelivery {
    pub fn push(&self, letter: Value) {
        let mut waiting = self.waiting.lock();
        if waiting.len() == WAITING_MAX {
            waiting.pop_front();
        }
        waiting.push_back(letter);
        self.filled.notify_one();
    }

    fn first(&self) -> Option<Value> {
        self.waiting.lock().front().cloned()
    }

    /// Takes `letter` out, if it is still there: a full list may have dropped it meanwhile.
    fn remove(&self, letter: &Value) {
        let mut waiting = self.waiting.lock();
        if waiting.front() == Some(letter) {
            waiting.pop_front();
        }
    }

    /// Waits for `soon`, and then until nothing waits.
    pub async fn is_empty_after(&self, soon: Duration) {
        tokio::time::sleep(soon).await;
        while self.first().is_some() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Sends what there is to `url`, one after the other, for ever.
    pub async fn deliver(&self, url: &HttpUrl) {
        let mut wait = OutageWait::new(Duration::from_secs(1), Duration::from_secs(60));
        let mut has_failed = false;
        loop {
            let filled = self.filled.notified();
            let Some(letter) = self.first() else {
                filled.await;
                continue;
            };
            let (to, body) = (url.clone(), letter.clone());
            match blocking(move || post(&to, &body)).await {
                Ok(_) => {
                    self.remove(&letter);
                    wait.reset();
                    if std::mem::take(&mut has_failed) {
                        tracing::info!(%url, "the web hook takes alerts again");
                    }
                }
                // The far end refuses this very alert. Kept, it would hold up all those behind it for ever.
                Err(NotTaken { is_final: true, error }) => {
                    tracing::warn!(%url, error, "the web hook refuses an alert, which is dropped");
                    self.remove(&letter);
                }
                Err(NotTaken { error, .. }) => {
                    if !std::mem::replace(&mut has_failed, true) {
                        tracing::warn!(%url, error, "the web hook does not take alerts, trying on");
                    }
                    tokio::time::sleep(wait.next_wait()).await;
                }
            }
        }
    }
}

/// What the web hook gets. `text` is for receivers that show a line and know nothing of us.
pub(super) fn letter(notice: &Notice, status: &Status) -> Value {
    let (event, alert, cleared) = match notice {
        Notice::Raised(alert) => ("raised", alert, None),
        Notice::Cleared(alert, at) => ("cleared", alert, rfc3339(*at)),
    };
    let Alert { name, ns, severity, message, runbook, since_ms, .. } = alert;
    let told = json!({
        "name": name, "ns": ns, "severity": severity, "message": message, "runbook": runbook,
    });
    let mut letter = of(event, &told, message);
    letter["since"] = json!(rfc3339(*since_ms));
    letter["clearedAt"] = json!(cleared);
    letter["phase"] = json!(status.state().phase);
    words::told_in(&mut letter);
    letter
}

/// The same for any event, with the time of now and no phase.
pub(super) fn of(event: &str, alert: &Value, message: &str) -> Value {
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    json!({
        "source": "outrigger",
        "version": env!("CARGO_PKG_VERSION"),
        "host": host,
        "event": event,
        "alert": alert,
        "since": rfc3339(now_ms()),
        "clearedAt": null,
        "phase": null,
        "text": format!("outrigger on {host}: {event}: {message}"),
    })
}

/// Asks for `url` from time to time, for as long as replication proves that it lives.
pub(super) async fn heartbeat(handles: Handles, url: HttpUrl, every: Duration) {
    let mut before = 0;
    let mut has_failed = false;
    loop {
        tokio::time::sleep(every).await;
        let metrics = &handles.status.metrics;
        let compared = {
            let state = handles.status.state();
            state.sync.as_ref().map_or(0, |sync| sync.report(now_ms()).documents_done)
        };
        let now = metrics.writes_applied.get() + metrics.documents_copied.get() + compared;
        let figures = {
            let handles = handles.clone();
            blocking(move || vitals(&handles)).await
        };
        // `abs_diff`, since the part of a comparison falls back to 0 when another run begins.
        if !proves_life(now.abs_diff(before), &figures) {
            continue;
        }
        let to = url.clone();
        match blocking(move || get(&to)).await {
            Ok(_) => {
                // What was done before a heartbeat that failed still counts for the next.
                before = now;
                has_failed = false;
            }
            Err(NotTaken { error, .. }) => {
                if !std::mem::replace(&mut has_failed, true) {
                    tracing::warn!(%url, error, "the heartbeat does not get through");
                }
            }
        }
    }
}
