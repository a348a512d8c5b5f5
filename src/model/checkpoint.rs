//! Where to continue: a resume token, with the time and the identity that make it safe to use.
//!
//! Of the positions of one source two things are asked: which of two is later, and to go on from one. So a position is a
//! token that only its source reads, and an ordered number beside it, [`ClusterTime`], of which only a source
//! knows what it counts. The wall time of a change is no part of it: it stands beside, in each event and entry.
//! [`PositionKind`] says whose numbers they are, since those of two kinds compare without a word.

use std::{borrow::Cow, fmt};

use bson::{RawDocument, RawDocumentBuf, Timestamp};

/// The position of a change in its source's history, in an order that no two changes of one document share. Of a MongoDB
/// it is the `clusterTime`: seconds since 1970 in the upper 32 bits, a counter within the second in the lower, and only
/// of such a one may [`seconds`](Self::seconds) and [`millis`](Self::millis) be asked.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct ClusterTime(pub u64);

impl ClusterTime {
    /// Whole seconds since 1970.
    pub fn seconds(self) -> u32 {
        (self.0 >> 32) as u32
    }

    /// Milliseconds since 1970, as exact as a cluster time can be: to the second.
    pub fn millis(self) -> u64 {
        u64::from(self.seconds()) * 1000
    }
}

impl From<Timestamp> for ClusterTime {
    fn from(ts: Timestamp) -> Self {
        Self(u64::from(ts.time) << 32 | u64::from(ts.increment))
    }
}

impl From<ClusterTime> for Timestamp {
    fn from(time: ClusterTime) -> Self {
        Timestamp { time: time.seconds(), increment: time.0 as u32 }
    }
}

impl fmt::Debug for ClusterTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.seconds(), self.0 as u32)
    }
}

/// What the positions of a source count. A queue holds those of one kind: its entries and what waits for a
/// position are compared by them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PositionKind(Cow<'static, str>);

impl PositionKind {
    /// A MongoDB's.
    pub const CLUSTER_TIME: Self = Self::named("cluster time");

    /// One that a source names itself.
    pub const fn named(name: &'static str) -> Self {
        Self(Cow::Borrowed(name))
    }

    /// One that was written down, perhaps by a program that knows more of them.
    pub fn noted(name: &str) -> Self {
        Self(Cow::Owned(name.to_owned()))
    }

    /// The time that a position stands for, milliseconds since 1970, where positions of this kind are times.
    pub fn millis(&self, position: ClusterTime) -> Option<u64> {
        (*self == Self::CLUSTER_TIME).then(|| position.millis())
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A queue holds positions of another kind than the source that is configured has.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error(
    "the queue was filled from a source of another kind: its positions count in `{held}`, those of the source \
     that is configured now in `{wanted}`, and neither can go on from the other's"
)]
pub struct OtherKind {
    pub held: String,
    pub wanted: String,
}

/// An opaque position in the change stream, as the server gave it.
#[derive(Clone, PartialEq, Debug)]
pub struct ResumeToken(pub RawDocumentBuf);

impl ResumeToken {
    /// Copies the token out of a reply.
    pub fn from_raw(doc: &RawDocument) -> Self {
        Self(doc.to_owned())
    }

    /// The cluster time inside the token, where its form is the known one.
    ///
    /// `_data` is a hexadecimal KeyString that begins with the type byte of a timestamp (0x82) and
    /// the timestamp, big-endian (server source, `resume_token.cpp` and `key_string.cpp`). It is
    /// read for display and as a fallback only, never to decide what to skip.
    pub fn cluster_time(&self) -> Option<ClusterTime> {
        let data = self.0.get_str("_data").ok()?;
        let time = data.strip_prefix("82")?.get(..16)?;
        u64::from_str_radix(time, 16).ok().map(ClusterTime)
    }
}

/// Everything that must match before reading may continue where it stopped.
#[derive(Clone, PartialEq, Debug)]
pub struct Checkpoint {
    /// Exact position. Preferred.
    pub token: ResumeToken,
    /// The time of the last entry of the oplog that was seen at this position, 0 if it could not be seen.
    /// A database without that entry, though its oplog reaches back to it, has another history: it was
    /// restored. Positions cannot tell, since that of an idle stream is no entry's.
    pub anchor: ClusterTime,
    /// What the positions count: of what kind the source is.
    pub kind: PositionKind,
    /// The same position as a time; used only against the same `source_id`, since a time alone
    /// resumes silently on any database.
    pub cluster_time: ClusterTime,
    /// The local replica set's id (`settings.replicaSetId`): tells a restored or another database.
    pub source_id: String,
    /// Fingerprint of the pipeline and the namespace filter: a token is only good for its pipeline.
    pub pipeline: String,
}

impl Checkpoint {
    /// To be asked before anything is compared with a position of a source of the kind `wanted`.
    ///
    /// # Errors
    /// [`OtherKind`] when these are of another.
    pub fn is_of(&self, wanted: &PositionKind) -> Result<(), OtherKind> {
        if self.kind == *wanted {
            return Ok(());
        }
        let (held, wanted) = (self.kind.as_str().to_owned(), wanted.as_str().to_owned());
        Err(OtherKind { held, wanted })
    }
}

#[cfg(test)]
mod tests {
    use bson::rawdoc;

    use super::*;

    #[test]
    fn a_token_tells_its_cluster_time() {
        // Taken from a mongod 6.0.5: clusterTime Timestamp(1795206791, 5).
        let token = ResumeToken(rawdoc! {
            "_data": "826B00AE87000000052B022C0100296E5A1004DB9D100E35844B63AAF86107526AF039461E5F6964002B020004"
        });

        let time = token.cluster_time().unwrap();

        assert_eq!(Timestamp::from(time), Timestamp { time: 1_795_206_791, increment: 5 });
    }

    #[test]
    fn a_token_of_unknown_form_has_no_time() {
        for data in ["", "82", "826B", "83FF00000000000000AA", "82zzzzzzzzzzzzzzzz"] {
            assert_eq!(ResumeToken(rawdoc! { "_data": data }).cluster_time(), None, "{data}");
        }
    }
}
