//! A MongoDB as the source: its change stream, its errors, and whether it is fit to be one.

mod change_stream;
mod error_class;
mod fitness;

pub use change_stream::{ChangeStream, ChangeStreamSource, PIPELINE_VERSION};
pub use fitness::{
    SourceInfo, evidence, inspect, is_router, last_entry, last_write, oplog_start, refuse_router,
    source_id,
};
