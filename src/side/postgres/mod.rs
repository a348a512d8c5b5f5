//! PostgreSQL as the target's side.
//!
//! Of a row `{_id, of, print}` is handed out: of which collection it is, and the [`mod@print`]
//! that PostgreSQL has taken of what stands there. Of one that is not there, but for elements of its arrays, `left` is true. Whether that is the copy of a document is told by the print of the row
//! that it should be. Only where a restore reads them, [`documents`](PostgresSide::documents), the rows are the documents.

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use bson::{RawDocument, RawDocumentBuf, cstr};
use futures_util::future::ready;
use parking_lot::Mutex;

use super::{
    Answer, Collection, Listing, Looks, Route, Side, SideError, Size, Walk, records::LeaseRecords,
};
use crate::{
    config::{Exact, Mapping},
    model::{
        checkpoint::ClusterTime,
        document_key::DocumentKey,
        namespace::{Namespace, NamespaceFilter},
        raw::Malformed,
    },
    postgres::connect::{Failed, Postgres},
    schema::{Claim, Description, Kind, value},
    sink::{
        SinkError,
        postgres::{
            print,
            read::{SeenRow, TableReader, Wanted},
            row::{self, Rows},
            table::Table,
            unkey,
        },
    },
};

mod peer;
mod records;
mod walk;

pub use records::PostgresRecords;

/// What a PostgreSQL holds.
pub struct PostgresSide {
    reader: TableReader,
    mapping: Mapping,
    exact: Exact,
    /// What is handed out of a row that is asked for as a whole.
    whole: Wanted,
    tables: Mutex<HashMap<Namespace, Arc<Rows>>>,
    records: Option<PostgresRecords>,
    received: AtomicU64,
}

fn failed(error: Failed) -> SideError {
    SinkError::from(error).into()
}

impl PostgresSide {
    /// To be compared.
    pub fn new(pg: Postgres, mapping: Mapping, exact: Exact) -> Self {
        Self {
            reader: TableReader(pg),
            mapping,
            exact,
            whole: Wanted::Print,
            tables: Mutex::default(),
            records: None,
            received: AtomicU64::new(0),
        }
    }

    /// To be restored from: the rows are the documents, where those are kept.
    pub fn documents(pg: Postgres, mapping: Mapping, exact: Exact) -> Self {
        Self { whole: Wanted::Document, ..Self::new(pg, mapping, exact) }
    }

    /// With the marks of ownership that stand there.
    #[must_use]
    pub fn with_records(self, records: PostgresRecords) -> Self {
        Self { records: Some(records), ..self }
    }

    fn rows(&self, ns: &Namespace) -> Arc<Rows> {
        let mut tables = self.tables.lock();
        if let Some(rows) = tables.get(ns) {
            return rows.clone();
        }
        let rows = Arc::new(Rows::of(Table::of(ns, &self.mapping), self.exact));
        tables.insert(ns.clone(), rows.clone());
        rows
    }

    /// What is told of a row, under the key that it is known by.
    fn told(
        &self,
        ns: &Namespace,
        key: &DocumentKey,
        seen: SeenRow,
    ) -> Result<RawDocumentBuf, SideError> {
        let SeenRow { id, what, is_orphan, .. } = seen;
        self.received.fetch_add((id.len() + what.as_ref().map_or(0, Vec::len)) as u64, Relaxed);
        if self.whole == Wanted::Document && what.is_some() {
            let bytes = what.unwrap_or_default();
            return RawDocumentBuf::from_bytes(bytes).map_err(|error| self.malformed(error.into()));
        }
        let mut document = key.filter().to_owned();
        document.append(cstr!("of"), ns.as_str());
        if is_orphan {
            document.append(cstr!("left"), true);
        }
        let bytes = what.unwrap_or_default();
        let subtype = bson::spec::BinarySubtype::Generic;
        document.append(cstr!("print"), bson::Binary { subtype, bytes });
        Ok(document)
    }

