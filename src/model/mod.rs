//! The words that everything else is said in: what is read, what waits, what is written. Plain data and its
//! forms; nothing here knows a server, a disk or a clock.

pub mod checkpoint;
pub mod delta;
pub mod document_key;
pub mod event;
pub mod foreign;
pub mod hint;
pub mod namespace;
pub mod raw;
pub mod write_op;
