//! The steps that make a copy like its original, and the commands that they are.

use std::fmt;

use bson::{RawDocument, RawDocumentBuf, rawdoc};

use super::{
    IndexChange, OptionChange, creation, essence, index_changes, is_same, name_bytes, name_of,
    option_changes, order,
    value::{Value, command, fields, get, is_on, names},
};
use crate::model::{
    event::CollectionId,
    raw::{Builder, kind},
};

/// What kind of thing has a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Collection,
    View,
    TimeSeries,
    /// A kind that this version does not know.
    Other,
}

/// How much of a copy a description speaks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claim {
    /// All of it: what it does not name goes.
    Whole,
    /// What it names, which is made where it is not there. Nothing that is there is changed, and all else is the copy's
    /// own.
    Named,
}

/// A collection or a view, as its server describes it.
#[derive(Clone, Debug, PartialEq)]
pub struct Description {
    pub kind: Kind,
    pub claim: Claim,
    /// A view has none.
    pub id: Option<CollectionId>,
    /// As `create` takes them.
    pub options: RawDocumentBuf,
    /// As `listIndexes` tells them; those that are still being built are not among them.
    pub indexes: Vec<RawDocumentBuf>,
}

impl Description {
    /// Reads one item of `listCollections`, without the indexes.
    pub fn of(item: &RawDocument) -> Self {
        let kind = match get(item, "type").and_then(Value::text).unwrap_or("collection") {
            "collection" => Kind::Collection,
            "view" => Kind::View,
            "timeseries" => Kind::TimeSeries,
            _ => Kind::Other,
        };
        let info = get(item, "info").and_then(Value::document);
        let id = info.and_then(|info| get(info, "uuid")).filter(|id| id.kind == kind::BINARY);
        let id = id.and_then(|id| CollectionId::from_value(id.bytes));
        let options = get(item, "options").and_then(Value::document);
        let options = options.map(ToOwned::to_owned).unwrap_or_default();
        Self { kind, claim: Claim::Whole, id, options, indexes: Vec::new() }
    }

    /// True for one that keeps its documents in the order of their insertion, and drops the oldest.
    pub fn is_capped(&self) -> bool {
        self.kind == Kind::Collection && get(&self.options, "capped").is_some_and(Value::is_true)
    }
}

/// One step.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// It is not there.
    Create {
        options: RawDocumentBuf,
    },
    /// A view stands where a collection belongs, or must be made anew. It holds nothing.
    DropView,
    /// A view shows something else.
    ModifyView {
        fields: RawDocumentBuf,
    },
    Option(OptionChange),
    Index(IndexChange),
    /// Something stands in its place that may hold documents, so it stays.
    InTheWay {
        what: &'static str,
    },
}

/// A sentence about what differs, for a person.
impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Step::Create { options } if get(options, "viewOn").is_some() => {
                f.write_str(Step::missing_view())
            }
            Step::Create { .. } => f.write_str("the collection is missing in Atlas"),
            Step::DropView => f.write_str("a view of that name in Atlas is another one"),
            Step::ModifyView { .. } => f.write_str("the view differs"),
            Step::Option(change) => change.fmt(f),
            Step::Index(change) => change.fmt(f),
            Step::InTheWay { what } => f.write_str(what),
        }
    }
}

