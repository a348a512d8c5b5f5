//! What to do about what a sync, or the claim of the target, fails with.

use std::borrow::Cow;

use super::{RestoreError, SyncError};
use crate::{model::hint::Hint, sink::hint::TRY_AGAIN};

impl Hint for SyncError {
    fn hint(&self) -> Option<Cow<'_, str>> {
        let hint = match self {
            SyncError::Source(error) => return error.hint(),
            SyncError::Queue(error) => return error.hint(),
            SyncError::Sink(error) => return error.hint(),
            SyncError::SameDatabase(same) => return same.hint(),
            SyncError::NothingMatches(_) => {
                "a pattern is `database.collection`, with `*` for any part; `outrigger check` counts what there is"
            }
            SyncError::NotOwned { .. } => {
                "if Atlas may be made equal to the local database, deletes included, start once \
                 with `outrigger run --adopt`; otherwise name another target"
            }
            SyncError::Overlap { .. } => {
                "give each source names of its own, with `namespaces.include` and `namespaces.exclude`; if the \
                 other agent is gone for good, take over with `outrigger run --adopt`: Atlas is then made equal \
                 to this local database, deletes included"
            }
            SyncError::Ring { .. } => {
                "replicate in one direction only; if the other agent is gone for good, delete its mark from \
                 the local database (`replicas` in the database `outrigger`, or as `atlas.state_database` says) \
                 and start again"
            }
            SyncError::LeaseHeld { is_fresh: true, .. } => {
                "stop that agent first (`systemctl stop outrigger` on its host); one agent keeps one copy"
            }
            SyncError::LeaseHeld { is_fresh: false, .. } => {
                "if it will not come back, take over with `outrigger run --adopt`"
            }
            SyncError::NoDigest { .. } => "compare without --digest",
            SyncError::LocalTarget { .. } => {
                "run `outrigger restore` again when it does: it goes on where it was"
            }
            SyncError::Outdated | SyncError::OlderQueue | SyncError::Stopped => TRY_AGAIN,
        };
        Some(hint.into())
    }
}

impl Hint for RestoreError {
    fn hint(&self) -> Option<Cow<'_, str>> {
        let hint = match self {
            RestoreError::Sync(SyncError::Stopped) => {
                "run `outrigger restore` again: it goes on where it was"
            }
            RestoreError::Sync(error) => return error.hint(),
            RestoreError::NotEmpty { .. } => {
                "restore into an empty database, or drop what is there if it is of no use any more; `outrigger verify` \
                 shows how it differs from Atlas"
            }
            RestoreError::AlreadyThere { .. } => {
                "there is nothing to drop: `outrigger verify` compares both sides, and `outrigger run --adopt` goes on \
                 from here"
            }
            RestoreError::Another { .. } => {
                "finish that one, or drop the collection `outrigger.restore` and what was restored"
            }
            RestoreError::NoDocuments => {
                "with `exact = \"raw\"` under `[postgres]` it keeps them from the next sync on; what is lost now is in a \
                 backup of the local database"
            }
            RestoreError::Nothing => {
                "check the address in MONGODB_ATLAS_URI, `[namespaces]` and the database that MONGODB_LOCAL_URI names"
            }
        };
        Some(hint.into())
    }
}
