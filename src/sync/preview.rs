//! What a comparison of everything would do, told before it does anything: by the servers' own estimates, so no document
//! is read. Exact is `outrigger sync --dry-run`.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::{SyncError, atlas_collections, deletes::DeleteLimit, ownership};
use crate::{
    model::namespace::{Namespace, NamespaceFilter},
    side::{Side, Size},
};

/// What becomes of one collection or view.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// Atlas has none of it.
    Copy,
    /// Both sides have some.
    Compare,
    /// Only Atlas has it.
    Delete,
    /// It is somebody else's in Atlas, or more than may be deleted.
    Leave,
}

/// One collection or view, and what is planned for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Planned {
    pub ns: Namespace,
    pub action: Action,
    /// As the servers estimate.
    pub local_documents: u64,
    pub local_bytes: u64,
    pub atlas_documents: u64,
    pub note: Option<String>,
}

/// What a person may say to more than may be deleted unasked.
const ALLOW: &str =
    "more than `sync.max_delete_ratio`: `outrigger sync --allow-mass-delete` deletes it";

/// What is known of one name.
#[derive(Clone, Debug, Default)]
struct Known {
    is_view: bool,
    /// `None` where it is not.
    source: Option<Size>,
    target: Option<u64>,
    is_theirs: bool,
}

/// Looks at both sides, and changes nothing.
///
/// # Errors
/// When an end does not answer, or refuses to.
pub async fn preview(
    local: &dyn Side,
    atlas: &dyn Side,
    filter: &NamespaceFilter,
    source_id: &str,
    max_delete_ratio: f64,
) -> Result<Vec<Planned>, SyncError> {
    let source = local.list(filter).await?;
    let target = atlas_collections(atlas, filter).await?;
    let theirs: BTreeSet<_> = ownership::not_ours(atlas, filter, source_id).await?;
    let mut names: BTreeMap<Namespace, Known> = BTreeMap::new();
    for (listing, is_here) in [(&source, true), (&target, false)] {
        for (of, is_view) in [(&listing.collections, false), (&listing.views, true)] {
            for collection in of {
                let known = names.entry(collection.ns.clone()).or_default();
                known.is_view |= is_view;
                if is_here {
                    known.source = Some(Size::default());
                } else {
                    known.target = Some(0);
                }
            }
        }
    }
    let mut planned = Vec::new();
    for (ns, mut known) in names {
        if !known.is_view && known.source.is_some() {
            known.source = Some(local.size(&ns).await?);
        }
        if !known.is_view && known.target.is_some() {
            known.target = Some(atlas.size(&ns).await?.documents);
        }
        known.is_theirs = theirs.contains(&ns);
        planned.push(plan(ns, &known, DeleteLimit::new(max_delete_ratio)));
    }
    planned.sort_by(|a, b| (a.action, &a.ns).cmp(&(b.action, &b.ns)));
    Ok(planned)
}

fn plan(ns: Namespace, known: &Known, limit: DeleteLimit) -> Planned {
    let (is_here, is_there) = (known.source.is_some(), known.target.is_some());
    let (source, target) = (known.source.unwrap_or_default(), known.target.unwrap_or(0));
    let extra = target.saturating_sub(source.documents);
    let too_many = limit.is_mass_delete(extra, target);
    let (action, note) = match () {
        () if known.is_theirs => (
            Action::Leave,
            Some(
                "Atlas holds data that was never copied from here: `run --adopt` takes it over"
                    .to_owned(),
            ),
        ),
        () if is_here && known.is_view => {
            (if is_there { Action::Compare } else { Action::Copy }, Some("a view".to_owned()))
        }
        () if !is_here && known.is_view => (Action::Delete, Some("a view".to_owned())),
        () if !is_here && too_many => (Action::Leave, Some(ALLOW.to_owned())),
        () if !is_here => (Action::Delete, None),
        () if target == 0 => (Action::Copy, None),
        () if too_many => {
            (Action::Compare, Some(format!("Atlas has {extra} more, which stay: {ALLOW}")))
        }
        () if extra > 0 => {
            (Action::Compare, Some(format!("{extra} or more would be deleted in Atlas")))
        }
        () => (Action::Compare, None),
    };
    Planned {
        ns,
        action,
        local_documents: source.documents,
        local_bytes: source.bytes,
        atlas_documents: target,
        note,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::side::{
        fake_records::{FakeRecords, filter, lease_of},
        fake_schema::FakeSchemas,
    };

    #[tokio::test(start_paused = true)]
    async fn a_preview_names_all_of_both_sides_in_the_order_of_what_becomes_of_it() {
        let records: Arc<FakeRecords> = Arc::default();
        let local = FakeSchemas::at(1);
        let atlas = FakeSchemas::at(1).keeping(records.clone());
        let ns = |name: &str| Namespace::new("shop", name);
        for (side, names) in [(&local, ["both", "new"]), (&atlas, ["both", "old"])] {
            for name in names {
                side.has(&ns(name), &[]);
            }
            side.has_view(&ns("shown"));
        }
        atlas.has(&ns("theirs"), &[]);
        local.has_view(&ns("a new view"));
        local.has_documents(3);
        atlas.has_documents(1);
        records.has(lease_of("ours", &["shop.both", "shop.o*", "shop.shown"]));

        let planned = preview(&local, &atlas, &filter(&["shop.*"]), "ours", 0.5).await.unwrap();

        let told: Vec<_> = planned.iter().map(|of| (of.action, of.ns.coll())).collect();
        assert_eq!(
            told,
            [
                (Action::Copy, "a new view"),
                (Action::Copy, "new"),
                (Action::Compare, "both"),
                (Action::Compare, "shown"),
                (Action::Delete, "old"),
                (Action::Leave, "theirs"),
            ]
        );
        let counted = |name: &str| {
            let of = planned.iter().find(|of| of.ns.coll() == name).unwrap();
            (of.local_documents, of.atlas_documents)
        };
        assert_eq!(
            ["both", "new", "shown"].map(counted),
            [(3, 1), (3, 0), (0, 0)],
            "a view has none"
        );
    }

    #[test]
    fn what_is_planned_follows_from_what_both_sides_have() {
        let collection = |source: Option<u64>, target: Option<u64>| Known {
            source: source.map(|documents| Size { documents, bytes: 0 }),
            target,
            ..Known::default()
        };
        let theirs = Known { is_theirs: true, ..collection(Some(1), Some(1)) };
        let view = |source: bool| Known {
            is_view: true,
            source: source.then(Size::default),
            target: Some(0),
            ..Known::default()
        };
        for (known, action, note) in [
            (collection(Some(5), None), Action::Copy, None),
            (collection(Some(5), Some(0)), Action::Copy, None),
            (collection(Some(5), Some(5)), Action::Compare, None),
            (collection(Some(5), Some(9)), Action::Compare, Some("4 or more would be deleted")),
            (collection(Some(0), Some(500)), Action::Compare, Some("500 more, which stay")),
            (collection(None, Some(5)), Action::Delete, None),
            (collection(None, Some(500)), Action::Leave, Some("--allow-mass-delete")),
            (view(true), Action::Compare, Some("a view")),
            (view(false), Action::Delete, Some("a view")),
            (theirs, Action::Leave, Some("--adopt")),
        ] {
            let planned = plan(Namespace::new("a", "b"), &known, DeleteLimit::new(0.2));

            assert_eq!(planned.action, action, "{known:?}");
            let told = planned.note.as_deref();
            assert_eq!(told.is_some(), note.is_some(), "{known:?}: {told:?}");
            assert!(note.is_none_or(|note| told.unwrap().contains(note)), "{told:?}");
        }
    }
}
