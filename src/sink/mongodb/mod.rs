//! A MongoDB as the target: commands, what their answers mean, and unique values that change hands.

mod atlas;
pub mod classify;
mod command;
mod create;
mod reply;
mod unique;

pub use atlas::AtlasSink;
pub(super) use unique::values_at;
