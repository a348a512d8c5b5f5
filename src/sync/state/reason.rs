//! Why a sync runs, as it is noted and as people read it.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Why everything is copied or compared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reason {
    /// There is no position to go on from: a new queue, or one that was rebuilt.
    FirstCopy,
    /// The stream cannot go on from its position.
    HistoryLost,
    /// The server could not show what follows the stream's position.
    Unshowable,
    /// This Atlas carries no lease of ours.
    NewTarget,
    /// The target lacks what it had confirmed: it was restored, or failed over to a replica that was behind.
    PutBack,
    NamespacesChanged,
    /// A collection came in by a rename, or was renamed while others were copied.
    Renamed,
    /// Somebody has taken away what the target had of a collection.
    Gone,
    /// Documents came into a collection without events (`convertToCapped`), or it must be made anew.
    Replaced,
    /// Atlas would not take a schema change.
    SchemaGivenUp,
    /// What became of a write to Atlas is not known.
    Unanswered,
    /// A collection was dropped or renamed while documents of it were taken out for a moment.
    Evicted,
    /// A person asked.
    Asked,
    /// `sync.verify_every`.
    Periodic,
    /// A person has thrown away what waited.
    Cleared,
    /// Schema changes came with an imported queue.
    Imported,
    #[default]
    Unknown,
}

impl Reason {
    /// True where it is told of, or makes an earlier moment of equality say nothing, until everything is compared,
    /// whatever comes to it meanwhile.
    pub fn lasts(self) -> bool {
        match self {
            Reason::Unshowable
            | Reason::NewTarget
            | Reason::PutBack
            | Reason::NamespacesChanged => true,
            Reason::FirstCopy
            | Reason::HistoryLost
            | Reason::Renamed
            | Reason::Gone
            | Reason::Replaced
            | Reason::SchemaGivenUp
            | Reason::Unanswered
            | Reason::Evicted
            | Reason::Asked
            | Reason::Periodic
            | Reason::Cleared
            | Reason::Imported
            | Reason::Unknown => false,
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Reason::FirstCopy => "the first copy",
            Reason::HistoryLost => "the stream could not go on from its position",
            Reason::Unshowable => {
                "the local server could not show what followed the stream's position"
            }
            Reason::NewTarget => "this Atlas was not the target before",
            Reason::PutBack => {
                "the target was put back to an earlier state, and lacks what it had confirmed"
            }
            Reason::NamespacesChanged => "the replicated namespaces have changed",
            Reason::Renamed => "a collection was renamed",
            Reason::Gone => "somebody has renamed or dropped a table",
            Reason::Replaced => "a collection was replaced as a whole",
            Reason::SchemaGivenUp => "Atlas would not take a schema change",
            Reason::Unanswered => "Atlas did not answer a schema change",
            Reason::Evicted => "a collection changed while documents of it gave way to others",
            Reason::Asked => "it was asked for",
            Reason::Periodic => "`sync.verify_every`",
            Reason::Cleared => "the queue was cleared",
            Reason::Imported => "a queue was imported",
            Reason::Unknown => "it was demanded",
        })
    }
}
