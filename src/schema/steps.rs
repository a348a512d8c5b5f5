//! The steps that make a copy like its original, and the commands that they are.

use std::fmt;

use bson::{Bson, Document, doc};

use super::{
    IndexChange, OptionChange, creation, index_changes, is_identical, is_same_field, option_changes,
};
use crate::event::CollectionId;

/// What kind of thing has a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Collection,
    View,
    TimeSeries,
    /// A kind that this version does not know.
    Other,
}

/// A collection or a view, as its server describes it.
#[derive(Clone, Debug, PartialEq)]
pub struct Description {
    pub kind: Kind,
    /// A view has none.
    pub id: Option<CollectionId>,
    /// As `create` takes them.
    pub options: Document,
    /// As `listIndexes` tells them; those that are still being built are not among them.
    pub indexes: Vec<Document>,
}

impl Description {
    /// Reads one item of `listCollections`, without the indexes.
    pub fn of(item: &Document) -> Self {
        let kind = match item.get_str("type").unwrap_or("collection") {
            "collection" => Kind::Collection,
            "view" => Kind::View,
            "timeseries" => Kind::TimeSeries,
            _ => Kind::Other,
        };
        let id = match item.get_document("info").ok().and_then(|info| info.get("uuid")) {
            Some(Bson::Binary(uuid)) => uuid.bytes.as_slice().try_into().ok().map(CollectionId),
            _ => None,
        };
        let options = item.get_document("options").cloned().unwrap_or_default();
        Self { kind, id, options, indexes: Vec::new() }
    }

    /// Equal byte for byte; with `==` a collection whose options hold NaN is not equal to itself.
    pub fn is_identical(&self, other: &Self) -> bool {
        let bytes = |of: &Self| -> Vec<_> {
            of.indexes.iter().chain([&of.options]).map(|document| document.to_vec().ok()).collect()
        };
        (self.kind, self.id) == (other.kind, other.id) && bytes(self) == bytes(other)
    }
}

/// One step.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// It is not there.
    Create {
        options: Document,
    },
    /// A view stands where a collection belongs, or must be made anew. It holds nothing.
    DropView,
    /// A view shows something else.
    ModifyView {
        fields: Document,
    },
    Option(OptionChange),
    Index(IndexChange),
    /// A collection stands in the place of a view. It may hold documents, so it stays.
    InTheWay,
}

/// A sentence about what differs, for a person.
impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Step::Create { options } if options.contains_key("viewOn") => {
                f.write_str("the view is missing in Atlas")
            }
            Step::Create { .. } => f.write_str("the collection is missing in Atlas"),
            Step::DropView => f.write_str("a view of that name in Atlas is another one"),
            Step::ModifyView { .. } => f.write_str("the view differs"),
            Step::Option(change) => change.fmt(f),
            Step::Index(change) => change.fmt(f),
            Step::InTheWay => {
                f.write_str("Atlas has a collection where the local database has a view")
            }
        }
    }
}

impl Step {
    /// The specs of an index that is to be built, which may take long.
    pub fn build(&self) -> Option<&Document> {
        match self {
            Step::Index(IndexChange::Create { spec } | IndexChange::Replace { spec }) => Some(spec),
            _ => None,
        }
    }

    /// True for a change that reads all of an index.
    pub fn scans(&self) -> bool {
        matches!(self, Step::Index(IndexChange::MakeUnique { .. }))
    }

    /// True for what no command changes.
    pub fn is_fixed(&self) -> bool {
        matches!(self, Step::Option(OptionChange::Fixed { .. }) | Step::InTheWay)
    }

    /// The commands, one after the other, without those that build: see [`build`](Self::build). Those of a
    /// [`Create`](Self::Create) are made from its options by the seam.
    pub fn commands(&self, coll: &str) -> Vec<Document> {
        let modify = |fields: &Document| {
            let mut command = doc! { "collMod": coll };
            command.extend(fields.clone());
            command
        };
        match self {
            Step::DropView => vec![doc! { "drop": coll }],
            Step::ModifyView { fields } | Step::Option(OptionChange::Modify { fields, .. }) => {
                vec![modify(fields)]
            }
            Step::Index(IndexChange::Modify { changes, .. }) => {
                vec![doc! { "collMod": coll, "index": changes.clone() }]
            }
            Step::Index(change @ IndexChange::MakeUnique { .. }) => ["prepareUnique", "unique"]
                .map(
                    |flag| doc! { "collMod": coll, "index": { "name": change.name(), flag: true } },
                )
                .into(),
            Step::Index(change @ (IndexChange::Drop { .. } | IndexChange::Replace { .. })) => {
                vec![doc! { "dropIndexes": coll, "index": change.name() }]
            }
            Step::Create { .. }
            | Step::Index(IndexChange::Create { .. })
            | Step::Option(OptionChange::Fixed { .. })
            | Step::InTheWay => Vec::new(),
        }
    }

    /// The step to take instead, after a server has refused this one with `reason` because it is too old to
    /// change an index in this way: the index is made anew.
    pub fn instead(&self, reason: &str) -> Option<Step> {
        let is_too_old = reason.contains("unknown field") || reason.contains("InvalidOptions");
        match self {
            Step::Index(IndexChange::Modify { spec, .. } | IndexChange::MakeUnique { spec })
                if is_too_old =>
            {
                Some(Step::Index(IndexChange::Replace { spec: spec.clone() }))
            }
            _ => None,
        }
    }
}

