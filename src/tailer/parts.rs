//! A reply of the change stream, before it is committed.

use crate::{
    model::event::SchemaChange,
    queue::{Incoming, Work},
};

/// Several changes of one collection's options or indexes that follow one another are one.
pub(super) fn without_repetition(mut incoming: Vec<Incoming>) -> Vec<Incoming> {
    incoming.dedup_by(|next, last| {
        matches!(next.work, Work::Schema(SchemaChange::Reconcile { .. })) && next.work == last.work
    });
    incoming
}
