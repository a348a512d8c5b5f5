//! The two sides, as whoever copies, compares, verifies, restores and counts sees them.
//!
//! [`Side`] is the seam: what there is, how much of it, and its documents in the order of their keys, by key, or as sums.
//! The source's side and the target's are asked the same, and neither is asked what kind of database it is. What only
//! one can answer that keeps options and indexes as a MongoDB does is [`SchemaSide`], and [`Notes`] are for one that may
//! be restored into. [`MongoSide`] and [`PostgresSide`] are its makers; [`Blind`] is there for a target that nobody can
//! look into.
//!
//! - **Both sides have one order.** A comparison walks the source's side page by page, and asks the target's for what is
//!   between two keys that it has seen there. So between any two keys a target must have what the source has between
//!   them: a target that keeps keys in an encoding of its own needs one that sorts as the source does. Where it has none,
//!   [it says so](Side::keeps_order_of), and each side is asked for the keys of the other.
//! - **Documents are lent.** A [`Page`] keeps a reply as it came, and whoever writes what is in it borrows it.
//! - **A copy may be less than a document**: a target that keeps only a hash of each hands out `{_id, hash}`, and tells
//!   whether that [is the copy](Side::is_copy) of an original. It cannot be restored from.
//! - **Nothing is waited for here.** A side that is away is an error, and patience is that of whoever asks.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    time::Duration,
};

use bson::{RawDocument, RawDocumentBuf, oid::ObjectId};
use futures_util::future::{BoxFuture, ready};

use crate::{
    gate::Permit,
    model::{
        checkpoint::ClusterTime,
        document_key::DocumentKey,
        namespace::{Namespace, NamespaceFilter},
        raw::Malformed,
    },
    schema::Description,
    sink::SinkError,
    source::SourceError,
};

mod blind;
#[cfg(test)]
pub(crate) mod fake;
#[cfg(test)]
pub(crate) mod fake_database;
#[cfg(test)]
pub(crate) mod fake_records;
#[cfg(test)]
pub(crate) mod fake_schema;
mod listing;
pub mod mongodb;
mod outbox;
mod peer;
pub mod postgres;
pub mod records;
mod walk;

use records::LeaseRecords;

pub use self::mongodb::MongoSide;
pub use self::outbox::OutboxSide;
pub use self::postgres::PostgresSide;
pub use blind::Blind;
pub use listing::{Collection, LeftOut, Listing};
pub use peer::{NoPeer, Peer};
pub use walk::{Batch, KeyRange, Order, Page, Part, Place, Route, Walk};

/// An answer that is on its way.
pub type Answer<'a, T> = BoxFuture<'a, Result<T, SideError>>;

/// Why a side could not be asked, in the words of the one that it is.
#[derive(Debug, thiserror::Error)]
pub enum SideError {
    #[error(transparent)]
    Source(#[from] SourceError),
    #[error(transparent)]
    Target(#[from] SinkError),
}

/// How large a collection is, as its side estimates without reading it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Size {
    pub documents: u64,
    pub bytes: u64,
}

/// The sums of one range. Both sides make them in the same way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Digest {
    pub documents: u64,
    pub bytes: u64,
    pub hashes: [i64; 2],
}

/// What came of asking for sums.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Digests {
    /// One for each part.
    Sums(Vec<Digest>),
    /// It takes longer than an answer is waited for: the side may hold far more in the range than the other.
    TooLong,
    /// This side makes none.
    Unable,
}

/// What a side tells of itself, by which one is told from another.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Looks {
    /// `None` where it may not be read, or where there is none.
    pub set_id: Option<String>,
    pub set_name: Option<String>,
    pub members: BTreeSet<String>,
    /// Drawn at each start of a server process.
    pub process: Option<ObjectId>,
}

/// One of the two sides.
pub trait Side: Send + Sync {
    /// What rests on what is read from here on is written only while this holds. See [`Gate`](crate::gate::Gate).
    fn permit(&self) -> Permit {
        Permit::free()
    }

    /// Bytes of what was read from it so far.
    fn received(&self) -> u64 {
        0
    }

    /// The position that the side has come to: not older than anything that was read before. Asked of a source's only.
    fn now(&self) -> Answer<'_, ClusterTime>;