    fn key_bytes(&self, key: &DocumentKey) -> Result<Vec<u8>, SideError> {
        row::key_of(key).map_err(|error| self.malformed(error))
    }
}

/// The key of a row: told by the primary key itself, or, where that is cut, by its `id`, if that is still the one that it
/// is kept under. Of another row, which somebody has made, it is a stranger's.
fn key_of(seen: &SeenRow) -> Result<DocumentKey, Malformed> {
    let key = if row::is_cut(&seen.key) {
        let is_its_own = |key: &DocumentKey| row::key_of(key).is_ok_and(|bytes| bytes == seen.key);
        key_of_text(&seen.id).ok().filter(is_its_own)
    } else {
        unkey::decode(&seen.key)
    };
    key.map_or_else(|| row::key_of_stranger(&seen.key), Ok)
}

/// What [`row::id_text`] has written.
fn key_of_text(text: &str) -> Result<DocumentKey, Malformed> {
    let json = serde_json::from_str(text).map_err(|error| Malformed(error.to_string()))?;
    DocumentKey::from_json(json)
}

impl Side for PostgresSide {
    fn received(&self) -> u64 {
        self.received.load(Relaxed)
    }

    /// Asked of a source alone.
    fn now(&self) -> Answer<'_, ClusterTime> {
        Box::pin(ready(Ok(ClusterTime::default())))
    }

    fn looks(&self) -> Answer<'_, Looks> {
        Box::pin(async move {
            let set_id = self.reader.identity().await.map_err(failed)?;
            Ok(Looks { set_id, ..Looks::default() })
        })
    }

    fn list<'a>(&'a self, filter: &'a NamespaceFilter) -> Answer<'a, Listing> {
        Box::pin(async move {
            let mut listing = Listing::default();
            let found = self.reader.collections().await.map_err(failed)?;
            for ns in found.iter().filter_map(|name| name.parse::<Namespace>().ok()) {
                if listing.databases.last().is_none_or(|last| last != ns.db()) {
                    listing.databases.push(ns.db().to_owned());
                }
                if filter.matches(&ns) {
                    let options = RawDocumentBuf::new();
                    listing.collections.push(Collection { ns, options, id: None });
                } else {
                    listing.not_chosen.push(ns);
                }
            }
            listing.databases.sort();
            listing.databases.dedup();
            Ok(listing)
        })
    }

    fn describe_options<'a>(&'a self, ns: &'a Namespace) -> Answer<'a, Option<Description>> {
        Box::pin(async move {
            let is_there = self.reader.is_there(&self.rows(ns).table).await.map_err(failed)?;
            Ok(is_there.then(|| Description {
                kind: Kind::Collection,
                claim: Claim::Whole,
                id: None,
                options: RawDocumentBuf::new(),
                indexes: Vec::new(),
            }))
        })
    }

    fn size<'a>(&'a self, ns: &'a Namespace) -> Answer<'a, Size> {
        Box::pin(async move {
            let rows = self.rows(ns);
            let documents = self.reader.estimated_count(&rows.table).await.map_err(failed)?;
            let bytes = self.reader.bytes(&rows.table).await.map_err(failed)?;
            Ok(Size { documents, bytes })
        })
    }

    fn is_empty<'a>(&'a self, ns: &'a Namespace) -> Answer<'a, bool> {
        Box::pin(async move { self.reader.is_empty(&self.rows(ns).table).await.map_err(failed) })
    }

    fn estimated_count<'a>(&'a self, ns: &'a Namespace) -> Answer<'a, u64> {
        Box::pin(
            async move { self.reader.estimated_count(&self.rows(ns).table).await.map_err(failed) },
        )
    }

    /// It knows nothing of a MongoDB's filters.
    fn count<'a>(
        &'a self,
        ns: &'a Namespace,
        filter: Option<&'a RawDocument>,
    ) -> Answer<'a, Option<u64>> {
        Box::pin(async move {
            if filter.is_some() {
                return Ok(None);
            }
            match self.reader.count(&self.rows(ns).table).await {
                Ok(count) => Ok(Some(count)),
                Err(error) if error.is_late() => Ok(None),
                Err(error) => Err(failed(error)),
            }
        })
    }

    fn sample<'a>(&'a self, ns: &'a Namespace, keys: u64) -> Answer<'a, Vec<DocumentKey>> {
        Box::pin(async move {
            let found = self.reader.sample(&self.rows(ns).table, keys).await.map_err(failed)?;
            // Those that are cut stand in another order than MongoDB's among themselves.
            let found = found.iter().filter(|seen| !row::is_cut(&seen.key));
            found.map(key_of).collect::<Result<_, _>>().map_err(|error| self.malformed(error))
        })
    }

    fn walk(&self, route: Route) -> Box<dyn Walk + '_> {
        Box::new(walk::PostgresWalk::new(self, route))
    }

    fn find<'a>(
        &'a self,
        ns: &'a Namespace,
        keys: &'a [DocumentKey],
    ) -> Answer<'a, HashMap<Vec<u8>, RawDocumentBuf>> {
        Box::pin(async move {
            let rows = self.rows(ns);
            let bytes =
                keys.iter().map(|key| self.key_bytes(key)).collect::<Result<Vec<_>, _>>()?;
            let mut seen =
                self.reader.find(&rows.table, self.whole, &bytes).await.map_err(failed)?;
            if seen.len() < bytes.len() && self.whole != Wanted::Document {
                let known: HashSet<_> = seen.iter().map(|row| row.key.clone()).collect();
                let without: Vec<_> =
                    bytes.iter().filter(|key| !known.contains(*key)).cloned().collect();
                let orphans = self.reader.orphans_of(&rows.table, &without).await;
                seen.extend(orphans.map_err(failed)?.into_iter().map(SeenRow::orphan));
            }
            let asked: HashMap<_, _> = bytes.iter().zip(keys).collect();
            let mut found = HashMap::with_capacity(seen.len());
            for seen in seen {
                if let Some(key) = asked.get(&seen.key) {
                    found.insert(key.canonical(), self.told(ns, key, seen)?);
                }
            }
            Ok(found)
        })
    }

    fn written_at<'a>(
        &'a self,
        ns: &'a Namespace,
        key: &'a DocumentKey,
    ) -> Answer<'a, Option<u64>> {
        Box::pin(async move {
            let (rows, key) = (self.rows(ns), self.key_bytes(key)?);
            self.reader.written_at(&rows.table, &key).await.map_err(failed)
        })
    }

    fn is_copy(&self, original: &RawDocument, copy: &RawDocument) -> bool {
        if self.whole == Wanted::Document {
            return original.as_bytes() == copy.as_bytes();
        }
        let Some(ns) = copy.get_str("of").ok().and_then(|of| of.parse::<Namespace>().ok()) else {
            return false;
        };
        let Ok(row) = self.rows(&ns).row(original, None) else { return false };
        copy.get_binary("print").is_ok_and(|found| found.bytes == print::of(&row))
    }

    fn is_left_over(&self, copy: &RawDocument) -> bool {
        copy.get_bool("left").unwrap_or_default()
    }

    fn keeps_documents(&self) -> bool {
        self.whole == Wanted::Document && self.exact == Exact::Raw
    }

    /// The keys are in the order of their bytes, which is MongoDB's where no collation rules.
    fn keeps_order_of(&self, options: &RawDocument) -> bool {
        value::get(options, "collation").is_none()
    }

    fn records(&self) -> Option<&dyn LeaseRecords> {
        self.records.as_ref().map(|records| records as _)
    }

    fn malformed(&self, error: Malformed) -> SideError {
        SinkError::Rejected(error.to_string()).into()
    }
}
