//! What the agent is looked at and asked by from outside.

use std::sync::Arc;

use tokio::sync::Notify;

use super::{Monitor, ends::End};
use crate::{
    config::Config,
    gate::{reading::Reading, writing::Writing},
    observe::status::Status,
    queue::Queue,
    schema::watch::SchemaWatch,
    source::Journal,
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
    pub local: End,
    pub atlas: End,
    /// What the local database tells of its past.
    pub journal: Arc<dyn Journal>,
    pub config: Arc<Config>,
    /// Wakes the reconciler.
    pub sync_wanted: Arc<Notify>,
    /// Whose options and indexes are to be looked at.
    pub watch: Arc<SchemaWatch>,
    pub monitor: Arc<Monitor>,
    /// The name of the local replica set.
    pub local_set: Arc<str>,
}
