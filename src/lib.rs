pub mod raw; pub mod namespace; pub mod document_key; pub mod checkpoint; pub mod write_op; pub mod delta; pub mod coalesce; pub mod event; pub mod queue; pub mod dead_letter;
pub mod config; pub mod backoff; pub mod breaker; pub mod insert_mode; pub mod mongo;
