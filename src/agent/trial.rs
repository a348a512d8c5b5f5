//! A test of whatever would be told to somebody: each delivery that is configured is made once, and says how it ended.

use serde::Serialize;
use serde_json::json;

use super::{
    alert_delivery,
    far_end::{get, post},
};
use crate::config::Alerts;

/// How one delivery ended.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Delivery {
    /// The key that configures it.
    pub key: &'static str,
    /// Scheme and host: the rest may hold a token.
    pub to: String,
    pub taken: bool,
    /// What the far end answered, or why it did not.
    pub answer: String,
}

/// Makes all that are configured. Waits for the far ends, so call it off the async threads.
pub fn try_deliveries(alerts: &Alerts) -> Vec<Delivery> {
    let mut made = Vec::new();
    let mut note = |key, to: String, sent: Result<u16, super::far_end::NotTaken>| {
        let (taken, answer) = match sent {
            Ok(status) => (true, format!("it answers {status}")),
            Err(refused) => (false, refused.error),
        };
        made.push(Delivery { key, to, taken, answer });
    };
    if let Some(url) = &alerts.webhook {
        let message = "a test of `outrigger alerts test`: nothing is wrong";
        let alert = json!({ "name": "test", "ns": null, "severity": "warning", "message": message, "runbook": null });
        note(
            "alerts.webhook",
            url.to_string(),
            post(url, &alert_delivery::of("test", &alert, message)),
        );
    }
    if let Some(url) = &alerts.heartbeat_url {
        note("alerts.heartbeat_url", url.to_string(), get(url));
    }
    made
}
