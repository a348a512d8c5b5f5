//! Walks along the primary key, which sorts as MongoDB's `_id` index does.
//!
//! But for keys that are [cut](crate::sink::postgres::row::is_cut), since an index of PostgreSQL holds none that is so
//! long: those that begin alike stand together, in the order of a hash. So what is between two keys is told by the whole
//! keys, where one of the two is cut: all rows that begin as it does are read, and those on the other side are left out.
//! Only the order within a page is not MongoDB's then, and nobody goes by that.
//!
//! Elements of an array whose document has no row stand where that would: they are what is left of one that was deleted
//! while the array was not declared, or by hand. But for those whose key is cut, of which nobody can tell whose they are.

use std::collections::HashSet;

use bson::{RawDocument, RawDocumentBuf};

use super::{PostgresSide, failed, key_of};
use crate::{
    gate::Permit,
    model::document_key::DocumentKey,
    side::{Answer, Batch, Page, Part, Place, Route, Side, SideError, Walk},
    sink::postgres::{
        read::{SeenRow, Stretch, Wanted},
        row,
        table::Table,
    },
};

/// What bounds a walk: the whole key, and how its row is stored.
struct Bound {
    whole: Vec<u8>,
    stored: Vec<u8>,
}

impl Bound {
    fn of(side: &PostgresSide, key: Option<&DocumentKey>) -> Result<Option<Self>, SideError> {
        let bound = |key| {
            Ok(Self {
                whole: row::whole_key_of(key).map_err(|error| side.malformed(error))?,
                stored: side.key_bytes(key)?,
            })
        };
        key.map(bound).transpose()
    }

    /// The first key that a row can have which begins as this one does, and the last.
    fn alike(&self) -> Option<(Vec<u8>, Vec<u8>)> {
        row::begin_alike(&self.stored)
    }
}

pub(super) struct PostgresWalk<'a> {
    side: &'a PostgresSide,
    route: Route,
    behind: Option<DocumentKey>,
}

struct Told(Vec<RawDocumentBuf>);

impl Batch for Told {
    fn documents(&self) -> Result<Vec<&RawDocument>, SideError> {
        Ok(self.0.iter().map(|document| &**document).collect())
    }

    fn bytes(&self) -> usize {
        self.0.iter().map(|document| document.as_bytes().len()).sum()
    }
}

impl Walk for PostgresWalk<'_> {
    fn next(&mut self) -> Answer<'_, Option<Page>> {
        Box::pin(self.read())
    }

    fn permit(&self) -> Permit {
        Permit::free()
    }

    fn go_back(&mut self, place: &Place) {
        self.behind.clone_from(&place.behind);
    }
}

impl<'a> PostgresWalk<'a> {
    pub fn new(side: &'a PostgresSide, route: Route) -> Self {
        Self { side, route, behind: None }
    }

    /// The next rows, and what is left of documents that have none among them; and whether that is all there is.
    async fn seen(
        &self,
        table: &Table,
        wanted: Wanted,
        stretch: &Stretch,
        limit: u32,
    ) -> Result<(Vec<SeenRow>, bool), SideError> {
        let reader = &self.side.reader;
        let mut seen = reader.walk(table, wanted, stretch, limit).await.map_err(failed)?;
        let mut is_all = (seen.len() as u64) < u64::from(limit);
        // Nothing is restored of them.
        if wanted == Wanted::Document {
            return Ok((seen, is_all));
        }
        let mut beside = stretch.clone();
        if let Some(last) = seen.last().filter(|_| !is_all) {
            beside.up_to = Some(last.key.clone());
        }
        let orphans = reader.orphans(table, &beside, limit).await.map_err(failed)?;
        if orphans.len() as u64 >= u64::from(limit) {
            // There may be more of them, which come before the rest of the rows.
            is_all = false;
            seen.retain(|row| Some(&row.key) <= orphans.last());
        }
        let rows: HashSet<_> = seen.iter().map(|row| row.key.clone()).collect();
        let orphans = orphans.into_iter().filter(|key| !rows.contains(key));
        seen.extend(orphans.map(SeenRow::orphan));
        seen.sort_by(|one, other| one.key.cmp(&other.key));
        Ok((seen, is_all))
    }

    async fn read(&mut self) -> Result<Option<Page>, SideError> {
        let Route { ns, range, part, page, .. } = &self.route;
        let from = Bound::of(self.side, range.from.as_ref())?;
        let until = Bound::of(self.side, range.until.as_ref())?;
        let mut stretch = Stretch::default();
        if let Some(from) = &from {
            stretch.from =
                Some(from.alike().map_or_else(|| from.stored.clone(), |(first, _)| first));
        }
        match until.as_ref().map(|until| (until, until.alike())) {
            Some((_, Some((_, last)))) => stretch.up_to = Some(last),
            Some((until, None)) => stretch.before = Some(until.stored.clone()),
            None => {}
        }
        stretch.behind = self.behind.as_ref().map(|key| self.side.key_bytes(key)).transpose()?;
        let wanted = if *part == Part::Key { Wanted::Key } else { self.side.whole };
        let table = &self.side.rows(ns).table;
        let before = Place { behind: self.behind.clone(), leg: 0 };
        loop {
            let (seen, is_all) = self.seen(table, wanted, &stretch, *page).await?;
            let Some(last) = seen.last() else { return Ok(None) };
            let last_key = key_of(last).map_err(|error| self.side.malformed(error))?;
            stretch.behind = Some(last.key.clone());
            let mut told = Vec::with_capacity(seen.len());
            for seen in seen {
                let key = key_of(&seen).map_err(|error| self.side.malformed(error))?;
                if !is_between(&seen, &key, from.as_ref(), until.as_ref()) {
                    continue;
                }
                if wanted == Wanted::Document && seen.what.is_none() {
                    return Err(self.side.malformed(crate::model::raw::Malformed(format!(
                        "the row of {} in `{ns}` has no document: it was written before `postgres.exact` was \"raw\"",
                        seen.id
                    ))));
                }
                told.push(self.side.told(ns, &key, seen)?);
            }
            if told.is_empty() && !is_all {
                continue;
            }
            if told.is_empty() {
                return Ok(None);
            }
            self.behind = Some(last_key);
            let count = told.len();
            return Ok(Some(Page::new(Box::new(Told(told)), (0, count), Permit::free(), before)));
        }
    }
}

/// Whether a row that was read is in the range.
fn is_between(
    seen: &SeenRow,
    key: &DocumentKey,
    from: Option<&Bound>,
    until: Option<&Bound>,
) -> bool {
    // Told by how they are stored, unless both begin alike and are cut.
    let is_before = |bound: &Bound| match bound.alike() {
        Some((first, last)) if (&first..=&last).contains(&&seen.key) && row::is_cut(&seen.key) => {
            row::whole_key_of(key).is_ok_and(|whole| whole < bound.whole)
        }
        _ => seen.key < bound.stored,
    };
    from.is_none_or(|from| !is_before(from)) && until.is_none_or(is_before)
}
