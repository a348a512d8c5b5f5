//! One notification of a change, as the change stream gives it.

use std::borrow::Cow;

use bson::{RawBsonRef, RawDocument, RawDocumentBuf};

use crate::model::{
    checkpoint::ClusterTime,
    delta::Delta,
    document_key::DocumentKey,
    namespace::{Interner, Namespace},
    raw::{self, Malformed, kind},
    write_op::WriteOp,
};

/// One change in the local database. Parsed once, at the seam; nothing behind it looks at the
/// stream's own form again.
#[derive(Clone, Debug, PartialEq)]
pub struct ChangeEvent {
    /// When it was committed.
    pub cluster_time: ClusterTime,
    /// The same as the server's wall clock, in milliseconds since 1970 (6.0+; else the cluster
    /// time's second).
    pub wall_ms: u64,
    /// The collection's UUID (expanded events, 6.0+): tells a collection from a later one of the
    /// same name.
    pub collection: Option<CollectionId>,
    /// What changed.
    pub change: Change,
}

/// A collection's UUID, which a rename keeps and a new collection of the same name does not.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct CollectionId(pub [u8; 16]);

impl CollectionId {
    /// Reads the UUID of an event, from the bytes of the value.
    pub fn from_value(value: &[u8]) -> Option<Self> {
        // A BSON binary begins with four bytes of length and one of subtype; the UUID follows.
        value.get(5..).and_then(|bytes| bytes.try_into().ok()).map(Self)
    }

    /// Reads the UUID of `listCollections`.
    pub fn from_raw(value: RawBsonRef<'_>) -> Option<Self> {
        value.as_binary().and_then(|binary| binary.bytes.try_into().ok()).map(Self)
    }
}

/// What changed.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// One document.
    Document { ns: Namespace, key: DocumentKey, op: WriteOp },
    /// A collection as such.
    Schema(SchemaChange),
    /// `dropDatabase`, which comes behind the drops of its collections. Its views go without a word.
    DatabaseDropped { db: String },
    /// What a source was told and that makes no sense, under a name by which it knows it again, and why. It becomes a dead
    /// letter, and what follows flows on.
    Refused { ns: Namespace, key: DocumentKey, reason: String },
    /// Nothing that is replicated, such as an index build's progress. `kind` is the server's word.
    Ignored { ns: Option<Namespace>, kind: String },
}

/// A change of a collection itself: a barrier in the queue.
#[derive(Clone, Debug, PartialEq)]
pub enum SchemaChange {
    /// `create`, with the options as `operationDescription` gives them.
    Create { ns: Namespace, options: RawDocumentBuf },
    /// `drop`.
    Drop { ns: Namespace },
    /// A full sync found it in Atlas alone: dropped, unless the local database has it when its turn comes.
    DropIfGone { ns: Namespace },
    /// `rename`; with `dropTarget` a collection named `to` was replaced.
    Rename { from: Namespace, to: Namespace, drop_target: bool },
    /// Options or indexes were changed, or may have been: `modify`, `createIndexes`, `dropIndexes`. Atlas's
    /// are made like the local ones as they are when its turn comes. `collection` tells of which collection
    /// of that name, where that is known.
    Reconcile { ns: Namespace, collection: Option<CollectionId> },
}

impl SchemaChange {
    /// The collection that the change is about; of a rename, the old name.
    pub fn ns(&self) -> &Namespace {
        match self {
            SchemaChange::Create { ns, .. }
            | SchemaChange::Drop { ns }
            | SchemaChange::DropIfGone { ns }
            | SchemaChange::Reconcile { ns, .. } => ns,
            SchemaChange::Rename { from, .. } => from,
        }
    }

    /// Every collection whose ops must not pass the barrier.
    pub fn namespaces(&self) -> Vec<Namespace> {
        match self {
            SchemaChange::Create { ns, .. }
            | SchemaChange::Drop { ns }
            | SchemaChange::DropIfGone { ns }
            | SchemaChange::Reconcile { ns, .. } => vec![ns.clone()],
            SchemaChange::Rename { from, to, .. } => vec![from.clone(), to.clone()],
        }
    }

