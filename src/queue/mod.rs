//! The durable, deduplicating queue between the local database and Atlas.
//!
//! ```text
//! commit(ops, checkpoint) ─▶ pending ─▶ lease ─▶ ack ─▶ gone
//!   atomic, or in parts         ▲                │
//!                               ├── unavailable ─┤   ready again, no attempt lost
//!                               ├── retry ───────┤   ready at its time
//!                               │                └─▶ dead letter ─▶ retry / discard / a later success
//!                               └───────────────────────┘
//! ```
//!
//! One entry per document, in the order in which the documents first changed. What arrives for a
//! document that waits is merged into its entry ([`coalesce`](crate::policy::coalesce::coalesce)). In a capped collection
//! an insert begins the entry anew, in the place where it arrived: the order of documents is that of their inserts.
//!
//! An entry, and a dead letter, belongs to a collection and not to a name. What becomes of a name is told by the
//! barriers behind it: see `lines`, `turns` and `rename`.
//!
//! # Invariants
//!
//! Each has a test of its name.
//!
//! - **I1** A checkpoint is durable only together with, or after, the ops before it: it is in one sled batch, on one
//!   tree, with the last of them, and those that were committed in parts before are in that tree already.
//! - **I2** At most one pending op per document, between two barriers of its namespace. An entry that
//!   is leased is not changed: what arrives meanwhile is a new entry, which is not leased before the
//!   first is acked, and merged with it if it comes back.
//! - **I3** An ack removes exactly the version that was leased.
//! - **I4** An op leaves only as applied or as a dead letter. What is dropped behind it counts as applied, and its
//!   letter goes with its collection.
//! - **I5** Replaying the stream from any older checkpoint ends with the same documents in Atlas.
//! - **I6** Bytes carry a format version, and an unknown one is refused.
//!
//! # Assumptions
//!
//! - The oplog is the second copy of everything that is not durable here yet. So a commit has to be
//!   ordered, not synced: after a crash no checkpoint is there without the ops before it, and what is missing
//!   is read again. sled's background thread syncs about twice a second.
//! - A sled batch on one tree is atomic across a crash (sled 0.34.7, `Tree::apply_batch`: the log is
//!   cut before a batch that is not whole).
//! - The directory belongs to one process; sled's file lock sees to it.
//! - sled's tracker has open reports of corruption after a container was killed. So the queue is
//!   rebuildable: [`Queue::open_or_rebuild`] moves a broken one aside, and its missing checkpoint
//!   makes the agent compare everything.
//!
//! # Locks
//!
//! Two, the state and the ledger: see `ledger`. Nothing else of the program is locked while one of them is held, but for
//! what [`Queue::update_metas`] is given, which reads the queue alone.
//!
//! # Layout
//!
//! One tree. Keys are one byte of kind and a name, what is small and often written first:
//!
//! ```text
//! a<name>       meta             format, seal, checkpoint, state of the first copy
//! b<block>      tombstones       which entries of a block are gone
//! c<n>          padding keys     nothing: keeps the small ones out of the leaves of the large ones
//! d<seq>        dead letters     under the sequence number that the entry had
//! e<first seq>  home blocks      up to 64 entries that came one after the other
//! f<n>          moved blocks     up to 64 entries that were changed since
//! ```
//!
//! Numbers are big-endian, so that the order of bytes is the order of arrival. What sled takes for a value hardly
//! depends on its size up to some kilobytes, so entries are put together in `block`s. A changed entry is written to
//! another block, and its old place marked as gone, in the same batch; `edit` keeps what is dead below what lives.
//!
//! Which entry holds a document, and which block an entry, is known in memory only: some 20 bytes for each document, and
//! as many again for one that was changed while it waited. It is rebuilt by one scan when the queue is opened.
//!
//! What else was weighed: one value for each entry (13 µs of CPU for each that is written, where blocks take 2); a
//! second tree with random keys for the index (two thirds of sled's write rate); rewriting a block in place
//! (a hundred hot documents would rewrite a hundred blocks at each commit); files of our own beside sled, for which
//! commit and file would have to be synced in step. What would change our mind: many entries that are changed
//! while millions wait. Each such change reads a leaf of 256 KiB.

mod ack;
mod block;
mod blocks;
mod codec;
mod commit;
mod compact;
#[cfg(test)]
mod cut;
mod dead;
pub mod dead_letter;
mod door;
mod edit;
mod entry;
mod files;
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzz;
mod index;
mod layout;
mod lease;
mod ledger;
mod letters;
mod lines;
mod load;
mod look;
mod merge;
mod metas;
pub mod note;
mod open;
mod reader;
mod refuse;
mod rename;
mod reserve;
mod schedule;
mod state;
mod store;
pub mod transfer;
mod turns;

