//! PostgreSQL as a target: each collection a table, each document a row.
//!
//! JSON first, columns declared and never inferred: a table has the document as `jsonb` and what it takes to know that
//! it is the same document, and beside them columns that a person has declared. What of it is there today are the
//! tables; rows are not written yet, and a configuration that asks for them is refused.
//!
//! The files in their order: `names` and `table` (what a collection is called, and what it consists of), `cell`,
//! `column`, `json` and `moment` (values), `ddl` (the statements that make the tables), `draft` (what could be
//! declared). The server itself is spoken to by [`crate::postgres`].

mod cell;
mod column;
pub mod ddl;
pub mod draft;
mod json;
mod moment;
mod names;
pub mod table;

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