    /// The name that a capped collection has from here on, where it is made or renamed; `is_capped` tells it of what was
    /// there before.
    pub fn makes_capped(&self, is_capped: impl Fn(&Namespace) -> bool) -> Option<&Namespace> {
        match self {
            SchemaChange::Create { ns, options } => {
                matches!(options.get_bool("capped"), Ok(true)).then_some(ns)
            }
            SchemaChange::Rename { from, to, .. } => is_capped(from).then_some(to),
            SchemaChange::Drop { .. }
            | SchemaChange::DropIfGone { .. }
            | SchemaChange::Reconcile { .. } => None,
        }
    }

    /// The server's word for it.
    pub fn name(&self) -> &'static str {
        match self {
            SchemaChange::Create { .. } => "create",
            SchemaChange::Drop { .. } | SchemaChange::DropIfGone { .. } => "drop",
            SchemaChange::Rename { .. } => "rename",
            SchemaChange::Reconcile { .. } => "modify",
        }
    }
}

impl ChangeEvent {
    /// Reads one event of a `$changeStream` with `showExpandedEvents` and `showRawUpdateDescription`;
    /// a stream without them (5.0) parses too, its updates as `Refresh`.
    ///
    /// # Errors
    /// [`Malformed`] when a field that every event has is missing or of another type. An event type
    /// that is not known is no error: it is [`Change::Ignored`].
    pub fn parse(event: &RawDocument) -> Result<Self, Malformed> {
        Self::parse_one_of(event, &mut Interner::default())
    }

    /// As [`parse`](Self::parse), for one of many events, which share their namespaces' names.
    ///
    /// # Errors
    /// As [`parse`](Self::parse).
    pub fn parse_one_of(event: &RawDocument, namespaces: &mut Interner) -> Result<Self, Malformed> {
        let mut fields = Fields::default();
        // Its documents are kept as bytes and never looked into.
        for element in raw::elements(event) {
            let raw::Element { kind, name, value } = element?;
            let document = || (kind == kind::DOCUMENT).then(|| raw::nested(value).ok()).flatten();
            match name {
                "operationType" if kind == kind::STRING => fields.kind = raw::string(value),
                "clusterTime" if kind == kind::TIMESTAMP => {
                    fields.time = value.try_into().ok().map(|v| ClusterTime(u64::from_le_bytes(v)));
                }
                "wallTime" if kind == kind::DATE_TIME => {
                    fields.wall_ms = value.try_into().ok().map(i64::from_le_bytes);
                }
                "collectionUUID" if kind == kind::BINARY => {
                    fields.collection = CollectionId::from_value(value);
                }
                "ns" => fields.ns = document(),
                "to" => fields.to = document(),
                "documentKey" => fields.key = document(),
                "fullDocument" => fields.document = document(),
                "rawUpdateDescription" => fields.update = document(),
                "operationDescription" => fields.description = document(),
                _ => {}
            }
        }
        let cluster_time = fields.time.ok_or_else(|| missing("clusterTime"))?;
        let wall_ms = fields
            .wall_ms
            .and_then(|wall_ms| u64::try_from(wall_ms).ok())
            .unwrap_or(cluster_time.millis());
        let change = fields.change(namespaces)?;
        Ok(Self { cluster_time, wall_ms, collection: fields.collection, change })
    }
}

#[derive(Default)]
struct Fields<'a> {
    kind: Option<&'a str>,
    time: Option<ClusterTime>,
    wall_ms: Option<i64>,
    collection: Option<CollectionId>,
    ns: Option<&'a RawDocument>,
    to: Option<&'a RawDocument>,
    key: Option<&'a RawDocument>,
    document: Option<&'a RawDocument>,
    update: Option<&'a RawDocument>,
    description: Option<&'a RawDocument>,
}

