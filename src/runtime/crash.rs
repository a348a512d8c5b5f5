//! Steps at which a test may end the process, as a power cut would.
//!
//! Only with the feature `crash-points`, which no release has: `OUTRIGGER_CRASH_AT=name` aborts at the
//! first pass of the step of that name, `name:3` at the third. Without the feature nothing is left of
//! it. `tests/faults/crash_points.rs` exercises every name, those of an outbox
//! `tests/faults/outbox_crash_points.rs`. A name is passed at one place only, else one of two would go without a crash.

/// The steps. The names of what is durable end in `done`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CrashPoint {
    /// A position in the stream was taken, and that everything must be compared is in the queue.
    PositionNoted,
    /// The lease in Atlas is to be taken, and is not yet.
    LeaseIdNoted,
    /// A part of a collection's first copy is in Atlas.
    PartCopied,
    /// A range of a collection's first copy is noted.
    RangeNoted,
    /// A collection is in Atlas, and the queue does not know yet.
    CollectionCopied,
    /// The same, of one that was compared.
    CollectionCompared,
    /// A range of a restored collection is noted.
    RestoredRangeNoted,
    CommitBegins,
    CommitDone,
    /// A checkpoint without ops.
    CheckpointDone,
    Leased,
    /// Atlas has the batch, and the queue does not know yet.
    Written,
    /// Atlas has a schema change, and the queue does not know yet.
    BarrierApplied,
    AckBegins,
    AckDone,
    DeadLetterDone,
    /// The entries that bring evicted documents back are on the disk.
    EvictionNoted,
    /// The documents are gone from Atlas.
    Evicted,
    /// The right to read an outbox is taken.
    TurnTaken,
    /// An outbox says whose queue has what is marked from here on.
    ReaderNoted,
    /// Rows of an outbox are marked, which the queue has.
    RowsMarked,
}

impl CrashPoint {
    pub const ALL: [CrashPoint; 21] = [
        CrashPoint::PositionNoted,
        CrashPoint::LeaseIdNoted,
        CrashPoint::PartCopied,
        CrashPoint::RangeNoted,
        CrashPoint::CollectionCopied,
        CrashPoint::CollectionCompared,
        CrashPoint::RestoredRangeNoted,
        CrashPoint::CommitBegins,
        CrashPoint::CommitDone,
        CrashPoint::CheckpointDone,
        CrashPoint::Leased,
        CrashPoint::Written,
        CrashPoint::BarrierApplied,
        CrashPoint::AckBegins,
        CrashPoint::AckDone,
        CrashPoint::DeadLetterDone,
        CrashPoint::EvictionNoted,
        CrashPoint::Evicted,
        CrashPoint::TurnTaken,
        CrashPoint::ReaderNoted,
        CrashPoint::RowsMarked,
    ];
}

/// Ends the process here, if a test has asked for it.
#[cfg(feature = "crash-points")]
pub fn point(step: CrashPoint) {
    use std::sync::{
        LazyLock,
        atomic::{AtomicU32, Ordering},
    };
    static WANTED: LazyLock<Option<(String, AtomicU32)>> = LazyLock::new(|| {
        let wanted = std::env::var("OUTRIGGER_CRASH_AT").ok()?;
        let (name, passes) = wanted.split_once(':').unwrap_or((&wanted, "1"));
        Some((name.to_owned(), AtomicU32::new(passes.parse().unwrap_or(1))))
    });
    if let Some((name, passes)) = &*WANTED
        && *name == format!("{step:?}")
        && passes.fetch_sub(1, Ordering::SeqCst) == 1
    {
        std::process::abort();
    }
}

/// Nothing is left of it without the feature.
#[cfg(not(feature = "crash-points"))]
#[inline(always)]
pub fn point(_: CrashPoint) {}
