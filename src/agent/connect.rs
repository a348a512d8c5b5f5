//! From the configuration to the parts' own options.

use std::{sync::Arc, time::Duration};

use super::AgentError;
use crate::{
    config::{Config, ConfigError, SourceKind, TargetKind},
    gate::Gate,
    mongo::{Connect, Mongo, MongoError},
    policy::{backoff::RetrySchedule, breaker::BreakerPolicy, limiter::Limiter},
    queue::QueueOptions,
    side::Side,
    sync::Sides,
    worker::WorkerOptions,
};

/// A client for the local database.
///
/// # Errors
/// When there is no usable connection string.
pub async fn connect_local(config: &Config) -> Result<Mongo, AgentError> {
    connect_local_by(config, None).await
}

/// As [`connect_local`], for an agent: nothing is believed but what `gate` has proven.
pub(super) async fn connect_local_by(
    config: &Config,
    gate: Option<Arc<Gate>>,
) -> Result<Mongo, AgentError> {
    let connect = Connect {
        end: "local",
        timeout: config.local.timeout,
        compressors: Vec::new(),
        select_for: select_for(5, config.local.timeout),
        gate,
    };
    Mongo::connect(config.local_uri()?, &connect)
        .await
        .map_err(|error| unusable(error, "local.uri"))
}

/// The longest wait for a server that takes the command. Less than the wait for an answer: the driver only tells why it
/// found no server when this one ends, and a caller whose own wait ended first would learn nothing.
fn select_for(seconds: u64, timeout: Duration) -> Duration {
    Duration::from_secs(seconds).min(timeout.mul_f64(0.8))
}

/// A client for Atlas.
///
/// # Errors
/// When there is no usable connection string, or it would go without TLS against the configuration.
pub async fn connect_atlas(config: &Config) -> Result<Mongo, AgentError> {
    let connect = Connect {
        end: "atlas",
        timeout: config.atlas.timeout,
        compressors: config.atlas.compressors.clone(),
        // Short: waiting is the breaker's business, and an outage should show soon.
        select_for: select_for(3, config.atlas.timeout),
        gate: None,
    };
    Mongo::connect(config.atlas_uri()?, &connect)
        .await
        .map_err(|error| unusable(error, "atlas.uri"))
}

/// A connection string that no client can be made of, or a file that it names, is a matter of the configuration.
fn unusable(error: MongoError, key: &'static str) -> AgentError {
    ConfigError::invalid(key, error.to_string()).into()
}

/// Says in the log what of the connection strings does nothing.
pub(super) fn tell_of_options(config: &Config, is_own_sink: bool) -> Result<(), ConfigError> {
    let mut uris = Vec::new();
    if config.source.kind == SourceKind::Mongodb {
        uris.push(("local", config.local_uri()?));
    }
    if !is_own_sink && config.target.kind == TargetKind::Atlas {
        uris.push(("atlas", config.atlas_uri()?));
    }
    for (end, uri) in uris {
        for reason in uri.ignored() {
            tracing::warn!(end, reason, "an option of the connection string is left out");
        }
    }
    Ok(())
}

/// Both ends, to be read within the configured bounds.
pub fn sides(config: &Config, local: Arc<dyn Side>, atlas: Arc<dyn Side>) -> Sides {
    let sync = &config.sync;
    Sides::new(local, atlas, sync.parallel, sync.max_docs_per_second)
}

/// How the configured queue is opened.
pub fn queue_options(config: &Config) -> QueueOptions {
    QueueOptions { persist: config.queue.persist, ..QueueOptions::new(&config.queue.path) }
}

pub(super) fn limiter(config: &Config) -> Limiter {
    Limiter::new(config.atlas.max_ops_per_second, config.atlas.max_bytes_per_second)
}

pub(super) fn worker_options(config: &Config) -> WorkerOptions {
    let worker = &config.worker;
    WorkerOptions {
        batch_size: worker.batch_size,
        interval: worker.interval,
        retries: RetrySchedule::new(worker.retry_delays.clone(), worker.max_retries),
        update_mode: worker.update_mode,
        atlas_timeout: config.atlas.timeout,
    }
}

pub(super) fn breaker_policy(config: &Config) -> BreakerPolicy {
    BreakerPolicy {
        failure_threshold: config.breaker.failure_threshold,
        open_for: config.breaker.open_for,
        open_for_max: config.breaker.open_for_max,
    }
}
