//! Decisions without a clock, I/O or async: each is told the time and what happened, and answers. The loops that
//! ask them are in the tasks.

pub mod anew;
pub mod backlog;
pub mod backoff;
pub mod breaker;
pub mod coalesce;
pub mod copy_mode;
pub mod impasse;
pub mod in_doubt;
pub mod insert_mode;
pub mod limiter;
pub mod line;
pub mod majority;
pub mod outlook;
pub mod overlap;
pub mod position;
pub mod read_watermark;
