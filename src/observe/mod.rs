//! What a person, a monitor or a script is told: the status, the metrics, the alerts, the log.

pub mod alerts;
pub mod health;
pub mod logging;
pub mod marks;
pub mod metrics;
pub mod misfits;
pub mod process;
pub mod progress;
pub mod recent;
pub mod repaired;
pub mod report;
pub mod runbook;
pub mod status;
pub mod trend;
pub mod verdict;
pub mod words;
