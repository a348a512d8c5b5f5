//! Outrigger keeps a second, always usable copy of a local MongoDB in MongoDB Atlas.
//!
//! ```text
//! local MongoDB ──change stream──▶ source     raw batches → ChangeEvent
//!                                    │ tailer   gathers a batch, turns events into WriteOps
//!                                    ▼
//!                      queue.commit(ops, checkpoint)      atomic sled batches, the checkpoint in the last; coalescing inside
//!                                    │
//!                      queue.lease(n) ──▶ Batch           at most one op per document: a batch commutes
//!                                    │ worker   waits for breaker.permit(now)
//!                                    ▼
//!                      sink.write(writes) ──▶ outcomes    raw insert / update / delete commands
//!                                    │
//!                      queue.ack(outcomes)                applied → gone · retry → later · rejected → dead letter
//! ```
//!
//! The comparison ([`sync`]) is a second producer in front of the queue, never a second writer of documents beside the
//! worker; the one exception is the copy into an empty collection. What else `sync` does in Atlas is no document's:
//! it makes collections before they are copied, builds indexes, and keeps the lease. `tests/tidy.rs` has the
//! list of who may write there.
//!
//! # Layers
//!
//! A folder uses only those in the rows below its own, and no folder is used by one that it uses.
//! `tests/tidy.rs` holds this table as data and keeps it.
//!
//! | layer | folders |
//! | --- | --- |
//! | face | [`cli`] |
//! | what asks the agent | [`admin`] |
//! | wiring | [`agent`] |
//! | tasks | [`tailer`], [`worker`], [`sync`] |
//! | notes of the tasks to one another | [`sync/state`](sync::state), [`sync/unproven`](sync::unproven), [`schema/watch`](schema::watch) |
//! | both sides, looked into | [`side`] |
//! | seams and store | [`source`], [`sink`], [`queue`] (they never name each other) |
//! | driver | [`mongo`] |
//! | ground | [`runtime`] |
//! | what is told | [`observe`] |
//! | what may be believed, and written | [`gate`] |
//! | decisions | [`policy`], [`schema`], [`config`] |
//! | words | [`model`] |
//!
//! Only `source`, `sink` and `mongo` know the driver (BSON types excepted), `sync` sees of each end what a
//! [`Side`](side::Side) tells, only `queue` knows
//! sled and bincode, only `admin` knows the web framework, only `policy/backoff` knows the crate of that name.
//!
//! # Locks
//!
//! None of these is held over an `await`. Outermost first:
//!
//! | lock | guards | while it is held |
//! | --- | --- | --- |
//! | the breaker, of [`gate::writing`] | whether Atlas answers | the worker tells `status` what a batch has changed |
//! | [`observe::status`] | what is shown | the rows below may be asked |
//! | the [`queue`]'s state | what is in its store, and where | its disk is read and written, which may take seconds: taken within [`runtime::shutdown::blocking`] |
//! | the [`queue`]'s ledger | its numbers, leases and holds | nothing |
//! | [`gate`], [`gate::reading`], the rest of [`gate::writing`] | what counts of the local side, how far it was read, what speaks against writing | nothing |
//! | read watermark and in-doubt writes, of [`policy`] | which differences are exact, which writes have no answer | nothing |
//! | what the [`worker`] remembers | traits of collections, entries that wait | nothing |
//! | [`schema::watch`], notes of one task in [`sync`] | what is to be looked at | nothing |
//!
//! Two are, since they are there for that: one of `sink/mongodb` is held while a command is sent, and alone while an empty
//! database is dropped; those of `mongo` let one task look, at renewed files or at each seed, for all.
//! A panic in the queue poisons its two locks: what it left half done is not worked with. The others let go.
//!
//! # In a program of one's own
//!
//! ```no_run
//! use outrigger::{Agent, Config, admin};
//!
//! # async fn replicate(config: Config) -> Result<(), outrigger::AgentError> {
//! let agent = Agent::builder(config).serve(admin::start).prepare().await?;
//! let handles = agent.handles();
//! agent.run(async { /* until this ends */ }).await
//! # }
//! ```
//!
//! With [`Builder::sink`](agent::Builder::sink) its target is a [`Sink`](sink::Sink) of that program and no Atlas:
//! `examples/stdout_sink.rs` is a whole one.
//!
//! # A target, or a source, of one's own
//!
//! Four seams, each a trait with a MongoDB as its maker, and none of them names a driver:
//!
//! | who | must | and may |
//! | --- | --- | --- |
//! | [`Sink`](sink::Sink) | write documents, and say how each write ended | [`SchemaSink`](sink::SchemaSink): keep collections, in the order of the stream |
//! | [`Side`](side::Side) | list, count, and show documents in the order of their keys, for copies, comparisons and counts | sums, options and indexes, [lease records](side::records::LeaseRecords), notes of a restore |
//! | [`Source`](source::Source) | hand out changes from a position on, and documents by key | [`SchemaSource`](source::SchemaSource): tell of options, indexes and names |
//! | [`EventStream`](source::EventStream) | the changes | keep each until it is [confirmed](source::EventStream::confirm) |
//!
//! The positions of a source are numbers that only it understands; a queue holds those of [one kind](model::checkpoint::PositionKind).
//!
//! The agent leaves the process alone: a queue that failed is an error that [`Agent::run`] returns, and to begin
//! the process anew is what the program does ([`cli`]).
//!
//! # Where to read on
//!
//! [`queue`] for the contract that everything rests on, [`model::delta`] for what makes a merge exact,
//! [`worker`] and its `hydrate` for what makes a write exact, [`agent`] for how it is put together.

#![cfg_attr(not(test), warn(clippy::unwrap_used))]

pub mod admin;
pub mod agent;
pub mod cli;
pub mod config;
#[cfg(feature = "fuzzing")]
pub mod fuzz;
pub mod gate;
pub mod model;
pub mod mongo;
pub mod observe;
pub mod policy;
pub mod queue;
pub mod runtime;
pub mod schema;
pub mod side;
pub mod sink;
pub mod source;
pub mod sync;
pub mod tailer;
pub mod worker;

pub use agent::{Agent, AgentError, Handles};
pub use config::Config;
pub use runtime::shutdown::Stop;
