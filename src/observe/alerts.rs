//! Alerts: each condition is raised once when it begins and cleared once when it is over. Pure: the time
//! and what holds now are passed in.
//!
//! ```text
//!             holds                          gone for a while
//!   (nothing) ─────▶ raised, told once ──────────────────────▶ cleared, told once
//!                      ▲          │ gone
//!                      └── holds ─┘ (nothing is told)
//! ```
//!
//! What comes and goes around its threshold is one alert, not a hundred.

use std::time::Duration;

use serde::Serialize;

use crate::observe::{
    health::{Condition, Severity},
    runbook::Runbook,
};

/// How long a condition must be gone before its alert is cleared.
pub const CLEARED_AFTER: Duration = Duration::from_secs(15);

/// An alert that was raised and is not cleared.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Alert {
    pub name: &'static str,
    /// The collection that it is about, where it is about one.
    pub ns: Option<String>,
    pub severity: Severity,
    pub message: String,
    /// The address of the page that says what to do.
    pub runbook: String,
    /// When it was raised, milliseconds since 1970.
    pub since_ms: u64,
    /// When its condition was last seen to hold.
    #[serde(skip)]
    seen_ms: u64,
}

/// What is to be told, once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    Raised(Alert),
    /// With the time at which it was cleared, milliseconds since 1970.
    Cleared(Alert, u64),
}

/// The alerts that are raised now.
#[derive(Debug, Default)]
pub struct RaisedAlerts {
    runbook: Runbook,
    raised: Vec<Alert>,
}

impl RaisedAlerts {
    /// Nothing is raised yet; what will be has its page in `runbook`.
    pub fn of(runbook: Runbook) -> Self {
        Self { runbook, raised: Vec::new() }
    }

    /// Takes what holds at `now_ms`; returns what is to be told.
    pub fn update(&mut self, conditions: &[Condition], now_ms: u64) -> Vec<Notice> {
        let mut notices = Vec::new();
        for condition in conditions {
            let Condition { name, ns, severity, message } = condition.clone();
            if let Some(alert) =
                self.raised.iter_mut().find(|alert| alert.name == name && alert.ns == ns)
            {
                (alert.message, alert.severity, alert.seen_ms) = (message, severity, now_ms);
                continue;
            }
            let runbook = self.runbook.address(name);
            let (since_ms, seen_ms) = (now_ms, now_ms);
            let alert = Alert { name, ns, severity, message, runbook, since_ms, seen_ms };
            self.raised.push(alert.clone());
            notices.push(Notice::Raised(alert));
        }
        let cleared_after = CLEARED_AFTER.as_millis() as u64;
        self.raised.retain(|alert| {
            // A clock that was set back must not keep an alert for as long as it was wrong.
            let stays = alert.seen_ms.abs_diff(now_ms) < cleared_after;
            if !stays {
                notices.push(Notice::Cleared(alert.clone(), now_ms));
            }
            stays
        });
        notices
    }

    /// Those that are raised, the oldest first.
    pub fn raised(&self) -> &[Alert] {
        &self.raised
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lag(message: &str) -> Condition {
        Condition {
            name: "lag",
            ns: None,
            severity: Severity::Critical,
            message: message.to_owned(),
        }
    }

    fn told(notices: &[Notice]) -> Vec<(&'static str, &str)> {
        notices
            .iter()
            .map(|notice| match notice {
                Notice::Raised(alert) => ("raised", alert.message.as_str()),
                Notice::Cleared(alert, _) => ("cleared", alert.message.as_str()),
            })
            .collect()
    }

    #[test]
    fn an_alert_is_raised_once_and_cleared_once() {
        let mut alerts = RaisedAlerts::default();

        assert_eq!(told(&alerts.update(&[lag("31s")], 1_000)), [("raised", "31s")]);
        assert_eq!(told(&alerts.update(&[lag("40s")], 2_000)), []);
        assert_eq!(alerts.raised()[0].message, "40s", "it tells how it is now");
        assert_eq!(told(&alerts.update(&[], 3_000)), []);
        assert_eq!(told(&alerts.update(&[], 17_000)), [("cleared", "40s")]);
        assert_eq!(told(&alerts.update(&[], 18_000)), []);
    }

    #[test]
    fn what_comes_and_goes_around_its_threshold_is_one_alert() {
        let mut alerts = RaisedAlerts::default();

        let notices: Vec<_> = (0..100_u64)
            .flat_map(|n| {
                let holds = if n % 3 == 0 { vec![lag("31s")] } else { vec![] };
                alerts.update(&holds, n * 2_000)
            })
            .collect();

        assert_eq!(told(&notices), [("raised", "31s")]);
    }

    #[test]
    fn two_collections_are_two_alerts() {
        let of = |ns: &str| Condition { ns: Some(ns.to_owned()), ..lag(ns) };
        let mut alerts = RaisedAlerts::default();
        alerts.update(&[of("a.b"), of("a.c")], 0);

        assert_eq!(told(&alerts.update(&[of("a.c")], 20_000)), [("cleared", "a.b")]);
    }
}
