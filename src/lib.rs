//! Outrigger keeps a second, always usable copy of a local MongoDB in MongoDB Atlas.
//!
//! ```text
//! local MongoDB ──change stream──▶ source     raw batches → ChangeEvent
//!                                    │ tailer   gathers a batch, turns events into WriteOps
//!                                    ▼
//!                      queue.commit(ops, checkpoint)      one atomic sled batch; coalescing inside
//!                                    │
//!                      queue.lease(n) ──▶ Batch           at most one op per document: a batch commutes
//!                                    │ worker   waits for breaker.permit(now)
//!                                    ▼
//!                      sink.write(writes) ──▶ outcomes    raw insert / update / delete commands
//!                                    │
//!                      queue.settle(outcomes)             applied → gone · retry → later · rejected → dead letter
//! ```
//!
//! The first copy and the comparison ([`sync`]) are a second producer in front of the queue, never a
//! second writer beside the worker; the one exception is the copy into an empty collection.
//!
//! # Layers
//!
//! A module uses only those in the rows below its own. `tests/tidy.rs` holds this table as data and
//! keeps it.
//!
//! | layer | modules |
//! | --- | --- |
//! | face | [`cli`], [`commands`] |
//! | wiring | [`agent`], [`admin`], [`logging`] |
//! | tasks | [`tailer`], [`worker`], [`sync`] |
//! | stores of the tasks | [`sync_state`], [`schema_watch`], [`unproven`] |
//! | seams | [`source`], [`sink`], [`queue`] (they never name each other), [`dead_letter`] |
//! | driver | [`mongo`] |
//! | policies, pure | [`coalesce`], [`delta`], [`backoff`], [`breaker`], [`insert_mode`], [`horizon`], [`impasse`], [`limiter`], [`late`], [`schema`], [`health`], [`alerts`], [`history`], [`past`], [`overlap`] |
//! | words | [`event`], [`write_op`], [`namespace`], [`document_key`], [`checkpoint`], [`raw`], [`config`], [`status`], [`metrics`], [`recent`], [`report`], [`lease`], [`gate`], [`foreign`], [`shutdown`], [`crash`], [`progress`], [`position`], [`majority`], [`repaired`], [`trust`], [`files`] |
//!
//! Only `source`, `sink`, `sync` and `mongo` know the driver (BSON types excepted), only `queue` knows
//! sled and bincode, only `admin` knows the web framework, only `backoff` knows the crate of that name.
//!
//! # Where to read on
//!
//! [`queue`] for the contract that everything rests on, [`delta`] for what makes a merge exact,
//! [`worker`] and its `hydrate` for what makes a write exact, [`agent`] for how it is put together.

#![cfg_attr(not(test), warn(clippy::unwrap_used))]

pub mod admin;
pub mod agent;
pub mod alerts;
pub mod backoff;
pub mod breaker;
pub mod checkpoint;
pub mod cli;
pub mod coalesce;
pub mod commands;
pub mod config;
pub mod crash;
pub mod dead_letter;
pub mod delta;
pub mod document_key;
pub mod event;
pub mod files;

pub mod foreign;
#[cfg(feature = "fuzzing")]
pub mod fuzz;
pub mod gate;
pub mod health;
pub mod history;
pub mod horizon;
pub mod impasse;
pub mod insert_mode;
pub mod late;
pub mod lease;
pub mod limiter;
pub mod logging;
pub mod majority;
pub mod metrics;
pub mod mongo;
pub mod namespace;
pub mod overlap;
pub mod past;
pub mod position;
pub mod progress;
pub mod queue;
pub mod raw;
pub mod recent;
pub mod repaired;
pub mod report;
pub mod schema;
pub mod schema_watch;
pub mod shutdown;
pub mod sink;
pub mod source;
pub mod status;
pub mod sync;
pub mod sync_state;
pub mod tailer;
pub mod trust;
pub mod unproven;
pub mod worker;
pub mod write_op;
