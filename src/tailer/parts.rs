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

#[cfg(test)]
mod tests {
    use bson::rawdoc;

    use super::*;
    use crate::model::{
        checkpoint::ClusterTime, document_key::DocumentKey, namespace::Namespace, write_op::WriteOp,
    };

    #[test]
    fn looks_at_the_options_of_one_collection_that_follow_one_another_are_one_and_nothing_else_is()
    {
        let ns = |coll| Namespace::new("shop", coll);
        let look = |coll| Work::Schema(SchemaChange::Reconcile { ns: ns(coll), collection: None });
        let delete = || {
            let key = DocumentKey::of(&rawdoc! { "_id": 1 }).unwrap();
            Work::Document { ns: ns("a"), key, op: WriteOp::Delete, collection: None }
        };
        let all = [look("a"), look("a"), look("b"), delete(), delete(), look("b")];
        let incoming =
            all.map(|work| Incoming { work, cluster_time: ClusterTime(1), wall_ms: 1 }).into();

        let left = without_repetition(incoming).into_iter().map(|incoming| incoming.work);

        let expected = [look("a"), look("b"), delete(), delete(), look("b")];
        assert_eq!(left.collect::<Vec<_>>(), expected);
    }
}
