//! A table of events as a source: the application writes a row with each change, in the same transaction, and its
//! documents are made of them.
//!
//! The files in their order: `json` (values), `route` (what a row asks for), `table` (what makes the table).

pub mod json;
pub mod route;
pub mod table;
