//! PostgreSQL's wire: connections that are kept, TLS, and what its errors mean. What is said over it is the business
//! of those who use it: the [target](crate::sink::postgres) and the source.

pub mod class;
pub mod connect;
pub mod listen;
mod tls;
