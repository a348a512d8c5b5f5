//! Where to continue: a resume token, with the time and the identity that make it safe to use.

use std::fmt;

use bson::{RawDocument, RawDocumentBuf, Timestamp};

/// The position of a change in the local database's history (`clusterTime`): seconds since 1970 in
/// the upper 32 bits, a counter within the second in the lower.
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
    /// The same position as a time; used only against the same `source_id`, since a time alone
    /// resumes silently on any database.
    pub cluster_time: ClusterTime,
    /// The local replica set's id (`settings.replicaSetId`): tells a restored or another database.
    pub source_id: String,
    /// Fingerprint of the pipeline and the namespace filter: a token is only good for its pipeline.
    pub pipeline: String,
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