pub use codec::{CodecError, FORMAT_VERSION};
pub use commit::Committed;
pub use compact::free_disk;
#[cfg(test)]
pub(crate) use cut::after_a_crash;
pub use dead::{Choice, Retried};
pub use door::Queue;
pub use entry::{Ack, Batch, Entry, EntrySummary, Incoming, Outcome, QueueStats, Work, body_json};
pub use files::{QueueOptions, agent_in};
pub use ledger::{Front, NextDue};
pub use look::Oldest;
pub use open::Rebuilt;
pub use refuse::Refused;
pub use reserve::Reservation;
pub use turns::Proof;

use std::borrow::Cow;

use crate::model::{hint::Hint, namespace::Namespace};

/// Why the queue cannot do what it was asked to.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum QueueError {
    /// Another process, in practice a running agent, has the directory open.
    #[error("the queue in `{path}` is in use by another process{}", holder(*.agent))]
    InUse {
        path: String,
        /// The process id of the agent that has it, where that is one.
        agent: Option<u32>,
    },
    /// The directory cannot be made, read or written: permissions, a read-only or full disk.
    #[error("the queue in `{path}` cannot be opened")]
    Unusable { path: String, source: std::io::Error },
    /// The files do not hold what was written: a damaged disk, a crash that sled did not survive, or
    /// the queue of another version of Outrigger.
    #[error("the queue is damaged")]
    Damaged(#[from] CodecError),
    /// Its folder, or the whole host, was put back to an older state. What would be read once more from its position
    /// renames and drops what Atlas has since.
    #[error(
        "the queue is older than what Atlas was written from: it was put back to an older state"
    )]
    Outdated,
    /// sled found its own files damaged, or failed in a way that it does not explain.
    #[error("the queue's storage failed: {0}")]
    Storage(String),
    /// The disk failed while writing. Retrying a failed write proves nothing, so the queue refuses
    /// further ones until it is opened again.
    #[error("the queue's disk failed while writing")]
    Disk(#[source] std::io::Error),
    /// The files take disk that they do not need; opening the queue again gives it back.
    #[error("the queue's files take much more of the disk than it holds")]
    MostlyEmpty,
    /// A schema change that was given up cannot be repeated later; the comparison that was required
    /// when it was given up makes the documents equal.
    #[error("the dead letter {0} is a schema change, which is not repeated out of its order")]
    NotRetried(uuid::Uuid),
    /// What the worker would pass over, and the letter would stay as if nobody had asked.
    #[error("the dead letter {id} is of `{ns}`, which is not replicated any more")]
    LeftOut { id: uuid::Uuid, ns: Namespace },
    /// The export cannot be written where it is to go. The queue is as it was.
    #[error("the export of the queue cannot be written")]
    NotExported(#[source] std::io::Error),
    /// A file that is no export, or a queue that cannot take it.
    #[error("the export cannot be imported: {0}")]
    NotImported(String),
    /// Nothing of this id is in the queue or among the dead letters.
    #[error("no entry with the id {0}")]
    NotFound(uuid::Uuid),
}

fn holder(agent: Option<u32>) -> String {
    agent.map_or_else(String::new, |id| format!(": an agent runs with the process id {id}"))
}

impl QueueError {
    /// True when the files themselves are bad, so that moving them aside and rebuilding helps.
    pub fn is_damage(&self) -> bool {
        matches!(self, QueueError::Damaged(_) | QueueError::Storage(_) | QueueError::Outdated)
    }
}

impl Hint for QueueError {
    fn hint(&self) -> Option<Cow<'_, str>> {
        let hint = match self {
            Self::InUse { .. } => {
                "stop the other agent, or give this one a `queue.path` of its own; a running agent is \
                 asked over `admin.listen`"
            }
            Self::Unusable { .. } => "check owner and permissions of `queue.path`, and the disk",
            Self::NotRetried(_) => {
                "make the change in Atlas by hand if it is still wanted, then `outrigger dead discard ID`"
            }
            Self::LeftOut { .. } => {
                "choose the collection again under `[namespaces]`, and all of it is compared; or `outrigger dead discard ID`"
            }
            Self::NotExported(_) => {
                "make room where it is to go, or name a file elsewhere; the queue itself is as it was"
            }
            Self::NotImported(_) => {
                "nothing was imported; `outrigger queue export` writes what can be"
            }
            Self::NotFound(_) => "list what there is with `queue list` or `dead list`",
            Self::Damaged(_) | Self::Storage(_) | Self::Outdated => {
                "`outrigger run` moves it aside and rebuilds it; nothing is lost"
            }
            Self::MostlyEmpty => "restart the agent; nothing is lost",
            Self::Disk(_) => "make room or mend the disk, then restart the agent; nothing is lost",
        };
        Some(hint.into())
    }
}

impl From<sled::Error> for QueueError {
    fn from(error: sled::Error) -> Self {
        match error {
            sled::Error::Io(error) => QueueError::Disk(error),
            other => QueueError::Storage(other.to_string()),
        }
    }
}

#[cfg(test)]
mod tests;