impl Step {
    /// What is said of a view that is to be made.
    pub fn missing_view() -> &'static str {
        "the view is missing in Atlas"
    }

    /// The specs of an index that is to be built, which may take long.
    pub fn build(&self) -> Option<&RawDocumentBuf> {
        match self {
            Step::Index(IndexChange::Create { spec } | IndexChange::Replace { spec }) => Some(spec),
            _ => None,
        }
    }

    /// True for a change that reads all of an index.
    pub fn scans(&self) -> bool {
        matches!(self, Step::Index(IndexChange::MakeUnique { .. }))
    }

    /// True for a change that forbids what comes and allows what is there. It is made behind the documents, which
    /// might be among what it forbids.
    pub fn tightens(&self) -> bool {
        matches!(self, Step::Index(IndexChange::Prepare { .. }))
    }

    /// True for what no command changes.
    pub fn is_fixed(&self) -> bool {
        matches!(self, Step::Option(OptionChange::Fixed { .. }) | Step::InTheWay { .. })
    }

    /// The commands, one after the other, without those that build: see [`build`](Self::build). Those of a
    /// [`Create`](Self::Create) are made from its options by the seam.
    pub fn commands(&self, coll: &str) -> Vec<RawDocumentBuf> {
        // A name that is no text is passed on as it is.
        let index = |change: &IndexChange, flag: &str| {
            command("collMod", coll, |command| {
                command.document("index", |index| {
                    index.push(kind::STRING, "name", name_bytes(change.spec()));
                    index.push_bool(flag, true);
                });
            })
        };
        match self {
            Step::DropView => vec![command("drop", coll, |_| {})],
            Step::ModifyView { fields } | Step::Option(OptionChange::Modify { fields, .. }) => {
                vec![command("collMod", coll, |command| command.extend(fields))]
            }
            Step::Index(IndexChange::Modify { changes, .. }) => {
                vec![command("collMod", coll, |command| {
                    command.push(kind::DOCUMENT, "index", changes.as_bytes());
                })]
            }
            Step::Index(change @ IndexChange::MakeUnique { .. }) => {
                ["prepareUnique", "unique"].map(|flag| index(change, flag)).into()
            }
            Step::Index(change @ IndexChange::Prepare { .. }) => {
                vec![index(change, "prepareUnique")]
            }
            Step::Index(change @ (IndexChange::Drop { .. } | IndexChange::Replace { .. })) => {
                vec![command("dropIndexes", coll, |command| {
                    command.push(kind::STRING, "index", name_bytes(change.spec()));
                })]
            }
            Step::Create { .. }
            | Step::Index(IndexChange::Create { .. })
            | Step::Option(OptionChange::Fixed { .. })
            | Step::InTheWay { .. } => Vec::new(),
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
pub fn build_command(
    coll: &str,
    specs: &[RawDocumentBuf],
    id: Option<CollectionId>,
) -> RawDocumentBuf {
    command("createIndexes", coll, |command| {
        command.array("indexes", |indexes| {
            for spec in specs {
                indexes.push(kind::DOCUMENT, creation(spec).as_bytes());
            }
        });
        if let Some(CollectionId(bytes)) = id {
            let uuid =
                bson::Binary { subtype: bson::spec::BinarySubtype::Uuid, bytes: bytes.to_vec() };
            command.extend(&rawdoc! { "collectionUUID": uuid });
        }
    })
}

/// The names of indexes, for a person.
pub fn index_names<'a>(specs: impl IntoIterator<Item = &'a RawDocumentBuf>) -> Vec<String> {
    specs.into_iter().map(|spec| name_of(spec).into_owned()).collect()
}

/// What makes `copy` like `original`, in this order.
pub fn steps(original: &Description, copy: Option<&Description>) -> Vec<Step> {
    let create = || Step::Create { options: original.options.clone() };
    let build_all = || index_changes(&original.indexes, &[]).into_iter().map(Step::Index);
    if original.claim == Claim::Named
        && let Some(copy) = copy
    {
        return missing(original, copy);
    }
    match (original.kind, copy.map(|copy| (copy.kind, copy))) {
        (Kind::TimeSeries | Kind::Other, _) => Vec::new(),
        (_, Some((kind @ (Kind::TimeSeries | Kind::Other), _))) => {
            vec![Step::InTheWay { what: in_the_way(kind) }]
        }
        (Kind::View, Some((Kind::Collection, _))) => {
            let what = "Atlas has a collection where the local database has a view";
            vec![Step::InTheWay { what }]
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

/// What a copy lacks of a description that speaks for no more than it names.
fn missing(original: &Description, copy: &Description) -> Vec<Step> {
    match copy.kind {
        Kind::Collection => {
            let wanted = original.indexes.iter();
            let missing = wanted.filter(|spec| !copy.indexes.iter().any(|has| serves(has, spec)));
            missing.map(|spec| Step::Index(IndexChange::Create { spec: spec.clone() })).collect()
        }
        Kind::View => vec![Step::InTheWay { what: "Atlas has a view where documents are to be" }],
        kind @ (Kind::TimeSeries | Kind::Other) => vec![Step::InTheWay { what: in_the_way(kind) }],
    }
}

/// True for an index that does what a plain or unique one is wanted for, whatever it is called and does besides.
fn serves(index: &RawDocument, wanted: &RawDocument) -> bool {
    let does_no_less = |name: std::borrow::Cow<'_, str>| {
        matches!(&*name, "key" | "name" | "unique" | "expireAfterSeconds" | "prepareUnique")
    };
    order(index) == order(wanted)
        && is_same(get(index, "key"), get(wanted, "key"))
        && names(&essence(index)).all(does_no_less)
        && (is_on(index, "unique") || !is_on(wanted, "unique"))
}

/// What a person reads of something in Atlas that this version can neither write to nor compare.
pub fn in_the_way(kind: Kind) -> &'static str {
    if kind == Kind::TimeSeries {
        "Atlas has a time-series collection of this name; drop or rename it there"
    } else {
        "Atlas has something of this name that this version does not know; drop or rename it there"
    }
}

fn view_steps(original: &RawDocument, copy: &RawDocument) -> Vec<Step> {
    if !is_same(get(original, "collation"), get(copy, "collation")) {
        return vec![Step::DropView, Step::Create { options: original.to_owned() }];
    }
    if ["viewOn", "pipeline"].iter().all(|name| get(original, name) == get(copy, name)) {
        return Vec::new();
    }
    // Both, always: the server takes neither alone.
    let mut both = Builder::default();
    both.extend(&super::value::collect(
        fields(original).filter(|field| matches!(field.name, b"viewOn" | b"pipeline")),
    ));
    if get(original, "pipeline").is_none() {
        both.array("pipeline", |_| {});
    }
    vec![Step::ModifyView { fields: both.finish() }]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn described(kind: Kind, options: RawDocumentBuf, indexes: &[RawDocumentBuf]) -> Description {
        let (claim, indexes) = (Claim::Whole, indexes.to_vec());
        Description { kind, claim, id: None, options, indexes }
    }

    fn sentences(steps: &[Step]) -> Vec<String> {
        steps.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_view_is_made_changed_or_made_anew() {
        let view = |on: &str, locale: &str| {
            described(
                Kind::View,
                rawdoc! { "viewOn": on, "pipeline": [], "collation": { "locale": locale } },
                &[],
            )
        };
        let wanted = view("orders", "de");

        assert_eq!(sentences(&steps(&wanted, None)), ["the view is missing in Atlas"]);
        assert_eq!(steps(&wanted, Some(&wanted)), []);
        assert_eq!(
            steps(&wanted, Some(&view("people", "de")))[0].commands("v"),
            [rawdoc! { "collMod": "v", "viewOn": "orders", "pipeline": [] }]
        );
        assert_eq!(
            sentences(&steps(&wanted, Some(&view("orders", "fr")))),
            ["a view of that name in Atlas is another one", "the view is missing in Atlas"]
        );
    }

    #[test]
    fn a_collection_never_gives_way_to_a_view() {
        let view = described(Kind::View, rawdoc! { "viewOn": "orders", "pipeline": [] }, &[]);
        let collection = described(Kind::Collection, rawdoc! {}, &[]);

        let in_the_way = steps(&view, Some(&collection));
        assert!(in_the_way[0].is_fixed() && in_the_way[0].commands("v").is_empty());
        assert_eq!(steps(&collection, Some(&view))[0], Step::DropView);
    }

    #[test]
    fn what_is_only_named_is_made_where_it_is_not_there_and_all_else_stays() {
        let wanted = described(
            Kind::Collection,
            rawdoc! {},
            &[
                rawdoc! { "key": { "a": 1 }, "name": "a_1" },
                rawdoc! { "key": { "b": -1, "c": 1 }, "name": "b_-1_c_1" },
                rawdoc! { "key": { "d": 1 }, "name": "d_1", "unique": true },
            ],
        );
        let wanted = Description { claim: Claim::Named, ..wanted };
        let copy = described(
            Kind::Collection,
            rawdoc! { "validator": { "a": 1 } },
            &[
                rawdoc! { "v": 2, "key": { "a": 1.0 }, "name": "its own", "expireAfterSeconds": 9 },
                rawdoc! { "v": 2, "key": { "c": 1, "b": -1 }, "name": "turned" },
                rawdoc! { "v": 2, "key": { "d": 1 }, "name": "not unique" },
                rawdoc! { "v": 2, "key": { "e": 1 }, "name": "nobody asks for it" },
            ],
        );

        let missing = ["index `b_-1_c_1` is missing in Atlas", "index `d_1` is missing in Atlas"];
        assert_eq!(sentences(&steps(&wanted, Some(&copy))), missing);
        assert_eq!(steps(&wanted, None).len(), 4, "it is made with all of them");
        assert_eq!(
            steps(&wanted, Some(&Description { claim: Claim::Whole, ..wanted.clone() })),
            []
        );
        let view = described(Kind::View, rawdoc! { "viewOn": "x", "pipeline": [] }, &[]);
        assert!(steps(&wanted, Some(&view))[0].is_fixed(), "a view is somebody's too");
    }

    #[test]
    fn an_index_is_made_anew_where_the_server_cannot_change_it() {
        let index = |more: RawDocumentBuf| {
            let mut spec = Builder::default();
            spec.extend(&rawdoc! { "key": { "a": 1 }, "name": "a" });
            spec.extend(&more);
            described(Kind::Collection, rawdoc! {}, &[spec.finish()])
        };
        let step = &steps(&index(rawdoc! { "unique": true }), Some(&index(rawdoc! {})))[0];

        assert_eq!(step.commands("c").len(), 2);
        assert_eq!(step.build(), None);
        assert_eq!(step.instead("duplicates"), None);
        let recreated = step.instead("Location40415: BSON field is an unknown field").unwrap();
        assert_eq!(recreated.commands("c"), [rawdoc! { "dropIndexes": "c", "index": "a" }]);
        assert!(recreated.build().is_some());
    }
}
