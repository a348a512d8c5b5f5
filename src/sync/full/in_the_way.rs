//! What stands in Atlas in the place of what the local database has: a view, a time series, a database in other
//! capitals. No event has told that it is gone. It makes way before anything is copied or compared: through a view a
//! comparison would read somebody else's documents, and a database keeps away one of other capitals.

use std::collections::BTreeSet;

use super::{first::create, plan::Scope, rest::compare_rest, run::Run, views::queue_and_wait};
use crate::{
    model::{event::SchemaChange, namespace::Namespace},
    schema::{Kind, in_the_way},
    sink::{SchemaSink, SinkError},
    sync::{Collection, Listing, SyncError},
};

/// Makes collections in the place of views. Returns those that nothing is in the way of any more.
pub(super) async fn make_way<K: SchemaSink>(
    run: &Run<'_, K>,
    mut collections: Vec<Collection>,
    target: &Listing,
) -> Result<Vec<Collection>, SyncError> {
    if run.is_dry() {
        return Ok(collections);
    }
    // It may hold documents, which are not compared.
    let others: BTreeSet<_> = target.left_out.iter().map(|left| &left.ns).collect();
    for Collection { ns, .. } in collections.extract_if(.., |of| others.contains(&of.ns)) {
        let what = in_the_way(Kind::TimeSeries).to_owned();
        run.unless_refused::<()>(&ns, Err(SinkError::Held(what).into()))?;
    }
    let views: BTreeSet<_> = target.views.iter().map(|view| &view.ns).collect();
    for collection in collections.iter().filter(|collection| views.contains(&collection.ns)) {
        if !run.is_still(collection).await? {
            continue; // The stream tells what has the name now.
        }
        tracing::info!(ns = %collection.ns, "Atlas has a view where the local database has a collection; it is made");
        let made = create(run, collection).await;
        run.unless_refused(&collection.ns, made)?;
    }
    Ok(collections)
}

/// Databases of Atlas whose names differ in capitals alone from those of what the run is about.
pub(super) fn other_capitals<K>(
    run: &Run<'_, K>,
    source: &Listing,
    target: &Listing,
) -> BTreeSet<String> {
    let wanted: BTreeSet<_> =
        source.names().filter(|ns| run.scope.has(ns)).map(Namespace::db).collect();
    let is_old = |db: &&String| {
        wanted.iter().any(|wanted| wanted.eq_ignore_ascii_case(db))
            && !source.databases.contains(db)
    };
    target.databases.iter().filter(is_old).cloned().collect()
}

/// What only Atlas has, in databases of [other capitals](other_capitals), goes as far as it may go unasked; with the
/// last of it goes the database. By the queue, so that no more may be held than what is to be copied.
pub(super) async fn empty_other_capitals<K: SchemaSink>(
    run: &Run<'_, K>,
    old: &BTreeSet<String>,
    target: Listing,
) -> Result<(), SyncError> {
    if run.is_dry() || old.is_empty() {
        return Ok(());
    }
    tracing::info!(databases = ?old, "the local database has these in other capitals; what only Atlas has of them goes first");
    // What is asked for is no reason to drop what is not; what is owed cannot be done else.
    let goes = |ns: &&Namespace| old.contains(ns.db()) && (run.plan.is_owed() || run.scope.has(ns));
    let names: BTreeSet<_> = target.names().filter(goes).cloned().collect();
    compare_rest(run, &Scope::only(names.clone()), |_| true).await?;
    let views = target.views.into_iter().map(|view| view.ns).filter(|ns| names.contains(ns));
    let changes = views.map(|ns| SchemaChange::DropIfGone { ns }).collect();
    queue_and_wait(run, changes, &names).await
}
