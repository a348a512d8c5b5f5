//! What the events of one reply put into the queue, and what they ask for beyond it. Pure: asks neither queue nor
//! source.
//!
//! | a rename | in the queue | beyond it |
//! | --- | --- | --- |
//! | between two names that are replicated | the rename, and a look at its options | a copy that is under way hears of it |
//! | out of them | a drop | |
//! | into them | a drop of what had the name | its documents were never in the stream: it is compared |

use std::collections::BTreeSet;

use crate::{
    model::{
        checkpoint::ClusterTime,
        event::{Change, ChangeEvent, CollectionId, SchemaChange, is_series},
        namespace::{Namespace, NamespaceFilter},
    },
    queue::{Incoming, Refused, Work},
};

/// What a batch of events asks for beyond the queue, and what is known while it is gone through.
#[derive(Clone, Debug, Default)]
pub(super) struct SideEffects {
    /// Collections that are to be compared: the stream alone cannot tell what Atlas must hold of them.
    pub compare: BTreeSet<Namespace>,
    /// Something changed of options or indexes that no event names.
    pub look_at_schema: bool,
    /// Names of collections that have changed hands.
    pub renamed: Vec<Namespace>,
    /// The same as they were made: from, to, and when.
    pub renames: Vec<(Namespace, Namespace, ClusterTime)>,
}

/// Goes through the events of a reply.
pub(super) struct Intake<'a> {
    filter: &'a NamespaceFilter,
    tells_of_schema: bool,
    pub incoming: Vec<Incoming>,
    pub refused: Vec<Refused>,
    pub side_effects: SideEffects,
    /// The last collection that was looked at, and whether it is replicated.
    last: Option<(Namespace, bool)>,
}

impl<'a> Intake<'a> {
    /// Of a reply of so many events.
    pub fn new(filter: &'a NamespaceFilter, tells_of_schema: bool, events: usize) -> Self {
        let incoming = Vec::with_capacity(events);
        let (refused, side_effects) = (Vec::new(), SideEffects::default());
        Self { filter, tells_of_schema, incoming, refused, side_effects, last: None }
    }

    /// As [`NamespaceFilter::matches`], which is slow for something that is asked of each change.
    fn is_chosen(&mut self, ns: &Namespace) -> bool {
        match &self.last {
            Some((last, is_chosen)) if last == ns => *is_chosen,
            _ => self.last.insert((ns.clone(), self.filter.matches(ns))).1,
        }
    }

    /// Takes the next event of the reply.
    pub fn take_in(&mut self, event: ChangeEvent) {
        let (cluster_time, wall_ms) = (event.cluster_time, event.wall_ms);
        let with_times = |work| Incoming { work, cluster_time, wall_ms };
        match event.change {
            Change::Document { ns, key, op } => {
                if self.is_chosen(&ns) {
                    let collection = event.collection;
                    self.incoming.push(with_times(Work::Document { ns, key, op, collection }));
                }
            }
            Change::Schema(change) => {
                if let SchemaChange::Rename { from, to, .. } = &change {
                    self.side_effects.renames.push((from.clone(), to.clone(), cluster_time));
                }
                let changes = self.narrow(change, event.collection);
                self.incoming.extend(changes.into_iter().map(Work::Schema).map(with_times));
            }
            Change::DatabaseDropped { db } => {
                tracing::info!(db, "a database was dropped");
                self.side_effects.look_at_schema = true;
            }
            Change::Refused { ns, key, reason } => {
                tracing::error!(%ns, error = %reason, "what was read makes no sense, kept as a dead letter");
                self.refused.push(Refused { ns, key, reason, cluster_time, wall_ms });
            }
            // The server's filter may let more through than ours.
            Change::Ignored { ns: Some(ns), .. } if !self.filter.matches(&ns) => {}
            Change::Ignored { ns, kind } => {
                let ns = ns.map_or_else(String::new, |ns| ns.to_string());
                tracing::warn!(%ns, op = %kind, "a change of this kind is not replicated");
            }
        }
    }

    /// The part of a schema change that concerns replicated collections.
    fn narrow(
        &mut self,
        change: SchemaChange,
        collection: Option<CollectionId>,
    ) -> Vec<SchemaChange> {
        let (tells, side_effects) = (self.tells_of_schema, &mut self.side_effects);
        let SchemaChange::Rename { from, to, drop_target } = change else {
            if !self.filter.matches(change.ns()) {
                return Vec::new();
            }
            if let SchemaChange::Create { ns, options } = &change {
                if is_series(options) {
                    tracing::warn!(%ns, "a time-series collection is not replicated");
                    return Vec::new();
                }
                // `cloneCollectionAsCapped` fills it without an event (6.0.5), and looks no different.
                if options.get_bool("capped").unwrap_or(false) {
                    side_effects.compare.insert(ns.clone());
                }
            }
            side_effects.look_at_schema |= !tells;
            return vec![change];
        };
        match (self.filter.matches(&from), self.filter.matches(&to)) {
            (true, true) => {
                side_effects.renamed.extend([from.clone(), to.clone()]);
                if is_filled_unseen(&from, tells) {
                    side_effects.compare.insert(to.clone());
                }
                side_effects.look_at_schema |= !tells;
                // What was changed of it under its old name, and not applied there any more, is now.
                let reconcile = SchemaChange::Reconcile { ns: to.clone(), collection };
                vec![SchemaChange::Rename { from, to, drop_target }, reconcile]
            }
            (true, false) => vec![SchemaChange::Drop { ns: from }],
            (false, true) => {
                // Its documents were never copied and are not in the stream.
                side_effects.compare.insert(to.clone());
                vec![SchemaChange::Drop { ns: to }]
            }
            (false, false) => Vec::new(),
        }
    }
}

