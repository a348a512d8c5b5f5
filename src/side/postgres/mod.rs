//! PostgreSQL as the target's side.

mod records;

pub use records::PostgresRecords;