/// `createIndexes` for specs as `listIndexes` told them. With `id` for no other collection than that, which
/// servers know from 6.0 on.
pub fn build_command(coll: &str, specs: &[Document], id: Option<CollectionId>) -> Document {
    let indexes: Vec<_> = specs.iter().map(creation).collect();
    let mut command = doc! { "createIndexes": coll, "indexes": indexes };
    if let Some(CollectionId(bytes)) = id {
        let subtype = bson::spec::BinarySubtype::Uuid;
        command.insert("collectionUUID", bson::Binary { subtype, bytes: bytes.to_vec() });
    }
    command
}

/// What makes `copy` like `original`, in this order.
pub fn steps(original: &Description, copy: Option<&Description>) -> Vec<Step> {
    let create = || Step::Create { options: original.options.clone() };
    let build_all = || index_changes(&original.indexes, &[]).into_iter().map(Step::Index);
    match (original.kind, copy.map(|copy| (copy.kind, copy))) {
        (Kind::TimeSeries | Kind::Other, _) => Vec::new(),
        (_, Some((Kind::TimeSeries | Kind::Other, _)))
        | (Kind::View, Some((Kind::Collection, _))) => {
            vec![Step::InTheWay]
        }
        (Kind::View, None) => vec![create()],
        (Kind::View, Some((Kind::View, copy))) => view_steps(&original.options, &copy.options),
        (Kind::Collection, None) => std::iter::once(create()).chain(build_all()).collect(),
        (Kind::Collection, Some((Kind::View, _))) => {
            [Step::DropView, create()].into_iter().chain(build_all()).collect()
        }
        (Kind::Collection, Some((Kind::Collection, copy))) => {
            let options = option_changes(&original.options, &copy.options);
            let indexes = index_changes(&original.indexes, &copy.indexes);
            options
                .into_iter()
                .map(Step::Option)
                .chain(indexes.into_iter().map(Step::Index))
                .collect()
        }
    }
}

fn view_steps(original: &Document, copy: &Document) -> Vec<Step> {
    if !is_same_field(original.get("collation"), copy.get("collation")) {
        return vec![Step::DropView, Step::Create { options: original.clone() }];
    }
    let is_other = |name: &&str| !is_identical(original.get(name), copy.get(name));
    if !["viewOn", "pipeline"].iter().any(is_other) {
        return Vec::new();
    }
    // Both, always: the server takes neither alone.
    let pipeline = original.get("pipeline").cloned().unwrap_or_else(|| Bson::Array(Vec::new()));
    let view_on = original.get("viewOn").cloned().unwrap_or_default();
    vec![Step::ModifyView { fields: doc! { "viewOn": view_on, "pipeline": pipeline } }]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn described(kind: Kind, options: Document, indexes: &[Document]) -> Description {
        Description { kind, id: None, options, indexes: indexes.to_vec() }
    }

    fn sentences(steps: &[Step]) -> Vec<String> {
        steps.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_view_is_made_changed_or_made_anew() {
        let view = |on: &str, locale: &str| {
            described(
                Kind::View,
                doc! { "viewOn": on, "pipeline": [], "collation": { "locale": locale } },
                &[],
            )
        };
        let wanted = view("orders", "de");

        assert_eq!(sentences(&steps(&wanted, None)), ["the view is missing in Atlas"]);
        assert_eq!(steps(&wanted, Some(&wanted)), []);
        assert_eq!(
            steps(&wanted, Some(&view("people", "de")))[0].commands("v"),
            [doc! { "collMod": "v", "viewOn": "orders", "pipeline": [] }]
        );
        assert_eq!(
            sentences(&steps(&wanted, Some(&view("orders", "fr")))),
            ["a view of that name in Atlas is another one", "the view is missing in Atlas"]
        );
    }

    #[test]
    fn a_collection_never_gives_way_to_a_view() {
        let view = described(Kind::View, doc! { "viewOn": "orders", "pipeline": [] }, &[]);
        let collection = described(Kind::Collection, doc! {}, &[]);

        let in_the_way = steps(&view, Some(&collection));
        assert!(in_the_way[0].is_fixed() && in_the_way[0].commands("v").is_empty());
        assert_eq!(steps(&collection, Some(&view))[0], Step::DropView);
    }

    #[test]
    fn an_index_is_made_anew_where_the_server_cannot_change_it() {
        let index = |more: Document| {
            let mut spec = doc! { "key": { "a": 1 }, "name": "a" };
            spec.extend(more);
            described(Kind::Collection, doc! {}, &[spec])
        };
        let step = &steps(&index(doc! { "unique": true }), Some(&index(doc! {})))[0];

        assert_eq!(step.commands("c").len(), 2);
        assert_eq!(step.build(), None);
        assert_eq!(step.instead("duplicates"), None);
        let anew = step.instead("Location40415: BSON field is an unknown field").unwrap();
        assert_eq!(anew.commands("c"), [doc! { "dropIndexes": "c", "index": "a" }]);
        assert!(anew.build().is_some());
    }
}
