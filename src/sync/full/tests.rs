//! Whole runs between two databases in memory, in which hours pass in milliseconds.

mod bounded;
mod compared;
mod copied;
mod interrupted;
mod replaced;
mod scene;