    /// What it takes for now, in milliseconds since 1970, where it tells.
    fn clock(&self) -> Answer<'_, Option<i64>> {
        Box::pin(ready(Ok(None)))
    }

    /// What it tells of itself.
    fn looks(&self) -> Answer<'_, Looks> {
        Box::pin(ready(Ok(Looks::default())))
    }

    /// Lists what `filter` chooses: collections and views, and what cannot be replicated.
    fn list<'a>(&'a self, filter: &'a NamespaceFilter) -> Answer<'a, Listing>;

    /// What has this name, without the indexes; `None` where the name is free.
    fn describe_options<'a>(&'a self, ns: &'a Namespace) -> Answer<'a, Option<Description>>;

    /// An estimate. A collection that is not there is empty.
    fn size<'a>(&'a self, ns: &'a Namespace) -> Answer<'a, Size>;

    /// True when a collection holds no document, or is not there.
    fn is_empty<'a>(&'a self, ns: &'a Namespace) -> Answer<'a, bool>;

    /// How many documents a collection holds, as its statistics say.
    fn estimated_count<'a>(&'a self, ns: &'a Namespace) -> Answer<'a, u64>;

    /// Counts what `filter`, a MongoDB's, chooses; all where there is none. `None` where that takes longer than an
    /// answer is waited for, or the side cannot go by the filter.
    fn count<'a>(
        &'a self,
        ns: &'a Namespace,
        filter: Option<&'a RawDocument>,
    ) -> Answer<'a, Option<u64>>;

    /// So many keys, drawn at random, in the order of a walk.
    fn sample<'a>(&'a self, ns: &'a Namespace, keys: u64) -> Answer<'a, Vec<DocumentKey>>;

    /// Reads a range in the order of its keys. Nothing is asked before the first page is.
    fn walk(&self, route: Route) -> Box<dyn Walk + '_>;

    /// The documents of these keys, by [canonical](DocumentKey::canonical) key. Those without one are missing.
    fn find<'a>(
        &'a self,
        ns: &'a Namespace,
        keys: &'a [DocumentKey],
    ) -> Answer<'a, HashMap<Vec<u8>, RawDocumentBuf>>;

    /// When a copy was written, in milliseconds since 1970, where the side keeps that with it.
    fn written_at<'a>(
        &'a self,
        _ns: &'a Namespace,
        _key: &'a DocumentKey,
    ) -> Answer<'a, Option<u64>> {
        Box::pin(ready(Ok(None)))
    }

    /// The sums of the parts into which `splits` cut a range, in a state not older than `after`.
    fn digests<'a>(
        &'a self,
        _ns: &'a Namespace,
        _range: &'a KeyRange,
        _splits: &'a [DocumentKey],
        _after: ClusterTime,
    ) -> Answer<'a, Digests> {
        Box::pin(ready(Ok(Digests::Unable)))
    }

    /// Whether what this side has handed out is the copy of an original.
    fn is_copy(&self, original: &RawDocument, copy: &RawDocument) -> bool {
        original.as_bytes() == copy.as_bytes()
    }

    /// Whether what this side has handed out is only what is left of a copy that is not there any more: whoever looks for
    /// the copy has not found it, and whoever looks for what should not be there has.
    fn is_left_over(&self, _copy: &RawDocument) -> bool {
        false
    }

    /// Whether what it hands out are the documents. A side that keeps less of them cannot be restored from.
    fn keeps_documents(&self) -> bool {
        true
    }

    /// Whether it walks the documents of a collection with these options in the source's order. What is not is
    /// compared key by key.
    fn keeps_order_of(&self, _options: &RawDocument) -> bool {
        true
    }

    /// What was handed out as a document is none.
    fn malformed(&self, error: Malformed) -> SideError;

    /// Where it keeps options and indexes. `None`: nothing of that is compared, or made.
    fn schema(&self) -> Option<&dyn SchemaSide> {
        None
    }

    /// Where it keeps lease records. `None`: whose copy it is cannot be told.
    fn records(&self) -> Option<&dyn LeaseRecords> {
        None
    }

    /// Where a restore leaves its notes. `None` for a side that nothing is restored into.
    fn notes(&self) -> Option<&dyn Notes> {
        None
    }
}

/// A side that keeps options and indexes as a MongoDB does.
pub trait SchemaSide: Send + Sync {
    /// A collection or view with its options and indexes; `None` where the name is free.
    fn describe<'a>(&'a self, ns: &'a Namespace) -> Answer<'a, Option<Description>>;

    /// The indexes that are ready; none where there is no collection.
    fn list_indexes<'a>(&'a self, ns: &'a Namespace) -> Answer<'a, Vec<RawDocumentBuf>>;

    /// Runs a command of a [`Step`](crate::schema::Step), and waits so long for its answer. The server may go on with it
    /// after that. An index that is gone already is fine.
    fn alter<'a>(
        &'a self,
        ns: &'a Namespace,
        command: RawDocumentBuf,
        patience: Duration,
    ) -> BoxFuture<'a, Result<(), Unaltered>>;

    /// How far the builds of a collection's indexes are, in percent, where that may be known.
    fn build_progress<'a>(&'a self, ns: &'a Namespace) -> BoxFuture<'a, Option<u8>>;

    /// Whether anybody answers.
    fn is_there(&self) -> BoxFuture<'_, bool>;
}

/// Why a command that alters a collection was not done.
#[derive(Debug)]
pub struct Unaltered {
    /// In the side's words, without the values of documents that they quote.
    pub reason: String,
    /// What a person must grant, where that is missing and can be told.
    pub advice: Option<String>,
    pub because: Because,
    /// Waiting may help, as far as can be told.
    pub is_away: bool,
    pub error: SideError,
}

/// See [`Unaltered`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Because {
    /// Nobody has answered.
    Silence,
    /// A server said that it is about to be another one: it steps down, or ends.
    ChangeOfState,
    /// It was done where it was asked, and no majority has it yet.
    NoMajority,
    /// A privilege is missing.
    Forbidden,
    /// The name is another collection's by now, or the build was ended with its collection.
    Overtaken,
    /// The index is being built.
    InProgress,
    /// Anything else that was answered.
    Answer,
}

/// Notes that a restore leaves in the database that it restores into, so that it can go on.
pub trait Notes: Send + Sync {
    /// All of them, by name.
    fn read<'a>(&'a self, at: &'a Namespace) -> Answer<'a, BTreeMap<String, String>>;

    /// Notes something under a name. False where it was not taken for sure.
    fn write<'a>(&'a self, at: &'a Namespace, name: &'a str, text: &'a str) -> Answer<'a, bool>;

    /// Forgets all of them.
    fn drop<'a>(&'a self, at: &'a Namespace) -> Answer<'a, ()>;
}
