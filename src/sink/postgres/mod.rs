//! PostgreSQL as a target: each collection a table, each document a row.
//!
//! JSON first, columns declared and never inferred: a table has the document as `jsonb` and what it takes to know that
//! it is the same document, and beside them columns that a person has declared. No row is ever lost: what `jsonb` cannot
//! hold is kept beside it, and told.
//!
//! `outrigger schema` makes the tables before, and [`PostgresSink`] when the first document comes. What is there is looked
//! into by [`PostgresSide`](crate::side::PostgresSide).
//!
//! The files in their order: `names` and `table` (what a collection is called, and what it consists of), `cell`,
//! `column`, `json` and `moment` (values), `key`, `unkey` and `row` (a document as its row), `ddl` (the statements that
//! make the tables), `fence` (whose transactions count), `statement`, `wire`, `batch` and `copy` (those that write rows,
//! and one transaction of them), `change` (tables that come, go, and are renamed), `writer` (the sink), `draft` (what
//! could be declared), `jsonb`, `print` and `read` (what stands there, told by hashes). The server itself is spoken to by
//! [`crate::postgres`].

mod batch;
mod cell;
pub mod change;
mod column;
mod copy;
pub mod ddl;
pub mod draft;
pub mod fence;
mod items;
mod json;
mod jsonb;
mod key;
mod moment;
pub mod names;
pub mod obstacle;
pub mod print;
pub mod read;
pub mod row;
mod statement;
pub mod table;
pub mod unkey;
mod wire;
mod writer;

pub use writer::PostgresSink;

pub use crate::postgres::{class, connect};

use crate::{
    postgres::{class::Class, connect::Failed},
    sink::SinkError,
};

impl From<Failed> for SinkError {
    fn from(failed: Failed) -> Self {
        match failed.class {
            Class::Unavailable | Class::Conflict if failed.may_be_done => {
                SinkError::Unanswered(failed.problem)
            }
            Class::Unavailable | Class::Conflict => SinkError::Unavailable(failed.problem),
            Class::Denied => SinkError::Denied(failed.problem),
            Class::Rejected => SinkError::Rejected(failed.problem),
        }
    }
}