impl Fields<'_> {
    fn change(&self, namespaces: &mut Interner) -> Result<Change, Malformed> {
        let kind = self.kind.ok_or_else(|| missing("operationType"))?;
        let mut document = |op: WriteOp| -> Result<Change, Malformed> {
            let key = DocumentKey::of(self.key.ok_or_else(|| missing("documentKey"))?)?;
            let (db, coll) = names(self.ns.ok_or_else(|| missing("ns"))?)?;
            Ok(Change::Document { ns: namespaces.named(&db, &coll), key, op })
        };
        match kind {
            // A missing full document (an event too large to show it) is not an empty one.
            "insert" => document(self.full_document().map_or(WriteOp::Refresh, WriteOp::Insert)),
            "replace" => document(self.full_document().map_or(WriteOp::Refresh, WriteOp::Replace)),
            "update" => document(self.delta().map_or(WriteOp::Refresh, WriteOp::Update)),
            "delete" => document(WriteOp::Delete),
            "create" => {
                let options = self.description.map_or_else(RawDocumentBuf::new, ToOwned::to_owned);
                Ok(Change::Schema(SchemaChange::Create { ns: self.ns()?, options }))
            }
            "drop" => Ok(Change::Schema(SchemaChange::Drop { ns: self.ns()? })),
            // A time-series collection is not replicated, and the stream shows it as the view that it is.
            "modify" if self.is_of_a_series() => {
                Ok(Change::Ignored { ns: self.ns().ok(), kind: kind.to_owned() })
            }
            "modify" | "createIndexes" | "dropIndexes" => {
                let (ns, collection) = (self.ns()?, self.collection);
                Ok(Change::Schema(SchemaChange::Reconcile { ns, collection }))
            }
            "dropDatabase" => {
                let ns = self.ns.ok_or_else(|| missing("ns"))?;
                let db = raw::elements(ns).flatten().find(|element| element.name == "db");
                let db =
                    db.map(|db| raw::lossy(db.value)).ok_or_else(|| missing("db"))?.into_owned();
                Ok(Change::DatabaseDropped { db })
            }
            "rename" => {
                let to = self.to.ok_or_else(|| missing("to"))?;
                let drop_target = self.description.is_some_and(|description| {
                    matches!(description.get("dropTarget"), Ok(Some(_)))
                });
                let to = namespace(to)?;
                Ok(Change::Schema(SchemaChange::Rename { from: self.ns()?, to, drop_target }))
            }
            kind => Ok(Change::Ignored { ns: self.ns().ok(), kind: kind.to_owned() }),
        }
    }

    fn is_of_a_series(&self) -> bool {
        self.description.is_some_and(is_series)
    }

    fn ns(&self) -> Result<Namespace, Malformed> {
        namespace(self.ns.ok_or_else(|| missing("ns"))?)
    }

    fn full_document(&self) -> Option<RawDocumentBuf> {
        self.document.map(ToOwned::to_owned)
    }

    fn delta(&self) -> Option<Delta> {
        let update = self.update?;
        if !matches!(update.get("$v"), Ok(Some(RawBsonRef::Int32(2)))) {
            return None;
        }
        Delta::from_diff(raw::subdocument(update, "diff")?).ok()
    }
}

/// True for the options of a time-series collection: itself, or the view that events (6.0.5) tell of
/// instead.
pub fn is_series(options: &RawDocument) -> bool {
    matches!(options.get("timeseries"), Ok(Some(_)))
        || raw::elements(options).flatten().any(|option| {
            option.name == "viewOn" && raw::lossy(option.value).starts_with(SYSTEM_BUCKETS)
        })
}

/// What a time-series collection keeps its documents in; the collection itself is a view of that.
const SYSTEM_BUCKETS: &str = "system.buckets.";

fn namespace(doc: &RawDocument) -> Result<Namespace, Malformed> {
    names(doc).map(|(db, coll)| Namespace::new(&db, &coll))
}

