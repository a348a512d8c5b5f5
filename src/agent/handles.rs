//! What the agent is looked at and asked by from outside.

use std::sync::Arc;

use tokio::sync::Notify;

use super::Monitor;
use crate::{
    config::Config,
    gate::{reading::Reading, writing::Writing},
    mongo::Mongo,
    observe::status::Status,
    queue::Queue,
    schema::watch::SchemaWatch,
};

/// The parts of a running agent, shared with it.
#[derive(Clone)]
pub struct Handles {
    pub status: Arc<Status>,
    /// How far the stream was read.
    pub reading: Arc<Reading>,
    /// Whether anything may be written to Atlas.
    pub writing: Arc<Writing>,
    pub queue: Arc<Queue>,
    pub local: Mongo,
    pub atlas: Mongo,
    pub config: Arc<Config>,
    /// Wakes the reconciler.
    pub sync_wanted: Arc<Notify>,
    /// Whose options and indexes are to be looked at.
    pub watch: Arc<SchemaWatch>,
    pub monitor: Arc<Monitor>,
    /// The name of the local replica set.
    pub local_set: Arc<str>,
}