/// True for the temporary names under which a server fills a collection that it then renames, without an
/// event for its documents: `convertToCapped` always, a rename across databases before 6.0.
fn is_filled_unseen(from: &Namespace, tells_of_schema: bool) -> bool {
    from.coll().strip_prefix("tmp").and_then(|rest| rest.split_once('.')).is_some_and(
        |(_, what)| {
            what.starts_with("convertToCapped.") || (what == "renameCollection" && !tells_of_schema)
        },
    )
}

#[cfg(test)]
mod tests {
    use bson::rawdoc;

    use super::*;
    use crate::model::{document_key::DocumentKey, write_op::WriteOp};

    fn shop(coll: &str) -> Namespace {
        Namespace::new("shop", coll)
    }

    fn event(change: Change) -> ChangeEvent {
        ChangeEvent { cluster_time: ClusterTime(5), wall_ms: 7, collection: None, change }
    }

    /// What comes of one schema change where only `shop` is replicated.
    fn of(change: SchemaChange, tells_of_schema: bool) -> (Vec<Work>, SideEffects) {
        let filter = NamespaceFilter::new(&["shop.*".to_owned()], &[]).unwrap();
        let mut intake = Intake::new(&filter, tells_of_schema, 1);
        intake.take_in(event(Change::Schema(change)));
        (intake.incoming.into_iter().map(|incoming| incoming.work).collect(), intake.side_effects)
    }

    fn rename(from: &Namespace, to: &Namespace) -> SchemaChange {
        SchemaChange::Rename { from: from.clone(), to: to.clone(), drop_target: false }
    }

    #[test]
    fn only_changes_of_collections_that_are_replicated_are_taken_in() {
        let filter = NamespaceFilter::new(&["shop.*".to_owned()], &[]).unwrap();
        let mut intake = Intake::new(&filter, true, 3);
        let key = DocumentKey::of(&rawdoc! { "_id": 1 }).unwrap();

        for ns in [shop("a"), Namespace::new("crm", "a"), shop("a")] {
            let (key, op) = (key.clone(), WriteOp::Delete);
            intake.take_in(event(Change::Document { ns, key, op }));
        }

        assert_eq!(intake.incoming.len(), 2);
        assert!(intake.incoming.iter().all(|incoming| incoming.work.ns() == &shop("a")));
    }

    #[test]
    fn a_rename_among_what_is_replicated_is_one_and_its_options_are_looked_at_under_the_new_name() {
        let (work, side_effects) = of(rename(&shop("a"), &shop("b")), true);

        assert!(matches!(&work[0], Work::Schema(SchemaChange::Rename { .. })));
        let reconcile = SchemaChange::Reconcile { ns: shop("b"), collection: None };
        assert_eq!(work[1..], [Work::Schema(reconcile)]);
        assert_eq!(side_effects.renamed, [shop("a"), shop("b")]);
        assert!(side_effects.compare.is_empty() && !side_effects.look_at_schema);
    }

    #[test]
    fn a_rename_out_of_what_is_replicated_is_a_drop_and_one_into_it_a_comparison() {
        let crm = Namespace::new("crm", "a");

        let (out, nothing) = of(rename(&shop("a"), &crm), true);
        let (into, side_effects) = of(rename(&crm, &shop("a")), true);
        let (neither, _) = of(rename(&crm, &Namespace::new("crm", "b")), true);

        let dropped = [Work::Schema(SchemaChange::Drop { ns: shop("a") })];
        assert_eq!((&out[..], &into[..], neither.len()), (&dropped[..], &dropped[..], 0));
        assert!(nothing.compare.is_empty());
        assert_eq!(side_effects.compare, BTreeSet::from([shop("a")]));
    }

    #[test]
    fn a_capped_collection_that_is_made_is_compared_and_a_time_series_is_left_out() {
        let create = |options| SchemaChange::Create { ns: shop("a"), options };

        let (work, side_effects) = of(create(rawdoc! { "capped": true, "size": 4096 }), true);
        assert_eq!((work.len(), side_effects.compare), (1, BTreeSet::from([shop("a")])));
        let (work, _) = of(create(rawdoc! { "timeseries": { "timeField": "t" } }), true);
        assert!(work.is_empty());
    }

    #[test]
    fn where_the_stream_does_not_tell_of_options_each_change_of_a_collection_has_them_looked_at() {
        let drop = || SchemaChange::Drop { ns: shop("a") };

        assert!(of(drop(), false).1.look_at_schema && !of(drop(), true).1.look_at_schema);
        assert!(of(rename(&shop("a"), &shop("b")), false).1.look_at_schema);
    }

    #[test]
    fn a_collection_that_is_filled_without_events_is_known_by_its_temporary_name() {
        let is = |coll: &str, tells| is_filled_unseen(&Namespace::new("shop", coll), tells);

        assert!(is("tmpRhESk.convertToCapped.c", true) && is("tmpRhESk.convertToCapped.c", false));
        assert!(is("tmp8GWGL.renameCollection", false) && !is("tmp8GWGL.renameCollection", true));
        assert!(
            !is("tmp.agg_out.7be2b1b0", false) && !is("orders", false) && !is("tmporders", false)
        );
    }
}