/// Database and collection of `{db, coll}`, with a sign in the place of what is no text: the filter knows such
/// names by it.
fn names(doc: &RawDocument) -> Result<(Cow<'_, str>, Cow<'_, str>), Malformed> {
    let (mut db, mut coll) = (None, None);
    for element in raw::elements(doc) {
        let element = element?;
        match element.name {
            "db" if element.kind == kind::STRING => db = Some(raw::lossy(element.value)),
            "coll" if element.kind == kind::STRING => coll = Some(raw::lossy(element.value)),
            _ => {}
        }
    }
    Ok((db.ok_or_else(|| missing("db"))?, coll.ok_or_else(|| missing("coll"))?))
}

fn missing(name: &str) -> Malformed {
    Malformed(format!("a change event without `{name}`"))
}

#[cfg(test)]
mod tests {
    use bson::{Timestamp, rawdoc};

    use super::*;

    fn event(kind: &str, more: RawDocumentBuf) -> RawDocumentBuf {
        let mut event = rawdoc! {
            "_id": { "_data": "82" },
            "operationType": kind,
            "clusterTime": Timestamp { time: 7, increment: 1 },
            "ns": { "db": "shop", "coll": "orders" },
            "documentKey": { "_id": 1 },
        };
        for element in &more {
            let (name, value) = element.unwrap();
            event.append(name, value);
        }
        event
    }

    fn op(event: &RawDocument) -> WriteOp {
        match ChangeEvent::parse(event).unwrap().change {
            Change::Document { op, .. } => op,
            other => panic!("{other:?} is about no document"),
        }
    }

    #[test]
    fn a_null_full_document_is_not_an_empty_document() {
        for kind in ["insert", "replace"] {
            assert_eq!(op(&event(kind, rawdoc! { "fullDocument": null })), WriteOp::Refresh);
            assert_eq!(op(&event(kind, rawdoc! {})), WriteOp::Refresh);
        }
    }

    #[test]
    fn an_update_without_an_exact_diff_is_a_refresh() {
        let described = rawdoc! { "updateDescription": { "updatedFields": { "a": 1 }, "removedFields": [], "truncatedArrays": [] } };

        assert_eq!(op(&event("update", described)), WriteOp::Refresh);
        assert_eq!(
            op(&event("update", rawdoc! { "rawUpdateDescription": { "$v": 3, "diff": {} } })),
            WriteOp::Refresh
        );
    }

    #[test]
    fn an_update_carries_its_exact_diff() {
        let raw = rawdoc! { "rawUpdateDescription": { "$v": 2, "diff": { "u": { "a": 1 } } } };

        assert!(matches!(op(&event("update", raw)), WriteOp::Update(_)));
    }

    #[test]
    fn a_change_of_options_or_indexes_names_its_collection() {
        for kind in ["modify", "createIndexes", "dropIndexes"] {
            let change = ChangeEvent::parse(&event(kind, rawdoc! {})).unwrap().change;
            let Change::Schema(SchemaChange::Reconcile { ns, .. }) = change else {
                panic!("{change:?}")
            };
            assert_eq!(ns.as_str(), "shop.orders");
        }
    }

    #[test]
    fn a_time_series_is_known_by_the_view_that_it_is() {
        let series = rawdoc! { "viewOn": "system.buckets.orders", "pipeline": [] };

        assert!(is_series(&series) && is_series(&rawdoc! { "timeseries": {} }));
        assert!(!is_series(&rawdoc! { "viewOn": "orders", "pipeline": [] }));
        let modified = event("modify", rawdoc! { "operationDescription": series });
        let change = ChangeEvent::parse(&modified).unwrap().change;
        assert!(matches!(change, Change::Ignored { .. }));
    }

    #[test]
    fn an_unknown_event_is_ignored_and_a_broken_one_is_refused() {
        let unknown = ChangeEvent::parse(&event("somethingNew", rawdoc! {})).unwrap();

        assert!(matches!(unknown.change, Change::Ignored { .. }));
        assert!(ChangeEvent::parse(&rawdoc! { "operationType": "insert" }).is_err());
        assert!(
            ChangeEvent::parse(
                &rawdoc! { "operationType": 5, "clusterTime": Timestamp { time: 1, increment: 1 } }
            )
            .is_err()
        );
    }
}
