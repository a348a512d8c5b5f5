//! Options, indexes and views that differ, and whether they still do after a second look.

use std::collections::{BTreeSet, HashMap};

use super::{LOOK_MAX, MARGIN, NamespaceResult, Verify};
use crate::{
    model::namespace::Namespace,
    schema::{Description, Kind, steps},
    sync::{
        Collection, SyncError, atlas_collections, pause,
        schema::{schema_steps, sentences},
        sides::{SideName, ask},
    },
};

impl Verify<'_> {
    /// Looks again at collections whose options or indexes differ: they may have been made, changed or dropped between
    /// the looks at the two sides. All of them wait once for what is on its way, and each is asked for by itself.
    pub(super) async fn look_again(&self, found: &mut [NamespaceResult]) -> Result<(), SyncError> {
        let differ = found.iter().filter(|of| !of.schema.is_empty());
        let differ: Vec<Namespace> = differ.filter_map(|of| of.ns.parse().ok()).collect();
        if differ.is_empty() {
            return Ok(());
        }
        let Some(lag) = self.current_lag().await else { return Ok(()) };
        pause(self.stop, (lag + MARGIN).min(LOOK_MAX)).await?;
        let looks = self.sides.each(differ, |ns| {
            Box::pin(async move {
                let source = self.as_it_is(SideName::Local, &ns).await?;
                let target = self.as_it_is(SideName::Atlas, &ns).await?;
                let schema = self.schema(&ns, source.as_ref(), target.as_ref()).await?;
                Ok((ns.to_string(), schema))
            })
        });
        let mut schemas: HashMap<String, Vec<String>> = looks.await?.into_iter().collect();
        for of in found {
            if let Some(schema) = schemas.remove(&of.ns) {
                of.schema = schema;
            }
        }
        Ok(())
    }

    async fn as_it_is(
        &self,
        end: SideName,
        ns: &Namespace,
    ) -> Result<Option<Collection>, SyncError> {
        let side = self.sides.of(end);
        let found = ask!(self.sides, self.stop, side.describe_options(ns));
        let found = found.filter(|found| found.kind == Kind::Collection);
        Ok(found.map(|Description { options, id, .. }| Collection { ns: ns.clone(), options, id }))
    }

    /// The views that differ, and those that are on one side only; again after the lag, since they may have
    /// been changed just now.
    pub(super) async fn views(
        &self,
        source: &[Collection],
        target: &[Collection],
    ) -> Result<Vec<NamespaceResult>, SyncError> {
        // A target that keeps no options keeps no views.
        if self.sides.atlas.schema().is_none() {
            return Ok(Vec::new());
        }
        let mut found = view_differences(source, target);
        if let (false, Some(lag)) = (found.is_empty(), self.current_lag().await) {
            pause(self.stop, (lag + MARGIN).min(LOOK_MAX)).await?;
            let source = ask!(self.sides, self.stop, self.sides.local.list(self.filter)).views;
            let target =
                ask!(self.sides, self.stop, atlas_collections(&*self.sides.atlas, self.filter))
                    .views;
            let again = view_differences(&source, &target);
            found.retain(|view| again.contains(view));
        }
        Ok(found)
    }

    pub(super) async fn schema(
        &self,
        ns: &Namespace,
        local: Option<&Collection>,
        atlas: Option<&Collection>,
    ) -> Result<Vec<String>, SyncError> {
        Ok(match (local, atlas) {
            (Some(local), Some(atlas)) => {
                let options = (&local.options, &atlas.options);
                sentences(&schema_steps(self.sides, ns, SideName::Local, options, self.stop).await?)
            }
            (Some(_), None) => vec!["the collection is missing in Atlas".to_owned()],
            (None, Some(_)) => vec!["the collection is in Atlas only".to_owned()],
            (None, None) => Vec::new(),
        })
    }
}

/// What differs, without those that are equal.
fn view_differences(source: &[Collection], target: &[Collection]) -> Vec<NamespaceResult> {
    let of = |all: &[Collection], ns: &Namespace| {
        all.iter().find(|view| view.ns == *ns).map(Collection::description)
    };
    let names: BTreeSet<_> = source.iter().chain(target).map(|view| &view.ns).collect();
    let differ = |ns: &Namespace| match of(source, ns) {
        Some(local) => sentences(&steps(&local, of(target, ns).as_ref())),
        None => vec!["the view is in Atlas only".to_owned()],
    };
    names
        .into_iter()
        .map(|ns| NamespaceResult {
            ns: ns.to_string(),
            schema: differ(ns),
            ..NamespaceResult::default()
        })
        .filter(|result| !result.is_equal())
        .collect()
}
