//! The names of the small values that are kept beside the queue ([`Queue::meta`](super::Queue::meta)): all of them, so that none is
//! taken twice, and one who meets a queue can tell what is noted in it. What a value looks like is its owner's.

/// The agent's id, which outlives its queue's folder as a file beside it (`agent/identity`).
pub const AGENT: &str = "agent";
/// What had no place in the stream's order and is compared (`sync/state`); below it, names with a NUL in between.
pub const SYNC: &str = "sync";
/// Collections whose comparison is owed behind a later position (`sync/state`).
pub const BEHIND: &str = "behind";
/// When the last full sync of everything ended, milliseconds since 1970 (`sync/full`).
pub const LAST_SYNC: &str = "last-sync";
/// Collections in which the last comparison found more to delete than it may (`sync/full`).
pub const REFUSED: &str = "refused";
/// Collections that were made anew for their options, each with these options' hash (`sync/keeper`).
pub const RECREATED: &str = "made-anew";
/// What was written to Atlas and is not proven yet (`sync/unproven`).
pub const UNPROVEN: &str = "unproven";
/// The id of the lease that the queue's position belongs to (`sync/ownership`).
pub const LEASE_ID: &str = "claim";
/// The last position that the lease in Atlas is known to carry, and the last that was sent to it (`sync/ownership`).
pub const RENEWED: &str = "renewed";
pub const RENEWING: &str = "renewing";
/// The starts of which one has taken the lease last (`sync/ownership`).
pub const LIVES: &str = "lives";
/// What the target has confirmed by count (`gate/tally`), written with every ack and every other note.
pub const TALLY: &str = "tally";
/// The queue was moved in, and has not taken the lease of its target yet (`queue/transfer`, `sync/ownership`).
pub const MOVED: &str = "moved";
/// The queue was put back to an older state, and is not used any more (`queue/metas`).
pub const OUTDATED: &str = "outdated";
/// A person has paused the agent (`admin`, `cli`).
pub const PAUSED: &str = "paused";
/// The last moment at which both sides were equal, so that a restart in an outage still tells it (`agent/vitals`).
pub const EQUAL: &str = "equal";
/// Where the stream does not go on (`tailer/trouble`).
pub const IMPASSE: &str = "impasse";
