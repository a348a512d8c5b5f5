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
//! | driver | [`mongo`], [`postgres`] |
//! | ground | [`runtime`] |
//! | what is told | [`observe`] |
//! | what may be believed, and written | [`gate`] |
//! | decisions | [`policy`], [`schema`], [`config`] |
//! | words | [`model`] |
//!
//! Only `source`, `sink`, `mongo` and `postgres` know a driver (BSON types excepted), `sync` sees of each end what a
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
//! | [`gate`], [`gate::reading`], [`gate::tally`], the rest of [`gate::writing`] | what counts of the local side, how far it was read, what speaks against writing | nothing |
//! | read watermark and in-doubt writes, of [`policy`] | which differences are exact, which writes have no answer | nothing |
//! | what the [`worker`] remembers | traits of collections, entries that wait | nothing |
//! | [`schema::watch`], notes of one task in [`sync`] | what is to be looked at | nothing |
//!
//! Three are, since they are there for that: one of `sink/mongodb` is held while a command is sent, and alone while an empty
//! database is dropped; those of `mongo` let one task look, at renewed files or at each seed, for all; one of
//! `source/outbox` is held while rows are marked, or counted.
//! A panic in the queue poisons its two locks: what it left half done is not worked with. The others let go.
//!
//! # Words
//!
//! One word for one idea, in the code and in what is said of it. MongoDB's own words stand for data (change event, resume
//! token, cluster time, namespace, document key), the field's usual words for the rest. Where messages, keys or the
//! documentation for users call something otherwise, that word is named here as well; it is a promise to them and stays.
//!
//! | word | what it stands for |
//! | --- | --- |
//! | *local*, *Atlas* | the two databases, wherever they are named to people |
//! | *source*, *target* | the same by their part: what is read from, and what is to become equal to it. A restore turns them round. The traits are [`Source`](source::Source) and [`Sink`](sink::Sink) |
//! | *checkpoint* | where reading goes on: a resume token, with the time and whose it is |
//! | *position* | how far the stream was read, and what that proves ([`policy::position`]) |
//! | *entry* | what waits in the queue: a write to one document, or a *barrier*, a change of its collection |
//! | *pending*, *lease*, *ack*, *nack* | an entry waits; a batch of entries is taken by a writer; is done with, since Atlas has it or it is a *dead letter*; is to be tried again, and pending once more |
//! | *hold*, *release* | what waits for a name, or for all names, does not go; goes again |
//! | *capped*, *kept in order* | entries that go in the order of the stream, see the queue's `schedule` |
//! | *tombstones* | which entries of a block of the queue are gone. *Padding keys* part small values from large ones in sled; *compacted* files hold what lives and nothing else |
//! | *writer* | one of the worker's loops that write batches side by side (`worker.lanes`) |
//! | *breaker* | whether Atlas answers; its *admission* is the answer to whoever wants to write |
//! | *throttle* | to wait so that a rate is kept ([`policy::limiter`]) |
//! | *refresh* | an entry that says nothing but "read the document when it is its turn": the way out where a merge is *inexact* |
//! | *inexact* | of a delta: what it makes of a document is not provably what the local database made of it ([`model::delta`]) |
//! | *read watermark* | up to when a document may be in Atlas already; an older delta is not sent ([`policy::read_watermark`]) |
//! | *in-doubt write* | one without an answer, which may still come true ([`policy::in_doubt`]) |
//! | *conflicting write*, *current owner* | a document that does not find its place; the one in Atlas that has its unique value. It may be made to give way: *evicted* |
//! | *UUID mismatch* | the collection that has a name now is not the one that an entry was queued for |
//! | *gate*, *proof*, *epoch*, *permit* | what the local database says counts only from a proof that it is the right one, with the same past, until the next event that could have put another in its place. A permit holds as long as its epoch ([`gate`]) |
//! | *anchor* | the youngest entry of the oplog that is known to have been there; without it the past is another |
//! | *suspect* | of a local database: something says that it is another one, and no proof has cleared it yet |
//! | *unproven* | of a name: what was written under it was read before a rename that the stream had still to tell of |
//! | *lease*, *heartbeat*, *release*, *fenced* | the right of one agent to write to Atlas; how it is renewed; given up in order; run out ([`gate::lease`]). Its *lease record* stands in Atlas, and has a *lease id*, drawn anew when the target is not as it was left, and a *lease holder*. To people it is the *mark of ownership* |
//! | *kept apart* | of a collection that the patterns choose and that is not replicated, with the reason |
//! | *side effects* | what a batch of events asks for beside what it puts into the queue |
//! | *full sync* | copies and compares; its *runs* are *mandatory* (the agent owes them, and nobody cancels them) or *on demand* (of a person or the clock) |
//! | *verify*, *restore* | the comparison that changes nothing; the copy from Atlas into an empty local database |
//! | *tally*, *counter* | how many transactions a target has confirmed, counted on both ends; a number of its own for each that goes side by side ([`gate::tally`]). To people a target that has less was *put back* |
//! | *misfit* | a value of another type than its declared column has ([`observe::misfits`]) |
//! | *step*, *apply* | one difference of options or indexes, and its removal on the target. The *keeper* does that beside the documents |
//! | *crash point* | where a test may end the process |
//! | *alert delivery* | what brings alerts to the web hook. An *outbox* is another thing: a table of a database that changes are read from |
//! | *merge*, *renew* | of an outbox: fields that are set on whatever there is; a document is made once more of all that its rows say |
//! | *turn*, *standby* | of an outbox: the right to read it, which one agent has, and with it the right to write; an agent that waits for it |
//! | *fence* | of PostgreSQL: each transaction asks for this agent's lease before it writes |
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
//! Four seams, each a trait with a MongoDB as its maker and, but for streams of MongoDB's kind, a PostgreSQL as another; none of them names a
//! driver:
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
//! An agent asks two more, while it runs:
//!
//! | who | tells |
//! | --- | --- |
//! | [`Peer`](side::Peer), of either end | its version, whether it answers, how much went over the line |
//! | [`Journal`](source::Journal), of a source | what was written last, so that all before it can be waited for, and how far back it can be read |
//!
//! All six in place, a new kind is put in at the wiring's edge and nowhere else: a word of `target.kind` or `source.kind` with its
//! address in [`config`]; a variant of [`TargetEnd`](agent::TargetEnd) and of [`AnySink`](sink::AnySink), or of the agent's `SourceEnd`
//! and of [`AnySource`](source::AnySource) with its stream and pages; a file in `cli/check`, which is the one command that asks what
//! only that kind knows; and a test in `tests/operating/every_kind.rs`, which wants of it all that an agent has.
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
pub mod postgres;
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
