//! PostgreSQL as a target: each collection a table, each document a row.
//!
//! JSON first, columns declared and never inferred: a table has the document as `jsonb` and what it takes to know that
//! it is the same document, and beside them columns that a person has declared. What of it is there today are the
//! tables; rows are not written yet, and a configuration that asks for them is refused.
//!
//! The files in their order: `names` and `table` (what a collection is called, and what it consists of), `cell`,
//! `column`, `json` and `moment` (values), `ddl` (the statements that make the tables), `draft` (what could be
//! declared), `connect`, `tls` and `class` (the server, and what its errors mean).

mod cell;
mod class;
mod column;
pub mod connect;
pub mod ddl;
pub mod draft;
mod json;
mod moment;
mod names;
pub mod table;
mod tls;
